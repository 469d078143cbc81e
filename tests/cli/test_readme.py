"""The README's tables are what the program says."""

from __future__ import annotations

from pathlib import Path

from converter.inspection.tables import architecture_rows, format_markdown

README = (Path(__file__).parent.parent.parent / "README.md").read_text("utf-8")


def test_formats_table() -> None:
    """Printed by `python -c "from converter.inspection import tables; print(tables.format_markdown())"`."""
    assert format_markdown() in README


def test_every_architecture_is_named() -> None:
    for row in architecture_rows():
        assert f"`{row['architecture']}`" in README
