"""What is released, and what would release it elsewhere: `make wheels` does it here, CI's files are read, not run."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
from support.paths import ROOT

import converter
from converter.cli import verbs

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
MAKEFILE = (ROOT / "Makefile").read_text("utf-8")
CONSTRAINTS = dict(re.findall(r"^([\w-]+)==(\S+)$", (ROOT / "constraints.txt").read_text("utf-8"), re.M))
WORKFLOWS = sorted((ROOT / ".github/workflows").glob("*.yml"))


def workflow(path: Path) -> dict[str, Any]:
    return pytest.importorskip("yaml").safe_load(path.read_text("utf-8"))


def test_the_version_stands_in_one_place() -> None:
    settings = PROJECT["tool"]["scikit-build"]["metadata"]["version"]
    assert PROJECT["project"]["dynamic"] == ["version"] and settings["input"] == "converter/__init__.py"
    (newest,) = re.findall(r"\A# Changelog\n\n## (\S+)", (ROOT / "CHANGELOG.md").read_text("utf-8"))
    (hooks,) = re.findall(r"^ +rev: v(\S+)$", (ROOT / "docs/verify.md").read_text("utf-8"), re.M)
    assert newest == hooks == converter.__version__


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_workflows_have_no_rights_and_call_what_is_there(path: Path) -> None:
    told = workflow(path)
    assert told["permissions"] == {"contents": "read"}
    for job in told["jobs"].values():
        assert job["timeout-minutes"] and job["steps"][0]["with"] == {"persist-credentials": False}
        runs = [step["run"] for step in job["steps"] if "run" in step]
        for target in re.findall(r"\bmake (\w+)", "\n".join(runs)):
            assert re.search(rf"^{target}: .*##", MAKEFILE, re.M), target
        for name, version in re.findall(r"([\w-]+)==(\S+)", "\n".join(runs)):
            assert CONSTRAINTS[name] == version, f"{name} is another one in constraints.txt"


def test_wheels_are_of_every_platform_and_run_the_main_job() -> None:
    jobs = workflow(ROOT / ".github/workflows/wheels.yml")["jobs"]
    kinds = {
        re.split(r"-\d+", name)[0] + name.partition("arm")[1] for name in jobs["wheels"]["strategy"]["matrix"]["os"]
    }
    assert kinds == {"ubuntu", "ubuntuarm", "macos", "windows"}
    wheel = PROJECT["tool"]["cibuildwheel"]
    assert wheel["build"] == f"{PROJECT['tool']['scikit-build']['wheel']['py-api']}-*"
    program = "python -m converter "
    version, main = wheel["test-command"]
    assert version == program + "--version" and main.startswith(program)
    verb, rest = verbs.chosen(main.removeprefix(program).replace("{project}", str(ROOT)).split())
    asked = verbs.parser(verb).parse_args(rest)
    assert (asked.quant, asked.verify, asked.strict) == ("q4_k_m", True, True) and Path(asked.source).is_dir()
