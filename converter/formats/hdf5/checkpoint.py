"""HDF5: generic trees of datasets, and what Keras 1 to 3 keeps in them (`.h5`, `.weights.h5`, `.keras`).

Source: the HDF5 File Format Specification 3.0; for the names, what Keras writes. Files are read and written by our own
code (`reader`, `data`, `writer`). Names are paths, but for Keras: there they are the layers' and
weights' true names. Configurations, Lambda layers among them, are text and stay text. Attributes travel as metadata,
those of the root under their names, others as `path@name`, and by them a file from Keras becomes one for Keras again.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from converter.checkpoint import Checkpoint, Part
from converter.errors import CorruptFile, MissingPart, UnsupportedFeature, UsageError, short
from converter.events import Dropped, Event, Note
from converter.formats.hdf5.data import Bands, Dataset, dataset, stored_bytes
from converter.formats.hdf5.file import SIGNATURE, Hdf5File, user_block
from converter.formats.hdf5.keras_archive import ASSETS, CONFIG, METADATA, TEXTS, WEIGHTS
from converter.formats.hdf5.names import attribute_key, layer_groups, layered, listed_weights, titles_of, top_of
from converter.formats.hdf5.reader import (
    LAYOUT,
    LINK,
    LINK_INFO,
    SYMBOL_TABLE,
    Attributes,
    as_text,
    attributes,
    links,
    object_header,
)
from converter.formats.hdf5.writer import OPAQUE
from converter.storage.files import Bytes, bytes_of, expands_too_far, open_bytes
from converter.storage.zip import Archive, open_archive
from converter.tensors.dtypes import DTYPES, DType
from converter.tensors.tensor import LazyTensor, Rows, TensorInfo

MAX_DEPTH = 128
MAX_PATH = 4096
MAX_HOPS = 16  # of soft links
MAX_CONFIG = 64 << 20
MAX_ASSETS = 16 << 20  # bytes of all texts among an archive's assets
OPTIMIZER = ("optimizer_weights/", "optimizer/")


def sniff(path: Path, start: bytes) -> bool:
    """The signature, in files that are called so or by MATLAB also behind a block of the user's."""
    if start.startswith(SIGNATURE):
        return True
    if path.is_dir() or not (path.suffix.lower() in EXTENSIONS or start.startswith(b"MATLAB 7.3")):
        return False
    mapped = bytes_of(path)
    try:
        return user_block(mapped) > 0
    finally:
        mapped.close()


def sniff_keras(path: Path, start: bytes) -> bool:
    """A zip archive that begins as Keras begins it, or is called so."""
    if start[:4] != b"PK\x03\x04":
        return False
    length = int.from_bytes(start[26:28], "little")
    return start[30 : 30 + length] in (METADATA.encode(), CONFIG.encode()) or path.suffix.lower() == ".keras"


def open_hdf5(path: Path) -> Checkpoint:
    """The model in an HDF5 file: all datasets but an optimizer's.

    Raises:
        CorruptFile, UnsupportedFeature, MissingPart, OutputError
    """
    return open_hdf5_key(path, "")


def open_hdf5_key(path: Path, key: str) -> Checkpoint:
    """The datasets of one group, "." for all of them.

    Raises:
        UsageError: no dataset lies there.
        CorruptFile, UnsupportedFeature, MissingPart, OutputError
    """
    mapped = open_bytes(path)
    try:
        return _checkpoint("hdf5", mapped, mapped, key, {}, ())
    except BaseException:
        mapped.close()
        raise


def open_keras(path: Path) -> Checkpoint:
    """The model in a `.keras` archive: weights in place, config.json and metadata.json as text.

    Raises:
        CorruptFile, UnsupportedFeature, MissingPart, OutputError
    """
    return open_keras_key(path, "")


def open_keras_key(path: Path, key: str) -> Checkpoint:
    """The same, for one group of the weights.

    Raises:
        UsageError: no dataset lies there.
        CorruptFile, UnsupportedFeature, MissingPart, OutputError
    """
    mapped = open_bytes(path)
    try:
        archive = open_archive(mapped)
        if WEIGHTS not in archive.entries:
            raise MissingPart(f"{path}: no {WEIGHTS} in it; save the model again")
        weights = archive.entries[WEIGHTS]
        if expands_too_far(weights.size, weights.packed):
            raise CorruptFile(f"{path}: {WEIGHTS} has {weights.packed} bytes and would unpack to {weights.size}")
        texts = {
            TEXTS[name]: _utf8(path, name, archive.small(name, MAX_CONFIG)) for name in TEXTS if name in archive.entries
        }
        assets, events = _assets(archive)
        found = _checkpoint("keras", mapped, archive.record(WEIGHTS), key, texts | assets, events)
        return found.replace(checks=(archive.check,))
    except BaseException:
        mapped.close()
        raise


def _assets(archive: Archive) -> tuple[dict[str, str], tuple[Event, ...]]:
    """What layers keep beside their weights, such as vocabularies, by the members' names: texts, and what is none."""
    texts: dict[str, str] = {}
    dropped: list[Event] = []
    room = MAX_ASSETS
    for name, entry in archive.entries.items():
        if name in (WEIGHTS, *TEXTS) or name.endswith("/"):
            continue
        data = archive.small(name, room) if name.startswith(ASSETS) and entry.size <= room else b"\xff"
        try:
            texts[name] = data.decode("utf-8")
            room -= len(data)
        except UnicodeDecodeError:
            dropped.append(Dropped(name, "no text among the assets of the Keras archive, or too long"))
    return texts, tuple(dropped)


def _utf8(path: Path, name: str, data: bytes) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        raise CorruptFile(f"{path}: {name} is not UTF-8") from None


def _checkpoint(
    name: str, mapped: Bytes, source: Bytes, key: str, texts: dict[str, str], events: tuple[Event, ...]
) -> Checkpoint:
    path = mapped.path
    tree = walk(Hdf5File(source), mapped.size)
    names, notes = _names(path, tree)
    chosen = _chosen(path, tree, key)
    parts = _parts(tree, chosen, key)
    bands, tensors = Bands(), {}
    dropped: list[Event] = []
    for place in chosen:
        found = tree.datasets[place]
        dtype = _dtype(path, found, tree.attributes.get(place))
        if dtype is None or found.shape is None:
            dropped.append(Dropped(place, f"{found.type.label if found.shape is not None else 'nothing'}, no tensor"))
            continue
        tensors[names[place]] = _tensor(found, names[place], dtype, bands)
    if not tensors:
        raise UnsupportedFeature(f"{path}: no dataset of numbers in it")
    left = sum(part.tensors for part in parts if not part.shown) if not key else 0
    if left:
        notes = [*notes, Note(f"{left} datasets of the optimizer are left out; --key . takes all of them")]
    if tree.left:
        notes = [*notes, Note(f"{tree.left} attributes that are neither text nor numbers are left out")]
    return Checkpoint(
        format=name,
        path=path,
        dialect=None,
        tensors=tensors,
        metadata={**tree.metadata(without=OPTIMIZER if left else ()), **texts},
        events=(*events, *dropped, *notes),
        files=(path,),
        closers=(mapped.close,),
        parts=parts,
    )


def _chosen(path: Path, tree: Tree, key: str) -> list[str]:
    """The paths that `key` means; by default all but an optimizer's, where there are others."""
    if key in ("", "."):
        rest = [place for place in tree.datasets if key == "." or not place.startswith(OPTIMIZER)]
        return rest or list(tree.datasets)
    inside = [place for place in tree.datasets if place == key or place.startswith(key.rstrip("/") + "/")]
    if not inside:
        tops = ", ".join(sorted({place.split("/")[0] for place in tree.datasets})[:8])
        raise UsageError(f"{path}: nothing lies at --key {short(key)}; there are {short(tops, 200)}")
    return inside


def _parts(tree: Tree, chosen: Sequence[str], key: str) -> tuple[Part, ...]:
    """What was chosen, and what else there is by its group at the top; nothing where all was chosen."""
    taken = set(chosen)
    rest = Counter(place.partition("/")[0] for place in tree.datasets if place not in taken)
    shown = Part(key or "model", len(chosen), shown=True)
    return (shown, *(Part(name, count) for name, count in rest.items())) if rest else ()


# ------------------------------------------------------------------------------------------------- the tree


@dataclass
class Tree:
    """All datasets by path, the attributes of everything ("" is the root), how many attributes could not be read."""

    datasets: dict[str, Dataset] = field(default_factory=dict)
    attributes: dict[str, Attributes] = field(default_factory=dict)
    left: int = 0

    def metadata(self, without: tuple[str, ...] = ()) -> dict[str, str]:
        """The attributes as metadata, but for those of groups that are left out, given with a slash at their end."""
        return {
            attribute_key(place, name): as_text(value)
            for place, own in self.attributes.items()
            if not f"{place}/".startswith(without)
            for name, value in own.values.items()
            if name != "dtype" or place not in self.datasets or not self.datasets[place].type.opaque
        }


def walk(file: Hdf5File, given: int) -> Tree:
    """Everything that the root reaches, without recursion; groups have one path, datasets may have several.

    `given` are the bytes that are there of the file, which may be packed.

    Raises:
        CorruptFile, UnsupportedFeature
    """
    tree, known, soft = Tree(), dict[int, str](), dict[str, str]()
    stack = [("", file.root)]
    while stack:
        place, address = stack.pop()
        if place.count("/") >= MAX_DEPTH or len(place) > MAX_PATH:
            raise file.corrupt(f"groups within groups beyond {MAX_DEPTH}: {short(place)}")
        if address in known:
            tree.datasets[place] = replace(tree.datasets[known[address]], path=place)
            tree.attributes[place] = tree.attributes[known[address]]
            continue
        messages = object_header(file, address)
        tree.attributes[place] = attributes(file, messages)
        tree.left += tree.attributes[place].left
        if LAYOUT in messages:
            tree.datasets[place] = dataset(file, place, messages)
            known[address] = place
        elif any(kind in messages for kind in (SYMBOL_TABLE, LINK_INFO, LINK)):
            below = []
            for link in links(file, messages):
                inside = f"{place}/{link.name}" if place else link.name
                if link.soft is not None:
                    soft[inside] = link.soft
                elif link.address is None:
                    raise file.corrupt(f"the link {short(inside)} has no address")
                else:
                    below.append((inside, link.address))
            stack += reversed(below)
        elif place == "":
            raise file.corrupt("its root is no group")
    _follow(file, tree, soft)
    _check_storage(file, tree, known, given)
    return tree


def _follow(file: Hdf5File, tree: Tree, soft: dict[str, str]) -> None:
    """Soft links to datasets are datasets, too; others are refused, so that nothing is missing silently."""
    for place, value in soft.items():
        target, here = value, place
        for _ in range(MAX_HOPS):
            target = target.strip("/") if target.startswith("/") else f"{here.rpartition('/')[0]}/{target}".strip("/")
            if target not in soft:
                break
            here, target = target, soft[target]
        if target not in tree.datasets:
            raise file.unsupported(f"the soft link {short(place)} to {short(value)} leads to no dataset")
        tree.datasets[place] = replace(tree.datasets[target], path=place)
        tree.attributes[place] = tree.attributes[target]


def _check_storage(file: Hdf5File, tree: Tree, known: dict[int, str], given: int) -> None:
    """Refuse more values than the file can mean, and datasets that share bytes.

    Raises:
        CorruptFile: as said.
    """
    total = sum(found.nbytes for found in tree.datasets.values())
    if expands_too_far(total, given):
        largest = max(tree.datasets.values(), key=lambda found: found.nbytes)
        raise file.corrupt(
            f"its datasets declare {total} bytes, the file has {given}; the largest is {largest.what}, "
            f"{list(largest.shape or ())[:8]}"
        )
    end, before = 0, ""
    extents = [(*each, place) for place in known.values() for each in tree.datasets[place].extents()]
    for start, nbytes, place in sorted(extents):
        if start < end:
            raise file.corrupt(f"the values of dataset {short(place)} overlap those of {short(before)}")
        end, before = start + nbytes, place


# ------------------------------------------------------------------------------------------------- names


def _names(path: Path, tree: Tree) -> tuple[dict[str, str], list[Event]]:
    """Path -> tensor name; the true names where they are unique, else the paths and a note.

    Raises:
        MissingPart: a weight or a layer that is listed is not there.
    """
    metadata = tree.metadata()
    if top_of(metadata) is not None:
        names = {place: place for place in tree.datasets} | _legacy(path, tree, metadata)
    else:
        titles = titles_of(metadata)
        names = {place: layered(place, titles) for place in tree.datasets}
    if len(set(names.values())) < len(names):
        return {place: place for place in tree.datasets}, [Note("its weights' names are not unique; paths are used")]
    return names, []


def _legacy(path: Path, tree: Tree, metadata: Mapping[str, str]) -> dict[str, str]:
    for group in layer_groups(metadata):
        if group not in tree.attributes:
            raise MissingPart(f"{path}: the layer {short(group)} is listed and is not there")
    found = {}
    for each in listed_weights(metadata):
        if each.place not in tree.datasets:
            raise MissingPart(f"{path}: weight {short(each.weight)} of {short(each.group)} is listed and is not there")
        found[each.place] = each.name
    return found


# ------------------------------------------------------------------------------------------------- tensors


def _dtype(path: Path, found: Dataset, own: Attributes | None) -> DType | None:
    """The encoding; two opaque bytes are BF16 unless an attribute says otherwise, as in NumPy files.

    Raises:
        UnsupportedFeature: opaque bytes that an attribute calls by an unknown name.
    """
    if not found.type.opaque:
        return found.type.dtype
    said = own.text("dtype") if own is not None else None
    name = OPAQUE.get(said) if said is not None else "BF16" if found.type.size == 2 else None
    dtype = DTYPES[name] if name else None
    if said is not None and (dtype is None or dtype.type_size != found.type.size):
        raise UnsupportedFeature(f"{path}: {found.what} has {found.type.size}-byte elements of type {short(said)}")
    return dtype


def _tensor(found: Dataset, name: str, dtype: DType, bands: Bands) -> LazyTensor:
    assert found.shape is not None and dtype.numpy is not None  # `_checkpoint` looked
    info = TensorInfo(name, found.shape, dtype)
    row, swapped, numpy = info.row_nbytes, found.type.swapped, dtype.numpy

    def read(start: int, stop: int) -> Rows:
        data = stored_bytes(found, bands, start * row, (stop - start) * row)
        data = data.view(numpy).byteswap().view(np.uint8) if swapped else data
        return data.reshape(stop - start, row)

    source = f"{found.file.path}@{found.path}"
    return LazyTensor(info, read, source, work_nbytes=2 * row if swapped or found.chunks is not None else None)


EXTENSIONS = (".h5", ".hdf5")
