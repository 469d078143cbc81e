"""Batches whose models, or outputs, lie elsewhere: the same bytes, done once, known by hashes and ETags."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.hosts import SIGNATURE, TOKEN, Host, named, serving
from support.paths import FIXTURES

from converter import Request, convert
from converter.batch import manifest
from converter.batch import run as batch
from converter.cli.main import main
from converter.errors import OutputError, OutputExists, UsageError
from converter.remote import stores

pytest.importorskip("obstore")
constants = pytest.importorskip("huggingface_hub.constants")
MODEL = FIXTURES / "stories260K"
QUANTS = ("Q8_0", "Q4_0")


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Host]:
    """Two models in a bucket and on the Hub, and one there that takes what is made."""
    for name in list(os.environ):
        if name.startswith(("HF_", "AWS_", "GOOGLE_", "AZURE_")) or name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)
    for name in ("org/stories", "bucket/models/one", "bucket/models/two.v2"):
        shutil.copytree(MODEL, tmp_path / "hosted" / name)
    (tmp_path / "hosted/org/quants").mkdir()
    (tmp_path / "hosted/org/quants/NOTES.md").write_text("notes")
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    stores.store_of.cache_clear()
    with serving(Host(tmp_path / "hosted", token=TOKEN)) as served:
        named(served, monkeypatch)
        yield served
    stores.store_of.cache_clear()


@pytest.fixture
def expected(tmp_path: Path) -> dict[str, bytes]:
    """What each quant is."""
    made = {}
    for quant in QUANTS:
        convert(MODEL, tmp_path / "single.gguf", Request(quant=quant, name="s"), force=True)
        made[quant] = (tmp_path / "single.gguf").read_bytes()
    return made


def read(tmp_path: Path, source: str, out: str, **more: object) -> list[manifest.Job]:
    (tmp_path / "work").mkdir(exist_ok=True)
    keys = {"source": source, "out": out, "quant": list(QUANTS), "name": "s", **more}
    path = tmp_path / "work/m.json"
    path.write_text(json.dumps({"models": [keys]}))
    return manifest.read(path, {})


def statuses(found: batch.Batch) -> list[str]:
    return [f"{each.status} {each.error or ''}".strip() for each in found.results]


@pytest.mark.parametrize(
    ("source", "name"),
    [("hf://org/stories", "stories"), ("s3://bucket/models/two.v2", "two.v2"),
     ("{host}/files/org/stories/model.safetensors", "model"), ("az://bucket/models/one/", "one")],
)  # fmt: skip
def test_models_elsewhere(host: Host, tmp_path: Path, expected: dict[str, bytes], source: str, name: str) -> None:
    source = source.format(host=host.url)
    config = {} if not source.startswith("http") else {"config": "hf://org/stories"}
    jobs = read(tmp_path, source, "{name}-{quant}.gguf", **config)
    assert [job.name for job in jobs] == [name]
    assert statuses(batch.run(jobs)) == ["done"]
    for quant in QUANTS:
        assert (tmp_path / f"work/{name}-{quant}.gguf").read_bytes() == expected[quant]
    weights = sum(size for path, size in host.sent.items() if path.endswith(".safetensors"))
    assert weights <= 2 * (MODEL / "model.safetensors").stat().st_size, "planned and converted of one look"
    assert statuses(batch.run(jobs)) == ["skipped"]
    host.tag = lambda path: "new"
    weights_of = host.root / "org/stories/model.safetensors"
    content = bytearray(weights_of.read_bytes())
    content[-9] ^= 1
    weights_of.write_bytes(content)
    assert statuses(batch.run(jobs)) == ["done"], "it was changed"


@pytest.mark.parametrize("scheme", ["s3", "gs", "az"])
def test_outputs_elsewhere(host: Host, tmp_path: Path, expected: dict[str, bytes], scheme: str) -> None:
    jobs = read(tmp_path, str(MODEL), f"{scheme}://bucket/made/{{name}}-{{quant}}.gguf", verify=True)
    found = batch.run(jobs)
    assert statuses(found) == ["done"] and all(each.sqnr_db for each in found.results[0].made)
    paths = {quant: host.root / f"bucket/made/stories260K-{quant}.gguf" for quant in QUANTS}
    assert {quant: path.read_bytes() for quant, path in paths.items()} == expected
    taken = dict(host.taken)
    assert statuses(batch.run(jobs)) == ["skipped"] and host.taken == taken
    assert (tmp_path / "work/.convert-batch.json").exists()
    assert statuses(batch.run(read(tmp_path, str(MODEL), jobs[0].target, leave_output=True))) == ["done"], "our own"
    paths["Q8_0"].write_bytes(b"somebody else's")
    host.tags.clear()
    error = batch.run(jobs).results[0].error
    assert isinstance(error, OutputExists) and paths["Q8_0"].read_bytes() == b"somebody else's"


def test_outputs_on_the_hub(host: Host, tmp_path: Path, expected: dict[str, bytes]) -> None:
    jobs = read(tmp_path, "s3://bucket/models/one", "hf://org/quants/{name}-{quant}.gguf", verify=True)
    assert statuses(batch.run(jobs)) == ["done"] and len(host.commits) == 1
    for quant in QUANTS:
        assert (host.root / f"org/quants/one-{quant}.gguf").read_bytes() == expected[quant]
    assert statuses(batch.run(jobs)) == ["skipped"] and len(host.commits) == 1


def test_one_that_fails_does_not_end_the_others(host: Host, tmp_path: Path) -> None:
    jobs = [
        *read(tmp_path, "hf://org/absent", "s3://bucket/made/{name}-{quant}.gguf"),
        *read(tmp_path, "hf://org/stories", "s3://bucket/made/{name}-{quant}.gguf"),
    ]
    failed, done = batch.run(jobs, batch.Wishes(parallel=2)).results
    assert (failed.status, done.status) == ("failed", "done") and "hf://org/absent" in str(failed.error)


def test_the_verb(
    host: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    asked = ["batch", "hf://org/stories", "s3://bucket/models/one", "--out", "s3://bucket/out/{name}-{quant}.gguf"]
    asked += ["-q", "q8_0,q4_0", "--verify", "--log", "logs", "--report", "r.json"]
    assert main([*asked, "--dry-run"]) == 0 and not (host.root / "bucket/out").exists()
    assert main([*asked, "--offline"]) == OutputError.exit_code
    assert main([*asked, "--sums"]) == UsageError.exit_code and main([*asked, "--card"]) == UsageError.exit_code
    capsys.readouterr()
    assert main([*asked, "--json", "--jobs", "2", "--force"]) == 0
    out, err = capsys.readouterr()
    said = json.loads(out)
    assert [job["source"] for job in said["jobs"]] == ["hf://org/stories", "s3://bucket/models/one"]
    assert said["jobs"][1]["outputs"][0]["path"] == "s3://bucket/out/one-Q8_0.gguf"
    assert len(list((host.root / "bucket/out").iterdir())) == 4
    assert main(asked) == 0 and "2 skipped" in capsys.readouterr().out
    told = [out, err, *(path.read_text("utf-8") for path in (*Path("logs").iterdir(), Path("r.json")))]
    told.append(Path(".convert-batch.json").read_text("utf-8"))
    secrets = (TOKEN, SIGNATURE, "AKIANOBODYSKEY", "nobodysSecretKey", "model-converter-")
    assert not [secret for secret in secrets for text in told if secret in text]


def test_verify_of_several_at_an_address(host: Host, capsys: pytest.CaptureFixture[str]) -> None:
    target = "s3://bucket/out/m-{quant}.gguf"
    assert main([str(MODEL), target, "-q", "q8_0,q4_0", "--verify", "--json", "--quiet"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert [each["target"] for each in said["outputs"]] == [f"s3://bucket/out/m-{quant}.gguf" for quant in QUANTS]
    assert all(each["verification"]["passed"] for each in said["outputs"])
