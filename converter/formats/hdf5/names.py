"""What Keras calls its weights in HDF5 files, and the way back from those names to the places Keras looks at.

Newer files (`.weights.h5`, `.keras`) name groups after a layer's class, with the layer's own name in an attribute.
Older ones (`.h5`) list the layers in an attribute, and each layer's weights in one of the layer's. Attributes are given
as metadata: those of the root under their names, others as `path@name`.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

LAYERS, VARIABLES = "layers", "/vars"
MODEL, LAYER_NAMES, WEIGHT_NAMES = "model_weights", "layer_names", "weight_names"


def attribute_key(place: str, name: str) -> str:
    """The metadata key of an attribute; `place` is "" for the root."""
    return f"{place}@{name}" if place else name


# ------------------------------------------------------------------------------------------------- newer files


def layered(place: str, titles: Mapping[str, str]) -> str:
    """The path with layers under their own names; `titles` has these by the groups' paths."""
    parts = place.split("/")
    result = list(parts)
    for i in range(1, len(parts)):
        title = titles.get("/".join(parts[: i + 1])) if parts[i - 1] == LAYERS else None
        if title and "/" not in title and title.isprintable():
            result[i] = title
    return "/".join(result)


def titles_of(metadata: Mapping[str, str]) -> dict[str, str]:
    """The layers' own names by their groups' paths; nothing where two groups would get the same path by them."""
    suffix = f"{VARIABLES}@name"
    titles = {key.removesuffix(suffix): text for key, text in metadata.items() if key.endswith(suffix)}
    return titles if len({layered(place, titles) for place in titles}) == len(titles) else {}


def restored(name: str, back: Mapping[str, str]) -> str:
    """The name with its longest prefix that `back` (a group's path by names -> its path) knows put back."""
    parts = name.split("/")
    for i in range(len(parts) - 1, 0, -1):
        prefix = "/".join(parts[:i])
        if prefix in back:
            return "/".join((back[prefix], *parts[i:]))
    return name


# ------------------------------------------------------------------------------------------------- older files


@dataclass(frozen=True)
class Listed:
    """A weight as the layers list it: the layer's group, the weight's name within, the tensor's name."""

    group: str
    weight: str
    name: str

    @property
    def place(self) -> str:
        return f"{self.group}/{self.weight}"


def listing(metadata: Mapping[str, str], place: str, name: str) -> list[str] | None:
    """A list of names in an attribute, or in name0, name1 ... where it is too long for one; None if there is none."""
    key = attribute_key(place, name)
    if key in metadata:
        return names_in(metadata[key])
    parts: list[str] = []
    number = 0
    while f"{key}{number}" in metadata:
        parts += names_in(metadata[f"{key}{number}"])
        number += 1
    return parts if number else None


def names_in(text: str) -> list[str]:
    """The list that a metadata text holds; a single name is a list of one."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return [text]
    return [str(each) for each in value] if isinstance(value, list) else [text]


def top_of(metadata: Mapping[str, str]) -> str | None:
    """The group whose layers are listed, "" for the root; None where no layers are."""
    return next((top for top in (MODEL, "") if listing(metadata, top, LAYER_NAMES) is not None), None)


def layer_groups(metadata: Mapping[str, str]) -> list[str]:
    """The groups of all layers that are listed."""
    top = top_of(metadata)
    layers = (listing(metadata, top, LAYER_NAMES) if top is not None else None) or []
    return [f"{top}/{layer}" if top else layer for layer in layers]


def listed_weights(metadata: Mapping[str, str]) -> Iterator[Listed]:
    """Every weight that the layers list; a layer's name is put before its weights' where it does not stand there."""
    for group in layer_groups(metadata):
        layer = group.removeprefix(f"{MODEL}/")
        for weight in listing(metadata, group, WEIGHT_NAMES) or ():
            yield Listed(group, weight, weight if weight.startswith(f"{layer}/") else f"{layer}/{weight}")


# ------------------------------------------------------------------------------------------------- the way back


def keras_paths(names: Iterable[str], metadata: Mapping[str, str]) -> dict[str, str]:
    """Tensor name -> the path where Keras looks for it, from such a file's metadata; other names stay as they are."""
    listed: dict[str, str] = {}
    for each in listed_weights(metadata):
        if listed.setdefault(each.name, each.place) != each.place:
            listed = {}  # the reader kept the paths, too
            break
    titles = titles_of(metadata)
    back = {layered(place, titles): place for place in titles}
    return {name: listed[name] if name in listed else restored(name, back) for name in names}
