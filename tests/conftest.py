"""What all tests share."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
from support.paths import ROOT

# A run in the background (nohup, CI) inherits ignored signals, and so would the programs that tests interrupt.
signal.signal(signal.SIGINT, signal.default_int_handler)
for _name in ("SIGTERM", "SIGHUP"):
    if hasattr(signal, _name):
        signal.signal(getattr(signal, _name), signal.SIG_DFL)

# Hundreds of tests run the program as a process. An installed program has its bytecode, so theirs keep it, too: a short
# command takes twice as long without.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)


@pytest.fixture(scope="session")
def data() -> Path:
    """The folder of real files; tests that need it are skipped where it is absent."""
    folder = Path(os.environ.get("CONVERTER_TEST_DATA", ROOT.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no test data at {folder}; CONVERTER_TEST_DATA says where it is")
    return folder
