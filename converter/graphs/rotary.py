"""Rotary positions: cosines and sines of every token's angles, calculated in the graph, so that nothing grows with the
context.

Source: transformers' modeling_rope_utils.py, whose parameters the keys of a GGUF hold under other names.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from converter.errors import UnsupportedFeature
from converter.graphs.builder import Builder
from converter.graphs.masks import Masks
from converter.graphs.model import Model
from converter.tensors.dtypes import F32
from converter.tensors.elementary import double_log, power
from converter.tensors.tensor import LazyTensor

Floats = NDArray[np.float32]
#: Tensors whose numbers go into the angles.
READ = frozenset({"rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight"})
BETA_FAST, BETA_SLOW = 32.0, 1.0


@dataclass(frozen=True)
class Angles:
    """The angles of one kind of block: (cosines, sines) by name, each (batch, tokens, n_rot / 2)."""

    cos: str
    sin: str
    n_rot: int


class Rotary:
    """Makes the angles of each kind of block once."""

    def __init__(self, builder: Builder, model: Model, masks: Masks) -> None:
        self._builder = builder
        self._model = model
        self._masks = masks
        self._made: dict[tuple[object, ...], Angles] = {}
        self._positions = ""

    def angles(self, block: int) -> Angles:
        """The angles of a block.

        Raises:
            UnsupportedFeature: a scaling that is not known here.
        """
        model, facts = self._model, self._model.facts
        width = model.size("embedding_length") // model.size("attention.head_count", block)
        head_dim = model.size("attention.key_length", block, width)
        n_rot = model.size("rope.dimension_count", block, head_dim)
        theta = float(model.key("rope.freq_base", block, 10000.0))
        if self._masks.window(block):
            n_rot = model.size("rope.dimension_count_swa", block, n_rot)
            theta = float(model.key("rope.freq_base_swa", block, theta))
        n_rot = int(model.number(facts.rotated, block)) if facts.rotated else n_rot
        if n_rot % 2:
            raise UnsupportedFeature(f"{n_rot} elements of a head rotate: no graph can pair an odd number")
        theta = model.number(facts.theta, block) if facts.theta else theta
        scaled = model.holds(facts.scaled, block)
        key = (n_rot, theta, scaled)
        if key not in self._made:
            self._made[key] = self._angles(n_rot, theta, scaled)
        return self._made[key]

    def _angles(self, n_rot: int, theta: float, scaled: bool) -> Angles:
        build = self._builder
        plain: Floats = np.float32(1) / power(theta, np.arange(0, n_rot, 2, dtype=np.float32) / np.float32(n_rot))
        with build.outside_blocks():
            frequencies, magnitude = self._scaled(plain, n_rot, theta) if scaled else (self._constant(plain), 1.0)
            if not self._positions:
                floats = build.cast("position_ids", F32)
                self._positions = build.op("Unsqueeze", floats, build.constant([-1]))
            angles = build.op("Mul", self._positions, frequencies)
            cos, sin = (self._waves(wave, angles, magnitude) for wave in ("Cos", "Sin"))
        return Angles(cos, sin, n_rot)

    def _waves(self, wave: str, angles: str, magnitude: float) -> str:
        build = self._builder
        made = build.op(wave, angles)
        if magnitude != 1.0:
            made = build.op("Mul", made, build.constant(magnitude, np.float32))
        return made if build.dtype is F32 else build.cast(made, build.dtype)

    def _constant(self, frequencies: Floats) -> str:
        return self._builder.constant(frequencies, np.float32)

    def _scaled(self, plain: Floats, n_rot: int, theta: float) -> tuple[str, float]:
        """Frequencies by name, and what cosines and sines are multiplied by."""
        model = self._model
        kind = model.key("rope.scaling.type", default="none")
        if (long := model.tensors.get("rope_factors_long.weight")) is not None:
            short = model.tensors["rope_factors_short.weight"]
            magnitude = float(model.key("rope.scaling.attn_factor", default=1.0))
            return self._by_length(plain, _floats(short), _floats(long)), magnitude
        if (divisors := model.tensors.get("rope_freqs.weight")) is not None:
            return self._constant(plain / _floats(divisors)[: len(plain)]), 1.0
        factor = float(model.key("rope.scaling.factor", default=1.0))
        if kind == "linear":
            return self._constant(plain / np.float32(factor)), 1.0
        if kind == "yarn":
            return self._constant(self._yarn(plain, n_rot, theta, factor)), self._yarn_magnitude(factor)
        if kind not in ("none", "default"):
            raise UnsupportedFeature(f"a rope scaling called {kind}: no graph can be written with it")
        return self._constant(plain), 1.0

    def _by_length(self, plain: Floats, short: Floats, long: Floats) -> str:
        """Longrope: other frequencies as soon as a text is longer than those of the training."""
        build, model = self._builder, self._model
        n_ctx_orig = model.size("rope.scaling.original_context_length", default=model.key("context_length"))
        longer = build.op("Greater", self._masks.total, build.constant([n_ctx_orig]))
        return build.op("Where", longer, self._constant(plain / long), self._constant(plain / short))

    def _yarn(self, plain: Floats, n_rot: int, theta: float, factor: float) -> Floats:
        """Short wavelengths as they are, long ones stretched, and a ramp between."""
        model = self._model
        n_ctx_orig = float(model.size("rope.scaling.original_context_length"))

        def turning(turns: float) -> float:
            """The pair that turns so often within the context of the training."""
            return n_rot * double_log(n_ctx_orig / (turns * 2 * math.pi)) / (2 * double_log(theta))

        low = turning(float(model.key("rope.scaling.yarn_beta_fast", default=BETA_FAST)))
        high = turning(float(model.key("rope.scaling.yarn_beta_slow", default=BETA_SLOW)))
        if model.facts.yarn_rounds:
            low, high = math.floor(low), math.ceil(high)
        first, last = max(low, 0), min(high, n_rot - 1)
        width = np.float32(last - first if last != first else 0.001)
        ramp = np.clip((np.arange(n_rot // 2, dtype=np.float32) - np.float32(first)) / width, 0, 1)
        kept = np.float32(1) - ramp
        found: Floats = plain / np.float32(factor) * (np.float32(1) - kept) + plain * kept
        return found

    def _yarn_magnitude(self, factor: float) -> float:
        said = self._model.key("rope.scaling.yarn_attn_factor")
        if said is not None:
            return float(said)
        # Where it has multipliers, they are alike and cancel each other.
        plain = factor <= 1 or self._model.key("rope.scaling.yarn_log_multiplier")
        return 1.0 if plain else 0.1 * double_log(factor) + 1.0


def _floats(tensor: LazyTensor) -> Floats:
    found: Floats = tensor.array().astype(np.float32).reshape(-1)
    return found
