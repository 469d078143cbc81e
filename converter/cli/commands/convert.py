"""`convert IN OUT`: convert and quantize a model; the verb where none is named."""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from converter.cli.arguments import (
    engine_argument,
    file_path,
    folders,
    found_mixture,
    goal_arguments,
    model_arguments,
    positive,
    quant_arguments,
    request_of,
    requests_of,
    size,
    source_of,
    source_path,
    target_name,
    target_of,
    threads_argument,
)
from converter.cli.calibration import calibrated, calibration_arguments
from converter.cli.colour import say
from converter.cli.console import print_events, print_table, warn
from converter.cli.next_steps import is_model, modelfile_place, show_next_steps
from converter.cli.progress import showing
from converter.cli.verbs import Outcome, Verb
from converter.errors import FidelityError, OutputExists, UsageError
from converter.text import counted, human_bytes, printable

if TYPE_CHECKING:
    from converter.events import Event
    from converter.housekeeping.modelfile import Modelfile
    from converter.mixing.results import Found
    from converter.planning.plan import Plan
    from converter.verify.results import Verification

VERB = Verb(
    name="convert",
    group="convert",
    arguments="IN [OUT]",
    help="convert and quantize; `--verify` proves the result",
    description="Convert and quantize a model.",
    examples=(
        ("convert model.safetensors model-q4.gguf --quant q4_k_m", "quantize in one step"),
        ("convert folder/ out/ -q q4_k_m,q6_k,q8_0", "several quants, the model read once"),
        ("convert llama-folder/ llama.gguf", "GGUF in the source's own precision"),
        ("convert model.gguf model.safetensors --dtype bf16", "back to Hugging Face names"),
        ("convert model.gguf folder/", "a Hugging Face folder: weights, config, tokenizer"),
        ("convert pytorch-folder/ folder/ --shard-size 5GB", "the same from PyTorch weights, in shards"),
        ("convert folder/ model.gguf -q q4_k_m --verify", "and prove the result"),
        ("convert folder/ model.gguf --target-size 4.6GB", "the types that lose least in this size, measured"),
        ("convert folder/ tuned.gguf -q q4_k_m --lora lora/", "with a LoRA adapter merged into it"),
        ("convert lora/ lora.gguf --base folder/", "a GGUF adapter, to run beside its base"),
        ("convert folder/ tuned/ --extract-lora 16 lora/", "a LoRA adapter out of a fine-tuned model and its base"),
    ),
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What a conversion needs to know, and what only is done, not planned."""
    plan_arguments(parser)
    calibration_arguments(parser.add_argument_group("calibration"))
    parser.add_argument(
        "--modelfile", action="store_true", help="also write Ollama's Modelfile of the GGUF, beside it (NAME.Modelfile)"
    )
    parser.add_argument(
        "--extract-lora", nargs=2, metavar=("RANK", "DIR"),
        help="write an adapter of PEFT that makes of IN, nearly, what OUT is, a fine-tuned model of the same kind",
    )  # fmt: skip


def plan_arguments(parser: argparse.ArgumentParser) -> None:
    """What a conversion needs to know; `plan` has the same."""
    parser.add_argument("source", metavar="IN", type=source_path, help="file or folder to read")
    target_help = (
        "file to write, or folder (name/): a Hugging Face one, with -q it gets a GGUF with a standard name "
        "(default: a GGUF here, called by IN and the type)"
    )
    parser.add_argument("target", metavar="OUT", nargs="?", type=target_name, help=target_help)
    quant_arguments(parser.add_argument_group("quantization"))
    goal_arguments(parser.add_argument_group("a mixture of types to size"))
    model_arguments(parser.add_argument_group("model"))
    _output_arguments(parser.add_argument_group("output"))


def _output_arguments(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add("-f", "--force", action="store_true", help="replace an existing output")
    add(
        "--resume",
        action="store_true",
        help="keep what is done when the run is stopped; the same command then goes on (after a kill it does anyway)",
    )
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
    add(
        "--spread", type=folders, action="extend", default=[], metavar="DIR[,DIR...]",
        help="shards go to these folders on other disks, too, by the room there; links lead to them (may be repeated)",
    )  # fmt: skip
    add("--verify", action="store_true", help="then compare what was written with its source; exit code 41 if wrong")
    threads_argument(add)
    engine_argument(add)


def run(args: argparse.Namespace) -> Outcome:
    """Convert, and verify where that is wanted; or extract an adapter."""
    if args.extract_lora is not None:
        return _extracted(args)
    from converter import engines, pipeline

    started = time.monotonic()
    how, args.calibrate = args.calibrate, None
    found = found_mixture(args, VERB.name, args.target)
    args.calibrate = calibrated(args, how, requests_of(args, found), target_of(args, found))
    requests = requests_of(args, found)
    with engines.opened(args.engine, args.threads) as engine, showing(args, VERB.name) as progress:
        plans = pipeline.convert_several(
            source_of(args),
            target_of(args, found),
            requests,
            force=args.force,
            threads=args.threads,
            progress=progress,
            on_plan=_planned(args, len(requests)),
            resume=args.resume,
            engine=engine,
        )
    seconds = time.monotonic() - started
    proofs = [_verified(args, plan) if args.verify else None for plan in plans]
    files = [_modelfile(args, plan) if args.modelfile else None for plan in plans]

    def data() -> dict[str, Any]:
        each = zip(plans, proofs, files, strict=True)
        made = [
            _data(plan, proof, file) | mixture_data(found) | {"seconds": round(seconds, 3)}
            for plan, proof, file in each
        ]
        return made[0] if len(made) == 1 else {"outputs": made, "seconds": round(seconds, 3)}

    def show() -> None:
        if found is not None and not args.quiet:
            show_mixture(found)
        said: set[Event] = set()
        for plan, proof, file in zip(plans, proofs, files, strict=True):
            if not args.quiet:
                events = (*plan.report.events, *(file.events if file else ()))
                print_events(event for event in events if event not in said)
                said.update(events)
                _show_result(plan, seconds)
                if file:
                    print(f"{printable(str(file.path))}: for ollama create")
            warn(_enlarged(plan))
            if proof is not None and not (args.quiet and proof.passed):
                _show_verdict(proof)
        if not args.quiet:
            show_next_steps(plans[0], files[0].path if files[0] else None)

    passed = all(proof is None or proof.passed for proof in proofs)
    return Outcome(data, show, 0 if passed else FidelityError.exit_code)


def mixture_data(found: Found | None) -> dict[str, Any]:
    """How a mixture was found, as JSON."""
    return {} if found is None else {"mixture": found.as_dict()}


def show_mixture(found: Found) -> None:
    """Its rules, what each adds to the KL divergence, and what the best quant of that size would be."""
    total = found.best.predicted or 1.0
    rows = (
        [
            rule.tensors,
            rule.blocks,
            rule.type,
            f"{rule.bytes or 0:,}",
            f"{rule.kl or 0:.2e}",
            f"{(rule.kl or 0) / total:.1%}",
        ]
        for rule in found.mixture.rules
    )
    print_table(["tensors", "blocks", "type", "bytes", "KL", "share"], rows, right=(3, 4, 5))
    print()
    rows = (
        [each.name + (" (taken)" if each.name == found.taken else ""), f"{each.nbytes:,}", f"{each.predicted:.3e}",
         "-" if each.measured is None else f"{each.measured:.3e}"]
        for each in found.candidates
    )  # fmt: skip
    print_table(["", "bytes", "KL predicted", "KL measured"], rows, right=(1, 2, 3))
    if not found.imatrix:
        print("\nthe importance matrix is left out: without it less is lost here; with --effort 1 or more it may serve")
    print(f"\n{found.how}, {found.seconds:.1f} s\n")


def _enlarged(plan: Plan) -> list[str]:
    """What rows that do not fit the wanted types do to the size, where that is much."""
    bits, wanted = plan.bits_per_weight, plan.wanted_bits_per_weight
    if bits <= 1.1 * wanted:
        return []
    fallbacks = sum(step.choice.fallback_from is not None for step in plan.steps)
    why = f"{fallbacks} of {counted(len(plan.steps), 'tensor')} do not fit the wanted type"
    return [f"{plan.written.name}: {bits:.2f} bits per weight instead of {wanted:.2f}: {why}"]


LONG = 1 << 30  # bytes; what reads or writes less is done before anybody wonders


def _planned(args: argparse.Namespace, count: int) -> Callable[[Plan], None]:
    """What is done with each plan of `count` before anything is written."""
    foretold = _foretold(args, count)

    def planned(plan: Plan) -> None:
        if args.modelfile:
            _refuse_modelfile(plan, args.force)
        foretold(plan)

    return planned


def _refuse_modelfile(plan: Plan, force: bool) -> None:
    if not is_model(plan):
        raise UsageError(
            f"--modelfile: {plan.written}: is no GGUF of a whole model on this machine, of which a Modelfile is\n"
            "`convert modelfile MODEL.gguf` takes a projector by --mmproj and an adapter by --adapter"
        )
    if os.path.lexists(place := modelfile_place(plan)) and not force:
        raise OutputExists(f"{place}: exists; --force replaces it")


def _modelfile(args: argparse.Namespace, plan: Plan) -> Modelfile:
    from converter.housekeeping.modelfile import modelfile

    return modelfile(plan.written, modelfile_place(plan), force=args.force)


def _foretold(args: argparse.Namespace, count: int) -> Callable[[Plan], None]:
    """Says what a long conversion of `count` outputs will take, when all of them are planned."""
    plans: list[Plan] = []

    def planned(plan: Plan) -> None:
        plans.append(plan)
        size = sum(step.read.info.nbytes for step in plan.steps) + sum(each.total_bytes for each in plans)
        if len(plans) == count and size >= LONG and not (args.quiet or args.json):
            from converter.planning.preflight import preflight

            costs = preflight(plans, args.threads)
            say(f"note: {costs.needs}\nnote: {costs.takes}", sys.stderr)
            warn(costs.warnings)

    return planned


def _data(plan: Plan, proof: Verification | None, file: Modelfile | None) -> dict[str, Any]:
    said = plan.as_dict() | ({} if proof is None else {"verification": proof.as_dict()})
    return said | ({} if file is None else {"modelfile": file.as_dict()})


def _extracted(args: argparse.Namespace) -> Outcome:
    from converter.extract import extract_lora
    from converter.request import Request, Source

    rank, folder = args.extract_lora
    if args.target is None:
        raise UsageError("--extract-lora RANK DIR: two models are compared, so that it takes both IN and OUT")
    request = Request(dtype=args.dtype, strict=args.strict)
    if request_of(args) != request or source_of(args) != Source(args.source) or args.verify:
        raise UsageError(
            "--extract-lora: beside it --dtype, --strict, --force and --threads have an effect, others none"
        )
    with showing(args, VERB.name) as progress:
        found = extract_lora(
            args.source,
            args.target,
            file_path(folder),
            _rank(rank),
            request,
            force=args.force,
            threads=args.threads,
            progress=progress,
        )

    def show() -> None:
        if not args.quiet:
            print_events(found.plan.report.events)
            rows = ([fit.module, "x".join(map(str, fit.shape)), f"{fit.relative_error:.2%}"] for fit in found.fits)
            print_table(["module", "shape", "lost"], rows, right=(2,))
            size, missing = human_bytes(found.plan.total_bytes), f"{found.relative_error:.2%}"
            print(f"\n{printable(folder)}: rank {found.rank}, {size}, {missing} of the difference is lost")

    return Outcome(found.as_dict, show)


def _rank(text: str) -> int:
    try:
        return positive(text)
    except argparse.ArgumentTypeError as error:
        raise UsageError(f"--extract-lora {text}: {error}; it is RANK and the folder to write") from error


def _verified(args: argparse.Namespace, plan: Plan) -> Verification:
    from converter.request import Source
    from converter.verify.verifier import verify

    with showing(args, VERB.name, "verify") as progress:
        target = Source(plan.written, args.target_type)
        return verify(source_of(args), target, plan.request, threads=args.threads, progress=progress)


def _show_result(plan: Plan, seconds: float) -> None:
    counts: dict[str, int] = {}
    for step in plan.steps:
        counts[step.type] = counts.get(step.type, 0) + 1
    types = ", ".join(f"{count} {name}" for name, count in sorted(counts.items(), key=lambda item: -item[1]))
    name, more = plan.layout.folder, f" ({counted(len(plan.layout.files), 'file')})"
    if name is None:
        name = plan.layout.files[0].path
        more = f" and {len(plan.layout.files) - 1} more" if len(plan.layout.files) > 1 else ""
    size, bits = human_bytes(plan.total_bytes), plan.bits_per_weight
    print(f"{printable(str(name))}{more}: {size}, {bits:.2f} bits per weight, {seconds:.2f} s")
    print(f"{counted(len(plan.steps), 'tensor')} ({types})")


def _show_verdict(result: Verification) -> None:
    for finding in result.findings:
        if finding.failed:
            say(f"failed: {printable(str(finding))}", sys.stderr)
    facts = result.summary()
    error = f"{facts['sqnr_db']:.2f} dB SQNR" if facts["nmse"] else "no error"
    same = f"{facts['reproduced']} of {facts['tensors']} tensors are byte for byte what the encoder makes"
    say(f"{'verified' if result.passed else 'NOT what a correct conversion makes'}: {same}, {error}")
