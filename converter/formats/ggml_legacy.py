"""ggml files from before GGUF, read: the llama layout (ggml, ggmf, ggjt 1 to 3), Whisper's and Silero VAD's.

Sources: convert_llama_ggml_to_gguf.py of llama.cpp, and convert-pt-to-ggml.py and convert-silero-vad-to-ggml.py of
whisper.cpp. A magic, then numbers whose meaning only the program that reads them knows, a vocabulary, and tensors up
to the end of the file. So the layouts are tables here, told apart by numbers that must agree, and since nothing says
how many tensors there are, each layout knows how many it needs.

Quantized blocks changed twice: only those that still mean the same are accepted. Numbers and vocabulary are kept as
metadata texts; names stay as they are.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from converter.checkpoint import Checkpoint
from converter.errors import CorruptFile, MissingPart, UnsupportedFeature, short
from converter.events import Event, Note
from converter.formats.base import Format, check_elements, check_name
from converter.storage.files import Bytes, open_bytes
from converter.storage.windows import Cursor
from converter.tensors.dtypes import BY_GGUF, F32, DType
from converter.tensors.tensor import LazyTensor, Rows, TensorInfo

MAGICS = {b"lmgg": "ggml", b"fmgg": "ggmf", b"tjgg": "ggjt"}  # as little-endian integers stand in a file
ALIGNMENT = 32
MAX_DIMS = 4
MAX_TEXT = 4096
MAX_TOKENS = 1 << 22
MAX_TENSORS = 1 << 18
MEL = "mel_filters"

# Blocks whose layout is today's, by the version of quantization a file was made with (whisper.cpp counts 1 and 2
# where ggjt counts 2 and 3): nothing before, the five-bit and K types from the first, all from the second.
_PLAIN = frozenset({"F32", "F16"})
_UNCHANGED = _PLAIN | {"Q5_0", "Q5_1", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K"}
TYPES = {0: _PLAIN, 1: _UNCHANGED, 2: _UNCHANGED | {"Q4_0", "Q4_1", "Q8_0"}}

LLAMA = ("n_vocab", "n_embd", "n_mult", "n_head", "n_layer", "n_rot", "ftype")
WHISPER = (
    "n_vocab", "n_audio_ctx", "n_audio_state", "n_audio_head", "n_audio_layer",
    "n_text_ctx", "n_text_state", "n_text_head", "n_text_layer", "n_mels", "ftype",
)  # fmt: skip
N_FFT_BINS = 201
SILERO = b"silero-16k"
LLAMA_TOP = ("tok_embeddings.weight", "norm.weight", "output.weight")
LLAMA_BLOCK = (
    "attention.wq", "attention.wk", "attention.wv", "attention.wo", "attention_norm",
    "feed_forward.w1", "feed_forward.w2", "feed_forward.w3", "ffn_norm",
)  # fmt: skip
# What Whisper needs besides: positions, two convolutions and a norm; positions, embedding and a norm; and per layer.
WHISPER_TENSORS = {"": 11, "n_audio_layer": 15, "n_text_layer": 24}


@dataclass
class _Reader:
    """One file being read: what came so far."""

    mapped: Bytes
    cursor: Cursor
    layout: str
    texts: dict[str, str]
    tensors: dict[str, LazyTensor]

    @property
    def path(self) -> Path:
        return self.mapped.path

    def numbers(self, names: tuple[str, ...]) -> dict[str, int]:
        """Numbers of the header, into the metadata."""
        found = {name: self.cursor.u32(name) for name in names}
        self.texts.update({f"ggml.{name}": str(value) for name, value in found.items()})
        return found


def sniff(path: Path, start: bytes) -> bool:
    """One of the three magics."""
    return start[:4] in MAGICS


def open_ggml(path: Path) -> Checkpoint:
    """A `.bin` of ggml.

    Raises:
        CorruptFile: truncated or contradictory.
        MissingPart: some of the tensors that the layout needs are not there.
        UnsupportedFeature: another program's layout, or blocks of an abandoned kind.
    """
    mapped = open_bytes(path)
    try:
        cursor = Cursor(mapped)
        layout = _layout(path, bytes(cursor.ahead(256, "the header")))
        reader = _Reader(mapped, cursor, layout, {"ggml.layout": layout}, {})
        events = _READERS[layout](reader)
    except BaseException:
        mapped.close()
        raise
    return Checkpoint(
        format="ggml",
        path=path,
        dialect=None,
        tensors=reader.tensors,
        metadata=reader.texts,
        events=events,
        files=(path,),
        closers=(mapped.close,),
    )


def _layout(path: Path, start: bytes) -> str:
    """Which program's file this is."""
    magic = MAGICS.get(start[:4])
    if magic is None:
        raise CorruptFile(f"{path}: not a ggml file")
    numbers = struct.unpack(f"<{(len(start) - 4) // 4}I", start[4 : 4 + (len(start) - 4) // 4 * 4])
    if magic != "ggml":
        return "llama"
    if start[8:18] == SILERO and numbers[0] == len(SILERO):
        return "silero"
    if len(numbers) > 12 and numbers[9] == numbers[11] > 0 and numbers[12] == N_FFT_BINS:
        return "whisper"
    if len(numbers) > 6 and numbers[3] and numbers[5] * numbers[3] == numbers[1]:
        return "llama"
    raise UnsupportedFeature(f"{path}: a ggml file of no known layout (known: {', '.join(_READERS)})")


# ------------------------------------------------------------------------------------------------ layouts


def _llama(reader: _Reader) -> tuple[Event, ...]:
    cursor = reader.cursor
    magic = MAGICS[bytes(cursor.take(4, "the magic"))]
    version = cursor.u32("the version") if magic != "ggml" else 0
    if magic != "ggml" and version not in ((1,) if magic == "ggmf" else (1, 2, 3)):
        raise UnsupportedFeature(f"{reader.path}: {magic} version {version}")
    reader.texts["ggml.version"] = f"{magic} {version}" if version else magic
    sizes = reader.numbers(LLAMA)
    _vocabulary(reader, sizes["n_vocab"], scores=magic != "ggml")
    quantization = version - 1 if magic == "ggjt" else 0
    _tensors(reader, TYPES[quantization], ALIGNMENT if magic == "ggjt" else 1)
    _check_llama(reader, sizes)
    return ()


def _check_llama(reader: _Reader, sizes: Mapping[str, int]) -> None:
    """Every tensor of every layer, whole: files of the first days came in parts."""
    found = reader.tensors
    n_layer = sizes["n_layer"]
    if n_layer * len(LLAMA_BLOCK) <= len(found):
        blocks = [f"layers.{i}.{name}.weight" for i in range(n_layer) for name in LLAMA_BLOCK]
        missing = next((name for name in (*LLAMA_TOP, *blocks) if name not in found), None)
    else:
        missing = "a layer"
    if missing is not None:
        raise MissingPart(
            f"{reader.path}: {missing} is not in it, {n_layer} layers need {len(LLAMA_TOP) + 9 * n_layer} tensors "
            f"and there are {len(found)}\nthe file is truncated; download it again"
        )
    shape = found[LLAMA_TOP[0]].info.shape
    if shape != (sizes["n_vocab"], sizes["n_embd"]):
        raise UnsupportedFeature(
            f"{reader.path}: {LLAMA_TOP[0]} is {list(shape)}, not {[sizes['n_vocab'], sizes['n_embd']]}\n"
            "files in parts cannot be read; join them with the tools of their time"
        )


def _whisper(reader: _Reader) -> tuple[Event, ...]:
    reader.cursor.take(4, "the magic")
    sizes = reader.numbers(WHISPER)
    n_mels, n_bins = reader.cursor.u32("n_mels"), reader.cursor.u32("n_fft")
    _matrix(reader, MEL, (n_mels, n_bins))
    _vocabulary(reader, reader.cursor.u32("the number of tokens"), scores=False)
    _tensors(reader, TYPES.get(sizes["ftype"] // 1000, _PLAIN), 1)
    needed = sum(count * (sizes[name] if name else 1) for name, count in WHISPER_TENSORS.items())
    if len(reader.tensors) == 1:
        return (Note("no tensors but the mel filters: a file for tests of the vocabulary"),)
    _check_count(reader, len(reader.tensors) - 1, needed)
    return ()


def _silero(reader: _Reader) -> tuple[Event, ...]:
    cursor = reader.cursor
    cursor.take(8 + len(SILERO), "the magic")
    reader.numbers(("version_major", "version_minor", "version_patch", "window_size", "context_size"))
    n_layer = reader.numbers(("n_encoder_layers",))["n_encoder_layers"]
    if n_layer * 12 > cursor.left:
        raise CorruptFile(f"{reader.path}: {n_layer} encoder layers, the file has no room for them")
    for layer in range(n_layer):
        reader.numbers(tuple(f"encoder.{layer}.{what}" for what in ("in_channels", "out_channels", "kernel_size")))
    reader.numbers(("lstm_input_size", "lstm_hidden_size", "final_conv_in", "final_conv_out"))
    _tensors(reader, TYPES[0], 1)
    _check_count(reader, len(reader.tensors), 2 * n_layer + 7)
    return ()


_READERS: dict[str, Callable[[_Reader], tuple[Event, ...]]] = {"llama": _llama, "whisper": _whisper, "silero": _silero}


def _check_count(reader: _Reader, found: int, needed: int) -> None:
    if found != needed:
        raise MissingPart(
            f"{reader.path}: {found} tensors, a {reader.layout} model of its sizes has {needed}\n"
            "the file is truncated or has something appended; download it again"
        )


# -------------------------------------------------------------------------------------------------- parts


def _vocabulary(reader: _Reader, count: int, scores: bool) -> None:
    """Texts, each with its length before and, where there are `scores`, an F32 behind.

    Kept as JSON; a token that is not UTF-8 is an object with its bytes in hexadecimal.
    """
    cursor = reader.cursor
    smallest = 8 if scores else 4
    if count * smallest > cursor.left or count > MAX_TOKENS:
        room = min(MAX_TOKENS, cursor.left // smallest)
        raise CorruptFile(f"{reader.path}: {count} tokens, the file has room for {room}")
    tokens: list[str | dict[str, str]] = []
    values: list[float] = []
    for index in range(count):
        size = cursor.u32("a token")
        if size > MAX_TEXT:
            raise CorruptFile(f"{reader.path}: token {index} is {size} bytes long")
        tokens.append(_token(bytes(cursor.take(size, "a token"))))
        if scores:
            values.append(struct.unpack("<f", cursor.take(4, "a score"))[0])
    if not all(map(math.isfinite, values)):
        raise CorruptFile(f"{reader.path}: a score of the vocabulary is not a number")
    reader.texts["ggml.tokens"] = json.dumps(tokens, ensure_ascii=False)
    if scores:
        reader.texts["ggml.scores"] = json.dumps(values)


def _token(data: bytes) -> str | dict[str, str]:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        return {"hex": data.hex()}


def _matrix(reader: _Reader, name: str, shape: tuple[int, ...]) -> None:
    """F32 numbers of the header, which are as good as a tensor."""
    reader.tensors[name] = _tensor(reader, TensorInfo(name, shape, F32))


def _tensors(reader: _Reader, types: frozenset[str], alignment: int) -> None:
    """Tensors up to the end of the file."""
    while reader.cursor.left:
        if len(reader.tensors) >= MAX_TENSORS:
            raise UnsupportedFeature(f"{reader.path}: more than {MAX_TENSORS} tensors; no model has so many")
        info = _entry(reader, types)
        if info.name in reader.tensors:
            raise CorruptFile(f"{reader.path}: tensor {short(info.name)} stands twice")
        reader.cursor.skip(-reader.cursor.position % alignment, "padding")
        reader.tensors[info.name] = _tensor(reader, info)


def _entry(reader: _Reader, types: frozenset[str]) -> TensorInfo:
    cursor, path = reader.cursor, reader.path
    n_dims, size, code = (cursor.u32("a tensor") for _ in range(3))
    if n_dims > MAX_DIMS or not 0 < size <= MAX_TEXT:
        at = cursor.position - 12
        raise CorruptFile(f"{path}: no tensor begins at offset {at} ({n_dims} axes, a name of {size} bytes)")
    shape = tuple(cursor.u32("a shape") for _ in range(n_dims))[::-1]
    name = _name(path, bytes(cursor.take(size, "a tensor's name")))
    check_elements(path, name, shape)
    dtype = _dtype(path, name, code, types)
    if not dtype.fits(shape[-1] if shape else 1):
        raise CorruptFile(f"{path}: tensor {short(name)} is {dtype}{list(shape)}, whose rows are no whole blocks")
    return TensorInfo(name, shape, dtype)


def _name(path: Path, data: bytes) -> str:
    try:
        name = data.decode("utf-8")
    except UnicodeDecodeError:
        raise CorruptFile(f"{path}: the name {short(data)} is not UTF-8") from None
    check_name(path, name)
    return name


def _dtype(path: Path, name: str, code: int, types: frozenset[str]) -> DType:
    dtype = BY_GGUF.get(code)
    if dtype is None or dtype.name not in TYPES[2]:
        raise UnsupportedFeature(f"{path}: tensor {short(name)} has unknown type {code}")
    if dtype.name not in types:
        raise UnsupportedFeature(
            f"{path}: tensor {short(name)} is {dtype} of a layout that ggml gave up in 2023\n"
            "convert the original model; what its blocks mean has changed"
        )
    return dtype


def _tensor(reader: _Reader, info: TensorInfo) -> LazyTensor:
    """The tensor that begins here; its bytes are stepped over."""
    mapped, offset, row = reader.mapped, reader.cursor.position, info.row_nbytes
    reader.cursor.skip(info.nbytes, f"tensor {short(info.name)}")

    def read(start: int, stop: int) -> Rows:
        data = mapped.view(offset + start * row, (stop - start) * row, f"tensor {short(info.name)}")
        return data.reshape(stop - start, row)

    return LazyTensor(info, read, f"{mapped.path}@{offset}")


FORMATS = (
    Format(
        name="ggml",
        extensions=(".bin",),
        dialect=None,
        description="ggml file from before GGUF: llama (ggml, ggmf, ggjt), Whisper, Silero VAD",
        dtypes=TYPES[2],
        sniff=sniff,
        open=open_ggml,
    ),
)
