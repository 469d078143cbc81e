"""`convert compare`: of each quant it says what converting and verifying it says, from one read of the source."""

from __future__ import annotations

import json
import math
import shlex
import tracemalloc
from collections import defaultdict
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from support import builders, models

import converter
from converter import compare as comparison
from converter.checkpoint import Checkpoint
from converter.cli.main import main
from converter.compare import QUANTS, SCHEMA, Choice, Comparison, Quant, compare, with_behaviour
from converter.errors import Interrupted, MissingImportance, QuantizationError, UsageError
from converter.formats.registry import open_checkpoint
from converter.quant.recipes import RECIPES
from converter.reports.comparison import plot
from converter.request import Request, Source
from converter.storage.slabs import Progress
from converter.tensors import kernels
from converter.tensors.tensor import LazyTensor, Rows
from converter.verify import measure
from converter.verify.verifier import verify

STORIES, KJV = models.FIXTURES / "stories260K", models.FIXTURES / "kjv-llama"
IMATRIX = models.FIXTURES / "imatrix" / "stories260K.dat"


@pytest.fixture(scope="module")
def narrow(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Experts, and rows of 96 and 160, which do not divide into blocks of 256."""
    return models.build_model("mixtral-96", tmp_path_factory.mktemp("narrow"))


@pytest.fixture(scope="module")
def kjv() -> Comparison:
    return compare(KJV)


# ------------------------------------------------------------------------------------------------ the numbers


def as_converted(source: Path, quants: tuple[str, ...], request: Request, folder: Path) -> Comparison:
    """`compare`, each of whose figures was checked against the file that `convert` writes and what `verify` says."""
    found = compare(source, quants, request)
    assert {quant.name.lower() for quant in found.quants} == set(quants)
    for quant in found.quants:
        path, own = folder / f"{quant.name}.gguf", request.replace(quant=quant.name)
        plan = converter.convert(source, path, own)
        expected = verify(source, path, own)
        assert expected.passed
        assert quant.bytes == path.stat().st_size
        assert quant.types == {type_: list(types(expected)).count(type_) for type_ in types(expected)}
        assert len(quant.fallbacks) == sum(event.kind == "TypeFallback" for event in plan.report.events)
        of = expected.summary()
        assert quant.sqnr_db == pytest.approx(of["sqnr_db"], rel=1e-6)
        assert quant.nmse == pytest.approx(of["nmse"], rel=1e-6)
        assert quant.bits_per_weight == pytest.approx(of["bits_per_weight"], rel=1e-12)
        assert quant.max_abs == of["max_abs"]
        if not quant.nmse:
            assert quant.worst_tensor is None
        else:
            assert quant.worst_tensor == of["worst_tensor"]
            assert quant.worst_sqnr_db == pytest.approx(expected.worst_first[0].sqnr_db, rel=1e-6)
    return found


def test_efforts_are_candidates(tmp_path: Path) -> None:
    """Each is what `convert` and `verify` make of it; more effort has less error at the same bits."""
    found = compare(KJV, ["q4_k_m", "f16"], efforts=(0, 1, 2, 3))
    by_name = {quant.name: quant for quant in found.quants}
    assert sorted(by_name) == ["F16", "Q4_K_M", "Q4_K_M effort 1", "Q4_K_M effort 2", "Q4_K_M effort 3"]
    for quant in found.quants:
        if quant.effort != 2:
            continue
        own = Request(quant=quant.quant, effort=quant.effort)
        converter.convert(KJV, tmp_path / "m.gguf", own)
        assert quant.bytes == (tmp_path / "m.gguf").stat().st_size
        assert quant.nmse == pytest.approx(verify(KJV, tmp_path / "m.gguf").summary()["nmse"], rel=1e-6)
    errors = [by_name[name].nmse for name in ("Q4_K_M", "Q4_K_M effort 2", "Q4_K_M effort 3")]
    assert errors == sorted(errors, reverse=True)
    assert len(set(errors)) == 3


def test_efforts_that_do_not_exist(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", str(KJV), "--quants", "q4_0", "--effort", "0,4"]) == UsageError.exit_code
    assert "there are 0 to 3" in capsys.readouterr().err
    assert main(["compare", str(KJV), "--effort", "high"]) == UsageError.exit_code


def types(of: converter.verify.results.Verification) -> list[str]:
    return [tensor.type for tensor in of.tensors]


@pytest.fixture(autouse=True)
def everything_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    """`verify` takes every element of large tensors, too, of which it otherwise measures a part."""
    monkeypatch.setattr(measure, "ALL_MEASURED", 1 << 62)


def test_equals_convert_and_verify(tmp_path: Path) -> None:
    found = as_converted(KJV, ("q4_k_m", "q5_k_m", "q8_0", "copy"), Request(), tmp_path)
    assert [quant.name for quant in found.quants] == ["COPY", "Q8_0", "Q5_K_M", "Q4_K_M"]  # the largest first
    assert [quant.sqnr_db for quant in found.quants[:1]] == [math.inf]
    assert not any(quant.fallbacks for quant in found.quants)


def test_rows_that_do_not_divide_fall_back(narrow: Path, tmp_path: Path) -> None:
    found = as_converted(narrow, ("q4_k_m", "q6_k", "f16"), Request(), tmp_path)
    fallbacks = {quant.name: len(quant.fallbacks) for quant in found.quants}
    assert fallbacks["F16"] == 0 < fallbacks["Q4_K_M"]


def test_importance_and_overrides(tmp_path: Path) -> None:
    request = Request(imatrix=IMATRIX, tensor_types=(("ffn_down", "q5_1"),))
    found = as_converted(STORIES, ("q4_0", "iq4_nl"), request, tmp_path)
    plain = compare(STORIES, ("q4_0", "iq4_nl"), request.replace(imatrix=None))
    assert all(a.bytes > b.bytes and a.nmse != b.nmse for a, b in zip(found.quants, plain.quants, strict=True))


def test_an_intermediate_precision(tmp_path: Path) -> None:
    as_converted(STORIES, ("q8_0",), Request(via="f16"), tmp_path)


def test_a_quantized_source(tmp_path: Path) -> None:
    source = tmp_path / "source.gguf"
    converter.convert(KJV, source, Request(quant="q8_0"))
    with pytest.raises(QuantizationError, match="--allow-requantize"):
        compare(source, ["q4_0"])
    (tmp_path / "out").mkdir()
    found = as_converted(source, ("copy", "q4_0"), Request(allow_requantize=True), tmp_path / "out")
    assert found.quants[0].nmse == 0 < found.quants[1].nmse
    assert {event.kind for event in found.quants[1].events} >= {"Requantized"}


def test_values_that_overflow_are_counted(tmp_path: Path) -> None:
    weights = builders.llama_weights()
    weights["lm_head.weight"][3, 5:7] = 1e6
    found = compare(builders.llama_folder(tmp_path / "model", weights=weights), ["f16", "bf16"])
    assert {quant.name: quant.nonfinite for quant in found.quants} == {"F16": 2, "BF16": 0}


def test_the_result_does_not_depend_on_threads(narrow: Path) -> None:
    one, three = (compare(narrow, ["q4_k_m", "q2_k"], threads=threads) for threads in (1, 3))
    assert replace(one, seconds=0.0) == replace(three, seconds=0.0)


def test_memory_to_run(kjv: Comparison) -> None:
    """As `convert inspect` estimates it, for at most the tokens that the model takes."""
    assert kjv.context == 256
    assert [quant.name for quant in kjv.quants] == list(QUANTS)
    sizes = [(quant.bytes, quant.memory or 0) for quant in kjv.quants]
    assert sizes == sorted(sizes, reverse=True)
    assert all(memory > nbytes for nbytes, memory in sizes)
    assert compare(KJV, ["q8_0"], context=64).context == 64
    small, large = (compare(KJV, ["q8_0"], context=tokens).quants[0].memory for tokens in (64, 4096))
    assert small == large  # a cache grows in steps of 256 cells


# ------------------------------------------------------------------------------------------------ one read


def test_the_source_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every row of every tensor is asked for exactly once, however many quants want it."""
    source = models.build_model("qwen3-256", tmp_path)
    reads: dict[str, list[tuple[int, int]]] = defaultdict(list)

    def counted(tensor: LazyTensor) -> LazyTensor:
        def read(start: int, stop: int) -> Rows:
            reads[tensor.name].append((start, stop))
            return tensor.read(start, stop)

        return replace(tensor, read=read)

    def opened(source: Source, arch: str | None) -> Checkpoint:
        checkpoint = open_checkpoint(source)
        return checkpoint.replace(tensors={name: counted(each) for name, each in checkpoint.tensors.items()})

    monkeypatch.setattr(comparison, "open_model", opened)
    compare(source, ["q4_k_m", "q5_k_m", "q6_k", "q8_0"])
    with open_checkpoint(source) as checkpoint:
        rows = {name: tensor.info.n_rows for name, tensor in checkpoint.tensors.items()}
    assert reads.keys() == rows.keys()
    for name, ranges in reads.items():
        ends = [0, *(stop for _, stop in sorted(ranges))]
        assert [start for start, _ in sorted(ranges)] == ends[:-1] and ends[-1] == rows[name]


def test_memory_is_bounded_by_the_slabs(tmp_path: Path) -> None:
    """38 MB of tensors, two threads: each holds a slab, and nothing is kept of what was measured."""
    vocab = 150_000
    source = builders.llama_folder(tmp_path / "model", vocab=vocab, tokenizer=False)
    peaks: list[int] = []

    def progress(_: Progress) -> None:
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.reset_peak()

    tracemalloc.start()
    try:
        quants = ["q8_0", "q4_0", "q5_1", "q6_k"]
        compare(source, quants, Request(no_tokenizer=True), threads=2, progress=progress)
    finally:
        tracemalloc.stop()
    assert len(peaks) > 20
    assert max(peaks[1:]) < 4 << 20  # before the first slab the source is opened


def test_nothing_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    compare(STORIES, ["q8_0"])
    assert list(tmp_path.iterdir()) == []


def test_progress_and_cancelling() -> None:
    seen: list[Progress] = []
    compare(STORIES, ["q8_0", "q4_0"], progress=seen.append)
    assert seen[-1].done == seen[-1].total > 0
    with pytest.raises(Interrupted):
        compare(STORIES, ["q8_0"], progress=lambda _: False)


# ------------------------------------------------------------------------------------------------ the choice


def quant(name: str, nbytes: int, noise: float, memory: int | None = None) -> Quant:
    return Quant(name, nbytes, 4.5, noise, 1.0, 0.1, "blk.0.w", 20.0, 0, {"Q4_0": 1}, memory)


LARGE, MIDDLE, WASTE, SMALL = (
    quant("A", 1000, 1e-5, 2000), quant("B", 600, 1e-3, 1500), quant("C", 800, 2e-3, 1700), quant("D", 400, 1e-2, 1400),
)  # fmt: skip
FOUR = Comparison("model", (LARGE, WASTE, MIDDLE, SMALL), 4096)


def test_a_quant_that_is_larger_and_worse_is_marked() -> None:
    assert [FOUR.beaten_by(each) for each in FOUR.quants] == [None, MIDDLE, None, None]
    assert not LARGE.beats(LARGE)
    assert LARGE.beats(replace(LARGE, bytes=1001)) and LARGE.beats(replace(LARGE, noise=2e-5))


@pytest.mark.parametrize(
    ("fit", "fit_memory", "best"),
    [
        (None, None, LARGE), (1000, None, LARGE), (999, None, MIDDLE), (599, None, SMALL), (399, None, None),
        (None, 1999, MIDDLE), (None, 1499, SMALL), (None, 1399, None), (600, 1400, SMALL), (400, 1399, None),
    ],
)  # fmt: skip
def test_the_best_that_fits(fit: int | None, fit_memory: int | None, best: Quant | None) -> None:
    assert FOUR.best(fit, fit_memory) is best


def test_without_an_estimate_the_file_counts() -> None:
    assert replace(FOUR, quants=(quant("A", 1000, 1e-5),)).best(fit_memory=1000) is not None


def test_plot() -> None:
    lines = plot(FOUR.quants)
    assert lines[1].endswith("A o") and lines[1].split()[0] == "50.0"
    assert sum("o" in line for line in lines) == 3 and sum("x" in line for line in lines) == 1
    assert lines[-1].split() == ["400", "B", "1.00", "kB"]
    columns = [line.index(mark) for line, mark in ((lines[1], "A o"), (next(s for s in lines if "x" in s), "C x"))]
    assert columns[0] > columns[1]


def test_no_plot_that_would_not_read_well() -> None:
    assert plot(FOUR.quants[:2]) == []
    assert plot((LARGE, replace(LARGE, name="E"), SMALL, MIDDLE)) == []  # one on top of the other
    assert plot((replace(LARGE, noise=0.0), MIDDLE, SMALL)) == []  # an exact one has no place on the scale


# ------------------------------------------------------------------------------------------------ the command


def run(capsys: pytest.CaptureFixture[str], *argv: object, code: int = 0) -> tuple[str, str]:
    assert main(["compare", *map(str, argv)]) == code
    captured = capsys.readouterr()
    return captured.out, captured.err


def test_table_plot_and_advice(capsys: pytest.CaptureFixture[str], kjv: Comparison) -> None:
    out, err = run(capsys, KJV, "--fit", "4M")
    lines = out.splitlines()
    assert lines[0].split()[:4] == ["quant", "size", "bits", "SQNR"]
    assert [line.split()[0] for line in lines[1:7]] == list(QUANTS)
    assert "o Q4_K_M" in out and "Q8_0 o" in out
    assert lines[-1].startswith("the least error within a file of 4.00 MB: Q4_K_M (3.58 MB, 26.07 dB, about 7.84 MB")
    assert "pre-tokenizer" in err
    quiet = run(capsys, KJV, "--quiet", "--fit-memory", "7M", "--reserve", "0", "--quants", "q4_0,q2_k")[0]
    assert quiet.splitlines()[-1].startswith("the least error within 7.00 MB of memory: Q2_K")
    quiet = run(capsys, KJV, "--quiet", "--fit-memory", "8.4M", "--quants", "q4_0,q2_k")[0]
    assert quiet.splitlines()[-1].startswith("the least error within 8.40 MB of memory (1.68 MB of it left for")


def test_advice_without_and_beyond_a_limit(capsys: pytest.CaptureFixture[str]) -> None:
    out = run(capsys, STORIES, "-q", "q8_0,q4_0")[0]
    assert out.splitlines()[-1].startswith("closest: Q8_0 (") and "smallest: Q4_0 (" in out
    small = (STORIES, "-q", "q8_0,q4_0", "--fit", "1K")
    assert "none fits a file of 1.00 kB; the smallest is Q4_0" in run(capsys, *small, code=41)[0]
    assert json.loads(run(capsys, *small, "--json", code=41)[0])["best"] is None
    assert "the closest and the smallest: Q8_0 (" in run(capsys, STORIES, "-q", "q8_0")[0]


def test_a_machine_keeps_some_of_its_memory(kjv: Comparison) -> None:
    """A fifth, at most 2 GB, or what was said; the quant needs the rest at most."""
    assert [Choice(kjv, None, n).kept_free for n in (10_000_000, 8 * 10**9, 64 * 10**9)] == [
        2_000_000, 1_600_000_000, 2_000_000_000
    ]  # fmt: skip
    needed = kjv.quants[3].memory or 0
    for memory, reserve in ((needed * 5 // 4 + 2, None), (needed, 0), (needed + 500, 500)):
        assert Choice(kjv, None, memory, reserve).best == kjv.quants[3]
        fewer = Choice(kjv, None, memory - 5, reserve).best
        assert fewer is not None and fewer.bytes < kjv.quants[3].bytes
    assert not Choice(kjv, None, needed, needed + 1).fits and Choice(kjv).fits


def test_all_quants(capsys: pytest.CaptureFixture[str]) -> None:
    out, err = run(capsys, KJV, "-q", "all", "--sample", "8")
    names = {line.split()[0] for line in out.splitlines() if line.split()[:1] and line.split()[0] in RECIPES}
    left = {name for name in RECIPES if f" {name}," in f"{err.rpartition('left out:')[2].rstrip()},"}
    assert {"Q8_0", "IQ4_XS", "Q2_K"} <= names and "IQ2_XXS" in left
    assert names | left == set(RECIPES) and not names & left


def test_a_sample_is_nearly_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "SLAB_NBYTES", 1 << 16)
    whole, part = (compare(KJV, ["q8_0", "q4_k_m"], sample=sample) for sample in (1, 5))
    assert part.sample == 5
    for one, other in zip(whole.quants, part.quants, strict=True):
        assert (one.bytes, one.memory) == (other.bytes, other.memory)
        assert one.noise != other.noise and other.sqnr_db == pytest.approx(one.sqnr_db, abs=0.5)
        assert other.energy == pytest.approx(one.energy, rel=0.1)


def test_the_time_it_takes_is_told_before() -> None:
    told: list[float] = []
    found = compare(KJV, ["q4_k_m"], threads=1, before=told.append)
    assert 0 < told[0] < 10 * found.seconds + 1
    compare(KJV, ["q4_k_m"], threads=1, sample=4, before=told.append)
    assert told[1] == pytest.approx(told[0] / 4)


def test_json(capsys: pytest.CaptureFixture[str], narrow: Path) -> None:
    arguments = (narrow, "--quants", "Q4_K,q8_0,q4_k_m,f32,f16", "--fit", "3M", "--json")
    found = json.loads(run(capsys, *arguments)[0])
    assert found["schema"] == SCHEMA and found["source"] == str(narrow)
    assert (found["fit"], found["fit_memory"], found["context"], found["sample"]) == (3_000_000, None, 512, 1)
    assert found["provenance"]["command"] == shlex.join(["convert", "compare", *map(str, arguments)])
    rows = {row["name"]: row for row in found["quants"]}
    assert list(rows) == ["F32", "F16", "Q8_0", "Q4_K_M"]  # an alias names no second one
    fitting = [name for name, row in rows.items() if row["bytes"] <= 3_000_000]
    assert fitting and found["best"] == fitting[0]
    assert rows["F32"]["beaten_by"] == "F16" and rows["F16"]["beaten_by"] is None  # the source is F16
    assert rows["F16"]["sqnr_db"] is None and rows["F16"]["nmse"] == 0
    assert {event["kind"] for event in rows["Q4_K_M"]["events"]} == {"TypeFallback"}
    assert set(rows["Q8_0"]) == {
        "name", "quant", "effort", "bytes", "bits_per_weight", "nmse", "sqnr_db", "max_abs", "worst_tensor",
        "worst_sqnr_db", "nonfinite", "memory_to_run", "types", "behaviour", "events", "beaten_by",
    }  # fmt: skip


def test_reports(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    reports = [tmp_path / f"report{end}" for end in (".json", ".md", ".txt")]
    out = run(capsys, STORIES, "-q", "q8_0,q4_0", *(part for path in reports for part in ("--report", path)))[0]
    as_json, markdown, text = (path.read_text("utf-8") for path in reports)
    assert [row["name"] for row in json.loads(as_json)["quants"]] == ["Q8_0", "Q4_0"]
    assert markdown.count("\n| ") == 4 and "| Q4_0 |" in markdown
    assert text == f"# convert compare\n{out}"


def test_markdown_of_a_hostile_name(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    source = tmp_path / "<b>*x*|[y](z)`_"
    builders.llama_folder(source)
    run(capsys, source, "-q", "q8_0", "--report", tmp_path / "report.md")
    mark, heading = (tmp_path / "report.md").read_text("utf-8").splitlines()[:2]
    assert mark == "<!-- convert compare -->" and heading.startswith("## ")
    assert not set(heading.removeprefix("## ")) & set("<>*|[]`") and not heading.endswith("_")


def test_page(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    run(capsys, STORIES, "-q", "q8_0,q4_0", "--report", tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text("utf-8")
    assert "<td class=left>Q8_0</td>" in page and 'id="quants"' in page


@pytest.mark.parametrize(
    ("argv", "text"),
    [
        (("--quants", "q4_k_n"), "did you mean"),
        (("--quants", ","), "no quants to compare"),
        (("--quants", "q8_0", "--to", "safetensors"), "--to safetensors"),
        (("--quants", "q8_0", "--dtype", "f16"), "--dtype f16"),
        (("--report", "report.pdf"), "no report ends in '.pdf'"),
        (("--fit", "much"), "is not a size"),
        (("--text", "a.txt"), "--runtime"),
        (("--reserve", "1G"), "--fit-memory"),
        (("--imatrix", str(IMATRIX), "--quants", "copy"), "--imatrix has no effect"),
    ],
)
def test_usage_errors(capsys: pytest.CaptureFixture[str], argv: tuple[str, ...], text: str) -> None:
    out, err = run(capsys, STORIES, *argv, code=UsageError.exit_code)
    assert text in err and not out


def test_a_quant_that_needs_importance(capsys: pytest.CaptureFixture[str]) -> None:
    err = run(capsys, KJV, "-q", "q8_0,iq2_xxs", code=MissingImportance.exit_code)[1]
    assert "pass --imatrix" in err and str(KJV) in err


# ------------------------------------------------------------------------------------------------ behaviour


def test_what_a_runtime_makes_of_them(tmp_path: Path) -> None:
    pytest.importorskip("llama_cpp")
    found = compare(STORIES, ["q8_0", "q4_0"])
    ran = with_behaviour(found, tokens=96, window=96, folder=tmp_path, threads=1)
    assert list(tmp_path.iterdir()) == []
    fine, coarse = (each.behaviour for each in ran.quants)
    assert fine is not None and coarse is not None and fine.mean_kl is not None and coarse.mean_kl is not None
    assert 0 <= fine.mean_kl < coarse.mean_kl
    assert fine.reference_ppl == coarse.reference_ppl
    assert "llama.cpp" in fine.reference_runtime  # the same runtime on both sides: nothing but the quants differs
    with pytest.raises(Interrupted):
        with_behaviour(found, tokens=96, window=96, folder=tmp_path, threads=1, progress=lambda _: False)
    assert list(tmp_path.iterdir()) == []


def test_runtime_on_the_command_line(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """A GGUF is its own reference; perplexity and KL are columns of the table."""
    pytest.importorskip("llama_cpp")
    source, text = tmp_path / "source.gguf", tmp_path / "text.txt"
    converter.convert(STORIES, source)
    text.write_text("Once upon a time there was a little girl who had a red ball. " * 8)
    argv = (source, "-q", "q8_0,f32", "--runtime", "--text", text, "--tokens", 64, "--context", 64, "-j", 1)
    found = json.loads(run(capsys, *argv, "--json")[0])
    assert [row["behaviour"]["tokens"] for row in found["quants"]] == [64, 64]
    assert found["quants"][0]["behaviour"]["mean_kl"] == 0.0
    head = run(capsys, *argv)[0].splitlines()
    assert "perplexity" in head[0] and "mean KL" in head[0]
    assert any(line.startswith("perplexity of the source: ") for line in head)


def test_text_that_is_none(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "text").write_bytes(np.arange(128, 256, dtype=np.uint8).tobytes())
    err = run(capsys, STORIES, "--runtime", "--text", tmp_path / "text", code=UsageError.exit_code)[1]
    assert "is not UTF-8 text" in err
