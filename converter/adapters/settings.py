"""What adapter_config.json says, as far as it decides numbers; what is not computed here is refused by name.

Source: PEFT 0.21's configuration classes and `tuners/lora/layer.py`; MLX-LM's `LoRALinear`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from converter.checkpoint import Checkpoint
from converter.errors import CorruptFile, UnsupportedFeature, UsageError, short
from converter.quant.patterns import Pattern, check_count

#: The kinds that are merged: PEFT's `peft_type`, and MLX's own, whose config has none.
KINDS = ("LORA", "LOHA", "LOKR", "IA3", "TRAINABLE_TOKENS", "MLX")
# Settings of LORA under which a weight is something else than the base plus B A, and why that cannot be had.
_REFUSED: Mapping[str, str] = {
    "layer_replication": "it makes a deeper model of the base's layers",
    "use_qalora": "its A works on averages of columns",
    "alora_invocation_tokens": "it counts only after certain tokens, which no merged weight can do",
    "use_bdlora": "its matrices are block-diagonal",
    "arrow_config": "it chooses between adapters for each token",
    "kasa_config": "it changes the base by its singular values",
    "monteclora_config": "its weights are drawn at random",
}
# Beginnings of `init_lora_weights` that also changed the base, unless the adapter was converted when it was saved.
_CHANGE_THE_BASE = ("pissa", "corda", "olora", "lora_ga", "loftq")


@dataclass(frozen=True)
class Settings:
    """The config of an adapter. `kind` is one of KINDS."""

    path: Path
    kind: str
    config: Mapping[str, Any]

    @classmethod
    def of(cls, adapter: Checkpoint) -> Settings:
        """Those of an opened adapter.

        Raises:
            UnsupportedFeature: a kind or a setting that is not computed here.
        """
        config, path = adapter.config, adapter.path
        kind = config.get("peft_type", "MLX" if "lora_parameters" in config or "lora_layers" in config else "LORA")
        kind = str(getattr(kind, "value", kind)).upper()
        if kind == "MLX" and config.get("fine_tune_type", "lora") not in ("lora", "dora"):
            raise UnsupportedFeature(
                f"{path}: an MLX fine-tune of type {short(config['fine_tune_type'])} is no adapter"
            )
        if kind not in KINDS:
            raise UnsupportedFeature(
                f"{path}: is an adapter of type {short(kind)[1:-1]}, which is not computed here; "
                f"these are: {', '.join(KINDS)}\nmerge it by PEFT's merge_and_unload and convert the result"
            )
        for name, why in _REFUSED.items():
            if config.get(name):
                raise UnsupportedFeature(
                    f"{path}: has {name}: {why}\nmerge it by PEFT, where that can do it, and convert the result"
                )
        start = config.get("init_lora_weights")
        if isinstance(start, str) and start.lower().startswith(_CHANGE_THE_BASE):
            raise UnsupportedFeature(
                f"{path}: init_lora_weights is {short(start)}, so that it belongs to a base that was changed, too\n"
                "save it by PEFT with path_initial_model_for_weight_conversion, which makes a plain LoRA of it"
            )
        return cls(path, kind, config)

    def factor(self, module: str, rank: int) -> float:
        """What the product of a module's matrices, of this rank, is multiplied by.

        Raises:
            CorruptFile: a number that is none, or a rank of 0.
        """
        if self.kind == "MLX":
            return self._number(self._mlx.get("scale", 20.0), "scale")
        lora = self.kind == "LORA"
        alpha = self._by_pattern("alpha_pattern", module, "lora_alpha" if lora else "alpha", 8)
        rank = rank if lora else int(self._by_pattern("rank_pattern", module, "r", 8))
        if rank <= 0:
            raise CorruptFile(f"{self.path}: the rank of {short(module)} is {rank}")
        return alpha / (math.sqrt(rank) if lora and self.config.get("use_rslora") else rank)

    @property
    def _mlx(self) -> Mapping[str, Any]:
        said = self.config.get("lora_parameters")
        return said if isinstance(said, dict) else self.config

    @property
    def alpha(self) -> float | None:
        """Of LoRA, the alpha of all modules that no pattern names; None where there is none to write."""
        said = self.config.get("lora_alpha") if self.kind == "LORA" else None
        return (self._number(said, "lora_alpha") or None) if said is not None else None

    @property
    def fan_in_fan_out(self) -> bool:
        """Whether the weights are said to lie (inputs, outputs), as GPT-2's."""
        return bool(self.config.get("fan_in_fan_out"))

    @property
    def base(self) -> str | None:
        """What it says that it was trained on."""
        said = self.config.get("base_model_name_or_path", self.config.get("model"))
        return said if isinstance(said, str) and said else None

    @property
    def target_parameters(self) -> tuple[str, ...]:
        """Ends of the names of parameters, which no module of their own holds, that it changes."""
        return self._texts(self.config.get("target_parameters"))

    def tokens(self, module: str) -> tuple[int, ...]:
        """The rows that an embedding's trainable tokens replace, in the order of what replaces them.

        Raises:
            CorruptFile: the config does not say them.
        """
        said = self.config.get("token_indices" if self.kind == "TRAINABLE_TOKENS" else "trainable_token_indices")
        if isinstance(said, dict):
            said = next((rows for name, rows in said.items() if f".{module}".endswith(f".{name}")), None)
        if not isinstance(said, list) or not all(type(row) is int and row >= 0 for row in said):
            raise CorruptFile(f"{self.path}: its config does not say which tokens of {short(module)} were trained")
        return tuple(said)

    def _texts(self, said: object) -> tuple[str, ...]:
        return tuple(map(str, said)) if isinstance(said, list) else (said,) if isinstance(said, str) else ()

    def _number(self, value: object, name: str) -> float:
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise CorruptFile(f"{self.path}: {name} is {short(value)}, no number")
        return float(value)

    def _by_pattern(self, patterns: str, module: str, default: str, unsaid: int) -> float:
        """The first pattern counts that fits a module's whole name, or its end from a dot on."""
        for (name, pattern), value in self._patterns.items():
            if name == patterns and pattern.search(module.lower()):
                return self._number(value, patterns)
        return self._number(self.config.get(default, unsaid), default)

    @cached_property
    def _patterns(self) -> dict[tuple[str, Pattern], object]:
        said = [(name, self.config.get(name)) for name in ("alpha_pattern", "rank_pattern")]
        texts = [
            (name, text, value) for name, table in said if isinstance(table, dict) for text, value in table.items()
        ]
        check_count(len(texts), str(self.path))
        try:
            return {(name, Pattern(f"^(.*\\.)?({text})$")): value for name, text, value in texts}
        except UsageError as error:
            raise UnsupportedFeature(f"{self.path}: {error}") from error
