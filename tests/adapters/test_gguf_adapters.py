"""GGUF adapters: factors carried through the ops of every rule, and logits of llama.cpp with them against PEFT's."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from support import adapters, architectures, builders
from support.adapters import lora, written
from support.llama_runner import ask
from support.torch_logits import TOKENS

import converter
from converter.adapters.carry import Carried, carried
from converter.adapters.factors import matrix, pair, stacked
from converter.errors import LossyError, UnsupportedFeature, UsageError
from converter.mapping.tensors import rewritings
from converter.request import Request, Source
from converter.tensors.dtypes import F32
from converter.tensors.ops import (
    Add,
    At,
    Chain,
    Concat,
    Mul,
    NegExp,
    Op,
    PermuteColumns,
    PermuteRows,
    Reshape,
    Rope,
    Rows,
    Split,
    Stack,
    Transpose,
    apply,
    infer,
)
from converter.tensors.tensor import from_array
from converter.verify.verifier import verify

Floats = npt.NDArray[np.float32]
STEM = "base_model.model."


def numbers(path: Path) -> dict[str, Floats]:
    with converter.open_checkpoint(path) as made:
        return {name: tensor.array().astype(np.float32) for name, tensor in made.tensors.items()}


# ------------------------------------------------------------------------------------------------- ops


def change(shape: Sequence[int], rank: int, factor: float, seed: int) -> Carried:
    rng = np.random.default_rng(seed)

    def drawn(*sizes: int) -> Any:
        return matrix(from_array("w", rng.standard_normal(sizes).astype(np.float32), F32, "test"))

    *stacks, rows, columns = shape
    made = [pair(drawn(rows, rank), drawn(rank, columns)) for _ in range(stacks[0] if stacks else 1)]
    return Carried(stacked(made) if stacks else made[0], factor)


def whole(each: Carried) -> Floats:
    made = each.pair
    return (made.rows(0, made.n * made.n_rows) * np.float32(each.factor)).reshape(made.shape)


# The ops, the shapes that they take, and which of the weights change.
CHAINS: dict[str, tuple[Chain, list[tuple[int, ...]], list[bool]]] = {
    "rope": ((Rope(2),), [(8, 6)], [True]),
    "transposed": ((Transpose(),), [(8, 6)], [True]),
    "transposed, then rows": ((Transpose(), PermuteRows((2, 3), (1, 0))), [(8, 6)], [True]),
    "columns": ((PermuteColumns((2, 3), (1, 0)),), [(8, 6)], [True]),
    "three in one": ((Concat(0, (4, 2, 2)),), [(4, 6), (2, 6), (2, 6)], [True, True, True]),
    "three in one, of which one stays": ((Concat(0, (4, 2, 2)),), [(4, 6), (2, 6), (2, 6)], [True, False, True]),
    "one in three, with rope": (
        (Split(0, (4, 2, 2)), At(0, Rope(2)), At(1, Rope(1))), [(8, 6)], [True],
    ),
    "columns in two": ((Split(1, (1, 2)),), [(4, 6)], [True]),
    "columns of two in one": ((Concat(1, (2, 4)),), [(4, 2), (4, 4)], [True, True]),
    "groups": (
        (Reshape((8, "row"), (2, 4, "row")), Split(1, (2, 1, 1)), At(0, Reshape((2, 2, "row"), (4, "row"))),
         At(1, Reshape((2, 1, "row"), (2, "row"))), At(2, Reshape((2, 1, "row"), (2, "row"))), Concat(0, (4, 2, 2))),
        [(8, 6)], [True],
    ),
    "experts": ((Stack(3),), [(4, 6)] * 3, [True, True, True]),
    "experts, of which one stays": ((Stack(3),), [(4, 6)] * 3, [True, False, True]),
    "experts in one parameter": ((Split(1, (1, 1)),), [(3, 4, 6)], [True]),
    "experts the other way round": ((Transpose((0, 2, 1)), Split(1, (1, 1))), [(3, 6, 4)], [True]),
    "experts the other way round, by columns": ((Split(2, (1, 1)), Transpose((0, 2, 1))), [(3, 6, 4)], [True]),
    "rows behind": ((Rows(4, 6),), [(4, 6)], [True]),
    "multiplied": ((Mul(2.0),), [(4, 6)], [True]),
    "moved by a constant": ((Add(1.0), Mul(2.0, undo=True)), [(4, 6)], [True]),
}  # fmt: skip


@pytest.mark.parametrize("name", CHAINS)
def test_factors_follow_ops(name: str) -> None:
    """The product of what they become is what the ops make of their product."""
    chain, shapes, which = CHAINS[name]
    changes = [
        change(shape, 2 + number % 2, 0.5 + number, number) if changed else None
        for number, (shape, changed) in enumerate(zip(shapes, which, strict=True))
    ]
    made = carried(chain, shapes, changes)
    deltas = [
        np.zeros(shape, np.float32) if each is None else whole(each)
        for shape, each in zip(shapes, changes, strict=True)
    ]
    linear = tuple(op for op in chain if not isinstance(op, Add))
    wanted = apply(linear, deltas)
    assert [each.shape for each in wanted] == infer(chain, shapes)
    for each, delta in zip(made, wanted, strict=True):
        if each is None:
            assert not delta.any()
        else:
            assert np.allclose(whole(each), delta, rtol=1e-5, atol=1e-5)
            assert np.array_equal(each.pair.b(1, 2), each.pair.b(0, each.pair.n_rows)[1:2])


def test_what_does_not_change_is_not_made() -> None:
    made = carried((Split(0, (1, 1)),), [(4, 6)], [None])
    assert list(made) == [None, None]
    q, kv = carried((Concat(0, (4, 4)), Split(0, (4, 4))), [(4, 6), (4, 6)], [change((4, 6), 2, 1.0, 1), None])
    assert q is not None and q.pair.rank == 2 and kv is None


@pytest.mark.parametrize(
    "op", [NegExp(), Reshape((4, 6), (6, 4)), Transpose((1, 0, 2))], ids=lambda op: type(op).__name__
)
def test_ops_that_factors_cannot_follow_are_named(op: Op) -> None:
    shape = (4, 6) if not isinstance(op, Transpose) else (3, 4, 6)
    chain = (op,) if not isinstance(op, Transpose) else (Transpose((2, 0, 1)),)
    with pytest.raises(UnsupportedFeature, match=type(op).__name__):
        carried(chain, [shape], [change(shape, 2, 1.0, 1)])


# ----------------------------------------------------------------------------- deltas of every architecture


FAMILIES = ("llama-embed-tiny", "gpt2-tiny", "bloom-tiny", "falcon-new", "gptneox-tiny", "phimoe-tiny", "gpt-oss-tiny",
            "olmoe-tiny", "phi4-mini", "glm4-tiny", "qwen3next-tiny", "deepseek2-v3-tiny", "llama4-tiny", "mpt-tiny",
            "jamba-tiny", "gemma3n-tiny", "stablelm-tiny")  # fmt: skip


@pytest.mark.parametrize("name", FAMILIES)
def test_every_matrix_of_a_model_can_be_adapted(name: str, tmp_path: Path) -> None:
    """With an adapter on each of its matrices, a GGUF adapter's products are what the mapping makes of the deltas."""
    folder = architectures.build(name, tmp_path)
    with converter.open_checkpoint(folder) as base:
        _, steps = rewritings(base)
        compared = 0
        for number, step in enumerate(steps):
            shapes = [source.info.shape for source in step.sources]
            if any(len(shape) not in (2, 3) or min(shape) == 1 for shape in shapes):
                continue
            changes = [change(shape, 2, 1.0, 100 * number + at) for at, shape in enumerate(shapes)]
            try:
                made = carried(step.chain, shapes, changes)
            except UnsupportedFeature as error:
                assert "cannot follow" in str(error) or "axes" in str(error)
                continue
            linear = tuple(op for op in step.chain if not isinstance(op, Add))
            for each, delta in zip(made, apply(linear, [whole(each) for each in changes]), strict=True):
                assert each is not None and np.allclose(whole(each), delta, rtol=1e-4, atol=1e-4), step.names
                compared += 1
    assert compared >= 6


# ------------------------------------------------------------------------------------------------- files


Q = "model.layers.0.self_attn.q_proj"
K = "model.layers.0.self_attn.k_proj"
SHAPES = builders.llama_shapes()


def two(base: Path, folder: Path, **config: Any) -> Path:
    tensors = lora(Q, *SHAPES[f"{Q}.weight"], rank=2) | lora(K, *SHAPES[f"{K}.weight"], rank=4)
    return written(folder, tensors, rank_pattern={"k_proj": 4}, **config)


def made(adapter: Path, base: Path, target: Path, **request: Any) -> converter.Plan:
    return converter.convert(Source(adapter, base=base), target, Request(**request), threads=1)


def strengths(path: Path, adapter: Path) -> dict[str, float]:
    """What llama.cpp multiplies each product by, over what stands in the adapter."""
    with converter.open_checkpoint(path) as opened:
        alpha = opened.config["adapter.lora.alpha"].value
    ours, theirs = numbers(path), {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = numbers(adapter / "adapter_model.safetensors")
    found = {}
    for name, module in (("blk.0.attn_q", Q), ("blk.0.attn_k", K)):
        b, stored = ours[f"{name}.weight.lora_b"], theirs[f"{STEM}{module}.lora_B.weight"]
        found[module] = float(np.linalg.norm(b) / np.linalg.norm(stored) * alpha / b.shape[-1])
    return found


def test_keys_names_and_shapes(tmp_path: Path) -> None:
    base = builders.llama_folder(tmp_path / "base")
    plan = made(two(base, tmp_path / "a", lora_alpha=4), base, tmp_path / "a.gguf")
    with converter.open_checkpoint(tmp_path / "a.gguf") as opened:
        said = {key: opened.config[key].value for key in ("general.architecture", "general.type", "adapter.type")}
        assert opened.config["adapter.lora.alpha"].value == 4.0
        shapes = {name: tensor.info.shape for name, tensor in opened.tensors.items()}
    assert said == {"general.architecture": "llama", "general.type": "adapter", "adapter.type": "lora"}
    assert shapes == {
        "blk.0.attn_q.weight.lora_a": (2, 32), "blk.0.attn_q.weight.lora_b": (32, 2),
        "blk.0.attn_k.weight.lora_a": (4, 32), "blk.0.attn_k.weight.lora_b": (16, 4),
    }  # fmt: skip
    assert plan.report.events == []


CASES: dict[str, tuple[dict[str, Any], dict[str, float]]] = {
    "plain": ({"lora_alpha": 4}, {Q: 2.0, K: 1.0}),
    "rslora": ({"lora_alpha": 4, "use_rslora": True}, {Q: 4 / 2**0.5, K: 2.0}),
    "alpha of one": ({"lora_alpha": 4, "alpha_pattern": {"layers.0.self_attn.q_proj": 6}}, {Q: 3.0, K: 1.0}),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_the_strength_is_right_for_each_tensor(case: str, tmp_path: Path) -> None:
    config, wanted = CASES[case]
    base = builders.llama_folder(tmp_path / "base")
    adapter = two(base, tmp_path / "a", **config)
    plan = made(adapter, base, tmp_path / "a.gguf")
    assert strengths(tmp_path / "a.gguf", adapter) == pytest.approx(wanted, rel=1e-6)
    assert bool(plan.report.events) == (case != "plain")  # what is folded in is told


@pytest.mark.parametrize("alone", [True, False], ids=["all", "one of them"])
def test_a_strength_of_zero_leaves_zeros(alone: bool, tmp_path: Path) -> None:
    """Of experts that become one tensor, the first counts for nothing, or all do."""
    base = adapters.small_base(tmp_path / "base")
    modules = [f"model.layers.0.block_sparse_moe.experts.{expert}.w1" for expert in range(2)]
    factors = {key: each for module in modules for key, each in lora(module, 12, 8).items()}
    patterns = {"lora_alpha": 0} if alone else {"alpha_pattern": {"experts.0.w1": 0}}
    made(written(tmp_path / "a", factors, **patterns), base, tmp_path / "a.gguf")
    b = numbers(tmp_path / "a.gguf")["blk.0.ffn_gate_exps.weight.lora_b"]
    assert not b[0].any()
    wanted = factors[f"{STEM}{modules[1]}.lora_B.weight"]
    assert np.array_equal(b[1][:, -2:], wanted * (0 if alone else 1))


def test_what_has_no_place_is_a_loss(tmp_path: Path) -> None:
    base = builders.llama_folder(tmp_path / "base")
    rows = np.ones(SHAPES[f"{Q}.weight"][0], np.float32)
    more = {f"{STEM}{Q}.lora_magnitude_vector": rows, f"{STEM}model.norm.weight": rows}
    adapter = written(tmp_path / "a", lora(Q, *SHAPES[f"{Q}.weight"]) | more)
    plan = made(adapter, base, tmp_path / "a.gguf")
    assert [event.loss for event in plan.report.events] == [True, True]
    with pytest.raises(LossyError, match="refused under --strict"):
        made(adapter, base, tmp_path / "strict.gguf", strict=True)
    with pytest.raises(UnsupportedFeature, match="no product of two matrices"):
        made(written(tmp_path / "b", {f"{STEM}model.norm.weight": rows}), base, tmp_path / "b.gguf")


def test_a_tied_embedding_is_refused(tmp_path: Path) -> None:
    weights = {name: each for name, each in builders.llama_weights().items() if name != "lm_head.weight"}
    base = builders.llama_folder(tmp_path / "base", config={"tie_word_embeddings": True}, weights=weights)
    tensors = {f"{STEM}model.embed_tokens.lora_embedding_{side}": np.ones(shape, np.float32)
               for side, shape in (("A", (2, 512)), ("B", (32, 2)))}  # fmt: skip
    with pytest.raises(UnsupportedFeature, match="which is the head, too"):
        made(written(tmp_path / "a", tensors), base, tmp_path / "a.gguf")


def test_other_targets_and_types_are_refused(tmp_path: Path) -> None:
    base = builders.llama_folder(tmp_path / "base")
    adapter = two(base, tmp_path / "a")
    with pytest.raises(UsageError, match="makes a GGUF adapter"):
        made(adapter, base, tmp_path / "a.safetensors")
    with pytest.raises(UsageError, match="matrices of an adapter are small"):
        made(adapter, base, tmp_path / "a.gguf", quant="q4_k_m")
    with pytest.raises(UsageError, match="is an adapter"):
        converter.open_checkpoint(Source(adapter, base=base, adapters=[(adapter, 1)]))
    made(adapter, base, tmp_path / "half.gguf", quant="f16")
    with converter.open_checkpoint(tmp_path / "half.gguf") as opened:
        assert {tensor.info.dtype.name for tensor in opened.tensors.values()} == {"F16"}


def test_it_is_verified_like_everything_else(tmp_path: Path) -> None:
    base = builders.llama_folder(tmp_path / "base")
    adapter = two(base, tmp_path / "a", use_rslora=True)
    made(adapter, base, tmp_path / "a.gguf")
    result = verify(Source(adapter, base=base), tmp_path / "a.gguf")
    assert result.passed and len(result.tensors) == 4
    other = two(base, tmp_path / "b", lora_alpha=9)
    assert not verify(Source(other, base=base), tmp_path / "a.gguf").passed


# ------------------------------------------------------------------------------------------------- logits

LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "up_proj", "down_proj", "gate_proj"]
RUN: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("arcee-tiny", {"target_modules": "all-linear", "use_rslora": True, "alpha_pattern": {"q_proj": 3}}),
    "embedding and head": ("arcee-tiny", {"target_modules": ["q_proj", "embed_tokens", "lm_head"]}),
    "Conv1D": ("gpt2-tiny", {"target_modules": ["c_attn", "c_proj", "c_fc"], "fan_in_fan_out": True}),
    "fused in groups": ("bloom-tiny", {"target_modules": ["query_key_value", "dense"]}),
    "fused, by head": ("gptneox-tiny", {"target_modules": ["query_key_value", "dense"]}),
    "experts": (
        "olmoe-tiny",
        {"target_modules": ["q_proj"], "target_parameters": ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]},
    ),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("case", RUN)
def test_llama_cpp_computes_what_peft_does(case: str, tmp_path: Path) -> None:
    """By a merged GGUF, and by the GGUF of the base with a GGUF adapter."""
    peft, torch = pytest.importorskip("peft"), pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("llama_cpp")
    name, settings = RUN[case]
    base = architectures.build(name, tmp_path)
    adapter = adapters.adapter(base, tmp_path / "adapter", r=3, lora_alpha=5, **settings)
    model = transformers.AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    with torch.no_grad():
        plain = model(torch.tensor(TOKENS)).logits[0].numpy()
        theirs = peft.PeftModel.from_pretrained(model, adapter)(torch.tensor(TOKENS)).logits[0].numpy()
    size = float(np.abs(theirs).max())
    assert np.abs(plain - theirs).max() > 0.05 * size  # or nothing would be shown
    converter.convert(base, tmp_path / "base.gguf", Request(quant="f32"), threads=1)
    converter.convert(Source(base, adapters=[(adapter, 1)]), tmp_path / "m.gguf", Request(quant="f32"), threads=1)
    made(adapter, base, tmp_path / "a.gguf")
    for question in (
        {"model": tmp_path / "m.gguf"},
        {"model": tmp_path / "base.gguf", "lora": str(tmp_path / "a.gguf")},
    ):
        ours = np.array(ask(**question, logits=TOKENS[0]))
        columns = min(ours.shape[1], theirs.shape[1])
        assert np.abs(ours[:, :columns] - theirs[:, :columns]).max() <= 2e-4 * size
