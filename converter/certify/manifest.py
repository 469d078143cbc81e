"""Manifests of OpenSSF model signing: the files of a model's folder as the statement that its signatures are over.

Source: model_signing 1.1, `Payload`: resources in the order of their paths' parts, the subject's digest that of all
digests one after the other. Nothing is signed here; docs/housekeeping.md has the commands.
"""

from __future__ import annotations

import hashlib
from pathlib import Path, PurePosixPath
from typing import Any

from converter.certify import attestation
from converter.certify.attestation import MANIFEST, STATEMENT
from converter.certify.certifier import digests
from converter.errors import UsageError
from converter.storage import output
from converter.storage.files import refuse_elsewhere, regular_size
from converter.storage.layout import Layout, whole_file

#: What that library leaves out by default: these of the folder's top, and all that is in them.
IGNORED = (".git", ".gitignore", ".github", ".gitattributes")


def manifest(path: Path, *, threads: int | None = None) -> dict[str, Any]:
    """The statement about a model: a folder with all files below it, or one file.

    Raises:
        UsageError: a link lies in the folder, or nothing does; OutputError: something that is no file, or elsewhere.
    """
    refuse_elsewhere(path, "a manifest")
    paths = _below(path) if path.is_dir() else {".": path}
    for each in paths.values():
        regular_size(each)
    hashed = {each.name: each.sha256 for each in digests(paths, "", threads)}
    names = sorted(hashed, key=lambda name: PurePosixPath(name).parts)
    whole = hashlib.sha256(b"".join(bytes.fromhex(hashed[name]) for name in names)).hexdigest()
    serialization = {"method": "files", "hash_type": "sha256", "allow_symlinks": False, "ignore_paths": list(IGNORED)}
    resources = [{"name": name, "algorithm": "sha256", "digest": hashed[name]} for name in names]
    return {
        "_type": STATEMENT,
        "subject": [{"name": path.resolve().name, "digest": {"sha256": whole}}],
        "predicateType": MANIFEST,
        "predicate": {"serialization": serialization, "resources": resources},
    }


def check_writable(path: Path, target: Path, force: bool = False) -> None:
    """Refuse, before the work begins, what could not be written, or would be one of the files that it lists.

    Raises:
        UsageError, OutputExists: as said.
    """
    if target.resolve().is_relative_to(path.resolve()):
        raise UsageError(f"--manifest {target}: lies in what it would list; write it beside")
    attestation.check_writable(target, force)


def write(path: Path, target: Path, *, threads: int | None = None) -> None:
    """Write the manifest of a model.

    Raises:
        OutputError: it cannot be written; UsageError: as `manifest`.
    """
    content = attestation.as_bytes(manifest(path, threads=threads))
    output.write(Layout((whole_file(target, content),)), threads=1)


def _below(folder: Path) -> dict[str, Path]:
    """All files below a folder, by their names in it."""
    found: dict[str, Path] = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder)
        if name.parts[0] in IGNORED:
            continue
        if path.is_symlink():
            raise UsageError(f"{path}: is a link, and a manifest is of files; put the file in its place")
        if not path.is_dir():
            found[name.as_posix()] = path
    if not found:
        raise UsageError(f"{folder}: there is no file in it")
    return found
