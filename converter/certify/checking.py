"""Whether a file is the one that an attestation speaks of: nothing is derived again, hashes are compared."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from pathlib import Path

from converter.certify import attestation
from converter.certify.attestation import Attested
from converter.certify.certifier import digests, materials_of
from converter.certify.results import VERDICTS, Digest
from converter.errors import about
from converter.findings import Finding
from converter.formats.registry import open_checkpoint
from converter.housekeeping.hashes import Hashes, hashes
from converter.mapping.recovered import open_model
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
        target: the GGUF, or the first of its shards.
        attested: the attestation.
        source: what the file is said to be made of; its files must be those that are named there.
        threads, progress: as elsewhere.

    Raises:
        CorruptFile, UnsupportedFeature: as `attestation.read`.
        ConverterError: a side cannot be read.
    """
    started = time.monotonic()
    said, target = attestation.read(attested), Source.of(target)
    with about(target.path), open_checkpoint(target) as opened:
        files = opened.files
    found = list(_files(said.subjects, digests({path.name: path for path in files}, "", threads), "file"))
    hashed = hashes(target, threads=threads, progress=progress)
    found += _tensors(said, hashed)
    if source is not None:
        source = Source.of(source)
        with about(source.path), open_model(source) as left:
            paths = materials_of(source, left)
        of_source = [each for each in said.materials if each.role == "source"]
        found += _files(of_source, digests(paths, "source", threads), "source")
        files += tuple(paths.values())
    found += _notes(said)
    found.sort(key=lambda finding: not finding.failed)
    return Verification(
        str(attested), str(target.path), (), tuple(found), None, time.monotonic() - started, files=files,
        attested=True,
    )  # fmt: skip


def _files(said: Iterable[Digest], there: Iterable[Digest], what: str) -> Iterator[Finding]:
    """Files by what is in them; one may have another name than it had."""
    named = {each.name: each.sha256 for each in said}
    names = {sha256: name for name, sha256 in named.items()}
    seen = set[str]()
    for each in there:
        if each.name in named:
            seen.add(each.name)
            if named[each.name] != each.sha256:
                yield Finding(CHECK, each.name, f"is not the {what} that the attestation names: other bytes")
        elif each.sha256 in names:
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


def _notes(said: Attested) -> Iterator[Finding]:
    """What the attestation itself leaves open."""
    if said.verdict != VERDICTS[0]:
        named = f": {', '.join(said.unproven[:3])}" if said.unproven else ""
        message = f"says {said.verdict} ({counted(len(said.unproven), 'tensor')}{named})"
        yield Finding(CHECK, said.path.name, message, failed=said.verdict == VERDICTS[-1])
    if said.enveloped:
        message = "is signed; nothing here looked at the signature"
        yield Finding(CHECK, said.path.name, message, failed=False, hint="the tool that signed it verifies it")
