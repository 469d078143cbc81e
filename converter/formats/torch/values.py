"""What a PyTorch pickle may name, and what that stands for here: plain records without behaviour.

Source: `torch/_utils.py` (the rebuild functions and their arguments), `torch/storage.py` (storage types and dtypes) and
the names that `torch.load(weights_only=True)` admits. A name outside the table is never looked up anywhere else.
"""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from converter.errors import CorruptFile, UnsupportedFeature, short
from converter.formats.base import MAX_AXES
from converter.formats.torch.pickle import Instance, Named
from converter.tensors.dtypes import DTYPES, DType

# Names of storage classes in module torch -> our encodings.
STORAGES: Mapping[str, str] = {
    "DoubleStorage": "F64",
    "FloatStorage": "F32",
    "HalfStorage": "F16",
    "BFloat16Storage": "BF16",
    "LongStorage": "I64",
    "IntStorage": "I32",
    "ShortStorage": "I16",
    "CharStorage": "I8",
    "ByteStorage": "U8",
    "BoolStorage": "BOOL",
    "ComplexDoubleStorage": "C128",
    "ComplexFloatStorage": "C64",
}
# Names of dtypes in module torch -> our encodings.
TYPES: Mapping[str, str] = {
    "float64": "F64",
    "float32": "F32",
    "float16": "F16",
    "bfloat16": "BF16",
    "int64": "I64",
    "int32": "I32",
    "int16": "I16",
    "int8": "I8",
    "uint64": "U64",
    "uint32": "U32",
    "uint16": "U16",
    "uint8": "U8",
    "bool": "BOOL",
    "complex128": "C128",
    "complex64": "C64",
    "float8_e4m3fn": "F8_E4M3",
    "float8_e5m2": "F8_E5M2",
    "float8_e8m0fnu": "F8_E8M0",
    "float8_e4m3fnuz": "F8_E4M3FNUZ",
    "float8_e5m2fnuz": "F8_E5M2FNUZ",
}
QUANTIZED_STORAGES = ("QInt8Storage", "QInt32Storage", "QUInt8Storage", "QUInt4x2Storage", "QUInt2x4Storage")
_OTHER_TYPES = (
    "complex32",
    "float4_e2m1fn_x2",
    "bits8",
    "bits16",
    "bits1x8",
    "bits2x4",
    "bits4x2",
    "qint8",
    "qint32",
    "quint8",
    "quint4x2",
    "quint2x4",
    *(f"{u}int{n}" for u in ("", "u") for n in range(1, 8)),
    "per_tensor_affine",
    "per_tensor_symmetric",
    "per_channel_affine",
    "per_channel_symmetric",
    "per_channel_affine_float_qparams",
)


@dataclass(frozen=True, slots=True)
class TypeName:
    """A dtype or a storage class; `dtype` is None where we have no such encoding. An untyped storage counts bytes."""

    name: str
    dtype: DType | None


@dataclass(frozen=True, slots=True)
class Storage:
    """A run of elements elsewhere in the file: `start` elements into the storage called `key`."""

    key: str
    type: TypeName
    numel: int
    start: int = 0

    @property
    def nbytes(self) -> int:
        return self.numel * (self.type.dtype.type_size if self.type.dtype else 1)

    @property
    def start_nbytes(self) -> int:
        return self.start * (self.type.dtype.type_size if self.type.dtype else 1)


@dataclass(eq=False, frozen=True, slots=True)
class Tensor:
    """A strided view of a storage; `offset` and `stride` count elements of `dtype`."""

    storage: Storage
    dtype: DType
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]


@dataclass(eq=False, frozen=True, slots=True)
class Refused:
    """A tensor of a kind that is not read; an error only if somebody wants it."""

    reason: str


@dataclass(eq=False, frozen=True, slots=True)
class Sharded(Refused):
    """What one rank holds of a tensor that lies on several: type and shape of the whole, and the wrapper's state."""

    dtype: DType
    shape: tuple[int, ...]
    state: Any = None


Value = Tensor | Refused


def attributes(value: Any) -> Mapping[Any, Any]:
    """What an inert object carries, by name; of one with slots, too. Nothing for anything else.

    Nothing is copied: many objects can share one dictionary.
    """
    state = value.state if type(value) is Instance else value
    parts = state[:2] if type(state) is tuple else (state,)
    return ChainMap(*(part for part in parts if type(part) is dict))


# --------------------------------------------------------------------------------------- persistent ids


def storage_of(pid: Any) -> Storage:
    """The storage that a persistent id describes: ('storage', class, key, location, number of elements).

    Stream files add None, or (key of the view, first element, number of elements).

    Raises:
        CorruptFile, UnsupportedFeature: anything else.
    """
    if type(pid) is tuple and pid[:1] == ("module",):
        raise UnsupportedFeature("holds a whole module with its code; save module.state_dict() instead")
    if type(pid) is not tuple or len(pid) not in (5, 6) or type(pid[0]) is not str or pid[0] != "storage":
        raise CorruptFile("a persistent id that is not that of a storage")
    _, kind, key, location, numel = pid[:5]
    if type(kind) is not TypeName or type(key) is not str or type(location) is not str or not is_size(numel):
        raise CorruptFile("a persistent id of a storage whose parts make no sense")
    if len(pid) == 6 and pid[5] is not None:
        return _view(Storage(key, kind, numel), pid[5])
    return Storage(key, kind, numel)


def _view(storage: Storage, view: Any) -> Storage:
    if type(view) is not tuple or len(view) != 3 or not (is_size(view[1]) and is_size(view[2])):
        raise CorruptFile("a view of a storage whose parts make no sense")
    _, start, numel = view
    if start + numel > storage.numel:
        raise CorruptFile(
            f"storage {short(storage.key)} has {storage.numel} elements, a view needs {start} to {start + numel}"
        )
    return Storage(storage.key, storage.type, storage.numel, start)


def is_size(value: Any) -> bool:
    return type(value) is int and 0 <= value < 1 << 63


# ----------------------------------------------------------------------------------------- constructors


def tensor(storage: Any, offset: Any, shape: Any, stride: Any, *_: Any) -> Value:
    """`_rebuild_tensor`; further arguments (gradient, hooks) mean nothing here, but for the last of `tensor_v2`."""
    if type(storage) is not Storage:
        raise TypeError("a tensor without a storage")
    if storage.type.dtype is None:
        return Refused(f"torch.{storage.type.name} is a type that no format here can hold")
    return _strided(storage, storage.type.dtype, offset, shape, stride)


def tensor_v2(
    storage: Any, offset: Any, shape: Any, stride: Any, gradient: Any = None, hooks: Any = None, metadata: Any = None
) -> Value:
    """`_rebuild_tensor_v2`."""
    return _resolved(tensor(storage, offset, shape, stride), metadata)


def tensor_v3(
    storage: Any, offset: Any, shape: Any, stride: Any, gradient: Any, hooks: Any, kind: Any, metadata: Any = None
) -> Value:
    """`_rebuild_tensor_v3`: the storage is untyped, the tensor says its dtype."""
    if type(storage) is not Storage or type(kind) is not TypeName:
        raise TypeError("a tensor without storage or dtype")
    if kind.dtype is None:
        return Refused(f"torch.{kind.name} is a type that no format here can hold")
    return _resolved(_strided(storage, kind.dtype, offset, shape, stride), metadata)


def _strided(storage: Storage, dtype: DType, offset: Any, shape: Any, stride: Any) -> Tensor:
    if type(shape) is not tuple or type(stride) is not tuple or len(shape) != len(stride) or len(shape) > MAX_AXES:
        raise TypeError("a tensor whose shape and strides do not match")
    if not is_size(offset) or not all(map(is_size, shape)) or not all(map(is_size, stride)):
        raise ValueError("a tensor with sizes, strides or an offset out of range")
    return Tensor(storage, dtype, offset, shape, stride)


def _resolved(value: Value, metadata: Any) -> Value:
    """Views that conjugate or negate on the fly are not what their bytes say."""
    if metadata is None or metadata == {}:
        return value
    if type(metadata) is not dict or not metadata.keys() <= {"conj", "neg"}:
        raise TypeError("unknown tensor metadata")
    return Refused("it is stored as a lazy conjugate; save tensor.resolve_conj().resolve_neg() instead")


def parameter(data: Any, *_: Any) -> Value:
    """`_rebuild_parameter`, with or without state: its data."""
    if not isinstance(data, Tensor | Refused):
        raise TypeError("a parameter without data")
    return data


def from_type(function: Any, kind: Any, arguments: Any, state: Any = None) -> Value:
    """`_rebuild_from_type_v2`: a tensor with attributes of its own, which are left out."""
    if not isinstance(function, Named) or function.make not in REBUILD.values() or type(arguments) is not tuple:
        raise TypeError("a tensor that is rebuilt by something else")
    value: Value = function.make(*arguments)
    return replace(value, state=state) if isinstance(value, Sharded) else value


def wrapped(kind: Any, dtype: Any = None, shape: Any = None, *_: Any) -> Value:
    """`_rebuild_wrapper_subclass`: of a DTensor or ShardedTensor what its wrapper says; its state comes later."""
    if type(kind) is not Named or kind.name not in WRAPPERS:
        return Refused("wrapped tensors are not supported")
    if type(dtype) is not TypeName or type(shape) is not tuple or len(shape) > MAX_AXES or not all(map(is_size, shape)):
        raise TypeError("a tensor of several ranks without type or shape")
    if dtype.dtype is None:
        return Refused(f"torch.{dtype.name} is a type that no format here can hold")
    return Sharded("this file has one rank's part of it; give the folder with the files of all", dtype.dtype, shape)


def _refusing(what: str) -> Any:
    return lambda *_: Refused(f"{what} tensors are not supported")


REBUILD: Mapping[str, Any] = {
    "_rebuild_tensor": tensor,
    "_rebuild_tensor_v2": tensor_v2,
    "_rebuild_tensor_v3": tensor_v3,
    "_rebuild_parameter": parameter,
    "_rebuild_parameter_with_state": parameter,
    "_rebuild_device_tensor_from_cpu_tensor": parameter,
    "_rebuild_qtensor": _refusing("quantized"),
    "_rebuild_sparse_tensor": _refusing("sparse"),
    "_rebuild_nested_tensor": _refusing("nested"),
    "_rebuild_meta_tensor_no_storage": _refusing("meta (they have no data)"),
    "_rebuild_wrapper_subclass": wrapped,
    "_rebuild_device_tensor_from_numpy": _refusing("device"),
}


def _encode(text: Any, encoding: Any = "utf-8") -> bytes:
    """`_codecs.encode`, by which protocol 2 writes bytes."""
    if type(text) is not str or encoding not in ("latin1", "utf-8", "ascii"):
        raise TypeError("bytes in an unknown encoding")
    return text.encode(encoding)


def _dict(items: Any = ()) -> dict[Any, Any]:
    """An OrderedDict and its like; they are made empty and filled later, but for Python 2, which gives pairs."""
    if type(items) is not list and items != ():
        raise TypeError("a dictionary made of something else than pairs")
    result: dict[Any, Any] = {}
    for pair in items:
        key, value = pair
        if type(key) is not str or key in result:
            raise TypeError("a dictionary made of something else than pairs")
        result[key] = value
    return result


def _first(value: Any, *_: Any) -> Any:
    return value


def _nothing(name: str) -> Named:
    """A class whose objects carry settings or numbers, which no format of tensors can hold."""
    return Named(name, lambda *arguments: Instance(name, elements=list(arguments)))


def _table() -> dict[tuple[str, str], Any]:
    untyped = TypeName("UntypedStorage", DTYPES["U8"])
    table: dict[tuple[str, str], Any] = {("torch.storage", untyped.name): untyped, ("torch", untyped.name): untyped}
    for name, ours in (*STORAGES.items(), *TYPES.items()):
        table["torch", name] = TypeName(name, DTYPES[ours])
    table.update({("torch", name): TypeName(name, None) for name in (*QUANTIZED_STORAGES, *_OTHER_TYPES)})
    table.update({("torch._utils", name): Named(f"torch._utils.{name}", make) for name, make in REBUILD.items()})
    table["torch._tensor", "_rebuild_from_type_v2"] = Named("torch._tensor._rebuild_from_type_v2", from_type)
    for names, make in _CONTAINERS:
        table.update({_pair(name): Named(name, make) for name in names})
    table.update({_pair(name): _nothing(name) for name in (*_SETTINGS, *WRAPPERS, *_ENUMERATIONS, *_RECORDS)})
    return table


def _pair(name: str) -> tuple[str, str]:
    module, _, last = name.rpartition(".")
    return module, last


_CONTAINERS: tuple[tuple[Iterable[str], Any], ...] = (
    (("collections.OrderedDict",), _dict),
    (("collections.defaultdict",), lambda *_: {}),
    (("collections.Counter",), lambda items=None: items if type(items) is dict else {}),
    (
        ("torch.Size", "builtins.set", "builtins.frozenset", "__builtin__.set", "__builtin__.frozenset"),
        lambda items=(): items,
    ),
    (("torch.nn.parameter.Parameter",), parameter),
    (("_codecs.encode",), _encode),
    (
        tuple(
            f"torch.jit._pickle.{name}"
            for name in ("build_intlist", "build_tensorlist", "build_doublelist", "build_boollist", "restore_type_tag")
        ),
        _first,
    ),
)
# Both as values (an empty `bytes` is a call in protocol 2) and as names (of what a defaultdict makes). Some have other
# names in Python 2.
_BUILTINS = (
    "dict", "list", "tuple", "int", "long", "float", "complex", "bool", "str", "unicode", "bytes", "bytearray", "slice",
    "range", "xrange", "object",
)  # fmt: skip
# Classes that stand beside the tensors of real checkpoints. What is known of them is their name.
_SETTINGS = (
    "torch.device",
    "torch.Tensor",
    "torch.serialization._get_layout",
    *(f"builtins.{name}" for name in _BUILTINS),
    *(f"__builtin__.{name}" for name in _BUILTINS),
    "copyreg._reconstructor",
    "copy_reg._reconstructor",
    "collections.deque",
    "_io.BytesIO",
    "argparse.Namespace",
    "types.SimpleNamespace",
    "datetime.datetime",
    "datetime.date",
    "datetime.timedelta",
    "pathlib.Path",
    "pathlib.PosixPath",
    "pathlib.WindowsPath",
    "pathlib.PurePosixPath",
    "pathlib.PureWindowsPath",
    "pathlib._local.PosixPath",
    "pathlib._local.WindowsPath",
    "numpy.core.multiarray.scalar",
    "numpy._core.multiarray.scalar",
    "numpy.dtype",
    "numpy.ndarray",
    "numpy.core.multiarray._reconstruct",
    "numpy._core.multiarray._reconstruct",
    "easydict.EasyDict",
    "omegaconf.dictconfig.DictConfig",
    "omegaconf.listconfig.ListConfig",
    "omegaconf.base.ContainerMetadata",
    "omegaconf.base.Metadata",
    "omegaconf.nodes.AnyNode",
    "typing.Any",
    "pytorch_lightning.callbacks.model_checkpoint.ModelCheckpoint",
    "pytorch_lightning.callbacks.early_stopping.EarlyStopping",
    "pytorch_lightning.utilities.parsing.AttributeDict",
    "lightning.fabric.utilities.data.AttributeDict",
    "lightning_fabric.utilities.data.AttributeDict",
)


def _in(modules: Iterable[str], names: str) -> tuple[str, ...]:
    return tuple(f"torch.distributed.{module}.{name}" for module in modules for name in names.split())


# What distributed training saves around its tensors, under the names of several versions of PyTorch. Read as records.
WRAPPERS = frozenset(
    (
        *_in(("tensor", "tensor._api", "_tensor", "_tensor.api"), "DTensor"),
        *_in(("_shard.sharded_tensor.api",), "ShardedTensor"),
    )
)
_ENUMERATIONS = (
    *_in(("_shard.sharded_tensor.metadata",), "MEM_FORMAT_ENCODING"),
    *_in(("checkpoint.metadata",), "_MEM_FORMAT_ENCODING"),
)
_RECORDS = (
    *_in(
        ("checkpoint.metadata",),
        "Metadata MetadataIndex TensorStorageMetadata BytesStorageMetadata ChunkStorageMetadata TensorProperties "
        "StorageMeta",
    ),
    *_in(("checkpoint.filesystem",), "_StorageInfo"),
    *_in(
        ("tensor.placement_types", "_tensor.placement_types"),
        "Shard Replicate Partial _Partial _StridedShard DTensorSpec TensorMeta",
    ),
    *_in(("tensor._dtensor_spec", "_tensor._dtensor_spec"), "DTensorSpec TensorMeta ShardOrderEntry"),
    *_in(("device_mesh", "_tensor.device_mesh"), "DeviceMesh"),
    *_in(("_mesh_layout",), "_FlatLayout _MeshLayout"),
    *_in(("_shard.metadata",), "ShardMetadata"),
    *_in(("_shard.sharded_tensor.metadata",), "ShardedTensorMetadata TensorProperties"),
    *_in(("_shard.sharded_tensor.shard",), "Shard"),
    *_in(("_shard.sharding_spec.chunk_sharding_spec",), "ChunkShardingSpec"),
    *_in(("_shard.sharding_spec.api",), "EnumerableShardingSpec"),
    *_in(("remote_device",), "_remote_device"),
    "megatron.core.dist_checkpointing.strategies.torch.MCoreMetadata",
)

TABLE: Mapping[tuple[str, str], Any] = _table()


_MAX_NAMES = 1 << 16
GETATTR = "builtins.getattr"


class Names:
    """Looks names up for one file. Unknown ones become inert objects too, and are listed in `unknown`.

    In a TorchScript archive the classes of its own programs, `__torch__.*`, are objects with attributes.
    """

    def __init__(self, script: bool) -> None:
        self._script = script
        self._made: dict[str, Named] = {}
        self._getattr = Named(GETATTR, self._member)
        self.unknown: list[str] = []

    def find(self, module: str, name: str) -> Any:
        found = TABLE.get((module, name))
        if found is not None:
            return found
        if name == "getattr" and module in ("builtins", "__builtin__"):
            return self._getattr
        full = f"{module}.{name}"
        if full not in self._made:
            if len(self._made) == _MAX_NAMES:
                raise CorruptFile(f"names more than {_MAX_NAMES} classes")
            self._made[full] = _nothing(full)
            if not (self._script and module.partition(".")[0] == "__torch__"):
                self.unknown.append(full)
        return self._made[full]

    def _member(self, *arguments: Any) -> Named | Instance:
        """`getattr` as protocol 2 writes members of enumerations and classes within classes; of others as unknown."""
        kind, name = (*arguments, None, None)[:2]
        if type(kind) is Named and kind.name in (*_ENUMERATIONS, *WRAPPERS) and type(name) is str:
            return _nothing(f"{kind.name}.{name}")
        if GETATTR not in self.unknown:
            self.unknown.append(GETATTR)
        return Instance(GETATTR, elements=list(arguments))


def refuse_unknown(path: Path, unknown: Sequence[str]) -> None:
    """Raises UnsupportedFeature where names were not in the table."""
    if unknown:
        raise UnsupportedFeature(
            f"{path}: holds Python objects, which are never loaded: {some(unknown)}\n"
            "load it where it comes from and save only model.state_dict(), or take a part without them: --key PART"
        )


def some(unknown: Sequence[str]) -> str:
    """The first few of the names that were not in the table."""
    listed = ", ".join(short(name)[1:-1] for name in unknown[:4])
    return listed + (f" and {len(unknown) - 4} more" if len(unknown) > 4 else "")
