"""Mixtures to size: sizes that are kept, probes that leave nothing behind, and what cannot be."""

from __future__ import annotations

import json
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from support.paths import FIXTURES

from converter.cli.main import main
from converter.errors import Cancelled, QuantizationError, UsageError
from converter.formats.registry import open_checkpoint
from converter.mixing import groups, lab, search
from converter.mixing.goals import Goal
from converter.mixing.groups import grouped
from converter.mixing.measured import errors_of
from converter.mixing.probes import bench
from converter.mixing.results import Found
from converter.mixing.search import mixture_to_size
from converter.mixture import Mixture, Rule
from converter.pipeline import convert, plan
from converter.quant.imatrix_writer import Importance, Measured
from converter.quant.recipe_files import read_recipe
from converter.request import Request, Source
from converter.runtimes.behaviour import behaviour
from converter.storage import output
from converter.tensors.dtypes import DTYPES
from converter.verify.verifier import verify

STORIES, KJV = FIXTURES / "stories260K", FIXTURES / "kjv-llama"
SIZE = 300_000


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lab, "CHUNKS", 2)


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Found:
    pytest.importorskip("llama_cpp")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lab, "CHUNKS", 2)
        folder = tmp_path_factory.mktemp("probes")
        made = mixture_to_size(STORIES, Goal(size=SIZE), threads=1, folder=folder)
    assert not list(folder.iterdir()), "nothing stays"
    return made


def test_the_file_has_the_size_and_the_types(found: Found, tmp_path: Path) -> None:
    made = convert(STORIES, tmp_path / "a.gguf", recipe=found.mixture)
    assert made.total_bytes == found.best.nbytes <= SIZE
    assert made.total_bytes > 0.97 * SIZE, "what is left is spent"
    proof = verify(STORIES, tmp_path / "a.gguf")
    assert proof.passed and proof.summary()["reproduced"] == proof.summary()["tensors"]


def test_it_is_no_worse_than_the_quant(found: Found) -> None:
    mixture, quant = found.candidates
    assert found.best.measured == min(mixture.measured or 0, quant.measured or 0)
    assert mixture.predicted <= quant.predicted and quant.nbytes <= SIZE
    assert found.best.measured == pytest.approx(found.best.predicted, rel=0.5), "KL adds up"


def test_every_rule_has_its_reason(found: Found) -> None:
    assert sum(rule.kl or 0 for rule in found.mixture.rules) == pytest.approx(found.best.predicted)
    for rule in found.mixture.rules:
        assert rule.bytes and rule.error is not None and rule.sensitivity is not None
        assert rule.kl == pytest.approx(rule.error * rule.sensitivity)
    assert found.mixture.architecture == "llama" and "text of its own" in found.mixture.origin


def test_a_quant_that_is_better_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    """With sensitivities turned around the mixture is bad, and measuring both shows it."""
    pytest.importorskip("llama_cpp")
    usual = search._sensitivities

    def wrong(*given: object) -> dict[str, float]:
        own = usual(*given)  # type: ignore[arg-type]
        return {name: 1e-9 / (each + 1e-9) for name, each in own.items()}

    monkeypatch.setattr(search, "_sensitivities", wrong)
    made = mixture_to_size(STORIES, Goal(size=SIZE), threads=1)
    mixture, quant = made.candidates
    assert (mixture.measured or 0) > (quant.measured or 0) and made.taken == quant.name == made.mixture.base
    types = []
    for request in (Request(recipe=made.mixture), Request(quant=quant.name)):
        planned = plan(STORIES, "x.gguf", request)
        planned.checkpoint.close()
        types.append({step.name: step.type for step in planned.steps})
    assert types[0] == types[1]


@pytest.mark.parametrize("size", [310_000, 360_000, 420_000])
def test_without_a_runtime_no_tensor_gets_worse(size: int, tmp_path: Path) -> None:
    """And the model does not, either, where llama.cpp is there to tell."""
    made = mixture_to_size(STORIES, Goal(size=size), probe=False, threads=1)
    mixture, quant = made.candidates
    assert made.probed is None and mixture.measured is None and quant.nbytes <= mixture.nbytes <= size
    plans = [plan(STORIES, tmp_path / "x.gguf", request) for request in
             (Request(quant=quant.name), Request(recipe=made.mixture))]  # fmt: skip
    for each in plans:
        each.checkpoint.close()
    bits = [[DTYPES[step.type].bits_per_weight for step in each.steps] for each in plans]
    assert all(after >= before for before, after in zip(*bits, strict=True)) and bits[0] != bits[1]
    pytest.importorskip("llama_cpp")
    for name, request in (("quant", Request(quant=quant.name)), ("mixture", Request(recipe=made.mixture))):
        convert(STORIES, tmp_path / f"{name}.gguf", request)
    convert(STORIES, tmp_path / "source.gguf")
    found = [behaviour(tmp_path / "source.gguf", tmp_path / f"{name}.gguf", threads=1) for name in ("quant", "mixture")]
    assert (found[1].mean_kl or 0) < (found[0].mean_kl or 0)


def test_the_bench_is_put_right_again(tmp_path: Path) -> None:
    harm = plan(STORIES, tmp_path / "h.gguf", recipe=Mixture("Q8_0", (Rule(".*", "Q3_K"),)))
    steps = {step.name: step for step in harm.steps if step.name.endswith("attn_q.weight")}
    with harm.checkpoint, bench(Source(STORIES), Request(), tmp_path, 1) as file:
        before = file.path.read_bytes()
        with pytest.raises(ZeroDivisionError), file.harmed(steps):
            during = file.path.read_bytes()
            raise ZeroDivisionError
        assert len(during) == len(before) and during != before == file.path.read_bytes()


def test_errors_are_those_of_the_whole_tensor() -> None:
    """Sampled rows against all of them, by the verifier's own measure."""
    harm = plan(KJV, "h.gguf", recipe=Mixture("Q8_0", (Rule(".*", "Q3_K"),)))
    step = next(step for step in harm.steps if step.name == "blk.2.ffn_up.weight")
    with harm.checkpoint:
        error = errors_of({step.name: {step.type: step}}, 1)[step.name]["Q3_K"]
    assert error == pytest.approx(0.15**2, rel=0.06)


def test_groups() -> None:
    names = [f"blk.{n}.{stem}.weight" for n in range(30) for stem in ("a", "b", "c")] + ["output.weight"]
    found = grouped(names, 30)
    assert len(found) == 10 and found[0].blocks == "0-9" and found[-1].names == ("output.weight",)
    assert [len(each.names) for each in grouped(names[:9], 30)] == [1] * 9, "few are probed one by one"


def test_groups_share_what_they_cost(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a large model: a probe for each role in each third of the depth, types by group but for the last bytes."""
    pytest.importorskip("llama_cpp")
    monkeypatch.setattr(groups, "FEW", 8)
    made = mixture_to_size(STORIES, Goal(size=SIZE), threads=1)
    assert made.probed is not None and len(made.probed.kl) == 1 + 6 * 3, "ffn_down has one type"
    mixture, quant = made.candidates
    assert 0.97 * SIZE < mixture.nbytes <= SIZE and (mixture.measured or 0) < (quant.measured or 0)


def misleading(path: Path) -> Path:
    """An importance matrix that says that of every weight one column alone counts."""
    planned = plan(STORIES, path.with_name("x.gguf"))
    with planned.checkpoint:
        rows = {step.name: step.shape[-1] for step in planned.steps if len(step.shape) > 1}
    counts = np.array([1], np.int64)
    entries = {name: Measured(np.eye(1, row)[0] + 1e-9, counts) for name, row in rows.items()}
    output.write(Importance(entries, ("none sha256:00",), 512).layout(path))
    return path


def test_an_importance_matrix_that_harms_is_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It is searched with and without; what measures better is made, and that is told."""
    pytest.importorskip("llama_cpp")
    monkeypatch.setattr(groups, "FEW", 8)
    matrix, out = misleading(tmp_path / "i.gguf"), tmp_path / "o.gguf"
    line = [str(STORIES), str(out), "--target-size", str(SIZE), "--imatrix", str(matrix), "-j", "1"]
    assert main(line) == 0
    said, told = capsys.readouterr()
    assert "the importance matrix is left out" in said and "38 probes" in told
    assert "mixture, no imatrix (taken)" in said
    with open_checkpoint(out) as made:
        assert not any(key.startswith("quantize.imatrix") for key in made.config)
    assert verify(STORIES, out).passed


def test_the_better_of_both_is_taken(found: Found) -> None:
    def measured(*values: float) -> Found:
        own = [replace(each, measured=value) for each, value in zip(found.candidates, values, strict=True)]
        return replace(found, candidates=tuple(own), taken=min(own, key=lambda each: each.measured or 0).name)

    asked = Request(imatrix=Path("i.gguf"), include_weights=("blk",), effort=1)
    kept, left = (search.better(measured(2.0, 3.0), measured(*other)) for other in ((2.5, 3.5), (1.5, 3.5)))
    assert (kept.imatrix, kept.taken, len(kept.candidates)) == (True, "mixture", 4)
    assert kept.settled(asked) == asked.replace(recipe=kept.mixture)
    assert (left.imatrix, left.taken, left.best.measured) == (False, "mixture, no imatrix", 1.5)
    assert left.settled(asked) == Request(effort=1, recipe=left.mixture)
    assert left.mixture.origin.endswith("better without the importance matrix")


# ------------------------------------------------------------------------------------------------ sizes


def test_goals() -> None:
    top = plan(KJV, "h.gguf", quant="f16")
    with top.checkpoint:
        stored = sum(step.bytes for step in top.steps)
        assert Goal(size=5).nbytes(top) == 5
        half = Goal(bits=Fraction(8)).nbytes(top)
        assert half == top.total_bytes - stored + top.n_parameters
        room = Goal(memory=100_000_000, context=256).nbytes(top)
        assert Goal(memory=100_000_000, context=512).nbytes(top) < room
        assert Goal(memory=100_000_000, context=256, reserve=0).nbytes(top) - room == 20_000_000
        with pytest.raises(UsageError, match="nothing is left"):
            Goal(memory=1_000_000).nbytes(top)


@pytest.mark.parametrize(("size", "said"), [(1000, "too few: the smallest mixture has"), (10**9, "say -q f16")])
def test_sizes_that_cannot_be(size: int, said: str) -> None:
    with pytest.raises(UsageError, match=said) as raised:
        mixture_to_size(STORIES, Goal(size=size))
    assert "the smallest mixture has 242,624" in str(raised.value)


def test_a_source_that_is_quantized(tmp_path: Path) -> None:
    convert(STORIES, tmp_path / "q.gguf", quant="q8_0")
    with pytest.raises(QuantizationError):
        mixture_to_size(tmp_path / "q.gguf", Goal(size=SIZE))


def test_it_can_be_stopped(tmp_path: Path) -> None:
    with pytest.raises(Cancelled):
        mixture_to_size(STORIES, Goal(size=SIZE), folder=tmp_path, progress=lambda _: False)
    assert not list(tmp_path.iterdir())


# --------------------------------------------------------------------------------------- the command line


def test_the_commands(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    goal = ("--target-size", str(SIZE), "--no-runtime", "-j", "1")
    out, file = str(tmp_path / "o.gguf"), str(tmp_path / "r.toml")
    assert main(["recipe", str(STORIES), *goal, "-o", file]) == 0
    assert "mixture (taken)" in capsys.readouterr().out
    assert main(["plan", str(STORIES), out, *goal]) == 0
    assert "sensitivities assumed" in capsys.readouterr().out
    assert main([str(STORIES), out, *goal, "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["total_bytes"] == said["mixture"]["candidates"][0]["bytes"] <= SIZE
    assert convert(STORIES, tmp_path / "again.gguf", recipe=read_recipe(Path(file))).total_bytes == said["total_bytes"]
    assert (tmp_path / "again.gguf").read_bytes() == (tmp_path / "o.gguf").read_bytes()


def test_what_would_fail_later_fails_before_the_probes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "there.gguf").touch()
    goal = ("--target-size", str(SIZE))
    assert main([str(STORIES), str(tmp_path / "there.gguf"), *goal]) == 53
    assert main(["recipe", str(STORIES), "-o", str(tmp_path / "there.gguf"), *goal]) == 53
    assert main([str(STORIES), str(tmp_path / "out.safetensors"), *goal]) == 2
    assert "probes" not in capsys.readouterr().err
    assert main(["plan", str(STORIES), str(tmp_path / "there.gguf"), *goal, "--no-runtime"]) == 0, "it writes nothing"


@pytest.mark.slow
def test_the_same_machine_finds_the_same(found: Found, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(STORIES), str(tmp_path / "o.gguf"), "--target-size", str(SIZE), "-j", "1", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)["mixture"]
    assert said["recipe"] == found.mixture.as_dict()
    assert len(said["probes"]["kl"]) == 31, "rows of 172 fit no type but F16: these are not open"


@pytest.mark.parametrize(
    "words",
    [
        ("--target-size", "300K", "-q", "q8_0"), ("--context", "8k"), ("--reserve", "1GB"), ("--text", "x"),
        ("--no-runtime",),
        ("--target-bpw", "4.5", "--context", "8k"), ("--target-bpw", "x"), ("--target-size", "1M", "--target-bpw", "4"),
    ],
)  # fmt: skip
def test_what_cannot_be_meant(words: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(STORIES), str(tmp_path / "o.gguf"), *words]) == 2
    assert capsys.readouterr().err
