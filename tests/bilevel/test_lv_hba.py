from __future__ import annotations

import math
import warnings

import numpy as np
import pytest
import torch

from steepest.bilevel import BilevelProblem, lv_hba, proximal_lagrangian_value
from steepest.core.errors import ConvergenceWarning, SteepestWarning
from tests.bilevel.test_problem import F64, randn

SHORT = "ignore:eta . maxiter:steepest.core.errors.SteepestWarning"  # tests of a few steps are too short on purpose
pytestmark = pytest.mark.filterwarnings(SHORT)


class Affine:
    """F = |x - P y|^2 / 2 + sum x^3 / 3, f = y'Hy / 2 - y'Cx + sum sin x, two equalities; all derivatives by hand."""

    def __init__(self, n=3, d=4, p=2):
        R = randn(d, d)
        self.H, self.C, self.P = R @ R.T / d, randn(d, n, seed=1), randn(n, d, seed=2)
        self.A, self.B, self.c = randn(p, n, seed=3) / 3, randn(p, d, seed=4) / 3, randn(p, seed=5) / 3
        self.x0, self.y0 = randn(n, seed=6) / 2, randn(d, seed=7) / 2

    def problem(self, **options):
        P, H, C = self.P, self.H, self.C
        return BilevelProblem(
            lambda x, y, batch: (x - P @ y).square().sum() / 2 + (x**3).sum() / 3,
            lambda x, y, batch: y @ H @ y / 2 - y @ C @ x + x.sin().sum(),
            self.x0, self.y0, **({"affine": (self.A, self.B, self.c), "equality": True} | options),
        )  # fmt: skip

    def upper_grad(self, x, y):
        e = x - self.P @ y
        return e + x**2, -self.P.T @ e

    def lower_grad(self, x, y):
        return x.cos() - self.C.T @ y, self.H @ y - self.C @ x

    def rows(self, x, y):
        return self.A @ x + self.B @ y + self.c

    def jacobian(self, x, y):
        return self.A, self.B

    def project(self, x, y):
        M, w = torch.cat([self.A, self.B], 1), torch.cat([x, y])
        w = w - torch.linalg.pinv(M) @ (M @ w + self.c)
        return w[: len(x)], w[len(x) :]

    low = property(lambda self: -torch.ones(2, dtype=F64))


class Curved(Affine):
    """The same objectives under y'y - x_0^2 - 1 <= 0 and sum x y - 1 = 0, boxes for Y and in place of C."""

    def problem(self, **options):
        return super().problem(
            affine=None, equality=torch.tensor([False, True]), constraint=self.rows, project_joint=self.project,
            project_y=self.project_y, **options,
        )  # fmt: skip

    def rows(self, x, y):
        return torch.stack([y @ y - x[0] ** 2 - 1, x @ y[:3] - 1])

    def jacobian(self, x, y):
        J_x, J_y = torch.zeros(2, 3, dtype=F64), torch.zeros(2, 4, dtype=F64)
        J_x[0, 0], J_x[1] = -2 * x[0], y[:3]
        J_y[0], J_y[1, :3] = 2 * y, x
        return J_x, J_y

    def project(self, x, y):
        return x.clamp(-0.4, 0.4), y.clamp(-0.3, 0.3)

    def project_y(self, y):
        return y.clamp(-0.3, 0.3)

    low = property(lambda self: torch.tensor([0.0, -1.0], dtype=F64))


def transcribed(case, steps, pair, alpha, beta, eta, gamma1, gamma2, r, c, power, theta=None, lam=None, z=None):
    """Write down the algorithm for `case` with its hand-made derivatives."""
    x, y = case.project(case.x0, case.y0)
    theta = y if theta is None else theta
    lam = torch.zeros(2, dtype=F64) if lam is None else lam
    z = lam if z is None else z
    onto_y = getattr(case, "project_y", lambda y: y)

    def clip(v):
        return torch.minimum(torch.maximum(v, r * case.low), torch.full_like(v, r))

    for k in range(steps):
        c_k = c * (k + 1) ** power
        new = case.lower_grad(x, theta)[1] + case.jacobian(x, theta)[1].T @ lam + (theta - y) / gamma1
        new = onto_y(theta - eta * new)
        g = case.rows(x, theta if pair == "jacobi" else new)
        lam, theta = clip(lam - eta * (-g + (lam - z) / gamma2)), new
        F, f, f_theta = case.upper_grad(x, y), case.lower_grad(x, y), case.lower_grad(x, theta)
        d_x = F[0] / c_k + f[0] - f_theta[0] - case.jacobian(x, theta)[0].T @ lam
        d_y = F[1] / c_k + f[1] - (y - theta) / gamma1
        before = torch.cat([x, y])
        x, y = case.project(x - alpha * d_x, y - alpha * d_y)
        z = clip(z - beta * (-(lam - z) / gamma2))
    return {"x": x, "y": y, "theta": theta, "lam": lam, "z": z}, (torch.cat([x, y]) - before).norm() / alpha


def toy(n, x0=None, y0=None):
    """The paper's example, its row of norm 1: optimum x = -0.3, y = (0.7, -0.4), F = 0.05 n."""
    row = torch.full((1, 3 * n), (3 * n) ** -0.5, dtype=F64)
    return BilevelProblem(
        lambda x, y, batch: (x - y[n:]).square().sum() / 2 + (y[:n] - 1).square().sum() / 2,
        lambda x, y, batch: y[:n].square().sum() / 2 - x @ y[:n] + y[n:].sum(),
        randn(n) if x0 is None else x0, randn(2 * n, seed=1) if y0 is None else y0,
        affine=(row[:, :n], row[:, n:], torch.zeros(1, dtype=F64)), equality=True,
    )  # fmt: skip


# -------------------------------------------------------------------------------------------------------------- exact


@pytest.mark.parametrize("pair", ["jacobi", "gauss-seidel"])
@pytest.mark.parametrize("kind", [Affine, Curved])
@pytest.mark.parametrize("steps", [1, 4])
def test_steps_are_those_of_the_algorithm(kind, pair, steps):
    case = kind()
    numbers = {"alpha": 0.05, "beta": 0.3, "eta": 0.07, "gamma1": 0.8, "gamma2": 2.5, "r": 0.15, "c": 0.6, "power": 0.4}
    result = lv_hba(case.problem(), **numbers, pair=pair, maxiter=steps)
    expected, residual = transcribed(case, steps, pair, **numbers)
    for name, value in expected.items():
        assert torch.allclose(result[name], value, atol=1e-9), name
    assert result.residual == pytest.approx(residual.item(), abs=1e-7)
    assert result.history["residual"][-1] == result.residual


def test_steps_from_given_starts_are_those_of_the_algorithm():
    case = Affine()
    numbers = {"alpha": 0.05, "beta": 0.3, "eta": 0.07, "gamma1": 0.8, "gamma2": 2.5, "r": 9.0, "c": 0.6, "power": 0.4}
    theta, lam, z = randn(4, seed=8), randn(2, seed=9), randn(2, seed=10)
    for starts in ({"theta": theta}, {"lam": lam}, {"z": z}, {"theta": theta, "lam": lam, "z": z}):
        result = lv_hba(case.problem(), **numbers, maxiter=2, **{f"{key}0": v for key, v in starts.items()})
        expected, _ = transcribed(case, 2, "jacobi", **numbers, **starts)
        for name, value in expected.items():
            assert torch.allclose(result[name], value, atol=1e-9), (name, list(starts))


def test_the_value_of_a_quadratic_has_the_closed_form():
    """With equalities and r out of reach the saddle point solves one linear system."""
    case, gamma1, gamma2 = Affine(), 1.7, 3.1
    x, y, z = case.x0, case.y0, randn(2, seed=8)
    eye4, eye2 = torch.eye(4, dtype=F64), torch.eye(2, dtype=F64)
    K = torch.cat([torch.cat([case.H + eye4 / gamma1, case.B.T], 1), torch.cat([case.B, -eye2 / gamma2], 1)])
    rhs = torch.cat([case.C @ x + y / gamma1, -(case.A @ x + case.c) - z / gamma2])
    theta, lam = torch.linalg.solve(K, rhs).split([4, 2])
    problem = case.problem()
    exact = problem.lower(x, theta, None) + lam @ case.rows(x, theta)
    exact = exact + (theta - y).square().sum() / (2 * gamma1) - (lam - z).square().sum() / (2 * gamma2)
    value, found_theta, found_lam = proximal_lagrangian_value(problem, x, y, z, gamma1=gamma1, gamma2=gamma2, tol=1e-11)
    assert value == pytest.approx(exact.item(), abs=1e-12)
    assert torch.allclose(found_theta, theta, atol=1e-9)
    assert torch.allclose(found_lam, lam, atol=1e-9)
    r = 0.1  # both multipliers at the bound: theta is what that constant force leaves
    value, found_theta, found_lam = proximal_lagrangian_value(
        problem, x, y, z, gamma1=gamma1, gamma2=gamma2, r=r, tol=1e-11
    )
    assert torch.equal(found_lam.abs(), torch.full((2,), r, dtype=F64))
    force = case.C @ x + y / gamma1 - case.B.T @ found_lam
    assert torch.allclose(found_theta, torch.linalg.solve(case.H + eye4 / gamma1, force), atol=1e-9)


@pytest.mark.parametrize("kind", [Affine, Curved])
def test_gradients_of_the_value_agree_with_differences(kind):
    case, numbers = kind(), {"gamma1": 0.9, "gamma2": 1.4, "r": 50.0}
    problem = case.problem()
    x, y, z = case.x0, case.y0 * 0.3, torch.tensor([0.6, -0.2], dtype=F64)
    _, theta, lam = proximal_lagrangian_value(problem, x, y, z, **numbers, tol=1e-12)
    J_x, _ = case.jacobian(x, theta)
    gradients = (case.lower_grad(x, theta)[0] + J_x.T @ lam, (y - theta) / 0.9, (lam - z) / 1.4)
    h = 1e-5
    for which, gradient in enumerate(gradients):
        for j in range(len(gradient)):
            values = []
            for sign in (1, -1):
                at = [x.clone(), y.clone(), z.clone()]
                at[which][j] += sign * h
                values.append(proximal_lagrangian_value(problem, *at, **numbers, tol=1e-7)[0])  # right to its square
            assert (values[0] - values[1]) / (2 * h) == pytest.approx(gradient[j].item(), abs=1e-8), (which, j)


def test_no_gap_is_negative_and_lower_solutions_have_none():
    case = Affine()
    problem = case.problem(equality=False)
    x = case.x0
    for seed in range(6):
        y, z = randn(4, seed=seed), randn(2, seed=seed + 20).abs()
        if (case.rows(x, y) > 0).any():
            y = y - torch.linalg.pinv(case.B) @ case.rows(x, y)
        value, _, _ = proximal_lagrangian_value(problem, x, y, z)
        assert problem.lower(x, y, None).item() - value > -1e-9
    # f = |y|^2 / 2 over y_0 >= x: y = (x, 0, 0), multiplier x
    row = -torch.eye(1, 3, dtype=F64)
    simple = BilevelProblem(
        lambda x, y, batch: y.sum(), lambda x, y, batch: y.square().sum() / 2, torch.ones(1, dtype=F64),
        torch.zeros(3, dtype=F64), affine=(torch.ones(1, 1, dtype=F64), row, torch.zeros(1, dtype=F64)),
    )  # fmt: skip
    x, y = torch.tensor([0.7], dtype=F64), torch.tensor([0.7, 0, 0], dtype=F64)
    value, theta, lam = proximal_lagrangian_value(simple, x, y, x, tol=1e-12)
    assert value == pytest.approx(0.7**2 / 2, abs=1e-11)
    assert torch.allclose(theta, y, atol=1e-9)
    assert lam.item() == pytest.approx(0.7, abs=1e-9)


def test_the_optimum_of_the_paper_s_example_is_found_up_to_the_bias_of_c():
    errors = []
    options = {"alpha": 0.1, "beta": 0.1, "eta": None, "gamma1": 2.0, "gamma2": 2.0, "log_every": None}
    for c, steps in ((0.2, 400), (1.0, 700)):
        result = lv_hba(toy(3), **options, c=c, maxiter=steps)
        errors.append((result.x + 0.3).norm().item() / (0.3 * 3**0.5))
        assert result.success
        assert 0 < result.value_gap < 0.05
    assert errors[1] < 0.1
    assert errors[1] < 0.5 * errors[0]  # less bias with a larger weight


def test_residual_gap_and_violation_shrink():
    history = {}
    for steps in (40, 300):
        result = lv_hba(toy(3), alpha=0.1, beta=0.1, eta=0.3, gamma1=2.0, gamma2=2.0, maxiter=steps)
        history[steps] = (min(result.history["residual"][1:]), result.value_gap)
        assert max(result.history["violation"][1:]) < 1e-9
    assert history[300][0] < 0.1 * history[40][0]
    assert history[300][1] < 0.7 * history[40][1]


def test_an_active_inequality_carries_its_multiplier():
    """f = (y + 1)^2 / 2 over y >= x^2 (rows of x alone curve): y = x^2, multiplier 1 + x^2; F is least at x = 1."""
    problem = BilevelProblem(
        lambda x, y, batch: ((y - 1) ** 2).sum() + ((x - 1) ** 2).sum(),
        lambda x, y, batch: ((y + 1) ** 2).sum() / 2,
        torch.tensor([0.2], dtype=F64), torch.tensor([1.5], dtype=F64),
        affine=(torch.ones(1, 1, dtype=F64), -torch.ones(1, 1, dtype=F64), torch.zeros(1, dtype=F64)),
    )  # fmt: skip
    result = lv_hba(problem, alpha=0.05, beta=0.3, eta=None, gamma1=1.0, gamma2=1.0, maxiter=400, log_every=None)
    assert result.x.item() == pytest.approx(1, abs=0.02)
    assert result.y.item() == pytest.approx(1, abs=0.02)
    assert result.lam.item() == pytest.approx(2, abs=0.05)
    assert result.z.item() == pytest.approx(2, abs=0.05)
    assert abs(result.value_gap) < 1e-3


# --------------------------------------------------------------------------------------------------- cost, step sizes


class Once(torch.autograd.Function):
    """Half the squared norm, with a backward that cannot be differentiated again."""

    @staticmethod
    def forward(ctx, y):
        ctx.save_for_backward(y)
        return y.square().sum() / 2

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, g):
        (y,) = ctx.saved_tensors
        return g * y


def test_no_second_derivative_is_taken_and_calls_are_counted():
    calls = {"upper": 0, "lower": 0, "project_y": 0}

    def upper(x, y, batch):
        calls["upper"] += 1
        return (y - 1).square().sum() + x.square().sum()

    def lower(x, y, batch):
        calls["lower"] += 1
        assert batch is None
        return Once.apply(y - x)

    def project_y(y):
        calls["project_y"] += 1
        return y

    row, two = torch.ones(1, 2, dtype=F64) / 2, torch.zeros(2, dtype=F64)
    problem = BilevelProblem(upper, lower, two, two, affine=(row, row, row[0, :1]), sample_lower=lambda *a: 1 / 0)
    for eta, extra in ((0.1, 0), (None, 21)):
        calls |= dict.fromkeys(calls, 0)
        result = lv_hba(problem, eta=eta, maxiter=7, log_every=None)
        assert result.counts == {
            "upper_grad": 7, "lower_grad": 3 * 7 + extra, "hvp": 0, "jvp": 0, "hessian": 0, "projection": 7 + 1,
            "samples": 0,
        }  # fmt: skip
        assert calls["upper"] == 7 + 1
        assert math.isfinite(result.value_gap)
    with_set = BilevelProblem(upper, lower, two, two, affine=(row, row, row[0, :1]), project_y=project_y)
    assert lv_hba(with_set, eta=0.1, maxiter=7).counts["projection"] == 2 * 7 + 1


@pytest.mark.parametrize("curvature", [0.0, 30.0])
@pytest.mark.parametrize("gamma", [(2.0, 2.0), (2.0, 0.05)])
@pytest.mark.parametrize("pair", ["jacobi", "gauss-seidel"])
def test_the_step_size_that_is_chosen(pair, gamma, curvature):
    """Orthogonal rows of norm 3: half of the stable range, capped by the curvature and by gamma2."""
    gamma1, gamma2 = gamma
    problem = BilevelProblem(
        lambda x, y, batch: y.sum(), lambda x, y, batch: curvature * y[0] ** 2 / 2, randn(1), randn(2),
        affine=(torch.zeros(2, 1, dtype=F64), 3 * torch.eye(2, dtype=F64), torch.zeros(2, dtype=F64)), equality=True,
    )  # fmt: skip
    result = lv_hba(problem, eta=None, gamma1=gamma1, gamma2=gamma2, pair=pair, maxiter=1)
    a = 1 / gamma1
    half = a / (9 + a * a) if pair == "jacobi" else 1 / (3 + a)
    assert result.eta == pytest.approx(min(0.9 * half, 1 / (curvature + a), gamma2), rel=1e-4)


@pytest.mark.filterwarnings("ignore:eta = ")
@pytest.mark.parametrize("pair", ["jacobi", "gauss-seidel"])
def test_the_pair_is_stable_just_below_its_limit_and_not_above(pair):
    s, a = 3.0, 0.5
    problem = BilevelProblem(
        lambda x, y, batch: 0 * y.sum(), lambda x, y, batch: 0 * y.sum(), torch.zeros(1, dtype=F64),
        torch.zeros(1, dtype=F64),
        affine=(torch.zeros(1, 1, dtype=F64), torch.tensor([[s]], dtype=F64), torch.zeros(1, dtype=F64)), equality=True,
    )  # fmt: skip
    limit = 2 * a / (s * s + a * a) if pair == "jacobi" else 2 / (s + a)
    size = {}
    for share in (0.95, 1.05):
        result = lv_hba(
            problem, alpha=1e-12, beta=1e-12, eta=share * limit, gamma1=1 / a, gamma2=1 / a, r=1e9, pair=pair,
            theta0=torch.ones(1, dtype=F64), maxiter=150, log_every=None,
        )  # fmt: skip
        size[share] = math.hypot(result.theta.item(), result.lam.item())
    assert size[0.95] < 0.8
    assert size[1.05] > 1.3


def test_an_eta_above_what_the_rows_allow_and_a_run_too_short_are_told():
    problem = toy(2)
    s = (2 * 2 / 6) ** 0.5
    limit = 0.1 / (s * s + 0.01)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        lv_hba(problem, eta=0.99 * limit, gamma1=10.0, maxiter=1400, tol=1e9)
    with pytest.warns(SteepestWarning, match=r"eta = .* exceeds"):
        lv_hba(problem, eta=1.01 * limit, gamma1=10.0, maxiter=1400, tol=1e9)
    with pytest.warns(SteepestWarning, match=r"eta \* maxiter = 10 is below 20 gamma1 = 200"):
        lv_hba(problem, tol=1e9)


# ---------------------------------------------------------------------------------------------------------- properties


@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support")
@pytest.mark.filterwarnings("ignore:eta = ")
def test_dicts_sparse_rows_and_single_precision_lead_to_the_same_place():
    case = Affine()
    options = {"eta": 0.1, "gamma1": 1.0, "gamma2": 1.0, "maxiter": 20}
    plain = lv_hba(case.problem(), **options)

    def form(y):
        return torch.cat([y["w"].reshape(-1), y["b"]])

    problem = case.problem()
    y0 = {"w": case.y0[:2].reshape(1, 2).clone(), "b": case.y0[2:].clone()}
    in_dicts = BilevelProblem(
        lambda x, y, batch: problem.upper(x["x"], form(y), batch),
        lambda x, y, batch: problem.lower(x["x"], form(y), batch),
        {"x": case.x0.clone()}, y0, affine=problem.affine, equality=True,
    )  # fmt: skip
    result = lv_hba(in_dicts, **options, theta0={key: v.clone() for key, v in y0.items()})
    reference = lv_hba(problem, **options, theta0=case.y0)
    assert torch.equal(result.x["x"], reference.x)
    assert torch.equal(form(result.theta), reference.theta)
    assert torch.equal(in_dicts.x0["x"], case.x0)
    assert result.value_gap == pytest.approx(reference.value_gap, abs=1e-12)

    sparse = case.problem(affine=(case.A.to_sparse_coo(), case.B.to_sparse_csr(), case.c))
    result = lv_hba(sparse, **options)
    assert torch.allclose(result.x, plain.x, atol=1e-8)
    assert result.value_gap == pytest.approx(plain.value_gap, abs=1e-8)

    P, H, C = case.P.float(), case.H.float(), case.C.float()
    single = BilevelProblem(
        lambda x, y, batch: (x - P @ y).square().sum() / 2 + (x**3).sum() / 3,
        lambda x, y, batch: y @ H @ y / 2 - y @ C @ x + x.sin().sum(),
        case.x0.float(), case.y0.float(), affine=tuple(t.float() for t in problem.affine), equality=True,
    )  # fmt: skip
    result = lv_hba(single, **options)
    assert result.x.dtype is result.lam.dtype is torch.float32
    assert torch.allclose(result.x.double(), plain.x, atol=1e-4)
    assert result.value_gap == pytest.approx(plain.value_gap, abs=1e-4)


def test_blocks_are_taken_together():
    """Two lower problems (y_i - x)^2 / 2 under y_0 + y_1 = 2: y = (1, 1) + ..., the joined problem says the same."""
    row = torch.ones(1, 2, dtype=F64) / 2**0.5
    options = {"affine": (0 * row[:, :1], row, -(2**0.5) * torch.ones(1, dtype=F64)), "equality": True}
    blocks = BilevelProblem(
        lambda x, yb, batch, blocks: (yb[:, 0] - blocks) ** 2, lambda x, yb, batch, blocks: (yb[:, 0] - x) ** 2 / 2,
        randn(1), randn(2, 1), n_blocks=2, **options,
    )  # fmt: skip
    joined = BilevelProblem(
        lambda x, y, batch: (y - torch.arange(2)).square().mean(), lambda x, y, batch: (y - x).square().sum() / 2,
        randn(1), randn(2, 1).reshape(-1), **options,
    )  # fmt: skip
    a, b = (lv_hba(problem, eta=0.05, maxiter=20) for problem in (blocks, joined))
    assert torch.allclose(a.y.reshape(-1), b.y, atol=1e-12)
    assert a.y.shape == (2, 1)
    assert a.value_gap == pytest.approx(b.value_gap, abs=1e-10)


def test_runs_repeat_and_leave_the_global_stream_and_the_start_alone():
    case = Affine()
    kept = case.x0.clone()
    state = torch.random.get_rng_state(), np.random.get_state()[1].copy()
    a, b = (lv_hba(case.problem(), eta=None, gamma1=1.0, maxiter=5) for _ in range(2))
    assert torch.equal(a.x, b.x)
    assert torch.equal(case.x0, kept)
    assert torch.equal(torch.random.get_rng_state(), state[0])
    assert (np.random.get_state()[1] == state[1]).all()


def test_the_tolerance_is_on_the_residual():
    options = {"alpha": 0.1, "eta": 0.3, "gamma1": 2.0, "gamma2": 2.0}
    result = lv_hba(toy(2), **options, maxiter=600, tol=0.02)
    assert (result.success, result.status) == (True, 0)
    assert result.residual <= 0.02 < result.history["residual"][-2]
    short = lv_hba(toy(2), **options, maxiter=10, tol=1e-9)
    assert (short.success, short.status) == (False, 1)


def test_the_callback_sees_every_variable_and_can_stop():
    seen = []

    def callback(intermediate_result):
        seen.append(intermediate_result)
        if len(seen) == 3:
            raise StopIteration

    result = lv_hba(toy(2), eta=0.1, maxiter=9, callback=callback, log_every=2)
    assert set(seen[0]) == {"x", "y", "theta", "lam", "z", "nit", "counts"}
    assert (result.status, result.nit) == (6, 3)
    assert result.history["nit"] == [0, 2, 3]
    assert {"fun", "residual", "violation"} <= set(result.history)
    assert torch.equal(result.theta, seen[-1].theta)


@pytest.mark.filterwarnings("ignore:eta = ")
def test_divergence_is_told():
    result = lv_hba(toy(2), alpha=1e200, eta=1e3, maxiter=200)
    assert (result.success, result.status) == (False, 2)
    assert "finite" in result.message
    assert torch.isfinite(result.x).all()


def test_x_on_its_bounds_with_a_gap_is_no_bilevel_point():
    """F pulls y away from the lower solution and x down; c is far too small to hold them."""
    row = torch.ones(1, 3, dtype=F64)

    def problem(weight):
        return BilevelProblem(
            lambda x, y, batch: x.sum() + weight * (y - 5).square().sum(), lambda x, y, batch: y.square().sum() / 2,
            torch.zeros(3, dtype=F64), torch.zeros(3, dtype=F64), project_x=lambda x: x.clamp(-1, 2),
            affine=(0 * row, row / 3**0.5, -100 * row[0, :1]),
        )  # fmt: skip

    options = {"alpha": 0.1, "eta": 0.3, "gamma1": 1.0, "gamma2": 1.0, "c": 0.1, "maxiter": 100}
    bad = lv_hba(problem(1.0), **options)
    assert bad.value_gap > 0.1 * (1 + abs(bad.lower_fun))
    assert "bounds" in bad.message
    assert "no bilevel point" in bad.message
    good = lv_hba(problem(0.0), **options)  # on its bounds too, but y is the lower solution
    assert torch.equal(good.x, bad.x)
    assert "bounds" not in good.message


def test_no_step_gives_the_projected_start():
    case = Affine()
    result = lv_hba(case.problem(), maxiter=0)
    assert torch.allclose(result.x, case.project(case.x0, case.y0)[0], atol=1e-12)
    assert math.isnan(result.residual)


# -------------------------------------------------------------------------------------------------------------- misuse


def test_bad_arguments_are_named():
    problem = toy(2)
    for name in ("alpha", "beta", "eta", "gamma1", "gamma2", "r", "c"):
        for value in (0.0, -1.0, math.inf):
            with pytest.raises(ValueError, match=rf"^{name} must be"):
                lv_hba(problem, **{name: value})
    for value in (0.0, 0.5, -0.1, 1.0):
        with pytest.raises(ValueError, match=r"^power must be"):
            lv_hba(problem, power=value)
    bad = {"pair": "both", "tol": -1.0, "maxiter": -1, "log_every": 0}
    for name, value in bad.items():
        with pytest.raises(ValueError, match=name):
            lv_hba(problem, **{name: value})
    with pytest.raises(TypeError, match="alpha"):
        lv_hba(problem, alpha="x")
    with pytest.raises(TypeError, match="callback"):
        lv_hba(problem, callback=3)
    with pytest.raises(TypeError, match="problem must be a BilevelProblem"):
        lv_hba(lambda x: x)


def test_bad_starts_are_named():
    problem, one = toy(2), torch.ones(1, dtype=F64)
    for name, value in (("theta0", randn(3)), ("lam0", randn(2)), ("z0", one.float()), ("z0", 1001 * one)):
        with pytest.raises(ValueError, match=name):
            lv_hba(problem, **{name: value})
    for name in ("lam0", "z0"):
        with pytest.raises(ValueError, match=f"{name} must be finite"):
            lv_hba(problem, **{name: math.nan * one})
        with pytest.raises(TypeError, match=name):
            lv_hba(problem, **{name: [0.0]})
    with pytest.raises(ValueError, match="theta0 must be finite"):
        lv_hba(problem, theta0=torch.full((4,), math.inf, dtype=F64))
    inequality = Affine().problem(equality=False)
    with pytest.raises(ValueError, match="lam0 must be within"):
        lv_hba(inequality, lam0=torch.tensor([0.0, -1.0], dtype=F64))


def test_problems_without_a_usable_constraint_are_refused():
    free = BilevelProblem(lambda x, y, b: y.sum(), lambda x, y, b: y.square().sum(), randn(1), randn(1))
    with pytest.raises(ValueError, match="constraint"):
        lv_hba(free)
    with pytest.raises(ValueError, match="constraint"):
        proximal_lagrangian_value(free, randn(1), randn(1), randn(1))
    with pytest.raises(ValueError, match="project_joint"):
        BilevelProblem(free.upper, free.lower, randn(1), randn(1), constraint=lambda x, y: x * y)
    other = BilevelProblem(
        free.upper, free.lower, randn(1), randn(1), constraint=lambda x, y: x * y,
        project_joint=lambda x, y: (x, y), equality=torch.tensor([True, False]),
    )  # fmt: skip
    with pytest.raises(ValueError, match="equality"):
        lv_hba(other)


def test_bad_arguments_of_the_value_are_named():
    problem, one = toy(2), torch.ones(1, dtype=F64)
    x, y = problem.x0, problem.y0
    for name in ("gamma1", "gamma2", "r", "tol"):
        with pytest.raises(ValueError, match=name):
            proximal_lagrangian_value(problem, x, y, one, **{name: 0.0})
    for at, name in (
        ((x[:1], y, one), "x"),
        ((x, y[:1], one), "y"),
        ((x, y, randn(2)), "z"),
        ((x * math.nan, y, one), "x"),
    ):
        with pytest.raises(ValueError, match=rf"^{name} must be"):
            proximal_lagrangian_value(problem, *at)


def test_a_value_that_is_not_reached_is_told(monkeypatch):
    monkeypatch.setattr("steepest.bilevel._lv_hba_value.SADDLE_STEPS", 2)
    problem = toy(2)
    with pytest.warns(ConvergenceWarning, match="was not solved"):
        proximal_lagrangian_value(problem, problem.x0, problem.y0, torch.ones(1, dtype=F64))
