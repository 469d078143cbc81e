"""How the tokenizers of several architectures are written.

Rows follow the `set_vocab` functions of the reference converter.
"""

from converter.architectures.traits import TokenizerStyle
from converter.metadata import boolean, u32

NO_BOS = (("add_bos_token", boolean(False)),)
NO_PREFIX = (("add_space_prefix", boolean(False)),)

SPM = TokenizerStyle(("spm", "hf-spm", "bpe"))
BPE = TokenizerStyle(("bpe",))
SPM_OR_BPE = TokenizerStyle(("spm", "bpe"))
LLAMA = TokenizerStyle(
    ("spm", "hf-spm", "bpe"),
    space_prefix="first",
    by_rows={32016: (("eot_token_id", u32(32010)),), 49152: NO_BOS},
)
PREFIX_LAST = TokenizerStyle(("spm", "hf-spm", "bpe"), space_prefix="last")
GEMMA3 = TokenizerStyle(("spm", "bpe"), last=NO_PREFIX, last_reader="spm")
PHI3 = TokenizerStyle(("spm", "bpe"), keep_added=True)
BERT = TokenizerStyle(("wordpiece", "bpe", "unigram"), token_types=True)
CHATGLM = TokenizerStyle(
    ("bpe",), ids=(("eos", "<|endoftext|>"), ("eot", "<|user|>"), ("unk", "<|endoftext|>")),
)  # fmt: skip
MODERN_BERT = TokenizerStyle(
    ("bpe",),
    first=(("add_bos_token", boolean(True)), ("add_eos_token", boolean(True)), ("add_sep_token", boolean(True))),
)
ROBERTA = TokenizerStyle(("bpe", "wordpiece"), token_types=True)
XLM_ROBERTA = TokenizerStyle(("unigram",), token_types=True)
GLM = TokenizerStyle(
    ("bpe",),
    ids=(("bos", "[gMASK]"), ("eot", "<|user|>"), ("unk", "<|endoftext|>"), ("eom", "<|observation|>")),
)
GLM4 = TokenizerStyle(
    ("bpe",),
    ids=(("eos", "<|endoftext|>"), ("eot", "<|user|>"), ("unk", "<|endoftext|>"), ("bos", "<|endoftext|>")),
)
SOLAR = TokenizerStyle(
    ("bpe",),
    ids=(("eos", "<|endoftext|>"), ("eot", "<|endoftext|>"), ("unk", "<unk>"), ("bos", "<|startoftext|>")),
)
HUNYUAN = TokenizerStyle(("bpe",), config_ids=(("eos", "eod_token_id"),))
NEMOTRON_H = TokenizerStyle(("bpe",), round_to=8)
UNIGRAM = TokenizerStyle(("unigram", "spm"))
# Their converters go by the flags of added tokens alone.
DREAM = TokenizerStyle(("spm", "bpe"), keep_added_bpe=True)
LLADA = TokenizerStyle(("bpe",), last=(("add_bos_token", boolean(True)),), keep_added_bpe=True)
NOMIC_MOE = TokenizerStyle(("unigram",), token_types=True, mask=True)
ARCTIC = TokenizerStyle(("spm", "hf-spm", "bpe"), redefines=True)
# One piece is a zero, where texts would end; a chat ends where a turn does.
INTERNLM2 = TokenizerStyle(
    ("spm", "hf-spm", "bpe"), keep_added=True, respelled=(("\0", "\N{DRAGON}"),), unused="[UNUSED", own_prefix=True,
    ends=(("eos", "<|im_end|>"),),
)
