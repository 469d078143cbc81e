"""Certify a GGUF: open both sides, derive every tensor again, hash what there is, judge.

certificate = certify("llama-folder/", "llama-q4_k_m.gguf")
certificate.verdict, [tensor.name for tensor in certificate.unproven]
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from converter import workers
from converter.address import shown
from converter.certify.arithmetic import judged
from converter.certify.derive import Derived, derive
from converter.certify.keys import implied
from converter.certify.mixture import mixture
from converter.certify.results import NOT, PROVEN, Certificate, Digest, TensorProof
from converter.certify.variants import Variant, variants
from converter.checkpoint import Checkpoint
from converter.errors import UnsupportedFeature, about
from converter.findings import Finding
from converter.formats.base import Format
from converter.formats.registry import source_format
from converter.housekeeping.hashes import Hashes, TensorHash, hashes
from converter.mapping.recovered import alike, open_model
from converter.mapping.view import HEADS, view
from converter.metadata import Value
from converter.request import PARTS, PathLike, Request, Source
from converter.storage.checksums import sha256
from converter.storage.slabs import ProgressCallback
from converter.telemetry import span
from converter.verify.metadata import compare_metadata
from converter.verify.pairing import IMATRIX_KEYS, Pair, Pairing, pair, said_effort

#: Beginnings of keys that only name the model, less those of them that decide what it does.
NAMES, DECIDES = "general.", ("general.architecture", "general.type", "general.sampling.")


def certify(
    source: PathLike | Source,
    target: PathLike | Source,
    request: Request | None = None,
    *,
    threads: int | None = None,
    progress: ProgressCallback | None = None,
) -> Certificate:
    """Derive every tensor of the GGUF `target` from `source` again, and say which of its bytes follow. Writes nothing.

    Args:
        source: what it is said to be made of; `target`: a GGUF, or the first of its shards.
        request: what it was made with beyond that (an importance matrix, an architecture, a name).
        threads: workers; the result does not depend on it.
        progress: called after every slab; returning False cancels.

    Raises:
        ConverterError: a side cannot be read, or the source cannot be mapped to GGUF.
    """
    started = time.monotonic()
    request = (request or Request()).replace(allow_requantize=True, tensor_types=(), effort=0)
    source, target = Source.of(source), Source.of(target)
    with about(source.path):
        left = open_model(source, request.model.arch)
    with span("certify"), left, about(target.path), open_model(target, request.model.arch) as right:
        if right.format != "gguf":
            raise UnsupportedFeature(
                f"{target.path}: is {right.format}; a GGUF can be certified, `convert verify` does more"
            )
        writer = source_format(target.path, target.format)
        hashed = hashes(target, threads=threads, progress=progress)
        run = _Run(*alike(left, right), writer, request, threads, progress)
        with ExitStack() as held:
            proofs, findings, way, calibration = run.prove(hashed, held)
        made_by = mixture(run.left, run.right, writer, request)
        subjects = digests({path.name: path for path in right.files}, "", threads)
        guides = {"importance matrix": request.types.imatrix, "calibration": calibration}
        materials = _digested_materials(source, left, guides, threads)
        # All of it was read while both sides were open: no file is another now than it was then.
        left.check()
        right.check()
    paths = shown(str(source.path)), shown(str(target.path))
    return Certificate(
        *paths, proofs, findings, way, made_by, hashed.root, hashed.metadata_root, subjects, materials, asked(request),
        time.monotonic() - started,
    )  # fmt: skip


@dataclass(frozen=True)
class _Run:
    """Both sides, and how they are compared."""

    left: Checkpoint
    right: Checkpoint
    writer: Format
    request: Request
    threads: int | None
    progress: ProgressCallback | None

    def prove(
        self, hashed: Hashes, held: ExitStack
    ) -> tuple[tuple[TensorProof, ...], tuple[Finding, ...], str, Path | None]:
        """Every tensor's proof, what else is part of the verdict, the way, and the calibration that was followed.

        `held` lets go of what it opened.
        """
        known: dict[tuple[str, bool], Pairing] = {}

        def planned(variant: Variant) -> Mapping[str, Pair]:
            key = variant.detour.via, variant.matrix
            if key not in known:
                changes: dict[str, Any] = {} if variant.matrix else {"imatrix": None}
                known[key] = pair(self.left, self.right, self.writer, self.request.replace(via=key[0], **changes))
                for close in known[key].closers:
                    held.callback(close)
            return {name: variant.of(own) for name, own in _pairs(known[key]).items()}

        given = self.request.types.imatrix is not None
        tried = list(variants(given, said_effort(self.right)))
        first = planned(tried[0])
        derived = derive(tried, planned, threads=self.threads, progress=self.progress)
        pairing = next(iter(known.values()))
        proofs = judged([self._proof(own, derived) for own in _as_hashed(hashed, self.right)])
        way = next((each.variant.name for each in derived.values()), "")
        if way and pairing.calibration is not None:
            way += " + calibration"
        return proofs, tuple(self._findings(pairing, first, proofs)), way, pairing.calibration

    def _proof(self, own: TensorHash, derived: Mapping[str, Derived]) -> TensorProof:
        found = derived.get(own.name)
        proof = TensorProof(own.name, own.dtype, own.shape, own.nbytes, own.sha256, NOT)
        if found is None:
            return replace(proof, reason="nothing in the source gives it")
        proof = replace(
            proof, differing=found.differing, sources=found.pair.reference.parts or (found.pair.reference.name,)
        )
        if found.same:
            return replace(proof, status=PROVEN)
        return replace(proof, reason=found.reason or found.differing.words(found.pair.candidate.info.row))

    def _findings(
        self, pairing: Pairing, paired: Mapping[str, Pair], proofs: Iterable[TensorProof]
    ) -> Iterator[Finding]:
        """Tensors that only one side has, keys, tokenizer and template; failures first."""
        apart = [each for each in pairing.findings if each.check != "type" and each.subject not in paired]
        views = view(self.left, self.request.model.arch), view(self.right, self.request.model.arch)
        keys = compare_metadata(pairing.expected, *views, self.request.model.pre)
        found = [*apart, *(self._stricter(each, pairing.expected) for each in keys), *self._unknown_matrix(proofs)]
        if not pairing.expected:
            message = "nothing that the source says gives its keys"
            found.append(
                Finding("metadata", self.right.path.name, message, hint="give it with its config and tokenizer")
            )
        yield from sorted(found, key=lambda finding: not finding.failed)

    def _stricter(self, finding: Finding, expected: Mapping[str, object]) -> Finding:
        """What a runtime obeys must follow from the source, be it another value or one too many.

        A key that is missing is none of it where that changes nothing.
        """
        key = finding.subject
        names_only = key.startswith(NAMES) and not key.startswith(DECIDES)
        missing, wanted = key not in self.right.config, expected.get(key)
        if missing and isinstance(wanted, Value) and implied(expected).get(key) == wanted.value:
            return replace(finding, failed=False, hint="a runtime takes the same; older converters do not write it")
        return finding if names_only or (missing and wanted is None) else replace(finding, failed=True)

    def _unknown_matrix(self, proofs: Iterable[TensorProof]) -> Iterator[Finding]:
        said = next((key for key in IMATRIX_KEYS if key in self.right.config), None)
        if said and self.request.types.imatrix is None and any(proof.status != PROVEN for proof in proofs):
            message = f"says that an importance matrix was used ({said}), and none was given"
            yield Finding("blocks", str(self.right.path.name), message, failed=False, hint="--imatrix FILE gives it")


def _pairs(pairing: Pairing) -> dict[str, Pair]:
    """By name; with an output that is stored apart though the source ties it to the embedding."""
    pairs = {each.name: each for each in pairing.pairs}
    for name, extra in pairing.left_over.items():
        twin = pairs.get(HEADS.get(name, ""))
        if twin is not None and extra.info.shape == twin.reference.info.shape:
            pairs[name] = replace(twin, name=name, candidate=extra)
    return pairs


def _as_hashed(hashed: Hashes, target: Checkpoint) -> Iterator[TensorHash]:
    """The hashes of tensors in the order of the file."""
    by_name = {each.name: each for each in hashed.tensors}
    return (by_name[name] for name in target.tensors)


def _digested_materials(
    source: Source, opened: Checkpoint, guides: Mapping[str, Path | None], threads: int | None
) -> tuple[Digest, ...]:
    """The files of the source, and those that its encoder followed, by what they are."""
    found = digests(materials_of(source, opened), "source", threads)
    for role, path in guides.items():
        found += () if path is None else digests({path.name: path}, role, threads)
    return found


def materials_of(source: Source, opened: Checkpoint) -> dict[str, Path]:
    """The files of the source by names that are the same wherever it lies."""
    root = source.path if source.path.is_dir() else source.path.parent
    found: dict[str, Path] = {}
    others = [*opened.files, *opened.assets.values()]
    for adapter, _ in opened.adapters:
        others += [*adapter.files, *adapter.assets.values()]
    if opened.base is not None:
        others += opened.base.assets.values()
    for path in dict.fromkeys(others):
        name = path.relative_to(root).as_posix() if path.is_relative_to(root) else f"{path.parent.name}/{path.name}"
        found[name] = path
    return found


def digests(paths: Mapping[str, Path], role: str, threads: int | None) -> tuple[Digest, ...]:
    """The hashes of files, by name; several are read at a time."""
    made: dict[str, str] = {}

    def add(name: str) -> None:
        made[name] = sha256(paths[name])

    workers.run(paths, add, threads)
    return tuple(Digest(name, made[name], role) for name in sorted(paths))


def asked(request: Request) -> dict[str, Any]:
    """What a request asks for beyond the defaults, by its field; of paths their names alone."""
    plain, found = Request(), dict[str, Any]()
    for part, kind in PARTS.items():
        for each in fields(kind):
            own = getattr(getattr(request, part), each.name)
            if own != getattr(getattr(plain, part), each.name):
                found[each.name] = _without_folders(own)
    found.pop("allow_requantize", None)
    return found


def _without_folders(value: Any) -> Any:
    if isinstance(value, tuple):
        return [_without_folders(each) for each in value]
    if isinstance(value, Path) or (isinstance(value, str) and value.endswith(".toml")):
        return Path(value).name
    return value
