"""ggml files from before GGUF: layouts, versions, and what is refused."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.ggml_files import (
    F16,
    F32,
    GOOD,
    N_EMBD,
    Q4_0,
    Q5_1,
    Q8_0,
    WHISPER,
    content,
    joined,
    llama,
    llama_shapes,
    tensor,
    vocabulary,
    whisper,
    whisper_head,
    whisper_shapes,
)

from converter.cli.main import main
from converter.errors import ConverterError, CorruptFile, MissingPart, UnknownFormat, UnsupportedFeature
from converter.formats import ggml_legacy
from converter.formats.registry import open_checkpoint


def written(folder: Path, data: bytes) -> Path:
    path = folder / "model.bin"
    path.write_bytes(data)
    return path


def check(path: Path, shapes: dict[str, tuple[tuple[int, ...], int]]) -> dict[str, str]:
    """Every tensor is there with its bytes; gives the metadata."""
    with open_checkpoint(path) as checkpoint:
        assert checkpoint.format == "ggml"
        assert checkpoint.dialect is None
        assert set(checkpoint.tensors) - {"mel_filters"} == set(shapes)
        for name, (shape, kind) in shapes.items():
            found = checkpoint.tensors[name]
            assert found.info.shape == shape
            assert found.rows(0, found.info.n_rows).tobytes() == content(name, shape, kind)
        return dict(checkpoint.metadata)


@pytest.mark.parametrize(
    ("magic", "version", "kind"),
    [
        (b"lmgg", None, F32), (b"lmgg", None, F16), (b"fmgg", 1, F16), (b"tjgg", 1, F16), (b"tjgg", 2, Q5_1),
        (b"tjgg", 3, F16), (b"tjgg", 3, Q4_0), (b"tjgg", 3, Q5_1), (b"tjgg", 3, Q8_0),
    ],
)  # fmt: skip
def test_llama(tmp_path: Path, magic: bytes, version: int | None, kind: int) -> None:
    texts = check(written(tmp_path, llama(magic, version, kind)), llama_shapes(kind))
    assert texts["ggml.n_embd"] == "32"
    assert json.loads(texts["ggml.tokens"]) == ["a", {"hex": "fffe"}, "\n"]
    assert ("ggml.scores" in texts) == (version is not None)


@pytest.mark.parametrize(
    ("magic", "version", "kind"),
    [(b"lmgg", None, Q4_0), (b"fmgg", 1, Q4_0), (b"tjgg", 1, Q5_1), (b"tjgg", 2, Q4_0), (b"tjgg", 2, Q8_0)],
)
def test_blocks_of_abandoned_layouts(tmp_path: Path, magic: bytes, version: int | None, kind: int) -> None:
    with pytest.raises(UnsupportedFeature, match="gave up"):
        open_checkpoint(written(tmp_path, llama(magic, version, kind)))


@pytest.mark.parametrize(("ftype", "kind"), [(0, F32), (1, F16), (2008, Q8_0), (2002, Q4_0), (1009, Q5_1)])
def test_whisper(tmp_path: Path, ftype: int, kind: int) -> None:
    path = written(tmp_path, whisper(ftype, kind))
    texts = check(path, whisper_shapes(kind))
    assert texts["ggml.layout"] == "whisper"
    assert texts["ggml.n_text_layer"] == "1"
    with open_checkpoint(path) as checkpoint:
        mel = checkpoint.tensors["mel_filters"].array()
        assert np.array_equal(mel, np.arange(4 * 201, dtype="<f4").reshape(4, 201))


@pytest.mark.parametrize(("ftype", "kind"), [(2, Q4_0), (1002, Q4_0), (3002, Q4_0)])
def test_whisper_of_other_quantizations(tmp_path: Path, ftype: int, kind: int) -> None:
    with pytest.raises(UnsupportedFeature):
        open_checkpoint(written(tmp_path, whisper(ftype, kind)))


def in_header(data: bytes, at: int, value: int) -> bytes:
    return data[:at] + struct.pack("<I", value) + data[at + 4 :]


FIRST = 8 + 28 + len(vocabulary(True))  # where the first tensor of GOOD begins
END_LAST = len(GOOD)
BAD = {
    "vocabulary bomb": in_header(GOOD, 8, 0xFFFFFFFF),
    "token bomb": in_header(GOOD, 36, 0xFFFFFFFF),
    "token of 5000": GOOD[:36] + struct.pack("<I", 5000) + bytes(5000) + GOOD[36:],
    "score is no number": GOOD[:41] + struct.pack("<f", float("nan")) + GOOD[45:],
    "axes": in_header(GOOD, FIRST, 5),
    "name bomb": in_header(GOOD, FIRST + 4, 0x7FFFFFFF),
    "no name": in_header(GOOD, FIRST + 4, 0),
    "shape": in_header(GOOD, FIRST + 12, 0xFFFFFFE0),
    "rows are no blocks": in_header(GOOD, FIRST + 12, 33),
    "name is not UTF-8": GOOD.replace(b"tok_emb", b"tok\xff\xff\xff\xff"),
    "name with a NUL": GOOD.replace(b"tok_emb", b"tok\0emb"),
    "twice": GOOD + tensor(END_LAST, "norm.weight", (N_EMBD,), F32, 32),
    "overflow": b"".join([GOOD, struct.pack("<7I", 4, 1, F32, *[0xFFFFFFFF] * 4), b"x"]),
    "overflow hidden by a zero": b"".join([GOOD, struct.pack("<7I", 4, 1, F32, 0, *[0xFFFFFFFF] * 3), b"x"]),
    "mel bomb": in_header(in_header(WHISPER, 4 + 36, 0x7FFFFFFF), 4 + 44, 0x7FFFFFFF),
    "tail": GOOD + b"\0",
    "silero without layers": b"lmgg" + struct.pack("<I", 10) + b"silero-16k" + struct.pack("<6I", *[0x7FFFFFFF] * 6),
}


@pytest.mark.parametrize("case", BAD)
def test_what_contradicts_itself_is_refused(tmp_path: Path, case: str) -> None:
    with pytest.raises(CorruptFile) as caught:
        open_checkpoint(written(tmp_path, BAD[case]))
    assert "model.bin" in str(caught.value)
    assert len(str(caught.value).splitlines()) <= 3


@pytest.mark.parametrize(
    "data",
    [
        in_header(GOOD, 4, 4), b"fmgg" + GOOD[4:], in_header(GOOD, FIRST + 8, 99), in_header(GOOD, FIRST + 8, 4),
        b"lmgg" + bytes(60), b"lmgg", in_header(in_header(llama(kind=F32), 8 + 4, 64), 8 + 20, 16),
    ],
)  # fmt: skip
def test_what_is_not_ours(tmp_path: Path, data: bytes) -> None:
    with pytest.raises(UnsupportedFeature):
        open_checkpoint(written(tmp_path, data))


def test_missing_tensors(tmp_path: Path) -> None:
    for good, at, layers in ((GOOD, 24, 3), (GOOD, 24, 0xFFFFFFF), (WHISPER, 20, 0x7FFFFFFF)):
        data = in_header(good, at, layers)
        with pytest.raises(MissingPart):
            open_checkpoint(written(tmp_path, data))
    shapes = llama_shapes(Q4_0)
    shapes["x.weight"] = shapes.pop("norm.weight")
    with pytest.raises(MissingPart, match=r"norm\.weight"):
        open_checkpoint(written(tmp_path, joined(GOOD[:FIRST], shapes, 32)))


def test_more_tensors_than_any_model_has(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ggml_legacy, "MAX_TENSORS", 20)
    with pytest.raises(UnsupportedFeature, match="20 tensors"):
        open_checkpoint(written(tmp_path, GOOD))


def test_other_magics_are_not_claimed(tmp_path: Path) -> None:
    with pytest.raises(UnknownFormat):
        open_checkpoint(written(tmp_path, b"algg" + GOOD[4:]))


def test_every_truncation_is_refused(tmp_path: Path) -> None:
    """Also between two tensors. Whisper's head alone is a file that its own tests use."""
    for data, whole in ((GOOD, ()), (WHISPER, (len(whisper_head()),))):
        for length in {*range(0, len(data), 97), *(len(data) - 1, len(data) - 300)}:
            if length not in whole:
                with pytest.raises(ConverterError):
                    open_checkpoint(written(tmp_path, data[:length]))


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_damage_is_refused_or_read(tmp_path: Path, data: st.DataObject) -> None:
    damaged = bytearray(data.draw(st.sampled_from([GOOD, WHISPER, llama(b"lmgg", None, F16)])))
    reach = data.draw(st.sampled_from([100, len(damaged)]))
    for _ in range(data.draw(st.integers(1, 4))):
        damaged[data.draw(st.integers(0, reach - 1))] = data.draw(st.integers(0, 255))
    try:
        with open_checkpoint(written(tmp_path, bytes(damaged))) as checkpoint:
            for each in checkpoint.tensors.values():
                each.array()
    except ConverterError as error:
        assert "model.bin" in str(error)


def test_to_gguf_and_safetensors(tmp_path: Path) -> None:
    path = written(tmp_path, GOOD)
    assert main([str(path), str(tmp_path / "m.gguf"), "--tensors-only"]) == 0
    with open_checkpoint(tmp_path / "m.gguf") as checkpoint:
        found = checkpoint.tensors["layers.0.attention.wq.weight"]
        assert found.info.dtype.name == "Q4_0"
        assert found.array().tobytes() == content(found.name, (N_EMBD, N_EMBD), Q4_0)
    path = written(tmp_path, WHISPER)
    assert main([str(path), str(tmp_path / "m.safetensors")]) == 0
    with open_checkpoint(tmp_path / "m.safetensors") as checkpoint:
        assert checkpoint.tensors["encoder.1"].array().tobytes() == content("encoder.1", (2, 32), F16)
        assert json.loads(checkpoint.metadata["ggml.tokens"])[0] == "a"


# ---------------------------------------------------------------------------------------------- real files


def test_real_files(data: Path, tmp_path: Path) -> None:
    folder = data / "ggml-legacy-whispercpp"
    with open_checkpoint(folder / "for-tests-ggml-tiny.bin") as checkpoint:
        assert checkpoint.tensors["mel_filters"].info.shape == (80, 201)
        assert len(json.loads(checkpoint.metadata["ggml.tokens"])) == 50257
    with open_checkpoint(folder / "for-tests-silero-v6.2.0-ggml.bin") as checkpoint:
        basis = checkpoint.tensors["_model.stft.forward_basis_buffer"]
        assert (basis.info.shape, basis.info.dtype.name) == ((258, 1, 256), "F16")
        raw = (folder / "for-tests-silero-v6.2.0-ggml.bin").read_bytes()
        assert raw.endswith(basis.array().tobytes())
        assert checkpoint.tensors["_model.decoder.decoder.2.bias"].info.shape == ()
    with pytest.raises(UnsupportedFeature, match="no known layout"):
        open_checkpoint(folder / "for-tests-ggml-parakeet-tdt.bin")
    assert main([str(folder / "for-tests-silero-v6.2.0-ggml.bin"), str(tmp_path / "s.safetensors")]) == 0
