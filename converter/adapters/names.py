"""What the names of an adapter's tensors mean: which module, and what of it.

`base_model.model.model.layers.0.mlp.up_proj.lora_A.weight` is `lora_A` of `model.layers.0.mlp.up_proj`. Names also
come without the prefix, with the adapter's own name in them, and with what wrapped the model or a module.
Source: PEFT's `get_peft_model_state_dict`, and adapters as training programs leave them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from converter.checkpoint import Checkpoint
from converter.errors import CorruptFile, UnsupportedFeature, short
from converter.tensors.tensor import LazyTensor

#: Of LoRA and DoRA, IA3, LoHa, LoKr, trainable tokens; MLX writes the first two in lower case and the other way round.
KINDS = (
    "lora_A", "lora_B", "lora_a", "lora_b", "lora_embedding_A", "lora_embedding_B", "lora_magnitude_vector", "m",
    "ia3_l",
    "hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b",
    "lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_w2", "lokr_w2_a", "lokr_w2_b",
    "trainable_tokens_delta",
)  # fmt: skip
_PART = re.compile(
    rf"(?P<module>.+)\.(?P<kind>{'|'.join(KINDS)})"
    r"(\.(?P<adapter>(?!weight$|bias$)[^.]+))?(\.(?P<leaf>weight|bias))?"
)
_SAVED = re.compile(r"(?P<module>.+?)(?P<of>\.modules_to_save(\.[^.]+)?|\.original_module)?\.(?P<leaf>[^.]+)")
_PREFIXES, _WRAPPED = (("module",), ("base_model", "model")), "base_layer"
_WRAPPERS = ("_orig_mod", "_fsdp_wrapped_module", "token_adapter")


@dataclass
class Module:
    """What an adapter, in `path`, has for a module, by kind; `depth` counts how often that was wrapped before."""

    path: Path
    name: str
    depth: int = 0
    parts: dict[str, LazyTensor] = field(default_factory=dict)

    def part(self, kind: str) -> LazyTensor:
        """A tensor that there must be.

        Raises:
            CorruptFile: it is not there.
        """
        if kind not in self.parts:
            have = next(iter(self.parts.values())).name
            raise CorruptFile(f"{self.path}: {short(have)} has no {kind} beside it; the adapter is not whole")
        return self.parts[kind]


@dataclass
class Named:
    """The tensors of an adapter: those of modules, what replaces a tensor of the base, and copies of the base's."""

    modules: dict[tuple[str, int], Module] = field(default_factory=dict)
    saved: dict[str, LazyTensor] = field(default_factory=dict)
    copies: dict[str, LazyTensor] = field(default_factory=dict)


def named(adapter: Checkpoint) -> Named:
    """The tensors of an adapter, told apart by their names.

    Raises:
        UnsupportedFeature: several adapters in one file.
        CorruptFile: two tensors that are the same one.
    """
    found, adapters = Named(), set[str]()
    for name, tensor in adapter.tensors.items():
        match = _PART.fullmatch(name)
        if match is None:
            _save(found, name, tensor)
            continue
        if match["adapter"]:
            adapters.add(match["adapter"])
        module, depth = _cleaned(match["module"])
        kind = match["kind"] + (".bias" if match["leaf"] == "bias" else "")
        parts = found.modules.setdefault((module, depth), Module(adapter.path, module, depth)).parts
        if kind in parts:
            raise CorruptFile(f"{adapter.path}: {short(name)} is {short(parts[kind].name)} under another name")
        parts[kind] = tensor
    if len(adapters) > 1:
        raise UnsupportedFeature(f"{adapter.path}: holds several adapters ({', '.join(sorted(adapters)[:4])})")
    return found


def _save(found: Named, name: str, tensor: LazyTensor) -> None:
    """What replaces a tensor of the base; a copy of the base's own does not."""
    match = _SAVED.fullmatch(name)
    module, depth = _cleaned(match["module"]) if match else ("", 0)
    leaf = match["leaf"] if match else name
    copied = match is not None and (match["of"] == ".original_module" or (depth > 0 and leaf == "weight"))
    (found.copies if copied else found.saved)[".".join(filter(None, (module, leaf)))] = tensor


def _cleaned(module: str) -> tuple[str, int]:
    parts = [part for part in module.split(".") if part not in _WRAPPERS]
    for prefix in (*_PREFIXES, *_PREFIXES):  # of what wrapped the adapted model, and of what was adapted
        parts = parts[len(prefix) :] if tuple(parts[: len(prefix)]) == prefix else parts
    return ".".join(part for part in parts if part != _WRAPPED), parts.count(_WRAPPED)


def listed(names: Iterable[str], shown: int = 3) -> str:
    """Some names for a message, and how many more there are."""
    names = list(names)
    more = f" and {len(names) - shown} more" if len(names) > shown else ""
    return ", ".join(short(name)[1:-1] for name in names[:shown]) + more
