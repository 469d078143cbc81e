"""What a certificate shows: text for a terminal, Markdown, JSON; html.py has the page."""

from __future__ import annotations

from collections.abc import Iterator

from converter.certify.results import BUT_FOR, PROVEN, Certificate, TensorProof
from converter.reports import html
from converter.reports import markdown as md
from converter.reports.findings import bounded
from converter.reports.json import as_json as write_json
from converter.reports.markdown import code, plain
from converter.text import counted, human_bytes, printable

#: Tensors that a text lists one by one; the JSON report has all.
LISTED = 10


def facts(certificate: Certificate) -> list[tuple[str, str]]:
    """The model as a whole: label and text."""
    of = certificate.summary()
    return [
        ("tensors", f"{of['tensors']:,}: {of['proven']:,} proven, {of['but_for']:,} but for blocks, {of['not']:,} not"),
        ("blocks", f"{of['blocks']:,}, {of['differing']:,} of them not as derived"),
        ("size", human_bytes(of["bytes"])),
        ("by way of", certificate.way or "none"),
        ("mixture", certificate.mixture),
        ("root", certificate.root),
    ]


def text(certificate: Certificate) -> str:
    """For a terminal: what is not proven, the verdict last, where the eye is."""
    parts = [list(_lines(certificate)), [f"{label:<20}{printable(value)}" for label, value in facts(certificate)]]
    parts.append([printable(f"{certificate.headline}: {certificate.target} from {certificate.source}")])
    return "\n\n".join("\n".join(lines) for lines in parts if lines)


def _lines(certificate: Certificate) -> Iterator[str]:
    for tensor in certificate.unproven[:LISTED]:
        yield printable(f"{_word(tensor):<9}{tensor.name} ({tensor.type}): {tensor.reason}")
    if len(certificate.unproven) > LISTED:
        yield f"         and {counted(len(certificate.unproven) - LISTED, 'tensor')} more"
    for finding in bounded(certificate.findings):
        yield printable(
            f"         {finding}"
            if isinstance(finding, str)
            else f"{'failed' if finding.failed else 'note':<9}{finding}"
        )


def _word(tensor: TensorProof) -> str:
    return "but for" if tensor.status == BUT_FOR else "not"


def as_json(certificate: Certificate) -> str:
    """Everything."""
    return write_json("certify", certificate.as_dict(), indent=1)


def markdown(certificate: Certificate) -> str:
    """For a job summary or a comment: at most LISTED tensors, and a few findings of each check."""
    rows = [[code(each.name), each.type, plain(each.reason)] for each in certificate.unproven[:LISTED]]
    words = f"{certificate.headline}: {code(certificate.target)} from {code(certificate.source)}"
    return md.document(
        (
            md.heading(certificate.verdict == PROVEN, words),
            md.table(("", ""), [[label, plain(value)] for label, value in facts(certificate)]),
            md.section("Not proven", ("tensor", "type", "what"), rows),
            md.findings(certificate.findings),
        )
    )


def page(certificate: Certificate) -> str:
    """One HTML page."""
    return html.certificate(certificate, facts(certificate))
