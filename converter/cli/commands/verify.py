"""`convert verify A B`: what a conversion did, and whether that is right."""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from converter.cli.arguments import (
    PRECISIONS,
    behaviour_arguments,
    file_path,
    model_arguments,
    quant_arguments,
    report_argument,
    request_of,
    share,
    size,
    source_of,
    source_path,
    text_of,
    threads_argument,
)
from converter.cli.colour import say
from converter.cli.console import write_reports
from converter.cli.progress import showing
from converter.cli.verbs import Outcome, Verb
from converter.errors import ConverterError, FidelityError, Interrupted, UsageError

if TYPE_CHECKING:
    from converter.verify.gate import Metric
    from converter.verify.results import Verification

VERB = Verb(
    name="verify",
    group="prove what was made",
    arguments="A B",
    help="what a conversion did to every tensor, and whether that is right",
    description="Compare a converted model with its source: tensors, metadata, tokenizer, and what the models do.",
    examples=(
        ("convert verify folder/ model.gguf --report report.html", "prove a model that is there; exit code 0, or 41"),
        (
            "convert verify a.safetensors b.gguf --imatrix i.gguf",
            "with its importance matrix: bytes are compared",
        ),
        ("convert verify a/ b.gguf --runtime --text eval.txt --max-kl 0.05", "what the models do, and a threshold"),
        ("convert verify a/ b.gguf --report report.html --report junit.xml", "reports; the extension tells which"),
        ("convert verify a/ b.gguf --gate verify.toml --baseline last.json", "thresholds; no worse than last time"),
        ("convert verify --round-trip a.safetensors --via out.gguf", "there and back"),
        ("convert verify b.gguf --attestation b.intoto.json", "is it the file that `convert certify` spoke of?"),
    ),
)

# Reports that say of which bytes they were made.
HASHING = (".html", ".json")
# Of how many tensors, the worst first, a page shows the values before and after.
DISTRIBUTIONS = 8


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Both models, what is compared, and what is good enough."""
    from converter.verify.gate import MODEL_METRICS, TENSOR_METRICS

    add = parser.add_argument
    add("source", metavar="A", type=source_path, help="what it was made of: file or folder of any format")
    add("target", metavar="B", type=source_path, nargs="?", help="what was made")
    add("--round-trip", action="store_true", help="convert A there and back instead, and compare it with itself")
    add(
        "--via",
        action=_Via,
        default="source",
        metavar="NAME",
        help="file to go through (out.gguf; may be repeated), or precision of the implied intermediate (f16)",
    )
    parser.set_defaults(files=())
    add(
        "--attestation", type=file_path, metavar="FILE",
        help="compare hashes with what `convert certify` wrote, and nothing else; A alone is the model",
    )  # fmt: skip
    add("--no-encode", action="store_true", help="do not encode the source again: faster, sees no single damaged block")
    add("--strict", action="store_true", help="fail on what is only worth knowing, too, as on settings that B lacks")
    add("--any-types", action="store_true", help="types other than the recipe's are told, and do not fail")
    threads_argument(add)
    behaviour = parser.add_argument_group("behaviour")
    behaviour_arguments(behaviour, "run both on the same text: logits, KL divergence, perplexity")
    _gate_arguments(parser.add_argument_group("gate"), [*TENSOR_METRICS, *MODEL_METRICS])
    quant_arguments(parser.add_argument_group("how B was made, where it does not tell"), via=False)
    model_arguments(parser.add_argument_group("model"))


class _Via(argparse.Action):
    """--via has two meanings: a precision goes to `via`, the name of a file to `files`."""

    def __call__(
        self, parser: object, namespace: argparse.Namespace, values: Any, option_string: str | None = None
    ) -> None:
        if values in PRECISIONS:
            namespace.via = values
        else:
            namespace.files = (*namespace.files, values)


def _gate_arguments(group: argparse._ArgumentGroup, metrics: Sequence[Metric]) -> None:
    add = group.add_argument
    add("--gate", type=file_path, metavar="FILE", help="thresholds by type, tensor and metric (verify.toml)")
    add("--baseline", type=file_path, metavar="REPORT", help="fail where a figure is worse than in this JSON report")
    add("--tolerance", type=share, default=0.01, metavar="SHARE", help="how much worse is no worse (0.01, or 1%%)")
    report_argument(add, ".json .md .xml .html or .txt")
    for metric in metrics:
        flag = "--" + metric.name.replace("_", "-")
        kind = size if metric.unit == "bytes" else float
        add(flag, type=kind, metavar=(metric.unit or "X").upper(), help=metric.help)


def run(args: argparse.Namespace) -> Outcome:
    """Verify; exit code 0, or 41 where something failed."""
    from converter.reports import verification
    from converter.reports.files import check_reports, report, write_report

    started = time.monotonic()
    _check(args)
    check_reports("verify", args.report, inputs=filter(None, [args.source, args.target]))
    try:
        result = _judged(args, _found(args))
        result = _signed(args, replace(result, seconds=time.monotonic() - started))
    except (ConverterError, OSError) as error:
        if not isinstance(error, UsageError | Interrupted):  # who reads reports sees it there, and not an old one
            broken = _unread(args, error)
            write_reports("verify", args.report, broken)
        raise
    for path in args.report:
        write_report("verify", path, result)

    def show() -> None:
        if not args.quiet or not result.passed:
            say(verification.text(result))

    return Outcome(
        result.as_dict, show, 0 if result.passed else FidelityError.exit_code, report=partial(report, "verify", result)
    )


def _unread(args: argparse.Namespace, error: Exception) -> Verification:
    """What there is to report where a side could not be read."""
    from converter.findings import Finding
    from converter.verify.results import Verification

    target = str(args.target or args.source)
    message = "; ".join(str(error).removeprefix(f"{target}: ").splitlines())
    finding = Finding("structure", target, message)
    return _signed(args, Verification(str(args.source), target, (), (finding,), read=False))


def _signed(args: argparse.Namespace, result: Verification) -> Verification:
    """With how it came about; files are hashed for reports that are kept."""
    from converter.verify.provenance import provenance

    kept = any(path.suffix.lower() in HASHING for path in args.report)
    return replace(result, provenance=provenance(args.command, result.files if kept and not args.round_trip else ()))


def _check(args: argparse.Namespace) -> None:
    if args.round_trip and args.target is not None:
        raise UsageError("--round-trip takes one model; what it goes through is named by --via")
    if args.round_trip and args.runtime:
        raise UsageError("--runtime compares two models that are there; --round-trip keeps none")
    if args.attestation is not None and (args.round_trip or args.runtime or args.files):
        raise UsageError("--attestation compares hashes alone; leave out --round-trip, --via and --runtime")
    if args.attestation is None and not args.round_trip and (args.target is None or args.files):
        raise UsageError("give two models to compare, or --round-trip IN --via NAME")


def _found(args: argparse.Namespace) -> Verification:
    if args.attestation is not None:
        return _attested(args)
    return _round_trip(args) if args.round_trip else _verified(args)


def _attested(args: argparse.Namespace) -> Verification:
    from converter.certify import check_attestation
    from converter.request import Source

    source, target = (None, source_of(args)) if args.target is None else (source_of(args), Source(args.target))
    with showing(args, VERB.name) as progress:
        return check_attestation(target, args.attestation, source, threads=args.threads, progress=progress)


def _verified(args: argparse.Namespace) -> Verification:
    from converter.request import Source
    from converter.verify.behaviour import with_behaviour
    from converter.verify.verifier import verify

    page = any(path.suffix.lower() == ".html" for path in args.report)
    with showing(args, VERB.name) as progress:
        result = verify(
            source_of(args), Source(args.target, args.target_type), request_of(args), encode=not args.no_encode,
            any_types=args.any_types, threads=args.threads, progress=progress,
            distributions=DISTRIBUTIONS if page else 0,
        )  # fmt: skip
    if not args.runtime:
        return result
    text = text_of(args.text)
    return with_behaviour(result, text, tokens=args.tokens, context=args.context, threads=args.threads)


def _round_trip(args: argparse.Namespace) -> Verification:
    from converter.verify.verifier import round_trip

    with showing(args, VERB.name) as progress:
        return round_trip(source_of(args), args.files, request_of(args), threads=args.threads, progress=progress)


def _judged(args: argparse.Namespace, result: Verification) -> Verification:
    from converter.verify.gate import MODEL_METRICS, TENSOR_METRICS, Gate, gated, read_baseline, read_gate

    gate = read_gate(args.gate) if args.gate is not None else Gate()
    gate = gate.with_flags({metric.name: getattr(args, metric.name) for metric in (*TENSOR_METRICS, *MODEL_METRICS)})
    baseline = read_baseline(args.baseline) if args.baseline is not None else None
    judged = gated(result, gate, baseline, args.tolerance)
    return judged.strict() if args.strict else judged
