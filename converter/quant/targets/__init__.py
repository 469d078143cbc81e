"""Folders whose weights are codes of a scheme that servers load: without data, nearest codes, in one pass.

The counterpart of `quant.sources`, which reads them back. A scheme is a row of `TARGETS`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from converter.errors import UsageError
from converter.quant.targets import compressed, fp8, mlx
from converter.quant.targets.packing import NEAREST, Ratios, Target
from converter.request import SCALES
from converter.tensors.bound import Bound
from converter.tensors.tensor import LazyTensor

TARGETS: Mapping[str, Target] = {each.name: each for each in (*fp8.TARGETS, *compressed.TARGETS, *mlx.TARGETS)}
_EMBEDDINGS = ("embed_tokens", "wte", "word_embeddings", "embed_in", "tok_embeddings", "embeddings")
_HEADS = ("lm_head", "embed_out", "output")
#: Modules that choose experts: small, and what they say must not change.
_ROUTERS = ("gate", "router", "shared_expert_gate", "gate_weight")


@dataclass(frozen=True)
class Packed:
    """Tensors of a model whose weights are packed.

    Attributes:
        tensors: all of them, in the order of the file.
        bounds: of those that hold codes or belong to them, how far the numbers that these make are from the weight's.
        config: the keys of config.json that say so.
        n_elements: of the tensors before they were packed.
    """

    tensors: Mapping[str, LazyTensor]
    bounds: Mapping[str, Bound]
    config: Mapping[str, Any]
    n_elements: int


def target(name: str) -> Target:
    """The scheme of that name.

    Raises:
        UsageError: there is none; the message lists those there are.
    """
    if name not in TARGETS:
        raise UsageError(f"--scheme {name}: unknown; known: {', '.join(TARGETS)}")
    return TARGETS[name]


def told(config: Mapping[str, Any]) -> str | None:
    """The scheme whose settings a config.json has, lists of modules aside; None where it is none of these."""
    for scheme in TARGETS.values():
        said = config.get(scheme.keys[0])
        wanted = {key: value for key, value in scheme.config(()).items() if not isinstance(value, list)}
        if isinstance(said, dict) and all(said.get(key) == value for key, value in wanted.items()):
            return scheme.name
    return None


def packed(scheme: Target, tensors: Mapping[str, LazyTensor], scale: str = SCALES[0]) -> Packed:
    """A model's tensors with the matrices of its linear maps as a scheme stores them.

    Left as they are: what is no matrix, embedding and head (but for MLX), routers, rows that do not divide.

    Args:
        scheme: of `TARGETS`.
        tensors: the model's.
        scale: of `request.SCALES`: what a group's largest number asks for, or the one with the least squared error.

    Raises:
        UsageError: no such way, or the scheme has but one.
    """
    ratios = _ratios(scheme, scale)
    made: dict[str, LazyTensor] = {}
    bounds: dict[str, Bound] = {}
    left: list[str] = []
    alone: dict[str, Any] = {}
    for name, tensor in tensors.items():
        module = name.removesuffix(".weight")
        if name == module or len(tensor.info.shape) != 2 or not tensor.info.dtype.floating:
            made[name] = tensor
        elif not _wanted(scheme, module, tensor):
            made[name] = tensor
            left.append(module)
        else:
            if settings := scheme.own(tensor):
                alone[module] = settings
            own = scheme.pack(tensor, module, ratios)
            made.update((each.name, each) for each in own)
            bounds.update((each.name, scheme.bound_of(tensor, ratios)) for each in own)
    n_elements = sum(tensor.info.n_elements for tensor in tensors.values())
    config = {**scheme.config(tuple(left)), **alone}
    return Packed(made, bounds, dict.fromkeys(scheme.keys, config), n_elements)


def _ratios(scheme: Target, scale: str) -> Ratios:
    if scale not in SCALES:
        raise UsageError(f"--scale {scale}: say {', '.join(SCALES)}")
    if scale == SCALES[0]:
        return NEAREST
    if not scheme.searched:
        able = ", ".join(name for name, each in TARGETS.items() if each.searched)
        raise UsageError(f"--scale {scale}: {scheme.name} takes scales as they come; a search is for {able}")
    return NEAREST + scheme.searched


def _wanted(scheme: Target, module: str, tensor: LazyTensor) -> bool:
    leaf = module.rpartition(".")[2]
    if leaf in _ROUTERS or (leaf in (*_EMBEDDINGS, *_HEADS) and not scheme.embeddings):
        return False
    return tensor.info.row % scheme.row == 0
