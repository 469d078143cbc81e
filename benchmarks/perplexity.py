"""Perplexity of the trained fixture in every quantization, by llama.cpp, on text it has not seen.

    python benchmarks/perplexity.py [--markdown]

The text is cut into windows of the model's context; each window starts with BOS, and its second half is
scored, as llama-perplexity does.
"""

from __future__ import annotations

import argparse
import math
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

import converter

ROOT = Path(__file__).resolve().parent.parent
MODEL = ROOT / "fixtures" / "kjv-llama"
TEXT = ROOT / "fixtures" / "kjv-heldout.txt"
QUANTS = ("f16", "q8_0", "q6_k", "q5_k_m", "q4_k_m", "q3_k_m", "q2_k")


def perplexity(path: Path, text: str, context: int = 256) -> float:
    """exp of the mean negative log-likelihood of the second half of every window."""
    from llama_cpp import Llama

    model = Llama(str(path), n_ctx=context, n_batch=context, logits_all=True, verbose=False)
    tokens = model.tokenize(text.encode(), add_bos=False)
    losses = [loss for window in _windows(tokens, context, model.token_bos()) for loss in _losses(model, window)]
    model.close()
    return math.exp(float(np.mean(losses)))


def _windows(tokens: list[int], context: int, bos: int) -> Iterator[list[int]]:
    for start in range(0, len(tokens) - context + 1, context):
        yield [bos, *tokens[start + 1 : start + context]]


def _losses(model: object, window: list[int]) -> Iterator[float]:
    model.reset()  # type: ignore[attr-defined]
    model.eval(window)  # type: ignore[attr-defined]
    half = len(window) // 2
    scores = np.array(model.scores[half : len(window) - 1], np.float64)  # type: ignore[attr-defined]
    scores -= scores.max(axis=1, keepdims=True)
    log_sums = np.log(np.exp(scores).sum(axis=1))
    targets = window[half + 1 :]
    yield from log_sums - scores[np.arange(len(targets)), targets]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--markdown", action="store_true", help="a table for docs/quantization.md")
    args = parser.parse_args()
    text = TEXT.read_text()
    line = "| {} | {:,} | {:.2f} | {:.3f} |" if args.markdown else "{:<8} {:>10,} {:>8.2f} {:>9.3f}"
    with tempfile.TemporaryDirectory() as folder:
        for quant in QUANTS:
            path = Path(folder) / f"{quant}.gguf"
            plan = converter.convert(MODEL, path, converter.Request(quant=quant))
            print(line.format(quant, path.stat().st_size, plan.bits_per_weight, perplexity(path, text)), flush=True)


if __name__ == "__main__":
    main()
