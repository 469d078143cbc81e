"""What Ollama is told about a model beside its weights, out of a GGUF's keys."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from converter.chat.jinja import TemplateFailed
from converter.chat.recognition import Recognised, Tokens, recognise
from converter.errors import MissingDependency
from converter.events import Event, Note
from converter.metadata import Array, Value, array_of, number_of, scalar_of, text_of

Metadata = Mapping[str, Value | Array]
Parameter = int | float | list[str]

#: general.sampling.* and Ollama's parameters; the others that such a key may say are deprecated there.
PARAMETERS = {
    "temp": "temperature",
    "top_k": "top_k",
    "top_p": "top_p",
    "min_p": "min_p",
    "penalty_repeat": "repeat_penalty",
    "penalty_last_n": "repeat_last_n",
}
#: Most tokens of context that are asked for unbidden: Ollama gives a model 4096, and memory grows with it.
MOST_CONTEXT = 8192
_ENDS = ("eos", "eot", "eom")
# Pre-tokenizers of byte-level BPE to which llama.cpp adds the first token where the file does not say.
_ADD_BOS = ("llama3", "llama-v3", "llama-bpe", "falcon3", "falcon-h1", "pixtral", "midm-2.0", "lfm2", "tekken")
_LICENCE = ("license", "license.name", "license.link")


@dataclass(frozen=True)
class Known:
    """What a GGUF's keys say in Ollama's terms, and what is to be said of it.

    Attributes:
        family: whose chat template it is (`converter.chat.families`); None where it is not a known one.
        template: in Ollama's language.
        system: the system text of a conversation that has none.
        parameters: by Ollama's names.
        licence: its name and where it is found, not its text.
    """

    family: str | None = None
    template: str | None = None
    system: str | None = None
    parameters: Mapping[str, Parameter] = field(default_factory=dict)
    licence: str | None = None
    events: tuple[Event, ...] = ()


def known(metadata: Metadata, *, template: bool = True, num_ctx: int | None = None) -> Known:
    """What the keys of a GGUF say.

    Args:
        metadata: the keys.
        template: whether to look for the family of its chat template.
        num_ctx: tokens of context in the place of the usual.
    """
    found, events = _recognised(metadata) if template else (None, [])
    parameters: dict[str, Parameter] = dict(_sampling(metadata))
    if context := num_ctx or _context(metadata):
        parameters["num_ctx"] = context
    stop = [*(found.stop if found else ()), *(_token(metadata, each) for each in _ENDS)]
    if stop := [each for each in dict.fromkeys(stop) if each.strip()]:
        parameters["stop"] = stop
    licence = "\n".join(filter(None, (text_of(metadata, f"general.{key}") for key in _LICENCE)))
    name, text, system = (found.family, found.template, found.system) if found else (None, None, None)
    return Known(name, text, system, parameters, licence or None, tuple(events))


def _recognised(metadata: Metadata) -> tuple[Recognised | None, list[Event]]:
    own = text_of(metadata, "tokenizer.chat_template")
    if own is None:
        return None, [Note("no template: the GGUF has no chat template; --template FILE, or it is for text completion")]
    try:
        found = recognise(own, Tokens(_token(metadata, "bos"), _token(metadata, "eos"), _adds_bos(metadata)))
    except TemplateFailed as error:
        return None, [Note(f"no template: the GGUF's own fails: {error}; {_ELSE}")]
    except MissingDependency as error:
        return None, [Note(f"no template: {str(error).splitlines()[0]}; {_ELSE}")]
    if found is None:
        return None, [Note(f"no template: the GGUF's own renders as no family does that is known here; {_ELSE}")]
    notes = (Note(f"template {found.family}: {note}") for note in found.notes)
    return found, [Note(f"template: that of {found.family}, which renders as the GGUF's own does"), *notes]


_ELSE = "Ollama goes by what it knows of it itself; --template FILE"


def _sampling(metadata: Metadata) -> Iterator[tuple[str, int | float]]:
    for key, name in PARAMETERS.items():
        value = scalar_of(metadata, f"general.sampling.{key}")
        if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
            yield name, value if isinstance(value, int) else float(str(np.float32(value)))


def _context(metadata: Metadata) -> int | None:
    trained = number_of(metadata, f"{text_of(metadata, 'general.architecture')}.context_length")
    return min(trained, MOST_CONTEXT) if trained is not None and trained > 0 else None


def _token(metadata: Metadata, name: str) -> str:
    """The text of a special token, "" for none."""
    tokens = array_of(metadata, "tokenizer.ggml.tokens", "str")
    number = number_of(metadata, f"tokenizer.ggml.{name}_token_id")
    if tokens is None or number is None or not 0 <= number < len(tokens):
        return ""
    text: Any = tokens.values[number]
    return text if isinstance(text, str) else ""


def _adds_bos(metadata: Metadata) -> bool:
    """Whether runtimes put the first token in front of a prompt; as llama.cpp decides where the file does not say."""
    said = scalar_of(metadata, "tokenizer.ggml.add_bos_token")
    if isinstance(said, bool):
        return said
    bytewise = text_of(metadata, "tokenizer.ggml.model") == "gpt2"
    return not bytewise or text_of(metadata, "tokenizer.ggml.pre") in _ADD_BOS
