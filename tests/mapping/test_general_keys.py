"""The `general.*` keys equal those that gguf-py derives from the same folder: same keys, order, types and values."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest

from converter.mapping.general_keys import (
    MAX_CARD,
    MAX_ORIGINS,
    ModelName,
    Parameters,
    count_parameters,
    default_file_name,
    general_files,
    general_metadata,
    parse_model_id,
    round_count,
)
from converter.metadata import Array, Metadata, Value, text, u32

Shapes = dict[str, tuple[int, ...]]

SMALL: Shapes = {"token_embd.weight": (512, 64), "blk.0.attn_q.weight": (64, 64), "output_norm.weight": (64,)}
LLAMA_8B: Shapes = {"token_embd.weight": (128256, 4096), "blk.0.ffn_up.weight": (1835008, 4096)}
QWEN_72B: Shapes = {"token_embd.weight": (152064, 8192), "blk.0.ffn_up.weight": (8720000, 8192)}
MIXTRAL: Shapes = {
    "token_embd.weight": (32000, 4096),
    "blk.0.ffn_up_exps.weight": (8, 1376256, 4096),
    "blk.0.ffn_up_exps.bias": (8, 14336),
    "blk.0.attn_q.weight": (300000, 4096),
}
ONE_EXPERT: Shapes = {"blk.0.ffn_up_exps.weight": (1, 8, 8), "blk.0.attn_q.weight": (8, 8)}
STACKED_BIAS: Shapes = {"blk.0.ffn_up_exps.weight": (4, 8, 8), "blk.0.ffn_down_exps.bias": (3, 4, 8)}
NOTHING: Shapes = {}

IDS = [
    "Llama-3.1-8B-Instruct",
    "Mixtral-8x7B-v0.1",
    "Mixtral-8x7B-Instruct-v0.1",
    "Mistral/Mixtral-v0.1",
    "Mixtral",
    "Qwen2-72B",
    "Qwen2-57B-A14B-Instruct",
    "Qwen1.5-MoE-A2.7B-Chat",
    "Qwen/Qwen3-235B-A22B-Instruct-2507",
    "Phi-3-mini-4k-instruct",
    "microsoft/Phi-3-medium-128k-instruct",
    "stories-llama2-50k",
    "stories260K",
    "DeepSeek-Coder-V2-Lite-Instruct",
    "deepseek-ai/DeepSeek-V2-Chat-0628",
    "crestf411/daybreak-kunoichi-2dpo-7b",
    "smallcloudai/Refact-1_6B-fim",
    "UCLA-AGI/Gemma-2-9B-It-SPPO-Iter3",
    "NousResearch/Hermes-2-Theta-Llama-3-8B",
    "internlm/internlm2_5-7b-chat-1m",
    "pszemraj/jamba-900M-v0.13-KIx2",
    "bigscience/bloom-7b1-petals",
    "MaziyarPanahi/GreenNode-mini-7B-multilingual-v1olet-Mistral-7B-Instruct-v0.1",
    "OpenGVLab/Mini-InternVL-Chat-2B-V1-5",
    "voxmenthe/SFR-Iterative-DPO-LLaMA-3-8B-R-unquantized",
    "microsoft/Florence-2-base",
    "mistralai/-Mistral--Nemo-Base-2407-",
    "Llama-3-Instruct-abliteration-LoRA-8B",
    "TheBloke/Model-7B-v0.2-Q4_K_M-fp16",
    "a model with a title",
    "./local-7b",
    "../up-7b-chat",
    "8B",
    "v1.0-xl",
    "gpt2-xl",
    "iter3",
    "",
    "-",
    "Ünïcödé-7b-日本語",
    "llama-7T5-small-x",
    "one/two/three",
]

CARDS = {
    "llama": "language:\n- en\n- de\nbase_model: meta-llama/Meta-Llama-3.1-8B\nlicense: llama3.1\npipeline_tag: "
    "text-generation\ntags:\n- facebook\n- pytorch\nextra_gated_prompt: >-\n  ### LICENSE\n\n  text: here\n",
    "base models": "base_model:\n- Qwen/Qwen2-7B\n- https://huggingface.co/mistralai/Mistral-7B-v0.1\n"
    "- https://example.com/models/x-7b\n- ssh://git@huggingface.co/a/b-7b\n- name: Own\n  version: '2'\n"
    "  organization: Us\n  unknown: x\n  repo_url: https://e.org\n- just a title\n- 7\n",
    "base model url": "base_model: https://huggingface.co/a/b-v1.0-7b\nbase_models: ignored/x\n",
    "base model null": "base_model:\nbase_models: ignored/x\n",
    "base model map": "base_model:\n  name: a\n",
    "base models key": "base_models: [a/b, c/d-4k-v2]\n",
    "sources": "base_model_sources: [a/b]\ndataset_sources: [c/d]\n",
    "datasets": "datasets:\n- HuggingFaceH4/ultrachat_200k\n- https://huggingface.co/datasets/a/b\n"
    "- https://huggingface.co/org/set-v2\n- wikitext\n- name: Own\n  url: https://e.org\n"
    "  description: |\n    two\n    lines\n",
    "dataset": "dataset: glue\n",
    "licenses": "license: [mit, apache-2.0]\nlicense_name: both\nlicense_link: LICENSE\n",
    "license other": "license: other\nlicense_name: qwen\n"
    "license_link: >-\n  https://huggingface.co/Qwen/Qwen2-72B/LICENSE\n",
    "direct": "name: Given Name\n"
    "author: A. Author\nversion: v2\norganization: O\ndescription: |\n  one\n  two\nfinetune: ft\n"
    "basename: Base\nsize_label: 3B\nurl: https://u\ndoi: 10.1/x\nuuid: abc\nrepo_url: https://r\n",
    "model_": "model_name: N\nmodel_author: A\nmodel_version: '1.0'\nmodel_organization: O\nmodel_description: D\n"
    "model_finetune: F\nmodel_basename: B\nmodel_size_label: 1B\nmodel_url: U\nmodel_doi: D\nmodel_uuid: I\n"
    "model_repo_url: R\n",
    "the bloke": "model_creator: Mistral AI\nmodel_name: Mistral 7B Instruct v0.2\nmodel_type: mistral\n"
    "quantized_by: TheBloke\nprompt_template: '<s>[INST] {prompt} [/INST]\n\n  '\n",
    "nulls": "name:\nmodel_name: Second\nauthor: ~\nversion: no\nfinetune: 0\nlicense: ''\n",
    "tags": "tags: one\npipeline_tag: [two, three]\nlanguages: [en]\nlanguage: fr\n",
    "tags numbers": "tags: [1, 2]\nlanguage: [1.5, 2.5]\n",
    "tags truths": "tags: [yes, no]\nlanguage: yes\n",
    "norway": "language:\n- no\n- sv\n",
    "tabs": "tags:\n\t- a\n\t- b\n",
    "empty lists": "tags: []\nlanguage:\nbase_model: []\ndatasets: []\n",
    "crlf": "license: mit\r\nlanguage:\r\n- en\r\n",
}

GENERATION = {
    "usual": {"temperature": 0.6, "top_p": 0.9, "do_sample": True, "eos_token_id": [1, 2], "top_k": 20},
    "all": {
        "sequence": "kdt",
        "top_k": 0,
        "top_p": 1,
        "min_p": 0.05,
        "xtc_probability": 0.5,
        "xtc_threshold": 0.1,
        "temperature": 1e-3,
        "penalty_last_n": -1,
        "penalty_repeat": 1.1,
        "mirostat": 2,
        "mirostat_tau": 5.0,
        "mirostat_eta": 0.1,
    },
    "nulls": {"temperature": None, "top_k": None, "sequence": "", "penalty_repeat": None},
    "infinite": {"temperature": float("inf")},
}


def folder(path: Path, **files: str) -> dict[str, Path]:
    """Write README, config and generation texts; the folder's files by name."""
    path.mkdir(parents=True, exist_ok=True)
    names = {"readme": "README.md", "config": "config.json", "generation": "generation_config.json"}
    for key, content in files.items():
        (path / names[key]).write_bytes(content.encode())
    return {file.name: file for file in path.iterdir()}


def reference(path: Path, shapes: Shapes, name: str | None = None) -> list[tuple[str, str, object]]:
    """The keys gguf-py writes for a folder, as (key, type, value): what `prepare_metadata` does with its `Metadata`."""
    gguf = pytest.importorskip("gguf")
    import numpy as np

    logging.getLogger("metadata").setLevel(logging.CRITICAL)
    writer = gguf.GGUFWriter(path=None, arch="llama")
    for tensor, shape in shapes.items():
        writer.add_tensor_info(tensor, shape, np.dtype("float32"), 0)
    total, shared, expert, n_expert = writer.get_total_parameter_count()
    found = gguf.Metadata.load(None, path, name, total)
    if found.name is None:
        found.name = path.name
    if found.size_label is None and total > 0:
        found.size_label = gguf.size_label(total, shared, expert, n_expert)
    writer.add_type(gguf.GGUFType.MODEL)
    found.set_gguf_meta_model(writer)
    written = writer.kv_data[0]
    del written["general.architecture"]
    for value in written.values():
        writer._pack_val(value.value, value.type, add_vtype=True)
    return [(key, *_kind(gguf, value)) for key, value in written.items()]


def _kind(gguf: object, value: object) -> tuple[str, object]:
    names = {"STRING": "str", "UINT32": "u32", "INT32": "i32", "FLOAT32": "f32", "BOOL": "bool"}
    if value.type.name != "ARRAY":  # type: ignore[attr-defined]
        return names[value.type.name], value.value  # type: ignore[attr-defined]
    return f"[{names[gguf.GGUFValueType.get_type(value.value[0]).name]}]", value.value  # type: ignore[attr-defined]


def ours(metadata: Metadata) -> list[tuple[str, str, object]]:
    return [
        (key, f"[{value.type}]", list(value.values)) if isinstance(value, Array) else (key, value.type, value.value)
        for key, value in metadata.items()
    ]


@pytest.mark.parametrize("model_id", IDS)
@pytest.mark.parametrize("shapes", [NOTHING, SMALL, LLAMA_8B, QWEN_72B, MIXTRAL], ids=["0", "37K", "8B", "73B", "8x6B"])
def test_names(tmp_path: Path, model_id: str, shapes: Shapes) -> None:
    path = tmp_path / "some-folder-3B"
    files = folder(path, config=json.dumps({"_name_or_path": model_id}))
    metadata, events = general_metadata(path.name, files, shapes)
    assert ours(metadata) == reference(path, shapes)
    assert not events


@pytest.mark.parametrize("name", [model_id.replace("/", "_") for model_id in IDS if model_id])
def test_folder_names(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    files = folder(path, config="{}")
    assert ours(general_metadata(path.name, files, LLAMA_8B)[0]) == reference(path, LLAMA_8B)
    assert ours(general_metadata(path.name, files, SMALL, name="Mine")[0]) == reference(path, SMALL, "Mine")


@pytest.mark.parametrize("card", CARDS.values(), ids=CARDS)
def test_cards(tmp_path: Path, card: str) -> None:
    path = tmp_path / "Model-7B-v1"
    files = folder(path, readme=f"---\n{card}---\n# Model\nlicense: body\n", config='{"_name_or_path": "a/b-c-1B"}')
    assert ours(general_metadata(path.name, files, LLAMA_8B)[0]) == reference(path, LLAMA_8B)


@pytest.mark.parametrize("settings", GENERATION.values(), ids=GENERATION)
def test_sampling(tmp_path: Path, settings: dict[str, object]) -> None:
    files = folder(tmp_path / "m", generation=json.dumps(settings))
    assert ours(general_metadata("m", files, SMALL)[0]) == reference(tmp_path / "m", SMALL)


def test_repetition_penalty(tmp_path: Path) -> None:
    """Newer than the gguf-py on PyPI: transformers' name for the same setting, unless llama.cpp's own is there."""
    files = folder(tmp_path / "a", generation='{"repetition_penalty": 1.05}')
    assert general_metadata("a", files, SMALL)[0]["general.sampling.penalty_repeat"] == Value("f32", 1.05)
    files = folder(tmp_path / "b", generation='{"repetition_penalty": 1.05, "penalty_repeat": 1.2}')
    assert general_metadata("b", files, SMALL)[0]["general.sampling.penalty_repeat"] == Value("f32", 1.2)


@pytest.mark.parametrize(
    "readme", ["", "# no front matter\n---\nlicense: mit\n---\n", "---\n---\n", "---\nlicense: mit\n"]
)
def test_cards_without_an_end(tmp_path: Path, readme: str) -> None:
    files = folder(tmp_path / "m-7b", readme=readme)
    assert ours(general_metadata("m-7b", files, SMALL)[0]) == reference(tmp_path / "m-7b", SMALL)


@pytest.mark.parametrize("shapes", [SMALL, LLAMA_8B, MIXTRAL, ONE_EXPERT, STACKED_BIAS, NOTHING])
def test_parameters(shapes: Shapes) -> None:
    gguf = pytest.importorskip("gguf")
    import numpy as np

    writer = gguf.GGUFWriter(path=None, arch="llama")
    for tensor, shape in shapes.items():
        writer.add_tensor_info(tensor, shape, np.dtype("float32"), 0)
    assert count_parameters(shapes) == Parameters(*writer.get_total_parameter_count())


@pytest.mark.parametrize("exponent", range(0, 14))
@pytest.mark.parametrize("digits", [1, 1.004, 1.5, 9.949, 9.951, 9.996])
def test_round_count(exponent: int, digits: float) -> None:
    gguf = pytest.importorskip("gguf")
    from gguf.utility import model_weight_count_rounded_notation

    count = int(digits * 10**exponent)
    assert round_count(count) == model_weight_count_rounded_notation(count)
    assert Parameters(9 * count, count, 2 * count, 8).size_label == gguf.size_label(9 * count, count, 2 * count, 8)


def test_parse_model_id() -> None:
    assert parse_model_id("mistralai/Mixtral-8x7B-Instruct-v0.1") == ModelName(
        "Mixtral-8x7B-Instruct-v0.1", "mistralai", "Mixtral", "Instruct", "v0.1", "8x7B"
    )
    assert parse_model_id("microsoft/Phi-3-mini-4k-instruct", 4 * 10**9) == ModelName(
        "Phi-3-mini-4k-instruct", "microsoft", "Phi-3", "4k-instruct", None, "mini"
    )


# -- where the reference stops with an exception --------------------------------------------------------------------

ODD = {
    "version number": ("version: 1.10\n", "general.version", text("1.10"), "kept as text"),
    "author list": ("author: [a, b]\n", "general.author", None, "list or a map"),
    "license map": ("license: {a: b}\n", "general.license", None, "list or a map"),
    "license nested": ("license: [mit, [a]]\n", "general.license", text("mit,"), "list or a map"),
    "license number": ("license: [mit, 2]\n", "general.license", text("mit,2"), "kept as text"),
    "mixed tags": ("tags: [a, 1, ~, {b: c}]\n", "general.tags", Array("str", ["a", "1"]), "mixes"),
    "large tags": ("tags: [5000000000]\n", "general.tags", Array("str", ["5000000000"]), "mixes"),
    "unreadable": ("license: *x\ntags: [a]\n", "general.tags", Array("str", ["a"]), "'license' skipped"),
    "odd base": ("base_model: [7]\n", "general.base_model.count", Value("u32", 1), "left empty"),
}


@pytest.mark.parametrize(("card", "key", "value", "note"), ODD.values(), ids=ODD)
def test_odd_cards(tmp_path: Path, card: str, key: str, value: Value | Array | None, note: str) -> None:
    files = folder(tmp_path / "m", readme=f"---\n{card}---\n")
    metadata, events = general_metadata("m", files, SMALL)
    assert metadata.get(key) == value
    assert note in str(events[0])


BROKEN = [
    "{",
    "[]",
    "\xff",
    "[" * 100_000,
    '{"top_k": 1' + "0" * 5000 + "}",
    '{"top_k": 1e3}',
    '{"temperature": "hot"}',
    '{"sequence": 1}',
    '{"top_k": 99999999999}',
    '{"top_p": 1e39}',
]


@pytest.mark.parametrize("content", BROKEN, ids=range(len(BROKEN)))
def test_broken_generation_config_is_ignored(tmp_path: Path, content: str) -> None:
    files = folder(tmp_path / "m", generation=content)
    metadata, events = general_metadata("m", files, SMALL)
    assert not any("sampling" in key for key in metadata)
    assert "generation_config.json" in str(events[0]) and len(str(events[0])) < 300


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    metadata, events = general_metadata("m", {"README.md": tmp_path / "d", "config.json": tmp_path / "no"}, SMALL)
    assert metadata["general.name"] == text("M")
    assert len(events) == 2


def test_only_the_start_of_a_card_is_read(tmp_path: Path) -> None:
    files = folder(tmp_path / "m", readme="---\nlicense: mit\n" + "#\n" * MAX_CARD + "tags: [late]\n---\n")
    metadata, _ = general_metadata("m", files, SMALL)
    assert metadata["general.license"] == text("mit") and "general.tags" not in metadata


def test_half_surrogates_do_not_reach_the_file(tmp_path: Path) -> None:
    files = folder(tmp_path / "m", config='{"_name_or_path": "x\\ud800-7b"}', generation='{"sequence": "\\udfff"}')
    metadata, _ = general_metadata("m", files, SMALL)
    assert metadata["general.name"] == text("X? 7b") and metadata["general.basename"] == text("x?")
    assert metadata["general.sampling.sequence"] == text("?")
    card = folder(tmp_path / "n", readme='---\nlicense: "m\\ud800t"\nmodel_name: fine\n---\n')
    metadata, events = general_metadata("n", card, SMALL)
    assert "general.license" not in metadata and metadata["general.name"] == text("fine")
    assert "license" in str(events[0])


# -- file names ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model_id", [*IDS, "x/y z"])
@pytest.mark.parametrize("file_type", ["Q4_K_M", "BF16", "F32"])
def test_default_file_name(tmp_path: Path, model_id: str, file_type: str) -> None:
    gguf = pytest.importorskip("gguf")
    files = folder(tmp_path / "Fold er", config=json.dumps({"_name_or_path": model_id}))
    metadata, _ = general_metadata("Fold er", files, LLAMA_8B)
    parts = [metadata.get(f"general.{key}") for key in ("name", "basename", "finetune", "version", "size_label")]
    values = [part.value if isinstance(part, Value) else None for part in parts]
    assert default_file_name(metadata, file_type) == f"{gguf.naming_convention(*values, file_type)}.gguf"


def test_file_name_stays_in_its_folder() -> None:
    hostile = {"general.basename": text("../../etc/x"), "general.version": text("a\\b\0c")}
    assert default_file_name(hostile, "f16") == "..-..-etc-x-a-b-c-F16.gguf"
    assert default_file_name({"general.name": text("é" * 200)}, "f16") == "ggml-model-F16.gguf"
    assert default_file_name({}, "Q8_0") == "ggml-model-Q8_0.gguf"


# -- back ---------------------------------------------------------------------------------------------------------

EVERY_KEY: Metadata = {
    "general.type": text("model"),
    "general.sampling.sequence": text("kdt"),
    "general.sampling.top_k": Value("i32", 20),
    "general.sampling.temp": Value("f32", 0.6),
    "general.sampling.penalty_repeat": Value("f32", 1.05),
    "general.name": text('N "q" \u00e9\u0085'),
    "general.author": text("A"),
    "general.license": text("mit"),
    "general.license.link": text("l"),
    "general.source.url": text("u"),
    "general.base_model.count": u32(3),
    "general.base_model.0.name": text("B 7b"),
    "general.base_model.0.organization": text("A"),
    "general.base_model.0.repo_url": text("https://huggingface.co/A/B-7b"),
    "general.base_model.1.name": text("Own"),
    "general.base_model.1.doi": text("10.1/x"),
    "general.dataset.count": u32(1),
    "general.dataset.0.name": text("Wikitext"),
    "general.tags": Array("str", ["a", "b"]),
    "general.languages": Array("str", ["no", "de"]),
}
CARD_OF_ALL = """\
---
name: "N \\"q\\" \u00e9\\U00000085"
author: "A"
license: "mit"
license_link: "l"
url: "u"
base_model:
- "A/B-7b"
- {name: "Own", doi: "10.1/x"}
- {}
datasets:
- {name: "Wikitext"}
tags:
- "a"
- "b"
language:
- "no"
- "de"
---
"""
SETTINGS_OF_ALL = """\
{
  "sequence": "kdt",
  "top_k": 20,
  "temperature": 0.6,
  "repetition_penalty": 1.05
}
"""


def test_files_that_hold_the_keys_give_them_back(tmp_path: Path) -> None:
    files, held = general_files(EVERY_KEY, 10**6)
    assert files == {"README.md": CARD_OF_ALL.encode(), "generation_config.json": SETTINGS_OF_ALL.encode()}
    assert held == EVERY_KEY.keys()
    read, events = general_metadata("m", folder(tmp_path, readme=CARD_OF_ALL, generation=SETTINGS_OF_ALL), NOTHING)
    named = {key: value for key, value in read.items() if key in EVERY_KEY}
    assert named == EVERY_KEY and list(named) == list(EVERY_KEY)
    assert [str(event) for event in events] == []


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("general.type", text("adapter")),
        ("general.name", text("")),
        ("general.name", Value("u32", 1)),
        ("general.tags", Array("i32", [1])),
        ("general.tags", text("a")),
        ("general.base_model.count", u32(0)),
        ("general.base_model.count", u32(MAX_ORIGINS + 1)),
        ("general.base_model.count", text("1")),
        ("general.sampling.top_k", Value("u32", 1)),
        ("general.sampling.temp", Array("f32", [1.0])),
        ("general.strange", text("a")),
    ],
)
def test_keys_without_a_place_are_not_held(key: str, value: Value | Array) -> None:
    assert general_files({key: value}, 0) == ({}, set())


def test_as_many_origins_as_there_may_be() -> None:
    files, held = general_files({"general.dataset.count": u32(MAX_ORIGINS)}, 0)
    assert files["README.md"].count(b"- {}") == MAX_ORIGINS == 1024 and held == {"general.dataset.count"}


@pytest.mark.parametrize(
    ("name", "value", "kept"),
    [
        ("top_k", (1 << 31) - 1, True),
        ("top_k", -(1 << 31), True),
        ("top_k", 1 << 31, False),
        ("top_k", -(1 << 31) - 1, False),
        ("top_k", True, True),
        ("top_p", 3.4028235677973362e38, True),  # the last that does not round up to what F32 has not
        ("top_p", -3.4028235677973362e38, True),
        ("top_p", 3.4028235677973366e38, False),
        ("top_p", -3.4028235677973366e38, False),
        ("top_p", 1, True),
        ("top_p", "1", False),
        ("sequence", "a", True),
        ("sequence", 1, False),
    ],
)
def test_settings_are_kept_where_their_type_holds_them(name: str, value: object, kept: bool, tmp_path: Path) -> None:
    files = folder(tmp_path / "m", generation=json.dumps({name: value}))
    metadata, events = general_metadata("m", files, NOTHING)
    assert (f"general.sampling.{name}" in metadata) is kept
    said = [] if kept else [f"generation_config.json: {name} is {value!r:.40}, left out"]
    assert [str(event) for event in events] == said


def test_a_size_is_not_made_up_of_nothing(tmp_path: Path) -> None:
    assert "general.size_label" not in general_metadata("m", folder(tmp_path / "m"), NOTHING)[0]
    assert general_metadata("m", folder(tmp_path / "n"), {"x": (1,)})[0]["general.size_label"] == text("0.00K")
