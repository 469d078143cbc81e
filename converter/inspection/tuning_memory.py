"""How much memory fine-tuning a model takes: all weights, LoRA, QLoRA; by the length of the sequences.

In bytes, for AdamW in mixed precision, one sequence a step, gradient checkpointing and attention without its matrix in
memory (flash attention):

- frozen: the weights that stay as they are, in BF16; QLoRA has the matrices of the layers in NF4 with doubly quantized
  scales, 4 + 8/64 + 32/(64 * 256) bits (Dettmers et al. 2023, section 3).
- weights, gradients, optimizer: of what is trained 2, 2 and 12 bytes a parameter: BF16, BF16, and an F32 copy with two
  F32 moments (Rajbhandari et al. 2020, section 3.1). LoRA trains rank x (rows + columns) numbers for every matrix of
  the layers (Hu et al. 2021).
- activations: the input of every layer in BF16, and the larger of two moments: one layer computed again with its
  gradients (BF16, 4 n_embd + 2 queries + keys and values + 3 n_ff a token, twice), or the logits and their gradients in
  F32.

Not counted: the framework and the driver (1 to 2 GB), fragmentation, what a data loader keeps. Several GPUs share it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from converter.inspection.quantities import Quantities, Tensors

RANK = 16
TOKENS = (2048, 8192)
BF16, F32 = 2, 4
ADAMW = 3 * F32  # an F32 copy and two moments
NF4_BITS = 4 + 8 / 64 + 32 / (64 * 256)
SMALLEST = 16  # rows and columns of what counts as a matrix; a convolution over 4 tokens is none


@dataclass(frozen=True)
class Method:
    """A way to fine-tune: whether all weights are trained, and the bits of frozen matrices of the layers."""

    name: str
    full: bool = False
    matrix_bits: float = 8 * BF16


METHODS = (Method("full", full=True), Method("LoRA"), Method("QLoRA", matrix_bits=NF4_BITS))


@dataclass(frozen=True)
class Tuning:
    """The bytes of one method for sequences of `tokens`; `rank` is None where all weights are trained."""

    method: str
    rank: int | None
    tokens: int
    trained: int
    frozen: int
    weights: int
    gradients: int
    optimizer: int
    activations: int

    @property
    def total(self) -> int:
        return self.frozen + self.weights + self.gradients + self.optimizer + self.activations


@dataclass(frozen=True)
class TuningEstimate:
    """Method by method, sequences from short to long; `reason` says why there is nothing."""

    needs: tuple[Tuning, ...]
    reason: str | None = None

    def as_dict(self) -> dict[str, Any]:
        """For JSON: bytes, and what they assume."""
        return {"assumes": ASSUMES, "needs": [{**asdict(need), "total": need.total} for need in self.needs]} | {
            "reason": self.reason
        }


ASSUMES = {
    "optimizer": "AdamW", "precision": "BF16 with F32 copies", "sequences": 1, "gradient_checkpointing": True,
    "flash_attention": True, "adapted": "every matrix of the layers", "qlora": "NF4, double quantization",
}  # fmt: skip


def estimate(
    metadata: Mapping[str, Any], tensors: Tensors, rank: int = RANK, tokens: Iterable[int] = TOKENS
) -> TuningEstimate:
    """Estimate what fine-tuning a model takes.

    Args:
        metadata, tensors: as for `running_memory.estimate`.
        rank: of LoRA's factors.
        tokens: lengths of sequences; those beyond what the model takes count as its own.
    """
    model = Quantities.read(metadata, tensors)
    if isinstance(model, str):
        return TuningEstimate((), model)
    lengths = sorted({min(count, model.n_ctx or count) for count in tokens})
    shapes = {name: shape for name, (shape, _) in tensors.items()}
    return TuningEstimate(tuple(_need(method, model, shapes, rank, n) for method in METHODS for n in lengths))


def _need(method: Method, model: Quantities, shapes: Mapping[str, tuple[int, ...]], rank: int, tokens: int) -> Tuning:
    total = sum(map(math.prod, shapes.values()))
    matrices = list(_matrices(shapes))
    inside = sum(map(math.prod, matrices))
    trained, frozen = total, 0
    if not method.full:
        trained = sum(rank * math.prod(shape[:-2]) * (shape[-2] + shape[-1]) for shape in matrices)
        frozen = math.ceil(inside * method.matrix_bits / 8) + BF16 * (total - inside)
    return Tuning(
        method.name,
        None if method.full else rank,
        tokens,
        trained,
        frozen,
        BF16 * trained,
        BF16 * trained,
        ADAMW * trained,
        _activations(model, tokens),
    )


def _matrices(shapes: Mapping[str, tuple[int, ...]]) -> Iterator[tuple[int, ...]]:
    """Shapes of the matrices of the layers, those of experts stacked."""
    for name, shape in shapes.items():
        if name.startswith("blk.") and len(shape) > 1 and min(shape[-2:]) >= SMALLEST:
            yield shape


def _activations(model: Quantities, tokens: int) -> int:
    inputs = BF16 * model.n_embd * model.facts.n_layer
    n_ff = max(model.n_ff, model.n_expert_used * model.n_ff_expert)
    layer = 2 * BF16 * (4 * model.n_embd + 2 * model.query + max(model.keys, default=0) + 3 * n_ff)
    logits = 2 * F32 * model.n_vocab
    return tokens * (inputs + max(layer, logits))
