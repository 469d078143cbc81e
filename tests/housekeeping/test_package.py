"""Packages for runtimes: what is written is what Ollama and clients of registries look for, whole or not at all."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import pytest
from support import architectures, models
from support.rewriting import rewritten

import converter
from converter.cli.main import main
from converter.errors import (
    Cancelled,
    CorruptFile,
    OutputError,
    OutputExists,
    UnknownFormat,
    UnsupportedFeature,
    UsageError,
)
from converter.housekeeping import package as module
from converter.housekeeping.package import Beside, pack
from converter.housekeeping.shards import split
from converter.metadata import Value
from converter.storage import swap

STORIES = models.FIXTURES / "stories260K"
OLLAMA, CNCF = "application/vnd.ollama.image.", "application/vnd.cncf.model."


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "Stories 260K.gguf"
    converter.convert(STORIES, path, converter.Request(quant="q4_k_m"))
    return path


@pytest.fixture
def texts(tmp_path: Path) -> dict[str, Path]:
    said = {
        "template": "{{ .Prompt }}",
        "params": '{"temperature": 0.5, "stop": ["</s>"]}',
        "LICENSE": "do as you like\n",
    }
    for name, text in said.items():
        (tmp_path / name).write_text(text, "utf-8")
    return {name: tmp_path / name for name in said}


def read(path: Path) -> Any:
    return json.loads(path.read_text("utf-8"))


def kinds(manifest: Path) -> list[str]:
    """What the layers of Ollama's manifest are, in order."""
    return [layer["mediaType"].removeprefix(OLLAMA) for layer in read(manifest)["layers"]]


def tree(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def check_blobs(blobs: Path, separator: str) -> set[str]:
    """Every blob is what its name says; returns their digests."""
    for path in blobs.iterdir():
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        assert path.name == (f"sha256{separator}{digest}" if separator else digest)
    return {path.name.removeprefix(f"sha256{separator}" if separator else "") for path in blobs.iterdir()}


def test_ollama_finds_the_model_and_all_that_belongs_to_it(model: Path, texts: dict[str, Path], tmp_path: Path) -> None:
    """As `GetModel` of Ollama reads a store."""
    store = tmp_path / "store"
    beside = Beside(None, texts["template"], "be brief", texts["params"], (texts["LICENSE"],))
    made = pack(model, store, "ollama", name="tiny:q4", beside=beside)
    place = store / "manifests/registry.ollama.ai/library/tiny/q4"
    assert made.manifest == place and {path.name for path in store.iterdir()} == {"blobs", "manifests"}
    manifest = read(place)
    assert made.digest == "sha256:" + hashlib.sha256(place.read_bytes()).hexdigest()
    assert manifest["schemaVersion"] == 2
    assert manifest["mediaType"] == "application/vnd.docker.distribution.manifest.v2+json"
    found = {}
    for layer in (manifest["config"], *manifest["layers"]):
        blob = store / "blobs" / layer["digest"].replace(":", "-")
        assert blob.stat().st_size == layer["size"]
        found[layer["mediaType"]] = blob.read_bytes()
    assert found == {
        "application/vnd.docker.container.image.v1+json": found["application/vnd.docker.container.image.v1+json"],
        f"{OLLAMA}model": model.read_bytes(),
        f"{OLLAMA}template": b"{{ .Prompt }}",
        f"{OLLAMA}system": b"be brief",
        f"{OLLAMA}params": b'{"temperature":0.5,"stop":["</s>"]}',
        f"{OLLAMA}license": b"do as you like\n",
    }
    config = json.loads(found["application/vnd.docker.container.image.v1+json"])
    assert (config["model_format"], config["model_family"], config["file_type"]) == ("gguf", "llama", "Q4_K_M")
    with converter.open_checkpoint(model) as opened:
        count = sum(tensor.info.n_elements for tensor in opened.tensors.values())
    assert config["model_type"] == f"{count / 1000:.2f}K"
    digests = [layer["digest"] for layer in manifest["layers"]]
    assert config["rootfs"] == {"type": "layers", "diff_ids": digests}
    assert len(check_blobs(store / "blobs", "-")) == 6


def test_a_store_that_is_there_keeps_what_it_has_and_shares_blobs(model: Path, tmp_path: Path) -> None:
    store = tmp_path / "store"
    pack(model, store, "ollama", name="one")
    before = tree(store)
    made = pack(model, store, "ollama", name="someone/two")
    after = tree(store)
    assert {name: after[name] for name in before} == before
    assert set(after) - set(before) == {"manifests/registry.ollama.ai/someone/two/latest"}
    assert made.nbytes == len(after["manifests/registry.ollama.ai/someone/two/latest"])
    assert all(layer["there"] for layer in made.as_dict()["layers"])
    with pytest.raises(OutputExists, match="is there already"):
        pack(model, store, "ollama", name="one")
    system = Beside(system="x")
    pack(model, store, "ollama", name="one", beside=system, force=True)
    assert kinds(store / "manifests/registry.ollama.ai/library/one/latest") == ["model", "system", "params"]
    check_blobs(store / "blobs", "-")


def test_a_blob_that_is_not_what_its_name_says_is_no_model(model: Path, tmp_path: Path) -> None:
    store = tmp_path / "store"
    made = pack(model, store, "ollama", name="one")
    blob = store / "blobs" / f"sha256-{made.layers[0].sha256}"
    data = bytearray(blob.read_bytes())
    data[-1] ^= 1
    blob.write_bytes(data)
    with pytest.raises(CorruptFile, match="does not hold what its name says"):
        pack(model, store, "ollama", name="two")
    assert not (store / "manifests/registry.ollama.ai/library/two").exists()


@pytest.mark.parametrize("existing", [False, True])
def test_whole_or_not_at_all(model: Path, existing: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = tmp_path / "store"
    if existing:
        pack(model, store, "ollama", name="one", beside=Beside(system="a"))
    before = tree(tmp_path)
    real = swap.place

    def fails(source: Path, target: Path) -> None:
        if target.name == "latest":
            raise OSError(5, "broken")
        real(source, target)

    def renames(source: Any, target: Any) -> None:
        raise OSError(5, "broken")

    with monkeypatch.context() as patched:
        patched.setattr(swap, "place", fails)
        if not existing:
            patched.setattr(os, "rename", renames)
        with pytest.raises(OutputError, match="broken"):
            pack(model, store, "ollama", name="two", beside=Beside(system="b"))
    assert tree(tmp_path) == before
    with pytest.raises(Cancelled):
        pack(model, store, "ollama", name="two", progress=lambda _: False)
    assert tree(tmp_path) == before


def test_oci_layout_of_a_gguf(model: Path, texts: dict[str, Path], tmp_path: Path) -> None:
    """OCI image layout 1.0.0, an artefact by ModelPack's specification."""
    folder = tmp_path / "artefact"
    made = pack(model, folder, "oci", name="tiny:q4", beside=Beside(licences=(texts["LICENSE"],)))
    assert read(folder / "oci-layout") == {"imageLayoutVersion": "1.0.0"}
    index = read(folder / "index.json")
    assert index["mediaType"] == "application/vnd.oci.image.index.v1+json" and index["schemaVersion"] == 2
    (entry,) = index["manifests"]
    assert entry["annotations"] == {"org.opencontainers.image.ref.name": "q4"} and entry["digest"] == made.digest
    raw = (folder / "blobs/sha256" / entry["digest"].removeprefix("sha256:")).read_bytes()
    manifest = json.loads(raw)
    assert len(raw) == entry["size"] and manifest["mediaType"] == entry["mediaType"]
    assert manifest["artifactType"] == entry["artifactType"] == f"{CNCF}manifest.v1+json"
    assert [(layer["mediaType"], layer["annotations"]["org.cncf.model.filepath"]) for layer in manifest["layers"]] == [
        (f"{CNCF}weight.v1.raw", model.name), (f"{CNCF}doc.v1.raw", "LICENSE")
    ]  # fmt: skip
    config = read(folder / "blobs/sha256" / manifest["config"]["digest"].removeprefix("sha256:"))
    assert manifest["config"]["mediaType"] == f"{CNCF}config.v1+json"
    assert config["modelfs"] == {"type": "layers", "diffIds": [layer["digest"] for layer in manifest["layers"]]}
    assert config["config"] == {"format": "gguf", "paramSize": config["config"]["paramSize"], "quantization": "Q4_K_M"}
    assert config["descriptor"]["name"] == "tiny" and config["descriptor"]["family"] == "llama"
    assert check_blobs(folder / "blobs/sha256", "") == {
        each["digest"].removeprefix("sha256:") for each in (entry, manifest["config"], *manifest["layers"])
    }
    with pytest.raises(OutputExists):
        pack(model, folder, "oci")


def test_oci_layout_of_a_folder(tmp_path: Path) -> None:
    folder = architectures.build("gemma3-tiny", tmp_path / "source")
    (folder / "README.md").write_text("---\nlicense: mit\n---\n", "utf-8")
    split(folder, tmp_path / "shards", max_tensors=60)
    made = pack(tmp_path / "shards", tmp_path / "artefact", "oci")
    kinds = {blob.part.name: blob.part.media_type.removeprefix(CNCF) for blob in made.layers}
    assert kinds["config.json"] == kinds["tokenizer.json"] == "weight.config.v1.raw"
    assert kinds["model.safetensors.index.json"] == "weight.config.v1.raw" and kinds["README.md"] == "doc.v1.raw"
    shards = [name for name in kinds if name.startswith("model-0000")]
    assert len(shards) > 1 and {kinds[name] for name in shards} == {"weight.v1.raw"}
    # What a client makes of it is the folder that was packed.
    back = tmp_path / "back"
    for blob in made.layers:
        place = back / blob.part.name
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes((tmp_path / "artefact/blobs/sha256" / blob.sha256).read_bytes())
    assert tree(back) == tree(tmp_path / "shards")
    config = tmp_path / "artefact/blobs/sha256"
    said = next(read(path) for path in config.iterdir() if path.read_bytes().startswith(b'{"descriptor"'))
    assert said["config"]["format"] == "safetensors" and said["config"]["precision"] == "bf16"


@pytest.mark.parametrize("kind", ["ollama", "oci"])
def test_equal_inputs_make_equal_bytes(kind: str, model: Path, texts: dict[str, Path], tmp_path: Path) -> None:
    beside = Beside(template=texts["template"], licences=(texts["LICENSE"],))
    for name in ("one", "two"):
        pack(model, tmp_path / name, kind, beside=beside, threads=1 if name == "one" else 4)
    assert tree(tmp_path / "one") == tree(tmp_path / "two")


def test_a_projector_goes_with_its_model(model: Path, tmp_path: Path) -> None:
    source = architectures.build("gemma3-mmproj", tmp_path)
    projector = tmp_path / "mmproj.gguf"
    converter.convert(source, projector, converter.Request(**architectures.facts("gemma3-mmproj")["request"]))
    made = pack(model, tmp_path / "store", "ollama", beside=Beside(projector=projector))
    assert kinds(made.manifest) == ["model", "projector", "params"]
    assert made.name == "stories-260k:latest"
    with pytest.raises(UsageError, match="is no projector"):
        pack(model, tmp_path / "other", "ollama", beside=Beside(projector=model))
    with pytest.raises(UnsupportedFeature, match="give the model"):
        pack(projector, tmp_path / "other", "ollama")


@pytest.mark.parametrize("name", ["../x", "a/../b", "a/b/c/d", "a b", ".x", "x:", "x:../y", "", "/x", "a//b", "x" * 81])
def test_no_name_leads_out_of_the_store(name: str, model: Path, tmp_path: Path) -> None:
    if name:
        with pytest.raises(UsageError, match="--name"):
            pack(model, tmp_path / "store", "ollama", name=name)
        assert list(tmp_path.iterdir()) == []
    for stem in (f"{name.replace('/', '-')}.gguf", "...gguf"):
        assert module._NAME.fullmatch(module._usual_name(tmp_path / stem))


def test_what_has_no_place_is_refused(model: Path, texts: dict[str, Path], tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(UnsupportedFeature, match="holds GGUF"):
        pack(STORIES, out, "ollama")
    parts = split(model, tmp_path / "part", max_tensors=20)
    with pytest.raises(UnsupportedFeature, match="convert merge"):
        pack(parts.files[0][0], out, "ollama")
    with pytest.raises(UsageError, match="Ollama's"):
        pack(model, out, "oci", beside=Beside(system="x"))
    with pytest.raises(UsageError, match="no such package"):
        pack(model, out, "zip")
    (tmp_path / "bad").write_bytes(b"\xff")
    with pytest.raises(UsageError, match="not UTF-8"):
        pack(model, out, "ollama", beside=Beside(template=tmp_path / "bad"))
    (tmp_path / "list").write_text("[]", "utf-8")
    with pytest.raises(CorruptFile, match="not an object"):
        pack(model, out, "ollama", beside=Beside(parameters=tmp_path / "list"))
    with pytest.raises(UsageError, match="two files of this name"):
        same = tmp_path / "same" / model.name
        same.parent.mkdir()
        same.write_text("x", "utf-8")
        pack(model, out, "oci", beside=Beside(licences=(same,)))
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(model.read_bytes()[:5000])
    with pytest.raises(CorruptFile):
        pack(broken, out, "oci")
    assert not out.exists()


def test_what_is_left_out_is_told(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = rewritten(model, tmp_path / "said.gguf", {"general.license": Value("str", "mit")})
    assert main(["package", str(said), str(tmp_path / "store"), "--as", "ollama", "--name", "x"]) == 0
    shown = capsys.readouterr()
    assert "no template: the GGUF has no chat template" in shown.err and " params " in shown.out
    assert kinds(tmp_path / "store/manifests/registry.ollama.ai/library/x/latest") == ["model", "params", "license"]
    assert main(["package", str(said), str(tmp_path / "a"), "--as", "oci", "--json"]) == 0
    made = json.loads(capsys.readouterr().out)
    assert made["as"] == "oci" and made["layers"][0]["mediaType"] == f"{CNCF}weight.v1.raw"


def test_who_opens_a_package_is_told_where_the_model_lies(model: Path, tmp_path: Path) -> None:
    ollama, oci = (pack(model, tmp_path / kind, kind) for kind in ("ollama", "oci"))
    for opened, made in ((ollama.manifest, ollama), (tmp_path / "oci", oci)):
        with pytest.raises(UnsupportedFeature, match="is a manifest of a packed model") as said:
            converter.open_checkpoint(opened)
        named = Path(str(said.value).rpartition("give its file: ")[2])
        assert made.layers[0].sha256 in named.name
        with converter.open_checkpoint(named) as one, converter.open_checkpoint(model) as other:
            assert one.format == "gguf" and one.tensors.keys() == other.tensors.keys()
    layer = read(ollama.manifest)["layers"][0]
    (tmp_path / "ollama/blobs" / layer["digest"].replace(":", "-")).unlink()
    with pytest.raises(UnsupportedFeature, match="its file is not there"):
        converter.open_checkpoint(ollama.manifest)
    for content in ('{"layers": 1}', '{"layers": [1, {"mediaType": 2}]}', "{", '{"layers": [' + "[" * 9999):
        (tmp_path / "strange").write_text(content, "utf-8")
        with pytest.raises(UnknownFormat):
            converter.open_checkpoint(tmp_path / "strange")
    wild = {"mediaType": layer["mediaType"], "digest": "sha256:../../x"}
    ollama.manifest.write_text(json.dumps({"layers": [wild, {**wild, "digest": ["x"]}]}), "utf-8")
    with pytest.raises(UnsupportedFeature, match="its file is not there"):
        converter.open_checkpoint(ollama.manifest)
