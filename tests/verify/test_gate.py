"""The gate: thresholds from flags and from verify.toml, and the comparison with an earlier report."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from support.verifications import behaviour, exact, fidelity, verification

from converter.errors import ConverterError, CorruptFile, UnsupportedFeature, UsageError
from converter.runtimes.behaviour import Behaviour
from converter.verify.gate import (
    MODEL_FIGURES,
    MODEL_METRICS,
    TENSOR_FIGURES,
    TENSOR_METRICS,
    Figure,
    Gate,
    against_baseline,
    gated,
    judge,
    read_baseline,
    read_gate,
)
from converter.verify.results import Fidelity, Verification


def gate(tmp_path: Path, text: str) -> Gate:
    path = tmp_path / "verify.toml"
    path.write_text(text, "utf-8")
    return read_gate(path)


def subjects(tmp_path: Path, text: str, checked: Verification) -> list[str]:
    return [finding.subject for finding in judge(checked, gate(tmp_path, text))]


# ------------------------------------------------------------------------------------------------ thresholds


def test_a_threshold_for_every_tensor(tmp_path: Path) -> None:
    checked = verification(2, fidelity("bad", noise=1e5))
    findings = judge(checked, gate(tmp_path, "min_sqnr = 15"))
    assert [(f.check, f.subject, f.failed) for f in findings] == [("threshold", "bad", True)]
    assert "1.175" in findings[0].message and "15 dB" in findings[0].message


def test_first_pattern_before_type_before_all(tmp_path: Path) -> None:
    text = """
        max_nmse = 1e-9
        [type.q4_k]
        max_nmse = 0.01
        [[tensor]]
        pattern = 'ATTN_Q'
        max_nmse = 1e-8
        [[tensor]]
        pattern = 'attn'
        max_nmse = 1.0
        max_abs = 0.1
    """
    tensors = (fidelity("blk.0.attn_q"), fidelity("blk.0.attn_k"), fidelity("ffn"), fidelity("ffn_q6", type="Q6_K"))
    findings = judge(Verification("a", "b", tensors, ()), gate(tmp_path, text))
    assert [(f.subject, f.message.rpartition("(")[2]) for f in findings] == [
        ("blk.0.attn_q", "max_nmse)"),
        ("blk.0.attn_q", "max_abs)"),
        ("blk.0.attn_k", "max_abs)"),
        ("ffn_q6", "max_nmse)"),
    ]


def test_names_in_capitals_are_found(tmp_path: Path) -> None:
    checked = Verification("a", "b", (fidelity("Conv1.BN.Weight"),), ())
    assert subjects(tmp_path, "[[tensor]]\npattern='BN'\nmin_sqnr=99", checked) == ["Conv1.BN.Weight"]


def test_a_pattern_that_matches_nothing_fails(tmp_path: Path) -> None:
    (finding,) = judge(verification(1), gate(tmp_path, "[[tensor]]\npattern='ffn_dwon'\nmin_sqnr=1"))
    assert finding.failed and finding.subject == "ffn_dwon" and "no tensor" in finding.message


def test_a_type_that_no_tensor_has_fails(tmp_path: Path) -> None:
    wanted = gate(tmp_path, "[type.Q5_K]\nmin_sqnr = 1\n[type.Q4_K]\nmin_sqnr = 1")
    (finding,) = judge(verification(2), wanted)
    assert finding.failed and finding.subject == "type.Q5_K" and "there are Q6_K, Q4_K, F32" in finding.hint


def test_exact_tensors_pass_every_threshold_on_errors(tmp_path: Path) -> None:
    zeros = fidelity("zeros", exact=True, noise=0.0, energy=0.0, cosine=math.nan, max_abs=0.0, max_rel=0.0, p999=0.0)
    checked = Verification("a", "b", (exact("norm"), zeros), ())
    strict = "min_sqnr=200\nmax_nmse=0\nmax_rmse=0\nmax_abs=0\nmax_rel=0\nmax_p999=0\nmin_cosine=1\nmax_differing=0"
    assert subjects(tmp_path, strict, checked) == []


def test_nan_is_beyond_every_threshold(tmp_path: Path) -> None:
    broken = fidelity(noise=math.nan, cosine=math.nan, max_abs=math.nan, max_rel=math.nan, p999=math.nan)
    checked = Verification("a", "b", (broken,), ())
    loose = "min_sqnr=-1e9\nmax_nmse=1e9\nmax_rmse=1e9\nmax_abs=1e9\nmax_rel=1e9\nmax_p999=1e9\nmin_cosine=-1"
    assert len(subjects(tmp_path, loose, checked)) == 7


@pytest.mark.parametrize("metric", TENSOR_METRICS, ids=lambda metric: metric.name)
def test_every_tensor_metric_has_two_sides(metric: Any, tmp_path: Path) -> None:
    tensor = fidelity(differing=3, nonfinite=2)
    value, step = float(getattr(tensor, metric.path)), -1e-6 if metric.lower_limit else 1e-6
    checked = Verification("a", "b", (tensor,), ())
    assert subjects(tmp_path, f"{metric.name} = {value + step!r}", checked) == []
    assert subjects(tmp_path, f"{metric.name} = {value - step!r}", checked) == [tensor.name]


@pytest.mark.parametrize("metric", MODEL_METRICS, ids=lambda metric: metric.name)
def test_every_model_metric_has_two_sides(metric: Any, tmp_path: Path) -> None:
    checked = verification(1, behaviour=behaviour(cosine=0.98))
    part, _, name = metric.path.partition(".")
    value = float(checked.summary()[name] if part == "summary" else getattr(checked.behaviour, name))
    step = -1e-6 if metric.lower_limit else 1e-6
    assert subjects(tmp_path, f"[model]\n{metric.name} = {value + step!r}", checked) == []
    assert subjects(tmp_path, f"[model]\n{metric.name} = {value - step!r}", checked) == [metric.name]


def test_what_was_not_measured_fails(tmp_path: Path) -> None:
    for checked in (verification(1), verification(1, behaviour=Behaviour("torch", "torch", 9))):
        (finding,) = judge(checked, gate(tmp_path, "[model]\nmax_kl = 0.1"))
        assert finding.failed and finding.subject == "max_kl" and "--runtime" in finding.hint


def test_flags_replace_the_file(tmp_path: Path) -> None:
    both = gate(tmp_path, "min_sqnr = 99\n[model]\nmax_kl = 9").with_flags(
        {"min_sqnr": 10, "max_kl": 0.001, "max_nmse": None}
    )
    assert both.tensors == {"min_sqnr": 10.0} and both.model == {"max_kl": 0.001}
    assert [f.subject for f in judge(verification(1, behaviour=behaviour()), both)] == ["max_kl"]
    with pytest.raises(UsageError, match="min_sqnr"):
        Gate().with_flags({"min_sqnr": math.nan})


def test_metric_names_say_their_direction_and_are_fields() -> None:
    names = [metric.name for metric in (*TENSOR_METRICS, *MODEL_METRICS)]
    assert len(set(names)) == len(names) and all(name.startswith(("min_", "max_")) for name in names)
    assert all(hasattr(Fidelity, metric.path) or metric.path in Fidelity.__annotations__ for metric in TENSOR_METRICS)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("min_sqnrr = 1", "'min_sqnrr'; known: min_sqnr"),
        ("max_kl = 1", r"max_kl is a figure of the whole model, it stands under \[model\]"),
        ("[model]\nmin_sqnr = 1", r"\[model\]: min_sqnr is a figure of a tensor"),
        ("[model]\nx = 1", "'x'; known: min_model_sqnr"),
        ("[type.Q4_Z]\nmin_sqnr = 1", "unknown type 'Q4_Z'"),
        ("[type]\nQ4_K = 1", r"type.Q4_K is a table"),
        ("type = 1", r"as in \[type\]"),
        ("model = 1", r"as in \[model\]"),
        ("min_sqnr = '20'", "min_sqnr = '20' is not a finite number"),
        ("min_sqnr = true", "not a finite number"),
        ("min_sqnr = nan", "not a finite number"),
        ("[type.Q4_K]\nmin_sqnr = inf", r"\[type.Q4_K\]: min_sqnr"),
        ("[tensor]\npattern = 'x'", r"begins with \[\[tensor\]\]"),
        ("[[tensor]]\nmin_sqnr = 1", "number 1 needs a pattern"),
        ("[[tensor]]\npattern = 'x'", "at least one threshold"),
        ("tensor = [1]", "is a table"),
        ("[[tensor]]\npattern = '('\nmin_sqnr = 1", r"pattern '\('"),
        ("[[tensor]]\npattern = 'x'\nmin_sqn = 1", r"\[tensor 1\]: unknown key 'min_sqn'"),
        ("min_sqnr = ", "bad TOML"),
        ("a = " + "[\n" * 5000, "bad TOML"),
    ],
)
def test_mistakes_name_file_and_key(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(UsageError, match=said) as error:
        gate(tmp_path, text)
    assert "verify.toml" in str(error.value) and len(str(error.value).splitlines()) <= 3


def test_a_gate_of_any_size_is_not_read(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="larger"):
        gate(tmp_path, "#" * (1 << 20) + "\n")


# ------------------------------------------------------------------------------------------------ baseline


def baseline(tmp_path: Path, checked: Verification | dict[str, Any]) -> dict[str, Any]:
    path = tmp_path / "report.json"
    path.write_text(json.dumps(checked.as_dict() if isinstance(checked, Verification) else checked), "utf-8")
    return read_baseline(path)


def test_a_run_against_its_own_report(tmp_path: Path) -> None:
    checked = verification(3, exact("norm"), fidelity("inf", energy=0.0), behaviour=behaviour(cosine=0.99))
    assert against_baseline(checked, baseline(tmp_path, checked), 0.0) == []


def test_tensors_that_got_worse_are_named_with_their_types(tmp_path: Path) -> None:
    before = baseline(tmp_path, Verification("a", "b", (fidelity("x", type="Q6_K"), fidelity("y")), ()))
    now = Verification("a", "b", (fidelity("x", noise=800.0), fidelity("y")), ())
    (finding, overall) = against_baseline(now, before, 0.01)
    assert finding.failed and finding.check == "baseline" and finding.subject == "x" and "nmse" in finding.message
    assert finding.hint == "it was 'Q6_K', it is Q4_K"
    assert overall.subject == "summary.nmse"


def test_a_report_of_another_quant_is_one_finding(tmp_path: Path) -> None:
    """By what the files say, and where an old report does not say it, by the types of most tensors."""
    named = baseline(tmp_path, verification(3, quant="Q4_K_M"))
    (finding,) = against_baseline(verification(3, quant="Q3_K_M"), named, 0.01)
    assert finding.failed and "it was Q4_K_M, it is Q3_K_M" in finding.message
    old = verification(3).as_dict()
    del old["quant"]
    smaller = verification(3)
    smaller = replace(smaller, quant="Q2_K", tensors=tuple(
        each if each.exact else replace(each, type="Q2_K", noise=40 * each.noise) for each in smaller.tensors
    ))  # fmt: skip
    (finding,) = against_baseline(smaller, baseline(tmp_path, old), 0.01)
    assert finding.failed and "it is Q2_K" in finding.message


def test_tolerance_is_a_share(tmp_path: Path) -> None:
    before = baseline(tmp_path, Verification("a", "b", (fidelity(),), ()))
    slightly = Verification("a", "b", (fidelity(noise=fidelity().noise * 1.009),), ())
    assert against_baseline(slightly, before, 0.01) == []
    assert {f.subject for f in against_baseline(slightly, before, 0.005)} == {fidelity().name, "summary.nmse"}


def test_better_is_no_finding(tmp_path: Path) -> None:
    before = baseline(tmp_path, verification(1, behaviour=behaviour()))
    better = verification(1, behaviour=behaviour(mean_kl=0.001, top1=0.99, candidate_ppl=10.1))
    assert against_baseline(better, before, 0.0) == []


@pytest.mark.parametrize(
    "changes", [{"mean_kl": 0.005}, {"top1": 0.96}, {"candidate_ppl": 10.4}, {"cosine": 0.9}, {"mean_kl": math.nan}]
)
def test_figures_of_the_model(tmp_path: Path, changes: dict[str, float]) -> None:
    before = baseline(tmp_path, verification(1, behaviour=behaviour(cosine=0.99)))
    now = verification(1, behaviour=behaviour(**{"cosine": 0.99, **changes}))
    assert [f.subject for f in against_baseline(now, before, 0.01)] == [f"behaviour.{next(iter(changes))}"]


def test_tensors_come_and_go(tmp_path: Path) -> None:
    before = baseline(tmp_path, Verification("a", "b", (fidelity("x"), fidelity("gone")), ()))
    findings = against_baseline(Verification("a", "b", (fidelity("x"), fidelity("new")), ()), before, 0.01)
    assert [(f.subject, f.failed) for f in findings] == [("gone", True), ("new", False)]


def test_a_runtime_that_is_left_out_fails(tmp_path: Path) -> None:
    before = baseline(tmp_path, verification(1, behaviour=behaviour()))
    findings = against_baseline(verification(1), before, 0.01)
    assert all(f.failed and "--runtime" in f.hint for f in findings)
    assert [f.subject for f in findings] == ["behaviour.mean_kl", "behaviour.top1", "behaviour.candidate_ppl"]


def test_a_larger_file_is_worse(tmp_path: Path) -> None:
    before = baseline(tmp_path, Verification("a", "b", (fidelity(),), ()))
    larger = Verification("a", "b", (fidelity(bytes=2 * fidelity().bytes),), ())
    assert [f.subject for f in against_baseline(larger, before, 0.01)] == ["summary.bits_per_weight"]


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"schema": 2}, UnsupportedFeature),
        ({"schema": True}, CorruptFile),
        ({"schema": "1"}, CorruptFile),
        ({"tensors": {}}, CorruptFile),
        ({"tensors": [1]}, CorruptFile),
        ({"tensors": [{"name": 1}]}, CorruptFile),
        ({"tensors": [{"name": "x"}, {"name": "x"}]}, CorruptFile),
        ({"tensors": [{"name": "x", "nmse": "0"}]}, CorruptFile),
        ({"tensors": [{"name": "x", "max_abs": True}]}, CorruptFile),
        ({"summary": None}, CorruptFile),
        ({"summary": {"nmse": []}}, CorruptFile),
        ({"behaviour": {"top1": {}}}, CorruptFile),
    ],
)
def test_reports_that_are_none(tmp_path: Path, change: dict[str, Any], error: type[ConverterError]) -> None:
    with pytest.raises(error, match=r"report\.json"):
        baseline(tmp_path, {**verification(1).as_dict(), **change})


# ------------------------------------------------------------------------------------------------ documentation


def test_every_key_is_documented() -> None:
    shown = (Path(__file__).parent.parent.parent / "docs/verify.md").read_text("utf-8")
    for metrics in (TENSOR_METRICS, MODEL_METRICS):
        assert "\n".join(f"| `{m.name}` | `{m.path}` | {m.unit} | {m.help} |" for m in metrics) in shown


def test_the_documented_gates_are_gates(tmp_path: Path) -> None:
    docs = Path(__file__).parent.parent.parent / "docs"
    example = (docs / "verify.md").read_text("utf-8").partition("```toml\n")[2].partition("```")[0]
    assert gate(tmp_path, example).model == {"max_bits_per_weight": 5.0, "max_ppl_increase": 0.01}
    assert read_gate(docs / "ci/verify.toml").types["Q4_K"] == {"min_sqnr": 20.0}


# ------------------------------------------------------------------------------------------------ both


def test_gated_adds_what_a_threshold_and_an_earlier_report_say(tmp_path: Path) -> None:
    before = verification(1)
    worse = verification(1, fidelity("new"))
    found = gated(worse, gate(tmp_path, "max_nmse = 1e-9"))
    assert found.findings and {finding.check for finding in found.findings} == {"threshold"} and not found.passed
    found = gated(worse, Gate(), before.as_dict(), tolerance=0.01)
    assert ("baseline", "new") in {(finding.check, finding.subject) for finding in found.findings}
    assert gated(before, Gate(), before.as_dict()).findings == () and gated(before, Gate()) == before


# ------------------------------------------------------------------------------------------ each number at its edge

#: What a figure of a baseline may differ by without being worse, and the value that is best.
FLOORS = {
    "nmse": (1e-12, 0.0),
    "max_abs": (1e-12, 0.0),
    "nonfinite": (0.0, 0.0),
    "summary.nmse": (1e-12, 0.0),
    "summary.bits_per_weight": (0.0, 0.0),
    "behaviour.mean_kl": (1e-4, 0.0),
    "behaviour.top1": (1e-3, 1.0),
    "behaviour.candidate_ppl": (0.0, 0.0),
    "behaviour.cosine": (1e-4, 1.0),
}


@pytest.mark.parametrize("figure", [*TENSOR_FIGURES, *MODEL_FIGURES], ids=lambda figure: figure.path)
@pytest.mark.parametrize("tolerance", [0.0, 0.25])
def test_how_much_worse_than_the_baseline_is_worse(figure: Figure, tolerance: float) -> None:
    floor, best = FLOORS[figure.path]
    away = -1 if best else 1  # the direction in which things get worse
    before = best + away * 0.5 * (floor or 1.0)
    edge = before + away * (0.5 * (floor or 1.0) * tolerance + floor)
    step = 1e-3 * (floor or 1.0)
    assert not figure.worse(edge - away * step, before, tolerance)
    assert figure.worse(edge + away * step, before, tolerance)
    assert figure.worse(float("nan"), before, tolerance)
    assert not figure.worse(best, before, tolerance)


def test_a_gate_has_a_quarter_of_a_megabyte_at_most(tmp_path: Path) -> None:
    path = tmp_path / "verify.toml"
    line = "min_sqnr = 15\n"
    path.write_text(line + "\n" * ((1 << 18) - len(line)))
    assert read_gate(path).tensors == {"min_sqnr": 15}
    path.write_text(line + "\n" * ((1 << 18) - len(line) + 1))
    with pytest.raises(UsageError, match="larger than 262144 bytes"):
        read_gate(path)
    path.write_text(line + "#" * 512)
    assert read_gate(path).tensors == {"min_sqnr": 15}
    path.write_text(line + "#" * 513)
    with pytest.raises(UsageError, match="a line of more than 512 characters"):
        read_gate(path)


@pytest.mark.parametrize(
    "text",
    [
        f"max_abs = 1{'0' * 400}",
        f"max_abs = -1{'0' * 400}",
        f"max_abs = 0x{'f' * 490}",
        f"[model]\nmax_bytes = 1{'0' * 400}",
        f"[[tensor]]\npattern = 'x'\nmax_abs = 1{'0' * 400}",
        "max_abs = 1e999",
    ],
)
def test_numbers_beyond_all_floats(text: str, tmp_path: Path) -> None:
    path = tmp_path / "verify.toml"
    path.write_text(text)
    with pytest.raises(UsageError, match="is not a finite number"):
        read_gate(path)


def test_a_model_has_no_more_patterns_than_tensors(tmp_path: Path) -> None:
    path, entry = tmp_path / "verify.toml", "[[tensor]]\npattern='x'\nmax_abs=1\n"
    path.write_text(entry * 2048)
    assert len(read_gate(path).patterns) == 2048
    path.write_text(entry * 2049)
    with pytest.raises(UsageError, match=r"verify\.toml: 2049 patterns are refused, 2048 are allowed"):
        read_gate(path)
