"""Models that are nothing but names and shapes, all zero: what the rules of a mixture look at."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from converter.architectures import traits_of
from converter.quant.recipes import ModelFacts, TensorSpec

#: Tensors of a block by their names, and their shapes in widths and lengths of the feed-forward layer.
SPLIT = {"attn_q": "ee", "attn_k": "ke", "attn_v": "ke", "attn_output": "ee"}
FUSED = {"attn_qkv": "ee", "attn_output": "ee"}
GATED = {"ffn_gate": "fe", "ffn_up": "fe", "ffn_down": "ef"}
PLAIN = {"ffn_up": "fe", "ffn_down": "ef"}


@dataclass(frozen=True)
class Shape:
    """Its experts are tensors of their own, as they were until April 2024; llama.cpp knows it since a day."""

    arch: str
    blocks: int
    heads: tuple[int, int]
    parts: dict[str, str]
    width: int = 256
    vocabulary: int = 256
    tied: bool = False
    experts: int = 0
    since: str = ""

    @property
    def facts(self) -> ModelFacts:
        return ModelFacts(self.arch, self.blocks, *self.heads, self.experts, traits_of(self.arch))

    def tensors(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        """Names and shapes, rows last, in the order of a file."""
        sizes = {"e": self.width, "k": self.width * self.heads[1] // self.heads[0], "f": 2 * self.width}
        yield "token_embd.weight", (self.vocabulary, self.width)
        for block in range(self.blocks):
            for part, (rows, columns) in self.parts.items():
                shape = sizes[rows], sizes[columns]
                if not (self.experts and part.startswith("ffn_")):
                    yield f"blk.{block}.{part}.weight", shape
                    continue
                for expert in range(self.experts):
                    yield f"blk.{block}.{part}.{expert}.weight", shape
            if self.experts:
                yield f"blk.{block}.ffn_gate_inp.weight", (self.experts, self.width)
        if not self.tied:
            yield "output.weight", (self.vocabulary, self.width)

    def specs(self) -> list[TensorSpec]:
        return [TensorSpec(name, shape, "F16") for name, shape in self.tensors()]


_DENSE = SPLIT | GATED
#: The names of fixtures/ages.json.
MODELS = {
    "llama": Shape("llama", 24, (8, 8), _DENSE),
    "llama, 4 heads a key": Shape("llama", 16, (8, 2), _DENSE),
    "llama, 70b": Shape("llama", 80, (64, 8), _DENSE),
    "llama, tied": Shape("llama", 16, (8, 8), _DENSE, tied=True),
    "llama, rows of 288": Shape("llama", 16, (8, 8), _DENSE, width=288),
    "falcon": Shape("falcon", 32, (64, 8), FUSED | PLAIN),
    "starcoder": Shape("starcoder", 24, (8, 1), FUSED | PLAIN),
    "gemma, tied": Shape("gemma", 16, (8, 8), _DENSE, tied=True, since="2024-02-21"),
    "mixtral": Shape("llama", 16, (8, 2), _DENSE, experts=8, since="2023-12-13"),
}


def write(shape: Shape, path: Path) -> None:
    """The model as a GGUF in F16, with the keys that a quantizer reads."""
    from gguf import GGUFWriter

    writer = GGUFWriter(path, shape.arch)
    writer.add_context_length(64)
    writer.add_embedding_length(shape.width)
    writer.add_block_count(shape.blocks)
    writer.add_feed_forward_length(2 * shape.width)
    writer.add_head_count(shape.heads[0])
    writer.add_head_count_kv(shape.heads[1])
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_layer_norm_eps(1e-5)
    writer.add_rope_dimension_count(shape.width // shape.heads[0])
    writer.add_key_length(shape.width // shape.heads[0])
    writer.add_value_length(shape.width // shape.heads[0])
    writer.add_vocab_size(shape.vocabulary)
    writer.add_tokenizer_model("llama")
    writer.add_token_list([f"t{index}" for index in range(shape.vocabulary)])
    writer.add_file_type(1)
    if shape.experts:
        writer.add_expert_count(shape.experts)
        writer.add_expert_used_count(2)
    for name, own in shape.tensors():
        writer.add_tensor(name, np.zeros(own, np.float16))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
