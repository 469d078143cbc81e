"""Certificates as in-toto statements (v1) with a provenance predicate of SLSA (v1), written and read.

The same certificate gives the same bytes: keys are sorted, names have no folders, no time is in it unless asked for.
docs/certify.md says what each field holds. Sources: in-toto/attestation spec/v1, slsa.dev/spec/v1.0/provenance.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from converter import __version__
from converter.certify.results import VERDICTS, Certificate, Digest, TensorProof, Verdict
from converter.errors import CorruptFile, OutputExists, UnsupportedFeature, short
from converter.housekeeping.hashes import TensorHash, root
from converter.storage import output
from converter.storage.json import finite, parse_json, read_json
from converter.storage.layout import Layout, whole_file

STATEMENT = "https://in-toto.io/Statement/v1"
PREDICATE = "https://slsa.dev/provenance/v1"
#: What the predicate means by its parameters; the last part is its version. No host is behind the name.
BUILD_TYPE = "https://model-converter.invalid/certify/v1"
BUILDER = "https://model-converter.invalid/converter"
#: The predicate of OpenSSF model signing: hashes of a model's files, nothing of where they come from.
MANIFEST = "https://model_signing/signature/v1.0"
#: Media type of statements in envelopes (DSSE) of cosign and the like.
PAYLOAD = "application/vnd.in-toto+json"
_BUILD_TYPES = BUILD_TYPE.rpartition("/")[0] + "/"
_SHA256 = re.compile(r"[0-9a-f]{64}")
_MAX_BYTES = 256 << 20


# ------------------------------------------------------------------------------------------------ written


def statement(certificate: Certificate, finished: str | None = None) -> dict[str, Any]:
    """The statement of a certificate.

    Args:
        finished: when it was made (UTC, RFC 3339); left out by default, so that all who derive a file get the same.
    """
    definition = {
        "buildType": BUILD_TYPE,
        "externalParameters": {"request": dict(certificate.request), "source": Path(certificate.source).name},
        "internalParameters": {"mixture": certificate.mixture, "way": certificate.way},
        "resolvedDependencies": [_resource(each) for each in certificate.materials],
    }
    details: dict[str, Any] = {
        "builder": {"id": BUILDER, "version": {"model-converter": __version__}},
        "byproducts": _byproducts(certificate),
    }
    if finished is not None:
        details["metadata"] = {"finishedOn": finished}
    made = {
        "_type": STATEMENT,
        "subject": [_resource(each) for each in certificate.subjects],
        "predicateType": PREDICATE,
        "predicate": {"buildDefinition": definition, "runDetails": details},
    }
    as_json: dict[str, Any] = finite(made)
    return as_json


def _resource(digest: Digest) -> dict[str, Any]:
    own: dict[str, Any] = {"name": digest.name, "digest": {"sha256": digest.sha256}}
    return own | ({"annotations": {"role": digest.role}} if digest.role else {})


def _byproducts(certificate: Certificate) -> list[dict[str, Any]]:
    tensors = [_hash_of(each).as_dict() for each in certificate.tensors]
    hashed = {"algorithm": "sha256", "root": certificate.root, "metadata_root": certificate.metadata_root}
    differing = [{"name": each.name} | (each.differing_as_dict() or {}) for each in certificate.unproven]
    said = [{"key": each.subject, "what": each.message} for each in certificate.findings]
    return [
        {"name": "verdict", "annotations": {"verdict": certificate.verdict, "counts": certificate.summary()}},
        {"name": "hashes", "annotations": hashed | {"tensors": tensors}},
        {"name": "differences", "annotations": {"tensors": differing, "keys": said}},
    ]


def _hash_of(proof: TensorProof) -> TensorHash:
    return TensorHash(proof.name, proof.type, proof.shape, proof.nbytes, proof.sha256)


def as_bytes(made: Mapping[str, Any]) -> bytes:
    """A statement as it is written, and signed."""
    text = json.dumps(made, indent=1, sort_keys=True, ensure_ascii=False, allow_nan=False)
    return (text + "\n").encode("utf-8", "backslashreplace")


def check_writable(path: Path, force: bool = False) -> None:
    """Refuse, before the work begins, to replace what is there.

    Raises:
        OutputExists: something is there, and `force` is not given.
    """
    if path.is_dir() or (path.exists() and not force):
        raise OutputExists(f"{path}: exists; --force replaces it" if path.is_file() else f"{path}: is no file")


def write(certificate: Certificate, path: Path, *, finished: str | None = None) -> None:
    """Write the statement of a certificate.

    Raises:
        OutputError: it cannot be written.
    """
    output.write(Layout((whole_file(path, as_bytes(statement(certificate, finished))),)), threads=1)


# --------------------------------------------------------------------------------------------------- read


@dataclass(frozen=True)
class Attested:
    """What an attestation says: a statement of ours, whose parts agree with each other.

    `enveloped` says that it came in an envelope, with signatures that nobody here looked at.
    """

    path: Path
    verdict: Verdict
    subjects: tuple[Digest, ...]
    materials: tuple[Digest, ...]
    tensors: tuple[TensorHash, ...]
    root: str
    metadata_root: str
    version: str
    unproven: tuple[str, ...]
    enveloped: bool = False


@dataclass(frozen=True)
class Manifest:
    """What a signature of OpenSSF model signing is over: the files of a model, by names in its folder.

    A model that is one file has the name `.`; `enveloped` as of `Attested`.
    """

    path: Path
    files: tuple[Digest, ...]
    enveloped: bool = False


def read(path: Path) -> Attested | Manifest:
    """Read an attestation; one in an envelope (DSSE, or a bundle of sigstore with one) as well.

    Raises:
        CorruptFile: no such file, or its hashes contradict each other.
        UnsupportedFeature: another kind of statement or predicate, or of another version.
        OutputError: it cannot be read.
    """
    said = read_json(path, _MAX_BYTES)
    inner = _unwrapped(path, said)
    understood = _manifest if inner.get("predicateType") == MANIFEST else _attested
    try:
        return understood(path, inner, enveloped=inner is not said)
    except (TypeError, KeyError, ValueError, AttributeError) as error:
        raise CorruptFile(f"{path}: is no attestation of `convert certify` ({short(error)})") from None


def _unwrapped(path: Path, said: dict[str, Any]) -> dict[str, Any]:
    envelope = said.get("dsseEnvelope", said)
    if not isinstance(envelope, dict) or "payload" not in envelope:
        return said
    if envelope.get("payloadType") != PAYLOAD:
        raise UnsupportedFeature(f"{path}: an envelope of {short(envelope.get('payloadType'))}; {PAYLOAD} is read")
    try:
        data = base64.b64decode(envelope["payload"], validate=True)
    except (TypeError, ValueError, binascii.Error):
        raise CorruptFile(f"{path}: the payload of its envelope is not base64") from None
    return parse_json(data, path)


def _attested(path: Path, said: dict[str, Any], *, enveloped: bool) -> Attested:
    _check_kind(path, said)
    definition, details = said["predicate"]["buildDefinition"], said["predicate"]["runDetails"]
    parts = {each["name"]: each["annotations"] for each in details["byproducts"]}
    hashed, verdict = parts["hashes"], parts["verdict"]["verdict"]
    if verdict not in VERDICTS:
        raise ValueError(f"verdict {short(verdict)}")
    tensors = tuple(TensorHash.from_dict(each) for each in hashed["tensors"])
    if hashed["root"] != root(each.leaf for each in sorted(tensors, key=lambda tensor: tensor.name.encode())):
        raise CorruptFile(f"{path}: its root is not that of its tensors; it was changed")
    if _SHA256.fullmatch(hashed["metadata_root"]) is None:
        raise ValueError("metadata_root is no SHA-256")
    subjects, materials = (tuple(map(_digest, each)) for each in (said["subject"], definition["resolvedDependencies"]))
    if not subjects:
        raise ValueError("no subject")
    unproven = tuple(str(each["name"]) for each in parts["differences"]["tensors"])
    version = str(details["builder"]["version"]["model-converter"])
    return Attested(
        path, verdict, subjects, materials, tensors, hashed["root"], hashed["metadata_root"], version, unproven,
        enveloped,
    )  # fmt: skip


def _manifest(path: Path, said: dict[str, Any], *, enveloped: bool) -> Manifest:
    """Source: model_signing 1.1, `Payload`: the subject's digest is that of all digests one after the other."""
    _check_type(path, said, MANIFEST)
    predicate = said["predicate"]
    method, resources = predicate["serialization"]["method"], predicate["resources"]
    other = next((each["algorithm"] for each in resources if each["algorithm"] != "sha256"), None)
    if method != "files" or other is not None:
        what = f"by {short(other)}" if method == "files" else f"of {short(method)}"
        raise UnsupportedFeature(f"{path}: hashes {what}; SHA-256 of whole files is read")
    files = tuple(_digest({"name": each["name"], "digest": {"sha256": each["digest"]}}) for each in resources)
    (subject,) = said["subject"]
    whole = hashlib.sha256(b"".join(bytes.fromhex(each.sha256) for each in files)).hexdigest()
    if subject["digest"]["sha256"] != whole:
        raise CorruptFile(f"{path}: its digest is not that of its files; it was changed")
    return Manifest(path, files, enveloped)


def _check_type(path: Path, said: dict[str, Any], predicate: str) -> None:
    for key, known in (("_type", STATEMENT), ("predicateType", predicate)):
        if said[key] != known:
            raise UnsupportedFeature(f"{path}: {key} is {short(said[key])}; {known} is read")


def _check_kind(path: Path, said: dict[str, Any]) -> None:
    _check_type(path, said, PREDICATE)
    own = said["predicate"]["buildDefinition"]["buildType"]
    if own != BUILD_TYPE:
        ours = isinstance(own, str) and own.startswith(_BUILD_TYPES)
        why = "a newer version wrote it?" if ours else "another builder's, which says nothing about tensors"
        raise UnsupportedFeature(f"{path}: buildType is {short(own)}; {BUILD_TYPE} is read ({why})")


def _digest(said: Mapping[str, Any]) -> Digest:
    name, sha256 = said["name"], said["digest"]["sha256"]
    if not isinstance(name, str) or _SHA256.fullmatch(sha256) is None:
        raise ValueError("a resource has a name and a SHA-256")
    return Digest(name, sha256, str(said.get("annotations", {}).get("role", "")))
