"""The only functions that see the whole route: open, plan, save."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from converter import fill, planning
from converter.checkpoint import Checkpoint
from converter.errors import ConverterError, LossyError, OutputExists, SameFile, about
from converter.fill import ProgressCallback
from converter.formats.base import Layout
from converter.general import default_file_name
from converter.graph import PathLike, open_checkpoint, source_format, target_format, writers
from converter.planning import Plan, Request


def plan(
    source: PathLike,
    target: PathLike,
    request: Request | None = None,
    *,
    source_type: str | None = None,
    target_type: str | None = None,
    config: PathLike | None = None,
) -> Plan:
    """Everything about a conversion but the conversion; reads no tensor byte, writes nothing.

    The plan keeps its source open: run it with `run`, or close it by `plan.checkpoint.close()`.

    Raises:
        ConverterError: whatever makes it impossible, as its kind.
    """
    with about(Path(source)):
        return _plan(Path(source), Path(target), request or Request(), source_type, target_type, config)


def _plan(
    source: Path,
    target: Path,
    request: Request,
    source_type: str | None,
    target_type: str | None,
    config: PathLike | None,
) -> Plan:
    unnamed = target.is_dir() and not any(target.suffix.lower() in each.extensions for each in writers())
    if unnamed and target_type is None:
        target_type = "gguf"
    writer = target_format(target, target_type)
    checkpoint = open_checkpoint(source, format=source_type, config=config, key=request.key)
    try:
        reader = source_format(source, source_type)
        if unnamed and writer.name == "gguf":
            draft = planning.build(checkpoint, reader, target / "model", writer, request)
            target = target / default_file_name(draft.checkpoint.config, (request.quant or _own_type(draft)).upper())
        made = planning.build(checkpoint, reader, target, writer, request)
        _refuse_same(made.layout, made.checkpoint)
    except BaseException:
        checkpoint.close()
        raise
    return made


def _own_type(plan: Plan) -> str:
    return max(plan.steps, key=lambda step: step.bytes).type if plan.steps else "F32"


def convert(
    source: PathLike,
    target: PathLike,
    request: Request | None = None,
    *,
    source_type: str | None = None,
    target_type: str | None = None,
    config: PathLike | None = None,
    force: bool = False,
    threads: int | None = None,
    progress: ProgressCallback | None = None,
    on_plan: Callable[[Plan], None] | None = None,
) -> Plan:
    """Convert `source` to `target`; returns the plan that was carried out, its report completed.

    Args:
        source: file or folder to read.
        target: file to write; a folder gets a GGUF named by the GGUF naming convention.
        request: quantization and everything else that decides the result.
        source_type, target_type: formats by name, where content and extension do not tell.
        config: folder to take config.json and tokenizer from.
        force: replace an existing output.
        threads: workers; by default as many as there are processors. The result does not depend on it.
        progress: called after every slab with a `Progress`; returning False cancels.
        on_plan: called with the plan before anything is written.

    Raises:
        ConverterError: as its kind, with nothing written and an old output untouched.
    """
    made = plan(source, target, request, source_type=source_type, target_type=target_type, config=config)
    with made.checkpoint:
        run(made, force=force, threads=threads, progress=progress, on_plan=on_plan)
    return made


def run(
    plan: Plan,
    *,
    force: bool = False,
    threads: int | None = None,
    progress: ProgressCallback | None = None,
    on_plan: Callable[[Plan], None] | None = None,
) -> None:
    """Carry out a plan. Arguments and errors are those of `convert`."""
    def stop() -> ConverterError | None:
        if not plan.watch.tripped:
            return None
        return LossyError(f"{plan.watch.events()[0]}\nrefused under --strict; nothing was written")

    with about(plan.source):
        _refuse_existing(plan.layout, force)
        fill.check_room(plan.layout)
        if on_plan is not None:
            on_plan(plan)
        fill.write(plan.layout, threads=threads, progress=progress, stop=stop, check=plan.checkpoint.check)
    plan.report.extend(plan.watch.events())


def _refuse_same(layout: Layout, checkpoint: Checkpoint) -> None:
    read = {checkpoint.path, *checkpoint.files, *checkpoint.assets.values()}
    for file in layout.files:
        if file.path.exists() and any(source.exists() and file.path.samefile(source) for source in read):
            raise SameFile(f"{file.path}: output and input are the same file; choose another name")


def _refuse_existing(layout: Layout, force: bool) -> None:
    for file in layout.files:
        if file.path.exists() and not file.path.is_file():
            raise OutputExists(f"{file.path}: is a {'folder' if file.path.is_dir() else 'device or pipe'}, not a file")
        if os.path.lexists(file.path) and not force:
            raise OutputExists(f"{file.path}: exists already; --force replaces it")
