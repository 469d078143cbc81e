"""The mixture that a GGUF has, as a recipe that gives it to another model."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from converter.architectures import traits_of
from converter.checkpoint import Checkpoint
from converter.errors import SameFile, UnsupportedFeature, about
from converter.events import Event, Note, few
from converter.formats.registry import open_checkpoint
from converter.metadata import number_of, text_of
from converter.mixture import Mixture
from converter.pipeline import refuse_existing
from converter.quant import recipe_files
from converter.quant.mixtures import rules_of
from converter.quant.recipes import ALIASES, RECIPES, TensorSpec, encodable, kept_because
from converter.request import PathLike, Source
from converter.storage import output
from converter.storage.disk import Disk
from converter.storage.layout import Layout, whole_file
from converter.verify.pairing import named_recipe

USUAL = "F16"  # the base where a file does not say its own, and its largest type is no quant either


@dataclass(frozen=True)
class Recipe:
    """A mixture and its file: `path` is where it was written, if it was; `events` is what there is to say."""

    mixture: Mixture
    path: Path | None = None
    events: tuple[Event, ...] = ()

    @property
    def text(self) -> str:
        """As the file says it."""
        return recipe_files.text(self.mixture)

    def as_dict(self) -> dict[str, Any]:
        """As JSON."""
        return {
            "path": None if self.path is None else str(self.path),
            "recipe": self.mixture.as_dict(),
            "events": [event.as_dict() for event in self.events],
        }


def stored_recipe(source: PathLike | Source, target: PathLike | None = None, *, force: bool = False) -> Recipe:
    """The types that a GGUF's tensors have, as rules: of those that may be quantized.

    Args:
        source: the GGUF, or one of its shards.
        target: the file to write; None writes nothing.
        force: replace an existing file.

    Raises:
        UnsupportedFeature: no GGUF of a model.
        OutputExists: the target.
        ConverterError: as `open_checkpoint`.
    """
    with about(Source.of(source).path), open_checkpoint(source) as checkpoint:
        if checkpoint.dialect != "gguf" or not checkpoint.tensors:
            raise UnsupportedFeature(
                f"{checkpoint.path}: is no GGUF with tensors, whose types are read\n"
                "`convert IN OUT.gguf --recipe FILE` applies a recipe to any model"
            )
        mixture, events = mixture_of(checkpoint)
        found = saved(mixture, target, Source.of(source), force=force)
        return replace(found, events=(*checkpoint.events, *events, *found.events))


def saved(mixture: Mixture, target: PathLike | None, source: Source, *, force: bool = False) -> Recipe:
    """The file of a mixture, written to `target` (None: nothing is), which is none of what `source` names.

    Raises:
        OutputError: as its kind.
    """
    found = Recipe(mixture)
    if target is None:
        return found
    path = Path(target)
    if path.exists() and any(each.exists() and path.samefile(each) for each in source.paths):
        raise SameFile(f"{path}: output and input are the same file; choose another name")
    layout = Layout((whole_file(path, found.text.encode()),))
    refuse_existing(layout, force, None)
    output.write(layout, Disk(layout, replace=force))
    return replace(found, path=path)


def mixture_of(checkpoint: Checkpoint) -> tuple[Mixture, list[Event]]:
    """The mixture of a GGUF that is open, and what of it no rule can say."""
    arch = text_of(checkpoint.config, "general.architecture")
    traits = traits_of(arch or "")
    own = {name: (tensor.info.shape, tensor.info.dtype.name) for name, tensor in checkpoint.tensors.items()}
    types = {
        name: type_
        for name, (shape, type_) in own.items()
        if kept_because(TensorSpec(name, shape, type_), traits, leave_output=False) is None
    }
    unsaid = [name for name, type_ in types.items() if not encodable(type_)]
    rules = rules_of({name: type_ for name, type_ in types.items() if name not in unsaid})
    named = {name for _, names in rules for name in names}
    left = [name for name in types if name not in named]
    events: list[Event] = [Note(f"left out, for no rule can say them: {few(left)}")] if left else []
    count = number_of(checkpoint.config, f"{arch}.block_count")
    base = named_recipe(checkpoint) or _base(types, checkpoint)
    return Mixture(base, tuple(rule for rule, _ in rules), arch, count), events


def _base(types: Mapping[str, str], checkpoint: Checkpoint) -> str:
    """The quant of the type that most bytes have."""
    nbytes: Counter[str] = Counter()
    for name, type_ in types.items():
        nbytes[type_] += checkpoint.tensors[name].info.nbytes
    largest = max(nbytes, key=lambda type_: (nbytes[type_], type_), default=USUAL)
    found = ALIASES.get(largest, largest)
    return found if found in RECIPES else USUAL
