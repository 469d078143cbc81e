"""A model written again with its graph: what is not a tensor that moves or changes stays byte for byte.

Values that lie in pieces or as varints become raw_data, and so are checked.

A tensor that changes its type is stored in the new one under `<name>.stored`, and a Cast gives it back in the old one
under its own name: inputs, outputs, value_info and every operator see the types they saw, whatever the operators are.
Runtimes fold such Casts when they load a model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from converter.checkpoint import Checkpoint, Use
from converter.errors import UnsupportedFeature, short
from converter.events import Event
from converter.formats.onnx.coded import decoded
from converter.formats.onnx.model import INLINE_NBYTES, SUFFIX, Box, Model, Operator, Site
from converter.formats.onnx.uses import SCOPES, uses
from converter.formats.onnx.values import CODES, PACKED, TYPES, as_stored, lazy, whole_only
from converter.formats.onnx.writer import MAX_MESSAGE, DataFile, Piece, assembled, nbytes, values
from converter.storage.layout import Layout
from converter.storage.protobuf import blob, number, varint_bytes
from converter.tensors.tensor import LazyTensor


@dataclass(frozen=True)
class Graph:
    """What an ONNX model is around its tensors: see `converter.checkpoint.Structure`.

    `beside` are tensors that go with codes, in the type that these need.
    """

    model: Model
    sites: Mapping[str, Site]
    beside: Set[str] = frozenset()

    @cached_property
    def fixed(self) -> Mapping[str, str]:
        """Tensors whose type the graph relies on, and why."""
        reasons = ((name, self.model.why_fixed(site)) for name, site in self.sites.items())
        return {name: why for name, why in reasons if why} | dict.fromkeys(self.beside, "what goes with codes")

    @cached_property
    def uses(self) -> Mapping[str, Sequence[Use]]:
        """The tensors that a graph computes with, and where; nothing of a file of tensors alone.

        Raises:
            CorruptFile: the nodes cannot be read.
        """
        return uses(self._operators, self.sites)

    @cached_property
    def decoded(self) -> Mapping[str, LazyTensor]:
        """By the names of codes, the numbers that a graph computes with.

        Raises:
            CorruptFile: the nodes cannot be read.
        """
        return decoded(self._operators, {name: lazy(name, site.stored) for name, site in self.sites.items()})

    @cached_property
    def _operators(self) -> tuple[Operator, ...]:
        return () if self.model.bare else tuple(self.model.operators({SCOPES}))

    def leave(self) -> tuple[Event, ...]:
        """What is lost where only the tensors go on.

        Raises:
            UnsupportedFeature: sparse tensors.
        """
        return tuple(self.model.losses(self.sites))


def rewritten(checkpoint: Checkpoint, graph: Graph, target: Path, external_data: str) -> Layout:
    """The model of `graph` with the tensors of `checkpoint`.

    `external_data`: "auto" leaves tensors in the model's file or outside as they are, as long as that file stays under
    2 GiB; "always" puts every tensor over 1 KiB outside, "never" none.

    Raises:
        UnsupportedFeature: tensors that are not the graph's, types that it cannot do with, 2 GiB.
    """
    _check_names(checkpoint, graph, target)
    pieces, data = _Rewriting(checkpoint, graph, target, external_data).pieces()
    if external_data == "auto" and nbytes(pieces) > MAX_MESSAGE:
        pieces, data = _Rewriting(checkpoint, graph, target, "always").pieces()
    return assembled(target, pieces, graph.model.file, data)


def _check_names(checkpoint: Checkpoint, graph: Graph, target: Path) -> None:
    different = checkpoint.tensors.keys() ^ graph.sites.keys()
    for name, site in graph.sites.items():
        if name in checkpoint.tensors and checkpoint.tensors[name].info.shape != site.stored.shape:
            different.add(name)
    if different:
        raise UnsupportedFeature(f"{target}: tensor {short(min(different))} is not the one that the graph has")


class _Rewriting:
    """Edits of the source's bytes, each a range and the pieces that replace it; lengths around them follow."""

    def __init__(self, checkpoint: Checkpoint, graph: Graph, target: Path, external_data: str) -> None:
        self._model = graph.model
        self._target = target
        self._external_data = external_data
        self._data = DataFile(target)
        self._taken = set(graph.model.taken)
        self._edits: list[tuple[int, int, list[Piece]]] = []
        self._growth: dict[Box, int] = {}
        names = {site: name for name, site in graph.sites.items()}
        for site in graph.model.sites:
            self._site(site, checkpoint.tensors[names[site]] if site in names else None)

    def pieces(self) -> tuple[list[Piece], DataFile]:
        """The whole file."""
        self._fix_lengths()
        pieces: list[Piece] = []
        at = 0
        for start, stop, replacement in sorted(self._edits, key=lambda edit: edit[:2]):
            if start > at:
                pieces.append((at, start))
            pieces += replacement
            at = stop
        pieces.append((at, self._model.file.size))
        return pieces, self._data

    def _put(self, box: Box | None, start: int, stop: int, pieces: list[Piece]) -> None:
        """Replace [start, stop), which lies in `box`."""
        self._edits.append((start, stop, pieces))
        if box is not None and (growth := nbytes(pieces) - (stop - start)):
            self._growth[box] = self._growth.get(box, 0) + growth

    def _fix_lengths(self) -> None:
        """The length before every message that grew or shrank; a message stands behind those it lies in."""
        for box in list(self._growth):
            around = box.around
            while around is not None and around not in self._growth:
                self._growth[around] = 0
                around = around.around
        for box in sorted(self._growth, key=lambda each: each.start, reverse=True):
            growth = self._growth[box]
            start = self._model.length_at(box)
            length = varint_bytes(box.stop - box.start + growth)
            self._edits.append((start, box.start, [length]))
            if box.around is not None:
                self._growth[box.around] += growth + len(length) - (box.start - start)

    # -- tensors

    def _site(self, site: Site, tensor: LazyTensor | None) -> None:
        """One tensor: left as it is, moved, or stored in another type."""
        stored = site.stored
        own = "" if stored.code in PACKED else TYPES[stored.code][0]
        retyped = tensor is not None and bool(own) and tensor.info.dtype.name != own
        if retyped:
            assert tensor is not None
            self._check_type(site, tensor, own)
        outside = self._goes_outside(site)
        stays = not (retyped or outside or whole_only(stored)) and stored.file is self._model.file
        if site.box is None or stays:
            self._in_place(site, tensor if own else None)
            return
        if tensor is None or not own:
            tensor = as_stored(site.name, stored)
        code = CODES[tensor.info.dtype.name] if retyped else stored.code
        name = self._cast(site, code) if retyped and not self._model.bare else ""
        self._tensor(site, site.box, tensor, code, name if site.output is None else "", outside)

    def _goes_outside(self, site: Site) -> bool:
        if self._external_data == "auto":
            return site.stored.file is not self._model.file
        return self._external_data == "always" and site.stored.nbytes > INLINE_NBYTES

    def _in_place(self, site: Site, tensor: LazyTensor | None) -> None:
        """The same bytes where they were; they come from the tensor, which is watched as it is read."""
        if tensor is not None and site.box is not None and site.stored.pieces:
            offset, size = site.stored.pieces[0]
            self._put(site.box, offset, offset + size, [tensor])

    def _tensor(self, site: Site, box: Box, tensor: LazyTensor, code: int, name: str, outside: bool) -> None:
        """The TensorProto again, with all that it has besides type, name and values."""
        dropped = {2, 4, 5, 7, 9, 10, 11, 13, 14} | ({8} if name else set())
        head = number(2, code) + (blob(8, name.encode()) if name else b"")
        same = (site.stored.file.path, site.stored.pieces, code)
        data = values(tensor, self._data if outside else None, same)
        self._put(box, box.start, box.stop, [*self._model.others(box, dropped), head, *data])

    # -- types

    def _check_type(self, site: Site, tensor: LazyTensor, own: str) -> None:
        wanted = tensor.info.dtype.name
        what = f"{self._target}: tensor {short(tensor.name)} cannot change from {own} to {wanted}"
        if why := self._model.why_fixed(site):
            raise UnsupportedFeature(f"{what}: it is {why}")
        if self._model.bare:
            return
        if own not in _CAST_SINCE or wanted not in _CAST_SINCE:
            raise UnsupportedFeature(f"{what}: Cast has no such types")
        needed = max(_CAST_SINCE[own], _CAST_SINCE[wanted])
        if self._model.opset < needed:
            raise UnsupportedFeature(
                f"{what}: the Cast for it is in operator set {needed}, the model has {self._model.opset}\n"
                "export it with a newer operator set, or choose another --dtype"
            )

    def _cast(self, site: Site, code: int) -> str:
        """Put a Cast back to the type that the graph has where the tensor is; returns the name of its input."""
        assert site.box is not None and site.box.around is not None
        stored = site.name
        while stored == site.name or stored in self._taken:
            stored += SUFFIX.decode()
        self._taken.add(stored)
        cast = _cast_node(stored, site.name, site.stored.code)
        if site.output is None:
            graph = site.box.around
            self._put(graph, graph.start, graph.start, [cast])
            return stored
        node = site.box.around.around
        assert node is not None
        self._put(node.around, node.stop, node.stop, [cast])
        start, stop = site.output
        self._put(Box(start, stop, node), start, stop, [stored.encode()])
        return stored


# Operator set in which Cast takes a type, by attribute `to` as a number.
_CAST_SINCE = {
    "F16": 6, "F32": 6, "F64": 6, "BF16": 13, "F8_E4M3": 19, "F8_E4M3FNUZ": 19, "F8_E5M2": 19, "F8_E5M2FNUZ": 19,
    "F8_E8M0": 24,
}  # fmt: skip
_INT = 2  # AttributeProto.AttributeType


def _cast_node(source: str, target: str, code: int) -> bytes:
    """A graph's node `target = Cast(source, to=code)`."""
    to = blob(1, b"to") + number(3, code) + number(20, _INT)
    names = blob(1, source.encode()) + blob(2, target.encode()) + blob(3, f"{source}.cast".encode())
    return blob(1, names + blob(4, b"Cast") + blob(5, to))
