"""Certified provenance: a GGUF derived again from its source, and a statement about that which others can sign.

    from converter.certify import certify, check_attestation
    certificate = certify("llama-folder", "llama-q4_k_m.gguf")
    certificate.verdict, certificate.unproven

The functions are imported on first use.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__all__ = ["certify", "check_attestation"]

if TYPE_CHECKING:
    from converter.certify.certifier import certify
    from converter.certify.checking import check_attestation
else:
    _HOMES = {"certify": "certifier", "check_attestation": "checking"}

    def __getattr__(name: str) -> Any:
        if name in _HOMES:
            return getattr(importlib.import_module(f"converter.certify.{_HOMES[name]}"), name)
        raise AttributeError(f"module 'converter.certify' has no attribute {name!r}")
