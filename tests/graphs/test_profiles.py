"""Graphs of other operators: what they compute is what the standard one does, which other tests compare with torch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from support import architectures, models, onnx_cases, onnx_texts
from support.onnx_cases import CLOSE

import converter
from converter.cli import verbs
from converter.errors import UnsupportedFeature, UsageError
from converter.graphs.profiles import PROFILES
from converter.mapping.detect import detect

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")

KJV, STORIES = (models.FIXTURES / name for name in ("kjv-llama", "stories260K"))
#: The cache of `GroupQueryAttention` takes one token at a time of several texts.
REFUSED = "two, in pieces"
#: Heads alike and shared, windows, capped scores, slopes, sinks, latent attention, parts of heads that turn and
#: neighbours that do, both functions of Gauss' error, experts, convolutions; texts that are read at once.
FAST = {
    "bert-tiny", "bloom-tiny", "deepseek2-v2-lite", "gemma2-tiny", "glm4-tiny", "gpt-oss-tiny", "gpt2-tiny",
    "gptneox-tiny", "lfm2-tiny", "modern-bert-classifier", "olmoe-tiny",
}  # fmt: skip


#: A head has three elements that turn.
CANNOT_RUN = {"llava-stablelm"}


def has_graph(name: str) -> bool:
    said = architectures.facts(name)
    if said["request"].get("mmproj") or name in CANNOT_RUN:
        return False
    traits = detect(said["files"]["config.json"])[0].traits
    return (traits.decoder or traits.encoder) is not None


SAMPLES = [name if name in FAST else pytest.param(name, marks=pytest.mark.slow) for name in architectures.NAMES
           if has_graph(name)]  # fmt: skip


def both(source: Path, folder: Path, profile: str, **asked: Any) -> tuple[Path, Path]:
    """The graph of a profile and the standard one, of the same weights; onnx finds nothing wrong with the first."""
    request = converter.Request(exact=True, **asked)
    converter.convert(source, folder / "standard.onnx", request)
    converter.convert(source, folder / f"{profile}.onnx", request.replace(profile=profile))
    onnx.checker.check_model(str(folder / f"{profile}.onnx"), full_check=True)
    return folder / f"{profile}.onnx", folder / "standard.onnx"


def operators(path: Path) -> set[str]:
    return {node.op_type for node in onnx.load(path, load_external_data=False).graph.node}


def opsets(path: Path) -> tuple[int, dict[str, int]]:
    model = onnx.load(path, load_external_data=False)
    return model.ir_version, {each.domain: each.version for each in model.opset_import}


def far(own: Path, standard: Path, without: str = "") -> dict[str, float]:
    return onnx_cases.differences(own, *onnx_cases.graph_reference(standard), without)


def far_at_once(*paths: Path) -> dict[str, float]:
    """The same of what reads texts as a whole, for each output."""
    sessions = [onnx_cases.session(path) for path in paths]
    feeds = onnx_texts.batches(200, 0, 2)["both"]
    feeds = {each.name: feeds[each.name] for each in sessions[0].get_inputs()}
    found, wanted = (onnx_texts.outputs(each, feeds) for each in sessions)
    assert found.keys() == wanted.keys()
    return {name: onnx_texts.far(found[name], wanted[name]) for name in wanted}


@pytest.mark.parametrize("name", SAMPLES)
def test_operators_of_set_18(name: str, tmp_path: Path) -> None:
    own, standard = both(architectures.build(name, tmp_path), tmp_path, "opset18")
    assert opsets(own) == (8, {"": 18, "com.microsoft": 1})
    has_cache = any(each.name.startswith("past") for each in onnx_cases.session(own).get_inputs())
    found = far(own, standard) if has_cache else far_at_once(own, standard)
    arch = detect(architectures.facts(name)["files"]["config.json"])[0].gguf
    assert max(found.values()) < onnx_cases.close(arch), found


@pytest.mark.parametrize("asked", [{"quant": "q4_k_m"}, {"quant": "q8_0"}])
def test_blocks_of_set_18(asked: dict[str, Any], tmp_path: Path) -> None:
    found = far(*both(KJV, tmp_path, "opset18", **asked))
    assert max(found.values()) < CLOSE, found


def test_half_precision_of_set_18(tmp_path: Path) -> None:
    found = far(*both(KJV, tmp_path, "opset18", dtype="f16"))
    assert max(found.values()) < 2e-3, found


#: What genai runs: all that have one cache alike for keys and values, whether or not the operator can fill it.
GROUPED = ("bloom-tiny", "gemma2-tiny", "gemma3-tiny", "olmoe-tiny", "openelm-tiny", "phi2-tiny")


@pytest.mark.parametrize("name", GROUPED)
def test_decoders_for_genai(name: str, tmp_path: Path) -> None:
    own, standard = both(architectures.build(name, tmp_path), tmp_path, "genai")
    assert "GroupQueryAttention" in operators(own) and "Attention" not in operators(own)
    found = far(own, standard, REFUSED)
    assert len(found) == len(onnx_cases.CASES) - 1 and max(found.values()) < CLOSE, found


def test_sinks_stay_outside_the_shared_buffer(tmp_path: Path) -> None:
    folder = architectures.build("gpt-oss-tiny", tmp_path)
    own, standard = both(folder, tmp_path, "genai")
    assert "Attention" in operators(own)
    found = far(own, standard)
    assert max(found.values()) < CLOSE, found
    converter.convert(folder, f"{tmp_path / 'out'}/", converter.Request(format="onnx", profile="genai"))
    said = json.loads((tmp_path / "out" / "genai_config.json").read_text("utf-8"))
    assert said["search"]["past_present_share_buffer"] is False


@pytest.mark.parametrize("name", ["bert-tiny", "deepseek2-v2-tiny", "mimo2-tiny", "gemma3n-odd", "gemma4-moe"])
def test_genai_has_no_such_cache(name: str, tmp_path: Path) -> None:
    folder = architectures.build(name, tmp_path)
    with pytest.raises(UnsupportedFeature, match="genai wants a cache"):
        converter.convert(folder, tmp_path / "model.onnx", converter.Request(profile="genai"))


def test_a_folder_for_genai(tmp_path: Path) -> None:
    converter.convert(KJV, f"{tmp_path / 'out'}/", converter.Request(format="onnx", profile="genai"))
    names = {str(path.relative_to(tmp_path / "out")) for path in (tmp_path / "out").rglob("*") if path.is_file()}
    assert {"config.json", "tokenizer.json", "genai_config.json", "model.onnx", "model.onnx_data"} <= names
    said = json.loads((tmp_path / "out" / "genai_config.json").read_text("utf-8"))
    decoder = said["model"].pop("decoder")
    assert said["model"] == {
        "type": "decoder", "context_length": 256, "vocab_size": 2048, "bos_token_id": 0, "eos_token_id": 1,
        "pad_token_id": 1,
    }  # fmt: skip
    sizes = {name: value for name, value in decoder.items() if isinstance(value, int)}
    assert sizes == {
        "hidden_size": 256, "head_size": 32, "num_attention_heads": 8, "num_key_value_heads": 4, "num_hidden_layers": 6,
    }  # fmt: skip
    assert decoder["filename"] == "model.onnx"
    model = onnx.load(tmp_path / "out" / "model.onnx", load_external_data=False)
    inputs, outputs = ({each.name for each in ends} for ends in (model.graph.input, model.graph.output))
    assert inputs == {
        name % block if "%d" in name else name for name in decoder["inputs"].values() for block in range(6)
    }
    assert outputs == {
        name % block if "%d" in name else name for name in decoder["outputs"].values() for block in range(6)
    }
    search = said["search"]
    assert (search["do_sample"], search["temperature"], search["top_p"], search["top_k"]) == (True, 0.8, 0.95, 50)
    assert search["max_length"] == 256 and search["past_present_share_buffer"] is True


@pytest.mark.parametrize("profile", PROFILES)
def test_the_gguf_again(profile: str, tmp_path: Path) -> None:
    request = converter.Request(quant="q4_k_m")
    converter.convert(KJV, tmp_path / "model.gguf", request)
    converter.convert(KJV, f"{tmp_path / 'out'}/", request.replace(format="onnx", profile=profile))
    graph = tmp_path / "out" / (PROFILES[profile].in_folder or "onnx/model_q4.onnx")
    converter.convert(graph, tmp_path / "back.gguf")
    assert (tmp_path / "back.gguf").read_bytes() == (tmp_path / "model.gguf").read_bytes()


def test_from_one_to_another(tmp_path: Path) -> None:
    request = converter.Request(quant="q4_0")
    converter.convert(STORIES, tmp_path / "standard.onnx", request)
    for first, then in (("standard", "opset18"), ("opset18", "genai"), ("genai", "standard")):
        (tmp_path / then).mkdir()
        (tmp_path / "direct" / then).mkdir(parents=True)
        source = tmp_path / "standard.onnx" if first == "standard" else tmp_path / first / "model.onnx"
        converter.convert(source, tmp_path / then / "model.onnx", converter.Request(profile=then))
        converter.convert(STORIES, tmp_path / "direct" / then / "model.onnx", request.replace(profile=then))
        for name in ("model.onnx", "model.onnx_data"):
            own, direct = ((folder / then / name).read_bytes() for folder in (tmp_path, tmp_path / "direct"))
            assert own == direct, (then, name)


def test_standard_is_what_nobody_asks_for(tmp_path: Path) -> None:
    for name, asked in (("one", {}), ("two", {"profile": "standard"})):
        (tmp_path / name).mkdir()
        converter.convert(KJV, tmp_path / name / "model.onnx", converter.Request(**asked))
    for file in ("model.onnx", "model.onnx_data"):
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()


def test_what_a_profile_is_not_for(tmp_path: Path) -> None:
    for target, asked, says in (
        ("model.gguf", {"profile": "opset18"}, "gguf gets none"), ("model.onnx", {"profile": "opset7"}, "say standard"),
        ("model.onnx", {"profile": "opset18", "tensors_only": True}, "onnx gets none"),
    ):  # fmt: skip
        with pytest.raises(UsageError, match=says):
            converter.convert(KJV, tmp_path / target, converter.Request(**asked))


def test_the_command_line_knows_them() -> None:
    actions = verbs.parser("convert")._actions
    assert next(each.choices for each in actions if each.dest == "profile") == (*PROFILES,)
