"""Verifications made by hand, for what reads them: the gate and the reports."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from converter.findings import Finding
from converter.runtimes.behaviour import Behaviour
from converter.verify.results import Block, Fidelity, Verification

HOSTILE = "blk.1.</script><script>document.title='ran'</script>&\"'`|\x1b[2J\x00\ud800_*[x](y)@me"


def fidelity(name: str = "blk.0.attn_q.weight", **changes: Any) -> Fidelity:
    """A Q4_K tensor of 256 x 512 elements with an error of 7 % (23 dB)."""
    tensor = Fidelity(
        name=name,
        sources=("model.layers.0.self_attn.q_proj.weight",),
        shape=(256, 512),
        type="Q4_K",
        reference_type="BF16",
        elements=256 * 512,
        exact=False,
        reproduced=True,
        blocks=512,
        differing=0,
        max_abs=0.3,
        max_rel=2.0,
        measured=256 * 512,
        noise=0.005 * 256 * 512,
        energy=1.0 * 256 * 512,
        cosine=0.9975,
        p999=0.25,
        worst=Block(3, 256, 0.12),
        bound=0.006,
        nonfinite=0,
        reference_nonfinite=0,
        zero=False,
        reference_zero=False,
        bytes=512 * 144,
        histogram=tuple((0.01 * edge, 2000 - 60 * edge) for edge in range(1, 31)),
    )
    return replace(tensor, **changes)


def exact(name: str) -> Fidelity:
    """An F32 norm that is what it was."""
    return fidelity(
        name, type="F32", shape=(512,), elements=512, measured=512, exact=True, noise=0.0, energy=512.0, max_abs=0.0,
        max_rel=0.0, cosine=1.0, p999=0.0, worst=None, bound=None, blocks=0, bytes=2048, histogram=(),
    )  # fmt: skip


def behaviour(**changes: Any) -> Behaviour:
    """What two runtimes did with 200 tokens."""
    kl = tuple(0.002 + 0.05 * (position % 37 == 5) + 0.00001 * position for position in range(200))
    values = Behaviour("torch", "llama.cpp", 200, 0.9, 0.004, max(kl), 0.97, 10.0, 10.2, kl_by_position=kl)
    return replace(values, **changes)


def verification(blocks: int = 4, *extra: Fidelity, findings: tuple[Finding, ...] = (), **changes: Any) -> Verification:
    """A small model: per block two matrices, one in a larger type, and a norm."""
    tensors = [fidelity("token_embd.weight", type="Q6_K", noise=0.0003 * 256 * 512, bytes=512 * 210)]
    for block in range(blocks):
        noise = (0.004 + 0.0004 * block) * 256 * 512
        tensors += [
            fidelity(f"blk.{block}.attn_q.weight", noise=noise),
            fidelity(f"blk.{block}.ffn_down.weight", type="Q6_K", noise=noise / 15, bytes=512 * 210),
            exact(f"blk.{block}.attn_norm.weight"),
        ]
    values: dict[str, Any] = {"behaviour": None, "seconds": 1.25, **changes}
    return Verification("model", "model-q4.gguf", (*tensors, *extra), findings, **values)
