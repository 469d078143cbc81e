"""`GroupQueryAttention` in the place of `Attention`, for onnxruntime-genai: its cache may be a buffer that is there
once, as long as the longest text.

Source: ContribOperators.md of ONNX Runtime.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from converter.errors import UnsupportedFeature
from converter.formats.onnx.program import Node, Program
from converter.formats.onnx.values import CODES
from converter.graphs.builder import MICROSOFT, Builder, Lowering
from converter.graphs.model import Model
from converter.graphs.opset18 import bias

GROUPED = "GroupQueryAttention"


def attention(build: Builder, node: Node) -> None:
    """`Attention` of keys and values that it takes into the cache; any other stays.

    Queries and keys have their positions already. Rows have one length, and what is added to scores hides padding: by
    lengths of its own for each row the operator would leave out the last tokens, not the first.
    """
    told: Mapping[str, Any] = node.attributes
    q, k, v, mask, *past = node.inputs
    if not past:
        build.add(node)
        return
    total = build.once("Shape", "attention_mask", start=1, end=2)
    last = build.once("Sub", total, build.constant([1]))
    ends = build.once("Expand", last, build.once("Shape", "attention_mask", start=0, end=1))
    ends, total = (_narrow(build, each) for each in (ends, build.once("Squeeze", total)))
    build.ops(
        GROUPED, q, k, v, *past, ends, total, "", "", "", bias(build, mask), outputs=node.outputs,
        domain=MICROSOFT, num_heads=told["q_num_heads"], kv_num_heads=told["kv_num_heads"], scale=told["scale"],
        softcap=told["softcap"],
    )  # fmt: skip


def _narrow(build: Builder, x: str) -> str:
    return build.once("Cast", x, to=CODES["I32"])


LOWERED: Mapping[str, Lowering] = {"Attention": attention}


# ------------------------------------------------------------------------------------- genai_config.json

CONFIG, FILE = "genai_config.json", "model.onnx"
#: What generation_config.json says that is a search option, too -> what it is where it does not.
SEARCH: Mapping[str, Any] = {
    "diversity_penalty": 0.0, "do_sample": False, "early_stopping": True, "length_penalty": 1.0, "min_length": 0,
    "no_repeat_ngram_size": 0, "num_beams": 1, "num_return_sequences": 1, "repetition_penalty": 1.0,
    "temperature": 1.0, "top_k": 50, "top_p": 1.0,
}  # fmt: skip
ONCE = ("input_ids", "attention_mask", "position_ids")
KEY, VALUE = "past_key_values.%d.key", "past_key_values.%d.value"
#: Inputs and outputs by genai's names for them.
INPUTS = {**{name: name for name in ONCE}, "past_key_names": KEY, "past_value_names": VALUE}
OUTPUTS = {
    "logits": "logits", "present_key_names": "present.%d.key", "present_value_names": "present.%d.value",
}  # fmt: skip


def beside(program: Program, model: Model, said: Mapping[str, Any]) -> dict[str, bytes]:
    """genai_config.json of a decoder's graph.

    Args:
        program: the graph.
        model: what it was written of.
        said: config.json and generation_config.json of its folder.

    Raises:
        UnsupportedFeature: onnxruntime-genai has no such cache.
    """
    shapes = {value.name: value.shape for value in program.inputs}
    caches = [(KEY % block, VALUE % block) for block in range(model.n_layer)]
    wanted = {*ONCE, *(name for cache in caches for name in cache)}
    of_one_width = len({shapes[name][-1] for cache in caches for name in cache if name in shapes}) == 1
    if set(shapes) != wanted or not of_one_width or any(shapes[key] != shapes[value] for key, value in caches):
        raise UnsupportedFeature(
            f"{model.architecture.gguf}: onnxruntime-genai wants a cache of keys and values, alike, for every block\n"
            "--profile standard writes a graph for other runtimes"
        )
    _, n_kv, _, width = shapes[KEY % 0]
    n_vocab = next(value.shape[-1] for value in program.outputs if value.name == "logits")
    eos = said.get("eos_token_id")
    ids = {"pad_token_id": eos[0] if isinstance(eos, list) and eos else eos}
    ids |= {name: said[name] for name in ("bos_token_id", "eos_token_id", "pad_token_id") if said.get(name) is not None}
    length = model.size("context_length")
    content = {
        "model": {
            "type": "decoder",
            "context_length": length,
            "vocab_size": n_vocab,
            **ids,
            "decoder": {
                "session_options": {"log_id": "onnxruntime-genai", "provider_options": []},
                "filename": FILE,
                "hidden_size": model.size("embedding_length"),
                "head_size": width,
                "num_attention_heads": model.size("attention.head_count"),
                "num_key_value_heads": n_kv,
                "num_hidden_layers": model.n_layer,
                "inputs": INPUTS,
                "outputs": OUTPUTS,
            },
        },
        "search": {
            **{name: default if said.get(name) is None else said[name] for name, default in SEARCH.items()},
            "max_length": length,
            "past_present_share_buffer": _is_shared(program),
        },
    }
    return {CONFIG: (json.dumps(content, indent=2) + "\n").encode()}


def _is_shared(program: Program) -> bool:
    """Whether every cache may be a buffer that is written in place: only this operator knows how long its text is."""
    makers = {output: node.op for node in program.nodes for output in node.outputs}
    return all(makers[value.name] == GROUPED for value in program.outputs if value.name.startswith("present."))
