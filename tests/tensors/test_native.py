"""The C harness of the kernels, native/check.c, under the sanitizers; `make neon` runs it on another processor."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]


def _why_not(tmp_path: Path) -> str | None:
    """What the sanitizers lack here, None if nothing."""
    if not shutil.which("make") or not shutil.which("cc"):
        return "make and a C compiler are needed"
    source, program = tmp_path / "empty.c", tmp_path / "empty"
    source.write_text("int main(void) { return 0; }\n")
    build = subprocess.run(["cc", "-fsanitize=address,undefined", source, "-o", program], capture_output=True)
    if build.returncode or subprocess.run([program], capture_output=True).returncode:
        return "the C compiler has no address or undefined-behaviour sanitizer that runs here"
    return None


def test_sanitizers_find_nothing(tmp_path: Path) -> None:
    reason = _why_not(tmp_path)
    if reason:
        pytest.skip(reason)
    environment = {k: v for k, v in os.environ.items() if k not in ("MAKEFLAGS", "MFLAGS", "MAKELEVEL")}
    command = ["make", "sanitize", "CC=cc", f"CHECKS={tmp_path}"]
    run = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr
    assert "0 differences; 936 stored digests compared" in run.stderr
