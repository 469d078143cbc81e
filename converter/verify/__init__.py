"""The verifier: what a conversion did to every tensor, the metadata and the tokenizer, and whether that is right.

    from converter.verify import round_trip, verify
    result = verify("llama-folder", "llama-q4_k_m.gguf")
    result.passed, result.summary(), [str(finding) for finding in result.findings]

The two functions are imported on first use.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__all__ = ["round_trip", "verify"]

if TYPE_CHECKING:
    from converter.verify.verifier import round_trip, verify
else:

    def __getattr__(name: str) -> Any:
        if name in __all__:
            return getattr(importlib.import_module("converter.verify.verifier"), name)
        raise AttributeError(f"module 'converter.verify' has no attribute {name!r}")
