"""Training shards: what PyTorch saves of several processes comes out whole, to the bit; what lies is refused."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import builders, shard_files
from support.builders import examples
from support.paths import ROOT
from support.shard_files import ARRAYS, ROWS, Array, Box, DTensor, Zero, cut, rank_file, record, saved

from converter.cli.main import main
from converter.errors import ConverterError, CorruptFile, MissingPart, UnknownFormat, UnsupportedFeature, UsageError
from converter.events import Dropped, MetadataLost, Note
from converter.formats.distributed.names import chosen, unwrapped
from converter.formats.distributed.pieces import Piece, assembled
from converter.formats.registry import open_checkpoint
from converter.request import Source
from converter.tensors.dtypes import DTYPES
from converter.tensors.tensor import TensorInfo, from_array


def read(path: Path, key: str | None = None) -> dict[str, Array]:
    """Every tensor, and the checksums of all that was read."""
    with open_checkpoint(Source(path, key=key)) as checkpoint:
        arrays = {name: tensor.array() for name, tensor in checkpoint.tensors.items()}
        checkpoint.check()
    return arrays


def same(found: Mapping[str, Array], expected: Mapping[str, Array]) -> None:
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        assert (found[name].dtype, found[name].shape) == (array.dtype, array.shape), name
        assert found[name].tobytes() == array.tobytes(), name


def refused(path: Path, kind: type[ConverterError], says: str) -> None:
    with pytest.raises(kind, match=says) as caught:
        read(path)
    assert 1 <= len(str(caught.value).splitlines()) <= 3


# -------------------------------------------------------------------------------------------------- pieces


@st.composite
def tilings(draw: st.DrawFn) -> tuple[Array, list[Box]]:
    """An array of up to three axes, and boxes that a few cuts of cuts make of it."""
    shape = tuple(draw(st.lists(st.integers(1, 6), max_size=3)))
    boxes: list[Box] = [((0,) * len(shape), shape)]
    for _ in range(draw(st.integers(0, 5)) if shape else 0):
        offset, size = boxes.pop(draw(st.integers(0, len(boxes) - 1)))
        axis = draw(st.integers(0, len(shape) - 1))
        at = draw(st.integers(0, size[axis]))
        low = tuple(at if each == axis else n for each, n in enumerate(size))
        high = tuple(size[axis] - at if each == axis else n for each, n in enumerate(size))
        boxes += [(offset, low), (tuple(o + at * (each == axis) for each, o in enumerate(offset)), high)]
    array = np.arange(int(np.prod(shape)), dtype="<f4").reshape(shape)
    return array, draw(st.permutations(boxes))


def pieces_of(array: Array, boxes: list[Box]) -> list[Piece]:
    return [Piece(offset, from_array("w", cut(array, (offset, size)), DTYPES["F32"], "test")) for offset, size in boxes]


@given(tilings(), st.data())
@examples(200)
def test_any_boxes_that_tile_a_tensor_are_the_tensor(tiling: tuple[Array, list[Box]], data: st.DataObject) -> None:
    array, boxes = tiling
    info = TensorInfo("w", array.shape, DTYPES["F32"])
    whole = assembled(Path("p"), info, pieces_of(array, boxes))
    assert whole.array().tobytes() == array.tobytes()
    start = data.draw(st.integers(0, info.n_rows))
    stop = data.draw(st.integers(start, info.n_rows))
    expected = array.reshape(info.n_rows, -1)[start:stop]
    assert whole.rows(start, stop).tobytes() == expected.tobytes()


@given(tilings(), st.data())
@examples(100)
def test_boxes_that_leave_a_hole_or_overlap_are_refused(tiling: tuple[Array, list[Box]], data: st.DataObject) -> None:
    array, boxes = tiling
    boxes = [box for box in boxes if np.prod(box[1])]
    at = data.draw(st.integers(0, len(boxes) - 1))
    info = TensorInfo("w", array.shape, DTYPES["F32"])
    with pytest.raises(CorruptFile, match=r"tensor 'w' of shape .* no piece holds what begins at"):
        assembled(Path("p"), info, pieces_of(array, boxes[:at] + boxes[at + 1 :]))
    with pytest.raises(CorruptFile, match="overlaps another"):
        assembled(Path("p"), info, pieces_of(array, [*boxes, boxes[at]]))


def test_pieces_that_cut_each_others_rows_without_end_are_refused() -> None:
    array = np.zeros((3000, 3000), "<f4")
    boxes: list[Box] = [((each, each), (1, 1)) for each in range(3000)]
    with pytest.raises(CorruptFile, match="3000 pieces that do not fit together"):
        assembled(Path("p"), TensorInfo("w", array.shape, DTYPES["F32"]), pieces_of(array, boxes))


# --------------------------------------------------------------------------------------------------- names


@pytest.mark.parametrize(
    ("names", "plain"),
    [
        (["module.a.w", "module.b"], ["a.w", "b"]),
        (["_orig_mod.a.w", "_orig_mod.b"], ["a.w", "b"]),
        (["module._orig_mod.a._fsdp_wrapped_module.w", "module.b"], ["a.w", "b"]),
        (["_forward_module.model.a", "_forward_module.lm_head.w"], ["model.a", "lm_head.w"]),
        (["model.model.a", "model.lm_head.w"], ["model.a", "lm_head.w"]),
        (["model.embed.w", "model.layers.0.w"], ["model.embed.w", "model.layers.0.w"]),  # a tied model of transformers
        (["module.a", "b"], ["module.a", "b"]),
        (["a_orig_mod.w"], ["a_orig_mod.w"]),
    ],
)
def test_wrappers_that_all_names_share_go(names: list[str], plain: list[str]) -> None:
    found, events = unwrapped(Path("p"), {name: index for index, name in enumerate(names)})
    assert list(found) == plain and list(found.values()) == list(range(len(names)))
    assert [type(event) for event in events] == ([] if names == plain else [Note])


def test_names_that_wrappers_alone_tell_apart_are_refused() -> None:
    with pytest.raises(CorruptFile, match=r"two tensors are called 'a\.w'"):
        unwrapped(Path("p"), {"a._orig_mod.w": 0, "a.w": 1})


@pytest.mark.parametrize(
    ("ways", "taken"),
    [
        ([("model", "a.w"), ("optim", "state", "a.w")], {"a.w": "model.a.w"}),
        ([("app", "model", "a.w"), ("app", "optim", "a")], {"a.w": "app.model.a.w"}),
        ([("a.w",), ("optimizer", "a.w")], {"a.w": "a.w"}),
        ([("state_dict", "model.a")], {"model.a": "state_dict.model.a"}),
        ([("model.a",), ("model.b",)], {"model.a": "model.a", "model.b": "model.b"}),
        ([("everything", "w")], {"w": "everything.w"}),
    ],
)
def test_the_model_is_taken_and_the_rest_is_told(ways: list[tuple[str, ...]], taken: dict[str, str]) -> None:
    wanted, events = chosen(Path("p"), {".".join(way): way for way in ways}, None)
    assert wanted == taken
    assert len([event for event in events if isinstance(event, Dropped)]) == int(len(ways) > len(taken))


# ----------------------------------------------------------------------------- torch.distributed.checkpoint


def test_boxes_of_rows_and_columns(tmp_path: Path) -> None:
    same(read(shard_files.small_dcp(tmp_path / "c")), ARRAYS)


def test_a_file_means_its_folder(tmp_path: Path) -> None:
    folder = shard_files.small_dcp(tmp_path / "c")
    for name in (".metadata", "__1_0.distcp"):
        same(read(folder / name), ARRAYS)


@pytest.mark.parametrize("below", ["model", "pytorch_model_fsdp_0"])
def test_the_folder_above(tmp_path: Path, below: str) -> None:
    shard_files.small_dcp(tmp_path / "c" / below)
    if below != "model":  # accelerate's, whose optimizer lies beside it
        shard_files.small_dcp(tmp_path / "c" / "optimizer_0")
    same(read(tmp_path / "c"), ARRAYS)


def test_several_folders_are_named(tmp_path: Path) -> None:
    for name in ("actor", "critic"):
        shard_files.small_ranks(tmp_path / "c" / name)
    refused(tmp_path / "c", UnsupportedFeature, r"several folders of training shards \(actor, critic\)")


def test_a_finished_model_beside_shards_is_the_model(tmp_path: Path) -> None:
    folder = builders.llama_folder(tmp_path / "m")
    shard_files.small_dcp(folder)
    with open_checkpoint(folder) as checkpoint:
        assert checkpoint.format == "hf"


def test_the_optimizer_is_left_out_and_a_key_takes_it(tmp_path: Path) -> None:
    arrays = {"model.w": ARRAYS["embed.weight"], "optim.w.exp_avg": ARRAYS["block.weight"]}
    ways = {"model.w": ("model", "w"), "optim.w.exp_avg": ("optim", "w.exp_avg")}
    other = {"step": record("torch.distributed.checkpoint.metadata.BytesStorageMetadata", b"}")}
    folder = shard_files.Checkpoint(arrays, ways=ways, others=other).write(tmp_path / "c")
    with open_checkpoint(folder) as checkpoint:
        assert list(checkpoint.tensors) == ["w"]
        assert [type(event) for event in checkpoint.events] == [MetadataLost, Dropped]
        assert "--key optim takes them" in str(checkpoint.events[1])
    assert list(read(folder, "optim")) == ["w.exp_avg"]
    assert list(read(folder, ".")) == ["model.w", "optim.w.exp_avg"]
    with pytest.raises(UsageError, match=r"--key nothing: no tensor .* \(there are: model, optim\)"):
        read(folder, "nothing")


GOOD = shard_files.Checkpoint(ARRAYS, ROWS)
EMBED = "embed.weight"
LIES: dict[str, tuple[shard_files.Checkpoint, type[ConverterError], str]] = {
    "a place behind the file": (
        replace(GOOD, places={(EMBED, 0): ("__0_0.distcp", 1 << 40, 10)}), CorruptFile, "tensor 'embed.weight'"
    ),
    "a length beyond the file": (
        replace(GOOD, places={(EMBED, 0): ("__0_0.distcp", 0, 1 << 62)}), CorruptFile, "tensor 'embed.weight'"
    ),
    "no number as a place": (
        replace(GOOD, places={(EMBED, 0): ("__0_0.distcp", -1, 10)}), CorruptFile, "the place of 'embed.weight'"
    ),
    "the place of another": (
        replace(GOOD, places={(EMBED, 1): ("__0_0.distcp", 0, 0)}), CorruptFile, "__0_0.distcp"
    ),
    "a way out of the folder": (
        replace(GOOD, places={(EMBED, 0): ("../c/__0_0.distcp", 0, 10)}), CorruptFile, "leads out of the folder"
    ),
    "an absolute way": (
        replace(GOOD, places={(EMBED, 0): ("/etc/passwd", 0, 10)}), CorruptFile, "leads out of the folder"
    ),
    "no name": (replace(GOOD, places={(EMBED, 0): (7, 0, 10)}), CorruptFile, "is not a file name"),
    "a file that is not there": (
        replace(GOOD, places={(EMBED, 0): ("__7_0.distcp", 0, 10)}), MissingPart, "__7_0.distcp: this one of the shards"
    ),
    "a larger tensor": (replace(GOOD, shapes={EMBED: (9, 6)}), CorruptFile, r"'embed.weight' .* no piece holds"),
    "a smaller tensor": (replace(GOOD, shapes={EMBED: (7, 6)}), CorruptFile, r"'embed.weight' .* which leaves it"),
    "a tensor without end": (replace(GOOD, shapes={EMBED: (1 << 62, 6)}), CorruptFile, "more than 2"),
    "other axes": (replace(GOOD, shapes={EMBED: (48,)}), CorruptFile, "'embed.weight'"),
    "sizes below zero": (replace(GOOD, shapes={EMBED: (-8, 6)}), CorruptFile, "what it says of tensor 'embed.weight'"),
    "another type": (replace(GOOD, kinds={EMBED: "float16"}), CorruptFile, "is not the piece of tensor 'embed.weight'"),
    "a type that is not known": (replace(GOOD, kinds={EMBED: "quint4x2"}), UnsupportedFeature, "no format here"),
    "a hole": (
        replace(GOOD, boxes={EMBED: ROWS[EMBED][:1]}), CorruptFile, r"no piece holds what begins at \[4, 0\]"
    ),
    "no pieces": (replace(GOOD, boxes={EMBED: []}), CorruptFile, "no piece holds"),
    "a piece that has no place": (
        replace(GOOD, boxes={EMBED: [ROWS[EMBED][0], ((5, 0), (3, 6))]}), CorruptFile, "nothing says where"
    ),
    "a piece of another shape": (
        replace(GOOD, boxes={EMBED: [ROWS[EMBED][0], ((4, 0), (3, 6))]}), CorruptFile, "is not the piece of"
    ),
    "overlapping pieces": (
        replace(GOOD, cuts={**ROWS, EMBED: [((0, 0), (5, 6)), ((4, 0), (4, 6))]}), CorruptFile, "overlaps another"
    ),
    "another root": (replace(GOOD, root="collections.OrderedDict"), CorruptFile, "pickle"),
    "a class of somebody": (replace(GOOD, root="os.system"), UnsupportedFeature, "never loaded: os.system"),
    "a class beside": (
        replace(GOOD, more={"x": b"cos\nsystem\n" + b")R"}), UnsupportedFeature, "never loaded"
    ),
    "an extension": (replace(GOOD, transforms=[EMBED]), UnsupportedFeature, "by an extension"),
}  # fmt: skip


@pytest.mark.parametrize("case", LIES)
def test_metadata_that_lies(tmp_path: Path, case: str) -> None:
    checkpoint, kind, says = LIES[case]
    refused(checkpoint.write(tmp_path / "c"), kind, says)


@pytest.mark.parametrize("way", [("model", "other"), ("\x1b[2J",), ("embed.weight", "x"), ()])
def test_ways_that_are_not_those_of_the_name_say_nothing(tmp_path: Path, way: tuple[str, ...]) -> None:
    same(read(replace(GOOD, ways={EMBED: way}).write(tmp_path / "c")), ARRAYS)


@pytest.mark.parametrize(
    ("limit", "value", "made", "says"),
    [
        ("dcp._MAX_BOXES", 6, shard_files.small_dcp, "in more than 6 pieces"),
        ("dcp._MAX_NBYTES", 100, shard_files.small_dcp, "the limit is 100"),
        ("dcp._MAX_OPCODES", 100, shard_files.small_dcp, "more than 100 opcodes"),
        ("folder.MAX_TENSORS", 3, shard_files.small_ranks, "more than 3 tensors"),
        ("folder.MAX_NAMES", 30, shard_files.small_ranks, "names without end"),
        ("folder.MAX_NODES", 3, shard_files.small_ranks, "without end"),
        ("zero._MAX_GROUPS", 1, Zero(2).write, "says the shapes of more than"),
        ("zero.MAX_TENSORS", 2, Zero(3).write, "says the shapes of more than 2 tensors"),
    ],
)
def test_counts_are_bounded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: str, value: int, made: Callable[[Path], Path], says: str
) -> None:
    """Few bytes of a pickle can mean the same dictionary many times."""
    folder = made(tmp_path / "c")
    read(folder)
    monkeypatch.setattr(f"converter.formats.distributed.{limit}", value)
    refused(folder, CorruptFile, says)


def test_a_link_out_of_the_folder_is_refused(tmp_path: Path) -> None:
    folder = shard_files.small_dcp(tmp_path / "c")
    shutil.move(folder / "__1_0.distcp", tmp_path / "elsewhere")
    (folder / "__1_0.distcp").symlink_to(tmp_path / "elsewhere")
    refused(folder, CorruptFile, "by a link")


def test_without_metadata_that_file_is_missing(tmp_path: Path) -> None:
    folder = shard_files.small_dcp(tmp_path / "c")
    (folder / ".metadata").unlink()
    for path in (folder, folder / "__0_0.distcp"):
        refused(path, MissingPart, r"\.metadata: not there, and it says what the \.distcp files hold")


def test_damage_is_found(tmp_path: Path) -> None:
    folder = shard_files.small_dcp(tmp_path / "c")
    data = bytearray((folder / "__1_0.distcp").read_bytes())
    part = cut(ARRAYS[EMBED], ROWS[EMBED][1]).tobytes()
    data[data.index(part) + 5] ^= 1
    (folder / "__1_0.distcp").write_bytes(data)
    refused(folder, CorruptFile, "CRC-32")


def test_flat_parameters_of_a_local_state_dict_are_refused(tmp_path: Path) -> None:
    arrays = {"w": ARRAYS[EMBED], "_flat_param": np.zeros(9, "<f4")}
    refused(shard_files.Checkpoint(arrays).write(tmp_path / "c"), UnsupportedFeature, "whose shapes nothing says")


def test_many_tensors_of_the_same_bytes_are_refused(tmp_path: Path) -> None:
    array = np.zeros(1 << 18, "<f4")
    arrays = {f"w{each}": array for each in range(400)}
    good = shard_files.Checkpoint({"w0": array}, files=1).write(tmp_path / "one")
    length = (good / "__0_0.distcp").stat().st_size
    places = {(name, 0): ("__0_0.distcp", 0, length) for name in arrays}
    folder = shard_files.Checkpoint({name: array for name in arrays}, places=places, files=1).write(tmp_path / "c")
    shutil.copyfile(good / "__0_0.distcp", folder / "__0_0.distcp")
    refused(folder, UnsupportedFeature, "bytes that expand to")


# --------------------------------------------------------------------------------------------- files of ranks


def test_parts_of_ranks(tmp_path: Path) -> None:
    folder = shard_files.small_ranks(tmp_path / "c")
    same(read(folder), ARRAYS)


def test_one_ranks_file_alone_says_so(tmp_path: Path) -> None:
    folder = shard_files.small_ranks(tmp_path / "c")
    refused(folder / rank_file(1, 2), UnsupportedFeature, "one rank's part of it; give the folder")


def ranks(folder: Path, *values: Mapping[str, Any]) -> Path:
    folder.mkdir(exist_ok=True)
    for rank, each in enumerate(values):
        (folder / rank_file(rank, len(values))).write_bytes(saved(each))
    return folder


W = np.arange(24, dtype="<f4").reshape(6, 4)
SHARD = [("Shard", {"dim": 0})]


def part(low: int, high: int, rank: int, **changes: Any) -> dict[str, Any]:
    whole = DTensor(W[low:high], W.shape, (rank,), SHARD)
    return {"w": replace(whole, **changes)}


BAD_RANKS: dict[str, tuple[list[dict[str, Any]], type[ConverterError], str]] = {
    "another share": ([part(0, 4, 0), part(4, 6, 1)], CorruptFile, r"its part is \[4, 4\], where \[3, 4\] is"),
    "the same place": ([part(0, 3, 0), part(3, 6, 0)], CorruptFile, "the 2 ranks do not fill their mesh"),
    "no place": ([part(0, 3, 0), part(3, 6, 0, coordinate=())], CorruptFile, "nothing says where the rank is"),
    "a place without end": ([part(0, 3, 0), part(3, 6, 1 << 40)], CorruptFile, "nothing says where the rank is"),
    "another shape": ([part(0, 3, 0), part(3, 6, 1, shape=(5, 4))], CorruptFile, "another shape or type"),
    "no axis": ([part(0, 3, 0, placements=[("Shard", {"dim": 2})]), part(3, 6, 1)], CorruptFile, "has not"),
    "sums": ([part(0, 3, 0, placements=[("Partial", {})]), part(3, 6, 1)], UnsupportedFeature, "placed by 'Partial'"),
    "a strange order": (
        [part(0, 3, 0, placements=[("_StridedShard", {"dim": 0, "split_factor": 2})]), part(3, 6, 1)],
        UnsupportedFeature, "in an order not known",
    ),
    "flat parameters": (
        [{"block._flat_param": value} for (value,) in (part(0, 3, 0).values(), part(3, 6, 1).values())],
        UnsupportedFeature, "whose shapes nothing says",
    ),
    "not all names": ([part(0, 3, 0), {**part(3, 6, 1), "v": W}], CorruptFile, "only one of this and"),
    "whole here, a part there": ([part(0, 3, 0), {"w": W}], CorruptFile, "whole in some ranks' files"),
    "copies of other shapes": ([{"w": W}, {"w": W[:5]}], CorruptFile, "is another one than in"),
    "copies that differ": ([{"w": W}, {"w": W + 1}], CorruptFile, "differs from that in"),
    "another wrapper": ([part(0, 3, 0, kind="some.Tensor"), part(3, 6, 1)], UnsupportedFeature, "wrapped tensors"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD_RANKS)
def test_parts_that_do_not_fit(tmp_path: Path, case: str) -> None:
    values, kind, says = BAD_RANKS[case]
    refused(ranks(tmp_path / "c", *values), kind, says)


def test_a_rank_that_is_missing_or_too_many(tmp_path: Path) -> None:
    folder = shard_files.small_ranks(tmp_path / "c")
    shutil.copyfile(folder / rank_file(1, 2), folder / rank_file(0, 1))
    refused(folder, UnsupportedFeature, r"the files of several runs \(of 1, 2 ranks\)")
    (folder / rank_file(0, 1)).unlink()
    (folder / rank_file(1, 2)).unlink()
    refused(folder, MissingPart, "model_world_size_2_rank_1.pt: this one of the shards is not there")


def llama(folder: Path) -> tuple[Path, Path]:
    """A Llama as a Hugging Face folder, and as verl's shards with its config and tokenizer."""
    weights = builders.llama_weights()
    hf, own = builders.llama_folder(folder / "hf" / "model", weights=weights), folder / "verl" / "model"
    builders.llama_folder(own / "huggingface", weights=weights)
    (own / "huggingface" / "model.safetensors").unlink()
    values = []
    for rank in range(3):
        parts = {}
        for name, array in weights.items():
            step = -(-len(array) // 3)
            parts[name] = DTensor(array[rank * step : (rank + 1) * step], array.shape, (rank,), SHARD)
        values.append(parts)
    return hf, ranks(own, *values)


@pytest.mark.parametrize("more", [[], ["--quant", "q8_0"]])
def test_to_gguf_it_is_the_model(tmp_path: Path, more: list[str]) -> None:
    made = []
    for folder in llama(tmp_path):
        made.append(folder.parent / "model.gguf")
        assert main([str(folder), str(made[-1]), *more]) == 0
    assert made[0].read_bytes() == made[1].read_bytes()


def test_to_safetensors_and_with_a_config_from_elsewhere(tmp_path: Path) -> None:
    hf, own = llama(tmp_path)
    shutil.rmtree(own / "huggingface")
    assert main([str(own), str(tmp_path / "m.safetensors")]) == 0
    same(read(tmp_path / "m.safetensors"), read(hf))
    target = own.parent / "model.gguf"
    assert main([str(own), str(target), "--config", str(hf)]) == 0
    assert main([str(hf), str(hf.parent / "model.gguf")]) == 0
    assert target.read_bytes() == (hf.parent / "model.gguf").read_bytes()


# ----------------------------------------------------------------------------------------------- DeepSpeed


@pytest.mark.parametrize("padding", [0, 3])
@pytest.mark.parametrize("world", [1, 2, 3, 5])
@pytest.mark.parametrize("stage", [2, 3])
def test_partitions_of_a_zero_optimizer(tmp_path: Path, stage: int, world: int, padding: int) -> None:
    made = Zero(stage, world, padding=padding)
    folder = made.write(tmp_path / "c")
    for path in (folder, folder / "global_step5"):
        same(read(path), made.expected())
    with open_checkpoint(folder) as checkpoint:
        assert {type(event) for event in checkpoint.events} == {Note, Dropped}


def test_frozen_weights_that_only_the_module_has(tmp_path: Path) -> None:
    """As ZeRO 1 saves them, where zero_to_fp32.py leaves them out."""
    made = Zero(2, model={"frozen_param_shapes": None, "frozen_param_fragments": None})
    same(read(made.write(tmp_path / "c")), made.expected())


@pytest.mark.parametrize("stage", [0, 2])
def test_the_weights_that_the_module_trained_with(tmp_path: Path, stage: int) -> None:
    made = Zero(stage)
    folder = made.write(tmp_path / "c")
    same(read(folder, "module"), made.module())
    for file in folder.rglob("*_optim_states.pt"):
        file.unlink()
    same(read(folder), made.module())


def test_zero_3_has_no_weights_of_the_module(tmp_path: Path) -> None:
    folder = Zero(3).write(tmp_path / "c")
    with pytest.raises(MissingPart, match="is empty here, as ZeRO 3 leaves it"):
        read(folder, "module")
    for file in folder.rglob("*_optim_states.pt"):
        file.unlink()
    refused(folder, MissingPart, "is empty here, as ZeRO 3 leaves it")


def remove(pattern: str) -> Callable[[Path], None]:
    return lambda step: next(step.glob(pattern)).unlink()


def copy(name: str, other: str) -> Callable[[Path], None]:
    return lambda step: shutil.copyfile(step / name, step / other) and None


F2 = np.zeros(3, "<f2")
HUGE = {"param_shapes": [{"embed.weight": shard_files.size((1 << 40, 6))}]}
BAD_ZERO: dict[str, tuple[Zero, Callable[[Path], Any] | None, type[ConverterError], str]] = {
    "a rank missing": (Zero(2), remove("*rank_1_*optim*"), MissingPart, "1 files of the optimizer, it was cut into 2"),
    "a rank missing between": (Zero(2, 3), remove("*rank_1_*optim*"), MissingPart, "the file of rank 1 is not there"),
    "no model states": (Zero(2), remove("*model_states*"), MissingPart, r"no \*_model_states.pt"),
    "a model state missing": (Zero(3), remove("*rank_1*model_states*"), MissingPart, "1 files of model states for 2"),
    "parts of tensor parallelism": (
        Zero(2), copy("mp_rank_00_model_states.pt", "mp_rank_01_model_states.pt"), UnsupportedFeature, "tensor parallel"
    ),
    "a pipeline": (
        Zero(2), copy("mp_rank_00_model_states.pt", "layer_00-model_00-model_states.pt"), UnsupportedFeature, "pipeline"
    ),
    "a shape without end": (Zero(2, model=HUGE), None, CorruptFile, "needs elements 0 to .* of a partition of 72"),
    "a shape of ZeRO 3 without end": (Zero(3, model=HUGE), None, CorruptFile, "needs elements"),
    "less than there is": (
        Zero(2, model={"param_shapes": [{"embed.weight": shard_files.size((2, 6))}]}), None, CorruptFile, "have 12"
    ),
    "less than there is in ZeRO 3": (
        Zero(3, model={"param_shapes": [{"embed.weight": shard_files.size((2, 6))}]}), None, CorruptFile, "of one are 6"
    ),
    "no shape": (Zero(2, model={"param_shapes": [{"w": 3}]}), None, CorruptFile, "the shape of tensor 'w'"),
    "a shape below zero": (
        Zero(2, model={"param_shapes": [{"w": shard_files.size((-1,))}]}), None, CorruptFile, "the shape of tensor 'w'"
    ),
    "more groups than partitions": (
        Zero(2, model={"param_shapes": [{}, {}, {"w": shard_files.size((1,))}]}), None, CorruptFile, "group "
    ),
    "partitions that are none": (
        Zero(2, optimizer={"single_partition_of_fp32_groups": [3]}), None, CorruptFile, "partition 0' is not a vector"
    ),
    "paddings that are none": (
        Zero(2, optimizer={"param_alignment_paddings": [["x", "y"], [0]]}), None, CorruptFile, "what stands between"
    ),
    "no partitions": (
        Zero(2, optimizer={"single_partition_of_fp32_groups": None}), None, CorruptFile, "is not a vector"
    ),
    "a frozen tensor that is another": (
        Zero(2, model={"frozen_param_fragments": {"frozen.weight": F2}}), None, CorruptFile, "frozen tensor 'froz"
    ),
    "a frozen tensor cut short": (
        Zero(3, model={"frozen_param_fragments": {"frozen.weight": F2}}), None, CorruptFile, "is not whole"
    ),
    "a shared weight that makes no sense": (Zero(2, model={"shared_params": {"a": 1}}), None, CorruptFile, "shared"),
    "no module": (Zero(2, model={"module": 1}), None, CorruptFile, "holds no 'module'"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD_ZERO)
def test_partitions_that_do_not_fit(tmp_path: Path, case: str) -> None:
    made, harm, kind, says = BAD_ZERO[case]
    folder = made.write(tmp_path / "c")
    if harm is not None:
        harm(folder / "global_step5")
    refused(folder / "global_step5", kind, says)


def test_only_the_module_can_be_asked_for(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--key optimizer: of a DeepSpeed checkpoint only 'module'"):
        read(Zero(2).write(tmp_path / "c"), "optimizer")


def test_latest_cannot_lead_out_of_the_folder(tmp_path: Path) -> None:
    folder = Zero(2).write(tmp_path / "c")
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "latest").write_text("../c/global_step5")
    with pytest.raises(UnknownFormat):
        open_checkpoint(tmp_path / "empty")
    (folder / "latest").write_text("../elsewhere")
    assert "embed.weight" in read(folder)  # the one folder that is there


# ------------------------------------------------------------------------------------------------- Megatron


@pytest.mark.parametrize("gated", [True, False])
@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_parts_of_tensor_parallelism(tmp_path: Path, ranks: int, gated: bool) -> None:
    arrays = shard_files.megatron_arrays()
    arrays["decoder.layers.0.self_attention.linear_proj.weight"] = np.arange(48, dtype="<f4").reshape(6, 8)
    folder = shard_files.megatron(tmp_path / "c", arrays, ranks, gated)
    for path in (folder, folder / "iter_0000005"):
        same(read(path), arrays)


def test_stages_of_a_pipeline_count_their_blocks_on(tmp_path: Path) -> None:
    arrays = shard_files.megatron_arrays()
    folder = shard_files.megatron(tmp_path / "c", arrays, 1)
    step = folder / "iter_0000005"
    shutil.copytree(step / "mp_rank_00", step / "mp_rank_00_001")
    (step / "mp_rank_00").rename(step / "mp_rank_00_000")
    block = "decoder.layers.0."
    again = {name.replace(block, "decoder.layers.1."): each for name, each in arrays.items() if block in name}
    same(read(folder), arrays | again)


BAD_MEGATRON: dict[str, tuple[dict[str, Any], type[ConverterError], str]] = {
    "a name that does not tell": (
        {"model": {"decoder.strange.weight": W}}, UnsupportedFeature, "how tensor 'decoder.strange.weight' is cut"
    ),
    "an old order": ({"checkpoint_version": 1.0, "model": {"query_key_value.weight": W}}, UnsupportedFeature, "order"),
    "no arguments": ({"args": None}, UnsupportedFeature, "one matrix or two only `args` tell"),
    "virtual stages": ({"model0": {}}, UnsupportedFeature, "virtual stages"),
    "no model": ({"model": 3}, CorruptFile, "holds no 'model'"),
    "halves of three": ({"model": {"linear_fc1.weight": W[:3]}}, CorruptFile, "3 rows, which are not two halves"),
    "a number as a matrix": ({"model": {"linear_fc1.weight": np.array(1.0)}}, CorruptFile, "different shapes"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD_MEGATRON)
def test_parts_that_do_not_tell(tmp_path: Path, case: str) -> None:
    changes, kind, says = BAD_MEGATRON[case]
    refused(shard_files.megatron(tmp_path / "c", shard_files.megatron_arrays(), **changes), kind, says)


def test_what_all_ranks_should_have_is_compared(tmp_path: Path) -> None:
    folder = shard_files.megatron(tmp_path / "c", shard_files.megatron_arrays())
    shard_files.megatron(tmp_path / "d", shard_files.megatron_arrays())
    second = "iter_0000005/mp_rank_01"
    shutil.rmtree(folder / second)
    refused(folder, MissingPart, "the files of 1 ranks are there, of 2")
    shutil.copytree(tmp_path / "d" / second, folder / second)
    refused(folder, CorruptFile, "differs from that in")


# ------------------------------------------------------------------------------------------- PyTorch itself


def numpy_of(path: Path) -> dict[str, Array]:
    torch = pytest.importorskip("torch")
    return {name: each.numpy() for name, each in torch.load(path, weights_only=True).items()}


def run_ranks(folder: Path, world: int, *below: str) -> Path:
    pytest.importorskip("torch")
    for each in below:
        (folder / each).mkdir(parents=True)
    command = [sys.executable, str(ROOT / "tests" / "support" / "training.py")]
    runs = [subprocess.Popen([*command, str(rank), str(world), str(folder)]) for rank in range(world)]
    assert [run.wait(300) for run in runs] == [0] * world
    return folder


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run_ranks(tmp_path_factory.mktemp("trained"), 2, "ranks", "ranks1")


@pytest.mark.slow
@pytest.mark.parametrize("what", ["dcp", "fsdp1", "ranks", "ranks1", "gathered.pt"])
def test_what_two_processes_of_pytorch_save(trained: Path, what: str) -> None:
    same(read(trained / what), numpy_of(trained / "full.pt"))


@pytest.mark.slow
def test_what_pytorch_saves_of_flat_parameters(trained: Path) -> None:
    refused(trained / "flat", UnsupportedFeature, "whose shapes nothing says")


@pytest.mark.slow
def test_what_four_processes_of_pytorch_save(tmp_path: Path) -> None:
    folder = run_ranks(tmp_path, 4, "mesh/ranks", "mesh/replicas") / "mesh"
    for what in ("ranks", "replicas", "dcp"):
        same(read(folder / what), numpy_of(folder / "full.pt"))


def test_what_one_process_of_pytorch_saves(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    from torch.distributed import checkpoint as dcp

    state = {"a.weight": torch.randn(5, 3, dtype=torch.bfloat16), "b": torch.arange(4), "c": torch.randn(3, 4).T}
    dcp.save({"model": state, "optimizer": {"lr": 0.1}}, checkpoint_id=tmp_path / "c", no_dist=True)
    with open_checkpoint(tmp_path / "c") as checkpoint:
        found = {name: tensor.rows(0, tensor.info.n_rows).tobytes() for name, tensor in checkpoint.tensors.items()}
        checkpoint.check()
    assert found == {name: each.contiguous().view(torch.uint8).numpy().tobytes() for name, each in state.items()}
