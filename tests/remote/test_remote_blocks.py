"""Ranges of a file that lies elsewhere: what is fetched, ahead of whom, and what is kept."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from converter.errors import ConverterError, CorruptFile, OutputError
from converter.remote import attempts, blocks
from converter.remote.attempts import Transient
from converter.remote.blocks import AHEAD, BLOCK, KEPT, LARGE, RUN, SMALL, RemoteBytes, RemoteFile

MIB = 1 << 20


class Shelf:
    """A host that remembers what it gave; its bytes are those of their offsets."""

    def __init__(self, size: int) -> None:
        self.name, self.tag = "s3://bucket/file", None
        self.size: int | None = size
        self.given: list[tuple[int, int]] = []
        self.failures: list[Exception | int] = []
        self._lock = threading.Lock()

    def stream(self, start: int, stop: int) -> Iterator[bytes]:
        with self._lock:
            self.given.append((start, stop))
            failure = self.failures.pop(0) if self.failures else None
        if isinstance(failure, Exception):
            raise failure
        data = content(start, stop).tobytes()
        yield data if failure is None else data[:failure]

    @property
    def sent(self) -> int:
        return sum(stop - start for start, stop in self.given)


def content(start: int, stop: int) -> NDArray[np.uint8]:
    at = np.arange(start, stop, dtype=np.uint64)
    return (at * 2654435761 >> np.uint64(13)).astype(np.uint8)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(attempts, "FIRST", 0.001)
    monkeypatch.setattr(blocks, "_kept", blocks._Kept())
    yield


def opened(size: int, *edges: int) -> tuple[RemoteBytes, Shelf]:
    shelf = Shelf(size)
    file = RemoteFile(shelf, size).open(Path("file"))
    if edges:
        file.forward(edges)
    return file, shelf


def read(file: RemoteBytes, start: int, stop: int, step: int) -> None:
    for at in range(start, stop, step):
        end = min(stop, at + step)
        assert np.array_equal(file.view(at, end - at, "x"), content(at, end))


def settle() -> None:
    """Wait for what is fetched ahead."""
    for run in list(blocks._kept.runs):
        run.bytes()


def test_a_look_fetches_a_block() -> None:
    file, shelf = opened(100 * MIB)
    assert np.array_equal(file.view(50 * MIB + 5, 8, "x"), content(50 * MIB + 5, 50 * MIB + 13))
    assert shelf.given == [(50 * MIB, 50 * MIB + BLOCK)]
    file.view(50 * MIB + 100, 1000, "x")
    assert len(shelf.given) == 1, "it is asked for once"


@pytest.mark.parametrize("size", [1, BLOCK - 1, BLOCK, BLOCK + 1])
def test_ends(size: int) -> None:
    file, shelf = opened(size)
    read(file, 0, size, size)
    assert len(file.view(size, 0, "x")) == 0 and shelf.sent == size
    with pytest.raises(CorruptFile, match="the header at offset 1 needs"):
        file.view(1, size, "the header")


def test_a_header_of_unknown_length_costs_twice_at_most() -> None:
    file, shelf = opened(100 * MIB)
    read(file, 0, MIB, 4096)
    settle()
    assert shelf.sent <= 2 * MIB + RUN and len(shelf.given) < 20


def test_tensors_are_read_ahead_and_nothing_else() -> None:
    edges = (3 * MIB + 77, 40 * MIB + 1, 41 * MIB, 90 * MIB)
    file, shelf = opened(100 * MIB, *edges)
    read(file, edges[0], edges[1], 700_000)
    settle()
    assert shelf.sent <= edges[1] - edges[0] + 2 * BLOCK, "not a byte of the next one"
    assert len(shelf.given) < 40 * MIB // RUN * 2 + 4
    assert max(stop - start for start, stop in shelf.given) <= RUN
    before = shelf.sent
    file.view(50 * MIB, 1000, "x")
    settle()
    assert shelf.sent == before + BLOCK, "whoever looks in the middle reads nothing in a row"


def test_it_is_ahead_of_its_reader() -> None:
    file, shelf = opened(100 * MIB, 0, 100 * MIB)
    read(file, 0, 20 * MIB, MIB)
    settle()
    assert 20 * MIB + AHEAD // 2 <= max(stop for _, stop in shelf.given) <= 20 * MIB + AHEAD + RUN


def test_small_neighbours_are_fetched_together() -> None:
    edges = range(MIB, 3 * MIB, 1024)
    file, shelf = opened(4 * MIB, *edges)
    for at in edges:
        read(file, at, at + 1024, 1024)
    settle()
    assert len(shelf.given) <= 2 * MIB // SMALL * 2 + 4 and shelf.sent <= 4 * MIB


def test_a_whole_model_in_another_order_is_fetched_once() -> None:
    """Tensors of 3 to 9 MB, in the order of another format, by several threads."""
    sizes = np.random.default_rng(5).integers(3 * MIB, 9 * MIB, 20)
    edges = [0, *np.cumsum(sizes).tolist()]
    file, shelf = opened(edges[-1], *edges)
    spans = list(pairwise(edges))
    order = [*spans[1::2], *spans[::2]]
    failed: list[BaseException] = []

    def work(part: list[tuple[int, int]]) -> None:
        try:
            for start, stop in part:
                read(file, start, stop, 600_000)
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=work, args=(order[number::3],)) for number in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed
    settle()
    assert shelf.sent <= edges[-1] * 1.01


def test_memory_is_bounded() -> None:
    file, _ = opened(3 * KEPT, 0, 3 * KEPT)
    for at in range(0, 3 * KEPT, 16 * MIB):
        file.view(at, MIB, "x")
    settle()
    assert blocks._kept.nbytes <= KEPT + RUN
    assert blocks._kept.nbytes == sum(run.stop - run.start for run in blocks._kept.runs)
    read(file, 0, MIB, MIB)


def test_reading_ahead_waits_while_nobody_takes_it() -> None:
    files = [opened(64 * MIB, 0, 64 * MIB) for _ in range(20)]
    for file, _ in files:
        read(file, 0, 8 * MIB, 2 * MIB)
    settle()
    assert blocks._kept.waiting <= KEPT // 2 + RUN
    for file, _ in files:
        read(file, 8 * MIB, 16 * MIB, 2 * MIB)
    settle()
    assert sum(shelf.sent for _, shelf in files) <= 20 * (16 * MIB + AHEAD) + KEPT


def test_a_large_piece_is_not_kept() -> None:
    file, shelf = opened(2 * LARGE + 5)
    assert np.array_equal(file.view(3, 2 * LARGE, "x"), content(3, 2 * LARGE + 3))
    assert blocks._kept.nbytes == 0 and shelf.sent <= 2 * LARGE + 2 * BLOCK


def test_what_lies_scattered_is_not_read_ahead() -> None:
    file, shelf = opened(8 * MIB, 0, 4 * MIB)
    with file.scattered():
        read(file, 0, 64 * BLOCK, BLOCK)
    assert shelf.sent == 64 * BLOCK


def test_a_small_part_does_not_keep_all() -> None:
    file, _ = opened(8 * MIB, 0, 8 * MIB)
    assert file.view(0, 100, "x").base is None


def test_nothing_can_be_written_into_what_is_kept() -> None:
    file, _ = opened(8 * MIB, 0, 8 * MIB)
    assert not file.view(0, 4 * MIB, "x").flags.writeable


# ------------------------------------------------------------------------------------------------------- attempts


def test_what_fails_is_asked_for_again() -> None:
    file, shelf = opened(BLOCK)
    shelf.failures = [Transient("busy"), 100, 0, Transient("busy")]
    read(file, 0, BLOCK, BLOCK)
    assert shelf.given == [(0, BLOCK), (0, BLOCK), (100, BLOCK), (100, BLOCK), (100, BLOCK)], "from where it broke"


def test_not_for_ever() -> None:
    file, shelf = opened(BLOCK)
    shelf.failures = [Transient("the host answers 503")] * 100
    with pytest.raises(OutputError, match="s3://bucket/file: could not be read in 6 attempts: the host answers 503"):
        file.view(0, 10, "x")
    assert len(shelf.given) == attempts.TRIES
    shelf.failures = []
    read(file, 0, BLOCK, BLOCK)


def test_an_answer_that_is_too_long() -> None:
    file, shelf = opened(2 * BLOCK)
    shelf.stream = lambda start, stop: iter([bytes(stop - start + 1)])  # type: ignore[method-assign]
    with pytest.raises(OutputError, match="longer than what was asked for"):
        file.view(0, 10, "x")


def test_a_host_says_when(monkeypatch: pytest.MonkeyPatch) -> None:
    pauses: list[float] = []
    monkeypatch.setattr(attempts.time, "sleep", pauses.append)
    monkeypatch.setattr(attempts, "FIRST", 0.5)
    failures = [Transient("busy", 7.0), Transient("busy", 1e9), Transient("busy", -5), Transient("busy")]
    assert attempts.tried("x", lambda: _answer(failures)) == 5
    assert pauses[:3] == [7.0, attempts.PATIENCE, 0] and 2 <= pauses[3] <= 4


def _answer(failures: list[Transient]) -> int:
    if failures:
        raise failures.pop(0)
    return 5


def test_an_error_reaches_everyone_who_waits() -> None:
    file, shelf = opened(8 * MIB, 0, 8 * MIB)
    shelf.failures = [CorruptFile("gone")] * 100
    found: list[ConverterError] = []

    def look() -> None:
        try:
            file.view(0, 100, "x")
        except ConverterError as error:
            found.append(error)

    threads = [threading.Thread(target=look) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [type(error) for error in found] == [CorruptFile] * 4 and len({id(error) for error in found}) == 4
