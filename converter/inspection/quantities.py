"""What the formulae of memory ask of a model, out of its keys and the names and shapes of its tensors."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from converter.architectures import traits_of
from converter.architectures.traits import SlidingWindow
from converter.metadata import Array, Value
from converter.quant.recipes import ModelFacts
from converter.tensors.expressions import evaluate

#: GGUF tensor name -> (row-major shape, type name).
Tensors = Mapping[str, tuple[tuple[int, ...], str]]

# State of a recurrent layer in F32 elements, by the key that shows which kind it is: RWKV, LFM2's short convolution,
# Kimi's delta attention, Mamba and the gated delta nets.
RECURRENT: tuple[tuple[str, str], ...] = (
    ("wkv.head_size", "n_embd * (token_shift_count + wkv_head_size)"),
    ("shortconv.l_cache", "n_embd * (shortconv_l_cache - 1)"),
    ("kda.head_dim", "n_head * kda_head_dim * (3 * (ssm_conv_kernel - 1) + kda_head_dim)"),
    (
        "ssm.state_size",
        "(ssm_conv_kernel - 1) * (ssm_inner_size + 2 * ssm_group_count * ssm_state_size)"
        " + ssm_state_size * ssm_inner_size",
    ),
)
_STATE_DEFAULTS = {"token_shift_count": 2, "ssm_conv_kernel": 4, "ssm_inner_size": 0, "ssm_group_count": 0}

_BLOCK = re.compile(r"blk\.(\d{1,6})\.(.+)")
_KEYS = ("attn_k.weight", "attn_kv_a_mqa.weight")
_STATES = ("ssm_", "shortconv.", "time_mix_")
_LIMIT = 1 << 32  # no count in a header is larger


class _Header:
    """The keys of one architecture as bounded integers."""

    def __init__(self, metadata: Mapping[str, Any]) -> None:
        self.metadata = metadata
        self.arch = str(self._value("general.architecture"))

    def _value(self, key: str) -> Any:
        value = self.metadata.get(key)
        return value.value if isinstance(value, Value) else value

    def get(self, key: str) -> Any:
        return self._value(f"{self.arch}.{key}")

    def count(self, key: str, default: int = 0) -> int:
        """A count, or the largest of a list of counts."""
        value = self.get(key)
        if isinstance(value, Array):
            value = list(value.values)
        values = value if isinstance(value, list | tuple) else [value]
        return max((int(v) for v in values if _is_count(v)), default=default)

    def per_layer(self, key: str, n_layer: int, default: int) -> list[int]:
        """A count for each layer: a list in the header, or one number for all."""
        value = self.get(key)
        if isinstance(value, Array):
            value = list(value.values)
        if isinstance(value, list | tuple):
            counts = [int(v) if _is_count(v) else default for v in value[:n_layer]]
            return counts + [default] * (n_layer - len(counts))
        return [int(value) if _is_count(value) else default] * n_layer


def _is_count(value: object) -> bool:
    try:
        return 0 <= int(value) < _LIMIT and not isinstance(value, str | float)  # type: ignore[call-overload]
    except (TypeError, ValueError, OverflowError):
        return False


@dataclass(frozen=True)
class Quantities:
    """What the formulae ask of a model.

    `keys` are the cached elements per cell of each attention layer, `sliding` whether it slides over `window` tokens,
    `state` the F32 elements of all recurrent states, `query` the elements of all heads' queries.
    """

    facts: ModelFacts
    n_ctx: int
    n_vocab: int
    n_embd: int
    n_ff: int
    n_ff_expert: int
    n_expert_used: int
    query: int
    keys: tuple[int, ...]
    sliding: tuple[bool, ...]
    window: int
    state: int

    @classmethod
    def read(cls, metadata: Mapping[str, Any], tensors: Tensors) -> Quantities | str:
        """The model, or why there is none: odd metadata is a reason, never an error."""
        header = _Header(metadata)
        embedding = tensors.get("token_embd.weight", ((), ""))[0]
        layers = _layers(tensors)
        n_head = header.count("attention.head_count")
        n_embd = header.count("embedding_length")
        if not layers or len(embedding) != 2 or not n_embd:
            return "not a language model in GGUF terms: no blocks, no token embedding or no embedding_length"
        n_layer = max(layers) + 1
        head_dim = n_embd // n_head if n_head else 0
        key_length = header.count("attention.key_length", head_dim)
        latent = header.count("attention.key_length_mla") > 0
        value_length = 0 if latent else header.count("attention.value_length", head_dim)
        heads = header.per_layer("attention.head_count_kv", n_layer, n_head)
        window, slides = _sliding(header, n_layer)
        wide = narrow = key_length + value_length
        if not latent:
            narrow = header.count("attention.key_length_swa", key_length)
            narrow += header.count("attention.value_length_swa", value_length)
        cached = [i for i in _cached_layers(header, layers, n_layer) if heads[i]]
        n_expert = header.count("expert_count")
        n_block = header.count("block_count", n_layer)
        facts = ModelFacts(header.arch, n_block, n_head, heads[0], n_expert, traits_of(header.arch))
        n_ff = header.count("feed_forward_length")
        return cls(
            facts,
            header.count("context_length"),
            embedding[0],
            n_embd,
            n_ff if not n_expert or header.count("leading_dense_block_count") else 0,
            header.count("expert_feed_forward_length", n_ff) if n_expert else 0,
            header.count("expert_used_count") if n_expert else 0,
            n_head * header.count("attention.key_length_mla", key_length),
            tuple(heads[i] * (narrow if slides[i] else wide) for i in cached),
            tuple(slides[i] for i in cached),
            window,
            _state(header, n_embd, n_head) * sum("state" in kinds for kinds in layers.values()),
        )


def _layers(tensors: Tensors) -> dict[int, set[str]]:
    """The blocks that have tensors, and whether they hold keys ("keys"), a recurrent state ("state") or neither."""
    layers: dict[int, set[str]] = {}
    for name in tensors:
        found = _BLOCK.match(name)
        if found is None:
            continue
        kinds = layers.setdefault(int(found[1]), set())
        if found[2] in _KEYS:
            kinds.add("keys")
        elif found[2] == "attn_qkv.weight":
            kinds.add("fused")
        elif found[2].startswith(_STATES):
            kinds.add("state")
    return layers


def _cached_layers(header: _Header, layers: Mapping[int, set[str]], n_layer: int) -> list[int]:
    """The layers that own keys and values; encoders cache nothing, and the heads for multi-token prediction
    are not run. A fused QKV beside a recurrent state is the input of that state."""
    if header.get("attention.causal") is False:
        return []
    shared = header.count("attention.shared_kv_layers")
    end = n_layer - header.count("nextn_predict_layers") - shared
    first_shared = traits_of(header.arch).first_shared
    end = end if first_shared is None else min(end, first_shared)
    return [
        layer
        for layer, kinds in sorted(layers.items())
        if layer < end and ("keys" in kinds or ("fused" in kinds and "state" not in kinds))
    ]


def _sliding(header: _Header, n_layer: int) -> tuple[int, list[bool]]:
    """The window, and which layers slide: one of every `period` sees all."""
    known = traits_of(header.arch).window or SlidingWindow(0)
    window = header.count("attention.sliding_window", known.size)
    pattern = header.get("attention.sliding_window_pattern")
    if isinstance(pattern, Array | list | tuple):
        flags = [bool(flag) for flag in header.per_layer("attention.sliding_window_pattern", n_layer, 0)]
    else:
        period = header.count("attention.sliding_window_pattern", known.period)
        full = 0 if known.full_first else period - 1
        flags = [period > 0 and layer % period != full for layer in range(n_layer)]
    return window, flags if window else [False] * n_layer


def _state(header: _Header, n_embd: int, n_head: int) -> int:
    """Elements of one recurrent layer's state."""
    for key, formula in RECURRENT:
        if header.count(key):
            names = {name: header.count(name_key, _STATE_DEFAULTS.get(name, 0)) for name, name_key in _STATE_KEYS}
            return evaluate(formula, {**names, "n_embd": n_embd, "n_head": n_head})
    return 0


_STATE_KEYS = tuple(
    (key.replace(".", "_"), key)
    for key in (
        "wkv.head_size",
        "token_shift_count",
        "shortconv.l_cache",
        "kda.head_dim",
        "ssm.conv_kernel",
        "ssm.inner_size",
        "ssm.state_size",
        "ssm.group_count",
    )
)
