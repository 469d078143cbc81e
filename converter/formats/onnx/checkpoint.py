"""ONNX: the tensors of a model in; a model with its graph out where there is one, else a model of nothing but tensors.

In come the initializers and the tensors in nodes' attributes, of the graph, its subgraphs (If, Loop, Scan), the
functions and the training graphs. An initializer keeps its name, a Constant has that of its output, another
attribute's tensor is `<output>.<attribute>`; a name that several graphs use is preceded by the nodes it lies in.
Bytes stay where they are: in the model's file or in the files that external data names, which must lie in its folder.

Out goes, from ONNX, the model with its graph: tensors can move into a data file or out of it, and change their type.
From another format, it is a model whose graph has initializers and no node, and says so; tensors over 1 KiB lie
outside then. The data file is `<name>.onnx.data`, its tensors at offsets that can be mapped.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from converter import __version__
from converter.checkpoint import Checkpoint
from converter.errors import CorruptFile, UnsupportedFeature, short
from converter.events import Note
from converter.formats.base import WriteOptions
from converter.formats.hub import client_folder, folder_assets, graphs_in, has_weights
from converter.formats.onnx import origin
from converter.formats.onnx.graph import Graph, rewritten
from converter.formats.onnx.model import INLINE_NBYTES, Model
from converter.formats.onnx.program import PRODUCER, Program, Programs, laid_out, several
from converter.formats.onnx.values import CODES, lazy
from converter.formats.onnx.writer import DataFile, Piece, assembled, entry, nbytes, values
from converter.storage.files import expands_too_far
from converter.storage.layout import Layout
from converter.storage.protobuf import blob, blob_key, number
from converter.tensors.tensor import LazyTensor

# ------------------------------------------------------------------------------------------------- reading

# First byte of a ModelProto: the key of one of its fields with its wire type.
_FIRST = frozenset((0x08, 0x12, 0x1A, 0x22, 0x28, 0x32, 0x3A, 0x42, 0x72))
_OLDEST_IR, _NEWEST_IR = 3, 64


def sniff(path: Path, start: bytes) -> bool:
    """ONNX has no magic: its first two keys must be a model's; under another name than .onnx, a version first.

    A folder with graphs where clients look for them is one, too, unless it has other weights.
    """
    if path.is_dir():
        return bool(graphs_in(path)) and not has_weights(path)
    if not start or start[0] not in _FIRST:
        return False
    if path.suffix.lower() == ".onnx":
        return True
    return len(start) > 2 and start[0] == 0x08 and _OLDEST_IR <= start[1] <= _NEWEST_IR and start[2] in _FIRST - {0x08}


def open_onnx(path: Path) -> Checkpoint:
    """The tensors of a `.onnx` model, with its external data; of a graph of ours the GGUF that it was written of.

    Of a folder, the first of the graphs that clients know.

    Raises:
        CorruptFile: truncated, contradictory, external data outside the folder; as `origin.read`.
        MissingPart: a file of external data is not there.
        UnsupportedFeature: sparse tensors, parts of tensors, unknown types, no tensor at all.
    """
    path, *others = graphs_in(path) if path.is_dir() else [path]
    model = Model(path)
    try:
        with model.file.scattered():
            model.walk()
        sites = model.name_tensors()
        tensors = {name: lazy(name, site.stored) for name, site in sites.items()}
        _check_growth(model, tensors)
    except BaseException:
        model.close()
        raise
    stored = Checkpoint(
        format="onnx",
        path=path,
        dialect=None,
        tensors=tensors,
        metadata=model.metadata,
        events=tuple(model.events),
        files=(path, *(file.path for file in model.external.files.values())),
        closers=(model.close,),
        checks=tuple(model.external.checks()),
        structure=Graph(model, sites),
        graph=model.facts,
    )
    try:
        meant = _meant(stored)
    except BaseException:
        model.close()
        raise
    if not others:
        return meant
    left = ", ".join(each.name for each in others)
    note = Note(f"{path.name} is taken; also there, and left out: {left}")
    return meant.replace(events=(*meant.events, note))


def _meant(stored: Checkpoint) -> Checkpoint:
    """The GGUF that a graph of ours was written of; any other model as it is."""
    said, structure = stored.metadata.get(origin.KEY), stored.structure
    if said is None or not isinstance(structure, Graph):
        return stored
    try:
        found = origin.read(said, stored.path, stored.tensors)
    except origin.Changed as changed:
        note = Note(f"written of a GGUF and changed since, {short(str(changed))} is not there: its tensors are read")
        return stored.replace(events=(*stored.events, note))
    return stored.replace(
        dialect="gguf",
        tensors=found.tensors,
        config=found.keys,
        metadata={key: text for key, text in stored.metadata.items() if key != origin.KEY},
        assets=folder_assets(client_folder(stored.path)),
        events=(),
        structure=None,
        stored=stored.replace(structure=replace(structure, beside=found.beside)),
    )


def _check_growth(model: Model, tensors: Mapping[str, LazyTensor]) -> None:
    """Refuse many tensors that say they lie on the same bytes of a data file."""
    declared = sum(tensor.info.nbytes for tensor in tensors.values())
    given = model.file.size + sum(file.size for file in model.external.files.values())
    if expands_too_far(declared, given):
        raise CorruptFile(f"{model.path}: its tensors declare {declared} bytes, with its data files it has {given}")


# ------------------------------------------------------------------------------------------------- writing

LABEL = "Tensors only: initializers without a graph, nothing to run."
# (IR version, opset) that has a type, the last one for all others; onnxruntime reads the older ones longest.
_VERSIONS = {
    "F8_E8M0": (12, 24), "F8_E4M3": (9, 19), "F8_E4M3FNUZ": (9, 19), "F8_E5M2": (9, 19), "F8_E5M2FNUZ": (9, 19),
}  # fmt: skip
_OLDEST = (8, 17)


def layout(checkpoint: Checkpoint, target: Path, options: WriteOptions) -> Layout:
    """The model's file, and its data file where tensors lie outside.

    Raises:
        UnsupportedFeature: a type that ONNX cannot hold, a split, a file of more than 2 GiB; from ONNX, what the
            graph cannot do with.
        UsageError: a name that external data cannot have.
    """
    if options.split_max_size is not None or options.split_max_tensors is not None:
        raise UnsupportedFeature(f"{target}: splitting is for GGUF, safetensors and PyTorch output")
    if isinstance(checkpoint.structure, Program):
        return laid_out(checkpoint.structure, target, options.external_data)
    if isinstance(checkpoint.structure, Programs):
        return several(checkpoint.structure, target, options.external_data)
    if isinstance(checkpoint.structure, Graph):
        return rewritten(checkpoint, checkpoint.structure, target, options.external_data)
    data = DataFile(target)
    tensors: list[Piece] = []
    for tensor in checkpoint.tensors.values():
        outside = options.external_data != "never" and tensor.info.nbytes > INLINE_NBYTES
        message = [_tensor_head(target, tensor), *values(tensor, data if outside else None)]
        tensors += [blob_key(5, nbytes(message)), *message]
    graph = [blob(2, b"tensors"), *tensors, blob(10, LABEL.encode())]
    pieces = [_model_head(checkpoint), blob_key(7, nbytes(graph)), *graph, _model_tail(checkpoint)]
    return assembled(target, pieces, None, data)


def _tensor_head(target: Path, tensor: LazyTensor) -> bytes:
    info = tensor.info
    if info.dtype.name not in CODES:
        raise UnsupportedFeature(
            f"{target}: tensor {short(tensor.name)} is {info.dtype}, which ONNX cannot hold; "
            "pass --dtype f16, bf16 or f32 to decode it"
        )
    dims = b"".join(number(1, size) for size in info.shape)
    return dims + number(2, CODES[info.dtype.name]) + blob(8, info.name.encode())


def _versions(checkpoint: Checkpoint) -> tuple[int, int]:
    return max((_VERSIONS.get(t.info.dtype.name, _OLDEST) for t in checkpoint.tensors.values()), default=_OLDEST)


def _model_head(checkpoint: Checkpoint) -> bytes:
    label = blob(2, PRODUCER.encode()) + blob(3, __version__.encode()) + blob(6, LABEL.encode())
    return number(1, _versions(checkpoint)[0]) + label


def _model_tail(checkpoint: Checkpoint) -> bytes:
    texts = b"".join(blob(14, entry(key, value)) for key, value in checkpoint.metadata.items())
    return blob(8, blob(1, b"") + number(2, _versions(checkpoint)[1])) + texts
