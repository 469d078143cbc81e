"""PyTorch itself as oracle: what it writes we read bit for bit, what we write it loads and maps, and real files."""

from __future__ import annotations

import collections
import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.builders import examples
from support.paths import FIXTURES
from support.torch_tensors import ALL_TYPES, checkpoint_of, read

from converter.checkpoint import Checkpoint
from converter.cli.main import main
from converter.errors import UnsupportedFeature
from converter.formats.base import WriteOptions
from converter.formats.torch.checkpoint import open_torch, open_torch_key
from converter.formats.torch.values import TYPES
from converter.formats.torch.writer import layout
from converter.storage import output

torch = pytest.importorskip("torch")

Tensor = Any


def raw(tensor: Tensor) -> bytes:
    """The bytes of a tensor in row-major order, whatever its type."""
    flat = tensor.detach().clone(memory_format=torch.contiguous_format).reshape(-1)
    return bytes(flat.view(torch.uint8).numpy().tobytes()) if flat.numel() else b""


def same(checkpoint: Checkpoint, state: dict[str, Tensor]) -> None:
    assert list(checkpoint.tensors) == list(state)
    for name, tensor in state.items():
        found = checkpoint.tensors[name]
        assert found.info.shape == tuple(tensor.shape), name
        assert found.info.dtype.name == TYPES[str(tensor.dtype).removeprefix("torch.")], name
        assert found.rows(0, found.info.n_rows).tobytes() == raw(tensor), name
    checkpoint.check()


def bits(name: str, shape: tuple[int, ...], seed: int = 0) -> Tensor:
    """A tensor of random bits (of zeros and ones for bool)."""
    dtype = getattr(torch, name)
    generator = torch.Generator().manual_seed(seed)
    count = int(np.prod(shape)) * dtype.itemsize
    octets = torch.randint(0, 2 if name == "bool" else 256, (count,), dtype=torch.uint8, generator=generator)
    return octets.view(dtype).reshape(shape)


def every_kind() -> dict[str, Tensor]:
    """Every type in many layouts, and the ways to share a storage."""
    state: dict[str, Tensor] = {}
    for name in TYPES:
        base = bits(name, (4, 6))
        state |= {
            f"{name}.plain": base,
            f"{name}.t": base.t(),
            f"{name}.rows": base[1:3],
            f"{name}.columns": base[:, 1:4],
            f"{name}.step": base[::2, ::3],
            f"{name}.scalar": bits(name, ()),
            f"{name}.empty": bits(name, (0, 3)),
            f"{name}.one": base[0, 5],
            f"{name}.wide": bits(name, (3, 1)).expand(3, 5),
            f"{name}.nested": bits(name, (2, 3, 4, 5)).permute(3, 0, 2, 1),
            f"{name}.own": bits(name, (3, 3), 9),
        }
    state["parameter"] = torch.nn.Parameter(torch.ones(2, 2))
    state["channels_last"] = torch.rand(2, 3, 4, 5).to(memory_format=torch.channels_last)
    return state


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "stream"])
def test_every_type_and_layout(tmp_path: Path, zipped: bool) -> None:
    state = every_kind()
    torch.save(state, tmp_path / "m.pt", _use_new_zipfile_serialization=zipped)
    with open_torch(tmp_path / "m.pt") as checkpoint:
        same(checkpoint, state)


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "stream"])
def test_protocols(tmp_path: Path, protocol: int, zipped: bool) -> None:
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4))
    torch.save(model.state_dict(), tmp_path / "m.pt", pickle_protocol=protocol, _use_new_zipfile_serialization=zipped)
    with open_torch(tmp_path / "m.pt") as checkpoint:
        same(checkpoint, dict(model.state_dict()))


def test_a_training_checkpoint(tmp_path: Path) -> None:
    model = torch.nn.Linear(3, 4)
    optimizer = torch.optim.Adam(model.parameters())
    model(torch.ones(3)).sum().backward()
    optimizer.step()
    torch.save(
        {"epoch": 7, "state_dict": model.state_dict(), "optimizer": optimizer.state_dict(), "best": np.float64(0.5)},
        tmp_path / "m.ckpt",
    )
    with open_torch(tmp_path / "m.ckpt") as checkpoint:
        same(checkpoint, dict(model.state_dict()))
        assert checkpoint.metadata == {"epoch": "7", "format": "pt"}
        assert [type(event).__name__ for event in checkpoint.events] == ["Dropped", "Note", "MetadataLost"]
    with open_torch_key(tmp_path / "m.ckpt", "optimizer.state.0") as checkpoint:
        same(checkpoint, optimizer.state_dict()["state"][0])


@pytest.mark.filterwarnings("ignore:ComplexHalf")
@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: torch.ones(2, dtype=torch.complex64).conj(), "lazy conjugate"),
        (lambda: torch.ones(3).to_sparse(), "sparse"),
        (lambda: torch.ones(3, device="meta"), "meta"),
        (lambda: torch.ones(3, dtype=torch.complex32), "complex32 is a type"),
    ],
)
def test_kinds_that_are_not_read(tmp_path: Path, make: Callable[[], Tensor], says: str) -> None:
    torch.save({"a": torch.ones(2), "x": make()}, tmp_path / "m.pt")
    with pytest.raises(UnsupportedFeature, match=f"tensor 'x': .*{says}"):
        open_torch(tmp_path / "m.pt")
    with open_torch_key(tmp_path / "m.pt", "a") as checkpoint:
        assert read(checkpoint)["a"].tolist() == [1, 1]


def test_a_whole_module_is_not_loaded(tmp_path: Path) -> None:
    torch.save(torch.nn.Linear(2, 2), tmp_path / "m.pt")
    with pytest.raises(
        UnsupportedFeature,
        match=r"pickled model \(torch.nn.modules.linear.Linear\).*\n.*model.state_dict\(\).*\n.*torch.export.save",
    ):
        open_torch(tmp_path / "m.pt")


def test_without_checksums(tmp_path: Path) -> None:
    torch.serialization.set_crc32_options(False)
    try:
        torch.save({"w": torch.ones(3)}, tmp_path / "m.pt")
    finally:
        torch.serialization.set_crc32_options(True)
    with open_torch(tmp_path / "m.pt") as checkpoint:
        assert read(checkpoint)["w"].tolist() == [1, 1, 1]


class Net(torch.nn.Module):  # type: ignore[misc, name-defined]
    """A module with a parameter, buffers, a child, and a constant in its code."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(3, 4)
        self.register_buffer("mask", torch.ones(4).bool())
        self.layers = torch.nn.ModuleList([torch.nn.Linear(4, 4), torch.nn.Conv1d(1, 1, 3)])

    def forward(self, x: Tensor) -> Tensor:
        return self.layers[0](self.layer(x)) * self.mask + torch.tensor([0.5, 1.5, 2.5, 3.5])


@pytest.mark.filterwarnings("ignore")  # torch says that it is deprecated; such files stay
def test_torchscript(tmp_path: Path) -> None:
    model = Net()
    traced = torch.jit.trace(model, torch.ones(2, 3))
    traced.save(str(tmp_path / "m.pt"))
    with open_torch(tmp_path / "m.pt") as checkpoint:
        found = read(checkpoint)
        assert found.pop("CONSTANTS.c0").tolist() == [0.5, 1.5, 2.5, 3.5]
        assert {name: array.tobytes() for name, array in found.items()} == {
            name: raw(tensor) for name, tensor in traced.state_dict().items()
        }


names = st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=8)


@st.composite
def states(draw: Callable[..., Any]) -> dict[str, Tensor]:
    """State dicts whose tensors are views as torch's own operations make them."""
    state = {}
    for name in draw(st.lists(names, unique=True, min_size=1, max_size=6)):
        shape = tuple(draw(st.lists(st.integers(0, 5), max_size=4)))
        tensor = bits(draw(st.sampled_from(list(TYPES))), shape, draw(st.integers(0, 9)))
        if tensor.dim():
            tensor = tensor.permute(draw(st.permutations(range(tensor.dim()))))
            axis, start = draw(st.integers(0, tensor.dim())), draw(st.integers(0, tensor.shape[0]))
            tensor = tensor[start :: draw(st.integers(1, 2))]
            tensor = tensor.unsqueeze(axis).expand(*tensor.shape[:axis], draw(st.integers(0, 3)), *tensor.shape[axis:])
        state[name] = tensor
    return state


@examples(40)
@given(states(), st.booleans())
def test_states_by_torch(tmp_path: Path, state: dict[str, Tensor], zipped: bool) -> None:
    torch.save(state, tmp_path / "m.pt", _use_new_zipfile_serialization=zipped)
    with open_torch(tmp_path / "m.pt") as checkpoint:
        same(checkpoint, state)


# ------------------------------------------------------------------------------------------- writing


@pytest.mark.parametrize("calculated", [False, True])
@pytest.mark.parametrize("mapped", [False, True])
def test_torch_loads_what_we_write(tmp_path: Path, mapped: bool, calculated: bool) -> None:
    from torch.utils.serialization import config

    path = tmp_path / "m.pt"
    output.write(layout(checkpoint_of(ALL_TYPES), path, WriteOptions()))
    with config.patch("load.calculate_storage_offsets", calculated):
        state = torch.load(path, weights_only=True, mmap=mapped)
    assert list(state) == [each.name for each in ALL_TYPES]
    for each in ALL_TYPES:
        tensor = state[each.name]
        assert tuple(tensor.shape) == each.info.shape
        assert TYPES[str(tensor.dtype).removeprefix("torch.")] == each.info.dtype.name
        assert raw(tensor) == each.rows(0, each.info.n_rows).tobytes()
        assert tensor.is_contiguous() and not tensor.requires_grad


def test_our_records_stand_where_torch_would_put_them(tmp_path: Path) -> None:
    state = {f"layer.{i}": torch.rand(i, 7) for i in range(12)}
    torch.save(state, tmp_path / "archive.pt")
    assert main([str(tmp_path / "archive.pt"), str(tmp_path / "ours.pt"), "--quiet"]) == 0
    one, two = (torch._C.PyTorchFileReader(str(tmp_path / name)) for name in ("archive.pt", "ours.pt"))
    names = one.get_all_records()
    assert two.get_all_records() == names
    shift = two.get_record_offset("data/0") - one.get_record_offset("data/0")  # the pickles differ in length
    for name in names:
        if name.startswith("data/"):
            assert two.get_record_offset(name) - one.get_record_offset(name) == shift
            assert two.get_record(name) == one.get_record(name)


def test_there_and_back_by_the_command_line(tmp_path: Path) -> None:
    load_file = pytest.importorskip("safetensors.torch").load_file
    state = {f"{name}.w": bits(name, (3, 5)) for name in TYPES if name not in ("complex128",)}
    state |= {"view": torch.rand(6, 4).t(), "empty": torch.rand(0, 3), "scalar": torch.tensor(2.5)}
    first, middle, last = (tmp_path / name for name in ("a.pt", "b.safetensors", "c.bin"))
    torch.save(state, first)
    assert main([str(first), str(middle), "--quiet"]) == 0
    assert main([str(middle), str(last), "--quiet"]) == 0
    between = load_file(middle)
    final = torch.load(last, weights_only=True, mmap=True)
    for name, tensor in state.items():
        assert raw(final[name]) == raw(tensor) and final[name].dtype == tensor.dtype, name
        assert raw(between[name]) == raw(tensor) and between[name].shape == tensor.shape, name


# ---------------------------------------------------------------------------------------- real files

REAL = [
    "derived-pytorch-stories260K/*.bin", "pth-legacy-lpips/*.pth", "pt-facenet-mtcnn/*.pt",
    "adapter-peft-regression/*/*.bin", "adapter-peft-regression/*/*.pt",
]  # fmt: skip


@pytest.mark.parametrize("pattern", REAL)
def test_real_files(data: Path, pattern: str) -> None:
    paths = sorted(data.glob(pattern))
    if not paths:
        pytest.skip(f"no {pattern} in the test data")
    for path in paths:
        state = torch.load(path, map_location="cpu", weights_only=True)
        with open_torch(path) as checkpoint:
            same(checkpoint, {"tensor": state} if isinstance(state, torch.Tensor) else dict(state))


@pytest.mark.filterwarnings("ignore")
def test_real_torchscript(data: Path) -> None:
    path = data / "silero-vad" / "silero_vad.jit"
    if not path.is_file():
        pytest.skip("no silero_vad.jit in the test data")
    state = torch.jit.load(path).state_dict()
    with open_torch(path) as checkpoint:
        found = read(checkpoint)
    assert found.keys() >= state.keys()
    assert all(found[name].tobytes() == raw(tensor) for name, tensor in state.items())


def test_a_real_folder_of_bin_becomes_the_same_gguf(tmp_path: Path) -> None:
    """transformers writes a tied head into a .bin, not into safetensors."""
    from safetensors.torch import load_file

    source = FIXTURES / "stories260K"
    if not (source / "model.safetensors").is_file():
        pytest.skip("no weights in fixtures")
    folders = [tmp_path / side / "stories260K" for side in "ab"]
    for folder in folders:
        shutil.copytree(source, folder)
    state = load_file(folders[1] / "model.safetensors")
    if json.loads((source / "config.json").read_text()).get("tie_word_embeddings"):
        state["lm_head.weight"] = state["model.embed_tokens.weight"]
    (folders[1] / "model.safetensors").unlink()
    torch.save(state, folders[1] / "pytorch_model.bin")
    for folder in folders:
        assert main([str(folder), str(folder.parent / "m.gguf"), "--quant", "q8_0", "--quiet"]) == 0
    assert (tmp_path / "a" / "m.gguf").read_bytes() == (tmp_path / "b" / "m.gguf").read_bytes()


def _besides() -> dict[str, Any]:
    buffer = io.BytesIO()
    torch.save({"scale": torch.ones(2)}, buffer)
    return {
        "defaultdict of lists": collections.defaultdict(list, a=[1]),
        "defaultdict of dicts": collections.defaultdict(dict),
        "defaultdict of numbers": collections.defaultdict(int, a=1),
        "deque": collections.deque([1.0], maxlen=3),
        "range": range(3),
        "counter": collections.Counter("aab"),
        "complex": 1 + 2j,
        "set": {1, 2},
        "no bytes": b"",
        "bytes": b"\xff\0",
        "bytearray": bytearray(b"ab"),
        "generator": np.random.default_rng(1).bit_generator.state,
        "number": -(10**40),
        "buffer": buffer,
        "array": np.empty((0, 3)),
        "slice": slice(1, 2),
    }


@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("case", _besides())
def test_usual_objects_beside_the_weights(tmp_path: Path, case: str, stream: bool, protocol: int) -> None:
    weights = {"w": torch.arange(6.0).reshape(2, 3), "empty": torch.empty(0, 4)}
    path = tmp_path / "m.pt"
    content = {**weights, "beside": _besides()[case]}
    torch.save(content, path, pickle_protocol=protocol, _use_new_zipfile_serialization=not stream)
    with open_torch(path) as checkpoint:
        assert {name: tensor.array().tolist() for name, tensor in checkpoint.tensors.items()} == {
            "w": [[0.0, 1.0, 2.0], [3.0, 4.0, 5.0]], "empty": []
        }  # fmt: skip
        assert checkpoint.tensors["empty"].info.shape == (0, 4)
