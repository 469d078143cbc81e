"""A plan in the making: the value that goes through the passes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from converter.checkpoint import Checkpoint
from converter.events import Report
from converter.formats.base import Format
from converter.graphs.profiles import PROFILES, STANDARD, Profile
from converter.mapping.tensors import Translation
from converter.planning.calibration import Calibration
from converter.planning.plan import TRACED, Route, Step, graph_way, route, target_dialect
from converter.quant.feedback import Calibration as Feedback
from converter.quant.imatrix import ImportanceMatrix
from converter.quant.recipes import Choice, Recipe, recipe
from converter.quant.targets import Packed
from converter.request import KEEP_CODES, Request
from converter.storage.layout import Layout
from converter.tensors.bound import EXACT, Bound, Codes, loosest
from converter.tensors.dtypes import dtype
from converter.tensors.encode import Importance, Watch
from converter.tensors.tensor import LazyTensor

PLAIN = ("F32", "F16", "BF16")


@dataclass(frozen=True)
class Draft:
    """A plan in the making.

    Attributes:
        opened: the source as its reader opened it.
        checkpoint: what the passes made of it so far.
        target: the format to be; `path` the file or folder, or the folder of a file that gets its name by a pass.
        request, report, watch, route: as in a `Plan`.
        mapped: what the architecture said, where names were mapped.
        packed: the scheme's tensors and settings, where a folder's weights are packed by one.
        matrix: the importance matrix, once it is open.
        feedback: how the inputs of matrices go together, once that file is open.
        weighted: whether types are chosen for encoders that follow one, be it at hand or not.
        foreseen: whether one that is needed and not at hand is planned for; such a plan cannot be carried out.
        read: the tensors as they were read, under their new names.
        intermediate: the same in the types of the implied intermediate file.
        choices: the type of each tensor of the output, and why.
        mixed: whether these are a mixture's, and others than the recipe alone gives.
        weights: the entries of the matrix, or of the calibration, that encoders follow.
        layout: the files to be.
        calibration: what finds ranges of activations before these are written.
    """

    opened: Checkpoint
    checkpoint: Checkpoint
    target: Format
    path: Path
    request: Request
    report: Report
    watch: Watch
    route: Route
    unnamed: bool = False
    mapped: Translation | None = None
    packed: Packed | None = None
    matrix: ImportanceMatrix | None = None
    feedback: Feedback | None = None
    weighted: bool = False
    foreseen: bool = False
    read: Mapping[str, LazyTensor] = field(default_factory=dict)
    intermediate: Mapping[str, LazyTensor] = field(default_factory=dict)
    choices: Mapping[str, Choice] = field(default_factory=dict)
    mixed: bool = False
    weights: Mapping[str, Importance] = field(default_factory=dict)
    layout: Layout | None = None
    calibration: Calibration | None = None

    @property
    def steps(self) -> tuple[Step, ...]:
        """What is known of each tensor of the output, in its order; nothing before types are chosen."""
        return tuple(
            Step(
                self.read[name],
                self.intermediate[name],
                choice,
                self.weights.get(name),
                self.request.types.effort,
                self._bound(name, choice),
            )
            for name, choice in self.choices.items()
        )

    def _bound(self, name: str, choice: Choice) -> Bound | None:
        """How far a tensor's numbers are from those of the codes that it arrived in, or is packed in."""
        read, codes = self.read[name], self.opened.codes
        arrived = [codes[part] for part in read.parts or (name,) if part in codes]
        if self.packed is not None and name in self.packed.bounds:
            return loosest([each.bound for each in arrived] or [EXACT]) + self.packed.bounds[name]
        if read.info.dtype.quantized and not arrived:
            arrived = [Codes()]
        types = (read.info.dtype, self.intermediate[name].info.dtype, dtype(choice.type))
        return loosest([each.by_way_of(types) for each in arrived]) if arrived else None

    @property
    def dialect(self) -> str | None:
        """The names and keys of the output."""
        return target_dialect(self.opened, self.target, self.request)

    @property
    def to_gguf(self) -> bool:
        """Whether a recipe decides types; other targets hold plain numbers."""
        return self.dialect == "gguf"

    @property
    def whole(self) -> bool:
        """Whether the output is a folder that has config and tokenizer, too."""
        return self.target.folder or (self.unnamed and bool(self.target.in_folder))

    @property
    def to_graph(self) -> bool:
        """Whether a graph is written, of what a GGUF would hold."""
        return self.to_gguf and self.target.runs

    @property
    def profile(self) -> Profile:
        """What a graph is made of."""
        asked = self.request.types.profile
        return STANDARD if asked is None else PROFILES[asked]

    @property
    def to_trace(self) -> bool:
        """Whether a graph is traced, because no architecture data says how the model computes."""
        return graph_way(self.opened, self.target, self.request) == TRACED

    @property
    def recipe(self) -> Recipe | None:
        """What the request calls for; None keeps every type."""
        quant = self.request.types.quant
        return recipe(quant, graph=self.to_graph) if quant is not None else None

    @property
    def stays_packed(self) -> bool:
        """Whether a Hugging Face model has packed weights that no other type is asked for."""
        kept = self.request.types.keep_codes in KEEP_CODES[1:] or self.recipe is None or self.recipe.base in PLAIN
        if self.route.map != "hf->gguf" or not kept:
            return False
        return any(tensor.info.dtype.quantized for tensor in self.intermediate.values())


Pass = Callable[[Draft], Draft]


def begin(
    opened: Checkpoint,
    target: Format,
    request: Request,
    path: Path | None = None,
    *,
    unnamed: bool = False,
    foreseen: bool = False,
) -> Draft:
    """The draft that the first pass gets.

    Args:
        opened: the source.
        target: the format of the output.
        request: what shall become of the source.
        path: the output; not asked for by those who do not lay it out.
        unnamed: `path` is a folder, and the file gets the name that the convention gives it.
        foreseen: an importance matrix that is needed and not at hand is planned for.
    """
    if opened.stored is not None and _keeps_structure(opened, target, request, unnamed):
        opened = opened.stored.replace(opened=opened.opened)
    request, report = request.settled(), Report(strict=request.output.strict)
    report.extend(list(opened.events))
    planned, watch = route(opened, target, request), Watch(request.output.strict)
    return Draft(opened, opened, target, path or Path(), request, report, watch, planned, unnamed, foreseen=foreseen)


def _keeps_structure(opened: Checkpoint, target: Format, request: Request, unnamed: bool) -> bool:
    """Whether the target is what the source is, with other types at most, and not made anew of what it means."""
    anew = unnamed or request.types.quant or request.types.exact or request.types.profile
    return target.name == opened.format and not anew


def run(draft: Draft, passes: Iterable[Pass]) -> Draft:
    """The draft after `passes`; where one fails, what they opened is closed.

    Raises:
        ConverterError: what makes the conversion impossible, as its kind.
    """
    for each in passes:
        try:
            draft = each(draft)
        except BaseException:
            for opened in (draft.matrix, draft.feedback):
                if opened is not None:
                    opened.close()
            raise
    return draft
