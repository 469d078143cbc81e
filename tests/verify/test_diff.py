"""`convert diff`: nothing where nothing differs, and every difference where it is, in words and numbers."""

from __future__ import annotations

import json
import shutil
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support import builders, models
from support.rewriting import again, patched, reshaped, rewritten, without

import converter
from converter.cli.main import main
from converter.diff import Change, Differences, diff
from converter.errors import Interrupted, UnknownArchitecture
from converter.metadata import Array, Value, f32, text, u32
from converter.storage import slabs
from converter.tensors import kernels
from converter.tensors.dtypes import DTYPES

STORIES, KJV = models.FIXTURES / "stories260K", models.FIXTURES / "kjv-llama"


def changes(found: Differences) -> dict[str, Change]:
    return {change.name: change for change in found.changes}


@pytest.fixture(scope="module")
def kjv(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("kjv") / "kjv.gguf"
    converter.convert(KJV, path)
    return path


# ------------------------------------------------------------------------------------------------ nothing


@pytest.mark.parametrize("name", sorted(models.MODELS))
def test_a_folder_and_its_gguf_do_not_differ(name: str, tmp_path: Path) -> None:
    folder = models.build_model(name, tmp_path)
    converter.convert(folder, tmp_path / "out.gguf")
    for pair in ((folder, tmp_path / "out.gguf"), (tmp_path / "out.gguf", folder)):
        found = diff(*pair)
        assert found.changes == () and found.mapped and found.compared["tensors"] > 20


def test_the_same_tensors_in_other_containers(kjv: Path, tmp_path: Path) -> None:
    converter.convert(kjv, tmp_path / "out.gguf", converter.Request(split_max_tensors=20))
    assert diff(kjv, tmp_path / "out-00002-of-00003.gguf").equal
    for name in ("model.pt", "model.npz", "model.onnx"):
        request = converter.Request(dtype="f32", tensors_only=True)
        converter.convert(KJV / "model.safetensors", tmp_path / name, request)
    assert {change.group for change in diff(tmp_path / "model.pt", tmp_path / "model.npz").changes} <= {"metadata"}
    assert not [
        each for each in diff(tmp_path / "model.npz", tmp_path / "model.onnx").changes if each.group == "tensors"
    ]


def test_a_model_and_itself(kjv: Path) -> None:
    for path in (kjv, KJV, STORIES):
        assert diff(path, path).equal


# ----------------------------------------------------------------------------------------------- metadata


def test_keys(kjv: Path, tmp_path: Path) -> None:
    with converter.open_checkpoint(kjv) as model:
        tokens = list(model.config["tokenizer.ggml.tokens"].values)
        kinds = np.array(model.config["tokenizer.ggml.token_type"].values)
    tokens[7], tokens[9] = "seven", "nine"
    other = rewritten(kjv, tmp_path / "other.gguf", {
        "general.license": None, "general.author": text("someone"), "llama.context_length": u32(512),
        "llama.block_count": Value("u64", 6), "llama.rope.freq_base": f32(5e5),
        "tokenizer.ggml.tokens": Array("str", [*tokens, "more"]),
        "tokenizer.ggml.token_type": Array("i32", kinds[:-3]),
    })  # fmt: skip
    found = diff(kjv, other, metadata_only=True)
    lines = {str(change) for change in found.changes}
    assert lines == {
        "general.license: 'mit'",
        "general.author: 'someone'",
        "llama.context_length: 256 -> 512",
        "llama.block_count: 6; type u32 -> u64",
        "llama.rope.freq_base: 10000.0 -> 500000.0",
        "tokenizer.ggml.tokens: 2,048 of str -> 2,049 of str; 3 differ, first entry 7: "
        f"{converter_text(kjv, 7)!r} -> 'seven'",
        "tokenizer.ggml.token_type: 2,048 of i32 -> 2,045 of i32; 3 differ, first entry 2,045: 1 -> nothing",
    }
    assert changes(found)["general.license"].kind == "removed" and changes(found)["general.author"].kind == "added"
    assert changes(found)["tokenizer.ggml.tokens"].facts == {"differing": 3, "lengths": [2048, 2049], "first": 7}
    assert "tensors" not in found.compared


def converter_text(path: Path, token: int) -> Any:
    with converter.open_checkpoint(path) as model:
        return model.config["tokenizer.ggml.tokens"].values[token]


def test_numbers_that_are_the_same_float32_do_not_differ(kjv: Path, tmp_path: Path) -> None:
    nan = {"general.x": f32(float("nan")), "general.y": Array("f32", [float("nan"), 0.1])}
    one, other = (
        rewritten(kjv, tmp_path / f"{n}.gguf", {**nan, "general.z": f32(z)}) for n, z in enumerate((0.1, 0.1))
    )
    assert diff(one, other).equal


def test_config_and_small_files(tmp_path: Path) -> None:
    one, other = (
        builders.llama_folder(tmp_path / "a"),
        builders.llama_folder(
            tmp_path / "b", config={"rope_scaling": {"rope_type": "yarn", "factor": 2.0}, "eos_token_id": [1, 2]}
        ),
    )
    (other / "tokenizer_config.json").write_text("{}")
    (other / "NOTES.md").write_text("new")
    (one / "merges.txt").write_text("old")
    found = changes(diff(one, other))
    assert {name: (change.group, change.kind) for name, change in found.items()} == {
        "rope_scaling.rope_type": ("metadata", "added"),
        "rope_scaling.factor": ("metadata", "added"),
        "eos_token_id": ("metadata", "added"),
        "tokenizer_config.json": ("files", "changed"),
        "NOTES.md": ("files", "added"),
        "merges.txt": ("files", "removed"),
    }


def test_free_texts_of_a_container(tmp_path: Path) -> None:
    for name, value in (("a", "1"), ("b", "2")):
        path = tmp_path / f"{name}.safetensors"
        path.write_bytes(builders.safetensors_of({"t": np.zeros(2, np.float32)}, {"step": value}))
    (change,) = diff(tmp_path / "a.safetensors", tmp_path / "b.safetensors").changes
    assert str(change) == "metadata: step: '1' -> '2'"


# ------------------------------------------------------------------------------------------------ tensors


def test_added_removed_and_reshaped(kjv: Path, tmp_path: Path) -> None:
    one = rewritten(kjv, tmp_path / "one.gguf", {}, without("blk.3.ffn_up.weight"))
    assert [str(change) for change in diff(kjv, one).changes] == ["blk.3.ffn_up.weight: BF16 768x256"]
    assert [change.kind for change in diff(one, kjv).changes] == ["added"]
    copied = rewritten(kjv, tmp_path / "two.gguf", {}, again("output_norm.weight", "again.weight"))
    assert {name: change.kind for name, change in changes(diff(kjv, copied)).items()} == {"again.weight": "added"}
    turned = rewritten(kjv, tmp_path / "three.gguf", {}, reshaped("blk.0.ffn_up.weight", (256, 768)))
    (change,) = diff(kjv, turned).changes
    assert str(change) == "blk.0.ffn_up.weight: BF16 768x256 -> BF16 256x768"


def test_one_changed_value(kjv: Path, tmp_path: Path) -> None:
    path = shutil.copyfile(kjv, tmp_path / "other.gguf")
    patched(path, "blk.2.ffn_down.weight", 2 * (768 * 11 + 300), (0x4000).to_bytes(2, "little"))  # 2.0 in BF16
    (change,) = diff(kjv, path).changes
    with converter.open_checkpoint(kjv) as model:
        old = float(model.tensors["blk.2.ffn_down.weight"].array()[11, 300])
    size = 256 * 768
    assert change.facts["differing"] == 1 and change.facts["first"] == 768 * 11 + 300
    assert change.facts["max_abs"] == 2.0 - old and change.facts["elements"] == size
    assert change.facts["rmse"] == pytest.approx((2.0 - old) / size**0.5)
    assert "first at row 11, column 300" in change.detail


def test_the_relative_error_is_that_of_the_whole_tensor(
    kjv: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Slabs in which nothing differs count for the size of the values, too."""
    monkeypatch.setattr(kernels, "SLAB_NBYTES", 4096)
    name = "blk.0.ffn_down.weight"

    with converter.open_checkpoint(kjv) as model:
        values = model.tensors[name].array().astype(np.float32)
    other = values.copy()
    other[3, 5] += 1
    for path, each in (("a.npz", values), ("b.npz", other)):
        np.savez(tmp_path / path, w=each)
    found = diff(tmp_path / "a.npz", tmp_path / "b.npz")
    (only,) = found.changes
    expected = np.sqrt(np.square((other - values).astype(float)).sum() / np.square(values.astype(float)).sum())
    assert only.facts["relative"] == pytest.approx(expected, rel=1e-6)
    assert [info.name for info in found.tensors] == ["w"]


@pytest.mark.parametrize("quant", ["q4_k_m", "q8_0", "iq4_xs", "f16"])
def test_numbers_are_those_of_numpy(quant: str, kjv: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On every type, whatever the slabs and threads."""
    converter.convert(KJV, tmp_path / "q.gguf", converter.Request(quant=quant))
    whole = diff(kjv, tmp_path / "q.gguf", threads=1)
    monkeypatch.setattr(kernels, "SLAB_NBYTES", 20_000)
    found = diff(kjv, tmp_path / "q.gguf", threads=5)
    assert changes(found).keys() == changes(whole).keys()
    with converter.open_checkpoint(kjv) as one, converter.open_checkpoint(tmp_path / "q.gguf") as other:
        for name, change in changes(found).items():
            if change.group != "tensors":
                continue
            new = other.tensors[name]
            a = one.tensors[name].array().astype(np.float64)
            b = kernels.dequantize(new.array().view(np.uint8), new.info.dtype.name, new.info.shape).astype(np.float64)
            error = np.abs(a - b).reshape(-1)
            assert change.facts["differing"] == np.count_nonzero(error)
            if not error.any():
                assert change.detail == "values equal"
                continue
            assert change.facts["first"] == np.argmax(error > 0) == changes(whole)[name].facts["first"]
            assert change.facts["max_abs"] == error.max()
            assert change.facts["rmse"] == pytest.approx(np.sqrt((error**2).mean()), rel=1e-6)


PLAIN: list[tuple[Any, Any, int]] = [
    (np.array([1, 2, 3], np.int64), np.array([1, 2, 9], np.int64), 1),
    (np.array([True, False]), np.array([True, True]), 1),
    (np.array([1 + 2j, 0], np.complex64), np.array([1 + 2j, 1j], np.complex64), 1),
    (np.array([1.0, 2.0]), np.array([1.0, 2.0 + 1e-12]), 1),
    (np.array([1.0, np.nan, np.inf], np.float32), np.array([1.5, np.nan, np.inf], np.float32), 1),
    (np.array([0.0, 1.0], np.float32), np.array([-0.0, 1.0], np.float32), 0),
    (np.array([1, 2], np.int32), np.array([1.0, 2.0]), 0),
    (np.array(3.0, np.float32), np.array(4.0, np.float32), 1),
    (np.array([np.nan], np.float32), np.array([0.0], np.float32), 1),
]


@pytest.mark.parametrize(("old", "new", "differing"), PLAIN)
def test_types_of_any_kind(old: Any, new: Any, differing: int, tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", t=old)
    np.savez(tmp_path / "b.npz", t=new)
    found = diff(tmp_path / "a.npz", tmp_path / "b.npz")
    assert found.equal == (not differing and old.dtype == new.dtype)
    for change in found.changes:
        assert change.facts["differing"] == differing
        assert np.isfinite(change.facts.get("max_abs", 0.0))


def test_empty_tensors(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", t=np.zeros((0, 3), np.float32))
    np.savez(tmp_path / "b.npz", t=np.zeros((0, 3), np.float16))
    assert diff(tmp_path / "a.npz", tmp_path / "a.npz").equal
    assert not diff(tmp_path / "a.npz", tmp_path / "b.npz").equal


# ---------------------------------------------------------------------------------------- dialects, command


def test_raw_keeps_names(kjv: Path) -> None:
    found = diff(KJV, kjv, raw=True)
    assert not found.mapped
    assert {change.kind for change in found.changes if change.group == "tensors"} == {"added", "removed"}


def test_an_unknown_architecture_asks_for_raw(kjv: Path, tmp_path: Path) -> None:
    folder = builders.llama_folder(tmp_path / "model", config={"architectures": ["Unheard"], "model_type": "of"})
    with pytest.raises(UnknownArchitecture, match="--raw"):
        diff(folder, kjv)
    assert not diff(folder, kjv, raw=True).equal


def test_a_folder_without_tokenizer_is_still_mapped(tmp_path: Path) -> None:
    whole = builders.llama_folder(tmp_path / "model")
    converter.convert(whole, tmp_path / "out.gguf")
    (whole / "tokenizer.json").unlink()
    found = diff(whole, tmp_path / "out.gguf")
    assert {change.name.partition(".")[0] for change in found.changes} == {"tokenizer"}


@pytest.mark.parametrize(
    ("arguments", "code"), [([], 1), (["--stat"], 1), (["--metadata-only"], 1), (["--quiet"], 1), (["--raw"], 1)]
)
def test_command(
    arguments: list[str], code: int, kjv: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    small = tmp_path / "small.gguf"
    converter.convert(KJV, small, converter.Request(quant="q8_0"))
    assert main(["diff", *arguments, str(kjv), str(small)]) == code
    out = capsys.readouterr().out
    lines = out.splitlines()
    if "--quiet" in arguments:
        assert out == ""
        return
    assert lines[:2] == [f"--- {kjv}", f"+++ {small}"] and "\x1b" not in out
    assert all(line[:1] in "-+~@" for line in lines)
    assert any(line.startswith("@@ tensors: 44 of 57 differ") for line in lines) == ("--metadata-only" not in arguments)
    if "--stat" in arguments:
        assert any(line.startswith("~ blk.*.ffn_up.weight: 6 changed, max abs ") for line in lines)


def test_equal_prints_nothing_and_ends_with_zero(kjv: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["diff", str(KJV), str(kjv)]) == 0
    assert capsys.readouterr().out == ""
    assert main(["diff", "--json", str(KJV), str(kjv)]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["equal"] is True and report["changes"] == [] and report["compared"]["tensors"] == 57


def test_json(kjv: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = rewritten(kjv, tmp_path / "other.gguf", {"general.name": text("x\x1b[31m")})
    assert main(["diff", "--json", str(kjv), str(other)]) == 1
    (change,) = json.loads(capsys.readouterr().out)["changes"]
    assert (change["group"], change["kind"], change["name"]) == ("metadata", "changed", "general.name")
    assert main(["diff", str(kjv), str(other)]) == 1
    assert "\x1b" not in capsys.readouterr().out


def test_colours_on_a_terminal(kjv: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str],
                               monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    other = rewritten(kjv, tmp_path / "other.gguf", {"general.name": text("[bold]x[/bold]"), "general.license": None})
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert main(["diff", str(kjv), str(other)]) == 1
    out = capsys.readouterr().out
    assert "\x1b[31m- general.license" in out and "[bold]x[/bold]" in out


def test_errors_and_cancelling(kjv: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(kjv.read_bytes()[:-100])
    assert main(["diff", str(kjv), str(broken)]) == 11
    assert main(["diff", str(kjv), str(tmp_path / "absent")]) == 50
    assert "absent" in capsys.readouterr().err
    with pytest.raises(Interrupted):
        diff(kjv, kjv, progress=lambda _: False)


def test_damage_in_a_block_is_found_where_it_is(kjv: Path, tmp_path: Path) -> None:
    one = tmp_path / "one.gguf"
    converter.convert(KJV, one, converter.Request(quant="q4_k_m"))
    other = shutil.copyfile(one, tmp_path / "other.gguf")
    patched(other, "blk.1.ffn_gate.weight", 40 * DTYPES["Q4_K"].type_size, b"\x00\x7e")  # its scale a NaN
    (change,) = diff(one, other).changes
    assert change.facts["first"] == 40 * 256 and "nan" in change.facts["first_values"]


def test_slabs_cover_every_row_once(kjv: Path) -> None:
    with converter.open_checkpoint(kjv) as model:
        for tensor in model.tensors.values():
            for row_work in (1, tensor.info.row_nbytes, 10**9):
                found = list(slabs.row_ranges((tensor,), row_work))
                assert found[0][0] == 0 and found[-1][1] == tensor.info.n_rows
                assert all(a[1] == b[0] for a, b in pairwise(found))
