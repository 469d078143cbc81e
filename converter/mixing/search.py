"""The mixture of types with which a model of a given size loses least.

    found = mixture_to_size("llama-folder/", Goal(size=4_600_000_000))
    convert("llama-folder/", "llama.gguf", recipe=found.mixture)

What a type does to the model is taken as a product: the squared error that it leaves in a tensor, relative to the
tensor's own squares (`measured`), and what such an error costs the model in KL divergence (`probes`). The sum over all
tensors is the KL that is predicted; that it adds up is shown in docs/recipes.md. Types are chosen group by group
along the lower hull of KL over bytes (`solve`), what is left goes to single tensors.

The best quant of that size is predicted by the same figures, and both are made and measured on the text of the probes:
the quant is taken where the mixture is no better.

With an importance matrix all this is done a second time without it, and the better of both is taken. Encoders that
follow one without `effort` fit scales that are short, all of them: that adds up in another way than the squares of
errors, so that what is predicted is not what comes (docs/recipes.md).

Without a runtime what an error costs is assumed (`assumed`), and too little is known to rearrange types: the mixture is
the best quant that fits, with what is left spent on better types for single tensors, none in a worse one.
"""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from converter.errors import MissingDependency, UsageError
from converter.extras import package
from converter.mixing.assumed import assumed
from converter.mixing.goals import Goal
from converter.mixing.groups import Group, grouped
from converter.mixing.lab import PROBE, Lab
from converter.mixing.measured import Errors, Steps, errors_of
from converter.mixing.prices import Prices
from converter.mixing.results import Candidate, Costs, Found, Probed, without_imatrix
from converter.mixing.space import TYPES, Space, open_space
from converter.mixture import Mixture
from converter.planning.plan import Plan, Step
from converter.request import PathLike, Request, Source
from converter.storage.slabs import ProgressCallback
from converter.text import human_bytes
from converter.workers import default_threads

MIXTURE = "mixture"  # what it is called beside quants
WITHOUT = ", no imatrix"  # behind the names of candidates that follow none where one was given


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
    started, request, probe = time.monotonic(), request or Request(), probe and _is_there()
    search = _Search(Source.of(source), goal, text, probe, threads or default_threads(), folder, progress)
    twice = probe and request.types.imatrix is not None

    def told(costs: Costs) -> None:
        if before is not None:
            before(replace(costs, probes=costs.probes * (1 + twice)))

    found = search.found(request, told)
    if twice:
        found = better(found, search.found(without_imatrix(request)))
    return replace(found, seconds=time.monotonic() - started)


def better(followed: Found, other: Found) -> Found:
    """What measured best, of a search that followed an importance matrix and one that did not; with all candidates."""
    own = tuple(replace(each, name=each.name + WITHOUT) for each in other.candidates)
    candidates = (*followed.candidates, *own)
    best = min(candidates, key=lambda each: each.measured or 0)
    if best not in own:
        return replace(followed, candidates=candidates)
    mixture = replace(other.mixture, origin=f"{other.mixture.origin}; better without the importance matrix")
    return replace(other, mixture=mixture, candidates=candidates, taken=best.name, imatrix=False)


@dataclass(frozen=True)
class _Search:
    """What a search is made of, beside what decides the result."""

    source: Source
    goal: Goal
    text: Path | None
    probe: bool
    threads: int
    folder: PathLike | None
    progress: ProgressCallback | None

    def found(self, request: Request, before: Callable[[Costs], object] | None = None) -> Found:
        """The mixture for what is asked for, which follows its importance matrix."""
        with open_space(self.source, request) as space:
            limit = self.goal.nbytes(space.plans[TYPES[-1]])
            fixed = _checked(space, limit)
            fitting = {name: plan for name, plan in space.quants.items() if plan.total_bytes <= limit}
            errors = errors_of(_wanted(space, fitting), self.threads, self.progress)
            groups = grouped(space.tensors, space.block_count)
            if not self.probe:
                return _unprobed(space, limit, fixed, fitting, errors, groups)
            with tempfile.TemporaryDirectory(prefix="model-converter-", dir=self.folder) as scratch:
                lab = Lab(space, Path(scratch), self.text, self.threads, self.progress)
                return _searched(space, limit, fixed, fitting, errors, groups, lab, before)


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


def _searched(
    space: Space,
    limit: int,
    fixed: int,
    quants: Mapping[str, Plan],
    errors: Errors,
    groups: Sequence[Group],
    lab: Lab,
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
