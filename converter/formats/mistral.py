"""Mistral's own folder, read as a Hugging Face one: params.json, consolidated weights, tekken.json or tokenizer.model.

Source: mistral-inference (args.py, transformer.py, transformer_layers.py, moe.py) for words, names and what a silent
params.json means; what vLLM and llama.cpp's `--mistral-format` make of `yarn`, `llama_4_scaling`, `quantization`.

Names become those of transformers' classes, words those of their config.json. Mistral's code rotates neighbours and
Hugging Face's rotates halves, so q and k get its order of rows, when they are read.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from converter.checkpoint import Checkpoint
from converter.errors import CorruptFile, MissingPart, UnsupportedFeature, short
from converter.events import Dropped, Event, Note
from converter.formats.base import Format, child
from converter.formats.hf_folder import small_files
from converter.formats.hub import folder_assets, whole_set
from converter.formats.safetensors import open_files
from converter.formats.torch.checkpoint import open_torch
from converter.storage.json import read_json
from converter.tensors.dtypes import BY_SAFETENSORS
from converter.tensors.ops import Rope
from converter.tensors.streams import compose
from converter.tensors.tensor import LazyTensor

PARAMS = "params.json"
# The first that is there is the model; those with a star may be several files, which together are one.
WEIGHTS = (
    "consolidated.safetensors", "consolidated.safetensors.index.json", "consolidated-*-of-*.safetensors",
    "consolidated.[0-9]*.safetensors", "consolidated.00.pth", "consolidated.00.pt",
)  # fmt: skip
TOKENIZER, VERSIONED = "tokenizer.model", "tokenizer.model.v*"

# What params.json says -> what config.json says.
SIZES = {
    "dim": "hidden_size", "n_layers": "num_hidden_layers", "head_dim": "head_dim", "hidden_dim": "intermediate_size",
    "n_heads": "num_attention_heads", "n_kv_heads": "num_key_value_heads", "vocab_size": "vocab_size",
}  # fmt: skip
MOE = {"num_experts": "num_local_experts", "num_experts_per_tok": "num_experts_per_tok"}
YARN = {"factor": "factor", "beta": "beta_fast", "alpha": "beta_slow"}
ORIGINAL = "original_max_position_embeddings"
CONTEXT = ("max_position_embeddings", "max_seq_len")
# Words with one value that the classes compute; others would be another model.
BUILT_IN: Mapping[str, tuple[object, ...]] = {
    "model_type": ("transformer",), "activation": ("silu",), "causal": (True,), "use_biases": (False,),
}  # fmt: skip
WITHOUT_EFFECT = ("max_batch_size", "model_parallel", "use_cache")
CLASSES = {"mistral": "MistralForCausalLM", "ministral3": "Ministral3ForCausalLM", "mixtral": "MixtralForCausalLM"}
# What mistral-inference has where params.json is silent.
DEFAULT_CONTEXT, DEFAULT_THETA, WINDOWED_THETA = 128_000, 1_000_000.0, 10_000.0

TOP = {"tok_embeddings": "model.embed_tokens", "norm": "model.norm", "output": "lm_head"}
BLOCK = {
    "attention_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm",
    "attention.wq": "self_attn.q_proj", "attention.wk": "self_attn.k_proj", "attention.wv": "self_attn.v_proj",
    "attention.wo": "self_attn.o_proj", "feed_forward.w1": "mlp.gate_proj", "feed_forward.w2": "mlp.down_proj",
    "feed_forward.w3": "mlp.up_proj", "feed_forward.gate": "block_sparse_moe.gate",
}  # fmt: skip
LEAVES = {"weight": "weight", "qscale_weight": "weight_scale_inv", "qscale_act": "activation_scale"}
ROTATED = {"attention.wq": "n_heads", "attention.wk": "n_kv_heads"}
VISION = ("vision_encoder.", "vision_language_adapter.", "patch_merger.", "pre_mm_projector_norm.")

_NAME = re.compile(r"(?:layers\.(0|[1-9][0-9]{0,5})\.)?([a-z_0-9.]+)\.([a-z_]+)")
_EXPERT = re.compile(r"feed_forward\.(experts\.[0-9]{1,6}\.w[123])")
_MAX_SIZE = 1 << 31
_SILENT = (None, False, "")


def sniff(path: Path, start: bytes) -> bool:
    """A folder with params.json and consolidated weights, and no config.json."""
    own = path.is_dir() and (path / PARAMS).is_file() and not (path / "config.json").is_file()
    return own and any(path.glob("consolidated*"))


def open_mistral(path: Path) -> Checkpoint:
    """The folder's weights under Hugging Face names with the config.json that transformers would have of it.

    Raises:
        MissingPart: no params.json, or no weights.
        CorruptFile: params.json is not what such a file is, or contradicts the tensors.
        UnsupportedFeature: it, or a tensor, says what is not known here.
    """
    if not (path / PARAMS).is_file():
        raise MissingPart(f"{path}: no {PARAMS}, which says what the model is")
    params = _Params(file := child(path, PARAMS, path), read_json(file, python=True))
    config, events = _config(params)
    checkpoint = _weights(path)
    try:
        tensors, left = _translated(params, checkpoint.tensors)
    except BaseException:
        checkpoint.close()
        raise
    return checkpoint.replace(
        format="mistral",
        path=path,
        dialect="hf",
        tensors=tensors,
        config={**config, **_dtype(tensors)},
        assets=_assets(path),
        events=(*checkpoint.events, *events, *left),
    )


def _weights(path: Path) -> Checkpoint:
    pattern, found = next(((each, found) for each in WEIGHTS if (found := _in_order(path.glob(each)))), ("", []))
    files = [child(path, each.name, path) for each in found]
    if not files:
        raise MissingPart(f"{path}: no weights; Mistral's own are {WEIGHTS[0]}, in one file or several")
    if not pattern.endswith((".safetensors", ".json")):
        return open_torch(files[0])
    if "[0-9]" in pattern:
        return open_files(path, _all_numbers(files), None, {}, "mistral")
    said, shards, expected = whole_set(files[0])
    return open_files(said, shards, expected, {}, "mistral")


def _in_order(files: Iterable[Path]) -> list[Path]:
    return sorted(files, key=lambda file: (len(file.name), file.name))


def _all_numbers(files: list[Path]) -> list[Path]:
    """`consolidated.00.safetensors` and the following, none missing between them."""
    for number, file in enumerate(files):
        said = file.name.split(".")[1]
        if said != f"{number:0{len(said)}d}":
            wanted = f"consolidated.{number:0{len(said)}d}.safetensors"
            raise MissingPart(f"{file.with_name(wanted)}: not there, and {file.name} is; download it too")
    return files


def _assets(path: Path) -> dict[str, Path]:
    """The small files, without those that config.json is made of; a tokenizer.model.v3 is a tokenizer.model."""
    versions = [file.name for file in _in_order(path.glob(VERSIONED))]
    assets = {**small_files(path), **folder_assets(path)}
    kept = {name: file for name, file in assets.items() if name not in (PARAMS, "config.json", *versions)}
    return {TOKENIZER: child(path, versions[-1], path), **kept} if versions else kept


# ------------------------------------------------------------------------------------------- params.json


@dataclass
class _Params:
    """An object of params.json that remembers what was asked for; `where` is its own key in the file."""

    file: Path
    said: Mapping[str, Any]
    where: str = ""
    asked: set[str] = field(default_factory=set)

    def get(self, key: str) -> Any:
        self.asked.add(key)
        return self.said.get(key)

    def wrong(self, key: str, wanted: str) -> CorruptFile:
        return CorruptFile(f"{self.file}: {self.where}{key} is {short(self.said.get(key))}, {wanted} was expected")

    def size(self, key: str) -> int:
        value = self.get(key)
        if type(value) is not int or not 0 < value < _MAX_SIZE:
            raise self.wrong(key, "a size")
        return value

    def number(self, key: str) -> float:
        value = self.get(key)
        if type(value) not in (int, float) or not (math.isfinite(value) and value > 0):
            raise self.wrong(key, "a number above zero")
        return float(value)

    def flag(self, key: str) -> bool:
        value = self.get(key)
        if not isinstance(value, bool):
            raise self.wrong(key, "true or false")
        return value

    def part(self, key: str) -> _Params | None:
        """An object inside; None where there is none."""
        value = self.get(key)
        if value is not None and not isinstance(value, dict):
            raise self.wrong(key, "an object")
        return _Params(self.file, value, f"{self.where}{key}.") if value else None

    def nothing_else(self) -> None:
        """Refuse words that were not asked for: they may change what the model computes."""
        for key, value in self.said.items():
            if key not in self.asked and value not in _SILENT:
                raise UnsupportedFeature(
                    f"{self.file}: {short(self.where + key)} is {short(value)}, which is not known here\n"
                    "the model in Hugging Face's format, where it is published so, has a class that may be"
                )


def _config(params: _Params) -> tuple[dict[str, Any], list[Event]]:
    sizes = {word: params.size(key) for key, word in SIZES.items()}
    if sizes["num_attention_heads"] % sizes["num_key_value_heads"]:
        raise params.wrong("n_kv_heads", f"a divisor of n_heads ({sizes['num_attention_heads']})")
    if sizes["head_dim"] % 2:
        raise params.wrong("head_dim", "an even number")
    for key, values in BUILT_IN.items():
        if params.said.get(key) in (None, *values):
            params.asked.add(key)
    params.asked.update(WITHOUT_EFFECT)
    window = None if params.get("sliding_window") is None else params.size("sliding_window")
    contexts = [params.size(key) for key in CONTEXT if params.get(key) is not None]
    events = [] if contexts else [Note(f"{PARAMS} says no length of the context; {DEFAULT_CONTEXT}, as Mistral's code")]
    experts, scaling = _experts(params), _rope(params, window)
    kind = "mixtral" if experts else "ministral3" if "rope_parameters" in scaling else "mistral"
    if kind == "mixtral" and "rope_parameters" in scaling:
        raise UnsupportedFeature(f"{params.file}: moe and yarn in one model are not known here")
    params.get("vision_encoder")
    config = {
        "architectures": [CLASSES[kind]],
        "model_type": kind,
        "hidden_act": "silu",
        **sizes,
        "rms_norm_eps": params.number("norm_eps"),
        "max_position_embeddings": [*contexts, DEFAULT_CONTEXT][0],
        "sliding_window": window,
        "tie_word_embeddings": params.get("tied_embeddings") is not None and params.flag("tied_embeddings"),
        "bos_token_id": 1,
        "eos_token_id": 2,
        **experts,
        **scaling,
        **_quantization(params),
    }
    params.nothing_else()
    return config, [*events]


def _experts(params: _Params) -> dict[str, int]:
    moe = params.part("moe")
    if moe is None:
        return {}
    experts = {word: moe.size(key) for key, word in MOE.items()}
    moe.nothing_else()
    return experts


def _rope(params: _Params, window: int | None) -> dict[str, Any]:
    """The base; with `yarn` the factors, and how queries grow beyond the context that the model began with.

    With both multipliers at one transformers does not scale attention, and at zero it does by the factor.
    """
    silent = params.get("rope_theta") is None
    theta = (DEFAULT_THETA if window is None else WINDOWED_THETA) if silent else params.number("rope_theta")
    yarn, growth = params.part("yarn"), params.part("llama_4_scaling")
    if yarn is None:
        if growth is not None:
            raise UnsupportedFeature(f"{params.file}: llama_4_scaling without yarn is not known here")
        return {"rope_theta": theta}
    multiplier = 0.0 if yarn.flag("apply_scale") else 1.0
    rope = {
        "rope_type": "yarn", "rope_theta": theta, **{word: yarn.number(key) for key, word in YARN.items()},
        ORIGINAL: yarn.size(ORIGINAL), "mscale": multiplier, "mscale_all_dim": multiplier, "llama_4_scaling_beta": 0.0,
    }  # fmt: skip
    yarn.nothing_else()
    if growth is not None:
        rope["llama_4_scaling_beta"] = growth.number("beta")
        if growth.size(ORIGINAL) != rope[ORIGINAL]:
            raise UnsupportedFeature(f"{params.file}: {ORIGINAL} of yarn and of llama_4_scaling are not the same")
        growth.nothing_else()
    return {"rope_parameters": rope}


def _quantization(params: _Params) -> dict[str, Any]:
    said = params.part("quantization")
    if said is None:
        return {}
    if said.get("qformat_weight") != "fp8_e4m3":
        raise UnsupportedFeature(
            f"{params.file}: weights packed as {short(said.said.get('qformat_weight'))} are not known here"
        )
    return {"quantization_config": {"quant_method": "fp8", "activation_scheme": "static", "weight_block_size": None}}


def _dtype(tensors: Mapping[str, LazyTensor]) -> dict[str, str]:
    """What transformers is told to load the model in: the type of its embedding."""
    names = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}
    embedding = tensors.get("model.embed_tokens.weight")
    name = names.get(embedding.info.dtype.name) if embedding else None
    return {"torch_dtype": name} if name else {}


# ----------------------------------------------------------------------------------------------- tensors


def _translated(params: _Params, tensors: Mapping[str, LazyTensor]) -> tuple[dict[str, LazyTensor], list[Event]]:
    result: dict[str, LazyTensor] = {}
    images = 0
    for name, tensor in tensors.items():
        if name.startswith(VISION):
            images += 1
            continue
        new, module = _name(params, name)
        if new in result:
            raise CorruptFile(f"{params.file.parent}: {short(name)} is there twice, under two names")
        result[new] = _halves(params, tensor, module, new)
    what = f"what reads images ({images} tensors)"
    return result, [Dropped(what, "of Mistral's own format the text model alone is read")] if images else []


def _name(params: _Params, name: str) -> tuple[str, str]:
    """The name in Hugging Face's folder, and what of a block it is."""
    match = _NAME.fullmatch(name)
    block, module, leaf = match.groups() if match else (None, "", "")
    if block is None:
        known = TOP.get(module)
    else:
        expert = _EXPERT.fullmatch(module)
        known = f"block_sparse_moe.{expert[1]}" if expert else BLOCK.get(module)
        if known and int(block) >= params.size("n_layers"):
            raise CorruptFile(f"{params.file}: n_layers is {params.size('n_layers')}, and there is {short(name)}")
    if known is None or leaf not in LEAVES:
        raise UnsupportedFeature(
            f"{params.file.parent}: tensor {short(name)} is none that is known of Mistral's own format"
        )
    return f"model.layers.{block}.{known}.{LEAVES[leaf]}" if block else f"{known}.{LEAVES[leaf]}", module


def _halves(params: _Params, tensor: LazyTensor, module: str, name: str) -> LazyTensor:
    """Under its new name; rows of q and k from neighbours to halves, as bytes."""
    if module not in ROTATED or not name.endswith(".weight"):
        return tensor.renamed(name)
    heads, rows = params.size(ROTATED[module]), params.size(ROTATED[module]) * params.size("head_dim")
    if len(tensor.info.shape) != 2 or tensor.info.shape[0] != rows:
        raise CorruptFile(
            f"{params.file}: {ROTATED[module]} x head_dim is {rows}, and {tensor.name} is {list(tensor.info.shape)}"
        )
    return compose((Rope(heads, undo=True),), [tensor], [name])[0]


FORMATS = (
    Format(
        name="mistral",
        extensions=(),
        dialect="hf",
        description="Mistral's own folder (params.json, consolidated weights, tekken.json or tokenizer.model)",
        dtypes=frozenset(dtype.name for dtype in BY_SAFETENSORS.values()),
        sniff=sniff,
        open=open_mistral,
    ),
)
