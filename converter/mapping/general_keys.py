"""The `general.*` keys of a GGUF made from a Hugging Face folder, as llama.cpp's converter writes them.

Sources, strongest first: the name given by the caller, the model card's front matter, `_name_or_path` of
config.json, the folder's name; the sampling defaults come from generation_config.json. Model ids are taken apart
into base name, size, fine-tune and version by the GGUF naming convention
(https://github.com/ggml-org/ggml/blob/master/docs/gguf.md#gguf-naming-convention). Order, types and values are
those of gguf-py's `Metadata` (llama.cpp); where that stops with an exception (a list as version, a number among the
tags), the text is kept or the key left out, and a Note says so.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from converter.events import Event, Note
from converter.mapping.model_card import Node, Plain, front_matter, read_front_matter
from converter.metadata import Array, Metadata, Value, array_of, text, u32
from converter.storage.files import local

MAX_CARD = 1 << 20  # bytes of README.md that are looked at: front matter comes first
MAX_JSON = 16 << 20
MAX_ORIGINS = 1 << 10  # base models or data sets that a card made here can list
MAX_FILE_NAME = 240  # bytes; file systems stop at 255, and shards add a suffix

# -- tables: where each key comes from ----------------------------------------------------------------------------

# general.sampling.<name>, its type, keys of generation_config.json (the first that is present counts)
SAMPLING: tuple[tuple[str, str, tuple[str, ...]], ...] = (
    ("sequence", "str", ("sequence",)),
    ("top_k", "i32", ("top_k",)),
    ("top_p", "f32", ("top_p",)),
    ("min_p", "f32", ("min_p",)),
    ("xtc_probability", "f32", ("xtc_probability",)),
    ("xtc_threshold", "f32", ("xtc_threshold",)),
    ("temp", "f32", ("temperature",)),
    ("penalty_last_n", "i32", ("penalty_last_n",)),
    ("penalty_repeat", "f32", ("penalty_repeat", "repetition_penalty")),
    ("mirostat", "i32", ("mirostat",)),
    ("mirostat_tau", "f32", ("mirostat_tau",)),
    ("mirostat_eta", "f32", ("mirostat_eta",)),
)

# general.<name> in the order written, keys of the model card (the first that is not null counts)
CARD: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("name", ("name", "model_name")),
    ("author", ("author", "model_author", "model_creator")),
    ("version", ("version", "model_version")),
    ("organization", ("organization", "model_organization")),
    ("finetune", ("finetune", "model_finetune")),
    ("basename", ("basename", "model_basename", "model_type")),
    ("description", ("description", "model_description")),
    ("size_label", ("size_label", "model_size_label")),
    ("license", ("license",)),
    ("license.name", ("license_name",)),
    ("license.link", ("license_link",)),
    ("source.url", ("url", "model_url")),
    ("source.doi", ("doi", "model_doi")),
    ("source.uuid", ("uuid", "model_uuid")),
    ("source.repo_url", ("repo_url", "model_repo_url")),
)

# general.<name>.count and general.<name>.<i>.*, keys of the model card (the first that is present counts)
ORIGINS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("base_model", ("base_model", "base_models", "base_model_sources")),
    ("dataset", ("datasets", "dataset", "dataset_sources")),
)
ORIGIN_FIELDS = ("name", "author", "version", "organization", "description", "url", "doi", "uuid", "repo_url")

# general.<name>, keys of the model card (all of them, one after the other)
LISTS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("tags", ("tags", "pipeline_tag")),
    ("languages", ("languages", "language")),
)

WANTED = frozenset(key for table in (CARD, ORIGINS, LISTS) for _, keys in table for key in keys)


def general_metadata(
    folder_name: str,
    files: Mapping[str, Path],
    shapes: Mapping[str, tuple[int, ...]],
    *,
    name: str | None = None,
    kind: str = "model",
) -> tuple[Metadata, list[Event]]:
    """The `general.*` keys of a model folder in write order, and what was odd in its files.

    From `general.type` to `general.languages`; `general.architecture` before them, `general.file_type` and
    `general.quantization_version` after them are the caller's.

    Args:
        folder_name: the folder's own name, the last source of names.
        files: the folder's files by name; README.md, config.json and generation_config.json are read if present.
        shapes: row-major shapes by GGUF tensor name, for the parameter count. Adapters (LoRA) are not counted.
        name: `general.name` in place of everything found.
        kind: `general.type`, "mmproj" for a projector.
    """
    events: list[Event] = []
    card = _read_card(files.get("README.md"), events)
    config = _read_json(files.get("config.json"), events)
    generation = _read_json(files.get("generation_config.json"), events)
    params = count_parameters(shapes)

    found = {key: _first_not_null(card, keys) for key, keys in CARD}
    texts = {key: _as_text(node, f"general.{key}", events) for key, node in found.items() if node is not None}
    fields = {key: value for key, value in texts.items() if value is not None}
    _guess_from_ids(fields, _model_ids(config, folder_name), params.total)
    if name is not None:
        fields["name"] = name
    if "size_label" not in fields and params.total > 0:
        fields["size_label"] = params.size_label

    out: Metadata = {"general.type": text(kind)}
    out.update(_sampling(generation, events))
    out.update((f"general.{key}", _text(fields[key])) for key, _ in CARD if fields.get(key))
    for key, keys in ORIGINS:
        out.update(_origins(key, _first_present(card, keys), params.total, events))
    for key, keys in LISTS:
        out.update(_list(f"general.{key}", [card.get(source) for source in keys], events))
    return out, events


def default_file_name(metadata: Mapping[str, Value | Array], file_type: str) -> str:
    """The GGUF naming convention: `{BaseName}-{SizeLabel}-{FineTune}-{Version}-{ENCODING}.gguf`.

    `file_type` is the name of the file's type without its prefix ("Q4_K_M", "BF16"). Parts that `metadata` lacks are
    left out. The parts come from a stranger's model card, so path separators become `-`, and a name that no file
    system would take is replaced by "ggml-model".
    """
    values = {key: metadata[f"general.{key}"] for key in _NAME_PARTS if f"general.{key}" in metadata}
    parts = {key: _file_part(str(value.value)) for key, value in values.items() if isinstance(value, Value)}
    base = parts.pop("basename", None) or parts.get("name") or "ggml-model"
    parts.pop("name", None)
    encoding = _file_part(file_type).upper()
    stem = "-".join((base, *parts.values(), encoding))
    if len(stem.encode()) > MAX_FILE_NAME:
        stem = f"ggml-model-{encoding}"
    return f"{stem}.gguf"


_NAME_PARTS = ("basename", "name", "size_label", "finetune", "version")


def _file_part(part: str) -> str:
    return re.sub(r"[ /\\\x00-\x1f]", "-", part.strip())


# -- parameter count ----------------------------------------------------------------------------------------------


class Parameters(NamedTuple):
    """How many weights a model has; `expert` counts one expert of each stack."""

    total: int
    shared: int
    expert: int
    n_expert: int

    @property
    def size_label(self) -> str:
        """The count as names show it: "8B", or "8x7B" for a mixture of experts."""
        if self.n_expert > 0:
            return f"{self.n_expert}x{round_count(self.shared + self.expert)}"
        return round_count(self.total)


def count_parameters(shapes: Mapping[str, tuple[int, ...]]) -> Parameters:
    """Count the weights of GGUF tensors; stacks of experts are those named `_exps.` with at least three axes."""
    total = stacked = expert = expert_sum = n_stacks = 0
    for name, shape in shapes.items():
        size = math.prod(shape)
        total += size
        if "_exps." in name and len(shape) >= 3:
            n_expert = shape[-2 if ".bias" in name else -3]
            stacked += size
            expert += size // max(n_expert, 1)
            expert_sum += n_expert
            n_stacks += 1
    return Parameters(total, total - stacked, expert, expert_sum // n_stacks if n_stacks else 0)


def round_count(count: int) -> str:
    """A parameter count with at least two digits and K, M, B or T: 8030261248 is "8.0B", 70553706496 is "71B"."""
    scale, suffix = next((row[1:] for row in _COUNT_UNITS if count > row[0]), (1e-3, "K"))
    scaled = count * scale
    decimals = max(2 - len(str(round(scaled)).lstrip("0")), 0)
    return f"{scaled:.{decimals}f}{suffix}"


_SUFFIXES = {"K": 1e3, "M": 1e6, "B": 1e9, "T": 1e12}
_COUNT_UNITS = ((1e12, 1e-12, "T"), (1e9, 1e-9, "B"), (1e6, 1e-6, "M"))  # above, factor, suffix


# -- names --------------------------------------------------------------------------------------------------------


class ModelName(NamedTuple):
    """What a model id says; None where it says nothing."""

    name: str | None = None
    organization: str | None = None
    basename: str | None = None
    finetune: str | None = None
    version: str | None = None
    size_label: str | None = None


class _Part:
    """One dash-separated part of a model's name and the roles it may play."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.roles: set[str] = set()


_VERSION = re.compile(r"(v|iter)?\d+([.]\d+)*", re.IGNORECASE)
_ENCODING = re.compile(r"i?q\d(_\w)*|b?fp?(16|32)", re.IGNORECASE)
_SIZE = re.compile(r"(([A]|\d+[x])?\d+([._]\d+)?[KMBT][\d]?|small|mini|medium|large|x?xl)", re.IGNORECASE)
_TUNED = re.compile(r"chat|instruct|vision|lora", re.IGNORECASE)
_KEPT_CASE = re.compile(r"(v\d+(?:\.\d+)*|\d.*)$")
_HUB_URL = re.compile(r"https?://huggingface\.co/([^/]+/[^/]+)$")


def parse_model_id(model_id: str, n_params: int = 0) -> ModelName:
    """Take `organization/Base-7B-Instruct-v0.1` apart.

    `n_params` (0: unknown) tells a size from a context length: "4k" in the name of a model of 4e9 weights is a
    fine-tune. A text with a space is a title and stays whole. Where neither size, fine-tune nor version is
    recognized, no base name is claimed either.
    """
    if " " in model_id:
        return ModelName(model_id)
    organization, slash, name = model_id.partition("/")
    if not slash:
        name = model_id
    known = organization if slash and not organization.startswith(".") else None
    parts = [_Part(piece) for piece in name.split("-") if piece]
    for index, part in enumerate(parts):
        _recognize(part, index, n_params)
    _drop_word_sizes(parts)
    _mark_basename(parts)
    finetune = _joined(part.text for part in parts if "finetune" in part.roles)
    version = _joined(part.text for part in parts if "version" in part.roles and "basename" not in part.roles)
    size = _joined(dict.fromkeys(part.text for part in parts if "size_label" in part.roles))
    basename = _joined(part.text for part in parts if "basename" in part.roles)
    if size is None and finetune is None and version is None:
        basename = None
    return ModelName(name, known, basename, finetune, version, size)


def _joined(pieces: Iterable[str]) -> str | None:
    return "-".join(pieces) or None


def _recognize(part: _Part, index: int, n_params: int) -> None:
    """Give a part the role its spelling shows; the first part is never a size or a fine-tune."""
    if _VERSION.fullmatch(part.text):
        part.roles.add("version")
    elif _ENCODING.fullmatch(part.text):
        part.roles.add("type")
        part.text = part.text.upper()
    elif index > 0 and _SIZE.fullmatch(part.text):
        part.text = _normal_size(part.text)
        if _is_context_length(part.text, n_params):
            part.roles.add("finetune")
            part.text = part.text[:-1] + part.text[-1].lower()
        else:
            part.roles.add("size_label")
    elif index > 0 and _TUNED.fullmatch(part.text):
        part.roles.add("finetune")


def _normal_size(size: str) -> str:
    """Write a size as 1.6B: `1_6b`, and BLOOM's 7b1, which is 7.1B."""
    size = size.replace("_", ".")
    if size[-1].isdecimal():
        size = f"{size[:-2]}.{size[-1]}{size[-2]}"
    if size[-2].isdecimal():
        size = size[:-1] + size[-1].upper()
    return size


def _is_context_length(size: str, n_params: int) -> bool:
    """Whether a size is too far from the model's true count to be one (more than 7/8 of it away)."""
    if n_params == 0:
        return False
    try:
        claimed = float(size[:-1]) * _SUFFIXES.get(size[-1], 1e-3)
    except ValueError:  # "8x7B", "mini": cannot be compared
        return False
    return abs(claimed - n_params) > 7 * n_params // 8


def _drop_word_sizes(parts: list[_Part]) -> None:
    """`mini` is a size only where no number says it."""
    sizes = [part for part in parts if "size_label" in part.roles]
    if any(char.isdecimal() for part in sizes for char in part.text):
        for part in sizes:
            if part.text.isalpha():
                part.roles.remove("size_label")


def _mark_basename(parts: list[_Part]) -> None:
    """The base name is the unrecognized words and versions at the start, less the versions at the very end; what
    is unrecognized after it belongs to the fine-tune."""
    at_start = True
    for part in parts:
        at_start = at_start and ("version" in part.roles or (not part.roles and part.text[0].isalpha()))
        if at_start:
            part.roles.add("basename")
        elif not part.roles:
            part.roles.add("finetune")
    for part in reversed(parts):
        if "basename" not in part.roles or len(part.roles) == 1:
            break
        part.roles.remove("basename")


def title(name: str) -> str:
    """`my-model-v2-7b` is "My Model v2 7b": lower-case words get a capital, versions and numbers stay."""
    words = name.strip().replace("-", " ").split()
    return " ".join(word.title() if word.islower() and not _KEPT_CASE.match(word) else word for word in words)


def _model_ids(config: Mapping[str, Any], folder_name: str) -> list[str]:
    """The ids that may name the model, best first; a `_name_or_path` that looks like a path on disk is none."""
    path = config.get("_name_or_path")
    return [path, folder_name] if isinstance(path, str) and path.count("/") <= 1 else [folder_name]


def _guess_from_ids(fields: dict[str, str], model_ids: list[str], n_params: int) -> None:
    """Fill the name fields that the card leaves open."""
    for model_id in model_ids:
        guess = parse_model_id(model_id, n_params)
        titled = guess._replace(
            name=None if guess.name is None else title(guess.name),
            organization=None if guess.organization is None else title(guess.organization),
        )
        for key, value in titled._asdict().items():
            if value is not None:
                fields.setdefault(key, value)


# -- what the model was made from ---------------------------------------------------------------------------------


def _origins(kind: str, node: Node | None, n_params: int, events: list[Event]) -> Iterator[tuple[str, Value]]:
    """The base models or data sets: a count, then the fields of each. An absent key writes nothing."""
    if node is None:
        return
    entries = node if isinstance(node, list) else [node] if isinstance(node, str) else []
    yield f"general.{kind}.count", u32(len(entries))
    for index, entry in enumerate(entries):
        fields = _origin(entry, f"general.{kind}.{index}", n_params, events)
        yield from ((f"general.{kind}.{index}.{key}", _text(fields[key])) for key in ORIGIN_FIELDS if fields.get(key))


def _origin(entry: Node, key: str, n_params: int, events: list[Event]) -> dict[str, str]:
    if isinstance(entry, str):
        return _origin_of_id(entry, n_params)
    if isinstance(entry, dict):
        texts = {name: _as_text(entry[name], f"{key}.{name}", events) for name in ORIGIN_FIELDS if name in entry}
        return {name: value for name, value in texts.items() if value}
    events.append(Note(f"README.md: {key} is neither a name, a URL nor a map, left empty"))
    return {}


def _origin_of_id(reference: str, n_params: int) -> dict[str, str]:
    """The fields of a hub id or URL; of a URL elsewhere, only the URL."""
    fields: dict[str, str] = {}
    model_id = reference
    is_url = reference.startswith(("http://", "https://", "ssh://"))
    if is_url:
        fields["repo_url"] = reference
        on_hub = _HUB_URL.match(reference)
        if on_hub is None:
            return fields
        model_id = on_hub[1]
    parsed = parse_model_id(model_id, n_params)
    if parsed.name is not None:
        fields["name"] = title(parsed.name)
    if parsed.organization is not None:
        fields["organization"] = title(parsed.organization)
        if not is_url:
            fields["repo_url"] = f"https://huggingface.co/{parsed.organization}/{parsed.name}"
    if parsed.version is not None:
        fields["version"] = parsed.version
    return fields


# -- values -------------------------------------------------------------------------------------------------------

_NUMBER_TYPES: dict[type, str] = {int: "i32", float: "f32", bool: "bool"}
_I32 = range(-(1 << 31), 1 << 31)
_F32_MAX = 3.4028235677973366e38  # above it, rounding to F32 overflows


def _text(value: str) -> Value:
    """A string value that can be stored: half surrogate pairs (from JSON escapes or odd file names) become `?`."""
    return text(value.encode(errors="replace").decode())


def _first_present(card: Mapping[str, Node], keys: tuple[str, ...]) -> Node | None:
    return next((card[key] for key in keys if key in card), None)


def _is_null(node: Node) -> bool:
    return isinstance(node, Plain) and node.value is None


def _first_not_null(card: Mapping[str, Node], keys: tuple[str, ...]) -> Node | None:
    return next((card[key] for key in keys if key in card and not _is_null(card[key])), None)


def _as_text(node: Node, key: str, events: list[Event]) -> str | None:
    """A card's value as text, "" for what counts as empty (`no`, 0), None (and a Note) for what is no text."""
    if isinstance(node, str):
        return node
    if isinstance(node, Plain):
        if node.value:
            events.append(Note(f"README.md: {key} is the number or truth value {node.text}, kept as text"))
        return node.text if node.value else ""
    if isinstance(node, list) and key == "general.license":
        return ",".join(_as_text(item, "general.license.", events) or "" for item in node)
    events.append(Note(f"README.md: {key} is a list or a map, left out"))
    return None


def _list(key: str, nodes: list[Node | None], events: list[Event]) -> Iterator[tuple[str, Array]]:
    """A list of texts from texts and lists; numbers only if it holds nothing else."""
    items: list[Node] = []
    for node in nodes:
        items += node if isinstance(node, list) else [node] if isinstance(node, str) else []
    numbers = [item.value for item in items if isinstance(item, Plain) and item.value is not None]
    if len(numbers) == len(items) and len({type(number) for number in numbers}) == 1:
        if type(numbers[0]) is not int or all(number in _I32 for number in numbers):
            yield key, Array(_NUMBER_TYPES[type(numbers[0])], numbers)
            return
    texts = [item for item in items if isinstance(item, str)]
    if len(texts) < len(items):
        scalars = [item for item in items if isinstance(item, str | Plain) and not _is_null(item)]
        texts = [item.text if isinstance(item, Plain) else item for item in scalars]
        events.append(Note(f"README.md: {key} mixes texts with other values, written as texts"))
    if texts:
        yield key, Array("str", texts)


def _sampling(generation: Mapping[str, Any], events: list[Event]) -> Iterator[tuple[str, Value]]:
    """The recommended sampling settings that are given and have a sensible type."""
    for name, kind, keys in SAMPLING:
        value = next((generation[key] for key in keys if key in generation), None)
        if value is None or value == "":
            continue
        if _storable(kind, value):
            yield f"general.sampling.{name}", _text(value) if kind == "str" else Value(kind, value)
        else:
            events.append(Note(f"generation_config.json: {name} is {value!r:.40}, left out"))


def _storable(kind: str, value: object) -> bool:
    if kind == "str":
        return isinstance(value, str)
    if kind == "i32":
        return isinstance(value, int) and value in _I32
    return isinstance(value, int | float) and not _F32_MAX <= abs(value) < math.inf


# -- back: a GGUF's keys as the files they are read from ----------------------------------------------------------


def general_files(metadata: Metadata, n_params: int) -> tuple[dict[str, bytes], set[str]]:
    """README.md and generation_config.json that `general_metadata` reads as these keys, and the keys they hold.

    `n_params` is the number of weights of the model. Empty texts and lists of numbers have no place in the files.
    """
    card: list[str] = []
    held: set[str] = {"general.type"} if metadata.get("general.type") == text("model") else set()
    for key, names in CARD:
        if content := _stored_text(metadata, f"general.{key}"):
            card.append(f"{names[0]}: {_yaml(content)}")
            held.add(f"general.{key}")
    for kind, names in ORIGINS:
        card += _origin_lines(metadata, kind, names[0], n_params, held)
    for key, names in LISTS:
        entry = array_of(metadata, f"general.{key}", "str")
        if entry is not None and all(isinstance(item, str) for item in entry.values):
            card += [f"{names[-1] if key == 'languages' else names[0]}:", *(f"- {_yaml(str(v))}" for v in entry.values)]
            held.add(f"general.{key}")
    files = {"README.md": "\n".join(["---", *card, "---", ""]).encode()} if card else {}
    settings = dict(_settings_of(metadata, held))
    if settings:
        files["generation_config.json"] = (json.dumps(settings, indent=2, ensure_ascii=False) + "\n").encode()
    return files, held


def _stored_text(metadata: Metadata, key: str) -> str:
    value = getattr(metadata.get(key), "value", None)
    return value if isinstance(value, str) else ""


def _yaml(content: str) -> str:
    """A double-quoted YAML scalar on one line."""
    quoted = json.dumps(content, ensure_ascii=False)
    return "".join(c if c.isprintable() else f"\\U{ord(c):08x}" for c in quoted)


def _origin_lines(metadata: Metadata, kind: str, name: str, n_params: int, held: set[str]) -> Iterator[str]:
    """The base models or data sets: as hub ids where these say it all, else field by field."""
    count = getattr(metadata.get(f"general.{kind}.count"), "value", None)
    if not isinstance(count, int) or not 0 < count <= MAX_ORIGINS:
        return
    held.add(f"general.{kind}.count")
    yield f"{name}:"
    for index in range(count):
        prefix = f"general.{kind}.{index}."
        fields = {key: found for key in ORIGIN_FIELDS if (found := _stored_text(metadata, prefix + key))}
        held.update(prefix + key for key in fields)
        model_id = fields.get("repo_url", "").removeprefix("https://huggingface.co/")
        if fields and _origin_of_id(model_id, n_params) == fields:
            yield f"- {_yaml(model_id)}"
        else:
            entries = [f"{key}: {_yaml(found)}" for key, found in fields.items()]
            yield "- {" + ", ".join(entries) + "}"


def _settings_of(metadata: Metadata, held: set[str]) -> Iterator[tuple[str, Any]]:
    """The sampling settings under transformers' names; of an F32 the shortest decimal."""
    for name, kind, keys in SAMPLING:
        entry = metadata.get(f"general.sampling.{name}")
        if isinstance(entry, Value) and entry.type == kind and not isinstance(entry.value, bytes):
            held.add(f"general.sampling.{name}")
            yield keys[-1], float(str(np.float32(entry.value))) if kind == "f32" else entry.value


# -- files --------------------------------------------------------------------------------------------------------


def _read_card(path: Path | None, events: list[Event]) -> dict[str, Node]:
    if path is None:
        return {}
    try:
        with local(path).open("rb") as file:
            data = file.read(MAX_CARD)
            content = data.decode(errors="replace")
    except OSError as why:
        events.append(Note(f"{path.name}: not read ({why.strerror})"))
        return {}
    yaml = front_matter(content.replace("\r\n", "\n"))
    if yaml is None:
        return {}
    card, notes = read_front_matter(yaml, WANTED)
    events += notes
    if len(data) == MAX_CARD and "\n---" not in content:
        events.append(Note(f"{path.name}: front matter of more than {MAX_CARD >> 20} MiB, the rest is not read"))
    return card


def _read_json(path: Path | None, events: list[Event]) -> dict[str, Any]:
    """A JSON object; {} and a Note where the file is no such thing (a model is usable without)."""
    if path is None:
        return {}
    try:
        with local(path).open("rb") as file:
            content = file.read(MAX_JSON + 1)
        if len(content) > MAX_JSON:
            raise ValueError(f"larger than {MAX_JSON >> 20} MiB")
        loaded = json.loads(content)
    except (OSError, ValueError, RecursionError) as why:
        events.append(Note(f"{path.name}: not usable for general metadata ({why})"))
        return {}
    if not isinstance(loaded, dict):
        events.append(Note(f"{path.name}: not an object, ignored"))
        return {}
    return loaded
