"""The small files of a Hugging Face folder to be: what the source has of them, and what a GGUF's keys say.

A folder is carried over as it is, but that config.json follows `--dtype`. Of a GGUF, config.json comes from the
architecture's rows, the tokenizer's files, the model card and generation_config.json from its keys; reading the folder
gives these keys back, and each key that has no place in it is a `MetadataLost` event.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

from converter.architectures.spec import Architecture, HFClass
from converter.checkpoint import Checkpoint
from converter.errors import ArchitectureError, TokenizerError
from converter.events import Event, MetadataLost, Note
from converter.mapping.companions import companion_files, without_companions
from converter.mapping.detect import detect
from converter.mapping.general_keys import count_parameters, general_files
from converter.mapping.hparams import HParams, merged, read_config
from converter.mapping.tensors import Translation
from converter.mapping.view import view
from converter.metadata import Metadata, number_of, scalar_of
from converter.tensors.tensor import LazyTensor

# transformers loads a model in the type that config.json names.
TORCH_NAMES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}
SAMPLED = {"temperature", "top_k", "top_p", "min_p"}  # settings without effect unless transformers is told to sample
DTYPE_KEYS = ("torch_dtype", "dtype")
# Keys that say how the file is written, or that its tensors and its config.json say again.
REDUNDANT = (
    "general.architecture", "general.alignment", "general.file_type", "general.quantization_version",
    "tokenizer.chat_templates", "converter.effort", "converter.calibration.kind", "converter.calibration.sha256",
    "converter.calibration.tokens", "converter.calibration.damping",
)  # fmt: skip
LOWERCASE = "tokenizer.ggml.normalizer.lowercase"
TEMPLATES = "additional_chat_templates/"


def with_small_files(
    result: Checkpoint, source: Checkpoint, mapped: Translation | None, *, tokenizer: bool, more: Mapping[str, Any] = {}
) -> tuple[Checkpoint, list[Event]]:
    """`result`, which holds the tensors of the folder to be, with its small files; and what is lost.

    Args:
        result: a checkpoint of the target's tensors.
        source: what it was made of; its dialect decides where the files come from.
        mapped: the mapping of a GGUF; None for a source with Hugging Face names.
        tokenizer: whether to write the tokenizer's files.
        more: what config.json says beside that.

    Raises:
        TokenizerError: the GGUF's tokenizer cannot be written as files.
    """
    if mapped is not None:
        made, events = _of_gguf(source, mapped, tokenizer)
        config = {**_with_ids(_said(mapped, source), _token_ids(dict(source.config))), **_type_of(result)}
        config = config if mapped.whole is None else _whole(mapped.whole, config)
        for name, content in companion_files(config).items():
            made[name] = _merged(content, made[name]) if name in made else content
        made["config.json"] = _dump({**without_companions(config), **more})
        return result.replace(made=made, assets={}), events
    if not view(source).filed:
        return result, []
    assets = dict(result.assets) if tokenizer else _without_tokenizer(result.assets)
    config = _retyped(source.config, _type_of(result)) if _changed(source, result) else dict(source.config)
    config |= more
    made = {} if "config.json" in assets and config == source.config else {"config.json": _dump(config)}
    return result.replace(assets=assets, made=made), []


def _dump(value: object) -> bytes:
    return (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode()


def _merged(one: bytes, other: bytes) -> bytes:
    return _dump({**json.loads(one), **json.loads(other)})


def _without_tokenizer(assets: Mapping[str, Any]) -> dict[str, Any]:
    from converter.tokenizers import FILES

    own = {*FILES, "tekken.json"}
    return {
        name: path for name, path in assets.items()
        if name not in own and not name.startswith(TEMPLATES) and not name.endswith(".tiktoken")
    }  # fmt: skip


# -------------------------------------------------------------------------------------------- config.json


def _type_of(checkpoint: Checkpoint) -> dict[str, str]:
    """The type of most of the weights, as config.json says it; nothing where transformers has no name for it."""
    nbytes: dict[str, int] = {}
    for tensor in checkpoint.tensors.values():
        if tensor.info.dtype.floating:
            nbytes[tensor.info.dtype.name] = nbytes.get(tensor.info.dtype.name, 0) + tensor.info.nbytes
    name = TORCH_NAMES.get(max(nbytes, key=nbytes.__getitem__, default=""))
    return {DTYPE_KEYS[0]: name} if name else {}


def _changed(source: Checkpoint, result: Checkpoint) -> bool:
    def types(tensors: Iterable[LazyTensor]) -> list[str]:
        return [tensor.info.dtype.name for tensor in tensors]

    return types(source.tensors.values()) != types(result.tensors.values())


def _retyped(config: Mapping[str, Any], type_: Mapping[str, str]) -> dict[str, Any]:
    """The config with the new type wherever it names one, also for its parts (`text_config`)."""
    new = dict(config)
    for key, value in config.items():
        if key in DTYPE_KEYS and isinstance(value, str):
            new[key] = type_.get(DTYPE_KEYS[0], value)
        elif key.endswith("_config") and key != "quantization_config" and isinstance(value, dict):
            new[key] = _retyped(value, type_)
    return new


# --------------------------------------------------------------------------------------------------- GGUF


def _of_gguf(source: Checkpoint, mapped: Translation, tokenizer: bool) -> tuple[dict[str, bytes], list[Event]]:
    metadata: Metadata = dict(source.config)
    shapes = {name: tensor.info.shape for name, tensor in source.tensors.items()}
    made, held = general_files(metadata, count_parameters(shapes).total)
    if ids := _stop_ids(metadata):
        generation = json.loads(made.get("generation_config.json", b"{}"))
        sampled = {"do_sample": True} if generation.keys() & SAMPLED else {}
        made["generation_config.json"] = _dump({**ids, **sampled, **generation})
    held.update(REDUNDANT)
    held.update(mapped.architecture.key(key) for hparam in mapped.architecture.hparams for key in hparam.gguf)
    if tokenizer and _has_tokenizer(metadata):
        files, keys = _tokenizer(metadata)
        made.update(files)
        held.update(keys)
    lost = [key for key in metadata if key not in held and (tokenizer or not key.startswith("tokenizer."))]
    events: list[Event] = [MetadataLost(key, "a Hugging Face folder has no place for it") for key in lost]
    if tokenizer and scalar_of(metadata, "tokenizer.ggml.model") == "bert" and LOWERCASE not in metadata:
        events.append(
            Note(f"{LOWERCASE}: the file does not say it; the tokenizer makes letters small, as llama.cpp does")
        )
    return made, events


def _has_tokenizer(metadata: Metadata) -> bool:
    return scalar_of(metadata, "tokenizer.ggml.model") not in (None, "none")


def _tokenizer(metadata: Metadata) -> tuple[dict[str, bytes], set[str]]:
    from converter.tokenizers import write_tokenizer, written_keys

    try:
        return write_tokenizer(metadata), written_keys(metadata)
    except TokenizerError as error:
        raise type(error)(f"{error}\n--no-tokenizer writes the folder without it") from error


def _id(metadata: Metadata, name: str) -> int | None:
    return number_of(metadata, f"tokenizer.ggml.{name}_token_id")


_SPECIAL = (("bos", "bos"), ("eos", "eos"), ("padding", "pad"))


def _said(mapped: Translation, source: Checkpoint) -> dict[str, Any]:
    """The config without what the GGUF does not say and a reader of the config would fill in the same."""
    config = dict(mapped.config)
    architecture, hf = detect(config)
    whole, _ = read_config(architecture, hf, config)
    for hparam in mapped.architecture.hparams:
        said = any(mapped.architecture.key(key) in source.config for key in hparam.gguf)
        kept = said or hparam.required or hparam.stated
        if kept or not hparam.config or hparam.config[0] not in config:
            continue
        less = {key: value for key, value in config.items() if key != hparam.config[0]}
        if _means(architecture, hf, less, whole):
            config = less
    return config


def _whole(beside: Mapping[str, Any], text: Mapping[str, Any]) -> dict[str, Any]:
    """The config of a model of several inputs; what its text model says is said there, and once."""
    outer = ("architectures", "model_type", "tie_word_embeddings")
    text = {key: value for key, value in text.items() if not key.endswith("_config")}
    own = {key: value for key, value in beside.items() if key in outer or key not in text}
    shared = {key: value for key, value in text.items() if key in DTYPE_KEYS or key.endswith("_token_id")}
    return {**shared, **own, "text_config": merged(text, own.get("text_config", {}))}


def _means(architecture: Architecture, hf: HFClass, config: Mapping[str, Any], hparams: HParams) -> bool:
    try:
        return read_config(architecture, hf, config)[0] == hparams
    except ArchitectureError:  # what another row is computed from
        return False


def _token_ids(metadata: Metadata) -> dict[str, int]:
    found = ((f"{name}_token_id", _id(metadata, key)) for key, name in _SPECIAL)
    return {name: value for name, value in found if value is not None}


def _with_ids(config: Mapping[str, Any], ids: Mapping[str, int]) -> dict[str, Any]:
    """The config with token ids, which the text model within it has, too."""
    text = {"text_config": {**config["text_config"], **ids}} if "text_config" in config else {}
    return {**config, **ids, **text}


def _stop_ids(metadata: Metadata) -> dict[str, Any]:
    """The token ids for generation, which also stops where a turn of a conversation ends."""
    ids: dict[str, Any] = dict(_token_ids(metadata))
    eos, eot = _id(metadata, "eos"), _id(metadata, "eot")
    if eos is not None and eot is not None and eos != eot:
        ids["eos_token_id"] = [eos, eot]
    return ids
