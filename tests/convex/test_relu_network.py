import itertools
import math
import warnings

import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.datasets import load_iris
from sklearn.exceptions import NotFittedError
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import check_estimator

from steepest.convex import (
    ConvexReLUClassifier,
    ConvexReLURegressor,
    convex_objective,
    enumerate_patterns,
    required_patterns,
    sample_patterns,
)
from steepest.convex import _losses as losses
from steepest.convex._admm import ADMM, BlockDescent, Copies, ExactStep
from steepest.convex._anderson import Anderson
from steepest.convex._certificates import Network
from steepest.convex._program import Program
from steepest.convex._robust import PrimalDual, root_of_multiplier
from steepest.convex._sampled_program import SampledProgram, unit_directions
from steepest.core.errors import ConvergenceWarning, SteepestWarning

EACH_LOSS = pytest.mark.parametrize("loss", losses.LOSSES)


def tensor(a):
    return torch.as_tensor(np.array(a, dtype=np.float64))


def problem(n=6, d=2, seed=1):
    rng = np.random.default_rng(seed)
    X = rng.standard_normal((n, d))
    return X, np.sign(rng.standard_normal(n)), rng.standard_normal(n)


def program(loss="squared", n=6, d=2, P=9, beta=0.1, radius=0.0, seed=1):
    X, labels, targets = problem(n, d, seed)
    cells = np.random.default_rng(seed + 1).random((P, n)) < 0.5  # the algebra holds for any 0/1 matrix
    y = targets if loss == "squared" else labels
    return Program(tensor(X), tensor(y), tensor(cells), loss, beta, tensor(np.full(d, radius)))


def reference(X, y, patterns, beta, loss, radius=0.0):
    """Clarabel's optimum, written from the definition."""
    cp = pytest.importorskip("cvxpy")
    _n, d = X.shape
    V, W = cp.Variable((len(patterns), d)), cp.Variable((len(patterns), d))
    C = patterns.T.astype(float) @ (V - W)
    f, sink = cp.sum(cp.multiply(X, C), axis=1), radius * cp.norm(C, 1, axis=1)
    worst = {
        "squared": 0.5 * cp.sum_squares(cp.abs(f - y) + sink),
        "logistic": cp.sum(cp.logistic(2 * sink - 2 * cp.multiply(y, f))),
        "hinge": cp.sum(cp.pos(1 - cp.multiply(y, f) + sink)),
    }[loss]
    signs = 2.0 * patterns - 1
    cones = [
        cp.multiply(signs, A @ X.T) >= radius * cp.reshape(cp.norm(A, 1, axis=1), (len(patterns), 1), order="F")
        for A in (V, W)
    ]
    penalty = cp.sum(cp.norm(V, 2, axis=1)) + cp.sum(cp.norm(W, 2, axis=1))
    return cp.Problem(cp.Minimize(worst + beta * penalty), cones).solve(solver="CLARABEL")


def quiet_fit(model, X, y):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        return model.fit(X, y)


# ---- patterns ----


@pytest.mark.parametrize(("n", "d"), [(5, 2), (5, 3), (3, 4)])
def test_all_patterns_are_found(n, d):
    X = problem(n, d)[0]
    drawn = np.random.default_rng(0).standard_normal((20_000, d))
    brute = np.unique((X @ drawn.T >= 0).T, axis=0)
    assert np.array_equal(enumerate_patterns(X), brute)
    assert len(brute) == 2 * sum(math.comb(n - 1, k) for k in range(min(n, d)))


def test_rows_that_share_a_hyperplane_and_rows_of_zeros():
    X = np.array([[1.0, 0.0], [-2.0, 0.0], [0.0, 0.0], [0.0, 3.0], [0.0, 3.0]])
    cells = enumerate_patterns(X)
    assert len(cells) == 4
    assert cells[:, 2].all()
    assert np.array_equal(cells[:, 0], ~cells[:, 1])
    assert np.array_equal(cells[:, 3], cells[:, 4])
    assert enumerate_patterns(np.zeros((3, 2))).tolist() == [[True, True, True]]


def test_rank_and_not_dimension_bounds_the_patterns():
    X = problem(5, 2)[0] @ np.random.default_rng(0).standard_normal((2, 6))
    assert len(enumerate_patterns(X, max_patterns=10)) == 10
    with pytest.raises(ValueError, match=r"max_patterns must be at least the bound 10 .*, got 9"):
        enumerate_patterns(X, max_patterns=9)


def test_sampled_patterns_belong_to_directions_and_repeat():
    X = problem(5, 3)[0]
    every = {tuple(cell) for cell in enumerate_patterns(X)}
    cells = sample_patterns(X, 15, random_state=3)
    assert cells.shape == (15, 5)
    assert len({tuple(cell) for cell in cells}) == 15
    assert {tuple(cell) for cell in cells} <= every
    assert np.array_equal(cells, sample_patterns(X, 15, random_state=3))
    with pytest.warns(SteepestWarning, match="22 different patterns were found in 5000 draws, n_patterns=100"):
        sample_patterns(X, 100, random_state=0)


def test_perturbed_patterns_leave_the_arrangement():
    X = problem(5, 2)[0]
    every = {tuple(cell) for cell in enumerate_patterns(X)}
    assert not {tuple(cell) for cell in sample_patterns(X, 14, perturbation=0.8, random_state=0)} <= every


def test_required_patterns_bound_the_scenario_probabilities():
    assert required_patterns(20, 0.2, 0.1) == int(np.ceil(10 * (21 + np.log(10))))
    assert required_patterns(3, 0.5, 0.9) == int(np.ceil(4 / 0.45 - 1))
    assert required_patterns(20, 0.01, 0.5) >= 21 / 0.01  # on average 1/P at least has to be within psi


# ---- the algebra of the program ----


@EACH_LOSS
def test_gradients_and_duals_of_losses(loss):
    f, y = tensor([-1.3, 0.2, 2.4]), tensor([1.0, -1.0, 1.0])
    step = 1e-6
    slope = (losses.value(loss, f + step, y) - losses.value(loss, f - step, y)) / (2 * step)
    assert torch.allclose(losses.gradient(loss, f, y), slope, atol=1e-8)
    nu = -losses.gradient(loss, f, y)  # Fenchel-Young: loss + conjugate = the product, at the gradient
    assert float(losses.value(loss, f, y).sum() + nu @ f) == pytest.approx(float(losses.dual_value(loss, nu, y)))
    assert float(losses.value(loss, f, y).sum() + 0.5 * nu @ f) > float(losses.dual_value(loss, 0.5 * nu, y))
    sunk = losses.value(loss, f - y * 0.3 if loss != "squared" else y + (f - y).sign() * ((f - y).abs() + 0.3), y)
    assert torch.allclose(losses.value(loss, f, y, 0.3), sunk)


def test_smoothed_hinge():
    f, y = torch.linspace(-1, 3, 41, dtype=torch.float64) + 0.01, torch.ones(41, dtype=torch.float64)
    step = 1e-6
    slope = losses.value("hinge", f + step, y, width=0.5) - losses.value("hinge", f - step, y, width=0.5)
    assert torch.allclose(losses.gradient("hinge", f, y, width=0.5), slope / (2 * step), atol=1e-6)
    gap = losses.value("hinge", f, y) - losses.value("hinge", f, y, width=0.5)
    assert float(gap.min()) >= 0
    assert float(gap.max()) <= 0.25 + 1e-12


def dense(p):
    """F and G as matrices."""
    eye = torch.eye(2 * p.shape[1] * p.shape[2], dtype=torch.float64).reshape(-1, *p.shape)
    F = torch.stack([p.forward(u) for u in eye], dim=1)
    G = torch.stack([p.cone(u).reshape(-1) for u in eye], dim=1)
    return F, G


def test_products_are_adjoint_and_from_the_definition():
    p = program()
    F, G = dense(p)
    v = torch.randn(p.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    D, X = p.patterns, p.X
    by_hand = sum(torch.diag(D[i]) @ X @ (v[0, i] - v[1, i]) for i in range(len(D)))
    assert torch.allclose(F @ v.reshape(-1), by_hand)
    assert torch.allclose(p.adjoint(by_hand).reshape(-1), F.T @ by_hand)
    s = p.cone(v)
    assert torch.allclose(s[1, 2], (2 * torch.diag(D[2]) - torch.eye(6)) @ X @ v[1, 2])
    assert torch.allclose(p.cone_adjoint(s).reshape(-1), G.T @ s.reshape(-1))


@pytest.mark.parametrize(("n", "P"), [(6, 9), (30, 3)])
def test_exact_step_solves_the_dense_system(n, P):
    p = program(n=n, P=P)
    F, G = dense(p)
    target = torch.randn(p.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    step = ExactStep(p)
    assert step._small == (n == 30)
    for rho in (1.0, 1e-3, 40.0):
        H = torch.eye(F.shape[1], dtype=torch.float64) + F.T @ F / rho + G.T @ G
        expected = torch.linalg.solve(H, F.T @ p.y / rho + target.reshape(-1))
        assert torch.allclose(step(target, target, rho).reshape(-1), expected, rtol=1e-9, atol=1e-11)


def test_block_descent_reaches_the_exact_step():
    p = program()
    target = torch.randn(p.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    expected = ExactStep(p)(target, target, 0.7)
    found = BlockDescent(p, 2, 1e-12, np.random.default_rng(0))(target, torch.zeros_like(target), 0.7)
    assert float((found - expected).norm() / expected.norm()) < 1e-3


def test_one_iteration_of_admm_is_the_algorithm():
    p = program()
    F, G = dense(p)
    start = Copies.zero(p, 0.5)
    solver = ADMM(p, ExactStep(p), 0.6, start)
    z = s = lam = nu = 0.0
    for _ in range(3):
        solver.step()
        t = (z - lam) + G.T @ (torch.zeros(len(G), dtype=torch.float64) + s - nu)
        u = torch.linalg.solve(torch.eye(36) + F.T @ F / 0.5 + G.T @ G, F.T @ p.y / 0.5 + t)
        moved = (u + lam).reshape(p.shape)
        z = (moved * (1 - 0.1 / (0.5 * moved.norm(dim=-1, keepdim=True))).clamp(min=0)).reshape(-1)
        s = (G @ u + nu).clamp(min=0)
        lam, nu = lam + 0.6 * (u - z), nu + 0.6 * (G @ u - s)
    assert torch.allclose(start.z.reshape(-1), z)
    assert torch.allclose(start.nu.reshape(-1), nu)


def test_residuals_are_those_of_the_copies_and_of_their_change():
    p = program()
    at = Copies.zero(p, 0.5)
    solver = ADMM(p, ExactStep(p), 0.6, at)
    solver.step()
    z, s = at.z, at.s
    solver.step()
    missed = torch.cat([(at.u - at.z).reshape(-1), (p.cone(at.u) - at.s).reshape(-1)])
    assert solver.primal_residual == pytest.approx(float(missed.norm()), rel=1e-12)
    change = at.z - z + p.cone_adjoint(at.s - s)
    assert solver.dual_residual == pytest.approx(0.5 * float(change.norm()), rel=1e-12)


def test_first_extrapolated_iteration_is_the_plain_one():
    p = program()
    plain, ours = (ADMM(p, ExactStep(p), 1.0, Copies.zero(p, 0.3)) for _ in range(2))
    plain._accelerate = None
    for solver in (plain, ours):
        solver.step()
    for name in ("z", "s", "lam", "nu"):
        assert torch.allclose(getattr(plain.copies, name), getattr(ours.copies, name), atol=1e-14), name


def test_extrapolation_ends_a_linear_map_within_its_dimensions():
    gen = torch.Generator().manual_seed(0)
    root = torch.randn(4, 4, dtype=torch.float64, generator=gen)
    A = root @ root.T
    A *= 0.98 / torch.linalg.matrix_norm(A, 2)
    b, zeta, method = torch.ones(4, dtype=torch.float64), torch.zeros(4, dtype=torch.float64), Anderson()
    for _ in range(8):
        zeta = method.next(zeta, A @ zeta + b)
    assert torch.allclose(zeta, torch.linalg.solve(torch.eye(4) - A, b), rtol=1e-5)


def test_extrapolation_goes_back_when_the_residual_has_doubled():
    method, first = Anderson(), torch.zeros(2, dtype=torch.float64)
    image = method.next(first, first + 1.0)
    assert torch.equal(image, first + 1.0)
    assert torch.equal(method.next(image, image + 2.1), image)


def test_restart_of_primal_dual_steps_balances_the_distances():
    solver = PrimalDual(program("hinge", radius=0.1))
    for _ in range(19):
        solver.step()
    start = solver._anchor
    solver._error, solver._iteration, solver._weight = np.inf, 1000, 0.7
    solver._look()
    primal = float((solver.point.parts - start.parts).norm())
    names = ("tau", "q", "mu")
    dual = np.sqrt(sum(float((getattr(solver.point, k) - getattr(start, k)).norm()) ** 2 for k in names))
    assert solver._weight == pytest.approx(np.sqrt(0.7 * dual / primal))


def test_balancing_keeps_the_multipliers():
    p = program()
    solver = ADMM(p, ExactStep(p), 1.0, Copies.zero(p, 1.0))
    solver.step()
    before = solver.copies.rho * solver.copies.nu
    solver.primal_residual, solver.dual_residual = 11.0, 1.0
    solver._balance()
    assert solver.copies.rho == 2.0
    assert torch.allclose(solver.copies.rho * solver.copies.nu, before)


@EACH_LOSS
def test_multiplier_root_minimizes_the_proximal_function(loss):
    rng = np.random.default_rng(0)
    start, q, radius = tensor(rng.standard_normal(20) * 2), tensor(rng.random((20, 3))), tensor([0.3, 0.0, 0.7])
    if loss == "squared":
        start = start.abs()
    sigma, scale = 0.4, 2.0 if loss == "logistic" else 1.0
    t = root_of_multiplier(loss, start, q, radius, sigma, scale)

    def value(t):
        first = (start - t).clamp(min=0) ** 2 if loss == "squared" else scale**2 * (t - start) ** 2
        rest = ((q - t[:, None] * radius).clamp(min=0) ** 2).sum(1)
        return 0.5 * (first + rest) + sigma * losses.conjugate(loss, t)

    grid = torch.linspace(0, 4 if loss == "squared" else 1, 2001, dtype=torch.float64)
    best = torch.stack([value(torch.full_like(start, float(g))) for g in grid]).amin(0)
    assert bool((value(t) <= best + 1e-12).all())


def test_primal_dual_operator_is_adjoint():
    solver = PrimalDual(program("logistic", radius=0.2))
    gen = torch.Generator().manual_seed(0)
    x = torch.randn(2 * 2 * 9 * 2, dtype=torch.float64, generator=gen)
    image = solver._flat(x)
    z = torch.randn(len(image), dtype=torch.float64, generator=gen)
    assert float(image @ z) == pytest.approx(float(x @ solver._flat_adjoint(z)))


# ---- optima ----


@pytest.fixture(scope="module")
def small():
    X, labels, targets = problem()
    return X, labels, targets, enumerate_patterns(X)


@pytest.mark.parametrize("beta", [0.01, 0.1])
def test_admm_reaches_the_optimum_with_a_certificate(small, beta):
    X, _, y, patterns = small
    model = ConvexReLURegressor(beta=beta, patterns="exact", fit_intercept=False, tol=1e-5, max_iter=3000).fit(X, y)
    assert np.array_equal(model.patterns_, patterns)
    assert model.converged_
    assert model.objective_ == pytest.approx(reference(X, y, patterns, beta, "squared"), rel=1e-5)
    assert -1e-9 <= model.duality_gap_ <= 1e-4
    assert model.nonconvex_objective_ == pytest.approx(model.objective_, rel=1e-9)
    value = convex_objective(X, y, patterns, model.v_, model.w_, loss="squared", beta=beta)
    assert value == pytest.approx(model.objective_, rel=1e-12)
    signs = 2 * patterns - 1
    assert min((signs * (model.v_ @ X.T)).min(), (signs * (model.w_ @ X.T)).min()) > -1e-9


def test_block_descent_comes_close_to_the_optimum(small):
    X, y, _, patterns = small
    model = ConvexReLUClassifier(
        beta=0.1, patterns=patterns, fit_intercept=False, max_iter=150, tol=5e-3, random_state=0
    )
    quiet_fit(model, X, y)
    assert model.objective_ <= 1.01 * reference(X, y, patterns, 0.1, "logistic")
    assert model.objective_ - model.duality_gap_ <= reference(X, y, patterns, 0.1, "logistic") * (1 + 1e-6)


@EACH_LOSS
def test_adversarial_optimum_is_the_worst_case_of_the_network(small, loss):
    X, y, _, patterns = small
    options = {"loss": loss, "beta": 0.1, "patterns": patterns, "fit_intercept": False}
    model = quiet_fit(ConvexReLUClassifier(**options, adversarial_radius=0.1, max_iter=300, tol=1e-5), X, y)
    assert model.converged_
    optimum = reference(X, y, patterns, 0.1, loss, 0.1)
    assert model.objective_ - model.duality_gap_ <= optimum * (1 + 1e-6)
    assert optimum * (1 - 1e-6) <= model.objective_ <= optimum * (1 + 1e-4)
    penalty = 0.1 * (np.linalg.norm(model.v_, axis=1).sum() + np.linalg.norm(model.w_, axis=1).sum())
    assert model.adversarial_loss(X, y, 0.1) + penalty == pytest.approx(model.objective_, abs=1e-4)
    value = convex_objective(X, y, patterns, model.v_, model.w_, loss=loss, beta=0.1, adversarial_radius=0.1)
    assert value == pytest.approx(model.objective_, rel=1e-9)


@pytest.mark.parametrize("loss", ["squared", "logistic", "hinge"])
def test_sampled_program_meets_its_optimality_conditions(loss):
    X, y, _ = problem(12, 3)
    directions = unit_directions(60, 3, np.random.default_rng(0))
    solver = SampledProgram(tensor(X), tensor(y), tensor(directions), loss, 0.1)
    for _ in range(1 if loss == "hinge" else 4000):
        solver.step()
    assert solver.look() < 1e-3 * solver.objective
    assert float((solver.features.T @ solver.nu).abs().max()) <= 0.1 + 1e-12
    model = quiet_fit(
        ConvexReLUClassifier(
            loss=loss, beta=0.1, n_patterns=400, solver="scp", fit_intercept=False, random_state=0, tol=1e-2
        ),
        X,
        y,
    )
    assert model.nonconvex_objective_ == pytest.approx(model.objective_, rel=1e-9)
    assert 0 <= model.dual_violation_ < 0.2
    assert model.patterns_.shape == (400, 12)


# ---- the network ----


def test_torch_module_is_the_network():
    X, _, y = problem(20, 3)
    model = quiet_fit(ConvexReLURegressor(n_patterns=20, beta=0.1, max_iter=60, random_state=0), X, y)
    net = model.to_torch()
    assert np.allclose(net(tensor(X)).detach().numpy()[:, 0], model.predict(X), atol=1e-12)
    u, a = np.column_stack([model.hidden_coef_, model.hidden_intercept_]), model.output_coef_
    value = 0.5 * np.square(model.predict(X) - y).sum() + 0.05 * (np.square(u).sum() + np.square(a).sum())
    assert value == pytest.approx(model.nonconvex_objective_, rel=1e-12)
    assert np.allclose(np.linalg.norm(u, axis=1), np.abs(a))


def random_network(m=5, d=2, seed=0):
    rng = np.random.default_rng(seed)
    return Network(rng.standard_normal((m, d)), rng.standard_normal(m), rng.standard_normal(m))


def test_ranges_contain_a_grid_and_touch_it():
    net, X, radius = random_network(), problem(6, 2)[0], 0.4
    low, high = net.output_range(X, radius, exact=True)
    wide = net.output_range(X, radius, exact=False)
    ticks = np.linspace(-radius, radius, 81)
    moves = np.array(list(itertools.product(ticks, ticks)))
    values = np.stack([net(x + moves) for x in X])
    assert np.all(low <= values.min(1) + 1e-9)
    assert np.all(high >= values.max(1) - 1e-9)
    assert np.allclose(low, values.min(1), atol=0.05)
    assert np.allclose(high, values.max(1), atol=0.05)
    assert np.all(wide[0] <= low + 1e-9)
    assert np.all(wide[1] >= high - 1e-9)


def test_certified_radius_is_sound_and_exact_where_nothing_switches():
    net, X = random_network(seed=3), problem(30, 2)[0]
    radius = net.certified_radius(X)
    low, high = net.output_range(X, 0.0, exact=False)
    assert np.allclose(low, net(X))
    assert np.allclose(high, net(X))
    for x, r in zip(X, radius, strict=True):
        if np.isfinite(r) and r > 0:
            ends = net.output_range(x[None], float(r) * (1 - 1e-9), exact=True)
            assert (ends[0][0] > -1e-9) if net(x[None])[0] > 0 else (ends[1][0] < 1e-9)
    line = Network(np.array([[3.0, -1.0]]), np.array([50.0]), np.array([2.0]))
    shifted = Network(np.vstack([line.W, [[1.0, 0.0]]]), np.array([50.0, 100.0]), np.array([2.0, -1.0]))
    x = np.array([[1.0, 1.0]])  # f = 2 (3 x1 - x2 + 50) - (x1 + 100) = 5 x1 - 2 x2
    assert shifted.certified_radius(x)[0] == pytest.approx(3 / 7, rel=1e-9)
    assert shifted.certified_radius(np.array([[2.0, 5.0]]))[0] == 0.0


def test_several_classes():
    rng = np.random.default_rng(0)
    X = np.vstack([rng.standard_normal((10, 2)) * 0.3 + c for c in ((0, 3), (3, 0), (-3, -3))])
    y = np.repeat(["a", "b", "c"], 10)
    model = quiet_fit(ConvexReLUClassifier(loss="squared", n_patterns=15, max_iter=60, random_state=0), X, y)
    assert model.score(X, y) == 1.0
    assert model.output_coef_.shape == (3, len(model.hidden_coef_))
    assert len(model.objective_) == len(model.history_) == 3
    assert model.to_torch()(tensor(X)).shape == (30, 3)
    assert np.all(model.certified_radius(X) > 0)
    assert model.adversarial_loss(X, y, 0.0) == pytest.approx(
        sum(
            np.square(f - t).sum() / 2
            for f, t in zip(model.decision_function(X).T, (np.where(y == k, 1, -1) for k in "abc"), strict=True)
        )
    )


def test_same_seed_same_fit_and_global_streams_untouched():
    X, y, _ = problem(10, 2)
    states = np.random.get_state()[1].copy(), torch.get_rng_state()
    model = ConvexReLUClassifier(n_patterns=8, max_iter=5, random_state=4)
    first, second = quiet_fit(clone(model), X, y), quiet_fit(clone(model), X, y)
    assert np.array_equal(first.v_, second.v_)
    first.to_torch()
    assert np.array_equal(states[0], np.random.get_state()[1])
    assert torch.equal(states[1], torch.get_rng_state())


def test_warm_start_goes_on():
    X, _, y = problem(10, 2)
    model = ConvexReLURegressor(n_patterns=10, beta=0.1, max_iter=12, tol=1e-9, warm_start=True, random_state=0)
    first = quiet_fit(model, X, y).duality_gap_
    patterns = model.patterns_
    assert quiet_fit(model.set_params(max_iter=12), X, y).duality_gap_ < 0.9 * first
    assert model.patterns_ is patterns


def test_unconverged_fits_say_so_and_keep_a_history():
    X, _, y = problem(10, 2)
    with pytest.warns(ConvergenceWarning, match=r"relative duality gap is .* after 2 iterations"):
        model = ConvexReLURegressor(n_patterns=10, max_iter=2).fit(X, y)
    assert not model.converged_
    assert set(model.history_) == {"objective", "primal_residual", "dual_residual", "time", "accuracy"}
    assert len(model.history_["objective"]) == model.n_iter_ == 2


# ---- scikit-learn's examination ----


@pytest.mark.parametrize(
    "model",
    [
        ConvexReLUClassifier(n_patterns=60, solver="scp", max_iter=60, random_state=0),
        ConvexReLURegressor(n_patterns=20, max_iter=30, random_state=0),
    ],
    ids=["classifier", "regressor"],
)
def test_scikit_learn_checks(model):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        check_estimator(model)


# ---- misuse ----


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"beta": 0.0}, "beta must be > 0"),
        ({"adversarial_radius": -0.1}, "adversarial_radius must be >= 0"),
        ({"n_patterns": 0}, "n_patterns must be None or an integer >= 1"),
        ({"patterns": np.ones((3, 4), dtype=bool)}, r"patterns must be a boolean array of shape \(P, 6\)"),
        ({"patterns": np.ones((3, 6))}, r"patterns must be a boolean array of shape \(P, 6\)"),
        ({"patterns": "all"}, "patterns must be one of"),
        ({"solver": "admm"}, "solver must be 'admm-rbcd', 'scp' or 'pdhg' with this loss, got 'admm'"),
        ({"solver": "scp", "adversarial_radius": 0.1}, "solver must be 'pdhg' or 'auto' with adversarial_radius"),
        ({"solver": "scp", "patterns": "exact"}, "patterns must be 'sample' with solver='scp'"),
        ({"solver": "newton"}, "solver must be one of"),
        ({"loss": "log"}, "loss must be one of"),
        ({"backend": "dask"}, "backend must be one of"),
    ],
)
def test_bad_arguments(options, message):
    X, y, _ = problem()
    with pytest.raises(ValueError, match=message):
        ConvexReLUClassifier(**options).fit(X, y)


def test_bad_data():
    X, y, _ = problem()
    with pytest.raises(ValueError, match="at least two classes, got 1 class"):
        ConvexReLUClassifier().fit(X, np.ones(6))
    with pytest.raises(ValueError, match="NaN"):
        ConvexReLUClassifier().fit(np.where(X > 0, np.nan, X), y)
    with pytest.raises(NotFittedError):
        ConvexReLURegressor().predict(X)
    with pytest.raises(ValueError, match="loss must be one of 'squared', got 'hinge'"):
        ConvexReLURegressor(loss="hinge").fit(X, y)
    with pytest.raises(ValueError, match="X must be finite"):
        enumerate_patterns([[np.inf, 1.0]])
    with pytest.raises(ValueError, match="psi must be a number in"):
        required_patterns(3, 1.5, 0.1)
    with pytest.raises(ValueError, match=r"y must be -1 or 1 with loss='hinge'"):
        convex_objective(X, y + 1, np.ones((1, 6), bool), [[0.0, 0]], [[0.0, 0]], loss="hinge", beta=1.0)
    with pytest.raises(ValueError, match=r"w must be of shape \(1, 2\)"):
        convex_objective(X, y, np.ones((1, 6), bool), [[0.0, 0]], [[0.0]], loss="hinge", beta=1.0)
    with pytest.raises(AttributeError, match="predict_proba"):
        _ = ConvexReLUClassifier(loss="hinge").predict_proba


def test_an_iterate_that_is_not_finite_raises():
    X, _, y = problem()
    with pytest.raises(FloatingPointError, match="iteration 1"):
        ConvexReLURegressor(n_patterns=5, fit_intercept=False).fit(X, y * 1e200)


@pytest.mark.parametrize(("n_patterns", "seed"), [(10, 1), (5, 0)])
def test_interior_points_that_break_down_leave_the_best_one_with_its_certificate(n_patterns, seed):
    """Few patterns, separable classes and a small beta: steps beyond the last digit were an error once."""
    X, y = load_iris(return_X_y=True)
    X = StandardScaler().fit_transform(X)
    model = ConvexReLUClassifier(n_patterns=n_patterns, tol=1e-2, random_state=seed)
    with pytest.warns(ConvergenceWarning, match="relative duality gap"):
        model.fit(X, y)
    assert model.score(X, y) > 0.95
    assert np.isfinite(model.objective_).all()
    assert (np.asarray(model.duality_gap_) >= 0).all()
