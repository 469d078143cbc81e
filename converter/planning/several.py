"""Several outputs of one source: what the model is, is found out once, types and files for each quant."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from converter.checkpoint import Checkpoint
from converter.errors import UsageError
from converter.events import Report
from converter.formats.base import Format
from converter.planning.asked import check
from converter.planning.build import finished
from converter.planning.draft import Draft, begin, run
from converter.planning.model import meaning
from converter.planning.passes import ASKED, FILES, MODEL
from converter.planning.plan import Plan
from converter.planning.types import choose, open_calibration, open_matrix, weigh
from converter.request import Request, Source
from converter.storage.layout import Layout


def build_several(
    opened: Checkpoint,
    path: Path,
    target: Format,
    requests: Sequence[Request],
    source: Source,
    *,
    unnamed: bool,
    foreseen: bool = False,
) -> list[Plan]:
    """A plan for each of `requests`, which differ in `quant` alone; other arguments are `build`'s.

    The `{quant}` in a path's name is that of each.

    Raises:
        UsageError: two of them would be one file.
        ConverterError: as `build`.
    """

    def begun(request: Request) -> Draft:
        return begin(opened, target, request, path, unnamed=unnamed, foreseen=foreseen)

    first = run(begun(requests[0]), (*ASKED, *MODEL, open_matrix, open_calibration))
    models = {meaning(requests[0].types): first}
    plans: list[Plan] = []
    for request in requests:
        key = meaning(request.types)
        if key not in models:  # codes of the source stay in some quants, say, and not in others
            other = run(begun(request), (*ASKED, *MODEL))
            models[key] = replace(other, matrix=first.matrix, feedback=first.feedback, weighted=first.weighted)
        plans.append(finished(_own(models[key], request, first=not plans), source))
    names = [file.path for plan in plans for file in plan.layout.files]
    if len(set(names)) < len(names):
        raise UsageError(f"{path}: several quants need several names; write {{quant}} in it, or name a folder")
    return plans


def _own(common: Draft, request: Request, *, first: bool) -> Draft:
    """What becomes of the model for one request."""
    report = Report(strict=request.output.strict)
    report.extend(list(common.report.events))
    path = common.path.with_name(common.path.name.replace("{quant}", _quant(request).upper()))
    watch = common.watch if first else common.watch.beside()
    return run(replace(common, request=request, report=report, path=path, watch=watch), (check, choose, weigh, *FILES))


def _quant(request: Request) -> str:
    return request.types.quant or ""


def together(plans: Sequence[Plan]) -> Layout:
    """All files of several plans, to be written as one, rows of the same tensor at a time."""
    if len(plans) == 1:
        return plans[0].layout
    files = tuple(file for plan in plans for file in plan.layout.files)
    return Layout(files, together=True, spread=plans[0].layout.spread)
