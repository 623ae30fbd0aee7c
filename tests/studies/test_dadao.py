"""Tests of the DADAO study: problems and transcribed peers against their solutions, and a tiny run."""

import math

import numpy as np
import pytest

from steepest.studies import dadao as study
from steepest.studies import dadao_peers as peers
from steepest.studies import dadao_problems as problems
from tests.studies import check_study as check

# --------------------------------------------------------------------------------------------------------------- exact


@pytest.mark.parametrize("make", [problems.least_squares, problems.logistic])
def test_problems_have_their_solution_constants_and_conjugates(make):
    problem = make(5, 4, 3, samples=20)
    at = np.tile(problem.x_star, (5, 1))
    np.testing.assert_allclose(problem.gradients(at).mean(0), 0, atol=1e-10)
    rng = np.random.default_rng(0)
    X, V = rng.standard_normal((2, 5, 4))
    np.testing.assert_allclose(problem.gradients(X)[2], problem.gradient(2, X[2]), rtol=1e-12)
    np.testing.assert_allclose(problem.dual(problem.gradients(X)), X, atol=1e-8)
    np.testing.assert_allclose(problem.dual_of(3, problem.gradients(X)[3]), X[3], atol=1e-8)
    curvature = ((problem.gradients(X + 1e-5 * V) - problem.gradients(X)) * V).sum(1) / 1e-5 / (V**2).sum(1)
    assert problem.mu * (1 - 1e-4) <= curvature.min()
    assert curvature.max() <= problem.L * (1 + 1e-4)


def test_quadratics_have_the_condition_number():
    problem = problems.quadratics(3, 6, 50, 0)
    H = np.array([problem.gradient(1, e) - problem.gradient(1, np.zeros(6)) for e in np.eye(6)])
    np.testing.assert_allclose(np.linalg.eigvalsh(H)[[0, -1]], [1 / 50, 1])


def test_graphs():
    assert len(problems.barbell(10)[1]) == 91
    assert len(problems.grid(4, 5)[1]) == 31
    for seed in range(5):
        (n, edges), points = problems.geometric_graph(20, 0.25, seed)
        L = peers.laplacian((n, edges))
        assert np.linalg.eigvalsh(L)[1] > 1e-6
        np.testing.assert_array_equal(L, L.T)
        assert points.shape == (20, 2)


@pytest.fixture(scope="module")
def network():
    return problems.least_squares(6, 3, 0, samples=30), problems.barbell(3)


@pytest.mark.parametrize(
    "peer",
    [
        peers.extra,
        peers.gradient_tracking,
        lambda *a: peers.adom_plus(*a, multi_consensus=False),
        lambda *a: peers.adom_plus(*a, multi_consensus=True),
        peers.msda,
        lambda *a: peers.continuized_dual(*a, seed=0),
        lambda *a: peers.gossip_tracking(a[0], a[1], 2.0, a[2], 0, step=0.05 / a[0].L, max_time=3000),
    ],
)
def test_peers_arrive_at_the_solution(network, peer):
    course = peer(*network, 1e-8)
    assert course.distance[-1] <= 1e-8
    assert math.isfinite(course.reach(1e-8))
    assert 0 < course.distance[0] <= 1 + 1e-9  # dual methods do not start at x = 0


def test_reach_asks_for_staying_below():
    course = peers.Course([0, 5, 10, 15], [0, 1, 2, 3], [1.0, 0.01, 0.5, 0.02])
    assert course.reach(0.1) == 15
    assert course.reach(0.6, "time") == 1
    assert course.reach(0.001) == math.inf


# ------------------------------------------------------------------------------------------------------------ the study


@pytest.fixture(scope="module")
def tiny():
    return check.run_tiny(study)


@pytest.mark.slow
def test_tiny_run_reports_every_claim_and_draws(tiny):
    check.check_measured(study, tiny, unless=("Ray",))
    check.check_logged(study, tiny, fewer=("regression", "logistic"))
    check.check_pictures(study, tiny)
    assert tiny.best_peer is not None


@pytest.mark.slow
def test_what_does_not_depend_on_size_holds_even_at_tiny(tiny):
    for name in ("cycle", "complete", "star", "path"):
        assert tiny._measured[f"rates-{name}"][0] == pytest.approx(1, abs=1e-3)
    assert tiny._measured["guarantee"][0] >= 1.3
    assert tiny._measured["workers-equal"][0] in (0.0, None)


def test_the_snippet_and_the_page_run():
    check.check_texts(study)
