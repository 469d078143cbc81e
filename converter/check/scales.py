"""What is wrong with a tensor's stored numbers: scales that are not finite, NaN, infinity, nothing but zeros.

Of a quantized tensor only the scales are looked at: codes are small integers, so a value is finite when the scales of
its block are. Offsets are those of the block structs of ggml (ggml-common.h).
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from converter.findings import Finding
from converter.storage.slabs import Job
from converter.tensors import kernels
from converter.tensors.dtypes import DType
from converter.tensors.tensor import LazyTensor, Rows

# How a scale is stored -> unsigned type of its bytes, and the bits that are all set where it is infinite or NaN.
# "F16 in quarters" is IQ1_M's: the upper four bits of four 16-bit words, lowest quarter first. E4M3 has no sign here.
KINDS: dict[str, tuple[str, int]] = {
    "F16": ("<u2", 0x7C00),
    "F32": ("<u4", 0x7F80_0000),
    "E8M0": ("u1", 0xFF),
    "E4M3": ("u1", 0x7F),
    "F16 in quarters": ("<u8", 0x7000_C000_0000_0000),
}


@dataclass(frozen=True)
class Scale:
    """One scale of a block: its name in ggml's struct, where it stands, and how it is stored (a row of KINDS)."""

    name: str
    offset: int
    kind: str = "F16"

    def broken(self, blocks: NDArray[np.uint8]) -> NDArray[np.intp]:
        """Indices of the blocks, of uint8 (n, type_size), where this scale is NaN or infinite."""
        code, mask = KINDS[self.kind]
        stored = np.ndarray(len(blocks), code, blocks.data, self.offset, (blocks.shape[1],))
        bits = stored & stored.dtype.type(mask)
        if not len(bits) or bits.max() != mask:  # the usual case, at the speed of memory
            return np.empty(0, np.intp)
        return np.flatnonzero(bits == mask)


_D, _D_M, _D_DMIN = (Scale("d", 0),), (Scale("d", 0), Scale("m", 2)), (Scale("d", 0), Scale("dmin", 2))

SCALES: dict[str, tuple[Scale, ...]] = {
    "Q4_0": _D, "Q4_1": _D_M, "Q5_0": _D, "Q5_1": _D_M, "Q8_0": _D, "Q8_1": (Scale("d", 0), Scale("s", 2)),
    "Q2_K": (Scale("d", 80), Scale("dmin", 82)), "Q3_K": (Scale("d", 108),), "Q4_K": _D_DMIN, "Q5_K": _D_DMIN,
    "Q6_K": (Scale("d", 208),), "Q8_K": (Scale("d", 0, "F32"),),
    "IQ4_NL": _D, "IQ4_XS": _D, "IQ3_XXS": _D, "IQ3_S": _D, "IQ2_XXS": _D, "IQ2_XS": _D, "IQ2_S": _D, "IQ1_S": _D,
    "IQ1_M": (Scale("scales", 48, "F16 in quarters"),), "TQ1_0": (Scale("d", 52),), "TQ2_0": (Scale("d", 64),),
    "MXFP4": (Scale("e", 0, "E8M0"),), "NVFP4": tuple(Scale(f"d[{i}]", i, "E4M3") for i in range(4)),
    "Q1_0": _D, "Q2_0": _D,
}  # fmt: skip


@dataclass
class _Broken:
    """Blocks (or elements) that are not finite: how many, the first, and what is wrong with it."""

    count: int
    first: int
    what: str
    nan: bool

    def add(self, other: _Broken) -> None:
        if other.first < self.first:
            self.first, self.what = other.first, other.what
        self.count, self.nan = self.count + other.count, self.nan or other.nan


class Values:
    """The stored numbers of tensors, looked at by any number of threads: `jobs` does it, `findings` says what it saw.

    `weights` says whether every tensor is a weight. Elsewhere (a constant of a graph) infinity is only a warning, and
    zeros are nothing.
    """

    def __init__(self, tensors: list[LazyTensor], weights: bool) -> None:
        self._tensors = [tensor for tensor in tensors if tensor.info.dtype.floating and tensor.info.n_elements]
        self._weights = weights
        self._lock = threading.Lock()
        self._broken: dict[str, _Broken] = {}
        self._filled: set[str] = set()  # tensors with a value that is not zero

    def jobs(self) -> list[Job]:
        return [self._job(tensor) for tensor in self._tensors]

    def _job(self, tensor: LazyTensor) -> Job:
        def work(start: int, stop: int) -> None:
            data = np.ascontiguousarray(tensor.rows(start, stop))
            found = list(_broken(data, tensor.info.dtype, start))
            filled = tensor.name in self._filled or _filled(data, tensor.info.dtype)
            with self._lock:
                if filled:
                    self._filled.add(tensor.name)
                for each in found:
                    self._broken.setdefault(tensor.name, _Broken(0, each.first, each.what, False)).add(each)

        dense = 0 if tensor.info.dtype.quantized else 4 * tensor.info.row
        return Job((tensor,), work, tensor.row_work + dense)

    def findings(self) -> Iterator[Finding]:
        """In the order of the tensors, when all jobs are done."""
        for tensor in self._tensors:
            broken = self._broken.get(tensor.name)
            if broken is not None:
                yield self._finding(tensor, broken)
            elif self._weights and tensor.name not in self._filled and not tensor.name.endswith(".bias"):
                yield Finding("zero", tensor.name, "every value is zero", failed=False, hint="was it never filled?")

    def _finding(self, tensor: LazyTensor, broken: _Broken) -> Finding:
        info = tensor.info
        per_row = info.row // info.dtype.block_size
        row, column = divmod(broken.first, per_row)
        if info.dtype.quantized:
            where = f"the scale {broken.what} of block {broken.first} (row {row}, block {column} in it) is not finite"
            total = f"{broken.count} such blocks of {info.n_rows * per_row}"
            return Finding("structure", tensor.name, f"{where}; {total}", hint="the file is damaged")
        where = f"element {broken.first} (row {row}, column {column}) is {broken.what}"
        total = f"{broken.count} of {info.n_elements} are not finite"
        return Finding("nonfinite", tensor.name, f"{where}; {total}", failed=self._weights or broken.nan)


def _broken(data: Rows, dtype: DType, start: int) -> Iterator[_Broken]:
    """What is not finite in rows from `start` on."""
    per_row = data.shape[1] // dtype.type_size
    if dtype.quantized:
        blocks = data.reshape(-1, dtype.type_size)
        found = [(int(at[0]), scale.name, at) for scale in SCALES[dtype.name] if len(at := scale.broken(blocks))]
        if found:
            first, name, _ = min(found, key=lambda each: each[0])
            count = len(np.unique(np.concatenate([at for *_, at in found])))
            yield _Broken(count, start * per_row + first, name, True)
    elif kernels.nonfinite(data, dtype):
        numbers = data.view(dtype.numpy or np.uint8).reshape(-1).astype(np.float64)
        at = np.flatnonzero(~np.isfinite(numbers))
        if len(at):  # an F64 beyond F32 is finite after all
            nan = bool(np.isnan(numbers).any())
            yield _Broken(len(at), start * per_row + int(at[0]), str(numbers[at[0]]), nan)


def _filled(data: Rows, dtype: DType) -> bool:
    """Whether a value is not zero; the first row settles it for most tensors."""
    return any(kernels.decode(rows, dtype).any() for rows in (data[:1], data))
