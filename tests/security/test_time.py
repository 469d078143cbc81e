"""Inputs that are long, deep or many: a second or so of work, or a clear refusal, and a bounded memory.

Each is a size at which something was quadratic, or kept more than it needed. Processor time is measured, as other work
on the machine does not count; CPU and memory are those of a whole run of the command line.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from support import models

from converter import errors, pipeline
from converter.request import Request

pytestmark = pytest.mark.skipif(not hasattr(os, "wait4"), reason="measured with wait4")

STORIES, KJV = models.FIXTURES / "stories260K", models.FIXTURES / "kjv-llama"
SECONDS, MEGABYTES, WALL = 5.0, 300, 120


class Run(NamedTuple):
    code: int
    out: str
    err: str


# A process begins with the peak of the one that it comes from, and the tests' own is large by now: a small one between.
LAUNCH = f"""
import json, os, subprocess, sys, threading
process = subprocess.Popen(sys.argv[1:])
watch = threading.Timer({WALL}, process.kill)
watch.start()
_, status, used = os.wait4(process.pid, 0)
watch.cancel()
process.returncode = os.waitstatus_to_exitcode(status)
print(json.dumps([process.returncode, used.ru_utime + used.ru_stime, used.ru_maxrss]), file=sys.stderr)
"""


def run(*argv: str | Path, seconds: float = SECONDS, megabytes: float = MEGABYTES) -> Run:
    """The command line in a process of its own, which is held to its processor time and its peak of memory."""
    command = [sys.executable, "-c", LAUNCH, sys.executable, "-m", "converter", *map(str, argv)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    *lines, last = done.stderr.splitlines()
    code, spent, peak = json.loads(last)
    err = "".join(f"{line}\n" for line in lines)
    peak /= 1 << 20 if sys.platform == "darwin" else 1 << 10
    assert spent < seconds, (code, err)
    assert peak < megabytes, f"{peak:.0f} MB"
    return Run(code, done.stdout, err)


def changed(tmp_path: Path, base: Path, file: str, change: Callable[[dict[str, Any]], object]) -> Path:
    """A copy of a model's folder, one JSON file of it changed."""
    folder = tmp_path / "model"
    shutil.copytree(base, folder)
    values = json.loads((folder / file).read_text("utf-8")) if (folder / file).exists() else {}
    change(values)
    (folder / file).write_text(json.dumps(values), "utf-8")
    return folder


# ------------------------------------------------------------------------------------------------- gates, patterns


@pytest.fixture(scope="module")
def stories(tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("time") / "model.gguf"
    pipeline.convert(STORIES, target, Request())
    return target


GATES = {
    "a number of 5,000 digits": "max_abs = 1" + "0" * 5000,
    "a number of 450 digits": "max_abs = 1" + "0" * 450,
    "400,000 dotted keys": "a" + ".a" * 400_000 + " = 1",
    "dotted keys in every line": "\n".join(f"k{i}{'.a' * 250} = 1" for i in range(450)),
    "dotted tables": "\n".join(f"[k{i}{'.a' * 250}]" for i in range(450)),
    "keys in inline tables": "a = [" + "\n".join("{" + "a." * 240 + "a = 1}," for i in range(450)) + "]",
    "20,000 patterns": "".join(f"[[tensor]]\npattern='{i}a'\nmax_abs=1\n" for i in range(7000)),
    "deep lists": "a = " + "[\n" * 100_000,
}


@pytest.mark.parametrize("name", GATES)
def test_gates(name: str, stories: Path, tmp_path: Path) -> None:
    gate = tmp_path / "verify.toml"
    gate.write_text(GATES[name])
    done = run("verify", STORIES, stories, "--gate", gate)
    assert done.code == errors.UsageError.exit_code and "verify.toml" in done.err, done.err


def test_as_many_patterns_as_are_allowed(stories: Path, tmp_path: Path) -> None:
    gate = tmp_path / "verify.toml"
    entries = (f"[[tensor]]\npattern='blk.*{i}.ffn_(up|down)'\nmax_abs=1\n" for i in range(2048))
    gate.write_text("".join(entries))
    assert run("verify", STORIES, stories, "--gate", gate, "--quiet").code == errors.FidelityError.exit_code, "idle"


def test_patterns_of_the_command_line(tmp_path: Path) -> None:
    flags = [part for i in range(20_000) for part in ("--tensor-type", f"x{i}y.*z=q8_0")]
    done = run("plan", STORIES, tmp_path / "x.gguf", "-q", "q4_k_m", *flags)
    assert done.code == errors.UsageError.exit_code and "arguments are refused" in done.err, done.err
    done = run("plan", STORIES, tmp_path / "x.gguf", "-q", "q4_k_m", *flags[:4800])
    assert done.code == errors.UsageError.exit_code and "2400 patterns are refused" in done.err, done.err
    flags = [part for i in range(2048) for part in ("--tensor-type", f"blk\\.({i % 5}|x{i})\\.ffn_up\\.weight=q8_0")]
    assert run("plan", STORIES, tmp_path / "x.gguf", "-q", "q4_k_m", *flags).code == 0


# ------------------------------------------------------------------------------------------------- small files

CARDS = {
    "10 MB of entries": "a: b\n" * 2_000_000,
    "keys that differ": "".join(f"k{i}: [a, b]\n" for i in range(500_000)),
    "a long list": "tags:\n" + "- no\n" * 2_000_000,
    "a long list in brackets": "tags: [" + "a, " * 300_000 + "b]\n",
    "brackets that do not close": "a: " + "[" * 1_000_000,
    "quotes that do not close": 'a: "x\n' * 1_500_000,
    "blank lines": "a: |\n" + "\n" * 1_000_000 + " x\n",
    "one long text": "a: b\n" + " c\n" * 300_000,
    "what is no entry": "!x\n" * 300_000,
    "one line": "x" * 10_000_000,
}


@pytest.mark.parametrize("name", CARDS)
def test_model_cards(name: str, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(STORIES, folder)
    (folder / "README.md").write_text(f"---\nlicense: mit\n{CARDS[name]}---\n")
    done = run("plan", folder, tmp_path / "x.gguf", "--json")
    found = json.loads(done.out)
    assert done.code == 0 and any("README.md" in event["message"] for event in found["events"]) == (name in CUT)


CUT = CARDS.keys() - {"a long list in brackets", "brackets that do not close"}

CONFIGS: dict[str, tuple[str, Callable[[dict[str, Any]], object]]] = {
    "keys": ("config.json", lambda config: config.update({f"k{i}": i for i in range(200_000)})),
    "layers": ("config.json", lambda config: config.update(layer_types=["full_attention"] * 500_000)),
    "architectures": ("config.json", lambda config: config.update(architectures=["X"] * 500_000)),
    "ropes": ("config.json", lambda config: config.update({f"r{i}": {"rope_type": "x"} for i in range(100_000)})),
    "ends": ("config.json", lambda config: config.update(eos_token_id=list(range(300_000)))),
    "generation": ("generation_config.json", lambda config: config.update({f"k{i}": i for i in range(200_000)})),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_configs(name: str, tmp_path: Path) -> None:
    folder = changed(tmp_path, STORIES, *CONFIGS[name])
    assert run("plan", folder, tmp_path / "x.gguf").code in (0, *range(10, 60))


@pytest.mark.parametrize("missing", ["tensors", "shards"])
def test_indexes(missing: str, tmp_path: Path) -> None:
    folder, shard = tmp_path / "model", "model-00001-of-00001.safetensors"
    shutil.copytree(STORIES, folder)
    (folder / "model.safetensors").rename(folder / shard)
    where = (shard if missing == "tensors" else f"model-{i}.safetensors" for i in range(500_000))
    weight_map = {f"model.layers.{i}.x": name for i, name in enumerate(where)}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    done = run("plan", folder, tmp_path / "x.gguf")
    assert done.code in (errors.CorruptFile.exit_code, errors.MissingPart.exit_code) and "index.json" in done.err
