"""Uploads in parts to Google: a token of the credentials goes with every request, to the store, and nowhere else."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.hosts import GOOGLE_TOKEN, Host, serving

from converter.errors import MissingDependency, OutputError
from converter.remote import google
from converter.remote.objects import StoredObject

pytest.importorskip("botocore")
pytest.importorskip("google.auth")
SECRET = "1//NobodysRefreshToken"
OBJECT = StoredObject("gs://bucket/a/model.gguf", "gs", "bucket", "a/model.gguf")


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Host]:
    """In the place of Google's; no emulator, which would want no token."""
    (tmp_path / "stored/bucket").mkdir(parents=True)
    with serving(Host(tmp_path / "stored")) as host:
        monkeypatch.setattr(google, "ENDPOINT", host.url)
        monkeypatch.setenv("NO_GCE_CHECK", "true")
        yield host


def user() -> dict[str, Any]:
    """As `gcloud auth application-default login` writes them."""
    return {
        "type": "authorized_user", "client_id": "nobody", "client_secret": "nothing", "refresh_token": SECRET,
        "quota_project_id": "who-pays",
    }  # fmt: skip


def account(host: Host) -> dict[str, Any]:
    """The key of a service account."""
    rsa = pytest.importorskip("cryptography.hazmat.primitives.asymmetric.rsa")
    from cryptography.hazmat.primitives import serialization as forms

    key = rsa.generate_private_key(65537, 2048)
    text = key.private_bytes(forms.Encoding.PEM, forms.PrivateFormat.PKCS8, forms.NoEncryption()).decode()
    return {
        "type": "service_account", "client_email": "nobody@nowhere.iam.gserviceaccount.com", "private_key": text,
        "token_uri": f"{host.url}/token", "private_key_id": "0", "project_id": "nothing",
    }  # fmt: skip


def place(text: dict[str, Any], path: Path) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(text))
    return str(path)


def from_environment(host: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", place(account(host), tmp_path / "account.json"))


def from_obstore(host: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GOOGLE_SERVICE_ACCOUNT", place(account(host), tmp_path / "account.json"))


def from_gcloud(host: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("google.oauth2.credentials._GOOGLE_OAUTH2_TOKEN_ENDPOINT", f"{host.url}/token")
    monkeypatch.setenv("CLOUDSDK_CONFIG", str(tmp_path / "gcloud"))
    place(user(), tmp_path / "gcloud/application_default_credentials.json")


@pytest.mark.parametrize("credentials", [from_environment, from_obstore, from_gcloud])
def test_every_request_has_the_token(
    credentials: Any,
    host: Host,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("DEBUG")
    credentials(host, tmp_path, monkeypatch)
    upload = google.STORE.begin(OBJECT)
    data = b"bytes" * 100
    name = google.STORE.send(OBJECT, upload, 1, data, hashlib.md5(data, usedforsecurity=False).hexdigest())
    (begun,) = google.STORE.begun(OBJECT, below=False)
    assert begun.id == upload and begun.parts[1].nbytes == len(data) and begun.parts[1].name == name
    google.STORE.complete(OBJECT, upload, {1: name}, replace=False)
    google.STORE.abort(OBJECT, google.STORE.begin(OBJECT))
    asked = [(path, headers) for path, headers in host.requests if path != "/token"]
    assert len(asked) == 7 and len(host.requests) == 8, "one token is enough"
    for path, headers in asked:
        assert headers["authorization"] == f"Bearer {GOOGLE_TOKEN}", path
        assert not [each for each in headers if each.startswith("x-amz")], "S3's own headers mean nothing here"
    if credentials is from_gcloud:
        assert {headers["x-goog-user-project"] for _, headers in asked} == {"who-pays"}
    assert (host.root / "bucket" / OBJECT.key).read_bytes() == data
    said = "".join(capfd.readouterr())
    assert said == "" and GOOGLE_TOKEN not in caplog.text and SECRET not in caplog.text


def test_credentials_that_are_good_for_nothing(host: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from_gcloud(host, tmp_path, monkeypatch)
    host.gives_tokens = False
    with pytest.raises(OutputError, match=r"gs://bucket: Google gives no token for these credentials") as error:
        google.STORE.begin(OBJECT)
    assert SECRET not in str(error.value) and "127.0.0.1" not in str(error.value)


def test_no_credentials(host: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLOUDSDK_CONFIG", str(tmp_path / "gcloud"))
    with pytest.raises(OutputError, match="no credentials for Google were found"):
        google.STORE.begin(OBJECT)
    monkeypatch.setenv("GOOGLE_SERVICE_ACCOUNT", str(tmp_path / "none.json"))
    with pytest.raises(OutputError, match="cannot be read"):
        google.STORE.begin(OBJECT)
    assert not host.requests


def test_without_the_package(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "google.auth", None)
    with pytest.raises(MissingDependency, match="pip install google-auth"):
        google.STORE.begin(OBJECT)
