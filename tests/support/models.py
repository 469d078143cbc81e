"""Builders of the test models: seeded random checkpoints as Hugging Face folders, and what the reference makes of them.

`build_model("mixtral-256", folder)` writes `folder/mixtral-256/` with config.json, safetensors and a tokenizer that
works. Every family comes in two widths: rows that are multiples of 256, and rows that are not (96, 128, 160 and 192),
where K-quants must fall back. The weights come from the raw output of PCG64, which numpy keeps stable for ever, through
integer sums and exact roundings: the same bytes on every machine and with every numpy. Only numpy is needed; that
transformers loads each of them without a missing or unexpected tensor is checked by tests/quant/test_fixtures.py.

`expected_tensors` and `expected_metadata` read the facts under fixtures/expected, which fixtures/make_expected.py
recorded.
"""

from __future__ import annotations

import base64
import hashlib
import json
import shutil
import struct
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from converter.storage.protobuf import blob, float32, number
from support.paths import FIXTURES

Array = npt.NDArray[Any]
ConfigStyle = Literal["transformers-5", "transformers-4"]

EXPECTED = FIXTURES / "expected"
FIXTURE_MODELS = ("stories260K", "kjv-llama")  # real models, in the repository as they are

SENTENCEPIECE_FILES = ("tokenizer.model", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")
BPE_VOCAB = 512
BPE_SPECIAL = 4  # special tokens in front of kjv-llama's vocabulary
GLM_SPECIAL_TOKENS = ("<|endoftext|>", "[MASK]", "[gMASK]", "<sop>", "<|system|>", "<|user|>", "<|observation|>")
SOLAR_SPECIAL_TOKENS = ("<unk>", "<|startoftext|>", "<|endoftext|>")
ROBERTA_SPECIAL_TOKENS = ("<s>", "<pad>", "</s>", "<unk>", "<mask>")
WORDPIECE_SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
QWEN_SPECIAL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
QWEN2_REGEX = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


@dataclass(frozen=True)
class ModelSpec:
    """One test model: what differs from its family's defaults.

    `tokenizer`: "spm" (tokenizer.model and tokenizer.json), "spm-json" (tokenizer.json alone), "llama3" or "qwen2"
    (byte-level BPE, tokenizer.json alone).
    """

    family: str
    dtype: Literal["F32", "F16", "BF16"]
    tokenizer: Literal["spm", "spm-json", "llama3", "qwen2"]
    config: dict[str, Any]


def _size(hidden: int, ffn: int, layers: int, heads: int, kv_heads: int) -> dict[str, Any]:
    return {
        "hidden_size": hidden, "intermediate_size": ffn, "num_hidden_layers": layers,
        "num_attention_heads": heads, "num_key_value_heads": kv_heads,
    }  # fmt: skip


MODELS: dict[str, ModelSpec] = {
    "llama3-256": ModelSpec("llama", "BF16", "llama3", _size(256, 512, 10, 8, 2) | {"head_dim": 32}),
    "llama3-96": ModelSpec(
        "llama", "F16", "llama3", _size(96, 160, 8, 4, 2) | {"head_dim": 32, "eos_token_id": [1, 3]}
    ),
    "mistral-256": ModelSpec("mistral", "BF16", "spm", _size(256, 512, 8, 4, 2) | {"head_dim": 64}),
    "mistral-96": ModelSpec("mistral", "F32", "spm", _size(96, 160, 3, 6, 3) | {"head_dim": 16}),
    "mixtral-256": ModelSpec("mixtral", "BF16", "spm", _size(256, 512, 2, 8, 4)),
    "mixtral-96": ModelSpec("mixtral", "F16", "spm-json", _size(96, 160, 8, 6, 2)),
    "qwen2-256": ModelSpec("qwen2", "F16", "qwen2", _size(256, 512, 8, 8, 2)),
    "qwen2-96": ModelSpec("qwen2", "BF16", "qwen2", _size(96, 160, 4, 6, 2) | {"tie_word_embeddings": True}),
    "qwen3-256": ModelSpec("qwen3", "F32", "qwen2", _size(256, 512, 3, 4, 2) | {"head_dim": 128}),
    "qwen3-96": ModelSpec(
        "qwen3", "F16", "qwen2", _size(96, 160, 8, 4, 2) | {"head_dim": 32, "tie_word_embeddings": True}
    ),
    "qwen3moe-256": ModelSpec(
        "qwen3_moe", "BF16", "qwen2", _size(256, 512, 2, 8, 2) | {"head_dim": 32, "moe_intermediate_size": 256}
    ),
    "qwen3moe-96": ModelSpec(
        "qwen3_moe", "F32", "qwen2", _size(96, 192, 4, 4, 2) | {"head_dim": 32, "moe_intermediate_size": 160}
    ),
}

# config.json of each family as transformers 5.23 writes it; sizes, dtype and token ids are filled in.
_ROPE_DEFAULT = {"rope_theta": 10000.0, "rope_type": "default"}
FAMILY_CONFIGS: dict[str, dict[str, Any]] = {
    "llama": {
        "architectures": ["LlamaForCausalLM"], "attention_bias": False, "attention_dropout": 0.0, "hidden_act": "silu",
        "initializer_range": 0.02, "max_position_embeddings": 1024, "mlp_bias": False, "model_type": "llama",
        "pad_token_id": None, "pretraining_tp": 1, "rms_norm_eps": 1e-05,
        "rope_parameters": {
            "factor": 8.0, "high_freq_factor": 4.0, "low_freq_factor": 1.0, "original_max_position_embeddings": 128,
            "rope_theta": 500000.0, "rope_type": "llama3",
        },
        "tie_word_embeddings": False, "use_cache": True,
    },
    "mistral": {
        "architectures": ["MistralForCausalLM"], "attention_dropout": 0.0, "hidden_act": "silu",
        "initializer_range": 0.02, "max_position_embeddings": 512, "model_type": "mistral", "pad_token_id": None,
        "rms_norm_eps": 1e-05, "rope_parameters": {"rope_theta": 1000000.0, "rope_type": "default"},
        "sliding_window": None, "tie_word_embeddings": False, "use_cache": True,
    },
    "mixtral": {
        "architectures": ["MixtralForCausalLM"], "attention_dropout": 0.0, "head_dim": None, "hidden_act": "silu",
        "initializer_range": 0.02, "max_position_embeddings": 512, "model_type": "mixtral", "num_experts_per_tok": 2,
        "num_local_experts": 8, "output_router_logits": False, "pad_token_id": None, "rms_norm_eps": 1e-05,
        "rope_parameters": {"rope_theta": 1000000.0, "rope_type": "default"}, "router_aux_loss_coef": 0.001,
        "router_jitter_noise": 0.0, "sliding_window": None, "tie_word_embeddings": False, "use_cache": True,
    },
    "qwen2": {
        "architectures": ["Qwen2ForCausalLM"], "attention_dropout": 0.0, "hidden_act": "silu",
        "initializer_range": 0.02, "layer_types": "full_attention", "max_position_embeddings": 512,
        "max_window_layers": 28, "model_type": "qwen2", "pad_token_id": None, "rms_norm_eps": 1e-06,
        "rope_parameters": {"rope_theta": 1000000.0, "rope_type": "default"}, "sliding_window": None,
        "tie_word_embeddings": False, "use_cache": True, "use_sliding_window": False,
    },
    "qwen3": {
        "architectures": ["Qwen3ForCausalLM"], "attention_bias": False, "attention_dropout": 0.0, "hidden_act": "silu",
        "initializer_range": 0.02, "layer_types": "full_attention", "max_position_embeddings": 512,
        "max_window_layers": 28, "model_type": "qwen3", "pad_token_id": None, "rms_norm_eps": 1e-06,
        "rope_parameters": {"rope_theta": 1000000.0, "rope_type": "default"}, "sliding_window": None,
        "tie_word_embeddings": False, "use_cache": True, "use_sliding_window": False,
    },
    "qwen3_moe": {
        "architectures": ["Qwen3MoeForCausalLM"], "attention_bias": False, "attention_dropout": 0.0,
        "decoder_sparse_step": 1, "hidden_act": "silu", "initializer_range": 0.02, "max_position_embeddings": 512,
        "mlp_only_layers": [], "model_type": "qwen3_moe", "norm_topk_prob": True, "num_experts_per_tok": 4,
        "num_local_experts": 16, "output_router_logits": False, "pad_token_id": None, "rms_norm_eps": 1e-06,
        "rope_parameters": _ROPE_DEFAULT, "router_aux_loss_coef": 0.001, "sliding_window": None,
        "tie_word_embeddings": False, "use_cache": True, "use_sliding_window": False,
    },
}  # fmt: skip

# Vocabulary rows of the embedding and the ids config.json names. Qwen pads its embedding beyond the tokenizer (511).
TOKENIZER_CONFIG: dict[str, dict[str, Any]] = {
    "spm": {"vocab_size": 512, "bos_token_id": 1, "eos_token_id": 2},
    "spm-json": {"vocab_size": 512, "bos_token_id": 1, "eos_token_id": 2},
    "llama3": {"vocab_size": BPE_VOCAB, "bos_token_id": 0, "eos_token_id": 1},
    "qwen2": {"vocab_size": 544, "bos_token_id": None, "eos_token_id": BPE_VOCAB - BPE_SPECIAL + 2},
    "qwen2-marks": {"vocab_size": 544, "bos_token_id": None, "eos_token_id": BPE_VOCAB - BPE_SPECIAL + 2},
    "qwen2-answers": {"vocab_size": 544, "bos_token_id": None, "eos_token_id": BPE_VOCAB - BPE_SPECIAL + 4},
    "glm": {
        "vocab_size": 544,
        "bos_token_id": None,
        "eos_token_id": BPE_VOCAB - BPE_SPECIAL,
        "pad_token_id": BPE_VOCAB - BPE_SPECIAL,
    },
    "solar": {"vocab_size": 544, "bos_token_id": None, "eos_token_id": BPE_VOCAB - BPE_SPECIAL + 2},
    "wordpiece": {"vocab_size": 348, "pad_token_id": 0},
    "roberta": {"vocab_size": BPE_VOCAB + 1, "bos_token_id": 0, "pad_token_id": 1, "eos_token_id": 2},
    "xlm-roberta": {"vocab_size": 320, "bos_token_id": 0, "pad_token_id": 1, "eos_token_id": 2},
    "t5": {"vocab_size": 320, "pad_token_id": 0, "eos_token_id": 1},
    "t5-json": {"vocab_size": 320, "pad_token_id": 0, "eos_token_id": 1},
}
TORCH_DTYPE = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}

_QK_NORM = (("self_attn.q_norm.weight", ("head_dim",)), ("self_attn.k_norm.weight", ("head_dim",)))
_ATTENTION = (
    ("self_attn.q_proj.weight", ("q", "hidden")),
    ("self_attn.k_proj.weight", ("kv", "hidden")),
    ("self_attn.v_proj.weight", ("kv", "hidden")),
    ("self_attn.o_proj.weight", ("hidden", "q")),
    ("input_layernorm.weight", ("hidden",)),
    ("post_attention_layernorm.weight", ("hidden",)),
)
_BIASES = (("self_attn.q_proj.bias", ("q",)), ("self_attn.k_proj.bias", ("kv",)), ("self_attn.v_proj.bias", ("kv",)))
_MLP = (
    ("mlp.gate_proj.weight", ("ffn", "hidden")),
    ("mlp.up_proj.weight", ("ffn", "hidden")),
    ("mlp.down_proj.weight", ("hidden", "ffn")),
)
_MIXTRAL_EXPERTS = (
    ("block_sparse_moe.gate.weight", ("experts", "hidden")),
    ("block_sparse_moe.experts.{expert}.w1.weight", ("ffn", "hidden")),
    ("block_sparse_moe.experts.{expert}.w2.weight", ("hidden", "ffn")),
    ("block_sparse_moe.experts.{expert}.w3.weight", ("ffn", "hidden")),
)
_QWEN_EXPERTS = (
    ("mlp.gate.weight", ("experts", "hidden")),
    ("mlp.experts.{expert}.gate_proj.weight", ("expert_ffn", "hidden")),
    ("mlp.experts.{expert}.up_proj.weight", ("expert_ffn", "hidden")),
    ("mlp.experts.{expert}.down_proj.weight", ("hidden", "expert_ffn")),
)
# The tensors of one layer of each family, as the hub has them.
FAMILY_TENSORS: dict[str, tuple[tuple[str, tuple[str, ...]], ...]] = {
    "llama": _ATTENTION + _MLP,
    "mistral": _ATTENTION + _MLP,
    "mixtral": _ATTENTION + _MIXTRAL_EXPERTS,
    "qwen2": _ATTENTION + _BIASES + _MLP,
    "qwen3": _ATTENTION + _QK_NORM + _MLP,
    "qwen3_moe": _ATTENTION + _QK_NORM + _QWEN_EXPERTS,
}


def build_model(name: str, parent: Path, *, config_style: ConfigStyle = "transformers-5", shards: int = 1) -> Path:
    """Write the model `name` of MODELS as `parent/name`; returns that folder.

    The folder's name matters: `general.name` is derived from it. `config_style` chooses between config.json as
    transformers 5 writes it (`rope_parameters`, `dtype`) and as transformers 4 did (`rope_theta`, `rope_scaling`,
    `torch_dtype`, `num_experts`). `shards` above 1 splits the weights and writes the index.
    """
    spec = MODELS[name]
    folder = parent / name
    folder.mkdir(parents=True, exist_ok=True)
    config = model_config(spec)
    _write_json(folder / "config.json", config if config_style == "transformers-5" else as_transformers_4(config))
    tokens = {key: config[key] for key in ("bos_token_id", "eos_token_id") if config[key] is not None}
    _write_json(folder / "generation_config.json", {"_from_model_config": True, **tokens})
    weights = {tensor: encode(seeded(name, tensor, shape), spec.dtype) for tensor, shape in tensor_shapes(config)}
    write_safetensors(folder, weights, spec.dtype, shards=shards)
    TOKENIZERS[spec.tokenizer](folder)
    return folder


def model_config(spec: ModelSpec) -> dict[str, Any]:
    """config.json of a test model as transformers 5 writes it."""
    config = {
        **FAMILY_CONFIGS[spec.family], **TOKENIZER_CONFIG[spec.tokenizer], **spec.config,
        "dtype": TORCH_DTYPE[spec.dtype], "transformers_version": "5.23.0",
    }  # fmt: skip
    if "layer_types" in config:
        config["layer_types"] = [config["layer_types"]] * config["num_hidden_layers"]
    return dict(sorted(config.items()))


def as_transformers_4(config: dict[str, Any]) -> dict[str, Any]:
    """The same config.json as transformers 4 wrote it."""
    old = {key: value for key, value in config.items() if key not in ("rope_parameters", "dtype", "layer_types")}
    rope = dict(config["rope_parameters"])
    old["rope_theta"] = rope.pop("rope_theta")
    old["rope_scaling"] = None if rope == {"rope_type": "default"} else rope
    old["torch_dtype"] = config["dtype"]
    old["transformers_version"] = "4.46.3"
    if config["model_type"] == "qwen3_moe":
        old["num_experts"] = old.pop("num_local_experts")
    return dict(sorted(old.items()))


def tensor_shapes(config: dict[str, Any]) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Every tensor of a model with its shape (row-major), from its config (transformers 5 style)."""
    hidden, heads = config["hidden_size"], config["num_attention_heads"]
    head_dim = config.get("head_dim") or hidden // heads
    sizes = {
        "hidden": hidden, "ffn": config["intermediate_size"], "head_dim": head_dim, "q": heads * head_dim,
        "kv": config["num_key_value_heads"] * head_dim, "experts": config.get("num_local_experts", 1),
        "expert_ffn": config.get("moe_intermediate_size", 0),
    }  # fmt: skip
    yield "model.embed_tokens.weight", (config["vocab_size"], hidden)
    yield "model.norm.weight", (hidden,)
    if not config["tie_word_embeddings"]:
        yield "lm_head.weight", (config["vocab_size"], hidden)
    for layer in range(config["num_hidden_layers"]):
        for template, names in FAMILY_TENSORS[config["model_type"]]:
            shape = tuple(sizes[size] for size in names)
            for expert in range(sizes["experts"] if "{expert}" in template else 1):
                yield f"model.layers.{layer}." + template.replace("{expert}", str(expert)), shape


def seeded(model: str, tensor: str, shape: tuple[int, ...]) -> Array:
    """Seeded float32 values: bell-shaped, rows of different scale, one in 97 four times as large; norms near one."""
    count = int(np.prod(shape))
    generator = np.random.PCG64(zlib.crc32(f"{model}/{tensor}".encode()))
    sixteens = generator.random_raw(count).astype("<u8").view("<u2").reshape(count, 4)
    bell: Array = (sixteens.astype(np.int32).sum(axis=1) - 131070).astype(np.float32) * np.float32(1 / 37837)
    if len(shape) == 1:
        offset = np.float32(1.0 if tensor.endswith("norm.weight") else 0.0)
        return (bell * np.float32(0.1) + offset).reshape(shape)
    bell[::97] *= np.float32(4)
    rows = (generator.random_raw(shape[0]) >> np.uint64(60)).astype(np.float32) * np.float32(1 / 16) + np.float32(0.5)
    bell *= np.repeat(rows * np.float32(0.04), count // shape[0])
    return bell.reshape(shape)


def encode(values: Array, dtype: str) -> Array:
    """float32 values stored as `dtype`, rounded to nearest even; BF16 as its uint16 patterns."""
    if dtype == "BF16":
        bits = values.view(np.uint32)
        bits = (bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)
        return bits.astype("<u2")
    return values.astype("<f2" if dtype == "F16" else "<f4")


def write_safetensors(folder: Path, weights: dict[str, Array], dtype: str, *, shards: int = 1) -> None:
    """model.safetensors, or `shards` files of about as many tensors each with their index; tensors sorted by name."""
    names = sorted(weights)
    if shards == 1:
        write_mixed_safetensors(folder / "model.safetensors", {name: (dtype, weights[name]) for name in names})
        return
    weight_map: dict[str, str] = {}
    for shard in range(shards):
        part = names[len(names) * shard // shards : len(names) * (shard + 1) // shards]
        file = f"model-{shard + 1:05d}-of-{shards:05d}.safetensors"
        write_mixed_safetensors(folder / file, {name: (dtype, weights[name]) for name in part})
        weight_map |= dict.fromkeys(part, file)
    total = sum(array.nbytes for array in weights.values())
    _write_json(folder / "model.safetensors.index.json", {"metadata": {"total_size": total}, "weight_map": weight_map})


def write_mixed_safetensors(path: Path, weights: dict[str, tuple[str, Array]]) -> None:
    """One file of tensors, each with the name of its type."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, (dtype, array) in weights.items():
        header[name] = {
            "dtype": dtype,
            "shape": list(array.shape),
            "data_offsets": [offset, offset + array.nbytes],
        }
        offset += array.nbytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for _, array in weights.values():
            file.write(array.tobytes())


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", "utf-8")


def _write_sentencepiece(folder: Path) -> None:
    for file in SENTENCEPIECE_FILES:
        shutil.copyfile(FIXTURES / "stories260K" / file, folder / file)


def _write_sentencepiece_json(folder: Path) -> None:
    _write_sentencepiece(folder)
    (folder / "tokenizer.model").unlink()


def _small_bpe() -> dict[str, Any]:
    """kjv-llama's tokenizer.json cut to its first BPE_VOCAB tokens; a prefix of BPE merges is a tokenizer again."""
    tokenizer: dict[str, Any] = json.loads((FIXTURES / "kjv-llama/tokenizer.json").read_text("utf-8"))
    vocab = {token: index for token, index in tokenizer["model"]["vocab"].items() if index < BPE_VOCAB}
    tokenizer["model"]["vocab"] = vocab
    tokenizer["model"]["merges"] = [pair for pair in tokenizer["model"]["merges"] if "".join(pair) in vocab]
    return tokenizer


def _write_llama3(folder: Path) -> None:
    _write_json(folder / "tokenizer.json", _small_bpe())
    shutil.copyfile(FIXTURES / "kjv-llama/tokenizer_config.json", folder / "tokenizer_config.json")


def _write_qwen2(folder: Path) -> None:
    """As Qwen has it: its own regular expression, NFC, special tokens after the vocabulary, no BOS."""
    _write_added(folder, QWEN_SPECIAL_TOKENS, eos="<|im_end|>", pad="<|endoftext|>")


def _write_qwen2_answers(folder: Path) -> None:
    """The same with the two words that a reranker says, which no merges lead to."""
    _write_added(folder, QWEN_SPECIAL_TOKENS, eos="<|im_end|>", pad="<|endoftext|>", words=("no", "yes"))


def _write_qwen2_marks(folder: Path) -> None:
    """With tokens that look special and are not, one of them with SentencePiece's mark for a space."""
    _write_added(folder, QWEN_SPECIAL_TOKENS, eos="<|im_end|>", pad="<|endoftext|>", plain=("<|tool|>", "a\u2581b"))


def _write_glm(folder: Path) -> None:
    """As GLM-4 has it, whose config names only the token that ends a text."""
    _write_added(folder, GLM_SPECIAL_TOKENS, eos="<|endoftext|>", pad="<|endoftext|>")


def _write_solar(folder: Path) -> None:
    _write_added(folder, SOLAR_SPECIAL_TOKENS, eos="<|endoftext|>", pad="<unk>")


def _write_added(
    folder: Path,
    special: tuple[str, ...],
    eos: str,
    pad: str,
    words: tuple[str, ...] = (),
    plain: tuple[str, ...] = (),
) -> None:
    """Special tokens after a vocabulary in bytes, and others that are added, too; Qwen's regular expression."""
    tokenizer = _small_bpe()
    old = tokenizer["model"]["vocab"].items()
    vocab = {token: index - BPE_SPECIAL for token, index in old if index >= BPE_SPECIAL}
    for word in words:
        vocab.setdefault(word, len(vocab))
    tokenizer["model"]["vocab"] = vocab
    tokenizer["model"]["ignore_merges"] = False
    added = [_added_token(len(vocab) + index, token) for index, token in enumerate((*special, *plain))]
    for token in added[len(special) :]:
        token["special"] = False
    tokenizer["added_tokens"] = added
    tokenizer["normalizer"] = {"type": "NFC"}
    tokenizer["pre_tokenizer"]["pretokenizers"][0]["pattern"] = {"Regex": QWEN2_REGEX}
    tokenizer["post_processor"] = {
        "type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False
    }  # fmt: skip
    _write_json(folder / "tokenizer.json", tokenizer)
    decoder = {str(token["id"]): {k: v for k, v in token.items() if k != "id"} for token in added}
    _write_json(folder / "tokenizer_config.json", {
        "add_bos_token": False, "add_prefix_space": False, "added_tokens_decoder": decoder, "bos_token": None,
        "chat_template": (
            "{% for message in messages %}{{ '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>\n' }}"
            "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
        ),
        "clean_up_tokenization_spaces": False, "eos_token": eos, "errors": "replace", "model_max_length": 512,
        "pad_token": pad, "split_special_tokens": False, "tokenizer_class": "Qwen2Tokenizer",
        "unk_token": None,
    })  # fmt: skip


def _write_wordpiece(folder: Path) -> None:
    """As BERT has it: letters and pairs of them, at a word's beginning and (after ##) within it."""
    letters = "abcdefghijklmnopqrstuvwxyz"
    starts = [*".,!?0123456789", *letters, *(a + b for a in "thesain" for b in letters[:17])]
    within = [f"##{piece}" for piece in (*letters, *(a + b for a in "ei" for b in letters), *"0123456789")]
    pieces = [*WORDPIECE_SPECIAL_TOKENS, *starts, *within]
    pieces += [f"[unused{i}]" for i in range(TOKENIZER_CONFIG["wordpiece"]["vocab_size"] - len(pieces))]
    pad, unk, cls, sep, mask = WORDPIECE_SPECIAL_TOKENS
    added = [_added_token(index, token) for index, token in enumerate(WORDPIECE_SPECIAL_TOKENS)]
    _write_json(folder / "tokenizer.json", {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": added,
        "normalizer": {
            "type": "BertNormalizer", "clean_text": True, "handle_chinese_chars": True, "strip_accents": None,
            "lowercase": True,
        },
        "pre_tokenizer": {"type": "BertPreTokenizer"},
        "post_processor": {"type": "BertProcessing", "sep": [sep, 3], "cls": [cls, 2]},
        "decoder": {"type": "WordPiece", "prefix": "##", "cleanup": True},
        "model": {
            "type": "WordPiece", "unk_token": unk, "continuing_subword_prefix": "##", "max_input_chars_per_word": 100,
            "vocab": {piece: index for index, piece in enumerate(pieces)},
        },
    })  # fmt: skip
    _write_json(folder / "tokenizer_config.json", {
        "cls_token": cls, "do_lower_case": True, "mask_token": mask, "model_max_length": 512, "pad_token": pad,
        "sep_token": sep, "tokenizer_class": "BertTokenizer", "unk_token": unk,
    })  # fmt: skip


def _write_roberta(folder: Path) -> None:
    """As RoBERTa has it: a vocabulary in bytes, special tokens in front and one at the end."""
    tokenizer = _small_bpe()
    old = tokenizer["model"]["vocab"].items()
    bos, pad, eos, unk, mask = ROBERTA_SPECIAL_TOKENS
    plain = {token: index - BPE_SPECIAL + 4 for token, index in old if index >= BPE_SPECIAL}
    tokenizer["model"]["vocab"] = {**{t: i for i, t in enumerate((bos, pad, eos, unk))}, **plain, mask: len(plain) + 4}
    tokenizer["added_tokens"] = [
        _added_token(tokenizer["model"]["vocab"][token], token) for token in ROBERTA_SPECIAL_TOKENS
    ]
    tokenizer["normalizer"] = None
    tokenizer["pre_tokenizer"] = {
        "type": "ByteLevel",
        "add_prefix_space": False,
        "trim_offsets": True,
        "use_regex": True,
    }
    tokenizer["post_processor"] = {
        "type": "RobertaProcessing", "sep": [eos, 2], "cls": [bos, 0], "trim_offsets": True, "add_prefix_space": False
    }  # fmt: skip
    _write_json(folder / "tokenizer.json", tokenizer)
    _write_json(folder / "tokenizer_config.json", {
        "add_prefix_space": False, "bos_token": bos, "cls_token": bos, "eos_token": eos, "mask_token": mask,
        "model_max_length": 512, "pad_token": pad, "sep_token": eos, "tokenizer_class": "RobertaTokenizer",
        "unk_token": unk,
    })  # fmt: skip


#: A table of characters that changes none: the size of a trie, the trie, the texts that it names.
CHARSMAP = (1024).to_bytes(4, "little") + bytes(1024) + bytes(1)
#: One that makes "A" an "a": below the root a branch for "A", below that a leaf, the others filled up as sentencepiece
#: does it, which looks at all.
TRIE = np.array([64 << 10, 3 << 10 | 1 << 8 | ord("A"), 1 << 31, *(i ^ 1 for i in range(3, 256))], "<u4")
SMALL_A = TRIE.nbytes.to_bytes(4, "little") + TRIE.tobytes() + b"a\0"


def _pieces() -> list[tuple[str, float]]:
    """Pieces of words with their scores, as a unigram model has them."""
    letters = "abcdefghijklmnopqrstuvwxyz"
    texts = ["\u2581", *letters, *".,!?0123456789", *("\u2581" + a for a in letters)]
    texts += ["\u2581" + a + b for a in "thesain" for b in letters[:17]] + [a + b for a in "ei" for b in letters]
    return [(text, -2.0 - 0.0625 * index) for index, text in enumerate(texts)]


def _unigram(
    special: tuple[str, ...], unk: int, mask: tuple[str, ...], post: dict[str, Any], charsmap: bytes = CHARSMAP
) -> dict[str, Any]:
    vocab = [*((token, 0.0) for token in special), *_pieces()]
    added = [*enumerate(special), *enumerate(mask, len(vocab))]
    return {
        "version": "1.0", "truncation": None, "padding": None,
        "added_tokens": [_added_token(index, token) for index, token in added],
        "normalizer": {"type": "Precompiled", "precompiled_charsmap": base64.b64encode(charsmap).decode()},
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [
            {"type": "WhitespaceSplit"},
            {"type": "Metaspace", "replacement": "\u2581", "prepend_scheme": "always", "split": True},
        ]},
        "post_processor": {"type": "TemplateProcessing", **post},
        "decoder": {"type": "Metaspace", "replacement": "\u2581", "prepend_scheme": "always", "split": True},
        "model": {
            "type": "Unigram", "unk_id": unk, "vocab": [*vocab, *((token, 0.0) for token in mask)],
            "byte_fallback": False,
        },
    }  # fmt: skip


def _template(first: tuple[str, ...], last: str, second: tuple[str, ...], ids: dict[str, int]) -> dict[str, Any]:
    def token(text: str) -> dict[str, Any]:
        return {"SpecialToken": {"id": text, "type_id": 0}}

    a, b = ({"Sequence": {"id": name, "type_id": 0}} for name in "AB")
    single = [*map(token, first), a, token(last)]
    return {
        "single": single, "pair": [*single, *map(token, second), b, token(last)],
        "special_tokens": {text: {"id": text, "ids": [i], "tokens": [text]} for text, i in ids.items()},
    }  # fmt: skip


def _write_xlm_roberta(folder: Path) -> None:
    """As XLM-RoBERTa has it: a unigram model in tokenizer.json, special tokens in front and one at the end."""
    bos, pad, eos, unk, mask = ROBERTA_SPECIAL_TOKENS
    post = _template((bos,), eos, (eos,), {bos: 0, eos: 2})
    _write_json(folder / "tokenizer.json", _unigram((bos, pad, eos, unk), 3, (mask,), post))
    _write_json(folder / "tokenizer_config.json", {
        "bos_token": bos, "clean_up_tokenization_spaces": True, "cls_token": bos, "eos_token": eos, "mask_token": mask,
        "model_max_length": 512, "pad_token": pad, "sep_token": eos, "tokenizer_class": "XLMRobertaTokenizer",
        "unk_token": unk,
    })  # fmt: skip


def _write_t5_json(folder: Path) -> None:
    """As T5 has it, in tokenizer.json alone."""
    post = _template((), "</s>", (), {"</s>": 1})
    _write_json(folder / "tokenizer.json", _unigram(("<pad>", "</s>", "<unk>"), 2, (), post, SMALL_A))
    _write_json(folder / "tokenizer_config.json", {
        "eos_token": "</s>", "model_max_length": 512, "pad_token": "<pad>", "tokenizer_class": "T5Tokenizer",
        "unk_token": "<unk>",
    })  # fmt: skip


def _write_t5(folder: Path) -> None:
    """The same with spiece.model beside it."""
    _write_t5_json(folder)
    pieces = [("<pad>", 0.0, 3), ("</s>", 0.0, 3), ("<unk>", 0.0, 2), *((*piece, 1) for piece in _pieces())]
    model = b"".join(
        blob(1, blob(1, text.encode()) + float32(2, score) + number(3, kind)) for text, score, kind in pieces
    )
    ids = number(40, 2) + number(41, -1) + number(42, 1) + number(43, 0)
    trainer = number(3, 1) + number(4, len(pieces)) + ids
    normalizer = blob(1, b"nmt_nfkc") + blob(2, SMALL_A) + number(3, 1) + number(4, 1) + number(5, 1)
    (folder / "spiece.model").write_bytes(model + blob(2, trainer) + blob(3, normalizer))


def _added_token(index: int, content: str) -> dict[str, Any]:
    return {
        "id": index, "content": content, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False,
        "special": True,
    }  # fmt: skip


TOKENIZERS: dict[str, Callable[[Path], None]] = {
    "spm": _write_sentencepiece,
    "spm-json": _write_sentencepiece_json,
    "llama3": _write_llama3,
    "qwen2": _write_qwen2,
    "qwen2-answers": _write_qwen2_answers,
    "qwen2-marks": _write_qwen2_marks,
    "glm": _write_glm,
    "solar": _write_solar,
    "wordpiece": _write_wordpiece,
    "roberta": _write_roberta,
    "xlm-roberta": _write_xlm_roberta,
    "t5": _write_t5,
    "t5-json": _write_t5_json,
}


@dataclass(frozen=True)
class ExpectedTensor:
    """What the reference wrote for one tensor: ggml type name, shape (row-major), first 16 hex digits of SHA-256."""

    name: str
    type: str
    shape: tuple[int, ...]
    sha256: str


@dataclass(frozen=True)
class ExpectedValue:
    """One key of the reference's file: GGUF type name and value.

    An array's type is written `ARRAY[STRING]`; one of more than 16 elements has the value `{"count", "sha256"}`, where
    the hash (first 16 hex digits) is over the elements as the file stores them, strings with their 8-byte lengths.
    """

    key: str
    type: str
    value: Any


def load_expected(model: str) -> dict[str, Any]:
    """The recorded facts of one model; see fixtures/README.md for their layout."""
    facts: dict[str, Any] = json.loads((EXPECTED / f"{model}.json").read_text("utf-8"))
    return facts


def expected_tensors(model: str, ftype: str) -> list[ExpectedTensor]:
    """The tensors of the reference's file in file order.

    `ftype` is "source" for the converter's own output (the intermediate), a name like "Q4_K_M" for the result of
    llama-quantize, or one of the recorded variants such as "Q4_K_M --pure".
    """
    facts = load_expected(model)
    types = facts["ftypes"][ftype]["types"].split()
    rows = [(name, types[index]) for index, name in enumerate(facts["tensors"])]
    if ftype == "source":
        rows = [(name, dict(rows)[name]) for name in facts["source_order"]]
    return [
        ExpectedTensor(name, kind, tuple(facts["tensors"][name]["shape"]), facts["tensors"][name]["sha256"][kind])
        for name, kind in rows
    ]


def expected_metadata(model: str, ftype: str) -> list[ExpectedValue]:
    """The key/values of the reference's file in file order; `ftype` as in `expected_tensors`."""
    facts = load_expected(model)
    own = facts["ftypes"][ftype]
    rows = facts["metadata_source" if ftype == "source" else "metadata"]
    return [ExpectedValue(key, kind, own["metadata"].get(key, value)) for key, kind, value in rows]


def file_sha256(path: Path) -> str:
    """First 16 hex digits of a file's SHA-256, as recorded under "model_sha256"."""
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16]
