"""`convert IN OUT`: convert and quantize a model; the verb where none is named."""

from __future__ import annotations

import argparse
import sys
import time
from typing import TYPE_CHECKING, Any

from converter.cli.arguments import (
    file_name,
    file_path,
    model_arguments,
    positive,
    quant_arguments,
    request_of,
    size,
    source_of,
    threads_argument,
)
from converter.cli.console import ProgressBar, print_events
from converter.cli.verbs import Outcome, Verb
from converter.errors import FidelityError
from converter.text import human_bytes, printable

if TYPE_CHECKING:
    from converter.planning.plan import Plan
    from converter.verify.results import Verification

VERB = Verb(
    name="convert",
    group="convert",
    arguments="IN OUT",
    help="convert and quantize; `--verify` proves the result",
    description="Convert and quantize a model.",
    examples=(
        ("convert model.safetensors model-q4.gguf --quant q4_k_m", "quantize in one step"),
        ("convert llama-folder/ llama.gguf", "GGUF in the source's own precision"),
        ("convert model.gguf model.safetensors --dtype bf16", "back to Hugging Face names"),
        ("convert model.gguf folder/", "a Hugging Face folder: weights, config, tokenizer"),
        ("convert pytorch-folder/ folder/ --shard-size 5GB", "the same from PyTorch weights, in shards"),
        ("convert folder/ model.gguf -q q4_k_m --verify", "and prove the result"),
        ("convert folder/ tuned.gguf -q q4_k_m --lora lora/", "with a LoRA adapter merged into it"),
        ("convert lora/ lora.gguf --base folder/", "a GGUF adapter, to run beside its base"),
    ),
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What a conversion needs to know; `plan` has the same."""
    parser.add_argument("source", metavar="IN", type=file_path, help="file or folder to read")
    target_help = "file to write, or folder (name/): a Hugging Face one; with -q it gets a GGUF with a standard name"
    parser.add_argument("target", metavar="OUT", type=file_name, help=target_help)
    quant_arguments(parser.add_argument_group("quantization"))
    model_arguments(parser.add_argument_group("model"))
    _output_arguments(parser.add_argument_group("output"))


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
    threads_argument(add)


def run(args: argparse.Namespace) -> Outcome:
    """Convert, and verify where that is wanted."""
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
    proof = _verified(args, plan) if args.verify else None

    def data() -> dict[str, Any]:
        proven = {} if proof is None else {"verification": proof.as_dict()}
        return plan.as_dict() | {"seconds": round(seconds, 3)} | proven

    def show() -> None:
        if not args.quiet:
            print_events(plan.report.events)
            _show_result(plan, seconds)
        if proof is not None and not (args.quiet and proof.passed):
            _show_verdict(proof)

    return Outcome(data, show, 0 if proof is None or proof.passed else FidelityError.exit_code)


def _verified(args: argparse.Namespace, plan: Plan) -> Verification:
    from converter.request import Source
    from converter.verify.verifier import verify

    written = plan.layout.folder or plan.layout.files[0].path
    with ProgressBar(args.quiet or args.json) as progress:
        target = Source(written, args.target_type)
        return verify(source_of(args), target, request_of(args), threads=args.threads, progress=progress)


def _show_result(plan: Plan, seconds: float) -> None:
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


def _show_verdict(result: Verification) -> None:
    for finding in result.findings:
        if finding.failed:
            print(f"failed: {printable(str(finding))}", file=sys.stderr)
    facts = result.summary()
    error = f"{facts['sqnr_db']:.2f} dB SQNR" if facts["nmse"] else "no error"
    same = f"{facts['reproduced']} of {facts['tensors']} tensors are byte for byte what the encoder makes"
    print(f"{'verified' if result.passed else 'NOT what a correct conversion makes'}: {same}, {error}")
