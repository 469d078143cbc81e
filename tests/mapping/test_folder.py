"""The small files of a folder to be, over models made up in memory: what is carried, made, left out and told."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.families import family_config, random_tensors, write

import converter
from converter.checkpoint import Checkpoint
from converter.errors import TokenizerError
from converter.events import Event, MetadataLost
from converter.mapping.folder import with_small_files
from converter.mapping.tensors import to_gguf, to_hf
from converter.metadata import Array, Value, text, u32
from converter.tensors.dtypes import BF16, DTYPES, F16, F32, DType
from converter.tensors.tensor import LazyTensor, TensorInfo


def model(dialect: str | None, config: dict[str, Any], *types: tuple[DType, int], **fields: Any) -> Checkpoint:
    tensors = {}
    for index, (dtype, size) in enumerate(types):
        info = TensorInfo(str(index), (size,), dtype)
        tensors[str(index)] = LazyTensor(info, lambda start, stop: np.zeros((0, 0), np.uint8), "test")
    return Checkpoint("any", Path("m"), dialect, tensors, config, **fields)


def config_of(checkpoint: Checkpoint) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads(checkpoint.made["config.json"])
    return loaded


# ----------------------------------------------------------------------------------- from a folder


@pytest.mark.parametrize(
    ("types", "name"),
    [
        ([(F16, 1)], "float16"),
        ([(BF16, 1)], "bfloat16"),
        ([(F32, 1)], "float32"),
        ([(DTYPES["F64"], 1)], "float64"),
        ([(F16, 100), (F32, 10)], "float16"),  # most of the bytes
        ([(F16, 100), (F32, 60)], "float32"),
        ([(F16, 60), (F32, 40), (F16, 60)], "float16"),
        ([(DTYPES["I32"], 1000), (F16, 1)], "float16"),  # numbers that are no weights do not count
        ([(DTYPES["I32"], 1000)], "float8"),  # as the config says
        ([], "float8"),
    ],
)
def test_the_type_that_the_config_names(types: list[tuple[DType, int]], name: str) -> None:
    config = {"torch_dtype": "float8", "n": 1}
    source, result = model("hf", config, (F32, 7), (F32, 7), (F32, 7), (F32, 7)), model("hf", {}, *types)
    made, events = with_small_files(result, source, None, tokenizer=True)
    assert config_of(made) == {"torch_dtype": name, "n": 1} and not events
    assert list(config_of(made)) == ["torch_dtype", "n"]


def test_the_type_is_changed_wherever_it_is_named() -> None:
    inner = {"dtype": "float32", "quantization_config": {"dtype": "float32"}}
    config = {
        "dtype": "float32", "torch_dtype": None, "text_config": {**inner, "deep_config": inner}, "config": inner,
        "quantization_config": inner, "other_config": "float32", "dtypes": "float32",
    }  # fmt: skip
    result, _ = with_small_files(model("hf", {}, (F16, 1)), model("hf", config, (F32, 1)), None, tokenizer=True)
    new = {**inner, "dtype": "float16"}
    changed = {"dtype": "float16", "text_config": {**new, "deep_config": new}}
    assert config_of(result) == {**config, **changed}


def test_a_config_is_carried_where_it_still_says_what_is() -> None:
    config = {"torch_dtype": "float32"}
    path = {"config.json": Path("config.json"), "README.md": Path("README.md")}
    source = model("hf", config, (F32, 1), assets=path)
    same, events = with_small_files(model("hf", {}, (F32, 1), assets=path), source, None, tokenizer=True)
    assert same.assets == path and same.made == {} and not events
    other, _ = with_small_files(model("hf", {}, (F16, 1), assets=path), source, None, tokenizer=True)
    assert other.assets == path and config_of(other) == {"torch_dtype": "float16"}
    alone, _ = with_small_files(model("hf", {}, (F32, 1)), source.replace(assets={}), None, tokenizer=True)
    assert alone.assets == {} and config_of(alone) == config
    mixed = model("hf", {"dtype": "float32"}, (F32, 1), (F16, 10))
    kept, _ = with_small_files(mixed, mixed, None, tokenizer=True)
    assert config_of(kept) == {"dtype": "float32"}, "the types are those that were there"


def test_a_config_that_says_no_type_stays_as_it_is() -> None:
    path = {"config.json": Path("config.json")}
    source = model("hf", {"n": 1}, (F32, 1), assets=path)
    result, _ = with_small_files(model("hf", {}, (F16, 1), assets=path), source, None, tokenizer=True)
    assert result.made == {} and result.assets == path


def test_files_are_written_as_people_write_them() -> None:
    result, _ = with_small_files(model("hf", {}), model("hf", {"a": "\u00e9"}), None, tokenizer=True)
    assert result.made["config.json"] == b'{\n  "a": "\xc3\xa9"\n}\n'


def test_plain_arrays_have_no_files() -> None:
    result = model("hf", {}, (F16, 1))
    assert with_small_files(result, model(None, {}, (F32, 1)), None, tokenizer=True) == (result, [])


def test_which_files_are_the_tokenizers() -> None:
    kept = [
        "README.md",
        "generation_config.json",
        "tokenizer.md",
        "x.tiktoken.txt",
        "chat_templates/a",
        "x/tekken.json",
    ]
    own = [
        "tokenizer.json", "tokenizer.model", "tokenizer_config.json", "vocab.json", "merges.txt", "vocab.txt",
        "special_tokens_map.json", "added_tokens.json", "chat_template.jinja", "tekken.json", "qwen.tiktoken",
        "additional_chat_templates/tool.jinja",
    ]  # fmt: skip
    assets = {name: Path(name) for name in (*kept, *own)}
    source, result = model("hf", {}, (F32, 1), assets=assets), model("hf", {}, (F32, 1), assets=assets)
    assert list(with_small_files(result, source, None, tokenizer=False)[0].assets) == kept
    assert with_small_files(result, source, None, tokenizer=True)[0].assets == assets


# ------------------------------------------------------------------------------------- from a GGUF


@pytest.fixture(scope="module")
def gguf(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    """A small Llama as a GGUF's tensors and keys."""
    config = family_config("llama")
    folder = write(tmp_path_factory.mktemp("model") / "m", config, random_tensors(config, "F32"), "F32")
    with converter.open_checkpoint(folder) as hf:
        mapped = to_gguf(hf)
        keys = {"general.architecture": text("llama"), **mapped.config}
        return hf.replace(tensors=mapped.tensors, config=keys, dialect="gguf", assets={"README.md": Path("README.md")})


def files_of(gguf: Checkpoint, tokenizer: bool = False, **keys: Any) -> tuple[dict[str, Any], list[Event]]:
    """The files that are made of a GGUF with these keys besides, JSON as what it says."""
    source = gguf.replace(config={**gguf.config, **keys})
    mapped = to_hf(source)
    result, events = with_small_files(source.replace(tensors=mapped.tensors), source, mapped, tokenizer=tokenizer)
    assert result.assets == {}, "a file beside a GGUF is not its model's"
    made = {name: json.loads(c) if name.endswith(".json") else c.decode() for name, c in result.made.items()}
    return made, events


def ids(**numbers: int) -> dict[str, Value]:
    return {f"tokenizer.ggml.{name}_token_id": u32(number) for name, number in numbers.items()}


@pytest.mark.parametrize(
    ("numbers", "config", "generation"),
    [
        ({}, {}, None),
        ({"bos": 1}, {"bos_token_id": 1}, {"bos_token_id": 1}),
        ({"bos": 0, "eos": 2, "padding": 3}, {"bos_token_id": 0, "eos_token_id": 2, "pad_token_id": 3}, {
            "bos_token_id": 0, "eos_token_id": 2, "pad_token_id": 3}),
        ({"eos": 2, "eot": 5}, {"eos_token_id": 2}, {"eos_token_id": [2, 5]}),  # a turn's end stops as well
        ({"eos": 0, "eot": 5}, {"eos_token_id": 0}, {"eos_token_id": [0, 5]}),
        ({"eos": 2, "eot": 0}, {"eos_token_id": 2}, {"eos_token_id": [2, 0]}),
        ({"eos": 2, "eot": 2}, {"eos_token_id": 2}, {"eos_token_id": 2}),
        ({"eot": 5}, {}, None),
        ({"unknown": 4}, {}, None),
    ],
)  # fmt: skip
def test_special_tokens(
    gguf: Checkpoint, numbers: dict[str, int], config: dict[str, int], generation: dict[str, Any] | None
) -> None:
    made, _ = files_of(gguf, **ids(**numbers))
    assert {key: value for key, value in made["config.json"].items() if key.endswith("token_id")} == config
    assert made.get("generation_config.json") == generation


@pytest.mark.parametrize(
    ("setting", "name", "sampled"),
    [
        ("temp", "temperature", True), ("top_k", "top_k", True), ("top_p", "top_p", True), ("min_p", "min_p", True),
        ("penalty_repeat", "repetition_penalty", False),
    ],
)  # fmt: skip
def test_settings_that_need_sampling_ask_for_it(gguf: Checkpoint, setting: str, name: str, sampled: bool) -> None:
    value = Value("i32", 2) if setting == "top_k" else Value("f32", 0.5)
    made, events = files_of(gguf, **{f"general.sampling.{setting}": value}, **ids(eos=2))
    asked = {"do_sample": True} if sampled else {}
    assert made["generation_config.json"] == {"eos_token_id": 2, **asked, name: value.value}
    assert not [event for event in events if "sampling" in str(event)]


def test_what_has_no_place_in_a_folder_is_told(gguf: Checkpoint) -> None:
    known = {
        "general.alignment": u32(32), "general.file_type": u32(1), "general.quantization_version": u32(2),
        "tokenizer.chat_templates": Array("str", ["a"]), "general.type": text("model"), "general.name": text("N"),
    }  # fmt: skip
    unknown = {"general.unheard": text("x"), "llama.unheard": u32(1)}
    made, events = files_of(gguf, **known, **unknown, **{"tokenizer.unheard": text("x")})
    reason = "a Hugging Face folder has no place for it"
    assert events == [MetadataLost(key, reason) for key in unknown], "without a tokenizer nobody asks for its keys"
    assert made["README.md"] == '---\nname: "N"\n---\n'
    _, events = files_of(gguf, tokenizer=True, **{"tokenizer.unheard": text("x")})
    assert events == [MetadataLost("tokenizer.unheard", reason)]


@pytest.mark.parametrize("said", [{}, {"tokenizer.ggml.model": text("none")}])
def test_a_gguf_without_a_tokenizer(gguf: Checkpoint, said: dict[str, Any]) -> None:
    made, _ = files_of(gguf, tokenizer=True, **said)
    assert made.keys() == {"config.json"}
    with pytest.raises(TokenizerError, match=r"^.*\n--no-tokenizer writes the folder without it$"):
        files_of(gguf, tokenizer=True, **{"tokenizer.ggml.model": text("strange")})


def test_the_config_says_what_the_gguf_says_and_no_more(gguf: Checkpoint) -> None:
    """What the file does not say is left out where a reader of the config fills in the same; what it says is said."""
    length = ("llama.attention.key_length", "llama.attention.value_length")
    silent = gguf.replace(config={key: value for key, value in gguf.config.items() if key not in length})
    whole = files_of(silent, **{key: u32(16) for key in length})[0]["config.json"]
    assert (whole["torch_dtype"], whole["vocab_size"], whole["head_dim"]) == ("float32", 48, 16)
    for key in length:  # of a fact with two keys, one of them says it
        assert files_of(silent, **{key: u32(16)})[0]["config.json"] == whole
    less = files_of(silent)[0]["config.json"]
    assert less == {key: value for key, value in whole.items() if key != "head_dim"}
