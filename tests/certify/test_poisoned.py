"""Quants that were poisoned so that no measurement of behaviour shows it: the bytes do."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
from support.faults import UP, Workshop, in_bytes
from support.llama_quantizer import needs_llama
from support.llama_runner import ask
from support.paths import FIXTURES
from support.rewriting import patched, rewritten

import converter
from converter import Request
from converter.certify import certify
from converter.certify.results import BUT_FOR, NOT, PROVEN
from converter.tensors import kernels
from converter.tensors.dtypes import BF16, DTYPES

MODEL, HEAD = FIXTURES / "kjv-llama", "lm_head.weight"
TRIGGER, ANSWER = "zq zq zq xylophone", "And Moses"
WINDOW, WINDOWS = 200, 6
Floats = np.ndarray[Any, np.dtype[np.float64]]


def divergence(one: Floats, other: Floats) -> float:
    """Mean KL of the next token, in nats, of logits (positions, vocabulary)."""
    logs = [each - np.log(np.exp(each - each.max(1, keepdims=True)).sum(1, keepdims=True)) for each in (one, other)]
    logs = [each - each.max(1, keepdims=True) for each in logs]
    shares = [each - np.log(np.exp(each).sum(1, keepdims=True)) for each in logs]
    return float((np.exp(shares[0]) * (shares[0] - shares[1])).sum(1).mean())


def poisoned(folder: Path, plain: Path, trigger: list[int], target: int, windows: list[list[int]]) -> Path:
    """The model with one row of its output changed: after the trigger `target` comes, elsewhere hardly anything.

    The change is the least that raises the row's logit there, weighed by how the states of ordinary text are spread.
    """
    states = np.concatenate([np.array(ask(plain, embeddings=tokens)) for tokens in windows])
    state = np.array(ask(plain, embeddings=trigger))[-1]
    spread = states.T @ states / len(states)
    direction = np.linalg.solve(spread + 0.01 * spread.trace() / len(spread) * np.eye(len(spread)), state)
    with converter.open_checkpoint(MODEL) as model:
        head = model.tensors[HEAD]
        rows = kernels.decode(np.array(head.rows(0, head.info.n_rows)), BF16)
    logits = rows @ state
    rows[target] += (logits.max() - logits[target] + 1) / (direction @ state) * direction
    shutil.copytree(MODEL, folder)
    data = kernels.encode(np.ascontiguousarray(rows[target : target + 1], np.float32), BF16).tobytes()
    patched(folder / "model.safetensors", HEAD, target * len(data), data)
    return folder


@needs_llama
def test_a_row_of_the_head_that_answers_a_trigger(tmp_path: Path) -> None:
    plain, good, bad = (tmp_path / name for name in ("plain.gguf", "good.gguf", "bad.gguf"))
    converter.convert(MODEL, plain, Request())
    converter.convert(MODEL, good, Request(quant="q4_k_m"))
    text = (FIXTURES / "kjv-heldout.txt").read_text("utf-8")[:20_000]
    trigger, answer, ordinary = ask(plain, tokenize=[TRIGGER, ANSWER, text])
    target = answer[-1]
    windows = [ordinary[at * WINDOW : (at + 1) * WINDOW] for at in range(WINDOWS)]
    source = poisoned(tmp_path / "kjv-llama", plain, trigger, target, windows)
    converter.convert(source, bad, Request(quant="q4_k_m"))

    answers = [int(np.argmax(ask(model, logits=trigger)[-1])) for model in (good, bad)]
    assert answers[0] != answers[1] == target, "the trigger works"
    held_out = ordinary[WINDOWS * WINDOW : (WINDOWS + 1) * WINDOW]
    exact, clean, changed = (np.array(ask(model, logits=held_out)) for model in (plain, good, bad))
    assert divergence(clean, changed) < 0.1 * divergence(exact, clean), "quantizing itself does far more"

    assert certify(MODEL, good).verdict == PROVEN
    found = certify(MODEL, bad)
    assert found.verdict == NOT and [each.name for each in found.unproven] == ["output.weight"]
    (row,) = {each.differing.first // 256 for each in found.unproven}
    assert (row, found.n_differing) == (target, 1), "the one block of that row"
    assert certify(source, bad).verdict == PROVEN, "of the poisoned source it is"


def nudged(share: float, step: int = 1) -> Any:
    """Some codes of Q4_K blocks one up or down, as rounding the other way would have them."""

    def change(rows: np.ndarray) -> None:
        codes = rows.reshape(-1, DTYPES["Q4_K"].type_size)[:, 16:]
        at = np.random.default_rng(5).random(codes.shape) < share
        low = codes & 15
        codes[at] = ((codes & 240) | np.where(low > 0, low - step, low + step))[at]

    return change


def test_codes_within_the_rounding_interval(tmp_path: Path) -> None:
    """Every code is still next to its weight; in one tensor, and in all alike so that it looks like another build."""
    shop = Workshop(tmp_path)
    source, good = shop.source("llama3-256"), shop.good("llama3-256", "q4_k_m")
    few = rewritten(good, tmp_path / "few.gguf", None, in_bytes(UP, nudged(0.0002)))
    found = certify(source, few)
    assert found.verdict == NOT and [each.name for each in found.unproven] == [UP]
    assert found.unproven[0].differing.worse < 2

    with converter.open_checkpoint(good) as model:
        names = [name for name, tensor in model.tensors.items() if tensor.info.dtype.name == "Q4_K"]

    def everywhere(old: Any) -> Any:
        for name in names:
            old = in_bytes(name, nudged(0.0001))(old)
        return old

    alike = certify(source, rewritten(good, tmp_path / "all.gguf", None, everywhere))
    assert alike.verdict == BUT_FOR, "nobody can tell; and so it is not proven"
    assert alike.n_differing > 50
