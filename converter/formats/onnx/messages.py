"""The messages of onnx.proto: which fields are read, of which wire types, and which stand once at most."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

from converter.storage.protobuf import BYTES, FIXED32, FIXED64, VARINT, Field

_B, _V = (BYTES,), (VARINT,)
_VARINTS, _FLOATS, _DOUBLES = (VARINT, BYTES), (FIXED32, BYTES), (FIXED64, BYTES)


@dataclass(frozen=True)
class Schema:
    """A message: field number -> name and wire types, of fields that stand once at most and of repeated ones."""

    name: str
    once: Mapping[int, tuple[str, tuple[int, ...]]]
    many: Mapping[int, tuple[str, tuple[int, ...]]]

    @cached_property
    def rules(self) -> dict[int, tuple[str, tuple[int, ...], bool]]:
        """Field number -> name, wire types, whether it stands once at most."""
        once = {number: (*rule, True) for number, rule in self.once.items()}
        return {**once, **{number: (*rule, False) for number, rule in self.many.items()}}


MODEL = Schema(
    "the model",
    {1: ("ir_version", _V), 2: ("producer_name", _B), 3: ("producer_version", _B), 7: ("graph", _B)},
    {8: ("opset_import", _B), 14: ("metadata_props", _B), 20: ("training_info", _B), 25: ("functions", _B)},
)
OPSET = Schema("an operator set", {1: ("domain", _B), 2: ("version", _V)}, {})
GRAPH = Schema(
    "a graph",
    {},
    {
        1: ("node", _B), 5: ("initializer", _B), 11: ("input", _B), 12: ("output", _B),
        14: ("quantization_annotation", _B), 15: ("sparse_initializer", _B),
    },
)  # fmt: skip
VALUE = Schema("an input", {1: ("name", _B)}, {})
ANNOTATION = Schema("an annotation", {}, {2: ("quant_parameter_tensor_names", _B)})
SPARSE = Schema("a sparse tensor", {1: ("values", _B), 2: ("indices", _B)}, {})
FUNCTION = Schema("a function", {1: ("name", _B)}, {7: ("node", _B), 11: ("attribute", _B)})
TRAINING = Schema("training", {1: ("initialization", _B), 2: ("algorithm", _B)}, {})
NODE = Schema(
    "a node",
    {3: ("name", _B), 4: ("op_type", _B), 7: ("domain", _B)},
    {1: ("input", _B), 2: ("output", _B), 5: ("attribute", _B)},
)
OPERATOR = Schema(
    "a node",
    NODE.once,
    {**NODE.many, 9: ("metadata_props", _B)},
)
ATTRIBUTE = Schema(
    "an attribute",
    {1: ("name", _B), 2: ("f", (FIXED32,)), 3: ("i", _V), 5: ("t", _B), 6: ("g", _B), 22: ("sparse_tensor", _B)},
    {7: ("floats", _FLOATS), 8: ("ints", _VARINTS), 10: ("tensors", _B), 11: ("graphs", _B), 23: ("sparse", _B)},
)
TENSOR = Schema(
    "a tensor",
    {2: ("data_type", _V), 3: ("segment", _B), 8: ("name", _B), 9: ("raw_data", _B), 14: ("data_location", _V)},
    {
        1: ("dims", _VARINTS), 4: ("float_data", _FLOATS), 5: ("int32_data", _VARINTS), 6: ("string_data", _B),
        7: ("int64_data", _VARINTS), 10: ("double_data", _DOUBLES), 11: ("uint64_data", _VARINTS),
        13: ("external_data", _B),
    },
)  # fmt: skip
ENTRY = Schema("a key with its text", {1: ("key", _B), 2: ("value", _B)}, {})
TYPED = ("float_data", "int32_data", "int64_data", "double_data", "uint64_data")


class Message(dict[str, list[Field]]):
    """The fields of a message by name; one that is absent is empty."""

    def __missing__(self, name: str) -> list[Field]:
        return []


def span_of(field: Field) -> tuple[int, int]:
    """[start, stop) of a field in the file."""
    return field.start, field.stop
