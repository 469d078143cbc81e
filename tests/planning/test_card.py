"""The model card of a folder that was made: what it says, and that it changes nothing of what a card said before."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from support import adapters, models
from support.hosts import Host, serving
from support.rewriting import rewritten

import converter
from converter import Request, Source
from converter.mapping.model_card import front_matter, read_front_matter, with_entries
from converter.metadata import text

KJV = models.FIXTURES / "kjv-llama"


@pytest.fixture(scope="module")
def gguf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("gguf") / "q4.gguf"
    converter.convert(KJV, path, Request(quant="q4_k_m"))
    return path


def card(source: Path | Source | str, folder: Path, request: Request | None = None) -> str:
    converter.convert(source, f"{folder}/", request)
    return (folder / "README.md").read_text("utf-8")


def entries(card: str) -> dict[str, object]:
    found, notes = read_front_matter(front_matter(card) or "")
    assert not notes
    return dict(found)


def test_a_folder_of_a_gguf(gguf: Path, tmp_path: Path) -> None:
    made = card(rewritten(gguf, tmp_path / "q4.gguf", {"my.own": text("x")}), tmp_path / "folder")
    assert entries(made)["license"] == "mit" and entries(made)["library_name"] == "transformers"
    section = made.partition("## How this was made\n\n")[2]
    version = converter.__version__
    assert section.startswith(f"Converted from `q4.gguf` (GGUF, Q4_K_M) by model-converter {version}.\n")
    assert "- weights: Q4_K, Q6_K, F32 → F32; decoded, what their quantization had lost stays lost\n" in section
    assert "- `metadata my.own: dropped (a Hugging Face folder has no place for it)`\n" in section
    assert str(tmp_path) not in made


def test_the_way_back_reads_nothing_of_it(gguf: Path, tmp_path: Path) -> None:
    converter.convert(KJV, tmp_path / "a.gguf")
    converter.convert(tmp_path / "a.gguf", f"{tmp_path}/kjv-llama/")
    converter.convert(tmp_path / "kjv-llama", tmp_path / "b.gguf")
    assert (tmp_path / "a.gguf").read_bytes() == (tmp_path / "b.gguf").read_bytes()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "model"
    shutil.copytree(KJV, path)
    (path / "README.md").write_text("---\nlicense: mit\ntags:\n- a\n---\n# KJV\n\nIt reads.\n", "utf-8")
    return path


def test_a_folder_that_stays_as_it_is_keeps_its_card(folder: Path, tmp_path: Path) -> None:
    assert card(folder, tmp_path / "out", Request(split_max_size=4_000_000)) == (folder / "README.md").read_text(
        "utf-8"
    )


@pytest.mark.parametrize(
    ("request_", "weights", "library"),
    [
        (Request(dtype="f16"), "BF16 → F16", "transformers"),
        (Request(scheme="fp8"), "BF16 → F8_E4M3, BF16, F32 (scheme fp8)", "transformers"),
        (Request(scheme="mlx-4"), "BF16 → U32, BF16 (scheme mlx-4)", "mlx"),
    ],
)
def test_a_folder_in_other_types(request_: Request, weights: str, library: str, folder: Path, tmp_path: Path) -> None:
    made = card(folder, tmp_path / "out", request_)
    assert made.startswith(f"---\nlicense: mit\ntags:\n- a\nlibrary_name: {library}\n---\n# KJV\n\nIt reads.\n\n## How")
    assert f"\n- weights: {weights}\n" in made and "from `model` (Hugging Face folder)" in made
    again = card(tmp_path / "out", tmp_path / "more", Request(dtype="f32"))
    assert again.count("## How this was made") == 2 and again.startswith(made.rstrip("\n"))


def test_an_adapter_is_named_without_its_place(tmp_path: Path) -> None:
    base = adapters.small_base(tmp_path / "base")
    lora = adapters.written(tmp_path / "lora", adapters.lora("model.layers.0.self_attn.q_proj", 8, 8))
    made = card(Source(base, adapters=[(lora, 1)]), tmp_path / "out", Request(no_tokenizer=True))
    assert "- `lora: merged into 1 tensor, rank 2`" in made and str(tmp_path) not in made


def test_a_model_of_the_hub_is_the_base(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("huggingface_hub")
    (folder / "README.md").write_text("---\nbase_model:\n- else/where\n- and: more\nlicense: mit\n---\n", "utf-8")
    (tmp_path / "stored/org").mkdir(parents=True)
    folder.rename(tmp_path / "stored/org/model")
    with serving(Host(tmp_path / "stored")) as host:
        monkeypatch.setenv("HF_ENDPOINT", host.url)
        made = card("hf://org/model", tmp_path / "out", Request(scheme="fp8"))
    assert entries(made) == {
        "license": "mit", "library_name": "transformers", "base_model": "org/model", "base_model_relation": "quantized"
    }  # fmt: skip
    assert "from `hf://org/model` (Hugging Face folder)" in made


def test_a_card_that_cannot_be_read_is_carried(folder: Path, tmp_path: Path) -> None:
    (folder / "README.md").write_bytes(b"\xff\xfe# x")
    converter.convert(folder, f"{tmp_path}/out/", Request(dtype="f32"))
    assert (tmp_path / "out/README.md").read_bytes() == b"\xff\xfe# x"


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("", "---\na: b\n---\n"),
        ("# x\n", "---\na: b\n---\n# x\n"),
        ("---\na: c\n---\n", "---\na: c\n---\n"),
        ("---\nx: |\n  a: y\n---\ntext\n---\n", "---\nx: |\n  a: y\na: b\n---\ntext\n---\n"),
        ("---\nopen\n", "---\nopen\n"),
        ("---\r\nx: 1\r\n---\r\n", "---\r\nx: 1\r\n---\r\n"),
    ],
)
def test_entries(before: str, after: str) -> None:
    assert with_entries(before, {"a": "b"}) == after
