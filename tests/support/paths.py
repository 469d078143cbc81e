"""Where things are."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
FIXTURES = ROOT / "fixtures"  # real models of few kilobytes, and what the reference tools make of them
DATA = ROOT / "tests" / "data"
