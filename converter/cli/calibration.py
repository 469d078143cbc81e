"""What `convert --calibrate` does before it converts: a calibration is made where none is there."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from converter.address import is_elsewhere
from converter.cli.arguments import file_path, positive, source_of
from converter.cli.colour import say
from converter.cli.progress import showing
from converter.errors import UsageError
from converter.request import CALIBRATION_TOKENS

if TYPE_CHECKING:
    from converter.planning.plan import Plan
    from converter.request import Request

LONG = 60  # seconds; what takes less is done before anybody wonders


def calibration_arguments(group: argparse._ArgumentGroup) -> None:
    """How a calibration is made, and where it is kept."""
    add = group.add_argument
    add(
        "--calibrate-to", type=file_path, metavar="FILE",
        help="where what --calibrate found is kept, for other quants and for `verify` "
        "(default: IN.TEXT.calibration.safetensors beside OUT)",
    )  # fmt: skip
    add(
        "--calibrate-tokens", type=positive, default=CALIBRATION_TOKENS, metavar="N",
        help=f"tokens to read at most ({CALIBRATION_TOKENS})",
    )  # fmt: skip


def calibrated(
    args: argparse.Namespace, how: str | Path | None, requests: Sequence[Request], target: str
) -> Path | None:
    """The calibration that --calibrate asks for, made of the model if it is not there, for `requests` without it.

    Raises:
        UsageError: nothing is encoded that it could serve.
        ConverterError: as `calibration.feedback.calibrate`, `pipeline.plan`.
    """
    kept: Path | None = args.calibrate_to
    if how is None or not is_made(how):
        if kept is not None:
            raise UsageError(f"--calibrate-to {kept}: keeps what --calibrate own, random or TEXT finds; say one")
        return None if how is None else Path(how)
    from converter.calibration.feedback import calibrate, default_path

    source, folder = source_of(args), _folder(args, how, requests, target)
    path = kept or default_path(source, how, folder)
    if is_elsewhere(path):
        raise UsageError(f"--calibrate {how}: what it finds is kept on this machine; --calibrate-to FILE says where")
    with showing(args, "convert", "calibrate") as progress:
        calibrate(
            source, path, how, tokens=args.calibrate_tokens, force=args.force, threads=args.threads, progress=progress
        )
    return path


def is_made(how: str | Path) -> bool:
    """Whether --calibrate asks for a calibration to be made; else it names one."""
    from converter.quant.feedback import is_calibration

    return isinstance(how, str) or not is_calibration(how)


def foretold(args: argparse.Namespace, how: str | Path, plan: Plan) -> None:
    """Say what making a calibration will take, where that is long."""
    from converter.calibration.costs import costs

    found = costs(plan, how, args.calibrate_tokens)
    if found.seconds >= LONG and not (args.quiet or args.json):
        say(f"note: {found.words}", sys.stderr)


def _folder(args: argparse.Namespace, how: str | Path, requests: Sequence[Request], target: str) -> Path:
    """Where the output will be, which is possible and of use for it: this is known before an hour is spent.

    Raises:
        UsageError: a calibration has no effect on it.
        ConverterError: what makes it impossible, as its kind.
    """
    from converter import pipeline
    from converter.tensors.kernels import FEEDBACK

    plans = pipeline.plan_several(source_of(args), target, requests)
    with plans[0].checkpoint:
        if not all(plan.route.target == "gguf" and any(s.type in FEEDBACK for s in plan.steps) for plan in plans):
            raise UsageError(f"--calibrate {how}: makes good what blocks of a GGUF lose (-q q4_k_m); there are none")
        for plan in plans:
            pipeline.refuse_existing(plan.layout, args.force, None)
        foretold(args, how, plans[0])
        return plans[0].written.parent
