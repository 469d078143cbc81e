"""The two containers of `torch.save`: the zip archive (since 1.6, also TorchScript) and the stream of before.

Either gives a `TorchFile`: the plain values of its pickle and the bytes of its storages, unread.
Source: `torch/serialization.py` (`_save`, `_legacy_save`) and `caffe2/serialize/inline_container.cc`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from converter.errors import ConverterError, CorruptFile, MissingPart, UnsupportedFeature, short
from converter.events import Dropped, Event, Note
from converter.formats.torch.exported import FORMAT, ExportedProgram, is_exported, read_exported
from converter.formats.torch.pickle import MAX_NBYTES, MAX_OPCODES, PickleMachine
from converter.formats.torch.values import Names, Storage, refuse_unknown, storage_of
from converter.storage.files import Bytes, InMemory, Part, check_inside
from converter.storage.windows import Windows
from converter.storage.zip import LOCAL, Archive, Plain, Record, open_archive

MAGIC = 0x1950A86A20F9469CFC6C
PROTOCOL = 1001
FREE_OPCODES = 1 << 20
_MAX_SMALL = 1 << 10


@dataclass(frozen=True)
class TorchFile:
    """One file of `torch.save`.

    Attributes:
        root: what was saved, as plain values.
        constants: the tensors in a TorchScript program's code, in order.
        record: the bytes of a storage; not called for storages of types that have no encoding here.
        script: True for TorchScript.
        check: compares what is left of the checksums of storages that were read.
        events: what the container has to say.
        unknown: names of classes that are not known here; what stands for their objects is inert.
        program: the graph around the tensors, of an exported program.
    """

    mapped: Bytes
    root: Any
    constants: tuple[Any, ...]
    record: Callable[[Storage], Record]
    script: bool
    check: Callable[[], None]
    events: tuple[Event, ...]
    unknown: tuple[str, ...]
    program: ExportedProgram | None = None


def open_file(mapped: Bytes) -> TorchFile:
    """Read the pickle of a file, and no storage.

    Raises:
        CorruptFile, UnsupportedFeature, MissingPart
    """
    start = bytes(mapped.view(0, min(512, mapped.size), "the file"))
    if start[:4] == LOCAL:
        return _archive(mapped)
    if start[257:262] == b"ustar":
        raise UnsupportedFeature(
            f"{mapped.path}: a tar file as PyTorch wrote them before 0.2 (2017)\n"
            "load it with an old PyTorch and save it again"
        )
    return _stream(mapped)


# ------------------------------------------------------------------------------------------ zip archive


def _archive(mapped: Bytes) -> TorchFile:
    archive, path = open_archive(mapped), mapped.path
    prefix = _prefix(archive)
    if is_exported(archive, prefix):
        return _exported(archive, prefix)
    order = archive.small(prefix + "byteorder", _MAX_SMALL) if prefix + "byteorder" in archive.entries else b"little"
    if order != b"little":
        raise UnsupportedFeature(f"{path}: byte order {short(order)}; only little-endian files can be read")
    script = prefix + "constants.pkl" in archive.entries
    used: dict[str, Storage] = {}
    root, unknown = _member(archive, prefix, "data", script, used)
    constants, more = _member(archive, prefix, "constants", script, used) if script else ((), [])
    if type(constants) is not tuple:
        raise CorruptFile(f"{path}: constants.pkl does not hold a tuple")
    events: list[Event] = [
        Dropped(short(name)[1:-1], "no tensor uses it")
        for name, entry in archive.entries.items()
        if name.startswith((prefix + "data/", prefix + "constants/")) and name not in used and not name.endswith("/")
    ]
    if not archive.summed:
        events.append(Note(f"{path.name}: written without checksums, so damage cannot be noticed"))

    def record(storage: Storage) -> Record:
        return archive.record(storage.key)

    return TorchFile(mapped, root, constants, record, script, archive.check, tuple(events), (*unknown, *more))


def _exported(archive: Archive, prefix: str) -> TorchFile:
    root, program = read_exported(archive, prefix)

    def record(storage: Storage) -> Record:
        return archive.record(storage.key)

    return TorchFile(archive.mapped, root, (), record, False, archive.check, (), (), program)


def _prefix(archive: Archive) -> str:
    """The one folder that everything in the archive lies in, with its slash."""
    path, names = archive.mapped.path, list(archive.entries)
    folder = names[0].partition("/")[0] + "/" if names else ""
    if not {folder + "data.pkl", folder + FORMAT} & archive.entries.keys():
        raise MissingPart(f"{path}: a zip archive without data.pkl; not a PyTorch file, or a part of it is missing")
    for name in names:
        if not name.startswith(folder):
            raise CorruptFile(f"{path}: member {short(name)} lies outside the archive's folder {short(folder)}")
    return folder


def _member(archive: Archive, prefix: str, which: str, script: bool, used: dict[str, Storage]) -> tuple[Any, list[str]]:
    """The value of data.pkl or constants.pkl, and the unknown names in it.

    The storages it uses get the names of their members as keys.
    """
    path, names = archive.mapped.path, Names(script)

    def persistent(pid: Any) -> Storage:
        storage = storage_of(pid)
        name = f"{prefix}{which}/{storage.key}"
        entry = archive.entries.get(name)
        if entry is None:
            raise CorruptFile(f"storage {short(storage.key)} has no member of the archive")
        if storage.type.dtype is not None and entry.size != storage.nbytes:
            raise CorruptFile(
                f"storage {short(storage.key)} should have {storage.numel} elements of {storage.type.dtype}, "
                f"its member has {entry.size} bytes"
            )
        return _known(used, Storage(name, storage.type, storage.numel, storage.start))

    pickle = archive.small(f"{prefix}{which}.pkl", MAX_NBYTES)
    # Deflated, a small file could keep the machine busy for long; a real one has more bytes of data than opcodes.
    limit = min(MAX_OPCODES, FREE_OPCODES + archive.mapped.size)
    machine = PickleMachine(Windows(InMemory(path, pickle)), f"{which}.pkl", names.find, persistent, limit)
    value = _run(machine, names, path)
    if machine.position != len(pickle):
        raise CorruptFile(f"{path}: {len(pickle) - machine.position} bytes follow the end of {which}.pkl")
    return value, names.unknown


def _run(machine: PickleMachine, names: Names, path: Path) -> Any:
    """The pickle's value; where it makes no sense, foreign names are what a user should hear of first."""
    try:
        return machine.run()
    except ConverterError:
        refuse_unknown(path, names.unknown)
        raise


def _known(used: dict[str, Storage], storage: Storage) -> Storage:
    """The same storage is always described in the same way; views may differ in where they start."""
    old = used.setdefault(storage.key, storage)
    if (old.type.name, old.numel) != (storage.type.name, storage.numel):
        raise CorruptFile(f"storage {short(storage.key)} is described in two ways")
    return old if old.start == storage.start else storage


# ----------------------------------------------------------------------------------------------- stream


def _stream(mapped: Bytes) -> TorchFile:
    path = mapped.path
    data = Windows(Part(mapped, 0, min(mapped.size, MAX_NBYTES)))
    used: dict[str, Storage] = {}
    position = 0

    unknown: list[str] = []

    def value(what: str, persistent: Callable[[Any], Any] = _no_storage) -> Any:
        nonlocal position, unknown
        names = Names(script=False)
        machine = PickleMachine(data, what, names.find, persistent)
        machine.position = position
        result = _run(machine, names, path)
        position = machine.position
        if persistent is _no_storage:
            refuse_unknown(path, names.unknown)
        else:
            unknown = names.unknown
        return result

    magic = value("the magic number")
    if type(magic) is not int or magic != MAGIC:
        raise CorruptFile(f"{path}: a pickle, but not one that torch.save wrote")
    protocol, system = value("the protocol number"), value("the system's description")
    if type(protocol) is not int or protocol != PROTOCOL or type(system) is not dict:
        raise CorruptFile(f"{path}: torch.save's protocol is {PROTOCOL}, this file has another")
    if system.get("little_endian", True) is not True:
        raise UnsupportedFeature(f"{path}: not little-endian; only little-endian files can be read")
    root = value("the pickle of the object", lambda pid: _known(used, storage_of(pid)))
    keys = value("the list of storages")
    records = _storages(mapped, position, used, keys)
    return TorchFile(mapped, root, (), lambda storage: records[storage.key], False, lambda: None, (), tuple(unknown))


def _no_storage(pid: Any) -> Any:
    raise CorruptFile("a storage where there can be none")


def _storages(mapped: Bytes, position: int, used: dict[str, Storage], keys: Any) -> dict[str, Record]:
    """The storages from `position` on, in the order of `keys`: a number of elements in 8 bytes, then the elements."""
    path = mapped.path
    if type(keys) is not list or not all(type(key) is str for key in keys) or len(set(keys)) != len(keys):
        raise CorruptFile(f"{path}: the list of storages is not a list of different names")
    if set(keys) != used.keys():
        raise CorruptFile(f"{path}: the {len(keys)} storages listed are not the {len(used)} that the tensors use")
    records: dict[str, Record] = {}
    for key in keys:
        storage, what = used[key], f"storage {short(key)}"
        if storage.type.dtype is None:
            raise UnsupportedFeature(f"{path}: {what} is a torch.{storage.type.name}, which no format here can hold")
        numel = int.from_bytes(bytes(mapped.view(position, 8, what)), "little", signed=True)
        if numel != storage.numel:
            raise CorruptFile(f"{path}: {what} should have {storage.numel} elements, its header says {numel}")
        position += 8
        check_inside(mapped, position, storage.nbytes, what)
        records[key] = Plain(mapped, position, storage.nbytes, None, what)
        position += storage.nbytes
    if position != mapped.size:
        raise CorruptFile(f"{path}: {mapped.size - position} bytes follow the last storage")
    return records
