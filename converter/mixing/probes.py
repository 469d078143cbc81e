"""How much a model suffers from errors in each group of its tensors: KL divergence, measured by llama.cpp.

One GGUF lies in a temporary folder, the source in its own precision. For each group its tensors are overwritten there
by what a low type leaves of them, the model reads a short text, and the numbers are put back: nothing else is written,
and nothing differs but these errors.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from converter import pipeline
from converter.errors import QuantizationError
from converter.mixing.measured import Floats, through
from converter.planning.plan import Plan, Step
from converter.request import Request, Source
from converter.runtimes.behaviour import Divergence
from converter.runtimes.llama_cpp import LlamaCpp
from converter.storage.layout import Slot
from converter.storage.slabs import row_ranges
from converter.tensors import kernels
from converter.tensors.streams import values

Chunks = Sequence[Sequence[int]]
NAME = "probe.gguf"


class Reference:
    """A model's answers to a text, kept in a file: what others are compared with."""

    def __init__(self, model: Path, chunks: Chunks, folder: Path, threads: int) -> None:
        self._chunks, self._threads = chunks, threads
        self._path = folder / "logits"
        with open(self._path, "wb") as file:  # written, not mapped: a full disk is an error, and no signal
            for logits in self._answers(model):
                file.write(np.ascontiguousarray(logits, np.float32).data)

    def _answers(self, model: Path) -> Iterator[Floats]:
        with LlamaCpp(model, max(map(len, self._chunks)), self._threads) as runtime:
            self.runtime = runtime.name
            for chunk in self._chunks:
                yield runtime.logits(chunk, len(chunk) // 2)

    def kl(self, model: Path) -> float:
        """Mean KL divergence of the model from the reference in nats, over the second half of each chunk."""
        found = Divergence()
        with open(self._path, "rb") as file:
            for chunk, answer in zip(self._chunks, self._answers(model), strict=True):
                own = np.fromfile(file, np.float32, answer.size)
                found.add(own.reshape(answer.shape), answer, chunk[len(chunk) // 2 + 1 :])
        return float(np.mean(found.kl))


class Bench:
    """The file that is changed and put right again."""

    def __init__(self, plan: Plan) -> None:
        (file,) = plan.layout.files
        self.path = file.path
        self._slots = {slot.tensor.name: slot for slot in file.slots}

    @contextmanager
    def harmed(self, steps: Mapping[str, Step]) -> Iterator[None]:
        """The file with tensors as these steps would leave them."""
        try:
            for name, step in steps.items():
                self._write(self._slots[name], step)
            yield
        finally:
            for name in steps:
                self._write(self._slots[name], None)

    def _write(self, slot: Slot, harm: Step | None) -> None:
        """A tensor as it is, or as a step leaves it."""
        tensor = slot.tensor
        with open(self.path, "r+b") as file:
            for start, stop in row_ranges((tensor,), 12 * tensor.info.row):
                rows = tensor.rows(start, stop)
                if harm is not None:
                    rows = kernels.encode(through(values(tensor, start, stop), harm, start), tensor.info.dtype)
                file.seek(slot.offset + start * tensor.info.row_nbytes)
                file.write(np.ascontiguousarray(rows).tobytes())


@contextmanager
def bench(source: Source, request: Request, folder: Path, threads: int | None) -> Iterator[Bench]:
    """The source as a GGUF in its own precision, in `folder`.

    Raises:
        QuantizationError: it has none, its tensors arrive quantized.
        ConverterError: as `convert`.
    """
    plain = request.replace(
        quant=None, recipe=None, imatrix=None, effort=0, include_weights=(), exclude_weights=(), tensor_types=(),
        output_type=None, embedding_type=None, pure=False, leave_output=False, format="gguf", strict=False,
        split_max_size=None, split_max_tensors=None, spread=(), keep_codes="never",
    )  # fmt: skip
    plan = pipeline.plan(source, folder / NAME, plain)
    with plan.checkpoint:
        packed = next((step for step in plan.steps if step.info.dtype.quantized), None)
        if packed is not None:
            raise QuantizationError(
                f"{source.path}: {packed.name} is {packed.type} already; what types do is measured on plain numbers\n"
                "take the model that this one was made of"
            )
        pipeline.run(plan, threads=threads)
        yield Bench(plan)
