"""A graph in the making: operators are added where they are needed, and tensors as they are used."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from converter.formats.onnx.program import Attribute, Body, Node
from converter.formats.onnx.values import CODES
from converter.tensors.dtypes import DTYPES, DType
from converter.tensors.tensor import LazyTensor, from_array

MICROSOFT = "com.microsoft"
BATCH, TOKENS, PAST, TOTAL = "batch_size", "sequence_length", "past_sequence_length", "total_sequence_length"
END = (1 << 63) - 1  # of an axis, however long it is
Step = Callable[[Sequence[str], Sequence[str]], tuple[Sequence[str], Sequence[str]]]
#: Operators whose outputs are booleans.
COMPARISONS = frozenset({"And", "Or", "Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual"})
_OURS = {"float32": "F32", "float16": "F16", "int64": "I64", "int32": "I32", "uint8": "U8", "bool": "BOOL"}


class Builder:
    """Nodes and initializers of a graph whose numbers are `dtype` (F32 or F16).

    `scope` begins the names of what is made: the block that it belongs to. `lowered` writes operators that the graph
    shall not have by others.
    """

    def __init__(self, dtype: DType, lowered: Mapping[str, Lowering] | None = None) -> None:
        self.dtype = dtype
        self.nodes: list[Node] = []
        self.initializers: dict[str, LazyTensor] = {}
        self.scope = ""
        self._constants: dict[tuple[str, tuple[int, ...], bytes], str] = {}
        self._count = 0
        self._lowered = lowered or {}
        self._makers: dict[str, str] = {}
        self._shared: dict[tuple[object, ...], str] = {}

    def op(self, op: str, *inputs: str, domain: str = "", output: str = "", **attributes: Attribute) -> str:
        """One operator with one output; its name."""
        return self.ops(op, *inputs, outputs=(output,), domain=domain, **attributes)[0]

    def ops(
        self, op: str, *inputs: str, outputs: Sequence[str], domain: str = "", **attributes: Attribute
    ) -> tuple[str, ...]:
        """One operator; the names of its outputs, those without one (an empty text) get one."""
        stem, self._count = f"{self.scope}{op}_{self._count}", self._count + 1
        names = tuple(name or (f"{stem}.{index}" if index else stem) for index, name in enumerate(outputs))
        self._lowered.get(op, Builder.add)(self, Node(op, inputs, names, attributes, domain))
        return names

    def add(self, node: Node) -> None:
        """A node as it is."""
        self.nodes.append(node)
        self._makers |= dict.fromkeys(node.outputs, node.op)

    def reached(self, outputs: Iterable[str]) -> tuple[tuple[Node, ...], dict[str, LazyTensor]]:
        """What outputs are made of: nodes in their order, and tensors. Lowerings and routers make more than that."""
        read, kept = set(outputs), list[Node]()
        for node in reversed(self.nodes):
            if not read.isdisjoint(node.outputs):
                kept.append(node)
                read.update(node.read)
        return tuple(reversed(kept)), {name: each for name, each in self.initializers.items() if name in read}

    def once(self, op: str, *inputs: str, **attributes: Any) -> str:
        """An operator that blocks share: one for the same inputs, outside of them."""
        key = (op, inputs, *attributes.items())
        if key not in self._shared:
            with self.outside_blocks():
                self._shared[key] = self.op(op, *inputs, **attributes)
        return self._shared[key]

    def is_boolean(self, value: str) -> bool:
        """Whether an operator made it that compares."""
        return self._makers.get(value) in COMPARISONS

    def constant(self, value: Any, dtype: type[np.generic] = np.int64) -> str:
        """A small tensor; equal ones are one."""
        array: NDArray[Any] = np.asarray(value, dtype)
        key = (array.dtype.name, array.shape, array.tobytes())
        if key not in self._constants:
            name = f"constant_{len(self._constants)}"
            self.initializers[name] = from_array(name, array, DTYPES[_OURS[array.dtype.name]], "the graph's own")
            self._constants[key] = name
        return self._constants[key]

    @contextmanager
    def outside_blocks(self) -> Iterator[None]:
        """For what blocks share: it has no block in its names."""
        scope, self.scope = self.scope, ""
        yield
        self.scope = scope

    def number(self, value: ArrayLike) -> str:
        """A constant of the graph's own type: a number without an axis, or several."""
        kind = self.dtype.numpy
        assert kind is not None
        return self.constant(value, kind.type)

    def tensor(self, tensor: LazyTensor) -> str:
        """A tensor of the model; one that was added under its name already is not looked at again."""
        self.initializers.setdefault(tensor.name, tensor)
        return tensor.name

    def scan(self, step: Step, states: Sequence[str], tokens: Sequence[str], outputs: Sequence[str]) -> tuple[str, ...]:
        """What `step` makes of one token after the other: the states after the last, and what it made of each.

        Args:
            step: of (states, what there is of one token): new states and what it made, both in their order.
            states: before the first token.
            tokens: each (batch, tokens, ...).
            outputs: names of the last states, then of what is made, as `ops`'.
        """
        own = tuple(f"{self.scope}state_{self._count}.{index}" for index in range(len(states)))
        each = tuple(f"{self.scope}token_{self._count}.{index}" for index in range(len(tokens)))
        outer, self.nodes = self.nodes, []
        after, made = step(own, each)
        body, self.nodes = Body(tuple(self.nodes), (*own, *each), (*after, *made)), outer
        return self.ops(
            "Scan", *states, *tokens, outputs=outputs, body=body, num_scan_inputs=len(tokens),
            scan_input_axes=[1] * len(tokens), scan_output_axes=[1] * len(made),
        )  # fmt: skip

    def slice(self, value: str, first: int | str, axis: int = -1, output: str = "") -> str:
        """An axis from its `first` (from behind, where that is negative) to its end."""
        begin = first if isinstance(first, str) else self.constant([first])
        return self.op("Slice", value, begin, self.constant([END]), self.constant([axis]), output=output)

    def cast(self, value: str, dtype: DType) -> str:
        return self.op("Cast", value, to=CODES[dtype.name])

    def reshape(self, value: str, *sizes: int) -> str:
        """`value` in another shape: 0 keeps an axis, -1 takes what is left."""
        return self.op("Reshape", value, self.constant(sizes))

    def split(self, value: str, sizes: Sequence[int]) -> tuple[str, ...]:
        """`value` cut along its last axis."""
        return self.ops("Split", value, self.constant(sizes), outputs=[""] * len(sizes), axis=-1)


#: Writes an operator by others, the last of which have the names of its outputs.
Lowering = Callable[[Builder, Node], None]
