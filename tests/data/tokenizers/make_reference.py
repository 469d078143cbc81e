"""Writes reference.json: for every case, each tokenizer key that llama.cpp's converter writes, as type and sha256.

    python tests/data/tokenizers/make_reference.py LLAMA_CPP_FOLDER DATA_FOLDER [CASE ...]

Needs what convert_hf_to_gguf.py needs (torch, transformers, sentencepiece). Runs offline.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from tokenizer_cases import CASES, Case, sources
from tokenizer_digest import digest

# Stands for the code that lies beside a file of ranks.
START = """
import runpy, sys
llama, name, first = sys.argv[1], sys.argv[2], int(sys.argv[3])
sys.argv = [llama + "/convert_hf_to_gguf.py", *sys.argv[4:]]
sys.path[:0] = [llama, llama + "/gguf-py", @HERE@, @ROOT@]
"""
RANKS = (
    START
    + """
import base64, json, pathlib, types
import transformers
from conversion.base import TextModel
from converter.tokenizers.ranks import RANK_FILES, special_tokens
folder = pathlib.Path(sys.argv[-1])
lines = [line.split() for line in (folder / name).read_text().splitlines()]
ranks = {base64.b64decode(token): int(rank) for token, rank in lines}
settings = folder / "tokenizer_config.json"
settings = json.loads(settings.read_text()) if settings.exists() else {}
special = {t: i for i, t in special_tokens(RANK_FILES[name], settings, len(ranks), first).items()}
tokenizer = types.SimpleNamespace(
    mergeable_ranks=ranks, special_tokens=special, get_vocab=lambda: special, vocab_size=first,
    model=types.SimpleNamespace(_mergeable_ranks=ranks),
)
transformers.AutoTokenizer.from_pretrained = lambda *args, **kwargs: tokenizer
TextModel.get_vocab_base_pre = lambda self, tokenizer: RANK_FILES[name].pre
runpy.run_path(sys.argv[0], run_name="__main__")
"""
)
# A small vocabulary has no known hash.
PRE = (
    START
    + """
from conversion.base import TextModel
TextModel.get_vocab_base_pre = lambda self, tokenizer: name
"""
)
RUN = "runpy.run_path(sys.argv[0], run_name='__main__')"
# What the classes beside ChatGLM 3, Carbon and InternS1 answer, for models of these sizes.
CODE = {
    "chatglm": """
import pathlib, types
import sentencepiece, transformers
own = sentencepiece.SentencePieceProcessor(model_file=str(pathlib.Path(sys.argv[-1]) / "tokenizer.model"))
marks = ["[MASK]", "[gMASK]", "[sMASK]", "sop", "eop", "<|system|>", "<|user|>", "<|assistant|>", "<|observation|>"]
special = {own.vocab_size() + i: token for i, token in enumerate(marks)}
def piece_of(i):
    if i in special:
        return special[i]
    if i in (own.bos_id(), own.eos_id(), own.unk_id()) or i > own.vocab_size():
        return ""
    return own.IdToPiece(i)
tokenizer = types.SimpleNamespace(
    get_vocab=lambda: {piece_of(i): i for i in range(own.vocab_size() + len(marks))}, _convert_id_to_token=piece_of,
    tokenizer=types.SimpleNamespace(sp_model=own),
)
transformers.AutoTokenizer.from_pretrained = lambda *args, **kwargs: tokenizer
""",
    "dna": """
import itertools, json, pathlib, types
import tokenizers, transformers
folder = pathlib.Path(sys.argv[-1])
plain = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json")).get_vocab()
size = json.loads((folder / "dna_config.json").read_text())["k"]
kmers = ["".join(part) for part in itertools.product("ATCG", repeat=size)]
tokens = ["<dna>", "</dna>", "<oov>", *kmers]
tokens += [f"<unused_{i}>" for i in range((len(plain) + len(tokens) + 127) // 128 * 128 - len(plain) - len(tokens))]
dna = {token: len(plain) + i for i, token in enumerate(tokens)}
vocab = dict(plain)
for token, i in dna.items():
    vocab.setdefault(token, i)
decoder = json.loads((folder / "tokenizer_config.json").read_text())["added_tokens_decoder"]
tokenizer = types.SimpleNamespace(
    vocab=vocab, kmers=kmers, dna_token_to_id=dna,
    get_added_vocab=lambda: {e["content"]: int(i) for i, e in decoder.items()},
    added_tokens_decoder={int(i): types.SimpleNamespace(special=e["special"]) for i, e in decoder.items()},
)
transformers.AutoTokenizer.from_pretrained = lambda *args, **kwargs: tokenizer
""",
    "interns1": """
import json, pathlib, types
import sentencepiece, transformers
folder = pathlib.Path(sys.argv[-1])
vocab = json.loads((folder / "vocab.json").read_text())
for part, offset in (("SMILES", 151669), ("IUPAC", 151929), ("FASTA", 152443)):
    own = sentencepiece.SentencePieceProcessor(model_file=str(folder / f"tokenizer_{part}.model"))
    vocab.update({f"<|{part}_{own.id_to_piece(i)}|>": i + offset for i in range(own.get_piece_size())})
decoder = json.loads((folder / "tokenizer_config.json").read_text())["added_tokens_decoder"]
added = {e["content"]: int(i) for i, e in decoder.items()}
tokenizer = types.SimpleNamespace(
    vocab={**vocab, **added}, get_vocab=lambda: {**vocab, **added}, get_added_vocab=lambda: added,
    added_tokens_decoder={
        int(i): types.SimpleNamespace(special=e["special"], normalized=False) for i, e in decoder.items()
    },
    encode=lambda token, **more: token, decode=lambda token: token,
)
transformers.AutoTokenizer.from_pretrained = lambda *args, **kwargs: tokenizer
""",
}


def reference(llama: Path, data: Path, case: Case) -> dict[str, list[str]] | str:
    """The keys of one case in the order they are written, or the converter's last line when it fails."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "model"
        for file, source in sources(case, data).items():
            target = folder / file
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(source if isinstance(source, bytes) else source.read_bytes())
        (folder / "config.json").write_text(json.dumps(case.config))
        out = Path(name) / "out.gguf"
        script = llama / "convert_hf_to_gguf.py"
        options = ["--vocab-only", "--outfile", str(out), str(folder)]
        command = [sys.executable, str(script), *options]
        if case.ranks or case.code or case.pre:
            here = Path(__file__).resolve().parent
            code = RANKS if case.ranks else (PRE if case.pre else START) + CODE.get(case.code, "") + RUN
            code = code.replace("@HERE@", repr(str(here))).replace("@ROOT@", repr(str(here.parents[2])))
            first = str(case.config.get("vocab_size", 0))
            command = [sys.executable, "-c", code, str(llama), case.ranks or case.pre, first, *options]
        env = {**os.environ, "HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}
        run = subprocess.run(command, capture_output=True, text=True, env=env)
        if run.returncode:
            return run.stderr.strip().splitlines()[-1]
        return read_keys(llama, out)


def read_keys(llama: Path, path: Path) -> dict[str, list[str]]:
    """Tokenizer keys of a GGUF, read with gguf-py."""
    sys.path.insert(0, str(llama / "gguf-py"))
    from gguf import GGUFReader, GGUFValueType

    names = {
        GGUFValueType.UINT8: "u8",
        GGUFValueType.INT32: "i32",
        GGUFValueType.UINT32: "u32",
        GGUFValueType.FLOAT32: "f32",
        GGUFValueType.BOOL: "bool",
        GGUFValueType.STRING: "str",
    }
    keys: dict[str, list[str]] = {}
    for field in GGUFReader(path).fields.values():
        if not field.name.startswith("tokenizer."):
            continue
        array = field.types[0] == GGUFValueType.ARRAY
        kind = names[field.types[-1]]
        raw = [field.parts[i] for i in field.data]
        values: list[object] = [bytes(part) if kind == "str" else part[0].item() for part in raw]
        keys[field.name] = [f"[{kind}]" if array else kind, digest(kind, values if array else values[0])]
    return keys


def main() -> None:
    llama, data, only = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:]
    target = Path(__file__).with_name("reference.json")
    known = json.loads(target.read_text()) if target.exists() else {}
    for name in only or CASES:
        known[name] = reference(llama, data, CASES[name])
        print(name, known[name] if isinstance(known[name], str) else len(known[name]), flush=True)
    target.write_text(json.dumps(known, indent=1) + "\n")


if __name__ == "__main__":
    main()
