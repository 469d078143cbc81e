"""Tensors that are computed from the config, and the config's facts read back from them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from converter.errors import ArchitectureError, short
from converter.tensors.elementary import cos, double_log, exp, power, sin

Rope = Mapping[str, Any]
Arrays = tuple[NDArray[np.float32], ...]


@dataclass(frozen=True)
class Generator:
    """Tensors that follow from the config, and back.

    Attributes:
        make: from the rope parameters and the hyperparameters; one array for each `gguf` name of the rule.
        back: from the arrays and the hyperparameters, the rope scaling that makes them; nothing where none is known.
        says: dotted keys of config.json that the tensors hold.
        of_rope: where they are of no rope scaling, `back` makes hyperparameters.
    """

    make: Callable[[Rope, Mapping[str, Any]], Arrays]
    back: Callable[[Arrays, Mapping[str, Any]], dict[str, Any]]
    says: tuple[str, ...]
    of_rope: bool = True


# What transformers assumes where a llama3 rope scaling leaves a value out.
LLAMA3_DEFAULTS = {
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}


def llama3_rope_freqs(rope: Mapping[str, Any], hparams: Mapping[str, Any]) -> NDArray[np.float32]:
    """Divisors of the rotary frequencies under Llama 3.1's scaling, float32 (head_dim / 2,).

    Long wavelengths are stretched by `factor`, short ones kept, and those between blended. Every step is rounded to
    float32, and a number is divided by a tensor as torch does it: times the reciprocal. That makes every value of
    every published model the reference's own. Source: `_compute_llama3_parameters` of transformers.

    Raises:
        ArchitectureError: a value is no positive number, or there is something to blend and no range to do it in.
    """
    factor, low, high, context = (_number(rope, key, value) for key, value in LLAMA3_DEFAULTS.items())
    one, dim = np.float32(1), int(hparams["head_dim"])
    exponents = np.arange(0, dim, 2, dtype=np.float32) / np.float32(dim)
    frequencies = one / power(float(_number(rope, "rope_theta", 10000.0)), exponents)
    wavelengths = one / frequencies * np.float32(2 * math.pi)
    kept, stretched = wavelengths < context / high, wavelengths > context / low
    freqs = np.where(stretched & ~kept, factor, one)
    between = ~(kept | stretched)
    if low == high and between.any():
        raise ArchitectureError("rope scaling: low_freq_factor and high_freq_factor must differ")
    blend = (one / wavelengths[between] * context - low) / (high - low)
    freqs[between] = one / ((one - blend) / factor + blend)
    return freqs


def _number(rope: Mapping[str, Any], key: str, default: float) -> np.float32:
    value = rope.get(key, default)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 1e-30 < value < 1e30:
        raise ArchitectureError(f"rope scaling: {key} is {short(value)}, not a positive number")
    return np.float32(value)


def llama3_rope_config(
    freqs: NDArray[np.float32], rope: Mapping[str, Any], hparams: Mapping[str, Any]
) -> dict[str, Any]:
    """The rope scaling whose `llama3_rope_freqs` are `freqs`, or nothing where none of the usual ones is.

    GGUF stores the divisors only. The factor is the largest of them, the low and high factors are those of every
    published model, and the context is the power of two that gives these divisors: 8192 if it does, else the
    nearest.
    """
    if not 1e-30 < freqs.max() < 1e30:
        return {}
    for context in sorted((1 << n for n in range(5, 21)), key=lambda n: abs(n.bit_length() - (8192).bit_length())):
        scaling = {**LLAMA3_DEFAULTS, "factor": float(freqs.max()), "original_max_position_embeddings": context}
        if np.allclose(llama3_rope_freqs({**rope, **scaling}, hparams), freqs, rtol=1e-5):
            return {"rope_type": "llama3", **scaling}
    return {}


def llama3_rope_freqs_of_half(rope: Rope, hparams: Mapping[str, Any]) -> Arrays:
    """The same where half of each head turns, float32 (head_dim / 2,), 1 for what does not.

    What follows on the frequencies is computed in doubles here. Source: the reference converter's Step35Model.
    """
    factor, low, high, context = (float(_number(rope, key, value)) for key, value in LLAMA3_DEFAULTS.items())
    n_rot = int(hparams["n_rot"])
    exponents = np.arange(0, n_rot, 2, dtype=np.float32) / np.float32(n_rot)
    frequencies = np.float32(1) / power(float(hparams["rope_theta"]), exponents)
    wavelengths = 2 * math.pi / frequencies.astype(np.float64)
    if low == high:
        raise ArchitectureError("rope scaling: low_freq_factor and high_freq_factor must differ")
    blend = (context / wavelengths - low) / (high - low)
    between = 1.0 / ((1.0 - blend) / factor + blend)
    freqs = np.where(wavelengths < context / high, 1.0, np.where(wavelengths > context / low, factor, between))
    return (np.concatenate([freqs, np.ones(int(hparams["head_dim"]) // 2 - len(freqs))]).astype(np.float32),)


def llama3_rope_config_of_half(arrays: Arrays, hparams: Mapping[str, Any]) -> dict[str, Any]:
    """The rope scaling that makes these divisors, of those with usual contexts and factors; else nothing."""
    factor = float(arrays[0].max())
    if not 1e-30 < factor < 1e30:
        return {}
    for high in (4.0, 32.0, 8.0, 16.0):
        for context in (1 << n for n in (13, 17, *range(5, 21))):
            scaling = {
                **LLAMA3_DEFAULTS, "factor": factor, "high_freq_factor": high,
                "original_max_position_embeddings": context,
            }  # fmt: skip
            if np.allclose(llama3_rope_freqs_of_half(scaling, hparams)[0], arrays[0], rtol=1e-5):
                return {"rope_type": "llama3", **scaling}
    return {}


def longrope_factors(rope: Mapping[str, Any], hparams: Mapping[str, Any]) -> Arrays:
    """Divisors of the rotary frequencies, float32 (n_rot / 2,): beyond the context of the training, and within it."""
    return tuple(np.array(_numbers(rope, key), np.float32) for key in ("long_factor", "short_factor"))


def _numbers(rope: Mapping[str, Any], key: str) -> list[float]:
    values = rope.get(key)
    if not isinstance(values, list) or not values:
        raise ArchitectureError(f"rope scaling: {key} is {short(values)}, not a list of numbers")
    return [float(_number({key: value}, key, 0.0)) for value in values]


def longrope_config(factors: Arrays, hparams: Mapping[str, Any]) -> dict[str, Any]:
    """The rope scaling with these factors, each as the shortest decimal that is the same float32."""
    long, short_ = ([float(str(value)) for value in values] for values in factors)
    return {"rope_type": "longrope", "long_factor": long, "short_factor": short_}


#: A divisor that leaves no rotation.
UNROTATED = np.float32(1e30)


def proportional_rope_freqs(rope: Rope, hparams: Mapping[str, Any]) -> Arrays:
    """Divisors of the rotary frequencies of a head that turns in part, float32 (head_dim / 2,): 1, or no rotation."""
    head_dim = int(hparams["head_dim"])
    n_rotated = int(head_dim * float(_number(rope, "partial_rotary_factor", 1.0)) / 2)
    return (np.where(np.arange(head_dim // 2) < n_rotated, np.float32(1), UNROTATED),)


def proportional_rope_config(arrays: Arrays, hparams: Mapping[str, Any]) -> dict[str, Any]:
    """The part of a head that turns by these divisors; nothing where they are others."""
    (freqs,) = arrays
    part = 2 * int((freqs == 1).sum()) / int(hparams["head_dim"])
    said = {"rope_type": "proportional", "partial_rotary_factor": part}
    return said if part > 0 and np.array_equal(proportional_rope_freqs(said, hparams)[0], freqs) else {}


def factor_of_queries(rope: Rope, hparams: Mapping[str, Any]) -> Arrays:
    """Weights of the norms of queries and keys that have none, float32 (head_dim,): a factor, and 1."""
    ones = np.ones(int(hparams["head_dim"]), np.float32)
    return ones * _number(hparams, "q_scale", 1.0), ones


def said_by_queries(arrays: Arrays, hparams: Mapping[str, Any]) -> dict[str, Any]:
    """The factor; nothing where the weights differ among each other."""
    queries, keys = arrays
    return {"q_scale": float(str(queries[0]))} if (queries == queries[0]).all() and (keys == 1).all() else {}


#: Positions of sounds in the reference's tables, and the longest wave.
SINUSOIDS, LONGEST = 1500, 10000
#: Where torch on x86 rounds a frequency of the published widths to the second nearest F32, and in which direction.
_TORCH_FREQUENCIES: Mapping[int, Mapping[int, int]] = {
    896: {58: -1, 105: -1, 166: -1, 208: 1, 325: -1, 356: -1},
    1024: {96: -1, 126: 1, 239: 1, 401: -1},
    1280: {114: 1, 120: 1, 200: 1, 279: -1, 348: 1, 418: -1, 540: 1},
}


def sinusoids(rope: Rope, hparams: Mapping[str, Any]) -> Arrays:
    """Sines and cosines of waves, float32 (1500, a_embd), as towers of sounds add them for a token's position.

    Each is the F32 nearest to that of torch's argument; torch's own is it or the one beside it. Source: transformers'
    SinusoidsPositionEmbedding.

    Raises:
        ArchitectureError: the width is odd or too small to have two waves.
    """
    width = int(hparams["a_embd"])
    half = width // 2
    if width % 2 or half < 2:
        raise ArchitectureError(f"the tower of sounds is {width} wide, which sines and cosines do not share")
    step = np.float32(-double_log(LONGEST) / (half - 1))
    frequencies = exp(step * np.arange(half, dtype=np.float32))
    for at, off in _TORCH_FREQUENCIES.get(width, {}).items():
        frequencies.view(np.int32)[at] += off
    times = np.arange(SINUSOIDS, dtype=np.float32)[:, None] * frequencies
    return (np.concatenate([sin(times), cos(times)], axis=1),)


def said_by_sinusoids(arrays: Arrays, hparams: Mapping[str, Any]) -> dict[str, Any]:
    """Their width; nothing where they are no such waves."""
    close = np.allclose(arrays[0], sinusoids({}, hparams)[0], rtol=0, atol=1e-3)
    return {"a_embd": int(hparams["a_embd"])} if close else {}


GENERATORS: dict[str, Generator] = {
    "llama3_rope_freqs": Generator(
        lambda rope, hparams: (llama3_rope_freqs(rope, hparams),),
        lambda arrays, hparams: llama3_rope_config(
            arrays[0], {"rope_theta": hparams.get("rope_theta", 10000.0)}, hparams
        ),
        ("rope.rope_type",),
    ),
    "llama3_rope_freqs_of_half": Generator(llama3_rope_freqs_of_half, llama3_rope_config_of_half, ("rope.rope_type",)),
    "factor_of_queries": Generator(factor_of_queries, said_by_queries, ("qk_scale_factor",), of_rope=False),
    "proportional_rope_freqs": Generator(
        proportional_rope_freqs, proportional_rope_config, ("rope.rope_type", "rope.partial_rotary_factor")
    ),
    "sinusoids": Generator(sinusoids, said_by_sinusoids, (), of_rope=False),
    "longrope_factors": Generator(
        longrope_factors, longrope_config, ("rope.rope_type", "rope.long_factor", "rope.short_factor")
    ),
}
