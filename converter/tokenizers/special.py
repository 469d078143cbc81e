"""Special token ids, add_bos/add_eos/add_sep switches, chat templates: the part all tokenizer kinds share.

The rules are those of llama.cpp's converter (gguf-py, SpecialVocab), including how it reads a
template post-processor; the order of the keys is its order too.
"""

from __future__ import annotations

import string
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from converter.events import Event, Note
from converter.metadata import Array, Metadata, boolean, text, u32
from converter.tokenizers.files import TokenizerFiles, as_dict, as_list, as_text

TYPES = ("bos", "eos", "unk", "sep", "pad", "cls", "mask")
ID_KEYS = {
    "bos": "tokenizer.ggml.bos_token_id",
    "eos": "tokenizer.ggml.eos_token_id",
    "unk": "tokenizer.ggml.unknown_token_id",
    "sep": "tokenizer.ggml.seperator_token_id",
    "pad": "tokenizer.ggml.padding_token_id",
    "mask": "tokenizer.ggml.mask_token_id",
    "eot": "tokenizer.ggml.eot_token_id",
    "eom": "tokenizer.ggml.eom_token_id",
}
ADD_BOS, ADD_EOS, ADD_SEP = (f"tokenizer.ggml.add_{name}_token" for name in ("bos", "eos", "sep"))
ADD_KEYS = {"bos": ADD_BOS, "eos": ADD_EOS, "sep": ADD_SEP}
SPACE_PREFIX = "tokenizer.ggml.add_space_prefix"
COLLAPSE, CHARSMAP = "tokenizer.ggml.remove_extra_whitespaces", "tokenizer.ggml.precompiled_charsmap"
CHAT_TEMPLATE = "tokenizer.chat_template"
LOWERCASE, STRIP_ACCENTS = (f"tokenizer.ggml.normalizer.{name}" for name in ("lowercase", "strip_accents"))
_NAME_LETTERS = frozenset(string.ascii_letters + string.digits)


@dataclass
class SpecialTokens:
    """Collected special settings; `write` puts them into metadata."""

    ids: dict[str, int] = field(default_factory=dict)
    add: dict[str, bool] = field(default_factory=dict)
    chat_template: str | list[object] | None = None
    normalizer: dict[str, bool] = field(default_factory=dict)
    events: list[Event] = field(default_factory=list)

    def set_id(self, name: str, value: object, n_tokens: int | None, *, again: bool = False) -> None:
        """Keep the first id given for `name`, or one `again`; an id that no token has is passed over with a note."""
        if isinstance(value, bool) or not isinstance(value, int) or (name in self.ids and not again):
            return
        if value < 0:
            self.events.append(Note(f"{name}_token_id {value} means none: not written"))
        elif n_tokens is not None and value >= n_tokens:
            self.events.append(Note(f"{name}_token_id {value} is beyond the {n_tokens} tokens: not written"))
        elif value < 1 << 32:
            self.ids[name] = value

    def write(self, metadata: Metadata) -> None:
        """Add the keys in the reference's order; a key that is there already keeps its place."""
        for name, value in self.ids.items():
            if name in ID_KEYS:
                metadata[ID_KEYS[name]] = u32(value)
        for name, flag in self.add.items():
            if name in ADD_KEYS:
                metadata[ADD_KEYS[name]] = boolean(flag)
        if self.chat_template is not None:
            metadata.update(chat_template_keys(self.chat_template))
        for name, key in (("lowercase", LOWERCASE), ("strip_accents", STRIP_ACCENTS)):
            if name in self.normalizer:
                metadata[key] = boolean(self.normalizer[name])


def read_special(
    files: TokenizerFiles, config: Mapping[str, object], *, n_tokens: int | None = None, types: Iterable[str] = TYPES
) -> SpecialTokens:
    """Gather the settings of a folder. `n_tokens`: ids from there on are passed over (None: no limit).

    Raises:
        TokenizerError: malformed tokenizer.json or tokenizer_config.json.
    """
    special = SpecialTokens()
    tokenizer = files.json("tokenizer.json")
    settings = dict(files.json("tokenizer_config.json"))
    names = list(types)
    if tokenizer:
        _read_normalizer(tokenizer.get("normalizer"), special)
        _PostProcessor(settings, names, special).read(tokenizer.get("post_processor"))
    if settings:
        special.chat_template = _chat_template(files, settings, special)
        _read_settings(settings, tokenizer, names, special, n_tokens)
    _read_config(config, names, special, n_tokens)
    return special


def _read_normalizer(spec: object, special: SpecialTokens) -> None:
    fields = as_dict(spec, "tokenizer.json normalizer")
    kind = fields.get("type")
    if kind == "Lowercase":
        special.normalizer["lowercase"] = True
    elif kind == "StripAccents":
        special.normalizer["strip_accents"] = True
    elif kind == "BertNormalizer":
        for name in ("lowercase", "strip_accents"):
            if isinstance(fields.get(name), bool):
                special.normalizer[name] = bool(fields[name])
    elif kind == "Sequence":
        for part in as_list(fields.get("normalizers"), "tokenizer.json normalizers"):
            _read_normalizer(part, special)


def _read_settings(
    settings: dict[str, object],
    tokenizer: dict[str, object],
    names: list[str],
    special: SpecialTokens,
    n_tokens: int | None,
) -> None:
    where = "tokenizer.json added_tokens"
    ids: dict[str, object] = {}
    for entry in as_list(tokenizer.get("added_tokens"), where):
        fields = as_dict(entry, where)
        ids.setdefault(as_text(fields.get("content"), where), fields.get("id"))
    for name in names:
        flag = settings.get(f"add_{name}_token")
        if isinstance(flag, bool):
            special.add.setdefault(name, flag)
        entry = settings.get(f"{name}_token")
        content = entry.get("content") if isinstance(entry, dict) else entry
        if isinstance(content, str):
            special.set_id(name, ids.get(content), n_tokens)


def _read_config(config: Mapping[str, object], names: list[str], special: SpecialTokens, n_tokens: int | None) -> None:
    inner = config.get("text_config")
    for name in names:
        value = config.get(f"{name}_token_id")
        if value is None and isinstance(inner, Mapping):
            value = inner.get(f"{name}_token_id")
        special.set_id(name, value, n_tokens)


# --- post-processor


class _PostProcessor:
    """Reads which special tokens the post-processor puts around one sequence and between two.

    It may name bos, eos, sep and cls tokens that tokenizer_config.json left out: they are filled
    into `settings`, and eot or eom are added to `names` when eos is another token than the template's.
    """

    def __init__(self, settings: dict[str, object], names: list[str], special: SpecialTokens) -> None:
        self.settings, self.names, self.add = settings, names, special.add
        self.bos, self.cls, self.eos, self.sep = (settings.get(f"{n}_token") for n in ("bos", "cls", "eos", "sep"))
        if settings and not self.bos and self.cls:
            settings["bos_token"] = self.bos = self.cls
        if settings and not self.eos and self.sep:
            settings["eos_token"] = self.eos = self.sep

    def read(self, spec: object) -> None:
        where = "tokenizer.json post_processor"
        fields = as_dict(spec, where)
        parts = as_list(fields["processors"], where) if "processors" in fields else [fields]
        for part in parts:
            processor = as_dict(part, where)
            kind = processor.get("type")
            if kind == "ByteLevel":
                self.add.setdefault("bos", False)
                self.add.setdefault("eos", False)
            elif kind == "RobertaProcessing":
                self._roberta(processor)
            elif kind == "TemplateProcessing":
                self._template(processor)

    def _roberta(self, processor: dict[str, object]) -> None:
        where = "tokenizer.json post_processor"
        self.add.update(bos=True, eos=True, sep=True)
        if not self.settings:
            return
        if not self.cls:
            self.cls = self.settings["cls_token"] = (as_list(processor.get("cls"), where) or [self.bos])[0]
        if not self.sep:
            self.sep = self.settings["sep_token"] = (as_list(processor.get("sep"), where) or [self.eos])[0]

    def _template(self, processor: dict[str, object]) -> None:
        where = "tokenizer.json post_processor"
        single, pair = (as_list(processor.get(key), where) for key in ("single", "pair"))
        first = last = None
        if len(single) > 1:
            first, last = _item(single[0], "SpecialToken"), _item(single[-1], "SpecialToken")
            if first:
                self._leading(first)
            if last:
                self._trailing(last)
        middle = _between(pair, first, last)
        if middle:
            self._middle(middle, bool(last))

    def _leading(self, token: str) -> None:
        if not self.settings:
            self.bos = token
        elif token not in (self.bos, self.cls):
            if not self.bos:
                self.bos = self.settings["bos_token"] = token
            if not self.cls:
                self.cls = self.settings["cls_token"] = token
        self.add["bos"] = token in (self.bos, self.cls)

    def _trailing(self, token: str) -> None:
        if not self.settings:
            self.eos = token
        elif token != self.eos:
            spare = next((name for name in ("eot", "eom") if name not in self.names), None)
            if spare is not None:
                self.names.append(spare)
                self.settings[f"{spare}_token"] = self.eos
            self.eos = self.settings["eos_token"] = token
        self.add["eos"] = True

    def _middle(self, tokens: list[str | None], has_last: bool) -> None:
        ends = (self.sep, self.eos)
        add = bool(tokens[0]) and tokens[0] in ends and not has_last
        if len(tokens) == 2 and tokens[1] and tokens[1] in ends:
            add = True
        self.add["sep"] = add
        if add and not self.sep and self.settings:
            self.settings["sep_token"] = self.eos


def _item(entry: object, kind: str) -> str | None:
    where = "tokenizer.json post_processor"
    value = as_dict(as_dict(entry, where).get(kind), where).get("id")
    return None if value is None else as_text(value, where)


def _between(pair: list[object], first: str | None, last: str | None) -> list[str | None]:
    """The special tokens between sequences A and B of a pair template, its outer tokens aside."""
    if not pair:
        return []
    start = 1 if first and _item(pair[0], "SpecialToken") == first else 0
    stop = len(pair) - 1 if last and _item(pair[-1], "SpecialToken") == last else len(pair)
    inner = pair[start:stop]
    if not inner or _item(inner[0], "Sequence") != "A" or _item(inner[-1], "Sequence") != "B":
        return []
    return [_item(entry, "SpecialToken") for entry in inner[1:-1]]


# --- chat templates


def _chat_template(
    files: TokenizerFiles, settings: dict[str, object], special: SpecialTokens
) -> str | list[object] | None:
    value = settings["chat_template"] if "chat_template" in settings else chat_template_file(files)
    if value is not None and template_of(value) is None:
        special.events.append(Note("tokenizer_config.json: chat_template is neither text nor a list: left out"))
    return template_of(value)


def template_of(value: object) -> str | list[object] | None:
    """A chat template, or a list of named ones; None for anything else."""
    return value if isinstance(value, str | list) else None


def chat_template_file(files: TokenizerFiles) -> object:
    """What the files of templates say; None where there are none."""
    if "chat_template.jinja" in files:
        default = _newlines(files.text("chat_template.jinja"))
        folder = "additional_chat_templates/"
        more = sorted(name for name in files if name.startswith(folder) and name.endswith(".jinja"))
        if not more:
            return default
        named = [{"name": n[len(folder) : -len(".jinja")], "template": _newlines(files.text(n))} for n in more]
        return [{"name": "default", "template": default}, *named]
    return files.json("chat_template.json").get("chat_template")


def _newlines(value: str) -> str:
    return value.replace("\r\n", "\n").replace("\r", "\n")


def chat_template_keys(template: str | list[object]) -> Metadata:
    """The keys of one template or of a list of {name, template}; the one named default has the plain key."""
    if isinstance(template, str):
        return {CHAT_TEMPLATE: text(template)} if template else {}
    keys: Metadata = {}
    names: list[str | bytes] = []
    default: str | None = None
    for entry in template:
        fields = as_dict(entry, "tokenizer_config.json chat_template")
        body = fields.get("template")
        name = "".join(c if c in _NAME_LETTERS else "_" for c in str(fields.get("name") or ""))
        if not name or not isinstance(body, str):
            continue
        if name == "default":
            default = body
        else:
            names.append(name)
            keys[f"{CHAT_TEMPLATE}.{name}"] = text(body)
    if names:
        keys["tokenizer.chat_templates"] = Array("str", list(dict.fromkeys(names)))
    if default:
        keys[CHAT_TEMPLATE] = text(default)
    return keys
