"""Ways to damage a good GGUF, each with what must be said of it; and a workshop of models and what was made of them.

Every fault is made in a file that our own writer wrote again, so that nothing but the fault can be found.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

import converter
from converter import Request
from converter.metadata import Array, Value
from converter.tensors import kernels
from converter.tensors.dtypes import DTYPES
from converter.tensors.tensor import LazyTensor, TensorInfo
from support import models
from support.rewriting import again, reshaped, rewritten, without

Tensors = dict[str, LazyTensor]
Change = Callable[[Tensors], Tensors]
Values = np.ndarray[Any, np.dtype[np.float32]]
Rows = np.ndarray[Any, np.dtype[np.uint8]]


# ------------------------------------------------------------------------------------------ ways to damage


def stored(name: str, rows: Rows, like: TensorInfo) -> LazyTensor:
    rows = np.ascontiguousarray(rows)
    return LazyTensor(TensorInfo(name, like.shape, like.dtype), lambda start, stop: rows[start:stop], "damaged")


def in_bytes(name: str, change: Callable[[Rows], None]) -> Change:
    """The stored rows of a tensor, (rows, bytes of a row), changed in place."""

    def damage(old: Tensors) -> Tensors:
        info = old[name].info
        rows = np.array(old[name].rows(0, info.n_rows))
        change(rows)
        return {**old, name: stored(name, rows, info)}

    return damage


def in_values(name: str, change: Callable[[Values], Values], through: str | None = None) -> Change:
    """The values of a tensor, in its shape, changed and encoded again; first in another type, if `through`."""

    def damage(old: Tensors) -> Tensors:
        info = old[name].info
        numbers = kernels.decode(np.array(old[name].rows(0, info.n_rows)), info.dtype).reshape(info.shape)
        numbers = np.ascontiguousarray(change(numbers), np.float32).reshape(info.n_rows, info.row)
        if through is not None:
            numbers = kernels.decode(kernels.encode(numbers, DTYPES[through]), DTYPES[through])
        return {**old, name: stored(name, kernels.encode(numbers, info.dtype), info)}

    return damage


def swapped(one: str, other: str) -> Change:
    return lambda old: {**old, one: old[other].renamed(one), other: old[one].renamed(other)}


def copied(source: str, name: str) -> Change:
    return lambda old: {**old, name: old[source].renamed(name)}


def retyped(name: str, type: str) -> Change:
    """The right values in another type."""

    def damage(old: Tensors) -> Tensors:
        info = old[name].info
        numbers = kernels.decode(np.array(old[name].rows(0, info.n_rows)), info.dtype)
        like = TensorInfo(name, info.shape, DTYPES[type])
        return {**old, name: stored(name, kernels.encode(numbers, DTYPES[type]), like)}

    return damage


def flip(row: int, byte: int, bit: int) -> Callable[[Rows], None]:
    def change(rows: Rows) -> None:
        rows[row, byte] ^= 1 << bit

    return change


def rope(heads: int) -> Callable[[Values], Values]:
    """From the order of GGUF to that of Hugging Face: halves of a head instead of pairs."""
    return lambda w: w.reshape(heads, w.shape[0] // heads // 2, 2, -1).swapaxes(1, 2).reshape(w.shape)


def swap_nibbles(rows: Rows) -> None:
    codes = rows.reshape(-1, 144)[:, 16:]
    codes[:] = codes >> 4 | codes << 4


def truncated_cast(rows: Rows) -> None:
    """Every odd BF16 one unit nearer to zero, as a cast that cuts instead of rounding leaves half of them."""
    rows.view(np.uint16)[...] &= 0xFFFE


def set_at(index: int, value: float) -> Callable[[Values], Values]:
    def change(w: Values) -> Values:
        w = w.copy()
        w.reshape(-1)[index] = value
        return w

    return change


def zero_from(row: int) -> Callable[[Values], Values]:
    def change(w: Values) -> Values:
        w = w.copy()
        w[row:] = 0
        return w

    return change


def noise_in(first: int, count: int) -> Callable[[Values], Values]:
    def change(w: Values) -> Values:
        w = w.copy()
        w.reshape(-1)[first : first + count] = np.random.default_rng(0).standard_normal(count) * w.std()
        return w

    return change


def entries(key: str, change: Callable[[list[Any]], list[Any]]) -> Callable[[Mapping[str, Any]], dict[str, Any]]:
    """A list of the metadata, changed."""
    return lambda config: {key: Array(config[key].type, change(list(config[key].values)))}


def number(key: str, change: Callable[[Any], Any]) -> Callable[[Mapping[str, Any]], dict[str, Any]]:
    return lambda config: {key: Value(config[key].type, change(config[key].value))}


def removed(key: str) -> Callable[[Mapping[str, Any]], dict[str, Any]]:
    return lambda config: {key: None}


# -------------------------------------------------------------------------------------------------- faults


@dataclass(frozen=True)
class Fault:
    """What is damaged in which model, and what the verifier must say: a check for a subject, and a hint."""

    name: str
    check: str
    subject: str
    tensors: Change | None = None
    keys: Callable[[Mapping[str, Any]], dict[str, Any]] | None = None
    hint: str = ""
    model: str = "llama3-256"
    quant: str = "q4_k_m"
    also: frozenset[str] = field(default=frozenset())


Q, K, V, OUT = (f"blk.1.attn_{part}.weight" for part in ("q", "k", "v", "output"))
UP, DOWN, NORM = "blk.1.ffn_up.weight", "blk.1.ffn_down.weight", "blk.1.attn_norm.weight"
EXPERTS = "blk.1.ffn_up_exps.weight"
TOKENS, EOS = "tokenizer.ggml.tokens", "tokenizer.ggml.eos_token_id"
LAST = "blk.9.ffn_up.weight"

FAULTS = (
    Fault("a bit of a super-block's scale", "blocks", UP, in_bytes(UP, flip(5, 0, 0))),
    Fault("the sign of a super-block's scale", "values", UP, in_bytes(UP, flip(5, 1, 7))),
    Fault("a bit of a super-block's minimum", "blocks", UP, in_bytes(UP, flip(7, 2, 0))),
    Fault("a bit of a sub-block's scale", "blocks", UP, in_bytes(UP, flip(0, 4, 0))),
    Fault("the lowest bit of one code", "blocks", Q, in_bytes(Q, flip(255, 143, 0))),
    Fault("a bit of the last tensor's last block", "blocks", LAST, in_bytes(LAST, flip(511, 143, 4))),
    Fault("the lowest bit of a norm", "values", NORM, in_bytes(NORM, flip(0, 0, 0))),
    Fault("a bit of one F16 weight", "values", UP, in_bytes(UP, flip(3, 10, 0)), quant="f16"),
    Fault("a bit of one BF16 weight", "values", UP, in_bytes(UP, flip(3, 10, 0)), quant="bf16"),
    Fault("two tensors swapped", "values", K, swapped(K, V), hint=V, also=frozenset((V,)), quant="q8_0"),
    Fault("two layers swapped", "values", UP, swapped(UP, "blk.2.ffn_up.weight"), hint="blk.2.ffn_up.weight",
          also=frozenset(("blk.2.ffn_up.weight",))),
    Fault("a layer twice", "values", UP, copied("blk.2.ffn_up.weight", UP), hint="blk.2.ffn_up.weight"),
    Fault("rope permutation left out", "values", Q, in_values(Q, rope(8)), hint="rotary"),
    Fault("rope permutation left out of the keys", "values", K, in_values(K, rope(2)), hint="rotary"),
    Fault("a square matrix transposed", "values", OUT, in_values(OUT, lambda w: w.T), hint="transposed"),
    Fault("a norm with one added", "values", NORM, in_values(NORM, lambda w: w + 1), hint="+1"),
    Fault("a norm with one taken off", "values", NORM, in_values(NORM, lambda w: w - 1), hint="-1"),
    Fault("experts in reverse order", "values", EXPERTS, in_values(EXPERTS, lambda w: w[::-1]), hint="experts",
          model="qwen3moe-256"),
    Fault("two experts swapped", "values", EXPERTS, in_values(EXPERTS, lambda w: w[[1, 0, *range(2, len(w))]]),
          model="qwen3moe-256", quant="q8_0"),
    Fault("every sign flipped", "values", DOWN, in_values(DOWN, lambda w: -w), hint="sign"),
    Fault("one sign flipped", "values", DOWN, in_values(DOWN, lambda w: w * np.where(np.arange(w.size) == 9, -1, 1)
          .reshape(w.shape)), quant="q8_0"),
    Fault("every value doubled", "values", DOWN, in_values(DOWN, lambda w: 2 * w), hint="multiplied by 2"),
    Fault("rows shifted by one", "values", DOWN, in_values(DOWN, lambda w: np.roll(w, 1, 0)), hint="shifted by +1"),
    Fault("rows in another order", "values", DOWN, in_values(DOWN, lambda w: w[np.random.default_rng(0).permutation(
          len(w))]), hint="rows are in another order"),
    Fault("columns shifted by one", "values", DOWN, in_values(DOWN, lambda w: np.roll(w, 1, 1)), hint="columns"),
    Fault("nibbles of Q4_K swapped", "values", UP, in_bytes(UP, swap_nibbles)),
    Fault("the last rows zero", "values", UP, in_values(UP, zero_from(500))),
    Fault("one block of noise", "values", UP, in_values(UP, noise_in(1024, 256))),
    Fault("all zero", "zero", UP, in_values(UP, np.zeros_like)),
    Fault("overflow to infinity in F16", "nonfinite", UP, in_values(UP, set_at(77, np.inf)), quant="f16"),
    Fault("not a number", "nonfinite", NORM, in_values(NORM, set_at(3, np.nan))),
    Fault("one type lower", "type", UP, retyped(UP, "Q3_K")),
    Fault("one type lower, unsaid", "values", DOWN, in_values(DOWN, lambda w: w, "Q2_K"), quant="q8_0"),
    Fault("rounded to Q8_0 on the way to F16", "values", UP, in_values(UP, lambda w: w, "Q8_0"), quant="f16"),
    Fault("a cast that cuts instead of rounding", "values", UP, in_bytes(UP, truncated_cast), quant="bf16"),
    Fault("a tensor left out", "missing", UP, without(UP)),
    Fault("a tensor too many", "extra", "blk.1.ffn_up.bias", again(NORM, "blk.1.ffn_up.bias")),
    Fault("a shape turned", "shape", DOWN, reshaped(DOWN, (512, 256))),
    Fault("rows missing at the end", "shape", "token_embd.weight", reshaped("token_embd.weight", (320, 256))),
    Fault("the output left out, as if tied", "tied", "output.weight", without("output.weight")),
    Fault("the embedding as output", "values", "output.weight", copied("token_embd.weight", "output.weight"),
          hint="token_embd.weight", quant="q8_0"),
    Fault("a tied output that is another tensor", "tied", "output.weight",
          lambda old: {**old, "output.weight": in_values("token_embd.weight", lambda w: -w)(old)["token_embd.weight"]
                       .renamed("output.weight")}, model="qwen2-96", quant="q8_0"),
    Fault("rows of two tokens swapped", "values", "token_embd.weight",
          in_values("token_embd.weight", lambda w: w[[0, 2, 1, *range(3, len(w))]])),
    Fault("a row of the output ten times as large", "values", "output.weight",
          in_values("output.weight", lambda w: w * np.where(np.arange(len(w)) == 7, 10, 1)[:, None]), quant="q8_0"),
    Fault("biases of another layer", "values", "blk.1.attn_q.bias", copied("blk.2.attn_q.bias", "blk.1.attn_q.bias"),
          hint="blk.2.attn_q.bias", model="qwen2-96"),
    Fault("wrong head count", "metadata", "llama.attention.head_count",
          keys=number("llama.attention.head_count", lambda n: n // 2)),
    Fault("wrong count of key heads", "metadata", "llama.attention.head_count_kv",
          keys=number("llama.attention.head_count_kv", lambda n: 2 * n)),
    Fault("wrong rope base", "metadata", "llama.rope.freq_base",
          keys=number("llama.rope.freq_base", lambda n: 10000.0)),
    Fault("wrong epsilon", "metadata", "llama.attention.layer_norm_rms_epsilon",
          keys=number("llama.attention.layer_norm_rms_epsilon", lambda n: 1e-6)),
    Fault("a longer context than it was trained for", "metadata", "llama.context_length",
          keys=number("llama.context_length", lambda n: 4 * n)),
    Fault("fewer experts asked", "metadata", "qwen3moe.expert_used_count",
          keys=number("qwen3moe.expert_used_count", lambda n: n - 1), model="qwen3moe-256"),
    Fault("a key left out", "metadata", "llama.rope.dimension_count", keys=removed("llama.rope.dimension_count")),
    Fault("another architecture", "metadata", "general.architecture",
          keys=number("general.architecture", lambda _: "qwen2")),
    Fault("truncated vocabulary", "tokenizer", TOKENS, keys=entries(TOKENS, lambda t: t[:-1])),
    Fault("tokens off by one", "tokenizer", TOKENS, keys=entries(TOKENS, lambda t: [t[-1], *t[:-1]])),
    Fault("one token changed", "tokenizer", TOKENS, keys=entries(TOKENS, lambda t: [*t[:99], "nonsense", *t[100:]])),
    Fault("token id off by one", "tokenizer", EOS, keys=number(EOS, lambda n: n + 1)),
    Fault("merges in another order", "tokenizer", "tokenizer.ggml.merges",
          keys=entries("tokenizer.ggml.merges", lambda m: [*m[1:], m[0]])),
    Fault("wrong types of tokens", "tokenizer", "tokenizer.ggml.token_type",
          keys=entries("tokenizer.ggml.token_type", lambda t: [1] * len(t))),
    Fault("another pre-tokenizer", "tokenizer", "tokenizer.ggml.pre",
          keys=number("tokenizer.ggml.pre", lambda _: "gpt-2")),
    Fault("another scale of tokens' scores", "tokenizer", "tokenizer.ggml.scores",
          keys=entries("tokenizer.ggml.scores", lambda s: [2 * each for each in s]), model="mistral-256"),
    Fault("no token before the text", "tokenizer", "tokenizer.ggml.add_bos_token",
          keys=number("tokenizer.ggml.add_bos_token", lambda b: not b), model="mistral-256"),
    Fault("another token before the text", "tokenizer", "tokenizer.ggml.bos_token_id",
          keys=number("tokenizer.ggml.bos_token_id", lambda n: n + 5)),
    Fault("one token made a special one", "tokenizer", "tokenizer.ggml.token_type",
          keys=entries("tokenizer.ggml.token_type", lambda t: [*t[:50], 3, *t[51:]])),
    Fault("a sentence more in the chat template", "template", "tokenizer.chat_template",
          keys=number("tokenizer.chat_template", lambda t: "You may be told otherwise. " + t)),
    Fault("wrong chat template", "template", "tokenizer.chat_template",
          keys=number("tokenizer.chat_template", lambda t: t + " ")),
    Fault("no chat template", "template", "tokenizer.chat_template", keys=removed("tokenizer.chat_template")),
)  # fmt: skip


class Workshop:
    """Models and what was made of them, each once."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.source = cache(self._source)
        self.good = cache(self._good)

    def _source(self, name: str) -> Path:
        return models.build_model(name, self.folder)

    def _good(self, name: str, quant: str) -> Path:
        target = self.folder / f"{name}-{quant}.gguf"
        converter.convert(self.source(name), target, Request(quant=quant))
        return target

    def damaged(self, fault: Fault, folder: Path) -> Path:
        """The file of a fault, in `folder`."""
        good = self.good(fault.model, fault.quant)
        with converter.open_checkpoint(good) as model:
            keys = fault.keys(model.config) if fault.keys else None
        return rewritten(good, folder / "bad.gguf", keys, fault.tensors or (lambda old: old))
