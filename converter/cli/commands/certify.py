"""`convert certify SOURCE FILE`: which bytes of a GGUF follow from its source, as a statement that others can sign."""

from __future__ import annotations

import argparse
from functools import partial
from typing import Any

from converter.cli.arguments import (
    file_path,
    model_arguments,
    report_argument,
    request_of,
    source_of,
    source_path,
    threads_argument,
)
from converter.cli.colour import say
from converter.cli.progress import showing
from converter.cli.verbs import Outcome, Verb
from converter.text import printable

VERB = Verb(
    name="certify",
    group="prove what was made",
    arguments="SOURCE FILE",
    help="which bytes of a GGUF follow from its source: an attestation",
    description=(
        "Derive a GGUF from its source again, whether this program or llama.cpp's tools made it, and compare every "
        "byte of every tensor, every key, tokenizer and chat template. -o writes an in-toto statement with SLSA "
        "provenance, for a tool that signs; of a file that is not from this source none is written. "
        "Exit code 0, 42 or 43."
    ),
    examples=(
        ("convert certify llama/ llama-Q4_K_M.gguf", "does it follow? which blocks do not?"),
        ("convert certify llama/ llama-IQ2_M.gguf --imatrix imatrix.gguf", "with its importance matrix"),
        ("convert certify llama/ llama-Q4_K_M.gguf -o llama.intoto.json --report page.html", "what can be signed"),
    ),
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Both sides, what the file was made with, and what is written."""
    add = parser.add_argument
    add("source", metavar="SOURCE", type=source_path, help="what it is said to be made of: file or folder")
    add("target", metavar="FILE", type=source_path, help="the GGUF, or the first of its shards")
    add("-o", "--out", type=file_path, metavar="ATTESTATION", help="write the statement (JSON) to this file")
    add("-f", "--force", action="store_true", help="replace an existing attestation")
    add("--timestamp", action="store_true", help="say in it when it was made; without, its bytes are always the same")
    report_argument(add, ".json .md .html or .txt")
    threads_argument(add)
    own = parser.add_argument_group("how FILE was made, where it does not tell").add_argument
    own("--imatrix", type=source_path, metavar="FILE", help="importance matrix that its encoder followed")
    own(
        "--calibrate",
        type=file_path,
        metavar="FILE",
        help="calibration that its encoder followed; by default beside FILE",
    )
    for name in ("include", "exclude"):
        own(f"--{name}-weights", action="append", default=[], metavar="PART", help="as it was said to `convert`")
    parser.set_defaults(tensor_type=[])
    model_arguments(parser.add_argument_group("model"))


def run(args: argparse.Namespace) -> Outcome:
    """Certify; exit code 0, or 42 or 43 where the file is not proven."""
    from converter.certify import attestation, certify
    from converter.certify.results import NOT, PROVEN
    from converter.reports import certificate
    from converter.reports.files import check_reports, report, write_report
    from converter.request import Source

    check_reports("certify", args.report, inputs=[args.source, args.target])
    if args.out is not None:
        attestation.check_writable(args.out, args.force)
    with showing(args, VERB.name) as progress:
        target = Source(args.target, args.target_type)
        found = certify(source_of(args), target, request_of(args), threads=args.threads, progress=progress)
    written = None
    if args.out is not None and found.verdict != NOT:
        attestation.write(found, args.out, finished=_now() if args.timestamp else None)
        written = str(args.out)
    for path in args.report:
        write_report("certify", path, found)

    def data() -> dict[str, Any]:
        return found.as_dict() | {"attestation": written}

    def show() -> None:
        if not args.quiet or found.verdict != PROVEN:
            say(certificate.text(found))
        if written and not args.quiet:
            print(f"{printable(written)}: to be signed")
        elif args.out is not None and not written:
            say(f"{printable(str(args.out))}: not written; a statement would say what is not so")

    return Outcome(data, show, 0 if found.error is None else found.error.exit_code, partial(report, "certify", found))


def _now() -> str:
    from datetime import UTC, datetime

    return datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
