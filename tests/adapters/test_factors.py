"""B A by rows: right, the same whatever rows are asked for together, and never whole in memory; names as they come."""

from __future__ import annotations

import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support import builders
from support.adapters import lora, written

import converter
from converter.adapters.changes import Dora, LowRank
from converter.adapters.factors import matrix, pair, product, stacked
from converter.adapters.names import named
from converter.checkpoint import Checkpoint
from converter.formats.peft import open_adapter
from converter.formats.registry import formats
from converter.request import Source
from converter.tensors.dtypes import F32
from converter.tensors.tensor import LazyTensor, Rows, TensorInfo, from_array

RNG = np.random.default_rng(5)


def tensor(*shape: int) -> LazyTensor:
    return from_array("w", RNG.standard_normal(shape).astype(np.float32), F32, "test")


def test_the_product_is_right_and_depends_on_no_neighbours() -> None:
    b, a = tensor(37, 5), tensor(5, 4100)
    made = pair(matrix(b), matrix(a))
    whole = made.rows(0, 37)
    wanted = b.array().astype(np.float64) @ a.array().astype(np.float64)
    assert np.abs(whole - wanted).max() <= 2e-6 * np.abs(wanted).max()
    for start in range(37):
        assert np.array_equal(made.rows(start, start + 1)[0], whole[start])
    assert np.array_equal(made.turned().rows(17, 900), whole.T[17:900])
    assert np.array_equal(made.part(8, 20).rows(3, 9), whole[11:17])


def test_sums_are_those_of_a_fused_multiply_add() -> None:
    """1 + 2**-12 squared is 1 + 2**-11 + 2**-24: the last bit falls off a product in F32, and is in this sum."""
    x = np.float32(1 + 2.0**-12)
    b, a = np.array([[1, x]], np.float32), np.array([[-1 - 2.0**-11], [x]], np.float32)
    assert product(b, a)[0, 0] == np.float32(2.0**-24)


def test_stacked_pairs_are_one_after_the_other() -> None:
    made = [pair(matrix(tensor(4, 3)), matrix(tensor(3, 6))) for _ in range(5)]
    whole = stacked(made)
    wanted = np.concatenate([each.rows(0, 4) for each in made])
    assert whole.shape == (5, 4, 6)
    assert np.array_equal(whole.rows(0, 20), wanted) and np.array_equal(whole.rows(3, 14), wanted[3:14])
    turned = np.concatenate([each.rows(0, 4).T for each in made])
    assert np.array_equal(whole.turned().rows(4, 23), turned[4:23])


@pytest.mark.parametrize("by_rows", [True, False], ids=["rows", "columns"])
def test_a_whole_delta_is_never_in_memory(by_rows: bool) -> None:
    rows, columns, rank = 8192, 4096, 4
    zeros = np.zeros((64, columns), np.float32)

    def read(start: int, stop: int) -> Rows:
        assert stop - start <= 128
        return np.broadcast_to(zeros[:1], (stop - start, columns)).view(np.uint8)

    weight = LazyTensor(TensorInfo("w", (rows, columns), F32), read, "test")
    low_rank = LowRank(pair(matrix(tensor(rows, rank)), matrix(tensor(rank, columns))), 0.5)
    change = Dora(low_rank, matrix(tensor(rows if by_rows else columns)), weight, by_rows)
    change(zeros, 64)
    tracemalloc.start()
    change(zeros, 4096)
    change = Dora(low_rank, change.magnitude, weight, by_rows)
    if not by_rows:
        change(zeros, 0)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < rows * columns * 4 // 8


SPELLINGS = {
    "as PEFT writes them": "base_model.model.{}.lora_{}.weight",
    "with the adapter's name": "base_model.model.{}.lora_{}.default.weight",
    "without a prefix": "{}.lora_{}.weight",
    "compiled": "base_model.model._orig_mod.{}.lora_{}.weight",
    "of FSDP": "_fsdp_wrapped_module.base_model.model.{}.lora_{}.weight",
    "in a wrapper": "base_model.model.module.{}.lora_{}.weight",
}
Q = "model.layers.0.self_attn.q_proj"
SHAPE = builders.llama_shapes()[f"{Q}.weight"]


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_names_as_programs_leave_them(spelling: str, tmp_path: Path) -> None:
    base = builders.llama_folder(tmp_path / "base")
    plain = lora(Q, *SHAPE)
    said = {SPELLINGS[spelling].format(Q, side): each for side, each in zip("AB", plain.values(), strict=True)}
    for name, tensors in (("plain", plain), ("other", said)):
        adapter = written(tmp_path / name, tensors)
        converter.convert(Source(base, adapters=[(adapter, 1)]), tmp_path / f"{name}.safetensors", threads=1)
    assert (tmp_path / "plain.safetensors").read_bytes() == (tmp_path / "other.safetensors").read_bytes()


def test_copies_of_the_base_are_not_what_replaces_it(tmp_path: Path) -> None:
    stem = "base_model.model.model.embed_tokens"
    names = (
        f"{stem}.base_layer.weight", f"{stem}.original_module.weight", "base_model.model.lm_head.weight",
        "base_model.model.model.norm.modules_to_save.weight", "base_model.model.score.modules_to_save.default.bias",
        "base_model.model.model.q.base_layer.bias",
    )  # fmt: skip
    found = named(open_adapter(written(tmp_path / "a", {name: np.ones(2, np.float32) for name in names})))
    assert list(found.copies) == ["model.embed_tokens.weight"]
    assert list(found.saved) == ["lm_head.weight", "model.norm.weight", "score.bias", "model.q.bias"]


def test_mlx_writes_the_transposes_and_the_factor_itself(tmp_path: Path) -> None:
    base = builders.llama_folder(tmp_path / "base")
    plain = lora(Q, *SHAPE)
    a, b = plain.values()
    theirs = written(tmp_path / "theirs", plain, r=2, lora_alpha=6)
    ours = tmp_path / "mlx"
    ours.mkdir()
    tensors: dict[str, Any] = {f"{Q}.lora_a": np.ascontiguousarray(a.T), f"{Q}.lora_b": np.ascontiguousarray(b.T)}
    (ours / "adapters.safetensors").write_bytes(builders.safetensors_of(tensors))
    (ours / "adapter_config.json").write_text(
        '{"fine_tune_type": "lora", "lora_parameters": {"rank": 2, "scale": 3.0}}'
    )
    for name, folder in (("theirs", theirs), ("mlx", ours)):
        converter.convert(Source(base, adapters=[(folder, 1)]), tmp_path / f"{name}.safetensors", threads=1)
    assert (tmp_path / "mlx.safetensors").read_bytes() == (tmp_path / "theirs.safetensors").read_bytes()


def test_the_reader_is_no_format(tmp_path: Path) -> None:
    opened: Checkpoint = open_adapter(written(tmp_path / "a", lora(Q, *SHAPE)))
    assert opened.dialect == "peft" and "peft" not in formats()
    opened.close()
