"""`convert verify A B`: what a conversion did, and whether that is right."""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from converter.cli.console import (
    PRECISIONS,
    Parser,
    ProgressBar,
    common_arguments,
    model_arguments,
    positive,
    quant_arguments,
    request_of,
    source_of,
)
from converter.errors import FidelityError, UsageError

if TYPE_CHECKING:
    from converter.findings import Finding
    from converter.verify.measure import Measured
    from converter.verify.results import Verification

EXAMPLES = """\
examples:
  convert verify llama-folder/ llama-q4_k_m.gguf                   exit code 0, or 41 where something is wrong
  convert verify a.safetensors b.gguf --imatrix i.gguf             with the matrix it was made with: bytes are compared
  convert verify a/ b.gguf --runtime --text eval.txt --max-kl 0.05 what the models do, and a threshold
  convert verify a/ b.gguf --report report.html --report junit.xml reports; the extension tells which
  convert verify a/ b.gguf --gate verify.toml --baseline last.json thresholds of a file; no worse than last time
  convert verify --round-trip a.safetensors --via out.gguf         there and back
"""


def parser() -> argparse.ArgumentParser:
    """The command's arguments."""
    from converter.verify.gate import MODEL_METRICS, TENSOR_METRICS

    made = Parser(
        prog="convert verify", epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Compare a converted model with its source: tensors, metadata, tokenizer, and what the models do.",
    )  # fmt: skip
    made.add_argument("source", metavar="A", type=Path, help="what it was made of: file or folder of any format")
    made.add_argument("target", metavar="B", type=Path, nargs="?", help="what was made")
    add = made.add_argument
    add("--round-trip", action="store_true", help="convert A there and back instead, and compare it with itself")
    add(
        "--via",
        action="append",
        default=[],
        metavar="NAME",
        help="file to go through (out.gguf; may be repeated), or precision of the implied intermediate (f16)",
    )
    add("--no-encode", action="store_true", help="do not encode the source again: faster, sees no single damaged block")
    add("--any-types", action="store_true", help="types other than the recipe's are told, and do not fail")
    add("-j", "--threads", type=positive, metavar="N", help="workers (default: all processors)")
    _runtime_arguments(made.add_argument_group("behaviour"))
    _gate_arguments(made.add_argument_group("gate"), [*TENSOR_METRICS, *MODEL_METRICS])
    quant_arguments(made.add_argument_group("how B was made, where it does not tell"), via=False)
    model_arguments(made.add_argument_group("model"))
    common_arguments(made)
    return made


def _runtime_arguments(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add("--runtime", action="store_true", help="run both on the same text: logits, KL divergence, perplexity")
    add("--text", type=Path, metavar="FILE", help="the text (default: a small built-in one)")
    add("--tokens", type=positive, default=512, metavar="N", help="tokens to read at most (512)")
    add("--context", type=positive, default=512, metavar="N", help="tokens of a window (512)")


def _gate_arguments(group: argparse._ArgumentGroup, metrics: Sequence[object]) -> None:
    add = group.add_argument
    add("--gate", type=Path, metavar="FILE", help="thresholds by type, tensor and metric (verify.toml)")
    add("--baseline", type=Path, metavar="REPORT", help="fail where a figure is worse than in this JSON report")
    add("--tolerance", type=float, default=0.01, metavar="SHARE", help="how much worse is no worse (0.01)")
    add("--report", type=Path, action="append", default=[], metavar="FILE", help="write .json .md .xml .html or .txt")
    for metric in metrics:
        name = str(getattr(metric, "name", ""))
        unit = getattr(metric, "unit", "") or "X"
        add("--" + name.replace("_", "-"), type=float, metavar=unit.upper(), help=str(getattr(metric, "help", "")))


def run(argv: Sequence[str]) -> int:
    """Run the command; returns the exit code: 0, or 41 where something failed."""
    from converter.reports.distributions import worst_distributions
    from converter.reports.files import check_report, write_report
    from converter.reports.verification import Histograms, as_json, text

    args = parser().parse_args(argv)
    _check(args)
    for path in args.report:
        check_report(path)
    histograms: dict[str, Histograms] = {"": {}}
    wanted = any(path.suffix.lower() == ".html" for path in args.report)

    def keep(measured: list[Measured]) -> None:
        if wanted:
            histograms[""] = worst_distributions(measured)

    with ProgressBar(args.quiet or args.json) as progress:
        result = _round_trip(args, progress) if args.round_trip else _verify(args, progress, keep)
        if args.runtime:
            result = with_behaviour(result, args.source, args.target, args)
    result = gated(result, args)
    for path in args.report:
        write_report(path, result, histograms[""])
    if args.json:
        print(as_json(result))
    elif not args.quiet or not result.passed:
        print(text(result))
    return 0 if result.passed else FidelityError.exit_code


def _check(args: argparse.Namespace) -> None:
    args.files = [name for name in args.via if name not in PRECISIONS]
    args.via = next((name for name in reversed(args.via) if name in PRECISIONS), "source")
    if args.round_trip and args.target is not None:
        raise UsageError("--round-trip takes one model; what it goes through is named by --via")
    if args.round_trip and args.runtime:
        raise UsageError("--runtime compares two models that are there; --round-trip keeps none")
    if not args.round_trip and (args.target is None or args.files):
        raise UsageError("give two models to compare, or --round-trip IN --via NAME")


def _verify(args: argparse.Namespace, progress: object, keep: object) -> Verification:
    from converter.request import Source
    from converter.verify.verifier import verify

    return verify(
        source_of(args), Source(args.target, args.target_type), request_of(args),
        encode=not args.no_encode, any_types=args.any_types, threads=args.threads, progress=progress, while_open=keep,  # type: ignore[arg-type]
    )  # fmt: skip


def _round_trip(args: argparse.Namespace, progress: object) -> Verification:
    from converter.verify.verifier import round_trip

    return round_trip(
        source_of(args), args.files, request_of(args), threads=args.threads, progress=progress,  # type: ignore[arg-type]
    )  # fmt: skip


def with_behaviour(result: Verification, source: Path, target: Path, args: argparse.Namespace) -> Verification:
    """The result with what both models do with the text; tokenizers that cut it differently are a finding."""
    from converter.findings import Finding
    from converter.runtimes.behaviour import behaviour, probe_ids

    text = args.text.read_text("utf-8") if args.text is not None else None
    findings: list[Finding] = []
    wanted, got = probe_ids(source, text), probe_ids(target, text)
    if wanted is not None and got is not None and wanted != got:
        pairs = enumerate(zip(wanted, got, strict=False))
        at = next((i for i, (a, b) in pairs if a != b), min(len(wanted), len(got)))
        findings.append(Finding("probe", "tokenizer", f"cuts the text differently from token {at} on"))
    found = behaviour(source, target, text, tokens=args.tokens, context=args.context, threads=args.threads)
    if found.mean_kl is not None and not math.isfinite(found.mean_kl):
        findings.append(Finding("behaviour", "logits", "are not finite"))
    return replace(result, behaviour=found, findings=(*result.findings, *findings))


def gated(result: Verification, args: argparse.Namespace) -> Verification:
    """The result with the findings of thresholds and baseline."""
    from converter.verify.gate import (
        MODEL_METRICS,
        TENSOR_METRICS,
        Gate,
        against_baseline,
        judge,
        read_baseline,
        read_gate,
    )

    gate = read_gate(args.gate) if args.gate is not None else Gate()
    gate = gate.with_flags({metric.name: getattr(args, metric.name) for metric in (*TENSOR_METRICS, *MODEL_METRICS)})
    found = judge(result, gate)
    if args.baseline is not None:
        found += against_baseline(result, read_baseline(args.baseline), args.tolerance)
    return replace(result, findings=(*result.findings, *found))
