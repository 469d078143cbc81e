"""Exported programs (`torch.export.save`, .pt2): a zip archive of a graph in JSON and the bytes of its tensors.

Tensors are read as those of any PyTorch file. Of the graph a clean copy is kept: `torch.export.load` would look up any
name in it as Python's, evaluate its expressions and unpickle its samples, so that nothing goes on but what a whitelist
knows: operators of ATen on values with plain names, sizes that are arithmetic of symbols, containers of Python's own.
Source: `torch/_export/serde/schema.py` (schema 8) and `torch/export/pt2_archive` of PyTorch 2.9 and later.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from converter.checkpoint import Around
from converter.errors import CorruptFile, UnsupportedFeature, short
from converter.events import Event, Note
from converter.formats.torch.values import TYPES, Refused, Storage, Tensor, TypeName, Value
from converter.storage.json import parse_json
from converter.storage.zip import Archive
from converter.tensors.dtypes import DTYPES, DType

#: What makes a file that a graph can be read of.
SAVE_A_GRAPH = 'with its graph: torch.export.save(torch.export.export(model, (example,)), "model.pt2")'
FORMAT, MODELS = "archive_format", "models/"
#: Folders of tensors; a graph names them apart, and their files.
KINDS = {"weights": "data/weights/{}_weights_config.json", "constants": "data/constants/{}_constants_config.json"}
MAX_JSON = 256 << 20
SCHEMA = 8
STRIDED = 7
#: ScalarType of the schema -> name in module torch.
SCALARS = {
    1: "uint8", 2: "int8", 3: "int16", 4: "int32", 5: "int64", 6: "float16", 7: "float32", 8: "float64",
    10: "complex64", 11: "complex128", 12: "bool", 13: "bfloat16", 28: "uint16", 29: "float8_e4m3fn",
    30: "float8_e5m2", 31: "float8_e4m3fnuz", 32: "float8_e5m2fnuz", 33: "float8_e8m0fnu", 34: "uint32", 35: "uint64",
}  # fmt: skip


@dataclass(frozen=True)
class ExportedProgram(Around):
    """What an exported program is around its tensors: see `converter.checkpoint.Structure`.

    `program` is its graph, with nothing in it that is not on the whitelist; `refused` says what is, if anything.
    """

    program: Mapping[str, Any] = field(repr=False)
    refused: str = ""

    def leave(self) -> tuple[Event, ...]:
        """That its graph is lost, where another format gets the tensors."""
        return (Note("exported program: its tensors are read, its graph is not"),)


class ScriptedProgram(Around):
    """What a TorchScript file is around its tensors: code. An event of the reader says that it is not read."""


def is_exported(archive: Archive, prefix: str) -> bool:
    """Whether the archive holds an exported program."""
    return prefix + FORMAT in archive.entries and any(name.startswith(prefix + MODELS) for name in archive.entries)


def read_exported(archive: Archive, prefix: str) -> tuple[dict[str, Value], ExportedProgram]:
    """The tensors of the one program in an archive by their names in it, and its graph.

    Raises:
        CorruptFile: it contradicts itself.
        UnsupportedFeature: several programs, another version of the schema, objects that are no tensors.
    """
    path, start = archive.mapped.path, prefix + MODELS
    models = [name for name in archive.entries if name.startswith(start) and name.endswith(".json")]
    if len(models) != 1:
        raise UnsupportedFeature(f"{path}: holds {len(models)} exported programs; save one in a file of its own")
    name = models[0].removeprefix(start).removesuffix(".json")
    tensors: dict[str, Value] = {}
    for kind, file in KINDS.items():
        member = prefix + file.format(name)
        if member not in archive.entries:
            raise UnsupportedFeature(
                f"{path}: an exported program of another version of PyTorch ({short(member)} is not there)\n"
                "load it with the version that wrote it, and save it with PyTorch 2.9 or later"
            )
        for each, told in _payloads(archive, member).items():
            if each in tensors:
                raise CorruptFile(f"{path}: two tensors are called {short(each)}")
            tensors[each] = _tensor(archive, f"{prefix}data/{kind}/", each, told)
    program = parse_json(archive.small(models[0], MAX_JSON), f"{path} ({models[0]})")
    version = program.get("schema_version")
    if not isinstance(version, dict) or version.get("major") != SCHEMA:
        raise UnsupportedFeature(f"{path}: schema {short(version)} of exported programs; {SCHEMA} is known here")
    try:
        return tensors, ExportedProgram(_clean(program))
    except _Strange as strange:
        return tensors, ExportedProgram({}, str(strange))


def _payloads(archive: Archive, member: str) -> dict[str, Any]:
    found = parse_json(archive.small(member, MAX_JSON), f"{archive.mapped.path} ({member})").get("config")
    if not isinstance(found, dict):
        raise CorruptFile(f"{archive.mapped.path}: {short(member)} lists no tensors")
    return found


def _tensor(archive: Archive, folder: str, name: str, told: Any) -> Value:
    path = archive.mapped.path
    try:
        if told["use_pickle"] or told["tensor_meta"] is None or told["tensor_meta"]["layout"] != STRIDED:
            return Refused("is stored as a pickle, or as no plain tensor")
        meta, member = told["tensor_meta"], folder + str(told["path_name"])
        scalar = SCALARS.get(meta["dtype"], "")
        shape, stride = (tuple(_size(each) for each in meta[key]) for key in ("sizes", "strides"))
        offset = _size(meta["storage_offset"])
    except (KeyError, TypeError, ValueError):
        raise CorruptFile(f"{path}: what is said of tensor {short(name)} makes no sense") from None
    if scalar not in TYPES:
        return Refused(f"is of type {short(meta['dtype'])}, which no format here can hold")
    if len(shape) != len(stride) or member not in archive.entries:
        raise CorruptFile(f"{path}: tensor {short(name)} has no bytes, or not as many strides as axes")
    dtype: DType = DTYPES[TYPES[scalar]]
    numel, rest = divmod(archive.entries[member].size, dtype.type_size)
    if rest:
        raise CorruptFile(f"{path}: tensor {short(name)} ends within a number")
    return Tensor(Storage(member, TypeName(scalar, dtype), numel), dtype, offset, shape, stride)


def _size(value: Any) -> int:
    size = value["as_int"]
    if type(size) is not int or not 0 <= size < 1 << 63:
        raise ValueError
    return size


# ------------------------------------------------------------------------------------------------- whitelist


class _Strange(Exception):
    """Something in a graph that is not on the whitelist."""


_NAME = r"[A-Za-z_][A-Za-z0-9_]{0,255}"
_PATH = rf"{_NAME}(\.[A-Za-z0-9_]{{1,255}}){{0,64}}"
_OPERATOR = (
    rf"torch\.ops\.(aten|prims)\.(?!from_file)(?!_?_?(save|load))[a-z_0-9A-Z]{{1,128}}\.{_NAME}"
    r"|_operator\.(add|sub|mul|floordiv|truediv|mod|pow|neg|pos|getitem|eq|ne|lt|le|gt|ge|and_|or_)"
    r"|torch\.sym_(max|min|int|float|not|ite)|math\.(ceil|floor|trunc)"
)
#: Key of the JSON -> what a text under it may be. A text under another key is refused; keys are names, too.
_TEXTS = {
    "name": _NAME, "target": _OPERATOR, "parameter_name": _PATH, "buffer_name": _PATH, "tensor_constant_name": _PATH,
    "fqn": rf"|{_PATH}", "type": r"cpu|cuda|meta|mps|xpu", "as_name": _NAME, "torch_version": r"[\w.+-]{1,64}",
    "verifiers": r"\w{1,32}", "as_string": r"[\w ./:-]{0,256}", "as_strings": r"[\w ./:-]{0,256}",
    "forward_arg_names": _NAME, "user_input_name": _NAME, "buffer_to_mutate": _PATH, "buffer_mutation": _PATH,
}  # fmt: skip
#: Keys whose values are Python's: containers of its own, as PyTorch writes them.
_CONTAINERS = ("in_spec", "out_spec")
#: What only tells where it came from, or would be run.
_EMPTIED: Mapping[str, Any] = {"metadata": {}, "guards_code": [], "treespec_namedtuple_fields": {}}
_EMPTY_ONLY = ("custom_obj_values",)
_SPECS = (None, "builtins.tuple", "builtins.list", "builtins.dict", "collections.OrderedDict")
_KEYS = re.compile(_PATH)
_MAX_DEPTH = 64


def _clean(program: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of a graph's JSON with nothing in it that is not on the whitelist."""
    calls = program.get("graph_module", {})
    calls = calls.get("module_call_graph", []) if isinstance(calls, dict) else []
    made: dict[str, Any] = _cleaned(program, "", _MAX_DEPTH)
    if not isinstance(calls, list) or not calls:
        raise _Strange("it does not say how it is called")
    made["graph_module"]["module_call_graph"] = [_cleaned(calls[0], "module_call_graph", _MAX_DEPTH)]
    return made


def _cleaned(value: Any, key: str, depth: int) -> Any:
    if depth == 0:
        raise _Strange("it is nested too deep")
    if isinstance(value, dict):
        if value and key in _EMPTY_ONLY:
            raise _Strange("it holds objects that are no tensors")
        for each in value:
            if not _KEYS.fullmatch(each):
                raise _Strange(f"a name in it is {short(each)}")
        return {each: _under(each, inner, depth) for each, inner in value.items() if each != "module_call_graph"}
    if isinstance(value, list):
        return [_cleaned(each, key, depth - 1) for each in value]
    if isinstance(value, str):
        return _text(value, key)
    return value


def _under(key: str, value: Any, depth: int) -> Any:
    return _EMPTIED[key] if key in _EMPTIED else _cleaned(value, key, depth - 1)


def _text(value: str, key: str) -> str:
    if key in _CONTAINERS:
        _check_containers(value)
    elif key == "expr_str":
        _check_sizes(value)
    elif key not in _TEXTS or not re.fullmatch(_TEXTS[key], value):
        raise _Strange(f"{short(key)} in it is {short(value)}")
    return value


def _check_containers(value: str) -> None:
    try:
        pending = json.loads(value)[1:]
        while pending:
            spec = pending.pop()
            context = spec["context"]
            if spec["type"] not in _SPECS or not (context is None or _is_plain(json.loads(context))):
                raise ValueError
            pending += spec["children_spec"]
    except (ValueError, TypeError, KeyError, RecursionError):
        raise _Strange("it takes or gives other containers than tuples, lists and dictionaries") from None


def _is_plain(context: Any) -> bool:
    """Whether a container's context is nothing, or the names of a dictionary."""
    names = context if isinstance(context, list) else [] if context is None else [0]
    return all(isinstance(each, str) and _KEYS.fullmatch(each) for each in names)


#: Words of an expression of sizes: symbols, what says that they are, and functions of sympy's and torch's for sizes.
_WORDS = re.compile(r"[suf]\d{1,6}|zuf\d{1,6}")
_FUNCTIONS = frozenset((
    "Symbol", "Integer", "Float", "Rational", "Add", "Mul", "Pow", "Max", "Min", "Mod", "PythonMod", "FloorDiv",
    "CeilDiv", "CleanDiv", "IntTrueDiv", "FloatTrueDiv", "ModularIndexing", "Where", "Eq", "Ne", "Lt", "Le", "Gt", "Ge",
    "Equality", "Unequality", "StrictLessThan", "LessThan", "StrictGreaterThan", "GreaterThan", "And", "Or", "Not",
    "TruncToInt", "FloorToInt", "CeilToInt", "RoundToInt", "ToFloat", "Identity", "Piecewise", "ExprCondPair",
    "true", "false", "True", "False", "positive", "integer", "nonnegative", "nonzero", "evaluate", "precision",
))  # fmt: skip
_TOKEN = re.compile(
    r"\s+|(?P<number>\d{1,12}(\.\d{1,18})?)(?![\w.])|(?P<word>[A-Za-z]\w{0,63})|'(?P<quoted>\w{1,64})'|[-+*/%(),=<>!&|~]"
)
_MAX_EXPRESSION = 4096


def _check_sizes(text: str) -> None:
    """Refuse what is no arithmetic of symbols: whoever reads it evaluates it."""
    at = 0
    while at < len(text) and len(text) <= _MAX_EXPRESSION:
        found = _TOKEN.match(text, at)
        if found is None:
            break
        word, quoted = found["word"], found["quoted"]
        known = word is None or word in _FUNCTIONS or _WORDS.fullmatch(word)
        if not known or (quoted is not None and not _WORDS.fullmatch(quoted) and not quoted.isdigit()):
            break
        at = found.end()
    else:
        if len(text) <= _MAX_EXPRESSION:
            return
    raise _Strange(f"a size in it is {short(text)}")
