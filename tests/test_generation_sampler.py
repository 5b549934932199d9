"""The distribution that a token is drawn from: penalties, temperature, filters, the law of the draws, bad values."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from fractions import Fraction
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from microgpt.engine.sampler import Sampling, draw, probabilities, uniform
from microgpt.errors import ConfigError, NonFiniteError

LOGITS = np.array([1.0, 3.0, -2.0, 3.5, 0.0, 2.0, -1.0, 1.5, 3.0, -np.inf], np.float32)


def softmax(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    e = np.exp(values - values.max())
    return e / e.sum()


def test_temperatures() -> None:
    exact = LOGITS.astype(np.float64)
    # exp and sum of ten float64 numbers: a few roundings each
    assert np.allclose(probabilities(LOGITS, Sampling(1.0)), softmax(exact), rtol=1e-14, atol=0)
    assert np.allclose(probabilities(LOGITS, Sampling(2.5)), softmax(exact / 2.5), rtol=1e-14, atol=0)
    for tiny in (0.0, 1e-6, 1e-300):
        assert probabilities(LOGITS, Sampling(tiny)).tolist() == [0, 0, 0, 1, 0, 0, 0, 0, 0, 0]
    # p_i / p_j = exp((x_i - x_j) / t), at most exp(5.5 / 1e4): within 6e-4 of equal, but for the impossible token
    flat = probabilities(LOGITS, Sampling(1e4))
    assert flat[9] == 0.0 and np.abs(flat[:9] - 1 / 9).max() < 6e-4 / 9


def test_greedy_takes_the_first_of_equals() -> None:
    assert draw(np.array([1.0, 5.0, 5.0], np.float32), Sampling(0.0), 0, 0) == 1


@pytest.mark.parametrize("k", [1, 2, 3, 9, 10, 1000])
def test_top_k_keeps_the_k_likeliest_in_proportion(k: int) -> None:
    p, all_of_them = probabilities(LOGITS, Sampling(0.7, top_k=k)), probabilities(LOGITS, Sampling(0.7))
    kept = np.argsort(-LOGITS, kind="stable")[:k]
    expected = np.zeros_like(p)
    expected[kept] = all_of_them[kept] / all_of_them[kept].sum()
    assert np.count_nonzero(p) == min(k, 9)
    assert np.allclose(p, expected, rtol=1e-13, atol=0)


@pytest.mark.parametrize("top_p", [1e-9, 0.2, 0.5, 0.8, 0.999, 1.0])
def test_top_p_keeps_the_smallest_set_that_reaches_it(top_p: float) -> None:
    p, all_of_them = probabilities(LOGITS, Sampling(top_p=top_p)), probabilities(LOGITS, Sampling())
    kept = np.flatnonzero(p)
    assert all_of_them[kept].sum() >= min(top_p, 1 - 1e-12)
    smallest = kept[np.argmin(all_of_them[kept])]
    if top_p < 1.0:
        assert all_of_them[kept].sum() - all_of_them[smallest] < top_p
    assert all_of_them[kept].min() >= np.delete(all_of_them, kept).max(initial=0.0)
    assert np.allclose(p[kept], all_of_them[kept] / all_of_them[kept].sum(), rtol=1e-13, atol=0)


@pytest.mark.parametrize("count", [20_000, pytest.param(1_000_000, marks=pytest.mark.soak)])
@pytest.mark.parametrize("sampling", [
    Sampling(), Sampling(0.8), Sampling(1.5, top_k=6), Sampling(1.2, top_p=0.9), Sampling(1.4, min_p=0.2),
    Sampling(1.1, repetition_penalty=1.5, presence_penalty=0.3, frequency_penalty=0.2),
    Sampling(1.3, top_k=7, top_p=0.95, min_p=0.1, repetition_penalty=0.8),
])  # fmt: skip
def test_draws_have_the_stated_probabilities(sampling: Sampling, count: int) -> None:
    """Chi-square of the draws. The seed is fixed, so this cannot flicker; a correct sampler fails one seed in a
    thousand: the critical value of the 0.999 quantile, by Wilson and Hilferty's approximation (z = 3.09)."""
    history: tuple[list[int], list[int]] = ([3, 2], [1, 1, 7, 3])
    p = probabilities(LOGITS, sampling, *history)
    seen = Counter(draw(LOGITS, sampling, row % 10, row // 10, *history) for row in range(count))
    possible = np.flatnonzero(p)
    assert set(seen) <= set(possible.tolist())
    expected = p[possible] * count
    assert expected.min() > 5  # where chi-square holds
    chi = float(sum((seen[int(i)] - e) ** 2 / e for i, e in zip(possible, expected, strict=True)))
    freedom = len(possible) - 1
    assert chi < freedom * (1 - 2 / (9 * freedom) + 3.09 * (2 / (9 * freedom)) ** 0.5) ** 3


def test_random_numbers_are_uniform_and_distinct() -> None:
    """Each row, step and seed gives another; the mean of 5,000 has a deviation of 0.289 / sqrt(5000) = 0.0041."""
    numbers = [uniform(seed, row, step) for seed in range(5) for row in range(20) for step in range(50)]
    assert len(set(numbers)) == 5000
    assert min(numbers) >= 0.0 and max(numbers) < 1.0
    assert abs(np.mean(numbers) - 0.5) < 4 * 0.0041
    assert uniform(2**64 - 1, 0, 0) != uniform(0, 0, 0)


@pytest.mark.parametrize("bad", [[np.nan, 1.0], [np.inf, 1.0], [-np.inf, -np.inf], [-np.inf, np.nan]])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_logits_without_a_distribution(bad: list[float], temperature: float) -> None:
    with pytest.raises(NonFiniteError, match="sampling"):
        draw(np.array(bad, np.float32), Sampling(temperature), 0, 0)


# -- min-p and penalties -----------------------------------------------------------
@pytest.mark.parametrize("min_p", [1e-9, 0.05, 0.3, math.exp(-0.5), 0.9, 1.0])
@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_min_p_is_a_share_of_the_likeliest(min_p: float, temperature: float) -> None:
    p, all_of_them = (probabilities(LOGITS, Sampling(temperature, min_p=m)) for m in (min_p, 0.0))
    kept = np.flatnonzero(p)
    wanted = [i for i in range(9) if all_of_them[i] >= min_p * all_of_them.max()]
    assert kept.tolist() == wanted and 3 in wanted
    assert np.allclose(p[kept], all_of_them[kept] / all_of_them[kept].sum(), rtol=1e-13, atol=0)


def test_filters_come_after_temperature_and_each_looks_at_what_the_last_left() -> None:
    """top-k 3 keeps 3, 1 and 8; of their e^0.5 : 1 : 1, the first is 0.45: top-p 0.6 takes one more; min-p takes it."""
    three = probabilities(LOGITS, Sampling(top_k=3))
    assert np.flatnonzero(three).tolist() == [1, 3, 8]
    assert np.flatnonzero(probabilities(LOGITS, Sampling(top_k=3, top_p=0.6))).tolist() == [1, 3]
    assert np.flatnonzero(probabilities(LOGITS, Sampling(top_p=0.6))).tolist() == [1, 3, 8]
    assert np.flatnonzero(probabilities(LOGITS, Sampling(top_k=3, top_p=0.6, min_p=0.7))).tolist() == [3]
    # At temperature 2, e^-0.25 = 0.78 of the likeliest: the same share keeps it.
    assert np.flatnonzero(probabilities(LOGITS, Sampling(2.0, top_k=3, min_p=0.7))).tolist() == [1, 3, 8]


def test_repetition_penalty_divides_positive_and_multiplies_negative_logits_once() -> None:
    got = probabilities(LOGITS, Sampling(repetition_penalty=2.0), prompt=[3, 2, 3], written=[4, 9, 2, 1])
    changed = LOGITS.astype(np.float64)
    changed[[1, 2, 3]] = [1.5, -4.0, 1.75]  # zero stays zero, impossible stays impossible
    assert np.allclose(got, softmax(changed), rtol=1e-14, atol=0)
    assert np.array_equal(probabilities(LOGITS, Sampling(), [3], [1]), probabilities(LOGITS, Sampling()))
    small = np.array([0.25, -0.25, -0.5], np.float32)
    got = probabilities(small, Sampling(repetition_penalty=0.5), [0, 1])
    assert np.allclose(got, softmax(np.array([0.5, -0.125, -0.5])), rtol=1e-14, atol=0)
    greedy = Sampling(0.0, repetition_penalty=1.3)  # greedy looks at the penalties, too
    assert draw(LOGITS, greedy, 0, 0) == 3 and draw(LOGITS, greedy, 0, 0, [3]) == 1


def test_presence_and_frequency_count_what_was_written_only() -> None:
    sampling = Sampling(presence_penalty=0.5, frequency_penalty=-0.25)
    got = probabilities(LOGITS, sampling, prompt=[0, 1, 2], written=[3, 2, 3, 3])
    changed = LOGITS.astype(np.float64)
    changed[3] -= 0.5 - 0.25 * 3
    changed[2] -= 0.5 - 0.25
    assert np.allclose(got, softmax(changed), rtol=1e-14, atol=0)
    both = Sampling(repetition_penalty=2.0, presence_penalty=1.0)  # the repetition penalty comes first
    changed = LOGITS.astype(np.float64)
    changed[3] = 3.5 / 2 - 1.0
    assert np.allclose(probabilities(LOGITS, both, written=[3]), softmax(changed), rtol=1e-14, atol=0)


EXTREMES = {
    "temperature": [0.0, 5e-324, 1e-6, 1e4, 1e308],
    "top_k": [0, 1, 10**9],
    "top_p": [5e-324, 1e-9, 1.0],
    "min_p": [0.0, 5e-324, 1.0],
    "repetition_penalty": [5e-324, 1.0, 1e308],
}


@pytest.mark.parametrize("scale", [1.0, 1e-30, 3e37])
def test_finite_logits_always_give_a_token(scale: float) -> None:
    """Every combination of extreme settings; a token is never one that cannot be."""
    logits = LOGITS * np.float32(scale)
    for values in itertools.product(*EXTREMES.values()):
        sampling = Sampling(**dict(zip(EXTREMES, values, strict=True)), presence_penalty=2.0, frequency_penalty=2.0)
        for prompt, written in (([], []), ([3, 9], [1]), (range(10), list(range(10)) * 3)):
            p = probabilities(logits, sampling, prompt, written)
            assert np.isfinite(p).all() and p.min() >= 0 and abs(p.sum() - 1) < 1e-12
            assert p[9] == 0 and p[draw(logits, sampling, 1, 1, prompt, written)] > 0


# -- large vocabularies -----------------------------------------------------------
def by_sorting(logits: npt.NDArray[Any], sampling: Sampling, top_p: float) -> npt.NDArray[np.float64]:
    """Temperature, top-k and `top_p` with full stable sorts: the specification."""
    values = logits.astype(np.float64)
    values = (values - values.max()) / sampling.temperature
    if sampling.top_k:
        values[np.argsort(-values, kind="stable")[sampling.top_k :]] = -np.inf
    p: npt.NDArray[np.float64] = np.exp(values)
    p /= p.sum()
    if top_p < 1.0:
        order = np.argsort(-p, kind="stable")
        before = np.cumsum(p[order]) - p[order]
        p[order[before >= top_p]] = 0.0
        p /= p.sum()
    return p


@given(
    seed=st.integers(0, 1000),
    size=st.sampled_from([1, 2, 255, 256, 257, 5000]),
    ties=st.booleans(),
    temperature=st.sampled_from([0.3, 1.0, 5.0]),
    top_k=st.sampled_from([0, 1, 7, 256, 300]),
    top_p=st.sampled_from([0.1, 0.5, 0.9, 0.999, 1 - 1e-12, 1.0]),
)
def test_nothing_is_sorted_that_need_not_be(
    seed: int, size: int, ties: bool, temperature: float, top_k: int, top_p: float
) -> None:
    logits = (np.random.default_rng(seed).normal(size=size) * 2).astype(np.float32)
    if ties:
        logits = np.round(logits)
        logits[: size // 3] = -np.inf
    sampling = Sampling(temperature, top_k=top_k, top_p=top_p)
    p = probabilities(logits, sampling)
    # Exponentials within 2 units in the last place, a quotient, two sums of `size` numbers in another order: relative
    # errors. A sum that comes as near to top_p as its own error may fall on either side of it.
    error = (2 * size + 8) * 2.0**-53
    allowed = [by_sorting(logits, sampling, bound) for bound in (top_p, top_p * (1 - error), top_p * (1 + error))]
    assert any(np.allclose(p, each, rtol=2 * error, atol=0) and np.array_equal(p > 0, each > 0) for each in allowed)


@pytest.mark.parametrize("share", [0.0515, 0.2, 0.3, 0.999])
def test_top_p_of_a_flat_distribution_goes_beyond_the_head(share: float) -> None:
    kept = np.flatnonzero(probabilities(np.zeros(5000, np.float32), Sampling(top_p=share)))
    assert abs(len(kept) - 5000 * share) <= 1 and kept.tolist() == list(range(len(kept)))


@pytest.mark.parametrize(("settings", "tokens"), [
    ({}, [2753, 38245, 28626, 17100, 47973, 38245]),
    ({"temperature": 0.7}, [10477, 36758, 36758, 36758, 45608, 36758]),
    ({"top_k": 40}, [10477, 38245, 36758, 26804, 46659, 38245]),
    ({"top_p": 0.9}, [3154, 38245, 30077, 18725, 47754, 38245]),
    ({"temperature": 1.3, "top_k": 20, "top_p": 0.8}, [10477, 38642, 36758, 33436, 45608, 38642]),
    ({"temperature": 2.0, "top_p": 0.999}, [1172, 39799, 19555, 11237, 48446, 39513]),
])  # fmt: skip
def test_draws_among_fifty_thousand_tokens(settings: dict[str, Any], tokens: list[int]) -> None:
    """As full sorts drew them, before only the head was sorted."""
    logits = (np.random.default_rng(0).normal(size=50257) * 3.0).astype(np.float32)
    assert [draw(logits, Sampling(**settings, seed=3), 1, step) for step in range(6)] == tokens


# -- values that cannot be -----------------------------------------------------------
BAD = {
    "temperature": [-0.1, math.nan, math.inf, "hot", "1", None, True, [1.0], 10**400, np.array([1.0])],
    "top_k": [-1, 2.0, "2", None, False, math.inf, -(10**5000)],
    "top_p": [0.0, 1.1, -1e-9, math.nan, "0.5", Fraction(3, 2)],
    "min_p": [-1e-9, 1.1, math.nan, 5, None],
    "repetition_penalty": [0.0, -1.0, math.nan, math.inf, "1.1"],
    "presence_penalty": [-2.1, 2.1, math.nan, None],
    "frequency_penalty": [-2.1, 2.1, math.inf, {}],
    "seed": [-1, 2**64, 1.0, "x", None, 10**5000],
}


@pytest.mark.parametrize(
    ("name", "value"),
    [pytest.param(name, value, id=f"{name}-{i}") for name, values in BAD.items() for i, value in enumerate(values)],
)
def test_a_bad_value_is_named(name: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=f"^{name}: expected .*, got ") as error:
        Sampling(**{name: value})
    assert len(str(error.value)) < 200 and "\n" not in str(error.value)


def test_numbers_of_other_libraries_are_numbers() -> None:
    given = Sampling(np.float32(0.5), top_k=np.int64(3), top_p=Fraction(1, 2), min_p=0, seed=np.uint8(7))
    assert given == Sampling(0.5, 3, 0.5, 0.0, seed=7)
    assert [type(value) for value in vars(given).values()] == [float, int, float, float, float, float, float, int]
