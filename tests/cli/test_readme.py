"""The tables of the README and of docs/ are what the program says."""

from __future__ import annotations

import re

import pytest
from support import architectures
from support.documents import DOCUMENTS
from support.paths import ROOT

from converter.inspection.tables import format_markdown
from converter.tensors import kernels
from converter.tensors.dtypes import DTYPES, INT8

README = (ROOT / "README.md").read_text("utf-8")
FORMATS = (ROOT / "docs" / "formats.md").read_text("utf-8")
QUANTIZATION = (ROOT / "docs" / "quantization.md").read_text("utf-8")
PAGES = [path.relative_to(ROOT).as_posix() for path in DOCUMENTS]


def test_formats_table() -> None:
    """Printed by `python -c "from converter.inspection import tables; print(tables.format_markdown())"`."""
    assert format_markdown() in FORMATS


def test_architectures_table() -> None:
    """Made by `python fixtures/make_architectures.py --table`."""
    assert (ROOT / "docs/architectures.md").read_text("utf-8") == architectures.table()
    assert "docs/architectures.md" in README


def test_every_type_that_has_an_encoder_is_in_the_table() -> None:
    rows = dict(re.findall(r"^\| (\w+) \| ([\d.]+) \|.*%", QUANTIZATION, re.MULTILINE))
    ggml = {name: each for name, each in DTYPES.items() if each.quantized and each is not INT8}
    encoded = {name for name, each in ggml.items() if kernels.encodable(each)}
    assert rows.keys() == encoded
    for name, bits in rows.items():
        assert float(bits) == pytest.approx(DTYPES[name].bits_per_weight, abs=6e-4)


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: str) -> None:
    """To files of the repository, and to headings of the page."""
    path = ROOT / page
    for target in re.findall(r"\]\(([^)#]+?)(?:#[\w-]+)?\)", path.read_text("utf-8")):
        assert "://" in target or (path.parent / target).exists(), target


def test_every_room_has_its_line_in_contributing() -> None:
    """Each part of the package once, in a table from the ground up."""
    lines = (ROOT / "CONTRIBUTING.md").read_text("utf-8").splitlines()
    named = re.findall(r"`([\w/]+(?:\.py|/))`", "\n".join(line for line in lines if line.startswith("| `")))
    rooms = {path.name + "/" * path.is_dir() for path in (ROOT / "converter").iterdir()}
    rooms = {room for room in rooms if room[0] not in "_." and room.endswith((".py", "/"))}
    assert sorted({*rooms, "native/"}) == sorted(named)


@pytest.mark.parametrize("page", ["CONTRIBUTING.md"])
def test_files_that_are_named_are_there(page: str) -> None:
    for name in re.findall(r"`((?:tests|converter|docs|fixtures)/[\w./]+)`", (ROOT / page).read_text("utf-8")):
        assert (ROOT / name).exists(), name
