"""Hugging Face folders out: what is in them, that everybody loads them, and that they are there whole or not at all."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support import models, torch_files
from support.audited import AUDITED, TRAP
from support.builders import llama_folder, llama_weights, safetensors_of, sharded

import converter
from converter.checkpoint import Checkpoint
from converter.cli.main import main
from converter.errors import (
    LossyError,
    MissingPart,
    OutputError,
    OutputExists,
    SameFile,
    TokenizerError,
    UsageError,
)
from converter.events import Decoded, Dropped, MetadataLost, Note
from converter.formats.base import WriteOptions
from converter.formats.hf_folder import SHARD_SIZE, layout
from converter.planning.plan import Plan
from converter.request import Request, Source
from converter.storage import output
from converter.tensors.dtypes import DTYPES
from converter.tensors.tensor import LazyTensor, TensorInfo

STORIES, KJV = (models.FIXTURES / name for name in models.FIXTURE_MODELS)
WEIGHTS = llama_weights()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return llama_folder(tmp_path / "model")


def to_folder(source: Path | Source, target: Path, request: Request | None = None, **options: Any) -> Plan:
    return converter.convert(source, target, (request or Request()).replace(format="hf"), **options)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def values(path: Path) -> dict[str, Any]:
    with converter.open_checkpoint(path) as checkpoint:
        return {name: tensor.array() for name, tensor in checkpoint.tensors.items()}


def same(found: dict[str, Any], wanted: dict[str, Any]) -> bool:
    return found.keys() == wanted.keys() and all(
        found[name].dtype == wanted[name].dtype and np.array_equal(found[name], wanted[name]) for name in wanted
    )


def notes(plan: Plan) -> list[str]:
    return [str(event) for event in plan.report.events if isinstance(event, Note)]


# ------------------------------------------------------------------------------------- folder to folder


SMALL = {
    "modeling_own.py": TRAP.encode(), "README.md": b"# hello\n", "LICENSE": b"free", "qwen.tiktoken": b"IQ== 0\n",
    "picture.png": b"\x89PNG", "empty.txt": b"", "1_Pooling/config.json": b"{}", "modules.json": b"[]",
    "additional_chat_templates/tools.jinja": b"{{ 1 }}", "large.vocab": bytes(range(256)) * 20_000,
}  # fmt: skip
BIG = ("optimizer.pt", "training_args.bin", "model.onnx", "pytorch_model.bin", "checkpoint-5/optimizer.pt")


@pytest.fixture
def full(folder: Path) -> Path:
    """A folder with everything that lies about in such folders."""
    for name, content in {**SMALL, **dict.fromkeys(BIG, b"cos\nsystem\n"), ".gitattributes": b"*"}.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(content)
    (folder / "checkpoint-5" / "config.json").write_text("{}")
    return folder


def test_every_small_file_is_carried_over_and_nothing_else(full: Path, tmp_path: Path) -> None:
    plan = to_folder(full, tmp_path / "out")
    before, after = contents(full), contents(tmp_path / "out")
    own = {"config.json", "tokenizer.json", "tokenizer_config.json", "model.safetensors"}
    assert after.keys() == SMALL.keys() | own
    assert all(after[name] == before[name] for name in after.keys() - {"model.safetensors"})
    assert same(values(tmp_path / "out"), WEIGHTS)
    assert notes(plan) == [
        "model.safetensors is taken, as transformers does; also there, and left out: pytorch_model.bin",
        "not carried over: model.onnx, optimizer.pt, pytorch_model.bin, training_args.bin",
    ]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "out"]


def test_what_does_not_fit_a_small_file_stays(folder: Path, tmp_path: Path) -> None:
    with open(folder / "corpus.txt", "wb") as file:
        file.truncate(1 << 40)
    (tmp_path / "secret").write_text("secret")
    (folder / "notes.txt").symlink_to(tmp_path / "secret")
    (folder / "linked").symlink_to(tmp_path)
    os.mkfifo(folder / "pipe.txt")
    plan = to_folder(folder, tmp_path / "out")
    assert not {"corpus.txt", "notes.txt", "linked", "pipe.txt"} & set(os.listdir(tmp_path / "out"))
    assert notes(plan) == ["not carried over: corpus.txt, notes.txt"]


def test_a_single_file_brings_the_known_files_beside_it(full: Path, tmp_path: Path) -> None:
    to_folder(full / "model.safetensors", tmp_path / "out")
    found = contents(tmp_path / "out")
    assert {"config.json", "tokenizer.json", "README.md", "model.safetensors"} <= found.keys()
    assert not {"modeling_own.py", "picture.png"} & found.keys()  # the folder may be anybody's downloads


def test_pytorch_shards_become_safetensors(tmp_path: Path) -> None:
    source = llama_folder(tmp_path / "model")
    converter.convert(source, source / "pytorch_model.bin", Request(split_max_size=70_000, format="torch"))
    (source / "model.safetensors").unlink()
    plan = to_folder(source, tmp_path / "out")
    assert same(values(tmp_path / "out"), WEIGHTS)
    assert not list((tmp_path / "out").glob("*.bin*")) and notes(plan) == []
    assert (tmp_path / "out" / "config.json").read_bytes() == (source / "config.json").read_bytes()


def test_a_pickle_of_strangers_is_read_not_run(tmp_path: Path) -> None:
    source = llama_folder(tmp_path / "model")
    (source / "model.safetensors").unlink()
    (source / "pytorch_model.bin").write_bytes(torch_files.archive())
    to_folder(source, tmp_path / "out")
    assert list(values(tmp_path / "out")) == ["w"]


def test_shards_are_joined_and_split_again(tmp_path: Path) -> None:
    names = list(WEIGHTS)
    halves = [{name: WEIGHTS[name] for name in part} for part in (names[:5], names[5:])]
    to_folder(sharded(tmp_path / "in", halves), tmp_path / "one")
    assert not list((tmp_path / "one").glob("*index*")) and same(values(tmp_path / "one"), WEIGHTS)
    to_folder(tmp_path / "one", tmp_path / "many", Request(split_max_size=70_000))
    index = json.loads((tmp_path / "many" / "model.safetensors.index.json").read_text())
    files = {path.name for path in (tmp_path / "many").glob("*.safetensors")}
    assert set(index["weight_map"].values()) == files == {f"model-{i:05d}-of-00003.safetensors" for i in (1, 2, 3)}
    assert same(values(tmp_path / "many"), WEIGHTS)


def test_shards_are_of_50_gb_unless_asked(tmp_path: Path) -> None:
    def read(start: int, stop: int) -> Any:
        raise AssertionError("read")

    info = TensorInfo("w", (20, 1000**3), DTYPES["U8"])
    tensors = {f"w{i}": LazyTensor(info, read, "test").renamed(f"w{i}") for i in range(5)}
    checkpoint = Checkpoint("test", tmp_path, "hf", tensors, made={"config.json": b"{}"})
    shards = [len(file.slots) for file in layout(checkpoint, tmp_path / "out", WriteOptions()).files]
    assert SHARD_SIZE == 50 * 1000**3 and shards == [2, 2, 1, 0, 0]


def test_the_type_in_the_config_follows(tmp_path: Path) -> None:
    folder = llama_folder(tmp_path / "model", config={"torch_dtype": "float32", "text_config": {"dtype": "float32"}})
    to_folder(folder, tmp_path / "half", Request(dtype="bf16"))
    config = json.loads((tmp_path / "half" / "config.json").read_text())
    assert (config["torch_dtype"], config["text_config"]) == ("bfloat16", {"dtype": "bfloat16"})
    to_folder(folder, tmp_path / "same", Request(dtype="f32"))
    assert (tmp_path / "same" / "config.json").read_bytes() == (folder / "config.json").read_bytes()


def test_files_of_transformers_say_whose_they_are(folder: Path, tmp_path: Path) -> None:
    for metadata, wanted in (({}, {"format": "pt"}), ({"format": "mlx", "x": "y"}, {"format": "mlx", "x": "y"})):
        (folder / "model.safetensors").write_bytes(safetensors_of(WEIGHTS, metadata))
        to_folder(folder, tmp_path / wanted["format"])
        with converter.open_checkpoint(tmp_path / wanted["format"]) as checkpoint:
            assert checkpoint.metadata == wanted


def test_no_path_of_this_machine_gets_out(full: Path, tmp_path: Path) -> None:
    converter.convert(full, tmp_path / "m.gguf")
    for source in (full, full / "model.safetensors", tmp_path / "m.gguf"):
        target = tmp_path / f"out-{source.name}"
        to_folder(source, target)
        assert not [name for name, data in contents(target).items() if str(tmp_path).encode() in data]


def test_without_a_tokenizer(full: Path, tmp_path: Path) -> None:
    converter.convert(full, tmp_path / "m.gguf")
    for source in (full, tmp_path / "m.gguf"):
        target = tmp_path / f"out-{source.name}"
        to_folder(source, target, Request(no_tokenizer=True))
        assert not [name for name in contents(target) if "token" in name or name.endswith("jinja")]
        assert same(values(target), WEIGHTS)


def test_nothing_of_a_folder_is_run(tmp_path: Path) -> None:
    """As for GGUF: the interpreter's own audit hooks tell what is opened, imported, compiled and started."""
    folder = llama_folder(tmp_path / "model", config={"auto_map": {"AutoConfig": "evil.Config"}})
    for name in ("evil.py", "conftest.py", "sitecustomize.py", "__init__.py"):
        (folder / name).write_text(TRAP)
    (folder / "optimizer.pt").write_bytes(b"cos\nsystem\n(S'touch \"$MARKER\"'\ntR.")
    script = tmp_path / "audited.py"
    script.write_text(AUDITED.replace('"--quiet"', '"--quiet", "--to", "hf"'))
    done = subprocess.run(
        [sys.executable, script, folder, tmp_path / "out"], env=os.environ | {"MARKER": str(tmp_path / "marker")},
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    assert (result["code"], result["called"]) == (0, []) and not (tmp_path / "marker").exists()
    assert "optimizer.pt" not in result["inside"] and (tmp_path / "out" / "evil.py").read_text() == TRAP


# -------------------------------------------------------------------------------------- GGUF to folder


@pytest.mark.parametrize("name", [*models.FIXTURE_MODELS, *models.MODELS])
def test_a_gguf_comes_back_byte_for_byte(name: str, tmp_path: Path) -> None:
    source = models.FIXTURES / name if name in models.FIXTURE_MODELS else models.build_model(name, tmp_path)
    converter.convert(source, tmp_path / "a.gguf")
    plan = to_folder(tmp_path / "a.gguf", tmp_path / "out" if name != "kjv-llama" else tmp_path / name)
    assert [event for event in plan.report.events if event.loss] == []
    converter.convert(plan.target, tmp_path / "b.gguf")
    assert (tmp_path / "a.gguf").read_bytes() == (tmp_path / "b.gguf").read_bytes()


def test_the_card_and_the_settings_come_back(tmp_path: Path) -> None:
    """Everything that `general.*` can hold, with characters that YAML, JSON and line ends make much of."""
    folder = llama_folder(tmp_path / "model")
    (folder / "README.md").write_text(
        "---\nname: 'a: \"b\" # \\c'\nauthor: \"two\\nlines \\u2028 \\x85 \\x00 \\U0001F600 é\"\nversion: '1.0'\n"
        "license: [mit, apache-2.0]\nbase_model: [org/Model-7B-v0.1, https://example.com/x, {name: N, doi: 10/2}]\n"
        "datasets: [a/b]\ntags: [x, 'yes', '1', '- y']\nlanguage: ['no', de]\ndescription: |\n  one\n  two\n---\ntext\n"
    )
    (folder / "generation_config.json").write_text(
        json.dumps({"temperature": 0.7, "top_k": 40, "top_p": 0.95, "repetition_penalty": 1.1, "min_p": 0})
    )
    converter.convert(folder, tmp_path / "a.gguf")
    plan = to_folder(tmp_path / "a.gguf", tmp_path / "out")
    assert [event for event in plan.report.events if event.loss] == []
    converter.convert(tmp_path / "out", tmp_path / "b.gguf")
    with converter.open_checkpoint(tmp_path / "a.gguf") as a, converter.open_checkpoint(tmp_path / "b.gguf") as b:
        assert {"general.base_model.2.doi", "general.sampling.min_p", "general.dataset.0.name"} <= a.config.keys()
        assert list(a.config.items()) == list(b.config.items())
    settings = json.loads((tmp_path / "out" / "generation_config.json").read_text())
    assert settings["do_sample"] is True and settings["temperature"] == 0.7 and settings["eos_token_id"] == 2


def test_a_quantized_gguf_is_decoded(tmp_path: Path) -> None:
    converter.convert(KJV, tmp_path / "q.gguf", Request(quant="q8_0"))
    plan = to_folder(tmp_path / "q.gguf", tmp_path / "out", Request(dtype="bf16"))
    assert not [event for event in plan.report.events if event.loss]
    assert json.loads((tmp_path / "out" / "config.json").read_text())["torch_dtype"] == "bfloat16"
    plan = to_folder(tmp_path / "q.gguf", tmp_path / "wide")
    assert any(isinstance(event, Decoded) for event in plan.report.events)
    assert json.loads((tmp_path / "wide" / "config.json").read_text())["torch_dtype"] == "float32"


def with_keys(source: Path, target: Path, keys: dict[str, Any]) -> Path:
    """A GGUF with other keys, by the package of the format's authors."""
    gguf = pytest.importorskip("gguf")
    reader, writer = gguf.GGUFReader(source), gguf.GGUFWriter(target, "llama")
    for name, value in keys.items():
        writer.add_string(name, value)
    for field in reader.fields.values():
        if field.name.startswith("GGUF.") or field.name == "general.architecture" or field.name in keys:
            continue
        kind, sub = field.types[0], field.types[-1] if len(field.types) > 1 else None
        writer.add_key_value(field.name, field.contents(), kind, sub)
    for tensor in reader.tensors:
        writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return target


def test_keys_without_a_place_are_losses(folder: Path, tmp_path: Path) -> None:
    converter.convert(folder, tmp_path / "a.gguf")
    keys = {"quantize.imatrix.file": "x", "llama.unheard": "y", "tokenizer.ggml.unheard": "z", "general.unheard": "a"}
    source = with_keys(tmp_path / "a.gguf", tmp_path / "b.gguf", keys)
    plan = to_folder(source, tmp_path / "out")
    assert {event.key for event in plan.report.events if isinstance(event, MetadataLost)} == keys.keys()
    assert main([str(source), str(tmp_path / "strict") + "/", "--strict", "--quiet"]) == 40
    assert not (tmp_path / "strict").exists()


def test_a_tokenizer_that_cannot_be_written_names_the_way_out(folder: Path, tmp_path: Path) -> None:
    converter.convert(folder, tmp_path / "a.gguf")
    source = with_keys(tmp_path / "a.gguf", tmp_path / "b.gguf", {"tokenizer.ggml.model": "unheard"})
    with pytest.raises(TokenizerError, match=r"'unheard'.*\n--no-tokenizer"):
        to_folder(source, tmp_path / "out")
    to_folder(source, tmp_path / "out", Request(no_tokenizer=True))


# -------------------------------------------------------------------------------- what others make of it


def folder_from(kind: str, tmp_path: Path) -> Path:
    """KJV, converted to a folder from itself, from PyTorch shards, or from a GGUF; in shards."""
    source = KJV
    if kind == "torch":
        source = tmp_path / "source"
        to_folder(KJV, source)
        converter.convert(KJV, source / "pytorch_model.bin", Request(split_max_size=3_000_000))
        (source / "model.safetensors").unlink()
    elif kind == "gguf":
        source = tmp_path / "source.gguf"
        converter.convert(KJV, source)
    to_folder(source, tmp_path / "out", Request(split_max_size=3_000_000))
    return tmp_path / "out"


@pytest.mark.parametrize("kind", ["folder", "torch", "gguf"])
def test_transformers_loads_equal_weights_and_tokenizer(kind: str, tmp_path: Path) -> None:
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    out = folder_from(kind, tmp_path)
    load = transformers.AutoModelForCausalLM.from_pretrained
    ours, info = load(out, output_loading_info=True)
    wanted = load(KJV)
    assert not info["missing_keys"] and not info["unexpected_keys"] and ours.dtype == wanted.dtype == torch.bfloat16
    state, expected = ours.state_dict(), wanted.state_dict()
    assert state.keys() == expected.keys()
    assert all(torch.equal(state[name], expected[name].to(state[name].dtype)) for name in expected)
    text = "And God said, Let there be light: 12 times 34 is naïve.\n\n  <|im_start|>user\n"
    tokenizers = [transformers.AutoTokenizer.from_pretrained(path) for path in (out, KJV)]
    assert tokenizers[0](text)["input_ids"] == tokenizers[1](text)["input_ids"]
    assert tokenizers[0].chat_template == tokenizers[1].chat_template
    assert ours.generation_config.eos_token_id == wanted.generation_config.eos_token_id
    ids = torch.tensor([tokenizers[0]("In the beginning")["input_ids"]])
    with torch.no_grad():
        assert torch.equal(ours(ids).logits, wanted(ids).logits)


def test_index_is_the_one_that_save_pretrained_writes(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    model = transformers.AutoModelForCausalLM.from_pretrained(KJV)
    model.save_pretrained(tmp_path / "theirs", max_shard_size=3_000_000)
    to_folder(tmp_path / "theirs", tmp_path / "ours", Request(split_max_size=3_000_000))
    index = [json.loads((tmp_path / name / "model.safetensors.index.json").read_text()) for name in ("theirs", "ours")]
    shards = [{path.name for path in (tmp_path / name).glob("*.safetensors")} for name in ("theirs", "ours")]
    assert index[0]["metadata"]["total_size"] == index[1]["metadata"]["total_size"]
    assert index[0]["weight_map"].keys() == index[1]["weight_map"].keys() and len(shards[0]) == len(shards[1])
    assert same(values(tmp_path / "theirs"), values(tmp_path / "ours"))


# --------------------------------------------------------------------------------------- whole or nothing


def interrupted(after: int) -> Callable[[output.Progress], bool]:
    seen: list[output.Progress] = []

    def progress(step: output.Progress) -> bool:
        seen.append(step)
        return len(seen) < after

    return progress


@pytest.mark.parametrize("state", ["absent", "empty", "full"])
def test_an_interrupted_run_leaves_everything_as_it_was(folder: Path, tmp_path: Path, state: str) -> None:
    target = tmp_path / "place" / "out"
    target.parent.mkdir()
    if state != "absent":
        target.mkdir()
    if state == "full":
        (target / "config.json").write_text("precious")
    before = contents(tmp_path)
    with pytest.raises(converter.ConverterError, match="cancelled"):
        to_folder(folder, target, force=True, progress=interrupted(3))
    assert contents(tmp_path) == before and target.exists() == (state != "absent")
    assert len(list(target.parent.iterdir())) == (state != "absent")


def test_a_source_that_shrinks_stops_the_run(folder: Path, tmp_path: Path) -> None:
    (folder / "notes.txt").write_text("x" * 100)
    with converter.plan(folder, tmp_path / "out", Request(format="hf")).checkpoint:
        pass
    made = converter.plan(folder, tmp_path / "out", Request(format="hf"))
    (folder / "notes.txt").write_text("x")
    with made.checkpoint, pytest.raises(OutputError, match=r"notes\.txt: was changed while"):
        converter.pipeline.run(made)
    assert not (tmp_path / "out").exists()


def test_a_folder_that_comes_meanwhile_is_left_alone(folder: Path, tmp_path: Path) -> None:
    def progress(_: output.Progress) -> None:
        (tmp_path / "out").mkdir(exist_ok=True)
        (tmp_path / "out" / "config.json").write_text("precious")

    with pytest.raises(converter.ConverterError, match="nothing was written"):
        to_folder(folder, tmp_path / "out", progress=progress)
    assert contents(tmp_path / "out") == {"config.json": b"precious"}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "out"]


def test_an_existing_folder(folder: Path, tmp_path: Path) -> None:
    target = tmp_path / "out"
    target.mkdir()
    to_folder(folder, target)  # empty: nothing to lose
    (target / "config.json").write_text("precious")
    (target / "diary.txt").write_text("precious")
    with pytest.raises(OutputExists, match="not empty; --force"):
        to_folder(folder, target)
    assert (target / "config.json").read_text() == "precious"
    to_folder(folder, target, force=True)
    assert (target / "diary.txt").read_text() == "precious" and same(values(target), WEIGHTS)
    assert (target / "config.json").read_bytes() == (folder / "config.json").read_bytes()
    assert not [path for path in target.iterdir() if path.name.startswith(".")]


@pytest.mark.parametrize("name", ["model.safetensors", "adapter.safetensors", "model.safetensors.index.json"])
def test_weights_of_other_names_are_not_mixed_with_ours(folder: Path, tmp_path: Path, name: str) -> None:
    target = tmp_path / "out"
    target.mkdir()
    (target / name).write_text("precious")
    with pytest.raises(OutputExists, match="holds other weights"):
        to_folder(folder, target, Request(split_max_tensors=100 if name != "model.safetensors" else 5), force=True)
    assert contents(target) == {name: b"precious"}


def test_targets_that_cannot_be(full: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("precious")
    with pytest.raises(OutputExists, match="is a file, not a folder"):
        to_folder(full, tmp_path / "file", force=True)
    with pytest.raises(SameFile):
        to_folder(full, full, force=True)
    (tmp_path / "out").mkdir()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "out" / "1_Pooling").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OutputExists, match="1_Pooling: is a link"):
        to_folder(full, tmp_path / "out", force=True)
    with pytest.raises(OutputError, match="file: is a file, not a folder"):
        to_folder(full, tmp_path / "file" / "such")
    assert list((tmp_path / "elsewhere").iterdir()) == [] and (tmp_path / "file").read_text() == "precious"


def test_a_model_needs_a_config(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "bare.safetensors").write_bytes((folder / "model.safetensors").read_bytes())
    with pytest.raises(MissingPart, match=r"needs a config\.json; --config DIR"):
        to_folder(tmp_path / "bare.safetensors", tmp_path / "out")
    to_folder(Source(tmp_path / "bare.safetensors", config=folder), tmp_path / "out")
    assert same(values(tmp_path / "out"), WEIGHTS) and (tmp_path / "out" / "tokenizer.json").is_file()
    converter.convert(folder, tmp_path / "m.gguf")
    with pytest.raises(MissingPart, match="needs a config"):
        to_folder(tmp_path / "m.gguf", tmp_path / "names", Request(tensors_only=True))
    with pytest.raises(UsageError, match="plain types"):
        to_folder(folder, tmp_path / "q", Request(quant="q8_0"))


# ------------------------------------------------------------------------------------------ command line


def test_a_slash_or_a_folder_means_a_folder(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    slash, there, named = tmp_path / "slash-1.5", tmp_path / "there", tmp_path / "named"
    there.mkdir()
    assert main([str(folder), f"{slash}/", "--quiet"]) == 0
    assert main([str(folder), str(there), "--quiet"]) == 0
    assert main([str(folder), str(named), "--to", "hf", "--quiet"]) == 0
    assert contents(slash) == contents(there) == contents(named)
    assert main([str(folder), str(there), "-q", "q8_0", "--quiet"]) == 0
    assert [path.suffix for path in there.iterdir() if path.name not in contents(named)] == [".gguf"]
    capsys.readouterr()
    assert main([str(folder), str(tmp_path / "new")]) == 10
    assert "ends in a slash" in capsys.readouterr().err and not (tmp_path / "new").exists()


def test_reports(full: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [str(full), f"{tmp_path / 'out'}/", "--shard-size", "70KB"]
    assert main(["plan", *arguments, "--json"]) == 0
    planned = json.loads(capsys.readouterr().out)
    assert not (tmp_path / "out").exists()
    assert main([*arguments, "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["files"] == planned["files"] and report["stages"] == ["open", "encode", "save"]
    assert {Path(file["path"]): file["bytes"] for file in report["files"]} == {
        path: path.stat().st_size for path in (tmp_path / "out").rglob("*") if path.is_file()
    }
    assert [event["kind"] for event in report["events"]] == ["Note", "Note"]
    assert main([*arguments, "--force"]) == 0
    assert capsys.readouterr().out.startswith(f"{tmp_path / 'out'} ({len(report['files'])} files): ")


def test_pointers_in_the_place_of_small_files_are_named_and_stay(tmp_path: Path) -> None:
    """A loader would take them for the files; pages that are meant as such are carried."""
    folder = llama_folder(tmp_path / "m")
    (folder / "vocab.txt").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
    (folder / "notes.txt").write_text("<!DOCTYPE html><title>Log in</title>")
    (folder / "page.html").write_text("<!DOCTYPE html><title>About</title>")
    report = converter.convert(folder, tmp_path / "out", converter.Request(format="hf"))
    told = {event.name: event.reason for event in report.report.events if isinstance(event, Dropped)}
    assert told.keys() == {"vocab.txt", "notes.txt"} and "Git LFS pointer" in told["vocab.txt"]
    left = {path.name for path in (tmp_path / "out").iterdir()}
    assert "page.html" in left and not left & told.keys()
    with pytest.raises(LossyError, match=r"vocab\.txt|notes\.txt"):
        converter.convert(folder, tmp_path / "strict", converter.Request(format="hf", strict=True))
