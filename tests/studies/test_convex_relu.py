"""Tests of the study of convex networks: its peers by hand, its attacks by corners, and a tiny run."""

import itertools

import numpy as np
import pytest
import torch

from steepest.convex import sample_patterns
from steepest.studies import convex_relu as study
from steepest.studies import convex_relu_optima as optima
from steepest.studies import convex_relu_peers as peers
from steepest.studies import convex_relu_robust as robust
from steepest.studies.context import Context, Job, Unavailable
from tests.studies import check_study as check


def tensor(a):
    return torch.as_tensor(np.asarray(a, dtype=np.float64))


def test_tail_of_a_geometric_path():
    k = np.arange(3000)
    rate, fit, decades = optima.tail(3 * 0.99**k + 5 * 0.9**k)
    assert rate == pytest.approx(0.99, abs=1e-4)
    assert fit > 0.9999
    assert decades == pytest.approx(4, abs=0.1)
    assert optima.tail(1 / (1.0 + k))[1] < 0.95


def test_optimum_is_clarabels():
    pytest.importorskip("cvxpy")
    X, y = peers.planted(9, 3, 0)
    patterns = sample_patterns(X, 12, random_state=0)
    value, bound, u, nu = peers.optimum(peers.program(X, y, patterns, 0.1), 1e-8)
    best, f, _ = peers.clarabel(X, y, patterns, 0.1, tol=1e-10)
    assert bound <= best * (1 + 1e-9)
    assert value == pytest.approx(best, rel=1e-6)
    p = peers.program(X, y, patterns, 0.1)
    np.testing.assert_allclose(p.forward(u), f, atol=1e-4)
    np.testing.assert_allclose(nu, y - f, atol=1e-4)


def test_objective_of_networks_by_hand():
    W, a = tensor([[[1.0, 0.0], [0.0, -2.0]]]), tensor([[3.0, 1.0]])
    X, y = tensor([[2.0, 1.0], [-1.0, -1.0]]), tensor([5.0, 0.0])
    value = peers.network_objective(W, a, X, y, 0.1)
    assert float(value) == pytest.approx(0.5 * (1 + 4) + 0.05 * (1 + 4 + 9 + 1))


def test_split_is_standardized_by_the_training_rows():
    X = np.random.default_rng(0).normal(3, 2, (50, 4))
    X[:, 2] = 1.0
    rows, y, test, truth = peers.split(X, np.arange(50.0), 0)
    assert rows.shape == (35, 4)
    assert test.shape == (15, 4)
    np.testing.assert_allclose(rows[:, :3].mean(0), 0, atol=1e-12)
    np.testing.assert_allclose(rows[:, :3].std(0), 1)
    assert sorted([*y, *truth]) == list(range(50))


def test_attack_on_an_affine_network_is_exact():
    """f = x1 - 2 x2 + 4 where both neurons are active: the worst change of f in a box is 3 radius."""
    W, a = np.array([[1.0, -2.0, 14.0], [0.0, 0.0, 1.0]]), np.array([1.0, -10.0])
    X = np.array([[0.0, 1.9, 1.0], [0.0, 1.6, 1.0], [1.0, 0.0, 1.0]])
    y = np.ones(3)
    margin = X @ np.array([1.0, -2.0, 4.0])
    for radius in (0.05, 0.2, 0.4):
        found = peers.attacked_accuracy(W, a, X, y, radius, 0, restarts=2)
        assert found == pytest.approx(np.mean(margin > 3 * radius))


def test_attack_is_never_stronger_than_the_corners_of_an_affine_network():
    rng = np.random.default_rng(0)
    W, a = np.column_stack([rng.standard_normal((6, 2)), np.full(6, 40.0)]), rng.standard_normal(6)
    X = np.column_stack([rng.standard_normal((30, 2)), np.ones(30)])
    f = (X @ W.T) @ a
    y = np.sign(f)
    corners = np.array([[*c, 0.0] for c in itertools.product((-0.3, 0.3), repeat=2)])
    exact = np.mean([(y[k] * ((X[k] + corners) @ W.T @ a) > 0).all() for k in range(30)])
    assert peers.attacked_accuracy(W, a, X, y, 0.3, 0, restarts=1) == pytest.approx(exact)


def test_adam_networks_train_and_repeat():
    X, y = peers.planted(20, 3, 0)
    W, a = peers.adam_networks(X, y, 8, [0, 1], beta=0.1, steps=300)
    values = peers.network_objective(W, a, tensor(X), tensor(y), 0.1)
    assert float(values.max()) < 0.2 * float(0.5 * tensor(y).square().sum())
    again = peers.adam_networks(X, y, 8, [0, 1], beta=0.1, steps=300)[0]
    assert torch.equal(W, again)


def test_admm_alone_comes_to_the_optimum():
    X, y = peers.planted(8, 2, 0)
    p = peers.program(X, y, sample_patterns(X, 10, random_state=0), 0.1)
    best = peers.optimum(p)[0]
    for plain in (True, False):
        path = peers.admm(p, 1500, p.network_objective, plain=plain, rho=0.1)
        assert path[-1] == pytest.approx(best, rel=0.05)
        assert path[0] > 1.5 * best


def test_paper_scale_on_small_images(monkeypatch):
    rng = np.random.default_rng(0)
    pixels, labels = rng.integers(0, 255, (40, 2, 2, 3)).astype(np.uint8), np.arange(40) % 10
    X, y = robust._two_classes(pixels, labels)
    assert X.shape == (8, 12)
    assert set(y) == {-1.0, 1.0}
    monkeypatch.setattr(robust, "WIDTH", 4)
    ctx = Context(study, Job("convex-relu", "paper", max_steps=3))
    assert -1 <= robust.images(ctx, (X, y), (X, y), n=8) <= 1
    with pytest.raises(Unavailable, match="--data"):
        study.run(ctx)


@pytest.fixture(scope="module")
def tiny():
    return check.run_tiny(study)


@pytest.mark.slow
def test_tiny_run_reports_every_claim_and_draws(tiny):
    check.check_measured(study, tiny, unless=("installed", "pyscnn", "scnn"), infinite=("seeds-spread-sgd",))
    check.check_logged(study, tiny)
    check.check_pictures(study, tiny)


@pytest.mark.slow
def test_what_does_not_depend_on_size_holds_even_at_tiny(tiny):
    assert tiny._measured["optimum-gap"][0] <= 1e-4
    for loss in robust.LOSSES:
        assert tiny._measured[f"adversarial-{loss}"][0] <= 1e-4


@pytest.mark.slow
def test_the_snippet_and_the_page_run():
    check.check_texts(study)
