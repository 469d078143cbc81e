"""The closed set of tensor operations that architectures are written in; all but Row can be undone, Rows and Pick to
zeros, a Product to one of its factors.

An op takes the list of tensors in flight to another list. What it may touch decides what it costs:

    reach     on packed bytes        streams        ops
    rows      yes, bit-exact         by rows        Rope, PermuteRows, Stack, Unstack, Row, Rows, Pick, Reshape,
                                                    Split, Concat, Transpose while they leave the last axis alone
    values    after decoding         by rows        Add, Mul, NegExp, LogNeg, Softplus
    outer     after decoding         by indexes     PermuteColumns, and Split, Concat, Transpose on the last axis, while
                                     of axis 0      they leave the first alone
    whole     after decoding         one tensor     Sum, FromPlace, Product, Factors; any of the first on the last axis,
                                                    where that is the first, too

Whether the last axis is touched depends on the tensor: Rope moves rows of a matrix and elements of a
bias. So `reach` is asked with the number of axes. A block never spans two rows, so a `rows` op only says
where each row comes from: applied to arrays of row numbers of shape (..., 1) the same code gives that map, in which
rows count from one and zero is a row of zeros.
Sizes are hyperparameter expressions until `bind` makes them integers; the size "row" is the last axis,
whatever its unit (elements or packed bytes).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from converter.errors import ShapeMismatch
from converter.tensors.elementary import log, softplus, softplus_inverse, torch_exp
from converter.tensors.expressions import Sizes, compute, evaluate

Size = int | str
Shape = tuple[int, ...]
Array = NDArray[Any]

ROW = "row"
REACHES = ("rows", "values", "outer", "whole")


@dataclass(frozen=True)
class Op(ABC):
    """One operation. Frozen and hashable, so equal work is done once.

    `exact`: its inverse gives back every bit; `computes`: it needs numbers, not only their places.
    """

    exact: ClassVar[bool] = True
    computes: ClassVar[bool] = False

    def reach(self, ndim: int) -> str:
        """What the op touches on a tensor of `ndim` axes: "rows", "values", "outer" or "whole".

        An "outer" op does the same to each index of the first axis, and to any number of them.
        """
        return "rows"

    @property
    def in_half(self) -> bool:
        """Whether torch calculates it in F16 where the tensor is stored in F16."""
        return self.reach(2) == "values"

    def bind(self, sizes: Sizes) -> Self:
        """The op with every size expression evaluated."""
        return replace(self, **{f.name: _bound(getattr(self, f.name), sizes) for f in fields(self)})

    @abstractmethod
    def infer(self, shapes: Sequence[Shape]) -> list[Shape]:
        """Shapes of the result; what does not fit is a ShapeMismatch."""

    @abstractmethod
    def apply(self, arrays: Sequence[Array]) -> list[Array]:
        """The result on real arrays, elements or rows alike."""

    @abstractmethod
    def inverse(self) -> Op:
        """The op that undoes this one."""


def _bound(value: Any, sizes: Sizes) -> Any:
    if isinstance(value, str):
        return value if value == ROW else evaluate(value, sizes)
    if isinstance(value, tuple):
        return tuple(_bound(item, sizes) for item in value)
    if isinstance(value, Op):
        return value.bind(sizes)
    return value


def _each(arrays: Sequence[Any], change: Any) -> list[Any]:
    return [change(array) for array in arrays]


def _resolved(shape: tuple[Size, ...], row: int) -> Shape:
    return tuple(row if size == ROW else int(size) for size in shape)


def _last_axis(ndim: int) -> str:
    """The reach of an op on the last axis alone."""
    return "outer" if ndim > 1 else "whole"


def _check(ok: bool, op: Op, shapes: Sequence[Shape]) -> None:
    if not ok:
        raise ShapeMismatch(f"{op} does not fit {', '.join(map(str, shapes))}")


@dataclass(frozen=True)
class Rope(Op):
    """Rows of each head from two halves (HF) to interleaved pairs (ggml's rope of type NORM).

    Per head the rows 0..d-1 become 0, d/2, 1, d/2 + 1, ...; `undo` goes the other way. Only the first `n_rot` rows of
    a head move where it says how many rotate.
    Source: rotary embedding of the original Llama weights against the Hugging Face layout.
    """

    heads: Size
    undo: bool = False
    n_rot: Size | None = None

    def reach(self, ndim: int) -> str:
        return "rows" if ndim > 1 else "whole"

    def infer(self, shapes: Sequence[Shape]) -> list[Shape]:
        heads = int(self.heads)
        _check(heads > 0 and all(shape and shape[0] % heads == 0 for shape in shapes), self, shapes)
        sizes = [shape[0] // heads for shape in shapes]
        _check(all(0 <= self._rotated(size) <= size and self._rotated(size) % 2 == 0 for size in sizes), self, shapes)
        return list(shapes)

    def apply(self, arrays: Sequence[Array]) -> list[Array]:
        return _each(arrays, self._moved)

    def _rotated(self, head: int) -> int:
        return head if self.n_rot is None else int(self.n_rot)

    def _moved(self, array: Array) -> Array:
        heads, rest = int(self.heads), array.shape[1:]
        whole = array.reshape(heads, array.shape[0] // heads, *rest)
        n_rot = self._rotated(whole.shape[1])
        pairs = (n_rot // 2, 2) if self.undo else (2, n_rot // 2)
        turned = whole[:, :n_rot].reshape(heads, *pairs, *rest).swapaxes(1, 2).reshape(heads, n_rot, *rest)
        return np.concatenate((turned, whole[:, n_rot:]), axis=1).reshape(array.shape)

    def inverse(self) -> Rope:
        return replace(self, undo=not self.undo)


@dataclass(frozen=True)
class PermuteRows(Op):
    """The first axis seen as `shape`, its axes reordered by `order`."""

    shape: tuple[Size, ...]
    order: tuple[int, ...]

    def reach(self, ndim: int) -> str:
        return "rows" if ndim > 1 else "whole"

    def infer(self, shapes: Sequence[Shape]) -> list[Shape]:
        rows = math.prod(map(int, self.shape))
        _check(all(shape and shape[0] == rows for shape in shapes), self, shapes)
        return list(shapes)

    def apply(self, arrays: Sequence[Array]) -> list[Array]:
        shape = tuple(map(int, self.shape))
        return _each(
            arrays,
            lambda a: (
                a.reshape(*shape, *a.shape[1:])
                .transpose(*self.order, *range(len(shape), len(shape) + a.ndim - 1))
                .reshape(a.shape)
            ),
        )

    def inverse(self) -> PermuteRows:
        order = tuple(int(i) for i in np.argsort(self.order))
        return PermuteRows(tuple(self.shape[i] for i in self.order), order)


@dataclass(frozen=True)
class PermuteColumns(Op):
    """The last axis seen as `shape`, its axes reordered by `order`."""

    shape: tuple[Size, ...]
    order: tuple[int, ...]

    def reach(self, ndim: int) -> str:
        return _last_axis(ndim)

    def infer(self, shapes: Sequence[Shape]) -> list[Shape]:
        columns = math.prod(map(int, self.shape))
        _check(all(shape and shape[-1] == columns for shape in shapes), self, shapes)
        return list(shapes)

    def apply(self, arrays: Sequence[Array]) -> list[Array]:
        shape = tuple(map(int, self.shape))
        return _each(
            arrays,
            lambda a: (
                a.reshape(*a.shape[:-1], *shape)
                .transpose(*range(a.ndim - 1), *(a.ndim - 1 + i for i in self.order))
                .reshape(a.shape)
            ),
        )

    def inverse(self) -> PermuteColumns:
        order = tuple(int(i) for i in np.argsort(self.order))
        return PermuteColumns(tuple(self.shape[i] for i in self.order), order)


@dataclass(frozen=True)
class Transpose(Op):
    """Axes reordered."""

    axes: tuple[int, ...] = (1, 0)

    def reach(self, ndim: int) -> str:
        if self.axes[-1] == len(self.axes) - 1:
            return "rows"
        return "outer" if self.axes[0] == 0 else "whole"

    def infer(self, shapes: Sequence[Shape]) -> list[Shape]:
        _check(all(len(shape) == len(self.axes) for shape in shapes), self, shapes)
        return [tuple(shape[i] for i in self.axes) for shape in shapes]

    def apply(self, arrays: Sequence[Array]) -> list[Array]:
        return _each(arrays, lambda a: a.transpose(self.axes))

    def inverse(self) -> Transpose:
        return Transpose(tuple(int(i) for i in np.argsort(self.axes)))


@dataclass(frozen=True)
class Reshape(Op):
    """The same elements in another shape; both shapes are named so that it can be undone."""

    old: tuple[Size, ...]
    new: tuple[Size, ...]

    def reach(self, ndim: int) -> str:
        return "rows" if self.old[-1:] == self.new[-1:] == (ROW,) else "whole"

    def infer(self, shapes: Sequence[Shape]) -> list[Shape]:
        result = []
        for shape in shapes:
            row = shape[-1] if shape else 1
            _check(shape == _resolved(self.old, row), self, shapes)
            new = _resolved(self.new, row)
            _check(math.prod(new) == math.prod(shape), self, shapes)
            result.append(new)
        return result

    def apply(self, arrays: Sequence[Array]) -> list[Array]:
        return _each(arrays, lambda a: a.reshape(_resolved(self.new, a.shape[-1] if a.ndim else 1)))

    def inverse(self) -> Reshape:
        return Reshape(self.new, self.old)


@dataclass(frozen=True)
class Split(Op):
    """One tensor into several along an axis; the sizes are shares of the axis, in any common unit."""

    axis: int
    sizes: tuple[Size, ...]

    def reach(self, ndim: int) -> str:
        return _last_axis(ndim) if self.axis in (-1, ndim - 1) else "rows"

    def _cuts(self, length: int) -> list[int]:
        sizes = [int(size) for size in self.sizes]
        unit = length // sum(sizes)
        return [int(end) * unit for end in np.cumsum(sizes)]

    def infer(self, shapes: Sequence[Shape]) -> list[Shape]:
        _check(len(shapes) == 1, self, shapes)
        (shape,) = shapes
        _check(-len(shape) <= self.axis < len(shape), self, shapes)
        axis = self.axis % len(shape)
        total = sum(int(size) for size in self.sizes)
        _check(total > 0 and shape[axis] % total == 0, self, shapes)
        ends = self._cuts(shape[axis])
        return [(*shape[:axis], end - start, *shape[axis + 1 :]) for start, end in zip([0, *ends], ends, strict=False)]

    def apply(self, arrays: Sequence[Array]) -> list[Array]:
        (array,) = arrays
        return list(np.split(array, self._cuts(array.shape[self.axis])[:-1], axis=self.axis))

    def inverse(self) -> Concat:
        return Concat(self.axis, self.sizes)


@dataclass(frozen=True)
class Concat(Op):
    """Several tensors into one along an axis; the sizes say how to split them again."""

    axis: int
    sizes: tuple[Size, ...]

    def reach(self, ndim: int) -> str:
        return _last_axis(ndim) if self.axis in (-1, ndim - 1) else "rows"

    def infer(self, shapes: Sequence[Shape]) -> list[Shape]:
        first = shapes[0]
        alike = all(len(shape) == len(first) for shape in shapes)
        _check(alike and -len(first) <= self.axis < len(first), self, shapes)
        axis = self.axis % len(first)
        joined = (*first[:axis], sum(shape[axis] for shape in shapes), *first[axis + 1 :])
        _check(self.inverse().infer([joined]) == list(shapes), self, shapes)
        return [joined]

    def apply(self, arrays: Sequence[Array]) -> list[Array]:
        return [np.concatenate(list(arrays), axis=self.axis)]

    def inverse(self) -> Split:
        return Split(self.axis, self.sizes)


@dataclass(frozen=True)
class Stack(Op):
    """`count` tensors of one shape into one with a new first axis (experts)."""

    count: Size

    def infer(self, shapes: Sequence[Shape]) -> list[Shape]:
        _check(len(shapes) == int(self.count) and len(set(shapes)) == 1, self, shapes[:4])
        return [(len(shapes), *shapes[0])]

    def apply(self, arrays: Sequence[Array]) -> list[Array]:
        return [np.stack(list(arrays))]

    def inverse(self) -> Unstack:
        return Unstack(self.count)


@dataclass(frozen=True)
class Row(Op):
    """One row of a matrix, which stays a matrix: the embedding of a token that another part of the model needs, too.

    What is around it is not kept, so that there is no way back; rules for files that come back do without it.
    """

    index: Size

    def infer(self, shapes: Sequence[Shape]) -> list[Shape]:
        fits = all(len(shape) == 2 and 0 <= int(self.index) < shape[0] for shape in shapes)
        _check(fits, self, shapes)
        return [(1, shape[1]) for shape in shapes]

    def apply(self, arrays: Sequence[Array]) -> list[Array]:
        return _each(arrays, lambda a: a[int(self.index) : int(self.index) + 1])

    def inverse(self) -> Op:
        raise ShapeMismatch(f"{self} has no way back")


@dataclass(frozen=True)
class Pick(Op):
    """Some rows of a matrix of `have`, in the order of `rows`: a classifier of the words that a head may say.

    With `beside`, the matrix itself and these rows; without, all others come back as zeros.
    """

    rows: tuple[Size, ...]
    have: Size
    beside: bool = False

    def infer(self, shapes: Sequence[Shape]) -> list[Shape]:
        have = int(self.have)
        fits = all(0 <= int(row) < have for row in self.rows) and len(set(self.rows)) == len(self.rows)
        _check(len(shapes) == 1 and len(shapes[0]) == 2 and shapes[0][0] == have and fits, self, shapes)
        return [*(shapes if self.beside else ()), (len(self.rows), shapes[0][1])]

    def apply(self, arrays: Sequence[Array]) -> list[Array]:
        (array,) = arrays
        return [*(arrays if self.beside else ()), array[[int(row) for row in self.rows]]]

    def inverse(self) -> Unpick:
        return Unpick(self.rows, self.have, self.beside)


@dataclass(frozen=True)
class Unpick(Op):
    """What `Pick` undoes: rows among zeros, or the matrix without those beside it."""

    rows: tuple[Size, ...]
    have: Size
    beside: bool = False

    def infer(self, shapes: Sequence[Shape]) -> list[Shape]:
        whole = (int(self.have), shapes[-1][-1])
        _check(Pick(self.rows, self.have, self.beside).infer([whole]) == list(shapes), self, shapes)
        return [whole]

    def apply(self, arrays: Sequence[Array]) -> list[Array]:
        if self.beside:
            return [arrays[0]]
        whole = np.zeros((int(self.have), *arrays[0].shape[1:]), arrays[0].dtype)
        whole[[int(row) for row in self.rows]] = arrays[0]
        return [whole]

    def inverse(self) -> Pick:
        return Pick(self.rows, self.have, self.beside)


@dataclass(frozen=True)
class Sum(Op):
    """What lies along an axis, added up in F32: two frames of an image that does not move. There is no way back."""

    axis: int
    computes: ClassVar[bool] = True

    def reach(self, ndim: int) -> str:
        return "whole"

    def infer(self, shapes: Sequence[Shape]) -> list[Shape]:
        _check(all(0 <= self.axis < len(shape) - 1 for shape in shapes), self, shapes)
        return [(*shape[: self.axis], *shape[self.axis + 1 :]) for shape in shapes]

    def apply(self, arrays: Sequence[Array]) -> list[Array]:
        return _each(arrays, lambda a: a.sum(axis=self.axis, dtype=a.dtype))

    def inverse(self) -> Op:
        raise ShapeMismatch(f"{self} has no way back")


@dataclass(frozen=True)
class Product(Op):
    """Two tensors multiplied number by number in F32, as a vector: the model asks for nothing else of them.

    `shapes` are theirs; the way back is a first of ones, and a second that is the product.
    """

    shapes: tuple[tuple[Size, ...], tuple[Size, ...]]
    exact: ClassVar[bool] = False
    computes: ClassVar[bool] = True

    def reach(self, ndim: int) -> str:
        return "whole"

    def infer(self, shapes: Sequence[Shape]) -> list[Shape]:
        _check(list(shapes) == [tuple(map(int, shape)) for shape in self.shapes], self, shapes)
        _check(math.prod(shapes[0]) == math.prod(shapes[1]), self, shapes)
        return [(math.prod(shapes[0]),)]

    def apply(self, arrays: Sequence[Array]) -> list[Array]:
        one, other = arrays
        return [one.reshape(-1) * other.reshape(-1)]

    def inverse(self) -> Factors:
        return Factors(self.shapes)


@dataclass(frozen=True)
class Factors(Op):
    """What `Product` undoes, as far as that can be: ones, and the product."""

    shapes: tuple[tuple[Size, ...], tuple[Size, ...]]
    exact: ClassVar[bool] = False
    computes: ClassVar[bool] = True

    def reach(self, ndim: int) -> str:
        return "whole"

    def infer(self, shapes: Sequence[Shape]) -> list[Shape]:
        one, other = (tuple(map(int, shape)) for shape in self.shapes)
        _check(list(shapes) == [(math.prod(one),)] and math.prod(one) == math.prod(other), self, shapes)
        return [one, other]

    def apply(self, arrays: Sequence[Array]) -> list[Array]:
        (array,) = arrays
        one, other = (tuple(map(int, shape)) for shape in self.shapes)
        return [np.ones(one, array.dtype), array.reshape(other)]

    def inverse(self) -> Product:
        return Product(self.shapes)


@dataclass(frozen=True)
class Rows(Op):
    """The first axis from `have` to `want`: zeros behind it, or cut off; what is cut off comes back as zeros.

    With `front`, before it: positions that no token has stand before the first.
    """

    have: Size
    want: Size
    front: bool = False

    def reach(self, ndim: int) -> str:
        return "rows" if ndim > 1 else "whole"

    def infer(self, shapes: Sequence[Shape]) -> list[Shape]:
        _check(all(shape and shape[0] == int(self.have) for shape in shapes), self, shapes)
        return [(int(self.want), *shape[1:]) for shape in shapes]

    def apply(self, arrays: Sequence[Array]) -> list[Array]:
        return _each(arrays, self._resized)

    def _resized(self, array: Array) -> Array:
        have, want = int(self.have), int(self.want)
        zeros = np.zeros((max(0, want - have), *array.shape[1:]), array.dtype)
        if self.front:
            return np.concatenate((zeros, array[max(0, have - want) :]))
        return np.concatenate((array[:want], zeros))

    def inverse(self) -> Rows:
        return Rows(self.want, self.have, self.front)


@dataclass(frozen=True)
class Unstack(Op):
    """One tensor into `count` along its first axis."""

    count: Size

    def infer(self, shapes: Sequence[Shape]) -> list[Shape]:
        _check(len(shapes) == 1, self, shapes)
        (shape,) = shapes
        _check(len(shape) > 1 and shape[0] == int(self.count), self, shapes)
        return [shape[1:]] * shape[0]

    def apply(self, arrays: Sequence[Array]) -> list[Array]:
        return list(arrays[0])

    def inverse(self) -> Stack:
        return Stack(self.count)


@dataclass(frozen=True)
class FromPlace(Op):
    """Distances from the places where they stand as what they lead to: the i-th number plus i; `undo` is the other way.

    Whole numbers stay whole numbers, of their own type.
    """

    undo: bool = False

    def reach(self, ndim: int) -> str:
        return "whole"

    def infer(self, shapes: Sequence[Shape]) -> list[Shape]:
        _check(all(len(shape) == 1 for shape in shapes), self, shapes)
        return list(shapes)

    def apply(self, arrays: Sequence[Array]) -> list[Array]:
        return _each(arrays, self._moved)

    def _moved(self, array: Array) -> Array:
        places = np.arange(len(array), dtype=array.dtype)
        moved: Array = array - places if self.undo else array + places
        return moved

    def inverse(self) -> FromPlace:
        return FromPlace(not self.undo)


@dataclass(frozen=True)
class _Values(Op):
    """Base of the ops that change numbers, one by one, in F32; `apply` of a chain can round after each."""

    computes: ClassVar[bool] = True

    def reach(self, ndim: int) -> str:
        return "values"

    def infer(self, shapes: Sequence[Shape]) -> list[Shape]:
        return list(shapes)


@dataclass(frozen=True)
class Add(_Values):
    """Add a constant (Gemma's norms are stored minus one). Exact only where the sum is representable."""

    value: float
    exact: ClassVar[bool] = False

    def apply(self, arrays: Sequence[Array]) -> list[Array]:
        return _each(arrays, lambda a: a + np.float32(self.value))

    def inverse(self) -> Add:
        return Add(-self.value)


@dataclass(frozen=True)
class Mul(_Values):
    """Multiply by a number, or divide by it if `undo`. The number is rounded to F32, as torch does it."""

    factor: float | str
    undo: bool = False
    exact: ClassVar[bool] = False

    def bind(self, sizes: Sizes) -> Mul:
        return replace(self, factor=compute(self.factor, sizes)) if isinstance(self.factor, str) else self

    def infer(self, shapes: Sequence[Shape]) -> list[Shape]:
        _check(np.float32(self.factor) != 0, self, shapes)
        return list(shapes)

    def apply(self, arrays: Sequence[Array]) -> list[Array]:
        factor = np.float32(self.factor)
        return _each(arrays, lambda a: a / factor if self.undo else a * factor)

    def inverse(self) -> Mul:
        return replace(self, undo=not self.undo)


@dataclass(frozen=True)
class NegExp(_Values):
    """-exp(x), as Mamba's A is stored. Its inverse is within 1 to 2 units in the last place.

    `wide` where it is calculated in F32 whatever the type that the tensor is stored in.
    """

    wide: bool = False
    exact: ClassVar[bool] = False

    @property
    def in_half(self) -> bool:
        return not self.wide

    def apply(self, arrays: Sequence[Array]) -> list[Array]:
        return _each(arrays, lambda a: -torch_exp(a))

    def inverse(self) -> LogNeg:
        return LogNeg(self.wide)


@dataclass(frozen=True)
class LogNeg(_Values):
    """log(-x), the inverse of NegExp."""

    wide: bool = False
    exact: ClassVar[bool] = False

    @property
    def in_half(self) -> bool:
        return not self.wide

    def apply(self, arrays: Sequence[Array]) -> list[Array]:
        return _each(arrays, lambda a: log(-a))

    def inverse(self) -> NegExp:
        return NegExp(self.wide)


@dataclass(frozen=True)
class Softplus(_Values):
    """log(1 + exp(x)), which keeps a scale positive; `undo` is the other way, within a unit in the last place."""

    undo: bool = False
    exact: ClassVar[bool] = False

    def apply(self, arrays: Sequence[Array]) -> list[Array]:
        return _each(arrays, softplus_inverse if self.undo else softplus)

    def inverse(self) -> Softplus:
        return Softplus(not self.undo)


@dataclass(frozen=True)
class At(Op):
    """Apply `op` to `takes` of the tensors in flight only, from the i-th on; it makes `makes` of them."""

    index: int
    op: Op
    takes: int = 1
    makes: int = 1

    @property
    def stop(self) -> int:
        return self.index + self.takes

    def reach(self, ndim: int) -> str:
        return self.op.reach(ndim)

    @property
    def in_half(self) -> bool:
        return self.op.in_half

    def infer(self, shapes: Sequence[Shape]) -> list[Shape]:
        _check(self.stop <= len(shapes), self, shapes)
        made = self.op.infer(shapes[self.index : self.stop])
        _check(len(made) == self.makes, self, shapes)
        return [*shapes[: self.index], *made, *shapes[self.stop :]]

    def apply(self, arrays: Sequence[Array]) -> list[Array]:
        return [*arrays[: self.index], *self.op.apply(arrays[self.index : self.stop]), *arrays[self.stop :]]

    def inverse(self) -> At:
        return At(self.index, self.op.inverse(), self.makes, self.takes)


def taking(op: Op, count: int) -> tuple[Op, int, int]:
    """The op itself, and which of `count` tensors in flight it takes: those from the second number up to the third."""
    return (op.op, op.index, op.stop) if isinstance(op, At) else (op, 0, count)


Chain = tuple[Op, ...]


def inverse(chain: Chain) -> Chain:
    """The chain that undoes `chain`: the inverses in reverse order."""
    return tuple(op.inverse() for op in reversed(chain))


def infer(chain: Chain, shapes: Sequence[Shape]) -> list[Shape]:
    """Shapes after the chain.

    Raises:
        ShapeMismatch: an op does not fit.
    """
    result = list(shapes)
    for op in chain:
        result = op.infer(result)
    return result


def apply(chain: Chain, arrays: Sequence[Array], half: bool = False) -> list[Array]:
    """Arrays after the chain; `half` rounds to F16 after every op that torch calculates in it."""
    result = list(arrays)
    for op in chain:
        result = op.apply(result)
        if half and op.in_half:
            result = [array.astype(np.float16).astype(np.float32) for array in result]
    return result


def reaches(chain: Chain, shapes: Sequence[Shape]) -> list[str]:
    """The reach of each of the chain's ops on tensors of `shapes`.

    Raises:
        ShapeMismatch: an op does not fit.
    """
    result = []
    for op in chain:
        made = op.infer(shapes)
        _, start, stop = taking(op, len(shapes))
        result.append(op.reach(min(map(len, shapes[start:stop]))))
        shapes = made
    return result


def reach(chain: Chain, shapes: Sequence[Shape]) -> str:
    """The widest reach of the chain's ops on tensors of `shapes`."""
    return max(reaches(chain, shapes), key=REACHES.index, default="rows")
