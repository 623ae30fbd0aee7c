from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp

from steepest.core.ode import TABLEAUX, solve_ode
from steepest.studies.claim import slope_fit


def pendulum(t, y):
    return torch.stack([y[1], -torch.sin(y[0]) + 0.1 * torch.cos(t)])


Y0, TS = torch.tensor([1.0, 0.0], dtype=torch.float64), torch.tensor([0.0, 3.0], dtype=torch.float64)
EXACT = torch.from_numpy(
    solve_ivp(
        lambda t, y: [y[1], -np.sin(y[0]) + 0.1 * np.cos(t)],
        (0, 3),
        Y0.numpy(),
        method="DOP853",
        rtol=1e-13,
        atol=1e-13,
    ).y[:, -1]
)


@pytest.mark.parametrize("method", ["euler", "midpoint", "heun", "rk4"])
def test_fixed_methods_converge_with_their_order(method):
    n = [20, 40, 80, 160]
    errors = [float((solve_ode(pendulum, Y0, TS, method=method, n_steps=k).y - EXACT).norm()) for k in n]
    order = -slope_fit(n, errors)[0]
    assert order == pytest.approx(TABLEAUX[method].order, abs=0.25)


@pytest.mark.parametrize("name", list(TABLEAUX))
def test_tableaux_meet_their_consistency_conditions(name):
    t = TABLEAUX[name]
    assert sum(t.b) == pytest.approx(1)
    for c, row in zip(t.c, t.a, strict=True):
        assert sum(row) == pytest.approx(c)
    if t.order >= 2:
        assert sum(b * c for b, c in zip(t.b, t.c, strict=True)) == pytest.approx(1 / 2)
    if t.order >= 4:
        assert sum(b * c**3 for b, c in zip(t.b, t.c, strict=True)) == pytest.approx(1 / 4)
    if t.e:
        assert sum(t.e) == pytest.approx(0, abs=1e-15)


def test_adaptive_error_follows_the_tolerance_and_the_cost_that_of_scipy():
    for tol in (1e-4, 1e-7, 1e-10):
        ours = solve_ode(pendulum, Y0, TS, rtol=tol, atol=tol)
        theirs = solve_ivp(
            lambda t, y: [y[1], -np.sin(y[0]) + 0.1 * np.cos(t)], (0, 3), Y0.numpy(), method="RK45", rtol=tol, atol=tol
        )
        assert float((ours.y - EXACT).norm()) < 50 * tol
        assert ours.nfe <= 1.15 * theirs.nfev + 12


def test_times_between_backwards_and_batches():
    ts = torch.linspace(0, 3, 7, dtype=torch.float64)
    out = solve_ode(pendulum, Y0, ts, rtol=1e-9, atol=1e-9)
    assert out.ys.shape == (7, 2)
    back = solve_ode(pendulum, out.y, ts.flip(0), rtol=1e-9, atol=1e-9)
    assert torch.allclose(back.y, Y0, atol=1e-6)
    batch = solve_ode(lambda t, y: -y, torch.ones(3, 2, dtype=torch.float64), TS, rtol=1e-9, atol=1e-9)
    assert torch.allclose(batch.y, torch.full((3, 2), np.exp(-3.0), dtype=torch.float64), atol=1e-7)


@pytest.mark.parametrize("method", ["rk4", "rk45"])
def test_gradients_flow_through_the_solution(method):
    rate = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)
    y = solve_ode(lambda t, y: -rate * y, torch.ones(1, dtype=torch.float64), TS, method=method, n_steps=50).y
    (g,) = torch.autograd.grad(y.sum(), rate)
    assert float(g) == pytest.approx(-3 * np.exp(-2.1), rel=2e-2 if method == "rk45" else 1e-4)


def test_trouble_is_said():
    with pytest.raises(FloatingPointError, match="not finite"):
        solve_ode(lambda t, y: y * torch.nan, Y0, TS)
    with pytest.raises((RuntimeError, FloatingPointError)):
        solve_ode(lambda t, y: y**2, torch.ones(1, dtype=torch.float64), TS)  # explodes at t = 1
    with pytest.raises(RuntimeError, match="max_steps=3"):
        solve_ode(pendulum, Y0, TS, rtol=1e-10, atol=1e-10, max_steps=3)
    with pytest.raises(ValueError, match="method must be one of"):
        solve_ode(pendulum, Y0, TS, method="rk5")
    with pytest.raises(ValueError, match="ts must be at least two strictly"):
        solve_ode(pendulum, Y0, torch.tensor([0.0, 1.0, 1.0]))
    with pytest.raises(ValueError, match="y0 must be of a floating-point dtype"):
        solve_ode(pendulum, torch.tensor([1, 2]), TS)
