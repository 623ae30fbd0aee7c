from __future__ import annotations

import math

import numpy as np
import pytest

from steepest.studies.claim import (
    Bound,
    Claim,
    Verdict,
    bootstrap_interval,
    interquartile_mean,
    judge,
    slope_fit,
)


def claim(bound, **changes):
    return Claim("a", "says", "paper", bound, **({"scales": "quick"} | changes))


@pytest.mark.parametrize(
    ("bound", "value", "interval", "verdict"),
    [
        ("<= 15", 15, None, Verdict.HOLDS),
        ("<= 15", 15.1, None, Verdict.SHORT),
        ("< 15", 15, None, Verdict.SHORT),
        (">= 1.8", 1.8, (1.8, 2), Verdict.HOLDS),
        ("> 1.8", 1.9, (1.8, 2), Verdict.UNDECIDED),
        (">= 1.8", 1.9, (1.7, 2.2), Verdict.UNDECIDED),
        (">= 1.8", 1.5, (1.2, 1.7), Verdict.SHORT),
        ("== 1", 1.0, None, Verdict.HOLDS),
        ("== 1", 0.99, None, Verdict.SHORT),
        ("== 1", 0.9, (0.8, 1.0), Verdict.UNDECIDED),
        ("== 1", 1.0, (1.0, 1.0), Verdict.HOLDS),
        ("between(-2.3, -1.7)", -2, (-2.2, -1.8), Verdict.HOLDS),
        ("between(-2.3, -1.7)", -2, (-2.5, -1.8), Verdict.UNDECIDED),
        ("between(-2.3, -1.7)", -3, (-3.5, -2.5), Verdict.SHORT),
        ("between(-2.3, -1.7)", -2, (-3, 0), Verdict.UNDECIDED),
        ("reported", -2, (-3, 0), Verdict.REPORTED),
        (">= 1e-3", math.nan, None, Verdict.SHORT),
        ("<= 1", math.inf, None, Verdict.SHORT),
        ("<= 1", 0.5, (math.nan, math.nan), Verdict.HOLDS),
        ("<= 1", None, None, Verdict.UNMEASURED),
    ],
)
def test_verdicts(bound, value, interval, verdict):
    assert judge(claim(bound), value, interval, "quick") is verdict


def test_no_verdict_at_other_scales_nor_at_tiny():
    for scale in ("full", "paper", "tiny"):
        assert judge(claim("<= 1"), 0.0, None, scale) is Verdict.UNMEASURED
    assert claim("<= 1").measured_at("tiny")
    assert not claim("<= 1").measured_at("full")


@pytest.mark.parametrize("bad", ["", "15", "=< 3", "<= x", "between(2, 1)", "between(1)", "!= 3", "about 2"])
def test_bounds_that_are_none(bad):
    with pytest.raises(ValueError, match="bound must be a comparison"):
        Bound.parse(bad)


def test_claims_are_checked_when_declared():
    with pytest.raises(ValueError, match="id must be"):
        Claim("Bad Id", "s", "p", "<= 1")
    with pytest.raises(ValueError, match="scales must be"):
        claim("<= 1", scales="quick tiny")
    with pytest.raises(ValueError, match="scales must be"):
        claim("<= 1", scales="")


def test_bootstrap_covers_as_often_as_it_says():
    rng = np.random.default_rng(0)
    hits = 0
    for _ in range(300):
        low, high = bootstrap_interval(rng.normal(size=30), n_resamples=400, seed=int(rng.integers(2**31)))
        hits += low <= 0 <= high
    assert 0.84 <= hits / 300 <= 0.94  # percentile intervals are a little short at n = 30


def test_bootstrap_edges():
    assert bootstrap_interval([2.0]) == (2.0, 2.0)
    assert all(math.isnan(x) for x in bootstrap_interval([]))
    assert all(math.isnan(x) for x in bootstrap_interval([1.0, math.nan]))
    assert bootstrap_interval([1.0, 2.0], seed=1) == bootstrap_interval([1.0, 2.0], seed=1)
    low, high = bootstrap_interval([1.0, 5.0, 9.0], statistic=np.median)
    assert (low, high) == (1.0, 9.0)
    with pytest.raises(ValueError, match="level must be"):
        bootstrap_interval([1.0], level=1.0)


def test_interquartile_mean_is_scipys_trimmed_mean_where_that_is_defined():
    from scipy import stats

    x = np.random.default_rng(0).normal(size=(3, 16))
    assert np.allclose(interquartile_mean(x, axis=1), stats.trim_mean(x, 0.25, axis=1))
    assert interquartile_mean([1.0]) == 1.0
    assert interquartile_mean([0.0, 0.0, 3.0, 9.0, 9.0]) == pytest.approx((0.75 * 0 + 3 + 0.75 * 9) / 2.5)


def test_slopes_recover_exponents_and_their_intervals_cover():
    rng = np.random.default_rng(0)
    x = np.logspace(1, 4, 12)
    hits = 0
    for _ in range(200):
        slope, (low, high) = slope_fit(x, 3 * x**-1.5 * np.exp(0.2 * rng.normal(size=12)))
        assert slope == pytest.approx(-1.5, abs=0.2)
        hits += low <= -1.5 <= high
    assert hits / 200 >= 0.9
    assert slope_fit([0, 1, 2], [1, 3, 5], log=False)[0] == pytest.approx(2)
    assert slope_fit([1, 2], [1, 2])[1] == (-math.inf, math.inf)
    with pytest.raises(ValueError, match="positive"):
        slope_fit([0, 1, 2], [1, 2, 3])
    with pytest.raises(ValueError, match="y must be"):
        slope_fit([1, 2, 3], [1, 2])
