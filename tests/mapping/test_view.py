"""One view of a model: the same answers in every dialect that can give them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.builders import llama_folder, safetensors_of
from support.families import FAMILIES, NO_TOKENIZER, family_config, random_tensors, write

import converter
from converter import Request
from converter.architectures.spec import Architecture, HFClass, HParam, T
from converter.checkpoint import Checkpoint
from converter.errors import ArchitectureError, ConverterError
from converter.formats.registry import formats, open_checkpoint
from converter.mapping import detect
from converter.mapping.view import HEADS, VIEWS, ModelView, view
from converter.metadata import Array, Value, text
from converter.request import Source
from converter.tensors.dtypes import F32
from converter.tensors.tensor import from_array

# A kind that GGUF has no word for is not written there.
SAID_BY_CONFIG_ALONE = {"rope_type"}


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as closing:
        yield closing


def both(source: Path, stack: ExitStack, request: Request) -> tuple[ModelView, ModelView]:
    """A folder as it is, and as the GGUF made of it."""
    target = source.parent / "model.gguf"
    converter.convert(source, target, request)
    one, other = (stack.enter_context(open_checkpoint(Source(path))) for path in (source, target))
    return view(one), view(other)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_model_is_the_same_in_both_dialects(family: str, tmp_path: Path, stack: ExitStack) -> None:
    config = family_config(family, rms_norm_eps=2.0**-10)  # which F32 holds, and its shortest decimal is
    folder, gguf = both(write(tmp_path / "hf", config, random_tensors(config, "F32"), "F32"), stack, NO_TOKENIZER)
    assert folder.architecture is gguf.architecture and folder.architecture is not None
    assert folder.hparams is not None and gguf.hparams is not None
    assert folder.name == gguf.name == folder.architecture.gguf
    assert folder.whole and gguf.whole and not folder.unknown and not gguf.unknown
    assert folder.n_rows == gguf.n_rows == config["vocab_size"]
    for name in gguf.hparams.keys() - SAID_BY_CONFIG_ALONE:
        assert folder.hparams[name] == gguf.hparams[name], name
    shapes = [{name: tensor.info.shape for name, tensor in each.ggml.items()} for each in (folder, gguf)]
    assert shapes[0] == shapes[1]
    assert {key: gguf.keys[key] for key in folder.keys} == folder.keys
    assert {folder.embedding, folder.head} <= folder.checkpoint.tensors.keys()
    assert {gguf.embedding, gguf.head} <= gguf.checkpoint.tensors.keys()


@pytest.mark.parametrize("family", FAMILIES)
def test_instances_are_the_tensors_of_the_file(family: str, tmp_path: Path, stack: ExitStack) -> None:
    config = family_config(family)
    source = write(tmp_path / "hf", config, random_tensors(config, "F32"), "F32")
    for each in both(source, stack, NO_TOKENIZER):
        assert each.architecture is not None and each.hparams is not None
        stored = {name: tensor.info.shape for name, tensor in each.canonical.items() if name != "rope_freqs.weight"}
        instances = [i for i in each.instances(each.architecture, each.hparams) if not i.rule.generator]
        shapes = {name: shape for i in instances for name, shape in zip(i.names, i.shapes, strict=True)}
        assert len(shapes) == sum(len(i.names) for i in instances), "each once"
        may_lack = {name for i in instances if i.rule.optional or i.rule.read_only for name in i.names}
        assert shapes.keys() - may_lack <= stored.keys()
        assert stored.items() <= shapes.items()


def test_other_spellings_are_canonical_and_what_is_dropped_is_not_there(tmp_path: Path, stack: ExitStack) -> None:
    config = family_config("llama")
    tensors = random_tensors(config, "F32")
    renamed = {name.removeprefix("model."): array for name, array in tensors.items()}
    renamed["layers.0.self_attn.rotary_emb.inv_freq"] = np.ones(16, np.float32)
    model = view(stack.enter_context(open_checkpoint(Source(write(tmp_path / "hf", config, renamed, "F32")))))
    assert model.canonical.keys() == tensors.keys()
    assert model.n_rows == config["vocab_size"]


def test_the_tokenizer_is_the_same_keys(tmp_path: Path, stack: ExitStack) -> None:
    folder, gguf = both(llama_folder(tmp_path / "hf"), stack, Request())
    assert folder.tokenizer() == gguf.tokenizer() is not None
    bare = stack.enter_context(open_checkpoint(Source(llama_folder(tmp_path / "bare", tokenizer=False))))
    assert view(bare).tokenizer() is None


def test_what_config_json_says_of_the_head(tmp_path: Path, stack: ExitStack) -> None:
    for said, tied in ((True, True), (False, False), (None, None), ("yes", None)):
        folder = llama_folder(tmp_path / str(said), config={"tie_word_embeddings": said})
        assert view(stack.enter_context(open_checkpoint(Source(folder)))).tied is tied
    headless = llama_folder(tmp_path / "encoder", config={"architectures": ["LlamaModel"], "tie_word_embeddings": True})
    assert view(stack.enter_context(open_checkpoint(Source(headless)))).tied is None


def test_plain_arrays_are_nothing_in_particular(tmp_path: Path, stack: ExitStack) -> None:
    path = tmp_path / "plain.safetensors"
    path.write_bytes(safetensors_of({"model.embed_tokens.weight": np.ones((4, 2), np.float32)}))
    model = view(stack.enter_context(open_checkpoint(Source(path))))
    assert model.architecture is None and model.hf_class is None and model.hparams is None and not model.unknown
    assert model.name is None and model.n_rows is None and model.tied is None and model.tokenizer() is None
    assert not model.named and not model.keyed and model.whole
    assert model.keys == model.ggml == model.config == {}
    assert model.canonical is model.checkpoint.tensors


def test_an_architecture_that_is_not_known_here() -> None:
    gguf = view(Checkpoint("gguf", Path("a.gguf"), "gguf", {}, {"general.architecture": text("mystery")}))
    assert gguf.architecture is None and gguf.name == "mystery" and "no architecture answers to" in gguf.unknown
    folder = view(Checkpoint("hf", Path("a"), "hf", {}, {"architectures": ["MysteryForCausalLM"]}))
    assert folder.architecture is None and folder.name == "MysteryForCausalLM" and "Mystery" in folder.unknown
    assert view(folder.checkpoint, "llama").architecture is not None
    nothing = view(Checkpoint("gguf", Path("a.gguf"), "gguf", {}, {}))
    assert nothing.architecture is None and nothing.name is None and not nothing.unknown


def test_parts_of_models_are_not_whole(tmp_path: Path, stack: ExitStack) -> None:
    whole = stack.enter_context(open_checkpoint(Source(llama_folder(tmp_path / "hf"))))
    for kind, answer in (("model", True), ("adapter", False), ("mmproj", False), ("imatrix", False), ("vocab", False)):
        config = {"general.architecture": text("llama"), "general.type": text(kind)}
        assert view(whole.replace(dialect="gguf", config=config)).whole is answer
        assert not view(Checkpoint("gguf", Path("a.gguf"), "gguf", {}, config)).whole


@pytest.mark.parametrize(
    ("said", "problem"),
    [
        ({"num_hidden_layers": 1 << 30}, f"{1 << 30} layers, and the file has 12 tensors"),
        ({"num_local_experts": (1 << 18) + 1}, f"{(1 << 18) + 1} experts in each of 1 layers, which no model has"),
    ],
)
def test_a_config_cannot_claim_more_than_the_file_holds(
    said: dict[str, int], problem: str, tmp_path: Path, stack: ExitStack
) -> None:
    model = view(stack.enter_context(open_checkpoint(Source(llama_folder(tmp_path / "hf", config=said)))))
    with pytest.raises(ArchitectureError, match=f"config.json: {problem}"):
        _ = model.hparams
    assert model.canonical is model.checkpoint.tensors, "no name of a billion layers is made"


def test_as_many_experts_as_the_limit_are_read(tmp_path: Path, stack: ExitStack) -> None:
    folder = llama_folder(tmp_path / "hf", config={"num_local_experts": 1 << 18})
    hparams = view(stack.enter_context(open_checkpoint(Source(folder)))).hparams
    assert hparams is not None and hparams["n_expert"] == 1 << 18


def test_every_dialect_of_a_format_has_a_view() -> None:
    adapters = "peft"  # opened beside a model, by no format
    assert {each.dialect for each in formats().values()} | {adapters} == VIEWS.keys()


TOY = Architecture(
    "toy",
    (HFClass("ToyModel", "toy"),),
    (
        HParam("n_layer", ("n_layer",), ("block_count",), required=True),
        HParam("n_embd", ("n_embd",), ("embedding_length",)),
        HParam("n_head_kv", ("n_head_kv",), ("attention.head_count_kv",), type="u32 or u32[]"),
        HParam("kinds", ("kinds",), (), type="str[]"),
    ),
    (
        T("l.{block}.k", "blk.{block}.attn_k.weight", shape=("n_head_kv * 2", "n_embd"), when="kinds[block] == 'full'"),
        T("l.{block}.s", "blk.{block}.ssm_in.weight", shape=("n_embd",), when="kinds[block] != 'full'"),
        T("l.{block}.e.{expert}", "blk.{block}.e_exps.weight", shape=(2, 3), when="0"),
    ),
)  # fmt: skip
TOY_NUMBERS = {"n_layer": 3, "n_embd": 8, "n_head_kv": [4, 0, 2], "kinds": ["full", "state", "full"]}


@pytest.mark.parametrize(
    ("dialect", "names"),
    [
        ("hf", ("l.0.k", "l.2.k", "l.1.s")),
        ("gguf", ("blk.0.attn_k.weight", "blk.2.attn_k.weight", "blk.1.ssm_in.weight")),
    ],
)
def test_instances_differ_from_block_to_block(dialect: str, names: tuple[str, ...]) -> None:
    model = view(Checkpoint("any", Path("toy"), dialect, {}))
    instances = list(model.instances(TOY, TOY_NUMBERS))
    assert [(i.names, i.shapes) for i in instances] == [
        (names[0:1], ((8, 8),)), (names[1:2], ((4, 8),)), (names[2:3], ((8,),))
    ]  # fmt: skip
    assert [i.gguf for i in instances] == [
        ("blk.0.attn_k.weight",), ("blk.2.attn_k.weight",), ("blk.1.ssm_in.weight",)
    ]  # fmt: skip


def test_the_names_of_heads_and_embeddings() -> None:
    assert HEADS == {"output.weight": "token_embd.weight", "lm_head.weight": "model.embed_tokens.weight"}


def made_up(dialect: str | None, config: dict[str, Any], *shapes: tuple[str, tuple[int, ...]]) -> ModelView:
    tensors = {name: from_array(name, np.zeros(shape, np.float32), F32, "test") for name, shape in shapes}
    return view(Checkpoint("any", Path("toy"), dialect, tensors, config))


@pytest.mark.parametrize(
    ("dialect", "flags", "words"),
    [
        (None, (False, False, False), ("", "", "", "")),
        (
            "hf",
            (True, False, True),
            ("model.embed_tokens.weight", "lm_head.weight", "config.json", "config.json makes"),
        ),
        ("gguf", (True, True, False), ("token_embd.weight", "output.weight", "general.architecture", "the keys make")),
    ],
)
def test_the_words_of_a_dialect(dialect: str | None, flags: tuple[bool, ...], words: tuple[str, ...]) -> None:
    model = made_up(dialect, {})
    assert (model.named, model.keyed, model.filed) == flags
    assert (model.embedding, model.head, model.identity, model.makes) == words
    assert model.subject == words[2] and not model.whole and model.n_rows is None


def test_where_a_hyperparameter_is_said() -> None:
    both, neither = HParam("n", ("n_layer", "layers"), ("block_count", "blocks")), HParam("x")
    said = {dialect: [made_up(dialect, {}).said_by(TOY, row) for row in (both, neither)] for dialect in VIEWS}
    gguf = ["toy.block_count", "x"]
    assert said == {None: gguf, "peft": gguf, "hf": ["config.json: n_layer", "x"], "gguf": gguf}


def test_the_subject_of_a_gguf_is_its_architecture() -> None:
    assert made_up("gguf", {"general.architecture": text("llama")}).subject == "llama"
    mystery = made_up("gguf", {"general.architecture": text("mystery")}, ("x", (1,)))
    assert mystery.subject == "general.architecture" and mystery.hparams is None


@pytest.mark.parametrize(
    ("dialect", "shape", "n_rows"),
    [("hf", (5, 2), 5), ("gguf", (5, 2), 5), ("hf", (), None), ("gguf", (), None), (None, (5, 2), None)],
)
def test_rows_of_the_embedding(dialect: str | None, shape: tuple[int, ...], n_rows: int | None) -> None:
    name = {"hf": "model.embed_tokens.weight"}.get(str(dialect), "token_embd.weight")
    assert made_up(dialect, {}, (name, shape), ("other", (3, 3))).n_rows == n_rows
    assert made_up(dialect, {}, ("other", (3, 3))).n_rows is None


@pytest.mark.parametrize(
    ("listed", "name"), [(["MysteryForCausalLM", "B"], "MysteryForCausalLM"), ([], None), ([7], "7"), ("Mystery", None)]
)
def test_what_an_unknown_folder_calls_itself(listed: Any, name: str | None) -> None:
    model = made_up("hf", {"architectures": listed})
    assert model.name == name and "\n" not in model.unknown and model.unknown.startswith("no architecture answers to")
    assert model.keys == {} and model.ggml == {} and model.hparams is None
    assert model.config == {"architectures": listed, "rope": {}}


def test_the_tokenizer_of_a_gguf_is_its_keys() -> None:
    keys = {"tokenizer.ggml.model": text("gpt2"), "tokenizer.ggml.tokens": Array("str", ["a"])}
    assert made_up("gguf", {"general.name": text("n"), **keys}).tokenizer() == keys
    assert made_up("gguf", {"tokenizer.ggml.model": text("gpt2")}).tokenizer() is None


def numbers(n_layer: int, n_expert: int) -> ModelView:
    """A GGUF of llama that claims so many, with three tensors."""
    claims: dict[str, Any] = {"block_count": n_layer, "embedding_length": 8, "attention.head_count": 2}
    claims |= {"feed_forward_length": 8, "context_length": 8, "attention.layer_norm_rms_epsilon": 1e-5}
    config = {f"llama.{key}": Value("f32" if isinstance(v, float) else "u32", v) for key, v in claims.items()}
    config |= {"general.architecture": text("llama"), "llama.expert_count": Value("u32", n_expert)}
    config |= {"tokenizer.ggml.tokens": Array("str", ["a", "b", "c"])}
    return made_up("gguf", config, ("token_embd.weight", (5, 8)), ("output.weight", (5, 8)), ("c", (1,)))


@pytest.mark.parametrize(
    ("n_layer", "n_expert", "problem"),
    [
        (3, 1, ""),
        (4, 1, "llama: 4 layers, and the file has 3 tensors"),
        (2, 1 << 17, ""),
        (2, (1 << 17) + 1, f"llama: {(1 << 17) + 1} experts in each of 2 layers, which no model has"),
    ],
)
def test_what_a_gguf_cannot_claim(n_layer: int, n_expert: int, problem: str) -> None:
    model = numbers(n_layer, n_expert)
    if problem:
        with pytest.raises(ArchitectureError, match=f"^{problem}$"):
            _ = model.hparams
    else:
        assert model.hparams is not None and model.hparams["n_layer"] == n_layer
        assert model.hparams["n_vocab"] == 5, "what the embedding has, not the tokenizer"


def test_a_part_of_a_model_may_have_fewer_tensors_than_layers() -> None:
    model = numbers(4, 1)
    part = view(model.checkpoint.replace(config={**model.checkpoint.config, "general.type": text("adapter")}))
    assert part.hparams is not None and part.hparams["n_layer"] == 4


def test_a_folder_without_tensors_needs_no_names() -> None:
    model = made_up("hf", family_config("llama"))
    assert model.hparams is not None and model.canonical is model.checkpoint.tensors


def test_what_has_a_rule_is_not_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    rules = (T("vision.w", "x", shape=(1,)),)
    architecture = Architecture("toy", TOY.hf, TOY.hparams[:1], rules, ignore=("vision.{rest}",))
    monkeypatch.setattr(detect, "architectures", lambda *_: {"toy": architecture})
    config = {"architectures": ["ToyModel"], "n_layer": 1}
    assert list(made_up("hf", config, ("vision.w", (1,)), ("vision.b", (1,))).canonical) == ["vision.w"]


@pytest.mark.parametrize("name", ["tokenizer.json", "vocab.txt"])
def test_which_files_are_a_tokenizer(name: str, tmp_path: Path) -> None:
    model = made_up("hf", family_config("llama"))
    assert view(model.checkpoint.replace(assets={"README.md": tmp_path / "README.md"})).tokenizer() is None
    (tmp_path / name).write_text("{")
    with pytest.raises(ConverterError):
        view(model.checkpoint.replace(assets={name: tmp_path / name})).tokenizer()


STACKED = Architecture(
    "toy", TOY.hf,
    (*TOY.hparams[:1], HParam("n_expert", ("n_expert",), ("expert_count",), "u32 or u32[]", default=0)),
    (
        T("l.{block}.e.{expert}.w", "blk.{block}.exps", shape=(2, 3), when="n_expert > 0"),
        T("head", "output"),  # of any shape
    ),
)  # fmt: skip


@pytest.mark.parametrize(
    ("dialect", "expected"),
    [
        ("hf", [(("l.1.e.0.w", "l.1.e.1.w"), ((2, 3), (2, 3))), (("head",), ())]),
        ("gguf", [(("blk.1.exps",), ((2, 2, 3),)), (("output",), ())]),
    ],
)
def test_instances_of_experts_and_of_any_shape(dialect: str, expected: list[Any]) -> None:
    instances = made_up(dialect, {}).instances(STACKED, {"n_layer": 2, "n_expert": [0, 2]})
    assert [(i.names, i.shapes) for i in instances] == expected


@pytest.mark.parametrize(("most", "refused"), [(1 << 17, False), ((1 << 17) + 1, True)])
def test_experts_of_each_block_are_counted(most: int, refused: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(detect, "architectures", lambda *_: {"toy": STACKED})
    for experts in ([], [most, 0]):
        config = {"architectures": ["ToyModel"], "n_layer": 2, "n_expert": experts}
        model = made_up("hf", config, ("a", (1,)), ("b", (1,)))
        if refused and experts:
            with pytest.raises(ArchitectureError, match=f"{most} experts in each of 2 layers, which no model has"):
                _ = model.hparams
        else:
            assert model.hparams == {"n_layer": 2, "n_expert": experts}
