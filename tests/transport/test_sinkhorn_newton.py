"""Tests of Sinkhorn-Newton-Sparse: exact algebra, differences, POT, what callers may pass."""

import math

import numpy as np
import ot
import pytest
import torch
from scipy import sparse

from steepest.core.errors import ConvergenceWarning
from steepest.transport import _kernel, _newton_system, sinkhorn_newton_sparse, sinkhorn_newton_sparse_many
from steepest.transport._arguments import Options, reduce_problem
from steepest.transport._curve import Curve
from steepest.transport._dual import Dual
from steepest.transport._kernel import Kernel, sinkhorn_sweeps
from steepest.transport._parts import Parts, best_shifts, strongest_links
from steepest.transport.sinkhorn_newton import _Run

PAPER = {"anneal": None, "adaptive": False, "damping": 0.0, "linear_solver": "cg"}


def problem(n=30, m=25, seed=0, mass=1.0):
    rng = np.random.default_rng(seed)
    a, b = rng.random(n) + 0.1, rng.random(m) + 0.1
    return mass * a / a.sum(), mass * b / b.sum(), rng.random((n, m))


def error(P, a, b):
    return (np.abs(P.sum(1) - a).sum() + np.abs(P.sum(0) - b).sum()) / a.sum()


# --------------------------------------------------------------------------------------------------------------- exact


def test_two_by_two_in_closed_form():
    M, reg = np.array([[0.0, 1.0], [1.0, 0.0]]), 0.3
    P = sinkhorn_newton_sparse([], [], M, reg, stopThr=1e-14)
    e = math.exp(-1 / reg)
    np.testing.assert_allclose(P, np.array([[1, e], [e, 1]]) / (2 + 2 * e), rtol=1e-13)


@pytest.mark.parametrize(
    "options", [{}, PAPER | {"sparsity": 0.5}, {"linear_solver": "direct"}, {"linear_solver": "cg"}]
)
@pytest.mark.parametrize("shape", [(30, 25), (20, 41)])
def test_plans_potentials_and_dual_agree_with_a_log_domain_sinkhorn(options, shape):
    a, b, M = problem(*shape, mass=2.5)
    M = M - 0.7
    P, log = sinkhorn_newton_sparse(a, b, M, 0.02, stopThr=1e-13, log=True, **options)
    reference = 2.5 * ot.bregman.sinkhorn_log(a / 2.5, b / 2.5, M, 0.02, stopThr=1e-15, numItermax=20000)
    np.testing.assert_allclose(P, reference, atol=2e-13)
    assert error(P, a, b) < 1e-13
    np.testing.assert_allclose(np.exp(log["log_u"][:, None] + log["log_v"] - M / 0.02), P, rtol=1e-11)
    assert log["cost"] == pytest.approx((P * M).sum(), rel=1e-14)
    primal = (P * M).sum() + 0.02 * (P * (np.log(P) - 1)).sum()
    assert log["dual"] == pytest.approx(primal, rel=1e-11)
    assert log["niter"] == log["n_sinkhorn"] + log["n_newton"] == len(log["err"])
    for name in ("cg_iterations", "sparsity", "step_size"):
        assert len(log[name]) == log["n_newton"]
    assert 1 <= len(log["err_newton"]) <= log["n_newton"] + 1
    assert log["converged"] is True
    assert log["warn"] is False


def test_small_reg_approaches_the_unregularized_cost():
    a, b, M = problem(40, 40)
    P, log = sinkhorn_newton_sparse(a, b, M, 1e-4, stopThr=1e-12, log=True)
    exact = ot.emd2(a, b, M)
    assert exact <= log["cost"] <= exact + 1e-4 * math.log(1600)
    assert error(P, a, b) < 1e-12


def test_direction_is_that_of_the_dense_system():
    rng = np.random.default_rng(0)
    for shape in ((9, 6), (6, 9)):
        P = rng.random(shape)
        r, c = P.sum(1), P.sum(0)
        B = np.where(P > 0.3, P, 0)
        g, h = rng.standard_normal(shape[0]), rng.standard_normal(shape[1])
        h += (g.sum() - h.sum()) * c / c.sum()
        A = np.block([[1.1 * np.diag(r), B], [B.T, 1.1 * np.diag(c)]])
        z = np.linalg.solve(A, np.r_[g, h])
        k = (r @ z[: shape[0]] - c @ z[shape[0] :]) / (2 * r.sum())
        exact = z + k * np.r_[-np.ones(shape[0]), np.ones(shape[1])]
        for solver in ("cg", "direct"):
            for matrix in (B, sparse.csr_array(B)):
                du, dv, n_cg, direct = _newton_system.newton_direction(
                    matrix, r, c, g, h, damping=0.1, solver=solver, cg_tol=1e-13, cg_maxiter=None
                )
                np.testing.assert_allclose(np.r_[du, dv], exact, atol=1e-11)
                assert direct == (solver == "direct")
                assert (n_cg > 0) == (solver == "cg")


def test_the_sparse_factorization_and_singular_systems():
    n = 300
    P = sparse.diags_array([0.5, 1.0, 0.5], offsets=[-1, 0, 1], shape=(n, n), format="csr")
    r, c = P.sum(axis=1), P.sum(axis=0)
    g, h = np.sin(np.arange(n)), np.cos(np.arange(n))
    h += (g.sum() - h.sum()) / n
    du, dv, _, direct = _newton_system.newton_direction(
        P, r, c, g, h, damping=0.0, solver="direct", cg_tol=1e-6, cg_maxiter=None
    )
    assert direct
    np.testing.assert_allclose(r * du + P @ dv, g, atol=1e-9)
    np.testing.assert_allclose(P.T @ du + c * dv, h, atol=1e-9)
    apart = np.eye(4)  # four parts that nothing connects
    du, dv, _, _ = _newton_system.newton_direction(
        apart, np.ones(4), np.ones(4), g[:4], g[:4], damping=0.0, solver="direct", cg_tol=1e-6, cg_maxiter=None
    )
    np.testing.assert_allclose(du + dv, g[:4], atol=1e-10)


def test_auto_factors_when_conjugate_gradients_do_not_converge():
    a, b, M = problem(60, 60)
    _, log = sinkhorn_newton_sparse(a, b, M, 1e-3, cg_maxiter=2, stopThr=1e-12, log=True)
    assert log["n_direct"] == log["n_newton"] > 0
    assert log["cg_iterations"][0] == 2
    assert sum(log["cg_iterations"]) == 2
    assert log["converged"]


def test_kept_entries_are_the_largest_and_as_many_as_needed():
    P = np.random.default_rng(0).random((20, 30)) ** 8
    for sparsity in (0.01, 0.1, 0.5):
        kept = _newton_system.largest_entries(P, sparsity, None)
        assert len(kept.places) == math.ceil(sparsity * 600)
        assert P.ravel()[kept.places].min() >= np.delete(P.ravel(), kept.places).max()
    np.testing.assert_array_equal(kept.matrix().toarray(), np.where(P.ravel()[kept.places].min() <= P, P, 0))
    P, allowed = P**4, 0.1 * (P**4).sum()
    more = _newton_system.largest_entries(P, 0.01, allowed)
    assert P.sum() - more.matrix().sum() <= allowed
    assert 0.01 < more.density <= 0.2
    assert _newton_system.largest_entries(np.ones((5, 5)), 0.1, 0.0).density == 1
    assert _newton_system.largest_entries(P, 0.01, 0.0).matrix() is P


def test_sweeps_are_those_of_the_log_domain(monkeypatch):
    a, b, M = problem(12, 9)
    C = M / 0.003
    monkeypatch.setattr(_kernel, "BLOCK", 20)  # several blocks, and columns that underflow
    for absorb in (2, 100):
        monkeypatch.setattr(_kernel, "ABSORB_EACH", absorb)
        u, v, errors = sinkhorn_sweeps(Kernel(C.copy()), a, b, np.zeros(9), 7, scale=0.5)
        x, y = np.zeros(12), np.zeros(9)
        for _ in range(7):
            x = np.log(a) - np.log(np.exp(y - C / 2).sum(1))
            y = np.log(b) - np.log(np.exp(x[:, None] - C / 2).sum(0))
        np.testing.assert_allclose(u[:, None] + v, x[:, None] + y, atol=1e-10)
        assert len(errors) == 7
        P = np.exp(u[:, None] + v - C / 2)
        assert errors[-1] == pytest.approx(np.abs(P.sum(1) - a).sum(), rel=1e-8)


def test_sweeps_survive_columns_that_underflow():
    C = np.array([[0.0, 5000.0], [1.0, 6000.0]])
    a = b = np.array([0.5, 0.5])
    u, v, errors = sinkhorn_sweeps(Kernel(C.copy()), a, b, np.zeros(2), 3)
    assert np.isfinite(u).all()
    assert np.isfinite(v).all()
    np.testing.assert_allclose(np.exp(u[:, None] + v - C).sum(0), b, rtol=1e-12)
    assert np.isfinite(errors).all()


@pytest.mark.parametrize("scale", [1.0, 0.5])
def test_points_of_the_dual_by_dense_algebra(scale):
    a, b, M = problem(8, 6)
    dual = Dual(a, b, M / 0.05)
    dual.scale = scale
    u, v = np.log(a) + 0.1 * np.sin(np.arange(8)), np.log(b) + 0.1 * np.cos(np.arange(6))

    def plan(u, v):
        return np.exp(u[:, None] + v - scale * M / 0.05)

    point = dual.at(u, v)
    P = plan(u, v)
    np.testing.assert_allclose(point.r, P.sum(1), rtol=1e-12)
    assert point.err == pytest.approx(np.abs(P.sum(1) - a).sum() + np.abs(P.sum(0) - b).sum())
    swept = dual.at(u, v, point, sweep=True)
    x = a / P.sum(1)
    y = b / (x @ P)
    np.testing.assert_allclose(np.exp(swept.u - u), x, rtol=1e-12)
    np.testing.assert_allclose(np.exp(swept.v - v), y, rtol=1e-12)
    np.testing.assert_allclose(swept.c, b, rtol=1e-12)
    assert swept.before == pytest.approx(point.err)
    values = [a @ w + b @ z - plan(w, z).sum() for w, z in ((u, v), (swept.u, swept.v))]
    assert swept.gain == pytest.approx(values[1] - values[0], rel=1e-9)
    dual.fill(point)
    np.testing.assert_allclose(dual.kernel.P, P, rtol=1e-12)
    assert dual.at(u + 1e3, v) is None


def test_the_curve_starts_along_the_step_and_bends_by_asinh_on_weak_links():
    rng = np.random.default_rng(0)
    P = rng.random((5, 4))
    du, dv = rng.standard_normal(5), rng.standard_normal(4)
    curve = Curve(sparse.csr_array(P), du, dv)
    small = 1e-5
    pu, pv = curve(small)
    np.testing.assert_allclose(np.add.outer(pu, pv) / small, np.add.outer(du, dv), atol=1e-8)
    weak = np.array([[1.0, 1e-9, 0.0], [0.0, 1.0, 1e-6], [0.0, 0.0, 1.0]])  # a chain of three parts
    w = np.array([1e8, 1e3, 0.0])
    pu, pv = Curve(sparse.csr_array(weak), w, -w)(1.0)
    np.testing.assert_allclose(pu + pv, 0, atol=1e-12)
    np.testing.assert_allclose(np.diff(pu), [-np.arcsinh(1e8 - 1e3), -np.arcsinh(1e3)], rtol=1e-12)
    apart, _ = Curve(sparse.csr_array(np.eye(2)), np.array([5.0, 3.0]), np.zeros(2))(1.0)
    np.testing.assert_allclose(apart, np.arcsinh([5.0, 3.0]))


def test_parts_are_what_the_weakest_links_connect():
    weak = np.array([[1.0, 1e-9, 0.0], [0.0, 1.0, 1e-6], [0.0, 0.0, 1.0]])  # a chain of three parts
    tree = strongest_links(sparse.csr_array(weak))
    np.testing.assert_allclose(np.sort(tree.data), 1 - np.log([1, 1, 1, 1e-6, 1e-9]), rtol=1e-12)
    for count, expected in ((1, [0, 0, 0]), (2, [0, 1, 1]), (3, [0, 1, 2]), (6, [0, 1, 2])):
        parts = Parts(tree, 3, count)
        if count < 6:
            np.testing.assert_array_equal(parts.rows, expected)
            np.testing.assert_array_equal(parts.columns, expected)
        else:
            assert parts.count == 6


def test_the_shift_of_two_parts_is_the_root_of_a_quadratic():
    up, down, d = 1e-9, 3e-4, 0.1  # 0.1 - 1e-9 e^s + 3e-4 e^-s = 0
    s, steps = best_shifts(np.array([[5.0, up], [down, 7.0]]), np.array([d, -d]))
    x = (d + np.sqrt(d**2 + 4 * up * down)) / (2 * up)
    assert s[0] - s[1] == pytest.approx(np.log(x), abs=1e-2)
    assert 1 < steps < 30
    assert s.sum() == pytest.approx(0, abs=1e-12)


def test_shifts_are_stationary_for_the_plan_and_leave_parts_as_they_are():
    rng = np.random.default_rng(0)
    P = np.kron(np.diag([1e-1, 1e-2, 1e-3]), rng.random((3, 4))) + 1e-6 * rng.random((9, 12))
    a, b = rng.random(9), rng.random(12)
    b *= a.sum() / b.sum()
    parts = Parts(strongest_links(sparse.csr_array(P)), 9, 3)
    np.testing.assert_array_equal(parts.rows, np.repeat([0, 1, 2], 3))
    du, dv, steps = parts.shifts(P, a, b)
    moved = P * np.exp(du[:, None] + dv)
    np.testing.assert_allclose(moved[:3, :4], P[:3, :4], rtol=1e-12)
    out = [(a - moved.sum(1))[parts.rows == k].sum() - (b - moved.sum(0))[parts.columns == k].sum() for k in range(3)]
    before = [(a - P.sum(1))[parts.rows == k].sum() - (b - P.sum(0))[parts.columns == k].sum() for k in range(3)]
    assert np.abs(out).sum() <= 1e-2 * np.abs(before).sum()
    assert steps > 1


def test_parts_that_nothing_connects_stay_finite():
    s, _ = best_shifts(np.diag([1.0, 2.0]), np.array([1e-3, -1e-3]))
    assert np.isfinite(s).all()


# ---------------------------------------------------------------------------------------------------------- convergence


def test_the_papers_setting_on_random_assignment():
    n = 200
    M = np.random.default_rng(1).random((n, n))
    P, log = sinkhorn_newton_sparse([], [], M, 1 / 1200, sparsity=15 / n, stopThr=1e-12, log=True, **PAPER)
    assert log["n_sinkhorn"] == 20
    assert log["n_newton"] <= 15
    assert set(log["sparsity"]) == {15 / n}
    assert error(P, np.full(n, 1 / n), np.full(n, 1 / n)) < 1e-12
    e = [x for x in log["err_newton"] if x > 1e-13]
    assert math.log(e[-1] / e[-2]) < 1.3 * math.log(e[-2] / e[-3])  # superlinear


def test_the_path_of_entropies_starts_each_on_the_line_through_the_last_two():
    """With one optimal plan the potentials are nearly a line in the entropy: the guess at the next is close."""
    a, b, M = problem(20, 20)
    C = M - M.min()
    options = Options.checked(
        reg=1.0, n_sinkhorn=None, anneal=4.0, sparsity=None, adaptive=True, forcing=0.1, damping=1e-3, log=True,
        linear_solver="auto", cg_tol=1e-6, cg_maxiter=None, numItermax=1000, stopThr=1e-12, verbose=False, warn=True,
    )  # fmt: skip
    run = _Run(reduce_problem(a, b, M, 0.0002), options, None)
    assert run._entropies() == pytest.approx([C.max() / 0.0002 / 4**k for k in range(6)] + [1.0])
    exact = {}
    for t in (4.0, 2.0, 1.0):
        _, log = sinkhorn_newton_sparse(a, b, C, 0.0002 * t, stopThr=1e-13, log=True)
        exact[t] = log["log_u"] * t, log["log_v"] * t
    run.path = [(t, *exact[t]) for t in (4.0, 2.0)]
    u, v = run._predicted(1.0)
    true = np.add.outer(*exact[1.0])
    guess, kept = np.abs(np.add.outer(u, v) - true).max(), np.abs(np.add.outer(*exact[2.0]) - true).max()
    assert guess < 0.25 * kept
    share = (2.0 - 1.0) / (4.0 - 2.0)
    np.testing.assert_allclose(u, exact[2.0][0] + share * (exact[2.0][0] - exact[4.0][0]), rtol=1e-12)
    run.sweeps = 1000  # the budget is spent: no more guesses
    np.testing.assert_array_equal(run._predicted(1.0)[0], exact[2.0][0])


def test_the_path_saves_iterations_on_costs_with_many_plans():
    t = np.arange(14) / 13
    X = np.stack(np.meshgrid(t, t), -1).reshape(-1, 2)
    M = np.linalg.norm(X[:, None] - X, axis=-1)
    rng = np.random.default_rng(3)
    a, b = rng.dirichlet(np.ones(196)), rng.dirichlet(np.ones(196))
    _, log = sinkhorn_newton_sparse(a, b, M, 1 / 3000, stopThr=1e-12, log=True)
    _, direct = sinkhorn_newton_sparse(a, b, M, 1 / 3000, anneal=None, stopThr=1e-12, log=True)
    assert log["converged"]
    assert log["n_sinkhorn"] < 60 + log["n_newton"]  # at most ten an entropy, and one for a curved step
    assert log["n_newton"] < 0.7 * direct["n_newton"]
    assert log["err_newton"][0] < 0.1


def test_costs_with_many_optimal_plans():
    t = np.arange(12) / 11
    X = np.stack(np.meshgrid(t, t), -1).reshape(-1, 2)
    M = np.abs(X[:, None] - X).sum(-1) / 2
    rng = np.random.default_rng(0)
    a, b = rng.dirichlet(np.ones(144)), rng.dirichlet(np.ones(144))
    _, log = sinkhorn_newton_sparse(a, b, M, 1 / 1200, stopThr=1e-12, log=True)
    assert log["converged"]
    assert log["n_newton"] < 60
    assert log["cost"] <= ot.emd2(a, b, M) + math.log(144) / 600


def test_large_entropy_uses_the_dense_plan():
    a, b, M = problem()
    P, log = sinkhorn_newton_sparse(a, b, M, 10.0, n_sinkhorn=1, stopThr=1e-13, log=True)
    assert error(P, a, b) < 1e-13
    if log["n_newton"]:
        assert max(log["sparsity"]) == 1.0


def test_marginals_stay_exact_where_the_exponents_are_large():
    a, b, M = problem(30, 30)
    P, log = sinkhorn_newton_sparse(a, b, M, 3e-5, stopThr=1e-13, log=True)
    assert error(P, a, b) < 2e-13
    assert log["converged"]


def test_a_far_start_is_brought_back():
    a, b, M = problem()
    start = (np.full(30, 500.0), np.full(25, 500.0))
    P, log = sinkhorn_newton_sparse(a, b, M, 0.01, warmstart=start, stopThr=1e-12, log=True)
    assert error(P, a, b) < 1e-12
    start = (200 * np.sin(np.arange(30)), np.zeros(25))
    P, log = sinkhorn_newton_sparse(a, b, M, 0.01, warmstart=start, stopThr=1e-12, log=True)
    assert error(P, a, b) < 1e-12
    P, log = sinkhorn_newton_sparse(a, b, M, 0.01, warmstart=start, stopThr=1e-12, log=True, **PAPER)
    assert log["n_safeguard"] == sum(t == 0 for t in log["step_size"])
    assert len(log["err"]) == log["niter"]


def test_warm_start():
    a, b, M = problem()
    P, log = sinkhorn_newton_sparse(a, b, M, 0.01, stopThr=1e-12, log=True)
    again, short = sinkhorn_newton_sparse(
        a, b, M, 0.01, stopThr=1e-11, log=True, warmstart=(log["log_u"], log["log_v"])
    )
    assert short["niter"] == 0
    np.testing.assert_allclose(again, P, atol=1e-12)
    _, swept = sinkhorn_newton_sparse(
        a, b, M, 0.01, stopThr=1e-16, log=True, warn=False, numItermax=3, n_sinkhorn=3,
        warmstart=(log["log_u"], log["log_v"]),
    )  # fmt: skip
    assert swept["n_sinkhorn"] == 3
    _, theirs = ot.sinkhorn(a, b, M, 0.1, log=True)
    _, ours = sinkhorn_newton_sparse(
        a, b, M, 0.1, log=True, warmstart=(np.log(theirs["u"]), np.log(theirs["v"])), stopThr=1e-6
    )
    assert ours["niter"] == 0


def test_zero_weights():
    a, b, M = problem()
    a[[3, 7]], b[0] = 0, 0
    b *= a.sum() / b.sum()
    P, log = sinkhorn_newton_sparse(a, b, M, 0.01, stopThr=1e-12, log=True)
    assert not P[[3, 7]].any()
    assert not P[:, 0].any()
    assert np.isneginf(log["log_u"][[3, 7]]).all()
    assert log["v"][0] == 0
    inner = sinkhorn_newton_sparse(np.delete(a, [3, 7]), b[1:], np.delete(M, [3, 7], 0)[:, 1:], 0.01, stopThr=1e-12)
    np.testing.assert_allclose(np.delete(P, [3, 7], 0)[:, 1:], inner, atol=1e-15)
    again = sinkhorn_newton_sparse(a, b, M, 0.01, stopThr=1e-11, warmstart=(log["log_u"], log["log_v"]))
    np.testing.assert_allclose(again, P, atol=1e-12)


# --------------------------------------------------------------------------------------------------- kinds and batches


def test_batches_are_a_loop():
    rng = np.random.default_rng(0)
    a, b, M = problem()
    Ms, many_a = rng.random((3, 30, 25)), rng.dirichlet(np.ones(30), 3)
    for args in ((many_a, b, M), (a, b, Ms), (many_a, b, Ms), ([], np.tile(b, (3, 1)), M)):
        P, log = sinkhorn_newton_sparse(*args, 0.01, log=True)
        assert P.shape == (3, 30, 25)
        for k in range(3):
            one = [x[k] if np.ndim(x) == d + 1 else x for x, d in zip(args, (1, 1, 2), strict=True)]
            single, record = sinkhorn_newton_sparse(*one, 0.01, log=True)
            np.testing.assert_array_equal(P[k], single)
            assert log["err"][k] == record["err"]
    starts = (np.stack(log["log_u"]), np.stack(log["log_v"]))
    _, again = sinkhorn_newton_sparse(*args, 0.01, log=True, warmstart=starts, stopThr=1e-8)
    assert again["niter"] == [0, 0, 0]


def test_tensors_give_the_numbers_of_arrays():
    a, b, M = problem()
    P, log = sinkhorn_newton_sparse(a, b, M, 0.01, log=True)
    tensors = [torch.from_numpy(x) for x in (a, b, M)]
    Q, record = sinkhorn_newton_sparse(*tensors, 0.01, log=True)
    assert Q.dtype == torch.float64
    np.testing.assert_array_equal(Q.numpy(), P)
    np.testing.assert_array_equal(record["log_u"].numpy(), log["log_u"])
    batch = sinkhorn_newton_sparse(tensors[0], tensors[1], torch.stack([tensors[2]] * 2), 0.01)
    assert batch.shape == (2, 30, 25)
    uniform = sinkhorn_newton_sparse([], None, tensors[2], 0.01)
    np.testing.assert_allclose(uniform.sum(1).numpy(), 1 / 30, atol=1e-9)
    np.testing.assert_array_equal(tensors[2].numpy(), M)


def test_single_precision_is_solved_in_double_and_rounded():
    a, b, M = (x.astype(np.float32) for x in problem())
    P, log = sinkhorn_newton_sparse(a, b, M, 1e-3, stopThr=1e-12, log=True)
    exact = sinkhorn_newton_sparse(*(x.astype(np.float64) for x in (a, b, M)), 1e-3, stopThr=1e-12)
    assert P.dtype == np.float32
    np.testing.assert_array_equal(P, exact.astype(np.float32))
    assert log["log_u"].dtype == np.float64
    Q = sinkhorn_newton_sparse(*(torch.from_numpy(x) for x in (a, b, M)), 1e-3, stopThr=1e-12)
    assert Q.dtype == torch.float32
    lists = sinkhorn_newton_sparse([0.5, 0.5], [1, 0], [[0, 1], [1, 0]], 0.1)
    np.testing.assert_allclose(lists, [[0.5, 0], [0.5, 0]])


@pytest.mark.slow
@pytest.mark.usefixtures("forked")
def test_many_problems_have_the_same_numbers_in_processes():
    check_many_problems("processes")


@pytest.mark.slow
@pytest.mark.usefixtures("ray")
def test_many_problems_have_the_same_numbers_on_ray():
    check_many_problems("ray")


def check_many_problems(backend):
    problems = [problem(20, 15, seed) for seed in range(3)]
    serial = sinkhorn_newton_sparse_many(problems, 0.01, stopThr=1e-12)
    spread = sinkhorn_newton_sparse_many(problems, 0.01, stopThr=1e-12, backend=backend, num_workers=2)
    for (P, log), (Q, other), given in zip(serial, spread, problems, strict=True):
        np.testing.assert_array_equal(P, Q)
        assert log["err"] == other["err"]
        assert error(P, *given[:2]) < 1e-12


# ------------------------------------------------------------------------------------------------------------ gradients


@pytest.mark.parametrize("reg", [0.05, 0.5])
def test_gradients_by_differences(reg):
    rng = np.random.default_rng(0)
    a, b, M = (torch.from_numpy(x).requires_grad_() for x in problem(7, 6, mass=1.5))
    weight = torch.from_numpy(rng.standard_normal((7, 6)))

    def loss(a, b, M):
        P = sinkhorn_newton_sparse(a, b, M, reg, stopThr=1e-14)
        return (weight * P).sum() + (P**2).sum()

    ga, gb, gM = torch.autograd.grad(loss(a, b, M), (a, b, M))
    h = 1e-5
    move_M = torch.from_numpy(rng.standard_normal((7, 6)))
    move_a, move_b = torch.from_numpy(rng.standard_normal(7)), torch.from_numpy(rng.standard_normal(6))
    move_b += (move_a.sum() - move_b.sum()) / 6
    with torch.no_grad():
        by_M = (loss(a, b, M + h * move_M) - loss(a, b, M - h * move_M)) / (2 * h)
        up = loss(a + h * move_a, b + h * move_b, M)
        by_mass = (up - loss(a - h * move_a, b - h * move_b, M)) / (2 * h)
    assert float((gM * move_M).sum()) == pytest.approx(float(by_M), rel=1e-6)
    assert float(ga @ move_a + gb @ move_b) == pytest.approx(float(by_mass), rel=1e-6)


def test_gradients_by_unrolled_sinkhorn_batches_and_single_precision():
    a, b, M = (torch.from_numpy(x) for x in problem(6, 6))
    M.requires_grad_()
    weight = torch.linspace(-1, 1, 36, dtype=torch.float64).reshape(6, 6)
    (implicit,) = torch.autograd.grad((weight * sinkhorn_newton_sparse(a, b, M, 0.1, stopThr=1e-14)).sum(), M)
    u, v = torch.zeros(6, dtype=torch.float64), torch.zeros(6, dtype=torch.float64)
    for _ in range(300):
        u = a.log() - torch.logsumexp(v - M / 0.1, 1)
        v = b.log() - torch.logsumexp(u[:, None] - M / 0.1, 0)
    (unrolled,) = torch.autograd.grad((weight * torch.exp(u[:, None] + v - M / 0.1)).sum(), M)
    torch.testing.assert_close(implicit, unrolled, atol=1e-9, rtol=1e-8)
    batch = torch.stack([M, M + 0.1])
    (both,) = torch.autograd.grad((weight * sinkhorn_newton_sparse(a, b, batch, 0.1, stopThr=1e-14)).sum(), batch)
    torch.testing.assert_close(both[0], unrolled, atol=1e-9, rtol=1e-8)
    half = M.detach().float().requires_grad_()
    sinkhorn_newton_sparse([], [], half, 0.1).square().sum().backward()
    assert half.grad.dtype == torch.float32
    with torch.no_grad():
        assert not sinkhorn_newton_sparse([], [], half, 0.1).requires_grad


def test_gradients_at_zero_weights_are_those_from_above():
    a, b, M = (torch.from_numpy(x) for x in problem(5, 4))
    a[2], b[1] = 0, 0
    b *= a.sum() / b.sum()
    a, b = a.requires_grad_(), b.requires_grad_()
    weight = torch.linspace(0, 1, 20, dtype=torch.float64).reshape(5, 4)

    def loss(a, b):
        return (weight * sinkhorn_newton_sparse(a, b, M, 0.2, stopThr=1e-14)).sum()

    ga, gb = torch.autograd.grad(loss(a, b), (a, b))
    with torch.no_grad():
        h = 1e-6
        move_a = torch.tensor([-1.0, 0, 1, 0, 0], dtype=torch.float64)
        difference = (loss(a + h * move_a, b) - loss(a, b)) / h
        assert float(ga @ move_a) == pytest.approx(float(difference), rel=1e-4)
        move_b = torch.tensor([0, 1.0, 0, -1], dtype=torch.float64)
        difference = (loss(a, b + h * move_b) - loss(a, b)) / h
        assert float(gb @ move_b) == pytest.approx(float(difference), rel=1e-4)


# --------------------------------------------------------------------------------------------------------------- misuse


def test_not_converged_is_said_and_the_best_iterate_returned():
    a, b, M = problem()
    with pytest.warns(ConvergenceWarning, match="numItermax=5"):
        P, log = sinkhorn_newton_sparse(a, b, M, 1e-3, numItermax=5, log=True)
    assert log["converged"] is False
    assert log["warn"] is True
    assert log["niter"] == 5
    assert np.isfinite(P).all()
    _, quiet = sinkhorn_newton_sparse(a, b, M, 1e-3, numItermax=150, stopThr=0.0, log=True, warn=False)
    assert quiet["err_newton"][-1] == min(quiet["err_newton"])


@pytest.mark.parametrize(
    ("change", "error_type", "match"),
    [
        ({"a": np.full(30, np.nan)}, ValueError, "a must be finite and >= 0"),
        ({"b": -np.ones(25)}, ValueError, "b must be finite and >= 0"),
        ({"a": np.ones(29)}, ValueError, r"a must be of shape \(30,\)"),
        ({"a": np.zeros(30)}, ValueError, "a must be with some mass"),
        ({"b": np.full(25, 1 / 24)}, ValueError, "b must be of a's total mass"),
        ({"M": np.full((30, 25), np.inf)}, ValueError, "M must be finite"),
        ({"M": np.ones(30)}, ValueError, r"M must be of shape \(n, m\)"),
        ({"M": np.ones((2, 30, 25)), "a": np.full((3, 30), 1 / 30)}, ValueError, "one batch size"),
        ({"M": "costs"}, TypeError, "M must be"),
        ({"M": np.ones((30, 25), complex)}, TypeError, "M must be an array of real numbers"),
        ({"M": [[1.0], [1.0, 2.0]]}, ValueError, "rectangular"),
        ({"M": torch.ones(30, 25)}, TypeError, r"a must be of M's kind \(Tensor\)"),
        ({"M": torch.ones(30, 25, dtype=torch.int64)}, TypeError, "floating-point"),
        ({"M": torch.ones(30, 25, device="meta")}, TypeError, "M must be on the CPU"),
        ({"reg": 0.0}, ValueError, "reg must be > 0"),
        ({"reg": float("inf")}, ValueError, "reg must be"),
        ({"reg": 1e-320}, ValueError, "reg must be so large"),
        ({"sparsity": 0.0}, ValueError, "sparsity must be"),
        ({"sparsity": 1.5}, ValueError, "sparsity must be"),
        ({"anneal": 1.0}, ValueError, "anneal must be > 1"),
        ({"anneal": True}, TypeError, "anneal must be"),
        ({"n_sinkhorn": -1}, ValueError, "n_sinkhorn must be"),
        ({"linear_solver": "lu"}, ValueError, "linear_solver must be one of 'auto', 'cg', 'direct'"),
        ({"warmstart": np.zeros(30)}, ValueError, "warmstart must be a pair"),
        ({"warmstart": (np.zeros(29), np.zeros(25))}, ValueError, "log_u must be of shape"),
        ({"warmstart": (np.full(30, np.nan), np.zeros(25))}, ValueError, "log_u must be finite"),
    ],
)
def test_bad_input(change, error_type, match):
    a, b, M = problem()
    arguments = {"a": a, "b": b, "M": M, "reg": 0.1} | change
    with pytest.raises(error_type, match=match):
        sinkhorn_newton_sparse(**arguments)
    with pytest.raises(TypeError, match="log is not an option"):
        sinkhorn_newton_sparse_many([], 0.1, log=True)


def test_arguments_are_not_changed_and_global_generators_not_touched():
    a, b, M = problem()
    a *= 1 + 1e-8
    before = [x.copy() for x in (a, b, M)]
    state, torch_state = np.random.get_state()[1].copy(), torch.get_rng_state()
    P = sinkhorn_newton_sparse(a, b, M, 0.01, sparsity=1.0, stopThr=1e-12)
    assert np.abs(P.sum(1) - a).sum() < 1e-11
    for x, y in zip((a, b, M), before, strict=True):
        np.testing.assert_array_equal(x, y)
    np.testing.assert_array_equal(state, np.random.get_state()[1])
    assert torch.equal(torch_state, torch.get_rng_state())


def test_verbose_prints_a_line_for_each_step(capsys):
    a, b, M = problem()
    _, log = sinkhorn_newton_sparse(a, b, M, 1e-3, verbose=True, log=True)
    assert capsys.readouterr().out.count("err") == log["n_newton"] > 0
