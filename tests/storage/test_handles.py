"""Files that are written to, a few of them open at a time."""

from __future__ import annotations

import os
import threading
from contextlib import ExitStack
from pathlib import Path

import pytest

from converter.storage.handles import KEPT_OPEN, Handles


@pytest.fixture
def paths(tmp_path: Path) -> list[Path]:
    made = [tmp_path / str(number) for number in range(3 * KEPT_OPEN)]
    for path in made:
        path.write_bytes(b"0000")
    return made


def test_those_used_last_stay_open(paths: list[Path]) -> None:
    handles = Handles(paths)
    seen = []
    for number in [*range(len(paths)), len(paths) - 1]:
        with handles.opened(number) as file:
            seen.append(file)
    assert [file.closed for file in seen[:-1]] == [True] * (2 * KEPT_OPEN) + [False] * KEPT_OPEN
    assert seen[-1] is seen[-2]
    handles.close()
    assert all(file.closed for file in seen)


def test_whoever_has_one_keeps_it(paths: list[Path]) -> None:
    handles = Handles(paths)
    with ExitStack() as held:
        files = [held.enter_context(handles.opened(number)) for number in range(len(paths))]
        with handles.opened(0) as again:
            assert again is files[0]
        assert not any(file.closed for file in files)
    assert sum(not file.closed for file in files) == KEPT_OPEN
    handles.close()


@pytest.mark.skipif(not hasattr(os, "pwrite"), reason="the system has no pwrite")
def test_from_any_thread(paths: list[Path]) -> None:
    """Each writes its own byte of every file, and none finds a file closed."""
    handles = Handles(paths)
    wrong: list[BaseException] = []

    def work(digit: int) -> None:
        try:
            for number in [*range(len(paths))] * 5:
                with handles.opened(number) as file:
                    os.pwrite(file.fileno(), str(digit).encode(), digit)
        except BaseException as error:
            wrong.append(error)

    threads = [threading.Thread(target=work, args=[digit]) for digit in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    handles.close()
    assert [path.read_bytes() for path in paths] == [b"0123"] * len(paths) and not wrong


def test_none_is_made(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), Handles([tmp_path / "none"]).opened(0):
        pass
    assert not list(tmp_path.iterdir())
