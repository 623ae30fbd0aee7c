import numpy as np
import pytest
import torch

from steepest.convex import ConvexReLUClassifier, ConvexReLURegressor, _fitting, enumerate_patterns
from steepest.convex import _losses as losses
from steepest.convex._interior import Blocks, InteriorPoint, is_affordable
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
def test_all_patterns_to_seven_digits_within_forty_five_steps(loss, beta):
    X, labels, targets = problem(10, 3)
    y = targets if loss == "squared" else labels
    patterns = enumerate_patterns(X)
    case = Program(tensor(X), tensor(y), tensor(patterns), loss, beta, tensor(np.zeros(3)))
    _, k, objective, bounds = solved(case)
    optimum = reference(X, y, patterns, beta, loss)
    assert objective == pytest.approx(optimum, rel=1e-6)
    assert max(bounds) <= optimum * (1 + 1e-7)
    assert k <= 45


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
    du, z = Blocks(case, K, torch.full((2, 5), 1e-6, dtype=torch.float64), W).solve(b)
    F = torch.stack([case.forward(e.reshape(2, 5, 3)) for e in torch.eye(30, dtype=torch.float64)], dim=1)
    dense = torch.block_diag(*K.reshape(10, 3, 3)) + F.T @ (W[:, None] * F)
    assert torch.allclose(du.reshape(-1), torch.linalg.solve(dense, b.reshape(-1)), rtol=1e-9, atol=1e-11)
    assert torch.allclose(z, W * (F @ du.reshape(-1)), rtol=1e-9, atol=1e-11)


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
