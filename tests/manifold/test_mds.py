"""Scaling against exact configurations, scikit-learn's SMACOF, and the definition of stress."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.spatial.distance import cdist
from sklearn.manifold import smacof as sklearn_smacof

from steepest.manifold import _mds
from steepest.manifold._landmarks import triangulate


def distances_of(n=60, dimension=5, seed=0):
    X = np.random.default_rng(seed).standard_normal((n, dimension)) * np.linspace(3, 0.5, dimension)
    return X, cdist(X, X)


def symmetric_weights(n, seed=0):
    w = np.random.default_rng(seed).random((n, n)) + 0.1
    return w + w.T


def disparity(Y, X):
    return np.abs(cdist(Y, Y) - cdist(X, X)).max()


@pytest.mark.parametrize("n", [50, 450])  # dense and Lanczos
def test_classic_recovers_euclidean_points(n):
    X, D = distances_of(n, 2)
    assert disparity(_mds.classic(D, 2), X) < 1e-9
    assert disparity(_mds.classic(D, 5)[:, :2], X) < 1e-6  # no more dimensions than there are
    assert _mds.classic(D[:3, :3], 5).shape == (3, 5)


def test_classic_is_torgersons():
    _, D = distances_of()
    n = len(D)
    J = np.eye(n) - 1 / n
    w, V = np.linalg.eigh(-0.5 * J @ D**2 @ J)
    expected = V[:, ::-1][:, :2] * np.sqrt(w[::-1][:2])
    assert np.abs(_mds.upright(_mds.classic(D, 2)) - _mds.upright(expected)).max() < 1e-9


@pytest.mark.parametrize("weighted", [False, True])
def test_stress_is_the_sum_over_pairs(weighted):
    Y, (_, D) = np.random.default_rng(1).standard_normal((300, 2)), distances_of(300)
    W = symmetric_weights(300) if weighted else None
    i, j = np.triu_indices(300, 1)
    terms = (np.linalg.norm(Y[i] - Y[j], axis=1) - D[i, j]) ** 2
    expected = (terms * W[i, j]).sum() if weighted else terms.sum()
    assert _mds.stress(D, Y, W) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("weighted", [False, True])
def test_steps_are_guttman_transforms_every_second_over_relaxed(weighted, monkeypatch):
    monkeypatch.setattr(_mds, "TILE", 16)  # tiles off the diagonal too
    _, D = distances_of(40)
    n, Y = 40, np.random.default_rng(2).standard_normal((40, 2))
    W = symmetric_weights(n) if weighted else np.ones((n, n))

    def transform(Y):
        V, B = -W.copy(), -W * D / np.where(np.eye(n, dtype=bool), 1.0, cdist(Y, Y))
        for A in (V, B):
            np.fill_diagonal(A, 0.0)
            np.fill_diagonal(A, -A.sum(axis=1))
        return np.linalg.pinv(V) @ B @ Y

    one, two = (_mds.smacof(D, Y, weights=W if weighted else None, max_iter=k, tol=0.0) for k in (2, 3))
    first = transform(Y)
    assert np.abs(one.points - first).max() < 1e-10
    assert np.abs(two.points - (2 * transform(first) - first)).max() < 1e-10
    assert one.history[0] == pytest.approx(_mds.stress(D, Y, W), rel=1e-10)
    assert not one.converged


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("seed", range(5))
def test_stress_never_rises(seed, weighted):
    rng = np.random.default_rng(seed)
    D = rng.random((80, 80))  # not even a metric
    D = D + D.T
    np.fill_diagonal(D, 0.0)
    W = symmetric_weights(80, seed) if weighted else None
    start = rng.standard_normal((80, 2))
    start[:5] = start[0]  # coincident points
    found = _mds.smacof(D, start, weights=W)
    assert (np.diff(found.history) <= 0).all()
    assert found.stress == pytest.approx(_mds.stress(D, found.points, W), rel=1e-9)


def test_smacof_agrees_with_scikit_learn():
    _, D = distances_of(100)
    start = _mds.classic(D, 2)
    ours = _mds.smacof(D, start, tol=1e-12, max_iter=5000)
    theirs, stress = sklearn_smacof(D, n_components=2, init=start, n_init=1, max_iter=5000, eps=1e-12, metric=True)
    assert ours.stress == pytest.approx(stress, rel=1e-7)
    assert disparity(ours.points, theirs) < 1e-3 * D.max()


def test_over_relaxed_steps_save_steps():
    _, D = distances_of(150)
    start = np.random.default_rng(0).standard_normal((150, 2))
    _, _, plain = sklearn_smacof(
        D, n_components=2, init=start, n_init=1, max_iter=5000, eps=1e-12, metric=True, return_n_iter=True
    )
    assert _mds.smacof(D, start, max_iter=5000, tol=1e-12).n_iter < 0.8 * plain


@pytest.mark.parametrize("weighted", [False, True])
def test_pairwise_steps_come_to_the_same_minimum(weighted):
    _, D = distances_of(90)
    W = symmetric_weights(90) if weighted else None
    best = _mds.smacof(D, _mds.classic(D, 2), weights=W, tol=1e-10, max_iter=3000).stress
    found = _mds.sgd(D, _mds.classic(D, 2), np.random.default_rng(0), weights=W)
    assert found.converged
    assert found.stress < 1.02 * best
    assert found.stress == pytest.approx(_mds.stress(D, found.points, W))
    again = _mds.sgd(D, _mds.classic(D, 2), np.random.default_rng(0), weights=W)
    assert np.array_equal(found.points, again.points)


@pytest.mark.parametrize("n", [2, 3, 7, 8])
def test_an_epoch_moves_every_pair_once(n):
    # one epoch beside the same pairs one after the other
    class Rounds:
        def permutation(self, k):
            return np.arange(k)

    Y, D = np.random.default_rng(n).standard_normal((2, n)), symmetric_weights(n)
    expected, seen = Y.copy(), []
    for r in range(n):
        for i in range(n):
            j = (r - i) % n
            if i < j:
                seen.append((i, j))
                apart = expected[:, i] - expected[:, j]
                d = np.linalg.norm(apart)
                move = 0.5 * min(0.3 * D[i, j], 1.0) * (d - D[i, j]) / d * apart
                expected[:, i] -= move
                expected[:, j] += move
    assert sorted(seen) == [(i, j) for i in range(n) for j in range(i + 1, n)]
    _mds._epoch(Y, D, D, 0.3, Rounds())
    assert np.abs(Y - expected).max() < 1e-13


def test_perfect_distances_are_met():
    X, D = distances_of(40, 2)
    start = X + 0.1 * np.random.default_rng(0).standard_normal(X.shape)
    # the stress is known to about 1e-13 of sum D^2 / 2, and distances to the root of that
    assert disparity(_mds.smacof(D, start, tol=0.0, max_iter=2000).points, X) < 5e-5
    assert disparity(_mds.sgd(D, start, np.random.default_rng(0)).points, X) < 2e-3  # stops at its tolerance
    assert _mds.smacof(D, X).n_iter <= 2


def test_axes_stand_upright():
    Y = _mds.upright(np.array([[-3.0, 1.0], [2.0, 0.5]]))
    assert Y.tolist() == [[3.0, 1.0], [-2.0, 0.5]]


# ---- placing points against landmarks ----


@pytest.mark.parametrize("anchors", [None, np.arange(30), np.arange(0, 30, 2)])
def test_exact_distances_place_exactly(anchors):
    rng = np.random.default_rng(0)
    Z, Y = rng.standard_normal((30, 2)) + 4, rng.standard_normal((50, 2)) + 4
    placed = triangulate(Z, np.square(cdist(Z, Z)).mean(axis=0), cdist(Y, Z), anchors)
    assert np.abs(placed - Y).max() < 1e-9


@pytest.mark.parametrize("weighted", [False, True])
def test_guttman_steps_lower_the_stress_of_each_point(weighted):
    rng = np.random.default_rng(1)
    Z, d = rng.standard_normal((40, 2)), rng.random((20, 40)) + 1.0
    W = rng.random((20, 40)) + 0.1 if weighted else None
    squares = np.square(cdist(Z, Z)).mean(axis=0)
    before, after = (triangulate(Z, squares, d, a, W) for a in (None, np.arange(40)))

    def loss(Y):
        return ((cdist(Y, Z) - d) ** 2 * (1.0 if W is None else W)).sum(axis=1)

    assert (loss(after) < loss(before)).all()
    step = 1e-6 * rng.standard_normal((200, 20, 2))  # a minimum, nearly
    assert np.median([loss(after + s) - loss(after) for s in step]) > -1e-8


def test_classic_landmarks_fall_on_themselves():
    _, D = distances_of(50)
    Z = _mds.classic(D, 2)
    assert np.abs(triangulate(Z, np.square(D).mean(axis=0), D, None) - Z).max() < 1e-9
