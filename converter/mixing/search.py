"""The mixture of types with which a model of a given size loses least.

    found = mixture_to_size("llama-folder/", Goal(size=4_600_000_000))
    convert("llama-folder/", "llama.gguf", recipe=found.mixture)

What a type does to the model is taken as a product: the squared error that it leaves in a tensor, relative to the
tensor's own squares (`measured`), and what such an error costs the model in KL divergence (`probes`). The sum over all
tensors is the KL that is predicted; that it adds up is shown in docs/recipes.md. Types are chosen group by group
along the lower hull of KL over bytes (`solve`), what is left goes to single tensors.

The best quant of that size is predicted by the same figures, and both are made and measured on the text of the probes:
the quant is taken where the mixture is no better.

Without a runtime what an error costs is assumed (`assumed`), and too little is known to rearrange types: the mixture is
the best quant that fits, with what is left spent on better types for single tensors, none in a worse one.
"""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from converter import pipeline
from converter.calibration import texts
from converter.errors import Cancelled, MissingDependency, QuantizationError, UsageError, about
from converter.events import Report
from converter.extras import package
from converter.formats.registry import target_format
from converter.mapping.recovered import open_model
from converter.metadata import number_of, text_of
from converter.mixing.assumed import assumed
from converter.mixing.goals import Goal
from converter.mixing.groups import Group, grouped
from converter.mixing.measured import Errors, Steps, errors_of
from converter.mixing.probes import Reference, bench
from converter.mixing.solve import Option, gain, improved, solved
from converter.mixture import Mixture, Rule
from converter.planning.build import finished
from converter.planning.draft import Draft, begin, run
from converter.planning.passes import ASKED, FILES, MODEL
from converter.planning.plan import Plan, Step
from converter.planning.types import choose, open_matrix, weigh
from converter.quant.mixtures import rules_of
from converter.quant.recipes import RECIPES, block_of
from converter.request import OWN, PathLike, Request, Source
from converter.storage.slabs import Progress, ProgressCallback
from converter.text import human_bytes
from converter.workers import default_threads

#: What a tensor may become, the smallest first.
TYPES = ("Q2_K", "Q3_K", "IQ4_XS", "Q4_K", "Q5_K", "Q6_K", "Q8_0", "F16")
#: What a group is harmed with to see what it costs: low enough to be seen, not so low that it is another model.
PROBE = "Q3_K"
#: Text that is read: chunks of so many tokens.
CONTEXT, CHUNKS = 256, 8
ALIGNMENT = 32  # of tensors in a file that does not say another
MIXTURE = "mixture"  # what it is called beside quants
_TARGET = Path("mixture.gguf")  # never written; a layout wants a name


@dataclass(frozen=True)
class Candidate:
    """A mixture or a quant: bytes of its file, and the KL divergence that was predicted and measured (None: not)."""

    name: str
    nbytes: int
    predicted: float
    measured: float | None = None

    def as_dict(self) -> dict[str, Any]:
        """As JSON."""
        return {"name": self.name, "bytes": self.nbytes, "predicted": self.predicted, "measured": self.measured}


@dataclass(frozen=True)
class Probed:
    """What was found out about the groups: `kl` of each when it was harmed, and by what."""

    kl: Mapping[str, float]
    runtime: str
    text: str
    tokens: int


@dataclass(frozen=True)
class Found:
    """What came of a search.

    Attributes:
        mixture: what is to be given to `convert` as `recipe`.
        limit: bytes that the file may have; `parameters` numbers that it holds.
        candidates: the mixture, and the best quant that fits (where one does); `taken` is the name of what was taken.
        probed: None where sensitivities were assumed, for there was no runtime.
        seconds: that it took.
    """

    mixture: Mixture
    limit: int
    parameters: int
    candidates: tuple[Candidate, ...]
    taken: str
    probed: Probed | None
    seconds: float

    @property
    def best(self) -> Candidate:
        """What was taken."""
        return next(each for each in self.candidates if each.name == self.taken)

    @property
    def how(self) -> str:
        """What it rests on, in words."""
        if self.probed is None:
            return "sensitivities assumed, nothing probed: no tensor is in a worse type than in the quant"
        return (
            f"{len(self.probed.kl)} probes by {self.probed.runtime}, {self.probed.tokens} tokens of {self.probed.text}"
        )

    def as_dict(self) -> dict[str, Any]:
        """As JSON."""
        probed = self.probed
        return {
            "limit": self.limit,
            "taken": self.taken,
            "candidates": [each.as_dict() for each in self.candidates],
            "probes": None if probed is None else {**vars(probed), "kl": dict(probed.kl)},
            "recipe": self.mixture.as_dict(),
            "seconds": round(self.seconds, 3),
        }


@dataclass(frozen=True)
class Costs:
    """Told before the work begins: groups that are probed, and bytes of disk that it takes meanwhile."""

    probes: int
    nbytes: int


# --------------------------------------------------------------------------------------- what there is to choose


@dataclass(frozen=True)
class Space:
    """Everything that may become of a model: `plans` give one type to all, `quants` are those that fit.

    `tensors` are those whose type is open, `steps` what each of the types does to each of them.
    """

    draft: Draft
    source: Source
    request: Request
    plans: Mapping[str, Plan]
    quants: Mapping[str, Plan]
    tensors: tuple[str, ...]
    steps: Steps

    @property
    def block_count(self) -> int:
        return max(map(block_of, self.tensors)) + 1

    def types(self, plan: Plan) -> dict[str, str]:
        """What a plan gives the tensors whose type is open."""
        return {step.name: step.type for step in plan.steps if step.name in self.steps}

    def nbytes(self, name: str, type_: str) -> int:
        """Bytes that a tensor takes in a file."""
        alignment = number_of(self.draft.checkpoint.config, "general.alignment") or ALIGNMENT
        return -(-self.steps[name][type_].bytes // alignment) * alignment

    def plan(self, mixture: Mixture) -> Plan:
        """The plan that a mixture gives."""
        return _plan(self.draft, self.source, self.request.replace(recipe=mixture, quant=mixture.base))


@contextmanager
def _space(source: Source, request: Request) -> Iterator[Space]:
    request = request.replace(strict=False, quant=None, recipe=None, calibrate=None, format="gguf")
    with about(source.path):
        opened = open_model(source, request.model.arch)
    with opened, about(source.path):
        first = request.replace(quant=RECIPES["Q8_0"].name)
        draft = run(begin(opened, target_format(_TARGET, "gguf"), first, _TARGET), (*MODEL, open_matrix))
        try:
            yield _filled(draft, source, request)
        finally:
            if draft.matrix is not None:
                draft.matrix.close()
        opened.check()


def _filled(draft: Draft, source: Source, request: Request) -> Space:
    def uniform(type_: str) -> Plan:
        every = Mixture("Q8_0", (Rule(".*", type_),))
        return _plan(draft, source, request.replace(quant="Q8_0", recipe=every))

    plans = {type_: uniform(type_) for type_ in TYPES}
    quants = {name: plan for name in RECIPES if RECIPES[name].quantized
              and (plan := _possible(draft, source, request.replace(quant=name))) is not None}  # fmt: skip
    by_name: dict[str, dict[str, Step]] = {}
    for plan in plans.values():
        for step in plan.steps:
            by_name.setdefault(step.name, {})[step.type] = step
    tensors = tuple(name for name, own in by_name.items() if len(own) > 1)
    for plan in quants.values():
        for step in plan.steps:
            by_name[step.name].setdefault(step.type, step)
    if not tensors:
        raise UsageError(f"{source.path}: has no tensor whose type is open")
    return Space(draft, source, request, plans, quants, tensors, {name: by_name[name] for name in tensors})


def _plan(draft: Draft, source: Source, request: Request) -> Plan:
    """A plan to ask of, without the header of its file: there are forty, and a vocabulary is megabytes."""
    own = replace(draft, request=request, report=Report())
    made = finished(run(own, (*ASKED, choose, weigh, *FILES)), source)
    files = tuple(replace(file, header=b"") for file in made.layout.files)
    return replace(made, layout=replace(made.layout, files=files))


def _possible(draft: Draft, source: Source, request: Request) -> Plan | None:
    """The plan of a quant; None where it lacks an importance matrix, or a type does not fit."""
    try:
        return _plan(draft, source, request)
    except QuantizationError:
        return None


# ------------------------------------------------------------------------------------------------- the search


def mixture_to_size(
    source: PathLike | Source,
    goal: Goal,
    request: Request | None = None,
    *,
    text: Path | None = None,
    probe: bool = True,
    threads: int | None = None,
    folder: PathLike | None = None,
    progress: ProgressCallback | None = None,
    before: Callable[[Costs], object] | None = None,
) -> Found:
    """Find the mixture. Writes nothing that stays.

    Args:
        source: a model in plain numbers, of any format that becomes a GGUF.
        goal: how large the file may be.
        request: whatever else decides the result: importance matrix, effort; types of single tensors stay fixed. Error
            feedback is no part of it: what it leaves is not known before types are.
        text: a file to probe with; None lets the model write one.
        probe: run the model, where llama.cpp is installed; else sensitivities are assumed.
        threads: workers, and threads of the runtime.
        folder: where a temporary folder is made; by default the system's place for such.
        progress: called meanwhile; returning False cancels.
        before: called with what it takes before the first probe.

    Raises:
        UsageError: a size that cannot be: the message names the smallest one.
        QuantizationError: the source is quantized.
        Cancelled: `progress` returned False.
        ConverterError: the source cannot be read or run.
    """
    started, source = time.monotonic(), Source.of(source)
    with _space(source, request or Request()) as space:
        limit = goal.nbytes(space.plans[TYPES[-1]])
        fixed = _checked(space, limit)
        fitting = {name: plan for name, plan in space.quants.items() if plan.total_bytes <= limit}
        errors = errors_of(_wanted(space, fitting), threads, progress)
        groups = grouped(space.tensors, space.block_count)
        with tempfile.TemporaryDirectory(prefix="model-converter-", dir=folder) as scratch:
            if probe and _is_there():
                lab = _Lab(space, Path(scratch), text, threads or default_threads(), progress)
                found = _searched(space, limit, fixed, fitting, errors, groups, lab, before)
            else:
                found = _unprobed(space, limit, fixed, fitting, errors, groups)
    return replace(found, seconds=time.monotonic() - started)


def _checked(space: Space, limit: int) -> int:
    """Bytes of a file that no choice changes.

    Raises:
        UsageError: the limit is below the smallest file, or above that in F16.
    """
    smallest, largest = space.plans[TYPES[0]].total_bytes, space.plans[TYPES[-1]].total_bytes
    if limit < smallest:
        raise UsageError(
            f"{space.source.path}: {limit:,} bytes are too few: the smallest mixture has {smallest:,} "
            f"({human_bytes(smallest)})"
        )
    if limit > largest:
        raise UsageError(
            f"{space.source.path}: {limit:,} bytes are more than it has in F16, {largest:,} ({human_bytes(largest)}): "
            f"say -q f16\nthe smallest mixture has {smallest:,}"
        )
    types = space.types(space.plans[TYPES[0]])
    return smallest - sum(space.nbytes(name, type_) for name, type_ in types.items())


def _wanted(space: Space, quants: Mapping[str, Plan]) -> Steps:
    """The types that errors are measured in: those of candidates and of quants that fit."""
    wanted: dict[str, dict[str, Step]] = {name: {} for name in space.tensors}
    for plan in (*space.plans.values(), *quants.values()):
        for name, type_ in space.types(plan).items():
            wanted[name][type_] = space.steps[name][type_]
    return wanted


@dataclass(frozen=True)
class Prices:
    """What each type of each tensor costs: bytes, and KL divergence as predicted."""

    space: Space
    errors: Errors
    sensitivity: Mapping[str, float]

    def option(self, name: str, type_: str) -> Option:
        """A tensor in a type."""
        return Option(self.space.nbytes(name, type_), self.sensitivity[name] * self.errors[name][type_])

    def total(self, types: Mapping[str, str]) -> float:
        """KL divergence of a whole model."""
        return math.fsum(self.option(name, type_).harm for name, type_ in types.items())

    def chosen(self, groups: Sequence[Group], budget: int) -> dict[str, str]:
        """Types by group, then what is left by tensor."""
        kinds = [self.space.types(plan) for plan in self.space.plans.values()]
        items = [
            [_together([self.option(name, kind[name]) for name in group.names]) for kind in kinds] for group in groups
        ]
        made = solved(items, budget)
        types = {name: kinds[at][name] for group, at in zip(groups, made, strict=True) for name in group.names}
        return self.bettered(types, budget)

    def bettered(self, types: Mapping[str, str], budget: int) -> dict[str, str]:
        """Single tensors in better types, while the budget lasts; none in a worse one."""
        names = list(types)
        kinds = [
            list(dict.fromkeys([types[name], *(self.space.types(plan)[name] for plan in self.space.plans.values())]))
            for name in names
        ]
        items = [[self.option(name, kind) for kind in own] for name, own in zip(names, kinds, strict=True)]
        made = improved(items, [0] * len(items), budget)
        return {name: own[at] for name, own, at in zip(names, kinds, made, strict=True)}

    def mixture(self, base: str, types: Mapping[str, str], origin: str) -> Mixture:
        """Rules for these types, with what was measured."""
        config = self.space.draft.checkpoint.config
        arch = text_of(config, "general.architecture")
        rules = tuple(self._described(rule, names) for rule, names in rules_of(types))
        return Mixture(base, rules, arch, number_of(config, f"{arch}.block_count"), origin)

    def _described(self, rule: Rule, names: Sequence[str]) -> Rule:
        own = _together([self.option(name, rule.type) for name in names])
        error = math.fsum(self.errors[name][rule.type] for name in names) / len(names)
        smaller = [
            before
            for plan in self.space.plans.values()
            if (before := _together([self.option(name, self.space.types(plan)[name]) for name in names])).nbytes
            < own.nbytes
        ]
        last = max(smaller, key=lambda each: each.nbytes, default=None)
        return replace(
            rule, bytes=own.nbytes, error=error, sensitivity=own.harm / error if error else None, kl=own.harm,
            gain=None if last is None else gain(last, own),
        )  # fmt: skip


def _together(options: Sequence[Option]) -> Option:
    return Option(sum(each.nbytes for each in options), math.fsum(each.harm for each in options))


@dataclass(frozen=True)
class _Lab:
    """Where probes are made, and with what."""

    space: Space
    folder: Path
    text: Path | None
    threads: int
    progress: ProgressCallback | None

    def said(self, done: int, total: int, what: str) -> None:
        if self.progress is not None and self.progress(Progress(done, total, what)) is False:
            raise Cancelled("cancelled")

    def chunks(self, model: Path) -> texts.Text:
        """What is read: the text that was given, or one that the model writes."""
        context = texts.usual_context(model, CONTEXT)
        return texts.read(model, self.text or OWN, context, CHUNKS, threads=self.threads, progress=self.progress)

    def costs(self, groups: Sequence[Group]) -> Costs:
        """Disk: the source in its own precision, and the logits of half the text."""
        vocabulary = max(step.shape[0] for step in self.space.plans[TYPES[0]].steps if step.shape)
        source = sum(step.intermediate.info.nbytes for step in self.space.plans[TYPES[0]].steps)
        return Costs(len(groups), source + 4 * CHUNKS * CONTEXT // 2 * vocabulary)

    def probed(self, groups: Sequence[Group]) -> tuple[Probed, Reference]:
        """KL divergence of the model with each group harmed."""
        harm = self.space.plans[PROBE]
        steps = {step.name: step for step in harm.steps}
        with bench(self.space.source, self.space.request, self.folder, self.threads) as file:
            read = self.chunks(file.path)
            reference, size = Reference(file.path, read.chunks, self.folder, self.threads), file.path.stat().st_size
            found: dict[str, float] = {}
            for at, group in enumerate(groups, 1):
                with file.harmed({name: steps[name] for name in group.names}):
                    found[group.label] = reference.kl(file.path)
                self.said(at * size, len(groups) * size, group.label)
            file.path.unlink()
        return Probed(found, reference.runtime, read.name, read.tokens), reference

    def measured(self, reference: Reference, request: Request) -> float:
        """KL divergence of what a request makes of the source."""
        path = self.folder / "candidate.gguf"
        pipeline.convert(self.space.source, path, request.replace(strict=False), threads=self.threads)
        try:
            return reference.kl(path)
        finally:
            path.unlink()


def _searched(
    space: Space,
    limit: int,
    fixed: int,
    quants: Mapping[str, Plan],
    errors: Errors,
    groups: Sequence[Group],
    lab: _Lab,
    before: Callable[[Costs], object] | None,
) -> Found:
    if before is not None:
        before(lab.costs(groups))
    probed, reference = lab.probed(groups)
    prices = Prices(space, errors, _sensitivities(space, errors, groups, probed))
    best = min(quants, key=lambda name: prices.total(space.types(quants[name])), default=None)
    origin = f"{human_bytes(limit)}; KL divergence probed with {probed.tokens} tokens of {probed.text}"
    mixture, plan = _fitted(prices, groups, best or TYPES[0], limit, fixed, origin)
    request = space.request
    candidates = [_candidate(MIXTURE, plan, prices, lab.measured(reference, _asking(request, mixture)))]
    if best is not None:
        own = request.replace(quant=best)
        candidates.append(_candidate(best, quants[best], prices, lab.measured(reference, own)))
        if (candidates[0].measured or 0) > (candidates[1].measured or 0):
            mixture = prices.mixture(best, space.types(quants[best]), origin)
    taken = min(candidates, key=lambda each: each.measured or 0).name
    return Found(mixture, limit, plan.n_parameters, tuple(candidates), taken, probed, 0.0)


def _is_there() -> bool:
    try:
        package("llama_cpp", "probing a model")
    except MissingDependency:
        return False
    return True


def _unprobed(
    space: Space, limit: int, fixed: int, quants: Mapping[str, Plan], errors: Errors, groups: Sequence[Group]
) -> Found:
    """The best quant that fits, bettered; where none fits, what assumed sensitivities say."""
    prices = Prices(space, errors, assumed(space.tensors))
    best = min(quants, key=lambda name: prices.total(space.types(quants[name])), default=None)
    origin = f"{human_bytes(limit)}; sensitivities assumed, nothing probed"
    if best is None:
        mixture, plan = _fitted(prices, groups, TYPES[0], limit, fixed, origin)
    else:
        types = prices.bettered(space.types(quants[best]), limit - fixed)
        mixture = prices.mixture(best, types, f"{origin}; no tensor worse than in {best}")
        plan = space.plan(mixture)
    candidates = [_candidate(MIXTURE, plan, prices, None)]
    candidates += [_candidate(best, quants[best], prices, None)] if best is not None else []
    return Found(mixture, limit, plan.n_parameters, tuple(candidates), MIXTURE, None, 0.0)


def _asking(request: Request, mixture: Mixture) -> Request:
    return request.replace(recipe=mixture, quant=mixture.base)


def _candidate(name: str, plan: Plan, prices: Prices, measured: float | None) -> Candidate:
    return Candidate(name, plan.total_bytes, prices.total(prices.space.types(plan)), measured)


def _sensitivities(space: Space, errors: Errors, groups: Sequence[Group], probed: Probed) -> dict[str, float]:
    """KL divergence per error of each tensor; those of a group share what the group costs."""
    harm = space.types(space.plans[PROBE])
    found: dict[str, float] = {}
    for group in groups:
        error = math.fsum(errors[name][harm[name]] for name in group.names)
        found |= dict.fromkeys(group.names, probed.kl[group.label] / error if error else 0.0)
    return found


def _fitted(
    prices: Prices, groups: Sequence[Group], base: str, limit: int, fixed: int, origin: str
) -> tuple[Mixture, Plan]:
    """The mixture, and its plan, which is within the limit."""
    budget = limit - fixed
    while True:
        mixture = prices.mixture(base, prices.chosen(groups, budget), origin)
        plan = prices.space.plan(mixture)
        if plan.total_bytes <= limit:
            return mixture, plan
        budget -= plan.total_bytes - limit
