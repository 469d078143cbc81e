"""The sweep of injected faults over every kind of output (sweep.py has the promises)."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

import pytest
from faults.sweep import TARGETS
from support.paths import ROOT

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux" or shutil.which("cc") is None, reason="needs Linux and a C compiler"),
]


@pytest.mark.parametrize("target", TARGETS)
def test_every_call_fails_once(target: str) -> None:
    command = [sys.executable, ROOT / "tests" / "faults" / "sweep.py", target]
    paths = os.pathsep.join([str(ROOT), *sys.path])
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": paths})
    assert done.returncode == 0, done.stdout + done.stderr
    tried = done.stdout.splitlines()[-1].split("|")[-2]
    assert int(tried.split()[0]) > 100, done.stdout
