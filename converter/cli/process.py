"""What a process has once: its signals and its streams. Imports nothing that takes time."""

from __future__ import annotations

import os
import signal
import sys

INTERRUPTED = 130  # `errors.Interrupted.exit_code`, before anything is imported

#: The signals that have come; an import that one broke off may fail with any error.
seen: list[int] = []


class _Stop(KeyboardInterrupt):
    """A signal. Where it sees a plain KeyboardInterrupt, the interpreter may end itself by SIGINT in the end."""


def end_on_signals() -> None:
    """Before there is anything to clean up."""
    _on_signals(lambda *_: os._exit(INTERRUPTED))


def raise_on_signals() -> None:
    """Ctrl-C, SIGTERM and the closing of the terminal end a run with nothing left behind."""

    from converter.interrupts import held

    def stop(number: int, frame: object) -> None:
        if held():  # the renames of a set, the removal of what is left: the run is at its end either way
            return
        seen.append(number)
        raise _Stop

    _on_signals(stop)


def ignore_signals() -> None:
    """When all is done and said."""
    _on_signals(signal.SIG_IGN)


def _on_signals(handler: signal._HANDLER) -> None:
    for name in ("SIGINT", "SIGTERM", "SIGHUP"):
        number = getattr(signal, name, None)
        if number is not None and signal.getsignal(number) not in (signal.SIG_IGN, None):  # not under nohup
            signal.signal(number, handler)


def open_streams() -> None:
    """A stream that was closed becomes the null device: or else the next file that is opened gets its number."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode))
