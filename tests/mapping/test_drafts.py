"""Models that are for another: what this says of itself is read, and its tokenizer is theirs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support import architectures, builders

import converter
from converter import Request, Source
from converter.architectures.spec import Architecture, HFClass, HParam
from converter.cli.main import main
from converter.errors import ArchitectureError, ConverterError, QuantizationError, UsageError
from converter.mapping.companions import asks_base, with_companions
from converter.mapping.detect import detect
from converter.metadata import Array, Value
from converter.verify import verify

NAME = "eagle3-tiny"


@pytest.fixture
def draft(tmp_path: Path) -> Source:
    return architectures.source(architectures.build(NAME, tmp_path))


def config_of(name: str) -> dict[str, Any]:
    return dict(architectures.facts(name)["files"]["config.json"])


def test_a_row_may_ask_for_an_entry_of_the_other_config(tmp_path: Path) -> None:
    row = HParam("width", ("width", "/base.hidden_size"), ("width",))
    asks = Architecture("toy", (HFClass("Toy", "toy"),), (row,), ())
    alone = Architecture("toy", (HFClass("Toy", "toy"),), (), ())
    nested = {"vocab_size": 4, "text_config": {"hidden_size": 8}}
    base = converter.open_checkpoint(builders.llama_folder(tmp_path / "base")).replace(config=nested)
    with base:
        assert with_companions(asks, {"a": 1}, {}, base)["/base"]["hidden_size"] == 8
        assert with_companions(alone, {"a": 1}, {}, base) == {"a": 1}
    assert with_companions(asks, {"a": 1}, {}) == {"a": 1}
    assert asks_base(asks) and not asks_base(alone)


@pytest.mark.parametrize(
    ("changes", "gguf"),
    [
        ({}, "eagle3"),
        ({"num_hidden_layers": 2}, "llama"),
        ({"draft_vocab_size": None}, "llama"),
        ({"architectures": ["LlamaForCausalLMEagle3"]}, "eagle3"),
    ],
)
def test_a_vocabulary_of_its_own_tells_a_draft(changes: dict[str, Any], gguf: str) -> None:
    assert detect({**config_of(NAME), **changes})[0].gguf == gguf


def test_layers_that_are_read(draft: Source, tmp_path: Path) -> None:
    """They and the width are the other's, where the draft does not say them; the words are the other's always."""
    keys = converter.convert(draft, tmp_path / "m.gguf", threads=1).checkpoint.config
    assert keys["eagle3.target_layers"] == Array("i32", [2, 5, 8])  # of eleven
    assert keys["eagle3.target_hidden_size"] == Value("u32", 56)
    assert len(keys["tokenizer.ggml.tokens"]) == 512
    path = draft.path / "config.json"
    said = {"eagle_aux_hidden_state_layer_ids": [1, 3, 7]}
    path.write_text(json.dumps({**json.loads(path.read_text()), **said}))
    keys = converter.convert(draft, tmp_path / "said.gguf", threads=1).checkpoint.config
    assert keys["eagle3.target_layers"] == Array("i32", [1, 3, 7])


def test_ids_stay_ids_in_every_type(draft: Source, tmp_path: Path) -> None:
    for quant in (None, "f32", "q8_0"):
        target = tmp_path / f"{quant}.gguf"
        converter.convert(draft, target, Request(quant=quant), threads=1)
        with converter.open_checkpoint(target) as made:
            assert made.tensors["d2t"].info.dtype.name == "I64"
            assert made.tensors["d2t"].array().tolist() == [2 * place for place in range(96)]
        assert verify(draft, target, Request(quant=quant)).passed


def test_ids_that_are_no_whole_numbers_are_refused(draft: Source, tmp_path: Path) -> None:
    from safetensors.numpy import load_file, save_file

    path = draft.path / "model.safetensors"
    tensors = {name: array.astype(np.float32) for name, array in load_file(path).items()}
    save_file(tensors, path)
    with pytest.raises(QuantizationError, match="d2t"):
        converter.convert(draft, tmp_path / "m.gguf", threads=1)


@pytest.mark.parametrize(
    ("base", "target", "error", "said"),
    [
        (None, "m.gguf", ArchitectureError, "eagle3: such a model is for another.*\n--base DIR"),
        ("empty", "m.gguf", UsageError, r"--base .*empty: no config\.json in it"),
        ("base", "m.safetensors", UsageError, "--base .*: has a part in a GGUF of a draft model"),
    ],
)
def test_what_is_missing_or_without_effect_is_an_error(
    base: str | None, target: str, error: type[ConverterError], said: str, draft: Source, tmp_path: Path
) -> None:
    (tmp_path / "empty").mkdir()
    source = Source(draft.path, base=None if base is None else tmp_path / base)
    with pytest.raises(error, match=said):
        converter.plan(source, tmp_path / target)


def test_a_model_that_is_for_no_other_takes_none(tmp_path: Path) -> None:
    folder = builders.llama_folder(tmp_path / "m")
    with pytest.raises(UsageError, match=r"--base .*: a model of llama is for no other"):
        converter.plan(Source(folder, base=folder), tmp_path / "m.gguf")


def test_on_the_command_line(draft: Source, tmp_path: Path) -> None:
    target = tmp_path / "m.gguf"
    assert main([str(draft.path), str(target), "--base", str(draft.base), "--verify", "--quiet"]) == 0
    assert main(["verify", str(draft.path), str(target), "--base", str(draft.base), "--quiet"]) == 0
    assert main(["check", str(target), "--quiet"]) == 0
    assert main(["inspect", str(draft.path), "--quiet"]) == 0
    assert main(["check", str(draft.path), "--quiet"]) == 0
