"""Slabs: their identities, their size, and that all rows are looked at once."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
import weakref
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from converter.errors import Interrupted, LossyError
from converter.storage.slabs import Job, Progress, Slab, gathering, row_ranges, run, slab_rows, slabs_of
from converter.tensors import kernels
from converter.tensors.dtypes import DTYPES
from converter.tensors.tensor import LazyTensor, TensorInfo

MIB = 1 << 20


def tensor(name: str, *shape: int, **more: Any) -> LazyTensor:
    """F32; nobody reads it."""
    return LazyTensor(TensorInfo(name, shape, DTYPES["F32"]), lambda start, stop: pytest.fail("read"), "test", **more)


def job(tensor: LazyTensor) -> Job:
    return Job((tensor,), lambda start, stop: None, tensor.row_work)


# ------------------------------------------------------------------------------------- size


def test_a_slab_is_what_suits_the_kernels() -> None:
    assert kernels.SLAB_NBYTES == 2 * MIB
    assert slab_rows((tensor("w", 10_000, 1024),), 4096) == 512  # of 4 KiB
    assert slab_rows((tensor("w", 10_000, 1024),), 4097) == 511
    assert slab_rows((tensor("w", 100, 1024),), 4096) == 100
    assert slab_rows((tensor("w", 3, MIB),), 4 * MIB) == 1


def test_who_computes_the_rows_may_want_another_slab() -> None:
    """A tensor states it, and what is read through that tensor keeps it; of several the largest counts."""
    plain, large = tensor("w", 100_000, 1024), tensor("w", 100_000, 1024, slab_nbytes=64 * MIB)
    assert slab_rows((large,), 4096) == 64 * MIB // 4096
    assert slab_rows((large.derived(),), 4096) == 64 * MIB // 4096
    assert slab_rows((plain, large, replace(plain, slab_nbytes=MIB)), 4096) == 64 * MIB // 4096
    assert slab_rows((replace(plain, slab_nbytes=MIB),), 4096) == 256


def test_what_is_computed_whole_is_one_slab() -> None:
    whole = tensor("w", 10_000, 1024, grain=10_000)
    assert slab_rows((whole,), 4096) == 10_000
    assert list(row_ranges((tensor("v", 10_000, 1024), whole), 8192)) == [(0, 10_000)]


def test_a_slab_is_a_multiple_of_the_rows_that_are_computed_together() -> None:
    """As many as fit, one at least; of several tensors, of all of them."""
    assert slab_rows((tensor("w", 10_000, 1024, grain=100),), 4096) == 500  # 512 fit
    assert slab_rows((tensor("w", 10_000, 1024, grain=600),), 4096) == 600
    assert slab_rows((tensor("v", 10_000, 1024, grain=40), tensor("w", 10_000, 1024, grain=100)), 4096) == 400
    assert slab_rows((tensor("w", 550, 1024, grain=600),), 4096) == 550
    ends = [stop for _, stop in row_ranges((tensor("w", 1100, 1024, grain=300),), 4096)]
    assert ends == [300, 600, 900, 1100]


def test_rows_without_memory_and_tensors_without_rows() -> None:
    assert slab_rows((tensor("w", 5, 0),), 0) == 5
    assert slab_rows((tensor("w", 0, 5),), 20) == 1
    assert list(row_ranges((tensor("w", 0, 5),), 20)) == []
    assert slab_rows((tensor("w", 4 * MIB, 1),), 1) == 2 * MIB  # what a byte needs is not rounded up
    assert slab_rows((tensor("w", 4 * MIB, 1),), 0) == 2 * MIB


# ------------------------------------------------------------------------------------- identity

SHAPES = ((3000, 1024), (0, 8), (5, 0), (), (7, 600_000))


def expected() -> list[Slab]:
    return [
        *(Slab(0, start, min(3000, start + 512)) for start in range(0, 3000, 512)),
        Slab(3, 0, 1),
        *(Slab(4, row, row + 1) for row in range(7)),
    ]


def test_slabs_have_an_identity() -> None:
    """Equal for equal jobs, in order, and none where there are no bytes."""
    first, second = ([job(tensor(str(i), *shape)) for i, shape in enumerate(SHAPES)] for _ in range(2))
    assert list(slabs_of(first)) == list(slabs_of(second)) == sorted(expected()) == expected()
    assert len(set(slabs_of(first))) == len(expected())


def test_an_identity_survives_json() -> None:
    text = json.dumps(expected())
    assert [Slab(*each) for each in json.loads(text)] == expected()


def test_slabs_are_the_same_in_another_process() -> None:
    code = f"""
import json
from converter.storage.slabs import Job, slabs_of
from converter.tensors.dtypes import DTYPES
from converter.tensors.tensor import LazyTensor, TensorInfo
infos = [TensorInfo("other", shape, DTYPES["F32"]) for shape in {SHAPES}]
jobs = [Job((LazyTensor(info, print, "there"),), print, info.row_nbytes) for info in infos]
print(json.dumps(list(slabs_of(jobs))))
"""
    made = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    assert [Slab(*each) for each in json.loads(made)] == expected()


# ------------------------------------------------------------------------------------- running them


class Rows:
    """Counts how often each row was looked at."""

    def __init__(self, tensor: LazyTensor) -> None:
        self.seen = np.zeros(tensor.info.n_rows, int)
        self.job = Job((tensor,), self._look, tensor.row_work)
        self._lock = threading.Lock()

    def _look(self, start: int, stop: int) -> None:
        with self._lock:
            self.seen[start:stop] += 1


@pytest.mark.parametrize("threads", [1, 5])
def test_every_row_is_looked_at_once(threads: int) -> None:
    rows = [Rows(tensor(str(i), *shape)) for i, shape in enumerate(SHAPES)]
    seen: list[Progress] = []
    run([each.job for each in rows], threads, seen.append)
    for each, shape in zip(rows, SHAPES, strict=True):
        assert (each.seen == (0 if shape == (5, 0) else 1)).all()
    assert len(seen) == len(expected())
    assert seen[-1].done == seen[-1].total == 4 * (3000 * 1024 + 1 + 7 * 600_000)


def test_some_slabs_only() -> None:
    rows = Rows(tensor("w", 3000, 1024))
    seen: list[Progress] = []
    run([rows.job], 1, seen.append, slabs=[Slab(0, 512, 1024), Slab(0, 0, 512)])
    assert rows.seen[:1024].all() and not rows.seen[1024:].any()
    assert [(step.done, step.total) for step in seen] == [(512 * 4096, 1024 * 4096), (1024 * 4096, 1024 * 4096)]


def test_stop_and_cancel() -> None:
    rows = Rows(tensor("w", 3000, 1024))
    with pytest.raises(LossyError, match="strict"):
        run([rows.job], 1, stop=lambda: LossyError("strict") if rows.seen[512] else None)
    assert rows.seen[:1024].all() and not rows.seen[1024:].any()
    with pytest.raises(Interrupted, match=r"^cancelled$"):
        run([rows.job], 1, lambda progress: progress.done < progress.total)


@pytest.mark.parametrize("threads", [1, 6])
def test_what_was_seen_is_gathered_in_the_order_of_the_rows(threads: int) -> None:
    """Once for each tensor, when all its slabs are there, whichever came last."""
    seen: dict[str, list[list[tuple[int, int]]]] = {"a": [], "b": [], "none": []}

    def look(start: int, stop: int) -> tuple[int, int]:
        time.sleep(0.002 if start == 0 else 0)
        return start, stop

    tensors = [tensor("a", 3000, 1024), tensor("none", 5, 0), tensor("b", 7, 600_000)]
    run([gathering((each,), look, seen[each.name].append, each.row_work) for each in tensors], threads)
    assert seen == {
        "a": [[(start, min(3000, start + 512)) for start in range(0, 3000, 512)]],
        "b": [[(row, row + 1) for row in range(7)]],
        "none": [],
    }


def test_what_was_gathered_is_given_back() -> None:
    """A job that is done keeps nothing of what was seen."""

    class Part:
        """Something large."""

    seen: list[weakref.ref[Part]] = []
    each = tensor("a", 3000, 1024)
    job = gathering((each,), lambda start, stop: Part(), lambda parts: seen.extend(map(weakref.ref, parts)), 4096)
    run([job], 1)
    assert len(seen) == 6 and [part() for part in seen] == [None] * 6


def test_bytes_of_a_job_are_those_of_all_its_tensors() -> None:
    """Of rows, too; so progress counts what is read for a comparison twice."""
    pair = tensor("a", 10, 4), tensor("b", 10, 6)
    job = Job(pair, lambda start, stop: None, 1)
    assert (job.row_nbytes, job.nbytes) == (40, 400)
    seen: list[Progress] = []
    run([job], 1, seen.append)
    assert seen == [Progress(400, 400, "a")]
