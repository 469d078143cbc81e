"""What each type does to each tensor: squared errors, measured on some of the rows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray

from converter.errors import Cancelled
from converter.planning.plan import Step
from converter.storage.slabs import Progress, ProgressCallback
from converter.tensors import kernels
from converter.tensors.dtypes import DType, dtype
from converter.tensors.encode import Importance, encode_rows
from converter.tensors.streams import values
from converter.workers import default_threads

Floats = NDArray[np.float32]

#: Numbers of a tensor that are looked at, at least so many rows, in so many places spread over it.
SAMPLE, LEAST, PLACES = 1 << 18, 64, 8

#: Tensor -> type -> the step that gives it that type.
Steps = Mapping[str, Mapping[str, Step]]
#: Tensor -> type -> squared error over squared values.
Errors = dict[str, dict[str, float]]


def errors_of(steps: Steps, threads: int | None = None, progress: ProgressCallback | None = None) -> Errors:
    """Squared error over squared values of each tensor in each type; columns count as its encoder weighs them.

    Raises:
        Cancelled: `progress` returned False.
        ConverterError: a source that cannot be read.
    """
    found: Errors = {}
    with ThreadPoolExecutor(threads or default_threads()) as pool:
        jobs = {name: pool.submit(_errors, own) for name, own in steps.items()}
        sizes = {name: next(iter(own.values())).read.info.nbytes for name, own in steps.items()}
        done, total = 0, sum(sizes.values())
        try:
            for name, job in jobs.items():
                found[name] = job.result()
                done += sizes[name]
                if progress is not None and progress(Progress(done, total, name)) is False:
                    raise Cancelled("cancelled")
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return found


def _errors(types: Mapping[str, Step]) -> dict[str, float]:
    first = next(iter(types.values()))
    tensor, between = first.read, first.intermediate.info.dtype
    importance = next((step.weights for step in types.values() if step.weights is not None), None)
    noise, energy = dict.fromkeys(types, 0.0), 0.0
    for start, stop in _places(tensor.info.n_rows, tensor.info.row):
        numbers = values(tensor, start, stop)
        if between is not tensor.info.dtype:
            numbers = stored_as(numbers, between)
        columns = _columns(importance, start, stop, per_matrix(first))
        energy += _sum(numbers, columns)
        for type_, step in types.items():
            noise[type_] += _sum(through(numbers, step, start) - numbers, columns)
    return {type_: each / energy if energy else 0.0 for type_, each in noise.items()}


def _places(n_rows: int, row: int) -> Iterator[tuple[int, int]]:
    """Ranges of rows, spread evenly."""
    wanted = min(n_rows, max(LEAST, SAMPLE // max(row, 1)))
    count = min(PLACES, wanted)
    for at in range(count):
        start = at * n_rows // count
        yield start, min(n_rows, start + wanted // count)


def _columns(importance: Importance | None, start: int, stop: int, rows: int) -> Floats | None:
    """The importance of each column, for each row."""
    if importance is None:
        return None
    return np.stack([importance[(at // rows) % len(importance)] for at in range(start, stop)])


def _sum(numbers: Floats, columns: Floats | None) -> float:
    squares = np.square(numbers, dtype=np.float64)
    return float(np.sum(squares if columns is None else squares * columns))


def per_matrix(step: Step) -> int:
    """Rows of each of the matrices that a tensor stacks."""
    return max(1, step.shape[-2]) if len(step.shape) > 1 else 1


def through(numbers: Floats, step: Step, start: int) -> Floats:
    """What comes back of rows from `start` on when a step has encoded them."""
    type_ = dtype(step.type)
    return kernels.decode(encode_rows(numbers, type_, step.weights, start, per_matrix(step), step.effort), type_)


def stored_as(numbers: Floats, type_: DType) -> Floats:
    """What comes back of numbers that a plain type holds."""
    return kernels.decode(kernels.encode(numbers, type_), type_)
