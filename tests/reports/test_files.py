"""Reports of every verb as files: the one table, and what each of them says with names that mean harm."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from support.verifications import HOSTILE, fidelity, verification

from converter.batch.manifest import Job
from converter.batch.run import Batch, Made, Result
from converter.calibration.matrices import Looked
from converter.calibration.statistics import statistics
from converter.certify.results import NOT, Certificate, Differing, Digest, TensorProof
from converter.check.check import Checked
from converter.cli.main import main
from converter.compare import Choice, Comparison, Quant
from converter.diff import Change, Differences
from converter.errors import CorruptFile, DiskFull, OutputExists, SameFile, UsageError
from converter.findings import Finding
from converter.inspection.describe import Description, TensorRow
from converter.metadata import Value
from converter.quant.imatrix_writer import Importance, Measured
from converter.reports import checked, differences
from converter.reports.files import REPORTS, check_reports, write_report
from converter.reports.markdown import plain
from converter.request import Source
from converter.tensors.dtypes import F32
from converter.tensors.tensor import TensorInfo

WARNING = Finding("tokenizer", HOSTILE, "is odd", failed=False)
FAILURE = Finding("metadata", HOSTILE, f"is {HOSTILE}", hint=HOSTILE)
CHECKED = Checked(HOSTILE, "gguf", "llama", ("structure", "keys"), (FAILURE, WARNING), 3, 4000, 1.5)
QUANT = Quant("Q4_0", 500, 4.5, 1.0, 100.0, 0.5, HOSTILE, 20.0, 0, {"Q4_0": 1})
CHANGES = (
    Change("tensors", "added", HOSTILE, after="F32"),
    Change("tensors", "changed", "a", before="1", after="2", facts={"max_abs": 0.5}),
    Change("metadata", "removed", "b", before="x"),
)
DIFFERENCES = Differences(HOSTILE, "b.gguf", CHANGES, {"metadata": 4, "tensors": 9}, True, 0.5)
IMPORTANCE = Importance({HOSTILE: Measured(np.ones(4), np.array([2]))}, (HOSTILE,), 512)
JOB = Job(HOSTILE, Source(HOSTILE), HOSTILE, (), place=HOSTILE)
DONE = (
    Result(JOB, "done", 1.5, (Made(Path(HOSTILE), HOSTILE, 500, 4.5, "0" * 64, 20.0),), events=(HOSTILE,)),
    Result(JOB, "failed", 0.5, error=CorruptFile(HOSTILE)),
    Result(JOB, "stopped"),
)
CERTIFICATE = Certificate(
    HOSTILE, HOSTILE,
    (TensorProof(HOSTILE, "Q4_K", (1, 256), 144, "0" * 64, NOT, Differing(1, 1, 0), (HOSTILE,), HOSTILE),),
    (FAILURE, WARNING), HOSTILE, HOSTILE, "0" * 64, "0" * 64, (Digest(HOSTILE, "0" * 64),), (), {},
)  # fmt: skip
RESULTS: dict[str, Any] = {
    "verify": verification(1, fidelity(HOSTILE), findings=(FAILURE, WARNING)),
    "compare": Choice(Comparison(HOSTILE, (QUANT, replace(QUANT, name="Q2_K", bytes=300)), 4096), fit=400),
    "imatrix": Looked(HOSTILE, IMPORTANCE, statistics(IMPORTANCE), ()),
    "certify": CERTIFICATE,
    "check": [CHECKED],
    "diff": DIFFERENCES,
    "batch": Batch(DONE, 2.5),
    "card": DONE,
    "inspect": Description(
        Path(HOSTILE), "gguf", HOSTILE, {HOSTILE: Value("str", HOSTILE)},
        (TensorRow(TensorInfo(HOSTILE, (4,), F32), HOSTILE),), (), None,
    ),
}  # fmt: skip
EVERY = [(verb, extension) for verb, writers in REPORTS.items() for extension in writers]


def written(verb: str, extension: str, folder: Path, result: Any = None) -> str:
    path = folder / f"report{extension.upper()}"
    write_report(verb, path, RESULTS[verb])  # an earlier one
    write_report(verb, path, RESULTS[verb] if result is None else result)
    return path.read_text("utf-8")


OTHERS = {
    ".json": b'{"architectures": ["LlamaForCausalLM"]}',
    ".xml": b"<?xml version='1.0'?>\n<configuration/>",
    ".md": b"# A model card",
    ".html": b"<html>a saved page</html>",
    ".txt": b"GGUF\3\0\0\0",
}
LIKE = {
    ".json": b'{"schema": 1, "architectures": ["LlamaForCausalLM"]}',
    ".xml": b"<?xml version='1.0'?>\n<testsuites name=\"pytest tests\"/>",
    ".md": b"## A chapter of somebody's notes",
    ".html": b'<!DOCTYPE html>\n<html lang="en">a page of somebody else\'s</html>',
    ".txt": b"precious words",
}


@pytest.mark.parametrize(("verb", "extension"), EVERY)
def test_a_report_takes_the_place_of_one(verb: str, extension: str, tmp_path: Path) -> None:
    """And of nothing that only looks like one: each kind has a mark of its own."""
    path = tmp_path / f"file{extension}"
    write_report(verb, path, RESULTS[verb])
    first = path.read_bytes()
    write_report(verb, path, RESULTS[verb])
    assert path.read_bytes() == first
    path.write_bytes(LIKE[extension])
    with pytest.raises(OutputExists, match="is no report of this program"):
        write_report(verb, path, RESULTS[verb])
    assert path.read_bytes() == LIKE[extension]


@pytest.mark.parametrize(("verb", "extension"), EVERY)
def test_what_is_no_report_is_not_replaced(verb: str, extension: str, tmp_path: Path) -> None:
    path = tmp_path / f"file{extension}"
    path.write_bytes(OTHERS[extension])
    for refused in (lambda: check_reports(verb, [path]), lambda: write_report(verb, path, RESULTS[verb])):
        with pytest.raises(OutputExists, match="is no report of this program"):
            refused()
    assert path.read_bytes() == OTHERS[extension]
    path.write_bytes(b"")  # as `mktemp` leaves it
    write_report(verb, path, RESULTS[verb])
    assert [each.name for each in tmp_path.iterdir()] == [path.name]


def test_no_report_takes_the_place_of_an_input(tmp_path: Path) -> None:
    """Whatever it looks like, and also where it only lies in the folder that is read."""
    model, text = tmp_path / "model", tmp_path / "model" / "merges.txt"
    model.mkdir()
    text.write_text("a b")
    for inputs in ([model], [text], [tmp_path / "absent", tmp_path]):
        with pytest.raises(SameFile, match="belongs to what is"):
            check_reports("diff", [text], inputs=inputs)
    check_reports("diff", [model / "new.txt", tmp_path / "other.txt"], inputs=[model])
    weights = tmp_path / "model.gguf"
    weights.write_bytes(b"GGUF\3\0\0\0")
    for arguments in (["check", weights, "--junit", weights], ["diff", text, text, "--report", text]):
        assert main([str(each) for each in arguments]) == SameFile.exit_code
    assert weights.read_bytes() == b"GGUF\3\0\0\0" and text.read_text() == "a b"


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes")
def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.txt")
    with pytest.raises(OutputExists, match="device or pipe"):
        check_reports("check", [tmp_path / "pipe.txt"])


def test_a_report_is_there_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "report.json"
    write_report("check", path, [CHECKED])
    old = path.read_bytes()

    def full(*_: Any) -> Any:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(DiskFull):
        write_report("check", path, [CHECKED])
    assert [each.name for each in tmp_path.iterdir()] == [path.name] and path.read_bytes() == old


@pytest.mark.parametrize(("verb", "extension"), EVERY)
def test_every_report_is_text_whatever_the_names(verb: str, extension: str, tmp_path: Path) -> None:
    content = written(verb, extension, tmp_path)
    assert content.endswith("\n") and not content.endswith("\n\n")
    assert all(line.isprintable() for line in content.split("\n") if extension != ".html")
    match extension:
        case ".json":
            report = json.loads(content, parse_constant=pytest.fail)
            assert (report["schema"], report["verb"]) == (1, verb)
            assert HOSTILE in strings(report), "a program gets the name as it is"
        case ".xml":
            root = ElementTree.fromstring(content)
            assert root.attrib["name"] == f"convert {verb}" and root.attrib["failures"] != "0"
        case ".md":
            assert tags(content) <= {"code"} and "[x](y)" not in content and "@me" not in content
        case ".html":
            assert HOSTILE not in content and "<title>" in content


def strings(value: Any) -> list[str]:
    """Every text in a JSON value."""
    if isinstance(value, dict | list):
        return [text for each in (value.values() if isinstance(value, dict) else value) for text in strings(each)]
    return [value] if isinstance(value, str) else []


def tags(text: str) -> set[str]:
    found: set[str] = set()
    reader = HTMLParser()
    reader.handle_starttag = lambda tag, attrs: found.add(tag)  # type: ignore[method-assign,assignment]
    reader.feed(text)
    return found


def test_a_report_that_no_verb_has_is_refused_before_the_work() -> None:
    check_reports("diff", [Path("a.md"), Path("b.JSON")])
    with pytest.raises(UsageError, match=r"r\.xml: no report ends in '\.xml'; there are \.txt, \.json, \.md$"):
        check_reports("diff", [Path("a.md"), Path("r.xml")])


def test_a_file_of_any_name_can_be_junit(tmp_path: Path) -> None:
    write_report("check", tmp_path / "result", [CHECKED], extension=".xml")
    assert (tmp_path / "result").read_text("utf-8").startswith("<?xml")


@pytest.mark.parametrize("sign", '<>[]()*_`|&#!~@{}\\"')
def test_markdown_has_no_sign_of_its_own(sign: str) -> None:
    """What Markdown gives a meaning to is a reference; a round bracket means nothing without a square one."""
    assert plain(f"{sign}a{sign}") == (f"{sign}a{sign}" if sign in "()" else f"&#{ord(sign)};a&#{ord(sign)};")


# ------------------------------------------------------------------------------------------------ check


def lines(text: str) -> list[str]:
    return [line.partition(":")[0] for line in text.splitlines()]


def test_check_on_a_terminal() -> None:
    assert lines(checked.text([CHECKED]))[:2] == ["failed", "warning"]
    assert "FAILED: 1 failed, 1 warning" in checked.text([CHECKED])
    assert checked.text([CHECKED]).endswith("\n(gguf, llama, 3 tensors, 4.00 kB; looked at structure, keys; 1.50 s)")
    assert lines(checked.text([replace(CHECKED, strict=True)])) [:2] == ["failed", "failed"]  # fmt: skip
    assert lines(checked.text([CHECKED], quiet=True)) == ["failed"]
    good = replace(CHECKED, findings=())
    assert ": ok: nothing found" in checked.text([good]) and checked.text([good], quiet=True) == ""
    many = replace(CHECKED, findings=(WARNING,) * 13)
    assert lines(checked.text([many]))[10] == "... 3 more findings of tokenizer (--json has all)"


def cases(report: str) -> dict[str, bool]:
    """Whether each test failed."""
    found: Iterable[ElementTree.Element] = ElementTree.fromstring(report).iter("testcase")
    return {case.attrib["name"]: case.find("failure") is not None for case in found}


def test_junit_of_a_check() -> None:
    assert cases(checked.junit([CHECKED])) == {"metadata": True, "tokenizer": False}
    assert cases(checked.junit([replace(CHECKED, strict=True)])) == {"metadata": True, "tokenizer": True}
    assert cases(checked.junit([replace(CHECKED, findings=())])) == {"all": False}


def test_what_cannot_be_opened_has_a_result_and_an_error() -> None:
    found = checked.data([replace(CHECKED, error=CorruptFile("x: is short"), strict=True)])
    assert found["error"] == {"kind": "CorruptFile", "exit_code": 11, "message": "x: is short"}
    assert found["passed"] is False and found["strict"] is True and found["source"] == HOSTILE
    assert "error" not in checked.data([CHECKED])


# ------------------------------------------------------------------------------------------------ diff


def test_diff_as_text_and_by_group() -> None:
    assert [line[:2] for line in differences.lines(DIFFERENCES)] == ["--", "++", "@@", "- ", "@@", "+ ", "~ "]
    shown = differences.text(DIFFERENCES)
    assert "@@ tensors: 2 of 9 differ (Hugging Face names as in GGUF) @@" in shown and "- b: x" in shown
    short = list(differences.lines(DIFFERENCES, stat=True))
    assert "~ a: 1 changed, max abs 0.5" in short
    equal = replace(DIFFERENCES, changes=())
    assert differences.text(equal) == "" and "## ✅ nothing differs" in differences.markdown(equal)


def test_markdown_of_a_diff_is_bounded() -> None:
    changes = tuple(Change("files", "added", f"f{at}") for at in range(60))
    many = replace(DIFFERENCES, changes=changes, compared={"files": 70})
    shown = differences.markdown(many)
    assert "### files: 60 of 70 differ" in shown and shown.count("\n| + |") == differences.SHOWN
    assert "| 10 more; the JSON report lists all |" in shown
