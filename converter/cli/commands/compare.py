"""`convert compare IN --quants a,b,c`: what each quant would cost and lose, so that a person can choose."""

from __future__ import annotations

import argparse
import sys
from functools import partial
from typing import TYPE_CHECKING

from converter.cli.arguments import (
    behaviour_arguments,
    model_arguments,
    positive,
    quant_arguments,
    report_argument,
    request_of,
    size,
    source_of,
    source_path,
    text_of,
    threads_argument,
)
from converter.cli.console import print_events
from converter.cli.progress import showing
from converter.cli.verbs import Outcome, Verb
from converter.errors import FidelityError, UsageError
from converter.text import human_seconds

if TYPE_CHECKING:
    from converter.compare import Comparison

VERB = Verb(
    name="compare",
    group="convert",
    arguments="IN",
    help="size against error of several quants, so that you can choose; writes nothing",
    description=(
        "Size against error of several quants of one model: one read of it, nothing is written. "
        "Exit code 41 where none is within --fit or --fit-memory."
    ),
    examples=(
        ("convert compare llama-folder/ --quants q4_k_m,q6_k", "size against error, from one read"),
        ("convert compare llama-folder/", "the usual quants"),
        ("convert compare llama-folder/ --quants all --sample", "all there are, from a part of the rows"),
        ("convert compare llama-folder/ --quants q4_k_m --effort 0,1,2,3", "what each effort buys"),
        ("convert compare llama-folder/ --fit 5GB", "and the best whose file has at most 5 GB"),
        (
            "convert compare llama-folder/ --fit-memory 8GB --for-context 8192",
            "the best that runs in 8 GB",
        ),
        ("convert compare llama-folder/ --imatrix i.gguf --report quants.html", "with a report"),
        ("convert compare llama-folder/ --runtime --text eval.txt", "also perplexity and KL, by llama.cpp"),
    ),
)

#: Seconds from which on it is told before how long measuring takes.
LONG = 10
SAMPLE = 16  # one slab of rows of so many, where --sample says no number


def efforts(text: str) -> tuple[int, ...]:
    """`0,2,3`."""
    levels = text.split(",")
    if not all(level.isdecimal() for level in levels):
        raise argparse.ArgumentTypeError(f"{text!r} is no list of levels such as 0,2")
    return tuple(dict.fromkeys(int(level) for level in levels))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The model, the quants, and what the choice depends on."""
    parser.add_argument("source", metavar="IN", type=source_path, help="file or folder to read")
    _choice_arguments(parser.add_argument_group("choice"))
    behaviour = parser.add_argument_group("behaviour")
    behaviour_arguments(behaviour, "convert each into a temporary folder and run it by llama.cpp")
    quant_arguments(parser.add_argument_group("quantization, the same for all"), quant=False)
    model_arguments(parser.add_argument_group("model"))


def _choice_arguments(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    # What a conversion has one of (-q) is here a list.
    add(
        "-q",
        "--quant",
        "--quants",
        dest="quants",
        metavar="A,B,C",
        help="quants to compare, or `all` (default: Q8_0 and the usual ones from Q6_K to Q2_K)",
    )
    add(
        "--effort",
        "--efforts",
        dest="efforts",
        type=efforts,
        default=(0,),
        metavar="A,B,C",
        help="each quant with each of these (0 to 3): what trying harder buys at the same size (default: 0)",
    )
    add("--fit", type=size, metavar="SIZE", help="name the best quant whose file has at most this (6G, 500MB)")
    add("--fit-memory", type=size, metavar="SIZE", help="name the best quant that a machine of this memory runs")
    add("--reserve", type=size, metavar="SIZE", help="memory that stays free (a fifth of it, at most 2 GB)")
    add("--for-context", type=positive, metavar="N", help="tokens that memory is estimated for (4096)")
    add("--sample", type=positive, nargs="?", const=SAMPLE, default=1, metavar="N",
        help=f"measure one part of the rows in N ({SAMPLE}): sooner, nearly the same")  # fmt: skip
    report_argument(add, ".html .md .json or .txt")
    threads_argument(add)


def run(args: argparse.Namespace) -> Outcome:
    """Compare quants of one model; exit code 41 where none is within the limits that were given."""
    from converter.compare import Choice
    from converter.reports import comparison
    from converter.reports.files import check_reports, report, write_report
    from converter.verify.provenance import provenance

    _check(args)
    check_reports("compare", args.report, inputs=[args.source])
    choice = Choice(_compared(args), args.fit, args.fit_memory, args.reserve, provenance(args.command))
    for path in args.report:
        write_report("compare", path, choice)

    def show() -> None:
        if not args.quiet:
            print_events(choice.comparison.events)
        print(comparison.text(choice))

    code = 0 if choice.fits else FidelityError.exit_code
    return Outcome(choice.as_dict, show, code, report=partial(report, "compare", choice))


def _check(args: argparse.Namespace) -> None:
    if args.target_type not in (None, "gguf"):
        raise UsageError(f"--to {args.target_type}: quants are compared as GGUF files")
    if args.text is not None and not args.runtime:
        raise UsageError(f"--text {args.text}: is read by --runtime, which is not given")
    if args.reserve is not None and args.fit_memory is None:
        raise UsageError("--reserve: is of the memory that --fit-memory names, which is not given")


def _compared(args: argparse.Namespace) -> Comparison:
    from converter.compare import CONTEXT, QUANTS, compare, with_behaviour

    quants = QUANTS if args.quants is None else [name for name in args.quants.split(",") if name.strip()]
    source, request, text = source_of(args), request_of(args), text_of(args.text)

    def before(seconds: float) -> None:
        if seconds >= LONG and not (args.quiet or args.json):
            sooner = "" if args.sample > 1 else "; --sample takes a part of it"
            print(f"note: measuring takes at least {human_seconds(seconds)}{sooner}", file=sys.stderr)

    with showing(args, VERB.name) as progress:
        found = compare(
            source, quants, request, efforts=args.efforts, context=args.for_context or CONTEXT, sample=args.sample,
            threads=args.threads, progress=progress, before=before,
        )  # fmt: skip
    if not args.runtime:
        return found
    with showing(args, VERB.name) as progress:
        return with_behaviour(
            found,
            request,
            source=source,
            text=text,
            tokens=args.tokens,
            window=args.context,
            threads=args.threads,
            progress=progress,
        )
