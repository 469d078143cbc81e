"""Shards: those that llama.cpp's gguf-split makes, and joined again the file that was cut, byte for byte."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from support import builders as b
from support import models
from support.builders import array_pair, gguf, pair, safetensors_of, sharded, tensor

from converter import Request, convert
from converter.errors import (
    ConverterError,
    CorruptFile,
    MissingPart,
    OutputError,
    OutputExists,
    SameFile,
    UnsupportedFeature,
    UsageError,
)
from converter.formats.gguf import open_gguf
from converter.formats.safetensors import open_safetensors
from converter.housekeeping.rewrite import Rewritten
from converter.housekeeping.shards import merge, split

STORIES = models.FIXTURES / "stories260K"
KJV = models.FIXTURES / "kjv-llama"


def odd_gguf() -> bytes:
    """Three megabytes: blocks and numbers whose sizes are no multiples of the alignment, texts, lists, a large one."""
    pairs = (
        b.ARCH, pair("general.name", b.STR, "odd"), pair("llama.block_count", b.U32, 2),
        array_pair("tokenizer.ggml.tokens", b.STR, ["a", "bc", ""]),
        array_pair("tokenizer.ggml.scores", b.F32, [0.5, -1.0, 2.0]), pair("general.file_type", b.U32, 7),
    )  # fmt: skip
    sizes = (("token_embd.weight", (32, 9001), b.T_Q8_0, 34 * 9001), ("output_norm.weight", (33,), b.T_F32, 132))
    sizes += tuple((f"blk.{i}.ffn_up.weight", (32, 17001 + i), b.T_Q8_0, 34 * (17001 + i)) for i in range(4))
    sizes += (("blk.0.attn_norm.weight", (5,), b.T_F32, 20), ("output.weight", (32, 3), b.T_Q8_0, 102))
    lines, data, random = [], b"", np.random.default_rng(14)
    for name, shape, kind, size in sizes:
        lines.append(tensor(name, shape, kind, len(data)))
        data += random.bytes(size) + bytes(-size % 32)
    return gguf(pairs, lines, data)


def names(made: Rewritten) -> list[str]:
    return [path.name for path, _ in made.files]


def sha256(paths: Sequence[Path]) -> list[str]:
    return [hashlib.sha256(path.read_bytes()).hexdigest()[:16] for path in paths]


@pytest.fixture
def odd(tmp_path: Path) -> Path:
    path = tmp_path / "odd.gguf"
    path.write_bytes(odd_gguf())
    return path


# What `llama-gguf-split --split` makes of the same file, in the llama.cpp of llama-cpp-python 0.3.36.
GGUF_SPLIT = {
    ("max_tensors", 3): ["20fd5934023ffdb0", "e75e4ba7dfc597f0", "7165121424b0c51e"],
    ("max_tensors", 100): ["817112768ef7f9b4"],
    ("max_size", 1_000_000): ["40e94cd4dca8ff1d", "7b65c6c7a1a81f5f", "7cb5fb4beec9b488", "020f40d09760ad14"],
    ("max_size", 2_000_000): ["a7d02eeb607f037a", "a234d0c23fec01c5"],
}


@pytest.mark.parametrize("limit", GGUF_SPLIT, ids=str)
def test_the_shards_of_gguf_split(odd: Path, limit: tuple[str, int]) -> None:
    made = split(odd, odd.with_name("part.gguf"), **{limit[0]: limit[1]}, threads=1)
    expected = GGUF_SPLIT[limit]
    assert names(made) == [f"part-{n:05d}-of-{len(expected):05d}.gguf" for n in range(1, len(expected) + 1)]
    assert sha256([path for path, _ in made.files]) == expected


@pytest.mark.parametrize("limit", [{"max_tensors": 1}, {"max_tensors": 3}, {"max_size": 10**6}, {"max_size": 10**9}])
@pytest.mark.parametrize("which", [0, -1])
def test_a_gguf_is_cut_and_joined_byte_for_byte(odd: Path, limit: dict[str, int], which: int) -> None:
    parts = split(odd, odd.with_name("part"), **limit)
    made = merge(parts.files[which][0], odd.with_name("whole"))
    assert names(made) == ["whole.gguf"]
    assert made.files[0][0].read_bytes() == odd.read_bytes()
    assert parts.tensors == made.tensors == 8


def test_a_set_is_cut_anew(odd: Path, tmp_path: Path) -> None:
    first = split(odd, tmp_path / "a.gguf", max_tensors=3)
    split(first.files[1][0], tmp_path / "b.gguf", max_tensors=2)
    split(odd, tmp_path / "c.gguf", max_tensors=2)
    for number in range(1, 5):
        of_set, of_whole = (tmp_path / f"{name}-{number:05d}-of-00004.gguf" for name in "bc")
        assert of_set.read_bytes() == of_whole.read_bytes()


def test_the_official_library_reads_the_shards(odd: Path) -> None:
    reader = pytest.importorskip("gguf").GGUFReader
    made = split(odd, odd.with_name("part"), max_tensors=3)
    whole, parts = reader(odd), [reader(path) for path, _ in made.files]
    assert [part.fields["split.no"].contents() for part in parts] == [0, 1, 2]
    assert {(p.fields["split.count"].contents(), p.fields["split.tensors.count"].contents()) for p in parts} == {(3, 8)}
    found = [each for part in parts for each in part.tensors]
    assert [each.name for each in found] == [each.name for each in whole.tensors]
    assert all(np.array_equal(a.data, b.data) for a, b in zip(found, whole.tensors, strict=True))


def test_what_gguf_split_has_merged_is_read(tmp_path: Path) -> None:
    """It leaves the keys of the first shard, with a count of 0."""
    pairs = [b.ARCH, pair("split.no", b.U16, 0), pair("split.tensors.count", b.I32, 1), pair("split.count", b.U16, 0)]
    path = tmp_path / "merged.gguf"
    path.write_bytes(gguf(pairs, [tensor("w", (3, 2), b.T_F32, 0)], b.F32_2X3 + bytes(8)))
    with open_gguf(path) as checkpoint:
        assert list(checkpoint.tensors) == ["w"] and list(checkpoint.config) == ["general.architecture"]


@pytest.mark.parametrize("limit", [{"max_tensors": 9}, {"max_size": 1_500_000}])
def test_safetensors_are_cut_and_joined_byte_for_byte(tmp_path: Path, limit: dict[str, int]) -> None:
    source = KJV / "model.safetensors"
    (tmp_path / "parts").mkdir()
    made = split(source, f"{tmp_path}/parts/", **limit)
    count = len(made.files) - 1
    index = f"{source.name}.index.json"
    assert names(made) == [*(f"model-{n:05d}-of-{count:05d}.safetensors" for n in range(1, count + 1)), index]
    assert json.loads((tmp_path / "parts" / index).read_text())["metadata"]["total_size"] == sum(
        tensor.info.nbytes for tensor in open_safetensors(source).tensors.values()
    )
    for number, entry in enumerate((index, made.files[0][0].name)):
        whole = tmp_path / f"whole-{number}.safetensors"
        merge(tmp_path / "parts" / entry, whole)
        assert whole.read_bytes() == source.read_bytes()


def test_the_official_library_reads_safetensors_shards(tmp_path: Path) -> None:
    load_file = pytest.importorskip("safetensors.numpy").load_file
    tensors = {f"layers.{n}.w": np.full((n + 1, 3), n, "<f4") for n in range(5)} | {"half": np.ones(3, "<f2")}
    (tmp_path / "m.safetensors").write_bytes(safetensors_of(tensors, {"format": "pt", "made": "here"}))
    made = split(tmp_path / "m.safetensors", tmp_path / "s.safetensors", max_tensors=2)
    found = {name: array for path, _ in made.files[:-1] for name, array in load_file(path).items()}
    assert found.keys() == tensors.keys() and all(np.array_equal(found[name], tensors[name]) for name in tensors)
    with open_safetensors(made.files[-1][0]) as checkpoint:
        assert checkpoint.metadata == {"format": "pt", "made": "here"}


def test_a_folder_keeps_its_small_files(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    split(KJV, tmp_path / "parts", max_size=3_000_000)
    assert len(list((tmp_path / "parts").glob("model-*.safetensors"))) > 2
    loaded, info = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "parts", output_loading_info=True)
    assert not any(info.values()) and loaded.config.model_type == "llama"
    merge(tmp_path / "parts", tmp_path / "whole")
    for path in (tmp_path / "whole").iterdir():
        assert path.read_bytes() == (KJV / path.name).read_bytes()


def test_quantized_folders_keep_their_bytes(tmp_path: Path) -> None:
    """Packed weights are tensors like others."""
    convert(KJV, tmp_path / "packed", Request(scheme="w4a16", format="hf"))
    split(tmp_path / "packed", tmp_path / "parts", max_size=1_000_000)
    merge(tmp_path / "parts", tmp_path / "whole")
    weights = "model.safetensors"
    assert (tmp_path / "whole" / weights).read_bytes() == (tmp_path / "packed" / weights).read_bytes()
    assert (tmp_path / "whole" / "config.json").read_bytes() == (tmp_path / "packed" / "config.json").read_bytes()


# ------------------------------------------------------------------------------------- what is refused


def test_limits(odd: Path) -> None:
    with pytest.raises(UsageError, match="--max-size"):
        split(odd, odd.with_name("part"))
    with pytest.raises(UsageError, match="positive"):
        split(odd, odd.with_name("part"), max_size=0)


def test_more_shards_than_can_be_numbered(tmp_path: Path) -> None:
    lines = [tensor(f"t{n}", (0,), b.T_F32, 0) for n in range(65536)]
    (tmp_path / "many.gguf").write_bytes(gguf([b.ARCH], lines, b""))
    with pytest.raises(UsageError, match="65,536 shards"):
        split(tmp_path / "many.gguf", tmp_path / "part.gguf", max_tensors=1)


def test_nothing_is_written_over_the_source(odd: Path) -> None:
    parts = split(odd, odd.with_name("part"), max_tensors=3)
    for call in (
        lambda: split(parts.files[0][0], odd.with_name("part"), max_tensors=3, force=True),
        lambda: merge(parts.files[0][0], parts.files[1][0], force=True),
    ):
        with pytest.raises(SameFile):
            call()
    with pytest.raises(OutputExists):
        merge(parts.files[0][0], odd)
    assert odd.read_bytes() == odd_gguf()


@pytest.mark.parametrize(
    ("damage", "kind"),
    [("absent", MissingPart), ("truncated", CorruptFile), ("of another set", CorruptFile)],
)
def test_sets_that_are_not_whole(odd: Path, tmp_path: Path, damage: str, kind: type[ConverterError]) -> None:
    parts = [path for path, _ in split(odd, tmp_path / "part", max_tensors=3).files]
    if damage == "absent":
        parts[1].unlink()
    elif damage == "truncated":
        parts[1].write_bytes(parts[1].read_bytes()[:-100])
    else:
        parts[1].write_bytes(parts[2].read_bytes())
    with pytest.raises(kind):
        merge(parts[0], tmp_path / "whole.gguf")
    assert not (tmp_path / "whole.gguf").exists() and not list(tmp_path.glob(".*"))


def test_an_index_that_names_a_shard_outside(tmp_path: Path) -> None:
    folder = sharded(tmp_path, [{"a": np.ones(3, "<f4")}, {"b": np.ones(3, "<f4")}], {"a": "../x.safetensors"})
    with pytest.raises(CorruptFile, match="leads out of the folder"):
        merge(folder / "model.safetensors.index.json", tmp_path / "whole.safetensors")


def test_what_is_no_set(odd: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="one file already"):
        merge(odd, tmp_path / "whole.gguf")
    np.save(tmp_path / "a.npy", np.ones(3))
    with pytest.raises(UnsupportedFeature, match="gguf, safetensors, hf"):
        split(tmp_path / "a.npy", tmp_path / "b.npy", max_tensors=1)
    with pytest.raises(OutputError, match="is a file, not a folder"):
        split(odd, tmp_path / "a.npy" / "part", max_tensors=1)
