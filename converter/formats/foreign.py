"""Folders that hold something else than a model: told by name, with what to do.

Sources: the layouts that PEFT, diffusers and huggingface_hub write.
"""

from __future__ import annotations

import re
from pathlib import Path

from converter.formats.hub import has_weights

# A file or folder that tells, what then lies there, and what to do; the first that is there counts.
_FOLDERS: tuple[tuple[str, str, str], ...] = (
    (
        "adapter_config.json",
        "PEFT adapter, which changes a base model and is none itself",
        "merge it while its base is converted: convert BASE OUT --lora FOLDER\n"
        "or make a GGUF adapter of it: convert FOLDER adapter.gguf --base BASE",
    ),
    ("model_index.json", "diffusers pipeline of several models", "give the folder of one of them"),
)


def foreign_folder(path: Path) -> str | None:
    """What a folder without a model's weights is, where that is known; with what to do about it."""
    if not path.is_dir():
        return None
    if cached := _hub_cache(path):
        return cached
    if has_weights(path):
        return None
    found = (f"is a {what}\n{advice}" for pattern, what, advice in _FOLDERS if any(path.glob(pattern)))
    return next(found, None)


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
