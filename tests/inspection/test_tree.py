"""The tree of modules: layers that are alike are one, sums are right, and no name makes it slow or deep."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from support import models, sparse

from converter.inspection.describe import inspect
from converter.inspection.tree import Node, tree, where
from converter.tensors.dtypes import dtype
from converter.tensors.tensor import TensorInfo


def named(names: dict[str, tuple[int, ...]], kind: str = "F32") -> list[TensorInfo]:
    return [TensorInfo(name, shape, dtype(kind)) for name, shape in names.items()]


def at(root: Node, *names: str) -> Node:
    for name in names:
        root = next(child for child in root.children if child.name == name)
    return root


def ggml(layers: int) -> dict[str, tuple[int, ...]]:
    block = {"attn_norm": (64,), "attn_q": (64, 64), "attn_v": (32, 64), "ffn_up": (256, 64)}
    return {f"blk.{layer}.{name}.weight": shape for layer in range(layers) for name, shape in block.items()}


def test_layers_are_one() -> None:
    root = tree(named({"token_embd.weight": (1000, 64), **ggml(32)}))
    assert [child.name for child in root.children] == ["token_embd.weight", "blk.*"]
    blocks = at(root, "blk.*")
    assert (blocks.count, blocks.each) == (32, 64 + 64 * 64 + 32 * 64 + 256 * 64)
    assert [(child.name, child.count) for child in blocks.children] == [("attn", 32), ("ffn_up.weight", 32)]
    leaf = at(blocks, "attn", "attn_q.weight")
    assert (leaf.shape, leaf.count, leaf.bytes) == ((64, 64), 32, 4 * 32 * 64 * 64)
    assert leaf.tensors == tuple(range(2, 2 + 4 * 32, 4)), "numbers of its tensors, layer by layer"


def test_sums_are_those_of_all_tensors() -> None:
    found = inspect(models.FIXTURES / "kjv-llama")
    for _, node in found.tree.walk():
        if node.children:
            assert node.bytes == sum(child.bytes for child in node.children)
            assert node.parameters == sum(child.parameters for child in node.children)
            assert sum(node.types.values()) == node.bytes
    assert (found.tree.parameters, found.tree.bytes) == (found.n_parameters, found.tensor_bytes)
    assert sorted(found.tree.tensors) == list(range(len(found.tensors)))


def test_layers_that_differ_stay_apart() -> None:
    """Two dense layers before six with experts; of a hybrid, every fourth layer is another."""
    moe = {f"model.layers.{n}.mlp.gate_proj.weight": (8, 8) for n in range(2)}
    moe |= {f"model.layers.{n}.mlp.experts.{e}.up_proj.weight": (8, 8) for n in range(2, 8) for e in range(4)}
    layers = at(tree(named(moe)), "model.layers")
    assert [(child.name.partition(".")[0], child.count) for child in layers.children] == [("0-1", 2), ("2-7", 24)]
    hybrid = {f"l.{n}.{'attn' if n % 4 == 3 else 'mamba'}.w": (8,) for n in range(40)}
    assert [child.name for child in at(tree(named(hybrid)), "l").children] == [
        "0-2,4-6,8-10,12-14....mamba.w", "3,7,11,15....attn.w"
    ]  # fmt: skip


def test_types_may_differ_among_layers() -> None:
    infos = [TensorInfo(f"blk.{n}.w", (256, 256), dtype("Q6_K" if n < 2 else "Q4_K")) for n in range(8)]
    (leaf,) = tree(infos).children
    assert (leaf.name, leaf.count, list(leaf.types)) == ("blk.*.w", 8, ["Q4_K", "Q6_K"])


@pytest.mark.parametrize(
    "names",
    [
        {}, {"": (1,)}, {".": (1,), "..": (2,)}, {"a": (1,), "a.b": (2,)}, {"a" + ".b" * 5000: (3,)},
        {"7": (1,), "8": (1,), "9": (2,)}, {"blk.٣.w": (1,), "blk.99999999999999.w": (1,)},
    ],
    ids=["none", "empty", "dots", "name in name", "deep", "numbers", "odd digits"],
)  # fmt: skip
def test_odd_names(names: dict[str, tuple[int, ...]]) -> None:
    root = tree(named(names))
    assert sorted(root.tensors) == list(range(len(names)))
    assert sum(1 for _ in root.walk()) <= 3 + 2 * 24


def test_signs_between_parts_stay(tmp_path: Path) -> None:
    root = tree(named({"encoder/layer_0/kernel": (4,), "encoder/layer_1/kernel:0": (4,), "variables/3/x": (2,)}))
    assert [child.name for child in root.children] == ["encoder", "variables/3/x"]
    assert [child.name for child in root.children[0].children] == ["layer_0/kernel", "layer_1/kernel:0"]


def test_places_in_a_grid() -> None:
    assert where("blk.7.ffn_down.weight") == (7, "ffn_down.weight")
    assert where("model.layers.3.mlp.experts.12.up_proj.weight") == (3, "mlp.experts.*.up_proj.weight")
    assert where("token_embd.weight") == (None, "token_embd.weight")


def test_many_tensors_take_no_time() -> None:
    """46,000 of DeepSeek's; a square of them would take minutes."""
    infos = named(sparse.shapes(sparse.CONFIGS["deepseek-v3.1"]), "BF16")
    started = time.process_time()
    root = tree(infos)
    assert time.process_time() - started < 10
    assert len(list(root.walk())) < 100 and root.parameters > 670e9


def test_nothing_but_headers_is_read(tmp_path: Path) -> None:
    """A model of 16 GB that is not there."""
    folder = sparse.folder(sparse.LLAMAS["llama-3.1-8b"], tmp_path / "m", tokenizer=models.FIXTURES / "kjv-llama")
    found = inspect(folder)
    assert at(found.tree, "model", "layers.*").count == 32
    assert found.memory and found.tuning and found.tuning.needs
