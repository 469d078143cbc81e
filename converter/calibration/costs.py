"""What making a calibration takes, told before it begins: the sums of docs/calibration.md, by rates of this machine.

Products are counted as if all ran at the rate of numpy's, which is near what llama.cpp reaches on a processor. Which
weights share an input is told by the runtime when it runs; here by their names, so that others count one by one.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np

from converter.calibration.activations import block_of
from converter.calibration.feedback import more_at_once, usable_memory
from converter.calibration.moments import Moments, solved
from converter.calibration.texts import AT_ONCE, CONTEXT
from converter.metadata import number_of, text_of
from converter.planning.plan import Plan, Step
from converter.planning.preflight import Beforehand, seconds_for_one
from converter.quant.feedback import triangle
from converter.request import CALIBRATION_TOKENS, OWN
from converter.storage.files import regular_size
from converter.tensors.kernels import FEEDBACK

#: Roles that meet the same input.
SHARED = {
    role: group[0]
    for group in (
        ("attn_q", "attn_k", "attn_v"), ("attn_q_a", "attn_kv_a_mqa"), ("ffn_up", "ffn_gate"),
        ("ffn_up_exps", "ffn_gate_exps"), ("ffn_up_shexp", "ffn_gate_shexp"),
    )
    for role in group
}  # fmt: skip
STREAMING = 10e9  # bytes a second that a model is read from memory, for each token that it writes: assumed
RUNTIME = 256 << 20  # bytes that llama.cpp takes beside the file, which is mapped
FACTOR = 24  # bytes for each number of a moment while its factor is computed
_SIDE = 1024  # of the matrices that rates are measured on
_LOOKED_UP = re.compile(r"(?:^|_)embd|token_types")


@dataclass(frozen=True)
class _Input:
    """What some weights are multiplied by: `matrices` of them where experts have each their own, of which every one
    meets `share` of the tokens."""

    block: int | None
    row: int
    matrices: int
    share: float
    experts: bool

    @property
    def nbytes(self) -> int:
        """Of its second moments."""
        return 4 * self.matrices * self.row**2

    def factors(self, tokens: int) -> int:
        """How many it gets: experts that met few tokens have one together."""
        own = self.matrices if not self.experts or self.share * tokens >= self.row else 0
        return own + self.experts


def costs(plan: Plan, how: str | Path, tokens: int = CALIBRATION_TOKENS, memory: int | None = None) -> Beforehand:
    """What `calibrate` takes for the source of a plan, whose target is a GGUF.

    Args:
        plan: of any of the quants that it will serve.
        how, tokens, memory: as for `calibrate`.

    Raises:
        OutputError: the text cannot be read.
    """
    tokens = min(tokens, regular_size(how)) if isinstance(how, Path) else tokens
    products = [step for step in plan.steps if len(step.shape) > 1 and not _LOOKED_UP.search(step.name)]
    inputs = list(_inputs(products, _share(plan)))
    readings = _readings(inputs, memory or usable_memory())
    active = sum(step.info.n_elements * _of(step, _share(plan)).share for step in products)
    seconds = readings * 2 * active * tokens * multiplying()
    seconds += sum(each.matrices * each.share * tokens * each.row**2 for each in inputs) * multiplying()
    seconds += sum(each.factors(tokens) * each.row * each.row**2 for each in inputs) * factoring()
    stored = sum(step.intermediate.info.nbytes for step in plan.steps)
    if how == OWN:
        seconds += max(2 * active * tokens * multiplying(), _steps(tokens) * stored / STREAMING)
    kept = 2 * sum(each.factors(tokens) * triangle(each.row) for each in inputs)
    largest = max((each.row for each in inputs), default=0)
    return Beforehand(
        seconds=seconds,
        readings=readings,
        disk_bytes=2 * kept,
        kept_bytes=kept,
        scratch_bytes=0 if plan.route.source == "gguf" else stored,
        memory_bytes=RUNTIME + max(_by_block(inputs), default=0) + FACTOR * largest**2,
        spread=frozenset(step.name for step in products if step.type in FEEDBACK),
    )


def _share(plan: Plan) -> float:
    """Of the tokens that an expert meets on average."""
    config = plan.checkpoint.config
    arch = text_of(config, "general.architecture")
    used, count = (number_of(config, f"{arch}.{key}") for key in ("expert_used_count", "expert_count"))
    return used / count if used and count else 1.0


def _of(step: Step, share: float) -> _Input:
    *stacked, _, row = step.shape
    experts = bool(stacked) and "_exps." in step.name
    return _Input(block_of(step.name), row, int(np.prod(stacked)), share if experts else 1.0, experts)


def _inputs(steps: Iterable[Step], share: float) -> Iterable[_Input]:
    """Those of all steps, each once."""
    found: dict[tuple[int | None, str], _Input] = {}
    for step in steps:
        block, role = block_of(step.name), re.sub(r"^blk\.\d+\.|\.weight$", "", step.name)
        found.setdefault((block, SHARED.get(role, role)), _of(step, share))
    return found.values()


def _by_block(inputs: Iterable[_Input]) -> list[int]:
    """Bytes of second moments, block by block, what is in none last."""
    blocks: dict[int | None, int] = {}
    for each in inputs:
        blocks[each.block] = blocks.get(each.block, 0) + each.nbytes
    return [blocks[number] for number in sorted(blocks, key=lambda number: (number is None, number or 0))]


def _readings(inputs: Sequence[_Input], memory: int) -> int:
    """How often the text is read, as `calibrate` does it."""
    left, count, at_once, largest = _by_block(inputs), 0, 1, 1
    while left:
        now, left = left[:at_once], left[at_once:]
        largest, count = max(largest, *now), count + 1
        at_once = more_at_once(at_once, largest, memory)
    return count


def _steps(tokens: int) -> int:
    """Tokens that the model writes one after the other, some texts side by side."""
    context = min(tokens, CONTEXT)
    return -(-max(1, tokens // context) // AT_ONCE) * context


@cache
def multiplying() -> float:
    """Seconds for an operation of a matrix product in F32, by all processors."""
    matrix = np.random.default_rng(0).normal(size=(_SIDE, _SIDE)).astype(np.float32)
    return seconds_for_one(lambda: matrix @ matrix, 2 * _SIDE * _SIDE**2)


@cache
def factoring() -> float:
    """Seconds for a factor of n columns, over n cubed."""
    rows = np.random.default_rng(0).normal(size=(_SIDE, _SIDE)).astype(np.float32)
    moments = Moments(_SIDE)
    moments.add(rows)
    return seconds_for_one(lambda: solved(moments.finish(), ""), _SIDE * _SIDE**2)
