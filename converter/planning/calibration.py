"""Between which numbers activations are, found by running the model's own graph in F32 on a text.

Only scales and zero points depend on it, small tensors whose names and types are known before: nothing is run before
one of them is read, and then once for all.
"""

from __future__ import annotations

import tempfile
import threading
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from converter.errors import MissingPart, UnsupportedFeature, UsageError
from converter.formats.onnx.program import Program, laid_out
from converter.graphs.observed import ENDS, observed
from converter.runtimes.behaviour import probe_ids
from converter.runtimes.onnxruntime import OnnxRuntime
from converter.storage import output
from converter.tensors.dtypes import DTYPES, F32
from converter.tensors.tensor import LazyTensor, Rows, TensorInfo
from converter.workers import default_threads

#: Tokens that are run at once, where the model takes as many.
WINDOW = 256
_LEVELS = np.float32(255)


class Calibration:
    """Ranges of activations on a text.

    Args:
        text: a file, UTF-8.
        tokenizer: the model, whose tokenizer cuts the text.
        folder: where the graph lies while it runs.
        program: the model's graph in F32.
        context: tokens that the model takes at once.
    """

    def __init__(
        self, text: Path, tokenizer: Path, folder: Path, program: Callable[[], Program], context: int = WINDOW
    ) -> None:
        self.text, self._window = text, min(WINDOW, context)
        self._tokenizer, self._folder, self._program = tokenizer, folder, program
        self._matrices: list[str] = []
        self._found: Mapping[str, tuple[np.float32, np.uint8]] = {}
        self._lock = threading.Lock()

    def ranges(self, matrix: str) -> tuple[LazyTensor, LazyTensor]:
        """Of what a matrix meets, the scale and the code of zero, for `graphs.linear`."""
        self._matrices.append(matrix)
        source = f"ranges on {self.text}"

        def stored(at: int) -> Rows:
            self.run()
            return np.array([[self._found[matrix][at]]]).view(np.uint8)

        scale = TensorInfo(f"{matrix}.input_scale", (), F32)
        zero = TensorInfo(f"{matrix}.input_zero_point", (), DTYPES["U8"])
        return (
            LazyTensor(scale, lambda start, stop: stored(0)[start:stop], source),
            LazyTensor(zero, lambda start, stop: stored(1)[start:stop], source),
        )

    def run(self) -> None:
        """Find the ranges, unless they are known.

        Raises:
            MissingDependency: ONNX Runtime, or what the tokenizer needs, is not installed.
            ConverterError: the text, the tokenizer or the graph cannot be used.
        """
        with self._lock:
            if not self._found:
                self._found = self._ranges()

    def _ranges(self) -> dict[str, tuple[np.float32, np.uint8]]:
        ids, threads = self._ids(), default_threads()
        program = observed(self._program(), self._matrices)
        ends = {name: (np.float32(0), np.float32(0)) for name in self._matrices}
        with tempfile.TemporaryDirectory(prefix=".calibration-", dir=self._folder) as scratch:
            path = Path(scratch) / "model.onnx"
            output.write(laid_out(program, path, "auto"))
            with OnnxRuntime(path, self._window, threads) as runtime:
                for start in range(0, len(ids), self._window):
                    found = runtime.given(ids[start : start + self._window])
                    for name in self._matrices:
                        low, high = (np.float32(found[f"{name}.{end}"]) for end in ENDS)
                        ends[name] = np.minimum(ends[name][0], low), np.maximum(ends[name][1], high)
        return {name: self._codes(name, *each) for name, each in ends.items()}

    def _ids(self) -> list[int]:
        try:
            text = self.text.read_text("utf-8")
        except UnicodeDecodeError as error:
            raise UsageError(f"{self.text}: is not UTF-8 text") from error
        ids = probe_ids(self._tokenizer, text)
        if ids is None:
            raise MissingPart(f"{self._tokenizer}: no tokenizer, so that {self.text} cannot be read; put one beside it")
        if not ids:
            raise UsageError(f"{self.text}: no tokens in it")
        return ids

    def _codes(self, name: str, low: np.float32, high: np.float32) -> tuple[np.float32, np.uint8]:
        """A scale and the code of zero, as ONNX' DynamicQuantizeLinear has them."""
        if not np.isfinite(low) or not np.isfinite(high):
            raise UnsupportedFeature(f"{name}: meets numbers that are not finite on {self.text}, and has no range")
        scale = np.float32((high - low) / _LEVELS) or np.float32(1)
        return scale, np.uint8(np.clip(np.rint(-low / scale), 0, 255))
