"""How much memory a model needs to run, by weight type and context length.

Three parts, as llama.cpp allocates them for one sequence, an F16 cache, flash attention and prompt batches of
UBATCH tokens; all in bytes:

- weights: the tensors, in the types that a recipe gives them (`quant.recipes`).
- cache: per attention layer, cells x key/value heads x (key length + value length) x 2 (`llama-kv-cache.cpp`).
  Cells are the context, or for sliding-window layers the window and a batch; both are padded to CELL_PAD. Latent
  attention (MLA) keeps the keys only; recurrent layers keep one F32 state whatever the context
  (`llama-memory-recurrent.cpp`).
- compute: the largest moment of one batch, in F32 rows of UBATCH tokens. The coefficients of `_compute` were fitted
  to what llama.cpp's allocator reports for decoders of many shapes, and are within 10 % of it for those whose
  feed-forward or vocabulary dominates, and at most a quarter too high where attention does.

Not counted: the program itself, a projector (mmproj), a draft model, and what a GPU driver takes.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from converter.errors import QuantizationError
from converter.inspection.quantities import Quantities, Tensors
from converter.quant.recipes import TensorSpec, assign, recipe
from converter.tensors.dtypes import DTYPES

TYPES = ("F16", "Q8_0", "Q6_K", "Q5_K_M", "Q4_K_M", "Q4_K_S", "Q4_0", "IQ4_XS", "Q3_K_M", "IQ3_S", "Q2_K")
CONTEXTS = (2048, 8192, 32768)
UBATCH = 512  # tokens per batch of a prompt: llama.cpp's default
CELL_PAD = 256  # caches grow in steps of this many cells
CACHE_BYTES = 2  # F16
STORED = "as stored"


@dataclass(frozen=True)
class Need:
    """The bytes for one weight type at one context length."""

    type: str
    context: int
    bits_per_weight: float
    weights: int
    cache: int
    compute: int

    @property
    def total(self) -> int:
        return self.weights + self.cache + self.compute


@dataclass(frozen=True)
class Estimate:
    """All combinations, type by type in the order of TYPES after the types the file has now.

    `reason` says why there are none: the file is no language model, or its header lacks what is needed.
    """

    needs: tuple[Need, ...]
    reason: str | None = None

    def as_dict(self) -> dict[str, Any]:
        """For JSON: bytes, and what they assume."""
        return {
            "assumes": {"cache_type": "F16", "sequences": 1, "batch": UBATCH, "flash_attention": True},
            "needs": [{**asdict(need), "total": need.total} for need in self.needs],
            "reason": self.reason,
        }


def estimate(metadata: Mapping[str, Any], tensors: Tensors, contexts: Iterable[int] | None = None) -> Estimate:
    """Estimate what running a model takes.

    Args:
        metadata: GGUF keys ("llama.block_count"); values are `metadata.Value`, `metadata.Array` or plain Python.
        tensors: GGUF tensor name -> (row-major shape, type name).
        contexts: context lengths in tokens. By default CONTEXTS as far as the model goes, and its own maximum.

    Never raises for odd metadata: the estimate then has a `reason` in place of numbers.
    """
    model = Quantities.read(metadata, tensors)
    if isinstance(model, str):
        return Estimate((), model)
    if contexts is None:
        limit = model.n_ctx or max(CONTEXTS)
        contexts = {n for n in (*CONTEXTS, limit) if n <= limit}
    sizes = dict(_weights(model, tensors))
    count = sum(math.prod(shape) for shape, _ in tensors.values())
    return Estimate(
        tuple(
            Need(kind, n, round(8 * weights / max(count, 1), 3), weights, _cache(model, n), _compute(model, n))
            for kind, weights in sizes.items()
            for n in sorted(set(contexts))
        )
    )


def _pad(cells: int) -> int:
    return -(-cells // CELL_PAD) * CELL_PAD


def _cells(model: Quantities, context: int, sliding: bool) -> int:
    full = _pad(context)
    return min(full, _pad(model.window + UBATCH)) if sliding else full


def _cache(model: Quantities, context: int) -> int:
    """Bytes of keys, values and recurrent states."""
    layers = zip(model.keys, model.sliding, strict=True)
    return CACHE_BYTES * sum(keys * _cells(model, context, sliding) for keys, sliding in layers) + 4 * model.state


def _compute(model: Quantities, context: int) -> int:
    """Bytes of the largest moment of a batch: the logits, a feed-forward layer, the experts or attention.

    Numbers are rows of the graph alive at once, of n_vocab, n_embd and n_ff elements per token.
    """
    tokens = min(UBATCH, _pad(context))
    masks = CACHE_BYTES * tokens * sum(_cells(model, context, sliding) for sliding in set(model.sliding))
    used, embd = model.n_expert_used, model.n_embd
    logits = model.n_vocab + 2 * embd
    layer = max(
        3 * model.n_ff + 4 * embd,
        3 * used * model.n_ff_expert + 4 * embd,
        used * model.n_ff_expert + (2 * used + 3) * embd,
        2 * model.query + max(model.keys, default=0) + 3 * embd,
    )
    return max(4 * tokens * logits, 4 * tokens * layer + masks)


# -- weights ------------------------------------------------------------------------------------------------------


def _weights(model: Quantities, tensors: Tensors) -> Iterator[tuple[str, int]]:
    """Bytes of all tensors: as they are, then as each type of TYPES would store them.

    A tensor that is quantized now counts as F16 where a recipe leaves it alone. A type that does not fit the model's
    rows is left out.
    """
    known = {
        name: (shape, kind)
        for name, (shape, kind) in tensors.items()
        if kind in DTYPES and DTYPES[kind].fits(shape[-1] if shape else 1)
    }
    yield STORED, sum(DTYPES[kind].nbytes(shape) for shape, kind in known.values())
    specs = [
        TensorSpec(name, shape, "F16" if DTYPES[kind].quantized else kind) for name, (shape, kind) in known.items()
    ]
    for name in TYPES:
        try:
            choices = assign(recipe(name), specs, model.facts)
        except QuantizationError:
            continue
        yield name, sum(DTYPES[choices[spec.name].type].nbytes(spec.shape) for spec in specs)
