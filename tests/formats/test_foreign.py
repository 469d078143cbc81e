"""Folders that hold something else than a model are called by name, and packed weights are not taken for numbers."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from support.builders import CONFIG, llama_folder, safetensors_of

import converter
from converter.cli.main import main
from converter.errors import ConverterError, CorruptFile, OutputError, UnsupportedFeature
from converter.formats.foreign import scheme_of
from converter.formats.registry import open_checkpoint

FOLDERS = {
    "DCP": (["dcp/.metadata", "dcp/__0_0.distcp"], "dcp", "distributed checkpoint"),
    "DCP below": (["c/model/.metadata", "c/model/__3_1.distcp"], "c", "distributed checkpoint"),
    "FSDP of accelerate": (["c/pytorch_model_fsdp_0/.metadata", "c/optimizer.bin"], "c", "distributed checkpoint"),
    "DeepSpeed": (["d/latest", "d/global_step10/mp_rank_00_model_states.pt"], "d", "zero_to_fp32"),
    "DeepSpeed's step": (
        ["global_step10/bf16_zero_pp_rank_0_mp_rank_00_optim_states.pt"], "global_step10", "zero_to_fp32"
    ),
    "verl": (["actor/model_world_size_2_rank_0.pt", "actor/fsdp_config.json"], "actor", "verl.model_merger"),
    "Megatron": (["m/latest_checkpointed_iteration.txt", "m/iter_0000001/mp_rank_00/model_optim_rng.pt"], "m", "Megat"),
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


def test_a_shard_of_a_distributed_checkpoint(tmp_path: Path) -> None:
    made(tmp_path, ["__0_0.distcp"])
    with pytest.raises(UnsupportedFeature, match="shard of a PyTorch distributed checkpoint"):
        open_checkpoint(tmp_path / "__0_0.distcp")


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
    "name", ["some-org/some-model", "hf://some-org/some-model", "https://huggingface.co/some-org/some-model"]
)
def test_a_name_on_the_hub_is_no_path(name: str) -> None:
    with pytest.raises(OutputError, match=r"hf download some-org/some-model"):
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


# ------------------------------------------------------------------------------------------ packed weights

WEIGHT = "model.layers.0.self_attn.q_proj.qweight"


def packed(folder: Path, config: dict[str, object], array: object = None) -> Path:
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(CONFIG | config))
    tensor = np.arange(32, dtype=np.int32).reshape(4, 8) if array is None else array
    (folder / "model.safetensors").write_bytes(safetensors_of({WEIGHT: tensor}))
    return folder


DECLARED = {
    "GPTQ": {"quantization_config": {"quant_method": "gptq", "bits": 4}},
    "AWQ": {"quantization_config": {"quant_method": "awq", "bits": 4}},
    "MLX": {"quantization": {"bits": 4, "group_size": 64}, "quantization_config": {"bits": 4, "group_size": 64}},
    "bitsandbytes": {"text_config": {"quantization_config": {"quant_method": "bitsandbytes"}}},
    "ModelOpt (NVFP4)": {"quantization_config": {"quant_method": "modelopt", "quant_algo": "NVFP4"}},
    "compressed-tensors": {"compression_config": {"quant_method": "compressed-tensors"}},
    "brandnew": {"quantization_config": {"quant_method": "brandnew"}},
}


@pytest.mark.parametrize("target", ["m.gguf", "m.safetensors", "m.npz", "m.pt"])
@pytest.mark.parametrize("scheme", DECLARED)
def test_codes_are_not_taken_for_numbers(tmp_path: Path, scheme: str, target: str) -> None:
    folder = packed(tmp_path / "m", DECLARED[scheme])
    with open_checkpoint(folder) as checkpoint:
        assert scheme_of(checkpoint) == scheme
    with pytest.raises(UnsupportedFeature) as caught:
        converter.convert(folder, tmp_path / target)
    assert f"packed by {scheme}, which" in str(caught.value) and not (tmp_path / target).exists()


@pytest.mark.parametrize("scheme", DECLARED)
@pytest.mark.parametrize("verb", ["verify", "compare", "check", "diff"])
def test_no_verb_takes_codes_for_numbers(
    tmp_path: Path, scheme: str, verb: str, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = packed(tmp_path / "m", DECLARED[scheme])
    plain = llama_folder(tmp_path / "plain")
    converter.convert(plain, tmp_path / "m.gguf")
    more = {"verify": [tmp_path / "m.gguf"], "diff": [tmp_path / "m.gguf"]}.get(verb, [])
    assert main([verb, str(folder), *map(str, more)]) == UnsupportedFeature.exit_code
    printed = capsys.readouterr()
    assert f"packed by {scheme}, which" in printed.out + printed.err


@pytest.mark.parametrize("name", ["quantize_config.json", "quanto_qmap.json", "hf_quant_config.json"])
def test_a_file_beside_the_weights_says_it_too(tmp_path: Path, name: str) -> None:
    folder = packed(tmp_path / "m", {})
    (folder / name).write_text("{}")
    for given in (folder, folder / "model.safetensors"):
        with pytest.raises(UnsupportedFeature, match="packed by"):
            converter.convert(given, tmp_path / "m.npz")


def test_packed_tensors_as_they_are(tmp_path: Path) -> None:
    folder = packed(tmp_path / "m", DECLARED["GPTQ"])
    converter.convert(folder, tmp_path / "m.npz", converter.Request(tensors_only=True))
    assert np.array_equal(np.load(tmp_path / "m.npz")[WEIGHT], np.arange(32, dtype=np.int32).reshape(4, 8))
    with pytest.raises(UnsupportedFeature, match="packed by GPTQ"):
        converter.convert(folder, tmp_path / "n.npz", converter.Request(tensors_only=True, dtype="f16"))


def test_a_folder_is_copied_with_the_config_that_says_it(tmp_path: Path) -> None:
    folder = packed(tmp_path / "m", DECLARED["GPTQ"])
    converter.convert(folder, tmp_path / "copy", converter.Request(format="hf"))
    copy = json.loads((tmp_path / "copy" / "config.json").read_text())
    assert copy["quantization_config"] == {"quant_method": "gptq", "bits": 4}


def test_plain_weights_beside_a_config_that_names_a_scheme(tmp_path: Path) -> None:
    """As DeepSeek's own cast to BF16 leaves it."""
    folder = packed(tmp_path / "m", DECLARED["GPTQ"], np.ones((4, 8), np.float32))
    with open_checkpoint(folder) as checkpoint:
        assert scheme_of(checkpoint) is None
    converter.convert(folder, tmp_path / "m.npz")


def test_real_samples(data: Path, tmp_path: Path) -> None:
    samples = data / "quantized"
    if not samples.is_dir():
        pytest.skip("no packed models")
    refused = 0
    for folder in sorted(samples.iterdir()):
        if folder.name.startswith("lora-base"):
            continue
        with pytest.raises(UnsupportedFeature, match=r"is a PEFT adapter|the weights are packed by"):
            converter.convert(folder, tmp_path / "m.npz")
        refused += 1
    assert refused and not (tmp_path / "m.npz").exists()


def test_a_folder_is_named_even_where_its_name_begins_a_files(tmp_path: Path) -> None:
    folder = llama_folder(tmp_path / "tokenizer")
    (folder / "tokenizer.model").write_text("version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(ConverterError) as caught:
        converter.convert(folder, tmp_path / "m.gguf")
    assert str(caught.value).startswith(f"{folder}: tokenizer.model: is a Git LFS pointer")
