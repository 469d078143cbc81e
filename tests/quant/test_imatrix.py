"""Importance matrices: whole files against llama-quantize, the two kinds of files, hostile ones, and what is refused.

The facts of the first part were recorded by fixtures/make_imatrix_expected.py.
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support import importance, models
from support.importance import CHUNKS, DATASET, Matrix, bell

import converter
from converter.cli.main import main
from converter.errors import (
    ConverterError,
    CorruptFile,
    LossyError,
    MissingImportance,
    OutputError,
    QuantizationError,
    SameFile,
    UsageError,
)
from converter.events import NoImportance, Note
from converter.metadata import Value
from converter.quant.imatrix import WEIGHTED, ImportanceMatrix, open_imatrix
from converter.quant.recipes import RECIPES
from converter.tensors import kernels
from converter.tensors.dtypes import BF16, DTYPES, F32, dtype
from converter.tensors.encode import Watch, encoded
from converter.tensors.tensor import from_array

STORIES = models.FIXTURES / "stories260K"
STORIES_MATRIX = importance.FIXTURES / "stories260K.dat"
FACTS = json.loads((importance.FIXTURES / "expected.json").read_text("utf-8"))["models"]
QUICK = {"llama3-256": ("Q4_K_M",), "mixtral-256": ("IQ4_XS",), "qwen3moe-256": ("Q2_K_S",)}  # of whole folders


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Path, Path]]:
    """Source and matrix of a recorded model, made once."""
    folder, known = tmp_path_factory.mktemp("imatrix"), {}

    def build(name: str) -> tuple[Path, Path]:
        if name not in known:
            known[name] = _build(name, folder)
        return known[name]

    return build


def _build(name: str, folder: Path) -> tuple[Path, Path]:
    if name == "stories260K":
        return STORIES, STORIES_MATRIX
    if name in importance.MODELS:
        source = importance.build_model(name, folder / f"{name}-source.gguf")
    else:
        source = models.build_model(name, folder)
    with converter.plan(source, folder / "unwritten.gguf").checkpoint as planned:
        shapes = {tensor.name: tensor.info.shape for tensor in planned.tensors.values()}
    return source, importance.write_matrix(folder / f"{name}.gguf", importance.build_matrix(name, shapes))


def convert(source: Path, target: Path, quant: str, matrix: Path | None, **wishes: Any) -> converter.Plan:
    return converter.convert(source, target, converter.Request(quant=quant, imatrix=matrix, **wishes), force=True)


# --------------------------------------------------------------------------- whole files, as recorded


@pytest.mark.parametrize("name", FACTS)
def test_same_file_as_llama_quantize(name: str, built: Callable[[str], tuple[Path, Path]], tmp_path: Path) -> None:
    compare(name, QUICK.get(name, tuple(FACTS[name]["files"])), built, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("name", QUICK)
def test_same_file_as_llama_quantize_all_recorded(
    name: str, built: Callable[[str], tuple[Path, Path]], tmp_path: Path
) -> None:
    compare(name, tuple(FACTS[name]["files"]), built, tmp_path)


def compare(name: str, labels: tuple[str, ...], built: Callable[[str], tuple[Path, Path]], tmp_path: Path) -> None:
    facts = FACTS[name]
    source, matrix = built(name)
    assert digest(matrix) == facts["matrix"], "the matrix changed, not us"
    if source.is_file():
        assert digest(source) == facts["source"], "the model changed, not us"
    else:
        converter.convert(source, tmp_path / "source.gguf")
        assert digest(tmp_path / "source.gguf") == facts["source"], "the GGUF in source precision is another one"
    ours: dict[str, str | None] = {}
    for label in labels:
        try:
            convert(source, tmp_path / "out.gguf", label, matrix)
            ours[label] = digest(tmp_path / "out.gguf")
        except QuantizationError:
            ours[label] = None
    assert ours == {label: facts["files"][label] for label in labels}


LIVE = ("Q4_0", "Q5_0", "Q2_K", "Q3_K_M", "Q4_K_M", "Q6_K", "IQ4_XS", "IQ4_NL", "Q8_0", "TQ1_0", "MXFP4_MOE", "F16")


@pytest.mark.parametrize("name", importance.MODELS)
def test_same_file_as_llama_quantize_here(name: str, built: Callable[[str], tuple[Path, Path]], tmp_path: Path) -> None:
    pytest.importorskip("llama_cpp")
    source, matrix = built(name)
    means = importance.build_matrix(name, importance.shapes(importance.MODELS[name])).means()
    for label in LIVE:
        file_type = RECIPES[label].file_type
        assert file_type is not None
        assert importance.quantize(source, tmp_path / "ref.gguf", file_type, means, matrix.name, DATASET, CHUNKS)
        convert(source, tmp_path / "out.gguf", label, matrix)
        assert (tmp_path / "out.gguf").read_bytes() == (tmp_path / "ref.gguf").read_bytes(), label


@pytest.mark.parametrize("kind", ["q4_0", "iq4_nl", "q8_0"])
def test_same_tensors_as_a_published_set(kind: str, data: Path, tmp_path: Path) -> None:
    """Files that llama-quantize wrote from the published GGUF and the GGUF twin of the matrix."""
    convert(STORIES, tmp_path / "out.gguf", kind, data / "derived-imatrix-stories260K" / "imatrix.dat")
    theirs = converter.open_checkpoint(data / "derived-gguf-stories260K" / f"stories260K-{kind}.gguf")
    with theirs, converter.open_checkpoint(tmp_path / "out.gguf") as ours:
        same = [name for name, tensor in ours.tensors.items() if tensor.info == theirs.tensors[name].info]
        assert len(same) >= 46  # theirs is not tied: its embedding and output have types of their own
        for name in same:
            n_rows = ours.tensors[name].info.n_rows
            assert bytes(ours.tensors[name].rows(0, n_rows)) == bytes(theirs.tensors[name].rows(0, n_rows)), name
        counts = [key for key in theirs.config if key.startswith("quantize.imatrix.") and key.endswith("_count")]
        assert counts and all(ours.config[key] == theirs.config[key] for key in counts)


# ----------------------------------------------------------------------------------- where weights apply


def test_which_types_follow_importance() -> None:
    """Every type comes out different with weights, or is not in WEIGHTED."""
    rows, weights = bell("rows", 16, 256), bell("weights", 256) ** 2
    for name in (name for name, (_, _, encodes, needs) in kernels.TYPES.items() if encodes and not needs):
        plain = kernels.encode(rows, DTYPES[name])
        follows = bool((kernels.encode(rows, DTYPES[name], weights=weights) != plain).any())
        assert follows == (name in WEIGHTED), name
    assert all(name in WEIGHTED for name, (*_, needs) in kernels.TYPES.items() if needs)


def test_each_expert_follows_its_own_weights_in_any_slab() -> None:
    rows, weights = bell("stack", 3, 5, 256), bell("own", 3, 256) ** 2
    tensor = encoded(from_array("t", rows, F32, "test"), dtype("Q4_K"), Watch(), weights)
    whole = tensor.rows(0, 15)
    expected = np.concatenate([kernels.encode(rows[i], dtype("Q4_K"), weights=weights[i]) for i in range(3)])
    assert bytes(whole) == bytes(expected)
    for start in range(15):
        for stop in range(start, 16):
            assert bytes(tensor.rows(start, stop)) == bytes(expected[start:stop])


def test_four_axes_repeat_the_weights() -> None:
    """As ggml counts: the third axis from the right chooses, the fourth repeats."""
    rows, weights = bell("four", 2, 3, 4, 32), bell("own", 3, 32) ** 2
    tensor = encoded(from_array("t", rows, F32, "test"), dtype("Q4_0"), Watch(), weights)
    expected = [kernels.encode(rows[i, j], dtype("Q4_0"), weights=weights[j]) for i in range(2) for j in range(3)]
    assert bytes(tensor.rows(0, 24)) == b"".join(map(bytes, expected))


def test_from_a_folder_as_from_its_gguf(built: Callable[[str], tuple[Path, Path]], tmp_path: Path) -> None:
    """Rows that the rotary permutation moves keep the importance of their columns."""
    folder, matrix = built("mixtral-256")
    converter.convert(folder, tmp_path / "source.gguf")
    convert(folder, tmp_path / "one.gguf", "q4_0", matrix)
    convert(tmp_path / "source.gguf", tmp_path / "two.gguf", "q4_0", matrix)
    assert (tmp_path / "one.gguf").read_bytes() == (tmp_path / "two.gguf").read_bytes()


# ---------------------------------------------------------------------------------------------- reading


SUMS = Matrix(
    {"a.weight": np.array([[2, 4, 6], [9, 9, 9]], "<f4"), "b.weight": np.array([[1, 2]], "<f4")},
    {"a.weight": np.array([4, 0], "<f4"), "b.weight": np.array([3], "<f4")},
)


def everything(matrix: ImportanceMatrix) -> dict[str, list[float]]:
    found = {name: entry.values(0, entry.size).tolist() for name, entry in matrix.entries.items()}
    matrix.close()
    return found


def test_means_of_a_gguf(tmp_path: Path) -> None:
    found = everything(open_imatrix(importance.write_matrix(tmp_path / "m.gguf", SUMS)))
    third = np.float32(1) / np.float32(3), np.float32(2) / np.float32(3)
    assert found == {"a.weight": [0.5, 1.0, 1.5, 1.0, 1.0, 1.0], "b.weight": [float(value) for value in third]}


def test_any_range_of_an_entry(tmp_path: Path) -> None:
    sums = Matrix({"t": bell("sums", 4, 6) ** 2}, {"t": np.array([3, 0, 5, 7], "<f4")})
    matrix = open_imatrix(importance.write_matrix(tmp_path / "m.gguf", sums))
    expected = sums.means()["t"]
    entry = matrix.entries["t"]
    for start in range(24):
        for stop in range(start, 25):
            assert entry.values(start, stop).tolist() == expected[start:stop].tolist()
    matrix.close()


@pytest.mark.parametrize(("count", "value"), [(0.4, 1.0), (0.5, 6.0), (2.5, 2.0), (3.49, 2.0)])
def test_counts_are_rounded_half_up(count: float, value: float, tmp_path: Path) -> None:
    sums = Matrix({"t": np.array([[6]], "<f4")}, {"t": np.array([count], "<f4")})
    assert everything(open_imatrix(importance.write_matrix(tmp_path / "m.gguf", sums))) == {"t": [value]}


@pytest.mark.parametrize(("calls", "divisor"), [(3, 3), (1, 1), (0, 1)])
def test_means_of_a_dat(calls: int, divisor: int, tmp_path: Path) -> None:
    path = tmp_path / "m.dat"
    path.write_bytes(importance.dat_bytes({"t": np.array([1, 5], np.float32)}, calls))
    matrix = open_imatrix(path)
    assert (matrix.datasets, matrix.n_chunks) == ((DATASET.encode(),), CHUNKS)
    assert everything(matrix) == {"t": [float(np.float32(value) / np.float32(divisor)) for value in (1, 5)]}


@pytest.mark.parametrize("calls", [-1, -2, -(2**31)])
def test_a_dat_that_was_counted_less_than_never(calls: int, tmp_path: Path) -> None:
    path = tmp_path / "m.dat"
    path.write_bytes(importance.dat_bytes({"t": np.array([1, 5], np.float32)}, calls))
    with pytest.raises(CorruptFile, match=f"'t', has 2 values of {calls} calls"):
        open_imatrix(path)


@pytest.mark.parametrize(
    ("tail", "chunks", "datasets"),
    [(b"", 0, ()), (struct.pack("<i", 5), 5, ()), (struct.pack("<ii", 5, 0), 5, ()),
     (struct.pack("<ii", 5, 2) + b"xy", 5, (b"xy",))],
)  # fmt: skip
def test_older_dat_files_end_earlier(tail: bytes, chunks: int, datasets: tuple[bytes, ...], tmp_path: Path) -> None:
    path = tmp_path / "m.dat"
    path.write_bytes(importance.dat_bytes({"t": np.ones(2, np.float32)}, tail=tail))
    matrix = open_imatrix(path)
    assert (matrix.n_chunks, matrix.datasets) == (chunks, datasets)
    assert set(everything(matrix)) == {"t"}


def test_a_real_matrix() -> None:
    means, chunks, dataset = importance.read_dat(STORIES_MATRIX)
    matrix = open_imatrix(STORIES_MATRIX)
    assert (matrix.n_chunks, matrix.datasets) == (chunks, (dataset.encode(),)) and chunks == 264
    found = everything(matrix)
    assert len(found) == 35
    assert found == {name: values.tolist() for name, values in means.items()}


def test_include_and_exclude_look_for_parts_of_names() -> None:
    def names(**chosen: tuple[str, ...]) -> set[str]:
        matrix = open_imatrix(STORIES_MATRIX, **chosen)
        assert matrix.left_out == every - matrix.entries.keys()
        matrix.close()
        return set(matrix.entries)

    every: set[str] = set(importance.read_dat(STORIES_MATRIX)[0])
    assert names() == every
    assert names(include=("ffn", "blk.0.attn_q")) == {name for name in every if "ffn" in name or "0.attn_q" in name}
    assert names(exclude=("ffn", "attn_v")) == {name for name in every if "ffn" not in name and "attn_v" not in name}


@pytest.mark.parametrize("chosen", [{"include": ("ffn.*",)}, {"exclude": ("nothing",)}, {"exclude": ("weight",)}])
def test_parts_without_effect_are_refused(chosen: dict[str, tuple[str, ...]]) -> None:
    with pytest.raises(UsageError, match=r"stories260K\.dat"):
        open_imatrix(STORIES_MATRIX, **chosen)


# ------------------------------------------------------------------------------------------ hostile files


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -1.0])
@pytest.mark.parametrize("kind", ["dat", "gguf"])
def test_values_that_no_mean_of_squares_has(bad: float, kind: str, tmp_path: Path) -> None:
    path = tmp_path / "m"
    values = {"good": np.ones(300, np.float32), "bad": np.ones(300, np.float32)}
    values["bad"][299] = bad
    if kind == "dat":
        path.write_bytes(importance.dat_bytes(values))
    else:
        one = np.ones(1, np.float32)
        sums = {name: numbers.reshape(1, -1) for name, numbers in values.items()}
        importance.write_matrix(path, Matrix(sums, dict.fromkeys(values, one)))
    with pytest.raises(CorruptFile, match="'bad' has values that are negative, infinite or NaN"):
        open_imatrix(path)
    assert set(everything(open_imatrix(path, exclude=("bad",)))) == {"good"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"general__type": "model"}, "not an importance matrix"),
        ({"imatrix__chunk_count": None}, r"imatrix\.chunk_count is missing"),
        ({"imatrix__chunk_size": None}, r"imatrix\.chunk_size is missing"),
        ({"imatrix__datasets": None}, r"imatrix\.datasets is missing"),
        ({"imatrix__datasets": "text"}, "not a list of texts"),
        ({"imatrix__chunk_count": 1.5}, "not a u32"),
    ],
)
def test_metadata_of_another_kind(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(CorruptFile, match=message):
        open_imatrix(importance.write_matrix(tmp_path / "m.gguf", SUMS, **changes))


def test_a_matrix_may_not_say_what_it_is(tmp_path: Path) -> None:
    """The reference does not look at general.type."""
    matrix = open_imatrix(importance.write_matrix(tmp_path / "m.gguf", SUMS, general__type=None))
    assert set(everything(matrix)) == {"a.weight", "b.weight"}


ONE = np.ones((1, 4), "<f4")


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({}, "no entry"),
        ({"t.in_sum2": (0, ONE)}, r"\.in_sum2 alone"),
        ({"t.counts": (0, ONE)}, r"\.counts alone"),
        ({"t.in_sum2": (0, ONE), "t.counts": (1, ONE.astype("<f2"))}, "not of type F32"),
        ({"t.in_sum2": (0, ONE), "t.counts": (0, np.ones(3, "<f4"))}, "4 values, which 3 counts do not share"),
        ({"t.in_sum2": (0, ONE[:, :0]), "t.counts": (0, ONE)}, "0 values"),
        ({"t.in_sum2": (0, ONE), "t.counts": (0, ONE[:, :0])}, "0 counts"),
        ({"t.in_sum2": (0, ONE), "t.counts": (0, ONE * np.float32("nan"))}, "counts of 't' are negative"),
        ({"t.in_sum2": (0, ONE), "t.counts": (0, -ONE)}, "counts of 't' are negative"),
    ],
)
def test_entries_that_contradict_themselves(tensors: dict[str, Any], message: str, tmp_path: Path) -> None:
    metadata = {"imatrix.datasets": [DATASET], "imatrix.chunk_count": 1, "imatrix.chunk_size": 1}
    importance.write_gguf(tmp_path / "m.gguf", metadata, tensors)
    with pytest.raises(CorruptFile, match=message):
        open_imatrix(tmp_path / "m.gguf")


HEAD = struct.pack("<i", 1)
VALUE = struct.pack("<f", 1.0)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "needs 4 bytes"),
        (struct.pack("<i", 0) + bytes(64), "neither GGUF nor"),
        (struct.pack("<i", -1) + bytes(64), "neither GGUF nor"),
        (struct.pack("<i", 1 << 30) + bytes(64), "neither GGUF nor"),
        (HEAD + struct.pack("<i", -5) + bytes(64), "-5 bytes"),
        (HEAD + struct.pack("<i", 2**31 - 1) + bytes(64), "needs 2147483647 bytes"),
        (HEAD + struct.pack("<i", 0) + bytes(64), "no readable name"),
        (HEAD + struct.pack("<i", 2) + b"a\0" + struct.pack("<ii", 1, 1) + VALUE, "no readable name"),
        (HEAD + struct.pack("<i", 2) + b"a\xff" + struct.pack("<ii", 1, 1) + VALUE, "no readable name"),
        (HEAD + struct.pack("<i", 1) + b"t" + struct.pack("<ii", 1, 0) + VALUE, "has 0 values"),
        (HEAD + struct.pack("<i", 1) + b"t" + struct.pack("<ii", 1, -1) + VALUE, "has -1 values"),
        (HEAD + struct.pack("<i", 1) + b"t" + struct.pack("<ii", 1, 1 << 30) + VALUE, "needs 4294967296 bytes"),
        (struct.pack("<i", 2) + 2 * (struct.pack("<i", 1) + b"t" + struct.pack("<ii", 1, 1) + VALUE), "two entries"),
        (importance.dat_bytes({"t": np.ones(2, np.float32)}) + b"x", "1 bytes follow"),
    ],
)
def test_lying_dat_files(data: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "m.dat").write_bytes(data)
    with pytest.raises(CorruptFile, match=message):
        open_imatrix(tmp_path / "m.dat")


@pytest.mark.parametrize("kind", ["dat", "gguf"])
def test_truncated_anywhere(kind: str, tmp_path: Path) -> None:
    """A cut after the entries or the chunks leaves an older .dat, padding may lack; no other cut passes."""
    path = tmp_path / "m"
    if kind == "dat":
        whole = importance.dat_bytes({"t": np.ones(2, np.float32), "u": np.ones(1, np.float32)})
    else:
        whole = importance.write_matrix(path, SUMS).read_bytes()
    older = {len(whole) - len(DATASET) - 8, len(whole) - len(DATASET) - 4} if kind == "dat" else set()
    padding = 28 if kind == "gguf" else 0
    for length in range(len(whole) - padding):
        path.write_bytes(whole[:length])
        if length in older:
            open_imatrix(path).close()
        else:
            with pytest.raises(CorruptFile):
                open_imatrix(path)


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_damaged_files_are_refused_at_worst(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    path = tmp_path_factory.getbasetemp() / "damaged"
    if data.draw(st.booleans()):
        whole = bytearray(importance.write_matrix(path, SUMS).read_bytes())
    else:
        whole = bytearray(importance.dat_bytes({"t": np.ones(2, np.float32), "u": np.ones(1, np.float32)}))
    for _ in range(data.draw(st.integers(1, 4))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.sampled_from((0, 1, 127, 128, 255)))
    path.write_bytes(whole)
    try:
        found = everything(open_imatrix(path))
    except ConverterError:
        return
    assert all(value >= 0 for values in found.values() for value in values)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    for path in (tmp_path / "absent", tmp_path):
        with pytest.raises(OutputError):
            open_imatrix(path)


# ------------------------------------------------------------------------------- meeting a model's tensors


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return importance.build_model("plain", tmp_path / "plain.gguf")


@pytest.fixture
def measured() -> Matrix:
    return importance.build_matrix("plain", importance.shapes(importance.MODELS["plain"]))


def plan(source: Path, quant: str, matrix: Path | None, **wishes: Any) -> converter.Plan:
    made = converter.plan(source, source.parent / "out.gguf", converter.Request(quant=quant, imatrix=matrix, **wishes))
    made.checkpoint.close()
    return made


def without(matrix: Matrix, part: str) -> Matrix:
    return Matrix({name: sums for name, sums in matrix.sums.items() if part not in name}, matrix.counts)


def test_the_plan_says_which_tensors_follow_the_matrix(model: Path, measured: Matrix, tmp_path: Path) -> None:
    made = plan(model, "q4_k_m", importance.write_matrix(tmp_path / "m.gguf", measured))
    followers = {step.name for step in made.steps if step.imatrix}
    assert followers == {step.name for step in made.steps if step.name in measured.sums and step.type != "F32"}
    tensors = made.as_dict()["tensors"]
    assert {tensor["name"] for tensor in tensors if tensor["imatrix"]} == followers
    missing = {event.tensor for event in made.report.events if isinstance(event, NoImportance)}
    assert missing == {"token_embd.weight", "blk.1.attn_v.weight"}
    assert not [event for event in made.report.events if isinstance(event, Note) and "matrix" in event.text]


def test_no_event_where_importance_changes_nothing(model: Path, measured: Matrix, tmp_path: Path) -> None:
    made = plan(model, "q8_0", importance.write_matrix(tmp_path / "m.gguf", measured))
    assert not any(isinstance(event, NoImportance) for event in made.report.events)
    assert not any(step.imatrix for step in made.steps)
    notes = [event.text for event in made.report.events if isinstance(event, Note)]
    assert any("not needed for the types these tensors get" in text for text in notes)


def test_entries_of_no_tensor_are_a_note(model: Path, measured: Matrix, tmp_path: Path) -> None:
    sums, counts = dict(measured.sums), dict(measured.counts)
    for name in ("blk.90.attn_q.weight", "blk.91.attn_q.weight"):
        sums[name], counts[name] = ONE, np.ones(1, np.float32)
    made = plan(model, "q4_0", importance.write_matrix(tmp_path / "m.gguf", Matrix(sums, counts)))
    wanted = "m.gguf: no tensor of this model is called blk.90.attn_q.weight, blk.91.attn_q.weight"
    assert wanted in [str(event) for event in made.report.events]


@pytest.mark.parametrize("quant", ["IQ3_XXS", "Q2_K_S"])
def test_a_missing_entry_stops_types_that_need_it_before_anything_is_written(
    quant: str, model: Path, measured: Matrix, tmp_path: Path
) -> None:
    path = importance.write_matrix(tmp_path / "m.gguf", measured)
    before = sorted(tmp_path.iterdir())
    with pytest.raises(MissingImportance, match=r"blk\.1\.attn_v\.weight.*no entry for it in m\.gguf"):
        convert(model, tmp_path / "out.gguf", quant, path)
    with pytest.raises(MissingImportance, match="pass --imatrix FILE"):
        convert(model, tmp_path / "out.gguf", quant, None)
    assert sorted(tmp_path.iterdir()) == before


def test_an_excluded_entry_is_a_missing_one(model: Path, measured: Matrix, tmp_path: Path) -> None:
    path = importance.write_matrix(tmp_path / "m.gguf", measured)
    with pytest.raises(MissingImportance, match="excluded entry"):
        plan(model, "iq2_xxs", path, exclude_weights=("attn_q",))
    made = plan(model, "q4_k_s", path, exclude_weights=("attn_q",))
    reasons = {e.tensor: e.reason for e in made.report.events if isinstance(e, NoImportance)}
    assert reasons["blk.0.attn_q.weight"] == "an excluded entry for it"
    assert reasons["blk.1.attn_v.weight"] == "no entry for it in m.gguf"
    assert made.checkpoint.config["quantize.imatrix.entries_count"] == Value("u32", len(measured.sums) - 16)


@pytest.mark.parametrize("flag", ["output_type", "embedding_type"])
def test_types_that_cannot_do_without_are_refused_for_any_tensor(flag: str, tmp_path: Path) -> None:
    """The reference asks for no entry of the output and the embedding, and then aborts while it writes."""
    source = importance.build_model("grouped", tmp_path / "grouped.gguf")
    measured = without(importance.build_matrix("grouped", importance.shapes(importance.MODELS["grouped"])), "output.w")
    path = importance.write_matrix(tmp_path / "m.gguf", measured)
    with pytest.raises(MissingImportance, match="IQ2_XS cannot be encoded without importance"):
        plan(source, "q4_0", path, **{flag: "iq2_xs"})


def test_an_entry_of_another_size(model: Path, measured: Matrix, tmp_path: Path) -> None:
    changed = dict(measured.sums) | {"blk.3.ffn_down.weight": np.ones((1, 256), "<f4")}
    path = importance.write_matrix(tmp_path / "m.gguf", Matrix(changed, measured.counts))
    with pytest.raises(QuantizationError, match=r"blk\.3\.ffn_down\.weight: m\.gguf has 256 .*needs 1 times 512"):
        plan(model, "q4_0", path)
    plan(model, "q4_0", path, exclude_weights=("blk.3.ffn_down",))


def test_an_entry_of_the_embedding_may_have_any_size(model: Path, measured: Matrix, tmp_path: Path) -> None:
    name = "token_embd.weight"
    one = np.ones(1, np.float32)
    for width, follows in ((256, True), (512, False)):
        sums = dict(measured.sums) | {name: np.ones((1, width), "<f4")}
        path = importance.write_matrix(tmp_path / "m.gguf", Matrix(sums, {**measured.counts, name: one}))
        made = plan(model, "q4_0", path)
        assert next(step.imatrix for step in made.steps if step.name == name) is follows
        reasons = [e.reason for e in made.report.events if isinstance(e, NoImportance) and e.tensor == name]
        assert reasons == ([] if follows else ["an entry of another size (512 values, not 1 times 256)"])


def test_a_matrix_of_another_model(model: Path, tmp_path: Path) -> None:
    path = importance.write_matrix(tmp_path / "m.gguf", SUMS)
    with pytest.raises(MissingImportance, match=r"another model: it has a\.weight, b\.weight, the model .* more"):
        plan(model, "q4_0", path)


def test_tensors_that_stay_as_they_are_need_nothing(model: Path, measured: Matrix, tmp_path: Path) -> None:
    """A file of the type already: nothing is encoded, so nothing needs importance, whatever its entry looks like."""
    path = importance.write_matrix(tmp_path / "m.gguf", measured)
    convert(model, tmp_path / "first.gguf", "iq2_xxs", path)
    made = plan(tmp_path / "first.gguf", "iq2_xxs", path)
    assert not any(step.imatrix for step in made.steps)
    plan(tmp_path / "first.gguf", "iq2_xxs", None)


def test_strict_accepts_tensors_without_entry(model: Path, measured: Matrix, tmp_path: Path) -> None:
    """No matrix has an entry for the embedding; a fallback stays a loss."""
    made = plan(model, "q4_0", importance.write_matrix(tmp_path / "m.gguf", measured), strict=True)
    assert any(isinstance(event, NoImportance) for event in made.report.events)
    with pytest.raises(LossyError):
        plan(STORIES, "q4_k_m", STORIES_MATRIX, strict=True)


# -------------------------------------------------------------------------------------------- metadata


def keys(source: Path, matrix: Path, **wishes: Any) -> dict[str, Value]:
    made = plan(source, "q4_0", matrix, **wishes)
    return {name: value for name, value in made.checkpoint.config.items() if name.startswith("quantize.")}


def test_keys_stand_last_in_the_reference_order(model: Path, measured: Matrix, tmp_path: Path) -> None:
    made = plan(model, "q4_0", importance.write_matrix(tmp_path / "m.gguf", measured))
    assert list(made.checkpoint.config.items())[-6:] == [
        ("general.quantization_version", Value("u32", 2)),
        ("general.file_type", Value("u32", 2)),
        ("quantize.imatrix.file", Value("str", "m.gguf")),
        ("quantize.imatrix.dataset", Value("str", DATASET)),
        ("quantize.imatrix.entries_count", Value("u32", len(measured.sums))),
        ("quantize.imatrix.chunks_count", Value("u32", CHUNKS)),
    ]


@pytest.mark.parametrize(
    ("dataset", "name"),
    [("/home/me/secret/wiki.txt", "wiki.txt"), ("C:\\Users\\me\\wiki.txt", "wiki.txt"), ("corpus/", "corpus"),
     ("é" * 100, "é" * 63 + "\udcc3"), ("", "")],
)  # fmt: skip
def test_no_private_path_in_the_output(dataset: str, name: str, model: Path, measured: Matrix, tmp_path: Path) -> None:
    folder = tmp_path / "secret"
    folder.mkdir()
    found = keys(model, importance.write_matrix(folder / "m.gguf", measured, [dataset]))
    assert found["quantize.imatrix.file"].value == "m.gguf"
    value = found["quantize.imatrix.dataset"].value
    wanted = name.encode("utf-8", "surrogateescape")
    assert (value if isinstance(value, bytes) else str(value).encode()) == wanted


def test_what_is_not_known_is_not_written(model: Path, measured: Matrix, tmp_path: Path) -> None:
    path = importance.write_matrix(tmp_path / "m.gguf", measured, [], imatrix__chunk_count=0)
    assert list(keys(model, path)) == ["quantize.imatrix.file", "quantize.imatrix.entries_count"]


def test_keys_of_an_earlier_matrix_go(model: Path, measured: Matrix, tmp_path: Path) -> None:
    convert(model, tmp_path / "first.gguf", "q4_0", importance.write_matrix(tmp_path / "m.gguf", measured))
    second = importance.write_matrix(tmp_path / "n.gguf", measured, [], imatrix__chunk_count=0)
    found = keys(tmp_path / "first.gguf", second)
    assert list(found) == ["quantize.imatrix.file", "quantize.imatrix.entries_count"]
    assert found["quantize.imatrix.file"] == Value("str", "n.gguf")


# -------------------------------------------------------------------------------------- the command line


def run(*arguments: object) -> int:
    return main([str(argument) for argument in arguments])


@pytest.mark.parametrize(
    "flags",
    [
        ["--imatrix", STORIES_MATRIX],
        ["--imatrix", STORIES_MATRIX, "-q", "copy"],
        ["-q", "q4_0", "--include-weights", "ffn"],
        ["-q", "q4_0", "--exclude-weights", "ffn"],
        ["-q", "q4_0", "--imatrix", STORIES_MATRIX, "--include-weights", "ffn", "--exclude-weights", "attn"],
    ],
)
def test_combinations_that_cannot_be_meant(flags: list[object], tmp_path: Path) -> None:
    assert run(STORIES, tmp_path / "out.gguf", *flags) == UsageError.exit_code
    assert not list(tmp_path.iterdir())


def test_converts_and_reports(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["-q", "iq4_nl", "--imatrix", STORIES_MATRIX, "--exclude-weights", "attn_q", "--exclude-weights", "blk.0."]
    assert run(STORIES, tmp_path / "out.gguf", *flags, "--json") == 0
    result = json.loads(capsys.readouterr().out)
    followers = {tensor["name"] for tensor in result["tensors"] if tensor["imatrix"]}
    assert "blk.1.attn_k.weight" in followers
    assert not any("attn_q" in name or "blk.0." in name for name in followers)
    assert run("plan", STORIES, tmp_path / "out.gguf", *flags) == 0
    lines = capsys.readouterr().out.splitlines()
    assert {line.split()[0] for line in lines if line.endswith("; imatrix")} == followers


def test_the_matrix_is_never_the_output(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(STORIES_MATRIX.read_bytes())
    with pytest.raises(SameFile):
        convert(STORIES, path, "q4_0", path)
    assert path.read_bytes() == STORIES_MATRIX.read_bytes()


def test_any_type_may_be_encoded_from_any_dense_source() -> None:
    """BF16 rows follow weights as F32 rows of the same values do."""
    rows = (bell("bf16", 4, 256).view(np.uint32) & np.uint32(0xFFFF0000)).view(np.float32)
    weights = [bell("own", 256) ** 2]
    short = (rows.view(np.uint32) >> np.uint32(16)).astype(np.uint16).view(BF16.numpy)
    wide = encoded(from_array("t", rows, F32, "test"), dtype("IQ3_S"), Watch(), weights)
    narrow = encoded(from_array("t", short, BF16, "test"), dtype("IQ3_S"), Watch(), weights)
    assert bytes(wide.rows(0, 4)) == bytes(narrow.rows(0, 4))
