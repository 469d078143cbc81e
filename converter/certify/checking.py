"""Whether a file is the one that an attestation speaks of: nothing is derived again, hashes are compared."""

from __future__ import annotations

import re
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath, PureWindowsPath

from converter.certify import attestation
from converter.certify.attestation import Attested, Manifest
from converter.certify.certifier import digests, materials_of
from converter.certify.results import NOT, PROVEN, Digest
from converter.errors import UsageError, about
from converter.findings import Finding
from converter.formats.registry import open_checkpoint
from converter.housekeeping.hashes import Hashes, hashes
from converter.mapping.recovered import open_model
from converter.remote.mirror import keeping
from converter.request import PathLike, Source
from converter.storage.slabs import ProgressCallback
from converter.text import counted
from converter.verify.results import Verification

CHECK = "attestation"


def check_attestation(
    target: PathLike | Source,
    attested: Path,
    source: PathLike | Source | None = None,
    *,
    threads: int | None = None,
    progress: ProgressCallback | None = None,
) -> Verification:
    """Compare a GGUF, and its source where that is given, with what an attestation says of them.

    Who signed the attestation is not looked at: the tool that signed it says that.

    Args:
        target: the GGUF, or the first of its shards; of a manifest of OpenSSF model signing any model.
        attested: the attestation.
        source: what the file is said to be made of; its files must be those that are named there.
        threads, progress: as elsewhere.

    Raises:
        CorruptFile, UnsupportedFeature: as `attestation.read`.
        ConverterError: a side cannot be read.
    """
    started = time.monotonic()
    said, target = attestation.read(attested), Source.of(target)
    with keeping():
        with about(target.path), open_checkpoint(target) as opened:
            files, there = opened.files, materials_of(target, opened)
        if isinstance(said, Manifest):
            if source is not None:
                raise UsageError(f"{attested}: names the files of one model; give that alone")
            files = tuple(there.values())
            found = [*_listed(said, target.path, there, threads), *_notes(said)]
        else:
            found, read = _compared(said, target, files, source, threads, progress)
            files += read
    found.sort(key=lambda finding: not finding.failed)
    return Verification(
        str(attested), str(target.path), (), tuple(found), None, time.monotonic() - started, files=files,
        attested=True,
    )  # fmt: skip


def _compared(
    said: Attested,
    target: Source,
    files: Sequence[Path],
    source: PathLike | Source | None,
    threads: int | None,
    progress: ProgressCallback | None,
) -> tuple[list[Finding], tuple[Path, ...]]:
    """A GGUF against a statement of ours; and the files of the source, where that is given."""
    found = list(_files(said.subjects, digests({path.name: path for path in files}, "", threads), "file", renamed=True))
    hashed = hashes(target, threads=threads, progress=progress)
    found += _tensors(said, hashed)
    if source is not None:
        source = Source.of(source)
        with about(source.path), open_model(source) as left:
            paths = materials_of(source, left)
        of_source = [each for each in said.materials if each.role == "source"]
        found += _files(of_source, digests(paths, "source", threads), "source")
        return found + list(_notes(said)), tuple(paths.values())
    return found + list(_notes(said)), ()


def _listed(said: Manifest, path: Path, there: Mapping[str, Path], threads: int | None) -> Iterator[Finding]:
    """The files of a model's folder against a manifest; those that it lists and the model has no use for, too."""
    folder = path if path.is_dir() else path.parent
    if [each.name for each in said.files] == ["."]:
        wanted = [Digest(path.name, said.files[0].sha256)]
    else:
        wanted = list(said.files)
    inside = {each.name: folder / each.name for each in wanted if _is_inside(each.name)}
    paths = {name: own for name, own in inside.items() if own.is_file()} | dict(there)
    yield from _files(wanted, digests(paths, "", threads), "file")


def _is_inside(name: str) -> bool:
    """Whether a name leads nowhere but into its folder."""
    return not (PureWindowsPath(name).anchor or PurePosixPath(name).anchor or ".." in re.split(r"[/\\]", name))


def _files(said: Iterable[Digest], there: Iterable[Digest], what: str, *, renamed: bool = False) -> Iterator[Finding]:
    """Files by name and by what is in them; `renamed` says that a file may have another name than it had."""
    named = {each.name: each.sha256 for each in said}
    names = {sha256: name for name, sha256 in named.items()}
    seen = set[str]()
    for each in there:
        if each.name in named:
            seen.add(each.name)
            if named[each.name] != each.sha256:
                yield Finding(CHECK, each.name, f"is not the {what} that the attestation names: other bytes")
        elif renamed and each.sha256 in names:
            seen.add(names[each.sha256])
            yield Finding(CHECK, each.name, f"is called {names[each.sha256]} there", failed=False)
        else:
            yield Finding(CHECK, each.name, f"is no {what} that the attestation names")
    for name in sorted(named.keys() - seen):
        yield Finding(CHECK, name, f"is a {what} that the attestation names, and is not there")


def _tensors(said: Attested, hashed: Hashes) -> Iterator[Finding]:
    wanted, got = ({each.name: each for each in side} for side in (said.tensors, hashed.tensors))
    for name in dict.fromkeys((*wanted, *got)):
        if name not in got:
            yield Finding(CHECK, name, "is not there")
        elif name not in wanted:
            yield Finding(CHECK, name, "is no tensor that the attestation names")
        elif wanted[name].leaf != got[name].leaf:
            yield Finding(CHECK, name, "is not the tensor that the attestation names")
    for name, one, other in (
        ("root", said.root, hashed.root), ("metadata", said.metadata_root, hashed.metadata_root)
    ):  # fmt: skip
        if one != other:
            yield Finding(CHECK, name, "has another hash than the attestation says")


def _notes(said: Attested | Manifest) -> Iterator[Finding]:
    """What the attestation itself leaves open."""
    if isinstance(said, Attested) and said.verdict != PROVEN:
        named = f": {', '.join(said.unproven[:3])}" if said.unproven else ""
        message = f"says {said.verdict} ({counted(len(said.unproven), 'tensor')}{named})"
        yield Finding(CHECK, said.path.name, message, failed=said.verdict == NOT)
    if said.enveloped:
        message = "is signed; nothing here looked at the signature"
        yield Finding(CHECK, said.path.name, message, failed=False, hint="the tool that signed it verifies it")
