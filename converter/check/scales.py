"""What is wrong with a tensor's stored numbers: scales that are not finite, NaN, infinity, nothing but zeros.

Of a quantized tensor only the scales are looked at (`tensors.scales`).
"""

from __future__ import annotations

import threading
from collections.abc import Container, Iterator
from dataclasses import dataclass

import numpy as np

from converter.findings import Finding
from converter.storage.slabs import Job
from converter.tensors import kernels
from converter.tensors.dtypes import DType
from converter.tensors.scales import SCALES
from converter.tensors.tensor import LazyTensor, Rows


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
    zeros are nothing. `vital` are the names of tensors that nothing works without: zeros fail there, and where there is
    nothing else in all of `model`.
    """

    def __init__(self, model: str, tensors: list[LazyTensor], weights: bool, vital: Container[str] = ()) -> None:
        self._model, self._vital = model, vital
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
        empty = self._weights and not self._filled and not self._broken
        if empty and len(self._tensors) > 1:
            message = f"every value of all {len(self._tensors):,} tensors is zero"
            yield Finding("zero", self._model, message, hint="nothing was ever written into it; get it again")
            return
        for tensor in self._tensors:
            broken = self._broken.get(tensor.name)
            if broken is not None:
                yield self._finding(tensor, broken)
            elif self._weights and tensor.name not in self._filled and not tensor.name.endswith(".bias"):
                failed = tensor.name in self._vital
                yield Finding("zero", tensor.name, "every value is zero", failed, hint="was it never filled?")

    def _finding(self, tensor: LazyTensor, broken: _Broken) -> Finding:
        info = tensor.info
        per_row = info.row // info.dtype.block_of(info.row)
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
    blocks = dtype.blocks(data)
    per_row = len(blocks) // max(1, len(data))
    if dtype.quantized:
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
