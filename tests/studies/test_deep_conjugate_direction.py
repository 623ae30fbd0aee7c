"""Tests of the deep-conjugate-direction study: its smoke, its peers against dense algebra, counts, and a tiny run."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.sparse.linalg import cg

from steepest.physics import ConjugateDirectionNet, DeepConjugateDirection, poisson_matrix, random_obstacles
from steepest.physics._poisson import PoissonStencil
from steepest.studies import deep_conjugate_direction as study
from steepest.studies import deep_conjugate_direction_paper as paper
from steepest.studies import deep_conjugate_direction_peers as peers
from steepest.studies import deep_conjugate_direction_smoke as smoke
from steepest.studies import deep_conjugate_direction_systems as systems
from steepest.studies import deep_conjugate_direction_trials as trials
from steepest.studies.context import Context, Job
from tests.studies import check_study as check

SOLID = random_obstacles((14, 11), 2, 0)


def problem(seed=0):
    A = poisson_matrix(SOLID.shape, SOLID, reduced=True)
    level = np.indices(SOLID.shape).sum(0)[~SOLID]
    return A, level, np.random.default_rng(seed).standard_normal(A.shape[0])


# --------------------------------------------------------------------------------------------------------------- smoke


def test_the_projection_leaves_no_divergence_and_no_flow_through_obstacles():
    for frame in smoke.smoke_frames(~SOLID, 12, np.random.default_rng(0)):
        assert np.abs(frame.divergence).max() < 1e-12
        assert not frame.smoke[SOLID].any()
        assert 0 <= frame.smoke.min() <= frame.smoke.max() <= 1 + 1e-12
        A = poisson_matrix(SOLID.shape, SOLID)
        np.testing.assert_allclose(A @ frame.pressure.ravel(), frame.right_side.ravel(), atol=1e-12)
    assert np.abs(frame.right_side).max() > 1e-3


def test_smoke_rises():
    frames = list(smoke.smoke_frames(np.ones((24, 24), bool), 60, np.random.default_rng(0)))
    rows = np.arange(24)[:, None]
    heights = [float((rows * f.smoke).sum() / f.smoke.sum()) for f in frames]
    assert heights[-1] < heights[0] - 3  # row 0 is the top


def test_a_solver_that_leaves_a_residual_leaves_it_as_divergence():
    exact = smoke.exact_pressure(~SOLID)
    A = poisson_matrix(SOLID.shape, SOLID)
    frames = list(smoke.smoke_frames(~SOLID, 3, np.random.default_rng(0), lambda b: 0.9 * exact(b)))
    for f in frames:
        left = f.right_side.ravel() - A @ f.pressure.ravel()
        np.testing.assert_allclose(-f.divergence.ravel(), left, atol=1e-12)


def test_nothing_moves_where_nothing_pushes():
    flow = [np.full((6, 4), 2.0), np.zeros((5, 5))]  # down by two cells
    field = np.arange(20.0).reshape(5, 4)
    moved = smoke._carried(field, None, flow)
    np.testing.assert_allclose(moved[2:], field[:-2])
    np.testing.assert_allclose(smoke._carried(field, None, [0 * u for u in flow]), field)
    assert smoke.divergence(flow).any() is np.False_


# --------------------------------------------------------------------------------------------------------------- peers


def test_incomplete_cholesky_agrees_with_the_matrix_on_its_pattern():
    A, level, _ = problem()
    apply = peers.incomplete_cholesky(A, level)
    inverse = np.column_stack([apply(e) for e in np.eye(A.shape[0])])
    M = np.linalg.inv(inverse)
    pattern = A.toarray() != 0
    np.testing.assert_allclose(M[pattern], A.toarray()[pattern], atol=1e-10)
    assert np.abs(M[~pattern]).max() > 1e-2  # the fill that it drops
    L = np.linalg.cholesky((M + M.T) / 2)
    assert np.abs(np.tril(L)[np.tril(~pattern)]).max() < 1e-10


def test_incomplete_cholesky_in_three_dimensions():
    A = poisson_matrix((3, 4, 5))
    apply = peers.incomplete_cholesky(A, np.indices((3, 4, 5)).sum(0).ravel())
    M = np.linalg.inv(np.column_stack([apply(e) for e in np.eye(60)]))
    pattern = A.toarray() != 0
    np.testing.assert_allclose(M[pattern], A.toarray()[pattern], atol=1e-10)


@pytest.mark.parametrize("name", list(peers.SOLVERS))
def test_every_peer_solves_to_its_tolerance(name):
    if name in peers.PACKAGES:
        pytest.importorskip("pyamg")
    A, level, b = problem()
    before = np.random.get_state()[1].copy()
    solve, taken = peers.measured(peers.SOLVERS[name], A, level)
    seen = []
    x, iterations = solve(b, 1e-6, seen.append)
    assert np.array_equal(np.random.get_state()[1], before)
    assert np.linalg.norm(b - A @ x) <= 2e-6 * np.linalg.norm(b)
    assert taken >= 0
    assert name == "sparse LU" or len(seen) == iterations > 0


def test_deflation_removes_the_modes_it_is_given():
    A, _, b = problem()
    values, vectors = np.linalg.eigh(A.toarray())
    plain = []
    cg(A, b, rtol=1e-8, callback=plain.append)
    x, deflated = peers.deflated_cg(A, vectors[:, :16])(b, 1e-8, None)
    np.testing.assert_allclose(x, np.linalg.solve(A.toarray(), b), atol=1e-6)
    assert deflated < 0.7 * len(plain)
    only_high = vectors[:, 16:] @ (vectors[:, 16:].T @ b)
    same = []
    cg(A, only_high, rtol=1e-8, callback=same.append)
    assert abs(peers.deflated_cg(A, vectors[:, :16])(only_high, 1e-8, None)[1] - len(same)) <= 1
    W = peers.ritz_vectors(A)
    assert W.shape == (A.shape[0], 16)
    projected = W.T @ A @ W
    np.testing.assert_allclose(W.T @ W, np.eye(16), atol=1e-10)
    np.testing.assert_allclose(projected, np.diag(np.diag(projected)), atol=1e-10)
    assert np.diag(projected)[0] < 10 * values[0]


# ------------------------------------------------------------------------------------------------------- single numbers


def test_systems_of_a_seed():
    first, again = ([g.right_sides for g in systems.grids(16, 3)] for _ in range(2))
    for a, b in zip(first, again, strict=True):
        assert all(np.array_equal(a[kind], b[kind]) for kind in systems.KINDS)
    layouts = list(systems.grids(16, 3))
    assert layouts[0].fluid.all()
    for grid in layouts:
        assert list(grid.right_sides) == list(systems.KINDS)
        for b in grid.right_sides.values():
            assert not b[~grid.inside].any()
            assert np.abs(b).max() > 1e-6
        assert grid.reduced.shape == (grid.fluid.sum(),) * 2
        assert len(grid.level) == grid.fluid.sum()


def test_training_asks_for_products_alone(monkeypatch):
    assert trials.surplus_products() == 0
    original = trials.DeepConjugateDirection.fit

    def with_solutions(self, A, **options):
        A.matvec(np.ones(A.shape[0]))
        return original(self, A, **options)

    monkeypatch.setattr(trials.DeepConjugateDirection, "fit", with_solutions)
    assert trials.surplus_products() == 1


def test_the_size_that_counts_is_the_nearest_trained_one():
    plan = trials.Plan((), {32: {32: 4, 64: 4}, 64: {64: 4}}, memory_at=32, levels=1, pairs=1)
    assert study._sizes(plan) == {32: 32, 64: 64}


# ------------------------------------------------------------------------------------------------------------ the study


@pytest.fixture(scope="module")
def tiny():
    return check.run_tiny(study)


@pytest.mark.slow
def test_tiny_run_reports_every_claim_and_draws(tiny):
    check.check_measured(study, tiny, unless=("pyamg",))
    check.check_logged(study, tiny)
    check.check_pictures(study, tiny)
    assert tiny.best_peer is not None


@pytest.mark.slow
def test_what_does_not_depend_on_size_holds_even_at_tiny(tiny):
    found = {claim: value for claim, (value, *_) in tiny._measured.items()}
    assert found["unsupervised"] == 0
    assert found["descent"] <= 1
    assert found["smoke-divergence"] < 1e-6
    assert found["obstacles-converged"] == 1
    assert 0 <= found["fallbacks"] <= 1


def test_the_paper_scale_runs_on_what_is_there():
    check.check_refuses_without_accelerator(study)
    ctx = Context(study, Job("deep-conjugate-direction", "paper", max_steps=12))
    plan = paper.PaperPlan(6, (6, 8), 400, 40, 1, 5, 4e-3, filters=4, levels=1, n_solves=2)
    paper.measure(ctx, torch.device("cpu"), plan)
    for claim in ("gpu-iterations", "gpu-cg"):
        assert math.isfinite(ctx._measured[claim][0])
    sizes = [s.steps[0] for s in ctx.series_log if s.name == "paper iterations" and s.method == "CG"]
    assert sizes == [6, 8]


def test_conjugate_gradients_of_the_paper_scale():
    stencil = PoissonStencil((5, 4))
    b = torch.randn(20, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    x, count = paper.conjugate_gradients(lambda v: stencil(v.reshape(1, 1, 5, 4)).reshape(-1), b, 1e-10)
    np.testing.assert_allclose(x.numpy(), np.linalg.solve(poisson_matrix((5, 4)).toarray(), b.numpy()), atol=1e-8)
    theirs = []
    cg(poisson_matrix((5, 4)), b.numpy(), rtol=1e-10, callback=theirs.append)
    assert abs(count - len(theirs)) <= 1


def test_an_iteration_takes_time():
    model = DeepConjugateDirection(ConjugateDirectionNet(2, 4, levels=1, pairs=1), shape=(8, 8))
    assert 0 < trials.seconds_per_iteration(model, 8, 4) < 1


def test_the_snippet_and_the_page_run():
    check.check_texts(study)
