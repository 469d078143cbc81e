"""Architectures that runtimes know and no file here maps yet: the facts that other rooms ask, by GGUF name.

One that gets a file of its own takes its row along. Tokenizers are those of the reference converter, windows and
sizes those of llama.cpp's `llama-model.cpp`, what is kept and protected that of its `llama-quant.cpp`.
"""

from converter.architectures.styles import (
    BERT,
    BPE,
    LLAMA,
    SPM,
    SPM_OR_BPE,
)
from converter.architectures.traits import TokenizerStyle, Traits

RUNTIME: dict[str, Traits] = {
    "apertus": Traits(LLAMA),
    "arwkv7": Traits(SPM_OR_BPE),
    "bailingmoe3": Traits(BPE),
    "bitnet": Traits(SPM),
    "chameleon": Traits(BPE),
    "deci": Traits(BPE, large="n_layer == 80"),
    "graniteswitch": Traits(LLAMA),
    "grok": Traits(SPM_OR_BPE),
    "jais": Traits(BPE),
    "jina-bert-v3": Traits(BERT),
    "neo-bert": Traits(BERT),
    "plamo": Traits(SPM),
    "rwkv6qwen2": Traits(SPM_OR_BPE),
    "wavtokenizer-dec": Traits(TokenizerStyle(("none",))),
}
