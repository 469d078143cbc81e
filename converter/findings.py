"""One fact that a person should know about a model, from whoever looked: check, verify, diff or a runtime."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong, or worth knowing.

    `check` is a row of `CHECKS`; `subject` names the tensor, the metadata key or the metric; `failed` decides about the
    exit code; `hint` says what it looks like and what to do.
    """

    check: str
    subject: str
    message: str
    failed: bool = True
    hint: str = ""

    def __str__(self) -> str:
        return f"{self.subject}: {self.message}" + (f" ({self.hint})" if self.hint else "")

    def as_dict(self) -> dict[str, Any]:
        return dict(vars(self))


#: Every check there is, and what it looks at. A finding's `check` is one of these names.
CHECKS = {
    "source": "another model than what it should have been made of",
    "missing": "a tensor that the target should have and has not",
    "extra": "a tensor that the target has and should not have",
    "shape": "a tensor of another shape than the source gives it",
    "type": "a tensor in another type than the file's recipe gives it",
    "tied": "tied weights stored apart that differ, or an own output that was left out",
    "values": "values further from the source than a correct encoder gets",
    "calibration": "made with a calibration that is not here: errors are measured, bytes are not proven",
    "blocks": "blocks that differ from what the encoder writes, in a file that it wrote",
    "nonfinite": "NaN or infinity that the source does not have",
    "zero": "a tensor that is all zero and is not so in the source",
    "metadata": "a key whose value does not follow from the source",
    "tokenizer": "a vocabulary, merges or special tokens that do not follow from the source",
    "probe": "a text that the two tokenizers cut differently",
    "template": "another chat template",
    "behaviour": "what the models do with the same text",
    "threshold": "a number beyond a threshold that was given",
    "baseline": "a number worse than in the report of an earlier run",
    "attestation": "another file, tensor or source than the attestation speaks of",
    "structure": "the file itself: sizes, offsets, alignment, scales",
}
