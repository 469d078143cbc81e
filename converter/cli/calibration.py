"""What `convert --calibrate` does before it converts: a calibration is made where none is there."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from converter.address import is_elsewhere
from converter.cli.arguments import file_path, positive, source_of
from converter.cli.progress import showing
from converter.errors import UsageError

if TYPE_CHECKING:
    from converter.request import Request

TOKENS = 8192


def calibration_arguments(group: argparse._ArgumentGroup) -> None:
    """How a calibration is made, and where it is kept."""
    add = group.add_argument
    add(
        "--calibrate-to", type=file_path, metavar="FILE",
        help="where what --calibrate found is kept, for other quants and for `verify` "
        "(default: IN.calibration.safetensors beside OUT)",
    )  # fmt: skip
    add("--calibrate-tokens", type=positive, default=TOKENS, metavar="N", help=f"tokens to read at most ({TOKENS})")


def calibrated(
    args: argparse.Namespace, how: str | Path | None, requests: Sequence[Request], target: str
) -> Path | None:
    """The calibration that --calibrate asks for, made of the model if it is not there, for `requests` without it.

    Raises:
        UsageError: nothing is encoded that it could serve.
        ConverterError: as `calibration.feedback.calibrate`, `pipeline.plan`.
    """
    from converter.quant.feedback import is_calibration

    kept: Path | None = args.calibrate_to
    if how is None or (isinstance(how, Path) and is_calibration(how)):
        if kept is not None:
            raise UsageError(f"--calibrate-to {kept}: keeps what --calibrate own, random or TEXT finds; say one")
        return how
    from converter.calibration.feedback import calibrate, default_path

    source, folder = source_of(args), _folder(args, how, requests, target)
    path = kept or default_path(source, folder)
    if is_elsewhere(path):
        raise UsageError(f"--calibrate {how}: what it finds is kept on this machine; --calibrate-to FILE says where")
    with showing(args, "convert", "calibrate") as progress:
        calibrate(
            source, path, how, tokens=args.calibrate_tokens, force=args.force, threads=args.threads, progress=progress
        )
    return path


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
        return plans[0].written.parent
