"""Tokenizer files of a Hugging Face folder -> `tokenizer.ggml.*` metadata, and back.

Nothing here needs transformers, tokenizers or sentencepiece, and nothing is executed: files are
read within limits, expressions run under a time limit, and every failure is one TokenizerError.
Reference for keys, values, types and order: llama.cpp's convert_hf_to_gguf.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from converter.architectures.traits import Keys, TokenizerStyle
from converter.errors import MissingPart, TokenizerError, UnknownPreTokenizer, UsageError
from converter.events import Event, Note, VocabularyPadded
from converter.metadata import Array, Metadata, array_of, boolean, text, u32
from converter.tokenizers.beside import BESIDE_FILES
from converter.tokenizers.build import (
    Built,
    build_bpe,
    build_chatglm,
    build_gemma4,
    build_plamo,
    build_rwkv,
    build_spm,
    build_spm_json,
    build_tekken,
    build_tiktoken,
    build_unigram,
    build_unigram_json,
    build_whitespace,
    build_wordpiece,
    build_xlmr,
    cuts_at_spaces,
    is_spm_json,
    model_kind,
)
from converter.tokenizers.files import Source, TokenizerFiles
from converter.tokenizers.own import PLAMO_FILE, RWKV_FILE
from converter.tokenizers.pretokenizer import check_name, find_name
from converter.tokenizers.pretokenizer import facts as known_names
from converter.tokenizers.ranks import RANK_FILES
from converter.tokenizers.sentencepiece import read_sentencepiece
from converter.tokenizers.special import (
    CHAT_TEMPLATE,
    ID_KEYS,
    SPACE_PREFIX,
    TYPES,
    SpecialTokens,
    chat_template_file,
    read_special,
    template_of,
)
from converter.tokenizers.splitting import regex_budget
from converter.tokenizers.vocabulary import Vocabulary, read_vocabulary
from converter.tokenizers.write import write_tokenizer, written_keys

__all__ = ["FILES", "Tokenizer", "read_tokenizer", "write_tokenizer", "written_keys"]

# What a caller should look for in a model's folder; additional_chat_templates/*.jinja belong to them.
FILES = (
    "tokenizer.model",
    "spiece.model",
    "sentencepiece.bpe.model",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "vocab.txt",
    "tekken.json",
    *RANK_FILES,
    RWKV_FILE,
    PLAMO_FILE,
    *BESIDE_FILES,
    "chat_template.jinja",
    "chat_template.json",
)
READERS = (
    "spm", "hf-spm", "bpe", "wordpiece", "unigram", "gemma4", "chatglm", "whitespace", "tekken", "tiktoken", "rwkv",
    "plamo", "none",
)  # fmt: skip
# Readers of files that are of no other's kind; also tried where the style names none whose files are there.
_OWN_FILES = {"tekken": ("tekken.json",), "tiktoken": tuple(RANK_FILES), "rwkv": (RWKV_FILE,), "plamo": (PLAMO_FILE,)}
_SPM_FILES = {
    "spm": ("tokenizer.model",), "chatglm": ("tokenizer.model",),
    "unigram": ("tokenizer.model", "spiece.model", "sentencepiece.bpe.model"),
}  # fmt: skip


@dataclass(frozen=True)
class Tokenizer:
    """`metadata` in write order, what the user should know, and the number of tokens (embedding rows)."""

    metadata: Metadata
    events: tuple[Event, ...]
    n_tokens: int


def read_tokenizer(
    files: Mapping[str, Source],
    config: Mapping[str, object],
    *,
    n_rows: int | None,
    style: TokenizerStyle,
    pre: str | None = None,
) -> Tokenizer:
    """Turn a folder's tokenizer into GGUF metadata.

    Args:
        files: name relative to the folder -> a path, or a callable giving the bytes; see FILES.
        config: the parsed config.json.
        n_rows: rows of the token embedding; None takes config's vocab_size.
        style: how tokenizers of this architecture are written.
        pre: pre-tokenizer name that wins over detection.

    Raises:
        MissingPart: none of the files that a reader needs is there.
        TokenizerError: damaged or contradictory files, or more tokens than rows.
        UnknownPreTokenizer: the pre-tokenizer has no known name and `pre` is None.
        UsageError: `pre` or a reader of `style` is not known.
    """
    known_names()  # read now, so that what stays does not lie among the tokens, whose memory is given back
    if pre is not None:
        check_name(pre)
    for reader in style.readers:
        if reader not in READERS:
            raise UsageError(f"unknown tokenizer style {reader!r}; known: {', '.join(READERS)}")
    if style.readers[0] == "none":
        return Tokenizer({"tokenizer.ggml.model": text("none")}, (), 0)
    job = _Job(TokenizerFiles(files), config, style, _rows(n_rows, config, style), pre)
    try:
        with regex_budget():
            return job.run()
    except RecursionError:
        raise TokenizerError("tokenizer.json: its parts are nested too deeply") from None


def _rows(n_rows: int | None, config: Mapping[str, object], style: TokenizerStyle) -> int | None:
    """Embedding rows, else the vocabulary size the config declares (rounded up where the architecture does)."""
    if n_rows is not None:
        return n_rows
    inner = config.get("text_config")
    sizes = (config.get("vocab_size"), inner.get("vocab_size") if isinstance(inner, Mapping) else None)
    size = next((s for s in sizes if isinstance(s, int) and not isinstance(s, bool) and s > 0), None)
    return None if size is None else -(-size // style.round_to) * style.round_to


def _under_prefix(keys: Keys) -> Metadata:
    return {f"tokenizer.ggml.{key}": value for key, value in keys}


@dataclass
class _Job:
    files: TokenizerFiles
    config: Mapping[str, object]
    style: TokenizerStyle
    rows: int | None
    pre: str | None
    events: list[Event] = field(default_factory=list)
    _vocabulary: Vocabulary | None = None

    def run(self) -> Tokenizer:
        readers = dict.fromkeys((*self.style.readers, *_OWN_FILES))
        built = next((b for reader in readers if (b := self._build(reader)) is not None), None)
        if built is None:
            raise self._nothing_found()
        metadata = _under_prefix(self.style.first)
        if self.style.space_prefix == "first":
            metadata.update(self._space_prefix())
        if built.reader == "wordpiece" and (count := self._token_types()) is not None:
            metadata["tokenizer.ggml.token_type_count"] = u32(count)
        metadata.update(built.head)
        self._write_special(built, metadata)
        metadata.update(self._tail(built))
        self.events += built.events
        if built.rows.filled < built.rows.size:
            self.events.append(VocabularyPadded(built.rows.filled, built.rows.size))
        return Tokenizer(metadata, tuple(self.events), built.rows.size)

    # --- readers

    def _build(self, reader: str) -> Built | None:
        """What `reader` makes of the files; None when they are not its kind."""
        if reader in _OWN_FILES:
            found = self.files.first(*_OWN_FILES[reader])
            return None if found is None else self._build_own(reader, found)
        name = self.files.first(*_SPM_FILES.get(reader, ()))
        if name is not None:
            return self._build_model(reader, name)
        if reader in ("spm", "chatglm") or self.files.first("tokenizer.json", "vocab.json", "vocab.txt") is None:
            return None
        vocabulary = self._read_vocabulary()
        if reader == "hf-spm" and is_spm_json(vocabulary):
            return build_spm_json(vocabulary, self.rows)
        if reader == "gemma4" and is_spm_json(vocabulary):
            return build_gemma4(vocabulary, self.rows)
        if reader == "whitespace" and cuts_at_spaces(vocabulary):
            return build_whitespace(vocabulary, self.rows)
        if reader == "bpe" and vocabulary.kind in ("BPE", "WordLevel"):
            return build_bpe(vocabulary, self._pre_name(vocabulary), self.rows, self.style.keep_added_bpe)
        if reader == "wordpiece" and vocabulary.kind == "WordPiece":
            return build_wordpiece(vocabulary, self._wordpiece_pre(vocabulary), self.rows)
        if reader == "unigram" and vocabulary.kind == "Unigram":
            return build_unigram_json(vocabulary, self._token_types(), self.rows)
        return None

    def _build_own(self, reader: str, name: str) -> Built:
        if reader == "tiktoken":
            return build_tiktoken(self.files, name, self.rows, self.pre)
        return {"tekken": build_tekken, "rwkv": build_rwkv, "plamo": build_plamo}[reader](self.files, self.rows)

    def _build_model(self, reader: str, name: str) -> Built | None:
        if reader == "spm":
            return build_spm(self.files, name, self.style, self.rows)
        if reader == "chatglm":
            return build_chatglm(self.files, name, self.rows)
        model = read_sentencepiece(self.files.data(name), name)
        if name == "sentencepiece.bpe.model":
            return build_xlmr(model, self._token_types(), self.rows, self.style.mask)
        return build_unigram(model, self.files, self.style, self.rows) if model_kind(model) == "unigram" else None

    def _read_vocabulary(self) -> Vocabulary:
        if self._vocabulary is None:
            self._vocabulary = read_vocabulary(self.files, self.config)
        return self._vocabulary

    def _pre_name(self, vocabulary: Vocabulary) -> str:
        if self.pre is not None:
            return self.pre
        name, event = find_name(vocabulary)
        if event is not None:
            self.events.append(event)
        return name

    def _wordpiece_pre(self, vocabulary: Vocabulary) -> str:
        """The runtime cuts WordPiece text in one way only, so an unknown name does no harm."""
        try:
            return self._pre_name(vocabulary)
        except UnknownPreTokenizer:
            self.events.append(Note("WordPiece vocabulary without a known hash: pre-tokenizer written as 'default'"))
            return "default"

    def _nothing_found(self) -> TokenizerError | MissingPart:
        if self.files.first(*_SPM_FILES["unigram"], "tokenizer.json", "vocab.json", "vocab.txt") is None:
            usual = f"; such models have that of {self.style.usual}" if self.style.usual else ""
            return MissingPart(
                "no tokenizer in the model's folder: tokenizer.model, tokenizer.json, vocab.json or vocab.txt "
                f"is needed{usual}\n--config DIR takes it from another folder, --no-tokenizer does without"
            )
        has_json = self.files.first("tokenizer.json", "vocab.json", "vocab.txt") is not None
        kind = self._read_vocabulary().kind if has_json else "SentencePiece"
        return TokenizerError(
            f"the tokenizer is of kind {kind}, which none of {', '.join(self.style.readers)} reads; "
            f"pass another style of {', '.join(READERS)}"
        )

    # --- keys around the vocabulary

    def _write_special(self, built: Built, metadata: Metadata) -> None:
        limit = built.rows.size if built.limit else None
        if built.merges:
            metadata["tokenizer.ggml.merges"] = Array("str", built.merges)
        special = read_special(self.files, self.config, n_tokens=limit, types=TYPES)
        for name, content in self.style.ids if built.named else ():
            special.set_id(name, self._read_vocabulary().id_of(content), None)
        inner = self.config.get("text_config")
        said = {**self.config, **(inner if isinstance(inner, Mapping) else {})}
        for name, key in self.style.config_ids:
            special.set_id(name, said.get(key), limit, again=True)
        for name in self.style.settings_ids:
            special.set_id(name, self._named_id(name, metadata), limit, again=True)
        for name, content in self.style.ends:
            special.set_id(name, self._id_in(content, metadata), limit, again=True)
        self._implied(built, special)
        special.write(metadata)
        self.events += special.events

    def _implied(self, built: Built, special: SpecialTokens) -> None:
        """What the files of the vocabulary imply beside what was said."""
        none_said = not special.ids
        for given in built.given:
            if given.when != "none said" or none_said:
                special.set_id(given.name, given.id, built.rows.size, again=given.when == "always")
        if built.reader in ("tekken", "plamo"):  # whose own files say everything but the template
            special.ids, special.add, special.normalizer = {}, {}, {}
        if built.reader == "tekken" and special.chat_template is None:  # there may be no tokenizer_config.json
            special.chat_template = template_of(chat_template_file(self.files))
        if special.chat_template is None:
            special.chat_template = built.template
        if special.chat_template is None and (elsewhere := built.elsewhere or self.style.elsewhere):
            self.events.append(
                Note(
                    f"no chat template in the folder: llama.cpp's converter adds its own, {elsewhere}; "
                    "put it there as chat_template.jinja"
                )
            )

    def _named_id(self, name: str, metadata: Metadata) -> int | None:
        """The id of the token that tokenizer_config.json names, wherever its text stands in the vocabulary."""
        entry = self.files.json("tokenizer_config.json").get(f"{name}_token")
        return self._id_in(entry.get("content") if isinstance(entry, dict) else entry, metadata)

    def _id_in(self, content: object, metadata: Metadata) -> int | None:
        """The id of the token of this text."""
        tokens = array_of(metadata, "tokenizer.ggml.tokens")
        return next((i for i, token in enumerate(tokens.values if tokens else ()) if token == content), None)

    def _tail(self, built: Built) -> Metadata:
        tail: Metadata = {}
        if not self.style.last_reader or self.style.last_reader == built.reader:
            tail.update(_under_prefix(self.style.last))
        if self.style.space_prefix == "last":
            tail.update(self._space_prefix())
        if (
            self.style.token_types
            and built.reader in ("bpe", "whitespace")
            and (count := self._token_types()) is not None
        ):
            tail["tokenizer.ggml.token_type_count"] = u32(count)
        tail.update(_under_prefix((self.style.by_rows or {}).get(built.rows.size, ())))
        if self.style.template:
            tail[CHAT_TEMPLATE] = text(self.style.template)
        for name, content in self.style.last_ids:
            if (i := self._id_in(content, built.head)) is not None:
                tail[ID_KEYS[name]] = u32(i)
        return tail

    def _space_prefix(self) -> Metadata:
        value = self.files.json("tokenizer_config.json").get("add_prefix_space")
        return {SPACE_PREFIX: boolean(value)} if isinstance(value, bool) else {}

    def _token_types(self) -> int | None:
        if not self.style.token_types:
            return None
        count = self.config.get("type_vocab_size", 1)
        return count if isinstance(count, int) and 0 <= count < 1 << 32 else 1
