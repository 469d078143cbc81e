"""An encoder in one graph: tokens that all see each other, in batches with padding on either side.

Source: llama.cpp's bert.cpp and modern-bert.cpp.
"""

from __future__ import annotations

from converter.graphs.texts import Texts


class Encoder(Texts):
    """The blocks of an encoder."""

    def block(self, x: str, block: int) -> str:
        """Norms stand before the parts of a block or behind them, wherever there are tensors for them."""
        name, add = f"blk.{block}.", self.build.op
        attended = self.attention(self.norm(x, f"{name}attn_norm") or x, block)
        attended = self.norm(attended, f"{name}post_attention_norm") or attended
        before, x = x, add("Add", x, attended)
        x = self.norm(x, f"{name}attn_output_norm") or x
        if self.layers.has(f"{name}attn_norm_2"):
            x = self.norm(add("Add", x, before), f"{name}attn_norm_2") or x
        made = self.feed_forward(self.norm(x, f"{name}ffn_norm") or x, block, x, before)
        made = self.norm(made, f"{name}post_ffw_norm") or made
        x = add("Add", x, made)
        return self.norm(x, f"{name}layer_output_norm") or x
