"""Runs that are killed at random moments (kills.py has the promises): no wrong file, no good one lost, same bytes."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from faults.kills import KINDS
from support.paths import ROOT

pytestmark = [pytest.mark.slow, pytest.mark.skipif(sys.platform != "linux", reason="forks, and /proc/PID/io")]


@pytest.mark.parametrize("kind", KINDS)
def test_killed_and_gone_on_with(kind: str) -> None:
    if kind.startswith("upload"):
        for package in ("obstore", "botocore", "google.auth", "azure.storage.blob"):
            pytest.importorskip(package)
    command = [sys.executable, ROOT / "tests" / "faults" / "kills.py", kind, "--tries", "12"]
    paths = os.pathsep.join([str(ROOT), *sys.path])
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": paths})
    assert done.returncode == 0, done.stdout + done.stderr
    _, _, tries, amid, _, written = [cell.strip() for cell in done.stdout.splitlines()[-1].strip("|").split("|")]
    assert int(tries) == 12 and int(amid) >= 4 and float(written) < 1.3, done.stdout
