"""What a graph says of the GGUF that it was written of, so that it can be read back."""

from __future__ import annotations

from collections.abc import Container

from converter.formats.onnx import origin
from converter.formats.onnx.origin import MAX_VALUES, Form
from converter.graphs.experts import is_stacked
from converter.graphs.linear import Matrices
from converter.graphs.model import Model
from converter.metadata import Array, Metadata, Value
from converter.tensors.tensor import LazyTensor

NEXTN = "nextn_predict_layers"


def texts(model: Model, matrices: Matrices, initializers: Container[str]) -> dict[str, str]:
    """The text of `formats.onnx.origin`; none where the graph has a tensor in a form that has no way back.

    Raises:
        UnsupportedFeature: as `origin.written`.
    """
    forms = {}
    for name, tensor in model.tensors.items():
        if name not in model.read:
            continue
        form = _form(model, name, tensor, matrices, initializers)
        if form is None:
            return {}
        forms[name] = form
    return {origin.KEY: origin.written(keys(model), forms)}


def _form(model: Model, name: str, tensor: LazyTensor, matrices: Matrices, initializers: Container[str]) -> Form | None:
    if is_stacked(name):
        each = tuple(tensor.name for tensor in model.experts(name))
        known = len(each) > 1 and all(stored in initializers for stored in each)
        return Form(each, matrices.types.get(each[0], ""), matrices.is_turned(each[0])) if known else None
    own = model.tensor(name)
    stored = own.name if own is not None else name
    if stored in initializers:
        heads = tuple(
            (int(op.heads), None if op.n_rot is None else int(op.n_rot), op.undo) for op in model.undone(name)
        )
        return Form((stored,), matrices.types.get(stored, ""), matrices.is_turned(stored), heads)
    if len(tensor.info.shape) == 1 and tensor.info.n_elements <= MAX_VALUES:
        return Form(values=tuple(tensor.array().astype("<f4").tolist()))
    return None


def keys(model: Model) -> Metadata:
    """The model's keys without the tokenizer, and without the blocks that predict further tokens."""
    own = {key: value for key, value in model.metadata.items() if not key.startswith("tokenizer.")}
    count = f"{model.architecture.gguf}.block_count"
    whole = model.size("block_count")
    if model.n_layer == whole:
        return own
    own.pop(f"{model.architecture.gguf}.{NEXTN}", None)
    own[count] = Value("u32", model.n_layer)
    for key, value in own.items():
        if isinstance(value, Array) and len(value) == whole:
            own[key] = Array(value.type, value.values[: model.n_layer])
    return own
