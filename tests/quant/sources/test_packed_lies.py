"""Packed weights whose tensors, settings and texts lie or contradict each other: one clear error each."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import reduce
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.packed_weights import NAME, OUT, ROW, STATE, Tensors, four_bits, given, text, write

from converter.errors import ConverterError, CorruptFile, UnsupportedFeature
from converter.formats.registry import open_checkpoint
from converter.quant.sources import unpacked
from converter.tensors.streams import values


def without(*names: str) -> Callable[[Tensors], Tensors]:
    return lambda tensors: {name: each for name, each in tensors.items() if name not in names}


def changed(**news: Any) -> Callable[[Tensors], Tensors]:
    """Tensors by suffix, __ for a dot; functions get what was there."""
    return lambda tensors: (
        tensors
        | {
            key.replace("__", "."): new(tensors[key.replace("__", ".")]) if callable(new) else new
            for key, new in news.items()
        }
    )


def state(content: str | None = None, **said: Any) -> Callable[[Tensors], Tensors]:
    """With another text, or other things said in it."""
    made = four_bits(np.ones((OUT, ROW), int), **said)[STATE] if content is None else text(content)
    return lambda tensors: tensors | {STATE: made}


def both(*changes: Callable[[Tensors], Tensors]) -> Callable[[Tensors], Tensors]:
    return lambda tensors: reduce(lambda made, change: change(made), changes, tensors)


def first(number: float) -> Callable[[np.ndarray], np.ndarray]:
    """With another number in the first place."""

    def change(array: np.ndarray) -> np.ndarray:
        made = array.copy()
        made.flat[0] = number
        return made

    return change


def said(**settings: Any) -> dict[str, Any]:
    return settings


NESTED = {"weight__absmax": np.zeros(32, np.uint8), "weight__nested_absmax": np.ones(1, np.float32)}
MAP = {"weight__nested_quant_map": np.ones(256, np.float32)}
LIES: dict[str, tuple[str, Any, type[ConverterError], str]] = {
    # What it is: the scheme, what is changed (tensors, settings or labels), the error and what it says.
    "a group that is not there": ("gptq", changed(g_idx=first(2)), CorruptFile, "g_idx names group 2 of 2"),
    "a group below none": ("gptq", changed(g_idx=first(-1)), CorruptFile, "g_idx names group -1 of 2"),
    "five bits": ("gptq", changed(g_idx=np.zeros(50, np.int32)), CorruptFile, "8 words for 50 codes"),
    "scales of fewer rows": ("gptq", changed(scales=lambda s: s[:, 1:]), CorruptFile, r"scales is \[2, 15\]"),
    "zero points of fewer rows": ("gptq", changed(qzeros=lambda s: s[:, 1:]), CorruptFile, r"qzeros is \[2, 1\]"),
    "Marlin": ("gptq", said(is_marlin_format=True), UnsupportedFeature, "Marlin"),
    "planes of bits": ("gptq", said(checkpoint_format="gptq_p"), UnsupportedFeature, "in the format gptq_p"),
    "a scale that is no number": ("awq", changed(scales=first(np.nan)),
        CorruptFile, "a scale is infinite or no number"),
    "a scale of zero": ("awq", changed(scales=first(0)), CorruptFile, "a scale is zero, and its codes are not"),
    "no zero points": ("awq", without("qzeros"), CorruptFile, "qzeros is not there"),
    "no codes": ("awq", without("qweight"), CorruptFile, "qweight is not there"),
    "more scales": ("awq", changed(scales=lambda s: s[:, :8]),
        CorruptFile, r"none of the layouts of AWQ: qweight I32 \[64, 2\], qzeros I32 \[2, 2\], scales F16 \[2, 8\]"),
    "a group less of zero points": ("awq", changed(qzeros=lambda z: z[:1]), CorruptFile, r"qzeros is \[1, 2\]"),
    "rows for a kernel": ("awq", changed(qweight=np.zeros((4, ROW), np.int16)), CorruptFile, "none of the layouts"),
    "rows that do not alternate": ("awq-fast", changed(qweight=np.zeros((4, 80), np.int16)),
        CorruptFile, "no runs of 64"),
    "scaled zeros of another shape": ("awq-fast", changed(scaled_zeros=lambda z: z[:1]),
        CorruptFile, r"scaled_zeros is \[1, 16\], the others make it \[32, 16\]"),
    "a scaled zero that is no number": ("awq-fast", changed(scaled_zeros=first(np.nan)),
        CorruptFile, "a zero point or a least number is infinite"),
    "a layout of other kernels": ("awq", said(version="ipex"), UnsupportedFeature, "for a kernel .ipex."),
    "eight bits": ("awq", said(bits=8), UnsupportedFeature, "with 8 bits"),
    "no JSON": ("bnb", state("[1]"), CorruptFile, "no JSON object"),
    "a JSON without end": ("bnb", state(json.dumps("a" * (1 << 17))), CorruptFile, "no JSON object"),
    "a shape that lies": ("bnb", state(shape=[OUT, 2 * ROW]),
        CorruptFile, r"512 bytes, quant_state makes it \[16, 128\]"),
    "a shape below zero": ("bnb", state(shape=[-1, -ROW]), CorruptFile, "quant_state says shape = "),
    "a shape without rows": ("bnb", state(shape=[OUT * ROW]), CorruptFile, "quant_state says shape = "),
    "a shape of texts": ("bnb", state(shape=["16", "64"]), CorruptFile, "quant_state says shape = "),
    "blocks of nothing": ("bnb", state(blocksize=0), CorruptFile, "quant_state says blocksize = 0"),
    "blocks of another size": ("bnb", state(blocksize=64), CorruptFile, r"absmax is \[32\]"),
    "fp4 under nf4's name": ("bnb", state(quant_type="fp4"), CorruptFile, "quant_state says quant_type"),
    "no absmax": ("bnb", without("weight.absmax"), CorruptFile, "absmax is not there"),
    "half an absmax": ("bnb", changed(weight__absmax=lambda a: a.astype(np.float16)), CorruptFile, "absmax is F16"),
    "an absmax that is no number": ("bnb", changed(weight__absmax=first(np.nan)), CorruptFile, "absmax is infinite"),
    "a codebook of 15": ("bnb", changed(weight__quant_map=lambda m: m[1:]), CorruptFile, r"quant_map is \[15\]"),
    "a codebook with NaN": ("bnb", changed(weight__quant_map=first(np.nan)), CorruptFile, "quant_map holds infinite"),
    "nested without codebook": ("bnb", changed(**NESTED), CorruptFile, "nested_blocksize = "),
    "nested, no codebook": ("bnb", both(changed(**NESTED), state(nested_blocksize=256)),
        CorruptFile, "no nested_quant_map"),
    "an offset without end": ("bnb", both(changed(**NESTED, **MAP), state(nested_blocksize=256, nested_offset=1e999)),
                              CorruptFile, "nested_offset = "),
    "old GPUs' tiles": ("bnb8", changed(weight_format=np.uint8([1])), UnsupportedFeature, "weight_format"),
    "fewer rows of scales": ("bnb8", changed(SCB=lambda s: s[1:]), CorruptFile, r"SCB is \[15\]"),
    "an SCB without end": ("bnb8", changed(SCB=first(np.inf)), CorruptFile, "a scale is infinite"),
    "no biases": ("mlx", without("biases"), CorruptFile, "config.json names no mode"),
    "no scales": ("mlx", without("scales"), CorruptFile, "scales is not there"),
    "seven bits": ("mlx", said(bits=7), CorruptFile, "makes it 7 bits"),
    "other bits": ("mlx", said(bits=8), CorruptFile, "8 words and 2 groups are not 8 bits in groups of 32"),
    "no groups": ("mlx", said(group_size=0), CorruptFile, "in groups of 0"),
    "a least number that is none": ("mlx", changed(biases=first(np.nan)),
        CorruptFile, "a zero point or a least number"),
    "a mode that is not known": ("mlx", both(without("biases"), changed(scales=np.ones((OUT, 2), np.uint8))),
                                 CorruptFile, "names no mode"),
    "no shape": ("hqq", without("shape"), CorruptFile, "shape is not there"),
    "a shape that cannot be": ("hqq", changed(shape=np.int64([-16, -64])), CorruptFile, "shape says"),
    "a shape of more": ("hqq", changed(shape=np.int64([16, 128])), CorruptFile, "W_q has 512 bytes"),
    "nine bits": ("hqq", changed(nbits=np.int32([9])), CorruptFile, "9 bits"),
    "a third axis": ("hqq", changed(axis=np.int32([2])), CorruptFile, "axis 2"),
    "groups of nothing": ("hqq", changed(group_size=np.int32([0])), CorruptFile, "in groups of 0"),
    "an unknown packing": ("hqq", changed(packing=text("9bit_u8")), CorruptFile, "cannot be"),
    "settings of other types": ("hqq", changed(axis=np.float32([1])), CorruptFile, "axis is F32"),
    "settings of many numbers": ("hqq", changed(axis=np.int32([1, 1])), CorruptFile, "axis is no number"),
    "scales in scales": ("hqq", changed(quant_scale=np.uint8([1])), UnsupportedFeature, "quantized again"),
    "a real zero point that is none": ("hqq", changed(zero=first(np.nan)),
        CorruptFile, "a zero point or a least number"),
    "fewer zero points": ("hqq", changed(zero=lambda z: z[1:]), CorruptFile, r"zero is \[31, 1\]"),
    "no label": ("torchao", {}, CorruptFile, "header does not say"),
    "a label that is no JSON": ("torchao", {NAME + ".weight": "{"}, CorruptFile, "header does not say"),
    "tiles of a GPU": ("torchao", ("_type", "Int4TilePackedTo4dTensor"),
        UnsupportedFeature, "Int4TilePackedTo4dTensor"),
    "blocks that do not divide": ("torchao", ("block_size", [1, 48]), CorruptFile, "is not made of blocks"),
    "blocks of one axis": ("torchao", ("block_size", [32]), CorruptFile, "block_size is"),
    "blocks of other sizes": ("torchao", ("block_size", [1, 64]), CorruptFile, "make it 16"),
    "codes of more bits": ("torchao", ("target_dtype", {"_data": "int3"}), CorruptFile, "not of the type int3"),
    "numbers of another type": ("torchao", ("dtype", {"_data": "int8"}), CorruptFile, "of the type"),
    "scaled activations": ("torchao", changed(_weight_act_pre_scale=np.ones(ROW, np.float16)),
        UnsupportedFeature, "act_pre_scale"),
    "no scale": ("quanto", without("weight._scale"), CorruptFile, "_scale is not there"),
    "no shift": ("quanto", without("weight._shift"), CorruptFile, "_shift is not there"),
    "groups that no bits make": ("quanto", changed(weight___scale=np.ones((40, 1), np.float16)),
        CorruptFile, "_shift is"),
    "rows of nothing known": ("quanto", changed(weight___data___data=np.ones((8, 64), np.uint8)),
        CorruptFile, "how many make a row does not follow"),
    "whole scales": ("quanto8", changed(weight___scale=np.ones((OUT, 1), np.int32)), CorruptFile, "scales are I32"),
    "scales of other rows": ("quanto8", changed(weight___scale=np.ones((8, 1), np.float16)),
        CorruptFile, r"_scale is \[8, 1\]"),
    "neither -1, 0 nor 1": ("bitnet", changed(weight=first(0xFF)), CorruptFile, "neither -1, 0 nor 1"),
    "a weight_scale of 0": ("bitnet", changed(weight_scale=np.float32([0])), CorruptFile, "weight_scale is 0"),
    "two scales": ("bitnet", changed(weight_scale=np.float32([1, 1])), CorruptFile, r"weight_scale is \[2\]"),
}  # fmt: skip


def lied(scheme: str, change: Any) -> tuple[Tensors, dict[str, Any], dict[str, str]]:
    tensors, settings, labels = given(scheme)
    if isinstance(change, tuple):
        label = json.loads(labels[NAME + ".weight"])
        (label if change[0] in label else label["_data"])[change[0]] = change[1]
        labels = {NAME + ".weight": json.dumps(label)}
    elif callable(change):
        tensors = change(tensors)
    elif scheme == "torchao":
        labels = change
    else:
        settings |= change
    return tensors, settings, labels


def read(folder: Path, tensors: Tensors, settings: dict[str, Any], labels: dict[str, str]) -> None:
    write(folder, tensors, settings, labels)
    for keep in ("never", "exact", "near"):
        with open_checkpoint(folder) as opened:
            for tensor in unpacked(opened, keep=keep).tensors.values():
                values(tensor, 0, tensor.info.n_rows)


@pytest.mark.parametrize("scheme", sorted({lie[0] for lie in LIES.values()}))
def test_what_they_lie_about_is_read_where_it_is_true(tmp_path: Path, scheme: str) -> None:
    read(tmp_path / "m", *given(scheme))


@pytest.mark.parametrize("lie", LIES)
def test_lies(tmp_path: Path, lie: str) -> None:
    scheme, change, error, says = LIES[lie]
    with pytest.raises(error, match=says) as caught:
        read(tmp_path / "m", *lied(scheme, change))
    message = str(caught.value)
    assert len(message.splitlines()) <= 3 and str(tmp_path) in message and len(message) < 600
