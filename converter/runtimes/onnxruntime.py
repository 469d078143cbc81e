"""ONNX models by ONNX Runtime, on the processor.

A graph with `input_ids` is a language model where it gives `logits`, else an encoder. Any other graph is fed random
floats.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from converter.errors import UnsupportedFeature, short
from converter.extras import package
from converter.formats.hub import graphs_in
from converter.formats.registry import open_checkpoint
from converter.runtimes.base import Floats, Named, Runtime, failures

NAME = "onnxruntime"
TYPES = {
    "tensor(float)": np.float32, "tensor(float16)": np.float16, "tensor(double)": np.float64,
    "tensor(int64)": np.int64, "tensor(int32)": np.int32, "tensor(bool)": np.bool_,
}  # fmt: skip
FLOATS = ("tensor(float)", "tensor(float16)", "tensor(double)")
# What the exporters' language models take beside input_ids, for one text of `length` tokens from its start.
FEEDS: dict[str, Callable[[int], list[list[int]]]] = {
    "attention_mask": lambda length: [[1] * length],
    "position_ids": lambda length: [list(range(length))],
    "token_type_ids": lambda length: [[0] * length],
}
PAST = "past_key_values."  # (batch, heads, past tokens, width): none
STATES = ("past_conv.", "past_ssm.", "past_recurrent.")  # (batch, ...) of what else is kept: zeros before a text


class OnnxRuntime(Runtime):
    """A model of ONNX Runtime.

    Raises:
        MissingDependency: onnxruntime is not installed.
        FormatError: our own reader, which looks at the file and its external data first, refuses it.
        UnsupportedFeature: ONNX Runtime refuses it, or it has inputs that nothing here can make.
    """

    def __init__(self, path: Path, context: int, threads: int) -> None:
        library = package(NAME, f"{path}: running it")
        path = next(iter(graphs_in(path)), path)
        self._path, self.name = path, f"ONNX Runtime {library.__version__}"
        with open_checkpoint(path):
            pass
        options = library.SessionOptions()
        options.intra_op_num_threads, options.log_severity_level = threads, 4
        with failures(path, NAME):
            self._session: Any = library.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        self._inputs = {each.name: each for each in self._session.get_inputs()}
        self._outputs = [each.name for each in self._session.get_outputs()]
        if "input_ids" not in self._inputs:
            self.kind = "values"
        else:
            self.kind = "logits" if "logits" in self._outputs else "embedding"
            length = self._inputs["input_ids"].shape[-1]
            self.context = length if isinstance(length, int) else None

    def logits(self, ids: Sequence[int], first: int) -> Floats:
        rows: Floats = self._run(["logits"], self._feeds(ids))[0][0, first:-1].astype(np.float32, copy=False)
        return rows

    def embedding(self, ids: Sequence[int]) -> Floats:
        found = self._run(None, self._feeds(ids))
        for states in found:
            if states.ndim == 3 and states.shape[:2] == (1, len(ids)):
                mean: Floats = states[0].astype(np.float32).mean(axis=0)
                return mean
        raise UnsupportedFeature(f"{self._path}: no output of one vector per token, only {', '.join(self._outputs)}")

    def given(self, ids: Sequence[int]) -> Named:
        """All outputs for one text, by name."""
        return dict(zip(self._outputs, self._run(None, self._feeds(ids)), strict=True))

    def _feeds(self, ids: Sequence[int]) -> Named:
        return {name: self._feed(name, ids).astype(TYPES[self._type(name)]) for name in self._inputs}

    def _feed(self, name: str, ids: Sequence[int]) -> Any:
        if name == "input_ids":
            return np.array([list(ids)])
        if name in FEEDS:
            return np.array(FEEDS[name](len(ids)))
        shape = self._inputs[name].shape
        if name.startswith(PAST) and len(shape) == 4 and isinstance(shape[1], int) and isinstance(shape[3], int):
            return np.zeros((1, shape[1], 0, shape[3]))
        if name.startswith(STATES) and shape and all(isinstance(size, int) for size in shape[1:]):
            return np.zeros((1, *shape[1:]))
        raise UnsupportedFeature(f"{self._path}: no value for its input {short(name)}")

    def inputs(self, random: np.random.Generator) -> Named:
        made: Named = {}
        for name, each in self._inputs.items():
            if each.type not in FLOATS:
                raise UnsupportedFeature(f"{self._path}: its input {short(name)} is no float ({each.type})")
            shape = [size if isinstance(size, int) else 1 for size in each.shape]
            made[name] = random.standard_normal(shape).astype(np.float32)
        return made

    def values(self, inputs: Named) -> Named:
        unknown = sorted(self._inputs.keys() ^ inputs.keys())
        if unknown:
            raise UnsupportedFeature(f"{self._path}: {short(unknown[0])} is an input of one of the two models only")
        feeds: Named = {name: array.astype(TYPES[self._type(name)]) for name, array in inputs.items()}
        return dict(zip(self._outputs, self._run(None, feeds), strict=True))

    def _type(self, name: str) -> str:
        kind = str(self._inputs[name].type)
        if kind not in TYPES:
            raise UnsupportedFeature(f"{self._path}: its input {short(name)} is a {kind}")
        return kind

    def _run(self, outputs: list[str] | None, feeds: Named) -> list[Any]:
        with failures(self._path, NAME):
            found: list[Any] = self._session.run(outputs, feeds)
        return found

    def close(self) -> None:
        self._session = None
