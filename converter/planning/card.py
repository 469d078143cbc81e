"""The model card of a Hugging Face folder to be: what it has already, and how the folder was made."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from itertools import islice
from pathlib import Path

from converter import __version__
from converter.address import address_of, shown
from converter.checkpoint import Checkpoint
from converter.errors import ConverterError
from converter.events import Event, Merged
from converter.mapping.general_keys import MAX_CARD
from converter.mapping.model_card import with_entries
from converter.metadata import number_of
from converter.planning.draft import Draft
from converter.quant.recipes import RECIPES
from converter.storage.files import local, regular_size
from converter.tensors.tensor import LazyTensor
from converter.text import printable

NAME = "README.md"
MOST_LOSSES = 8  # that are told by name


def made_card(draft: Draft) -> Draft:
    """With a section in the card that says what was converted, by what, and what of it was lost.

    A folder whose tensors stay as they are keeps its card as it is. The text depends on the conversion alone: no date,
    no path but the source's name.
    """
    if draft.target.name != "hf" or not _made_anew(draft):
        return draft
    card = _there(draft.checkpoint)
    if card is None:
        return draft
    text = with_entries(card, _entries(draft))
    text = "\n\n".join(filter(None, (text.rstrip("\n"), _section(draft)))) + "\n"
    return replace(draft, checkpoint=draft.checkpoint.replace(made={**draft.checkpoint.made, NAME: text.encode()}))


def _made_anew(draft: Draft) -> bool:
    if draft.opened.dialect != "hf":
        return True
    before, after = draft.opened.tensors.values(), draft.checkpoint.tensors.values()
    return bool(draft.opened.adapters) or _types(before, sort=False) != _types(after, sort=False)


def _there(checkpoint: Checkpoint) -> str | None:
    """The card that the folder would have, "" for none; None for one that cannot be added to."""
    try:
        if NAME in checkpoint.made:
            return checkpoint.made[NAME].decode("utf-8")
        if NAME not in checkpoint.assets:
            return ""
        path = checkpoint.assets[NAME]
        return local(path).read_bytes().decode("utf-8") if regular_size(path) <= MAX_CARD else None
    except (UnicodeDecodeError, OSError, ConverterError):
        return None


def _entries(draft: Draft) -> dict[str, str]:
    """Front matter, as the Hub reads it; of a model of the Hub, that this one is made of it.

    No key that `mapping.general_keys` would read of a GGUF's folder: the way back gives the file that there was.
    """
    found = {"library_name": "mlx" if (draft.request.types.scheme or "").startswith("mlx") else "transformers"}
    address = address_of(draft.opened.path)
    if draft.opened.dialect == "hf" and address is not None and address[0].scheme == "hf" and not draft.opened.adapters:
        found |= {"base_model": address[0].where, "base_model_relation": "quantized"}
    return found


def _section(draft: Draft) -> str:
    source, file_type = draft.opened, number_of(draft.opened.config, "general.file_type")
    name = shown(str(source.path)) if address_of(source.path) else source.path.absolute().name
    quant = next((name for name, recipe in RECIPES.items() if recipe.file_type == file_type is not None), "")
    words = {"gguf": "GGUF", "hf": "Hugging Face folder"}.get(source.format, source.format)
    lines = [
        f"Converted from {_code(name)} ({', '.join(filter(None, (words, quant)))}) by model-converter {__version__}."
    ]
    lines += ["", f"- weights: {_weights(draft)}"]
    events = [event for event in draft.report.events if isinstance(event, Merged) or event.loss]
    lines += [f"- {_plain(event)}" for event in islice(events, MOST_LOSSES)]
    lines += [f"- and {len(events) - MOST_LOSSES} more losses"] if len(events) > MOST_LOSSES else []
    return "\n".join(["## How this was made", "", *lines])


def _weights(draft: Draft) -> str:
    before, after = (", ".join(_types(each.tensors.values())) for each in (draft.opened, draft.checkpoint))
    scheme = f" (scheme {draft.request.types.scheme})" if draft.packed is not None else ""
    decoded = any(tensor.info.dtype.quantized for tensor in draft.opened.tensors.values()) or draft.opened.codes
    lost = "; decoded, what their quantization had lost stays lost" if decoded else ""
    return (f"{before} → {after}" if before != after else f"{after}, as they were") + scheme + lost


def _types(tensors: Iterable[LazyTensor], sort: bool = True) -> list[str]:
    """The types of tensors: those of most bytes first, each once; or of each in order."""
    if not sort:
        return [tensor.info.dtype.name for tensor in tensors]
    nbytes: dict[str, int] = {}
    for tensor in tensors:
        nbytes[tensor.info.dtype.name] = nbytes.get(tensor.info.dtype.name, 0) + tensor.info.nbytes
    return sorted(nbytes, key=lambda name: -nbytes[name])


def _code(name: str) -> str:
    """A name as code, in which nothing else is Markdown."""
    return f"`{printable(name).replace('`', chr(39))}`"


def _plain(event: Event) -> str:
    if isinstance(event, Merged):
        event = replace(event, adapter=Path(event.adapter).name)
    return _code(str(event)[:200])
