"""Tensors of one dialect in the other, over models made up in memory: what fits the rows and what does not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from converter.architectures.spec import Architecture, HFClass, HParam, T
from converter.architectures.traits import Relation, Traits
from converter.checkpoint import Checkpoint
from converter.errors import MissingTensor, ShapeMismatch, UnmatchedTensor
from converter.events import Ignored, Note
from converter.mapping import detect
from converter.mapping.tensors import Translation, to_gguf, to_hf
from converter.metadata import text, u32
from converter.tensors.dtypes import F16, F32, DType
from converter.tensors.tensor import from_array

Shapes = dict[str, tuple[int, ...]]

TOY = Architecture(
    "toy",
    (HFClass("ToyLM", "toy"), HFClass("ToyModel", "toy", head=False)),
    (
        HParam("n_layer", ("n_layer",), ("block_count",), required=True),
        HParam("n_expert", ("n_expert",), ("expert_count",), default=0),
        HParam("head_dim", ("head_dim",), ("head_dim",), default=8),
        HParam("rope_theta", ("rope.rope_theta",), ("rope.freq_base",), "f32"),
        HParam("scaled", ("scaled",), ("scaled",), default=0),
    ),
    (
        T("embed", "token_embd.weight", shape=(4, 2)),
        T("head", "output.weight", shape=(4, 2), tied_to="token_embd.weight"),
        T("l.{block}.w", "blk.{block}.w", shape=(2,)),
        T("l.{block}.b", "blk.{block}.b", shape=(1,), optional=True),
        T("l.{block}.e.{expert}.w", "blk.{block}.exps", shape=(3, 2), when="n_expert > 0"),
        T("l.{block}.fused", "blk.{block}.exps", shape=("n_expert", 3, 2), when="n_expert > 0", read_only=True),
        T("spare", "blk.0.spare", shape=(2,), read_only=True),
        T((), "rope_freqs.weight", shape=("head_dim // 2",), generator="llama3_rope_freqs", when="scaled"),
    ),
    ignore=("inv_freq",),
    traits=Traits(
        told=(Relation("head_dim > 1", "head_dim", "said of both"),),
        runtime=(Relation("head_dim > 2", "head_dim", "said of a GGUF"),),
    ),
)  # fmt: skip
WHOLE: Shapes = {"embed": (4, 2), "head": (4, 2), "l.0.w": (2,), "l.1.w": (2,)}
MIXED: Shapes = {**WHOLE, **{f"l.{block}.e.{expert}.w": (3, 2) for block in (0, 1) for expert in (0, 1, 2)}}


@pytest.fixture(autouse=True)
def _made_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(detect, "architectures", lambda *_: {"toy": TOY})


def checkpoint(dialect: str, shapes: Shapes, config: dict[str, Any], dtype: DType = F32) -> Checkpoint:
    tensors = {
        name: from_array(name, np.arange(np.prod(shape), dtype=dtype.numpy).reshape(shape), dtype, "test")
        for name, shape in shapes.items()
    }
    return Checkpoint("any", Path("toy"), dialect, tensors, config)


def there(shapes: Shapes, **config: Any) -> Translation:
    return to_gguf(checkpoint("hf", shapes, {"architectures": ["ToyLM"], "n_layer": 2, **config}))


def back(shapes: Shapes, dtype: DType = F32, **keys: int) -> Translation:
    said = {"block_count": 2, **keys}
    config = {"general.architecture": text("toy"), **{f"toy.{key}": u32(value) for key, value in said.items()}}
    return to_hf(checkpoint("gguf", shapes, config, dtype))


def shapes_of(translation: Translation) -> Shapes:
    return {name: tensor.info.shape for name, tensor in translation.tensors.items()}


GGUF: Shapes = {"token_embd.weight": (4, 2), "output.weight": (4, 2), "blk.0.w": (2,), "blk.1.w": (2,)}


def test_a_model_and_back() -> None:
    assert shapes_of(there(WHOLE)) == GGUF and there(WHOLE).events == ()
    assert shapes_of(back(GGUF)) == WHOLE and back(GGUF).events == ()
    biased = there({**WHOLE, "l.1.b": (1,)})
    assert shapes_of(biased) == {**GGUF, "blk.1.b": (1,)}, "a block may lack what is optional"
    mixed = there(MIXED, n_expert=3)
    assert shapes_of(mixed) == {**GGUF, "blk.0.exps": (3, 3, 2), "blk.1.exps": (3, 3, 2)}
    assert shapes_of(back(shapes_of(mixed), expert_count=3)) == MIXED
    fused = there({**WHOLE, "l.0.fused": (3, 3, 2), "l.1.fused": (3, 3, 2)}, n_expert=3)
    assert shapes_of(fused) == shapes_of(mixed)
    assert there({**WHOLE, "inv_freq": (3,)}).events == (Ignored("inv_freq"),)


@pytest.mark.parametrize(
    ("head_dim", "said"), [(3, []), (2, ["said of a GGUF"]), (1, ["said of both", "said of a GGUF"])]
)
def test_what_is_said_of_a_graph(head_dim: int, said: list[str]) -> None:
    model = checkpoint("hf", WHOLE, {"architectures": ["ToyLM"], "n_layer": 2, "head_dim": head_dim})
    assert [str(event) for event in to_gguf(model).events] == said
    assert [str(event) for event in to_gguf(model, graph=True).events] == [each for each in said if "GGUF" not in each]


@pytest.mark.parametrize(
    ("change", "config", "error", "said"),
    [
        ({"l.1.w": (0,)}, {}, ShapeMismatch, "l.1.w is [0]: empty"),
        ({"head": (4, 0)}, {}, ShapeMismatch, "head is [4, 0]: empty"),
        ({"l.1.w": (3,)}, {}, ShapeMismatch, "l.1.w is [3], config.json makes it [2]\n"
         "config.json does not belong to these weights"),
        ({"l.2.w": (2,)}, {}, ShapeMismatch, "l.2.w: config.json says 2 layers"),
        ({"l.1.w": None}, {}, MissingTensor, "l.1.w: not in the file, toy needs it\n"
         "a shard may be missing, or config.json may belong to another model"),
        ({"embed": None}, {}, MissingTensor, "embed: not in the file, toy needs it"),
        ({"l.1.e.1.w": None}, {"n_expert": 3}, MissingTensor, "l.1.e.1.w: not in the file, its siblings are"),
        ({"l.1.e.3.w": (3, 2)}, {"n_expert": 3}, ShapeMismatch, "l.1.e.3.w: config.json says 3 experts"),
        ({f"l.1.e.{i}.w": None for i in range(3)}, {"n_expert": 3}, MissingTensor, "l.1.e.0.w: not in the file, toy"),
        ({"l.0.fused": (3, 3, 2)}, {"n_expert": 3}, UnmatchedTensor,
         "l.0.fused: other tensors of the file make blk.0.exps already"),
        ({}, {"n_layer": (1 << 16) + 1}, MissingTensor, "config.json says 65537 layers, which no file has"),
        ({}, {"n_layer": 1 << 16}, MissingTensor, "l.2.w: not in the file, toy needs it"),
        ({"x": (1,)}, {}, UnmatchedTensor, "x: no rule of architecture toy names this\n"),
        ({"x": (1,), "y": (1,), "z": (1,)}, {}, UnmatchedTensor, "x, y, z: no rule"),
        ({"x": (1,), "y": (1,), "z": (1,), "a": (1,)}, {}, UnmatchedTensor, "x, y, z and 1 more: no rule"),
        ({name: (1,) for name in "xyzabc"}, {}, UnmatchedTensor, "x, y, z and 3 more: no rule"),
    ],
)  # fmt: skip
def test_what_does_not_fit_the_config(change: dict[str, Any], config: dict[str, Any], error: Any, said: str) -> None:
    model = MIXED if "n_expert" in config else WHOLE
    shapes = {name: shape for name, shape in {**model, **change}.items() if shape is not None}
    with pytest.raises(error) as caught:
        there(shapes, **config)
    assert type(caught.value) is error and str(caught.value).startswith(said)


@pytest.mark.parametrize(
    ("config", "why"),
    [
        ({}, "tied"),  # where a config does not say it, it is so
        ({"tie_word_embeddings": True}, "tied"),
        ({"tie_word_embeddings": False}, None),
        ({"architectures": ["ToyModel"]}, "ToyModel has no head"),
        ({"architectures": ["ToyModel"], "tie_word_embeddings": False}, "ToyModel has no head"),
        ({"text_config": {"tie_word_embeddings": False}}, None),
    ],
)
def test_a_model_without_a_head(config: dict[str, Any], why: str | None) -> None:
    headless = {name: shape for name, shape in WHOLE.items() if name != "head"}
    if why is None:
        with pytest.raises(MissingTensor, match=r"^head: not in the file"):
            there(headless, **config)
    else:
        events = there(headless, **config).events
        assert events == (Note(f"output.weight: not stored, the embedding stands in for it ({why})"),)


def test_the_head_on_the_way_back() -> None:
    assert back(GGUF).config["tie_word_embeddings"] is False
    assert back({name: shape for name, shape in GGUF.items() if name != "output.weight"}).config["tie_word_embeddings"]


@pytest.mark.parametrize(
    ("change", "keys", "error", "said"),
    [
        ({"blk.0.w": (0,)}, {}, ShapeMismatch, "blk.0.w is [0]: empty"),
        ({"x": (1,)}, {}, UnmatchedTensor, "x: no rule of architecture toy names this"),
        ({"blk.0.spare": (2,)}, {}, UnmatchedTensor, "blk.0.spare: no rule"),  # a layout that is only read
        ({"blk.0.exps": (2, 3, 2)}, {"expert_count": 3}, ShapeMismatch,
         "blk.0.exps is [2, 3, 2], the file says 3 experts"),
        ({"rope_freqs.weight": (5,)}, {"head_dim": 8}, ShapeMismatch,
         "rope_freqs.weight is F32[5], the model needs F32[4]"),
    ],
)  # fmt: skip
def test_what_does_not_fit_the_keys(change: Shapes, keys: dict[str, int], error: Any, said: str) -> None:
    with pytest.raises(error) as caught:
        back({**GGUF, **change}, **keys)
    assert type(caught.value) is error and str(caught.value).startswith(said)


def test_generated_tensors_are_of_one_type() -> None:
    with pytest.raises(ShapeMismatch, match=r"^rope_freqs.weight is F16\[4\], the model needs F32\[4\]$"):
        back({**GGUF, "rope_freqs.weight": (4,)}, F16, head_dim=8)


def test_a_generated_tensor_is_made_and_says_its_setting_again() -> None:
    rope = {"rope_type": "llama3", "rope_theta": 1e4, "factor": 8.0, "original_max_position_embeddings": 32}
    said = {"rope_parameters": rope, "scaled": 1, "head_dim": 32}
    made = there(WHOLE, **said)
    assert made.tensors["rope_freqs.weight"].info.shape == (16,)
    assert "rope_freqs.weight" not in there(WHOLE, **{**said, "scaled": 0}).tensors
    for theta in (True, False):  # a file that does not say the base means 10000
        keys = {key: value for key, value in made.config.items() if theta or not key.endswith("freq_base")}
        keys["general.architecture"] = text("toy")
        again = to_hf(Checkpoint("any", Path("toy"), "gguf", made.tensors, keys))
        assert again.events == (Ignored("rope_freqs.weight"),)
        assert again.config["rope_scaling"] == {
            "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
            "original_max_position_embeddings": 32,
        }  # fmt: skip
