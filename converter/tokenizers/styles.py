"""How each architecture's tokenizer is written: which readers are tried, what is set around them. Data only.

Keys are GGUF architecture names; an architecture that is not here uses DEFAULT. Rows follow the
`set_vocab` functions of llama.cpp's converter.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from converter.metadata import Value, boolean, u32

ADD_BOS, ADD_EOS, ADD_SEP = (f"tokenizer.ggml.add_{name}_token" for name in ("bos", "eos", "sep"))
SPACE_PREFIX = "tokenizer.ggml.add_space_prefix"
EOT, PAD, UNK, MASK = (f"tokenizer.ggml.{name}_token_id" for name in ("eot", "padding", "unknown", "mask"))

READERS = ("spm", "hf-spm", "bpe", "wordpiece", "unigram", "gemma4", "none")
ALL_READERS = ("spm", "hf-spm", "bpe", "wordpiece", "unigram")

Keys = tuple[tuple[str, Value], ...]


@dataclass(frozen=True)
class Style:
    """One row.

    readers: tried in this order, the first whose files are there is used; first, last: keys set before
    and after; space_prefix: where `add_prefix_space` of tokenizer_config.json goes ("first", "last", or
    nowhere); ids: special ids given by token text unless already known; keep_added: SentencePiece added
    tokens keep their text and their special flag alone decides their type, those of tokenizer.json count;
    by_rows: keys for vocabularies of one exact size; token_types: write token_type_count from the config;
    last_reader: `last` goes with this reader only; round_to: config's vocab_size is rounded up to a multiple.
    """

    readers: tuple[str, ...] = ALL_READERS
    first: Keys = ()
    last: Keys = ()
    space_prefix: str = ""
    ids: tuple[tuple[str, str], ...] = ()
    keep_added: bool = False
    by_rows: Mapping[int, Keys] | None = None
    token_types: bool = False
    last_reader: str = ""
    round_to: int = 1


DEFAULT = Style()
_NO_BOS: Keys = ((ADD_BOS, boolean(False)),)
_SPM = Style(("spm", "hf-spm", "bpe"))
_BPE = Style(("bpe",))
_SPM_OR_BPE = Style(("spm", "bpe"))
_LLAMA = Style(
    ("spm", "hf-spm", "bpe"),
    space_prefix="first",
    by_rows={32016: ((EOT, u32(32010)),), 49152: _NO_BOS},
)
_NO_PREFIX: Keys = ((SPACE_PREFIX, boolean(False)),)
_GEMMA3 = Style(("spm", "bpe"), last=_NO_PREFIX, last_reader="spm")
_PREFIX_LAST = Style(("spm", "hf-spm", "bpe"), space_prefix="last")
_PHI3 = Style(("spm", "bpe"), keep_added=True)
_BERT = Style(("wordpiece", "bpe", "unigram"), token_types=True)
_GLM = Style(
    ("bpe",),
    ids=(("bos", "[gMASK]"), ("eot", "<|user|>"), ("unk", "<|endoftext|>"), ("eom", "<|observation|>")),
)
_GLM4 = Style(
    ("bpe",),
    ids=(("eos", "<|endoftext|>"), ("eot", "<|user|>"), ("unk", "<|endoftext|>"), ("bos", "<|endoftext|>")),
)
_UNIGRAM = Style(("unigram", "spm"))

_GROUPS: tuple[tuple[Style, str], ...] = (
    (
        _LLAMA,
        "afmoe apertus arcee cogvlm granite granite_swa granitemoe graniteswitch llama llama-embed mistral3 "
        "nanbeige smollm3",
    ),
    (_SPM_OR_BPE, "arwkv7 deepseek dream grok openelm qwen2 qwen2vl qwen3 qwen3moe qwen3vl qwen3vlmoe rwkv6qwen2"),
    (_SPM, "arctic baichuan bitnet minicpm minicpm3 orion plamo xverse"),
    (
        _BPE,
        "bailingmoe bailingmoe2 bailingmoe3 bloom chameleon codeshell cohere2 cohere2moe command-r dbrx deci "
        "deepseek2 deepseek32 deepseek4 dots1 exaone exaone-moe exaone4 falcon falcon-h1 gpt-oss gpt2 gptneox "
        "grovemoe hrm_text hunyuan-dense hunyuan-moe hy_v3 jais jais2 lfm2 lfm2moe llama4 maincoder mellum mimo2 "
        "minimax-m2 minimax-m3 mpt olmo olmo2 olmoe plm qwen qwen2moe qwen35 qwen35moe qwen3next refact rnd1 "
        "seed_oss smallthinker stablelm starcoder starcoder2 step35",
    ),
    (_GEMMA3, "gemma3 gemma3n gemma-embedding"),
    (_PREFIX_LAST, "ernie4_5 ernie4_5-moe paddleocr pangu-embedded"),
    (_PHI3, "phi3 phimoe"),
    (_BERT, "bert neo-bert nomic-bert nomic-bert-moe jina-bert-v2 jina-bert-v3"),
    (_GLM, "glm4moe glm-dsa glm5-next"),
    (_GLM4, "glm4"),
    (_UNIGRAM, "t5 t5encoder"),
)

STYLES: dict[str, Style] = {arch: style for style, names in _GROUPS for arch in names.split()} | {
    "chatglm": Style(
        ("bpe",),
        first=_NO_BOS,
        ids=(("eos", "<|endoftext|>"), ("eot", "<|user|>"), ("unk", "<|endoftext|>")),
    ),
    "eurobert": Style(("bpe",), first=_NO_BOS),
    "gemma": Style(("spm", "hf-spm"), last=((EOT, u32(107)), *_NO_PREFIX)),
    "gemma2": Style(("spm", "hf-spm"), last=_NO_PREFIX),
    "gemma4": Style(("gemma4",), last=(*_NO_PREFIX, (ADD_BOS, boolean(True)))),
    "granitehybrid": Style(("spm", "bpe"), round_to=8),
    "jamba": Style(("spm", "hf-spm", "bpe"), last=_NO_PREFIX, last_reader="hf-spm"),
    "llada-moe": Style(("bpe",), first=((MASK, u32(156895)),)),
    "llada": Style(("bpe",), last=((ADD_BOS, boolean(True)),)),
    "mamba": Style(("bpe", "spm"), round_to=8),
    "mamba2": Style(("spm", "bpe"), round_to=16),
    "modern-bert": Style(("bpe",), first=tuple((key, boolean(True)) for key in (ADD_BOS, ADD_EOS, ADD_SEP))),
    "nemotron": Style(("spm", "hf-spm", "bpe"), last=((PAD, u32(0)), (UNK, u32(1)))),
    "nemotron_h": Style(("bpe",), round_to=8),
    "nemotron_h_moe": Style(("bpe",), round_to=8),
    "phi2": Style(("bpe",), first=_NO_BOS),
    "wavtokenizer-dec": Style(("none",)),
}


def style_of(arch: str) -> Style:
    """The row of an architecture, DEFAULT for one that has none."""
    return STYLES.get(arch, DEFAULT)
