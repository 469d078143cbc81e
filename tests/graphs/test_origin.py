"""From a graph of ours back to the GGUF that it was written of."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from support import architectures, models, onnx_cases
from support.onnx_files import retold

import converter
from converter.errors import ConverterError, CorruptFile
from converter.formats.registry import open_checkpoint
from converter.verify.verifier import verify

KJV, STORIES = (models.FIXTURES / name for name in ("kjv-llama", "stories260K"))


def graph_and_gguf(source: Path, folder: Path, quant: str) -> tuple[Path, Path]:
    request = converter.Request(quant=quant)
    converter.convert(source, folder / "model.gguf", request)
    converter.convert(source, f"{folder / 'out'}/", request.replace(format="onnx"))
    return next((folder / "out" / "onnx").glob("*.onnx")), folder / "model.gguf"


@pytest.mark.parametrize(
    "quant", ["q4_0", "q4_1", "q5_0", "q5_1", "q8_0", "q2_k", "q3_k_m", "q4_k_m", "q5_k_m", "q6_k"]
)
def test_the_gguf_again(quant: str, tmp_path: Path) -> None:
    graph, gguf = graph_and_gguf(KJV, tmp_path, quant)
    converter.convert(graph, tmp_path / "back.gguf")
    assert (tmp_path / "back.gguf").read_bytes() == gguf.read_bytes()


@pytest.mark.parametrize(("name", "quant"), [("mixtral-256", "q4_k_m"), ("qwen3moe-256", "q3_k_m")])
def test_the_gguf_of_a_mixture_again(name: str, quant: str, tmp_path: Path) -> None:
    graph, gguf = graph_and_gguf(models.build_model(name, tmp_path), tmp_path, quant)
    converter.convert(graph, tmp_path / "back.gguf")
    assert (tmp_path / "back.gguf").read_bytes() == gguf.read_bytes()


def test_a_tied_head_has_the_minima_of_the_embedding(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    pytest.importorskip("transformers")
    converter.convert(STORIES, tmp_path / "model.gguf", converter.Request(quant="q4_1", pure=True))
    converter.convert(tmp_path / "model.gguf", f"{tmp_path / 'decoded'}/", converter.Request(dtype="f32"))
    converter.convert(tmp_path / "model.gguf", tmp_path / "model.onnx", converter.Request(exact=True))
    with open_checkpoint(tmp_path / "model.onnx") as graph, open_checkpoint(tmp_path / "model.gguf") as gguf:
        assert gguf.tensors["token_embd.weight"].info.dtype.name == "Q4_1" and "output.weight" not in gguf.tensors
        assert np.array_equal(*(each.tensors["token_embd.weight"].array() for each in (graph, gguf)))
    reference, n_vocab = onnx_cases.torch_reference(tmp_path / "decoded")
    assert max(onnx_cases.differences(tmp_path / "model.onnx", reference, n_vocab).values()) < 2e-5


def test_of_plain_numbers(tmp_path: Path) -> None:
    graph, gguf = graph_and_gguf(STORIES, tmp_path, "f32")
    converter.convert(graph, tmp_path / "back.gguf")
    assert (tmp_path / "back.gguf").read_bytes() == gguf.read_bytes()


def test_a_gguf_is_a_source_like_any_other(tmp_path: Path) -> None:
    converter.convert(KJV, tmp_path / "model.gguf", converter.Request(quant="q4_k_m"))
    converter.convert(tmp_path / "model.gguf", f"{tmp_path / 'out'}/", converter.Request(format="onnx"))
    converter.convert(tmp_path / "out", tmp_path / "back.gguf")
    assert (tmp_path / "back.gguf").read_bytes() == (tmp_path / "model.gguf").read_bytes()


def test_in_half_precision(tmp_path: Path) -> None:
    """Matrices are what F16 makes of them; vectors, which llama.cpp wants in F32, are F32 again."""
    converter.convert(STORIES, f"{tmp_path / 'out'}/", converter.Request(format="onnx", dtype="f16"))
    converter.convert(tmp_path / "out", tmp_path / "back.gguf")
    converter.convert(STORIES, tmp_path / "model.gguf", converter.Request(quant="f16"))
    with open_checkpoint(tmp_path / "back.gguf") as back, open_checkpoint(tmp_path / "model.gguf") as wanted:
        for name, tensor in wanted.tensors.items():
            own = back.tensors[name]
            assert own.info == tensor.info, name
            if len(tensor.info.shape) > 1:
                assert np.array_equal(own.array(), tensor.array()), name


@pytest.mark.parametrize(
    "name",
    [
        "glm4v-tiny", "gemma3-tiny", "gemma4-moe", "phi4-mini", "lfm2moe-odd", "qwen35-tiny",
        "nemotron-h-moe-latent", "jamba-tiny",
    ],
)  # fmt: skip
def test_other_rows_than_llama_has(name: str, tmp_path: Path) -> None:
    folder = architectures.build(name, tmp_path)
    converter.convert(folder, tmp_path / "model.onnx")
    request = converter.Request(no_tokenizer=True)
    converter.convert(folder, tmp_path / "model.gguf", request.replace(quant="f32"))
    converter.convert(tmp_path / "model.onnx", tmp_path / "back.gguf", request)
    assert (tmp_path / "back.gguf").read_bytes() == (tmp_path / "model.gguf").read_bytes()


@pytest.mark.parametrize("name", ["gemma3n-odd", "gemma4-tiny"])
def test_keys_that_blocks_have_and_do_not_use(name: str, tmp_path: Path) -> None:
    """Published models have them; a graph does not, its cache neither, and computes the same."""
    said = architectures.facts(name)
    config, tensors = said["files"]["config.json"], dict(said["tensors"])
    kinds, n_own = config["layer_types"], config["num_hidden_layers"] - config["num_kv_shared_layers"]
    for block in range(n_own, len(kinds)):
        like = kinds[:n_own].index(kinds[block])
        for part in ("k_proj", "v_proj", "k_norm"):
            end = f"self_attn.{part}.weight"
            tensors[f"model.layers.{block}.{end}"] = tensors[f"model.layers.{like}.{end}"]
    folder = architectures.write(tmp_path / name, said["files"], said["tokenizer"], tensors)
    result = converter.convert(folder, tmp_path / "model.onnx")
    n_idle = 3 * config["num_kv_shared_layers"]
    assert any(f"{n_idle} tensors are left out" in str(event) for event in result.report.events)
    past = {each.name for each in onnx_cases.session(tmp_path / "model.onnx").get_inputs()} - {
        "input_ids", "attention_mask", "position_ids"
    }  # fmt: skip
    assert past == {f"past_key_values.{block}.{part}" for block in range(n_own) for part in ("key", "value")}
    assert verify(folder, tmp_path / "model.onnx").passed
    (tmp_path / "less").mkdir()
    converter.convert(architectures.build(name, tmp_path / "less"), tmp_path / "less.onnx")
    assert (tmp_path / "less.onnx_data").read_bytes() == (tmp_path / "model.onnx_data").read_bytes()
    request = converter.Request(no_tokenizer=True)
    converter.convert(tmp_path / "less" / name, tmp_path / "less.gguf", request.replace(quant="f32"))
    converter.convert(tmp_path / "model.onnx", tmp_path / "back.gguf", request)
    with open_checkpoint(tmp_path / "less.gguf") as wanted, open_checkpoint(tmp_path / "back.gguf") as back:
        assert wanted.tensors.keys() == back.tensors.keys()
        for tensor, own in wanted.tensors.items():
            assert np.array_equal(own.array().astype(np.float32), back.tensors[tensor].array()), tensor


def test_blocks_that_predict_further_tokens_are_not_missed(tmp_path: Path) -> None:
    folder = architectures.build("glm4moe-nextn", tmp_path)
    result = converter.convert(folder, tmp_path / "model.onnx")
    assert any("tensors are left out, which the graph does not need" in str(event) for event in result.report.events)
    assert verify(folder, tmp_path / "model.onnx").passed


def test_the_folder_again(tmp_path: Path) -> None:
    graph, _ = graph_and_gguf(STORIES, tmp_path, "f32")
    converter.convert(graph, f"{tmp_path / 'back'}/")
    with open_checkpoint(tmp_path / "back") as back, open_checkpoint(STORIES) as source:
        assert back.tensors.keys() == source.tensors.keys() - {"lm_head.weight"}
        for name, tensor in back.tensors.items():
            assert np.array_equal(tensor.array(), source.tensors[name].array().astype(np.float32)), name
    assert {"tokenizer.json", "tokenizer_config.json"} <= {path.name for path in (tmp_path / "back").iterdir()}


def test_other_names_and_types_stay_what_they_mean(tmp_path: Path) -> None:
    """With the graph kept, tensors change their type and go under other names; what they are is still known."""
    graph, _ = graph_and_gguf(STORIES, tmp_path, "q8_0")
    converter.convert(graph, tmp_path / "half.onnx", converter.Request(dtype="f16"))
    with open_checkpoint(tmp_path / "half.onnx") as half, open_checkpoint(graph) as source:
        assert half.dialect == "gguf"
        assert half.tensors.keys() == source.tensors.keys()
        assert half.stored is not None and half.stored.structure is not None
        matrix = "blk.0.attn_q.weight"
        assert np.array_equal(half.tensors[matrix].array(), source.tensors[matrix].array())


def test_another_quant_of_a_graph(tmp_path: Path) -> None:
    converter.convert(STORIES, tmp_path / "model.onnx")
    converter.convert(tmp_path / "model.onnx", tmp_path / "q8_0.onnx", converter.Request(quant="q8_0"))
    with open_checkpoint(tmp_path / "q8_0.onnx") as made:
        assert "Q8_0" in {tensor.info.dtype.name for tensor in made.tensors.values()}


def test_without_a_tokenizer_it_says_what_is_missing(tmp_path: Path) -> None:
    converter.convert(STORIES, tmp_path / "model.onnx")
    with pytest.raises(ConverterError, match="no tokenizer"):
        converter.convert(tmp_path / "model.onnx", tmp_path / "a.gguf")
    converter.convert(tmp_path / "model.onnx", tmp_path / "a.gguf", converter.Request(no_tokenizer=True))
    converter.convert(converter.Source(tmp_path / "model.onnx", config=STORIES), tmp_path / "b.gguf")
    converter.convert(STORIES, tmp_path / "c.gguf", converter.Request(quant="f32"))
    assert (tmp_path / "b.gguf").read_bytes() == (tmp_path / "c.gguf").read_bytes()


def test_factors_of_angles_come_back(tmp_path: Path) -> None:
    """The graph has the angles that they make; they are in its text."""
    folder = architectures.build("exaone4-small", tmp_path)
    converter.convert(folder, tmp_path / "model.onnx")
    converter.convert(folder, tmp_path / "model.gguf", converter.Request(quant="f32"))
    with open_checkpoint(tmp_path / "model.onnx") as graph, open_checkpoint(tmp_path / "model.gguf") as gguf:
        factors = graph.tensors["rope_freqs.weight"].array()
        assert np.array_equal(factors, gguf.tensors["rope_freqs.weight"].array())


# ---------------------------------------------------------------------------------------------- a stranger's text


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("graph") / "model.onnx"
    converter.convert(STORIES, path, converter.Request(quant="q4_0", external_data="never"))
    return path


Q, NORM = "blk.0.attn_q.weight", "output_norm.weight"


@pytest.mark.parametrize(
    ("where", "what", "says"),
    [
        (("version",), 2, "not of version 1"),
        (("keys",), [], "no object"),
        (("keys", "general.name"), ["str", 5], "general.name' is not of type 'str'"),
        (("keys", "general.name"), ["u32", 1 << 32], "not of type 'u32'"),
        (("keys", "general.name"), ["u32", True], "not of type 'u32'"),
        (("keys", "general.name"), ["f32", 1e300], "not of type 'f32'"),
        (("keys", "general.name"), ["bytes", "zz"], "not of type 'bytes'"),
        (("keys", "general.name"), ["what", 1], "not of type 'what'"),
        (("keys", "general.name"), [["str"], 1], "not of type"),
        (("keys", "general.name"), {"str": 1}, "no type and value"),
        (("keys", "general.name"), ["array", "u8", [1, 256]], "not of type 'u8'"),
        (("keys", "general.name"), ["array", "array", [["str", "a"]]], "something else"),
        (("keys", "a\nb"), ["u32", 1], "control characters"),
        (("tensors", ""), {"values": [1.0]}, "1 to 1024 bytes"),
        (("tensors", "more"), {"stored": ["model.norm.weight"]}, "used twice"),
        (("tensors", NORM), {"stored": []}, "stored is"),
        (("tensors", NORM), {}, "no form"),
        (("tensors", NORM), {"stored": ["model.norm.weight"], "values": [1.0]}, "no form"),
        (("tensors", NORM), {"values": [1.0], "transposed": True}, "values and a form"),
        (("tensors", NORM), {"values": [True]}, "values is"),
        (("tensors", NORM), {"values": [1.0] * 5000}, "values is"),
        (("tensors", NORM), {"stored": ["model.norm.weight"], "transposed": True}, "none to exchange"),
        (("tensors", NORM), {"stored": ["model.norm.weight"], "type": "F32"}, "type is"),
        (("tensors", NORM), {"stored": ["model.norm.weight"], "type": {}}, "type is"),
        (("tensors", Q, "heads"), [[7, None, False]], "tensor 'blk.0.attn_q.weight'"),
        (("tensors", Q, "heads"), [[8, 7, False]], "tensor 'blk.0.attn_q.weight'"),
        (("tensors", Q, "heads"), [[0, None, False]], "heads is"),
        (("tensors", Q, "heads"), [8], "heads is"),
        (("tensors", Q, "heads"), [[8, None]], "heads is"),
        (("tensors", Q, "type"), "Q8_0", "Q8_0 has as codes"),
        (("tensors", Q, "type"), "Q3_K", "Q3_K has as codes"),
        (("tensors", Q, "type"), "IQ2_XS", "type is"),
    ],
)
def test_a_text_that_contradicts_itself_or_the_graph(
    where: tuple[str, ...], what: object, says: str, small: Path, tmp_path: Path
) -> None:
    if where[:1] == ("tensors",) and Q in where:
        assert json.loads(_text(small))["tensors"][Q]["type"]
    said = json.loads(_text(small))
    inner = said
    for key in where[:-1]:
        inner = inner[key]
    inner[where[-1]] = what
    retold(small, tmp_path / "bad.onnx", json.dumps(said))
    with pytest.raises(CorruptFile, match=says.replace("(", r"\(")):
        open_checkpoint(tmp_path / "bad.onnx")


def _text(path: Path) -> str:
    with open_checkpoint(path) as opened:
        assert opened.stored is not None
        return opened.stored.metadata["converter.gguf"]


@pytest.mark.parametrize("text", ["", "[]", "{", '{"version":1}', "[" * 100000, '{"a":1,"a":1}', '{"version":1e999}'])
def test_what_is_no_such_text(text: str, small: Path, tmp_path: Path) -> None:
    retold(small, tmp_path / "bad.onnx", text)
    with pytest.raises(CorruptFile, match=r"converter\.gguf"):
        open_checkpoint(tmp_path / "bad.onnx")


def test_a_graph_that_was_changed_is_any_other(small: Path, tmp_path: Path) -> None:
    said = json.loads(_text(small))
    said["tensors"][NORM]["stored"] = ["gone"]
    retold(small, tmp_path / "changed.onnx", json.dumps(said))
    with open_checkpoint(tmp_path / "changed.onnx") as opened:
        assert opened.dialect is None and "model.norm.weight" in opened.tensors
        assert any("changed since" in str(event) for event in opened.events)


def test_scales_that_no_block_has_are_found_when_they_are_read(small: Path, tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    model = onnx.load(small)
    scales = next(each for each in model.graph.initializer if each.name.endswith("gate_proj.weight.scales"))
    values = onnx.numpy_helper.to_array(scales).copy()
    values.flat[0] = np.nextafter(values.flat[0], np.float32(9))
    scales.CopyFrom(onnx.numpy_helper.from_array(values, scales.name))
    onnx.save(model, tmp_path / "bad.onnx")
    with pytest.raises(CorruptFile, match=r"gate_proj.*no blocks of Q4_0: a scale is no number of F16"):
        converter.convert(tmp_path / "bad.onnx", tmp_path / "a.gguf", converter.Request(no_tokenizer=True))
    assert not (tmp_path / "a.gguf").exists()
