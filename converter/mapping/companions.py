"""What files beside config.json say of a model, as entries of its config: read from there, and written there again.

Rows of the architectures name such an entry by a key that begins with "/": `/pooling.mode`; what begins with "/base."
stands in the config.json of the model that this one is for. Source: modules.json of sentence-transformers and the
folders of its modules; generation_config.json and the processors' files of transformers.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from converter.architectures.spec import Architecture
from converter.checkpoint import Checkpoint
from converter.errors import CorruptFile
from converter.formats.hub import MODULES, modules
from converter.mapping.hparams import flat_config
from converter.storage.files import local, regular_size
from converter.storage.json import read_json

PROCESSOR = (("preprocessor_config.json", "media_proc_cfg"), ("processor_config.json", "image_processor"))
MAX_TOKENIZER, MAX_README = 256 << 20, 4 << 20
#: What models are called whose answer to a question, "yes" or "no", says how well a document fits it.
RERANKERS = ("qwen3-reranker", "qwen3-vl-reranker")
WIDTHS = ("hidden_size", "dim", "n_embd", "d_model")  # what configs call that of a token's vector
GENERATION, POOLING = "generation_config.json", "1_Pooling"
_SAYING = ("config.json", GENERATION)
#: How the vectors of a text's tokens become one, and the flag that says so where no text does.
POOLING_FLAGS = (
    ("mean", "pooling_mode_mean_tokens"), ("cls", "pooling_mode_cls_token"), ("lasttoken", "pooling_mode_lasttoken"),
)  # fmt: skip


BASE = "/base"  # what a model says for which another is made
Assets = Mapping[str, Path]


def with_companions(
    architecture: Architecture, config: Mapping[str, Any], assets: Assets, base: Checkpoint | None = None
) -> Mapping[str, Any]:
    """The config with the entries of other files that the architecture's rows ask for, and those of `base`.

    Raises:
        CorruptFile, MissingPart: such a file cannot be read.
    """
    asked = _asked(architecture)
    found = {entry: read(assets, config) for entry, (read, _) in COMPANIONS.items() if entry in asked}
    return {**config, **found, **({BASE: flat_config(base.config)} if base is not None and BASE in asked else {})}


def asks_base(architecture: Architecture) -> bool:
    """Whether models of an architecture are made for another, and say only together with it what they are."""
    return BASE in _asked(architecture)


def _asked(architecture: Architecture) -> set[str]:
    return {key.partition(".")[0] for row in architecture.hparams for key in row.config if key.startswith("/")}


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


def _read_pooling(assets: Assets, config: Mapping[str, Any]) -> dict[str, Any]:
    folder = next((path for kind, path in modules(assets) if kind.endswith("Pooling")), None)
    if folder is None:
        return {}
    name = f"{folder}/config.json"
    if name not in assets:
        raise CorruptFile(f"{assets[MODULES]}: names {name}, which is not there")
    said = read_json(assets[name], python=True)
    flagged = (mode for mode, flag in POOLING_FLAGS if said.get(flag))
    return {"mode": next(flagged, said.get("pooling_mode", "unknown"))}


def normalises(assets: Assets) -> bool:
    """Whether the list of modules ends with one that divides a text's vector by its length; no GGUF says so."""
    return any(kind.endswith("Normalize") for kind, _ in modules(assets))


def _write_pooling(said: Mapping[str, Any], config: Mapping[str, Any]) -> dict[str, Any]:
    flags = {flag: said["mode"] == mode for mode, flag in POOLING_FLAGS}
    if not any(flags.values()):  # a classifier's, of which these files say nothing
        return {}
    width = next(config[key] for key in WIDTHS if key in config)
    settings = {f"{POOLING}/config.json": {"word_embedding_dimension": width, **flags}}
    return {MODULES: _list_of_modules(config), **settings}


def _read_dense(assets: Assets, config: Mapping[str, Any]) -> dict[str, Any]:
    """The config of each dense layer after the pooling, by its folder."""
    named = ((path, f"{path}/config.json") for kind, path in modules(assets) if kind.endswith("Dense"))
    return {path: read_json(assets[name], python=True) for path, name in named if name in assets}


def _write_dense(said: Mapping[str, Any], config: Mapping[str, Any]) -> dict[str, Any]:
    settings = {f"{path}/config.json": {"bias": False, **layer} for path, layer in said.items()}
    return {MODULES: _list_of_modules(config), **settings}


def _list_of_modules(config: Mapping[str, Any]) -> list[dict[str, Any]]:
    pooling = [("Pooling", POOLING)] if "/pooling" in config else []
    kinds = [("Transformer", ""), *pooling, *(("Dense", path) for path in config.get("/dense", ()))]
    return [
        {"idx": index, "name": str(index), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for index, (kind, path) in enumerate(kinds)
    ]


def _read_generation(assets: Assets, config: Mapping[str, Any]) -> dict[str, Any]:
    return read_json(assets[GENERATION], python=True) if GENERATION in assets else {}


def ways_to_generate(folder: Checkpoint) -> dict[str, Any]:
    """What config.json and generation_config.json of a folder to be say together; where both do, the second counts.

    Raises:
        CorruptFile: as `read_json`.
    """
    own = {name: read_json(path, python=True) for name, path in folder.assets.items() if name in _SAYING}
    own |= {name: json.loads(content) for name, content in folder.made.items() if name in _SAYING}
    return {**flat_config(own.get("config.json", {})), **own.get(GENERATION, {})}


def _write_generation(said: Mapping[str, Any], config: Mapping[str, Any]) -> dict[str, Any]:
    return {GENERATION: dict(said)}


def _read_processor(assets: Assets, config: Mapping[str, Any]) -> dict[str, Any]:
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


def _read_tokens(assets: Assets, config: Mapping[str, Any]) -> dict[str, Any]:
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


def _read_tokenizer(assets: Assets, config: Mapping[str, Any]) -> dict[str, Any]:
    """The class of the tokenizer, by which models of one class differ."""
    settings = "tokenizer_config.json"
    said = read_json(assets[settings], MAX_TOKENIZER, python=True) if settings in assets else {}
    return {"class": name} if isinstance(name := said.get("tokenizer_class"), str) else {}


def _read_reranker(assets: Assets, config: Mapping[str, Any]) -> dict[str, Any]:
    """The ids of the two words that a text model says of how a document answers, where it is one that judges so."""
    if not _is_reranker(assets, config):
        return {}
    from converter.tokenizers.files import TokenizerFiles  # costs as much to import as all the rest
    from converter.tokenizers.vocabulary import read_vocabulary

    vocabulary = read_vocabulary(TokenizerFiles(assets), config)
    ids = {word: vocabulary.id_of(word) for word in ("yes", "no")}
    return {} if None in ids.values() else {"is": 1, "pooling": "rank", **ids}


def _is_reranker(assets: Assets, config: Mapping[str, Any]) -> bool:
    """By the names of its folder and its origin, or by the heading of its README."""
    folders = [assets["config.json"].resolve().parent.name] if "config.json" in assets else []
    hints = [*folders, *(str(config.get(key, "")) for key in ("_name_or_path", "model_type"))]
    if any(name in hint.lower() for name in RERANKERS for hint in hints):
        return True
    readme = assets.get("README.md")
    if readme is None or regular_size(readme) > MAX_README:
        return False
    text = local(readme).read_bytes().decode("utf-8", "replace").lower()
    return any(f"# {name}" in text for name in RERANKERS)


def _write_nothing(said: Mapping[str, Any], config: Mapping[str, Any]) -> dict[str, Any]:
    return {}


_Read = Callable[[Assets, Mapping[str, Any]], dict[str, Any]]
_Write = Callable[[Mapping[str, Any], Mapping[str, Any]], dict[str, Any]]
#: Entry -> how it is read from the files, and which files say it again.
COMPANIONS: Mapping[str, tuple[_Read, _Write]] = {
    "/pooling": (_read_pooling, _write_pooling),
    "/dense": (_read_dense, _write_dense),
    "/generation_config": (_read_generation, _write_generation),
    "/processor": (_read_processor, _write_processor),
    "/tokens": (_read_tokens, _write_nothing),
    "/tokenizer": (_read_tokenizer, _write_nothing),
    "/reranker": (_read_reranker, _write_nothing),
}
