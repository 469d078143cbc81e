"""`convert batch MANIFEST`, or `convert batch IN ... --out NAME`: many models, several outputs of each."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from converter.address import is_address, shown
from converter.cli.arguments import (
    engine_argument,
    file_path,
    model_arguments,
    positive,
    quant_arguments,
    report_argument,
    size,
    source_name,
    target_name,
    threads_argument,
)
from converter.cli.progress import showing
from converter.cli.verbs import Outcome, Verb
from converter.errors import UsageError

if TYPE_CHECKING:
    from converter.batch.manifest import Job
    from converter.batch.run import Result

VERB = Verb(
    name="batch",
    group="convert",
    arguments="MANIFEST",
    help="many models, several outputs of each; goes on after errors, skips what is done",
    description="Convert many models, by a manifest (TOML, JSON, YAML: docs/batch.md) or all of one pattern alike.",
    examples=(
        ("convert batch models.toml --jobs 2 --report report.xml", "what a manifest lists, with a report for CI"),
        ("convert batch 'models/*' --out 'out/{name}-{quant}.gguf' -q q4_k_m,q8_0", "all models, two quants of each"),
    ),
)
MANIFESTS = (".toml", ".json", ".yaml", ".yml")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What is to be done, and how; options that decide outputs are for what a manifest does not say."""
    add = parser.add_argument
    add("sources", metavar="MANIFEST", nargs="+", type=source_name, help="a manifest, or models and patterns of them")
    add("--out", metavar="NAME", type=target_name, help="output of each model, with {name} and {quant} in it")
    add("--jobs", type=positive, default=1, metavar="N", help="models at a time (1)")
    add("--memory", type=size, metavar="SIZE", help="memory that they may take together")
    add("--retries", type=int, default=0, metavar="N", help="try again where reading or writing failed")
    add("--fail-fast", action="store_true", help="the first error ends all")
    add("--dry-run", action="store_true", help="plan all, write nothing")
    add("--sums", action="store_true", help="write SHA256SUMS beside the outputs")
    add("--card", action="store_true", help="write a README.md with a table of the outputs beside them")
    add("--verify", action="store_true", help="compare every output with its source")
    add("--log", type=file_path, metavar="DIR", help="what was said of each model, in a file of its name")
    add("--resume", action="store_true", help="keep what is done of a model when the run is stopped")
    add("-f", "--force", action="store_true", help="make all outputs anew, and replace what is there")
    add("--strict", action="store_true", help="fail on any loss")
    report_argument(add, ".json .md .xml or .txt")
    threads_argument(add)
    engine_argument(add)
    quant_arguments(parser.add_argument_group("quantization"))
    model_arguments(parser.add_argument_group("model"))


def run(args: argparse.Namespace) -> Outcome:
    """Do all jobs, or plan them."""
    from converter import engines
    from converter.batch import run as batch
    from converter.reports import batch as shown
    from converter.reports.files import check_reports, report, write_report

    check_reports("batch", args.report, inputs=[Path(each) for each in args.sources if not is_address(each)])
    jobs = _jobs(args)
    if args.card and (there := next((job.target for job in jobs if is_address(job.target)), None)):
        raise UsageError(f"{there}: a card is written beside files of this machine; leave --card out")
    names = ("threads", "memory", "retries", "force", "fail_fast", "sums", "resume")
    wishes = batch.Wishes(parallel=args.jobs, **{name: getattr(args, name) for name in names})
    if args.dry_run:
        result = batch.plan(jobs, wishes)
    else:
        count, shower = 0, showing(args, VERB.name)

        def told(each: Result) -> None:
            nonlocal count
            count += 1
            if args.log is not None:
                _log(args.log, each)
            words = f"{shown.place(each)}{each.error}" if each.error is not None else each.status
            shower.job(each.job.name, each.status, f"[{count}/{len(jobs)}] {each.job.name}: {words}")

        with engines.opened(args.engine, args.threads) as engine, shower as progress:
            result = batch.run(jobs, replace(wishes, engine=engine), progress=progress, told=told)
    for path in args.report:
        write_report("batch", path, result)
    if args.card and not args.dry_run:
        _write_cards(result.results)

    def show() -> None:
        if not (args.quiet and result.passed):
            print(shown.text(result))

    return Outcome(result.as_dict, show, result.exit_code, report=partial(report, "batch", result))


def _write_cards(results: Sequence[Result]) -> None:
    """A model card in every folder of outputs that are files."""
    from converter.reports.files import write_report

    folders: dict[Path, list[Result]] = {}
    for each in results:
        if each.made and each.error is None and each.made[0].path.is_file():
            folders.setdefault(each.made[0].path.parent, []).append(each)
    for folder, own in folders.items():
        write_report("card", folder / "README.md", own)


def _jobs(args: argparse.Namespace) -> list[Job]:
    """What the manifest lists, or a job for every model.

    Raises:
        UsageError: neither.
    """
    from converter.batch import manifest

    defaults = _defaults(args)
    first = Path(args.sources[0])
    if len(args.sources) == 1 and first.suffix.lower() in MANIFESTS and first.is_file():
        return manifest.read(first, defaults)
    if args.out is None:
        raise UsageError("--out NAME says what becomes of each model; a manifest ends in .toml, .json or .yaml")
    return [job for source in args.sources for job in manifest.jobs_of(defaults | {"source": source}, Path())]


def _defaults(args: argparse.Namespace) -> dict[str, Any]:
    """Options that were given, as keys of a manifest."""
    from converter.request import FIELDS, Request

    usual = Request()
    given = vars(args) | {"format": args.target_type}
    found = {
        name: given[name]
        for name, part in FIELDS.items()
        if given.get(name) not in (None, getattr(getattr(usual, part), name))
    }
    found |= {"tensor_types": dict(args.tensor_type)} if args.tensor_type else {}
    found |= {name: given[name] for name in ("out", "config", "base", "key") if given.get(name) is not None}
    found |= {"verify": True} if args.verify else {}
    if args.lora:
        found["adapters"] = [str(folder) for folder, _ in args.lora]
    return {name: str(Path(each).absolute()) if isinstance(each, Path) else each for name, each in found.items()}


def _log(folder: Path, result: Result) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    lines = [
        f"{result.status} in {result.seconds:.1f} s",
        *result.events,
        *map(str, (each.path for each in result.made)),
    ]
    lines += [str(result.error)] if result.error is not None else []
    (folder / f"{result.job.name}.log").write_text(shown("\n".join(lines)) + "\n", "utf-8", "backslashreplace")
