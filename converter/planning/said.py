"""What a GGUF says of itself in its key/values, and a graph of the GGUF that it was written of."""

from __future__ import annotations

from collections import Counter

from converter.metadata import Metadata, Value
from converter.planning.draft import Draft
from converter.quant import feedback, imatrix
from converter.quant.mixtures import digest
from converter.quant.recipes import RECIPES
from converter.tensors.dtypes import dtype

QUANTIZATION_VERSION = 2
#: How hard the encoders tried, where that was more than the reference does; a key of ours.
EFFORT_KEY = "converter.effort"
#: Where types are others than the recipe in `general.file_type` gives: the digest of them all; a key of ours.
TYPES_KEY = "converter.recipe.types_sha256"
#: `general.file_type` of what only arrives packed, or has a recipe under another name.
_FILE_TYPES = {"MXFP4": 38, "NVFP4": 39}


def said(draft: Draft) -> Metadata:
    """Key/values with those that say what the file is; like the reference's quantizer's, they go to the end.

    What an earlier quantization said of its own importance matrix goes where there is another.
    """
    file_type = draft.recipe.file_type if draft.recipe else None
    metadata: Metadata = dict(draft.checkpoint.config)
    if file_type is None:
        old = getattr(metadata.get("general.file_type"), "value", None)
        file_type = old if type(old) is int and 0 <= old < 1 << 32 else _dense_file_type(draft)
    if draft.stays_packed:
        file_type = _packed_file_type(draft)
    own: Metadata = {
        "general.quantization_version": Value("u32", QUANTIZATION_VERSION),
        "general.file_type": Value("u32", file_type),
    }
    encodes = draft.recipe is not None and draft.recipe.quantized
    replaced = (
        *own,
        *(imatrix.KEYS if draft.matrix else ()),
        *((EFFORT_KEY, TYPES_KEY, *feedback.KEYS) if encodes else ()),
    )
    if encodes and (effort := draft.request.types.effort):
        own[EFFORT_KEY] = Value("u32", effort)
    if draft.mixed:
        own[TYPES_KEY] = Value("str", digest({name: choice.type for name, choice in draft.choices.items()}))
    if encodes and draft.feedback is not None:
        own |= draft.feedback.metadata()
    kept = {key: value for key, value in metadata.items() if key not in replaced}
    return kept | own | (draft.matrix.metadata() if draft.matrix else {})


def _packed_file_type(draft: Draft) -> int:
    """By the type that most bytes are packed in."""
    nbytes: Counter[str] = Counter()
    for step in draft.steps:
        nbytes[step.type] += step.bytes if dtype(step.type).quantized else 0
    name = max(nbytes, key=nbytes.__getitem__)
    return _FILE_TYPES[name] if name in _FILE_TYPES else RECIPES[name].file_type or 0


def _dense_file_type(draft: Draft) -> int:
    """By the largest tensor whose type its architecture leaves open."""
    forced = draft.mapped.types if draft.mapped else {}
    largest = max(
        (t.info for name, t in draft.intermediate.items() if len(t.info.shape) > 1 and name not in forced),
        key=lambda info: info.n_elements,
        default=None,
    )
    name = largest.dtype.name if largest is not None and largest.dtype.name in RECIPES else "F32"
    return RECIPES[name].file_type or 0
