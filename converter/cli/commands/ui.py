"""`convert ui [PATH]`: look at models, plan and run conversions on a local page."""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from converter.cli.arguments import file_path
from converter.cli.verbs import Outcome, Verb
from converter.text import printable

VERB = Verb(
    name="ui",
    group="look at what is there",
    arguments="[PATH]",
    help="models, plans, conversions and proofs on a local page",
    description="Serve a page on this machine that shows models, and plans and runs conversions.",
    examples=(
        ("convert ui llama-folder/", "look at a model in the browser, and convert it"),
        ("convert ui models/ --port 8765 --no-browser", "on a server, reached by ssh -L 8765:127.0.0.1:8765"),
    ),
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What is shown, and where."""
    add = parser.add_argument
    add(
        "source",
        metavar="PATH",
        nargs="?",
        type=file_path,
        default=Path("."),
        help="a model, or a folder of models (.)",
    )
    add("--out", metavar="DIR", type=file_path, default=Path("."), help="folder that outputs go to (.)")
    add("--port", metavar="N", type=port, default=0, help="port on 127.0.0.1 (default: any that is free)")
    add("--no-browser", action="store_true", help="only say the address (the default without a terminal)")
    add("--idle", metavar="SECONDS", type=seconds, help="end when nobody has asked for anything so long, no job runs")


def port(text: str) -> int:
    """A number of a port."""
    if not text.isdecimal() or not 0 <= int(text) < 1 << 16:
        raise argparse.ArgumentTypeError(f"{text!r} is not a port, 1 to 65535")
    return int(text)


def seconds(text: str) -> float:
    """Seconds, parts of one too."""
    try:
        found = float(text)
    except ValueError:
        found = -1.0
    if not 0 < found < 1e9:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds")
    return found


def run(args: argparse.Namespace) -> Outcome:
    """Serve until Ctrl-C, or until nobody asks any more."""
    from converter.ui.roots import Roots
    from converter.ui.routes import State
    from converter.ui.server import serving

    state = State(Roots.of(args.source, args.out))
    with serving(state, args.port) as server:
        try:
            _announce(args, server.address, server.server_port)
            while args.idle is None or server.idle < args.idle:
                time.sleep(min(0.2, args.idle or 0.2))
        except KeyboardInterrupt:  # the usual end
            pass
    jobs = [{"verb": job.verb, "state": job.state} for job in state.jobs.all()]
    found = {"read": str(state.roots.read), "write": str(state.roots.write), "jobs": jobs}
    return Outcome(lambda: found, lambda: _farewell(jobs))


def _farewell(jobs: Sequence[Mapping[str, str]]) -> None:
    """What the end broke off."""
    for job in jobs:
        if job["state"] == "cancelled":
            print(f"{job['verb']}: cancelled; nothing was written", file=sys.stderr)


def _announce(args: argparse.Namespace, address: str, number: int) -> None:
    print(printable(f"{address}  (Ctrl-C ends)"), file=sys.stderr, flush=True)
    if "SSH_CONNECTION" in os.environ and not args.quiet:
        print(f"from your machine: ssh -L {number}:127.0.0.1:{number} ..., then the same address", file=sys.stderr)
    if not args.no_browser and sys.stderr.isatty() and _has_screen():
        import webbrowser

        webbrowser.open(address)


def _has_screen() -> bool:
    """Whether a browser would open a window; one in the terminal would take it from us."""
    if "SSH_CONNECTION" in os.environ:
        return False
    return sys.platform in ("win32", "darwin") or bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))
