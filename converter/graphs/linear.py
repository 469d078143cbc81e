"""Matrices in a graph, multiplied by or looked up in: plain numbers, or blocks that stay what they are.

A plain matrix is stored transposed, as MatMul reads it; one of blocks row by row, in either case without holding more
of it than a slab.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from converter.graphs.blocks import Parts, parts
from converter.graphs.builder import MICROSOFT, Builder
from converter.storage.transposed import transposed
from converter.tensors.dtypes import DTYPES
from converter.tensors.encode import Watch, encoded
from converter.tensors.operands import KINDS
from converter.tensors.tensor import LazyTensor, TensorInfo


class Matrices:
    """The model's matrices in a graph of `builder`.

    `exact`: activations stay what they are; else matrices of blocks meet them in 8 bits, as in llama.cpp.
    """

    def __init__(self, builder: Builder, watch: Watch, *, exact: bool) -> None:
        self._builder = builder
        self._watch = watch
        self._exact = exact
        self._parts: dict[str, Parts] = {}
        self._looked_up: set[str] = set()
        self._sums: dict[tuple[str, int], str] = {}
        self._pieces: dict[tuple[str, str], tuple[str, ...]] = {}
        self.types: dict[str, str] = {}  # of matrices of blocks, by the name of their codes
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
        return self._builder.op("MatMul", x, self._transposed(matrix))

    def by_head(self, x: str, matrices: LazyTensor) -> str:
        """Every head times its own matrix: (batch, heads, tokens, row) -> (batch, heads, tokens, rows of a matrix)."""
        return self._builder.op("MatMul", x, self._builder.op("Transpose", self.plain(matrices), perm=[0, 2, 1]))

    def multiply_each(self, rows: str, matrices: Sequence[LazyTensor], counts: str) -> str:
        """The first of `counts` rows times the first matrix, and so on: (rows, row) -> (rows, rows of a matrix)."""
        build, pieces = self._builder, self._cut(rows, counts, len(matrices))
        if matrices[0].info.dtype.name not in KINDS:
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
        self._looked_up.add(matrix.name)
        return self._builder.op("Gather", self.plain(matrix), ids)

    def _transposed(self, matrix: LazyTensor) -> str:
        if matrix.name in self._looked_up:  # the embedding is there, row by row: one copy serves both
            return self._builder.op("Transpose", matrix.name, perm=[1, 0])
        self.turned.add(matrix.name)
        return self._builder.tensor(transposed(encoded(matrix, self._builder.dtype, self._watch)))

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
        nbytes = -(-inner * bits // 8)
        name = f"zero_points_{n_rows}x{nbytes}"
        info = TensorInfo(name, (n_rows, nbytes), DTYPES["U8"])
        return self._builder.tensor(
            LazyTensor(info, lambda start, stop: np.zeros((stop - start, nbytes), np.uint8), "zeros")
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
