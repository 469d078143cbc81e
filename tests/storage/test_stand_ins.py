"""Git LFS pointers, saved web pages, hosts' messages and unfinished downloads, wherever a file is expected."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from support.builders import llama_folder

import converter
from converter.errors import ConverterError, MissingPart, TokenizerError
from converter.formats.registry import open_checkpoint
from converter.quant.imatrix import open_imatrix
from converter.storage.json import read_json
from converter.storage.stand_ins import stand_in
from converter.tokenizers.files import TokenizerFiles

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"ab" * 32 + b"\nsize 1048576\n"
STAND_INS = {
    "Git LFS pointer": POINTER,
    "web page": b"\xef\xbb\xbf\r\n<!DOCTYPE html><html>Access is restricted</html>",
    "XML": b"<?xml version='1.0'?><Error><Code>AccessDenied</Code></Error>",
    "a host's error message": b"Entry not found",
}
EXTENSIONS = (
    ".safetensors", ".gguf", ".ggml", ".bin", ".pt", ".ckpt", ".npz", ".npy", ".h5", ".keras", ".onnx", ".msgpack",
    ".index", ".pb", ".tflite", "",
)  # fmt: skip


@pytest.mark.parametrize("extension", EXTENSIONS)
@pytest.mark.parametrize("what", STAND_INS)
def test_in_the_place_of_a_model_of_any_format(tmp_path: Path, extension: str, what: str) -> None:
    file = tmp_path / f"m{extension}"
    file.write_bytes(STAND_INS[what])
    with pytest.raises(MissingPart, match=what):
        open_checkpoint(file)


@pytest.mark.parametrize("name", ["safetensors", "gguf", "torch", "hdf5", "onnx", "tflite", "flax", "npz"])
def test_also_where_the_format_is_named(tmp_path: Path, name: str) -> None:
    file = tmp_path / "m"
    file.write_bytes(POINTER)
    with pytest.raises(MissingPart, match="git lfs pull"):
        open_checkpoint(converter.Source(file, name))


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_in_a_folder(tmp_path: Path, name: str) -> None:
    folder = llama_folder(tmp_path / "m")
    (folder / name).write_bytes(POINTER)
    with pytest.raises(MissingPart, match=f"{name}: is a Git LFS pointer"), open_checkpoint(folder) as opened:
        opened.config.get("model_type")  # without a config, tensors go to plain formats


@pytest.mark.parametrize("what", STAND_INS)
def test_tokenizer_files_matrices_and_settings(tmp_path: Path, what: str) -> None:
    file = tmp_path / "it.dat"
    file.write_bytes(STAND_INS[what])
    with pytest.raises(MissingPart, match=what):
        open_imatrix(file)
    with pytest.raises(MissingPart, match=what):
        read_json(file)
    for name in ("tokenizer.model", "tokenizer.json", "vocab.txt"):
        with pytest.raises(TokenizerError, match=f"{name}: is .*{what}|{name}: is {what}"):
            TokenizerFiles({name: file}).data(name)


@pytest.mark.parametrize("extension", [".incomplete", ".part", ".crdownload", ".aria2", ".PART"])
def test_an_unfinished_download_by_its_name(tmp_path: Path, extension: str) -> None:
    file = llama_folder(tmp_path) / "model.safetensors"
    renamed = file.rename(file.with_name(file.name + extension))
    with pytest.raises(MissingPart, match="unfinished download"):
        open_checkpoint(renamed)


@pytest.mark.parametrize("name", ["m.gguf.part1of2", "m.gguf-split-a", "m.safetensors.001"])
def test_a_piece_of_a_cut_file(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"GGUF" + bytes(100))
    with pytest.raises(MissingPart, match="join the pieces"):
        open_checkpoint(tmp_path / name)


def test_a_file_that_aria2_is_still_filling(tmp_path: Path) -> None:
    folder = llama_folder(tmp_path)
    (folder / "model.safetensors.aria2").write_bytes(b"\0\1")
    with pytest.raises(MissingPart, match=r"model\.safetensors: is not downloaded to its end"):
        open_checkpoint(folder)


def test_a_program_s_own_files_are_none() -> None:
    for start in (b"GGUF", b"PK\3\4", b'{\n  "architectures"', b"<unk>\n<s>\n", b"\x93NUMPY", b"Entry", b""):
        assert stand_in(start) is None


def test_nothing_is_made_of_one(tmp_path: Path) -> None:
    file, target = tmp_path / "m.safetensors", tmp_path / "m.npz"
    file.write_bytes(POINTER)
    with pytest.raises(ConverterError):
        converter.convert(file, target)
    assert [path.name for path in tmp_path.iterdir()] == ["m.safetensors"]
    np.savez(target, w=np.ones(3, np.float32))
    with open_checkpoint(target) as checkpoint:
        assert list(checkpoint.tensors) == ["w"]
