"""Tests of the CBO study: its exact laws, its account of evaluations, its shares, and a tiny run."""

import math

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from scipy.stats import binomtest

from steepest.particles.test_functions import FUNCTIONS, canyon
from steepest.studies import cbo as study
from steepest.studies import cbo_gradient as gradient
from steepest.studies import cbo_networks as learn
from steepest.studies import cbo_peers as peers
from steepest.studies import cbo_search as search
from tests.studies import check_study as check

# --------------------------------------------------------------------------------------------------------------- exact


def test_proximal_step_of_a_quadratic_is_the_resolvent():
    c, tau = np.array([0.7, -2.0]), 0.3
    want = c / (1 + tau * gradient.CURVATURES)
    found = gradient.proximal_step(gradient.quadratic, c, tau, lambda x: gradient.CURVATURES * x)
    np.testing.assert_allclose(found, want, atol=1e-10)
    np.testing.assert_allclose(gradient.proximal_step(gradient.quadratic, c, tau), want, atol=1e-6)


def test_proximal_step_of_the_wells_solves_its_cubic():
    c, tau = np.array([1.01, 0.4]), 0.5
    y = gradient.proximal_step(gradient.wells, c, tau, gradient.wells_gradient)
    np.testing.assert_allclose(y + tau * (y**3 - y), c, atol=1e-9)
    numeric = [(gradient.wells(c + h) - gradient.wells(c - h)) / 2e-6 for h in 1e-6 * np.eye(2)]
    np.testing.assert_allclose(gradient.wells_gradient(c), numeric, atol=1e-8)


def test_averaged_step_is_the_mean_of_the_tilted_normal():
    c, alpha, s = np.array([1.05, 0.8]), 7.0, 0.4
    x = np.linspace(-4, 6, 200_001)
    for k in range(2):
        w = np.exp(-((x - c[k]) ** 2) / (2 * s**2) - alpha * (x * x - 1) ** 2 / 4)
        assert gradient.averaged_step(c, alpha, s)[k] == pytest.approx((w * x).sum() / w.sum(), abs=1e-9)


def test_sampling_error_is_that_of_many_hops():
    c, alpha, s, n = np.array([0.5, 0.1]), 5.0, 0.3, 4000
    target = c / (1 + alpha * s**2 * gradient.CURVATURES)
    squares = [((gradient.hop(gradient.quadratic, c, n, alpha, s, k) - target) ** 2).sum() for k in range(300)]
    assert math.sqrt(np.mean(squares) * n) == pytest.approx(gradient.sampling_error(c, alpha, s), rel=0.1)


@pytest.mark.parametrize("hits", [0, 3, 17, 20])
def test_wilson_is_scipys(hits):
    theirs = binomtest(hits, 20).proportion_ci(method="wilson")
    np.testing.assert_allclose(search.wilson(hits, 20), (theirs.low, theirs.high), atol=1e-7)


def test_descent_follows_the_gradient():
    start = np.array([[8.0, 7.5], [7.0, 8.0]])
    path = search.descent(start, 1e-3, 1)
    for a, b in path.transpose(1, 0, 2):
        slope = [(canyon(a + h) - canyon(a - h)) / 2e-6 for h in 1e-6 * np.eye(2)]
        np.testing.assert_allclose((a - b) / 1e-3, slope, rtol=1e-5)


# --------------------------------------------------------------------------------------------------------- the account


@pytest.mark.parametrize("method", ["CBO", "cbx", "CMA-ES", "differential evolution", "dual annealing"])
def test_every_method_spends_the_budget_and_repeats(method):
    pytest.importorskip(peers.PACKAGES[method])
    before = np.random.get_state()[1].copy()
    task = peers.Task(method, "rastrigin", 5, 1500, 3)
    run = peers.course(task)
    assert run.evaluations[-1] == 1500
    assert list(run.best) == sorted(run.best, reverse=True)
    assert 0 <= run.best[-1] < run.best[0]
    assert peers.course(task).best == run.best
    np.testing.assert_array_equal(np.random.get_state()[1], before)


def test_the_account_ends_within_the_budget():
    account = peers._Account(FUNCTIONS["ackley"], np.ones(3), 5)
    assert account.one(np.ones(3)) == pytest.approx(0, abs=1e-12)
    assert account.many(np.zeros((10, 3))).shape == (10,)
    assert account.spent == 5
    with pytest.raises(peers._Spent):
        account.one(np.zeros(3))


def test_a_missing_peer_has_no_course(monkeypatch):
    monkeypatch.setitem(peers.PACKAGES, "cbx", "no_such_package")
    assert peers.course(peers.Task("cbx", "ackley", 2, 100, 0)) is None


def test_a_rough_run_ends_where_it_is_solved():
    best = search.rough_run(("ackley", 200, 1, 3000))
    assert best[-1] < 1e-2 <= best[-3]
    assert len(best) < 600


def test_cbx_has_the_same_law_in_the_comparison():
    pytest.importorskip("cbx")
    ends = {m: [peers.course(peers.Task(m, "ackley", 4, 6000, k)).best[-1] for k in range(12)] for m in ("CBO", "cbx")}
    ratio = np.median(ends["CBO"]) / np.median(ends["cbx"])
    assert 0.1 < ratio < 10  # values near the end differ by orders of magnitude over the seeds


def test_networks_have_the_layers_they_say():
    assert sum(p.numel() for p in learn.network("shallow", 64).parameters()) == 650
    assert [p.shape[0] for p in learn.network("deep", 64).parameters() if p.ndim == 2] == [20, 10, 10, 10]


def test_sgd_learns_a_plane_and_draws_from_its_own_generator():
    generator = torch.Generator().manual_seed(0)
    X = torch.randn(240, 3, generator=generator)
    y = (X[:, 0] > 0).long()
    before = torch.random.get_rng_state()
    job = learn.Trained("shallow", "SGD", 1, 10, 0.3)
    values = job((X, y), (X, y))
    assert len(values) == 11
    assert values[-2] > 0.9
    assert torch.equal(before, torch.random.get_rng_state())
    assert values == job((X, y), (X, y))


def test_mnist_without_data_says_so(monkeypatch):
    from steepest.studies.context import Context, Job

    monkeypatch.delenv("STEEPEST_DATA", raising=False)
    ctx = Context(study, Job("cbo", "paper", max_steps=2))
    learn.mnist(ctx, "cpu", 1)
    assert "not here" in ctx._measured["paper-mnist-shallow"][2]


@pytest.mark.slow
def test_the_papers_setting_runs(monkeypatch):
    from steepest.studies.context import Context, Job

    generator = torch.Generator().manual_seed(0)
    images = torch.rand(300, 784, generator=generator), torch.randint(10, (300,), generator=generator)
    monkeypatch.setattr(learn, "_read_mnist", lambda folder, train: images)
    ctx = Context(study, Job("cbo", "paper", max_steps=2, n_seeds=2, data="/"))
    learn.mnist(ctx, "cpu", 1)
    assert 0 <= ctx._measured["paper-mnist-shallow"][0] <= 1
    assert 0 <= ctx._measured["paper-mnist-deep"][0] <= 1


# ----------------------------------------------------------------------------------------------------------- the study


@pytest.fixture(scope="module")
def tiny():
    return check.run_tiny(study)


@pytest.mark.slow
def test_tiny_run_reports_every_claim_and_draws(tiny):
    check.check_measured(study, tiny, unless=("not installed", "not at tiny"))
    check.check_logged(study, tiny)
    check.check_pictures(study, tiny)
    assert tiny.best_peer is not None


@pytest.mark.slow
def test_what_does_not_depend_on_size_holds_even_at_tiny(tiny):
    assert tiny._measured["cosine-quadratic"][0] >= 0.95
    assert tiny._measured["cosine-canyon"][0] >= 0.95
    assert -1.2 <= tiny._measured["alpha-slope"][0] <= -0.4
    assert tiny._measured["drift"][0] < 1
    assert tiny._measured["canyon-descent"][0] == 0


def test_the_scale_of_the_paper_needs_an_accelerator():
    check.check_refuses_without_accelerator(study)


@pytest.mark.slow
def test_the_snippet_and_the_page_run():
    names = check.check_texts(study)
    assert names["result"].fun < 1e-2


def test_the_canyons_ripples_hold_a_local_search():
    """Where gradient descent ends is a minimum: a quasi-Newton search goes nowhere from it."""
    end = search.descent(np.array([[4.0, 2.2]]), 1e-2, 300)[-1, 0]
    assert np.linalg.norm(minimize(canyon, end).x - end) < 1e-2
