"""The program: `convert`, and `python -m converter`."""

import sys

try:
    from converter.cli import process
except KeyboardInterrupt:  # as early as that
    sys.exit(130)


def main() -> int:
    """Run the command line of this process; returns the exit code."""
    try:
        process.end_on_signals()
        process.open_streams()
        from converter.cli.main import main as run  # takes a while

        process.raise_on_signals()
        code = run()
        process.ignore_signals()
        return code
    except KeyboardInterrupt:  # before that, or while another one was told
        return process.INTERRUPTED


if __name__ == "__main__":
    sys.exit(main())
