"""Matrices in a graph, multiplied by or looked up in: plain numbers, blocks that stay what they are, or INT8.

A plain matrix and one of INT8 are stored transposed, as MatMul and MatMulInteger read them; one of blocks row by row,
in either case without holding more of it than a slab.

Codes of INT8 are whole numbers from 1 to 255, less 128: processors without special instructions add products of these
in enough bits, and those of signed codes not (ONNX Runtime's kernels for AVX2).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from converter.graphs.blocks import Coded, Parts, coded, parts
from converter.graphs.builder import MICROSOFT, Builder
from converter.storage.transposed import transposed
from converter.tensors.dtypes import DTYPES, F32, INT8
from converter.tensors.encode import Watch, encoded
from converter.tensors.operands import KINDS
from converter.tensors.tensor import LazyTensor, TensorInfo

ZERO = 128  # the code of zero in INT8
#: Of a matrix's name, the scale and the code of zero of the activations that it meets: F32 and U8, without an axis.
Ranges = Callable[[str], tuple[LazyTensor, LazyTensor]]


@dataclass(frozen=True)
class _Rounded:
    """Activations in codes of eight bits: `scale * (codes - zero)`."""

    codes: str
    scale: str
    zero: str


class Matrices:
    """The model's matrices in a graph of `builder`.

    `exact`: activations stay what they are; else matrices of codes meet them in 8 bits, as in llama.cpp.
    `ranges`: what activations are between where INT8 meets them; without, each run looks at its own.
    """

    def __init__(self, builder: Builder, watch: Watch, *, exact: bool, ranges: Ranges | None = None) -> None:
        self._builder = builder
        self._watch = watch
        self._exact = exact
        self._ranges = ranges
        self._parts: dict[str, Parts] = {}
        self._coded: dict[str, Coded] = {}
        self._rounded: dict[str, _Rounded] = {}
        self._looked_up: set[str] = set()
        self._sums: dict[tuple[str, int], str] = {}
        self._pieces: dict[tuple[str, str], tuple[str, ...]] = {}
        self.types: dict[str, str] = {}  # of matrices of codes, by the name of these
        self.turned: set[str] = set()  # what is in the graph with its axes exchanged, a matrix or the minima of one

    def is_turned(self, name: str) -> bool:
        """Whether a matrix (or the minima of one) is in the graph with its axes exchanged."""
        return name in self.turned or f"{name}.minima" in self.turned

    def plain(self, tensor: LazyTensor) -> str:
        """A tensor in the graph's own type, in its own shape."""
        return self._builder.tensor(encoded(tensor, self._builder.dtype, self._watch))

    def multiply(self, x: str, matrix: LazyTensor) -> str:
        """x @ matrix.T: (batch, tokens, row) -> (batch, tokens, rows)."""
        if matrix.info.dtype.name in KINDS:
            return self._by_blocks(x, self._blocks(matrix))
        if matrix.info.dtype is INT8:
            y = self._by_numbers(x, matrix) if self._exact else self._by_codes8(self._in_codes(x, matrix), matrix)
            return self._narrow(y)
        return self._builder.op("MatMul", x, self._transposed(matrix))

    def by_head(self, x: str, matrices: LazyTensor) -> str:
        """Every head times its own matrix: (batch, heads, tokens, row) -> (batch, heads, tokens, rows of a matrix)."""
        return self._builder.op("MatMul", x, self._builder.op("Transpose", self.plain(matrices), perm=[0, 2, 1]))

    def multiply_each(self, rows: str, matrices: Sequence[LazyTensor], counts: str) -> str:
        """The first of `counts` rows times the first matrix, and so on: (rows, row) -> (rows, rows of a matrix)."""
        build, own = self._builder, matrices[0].info.dtype
        if own is INT8 and not self._exact:  # with one range for all, also for an expert that has no rows
            whole = self._in_codes(rows, matrices[0])
            parts = (replace(whole, codes=codes) for codes in self._cut(whole.codes, counts, len(matrices)))
            made = [self._by_codes8(piece, matrix) for piece, matrix in zip(parts, matrices, strict=True)]
            return self._narrow(build.op("Concat", *made, axis=0))
        pieces = self._cut(rows, counts, len(matrices))
        if own.name not in KINDS:
            made = [self.multiply(piece, matrix) for piece, matrix in zip(pieces, matrices, strict=True)]
            return build.op("Concat", *made, axis=0)
        each = [self._blocks(matrix) for matrix in matrices]
        made = [self._by_codes(piece, blocks) for piece, blocks in zip(pieces, each, strict=True)]
        y = build.op("Concat", *made, axis=0)
        if each[0].minima is None:
            return y
        sums = self._cut(self._summed(rows, each[0], axes=1), counts, len(matrices))
        less = [build.op("MatMul", piece, self._minima(blocks)) for piece, blocks in zip(sums, each, strict=True)]
        return build.op("Sub", y, build.op("Concat", *less, axis=0))

    def _cut(self, rows: str, counts: str, n: int) -> tuple[str, ...]:
        """Rows in `n` pieces; once, however many matrices meet them."""
        if (rows, counts) not in self._pieces:
            self._pieces[rows, counts] = self._builder.ops("Split", rows, counts, outputs=[""] * n, axis=0)
        return self._pieces[rows, counts]

    def rows(self, matrix: LazyTensor, ids: str) -> str:
        """Rows of a matrix: (batch, tokens) -> (batch, tokens, row)."""
        if matrix.info.dtype.name in KINDS:
            return self._unpacked(self._blocks(matrix), ids, matrix.info.row)
        if matrix.info.dtype is INT8:
            return self._decoded(matrix, ids)
        self._looked_up.add(matrix.name)
        return self._builder.op("Gather", self.plain(matrix), ids)

    # ---------------------------------------------------------------------------------------------- plain

    def _transposed(self, matrix: LazyTensor) -> str:
        if matrix.name in self._looked_up:  # the embedding is there, row by row: one copy serves both
            return self._builder.op("Transpose", matrix.name, perm=[1, 0])
        self.turned.add(matrix.name)
        return self._builder.tensor(transposed(encoded(matrix, self._builder.dtype, self._watch)))

    # ----------------------------------------------------------------------------------------------- INT8

    def _codes(self, matrix: LazyTensor) -> Coded:
        """The parts of a matrix of INT8, of which the scales are in the graph then."""
        if matrix.name not in self._coded:
            made = self._coded[matrix.name] = coded(matrix)
            self.types[matrix.name] = INT8.name
            self._builder.tensor(made.scales)
        return self._coded[matrix.name]

    def _turned(self, matrix: LazyTensor) -> str:
        """Codes with their axes exchanged: (row, rows)."""
        codes = self._codes(matrix).codes
        if matrix.name in self._looked_up:
            return self._builder.op("Transpose", codes.name, perm=[1, 0])
        self.turned.add(matrix.name)
        return self._builder.tensor(transposed(codes))

    def _scaled(self, matrix: LazyTensor) -> str:
        """A matrix as numbers, (row, rows) in F32."""
        codes, n_rows = self._turned(matrix), matrix.info.shape[0]
        zeros = self._filled((n_rows,), ZERO)
        return self._builder.op("DequantizeLinear", codes, self._codes(matrix).scales.name, zeros, axis=1)

    def _decoded(self, matrix: LazyTensor, ids: str) -> str:
        """Rows of a matrix as numbers."""
        build, made = self._builder, self._codes(matrix)
        self._looked_up.add(matrix.name)
        codes = build.op("Gather", build.tensor(made.codes), ids)
        return self._narrow(self._times(codes, self._spread(made.scales.name, ids)))

    def _in_codes(self, x: str, matrix: LazyTensor) -> _Rounded:
        """Activations in codes; once for all matrices that meet them, of which `matrix` is the first."""
        build = self._builder
        if x not in self._rounded:
            wide = self._wide(x)
            if self._ranges is None:
                made = build.ops("DynamicQuantizeLinear", wide, outputs=("", "", ""))
            else:
                scale, zero = map(build.tensor, self._ranges(matrix.name))
                made = build.op("QuantizeLinear", wide, scale, zero), scale, zero
            self._rounded[x] = _Rounded(*made)
        return self._rounded[x]

    def _by_codes8(self, x: _Rounded, matrix: LazyTensor) -> str:
        """x @ matrix.T in F32: a product of whole numbers, or what runtimes with ranges make one of."""
        build = self._builder
        if self._ranges is not None:
            return build.op("MatMul", build.op("DequantizeLinear", x.codes, x.scale, x.zero), self._scaled(matrix))
        codes, scales = self._turned(matrix), self._codes(matrix).scales.name
        y = build.op("MatMulInteger", x.codes, codes, x.zero, build.constant(ZERO, np.uint8))
        return build.op("Mul", build.cast(y, F32), build.op("Mul", x.scale, scales))

    def _by_numbers(self, x: str, matrix: LazyTensor) -> str:
        """x @ matrix.T in F32, without rounding x, as ONNX Runtime does where it finds DequantizeLinear."""
        return self._builder.op(
            "MatMul", self._wide(x), self._times(self._turned(matrix), self._codes(matrix).scales.name)
        )

    def _times(self, codes: str, scales: str) -> str:
        """Codes as numbers."""
        build = self._builder
        steps = build.op("Sub", build.cast(codes, F32), build.constant(ZERO, np.float32))
        return build.op("Mul", steps, scales)

    def _wide(self, x: str) -> str:
        return x if self._builder.dtype is F32 else self._builder.cast(x, F32)

    def _narrow(self, x: str) -> str:
        return x if self._builder.dtype is F32 else self._builder.cast(x, self._builder.dtype)

    # --------------------------------------------------------------------------------------------- blocks

    def _blocks(self, matrix: LazyTensor) -> Parts:
        """The parts of a matrix of blocks, which are in the graph then; once, however often it is used."""
        if matrix.name not in self._parts:
            made = self._parts[matrix.name] = parts(matrix, matrix.name)
            self.types[matrix.name] = matrix.info.dtype.name
            self._builder.tensor(made.codes)
            self._builder.tensor(encoded(made.scales, self._builder.dtype, self._watch))
        return self._parts[matrix.name]

    def _by_blocks(self, x: str, matrix: Parts) -> str:
        y = self._by_codes(x, matrix)
        if matrix.minima is None:
            return y
        return self._builder.op("Sub", y, self._builder.op("MatMul", self._summed(x, matrix), self._minima(matrix)))

    def _by_codes(self, x: str, matrix: Parts) -> str:
        """x @ matrix.T without the minima."""
        kind = matrix.kind
        n_rows, inner, _ = matrix.codes.info.shape
        zero = (self._zeros(n_rows, inner, kind.bits),) if kind.minima and kind.bits < 8 else ()
        return self._builder.op(
            "MatMulNBits", x, matrix.codes.name, matrix.scales.name, *zero, domain=MICROSOFT,
            K=inner * kind.block, N=n_rows, bits=kind.bits, block_size=kind.block,
            accuracy_level=0 if self._exact else 4,
        )  # fmt: skip

    def _minima(self, matrix: Parts) -> str:
        """The minima of a matrix, as sums of blocks meet them."""
        assert matrix.minima is not None
        if matrix.minima.name in self._looked_up:  # the embedding's, row by row, as in `_transposed`
            return self._builder.op("Transpose", matrix.minima.name, perm=[1, 0])
        self.turned.add(matrix.minima.name)
        return self._builder.tensor(transposed(encoded(matrix.minima, self._builder.dtype, self._watch)))

    def _summed(self, x: str, matrix: Parts, axes: int = 2) -> str:
        """The sums of blocks of activations, once for all matrices that meet them; `axes` are before the last."""
        build, block = self._builder, matrix.kind.block
        if (x, block) not in self._sums:
            apart = build.reshape(x, *[0] * axes, -1, block)
            self._sums[x, block] = build.op("ReduceSum", apart, build.constant([-1]), keepdims=0)
        return self._sums[x, block]

    def _zeros(self, n_rows: int, inner: int, bits: int) -> str:
        return self._filled((n_rows, -(-inner * bits // 8)), 0)

    def _filled(self, shape: tuple[int, ...], value: int) -> str:
        """Codes of zero for all rows, each byte of them the same."""
        info = TensorInfo("x".join(["zero_points_" + str(shape[0]), *map(str, shape[1:])]), shape, DTYPES["U8"])
        return self._builder.tensor(
            LazyTensor(info, lambda start, stop: np.full((stop - start, info.row), value, np.uint8), "zeros")
        )

    def _unpacked(self, matrix: Parts, ids: str, row: int) -> str:
        """Rows of blocks as numbers, by operators that every runtime has."""
        build, kind = self._builder, matrix.kind
        codes = build.op("Gather", matrix.codes.name, ids)
        if kind.bits < 8:
            codes = self._apart(codes, kind.bits)
        numbers = build.cast(codes, build.dtype)
        if kind.zero:
            numbers = build.op("Sub", numbers, build.number(kind.zero))
        numbers = build.op("Mul", numbers, self._spread(matrix.scales.name, ids))
        if matrix.minima is not None:
            self._looked_up.add(matrix.minima.name)
            name = build.tensor(encoded(matrix.minima, build.dtype, self._watch))
            numbers = build.op("Sub", numbers, self._spread(name, ids))
        return build.reshape(numbers, 0, 0, row)

    def _apart(self, codes: str, bits: int) -> str:
        """Codes that share a byte, each in its own: (..., bytes) -> (..., codes)."""
        build, mask = self._builder, self._builder.constant((1 << bits) - 1, np.uint8)
        pieces = []
        for shift in range(0, 8, bits):
            shifts = build.constant(shift, np.uint8)
            moved = build.op("BitShift", codes, shifts, direction="RIGHT") if shift else codes
            lowest = build.op("BitwiseAnd", moved, mask) if shift + bits < 8 else moved
            pieces.append(build.op("Unsqueeze", lowest, build.constant([-1])))
        joined = build.op("Concat", *pieces, axis=-1)
        return build.reshape(joined, 0, 0, 0, -1)

    def _spread(self, name: str, ids: str) -> str:
        """A number for each block of the rows, beside the elements of the block."""
        build = self._builder
        return build.op("Unsqueeze", build.op("Gather", name, ids), build.constant([-1]))
