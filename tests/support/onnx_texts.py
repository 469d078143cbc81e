"""Graphs that read texts at once, against transformers: batches with padding on either side."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from converter.architectures.traits import CLS, LAST, MEAN

CLOSE = 2e-5
Floats = NDArray[np.float32]
#: Rows of a batch -> tokens of padding before and behind each text.
PADDED: dict[str, tuple[tuple[int, int], ...]] = {
    "one": ((0, 0),), "three": ((0, 0),) * 3, "behind": ((0, 0), (0, 5), (0, 11)), "before": ((4, 0), (0, 0)),
    "both": ((3, 0), (0, 7), (0, 0)),
}  # fmt: skip
LENGTH = 15


def batches(n_vocab: int, pad: int, n_types: int) -> dict[str, dict[str, Any]]:
    """Inputs by case. Tokens of padding are those of the model, which its positions are counted by in some."""
    random, found = np.random.default_rng(7), {}
    for case, rows in PADDED.items():
        ids = random.integers(5, n_vocab, (len(rows), LENGTH))
        mask = np.ones_like(ids)
        for row, (before, behind) in enumerate(rows):
            mask[row, :before] = mask[row, LENGTH - behind :] = 0
        ids[mask == 0] = pad
        found[case] = {"input_ids": ids, "attention_mask": mask}
        if n_types > 1:
            found[case]["token_type_ids"] = random.integers(0, n_types, ids.shape)
    return found


def outputs(session: Any, feeds: dict[str, Any]) -> dict[str, Floats]:
    """By name; the session has the inputs of `feeds` and no others."""
    assert {each.name for each in session.get_inputs()} == set(feeds)
    return dict(zip([each.name for each in session.get_outputs()], session.run(None, feeds), strict=True))


class Reference:
    """transformers' own model of a folder, in F32."""

    def __init__(self, folder: Path) -> None:
        import torch
        import transformers

        config = json.loads((folder / "config.json").read_text("utf-8"))
        cls = getattr(transformers, config["architectures"][0])
        self.model = cls.from_pretrained(folder, dtype=torch.float32).eval()
        self.pad = config.get("pad_token_id") or 0
        self.counts_itself = config["model_type"] in ("roberta", "xlm-roberta", "camembert")
        self.has_places = config["model_type"] == "bert"
        self.n_types = 0 if config["model_type"] == "distilbert" else config.get("type_vocab_size", 0)
        self.n_vocab = int(self.model.get_input_embeddings().weight.shape[0])

    def __call__(self, feeds: dict[str, Any]) -> Floats:
        """States of the tokens, or scores of a classifier. Positions begin behind padding."""
        import torch

        own = {name: torch.tensor(value) for name, value in feeds.items()}
        if self.has_places:
            own["position_ids"] = (own["attention_mask"].cumsum(1) - 1).clip(0)
        with torch.no_grad():
            made = self.model(**own)
        found: Floats = (made.logits if "logits" in made else made.last_hidden_state).numpy()
        return found


def pooled(states: Floats, mask: NDArray[np.int64], kind: int) -> Floats:
    rows = [row[real > 0] for row, real in zip(states, mask, strict=True)]
    ways = {MEAN: lambda row: row.mean(0), CLS: lambda row: row[0], LAST: lambda row: row[-1]}
    return np.array([ways[kind](row) for row in rows])


def far(found: Floats, wanted: Floats) -> float:
    assert found.shape == wanted.shape
    return float(np.abs(found - wanted).max() / np.abs(wanted).max())
