import numpy as np
import pytest
import torch

from steepest.convex import ConvexReLUClassifier, ConvexReLURegressor, _fitting, enumerate_patterns
from steepest.convex import _losses as losses
from steepest.convex._interior import Blocks, InteriorPoint, Norms, Pairs, is_affordable
from steepest.convex._program import Program
from tests.convex.test_relu_network import problem, program, quiet_fit, reference, tensor

EACH_LOSS = pytest.mark.parametrize("loss", losses.LOSSES)


def solved(case, tol=1e-7, steps=60):
    """Steps until certified, and the last objective and bound; every bound on the way must hold."""
    solver, bounds = InteriorPoint(case, tol), []
    for k in range(1, steps + 1):
        solver.step()
        candidate = solver.candidate()
        objective = case.objective(candidate.u)
        bounds.append(case.dual_bound(candidate))
        if objective - bounds[-1] <= tol * objective and case.violation(candidate.u) <= 1e-9:
            return solver, k, objective, bounds
    raise AssertionError(f"gap {objective - bounds[-1]:.1e} of {objective:.3e} after {steps} steps")


@EACH_LOSS
@pytest.mark.parametrize("beta", [0.01, 0.1])
def test_all_patterns_to_seven_digits_within_thirty_steps(loss, beta):
    X, labels, targets = problem(10, 3)
    y = targets if loss == "squared" else labels
    patterns = enumerate_patterns(X)
    case = Program(tensor(X), tensor(y), tensor(patterns), loss, beta, tensor(np.zeros(3)))
    _, k, objective, bounds = solved(case)
    optimum = reference(X, y, patterns, beta, loss)
    assert objective == pytest.approx(optimum, rel=1e-6)
    assert max(bounds) <= optimum * (1 + 1e-7)
    assert k <= 30


@EACH_LOSS
def test_cones_without_inner_points(loss):
    case = program(loss, n=8, d=2, P=12, beta=0.05)  # few of these cells are those of a direction
    case.X[2] = 0.0
    X, y, patterns = case.X.numpy(), case.y.numpy(), case.patterns.numpy() > 0
    _, _, objective, _ = solved(case, tol=1e-5, steps=100)
    assert objective == pytest.approx(reference(X, y, patterns, 0.05, loss), rel=1e-4)


@pytest.mark.parametrize("scale", [1e-3, 1e4])
def test_the_course_does_not_depend_on_units(scale):
    X, _, y = problem(10, 3)
    patterns, zero = tensor(enumerate_patterns(X)), tensor(np.zeros(3))
    one = Program(tensor(X), tensor(y), patterns, "squared", 0.1, zero)
    other = Program(tensor(X), tensor(scale * y), patterns, "squared", 0.1 * scale, zero)
    _, k, objective, _ = solved(one)
    _, other_k, other_objective, _ = solved(other)
    assert other_k == k
    assert other_objective == pytest.approx(scale**2 * objective, rel=1e-6)


def test_blocks_solve_the_coupled_system():
    case = program(n=7, d=3, P=5)
    gen = torch.Generator().manual_seed(0)
    root = torch.randn(2, 5, 3, 3, dtype=torch.float64, generator=gen)
    K, W = root @ root.mT + 1e-3 * torch.eye(3), torch.rand(7, dtype=torch.float64, generator=gen) + 0.1
    b = torch.randn(2, 5, 3, dtype=torch.float64, generator=gen)
    du, z = Blocks(case, K, torch.full((2, 5, 1), 1e-6, dtype=torch.float64), W).solve(b)
    F = torch.stack([case.forward(e.reshape(2, 5, 3)) for e in torch.eye(30, dtype=torch.float64)], dim=1)
    dense = torch.block_diag(*K.reshape(10, 3, 3)) + F.T @ (W[:, None] * F)
    assert torch.allclose(du.reshape(-1), torch.linalg.solve(dense, b.reshape(-1)), rtol=1e-9, atol=1e-11)
    assert torch.allclose(z, W * (F @ du.reshape(-1)), rtol=1e-9, atol=1e-11)


def inner_norms(seed=0):
    """Cones and multipliers off the central path."""
    gen = torch.Generator().manual_seed(seed)
    norms = Norms(torch.randn(2, 4, 3, dtype=torch.float64, generator=gen), 0.7, 0.3)
    norms._s[..., 0] = norms.u.norm(dim=-1) * (1 + torch.rand(2, 4, dtype=torch.float64, generator=gen))
    p = torch.randn(2, 4, 3, dtype=torch.float64, generator=gen)
    norms._z[..., 1:] = -0.6 * p / p.norm(dim=-1, keepdim=True)
    return norms


def test_scaling_takes_cone_and_multiplier_to_the_same_point():
    norms = inner_norms()
    norms.curvature()
    assert torch.allclose(norms._scaled(norms._s, -1.0), norms._middle, atol=1e-12)
    x = torch.randn(2, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    assert torch.allclose(norms._scaled(norms._scaled(x, 1.0), -1.0), x, atol=1e-12)


def test_curvature_is_that_of_the_scaled_cone_without_its_height():
    norms = inner_norms()
    K = norms.curvature()
    eye = torch.eye(4, dtype=torch.float64).expand(2, 4, 4, 4)
    H = torch.stack([norms._scaled(norms._scaled(eye[..., k], -1.0), -1.0) for k in range(4)], -1)
    expected = H[..., 1:, 1:] - H[..., 1:, :1] * H[..., :1, 1:] / H[..., :1, :1]
    assert torch.allclose(K, expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("corrected", [False, True])
def test_directions_solve_the_linearized_products(corrected):
    """lambda o (W dz + W^-1 ds) = mu e - lambda o lambda, minus the products of the trial step."""
    norms, mu = inner_norms(), 0.2
    K = norms.curvature()
    du = torch.randn(2, 4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    product = torch.zeros(2, 4, 4, dtype=torch.float64)

    def jordan(x, y):
        return torch.cat([(x * y).sum(-1, keepdim=True), x[..., :1] * y[..., 1:] + y[..., :1] * x[..., 1:]], -1)

    if corrected:
        norms.aim(0.0, False)
        norms.move(0.3 * du)
        product = jordan(norms._scaled(norms._ds, -1.0), norms._scaled(norms._dz, 1.0))
    held = norms.aim(mu, corrected)
    norms.move(du)
    left = jordan(norms._middle, norms._scaled(norms._dz, 1.0) + norms._scaled(norms._ds, -1.0))
    right = -jordan(norms._middle, norms._middle) - product
    right[..., 0] += mu
    assert torch.allclose(left, right, atol=1e-11)
    assert torch.equal(norms._dz[..., 0], torch.zeros(2, 4, dtype=torch.float64))
    assert torch.allclose(norms._z[..., 1:] + norms._dz[..., 1:], held - (K @ du[..., None])[..., 0], atol=1e-11)


def test_a_step_reaches_the_boundary_and_no_further():
    norms = inner_norms()
    norms.curvature()
    norms.aim(0.1, False)
    length = norms.move(torch.randn(2, 4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(3)))

    def margin(t):
        s, z = norms._s + t * norms._ds, norms._z + t * norms._dz
        return min(float((x[..., 0] - x[..., 1:].norm(dim=-1)).min()) for x in (s, z))

    assert margin(length) == pytest.approx(0, abs=1e-10)
    assert margin(0.99 * length) > 0 > margin(1.01 * length)


@pytest.mark.parametrize("corrected", [False, True])
def test_pairs_solve_their_linearized_products(corrected):
    pairs = Pairs(tensor([1.0, 2.0, 0.5]), 0.4)
    pairs.t = tensor([0.3, 0.1, 2.0])
    missed, change, before = tensor([0.1, -0.2, 0.0]), tensor([0.4, -1.0, 0.2]), tensor([0.0, 0.0, 0.0])
    if corrected:
        pairs.aim(0.0, missed, False)
        pairs.move(tensor([0.2, -0.3, 0.1]))
        before = pairs._da * pairs._dt
    t = pairs.aim(0.2, missed, corrected)
    pairs.move(change + missed)
    assert torch.allclose(pairs.a * pairs._dt + pairs.t * pairs._da, 0.2 - pairs.a * pairs.t - before)
    assert torch.allclose(pairs.t + pairs._dt, t - pairs.t / pairs.a * change)


@EACH_LOSS
def test_a_fit_that_admm_does_not_finish_is_finished(loss, monkeypatch):
    monkeypatch.setattr(_fitting, "FINISH_AFTER", 15)
    X, labels, targets = problem(9, 2)
    kind, y = (ConvexReLURegressor, targets) if loss == "squared" else (ConvexReLUClassifier, labels)
    model = kind(loss=loss, beta=0.01, patterns="exact", fit_intercept=False, tol=1e-6, max_iter=75, random_state=0)
    model.fit(X, y)
    assert model.converged_
    assert 15 < model.n_iter_ < 75
    assert len(model.history_["objective"]) == model.n_iter_
    assert model.objective_ == pytest.approx(reference(X, y, model.patterns_, 0.01, loss), rel=3e-6)
    alive = np.linalg.norm(model.v_, axis=1).astype(bool).sum() + np.linalg.norm(model.w_, axis=1).astype(bool).sum()
    assert alive <= len(X)  # no more neurons than samples


def test_a_finished_fit_is_a_start_that_admm_keeps():
    X, _, y = problem(9, 3)
    model = ConvexReLURegressor(
        beta=0.05, patterns="exact", fit_intercept=False, tol=1e-6, max_iter=200, warm_start=True, random_state=0
    ).fit(X, y)
    first = model.objective_
    quiet_fit(model.set_params(max_iter=10, tol=1e-5), X, y)
    assert model.objective_ == pytest.approx(first, rel=1e-5)
    assert model.converged_


def test_costly_steps_are_left_alone():
    case = program(n=6, d=2, P=9)
    assert is_affordable(case)
    assert not is_affordable(program(n=6, d=2, P=9, radius=0.1))
    case.X = torch.empty(40_000, 2).expand(40_000, 2)
    assert not is_affordable(case)
