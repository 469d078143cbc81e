"""How a block looks that the same encoder wrote with other arithmetic, and may be told from one that was changed.

Encoders that search compare sums of products. A build with fused multiply-adds (`-march=native` before ggml-base was a
library of its own; every build for arm64) rounds these sums otherwise, so that of two candidates which are as good as
alike the other one wins. Its whole block is then another, with nearly the same error. Nothing here proves such blocks.

Measured with the sources of llama.cpp of November 2026, gcc with and without `-mfma` (docs/certify.md has the table):
no block of the types that only round, up to 2.4 % of the blocks of those that search (4 % of IQ2_S and IQ2_XS), with
at most 1.42 times the squared error of the other build's. Where assertions are left out (`NDEBUG`, as in releases) the
multiplication before rounding is fused, too: a quarter of Q2_K's blocks and a third of Q5_K's are others then.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from converter.certify.results import BUT_FOR, NOT, TensorProof
from converter.quant.imatrix import WEIGHTED

#: Types whose encoder searches, so that arithmetic decides: those that take importance.
SEARCHED = WEIGHTED
#: The most that may differ of a tensor's blocks, and how much larger their error may be: half as much again as was
#: seen in a tensor, or more.
SHARE, WORSE = 0.05, 2.0
SHARES = {"Q2_K": 0.5, "Q3_K": 0.1, "Q4_K": 0.15, "Q5_K": 0.5}
#: Another build shows wherever it encoded. Tensors that differ hold at least this share of the blocks that it searched.
EVERYWHERE = 0.5


def judged(proofs: Sequence[TensorProof]) -> tuple[TensorProof, ...]:
    """The proofs, those that other arithmetic may explain as proven but for some blocks."""
    near = {proof.name for proof in proofs if _may_be_arithmetic(proof)}
    searched = [proof for proof in proofs if proof.type in SEARCHED]
    if _blocks(proof for proof in searched if proof.name in near) < EVERYWHERE * _blocks(searched):
        return tuple(proofs)
    return tuple(replace(proof, status=BUT_FOR) if proof.name in near else proof for proof in proofs)


def _may_be_arithmetic(proof: TensorProof) -> bool:
    found = proof.differing
    few = 0 < found.count <= SHARES.get(proof.type, SHARE) * found.blocks + 1
    return proof.status == NOT and proof.type in SEARCHED and few and found.worse <= WORSE


def _blocks(proofs: Iterable[TensorProof]) -> int:
    return sum(proof.differing.blocks for proof in proofs)
