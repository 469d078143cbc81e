"""The bytes of a file that lies elsewhere: fetched in blocks where somebody asks, ahead where a tensor is read forward.

A file is a grid of blocks. What is asked for and not there is fetched in runs of neighbouring blocks, by one request
each; a run is kept until others need its room. Reading ahead stops where a tensor ends, so that nothing is fetched that
nobody wants, and is refused while too much of it waits to be read.
"""

from __future__ import annotations

import queue
import threading
from bisect import bisect_left
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from converter.errors import ConverterError, InternalError
from converter.remote.attempts import filled
from converter.remote.digests import Digest
from converter.remote.kept import BLOCK, Kept
from converter.remote.whole import Whole
from converter.storage.files import check_inside

RUN = 4 << 20  # bytes of one request
AHEAD = 16 << 20  # bytes that are fetched before they are asked for, of one tensor
UNKNOWN = 1 << 20  # the same where nobody said where tensors end
SMALL = 1 << 20  # tensors of so many bytes together are fetched as one
SHARE = 32  # or as much as this part of what was read in a row
KEPT = 128 << 20  # bytes that are kept, of all files together
LARGE = 32 << 20  # what is asked for in one piece of more than this is not kept
CONNECTIONS = 8  # requests at a time that nobody waits for yet
_STREAKS = 32


class Stored(Protocol):
    """What a host has: `stream(start, stop)` gives bytes in order, and may break off.

    Attributes:
        name: its address, for people.
        size: bytes; None before the first answer.
        tag: what tells it from the same file after it was changed while it is read (ETag, or else the time); None
            where nothing does.
        identity: what tells it from every other that was or will be there, a strong ETag; None where nothing does.
    """

    name: str
    size: int | None
    tag: str | None

    @property
    def identity(self) -> str | None: ...

    def stream(self, start: int, stop: int) -> Iterator[bytes | memoryview]: ...


class _Run:
    """Bytes [start, stop) of a file, that are there or on their way."""

    def __init__(self, file: RemoteFile, start: int, stop: int) -> None:
        self.file, self.start, self.stop = file, start, stop
        self.data: NDArray[np.uint8] | None = None
        self.error: BaseException | None = None
        self.wanted = False  # somebody asked for a part of it
        self._begun = False
        self._here = threading.Event()

    def fetch(self) -> None:
        """Fetch it, unless somebody does already."""
        with _lock:
            if self._begun:
                return
            self._begun = True
        try:
            self.data = self.file.fetched(self.start, self.stop)
            self.file.arrived(self.start, self.data)
        except BaseException as error:
            self.error = error
            self.file.drop(self)  # whoever asks next, tries again
            if not isinstance(error, Exception):
                raise
        finally:
            self._here.set()

    def bytes(self) -> NDArray[np.uint8]:
        """What it holds, when it is there."""
        self.fetch()
        self._here.wait()
        if isinstance(self.error, ConverterError):  # of every thread that waits one of its own
            raise type(self.error)(str(self.error)) from self.error
        if self.error is not None or self.data is None:
            raise InternalError(f"{self.file.name}: {self.error!r}") from self.error
        return self.data


class _Kept:
    """Runs in the order in which they were used last; those of long ago make room."""

    def __init__(self) -> None:
        self.runs: OrderedDict[_Run, None] = OrderedDict()
        self.nbytes = self.waiting = 0  # of all, and of those that nobody asked for yet

    def add(self, run: _Run) -> None:
        self.runs[run] = None
        self.nbytes += run.stop - run.start
        self.waiting += run.stop - run.start
        while self.nbytes > KEPT and len(self.runs) > 1:
            next(iter(self.runs)).file.drop(next(iter(self.runs)))

    def use(self, run: _Run) -> None:
        if run in self.runs:
            self.runs.move_to_end(run)
            if not run.wanted:
                self.waiting -= run.stop - run.start
        run.wanted = True

    def remove(self, run: _Run) -> None:
        if run in self.runs:
            del self.runs[run]
            self.nbytes -= run.stop - run.start
            self.waiting -= 0 if run.wanted else run.stop - run.start


_lock = threading.RLock()
_kept = _Kept()


class _Helpers:
    """Threads that fetch what nobody waits for yet; they end with the process."""

    def __init__(self) -> None:
        self._tasks: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._started = 0

    def do(self, task: Callable[[], None]) -> None:
        self._tasks.put(task)
        with _lock:
            if self._started < CONNECTIONS:
                self._started += 1
                threading.Thread(target=self._work, name="remote", daemon=True).start()

    def _work(self) -> None:
        while True:
            self._tasks.get()()


_helpers = _Helpers()


class RemoteFile:
    """A file that lies elsewhere, and what of it is kept here.

    Attributes:
        name: its address, for people.
        size: bytes.
    """

    def __init__(self, stored: Stored, size: int, kept: Kept | None = None, digest: Digest | None = None) -> None:
        self.name, self.size, self._stored, self._cached = stored.name, size, stored, kept
        self._compared = None if digest is None else Whole(self.name, size, digest, self._asked, kept)
        self._at: dict[int, _Run] = {}  # by the number of a block
        self._edges: list[int] = []
        self._streaks: OrderedDict[int, int] = OrderedDict()  # where a view ended -> bytes in a row up to there
        self._scattered = 0

    def fetched(self, start: int, stop: int) -> NDArray[np.uint8]:
        """Bytes [start, stop) from the host, or from the cache as far as they are there."""
        if self._cached is None:
            return self._asked(start, stop)
        return self._cached.filled(start, stop, self._asked)

    def _asked(self, start: int, stop: int) -> NDArray[np.uint8]:
        return filled(self.name, start, stop, self._stored.stream)

    def arrived(self, start: int, data: NDArray[np.uint8]) -> None:
        """Bytes are here; the last ones show whether all are what the host says they are.

        Raises:
            CorruptFile: they are not.
        """
        if self._compared is not None:
            self._compared.add(start, data, self._beside)

    def _beside(self, at: int) -> tuple[int, NDArray[np.uint8]] | None:
        """The run that holds a byte, if it is here."""
        with _lock:
            run = self._at.get(at // BLOCK)
            return None if run is None or run.data is None else (run.start, run.data)

    def prove(self) -> None:
        """Compare what was read of it with what its host says of all of it, as far as that can be.

        Raises:
            CorruptFile: it is not that.
        """
        if self._compared is not None:
            self._compared.prove()

    def drop(self, run: _Run) -> None:
        """Forget a run."""
        with _lock:
            for number in range(run.start // BLOCK, -(-run.stop // BLOCK)):
                if self._at.get(number) is run:
                    del self._at[number]
            _kept.remove(run)

    def forget(self) -> None:
        """Keep nothing of it."""
        with _lock:
            for run in set(self._at.values()):
                self.drop(run)

    def forward(self, edges: Iterable[int]) -> None:
        """Between two edges lies a tensor; the last one ends with the file. Small neighbours are as one."""
        with _lock:
            given = sorted({*self._edges, *edges, self.size})
            self._edges = given[:1]
            for edge, next_one in pairwise(given):
                if next_one - self._edges[-1] > SMALL and edge != self._edges[-1]:
                    self._edges.append(edge)

    @contextmanager
    def scattered(self) -> Iterator[None]:
        """While it lasts, nothing is read ahead."""
        self._scattered += 1
        try:
            yield
        finally:
            self._scattered -= 1

    def view(self, start: int, stop: int) -> NDArray[np.uint8]:
        """Bytes [start, stop), which are in the file.

        Raises:
            ConverterError: the host does not give them, or they are not what it says they are.
        """
        if start == stop:
            return np.empty(0, np.uint8)
        if self._compared is not None:
            self._compared.check()
        if stop - start > LARGE:
            return self._whole(start, stop)
        with _lock:
            limit, end = self._limit(start, stop)
            own, ahead = self._runs(start, stop, limit, limit == end)
        for run in [*own[1:], *ahead]:
            _helpers.do(run.fetch)
        parts = [run.bytes()[max(start - run.start, 0) : stop - run.start] for run in own]
        found = parts[0] if len(parts) == 1 else np.concatenate(parts)
        # A small part would keep all of its run in memory.
        return found if len(found) * 4 > own[0].stop - own[0].start else found.copy()

    def _whole(self, start: int, stop: int) -> NDArray[np.uint8]:
        """More than is kept, fetched by several connections into one array."""
        result = np.empty(stop - start, np.uint8)
        first, last = start // BLOCK * BLOCK, min(self.size, -(-stop // BLOCK) * BLOCK)
        runs = [_Run(self, at, min(last, at + RUN)) for at in range(first, last, RUN)]
        for run in runs[1:CONNECTIONS]:
            _helpers.do(run.fetch)
        for number, run in enumerate(runs):
            if number and number + CONNECTIONS - 1 < len(runs):
                _helpers.do(runs[number + CONNECTIONS - 1].fetch)
            whole = run.bytes()
            self.arrived(run.start, whole)  # in their order now
            data = whole[max(start - run.start, 0) : stop - run.start]
            at = max(run.start - start, 0)
            result[at : at + len(data)] = data
            run.data = None
        return result

    def _limit(self, start: int, stop: int) -> tuple[int, int]:
        """Up to where bytes are fetched for somebody who reads [start, stop), and where the tensor ends."""
        before = next((end for end in reversed(self._streaks) if 0 <= end - start <= BLOCK), start)
        earlier = self._streaks.pop(before, 0)
        streak = earlier + stop - start
        self._streaks[stop] = streak
        while len(self._streaks) > _STREAKS:
            self._streaks.popitem(last=False)
        if self._scattered:
            return stop, self.size
        edge = bisect_left(self._edges, stop)
        begin = self._edges[edge - 1] if edge else 0
        end = self._edges[edge] if edge < len(self._edges) else self.size
        if self._edges and end - begin <= SMALL:
            return end, end
        if not earlier and begin != start:
            return stop, end
        ahead = min(AHEAD, 2 * streak if self._edges else max(min(earlier, UNKNOWN), streak // SHARE))
        return min(end, stop + ahead), end

    def _runs(self, start: int, stop: int, limit: int, ends: bool) -> tuple[list[_Run], list[_Run]]:
        """The runs that hold [start, stop), in order, and new ones up to `limit`, where all `ends` or not."""
        own, ahead = list[_Run](), list[_Run]()
        last = -(-limit // BLOCK)
        number, needed = start // BLOCK, -(-stop // BLOCK)
        while number < last:
            run = self._at.get(number)
            if run is None:
                room = next((each for each in range(number, last) if each in self._at), last)
                room = min(room, number + RUN // BLOCK)
                full = (room - number) * BLOCK == RUN or room < last or ends  # not many small ones
                if number >= needed and (not full or _kept.waiting >= KEPT // 2):
                    break
                run = _Run(self, number * BLOCK, min(room * BLOCK, self.size))
                self._at.update(dict.fromkeys(range(number, room), run))
                _kept.add(run)
                if number >= needed:
                    ahead.append(run)
            if number < needed:
                own.append(run)
                _kept.use(run)
            number = -(-run.stop // BLOCK)
        return own, ahead

    def open(self, path: Path) -> RemoteBytes:
        """Its bytes for a reader that knows it by `path`."""
        return RemoteBytes(path, self)


class RemoteBytes:
    """`Bytes` of a file that lies elsewhere."""

    def __init__(self, path: Path, file: RemoteFile) -> None:
        self.path, self.size, self._file = path, file.size, file

    def view(self, offset: int, nbytes: int, what: str) -> NDArray[np.uint8]:
        check_inside(self, offset, nbytes, what)
        return self._file.view(offset, offset + nbytes)

    def scattered(self) -> AbstractContextManager[None]:
        return self._file.scattered()

    def forward(self, edges: Iterable[int]) -> None:
        self._file.forward(edges)

    def close(self) -> None:
        """Nothing: what is kept is let go of with the folder."""
