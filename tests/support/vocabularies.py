"""The tokenizers of tests/data/tokenizers and of the test data, read by our reader and written for runtimes."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from converter.architectures import architectures, traits_of
from converter.architectures.traits import TokenizerStyle
from converter.mapping.hparams import text_config
from converter.metadata import Array, Metadata
from converter.tokenizers import Tokenizer, read_tokenizer
from support.paths import DATA

sys.path.insert(0, str(DATA / "tokenizers"))

from tokenizer_cases import CASES, Case, sources

Files = dict[str, "Path | Callable[[], bytes]"]


def case_files(case: Case, data: Path) -> Files:
    found = sources(case, data)
    missing = [str(path) for path in found.values() if isinstance(path, Path) and not path.is_file()]
    if missing:
        pytest.skip(f"not in the test data: {', '.join(missing)}")
    return {name: (source if isinstance(source, Path) else bytes_of(source)) for name, source in found.items()}


def bytes_of(content: bytes) -> Callable[[], bytes]:
    return lambda: content


def style_of(arch: str, *classes: object) -> TokenizerStyle:
    """How an architecture's tokenizer is written, of the class that config.json names where that differs."""
    mapped = architectures(arch).get(arch)
    hf = next((each for each in mapped.hf if each.name in classes), None) if mapped else None
    return mapped.tokenizer(hf) if mapped else traits_of(arch).tokenizer


def read_case(name: str, data: Path) -> Tokenizer:
    case = CASES[name]
    style = style_of(case.arch, *case.config["architectures"])  # type: ignore[misc]
    rows: Any = text_config(case.config).get("vocab_size", case.config.get("vocab_size"))
    return read_tokenizer(case_files(case, data), case.config, n_rows=rows, style=style)


def write_vocab_gguf(metadata: Metadata, path: Path) -> None:
    """A GGUF with a tokenizer and no tensors, as llama.cpp opens it by `vocab_only`."""
    gguf = pytest.importorskip("gguf")
    writer = gguf.GGUFWriter(path, "llama")
    for key, value in metadata.items():
        if isinstance(value, Array):
            writer.add_array(key, [v if isinstance(v, str | bytes) else v.item() for v in value.values])
        else:
            {"str": writer.add_string, "bool": writer.add_bool, "u32": writer.add_uint32}[value.type](key, value.value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
