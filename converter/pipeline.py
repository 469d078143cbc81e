"""The only functions that see the whole route: open, plan, save."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol, Unpack

from converter.address import is_address, is_elsewhere, parse, place, shown
from converter.checkpoint import Checkpoint
from converter.errors import (
    Cancelled,
    ConverterError,
    LossyError,
    MissingPart,
    OutputError,
    OutputExists,
    SameFile,
    UsageError,
    about,
)
from converter.events import Note
from converter.formats.registry import open_checkpoint, target_format, writers
from converter.mapping.recovered import open_model
from converter.planning.build import build
from converter.planning.plan import Plan
from converter.planning.several import build_several, together
from converter.remote.outlet import Outlet, outlet, refuse_unwritable
from converter.request import Fields, PathLike, Request, Source
from converter.storage import output
from converter.storage.layout import Layout
from converter.storage.slabs import ProgressCallback, Token, until
from converter.telemetry import log_events, span


def plan(source: PathLike | Source, target: PathLike, request: Request | None = None, **given: Unpack[Fields]) -> Plan:
    """Everything about a conversion but the conversion; reads no tensor byte, writes nothing.

    The plan keeps its source open: run it with `run`, or close it by `plan.checkpoint.close()`. `given` are fields of
    the request: `plan("llama/", "llama.gguf", quant="q4_k_m")`.

    Raises:
        ConverterError: whatever makes it impossible, as its kind.
        TypeError: a request has no such field.
    """
    return plan_several(source, target, [_requested(request, given)])[0]


def _requested(request: Request | None, given: Fields) -> Request:
    return (request or Request()).replace(**given)


def plan_several(
    source: PathLike | Source, target: PathLike, requests: Sequence[Request], *, foreseen: bool = False
) -> list[Plan]:
    """The plans of several outputs of one source, which is opened once; the requests differ in `quant` alone.

    Args:
        source: as for `convert`.
        target: a folder, or a file whose name has `{quant}` in it.
        requests: one for each output.
        foreseen: plan for an importance matrix that a type needs, though none is given; such a plan only tells.

    Raises:
        ConverterError: whatever makes one of them impossible, as its kind.
    """
    source, requests = Source.of(source), [each.settled() for each in requests]
    request = requests[0]
    with about(source.path):
        path, folder = _target(target), _is_folder(target)
        wanted = request.output.format
        if wanted is None and folder:
            wanted = "hf" if request.types.quant is None else "gguf"
        writer = target_format(path, wanted)
        unnamed = folder and not writer.folder
        if unnamed and not writer.in_folder and writer.name != "gguf":
            raise MissingPart(f"{target}: a {writer.name} file needs a name")
        with span("open") as told:
            opened = open_checkpoint(source) if request.model.tensors_only else open_model(source, request.model.arch)
            told.set_attribute("converter.format", opened.format)
        try:
            with span("plan", format=writer.name, quant=_quants(requests)) as told:
                if len(requests) == 1:
                    plans = [build(opened, path, writer, request, source=source, unnamed=unnamed, foreseen=foreseen)]
                else:
                    plans = build_several(opened, path, writer, requests, source, unnamed=unnamed, foreseen=foreseen)
                told.set_attribute("converter.bytes", _nbytes(plans))
            opened = plans[0].checkpoint
            for made in plans:
                _refuse_elsewhere(made.layout, path)
                refuse_same(made.layout, opened)
        except BaseException:
            with opened:  # closed, and a source that was changed explains the error
                raise
        return plans


def _quants(requests: Sequence[Request]) -> str | None:
    return ",".join(request.types.quant for request in requests if request.types.quant) or None


def _nbytes(plans: Sequence[Plan]) -> int:
    return sum(plan.total_bytes for plan in plans)


def _target(target: PathLike) -> Path:
    """The path of a target, or that by which an address goes through the program.

    Raises:
        UsageError: an address that cannot be meant.
    """
    try:
        if isinstance(target, str) and is_address(target):
            refuse_unwritable(parse(target))
        return place(target)
    except ValueError as error:
        raise UsageError(str(error)) from None


def _is_folder(target: PathLike) -> bool:
    """Whether a target is a folder: it is one, or its name says so by a slash at the end."""
    if isinstance(target, str) and is_address(target):
        return parse(target).folder
    if os.fspath(target).endswith(("/", os.sep)):
        return True
    known = any(Path(target).suffix.lower() in each.extensions for each in writers())
    return Path(target).is_dir() and not known


class Asked(NamedTuple):
    """What `plan_several` is asked for."""

    source: Source
    target: str
    requests: tuple[Request, ...]

    def absolute(self) -> Asked:
        """The same with paths that do not depend on where a process stands."""
        slash = "/" * self.target.endswith(("/", os.sep))
        target = self.target if is_address(self.target) else os.path.abspath(self.target) + slash
        return Asked(self.source.absolute(), target, tuple(each.absolute() for each in self.requests))


class Engine(Protocol):
    """Workers in other processes, or on other machines (`converter.engines`)."""

    def fill(
        self,
        asked: Asked,
        plans: Sequence[Plan],
        prepared: output.Prepared,
        progress: ProgressCallback | None,
        stop: Callable[[], ConverterError | None],
    ) -> None:
        """Fill all slabs of `prepared`, which is the layout of `plans`, which are those of what was `asked`."""


def _given_out(engine: Engine, asked: Asked, plans: Sequence[Plan]) -> output.Filler:
    return lambda prepared, progress, stop: engine.fill(asked, plans, prepared, progress, stop)


def convert(
    source: PathLike | Source,
    target: PathLike,
    request: Request | None = None,
    *,
    force: bool = False,
    threads: int | None = None,
    progress: ProgressCallback | None = None,
    on_plan: Callable[[Plan], None] | None = None,
    cancel: Token | None = None,
    resume: bool = False,
    engine: Engine | None = None,
    **given: Unpack[Fields],
) -> Plan:
    """Convert `source` to `target`; returns the plan that was carried out, its report completed.

    Args:
        source: file or folder to read; a `Source` where its content does not tell everything.
        target: file or folder to write, or its address (docs/remote.md). A folder (it exists, or its name ends in a
            slash) becomes a Hugging Face folder; with a quantization or "gguf" as type it gets a GGUF named by the GGUF
            naming convention.
        request: quantization and everything else that decides the result; `given` are fields of it, so that
            `convert("llama/", "llama.gguf", quant="q4_k_m")` needs none.
        force: replace an existing output.
        threads: workers; by default as many as there are processors. The result does not depend on it.
        progress: called after every slab with a `Progress`, from any thread; returning False cancels.
        on_plan: called with the plan before anything is written.
        cancel: an event, of `threading` or the like; once it is set, from anywhere, the run ends after a slab.
        resume: what is done stays where the run is stopped, and the same conversion goes on with it later. What a run
            that was killed left is gone on with in any case.
        engine: workers elsewhere that fill the files (`converter.engines.opened`), in the place of `threads`.

    Raises:
        Cancelled: by `cancel` or `progress`.
        ConverterError: as its kind, with nothing written and an old output untouched.
        TypeError: a request has no such field.
    """
    requests = [_requested(request, given)]
    return convert_several(
        source,
        target,
        requests,
        force=force,
        threads=threads,
        progress=progress,
        on_plan=on_plan,
        cancel=cancel,
        resume=resume,
        engine=engine,
    )[0]


def convert_several(
    source: PathLike | Source,
    target: PathLike,
    requests: Sequence[Request],
    *,
    force: bool = False,
    threads: int | None = None,
    progress: ProgressCallback | None = None,
    on_plan: Callable[[Plan], None] | None = None,
    cancel: Token | None = None,
    resume: bool = False,
    engine: Engine | None = None,
) -> list[Plan]:
    """Several quants of one source, every part of which is read and widened once; arguments are `plan_several`'s and
    `convert`'s.

    Raises:
        ConverterError: as its kind, with nothing written and old outputs untouched.
    """
    with span("convert", quant=_quants(requests)) as told:
        _refuse_cancelled(cancel)
        asked = Asked(Source.of(source), os.fspath(target), tuple(requests))
        if engine is not None and resume:
            raise UsageError("--resume: workers of an engine keep no journal; leave one of the two out")
        if engine is not None:  # whoever works on it may stand elsewhere
            asked = asked.absolute()
        plans = plan_several(*asked)
        filler = None if engine is None else _given_out(engine, asked, plans)
        with plans[0].checkpoint:
            run_several(
                plans, force=force, threads=threads, progress=progress, on_plan=on_plan, cancel=cancel, resume=resume,
                filler=filler,
            )  # fmt: skip
        told.set_attribute("converter.format", plans[0].route.target)
        told.set_attribute("converter.bytes", _nbytes(plans))
        return plans


def run(
    plan: Plan,
    *,
    force: bool = False,
    threads: int | None = None,
    progress: ProgressCallback | None = None,
    on_plan: Callable[[Plan], None] | None = None,
    cancel: Token | None = None,
    resume: bool = False,
) -> None:
    """Carry out a plan. Arguments and errors are those of `convert`."""
    run_several([plan], force=force, threads=threads, progress=progress, on_plan=on_plan, cancel=cancel, resume=resume)


def run_several(
    plans: Sequence[Plan],
    *,
    force: bool = False,
    threads: int | None = None,
    progress: ProgressCallback | None = None,
    on_plan: Callable[[Plan], None] | None = None,
    cancel: Token | None = None,
    resume: bool = False,
    filler: output.Filler | None = None,
) -> None:
    """Carry out plans of `plan_several`: all of their files are written, or none. Other arguments are `convert`'s.

    `filler` is what fills them in the place of `threads`.
    """
    first, opened = plans[0], plans[0].checkpoint.opened

    def claimed(found: Sequence[Note]) -> None:
        first.report.extend(list(found))
        log_events(event for plan in plans for event in plan.report.events)
        if on_plan is not None:
            for plan in plans:
                on_plan(plan)
        for plan in plans:
            if plan.prepare is not None:
                plan.prepare()
        _refuse_cancelled(cancel)

    def stop() -> ConverterError | None:
        tripped = next((plan.watch for plan in plans if plan.watch.tripped), None)
        if tripped is None:
            return opened.lost()
        return LossyError(f"{tripped.events()[0]}\nrefused under --strict; nothing was written")

    facts = {"bytes": _nbytes(plans), "format": first.route.target, "quant": _quants([each.request for each in plans])}
    with about(first.source.path), span("write", **facts):
        key = " ".join(plan.key() for plan in plans)
        target = outlet(together(plans), replace=force, key=key, keep=resume)
        told = until(cancel, progress)
        write(
            first.checkpoint, target, force=force, threads=threads, progress=told, claimed=claimed, stop=stop,
            filler=filler,
        )  # fmt: skip
    for plan in plans:
        plan.report.extend(plan.watch.events())
        log_events(plan.watch.events())


def _refuse_cancelled(cancel: Token | None) -> None:
    if cancel is not None and cancel.is_set():
        raise Cancelled("cancelled")


def write(
    checkpoint: Checkpoint,
    target: Outlet,
    *,
    force: bool,
    threads: int | None,
    progress: ProgressCallback | None,
    claimed: Callable[[Sequence[Note]], None],
    stop: Callable[[], ConverterError | None] | None = None,
    check: Callable[[], None] | None = None,
    filler: output.Filler | None = None,
) -> None:
    """Write the layout of `target`, which was made of `checkpoint`, whole or not at all.

    Args:
        force, threads, progress: as for `convert`.
        claimed: called with what dead runs had left, when the place is ours and nothing is written yet.
        stop, check, filler: as for `output.write`; by default, sources that were lost or changed end the run.

    Raises:
        ConverterError: as `convert`.
    """
    layout, opened = target.layout, checkpoint.opened
    stop, check = stop or opened.lost, check or checkpoint.check
    try:
        found = [Note(each) for each in target.claim()]
        refuse_existing(layout, force, target.lock)
        target.check_room()
        claimed(found)
        output.write(layout, target, threads=threads, progress=progress, stop=stop, check=check, filler=filler)
    except Exception as error:
        opened.explain(error)
        raise
    finally:
        target.abandon()


def _refuse_elsewhere(layout: Layout, target: Path) -> None:
    """A writer, a plugin's say, that would write where nobody asked it to."""
    place = layout.files[0].path.parent if layout.folder is None else layout.folder
    if place not in (target, target.parent):
        raise OutputError(f"{place}: is not where {target} was to go; its writer is wrong")


def refuse_same(layout: Layout, checkpoint: Checkpoint) -> None:
    """Refuse to write what is read.

    Raises:
        SameFile: as said.
    """
    read = {checkpoint.path, *checkpoint.files, *checkpoint.assets.values()}
    addresses = {shown(str(path)) for path in read if is_elsewhere(path)}
    for file in layout.files:
        if shown(str(file.path)) in addresses:
            raise SameFile(f"{file.path}: output and input are the same file; choose another name")
        if file.path.exists() and any(source.exists() and file.path.samefile(source) for source in read):
            raise SameFile(f"{file.path}: output and input are the same file; choose another name")


def refuse_filled(folder: Path, force: bool, lock: Path | None = None) -> None:
    """Refuse to write into a folder that has something in it, but for a run's lock.

    Raises:
        OutputExists: as said, or it is no folder.
    """
    if not os.path.lexists(folder):
        return
    if not folder.is_dir():
        raise OutputExists(f"{folder}: is a file, not a folder")
    if not force and any(path != lock for path in folder.iterdir()):
        raise OutputExists(f"{folder}: is not empty; --force replaces files of the same names and keeps the others")


def refuse_existing(layout: Layout, force: bool, lock: Path | None) -> None:
    """Refuse what is there already, unless `force` allows to replace it; what is no file is refused in any case.

    Raises:
        OutputExists: as said.
    """
    folder = layout.folder
    if folder is not None:
        refuse_filled(folder, force, lock)
    for file in layout.files:
        if folder is not None and file.path.parent != folder and file.path.parent.is_symlink():
            raise OutputExists(f"{file.path.parent}: is a link, which leads out of the folder; remove it")
        if file.path.exists() and not file.path.is_file():
            raise OutputExists(f"{file.path}: is a {'folder' if file.path.is_dir() else 'device or pipe'}, not a file")
        if os.path.lexists(file.path) and not force:
            raise OutputExists(f"{file.path}: exists already; --force replaces it")
