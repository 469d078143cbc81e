"""Contracts that every architecture keeps by being registered."""

from __future__ import annotations

import ast
import itertools
import re
import string
from collections.abc import Container, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import converter.architectures as package
from converter.architectures import architectures, traits_of
from converter.architectures.runtime import RUNTIME
from converter.architectures.settings import NEUTRAL, ONLY_WHEN
from converter.architectures.spec import DENSE, Architecture, HFClass, HParam, T, TensorRule, amended, pair, without
from converter.architectures.traits import Traits
from converter.errors import ArchitectureError
from converter.mapping.detect import detect
from converter.mapping.generators import GENERATORS
from converter.mapping.hparams import hparam_metadata, read_config, read_metadata, write_config
from converter.metadata import TYPES, Metadata, Value
from converter.quant.recipes import ModelFacts
from converter.tensors.expressions import BLOCK, PRESENT, ExpressionError, compute, evaluate, names
from converter.tensors.ops import Pick, Product, Rows, Stack, apply, infer, inverse

FOLDER = Path(package.__file__).parent
TYPES_OF_ROWS = ("__init__.py", "defaults.py", "spec.py", "traits.py")
DATA_FILES = sorted(path for path in FOLDER.glob("*.py") if path.name not in TYPES_OF_ROWS)
EVERY = list(architectures().values())
RULES = [(architecture, rule) for architecture in EVERY for rule in architecture.tensors]
FIELDS = {"block", "expert"}
#: Classes that are another architecture's unless a config says more: a vision-language model's text alone is a plain
#: text model.
BORROWED = [hf for architecture in EVERY for hf in architecture.hf if hf.takes is not None]


def rule_id(value: object) -> str:
    if isinstance(value, Architecture):
        return value.gguf
    return ",".join((*value.hf, *value.gguf)) if isinstance(value, TensorRule) else str(value)


def fields_of(template: str) -> list[str]:
    """The expressions in a template: `block`, `expert`, or what a model's hparams say."""
    return [field for _, field, _, _ in string.Formatter().parse(template) if field is not None]


def numbered(template: str, block: int = 3) -> str:
    """A name of block 3; what hparams say is block 3, too."""
    return re.sub(r"\{(?!expert\})[^}]*\}", str(block), template)


def single(value: object) -> object:
    """A number as a file holds it."""
    return float(np.float32(value)) if isinstance(value, float) else value


def stored(metadata: Metadata, less: set[str]) -> Metadata:
    """Keys as a file holds them."""
    kept = {key: entry for key, entry in metadata.items() if key not in less}
    return {k: Value(v.type, single(v.value)) if isinstance(v, Value) else v for k, v in kept.items()}  # type: ignore[arg-type]


class Everything(Container[str]):
    """The names of a model that has every tensor it may have."""

    def __contains__(self, name: object) -> bool:
        return True


OF_BERT = {"vocab": "bert", "distil": 0, "with_head": 0, "shifted": 0, "offset": 2, "n_ctx": 10, "types_first": 1}
#: Where a block is either attention or experts, one of each; lists that are not of blocks.
HALF_ATTENTION = {"n_ff": [12, 0], "n_head_kv": [0, 2]}
NO_RERANKER = {"pooling": "rank", "with_head": 0, "reranks": 0, "yes": 3, "no": 1}
ONE_OF_EACH: dict[str, dict[str, Any]] = {
    "qwen3": NO_RERANKER,
    "qwen3vl": NO_RERANKER,
    "falcon-h1": {"m_ssm": [0.5] * 5},
    "chatglm": {"fused": 0},
    "glm4": {"n_rot": 4},  # of eight
    "glm5-next": {"cached": [1, 0]},
    "kimi-k3": {"cached": [1, 0], "q_lora": 0},
    "kimi-linear": {"cached": [1, 0]},
    "mimo2": {"slides": [1, 0], "n_kv": [4, 2]},
    "nemotron_h": HALF_ATTENTION,
    "nemotron_h_moe": {**HALF_ATTENTION, "kinds": ["moe", "full_attention"]},
    "bert": OF_BERT,
    "jina-bert-v2": {"vocab": "bert", "tokenizer": "BertTokenizer"},
    "qwen4exp": {
        "recurrent": [True, False],
        "ratios": [0, 12],
        "ple_ids": [1],
        "ple_blocks": [0],
        "is_ple": [True, False],
    },
    "step35": {"slides": [True, False], "moe_said": "1", "is_moe": [False, True]},
    "nomic-bert": {"types_first": 1, "with_head": 0, "moe_every": 0, "n_positions": 0},
    "nomic-bert-moe": {"types_first": 0, "with_head": 0, "moe_every": 2, "experts_biased": 0, "n_expert": 4},
}


def small_hparams(architecture: Architecture, n_expert: int) -> dict[str, Any]:
    """Small numbers for every hparam, so that the expressions of the rows have values."""
    numbers: dict[str, Any] = {"n_layer": 2, "n_embd": 16, "n_head": 4, "n_head_kv": 2, "head_dim": 8, "n_vocab": 32}
    # Of a model whose context is that of its training.
    numbers |= {"n_expert": n_expert, "rope_attn_factor": 1, "n_ff": 32, "max_alibi": 8}
    numbers |= {"n_inner": 48, "n_per_group": 2, "n_main": 2, "n_nextn_said": 0, "n_nextn": 0, "n_dense": 1}
    numbers |= {"text_type": "mistral4"}
    numbers |= ONE_OF_EACH.get(architecture.gguf, {})
    kinds: dict[str, Any] = {"u32": 12, "i32": 12, "u64": 12, "f32": 0.5, "str": "default", "bool": True}

    def value(hparam: HParam) -> Any:
        if isinstance(numbers.get(hparam.name), list):
            return numbers[hparam.name]
        if hparam.name in numbers:
            number, is_list = numbers[hparam.name], all(kind.endswith("[]") for kind in hparam.types)
            return [number] * numbers["n_layer"] if is_list else number
        if hparam.values:
            one = kinds["str"] if hparam.types == ("str",) else hparam.values[0][0]
            return [one] * numbers["n_layer"] if hparam.types[0].endswith("[]") else one
        if hparam.name in ("rope_sections", "rope_sections_anyway"):
            return [4, 6, 6, 0]
        kind = hparam.types[0]
        return [kinds[kind[:-2]]] * numbers["n_layer"] if kind.endswith("[]") else kinds[kind]

    return {hparam.name: value(hparam) for hparam in architecture.hparams}


#: What the reference has and the gguf-py of the package index does not yet; the samples' facts hold these.
NEWER = (
    "deepseek4", "glm5-next", "kimi-k3", "qwen4exp",
    "nanbeige", "granite_swa", "cohere2moe", "deepseek32", "mellum", "minimax-m3", "hy_v4", "maple", "spark2_5",
    "laguna", "muse-glimmer", "gemma4-assistant", "eagle3", "hrm_text", "hy_v3",
)  # fmt: skip
NEWER_TENSORS = {
    "qwen3": {"cls.output"},
    "qwen3vl": {"cls.output"},
    "mimo2": {"blk.{bid}.attn_qkv", "blk.{bid}.layer_output_norm"},
}
INDEXED = [architecture for architecture in EVERY if architecture.gguf not in NEWER]
#: Names that a class of the reference changes in code before its map is asked.
CHANGED_FIRST = (
    "transformer.h.3.attn.q.weight",
    "model.layers.3.self_attn.q_layernorm.norms.weight",
    "model.layers.3.self_attn.k_layernorm.norms.weight",
    "backbone.layers.3.mixer.experts.down_proj.weight",
    "backbone.layers.3.mixer.experts.up_proj.weight",
    "1_Dense/linear.weight",
    "classifier.weight",
    "classifier.bias",
    "pooler.dense.weight",
    "pooler.dense.bias",
    "model.layers.3.shared_mlp.output_linear.weight",  # where there are no other experts
)
#: What a name in a condition may be for it to hold.
CANDIDATES = (
    0, 1, 2, 4, True, False, [], [0, 0], [1, 1], [True, True], [False, False], "default", "llama3", "longrope"
)  # fmt: skip


def sized(architecture: Architecture, rule: TensorRule) -> dict[str, Any] | None:
    """Hyperparameters under which the rule applies, in block 1 of two where its names say so."""
    hparams = {**small_hparams(architecture, 4), PRESENT: (), **({BLOCK: 1} if rule.per_block else {})}
    asked = sorted(names(rule.when) - {BLOCK, PRESENT}) if rule.when else []
    choices = ((hparams[name], *CANDIDATES) for name in asked)
    for values in itertools.product(*choices):
        sizes = {**hparams, **dict(zip(asked, values, strict=True))}
        if rule.when is None or holds(rule.when, sizes):
            return sizes
    return None


def holds(condition: str, sizes: dict[str, Any]) -> bool:
    try:
        return bool(evaluate(condition, sizes))
    except ExpressionError:  # a candidate of the wrong kind
        return False


#: What a config says, where the row is there.
SAID = {"rms_eps": 1e-5, "rope_type": "yarn", "rope_factor": 4.0}
#: What a config may say that no row reads: a loss where it changes what is computed.
SETTINGS = {*NEUTRAL, *(name for texts in ONLY_WHEN.values() for text in texts for name in names(text))}


@pytest.mark.parametrize("path", DATA_FILES, ids=lambda path: path.name)
def test_architecture_files_are_data(path: Path) -> None:
    control = (
        ast.FunctionDef,
        ast.AsyncFunctionDef,
        ast.ClassDef,
        ast.Lambda,
        ast.If,
        ast.IfExp,
        ast.While,
        ast.For,
        ast.Try,
        ast.With,
        ast.Match,
    )
    tree = ast.parse(path.read_text(encoding="utf-8"))
    assert [(node.lineno, type(node).__name__) for node in ast.walk(tree) if isinstance(node, control)] == []
    loops = [node for node in ast.walk(tree) if isinstance(node, ast.comprehension)]
    assert not [ast.unparse(loop) for loop in loops if loop.ifs or not isinstance(loop.iter, ast.Name | ast.Tuple)]
    imports = [node for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom)]
    sources = {node.module if isinstance(node, ast.ImportFrom) else node.names[0].name for node in imports}
    allowed = {"__future__", "collections.abc", "dataclasses", "converter.metadata", "converter.tensors.ops"}
    assert {source for source in sources if not str(source).startswith("converter.architectures.")} <= allowed
    own = {alias.asname or alias.name for node in imports for alias in node.names} | {"dict", "tuple", "frozenset"}
    called = {ast.unparse(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}
    assert called <= own, "a row is made by what the specification offers"


def test_every_architecture_validates() -> None:
    """It was when it was built; and each is built again from its fields, so that no row slips in another way."""
    assert all(replace(architecture) == architecture for architecture in EVERY)
    with pytest.raises(ValueError, match="llama: tensor x, x: 'n_nothing': there is no hparam n_nothing"):
        llama = architectures()["llama"]
        replace(llama, tensors=(*llama.tensors, T("x", "x", shape=("n_nothing",))))


def test_every_file_registers_what_it_says() -> None:
    assert {"llama", "qwen2", "qwen3", "qwen3moe"} <= architectures().keys()
    assert all(name == architecture.gguf for name, architecture in architectures().items())
    rows = [hf for architecture in EVERY for hf in architecture.hf]
    own = {hf.name for hf in rows if hf.takes != "0"}
    assert {hf.name for hf in BORROWED} <= own, "a class of another architecture is one of its rows"
    unconditional = [hf.name for hf in rows if hf.takes is None]
    assert len(set(unconditional)) == len(unconditional)


@pytest.mark.parametrize("architecture", EVERY, ids=rule_id)
def test_what_it_answers_to_stands_in_its_file(architecture: Architecture) -> None:
    """Only files that have a word in quotes are looked at for it."""
    for word in (architecture.gguf, *(word for hf in architecture.hf for word in (hf.name, hf.model_type))):
        assert architectures(word)[architecture.gguf] == architecture, word
    assert len(architectures(architecture.gguf)) < len(EVERY) // 2
    assert not architectures("nobody") and not architectures(None) and not architectures('x"')
    assert not architectures("\ud800"), "a config's words need not be text"


@pytest.mark.parametrize(("architecture", "rule"), RULES, ids=rule_id)
def test_templates_parse_and_format(architecture: Architecture, rule: TensorRule) -> None:
    known = FIELDS | {hparam.name for hparam in architecture.hparams}
    for template in (*rule.hf, *rule.gguf):
        assert {name for field in fields_of(template) for name in names(field)} <= known
        for part in template.split("."):
            assert "{" not in part or f"{{{fields_of(part)[0]}}}" == part, "an index must be a component of its own"
    inside = {any("block" in names(field) for field in fields_of(name)) for name in (*rule.hf, *rule.gguf)}
    assert len(inside) == 1, "all names of a rule lie in blocks or none does"
    assert bool(rule.gguf) != bool(rule.said), "a tensor goes somewhere"
    assert bool(rule.hf) != bool(rule.generator), "a tensor comes from the file or from a generator"
    assert rule.generator is None or rule.generator in GENERATORS


@pytest.mark.parametrize(
    ("architecture", "rule"), [each for each in RULES if not (each[1].generator or each[1].said)], ids=rule_id
)
def test_rules_are_invertible_on_their_shapes(architecture: Architecture, rule: TensorRule) -> None:
    """Shapes go through the chain, as many tensors come out as there are names, and the inverse leads back."""
    hparams = sized(architecture, rule)
    assert hparams is not None, f"no hyperparameters make {rule.when!r} true"
    assert rule.shape, "every rule says what shape it expects"
    experts = evaluate(rule.count, hparams) if rule.stacked else 1
    chain = tuple(op.bind(hparams) for op in (*((Stack(experts),) if rule.stacked else ()), *rule.ops))
    slots = (slot for slot in range(len(rule.hf)) for _ in range(experts))
    shapes = [tuple(evaluate(size, hparams) for size in rule.shape_of(slot)) for slot in slots]
    results = infer(chain, shapes)
    assert len(results) == len(rule.gguf)
    assert infer(inverse(chain), results) == shapes
    exact = all(op.exact for op in chain)
    unit = 1 if exact else np.float32(1e-4)
    arrays = [(np.arange(int(np.prod(shape))).reshape(shape) + 1000 * i) * unit for i, shape in enumerate(shapes)]
    back = apply(inverse(chain), apply(chain, arrays))
    if any(isinstance(op, Product) for op in chain):  # of its factors nothing else comes back
        arrays, back = apply(chain, arrays), apply(chain, back)
    for op in chain:
        if isinstance(op, Rows) and int(op.want) < int(op.have):  # of these rows nothing comes back
            for array in arrays:
                gone = int(op.have) - int(op.want)
                array[slice(gone) if op.front else slice(-gone, None)] = 0
        elif isinstance(op, Pick) and not op.beside:
            for array in arrays:
                array[[row for row in range(len(array)) if row not in op.rows]] = 0
    for array, again in zip(arrays, back, strict=True):
        assert np.array_equal(array, again) if exact else np.allclose(array, again, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("architecture", EVERY, ids=rule_id)
def test_every_gguf_tensor_has_one_writer(architecture: Architecture) -> None:
    """Alternative layouts are for reading only, and their tensors are those of a rule that writes."""
    written = [(name, rule.when) for rule in architecture.tensors if not rule.read_only for name in rule.gguf]
    assert len(set(written)) == len(written)
    read = {name for rule in architecture.tensors if rule.read_only for name in rule.gguf}
    assert read <= {name for name, _ in written}


@pytest.mark.parametrize("architecture", EVERY, ids=rule_id)
def test_hparams(architecture: Architecture) -> None:
    last = {key: hparam for hparam in architecture.hparams for key in hparam.gguf}
    for hparam in architecture.hparams:
        writers = [last[key] for key in hparam.gguf if last[key] is not hparam]
        assert all(row.always or row.follows == hparam.name for row in writers), "the key of two rows is the last's"
        assert all(kind.removesuffix("[]") in TYPES for kind in hparam.types)
    names = {hparam.name for hparam in architecture.hparams}
    assert {"n_layer", "n_embd", "n_head", "n_head_kv", "head_dim", "n_vocab"} <= names
    sizes = {**small_hparams(architecture, 4), "present": ()}
    for hparam in architecture.hparams:
        at = {**sizes, "block": 1} if hparam.per_block else sizes
        for text in (hparam.default, hparam.back):
            assert not isinstance(text, str) or compute(text, at) is not None
        assert hparam.when is None or evaluate(hparam.when, sizes) in (0, 1)


@pytest.mark.parametrize("architecture", EVERY, ids=rule_id)
def test_classes(architecture: Architecture) -> None:
    """For any model, one class at least is written on the way back, and each is found by its name."""
    for n_expert in (0, 4):
        hparams = small_hparams(architecture, n_expert)
        chosen = write_config(architecture, hparams, tied=False)
        if any([hf.name] == chosen["architectures"] for hf in architecture.hf if hf in BORROWED):
            continue
        assert detect(chosen)[0] is architecture
        by_type, hf = detect({"model_type": chosen["model_type"]})  # a type alone means its class with a head
        assert by_type is architecture or (hf.head and not any(own.head for own in architecture.hf))
    for hf in (hf for hf in architecture.hf if hf not in BORROWED):
        assert hf.takes or detect({"architectures": [hf.name]}) == (architecture, hf)
        known = {key for hparam in architecture.hparams for key in hparam.config} | SETTINGS
        assert all(key in known or f"rope.{key}" in known for key in hf.defaults), "a default nobody reads"


@pytest.mark.parametrize("architecture", EVERY, ids=rule_id)
def test_config_and_metadata_are_each_others_inverse(architecture: Architecture) -> None:
    """GGUF keys -> hparams -> config.json -> hparams -> GGUF keys; what has no key follows from the rest."""
    small = {**small_hparams(architecture, 4), **SAID}
    if any(row.name == "rope_type" and not row.gguf for row in architecture.hparams):
        small["rope_type"] = "longrope"  # which the tensors of its factors tell
    if scaling_row := next((row for row in architecture.hparams if row.name == "scaling"), None):
        told = compute(str(scaling_row.default), {"rope_type": "linear"})  # all that it can tell, if that
        small |= {"scaling": told, "rope_type": told}
    led_back = {name for row in architecture.hparams if isinstance(row.back, str) for name in names(row.back)}
    follows = [row for row in architecture.hparams if not row.config and row.name not in led_back]
    derived = {architecture.key(key) for row in follows for key in row.gguf}
    told = {rule.said for rule in architecture.tensors if rule.said}  # which tensors tell
    derived |= {architecture.key(key) for row in architecture.hparams if row.name in told for key in row.gguf}
    first = {key: row for row in reversed(architecture.hparams) for key in row.gguf}
    small = {
        name: small[name]
        for name in small
        if not any(row.name == name and first[key] is not row for row in follows for key in row.gguf)
    }
    metadata = hparam_metadata(architecture, small, set(small))
    hparams = read_metadata(architecture, metadata, 32, Everything())
    scaling = {"rope_type": "longrope"} if hparams.get("rope_type") == "longrope" else None
    config = write_config(architecture, hparams, tied=False, scaling=scaling)
    hf = next(hf for hf in architecture.hf if hf.name == config["architectures"][0])
    if DENSE in hparams:  # layers that are asked for
        hf = replace(hf, facts={**hf.facts, DENSE: 1})
    again, given = read_config(architecture, hf, config)
    written = [row for row in architecture.hparams if row.config and row.when != "0"]  # the tokenizer says the others
    in_config = [row.name for row in written if row.name in hparams]
    assert {name: single(again.get(name)) for name in in_config} == {name: single(hparams[name]) for name in in_config}
    made = hparam_metadata(architecture, again, given)
    derived |= {key for key in metadata if key.startswith("tokenizer.") and key not in made}  # which it writes itself
    assert stored(made, derived) == stored(metadata, derived)


@pytest.mark.parametrize("architecture", EVERY, ids=rule_id)
def test_a_config_without_a_required_key_says_which(architecture: Architecture) -> None:
    config = write_config(architecture, small_hparams(architecture, 4), tied=False)
    config |= config.pop("text_config", {})  # as flat as any
    required = [hparam for hparam in architecture.hparams if hparam.required and hparam.config]
    for hparam in required:
        broken = {key: value for key, value in config.items() if key not in hparam.config}
        hf = HFClass("Bare", "bare")
        with pytest.raises(ArchitectureError, match=hparam.config[0]):
            read_config(architecture, hf, broken)


# ---------------------------------------------------------------------------------- gguf-py as the oracle


def weights_of(rule: TensorRule) -> Iterator[tuple[str, str]]:
    """(Hugging Face stem, GGUF stem) of block 3 for rules between one name and one name."""
    if len(rule.hf) == len(rule.gguf) == 1:
        yield numbered(rule.hf[0].replace(".{expert}", "")), numbered(rule.gguf[0])


@pytest.mark.parametrize("architecture", INDEXED, ids=rule_id)
def test_names_are_those_of_gguf_py(architecture: Architecture) -> None:
    gguf = pytest.importorskip("gguf")
    arch = next((arch for arch, name in gguf.MODEL_ARCH_NAMES.items() if name == architecture.gguf), None)
    assert arch is not None, f"gguf-py knows no architecture {architecture.gguf}"
    known = {gguf.TENSOR_NAMES[tensor] for tensor in gguf.MODEL_TENSORS[arch]}
    known |= NEWER_TENSORS.get(architecture.gguf, set())
    known |= {name for name in gguf.TENSOR_NAMES.values() if ".nextn." in name}  # more have these than gguf-py lists
    for rule in architecture.tensors:
        for name in rule.gguf:
            stem = name.removesuffix(".weight").removesuffix(".bias").removesuffix(".scale")
            assert re.sub(r"\{[^}]*\}", "{bid}", stem) in known, f"{name} is no tensor of {architecture.gguf}"


#: What the reference's classes name by themselves, without the map; of the nextn blocks, glm4moe has all.
BY_CODE = ("ssm_ba.weight", ".scale")
ROWS_OF_THE_HEAD = ("lm_head.weight", "cls.output.weight")
#: Keys of the reference's source tree that the gguf of PyPI does not have yet.
NEWER_KEYS = {
    "attention.recurrent_layers", "attention.rope_pattern", "attention.value_scale", "classifier.pooling_type",
    *(f"attention.indexer.{name}" for name in ("types", "head_count", "key_length", "top_k")),
}  # fmt: skip
NEWER_KEYS |= {"classifier.output_labels", "hidden_activation", "/tokenizer.ggml.suppress_tokens"}


#: What its converter does before it looks up a name.
RENAMED_FIRST = {
    "correction_bias": "correction.bias",
    "proj_bias": "proj.bias",
    "proj_blocks": "proj.weight",
    ".expert_bias": ".expert_bias.bias",
    ".router_bias": ".router_bias.bias",
}
RENAMED_FIRST |= {".dt_bias": ".dt_proj.bias"}
RENAMED_FIRST |= {f"{number}_Dense/linear": f"dense_{number}" for number in (2, 3)}


@pytest.mark.parametrize("architecture", INDEXED, ids=rule_id)
def test_renames_are_those_of_gguf_py(architecture: Architecture, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its name map, written by others, sends each Hugging Face name to the same GGUF name."""
    gguf = pytest.importorskip("gguf")
    shared = gguf.TensorNameMap.block_mappings_cfg  # which a map of some architectures changes for all after it
    monkeypatch.setattr(gguf.TensorNameMap, "block_mappings_cfg", dict(shared))
    arch = next(arch for arch, name in gguf.MODEL_ARCH_NAMES.items() if name == architecture.gguf)
    names = gguf.get_tensor_name_map(arch, 8)
    newer = {f"{name.format(bid=3)}.weight" for name in NEWER_TENSORS.get(architecture.gguf, ())}
    checked = 0
    for rule in architecture.tensors:
        for hf, ours in weights_of(rule):
            read = re.sub(r"^(model\.)?mtp\.layers\.", "model.layers.", hf)
            for old, new in RENAMED_FIRST.items():
                read = read.replace(old, new)
            spelled = (
                read,
                read.removeprefix("transformer."),
                read.removeprefix("model."),
                read.replace("model.language_model.", "model."),
            )  # as some of its classes change them first
            found = (names.get_name(each, try_suffixes=(".weight", ".bias")) for each in spelled)
            theirs = next((name for name in found if name is not None), None)
            by_code = ours.endswith(BY_CODE) or hf in CHANGED_FIRST or (hf, ours) == ROWS_OF_THE_HEAD
            if theirs != ours and (
                by_code or (theirs is None and (rule.read_only or ".nextn." in ours or ours in newer))
            ):
                continue
            assert theirs == (ours if read.endswith((".weight", ".bias")) else ours.removesuffix(".weight")), hf
            checked += 1
    assert checked > 5


@pytest.mark.parametrize("architecture", INDEXED, ids=rule_id)
def test_keys_are_those_of_gguf_py(architecture: Architecture) -> None:
    gguf = pytest.importorskip("gguf")
    groups = (gguf.Keys.LLM, gguf.Keys.Attention, gguf.Keys.Rope, gguf.Keys.SSM, gguf.Keys.KDA, gguf.Keys.ShortConv)
    known = {value for group in groups for value in vars(group).values() if isinstance(value, str)}
    known |= {value.replace("{dense}", dense) for value in known for dense in ("dense_2", "dense_3")}
    outside = {**vars(gguf.Keys.Tokenizer), **vars(gguf.Keys.Diffusion)}
    absolute = {f"/{value}".replace("{name}", "rerank") for value in outside.values() if isinstance(value, str)}
    for hparam in architecture.hparams:
        for key in hparam.gguf:
            assert "{arch}." + key in known or key in absolute | NEWER_KEYS


# ------------------------------------------------------------------------------------------------ the spec


def test_the_spec_refuses_a_name_in_two_rules() -> None:
    rules = (T("a.weight", "x.weight", shape=(1,)), T("b.weight", "x.weight", shape=(1,)))
    with pytest.raises(ValueError, match="gguf name stands in two rules"):
        Architecture("toy", (HFClass("Toy", "toy"),), (), rules)
    with pytest.raises(ValueError, match="listed twice"):
        Architecture("toy", (HFClass("Toy", "toy"),), (HParam("n", ("n",)), HParam("n", ("m",))), ())


def test_helpers_of_the_spec() -> None:
    weight, bias = pair("a.{block}.q", "b.{block}.q", shape=("n", "m"))
    assert (weight.hf, weight.shape, weight.optional) == (("a.{block}.q.weight",), ("n", "m"), False)
    assert (bias.gguf, bias.shape, bias.optional) == (("b.{block}.q.bias",), ("n",), True)
    assert without((weight, bias), "b.{block}.q.bias") == (weight,)
    (changed, same) = amended((HParam("n", ("a",)), HParam("m", ("b",))), n={"config": ("c",)})
    assert (changed.config, same.config) == (("c",), ("b",))
    assert weight.per_block and not weight.stacked


def test_facts_of_an_architecture_stand_in_one_place() -> None:
    assert not RUNTIME.keys() & architectures().keys(), "one that is mapped takes its row along"
    assert traits_of("llama") is architectures()["llama"].traits and all(
        traits_of(name) is RUNTIME[name] for name in RUNTIME
    )
    assert traits_of("nobody") == Traits()


@pytest.mark.parametrize(
    ("arch", "layers", "shared"),
    [("llama", 80, True), ("llama-embed", 80, True), ("qwen2", 80, False), ("deci", 80, False), ("olmo", 80, False),
     ("jais2", 68, False)],
)  # fmt: skip
def test_what_llama_cpp_calls_a_70b(arch: str, layers: int, shared: bool) -> None:
    """`shared`: only where heads share their keys."""
    facts = ModelFacts(arch, layers, 64, 8, 0, traits_of(arch))
    assert facts.large and not replace(facts, n_layer=layers - 1).large
    assert replace(facts, n_head_kv=64).large is not shared


def test_no_other_architecture_is_a_70b() -> None:
    large = {arch for arch in (*RUNTIME, *architectures()) if traits_of(arch).large}
    assert large == {"llama", "llama-embed", "qwen2", "deci", "olmo", "jais2"}
