"""Tracing, as the rest of the house sees it: a process is started, asked, and its answer read."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from converter import errors
from converter.errors import ConverterError, UnsupportedFeature, short
from converter.formats.torch.values import TYPES
from converter.tensors.tensor import TensorInfo
from converter.tracing.answer import Answer, received

#: Seconds. A large model takes minutes; what takes longer is no model.
PATIENCE = 2 * 3600
#: Nothing is asked of the network by libraries that would; the guard refuses what would still be tried.
ALONE = {
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "PYTHONWARNINGS": "ignore",
}


def trace(path: Path, config: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]], dtype: str) -> Answer:
    """The graphs of a model of transformers that a config describes, traced by torch without any weights.

    Args:
        path: of the model, for messages.
        config: its config.json.
        shapes: the tensors of its checkpoint.
        dtype: what it calculates in, "F32" or "F16".

    Raises:
        MissingDependency: torch, transformers or onnxscript is not there.
        ConverterError: whatever makes it impossible, as its kind.
    """
    asked = {"config": dict(config), "tensors": {name: list(shape) for name, shape in shapes.items()}, "dtype": dtype}
    return _asked(path, json.dumps(asked))


def translate(path: Path, program: Mapping[str, Any], tensors: Mapping[str, TensorInfo]) -> Answer:
    """The graph of an exported program of torch, translated by torch without any weights.

    Args:
        path: of the file, for messages.
        program: its clean JSON (`formats.torch.exported`).
        tensors: those in it.

    Raises:
        MissingDependency: torch or onnxscript is not there.
        ConverterError: whatever makes it impossible, as its kind.
    """
    names = {ours: theirs for theirs, ours in TYPES.items()}
    told = {name: {"shape": list(info.shape), "dtype": names[info.dtype.name]} for name, info in tensors.items()}
    return _asked(path, json.dumps({"program": dict(program), "tensors": told}))


def _asked(path: Path, asked: str) -> Answer:
    # What this program imports from, the other one imports from, too.
    environment = {**os.environ, **ALONE, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    # -P: the folder one stands in is not on that path, whatever modules lie there.
    command = [sys.executable, "-B", "-P", "-m", "converter.tracing.child"]
    try:
        done = subprocess.run(
            command, input=asked.encode(), capture_output=True, timeout=PATIENCE, env=environment, check=False
        )
    except subprocess.TimeoutExpired:
        raise UnsupportedFeature(f"{path}: torch has not traced it within {PATIENCE // 3600} hours") from None
    try:
        answer = received(done.stdout)
    except ValueError:
        last = (done.stderr.decode("utf-8", "replace").strip().splitlines() or ["nothing"])[-1]
        raise UnsupportedFeature(
            f"{path}: the process that traces it ended with {done.returncode}; its last words: {short(last, 200)}"
        ) from None
    if isinstance(answer, Answer):
        return answer
    raise _error(path, *answer)


def _error(path: Path, kind: str, text: str) -> ConverterError:
    found = getattr(errors, kind, UnsupportedFeature)
    known = isinstance(found, type) and issubclass(found, ConverterError)
    return (found if known else UnsupportedFeature)(f"{path}: {text}")
