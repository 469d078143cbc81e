"""A multimodal model back from its two files: the folder has both models' tensors, transformers computes the same."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support import architectures
from support.torch_logits import image_logits

import converter
from converter.architectures import projectors
from converter.cli.main import main
from converter.errors import UnknownArchitecture, UsageError
from converter.formats.safetensors import open_safetensors
from converter.mapping.hparams import merged
from converter.metadata import Array

OF_TOKENIZER = ("bos_token_id", "eos_token_id", "pad_token_id")
SPM_ID = 400  # of the first mark where every id is a piece's


@dataclass(frozen=True)
class Whole:
    """A sample of a projector, and its model as a whole.

    Attributes:
        marks: key of config.json -> the token's text, the first that of a part of an image.
        says: over its config.json.
        n_parts: how many such tokens the image of `image_logits` becomes.
        sound: the key of the token that stands for parts of a sound, with how many.
        otherwise: what it says after the way back, where that means the same.
        dropped: beginnings of names of tensors that no output of the class needs.
        unread: the same as the class calls them.
        near: endings of names of tensors that are computed, or stored in F16, and come back to a millionth.
        cut: tensors whose first row no output of the class needs: zeros come back.
        logits: largest difference, relative to the largest logit; 0 where every rule is exact.
    """

    marks: dict[str, str]
    says: dict[str, Any] = field(default_factory=dict)
    n_parts: int = 4
    sound: dict[str, int] = field(default_factory=dict)
    otherwise: dict[str, Any] = field(default_factory=dict)
    dropped: str = "none"
    unread: str = "none"
    near: tuple[str, ...] = ()
    cut: tuple[str, ...] = ()
    logits: float = 0.0


QWEN = {
    "image_token_id": "<|image_pad|>", "video_token_id": "<|video_pad|>", "vision_start_token_id": "<|vision_start|>",
    "vision_end_token_id": "<|vision_end|>",
}  # fmt: skip
GEMMA4 = {
    "image_token_id": "<|image|>",
    "boi_token_id": "<|image>",
    "eoi_token_id": "<image|>",
    "audio_token_id": "<|audio|>",
    "boa_token_id": "<|audio>",
    "eoa_token_index": "<audio|>",
}
WHOLE = {
    "qwen2vl-mmproj": Whole(QWEN),
    "qwen25vl-mmproj": Whole(QWEN),
    "qwen3vl-mmproj": Whole(QWEN),
    "qwen35-mmproj": Whole(QWEN),
    "gemma3-mmproj": Whole(
        {
            "image_token_index": "<image_soft_token>", "boi_token_index": "<start_of_image>",
            "eoi_token_index": "<end_of_image>",
        },
        # What the runtime computes by itself, and a head that neither class runs.
        {
            "text_config": {"query_pre_attn_scalar": 12},
            "vision_config": {"vision_use_head": False},
        },
        dropped="vision_tower.vision_model.head.", unread="model.vision_tower.head.", logits=1e-6,
    ),
    "gemma4-mmproj": Whole(GEMMA4, logits=1e-6, n_parts=1),
    "gemma4-clipped-mmproj": Whole(GEMMA4, logits=1e-6, n_parts=1),
    "gemma4-audio-mmproj": Whole(
        GEMMA4, logits=1e-6, n_parts=1, sound={"audio_token_id": 3}, near=(".per_dim_scale",),
    ),
    "gemma4-unified-mmproj": Whole(GEMMA4, n_parts=9, sound={"audio_token_id": 3}),
    "lightonocr-mmproj": Whole(
        {"image_token_id": "<|image_pad|>"}, otherwise={"text_config.tie_word_embeddings": True},
    ),
    # One number, where both sides are the same.
    "internvl-hf-mmproj": Whole(
        {"image_token_id": "<IMG_CONTEXT>"},
        otherwise={
            "text_config.tie_word_embeddings": True, "vision_config.image_size": 56, "vision_config.patch_size": 14,
        },
    ),
    # Its convolutions are F16 in every file.
    "voxtral-mmproj": Whole(
        {"audio_token_id": "[AUDIO]"}, n_parts=6, near=("conv1.weight", "conv2.weight"), logits=1e-6,
    ),
    "minicpmv46-mmproj": Whole(
        {"image_token_id": "<|image_pad|>", "video_token_id": "<|video_pad|>"}, n_parts=1,
    ),
    "qwen2audio-mmproj": Whole({"audio_token_index": "<|AUDIO|>"}, n_parts=12),
    "qwen3-asr-hf-mmproj": Whole(
        {"audio_token_id": "<|audio_pad|>"}, n_parts=13, otherwise={"text_config.tie_word_embeddings": True},
    ),
    "paddleocr-hf-mmproj": Whole(
        {
            "image_token_id": "<|IMAGE_PLACEHOLDER|>", "vision_start_token_id": "<|IMAGE_START|>",
            "vision_end_token_id": "<|IMAGE_END|>",
        },
    ),
    # The first row of its positions is of a class token that the tower does not have: zeros come back.
    "hunyuanvl-mmproj": Whole(
        {key: f"<\uff5chy_place\u2581holder\u2581no\u2581{number}\uff5c>" for key, number in (
            ("image_token_id", 102), ("im_start_id", 100), ("im_end_id", 101), ("im_newline_id", 103),
        )},
        n_parts=8, cut=("vit.embeddings.position_embedding.weight",),
    ),
    "kimik25-hf-mmproj": Whole({"image_token_id": "<|media_pad|>"}),
    "idefics3-mmproj": Whole({"image_token_id": "<image>"}),
    "lfm2vl-mmproj": Whole(
        {"image_token_id": "<image>"},
        otherwise={"text_config.intermediate_size": 256, "text_config.block_auto_adjust_ff_dim": False},
    ),
    "llama4-mmproj": Whole(
        {"image_token_index": "<|patch|>", "boi_token_index": "<|image_start|>", "eoi_token_index": "<|image_end|>"}
    ),
    "mistral3-mmproj": Whole({"image_token_index": "[IMG]"}, otherwise={"text_config.tie_word_embeddings": True}),
    "pixtral-mmproj": Whole(
        {"image_token_index": "[IMG]"}, n_parts=16, otherwise={"text_config.model_type": "llama"},
    ),
}  # fmt: skip


def folder(name: str, parent: Path) -> Path:
    """The sample with the marks in its vocabulary."""
    made, whole, path = architectures.build(name, parent), WHOLE[name], parent / name / "tokenizer.json"
    pieces = architectures.facts(name)["tokenizer"] == "spm"
    tokenizer = None if pieces else json.loads(path.read_text("utf-8"))
    first = SPM_ID
    if tokenizer:
        taken = [*tokenizer["model"]["vocab"].values(), *(token["id"] for token in tokenizer["added_tokens"])]
        first = max(taken) + 1
    added = [
        {"id": number, "content": text, "special": True}
        for number, text in enumerate(whole.marks.values(), first)
    ]  # fmt: skip
    if tokenizer:
        tokenizer["added_tokens"] += added
        path.write_text(json.dumps(tokenizer), "utf-8")
    change(made / "tokenizer_config.json", {"added_tokens_decoder": {str(token["id"]): token for token in added}})
    change(made / "config.json", {**dict(zip(whole.marks, (each["id"] for each in added), strict=True)), **whole.says})
    return made


def change(path: Path, said: dict[str, Any]) -> None:
    old = json.loads(path.read_text("utf-8")) if path.is_file() else {}
    path.write_text(json.dumps(merged(old, said)), "utf-8")


def back(name: str, parent: Path) -> tuple[Path, Path, converter.Plan]:
    """The folder, the one that came back through two files, and the plan of the way back."""
    source = folder(name, parent)
    text = converter.convert(source, parent / "m.gguf", threads=1)
    left = "what sees or hears is left out: convert FOLDER mmproj.gguf --mmproj writes it"
    assert left in map(str, text.report.events)
    converter.convert(source, parent / "p.gguf", converter.Request(mmproj=True), threads=1)
    request = converter.Request(mmproj=parent / "p.gguf")
    plan = converter.convert(parent / "m.gguf", f"{parent / 'back'}/", request, threads=1)
    return source, parent / "back", plan


def stored(path: Path) -> dict[str, tuple[tuple[int, ...], bytes]]:
    with open_safetensors(path / "model.safetensors") as checkpoint:
        return {
            name: (t.info.shape, t.array().astype(np.float64).tobytes()) for name, t in checkpoint.tensors.items()
        }  # fmt: skip


def test_every_projector_that_goes_back_is_tried() -> None:
    there = {hf.name for architecture in projectors() for hf in architecture.hf if hf.text}
    tried = {architectures.facts(name)["class"] for name in WHOLE}
    assert tried <= there
    assert there - tried == {"Qwen3_5MoeForConditionalGeneration"}, "the rows are those of Qwen3.5"


@pytest.mark.parametrize("name", WHOLE)
def test_the_whole_folder_comes_back(name: str, tmp_path: Path) -> None:
    """Every tensor, what config.json says of the model, and how images are prepared."""
    source, made, plan = back(name, tmp_path)
    given = {tensor: value for tensor, value in stored(source).items() if not tensor.startswith(WHOLE[name].dropped)}
    found = stored(made)
    for tensor in [each for each in given if each.endswith(WHOLE[name].near)]:
        pair = [np.frombuffer(each.pop(tensor)[1]) for each in (given, found)]
        assert np.allclose(*pair, rtol=0, atol=1e-6)
    for tensor in WHOLE[name].cut:
        shape, values = given[tensor]
        rows = np.where((np.arange(shape[0]) > 0)[:, None], np.frombuffer(values).reshape(shape), 0.0)
        given[tensor] = (shape, rows.tobytes())
    assert given == found
    said = [json.loads((each / "config.json").read_text("utf-8")) for each in (source, made)]
    assert differing(*said) == WHOLE[name].otherwise
    processor = json.loads((made / "preprocessor_config.json").read_text("utf-8"))
    facts = architectures.facts(name)["files"]
    asked = facts.get("preprocessor_config.json") or facts["processor_config.json"]["image_processor"]
    assert {key: processor[key] for key in asked} == {
        key: [float(str(np.float32(each))) for each in value] if isinstance(value, list) else value
        for key, value in asked.items()
    }
    assert not [str(event) for event in plan.report.events if "no token is called" in str(event)]
    again = converter.plan(made, tmp_path / "again.gguf", converter.Request(mmproj=True))
    before = converter.plan(source, tmp_path / "before.gguf", converter.Request(mmproj=True))
    for each in (again, before):
        each.checkpoint.close()
    keys = [
        {key: np.float32(value.values) if isinstance(value, Array) else value
         for key, value in each.checkpoint.config.items() if key.startswith("clip.")}
        for each in (again, before)
    ]  # fmt: skip
    assert str(keys[0]) == str(keys[1])


def differing(given: dict[str, Any], found: dict[str, Any], above: str = "") -> dict[str, Any]:
    """Entries of the config that came back which say something else than the source's do."""
    strange: dict[str, Any] = {}
    for key, value in found.items():
        if isinstance(value, dict) and isinstance(given.get(key), dict):
            strange |= differing(given[key], value, f"{above}{key}.")
        elif (
            key in given
            and key not in OF_TOKENIZER
            and key not in ("architectures", "rope_scaling")
            and value != given[key]
        ):
            strange[above + key] = value
    return strange


@pytest.mark.parametrize("name", WHOLE)
def test_transformers_computes_the_same_of_image_and_text(name: str, tmp_path: Path) -> None:
    pytest.importorskip("torch")
    source, made, _ = back(name, tmp_path)
    each = WHOLE[name]
    said = json.loads((source / "config.json").read_text("utf-8"))
    marks = {said[key]: count for key, count in {next(iter(each.marks)): each.n_parts, **each.sound}.items()}
    theirs, ours = (image_logits(path, marks, each.unread) for path in (source, made))
    assert float(np.abs(ours - theirs).max()) <= each.logits * float(np.abs(theirs).max())


def test_what_does_not_go_together_is_said(tmp_path: Path) -> None:
    for name in ("gemma3-mmproj", "pixtral-mmproj"):
        source = architectures.build(name, tmp_path)
        converter.convert(source, tmp_path / f"{name}.gguf", converter.Request(mmproj=True), threads=1)
        converter.convert(source, tmp_path / f"{name}-text.gguf", threads=1)
    text, other = tmp_path / "gemma3-mmproj-text.gguf", tmp_path / "pixtral-mmproj.gguf"
    with pytest.raises(UnknownArchitecture, match=r"projector of .*Llava.* is not for gemma3\n.*text model alone"):
        converter.plan(text, f"{tmp_path / 'back'}/", converter.Request(mmproj=other))
    with pytest.raises(UnknownArchitecture, match="no projector None is known"):
        converter.plan(text, f"{tmp_path / 'back'}/", converter.Request(mmproj=text))
    for source, target in ((text, tmp_path / "x.gguf"), (tmp_path / "gemma3-mmproj", tmp_path / "x.gguf")):
        with pytest.raises(UsageError, match="--mmproj FILE makes a GGUF the folder of a whole model"):
            converter.plan(source, target, converter.Request(mmproj=other))


def test_a_mark_that_the_vocabulary_lacks_is_told(tmp_path: Path) -> None:
    source = architectures.build("idefics3-mmproj", tmp_path)
    converter.convert(source, tmp_path / "m.gguf", threads=1)
    converter.convert(source, tmp_path / "p.gguf", converter.Request(mmproj=True), threads=1)
    plan = converter.plan(tmp_path / "m.gguf", f"{tmp_path / 'back'}/", converter.Request(mmproj=tmp_path / "p.gguf"))
    plan.checkpoint.close()
    told = list(map(str, plan.report.events))
    assert "image_token_id: no token is called <image>, the default of Idefics3ForConditionalGeneration holds" in told
    assert any("sets no limits to images" in each for each in told)
    assert [path.name for path in plan.checkpoint.files] == ["m.gguf", "p.gguf"]


def test_the_command_line_takes_both(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, made, text, projector = (tmp_path / name for name in ("idefics3-mmproj", "back", "m.gguf", "p.gguf"))
    architectures.build(source.name, tmp_path)
    assert main([str(source), str(text)]) == 0
    assert main([str(source), str(projector), "--mmproj"]) == 0
    assert main([str(text), f"{made}/", "--mmproj", str(projector)]) == 0
    assert main(["verify", str(text), str(made), "--mmproj", str(projector)]) == 0
    assert stored(made).keys() == stored(source).keys()
    assert main(["--mmproj", str(source), str(tmp_path / "x.gguf")]) == 2
    assert "to write a projector, say --mmproj last" in capsys.readouterr().err
