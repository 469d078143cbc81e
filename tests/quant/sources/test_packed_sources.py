"""Weights that arrive in codes: real samples by the hash of every weight, kept codes, every verb, lying files."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.builders import CONFIG, llama_folder, safetensors_of

import converter
from converter.checkpoint import Checkpoint
from converter.cli.main import main
from converter.errors import CorruptFile, UnsupportedFeature
from converter.events import StoredLoss
from converter.formats.registry import open_checkpoint
from converter.quant.sources import scheme_of, unpacked
from converter.quant.sources.declared import SIDECARS
from converter.request import KEEP_CODES
from converter.tensors.streams import values
from converter.tensors.tensor import LazyTensor

#: Folders of real libraries, and what becomes of their weights where codes may be kept.
SAMPLES = {
    "awq-gemm-g128-skip": {"Q5_0": 6},
    "awq-gemm-g32": {"Q5_0": 7},
    "awq-gemv-g64": {"Q5_0": 7},
    "bnb-fp4": {"F16": 7},
    "bnb-int8": {"F16": 7},
    "bnb-nf4-double": {"BF16": 7},
    "ct-fp8-block": {"BF16": 7},
    "ct-fp8-channel": {"BF16": 7},
    "ct-int8-channel": {"Q8_0": 7},
    "ct-mixed-nvfp4-fp8": {"BF16": 8, "NVFP4": 2},
    "ct-mxfp4": {"MXFP4": 7},
    "ct-nvfp4": {"NVFP4": 7},
    "ct-pack-w4-g128-sym": {"Q4_0": 7},
    "ct-pack-w4-g32-asym": {"Q5_0": 7},
    "ct-pack-w8-channel": {"Q8_0": 7},
    "fp8-block128": {"BF16": 7},
    "fp8-block128-cut-ue8m0": {"BF16": 7},
    "fp8-fbgemm-row": {"BF16": 7},
    "fp8-modelopt": {"BF16": 7},
    "fp8-tensor-static": {"BF16": 7},
    "gptq-2bit-g32-sym-actorder-v2": {"F16": 7},
    "gptq-3bit-g64-asym-v1": {"Q4_0": 7},
    "gptq-4bit-g128-sym-actorder-v1": {"F16": 1, "Q4_0": 6},
    "gptq-4bit-g32-sym-v1": {"Q4_0": 7},
    "gptq-4bit-g64-asym-v2": {"Q5_0": 7},
    "gptq-8bit-g-1-sym-v1": {"Q8_0": 7},
    "gptq-dynamic-mixed-v2": {"F16": 2, "Q5_0": 11},
    "hqq-4bit-g64-axis1": {"F16": 7},
    "hqq-8bit-g32-axis0": {"BF16": 7},
    "mlx-4bit-g64": {"Q4_1": 8},
    "mlx-8bit-g32-bf16": {"BF16": 8},
    "mlx-mixed-3-6bit": {"F16": 2, "Q4_1": 6},
    "mlx-mxfp4": {"MXFP4": 8},
    "quanto-qint8": {"Q8_0": 7},
    "torchao-int8wo": {"BF16": 7},
    "mxfp4-gpt-oss": {"BF16": 2},
    "nvfp4-modelopt": {"NVFP4": 7},
    "nvfp4-modelopt-mixed-fp8": {"BF16": 4, "NVFP4": 3},
}

#: What `--keep-codes near` makes of some: type, how many weights, how far off in parts of the largest, what is said.
NEAR = {
    "bnb-int8": ("Q8_0", 7, 2**-11, "scales are F32 and become F16"),
    "hqq-4bit-g64-axis1": ("Q4_1", 7, 2**-11, "least numbers, -zero * scale, become F16"),
    "hqq-8bit-g32-axis0": ("Q8_0", 0, 0, ""),
    "mlx-8bit-g32-bf16": ("Q8_0", 0, 0, ""),  # least numbers of up to 198 steps: more than eight bits
    "mlx-mixed-3-6bit": ("Q8_0", 2, 0.02 / 32, "least numbers become whole steps: each number moves by 0.0"),
    "torchao-int8wo": ("Q8_0", 7, 2**-8, "scales are F32 and become F16"),  # the library's own rounding is to BF16
}
#: Types in which a library gives the numbers of a sample, rounded, whatever is asked for.
ROUNDED = {"quanto-qint8": np.float16}


@pytest.fixture
def sample(data: Path, request: pytest.FixtureRequest) -> Path:
    folder = data / "quantized" / request.param
    if not folder.is_dir():
        pytest.skip(f"no {request.param}")
    return folder


each_sample = pytest.mark.parametrize("sample", SAMPLES, indirect=True)
#: What a GGUF takes as it is stands in a way of its own (tests/quant/sources/test_small_floats.py).
each_packed = pytest.mark.parametrize("sample", [name for name in SAMPLES if name != "mxfp4-gpt-oss"], indirect=True)


def numbers(tensor: LazyTensor, step: int = 1 << 20) -> np.ndarray:
    """All values, read in parts that begin anywhere."""
    rows = tensor.info.n_rows
    parts = [values(tensor, start, min(start + step, rows)) for start in range(0, rows, step)]
    return np.concatenate(parts)


def differing(one: Checkpoint, other: Checkpoint) -> list[str]:
    return [
        name for name in one.tensors if not np.array_equal(numbers(one.tensors[name]), numbers(other.tensors[name]))
    ]


@each_sample
def test_every_weight_of_real_samples(sample: Path) -> None:
    said: dict[str, dict[str, Any]] = json.loads((sample / "expected.json").read_text())
    expected = {name: facts for name, facts in said.items() if not name.endswith(".weight_format")}  # is no weight
    with open_checkpoint(sample) as opened:
        plain = unpacked(opened, typed=False)
        assert set(plain.tensors) == set(expected) and plain.config.keys() <= opened.config.keys()
        assert not {"quantization_config", "quantization"} & plain.config.keys()
        for name, facts in expected.items():
            tensor = plain.tensors[name]
            assert list(tensor.info.shape) == facts["shape"], name
            for step in (1 << 20, 7):  # whole, and in slabs that begin and end within runs and blocks
                assert hashlib.sha256(numbers(tensor, step).tobytes()).hexdigest() == facts["f32_sha256"], name


@each_sample
def test_codes_that_are_kept_are_the_same_numbers(sample: Path) -> None:
    with open_checkpoint(sample) as opened:
        plain, kept = unpacked(opened, typed=False), unpacked(opened, typed=False, keep="exact", rounded=True)
        packed = [name for name, tensor in kept.tensors.items() if opened.tensors.get(name) is not tensor]
        types = [kept.tensors[name].info.dtype.name for name in packed]
        assert {name: types.count(name) for name in sorted(set(types))} == SAMPLES[sample.name]
        own = np.dtype(ROUNDED.get(sample.name, np.float32))  # that codes were kept says more than the library
        for name in packed:
            wanted, found = numbers(plain.tensors[name]), numbers(kept.tensors[name], 7).astype(own).astype(np.float32)
            if kept.tensors[name].beside is not None:  # three factors, multiplied in another order
                np.testing.assert_array_max_ulp(wanted, found, 1)
            elif kept.tensors[name].info.dtype.quantized:
                assert np.array_equal(wanted, found), name


@pytest.mark.parametrize("sample", NEAR, indirect=True)
def test_codes_that_are_nearly_kept_say_by_how_much(sample: Path) -> None:
    kind, count, bound, says = NEAR[sample.name]
    with open_checkpoint(sample) as opened:
        plain, kept = unpacked(opened), unpacked(opened, keep="near")
        told = {event.tensor: str(event) for event in kept.events if isinstance(event, StoredLoss)}
        names = [name for name, each in kept.tensors.items() if each.info.dtype.name == kind]
        assert len(names) == count and set(told) == set(names) and all(says in each for each in told.values())
        for name in told:
            wanted, found = numbers(plain.tensors[name]), numbers(kept.tensors[name], 7)
            assert 0 < np.abs(found - wanted).max() <= bound * np.abs(wanted).max()


@each_packed
def test_converted_verified_and_looked_at(sample: Path, tmp_path: Path) -> None:
    """GGUF with codes kept and encoded again, a plain folder; `verify` makes each again."""
    for number, keep in enumerate((*KEEP_CODES, None)):
        more = [f"--keep-codes={keep}"] if keep else []
        assert main([str(sample), str(tmp_path / f"{number}.gguf"), *more]) == 0
        assert main(["verify", str(sample), str(tmp_path / f"{number}.gguf"), *more]) == 0
    assert main([str(sample), str(tmp_path / "q.gguf"), "--quant", "q8_0"]) == 0
    assert main(["verify", str(sample), str(tmp_path / "q.gguf")]) == 0
    assert main([str(sample), str(tmp_path / "plain") + "/", "--dtype", "f32"]) == 0
    assert main(["verify", str(sample), str(tmp_path / "plain")]) == 0
    assert "quant" not in (tmp_path / "plain" / "config.json").read_text()
    with open_checkpoint(sample) as opened, open_checkpoint(tmp_path / "plain") as plain:
        assert scheme_of(plain) is None and not differing(unpacked(opened, typed=False), plain)
    assert main(["check", str(sample)]) == 0
    assert main(["diff", str(tmp_path / "plain"), str(tmp_path / "q.gguf")]) in (0, 1)
    assert main(["compare", str(sample), "--quants", "q8_0"]) == 0


def magnitudes(tensor: LazyTensor, wanted: np.ndarray) -> dict[str, np.ndarray]:
    """What a share may be of; steps and least numbers by blocks of Q8_0 and Q4_1."""
    found = {"itself": np.abs(wanted)}
    if tensor.info.dtype.name in ("Q8_0", "Q4_1"):
        blocks = tensor.rows(0, tensor.info.n_rows).reshape(-1, tensor.info.dtype.type_size)
        halves = np.abs(np.ascontiguousarray(blocks[:, :4]).view(np.float16).astype(np.float32))
        step, least = (np.repeat(halves[:, k], 32).reshape(wanted.shape) for k in (0, 1))
        found |= {"a step": step, "the least number of its group": least}
    return found


#: Samples whose library rounds its numbers, and so do we where codes are decoded: then those that are kept say more.
OWN = {"quanto-qint8": 2**-11, "torchao-int8wo": 2**-8}


@each_packed
@pytest.mark.parametrize("how", [{}, {"keep_codes": "near"}, {"quant": "f16"}, {"quant": "bf16"}], ids=str)
def test_a_plan_says_what_is_exact_and_how_far_the_rest_is_off(
    sample: Path, how: dict[str, Any], tmp_path: Path
) -> None:
    """Every number of the GGUF that is planned, against the decoded one."""
    decoded = converter.plan(sample, tmp_path / "a.gguf", converter.Request(quant="f32", keep_codes="never"))
    made = converter.plan(sample, tmp_path / "b.gguf", converter.Request(**how))
    with decoded.checkpoint as plain, made.checkpoint as kept:
        said = {step.name: step.bound for step in made.steps if step.bound is not None and step.name in plain.tensors}
        assert len(said) == sum(SAMPLES[sample.name].values())
        for name, bound in said.items():
            wanted, found = (numbers(each.tensors[name]).astype(np.float64) for each in (plain, kept))
            if (beside := kept.tensors.get(name.removesuffix("weight") + "scale")) is not None:
                found *= numbers(beside)
            of, quantized = magnitudes(kept.tensors[name], wanted), kept.tensors[name].info.dtype.quantized
            most = sum((share.share * of[share.of] for share in bound.shares), np.zeros_like(wanted))
            most += (2.0**-23 if bound.but.endswith("last bit of F32") else 0) * of["itself"]
            most += (OWN.get(sample.name, 0) if quantized else 0) * of["itself"]
            most += 0 if bound.exact or quantized else 2.0**-25  # F16's least, halved
            assert (np.abs(found - wanted) <= most * (1 + 2.0**-20)).all(), (name, str(bound))


# ------------------------------------------------------------------------------------------ what is not read

WEIGHT = "model.layers.0.self_attn.q_proj.qweight"


def packed(folder: Path, config: dict[str, object], array: object = None) -> Path:
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(CONFIG | config))
    tensor = np.arange(32, dtype=np.int32).reshape(4, 8) if array is None else array
    (folder / "model.safetensors").write_bytes(safetensors_of({WEIGHT: tensor}))
    return folder


GPTQ = {"quantization_config": {"quant_method": "gptq", "bits": 4}}
DECLARED = {
    "EXL2": {"quantization_config": {"quant_method": "exl2", "bits": 4}},
    "AQLM": {"text_config": {"quantization_config": {"quant_method": "aqlm"}}},
    "VPTQ": {"compression_config": {"quant_method": "vptq"}},
    "Quark (w4)": {"quantization_config": {"quant_method": "quark", "quant_algo": "w4"}},
    "brandnew": {"quantization_config": {"quant_method": "brandnew"}},
}


@pytest.mark.parametrize("target", ["m.gguf", "m.safetensors", "m.npz", "m.pt"])
@pytest.mark.parametrize("scheme", DECLARED)
def test_codes_are_not_taken_for_numbers(tmp_path: Path, scheme: str, target: str) -> None:
    folder = packed(tmp_path / "m", DECLARED[scheme])
    with open_checkpoint(folder) as checkpoint:
        found = scheme_of(checkpoint)
        assert found is not None and found.name == scheme
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


@pytest.mark.parametrize("name", SIDECARS)
def test_a_file_beside_the_weights_says_it_too(tmp_path: Path, name: str) -> None:
    folder = packed(tmp_path / "m", {})
    (folder / name).write_text("{}")
    for given in (folder, folder / "model.safetensors"):
        with pytest.raises((UnsupportedFeature, CorruptFile), match="packed"):
            converter.convert(given, tmp_path / "m.npz")


def test_packed_tensors_as_they_are(tmp_path: Path) -> None:
    folder = packed(tmp_path / "m", GPTQ)
    converter.convert(folder, tmp_path / "m.npz", converter.Request(tensors_only=True))
    assert np.array_equal(np.load(tmp_path / "m.npz")[WEIGHT], np.arange(32, dtype=np.int32).reshape(4, 8))
    with pytest.raises(CorruptFile, match=r"packed by GPTQ, but .*qzeros is not there"):
        converter.convert(folder, tmp_path / "n.npz", converter.Request(tensors_only=True, dtype="f16"))


def test_a_folder_is_copied_with_the_config_that_says_it(tmp_path: Path) -> None:
    folder = packed(tmp_path / "m", GPTQ)
    converter.convert(folder, tmp_path / "copy", converter.Request(format="hf"))
    copy = json.loads((tmp_path / "copy" / "config.json").read_text())
    assert copy["quantization_config"] == {"quant_method": "gptq", "bits": 4}


def test_plain_weights_beside_a_config_that_names_a_scheme(tmp_path: Path) -> None:
    """As DeepSeek's own cast to BF16 leaves it."""
    folder = packed(tmp_path / "m", GPTQ, np.ones((4, 8), np.float32))
    with open_checkpoint(folder) as checkpoint:
        assert scheme_of(checkpoint) is None
    converter.convert(folder, tmp_path / "m.npz")
