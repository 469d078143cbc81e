"""What the pages of docs/howto take for granted: models, checkpoints and hosts under the names that they have there."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import converter
from support.hosts import Host, serving
from support.packed import Typed, write
from support.packers import gptq
from support.paths import FIXTURES, ROOT

MODEL = FIXTURES / "kjv-llama"


def _model(path: Path) -> None:
    shutil.copytree(MODEL, path)


def _checkpoint(path: Path) -> None:
    """What a training loop saves: the model, its moving average, the optimizer, and where it was."""
    torch = pytest.importorskip("torch")
    state = pytest.importorskip("safetensors.torch").load_file(MODEL / "model.safetensors")
    moments = {
        at: {"step": torch.tensor(10.0), "exp_avg": torch.zeros_like(each)} for at, each in enumerate(state.values())
    }
    groups = [{"lr": 1e-4, "params": list(range(len(state)))}]
    saved = {"model": state, "model_ema": {name: each * 0.9 for name, each in state.items()}}
    torch.save({**saved, "optimizer": {"state": moments, "param_groups": groups}, "epoch": 3}, path)


def _pickle(path: Path) -> None:
    """A file that would run a command, were it loaded."""
    import pickle

    class Trap:
        def __reduce__(self) -> tuple[Any, ...]:
            return os.system, ("touch owned",)

    path.write_bytes(pickle.dumps({"weight": Trap()}))


def _gptq(path: Path) -> None:
    """The model with its blocks' matrices in symmetric codes of four bits, groups of 128."""
    tensors: dict[str, Typed] = {}
    with converter.open_checkpoint(MODEL) as model:
        for name, tensor in model.tensors.items():
            values = converter.dequantize(tensor.array(), tensor.info.dtype.name, tensor.info.shape)
            if ".layers." not in name or values.ndim != 2:
                tensors[name] = ("BF16", values)
                continue
            groups = values.reshape(len(values), -1, 128)
            scales = (np.abs(groups).max(axis=2) / 7).astype(np.float16)
            codes = np.clip(np.rint(groups / scales[..., None].astype(np.float32)) + 8, 0, 15).astype(np.int64)
            order, zeros = np.arange(values.shape[1]) // 128, np.full(scales.shape, 8)
            packed = gptq(codes.reshape(values.shape), zeros, scales, order, 4, version=1)
            own = {suffix: ("F16" if suffix == "scales" else "I32", each) for suffix, each in packed.items()}
            tensors |= {f"{name.removesuffix('.weight')}.{suffix}": each for suffix, each in own.items()}
    config = json.loads((MODEL / "config.json").read_text("utf-8"))
    config["quantization_config"] = {"quant_method": "gptq", "bits": 4, "group_size": 128, "sym": True}
    shutil.copytree(MODEL, path, ignore=shutil.ignore_patterns("model.safetensors", "config.json"))
    write(path, tensors, config)


def _lora(path: Path) -> None:
    """An adapter of rank 4 for the queries, as PEFT saves it."""
    rng, names = np.random.default_rng(4), [f"model.layers.{layer}.self_attn.q_proj" for layer in range(6)]
    shapes = {"lora_A": (4, 256), "lora_B": (256, 4)}
    tensors = {
        f"base_model.model.{name}.{part}.weight": ("F32", rng.standard_normal(shape, np.float32) / 100)
        for name in names
        for part, shape in shapes.items()
    }
    config = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": ["q_proj"], "task_type": "CAUSAL_LM"}
    write(path, tensors, {})
    (path / "model.safetensors").rename(path / "adapter_model.safetensors")
    (path / "config.json").unlink()
    (path / "adapter_config.json").write_text(json.dumps(config), "utf-8")


#: A name in the commands of a page, and what makes it.
GIVEN: dict[str, Callable[[Path], None]] = {
    "model/": _model,
    "checkpoint.pt": _checkpoint,
    "gptq-model/": _gptq,
    "lora/": _lora,
    "stranger.bin": _pickle,
    "eval.txt": lambda path: shutil.copyfile(FIXTURES / "kjv-heldout.txt", path) and None,
    "fixtures/": lambda path: path.symlink_to(FIXTURES, target_is_directory=True),
    "docs/": lambda path: path.symlink_to(ROOT / "docs", target_is_directory=True),
}
#: A word in the commands of a page, and the package that it needs.
NEEDS = {"--runtime": "llama_cpp", ".yaml": "yaml", "hf://": "huggingface_hub", "s3://": "obstore"}


@contextmanager
def surroundings(folder: Path, text: str) -> Iterator[dict[str, str]]:
    """What the commands `text` need of files in `folder`, and the environment of it, with hosts where they ask some."""
    for word, package in NEEDS.items():
        if word in text:
            pytest.importorskip(package)
    for name, make in GIVEN.items():
        if name in text:
            make(folder / name)
    path = os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"]))
    foreign = ("HF_", "AWS_", "GOOGLE_", "AZURE_")
    clean = {key: each for key, each in os.environ.items() if not key.startswith(foreign)}
    environment = {**clean, "PATH": path, "HOME": str(folder), "NO_COLOR": "1"}
    if "://" not in text:
        yield environment
        return
    root = folder / ".host"
    _model(root / "org/model")
    (root / "bucket").mkdir()
    with serving(Host(root)) as host:
        stores = {"HF_ENDPOINT": host.url, "AWS_ENDPOINT_URL": host.url}
        yield {**environment, **stores, "AWS_ACCESS_KEY_ID": "nobody", "AWS_SECRET_ACCESS_KEY": "nothing"}
