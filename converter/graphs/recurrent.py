"""Parts of a block that keep a state of fixed size, which each token changes: Mamba, Mamba-2, the gated delta rule,
for whole heads or for each channel of a key (KDA).

What a token needs is computed for all tokens at once; then a `Scan` goes through them, with the state in F32. Its shape
is that of transformers, its names those of Transformers.js.

Source: llama.cpp's mamba-base.cpp, delta-net-base.cpp, qwen35.cpp, qwen3next.cpp, kimi-linear.cpp; `ggml_ssm_scan`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from converter.graphs.builder import Builder, Step
from converter.graphs.convolution import Convolution
from converter.graphs.layers import Layers
from converter.graphs.masks import Masks
from converter.tensors.dtypes import F32


class Recurrent:
    """Writes such a part of any block."""

    def __init__(self, layers: Layers, masks: Masks, convolution: Convolution) -> None:
        self._layers, self._model, self._masks, self._convolution = layers, layers.model, masks, convolution
        self._build: Builder = layers.build

    def has(self, block: int) -> bool:
        """Whether a block has such a part."""
        return self._model.tensor(f"blk.{block}.ssm_a") is not None

    def __call__(self, x: str, block: int) -> str:
        name = f"blk.{block}.ssm_"
        if self._layers.has(f"{name}x"):
            return self._mamba(x, name)
        if self._layers.has(f"{name}in"):
            return self._mamba2(x, name)
        return self._by_channel(x, name, block) if self._layers.has(f"{name}f_a") else self._delta(x, name, block)

    # -------------------------------------------------------------------------------------------- mamba

    def _mamba(self, x: str, name: str) -> str:
        """A state for each channel, whose numbers decay each at its own pace."""
        build, layers, model = self._build, self._layers, self._model
        n_inner, n_state, n_rank = (model.size(f"ssm.{key}") for key in ("inner_size", "state_size", "time_step_rank"))
        x, gate = build.split(layers.linear(x, f"{name}in"), (n_inner, n_inner))
        x = self._convolved(x, (f"{name}conv1d",))
        steps, b, c = build.split(layers.linear(x, f"{name}x"), (n_rank, n_state, n_state))
        steps, b, c = (self._normed(part, f"{name}{of}_norm") for part, of in ((steps, "dt"), (b, "b"), (c, "c")))
        steps = build.op("Softplus", self._wide(layers.linear(steps, f"{name}dt")))
        decay = self._wide(self._plain(f"{name}a"))

        def step(states: Sequence[str], token: Sequence[str]) -> tuple[list[str], list[str]]:
            after = build.op("Mul", states[0], build.op("Exp", build.op("Mul", token[0], decay)))
            after = build.op("Add", after, build.op("Mul", token[1], token[2]))
            return [after], [build.op("MatMul", after, token[3])]

        given = build.op("Mul", self._real(steps), self._wide(x))
        tokens = [self._column(steps), self._column(given), self._row(self._wide(b)), self._column(self._wide(c))]
        made = self._scanned("ssm", (n_inner, n_state), step, tokens, n_inner)
        made = build.op("Add", made, build.op("Mul", x, self._plain(f"{name}d")))
        return layers.linear(build.op("Mul", made, self._silu(gate)), f"{name}out")

    def _normed(self, x: str, name: str) -> str:
        """Steps and both matrices are normalised where there are tensors for it, or a key says so."""
        made = self._layers.norm(x, name)
        if made is not None or not self._model.key("ssm.dt_b_c_rms", default=False):
            return made or x
        size = self._model.size("ssm.time_step_rank" if name.endswith("dt_norm") else "ssm.state_size")
        return self._layers.normalised(x, self._layers.ones(size))

    def _mamba2(self, x: str, name: str) -> str:
        """A state for each head, which decays as a whole."""
        build, layers, model = self._build, self._layers, self._model
        n_inner, n_state, n_head, n_group = (
            model.size(f"ssm.{key}") for key in ("inner_size", "state_size", "time_step_rank", "group_count")
        )
        of_groups = n_group * n_state
        gate, x, steps = build.split(layers.linear(x, f"{name}in"), (n_inner, n_inner + 2 * of_groups, n_head))
        x = self._convolved(x, (f"{name}conv1d",))
        x, b, c = build.split(x, (n_inner, of_groups, of_groups))
        steps = build.op("Softplus", self._wide(layers.biased(steps, f"{name}dt.bias")))
        decays = build.op("Exp", build.op("Mul", steps, self._wide(build.reshape(self._plain(f"{name}a"), n_head))))
        heads = build.reshape(x, 0, 0, n_head, n_inner // n_head)
        given = build.op("Mul", self._column(self._real(steps)), self._wide(heads))
        b, c = (self._shared(self._wide(part), n_group, n_head, n_state) for part in (b, c))

        def step(states: Sequence[str], token: Sequence[str]) -> tuple[list[str], list[str]]:
            after = build.op("Mul", states[0], token[0])
            after = build.op("Add", after, build.op("Mul", token[1], token[2]))
            return [after], [build.op("MatMul", after, token[3])]

        tokens = [self._column(self._column(decays)), self._column(given), self._row(b), self._column(c)]
        made = self._scanned("ssm", (n_head, n_inner // n_head, n_state), step, tokens, n_inner)
        more = build.op("Mul", heads, build.reshape(self._plain(f"{name}d"), n_head, 1))
        made = build.op("Mul", build.op("Add", made, build.reshape(more, 0, 0, n_inner)), self._silu(gate))
        if layers.has(f"{name}norm"):
            weight = build.reshape(self._plain(f"{name}norm.weight"), n_group, -1)
            apart = layers.normalised(build.reshape(made, 0, 0, n_group, -1), layers.ones(n_inner // n_group))
            made = build.reshape(build.op("Mul", apart, weight), 0, 0, n_inner)
        return layers.linear(made, f"{name}out")

    # -------------------------------------------------------------------------------------------- delta

    def _delta(self, x: str, name: str, block: int) -> str:
        """The gated delta rule: a state that maps keys to values is corrected by what it gets wrong."""
        build, layers, model = self._build, self._layers, self._model
        n_value, n_key, key = (model.size(f"ssm.{each}") for each in ("time_step_rank", "group_count", "state_size"))
        value = model.size("ssm.inner_size") // n_value
        mixed = layers.linear(x, f"blk.{block}.attn_qkv")
        mixed = self._convolved(mixed, (f"{name}conv1d",))
        q, k, v = build.split(mixed, (n_key * key, n_key * key, n_value * value))
        q = self._of_length(self._wide(build.reshape(q, 0, 0, n_key, key)), 1 / math.sqrt(key))
        k = self._of_length(self._wide(build.reshape(k, 0, 0, n_key, key)), 1.0)
        q, k = (self._shared(each, n_key, n_value, key) for each in (q, k))
        decays, strengths = self._paces(x, name, n_key, n_value)
        v = self._wide(build.reshape(v, 0, 0, n_value, value))
        made = self._corrected(q, k, v, self._column(decays), strengths, (n_value, key, value))
        gate = self._silu(layers.linear(x, f"blk.{block}.attn_gate"))
        return layers.linear(self._gated(made, gate, name, n_value, value), f"{name}out")

    def _by_channel(self, x: str, name: str, block: int) -> str:
        """The delta rule whose state decays for each channel of the keys; its gates come out of short vectors."""
        build, layers, size = self._build, self._layers, self._model.size("kda.head_dim")
        attn = f"blk.{block}.attn_"
        width = layers.needed(f"{attn}q.weight").info.shape[0]
        n_head = width // size
        mixed = build.op("Concat", *(layers.linear(x, f"{attn}{each}") for each in "qkv"), axis=-1)
        mixed = self._convolved(mixed, tuple(f"{name}conv1d_{each}" for each in "qkv"))
        parts = (self._wide(build.reshape(part, 0, 0, n_head, size)) for part in build.split(mixed, (width,) * 3))
        q, k, v = parts
        q, k = self._of_length(q, 1 / math.sqrt(size)), self._of_length(k, 1.0)
        steps = layers.biased(self._through(x, f"{name}f"), f"{name}dt.bias")
        steps = build.reshape(build.op("Softplus", self._wide(steps)), 0, 0, n_head, size)
        decays = build.op("Mul", steps, self._wide(build.reshape(self._plain(f"{name}a"), n_head, 1)))
        strengths = build.op("Sigmoid", self._wide(layers.linear(x, f"{name}beta")))
        made = self._corrected(q, k, v, decays, strengths, (n_head, size, size))
        gate = build.op("Sigmoid", self._through(x, f"{name}g"))
        return layers.linear(self._gated(made, gate, name, n_head, size), f"{attn}output")

    def _through(self, x: str, name: str) -> str:
        """By way of a short vector."""
        return self._layers.linear(self._layers.linear(x, f"{name}_a"), f"{name}_b")

    def _paces(self, x: str, name: str, n_key: int, n_value: int) -> tuple[str, str]:
        """How much of its state each head keeps, as a logarithm, and how far it goes: (batch, tokens, heads)."""
        build, layers = self._build, self._layers
        if layers.has(f"{name}ba"):
            share = n_value // n_key
            both = build.reshape(layers.linear(x, f"{name}ba"), 0, 0, n_key, 2 * share)
            strengths, steps = (build.reshape(part, 0, 0, n_value) for part in build.split(both, (share, share)))
        else:
            strengths, steps = layers.linear(x, f"{name}beta"), layers.linear(x, f"{name}alpha")
        steps = build.op("Softplus", self._wide(layers.biased(steps, f"{name}dt.bias")))
        decays = build.op("Mul", steps, self._wide(self._plain(f"{name}a")))
        return decays, build.op("Sigmoid", self._wide(strengths))

    def _corrected(self, q: str, k: str, v: str, decays: str, strengths: str, shape: tuple[int, int, int]) -> str:
        """Values for queries, of a state (heads, key, value) that decays and is corrected by every token.

        q, k, v: (batch, tokens, heads, size); decays: logarithms, (batch, tokens, heads, key or 1); strengths: (batch,
        tokens, heads).
        """
        build = self._build

        def step(states: Sequence[str], token: Sequence[str]) -> tuple[list[str], list[str]]:
            q, k, v, decay, strength = token
            kept = build.op("Mul", states[0], build.op("Exp", self._column(decay)))
            wrong = build.op("Sub", self._row(v), build.op("MatMul", self._row(k), kept))
            change = build.op("Mul", self._column(k), build.op("Mul", wrong, strength))
            after = build.op("Add", kept, change)
            return [after], [build.op("MatMul", self._row(q), after)]

        strengths = self._column(self._column(self._real(strengths)))
        return self._scanned(
            "recurrent", shape, step, [q, k, v, decays, strengths], shape[0] * shape[2]
        )  # fmt: skip

    def _gated(self, made: str, gate: str, name: str, n_head: int, size: int) -> str:
        """Heads normalised, times their gates."""
        build = self._build
        normed = self._layers.norm(build.reshape(made, 0, 0, n_head, size), f"{name}norm")
        return build.op("Mul", build.reshape(normed or made, 0, 0, n_head * size), gate)

    def _of_length(self, x: str, length: float) -> str:
        """Heads of one length, as transformers' l2norm makes them."""
        build, model = self._build, self._model
        epsilon = float(model.facts.length_epsilon or model.key("attention.layer_norm_rms_epsilon", default=1e-6))
        squares = build.op("ReduceSumSquare", x, build.constant([-1]))
        root = build.op("Sqrt", build.op("Add", squares, build.constant(epsilon, np.float32)))
        return build.op("Mul", build.op("Div", x, root), build.constant(length, np.float32))

    # ------------------------------------------------------------------------------------------- shared

    def _scanned(self, kind: str, shape: tuple[int, ...], step: Step, tokens: Sequence[str], width: int) -> str:
        """What `step` makes of each token, (batch, tokens, width), with a state that stays: `past_KIND.N`."""
        build, slot = self._build, self._layers.slot
        past, present = f"past_{kind}.{slot}", f"present_{kind}.{slot}"
        if self._model.has_cache:
            self._layers.keep(past, present, F32, shape)
            made = build.scan(step, (past,), tokens, (present, ""))[1]
        else:
            batch = build.op("Shape", "input_ids", end=1)
            every = build.op("Concat", batch, build.constant(shape), axis=0)
            made = build.scan(step, (build.op("Expand", build.constant(0, np.float32), every),), tokens, ("", ""))[1]
        return self._narrow(build.reshape(made, 0, 0, width))

    def _convolved(self, x: str, names: Sequence[str]) -> str:
        return self._silu(self._convolution(x, names))

    def _shared(self, x: str, n: int, n_head: int, size: int) -> str:
        """What several heads share, for each of them: (batch, tokens, n * size) -> (batch, tokens, n_head, size)."""
        build, share, facts = self._build, n_head // n, self._model.facts
        apart, times = ((n, 1), (n, share)) if facts.shared_by_neighbours else ((1, n), (share, n))
        x = build.reshape(x, 0, 0, *apart, size)
        if share > 1:
            x = build.op("Expand", x, build.constant([1, 1, *times, size]))
        return build.reshape(x, 0, 0, n_head, size)

    def _real(self, x: str) -> str:
        """x of tokens, and zero of padding."""
        return self._build.op("Mul", x, self._wide(self._masks.real()))

    def _plain(self, name: str) -> str:
        return self._layers.matrices.plain(self._layers.needed(name))

    def _wide(self, x: str) -> str:
        return x if self._build.dtype is F32 else self._build.cast(x, F32)

    def _narrow(self, x: str) -> str:
        return x if self._build.dtype is F32 else self._build.cast(x, self._build.dtype)

    def _silu(self, x: str) -> str:
        return self._build.op("Mul", x, self._build.op("Sigmoid", x))

    def _column(self, x: str) -> str:
        return self._build.op("Unsqueeze", x, self._build.constant([-1]))

    def _row(self, x: str) -> str:
        return self._build.op("Unsqueeze", x, self._build.constant([-2]))
