"""Writes the files of this folder with h5py (3.16, HDF5 2.0): `python make.py`."""

from __future__ import annotations

from pathlib import Path

import h5py
import ml_dtypes
import numpy as np

FOLDER = Path(__file__).parent


def tree(file: h5py.File) -> None:
    """One of everything that the reader knows."""
    file["a/plain"] = np.arange(12, dtype="<f4").reshape(3, 4)
    file["a/deep/big"] = np.arange(6, dtype=">f8")
    file["b/half"] = np.arange(3, dtype="<f2")
    file["b/bool"] = np.array([True, False, True])
    file["b/scalar"] = np.int64(-5)
    file["b/words"] = ["x", "yy"]
    file["bf16"] = np.arange(6, dtype="f4").astype(ml_dtypes.bfloat16).view("V2")
    file["bf16"].attrs["dtype"] = "bfloat16"
    numbers = np.arange(105, dtype="<i4").reshape(7, 5, 3)
    options = {"chunks": (3, 2, 3), "compression": "gzip", "shuffle": True, "fletcher32": True}
    file.create_dataset("packed", data=numbers, **options)
    file.create_dataset("holes", shape=(5, 5), dtype="<f4", chunks=(2, 2), fillvalue=7)[0, 0] = 1
    file.create_dataset("b/empty", shape=(0, 3), dtype="u1")
    file.create_dataset("b/unwritten", shape=(2, 3), dtype="<f4", fillvalue=2.5)
    properties = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    properties.set_layout(h5py.h5d.COMPACT)
    space = h5py.h5s.create_simple((3,))
    compact = h5py.h5d.create(file.id, b"compact", h5py.h5t.STD_U16LE, space, properties)
    compact.write(h5py.h5s.ALL, h5py.h5s.ALL, np.array([1, 2, 3], "u2"))
    file["soft"] = h5py.SoftLink("/a/plain")
    file["a/tied"] = file["a/plain"]
    file.attrs["text"], file.attrs["list"], file.attrs["fixed"] = "héllo", ["a", "bb"], np.bytes_(b"abc")
    file.attrs["number"] = 1.5
    file["a"].attrs["ids"] = np.arange(3)


def legacy(file: h5py.File) -> None:
    """Keras 2's layout: an inner model's weights have names of their own, the list of layers is split."""
    file.attrs["keras_version"], file.attrs["model_config"] = "2.13.0", '{"class_name": "Lambda", "config": "4wAA"}'
    top = file.create_group("model_weights")
    top.attrs["layer_names0"], top.attrs["layer_names1"] = np.array([b"dense"]), np.array([b"inner"])
    layers = {"dense": ["dense/kernel:0", "dense/bias:0"], "inner": ["conv/kernel:0"]}
    for i, (layer, weights) in enumerate(layers.items()):
        group = top.create_group(layer)
        group.attrs["weight_names"] = np.array([weight.encode() for weight in weights])
        for weight in weights:
            group[weight] = np.full((2, 3), i, "<f4")
    file["optimizer_weights/iter:0"] = np.int64(3)


def weights(file: h5py.File) -> None:
    """Keras 3's: groups are called by class, `vars` has the layer's name."""
    for group, name in (("dense", "first"), ("dense_1", "dense")):
        own = file.create_group(f"layers/{group}/vars")
        own.attrs["name"] = name
        own["0"] = np.full((2, 2), ord(name[0]), "<f4")
    file["optimizer/vars/0"] = np.int64(3)


def newer(file: h5py.File) -> None:
    """What libraries make when they need not be read by old ones: links and attributes in heaps, every chunk index."""
    for i in range(12):
        file.attrs[f"attribute{i}"] = i
        file[f"many/{'long' * 20}{i}"] = np.int8(i)
    file.attrs["large"] = np.array([b"x" * 100] * 50)  # more than a block of the heap takes
    values = np.arange(35, dtype="<i2").reshape(7, 5)
    packed = {"compression": "gzip", "shuffle": True}
    for name, most in (("fixed", (7, 5)), ("grows", (7, None)), ("grows_down", (None, 9)), ("both", (None, None))):
        file.create_dataset(name, data=values, chunks=(2, 1), maxshape=most)
        file.create_dataset(f"{name}_packed", data=values, chunks=(2, 1), maxshape=most, **packed)
    file.create_dataset("single", data=values, chunks=(7, 5))
    file.create_dataset("single_packed", data=values, chunks=(7, 5), **packed)
    properties = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    properties.set_chunk((2, 2))
    properties.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
    space = h5py.h5s.create_simple((7, 5), (9, 11))
    early = h5py.h5d.create(file.id, b"implicit", h5py.h5t.STD_I16LE, space, properties)
    early.write(h5py.h5s.ALL, h5py.h5s.ALL, values)


if __name__ == "__main__":
    for name, make, version in (
        ("old", tree, "earliest"),
        ("v108", tree, ("v108", "v108")),
        ("v110", newer, ("v110", "v110")),
        ("v200", newer, ("v200", "v200")),
        ("legacy", legacy, "earliest"),
        ("weights", weights, "earliest"),
    ):
        with h5py.File(FOLDER / f"{name}.h5", "w", libver=version) as file:
            make(file)
