import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import logsumexp

from steepest.particles import consensus_point
from steepest.particles._weights import effective_alpha, weights


def sample(m: int = 50, d: int = 3, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.normal(size=(m, d)), rng.normal(size=m) * 3


# ---------------------------------------------------------------------------------------------------------------- exact


@pytest.mark.parametrize("alpha", [1e-3, 1.0, 30.0, 1e5])
def test_consensus_is_the_softmax_mean(alpha: float) -> None:
    x, f = sample()
    w = np.exp(-alpha * f - logsumexp(-alpha * f))
    c, got = consensus_point(x, f, alpha, return_weights=True)
    np.testing.assert_allclose(got, w, rtol=1e-12, atol=1e-300)
    np.testing.assert_allclose(c, w @ x, rtol=1e-12, atol=1e-15)


def test_two_points_by_hand() -> None:
    c = consensus_point([[0.0], [1.0]], [0.0, math.log(3.0)], 1.0)  # weights 3/4 and 1/4
    assert c == pytest.approx([0.25])


def test_infinite_alpha_averages_all_minimizers() -> None:
    x = np.array([[0.0, 0.0], [4.0, 2.0], [9.0, 9.0]])
    c, w = consensus_point(x, [1.0, 1.0, 2.0], math.inf, return_weights=True)
    assert c.tolist() == [2.0, 1.0]
    assert w.tolist() == [0.5, 0.5, 0.0]


def test_large_values_and_alpha_leave_weights() -> None:
    x, f = sample()
    c = consensus_point(x, f + 1e6, 1e15)
    np.testing.assert_array_equal(c, x[f.argmin()])
    assert consensus_point(x, -1e300 * np.abs(f), 1e15).tolist() == x[np.abs(f).argmax()].tolist()


def test_infeasible_points_have_no_say() -> None:
    x, f = sample()
    f[::2] = math.inf
    np.testing.assert_allclose(consensus_point(x, f, 2.0), consensus_point(x[1::2], f[1::2], 2.0), rtol=1e-13)


def test_float32_points_are_averaged_in_float64() -> None:
    x = np.full((100_001, 2), 16_777_216.0, np.float32)  # at 2^24 float32 sums would lose every odd unit
    x[0] = 1
    c = consensus_point(x, np.zeros(len(x)), 1.0)
    assert c.dtype == np.float32
    exact = x.astype(np.float64).mean(0).astype(np.float32)
    assert (np.abs(c - exact) <= np.spacing(exact)).all()


# ----------------------------------------------------------------------------------------------------------- properties


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 1000), alpha=st.floats(0.01, 100), shift=st.floats(-1e3, 1e3), scale=st.floats(0.1, 10))
def test_invariances(seed: int, alpha: float, shift: float, scale: float) -> None:
    x, f = sample(20, 3, seed)
    c = consensus_point(x, f, alpha)
    order = np.random.default_rng(seed).permutation(20)
    np.testing.assert_allclose(consensus_point(x[order], f[order], alpha), c, atol=1e-12)
    np.testing.assert_allclose(consensus_point(x, f + shift, alpha), c, atol=1e-8)
    np.testing.assert_allclose(consensus_point(x, f * scale, alpha / scale), c, atol=1e-10)
    Q = np.linalg.qr(np.random.default_rng(seed).normal(size=(3, 3)))[0]
    np.testing.assert_allclose(consensus_point(x @ Q + 5, f, alpha), c @ Q + 5, atol=1e-11)


def test_kind_follows_the_points() -> None:
    x, f = sample()
    t = torch.from_numpy(x).float()
    c, w = consensus_point(t, torch.from_numpy(f), 1.0, return_weights=True)
    assert c.dtype == torch.float32
    assert w.dtype == torch.float64
    assert isinstance(consensus_point(x.tolist(), f.tolist(), 1.0), np.ndarray)
    before = x.copy()
    consensus_point(x, f, 1.0)
    np.testing.assert_array_equal(x, before)


@pytest.mark.parametrize("fraction", [0.05, 0.5, 0.9])
def test_effective_alpha_meets_its_size(fraction: float) -> None:
    f = torch.from_numpy(sample(400)[1])
    w = weights(f, effective_alpha(f, fraction))
    assert 1 / float(w.square().sum()) == pytest.approx(fraction * 400, rel=1e-9)


def test_effective_alpha_at_the_ends_of_its_bracket() -> None:
    assert effective_alpha(torch.zeros(10, dtype=torch.float64), 0.5) == pytest.approx(1e15)
    assert effective_alpha(torch.zeros(10, dtype=torch.float64), 0.5, most=7.0) == pytest.approx(7)
    few = torch.tensor([0.0, 1.0] + [math.inf] * 8, dtype=torch.float64)
    assert effective_alpha(few, 0.5) == pytest.approx(1e-8, rel=1e-6)


def test_effective_alpha_agrees_with_cbx() -> None:
    scheduler = pytest.importorskip("cbx.scheduler")
    f = sample(300)[1]
    gap = scheduler.eff_sample_size_gap(f[None], 0.5)
    ours = effective_alpha(torch.from_numpy(f), 0.5)
    assert abs(float(gap(np.array([ours]))[0])) < 1e-6


# --------------------------------------------------------------------------------------------------------------- misuse


@pytest.mark.parametrize("value", [math.nan, -math.inf])
def test_values_that_are_no_numbers_raise(value: float) -> None:
    with pytest.raises(FloatingPointError, match="a value of fun is"):
        consensus_point(np.zeros((3, 1)), [1.0, value, 2.0], 1.0)


def test_nothing_feasible_raises() -> None:
    with pytest.raises(FloatingPointError, match="all values of fun are inf"):
        consensus_point(np.zeros((2, 1)), [math.inf, math.inf], 1.0)


@pytest.mark.parametrize(
    ("x", "f", "alpha", "error", "match"),
    [
        ([[0.0]], [0.0], 0, ValueError, "alpha must be > 0"),
        ([[0.0]], [0.0], math.nan, ValueError, "alpha must be > 0"),
        ([[0.0]], [0.0], "1", TypeError, "alpha must be a number"),
        ([0.0], [0.0], 1, ValueError, "x must be of shape"),
        ([[math.inf]], [0.0], 1, ValueError, "x must be finite"),
        ([[0.0]], [0.0, 1.0], 1, ValueError, r"f must be of shape \(1,\)"),
        ([["a"]], [0.0], 1, TypeError, "x must be real numbers"),
        (torch.zeros(1, 1, dtype=torch.int64), [0.0], 1, TypeError, "x must be of a floating dtype"),
    ],
)
def test_bad_input_is_named(x: object, f: object, alpha: float, error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        consensus_point(x, f, alpha)
