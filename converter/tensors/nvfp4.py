"""NVFP4: blocks with what a GGUF has beside them, as one tensor that knows it and as the tensors of a file.

A block of ggml is 64 values in four groups of 16, each with a scale of eight bits; all are multiplied by
`<name>.scale`, F32, one number for the tensor or one for each expert. `<name>.input_scale` is of activations that are
rounded to four bits, too. Source: the reference converter's `_generate_nvfp4_tensors`, which leaves out what is one.
"""

from __future__ import annotations

from collections.abc import Container, Mapping
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from converter.errors import UnsupportedFeature
from converter.tensors.dtypes import DTYPES, F32
from converter.tensors.tensor import Beside, LazyTensor, from_array

NVFP4 = DTYPES["NVFP4"]
WEIGHT, SCALE, INPUT_SCALE = ".weight", ".scale", ".input_scale"


def parted(tensors: Mapping[str, LazyTensor]) -> dict[str, LazyTensor]:
    """Tensors under GGUF names as a file has them: what stands beside blocks is a tensor of its own.

    Raises:
        UnsupportedFeature: the model has another tensor of such a name.
    """
    made = dict(tensors)
    for name, tensor in tensors.items():
        if (own := tensor.beside) is None:
            continue
        made[name] = replace(tensor, beside=None)
        for suffix, numbers in ((SCALE, own.scale), (INPUT_SCALE, own.input_scale)):
            if _is_one(numbers):
                continue
            other = name.removesuffix(WEIGHT) + suffix
            if other in tensors:
                raise UnsupportedFeature(
                    f"{name}: its scale would be {other}, which is another tensor of the model\n"
                    "--keep-codes never decodes what is packed"
                )
            small = from_array(other, np.array(numbers, np.float32), F32, tensor.source)
            made[other] = replace(small, parts=tensor.parts)
    return made


def joined(tensors: Mapping[str, LazyTensor], left: Container[str] = ()) -> Mapping[str, LazyTensor]:
    """What `parted` parted, as one tensor again, but for the names in `left`. Reads what stands beside."""
    made: dict[str, LazyTensor] = {}
    taken: set[str] = set()
    for name, tensor in tensors.items():
        names = [name.removesuffix(WEIGHT) + suffix for suffix in (SCALE, INPUT_SCALE)]
        found = [tensors.get(each) for each in names]
        # With what is of activations, too, blocks of another type were such blocks before they were encoded again.
        if name in left or not (
            any(found) if tensor.info.dtype is NVFP4 else all(found) and tensor.info.dtype.quantized
        ):
            continue
        numbers = [_numbers(each, tensor) for each in found]
        if all(each is not None for each in numbers):
            scale, inputs = np.broadcast_arrays(*(each for each in numbers if each is not None))
            made[name] = replace(tensor, beside=Beside(tuple(scale.tolist()), tuple(inputs.tolist())))
            taken.update(names)
    if not made:
        return tensors
    return {name: made.get(name, tensor) for name, tensor in tensors.items() if name not in taken}


def _numbers(beside: LazyTensor | None, tensor: LazyTensor) -> NDArray[np.float32] | None:
    """What a tensor says of another, one number or one to each of its matrices; None where it says something else."""
    if beside is None:
        return np.ones(1, np.float32)
    if beside.info.dtype is not F32 or beside.info.shape not in ((), (1,), tensor.info.shape[:-2]):
        return None
    numbers = beside.array().astype(np.float32).reshape(-1)
    return numbers if np.isfinite(numbers).all() else None


def _is_one(numbers: tuple[float, ...]) -> bool:
    if len(numbers) == 1:
        return abs(numbers[0] - 1) < 1e-6
    return bool(np.allclose(numbers, 1.0, atol=1e-6))
