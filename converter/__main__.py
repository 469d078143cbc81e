"""The program: `convert`, and `python -m converter`. What a process has once, signals and streams, is settled here."""

import os
import signal
import sys

INTERRUPTED = 130


def main() -> int:
    """Run the command line of this process; returns the exit code."""
    try:
        _on_signals(lambda *_: os._exit(INTERRUPTED))  # nothing has begun, and an import may not be broken off half-way
        _open_streams()
        from converter.cli.main import main as run  # takes a while

        _on_signals(_interrupt)
        code = run()
        _on_signals(signal.SIG_IGN)  # all is done and said
        return code
    except KeyboardInterrupt:  # while the first one was told
        return INTERRUPTED


def _interrupt(number: int, frame: object) -> None:
    raise KeyboardInterrupt


def _on_signals(handler: "signal._HANDLER") -> None:
    """For Ctrl-C, SIGTERM and the closing of the terminal, but for what is ignored (under nohup)."""
    for name in ("SIGINT", "SIGTERM", "SIGHUP"):
        number = getattr(signal, name, None)
        if number is not None and signal.getsignal(number) not in (signal.SIG_IGN, None):
            signal.signal(number, handler)


def _open_streams() -> None:
    """A stream that was closed becomes the null device: or else the next file that is opened gets its number."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode))


if __name__ == "__main__":
    sys.exit(main())
