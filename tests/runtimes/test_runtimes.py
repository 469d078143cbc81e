"""What models do in their runtimes: against each other, and against the figures of llama-perplexity."""

from __future__ import annotations

import json
import math
import shutil
import sys
import tracemalloc
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support import builders, models

import converter
from converter.errors import (
    Interrupted,
    MissingDependency,
    MissingPart,
    MissingTensor,
    ShapeMismatch,
    UnsupportedFeature,
    UsageError,
)  # fmt: skip
from converter.runtimes import behaviour as runtimes
from converter.runtimes.behaviour import Behaviour
from converter.storage.slabs import Progress

STORIES, KJV = models.FIXTURES / "stories260K", models.FIXTURES / "kjv-llama"
HELD_OUT = models.FIXTURES / "kjv-heldout.txt"
FACTS = json.loads((models.EXPECTED / "perplexity.json").read_text("utf-8"))
SHORT = 128  # tokens, where the number of them does not matter

Make = Callable[..., Path]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Make:
    """`made("stories260K", "q8_0")`: the fixture as a GGUF, converted once."""
    folder = tmp_path_factory.mktemp("gguf")

    def make(model: str, quant: str) -> Path:
        path = folder / f"{model}-{quant}.gguf"
        if not path.exists():
            converter.convert(models.FIXTURES / model, path, converter.Request(quant=quant))
        return path

    return make


def behaviour(reference: Path, candidate: Path, text: str | None = None, **options: Any) -> Behaviour:
    return runtimes.behaviour(reference, candidate, text, **{"threads": 1, **options})


# -------------------------------------------------------------------------------------------- agreement


@pytest.mark.parametrize("quant", [quant for quant in FACTS["figures"] if quant != FACTS["base"]])
def test_the_figures_are_llama_perplexitys(quant: str, made: Make) -> None:
    """The same files, text and windows. What is allowed is that program's rounding of the reference to 16 bits: up to
    5e-5 in a single position's KL (more than all of F16's), and next to nothing in the mean."""
    pytest.importorskip("llama_cpp")
    wanted, context = FACTS["figures"][quant], FACTS["context"]
    found = behaviour(
        made("kjv-llama", FACTS["base"]), made("kjv-llama", quant), HELD_OUT.read_text("utf-8"),
        tokens=context * FACTS["windows"], context=context,
    )  # fmt: skip
    assert found.tokens == context * FACTS["windows"]
    assert len(found.kl_by_position) == (context // 2 - 1) * FACTS["windows"]
    assert found.reference_ppl == pytest.approx(FACTS["figures"][FACTS["base"]]["ppl"], rel=1e-5)
    assert found.candidate_ppl == pytest.approx(wanted["ppl"], rel=1e-5)
    assert found.mean_kl == pytest.approx(wanted["mean_kl"], rel=1e-3, abs=1.5e-6)
    assert found.max_kl == pytest.approx(wanted["max_kl"], rel=1e-3, abs=5e-5)
    assert np.quantile(found.kl_by_position, 0.999) == pytest.approx(wanted["p999_kl"], rel=1e-3, abs=5e-5)
    assert found.top1 is not None and 100 * found.top1 == pytest.approx(wanted["same_top"], abs=1e-3)


def test_transformers_and_llama_cpp_agree_on_perplexity(made: Make) -> None:
    """The checkpoint as it was trained, in torch, has the perplexity that llama-perplexity gives its F32 GGUF."""
    pytest.importorskip("transformers")
    pytest.importorskip("llama_cpp")
    context = FACTS["context"]
    found = behaviour(
        KJV, made("kjv-llama", "f32"), HELD_OUT.read_text("utf-8"), tokens=context * FACTS["windows"], context=context
    )
    assert found.reference_ppl == pytest.approx(FACTS["figures"]["f32"]["ppl"], rel=1e-5)
    assert found.mean_kl is not None and found.mean_kl < 1e-9
    assert found.max_abs is not None and found.max_abs < 1e-3
    assert found.top1 == 1.0


def test_a_sentencepiece_model_in_two_runtimes(made: Make) -> None:
    pytest.importorskip("transformers")
    pytest.importorskip("llama_cpp")
    found = behaviour(STORIES, made("stories260K", "f32"))
    assert found.reference_runtime.startswith("transformers ") and found.candidate_runtime.startswith("llama.cpp ")
    assert found.mean_kl is not None and found.mean_kl < 1e-9 and found.top1 == 1.0
    lossy = behaviour(STORIES, made("stories260K", "q4_0"))
    assert lossy.mean_kl is not None and 1e-3 < lossy.mean_kl < 1
    assert lossy.ppl_increase is not None and abs(lossy.ppl_increase) < 0.5


def test_weights_alone_are_read_by_our_own_reader(tmp_path: Path) -> None:
    """A safetensors file and a pickle, beside their config, give what the folder gives."""
    pytest.importorskip("transformers")
    shutil.copy(STORIES / "config.json", tmp_path)
    converter.convert(STORIES / "model.safetensors", tmp_path / "pytorch_model.bin")
    for path in (STORIES / "model.safetensors", tmp_path / "pytorch_model.bin", tmp_path):
        found = behaviour(STORIES, path, tokens=SHORT)
        assert (found.max_abs, found.mean_kl, found.top1) == (0.0, 0.0, 1.0)


def test_a_folder_of_ours_in_shards_and_another_type(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    converter.convert(STORIES, tmp_path / "out", converter.Request(dtype="bf16", format="hf"))
    found = behaviour(STORIES, tmp_path / "out", tokens=SHORT)
    assert found.mean_kl is not None and 0 < found.mean_kl < 1e-3
    assert found.reference_ppl is not None and found.ppl_increase is not None and abs(found.ppl_increase) < 0.01


@pytest.mark.parametrize(
    ("name", "most"), [("model.onnx", 1e-9), ("external/model.onnx", 1e-9), ("model.dynq8.onnx", 1)]
)
def test_onnx_against_the_model_it_was_made_of(data: Path, made: Make, name: str, most: float) -> None:
    pytest.importorskip("onnxruntime")
    pytest.importorskip("llama_cpp")
    found = behaviour(made("stories260K", "f32"), data / "derived-onnx-stories260K" / name)
    assert found.candidate_runtime.startswith("ONNX Runtime ")
    assert found.mean_kl is not None and found.mean_kl < most
    assert (found.top1 == 1.0) == (most < 1)


def test_a_wrong_model_shows(tmp_path: Path, made: Make) -> None:
    """Heads in another order: every tensor's statistics are the same, what the model says is not."""
    pytest.importorskip("transformers")
    safetensors = pytest.importorskip("safetensors.numpy")
    shutil.copytree(STORIES, tmp_path / "wrong")
    weights = safetensors.load_file(STORIES / "model.safetensors")
    name = "model.layers.2.self_attn.k_proj.weight"
    weights[name] = np.ascontiguousarray(weights[name].reshape(4, 2, 4, 64).swapaxes(1, 2).reshape(32, 64))
    safetensors.save_file(weights, tmp_path / "wrong" / "model.safetensors", {"format": "pt"})
    found = behaviour(STORIES, tmp_path / "wrong")
    assert found.mean_kl is not None and found.mean_kl > 0.05
    assert found.top1 is not None and found.top1 < 0.95


# -------------------------------------------------------------------------------------------- statistics


def standard_error(values: list[float]) -> float:
    """Of their mean, as llama-perplexity has it: sqrt((mean of squares - square of the mean) / (n - 1))."""
    n = len(values)
    return math.sqrt((math.fsum(x * x for x in values) / n - (math.fsum(values) / n) ** 2) / (n - 1))


def naive(reference: Any, candidate: Any, targets: list[int]) -> tuple[list[float], float, float]:
    """KL of each row and both perplexities, by the definition, one number at a time."""
    kls, losses = [], [0.0, 0.0]
    for one, other, target in zip(reference.tolist(), candidate.tolist(), targets, strict=True):
        p, q = ([math.exp(x) / math.fsum(map(math.exp, row)) for x in row] for row in (one, other))
        kls.append(math.fsum(a * math.log(a / b) for a, b in zip(p, q, strict=True)))
        losses[0] -= math.log(p[target])
        losses[1] -= math.log(q[target])
    return kls, *(math.exp(loss / len(targets)) for loss in losses)  # type: ignore[return-value]


def test_statistics_are_their_definitions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtimes, "SLICE", 3 * 50)  # several slices, the last one not full
    random = np.random.default_rng(0)
    reference = random.standard_normal((20, 50)).astype(np.float32)
    candidate = (reference + 0.3 * random.standard_normal((20, 50))).astype(np.float32)
    targets = random.integers(0, 50, 20).tolist()
    found = runtimes.Divergence()
    found.add(reference, candidate, targets)
    result = found.result("a", "b", 40)
    kls, one, other = naive(reference, candidate, targets)
    assert result.kl_by_position == pytest.approx(kls, rel=1e-9)
    assert (result.mean_kl, result.max_kl) == pytest.approx((np.mean(kls), max(kls)))
    assert (result.reference_ppl, result.candidate_ppl) == pytest.approx((one, other))
    losses = [
        [math.log(math.fsum(map(math.exp, row))) - row[target] for row, target in zip(rows, targets, strict=True)]
        for rows in (reference.tolist(), candidate.tolist())
    ]
    increases = [b - a for a, b in zip(*losses, strict=True)]
    assert result.reference_ppl_error == pytest.approx(one * standard_error(losses[0]))
    assert result.candidate_ppl_error == pytest.approx(other * standard_error(losses[1]))
    assert result.ppl_increase_error == pytest.approx(other / one * standard_error(increases))
    assert result.mean_kl_error == pytest.approx(standard_error(kls))
    assert result.top1 == (reference.argmax(1) == candidate.argmax(1)).mean()
    assert result.max_abs == np.abs(reference.astype(float) - candidate).max()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("side", ["reference", "candidate"])
def test_what_is_not_a_number_is_infinitely_far(bad: float, side: str) -> None:
    rows = {name: np.zeros((2, 4), np.float32) for name in ("reference", "candidate")}
    rows[side][1] = bad
    found = runtimes.Divergence()
    found.add(rows["reference"], rows["candidate"], [0, 1])
    result = found.result("a", "b", 4)
    assert result.kl_by_position == (0.0, math.inf)
    assert (result.max_abs, result.mean_kl, result.max_kl, result.top1) == (math.inf, math.inf, math.inf, 0.5)
    assert (result.reference_ppl if side == "reference" else result.candidate_ppl) == math.inf


def test_tokens_that_both_rule_out_are_no_difference() -> None:
    rows = np.array([[0.0, 1.0, -np.inf]], np.float32)
    found = runtimes.Divergence()
    found.add(rows, rows.copy(), [1])
    result = found.result("a", "b", 2)
    assert (result.max_abs, result.mean_kl, result.top1) == (0.0, 0.0, 1.0)


def test_a_difference_within_its_error_is_called_so() -> None:
    found = runtimes.Behaviour("a", "b", 9, reference_ppl=10.0, candidate_ppl=10.2)
    assert found.ppl_unchanged is None
    assert replace(found, ppl_increase_error=0.01).ppl_unchanged is True
    assert replace(found, ppl_increase_error=0.005).ppl_unchanged is False


@pytest.mark.parametrize(("ppl", "foreign"), [(43.4, False), (160.0, False), (1853.0, True), (math.inf, True)])
def test_a_text_that_the_source_does_not_know_is_foreign(ppl: float, foreign: bool) -> None:
    assert runtimes.Behaviour("a", "b", 9, reference_ppl=ppl, candidate_ppl=ppl, vocabulary=2048).foreign is foreign
    assert not runtimes.Behaviour("a", "b", 9, cosine=1.0).foreign


def test_windows_are_whole_begin_with_bos_and_leave_the_rest() -> None:
    ids = list(range(1, 12))
    assert list(runtimes._windows(ids, 4, 99)) == [[99, 2, 3, 4], [99, 6, 7, 8]]
    assert list(runtimes._windows(ids, 5, None)) == [[1, 2, 3, 4, 5], [6, 7, 8, 9, 10]]
    assert list(runtimes._windows(ids, 11, 0)) == [[0, *range(2, 12)]]


def test_memory_is_that_of_a_slice() -> None:
    """Window after window of a large vocabulary: no logits are kept, and only slices of them are widened."""
    rows = np.zeros((32, 150_000), np.float32)
    found = runtimes.Divergence()
    tracemalloc.start()
    for _ in range(2):
        found.add(rows, rows, [0] * len(rows))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 12 * 8 * runtimes.SLICE
    assert len(found.kl) == 64


# ------------------------------------------------------------------------------- encoders and other graphs

TINY_BERT = {
    "vocab_size": 30, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64,
    "max_position_embeddings": 64,
}  # fmt: skip
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdefghijklmno", *(f"##{letter}" for letter in "abcdefghij")]
PARAGRAPHS = "abc def ghi\n\na b c d e f g h i j k l m n o\n\nnob\n\n   \n\ncab deaf"


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A random BERT, and as `other/` the same with its first layer's values disturbed."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    folder = tmp_path_factory.mktemp("bert")
    torch.manual_seed(0)
    model = transformers.BertModel(transformers.BertConfig(**TINY_BERT, initializer_range=0.3))
    for place in (folder, folder / "other"):
        model.save_pretrained(place)
        (place / "vocab.txt").write_text("\n".join(WORDS) + "\n")
        (place / "tokenizer_config.json").write_text('{"tokenizer_class": "BertTokenizer"}')
        with torch.no_grad():
            model.encoder.layer[0].attention.self.value.weight += 0.2 * torch.randn(32, 32)
    yield folder


def test_encoders_are_compared_by_the_worst_paragraph(bert: Path) -> None:
    same = behaviour(bert, bert, PARAGRAPHS)
    assert same.cosine == pytest.approx(1.0, abs=1e-12)
    assert same.tokens == 11 + 17 + 3 + 9
    assert same.mean_kl is None and same.reference_ppl is None
    other = behaviour(bert, bert / "other", PARAGRAPHS)
    assert other.cosine is not None and 0.3 < other.cosine < 0.999
    assert behaviour(bert, bert / "other", PARAGRAPHS, tokens=17).cosine >= other.cosine  # type: ignore[operator]


@pytest.mark.filterwarnings("ignore")  # the exporter's, about itself
def test_an_encoder_in_onnx(bert: Path) -> None:
    torch = pytest.importorskip("torch")
    pytest.importorskip("onnxruntime")
    transformers = pytest.importorskip("transformers")
    model = transformers.BertModel.from_pretrained(bert, attn_implementation="eager").eval()

    class States(torch.nn.Module):  # type: ignore[misc,name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, ids: Any, mask: Any, kinds: Any) -> Any:
            return self.model(input_ids=ids, attention_mask=mask, token_type_ids=kinds).last_hidden_state

    names = ["input_ids", "attention_mask", "token_type_ids"]
    ones = torch.ones((1, 7), dtype=torch.int64)
    torch.onnx.export(
        States(), (ones, ones, 0 * ones), str(bert / "model.onnx"), dynamo=False, input_names=names,
        output_names=["last_hidden_state"], dynamic_axes={name: {1: "length"} for name in names},
    )  # fmt: skip
    found = behaviour(bert, bert / "model.onnx", PARAGRAPHS)
    assert found.candidate_runtime.startswith("ONNX Runtime ")
    assert found.cosine == pytest.approx(1.0, abs=1e-9)
    assert behaviour(bert / "other", bert / "model.onnx", PARAGRAPHS).cosine < 0.999  # type: ignore[operator]


def test_an_encoder_in_llama_cpp(bert: Path, tmp_path: Path) -> None:
    pytest.importorskip("llama_cpp")
    write_bert_gguf(bert, tmp_path / "bert.gguf")
    assert runtimes.probe_ids(tmp_path / "bert.gguf", "cab deaf") == runtimes.probe_ids(bert, "cab deaf")
    found = behaviour(bert, tmp_path / "bert.gguf", PARAGRAPHS)
    assert found.cosine == pytest.approx(1.0, abs=1e-5)
    assert found.tokens == 40
    assert behaviour(bert / "other", tmp_path / "bert.gguf", PARAGRAPHS).cosine < 0.999  # type: ignore[operator]


BERT_GGUF = {
    "embeddings.word_embeddings": "token_embd", "embeddings.position_embeddings": "position_embd",
    "embeddings.token_type_embeddings": "token_types", "embeddings.LayerNorm": "token_embd_norm",
    "attention.self.query": "attn_q", "attention.self.key": "attn_k", "attention.self.value": "attn_v",
    "attention.output.dense": "attn_output", "attention.output.LayerNorm": "attn_output_norm",
    "intermediate.dense": "ffn_up", "output.dense": "ffn_down", "output.LayerNorm": "layer_output_norm",
}  # fmt: skip


def write_bert_gguf(folder: Path, path: Path) -> None:
    """A BERT as llama.cpp has it, by gguf-py."""
    gguf = pytest.importorskip("gguf")
    safetensors = pytest.importorskip("safetensors.numpy")
    writer = gguf.GGUFWriter(path, "bert")
    writer.add_context_length(TINY_BERT["max_position_embeddings"])
    writer.add_embedding_length(TINY_BERT["hidden_size"])
    writer.add_feed_forward_length(TINY_BERT["intermediate_size"])
    writer.add_block_count(TINY_BERT["num_hidden_layers"])
    writer.add_head_count(TINY_BERT["num_attention_heads"])
    writer.add_layer_norm_eps(1e-12)
    writer.add_causal_attention(False)
    writer.add_pooling_type(gguf.PoolingType.MEAN)
    writer.add_tokenizer_model("bert")
    # Words begin with U+2581, the pieces that continue one are bare, and so are special tokens.
    pieces = [word if word[0] == "[" else word[2:] if word[:2] == "##" else "\u2581" + word for word in WORDS]
    writer.add_token_list(pieces)
    writer.add_token_types([gguf.TokenType.CONTROL if word[0] == "[" else gguf.TokenType.NORMAL for word in WORDS])
    writer.add_token_type_count(2)
    for add, word in (("bos", "CLS"), ("sep", "SEP"), ("unk", "UNK"), ("pad", "PAD"), ("mask", "MASK")):
        getattr(writer, f"add_{add}_token_id")(WORDS.index(f"[{word}]"))
    for name, array in safetensors.load_file(folder / "model.safetensors").items():
        stem, _, kind = name.rpartition(".")
        parts = stem.split(".", 3)
        inner = stem if parts[0] != "encoder" else parts[3]
        if inner in BERT_GGUF:
            prefix = "" if parts[0] != "encoder" else f"blk.{parts[2]}."
            writer.add_tensor(f"{prefix}{BERT_GGUF[inner]}.{kind}", array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def write_onnx(path: Path, nodes: list[Any], inputs: list[Any], outputs: list[Any], **weights: Any) -> Path:
    onnx = pytest.importorskip("onnx")
    own = [onnx.numpy_helper.from_array(array, name) for name, array in weights.items()]
    graph = onnx.helper.make_graph(nodes, "graph", inputs, outputs, own)
    onnx.save(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8), path)
    return path


def test_any_graph_of_floats_gets_random_inputs(tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    info, node = onnx.helper.make_tensor_value_info, onnx.helper.make_node
    weight = np.random.default_rng(1).standard_normal((64, 32)).astype(np.float32)
    source = write_onnx(
        tmp_path / "a.onnx", [node("MatMul", ["x", "w"], ["y"]), node("Tanh", ["x"], ["z"])],
        [info("x", 1, ["batch", 64])], [info("y", 1, ["batch", 32]), info("z", 1, ["batch", 64])], w=weight,
    )  # fmt: skip
    same = behaviour(source, source)
    assert (same.max_abs, same.tokens) == (0.0, 0) and same.cosine == pytest.approx(1.0, abs=1e-12)
    converter.convert(source, tmp_path / "half.onnx", converter.Request(dtype="f16"))
    found = behaviour(source, tmp_path / "half.onnx")
    random = np.random.default_rng(0)
    inputs = [random.standard_normal((1, 64)).astype(np.float32) for _ in range(runtimes.RANDOM_INPUTS)]
    error = weight - weight.astype(np.float16).astype(np.float32)
    assert found.max_abs == pytest.approx(max(float(np.abs(x @ error).max()) for x in inputs), rel=0.01)
    assert found.cosine is not None and 0.999999 < found.cosine < 1.0


def test_a_language_model_with_what_exporters_add(tmp_path: Path) -> None:
    """A table of logits by token, plus a mask, positions and a cache: all are fed, and the logits are the table's."""
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    pytest.importorskip("transformers")
    info, node = onnx.helper.make_tensor_value_info, onnx.helper.make_node
    nodes = [
        node("ReduceSum", ["past_key_values.0.key"], ["none"], keepdims=0),
        node("Add", ["table", "none"], ["rows"]),
        node("Gather", ["rows", "input_ids"], ["chosen"]),
        node("Add", ["attention_mask", "position_ids"], ["places"]),
        node("Cast", ["places"], ["floats"], to=1),
        node("Unsqueeze", ["floats", "last"], ["column"]),
        node("Add", ["chosen", "column"], ["logits"]),
    ]
    tokens = [info(name, 7, [1, "n"]) for name in ("input_ids", "attention_mask", "position_ids")]
    table = np.random.default_rng(2).standard_normal((512, 512)).astype(np.float32)
    for name, scale in (("a", 1.0), ("b", 1.1)):
        write_onnx(
            tmp_path / f"{name}.onnx", nodes, [*tokens, info("past_key_values.0.key", 1, [1, 2, "past", 8])],
            [info("logits", 1, [1, "n", 512])], table=(table * scale).astype(np.float32), last=np.array([-1]),
        )  # fmt: skip
    shutil.copy(STORIES / "tokenizer.json", tmp_path)
    shutil.copy(STORIES / "tokenizer_config.json", tmp_path)
    found = behaviour(tmp_path / "a.onnx", tmp_path / "b.onnx", tokens=SHORT)
    ids = (runtimes.probe_ids(STORIES) or [])[:SHORT]
    half = SHORT // 2
    read, targets = ids[half:-1], ids[half + 1 :]
    kls, one, other = naive(table[read], (table * 1.1).astype(np.float32)[read], targets)
    assert found.kl_by_position == pytest.approx(kls, rel=1e-3)
    assert (found.reference_ppl, found.candidate_ppl) == pytest.approx((one, other), rel=1e-5)
    assert found.top1 == 1.0


# ------------------------------------------------------------------------------------------------ refusals


def test_a_package_that_is_not_there(made: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "llama_cpp", None)
    path = made("stories260K", "q8_0")
    with pytest.raises(MissingDependency, match=r"needs llama_cpp: pip install llama-cpp-python") as caught:
        behaviour(path, path)
    assert caught.value.exit_code == 13


def test_weights_that_transformers_would_make_up(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    weights = builders.llama_weights()
    gone = "model.layers.0.mlp.up_proj.weight"
    folder = builders.llama_folder(tmp_path / "m", weights={name: weights[name] for name in weights if name != gone})
    with pytest.raises(MissingTensor, match=gone):
        behaviour(folder, folder, tokens=SHORT)
    with pytest.raises(MissingTensor, match=gone):
        behaviour(folder / "model.safetensors", folder, tokens=SHORT)


def test_what_llama_cpp_refuses_is_said_in_its_words(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("llama_cpp")
    weights = builders.llama_weights()
    del weights["model.layers.0.mlp.up_proj.weight"]
    builders.llama_folder(tmp_path / "m", weights=weights)
    path = tmp_path / "m.gguf"
    converter.convert(tmp_path / "m" / "model.safetensors", path, converter.Request(tensors_only=True))
    with pytest.raises(UnsupportedFeature, match=r"m\.gguf: llama\.cpp does not run it: .*architecture"):
        behaviour(path, path)
    assert capfd.readouterr() == ("", "")


def test_nothing_is_printed(made: Make, capfd: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("transformers")
    pytest.importorskip("llama_cpp")
    behaviour(STORIES, made("stories260K", "q8_0"), tokens=SHORT)
    assert capfd.readouterr() == ("", "")


def test_code_in_a_folder_is_not_run(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    folder = builders.llama_folder(
        tmp_path / "m",
        config={"model_type": "own", "auto_map": {key: "own.Own" for key in ("AutoConfig", "AutoModelForCausalLM")}},
    )
    (folder / "own.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    with pytest.raises(UnsupportedFeature, match="transformers does not run it") as caught:
        behaviour(folder, folder)
    assert len(str(caught.value).splitlines()) == 1
    assert not (tmp_path / "ran").exists()


def test_different_vocabularies(made: Make) -> None:
    pytest.importorskip("llama_cpp")
    with pytest.raises(ShapeMismatch, match="512 and 2048"):
        behaviour(made("stories260K", "q8_0"), made("kjv-llama", "q8_0"), tokens=SHORT)


def test_models_of_different_kinds(bert: Path, made: Make) -> None:
    pytest.importorskip("llama_cpp")
    with pytest.raises(UnsupportedFeature, match=r"gives logits, and .* gives embedding"):
        behaviour(bert, made("stories260K", "q8_0"))


def test_no_tokenizer_on_either_side(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    folder = builders.llama_folder(tmp_path / "m", tokenizer=False)
    assert runtimes.probe_ids(folder) is None
    with pytest.raises(MissingPart, match="no tokenizer"):
        behaviour(folder, folder)


def test_the_candidates_tokenizer_where_the_reference_has_none(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    weights = builders.llama_weights()
    bare = builders.llama_folder(tmp_path / "bare", weights=weights, tokenizer=False)
    found = behaviour(bare, builders.llama_folder(tmp_path / "m", weights=weights), tokens=SHORT)
    assert (found.tokens, found.mean_kl) == (SHORT, 0.0)


def test_formats_that_nothing_runs(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.zeros(3))
    assert not runtimes.runs(tmp_path / "a.npy") and runtimes.runs(STORIES)
    with pytest.raises(UnsupportedFeature, match="no runtime here runs a model of format npy"):
        behaviour(tmp_path / "a.npy", STORIES)


@pytest.mark.parametrize("text", ["", "a"])
def test_too_short_to_score(text: str, made: Make) -> None:
    pytest.importorskip("llama_cpp")
    path = made("stories260K", "q8_0")
    with pytest.raises(UsageError, match="nothing to score"):
        behaviour(path, path, text)


def test_progress_and_cancel(made: Make) -> None:
    pytest.importorskip("llama_cpp")
    path, seen = made("stories260K", "q8_0"), []
    behaviour(path, path, tokens=100, context=32, progress=seen.append)
    assert [(each.done, each.total) for each in seen] == [(1, 3), (2, 3), (3, 3)]

    def stop(progress: Progress) -> bool:
        return False

    with pytest.raises(Interrupted):
        behaviour(path, path, progress=stop)


def test_both_tokenizers_cut_the_probe_alike(made: Make) -> None:
    pytest.importorskip("transformers")
    pytest.importorskip("llama_cpp")
    for folder in (STORIES, KJV):
        ids = runtimes.probe_ids(folder)
        assert ids is not None and len(ids) > 1024
        assert ids == runtimes.probe_ids(made(folder.name, "q8_0"))
