"""What may go wrong between here and a host, and how often a request is made again.

Hosts say when (Retry-After); else each pause is twice as long as the one before, and a part of it is left to chance so
that many clients do not come back together.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterable
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from converter.errors import OutputError

Result = TypeVar("Result")

TRIES = 6
FIRST, LONGEST = 0.5, 30.0  # seconds of the first pause, and of the longest
PATIENCE = 60.0  # the longest pause that a host is granted
PROGRESS = 64 << 10  # an attempt that brought as many bytes is not counted


class Transient(Exception):
    """What may be otherwise a moment later. `after` are the seconds that the host asks for."""

    def __init__(self, says: str, after: float | None = None) -> None:
        super().__init__(says)
        self.after = after


def changed(name: str) -> OutputError:
    """What to say of an object that is another one than when it was first asked for."""
    return OutputError(
        f"{name}: was changed while it was read; what came of it may be neither the old nor the new file\n"
        "run again when nothing writes to it; nothing was written"
    )


class _Attempts:
    """Counts them, and waits between two."""

    def __init__(self, name: str, done: str = "read") -> None:
        self._name, self._done, self._failed = name, done, 0

    def failed(self, error: Transient) -> None:
        """Wait before the next one.

        Raises:
            OutputError: it was the last one.
        """
        self._failed += 1
        if self._failed >= TRIES:
            raise OutputError(
                f"{self._name}: could not be {self._done} in {TRIES} attempts: {error}\n"
                "try again later; nothing was written"
            ) from error
        pause = min(LONGEST, FIRST * (1 << self._failed - 1)) * random.uniform(0.5, 1)
        time.sleep(pause if error.after is None else min(max(error.after, 0), PATIENCE))

    def went_on(self) -> None:
        """What was tried brought something; the next failure is the first again."""
        self._failed = 0


def tried(name: str, ask: Callable[[], Result], done: str = "read") -> Result:
    """The answer to a question; asked again where that may help. `done` is what is to be done with the object.

    Raises:
        OutputError: it did not.
    """
    attempts = _Attempts(name, done)
    while True:
        try:
            return ask()
        except Transient as error:
            attempts.failed(error)


def filled(
    name: str, start: int, stop: int, stream: Callable[[int, int], Iterable[bytes | memoryview]]
) -> NDArray[np.uint8]:
    """Bytes [start, stop) of an object, of which `stream(start, stop)` gives pieces in order.

    A stream that breaks is taken up where it broke.

    Raises:
        OutputError: it broke too often.
    """
    result = np.empty(stop - start, np.uint8)
    whole, done, attempts = result.data, 0, _Attempts(name)
    while done < len(result):
        before = done
        try:
            for piece in stream(start + done, stop):
                size = len(piece)
                if done + size > len(result):
                    raise Transient("the answer was longer than what was asked for")
                whole[done : done + size] = piece
                done += size
            if done < len(result):
                raise Transient("the answer was shorter than what was asked for")
        except Transient as error:
            if done - before >= PROGRESS:
                attempts.went_on()
            attempts.failed(error)
    result.flags.writeable = False
    return result
