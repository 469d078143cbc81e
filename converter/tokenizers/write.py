"""`tokenizer.ggml.*` metadata -> tokenizer files of a Hugging Face folder.

Byte-level BPE ("gpt2"), SentencePiece BPE ("llama"), WordPiece ("bert") and Unigram ("t5"). GGUF keeps the name of a
pre-tokenizer only, so tokenizer.json gets the expressions that the name stands for. A SentencePiece model keeps
its scores in tokenizer.model; its merges, for tokenizer.json, follow from them.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np

from converter.errors import TokenizerError
from converter.metadata import Metadata, array_of, scalar_of
from converter.storage.protobuf import blob, float32, number
from converter.tokenizers.beside import DNA_CLASS, DNA_FILE, DNA_MARKS, DNA_MODEL, dna_settings
from converter.tokenizers.build import ADDED_SCORE, CHATGLM_PRE, CHATGLM_SPECIAL, MARK, WHITESPACE
from converter.tokenizers.own import PLAMO_FILE, RWKV_FILE, PlamoToken, write_plamo, write_rwkv
from converter.tokenizers.pretokenizer import expression_of, to_json
from converter.tokenizers.sentencepiece import BPE, BYTE, CONTROL, NORMAL, UNKNOWN, UNUSED, USER_DEFINED
from converter.tokenizers.special import (
    ADD_BOS,
    ADD_EOS,
    ADD_SEP,
    CHARSMAP,
    CHAT_TEMPLATE,
    COLLAPSE,
    ID_KEYS,
    LOWERCASE,
    SPACE_PREFIX,
    STRIP_ACCENTS,
)

_HF_NAMES = ("bos", "eos", "unk", "sep", "pad", "mask")
_WRITTEN = (
    "tokenizer.ggml.model", "tokenizer.ggml.pre", "tokenizer.ggml.tokens", "tokenizer.ggml.scores",
    "tokenizer.ggml.token_type", "tokenizer.ggml.merges", ADD_BOS, ADD_EOS, ADD_SEP, SPACE_PREFIX, CHAT_TEMPLATE,
    LOWERCASE, STRIP_ACCENTS, COLLAPSE, CHARSMAP,
)  # fmt: skip
_PADDING = re.compile(r"\[PAD\d+\]")
_UNUSED = 5
_CONTINUES = "##"  # before a piece of WordPiece that does not begin a word


def write_tokenizer(metadata: Metadata) -> dict[str, bytes]:
    """Files by name: tokenizer.json, tokenizer_config.json, and tokenizer.model for a SentencePiece tokenizer.

    RWKV's, PLaMo's and DNA's vocabularies become the files that they come from, which the code beside them reads.

    Raises:
        TokenizerError: keys are missing or contradict each other, or the tokenizer model or
            pre-tokenizer has no counterpart here.
    """
    vocab = _Vocab.read(metadata)
    if vocab.model == "gpt2":
        files = {"tokenizer.json": _dump(_byte_level(vocab, metadata))}
    elif vocab.model == DNA_MODEL:
        return _dna(vocab, metadata)
    elif vocab.model == WHITESPACE:
        files = {"tokenizer.json": _dump(_letters(vocab, metadata))}
    elif vocab.model == "llama":
        files = {"tokenizer.json": _dump(_sentencepiece_json(vocab, metadata)), **_model(vocab, metadata)}
    elif vocab.model == "gemma4":  # pieces of SentencePiece that merge by rank
        files = {"tokenizer.json": _dump(_sentencepiece_json(vocab, metadata))}
    elif vocab.model == "rwkv":
        files = {RWKV_FILE: write_rwkv([vocab.texts[i] for i in vocab.used() if i]).encode()}
    elif vocab.model == "plamo2":
        files = {PLAMO_FILE: write_plamo([vocab.plamo(i) for i in vocab.used()]).encode()}
    elif vocab.model == "bert":
        files = {"tokenizer.json": _dump(_wordpiece(vocab.unmarked(), metadata))}
    elif vocab.model == "t5":
        files = {"tokenizer.json": _dump(_unigram(vocab, metadata))}
    else:
        raise TokenizerError(
            f"tokenizer model {vocab.model!r} cannot be written as tokenizer.json; gpt2, whitespace, llama, gemma4, "
            "bert and t5 can"
        )
    return {**files, "tokenizer_config.json": _dump(_settings(vocab, metadata))}


def written_keys(metadata: Metadata) -> set[str]:
    """The keys of `metadata` that the files of `write_tokenizer` hold, or that follow from them."""
    named = {key for key in metadata if key.startswith(f"{CHAT_TEMPLATE}.")}
    return {*_WRITTEN, *(ID_KEYS[name] for name in _HF_NAMES), *named} & metadata.keys()


def _dump(value: object) -> bytes:
    return (json.dumps(value, ensure_ascii=False, indent=1) + "\n").encode()


@dataclass(frozen=True)
class _Vocab:
    """The vocabulary's keys, checked: one text, type and score per token; rows that only pad are left out of `used`."""

    model: str
    texts: list[str]
    types: list[int]
    scores: list[float]
    merges: list[str]

    @staticmethod
    def read(metadata: Metadata) -> _Vocab:
        model = scalar_of(metadata, "tokenizer.ggml.model")
        texts = _strings(metadata, "tokenizer.ggml.tokens")
        types = [int(t) for t in _values(metadata, "tokenizer.ggml.token_type")] or [NORMAL] * len(texts)
        scores = [float(s) for s in _values(metadata, "tokenizer.ggml.scores")] or [0.0] * len(texts)
        if not isinstance(model, str) or not texts or not len(texts) == len(types) == len(scores):
            raise TokenizerError("tokenizer.ggml.model, tokens, token_type or scores are missing or differ in length")
        return _Vocab(model, texts, types, scores, _strings(metadata, "tokenizer.ggml.merges"))

    def used(self) -> list[int]:
        return [i for i, t in enumerate(self.types) if t != _UNUSED or not _PADDING.fullmatch(self.texts[i])]

    def ids(self) -> dict[str, int]:
        """Text -> id without padding rows.

        Raises:
            TokenizerError: two rows hold the same text.
        """
        used = self.used()
        ids = {self.texts[i]: i for i in used}
        if len(ids) != len(used):
            again = next(self.texts[i] for i in used if ids[self.texts[i]] != i)
            raise TokenizerError(f"token {ascii(again)[:60]} appears twice, tokenizer.json cannot hold that")
        return ids

    def plamo(self, i: int) -> PlamoToken:
        return PlamoToken(self.texts[i], self.scores[i], self.types[i])

    def unmarked(self) -> _Vocab:
        """The same with ## before what continues a word, where GGUF has a mark before what begins one."""
        typed = zip(self.texts, self.types, strict=True)
        texts = [
            t if kind == CONTROL else t.removeprefix(MARK) if t.startswith(MARK) else _CONTINUES + t
            for t, kind in typed
        ]
        return replace(self, texts=texts)

    def of_type(self, *kinds: int) -> list[int]:
        return [i for i, kind in enumerate(self.types) if kind in kinds]


def _values(metadata: Metadata, key: str) -> Iterable[float]:
    found = array_of(metadata, key)
    return found.values if found and found.type != "str" else ()  # type: ignore[return-value]


def _strings(metadata: Metadata, key: str) -> list[str]:
    found = array_of(metadata, key, "str")
    if found is None:
        return []
    try:
        return [v.decode() if isinstance(v, bytes) else str(v) for v in found.values]
    except UnicodeDecodeError:
        raise TokenizerError(f"{key}: an entry is not UTF-8, tokenizer.json cannot hold it") from None


def _token_of(vocab: _Vocab, metadata: Metadata, name: str) -> str | None:
    i = scalar_of(metadata, ID_KEYS[name])
    return vocab.texts[i] if isinstance(i, int) and 0 <= i < len(vocab.texts) else None


# --- tokenizer.json


def _added(vocab: _Vocab, *kinds: int) -> list[dict[str, object]]:
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    return [
        {"id": i, "content": vocab.texts[i], **flags, "special": vocab.types[i] != USER_DEFINED}
        for i in vocab.of_type(*kinds)
    ]


def _template(
    vocab: _Vocab, metadata: Metadata, *, bos: bool, eos: bool = False, second: str = "bos"
) -> dict[str, object] | None:
    """The post-processor for add_bos and add_eos.

    `bos` and `eos` are what the runtime does when the key is absent, `second` the token before the second of two texts.
    """
    flags = (("bos", scalar_of(metadata, ADD_BOS), bos), ("eos", scalar_of(metadata, ADD_EOS), eos))
    wanted = [name for name, flag, default in flags if (default if flag is None else flag)]
    special = {name: token for name in wanted if (token := _token_of(vocab, metadata, name)) is not None}
    if not special:
        return None

    def around(sequence: str, kind: int, before: str = "bos") -> list[dict[str, object]]:
        def token(name: str) -> list[dict[str, object]]:
            return [{"SpecialToken": {"id": special[name], "type_id": kind}}] if name in special else []

        return [*token(before), {"Sequence": {"id": sequence, "type_id": kind}}, *token("eos")]

    ids = {token: scalar_of(metadata, ID_KEYS[name]) for name, token in special.items()}
    return {
        "type": "TemplateProcessing",
        "single": around("A", 0),
        "pair": around("A", 0) + around("B", 1, second),
        "special_tokens": {token: {"id": token, "ids": [i], "tokens": [token]} for token, i in ids.items()},
    }


def _roberta(vocab: _Vocab, metadata: Metadata) -> dict[str, object] | None:
    """RoBERTa's post-processor, for tokenizers that put a separator between two sequences."""
    first = _token_of(vocab, metadata, "bos")
    last = _token_of(vocab, metadata, "sep") or _token_of(vocab, metadata, "eos")
    if scalar_of(metadata, ADD_SEP) is not True or first is None or last is None:
        return None
    ids = vocab.ids()
    return {
        "type": "RobertaProcessing",
        "sep": [last, ids[last]],
        "cls": [first, ids[first]],
        "trim_offsets": False,
        "add_prefix_space": False,
    }


def _tokenizer(added: list[dict[str, object]], **parts: object) -> dict[str, object]:
    return {"version": "1.0", "truncation": None, "padding": None, "added_tokens": added, **parts}


def _byte_level(vocab: _Vocab, metadata: Metadata) -> dict[str, object]:
    pre = str(scalar_of(metadata, "tokenizer.ggml.pre"))
    expression = expression_of(pre)
    if expression is None:
        raise TokenizerError(f"pre-tokenizer {pre!r}: its expressions are not known, no tokenizer.json can be written")
    byte_level: dict[str, object] = {
        "type": "ByteLevel",
        "add_prefix_space": True,
        "trim_offsets": False,
        "use_regex": True,
    }
    post = _roberta(vocab, metadata) or _template(vocab, metadata, bos=False)
    if post is None and (ADD_BOS in metadata or ADD_EOS in metadata):
        post = byte_level
    elif post is not None and [key for key in metadata if key in (ADD_EOS, ADD_SEP)] == [ADD_EOS, ADD_SEP]:
        # As Llama 3 has it; a reader meets the flag of eos before that of sep, and keys keep their order.
        post = {"type": "Sequence", "processors": [byte_level, post]}
    return _tokenizer(
        _added(vocab, CONTROL, USER_DEFINED),
        normalizer={"type": expression.normalizer} if expression.normalizer else None,
        pre_tokenizer=to_json(expression.split),
        post_processor=post,
        decoder={**byte_level, "trim_offsets": True},
        model=_bpe(vocab.ids(), [m.split(" ") for m in vocab.merges], ignore_merges=bool(expression.ignore_merges)),
    )


def _letters(vocab: _Vocab, metadata: Metadata) -> dict[str, object]:
    """BPE of letters in words between spaces and marks."""
    lowercase = scalar_of(metadata, LOWERCASE) is True
    post = _roberta(vocab, metadata) or _template(vocab, metadata, bos=False)
    return _tokenizer(
        _added(vocab, CONTROL, USER_DEFINED),
        normalizer={"type": "Lowercase"} if lowercase else None,
        pre_tokenizer={"type": "Whitespace"},
        post_processor=post,
        decoder=None,
        model=_bpe(
            vocab.ids(), [m.split(" ") for m in vocab.merges], unk_token=_token_of(vocab, metadata, "unk"),
        ),
    )  # fmt: skip


def _dna(vocab: _Vocab, metadata: Metadata) -> dict[str, bytes]:
    """The vocabulary of plain text, and what the code beside it makes the other tokens of."""
    first = vocab.texts.index(DNA_MARKS[0]) if DNA_MARKS[0] in vocab.texts else len(vocab.texts)
    plain = replace(
        vocab, model="gpt2", texts=vocab.texts[:first], types=vocab.types[:first], scores=vocab.scores[:first]
    )
    return {
        "tokenizer.json": _dump(_byte_level(plain, metadata)),
        DNA_FILE: dna_settings(vocab.texts, first),
        "tokenizer_config.json": _dump({**_settings(vocab, metadata), "tokenizer_class": DNA_CLASS}),
    }


def _bpe(ids: dict[str, int], merges: list[list[str]], **more: object) -> dict[str, object]:
    return {
        "type": "BPE",
        "dropout": None,
        "unk_token": None,
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": False,
        "byte_fallback": False,
        "ignore_merges": False,
        **more,
        "vocab": ids,
        "merges": merges,
    }


def _sentencepiece_json(vocab: _Vocab, metadata: Metadata) -> dict[str, object]:
    prefix = scalar_of(metadata, SPACE_PREFIX) is not False
    spaces = {"type": "Replace", "pattern": {"String": " "}, "content": MARK}
    decoders: list[dict[str, object]] = [
        {"type": "Replace", "pattern": {"String": MARK}, "content": " "},
        {"type": "ByteFallback"},
        {"type": "Fuse"},
    ]
    if prefix:
        decoders.append({"type": "Strip", "content": " ", "start": 1, "stop": 0})
    unknown = _unknown(vocab, metadata)
    lead: list[dict[str, object]] = [{"type": "Prepend", "prepend": MARK}] if prefix else []
    return _tokenizer(
        _added(vocab, UNKNOWN, CONTROL, USER_DEFINED),
        normalizer={"type": "Sequence", "normalizers": [*lead, spaces]},
        pre_tokenizer=None,
        post_processor=_template(vocab, metadata, bos=True),
        decoder={"type": "Sequence", "decoders": decoders},
        model=_bpe(
            vocab.ids(),
            [m.split(" ") for m in vocab.merges] or _merges_by_score(vocab),
            unk_token=None if unknown is None else vocab.texts[unknown],
            fuse_unk=True,
            byte_fallback=bool(vocab.of_type(BYTE)),
        ),
    )


def _wordpiece(vocab: _Vocab, metadata: Metadata) -> dict[str, object]:
    """BERT's tokenizer. A normalizer that says nothing is the runtime's own, which has small letters only."""
    ids = vocab.ids()
    around = {name: _token_of(vocab, metadata, key) for name, key in (("cls", "bos"), ("sep", "sep"))}
    named = {name: [token, ids[token]] for name, token in around.items() if token in ids}
    post: dict[str, object] | None = {"type": "BertProcessing", **named} if len(named) == len(around) else None
    if ADD_BOS in metadata or ADD_EOS in metadata:  # of which this kind of post-processor says nothing to a reader
        post = _template(vocab, metadata, bos=True, eos=True, second="")
    return _tokenizer(
        _added(vocab, CONTROL, USER_DEFINED),
        normalizer={
            "type": "BertNormalizer",
            "clean_text": True,
            "handle_chinese_chars": True,
            "strip_accents": scalar_of(metadata, STRIP_ACCENTS),
            "lowercase": scalar_of(metadata, LOWERCASE) is not False,
        },
        pre_tokenizer={"type": "BertPreTokenizer"},
        post_processor=post,
        decoder={"type": "WordPiece", "prefix": _CONTINUES, "cleanup": True},
        model={
            "type": "WordPiece",
            "unk_token": _token_of(vocab, metadata, "unk") or "[UNK]",
            "continuing_subword_prefix": _CONTINUES,
            "max_input_chars_per_word": 100,
            "vocab": ids,
        },
    )


def _unigram(vocab: _Vocab, metadata: Metadata) -> dict[str, object]:
    """T5's and XLM-RoBERTa's tokenizer: the likeliest pieces, of a text that a table of characters has normalized."""
    vocab.ids()
    charsmap = array_of(metadata, CHARSMAP)
    normalizer = charsmap and {
        "type": "Precompiled",
        "precompiled_charsmap": base64.b64encode(np.asarray(charsmap.values).astype(np.uint8).tobytes()).decode(),
    }
    prefix = scalar_of(metadata, SPACE_PREFIX) is not False
    space = {"type": "Metaspace", "replacement": MARK, "prepend_scheme": "always" if prefix else "never", "split": True}
    words = [{"type": "WhitespaceSplit"}] if scalar_of(metadata, COLLAPSE) is not False else []
    last = max(vocab.used()) + 1
    return _tokenizer(
        _added(vocab, UNKNOWN, CONTROL, USER_DEFINED),
        normalizer=normalizer,
        pre_tokenizer={"type": "Sequence", "pretokenizers": [*words, *([space] if prefix else [])]},
        post_processor=_template(
            vocab, metadata, bos=False, eos=True, second="eos" if scalar_of(metadata, ADD_SEP) else "bos"
        ),
        decoder=space,
        model={
            "type": "Unigram",
            "unk_id": _unknown(vocab, metadata),
            "vocab": [[text, score] for text, score in zip(vocab.texts[:last], vocab.scores[:last], strict=True)],
            "byte_fallback": bool(vocab.of_type(BYTE)),
        },
    )


def _unknown(vocab: _Vocab, metadata: Metadata) -> int | None:
    """The unknown token: by its type where one alone has it, by its id key, or by the name it usually has.

    Old files have that type for rows of padding too.
    """
    i = scalar_of(metadata, ID_KEYS["unk"])
    named = [i] if isinstance(i, int) and 0 <= i < len(vocab.texts) else []
    usual = [vocab.texts.index("<unk>")] if "<unk>" in vocab.texts else []
    typed = vocab.of_type(UNKNOWN)
    return next(iter(typed if len(typed) == 1 else named + usual + typed), None)


def _merges_by_score(vocab: _Vocab) -> list[list[str]]:
    """Every way to make a normal token of two, best token first, then by the parts' ids."""
    ids = {vocab.texts[i]: i for i in vocab.of_type(NORMAL)}
    found: list[tuple[float, int, int, str, str]] = []
    for token, i in ids.items():
        for cut in range(1, len(token)):
            left, right = token[:cut], token[cut:]
            if left in ids and right in ids:
                found.append((-vocab.scores[i], ids[left], ids[right], left, right))
    return [[left, right] for *_, left, right in sorted(found)]


# --- tokenizer_config.json


def _settings(vocab: _Vocab, metadata: Metadata) -> dict[str, object]:
    settings: dict[str, object] = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
    flags = (("add_prefix_space", SPACE_PREFIX), ("add_bos_token", ADD_BOS), ("add_eos_token", ADD_EOS))
    for name, key in flags:
        if isinstance(flag := scalar_of(metadata, key), bool):
            settings[name] = flag
    for name in _HF_NAMES:
        if (token := _token_of(vocab, metadata, name)) is not None:
            settings[f"{name}_token"] = token
    if vocab.model == "bert" and "bos_token" in settings:
        settings["cls_token"] = settings["bos_token"]
    # A SentencePiece piece that is listed here gets ADDED_SCORE when it is read back: those that have it are listed.
    plain = vocab.model in ("gpt2", "bert", "t5", WHITESPACE, DNA_MODEL)
    entries = _added(vocab, CONTROL, USER_DEFINED)
    listed = [e for e in entries if plain or vocab.scores[int(str(e["id"]))] == ADDED_SCORE]
    settings["added_tokens_decoder"] = {str(e["id"]): {k: v for k, v in e.items() if k != "id"} for e in listed}
    template = written_template(metadata)
    return settings if template is None else {**settings, "chat_template": template}


def written_template(metadata: Metadata) -> object:
    """The chat_template of tokenizer_config.json: a text, or a list of named ones."""
    default = scalar_of(metadata, CHAT_TEMPLATE)
    named = [
        (key.removeprefix(f"{CHAT_TEMPLATE}."), scalar_of(metadata, key))
        for key in metadata
        if key.startswith(f"{CHAT_TEMPLATE}.")
    ]
    if not named:
        return default
    whole = [*([("default", default)] if default is not None else []), *named]
    return [{"name": name, "template": template} for name, template in whole]


# --- tokenizer.model


def _model(vocab: _Vocab, metadata: Metadata) -> dict[str, bytes]:
    """A serialized SentencePiece BPE model (sentencepiece_model.proto); none without an unknown token.

    Padding rows at the end are left out.
    """
    unknown = _unknown(vocab, metadata)
    if unknown is None:
        return {}
    last = max(vocab.used()) + 1
    if scalar_of(metadata, "tokenizer.ggml.pre") == CHATGLM_PRE and CHATGLM_SPECIAL[0] in vocab.texts:
        last = vocab.texts.index(CHATGLM_SPECIAL[0])  # from there on they are its code's
    kinds = (UNUSED if kind == UNKNOWN else kind for kind in vocab.types[:last])  # a model has one unknown piece
    types = [UNKNOWN if i == unknown else kind for i, kind in enumerate(kinds)]
    pieces = b"".join(
        blob(1, blob(1, vocab.texts[i].encode()) + float32(2, vocab.scores[i]) + number(3, kind))
        for i, kind in enumerate(types)
    )
    ids = {"unk": unknown, **{name: scalar_of(metadata, ID_KEYS[name]) for name in ("bos", "eos", "pad")}}
    trainer = number(3, BPE) + number(4, last) + number(35, bool(vocab.of_type(BYTE)))
    for field, name in ((40, "unk"), (41, "bos"), (42, "eos"), (43, "pad")):
        i = ids[name]
        trainer += number(field, i if isinstance(i, int) else -1)
    normalizer = blob(1, b"identity") + number(3, scalar_of(metadata, SPACE_PREFIX) is not False) + number(4, 0)
    return {"tokenizer.model": pieces + blob(2, trainer) + blob(3, normalizer + number(5, 1))}
