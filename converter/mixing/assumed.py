"""What errors cost a model by the role of a tensor, where no runtime is there to probe it.

Nats of KL divergence per squared error over squared values: geometric means over the tensors of a role of
fixtures/kjv-llama (5.8 M parameters), as `probes` measured them on 2,048 tokens of its own text. On another model
they are guesses: they only say which tensors get the bytes that a quant leaves over, so that none gets a worse type
than that quant gives it.
"""

from __future__ import annotations

from collections.abc import Iterable

from converter.quant.recipes import role

SENSITIVITY = {
    "head": 0.290, "token_embd": 0.0946, "attn_k": 0.00208, "attn_q": 0.00201, "attn_output": 0.00098,
    "attn_v": 0.00091, "ffn_down": 0.00115, "ffn_gate": 0.00079, "ffn_up": 0.00053,
}  # fmt: skip
OTHER = 0.001


def assumed(names: Iterable[str]) -> dict[str, float]:
    """The sensitivity of each tensor by its role."""
    own = tuple(names)
    tied = "output.weight" not in own
    return {name: SENSITIVITY.get(role(name, tied), OTHER) for name in own}
