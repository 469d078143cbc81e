"""Hashes of a model that depend on what is in it, and not on how many files it has or in which order.

Every tensor has the SHA-256 of its stored bytes. A Merkle tree over all tensors has one root; a second one is over the
metadata. Source of the trees: RFC 6962, section 2.1, with its prefixes that tell a leaf (0) from a node (1).
docs/housekeeping.md says what a leaf is.
"""

from __future__ import annotations

import hashlib
import re
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np

from converter.checkpoint import Checkpoint
from converter.errors import CorruptFile, UsageError, about, short
from converter.formats.gguf import value_bytes
from converter.formats.registry import open_checkpoint
from converter.metadata import Array, Value
from converter.request import PathLike, Source
from converter.storage import slabs
from converter.storage.json import read_json
from converter.storage.slabs import ProgressCallback, Slab, row_ranges
from converter.tensors.tensor import LazyTensor

_LEAF, _NODE = b"\x00", b"\x01"
_ROOT = re.compile(r"[0-9a-f]{64}")
_MAX_JSON = 256 << 20  # of a list of hashes


@dataclass(frozen=True)
class TensorHash:
    """A tensor by what is hashed of it; `shape` has the row last, `sha256` is of the stored bytes."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    nbytes: int
    sha256: str

    @property
    def leaf(self) -> bytes:
        axes = b"".join(_u64(size) for size in self.shape)
        return _leaf(self.name.encode(), self.dtype.encode(), axes, bytes.fromhex(self.sha256))

    def as_dict(self) -> dict[str, Any]:
        """As JSON."""
        own = {"name": self.name, "dtype": self.dtype, "shape": list(self.shape)}
        return own | {"bytes": self.nbytes, "sha256": self.sha256}

    @classmethod
    def from_dict(cls, said: Any) -> TensorHash:
        """What `as_dict` said; raises TypeError, KeyError or ValueError where it did not."""
        name, dtype, digest = (said[key] for key in ("name", "dtype", "sha256"))
        shape, nbytes = tuple(said["shape"]), said["bytes"]
        if not all(isinstance(text, str) for text in (name, dtype, digest)) or _ROOT.fullmatch(digest) is None:
            raise ValueError("name, dtype and sha256 are texts, the last of 64 digits")
        if not all(type(number) is int and 0 <= number < 1 << 63 for number in (*shape, nbytes)):
            raise ValueError("sizes are whole numbers")
        return cls(name, dtype, shape, nbytes, digest)


@dataclass(frozen=True)
class Hashes:
    """All hashes of a model; tensors in the order of their names."""

    source: str
    format: str
    root: str
    metadata_root: str
    tensors: tuple[TensorHash, ...]
    seconds: float

    def as_dict(self) -> dict[str, Any]:
        """As JSON."""
        own = {"source": self.source, "format": self.format, "algorithm": "sha256", "root": self.root}
        listed = {"tensors": [tensor.as_dict() for tensor in self.tensors]}
        return own | {"metadata_root": self.metadata_root} | listed | {"seconds": round(self.seconds, 3)}


@dataclass(frozen=True)
class Difference:
    """What an earlier run hashed otherwise: a tensor, `metadata`, or `root` where no more than that is known."""

    kind: Literal["added", "removed", "changed"]
    name: str

    def as_dict(self) -> dict[str, str]:
        """As JSON."""
        return {"kind": self.kind, "name": self.name}


def hashes(
    source: PathLike | Source, *, threads: int | None = None, progress: ProgressCallback | None = None
) -> Hashes:
    """Hash every tensor of a model and its metadata; tensors are read in parallel, each a slab at a time.

    Raises:
        FormatError, OutputError: it cannot be read.
        Cancelled: `progress` returned False.
    """
    started, source = time.monotonic(), Source.of(source)
    with about(source.path), open_checkpoint(source) as checkpoint:
        tensors = sorted(checkpoint.tensors.values(), key=lambda tensor: tensor.name.encode())
        digests: dict[str, str] = {}
        jobs = [slabs.Job((tensor,), partial(_hash, tensor, digests), tensor.row_work) for tensor in tensors]
        # The largest first, so that no thread is left alone with it at the end.
        order = sorted(range(len(jobs)), key=lambda number: -jobs[number].nbytes)
        whole = [Slab(number, 0, tensors[number].info.n_rows) for number in order]
        slabs.run(jobs, threads, progress, slabs=whole, stop=checkpoint.opened.lost)
        checkpoint.check()
        found = tuple(
            TensorHash(each.name, each.info.dtype.name, each.info.shape, each.info.nbytes, digests[each.name])
            for each in tensors
        )
        metadata = sorted(_metadata(checkpoint).items())
        roots = root(each.leaf for each in found), root(_leaf(key, value) for key, value in metadata)
        return Hashes(str(source.path), checkpoint.format, *roots, found, time.monotonic() - started)


def differences(made: Hashes, earlier: PathLike) -> list[Difference]:
    """What differs between hashes and those of an earlier run.

    Args:
        made: what was hashed now.
        earlier: the file that an earlier run printed as JSON, or the root alone, in 64 digits.

    Raises:
        CorruptFile: that is no such file, or its root is not that of its tensors.
        OutputError: it cannot be read.
    """
    if _ROOT.fullmatch(str(earlier)):
        return [] if str(earlier) == made.root else [Difference("changed", "root")]
    old, metadata_root = _read(Path(earlier))
    new = {tensor.name: tensor for tensor in made.tensors}
    found = [Difference("changed", name) for name in old if name in new and old[name].leaf != new[name].leaf]
    found += [Difference("removed", name) for name in old if name not in new]
    found += [Difference("added", name) for name in new if name not in old]
    if metadata_root != made.metadata_root:
        found.append(Difference("changed", "metadata"))
    return found


def root(leaves: Iterable[bytes]) -> str:
    """The root of the Merkle tree over hashed leaves, in hexadecimal; that of none is the hash of nothing."""
    return _root(list(leaves)).hex()


def _root(leaves: Sequence[bytes]) -> bytes:
    if not leaves:
        return hashlib.sha256().digest()
    if len(leaves) == 1:
        return leaves[0]
    half = 1 << (len(leaves) - 1).bit_length() - 1  # the largest power of two below
    return hashlib.sha256(_NODE + _root(leaves[:half]) + _root(leaves[half:])).digest()


def _leaf(*fields: bytes) -> bytes:
    """The hash of a leaf; each field has its length in front, so that none can be taken for a part of another."""
    return hashlib.sha256(_LEAF + b"".join(_u64(len(field)) + field for field in fields)).digest()


def _u64(number: int) -> bytes:
    return number.to_bytes(8, "little")


def _hash(tensor: LazyTensor, digests: dict[str, str], first: int, last: int) -> None:
    """Bytes of a hash are in order, so a tensor is one piece of work."""
    digest = hashlib.sha256()
    for start, stop in row_ranges((tensor,), tensor.row_work):
        digest.update(np.ascontiguousarray(tensor.rows(start, stop)).data)
    assert (first, last) == (0, tensor.info.n_rows)
    digests[tensor.name] = digest.hexdigest()


def _metadata(checkpoint: Checkpoint) -> dict[bytes, bytes]:
    """What a file says beside its tensors: a GGUF's key/values, as its header has them, or free texts."""
    texts: Mapping[str, Any] = checkpoint.config if checkpoint.dialect == "gguf" else checkpoint.metadata
    values = {key: value if isinstance(value, Value | Array) else Value("str", value) for key, value in texts.items()}
    return {key.encode(): value_bytes(value) for key, value in values.items()}


def _read(path: Path) -> tuple[dict[str, TensorHash], str]:
    """The tensors and the metadata's root of an earlier run."""
    said = read_json(path, _MAX_JSON)
    try:
        if said["algorithm"] != "sha256":
            raise UsageError(f"{path}: hashes by {short(said['algorithm'])}; sha256 can be compared")
        tensors = [TensorHash.from_dict(each) for each in said["tensors"]]
        whole, metadata_root = said["root"], said["metadata_root"]
    except (TypeError, KeyError, ValueError) as error:
        raise CorruptFile(f"{path}: is not what `convert hash --json` prints ({short(error)})") from None
    if whole != root(each.leaf for each in sorted(tensors, key=lambda tensor: tensor.name.encode())):
        raise CorruptFile(f"{path}: its root is not that of its tensors; it was changed")
    return {tensor.name: tensor for tensor in tensors}, str(metadata_root)
