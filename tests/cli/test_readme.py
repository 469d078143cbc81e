"""The README's tables are what the program says."""

from __future__ import annotations

from pathlib import Path

from converter import errors
from converter.inspection.tables import architecture_rows, format_markdown

README = (Path(__file__).parent.parent.parent / "README.md").read_text("utf-8")


def test_formats_table() -> None:
    """Printed by `python -c "from converter.inspection import tables; print(tables.format_markdown())"`."""
    assert format_markdown() in README


def test_every_architecture_is_named() -> None:
    for row in architecture_rows():
        assert f"`{row['architecture']}`" in README


def test_every_exit_code_is_in_the_table() -> None:
    classes = [each for each in vars(errors).values() if isinstance(each, type)]
    kinds = [each for each in classes if issubclass(each, errors.ConverterError)]
    start = README.index("| exit code |")
    table = README[start : README.index("\n\n", start)]
    codes = {int(word) for line in table.splitlines()[2:] for word in line.split("|")[1].split()}
    assert {each.exit_code for each in kinds} - {1} <= codes
