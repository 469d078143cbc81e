"""What `convert formats`, `quants` and `architectures` print; docs/formats.md has its table from here, too."""

from __future__ import annotations

from typing import Any

from converter.architectures import architectures, plugged
from converter.formats.registry import formats
from converter.quant.recipes import GRAPH_RECIPES, RECIPES
from converter.tensors.dtypes import DTYPES


def format_rows() -> list[dict[str, Any]]:
    """One row per format."""
    return [
        {
            "format": each.name,
            "extensions": " ".join(each.extensions) or "folder",
            "read": each.open is not None,
            "write": each.layout is not None,
            "names": each.dialect or "as they are",
            "quantized": any(DTYPES[name].quantized for name in each.dtypes),
            "free_metadata": each.layout is not None and each.free_metadata is None,
            "description": each.description,
        }
        for each in formats().values()
    ]


def format_markdown() -> str:
    """The table of formats for docs/formats.md."""
    rows = format_rows()
    lines = [f"| {' | '.join(rows[0])} |", "|---" * len(rows[0]) + "|"]
    for row in rows:
        cells = [("yes" if value else "") if isinstance(value, bool) else str(value) for value in row.values()]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def quant_rows() -> list[dict[str, Any]]:
    """One row per recipe, from the widest type to the narrowest."""
    rows = [
        {
            "quant": recipe.name,
            "file_type": recipe.file_type,
            "type": recipe.base,
            "bits": DTYPES[recipe.base].bits_per_weight,
            "mixture": bool(recipe.rows),
            "imatrix": recipe.base in recipe.needs_imatrix,
        }
        for recipe in (*RECIPES.values(), *GRAPH_RECIPES.values())
        if recipe.base is not None
    ]
    return sorted(rows, key=lambda row: -row["bits"])


def architecture_rows() -> list[dict[str, Any]]:
    """One row per architecture."""
    return [
        {
            "architecture": architecture.gguf,
            "classes": [hf.name for hf in architecture.hf],
            "tensors": len(architecture.tensors),
        }
        for architecture in (*architectures().values(), *plugged().values())
    ]
