"""Traces, Lanczos, quadrature and extreme eigenvalues against dense algebra."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from steepest.core.errors import ConvergenceWarning
from steepest.curvature import (
    HessianOperator,
    aslinearoperator,
    extreme_eigenvalues,
    frobenius_norm,
    lanczos,
    slq,
    trace,
)
from steepest.curvature.vectors import probes
from tests.curvature.test_products import close, dense_hessian, gen, mlp, targets


def symmetric(n, seed=0, eigenvalues=None, dtype=torch.float64):
    Q = torch.linalg.qr(torch.randn(n, n, generator=gen(seed), dtype=torch.float64)).Q
    d = torch.randn(n, generator=gen(seed + 1), dtype=torch.float64) if eigenvalues is None else eigenvalues
    A = (Q * d) @ Q.T
    return ((A + A.T) / 2).to(dtype)


def diagonal_operator(d):
    return aslinearoperator(lambda V: d.unsqueeze(1) * V, (len(d), len(d)), dtype=d.dtype)


def refuses(n=3):
    """A matrix and the step at which its product stops being finite."""
    calls = []

    def product(V):
        calls.append(V.shape[1])
        return V * torch.arange(1.0, 11, dtype=V.dtype).unsqueeze(1) if len(calls) <= n else V * math.nan

    return aslinearoperator(product, (10, 10))


# exact: traces ------------------------------------------------------------------------------------------------------


def test_hutchpp_is_exact_for_low_rank_of_either_sign():
    U = torch.randn(80, 5, generator=gen(0), dtype=torch.float64)
    A = U @ torch.diag(torch.tensor([3.0, -2.0, 1.0, -5.0, 0.5], dtype=torch.float64)) @ U.T
    exact = float(A.trace())
    for m in (15, 16, 17, 40):
        estimate = trace(A, m, seed=1)
        assert estimate.value == pytest.approx(exact, rel=1e-11)
        assert estimate.std_error < 1e-10 * abs(exact)
        assert estimate.num_matvecs == m
    assert abs(trace(A, 15, method="hutchinson", seed=1).value - exact) > 1e-3 * abs(exact)


def test_budgets_are_spent_exactly():
    for m in range(3, 12):
        A = aslinearoperator(symmetric(30))
        trace(A, m, seed=0)
        assert A.n_products == m
    A = aslinearoperator(symmetric(4))
    assert trace(A, 60, seed=0).value == pytest.approx(float(A.dense().trace()), rel=1e-12)
    A = aslinearoperator(symmetric(9))
    assert trace(A, method="exact").value == pytest.approx(float(A.dense().trace()), rel=1e-13)
    assert trace(A, method="exact").num_matvecs == 9
    assert frobenius_norm(A, method="exact").value == pytest.approx(float(A.dense().norm()), rel=1e-13)


def test_hutchpp_formula_with_given_probes():
    A, g = symmetric(20), gen(5)
    S, Z = probes(20, 3, generator=gen(5)), None
    probes(20, 3, generator=g)
    Z = probes(20, 4, generator=g)  # fresh ones: the same probes again would bias the rest
    Q = torch.linalg.qr(A @ S).Q
    P = torch.eye(20, dtype=torch.float64) - Q @ Q.T
    forms = (Z * (P @ A @ P @ Z)).sum(0)
    estimate = trace(A, 10, seed=5)
    assert estimate.value == pytest.approx(float((Q.T @ A @ Q).trace() + forms.mean()), rel=1e-12)
    assert estimate.std_error == pytest.approx(float(forms.std()) / 2, rel=1e-12)


@pytest.mark.parametrize("method", ["hutch++", "hutchinson"])
@pytest.mark.parametrize("distribution", ["rademacher", "gaussian"])
def test_traces_are_unbiased_and_error_bars_are_honest(method, distribution):
    A = symmetric(40)
    exact = float(A.trace())
    runs = [trace(A, 45, method=method, distribution=distribution, seed=s) for s in range(200)]
    errors = torch.tensor([r.value - exact for r in runs])
    assert abs(float(errors.mean())) < 4 * float(errors.std()) / math.sqrt(len(runs))
    scores = torch.tensor([(r.value - exact) / r.std_error for r in runs])
    assert 0.8 < float(scores.square().mean().sqrt()) < 1.35


def test_convergence_rates_on_a_decaying_spectrum():
    """lambda_i = 1 / i^2: Hutch++ falls as 1/m or faster, Hutchinson as 1/sqrt(m)."""
    d = torch.arange(1, 2001, dtype=torch.float64) ** -2
    Q = torch.linalg.qr(torch.randn(2000, 60, generator=gen(0), dtype=torch.float64)).Q
    reflected = aslinearoperator(lambda V: reflect(Q, d.unsqueeze(1) * reflect(Q, V)), (2000, 2000))
    exact, budgets, slopes, last = float(d.sum()), (12, 48, 192, 384), {}, {}
    for method in ("hutch++", "hutchinson"):
        rms = []
        for m in budgets:
            errors = [trace(reflected, m, method=method, seed=s).value - exact for s in range(12)]
            rms.append(math.sqrt(sum(e * e for e in errors) / len(errors)))
        slopes[method] = np.polyfit(np.log(budgets), np.log(rms), 1)[0]
        last[method] = rms[-1]
    assert slopes["hutch++"] <= -1.5
    assert -0.65 <= slopes["hutchinson"] <= -0.35
    assert last["hutchinson"] / last["hutch++"] >= 100


def reflect(Q, V):
    """An orthogonal symmetric matrix, so that a diagonal matrix is not exact for Rademacher probes."""
    return V - 2 * Q @ (Q.T @ V)


def test_frobenius_norm():
    A = torch.randn(30, 20, generator=gen(0), dtype=torch.float64)
    runs = [frobenius_norm(A, 50, seed=s) for s in range(60)]
    exact = float(A.norm())
    scores = torch.tensor([(r.value - exact) / r.std_error for r in runs])
    assert 0.75 < float(scores.square().mean().sqrt()) < 1.35
    assert abs(sum(r.value for r in runs) / 60 - exact) < 0.02 * exact
    assert math.isnan(frobenius_norm(A, 1, seed=0).std_error)
    assert frobenius_norm(torch.zeros(3, 3), 4, seed=0).value == 0.0


# exact: Lanczos -----------------------------------------------------------------------------------------------------


def test_lanczos_reproduces_the_whole_spectrum_and_its_relation():
    A = symmetric(30)
    result = lanczos(A, 30, seed=0)
    close(result.ritz_values(), torch.linalg.eigvalsh(A), 1e-12)
    theta, Y = result.ritz_pairs()
    close(A @ Y, Y * theta, 1e-11)
    assert result.invariant
    part = lanczos(A, 12, seed=0)
    T = torch.diag(part.alpha) + torch.diag(part.beta, 1) + torch.diag(part.beta, -1)
    close(part.Q.T @ A @ part.Q, T, 1e-13)
    close(part.Q.T @ part.Q, torch.eye(12, dtype=torch.float64), 1e-14)
    theta, Y = part.ritz_pairs()
    close(torch.linalg.vector_norm(A @ Y - Y * theta, dim=0), part.residuals(), 1e-12)
    assert not part.invariant
    assert lanczos(A, 99, seed=0).num_steps == 30
    v0 = torch.randn(30, generator=gen(9), dtype=torch.float64)
    close(lanczos(A, 5, v0).Q[:, 0], v0 / v0.norm(), 1e-15)
    short = lanczos(A, 12, seed=0, reorthogonalize="none")
    close(short.alpha, part.alpha, 1e-9)
    assert short.Q is None


def test_full_reorthogonalization_has_no_ghosts_in_float32():
    d = torch.cat([torch.ones(1), torch.linspace(0, 0.1, 499)])
    A = diagonal_operator(d)
    full = lanczos(A, 120, seed=0)
    assert full.alpha.dtype == torch.float64
    assert full.Q.dtype == torch.float32
    assert int((full.ritz_values() > 0.5).sum()) == 1
    assert abs(float(full.ritz_values()[-1]) - 1) <= 1e-5
    Q = full.Q.double()
    assert float(torch.linalg.matrix_norm(Q.T @ Q - torch.eye(120, dtype=torch.float64), 2)) <= 1e-5
    none = lanczos(A, 120, seed=0, reorthogonalize="none")
    assert int((none.ritz_values() > 0.5).sum()) >= 2


def test_breakdown_ends_early_with_exact_values():
    A = torch.diag(torch.tensor([3.0] * 10 + [-1.0] * 7 + [2.0] * 3, dtype=torch.float64))
    for dtype, tol in ((torch.float64, 1e-12), (torch.float32, 1e-5)):
        result = lanczos(A.to(dtype), 15, seed=0)
        assert result.invariant
        assert result.num_steps == 3
        close(result.ritz_values(), torch.tensor([-1.0, 2.0, 3.0], dtype=torch.float64), tol)
        assert float(result.residuals().max()) == 0.0
    for zero in (lanczos(torch.zeros(5, 5), 4, seed=0), lanczos(torch.eye(5), 4, torch.zeros(5))):
        assert (zero.ritz_values().tolist(), zero.invariant, zero.num_steps) == ([0.0], True, 1)


# exact: quadrature --------------------------------------------------------------------------------------------------


def test_quadrature_matches_moments_up_to_2m_minus_1():
    A, m = symmetric(60, eigenvalues=torch.linspace(0.1, 2, 60, dtype=torch.float64)), 6
    density = slq(A, m, 4, seed=3)
    Z = probes(60, 4, generator=gen(3))
    Az = Z.clone()
    for k in range(2 * m):
        exact = (Z * Az).sum(0) / 60
        found = (density.weights * density.nodes**k).sum(1)
        assert float(((found - exact) / exact).abs().max()) <= 1e-10
        assert density.moment(k) == pytest.approx(float(exact.mean()), rel=1e-10)
        Az = A @ Az
    exact = (Z * Az).sum(0) / 60
    assert float((((density.weights * density.nodes ** (2 * m)).sum(1) - exact) / exact).abs().max()) > 1e-9


def test_functions_of_a_matrix():
    A = symmetric(100, eigenvalues=torch.linspace(0.5, 3, 100, dtype=torch.float64))
    density = slq(A, 25, 30, seed=0)
    exact = float(torch.linalg.eigvalsh(A).log().sum())
    estimate = density.trace_of(torch.log)
    assert abs(estimate.value - exact) < 4 * estimate.std_error
    assert estimate.std_error < 0.1 * abs(exact)
    assert estimate.num_matvecs == 25 * 30
    diagonal = slq(torch.diag(torch.linspace(0.5, 3, 100, dtype=torch.float64)), 60, 2, seed=0)
    assert diagonal.trace_of(torch.log).value == pytest.approx(exact, rel=1e-9)  # Rademacher: every weight is 1 / n
    assert diagonal.trace_of(torch.ones_like).value == pytest.approx(100, rel=1e-13)


def test_density_distribution_and_quantiles():
    eigenvalues = torch.cat([torch.zeros(80), torch.linspace(1, 2, 20)]).double()
    density = slq(symmetric(100, eigenvalues=eigenvalues), 25, 20, seed=1)
    grid = torch.linspace(-0.5, 2.5, 2001, dtype=torch.float64)
    rho = density.density(grid)
    assert float(torch.trapezoid(rho, grid)) == pytest.approx(1, abs=1e-12)
    assert float(torch.trapezoid(rho[grid < 0.5], grid[grid < 0.5])) == pytest.approx(0.8, abs=0.03)
    assert float(grid[rho.argmax()]) == pytest.approx(0, abs=0.0015)
    assert density.density(grid, sigma=0.2).max() < rho.max()
    assert density.cdf(torch.tensor([-1.0, 0.5, 3.0])).tolist() == pytest.approx([0, 0.8, 1], abs=0.03)
    assert density.quantile(0.5) == pytest.approx(0, abs=1e-10)
    assert density.quantile(1.0) == pytest.approx(2, abs=1e-10)
    assert density.quantile(0.9) == pytest.approx(1.5, abs=0.15)
    assert density.extreme() == pytest.approx((0, 2), abs=1e-10)
    assert density.weights.sum(1).tolist() == pytest.approx([1] * 20)


def test_probes_depend_on_the_seed_alone_and_blocks_do_not_matter(monkeypatch):
    A = symmetric(40)
    short, long = slq(A, 5, 3, seed=2), slq(A, 9, 6, seed=2, check_symmetric=False)
    for k in range(10):
        a, b = ((s.weights * s.nodes**k).sum(1) for s in (short, long))
        close(a, b[:3], 1e-11)
    monkeypatch.setattr("steepest.curvature.spectrum.BASIS_ELEMENTS", 2 * 40 * 9)
    close(slq(A, 9, 6, seed=2, check_symmetric=False).nodes, long.nodes, 1e-11)


def test_probes_that_break_down_keep_weights_of_zero():
    A = torch.diag(torch.tensor([1.0, 2.0, 2.0, 1.0], dtype=torch.float64))
    density = slq(A, 4, 3, seed=0)
    assert density.weights.shape == (3, 4)
    assert float(density.weights[:, 2:].abs().sum()) == 0.0
    assert density.extreme() == pytest.approx((1, 2))
    assert density.moment(1) == pytest.approx(1.5)
    assert density.trace_of(lambda x: 1 / (x - 1.5)).value == pytest.approx(0, abs=1e-12)
    zero = slq(torch.zeros(3, 3), 2, 2, seed=0)
    assert (zero.moment(0), zero.moment(1), zero.extreme()) == (1.0, 0.0, (0.0, 0.0))
    assert float(zero.density(torch.linspace(-1, 1, 201)).max()) > 1


# exact: extreme eigenvalues -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("which", ["LA", "SA", "LM", "BE"])
@pytest.mark.parametrize("k", [1, 4, 5])
def test_extreme_eigenvalues_match_dense_ones(which, k):
    A = symmetric(200)
    theta = torch.linalg.eigvalsh(A)
    low = k // 2
    wanted = {
        "LA": theta[-k:],
        "SA": theta[:k],
        "LM": theta[theta.abs().argsort()[-k:]].sort().values,
        "BE": torch.cat([theta[:low], theta[200 - (k - low) :]]),
    }[which].flip(0)
    result = extreme_eigenvalues(A, k, which=which, tol=1e-9, seed=0)
    assert result.converged
    close(result.values, wanted, 1e-10)
    close(torch.linalg.vector_norm(A @ result.vectors - result.vectors * result.values, dim=0), result.residuals, 1e-12)
    assert float(result.residuals.max()) <= 1e-9 * float(theta.abs().max())
    close(result.vectors.T @ result.vectors, torch.eye(k, dtype=torch.float64), 1e-12)


def test_extreme_eigenvalues_of_small_and_degenerate_matrices():
    d = torch.tensor([1.0, 1, 1, 5, 5], dtype=torch.float64)
    assert extreme_eigenvalues(torch.diag(d), 2, seed=0).values.tolist() == pytest.approx([5, 5])
    assert extreme_eigenvalues(torch.diag(d), 5, seed=0).values.tolist() == pytest.approx([5, 5, 1, 1, 1])
    assert extreme_eigenvalues(torch.eye(40), 3, seed=0).values.tolist() == pytest.approx([1, 1, 1])
    zero = extreme_eigenvalues(torch.zeros(30, 30), 2, seed=0)
    assert (zero.values.tolist(), zero.converged) == ([0.0, 0.0], True)
    assert extreme_eigenvalues(torch.tensor([[-3.0]]), 1, seed=0).values.tolist() == [-3.0]
    single = extreme_eigenvalues(symmetric(300, dtype=torch.float32), 3, seed=0)
    assert single.converged
    close(single.values, torch.linalg.eigvalsh(symmetric(300))[-3:].flip(0), 1e-5)
    assert single.vectors.dtype == torch.float32


def test_a_spent_budget_is_told():
    A = aslinearoperator(diagonal_operator(torch.linspace(0, 1, 5000, dtype=torch.float64)))
    with pytest.warns(ConvergenceWarning, match=r"max_matvecs=30.*raise max_matvecs or tol"):
        result = extreme_eigenvalues(A, 3, tol=1e-10, max_matvecs=30, seed=0)
    assert not result.converged
    assert result.num_matvecs <= 30
    assert A.n_products == result.num_matvecs + 2
    assert float(result.residuals.max()) > 1e-10
    assert result.values.shape == (3,)
    assert result.vectors.shape == (5000, 3)


def test_restarts_find_what_one_basis_cannot():
    d = torch.linspace(0, 1, 3000, dtype=torch.float64) ** 4
    result = extreme_eigenvalues(diagonal_operator(d), 2, tol=1e-8, seed=0)
    assert result.converged
    assert result.num_matvecs > 25
    close(result.values, d[-2:].flip(0), 1e-12)


# properties ---------------------------------------------------------------------------------------------------------


def test_a_model_from_all_sides():
    model, X, y = mlp(), targets("real", 30, 4, 5), targets("classes", 30, 3)
    exact = dense_hessian(model, nn.CrossEntropyLoss(), X, y)
    theta = torch.linalg.eigvalsh(exact)
    H = HessianOperator(model, nn.CrossEntropyLoss(), (X, y))
    assert extreme_eigenvalues(H, which="BE", k=2, seed=0).values.tolist() == pytest.approx(
        [float(theta[-1]), float(theta[0])], abs=1e-8
    )
    assert slq(H, 30, 2, seed=0).extreme() == pytest.approx((float(theta[0]), float(theta[-1])), abs=1e-6)
    assert trace(H, 43 * 3, seed=0).value == pytest.approx(float(exact.trace()), rel=1e-10)
    assert frobenius_norm(H, method="exact").value == pytest.approx(float(exact.norm()), rel=1e-12)


def test_same_seed_same_bits():
    A = symmetric(30)
    for run in (
        lambda s: trace(A, 9, seed=s).value,
        lambda s: frobenius_norm(A, 9, seed=s).value,
        lambda s: lanczos(A, 9, seed=s).alpha.tolist(),
        lambda s: slq(A, 5, 2, seed=s).nodes.tolist(),
        lambda s: extreme_eigenvalues(A, seed=s).vectors.tolist(),
    ):
        assert run(4) == run(4) == run(gen(4))
        assert run(4) != run(5)


def test_numpy_sparse_and_half_precision_operators():
    import scipy.sparse as sp

    M = symmetric(40)
    for A in (M.numpy(), sp.csr_matrix(M.numpy())):
        assert trace(A, method="exact").value == pytest.approx(float(M.trace()), rel=1e-12)
        close(lanczos(A, 40, seed=0).ritz_values(), torch.linalg.eigvalsh(M), 1e-11)
        assert isinstance(slq(A, 5, 2, seed=0).nodes, torch.Tensor)
        assert extreme_eigenvalues(A, seed=0).values.tolist() == pytest.approx([float(torch.linalg.eigvalsh(M)[-1])])
    low = M.to(torch.bfloat16)
    assert trace(low, 90, seed=0).value == pytest.approx(float(M.trace()), abs=0.3)
    assert lanczos(low, 20, seed=0).Q.dtype == torch.float32
    assert abs(slq(low, 20, 3, seed=0).extreme()[1] - float(torch.linalg.eigvalsh(M)[-1])) < 0.05


# misuse -------------------------------------------------------------------------------------------------------------


def test_misuse():
    A = symmetric(10)
    skew = torch.triu(A)
    for call in (lambda A: lanczos(A, 3, seed=0), lambda A: slq(A, 3, 1, seed=0), extreme_eigenvalues):
        with pytest.raises(ValueError, match=r"A must be symmetric.*check_symmetric=False"):
            call(skew)
        with pytest.raises(ValueError, match="A must be square"):
            call(torch.ones(3, 4))
        with pytest.raises(ValueError, match="A must be real"):
            call(torch.eye(3, dtype=torch.complex64))
    lanczos(skew, 3, check_symmetric=False, seed=0)
    for call, text in (
        (lambda: trace(A, 2), "num_matvecs must be an integer >= 3, got 2"),
        (lambda: trace(A, 0, method="hutchinson"), "num_matvecs must be an integer >= 1"),
        (lambda: trace(A, method="xtrace"), "method must be one of"),
        (lambda: trace(torch.ones(2, 3)), "A must be square"),
        (lambda: frobenius_norm(A, 0), "num_matvecs must be an integer >= 1"),
        (lambda: lanczos(A, 0), "num_steps must be an integer >= 1"),
        (lambda: lanczos(A, 3, torch.ones(4)), r"v0 must be of shape \(10,\)"),
        (lambda: lanczos(A, 3, reorthogonalize="selective"), "reorthogonalize must be one of"),
        (lambda: slq(A, 3, 0), "num_probes must be an integer >= 1"),
        (lambda: slq(A, 3, 1, distribution="uniform"), "distribution must be one of"),
        (lambda: extreme_eigenvalues(A, 11), r"k must be an integer in \[1, 10\]"),
        (lambda: extreme_eigenvalues(A, which="BA"), "which must be one of"),
        (lambda: extreme_eigenvalues(A, 3, max_matvecs=5), "max_matvecs must be an integer >= 6"),
        (lambda: slq(A, 3, 1, seed=0).density(torch.tensor([1.0, 0.0])), "grid must be one-dimensional, ascending"),
        (lambda: slq(A, 3, 1, seed=0).density(torch.tensor([100.0, 101.0])), "grid must be over the spectrum"),
        (lambda: slq(A, 3, 1, seed=0).quantile(1.5), r"q must be a number in \[0, 1\]"),
    ):
        with pytest.raises(ValueError, match=text):
            call()
    with pytest.raises(TypeError, match="num_steps must be an integer"):
        lanczos(A, 2.5)
    with pytest.raises(RuntimeError, match="reorthogonalize='full'"):
        lanczos(A, 3, reorthogonalize="none", seed=0).ritz_pairs()


def test_products_that_are_not_finite_name_their_step():
    for call, step in (
        (lambda A: lanczos(A, 9, check_symmetric=False, seed=0), "step 3"),
        (lambda A: slq(A, 9, 2, check_symmetric=False, seed=0), "step 3"),
        (lambda A: extreme_eigenvalues(A, check_symmetric=False, seed=0), "step 4"),
        (lambda A: trace(A @ torch.ones(10, 1, dtype=torch.float64) is None or refuses(0), 9, seed=0), "product 0"),
        (lambda A: trace(refuses(1), 9, seed=0), "product 3"),
        (lambda A: trace(refuses(2), 9, seed=0), "product 6"),
        (lambda A: frobenius_norm(refuses(0), 9, seed=0), "product 0"),
    ):
        with pytest.raises(FloatingPointError, match=step):
            call(refuses())
    with pytest.raises(FloatingPointError, match="f is not finite"):
        slq(-torch.eye(3, dtype=torch.float64), 2, 1, seed=0).trace_of(torch.log)
