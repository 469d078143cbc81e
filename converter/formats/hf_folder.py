"""A Hugging Face folder: config.json, weights (safetensors or PyTorch, also sharded), tokenizer and small files."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np

from converter.address import is_elsewhere
from converter.checkpoint import Checkpoint
from converter.errors import CorruptFile, MissingPart, OutputExists
from converter.events import Dropped, Event, Note
from converter.formats.base import Format, WriteOptions, child, head
from converter.formats.hub import MODULES, TEMPLATES, graphs_in, has_weights, module_of, modules, shard_of
from converter.formats.safetensors import INDEX_SUFFIX, open_safetensors
from converter.formats.safetensors import layout as safetensors_layout
from converter.formats.torch.checkpoint import open_torch
from converter.storage.files import local, regular_size
from converter.storage.layout import FileLayout, Layout, Slot, whole_file
from converter.storage.stand_ins import stand_in
from converter.tensors.dtypes import BY_SAFETENSORS, DTYPES
from converter.tensors.tensor import Extent, LazyTensor, Rows, TensorInfo

WEIGHTS = ("model.safetensors", f"model{INDEX_SUFFIX}")
# Only where there is no safetensors file, and no other name: such folders hold pickles of other things, too.
TORCH_WEIGHTS = ("pytorch_model.bin", "pytorch_model.bin.index.json")
TORCH_SHARDS = "pytorch_model-*-of-*.bin"

# What `save_pretrained` of transformers 5 takes (4 had 5 GB): most models are then one file that any tool can map.
SHARD_SIZE = 50 * 1000**3
# Weights, indexes of weights and pickles: everything else in a model's folder is a small file that belongs to it.
NOT_SMALL = (
    ".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".gguf", ".ggml", ".h5", ".hdf5", ".keras",
    ".msgpack", ".ot", ".onnx", ".onnx_data", ".onnx.data", ".pb", ".tflite", ".npy", ".npz", ".index", ".index.json",
    ".data", ".part",
)  # fmt: skip
PAGES = (".html", ".htm", ".xml", ".svg")
MAX_SMALL = 128 << 20  # bytes; the largest published tokenizer.json has 35 MB


def sniff(path: Path, start: bytes) -> bool:
    """A folder with a config.json or with safetensors weights, unless a params.json says that they are Mistral's."""
    if not path.is_dir() or (graphs_in(path) and not has_weights(path)):
        return False
    return (path / "config.json").is_file() or (
        any(path.glob("*.safetensors")) and not (path / "params.json").is_file()
    )


def open_folder(path: Path) -> Checkpoint:
    """The folder's weights with its config and assets. Only weights, config and tokenizer files are opened.

    Raises:
        MissingPart: no config.json, or no weights that can be told apart.
        CorruptFile, UnsupportedFeature: what the weights' reader raises.
    """
    if not (path / "config.json").is_file():
        raise MissingPart(f"{path}: no config.json; give the weights file itself to convert its tensors as they are")
    indexes = sorted(path.glob(f"*{INDEX_SUFFIX}"))
    files = _one_of_each_set(path.glob("*.safetensors"))
    chosen = [path / name for name in WEIGHTS if (path / name).is_file()][:1] or indexes or files
    torch = [path / name for name in TORCH_WEIGHTS if (path / name).is_file()][:1]
    torch = torch or _one_of_each_set(path.glob(TORCH_SHARDS))
    if not chosen and len(torch) == 1:
        return _whole(path, _told(open_torch(child(path, torch[0].name, path)), torch[0], _others(path)))
    if len(chosen) == 1:
        return _whole(path, _told(open_safetensors(child(path, chosen[0].name, path)), chosen[0], _others(path)))
    found = ", ".join(file.name for file in (indexes or files)[:4]) or "none"
    raise MissingPart(f"{path}: no model.safetensors and no model{INDEX_SUFFIX} (found: {found})\ngive the file itself")


def _others(path: Path) -> list[Path]:
    """Everything there that transformers might take for the weights."""
    named = [path / name for name in (*WEIGHTS, *TORCH_WEIGHTS) if (path / name).is_file()]
    return [*named, *_one_of_each_set([*path.glob("model-*-of-*.safetensors"), *path.glob(TORCH_SHARDS)])]


def _told(checkpoint: Checkpoint, taken: Path, found: Iterable[Path]) -> Checkpoint:
    """With a note where the same model lies there a second time, whole or in shards: it may be an older one."""
    own = {taken.name, *(file.name for file in checkpoint.files)}
    others = [file.name for file in found if file.name not in own]
    if not others:
        return checkpoint
    note = Note(f"{taken.name} is taken, as transformers does; also there, and left out: {', '.join(others[:4])}")
    return checkpoint.replace(events=(*checkpoint.events, note))


def _one_of_each_set(files: Iterable[Path]) -> list[Path]:
    """The files in order, of those that are shards of one set only the first."""
    sets = {shard[:2] if (shard := shard_of(path)) else path.name: path for path in sorted(files, reverse=True)}
    return sorted(sets.values())


def _whole(folder: Path, checkpoint: Checkpoint) -> Checkpoint:
    """The checkpoint of a file as that of its folder, with every small file there."""
    whole = checkpoint.replace(format="hf", path=folder, assets={**small_files(folder), **checkpoint.assets})
    try:
        for path in dict.fromkeys(path for kind, path in modules(whole.assets) if not kind.endswith("Transformer")):
            whole = _with_module(whole, path)
    except BaseException:
        whole.close()
        raise
    return whole


def _with_module(whole: Checkpoint, path: str) -> Checkpoint:
    """The checkpoint with the weights of a module after the model (a dense layer), as `2_Dense/linear.weight`."""
    names = (f"{path}/{name}" for name in (WEIGHTS[0], TORCH_WEIGHTS[0]))
    name = next((name for name in names if path and (whole.path / name).is_file()), None)
    if name is None:
        return whole
    file = child(whole.path, name, whole.assets[MODULES])
    module = (open_safetensors if name.endswith(WEIGHTS[0]) else open_torch)(file)
    tensors = {(own := f"{path}/{each}"): tensor.renamed(own) for each, tensor in module.tensors.items()}
    return whole.replace(
        tensors={**whole.tensors, **tensors},
        assets={**whole.assets, **{f"{path}/{each}": asset for each, asset in module.assets.items()}},
        files=(*whole.files, *module.files),
        events=(*whole.events, *module.events),
        closers=(*whole.closers, *module.closers),
        checks=(*whole.checks, *module.checks),
    )


def small_files(folder: Path) -> dict[str, Path]:
    """What lies in a model's folder beside its weights, by name; none of them is opened."""
    return {name: path for name, path in _listed(folder).items() if _is_small(path) and _is_inside(folder, name)}


def _listed(folder: Path) -> dict[str, Path]:
    """The folder's files, less hidden ones, and those of its folders that hold no weights (one with weights is
    another model, such as a training checkpoint). Links to folders are not followed."""
    found: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        if path.name.startswith("."):
            continue
        if path.is_file():
            found[path.name] = path
        elif path.is_dir() and not path.is_symlink():
            inner = [each for each in sorted(path.iterdir()) if each.is_file() and not each.name.startswith(".")]
            if all(_is_small(each) for each in inner) or path.name == TEMPLATES:
                found.update((f"{path.name}/{each.name}", each) for each in inner)
    return found


def _is_small(path: Path) -> bool:
    return not path.name.lower().endswith(NOT_SMALL) and regular_size(path) <= MAX_SMALL


def _is_inside(folder: Path, name: str) -> bool:
    try:
        child(folder, name, folder)
    except CorruptFile:
        return False
    return True


def layout(checkpoint: Checkpoint, target: Path, options: WriteOptions) -> Layout:
    """A folder that transformers loads: weights as safetensors, what was made for it, and the source's small files.

    Raises:
        MissingPart: there is no config.json, which makes a folder a model.
        OutputExists: the target holds weights under other names, which readers would take for these or mix with them.
        UnsupportedFeature, UsageError: as for safetensors files.
    """
    if "config.json" not in {*checkpoint.made, *checkpoint.assets}:
        raise MissingPart(f"{target}: a Hugging Face folder needs a config.json; --config DIR takes one from a folder")
    if options.split_max_size is None:
        options = replace(options, split_max_size=SHARD_SIZE)
    # transformers refuses files that do not say whose tensors they hold.
    labelled = checkpoint.replace(metadata={"format": "pt", **checkpoint.metadata})
    weights = [
        file for folder, part in _parts(labelled)
        for file in safetensors_layout(part, target / folder / WEIGHTS[0], options).files
    ]  # fmt: skip
    small, events = beside_weights(checkpoint, target)
    _refuse_rivals(target, {file.path.name for file in weights if file.path.parent == target})
    return Layout((*weights, *small), target, (*events, *_left(checkpoint)))


def beside_weights(checkpoint: Checkpoint, target: Path) -> tuple[list[FileLayout], list[Event]]:
    """What lies beside the weights in a folder to be: what was made for it, and what is carried over."""
    made = [whole_file(target / name, content) for name, content in checkpoint.made.items()]
    small = {name: path for name, path in checkpoint.assets.items() if name not in checkpoint.made}
    absent = {name: says for name, path in small.items() if (says := _stands_in(path))}
    carried = [copy_of(path, target / name) for name, path in small.items() if name not in absent]
    return [*made, *carried], [Dropped(*each) for each in absent.items()]


def _parts(checkpoint: Checkpoint) -> Iterator[tuple[str, Checkpoint]]:
    """(folder, what lies in it): the model's tensors come first, a module's have the name of its folder."""
    small, folders = {*checkpoint.made, *checkpoint.assets}, dict[str, dict[str, LazyTensor]]({"": {}})
    for name, tensor in checkpoint.tensors.items():
        if (module := module_of(name, small)) is None:
            folders[""][name] = tensor
        else:
            own = name.removeprefix(f"{module}/")
            folders.setdefault(module, {})[own] = tensor.renamed(own)
    return ((folder, checkpoint.replace(tensors=tensors)) for folder, tensors in folders.items())


def _stands_in(path: Path) -> str | None:
    """What lies in a small file's place, where that is a pointer or a host's answer; a page may be meant as one."""
    return None if path.suffix.lower() in PAGES else stand_in(head(path))


def _refuse_rivals(target: Path, ours: set[str]) -> None:
    found = sorted(path.name for path in target.glob("*.safetensors*")) if target.is_dir() else []
    if rivals := [name for name in found if name not in ours and not name.startswith(".")]:
        more = f" and {len(rivals) - 1} more" if len(rivals) > 1 else ""
        raise OutputExists(
            f"{target}: holds other weights ({rivals[0]}{more}), which readers would mix with the new ones\n"
            "remove them or choose another folder"
        )


def _left(checkpoint: Checkpoint) -> list[Note]:
    """What of a source folder stays behind, but for the weights themselves and their index."""
    if checkpoint.format != "hf" or not checkpoint.path.is_dir():
        return []
    read = {path.name for path in checkpoint.files}
    left = [
        name for name in _listed(checkpoint.path)
        if name not in {*checkpoint.assets, *checkpoint.made} and name not in read and not name.endswith(".index.json")
    ]  # fmt: skip
    more = f" and {len(left) - 5} more" if len(left) > 5 else ""
    return [Note(f"not carried over: {', '.join(left[:5])}{more}")] if left else []


def copy_of(source: Path, target: Path) -> FileLayout:
    """A file with the bytes of `source`, read when they are written."""
    info = TensorInfo(target.name, (regular_size(source), 1), DTYPES["U8"])

    def read(start: int, stop: int) -> Rows:
        with open(local(source), "rb") as file:
            file.seek(start)
            data = file.read(stop - start)
        if len(data) != stop - start:
            raise CorruptFile(f"{source}: became shorter while it was read")
        return np.frombuffer(data, np.uint8).reshape(stop - start, 1)

    extent = None if is_elsewhere(source) else Extent(source, 0)
    return FileLayout(target, b"", (Slot(0, LazyTensor(info, read, str(source), extent=extent)),), info.nbytes)


FORMATS = (
    Format(
        name="hf",
        extensions=(),
        dialect="hf",
        description="Hugging Face folder (config.json, safetensors or PyTorch weights, tokenizer)",
        dtypes=frozenset(dtype.name for dtype in BY_SAFETENSORS.values()),
        sniff=sniff,
        open=open_folder,
        layout=layout,
        shards=True,
        free_metadata=None,
        folder=True,
    ),
)
