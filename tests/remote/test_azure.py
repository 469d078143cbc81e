"""Uploads in parts to Azure: what is found of credentials, what blocks are called, and what `clean` says of them."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from support.hosts import Host, named, serving

from converter.cli.main import main
from converter.errors import MissingDependency, OutputError
from converter.remote import azure, multipart
from converter.remote.objects import StoredObject

pytest.importorskip("azure.storage.blob")
OBJECT = StoredObject("az://bucket/a/model.gguf", "az", "bucket", "a/model.gguf")
SIGNATURE = "NobodysSignature%3D"
DATA = b"bytes" * 100


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Host]:
    (tmp_path / "stored/bucket").mkdir(parents=True)
    with serving(Host(tmp_path / "stored")) as host:
        named(host, monkeypatch)
        yield host


def sent(upload: str, number: int = 1, data: bytes = DATA) -> str:
    return azure.STORE.send(OBJECT, upload, number, data, hashlib.md5(data, usedforsecurity=False).hexdigest())


def test_names_of_blocks_say_what_they_are(host: Host) -> None:
    first, second = azure.STORE.begin(OBJECT), azure.STORE.begin(OBJECT)
    names = {number: sent(first, number) for number in (1, 2, 9_999)}
    sent(second, 1, b"others")
    again = sent(second, 1, DATA)
    assert {len(name) for name in names.values()} == {63}
    found = {each.id: each for each in azure.STORE.begun(OBJECT, below=False)}
    assert (
        found.keys() == {first, second} and {number: part.name for number, part in found[first].parts.items()} == names
    )
    assert found[first].nbytes == 3 * len(DATA) and found[second].parts[1].name == again
    assert abs(datetime.now(UTC) - found[first].last) < timedelta(minutes=1)
    (begun,) = [
        each
        for each in azure.STORE.begun(StoredObject("az://bucket/", "az", "bucket", ""), below=True)
        if each.id == first
    ]
    assert begun.name == OBJECT.name


@pytest.mark.parametrize("way", ["key", "signature"])
def test_what_says_who_asks_is_not_told(
    way: str, host: Host, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG")
    monkeypatch.delenv("AZURE_SKIP_SIGNATURE")
    secret = "Tm9ib2R5" if way == "key" else SIGNATURE
    if way == "key":
        monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_KEY", secret)
    else:
        monkeypatch.setenv("AZURE_STORAGE_SAS_TOKEN", f"sv=2025-11-05&sig={secret}")
    sent(azure.STORE.begin(OBJECT))
    ((path, headers),) = host.requests
    assert headers["authorization"].startswith("SharedKey nobody:") if way == "key" else secret in path
    host.put_faults = lambda path, part, number: "403"
    with pytest.raises(OutputError, match="refuses to take it") as error:
        sent(azure.STORE.begin(OBJECT))
    assert secret not in str(error.value) and "127.0.0.1" not in str(error.value)
    ours = [record for record in caplog.records if not record.name.startswith("urllib3")]  # which nobody shows
    assert all(secret not in record.getMessage() for record in ours)


def test_without_the_packages(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AZURE_SKIP_SIGNATURE")
    monkeypatch.setitem(sys.modules, "azure.identity", None)
    with pytest.raises(MissingDependency, match="pip install azure-identity"):
        multipart.Multipart(OBJECT, 10, 5, 1, keep=False, replace=False).begun()
    for name in [each for each in sys.modules if each == "azure" or each.startswith("azure.")]:
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(MissingDependency, match="pip install azure-storage-blob"):
        multipart.Multipart(OBJECT, 10, 5, 1, keep=False, replace=False).begun()


def test_clean_names_and_removes_nothing(host: Host, capsys: pytest.CaptureFixture[str]) -> None:
    sent(azure.STORE.begin(OBJECT))
    assert main(["clean", "az://bucket/a/", "--json"]) == 0
    ((left, *more),) = [json.loads(capsys.readouterr().out)["left"]]
    assert not more and left["path"] == OBJECT.name and left["bytes"] == len(DATA) and left["running"]
    assert main(["clean", "az://bucket/"]) == 0
    day = (datetime.now(UTC) + azure.KEPT).date()
    assert f"stays: the store itself removes it, on {day}" in " ".join(capsys.readouterr().out.split())
    assert host.uploads
