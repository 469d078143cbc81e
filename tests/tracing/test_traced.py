"""Models that no architecture data describes: traced by torch, filled by us, equal to transformers in ONNX Runtime."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support import onnx_cases, sparse, traced
from support.traced import decoded, outputs, relative

import converter
from converter.errors import (
    ConverterError,
    MissingTensor,
    ShapeMismatch,
    UnknownArchitecture,
    UnsupportedFeature,
    UsageError,
)
from converter.formats.registry import open_checkpoint
from converter.verify import verify

onnx = pytest.importorskip("onnx")
torch = pytest.importorskip("torch")
pytest.importorskip("onnxscript")
pytest.importorskip("transformers")
pytestmark = pytest.mark.filterwarnings("ignore")

CLOSE, HALF = 1e-5, 1e-2
RANDOM = np.random.default_rng(5)


def as_folder(name: str, folder: Path, **asked: Any) -> tuple[Path, Any]:
    """A model, and the plan of its folder for clients, which is checked by ONNX's own checker."""
    source = traced.build(name, folder)
    plan = converter.convert(source, f"{folder / 'out'}/", converter.Request(format="onnx", **asked))
    for path in (folder / "out/onnx").glob("*.onnx"):
        onnx.checker.check_model(str(path), full_check=True)
    return source, plan


@pytest.fixture(scope="module")
def vit(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    return as_folder("vit", tmp_path_factory.mktemp("vit"))


def test_it_computes_what_transformers_does(vit: tuple[Path, Any]) -> None:
    source, _ = vit
    session = onnx_cases.session(source.parent / "out/onnx/model.onnx")
    model = traced.loaded("vit", source)
    for batch in (1, 3):
        image = RANDOM.standard_normal((batch, 3, 32, 32), np.float32)
        with torch.no_grad():
            want = model(torch.tensor(image)).logits.numpy()
        assert relative(outputs(session, {"pixel_values": image})["logits"], want) < CLOSE


def test_the_report_and_the_file_say_which_way_was_taken(vit: tuple[Path, Any]) -> None:
    source, plan = vit
    (said,) = [str(event) for event in plan.report.events if "traced by torch" in str(event)]
    assert said.startswith("graph traced by torch") and "ViTForImageClassification" in said
    made = onnx.load(source.parent / "out/onnx/model.onnx", load_external_data=False)
    assert "traced by torch" in {each.key: each.value for each in made.metadata_props}["converter.traced"]
    assert [axis.dim_param or axis.dim_value for axis in made.graph.input[0].type.tensor_type.shape.dim] == [
        "batch_size", 3, 32, 32,
    ]  # fmt: skip


def test_nothing_of_this_machine_is_in_the_file(vit: tuple[Path, Any]) -> None:
    data = (vit[0].parent / "out/onnx/model.onnx").read_bytes()
    assert b"site-packages" not in data and b"stack_trace" not in data


def test_tensors_have_the_names_of_the_checkpoint(vit: tuple[Path, Any]) -> None:
    source, plan = vit
    made = onnx.load(source.parent / "out/onnx/model.onnx")
    own = {each.name: onnx.numpy_helper.to_array(each) for each in made.graph.initializer}
    with open_checkpoint(source) as checkpoint:
        assert {step.name for step in plan.steps} == set(checkpoint.tensors)
        for name, tensor in checkpoint.tensors.items():
            assert np.array_equal(own[name], tensor.array())


def test_the_folder_is_what_clients_load(vit: tuple[Path, Any]) -> None:
    out = vit[0].parent / "out"
    assert {path.name for path in out.iterdir()} == {"config.json", "onnx"}
    config = json.loads((out / "config.json").read_text())
    assert config["transformers.js_config"] == {"use_external_data_format": True}


def test_verify_compares_every_weight(vit: tuple[Path, Any]) -> None:
    source, _ = vit
    result = verify(source, source.parent / "out/onnx/model.onnx")
    assert result.passed, [str(finding) for finding in result.findings]
    assert all(tensor.exact for tensor in result.tensors)


def test_what_cannot_be_asked_of_it(vit: tuple[Path, Any], tmp_path: Path) -> None:
    source, _ = vit
    for asked, said in (({"quant": "q4_0"}, "torch traces"), ({"dtype": "bf16"}, "f32 or f16")):
        with pytest.raises(UsageError, match=said):
            converter.convert(source, tmp_path / "model.onnx", converter.Request(**asked))
    converter.convert(source, tmp_path / "model.onnx", converter.Request(tensors_only=True))
    assert not onnx.load(tmp_path / "model.onnx").graph.node


# -------------------------------------------------------------------------------------------- more of them


@pytest.mark.slow
@pytest.mark.parametrize(("asked", "close"), [({}, CLOSE), ({"dtype": "f16"}, HALF)], ids=["f32", "f16"])
@pytest.mark.parametrize("name", ["t5", "whisper"])
def test_an_encoder_and_a_decoder(name: str, asked: dict[str, Any], close: float, tmp_path: Path) -> None:
    source, plan = as_folder(name, tmp_path, **asked)
    assert {path.name for path in (tmp_path / "out/onnx").glob("*.onnx")} == {
        "encoder_model.onnx", "decoder_model_merged.onnx",
    }  # fmt: skip
    assert len({step.name for step in plan.steps}) == len(plan.steps)
    encoder = onnx_cases.session(tmp_path / "out/onnx/encoder_model.onnx")
    decoder = onnx_cases.session(tmp_path / "out/onnx/decoder_model_merged.onnx")
    model = traced.loaded(name, source)
    for batch, length, steps in ((1, 4, (1, 1, 1)), (3, 11, (3, 2, 1)), (2, 9, (2, 1, 4))):
        ids = RANDOM.integers(3, 60, (batch, sum(steps)))
        text = RANDOM.integers(3, 60, (batch, length))
        mask = np.ones_like(text)
        mask[0, length // 2 :] = 0
        feeds: dict[str, Any] = {"input_ids": text, "attention_mask": mask}
        if name == "whisper":
            feeds = {"input_features": RANDOM.standard_normal((batch, 8, 60), np.float32)}
        with torch.no_grad():
            given = {key: torch.tensor(value) for key, value in feeds.items()}
            want = model(**given, decoder_input_ids=torch.tensor(ids))
        states = outputs(encoder, feeds)["last_hidden_state"]
        assert relative(states, want.encoder_last_hidden_state.numpy()) < close
        kept = {"encoder_hidden_states": states, "encoder_attention_mask": mask}
        logits = np.concatenate(decoded(decoder, kept, ids, steps), axis=1)
        assert relative(logits, want.logits.numpy()) < close


@pytest.mark.slow
def test_texts_and_images(tmp_path: Path) -> None:
    source, _ = as_folder("clip", tmp_path)
    session, model = onnx_cases.session(tmp_path / "out/onnx/model.onnx"), traced.loaded("clip", source)
    ids = RANDOM.integers(3, 60, (3, 9))
    ids[:, -1] = 2
    image = RANDOM.standard_normal((4, 3, 32, 32), np.float32)
    feeds: dict[str, Any] = {"input_ids": ids, "pixel_values": image, "attention_mask": np.ones_like(ids)}
    with torch.no_grad():
        want = model(**{name: torch.tensor(value) for name, value in feeds.items()})
    found = outputs(session, feeds)
    for name in ("logits_per_text", "logits_per_image", "text_embeds", "image_embeds"):
        assert relative(found[name], want[name].numpy()) < CLOSE


@pytest.mark.slow
@pytest.mark.parametrize(("asked", "close"), [({}, CLOSE), ({"dtype": "f16"}, HALF)], ids=["f32", "f16"])
def test_a_decoder_with_its_cache(asked: dict[str, Any], close: float, tmp_path: Path) -> None:
    source, _ = as_folder("opt", tmp_path, **asked)
    reference, n_vocab = onnx_cases.torch_reference(source)
    found = onnx_cases.differences(tmp_path / "out/onnx/model.onnx", reference, n_vocab)
    assert max(found.values()) < close, found


@pytest.mark.slow
def test_several_graphs_want_a_folder(tmp_path: Path) -> None:
    source = traced.build("t5", tmp_path)
    with pytest.raises(UsageError, match="name a folder"):
        converter.convert(source, tmp_path / "model.onnx")


# ------------------------------------------------------------------------------------------- what is no model

SHAPES: dict[str, tuple[int, ...]] = {"classifier.weight": (5, 32), "classifier.bias": (5,)}
BAD: dict[str, tuple[dict[str, Any], type[ConverterError], str]] = {
    "an unknown type": ({"model_type": "nobody_knows"}, UnknownArchitecture, "does not know it"),
    "no type": ({"model_type": 7}, UnknownArchitecture, "does not know it"),
    "another class": ({"architectures": ["DeiTModel"]}, MissingTensor, "no tensor for"),
    "too many layers": ({"num_hidden_layers": 10**9}, UnsupportedFeature, "far more of a model than 2 tensors"),
    "a size that nobody has": ({"hidden_size": 4 * 10**9, "num_attention_heads": 4}, ConverterError, "vit"),
    "no number": ({"hidden_size": "large"}, UnsupportedFeature, "torch does not trace it"),
    "another shape": ({"num_labels": 7, "num_hidden_layers": 0}, ShapeMismatch, r"\[5, 32\].*\[7, 32\]"),
    "a kernel of the network": ({"_attn_implementation": "somebody/kernels"}, MissingTensor, "no tensor for"),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", BAD)
def test_a_config_that_lies_is_one_error(name: str, tmp_path: Path) -> None:
    changed, kind, said = BAD[name]
    _, _, settings = traced.MODELS["vit"]
    config = {"model_type": "vit", "architectures": ["ViTForImageClassification"], **settings, **changed}
    folder = tmp_path / "vit"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    sparse.sparse(folder / "model.safetensors", SHAPES, dict.fromkeys(SHAPES, "F32"))
    with pytest.raises(kind, match=said) as caught:
        converter.convert(folder, tmp_path / "model.onnx")
    assert len(str(caught.value).splitlines()) <= 3 and str(folder) in str(caught.value)
    assert not list(tmp_path.glob("model.onnx*"))
