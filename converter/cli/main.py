"""The entry of the command line: which verb, what it prints, and what an error ends with."""

from __future__ import annotations

import gc
import os
import sys
import traceback
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, NamedTuple

from converter.address import placed, without_secrets
from converter.cli import meant, process, verbs
from converter.cli.colour import HINT, say
from converter.cli.console import delivering, say_anything
from converter.errors import ConverterError, InternalError, Interrupted, OutOfMemory, OutputError, UsageError
from converter.text import printable

if TYPE_CHECKING:
    import argparse


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    argv = list(sys.argv[1:] if argv is None else argv)
    # numpy's BLAS would start a thread per processor; what multiplies matrices has workers of its own.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    # A model has up to a hundred thousand tensors, none in a circle: to look for circles takes a third of opening it.
    gc.set_threshold(20_000, 10, 10)
    warnings.showwarning = _show_warning
    say_anything()
    verb, rest = verbs.chosen(argv)
    try:
        return _run(verb, rest)
    except (Exception, KeyboardInterrupt) as error:
        if "--debug" in argv and not isinstance(error, KeyboardInterrupt | MemoryError):
            traceback.print_exception(error)
            return _failure(error).exit_code
        return _fail(verb, _failure(error), as_json="--json" in argv)


def _run(verb: str, argv: Sequence[str]) -> int:
    if verb == verbs.DEFAULT and (message := meant.command(argv)):
        raise UsageError(f"{message}\n`convert --help` lists all")
    parser = verbs.parser(verb)
    args, rest = parser.parse_known_intermixed_args(argv)  # OUT may be left out, and may come behind options
    if rest:
        parser.error(meant.instead(parser, rest))
    report = _report_on_stdout(args)
    args.command = _command(verb, argv)
    with _reading(args):
        outcome: verbs.Outcome = verbs.module(verb).run(args)
        with delivering():
            if args.json:
                from converter.reports.json import as_json

                print(as_json(verb, outcome.data()))
            elif report is not None and outcome.report is not None:
                print(outcome.report(report), end="")
            else:
                outcome.show()
    return outcome.exit_code


def _report_on_stdout(args: argparse.Namespace) -> str | None:
    """The extension of the report that stdout gets (`--report -`), in the place of what people read."""
    if not getattr(args, "report", None):
        return None
    from converter.reports.files import is_stdout, kind_of

    kinds = [kind_of(path) for path in args.report if is_stdout(path)]
    if len(kinds) + (args.json if kinds else 0) > 1:
        raise UsageError("--report -: one report fits on stdout, and none beside --json")
    return kinds[0] if kinds else None


def _command(verb: str, argv: Sequence[str]) -> str:
    """The command as it could be given again, for reports; addresses without what is nobody's business."""
    import shlex

    words = [] if verb == verbs.DEFAULT else [verb]
    return shlex.join(["convert", *words, *(without_secrets(word) for word in argv)])


@contextmanager
def _reading(args: argparse.Namespace) -> Iterator[None]:
    """What the command line says of the network; a model that is read twice is looked for once."""
    from converter.remote.settings import Settings, using

    usual = Settings.of_environment()
    with using(Settings(args.offline or usual.offline, args.cache or usual.cache)):
        if not placed():
            yield
            return
        from converter.remote.mirror import keeping

        with keeping():
            yield


# ---------------------------------------------------------------------------------------------- errors


class _Failure(NamedTuple):
    """An error as it is told: the kind (a class of `converter.errors` where it is one of ours), exit code, words."""

    kind: str
    exit_code: int
    text: str

    @property
    def message(self) -> str:
        """At most three lines without control characters."""
        return "\n".join(map(printable, self.text.splitlines()[:3]))


def _failure(error: BaseException) -> _Failure:
    if isinstance(error, KeyboardInterrupt) or (process.seen and not isinstance(error, ConverterError)):
        return _Failure(Interrupted.__name__, Interrupted.exit_code, "interrupted")
    match error:
        case ConverterError():
            return _Failure(type(error).__name__, error.exit_code, str(error))
        case _ if isinstance(error, MemoryError) or _compiles(error) or _loads(error):
            return _Failure(OutOfMemory.__name__, OutOfMemory.exit_code, "out of memory; fewer --threads need less")
        case OSError():
            text = f"{error.filename or 'input or output'}: {error.strerror or error}"
            return _Failure(OutputError.__name__, OutputError.exit_code, text)
    words = f"internal error: {type(error).__name__}: {error}\nplease report it with the output of --debug"
    return _Failure(InternalError.__name__, InternalError.exit_code, words)


def _compiles(error: BaseException) -> bool:
    """Whether an import failed in Python's own compiler, which complains about its trees where memory runs out."""
    trace = error.__traceback__ if isinstance(error, ValueError | SystemError) else None
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return trace is not None and trace.tb_frame.f_code.co_filename.startswith("<frozen importlib")


#: What glibc's loader says where there is no room for a library.
_NO_ROOM = (
    "failed to map segment from shared object",
    "cannot map zero-fill pages",
    "cannot create shared object descr",
)


def _loads(error: BaseException) -> bool:
    """Whether an import failed because a library found no room."""
    return isinstance(error, ImportError) and any(words in str(error) for words in _NO_ROOM)


def _fail(verb: str, failure: _Failure, as_json: bool) -> int:
    """Say it: to people on stderr, to programs on stdout, too."""
    with suppress(OutputError), delivering():
        first, *hints = failure.message.split("\n")
        say(f"convert: {first}", sys.stderr)
        for hint in hints:
            say(hint, sys.stderr, HINT)
    with suppress(OutputError), delivering():
        if as_json:
            from converter.reports import json

            print(json.as_json(verb, json.failure(failure.kind, failure.exit_code, failure.message)))
    return failure.exit_code


def _show_warning(message: Warning | str, *_: Any, **__: Any) -> None:
    with suppress(OSError):
        say(f"convert: warning: {printable(str(message))}", sys.stderr)
