"""Manifests of OpenSSF model signing: those that its library writes, and signs, and verifies."""

from __future__ import annotations

import base64
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from support.paths import FIXTURES, ROOT

from converter.certify import check_attestation
from converter.certify.attestation import as_bytes, read
from converter.certify.manifest import manifest
from converter.cli.main import main
from converter.errors import OutputError, UsageError

STORIES = FIXTURES / "stories260K"
#: What `model_signing sign key` 1.1.1 wrote for the folder of this model.
SIGNED = ROOT / "tests/data/model-signing-stories260K.sig"
DOCUMENT = (ROOT / "docs/housekeeping.md").read_text("utf-8")
COMMANDS = re.search(r"```sh\n(convert hash model/ --manifest.*?)```", DOCUMENT, re.S)
SIGNING = pytest.mark.skipif(not (shutil.which("openssl") and shutil.which("bash")), reason="needs openssl and bash")


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A folder with a folder in it, whose names sort otherwise as texts than as paths."""
    folder = tmp_path / "model"
    shutil.copytree(STORIES, folder)
    for name in ("a/b.txt", "a.txt", ".git/config", ".gitattributes"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(name, "utf-8")
    return folder


def test_it_is_what_the_library_writes() -> None:
    payload = json.loads(SIGNED.read_bytes())["dsseEnvelope"]["payload"]
    assert manifest(STORIES) == json.loads(base64.b64decode(payload))


def test_files_are_in_the_order_of_their_paths(model: Path) -> None:
    names = [each["name"] for each in manifest(model)["predicate"]["resources"]]
    assert names.index("a/b.txt") < names.index("a.txt") and not any(".git" in name for name in names)


def test_a_model_that_is_one_file(model: Path, tmp_path: Path) -> None:
    one = Path(shutil.copy(model / "model.safetensors", tmp_path))
    made = manifest(one)
    assert [each["name"] for each in made["predicate"]["resources"]] == ["."]
    (tmp_path / "one.json").write_bytes(as_bytes(made))
    assert check_attestation(one, tmp_path / "one.json").passed


def test_what_is_read_is_what_was_written(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    written = tmp_path / "model.json"
    assert main(["hash", str(model), "--manifest", str(written)]) == 0
    assert "to be signed" in capsys.readouterr().out and not read(written).enveloped
    assert check_attestation(model, written).passed and written.read_bytes() == as_bytes(manifest(model, threads=1))
    assert main(["hash", str(model), "--manifest", str(written)]) == 53
    assert main(["hash", str(model), "--manifest", str(written), "--force", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["manifest"] == str(written)
    (model / "a.txt").write_text("tampered", "utf-8")
    assert [each.subject for each in check_attestation(model, written).findings if each.failed] == ["a.txt"]


def test_what_has_no_manifest(model: Path, tmp_path: Path) -> None:
    assert main(["hash", str(model), "--manifest", str(model / "model.json")]) == 2
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match="no file"):
        manifest(tmp_path / "empty")
    with pytest.raises(OutputError):
        manifest(tmp_path / "none")
    if sys.platform != "win32":
        (model / "link").symlink_to(model / "a.txt")
        with pytest.raises(UsageError, match="link"):
            manifest(model)


@SIGNING
def test_the_documented_way_to_sign(model: Path, tmp_path: Path) -> None:
    """By openssl; and, where it is installed, the library verifies what that signed."""
    assert COMMANDS is not None
    commands = COMMANDS[1].replace("convert ", f"{sys.executable} -m converter ")
    subprocess.run(["bash", "-euc", commands], cwd=tmp_path, check=True, capture_output=True)
    bundle = json.loads((tmp_path / "model.sig").read_bytes())
    assert json.loads(base64.b64decode(bundle["dsseEnvelope"]["payload"])) == manifest(model)
    verifying = pytest.importorskip("model_signing.verifying")
    verifier = verifying.Config().use_elliptic_key_verifier(public_key=tmp_path / "key.pub")
    verifier.verify(model, tmp_path / "model.sig")
    (model / "a.txt").write_text("tampered", "utf-8")
    with pytest.raises(ValueError, match="mismatch"):
        verifier.verify(model, tmp_path / "model.sig")
