"""All bytes of a file that lies elsewhere, compared with what its host says of them.

Nothing is fetched for it: what counts is what passes by, and what the cache has of it. Most sums count bytes in their
order alone, so a file that is read here and there is compared only where the cache has it in the end.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from converter.errors import CorruptFile
from converter.remote.digests import Digest, Sum
from converter.remote.kept import Fetch, Kept

_STEP = 8 << 20
#: Stores whose ETags look like sums and are none: they encrypt with keys of their own.
_doubted: set[str] = set()


class Whole:
    """What is compared of a file.

    Args:
        name: its address.
        size: bytes.
        digest: what its host says.
        ask: gives bytes of it from the host.
        kept: its place in the cache.
    """

    def __init__(self, name: str, size: int, digest: Digest, ask: Fetch, kept: Kept | None) -> None:
        self._name, self._size, self._digest, self._ask, self._kept = name, size, digest, ask, kept
        self._store = "/".join(name.split("/", 3)[:3])
        self._sum: Sum | None = None if kept is not None and kept.proved else digest.sum(size)
        self._wrong: str | None = None
        self._lock = threading.Lock()

    def add(
        self,
        start: int,
        data: NDArray[np.uint8],
        following: Callable[[int], tuple[int, NDArray[np.uint8]] | None] = lambda at: None,
    ) -> None:
        """Bytes that have come; `following` gives others that are here, with their beginning, by an offset in them.

        Raises:
            CorruptFile: they were the last ones, and all are not what the host says they are.
        """
        with self._lock:
            if self._sum is None or self._doubtful:
                return
            self._sum.add(start, data)
            while (at := self._sum.next) is not None and (more := following(at)) is not None:
                self._sum.add(*more)
            if self._sum.full:
                found, self._sum = self._sum.text, None
                self._settle(found)

    def check(self) -> None:
        """Raises CorruptFile where that was found out before."""
        if self._wrong is not None:
            raise CorruptFile(self._wrong)

    def prove(self) -> None:
        """Compare what the cache has, where that is all of the file and was not compared yet.

        Raises:
            CorruptFile: it is not what the host says it is; the cache has it no more.
        """
        self.check()
        if self._sum is None or self._doubtful or self._kept is None or not self._kept.complete():
            return
        kept, ask = self._kept, self._ask
        for start in range(0, self._size, _STEP):
            self.add(start, kept.filled(start, min(self._size, start + _STEP), ask))

    @property
    def _doubtful(self) -> bool:
        return not self._digest.sure and self._store in _doubted

    def _settle(self, found: str) -> None:
        digest, kept = self._digest, self._kept
        if found == digest.text:
            if kept is not None:
                kept.prove()
            return
        if not digest.sure and self._read_again() == found:
            _doubted.add(self._store)
            return
        if kept is not None:
            kept.forget()
        self._wrong = (
            f"{self._name}: its bytes are not those that its host says they are\n"
            f"{digest.kind} {found}, by the host {digest.text}; run again, or ask who keeps it"
        )
        self.check()

    def _read_again(self) -> str:
        """The sum of what the host gives now: one that it said wrongly stays the same."""
        again = self._digest.sum(self._size)
        for start in range(0, self._size, _STEP):
            again.add(start, self._ask(start, min(self._size, start + _STEP)))
        return again.text
