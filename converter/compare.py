"""Quants of one model side by side: size against error, from one read of the source and without an output file.

    found = compare("llama-folder/", ["q4_k_m", "q6_k", "q8_0"])
    found.best(fit=5 * 10**9).name

Each quant is planned as a conversion would plan it, from the same source mapped once. Then every slab of rows is read
and decoded once, and encoded once for each different type that any of the quants gives the tensor: most quants share
most of their types. What is measured is what `convert verify` measures of the file that `convert` would have written.
"""

from __future__ import annotations

import math
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from converter import pipeline
from converter.errors import Cancelled, QuantizationError, UsageError, about
from converter.events import Event, Note, Report, TypeFallback
from converter.extras import package
from converter.formats.registry import source_format, target_format
from converter.inspection import running_memory
from converter.mapping.recovered import open_model
from converter.metadata import number_of, text_of
from converter.planning.build import finished
from converter.planning.draft import Draft, begin, run
from converter.planning.passes import ASKED, FILES, MODEL
from converter.planning.plan import Plan, Step
from converter.planning.preflight import decoding, encoding
from converter.planning.types import choose, open_calibration, open_matrix, weigh
from converter.quant.recipes import RECIPES, recipe
from converter.request import PathLike, Request, Source
from converter.runtimes.behaviour import Behaviour, behaviour
from converter.storage import slabs
from converter.storage.json import finite
from converter.storage.slabs import Progress, ProgressCallback
from converter.tensors import kernels
from converter.tensors.dtypes import DType, dtype
from converter.tensors.encode import Importance, encode_rows
from converter.tensors.kernels import NO_DIFFERENCES, Differences
from converter.tensors.streams import values
from converter.verify.provenance import Provenance
from converter.verify.results import sqnr_db
from converter.workers import default_threads

#: Version of the JSON report's schema; raised when a field changes its meaning or goes away.
SCHEMA = 1
#: What is compared where nobody says: the usual steps from nearly exact to very small.
QUANTS = ("Q8_0", "Q6_K", "Q5_K_M", "Q4_K_M", "Q3_K_M", "Q2_K")
ALL = "all"  # in place of names: every quant that can be made of the source
CONTEXT = 4096  # tokens that the memory estimate is for
#: Of the memory that there is, what stays free for the system, by default: a share of it, at most so many bytes.
RESERVE_SHARE, RESERVE_MOST = 0.2, 2 * 10**9
_TARGET = Path("quant.gguf")  # never written; a layout wants a name

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Quant:
    """One quant of the source, as the GGUF file that it would be.

    `bytes` is the size of that file and `bits_per_weight` that of its tensors; `noise` and `energy` are the sums of
    squared errors and of squared values of the source, over the elements that are finite on both sides. `memory` is
    the estimate of what it takes to run it in bytes, None where the source is no language model. `nonfinite` counts
    values that became NaN or infinite, `types` the tensors of each type; `events` is what the plan has to say. `name`
    is that of the `quant`, and of the `effort` where it is not 0.
    """

    name: str
    bytes: int
    bits_per_weight: float
    noise: float
    energy: float
    max_abs: float
    worst_tensor: str | None
    worst_sqnr_db: float
    nonfinite: int
    types: Mapping[str, int]
    memory: int | None = None
    events: tuple[Event, ...] = ()
    behaviour: Behaviour | None = None
    quant: str = ""
    effort: int = 0

    @property
    def nmse(self) -> float:
        return _nmse(self.noise, self.energy)

    @property
    def sqnr_db(self) -> float:
        return sqnr_db(self.nmse)

    @property
    def fallbacks(self) -> list[TypeFallback]:
        """Tensors whose rows did not fit the type that they should have had."""
        return [event for event in self.events if isinstance(event, TypeFallback)]

    def beats(self, other: Quant) -> bool:
        """Whether nothing speaks for `other`: this is no larger and no worse, and one of them better."""
        mine, theirs = (self.bytes, self.nmse), (other.bytes, other.nmse)
        return mine != theirs and mine[0] <= theirs[0] and mine[1] <= theirs[1]

    def as_dict(self) -> dict[str, Any]:
        """As JSON; an infinite SQNR (an exact copy) is null."""
        numbers = {"nmse": self.nmse, "sqnr_db": self.sqnr_db, "max_abs": self.max_abs}
        return {
            "name": self.name,
            "quant": self.quant,
            "effort": self.effort,
            "bytes": self.bytes,
            "bits_per_weight": round(self.bits_per_weight, 4),
            **finite(numbers),
            "worst_tensor": self.worst_tensor,
            "worst_sqnr_db": finite(self.worst_sqnr_db),
            "nonfinite": self.nonfinite,
            "memory_to_run": self.memory,
            "types": dict(self.types),
            "behaviour": self.behaviour.as_dict() if self.behaviour else None,
            "events": [event.as_dict() for event in self.events],
        }


@dataclass(frozen=True)
class Comparison:
    """All quants of one source, the largest first. `context` is what their memory was estimated for, in tokens.

    `sample` says that one slab of every so many was measured; sizes are those of all.
    """

    source: str
    quants: tuple[Quant, ...]
    context: int
    events: tuple[Event, ...] = ()
    seconds: float = 0.0
    sample: int = 1

    def beaten_by(self, quant: Quant) -> Quant | None:
        """The best of the quants that are no larger and no worse than `quant`, if there is any."""
        better = [other for other in self.quants if other.beats(quant)]
        return min(better, key=lambda other: (other.nmse, other.bytes)) if better else None

    def best(self, fit: int | None = None, fit_memory: int | None = None) -> Quant | None:
        """The quant with the least error, of equals the smaller one; None where none fits.

        Args:
            fit: bytes that the file may have.
            fit_memory: bytes that running it may take; where nothing is estimated, the file counts.
        """
        fitting = [
            quant
            for quant in self.quants
            if (fit is None or quant.bytes <= fit) and (fit_memory is None or _needed(quant) <= fit_memory)
        ]
        return min(fitting, key=lambda quant: (quant.nmse, quant.bytes)) if fitting else None

    def as_dict(self) -> dict[str, Any]:
        """The report as JSON, schema `SCHEMA`."""
        beaten = {quant.name: self.beaten_by(quant) for quant in self.quants}
        return {
            "schema": SCHEMA,
            "source": self.source,
            "context": self.context,
            "sample": self.sample,
            "seconds": round(self.seconds, 3),
            "quants": [
                {**quant.as_dict(), "beaten_by": better.name if (better := beaten[quant.name]) else None}
                for quant in self.quants
            ],
            "events": [event.as_dict() for event in self.events],
        }


@dataclass(frozen=True)
class Choice:
    """A comparison, and what the quant that is wanted may take: bytes of its file, bytes of memory that there are.

    Of the memory `reserve` stays free; None leaves what RESERVE_SHARE and RESERVE_MOST say.
    """

    comparison: Comparison
    fit: int | None = None
    fit_memory: int | None = None
    reserve: int | None = None
    provenance: Provenance | None = None

    @property
    def kept_free(self) -> int:
        """Bytes of `fit_memory` that stay free."""
        return 0 if self.fit_memory is None else kept_free(self.fit_memory, self.reserve)

    @property
    def fits(self) -> bool:
        """Whether nothing was limited, or one of them is within the limits."""
        return (self.fit is None and self.fit_memory is None) or self.best is not None

    @property
    def best(self) -> Quant | None:
        memory = None if self.fit_memory is None else self.fit_memory - self.kept_free
        return self.comparison.best(self.fit, memory)

    def as_dict(self) -> dict[str, Any]:
        """The report as JSON, schema `SCHEMA`."""
        limits = {"fit": self.fit, "fit_memory": self.fit_memory, "reserve": self.kept_free}
        best = self.best.name if self.best else None
        made = self.provenance.as_dict() if self.provenance else None
        return self.comparison.as_dict() | limits | {"best": best, "provenance": made}


def kept_free(memory: int, reserve: int | None) -> int:
    """Bytes of a machine's memory that stay free: what was asked for, or the usual share."""
    usual = min(RESERVE_MOST, int(RESERVE_SHARE * memory))
    return usual if reserve is None else min(reserve, memory)


def _needed(quant: Quant) -> int:
    return quant.bytes if quant.memory is None else quant.memory


def _nmse(noise: float, energy: float) -> float:
    return noise / energy if energy else 0.0 if not noise else math.inf


def compare(
    source: PathLike | Source,
    quants: Sequence[str] = QUANTS,
    request: Request | None = None,
    *,
    efforts: Sequence[int] = (0,),
    context: int = CONTEXT,
    sample: int = 1,
    threads: int | None = None,
    progress: ProgressCallback | None = None,
    before: Callable[[float], object] | None = None,
) -> Comparison:
    """Measure what each of `quants` would make of `source`. Writes nothing.

    Args:
        source: file or folder of any format that becomes a GGUF.
        quants: names of recipes in any case; one that is named twice is compared once. `ALL` among them takes all that
            can be made of the source; the rest is told.
        request: whatever else decides the result, the same for all (importance matrix, types of single tensors).
        efforts: how hard encoders try (`request.EFFORTS`); each quant is compared with each.
        context: tokens that memory is estimated for; at most those of the model.
        sample: measure one slab of every so many; of each tensor the first, at least.
        before: called with the seconds that it takes at least, by rates measured on the spot.
        threads: workers; the result does not depend on it.
        progress: called after every slab; returning False cancels.

    Raises:
        UsageError: no quants, or one that is unknown, or an effort that does not exist.
        ConverterError: the source cannot be read, or one of the quants cannot be made of it.
    """
    started = time.monotonic()
    every = any(name.casefold() == ALL for name in quants)
    names = list(RECIPES) if every else list(dict.fromkeys(recipe(name).name for name in quants))
    if not names:
        raise UsageError("no quants to compare; --quants q4_k_m,q6_k names them")
    source, request = Source.of(source), request or Request()
    with about(source.path):
        opened = open_model(source, request.model.arch)
    with opened, about(source.path):
        draft = begin(opened, target_format(_TARGET, "gguf"), request.replace(strict=False, quant=names[0]), _TARGET)
        draft = run(draft, (*MODEL, open_matrix, open_calibration))
        try:
            made = _possible if every else _plan
            wanted = _candidates(request, names, efforts)
            found_plans = {label: made(draft, source, asked) for label, asked in wanted.items()}
            plans = {label: plan for label, plan in found_plans.items() if plan is not None}
            if not plans:
                raise QuantizationError(f"{source.path}: none of all quants can be made of it; name one to see why")
            if before is not None:
                before(_least_seconds(plans, sample, threads))
            found = _measured(plans, _limited(context, draft.checkpoint.config), sample, threads, progress)
        finally:
            if draft.matrix is not None:
                draft.matrix.close()
        opened.check()
    events = tuple(draft.report.events)
    if left := [label for label in wanted if label not in plans]:
        events += (Note(f"cannot be made of it as it is, and left out: {', '.join(left)}"),)
    return replace(found, source=str(source.path), events=events, seconds=time.monotonic() - started)


def _candidates(request: Request, quants: Sequence[str], efforts: Sequence[int]) -> dict[str, Request]:
    """By its name, what makes each candidate; where there are no blocks to encode, there is one effort."""
    return {
        f"{quant} effort {effort}" if effort else quant: request.replace(quant=quant, effort=effort)
        for quant in quants
        for effort in (efforts if recipe(quant).quantized else (0,))
    }


def _plan(draft: Draft, source: Source, request: Request) -> Plan:
    """The plan of one quant, from the model that all have in common; what is said of that one is not said again."""
    own = replace(draft, request=request, report=Report(strict=request.output.strict))
    return finished(run(own, (*ASKED, choose, weigh, *FILES)), source)


def _possible(draft: Draft, source: Source, request: Request) -> Plan | None:
    """The plan, or None where it lacks an importance matrix, or a type does not fit."""
    try:
        return _plan(draft, source, request)
    except QuantizationError:
        return None


def _measured(
    plans: Mapping[str, Plan], context: int, sample: int, threads: int | None, progress: ProgressCallback | None
) -> Comparison:
    steps = {step.name: step for plan in plans.values() for step in plan.steps}
    errors = _wanted(plans)
    slabs.run([_job(steps[name], own, sample) for name, own in errors.items()], threads, progress)
    made = [_quant(name, plan, errors, context) for name, plan in plans.items()]
    made.sort(key=lambda quant: (-quant.bytes, quant.name))
    return Comparison("", tuple(made), context, sample=sample)


def _least_seconds(plans: Mapping[str, Plan], sample: int, threads: int | None) -> float:
    """What the processors need at least to measure the plans, without reading the source."""
    steps = {step.name: step for plan in plans.values() for step in plan.steps}
    work = 0.0
    for name, own in _wanted(plans).items():
        info = steps[name].read.info
        each = sum(
            encoding(type_, e.weights is not None, effort) + decoding(type_) for (type_, effort), e in own.items()
        )
        work += info.n_elements * (decoding(info.dtype.name) + each)
    return work / sample / (threads or default_threads())


def _limited(context: int, metadata: Mapping[str, Any]) -> int:
    """`context`, or the model's own where that is less."""
    limit = number_of(metadata, f"{text_of(metadata, 'general.architecture')}.context_length") or 0
    return min(context, limit) if limit > 0 else context


# ------------------------------------------------------------------------------------------------ measuring


@dataclass
class _Error:
    """What one type, with one effort, does to one tensor, known when all its slabs have been looked at.

    `scale` is how many slabs there are for each that was measured.
    """

    weights: Importance | None = None
    found: Differences = NO_DIFFERENCES
    scale: float = 1.0


_Encoding = tuple[str, int]  # type, effort
_Errors = dict[str, dict[_Encoding, _Error]]  # tensor -> encoding -> what it costs


def _wanted(plans: Mapping[str, Plan]) -> _Errors:
    """What there is to measure: each tensor with values, in every type that a quant gives it."""
    errors: _Errors = {}
    for step in (step for plan in plans.values() for step in plan.steps):
        own = step.read.info
        kept_whole = not own.dtype.floating and own.dtype.name == step.type  # integers and the like, which stay exact
        if own.n_elements and not kept_whole:
            errors.setdefault(step.name, {}).setdefault((step.type, step.effort), _Error(step.weights))
    return errors


def _job(step: Step, wanted: Mapping[_Encoding, _Error], sample: int) -> slabs.Job:
    """Reads a tensor once, one slab of every `sample`, and measures it in every type of `wanted`."""
    tensor, info, between = step.read, step.read.info, step.intermediate.info.dtype
    encodings = [(dtype(name), effort, error) for (name, effort), error in wanted.items()]
    per_matrix = max(1, info.shape[-2]) if len(info.shape) > 1 else 1

    def look(start: int, stop: int) -> list[Differences]:
        if start // rows % sample:
            return []
        reference = values(tensor, start, stop)
        numbers = reference if between is info.dtype else _through(reference, between)
        found = []
        for type_, effort, error in encodings:
            same = type_ is between
            candidate = numbers if same else _through(numbers, type_, error.weights, start, per_matrix, effort)
            found.append(kernels.compare(reference, candidate))
        return found

    def done(seen: list[list[Differences]]) -> None:
        looked = [parts for parts in seen if parts]
        for error, parts in zip(wanted.values(), zip(*looked, strict=True), strict=True):
            error.found = Differences.together(parts)
            error.scale = len(seen) / len(looked)

    # Read, as numbers, as those of the intermediate, and one type at a time encoded and as numbers again.
    widest = max(type_.row_nbytes(info.row) for type_, _, _ in encodings)
    row_work = tensor.row_work + 12 * info.row + widest
    rows = slabs.slab_rows((tensor,), row_work)
    return slabs.gathering((tensor,), look, done, row_work)


def _through(
    numbers: Floats,
    type_: DType,
    weights: Importance | None = None,
    start: int = 0,
    per_matrix: int = 1,
    effort: int = 0,
) -> Floats:
    """What comes back of `numbers` when they are stored as `type_`."""
    return kernels.decode(encode_rows(numbers, type_, weights, start, per_matrix, effort), type_)


def _quant(name: str, plan: Plan, errors: _Errors, context: int) -> Quant:
    all_own = {step.name: errors[step.name][step.type, step.effort] for step in plan.steps if step.name in errors}
    own = {tensor: error.found for tensor, error in all_own.items()}
    nmse = {tensor: _nmse(error.noise, error.energy) for tensor, error in own.items()}
    worst = min(nmse, key=lambda tensor: (-nmse[tensor], tensor), default=None)
    worst = worst if worst is not None and nmse[worst] else None
    return Quant(
        name=name,
        bytes=plan.total_bytes,
        bits_per_weight=plan.bits_per_weight,
        noise=math.fsum(error.scale * error.found.noise for error in all_own.values()),
        energy=math.fsum(error.scale * error.found.energy for error in all_own.values()),
        max_abs=max((error.max_abs for error in own.values()), default=0.0),
        worst_tensor=worst,
        worst_sqnr_db=sqnr_db(nmse[worst] if worst is not None else 0.0),
        nonfinite=sum(error.mismatched for error in own.values()),
        types=dict(Counter(step.type for step in plan.steps).most_common()),
        memory=_memory(plan, context),
        events=tuple(plan.report.events),
        quant=plan.request.types.quant or name,
        effort=plan.request.types.effort,
    )


def _memory(plan: Plan, context: int) -> int | None:
    """What running the file takes, in bytes; None where that is not known."""
    tensors = {step.name: (step.shape, step.type) for step in plan.steps}
    needs = running_memory.estimate(plan.checkpoint.config, tensors, (context,)).needs
    return next((need.total for need in needs if need.type == running_memory.STORED), None)


# ------------------------------------------------------------------------------------------------ behaviour


def with_behaviour(
    comparison: Comparison,
    request: Request | None = None,
    *,
    source: PathLike | Source | None = None,
    text: str | None = None,
    tokens: int = 512,
    window: int = 512,
    folder: PathLike | None = None,
    threads: int | None = None,
    progress: ProgressCallback | None = None,
) -> Comparison:
    """The comparison with what llama.cpp makes of the same text with each quant: perplexity, and KL to the source.

    One quant at a time is converted into a temporary folder (in `folder`, if given), run and deleted. They are compared
    with the source itself where that is a GGUF; another one is converted first, in its own precision, so that nothing
    differs but the quantization, and stays there meanwhile.

    Args:
        request: as for `compare`, as are `source` (by default the path that was compared) and `threads`.
        text: what is read, of which `tokens` at most, in windows of `window`; None takes the built-in text.
        progress: called after every quant; returning False cancels.

    Raises:
        Cancelled: `progress` returned False.
        MissingDependency: llama-cpp-python is not installed.
        ConverterError: as `convert` and `runtimes.behaviour`.
    """
    started = time.monotonic()
    origin, request = Source.of(source or comparison.source), request or Request()
    package("llama_cpp", f"{origin.path}: running it")  # or say so before anything is converted

    def made(path: Path, wanted: Request) -> Path:
        pipeline.convert(origin, path, wanted, threads=threads)
        return path

    with tempfile.TemporaryDirectory(prefix="model-converter-", dir=folder) as scratch:
        reference = origin.path
        if source_format(origin.path, origin.format).name != "gguf":
            plain = Request(arch=request.model.arch, pre=request.model.pre)
            reference = made(Path(scratch) / "source.gguf", plain)
        quants: list[Quant] = []
        done, total = 0, sum(quant.bytes for quant in comparison.quants)
        for quant in comparison.quants:
            path = made(Path(scratch) / f"{quant.name}.gguf", request.replace(quant=quant.quant, effort=quant.effort))
            found = behaviour(reference, path, text, tokens=tokens, context=window, threads=threads)
            quants.append(replace(quant, behaviour=found))
            path.unlink()
            done += quant.bytes
            if progress is not None and progress(Progress(done, total, quant.name)) is False:
                raise Cancelled("cancelled")
    return replace(comparison, quants=tuple(quants), seconds=comparison.seconds + time.monotonic() - started)
