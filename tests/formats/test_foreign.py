"""Folders that hold something else than a model are called by name."""

from __future__ import annotations

from pathlib import Path

import pytest
from support import importance
from support.builders import llama_folder

import converter
from converter.cli.main import main
from converter.errors import ConverterError, CorruptFile, OutputError, UnsupportedFeature
from converter.formats.registry import open_checkpoint

FOLDERS = {
    "PEFT": (["a/adapter_config.json", "a/adapter_model.safetensors"], "a", "PEFT adapter"),
    "PEFT with a config": (["a/adapter_config.json", "a/config.json", "a/adapter_model.bin"], "a", "PEFT adapter"),
    "diffusers": (["p/model_index.json", "p/unet/diffusion_pytorch_model.safetensors"], "p", "diffusers"),
    "a cache": (["hub/models--a--b/snapshots/0123/config.json"], "hub", "such as"),
    "blobs alone": (["models--a--b/blobs/0", "models--a--b/snapshots/.keep"], "models--a--b", "without a snapshot"),
}  # fmt: skip


def made(folder: Path, names: list[str]) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"{}")


@pytest.mark.parametrize("case", FOLDERS)
def test_folders_are_called_what_they_are(tmp_path: Path, case: str) -> None:
    names, given, says = FOLDERS[case]
    made(tmp_path, names)
    with pytest.raises(UnsupportedFeature, match=says):
        open_checkpoint(tmp_path / given)


@pytest.mark.parametrize("beside", ["adapter_config.json", "global_step5/mp_rank_00_model_states.pt", "__0_0.distcp"])
def test_a_model_with_such_things_beside_it_is_a_model(tmp_path: Path, beside: str) -> None:
    folder = llama_folder(tmp_path)
    made(folder, [beside])
    with open_checkpoint(folder) as checkpoint:
        assert checkpoint.format == "hf"


@pytest.mark.parametrize("below", ["", "snapshots"])
def test_a_cache_names_the_snapshot_that_main_is(tmp_path: Path, below: str) -> None:
    root = tmp_path / "models--a--b"
    made(root, ["snapshots/0000/config.json", "snapshots/0123/config.json", "refs/main"])
    (root / "refs/main").write_text("0123")
    with pytest.raises(UnsupportedFeature) as caught:
        open_checkpoint(root / below)
    assert str(root / "snapshots" / "0123") in str(caught.value)


@pytest.mark.parametrize(
    "name",
    ["some-org/some-model", Path("hf://some-org/some-model"), Path("https://huggingface.co/some-org/some-model")],
)
def test_a_name_on_the_hub_is_no_path(name: str | Path) -> None:
    with pytest.raises(OutputError, match=r"is given as hf://some-org/some-model$"):
        open_checkpoint(name)


def test_a_path_that_is_not_there_is_no_name_on_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "models").mkdir()
    monkeypatch.chdir(tmp_path)
    for path in ("models/absent", "absent", str(tmp_path / "absent")):
        with pytest.raises(OutputError) as caught:
            open_checkpoint(path)
        assert "Hub" not in str(caught.value)


def test_links_out_of_a_folder_say_why_and_what_to_do(tmp_path: Path) -> None:
    store, folder = llama_folder(tmp_path / "store"), tmp_path / "model"
    folder.mkdir()
    for path in store.iterdir():
        (folder / path.name).symlink_to(path)
    with pytest.raises(CorruptFile, match=r"leads out of the folder, by a link[^\n]*\n.*cp -rL model"):
        open_checkpoint(folder)


def test_real_adapters(data: Path, tmp_path: Path) -> None:
    samples = [path for path in sorted((data / "quantized").glob("lora-*")) if not path.name.startswith("lora-base")]
    if not samples:
        pytest.skip("no adapters")
    for folder in samples:
        with pytest.raises(UnsupportedFeature, match="is a PEFT adapter"):
            converter.convert(folder, tmp_path / "m.npz")
    assert not (tmp_path / "m.npz").exists()


def test_a_folder_is_named_even_where_its_name_begins_a_files(tmp_path: Path) -> None:
    folder = llama_folder(tmp_path / "tokenizer")
    (folder / "tokenizer.model").write_text("version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(ConverterError) as caught:
        converter.convert(folder, tmp_path / "m.gguf")
    assert str(caught.value).startswith(f"{folder}: tokenizer.model: is a Git LFS pointer")


def test_an_importance_matrix_is_none(capsys: pytest.CaptureFixture[str]) -> None:
    path = importance.FIXTURES / "stories260K.dat"
    assert main(["inspect", str(path)]) == 12
    said = capsys.readouterr().err
    assert "is an importance matrix of llama-imatrix (35 entries)" in said and "--imatrix stories260K.dat" in said


def test_an_adapter_says_what_it_is_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = tmp_path / "adapter_config.json"
    for content, of in (('{"base_model_name_or_path": "org/base"}', " of org/base"), ("[]", ""), ("{}", "")):
        config.write_text(content)
        assert main(["inspect", str(tmp_path)]) == 12
        assert f"is a PEFT adapter{of}, which changes a base model" in capsys.readouterr().err
