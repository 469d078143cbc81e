"""The examples for CI run as they stand: every command of them, on the trained fixture."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from support.paths import ROOT

yaml = pytest.importorskip("yaml")


def run(command: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    """In a folder that looks like a clone, with the program that is tested on the path."""
    for name in ("fixtures", "docs"):
        if not (folder / name).exists():
            (folder / name).symlink_to(ROOT / name)
    path = os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"]))
    environment = {**os.environ, "PATH": path, "GITHUB_STEP_SUMMARY": str(folder / "summary.md")}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)


def test_github_actions(tmp_path: Path) -> None:
    workflow = yaml.safe_load((ROOT / "docs/ci/github-actions.yml").read_text("utf-8"))
    steps = workflow["jobs"]["convert"]["steps"]
    commands = [step["run"] for step in steps if "run" in step]
    assert commands[0].startswith("pip install")
    for command in commands[1:]:
        done = run(["bash", "-eo", "pipefail", "-c", command], tmp_path)
        assert done.returncode == 0, done.stdout + done.stderr
    assert (tmp_path / "summary.md").read_text("utf-8").startswith("<!-- convert verify -->\n## ✅ PASSED")
    assert {path.name for path in tmp_path.glob(steps[-1]["with"]["path"])} == {
        "report.md", "report.html", "report.json", "report.xml"
    }  # fmt: skip


def test_gitlab(tmp_path: Path) -> None:
    job = yaml.safe_load((ROOT / "docs/ci/gitlab-ci.yml").read_text("utf-8"))["model"]
    assert job["script"][0].startswith("pip install")
    for command in job["script"][1:]:
        done = run(["bash", "-eo", "pipefail", "-c", command], tmp_path)
        assert done.returncode == 0, done.stdout + done.stderr
    kept = [path.name for pattern in job["artifacts"]["paths"] for path in tmp_path.glob(pattern)]
    assert sorted(kept) == ["report.html", "report.json", "report.md", "report.xml"]
    assert all((tmp_path / name).is_file() for name in job["artifacts"]["reports"]["junit"])


@pytest.fixture(scope="module")
def hooks() -> dict[str, Any]:
    return {hook["id"]: hook for hook in yaml.safe_load((ROOT / ".pre-commit-hooks.yaml").read_text("utf-8"))}


def test_hooks_catch_a_damaged_model(tmp_path: Path, hooks: dict[str, Any]) -> None:
    """A good file passes both hooks; one byte turned over fails what knows the source."""
    made = run(["convert", "fixtures/kjv-llama", "model.gguf", "-q", "q4_k_m", "--quiet"], tmp_path)
    assert made.returncode == 0, made.stderr
    damaged = bytearray((tmp_path / "model.gguf").read_bytes())
    damaged[-144 * 64 + 1] ^= 0x7C  # a byte of a block in the last tensor
    (tmp_path / "bad.gguf").write_bytes(damaged)
    check = shlex.split(hooks["convert-check"]["entry"])
    verify = shlex.split(hooks["convert-verify"]["entry"])
    assert run([*check, "model.gguf", "model.gguf"], tmp_path).returncode == 0
    assert run([*check, "model.gguf", "absent.gguf"], tmp_path).returncode != 0
    assert run([*verify, "fixtures/kjv-llama", "model.gguf", "--gate", "docs/ci/verify.toml"], tmp_path).returncode == 0
    assert run([*verify, "fixtures/kjv-llama", "bad.gguf"], tmp_path).returncode == 41
