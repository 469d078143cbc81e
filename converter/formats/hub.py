"""What is known of a Hugging Face model's folder: the small files beside the weights, and the index of its shards."""

from __future__ import annotations

import re
from collections.abc import Container, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from converter.errors import ConverterError, CorruptFile, MissingPart, short
from converter.formats.base import INDEX, child
from converter.storage.json import Unreadable, read_json, read_json_list

# The small files of a model's folder that travel with the weights. Nothing else is ever opened.
ASSETS = frozenset(
    (
        "config.json",
        "generation_config.json",
        "tokenizer.json",
        "tokenizer.model",
        "tokenizer_config.json",
        "special_tokens_map.json",
        "added_tokens.json",
        "vocab.json",
        "vocab.txt",
        "merges.txt",
        "chat_template.jinja",
        "chat_template.json",
        "README.md",
        "LICENSE",
        "preprocessor_config.json",
        "processor_config.json",
        "tekken.json",
        "params.json",
        "modules.json",
        "spiece.model",
        "sentencepiece.bpe.model",
    )
)
TEMPLATES = "additional_chat_templates"
MODULES = "modules.json"
_WEIGHTS = ("*.safetensors", "pytorch_model*.bin", "*.index.json", "*.gguf")
_NOT_A_MODEL = ("adapter_",)  # weights of these names change a base model, and are none


@dataclass(frozen=True)
class GraphFile:
    """A graph in the folder that clients load.

    Attributes:
        dtype: what Transformers.js calls it.
        ending: of its name, behind `model`.
        types: what most of its weights are, by the names of types here.
        half: whether it calculates in F16.
    """

    dtype: str
    ending: str
    types: frozenset[str]
    half: bool = False


_FOUR_BITS = frozenset(("Q4_0", "Q4_1", "Q4_K", "IQ4_NL", "IQ4_XS", "MXFP4"))
#: Names of graphs, the first for what has no name of its own. Source: Transformers.js, src/utils/dtypes.js.
GRAPHS = (
    GraphFile("fp32", "", frozenset(("F32",))),
    GraphFile("fp16", "_fp16", frozenset(("F16",)), half=True),
    GraphFile("q4f16", "_q4f16", _FOUR_BITS, half=True),
    GraphFile("q4", "_q4", _FOUR_BITS),
    GraphFile("q8", "_quantized", frozenset(("Q8_0",))),
    GraphFile("int8", "_int8", frozenset(("INT8",))),
)
_GRAPH_FOLDER = "onnx"


def graph_file(type_: str, *, half: bool) -> GraphFile:
    """The name of a graph, most of whose weights are of a type, and which calculates in F16 or not."""
    return next((each for each in GRAPHS if type_ in each.types and half >= each.half), GRAPHS[0])


def graphs_in(folder: Path) -> list[Path]:
    """The graphs in a folder that clients load, in the order of `GRAPHS`."""
    files = (folder / _GRAPH_FOLDER / f"model{each.ending}.onnx" for each in GRAPHS)
    return [file for file in files if file.is_file()]


def has_weights(folder: Path) -> bool:
    """Whether a folder holds a model's weights, as they are published."""
    weights = (file.name for pattern in _WEIGHTS for file in folder.glob(pattern))
    return folder.is_dir() and any(not name.startswith(_NOT_A_MODEL) for name in weights)


def folder_assets(folder: Path) -> dict[str, Path]:
    """The known small files of a model's folder, by name; links that lead out of the folder are refused.

    Raises:
        CorruptFile: such a link.
    """
    assets = {}
    for name in sorted(ASSETS):
        path = folder / name
        if path.is_file():
            assets[name] = child(folder, name, folder)
    templates = folder / TEMPLATES
    if templates.is_dir():
        for path in sorted(templates.glob("*.jinja")):
            assets[f"{TEMPLATES}/{path.name}"] = child(folder, f"{TEMPLATES}/{path.name}", folder)
    return assets


def client_folder(model: Path) -> Path:
    """Where the small files of a model's file lie: in its folder, or in that above `onnx/`, where clients look."""
    folder = model.absolute().parent
    return folder.parent if folder.name == "onnx" and not (folder / "config.json").is_file() else folder


def modules(assets: Mapping[str, Path]) -> Iterator[tuple[str, str]]:
    """(type, folder) of each step from a text to its vector, as modules.json of sentence-transformers lists them.

    Raises:
        CorruptFile: it cannot be read.
    """
    for module in read_json_list(assets[MODULES]) if MODULES in assets else ():
        if isinstance(module, dict) and isinstance(module.get("type"), str) and isinstance(module.get("path"), str):
            yield module["type"], module["path"]


def module_of(name: str, small: Container[str]) -> str | None:
    """The folder of the module that a tensor is of (`2_Dense/linear.weight`), by the small files; None for the model's.

    Other names may have a `/` of their own; a module's folder has a config.json.
    """
    folder = name.rpartition("/")[0]
    return folder if folder and f"{folder}/config.json" in small else None


def read_config(assets: Mapping[str, Path]) -> tuple[Mapping[str, Any], str | None]:
    """The config.json beside the weights, and the dialect of their names: Hugging Face's where it says anything.

    One that cannot be read is an error for whoever asks what it says. Tensors go to plain formats without it.
    """
    if "config.json" not in assets:
        return {}, None
    try:
        config = read_json(assets["config.json"], python=True)
    except ConverterError as error:
        return Unreadable(error), "hf"
    return config, "hf" if config else None


def indexed(index: Path) -> tuple[list[Path], dict[str, Path]]:
    """The shards that an .index.json names, and which of them should hold each tensor.

    Raises:
        CorruptFile, MissingPart
    """
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CorruptFile(f"{index}: no weight_map")
    shards: dict[object, Path] = {}
    for name in weight_map.values():
        if not isinstance(name, str) or name not in shards:
            path = shards[name] = child(index.parent, name, index)
            if not path.exists():  # one that is not there is enough, and an index can name a million
                raise MissingPart(f"{path}: this shard is named in {index.name} and is not there; download it too")
    return sorted(shards.values()), {tensor: shards[name] for tensor, name in weight_map.items()}


_SHARD = re.compile(r"(.+)-([0-9]{1,6})-of-([0-9]{1,6})(\.[^.]+)")


def whole_set(path: Path) -> tuple[Path, list[Path], dict[str, Path] | None]:
    """What a file stands for: itself, or the set that it is the index or, by its name, a shard of.

    Returns:
        The file that says so (an index, where there is one), the set's files, and what `indexed` says of tensors.

    Raises:
        CorruptFile, MissingPart: as `indexed`; a shard is not there.
    """
    if path.name.endswith(INDEX):
        return path, *indexed(path)
    numbered = shard_of(path)
    if numbered is None:
        return path, [path], None
    first, count, names = numbered
    index = path.with_name(f"{first}{path.suffix}{INDEX}")
    if index.is_file():
        files, expected = indexed(child(path.parent, index.name, path))
        if path in files:
            return index, files, expected
    files = []
    for name in names:
        file = child(path.parent, name, path)
        if not file.is_file():
            raise MissingPart(
                f"{file}: this one of the {count} shards that {path.name} belongs to is not there; download it too\n"
                f"or rename {path.name} to convert that part alone"
            )
        files.append(file)
    return path, files, None


def shard_of(path: Path) -> tuple[str, int, Iterator[str]] | None:
    """Of `NAME-00001-of-00003.ext`: NAME, how many shards there are, and their names; None for another file."""
    match = _SHARD.fullmatch(path.name)
    if match is None or not 1 <= int(match[2]) <= int(match[3]):
        return None
    name, number, count, extension = match.groups()
    names = (f"{name}-{each:0{len(number)}d}-of-{count}{extension}" for each in range(1, int(count) + 1))
    return name, int(count), names


def check_index(index: Path, expected: Mapping[str, Path], owner: Mapping[str, Path]) -> None:
    """Compare where the tensors are with where the index says; raises CorruptFile."""
    for tensor, path in expected.items():
        if owner.get(tensor) != path:
            where = f"is in {owner[tensor].name}" if tensor in owner else "is in no shard"
            raise CorruptFile(f"{index}: {short(tensor)} should be in {path.name} and {where}")
    for tensor in owner.keys() - expected.keys():
        raise CorruptFile(f"{index}: {short(tensor)} of {owner[tensor].name} is not in the index")
