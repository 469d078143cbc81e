"""Build a plan: all passes, one after the other."""

from __future__ import annotations

from pathlib import Path

from converter.checkpoint import Checkpoint
from converter.formats.base import Format
from converter.planning.draft import Draft, begin, run
from converter.planning.passes import PASSES
from converter.planning.plan import Plan
from converter.request import Request, Source


def build(
    opened: Checkpoint,
    path: Path,
    target: Format,
    request: Request,
    *,
    source: Source | None = None,
    unnamed: bool = False,
    foreseen: bool = False,
) -> Plan:
    """Decide everything about a conversion of `opened`, which came from `source`; other arguments are `begin`'s.

    Raises:
        ConverterError: whatever makes it impossible, as its kind.
    """
    made = run(begin(opened, target, request, path, unnamed=unnamed, foreseen=foreseen), PASSES)
    return finished(made, source or Source(opened.path))


def finished(draft: Draft, source: Source) -> Plan:
    """The plan that a draft became."""
    assert draft.layout is not None  # the last pass made it
    return Plan(
        source=source,
        target=draft.path,
        request=draft.request.replace(format=draft.target.name),
        route=draft.route,
        steps=draft.steps,
        checkpoint=draft.checkpoint,
        layout=draft.layout,
        report=draft.report,
        watch=draft.watch,
        n_parameters=draft.packed.n_elements if draft.packed else draft.checkpoint.n_elements,
        prepare=draft.calibration.run if draft.calibration is not None else None,
    )
