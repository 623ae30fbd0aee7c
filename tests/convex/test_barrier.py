"""Tests of the central path of programs against perturbations: derivatives by differences, optima by Clarabel."""

import numpy as np
import pytest
import torch

from steepest.convex import ConvexReLUClassifier, enumerate_patterns
from steepest.convex import _losses as losses
from steepest.convex._barrier import Barrier
from steepest.convex._program import Program
from tests.convex.test_relu_network import EACH_LOSS, problem, program, quiet_fit, reference, tensor


def started(loss, steps=3):
    """A path that has left its start, over cones with room inside."""
    X, labels, targets = problem(6, 2)
    y = targets if loss == "squared" else labels
    cells = enumerate_patterns(X)
    p = Program(tensor(X), tensor(y), tensor(cells), loss, 0.1, tensor([0.1, 0.0]))
    inside = p.points_inside()
    alive = inside.any(-1)
    path = Barrier(p.of_patterns(alive), inside[alive], 1e-6)
    for _ in range(steps):
        path.step()
    return path


def test_points_inside_keep_their_pattern_over_the_boxes():
    X, y, _ = problem(6, 2)
    p = Program(tensor(X), tensor(y), tensor(enumerate_patterns(X)), "hinge", 0.1, tensor([0.3, 0.3]))
    inside = p.points_inside()
    slack = p.cone(inside.expand(p.shape))[0] - (inside.abs() @ p.radius)[:, None]
    alive = inside.any(-1)
    assert 0 < int(alive.sum()) < len(inside)
    assert float(slack[alive].min()) >= 1 - 1e-6
    turns = torch.linspace(0, 2 * np.pi, 4001, dtype=torch.float64)  # a cone of the plane, by all its directions
    h = torch.stack([turns.cos(), turns.sin()], dim=1)
    for i in range(len(inside)):
        kept = (p.signs[i] * (h @ p.X.T) - (h.abs() @ p.radius)[:, None]).amin(1) > 1e-3
        assert bool(kept.any()) == bool(alive[i])


@EACH_LOSS
def test_gradient_is_that_of_the_value(loss):
    path = started(loss)
    gen = torch.Generator().manual_seed(0)
    du, de = (torch.randn(path.u.shape, generator=gen, dtype=torch.float64) for _ in range(2))
    de = de * path._moves
    step = 1e-6 * float(path._slack(path.u, path.e).min().clamp(max=1.0))
    ends = [path._value(path.u + sign * step * du, path.e + sign * step * de) for sign in (1, -1)]
    gu, ge = path._gradient(path.u, path.e)
    assert float((gu * du).sum() + (ge * de).sum()) == pytest.approx((ends[0] - ends[1]) / (2 * step), rel=1e-4)


@EACH_LOSS
def test_second_derivatives_are_those_of_the_gradient(loss):
    path = started(loss)
    gen = torch.Generator().manual_seed(0)
    du, de = (torch.randn(path.u.shape, generator=gen, dtype=torch.float64) for _ in range(2))
    de = de * path._moves
    step = 1e-5 * float(path._slack(path.u, path.e).min().clamp(max=1.0))
    plus, minus = (path._gradient(path.u + s * step * du, path.e + s * step * de) for s in (1, -1))
    Huu, Hue, Hee = path._blocks()
    along = (path._hessian(Huu) @ du.reshape(-1)).reshape(du.shape) + (Hue @ de[..., None])[..., 0]
    across = (Hue.mT @ du[..., None])[..., 0] + (Hee @ de[..., None])[..., 0]
    assert torch.allclose(along, (plus[0] - minus[0]) / (2 * step), rtol=1e-4, atol=1e-4)
    assert torch.allclose(across, (plus[1] - minus[1]) / (2 * step), rtol=1e-4, atol=1e-4)


@EACH_LOSS
def test_path_ends_at_the_optimum_with_feasible_multipliers(loss):
    path = started(loss, steps=0)
    p = path.program
    for _ in range(120):
        path.step()
        assert p.violation(path.u) == 0
    found = path.candidate()
    objective, bound = p.objective(found.u), p.dual_bound(found)
    assert bound <= objective
    assert objective - bound <= 1e-5 * objective
    at = path.point
    scale = {"hinge": 1.0, "logistic": 2.0, "squared": 1.0}[loss]
    assert bool((at.q.abs() <= scale * at.t[:, None] * p.radius + 1e-12).all())
    assert float(at.mu.min()) >= 0
    assert float(found.slope.max()) <= p.beta * (1 + 1e-4)


@EACH_LOSS
def test_against_perturbations_the_optimum_is_clarabels(loss):
    X, y, _ = problem()
    patterns = enumerate_patterns(X)
    options = {"loss": loss, "beta": 0.1, "patterns": patterns, "fit_intercept": False, "adversarial_radius": 0.1}
    model = ConvexReLUClassifier(**options, max_iter=400, tol=1e-4).fit(X, y)
    assert model.converged_
    assert model.objective_ == pytest.approx(reference(X, y, patterns, 0.1, loss, 0.1), rel=1e-4)


def test_patterns_lost_over_the_boxes_change_nothing_and_stay_zero():
    X, y, _ = problem(6, 2)
    patterns = enumerate_patterns(X)
    options = {"loss": "hinge", "beta": 0.1, "patterns": patterns, "fit_intercept": False, "adversarial_radius": 0.3}
    model = ConvexReLUClassifier(**options, max_iter=400, tol=1e-4).fit(X, y)
    p = Program(tensor(X), tensor(y), tensor(patterns), "hinge", 0.1, tensor([0.3, 0.3]))
    lost = ~p.points_inside().any(-1).numpy()
    assert lost.any()
    assert not model.v_[lost].any()
    assert model.objective_ == pytest.approx(reference(X, y, patterns, 0.1, "hinge", 0.3), rel=1e-4)


def test_samples_against_perturbations_have_the_pattern_of_affine_functions():
    rng = np.random.default_rng(0)
    X = rng.standard_normal((30, 6))
    y = np.sign(X[:, 0] + 0.1)
    options = {"loss": "hinge", "beta": 0.01, "n_patterns": 5, "random_state": 0, "adversarial_radius": 0.1}
    model = quiet_fit(ConvexReLUClassifier(**options, max_iter=200), X, y)
    assert model.patterns_.all(1).any()
    assert model.score(X, y) > 0.9
    without = quiet_fit(ConvexReLUClassifier(**options, fit_intercept=False, max_iter=20), X, y)
    assert not without.patterns_.all(1).any()


def test_smoothed_hinge_is_a_minimum_over_xi():
    path = started("hinge")
    loss, mu = path._loss(path.u), path._mu
    p = path.program
    c = p.coefficients(path.u)
    s = 1 - p.y * (p.X * c).sum(1) + torch.sqrt(c.square() + mu**2) @ p.radius
    xi = torch.linspace(1e-6, 30, 400_001, dtype=torch.float64)
    for k in range(len(s)):
        room = xi - s[k]
        values = torch.where(room > 0, xi - mu * xi.log() - mu * room.clamp(min=1e-300).log(), torch.inf)
        assert float(loss.value[k]) == pytest.approx(float(values.min()), abs=1e-6)
    assert float(loss.t.max()) < 1


def test_hinge_has_no_cancellation_far_from_its_corner():
    assert losses.LOSSES == ("squared", "logistic", "hinge")
    p = program("hinge", radius=0.0)
    p.radius = tensor([0.0, 0.0])
    path = object.__new__(Barrier)
    path.program, path._mu = p, 1e-9
    u = torch.zeros(p.shape, dtype=torch.float64)
    for size in (0.0, 1e3):
        loss = path._loss(u + size)
        assert bool(torch.isfinite(loss.value).all())
        assert bool((loss.t >= 0).all() and (loss.t <= 1).all())
        assert bool((loss.second >= 0).all())
