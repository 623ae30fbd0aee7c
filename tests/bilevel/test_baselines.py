from __future__ import annotations

import functools

import pytest
import torch

from steepest.bilevel import BilevelProblem, aid_cg, hypergradient, itd, solve_lower, stocbio, value_penalty
from steepest.bilevel._oracles import COUNTS
from tests.bilevel.test_problem import F64, blocks_problem, gen, quadratic, randn

ALL = [aid_cg, itd, stocbio, value_penalty]
RATES = {"lr_x": 0.05, "lr_y": 0.2}


def optimum(quad):
    """The minimizer of F(x, y(x)), with y(x) = H^-1 (C x + b)."""
    H, C, b, t, Q = quad
    R = torch.linalg.solve(H, C)
    s = torch.linalg.solve(H, b)
    return torch.linalg.solve(R.T @ R + Q, R.T @ (t - s))


def step_of(problem, method, **options):
    """The direction h of one step: (x0 - x1) / lr_x."""
    result = method(problem, maxiter=1, **{"lr_x": 1.0, "lr_y": 0.2} | options)
    return problem.x0 - result.x, result


# -------------------------------------------------------------------------------------------------------------- exact


@pytest.mark.parametrize("method", [aid_cg, itd, functools.partial(stocbio, neumann_steps=30)])
def test_the_optimum_of_a_quadratic_is_found(method):
    problem, quad = quadratic()
    result = method(problem, lr_x=0.1, lr_y=0.3, inner_steps=20, maxiter=60)
    assert torch.allclose(result.x, optimum(quad), atol=1e-4)
    assert result.history["grad_norm"][-1] < 1e-4
    assert result.success


def test_the_penalty_finds_the_optimum_up_to_its_own_bias():
    problem, quad = quadratic()
    result = value_penalty(problem, lr_x=0.1, lr_y=0.3, inner_steps=10, penalty=10.0, penalty_growth=0.0, maxiter=60)
    H, C, b, t, Q = quad
    # stationary point of F + lam (f(x, y) - f(x, w)): y = (lam H + I)^-1 (lam (C x + b) + t), w = H^-1 (C x + b)
    lam, eye = 10.0, torch.eye(6, dtype=F64)
    K, s = torch.linalg.solve(lam * H + eye, lam * C), torch.linalg.solve(lam * H + eye, lam * b + t)
    R, r = torch.linalg.solve(H, C), torch.linalg.solve(H, b)
    biased = torch.linalg.solve(Q + lam * C.T @ (R - K), lam * C.T @ (s - r))
    assert torch.allclose(result.x, biased, atol=1e-4)
    assert (result.x - optimum(quad)).norm() > 0.02 * optimum(quad).norm()  # the bias is there
    assert (result.w - R @ result.x - r).norm() < 1e-3


def test_the_penalty_takes_the_steps_of_its_formula_and_grows():
    problem, (H, C, b, t, Q) = quadratic()
    result = value_penalty(
        problem, lr_x=0.1, lr_y=0.2, inner_steps=2, penalty=3.0, penalty_growth=2.0, maxiter=3, decay="linear"
    )
    x, y, w = problem.x0, problem.y0, problem.y0
    for k, lam in enumerate((3.0, 5.0, 7.0)):
        for _ in range(2):
            w = w - 0.2 * (H @ w - C @ x - b)
            y = y - 0.2 * ((y - t) / lam + H @ y - C @ x - b)
        x = x - 0.1 * (1 - 0.98 * k / 3) * (Q @ x + lam * C.T @ (w - y))
    assert torch.allclose(result.x, x, atol=1e-12)
    assert torch.allclose(result.y, y, atol=1e-12)
    assert torch.allclose(result.w, w, atol=1e-12)


def test_unrolled_steps_are_differentiated_exactly():
    A = randn(7, 5)

    def lower(x, y, batch):
        return torch.nn.functional.softplus(A @ y * x.exp()).sum() + y.square().sum() / 2

    def upper(x, y, batch):
        return torch.sin(y).sum() + (x.sum() * y[0]) ** 2

    problem = BilevelProblem(upper, lower, randn(7, seed=1) / 3, randn(5, seed=2))
    x = problem.x0.clone().requires_grad_()
    y = problem.y0.clone().requires_grad_()
    for _ in range(4):
        y = y - 0.1 * torch.autograd.grad(lower(x, y, None), y, create_graph=True)[0]
    (exact,) = torch.autograd.grad(upper(x, y, None), x)
    h, result = step_of(problem, itd, lr_y=0.1, inner_steps=4)
    assert torch.allclose(h, exact, atol=1e-12)
    assert torch.allclose(result.y, y, atol=1e-12)


def test_unrolling_tends_to_the_implicit_gradient():
    problem, _ = quadratic()
    y, _ = solve_lower(problem, problem.x0, tol=1e-12)
    exact, _ = hypergradient(problem, problem.x0, y)
    errors = [(step_of(problem, itd, inner_steps=k)[0] - exact).norm().item() for k in (20, 60, 180)]
    assert errors[2] < 1e-7 < errors[1] < errors[0]
    implicit, result = step_of(problem, aid_cg, inner_steps=180, cg_steps=50)
    assert torch.allclose(implicit, exact, atol=1e-9)
    assert torch.allclose(result.v, hypergradient(problem, problem.x0, y)[1], atol=1e-8)


def test_the_series_of_stocbio_is_that_of_hypergradient():
    problem, _ = quadratic()
    h, result = step_of(problem, stocbio, inner_steps=3, neumann_steps=5)
    exact, v = hypergradient(problem, problem.x0, result.y, solver="neumann", steps=5, lr=0.2)
    assert torch.allclose(h, exact, atol=1e-13)
    assert torch.allclose(result.v, v, atol=1e-13)


def test_conjugate_gradients_start_from_the_last_v():
    problem, _ = quadratic()
    kinds = {k: aid_cg(problem, lr_x=1e-9, lr_y=0.2, inner_steps=0, cg_steps=2, maxiter=k) for k in (1, 4)}
    exact = hypergradient(problem, problem.x0, problem.y0)[1]
    errors = {k: (r.v - exact).norm() for k, r in kinds.items()}
    assert errors[4] < 0.1 * errors[1]


def test_blocks_are_taken_together():
    problem, (H, C, b, _) = blocks_problem()
    result = aid_cg(problem, lr_x=0.1, lr_y=0.3, inner_steps=10, cg_steps=15, maxiter=80)
    y = torch.linalg.solve(H, (C @ result.x + b).unsqueeze(2)).squeeze(2)
    gradient, _ = hypergradient(problem, result.x, y)
    assert gradient.norm() < 1e-2
    assert torch.allclose(result.y, y, atol=1e-2)


@pytest.mark.parametrize("method", ALL)
def test_calls_are_counted_exactly(method):
    calls = {"upper": 0, "lower": 0}

    def sample(generator, size):
        return torch.randint(6, (size,), generator=generator)

    plain, _ = quadratic()

    def counted(name):
        def function(x, y, batch):
            calls[name] += 1
            return getattr(plain, name)(x, y, None) * (1 if batch is None else len(batch) / 8)

        return function

    problem = BilevelProblem(
        counted("upper"), counted("lower"), plain.x0, plain.y0, sample_upper=sample, sample_lower=sample
    )
    options = {} if method is not aid_cg else {"cg_steps": 4}
    result = method(problem, lr_x=1e-3, lr_y=1e-2, inner_steps=3, maxiter=5, batch_size=8, **options)
    per_step = {
        aid_cg: {"upper_grad": 1, "lower_grad": 3, "hvp": 1 + 4, "jvp": 1, "samples": 8 * 5},
        itd: {"upper_grad": 1, "lower_grad": 3, "hvp": 3, "jvp": 3, "samples": 8 * 4},
        stocbio: {"upper_grad": 1, "lower_grad": 3, "hvp": 9, "jvp": 1, "samples": 8 * (3 + 1 + 9 + 1)},
        value_penalty: {"upper_grad": 4, "lower_grad": 8, "samples": 8 * (3 + 6 + 2)},
    }[method]
    expected = dict.fromkeys(COUNTS, 0) | {key: 5 * n for key, n in per_step.items()}
    assert result.counts == expected
    assert calls["upper"] == expected["upper_grad"] + 1  # the final report


def test_the_penalty_is_first_order():
    problem, _ = quadratic()
    result = value_penalty(problem, **RATES, maxiter=5)
    assert result.counts["hvp"] == result.counts["jvp"] == result.counts["hessian"] == 0


@pytest.mark.parametrize("method", ALL)
def test_samples_lead_to_the_same_place_up_to_noise_and_repeat(method):
    """Streaming least squares: y = x on average, F = |y - 1|^2 / 2 + |x|^2 / 2, optimum 1/2."""

    def sample(generator, size):
        return 0.1 * torch.randn(3, generator=generator, dtype=F64)

    def shift(batch):
        return 0.0 if batch is None else batch

    problem = BilevelProblem(
        lambda x, y, batch: ((y - 1 + shift(batch)).square() + x.square()).sum() / 2,
        lambda x, y, batch: (y - x + shift(batch)).square().sum() / 2,
        torch.zeros(3, dtype=F64), torch.zeros(3, dtype=F64), sample_upper=sample, sample_lower=sample,
    )  # fmt: skip
    options = {"lr_x": 0.05, "lr_y": 0.3, "maxiter": 80, "inner_steps": 3, "decay": "linear"}
    state = torch.random.get_rng_state()
    a, b, c = (method(problem, **options, random_state=seed) for seed in (0, 0, 1))
    assert torch.equal(a.x, b.x)
    assert not torch.equal(a.x, c.x)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert (a.x - 0.5).abs().max() < 0.15
    generator = gen(0)
    assert torch.equal(method(problem, **options, random_state=generator).x, a.x)


# ---------------------------------------------------------------------------------------------------------- properties


def test_linear_decay_multiplies_the_step():
    problem = BilevelProblem(
        lambda x, y, batch: x.sum(), lambda x, y, batch: y.square().sum(), torch.zeros(1, dtype=F64), randn(1)
    )
    plain = aid_cg(problem, **RATES, maxiter=4)
    decayed = aid_cg(problem, **RATES, maxiter=4, decay="linear")
    assert plain.x.item() == pytest.approx(-4 * 0.05)
    assert decayed.x.item() == pytest.approx(-0.05 * sum(1 - 0.98 * k / 4 for k in range(4)))


@pytest.mark.parametrize("method", ALL)
def test_sets_are_kept(method):
    problem, _ = quadratic(project_x=lambda x: x.clamp(-0.1, 0.1), project_y=lambda y: y.clamp(-0.2, 0.2))
    result = method(problem, **RATES, maxiter=20)
    assert result.x.abs().max() <= 0.1
    assert result.y.abs().max() <= 0.2
    assert result.counts["projection"] == 20 * (21 if method is value_penalty else 11)


@pytest.mark.parametrize("method", ALL)
def test_the_start_is_left_alone_and_its_form_kept(method):
    flat, _ = quadratic()
    problem = BilevelProblem(
        lambda x, y, batch: flat.upper(x["x"], y["y"].reshape(-1), batch),
        lambda x, y, batch: flat.lower(x["x"], y["y"].reshape(-1), batch),
        {"x": flat.x0.clone()},
        {"y": flat.y0.reshape(2, 3).clone()},
    )
    result, reference = method(problem, **RATES, maxiter=3), method(flat, **RATES, maxiter=3)
    assert torch.equal(problem.x0["x"], flat.x0)
    assert torch.equal(problem.y0["y"].reshape(-1), flat.y0)
    assert torch.equal(result.x["x"], reference.x)
    assert result.y["y"].shape == (2, 3)


@pytest.mark.parametrize("method", ALL)
def test_single_precision_stays_single(method):
    double, _ = quadratic()
    problem = BilevelProblem(
        lambda x, y, b: (y - 1).square().sum() + x.square().sum(), lambda x, y, b: (y - x[:1]).square().sum() / 2,
        double.x0.float(), double.y0.float(),
    )  # fmt: skip
    result = method(problem, **RATES, maxiter=3)
    assert result.x.dtype is result.y.dtype is torch.float32


@pytest.mark.parametrize("method", ALL)
def test_divergence_is_told_and_the_last_finite_iterate_returned(method):
    problem, _ = quadratic()
    result = method(problem, lr_x=1e30, lr_y=1e60, maxiter=50)
    assert (result.success, result.status) == (False, 2)
    assert "finite" in result.message
    assert torch.isfinite(result.x).all()
    assert torch.isfinite(result.y).all()


@pytest.mark.parametrize("method", ALL)
def test_the_callback_sees_what_the_method_adds(method):
    problem, _ = quadratic()
    seen = []

    def callback(intermediate_result):
        seen.append(intermediate_result)
        if intermediate_result.counts["lower_grad"] > 50:
            raise StopIteration

    result = method(problem, **RATES, maxiter=50, callback=callback, log_every=2)
    assert result.status == 6
    assert len(seen) == result.nit < 50
    own = {aid_cg: {"v"}, stocbio: {"v"}, value_penalty: {"w"}, itd: set()}[method]
    assert set(seen[0]) == {"x", "y", "nit", "counts"} | own
    assert {"nit", "fun", "seconds", "grad_norm"} <= set(result.history)


# -------------------------------------------------------------------------------------------------------------- misuse


@pytest.mark.parametrize("method", ALL)
def test_bad_arguments_are_named(method):
    problem, _ = quadratic()
    bad = {
        "lr_x": 0.0,
        "lr_y": -1.0,
        "decay": "cosine",
        "inner_steps": -1,
        "maxiter": -1,
        "batch_size": 0,
        "log_every": 0,
    }
    bad |= {
        aid_cg: {"cg_steps": 0}, stocbio: {"neumann_steps": 0}, value_penalty: {"penalty": 0.0, "penalty_growth": -1.0},
        itd: {},
    }[method]  # fmt: skip
    for name, value in bad.items():
        with pytest.raises(ValueError, match=name):
            method(problem, **{**RATES, name: value})
    with pytest.raises(TypeError, match="callback"):
        method(problem, **RATES, callback=3)
    with pytest.raises(TypeError, match="random_state"):
        method(problem, **RATES, random_state="x")
    with pytest.raises(TypeError, match="problem must be a BilevelProblem"):
        method(lambda x: x, **RATES)
    coupled, _ = quadratic(affine=(randn(1, 4), randn(1, 6), randn(1)))
    with pytest.raises(ValueError, match="lv_hba"):
        method(coupled, **RATES)


def test_a_lower_problem_that_is_not_convex_is_named():
    problem = BilevelProblem(lambda x, y, b: y.sum(), lambda x, y, b: -y.square().sum() + x.sum(), randn(2), randn(2))
    with pytest.raises(ValueError, match="lower must be strongly convex"):
        aid_cg(problem, **RATES)


def test_aid_cg_stops_where_the_upper_gradient_overflows():
    """Conjugate gradients once took an infinite right-hand side for solved, and the run drifted on."""
    problem = BilevelProblem(
        lambda x, y, batch: torch.cosh(4 * y).sum(), lambda x, y, batch: ((y - x) ** 2).sum() / 2,
        torch.tensor([3.0]), torch.tensor([3.0]))  # fmt: skip
    result = aid_cg(problem, lr_x=0.05, lr_y=1.0, maxiter=400)
    assert not result.success
    assert result.status == 2
    assert result.nit < 5
