"""Layers and experts left out: what stays is what it was, and what it computes is what is left of the model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support import architectures
from support.llama_runner import ask
from support.rewriting import again, item, rewritten
from support.torch_logits import TOKENS, logits

import converter
from converter.cli.main import main
from converter.errors import CorruptFile, OutputExists, UnsupportedFeature, UsageError
from converter.formats.gguf import open_gguf
from converter.housekeeping.blocks import Model
from converter.housekeeping.experts import rows_of
from converter.housekeeping.prune import prune
from converter.metadata import Array, Value

TINY = "qwen2moe-tiny"


def build(name: str, tmp_path: Path, quant: str = "f32") -> tuple[Path, Path]:
    """A sample's folder, and the GGUF that is made of it."""
    folder = architectures.build(name, tmp_path)
    target = tmp_path / "m.gguf"
    converter.convert(folder, target, converter.Request(quant=quant, **architectures.facts(name)["request"]), threads=1)
    return folder, target


def config(path: Path) -> dict[str, Any]:
    return json.loads((path / "config.json").read_text("utf-8"))  # type: ignore[no-any-return]


def without(folder: Path, layers: list[int] | None = None, experts: list[int] | None = None) -> Any:
    """The logits of transformers with these layers and experts alone, which a module list and its config lose."""
    import torch
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    inner, own = model.model, model.config
    for layer in inner.layers if experts is not None else ():
        if hasattr(layer.mlp, "experts"):
            for part in (layer.mlp.experts, getattr(layer.mlp, "gate", None) or layer.mlp.router):
                for name, value in list(part.named_parameters(recurse=False)):
                    setattr(part, name, torch.nn.Parameter(value[experts]))
                part.num_experts = len(experts)
    if layers is not None:
        for key, value in own.to_dict().items():
            if isinstance(value, list) and len(value) == len(inner.layers) and "layer" in key:
                setattr(own, key, [value[layer] for layer in layers])
        inner.layers = torch.nn.ModuleList([inner.layers[layer] for layer in layers])
        own.num_hidden_layers = len(layers)
    with torch.no_grad():
        return model.eval()(input_ids=torch.tensor(TOKENS), use_cache=False).logits.numpy()


LAYERS = [
    ("gemma3-tiny", [0, 1, 2, 3, 4, 5]),  # the pattern stays
    ("deepseek2-v3-tiny", [1, 2]),  # one of two without experts goes
    ("openelm-tiny", [1]),  # lists of heads and widths
    ("cohere2-tiny", [0, 1, 2]),
    (TINY, [1]),
]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "layers"), LAYERS, ids=[name for name, _ in LAYERS])
def test_what_is_left_computes_what_transformers_does_without_the_layers(
    name: str, layers: list[int], tmp_path: Path
) -> None:
    pytest.importorskip("torch")
    pytest.importorskip("llama_cpp")
    folder, file = build(name, tmp_path)
    wanted = ",".join(map(str, layers))
    prune(folder, tmp_path / "less", layers=wanted)
    prune(file, tmp_path / "less.gguf", layers=wanted)
    if name == "openelm-tiny":  # transformers does not have it
        theirs = None
    else:
        theirs = without(folder, layers)
        assert np.array_equal(logits(tmp_path / "less", architectures.unread(name)), theirs)
    ours = np.array(ask(tmp_path / "less.gguf", logits=TOKENS[0]))
    if theirs is not None:
        ours = ours * architectures.facts(name).get("scaled", 1)
        worst = np.abs(ours - theirs[0][:, : ours.shape[1]]).max() / np.abs(theirs).max()
        assert worst <= architectures.facts(name)["runtime"]
    converter.convert(tmp_path / "less", tmp_path / "again.gguf", converter.Request(quant="f32"), threads=1)
    with open_gguf(tmp_path / "less.gguf") as one, open_gguf(tmp_path / "again.gguf") as other:
        assert one.tensors.keys() == other.tensors.keys()
        assert all(np.array_equal(tensor.array(), other.tensors[key].array()) for key, tensor in one.tensors.items())
        own = [key for key in other.config if not key.startswith("general.")]
        assert [key for key in own if one.config.get(key) != other.config[key]] == []


@pytest.mark.slow
@pytest.mark.parametrize("name", [TINY, "gpt-oss-tiny"])
def test_what_is_left_computes_what_transformers_does_without_the_experts(name: str, tmp_path: Path) -> None:
    pytest.importorskip("torch")
    pytest.importorskip("llama_cpp")
    folder, file = build(name, tmp_path)
    theirs = without(folder, experts=[1, 2, 3])
    prune(folder, tmp_path / "less", experts="1-3")
    prune(file, tmp_path / "less.gguf", experts="1-3")
    assert np.array_equal(logits(tmp_path / "less"), theirs)
    ours = np.array(ask(tmp_path / "less.gguf", logits=TOKENS[0]))
    worst = np.abs(ours - theirs[0][:, : ours.shape[1]]).max() / np.abs(theirs).max()
    assert worst <= architectures.facts(name)["runtime"]


def test_blocks_are_bytes(tmp_path: Path) -> None:
    _, file = build(TINY, tmp_path, "q8_0")
    made = prune(file, tmp_path / "less.gguf", drop_layers="0", experts="0,2-3")
    with open_gguf(file) as old, open_gguf(tmp_path / "less.gguf") as new:
        assert item(new.config, "qwen2moe.block_count") == 1
        assert item(new.config, "qwen2moe.expert_count") == 3
        for name, tensor in new.tensors.items():
            before = old.tensors[name.replace("blk.0.", "blk.1.")]
            assert tensor.info.dtype is before.info.dtype
            rows = before.rows(0, before.info.n_rows)
            if name.endswith("_exps.weight") or name.endswith("ffn_gate_inp.weight"):
                rows = rows.reshape(4, -1, rows.shape[-1])[[0, 2, 3]].reshape(-1, rows.shape[-1])
            assert np.array_equal(tensor.rows(0, tensor.info.n_rows), rows)
        assert {name for name in old.tensors if not name.startswith("blk.0.")} == {
            name.replace("blk.0.", "blk.1.") for name in new.tensors
        }
    said = [str(event) for event in made.events]
    assert "layers 0: dropped (1 of 2, " in said[0] and "experts 1: dropped (1 of 4, " in said[1]


def test_slabs_of_any_size_give_the_same_bytes(tmp_path: Path) -> None:
    _, file = build(TINY, tmp_path, "q8_0")
    with open_gguf(file) as old:
        for axis, name in (
            (0, "blk.1.ffn_down_exps.weight"),
            (1, "blk.1.ffn_down_exps.weight"),
            (1, "blk.1.ffn_gate_inp.weight"),
        ):
            tensor = old.tensors[name]
            shape = tensor.info.shape
            taken = rows_of(Model.of(old), tensor, axis, shape[axis], [0, 2, 3])
            numbers = np.arange(tensor.info.n_rows).reshape(shape[:-1] if axis < len(shape) - 1 else (-1,))
            if axis < len(shape) - 1:
                wanted = tensor.rows(0, tensor.info.n_rows)[np.take(numbers, [0, 2, 3], axis).reshape(-1)]
            else:
                wanted = np.ascontiguousarray(tensor.array()[:, [0, 2, 3]]).view(np.uint8)
            count = taken.info.n_rows
            for size in (1, 3, count):
                parts = [taken.rows(at, min(at + size, count)) for at in range(0, count, size)]
                assert np.array_equal(np.concatenate(parts), wanted)
            assert taken.rows(0, 0).shape == (0, taken.info.row_nbytes)


def test_a_count_of_experts_are_the_first_ones(tmp_path: Path) -> None:
    folder, _ = build(TINY, tmp_path)
    prune(folder, tmp_path / "one", experts="2")
    prune(folder, tmp_path / "two", experts="0-1")
    assert (tmp_path / "one/model.safetensors").read_bytes() == (tmp_path / "two/model.safetensors").read_bytes()
    assert config(tmp_path / "one")["num_experts"] == 2


def test_a_folder_keeps_its_small_files_and_lists_of_layers(tmp_path: Path) -> None:
    folder = architectures.build("gemma3-tiny", tmp_path)
    before = config(folder)
    prune(folder, tmp_path / "less", layers="5,6")
    after = config(tmp_path / "less")
    assert before["layer_types"][5:7] == after["layer_types"] == ["full_attention", "sliding_attention"]
    assert after["num_hidden_layers"] == 2
    changed = {"layer_types", "num_hidden_layers"}
    assert {key: value for key, value in after.items() if key not in changed} == {
        key: value for key, value in before.items() if key not in changed
    }
    kept = {path.name: path.read_bytes() for path in folder.iterdir() if path.suffix == ".json"}
    assert {name: (tmp_path / "less" / name).read_bytes() for name in kept if name != "config.json"} == {
        name: data for name, data in kept.items() if name != "config.json"
    }


def test_a_pattern_is_said_outright_where_config_json_did_not(tmp_path: Path) -> None:
    folder = architectures.build("gemma3-tiny", tmp_path)
    silent = {key: value for key, value in config(folder).items() if key != "layer_types"}
    (folder / "config.json").write_text(json.dumps(silent), "utf-8")
    prune(folder, tmp_path / "less", layers="5,6")
    assert config(tmp_path / "less")["layer_types"] == ["full_attention", "sliding_attention"]


def test_layers_that_predict_further_tokens_stay(tmp_path: Path) -> None:
    folder, file = build("glm4moe-nextn", tmp_path)
    with open_gguf(file) as old:
        count, ahead = (item(old.config, f"glm4moe.{key}") for key in ("block_count", "nextn_predict_layers"))
        names = set(old.tensors)
    main = count - ahead
    prune(file, tmp_path / "less.gguf", drop_layers=f"{main - 1}")
    with open_gguf(tmp_path / "less.gguf") as new:
        assert item(new.config, "glm4moe.block_count") == count - 1
        moved = {name.replace(f"blk.{main}.", f"blk.{main - 1}.") for name in names if f"blk.{main - 1}." not in name}
        assert set(new.tensors) == moved
    prune(folder, tmp_path / "less", drop_layers=f"{main - 1}")
    converter.convert(tmp_path / "less", tmp_path / "again.gguf", converter.Request(quant="f32"), threads=1)
    with open_gguf(tmp_path / "again.gguf") as again:
        assert set(again.tensors) == moved


@pytest.mark.parametrize(
    ("name", "options", "says"),
    [
        ("gemma3-tiny", {"drop_layers": "0"}, "layer_types"),  # every sixth layer sees all, llama.cpp knows which
        ("smollm3-tiny", {"drop_layers": "1"}, "rotates"),
        ("llama4-tiny", {"drop_layers": "0"}, "layer"),
        ("t5-tiny", {"drop_layers": "0"}, "more than one stack"),
        ("gemma3n-tiny", {"drop_layers": "0"}, "cache of earlier ones"),
        ("gemma4-moe", {"drop_layers": "2"}, "last layer"),
        ("granitehybrid-dense", {"drop_layers": "1"}, "no layer with attention left"),
        ("granitehybrid-dense", {"drop_layers": "0"}, "every block is attention"),
        ("glm-dsa-tiny", {"drop_layers": "0"}, "use what layer 0 finds"),
        ("deepseek2-v3-tiny", {"experts": "0-1"}, "groups"),
        ("gemma3-tiny", {"experts": "0-1"}, "no experts"),
        (TINY, {"experts": "0"}, "leaves none"),
        (TINY, {"experts": "1"}, "sends each token to"),
        (TINY, {"layers": "0-2"}, "there are 0-1"),
        (TINY, {"layers": "0-999999999"}, "there are 0-1"),
        (TINY, {"drop_layers": "0-1"}, "no layers would be left"),
        (TINY, {"layers": "x"}, "no list of numbers"),
        (TINY, {"layers": "1-0"}, "there are 0-1"),
        (TINY, {}, "nothing to leave out"),
    ],
)
def test_what_would_compute_something_else_is_refused_by_name(
    name: str, options: dict[str, Any], says: str, tmp_path: Path
) -> None:
    _, file = build(name, tmp_path)
    with pytest.raises((UnsupportedFeature, UsageError), match=says):
        prune(file, tmp_path / "less.gguf", **options)
    assert not (tmp_path / "less.gguf").exists()


def test_texts_of_config_json_that_name_a_layer_are_refused(tmp_path: Path) -> None:
    folder = architectures.build(TINY, tmp_path)
    said = config(folder) | {"quantization_config": {"ignore": ["model.layers.1.mlp.gate"]}}
    (folder / "config.json").write_text(json.dumps(said), "utf-8")
    with pytest.raises(UnsupportedFeature, match="names a layer by its number"):
        prune(folder, tmp_path / "less", drop_layers="0")


def test_objects_of_layers_are_counted_anew(tmp_path: Path) -> None:
    folder = architectures.build(TINY, tmp_path)
    said = config(folder) | {"per_layer_config": {"0": {"a": 1}, "1": {"a": 2}}}
    (folder / "config.json").write_text(json.dumps(said), "utf-8")
    prune(folder, tmp_path / "less", drop_layers="0")
    assert config(tmp_path / "less")["per_layer_config"] == {"0": {"a": 2}}


def test_lists_that_nobody_knows_are_refused(tmp_path: Path) -> None:
    folder = architectures.build(TINY, tmp_path)
    (folder / "config.json").write_text(json.dumps(config(folder) | {"strange_layers": [1, 5, 6]}), "utf-8")
    with pytest.raises(UnsupportedFeature, match="strange_layers"):
        prune(folder, tmp_path / "less", drop_layers="0")


def test_other_formats_and_architectures_are_refused(tmp_path: Path) -> None:
    folder, file = build(TINY, tmp_path)
    (tmp_path / "alone").mkdir()
    alone = tmp_path / "alone/weights.safetensors"
    alone.write_bytes((folder / "model.safetensors").read_bytes())
    with pytest.raises(UnsupportedFeature, match="tensors alone"):
        prune(alone, tmp_path / "less.safetensors", layers="0")
    strange = rewritten(file, tmp_path / "strange.gguf", {"general.architecture": Value("str", "nonsense")})
    with pytest.raises(UnsupportedFeature, match="nonsense"):
        prune(strange, tmp_path / "less.gguf", layers="0")
    with pytest.raises(OutputExists):
        prune(file, strange, layers="0")


def test_a_hostile_file_is_one_error(tmp_path: Path) -> None:
    _, file = build(TINY, tmp_path)
    keys: dict[str, Value | Array | None]
    for keys in (
        {"qwen2moe.block_count": Value("u32", 1 << 30)},
        {"qwen2moe.block_count": Value("u32", 0)},
        {"qwen2moe.expert_count": Value("u32", 1 << 30)},
        {"qwen2moe.expert_count": Array("u32", [4, 4])},
        {"qwen2moe.expert_count": Value("u32", 5)},
        {"qwen2moe.block_count": None},
    ):
        bad = rewritten(file, tmp_path / "bad.gguf", keys)
        with pytest.raises(converter.ConverterError):
            prune(bad, tmp_path / "less.gguf", layers="0", experts="0-2")
        bad.unlink()
    odd = rewritten(file, tmp_path / "odd.gguf", tensors=again("blk.1.attn_norm.weight", "blk.01.attn_norm.weight"))
    prune(odd, tmp_path / "kept.gguf", layers="1")
    with open_gguf(tmp_path / "kept.gguf") as kept:
        assert {"blk.0.attn_norm.weight", "blk.01.attn_norm.weight"} <= set(kept.tensors)
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(CorruptFile):
        prune(file, tmp_path / "less.gguf", layers="0")


def test_the_command_line_says_what_is_lost(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _, file = build(TINY, tmp_path)
    assert main(["prune", str(file), str(tmp_path / "less.gguf"), "--drop-layers", "1"]) == 0
    shown = capsys.readouterr()
    assert "layers 1: dropped (1 of 2, " in shown.out + shown.err
    assert main(["prune", str(file), str(tmp_path / "l.gguf"), "--layers", "0", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["events"][0]["loss"] is True
