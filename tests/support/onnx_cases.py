"""A decoder's ONNX graph against transformers: nine cases of batches, caches and padding."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Ids = NDArray[np.int64]
Logits = NDArray[np.float32]
LENGTH = 40
#: Noise, relative to the largest logit.
CLOSE = 2e-5
#: Architecture -> how many times more it is: transformers' own chunks of tokens and single tokens differ by half of
#: CLOSE; where attention has no scale, random weights magnify what is rounded: torch in F32 differs by 3e-5 from itself
#: in F64.
NOISE = {"qwen3next": 2, "qwen35": 2, "qwen35moe": 2, "gemma4": 10}
#: name -> batch, where the text is cut, tokens of padding in front of the first row.
CASES: dict[str, tuple[int, Iterable[int], int]] = {
    "one token": (1, (), 0), "seven tokens": (1, (), 0), "three texts": (3, (), 0), "one by one": (1, range(20, 40), 0),
    "in pieces": (1, (20, 21, 33), 0), "two, one by one": (2, range(20, 40), 0), "two, in pieces": (2, (20, 33), 0),
    "padded": (2, (), 9), "padded, one by one": (2, range(20, 40), 9),
}  # fmt: skip
LENGTHS = {"one token": 1, "seven tokens": 7}
KINDS = {"tensor(float)": np.float32, "tensor(float16)": np.float16, "tensor(int64)": np.int64}


def close(architecture: str) -> float:
    """The largest difference that is noise."""
    return CLOSE * NOISE.get(architecture, 1)


def session(path: Path) -> Any:
    """A graph of ours in ONNX Runtime, on one thread; one without anything that is there for nothing."""
    import onnxruntime

    assert not list(unread(path))

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def unread(path: Path) -> Iterator[str]:
    """Initializers that no operator reads, of which ONNX Runtime warns, and operators no output of which any reads."""
    import onnx

    graphs = [onnx.load(path, load_external_data=False).graph]
    for graph in graphs:  # those that operators have, too: names of the outer ones are read in them
        graphs += [each.g for node in graph.node for each in node.attribute if each.HasField("g")]
    read = {name for graph in graphs for node in graph.node for name in node.input}
    read |= {value.name for graph in graphs for value in graph.output}
    for graph in graphs:
        yield from (each.name for each in graph.initializer if each.name not in read)
        yield from (node.output[0] for node in graph.node if read.isdisjoint(node.output))


def run(session: Any, ids: Ids, mask: Ids, past: dict[str, Any] | None) -> dict[str, Any]:
    """Outputs by name, for new tokens after those of `past`."""
    positions = np.clip(mask.cumsum(1) - 1, 0, None)[:, -ids.shape[1] :]
    feeds: dict[str, Any] = {"input_ids": ids, "attention_mask": mask, "position_ids": positions}
    for each in session.get_inputs():
        if each.name.startswith("past_"):
            empty = np.zeros([0 if size == "past_sequence_length" else size for size in each.shape[1:]])
            empty = np.broadcast_to(empty, (len(ids), *empty.shape)).astype(KINDS[each.type])
            name = re.sub("^past_key_values|^past", "present", each.name)
            feeds[each.name] = past[name] if past else empty
    wanted = {each.name for each in session.get_inputs()}
    names = [each.name for each in session.get_outputs()]
    return dict(zip(names, session.run(None, {k: v for k, v in feeds.items() if k in wanted}), strict=True))


def differences(
    path: Path, reference: Callable[[Ids, Ids], Logits], n_vocab: int, without: str = ""
) -> dict[str, float]:
    """Per case (but one) the largest difference of logits from those of `reference(ids, mask)`, relative to the
    largest logit."""
    import onnx

    onnx.checker.check_model(str(path), full_check=True)
    own, found = session(path), {}
    random = np.random.default_rng(7)
    for name, (batch, cuts, padding) in CASES.items():
        if name == without:
            continue
        length = LENGTHS.get(name, LENGTH)
        ids = random.integers(3, n_vocab, (batch, length))
        mask = np.ones_like(ids)
        mask[0, :padding] = 0
        want, past, worst = reference(ids, mask), None, 0.0
        for start, stop in zip([0, *cuts], [*cuts, length], strict=True):
            past = run(own, ids[:, start:stop], mask[:, :stop], past)
            logits = past["logits"].astype(np.float32)
            error = np.abs(logits - want[:, start:stop]).max(-1)[mask[:, start:stop] > 0]
            worst = max(worst, float(error.max()) if np.isfinite(error).all() else float("inf"))
        found[name] = worst / float(np.abs(want[mask > 0]).max())
    return found


def graph_reference(path: Path) -> tuple[Callable[[Ids, Ids], Logits], int]:
    """Another graph, which is given whole texts, and the size of its vocabulary."""
    own = session(path)

    def logits(ids: Ids, mask: Ids) -> Logits:
        found: Logits = run(own, ids, mask, None)["logits"]
        return found

    return logits, int(next(each.shape[-1] for each in own.get_outputs() if each.name == "logits"))


def torch_reference(folder: Path) -> tuple[Callable[[Ids, Ids], Logits], int]:
    """transformers' own model of a folder, in F32, and the size of its vocabulary."""
    import torch
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()

    def logits(ids: Ids, mask: Ids) -> Logits:
        positions = torch.tensor(np.clip(mask.cumsum(1) - 1, 0, None))
        with torch.no_grad():
            made = model(torch.tensor(ids), attention_mask=torch.tensor(mask), position_ids=positions)
        found: Logits = made.logits.numpy()
        return found

    n_vocab = int(model.get_input_embeddings().weight.shape[0])
    # Words have vectors for each block; what stands for parts of images and sounds has none.
    return logits, min(n_vocab, getattr(model.config, "vocab_size_per_layer_input", n_vocab) or n_vocab)
