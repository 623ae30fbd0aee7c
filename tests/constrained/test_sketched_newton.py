"""Sketched Newton against dense algebra and differences; its promises at every step; SciPy's convention; misuse."""

import inspect
import logging
import math
import pickle

import numpy as np
import pytest
import torch
from scipy import sparse
from scipy.optimize import BFGS, LinearConstraint, NonlinearConstraint, minimize
from scipy.sparse.linalg import aslinearoperator

from steepest.constrained import _kkt as kkt
from steepest.constrained import _merit as formulas
from steepest.constrained import sketched_newton
from steepest.constrained._problem import Problem
from steepest.studies.test_problems import PROBLEMS, control_problem, logistic_problem
from tests.checks import solver as checks

TABLE = {p.name: p for p in PROBLEMS}
SKETCHES = ("gaussian", "kaczmarz", "sparse", "srht")


def solve(p, **options):
    options = {"random_state": 0} | options
    return sketched_newton(p.fun, p.x0, jac=p.jac, hess=p.hess, constraints=p.constraints, **options)


def circle(hess=None):
    return NonlinearConstraint(
        lambda x: x @ x - 1, 0, 0, jac=lambda x: 2 * x[None], hess=lambda x, v: 2 * v[0] * np.eye(len(x))
    )


# ---------------------------------------------------------------------------------------------------------------- exact


@pytest.mark.parametrize("name", ["HS78", "HS77", "HS111LNP"])
def test_a_nearly_exact_step_is_that_of_the_dense_kkt_system(name):
    p = TABLE[name]
    x = np.asarray(p.x0, dtype=float)
    lam = np.linspace(0.2, 0.6, p.m)
    r = solve(p, maxiter=1, theta=1e-9, delta=1e-4, lam0=lam)
    H = p.hess(x) + p.constraint_hess(x, lam)
    G = p.constraint_jac(x)
    B = H + r.history["shift"][0] * np.eye(p.n)
    b = -np.r_[p.jac(x) + G.T @ lam, p.constraint(x)]
    z = np.linalg.solve(np.block([[B, G.T], [G, np.zeros((p.m, p.m))]]), b)
    alpha = r.history["alpha"][0]
    np.testing.assert_allclose(r.x, x + alpha * z[: p.n], atol=1e-8)
    np.testing.assert_allclose(r.lam, lam + alpha * z[p.n :], atol=1e-8)
    assert r.history["residual"][0] <= 1e-12
    assert r.history["kkt"][0] == pytest.approx(np.linalg.norm(b), rel=1e-13)


def test_the_shift_is_there_where_the_reduced_hessian_is_not_positive():
    def run(curvature):
        H = np.diag([curvature, 5.0])  # null space of G: the first coordinate
        return sketched_newton(
            lambda x: x @ H @ x / 2, [1.0, 1.0], jac=lambda x: H @ x, hess=lambda x: H, maxiter=1, random_state=0,
            constraints=LinearConstraint([[0.0, 1.0]], 0, 0), xi_B=0.25,
        ).history["shift"]  # fmt: skip

    assert run(1.1e-6) == [0.0]
    for form in (np.asarray, sparse.csr_array):  # what is negative on the row space alone does not matter
        H, G = np.diag([1.0, 2.0, 3.0, -5.0]), np.array([[0.0, 0, 0, 1]])
        assert formulas.reduced_smallest(form(H), form(G), 0) == pytest.approx(1.0, rel=1e-6)
    assert run(0.9e-6) == [pytest.approx(0.25 + 5.0)]
    assert run(-2.0) == [pytest.approx(0.25 + math.sqrt(29))]


@pytest.mark.parametrize("name", ["HS78", "HS100LNP", "HS111LNP", "BYRDSPHR"])
def test_the_merit_gradient_by_finite_differences(name):
    p = TABLE[name]
    x = np.asarray(p.x0, dtype=float) + 0.05
    problem = Problem(p.fun, x, (), p.jac, p.hess, None, p.constraints)
    lam, eta1, eta2 = np.linspace(-0.5, 0.8, p.m), 1.7, 0.3
    H = problem.hessian(x, lam)
    gradient = formulas.merit_gradient(problem.point(problem.values(x)), lam, H, eta1, eta2)

    def value(w):
        return formulas.merit(problem.point(problem.values(w[: p.n])), w[p.n :], eta1, eta2)

    w, h = np.r_[x, lam], 1e-5
    differences = [(value(w + h * e) - value(w - h * e)) / (2 * h) for e in np.eye(len(w))]
    np.testing.assert_allclose(gradient, differences, rtol=2e-6, atol=2e-6 * np.abs(gradient).max())


@pytest.mark.parametrize("name", ["HS77", "HS56", "HS111LNP"])
def test_derivatives_that_are_missing_are_differenced(name):
    p = TABLE[name]
    x = np.asarray(p.x0, dtype=float)
    lam = np.linspace(-0.5, 0.8, p.m)
    exact = Problem(p.fun, x, (), p.jac, p.hess, None, p.constraints)
    values_only = {"type": "eq", "fun": p.constraint}
    gradients = NonlinearConstraint(p.constraint, 0, 0, jac=p.constraint_jac, hess=BFGS())
    for constraint, jac, hessp, tol in (
        (values_only, None, None, 2e-5),
        (gradients, p.jac, None, 1e-8),
        (p.constraints, p.jac, lambda x, v: p.hess(x) @ v, 1e-12),
    ):
        other = Problem(p.fun, x, (), jac, None, hessp, constraint)
        np.testing.assert_allclose(other.point(other.values(x)).G, exact.point(exact.values(x)).G, atol=1e-8)
        np.testing.assert_allclose(other.point(other.values(x)).g, exact.point(exact.values(x)).g, atol=1e-7)
        scale = np.abs(exact.hessian(x, lam)).max()
        np.testing.assert_allclose(other.hessian(x, lam), exact.hessian(x, lam), atol=tol * scale)


def test_singular_values_and_reduced_curvature_of_the_sparse_path_agree_with_the_dense_one():
    rng = np.random.default_rng(0)
    G = sparse.csr_array(sparse.random_array((30, 80), density=0.1, random_state=0)) + sparse.csr_array(np.eye(30, 80))
    G = sparse.csr_array(G)
    low, high, dependent = formulas.singular_values(G, 0)
    s = np.linalg.svd(G.toarray(), compute_uv=False)
    assert low == pytest.approx(s[-1], rel=1e-3)
    assert high == pytest.approx(s[0], rel=1e-3)
    assert not dependent
    H = sparse.csr_array(sparse.diags_array(rng.uniform(-1, 2, 80)))
    sparse_value = formulas.reduced_smallest(H, G, 0)
    assert sparse_value == pytest.approx(formulas.reduced_smallest(H.toarray(), G.toarray(), 0), abs=1e-3)
    positive = sparse.csr_array(sparse.diags_array(rng.uniform(1, 2, 80)))
    assert formulas.reduced_smallest(positive, G, 0) == positive.diagonal().min()
    twice = sparse.csr_array(sparse.vstack([G, G[:1]]))
    assert formulas.singular_values(twice, 0)[2]
    empty = sparse.csr_array(sparse.vstack([G, sparse.csr_array((1, 80))]))
    assert formulas.singular_values(empty, 0)[2]


@pytest.mark.parametrize("as_sparse", [False, True])
def test_scaling_both_sides_evens_out_rows_and_columns(as_sparse):
    rng = np.random.default_rng(0)
    B = np.diag(10.0 ** rng.uniform(-4, 4, 12))
    G = rng.standard_normal((5, 12)) * 10.0 ** rng.uniform(-3, 3, (5, 1))
    G[:, 11] = 0
    B[11] = 0  # an empty row
    if as_sparse:
        B, G = sparse.csr_array(B), sparse.csr_array(G)
    Gamma = kkt.kkt_matrix(B, G)
    A, D = kkt.equilibrated(Gamma)
    A, Gamma = (M.toarray() if as_sparse else M for M in (A, Gamma))
    np.testing.assert_allclose(A, np.diag(D) @ Gamma @ np.diag(D), rtol=1e-12)
    norms = np.linalg.norm(A, axis=1)
    assert norms[11] == 0
    assert np.delete(norms, 11).min() > 0.7
    assert norms.max() < 1.4
    before, after = (np.linalg.cond(np.delete(np.delete(M, 11, 0), 11, 1)) for M in (Gamma, A))
    assert after < min(100, 1e-3 * before)


# ------------------------------------------------------------------------------------------ promises of every iteration


def check_history(r, armijo=0.1, theta=lambda k: 1.0, nu=1.5, eta=(1.0, 0.1)):
    h = {key: np.asarray(values) for key, values in r.history.items()}
    assert len(h["kkt"]) == r.nit + 1
    assert all(len(values) == r.nit for key, values in h.items() if key != "kkt")
    assert (h["slope"] <= -h["eta2"] / 2 * h["kkt"][:-1] ** 2).all()
    slack = 1e-13 * np.maximum(1, np.abs(h["merit"]))
    assert (h["merit_new"] <= h["merit"] + armijo * h["alpha"] * h["slope"] + slack).all()
    accurate = h["residual"] <= np.array([theta(k) for k in range(r.nit)]) * h["delta"] * (1 + 1e-12)
    assert (accurate | (h["exact_fallback"] == 1)).all()
    assert (np.log2(h["alpha"]) == np.round(np.log2(h["alpha"]))).all()
    changes = np.log(h["eta2"] / eta[1]) / -np.log(nu)  # updates of the penalties so far
    np.testing.assert_allclose(changes, np.round(changes), atol=1e-9)
    np.testing.assert_allclose(h["eta1"], eta[0] * nu ** (2 * changes), rtol=1e-9)
    np.testing.assert_allclose(h["delta"], 0.1 * nu ** (-4 * changes), rtol=1e-9)


@pytest.mark.parametrize("sketch", SKETCHES)
@pytest.mark.parametrize("name", ["HS7", "HS27", "HS47", "HS78", "MARATOS"])
def test_descent_armijo_and_accuracy_hold_at_every_step(name, sketch):
    r = solve(TABLE[name], sketch=sketch)
    assert r.success, r.message
    assert TABLE[name].solved(r.x)
    assert r.kkt <= 1e-6
    assert r.history["kkt"][-1] == r.kkt
    check_history(r)


@pytest.mark.parametrize("name", ["HS27", "HS7", "BYRDSPHR"])
def test_the_step_is_the_longest_that_armijos_condition_takes_and_rejections_need_no_gradient(name):
    p, xs, lams = TABLE[name], [np.asarray(TABLE[name].x0, dtype=float)], [np.zeros(TABLE[name].m)]

    def watch(*, intermediate_result):
        xs.append(intermediate_result.x)
        lams.append(intermediate_result.lam)

    r = solve(p, callback=watch, maxiter=25)
    h = r.history
    problem = Problem(p.fun, xs[0], (), p.jac, p.hess, None, p.constraints)
    for k in (k for k in range(r.nit) if h["alpha"][k] < 1):
        x, lam = (v[k] + 2 * (v[k + 1] - v[k]) for v in (xs, lams))  # twice the step
        point = problem.point(problem.values(x))
        value = formulas.merit(point, lam, h["eta1"][k], h["eta2"][k]) if point.finite else math.inf
        bound = h["merit"][k] + 0.1 * 2 * h["alpha"][k] * h["slope"][k]
        assert value > bound - 1e-9 * max(1, abs(bound))
    rejected = r.nfev - 1 - r.nit
    assert rejected == -sum(np.log2(h["alpha"]))
    assert r.njev - 1 - r.nit < 0.7 * rejected


def test_the_papers_accuracy():
    p = TABLE["HS78"]
    r = solve(p, accuracy="paper", maxiter=1, lam0=[0.1, 0.1, 0.1])
    x = np.asarray(p.x0, dtype=float)
    H = p.hess(x) + p.constraint_hess(x, [0.1] * 3)
    G = p.constraint_jac(x)
    B = H + r.history["shift"][0] * np.eye(p.n)
    Gamma = np.block([[B, G.T], [G, np.zeros((p.m, p.m))]])
    xi_G = np.linalg.eigvalsh(G @ G.T)[0]
    Psi = 20 * max(np.linalg.norm(B) ** 2, 1) / (min(xi_G, 1) * 0.1)
    Upsilon = max(np.linalg.norm(G), np.linalg.norm(H), 1)
    h = r.history
    cap = 0.4 * h["eta2"][0] / ((1 + h["eta1"][0] + h["eta2"][0]) * Upsilon**2 * Psi**2)
    assert h["delta"][0] == max(cap, 1e-6)
    assert h["residual"][0] <= h["delta"][0] / (np.linalg.norm(Gamma) * Psi) or h["exact_fallback"][0] == 1
    assert solve(p, accuracy="paper").success


def test_the_papers_bound_on_delta_above_its_floor():
    r = sketched_newton(
        lambda x: x @ x / 4, [3.0, 1.0], jac=lambda x: x / 2, hess=lambda x: np.eye(2) / 2, accuracy="paper", maxiter=1,
        constraints=LinearConstraint([[0.9, 0.0]], 1, 1), xi_B=0.8, eta1=2.0, random_state=0,
    )  # fmt: skip
    h, Psi = r.history, 20 / (0.81 * 0.8)
    assert (h["eta1"], h["eta2"], h["shift"]) == ([2.0], [0.1], [0.0])
    assert h["delta"][0] == pytest.approx(0.4 * 0.1 / ((1 + 2 + 0.1) * Psi**2), rel=1e-12)  # Upsilon = 1
    assert h["delta"][0] > 1e-6
    changed = solve(TABLE["HS27"], accuracy="paper", maxiter=8).history
    assert changed["eta2"][-1] < 0.1
    assert min(changed["delta"]) == 1e-6  # its floor, after every update of the penalties


def test_theta_may_fall_and_convergence_is_then_superlinear():
    rng = np.random.default_rng(0)
    n, m = 24, 8
    R = rng.standard_normal((n, n))
    H, G, g = R @ R.T / n + np.eye(n), rng.standard_normal((m, n)), rng.standard_normal(n)
    theta = lambda k: 10.0 ** -(k + 1)  # noqa: E731
    r = sketched_newton(
        lambda x: x @ H @ x / 2 + g @ x, np.ones(n), jac=lambda x: H @ x + g, hess=lambda x: H, theta=theta,
        constraints=LinearConstraint(G, 1, 1), tol=1e-10, random_state=0,
    )  # fmt: skip
    ratios = np.divide(r.history["kkt"][1:], r.history["kkt"][:-1])
    assert r.success
    check_history(r, theta=theta)
    assert ratios[-1] < 0.2 * ratios[0]
    kkt, residual = np.asarray(r.history["kkt"]), np.asarray(r.history["residual"])
    assert (kkt[1:] <= residual * kkt[:-1] + 1e-12).all()  # on a quadratic the KKT residual is r


def test_no_more_is_asked_of_a_solve_than_rounding_lets_it_reach():
    r = solve(TABLE["HS48"], theta=1e-30, grow=False, inner_maxiter=5000)
    assert r.success, r.message
    assert max(r.history["residual"]) <= 1e-14
    assert max(r.history["exact_fallback"]) == 0


def test_penalties_do_change_where_the_first_are_wrong():
    r = solve(TABLE["HS27"])
    assert r.success
    assert r.history["eta2"][-1] < 0.1
    assert r.history["eta1"][-1] > 1.0


@pytest.mark.parametrize("factor", [1e-3, 1.0, 1e3])
def test_badly_scaled_constraints_end_in_the_answer_or_in_a_status(factor):
    r = sketched_newton(
        lambda x: x[0] + x[1], [-1.0, 0.3], jac=lambda x: np.ones(2), hess=lambda x: np.zeros((2, 2)), random_state=0,
        constraints=NonlinearConstraint(lambda x: factor * (x @ x - 1), 0, 0, jac=lambda x: factor * 2 * x[None],
                                        hess=lambda x, v: factor * 2 * v[0] * np.eye(2)), maxiter=200,
    )  # fmt: skip
    if r.success:
        np.testing.assert_allclose(r.x, -math.sqrt(0.5), atol=1e-5 * max(1, 1 / factor))
    else:
        assert factor != 1.0
        assert r.status in (1, 4, 5)


# ---------------------------------------------------------------------------------------------------- kinds of problems


@pytest.mark.parametrize("acceleration", ["none", "cg"])
def test_a_control_problem_with_sparse_derivatives(acceleration):
    problem = control_problem(7)
    x, lam = problem.solution()
    r = sketched_newton(
        x0=np.ones(98), lam0=np.ones(49), acceleration=acceleration, sketch_size=32, random_state=0, tol=1e-8,
        **problem.arguments,
    )  # fmt: skip
    assert r.success
    np.testing.assert_allclose(r.x, x, atol=1e-7)
    np.testing.assert_allclose(r.lam, lam, atol=1e-7)


def test_a_sparse_hessian_that_is_not_positive():
    n = 40
    H = sparse.csr_array(sparse.diags_array(np.r_[-1.0, np.ones(n - 1)]))
    sphere = NonlinearConstraint(
        lambda x: x @ x - 1, 0, 0, jac=lambda x: sparse.csr_array(2 * x[None]),
        hess=lambda x, v: 2 * v[0] * sparse.eye_array(n),
    )  # fmt: skip
    r = sketched_newton(
        lambda x: x @ (H @ x) / 2, np.full(n, 0.2), jac=lambda x: H @ x, hess=lambda x: H, constraints=sphere,
        random_state=0,
    )  # fmt: skip
    assert r.success
    assert abs(r.x[0]) == pytest.approx(1, abs=1e-5)
    assert max(r.history["shift"]) > 0


def test_kinds_of_jacobians_give_one_answer():
    A, rhs = np.array([[1.0, 2.0, 0.0], [0.0, 1.0, -1.0]]), np.array([1.0, 0.5])
    answers = []
    matrices = (A, sparse.csr_array(A), aslinearoperator(A))
    for J in matrices:
        for constraint in (
            *([] if J is matrices[2] else [LinearConstraint(J, rhs, rhs)]),  # SciPy's own takes no operator
            NonlinearConstraint(lambda x: A @ x, rhs, rhs, jac=lambda x, J=J: J),
            {"type": "eq", "fun": lambda x, k: A @ x - k * rhs, "jac": lambda x, k, J=J: J, "args": (1.0,)},
            [LinearConstraint(A[:1], 1, 1), {"type": "eq", "fun": lambda x: x[1] - x[2] - 0.5}],
        ):
            r = sketched_newton(lambda x: x @ x, np.ones(3), constraints=constraint, random_state=0, tol=1e-9)
            assert r.success, r.message
            answers.append(r.x)
    np.testing.assert_allclose(answers, np.tile(np.linalg.pinv(A) @ rhs, (len(answers), 1)), atol=1e-8)


def test_logistic_regression_on_the_sphere():
    rng = np.random.default_rng(0)
    X = rng.standard_normal((200, 15))
    y = np.where(X @ rng.standard_normal(15) > 0, 1.0, -1.0)
    arguments = logistic_problem(X, y, np.random.default_rng(2))
    r = sketched_newton(x0=np.ones(15), lam0=np.ones(11), random_state=0, **arguments)
    assert r.success
    assert abs(np.linalg.norm(r.x) - 1) < 1e-6
    equations = arguments["constraints"][0]
    np.testing.assert_allclose(equations.A @ r.x, equations.lb, atol=1e-6)


# ------------------------------------------------------------------------------------------------------- every status


def status_of(fun, x0, constraint, **options):
    r = sketched_newton(fun, x0, constraints=constraint, random_state=0, **options)
    assert not r.success
    assert np.isfinite(r.x).all()
    return r


def test_status_rank():
    r = solve(TABLE["HS61"])
    assert (r.status, r.nit, r.success) == (2, 0, False)
    assert "rank" in r.message
    G = sparse.csr_array(np.array([[1.0, 0, 1], [2, 0, 2]]))
    r = status_of(lambda x: x @ x, np.ones(3), LinearConstraint(G, [1, 2], [1, 2]))
    assert r.status == 2


def test_status_maxiter_also_for_an_unbounded_problem():
    line = LinearConstraint([[0.0, 1.0]], 1, 1)
    r = status_of(lambda x: x[0], np.zeros(2), line, jac=lambda x: np.array([1.0, 0]), maxiter=30)
    assert r.status == 1
    assert "maxiter" in r.message
    assert r.fun < -10
    r = solve(TABLE["HS78"], grow=False, sketch_size=1, inner_maxiter=3)
    assert (r.status, r.nit) == (1, 0)
    assert "inner_maxiter" in r.message


def test_status_nonfinite():
    r = status_of(lambda x: math.nan, np.ones(2), circle())
    assert r.status == 3
    assert "finite" in r.message
    calls = 0

    def poisoned(x):
        nonlocal calls
        calls += 1
        return x[0] * (math.nan if calls > 1 else 1.0)

    r = status_of(poisoned, np.ones(2), circle(), jac=lambda x: np.array([1.0, 0]))
    assert r.status == 3
    r = status_of(lambda x: x[0], np.ones(2), circle(), jac=lambda x: np.array([1.0, 0]),
                  hess=lambda x: np.full((2, 2), np.nan))  # fmt: skip
    assert r.status == 3


def test_a_trial_point_that_is_not_finite_is_only_a_rejection():
    r = sketched_newton(
        lambda x: -math.log(x[0]) + x[1] if x[0] > 0 else math.nan, [0.01, 1.0],
        jac=lambda x: np.array([-1 / x[0], 1.0]), hess=lambda x: np.diag([1 / x[0] ** 2, 0]),
        constraints=LinearConstraint([[-1.0, 1.0]], 0, 0), random_state=0,
    )  # fmt: skip
    assert r.success
    np.testing.assert_allclose(r.x, 1, atol=1e-5)


def test_an_infeasible_problem_is_never_a_success():
    r = status_of(lambda x: x @ x, np.array([2.0, 1.0]), NonlinearConstraint(lambda x: x[0] ** 2 + 1, 0, 0))
    assert r.status in (2, 4, 5)


@pytest.mark.parametrize("as_matrix", [np.asarray, sparse.csr_array])
def test_contradicting_equations_are_reported_as_dependent(as_matrix):
    A = as_matrix(np.array([[1.0, 1.0, 0.0], [1.0, 1.0, 0.0]]))
    r = status_of(lambda x: x @ x, np.ones(3), LinearConstraint(A, [1, 2], [1, 2]))
    assert r.status == 2


def test_a_constraint_that_is_not_finite():
    r = status_of(lambda x: x @ x, np.ones(2), {"type": "eq", "fun": lambda x: math.nan, "jac": lambda x: np.ones(2)})
    assert r.status == 3

    def gap(x):  # finite at the start alone
        return x[0] - 3 if x[0] == 1 else math.nan

    r = status_of(lambda x: x @ x, np.ones(2), {"type": "eq", "fun": gap, "jac": lambda x: np.array([1.0, 0])})
    assert r.status == 3


@pytest.mark.parametrize(
    ("eta1", "updates"),
    [(1.0, math.ceil(math.log(1e12) / math.log(1.5**2))), (1e-20, math.ceil(math.log(0.1 / 1e-14) / math.log(1.5)))],
)
def test_status_penalties(monkeypatch, eta1, updates):
    module, tests = inspect.getmodule(sketched_newton), []

    def no_descent(p, lam, H, e1, e2):
        tests.append((e1, e2))
        return np.zeros(p.x.size + p.c.size)

    monkeypatch.setattr(module, "merit_gradient", no_descent)
    r = solve(TABLE["HS78"], eta1=eta1)
    assert (r.status, r.nit) == (4, 0)
    assert "penalties" in r.message
    assert len(tests) == updates  # until eta1 > 1e12 or eta2 < 1e-14


def test_status_line_search():
    p = TABLE["HS48"]
    wrong = sketched_newton(
        lambda x: -p.fun(x), p.x0, jac=p.jac, hess=p.hess, constraints=p.constraints, random_state=0, maxiter=50
    )
    assert not wrong.success
    assert wrong.status == 5


def test_status_callback_and_what_callbacks_see():
    p, seen = TABLE["HS77"], []

    def by_position(xk):
        seen.append(xk)

    r = solve(p, callback=by_position)
    assert len(seen) == r.nit
    np.testing.assert_array_equal(seen[-1], r.x)

    def by_keyword(*, intermediate_result):
        seen.append(intermediate_result)
        if len(seen) == 2:
            raise StopIteration

    for run in (
        lambda: solve(p, callback=by_keyword),
        lambda: minimize(p.fun, p.x0, method=sketched_newton, jac=p.jac, hess=p.hess, constraints=p.constraints,
                         callback=by_keyword, options={"random_state": 0}),
    ):  # fmt: skip
        seen.clear()
        r = run()
        assert (r.status, r.success, r.nit) == (6, False, 2)
        assert "callback" in r.message
        assert seen[-1].lam.shape == (2,)
        assert seen[-1].fun == r.fun


def test_a_callback_may_overwrite_what_it_gets():
    p = TABLE["HS77"]
    plain = solve(p)

    def spoil(*, intermediate_result):
        intermediate_result.x[:] = 0
        intermediate_result.lam[:] = 0

    def spoil_position(xk):
        xk[:] = 0

    for callback in (spoil, spoil_position):
        r = solve(p, callback=callback)
        np.testing.assert_array_equal(r.x, plain.x)
        np.testing.assert_array_equal(r.lam, plain.lam)


# --------------------------------------------------------------------------------------------------- SciPy's convention


@pytest.mark.parametrize("tol", [None, 1e-9])
def test_minimize_takes_it_as_a_method(tol):
    p = TABLE["HS79"]
    options = {"random_state": 0, "sketch": "kaczmarz"}
    through = minimize(p.fun, p.x0, method=sketched_newton, jac=p.jac, hess=p.hess, constraints=p.constraints,
                       options=options, tol=tol)  # fmt: skip
    direct = solve(p, **options, **({} if tol is None else {"tol": tol}))
    np.testing.assert_array_equal(through.x, direct.x)
    assert through.kkt <= (tol or 1e-6)
    assert np.abs(through.jac - p.jac(through.x)).max() == 0
    assert through.constr_violation == np.abs(p.constraint(through.x)).max()
    assert np.linalg.norm(through.jac + p.constraint_jac(through.x).T @ through.lam) <= through.kkt * (1 + 1e-12)


def test_jac_true_and_args_both_ways():
    def both(x, k):
        return k * x @ x, 2 * k * x

    calls = {"args": (3.0,), "jac": True, "constraints": LinearConstraint([[1.0, 1.0]], 1, 1)}
    direct = sketched_newton(both, [2.0, 0.0], random_state=0, **calls)
    through = minimize(both, [2.0, 0.0], method=sketched_newton, options={"random_state": 0}, **calls)
    for r in (direct, through):
        assert r.success
        np.testing.assert_allclose(r.x, 0.5, atol=1e-7)
        assert r.fun == pytest.approx(1.5)


def test_slsqp_agrees():
    p = TABLE["HS100LNP"]
    peer = minimize(p.fun, p.x0, jac=p.jac, method="SLSQP", constraints={"type": "eq", "fun": p.constraint,
                    "jac": p.constraint_jac}, options={"maxiter": 500, "ftol": 1e-14})  # fmt: skip
    np.testing.assert_allclose(solve(p).x, peer.x, atol=1e-4)


def test_counters_count():
    counts = {"fun": 0, "jac": 0, "hess": 0}
    p = TABLE["HS77"]

    def counted(name):
        def call(x):
            counts[name] += 1
            return getattr(p, name)(x)

        return call

    r = sketched_newton(counted("fun"), p.x0, jac=counted("jac"), hess=counted("hess"), constraints=p.constraints)
    assert (r.nfev, r.njev, r.nhev) == (counts["fun"], counts["jac"], counts["hess"])
    assert r.nhev == r.nit
    bare = sketched_newton(counted("fun"), p.x0, constraints=p.constraints, maxiter=1)
    assert bare.njev == 0
    assert bare.nfev > 10


def test_disp_logs(caplog):
    with caplog.at_level(logging.INFO, logger="steepest.constrained"):
        r = solve(TABLE["HS77"], disp=True)
    assert len(caplog.records) == r.nit
    assert "kkt" in caplog.records[0].message


CASE = checks.Problem(
    lambda fun, x0, **options: sketched_newton(fun, x0, constraints=circle(), **options),
    lambda x: x[0] + x[1], np.array([-1.0, 0.3]), np.full(2, -math.sqrt(0.5)), 1e-5, options={"random_state": 0},
    bad={"maxiter": -1, "nu": 1.0, "delta": 1.0, "eta1": 0.0, "xi_B": -1.0, "tol": math.nan},
)  # fmt: skip


@pytest.mark.parametrize(
    "check",
    [
        checks.check_finds_the_answer,
        checks.check_answer_has_the_kind_of_the_start,
        checks.check_start_is_left_alone,
        checks.check_budget_is_kept,
        checks.check_nonfinite_is_never_an_answer,
        checks.check_same_seed_same_result,
        checks.check_result_travels,
        checks.check_bad_options_are_named,
    ],
)
def test_what_every_solver_owes(check):
    check(CASE)


def test_no_global_stream_is_touched_and_a_seed_repeats():
    states = np.random.get_state()[1].copy(), torch.random.get_rng_state()
    a, b = (solve(TABLE["HS77"], random_state=4) for _ in range(2))
    np.testing.assert_array_equal(a.x, b.x)
    assert pickle.loads(pickle.dumps(a)).history == b.history
    np.testing.assert_array_equal(states[0], np.random.get_state()[1])
    assert torch.equal(states[1], torch.random.get_rng_state())


# --------------------------------------------------------------------------------------------------------------- misuse


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"constraints": ()}, "constraints must be at least one equality"),
        ({"constraints": LinearConstraint([[1.0, 0.0]], 0, 1)}, "constraints must be equalities"),
        ({"constraints": LinearConstraint([[1.0, 0.0]], -np.inf, -np.inf)}, "constraints must be equalities"),
        ({"constraints": {"type": "ineq", "fun": lambda x: x[0]}}, "constraints must be equalities"),
        ({"constraints": NonlinearConstraint(lambda x: x, [0, 0, 0], 0)}, "constraints must be given with lb and ub"),
        ({"constraints": [LinearConstraint(np.eye(2), 0, 0), circle()]}, "constraints must be at most n = 2"),
        ({"constraints": LinearConstraint(np.eye(3), 0, 0)}, r"constraints must be a matrix of shape \(3, 2\)"),
        ({"constraints": {"type": "eq", "fun": lambda x: x[0], "jac": lambda x: np.ones(3)}},
         r"constraints must be a matrix of shape \(1, 2\)"),
        ({"bounds": [(0, 1), (0, 1)]}, "bounds must be None"),
        ({"sketch": "count"}, "sketch must be one of 'gaussian', 'kaczmarz', 'sparse', 'srht'"),
        ({"accuracy": "exact"}, "accuracy must be one of"),
        ({"armijo": 0.5}, r"armijo must be a number in \(0, 0.5\)"),
        ({"armijo": 0.0}, r"armijo must be a number in \(0, 0.5\)"),
        ({"theta": 0.0}, r"theta must be a number in \(0, 1\]"),
        ({"theta": 1.5}, r"theta must be a number in \(0, 1\]"),
        ({"theta": lambda k: 2.0}, r"theta must be a number in \(0, 1\]"),
        ({"x0": [math.nan, 1.0]}, "x0 must be finite"),
        ({"x0": np.ones((2, 2))}, "x0 must be a vector"),
        ({"lam0": [1.0, 2.0]}, r"lam0 must be of shape \(1,\)"),
        ({"jac": lambda x: np.ones(3)}, "jac must be a vector of 2 numbers"),
        ({"hess": lambda x: np.ones((3, 3))}, r"hess must be a matrix of shape \(2, 2\)"),
        ({"hessp": lambda x, p: np.ones(5)}, "hessp must be a vector of 2 numbers"),
        ({"fun": lambda x: x}, "fun must be a scalar"),
        ({"fun": lambda x: (x, x), "jac": True}, "fun must be a scalar"),
        ({"fun": lambda x: x @ x, "jac": True}, r"fun must be a pair \(value, gradient\)"),
        ({"fun": lambda x: (x @ x, np.ones(3)), "jac": True}, "jac must be a vector of 2 numbers"),
        ({"constraints": NonlinearConstraint(lambda x: x @ x - 1, 0, 0, jac=lambda x: 2 * x[None],
                                             hess=lambda x, v: np.eye(3))},
         r"constraints must be a matrix of shape \(2, 2\)"),
        ({"acceleration": "momentum"}, "acceleration must be one of"),
        ({"inner_maxiter": 0}, "inner_maxiter must be"),
        ({"sketch_size": 0}, "sketch_size must be"),
    ],
)  # fmt: skip
def test_bad_arguments_are_named(changes, message):
    arguments = {"fun": lambda x: x[0] + x[1], "x0": [-1.0, 0.3], "constraints": circle()} | changes
    with pytest.raises(ValueError, match=message):
        sketched_newton(**arguments)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"fun": 3}, "fun must be callable"),
        ({"constraints": 3}, "constraints must be a constraint or a sequence"),
        ({"constraints": [3]}, "constraints must be LinearConstraint"),
        ({"constraints": {"type": "eq"}}, "constraints must be a dict with a callable 'fun'"),
        ({"callback": 3}, "callback must be callable"),
        ({"hessp": 3}, "hessp must be callable"),
        ({"random_state": "zero"}, "random_state must be"),
    ],
)
def test_wrong_kinds_are_named(changes, message):
    arguments = {"fun": lambda x: x[0] + x[1], "x0": [-1.0, 0.3], "constraints": circle()} | changes
    with pytest.raises(TypeError, match=message):
        sketched_newton(**arguments)
