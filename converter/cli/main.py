"""The command line: arguments, printing, exit codes. No logic.

Everything heavy is imported inside the functions that need it, so that `convert --help` is instant.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from converter.cli.console import (
    Parser,
    ProgressBar,
    cell,
    common_arguments,
    human_bytes,
    model_arguments,
    positive,
    print_events,
    print_table,
    quant_arguments,
    request_of,
    size,
    source_of,
)
from converter.errors import ConverterError, FidelityError, Interrupted, OutputError
from converter.text import printable

if TYPE_CHECKING:
    from converter.inspection.describe import Description
    from converter.planning import Plan
    from converter.verify.results import Verification

EXAMPLES = """\
examples:
  convert model.safetensors model-q4.gguf --quant q4_k_m    quantize in one step
  convert llama-folder/ llama.gguf                          GGUF in the source's own precision
  convert plan llama-folder/ llama.gguf -q q5_k_m           what would happen, tensor by tensor
  convert model.gguf model.safetensors --dtype bf16         back to Hugging Face names
  convert model.gguf folder/                                a Hugging Face folder: weights, config, tokenizer
  convert pytorch-folder/ folder/ --shard-size 5GB          the same from PyTorch weights, in shards
  convert folder/ model.gguf -q q4_k_m --verify             and prove the result
  convert verify folder/ model.gguf --report report.html    the same for a model that is there
  convert inspect model.gguf                                what is in a file
  convert compare llama-folder/ --quants q4_k_m,q6_k        size against error, from one read
  convert check model.gguf                                  is it sound? scales, metadata, tensors, tokenizer

commands:
  plan IN OUT       the type of every tensor, sizes and memory; reads no weights, writes nothing
  compare IN        size against error of several quants, so that you can choose; writes nothing
  verify A B        what a conversion did to every tensor, and whether that is right
  inspect FILE      format, metadata, tensors, memory to run it
  check FILE        one model by itself, before a deploy; exit code 41 when it is not sound
  diff A B          metadata, tensors and values that differ; exit code 1 when something does
  formats           formats that can be read and written
  quants            quantization types, and what they cost
  architectures     model families that can be mapped to GGUF and back
  completion SHELL  completion script for bash, zsh or fish

exit codes:
  0 done  2 usage  10-14 format  20-25 architecture and tokenizer  30-31 quantization
  40 lossy under --strict  41 fidelity  50-53 input, output and disk  130 interrupted
"""

SHELLS = ("bash", "zsh", "fish")


# ------------------------------------------------------------------------------------------- arguments


def _conversion_parser(prog: str, description: str, epilog: str | None = None) -> argparse.ArgumentParser:
    parser = Parser(
        prog=prog, description=description, epilog=epilog, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("source", metavar="IN", type=Path, help="file or folder to read")
    target_help = "file to write, or folder (name/): a Hugging Face one; with -q it gets a GGUF with a standard name"
    parser.add_argument("target", metavar="OUT", help=target_help)
    quant_arguments(parser.add_argument_group("quantization"))
    model_arguments(parser.add_argument_group("model"))
    _output_arguments(parser.add_argument_group("output"))
    common_arguments(parser)
    return parser


def _output_arguments(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add("-f", "--force", action="store_true", help="replace an existing output")
    add("--strict", action="store_true", help="fail on any loss: fallback, overflow, NaN, dropped tensor")
    add(
        "--split-max-size",
        "--shard-size",
        type=size,
        metavar="SIZE",
        help="start a new shard at this size (2G, 500MB): GGUF, safetensors, PyTorch, folders",
    )
    add("--split-max-tensors", type=positive, metavar="N", help="start a new shard after N tensors")
    add(
        "--external-data",
        choices=("auto", "always", "never"),
        default="auto",
        help="tensors in a data file beside an ONNX model: as they are and where they must be, all large ones, none",
    )
    add("--verify", action="store_true", help="then compare what was written with its source; exit code 41 if wrong")
    add("-j", "--threads", type=positive, metavar="N", help="workers (default: all processors)")


def _inspect_parser() -> argparse.ArgumentParser:
    parser = Parser(prog="convert inspect", description="What is in a model file; reads no weights.")
    parser.add_argument("source", metavar="FILE", type=Path)
    parser.add_argument("--from", dest="source_type", metavar="FORMAT", help="format, where the content does not tell")
    parser.add_argument("--all", action="store_true", help="every tensor and the full metadata values")
    common_arguments(parser)
    return parser


def _list_parser(prog: str, description: str) -> argparse.ArgumentParser:
    parser = Parser(prog=prog, description=description)
    common_arguments(parser)
    return parser


def _completion_parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="convert completion",
        description='Print a completion script, e.g.: eval "$(convert completion bash)"',
    )
    parser.add_argument("shell", choices=SHELLS)
    common_arguments(parser)
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
    if command in _MODULES:
        return int(_module(command).run(argv[1:]))
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
        print("convert: " + "\n".join(map(printable, text.splitlines()[:3])), file=sys.stderr)
    except BrokenPipeError:
        pass
    return code


def _show_warning(message: Warning | str, *_: Any, **__: Any) -> None:
    print(f"convert: warning: {printable(str(message))}", file=sys.stderr)


# -------------------------------------------------------------------------------------------- commands


def _convert(args: argparse.Namespace) -> int:
    from converter import pipeline

    started = time.monotonic()
    with ProgressBar(args.quiet or args.json) as progress:
        plan = pipeline.convert(
            source_of(args),
            args.target,
            request_of(args),
            force=args.force,
            threads=args.threads,
            progress=progress,
        )
    seconds = time.monotonic() - started
    result = _verified(args, plan) if args.verify else None
    if args.json:
        proof = {} if result is None else {"verification": result.as_dict()}
        print(json.dumps(plan.as_dict() | {"seconds": round(seconds, 3)} | proof))
    elif not args.quiet:
        print_events(plan.report.events)
        _print_result(plan, seconds)
    if result is not None and not args.json and not (args.quiet and result.passed):
        _print_verdict(result)
    return 0 if result is None or result.passed else FidelityError.exit_code


def _verified(args: argparse.Namespace, plan: Plan) -> Verification:
    from converter.request import Source
    from converter.verify.verifier import verify

    written = plan.layout.folder or plan.layout.files[0].path
    with ProgressBar(args.quiet or args.json) as progress:
        target = Source(written, args.target_type)
        return verify(source_of(args), target, request_of(args), threads=args.threads, progress=progress)


def _print_verdict(result: Verification) -> None:
    for finding in result.findings:
        if finding.failed:
            print(f"failed: {printable(str(finding))}", file=sys.stderr)
    facts = result.summary()
    error = f"{facts['sqnr_db']:.2f} dB SQNR" if facts["nmse"] else "no error"
    same = f"{facts['reproduced']} of {facts['tensors']} tensors are byte for byte what the encoder makes"
    print(f"{'verified' if result.passed else 'NOT what a correct conversion makes'}: {same}, {error}")


def _plan(argv: Sequence[str]) -> int:
    from converter import pipeline

    parser = _conversion_parser("convert plan", "Show what a conversion would do; reads no weights, writes nothing.")
    args = parser.parse_args(argv)
    plan = pipeline.plan(source_of(args), args.target, request_of(args))
    with plan.checkpoint:
        if args.json:
            print(json.dumps(plan.as_dict()))
        else:
            _print_plan(plan, args.threads)
            if not args.quiet:
                print_events(plan.report.events)
    return 0


def _inspect(argv: Sequence[str]) -> int:
    from converter.inspection.describe import inspect

    args = _inspect_parser().parse_args(argv)
    description = inspect(args.source, format=args.source_type)
    if args.json:
        print(json.dumps(description.as_dict(full=args.all)))
    else:
        _print_description(description, args.all)
    return 0


def _formats(argv: Sequence[str]) -> int:
    from converter.inspection.tables import format_rows

    return _list("convert formats", "Formats that can be read and written.", argv, format_rows)


def _quants(argv: Sequence[str]) -> int:
    from converter.inspection.tables import quant_rows

    return _list("convert quants", "Quantization types.", argv, quant_rows)


def _architectures(argv: Sequence[str]) -> int:
    from converter.inspection.tables import architecture_rows

    description = "Model families that can be mapped to GGUF and back."
    return _list("convert architectures", description, argv, architecture_rows)


def _list(prog: str, description: str, argv: Sequence[str], rows: Callable[[], list[dict[str, Any]]]) -> int:
    args = _list_parser(prog, description).parse_args(argv)
    table = rows()
    if args.json:
        print(json.dumps(table))
    else:
        print_table(list(table[0]), ([cell(value) for value in row.values()] for row in table))
    return 0


def _completion(argv: Sequence[str]) -> int:
    from converter.cli.completion import script

    args = _completion_parser().parse_args(argv)
    parsers = {
        "": _conversion_parser("convert", ""),
        "plan": _conversion_parser("convert plan", ""),
        "inspect": _inspect_parser(),
        **{name: _list_parser(name, "") for name in ("formats", "quants", "architectures")},
        **{name: _module(name).parser() for name in _MODULES},
        "completion": _completion_parser(),
    }
    print(script(args.shell, parsers))
    return 0


def _module(command: str) -> ModuleType:
    return import_module(f"converter.cli.commands.{command}")


# Commands with a module of their own, imported when asked for.
_MODULES: tuple[str, ...] = ("verify", "compare", "check", "diff")
_COMMANDS: dict[str, Callable[[Sequence[str]], int]] = {
    "plan": _plan,
    "inspect": _inspect,
    "formats": _formats,
    "quants": _quants,
    "architectures": _architectures,
    "completion": _completion,
}


# -------------------------------------------------------------------------------------------- printing


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
    print(f"{printable(str(name))}{more}: {size}, {bits:.2f} bits per weight, {seconds:.2f} s")
    print(f"{len(plan.steps)} tensors ({types})")


def _print_plan(plan: Plan, threads: int | None) -> None:
    rows = (
        [
            step.name,
            "x".join(map(str, step.shape)) or "scalar",
            step.source_type,
            step.type,
            f"{step.bytes:,}",
            step.rule + ("; imatrix" if step.imatrix else ""),
        ]
        for step in plan.steps
    )
    print_table(["tensor", "shape", "from", "to", "bytes", "rule"], rows, right=(4,))
    print(
        f"\n{len(plan.layout.files)} file(s), {plan.total_bytes:,} bytes ({human_bytes(plan.total_bytes)}), "
        f"{plan.n_parameters:,} parameters, {plan.bits_per_weight:.2f} bits per weight"
    )
    print(f"needs {human_bytes(plan.total_bytes)} of disk and about {human_bytes(plan.memory(threads))} of memory")


def _print_description(description: Description, full: bool) -> None:
    for key, value in description.summary():
        print(f"{key:<14}{printable(str(value))}")
    if description.metadata:
        print()
        print_table(["key", "type", "value"], description.metadata_rows(full))
    print()
    shown = description.tensors if full else description.tensors[:_MAX_TENSORS]
    print_table(["tensor", "shape", "type", "bytes"], (tensor.row() for tensor in shown), right=(3,))
    if len(shown) < len(description.tensors):
        print(f"... {len(description.tensors) - len(shown)} more (--all shows them)")
    head, rows = description.memory_table()
    if rows:
        print("\nestimated memory to run it (weights, KV cache and compute buffers)")
        print_table(head, rows, right=range(1, len(head)))


_MAX_TENSORS = 40


if __name__ == "__main__":
    sys.exit(main())
