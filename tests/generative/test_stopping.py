"""Tests of the stopping rules."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import brentq

from steepest.generative._stopping import critical_radius, early_stopping_step, label_noise, mallows_step, step_grid
from steepest.generative._tangent_kernel import KernelGradientFlow, relu_ntk


def complexity(values, x):
    return math.sqrt(np.minimum(values, x**2).sum() / len(values))


def spectrum(seed, n=30):
    return np.sort(np.random.default_rng(seed).random(n) ** 6)[::-1].copy()


# --------------------------------------------------------------------------------------------------------------- exact


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 1000), st.floats(0.01, 10.0), st.floats(0.1, 10.0), st.integers(0, 20))
def test_critical_radius_solves_its_equation(seed, sigma, radius, zeros):
    values = np.append(spectrum(seed), np.zeros(zeros))

    def gap(x):
        return complexity(values, x) - radius * x**2 / (2 * math.e * sigma)

    low, high = 1e-6, 1e4
    root = brentq(gap, low, high, xtol=1e-14, rtol=1e-12)
    assert critical_radius(values, sigma, radius=radius) == pytest.approx(root, rel=1e-8)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 1000), st.floats(0.01, 1.0), st.floats(0.3, 5.0))
def test_the_stop_is_the_first_violation_less_one(seed, sigma, radius):
    values, step_size, k = spectrum(seed), 0.7, 1
    while complexity(values, 1 / math.sqrt(k * step_size)) <= radius / (2 * math.e * sigma * k * step_size):
        k += 1
    assert early_stopping_step(values, sigma, step_size=step_size, radius=radius) == k - 1


def test_stop_scales_as_theory_says():
    values = spectrum(0)
    steps = early_stopping_step(values, 0.01, step_size=0.001)
    assert steps > 1000
    # B and sigma enter as their quotient, steps as time
    assert early_stopping_step(values, 0.1, step_size=0.001, radius=10.0) == steps
    assert early_stopping_step(values, 0.01, step_size=0.0005) in (2 * steps, 2 * steps + 1)
    assert early_stopping_step(values, 0.02, step_size=0.001) < steps
    assert early_stopping_step(values, 0.01, step_size=0.001, max_iter=7) == 7
    assert early_stopping_step(values, 1e3, step_size=1.0) == 0
    assert early_stopping_step(torch.as_tensor(values), 0.01, step_size=0.001) == steps
    assert early_stopping_step(np.append(values[1:], values[0]), 0.01, step_size=0.001) == steps


def test_the_guarantee_holds_for_a_truth_on_the_ball():
    """f* of norm 1 in a kernel's space, Gaussian noise: |f_T - f*|_n^2 <= 12 delta^2 in each of 50 draws."""
    rng, n, sigma = np.random.default_rng(0), 80, 0.3
    U = np.column_stack([rng.standard_normal((n, 2)), np.ones(n)])
    K = relu_ntk(U)
    c = rng.standard_normal(n)
    c /= math.sqrt(c @ K @ c)
    truth = K @ c
    eta = 0.9 / np.linalg.eigvalsh(K / n)[-1]
    Y = truth[:, None] + sigma * rng.standard_normal((n, 50))
    flow = KernelGradientFlow(K, Y, step_size=eta)
    steps = early_stopping_step(flow.eigenvalues, sigma, step_size=eta)
    errors = np.square(Y - flow.residual(steps) - truth[:, None]).mean(0)
    assert steps > 0
    assert errors.max() <= 12 * critical_radius(flow.eigenvalues, sigma) ** 2


def test_mallows_minimizes_the_expected_risk_on_its_grid():
    """With the truth at hand: E |Y - f_k|^2/n + 2 sigma^2 tr(H)/n - sigma^2 is E |f_k - f*|^2/n."""
    rng, n, sigma = np.random.default_rng(1), 60, 0.5
    U = np.column_stack([rng.standard_normal((n, 2)), np.ones(n)])
    K, truth = relu_ntk(U), np.sin(2 * U[:, 0])
    eta = 0.9 / np.linalg.eigvalsh(K / n)[-1]
    Y = truth[:, None] + sigma * rng.standard_normal((n, 4000))  # draws as coordinates: their mean is the expectation
    flow = KernelGradientFlow(K, Y, step_size=eta)
    grid = step_grid(10_000)

    def error(k):
        return np.square(Y - flow.residual(k) - truth[:, None]).mean()

    for k in (grid[0], grid[20], grid[-1]):
        assert flow.loss(k) + 2 * sigma**2 * flow.freedom(k) / n - sigma**2 == pytest.approx(error(k), abs=0.01)
    assert mallows_step(flow, sigma, max_iter=10_000) in grid
    best = min(error(k) for k in grid)
    assert error(mallows_step(flow, sigma, max_iter=10_000)) <= 1.01 * best


def test_mallows_with_shared_noise_stops_earlier():
    rng, n = np.random.default_rng(1), 40
    U = np.column_stack([rng.standard_normal((n, 2)).repeat(2, 0), np.ones(2 * n)])
    U[:, :2] += 0.1 * rng.standard_normal((2 * n, 2))
    Y = np.sin(2 * U[:, :1]) + 0.5 * rng.standard_normal((n, 1)).repeat(2, 0)
    flow = KernelGradientFlow(relu_ntk(U), Y, step_size=0.1)
    assert mallows_step(flow, 0.5, max_iter=5000, block=2) < mallows_step(flow, 0.5, max_iter=5000)


def test_label_noise_by_hand_and_on_a_line():
    # nearest neighbors: 0-1, 1-0, 3-1 (differences 1, 1, 2)
    assert label_noise([[0.0], [1.0], [3.0]], [[0.0], [1.0], [3.0]]) == pytest.approx(math.sqrt((1 + 1 + 4) / 3 / 2))
    rng = np.random.default_rng(0)
    U = rng.random((3000, 2))
    Y = np.column_stack([np.sin(3 * U[:, 0]), U[:, 1]]) + 0.3 * rng.standard_normal((3000, 2))
    assert label_noise(U, Y) == pytest.approx(0.3, rel=0.03)
    assert label_noise(torch.as_tensor(U), torch.as_tensor(Y)) == pytest.approx(label_noise(U, Y))
    assert label_noise(U, np.ones((3000, 2))) == 0.0


def test_grid_is_the_whole_range_where_it_is_short():
    assert step_grid(1) == [1]
    assert step_grid(20) == list(range(1, 21))
    grid = step_grid(10**6)
    assert (grid[0], grid[-1]) == (1, 10**6)
    assert len(grid) <= 80


# -------------------------------------------------------------------------------------------------------------- misuse


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda: critical_radius([1.0], 0.0), "sigma must be > 0"),
        (lambda: critical_radius([1.0], 1.0, radius=0.0), "radius must be > 0"),
        (lambda: critical_radius([1.0, -0.1], 1.0), "eigenvalues must be >= 0"),
        (lambda: critical_radius([0.0], 1.0), "one of them positive"),
        (lambda: critical_radius([1.0, math.nan], 1.0), "finite numbers"),
        (lambda: critical_radius([[1.0]], 1.0), "a list"),
        (lambda: early_stopping_step([1.0], 1.0, step_size=0.0), "step_size must be > 0"),
        (lambda: early_stopping_step([1.0], 1.0, step_size=1.0, max_iter=-1), "max_iter must be"),
        (lambda: label_noise([[0.0]], [[0.0]]), "U must be at least 2 rows"),
        (lambda: label_noise([[0.0], [1.0]], [[0.0]]), "Y must be of shape"),
    ],
)
def test_misuse_is_named(call, match):
    with pytest.raises(ValueError, match=match):
        call()
