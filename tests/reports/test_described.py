"""`convert inspect --report`: a small page without scripts, and the same as text and JSON."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from pathlib import Path

import numpy as np
import pytest
from support import models, sparse
from support.verifications import HOSTILE

from converter.cli.main import main
from converter.inspection.describe import inspect
from converter.reports.described import page
from converter.tensors.dtypes import F32
from converter.tensors.tensor import from_array

KJV = models.FIXTURES / "kjv-llama"


def test_the_page_is_small_and_runs_nothing(tmp_path: Path) -> None:
    target = tmp_path / "model.html"
    assert main(["inspect", str(KJV), "--report", str(target)]) == 0
    content = target.read_text("utf-8")
    assert len(content) < 400_000
    assert not re.search(r"<script|<img|<link|<iframe|\bon\w+=|href=|src=|style=", content, re.I)
    (style,) = re.findall(r"<style>(.*?)</style>", content, re.S)
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    assert f"default-src 'none'; style-src 'sha256-{digest}'" in content
    for part in ("layers.*", "q_proj.weight", "Q4_K_M", "QLoRA, rank 16", "5.77 M", "config.rope_theta"):
        assert part in content


def test_a_page_of_many_tensors_that_do_not_fold_is_small() -> None:
    tensors = {f"conv{n}": from_array(f"conv{n}", np.zeros(n + 1, np.float32), F32, "") for n in range(20_000)}
    from converter.checkpoint import Checkpoint
    from converter.inspection.describe import Description, TensorRow

    made = Checkpoint("npz", Path("x.npz"), None, tensors)
    rows = tuple(TensorRow(each.info, "") for each in made.tensors.values())
    content = page(Description(made.path, "npz", None, {}, rows, (), None))
    assert len(content) < 1_500_000 and "More is not shown" in content


def test_hostile_names_are_text(tmp_path: Path) -> None:
    path = tmp_path / "evil.safetensors"
    evil = "a.<img src=x onerror=alert(1)>.</style><script>alert(2)</script>"
    sparse.sparse(path, {evil: (4,), HOSTILE.partition("\x1b")[0]: (4,)})
    content = page(inspect(path))
    assert "<script" not in content and "<img" not in content and "&lt;script&gt;" in content
    assert content.count("</style>") == 1


@pytest.mark.parametrize("extension", ["json", "txt"])
def test_other_reports(extension: str, tmp_path: Path) -> None:
    target = tmp_path / f"model.{extension}"
    for _ in range(2):  # a report of ours is replaced
        assert main(["inspect", str(KJV), "--report", str(target)]) == 0
    content = target.read_text("utf-8")
    if extension == "json":
        found = json.loads(content)
        assert found["verb"] == "inspect" and found["tree"]["children"] and found["fine_tuning"]["needs"]
    else:
        assert "layers.*" in content and "memory to fine-tune it" in content


def test_the_tree_on_the_command_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(KJV), "--tree", "--memory", "20MB", "--rank", "8"]) == 0
    shown = capsys.readouterr().out
    assert re.search(r"layers\.\* +6 x +787 k +4\.72 M", shown)
    assert re.search(r"Q4_K_M +4\.86 +7\.83 MB \*", shown), "small models are told in MB"
    assert re.search(r"full .* 97\.3 MB\n", shown) and "LoRA, rank 8" in shown
    assert "* fits 20.0 MB" in shown and "F16 KV cache" in shown
    assert "config.rope_theta" not in shown and shown.index("memory to run") < shown.index("module")
