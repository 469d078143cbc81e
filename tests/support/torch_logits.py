"""What transformers computes with the model of a folder."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

TOKENS = [[5, 17, 101, 33, 250, 7, 8, 9, 300, 77, 21, 4]]


def logits(folder: Path, unread: tuple[str, ...] = (), dropped: tuple[str, ...] = ()) -> Any:
    """The first output of the class that config.json names, in float32; a decoder reads what its encoder has read.

    It may pass over names that start as in `unread`, and lack those that start as in `dropped`: what it fills in for
    them must not change the output.
    """
    import torch
    import transformers

    name = json.loads((folder / "config.json").read_text("utf-8"))["architectures"][0]
    cls = getattr(transformers, name, transformers.AutoModelForCausalLM)  # which goes by the config's model_type
    model, report = cls.from_pretrained(folder, dtype=torch.float32, output_loading_info=True)
    assert [key for key in report["missing_keys"] if not key.startswith(dropped)] == []
    assert [key for key in report["unexpected_keys"] if not key.startswith(unread)] == []
    given = {"input_ids": torch.tensor(TOKENS)}
    if getattr(model.config, "is_encoder_decoder", False) and hasattr(model, "decoder"):
        given["decoder_input_ids"] = given["input_ids"]
    with torch.no_grad():
        return model.eval()(**given)[0].numpy()


def image_logits(folder: Path, marks: Mapping[int, int], unread: str) -> Any:
    """The logits of a text with an image in it, and a sound where the model hears; as `logits`.

    `marks` are the tokens that stand for parts of the image and of the sound, with the number of parts.
    """
    import torch
    import transformers

    config = json.loads((folder / "config.json").read_text("utf-8"))
    others = transformers.AutoModelForImageTextToText  # which goes by the config's model_type
    cls = getattr(transformers, config["architectures"][0], others)
    model, report = cls.from_pretrained(folder, dtype=torch.float32, output_loading_info=True)
    assert sorted(report["missing_keys"]) == []
    assert [key for key in report["unexpected_keys"] if not key.startswith(unread)] == []
    parts = [mark for mark, count in marks.items() for _ in range(count)]
    text = torch.tensor([[*TOKENS[0][:3], *parts, *TOKENS[0][3:]]])
    typed = config["model_type"].startswith(("qwen", "paddleocr", "hunyuan"))
    kinds = {"mm_token_type_ids": (text == parts[0]).int()} if typed else {}
    sees = bool(config.get("vision_config"))
    inputs = {**(_image(config) if sees else {}), **(_sound(config) if len(marks) > 1 or not sees else {})}
    with torch.no_grad():
        return model.eval()(input_ids=text, **kinds, **inputs).logits.numpy()


def _noise(*shape: int) -> Any:
    import torch

    return torch.randn(*shape, generator=torch.Generator().manual_seed(7))


def _sound(config: dict[str, Any]) -> dict[str, Any]:
    """A sound as the class's own preparation hands it over."""
    import torch

    audio = config["audio_config"]
    if "max_source_positions" in audio:
        n_frames = 2 * audio["max_source_positions"]
        mask = {"feature_attention_mask": torch.ones(1, n_frames)} if config["model_type"] == "qwen2_audio" else {}
        return {"input_features": _noise(1, audio["num_mel_bins"], n_frames), **mask}
    if config["model_type"] == "qwen3_asr":
        return {
            "input_features": _noise(1, audio["num_mel_bins"], 100),
            "input_features_mask": torch.ones(1, 100).bool(),
        }
    if config["model_type"] == "gemma4_unified":
        return {
            "input_features": _noise(1, 3, audio["audio_embed_dim"]),
            "input_features_mask": torch.ones(1, 3).bool(),
        }
    bands = audio["subsampling_conv_channels"][0]
    return {"input_features": _noise(1, 12, bands), "input_features_mask": torch.ones(1, 12).bool()}


def _image(config: dict[str, Any]) -> dict[str, Any]:
    """An image as the class's own preparation hands it over."""
    import torch

    vision, kind, noise = config["vision_config"], config["model_type"], _noise
    patch = vision["patch_size"]
    if kind.startswith("qwen"):
        return {"pixel_values": noise(16, 3 * 2 * patch * patch), "image_grid_thw": torch.tensor([[1, 4, 4]])}
    if kind in ("paddleocr_vl", "kimi_k25"):
        return {"pixel_values": noise(16, 3, patch, patch), "image_grid_thw": torch.tensor([[1, 4, 4]])}
    if kind == "hunyuan_vl":
        return {"pixel_values": noise(16, 3 * patch * patch), "image_grid_thw": torch.tensor([[1, 4, 4]])}
    if kind == "lfm2_vl":
        whole = torch.ones(1, 16, dtype=torch.int32)
        shapes = torch.tensor([[4, 4]])
        return {
            "pixel_values": noise(1, 16, 3 * patch * patch),
            "spatial_shapes": shapes,
            "pixel_attention_mask": whole,
        }
    if kind in ("gemma4", "gemma4_unified"):
        places = torch.cartesian_prod(torch.arange(3), torch.arange(3))[None]
        side = patch * (vision["pooling_kernel_size"] if kind == "gemma4_unified" else 1)
        return {"pixel_values": noise(1, 9, 3 * side * side), "image_position_ids": places}
    if kind == "minicpmv4_6":
        return {"pixel_values": noise(1, 3, patch, 16 * patch), "target_sizes": torch.tensor([[4, 4]]).int()}
    size = vision["image_size"] if isinstance(vision["image_size"], int) else vision["image_size"][0]
    if kind == "idefics3":
        return {"pixel_values": noise(1, 1, 3, size, size)}
    if vision["model_type"] == "pixtral":
        return {"pixel_values": noise(1, 3, size, size), "image_sizes": torch.tensor([[size, size]])}
    return {"pixel_values": noise(1, 3, size, size)}
