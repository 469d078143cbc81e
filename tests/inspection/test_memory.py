"""The memory estimate against what llama.cpp allocates for models of many shapes."""

from __future__ import annotations

import ctypes
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from converter.inspection.running_memory import CONTEXTS, STORED, TYPES, Estimate, Need, estimate
from converter.metadata import Array, Value

MIB = 1 << 20
Shapes = dict[str, tuple[int, ...]]
Keys = dict[str, tuple[str, Any]]


def decoder(
    arch: str = "llama", *, vocab: int = 1000, embd: int = 512, ff: int = 1024, layers: int = 4, heads: int = 8,
    heads_kv: int = 4, head_dim: int = 64, experts: int = 0, used: int = 0, norms: tuple[str, ...] = (),
    fused: bool = False, tied: bool = False, **more: tuple[str, Any],
) -> tuple[str, Keys, Shapes]:  # fmt: skip
    """Architecture, keys (type and value, without the architecture's prefix) and tensor shapes of a decoder."""
    keys: Keys = {
        "block_count": ("uint32", layers),
        "context_length": ("uint32", 131072),
        "embedding_length": ("uint32", embd),
        "feed_forward_length": ("uint32", ff),
        "attention.head_count": ("uint32", heads),
        "attention.head_count_kv": ("uint32", heads_kv),
        "attention.layer_norm_rms_epsilon": ("float32", 1e-5),
        "attention.key_length": ("uint32", head_dim),
        "attention.value_length": ("uint32", head_dim),
        "rope.dimension_count": ("uint32", head_dim),
        "vocab_size": ("uint32", vocab),
    }
    if experts:
        keys |= {"expert_count": ("uint32", experts), "expert_used_count": ("uint32", used)}
        keys |= {"expert_feed_forward_length": ("uint32", ff)}
    keys |= {key.replace("__", "."): value for key, value in more.items()}
    shapes: Shapes = {"token_embd.weight": (vocab, embd), "output_norm.weight": (embd,)}
    if not tied:
        shapes["output.weight"] = (vocab, embd)
    query, kv = heads * head_dim, heads_kv * head_dim
    block: Shapes = {"attn_norm": (embd,), "ffn_norm": (embd,), "attn_output": (embd, query)}
    block |= {norm: (head_dim if norm in ("attn_q_norm", "attn_k_norm") else embd,) for norm in norms}
    if fused:
        block |= {"attn_qkv": (query + 2 * kv, embd), "ffn_up": (2 * ff, embd), "ffn_down": (embd, ff)}
    else:
        block |= {"attn_q": (query, embd), "attn_k": (kv, embd), "attn_v": (kv, embd)}
        stack = (experts,) if experts else ()
        suffix = "_exps" if experts else ""
        block |= {f"ffn_{part}{suffix}": (*stack, ff, embd) for part in ("gate", "up")}
        block |= {f"ffn_down{suffix}": (*stack, embd, ff)}
        block |= {"ffn_gate_inp": (experts, embd)} if experts else {}
    shapes |= {f"blk.{i}.{name}.weight": shape for i in range(layers) for name, shape in block.items()}
    return arch, keys, shapes


def mamba() -> tuple[str, Keys, Shapes]:
    inner, state, conv, rank, embd = 512, 16, 4, 16, 256
    keys: Keys = {
        "block_count": ("uint32", 6),
        "context_length": ("uint32", 8192),
        "embedding_length": ("uint32", embd),
        "feed_forward_length": ("uint32", 0),
        "attention.head_count": ("uint32", 0),
        "attention.layer_norm_rms_epsilon": ("float32", 1e-5),
        "ssm.conv_kernel": ("uint32", conv),
        "ssm.inner_size": ("uint32", inner),
        "ssm.state_size": ("uint32", state),
        "ssm.time_step_rank": ("uint32", rank),
        "vocab_size": ("uint32", 1000),
    }
    block: Shapes = {
        "attn_norm.weight": (embd,),
        "ssm_in.weight": (2 * inner, embd),
        "ssm_conv1d.weight": (inner, conv),
        "ssm_conv1d.bias": (inner,),
        "ssm_x.weight": (rank + 2 * state, inner),
        "ssm_dt.weight": (inner, rank),
        "ssm_dt.bias": (inner,),
        "ssm_a": (inner, state),
        "ssm_d": (inner,),
        "ssm_out.weight": (embd, inner),
    }
    shapes: Shapes = {"token_embd.weight": (1000, embd), "output_norm.weight": (embd,)}
    return "mamba", keys, shapes | {f"blk.{i}.{name}": shape for i in range(6) for name, shape in block.items()}


QK_NORMS = ("attn_q_norm", "attn_k_norm")
POST_NORMS = ("post_attention_norm", "post_ffw_norm")
LLAMA_8B = decoder(vocab=128256, embd=4096, ff=14336, layers=32, heads=32, heads_kv=8, head_dim=128)
MODELS = {
    "Llama 3.1 8B": LLAMA_8B,
    "Llama 2 7B": decoder(vocab=32000, embd=4096, ff=11008, layers=32, heads=32, heads_kv=32, head_dim=128),
    "stories260K": decoder(vocab=512, embd=64, ff=172, layers=5, heads=8, heads_kv=4, head_dim=8),
    "Mixtral 8x7B": decoder(
        vocab=32000, embd=4096, ff=14336, layers=32, heads=32, heads_kv=8, head_dim=128, experts=8, used=2
    ),
    "all experts": decoder(embd=1024, ff=2048, heads_kv=8, head_dim=128, experts=8, used=8),
    "many experts": decoder(
        "qwen3moe", embd=2048, ff=768, heads=32, head_dim=128, experts=128, used=8, norms=QK_NORMS
    ),
    "wide attention": decoder(heads=32, heads_kv=8, head_dim=128, ff=128),
    "wide attention, all keys": decoder(heads=32, heads_kv=32, head_dim=128, ff=128),
    "Phi 3": decoder("phi3", embd=768, ff=2048, heads=12, heads_kv=12, fused=True),
    "Gemma 2": decoder(
        "gemma2", embd=2304, ff=9216, layers=26, head_dim=256, norms=POST_NORMS, tied=True,
        attention__sliding_window=("uint32", 4096),
    ),
    "Gemma 3": decoder(
        "gemma3", embd=1152, ff=6912, layers=26, heads=4, heads_kv=1, head_dim=256, norms=QK_NORMS + POST_NORMS,
        tied=True, attention__sliding_window=("uint32", 512),
    ),
    "Mistral with a window": decoder(attention__sliding_window=("uint32", 512)),
    "Mamba": mamba(),
}  # fmt: skip
LOOSE = {"wide attention": 0.25, "Gemma 2": 0.06, "Phi 3": 0.1, "Mistral with a window": 0.1}  # the rest within 3 %
UNMODELLED = {"Mamba"}  # only its state is compared


def described(model: tuple[str, Keys, Shapes]) -> tuple[dict[str, Any], dict[str, tuple[tuple[int, ...], str]]]:
    arch, keys, shapes = model
    metadata = {"general.architecture": Value("str", arch)} | {
        f"{arch}.{key}": Value(kind, value) for key, (kind, value) in keys.items()
    }
    return metadata, {name: (shape, "F16" if len(shape) > 1 else "F32") for name, shape in shapes.items()}


def write_sparse(path: Path, model: tuple[str, Keys, Shapes]) -> None:
    """A GGUF with a true header and holes for data."""
    import numpy as np

    gguf = pytest.importorskip("gguf")
    arch, keys, shapes = model
    writer = gguf.GGUFWriter(path, arch)
    for key, (kind, value) in keys.items():
        getattr(writer, f"add_{kind}")(f"{arch}.{key}", value)
    writer.add_string("tokenizer.ggml.model", "none")
    data = 0
    for name, shape in shapes.items():
        dtype = np.dtype("float16" if len(shape) > 1 and name.endswith("weight") else "float32")
        if "conv1d" in name:
            dtype = np.dtype("float32")
        nbytes = math.prod(shape) * dtype.itemsize
        writer.add_tensor_info(name, shape, dtype, nbytes)
        data += -(-nbytes // 32) * 32
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.close()
    with path.open("r+b") as file:
        file.truncate(-(-path.stat().st_size // 32) * 32 + data)


@pytest.fixture(scope="module")
def llama() -> Iterator[Any]:
    """llama-cpp-python's low-level calls, with the log collected in `llama.lines`."""
    module = pytest.importorskip("llama_cpp")
    lines: list[str] = []

    @module.llama_log_callback
    def collect(level: int, text: bytes, data: object) -> None:
        lines.append(text.decode(errors="replace"))

    module.llama_log_set(collect, ctypes.c_void_p(0))
    module.lines = lines
    yield module
    module.llama_log_set(ctypes.cast(None, module.llama_log_callback), ctypes.c_void_p(0))


def allocated(llama: Any, path: Path, contexts: tuple[int, ...]) -> dict[int, tuple[float, float]]:
    """MiB of cache and compute buffer that llama.cpp would allocate, by context. No weight is read."""
    params = llama.llama_model_default_params()
    params.no_alloc, params.load_mode, params.n_gpu_layers = True, 0, 0
    model = llama.llama_model_load_from_file(str(path).encode(), params)
    assert model, "".join(llama.lines)[-500:]
    found = {}
    for n_ctx in contexts:
        llama.lines.clear()
        settings = llama.llama_context_default_params()
        settings.n_ctx, settings.swa_full = n_ctx, False
        context = llama.llama_init_from_model(model, settings)
        assert context, "".join(llama.lines)[-500:]
        llama.llama_free(context)
        log = "".join(llama.lines)
        cache = sum(map(float, re.findall(r"size = +([\d.]+) MiB \( *\d+ cells", log)))
        compute = sum(map(float, re.findall(r"compute buffer size = +([\d.]+) MiB", log)))
        found[n_ctx] = (cache, compute)
    llama.llama_model_free(model)
    return found


@pytest.mark.parametrize("name", MODELS)
def test_equals_what_llama_cpp_allocates(llama: Any, tmp_path: Path, name: str) -> None:
    path = tmp_path / "sparse.gguf"
    write_sparse(path, MODELS[name])
    measured = allocated(llama, path, CONTEXTS)
    needs = estimate(*described(MODELS[name]), CONTEXTS).needs
    for need in needs[: len(CONTEXTS)]:
        cache, compute = measured[need.context]
        assert need.cache / MIB == pytest.approx(cache, abs=0.006 * 2)
        if name not in UNMODELLED:
            assert need.compute / MIB == pytest.approx(compute, rel=LOOSE.get(name, 0.03))


def test_llama_8b() -> None:
    """Sizes that llama-quantize and llama.cpp print for this model: 15317, 5.33 GiB, 4.58 GiB; 1 GiB per 8192 cells."""
    needs = {(need.type, need.context): need for need in estimate(*described(LLAMA_8B)).needs}
    assert [kind for kind, _ in needs][:: len(CONTEXTS) + 1] == [STORED, *TYPES]
    assert {context for _, context in needs} == {*CONTEXTS, 131072}
    assert needs["F16", 8192].cache == 1 << 30
    assert round(needs["F16", 8192].weights / MIB) == 15317
    assert round(needs["Q5_K_M", 8192].weights / (1 << 30), 2) == 5.33
    assert round(needs["Q4_K_M", 8192].weights / (1 << 30), 2) == 4.58
    assert needs["Q4_K_M", 8192].bits_per_weight == pytest.approx(4.89, abs=0.01)


def test_contexts_stop_at_the_models_own() -> None:
    arch, keys, shapes = decoder(context_length=("uint32", 4096))
    assert {need.context for need in estimate(*described((arch, keys, shapes))).needs} == {2048, 4096}
    assert {need.context for need in estimate(*described((arch, keys, shapes)), [9, 9, 1]).needs} == {1, 9}


def test_quantized_files_are_judged_as_f16() -> None:
    metadata, tensors = described(LLAMA_8B)
    quantized = {name: (shape, "Q4_K" if len(shape) > 1 else kind) for name, (shape, kind) in tensors.items()}
    plain = {need.type: need.weights for need in estimate(metadata, tensors, [2048]).needs}
    again = {need.type: need.weights for need in estimate(metadata, quantized, [2048]).needs}
    assert again.pop(STORED) < plain.pop(STORED) / 3
    assert again == plain


def cache_of(model: tuple[str, Keys, Shapes], drop: str = "", **keys: Any) -> int:
    metadata, tensors = described(model)
    metadata |= {f"{model[0]}.{key.replace('__', '.')}": value for key, value in keys.items()}
    tensors = {name: tensor for name, tensor in tensors.items() if not (drop and re.search(drop, name))}
    return estimate(metadata, tensors, [8192]).needs[0].cache


def test_layers_without_a_cache() -> None:
    per_layer = 8192 * 4 * 2 * 64 * 2
    assert cache_of(decoder()) == 4 * per_layer
    assert cache_of(decoder(), drop=r"blk\.[12]\.attn_k") == 2 * per_layer
    assert cache_of(decoder(), attention__head_count_kv=Array("u32", [4, 0, 2, 0])) == 1.5 * per_layer
    assert cache_of(decoder(), nextn_predict_layers=1) == 3 * per_layer
    assert cache_of(decoder(), attention__shared_kv_layers=2) == 2 * per_layer
    assert cache_of(decoder(), attention__causal=Value("bool", False)) == 0
    assert cache_of(decoder(), attention__key_length_mla=192) == 2 * per_layer // 1


def test_patterns_in_the_header() -> None:
    small = 1024 * 4 * 2 * 64 * 2
    full = 8 * small
    window = {"attention__sliding_window": 512}
    flags = [True, False, True, True]
    assert cache_of(decoder(), **window, attention__sliding_window_pattern=flags) == full + 3 * small
    assert cache_of(decoder(), **window, attention__sliding_window_pattern=2) == 2 * full + 2 * small
    assert cache_of(decoder(), attention__sliding_window_pattern=2) == 4 * full
    assert cache_of(decoder("smallthinker"), **window) == full + 3 * small
    narrow = {"attention__key_length_swa": 32, "attention__value_length_swa": 32}
    assert cache_of(decoder("gpt-oss"), **window, **narrow) == 2 * full + small


@pytest.mark.parametrize(
    ("keys", "elements"),
    [
        ({"wkv__head_size": 64}, 512 * (2 + 64)),
        ({"shortconv__l_cache": 3}, 512 * 2),
        ({"kda__head_dim": 64, "ssm__conv_kernel": 4}, 8 * 64 * (9 + 64)),
        ({"ssm__state_size": 16, "ssm__inner_size": 1024, "ssm__group_count": 2}, 3 * (1024 + 64) + 16 * 1024),
        ({}, 0),
    ],
)
def test_recurrent_states(keys: dict[str, int], elements: int) -> None:
    arch, own, shapes = decoder()
    shapes = {name: shape for name, shape in shapes.items() if "attn_k" not in name}
    shapes |= {f"blk.{i}.ssm_x.weight": (512, 512) for i in range(3)} | {"blk.0.attn_qkv.weight": (512, 512)}
    assert cache_of((arch, own, shapes), **keys) == 3 * 4 * elements


@pytest.mark.parametrize(
    ("metadata", "tensors"),
    [
        ({}, {}),
        ({"general.architecture": "llama"}, {"a": ((1,), "F32")}),
        ({"general.architecture": Array("u32", [1])}, {"token_embd.weight": ((1,), "F32"), "blk.0.x": ((), "F32")}),
    ],
)
def test_says_why_there_is_no_estimate(metadata: dict[str, Any], tensors: dict[str, Any]) -> None:
    result = estimate(metadata, tensors)
    assert not result.needs and "not a language model" in str(result.reason)
    assert result.as_dict()["reason"] == result.reason


ODD = [-1, 1 << 40, "x", 1.5, None, b"", [], [-1, "y"], Array("str", ["a"]), float("nan"), True]


@pytest.mark.parametrize("odd", ODD, ids=range(len(ODD)))
def test_odd_metadata_does_not_raise(odd: object) -> None:
    metadata, tensors = described(decoder(experts=2, used=1))
    tensors |= {"blk.99999.attn_k.weight": ((3, 7), "Q4_K")}
    tensors |= {"blk.1.weird": ((), "NOPE"), "blk.2.attn_k.bias": ((), "F32")}
    for changed in (*(metadata | {key: odd} for key in metadata), dict.fromkeys(metadata, odd)):
        result = estimate(changed, tensors)
        assert bool(result.needs) != bool(result.reason), "numbers, or why there are none"
        assert all(min(need.weights, need.cache, need.compute) >= 0 for need in result.needs)


def test_json() -> None:
    need = Need("F16", 2048, 16.0, 3, 2, 1)
    assert Estimate((need,)).as_dict()["needs"] == [
        {"type": "F16", "context": 2048, "bits_per_weight": 16.0, "weights": 3, "cache": 2, "compute": 1, "total": 6}
    ]


# ------------------------------------------------------------------------------------------ each number at its edge


def test_a_cache_grows_in_steps_of_256_cells_of_two_bytes() -> None:
    """Four layers of four heads with 64 values in a key and 64 in a value, F16."""
    needs = estimate(*described(decoder()), [1, 256, 257, 512, 513]).needs[:5]
    cell = 4 * 4 * (64 + 64) * 2
    assert [need.cache for need in needs] == [256 * cell, 256 * cell, 512 * cell, 512 * cell, 768 * cell]


def test_a_window_keeps_the_batch_that_is_read_too() -> None:
    """512 tokens of a batch beside the window, in steps of 256 cells, and never more than the context."""
    cell = 4 * 4 * (64 + 64) * 2
    slides: dict[str, Any] = {"attention__sliding_window_pattern": [True] * 4}
    assert cache_of(decoder(), **slides, attention__sliding_window=256) == 768 * cell
    assert cache_of(decoder(), **slides, attention__sliding_window=257) == 1024 * cell
    assert cache_of(decoder(), **slides, attention__sliding_window=100_000) == 8192 * cell


def test_a_batch_has_512_tokens_and_no_more_than_the_cells() -> None:
    needs = estimate(*described(decoder(vocab=100_000)), [1, 256, 257, 512, 8192]).needs[:5]
    logits = 4 * (100_000 + 2 * 512)
    assert [need.compute for need in needs] == [tokens * logits for tokens in (256, 256, 512, 512, 512)]
    assert estimate(*described(decoder())).as_dict()["assumes"]["batch"] == 512


def test_contexts_that_are_asked_for() -> None:
    needs = estimate(*described(decoder())).needs
    assert sorted({need.context for need in needs}) == [2048, 8192, 32768, 131072]


def test_no_count_of_a_header_has_more_than_32_bits() -> None:
    for length, contexts in (((1 << 32) - 1, {2048, 8192, 32768, (1 << 32) - 1}), (1 << 32, {2048, 8192, 32768})):
        needs = estimate(*described(decoder(context_length=("uint64", length)))).needs
        assert {need.context for need in needs} == contexts
