"""Tiny random models of transformers whose graphs are traced, and what transformers and ONNX Runtime make of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Named = dict[str, NDArray[Any]]
SMALL: dict[str, Any] = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
IMAGE = {"image_size": 32, "patch_size": 8}
#: name -> class, config class, settings.
MODELS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "vit": ("ViTForImageClassification", "ViTConfig", {**SMALL, **IMAGE, "num_hidden_layers": 1, "num_labels": 5}),
    "clip": ("CLIPModel", "CLIPConfig", {
        "text_config": {**SMALL, "vocab_size": 64, "max_position_embeddings": 20, "eos_token_id": 2},
        "vision_config": {**SMALL, **IMAGE}, "projection_dim": 16,
    }),
    "opt": ("OPTForCausalLM", "OPTConfig", {
        "vocab_size": 64, "hidden_size": 32, "ffn_dim": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
        "word_embed_proj_dim": 32, "max_position_embeddings": 50,
    }),
    "t5": ("T5ForConditionalGeneration", "T5Config", {
        "vocab_size": 64, "d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4,
        "decoder_start_token_id": 0,
    }),
    "whisper": ("WhisperForConditionalGeneration", "WhisperConfig", {
        "vocab_size": 64, "d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4,
        "decoder_attention_heads": 4, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64, "num_mel_bins": 8,
        "max_source_positions": 30, "max_target_positions": 40, "pad_token_id": 1, "bos_token_id": 1,
        "eos_token_id": 1, "decoder_start_token_id": 2,
    }),
}  # fmt: skip


def build(name: str, folder: Path) -> Path:
    """The folder of a model with random weights."""
    import torch
    import transformers

    kind, config, settings = MODELS[name]
    torch.manual_seed(0)
    getattr(transformers, kind)(getattr(transformers, config)(**settings)).eval().save_pretrained(folder / name)
    return folder / name


def loaded(name: str, folder: Path) -> Any:
    """The same by transformers, in F32."""
    import transformers

    return getattr(transformers, MODELS[name][0]).from_pretrained(folder, dtype="float32").eval()


def relative(found: NDArray[Any], wanted: NDArray[Any]) -> float:
    """The largest difference, of the largest number."""
    assert found.shape == wanted.shape
    return float(np.abs(found - wanted).max() / np.abs(wanted).max())


def outputs(session: Any, feeds: Named) -> Named:
    """What a session gives for those of the feeds that it takes, by name."""
    wanted = {each.name for each in session.get_inputs()}
    names = [each.name for each in session.get_outputs()]
    given = {name: value for name, value in feeds.items() if name in wanted}
    return dict(zip(names, session.run(None, given), strict=True))


def decoded(session: Any, feeds: Named, ids: NDArray[np.int64], steps: tuple[int, ...]) -> list[NDArray[Any]]:
    """Logits of a merged decoder, some tokens at a time, each step with what the ones before kept."""
    found, at, past = [], 0, Named()
    for count in steps:
        given: Named = {**feeds, "input_ids": ids[:, at : at + count], "use_cache_branch": np.array([at > 0])}
        for each in session.get_inputs():
            if each.name.startswith("past_key_values"):
                kind = np.float16 if "float16" in each.type else np.float32
                empty = np.zeros((len(ids), each.shape[1], 0, each.shape[3]), kind)
                given[each.name] = past.get(each.name, empty)
        out = outputs(session, given)
        found.append(out.pop("logits"))
        new = {name.replace("present", "past_key_values"): value for name, value in out.items()}
        past = {name: past[name] if at and ".encoder." in name else value for name, value in new.items()}
        at += count
    return found
