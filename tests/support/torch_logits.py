"""What transformers computes with the model of a folder."""

from __future__ import annotations

import json
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


def image_logits(folder: Path, mark: int, n_parts: int, unread: str) -> Any:
    """The logits of a text with an image in it, of which `n_parts` tokens `mark` stand for; as `logits`."""
    import torch
    import transformers

    config = json.loads((folder / "config.json").read_text("utf-8"))
    cls = getattr(transformers, config["architectures"][0])
    model, report = cls.from_pretrained(folder, dtype=torch.float32, output_loading_info=True)
    assert sorted(report["missing_keys"]) == []
    assert [key for key in report["unexpected_keys"] if not key.startswith(unread)] == []
    text = torch.tensor([[*TOKENS[0][:3], *[mark] * n_parts, *TOKENS[0][3:]]])
    kinds = {"mm_token_type_ids": (text == mark).int()} if config["model_type"].startswith("qwen") else {}
    with torch.no_grad():
        return model.eval()(input_ids=text, **kinds, **_image(config)).logits.numpy()


def _image(config: dict[str, Any]) -> dict[str, Any]:
    """An image as the class's own preparation hands it over."""
    import torch

    vision, kind = config["vision_config"], config["model_type"]
    patch, generator = vision["patch_size"], torch.Generator().manual_seed(7)

    def noise(*shape: int) -> Any:
        return torch.randn(*shape, generator=generator)

    if kind.startswith("qwen"):
        return {"pixel_values": noise(16, 3 * 2 * patch * patch), "image_grid_thw": torch.tensor([[1, 4, 4]])}
    if kind == "lfm2_vl":
        whole = torch.ones(1, 16, dtype=torch.int32)
        shapes = torch.tensor([[4, 4]])
        return {
            "pixel_values": noise(1, 16, 3 * patch * patch),
            "spatial_shapes": shapes,
            "pixel_attention_mask": whole,
        }
    if kind == "gemma4":
        places = torch.cartesian_prod(torch.arange(3), torch.arange(3))[None]
        return {"pixel_values": noise(1, 9, 3 * patch * patch), "image_position_ids": places}
    size = vision["image_size"]
    if kind == "idefics3":
        return {"pixel_values": noise(1, 1, 3, size, size)}
    if vision["model_type"] == "pixtral":
        return {"pixel_values": noise(1, 3, size, size), "image_sizes": torch.tensor([[size, size]])}
    return {"pixel_values": noise(1, 3, size, size)}
