"""The type that a source is seen in before it is encoded: as wide as its values, no wider."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from support import builders, samples

import converter
from converter import Request
from converter.formats.registry import formats
from converter.tensors import kernels
from converter.tensors.dtypes import BF16, DTYPES
from converter.tensors.tensor import TensorInfo

#: What a matrix of this type becomes in a GGUF when nothing is asked for.
INTERMEDIATE = {
    "F32": "F32", "F16": "F16", "BF16": "BF16", "F64": "F32", "I8": "F32",
    "F8_E4M3": "BF16", "F8_E5M2": "BF16", "F8_E8M0": "BF16",
}  # fmt: skip


def llama_of(name: str, folder: Path) -> Path:
    """A small Llama whose every weight is stored in this type; the bytes are ones, which every type takes."""
    dtype = DTYPES[name]
    builders.llama_folder(folder)
    tensors = {}
    for tensor, shape in builders.llama_shapes().items():
        info = TensorInfo(tensor, shape, dtype)
        tensors[tensor] = samples.stored(info, np.ones(info.nbytes, np.uint8))
    samples.write(formats()["safetensors"], tensors, folder / "model.safetensors", {"format": "pt"})
    return folder


@pytest.mark.parametrize("name", INTERMEDIATE)
def test_the_type_on_the_way(tmp_path: Path, name: str) -> None:
    plan = converter.plan(llama_of(name, tmp_path / "in"), tmp_path / "out.gguf", Request(no_tokenizer=True))
    with plan.checkpoint as result:
        types = {name: tensor.info.dtype.name for name, tensor in result.tensors.items()}
    assert types["blk.0.ffn_down.weight"] == INTERMEDIATE[name]
    assert types["output_norm.weight"] == "F32"


@pytest.mark.parametrize("name", [name for name in DTYPES if name.startswith("F8")])
def test_bf16_holds_every_number_of_eight_bits(name: str) -> None:
    codes = np.arange(256, dtype=np.uint8).reshape(1, 256)
    numbers = kernels.decode(codes, DTYPES[name])
    assert np.array_equal(kernels.decode(kernels.encode(numbers, BF16), BF16), numbers, equal_nan=True)
