"""Convolutions over a few tokens, each channel by itself, which keep the last inputs for later tokens.

Source: `ggml_ssm_conv`, and llama.cpp's lfm2.cpp for the one that is a whole part of a block.
"""

from __future__ import annotations

from collections.abc import Sequence

from converter.graphs.builder import Builder
from converter.graphs.layers import Layers
from converter.graphs.masks import Masks


class Convolution:
    """Writes the convolution of any block."""

    def __init__(self, layers: Layers, masks: Masks) -> None:
        self._layers, self._masks = layers, masks
        self._build: Builder = layers.build

    def __call__(self, x: str, names: Sequence[str]) -> str:
        """What the tensors of these names make of each token and those before it: (batch, tokens, channels).

        Several tensors are those of one channel after the other. Padding is zeros, as what stands before the first
        token. A model that sees both ways has the token in the middle.
        """
        build, model = self._build, self._layers.model
        weights = [self._layers.needed(f"{name}.weight") for name in names]
        size = weights[0].info.row
        channels = sum(weight.info.n_elements for weight in weights) // size
        kernels = [build.reshape(self._layers.matrices.plain(weight), -1, 1, size) for weight in weights]
        kernel = build.op("Concat", *kernels, axis=0) if len(kernels) > 1 else kernels[0]
        biases = [self._layers.tensor(f"{name}.bias") for name in names]
        more = tuple(self._layers.matrices.plain(bias) for bias in biases if bias is not None)
        x = build.op("Transpose", build.op("Mul", x, self._masks.real()), perm=[0, 2, 1])
        before = size - 1 if model.is_causal else (size - 1) // 2
        pads = [before, size - 1 - before]
        if model.has_cache:
            x, pads = self._continued(x, channels, size), [0, 0]
        made = build.op("Conv", x, kernel, *more, group=channels, kernel_shape=[size], pads=pads)
        return build.op("Transpose", made, perm=[0, 2, 1])

    def _continued(self, x: str, channels: int, size: int) -> str:
        """Inputs (batch, channels, tokens) behind all but the first of those that were kept."""
        build, slot = self._build, self._layers.slot
        past, present = f"past_conv.{slot}", f"present_conv.{slot}"
        self._layers.keep(past, present, build.dtype, (channels, size))
        every = build.op("Concat", past, x, axis=-1)
        build.slice(every, -size, output=present)
        return build.slice(every, 1)

    def has(self, block: int) -> bool:
        """Whether a block has a convolution in place of attention."""
        return self._layers.has(f"blk.{block}.shortconv.conv")

    def short(self, x: str, block: int) -> str:
        """The part of a block that is a convolution between two gates."""
        build, name = self._build, f"blk.{block}.shortconv."
        width = self._layers.model.size("embedding_length")
        first, second, x = build.split(self._layers.linear(x, f"{name}in_proj"), (width,) * 3)
        made = self(build.op("Mul", first, x), (f"{name}conv",))
        return self._layers.linear(build.op("Mul", second, made), f"{name}out_proj")
