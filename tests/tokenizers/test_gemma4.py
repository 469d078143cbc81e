"""The tokenizer model "gemma4": pieces that merge by rank, there and back."""

from __future__ import annotations

import json
from pathlib import Path

from support import architectures

import converter
from converter.metadata import Array

COMPARED = ("tokens", "token_type", "scores", "merges", "bos_token_id", "eos_token_id", "model", "add_space_prefix")


def test_the_same_keys_and_the_same_ids_after_the_way_back(tmp_path: Path) -> None:
    import tokenizers

    folder = architectures.build("gemma4-tiny", tmp_path)
    first = converter.convert(folder, tmp_path / "m.gguf", threads=1).checkpoint.config
    converter.convert(tmp_path / "m.gguf", f"{tmp_path / 'back'}/", threads=1)
    again = converter.convert(tmp_path / "back", tmp_path / "again.gguf", threads=1).checkpoint.config
    for name in COMPARED:
        key = f"tokenizer.ggml.{name}"
        one, other = first.get(key), again.get(key)
        assert one == other or (isinstance(one, Array) and list(one.values) == list(other.values)), key  # type: ignore
    ours = tokenizers.Tokenizer.from_file(str(tmp_path / "back" / "tokenizer.json"))
    theirs = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    assert json.loads((tmp_path / "back" / "tokenizer.json").read_text())["model"]["type"] == "BPE"
    for text in ("Once upon a time", "a  b\n\tc", "naïve 日本", "1234"):
        # The sample's own tokenizer puts a space in front; Gemma's does not, and the keys say so.
        assert (
            ours.encode(" " + text, add_special_tokens=False).ids == theirs.encode(text, add_special_tokens=False).ids
        )
