"""Attestations: their bytes, what is read of them, and the files that they speak of."""

from __future__ import annotations

import base64
import json
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.faults import UP, Workshop, flip, in_bytes
from support.paths import FIXTURES, ROOT
from support.rewriting import rewritten

import converter
from converter import Request
from converter.certify import certify, check_attestation
from converter.certify.attestation import BUILD_TYPE, PAYLOAD, as_bytes, read, statement
from converter.certify.results import Certificate
from converter.cli.main import main
from converter.errors import ConverterError, CorruptFile, UnsupportedFeature
from converter.metadata import Value

DATA = ROOT / "tests/data"
DOCUMENT = (ROOT / "docs/certify.md").read_text("utf-8")


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Workshop:
    return Workshop(tmp_path_factory.mktemp("attestation"))


@pytest.fixture(scope="module")
def good(shop: Workshop) -> Path:
    return shop.good("llama3-96", "q4_k_m")


@pytest.fixture(scope="module")
def certificate(shop: Workshop, good: Path) -> Certificate:
    return certify(shop.source("llama3-96"), good)


@pytest.fixture
def attested(certificate: Certificate, tmp_path: Path) -> Path:
    path = tmp_path / "a.json"
    path.write_bytes(as_bytes(statement(certificate)))
    return path


def test_it_is_a_statement_with_slsa_provenance(certificate: Certificate, good: Path) -> None:
    made = statement(certificate)
    assert made["_type"] == "https://in-toto.io/Statement/v1"
    assert made["predicateType"] == "https://slsa.dev/provenance/v1"
    assert made["subject"] == [{"name": good.name, "digest": {"sha256": certificate.subjects[0].sha256}}]
    definition, details = made["predicate"]["buildDefinition"], made["predicate"]["runDetails"]
    assert definition.keys() == {"buildType", "externalParameters", "internalParameters", "resolvedDependencies"}
    assert definition["buildType"] == BUILD_TYPE and BUILD_TYPE in DOCUMENT
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= {
        each["name"] for each in definition["resolvedDependencies"]
    }
    assert details.keys() == {"builder", "byproducts"} and "metadata" not in details
    assert [each["name"] for each in details["byproducts"]] == ["verdict", "hashes", "differences"]
    assert all(re.search(rf"^\| `{name}`", DOCUMENT, re.M) for name in (*definition, "builder", "subject"))


def test_its_bytes_are_the_same_wherever_and_whoever(
    shop: Workshop, certificate: Certificate, good: Path, tmp_path: Path
) -> None:
    """No path, no time, no thread in it; a model and its source somewhere else give it again."""
    there = tmp_path / "somebody's private folder"
    shutil.copytree(shop.source("llama3-96"), there / "llama3-96")
    shutil.copy(good, there / good.name)
    again = certify(there / "llama3-96", there / good.name, threads=1)
    made = as_bytes(statement(certificate))
    assert as_bytes(statement(again)) == made
    assert str(tmp_path).encode() not in made and b"private" not in made and str(shop.folder).encode() not in made
    assert json.loads(as_bytes(statement(certificate, "2026-11-27T20:00:00Z")))["predicate"]["runDetails"][
        "metadata"
    ] == {"finishedOn": "2026-11-27T20:00:00Z"}


def test_a_request_has_no_folders(shop: Workshop, good: Path, tmp_path: Path) -> None:
    request = Request(name="x", arch="llama")
    said = statement(certify(shop.source("llama3-96"), good, request))
    assert said["predicate"]["buildDefinition"]["externalParameters"]["request"] == {"arch": "llama", "name": "x"}


def test_what_it_speaks_of_is_recognized(shop: Workshop, good: Path, attested: Path, tmp_path: Path) -> None:
    assert not check_attestation(good, attested).findings
    result = check_attestation(good, attested, shop.source("llama3-96"))
    assert result.passed and not result.findings and result.checks == ["attestation"]
    renamed = Path(shutil.copy(good, tmp_path / "renamed.gguf"))
    told = check_attestation(renamed, attested)
    assert told.passed and [each.subject for each in told.findings] == ["renamed.gguf"]


CHANGES: dict[str, tuple[Callable[[Path, Path], Path], str]] = {
    "a block": (lambda old, new: rewritten(old, new, None, in_bytes(UP, flip(0, 0, 0))), UP),
    "a key": (lambda old, new: rewritten(old, new, {"tokenizer.chat_template": Value("str", "x")}), "metadata"),
    "a name": (lambda old, new: rewritten(old, new, {"general.name": Value("str", "x")}), "metadata"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_another_file_is_not_it(change: str, good: Path, attested: Path, tmp_path: Path) -> None:
    make, subject = CHANGES[change]
    result = check_attestation(make(good, tmp_path / "bad.gguf"), attested)
    assert not result.passed and subject in {each.subject for each in result.findings if each.failed}


def test_another_source_is_not_it(shop: Workshop, good: Path, attested: Path, tmp_path: Path) -> None:
    other = tmp_path / "llama3-96"
    shutil.copytree(shop.source("llama3-96"), other)
    (other / "generation_config.json").write_text('{"temperature": 0.1}', "utf-8")
    (other / "tokenizer_config.json").write_text("{}", "utf-8")
    result = check_attestation(good, attested, other)
    assert {each.subject for each in result.findings if each.failed} >= {"tokenizer_config.json"}


def test_envelopes_are_opened_and_their_signatures_left_to_others(good: Path, attested: Path) -> None:
    envelope = {"payloadType": PAYLOAD, "payload": base64.b64encode(attested.read_bytes()).decode(), "signatures": []}
    for said in (envelope, {"mediaType": "application/vnd.dev.sigstore.bundle.v0.3+json", "dsseEnvelope": envelope}):
        attested.write_text(json.dumps(said), "utf-8")
        result = check_attestation(good, attested)
        assert result.passed and "nothing here looked at the signature" in str(result.findings[0])


def set_in(*keys: str | int, value: Any) -> Callable[[dict[str, Any]], None]:
    def change(said: dict[str, Any]) -> None:
        at: Any = said
        for key in keys[:-1]:
            at = at[key]
        at[keys[-1]] = value

    return change


HASHES = ("predicate", "runDetails", "byproducts", 1, "annotations")
BAD: dict[str, tuple[Callable[[dict[str, Any]], None], type[ConverterError], str]] = {
    "a newer build type": (
        set_in("predicate", "buildDefinition", "buildType", value=BUILD_TYPE.replace("v1", "v2")),
        UnsupportedFeature, "newer version",
    ),
    "another builder's": (
        set_in("predicate", "buildDefinition", "buildType", value="https://example.com/make/v1"),
        UnsupportedFeature, "another builder",
    ),
    "another predicate": (set_in("predicateType", value="https://spdx.dev/Document"), UnsupportedFeature, "predicate"),
    "another statement": (set_in("_type", value="https://in-toto.io/Statement/v2"), UnsupportedFeature, "_type"),
    "a root of other tensors": (set_in(*HASHES, "root", value="0" * 64), CorruptFile, "root"),
    "a tensor's hash": (set_in(*HASHES, "tensors", 0, "sha256", value="0" * 64), CorruptFile, "root"),
    "no subject": (set_in("subject", value=[]), CorruptFile, "no subject"),
    "a subject without a hash": (set_in("subject", 0, "digest", value={}), CorruptFile, "no attestation"),
    "a hash that is none": (set_in("subject", 0, "digest", "sha256", value="x"), CorruptFile, "SHA-256"),
    "a verdict that is none": (
        set_in("predicate", "runDetails", "byproducts", 0, "annotations", "verdict", value="fine"),
        CorruptFile, "verdict",
    ),
    "a list for an object": (set_in("predicate", value=[]), CorruptFile, "no attestation"),
    "a text for a list": (set_in(*HASHES, "tensors", value="x"), CorruptFile, "no attestation"),
}  # fmt: skip


@pytest.mark.parametrize("fault", BAD)
def test_bad_ones_are_refused(fault: str, attested: Path) -> None:
    change, kind, words = BAD[fault]
    said = json.loads(attested.read_bytes())
    change(said)
    attested.write_text(json.dumps(said), "utf-8")
    with pytest.raises(kind, match=words) as error:
        read(attested)
    assert attested.name in str(error.value)


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"payload": "!", "payloadType": "x"}', '{"dsseEnvelope": {}}'])
def test_what_is_no_attestation_is_refused(content: str, tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text(content, "utf-8")
    with pytest.raises((CorruptFile, UnsupportedFeature)):
        read(path)


def test_the_command(
    shop: Workshop, good: Path, attested: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = str(shop.source("llama3-96"))
    report = tmp_path / "report.xml"
    assert main(["verify", str(good), "--attestation", str(attested), "--report", str(report)]) == 0
    assert "PASSED: " in capsys.readouterr().out and 'name="attestation"' in report.read_text("utf-8")
    assert main(["verify", source, str(good), "--attestation", str(attested), "--quiet"]) == 0
    other = shop.good("llama3-96", "q8_0")
    assert main(["verify", str(other), "--attestation", str(attested)]) == 41
    assert main(["verify", str(good), "--attestation", str(tmp_path / "none.json")]) == 50
    assert main(["verify", str(good), "--attestation", str(attested), "--runtime"]) == 2
    wrong = tmp_path / "shards"
    converter.convert(source, wrong.with_suffix(".gguf"), Request(quant="q4_k_m", split_max_tensors=20))
    first = next(tmp_path.glob("shards-00001-of-*.gguf"))
    assert main(["verify", str(first), "--attestation", str(attested)]) == 41, "the same tensors in other files"


@pytest.mark.skipif(not shutil.which("openssl"), reason="the documented commands need openssl")
def test_the_documented_way_to_sign(attested: Path, tmp_path: Path) -> None:
    attested.rename(tmp_path / "llama.intoto.json")
    commands = re.findall(r"^openssl .*$", DOCUMENT, re.M)
    assert len(commands) == 4
    for command in commands:
        subprocess.run(command.split(), cwd=tmp_path, check=True, capture_output=True)
    (tmp_path / "llama.intoto.json").write_bytes(b"{}")
    assert subprocess.run(commands[-1].split(), cwd=tmp_path, capture_output=True).returncode


# ------------------------------------------------------------------------------------- OpenSSF model signing

#: What `model_signing sign key` 1.1.1 wrote for the folder of this model.
SIGNED, STORIES = DATA / "model-signing-stories260K.sig", FIXTURES / "stories260K"


def resigned(path: Path, change: Callable[[dict[str, Any]], None]) -> Path:
    """The signature with other things in it, as nobody could sign them."""
    bundle = json.loads(SIGNED.read_bytes())
    said = json.loads(base64.b64decode(bundle["dsseEnvelope"]["payload"]))
    change(said)
    bundle["dsseEnvelope"]["payload"] = base64.b64encode(json.dumps(said).encode()).decode()
    path.write_text(json.dumps(bundle), "utf-8")
    return path


def test_signed_folders_are_recognized(tmp_path: Path) -> None:
    result = check_attestation(STORIES, SIGNED)
    assert result.passed and ["signature" in str(each) for each in result.findings] == [True]
    assert main(["verify", str(STORIES), "--attestation", str(SIGNED), "--quiet"]) == 0
    assert main(["verify", str(STORIES), str(STORIES), "--attestation", str(SIGNED)]) == 2
    copy = tmp_path / "copy"
    shutil.copytree(STORIES, copy)
    (copy / "SOURCE.txt").write_text("from elsewhere", "utf-8")
    (copy / "generation_config.json").unlink()
    (copy / "chat_template.jinja").write_text("{{ evil }}", "utf-8")
    found = check_attestation(copy, SIGNED)
    assert {each.subject: each.message.split("that")[0] for each in found.findings if each.failed} == {
        "SOURCE.txt": "is not the file ", "generation_config.json": "is a file ", "chat_template.jinja": "is no file ",
    }  # fmt: skip


def test_a_manifest_leads_out_of_no_folder(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("x", "utf-8")

    def lead_out(said: dict[str, Any]) -> None:
        resources = said["predicate"]["resources"]
        resources[0]["name"], resources[1]["name"] = "../secret", str(secret)

    result = check_attestation(STORIES, resigned(tmp_path / "a.sig", lead_out))
    assert not result.passed
    assert {each.message for each in result.findings if each.subject in ("../secret", str(secret))} <= {
        "is a file that the attestation names, and is not there"
    }


@pytest.mark.parametrize(
    ("change", "kind", "words"),
    [
        (set_in("predicate", "serialization", "method", value="shards"), UnsupportedFeature, "whole files"),
        (set_in("predicate", "resources", 0, "algorithm", value="blake3"), UnsupportedFeature, "blake3"),
        (set_in("predicate", "resources", 0, "digest", value="0" * 64), CorruptFile, "was changed"),
        (set_in("predicate", "resources", value=7), CorruptFile, "no attestation"),
        (set_in("subject", value=[]), CorruptFile, "no attestation"),
    ],
)
def test_bad_manifests_are_refused(
    change: Callable[[dict[str, Any]], None], kind: type[ConverterError], words: str, tmp_path: Path
) -> None:
    with pytest.raises(kind, match=words):
        read(resigned(tmp_path / "a.sig", change))
