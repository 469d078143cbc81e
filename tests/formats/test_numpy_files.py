"""`.npy` and `.npz`: against numpy itself, and what numpy would not write."""

from __future__ import annotations

import io
import struct
import zipfile
import zlib
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from converter.checkpoint import Checkpoint
from converter.cli.main import main
from converter.errors import ConverterError, CorruptFile, LossyError, UnsupportedFeature, UsageError
from converter.events import Dropped
from converter.formats import numpy_files
from converter.formats.base import WriteOptions
from converter.formats.registry import open_checkpoint
from converter.storage import output
from converter.tensors.dtypes import BY_NUMPY, DTYPES
from converter.tensors.tensor import LazyTensor, TensorInfo, from_array

RELAXED = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
GRID = np.arange(60, dtype="<f4").reshape(3, 4, 5)


def npy(array: np.ndarray) -> bytes:
    """The bytes of numpy.save."""
    out = io.BytesIO()
    np.save(out, array, allow_pickle=True)
    return out.getvalue()


def raw_npy(text: str | bytes, data: bytes = b"", *, version: int = 1, length: int | None = None) -> bytes:
    """A file with a header of one's own."""
    header = text if isinstance(text, bytes) else text.encode()
    size = len(header) if length is None else length
    return b"\x93NUMPY" + bytes([version, 0]) + struct.pack("<H" if version == 1 else "<I", size) + header + data


def header(descr: str = "'<f4'", order: str = "False", shape: str = "(2,)") -> str:
    return f"{{'descr': {descr}, 'fortran_order': {order}, 'shape': {shape}, }}\n"


def written(folder: Path, data: bytes, name: str = "array.npy") -> Path:
    path = folder / name
    path.write_bytes(data)
    return path


def read_all(path: Path) -> dict[str, np.ndarray]:
    with open_checkpoint(path) as checkpoint:
        found = {name: tensor.array() for name, tensor in checkpoint.tensors.items()}
        checkpoint.check()
        return found


def same(found: np.ndarray, wanted: np.ndarray) -> bool:
    little = wanted.astype(wanted.dtype.newbyteorder("<"))
    return (found.shape, found.dtype) == (wanted.shape, little.dtype) and found.tobytes() == little.tobytes()


# --------------------------------------------------------------------------------------------- .npy, reading


@pytest.mark.parametrize("name", [name for name in numpy_files.TYPES.values() if name != "F8_E5M2"])
def test_every_type(tmp_path: Path, name: str) -> None:
    dtype = DTYPES[name].numpy
    assert dtype is not None
    array = np.arange(12).reshape(3, 4).astype(dtype)
    assert same(read_all(written(tmp_path, npy(array)))["array"], array)


def test_types_that_numpy_has_no_name_for(tmp_path: Path) -> None:
    array = np.array([1.5, -2], ml_dtypes.bfloat16)
    assert read_all(written(tmp_path, npy(array)))["array"].tobytes() == array.tobytes()
    path = written(tmp_path, raw_npy(header("'<f1'"), b"\x3c\xc0"))
    assert read_all(path)["array"].tolist() == [1.0, -2.0]
    with pytest.raises(UnsupportedFeature, match="save it as uint8"):
        read_all(written(tmp_path, npy(np.zeros(3, ml_dtypes.float8_e4m3fn))))


@pytest.mark.parametrize("dtype", [">f4", ">f8", ">i2", ">u8", ">c8", ">c16"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_other_byte_orders(tmp_path: Path, dtype: str, order: Any) -> None:
    array = np.asarray(GRID.astype(dtype), order=order)
    assert same(read_all(written(tmp_path, npy(array)))["array"], array)


@pytest.mark.parametrize("shape", [(), (1,), (7,), (3, 5), (5, 1), (1, 5), (2, 3, 4, 5), (0,), (3, 0), (0, 3)])
@pytest.mark.parametrize("order", ["C", "F"])
def test_shapes_and_orders(tmp_path: Path, shape: tuple[int, ...], order: Any) -> None:
    array = np.asarray(np.arange(np.prod(shape), dtype="<i4").reshape(shape), order=order)
    path = written(tmp_path, npy(array))
    assert same(read_all(path)["array"], array)
    with open_checkpoint(path) as checkpoint:
        tensor = checkpoint.tensors["array"]
        flat = np.ascontiguousarray(array).reshape(tensor.info.n_rows, tensor.info.row)
        for start in range(tensor.info.n_rows + 1):
            assert tensor.rows(start, tensor.info.n_rows).tobytes() == flat[start:].tobytes()


@pytest.mark.parametrize(
    "text",
    [
        "{'shape': (2,), 'fortran_order': False, 'descr': '<f4'}",
        '{"descr":"<f4","fortran_order":False,"shape":(2,)}',
        "  { 'descr' : '<f4' , 'fortran_order' : True , 'shape' : ( 2L , ) , }   \n",
        "{'descr': '<f4', 'fortran_order': False, 'shape': (2, 1), }",
    ],
)
@pytest.mark.parametrize("version", [1, 2, 3])
def test_headers_of_other_writers(tmp_path: Path, text: str, version: int) -> None:
    path = written(tmp_path, raw_npy(text, struct.pack("<2f", 1, 2), version=version))
    assert read_all(path)["array"].reshape(-1).tolist() == [1, 2]


EIGHT = struct.pack("<2f", 1, 2)
BAD = {
    "only the magic": b"\x93NUMPY",
    "no header": b"\x93NUMPY\x01\x00",
    "header bomb": raw_npy(header(), EIGHT, version=2, length=0xFFFFFFFF),
    "header past the end": raw_npy(header(), length=9000),
    "data too short": raw_npy(header(), EIGHT[:-1]),
    "data too long": raw_npy(header(), EIGHT + b"\0"),
    "two arrays": raw_npy(header(), EIGHT) * 2,
    "shape is huge": raw_npy(header(shape="(4294967296, 4294967296)"), EIGHT),
    "shape is huge but for a zero": raw_npy(header(shape="(4294967296, 4294967296, 0)")),
    "shape of 30 digits": raw_npy(header(shape="(" + "9" * 30 + ",)"), EIGHT),
    "65 axes": raw_npy(header(shape="(" + "1," * 65 + ")"), EIGHT[:4]),
    "negative": raw_npy(header(shape="(-2,)"), EIGHT),
    "shape is a number": raw_npy(header(shape="2"), EIGHT),
    "shape in parentheses": raw_npy(header(shape="(2)"), EIGHT),
    "shape is a list": raw_npy(header(shape="[2]"), EIGHT),
    "shape nests": raw_npy(header(shape="((2,),)"), EIGHT),
    "shape of commas": raw_npy(header(shape="(,)"), EIGHT),
    "shape with a hole": raw_npy(header(shape="(2,,1)"), EIGHT),
    "shape of spaces": raw_npy(header(shape="(2 1,)"), EIGHT),
    "shape of floats": raw_npy(header(shape="(2.0,)"), EIGHT),
    "shape multiplies": raw_npy(header(shape="(2*1,)"), EIGHT),
    "order is a number": raw_npy(header(order="0"), EIGHT),
    "order is a text": raw_npy(header(order="'False'"), EIGHT),
    "type is a number": raw_npy(header(descr="4"), EIGHT),
    "type is a call": raw_npy(header(descr="__import__('os')"), EIGHT),
    "key is missing": raw_npy("{'descr': '<f4', 'shape': (2,), }", EIGHT),
    "key stands twice": raw_npy("{'descr': '<f4', 'descr': '<f4', 'fortran_order': False, 'shape': (2,)}", EIGHT),
    "another key": raw_npy("{'descr': '<f4', 'fortran_order': False, 'shape': (2,), 'x': 1}", EIGHT),
    "no dict": raw_npy("['<f4', False, (2,)]", EIGHT),
    "behind the dict": raw_npy(header().strip() + " or {}", EIGHT),
    "empty header": raw_npy("", EIGHT),
    "not UTF-8": raw_npy(header().encode() + b"\xff", EIGHT, version=3),
    "deep": raw_npy("(" * 5000 + ")" * 5000, EIGHT, version=2),
}
UNSUPPORTED = {
    "objects": npy(np.array([{}], dtype=object)),
    "records": npy(np.zeros(2, "f4,f4")),
    "texts": npy(np.array(["a", "b"])),
    "bytes": npy(np.array([b"a"])),
    "dates": npy(np.zeros(2, "M8[ns]")),
    "void": raw_npy(header("'|V2000000000'"), EIGHT),
    "bare void": raw_npy(header("'|V8'"), EIGHT),
    "long double": npy(np.zeros(2, np.longdouble)),
    "no order": raw_npy(header("'f4'"), EIGHT),
    "big-endian void": raw_npy(header("'>V2'"), EIGHT[:4]),
    "name of a class": raw_npy(header("'float32'"), EIGHT),
    "version 4": raw_npy(header(), EIGHT, version=4),
    "version 1.1": b"\x93NUMPY\x01\x01" + raw_npy(header(), EIGHT)[8:],
}


@pytest.mark.parametrize("case", BAD)
def test_what_numpy_would_not_write(tmp_path: Path, case: str) -> None:
    with pytest.raises(CorruptFile) as caught:
        read_all(written(tmp_path, BAD[case]))
    assert "array.npy" in str(caught.value)
    assert len(str(caught.value).splitlines()) <= 3


@pytest.mark.parametrize("case", UNSUPPORTED)
def test_what_is_not_plain_numbers(tmp_path: Path, case: str) -> None:
    with pytest.raises(UnsupportedFeature):
        read_all(written(tmp_path, UNSUPPORTED[case]))


def test_every_truncation_is_refused(tmp_path: Path) -> None:
    data = npy(GRID)
    for length in range(0, len(data), 7):
        with pytest.raises(ConverterError):
            read_all(written(tmp_path, data[:length]))


@RELAXED
@given(st.data())
def test_damage_is_refused_or_read(tmp_path: Path, data: st.DataObject) -> None:
    damaged = bytearray(data.draw(st.sampled_from([npy(GRID), npy(np.asfortranarray(GRID.astype(">i4")))])))
    for _ in range(data.draw(st.integers(1, 4))):
        damaged[data.draw(st.integers(0, 127))] = data.draw(st.integers(0, 255))
    try:
        read_all(written(tmp_path, bytes(damaged)))
    except ConverterError as error:
        assert "array.npy" in str(error)


@RELAXED
@given(st.text(alphabet="{}()[]',:<f4 descrshapefortran_orderTrueFalse0123456789", max_size=120))
def test_any_header(tmp_path: Path, text: str) -> None:
    with pytest.raises(ConverterError):
        read_all(written(tmp_path, raw_npy(text, b"\0" * 13)))


# --------------------------------------------------------------------------------------------- .npz, reading


def npz(members: dict[str, bytes], method: int = zipfile.ZIP_STORED) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", method) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return out.getvalue()


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_archives_of_numpy(tmp_path: Path, save: Any) -> None:
    arrays: dict[str, Any] = {
        "w": GRID, "columns": np.asfortranarray(GRID), "big": GRID.astype(">f8"), "scalar": np.float64(2),
        "none": np.zeros((0, 3), "i1"), "layer/kernel": np.arange(300_000, dtype="<u2"), "on": np.array([True, False]),
    }  # fmt: skip
    save(tmp_path / "m.npz", **arrays)
    found = read_all(tmp_path / "m.npz")
    assert list(found) == list(arrays)
    assert all(same(found[name], np.asarray(array)) for name, array in arrays.items())


BAD_ARCHIVES = {
    "members that are no arrays": npz({"a.npy": npy(np.array(["x"])), "b.txt": b"x"}),
    "a left-out member that is damaged": npz({"a.npy": npy(GRID), "b.npy": npy(np.array(["xyz"]))}).replace(
        "xyz".encode("utf-32-le"), "xyy".encode("utf-32-le")
    ),
    "an object": npz({"a.npy": npy(np.array([{}], dtype=object))}),
    "not an array inside": npz({"a.npy": b"x" * 100}),
    "an array cut off": npz({"a.npy": npy(GRID)[:-4]}),
    "an empty member": npz({"a.npy": b""}),
    "trailing bytes": npz({"a.npy": npy(GRID)}) + b"x",
    "wrong checksum": npz({"a.npy": npy(GRID)}).replace(struct.pack("<f", 7), struct.pack("<f", 8)),
    "deflate bomb": npz({"a.npy": raw_npy(header(shape="(2000000000,)"), b"\0" * 5_000_000)}, zipfile.ZIP_DEFLATED),
}


@pytest.mark.parametrize("case", UNSUPPORTED)
def test_members_that_are_no_tensors_are_left_out(case: str, tmp_path: Path) -> None:
    """And named, as in every container; what is beside them is read."""
    members = {"a.npy": npy(GRID), "odd.npy": UNSUPPORTED[case], "notes.txt": b"x"}
    with open_checkpoint(written(tmp_path, npz(members), "m.npz")) as checkpoint:
        assert [type(event) for event in checkpoint.events] == [Dropped, Dropped]
        odd, notes = map(str, checkpoint.events)
        assert odd.startswith("odd.npy: dropped (") and "member" not in odd and "m.npz" not in odd
        assert notes == "notes.txt: dropped (is no .npy)"
        assert list(checkpoint.tensors) == ["a"] and same(checkpoint.tensors["a"].array(), GRID)
    assert main([str(tmp_path / "m.npz"), str(tmp_path / "m.safetensors"), "--strict"]) == LossyError.exit_code
    assert main([str(tmp_path / "m.npz"), str(tmp_path / "m.safetensors")]) == 0


@pytest.mark.parametrize("case", BAD_ARCHIVES)
def test_bad_archives(tmp_path: Path, case: str) -> None:
    with pytest.raises(ConverterError) as caught:
        read_all(written(tmp_path, BAD_ARCHIVES[case], "m.npz"))
    assert "m.npz" in str(caught.value)


@RELAXED
@given(st.data())
def test_a_damaged_archive_is_refused_or_the_same(tmp_path: Path, data: st.DataObject) -> None:
    """Every byte of the arrays is under a checksum."""
    good = npz({"a.npy": npy(GRID), "b.npy": npy(GRID.T)}, data.draw(st.sampled_from([0, 8])))
    damaged = bytearray(good)
    for _ in range(data.draw(st.integers(1, 3))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    try:
        found = read_all(written(tmp_path, bytes(damaged), "m.npz"))
    except ConverterError as error:
        assert "m.npz" in str(error)
    else:
        assert sorted(array.tobytes() for array in found.values()) == sorted([GRID.tobytes(), GRID.T.tobytes()])


# ------------------------------------------------------------------------------------------------- writing


def save(arrays: dict[str, np.ndarray], target: Path) -> Path:
    """The arrays, written by the format of the target's extension."""
    tensors = {name: from_array(name, array, BY_NUMPY[array.dtype], "test") for name, array in arrays.items()}
    layout = numpy_files.layout_npy if target.suffix == ".npy" else numpy_files.layout_npz
    output.write(layout(Checkpoint("test", target, None, tensors), target, WriteOptions()), threads=2)
    return target


@pytest.mark.parametrize("shape", [(), (3,), (0,), (2, 3, 4)])
@pytest.mark.parametrize("name", numpy_files.WRITTEN)
def test_an_array_is_written_as_numpy_does(tmp_path: Path, name: str, shape: tuple[int, ...]) -> None:
    dtype = DTYPES[name].numpy
    assert dtype is not None
    array = np.arange(np.prod(shape)).reshape(shape).astype(dtype)
    assert save({"a": array}, tmp_path / "a.npy").read_bytes() == npy(array)


NAMES = ["a", "A", "layer/kernel:0", "../../x", "", "ä", "a.npy", "x" * 300, "a//b", "C:\\x"]


def test_an_archive_that_numpy_reads(tmp_path: Path) -> None:
    arrays = {name: np.full((i, 3), i, "<i8") for i, name in enumerate(NAMES)}
    target = save(arrays, tmp_path / "m.npz")
    with np.load(target, allow_pickle=False) as found:
        members = {member.removesuffix(".npy"): member for member in zipfile.ZipFile(target).namelist()}
        assert set(members) == set(NAMES)
        for name, member in members.items():
            assert same(found[member], arrays[name])
    assert zipfile.ZipFile(target).testzip() is None
    ours = read_all(target)
    assert list(ours) == NAMES
    assert all(same(ours[name], array) for name, array in arrays.items())


def test_data_are_aligned_and_the_same_every_time(tmp_path: Path) -> None:
    arrays = {"a": GRID, "bb": np.full(5, 77, "u1"), "ccc": GRID.astype("<f2"), "d": np.zeros((0, 2), "<f4")}
    target = save(arrays, tmp_path / "m.npz")
    raw = target.read_bytes()
    for array in arrays.values():
        assert array.nbytes == 0 or raw.index(array.tobytes()) % 64 == 0
    assert save(arrays, tmp_path / "n.npz").read_bytes() == raw


def test_sizes_of_64_bits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a limit of 200 bytes in place of 4 GB and of 3 members in place of 65535, by our reader's rules."""
    import converter.storage.zip as archive

    monkeypatch.setattr(archive, "FULL32", 200)
    for limit in (0xFFFF, 3):
        monkeypatch.setattr(archive, "FULL16", limit)
        arrays = {"a": GRID, "b": np.zeros(5, "u1"), "c": GRID[:1]}
        found = read_all(save(arrays, tmp_path / "m.npz"))
        assert all(same(found[name], array) for name, array in arrays.items())


def test_archives_over_4_gb(tmp_path: Path) -> None:
    """Everything but the data of a large array, which stays a hole in the file; Python's own reader agrees."""
    large = LazyTensor(TensorInfo("large", ((4 << 20) + 1, 1024), DTYPES["U8"]), lambda *_: pytest.fail("read"), "test")
    tensors = {"large": large, "small": from_array("small", GRID, DTYPES["F32"], "test")}
    target = tmp_path / "m.npz"
    file = numpy_files.layout_npz(Checkpoint("test", target, None, tensors), target, WriteOptions()).files[0]
    assert file.finish is not None
    with open(target, "wb") as out:
        out.truncate(file.size)
        for offset, data in [*file.finish([0, zlib.crc32(GRID.tobytes())]), (file.slots[1].offset, GRID.tobytes())]:
            out.seek(offset)
            out.write(data)
    archive = zipfile.ZipFile(target)
    assert archive.getinfo("large.npy").file_size == large.info.nbytes + 128
    with archive.open("large.npy") as member:
        assert np.lib.format.read_magic(member) == (1, 0)
        assert np.lib.format.read_array_header_1_0(member)[0] == large.info.shape
    assert same(np.load(io.BytesIO(archive.read("small.npy"))), GRID)
    with open_checkpoint(target) as checkpoint:
        assert checkpoint.tensors["large"].info == large.info
        assert checkpoint.tensors["large"].rows(4 << 20, (4 << 20) + 1).tobytes() == bytes(1024)
        assert same(checkpoint.tensors["small"].array(), GRID)


def test_what_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="npz holds them all"):
        save({"a": GRID, "b": GRID}, tmp_path / "a.npy")
    with pytest.raises(UsageError):
        save({}, tmp_path / "a.npz")
    for name in ("a.npy", "a.npz"):
        with pytest.raises(UnsupportedFeature, match="F8_E4M3"):
            save({"a": GRID.astype(ml_dtypes.float8_e4m3fn)}, tmp_path / name)
    with pytest.raises(UnsupportedFeature, match="too long"):
        save({"a" * 70000: GRID}, tmp_path / "a.npz")


KEYS = st.text(st.characters(codec="utf-8", exclude_categories=("Cc", "Cs")), max_size=8)
SPECS = st.tuples(st.sampled_from(sorted(numpy_files.WRITTEN)), st.lists(st.integers(0, 5), max_size=4))


@RELAXED
@given(st.dictionaries(KEYS, SPECS, min_size=1, max_size=5))
def test_round_trip(tmp_path: Path, spec: dict[str, tuple[str, list[int]]]) -> None:
    arrays = {}
    for seed, (name, (type_, shape)) in enumerate(spec.items()):
        dtype = DTYPES[type_].numpy
        assert dtype is not None
        data = np.random.default_rng(seed).integers(0, 256, int(np.prod(shape)) * dtype.itemsize, np.uint8)
        arrays[name] = (data % 2 if type_ == "BOOL" else data).view(dtype).reshape(shape)
    found = read_all(save(arrays, tmp_path / "m.npz"))
    assert {name: array.tobytes() for name, array in found.items()} == {n: a.tobytes() for n, a in arrays.items()}
    assert {name: (a.shape, a.dtype) for name, a in found.items()} == {n: (a.shape, a.dtype) for n, a in arrays.items()}


# ---------------------------------------------------------------------------------------------- real files


def test_real_files_on_the_command_line(data: Path, tmp_path: Path) -> None:
    source = data / "lm-stories260K-hf" / "model.safetensors"
    for first, second in (("m.npz", "m.safetensors"), ("n.npz", "n.npz")):
        assert main([str(source), str(tmp_path / first)]) == 0
        if second != first:
            assert main([str(tmp_path / first), str(tmp_path / second)]) == 0
        with open_checkpoint(tmp_path / second) as ours, open_checkpoint(source) as theirs:
            assert set(ours.tensors) == set(theirs.tensors)
            for name, tensor in theirs.tensors.items():
                assert ours.tensors[name].array().tobytes() == tensor.array().tobytes()
    for path in [*data.glob("npz-cs336/*.npz"), data / "basic-pitch" / "ref_outputs.npz"]:
        with np.load(path) as theirs_:
            found = read_all(path)
            assert set(found) == set(theirs_.files)
            assert all(same(found[name], theirs_[name]) for name in theirs_.files)
    source = data / "basic-pitch" / "ref_input.npy"
    assert main([str(source), str(tmp_path / "r.safetensors")]) == 0
    assert main([str(tmp_path / "r.safetensors"), str(tmp_path / "r.npy")]) == 0
    assert (tmp_path / "r.npy").read_bytes() == source.read_bytes()
