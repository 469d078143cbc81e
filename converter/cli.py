"""The command line: arguments, printing, exit codes. No logic.

Everything heavy is imported inside the functions that need it, so that `convert --help` is instant.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import sys
import time
import warnings
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from converter import __version__
from converter.errors import ConverterError, Interrupted, OutputError, UsageError

if TYPE_CHECKING:
    from converter.fill import Progress
    from converter.inspection import Description
    from converter.planning import Plan, Request
    from converter.report import Event

EXAMPLES = """\
examples:
  convert model.safetensors model-q4.gguf --quant q4_k_m    quantize in one step
  convert llama-folder/ llama.gguf                          GGUF in the source's own precision
  convert plan llama-folder/ llama.gguf -q q5_k_m           what would happen, tensor by tensor
  convert model.gguf model.safetensors --dtype bf16         back to Hugging Face names
  convert model.gguf folder/                                a Hugging Face folder: weights, config, tokenizer
  convert pytorch-folder/ folder/ --shard-size 5GB          the same from PyTorch weights, in shards
  convert inspect model.gguf                                what is in a file

commands:
  plan IN OUT       the type of every tensor, sizes and memory; reads no weights, writes nothing
  inspect FILE      format, metadata, tensors, memory to run it
  formats           formats that can be read and written
  quants            quantization types, and what they cost
  architectures     model families that can be mapped to GGUF and back
  completion SHELL  completion script for bash, zsh or fish

exit codes:
  0 done  2 usage  10-14 format  20-25 architecture and tokenizer  30-31 quantization
  40 lossy under --strict  41 fidelity  50-53 input, output and disk  130 interrupted
"""

SHELLS = ("bash", "zsh", "fish")


class _Parser(argparse.ArgumentParser):
    """argparse with our error type, and without abbreviations: a later option must not change an old script."""

    def __init__(self, **options: Any) -> None:
        super().__init__(allow_abbrev=False, **options)

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message}\n`{self.prog} --help` explains")


# ------------------------------------------------------------------------------------------- arguments


def _size(text: str) -> int:
    """`2G`, `500MB`, `64K` or a plain number of bytes; decimal, as llama.cpp and Hugging Face count."""
    match = re.fullmatch(r"(\d{1,15})([KMGT]?)B?", text.strip().upper())
    if match is None:
        raise argparse.ArgumentTypeError(f"{text!r} is not a size such as 2G, 500M or 64K")
    return int(match[1]) * {"": 1, "K": 1000, "M": 1000**2, "G": 1000**3, "T": 1000**4}[match[2]]


def _pattern(text: str) -> tuple[str, str]:
    pattern, equals, wanted = text.rpartition("=")
    if not equals or not pattern or not wanted:
        raise argparse.ArgumentTypeError(f"{text!r} is not PATTERN=TYPE")
    return pattern, wanted


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive number")
    return int(text)


def _conversion_parser(prog: str, description: str, epilog: str | None = None) -> argparse.ArgumentParser:
    parser = _Parser(
        prog=prog, description=description, epilog=epilog, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("source", metavar="IN", type=Path, help="file or folder to read")
    target_help = "file to write, or folder (name/): a Hugging Face one; with -q it gets a GGUF with a standard name"
    parser.add_argument("target", metavar="OUT", help=target_help)
    _quant_arguments(parser.add_argument_group("quantization"))
    _model_arguments(parser.add_argument_group("model"))
    _output_arguments(parser.add_argument_group("output"))
    _common_arguments(parser)
    return parser


def _output_arguments(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add("-f", "--force", action="store_true", help="replace an existing output")
    add("--strict", action="store_true", help="fail on any loss: fallback, overflow, NaN, dropped tensor")
    add(
        "--split-max-size", "--shard-size", type=_size, metavar="SIZE",
        help="start a new shard at this size (2G, 500MB): GGUF, safetensors, PyTorch, folders",
    )
    add("--split-max-tensors", type=_positive, metavar="N", help="start a new shard after N tensors")
    add(
        "--external-data", choices=("auto", "always", "never"), default="auto",
        help="tensors in a data file beside an ONNX model: as they are and where they must be, all large ones, none",
    )
    add("-j", "--threads", type=_positive, metavar="N", help="workers (default: all processors)")


def _quant_arguments(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add("-q", "--quant", metavar="TYPE", help="q4_k_m, Q8_0, f16, ... (`convert quants` lists them)")
    add(
        "--tensor-type", type=_pattern, action="append", default=[], metavar="PATTERN=TYPE",
        help="type for tensors whose GGUF name matches the regular expression; may be repeated, the first match wins",
    )
    add("--output-type", metavar="TYPE", help="type of the output (lm_head) tensor")
    add("--embedding-type", metavar="TYPE", help="type of the token embedding")
    add("--leave-output", action="store_true", help="keep the output tensor in its source type")
    add("--pure", action="store_true", help="one type for all tensors, no mixture")
    add("--no-fallback", action="store_true", help="fail where a row does not fit the wanted type")
    add("--allow-requantize", action="store_true", help="encode tensors that are already quantized again")
    add("--imatrix", type=Path, metavar="FILE", help="importance matrix of llama-imatrix (GGUF or .dat)")
    add(
        "--include-weights", action="append", default=[], metavar="PART",
        help="use the importance matrix only for tensors with PART in their names; may be repeated",
    )
    add(
        "--exclude-weights", action="append", default=[], metavar="PART",
        help="do not use it for tensors with PART in their names; may be repeated",
    )
    add(
        "--via", choices=("source", "f16", "bf16", "f32"), default="source",
        help="precision of the implied intermediate (default: the source's own, nothing is rounded twice)",
    )
    add("--dtype", metavar="TYPE", help="f16, bf16 or f32 for plain outputs; decodes quantized tensors")


def _model_arguments(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add("--config", type=Path, metavar="DIR", help="folder to take config.json and tokenizer from")
    add("--arch", metavar="NAME", help="architecture, where config.json does not tell")
    add("--pre", metavar="NAME", help="pre-tokenizer, where the tokenizer does not tell")
    add("--name", help="general.name of the output")
    add("--key", metavar="PATH", help="part of a checkpoint that holds several (optimizer.state); `.` takes all")
    add("--no-tokenizer", action="store_true", help="write no tokenizer")
    add("--tensors-only", action="store_true", help="keep tensor names as they are, map no architecture")
    add("--from", dest="source_type", metavar="FORMAT", help="format of IN, where its content does not tell")
    add("--to", dest="target_type", metavar="FORMAT", help="format of OUT, where its extension does not tell")


def _common_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print the result as JSON on stdout")
    parser.add_argument("--quiet", action="store_true", help="no progress, no notes")
    parser.add_argument("--debug", action="store_true", help="show a traceback on errors")
    parser.add_argument("--version", action="version", version=f"model-converter {__version__}")


def _inspect_parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="convert inspect", description="What is in a model file; reads no weights.")
    parser.add_argument("source", metavar="FILE", type=Path)
    parser.add_argument("--from", dest="source_type", metavar="FORMAT", help="format, where the content does not tell")
    parser.add_argument("--all", action="store_true", help="every tensor and the full metadata values")
    _common_arguments(parser)
    return parser


def _list_parser(prog: str, description: str) -> argparse.ArgumentParser:
    parser = _Parser(prog=prog, description=description)
    _common_arguments(parser)
    return parser


def _completion_parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="convert completion",
        description="Print a completion script, e.g.: eval \"$(convert completion bash)\"",
    )
    parser.add_argument("shell", choices=SHELLS)
    _common_arguments(parser)
    return parser


# ------------------------------------------------------------------------------------------------ main


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    argv = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in argv
    # numpy's BLAS would start a thread per processor; nothing here multiplies matrices.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    _handle_signals()
    warnings.showwarning = _show_warning
    try:
        return _dispatch(argv)
    except ConverterError as error:
        if debug:
            raise
        return _fail(str(error), error.exit_code)
    except KeyboardInterrupt:
        return _fail("interrupted", Interrupted.exit_code)
    except BrokenPipeError:
        # The reader of our output has seen enough (`| head`); the interpreter must not flush into it again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except MemoryError:
        return _fail("out of memory; fewer --threads need less", 1)
    except OSError as error:
        if debug:
            raise
        return _fail(f"{error.filename or 'input or output'}: {error.strerror or error}", OutputError.exit_code)
    except Exception as error:
        if debug:
            raise
        return _fail(f"internal error: {type(error).__name__}: {error}\nplease report it with the output of --debug", 1)


def _dispatch(argv: list[str]) -> int:
    command = argv[0] if argv else "--help"
    if command in _COMMANDS:
        return _COMMANDS[command](argv[1:])
    parser = _conversion_parser("convert", "Convert and quantize a model.", EXAMPLES)
    return _convert(parser.parse_args(argv or ["--help"]))


def _handle_signals() -> None:
    """SIGTERM and the closing of the terminal end a run as Ctrl-C does, with nothing left behind."""

    def stop(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    for name in ("SIGTERM", "SIGHUP"):
        number = getattr(signal, name, None)
        try:
            if number is not None and signal.getsignal(number) is signal.SIG_DFL:  # not under nohup
                signal.signal(number, stop)
        except ValueError:  # not the main thread
            pass


def _fail(text: str, code: int) -> int:
    try:
        print("convert: " + "\n".join(map(_printable, text.splitlines()[:3])), file=sys.stderr)
    except BrokenPipeError:
        pass
    return code


def _printable(text: str) -> str:
    """Text that may hold names out of a file: nothing in it reaches the terminal as a control sequence."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def _show_warning(message: Warning | str, *_: Any, **__: Any) -> None:
    print(f"convert: warning: {_printable(str(message))}", file=sys.stderr)


# -------------------------------------------------------------------------------------------- commands


def _request(args: argparse.Namespace) -> Request:
    from dataclasses import fields

    from converter.planning import Request

    given = vars(args) | {
        "tensor_types": tuple(args.tensor_type),
        "include_weights": tuple(args.include_weights),
        "exclude_weights": tuple(args.exclude_weights),
    }
    return Request(**{f.name: given[f.name] for f in fields(Request)})


def _convert(args: argparse.Namespace) -> int:
    from converter import pipeline

    started = time.monotonic()
    with _progress(args.quiet or args.json) as progress:
        plan = pipeline.convert(
            args.source,
            args.target,
            _request(args),
            source_type=args.source_type,
            target_type=args.target_type,
            config=args.config,
            force=args.force,
            threads=args.threads,
            progress=progress,
        )
    seconds = time.monotonic() - started
    if args.json:
        print(json.dumps(plan.as_dict() | {"seconds": round(seconds, 3)}))
        return 0
    if not args.quiet:
        _print_events(plan.report.events)
        _print_result(plan, seconds)
    return 0


def _plan(argv: Sequence[str]) -> int:
    from converter import pipeline

    parser = _conversion_parser("convert plan", "Show what a conversion would do; reads no weights, writes nothing.")
    args = parser.parse_args(argv)
    plan = pipeline.plan(
        args.source,
        args.target,
        _request(args),
        source_type=args.source_type,
        target_type=args.target_type,
        config=args.config,
    )
    with plan.checkpoint:
        if args.json:
            print(json.dumps(plan.as_dict()))
        else:
            _print_plan(plan, args.threads)
            if not args.quiet:
                _print_events(plan.report.events)
    return 0


def _inspect(argv: Sequence[str]) -> int:
    from converter.inspection import inspect

    args = _inspect_parser().parse_args(argv)
    description = inspect(args.source, format=args.source_type)
    if args.json:
        print(json.dumps(description.as_dict(full=args.all)))
    else:
        _print_description(description, args.all)
    return 0


def _formats(argv: Sequence[str]) -> int:
    from converter.listing import format_rows

    return _list("convert formats", "Formats that can be read and written.", argv, format_rows)


def _quants(argv: Sequence[str]) -> int:
    from converter.listing import quant_rows

    return _list("convert quants", "Quantization types.", argv, quant_rows)


def _architectures(argv: Sequence[str]) -> int:
    from converter.listing import architecture_rows

    description = "Model families that can be mapped to GGUF and back."
    return _list("convert architectures", description, argv, architecture_rows)


def _list(prog: str, description: str, argv: Sequence[str], rows: Callable[[], list[dict[str, Any]]]) -> int:
    args = _list_parser(prog, description).parse_args(argv)
    table = rows()
    if args.json:
        print(json.dumps(table))
    else:
        _print_table(list(table[0]), ([_cell(value) for value in row.values()] for row in table))
    return 0


def _cell(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "-"
    if isinstance(value, list | tuple):
        return ", ".join(map(str, value))
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _completion(argv: Sequence[str]) -> int:
    from converter.completion import script

    args = _completion_parser().parse_args(argv)
    parsers = {
        "": _conversion_parser("convert", ""),
        "plan": _conversion_parser("convert plan", ""),
        "inspect": _inspect_parser(),
        **{name: _list_parser(name, "") for name in ("formats", "quants", "architectures")},
        "completion": _completion_parser(),
    }
    print(script(args.shell, parsers))
    return 0


_COMMANDS: dict[str, Callable[[Sequence[str]], int]] = {
    "plan": _plan,
    "inspect": _inspect,
    "formats": _formats,
    "quants": _quants,
    "architectures": _architectures,
    "completion": _completion,
}


# -------------------------------------------------------------------------------------------- printing


class _progress:
    """A progress bar with rate and time left on stderr; nothing when that is not a terminal."""

    def __init__(self, off: bool) -> None:
        self._off = off or not sys.stderr.isatty()
        self._bar: Any = None
        self._task: Any = None

    def __enter__(self) -> Callable[[Progress], None] | None:
        return None if self._off else self._update

    def _start(self, total: int) -> None:
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            DownloadColumn,
            Progress,
            TextColumn,
            TimeRemainingColumn,
            TransferSpeedColumn,
        )

        self._bar = Progress(
            TextColumn("{task.description:<28.28}"), BarColumn(), DownloadColumn(), TransferSpeedColumn(),
            TimeRemainingColumn(), console=Console(stderr=True), transient=True,
        )
        self._task = self._bar.add_task("", total=total)
        self._bar.start()

    def _update(self, progress: Progress) -> None:
        if self._bar is None:
            self._start(progress.total)
        self._bar.update(self._task, completed=progress.done, description=progress.tensor)

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()


def human_bytes(count: float) -> str:
    """1234567 -> '1.23 MB' (decimal units, three digits)."""
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if count < 999.5 or unit == "TB":
            return f"{count:.3g} {unit}"
        count /= 1000
    raise AssertionError


_SHOWN_PER_KIND = 5


def _print_events(events: Iterable[Event]) -> None:
    seen: dict[str, int] = {}
    for event in events:
        seen[event.kind] = seen.get(event.kind, 0) + 1
        if seen[event.kind] <= _SHOWN_PER_KIND:
            print(f"{'warning' if event.loss else 'note'}: {_printable(str(event))}", file=sys.stderr)
    for kind, count in seen.items():
        if count > _SHOWN_PER_KIND:
            print(f"note: {count - _SHOWN_PER_KIND} more {kind} events (--json lists all)", file=sys.stderr)


def _print_result(plan: Plan, seconds: float) -> None:
    counts: dict[str, int] = {}
    for step in plan.steps:
        counts[step.type] = counts.get(step.type, 0) + 1
    types = ", ".join(f"{count} {name}" for name, count in sorted(counts.items(), key=lambda item: -item[1]))
    name, more = plan.layout.folder, f" ({len(plan.layout.files)} files)"
    if name is None:
        name = plan.layout.files[0].path
        more = f" and {len(plan.layout.files) - 1} more" if len(plan.layout.files) > 1 else ""
    size, bits = human_bytes(plan.total_bytes), plan.bits_per_weight
    print(f"{_printable(str(name))}{more}: {size}, {bits:.2f} bits per weight, {seconds:.2f} s")
    print(f"{len(plan.steps)} tensors ({types})")


def _print_plan(plan: Plan, threads: int | None) -> None:
    rows = (
        [
            step.name, "x".join(map(str, step.shape)) or "scalar", step.source_type, step.type, f"{step.bytes:,}",
            step.rule + ("; imatrix" if step.imatrix else ""),
        ]
        for step in plan.steps
    )
    _print_table(["tensor", "shape", "from", "to", "bytes", "rule"], rows, right=(4,))
    print(
        f"\n{len(plan.layout.files)} file(s), {plan.total_bytes:,} bytes ({human_bytes(plan.total_bytes)}), "
        f"{plan.n_parameters:,} parameters, {plan.bits_per_weight:.2f} bits per weight"
    )
    print(f"needs {human_bytes(plan.total_bytes)} of disk and about {human_bytes(plan.memory(threads))} of memory")


def _print_description(description: Description, full: bool) -> None:
    for key, value in description.summary():
        print(f"{key:<14}{_printable(str(value))}")
    if description.metadata:
        print()
        _print_table(["key", "type", "value"], description.metadata_rows(full))
    print()
    shown = description.tensors if full else description.tensors[:_MAX_TENSORS]
    _print_table(["tensor", "shape", "type", "bytes"], (tensor.row() for tensor in shown), right=(3,))
    if len(shown) < len(description.tensors):
        print(f"... {len(description.tensors) - len(shown)} more (--all shows them)")
    head, rows = description.memory_table()
    if rows:
        print("\nestimated memory to run it (weights, KV cache and compute buffers)")
        _print_table(head, rows, right=range(1, len(head)))


_MAX_TENSORS = 40


def _print_table(head: list[str], rows: Iterable[Sequence[str]], right: Sequence[int] = ()) -> None:
    """Columns as wide as they need; plain text, so that it can be piped."""
    table = [head, *(list(row) for row in rows)]
    widths = [max(len(row[column]) for row in table) for column in range(len(head))]
    for row in table:
        cells = (c.rjust(w) if i in right else c.ljust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True)))
        print(_printable("  ".join(cells).rstrip()))


if __name__ == "__main__":
    sys.exit(main())
