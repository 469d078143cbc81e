"""`convert plan IN OUT`: what a conversion would do, tensor by tensor."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from converter.cli.arguments import found_mixture, requests_of, source_of, target_of
from converter.cli.calibration import calibration_arguments, is_made
from converter.cli.commands import convert
from converter.cli.console import print_events, print_table, warn
from converter.cli.verbs import Outcome, Verb
from converter.text import counted, human_bytes, printable

if TYPE_CHECKING:
    from converter.planning.plan import Plan
    from converter.storage.shares import Share

VERB = Verb(
    name="plan",
    group="convert",
    arguments="IN [OUT]",
    help="the type of every tensor, sizes and memory; reads no weights, writes nothing",
    description="Show what a conversion would do; reads no weights, writes nothing.",
    examples=(("convert plan llama-folder/ llama.gguf -q q5_k_m", "what would happen, tensor by tensor"),),
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Those of a conversion, as far as they say what it makes."""
    convert.plan_arguments(parser)
    calibration_arguments(parser.add_argument_group("calibration"))


def run(args: argparse.Namespace) -> Outcome:
    """Plan, and let go of the source again; a mixture to size is measured for it."""
    from converter import pipeline
    from converter.calibration.costs import costs as calibration_costs
    from converter.planning.preflight import preflight

    how = args.calibrate
    if how is not None and is_made(how):
        args.calibrate = None
    found = found_mixture(args, VERB.name)
    plans = pipeline.plan_several(source_of(args), target_of(args, found), requests_of(args, found), foreseen=True)
    plans[0].checkpoint.close()
    before = None if args.calibrate == how else calibration_costs(plans[0], how, args.calibrate_tokens)
    costs = preflight(plans, args.threads, before)

    def show() -> None:
        if found is not None:
            convert.show_mixture(found)
        for plan in plans:
            _show(plan)
            if not args.quiet:
                print_events(plan.report.events)
        for share in costs.disks if len(costs.disks) > 1 else ():
            print(f"{printable(str(share.folder))}: {_told(share)}")
        print(f"{costs.needs}\n{costs.takes}")
        warn(costs.warnings)

    def data() -> dict[str, Any]:
        made = [plan.as_dict() for plan in plans]
        return (
            (made[0] if len(made) == 1 else {"outputs": made})
            | convert.mixture_data(found)
            | {"preflight": costs.as_dict()}
        )

    return Outcome(data, show)


def _told(share: Share) -> str:
    """What goes to one of several disks."""
    size = f"{human_bytes(share.nbytes)} ({human_bytes(max(share.free, 0))} free)"
    return f"{len(share.files)} file(s), {size}: {', '.join(map(printable, share.names)) or 'nothing'}"


def _show(plan: Plan) -> None:
    arrived = any(step.bound is not None for step in plan.steps)
    rows = (
        [
            step.name,
            "x".join(map(str, step.shape)) or "scalar",
            step.source_type,
            step.type,
            f"{step.bytes:,}",
            *([str(step.bound or "")] if arrived else []),
            step.rule + ("; imatrix" if step.imatrix else ""),
        ]
        for step in plan.steps
    )
    titles = ["tensor", "shape", "from", "to", "bytes", *(["codes"] if arrived else []), "rule"]
    print_table(titles, rows, right=(4,))
    print(
        f"\n{counted(len(plan.layout.files), 'file')}, {plan.total_bytes:,} bytes ({human_bytes(plan.total_bytes)}), "
        f"{plan.n_parameters:,} parameters, {plan.bits_per_weight:.2f} bits per weight"
    )
