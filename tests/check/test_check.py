"""`convert check`: sound files pass, and each kind of damage is found and named."""

from __future__ import annotations

import ctypes
import json
import os
import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from support import builders, ggml_oracle, models
from support.rewriting import Keys, Tensors, again, item, patched, reshaped, rewritten, without

import converter
from converter.architectures import architectures
from converter.check import rows
from converter.check.check import STEPS, Checked, check
from converter.check.tokens import templates
from converter.checkpoint import Checkpoint
from converter.cli.main import main
from converter.errors import Interrupted, OutputError
from converter.findings import CHECKS
from converter.formats import gguf, safetensors
from converter.formats.base import WriteOptions
from converter.mapping.view import view
from converter.metadata import Array, Value, text, u32
from converter.runtimes import generation
from converter.storage import output
from converter.tensors import kernels
from converter.tensors.dtypes import DTYPES, F32, INT8
from converter.tensors.scales import KINDS, SCALES
from converter.tensors.tensor import LazyTensor, TensorInfo, from_array

STORIES, KJV = models.FIXTURES / "stories260K", models.FIXTURES / "kjv-llama"
QUANTIZED = [dtype for dtype in DTYPES.values() if dtype.quantized and dtype is not INT8]  # which no GGUF has


def named(result: Checked) -> set[tuple[str, str]]:
    """What failed: (check, subject)."""
    return {(finding.check, finding.subject) for finding in result.findings if finding.failed}


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Both fixtures as GGUF, and a Mixtral and a Qwen: SentencePiece and BPE, experts, no vocab_size key."""
    folder = tmp_path_factory.mktemp("good")
    made = {}
    for name, quant in (("stories260K", None), ("kjv-llama", "q4_k_m"), ("mixtral-96", None), ("qwen3-96", "q8_0")):
        source = models.FIXTURES / name if name in models.FIXTURE_MODELS else models.build_model(name, folder)
        made[name] = folder / f"{name}.gguf"
        converter.convert(source, made[name], converter.Request(quant=quant))
    return made


# --------------------------------------------------------------------------------------- no false alarms


@pytest.mark.parametrize("name", sorted(models.MODELS))
def test_every_family_passes(name: str, tmp_path: Path) -> None:
    folder = models.build_model(name, tmp_path)
    converter.convert(folder, tmp_path / "plain.gguf")
    converter.convert(folder, tmp_path / "small.gguf", converter.Request(quant="q4_k_m"))
    for path in (folder, tmp_path / "plain.gguf", tmp_path / "small.gguf"):
        assert check(path).findings == ()


@pytest.mark.parametrize("folder", [STORIES, KJV], ids=["stories260K", "kjv-llama"])
def test_real_folders_pass(folder: Path) -> None:
    result = check(folder)
    assert result.findings == () and result.tensors > 40 and result.architecture == "llama"


@pytest.mark.parametrize("quant", ["q2_k", "q3_k_m", "q5_0", "q5_1", "iq4_xs", "iq3_s", "tq2_0", "mxfp4_moe"])
def test_real_weights_pass_in_any_recipe(quant: str, tmp_path: Path) -> None:
    converter.convert(KJV, tmp_path / "out.gguf", converter.Request(quant=quant))
    assert check(tmp_path / "out.gguf").findings == ()


def test_vocabularies_pass(data: Path) -> None:
    paths = sorted((data / "gguf-vocab-llamacpp").glob("*.gguf"))
    assert paths
    for path in paths:
        assert check(path).findings == (), path.name


def test_files_of_other_converters_pass(data: Path) -> None:
    for path in sorted((data / "derived-gguf-stories260K").glob("*.gguf")):
        assert check(path).findings == (), path.name


def test_split_set_passes(good: dict[str, Path], tmp_path: Path) -> None:
    converter.convert(good["kjv-llama"], tmp_path / "out.gguf", converter.Request(split_max_tensors=20))
    parts = sorted(tmp_path.glob("out-*.gguf"))
    assert len(parts) == 3 and check(parts[1]).findings == ()
    parts[2].unlink()
    result = check(parts[0])
    assert result.error is not None and result.error.exit_code == 14 and named(result) == {("structure", parts[0].name)}


# ------------------------------------------------------------------------------------ scales and values


def typed_file(path: Path, rows: dict[str, np.ndarray[Any, Any]]) -> Path:
    """A GGUF with a tensor of each type, named by it, from packed rows."""
    tensors = {}
    for name, data in rows.items():
        dtype = DTYPES[name]
        shape = (len(data), data.shape[1] // dtype.type_size * dtype.block_size)
        tensors[name] = LazyTensor(TensorInfo(name, shape, dtype), lambda a, b, data=data: data[a:b], "test")  # type: ignore[misc]
    model = Checkpoint("gguf", path, "gguf", tensors, {"general.architecture": text("test")})
    output.write(gguf.layout(model, path, WriteOptions()))
    return path


def packed(name: str) -> np.ndarray[Any, Any]:
    """Four rows of two blocks, encoded where the type can be."""
    dtype = DTYPES[name]
    numbers = np.random.default_rng(5).standard_normal((4, 2 * dtype.block_size), np.float32)
    if kernels.encodable(dtype):
        return kernels.encode(numbers, dtype, weights=np.ones(numbers.shape[1], np.float32))
    data = np.zeros((4, 2 * dtype.type_size), np.uint8)
    data[:, -1] = 1
    data.reshape(8, -1)[:, 1] = 0x3C  # d = 1 of Q8_1; of Q8_K a small one
    data.reshape(8, -1)[:, 20] = 7
    return data


def test_every_type_passes(tmp_path: Path) -> None:
    path = typed_file(tmp_path / "all.gguf", {dtype.name: packed(dtype.name) for dtype in QUANTIZED})
    assert named(check(path)) == set()
    assert not [finding for finding in check(path).findings if finding.check == "zero"]


def test_every_quantized_type_has_its_scales() -> None:
    assert SCALES.keys() == {dtype.name for dtype in (*QUANTIZED, INT8)}


@pytest.mark.parametrize(
    ("name", "scale"), [(each.name, scale) for each in QUANTIZED for scale in SCALES[each.name]], ids=str
)
def test_a_scale_that_is_not_finite_is_found(name: str, scale: Any, tmp_path: Path) -> None:
    path = typed_file(tmp_path / "bad.gguf", {"Q8_0": packed("Q8_0"), name: packed(name)})
    kind, mask = KINDS[scale.kind]
    size = DTYPES[name].type_size
    patched(path, name, 5 * size + scale.offset, int(mask).to_bytes(np.dtype(kind).itemsize, "little"))
    result = check(path)
    assert named(result) == {("structure", name)}
    (finding,) = (finding for finding in result.findings if finding.failed)
    assert f"{scale.name} of block 5 (row 2, block 1 in it) is not finite; 1 such blocks of 8" in finding.message


# Decoders read the NaN of these two kinds of scale as a number; no encoder writes it.
READ_AS_NUMBERS = ("MXFP4", "NVFP4")


@pytest.mark.parametrize("dtype", [dtype for dtype in QUANTIZED if dtype.name not in READ_AS_NUMBERS], ids=str)
def test_scales_are_where_the_decoder_reads_them(dtype: Any) -> None:
    """Of random blocks, those found are the ones whose values are not finite."""
    blocks = np.random.default_rng(11).integers(0, 256, (20_000, dtype.type_size), np.uint8)
    found = np.zeros(len(blocks), bool)
    for scale in SCALES[dtype.name]:
        if not (dtype.name == "Q8_1" and scale.name == "s"):  # the sum, which no decoder needs
            found[scale.broken(blocks)] = True
    with np.errstate(all="ignore"):
        decoded = ~np.isfinite(kernels.decode(blocks, dtype)).all(axis=1)
    assert found.any()
    if dtype.name == "Q8_K":  # with an F32 scale, a product may overflow as well
        assert (decoded | ~found).all()
    else:
        assert np.array_equal(found, decoded)


def test_scales_of_one_byte() -> None:
    """E8M0 and E4M3 have one NaN each, sign aside (OCP Microscaling Formats, 5.4.1; OCP FP8)."""
    mxfp4, nvfp4 = (np.zeros((256, DTYPES[name].type_size), np.uint8) for name in READ_AS_NUMBERS)
    mxfp4[:, 0] = nvfp4[:, 2] = np.arange(256)
    assert SCALES["MXFP4"][0].broken(mxfp4).tolist() == [0xFF]
    assert [scale.broken(nvfp4).tolist() for scale in SCALES["NVFP4"]] == [[], [], [0x7F, 0xFF], []]


@ggml_oracle.needs_ggml
@pytest.mark.parametrize("dtype", [dtype for dtype in QUANTIZED if dtype.name not in ("Q8_1", "NVFP4")], ids=str)
def test_verdicts_are_those_of_ggml(dtype: Any) -> None:
    """`ggml_validate_row_data`, block by block. It does not know Q8_1 and takes any scale of NVFP4."""
    validate = ggml_oracle._library().ggml_validate_row_data
    validate.restype, validate.argtypes = ctypes.c_bool, (ctypes.c_int, ctypes.c_void_p, ctypes.c_size_t)
    blocks = np.random.default_rng(12).integers(0, 256, (1000, dtype.type_size), np.uint8)
    found = np.zeros(len(blocks), bool)
    for scale in SCALES[dtype.name]:
        found[scale.broken(blocks)] = True
    theirs = [not validate(dtype.gguf, block.ctypes.data, dtype.type_size) for block in blocks]
    assert found.tolist() == theirs


@pytest.mark.parametrize("bits", [b"\x00\x7e", b"\x00\x7c", b"\x00\xfc"], ids=["nan", "inf", "-inf"])
def test_dense_values(bits: bytes, good: dict[str, Path], tmp_path: Path) -> None:
    converter.convert(good["stories260K"], tmp_path / "f16.gguf", converter.Request(quant="f16"))
    patched(tmp_path / "f16.gguf", "blk.3.ffn_up.weight", 2 * (64 * 7 + 5), bits)
    result = check(tmp_path / "f16.gguf")
    assert named(result) == {("nonfinite", "blk.3.ffn_up.weight")}
    assert "(row 7, column 5)" in result.findings[0].message


def test_infinity_in_a_plain_file_is_a_warning_and_nan_is_not(tmp_path: Path) -> None:
    for value, failed in ((-np.inf, False), (np.nan, True)):
        path = tmp_path / f"{failed}.npz"
        np.savez(path, mask=np.array([[0, value], [0, 0]], np.float32))
        assert [finding.failed for finding in check(path).findings] == [failed]


def test_a_large_double_is_finite(tmp_path: Path) -> None:
    np.save(tmp_path / "big.npy", np.array([1e300, 1.0]))
    assert check(tmp_path / "big.npy").findings == ()


def zeros(*names: str) -> Tensors:
    """Nothing but zeros in the tensors whose names end so."""

    def zeroed(old: dict[str, LazyTensor]) -> dict[str, LazyTensor]:
        empty = {name: np.zeros(old[name].info.shape, np.float32) for name in old if name.endswith(names)}
        return old | {name: from_array(name, data, F32, "test") for name, data in empty.items()}

    return zeroed


@pytest.mark.parametrize(
    ("name", "fails"), [("blk.1.attn_v.weight", True), ("token_embd.weight", True), ("blk.1.attn_norm.weight", False)]
)
def test_a_tensor_of_zeros_fails_where_nothing_works_without(
    good: dict[str, Path], tmp_path: Path, name: str, fails: bool
) -> None:
    path = rewritten(good["stories260K"], tmp_path / "zero.gguf", tensors=zeros(name))
    (finding,) = check(path).findings
    assert (finding.check, finding.subject, finding.failed) == ("zero", name, fails)
    small = tmp_path / "small.gguf"
    converter.convert(path, small, converter.Request(quant="q4_0", allow_requantize=True))
    assert [(f.check, f.subject) for f in check(small).findings] == [("zero", name)]
    assert (main(["check", str(small)]), main(["check", "--strict", str(small)])) == (41 if fails else 0, 41)


def test_a_folder_knows_which_tensors_are_vital(tmp_path: Path) -> None:
    folder = models.build_model("qwen3-96", tmp_path)
    with converter.open_checkpoint(folder) as model:
        arrays = {name: np.array(tensor.array()) for name, tensor in model.tensors.items()}
        name = "model.layers.1.mlp.down_proj.weight"
        arrays[name][...] = 0
        changed = {key: from_array(key, data, model.tensors[key].info.dtype, "test") for key, data in arrays.items()}
        output.write(safetensors.layout(model.replace(tensors=changed), tmp_path / "zero.safetensors", WriteOptions()))
    (tmp_path / "zero.safetensors").replace(folder / "model.safetensors")
    assert named(check(folder)) == {("zero", name)}


def test_a_model_of_zeros_fails_with_one_finding(good: dict[str, Path], tmp_path: Path) -> None:
    path = rewritten(good["stories260K"], tmp_path / "zero.gguf", tensors=zeros(""))
    (finding,) = check(path).findings
    assert (finding.check, finding.subject, finding.failed) == ("zero", "zero.gguf", True)
    with converter.open_checkpoint(path) as model:
        assert f"all {len(model.tensors)} tensors" in finding.message


# ------------------------------------------------------------------------------- keys, tensors, tokenizer


def tokens(count: int) -> Callable[[Path], Keys]:
    """The vocabulary cut to some tokens, scores and types with it."""

    def cut(path: Path) -> Keys:
        with converter.open_checkpoint(path) as model:
            names = [f"tokenizer.ggml.{name}" for name in ("tokens", "scores", "token_type")]
            return {k: Array(model.config[k].type, item(model.config, k)[:count]) for k in names if k in model.config}

    return cut


def merges(change: Callable[[list[str]], list[str]]) -> Callable[[Path], Keys]:
    def changed(path: Path) -> Keys:
        with converter.open_checkpoint(path) as model:
            old = item(model.config, "tokenizer.ggml.merges")
        return {"tokenizer.ggml.merges": Array("str", change(old))}

    return changed


T = "tokenizer.ggml."
# what is wrong, the file, keys (or a function of the file), tensors, and what must be named
DAMAGE: list[tuple[str, str, Keys | Callable[[Path], Keys], Tensors | None, set[tuple[str, str]]]] = [
    ("no architecture", "stories260K", {"general.architecture": None}, None, {("metadata", "general.architecture")}),
    *(
        (f"no {key}", "stories260K", {f"llama.{key}": None}, None, {("metadata", f"llama.{key}")})
        for key in (
            "block_count", "context_length", "embedding_length", "feed_forward_length", "attention.head_count",
            "attention.layer_norm_rms_epsilon",
        )
    ),
    ("a text for a number", "kjv-llama", {"llama.block_count": text("6")}, None, {("metadata", "llama.block_count")}),
    (
        "another integer type", "kjv-llama", {"llama.context_length": Value("u64", 256)}, None,
        {("metadata", "llama.context_length")},
    ),
    (
        "heads that do not divide", "stories260K", {"llama.attention.head_count_kv": u32(3)}, None,
        {("metadata", "llama.attention.head_count_kv"),
         *(("shape", f"blk.{i}.attn_{t}.weight") for i in range(5) for t in "kv")},
    ),
    (
        "half the heads, shapes as before", "stories260K",
        {"llama.attention.head_count": u32(4), "llama.attention.head_count_kv": u32(2),
         "llama.attention.key_length": None, "llama.attention.value_length": None}, None,
        {("metadata", "llama.rope.dimension_count")},
    ),
    ("no heads", "stories260K", {"llama.attention.head_count": u32(0)}, None,
     {("metadata", "llama.attention.head_count"), *(("shape", f"blk.{i}.attn_output.weight") for i in range(5))}),
    ("keys that must be the same", "kjv-llama", {"llama.attention.value_length": u32(8)}, None,
     {("metadata", "llama.attention.key_length")}),
    ("odd rotation", "stories260K", {"llama.rope.dimension_count": u32(7)}, None,
     {("metadata", "llama.rope.dimension_count")}),
    ("more experts used than there", "mixtral-96", {"llama.expert_used_count": u32(9)}, None,
     {("metadata", "llama.expert_used_count")}),
    (
        "wrong hidden size", "stories260K", {"llama.feed_forward_length": u32(171)}, None,
        {("shape", f"blk.{i}.ffn_{t}.weight") for i in range(5) for t in ("up", "gate", "down")},
    ),
    ("a billion layers", "stories260K", {"llama.block_count": u32(10**9)}, None, {("metadata", "llama")}),
    ("a billion experts", "mixtral-96", {"llama.expert_count": u32(10**9)}, None, {("metadata", "llama")}),
    ("a layer more", "stories260K", {"llama.block_count": u32(6)}, None,
     {("missing", f"blk.5.{t}.weight") for t in (
         "attn_q", "attn_k", "attn_v", "attn_output", "attn_norm", "ffn_norm", "ffn_up", "ffn_gate", "ffn_down")}),
    ("a layer less", "stories260K", {"llama.block_count": u32(4)}, None,
     {("extra", f"blk.4.{t}.weight") for t in (
         "attn_q", "attn_k", "attn_v", "attn_output", "attn_norm", "ffn_norm", "ffn_up", "ffn_gate", "ffn_down")}),
    ("a tensor left out", "kjv-llama", {}, without("blk.2.ffn_up.weight"), {("missing", "blk.2.ffn_up.weight")}),
    ("experts left out", "mixtral-96", {}, without("blk.1.ffn_up_exps.weight"),
     {("missing", "blk.1.ffn_up_exps.weight")}),
    ("a tensor too many", "kjv-llama", {}, again("blk.2.ffn_up.weight", "blk.2.ffn_up.scale"),
     {("extra", "blk.2.ffn_up.scale")}),
    ("transposed", "stories260K", {}, reshaped("blk.0.ffn_up.weight", (64, 172)), {("shape", "blk.0.ffn_up.weight")}),
    ("an expert less", "mixtral-96", {}, reshaped("blk.0.ffn_up_exps.weight", (7, 160, 96)),
     {("shape", "blk.0.ffn_up_exps.weight")}),
    ("an embedding of fewer rows", "qwen3-96", {}, reshaped("token_embd.weight", (540, 96)),
     {("tokenizer", T + "tokens")}),
    ("truncated vocabulary", "stories260K", tokens(500), None, {("tokenizer", T + "tokens")}),
    ("truncated vocabulary, no vocab_size", "qwen3-96", tokens(540), None, {("tokenizer", T + "tokens")}),
    ("no tokens", "stories260K", {T + "tokens": None}, None, {("tokenizer", T + "tokens")}),
    ("no tokenizer", "stories260K", {T + "model": None}, None, {("tokenizer", T + "model")}),
    ("scores of others", "stories260K", {T + "scores": Array("f32", [0.0] * 511)}, None, {("tokenizer", T + "scores")}),
    ("a score that is no number", "stories260K", {T + "scores": Array("f32", [float("nan")] * 512)}, None,
     {("tokenizer", T + "scores")}),
    ("types of others", "kjv-llama", {T + "token_type": Array("i32", [1] * 3)}, None,
     {("tokenizer", T + "token_type")}),
    ("an unknown type", "stories260K", {T + "token_type": Array("i32", [1] * 511 + [9])}, None,
     {("tokenizer", T + "token_type")}),
    ("types as texts", "stories260K", {T + "token_type": Array("str", ["1"] * 512)}, None,
     {("tokenizer", T + "token_type")}),
    ("an id beyond", "stories260K", {T + "eos_token_id": u32(512)}, None, {("tokenizer", T + "eos_token_id")}),
    ("an id of another type", "kjv-llama", {T + "bos_token_id": Value("i32", 0)}, None,
     {("tokenizer", T + "bos_token_id")}),
    ("no merges", "kjv-llama", {T + "merges": None}, None, {("tokenizer", T + "merges")}),
    ("a merge without space", "kjv-llama", merges(lambda old: [*old[:9], "ab", *old[10:]]), None,
     {("tokenizer", T + "merges")}),
    ("a merge of no tokens", "kjv-llama", merges(lambda old: [*old, "q zzzz"]), None, {("tokenizer", T + "merges")}),
    ("a merge into no token", "kjv-llama", merges(lambda old: [*old, "th q"]), None, {("tokenizer", T + "merges")}),
    ("a template that does not parse", "kjv-llama", {"tokenizer.chat_template": text("{% if x %}{{ y")}, None,
     {("template", "tokenizer.chat_template")}),
    ("a template that is no text", "kjv-llama", {"tokenizer.chat_template.tool": u32(4)}, None,
     {("template", "tokenizer.chat_template.tool")}),
]  # fmt: skip


@pytest.mark.parametrize(("name", "keys", "tensors", "wanted"), [row[1:] for row in DAMAGE], ids=[r[0] for r in DAMAGE])
def test_damage_is_named(
    name: str, keys: Keys | Callable[[Path], Keys], tensors: Tensors | None, wanted: set[tuple[str, str]],
    good: dict[str, Path], tmp_path: Path,
) -> None:  # fmt: skip
    if "template" in {kind for kind, _ in wanted}:
        pytest.importorskip("jinja2")
    given = keys(good[name]) if callable(keys) else keys
    path = rewritten(good[name], tmp_path / "bad.gguf", given, tensors or (lambda old: old))
    result = check(path)
    assert named(result) == wanted
    assert not result.passed and {finding.check for finding in result.findings} <= CHECKS.keys()


def test_warnings_that_do_not_fail(good: dict[str, Path], tmp_path: Path) -> None:
    doubtful: list[Keys] = [
        {T + "pre": None}, {T + "pre": text("my-own")}, {"general.architecture": text("unheard-of")},
        {"llama.attention.head_count_kv": Array("u32", [2] * 6)},
    ]  # fmt: skip
    for number, keys in enumerate(doubtful):
        result = check(rewritten(good["kjv-llama"], tmp_path / f"{number}.gguf", keys))
        assert len(result.findings) == 1 and result.passed and not replace(result, strict=True).passed


def test_an_id_that_stands_for_none_is_fine(good: dict[str, Path], tmp_path: Path) -> None:
    path = rewritten(good["stories260K"], tmp_path / "out.gguf", {T + "padding_token_id": u32((1 << 32) - 1)})
    assert check(path).findings == ()


@pytest.mark.parametrize(
    ("template", "failed"),
    [
        ("{% for m in messages %}{{ m.content }}{% endfor %}", False),
        ("{% generation %}{{ x }}{% endgeneration %}", False),  # a tag of transformers
        ("{% for m in x %}{% if not m %}{% break %}{% endif %}{% endfor %}", False),
        ("{{ ''.__class__.__mro__ }}{{ 10 ** 10 ** 10 }}", False),  # parsed, never run
        ("{% endfor %}", True),
        ("{{ unclosed", True),
        ("(" * 5000 + "{{" + "(" * 50_000, True),
        ("x" * (2 << 20), True),
    ],
)
def test_templates_are_parsed_and_never_run(template: str, failed: bool) -> None:
    pytest.importorskip("jinja2")
    assert bool(list(templates({"tokenizer.chat_template": text(template)}))) is failed


def test_templates_that_nothing_here_can_parse_are_said_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "jinja2", None)
    (finding,) = templates({"tokenizer.chat_template": text("{% endfor %}"), "tokenizer.chat_template.tool": text("")})
    assert (finding.check, finding.subject, finding.failed) == ("template", "tokenizer.chat_template", False)
    assert "not looked at" in str(finding) and "pip install jinja2" in str(finding)
    assert not list(templates({"general.name": text("{% endfor %}")})), "where there is none, nothing is missing"


# -------------------------------------------------------------------------------- Hugging Face folders


def folder_of(tmp_path: Path, config: dict[str, Any] | None = None, **weights: Any) -> Path:
    """A small Llama folder; `weights` replaces tensors, or (None) leaves them out."""
    changed = {**builders.llama_weights(), **{name.replace("__", "."): value for name, value in weights.items()}}
    kept = {name: value for name, value in changed.items() if value is not None}
    return builders.llama_folder(tmp_path / "model", config=config, weights=kept)


def test_a_built_folder_passes(tmp_path: Path) -> None:
    assert check(folder_of(tmp_path)).findings == ()


EMBED, HEAD = "model__embed_tokens__weight", "lm_head__weight"
FOLDERS: list[tuple[str, dict[str, Any], dict[str, Any], set[tuple[str, str]]]] = [
    ("vocab_size", {"vocab_size": 510}, {}, {
        ("shape", "model.embed_tokens.weight"), ("shape", "lm_head.weight")}),
    ("an embedding smaller than the tokenizer", {"vocab_size": 500}, {
        EMBED: np.ones((500, 32), np.float32), HEAD: np.ones((500, 32), np.float32)}, {("tokenizer", "model")}),
    ("a billion layers", {"num_hidden_layers": 10**9}, {}, {("metadata", "config.json")}),
    ("a billion experts", {"num_local_experts": 10**9}, {}, {("metadata", "config.json")}),
    ("hidden_size missing", {"hidden_size": None}, {}, {("metadata", "config.json")}),
    ("heads", {"num_key_value_heads": 3}, {}, {
        ("metadata", "config.json: num_key_value_heads"), ("shape", "model.layers.0.self_attn.k_proj.weight"),
        ("shape", "model.layers.0.self_attn.v_proj.weight")}),
    ("eos beyond", {"eos_token_id": [2, 512]}, {}, {("tokenizer", "config.json: eos_token_id")}),
    ("no head", {}, {HEAD: None}, {("tied", "lm_head.weight")}),
    ("a head that differs from what it is tied to", {"tie_word_embeddings": True}, {}, {("tied", "lm_head.weight")}),
    ("missing", {}, {"model__layers__0__mlp__up_proj__weight": None}, {
        ("missing", "model.layers.0.mlp.up_proj.weight")}),
    ("extra", {}, {"model__layers__0__mlp__side__weight": np.ones((2, 2), np.float32)}, {
        ("extra", "model.layers.0.mlp.side.weight")}),
    ("nan", {}, {"model__norm__weight": np.full(32, np.nan, np.float32)}, {("nonfinite", "model.norm.weight")}),
]  # fmt: skip


@pytest.mark.parametrize(("config", "weights", "wanted"), [row[1:] for row in FOLDERS], ids=[r[0] for r in FOLDERS])
def test_damaged_folders(
    config: dict[str, Any], weights: dict[str, Any], wanted: set[tuple[str, str]], tmp_path: Path
) -> None:
    assert named(check(folder_of(tmp_path, config, **weights))) == wanted


def test_a_tied_head_that_is_stored_and_the_same_passes(tmp_path: Path) -> None:
    own = builders.llama_weights()["model.embed_tokens.weight"]
    assert check(folder_of(tmp_path, {"tie_word_embeddings": True}, **{HEAD: own})).findings == ()
    assert check(folder_of(tmp_path, {"tie_word_embeddings": True}, **{HEAD: None})).findings == ()


def test_an_expert_that_is_missing(tmp_path: Path) -> None:
    folder = models.build_model("mixtral-96", tmp_path)
    name = "model.layers.1.block_sparse_moe.experts.5.w2.weight"
    with converter.open_checkpoint(folder) as model:
        kept = {key: tensor.array() for key, tensor in model.tensors.items() if key != name}
    (folder / "model.safetensors").write_bytes(builders.safetensors_of(kept))
    assert named(check(folder)) == {("missing", name)}


@pytest.mark.parametrize(
    ("file", "content", "kind"),
    [
        ("tokenizer.json", b"{", "tokenizer"),
        ("tokenizer_config.json", b'{"chat_template": "{% if %}"}', "template"),
        ("tokenizer.json", None, "tokenizer"),
    ],
)
def test_tokenizer_files(file: str, content: bytes | None, kind: str, tmp_path: Path) -> None:
    if kind == "template":
        pytest.importorskip("jinja2")
    folder = folder_of(tmp_path)
    if content is None:
        (folder / file).unlink()
    else:
        (folder / file).write_bytes(content)
    (finding,) = check(folder).findings
    assert finding.check == kind and finding.failed == (content is not None)


def test_an_index_that_lies(tmp_path: Path) -> None:
    weights = builders.llama_weights()
    names = sorted(weights)
    parts = [{name: weights[name] for name in names[:5]}, {name: weights[name] for name in names[5:]}]
    folder = builders.sharded(tmp_path / "model", parts)
    shutil.copyfile(STORIES / "tokenizer.json", folder / "tokenizer.json")
    assert check(folder).findings == ()
    (folder / "model-00002-of-00002.safetensors").unlink()
    result = check(folder)
    assert named(result) == {("structure", "model")} and result.error is not None and result.error.exit_code == 14


# ---------------------------------------------------------------------------------------- the command


def misaligned(data: bytes) -> bytes:
    """The first tensor's offset, which is 0 and follows its name, shape and type, moved by one."""
    at = data.index(b"output_norm.weight") + len(b"output_norm.weight")
    n_dims = int.from_bytes(data[at : at + 4], "little")
    at += 4 + 8 * n_dims + 4
    offset = int.from_bytes(data[at : at + 8], "little") + 1
    return data[:at] + offset.to_bytes(8, "little") + data[at + 8 :]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (misaligned, "aligned"),
        (lambda data: data[:-1000], "truncated"),
        (lambda data: data + bytes(64), "follow the last tensor"),
        (lambda data: data[:8], "needs"),
    ],
    ids=["misaligned", "truncated", "appended", "header"],
)
def test_what_cannot_be_opened_is_a_finding_and_its_own_exit_code(
    change: Callable[[bytes], bytes], words: str, good: dict[str, Path], tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    path = tmp_path / "bad.gguf"
    path.write_bytes(change(good["stories260K"].read_bytes()))
    assert main(["check", "--json", str(path)]) == 11
    report = json.loads(capsys.readouterr().out)
    (finding,) = report["findings"]
    assert (finding["check"], finding["subject"], report["passed"]) == ("structure", "bad.gguf", False)
    assert words in finding["message"] + finding["hint"]


def test_other_formats_are_checked_as_far_as_they_say_something(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    converter.convert(STORIES / "model.safetensors", path, converter.Request(tensors_only=True))
    result = check(path)
    assert (result.findings, result.steps, result.format) == ((), ("structure", "values"), "onnx")


def test_a_graph_of_ours_is_checked_as_the_gguf_that_it_is(tmp_path: Path) -> None:
    converter.convert(STORIES, tmp_path / "model.onnx")
    assert [str(finding.failed) for finding in check(tmp_path / "model.onnx").findings] == ["False"]  # no tokenizer
    converter.convert(STORIES, f"{tmp_path / 'out'}/", converter.Request(format="onnx"))
    result = check(tmp_path / "out/onnx/model.onnx")
    assert not result.findings and "tokenizer" in result.steps


def test_text_json_and_junit(good: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", str(good["kjv-llama"])]) == 0
    assert "kjv-llama.gguf: ok: nothing found" in capsys.readouterr().out
    assert main(["check", "--quiet", str(good["kjv-llama"])]) == 0
    assert capsys.readouterr().out == ""
    bad = rewritten(good["kjv-llama"], tmp_path / "bad.gguf", {T + "eos_token_id": u32(9999), T + "pre": None})
    assert main(["check", str(bad), "--junit", str(tmp_path / "out.xml")]) == 41
    out = capsys.readouterr().out
    assert "failed: tokenizer.ggml.eos_token_id: is 9999" in out and "warning: tokenizer.ggml.pre" in out
    suite = ElementTree.parse(tmp_path / "out.xml").getroot()
    assert suite.attrib["failures"] == "1" and "9999" in (suite.findtext("testsuite/testcase/failure") or "")
    assert main(["check", "--json", str(bad)]) == 41
    report = json.loads(capsys.readouterr().out)
    assert [finding["failed"] for finding in report["findings"]] == [True, False]
    assert report["steps"] == [step.name for step in STEPS if step.name != "tokenizer files"]


def test_a_sound_model_runs(good: dict[str, Path], tmp_path: Path) -> None:
    pytest.importorskip("llama_cpp")
    assert "llama.cpp" in check(good["kjv-llama"], runtime=True).ran
    converter.convert(good["kjv-llama"], tmp_path / "out.gguf", converter.Request(split_max_tensors=20))
    result = check(tmp_path / "out-00003-of-00003.gguf", runtime=True)
    assert "generated 8 tokens" in result.ran and result.findings == ()


def test_a_folder_runs(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("transformers")
    assert main(["check", "--runtime", str(STORIES)]) == 0
    assert "generated 8 tokens" in capsys.readouterr().out


def test_what_a_runtime_refuses_fails(good: dict[str, Path], tmp_path: Path) -> None:
    """A pre-tokenizer that is not known here may be a new one: only a warning, until the runtime is asked."""
    pytest.importorskip("llama_cpp")
    path = rewritten(good["kjv-llama"], tmp_path / "bad.gguf", {T + "pre": text("never-heard-of")})
    assert check(path).passed
    assert named(check(path, runtime=True)) == {("behaviour", "bad.gguf")}


def test_a_damaged_model_is_not_run(good: dict[str, Path], tmp_path: Path) -> None:
    path = rewritten(good["kjv-llama"], tmp_path / "bad.gguf", {T + "eos_token_id": u32(9999)})
    result = check(path, runtime=True)
    assert result.ran == "" and result.findings[-1].message.startswith("not run")
    np.savez(tmp_path / "plain.npz", t=np.ones(3))
    (finding,) = check(tmp_path / "plain.npz", runtime=True).findings
    assert not finding.failed and "npz" in finding.message


def crash(*_: object) -> None:
    os._exit(1)


def test_a_runtime_that_crashes_is_a_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(generation, "_run", crash)
    ran = generation.try_out(KJV, "hf")
    assert ran.finding is not None and ran.finding.failed and "crashed" in ran.finding.message


def test_no_such_file_and_cancelling(good: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(OutputError):
        check(tmp_path / "absent.gguf")
    with pytest.raises(Interrupted):
        check(good["kjv-llama"], progress=lambda _: False)


def test_threads_do_not_change_the_result(good: dict[str, Path], tmp_path: Path) -> None:
    path = shutil.copyfile(good["kjv-llama"], tmp_path / "bad.gguf")
    for block in (0, 3, 700):
        patched(path, "blk.4.ffn_gate.weight", block * DTYPES["Q4_K"].type_size, b"\xff\xff")
    one, many = check(path, threads=1), check(path, threads=7)
    assert one.findings == many.findings and "d of block 0" in one.findings[0].message
    assert "3 such blocks" in one.findings[0].message


def test_relations_hold_in_every_block() -> None:
    """Numbers that differ from block to block are compared block by block."""
    llama, model = architectures()["llama"], view(Checkpoint("gguf", Path("a.gguf"), "gguf", {}))
    numbers: dict[str, Any] = {"n_layer": 2, "n_embd": 8, "n_head": [4, 8], "n_head_kv": [2, 8], "n_rot": 2}
    assert [str(finding) for finding in rows.relations(model, llama, numbers)] == []
    wrong = rows.relations(model, llama, {**numbers, "n_head_kv": [2, 3]})
    assert [str(finding) for finding in wrong] == [
        "llama.attention.head_count_kv: is [2, 3]: does not divide the number of heads"
    ]


def test_several_files(good: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """All are looked at, and all are in what is written; the exit code is that of the first that is not sound."""
    fine, cut, absent = good["stories260K"], tmp_path / "cut.gguf", tmp_path / "absent.gguf"
    cut.write_bytes(fine.read_bytes()[:-1000])
    assert main(["check", str(fine), str(good["kjv-llama"]), "--quiet"]) == 0
    report = tmp_path / "r.xml"
    argv = ["check", str(fine), str(cut), str(absent), "--report", str(report)]
    assert main(argv) == 11
    out = capsys.readouterr().out
    assert out.count(": ok: ") == 1 and out.count(": FAILED: ") == 2
    assert "(the file is truncated; download it again)" in out and "absent.gguf: No such file" in out
    suites = {suite.attrib["name"]: suite for suite in ElementTree.parse(report).getroot()}
    assert [suite.attrib["failures"] for suite in suites.values()] == ["0", "1", "1"]
    assert list(suites) == [str(fine), str(cut), str(absent)] and "\\n" not in report.read_text("utf-8")
    assert main([*argv, "--json"]) == 11
    found = json.loads(capsys.readouterr().out)
    assert [each["passed"] for each in found["files"]] == [True, False, False] and found["passed"] is False
    assert [each.get("error", {}).get("exit_code") for each in found["files"]] == [None, 11, 50]
    assert main(["check", str(absent), str(cut), "--quiet"]) == 50
