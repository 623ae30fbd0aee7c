"""The built-in means and tangent space: closed forms, invariances, pyRiemann."""

import numpy as np
import pytest
from sklearn.base import clone

from steepest.core.errors import ConvergenceWarning
from steepest.manifold._riemannian import TangentSpace, mean_logeuclid, mean_riemann


def matrices(n=12, d=6, seed=0, scale=1.0):
    A = np.random.default_rng(seed).standard_normal((n, d, 2 * d))
    return scale * A @ A.mT / (2 * d)


def log(C):
    w, V = np.linalg.eigh(C)
    return (V * np.log(w)) @ V.T


def power(C, a):
    w, V = np.linalg.eigh(C)
    return (V * w**a) @ V.T


def test_commuting_matrices_have_the_geometric_mean_of_their_eigenvalues():
    rng = np.random.default_rng(0)
    Q = np.linalg.qr(rng.standard_normal((5, 5)))[0]
    w = rng.uniform(0.01, 100, (7, 5))
    expected = (Q * np.exp(np.log(w).mean(axis=0))) @ Q.T
    for mean in (mean_riemann, mean_logeuclid):
        np.testing.assert_allclose(mean((Q * w[:, None]) @ Q.T), expected, rtol=1e-9, atol=1e-9)


def test_mean_of_two_is_the_middle_of_their_geodesic():
    A, B = matrices(2)
    root, inverse = power(A, 0.5), power(A, -0.5)
    np.testing.assert_allclose(mean_riemann([A, B]), root @ power(inverse @ B @ inverse, 0.5) @ root, rtol=1e-7)


def test_gradient_vanishes_and_the_mean_follows_congruences_and_units():
    C = matrices()
    M = mean_riemann(C)
    inverse = power(M, -0.5)
    assert np.linalg.norm(np.mean([log(inverse @ c @ inverse) for c in C], axis=0)) <= 1e-8
    W = np.random.default_rng(1).standard_normal((6, 6))
    np.testing.assert_allclose(mean_riemann(W @ C @ W.T), W @ M @ W.T, rtol=1e-6)
    np.testing.assert_allclose(mean_riemann(1e-12 * C), 1e-12 * M, rtol=1e-7)


def test_tangent_vectors_keep_the_affine_invariant_norm():
    C = matrices()
    space = TangentSpace().fit(C)
    inverse = power(space.reference_, -0.5)
    expected = [np.linalg.norm(log(inverse @ c @ inverse)) for c in C]
    np.testing.assert_allclose(np.linalg.norm(space.transform(C), axis=1), expected, rtol=1e-10)
    np.testing.assert_allclose(space.transform(C).mean(axis=0), 0, atol=1e-8)
    flat = TangentSpace("logeuclid").fit(C)
    expected = [np.linalg.norm(log(c) - log(flat.reference_)) for c in C]
    np.testing.assert_allclose(np.linalg.norm(flat.transform(C), axis=1), expected, rtol=1e-10)


def test_agrees_with_pyriemann():
    pytest.importorskip("pyriemann")
    from pyriemann.geometry.mean import mean_logeuclid as their_logeuclid
    from pyriemann.tangentspace import TangentSpace as Theirs

    C = matrices(20, 8, scale=1e-10)
    theirs = Theirs(metric="riemann").fit(C)
    ours = TangentSpace().fit(C)
    np.testing.assert_allclose(ours.reference_, theirs.reference_, rtol=1e-6, atol=1e-18)
    np.testing.assert_allclose(ours.transform(C), theirs.transform(C), atol=1e-7)
    np.testing.assert_allclose(mean_logeuclid(C), their_logeuclid(C), rtol=1e-9, atol=1e-20)


def test_far_apart_matrices_still_converge():
    w = 10.0 ** np.random.default_rng(2).uniform(-3, 3, (30, 4))
    Q = np.linalg.qr(np.random.default_rng(3).standard_normal((30, 4, 4)))[0]
    C = (Q * w[:, None]) @ Q.mT
    M = mean_riemann((C + C.mT) / 2)
    inverse = power(M, -0.5)
    J = np.mean([log(inverse @ c @ inverse) for c in (C + C.mT) / 2], axis=0)
    assert np.linalg.norm(J) <= 2e-8


def test_misuse():
    with pytest.raises(ValueError, match="metric must be one of 'riemann', 'logeuclid', got 'euclid'"):
        TangentSpace("euclid").fit(matrices())
    with pytest.raises(ValueError, match=r"X must be matrices of shape \(n, d, d\)"):
        mean_riemann(np.eye(3))
    with pytest.raises(ValueError, match="positive definite"):
        mean_riemann(np.stack([np.eye(2), np.diag([1.0, 0.0])]))
    with pytest.raises(ValueError, match="finite"):
        mean_riemann([[[np.nan]]])
    with pytest.raises(ValueError, match=r"shape \(6, 6\), as in fit"):
        TangentSpace().fit(matrices()).transform(matrices(d=4))
    with pytest.warns(ConvergenceWarning, match="after 2 steps"):
        mean_riemann(matrices(), max_iter=2)
    assert clone(TangentSpace("logeuclid")).metric == "logeuclid"
