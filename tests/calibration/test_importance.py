"""Importance matrices that are measured here: figures, bytes of files, sums of several, what is kept private."""

from __future__ import annotations

import json
import struct
import tempfile
from contextlib import AbstractContextManager, closing, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support import architectures, models
from support.activations import by_torch
from support.ggml_oracle import needs_ggml, written_gguf

import converter
from converter.calibration import texts
from converter.calibration.activations import runnable
from converter.calibration.importance import measure
from converter.calibration.matrices import Asked, look, make, merge
from converter.calibration.statistics import layers, statistics
from converter.cli.main import main
from converter.errors import (
    ConverterError,
    CorruptFile,
    Interrupted,
    OutputError,
    OutputExists,
    QuantizationError,
    SameFile,
    UnsupportedFeature,
    UsageError,
)
from converter.quant.imatrix import open_imatrix
from converter.quant.imatrix_writer import Importance, Measured
from converter.reports.files import REPORTS
from converter.storage import output
from converter.storage.slabs import Progress, ProgressCallback

KJV, STORIES = models.FIXTURES / "kjv-llama", models.FIXTURES / "stories260K"
HELD_OUT = models.FIXTURES / "kjv-heldout.txt"
RANDOM = Asked(calibrate="random", chunks=2, context=64)


def measured(sums: Any, counts: list[int]) -> Measured:
    return Measured(np.asarray(sums, np.float64).reshape(-1), np.array(counts, np.int64))


@pytest.fixture
def given() -> Importance:
    """Two weights, one of four experts of which one is silent, and one of experts that all are."""
    rng = np.random.default_rng(7)
    entries = {
        "blk.1.ffn_up_exps.weight": measured(rng.random((4, 6)) * [[3], [0], [5], [7]], [3, 0, 5, 1030]),
        "blk.0.attn_q.weight": measured(rng.random(8) * 9, [1024]),
        "blk.0.ffn_up_exps.weight": measured(np.zeros((2, 3)), [0, 0]),
    }
    return Importance(entries, ("a.txt sha256:00", "b.txt sha256:11"), 512)


# ------------------------------------------------------------------------------------------------ files


@needs_ggml
def test_the_gguf_is_the_one_that_ggml_writes(given: Importance, tmp_path: Path) -> None:
    """Byte for byte: the same calls of ggml's as in llama-imatrix's save_imatrix."""
    output.write(given.layout(tmp_path / "ours.gguf"))
    arrays = {}
    for name in sorted(given.entries):
        each = given.entries[name]
        arrays[f"{name}.in_sum2"] = each.columns.astype(np.float32)
        arrays[f"{name}.counts"] = each.counts.reshape(-1, 1).astype(np.float32)
    metadata: dict[str, Any] = {
        "general.type": "imatrix", "imatrix.datasets": list(given.datasets), "imatrix.chunk_count": 2,
        "imatrix.chunk_size": 512,
    }  # fmt: skip
    written_gguf(tmp_path / "theirs.gguf", metadata, arrays)
    assert (tmp_path / "ours.gguf").read_bytes() == (tmp_path / "theirs.gguf").read_bytes()


def test_the_dat_is_laid_out_as_llama_imatrix_does(given: Importance, tmp_path: Path) -> None:
    """save_imatrix_legacy step by step: what nobody spoke of is left out, a silent expert has 1, times the calls."""
    output.write(given.layout(tmp_path / "o.dat"))
    wanted = struct.pack("<i", 2)
    for name, calls in (("blk.0.attn_q.weight", 2), ("blk.1.ffn_up_exps.weight", 3)):
        each = given.entries[name]
        values = np.empty(each.sums.size, np.float32)
        for at, total in enumerate(each.sums.astype(np.float32)):
            count = np.float32(each.counts[at // (each.sums.size // len(each.counts))])
            value, count = (np.float32(1), np.float32(1)) if count == 0 else (total, count)
            values[at] = (value / count) * np.float32(calls)
        wanted += struct.pack("<i", len(name)) + name.encode() + struct.pack("<ii", calls, len(values))
        wanted += values.tobytes()
    wanted += struct.pack("<ii", 2, len(given.datasets[1])) + b"b.txt sha256:11"
    assert (tmp_path / "o.dat").read_bytes() == wanted


@pytest.mark.parametrize("extension", ["gguf", "dat"])
def test_files_are_read_as_they_were_written(extension: str, given: Importance, tmp_path: Path) -> None:
    path = tmp_path / f"o.{extension}"
    output.write(given.layout(path))
    with closing(open_imatrix(path)) as matrix:
        for name, entry in matrix.entries.items():
            np.testing.assert_allclose(
                entry.values(0, entry.size), given.entries[name].means().reshape(-1), rtol=1e-6, err_msg=name
            )
        assert matrix.n_chunks == 2 and matrix.entries.keys() | {"blk.0.ffn_up_exps.weight"} == given.entries.keys()


def test_sums_of_files_are_those_of_one_reading(tmp_path: Path) -> None:
    """A text in two parts and added up is the text at once, also where the parts are files of both kinds."""
    pytest.importorskip("llama_cpp")
    converter.convert(STORIES, tmp_path / "m.gguf")
    model, lines = tmp_path / "m.gguf", HELD_OUT.read_text("utf-8")
    (tmp_path / "t.txt").write_text(lines[:8000])
    whole = make(model, tmp_path / "whole.gguf", Asked(text=tmp_path / "t.txt", context=64, chunks=8), threads=1)
    tokens = texts.from_file(model, tmp_path / "t.txt", 64).chunks
    assert len(tokens) > 8
    parts = []
    for number, chunks in enumerate((tokens[:3], tokens[3:8])):
        made = measure(model, texts.Text(chunks, f"part {number}", "0" * 64), threads=1)
        parts.append(tmp_path / f"{number}.{('gguf', 'dat')[number]}")
        output.write(made.importance.layout(parts[-1]))
    both = merge(parts, tmp_path / "both.gguf", chunk_size=64)
    assert both.importance.chunks == whole.importance.chunks == 8
    for name, each in whole.importance.entries.items():
        np.testing.assert_allclose(both.importance.entries[name].sums, each.sums, rtol=1e-5)
        assert both.importance.entries[name].counts.tolist() == each.counts.tolist()
    assert both.importance.datasets == tuple(f"part {number} sha256:{'0' * 64}" for number in range(2))


def test_what_cannot_be_added(given: Importance, tmp_path: Path) -> None:
    one, other = tmp_path / "one.gguf", tmp_path / "other.gguf"
    output.write(given.layout(one))
    output.write(Importance({"blk.0.attn_q.weight": measured(np.ones(9), [4])}, (), 512).layout(other))
    with pytest.raises(QuantizationError, match=r"attn_q\.weight: 8 values of 1 and 9 of 1 .* different models"):
        merge([one, other], tmp_path / "sum.gguf")
    assert not (tmp_path / "sum.gguf").exists()
    broadcast = measured(np.ones((4, 6)), [2]).plus(measured(np.ones((4, 6)), [1, 2, 3, 4]), "x")
    assert broadcast.counts.tolist() == [3, 4, 5, 6] and broadcast.sums.tolist() == [2.0] * 24


# ------------------------------------------------------------------------------------------------ figures


def test_importance_of_experts_is_that_of_torch(tmp_path: Path) -> None:
    """From a folder to a file: means of squares by expert, the routers' too; experts without a token are named."""
    pytest.importorskip("llama_cpp")
    pytest.importorskip("transformers")
    folder = models.build_model("qwen3moe-96", tmp_path)
    made = make(folder, tmp_path / "o.gguf", Asked(calibrate="random", chunks=1, context=16), threads=1)
    with runnable(folder, threads=1) as model:
        chunks = texts.drawn(model, 16, 1).chunks
    wanted = by_torch(folder, chunks).squares()
    with closing(open_imatrix(tmp_path / "o.gguf")) as matrix:
        for name, entry in matrix.entries.items():
            counts = entry.read_counts()
            values = entry.values(0, entry.size).reshape(len(counts), -1)
            for expert, count in enumerate(counts):
                sums, rows = wanted.get((name, expert if "_exps" in name else None), (None, 0))
                assert rows == count, (name, expert)
                mean = np.ones_like(values[0]) if sums is None else sums / rows
                np.testing.assert_allclose(values[expert], mean, rtol=1e-3, atol=1e-3 * mean.mean())
    silent = made.made.silent if made.made else {}
    assert silent and all("_exps" in name for name in silent)
    assert f"{sum(map(len, silent.values()))} experts of {len(silent)} weights got no token" in str(made.events[0])


def test_blocks_that_are_not_run_are_named_or_completed(tmp_path: Path) -> None:
    pytest.importorskip("llama_cpp")
    folder = architectures.build("glm4moe-nextn", tmp_path)
    plain = make(folder, tmp_path / "plain.gguf", Asked(calibrate="random", chunks=4, context=64), threads=1)
    assert plain.made and {info.name.split(".")[1] for info in plain.made.missing} == {"2"}
    assert any("nothing was multiplied by blk.2." in str(event) for event in plain.events)
    asked = Asked(calibrate="random", chunks=4, context=64, complete=True)
    whole = make(folder, tmp_path / "whole.gguf", asked, threads=1).importance.entries
    before = plain.importance.entries
    np.testing.assert_allclose(whole["blk.2.attn_q.weight"].means(), before["blk.1.attn_q.weight"].means())
    name = "blk.1.ffn_up_exps.weight"
    (silent,) = before[name].silent
    others = np.delete(before[name].means(), silent, axis=0)
    np.testing.assert_allclose(whole[name].means()[silent], others.mean(axis=0))
    np.testing.assert_array_equal(np.delete(whole[name].means(), silent, axis=0), others)
    assert not any(each.silent for each in whole.values())


def test_stacks_that_are_no_experts_have_one_count(tmp_path: Path) -> None:
    """Latent attention: as llama-imatrix has it."""
    pytest.importorskip("llama_cpp")
    folder = architectures.build("deepseek2-v3-tiny", tmp_path)
    made = make(folder, tmp_path / "o.gguf", RANDOM, threads=1)
    with runnable(folder, threads=1) as model, converter.open_checkpoint(model) as checkpoint:
        shape = checkpoint.tensors["blk.0.attn_v_b.weight"].info.shape
    each = made.importance.entries["blk.0.attn_v_b.weight"]
    assert shape[0] > 1 and each.sums.size == shape[0] * shape[-1] and each.counts.tolist() == [128]
    assert len(np.unique(each.sums.reshape(shape[0], -1), axis=0)) == shape[0]


def test_what_would_end_the_process_is_an_error(tmp_path: Path) -> None:
    """llama.cpp wants a T5's encoder to have run before its decoder, and aborts."""
    pytest.importorskip("llama_cpp")
    folder = architectures.build("t5-tiny", tmp_path)
    with pytest.raises(UnsupportedFeature, match="does not run it: the runtime crashed"):
        make(folder, tmp_path / "o.gguf", replace(RANDOM, runtime="llama.cpp"), threads=1)
    assert not (tmp_path / "o.gguf").exists()


def test_statistics_are_llama_imatrixs(given: Importance) -> None:
    """compute_statistics and compute_cossim, as they are written there."""
    found = {each.name: each for each in statistics(given)}
    assert "blk.0.ffn_up_exps.weight" not in found, "nothing was counted"
    each, entry = found["blk.1.ffn_up_exps.weight"], given.entries["blk.1.ffn_up_exps.weight"]
    activations = [
        entry.columns[expert][column] / count
        for expert, count in enumerate(entry.counts) if count for column in range(6)
    ]  # fmt: skip
    total, size = sum(activations), len(activations)
    mean = total / size
    deviation = (sum(value * value for value in activations) / size - mean * mean) ** 0.5
    entropy = -sum(value / total * np.log2(value / total) for value in activations if value > 0)
    assert each.total == pytest.approx(total) and each.mean == pytest.approx(mean) and each.columns == 18
    assert (each.least, each.most) == pytest.approx((min(activations), max(activations)))
    assert each.deviation == pytest.approx(deviation) and each.entropy == pytest.approx(entropy)
    assert each.evenness == pytest.approx(entropy / np.log2(18))
    assert each.active == sum(value > 1e-5 for value in activations) / 18
    assert each.above == sum((value - mean) / deviation > 1 for value in activations) / 18
    assert each.top[0] == (int(np.argmax(activations)), pytest.approx(max(activations) / total))
    assert each.silent == 1 and each.similarity is None, "the one before is all zero"
    assert [layer.layer for layer in layers(found.values())] == [0, 1]


def test_layers_are_compared_with_those_before() -> None:
    rng = np.random.default_rng(3)
    first, second = rng.random(8), rng.random(8)
    made = Importance(
        {f"blk.{at}.attn_q.weight": measured(sums, [4]) for at, sums in enumerate((first, second))}, (), 512
    )
    one, other = statistics(made)
    assert one.similarity is None
    assert other.similarity == pytest.approx(first @ second / np.linalg.norm(first) / np.linalg.norm(second))


# ------------------------------------------------------------------------------------------------ what is done with it


def test_a_model_is_quantized_with_it_and_no_path_is_kept(tmp_path: Path) -> None:
    """Types that need importance; names and a hash in every file, and no folder."""
    pytest.importorskip("llama_cpp")
    private = tmp_path / "customer-x"
    private.mkdir()
    (private / "notes.txt").write_text(HELD_OUT.read_text("utf-8")[:6000])
    for extension in ("gguf", "dat"):
        matrix = private / f"i.{extension}"
        make(KJV, matrix, Asked(text=private / "notes.txt", context=64, chunks=4), threads=1)
        converter.convert(KJV, tmp_path / f"{extension}.gguf", converter.Request(quant="iq2_xs", imatrix=matrix))
        for path in (matrix, tmp_path / f"{extension}.gguf"):
            assert b"customer-x" not in path.read_bytes()
        with converter.open_checkpoint(tmp_path / f"{extension}.gguf") as checkpoint:
            said = {key: getattr(value, "value", None) for key, value in checkpoint.config.items()}
        assert said["quantize.imatrix.file"] == f"i.{extension}"
        assert str(said["quantize.imatrix.dataset"]).startswith("notes.txt sha256:")
        assert (said["quantize.imatrix.entries_count"], said["quantize.imatrix.chunks_count"]) == (42, 4)


def test_a_stopped_run_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither a part of the file nor the temporary model, wherever the interrupt comes."""
    pytest.importorskip("llama_cpp")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))

    def stop(now: Progress) -> bool:
        if len(seen) > 1 and now.done < now.total:
            raise KeyboardInterrupt
        return True

    def showing(stage: str) -> AbstractContextManager[ProgressCallback | None]:
        seen.append(stage)
        return nullcontext(stop if stage == wanted else None)

    for wanted in ("write", "read"):
        seen: list[str] = []
        with pytest.raises((KeyboardInterrupt, Interrupted)):
            make(STORIES, tmp_path / "o.gguf", Asked(calibrate="own", chunks=2, context=32), threads=1, showing=showing)
        assert wanted in seen and list(tmp_path.iterdir()) == []


def test_what_is_there_is_not_replaced(given: Importance, tmp_path: Path) -> None:
    """And it is said before anything is run."""
    path = tmp_path / "i.gguf"
    output.write(given.layout(path))
    before, there = path.read_bytes(), tmp_path / "there.gguf"
    there.write_bytes(b"")
    cases: list[tuple[type[ConverterError], Path, bool]] = [
        (OutputExists, there, False), (UsageError, tmp_path / "i.bin", False),
        (OutputError, tmp_path / "absent" / "i.gguf", False), (SameFile, path, True),
    ]  # fmt: skip
    for kind, target, force in cases:
        with pytest.raises(kind):
            merge([path, path], target, force=force)
    with pytest.raises(UsageError, match="one of --text FILE, --calibrate own, --calibrate random"):
        make(KJV, tmp_path / "o.gguf", Asked())
    assert path.read_bytes() == before and sorted(tmp_path.iterdir()) == [path, there]


def test_reports(given: Importance, tmp_path: Path) -> None:
    path = tmp_path / "i.gguf"
    output.write(given.layout(path))
    looked = look(path)
    made = {kind: write(looked) for kind, write in REPORTS["imatrix"].items()}
    for kind in (".txt", ".md", ".html"):
        assert "ffn_up_exps" in made[kind] and "a.txt sha256:00" in made[kind]
    assert made[".html"].count("<svg") == 4 and "blk.1.ffn_up_exps.weight: " in made[".html"]
    said = json.loads(made[".json"])
    assert said["weights"][0]["name"] == "blk.0.attn_q.weight" and said["silent_experts"]


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        ((), "one of them is needed"),
        (("{model}",), "-o OUT: names the file"),
        (("{model}", "-o", "{tmp}/o.gguf"), "what the model reads"),
        (("--merge", "{matrix}", "-o", "{tmp}/o.gguf", "--calibrate", "own"), "are read by MODEL"),
        (("--statistics", "{matrix}", "-o", "{tmp}/o.gguf"), "takes neither MODEL"),
        (("--statistics", "{model}/config.json"), "not an importance matrix"),
    ],
)
def test_lines_that_cannot_be_meant(
    argv: tuple[str, ...], said: str, given: Importance, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output.write(given.layout(tmp_path / "i.gguf"))
    words = [part.format(model=STORIES, matrix=tmp_path / "i.gguf", tmp=tmp_path) for part in argv]
    assert main(["imatrix", *words]) in (UsageError.exit_code, CorruptFile.exit_code)
    assert said in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["i.gguf"]
