"""Shards of training runs built byte by byte, so that every field of them can lie.

Nothing here uses the package under test, or PyTorch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from support.torch_files import STORAGES, archive, dictionary, integer, pickle, storage, tensor, text, tuple_of

Array = npt.NDArray[Any]
Box = tuple[tuple[int, ...], tuple[int, ...]]
DTYPES = {"<f4": "float32", "<f2": "float16", "<f8": "float64", "<i8": "int64"}


def name(full: str) -> bytes:
    """A class or a value that a pickle names."""
    module, _, last = full.rpartition(".")
    return f"c{module}\n{last}\n".encode()


def record(kind: str, state: bytes) -> bytes:
    """An object of a class with a state."""
    return name(kind) + b")\x81" + state + b"b"


def call(kind: str, *arguments: Any) -> bytes:
    return name(kind) + tuple_of(arguments) + b"R"


def listed(items: Sequence[bytes]) -> bytes:
    return b"](" + b"".join(items) + b"e"


def size(shape: Sequence[Any]) -> bytes:
    return call("torch.Size", tuple_of(shape))


def cut(array: Array, box: Box) -> Array:
    """What of an array is in a box (offset, shape)."""
    return array[tuple(slice(start, start + n) for start, n in zip(*box, strict=True))]


def plain(array: Array, key: str) -> bytes:
    """The opcodes of an array as a tensor of the storage `key`."""
    strides = np.array(array.strides) // array.itemsize if array.size else np.ones(array.ndim)
    kind = STORAGES[array.dtype.str]
    return tensor(storage(kind, key, array.size), 0, array.shape, tuple(int(step) for step in strides))


def saved(values: Mapping[str, Any]) -> bytes:
    """`torch.save` of a dict; an array is a tensor, a dict nested, bytes are opcodes."""
    storages: dict[str, bytes] = {}
    return archive(_value(values, storages), storages)


def _value(value: Any, storages: dict[str, bytes]) -> bytes:
    if isinstance(value, np.ndarray):
        return plain(value, _stored(value, storages))
    if isinstance(value, Mapping):
        return dictionary({key: _value(each, storages) for key, each in value.items()})
    if isinstance(value, list):
        return listed([_value(each, storages) for each in value])
    if isinstance(value, DTensor):
        return value.opcodes(storages)
    return b"N" if value is None else integer(value)


def _stored(array: Array, storages: dict[str, bytes]) -> str:
    key = str(len(storages))
    storages[key] = np.ascontiguousarray(array).tobytes()
    return key


# -------------------------------------------------------------------------- torch.distributed.checkpoint

_META = "torch.distributed.checkpoint.metadata."


@dataclass
class Checkpoint:
    """A distributed checkpoint: arrays, and the boxes of each; whatever else is set says something else than the truth.

    `places` are (file, offset, length) by name and number of the box, `shapes` what is said of whole tensors, `kinds`
    of their types, `boxes` of their boxes.
    """

    arrays: Mapping[str, Array]
    cuts: Mapping[str, Sequence[Box]] = field(default_factory=dict)
    ways: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    files: int = 2
    places: Mapping[tuple[str, int], tuple[Any, Any, Any]] = field(default_factory=dict)
    shapes: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    kinds: Mapping[str, str] = field(default_factory=dict)
    boxes: Mapping[str, Sequence[Box]] = field(default_factory=dict)
    more: Mapping[str, bytes] = field(default_factory=dict)
    others: Mapping[str, bytes] = field(default_factory=dict)
    transforms: Sequence[str] = ()
    root: str = _META + "Metadata"

    def write(self, folder: Path) -> Path:
        folder.mkdir(parents=True, exist_ok=True)
        files = {f"__{number}_0.distcp": bytearray() for number in range(self.files)}
        described, stored = {}, {}
        for each, array in self.arrays.items():
            cuts = self.cuts.get(each, [((0,) * array.ndim, array.shape)])
            for number, box in enumerate(cuts):
                file = f"__{number % self.files}_0.distcp"
                part = np.ascontiguousarray(cut(array, box))
                data = archive(plain(part.reshape(box[1]), "0"), {"0": part.tobytes()})
                place = self.places.get((each, number), (file, len(files[file]), len(data)))
                files[file] += data
                index = {"fqn": text(each), "index": integer(number), "offset": size(box[0])}
                stored[record(_META + "MetadataIndex", dictionary(index))] = _place(*place, each in self.transforms)
            described[each] = self._described(each, array, self.boxes.get(each, cuts))
        for file, data in files.items():
            (folder / file).write_bytes(data)
        body = {
            "state_dict_metadata": dictionary({**described, **self.others}),
            "planner_data": dictionary({each: tuple_of(way) for each, way in self.ways.items()}),
            "storage_data": dictionary(stored),
        }
        (folder / ".metadata").write_bytes(pickle(record(self.root, dictionary({**body, **self.more})), 4))
        return folder

    def _described(self, each: str, array: Array, boxes: Sequence[Box]) -> bytes:
        kind = name("torch." + self.kinds.get(each, DTYPES[array.dtype.str]))
        properties = record(_META + "TensorProperties", b"(" + kind + b"N\x89N\x89t")
        chunks = [
            record(_META + "ChunkStorageMetadata", dictionary({"offsets": size(offset), "sizes": size(shape)}))
            for offset, shape in boxes
        ]
        shape = size(self.shapes.get(each, array.shape))
        state = {"properties": properties, "size": shape, "chunks": listed(chunks)}
        return record(_META + "TensorStorageMetadata", dictionary(state))


def _place(file: Any, offset: Any, length: Any, transformed: bool) -> bytes:
    state = {"relative_path": integer(file), "offset": integer(offset), "length": integer(length)}
    if transformed:
        state["transform_descriptors"] = listed([text("zstd")])
    return record("torch.distributed.checkpoint.filesystem._StorageInfo", dictionary(state))


# -------------------------------------------------------------------------------------------- files of ranks


@dataclass
class DTensor:
    """One rank's part of a tensor: what it holds, the whole's shape, where it is in the mesh, and how it is placed.

    A placement is a class of torch.distributed.tensor.placement_types with its attributes.
    """

    local: Array
    shape: tuple[int, ...]
    coordinate: tuple[int, ...]
    placements: Sequence[tuple[str, Mapping[str, int]]]
    kind: str = "torch.distributed.tensor.DTensor"

    def opcodes(self, storages: dict[str, bytes]) -> bytes:
        spec = {
            "mesh": record(
                "torch.distributed.device_mesh.DeviceMesh",
                dictionary({"_coordinate_on_dim": tuple_of(self.coordinate), "_rank_map": b"N"}),
            ),
            "placements": b"("
            + b"".join(
                record(
                    f"torch.distributed.tensor.placement_types.{kind}",
                    dictionary({key: integer(value) for key, value in said.items()}),
                )
                for kind, said in self.placements
            )
            + b"t",
        }
        state = {
            "_local_tensor": plain(self.local, _stored(self.local, storages)),
            "_spec": record("torch.distributed.tensor._dtensor_spec.DTensorSpec", dictionary(spec)),
        }
        dtype = name("torch." + DTYPES[self.local.dtype.str])
        arguments = name(self.kind) + dtype + tuple_of(self.shape) + tuple_of(self.shape) + integer(0)
        wrapper = name("torch._utils._rebuild_wrapper_subclass") + name(self.kind)
        state_opcodes = b"(N" + dictionary(state) + b"t"
        return (
            name("torch._tensor._rebuild_from_type_v2")
            + b"("
            + wrapper
            + b"("
            + arguments
            + b"t"
            + state_opcodes
            + b"tR"
        )


def rank_file(rank: int, world: int) -> str:
    return f"model_world_size_{world}_rank_{rank}.pt"


# ----------------------------------------------------------------------------------------------------- samples

RNG = np.random.default_rng(12)
ARRAYS: dict[str, Array] = {
    "embed.weight": RNG.standard_normal((8, 6)).astype("<f4"),
    "block.weight": RNG.standard_normal((4, 6)).astype("<f4"),
    "block.bias": RNG.standard_normal(5).astype("<f2"),
    "step": np.array(3),
}
ROWS: dict[str, list[Box]] = {
    "embed.weight": [((0, 0), (4, 6)), ((4, 0), (4, 6))],
    "block.weight": [((0, 0), (4, 3)), ((0, 3), (4, 3))],
    "block.bias": [((0,), (3,)), ((3,), (2,))],
}
SHARDED_BY = {"embed.weight": 0, "block.weight": 1, "block.bias": 0}


def small_dcp(folder: Path) -> Path:
    """A distributed checkpoint of two files."""
    return Checkpoint(ARRAYS, ROWS).write(folder)


def small_ranks(folder: Path) -> Path:
    """The files of two ranks as verl writes them."""
    folder.mkdir(parents=True, exist_ok=True)
    for rank in range(2):
        values: dict[str, Any] = {"step": ARRAYS["step"]}
        for each, axis in SHARDED_BY.items():
            array = ARRAYS[each]
            local = np.ascontiguousarray(cut(array, ROWS[each][rank]))
            values[each] = DTensor(local, array.shape, (rank,), [("Shard", {"dim": axis})])
        (folder / rank_file(rank, 2)).write_bytes(saved(values))
    return folder


# ---------------------------------------------------------------------------------------------- DeepSpeed

GROUPS = (("embed.weight", "block.weight"), ("block.bias",))
FROZEN, BUFFER, TIED = "frozen.weight", "seen", "head.weight"


@dataclass
class Zero:
    """A DeepSpeed checkpoint of `stage` for `world` ranks; `changes` are to what the first files of both kinds say."""

    stage: int
    world: int = 2
    model: Mapping[str, Any] = field(default_factory=dict)
    optimizer: Mapping[str, Any] = field(default_factory=dict)
    padding: int = 0
    arrays: Mapping[str, Array] = field(
        default_factory=lambda: {name: ARRAYS[name] for group in GROUPS for name in group}
    )
    frozen: Array = field(default_factory=lambda: RNG.standard_normal((3, 5)).astype("<f2"))

    def expected(self) -> dict[str, Array]:
        masters = {name: array.astype("<f4") for name, array in self.arrays.items()}
        more = {FROZEN: self.frozen, BUFFER: ARRAYS["step"], TIED: masters["embed.weight"]}
        return masters | more

    def module(self) -> dict[str, Array]:
        """The 16-bit weights."""
        arrays = {name: array.astype("<f2") for name, array in self.arrays.items()}
        return arrays | {FROZEN: self.frozen, BUFFER: ARRAYS["step"], TIED: arrays["embed.weight"]}

    def write(self, folder: Path) -> Path:
        step = folder / "global_step5"
        step.mkdir(parents=True)
        (folder / "latest").write_text("global_step5")
        for rank in range(self.world if self.stage == 3 else 1):
            name = f"zero_pp_rank_{rank}_mp_rank_00" if self.stage == 3 else "mp_rank_00"
            (step / f"{name}_model_states.pt").write_bytes(saved(self._model(rank) | self.model))
        for rank in range(self.world if self.stage else 0):
            state = {"optimizer_state_dict": self._optimizer(rank) | self.optimizer, "ds_config": {}}
            (step / f"bf16_zero_pp_rank_{rank}_mp_rank_00_optim_states.pt").write_bytes(saved(state))
        return folder

    def _model(self, rank: int) -> dict[str, Any]:
        module = self.module()
        frozen = self.frozen
        if self.stage == 3:
            module = {name: array if name == BUFFER else array.reshape(-1)[:0] for name, array in module.items()}
            frozen = self._shares(frozen)[rank]
        return {
            "module": module,
            "buffer_names": [BUFFER],
            "param_shapes": [{name: size(self.arrays[name].shape) for name in group} for group in GROUPS],
            "frozen_param_shapes": {FROZEN: size(self.frozen.shape)},
            "frozen_param_fragments": {FROZEN: frozen},
            "shared_params": {TIED: "embed.weight"},
            "ds_version": "0.19.8",
        }

    def _shares(self, array: Array) -> Array:
        """Of ZeRO 3: the part of each rank, zeros behind."""
        share = -(-array.size // self.world)
        flat = np.zeros(share * self.world, array.dtype)
        flat[: array.size] = array.reshape(-1)
        return flat.reshape(self.world, share)

    def _optimizer(self, rank: int) -> dict[str, Any]:
        groups = [[self.arrays[name].astype("<f4") for name in group] for group in GROUPS]
        if self.stage == 3:
            flat = np.concatenate([self._shares(array)[rank] for group in groups for array in group])
            cuts = [flat[:7].copy(), flat[7:].copy()]  # sub-groups that do not follow the weights
            return {"zero_stage": 3, "partition_count": self.world, "fp32_flat_groups": cuts}
        partitions = []
        for group in groups:
            gap = np.zeros(self.padding, "<f4")
            flat = np.concatenate([part for array in group for part in (array.reshape(-1), gap)])
            share = -(-flat.size // self.world)
            partitions.append(flat[rank * share : (rank + 1) * share].copy())
        paddings = {"param_alignment_paddings": [[self.padding] * len(group) for group in GROUPS]}
        count = {"zero_stage": 2, "partition_count": [self.world] * 2}
        return {"single_partition_of_fp32_groups": partitions, **count, **(paddings if self.padding else {})}


# ----------------------------------------------------------------------------------------------- Megatron

MEGATRON: dict[str, tuple[tuple[int, ...], int | None]] = {
    "embedding.word_embeddings.weight": ((8, 6), 0),
    "decoder.layers.0.self_attention.linear_qkv.weight": ((12, 6), 0),
    "decoder.layers.0.self_attention.linear_qkv.bias": ((12,), 0),
    "decoder.layers.0.self_attention.linear_qkv.layer_norm_weight": ((6,), None),
    "decoder.layers.0.self_attention.linear_proj.weight": ((6, 4), 1),
    "decoder.layers.0.mlp.linear_fc1.weight": ((16, 6), 0),
    "decoder.layers.0.mlp.linear_fc1.bias": ((16,), 0),
    "decoder.layers.0.mlp.linear_fc2.weight": ((6, 8), 1),
    "decoder.final_layernorm.weight": ((6,), None),
    "output_layer.weight": ((8, 6), 0),
}


def megatron_arrays() -> dict[str, Array]:
    return {name: RNG.standard_normal(shape).astype("<f4") for name, (shape, _) in MEGATRON.items()}


def megatron(folder: Path, arrays: Mapping[str, Array], ranks: int = 2, gated: bool = True, **changes: Any) -> Path:
    """A checkpoint of Megatron-LM whose tensors `ranks` ranks share; `changes` are to what each file says."""
    step = folder / "iter_0000005"
    step.mkdir(parents=True)
    (folder / "latest_checkpointed_iteration.txt").write_text("5")
    arguments = {"tensor_model_parallel_size": integer(ranks)} if ranks > 1 else {}
    for rank in range(ranks):
        model = {}
        for name, array in arrays.items():
            axis = MEGATRON.get(name, ((), None))[1]
            halves = np.split(array, 2) if gated and "fc1" in name else [array]
            parts = halves if axis is None else [np.split(each, ranks, axis)[rank] for each in halves]
            model[name] = np.ascontiguousarray(np.concatenate(parts))
        state = {
            "args": record("argparse.Namespace", dictionary({**arguments, "swiglu": b"\x88" if gated else b"\x89"})),
            "checkpoint_version": 3.0,
            "iteration": 5,
            "model": model,
            **changes,
        }
        (step / f"mp_rank_{rank:02d}").mkdir()
        (step / f"mp_rank_{rank:02d}" / "model_optim_rng.pt").write_bytes(saved(state))
    return folder
