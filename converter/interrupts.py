"""Stretches of the main thread that must not stop half-way. Who handles signals, as the command line does, asks `held`.

This package sets no handler but the command line's: signals are the affair of the program around it.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

_depth = 0


@contextmanager
def holding() -> Iterator[None]:
    """In here, a signal that a handler of ours takes is dropped; in other threads none arrives."""
    global _depth
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    _depth += 1
    try:
        yield
    finally:
        _depth -= 1


def held() -> bool:
    """Whether the main thread is in such a stretch."""
    return _depth > 0
