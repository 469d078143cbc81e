"""The model on paper of many machines (benchmarks/clusters.py): a fit comes out again, and what binds is told."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from types import ModuleType

import pytest
from support.paths import ROOT


@pytest.fixture
def paper(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import clusters

    yield clusters
    for name in ("clusters", "whole_job"):
        sys.modules.pop(name, None)


def test_a_fit_of_one_and_two(paper: ModuleType) -> None:
    """3 s alone and 16 s that divide: 19 and 11."""
    rate, serial = paper.fitted(19.0, 11.0, 1.6e9)
    assert (rate, serial) == (pytest.approx(1e8), pytest.approx(3.0))


def test_what_binds(paper: ModuleType) -> None:
    given = paper.Machines(cores=10, network=1e9, storage=4e9, start=5.0)
    job = paper.Job(parameters=8e11, read=6e11, written=2e11)
    told = {machines: paper.wall(job, machines, 1e8, 3.0, given) for machines in (1, 2, 4, 8, 100)}
    assert told[1] == (pytest.approx(8.0 + 800), "cores")  # 800 s of cores and of the network alike
    assert told[4] == (pytest.approx(8.0 + 200), "cores")
    assert told[8] == (pytest.approx(8.0 + 200), "storage") == told[100]
    slow = paper.Machines(cores=100, network=1e9, storage=4e9, start=5.0)
    assert paper.wall(job, 2, 1e8, 3.0, slow) == (pytest.approx(8.0 + 400), "network")
