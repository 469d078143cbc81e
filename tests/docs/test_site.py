"""The site that `make docs` builds, and checks: every page is in its navigation, every public name in its reference."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

from support.documents import DOCUMENTS
from support.paths import ROOT

import converter
from converter import errors, verify

HOME = ROOT / "docs/README.md"


def test_every_page_has_one_place_in_the_navigation() -> None:
    """docs/conf.py makes the sidebar of the links of this page that begin a line of a list."""
    links = re.findall(r"^- \[.+?\]\(([\w./-]+\.md)\)", HOME.read_text("utf-8"), re.M)
    assert len(set(links)) == len(links)
    assert {(HOME.parent / link).resolve() for link in links} == set(DOCUMENTS) - {HOME}


def test_every_public_name_is_in_the_reference() -> None:
    page = (ROOT / "docs/reference.md").read_text("utf-8")
    named = re.findall(r"^\.\. auto(?:function|class):: ([\w.]+)$", page, re.M)
    public = {f"converter.{name}" for name in converter.__all__ if not hasattr(errors, name)}
    public |= {f"converter.verify.{name}" for name in verify.__all__}
    assert public <= set(named) and len(set(named)) == len(named)
    assert set(re.findall(r"^\.\. automodule:: ([\w.]+)$", page, re.M)) == {"converter.events", "converter.errors"}


def test_what_makes_the_site_is_pinned_like_all_else() -> None:
    """Its tools are no extra: nobody who installs the package needs them."""
    needed = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["dependency-groups"]["docs"]
    pinned = Path(ROOT / "constraints.txt").read_text("utf-8")
    assert needed and all(f"\n{re.split('[<>=]', line)[0]}==" in pinned for line in needed)
