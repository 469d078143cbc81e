"""A model with all that belongs to it as runtimes and registries keep it on disk: named layers beside a manifest.

Ollama's model store (`OLLAMA_MODELS`), and an OCI image layout whose artefact follows the CNCF ModelPack specification,
version 1 (`application/vnd.cncf.model.manifest.v1+json`). No client of a registry is needed for either.
"""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from converter.address import is_elsewhere
from converter.checkpoint import Checkpoint
from converter.errors import OutputError, OutputExists, UnsupportedFeature, UsageError, about, short
from converter.events import Event
from converter.formats.hub import shard_of
from converter.formats.registry import open_checkpoint
from converter.formats.safetensors import INDEX_SUFFIX
from converter.housekeeping.blobs import Blob, Part, blob_of, blobs_of, is_there
from converter.housekeeping.ollama import Known, known
from converter.mapping.view import PARTS, view
from converter.metadata import number_of, text_of
from converter.pipeline import write
from converter.quant.recipes import RECIPES
from converter.request import PathLike, Source
from converter.storage.disk import Disk
from converter.storage.files import regular_size
from converter.storage.json import parse_json
from converter.storage.layout import FileLayout, Layout, whole_file
from converter.storage.slabs import ProgressCallback

_MAX_TEXT = 16 << 20  # bytes of a template, licence, system text or parameters
_NAME = re.compile(r"(?:(?:(?P<host>{0})/)?(?P<namespace>{0})/)?(?P<model>{0})(?::(?P<tag>{0}))?".format(
    r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,79}"
))  # fmt: skip
_SCALES = ((10**12, "T"), (10**9, "B"), (10**6, "M"), (10**3, "K"))


class Name(NamedTuple):
    """What a model is called in a store."""

    host: str
    namespace: str
    model: str
    tag: str

    def __str__(self) -> str:
        whole = f"{self.host}/{self.namespace}/{self.model}:{self.tag}"
        return whole.removeprefix(f"{_HOST}/").removeprefix(f"{_NAMESPACE}/")


_HOST, _NAMESPACE, _TAG = "registry.ollama.ai", "library", "latest"


@dataclass(frozen=True)
class Beside:
    """What goes into a package beside the model: files, but for the system text.

    `known` is what the model's own keys say in the place of what is not given.
    """

    projector: Path | None = None
    template: Path | None = None
    system: str | None = None
    parameters: Path | None = None
    licences: tuple[Path, ...] = ()
    known: Known | None = None


@dataclass(frozen=True)
class Packaged:
    """What was written: the manifest, its digest, the layers and which of the blobs were there already."""

    kind: str
    name: str
    manifest: Path
    digest: str
    layers: tuple[Blob, ...]
    kept: tuple[str, ...]
    nbytes: int
    events: tuple[Event, ...]
    seconds: float

    def as_dict(self) -> dict[str, Any]:
        """As JSON."""
        layers = [
            {"file": blob.part.name, **blob.descriptor(), "there": blob.sha256 in self.kept} for blob in self.layers
        ]
        return {
            "as": self.kind,
            "name": self.name,
            "manifest": str(self.manifest),
            "digest": self.digest,
            "layers": layers,
            "written_bytes": self.nbytes,
            "seconds": round(self.seconds, 3),
            "events": [event.as_dict() for event in self.events],
        }


def pack(
    source: PathLike | Source,
    target: PathLike,
    kind: str,
    *,
    name: str | None = None,
    beside: Beside = Beside(),
    force: bool = False,
    threads: int | None = None,
    progress: ProgressCallback | None = None,
) -> Packaged:
    """A model as a package; equal inputs make equal bytes.

    Args:
        source: a GGUF; for "oci" also a set of shards or a Hugging Face folder.
        target: the folder to be. Ollama's store may be there already: what it holds stays, blobs are shared.
        kind: one of KINDS.
        name: `NAME[:TAG]`, for Ollama `[HOST/][NAMESPACE/]NAME[:TAG]`; by default that of the file.
        beside: what goes with it.
        force: replace what has the same name.
        threads, progress: as for `convert`; files are read twice, for their digests and to be copied.

    Raises:
        UsageError: no such kind or name, or something that it has no place for.
        UnsupportedFeature: another format.
        OutputExists: what has the same name.
        ConverterError: as `convert`.
    """
    started, folder = time.monotonic(), Path(target)
    if kind not in KINDS:
        raise UsageError(f"{kind}: no such package; there are {', '.join(KINDS)}")
    with about(Source.of(source).path), open_checkpoint(source) as checkpoint:
        if is_elsewhere(checkpoint.path):
            raise UnsupportedFeature(f"{checkpoint.path}: lies elsewhere; download it first")
        called, made = _named(name or _usual_name(checkpoint.path)), KINDS[kind]
        beside, told = made.completed(checkpoint, beside)
        parts = made.parts(checkpoint, beside)
        for part in parts:
            if isinstance(part.content, Path):
                checkpoint.opened.add(part.content)
        blobs = blobs_of(parts, progress)
        config = made.config(checkpoint, called, blobs)
        manifest = made.manifest(config, blobs)
        entries = made.entries(folder, called, manifest)
        kept, files = _missing(folder, made, [config, *blobs, *([] if made.shared else [manifest])])
        if made.shared and os.path.lexists(entries[0].path) and not force:
            raise OutputExists(f"{entries[0].path}: {called} is there already; --force replaces it")
        layout, found = Layout((*entries, *files), folder), list[Event]()
        allowed = force or made.shared  # files of a store that has others
        disk = Disk(layout, replace=force)
        write(checkpoint, disk, force=allowed, threads=threads, progress=progress, claimed=found.extend)
        said = (*checkpoint.events, *told, *found)
    took, place = time.monotonic() - started, entries[0].path
    return Packaged(kind, str(called), place, manifest.digest, tuple(blobs), kept, layout.size, said, took)


def _missing(folder: Path, kind: Kind, blobs: Sequence[Blob]) -> tuple[tuple[str, ...], list[FileLayout]]:
    """Which blobs are there already, and the files of the others, each once."""
    places = {blob.sha256: (blob, folder / kind.blob(blob.sha256)) for blob in blobs}
    kept = tuple(name for name, (blob, place) in places.items() if kind.shared and is_there(place, blob))
    return kept, [blob.layout(place) for name, (blob, place) in places.items() if name not in kept]


def _json(value: Mapping[str, Any]) -> bytes:
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False).encode()


def _named(text: str) -> Name:
    """Raises: UsageError, no such name."""
    match = _NAME.fullmatch(text)
    if match is None:
        raise UsageError(f"--name {short(text)}: is not [HOST/][NAMESPACE/]NAME[:TAG] of letters, digits and ._-")
    return Name(match["host"] or _HOST, match["namespace"] or _NAMESPACE, match["model"], match["tag"] or _TAG)


def _usual_name(path: Path) -> str:
    """The name of a file or folder as one of a model may be."""
    shard = shard_of(path)
    stem = shard[0] if shard is not None else path.stem if path.is_file() else path.absolute().name
    return re.sub(r"[^a-z0-9._-]+", "-", stem.lower()).strip("-._")[:80] or "model"


def _text(path: Path) -> bytes:
    """A small file of text.

    Raises:
        UsageError: it is larger, or not UTF-8.
    """
    if regular_size(path) > _MAX_TEXT:
        raise UsageError(f"{path}: more than {_MAX_TEXT >> 20} MB are no text of this kind")
    try:
        data = path.read_bytes()
        data.decode("utf-8")
    except OSError as error:
        raise OutputError(f"{path}: {error.strerror or error}") from error
    except UnicodeDecodeError:
        raise UsageError(f"{path}: is not UTF-8 text") from None
    return data


def projector_of(path: Path) -> Path:
    """Raises: UsageError, it is no projector; ConverterError, it cannot be read."""
    with open_checkpoint(path) as checkpoint:
        if checkpoint.format != "gguf" or text_of(checkpoint.config, "general.architecture") != "clip":
            raise UsageError(f"{path}: is no projector (a GGUF that --mmproj wrote)")
    return path


def ollama_files(checkpoint: Checkpoint, holds: str) -> tuple[Path, ...]:
    """The files of a whole model in GGUF; `holds` begins what is said of anything else.

    Raises:
        UnsupportedFeature: it is something else.
    """
    path = checkpoint.path
    if checkpoint.format != "gguf":
        raise UnsupportedFeature(f"{path}: {holds} GGUF; `convert {path} model.gguf` makes one")
    if not view(checkpoint).whole:
        raise UnsupportedFeature(f"{path}: is one of {', '.join(PARTS)}; give the model, and a projector by --mmproj")
    return checkpoint.files


def _one_file(checkpoint: Checkpoint) -> Path:
    """The file of a whole model in GGUF.

    Raises:
        UnsupportedFeature: it is something else, or several files.
    """
    files = ollama_files(checkpoint, "Ollama's store holds")
    if len(files) > 1:
        path = checkpoint.path
        raise UnsupportedFeature(f"{path}: a set of shards; `convert merge {path} whole.gguf` joins it")
    return files[0]


def _quantization(checkpoint: Checkpoint) -> str:
    """What `general.file_type` calls it; "" where it says nothing that is known."""
    number = number_of(checkpoint.config, "general.file_type")
    return next((name for name, recipe in RECIPES.items() if recipe.file_type == number is not None), "")


# -------------------------------------------------------------------------------------------------- Ollama

_OLLAMA = "application/vnd.ollama.image."


def _ollama_parts(checkpoint: Checkpoint, beside: Beside) -> list[Part]:
    parts = [Part(f"{_OLLAMA}model", checkpoint.path.name, _one_file(checkpoint))]
    if beside.projector is not None:
        parts.append(Part(f"{_OLLAMA}projector", beside.projector.name, projector_of(beside.projector)))
    return [*parts, *(Part(f"{_OLLAMA}{kind}", name, data) for kind, name, data in _ollama_texts(beside))]


def _ollama_texts(beside: Beside) -> Iterator[tuple[str, str, bytes]]:
    """Kind of layer, name and content: what is given, and else what the model's keys say."""
    known = beside.known or Known()
    if beside.template is not None:
        yield "template", beside.template.name, _text(beside.template)
    elif known.template:
        yield "template", "template", known.template.encode()
    if system := beside.system or known.system:
        yield "system", "system", system.encode()
    if beside.parameters is not None:
        yield "params", beside.parameters.name, _json(parse_json(_text(beside.parameters), beside.parameters))
    elif known.parameters:
        yield "params", "params", _json(known.parameters)
    yield from (("license", path.name, _text(path)) for path in beside.licences)
    if known.licence and not beside.licences:
        yield "license", "license", known.licence.encode()


def _ollama_completed(checkpoint: Checkpoint, beside: Beside) -> tuple[Beside, tuple[Event, ...]]:
    if checkpoint.format != "gguf":  # which is refused later
        return beside, ()
    said = known(checkpoint.config, template=beside.template is None)
    return replace(beside, known=said), said.events


def _ollama_config(checkpoint: Checkpoint, name: Name, blobs: Sequence[Blob]) -> Blob:
    """What `ollama list` and `ollama show` say of the model, in the form of a container's config."""
    family = text_of(checkpoint.config, "general.architecture") or "unknown"
    families = [family, *("clip" for blob in blobs if blob.part.media_type == f"{_OLLAMA}projector")]
    count = checkpoint.n_elements
    said = {
        "model_format": "gguf",
        "model_family": family,
        "model_families": families,
        "model_type": _scaled(count, 2 if count < 10**9 else 1),
        "file_type": _quantization(checkpoint) or "unknown",
        "architecture": "amd64",  # of containers, which have to say one
        "os": "linux",
        "rootfs": {"type": "layers", "diff_ids": [blob.digest for blob in blobs]},
    }
    return blob_of("application/vnd.docker.container.image.v1+json", "config", _json(said))


def _ollama_manifest(config: Blob, blobs: Sequence[Blob]) -> Blob:
    kind = "application/vnd.docker.distribution.manifest.v2+json"
    layers = [blob.descriptor() for blob in blobs]
    said = {"schemaVersion": 2, "mediaType": kind, "config": config.descriptor(), "layers": layers}
    return blob_of(kind, "manifest", _json(said))


def _ollama_entries(folder: Path, name: Name, manifest: Blob) -> list[FileLayout]:
    return [manifest.layout(folder.joinpath("manifests", *name))]


def _scaled(count: int, digits: int) -> str:
    """1.1B, 137.00M."""
    size, letter = next(((size, letter) for size, letter in _SCALES if count >= size), (1, ""))
    return f"{count / size:.{digits}f}{letter}" if letter else str(count)


# ----------------------------------------------------------------------------------------------- ModelPack

_CNCF = "application/vnd.cncf.model."
_FILEPATH, _TITLE = "org.cncf.model.filepath", "org.opencontainers.image.title"
_OCI = "application/vnd.oci.image."
_DOCUMENTS = re.compile(r"(?:readme|licen[sc]e|notice|copying|use_policy)\b.*|.*\.(?:md|txt|pdf)", re.IGNORECASE)
_TOKENIZER_TEXTS = ("vocab.txt", "merges.txt")


def _oci_parts(checkpoint: Checkpoint, beside: Beside) -> list[Part]:
    """Weights, then what configures them, code and documents, each in the order of their names.

    Raises:
        UsageError: what the specification has no place for.
        UnsupportedFeature: another format.
    """
    if beside.system is not None or beside.parameters is not None:
        raise UsageError("--system and --params are Ollama's: a ModelPack has no place for them")
    if checkpoint.format not in ("gguf", "hf"):
        raise UnsupportedFeature(
            f"{checkpoint.path}: a {checkpoint.format} file; packages are made of GGUF and folders"
        )
    weights = {_within(checkpoint, path): path for path in checkpoint.files}
    small: dict[str, Path] = {}
    if checkpoint.format == "hf":
        small = {path.name: path for path in sorted(checkpoint.path.glob(f"*{INDEX_SUFFIX}"))}
        small |= dict(checkpoint.assets)
    if beside.projector is not None:
        weights[beside.projector.name] = projector_of(beside.projector)
    for path in (*([beside.template] if beside.template else []), *beside.licences):
        _text(path)
        small[path.name] = path
    if twice := weights.keys() & small.keys():
        raise UsageError(f"{min(twice)}: two files of this name; rename one")
    parts = [Part(f"{_CNCF}weight.v1.raw", name, weights[name]) for name in sorted(weights)]
    kinds = {name: _small_kind(name, name in {path.name for path in beside.licences}) for name in small}
    for kind in ("weight.config", "code", "doc"):
        parts += [Part(f"{_CNCF}{kind}.v1.raw", name, small[name]) for name in sorted(small) if kinds[name] == kind]
    return parts


def _within(checkpoint: Checkpoint, path: Path) -> str:
    """The name of a file in its folder."""
    inside = checkpoint.format == "hf" and path.is_relative_to(checkpoint.path)
    return path.relative_to(checkpoint.path).as_posix() if inside else path.name


def _small_kind(name: str, licence: bool) -> str:
    own = name.rpartition("/")[2]
    if licence or (_DOCUMENTS.fullmatch(own) and own not in _TOKENIZER_TEXTS):
        return "doc"
    return "code" if own.endswith((".py", ".ipynb", ".sh")) else "weight.config"


def _oci_config(checkpoint: Checkpoint, name: Name, blobs: Sequence[Blob]) -> Blob:
    """The model artefact's configuration; without a date, so that the same model makes the same bytes."""
    seen, gguf = view(checkpoint), checkpoint.format == "gguf"
    family = seen.name if gguf else checkpoint.config.get("model_type")
    licence = text_of(checkpoint.config, "general.license")
    quantized = checkpoint.config.get("quantization_config")
    method = quantized.get("quant_method") if isinstance(quantized, dict) else None
    descriptor = {"name": name.model, "version": name.tag, "family": family, "licenses": [licence] if licence else None}
    config = {
        "format": "gguf" if gguf else "safetensors",
        "paramSize": _scaled(checkpoint.n_elements, 1),
        "precision": None if gguf else _precision(checkpoint),
        "quantization": _quantization(checkpoint) if gguf else method,
    }
    said = {
        "descriptor": {key: value for key, value in descriptor.items() if value and isinstance(value, str | list)},
        "config": {key: value for key, value in config.items() if value and isinstance(value, str)},
        "modelfs": {"type": "layers", "diffIds": [blob.digest for blob in blobs]},
    }
    return blob_of(f"{_CNCF}config.v1+json", "config", _json(said))


def _precision(checkpoint: Checkpoint) -> str:
    """The type of most weights, as the specification spells types."""
    nbytes: dict[str, int] = {}
    for tensor in checkpoint.tensors.values():
        nbytes[tensor.info.dtype.name] = nbytes.get(tensor.info.dtype.name, 0) + tensor.info.nbytes
    name = max(nbytes, key=lambda each: nbytes[each], default="").lower()
    return {"f16": "fp16", "f32": "fp32", "f64": "fp64"}.get(name, name)


def _oci_manifest(config: Blob, blobs: Sequence[Blob]) -> Blob:
    kind = f"{_OCI}manifest.v1+json"
    layers = [blob.descriptor({_FILEPATH: blob.part.name, _TITLE: blob.part.name}) for blob in blobs]
    said = {
        "schemaVersion": 2,
        "mediaType": kind,
        "artifactType": f"{_CNCF}manifest.v1+json",
        "config": config.descriptor(),
        "layers": layers,
    }
    return blob_of(kind, "manifest", _json(said))


def _oci_entries(folder: Path, name: Name, manifest: Blob) -> list[FileLayout]:
    tagged = manifest.descriptor({"org.opencontainers.image.ref.name": name.tag})
    own = {"mediaType": tagged.pop("mediaType"), "artifactType": f"{_CNCF}manifest.v1+json", **tagged}
    index = {"schemaVersion": 2, "mediaType": f"{_OCI}index.v1+json", "manifests": [own]}
    return [
        whole_file(folder / "index.json", _json(index)),
        whole_file(folder / "oci-layout", _json({"imageLayoutVersion": "1.0.0"})),
    ]


class Kind(NamedTuple):
    """A way to keep a model.

    Attributes:
        parts: what goes in.
        config: the blob that says what the model is.
        manifest: the blob that lists all others.
        entries: files beside the blobs, the one that leads to the others first.
        blob: where a blob lies, from the folder on, by its digest.
        shared: whether the folder holds many models, and the manifest is no blob.
        completed: what goes in beside, with what the model's keys say, and what is to be said of it.
    """

    parts: Callable[[Checkpoint, Beside], list[Part]]
    config: Callable[[Checkpoint, Name, Sequence[Blob]], Blob]
    manifest: Callable[[Blob, Sequence[Blob]], Blob]
    entries: Callable[[Path, Name, Blob], list[FileLayout]]
    blob: Callable[[str], str]
    shared: bool
    completed: Callable[[Checkpoint, Beside], tuple[Beside, tuple[Event, ...]]]


KINDS = {
    "ollama": Kind(
        _ollama_parts, _ollama_config, _ollama_manifest, _ollama_entries, "blobs/sha256-{}".format, True,
        _ollama_completed,
    ),
    "oci": Kind(
        _oci_parts, _oci_config, _oci_manifest, _oci_entries, "blobs/sha256/{}".format, False,
        lambda _, beside: (beside, ()),
    ),
}  # fmt: skip
