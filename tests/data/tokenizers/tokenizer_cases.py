"""The tokenizer folders that are compared with llama.cpp's converter: name -> files and config.

Files come from the test data folder (CONVERTER_TEST_DATA); nothing of them is stored here.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

STORIES = "lm-stories260K-hf"
STORIES_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")
JINJA = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"


@dataclass(frozen=True)
class Case:
    """`files`: name in the folder -> path below the data folder; `made`: name -> text written as it stands."""

    arch: str
    config: dict[str, object]
    files: dict[str, str]
    made: dict[str, str] = field(default_factory=dict)


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

CASES: dict[str, Case] = {
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
        **{name: body.encode() for name, body in case.made.items()},
    }
