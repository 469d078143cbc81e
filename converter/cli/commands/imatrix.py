"""`convert imatrix MODEL -o OUT`: importance matrices, measured, added up, looked at."""

from __future__ import annotations

import argparse
from functools import partial
from typing import TYPE_CHECKING

from converter.cli.arguments import file_path, positive, report_argument, source_path, threads_argument
from converter.cli.console import print_events
from converter.cli.progress import showing
from converter.cli.verbs import Outcome, Verb
from converter.errors import UsageError
from converter.text import counted, human_seconds, printable

if TYPE_CHECKING:
    from converter.calibration.matrices import Looked, Written
    from converter.reports.progress import Nothing

VERB = Verb(
    name="imatrix",
    group="convert",
    arguments="[MODEL]",
    help="importance matrix of a model: measure it, merge, look at one",
    description=(
        "Measure how much each column of a model's weights matters, as llama-imatrix does: llama.cpp, or transformers, "
        "reads a text, or what the model writes itself, and squares of what each weight is multiplied by are added up. "
        "--merge adds up files that are there, --statistics shows one."
    ),
    examples=(
        ("convert imatrix llama-folder/ -o imatrix.gguf --text calibration.txt", "as llama-imatrix measures it"),
        ("convert imatrix model.gguf -o imatrix.gguf --calibrate own", "with text that the model writes itself"),
        ("convert imatrix --merge first.gguf second.dat -o both.gguf", "two of one model, added up"),
        ("convert imatrix --statistics imatrix.gguf", "every weight and layer in figures"),
        ("convert imatrix --statistics imatrix.gguf --report imatrix.html", "and in plots"),
    ),
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The model, what it reads, and what else may be done with such files."""
    add = parser.add_argument
    add("source", metavar="MODEL", nargs="?", type=source_path, help="GGUF, or whatever can be converted to it")
    add("-o", "--out", metavar="OUT", type=file_path, help="file to write: .gguf, or .dat of the older kind")
    add("--merge", metavar="FILE", nargs="+", type=source_path, default=[],
        help="add these up; with MODEL, add what is measured to them")  # fmt: skip
    add("--statistics", metavar="FILE", type=source_path, help="show what is in this importance matrix")
    _reading_arguments(parser.add_argument_group("what the model reads"))
    group = parser.add_argument_group("model").add_argument
    group("--from", dest="source_type", metavar="FORMAT", help="format of MODEL, where its content does not tell")
    group("--config", type=source_path, metavar="DIR", help="folder to take config.json and tokenizer from")
    group("--runtime", choices=("llama.cpp", "transformers"),
        help="what runs it (default: llama.cpp, else, for a Hugging Face folder, transformers)")  # fmt: skip
    group(
        "--run-as", metavar="TYPE", help="type of the temporary GGUF that is run (as MODEL is; q8_0 takes half of BF16)"
    )
    report_argument(add, ".html .md .json or .txt")
    add("-f", "--force", action="store_true", help="replace an existing output")
    threads_argument(add)


def _reading_arguments(group: argparse._ArgumentGroup) -> None:
    from converter.request import TEXTS

    which = group.add_mutually_exclusive_group()
    which.add_argument(
        "--text", type=file_path, metavar="FILE", help="a text, UTF-8; of the kind that it will be used for"
    )
    which.add_argument("--calibrate", choices=TEXTS, help="text that the model writes itself, or tokens by lot")
    add = group.add_argument
    add("--chunks", type=positive, metavar="N", help="how many at most (default: all of a text, else 16)")
    add("--context", type=positive, metavar="N", help="tokens of a chunk (512, or what the model was made for)")
    add("--special", action="store_true", help="special tokens that are written out in the text are these tokens")
    add("--process-output", action="store_true", help="also of the output's weight, as llama-imatrix has it")
    add("--complete", action="store_true",
        help="unused experts get the others' mean, blocks that are not run what those before have")  # fmt: skip


def run(args: argparse.Namespace) -> Outcome:
    """Measure, add up or look."""
    from converter.calibration.matrices import look
    from converter.reports.files import check_reports, report, write_report

    _check(args)
    inputs = [path for path in (args.source, args.statistics, *args.merge) if path is not None]
    check_reports("imatrix", args.report, inputs=inputs)
    if args.statistics is not None:
        looked = look(args.statistics)
        outcome = _statistics(looked)
    else:
        written = _written(args)
        looked = look(written.path, written.importance)
        outcome = Outcome(written.as_dict, partial(_show, written, args.quiet))
    for path in args.report:
        write_report("imatrix", path, looked)
    return outcome._replace(report=partial(report, "imatrix", looked))


def _check(args: argparse.Namespace) -> None:
    if args.statistics is not None:
        if args.source is not None or args.merge or args.out is not None:
            raise UsageError("--statistics FILE: looks at a file, and takes neither MODEL, --merge nor -o")
        return
    if args.source is None and not args.merge:
        raise UsageError("MODEL, --merge FILE ... or --statistics FILE: one of them is needed")
    if args.out is None:
        raise UsageError("-o OUT: names the file to write, .gguf or .dat")
    reads = args.text is not None or args.calibrate is not None
    if args.source is not None and not reads:
        raise UsageError("what the model reads: --text FILE, --calibrate own or --calibrate random")
    if args.source is None and reads:
        raise UsageError("--text, --calibrate: are read by MODEL, which is not given")


def _written(args: argparse.Namespace) -> Written:
    from converter.calibration.matrices import Asked, make, merge
    from converter.calibration.texts import CONTEXT
    from converter.request import Source

    if args.source is None:
        return merge(args.merge, args.out, chunk_size=args.context or CONTEXT, force=args.force)
    names = (
        "text", "calibrate", "chunks", "context", "special", "process_output", "complete", "run_as", "runtime"
    )  # fmt: skip
    asked = Asked(**{name: getattr(args, name) for name in names})
    source = Source(args.source, args.source_type, args.config)

    def stage(name: str) -> Nothing:
        return showing(args, VERB.name, name)

    return make(source, args.out, asked, earlier=args.merge, force=args.force, threads=args.threads, showing=stage)


def _statistics(looked: Looked) -> Outcome:
    from converter.reports import importance

    return Outcome(looked.as_dict, lambda: print(importance.text(looked)))


def _show(written: Written, quiet: bool) -> None:
    if quiet:
        return
    print_events(written.events)
    entries, chunks = counted(len(written.importance.entries), "weight"), counted(written.importance.chunks, "chunk")
    print(f"{printable(str(written.path))}: {entries}, {chunks} of {written.importance.chunk_size} tokens")
    if written.made is not None:
        tokens, seconds = written.made.tokens, written.seconds
        rate = f"{tokens / max(seconds, 1e-9):,.0f} a second"
        print(f"{written.made.runtime}: {tokens:,} tokens in {human_seconds(seconds)}, {rate}")
