"""Levenberg-Marquardt against SciPy's and against closed forms; its gradient against finite differences."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.optimize import least_squares
from torch import Tensor

from steepest.physics import _least_squares as module
from steepest.physics._least_squares import nonlinear_least_squares
from steepest.physics._pointwise_rows import PointwiseLeastSquares, Rows

F64 = torch.float64


def gen(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def curve(w: Tensor, y: Tensor, x: Tensor) -> Tensor:  # (B, 3), (B, R), (R,) -> (B, R)
    return w[:, :1] * torch.exp(-w[:, 1:2] * x) + w[:, 2:3] * x - y


def noisy_curves(n: int = 5) -> tuple[Tensor, Tensor]:
    x = torch.linspace(0, 1, 30, dtype=F64)
    return torch.rand(n, 30, generator=gen(), dtype=F64) + 2 * torch.exp(-3 * x), x


# --------------------------------------------------------------------------------------------------------------- exact


def test_minima_are_those_of_scipy():
    y, x = noisy_curves()
    w, info = nonlinear_least_squares(curve, torch.ones(5, 3, dtype=F64), (y, x))
    assert bool(info["converged"].all())
    for k in range(5):
        jac = torch.func.jacfwd(lambda v, k=k: curve(v[None], y[k : k + 1], x)[0])
        reference = least_squares(
            lambda v, k=k: curve(torch.from_numpy(v)[None], y[k : k + 1], x)[0].numpy(),
            np.ones(3),
            jac=lambda v, jac=jac: jac(torch.from_numpy(v)).numpy(),
            method="lm",
            xtol=1e-15,
            ftol=1e-15,
            gtol=1e-15,
        )
        assert np.abs(w[k].numpy() - reference.x).max() < 1e-8 * np.abs(reference.x).max()
        assert float(info["cost"][k]) == pytest.approx(reference.cost, rel=1e-10)
        assert float(info["gradient_norm"][k]) < 1e-10


def test_a_linear_problem_and_its_gradient_are_the_normal_equations():
    A, b = torch.randn(20, 4, generator=gen(), dtype=F64), torch.randn(20, generator=gen(1), dtype=F64)
    b.requires_grad_()
    w, info = nonlinear_least_squares(lambda w, b: A @ w - b, torch.zeros(4, dtype=F64), (b,))
    exact = torch.linalg.lstsq(A, b.detach()[:, None]).solution[:, 0]
    assert torch.allclose(w, exact, rtol=1e-10, atol=1e-12)
    assert info["nit"].shape == ()
    assert float(info["cost"]) == pytest.approx(float((A @ exact - b.detach()).square().sum() / 2), rel=1e-12)
    w.sum().backward()
    assert torch.allclose(b.grad, torch.linalg.pinv(A).sum(0), rtol=1e-9, atol=1e-11)


def test_gradient_of_every_argument_against_finite_differences():
    y, x = (a[..., ::4].clone() for a in noisy_curves(2))

    def solve(y: Tensor, x: Tensor) -> Tensor:
        return nonlinear_least_squares(curve, torch.ones(2, 3, dtype=F64), (y, x), maxiter=100)[0]

    assert torch.autograd.gradcheck(solve, (y.requires_grad_(), x.requires_grad_()), atol=1e-6, rtol=1e-6)


def test_gauss_newton_is_right_at_a_zero_residual_only():
    x = torch.linspace(0, 1, 30, dtype=F64)
    fit = 2 * torch.exp(-3 * x) + 0.5 * x
    gradients = {}
    for name, y in (("zero", fit), ("large", fit + torch.sin(20 * x))):
        for hessian in ("exact", "gauss-newton"):
            leaf = y[None].clone().requires_grad_()
            options = {"hessian": hessian, "maxiter": 200, "atol": 1e-13, "rtol": 1e-13}
            w, info = nonlinear_least_squares(curve, torch.ones(1, 3, dtype=F64), (leaf, x), **options)
            assert bool(info["converged"].all())
            w[0, 1].backward()
            gradients[name, hessian] = leaf.grad
    assert torch.allclose(gradients["zero", "exact"], gradients["zero", "gauss-newton"], rtol=1e-6, atol=1e-8)
    gap = (gradients["large", "exact"] - gradients["large", "gauss-newton"]).norm()
    assert gap > 5e-3 * gradients["large", "exact"].norm()


def pointwise(seed: int = 0, M: int = 3, P: int = 40, N: int = 4) -> PointwiseLeastSquares:
    def function(t, data):
        return t[0] * t[1] + torch.exp(0.3 * t[1]) - t[2] * data[0] + 0.1 * t[0] ** 3

    g = gen(seed)
    bases = tuple(torch.randn(M, P, N, generator=g, dtype=F64) for _ in range(3))
    offsets = tuple(torch.randn(M, P, generator=g, dtype=F64) for _ in range(3))
    data = (torch.randn(M, 1, generator=g, dtype=F64),)
    scale = torch.rand(M, P, generator=g, dtype=F64)
    return PointwiseLeastSquares((Rows(function, bases, offsets, data, scale),), ridge=0.1)


@pytest.mark.parametrize("piece", [2**19, 60])  # whole, and cut into many pieces of rows
def test_pointwise_rows_have_the_derivatives_of_autograd(monkeypatch, piece):
    from steepest.physics import _pointwise_rows

    monkeypatch.setattr(_pointwise_rows, "PIECE", piece)
    problem = pointwise()
    rows, w = problem.groups[0], torch.randn(3, 4, generator=gen(5), dtype=F64)

    def cost(w, *tensors):  # written from T, o and data alone
        T, o, (d,) = tensors[:3], tensors[3:6], tensors[6:]
        t = [torch.einsum("mpn,mn->mp", a, w) + b for a, b in zip(T, o, strict=True)]
        F = rows.scale * (t[0] * t[1] + torch.exp(0.3 * t[1]) - t[2] * d + 0.1 * t[0] ** 3)
        return F.square().sum(-1) / 2 + 0.005 * w.square().sum(-1)

    tensors = [x.clone().requires_grad_() for x in rows.tensors]
    value, G, A = problem.normal(w)
    leaf = w.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(cost(leaf, *tensors).sum(), leaf, create_graph=True)
    assert torch.allclose(value, cost(w, *tensors))
    assert torch.allclose(problem.objective(w), value - 0.005 * w.square().sum(-1))
    assert torch.allclose(G, gradient, rtol=1e-10, atol=1e-10)
    for k in range(3):
        alone = torch.func.hessian(lambda v, k=k: cost(w.index_copy(0, torch.tensor([k]), v[None]), *tensors)[k])(w[k])
        assert torch.allclose(problem.hessian(w)[k], alone, rtol=1e-9, atol=1e-9)
    assert not torch.allclose(problem.hessian(w), A, rtol=0.01)
    adjoint = torch.randn(3, 4, generator=gen(6), dtype=F64)
    expected = torch.autograd.grad((gradient * adjoint).sum(), tensors)
    for ours, theirs in zip(problem.pullback(w, adjoint), expected, strict=True):
        assert torch.allclose(ours, -theirs, rtol=1e-9, atol=1e-9)


def test_some_members_of_pointwise_rows_are_those_members():
    problem, w = pointwise(), torch.randn(3, 4, generator=gen(5), dtype=F64)
    some = torch.tensor([2, 0])
    for part, whole in zip(problem.take(some).normal(w[some]), problem.normal(w), strict=True):
        assert torch.allclose(part, whole[some], rtol=1e-12, atol=1e-12)


# ------------------------------------------------------------------------------------------------------------ property


def test_members_do_not_depend_on_the_batch():
    y, x = noisy_curves()
    start = torch.ones(5, 3, dtype=F64)
    start[1] = torch.tensor([5.0, 0.1, -3.0])
    together, info = nonlinear_least_squares(curve, start, (y, x))
    assert len(info["nit"].unique()) > 1
    for k in range(5):
        alone, its = nonlinear_least_squares(curve, start[k : k + 1], (y[k : k + 1], x))
        assert torch.allclose(alone[0], together[k], rtol=1e-10, atol=1e-12)
        assert int(its["nit"]) == int(info["nit"][k])


def test_steps_below_the_rounding_of_the_cost_still_come_closer():
    """The cost cannot tell them apart any more; without the rule for the gradient it stays above 1e-12."""
    y, x = noisy_curves()
    start, options = torch.ones(5, 3, dtype=F64), {"hessian": "gauss-newton", "atol": 0.0, "rtol": 1e-26}
    _, info = nonlinear_least_squares(curve, start, (y, x), maxiter=100, **options)
    assert bool(info["converged"].all())
    assert float(info["gradient_norm"].max()) < 1e-12


def test_no_member_ends_above_its_start_and_unfinished_ones_are_reported():
    y, x = noisy_curves()
    start = torch.tensor([8.0, 4.0, -6.0], dtype=F64).expand(5, 3)
    before = curve(start, y, x).square().sum(-1) / 2
    for maxiter in (0, 1, 2, 50):
        _, info = nonlinear_least_squares(curve, start, (y, x), maxiter=maxiter)
        assert bool((info["cost"] <= before * (1 + 1e-12)).all())
        assert bool((info["nit"] <= maxiter).all())
        assert bool(info["converged"].any()) == (maxiter == 50)


def test_a_rejected_step_is_no_convergence():
    # Rosenbrock from the paper's start: long steps are rejected on the way, and the minimum is (1, 1)
    def rosenbrock(w):
        return torch.stack([10 * (w[1] - w[0] ** 2), 1 - w[0]])

    w, info = nonlinear_least_squares(rosenbrock, torch.tensor([-1.2, 1.0], dtype=F64), maxiter=100)
    assert bool(info["converged"])
    assert torch.allclose(w, torch.ones(2, dtype=F64), atol=1e-8)
    shorter, early = nonlinear_least_squares(rosenbrock, torch.tensor([-1.2, 1.0], dtype=F64), maxiter=5)
    assert not bool(early["converged"])
    assert float(early["gradient_norm"]) > 1e-3
    assert not torch.allclose(shorter, w)


def test_steps_that_leave_the_domain_are_rejected():
    def root(w):  # NaN for w < 0, where the first Gauss-Newton step leads
        return torch.sqrt(w) - 0.1

    w, info = nonlinear_least_squares(root, torch.tensor([2.0], dtype=F64), maxiter=100)
    assert bool(info["converged"])
    assert float(w) == pytest.approx(0.01, abs=1e-9)


def test_a_member_on_a_kink_gives_up_and_says_so():
    def kinked(w):  # the cost has its minimum on the kink at 0, where its slope jumps from -1 to 3
        return torch.stack([1 - w[0] + 4 * w[0].clamp(min=0)])

    w, info = nonlinear_least_squares(kinked, torch.tensor([-0.7], dtype=F64), maxiter=1000)
    assert not bool(info["converged"])
    assert int(info["nit"]) < 300  # not the whole budget in rejected steps
    assert float(w) == pytest.approx(0.0, abs=1e-6)
    assert float(info["cost"]) <= 0.5 * (1 + 1e-6)
    together, both = nonlinear_least_squares(
        lambda w: 1 - w + 4 * w.clamp(min=0) * torch.tensor([[1.0], [0.0]], dtype=F64),
        torch.tensor([[-0.7], [-0.7]], dtype=F64), maxiter=1000,
    )  # fmt: skip
    assert both["converged"].tolist() == [False, True]
    assert float(together[1]) == pytest.approx(1.0, abs=1e-6)  # the smooth member goes on to its own minimum


def test_an_indefinite_hessian_takes_the_gauss_newton_matrix_and_says_so():
    def saddle(w, b, c):  # at w = c = 0 the cost is flat, with second derivative 1 + 2 b < 0
        return torch.stack([w[0] - c, 1 + b * w[0] ** 2])

    b, c = (torch.tensor(value, dtype=F64, requires_grad=True) for value in (-2.0, 0.0))
    w, info = nonlinear_least_squares(saddle, torch.zeros(1, dtype=F64), (b, c))
    assert bool(info["converged"])
    assert bool(info["ill_conditioned"])
    w.sum().backward()
    assert float(c.grad) == pytest.approx(1.0)  # through J'J = 1; through the Hessian it were -1/3
    assert torch.isfinite(b.grad)
    assert not bool(
        nonlinear_least_squares(saddle, torch.zeros(1, dtype=F64), (b, c), hessian="gauss-newton")[1]["ill_conditioned"]
    )


def test_float32_stays_float32_and_no_grad_keeps_nothing():
    y, x = noisy_curves(2)
    w, info = nonlinear_least_squares(curve, torch.ones(2, 3), (y.float(), x.float()), atol=1e-4, rtol=1e-4)
    exact, _ = nonlinear_least_squares(curve, torch.ones(2, 3, dtype=F64), (y, x))
    assert w.dtype == torch.float32
    assert info["cost"].dtype == F64
    assert torch.allclose(w.double(), exact, rtol=1e-3, atol=1e-3)
    with torch.no_grad():
        w, _ = nonlinear_least_squares(curve, torch.ones(2, 3, dtype=F64), (y.requires_grad_(), x))
    assert not w.requires_grad


def test_constants_mu_shrinks_and_grows():
    """One good step divides the damping by three, rejections double it and double the factor."""

    class Valley:
        def normal(self, w):
            return (w**2).sum(-1) / 2, w, torch.eye(1, dtype=F64).expand(len(w), 1, 1)

    one = torch.ones(1, dtype=F64)
    w, _, _, _, mu, grow = module._trial(Valley(), one[:, None], one / 2, one[:, None], one.view(1, 1, 1), one, 2 * one)
    assert (float(w), float(mu), float(grow)) == (0.5, pytest.approx(1 / 3), 2.0)  # d = -1/2, rho = 1

    class Rough(Valley):  # half of what was predicted: rho = 1/2 leaves the damping as it is
        def normal(self, w):
            return torch.full_like(w[:, 0], 0.5 - 0.375 / 2), w, torch.eye(1, dtype=F64).expand(len(w), 1, 1)

    w, _, _, _, mu, grow = module._trial(Rough(), one[:, None], one / 2, one[:, None], one.view(1, 1, 1), one, 8 * one)
    assert (float(w), float(mu), float(grow)) == (0.5, 1.0, 2.0)

    class Wall(Valley):
        def normal(self, w):
            return torch.full_like(w[:, 0], 9.0), w, torch.eye(1, dtype=F64).expand(len(w), 1, 1)

    state = [one[:, None], one / 2, one[:, None], one.view(1, 1, 1), one, 2 * one]
    for expected in (2.0, 8.0, 64.0):  # x 2, x 4, x 8
        state = module._trial(Wall(), *state)
        assert (float(state[0]), float(state[4])) == (1.0, expected)


# -------------------------------------------------------------------------------------------------------------- misuse


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"maxiter": -1}, "maxiter must be"),
        ({"atol": -1.0}, "atol must be"),
        ({"rtol": float("nan")}, "rtol must be"),
        ({"damping": 0.0}, "damping must be > 0"),
        ({"hessian": "full"}, "hessian must be one of 'exact', 'gauss-newton'"),
        ({"w0": torch.ones(1, 2, 3)}, r"w0 must be of shape \(N,\) or \(B, N\)"),
        ({"w0": torch.tensor([float("nan")])}, "w0 must be finite"),
        ({"residual": lambda w: w.sum()}, r"residual must be a function that returns a tensor of shape \(R,\)"),
    ],
)
def test_bad_values_are_named(options, message):
    arguments = {"residual": lambda w: w - 1, "w0": torch.ones(2)} | options
    with pytest.raises(ValueError, match=message):
        nonlinear_least_squares(**arguments)


@pytest.mark.parametrize(
    ("options", "message"),
    [({"w0": [1.0]}, "w0 must be"), ({"args": torch.ones(2)}, "args must be"), ({"residual": 3}, "residual must be")],
)
def test_bad_kinds_are_named(options, message):
    arguments = {"residual": lambda w: w - 1, "w0": torch.ones(2)} | options
    with pytest.raises(TypeError, match=message):
        nonlinear_least_squares(**arguments)
