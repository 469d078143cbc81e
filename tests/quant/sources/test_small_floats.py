"""Floats of four and eight bits that arrive packed: numbers, blocks of ggml as llama.cpp has them, bad files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support import packed
from support.paths import FIXTURES

from converter.cli.main import main
from converter.errors import ConverterError
from converter.formats.registry import open_checkpoint
from converter.quant.sources import scheme_of, unpacked
from converter.tensors.streams import values
from converter.tensors.tensor import LazyTensor

EXPECTED: dict[str, Any] = json.loads((FIXTURES / "expected/packed/llama_cpp.json").read_text("utf-8"))
MADE = {"moe-nvfp4": "NVFP4", "moe-w4a16": "W4A16_NVFP4"}
X = "model.layers.0.self_attn.q_proj"


def numbers(tensor: LazyTensor) -> np.ndarray:
    return values(tensor, 0, tensor.info.n_rows).reshape(tensor.info.shape)


def digests(path: Path) -> list[list[Any]]:
    """What `fixtures/make_packed.py` records of a file's tensors."""
    import hashlib

    with open_checkpoint(path) as opened:
        return sorted(
            [name, tensor.info.dtype.name, list(tensor.info.shape),
             hashlib.sha256(np.ascontiguousarray(tensor.rows(0, tensor.info.n_rows)).tobytes()).hexdigest()[:16]]
            for name, tensor in opened.tensors.items()
        )  # fmt: skip


@pytest.fixture(params=EXPECTED)
def recorded(data: Path, tmp_path: Path, request: pytest.FixtureRequest) -> tuple[str, Path]:
    name = request.param
    if name in MADE:
        return name, packed.moe(tmp_path / name, MADE[name])
    folder = data / "quantized" / name
    if not folder.is_dir():
        pytest.skip(f"no {name}")
    return name, folder


def test_every_byte_as_llama_cpp_has_it(recorded: tuple[str, Path], tmp_path: Path) -> None:
    """NVFP4 stays in its blocks whatever plain type is asked for; with its scales, and which activations it meets."""
    name, folder = recorded
    target = tmp_path / "f32.gguf"
    assert main([str(folder), str(target), "--quant", "f32"]) == 0
    assert digests(target) == EXPECTED[name]["tensors"]
    with open_checkpoint(target) as opened:
        for key, _, value in EXPECTED[name]["keys"]:
            entry = opened.config[key]
            assert (list(entry.values) if isinstance(value, list) else entry.value) == value, key
        told = {key for key in opened.config if key.startswith("general.tensor_extra")}
        assert told <= {key for key, *_ in EXPECTED[name]["keys"]}
    assert main(["verify", str(folder), str(target), "--quant", "f32"]) == 0
    assert main(["check", str(target)]) == 0


def test_numbers_of_experts_with_scales_of_their_own(tmp_path: Path) -> None:
    """A folder, a GGUF of it with codes kept, and the folder made of that GGUF: the same numbers but for a rounding."""
    folder = packed.moe(tmp_path / "moe", "NVFP4")
    assert main([str(folder), str(tmp_path / "plain") + "/", "--dtype", "f32"]) == 0
    assert main([str(folder), str(tmp_path / "kept.gguf")]) == 0
    assert main([str(tmp_path / "kept.gguf"), str(tmp_path / "back") + "/", "--dtype", "f32"]) == 0
    with open_checkpoint(tmp_path / "plain") as plain, open_checkpoint(tmp_path / "back") as back:
        assert plain.tensors.keys() == back.tensors.keys()
        for name, tensor in plain.tensors.items():
            wanted, found = numbers(tensor), numbers(back.tensors[name])
            if ".experts." in name:
                np.testing.assert_array_max_ulp(wanted, found, 1)
            elif ".self_attn." not in name:  # whose FP8 became the BF16 that the model calculates in
                assert np.array_equal(wanted, found), name
    assert main(["verify", str(tmp_path / "kept.gguf"), str(tmp_path / "back")]) == 0
    assert main(["diff", str(tmp_path / "kept.gguf"), str(folder)]) == 0


# --------------------------------------------------------------------------------------------------- gpt-oss


@pytest.fixture
def gpt_oss(data: Path) -> Path:
    folder = data / "quantized/mxfp4-gpt-oss"
    if not folder.is_dir():
        pytest.skip("no mxfp4-gpt-oss")
    return folder


def test_gpt_oss_to_a_plain_folder(gpt_oss: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Under the names and the way round that the model has, as the same GGUF makes it."""
    plain = tmp_path / "plain"
    assert main([str(gpt_oss), f"{plain}/", "--dtype", "bf16"]) == 0
    assert "quantization_config" not in json.loads((plain / "config.json").read_text())
    with open_checkpoint(gpt_oss) as opened, open_checkpoint(plain) as made:
        assert scheme_of(made) is None and {t.info.dtype.name for t in made.tensors.values()} == {"BF16"}
        wanted = unpacked(opened, typed=False).tensors
        assert wanted.keys() == made.tensors.keys()
        assert all(np.array_equal(numbers(tensor), numbers(made.tensors[name])) for name, tensor in wanted.items())
    assert main(["verify", str(gpt_oss), str(plain)]) == 0
    assert main(["check", str(gpt_oss)]) == main(["check", str(plain)])
    capsys.readouterr()
    assert main(["diff", str(gpt_oss), str(plain)]) == 1
    printed = capsys.readouterr().out
    assert printed.count("F32 4x64") == printed.count("values equal") == 2 and "2 of 20 differ" in printed
    for folder in (gpt_oss, plain):
        target = tmp_path / f"{folder.name}.gguf"
        assert main([str(folder), str(target), "--no-tokenizer"]) == 0
    assert main(["diff", str(tmp_path / "mxfp4-gpt-oss.gguf"), str(tmp_path / "plain.gguf")]) == 1
    with open_checkpoint(tmp_path / "mxfp4-gpt-oss.gguf") as one, open_checkpoint(tmp_path / "plain.gguf") as other:
        assert one.tensors["blk.0.ffn_up_exps.weight"].info.dtype.name == "MXFP4"
        for name in one.tensors:
            assert np.array_equal(numbers(one.tensors[name]), numbers(other.tensors[name])), name


# ------------------------------------------------------------------------------ other files, by their formulas

RNG = np.random.default_rng(5)
CODES = RNG.integers(0, 16, (96, 128), np.uint8)
EXPONENTS = RNG.integers(110, 135, (96, 4), np.uint8)
EIGHTS = RNG.integers(0, 0x70, (96, 128), np.uint8) | RNG.integers(0, 2, (96, 128), np.uint8) << 7
FOURS = packed.LEVELS[CODES] * np.repeat(np.exp2(EXPONENTS.astype(np.float32) - 127), 32, axis=1)
FLOATS = EIGHTS.view(packed.TYPES["F8_E4M3"]).astype(np.float32)
MICRO = FLOATS * np.repeat(np.exp2(EXPONENTS.astype(np.float32) - 127), 32, axis=1)
BEFORE = RNG.standard_normal(128).astype(np.float32)
GROUPS = RNG.integers(0x20, 0x50, (96, 8), np.uint8)
NV = (packed.LEVELS[CODES] + np.float32(0)) * np.repeat(
    GROUPS.view(packed.TYPES["F8_E4M3"]).astype(np.float32) * np.float32(0.125), 16, axis=1
)
BLOCK = RNG.random((2, 1), np.float32)
INTS = RNG.integers(-128, 128, (96, 128)).astype(np.int8)
ROWS = RNG.random((96, 1)).astype(np.float16)
_TALL = np.repeat(BLOCK, 64, axis=0)[:96]

Case = tuple[dict[str, Any], dict[str, packed.Typed], np.ndarray, str]


def nv(**more: packed.Typed) -> dict[str, packed.Typed]:
    own: dict[str, packed.Typed] = {
        "weight": ("U8", packed.nibbles(CODES)), "weight_scale": ("F8_E4M3", GROUPS), "weight_scale_2": ("F32", 0.125),
    }  # fmt: skip
    return own | more


#: What config.json says, the tensors of a module, its numbers, and the type that a GGUF gets.
CASES: dict[str, Case] = {
    "DeepSeek-V4's experts": (
        {"quant_method": "fp8", "fmt": "e4m3", "scale_fmt": "ue8m0", "weight_block_size": [128, 128]},
        {"weight": ("I8", packed.nibbles(CODES).view(np.int8)), "scale": ("F8_E8M0", EXPONENTS)},
        FOURS,
        "MXFP4",
    ),
    "DeepSeek-V4's dense weights": (
        {"quant_method": "fp8", "fmt": "e4m3", "scale_fmt": "ue8m0", "weight_block_size": [128, 128]},
        {"weight": ("F8_E4M3", EIGHTS), "scale": ("F8_E8M0", np.full((1, 1), 120, np.uint8))},
        FLOATS * np.float32(2.0**-7),
        "BF16",
    ),
    "MXFP8": (
        {"quant_method": "fp8"},
        {"weight": ("F8_E4M3", EIGHTS), "weight_scale": ("U8", EXPONENTS)},
        MICRO,
        "BF16",
    ),
    "FP8 in bytes": (
        {"quant_method": "fp8", "weight_block_size": None},
        {"weight": ("I8", EIGHTS.view(np.int8)), "weight_scale_inv": ("F32", np.float32(0.5))},
        FLOATS * np.float32(0.5),
        "BF16",
    ),
    "FP8 in blocks of 64x128": (
        {"quant_method": "fp8", "weight_block_size": [64, 128]},
        {"weight": ("F8_E4M3", EIGHTS), "weight_scale_inv": ("F32", BLOCK)},
        FLOATS * _TALL,
        "BF16",
    ),
    "Mistral's names": (
        {"quant_method": "fp8", "activation_scheme": "static"},
        {
            "weight": ("F8_E4M3", EIGHTS),
            "qscale_weight": ("F32", np.float32(0.75)),
            "qscale_act": ("F32", np.float32(1)),
        },
        FLOATS * np.float32(0.75),
        "BF16",
    ),
    "ModelOpt's blocks": (
        {"quant_method": "modelopt", "quant_algo": "FP8_PB_WO"},
        {"weight": ("F8_E4M3", EIGHTS), "weight_scale": ("F32", np.full((1, 1, 1, 1), 0.5))},
        FLOATS * np.float32(0.5),
        "BF16",
    ),
    "ModelOpt's rows": (
        {"quant_method": "modelopt", "quant_algo": "FP8_PER_CHANNEL_PER_TOKEN"},
        {"weight": ("F8_E4M3", EIGHTS), "weight_scale": ("F32", ROWS[:, 0])},
        FLOATS * ROWS.astype(np.float32),
        "BF16",
    ),
    "ModelOpt's MXFP4": (
        {"quant_method": "modelopt", "quant_algo": "W4A8_MXFP4_FP8"},
        {"weight": ("U8", packed.nibbles(CODES)), "weight_scale": ("U8", EXPONENTS)},
        FOURS,
        "MXFP4",
    ),
    "ModelOpt's MXFP8": (
        {"quant_method": "modelopt", "quant_algo": "MXFP8"},
        {"weight": ("F8_E4M3", EIGHTS), "weight_scale": ("U8", EXPONENTS)},
        MICRO,
        "BF16",
    ),
    "ModelOpt's integers": (
        {"quant_method": "modelopt", "quant_algo": "W8A16"},
        {"weight": ("I8", INTS), "weight_scale": ("F16", ROWS[:, 0])},
        INTS * ROWS.astype(np.float32),
        "Q8_0",
    ),
    "NVFP4 without what is of activations": ({"quant_method": "modelopt", "quant_algo": "NVFP4"}, nv(), NV, "NVFP4"),
    "NVFP4 after AWQ": (
        {"quant_method": "modelopt", "quant_algo": "NVFP4_AWQ"},
        nv(pre_quant_scale=("F32", BEFORE)),
        NV * BEFORE,
        "BF16",
    ),
    "a frozen weight": (
        {"quant_method": "compressed-tensors", "quantization_status": "frozen", "format": "dense", "config_groups": {}},
        {"weight": ("BF16", FLOATS), "weight_scale": ("BF16", ROWS), "weight_zero_point": ("I8", ROWS * 0)},
        FLOATS.astype(packed.TYPES["BF16"]).astype(np.float32),
        "BF16",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_numbers_by_the_formula(tmp_path: Path, case: str) -> None:
    said, tensors, wanted, type_ = CASES[case]
    config = {"architectures": ["Unheard"], "torch_dtype": "bfloat16", "quantization_config": said}
    folder = packed.write(tmp_path / "m", {f"{X}.{name}": each for name, each in tensors.items()}, config)
    with open_checkpoint(folder) as opened:
        plain, kept = unpacked(opened), unpacked(opened, keep="exact", rounded=True)
        assert list(plain.tensors) == list(kept.tensors) == [f"{X}.weight"]
        assert numbers(plain.tensors[f"{X}.weight"]).tobytes() == np.asarray(wanted, np.float32).tobytes()
        assert kept.tensors[f"{X}.weight"].info.dtype.name == type_
    assert main([str(folder), str(tmp_path / "plain") + "/", "--dtype", "f32"]) == 0
    with open_checkpoint(tmp_path / "plain") as made:
        assert numbers(made.tensors[f"{X}.weight"]).tobytes() == np.asarray(wanted, np.float32).tobytes()


def test_what_modelopt_says_in_a_file_of_its_own(tmp_path: Path) -> None:
    config = {"architectures": ["Unheard"], "torch_dtype": "bfloat16"}
    folder = packed.write(tmp_path / "m", {f"{X}.{name}": each for name, each in nv().items()}, config)
    said = {"producer": {"name": "modelopt"}, "quantization": {"quant_algo": "W4A16_NVFP4"}}
    (folder / "hf_quant_config.json").write_text(json.dumps(said))
    with open_checkpoint(folder) as opened:
        (tensor,) = unpacked(opened, keep="same").tensors.values()
        assert tensor.beside is not None and not tensor.beside.prec_a4 and tensor.beside.scale == (0.125,)


@pytest.mark.parametrize("said", [{"producer": {"name": "modelopt"}, "quant_algo": "NVFP4"}, {"config_groups": {}}])
def test_a_method_that_is_not_named(tmp_path: Path, said: dict[str, Any]) -> None:
    modelopt = "producer" in said
    own = nv() if modelopt else {"weight": ("I8", INTS), "weight_scale": ("F16", ROWS)}
    more: dict[str, packed.Typed] = {
        "input_scale": ("F32", 1.0), "input_zero_point": ("I8", 0), "k_scale": ("F32", 1.0), "v_scale": ("F32", 1.0),
    }  # fmt: skip
    config = {"architectures": ["Unheard"], "quantization_config": said}
    folder = packed.write(tmp_path / "m", {f"{X}.{name}": each for name, each in {**own, **more}.items()}, config)
    with open_checkpoint(folder) as opened:
        plain = unpacked(opened)
        (tensor,) = plain.tensors.values()
        assert np.array_equal(numbers(tensor), NV if modelopt else INTS * ROWS.astype(np.float32))
        assert "4 left out" in str(plain.events[-1])


# -------------------------------------------------------------------------------------------------- bad files


def ct(bits: int = 4, **more: object) -> dict[str, object]:
    group = {"targets": ["Linear"], "weights": {"num_bits": bits, "type": "int", "strategy": "group", "group_size": 32}}
    return {"quant_method": "compressed-tensors", "format": "pack-quantized", "config_groups": {"g": group}} | more


def pack(**more: packed.Typed) -> dict[str, packed.Typed]:
    own: dict[str, packed.Typed] = {
        "weight_packed": ("I32", np.ones((8, 8))), "weight_scale": ("F16", np.ones((8, 2))),
        "weight_shape": ("I64", np.array([8, 64])),
    }  # fmt: skip
    return own | more


def changed(array: np.ndarray, value: int) -> np.ndarray:
    made = array.copy()
    made.flat[0] = value
    return made


MODELOPT: dict[str, object] = {"quant_method": "modelopt", "quant_algo": "NVFP4"}
MX = {"quant_method": "modelopt", "quant_algo": "MXFP4"}
CT4: dict[str, object] = {"quant_method": "compressed-tensors", "format": "nvfp4-pack-quantized", "config_groups": {}}
ONLINE = {"config_groups": {"R1": {"type": "hadamard", "apply": [{"targets": ["Linear"], "location": "input"}]}}}
FUSED = {"config_groups": {"R1": {"type": "hadamard", "apply": [{"targets": ["Linear"], "location": "weight_input"}]}}}
BAD: dict[str, tuple[dict[str, Any], dict[str, packed.Typed], str]] = {
    "no weight_scale_2": (
        MODELOPT,
        {k: v for k, v in nv().items() if k != "weight_scale_2"},
        "weight_scale_2 is not there",
    ),
    "no weight": (MODELOPT, {k: v for k, v in nv().items() if k != "weight"}, "weight is not there"),
    "no scale": (MODELOPT, {"weight": nv()["weight"]}, "nothing beside it says"),
    "scales of another shape": (MODELOPT, nv(weight_scale=("F8_E4M3", GROUPS[:, :4])), "the others make it"),
    "a scale that is NaN": (MODELOPT, nv(weight_scale=("F8_E4M3", changed(GROUPS, 0x7F))), "no number"),
    "a scale that is negative": (MODELOPT, nv(weight_scale=("F8_E4M3", changed(GROUPS, 0xA0))), "negative"),
    "a scale that is zero": (
        MODELOPT,
        nv(weight_scale=("F8_E4M3", changed(GROUPS, 0))),
        "is zero, and its codes are not",
    ),
    "a whole scale of zero": (MODELOPT, nv(weight_scale_2=("F32", 0.0)), "scale of the whole tensor is 0"),
    "a whole scale that is NaN": (MODELOPT, nv(weight_scale_2=("F32", np.nan)), "scale of the whole tensor is nan"),
    "one scale for two": (MODELOPT, nv(weight_scale_2=("F32", np.ones(3))), "weight_scale_2 is"),
    "a factor before that is short": (MODELOPT, nv(pre_quant_scale=("F32", BEFORE[:5])), "pre_quant_scale is"),
    "int4 in ModelOpt's packing": (MODELOPT | {"quant_algo": "W4A16_AWQ"}, nv(), "W4A16_AWQ"),
    "an exponent that is NaN": (
        MX,
        {"weight": ("U8", packed.nibbles(CODES)), "weight_scale": ("U8", changed(EXPONENTS, 255))},
        "no number",
    ),
    "a code that is NaN": (
        {"quant_method": "fp8"},
        {"weight": ("F8_E4M3", changed(EIGHTS, 0x7F)), "weight_scale": ("F32", 1.0)},
        "no numbers",
    ),
    "FP8 in blocks that do not fit": (
        {"quant_method": "fp8"},
        {"weight": ("F8_E4M3", EIGHTS), "weight_scale_inv": ("F32", np.ones((3, 2)))},
        "the others make it",
    ),
    "a shape that lies": (ct(), pack(weight_shape=("I64", np.array([8, 65]))), "8 words for 65 codes"),
    "a shape of other rows": (ct(), pack(weight_shape=("I64", np.array([9, 64]))), r"weight_shape is \[9, 64\]"),
    "a shape that is huge": (ct(), pack(weight_shape=("I64", np.array([8, 1 << 60]))), "weight_shape is"),
    "a shape of one number": (ct(), pack(weight_shape=("I64", np.array([8]))), "weight_shape is"),
    "no shape": (ct(), {k: v for k, v in pack().items() if k != "weight_shape"}, "weight_shape is not there"),
    "bits that do not fit": (ct(3), pack(), "no group of the config says so many bits"),
    "no groups": (ct(config_groups=None), pack(), "no group of the config says so many bits"),
    "scales for other rows": (ct(), pack(weight_scale=("F16", np.ones((7, 2)))), "weight_scale is"),
    "more scales than columns": (ct(), pack(weight_scale=("F16", np.ones((8, 65)))), "weight_scale is"),
    "zero points of other rows": (ct(), pack(weight_zero_point=("I32", np.ones((3, 2)))), "weight_zero_point is"),
    "a group out of range": (ct(), pack(weight_g_idx=("I32", np.full(64, 2))), "names group 2 of 2"),
    "too few groups named": (ct(), pack(weight_g_idx=("I32", np.zeros(3))), "3 entries for 64 columns"),
    "a scale that is infinite": (ct(), pack(weight_scale=("F16", np.full((8, 2), np.inf))), "infinite or no number"),
    "codes beyond their bits": (
        ct(4, format="naive-quantized"),
        {"weight": ("I8", INTS), "weight_scale": ("F16", ROWS)},
        "beyond the 4 bits",
    ),
    "zero points of other groups": (
        ct(8, format="int-quantized"),
        {"weight": ("I8", INTS), "weight_scale": ("F16", ROWS), "weight_zero_point": ("I8", np.zeros((96, 4)))},
        "zero points are",
    ),
    "no global scale": (
        CT4,
        {"weight_packed": nv()["weight"], "weight_scale": nv()["weight_scale"]},
        "weight_global_scale is not there",
    ),
    "a global scale too small to divide by": (
        CT4,
        {
            "weight_packed": nv()["weight"],
            "weight_scale": nv()["weight_scale"],
            "weight_global_scale": ("F32", np.float32(1e-45)),
        },
        "scale of the whole tensor is",
    ),
    "sparse": (ct(format="sparse-24-bitmask"), pack(), "sparse-24-bitmask, which the library itself has dropped"),
    "sparse besides": (ct(sparsity_config={"format": "sparse-bitmask"}), pack(), "sparse-bitmask"),
    "Marlin": (ct(format="marlin-24"), pack(), "marlin-24"),
    "rotated activations": (ct(transform_config=ONLINE), pack(), "transform of activations"),
    "blocks that are no blocks": (
        {"quant_method": "mxfp4"},
        {"w_blocks": ("U8", np.ones((2, 4, 8))), "w_scales": ("U8", np.ones((2, 4)))},
        "blocks are",
    ),
    "scales of other blocks": (
        {"quant_method": "mxfp4"},
        {"w_blocks": ("U8", np.ones((2, 4, 2, 16))), "w_scales": ("U8", np.ones((2, 4, 3)))},
        "the others make it",
    ),
}


@pytest.mark.parametrize("case", BAD)
@pytest.mark.parametrize("keep", ["never", "exact"])
def test_bad_files(tmp_path: Path, case: str, keep: str, capsys: pytest.CaptureFixture[str]) -> None:
    said, tensors, match = BAD[case]
    config = {"architectures": ["Unheard"], "torch_dtype": "bfloat16", "quantization_config": said}
    folder = packed.write(tmp_path / "m", {f"{X}.{name}": each for name, each in tensors.items()}, config)
    with pytest.raises(ConverterError, match=match) as caught, open_checkpoint(folder) as opened:
        for tensor in unpacked(opened, typed=False, keep=keep).tensors.values():
            numbers(tensor)
    assert 1 <= len(str(caught.value).splitlines()) <= 3
    assert main([str(folder), str(tmp_path / "m.npz")]) == caught.value.exit_code
    assert "Traceback" not in capsys.readouterr().err


def test_transforms_that_are_in_the_weights_already(tmp_path: Path) -> None:
    config = {"architectures": ["Unheard"], "quantization_config": ct(transform_config=FUSED)}
    folder = packed.write(tmp_path / "m", {f"{X}.{name}": each for name, each in pack().items()}, config)
    with open_checkpoint(folder) as opened:
        assert list(unpacked(opened).tensors) == [f"{X}.weight"]
