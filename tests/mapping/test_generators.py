"""Tensors made from the config, against what torch makes of the same formula on the CPU (the reference's way)."""

from __future__ import annotations

import math
from decimal import Context, Decimal
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from converter.errors import ArchitectureError
from converter.mapping.generators import GENERATORS, LLAMA3_DEFAULTS, llama3_rope_config, llama3_rope_freqs
from converter.tensors.elementary import power

# head_dim, rope_theta, factor, low and high factor, context: as config.json of the model says.
PUBLISHED = {
    "Llama 3.1 8B, 70B, 405B; 3.3 70B": (128, 500000.0, 8.0, 1.0, 4.0, 8192),
    "Llama 3.2 1B": (64, 500000.0, 32.0, 1.0, 4.0, 8192),
    "Llama 3.2 3B": (128, 500000.0, 32.0, 1.0, 4.0, 8192),
    "Llama 4 Scout": (128, 500000.0, 16.0, 1.0, 1.0, 8192),
    "EXAONE 3.5 2.4B": (80, 1000000.0, 8.0, 1.0, 4.0, 8192),
    "EXAONE 3.5 7.8B, 32B": (128, 1000000.0, 8.0, 1.0, 4.0, 8192),
    "EXAONE 4.0 1.2B": (64, 1000000.0, 16.0, 1.0, 4.0, 8192),
    "EXAONE 4.0 32B": (128, 1000000.0, 16.0, 1.0, 4.0, 8192),
    "Apertus 8B, 70B": (128, 12000000.0, 8.0, 1.0, 4.0, 8192),
}
HEADS = (32, 64, 80, 96, 128, 192, 256)
BASES = (10000.0, 500000.0, 1000000.0, 5000000.0, 12000000.0)
# Where torch's own power (Sleef's, on AVX2) is not the correctly rounded one: head_dim, base, place.
TORCH_OFF = {
    (64, 12e6, 17), (80, 12e6, 1), (96, 10e3, 20), (96, 500e3, 19), (96, 5e6, 29), (96, 12e6, 29), (128, 1e6, 37),
    (128, 5e6, 19), (128, 12e6, 34), (128, 12e6, 55), (192, 10e3, 40), (192, 500e3, 38), (192, 5e6, 49),
    (192, 5e6, 58), (192, 5e6, 71), (192, 12e6, 51), (192, 12e6, 58), (192, 12e6, 71), (192, 12e6, 85),
    (192, 12e6, 91), (256, 10e3, 111), (256, 1e6, 74), (256, 5e6, 38), (256, 12e6, 57), (256, 12e6, 68),
    (256, 12e6, 110),
}  # fmt: skip

Config = tuple[int, float, float, float, float, int]


def ours(config: Config) -> NDArray[np.float32]:
    dim, base, factor, low, high, context = config
    rope = {
        "rope_theta": base, "factor": factor, "low_freq_factor": low, "high_freq_factor": high,
        "original_max_position_embeddings": context,
    }  # fmt: skip
    return llama3_rope_freqs(rope, {"head_dim": dim})


def torch_powers(dim: int, base: float) -> Any:
    torch = pytest.importorskip("torch")
    return base ** (torch.arange(0, dim, 2, dtype=torch.float32) / dim)


def torchs(config: Config) -> NDArray[np.float32]:
    torch = pytest.importorskip("torch")
    dim, base, factor, low, high, context = config
    divisors: list[Any] = []
    for frequency in 1.0 / torch_powers(dim, base):
        wavelength = 2 * math.pi / frequency
        if wavelength < context / high:
            divisors.append(1)
        elif wavelength > context / low:
            divisors.append(factor)
        else:
            smooth = (context / wavelength - low) / (high - low)
            divisors.append(1 / ((1 - smooth) / factor + smooth))
    values: NDArray[np.float32] = torch.tensor(divisors, dtype=torch.float32).numpy()
    return values


@pytest.mark.parametrize("config", PUBLISHED.values(), ids=PUBLISHED)
def test_published_models_get_the_references_own_values(config: Config) -> None:
    assert ours(config).tolist() == torchs(config).tolist()


@pytest.mark.parametrize("factor", [2.0, 8.0, 16.0, 32.0])
@pytest.mark.parametrize("base", BASES)
def test_so_do_all_sizes_of_heads(base: float, factor: float) -> None:
    for dim in HEADS:
        config = (dim, base, factor, 1.0, 4.0, 8192)
        assert ours(config).tolist() == torchs(config).tolist(), dim


@pytest.mark.parametrize("low", [0.5, 1.0, 8.0])
@pytest.mark.parametrize("config", PUBLISHED.values(), ids=PUBLISHED)
def test_the_formula_in_higher_precision_gives_nearly_the_same(config: Config, low: float) -> None:
    """Also where stretching begins before keeping ends (8.0): what both claim is kept."""
    dim, base, factor, _, high, context = config
    exact = []
    for pair in range(dim // 2):
        wavelength = 2 * math.pi * base ** (2 * pair / dim)
        smooth = 1.0 if wavelength < context / high else 0.0
        if context / high <= wavelength <= context / low:
            smooth = (context / wavelength - low) / (high - low)
        exact.append(1 / ((1 - smooth) / factor + smooth))
    assert ours((dim, base, factor, low, high, context)).tolist() == pytest.approx(exact, rel=1e-4)


def test_where_torch_is_off() -> None:
    """Its powers are ours, which are correctly rounded, but for a few; none of those is blended in a divisor above."""
    found = set()
    for dim in HEADS:
        exponents = np.arange(0, dim, 2, dtype=np.float32) / np.float32(dim)
        for base in BASES:
            mine, theirs = power(base, exponents), torch_powers(dim, base).numpy()
            for place in np.flatnonzero(mine != theirs).tolist():
                exact = Context(prec=60).power(Decimal(base), Decimal(float(exponents[place])))
                assert abs(Decimal(float(mine[place])) - exact) < abs(Decimal(float(theirs[place])) - exact)
                found.add((dim, base, place))
    assert found <= TORCH_OFF


def test_without_a_range_to_blend_in_nothing_may_lie_there() -> None:
    """Llama 4 has one wavelength at which stretching begins; a wavelength that is just this is undefined."""
    scout = ours(PUBLISHED["Llama 4 Scout"])
    assert set(scout.tolist()) == {1.0, 16.0}
    wavelength = float(np.float32(2 * math.pi))  # of the first pair
    with pytest.raises(ArchitectureError, match="low_freq_factor and high_freq_factor must differ"):
        ours((64, 10000.0, 8.0, 1.0, 1.0, wavelength))  # type: ignore[arg-type]


def test_short_wavelengths_are_kept_even_where_long_ones_begin_before() -> None:
    """low_freq_factor above high_freq_factor: what both rules claim is kept, as in the reference."""
    config = (64, 10000.0, 8.0, 4.0, 1.0, 8192)
    assert ours(config).tolist() == torchs(config).tolist()
    assert ours(config).tolist() == ours((64, 10000.0, 8.0, 1.0, 1.0, 8192)).tolist()


@pytest.mark.parametrize("key", ["rope_theta", *LLAMA3_DEFAULTS])
@pytest.mark.parametrize("value", [0, -8.0, 1e-30, 1e30, math.nan, math.inf, True, "8", None, [8]])
def test_what_is_no_positive_number_is_named(key: str, value: Any) -> None:
    with pytest.raises(ArchitectureError, match=f"rope scaling: {key} is .*, not a positive number"):
        llama3_rope_freqs({key: value}, {"head_dim": 64})


def test_numbers_up_to_the_limits_are_taken() -> None:
    assert llama3_rope_freqs({"factor": 9.9e29}, {"head_dim": 64}).max() == np.float32(9.9e29)
    assert llama3_rope_freqs({"factor": 1.01e-30}, {"head_dim": 64}).min() == np.float32(1.01e-30)
    assert (
        llama3_rope_freqs({"factor": 8}, {"head_dim": 64}).tolist() == llama3_rope_freqs({}, {"head_dim": 64}).tolist()
    )


def test_what_is_left_out_has_the_values_of_transformers() -> None:
    config = (64, 10000.0, 8.0, 1.0, 4.0, 8192)
    assert llama3_rope_freqs({}, {"head_dim": 64}).tolist() == ours(config).tolist() == torchs(config).tolist()


@pytest.mark.parametrize("exponent", range(5, 21))
def test_the_context_is_read_back_from_the_divisors(exponent: int) -> None:
    rope = {"rope_theta": 1e7, "factor": 32.0, "original_max_position_embeddings": 1 << exponent}
    freqs = llama3_rope_freqs(rope, {"head_dim": 256})
    found = llama3_rope_config(freqs, {"rope_theta": 1e7}, {"head_dim": 256})
    assert found == {
        "rope_type": "llama3", "factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 1 << exponent,
    }  # fmt: skip


def test_what_is_no_usual_scaling_is_none() -> None:
    rope, head = {"rope_theta": 1e7}, {"head_dim": 256}
    for context in (1 << 4, 1 << 21, 8192 + 512):
        freqs = llama3_rope_freqs({**rope, "original_max_position_embeddings": context}, head)
        assert llama3_rope_config(freqs, rope, head) == {}
    freqs = llama3_rope_freqs(rope, head)
    close, apart = freqs * np.float32(1.000005), freqs * np.float32(1.000012)
    assert llama3_rope_config(close, rope, head)["original_max_position_embeddings"] == 8192
    assert llama3_rope_config(apart, rope, head) == {}
    for largest in (0, 1e-30, 1.2e30, np.inf, np.nan):
        assert llama3_rope_config(freqs / freqs.max() * np.float32(largest), rope, head) == {}


def test_of_contexts_that_give_the_same_the_nearest_to_the_published_is_meant() -> None:
    """Without stretching all are the same; with few divisors those on either side of 8192 may be."""
    found = llama3_rope_config(np.ones(32, np.float32), {"rope_theta": 10000.0}, {"head_dim": 64})
    assert (found["factor"], found["original_max_position_embeddings"]) == (1.0, 8192)


@pytest.mark.parametrize("said", [{}, {"rope_theta": 500000.0}])
def test_the_base_is_that_of_the_model_or_of_transformers(said: dict[str, float]) -> None:
    generator, head, scaling = GENERATORS["llama3_rope_freqs"], {"head_dim": 64}, {**LLAMA3_DEFAULTS, "factor": 16.0}
    arrays = generator.make({"rope_theta": 10000.0, **said, **scaling}, head)
    assert generator.back(arrays, {**head, **said}) == {"rope_type": "llama3", **scaling}
    assert generator.says == ("rope.rope_type",)  # the other values are those of every published model, not read


@pytest.mark.parametrize(("head_dim", "part", "rotated"), [(512, 0.25, 64), (24, 0.25, 3), (16, 1.0, 8), (18, 0.5, 4)])
def test_a_head_that_turns_in_part(head_dim: int, part: float, rotated: int) -> None:
    generator, hparams = GENERATORS["proportional_rope_freqs"], {"head_dim": head_dim}
    (freqs,) = generator.make({"partial_rotary_factor": part}, hparams)
    assert freqs.tolist() == [1.0] * rotated + [float(np.float32(1e30))] * (head_dim // 2 - rotated)
    said = generator.back((freqs,), hparams)
    assert said == {"rope_type": "proportional", "partial_rotary_factor": 2 * rotated / head_dim}
    assert np.array_equal(generator.make(said, hparams)[0], freqs)
    assert generator.says == tuple(f"rope.{key}" for key in said)


def test_a_head_of_which_nothing_is_said_turns_whole() -> None:
    (freqs,) = GENERATORS["proportional_rope_freqs"].make({}, {"head_dim": 6})
    assert freqs.tolist() == [1.0, 1.0, 1.0]


@pytest.mark.parametrize("values", [[1.0, 2.0], [1e30, 1.0], [1e30, 1e30]])
def test_divisors_of_no_such_head_lead_nowhere(values: list[float]) -> None:
    freqs = np.array(values, np.float32)
    assert GENERATORS["proportional_rope_freqs"].back((freqs,), {"head_dim": 4}) == {}


def test_the_factors_of_longrope_and_back() -> None:
    generator, rope = GENERATORS["longrope_factors"], {"long_factor": [1, 64.8], "short_factor": [1.05, 0.1]}
    arrays = generator.make(rope, {})
    assert [array.dtype for array in arrays] == [np.float32, np.float32]
    assert [array.tolist() for array in arrays] == [np.float32(factors).tolist() for factors in rope.values()]
    said = generator.back(arrays, {})
    assert said == {"rope_type": "longrope", **rope}
    assert generator.says == tuple(f"rope.{key}" for key in said)


@pytest.mark.parametrize("key", ["long_factor", "short_factor"])
@pytest.mark.parametrize("value", [None, [], 1.0, "12", {"1": 2}])
def test_factors_of_longrope_are_lists(key: str, value: Any) -> None:
    with pytest.raises(ArchitectureError, match=f"rope scaling: {key} is .*, not a list of numbers"):
        GENERATORS["longrope_factors"].make({"long_factor": [1.0], "short_factor": [1.0], key: value}, {})


def test_a_factor_of_longrope_is_a_positive_number() -> None:
    with pytest.raises(ArchitectureError, match="rope scaling: long_factor is 0, not a positive number"):
        GENERATORS["longrope_factors"].make({"long_factor": [1.0, 0], "short_factor": [1.0, 1.0]}, {})


@pytest.mark.parametrize(
    ("high", "context", "factor"), [(32.0, 131072, 2.0), (4.0, 8192, 8.0), (8.0, 1 << 20, 4.0), (4.0, 512, 8.0)]
)
def test_llama3_where_half_of_a_head_turns(high: float, context: int, factor: float) -> None:
    """Value by value as the reference computes it: frequencies in F32, what follows in doubles."""
    generator, hparams = GENERATORS["llama3_rope_freqs_of_half"], {"head_dim": 128, "n_rot": 64, "rope_theta": 5e6}
    rope = {"factor": factor, "high_freq_factor": high, "original_max_position_embeddings": context}
    (freqs,) = generator.make(rope, hparams)
    expected = []
    for n in range(32):
        wavelength = 2 * math.pi / float(np.float32(1) / np.float32(5e6 ** float(np.float32(2 * n) / np.float32(64))))
        blend = (context / wavelength - 1.0) / (high - 1.0)
        expected.append(1.0 if blend > 1 else factor if blend < 0 else 1 / ((1 - blend) / factor + blend))
    assert np.allclose(freqs[:32], expected, rtol=1e-6) and freqs[32:].tolist() == [1.0] * 32
    said = generator.back((freqs,), hparams)
    assert said == {"rope_type": "llama3", "low_freq_factor": 1.0, **rope}
    assert generator.back((freqs * np.float32(1.01),), hparams) == {}
    assert generator.back((freqs * np.float32(np.inf),), hparams) == {}
    with pytest.raises(ArchitectureError, match="must differ"):
        generator.make({**rope, "low_freq_factor": high}, hparams)


# ------------------------------------------------------------------------------------------- positions of sounds


@pytest.mark.parametrize("width", [32, 896, 1024, 1280])
def test_waves_are_torchs_to_a_unit(width: int) -> None:
    """Of the published widths and a small one; a frequency that is a unit off would be seen at the last positions."""
    torch = pytest.importorskip("torch")
    step = np.log(10000) / (width // 2 - 1)
    frequencies = torch.exp(-step * torch.arange(width // 2).float())
    times = torch.arange(1500)[:, np.newaxis] * frequencies[np.newaxis, :]
    theirs = torch.cat([torch.sin(times), torch.cos(times)], dim=1).numpy()
    (ours,) = GENERATORS["sinusoids"].make({}, {"a_embd": width})
    assert ours.dtype == np.float32 and ours.shape == theirs.shape == (1500, width)
    assert (np.abs(ours.view(np.int32).astype(np.int64) - theirs.view(np.int32)) <= 1).all()
    assert (ours == theirs).mean() > 0.93
    assert GENERATORS["sinusoids"].back((theirs,), {"a_embd": width}) == {"a_embd": width}
    assert GENERATORS["sinusoids"].back((theirs[::-1],), {"a_embd": width}) == {}


@pytest.mark.parametrize("width", [2, 7])
def test_widths_that_sines_and_cosines_do_not_share(width: int) -> None:
    with pytest.raises(ArchitectureError, match=f"is {width} wide"):
        GENERATORS["sinusoids"].make({}, {"a_embd": width})
