"""Models on hosts of loopback: what is read of them is what lies there, and nothing more goes over the wire."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from support.hosts import FAULTS, SIGNATURE, TOKEN, Host, named, serving
from support.models import build_model
from support.paths import FIXTURES
from support.sparse import llama, shapes, shards

from converter import ConverterError, Source, address, convert, open_checkpoint, plan
from converter.check.check import check
from converter.cli.main import main
from converter.diff import diff
from converter.errors import (
    CorruptFile,
    MissingDependency,
    MissingPart,
    OutputError,
    UnsupportedFeature,
    UsageError,
)
from converter.inspection.describe import inspect
from converter.remote import blocks, listing, mirror, stores, web
from converter.remote.settings import Settings, using
from converter.request import Request
from converter.verify.verifier import verify

STORES = ("s3", "gs", "az")
MODEL = "llama3-256"


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`org/model` and the like, and the same as a bucket."""
    root = tmp_path_factory.mktemp("hosted")
    build_model(MODEL, root / "org", shards=3)
    (root / "org" / MODEL).rename(root / "org/model")
    shutil.copytree(FIXTURES / "stories260K", root / "org/stories")
    shutil.copytree(root / "org/model", root / "bucket/models/model")
    convert(root / "org/stories", root / "org/stories-gguf.gguf", Request(quant="q8_0"))
    (root / "org/quants/old").mkdir(parents=True)
    (root / "org/stories-gguf.gguf").rename(root / "org/quants/old/stories-q8_0.gguf")
    convert(root / "org/stories", root / "org/stories.pt", Request(tensors_only=True))
    (root / "org/pickled").mkdir()
    (root / "org/stories.pt").rename(root / "org/pickled/pytorch_model.bin")
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json", "tokenizer.model"):
        shutil.copy(root / "org/stories" / name, root / "org/pickled")
    return root


@pytest.fixture
def host(models: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Host]:
    with serving(Host(models)) as served:
        named(served, monkeypatch)
        yield served


def files(path: Path) -> dict[str, bytes]:
    """A file, or all of a folder, by name."""
    if path.is_file():
        return {"": path.read_bytes()}
    return {each.relative_to(path).as_posix(): each.read_bytes() for each in sorted(path.rglob("*")) if each.is_file()}


def made(
    source: str | Path | Source, target: str, tmp_path: Path, threads: int | None = None, **request: Any
) -> dict[str, bytes]:
    """What a conversion writes."""
    folder = tmp_path / "out"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    convert(source, f"{folder}/{target}", Request(**request), threads=threads)
    return files(folder)


# ------------------------------------------------------------------------------------------------ what comes of them


@pytest.mark.parametrize(
    "given", ["hf://org/model", "hf://org/model@main", *(f"{each}://bucket/models/model" for each in STORES)]
)
@pytest.mark.parametrize(("target", "quant"), [("x.gguf", "q4_k_m"), ("model/", None)])
@pytest.mark.parametrize("ahead", [True, False], ids=["", "lazy"])
def test_a_folder_elsewhere_is_the_folder_here(
    host: Host, models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    given: str, target: str, quant: str | None, ahead: bool,
) -> None:  # fmt: skip
    if not ahead:  # every small file is fetched where it is opened
        monkeypatch.setattr(mirror, "MOST", 0)
    here = made(models / "org/model", target, tmp_path, quant=quant)
    assert (list(here) == ["x.gguf"]) if quant else {"model/tokenizer.json", "model/config.json"} < here.keys()
    assert made(given, target, tmp_path, quant=quant) == here


@pytest.mark.parametrize(
    ("given", "local"),
    [
        ("hf://org/quants/old/stories-q8_0.gguf", "org/quants/old/stories-q8_0.gguf"),
        ("hf://org/model/model-00002-of-00003.safetensors", "org/model/model-00002-of-00003.safetensors"),
        ("hf://org/model/model.safetensors.index.json", "org/model/model.safetensors.index.json"),
        ("hf://org/pickled", "org/pickled"),
        ("hf://org/pickled/pytorch_model.bin", "org/pickled/pytorch_model.bin"),
        ("s3://bucket/models/model/model-00001-of-00003.safetensors", "org/model/model-00001-of-00003.safetensors"),
        ("{host}/files/org/quants/old/stories-q8_0.gguf", "org/quants/old/stories-q8_0.gguf"),
    ],
)
def test_files_elsewhere_are_the_files_here(host: Host, models: Path, tmp_path: Path, given: str, local: str) -> None:
    given = given.format(host=host.url)
    assert made(given, "x.gguf", tmp_path) == made(models / local, "x.gguf", tmp_path)
    assert diff(given, models / local).equal
    described = inspect(given).as_dict()
    assert described["tensors"] and described["metadata"] == inspect(models / local).as_dict()["metadata"]


def test_everything_beside_a_model_may_lie_elsewhere(host: Host, models: Path, tmp_path: Path) -> None:
    url = f"{host.url}/files/org/stories/model.safetensors"
    here = made(models / "org/stories", "x.gguf", tmp_path)
    assert made(Source(url, config="hf://org/stories"), "x.gguf", tmp_path, name="stories") != {}
    assert made("hf://org/stories", "x.gguf", tmp_path) == here
    matrix = FIXTURES / "imatrix/stories260K.dat"
    (models / "org/matrix").mkdir(exist_ok=True)
    shutil.copy(matrix, models / "org/matrix")
    wanted = made(models / "org/stories", "x.gguf", tmp_path, quant="q4_0", imatrix=matrix)
    assert wanted != made(models / "org/stories", "x.gguf", tmp_path, quant="q4_0")
    there = f"hf://org/matrix/{matrix.name}"
    assert made("hf://org/stories", "x.gguf", tmp_path, quant="q4_0", imatrix=there) == wanted


def test_verbs_that_compare_and_check(host: Host, models: Path, tmp_path: Path) -> None:
    out = tmp_path / "x.gguf"
    convert("hf://org/model", out, Request(quant="q8_0"))
    assert verify("hf://org/model", out, Request(quant="q8_0")).passed
    assert verify(models / "org/model", "hf://org/model").passed
    result = check("hf://org/quants/old/stories-q8_0.gguf")
    assert result.passed and result.as_dict()["source"].endswith("stories-q8_0.gguf")
    with plan("s3://bucket/models/model", out, Request(quant="q4_k_m")).checkpoint:
        pass
    assert not check("hf://org/quants/old/stories-q8_0.gguf", runtime=True).passed, "nothing else runs what is not here"


# ---------------------------------------------------------------------------------------------- how much is fetched


@pytest.fixture(scope="module")
def huge(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Llama 3.1 405B as it is published: 810 GB in 158 files, none of it on disk."""
    root = tmp_path_factory.mktemp("huge")
    config = llama(
        hidden_size=16384, num_hidden_layers=126, num_attention_heads=128, num_key_value_heads=8,
        intermediate_size=53248, vocab_size=128256,
    )  # fmt: skip
    folder = root / "org/huge"
    folder.mkdir(parents=True)
    shards(folder, shapes(config), {}, 4_300_000_000)
    (folder / "config.json").write_text(json.dumps(config))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(FIXTURES / "kjv-llama" / name, folder)
    return root


def test_a_huge_model_is_looked_at_for_a_few_megabytes(
    huge: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serving(Host(huge)) as host:
        named(host, monkeypatch)
        found = inspect("hf://org/huge")
        assert found.tensor_bytes > 800e9 and len(found.files) > 150
        assert host.total < 4e6, "a block of each file, and what is beside them"
        assert len(host.requests) < 2 * len(found.files) + 20
        host.sent.clear()
        made_of = plan("hf://org/huge", tmp_path / "x.gguf", Request(quant="q4_k_m", pre="llama-bpe"))
        made_of.checkpoint.close()
        assert made_of.total_bytes > 200e9 and host.total < 4e6


def test_a_conversion_fetches_every_byte_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "root/org/middle"
    folder.mkdir(parents=True)
    config = llama(
        hidden_size=1024, num_hidden_layers=4, num_attention_heads=8, num_key_value_heads=2, intermediate_size=3584,
        vocab_size=8192,
    )  # fmt: skip
    shards(folder, shapes(config), {}, 40 << 20)
    (folder / "config.json").write_text(json.dumps(config))
    needed = sum(path.stat().st_size for path in folder.iterdir())
    assert needed > 100e6
    with serving(Host(tmp_path / "root")) as host:
        named(host, monkeypatch)
        convert("hf://org/middle", tmp_path / "x.gguf", Request(quant="q8_0", no_tokenizer=True), threads=4)
        assert needed <= host.total <= 1.01 * needed
        assert sum(host.asked.values()) < needed / 1e6


# ------------------------------------------------------------------------------------------------------------ faults

EVERYWHERE = [
    "hf://org/stories",
    *(f"{each}://bucket/stories/model.safetensors" for each in STORES),
    "{host}/files/org/stories/model.safetensors",
]


def source(host: Host, given: str) -> Source:
    """The stories, of which only the weights are elsewhere where nothing lists what is beside them."""
    return Source(given.format(host=host.url), config=FIXTURES / "stories260K")


@pytest.fixture(scope="module")
def stories(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    return made(FIXTURES / "stories260K", "x.gguf", tmp_path_factory.mktemp("stories"), name="s")


@pytest.fixture
def bucket(host: Host) -> Host:
    if not (host.root / "bucket/stories").exists():
        shutil.copytree(FIXTURES / "stories260K", host.root / "bucket/stories")
    return host


@pytest.mark.parametrize("given", EVERYWHERE)
@pytest.mark.parametrize("fault", FAULTS)
def test_faults_are_survived(bucket: Host, tmp_path: Path, stories: dict[str, bytes], fault: str, given: str) -> None:
    bucket.faults = lambda path, number: fault if number % 2 else None
    assert made(source(bucket, given), "x.gguf", tmp_path, name="s") == stories
    assert bucket.total > 1_000_000


@pytest.mark.parametrize("given", EVERYWHERE)
@pytest.mark.parametrize("fault", [fault for fault in FAULTS if fault != "slow"])
def test_a_fault_that_stays_is_one_error(bucket: Host, tmp_path: Path, fault: str, given: str) -> None:
    """It comes with the weights, when all is planned."""
    bucket.faults = lambda path, number: fault if number > 4 and path.endswith("model.safetensors") else None
    opened = source(bucket, given)
    with pytest.raises(OutputError) as caught:
        for _ in range(5):
            made(opened, "x.gguf", tmp_path, name="s")
    text = str(caught.value)
    assert "in 6 attempts" in text and text.count("\n") <= 2 and "model.safetensors" in text
    assert text.startswith(given.format(host=bucket.url)[:12]) and not list((tmp_path / "out").iterdir())


@pytest.mark.parametrize("given", EVERYWHERE)
def test_an_object_that_changes_is_one_error(
    bucket: Host, tmp_path: Path, given: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(blocks, "SMALL", 0)
    monkeypatch.setattr(blocks, "AHEAD", 0)
    seen = {"requests": 0}

    def tag(path: str) -> str:
        seen["requests"] += path.endswith("model.safetensors")
        return "new" if seen["requests"] > 6 and path.endswith("model.safetensors") else ""

    bucket.tag = tag
    with pytest.raises(OutputError, match="was changed while it was read"):
        made(source(bucket, given), "x.gguf", tmp_path, name="s")
    assert not list((tmp_path / "out").iterdir())


def test_a_host_that_is_too_slow(bucket: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(web, "READ", 0.1)
    web._pool.cache_clear()
    bucket.faults = lambda path, number: "slow"
    try:
        with pytest.raises(OutputError, match="in 6 attempts: the host"):
            made(source(bucket, EVERYWHERE[-1]), "x.gguf", tmp_path)
    finally:
        web._pool.cache_clear()


def test_nobody_answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(Host(tmp_path)) as host:
        pass
    named(host, monkeypatch)
    for given in EVERYWHERE:
        with pytest.raises(OutputError, match="in 6 attempts"):
            open_checkpoint(source(host, given))


def test_a_host_without_ranges(bucket: Host, tmp_path: Path) -> None:
    bucket.ranges = False
    with pytest.raises(UnsupportedFeature, match="gives no parts of files; download it first"):
        made(source(bucket, EVERYWHERE[-1]), "x.gguf", tmp_path)


# ------------------------------------------------------------------------------------------------- tokens and secrets


def secrets_in(*texts: str) -> list[str]:
    known = (TOKEN, SIGNATURE, "AKIANOBODYSKEY", "nobodysSecretKey", "nobodysQuery", str(address.base()))
    return [secret for secret in known for text in texts if secret in text]


def test_the_token_goes_to_the_hub_alone_and_nowhere_else(
    models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    with serving(Host(models)) as cdn, serving(Host(models, token=TOKEN, cdn=cdn.url)) as hub:
        named(hub, monkeypatch)
        out = tmp_path / "x.gguf"
        assert main(["hf://org/model", str(out), "-q", "q8_0", "--verify", "--json"]) == 0
        assert main(["hf://org/model", f"{tmp_path}/folder/", "--debug"]) == 0
        assert main(["check", "hf://org/model", "--report", str(tmp_path / "report.md")]) in (0, 41)
        assert main(["inspect", "hf://org/model", "--json", "--all"]) == 0
        cdn.faults = lambda path, number: "500"
        assert main(["inspect", "hf://org/model", "--json"]) == 50
        assert main(["inspect", "hf://org/model", "--debug"]) == 50
        asked = [headers for path, headers in hub.requests]
        assert all(headers.get("authorization") == f"Bearer {TOKEN}" for headers in asked)
        assert cdn.requests and not any("authorization" in headers for _, headers in cdn.requests)
    said = capfd.readouterr()
    written = [content.decode("latin-1") for content in files(tmp_path).values()]
    assert secrets_in(said.out, said.err, *written) == []
    assert "hf://org/model" in said.out and "hf://org/model" in said.err


def test_the_listing_is_asked_for_once_by_a_command(host: Host, tmp_path: Path) -> None:
    assert main(["hf://org/model", str(tmp_path / "x.gguf"), "--verify", "--quiet"]) == 0
    assert sum(path.startswith("/api/") for path, _ in host.requests) == 1


def test_secrets_of_stores_and_queries(host: Host, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    url = f"{host.url}/files/org/quants/old/stories-q8_0.gguf?X-Signature=nobodysQuery"
    for given in ("s3://bucket/models/model", url):
        for argv in (
            [given, str(tmp_path / "x.gguf"), "--json", "--force"],
            ["inspect", given],
            ["diff", given, given],
        ):
            assert main(argv) == 0
        host.faults = lambda path, number: "403"
        assert main(["inspect", given, "--debug"]) in (14, 50)
        assert main(["inspect", given, "--json"]) in (14, 50)
        host.faults = lambda path, number: None
    said = capfd.readouterr()
    written = [content.decode("latin-1") for content in files(tmp_path).values()]
    assert secrets_in(said.out, said.err, *written) == []
    assert any("nobodysQuery" in path for path, _ in host.requests), "the host gets its query"


def test_a_signature_that_expires_is_renewed(host: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocks, "SMALL", 0)
    monkeypatch.setattr(blocks, "AHEAD", 0)
    seen = {"cdn": 0}

    def expire(path: str, number: int) -> str | None:
        seen["cdn"] += 1
        return "403" if number % 5 == 4 and path.endswith("model.safetensors") else None

    host.faults = expire
    wanted = made(FIXTURES / "stories260K", "x.gguf", tmp_path, name="s")
    assert made("hf://org/stories", "x.gguf", tmp_path, threads=1, name="s") == wanted
    led = [path for path, _ in host.requests if "/resolve/" in path and path.endswith("model.safetensors")]
    assert 3 < len(led) < seen["cdn"], "redirects are remembered as long as they last"


@pytest.mark.parametrize(
    ("status", "hint"), [(401, "needs a token: HF_TOKEN"), (404, "is the name right?")], ids=["private", "absent"]
)
def test_what_the_hub_refuses(host: Host, status: int, hint: str) -> None:
    host.token = TOKEN if status == 401 else None
    kind = OutputError if status == 401 else MissingPart
    with pytest.raises(kind, match=rf"^hf://org/absent: .*\({status}\)\n.*{hint.split(':')[0]}"):
        open_checkpoint("hf://org/absent")


def test_a_token_of_the_login(host: Host, tmp_path: Path) -> None:
    """Of the file that `hf auth login` writes; in a process of its own, for it is looked for once."""
    import subprocess

    host.token = TOKEN
    (tmp_path / "hub").mkdir()
    (tmp_path / "hub/token").write_text(TOKEN)
    code = "from converter.cli.main import main; raise SystemExit(main(['inspect', 'hf://org/stories', '--json']))"
    run = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env=os.environ | {"HF_HOME": str(tmp_path / "hub")},
    )
    assert run.returncode == 0, run.stderr
    assert json.loads(run.stdout)["file"] == "hf://org/stories" and secrets_in(run.stdout, run.stderr) == []


# ----------------------------------------------------------------------------------------------- what is not followed


@pytest.mark.parametrize(
    ("old", "new", "follows"),
    [
        ("https://a.test/x", "https://b.test/y", True),
        ("https://a.test/x", "http://a.test/x", False),
        ("https://a.test/x", "http://127.0.0.1/x", False),
        ("https://a.test/x", "https://127.0.0.1/x", False),
        ("https://a.test/x", "https://localhost/x", False),
        ("https://a.test/x", "file:///etc/passwd", False),
        ("https://a.test/x", "ftp://a.test/x", False),
        ("http://127.0.0.1:1/x", "http://127.0.0.1:2/x", True),
        ("http://127.0.0.1:1/x", "http://a.test/x", False),
        ("http://hub.test/x", "http://hub.test/y", True),
        ("http://hub.test/x", "http://other.test/y", False),
    ],
)
def test_redirects(old: str, new: str, follows: bool) -> None:
    from urllib.parse import urlsplit

    if follows:
        web._may_follow("x", urlsplit(old), urlsplit(new))
    else:
        with pytest.raises(OutputError, match="not followed"):
            web._may_follow("x", urlsplit(old), urlsplit(new))


@pytest.mark.parametrize("target", ["file:///etc/passwd", "http://example.invalid", "{own}"])
def test_a_redirect_out_of_what_is_allowed(host: Host, target: str) -> None:
    host.cdn = target if target != "{own}" else f"{host.url}/org/stories/resolve/{'0123456789abcdef' * 2}01234567"
    with pytest.raises(ConverterError, match="hf://org/stories"):
        open_checkpoint("hf://org/stories")


def test_offline_asks_nobody(host: Host, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    for given in (*EVERYWHERE, "hf://org/model"):
        with using(Settings(offline=True)), pytest.raises(OutputError, match="no host is asked"):
            open_checkpoint(source(host, given))
    assert main(["inspect", "hf://org/model", "--offline"]) == 50
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert main(["inspect", "s3://bucket/models/model"]) == 50
    assert host.requests == [] and "--offline" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("module", "given"),
    [("huggingface_hub", "hf://org/model"), ("obstore", "s3://bucket/x"), ("urllib3", EVERYWHERE[-1])],
)
def test_without_the_package_that_asks(host: Host, monkeypatch: pytest.MonkeyPatch, module: str, given: str) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    web._pool.cache_clear()
    with pytest.raises(MissingDependency, match=rf"needs {module}: pip install {module}\n.*\[remote\]"):
        open_checkpoint(given.format(host=host.url))


# ---------------------------------------------------------------------------------------------------- hostile listings


def with_sibling(**changes: Any) -> Any:
    def says(body: dict[str, Any]) -> dict[str, Any]:
        body["siblings"].append({"rfilename": "extra.json", "size": 5, "blobId": "0" * 40} | changes)
        return body

    return says


@pytest.mark.parametrize(
    "name",
    ["../escape.json", "/etc/escape.json", "a/../../escape.json", "a\\escape.json", "C:escape.json", "a//b", "x\ny"],
)
def test_names_that_lead_out_are_left_out(host: Host, tmp_path: Path, name: str) -> None:
    host.says = with_sibling(rfilename=name)
    before = {*tmp_path.rglob("*"), *address.base().parent.glob("escape*")}
    with open_checkpoint("hf://org/stories") as checkpoint:
        assert "escape.json" not in " ".join(checkpoint.assets)
        made_of = {path.name for path in address.base().rglob("*")}
    assert not {"escape.json", "b", "x\ny"} & made_of
    assert {*tmp_path.rglob("*"), *address.base().parent.glob("escape*")} == before


@pytest.mark.parametrize(
    "says",
    [
        lambda body: [],
        lambda body: body | {"sha": "../x"},
        lambda body: body | {"sha": None},
        lambda body: body | {"siblings": "many"},
        lambda body: body | {"siblings": [5]},
        lambda body: body | {"siblings": [{"rfilename": "config.json"}]},
        with_sibling(size=-1),
        with_sibling(size=1 << 60),
        with_sibling(size=None),
        with_sibling(lfs=7),
    ],
)
def test_a_hub_that_says_nonsense(host: Host, says: Any) -> None:
    host.says = says
    with pytest.raises(CorruptFile, match=r"^hf://org/stories: "):
        open_checkpoint("hf://org/stories")


def test_too_many_files(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listing, "MAX_FILES", 5)
    with pytest.raises(UnsupportedFeature, match="more than 5 files"):
        open_checkpoint("hf://org/stories")


@pytest.mark.parametrize("by", [-1, 1, 1000])
@pytest.mark.parametrize("file", ["config.json", "model.safetensors"])
def test_a_size_that_is_not_the_files(host: Host, tmp_path: Path, by: int, file: str) -> None:
    def says(body: dict[str, Any]) -> dict[str, Any]:
        for each in body["siblings"]:
            if each["rfilename"] == file:
                each["size"] += by
                each.pop("lfs", None)
        return body

    host.says = says
    with pytest.raises(OutputError, match=f"{file}: was changed"):
        made("hf://org/stories", "x.gguf", tmp_path)


@pytest.mark.parametrize("file", ["config.json", "tokenizer.json"])
def test_bytes_that_are_not_those_of_the_hash(host: Host, file: str) -> None:
    def says(body: dict[str, Any]) -> dict[str, Any]:
        for each in body["siblings"]:
            if each["rfilename"] == file:
                each["blobId"] = "1" * 40
        return body

    host.says = says
    with pytest.raises(CorruptFile, match=rf"hf://org/stories/{file}: its bytes are not those"):
        open_checkpoint("hf://org/stories")


def test_what_is_not_there(host: Host) -> None:
    with pytest.raises(MissingPart, match=r"hf://org/quants/new.gguf: is not there; there are: old/stories-q8_0.gguf"):
        open_checkpoint("hf://org/quants/new.gguf")
    for given in ("s3://bucket/absent", "s3://nowhere/x"):
        with pytest.raises(MissingPart):
            open_checkpoint(given)
    with pytest.raises(MissingPart):
        open_checkpoint(f"{host.url}/files/absent.gguf")
    with pytest.raises(UnsupportedFeature, match="folders cannot be listed"):
        open_checkpoint(f"{host.url}/files/org/model/")
    with pytest.raises(UsageError):
        open_checkpoint("hf://model")


def test_stores_refuse(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    host.faults = lambda path, number: "403"
    for scheme in STORES:
        with pytest.raises(OutputError, match=f"^{scheme}://bucket/models/model.*the store refuses"):
            open_checkpoint(f"{scheme}://bucket/models/model/config.json")


def test_profiles_of_aws(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / ".aws").mkdir()
    keys = "[default]\naws_access_key_id = A\naws_secret_access_key = B\n[work]\naws_access_key_id = C\n"
    (tmp_path / ".aws/credentials").write_text(keys + "aws_secret_access_key = D\naws_session_token = E\n")
    (tmp_path / ".aws/config").write_text("[profile work]\nregion = eu-west-1\n")
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    assert stores._aws() == {"access_key_id": "A", "secret_access_key": "B", "region": "us-east-1"}
    monkeypatch.setenv("AWS_PROFILE", "work")
    assert stores._aws() == {
        "access_key_id": "C", "secret_access_key": "D", "session_token": "E", "region": "eu-west-1"
    }  # fmt: skip
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "F")
    monkeypatch.setenv("AWS_REGION", "us-west-2")
    assert stores._aws() == {}


# ----------------------------------------------------------------------------------------------------------- lifetimes


def test_what_was_reached_for_goes_with_whoever_holds_it(host: Host) -> None:
    with ExitStack() as both:
        first = both.enter_context(open_checkpoint("hf://org/stories"))
        second = both.enter_context(open_checkpoint("hf://org/stories"))
        assert first.path == second.path and first.path.is_dir()
        asked = len(host.requests)
        second.close()
        second.close()
        tensor = next(iter(first.tensors.values()))
        assert tensor.rows(0, 1).size and len(host.requests) >= asked
    assert not first.path.exists()


def test_nobody_takes_a_pointer_for_a_file(host: Host) -> None:
    with open_checkpoint("hf://org/model") as checkpoint:
        pointer = checkpoint.files[0].read_text("utf-8")
        assert pointer.startswith("version https://git-lfs.github.com/spec/v1\noid sha256:")
        assert pointer.endswith(f"size {(host.root / 'org/model' / checkpoint.files[0].name).stat().st_size}\n")
