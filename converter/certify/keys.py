"""What a runtime takes where a GGUF lacks a key: older converters did not write every one that today's do.

Source: llama.cpp, `llm_load_hparams` and `llm_load_vocab` of November 2023 and April 2024 and their successors. A
key is here only where all of them agree; `tokenizer.ggml.pre` of vocabularies with merges, say, is not.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from converter.metadata import Array, number_of, text_of

#: By `tokenizer.ggml.model`; of others nothing is assumed.
_TOKENIZER: Mapping[str, Mapping[str, object]] = {
    "llama": {"add_bos_token": True, "add_eos_token": False, "add_sep_token": False, "add_space_prefix": True}
    | {"pre": "default"},
    "gpt2": {"add_eos_token": False, "add_sep_token": False},
}


def implied(config: Mapping[str, Any]) -> dict[str, object]:
    """By key, what a runtime takes for it where it is missing, of a GGUF that has the other keys of `config`."""
    return dict(_implied(config))


def _implied(config: Mapping[str, Any]) -> Iterator[tuple[str, object]]:
    yield "general.type", "model"
    own = _TOKENIZER.get(text_of(config, "tokenizer.ggml.model") or "", {})
    yield from ((f"tokenizer.ggml.{name}", value) for name, value in own.items())
    arch, tokens = text_of(config, "general.architecture"), config.get("tokenizer.ggml.tokens")
    if isinstance(tokens, Array):
        yield f"{arch}.vocab_size", len(tokens)
    width, heads = (number_of(config, f"{arch}.{key}") for key in ("embedding_length", "attention.head_count"))
    if width and heads:
        yield from ((f"{arch}.attention.{side}_length", width // heads) for side in ("key", "value"))
