"""Folders whose weights are packed: decoded by our own reader and by the real libraries, made again by `verify`."""

from __future__ import annotations

import json
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from support.builders import llama_folder

from converter.checkpoint import Checkpoint
from converter.cli.main import main
from converter.errors import UsageError
from converter.formats.registry import open_checkpoint
from converter.quant.sources import unpacked
from converter.quant.targets import TARGETS, Packed, packed, target, told
from converter.storage.slabs import row_ranges
from converter.tensors.dtypes import F32
from converter.tensors.streams import values
from converter.tensors.tensor import LazyTensor, from_array

#: The least signal to noise of normal numbers, in decibels.
QUALITY = {
    "fp8": 31, "fp8-row": 31, "w4a16": 18, "w8a16": 42, "ct-fp8": 31, "ct-fp8-block": 31, "nvfp4": 20, "mxfp4": 17,
    "mlx-2": 7, "mlx-3": 14, "mlx-4": 20, "mlx-5": 27, "mlx-6": 33, "mlx-8": 42,
}  # fmt: skip
#: What the search for scales gains on these, in decibels.
GAIN = {
    "w4a16": 0.77, "nvfp4": 1.34, "mxfp4": 0.19, "mlx-2": 0.92, "mlx-3": 0.69, "mlx-4": 0.33, "mlx-5": 0.18,
    "mlx-6": 0.08,
}  # fmt: skip
each = pytest.mark.parametrize("name", TARGETS)
SEARCHED = [name for name in TARGETS if target(name).searched]
WAYS = [*((name, "nearest") for name in TARGETS), *((name, "mse") for name in SEARCHED)]
each_way = pytest.mark.parametrize(("name", "scale"), WAYS)


def matrix(rows: int = 200, row: int = 384, seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, 0.02, (rows, row)).astype(np.float32)


def weight(array: np.ndarray, name: str = "model.layers.0.mlp.up_proj.weight") -> LazyTensor:
    return from_array(name, array, F32, "here")


def bytes_of(tensor: LazyTensor, step: int) -> bytes:
    n = tensor.info.n_rows
    return b"".join(tensor.rows(start, min(start + step, n)).tobytes() for start in range(0, n, step))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small model whose rows every scheme can pack."""
    transformers, torch = pytest.importorskip("transformers"), pytest.importorskip("torch")
    torch.manual_seed(5)
    config = transformers.LlamaConfig(
        hidden_size=256, intermediate_size=384, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        vocab_size=512, tie_word_embeddings=False,
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("model")
    transformers.LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
    return folder


def test_every_scheme_has_a_bound() -> None:
    assert QUALITY.keys() == TARGETS.keys() and GAIN.keys() == set(SEARCHED)


@each_way
def test_parts_do_not_depend_on_how_they_are_asked_for(name: str, scale: str) -> None:
    made = packed(target(name), {"model.layers.0.mlp.up_proj.weight": weight(matrix())}, scale)
    assert made.bounds.keys() == made.tensors.keys() and len(made.bounds) > 1
    for tensor in made.tensors.values():
        whole = bytes_of(tensor, 1 << 20)
        assert len(whole) == tensor.info.nbytes
        assert bytes_of(tensor, 7) == bytes_of(tensor, 130) == whole, tensor.name


#: Rows and columns that share a scale.
GROUPS = {
    "fp8": (128, 128), "fp8-row": (1, 384), "ct-fp8": (1, 384), "ct-fp8-block": (128, 128), "w4a16": (1, 128),
    "w8a16": (1, 128), "nvfp4": (1, 16),
    "mxfp4": (1, 32), **{f"mlx-{bits}": (1, 64) for bits in (2, 3, 4, 5, 6, 8)},
}  # fmt: skip


def sample(kind: str) -> np.ndarray:
    rng = np.random.default_rng(3)
    array = {
        "normal": matrix, "heavy tails": lambda: rng.standard_t(2, (256, 384)).astype(np.float32),
        "one side": lambda: rng.exponential(1, (256, 384)).astype(np.float32),
        "sizes apart": lambda: rng.normal(0, 1, (256, 384)) * 10.0 ** rng.uniform(-4, 0, (256, 384)),
    }[kind]()  # fmt: skip
    return array.astype(ml_dtypes.bfloat16).astype(np.float32)


def there_and_back(made: Packed) -> np.ndarray:
    folder = Checkpoint("hf", Path("here"), "hf", made.tensors, {"torch_dtype": "bfloat16", **made.config})
    tensor = unpacked(folder, typed=False).tensors["a.weight"]
    return values(tensor, 0, tensor.info.n_rows)


each_kind = pytest.mark.parametrize("kind", ["normal", "heavy tails", "one side", "sizes apart"])


@each_kind
@pytest.mark.parametrize("name", SEARCHED)
def test_the_scale_of_least_error(name: str, kind: str) -> None:
    """No group is worse off than with the scale that its largest number asks for, and most are better off."""
    array, size = sample(kind), GROUPS[name][1]
    plain, other = (
        np.square(there_and_back(packed(target(name), {"a.weight": weight(array, "a.weight")}, scale)) - array)
        .reshape(len(array), -1, size)
        .sum(axis=2, dtype=np.float64)
        for scale in ("nearest", "mse")
    )
    assert (other <= plain * (1 + 1e-6)).all()
    gained = 10 * np.log10(plain.sum() / other.sum())
    if kind == "normal":
        assert gained == pytest.approx(GAIN[name], abs=0.02)


@each_kind
@each_way
def test_numbers_are_within_the_bound(name: str, scale: str, kind: str) -> None:
    array = sample(kind)
    scheme, source = target(name), weight(array, "a.weight")
    made = packed(scheme, {"a.weight": source}, scale)
    found = there_and_back(made)
    (tall, wide), (rows, row) = GROUPS[name], array.shape
    padded = np.pad(array, ((0, -rows % tall), (0, -row % wide)))
    groups = padded.reshape(len(padded) // tall, tall, -1, wide)

    def spread(of_groups: np.ndarray) -> np.ndarray:
        return np.repeat(np.repeat(of_groups, tall, axis=0), wide, axis=1)[:rows, :row]

    largest = spread(np.abs(groups).max(axis=(1, 3)))
    of = {
        "itself": np.abs(array), "the largest of the weight": np.full_like(array, np.abs(array).max()),
        "the range of its group": spread(groups.max(axis=(1, 3)) - groups.min(axis=(1, 3))),
        **{f"the largest of its {group}": largest for group in ("group", "row", "block")},
    }  # fmt: skip
    (bound,) = set(made.bounds.values())
    assert made.bounds.keys() == made.tensors.keys() and (bound == scheme.bound) == (scale == "nearest")
    share = np.abs(found - array) / sum(np.float64(share.share) * of[share.of] for share in bound.shares)
    assert (0.2 if scale == "nearest" else 0.02) < share.max() <= 1 + 1e-6


@each
def test_slabs_of_a_part_read_each_row_once(name: str) -> None:
    """Rows that share a scale come together; NVFP4's global scale is a read of its own."""
    plain, read = weight(matrix(700, 7168)), list[int]()

    def counted(start: int, stop: int) -> np.ndarray:
        read.extend(range(start, stop))
        return plain.read(start, stop)

    made = packed(target(name), {plain.name: plain.derived(read=counted)})
    for tensor in made.tensors.values():
        read.clear()
        for start, stop in row_ranges([tensor], tensor.row_work):
            tensor.rows(start, stop)
        assert len(read) in {0, 700, *((1400,) if name == "nvfp4" else ())}, tensor.name


@each
def test_what_stays_as_it_is(name: str) -> None:
    names = ("model.embed_tokens.weight", "lm_head.weight", "model.layers.0.mlp.gate.weight", "model.norm.weight")
    tensors = {each: weight(matrix(64, 384) if each != names[3] else matrix(1, 384)[0], each) for each in names}
    tensors["model.layers.0.odd.weight"] = weight(matrix(8, 24), "model.layers.0.odd.weight")
    made = packed(target(name), tensors)
    kept = {each for each in names if each in made.tensors and made.tensors[each] is tensors[each]}
    assert kept == set(names[2:] if target(name).embeddings else names)
    said = json.dumps(made.config)
    assert "model.layers.0.mlp.gate" in said and ("model.layers.0.odd" in said) == (target(name).row > 1)


@each
def test_zeros_and_extremes(name: str) -> None:
    array = matrix(8, 256)
    array[0], array[1, :128], array[2, 0], array[3] = 0, 0, 1e4, 1e-30
    made = packed(target(name), {"a.weight": weight(array, "a.weight")})
    for tensor in made.tensors.values():
        if tensor.info.dtype.floating and tensor.info.dtype.numpy is not None:
            found = tensor.array().astype(np.float32)
            assert np.isfinite(found).all(), tensor.name


@each_way
def test_there_and_back(model: Path, tmp_path: Path, name: str, scale: str) -> None:
    """Our own reader's numbers; `verify` makes every code again; the folder becomes a GGUF."""
    out = tmp_path / "out"
    more = ["--scale", scale]
    assert main([str(model), f"{out}/", "--scheme", name, *more]) == 0
    assert main(["verify", str(model), str(out), *more]) == 0
    config = json.loads((out / "config.json").read_text())
    assert told(config) == name and config["hidden_size"] == 256
    with open_checkpoint(model) as source, open_checkpoint(out) as opened:
        plain = unpacked(opened, typed=False)
        assert plain.tensors.keys() == source.tensors.keys() and len(opened.tensors) > len(source.tensors)
        noise = energy = 0.0
        for key, tensor in source.tensors.items():
            before = values(tensor, 0, tensor.info.n_rows)
            after = values(plain.tensors[key], 0, tensor.info.n_rows)
            if key.endswith("_proj.weight"):
                noise, energy = noise + float(((before - after) ** 2).sum()), energy + float((before**2).sum())
            elif not TARGETS[name].embeddings:
                assert np.array_equal(before, after)
    assert 10 * np.log10(energy / noise) > QUALITY[name]
    damaged = bytearray((out / "model.safetensors").read_bytes())
    damaged[-1000] ^= 1
    (out / "model.safetensors").write_bytes(damaged)
    assert main(["verify", str(model), str(out), *more]) == 41


@each
def test_from_a_gguf(tmp_path: Path, name: str) -> None:
    folder = llama_folder(tmp_path / "m")
    assert main([str(folder), str(tmp_path / "m.gguf"), "-q", "q8_0"]) == 0
    assert main([str(tmp_path / "m.gguf"), f"{tmp_path}/out/", "--scheme", name]) == 0
    assert main(["verify", str(tmp_path / "m.gguf"), str(tmp_path / "out")]) == 0


@pytest.mark.parametrize(
    ("quant", "name"), [("Q4_0", "mlx-4"), ("Q4_1", "mlx-4"), ("Q5_0", "mlx-5"), ("Q5_1", "mlx-5"), ("Q8_0", "mlx-8")]
)
def test_blocks_of_ggml_are_taken_over_by_mlx(tmp_path: Path, quant: str, name: str) -> None:
    """No number changes: what one says in blocks, the other says in words."""
    folder = llama_folder(tmp_path / "m")
    assert main([str(folder), str(tmp_path / "m.gguf"), "-q", quant, "--pure"]) == 0
    assert main([str(tmp_path / "m.gguf"), f"{tmp_path}/mlx/", "--scheme", name]) == 0
    assert main([str(tmp_path / "m.gguf"), f"{tmp_path}/plain/", "--dtype", "f32"]) == 0
    with open_checkpoint(tmp_path / "mlx") as opened, open_checkpoint(tmp_path / "plain") as plain:
        made = unpacked(opened, typed=False)
        assert len(opened.tensors) > len(made.tensors) == len(plain.tensors)
        for key, tensor in plain.tensors.items():
            n_rows = tensor.info.n_rows
            assert np.array_equal(values(tensor, 0, n_rows), values(made.tensors[key], 0, n_rows)), key


@pytest.mark.parametrize(("first", "second"), [("fp8", "mlx-4"), ("mlx-8", "w4a16"), ("w8a16", "w4a16")])
def test_from_one_scheme_to_another(model: Path, tmp_path: Path, first: str, second: str) -> None:
    assert main([str(model), f"{tmp_path}/first/", "--scheme", first]) == 0
    assert main([str(tmp_path / "first"), f"{tmp_path}/second/", "--scheme", second]) == 0
    assert main(["verify", str(tmp_path / "first"), str(tmp_path / "second")]) == 0
    assert main([str(tmp_path / "first"), f"{tmp_path}/copy/"]) == 0
    assert main(["verify", str(tmp_path / "first"), str(tmp_path / "copy")]) == 0
    assert main(["verify", str(model), str(tmp_path / "second")]) == 41


def test_a_plan_says_what_a_scheme_loses(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Blocks that are taken over lose nothing, and a first loss comes before a second."""
    assert main([str(model), str(tmp_path / "m.gguf"), "-q", "q8_0", "--pure", "--no-tokenizer"]) == 0
    assert main([str(model), f"{tmp_path}/fp8/", "--scheme", "fp8"]) == 0
    capsys.readouterr()
    found = {}
    for kind, source in {"plain": model, "blocks": tmp_path / "m.gguf", "codes": tmp_path / "fp8"}.items():
        for name in ("mlx-8", "w4a16"):
            assert main(["plan", str(source), f"{tmp_path}/out/", "--scheme", name, "--json"]) == 0
            steps = json.loads(capsys.readouterr().out)["tensors"]
            said = {step["codes"]["bound"] for step in steps if step["codes"] and "q_proj" in step["name"]}
            assert len(said) == 1 and not [s for s in steps if s["codes"] and "norm" in s["name"]]
            found[kind, name] = said.pop()
    anew = {name: str(TARGETS[name].bound) for name in ("mlx-8", "w4a16")}
    assert anew["w4a16"] == "within 0.071 of the largest of its group"
    assert found == {
        ("plain", "mlx-8"): anew["mlx-8"], ("plain", "w4a16"): anew["w4a16"],
        ("blocks", "mlx-8"): "exact", ("blocks", "w4a16"): anew["w4a16"],
        ("codes", "mlx-8"): anew["mlx-8"], ("codes", "w4a16"): anew["w4a16"],
    }  # fmt: skip
    assert main(["plan", str(tmp_path / "fp8"), f"{tmp_path}/out/", "--dtype", "bf16"]) == 0
    printed = capsys.readouterr().out
    assert "codes" in printed.splitlines()[0] and "within 1/256 of itself" in printed


def test_a_scheme_is_for_a_folder(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(model), str(tmp_path / "m.gguf"), "--scheme", "fp8"]) == UsageError.exit_code
    assert "--scheme fp8: packs the weights of a folder" in capsys.readouterr().err
    assert main([str(model), f"{tmp_path}/out/", "--scheme", "fp9"]) == UsageError.exit_code
    assert "--scheme fp9: unknown; known: fp8, " in capsys.readouterr().err
    for scheme, said in (
        (["--scheme", "fp8"], "fp8 takes scales as they come; a search is for w4a16, "),
        ([], "says how"),
    ):
        assert main([str(model), f"{tmp_path}/out/", "--scale", "mse", *scheme]) == UsageError.exit_code
        assert f"--scale mse: {said}" in capsys.readouterr().err
    with pytest.raises(UsageError, match="--scale best: say nearest, mse"):
        packed(target("mlx-4"), {}, "best")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", [name for name in TARGETS if name.startswith("mlx")])
def test_the_words_of_mlx(model: Path, tmp_path: Path, name: str) -> None:
    mx = pytest.importorskip("mlx.core")
    assert main([str(model), f"{tmp_path}/out/", "--scheme", name]) == 0
    made, source = mx.load(str(tmp_path / "out" / "model.safetensors")), mx.load(str(model / "model.safetensors"))
    bits = int(name[4:])
    packed_ = [key.removesuffix(".scales") for key in made if key.endswith(".scales")]
    assert len(packed_) == 16
    for module in packed_:
        words, scales, biases = mx.quantize(source[f"{module}.weight"], group_size=64, bits=bits)
        assert bool((words == made[f"{module}.weight"]).all())
        assert bool((scales == made[f"{module}.scales"]).all()) and bool((biases == made[f"{module}.biases"]).all())


LIBRARY = [name for name in TARGETS if target(name).config(()).get("quant_method") == "compressed-tensors"]


def numpy_of(array: np.ndarray) -> np.ndarray:
    """In a type that numpy has itself."""
    return array.astype(np.float32) if array.dtype == ml_dtypes.bfloat16 else np.array(array)


@pytest.mark.parametrize("name", LIBRARY)
def test_the_librarys_own_decoding(name: str) -> None:
    """compressed-tensors, given our tensors and our config, with scales widened so that products are rounded once."""
    pytest.importorskip("compressed_tensors")
    torch = pytest.importorskip("torch")
    from compressed_tensors.compressors import BaseCompressor
    from compressed_tensors.quantization import QuantizationConfig

    made = packed(target(name), {"a.weight": weight(matrix(), "a.weight")})
    config = QuantizationConfig.model_validate(made.config["quantization_config"])
    (scheme,) = config.config_groups.values()
    stored = {}
    for tensor in made.tensors.values():
        array, is_fp8 = tensor.array(), tensor.info.dtype.name == "F8_E4M3"
        given = torch.from_numpy(array.view(np.uint8) if is_fp8 else numpy_of(array))
        stored[tensor.name.removeprefix("a.")] = given.view(torch.float8_e4m3fn) if is_fp8 else given
    found = BaseCompressor.get_value_from_registry(config.format).decompress(stored, scheme)["weight"]
    folder = Checkpoint("hf", Path("here"), "hf", made.tensors, {"torch_dtype": "bfloat16", **made.config})
    own = values(unpacked(folder, typed=False).tensors["a.weight"], 0, 200)
    wanted = torch.from_numpy(own.copy()).to(found.dtype)
    assert found.shape == wanted.shape and bool((found == wanted).all())


@pytest.mark.slow
@pytest.mark.parametrize("name", ["fp8", "w4a16", "w8a16", "ct-fp8", "ct-fp8-block", "nvfp4", "mxfp4"])
def test_transformers_loads_it(model: Path, tmp_path: Path, name: str) -> None:
    """Its logits, calculated in BF16, against those of our own decoding in F32."""
    for needed in ("accelerate", "compressed_tensors"):
        pytest.importorskip(needed)
    import torch
    import transformers

    out = tmp_path / "out"
    assert main([str(model), f"{out}/", "--scheme", name]) == 0
    options = {"quantization_config": transformers.FineGrainedFP8Config(dequantize=True)} if name == "fp8" else {}
    loaded = transformers.AutoModelForCausalLM.from_pretrained(out, **options)
    plain = transformers.AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    with open_checkpoint(out) as opened:
        tensors = unpacked(opened, typed=False).tensors
        numbers = {key: values(tensor, 0, tensor.info.n_rows).copy() for key, tensor in tensors.items()}
    shapes = {key: tensor.info.shape for key, tensor in tensors.items()}
    plain.load_state_dict({key: torch.from_numpy(array).reshape(shapes[key]) for key, array in numbers.items()})
    tokens = torch.arange(1, 33)[None]
    with torch.no_grad():
        difference = (loaded(tokens).logits.float() - plain(tokens).logits).abs().max()
    assert difference < (0.15 if name.startswith("ct-fp8") else 0.05)  # which rounds activations to eight bits, too
