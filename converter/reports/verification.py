"""What a verification shows: text for a terminal, Markdown for a job summary, JUnit XML, JSON; html.py has the page.

All of them show names out of files that may be hostile.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from converter.findings import CHECKS, Finding
from converter.reports import markdown as md
from converter.reports.findings import bounded
from converter.reports.json import as_json as write_json
from converter.reports.junit import Case, Suite
from converter.reports.junit import junit as write_junit
from converter.reports.markdown import code, plain
from converter.reports.numbers import decibels, increase, measured, number, percent
from converter.runtimes.behaviour import Behaviour
from converter.text import human_bytes, printable, table
from converter.verify.results import Fidelity, Verification, sqnr_db

WORST = 10  # tensors in a report that does not list all


# ------------------------------------------------------------------------------------------------ what is shown


@dataclass(frozen=True)
class Column:
    """One column of the table of tensors: the value it sorts by, and its text."""

    title: str
    value: Callable[[Fidelity], Any]
    show: Callable[[Any], str] = str
    #: what the number is, for those who ask
    help: str = ""

    def text(self, tensor: Fidelity) -> str:
        return self.show(self.value(tensor))


def _expected(tensor: Fidelity) -> float | None:
    return None if tensor.bound is None else sqnr_db(tensor.bound)


def _block(tensor: Fidelity) -> str:
    return f"row {tensor.worst.row}, column {tensor.worst.column}" if tensor.worst else ""


def _shape(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape)) or "scalar"


_MARKS = {None: "", True: "yes", False: "no"}
NAME = Column("tensor", lambda tensor: tensor.name)
COLUMNS = (
    NAME,
    Column("type", lambda tensor: tensor.type),
    Column("from", lambda tensor: tensor.reference_type, help="type in the source"),
    Column("SQNR dB", lambda tensor: tensor.sqnr_db, decibels, "signal over quantization noise"),
    Column("expected", _expected, decibels, "SQNR that a correct encoder reaches on this tensor, at least"),
    Column("max abs", lambda tensor: tensor.max_abs, number, "largest absolute error"),
    Column("p99.9", lambda tensor: tensor.p999, number, "absolute error that one value in a thousand exceeds"),
    Column("cosine", lambda tensor: tensor.cosine, lambda value: f"{value:.6f}"),
    Column("worst block", _block),
)
MORE_COLUMNS = (
    Column("shape", lambda tensor: tensor.shape, _shape),
    Column("bytes", lambda tensor: tensor.bytes, "{:,}".format),
    Column("RMSE", lambda tensor: tensor.rmse, number, "root of the mean squared error"),
    Column("max rel", lambda tensor: tensor.max_rel, number, "largest error relative to its value"),
    Column("reproduced", lambda tensor: _MARKS[tensor.reproduced], help="encoding the source again gives these bytes"),
)


def verdict(verification: Verification) -> str:
    return "PASSED" if verification.passed else "FAILED"


def facts(verification: Verification) -> list[tuple[str, str]]:
    """The model as a whole: label and text."""
    of = verification.summary()
    rows = [
        ("tensors", f"{of['tensors']}: {of['exact']} exact, {of['reproduced']} reproduced, {of['failed']} failed"),
        ("size", f"{human_bytes(of['bytes'])}, {of['bits_per_weight']:.2f} bits per weight"),
        ("SQNR", f"{decibels(of['sqnr_db'])}{'' if of['sqnr_db'] == math.inf else ' dB'}"),
        ("largest error", number(of["max_abs"])),
        ("worst tensor", of["worst_tensor"] if of["exact"] < of["tensors"] else "none"),
    ]
    behaviour = behaviour_facts(verification.behaviour) if verification.behaviour else []
    if verification.attested:
        rows = []
    return [*rows, *behaviour, ("time", f"{verification.seconds:.2f} s")]


def behaviour_facts(behaviour: Behaviour) -> list[tuple[str, str]]:
    """What the runtimes did: label and text, without what was not measured."""
    kl = measured(behaviour.mean_kl, behaviour.mean_kl_error)
    rows = [
        ("runtimes", f"{behaviour.reference_runtime} and {behaviour.candidate_runtime}, {behaviour.tokens} tokens"),
        ("mean KL", behaviour.mean_kl is not None and f"{kl} nats"),
        ("largest KL", behaviour.max_kl is not None and f"{number(behaviour.max_kl)} nats"),
        ("same top token", percent(behaviour.top1)),
        ("largest logit error", number(behaviour.max_abs)),
        ("perplexity", behaviour.ppl_increase is not None and _perplexity(behaviour)),
        ("smallest cosine", number(behaviour.cosine)),
    ]
    return [(label, text) for label, text in rows if text]


def _perplexity(behaviour: Behaviour) -> str:
    before = measured(behaviour.reference_ppl, behaviour.reference_ppl_error)
    after = measured(behaviour.candidate_ppl, behaviour.candidate_ppl_error)
    return f"{before} to {after} ({increase(behaviour)})"


def by_type(verification: Verification) -> list[tuple[str, int, int, float, float, float]]:
    """Per stored type, the largest first: name, tensors, bytes, bits per weight, SQNR of all and of the worst (dB)."""
    rows = []
    for name in {tensor.type for tensor in verification.tensors}:
        own = [tensor for tensor in verification.tensors if tensor.type == name]
        part = Verification("", "", tuple(own), ()).summary()
        worst = min(tensor.sqnr_db for tensor in own)
        rows.append((name, len(own), part["bytes"], part["bits_per_weight"], part["sqnr_db"], worst))
    return sorted(rows, key=lambda row: (-row[2], row[0]))


TYPE_HEAD = ("type", "tensors", "size", "bits per weight", "SQNR dB", "worst dB")


def type_rows(verification: Verification) -> list[list[str]]:
    """`by_type` as texts, under TYPE_HEAD."""
    return [
        [name, str(count), human_bytes(nbytes), f"{bits:.3f}", decibels(whole), decibels(worst)]
        for name, count, nbytes, bits, whole, worst in by_type(verification)
    ]


# ------------------------------------------------------------------------------------------------ text


def text(verification: Verification) -> str:
    """For a terminal: findings, the worst tensors, the verdict last, where the eye is."""
    parts: list[list[str]] = [list(_finding_lines(verification.findings))]
    inexact = [tensor for tensor in verification.worst_first if not tensor.exact]
    if inexact:
        rows = [[column.text(tensor) for column in COLUMNS] for tensor in inexact[:WORST]]
        parts.append(table([column.title for column in COLUMNS], rows, right=range(3, 8)))
    if verification.tensors:
        parts.append(table(TYPE_HEAD, type_rows(verification), right=range(1, 6)))
    parts.append([f"{label:<20}{printable(value)}" for label, value in facts(verification)])
    parts.append([printable(f"{verdict(verification)}: {verification.target} against {verification.source}")])
    return "\n\n".join("\n".join(lines) for lines in parts if lines)


def _finding_lines(findings: Iterable[Finding]) -> Iterator[str]:
    for finding in bounded(findings):
        if isinstance(finding, str):
            yield f"        {finding}"
        else:
            yield printable(f"{'failed' if finding.failed else 'note':<8}{finding.check:<12}{finding}")


def as_json(verification: Verification) -> str:
    """The report of schema `SCHEMA` (docs/verify.md)."""
    return write_json("verify", verification.as_dict(), indent=1)


# ------------------------------------------------------------------------------------------------ Markdown


def markdown(verification: Verification) -> str:
    """For a job summary or a comment: at most WORST tensors, and a few findings of each check."""
    inexact = [tensor for tensor in verification.worst_first if not tensor.exact][:WORST]
    worst = [[code(tensor.name), *(plain(column.text(tensor)) for column in COLUMNS[1:])] for tensor in inexact]
    words = f"{verdict(verification)}: {code(verification.target)} against {code(verification.source)}"
    return md.document(
        (
            md.heading(verification.passed, words),
            md.table(("", ""), [[label, _fact(label, value)] for label, value in facts(verification)]),
            md.findings(verification.findings),
            md.section("Worst tensors", [column.title for column in COLUMNS], worst),
            md.section("Types", TYPE_HEAD, type_rows(verification)),
        )
    )


def _fact(label: str, value: str) -> str:
    return code(value) if label == "worst tensor" else plain(value)


# ------------------------------------------------------------------------------------------------ JUnit


def junit(verification: Verification) -> str:
    """A test per check and one per tensor, failed where a finding failed; checks that were not made are skipped."""
    failed = [finding for finding in verification.findings if finding.failed]
    checks = [
        Case(name, [each for each in failed if each.check == name], about, skipped=name not in verification.checks)
        for name, about in CHECKS.items()
    ]
    of: dict[str, list[Finding]] = {}
    for finding in failed:
        of.setdefault(finding.subject, []).append(finding)
    tensors = [Case(tensor.name, of.get(tensor.name, ()), _details(tensor)) for tensor in verification.tensors]
    known = (("source", verification.source), ("target", verification.target), *facts(verification))
    suites = (Suite("checks", checks, verification.seconds, known), Suite("tensors", tensors))
    return write_junit("convert verify", suites)


def _details(tensor: Fidelity) -> str:
    return ", ".join(f"{column.title}: {column.text(tensor)}" for column in COLUMNS[1:] if column.text(tensor))
