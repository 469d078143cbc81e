"""Sharded safetensors and PyTorch output: names and index as the field has them, read back by everybody's readers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.builders import examples, llama_folder, llama_weights, safetensors_of

import converter
from converter.checkpoint import Checkpoint
from converter.cli.main import main
from converter.errors import MissingPart, OutputExists
from converter.formats.base import WriteOptions, sharded
from converter.request import Request
from converter.storage.layout import whole_file
from converter.storage.slabs import Progress
from converter.tensors.dtypes import DTYPES
from converter.tensors.tensor import LazyTensor, TensorInfo, from_array

WEIGHTS = llama_weights()
KINDS = (".safetensors", ".bin", ".pt")


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return llama_folder(tmp_path / "model") / "model.safetensors"


def convert(source: Path, target: Path, limit: int, **options: Any) -> list[Path]:
    plan = converter.convert(source, target, Request(split_max_size=limit), **options)
    return [file.path for file in plan.layout.files]


def values(path: Path) -> dict[str, Any]:
    with converter.open_checkpoint(path) as checkpoint:
        return {name: tensor.array() for name, tensor in checkpoint.tensors.items()}


def same(found: dict[str, Any], wanted: dict[str, Any]) -> bool:
    return found.keys() == wanted.keys() and all(np.array_equal(found[name], wanted[name]) for name in wanted)


@pytest.mark.parametrize("suffix", KINDS)
@pytest.mark.parametrize("limit", [1, 9000, 40_000, 100_000])
def test_shards_read_back_by_their_index(source: Path, tmp_path: Path, suffix: str, limit: int) -> None:
    *shards, index = convert(source, tmp_path / f"out.x{suffix}", limit)
    count = len(shards)
    assert index.name == f"out.x{suffix}.index.json"
    assert [path.name for path in shards] == [f"out.x-{i + 1:05d}-of-{count:05d}{suffix}" for i in range(count)]
    assert same(values(index), WEIGHTS)
    weight_map = json.loads(index.read_text())["weight_map"]
    for path in shards:
        assert same(values(path), WEIGHTS), "a shard stands for its set"
        alone = path.rename(path.with_name(f"alone{suffix}"))
        found = values(alone)
        assert found.keys() == {name for name, file in weight_map.items() if file == path.name}
        assert sum(array.nbytes for array in found.values()) <= limit or len(found) == 1
        alone.rename(path)


@pytest.mark.parametrize("suffix", [".safetensors", ".bin"])
def test_a_complete_set_without_an_index_is_complete(source: Path, tmp_path: Path, suffix: str) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "config.json").write_text(source.with_name("config.json").read_text())
    name = "model.safetensors" if suffix == ".safetensors" else "pytorch_model.bin"
    *shards, index = convert(source, folder / name, 40_000)
    index.unlink()
    assert len(shards) > 2
    for each in (folder, *shards):
        assert same(values(each), WEIGHTS)
    shards[1].unlink()
    for each in (folder, shards[0], shards[2]):
        with pytest.raises(MissingPart, match=f"{shards[1].name}: this one of the {len(shards)} shards"):
            values(each)


@pytest.mark.parametrize("suffix", KINDS)
def test_a_shard_whose_index_lacks_a_file(source: Path, tmp_path: Path, suffix: str) -> None:
    *shards, _ = convert(source, tmp_path / f"out{suffix}", 40_000)
    shards[1].unlink()
    with pytest.raises(MissingPart, match=shards[1].name):
        values(shards[0])


@pytest.mark.parametrize("name", ["m-00001-of-00001", "m-00000-of-00002", "m-00003-of-00002", "m-1-of", "of-2"])
def test_a_name_that_is_no_part_of_a_set(source: Path, tmp_path: Path, name: str) -> None:
    file = source.rename(tmp_path / f"{name}.safetensors")
    assert same(values(file), WEIGHTS)


def test_an_index_that_does_not_know_a_shard_is_not_its_own(source: Path, tmp_path: Path) -> None:
    *shards, index = convert(source, tmp_path / "out.safetensors", 40_000)
    other = tmp_path / "other.safetensors"
    other.write_bytes(safetensors_of({"t": np.ones(3, np.float32)}))
    index.write_text(json.dumps({"weight_map": {"t": other.name}}))
    assert same(values(shards[0]), WEIGHTS)


@pytest.mark.parametrize("suffix", KINDS)
def test_what_fits_is_one_file_without_an_index(source: Path, tmp_path: Path, suffix: str) -> None:
    whole, limited = tmp_path / f"whole{suffix}", tmp_path / f"limited{suffix}"
    converter.convert(source, whole)
    assert convert(source, limited, 10**9) == [limited]
    assert limited.read_bytes() == whole.read_bytes()


def test_official_reader_opens_every_shard(source: Path, tmp_path: Path) -> None:
    numpy = pytest.importorskip("safetensors.numpy")
    *shards, index = convert(source, tmp_path / "model.safetensors", 40_000)
    weight_map = json.loads(index.read_text())["weight_map"]
    found = {}
    for path in shards:
        loaded = numpy.load_file(path)
        assert {weight_map[name] for name in loaded} == {path.name}
        found.update(loaded)
    assert same(found, WEIGHTS)


def test_torch_loads_every_shard(source: Path, tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    *shards, index = convert(source, tmp_path / "pytorch_model.bin", 40_000)
    weight_map = json.loads(index.read_text())["weight_map"]
    found = {}
    for path in shards:
        loaded = torch.load(path, weights_only=True, mmap=True)
        assert {weight_map[name] for name in loaded} == {path.name}
        found.update({name: tensor.numpy() for name, tensor in loaded.items()})
    assert same(found, WEIGHTS)


def tensors_of(sizes: list[int]) -> list[LazyTensor]:
    return [from_array(f"t{index}", np.zeros(size, "u1"), DTYPES["U8"], "test") for index, size in enumerate(sizes)]


@examples(200)
@given(st.lists(st.integers(0, 100), max_size=30), st.integers(1, 120), st.sampled_from([".safetensors", ".bin"]))
def test_index_and_names_are_huggingface_hubs(sizes: list[int], limit: int, suffix: str) -> None:
    hub = pytest.importorskip("huggingface_hub")
    tensors = tensors_of([size for size in sizes if size <= limit])
    if not tensors:
        return
    layout = sharded(
        Path(f"model{suffix}"), tensors, WriteOptions(limit),
        lambda path, part: whole_file(path, json.dumps([tensor.name for tensor in part]).encode()),
    )  # fmt: skip
    split = hub.split_state_dict_into_shards_factory(
        {tensor.name: tensor for tensor in tensors}, get_storage_size=lambda tensor: tensor.info.nbytes,
        filename_pattern=f"model{{suffix}}{suffix}", max_shard_size=limit,
    )  # fmt: skip
    *files, index = layout.files if len(layout.files) > 1 else (*layout.files, None)
    assert {file.path.name: json.loads(file.header) for file in files} == split.filename_to_tensors
    assert (index is not None) == split.is_sharded
    if index is not None:
        assert json.loads(index.header) == {"metadata": split.metadata, "weight_map": split.tensor_to_filename}


def test_the_set_is_the_one_of_save_torch_state_dict(source: Path, tmp_path: Path) -> None:
    torch, hub = pytest.importorskip("torch"), pytest.importorskip("huggingface_hub")
    *_, index = convert(source, tmp_path / "model.safetensors", 70_000)
    state = {name: torch.from_numpy(array) for name, array in WEIGHTS.items()}
    (tmp_path / "hub").mkdir()
    hub.save_torch_state_dict(state, tmp_path / "hub", max_shard_size=70_000)
    theirs = (tmp_path / "hub" / index.name).read_text()
    assert json.loads(index.read_text()) == json.loads(theirs)
    for path in sorted((tmp_path / "hub").glob("*.safetensors")):
        assert same(values(tmp_path / path.name), values(path))


def test_a_tensor_above_the_limit_has_its_own_shard() -> None:
    layout = sharded(
        Path("m.safetensors"), tensors_of([3, 50, 3, 3]), WriteOptions(10),
        lambda path, part: whole_file(path, b" ".join(tensor.name.encode() for tensor in part)),
    )  # fmt: skip
    assert [file.header for file in layout.files[:-1]] == [b"t0", b"t1", b"t2 t3"]


def test_a_limit_on_the_number_of_tensors(source: Path, tmp_path: Path) -> None:
    plan = converter.convert(source, tmp_path / "m.safetensors", Request(split_max_tensors=5))
    assert [len(file.slots) for file in plan.layout.files] == [5, 5, 2, 0]


def test_metadata_is_in_every_shard(tmp_path: Path) -> None:
    (tmp_path / "in.safetensors").write_bytes(safetensors_of(WEIGHTS, {"format": "pt", "from": "here"}))
    *shards, _ = convert(tmp_path / "in.safetensors", tmp_path / "out.safetensors", 40_000)
    for path in shards:
        with converter.open_checkpoint(path) as checkpoint:
            assert checkpoint.metadata == {"format": "pt", "from": "here"}


def test_an_interrupted_set_leaves_nothing(source: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    seen: list[Progress] = []

    def cancel(progress: Progress) -> bool:
        seen.append(progress)
        return len(seen) < 5

    with pytest.raises(converter.ConverterError, match="cancelled"):
        convert(source, tmp_path / "out" / "m.safetensors", 9000, progress=cancel)
    assert list((tmp_path / "out").iterdir()) == []


def test_one_existing_file_keeps_the_whole_set_out(source: Path, tmp_path: Path) -> None:
    (tmp_path / "m.safetensors.index.json").write_text("precious")
    with pytest.raises(OutputExists, match=r"m\.safetensors\.index\.json.*--force"):
        convert(source, tmp_path / "m.safetensors", 40_000)
    assert (tmp_path / "m.safetensors.index.json").read_text() == "precious"
    assert not list(tmp_path.glob("m-*"))
    convert(source, tmp_path / "m.safetensors", 40_000, force=True)
    assert same(values(tmp_path / "m.safetensors.index.json"), WEIGHTS)


@pytest.mark.parametrize("size", ["40000", "40K", "40kb", "40KB"])
def test_both_spellings_of_the_option(
    source: Path, tmp_path: Path, size: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for option in ("--shard-size", "--split-max-size"):
        assert main([str(source), str(tmp_path / f"{option}.safetensors"), option, size, "--json"]) == 0
        files = json.loads(capsys.readouterr().out)["files"]
        assert len(files) > 2 and all(Path(file["path"]).stat().st_size == file["bytes"] for file in files)


def test_planning_a_set_reads_no_tensor() -> None:
    def read(start: int, stop: int) -> Any:
        raise AssertionError("read")

    info = TensorInfo("w", (1 << 20, 1 << 20), DTYPES["F32"])
    tensors = {f"w{i}": LazyTensor(info, read, "test").renamed(f"w{i}") for i in range(5)}
    checkpoint = Checkpoint("test", Path("x"), None, tensors)
    from converter.formats.safetensors import layout

    made = layout(checkpoint, Path("x.safetensors"), WriteOptions(2 * info.nbytes))
    assert [len(file.slots) for file in made.files] == [2, 2, 1, 0] and made.size > 5 * info.nbytes
