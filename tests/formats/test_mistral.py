"""Mistral's own folders: against the same model as a Hugging Face folder, and against what Mistral's code computes."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support import builders, mistral_files, models
from support.mistral_files import Array, small
from support.paths import DATA

from converter.cli.main import main
from converter.errors import ConverterError, CorruptFile, MissingPart, UnsupportedFeature
from converter.events import Dropped, Note
from converter.formats.registry import open_checkpoint, source_format
from converter.request import Source

sys.path.insert(0, str(DATA / "tokenizers"))

from tokenizer_cases import CASES

YARN = {
    "rope_type": "yarn", "rope_theta": 1e6, "factor": 4.0, "original_max_position_embeddings": 64, "beta_fast": 32.0,
    "beta_slow": 1.0, "mscale": 1.0, "mscale_all_dim": 1.0, "llama_4_scaling_beta": 0.1,
}  # fmt: skip
SCALED = {"mscale": 0.0, "mscale_all_dim": 0.0, "llama_4_scaling_beta": 0.0}
MINISTRAL = {"architectures": ["Ministral3ForCausalLM"], "model_type": "ministral3", "pad_token_id": None}
# Name -> a model of support/models.py, and what its config says otherwise.
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "mistral": ("mistral-96", {}),
    "mixtral": ("mixtral-96", {"head_dim": 16}),
    "tied": ("mistral-96", {"tie_word_embeddings": True}),
    "another-base": ("mistral-96", {"rope_parameters": {"rope_type": "default", "rope_theta": 5e5}}),
    "ministral": ("mistral-96", {**MINISTRAL, "rope_parameters": YARN}),
    "ministral-scaled": ("mistral-96", {**MINISTRAL, "rope_parameters": {**YARN, **SCALED}}),
}


def weights_and_config(name: str) -> tuple[dict[str, Array], dict[str, Any]]:
    model, changes = MODELS[name]
    spec = models.MODELS[model]
    config = models.model_config(spec) | changes
    shapes = models.tensor_shapes(config | {"model_type": spec.family})
    return {each: models.encode(models.seeded(name, each, shape), spec.dtype) for each, shape in shapes}, config


def both(name: str, parent: Path) -> tuple[Path, Path]:
    """The Hugging Face folder and Mistral's, of one name and with one tokenizer."""
    weights, config = weights_and_config(name)
    hf, own = parent / "hf" / "model", parent / "own" / "model"
    hf.mkdir(parents=True)
    (hf / "config.json").write_text(json.dumps(config))
    (hf / "model.safetensors").write_bytes(builders.safetensors_of(weights))
    mistral_files.write(own, mistral_files.weights_of(weights, config), mistral_files.params_of(config))
    models.TOKENIZERS["spm"](hf)
    for each in models.SENTENCEPIECE_FILES:
        shutil.copyfile(hf / each, own / each)
    return hf, own


def converted(source: Path, target: str, *more: str) -> Path:
    path = source.parent / target
    assert main([str(source), f"{path}/" if not path.suffix else str(path), *more]) == 0
    return path


# ----------------------------------------------------------------------------------------- the same model


@pytest.mark.parametrize("name", MODELS)
def test_the_gguf_is_that_of_the_hugging_face_folder(tmp_path: Path, name: str) -> None:
    hf, own = both(name, tmp_path)
    assert converted(own, "model.gguf").read_bytes() == converted(hf, "model.gguf").read_bytes()


@pytest.mark.parametrize("name", MODELS)
def test_the_folder_is_that_of_hugging_face(tmp_path: Path, name: str) -> None:
    """The same bytes of every tensor, and transformers computes the same from it."""
    hf, own = both(name, tmp_path)
    made = converted(own, "folder")
    with open_checkpoint(made) as ours, open_checkpoint(hf) as theirs:
        assert set(ours.tensors) == set(theirs.tensors)
        for each, tensor in theirs.tensors.items():
            assert ours.tensors[each].array().tobytes() == tensor.array().tobytes(), each
    assert not (made / "params.json").exists()
    pytest.importorskip("transformers")
    from support.torch_logits import logits

    assert np.array_equal(logits(made), logits(hf))


def own_logits(weights: Mapping[str, Array], params: Mapping[str, Any], tokens: list[int]) -> Array:
    """What Mistral's code computes, in double precision: neighbours rotate together, as one complex number."""
    w = {name: np.asarray(array, "f8") for name, array in weights.items()}
    dim = params["head_dim"]
    angles = np.outer(np.arange(len(tokens)), params["rope_theta"] ** (-np.arange(0, dim, 2) / dim))
    turn = np.exp(1j * angles)[:, None]

    def norm(x: Array, name: str) -> Array:
        return x / np.sqrt((x * x).mean(-1, keepdims=True) + params["norm_eps"]) * w[name]

    def rotated(x: Array) -> Array:
        return np.ascontiguousarray(np.ascontiguousarray(x).view("c16") * turn).view("f8")

    x = w["tok_embeddings.weight"][tokens]
    for block in range(params["n_layers"]):
        p = f"layers.{block}."
        h = norm(x, p + "attention_norm.weight")
        q, k, v = ((h @ w[f"{p}attention.w{each}.weight"].T).reshape(len(tokens), -1, dim) for each in "qkv")
        q, k = rotated(q), rotated(k)
        k, v = (np.repeat(each, params["n_heads"] // params["n_kv_heads"], axis=1) for each in (k, v))
        scores = np.einsum("qhd,khd->hqk", q, k) / np.sqrt(dim)
        scores = np.exp(np.where(np.tri(len(tokens), dtype=bool), scores, -np.inf))
        mixed = np.einsum("hqk,khd->qhd", scores / scores.sum(-1, keepdims=True), v)
        x = x + mixed.reshape(len(tokens), -1) @ w[p + "attention.wo.weight"].T
        h = norm(x, p + "ffn_norm.weight")
        gate, up = (h @ w[f"{p}feed_forward.{each}.weight"].T for each in ("w1", "w3"))
        x = x + (gate / (1 + np.exp(-gate)) * up) @ w[p + "feed_forward.w2.weight"].T
    return norm(x, "norm.weight") @ w["output.weight"].T


def test_transformers_computes_what_mistrals_code_does(tmp_path: Path) -> None:
    """Which way round the rows of q and k go is not left to the one who wrote both sides of a comparison."""
    pytest.importorskip("transformers")
    from support.torch_logits import TOKENS, logits

    weights, config = weights_and_config("mistral")
    weights, params = mistral_files.weights_of(weights, config), mistral_files.params_of(config)
    made = converted(mistral_files.write(tmp_path / "model", weights, params), "folder")
    wanted = own_logits(weights, params, TOKENS[0])
    assert np.abs(logits(made)[0] - wanted).max() < 1e-4 * np.abs(wanted).max()


# -------------------------------------------------------------------------------------------- the files


def one_file(folder: Path, weights: Mapping[str, Array]) -> None:
    (folder / "consolidated.safetensors").write_bytes(builders.safetensors_of(weights))


def numbered(pattern: str, first: int) -> Callable[[Path, Mapping[str, Array]], None]:
    def write(folder: Path, weights: Mapping[str, Array]) -> None:
        names = list(weights)
        for number, part in enumerate((names[:3], names[3:6], names[6:])):
            data = builders.safetensors_of({name: weights[name] for name in part})
            (folder / pattern.format(number + first)).write_bytes(data)

    return write


def with_index(folder: Path, weights: Mapping[str, Array]) -> None:
    pattern = "consolidated-{:05d}-of-00003.safetensors"
    numbered(pattern, 1)(folder, weights)
    files = [pattern.format(1)] * 3 + [pattern.format(2)] * 3 + [pattern.format(3)] * (len(weights) - 6)
    index = {"metadata": {}, "weight_map": dict(zip(weights, files, strict=True))}
    (folder / "consolidated.safetensors.index.json").write_text(json.dumps(index))


def by_torch(folder: Path, weights: Mapping[str, Array]) -> None:
    torch = pytest.importorskip("torch")
    torch.save({name: torch.from_numpy(array) for name, array in weights.items()}, folder / "consolidated.00.pth")


SHAPES = {
    "one file": one_file,
    "shards": numbered("consolidated-{:05d}-of-00003.safetensors", 1),
    "an index": with_index,
    "numbers": numbered("consolidated.{:02d}.safetensors", 0),
    "PyTorch": by_torch,
}


@pytest.mark.parametrize("write", SHAPES.values(), ids=SHAPES)
def test_every_way_the_weights_lie_there(tmp_path: Path, write: Callable[[Path, Mapping[str, Array]], None]) -> None:
    folder = small(tmp_path / "model")
    (folder / "consolidated.safetensors").unlink()
    write(folder, mistral_files.weights_of(builders.llama_weights(), builders.CONFIG))
    with open_checkpoint(folder) as checkpoint:
        assert checkpoint.format == "mistral"
        wanted = builders.llama_weights()
        assert set(checkpoint.tensors) == set(wanted)
        for name, tensor in checkpoint.tensors.items():
            assert tensor.array().tobytes() == wanted[name].tobytes(), name


@pytest.mark.parametrize(
    ("files", "missing"),
    [
        (("consolidated.00.safetensors", "consolidated.02.safetensors"), r"consolidated\.01\.safetensors: not there"),
        (("consolidated.01.safetensors",), r"consolidated\.00\.safetensors: not there"),
        (("consolidated-00002-of-00003.safetensors",), r"consolidated-00001-of-00003\.safetensors: this one of the 3"),
        (("consolidated.txt",), "no weights"),
    ],
)
def test_a_file_that_is_not_there_is_named(tmp_path: Path, files: tuple[str, ...], missing: str) -> None:
    folder = small(tmp_path / "model")
    data = (folder / "consolidated.safetensors").read_bytes()
    (folder / "consolidated.safetensors").unlink()
    for name in files:
        (folder / name).write_bytes(data)
    with pytest.raises(MissingPart, match=missing):
        open_checkpoint(folder)


def test_a_folder_with_a_config_is_hugging_faces(tmp_path: Path) -> None:
    folder = builders.llama_folder(tmp_path / "model")
    small(folder)
    assert source_format(folder).name == "hf"
    with open_checkpoint(Source(folder, format="mistral")) as own, open_checkpoint(folder) as hf:
        assert {name: each.array().tobytes() for name, each in own.tensors.items()} == {
            name: each.array().tobytes() for name, each in hf.tensors.items()
        }


def test_the_tokenizer_of_a_version_is_taken(tmp_path: Path) -> None:
    folder = small(tmp_path / "model")
    shutil.copyfile(models.FIXTURES / "stories260K" / "tokenizer.model", folder / "tokenizer.model.v3")
    with open_checkpoint(converted(folder, "model.gguf")) as made:
        assert len(made.config["tokenizer.ggml.tokens"].values) == 512
    (folder / "SYSTEM_PROMPT.txt").write_text("You are")
    out = converted(folder, "folder")
    assert {path.name for path in out.iterdir()} == {
        "config.json", "model.safetensors", "tokenizer.model", "SYSTEM_PROMPT.txt"
    }  # fmt: skip
    assert (out / "tokenizer.model").read_bytes() == (folder / "tokenizer.model.v3").read_bytes()


def test_tekken_is_the_tokenizer(tmp_path: Path) -> None:
    case = CASES["tekken-old"]
    rows = case.config["vocab_size"]
    assert isinstance(rows, int)
    weights, config = builders.llama_weights(rows), {**builders.CONFIG, "vocab_size": rows}
    folder = tmp_path / "model"
    mistral_files.write(folder, mistral_files.weights_of(weights, config), mistral_files.params_of(config))
    (folder / "tekken.json").write_text(case.made["tekken.json"])
    with open_checkpoint(converted(folder, "model.gguf")) as made:
        assert made.config["tokenizer.ggml.pre"].value == "tekken"
        assert len(made.config["tokenizer.ggml.tokens"].values) == rows


# ------------------------------------------------------------------------------------------- params.json


def config_of(folder: Path) -> tuple[Mapping[str, Any], tuple[object, ...]]:
    with open_checkpoint(folder) as checkpoint:
        return checkpoint.config, checkpoint.events


@pytest.mark.parametrize(
    ("changes", "wanted"),
    [
        ({"rope_theta": None}, {"rope_theta": 1e6}),
        ({"rope_theta": None, "sliding_window": 32}, {"rope_theta": 1e4, "sliding_window": 32}),
        ({"max_position_embeddings": 99}, {"max_position_embeddings": 99}),
        ({"max_seq_len": None}, {"max_position_embeddings": 128_000}),
        ({"tied_embeddings": None}, {"tie_word_embeddings": False}),
        ({"quantization": {"qformat_weight": "fp8_e4m3"}}, {"quantization_config": {
            "quant_method": "fp8", "activation_scheme": "static", "weight_block_size": None}}),
        ({"model_type": "transformer", "activation": "silu", "use_cache": True}, {"model_type": "mistral"}),
    ],
)  # fmt: skip
def test_words(tmp_path: Path, changes: dict[str, Any], wanted: dict[str, Any]) -> None:
    config, events = config_of(small(tmp_path / "model", **changes))
    assert {key: config[key] for key in wanted} == wanted
    assert any(isinstance(event, Note) for event in events) == ("max_seq_len" in changes)


def test_what_reads_images_is_left_out_and_told(tmp_path: Path) -> None:
    folder = small(tmp_path / "model", vision_encoder={"hidden_size": 8, "image_token_id": 10})
    weights = mistral_files.weights_of(builders.llama_weights(), builders.CONFIG)
    images = {"vision_encoder.ln_pre.weight": np.ones(8, "f4"), "patch_merger.merging_layer.weight": np.ones((8, 8))}
    one_file(folder, {**images, **weights})
    with open_checkpoint(folder) as checkpoint:
        assert set(checkpoint.tensors) == set(builders.llama_weights())
        (event,) = checkpoint.events
        assert isinstance(event, Dropped)
        assert "2 tensors" in str(event)


def test_scales_of_eight_bit_weights_get_their_names(tmp_path: Path) -> None:
    folder = small(tmp_path / "model", quantization={"qformat_weight": "fp8_e4m3"})
    weights = mistral_files.weights_of(builders.llama_weights(), builders.CONFIG)
    scale = np.array(0.5, "f4")
    one_file(
        folder, {**weights, "layers.0.attention.wq.qscale_weight": scale, "layers.0.feed_forward.w1.qscale_act": scale}
    )
    with open_checkpoint(folder) as checkpoint:
        more = set(checkpoint.tensors) - set(builders.llama_weights())
    assert more == {
        "model.layers.0.self_attn.q_proj.weight_scale_inv", "model.layers.0.mlp.gate_proj.activation_scale"
    }  # fmt: skip


ORIGINAL = "original_max_position_embeddings"
DEEP: dict[str, Any] = {"factor": 4.0, "beta": 32, "alpha": 1, ORIGINAL: 16, "apply_scale": True}
FEW: dict[str, Any] = {"num_experts": 8, "num_experts_per_tok": 2}


@pytest.mark.parametrize(
    ("changes", "kind", "message"),
    [
        ({"dim": None}, CorruptFile, "dim is None, a size was expected"),
        ({"dim": -1}, CorruptFile, "dim is -1"),
        ({"n_layers": True}, CorruptFile, "n_layers is True"),
        ({"n_heads": 4.0}, CorruptFile, "n_heads is 4.0"),
        ({"vocab_size": 10**30}, CorruptFile, "vocab_size is 10000"),
        ({"n_kv_heads": 3}, CorruptFile, r"n_kv_heads is 3, a divisor of n_heads \(4\)"),
        ({"head_dim": 7}, CorruptFile, "head_dim is 7, an even number"),
        ({"head_dim": 16}, CorruptFile, r"n_heads x head_dim is 64, and layers.0.attention.wq.weight is \[32, 32\]"),
        ({"norm_eps": "x"}, CorruptFile, "norm_eps is 'x'"),
        ({"norm_eps": float("nan")}, CorruptFile, "norm_eps is nan"),
        ({"rope_theta": 0}, CorruptFile, "rope_theta is 0"),
        ({"sliding_window": [4, 8]}, CorruptFile, r"sliding_window is \[4, 8\]"),
        ({"tied_embeddings": 1}, CorruptFile, "tied_embeddings is 1, true or false"),
        ({"moe": [8]}, CorruptFile, r"moe is \[8\], an object"),
        ({"moe": {"num_experts": 8}}, CorruptFile, r"moe\.num_experts_per_tok is None"),
        ({"moe": {**FEW, "route_every_n": 2}}, UnsupportedFeature, "'moe.route_every_n' is 2"),
        ({"yarn": {**DEEP, "apply_scale": None}}, CorruptFile, r"yarn\.apply_scale is None, true or false"),
        ({"yarn": {**DEEP, "other": 1}}, UnsupportedFeature, "'yarn.other' is 1"),
        ({"yarn": DEEP, "moe": FEW}, UnsupportedFeature, "moe and yarn"),
        ({"llama_4_scaling": {"beta": 0.1}}, UnsupportedFeature, "llama_4_scaling without yarn"),
        ({"yarn": DEEP, "llama_4_scaling": {"beta": 0.1, ORIGINAL: 8}}, UnsupportedFeature, "are not the same"),
        ({"q_lora_rank": 1536}, UnsupportedFeature, "'q_lora_rank' is 1536, which is not known here"),
        ({"model_type": "mamba"}, UnsupportedFeature, "'model_type' is 'mamba'"),
        ({"use_biases": True}, UnsupportedFeature, "'use_biases' is True"),
        ({"quantization": {"qformat_weight": "int4"}}, UnsupportedFeature, "packed as 'int4'"),
    ],
)  # fmt: skip
def test_params_that_no_such_model_has(
    tmp_path: Path, changes: dict[str, Any], kind: type[ConverterError], message: str
) -> None:
    with pytest.raises(kind, match=message) as caught:
        open_checkpoint(small(tmp_path / "model", **changes))
    assert "params.json" in str(caught.value)


@pytest.mark.parametrize(
    ("name", "kind", "message"),
    [
        ("layers.7.attention.wq.weight", CorruptFile, "n_layers is 1, and there is 'layers.7.attention.wq.weight'"),
        ("layers.00.attention.wq.weight", UnsupportedFeature, "'layers.00.attention.wq.weight' is none that is known"),
        ("layers.0.attention.wq.bias", UnsupportedFeature, "'layers.0.attention.wq.bias' is none"),
        ("layers.0.attention.wq_a.weight", UnsupportedFeature, r"wq_a\.weight' is none"),
        ("other.weight", UnsupportedFeature, r"'other\.weight' is none"),
        ("x", UnsupportedFeature, "'x' is none"),
    ],
)
def test_a_tensor_that_is_not_known_is_named(
    tmp_path: Path, name: str, kind: type[ConverterError], message: str
) -> None:
    folder = small(tmp_path / "model")
    weights = mistral_files.weights_of(builders.llama_weights(), builders.CONFIG)
    one_file(folder, {**weights, name: np.zeros((32, 32), "f4")})
    with pytest.raises(kind, match=message):
        open_checkpoint(folder)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
KEYS = [*mistral_files.params_of(builders.CONFIG), "moe", "yarn", "llama_4_scaling", "quantization", "vision_encoder"]


@given(changes=st.dictionaries(st.sampled_from(KEYS), JSON, min_size=1, max_size=3))
@settings(builders.examples(60), suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_any_params_open_or_end_in_an_error(tmp_path: Path, changes: dict[str, Any]) -> None:
    try:
        open_checkpoint(small(tmp_path / "model", **changes)).close()
    except ConverterError as error:
        assert len(str(error).splitlines()) <= 3
