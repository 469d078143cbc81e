"""What all tests of models elsewhere have: nobody's settings, short pauses, and nothing left behind."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.models import build_model

from converter import address
from converter.remote import attempts, azure, blocks, google, mirror, multipart, s3, stores


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """No token, no settings and no proxy of whoever runs the tests; pauses are short, and nothing is left behind."""
    for name in list(os.environ):
        if name.startswith(("HF_", "AWS_", "GOOGLE_", "AZURE_")) or name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(attempts, "FIRST", 0.001)
    monkeypatch.setattr(multipart, "MOMENT", 0.2)
    monkeypatch.setattr(blocks, "_kept", blocks._Kept())
    for kept in (stores.store_of, s3.client, google.client, google.credentials, azure.service):
        kept.cache_clear()
    yield
    assert not mirror._held and not mirror._reached
    assert not address.base().exists() or not any(address.base().iterdir())


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small Llama, as a folder of Hugging Face."""
    root = tmp_path_factory.mktemp("model")
    build_model("llama3-256", root)
    return root / "llama3-256"
