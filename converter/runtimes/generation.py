"""Whether a model runs: loaded by the runtime of its format, a few tokens of text made.

In a process of its own, for a runtime that dislikes a model may end the process it is in.
"""

from __future__ import annotations

import os
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import numpy as np

from converter.errors import ConverterError, MissingDependency, said_of
from converter.findings import Finding
from converter.runtimes.base import Runtime, RuntimeTokenizer
from converter.storage.files import refuse_elsewhere
from converter.workers import default_threads

TOKENS = 8
CONTEXT = 64
PROMPT = "Once upon a time"


@dataclass(frozen=True)
class Ran:
    """What came of it: the runtime and what it did (`words`), or what is wrong."""

    words: str = ""
    finding: Finding | None = None


def try_out(path: Path, format: str, threads: int | None = None) -> Ran:
    """Load the model at `path`, of a format by name, and let it say something."""
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        try:
            return pool.submit(_run, path, format, threads or default_threads()).result()
        except BrokenProcessPool:
            return Ran(finding=Finding("behaviour", path.name, "the runtime crashed while it loaded or ran it"))


def _run(path: Path, format: str, threads: int) -> Ran:
    from converter.runtimes.behaviour import RUNTIMES

    os.environ["GGML_NO_BACKTRACE"] = "1"  # where ggml ends the process, it has a debugger print pages
    plugin = RUNTIMES.get(format)
    if plugin is None:
        words = f"not run: no runtime here runs a model of format {format}"
        return Ran(finding=Finding("behaviour", path.name, words, failed=False))
    try:
        refuse_elsewhere(path, "what runs a model")
        with plugin.open(path, CONTEXT, threads) as runtime:
            return _used(runtime, path, plugin.tokenizer(path))
    except MissingDependency as error:
        return Ran(finding=Finding("behaviour", path.name, f"not run: {error}", failed=False))
    except ConverterError as error:
        return Ran(finding=Finding("behaviour", path.name, said_of(path, error)))


def _used(runtime: Runtime, path: Path, tokenizer: RuntimeTokenizer | None) -> Ran:
    ids = tokenizer.encode(PROMPT) if tokenizer else [0]
    if runtime.kind == "logits":
        for _ in range(TOKENS):
            # What follows a text is asked for with any token behind it.
            logits = runtime.logits([*ids, ids[0]], len(ids) - 1)[-1]
            if not np.isfinite(logits).all():
                return Ran(finding=Finding("behaviour", path.name, f"{runtime.name} gives logits that are not finite"))
            ids.append(int(np.argmax(logits)))
        return Ran(f"{runtime.name} generated {TOKENS} tokens")
    if runtime.kind == "embedding":
        arrays = [runtime.embedding(ids)]
    else:
        arrays = list(runtime.values(runtime.inputs(np.random.default_rng(0))).values())
    if not all(np.isfinite(array).all() for array in arrays):
        return Ran(finding=Finding("behaviour", path.name, f"{runtime.name} gives numbers that are not finite"))
    return Ran(f"{runtime.name} ran it")
