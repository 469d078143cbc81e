"""The tokenizer folders that are compared with llama.cpp's converter: name -> files and config.

Files come from the test data folder (CONVERTER_TEST_DATA); nothing of them is stored here.
"""

from __future__ import annotations

import base64
import itertools
import json
import random
import struct
from dataclasses import dataclass, field
from pathlib import Path

STORIES = "lm-stories260K-hf"
STORIES_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")
JINJA = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"


@dataclass(frozen=True)
class Case:
    """`files`: name in the folder -> path below the data folder; `made`: name -> what is written as it stands."""

    arch: str
    config: dict[str, object]
    files: dict[str, str]
    made: dict[str, str | bytes] = field(default_factory=dict)
    ranks: str = ""  # the file of ranks that code beside it would read
    rows: tuple[str, ...] = ()  # keys among these that the architecture's rows write
    code: str = ""  # what the code beside it does otherwise, see make_reference.py
    pre: str = ""  # the name of a pre-tokenizer, which the reference finds by a hash that no small vocabulary has


def _here(folder: str, *names: str) -> dict[str, str]:
    return {name: f"{folder}/{name}" for name in names}


def _config(model_class: str, model_type: str, vocab_size: int, **more: object) -> dict[str, object]:
    return {
        "architectures": [model_class],
        "model_type": model_type,
        "vocab_size": vocab_size,
        "hidden_size": 64,
        "num_hidden_layers": 1,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "intermediate_size": 128,
        "max_position_embeddings": 128,
        "rms_norm_eps": 1e-5,
        **more,
    }


def _text(model_type: str, vocab_size: int, **more: object) -> dict[str, object]:
    """The same of a text model within another, whose class nothing names."""
    return {key: value for key, value in _config("", model_type, vocab_size, **more).items() if key != "architectures"}


def _llama(vocab_size: int, **more: object) -> dict[str, object]:
    return _config("LlamaForCausalLM", "llama", vocab_size, bos_token_id=1, eos_token_id=2, **more)


_STORIES = _here(STORIES, *STORIES_FILES)
_STORIES_SPM = {**_STORIES, **_here(STORIES, "tokenizer.model")}
_QWEN2 = _config("Qwen2ForCausalLM", "qwen2", 151936, bos_token_id=151643, eos_token_id=151645)
_GPT2 = _config(
    "GPT2LMHeadModel",
    "gpt2",
    50257,
    n_embd=64,
    n_head=4,
    n_layer=1,
    n_ctx=128,
    n_positions=128,
    layer_norm_epsilon=1e-5,
    bos_token_id=50256,
    eos_token_id=50256,
)
_BERT = {"type_vocab_size": 2, "layer_norm_eps": 1e-12, "pad_token_id": 0}


def merged(token: bytes, known: list[bytes]) -> list[bytes]:
    """What byte pairs of `token` merge to by the ranks of `known`."""
    parts = [bytes([byte]) for byte in token]
    while len(parts) > 1:
        ranks = [(known.index(a + b), at) for at, (a, b) in enumerate(itertools.pairwise(parts)) if a + b in known]
        if not ranks:
            break
        at = min(ranks)[1]
        parts[at : at + 2] = [parts[at] + parts[at + 1]]
    return parts


def small_ranks(count: int, seed: int = 3, *, proper: bool = False) -> list[bytes]:
    """The single bytes, then `count` tokens made of two earlier ones; `proper`: which merging comes to, as well."""
    rng = random.Random(seed)
    tokens = [bytes([i]) for i in range(256)]
    letters = [*b" aeinorst\n", *"é中😀".encode()]
    while len(tokens) < 256 + count:
        known = [*(tokens[i] for i in letters), *tokens[256:]]
        token = rng.choice(known) + rng.choice(known)
        if token not in tokens and len(token) < 9 and (not proper or len(merged(token, tokens)) == 2):
            tokens.append(token)
    return tokens


def tiktoken_file(tokens: list[bytes]) -> str:
    return "".join(f"{base64.b64encode(token).decode()} {rank}\n" for rank, token in enumerate(tokens))


def tekken_file(count: int, n_special: int, version: str, special: list[str] | None = None) -> str:
    tokens = small_ranks(count)
    vocab = [{"rank": i, "token_bytes": base64.b64encode(t).decode(), "token_str": None} for i, t in enumerate(tokens)]
    config = {
        "pattern": ".", "num_vocab_tokens": len(tokens), "default_vocab_size": len(tokens) + n_special - 7,
        "default_num_special_tokens": n_special, "version": version,
    }  # fmt: skip
    named = [{"rank": i, "token_str": t, "is_control": True} for i, t in enumerate(special or ())]
    return json.dumps({"config": config, "vocab": vocab, **({"special_tokens": named} if special else {})})


_RWKV_TOKENS = [
    *(bytes([i]) for i in range(256)),
    b"ab",
    b"a'b",
    b'"x"',
    b"\\'\"",
    "é".encode(),
    "中".encode(),
    b"\xe4\xb8",
]
RWKV_VOCAB = "".join(
    f"{i} {token.decode()!r} {len(token)}\n"
    if token.decode(errors="ignore").encode() == token
    else f"{i} {token!r} {len(token)}\n"
    for i, token in enumerate(_RWKV_TOKENS, 1)
)
_PLAMO_TOKENS = [
    ["<|plamo:unk|>", 0.0, "UNKNOWN", "x", 1], ["<|plamo:bos|>", 0.0, "CONTROL"], ["<|plamo:eos|>", 0.0, "CONTROL"],
    ["<|plamo:pad|>", 0.0, "NORMAL"], ["<|plamo:op|>", 0, "NORMAL"], ["<0x0A>", -1.5, "BYTE"],
    ["東京", -7.25, "NORMAL"], ["word", -3],
]  # fmt: skip
_TEKKEN_NAMED = [
    "<unk>", "<s>", "</s>", "[INST]", "[/INST]", "[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]", "[TOOL_RESULTS]",
    "[/TOOL_RESULTS]", "[TOOL_CALLS]", "[IMG]", "<pad>", "[IMG_BREAK]", "[IMG_END]", "[PREFIX]", "[MIDDLE]", "[SUFFIX]",
    "[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]", "[TOOL_CONTENT]", "[THINK]",
]  # fmt: skip

_QWEN_SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
QWEN2_REGEX = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_SHOWN = (*range(33, 127), *range(161, 173), *range(174, 256))  # bytes whose letters are their own
_HIDDEN = [byte for byte in range(256) if byte not in _SHOWN]
_BYTES = [chr(byte if byte in _SHOWN else 256 + _HIDDEN.index(byte)) for byte in range(256)]
_LETTERS = list(dict.fromkeys([*"abcdefghijklmnopqrstuvwxyz", *"0123456789", *"ACGT.,!?()=", *_BYTES]))
_MERGES = [("t", "h"), ("th", "e"), ("i", "n"), ("C", "C"), ("CC", "C"), ("CCC", "CCC"), ("a", "n"), ("an", "d")]


def _added(first: int, *tokens: str, special: bool = True) -> dict[str, dict[str, object]]:
    return {str(i): {"content": t, "special": special, "normalized": False} for i, t in enumerate(tokens, first)}


def _qwen_json(special: tuple[str, ...]) -> dict[str, object]:
    """A small tokenizer.json of bytes, cut as Qwen's, with special tokens behind."""
    vocab = {token: i for i, token in enumerate([*_LETTERS, *(a + b for a, b in _MERGES)])}
    split = {"type": "Split", "pattern": {"Regex": QWEN2_REGEX}, "behavior": "Isolated", "invert": False}
    parts = [split, {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False}]
    return {
        "version": "1.0", "truncation": None, "padding": None,
        "added_tokens": [
            {
                "id": len(vocab) + i, "content": token, "single_word": False, "lstrip": False, "rstrip": False,
                "normalized": False, "special": True,
            }
            for i, token in enumerate(special)
        ],
        "normalizer": {"type": "NFC"}, "pre_tokenizer": {"type": "Sequence", "pretokenizers": parts},
        "post_processor": None, "decoder": parts[1],
        "model": {
            "type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": "",
            "end_of_word_suffix": "", "fuse_unk": False, "byte_fallback": False, "vocab": vocab,
            "merges": [list(pair) for pair in _MERGES],
        },
    }  # fmt: skip


def _letters_json() -> dict[str, object]:
    """Letters and marks in words between spaces, lower case, as jina-embeddings-v2-base-zh has it."""
    front = ["<s>", "<pad>", "</s>", "<unk>"]
    letters = [*"abcdefghijklmnopqrstuvwxyz0123456789.,!?", *"中文字测试é"]
    merges = [("t", "h"), ("th", "e"), ("i", "n"), ("中", "文"), ("测", "试")]
    vocab = {token: i for i, token in enumerate([*front, *letters, *(a + b for a, b in merges), "<mask>"])}
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    return {
        "version": "1.0", "truncation": None, "padding": None,
        "added_tokens": [{"id": vocab[token], "content": token, **flags} for token in (*front, "<mask>")],
        "normalizer": {"type": "Lowercase"}, "pre_tokenizer": {"type": "Whitespace"},
        "post_processor": {
            "type": "RobertaProcessing", "sep": ["</s>", 2], "cls": ["<s>", 0], "trim_offsets": True,
            "add_prefix_space": False,
        },
        "decoder": None,
        "model": {
            "type": "BPE", "dropout": None, "unk_token": "<unk>", "continuing_subword_prefix": None,
            "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False, "vocab": vocab,
            "merges": [list(pair) for pair in merges],
        },
    }  # fmt: skip


def small_pieces(*pieces: str) -> bytes:
    """A SentencePiece model of BPE: the usual three, then these, best first."""
    kinds = {"<unk>": 2, "<s>": 3, "</s>": 3}
    messages = []
    for i, piece in enumerate([*kinds, *pieces]):
        body = piece.encode()
        kind = bytes([0x18, kinds[piece]]) if piece in kinds else b""
        score = struct.pack("<f", 0.0 if piece in kinds else float(2 - i))
        message = b"\x0a" + bytes([len(body)]) + body + b"\x15" + score + kind
        messages.append(b"\x0a" + bytes([len(message)]) + message)
    return b"".join(messages) + b"\x12\x02\x18\x02"  # trained as BPE


_PLAIN = len(_LETTERS) + len(_MERGES)
_QWEN3 = {"rope_theta": 1e6, "head_dim": 16, "tie_word_embeddings": False}
_TURNS = {
    "tokenizer_class": "Qwen2Tokenizer", "eos_token": "<|im_end|>", "pad_token": "<|endoftext|>", "bos_token": None,
    "add_bos_token": False, "chat_template": JINJA, "added_tokens_decoder": _added(_PLAIN, *_QWEN_SPECIAL),
}  # fmt: skip
CASES: dict[str, Case] = {
    "chatglm3": Case(
        "chatglm",
        {
            **_config("ChatGLMModel", "chatglm", 540, padded_vocab_size=540, eos_token_id=2, pad_token_id=0),
            "_name_or_path": "THUDM/chatglm3-6b",
            "multi_query_group_num": 2,
            "num_layers": 1,
        },
        _here(STORIES, "tokenizer.model"),
        {"tokenizer_config.json": json.dumps({"tokenizer_class": "ChatGLMTokenizer", "chat_template": JINJA})},
        rows=("tokenizer.ggml.add_bos_token",),
        code="chatglm",
    ),
    "hybriddna": Case(
        "llama",
        _config("LlamaForCausalLM", "llama", 500, bos_token_id=None, eos_token_id=_PLAIN),
        {},
        {
            "tokenizer.json": json.dumps(_qwen_json(_QWEN_SPECIAL)),
            "dna_config.json": json.dumps({"k": 2}),
            "tokenizer_config.json": json.dumps(
                {
                    "tokenizer_class": "HybridDNATokenizer",
                    "add_prefix_space": False,
                    "eos_token": "<|endoftext|>",
                    "pad_token": "<|endoftext|>",
                    "added_tokens_decoder": _added(_PLAIN, *_QWEN_SPECIAL),
                }
            ),
        },
        code="dna",
        pre="qwen2",
    ),
    "jina-whitespace": Case(
        "jina-bert-v2",
        _config("JinaBertForMaskedLM", "bert", 60, type_vocab_size=2, layer_norm_eps=1e-12, pad_token_id=1),
        {},
        {
            "tokenizer.json": json.dumps(_letters_json(), ensure_ascii=False),
            "tokenizer_config.json": json.dumps(
                {
                    "tokenizer_class": "RobertaTokenizer",
                    "bos_token": "<s>",
                    "cls_token": "<s>",
                    "eos_token": "</s>",
                    "sep_token": "</s>",
                    "unk_token": "<unk>",
                    "pad_token": "<pad>",
                    "mask_token": "<mask>",
                }
            ),
        },
        pre="whitespace",
    ),
    "interns1": Case(
        "qwen3",
        {
            "architectures": ["InternS1ForConditionalGeneration"],
            "model_type": "interns1",
            "text_config": _config("Qwen3ForCausalLM", "qwen3", 152700, bos_token_id=151643, eos_token_id=151645),
        },
        {},
        {
            "vocab.json": json.dumps(_qwen_json(())["model"]["vocab"]),
            "merges.txt": "#version: 0.2\n" + "".join(f"{a} {b}\n" for a, b in _MERGES),
            "tokenizer_SMILES.model": small_pieces("C", "=", "C=", "1", "(", ")"),
            "tokenizer_IUPAC.model": small_pieces("meth", "yl", "ane"),
            "tokenizer_FASTA.model": small_pieces("A", "C", "G", "T", "AC", "GT"),
            "tokenizer_config.json": json.dumps(
                {
                    "tokenizer_class": "InternS1Tokenizer",
                    "eos_token": "<|im_end|>",
                    "pad_token": "<|endoftext|>",
                    "bos_token": None,
                    "chat_template": JINJA,
                    "added_tokens_decoder": {
                        **_added(151643, *_QWEN_SPECIAL),
                        **_added(151925, "<SMILES>", "</SMILES>", special=False),
                        **_added(152690, "<img>", "</img>"),
                    },
                }
            ),
        },
        code="interns1",
        pre="qwen2",
    ),
    "qwen3-omni": Case(
        "qwen3vlmoe",
        {
            "architectures": ["Qwen3OmniMoeForConditionalGeneration"],
            "model_type": "qwen3_omni_moe",
            "thinker_config": {
                "model_type": "qwen3_omni_moe_thinker",
                "text_config": _text(
                    "qwen3_omni_moe_text",
                    384,
                    num_experts=4,
                    num_experts_per_tok=2,
                    moe_intermediate_size=32,
                    **_QWEN3,
                ),
            },
        },
        {},
        {
            "tokenizer.json": json.dumps(_qwen_json(_QWEN_SPECIAL)),
            "tokenizer_config.json": json.dumps(_TURNS),
        },
        pre="qwen2",
    ),
    "qwen3-asr": Case(
        "qwen3vl",
        {
            "architectures": ["Qwen3ASRForConditionalGeneration"],
            "model_type": "qwen3_asr",
            "audio_config": {},
            "text_config": _text("qwen3", 384, bos_token_id=_PLAIN, eos_token_id=_PLAIN, **_QWEN3),
        },
        {},
        {
            "tokenizer.json": json.dumps(_qwen_json(_QWEN_SPECIAL)),
            "tokenizer_config.json": json.dumps({k: v for k, v in _TURNS.items() if k != "chat_template"}),
        },
        pre="qwen2",
    ),
    "qwen-tiktoken": Case(
        "qwen",
        _config("QWenLMHeadModel", "qwen", 700, layer_norm_epsilon=1e-6, seq_length=64, rotary_emb_base=1e4),
        {},
        {"qwen.tiktoken": tiktoken_file(small_ranks(200, proper=True))},
        "qwen.tiktoken",
    ),
    "qwen-tiktoken-settings": Case(
        "qwen",
        _config(
            "QWenLMHeadModel",
            "qwen",
            664,
            layer_norm_epsilon=1e-6,
            seq_length=64,
            rotary_emb_base=1e4,
            eos_token_id=458,
        ),
        {},
        {
            "qwen.tiktoken": tiktoken_file(small_ranks(200, 5, proper=True)),
            "tokenizer_config.json": json.dumps({"chat_template": JINJA}),
        },
        "qwen.tiktoken",
    ),
    "kimi-tiktoken": Case(
        "deepseek2",
        _config(
            "DeepseekV3ForCausalLM",
            "deepseek_v3",
            640,
            bos_token_id=400,
            eos_token_id=401,
            kv_lora_rank=8,
            q_lora_rank=8,
            qk_nope_head_dim=8,
            qk_rope_head_dim=8,
            v_head_dim=8,
            n_routed_experts=4,
            num_experts_per_tok=2,
            n_shared_experts=1,
            moe_intermediate_size=32,
            first_k_dense_replace=1,
            routed_scaling_factor=1.0,
            norm_topk_prob=True,
            scoring_func="sigmoid",
        ),
        {},
        {
            "tiktoken.model": tiktoken_file(small_ranks(144)),
            "tokenizer_config.json": json.dumps(
                {
                    "added_tokens_decoder": {"400": {"content": "[BOS]"}, "401": {"content": "[EOS]", "special": True}},
                    "bos_token": "[BOS]",
                    "eos_token": "[EOS]",
                    "chat_template": JINJA,
                    "add_bos_token": True,
                }
            ),
        },
        "tiktoken.model",
    ),
    "tekken-old": Case("llama", _llama(376), {}, {"tekken.json": tekken_file(100, 27, "v3")}),
    "tekken-named": Case("llama", _llama(423), {}, {"tekken.json": tekken_file(150, 24, "v7", _TEKKEN_NAMED)}),
    "rwkv-world": Case(
        "rwkv7",
        {
            **_config(
                "RWKV7ForCausalLM",
                "rwkv7",
                300,
                norm_eps=1e-5,
                head_dim=16,
                hidden_ratio=2.0,
                decay_low_rank_dim=8,
                a_low_rank_dim=8,
                v_low_rank_dim=8,
                gate_low_rank_dim=8,
            ),
            "bos_token_id": 1,
            "eos_token_id": 2,
        },
        {},
        {"rwkv_vocab_v20230424.txt": RWKV_VOCAB, "tokenizer_config.json": json.dumps({"chat_template": JINJA})},
    ),
    "plamo2": Case(
        "plamo2",
        _config(
            "Plamo2ForCausalLM",
            "plamo2",
            12,
            mamba_d_state=8,
            mamba_d_conv=4,
            mamba_num_heads=4,
            mamba_step=2,
            hidden_size_per_head=16,
            bos_token_id=1,
            eos_token_id=2,
        ),
        {},
        {
            "tokenizer.jsonl": "".join(json.dumps(token, ensure_ascii=False) + "\n" for token in _PLAMO_TOKENS),
            "tokenizer_config.json": json.dumps({f"{n}_token": f"<|plamo:{n}|>" for n in ("unk", "bos", "eos", "pad")}),
        },
    ),
    "stories-spm": Case("llama", _llama(512), _STORIES_SPM),
    "stories-spm-padded": Case("llama", _llama(520), _STORIES_SPM),
    "stories-spm-added": Case(
        "llama",
        _llama(520),
        _here(STORIES, "tokenizer.model"),
        {
            "added_tokens.json": '{"<plus>": 512, "<|more|>": 513, "[far]": 600}',
            "tokenizer_config.json": '{"tokenizer_class": "LlamaTokenizer", "add_bos_token": true,'
            ' "add_eos_token": false, "added_tokens_decoder": {"0": {"content": "<unk>", "special": true},'
            ' "513": {"content": "<|more|>", "special": false},'
            ' "514": {"content": "two\\u2581words", "special": false}},'
            ' "chat_template": [{"name": "default", "template": "a"},'
            ' {"name": "tool use", "template": "b"}]}',
        },
    ),
    "stories-spm-jinja": Case("llama", _llama(512), _STORIES_SPM, {"chat_template.jinja": JINJA}),
    "stories-spm-jinja-more": Case(
        "llama",
        _llama(512),
        _STORIES_SPM,
        {
            "chat_template.jinja": JINJA,
            "additional_chat_templates/rag.jinja": "rag " + JINJA,
        },
    ),
    "stories-json": Case("llama", _llama(512), _STORIES),
    "stories-json-bare": Case("llama", _llama(512), _here(STORIES, "tokenizer.json")),
    "stories-json-v5": Case(
        "llama",
        _llama(512),
        _here(STORIES, "tokenizer.json"),
        {
            "tokenizer_config.json": '{"add_prefix_space": true, "backend": "tokenizers", "bos_token": "<s>",'
            ' "clean_up_tokenization_spaces": false, "eos_token": "</s>", "pad_token": null,'
            ' "tokenizer_class": "LlamaTokenizer", "unk_token": "<unk>"}',
            "chat_template.jinja": JINJA,
        },
    ),
    "stories-gemma4": Case("gemma4", _config("Gemma4ForCausalLM", "gemma4_text", 512, head_dim=16), _STORIES),
    "stories-gemma2": Case("gemma2", _config("Gemma2ForCausalLM", "gemma2", 512, head_dim=16), _STORIES_SPM),
    "llama2-spm": Case("llama", _llama(32000), _here("tok-llama2-spm", "tokenizer.model")),
    "mistral-spm-v1": Case(
        "llama",
        _config("MistralForCausalLM", "mistral", 32000),
        {
            "tokenizer.model": "tok-mistral-spm/tokenizer.model.v1",
        },
    ),
    "mistral-spm-v3": Case(
        "llama",
        _config("MistralForCausalLM", "mistral", 32768),
        {
            "tokenizer.model": "tok-mistral-spm/mistral_instruct_tokenizer_240323.model.v3",
        },
    ),
    "qwen2": Case("qwen2", _QWEN2, _here("tok-rebuilt-qwen2", "tokenizer.json", "tokenizer_config.json")),
    "qwen2.5": Case(
        "qwen2",
        _QWEN2,
        {
            "tokenizer.json": "tok-rebuilt-qwen2/tokenizer.json",
            "tokenizer_config.json": "tokcfg-ortext/qwen2.5/tokenizer_config.json",
        },
    ),
    "qwen2-v5": Case(
        "qwen2",
        _QWEN2,
        _here("tok-rebuilt-qwen2", "tokenizer.json"),
        {
            "tokenizer_config.json": '{"add_prefix_space": null, "backend": "tokenizers", "bos_token": "<|endoftext|>",'
            ' "eos_token": "<|im_end|>", "pad_token": "<|endoftext|>",'
            ' "extra_special_tokens": ["<|im_start|>"], "tokenizer_class": "TokenizersBackend"}',
            "chat_template.jinja": JINJA,
        },
    ),
    "starcoder": Case(
        "starcoder2",
        _config("Starcoder2ForCausalLM", "starcoder2", 49152, bos_token_id=0, eos_token_id=0),
        _here("tok-rebuilt-starcoder", "tokenizer.json", "tokenizer_config.json"),
    ),
    "phi2": Case(
        "phi2",
        _config("PhiForCausalLM", "phi", 51200, layer_norm_eps=1e-5, partial_rotary_factor=0.4),
        _here("tok-phi2", "tokenizer.json", "tokenizer_config.json"),
    ),
    "falcon": Case(
        "falcon",
        _config("FalconForCausalLM", "falcon", 65024, layer_norm_epsilon=1e-5, bos_token_id=11, eos_token_id=11),
        _here("tok-falcon", "tokenizer.json"),
    ),
    "gpt2-slow": Case("gpt2", _GPT2, _here("tok-gpt2", "vocab.json", "merges.txt")),
    "roberta": Case(
        "bert",
        _config("RobertaModel", "roberta", 50265, **_BERT),
        _here(
            "tok-roberta",
            "tokenizer.json",
            "tokenizer_config.json",
            "vocab.json",
            "merges.txt",
        ),
    ),
    "bert-cased": Case(
        "bert",
        _config("BertModel", "bert", 28996, **_BERT),
        _here("tok-bert-cased", "vocab.txt"),
        {
            "tokenizer_config.json": '{"tokenizer_class": "BertTokenizer", "do_lower_case": false}',
        },
    ),
}


def sources(case: Case, data: Path) -> dict[str, Path | bytes]:
    """The case's files: paths that exist below `data`, or the bytes to write."""
    return {
        **{name: data / path for name, path in case.files.items()},
        **{name: body if isinstance(body, bytes) else body.encode() for name, body in case.made.items()},
    }
