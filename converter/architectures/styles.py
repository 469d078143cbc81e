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
    ("chatglm", "bpe"), ids=(("eos", "<|endoftext|>"), ("eot", "<|user|>"), ("unk", "<|endoftext|>")),
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
JINA = TokenizerStyle(("wordpiece", "whitespace", "bpe", "unigram"), token_types=True)
INTERN_S1 = TokenizerStyle(("bpe",), ids=(("bos", "<|endoftext|>"),))
# What the models hear or say goes by turns.
QWEN3_OMNI = TokenizerStyle(("spm", "bpe"), last_ids=(("bos", "<|im_end|>"), ("eos", "<|im_end|>")))
QWEN3_ASR = TokenizerStyle(
    ("spm", "bpe"), last_ids=QWEN3_OMNI.last_ids,
    template="{% for message in messages %}{{'<|im_start|>' + message['role'] + '\\n' + message['content'] + "
    "'<|im_end|>' + '\\n'}}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}",
)
DEEPSEEK4 = TokenizerStyle(
    ("bpe",), early=("tokenizer.chat_template",), elsewhere="deepseek-ai-DeepSeek-V4.jinja",
)  # fmt: skip
KIMI_K3 = TokenizerStyle(("bpe",), config_ids=(("eos", "eos_token_id"),), elsewhere="Kimi-K3.jinja")
# Whose vocabularies llama.cpp's converter has beside it.
NEOX = "GPT-NeoX (EleutherAI/gpt-neox-20b)"
MAMBA_TOKENS = TokenizerStyle(("bpe", "spm"), round_to=8, usual=NEOX)
MAMBA2_TOKENS = TokenizerStyle(("spm", "bpe"), round_to=16, usual=NEOX)
OPENELM = TokenizerStyle(("spm", "bpe"), usual="Llama 2")
