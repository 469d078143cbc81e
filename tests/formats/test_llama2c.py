"""llama2.c checkpoints: the three versions, against their original and against numbers worked out by hand."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.llama2c_files import HEADS, KV, VOCAB, header, version0, version1, version2, weights

from converter.cli.main import main
from converter.errors import ConverterError, CorruptFile, UnsupportedFeature
from converter.formats.registry import open_checkpoint
from converter.request import Source

HF = {
    "attention_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm", "wq": "self_attn.q_proj",
    "wk": "self_attn.k_proj", "wv": "self_attn.v_proj", "wo": "self_attn.o_proj", "w1": "mlp.gate_proj",
    "w2": "mlp.down_proj", "w3": "mlp.up_proj",
}  # fmt: skip


def halves(array: np.ndarray, heads: int) -> np.ndarray:
    """Rows of each head from neighbours to halves, one by one."""
    out, size = np.empty_like(array), len(array) // heads
    for head in range(heads):
        for i in range(size // 2):
            out[head * size + i] = array[head * size + 2 * i]
            out[head * size + size // 2 + i] = array[head * size + 2 * i + 1]
    return out


def expected(tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The same under Hugging Face names."""
    top = {"embedding": "model.embed_tokens.weight", "norm": "model.norm.weight", "head": "lm_head.weight"}
    result = {}
    for key, array in tensors.items():
        name, _, layer = key.partition(".")
        if name in ("wq", "wk"):
            array = halves(array, HEADS if name == "wq" else KV)
        result[f"model.layers.{layer}.{HF[name]}.weight" if layer else top[name]] = array
    return result


def written(folder: Path, data: bytes) -> Path:
    path = folder / "model.bin"
    path.write_bytes(data)
    return path


def check(path: Path, wanted: Mapping[str, np.ndarray]) -> None:
    with open_checkpoint(path) as checkpoint:
        assert checkpoint.format == "llama2c"
        assert set(checkpoint.tensors) == set(wanted)
        for name, tensor in checkpoint.tensors.items():
            assert tensor.array().tobytes() == wanted[name].tobytes(), name
            assert tensor.info.shape == wanted[name].shape


@pytest.mark.parametrize("shared", [True, False])
def test_versions_0_and_1(tmp_path: Path, shared: bool) -> None:
    tensors = weights(shared)
    for make in (version0, version1):
        path = written(tmp_path, make(tensors))
        check(path, expected(tensors))
        with open_checkpoint(path) as checkpoint:
            assert checkpoint.config["tie_word_embeddings"] is shared
            assert checkpoint.config["num_key_value_heads"] == KV
            assert checkpoint.config["vocab_size"] == VOCAB


@pytest.mark.parametrize("group", [8, 16, 32])  # less than a row, a row or part of one, rows and a half
@pytest.mark.parametrize("shared", [True, False])
def test_version_2(tmp_path: Path, shared: bool, group: int) -> None:
    data, decoded = version2(weights(shared), group)
    check(written(tmp_path, data), expected(decoded))


def test_slices_of_grouped_rows(tmp_path: Path) -> None:
    data, decoded = version2(weights(True), 32)
    with open_checkpoint(written(tmp_path, data)) as checkpoint:
        tensor = checkpoint.tensors["model.layers.1.mlp.down_proj.weight"]
        assert tensor.rows(3, 8).tobytes() == decoded["w2.1"][3:8].tobytes()


BAD = {
    "truncated": version0(weights(True))[:-1],
    "appended": version1(weights(True)) + b"\0",
    "truncated 1": version1(weights(False))[:-4],
    "only a header": header(1, True),
    "half a header": header(1, True)[:100],
    "huge": header(1, True, sizes=(1 << 30, 1 << 30, 1 << 30, 2, 2, 1 << 30, 1 << 30)),
    "no layers": header(1, True, sizes=(16, 24, 0, 4, 2, 10, 6)),
    "negative": header(1, True, sizes=(16, 24, 2, 4, 2, -10, 6)),
    "heads do not divide": header(1, True, sizes=(16, 24, 2, 5, 5, 10, 6)),
    "heads not shared evenly": header(1, True, sizes=(16, 24, 2, 4, 3, 10, 6)),
    "flag of 2": header(1, 2).ljust(len(version1(weights(True))), b"\0"),  # type: ignore[arg-type]
    "padding": header(1, True)[:-1] + b"x" + version1(weights(True))[256:],
    "no group": header(2, True, struct.pack("<i", 0)),
    "group does not divide": header(2, True, struct.pack("<i", 7)),
    "negative group": header(2, True, struct.pack("<i", -8)),
    "empty": b"",
}


@pytest.mark.parametrize("case", BAD)
def test_what_contradicts_itself_is_refused(tmp_path: Path, case: str) -> None:
    path = written(tmp_path, BAD[case])
    with pytest.raises(CorruptFile, match=r"model\.bin"):
        open_checkpoint(Source(path, format="llama2c"))


def test_more_layers_than_any_model_has(tmp_path: Path) -> None:
    """The size of the file agrees; a tensor object for each would not fit into memory."""
    path = written(tmp_path, header(1, True, sizes=(2, 1, 1 << 20, 1, 1, 1, 1)))
    with open(path, "r+b") as file:
        file.truncate(256 + 4 * ((1 << 20) * (2 + 2 + 4 * 4 + 3 * 2) + 2 + 2))
    with pytest.raises(CorruptFile):
        open_checkpoint(path)


def test_later_versions(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedFeature, match="version 3"):
        open_checkpoint(written(tmp_path, header(3, True)))


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_damage_is_refused_or_read(tmp_path: Path, data: st.DataObject) -> None:
    good = data.draw(st.sampled_from([version0(weights(True)), version2(weights(False), 8)[0]]))
    damaged = bytearray(good[: data.draw(st.integers(0, len(good)))] if data.draw(st.booleans()) else good)
    for _ in range(data.draw(st.integers(0, 3))):
        if damaged:
            damaged[data.draw(st.integers(0, min(len(damaged), 300) - 1))] = data.draw(st.integers(0, 255))
    try:
        with open_checkpoint(Source(written(tmp_path, bytes(damaged)), format="llama2c")) as checkpoint:
            for tensor in checkpoint.tensors.values():
                tensor.array()
    except ConverterError as error:
        assert "model.bin" in str(error)


# ---------------------------------------------------------------------------------------------- real files


def test_real_model(data: Path, tmp_path: Path) -> None:
    """The same weights as the Hugging Face folder, and the same GGUF when its config and tokenizer are given."""
    source, folder = data / "lm-stories260K-llama2c" / "stories260K.bin", data / "lm-stories260K-hf"
    with open_checkpoint(folder / "model.safetensors") as other, open_checkpoint(source) as ours:
        wanted = {name: tensor.array() for name, tensor in other.tensors.items() if name != "lm_head.weight"}
        assert all(other.config[key] == value for key, value in ours.config.items() if key != "torch_dtype")
    check(source, wanted)
    for number, args in enumerate(([source, "--config", folder], [folder])):
        assert main([*map(str, args), str(tmp_path / f"{number}.gguf"), "--name", "stories"]) == 0
    with open_checkpoint(tmp_path / "0.gguf") as ours, open_checkpoint(tmp_path / "1.gguf") as other:
        assert ours.tensors.keys() == other.tensors.keys()
        for name, tensor in ours.tensors.items():
            assert tensor.array().tobytes() == other.tensors[name].array().tobytes()
    assert main([str(source), str(tmp_path / "2.gguf"), "--no-tokenizer", "--quant", "q8_0"]) == 0
    assert main([str(source), str(tmp_path / "m.safetensors")]) == 0
    with open_checkpoint(tmp_path / "m.safetensors") as plain:
        assert {name: tensor.array().tobytes() for name, tensor in plain.tensors.items()} == {
            name: array.tobytes() for name, array in wanted.items()
        }
