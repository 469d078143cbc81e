"""Vocabularies that are ranks: tokens as bytes, in the order in which byte pairs merge into them.

Such files (tiktoken's, and Mistral's tekken.json) have no list of merges, which GGUF wants. Here it is rebuilt: of
each token, the two parts that tiktoken's merging comes to before its own rank, or all splits into two tokens.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from converter.errors import TokenizerError
from converter.tokenizers.files import MAX_TOKENS, TokenizerFiles, as_dict, as_id, as_list, as_text, entries
from converter.tokenizers.splitting import byte_alphabet

MAX_TOKEN = 1 << 12  # bytes of one token
ENDOFTEXT = "<|endoftext|>"
_EXTRAS = tuple(f"<|extra_{i}|>" for i in range(205))


@dataclass(frozen=True)
class RankFile:
    """What the code beside a file of ranks says about it.

    Attributes:
        pre: the name of its pre-tokenizer.
        special: tokens after the ranks, in order.
        reserved: how the special tokens that tokenizer_config.json does not name are called.
        n_reserved: how many special tokens there are, where `reserved` names them.
        alone: special ids where neither config nor settings say any.
        ids: special ids that nothing else says.
        forced: special ids, whatever else says.
    """

    pre: str
    special: tuple[str, ...] = ()
    reserved: str = ""
    n_reserved: int = 0
    alone: tuple[tuple[str, str], ...] = ()
    ids: tuple[tuple[str, str], ...] = ()
    forced: tuple[tuple[str, str], ...] = ()


# By name of the file: Qwen's, Hunyuan's and Kimi's, as their tokenization_*.py have it.
RANK_FILES: Mapping[str, RankFile] = {
    "qwen.tiktoken": RankFile(
        "qwen2", (ENDOFTEXT, "<|im_start|>", "<|im_end|>", *_EXTRAS),
        alone=(("bos", ENDOFTEXT), ("eos", ENDOFTEXT)), ids=(("unk", ENDOFTEXT),),
    ),
    "hy.tiktoken": RankFile(
        "hunyuan", (ENDOFTEXT, "<|startoftext|>", "<|bos|>", "<|eos|>", "<|pad|>", *_EXTRAS),
        forced=(("bos", "<|bos|>"),),
    ),
    "tiktoken.model": RankFile("kimi-k2", reserved="<|reserved_token_{}|>", n_reserved=256),
}  # fmt: skip


def read_ranks(text: str, name: str) -> list[bytes]:
    """The tokens of a tiktoken file ("base64 rank" per line) by rank.

    Raises:
        TokenizerError: a line is none, ranks have holes, or a token stands twice.
    """
    tokens: list[bytes] = []
    for number, line in enumerate(text.splitlines(), 1):
        if not (parts := line.split()):
            continue
        if len(parts) != 2 or parts[1] != str(len(tokens)):
            raise TokenizerError(f"{name}: line {number} is not a token in base64 and rank {len(tokens)}")
        tokens.append(_decode(parts[0], f"{name}: line {number}"))
    return _checked(tokens, name)


def _decode(text: str, where: str) -> bytes:
    try:
        token = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise TokenizerError(f"{where}: the token is not base64") from None
    if not 0 < len(token) <= MAX_TOKEN:
        raise TokenizerError(f"{where}: a token of {len(token)} bytes")
    return token


def _checked(tokens: list[bytes], name: str) -> list[bytes]:
    if not 256 <= len(tokens) < MAX_TOKENS:
        raise TokenizerError(f"{name}: {len(tokens)} ranks; 256 are those of the single bytes")
    if len(set(tokens)) != len(tokens):
        raise TokenizerError(f"{name}: a token stands twice")
    return tokens


def special_tokens(file: RankFile, settings: Mapping[str, object], first: int, rows: int) -> dict[int, str]:
    """The special tokens by id, from `first` on; `rows`: of the embedding."""
    if not file.reserved:
        return dict(enumerate(file.special, first))
    where = "tokenizer_config.json added_tokens_decoder"
    listed = as_dict(settings.get("added_tokens_decoder"), where)
    named = {as_id(i, where): as_text(as_dict(e, where).get("content"), where) for i, e in listed.items()}
    return {i: named.get(i, file.reserved.format(i)) for i in range(first, min(first + file.n_reserved, rows))}


def spelled(token: bytes) -> str:
    """A token in the letters of byte-level BPE."""
    alphabet = byte_alphabet()
    return "".join([alphabet[byte] for byte in token])


def merges_of(tokens: list[bytes]) -> Iterator[str]:
    """Of each token the last merge that makes it, as "left right"; none where its bytes do not come to two parts."""
    ranks = {token: rank for rank, token in enumerate(tokens)}
    for rank, token in enumerate(tokens):
        if len(token) > 1 and len(parts := _parts(token, ranks, rank)) == 2:
            yield f"{spelled(parts[0])} {spelled(parts[1])}"


def _parts(token: bytes, ranks: Mapping[bytes, int], limit: int) -> list[bytes]:
    """What the bytes of `token` merge to by ranks below `limit`."""
    parts = [token[at : at + 1] for at in range(len(token))]
    pairs = [ranks.get(parts[at] + parts[at + 1], limit) for at in range(len(parts) - 1)]
    while pairs and (best := min(pairs)) < limit:
        at = pairs.index(best)
        parts[at : at + 2] = [parts[at] + parts[at + 1]]
        del pairs[at]
        for near in (at - 1, at):
            if 0 <= near < len(pairs):
                pairs[near] = ranks.get(parts[near] + parts[near + 1], limit)
    return parts


def splits_of(tokens: list[bytes]) -> Iterator[str]:
    """Of each token all splits into two tokens, as "left right", those of lower ranks first.

    Raises:
        TokenizerError: a token has none.
    """
    ranks = {token: rank for rank, token in enumerate(tokens)}
    for rank, token in enumerate(tokens[256:], 256):
        halves = ((token[:at], token[at:]) for at in range(1, len(token)))
        found = [(ranks[left], ranks[right]) for left, right in halves if left in ranks and right in ranks]
        if not found:
            raise TokenizerError(f"tekken.json: no two tokens make that of rank {rank}")
        yield from (f"{spelled(tokens[left])} {spelled(tokens[right])}" for left, right in sorted(found))


# --- tekken.json

_TEKKEN_SPECIAL = (
    "<unk>", "<s>", "</s>", "[INST]", "[/INST]", "[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]", "[TOOL_RESULTS]",
    "[/TOOL_RESULTS]", "[TOOL_CALLS]", "[IMG]", "<pad>", "[IMG_BREAK]", "[IMG_END]", "[PREFIX]", "[MIDDLE]", "[SUFFIX]",
    "[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]", "[TOOL_CONTENT]",
)  # fmt: skip


@dataclass(frozen=True)
class Tekken:
    """Mistral's vocabulary: special tokens, whose ids come first, then tokens by rank."""

    special: list[str]
    tokens: list[bytes]
    version: str

    def id_of(self, special: str) -> int | None:
        return self.special.index(special) if special in self.special else None


def read_tekken(files: TokenizerFiles) -> Tekken:
    """The part of tekken.json that its default sizes take, as mistral-common reads it.

    Raises:
        TokenizerError: malformed, or sizes that do not fit.
    """
    where = "tekken.json"
    data = files.json(where)
    config = as_dict(data.get("config"), f"{where} config")
    size, n_special = (
        as_id(config.get(f"default_{n}"), f"{where} config") for n in ("vocab_size", "num_special_tokens")
    )
    given = as_list(data["special_tokens"], f"{where} special_tokens") if data.get("special_tokens") else None
    special = list(_TEKKEN_SPECIAL) if given is None else [""] * len(given)
    for entry in given or ():
        fields = as_dict(entry, f"{where} special_tokens")
        if (rank := as_id(fields.get("rank"), f"{where} special_tokens")) >= len(special):
            raise TokenizerError(f"{where}: special token of rank {rank}, there are {len(special)}")
        special[rank] = as_text(fields.get("token_str"), f"{where} special_tokens")
    special += [f"<SPECIAL_{i}>" for i in range(len(special), n_special)]
    if len(special) != n_special or len(set(special)) != n_special or "" in special:
        raise TokenizerError(f"{where}: {len(special)} special tokens where config says {n_special}, or one twice")
    tokens: list[bytes] = []
    for some in entries(data.get("vocab"), "[", f"{where} vocab"):
        for fields in some[: max(size - n_special - len(tokens), 0)]:
            what = f"{where}: token {len(tokens)}"
            if as_dict(fields, what).get("rank") != len(tokens):
                raise TokenizerError(f"{what} has another rank")
            tokens.append(_decode(as_text(fields.get("token_bytes"), what), what))
    if len(tokens) != size - n_special:
        raise TokenizerError(f"{where}: {len(tokens)} tokens where config says {size - n_special}")
    if any(token != bytes([at]) for at, token in enumerate(tokens[:256])):
        raise TokenizerError(f"{where}: its first tokens are not the single bytes in order")
    return Tekken(special, _checked(tokens, where), str(config.get("version")))
