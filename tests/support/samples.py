"""One small valid file of every format: from its own writer where it has one, else as its own tests build it.

What is here is asked for by name of the format, so a format that is registered without a sample fails the tests.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt

from converter import pipeline
from converter.checkpoint import Checkpoint
from converter.formats.base import Format, WriteOptions
from converter.quant.targets import TARGETS
from converter.storage import output
from converter.tensors.dtypes import DTYPES
from converter.tensors.tensor import LazyTensor, TensorInfo, from_array
from support import (
    adapters,
    builders,
    exports,
    ggml_files,
    importance,
    llama2c_files,
    mistral_files,
    packed_weights,
    shard_files,
    tensorflow_files,
    tflite_files,
)
from support.hdf5_files import FIXTURES as HDF5_FILES
from support.hdf5_files import archive
from support.paths import FIXTURES
from support.protobuf import blob, number

# Names that mean something in one format or another are theirs to test; these are what models have.
PLAIN = ("F32", "F16", "BF16", "F64", "I8", "I16", "I32", "I64", "U8", "BOOL", "F8_E4M3", "C64")
METADATA = {"author": "somebody", "note": "free text, ü"}


def tensors_for(format: Format) -> dict[str, LazyTensor]:
    """A (3, 4, 8) tensor of every type in PLAIN that `format` holds, a vector, a scalar and one of zero size.

    Their bits are random: NaNs of every payload, infinities and subnormal numbers among them.
    """
    rng = np.random.default_rng(11)
    made = []
    for name in PLAIN:
        if name in format.dtypes:
            dtype = DTYPES[name]
            raw = rng.integers(0, 2 if name == "BOOL" else 256, 3 * 4 * 8 * dtype.type_size, np.uint8)
            info = TensorInfo(f"model.layers.0.{name.lower()}.weight", (3, 4, 8), dtype)
            made.append(stored(info, raw))
    made.append(from_array("model.norm.weight", rng.standard_normal(8, np.float32), DTYPES["F32"], "sample"))
    if format.dialect != "gguf":  # GGUF has neither
        made.append(from_array("scalar", np.array(2.5), DTYPES["F32"], "sample"))
        made.append(from_array("empty", np.zeros((0, 4)), DTYPES["F32"], "sample"))
    return {tensor.name: tensor for tensor in made}


def stored(info: TensorInfo, raw: npt.NDArray[np.uint8]) -> LazyTensor:
    """A tensor of these bytes."""
    rows = raw.reshape(info.n_rows, info.row_nbytes)
    return LazyTensor(info, lambda start, stop: rows[start:stop], "sample")


def write(format: Format, tensors: Mapping[str, LazyTensor], path: Path, metadata: Mapping[str, str]) -> Path:
    """`tensors` and free text by the writer of `format`."""
    assert format.layout is not None
    checkpoint = Checkpoint("sample", path, format.dialect, dict(tensors), metadata=dict(metadata))
    output.write(format.layout(checkpoint, path, WriteOptions()))
    return path


def _written(folder: Path, name: str, data: bytes) -> Path:
    (folder / name).write_bytes(data)
    return folder / name


def _gguf(folder: Path) -> Path:
    return _written(folder, "sample.gguf", builders.small_gguf())


def _npy(folder: Path) -> Path:
    np.save(folder / "sample.npy", np.arange(24, dtype="<f4").reshape(4, 6))
    return folder / "sample.npy"


def _hf(folder: Path) -> Path:
    return builders.llama_folder(folder / "sample")


def _keras(folder: Path) -> Path:
    members = {"metadata.json": b"{}", "config.json": b'{"class_name": "Lambda"}'}
    return archive(folder / "sample.keras", members | {"model.weights.h5": (HDF5_FILES / "weights.h5").read_bytes()})


def _tensorflow(folder: Path) -> Path:
    return tensorflow_files.bundle(folder, {"a": tensorflow_files.F6, "b": np.array(3), "c": tensorflow_files.BIG[:4]})


def _graph(folder: Path) -> Path:
    t = tensorflow_files
    return t.graph(folder, t.const("w", number(1, 1), t.S23, blob(4, t.F6.tobytes())))


def _tflite(folder: Path) -> Path:
    return tflite_files.write(folder, tflite_files.GOOD)


def _ggml(folder: Path) -> Path:
    return _written(folder, "sample.bin", ggml_files.llama())


def _llama2c(folder: Path) -> Path:
    return _written(folder, "sample.bin", llama2c_files.version1(llama2c_files.weights(shared=False)))


def _mistral(folder: Path) -> Path:
    own = mistral_files.small(folder / "sample")
    shutil.copyfile(FIXTURES / "stories260K" / "tokenizer.model", own / "tokenizer.model")
    return own


def _distributed(folder: Path) -> Path:
    return shard_files.small_dcp(folder / "sample")


# Formats without a writer, or whose writer needs more than named tensors.
MADE: dict[str, Callable[[Path], Path]] = {
    "distributed": _distributed,
    "ggml": _ggml,
    "gguf": _gguf,
    "hf": _hf,
    "keras": _keras,
    "llama2c": _llama2c,
    "mistral": _mistral,
    "npy": _npy,
    "tensorflow": _tensorflow,
    "tf-graph": _graph,
    "tflite": _tflite,
}


def sample(format: Format, folder: Path) -> Path:
    """A small valid file (or folder) of `format` in `folder`."""
    if format.name in MADE:
        return MADE[format.name](folder)
    return write(format, tensors_for(format), folder / f"sample{format.extensions[0]}", METADATA)


# ---------------------------------------------------------------------------------------------------- large files


def large(format: Format, tensor: LazyTensor, folder: Path) -> Path:
    """A file of `format` with `tensor`, which is (rows, 2**20) F32, or with as many bytes as it has."""
    if format.name in LARGE:
        return LARGE[format.name](tensor, folder)
    return write(format, {"w": tensor}, folder / f"large{format.extensions[0]}", {})


def _bytes(tensor: LazyTensor) -> bytes:
    return tensor.rows(0, tensor.info.n_rows).tobytes()


def _large_hf(tensor: LazyTensor, folder: Path) -> Path:
    from converter.formats.registry import formats

    (folder / "large").mkdir()
    (folder / "large" / "config.json").write_text("{}")
    write(formats()["safetensors"], {"w": tensor}, folder / "large" / "model.safetensors", {"format": "pt"})
    return folder / "large"


def _large_keras(tensor: LazyTensor, folder: Path) -> Path:
    from converter.formats.registry import formats

    weights = write(formats()["hdf5"], {"w": tensor}, folder / "weights.h5", {})
    members = {"metadata.json": b"{}", "config.json": b"{}", "model.weights.h5": weights.read_bytes()}
    weights.unlink()
    return archive(folder / "large.keras", members)


def _large_tensorflow(tensor: LazyTensor, folder: Path) -> Path:
    return tensorflow_files.bundle(folder, {"w": np.frombuffer(_bytes(tensor), "<f4").reshape(tensor.info.shape)})


def _large_graph(tensor: LazyTensor, folder: Path) -> Path:
    t = tensorflow_files
    shape = blob(2, t.shape(*tensor.info.shape))
    return t.graph(folder, t.const("w", number(1, 1), shape, blob(4, _bytes(tensor))))


def _large_tflite(tensor: LazyTensor, folder: Path) -> Path:
    t = tflite_files
    return t.write(folder, t.model([t.tensor("w", tensor.info.shape, 0, 1)], [t.data(_bytes(tensor))]))


def _large_ggml(tensor: LazyTensor, folder: Path) -> Path:
    t, rows = ggml_files, 22528
    kinds = {name: kind for name, (_, kind) in t.whisper_shapes(t.F16).items()}
    sizes = {kind: rows * 32 // t.SIZES[kind][0] * t.SIZES[kind][1] for kind in kinds.values()}
    records = (t.tensor(0, name, (rows, 32), kind, data=bytes(sizes[kind])) for name, kind in kinds.items())
    return _written(folder, "large.bin", b"".join((t.whisper_head(), *records)))


def _large_llama2c(tensor: LazyTensor, folder: Path) -> Path:
    width, layers, hidden, vocab = 512, 8, 1536, 512
    matrices = layers * (4 * width * width + 3 * width * hidden) + vocab * width
    norms = (2 * layers + 1) * width
    head = llama2c_files.header(1, True, sizes=(width, hidden, layers, 8, 8, vocab, 64))
    return _written(folder, "large.bin", head + bytes(4 * (matrices + norms)))


def _large_mistral(tensor: LazyTensor, folder: Path) -> Path:
    from converter.formats.registry import formats

    own = mistral_files.small(folder / "large")
    write(
        formats()["safetensors"],
        {"output.weight": tensor.renamed("output.weight")},
        own / "consolidated.safetensors",
        {},
    )
    return own


def _large_distributed(tensor: LazyTensor, folder: Path) -> Path:
    array = np.frombuffer(_bytes(tensor), "<f4").reshape(tensor.info.shape)
    rows, row = array.shape
    boxes = [((start, 0), (1, row)) for start in range(rows)]
    return shard_files.Checkpoint({"w": array}, {"w": boxes}).write(folder / "large")


LARGE: dict[str, Callable[[LazyTensor, Path], Path]] = {
    "distributed": _large_distributed,
    "ggml": _large_ggml,
    "hf": _large_hf,
    "keras": _large_keras,
    "llama2c": _large_llama2c,
    "mistral": _large_mistral,
    "tensorflow": _large_tensorflow,
    "tf-graph": _large_graph,
    "tflite": _large_tflite,
}


def every_kind(folder: Path) -> None:
    """All of them and their variants, each in its own folder: where a fuzzer starts."""
    from converter.formats.registry import formats

    for name, format in formats().items():
        (folder / name).mkdir()
        path = sample(format, folder / name)
        if name in ("llama2c", "ggml"):
            path.rename(path.with_suffix(f".{name}"))
    (folder / "ggml" / "whisper.ggml").write_bytes(ggml_files.whisper())
    (folder / "llama2c" / "v0.llama2c").write_bytes(llama2c_files.version0(llama2c_files.weights(shared=True)))
    (folder / "llama2c" / "v2.llama2c").write_bytes(llama2c_files.version2(llama2c_files.weights(shared=False), 4)[0])
    shard_files.small_ranks(folder / "ranks")
    for stage in (2, 3):
        shard_files.Zero(stage).write(folder / f"zero-{stage}")
    shard_files.megatron(folder / "megatron", shard_files.megatron_arrays())
    (folder / "tf").mkdir()
    tensorflow_files.good(folder / "tf")
    _tiny_folders(folder / "hf-whole", folder / "hf-shards", folder / "mistral-own")
    pipeline.convert(folder / "hf-whole", folder / "hf-whole" / "model.gguf", threads=1)
    _graphs(folder / "graphs", folder / "hf-whole")
    exported = exports.graph("genai-int4-llama", folder / "exports")
    exported.rename(exported.with_name("exported.onnx"))
    exports.config("llama", exported.parent)
    _packed_folders(folder / "packed")
    for kind in adapters.SMALL:
        adapters.small(kind, folder / "adapters" / kind)
    (folder / "imatrix").mkdir()
    matrix = importance.build_matrix("m", {"blk.0.attn_q.weight": (2, 32), "blk.0.ffn_down.weight": (2, 64)})
    importance.write_matrix(folder / "imatrix" / "imatrix.gguf", matrix)
    (folder / "imatrix" / "imatrix.dat").write_bytes(importance.dat_bytes(matrix.means()))


def _graphs(folder: Path, whole: Path) -> None:
    """Models that run, which say of what they were written: of numbers, and of blocks with minima and without."""
    folder.mkdir()
    pipeline.convert(whole, folder / "plain.onnx", pipeline.Request(external_data="never"), threads=1)
    source = folder / "source"
    builders.llama_folder(source)
    for quant in ("q4_0", "q4_1", "q5_0"):
        request = pipeline.Request(quant=quant, pure=True, external_data="never")
        pipeline.convert(source, folder / f"{quant}.onnx", request, threads=1)
    shutil.rmtree(source)


def _packed_folders(folder: Path) -> None:
    """One weight in every scheme that is read, and in every one that is written."""
    for name in packed_weights.SCHEMES:
        packed_weights.write(folder / name, *packed_weights.given(name))
    plain = folder.with_name("packed-plain")
    weights = {f"{packed_weights.NAME}.weight": np.linspace(-1, 1, 16 * 128, dtype="<f4").reshape(16, 128)}
    plain.mkdir()
    (plain / "config.json").write_text(json.dumps(builders.CONFIG))
    (plain / "model.safetensors").write_bytes(builders.safetensors_of(weights))
    for name in TARGETS:
        pipeline.convert(plain, folder / f"as-{name}", pipeline.Request(format="hf", scheme=name), threads=1)
    shutil.rmtree(plain)


def _tiny_folders(whole: Path, shards: Path, own: Path) -> None:
    """A Llama of few bytes, with tokenizer, in one file and in two, and as Mistral's own."""
    smaller = {32: 8, 64: 16, 16: 4, 512: 512}
    shapes = {name: tuple(smaller[size] for size in shape) for name, shape in builders.llama_shapes().items()}
    weights = {name: np.zeros(shape, "<f2") for name, shape in shapes.items() if name != "lm_head.weight"}
    config = {"hidden_size": 8, "intermediate_size": 16, "tie_word_embeddings": True}
    builders.llama_folder(whole, config=config, weights=weights)
    config = {**builders.CONFIG, **config, "vocab_size": 512}
    mistral_files.write(own, mistral_files.weights_of(weights, config), mistral_files.params_of(config))
    shutil.copyfile(FIXTURES / "stories260K" / "tokenizer.model", own / "tokenizer.model")
    names = list(weights)
    builders.sharded(shards, [{name: weights[name] for name in part} for part in (names[:4], names[4:])])
    for file in whole.glob("*.json"):
        shutil.copyfile(file, shards / file.name)
