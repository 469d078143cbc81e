"""What files beside config.json say of a model, as entries of its config: read from there, and written there again.

Rows of the architectures name such an entry by a key that begins with "/": `/pooling.mode`. Source: modules.json of
sentence-transformers and the folder of its pooling module; generation_config.json and the processors' files of
transformers.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from converter.architectures.spec import Architecture
from converter.errors import CorruptFile
from converter.storage.json import read_json, read_json_list

Assets = Mapping[str, Path]

PROCESSOR = (("preprocessor_config.json", "media_proc_cfg"), ("processor_config.json", "image_processor"))
MAX_TOKENIZER = 256 << 20
WIDTHS = ("hidden_size", "dim", "n_embd", "d_model")  # what configs call that of a token's vector
MODULES, GENERATION = "modules.json", "generation_config.json"
#: How the vectors of a text's tokens become one, and the flag that says so where no text does.
POOLING_FLAGS = (
    ("mean", "pooling_mode_mean_tokens"), ("cls", "pooling_mode_cls_token"), ("lasttoken", "pooling_mode_lasttoken"),
)  # fmt: skip


def with_companions(architecture: Architecture, config: Mapping[str, Any], assets: Assets) -> Mapping[str, Any]:
    """The config with the entries of other files that the architecture's rows ask for.

    Raises:
        CorruptFile, MissingPart: such a file cannot be read.
    """
    asked = {key.partition(".")[0] for row in architecture.hparams for key in row.config if key.startswith("/")}
    return {**config, **{entry: read(assets) for entry, (read, _) in COMPANIONS.items() if entry in asked}}


def companion_files(config: Mapping[str, Any]) -> dict[str, bytes]:
    """The files that say the entries of a config which `with_companions` would read from them."""
    made: dict[str, bytes] = {}
    for entry, (_, write) in COMPANIONS.items():
        if entry in config:
            files = write(config[entry], config)
            made.update((name, (json.dumps(value, indent=2) + "\n").encode()) for name, value in files.items())
    return made


def without_companions(config: Mapping[str, Any]) -> dict[str, Any]:
    """config.json itself."""
    return {key: value for key, value in config.items() if not key.startswith("/")}


# ------------------------------------------------------------------------------------------- the files


def _read_pooling(assets: Assets) -> dict[str, Any]:
    folder = next((path for kind, path in _modules(assets) if kind.endswith("Pooling")), None)
    if folder is None:
        return {}
    name = f"{folder}/config.json"
    if name not in assets:
        raise CorruptFile(f"{assets[MODULES]}: names {name}, which is not there")
    said = read_json(assets[name], python=True)
    flagged = (mode for mode, flag in POOLING_FLAGS if said.get(flag))
    return {"mode": next(flagged, said.get("pooling_mode", "unknown"))}


def _modules(assets: Assets) -> Iterator[tuple[str, str]]:
    """(type, folder) of each step from a text to its vector."""
    for module in read_json_list(assets[MODULES]) if MODULES in assets else ():
        if isinstance(module, dict) and isinstance(module.get("type"), str) and isinstance(module.get("path"), str):
            yield module["type"], module["path"]


def _write_pooling(said: Mapping[str, Any], config: Mapping[str, Any]) -> dict[str, Any]:
    kinds = (("Transformer", ""), ("Pooling", "1_Pooling"))
    modules = [
        {"idx": index, "name": str(index), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for index, (kind, path) in enumerate(kinds)
    ]
    flags = {flag: said["mode"] == mode for mode, flag in POOLING_FLAGS}
    width = next(config[key] for key in WIDTHS if key in config)
    return {MODULES: modules, "1_Pooling/config.json": {"word_embedding_dimension": width, **flags}}


def _read_generation(assets: Assets) -> dict[str, Any]:
    return read_json(assets[GENERATION], python=True) if GENERATION in assets else {}


def _write_generation(said: Mapping[str, Any], config: Mapping[str, Any]) -> dict[str, Any]:
    return {GENERATION: dict(said)}


def _read_processor(assets: Assets) -> dict[str, Any]:
    """What is done to images: of two files the second counts, and in each the part that is the images' own."""
    merged: dict[str, Any] = {}
    for name, part in PROCESSOR:
        if name in assets:
            content = read_json(assets[name], python=True)
            inner = content.get(part)
            merged |= {**content, **(inner if isinstance(inner, dict) else {})}
    return merged


def _write_processor(said: Mapping[str, Any], config: Mapping[str, Any]) -> dict[str, Any]:
    return {PROCESSOR[0][0]: dict(said)}


def _read_tokens(assets: Assets) -> dict[str, Any]:
    """The ids of the tokens that were added to the vocabulary, by their texts."""
    found: dict[str, Any] = {}
    if "tokenizer.json" in assets:
        listed = read_json(assets["tokenizer.json"], MAX_TOKENIZER).get("added_tokens")
        found.update(
            (str(token["content"]), token["id"])
            for token in (listed if isinstance(listed, list) else ())
            if isinstance(token, dict) and isinstance(token.get("id"), int) and "content" in token
        )
    if "tokenizer_config.json" in assets:
        decoder = read_json(assets["tokenizer_config.json"], MAX_TOKENIZER, python=True).get("added_tokens_decoder")
        for number, token in (decoder if isinstance(decoder, dict) else {}).items():
            if isinstance(token, dict) and number.isascii() and number.isdecimal() and len(number) < 10:
                found[str(token.get("content"))] = int(number)
    return found


def _write_nothing(said: Mapping[str, Any], config: Mapping[str, Any]) -> dict[str, Any]:
    return {}


_Read = Callable[[Assets], dict[str, Any]]
_Write = Callable[[Mapping[str, Any], Mapping[str, Any]], dict[str, Any]]
#: Entry -> how it is read from the files, and which files say it again.
COMPANIONS: Mapping[str, tuple[_Read, _Write]] = {
    "/pooling": (_read_pooling, _write_pooling),
    "/generation_config": (_read_generation, _write_generation),
    "/processor": (_read_processor, _write_processor),
    "/tokens": (_read_tokens, _write_nothing),
}
