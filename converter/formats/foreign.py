"""Folders that hold something else than a model: told by name, with what to do.

Sources: the layouts that PEFT, diffusers, huggingface_hub, Ollama and clients of OCI registries write.
"""

from __future__ import annotations

import re
import struct
from pathlib import Path
from typing import Any

from converter.errors import ConverterError, short
from converter.formats.hub import has_weights
from converter.storage.json import read_json

# A file or folder that tells, what then lies there, and what to do; the first that is there counts.
_FOLDERS: tuple[tuple[str, str, str], ...] = (
    (
        "adapter_config.json",
        "PEFT adapter{of}, which changes a base model and is none itself",
        "merge it while its base is converted: convert BASE OUT --lora FOLDER\n"
        "or make a GGUF adapter of it: convert FOLDER adapter.gguf --base BASE",
    ),
    ("model_index.json", "diffusers pipeline of several models", "give the folder of one of them"),
)


# Media types of layers that hold weights, and what a manifest may have at most.
_WEIGHTS = ("application/vnd.ollama.image.model", "application/vnd.cncf.model.weight.v1.raw")
_DIGEST = re.compile("sha256:([0-9a-f]{64})")
_MAX_MANIFEST = 4 << 20


def foreign_folder(path: Path) -> str | None:
    """What a folder without a model's weights is, where that is known; with what to do about it."""
    if not path.is_dir():
        return None
    if cached := _hub_cache(path):
        return cached
    if has_weights(path):
        return None
    if (path / "oci-layout").is_file() and (index := _json(path / "index.json")):
        entries = (_blob(path, each) for each in _list(index.get("manifests")))
        return next((says for entry in entries if entry and (says := packed(entry))), None)
    found = ((what, advice) for pattern, what, advice in _FOLDERS if any(path.glob(pattern)))
    what, advice = next(found, ("", ""))
    base = (_json(path / "adapter_config.json") or {}).get("base_model_name_or_path")
    of = f" of {short(base)[1:-1]}" if isinstance(base, str) and base else ""
    return f"is a {what.format(of=of)}\n{advice}" if what else None


def foreign_file(path: Path, start: bytes) -> str | None:
    """What a file that begins with `start` is beside a model, where that is known; with what to do about it."""
    if len(start) < 8:
        return None
    count, length = struct.unpack_from("<ii", start)  # of entries, and of the first one's name
    if not (0 < count < 1 << 20 and 0 < length < 256 and re.fullmatch(rb"[\w.-]+", start[8 : 8 + length])):
        return None
    return (
        f"is an importance matrix of llama-imatrix ({count} entries), which goes beside a model\n"
        f"convert MODEL OUT -q TYPE --imatrix {path.name}"
    )


def packed(path: Path) -> str | None:
    """What a manifest of Ollama's store or of an OCI artefact is, and where the model that it lists lies."""
    manifest = _json(path) or {}
    layers = [each for each in _list(manifest.get("layers")) if isinstance(each, dict)]
    weights = [each for each in layers if str(each.get("mediaType")).startswith(_WEIGHTS)]
    store = next((parent for parent in list(path.absolute().parents)[:8] if (parent / "blobs").is_dir()), None)
    blob = next((found for each in weights if store is not None and (found := _blob(store, each))), None)
    if not weights:
        return None
    return f"is a manifest of a packed model\n{'its file is not there' if blob is None else f'give its file: {blob}'}"


def _json(path: Path) -> dict[str, Any] | None:
    """A small JSON object; None for anything else."""
    try:
        return read_json(path, _MAX_MANIFEST) if path.is_file() else None
    except ConverterError:
        return None


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _blob(store: Path, descriptor: Any) -> Path | None:
    """The file of a blob, as Ollama or an OCI layout calls it, where it is there."""
    digest = _DIGEST.fullmatch(str(descriptor.get("digest"))) if isinstance(descriptor, dict) else None
    names = [] if digest is None else [f"sha256-{digest[1]}", f"sha256/{digest[1]}"]
    return next((blob for name in names if (blob := store / "blobs" / name).is_file()), None)


def _hub_cache(path: Path) -> str | None:
    """A Hugging Face cache: of one model, `models--ORG--NAME/snapshots/REVISION`, or of several."""
    if path.name == "snapshots" and path.parent.name.startswith("models--"):
        path = path.parent
    if path.name.startswith("models--") and (path / "snapshots").is_dir():
        snapshots = sorted(each.name for each in (path / "snapshots").iterdir() if each.is_dir())
        if not snapshots:
            return "is a Hugging Face cache folder without a snapshot; download the model again"
        main = path / "refs" / "main"
        revision = main.read_text("utf-8", "replace").strip() if main.is_file() else ""
        chosen = revision if revision in snapshots else snapshots[0]
        more = f" (of {len(snapshots)})" if len(snapshots) > 1 else ""
        return f"is a Hugging Face cache folder\ngive a snapshot in it{more}: {path / 'snapshots' / chosen}"
    if models := sorted(path.glob("models--*/snapshots")):
        return f"is a Hugging Face cache of models, not a model\ngive a snapshot in it, such as {models[0]}/REVISION"
    return None


_HUB = re.compile(r"(hf://|https?://(www\.)?(huggingface\.co|hf\.co)/)|[\w.-]+/[\w.-]+$", re.IGNORECASE)


def hub_name(path: Path) -> str | None:
    """What to do with a path that is not there and looks like a name on the Hugging Face Hub, or was an address."""
    if path.is_absolute() or path.exists() or not (match := _HUB.match(path.as_posix().replace(":/", "://", 1))):
        return None
    if match.group(1) is None and path.parent.exists():  # a folder of that name is here: it is a path
        return None
    return f"no such file or folder; a model on the Hugging Face Hub is given as hf://{'/'.join(path.parts[-2:])}"
