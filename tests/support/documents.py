"""The documents, and what is read out of them."""

from __future__ import annotations

from support.paths import ROOT

#: Every page that people read, of the repository's top and of docs/.
DOCUMENTS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), *(ROOT / "docs/howto").glob("*.md")])
