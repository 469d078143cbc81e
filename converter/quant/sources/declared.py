"""What a model says of the scheme that packed its weights: config.json, or a small file beside the weights.

Sources: `quantization_config` of transformers, `quantization` of MLX, the files of AutoGPTQ, ModelOpt and quanto.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from converter.checkpoint import Checkpoint
from converter.errors import short
from converter.storage.json import read_json

#: What people call the methods that config.json names.
METHODS: Mapping[str, str] = {
    "gptq": "GPTQ", "awq": "AWQ", "bitsandbytes": "bitsandbytes", "fp8": "FP8", "fbgemm_fp8": "FBGEMM FP8",
    "compressed-tensors": "compressed-tensors", "mxfp4": "MXFP4", "modelopt": "ModelOpt", "hqq": "HQQ",
    "torchao": "torchao", "quanto": "Quanto", "bitnet": "BitNet", "aqlm": "AQLM", "eetq": "EETQ", "exl2": "EXL2",
    "exl3": "EXL3", "quip": "QuIP#", "vptq": "VPTQ", "spqr": "SpQR", "higgs": "HIGGS", "auto-round": "AutoRound",
    "intel/auto-round": "AutoRound", "quark": "Quark", "marlin": "Marlin", "mlx": "MLX", "metal": "Metal",
    "ascend": "Ascend",
}  # fmt: skip
#: Small files beside the weights that say the same where config.json is silent, and the method that writes them.
SIDECARS: Mapping[str, str] = {
    "quantize_config.json": "gptq", "quant_config.json": "awq", "quanto_qmap.json": "quanto",
    "hf_quant_config.json": "modelopt", "quant_model_description.json": "ascend",
}  # fmt: skip
_AUTO_ROUND = ("auto-round", "intel/auto-round")
#: AutoRound's `packing_format`: whose layout that is, and which version of it.
_PACKINGS: Mapping[str, tuple[str, str]] = {
    "auto_round:auto_gptq": ("gptq", "gptq"), "auto_round:gptqmodel": ("gptq", "gptq_v2"),
    "auto_round": ("gptq", "gptq_v2"), "auto_round:auto_awq": ("awq", "gemm"),
}  # fmt: skip
#: Keys of config.json that hold settings.
KEYS = ("quantization_config", "compression_config", "quantization")


class Declared(NamedTuple):
    """What is said: the method as config.json names it, and its settings."""

    method: str
    settings: Mapping[str, Any]

    @property
    def name(self) -> str:
        """What people call it."""
        known = METHODS.get(self.method, short(self.method)[1:-1])
        detail = self.settings.get("quant_algo") or self.settings.get("format")
        return f"{known} ({short(detail)[1:-1]})" if isinstance(detail, str) else known


def declared(checkpoint: Checkpoint) -> Declared | None:
    """What config.json or a file beside the weights says; None where nothing does.

    Raises:
        CorruptFile: the file beside the weights is no JSON object.
    """
    for holder in _holders(checkpoint.config):
        for key in KEYS:
            if isinstance(said := holder.get(key), dict) and said:
                return _resolved(_method(said, holder), said)
    folder = checkpoint.path if checkpoint.path.is_dir() else checkpoint.path.parent
    return next(
        (_beside(folder / name, method) for name, method in SIDECARS.items() if (folder / name).is_file()), None
    )


def _method(said: Mapping[str, Any], holder: Mapping[str, Any]) -> str:
    """The method by its name, or by what only one writes."""
    if named := said.get("quant_method"):
        return str(named).lower()
    producer = said.get("producer")
    if isinstance(producer, dict) and isinstance(producer.get("name"), str):
        return str(producer["name"]).lower()
    if "config_groups" in said:
        return "compressed-tensors"
    return "mlx" if "quantization" in holder else "an unnamed scheme"


def _resolved(method: str, settings: Mapping[str, Any]) -> Declared:
    """AutoRound writes the layouts of others, and says whose."""
    packing = str(settings.get("packing_format", "")).lower()
    if method in _AUTO_ROUND and packing in _PACKINGS:
        whose, version = _PACKINGS[packing]
        return Declared(whose, {**settings, "checkpoint_format": version})
    return Declared(method, settings)


def undeclared(config: Mapping[str, Any]) -> dict[str, Any]:
    """The config of the same model with plain weights: what is said of a scheme is gone, in its parts, too."""
    return {
        key: undeclared(value) if isinstance(value, dict) and key.endswith("_config") else value
        for key, value in config.items()
        if key not in KEYS
    }


def _holders(config: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    yield config
    yield from (each for each in config.values() if isinstance(each, dict))  # text_config and its like


def _beside(path: Path, method: str) -> Declared:
    said = read_json(path)
    inner = said.get("quantization")  # ModelOpt's
    return Declared(method, {**said, **inner} if isinstance(inner, dict) else said)
