"""What Keras 3 calls the groups of its weights: after a layer's class, with the layer's own name in an attribute."""

from __future__ import annotations

from collections.abc import Mapping

LAYERS, VARIABLES = "layers", "/vars"


def layered(place: str, titles: Mapping[str, str]) -> str:
    """The path with layers under their own names; `titles` has these by the groups' paths."""
    parts = place.split("/")
    result = list(parts)
    for i in range(1, len(parts)):
        title = titles.get("/".join(parts[: i + 1])) if parts[i - 1] == LAYERS else None
        if title and "/" not in title and title.isprintable():
            result[i] = title
    return "/".join(result)


def by_class(metadata: Mapping[str, str]) -> dict[str, str]:
    """Renamed path of a group -> the path Keras looks at, from such a file's metadata; empty if ambiguous."""
    suffix = f"{VARIABLES}@name"
    titles = {key.removesuffix(suffix): text for key, text in metadata.items() if key.endswith(suffix)}
    back = {layered(place, titles): place for place in titles}
    return back if len(back) == len(titles) else {}


def restored(name: str, back: Mapping[str, str]) -> str:
    """The name with its longest prefix that `back` knows put back."""
    parts = name.split("/")
    for i in range(len(parts) - 1, 0, -1):
        prefix = "/".join(parts[:i])
        if prefix in back:
            return "/".join((back[prefix], *parts[i:]))
    return name
