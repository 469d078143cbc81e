"""Samples of architectures: seeded tiny models, with what the reference makes of them.

`fixtures/make_architectures.py` writes `fixtures/expected/architectures/NAME.json` (config, tensors, the reference's
keys and hashes); `build(name, parent)` makes the folder again from it, without torch or transformers, to the byte.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from converter.architectures import architectures as known
from converter.architectures import projectors
from converter.architectures.spec import Architecture
from converter.mapping.detect import detect
from converter.mapping.hparams import merged
from converter.request import Source
from support import models
from support.paths import FIXTURES

EXPECTED = FIXTURES / "expected" / "architectures"
#: Classes that refuse what they fill in themselves, and what they want to be told.
WANTED: Mapping[str, Any] = {
    "gemma4_assistant": {"text_config": {"hidden_size_per_layer_input": 0, "vocab_size_per_layer_input": 0}},
}
NAMES = sorted(path.stem for path in EXPECTED.glob("*.json"))
BASE = "base"
#: Endings of tensors of whole numbers that begin again: they choose among so many experts, or are powers of two (less
#: 127) of a size that models have.
CHOICES = {".tid2eid": range(4), "_proj_scales": range(116, 124)}
#: Endings of tensors whose numbers mean something: how n-grams are hashed, into how many rows of which part of a table.
SIZES = (53, 59, 61, 67, 71, 73, 79, 83)  # primes from 50 on
NUMBERS = {
    ".layer_multipliers": (24_000_000_000_001, 13_000_000_000_037, 7_000_000_000_051, 3_000_000_000_013),
    ".ngram_heads_vocab_sizes": SIZES,
    ".ngram_heads_offsets": tuple(sum(SIZES[:i]) for i in range(len(SIZES))),
}
INTEGERS = {"I64": "<i8", "I32": "<i4", "U8": "u1", "I8": "i1", "BOOL": "?"}


@dataclass(frozen=True)
class Sample:
    """One tiny model of a class.

    Attributes:
        cls, model_type: as config.json names them.
        saved_by: what transformers calls the class, where that is another name.
        config: over the defaults of transformers' configuration class; the whole of config.json where `tensors` are
            given.
        tensors: template with {block} and {expert} -> shape, for classes that transformers does not have.
        counts: how many blocks and experts the templates have.
        more: tensors besides those that the class of transformers has, such as blocks that it does not load.
        dtype: of the weights.
        types: ending of names -> another type.
        tokenizer: one of `models.TOKENIZERS`.
        pre: the name of the pre-tokenizer, which the reference finds by a hash that no new vocabulary can have.
        plain_tokenizer: the reference reads the tokenizer as it reads most; its class reads files that no sample has.
        published: beginning of a name that save_pretrained writes -> the one that published models have.
        files: more files of the folder, name -> JSON value or text.
        base: config.json of the model that this one is for; the tokenizer is in the folder of that alone.
        dropped: beginnings of names of tensors that belong to another file (of images, sounds) and do not come back.
        changed: parts of names of tensors that come back in other pieces, or in values that only `logits` judges.
        renamed: (beginning of names, what it is in the folder that comes back), where that is of another class.
        options: of the reference's converter.
        failing: whether it fails on the model; nothing of it is recorded then.
        forgotten: keys and tensors that it should write and does not (docs/differences.md).
        near: tensors of other bytes than the reference's, whose values a test of their own compares
            (docs/differences.md).
        corrected: part of its tensors' names -> what it should be (docs/differences.md).
        told: what config.json says to it alone, where it fails on what transformers saves.
        request: ours.
        logits: largest difference, relative to the largest logit, after the way to GGUF and back; None where
            transformers cannot run it.
        scaled: what the runtime's logits are multiplied by to be those of transformers.
        runtime: the same between llama.cpp on the F32 GGUF and torch; None where it has no such model.
    """

    cls: str
    model_type: str
    config: Mapping[str, Any]
    saved_by: str = ""
    tensors: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    counts: Mapping[str, int] = field(default_factory=dict)
    more: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    dtype: str = "BF16"
    types: Mapping[str, str] = field(default_factory=dict)
    tokenizer: str = "llama3"
    pre: str = "llama-bpe"
    plain_tokenizer: bool = False
    published: Mapping[str, str] = field(default_factory=dict)
    files: Mapping[str, Any] = field(default_factory=dict)
    base: Mapping[str, Any] = field(default_factory=dict)
    dropped: tuple[str, ...] = ()
    changed: tuple[str, ...] = ()
    renamed: tuple[tuple[str, str], ...] = ()
    options: tuple[str, ...] = ()
    failing: bool = False
    forgotten: tuple[str, ...] = ()
    near: tuple[str, ...] = ()
    corrected: Mapping[str, str] = field(default_factory=dict)
    told: Mapping[str, Any] = field(default_factory=dict)
    request: Mapping[str, Any] = field(default_factory=dict)
    logits: float | None = 0.0
    scaled: float = 1.0
    runtime: float | None = 1e-3


def class_config(model_type: str, **said: Any) -> dict[str, Any]:
    """What transformers' configuration class makes of a config that says only this."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    found: dict[str, Any] = CONFIG_MAPPING[model_type](**merged(WANTED.get(model_type, {}), said)).to_dict()
    return found


def unread(name: str) -> tuple[str, ...]:
    """How the names start of the blocks that transformers passes over, in the folder and in the one that comes back."""
    starts = (re.match(r"(?:\D*\.)?\d+\.", each) for each in facts(name).get("more", ()))
    given = {start.group() for start in starts if start}
    pairs = facts(name).get("renamed", ())
    return tuple(given | {new + each.removeprefix(old) for old, new in pairs for each in given if each.startswith(old)})


@cache
def facts(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((EXPECTED / f"{name}.json").read_text("utf-8"))
    return found


def build(name: str, parent: Path) -> Path:
    """The folder of a recorded sample, under its own name, from which `general.name` is derived."""
    said = facts(name)
    if base := said.get("base"):
        write(parent / BASE, {"config.json": base}, said["tokenizer"], {})
    return write(parent / name, said["files"], "" if base else said["tokenizer"], said["tensors"])


def source(folder: Path) -> Source:
    """A folder that `build` made, with that of the model that it is for, where there is one."""
    base = folder.parent / BASE
    return Source(folder, base=base if base.is_dir() else None)


def write(folder: Path, files: Mapping[str, Any], tokenizer: str, tensors: Mapping[str, tuple[str, list[int]]]) -> Path:
    """Tokenizer, JSON and text files, and model.safetensors with values seeded by the names.

    A tensor of a module beside the model, `2_Dense/linear.weight`, lies in its own folder.
    """
    folder.mkdir(parents=True)
    if tokenizer:
        models.TOKENIZERS[tokenizer](folder)
    for file, content in files.items():
        path = folder / file
        path.parent.mkdir(exist_ok=True)
        path.write_text(content if isinstance(content, str) else json.dumps(content, indent=2), "utf-8")
    weights = {
        name: (dtype, values(folder.name, name, dtype, tuple(shape))) for name, (dtype, shape) in tensors.items()
    }
    for module in dict.fromkeys(name.rpartition("/")[0] for name in weights):
        own = {n.rpartition("/")[2]: weight for n, weight in weights.items() if n.rpartition("/")[0] == module}
        models.write_mixed_safetensors(folder / module / "model.safetensors", own)
    return folder


def values(sample: str, tensor: str, dtype: str, shape: tuple[int, ...]) -> models.Array:
    """What stands in a tensor; integers count up."""
    if dtype in INTEGERS:
        said = next((numbers for end, numbers in NUMBERS.items() if tensor.endswith(end)), None)
        numbers = np.arange(int(np.prod(shape))) if said is None else np.array(said[: shape[0]])
        among = next((among for end, among in CHOICES.items() if tensor.endswith(end)), None)
        numbers = numbers if among is None else np.array(among)[numbers % len(among)]
        return numbers.astype(INTEGERS[dtype]).reshape(shape)
    return models.encode(models.seeded(sample, tensor, shape or (1,)), dtype).reshape(shape)


# ------------------------------------------------------------------------------------------ docs/architectures.md

HEAD = """# Architectures

Made by `python fixtures/make_architectures.py --table` of the rows and of the samples' facts. For every sample
(`fixtures/architectures`) `tests/architectures` asserts: forward, each tensor and each key is that of llama.cpp's
converter, to the byte; back, the folder has the source's tensors, and transformers computes the same with it (back: the
largest difference of its logits, relative to the largest logit; 0 is exact); llama.cpp computes with the F32 GGUF what
torch computes (runtime: the same measure, at most). A dash: transformers or llama.cpp has no such model to run, or an
older test does it (tests/quant/test_reference.py for llama, qwen2, qwen3 and qwen3moe). `rows` counts the facts and
tensors that describe it.

| architecture | rows | samples | back | runtime | classes |
|---|---|---|---|---|---|
"""
TOWERS = """
Towers of images and sounds with their projectors, the second file of a multimodal model (`--mmproj`), forward and byte
for byte, each with a sample; those in italics come back, too, with the text model as one folder (`--mmproj FILE`):

| classes | projector |
|---|---|
"""


def table() -> str:
    """The page: one line for each architecture that is mapped."""
    by_name: dict[str, list[dict[str, Any]]] = {}
    for name in NAMES:
        keys = {key: value for key, _, value in facts(name)["reference"]["keys"]}
        known_as = keys.get("general.architecture") or detect(facts(name)["files"]["config.json"])[0].gguf
        by_name.setdefault(known_as, []).append(facts(name))
    towers = "".join(f"| {_classes(each)} | {_projector(each)} |\n" for each in projectors())
    return HEAD + "".join(_line(each, by_name.get(each.gguf, [])) for each in known().values()) + TOWERS + towers


def _classes(architecture: Architecture) -> str:
    return " ".join(dict.fromkeys(f"*{hf.name}*" if hf.text else hf.name for hf in architecture.hf))


def _projector(architecture: Architecture) -> str:
    types = (row.default for row in architecture.hparams if row.name in ("projector", "a_type"))
    return " ".join(str(each).strip("'") for each in types)


def _line(architecture: Architecture, samples: list[dict[str, Any]]) -> str:
    worst = [
        max((f"{said[measure]:g}" for said in samples if said[measure] is not None), key=float, default="-")
        for measure in ("logits", "runtime")
    ]
    rows = len(architecture.hparams) + len(architecture.tensors)
    cells = [architecture.gguf, str(rows), str(len(samples)), *worst, " ".join(hf.name for hf in architecture.hf)]
    return f"| {' | '.join(cells)} |\n"
