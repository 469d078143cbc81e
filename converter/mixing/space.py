"""What there is to choose: every type that each tensor of a model may get, as plans say it.

with open_space(Source("llama-folder/"), Request()) as found:
    found.plans["Q3_K"].total_bytes
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

from converter.errors import QuantizationError, UsageError, about
from converter.events import Report
from converter.formats.registry import target_format
from converter.mapping.recovered import open_model
from converter.metadata import number_of
from converter.mixing.measured import Steps
from converter.mixture import Mixture, Rule
from converter.planning.build import finished
from converter.planning.draft import Draft, begin, run
from converter.planning.passes import ASKED, FILES, MODEL
from converter.planning.plan import Plan, Step
from converter.planning.types import choose, open_matrix, weigh
from converter.quant.recipes import RECIPES, block_of
from converter.request import Request, Source

#: What a tensor may become, the smallest first.
TYPES = ("Q2_K", "Q3_K", "IQ4_XS", "Q4_K", "Q5_K", "Q6_K", "Q8_0", "F16")
ALIGNMENT = 32  # of tensors in a file that does not say another
_TARGET = Path("mixture.gguf")  # never written; a layout wants a name


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
def open_space(source: Source, request: Request) -> Iterator[Space]:
    """The space of a source, which is open meanwhile.

    Raises:
        UsageError: it has no tensor whose type is open.
        ConverterError: it cannot be read, or planned.
    """
    request = request.replace(strict=False, quant=None, recipe=None, calibrate=None, format="gguf")
    with about(source.path):
        opened = open_model(source, request.model.arch)
    with opened, about(source.path):
        first = request.replace(quant=RECIPES["Q8_0"].name)
        draft = run(begin(opened, target_format(_TARGET, "gguf"), first, _TARGET), (*MODEL, open_matrix))
        with closing(draft.matrix) if draft.matrix is not None else nullcontext():
            yield _filled(_lasting(draft), source, request)
        opened.check()


def _lasting(draft: Draft) -> Draft:
    """A draft whose importance matrix stays open where a plan turns out to be impossible, which closes its own."""
    return draft if draft.matrix is None else replace(draft, matrix=replace(draft.matrix, close=lambda: None))


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
