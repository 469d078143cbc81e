"""What transformers computes with the model of a folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

TOKENS = [[5, 17, 101, 33, 250, 7, 8, 9, 300, 77, 21, 4]]


def logits(folder: Path, unread: tuple[str, ...] = ()) -> Any:
    """The first output of the class that config.json names, in float32; it may pass over names that start so."""
    import torch
    import transformers

    name = json.loads((folder / "config.json").read_text("utf-8"))["architectures"][0]
    cls = getattr(transformers, name, transformers.AutoModelForCausalLM)  # which goes by the config's model_type
    model, report = cls.from_pretrained(folder, dtype=torch.float32, output_loading_info=True)
    assert not report["missing_keys"]
    assert [key for key in report["unexpected_keys"] if not key.startswith(unread)] == []
    with torch.no_grad():
        return model.eval()(input_ids=torch.tensor(TOKENS))[0].numpy()
