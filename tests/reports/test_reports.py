"""Reports of a verification as text, Markdown, JUnit XML and JSON, with names that mean harm."""

from __future__ import annotations

import json
import math
import re
from dataclasses import fields, replace
from html.parser import HTMLParser
from pathlib import Path
from unittest.mock import ANY
from xml.etree import ElementTree as xml

import pytest
from support.verifications import HOSTILE, behaviour, exact, fidelity, verification

from converter.errors import OutputError, UsageError
from converter.findings import CHECKS, Finding
from converter.reports.files import REPORTS, check_reports, write_report
from converter.reports.findings import SHOWN, bounded
from converter.reports.verification import WORST, as_json, junit, markdown, text
from converter.runtimes.behaviour import Behaviour
from converter.verify.results import SCHEMA, Fidelity, Verification

BAD = "blk.2.attn_q.weight"
FINDINGS = (
    Finding("metadata", "general.name", "is 'a', the source gives 'b'", failed=False),
    Finding("values", BAD, "error 3 times what is expected", hint="the rope permutation may be missing"),
    Finding("missing", "output.weight", "is not there"),
)
FAILED = verification(4, findings=FINDINGS, behaviour=behaviour())
EVIL = verification(1, fidelity(HOSTILE), findings=(Finding("values", HOSTILE, HOSTILE, hint=HOSTILE),))
MANY = Verification("a", "b", (), tuple(Finding("values", f"t{at}", "bad") for at in range(SHOWN + 5)))


def test_failures_come_first_and_many_are_counted() -> None:
    shown = list(bounded((*FINDINGS, *MANY.findings)))
    assert [f.failed for f in shown if isinstance(f, Finding)] == [True] * (2 + SHOWN - 1) + [False]
    assert shown[-1] == "6 more of values; the JSON report lists all"


# ------------------------------------------------------------------------------------------------ text


def test_text_says_findings_then_the_worst_then_the_verdict() -> None:
    lines = text(FAILED).splitlines()
    assert lines[0].startswith("failed  values      blk.2.attn_q.weight: error 3 times")
    assert lines[2].startswith("note    metadata")
    assert lines[-1] == "FAILED: model-q4.gguf against model"
    worst = [line.split()[0] for line in lines if line.startswith("blk.")]
    assert worst[:2] == ["blk.3.attn_q.weight", "blk.2.attn_q.weight"] and len(worst) == 8
    assert "attn_norm" not in text(FAILED), "exact tensors are not among the worst"


def test_text_of_the_whole_model() -> None:
    shown = text(FAILED)
    assert re.search(r"^tensors +13: 4 exact, 13 reproduced, 1 failed$", shown, re.M)
    assert re.search(r"^perplexity +10 to 10.2 \(\+2.00 %\)$", shown, re.M)
    assert re.search(r"^same top token +97 %$", shown, re.M)
    assert re.search(r"^Q4_K +4 +295 kB +4.500 +23.\d\d +22.\d\d$", shown, re.M)


def test_text_without_tensors_or_behaviour() -> None:
    shown = text(Verification("a", "b", (), ()))
    assert shown.endswith("PASSED: b against a") and "perplexity" not in shown
    assert re.search(r"^worst tensor +none$", text(Verification("a", "b", (exact("norm"),), ())), re.M)


def test_text_has_no_control_characters() -> None:
    assert all(line.isprintable() for line in text(EVIL).splitlines())


# ------------------------------------------------------------------------------------------------ Markdown


def rows(shown: str, section: str) -> list[list[str]]:
    """Cells of the table under a heading, without its head."""
    lines = shown.partition(f"### {section}\n\n")[2].partition("\n\n")[0].splitlines()
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def test_markdown() -> None:
    shown = markdown(FAILED)
    assert shown.startswith("## ❌ FAILED: `model-q4.gguf` against `model`\n")
    assert [row[1:3] for row in rows(shown, "Findings")] == [
        ["values", f"`{BAD}`"], ["missing", "`output.weight`"], ["metadata", "`general.name`"]
    ]  # fmt: skip
    assert rows(shown, "Worst tensors")[0][0] == "`blk.3.attn_q.weight`"
    assert {len(row) for row in rows(shown, "Worst tensors")} == {9}
    assert markdown(verification(4)).startswith("## ✅ PASSED")


def test_markdown_is_bounded() -> None:
    large = verification(200, findings=MANY.findings)
    assert len(rows(markdown(large), "Worst tensors")) == WORST
    assert len(rows(markdown(large), "Findings")) == SHOWN + 1


def test_markdown_of_hostile_names_is_text() -> None:
    shown = markdown(EVIL)
    assert {len(row) for row in rows(shown, "Findings")} == {4}
    tags: list[str] = []
    reader = HTMLParser()
    reader.handle_starttag = lambda tag, attrs: tags.append(tag)  # type: ignore[method-assign]
    reader.feed(shown)
    assert set(tags) == {"code"}
    assert "[x](y)" not in shown and "@me" not in shown and "\x1b" not in shown


# ------------------------------------------------------------------------------------------------ JUnit


def validate(root: xml.Element) -> None:
    """What the schema of JUnit's report asks for: elements in their order, counts that agree."""
    assert root.tag == "testsuites"
    for suite in root:
        assert suite.tag == "testsuite" and {"name", "tests", "failures", "errors", "time"} <= suite.attrib.keys()
        cases = suite.findall("testcase")
        assert [child.tag for child in suite if child.tag != "testcase"] in ([], ["properties"])
        assert int(suite.attrib["tests"]) == len(cases)
        assert int(suite.attrib["failures"]) == len(suite.findall("testcase/failure"))
        for case in cases:
            assert {"classname", "name", "time"} <= case.attrib.keys()
            assert [child.tag for child in case] in (["system-out"], [ANY, "system-out"])
            assert case[0].tag in ("failure", "skipped", "system-out")
        assert int(suite.attrib["skipped"]) == len(suite.findall("testcase/skipped"))
    for count in ("tests", "failures", "errors", "skipped"):
        assert int(root.attrib[count]) == sum(int(suite.attrib[count]) for suite in root)


def test_junit() -> None:
    root = xml.fromstring(junit(FAILED))
    validate(root)
    checks, tensors = root
    assert [case.attrib["name"] for case in checks.findall("testcase")] == list(CHECKS)
    assert [case.attrib["name"] for case in tensors] == [tensor.name for tensor in FAILED.tensors]
    failed = [case.attrib["name"] for case in root.iter("testcase") if case.find("failure") is not None]
    assert failed == ["missing", "values", BAD]
    assert "rope permutation" in (checks.findtext("testcase[@name='values']/failure") or "")
    assert root.find(".//property[@name='target']").attrib["value"] == "model-q4.gguf"  # type: ignore[union-attr]


def test_junit_skips_checks_that_were_not_made() -> None:
    """Without a runtime, a gate and an earlier report; and all but one where a side could not be read."""
    every = verification(1, behaviour=behaviour(), thresholds=("every tensor: min_sqnr 20",), baseline=True)
    unread = Verification("a", "b", (), (Finding("structure", "b", "is truncated"),), read=False)
    for checked, skipped in (
        (verification(1), {"probe", "behaviour", "threshold", "baseline", "attestation"}),
        (every, {"attestation"}),
        (replace(verification(1), attested=True), set(CHECKS) - {"attestation"}),
        (unread, set(CHECKS) - {"structure"}),
    ):
        root = xml.fromstring(junit(checked))
        validate(root)
        assert {case.attrib["name"] for case in root.iter("testcase") if case.find("skipped") is not None} == skipped


def test_junit_of_a_good_model_fails_nothing() -> None:
    root = xml.fromstring(junit(verification(2, findings=FINDINGS[:1])))
    validate(root)
    assert root.attrib["failures"] == "0"


def test_junit_of_hostile_names() -> None:
    root = xml.fromstring(junit(EVIL).encode("utf-8"))
    validate(root)
    assert {element.tag for element in root.iter()} == {
        "testsuites", "testsuite", "testcase", "failure", "skipped", "system-out", "properties", "property"
    }  # fmt: skip
    name = root[1][-1].attrib["name"]
    assert name.startswith("blk.1.</script><script>") and "\\x1b[2J\\x00\\ud800" in name


# ------------------------------------------------------------------------------------------------ JSON


def test_json_has_every_field() -> None:
    report = json.loads(as_json(FAILED))
    assert report["schema"] == SCHEMA and report["passed"] is False and report["seconds"] == 1.25
    derived = {"rmse", "nmse", "sqnr_db"}
    assert set(report["tensors"][0]) == {f.name for f in fields(Fidelity)} - {"histogram", "noise", "energy"} | derived
    assert set(report["behaviour"]) == {f.name for f in fields(Behaviour)} | {
        "ppl_increase",
        "ppl_unchanged",
        "foreign",
    }
    assert [set(finding) for finding in report["findings"]] == [{f.name for f in fields(Finding)}] * 3
    assert report["summary"]["failed"] == 1


def test_json_has_no_infinities() -> None:
    strange = fidelity("x", energy=0.0, cosine=math.nan)
    report = json.loads(as_json(Verification("a", "b", (strange, exact("norm")), ())), parse_constant=pytest.fail)
    assert report["tensors"][0]["nmse"] is None and report["tensors"][1]["sqnr_db"] is None


# ------------------------------------------------------------------------------------------------ files


@pytest.mark.parametrize(
    ("name", "start"),
    [
        ("r.txt", "# convert verify\nfailed  "),
        ("r.md", "<!-- convert verify -->\n## "),
        ("r.XML", "<?xml"),
        ("r.json", "{\n"),
    ],
)
def test_the_extension_decides(tmp_path: Path, name: str, start: str) -> None:
    path = tmp_path / name
    path.write_text("")
    for checked in (EVIL, FAILED):
        write_report("verify", path, checked)
    assert path.read_text("utf-8").startswith(start)


def test_reports_that_cannot_be(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"report\.pdf.*\.html"):
        check_reports("verify", [tmp_path / "r.md", tmp_path / "report.pdf"])
    (tmp_path / "file").write_text("precious")
    with pytest.raises(OutputError, match="file: is a file, not a folder"):
        write_report("verify", tmp_path / "file" / "report.md", FAILED)


# ------------------------------------------------------------------------------------------------ documentation

DOCUMENT = (Path(__file__).parent.parent.parent / "docs/verify.md").read_text("utf-8")


def test_every_check_is_documented() -> None:
    assert "\n".join(f"| `{name}` | {about} |" for name, about in CHECKS.items()) in DOCUMENT


def test_every_field_of_the_json_report_is_documented() -> None:
    schema = DOCUMENT.partition(f"### JSON, schema {SCHEMA}")[2].partition("## ")[0]
    documented = {
        line.split("|")[1].strip(): set(re.findall(r"`(\w+)`", line)) for line in schema.splitlines() if "|" in line
    }
    report = json.loads(as_json(FAILED))
    assert set(report) == {name for row in documented for name in re.findall(r"`(\w+)`", row)}
    for part, rows in (("findings", report["findings"]), ("tensors", report["tensors"])):
        assert {name for row in rows for name in row} <= documented[f"`{part}`"]
    for part in ("summary", "behaviour"):
        assert set(report[part]) <= documented[f"`{part}`"]


def test_every_report_is_documented() -> None:
    assert set(re.findall(r"^\| `(\.\w+)` \|", DOCUMENT, re.M)) == set(REPORTS["verify"])
