"""Blocks of a build with fused multiply-adds (fixtures/make_fma.py recorded them), and what only looks like it."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
from support.faults import UP, Workshop, in_bytes
from support.paths import FIXTURES
from support.rewriting import rewritten

from converter.certify import certify, check_attestation
from converter.certify.arithmetic import SEARCHED, SHARE, WORSE, judged
from converter.certify.attestation import as_bytes, statement
from converter.certify.results import BUT_FOR, NOT, PROVEN, Differing, TensorProof
from converter.cli.main import main
from converter.errors import ProvenButFor
from converter.tensors.tensor import LazyTensor

RECORDED = json.loads((FIXTURES / "fma.json").read_text("utf-8"))
BLOCKS: dict[str, dict[str, str]] = RECORDED["blocks"]


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Workshop:
    return Workshop(tmp_path_factory.mktemp("arithmetic"))


def of_another_build(shop: Workshop, target: Path, tensors: Iterable[str] = BLOCKS) -> Path:
    """What that build writes in the place of ours, in some tensors."""

    def change(old: dict[str, LazyTensor]) -> dict[str, LazyTensor]:
        made = dict(old)
        for name in tensors:
            info = old[name].info
            rows = np.array(old[name].rows(0, info.n_rows))
            blocks = info.dtype.blocks(rows)
            for at, data in BLOCKS[name].items():
                blocks[int(at)] = np.frombuffer(bytes.fromhex(data), np.uint8)
            made[name] = LazyTensor(info, lambda start, stop, rows=rows: rows[start:stop], "another build's")
        return made

    return rewritten(shop.good(RECORDED["model"], RECORDED["quant"]), target, None, change)


def test_another_build_is_proven_but_for_its_blocks(
    shop: Workshop, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, made = shop.source(RECORDED["model"]), of_another_build(shop, tmp_path / "fma.gguf")
    found = certify(source, made)
    count = sum(map(len, BLOCKS.values()))
    assert found.verdict == BUT_FOR and found.n_differing == count and isinstance(found.error, ProvenButFor)
    assert {each.name: each.differing.count for each in found.unproven} == {n: len(b) for n, b in BLOCKS.items()}
    assert found.headline == f"PROVEN BUT FOR {count} BLOCKS" and found.way == "source"
    assert 0 < count / sum(each.differing.blocks for each in found.tensors) < SHARE
    assert all(1 < each.differing.values and each.differing.worse < WORSE for each in found.unproven)
    attested, report = tmp_path / "a.json", tmp_path / "page.html"
    argv = ["certify", str(source), str(made), "-o", str(attested), "--report", str(report)]
    assert main(argv) == ProvenButFor.exit_code == 42
    assert "PROVEN BUT FOR" in capsys.readouterr().out and 'class="verdict partly"' in report.read_text("utf-8")
    assert attested.read_bytes() == as_bytes(statement(found))
    told = check_attestation(made, attested)
    assert told.passed and not told.strict().passed, "what it leaves open is told"


def test_a_build_shows_everywhere(shop: Workshop, tmp_path: Path) -> None:
    """The same blocks in a few tensors alone are no build's."""
    few = list(BLOCKS)[:5]
    found = certify(shop.source(RECORDED["model"]), of_another_build(shop, tmp_path / "few.gguf", few))
    assert found.verdict == NOT and [each.name for each in found.unproven] == few


def test_a_block_beyond_the_rule_among_them_is_named(shop: Workshop, tmp_path: Path) -> None:
    def zero(rows: np.ndarray) -> None:
        rows[3] = 0

    bad = rewritten(of_another_build(shop, tmp_path / "fma.gguf"), tmp_path / "bad.gguf", None, in_bytes(UP, zero))
    found = certify(shop.source(RECORDED["model"]), bad)
    assert found.verdict == NOT
    assert [each.name for each in found.tensors if each.status == NOT] == [UP]


def proof(name: str, type: str, count: int, worse: float = 1.0, blocks: int = 1000) -> TensorProof:
    status = NOT if count else PROVEN
    return TensorProof(name, type, (1, 1), 1, "", status, Differing(blocks, count, 0, count, 0.1, 1, worse))


@pytest.mark.parametrize(
    ("type", "count", "worse", "expected"),
    [
        ("Q4_K", 20, 1.1, BUT_FOR),
        ("Q4_K", 151, 1.1, BUT_FOR),
        ("Q4_K", 152, 1.1, NOT),
        ("Q5_K", 501, 1.1, BUT_FOR),
        ("Q6_K", 51, 1.1, BUT_FOR),
        ("Q6_K", 52, 1.1, NOT),
        ("Q4_K", 1, 2.1, NOT),
        ("Q8_0", 1, 1.0, NOT),
        ("F16", 1, 1.0, NOT),
        ("Q4_K", 0, 0.0, PROVEN),
    ],
)
def test_the_rule(type: str, count: int, worse: float, expected: str) -> None:
    assert [each.status for each in judged([proof("a", type, count, worse)])] == [expected]


def test_types_that_only_round_have_one_result() -> None:
    assert not SEARCHED & {"Q8_0", "F16", "BF16", "F32", "TQ1_0", "TQ2_0", "MXFP4", "NVFP4"}
