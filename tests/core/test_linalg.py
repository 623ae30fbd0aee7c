from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.sparse import linalg as sparse

from steepest.core.errors import ConvergenceWarning
from steepest.core.linalg import cg, cholesky_solve, operator_norm


def spd(n, seed=0, condition=1e3):
    g = torch.Generator().manual_seed(seed)
    Q = torch.linalg.qr(torch.randn(n, n, generator=g, dtype=torch.float64)).Q
    return Q @ torch.diag(torch.logspace(0, np.log10(condition), n, dtype=torch.float64)) @ Q.T


@pytest.mark.parametrize("k", [None, 1, 5])
def test_cg_solves_all_columns(k):
    A = spd(40)
    b = torch.randn(*((40,) if k is None else (40, k)), generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    x, info = cg(A, b, rtol=1e-12, maxiter=400)
    assert info == 0
    assert x.shape == b.shape
    assert torch.allclose(x, torch.linalg.solve(A, b), rtol=1e-8, atol=1e-10)


def test_cg_takes_the_steps_of_scipy():
    A, b = spd(30), torch.linspace(-1, 1, 30, dtype=torch.float64)
    ours, theirs = [], []
    cg(A, b, rtol=1e-8, callback=lambda x: ours.append(x.clone()))
    sparse.cg(A.numpy(), b.numpy(), rtol=1e-8, callback=lambda x: theirs.append(x.copy()))
    assert abs(len(ours) - len(theirs)) <= 1
    for x, y in zip(ours[:10], theirs[:10], strict=True):
        assert np.allclose(x, y, rtol=1e-6, atol=1e-10)


def test_cg_finishes_in_as_many_steps_as_distinct_eigenvalues():
    A = torch.diag(torch.tensor([1.0, 1.0, 4.0, 4.0, 9.0], dtype=torch.float64))
    steps = []
    x, info = cg(A, torch.ones(5, dtype=torch.float64), rtol=1e-12, callback=lambda x: steps.append(1))
    assert (info, len(steps)) == (0, 3)
    assert torch.allclose(x, 1 / A.diagonal())


def test_cg_preconditioner_start_and_columns_that_converge_early():
    A = torch.diag(torch.logspace(0, 8, 50, dtype=torch.float64))
    b = torch.ones(50, 2, dtype=torch.float64)
    x, info = cg(A, b, rtol=1e-12, maxiter=3, M=lambda r: r / A.diagonal()[:, None])
    assert info == 0
    assert torch.allclose(x, b / A.diagonal()[:, None])
    b[:, 1] = 0
    x, info = cg(spd(50), b, rtol=1e-10, maxiter=500)
    assert info == 0
    assert (x[:, 1] == 0).all()
    exact = torch.linalg.solve(spd(50), b)
    assert cg(spd(50), b, exact, rtol=1e-8)[0].equal(exact)


def test_cg_says_when_the_budget_ran_out():
    x, info = cg(spd(50, condition=1e8), torch.ones(50, dtype=torch.float64), rtol=1e-12, maxiter=7)
    assert info == 7
    assert torch.isfinite(x).all()


def test_cg_refuses_what_it_cannot_solve():
    b = torch.ones(2)
    with pytest.raises(ValueError, match="A must be positive definite"):
        cg(torch.diag(torch.tensor([1.0, -1.0])), b)
    with pytest.raises(ValueError, match=r"A must be of shape \(2, 2\)"):
        cg(torch.eye(3), b)
    with pytest.raises(ValueError, match="x0 must be of b's shape"):
        cg(torch.eye(2), b, torch.ones(3))
    with pytest.raises(FloatingPointError, match="iteration 0"):
        cg(torch.full((2, 2), torch.nan), b)
    with pytest.raises(ValueError, match="rtol must be >= 0"):
        cg(torch.eye(2), b, rtol=-1.0)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_cg_does_not_call_a_right_hand_side_solved_that_is_not_finite(value):
    """It once gave back the start with info 0: no residual is larger than a limit of NaN or infinity."""
    b = torch.tensor([1.0, value], dtype=torch.float64)
    for x0 in (None, torch.ones(2, dtype=torch.float64)):
        with pytest.raises(FloatingPointError, match="b or the first residual"):
            cg(torch.eye(2, dtype=torch.float64), b, x0=x0)


def test_cholesky_refinement_gains_digits():
    A = spd(60, condition=1e6).float()
    b = torch.ones(60)
    exact = torch.linalg.solve(A.double(), b.double())
    error = [float((cholesky_solve(A, b, refine=k).double() - exact).norm() / exact.norm()) for k in (0, 1)]
    assert error[1] <= error[0]
    assert error[1] < 0.05
    A64 = spd(60)
    B = torch.ones(60, 3, dtype=torch.float64)
    assert torch.allclose(A64 @ cholesky_solve(A64, B), B, atol=1e-10)


def test_cholesky_names_the_matrix_that_is_not_positive_definite():
    with pytest.raises(torch.linalg.LinAlgError, match="K is not positive definite: its leading minor 2"):
        cholesky_solve(torch.diag(torch.tensor([1.0, -1.0])), torch.ones(2), name="K")


def test_operator_norm_converges_to_the_largest_singular_value():
    A = torch.randn(20, 30, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    exact = float(torch.linalg.matrix_norm(A, 2))
    assert operator_norm(A, seed=1, rtol=1e-10, maxiter=20000) == pytest.approx(exact, rel=1e-6)
    by_products = operator_norm(lambda v: A @ v, 30, adjoint=lambda w: A.T @ w, seed=1, rtol=1e-10, maxiter=20000)
    assert by_products == pytest.approx(exact, rel=1e-6)
    assert operator_norm(torch.zeros(3, 3)) == 0.0
    assert operator_norm(torch.diag(torch.tensor([1.0, -7.0])), seed=0) == pytest.approx(7.0, rel=1e-3)


def test_operator_norm_says_when_it_has_not_settled():
    A = torch.diag(torch.tensor([1.0, 0.9999], dtype=torch.float64))
    with pytest.warns(ConvergenceWarning, match="raise maxiter"):
        operator_norm(A, seed=0, rtol=1e-14, maxiter=3)
    with pytest.raises(ValueError, match="n must be given"):
        operator_norm(lambda v: v)
    with pytest.raises(FloatingPointError, match="not finite"):
        operator_norm(torch.full((2, 2), torch.nan))
