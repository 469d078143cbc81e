"""What goes into a model's matrix products by torch: the oracle of what llama.cpp shows of them.

transformers runs the folder in float32 with hooks on its modules. Experts, whose products are inside one module, are
computed once more by their definition.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Key = tuple[str, int | None]
Floats = NDArray[np.float32]

#: Modules of the Llama-like families, in a layer or the model: the weight in the GGUF file.
WEIGHTS = {
    "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down", "mlp.gate": "ffn_gate_inp", "mlp.experts": "experts",
}  # fmt: skip
_LAYER = re.compile(r"model\.layers\.(\d+)\.(.+)")


class Inputs:
    """All rows that were taken, by weight and expert: an observer that keeps everything."""

    def __init__(self) -> None:
        self.rows: defaultdict[Key, list[Floats]] = defaultdict(list)

    def take(self, name: str, rows: Floats, expert: int | None) -> None:
        self.rows[name, expert].append(rows.copy())

    def squares(self) -> dict[Key, tuple[NDArray[np.float64], int]]:
        """Sums of squares of the columns, and how many rows there were."""
        found = {key: np.concatenate(rows) for key, rows in self.rows.items()}
        return {key: ((rows.astype(np.float64) ** 2).sum(axis=0), len(rows)) for key, rows in found.items()}


def by_torch(folder: Path, chunks: Sequence[Sequence[int]]) -> Inputs:
    """What goes into the weights of a Hugging Face folder, by the names that GGUF has for them."""
    import torch
    import transformers

    transformers.utils.logging.set_verbosity_error()
    inputs = Inputs()
    model = transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager"
    ).eval()  # the other ways leave out softcapping
    for name, module in model.named_modules():
        layer = _LAYER.fullmatch(name)
        if name == "lm_head":
            module.register_forward_pre_hook(_taken(inputs, "output.weight"))
        elif layer and WEIGHTS.get(layer[2]) == "experts":
            module.register_forward_pre_hook(_routed(inputs, f"blk.{layer[1]}."))
        elif layer and layer[2] in WEIGHTS:
            module.register_forward_pre_hook(_taken(inputs, f"blk.{layer[1]}.{WEIGHTS[layer[2]]}.weight"))
    with torch.inference_mode():
        for chunk in chunks:
            model(input_ids=torch.tensor([list(chunk)]), use_cache=False)
    return inputs


def _taken(inputs: Inputs, name: str) -> Any:
    def hook(_: Any, given: tuple[Any, ...]) -> None:
        inputs.take(name, given[0].reshape(-1, given[0].shape[-1]).numpy(), None)

    return hook


def _routed(inputs: Inputs, block: str) -> Any:
    def hook(module: Any, given: tuple[Any, ...]) -> None:
        hidden, chosen = given[0].reshape(-1, given[0].shape[-1]), given[1]
        for expert in range(module.num_experts):
            rows = hidden[(chosen == expert).any(dim=1)]
            if not len(rows):
                continue
            gate, up = (rows @ module.gate_up_proj[expert].T).chunk(2, dim=-1)
            for part in ("gate", "up"):
                inputs.take(f"{block}ffn_{part}_exps.weight", rows.numpy(), expert)
            inputs.take(f"{block}ffn_down_exps.weight", (module.act_fn(gate) * up).numpy(), expert)

    return hook
