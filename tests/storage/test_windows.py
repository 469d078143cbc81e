"""Opening a file asks for its header, and for no more than 64 KB around it: counted where files are opened."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from support import builders, samples, tensorflow_files, torch_files

from converter.checkpoint import Checkpoint
from converter.errors import CorruptFile
from converter.formats.base import Format, WriteOptions
from converter.formats.registry import formats, open_checkpoint, readers
from converter.metadata import TYPES
from converter.request import Source
from converter.storage import files, output
from converter.storage.files import Bytes, InMemory, MappedFile, Part
from converter.storage.protobuf import blob
from converter.storage.windows import BLOCK, MARGIN, WINDOW, Cursor, Windows
from converter.tensors.dtypes import DTYPES
from converter.tensors.tensor import LazyTensor, TensorInfo

AROUND = 64 << 10
Span = tuple[int, int]


class Counting:
    """`Bytes` that note what they are asked for."""

    def __init__(self, source: Bytes) -> None:
        self.path, self.size = source.path, source.size
        self.spans: list[Span] = []
        self._source = source

    def view(self, offset: int, nbytes: int, what: str) -> NDArray[np.uint8]:
        self.spans.append((offset, offset + nbytes))
        return self._source.view(offset, nbytes, what)

    def scattered(self) -> AbstractContextManager[None]:
        return self._source.scattered()

    def forward(self, edges: Iterable[int]) -> None:
        self._source.forward(edges)

    def close(self) -> None:
        self._source.close()

    @property
    def asked(self) -> int:
        """Bytes of all that was asked for, what was asked for twice counted twice."""
        return sum(stop - start for start, stop in self.spans)

    @property
    def distinct(self) -> int:
        """Bytes of the file that were asked for at all."""
        total, end = 0, 0
        for start, stop in sorted(self.spans):
            total += max(0, stop - max(start, end))
            end = max(end, stop)
        return total


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[Counting]:
    """Every file that is opened from now on."""
    found: list[Counting] = []

    def counted(path: Path) -> Bytes:
        found.append(Counting(MappedFile(path)))
        return found[-1]

    monkeypatch.setattr(files, "MappedFile", counted)
    return found


def zeros(name: str, *shape: int) -> LazyTensor:
    info = TensorInfo(name, shape, DTYPES["F32"])
    return LazyTensor(info, lambda start, stop: np.zeros((stop - start, info.row_nbytes), np.uint8), "test")


def opening(path: Path, format: str, opened: Sequence[Counting], room: int = AROUND) -> tuple[int, int, int]:
    """Bytes of the header (what is no tensor), bytes asked for on opening, bytes of them that differ; checked."""
    with open_checkpoint(Source(path, format)) as checkpoint:
        tensors = sum(tensor.info.nbytes for tensor in checkpoint.tensors.values())
        asked = sum(file.asked for file in opened)
    assert opened, f"{format} opens files in a way of its own"
    given = sum(file.size for file in {file.path: file for file in opened}.values())
    distinct = sum(file.distinct for file in opened)
    header = given - tensors
    print(f"{format}: header {header}, asked for {asked}, distinct {distinct}, of {given} bytes")
    assert 0 < distinct <= header + room
    return header, asked, distinct


@pytest.mark.parametrize("reader", readers(), ids=lambda reader: reader.name)
def test_opening_asks_for_the_header_alone(tmp_path: Path, reader: Format, opened: list[Counting]) -> None:
    header, asked, _ = opening(samples.large(reader, zeros("w", 4, 1 << 20), tmp_path), reader.name, opened)
    assert header < 1 << 20 and asked <= header + AROUND


MANY, EACH = 64, 1 << 16


@pytest.mark.parametrize("name", ["safetensors", "gguf", "flax", "onnx", "hdf5", "npz", "torch"])
def test_headers_between_tensors_are_looked_at_by_small_windows(
    tmp_path: Path, name: str, opened: list[Counting]
) -> None:
    """Each tensor costs a block or two, however long it is."""
    tensors = {f"t{i}": zeros(f"t{i}", 4, EACH) for i in range(MANY)}
    path = samples.write(formats()[name], tensors, tmp_path / "many", {})
    around = MANY * 2 * (BLOCK + MARGIN)
    header, asked, distinct = opening(path, name, opened, around)
    assert asked <= header + around and distinct < MANY * EACH * 4 / 64


def test_tensors_within_an_onnx_model(tmp_path: Path, opened: list[Counting]) -> None:
    layout, path = formats()["onnx"].layout, tmp_path / "m.onnx"
    checkpoint = Checkpoint("test", path, None, {f"t{i}": zeros(f"t{i}", 4, EACH) for i in range(MANY)})
    assert layout is not None
    output.write(layout(checkpoint, path, WriteOptions(external_data="never")))
    header, asked, _ = opening(path, "onnx", opened, AROUND + MANY * (BLOCK + MARGIN))
    assert asked <= header + AROUND + MANY * (BLOCK + MARGIN)


def vocabulary(count: int) -> bytes:
    """A GGUF file of a header of several megabytes and one tensor."""
    texts = [f"token {i}" * (1 + i % 5) for i in range(count)]
    texts[count // 2] = "long" * WINDOW  # does not fit a window
    return builders.gguf(
        [
            builders.array_pair("tokenizer.ggml.tokens", TYPES["str"].gguf, texts),
            builders.array_pair("tokenizer.ggml.scores", TYPES["f32"].gguf, [0.5] * count),
            builders.array_pair("tokenizer.ggml.merges", TYPES["str"].gguf, ["a b"] * count),
        ],
        [builders.tensor("w", (1 << 20,), 0, 0)],
        bytes(4 << 20),
    )


def test_a_long_vocabulary(tmp_path: Path, opened: list[Counting]) -> None:
    path = tmp_path / "v.gguf"
    path.write_bytes(vocabulary(50_000))
    header, asked, _ = opening(path, "gguf", opened)
    assert header > 2 << 20 and asked <= 2 * (header + AROUND)
    with open_checkpoint(path) as checkpoint:
        tokens = checkpoint.config["tokenizer.ggml.tokens"].values
        assert len(tokens) == 50_000 and tokens[7] == "token 7" * 3 and tokens[49_999] == "token 49999" * 5


def test_texts_that_are_cut_off(tmp_path: Path) -> None:
    whole = vocabulary(2_000)
    path = tmp_path / "v.gguf"
    for size in (200, 8_000, 20_000, len(whole) - (4 << 20) - 9_000):
        path.write_bytes(whole[:size])
        with pytest.raises(CorruptFile):
            open_checkpoint(path)


def test_the_streams_of_old_torch(tmp_path: Path, opened: list[Counting]) -> None:
    numel = 1 << 20
    w = torch_files.tensor(torch_files.storage("FloatStorage", "0", numel, b"N"), shape=(numel,), stride=(1,))
    path = tmp_path / "stream.pt"
    path.write_bytes(torch_files.stream(torch_files.dictionary({"w": w}), [("0", numel, bytes(4 * numel))]))
    _, asked, _ = opening(path, "torch", opened)
    assert asked < AROUND


def test_checkpoints_of_the_first_tensorflow(tmp_path: Path, opened: list[Counting]) -> None:
    """Values lie in blocks between keys; the block that the header is in is compared with its checksum as a whole."""
    row = 1 << 16
    proto = blob(5, bytes(4 * row))
    tensors = {f"t{i}": (1, (row,), [(((0, None),), proto)]) for i in range(6)}
    path = tmp_path / "m.ckpt"
    path.write_bytes(tensorflow_files.v1(tensors))
    header, asked, _ = opening(path, "tensorflow", opened, AROUND + 4 * row)
    assert header < 2048 and asked <= header + AROUND + 2 * 4 * row


# ------------------------------------------------------------------------------------------- kinds of Bytes


def kinds(tmp_path: Path, data: bytes) -> Iterator[Bytes]:
    path = tmp_path / "f"
    path.write_bytes(data)
    yield MappedFile(path)
    yield InMemory(path, data)
    path.write_bytes(b"before" + data + b"after")
    yield Part(MappedFile(path), 6, len(data))


def test_every_kind_of_bytes_is_as_long_as_it_says(tmp_path: Path) -> None:
    data = bytes(range(256)) * 40
    for source in kinds(tmp_path, data):
        with source.scattered():
            assert source.size == len(data) and source.view(3, 300, "it").tobytes() == data[3:303]
        assert source.view(source.size, 0, "nothing").tobytes() == b""
        for offset, nbytes in ((-1, 2), (0, len(data) + 1), (len(data), 1), (5, -1)):
            with pytest.raises(CorruptFile, match=r"f: it at offset .* needs"):
                source.view(offset, nbytes, "it")
        source.close()


def test_windows_ask_once_for_what_is_near() -> None:
    data = np.random.default_rng(0).integers(0, 256, 3 * BLOCK + 100, np.uint8).tobytes()
    source = Counting(InMemory(Path("f"), data))
    windows = Windows(source)
    for at in (5, BLOCK - 4, BLOCK, 100, 3 * BLOCK + 40, BLOCK - 1):
        assert bytes(windows.at(at, 10, "it")) == data[at : at + 10]
        buffer, start = windows.near(at)
        assert bytes(buffer[at - start :][:MARGIN]) == data[at : at + MARGIN]
    assert [start for start, _ in source.spans] == [0, BLOCK, 3 * BLOCK]
    assert bytes(windows.at(7, 2 * BLOCK, "it")) == data[7 : 7 + 2 * BLOCK]
    with pytest.raises(CorruptFile, match=f"it at offset {len(data) - 3} needs 4 bytes"):
        windows.at(len(data) - 3, 4, "it")


READS: list[tuple[Callable[[Cursor], object], object]] = [
    (lambda c: bytes(c.take(5, "it")), b"01234"),
    (lambda c: (c.skip(2 * WINDOW, "it"), bytes(c.take(3, "it"))), (None, b"ABC")),
    (lambda c: bytes(c.ahead(1 << 30, "it")[-3:]), b"end"),
    (lambda c: len(c.take(c.left, "it")), 2 * WINDOW),
]


def test_a_cursor_reads_on_where_it_is() -> None:
    data = b"01234" + bytes(2 * WINDOW) + b"ABC" + bytes(2 * WINDOW - 3) + b"end"
    cursor = Cursor(InMemory(Path("f"), data))
    for read, wanted in READS:
        assert read(cursor) == wanted
    with pytest.raises(CorruptFile, match="more at offset 32776 needs 1 bytes"):
        cursor.take(1, "more")
