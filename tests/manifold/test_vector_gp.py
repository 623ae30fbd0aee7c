"""VectorFieldGP against dense Gaussian algebra, closed forms on the circle, and what a field must not depend on."""

from __future__ import annotations

import pickle
import warnings
from unittest import SkipTest

import numpy as np
import pytest
from scipy.stats import multivariate_normal
from sklearn.base import clone
from sklearn.utils.estimator_checks import estimator_checks_generator

import steepest.manifold._eigenfields as eigenfields_module
import steepest.manifold._evidence as evidence_module
import steepest.manifold.vector_gp as vector_gp_module
from steepest.core.errors import ConvergenceWarning
from steepest.geometry.graph import GeometryWarning
from steepest.manifold import VectorFieldGP
from steepest.manifold._evidence import (
    Hyperparameters,
    Moments,
    evidence,
    maximize_evidence,
    posterior,
    prior_variances,
)


def sphere(n):
    i = np.arange(n) + 0.5
    z, angle = 1 - 2 * i / n, np.pi * (1 + 5**0.5) * i
    r = np.sqrt(1 - z**2)
    return np.column_stack([r * np.cos(angle), r * np.sin(angle), z])


def on_sphere(n, rng):
    X = rng.standard_normal((n, 3))
    return X / np.linalg.norm(X, axis=1, keepdims=True)


def field(X):
    """A smooth tangent field of the sphere with four singularities."""
    return np.cross([0.0, 0.0, 1.0], X) + X[:, 2:] * np.cross(X, [0.0, 1.0, 0.0])


def circle(n):
    angle = 2 * np.pi * np.arange(n) / n
    return np.column_stack([np.cos(angle), np.sin(angle)])


def labelled(X, *, share=0.5, noise=0.1, seed=0):
    rng = np.random.default_rng(seed)
    y = field(X) + noise * rng.standard_normal(X.shape)
    y[rng.random(len(X)) > share] = np.nan
    return y


def relative(a, b):
    return float(np.linalg.norm(a - b) / np.linalg.norm(b))


@pytest.fixture(scope="module")
def data():
    X = sphere(200)
    return X, labelled(X)


@pytest.fixture(scope="module")
def fitted(data):
    return VectorFieldGP(n_eigenpairs=40).fit(*data)


# --- exact -----------------------------------------------------------------------------------------------------------


def linear_model(seed=0, K=12, M=40, T=2):
    rng = np.random.default_rng(seed)
    eigenvalues = np.sort(rng.random(K))
    eigenvalues[0] = 0.0
    return eigenvalues, rng.standard_normal((M, K)), rng.standard_normal((M, T))


@pytest.mark.parametrize("nu", [None, 1.5, 7.0])
def test_evidence_and_posterior_are_those_of_the_dense_gaussian(nu):
    eigenvalues, features, targets = linear_model()
    log_S, _ = prior_variances(eigenvalues, Hyperparameters(2.0, 0.7, 0.1, nu), 70)
    S = np.diag(np.exp(log_S))
    moments = Moments.of(features, targets)
    dense = features @ S @ features.T + 0.1 * np.eye(len(features))
    expected = multivariate_normal(np.zeros(len(dense)), dense).logpdf(targets.T).sum()
    assert evidence(log_S, 0.1, [moments])[0] == pytest.approx(expected, rel=1e-11)
    mean, factor = posterior(log_S, 0.1, moments)
    gain = S @ features.T @ np.linalg.inv(dense)
    np.testing.assert_allclose(mean, gain @ targets, atol=1e-10)
    np.testing.assert_allclose(factor.T @ factor, S - gain @ features @ S, atol=1e-10)


@pytest.mark.parametrize("nu", [None, 1.5])
def test_gradients_are_those_of_finite_differences(nu):
    eigenvalues, features, targets = linear_model()
    moments = [Moments.of(features[:25], targets[:25]), Moments.of(features[20:], targets[20:, :1])]
    theta = np.log([2.0, 0.7, 0.1] + ([] if nu is None else [nu]))

    def value(theta):
        kappa, sigma_f, noise, *rest = np.exp(theta)
        log_S, slopes = prior_variances(eigenvalues, Hyperparameters(kappa, sigma_f, noise, *rest), 70)
        return evidence(log_S, noise, moments), slopes

    (_, slope_S, slope_noise), slopes = value(theta)
    kappa, sigma_f, log_nu = slope_S @ slopes
    numeric = [(value(theta + h)[0][0] - value(theta - h)[0][0]) / 2e-5 for h in 1e-5 * np.eye(len(theta))]
    np.testing.assert_allclose([kappa, sigma_f, slope_noise, log_nu][: len(theta)], numeric, rtol=1e-7)


def test_a_huge_signal_to_noise_ratio_still_factorizes():
    eigenvalues, features, targets = linear_model(M=6, T=1)  # fewer values than weights: A has eigenvalues 1 and 1e18
    log_S = np.full(len(eigenvalues), np.log(1e10))
    mean, factor = posterior(log_S, 1e-8, Moments.of(features, targets))
    np.testing.assert_allclose(features @ mean, targets, atol=1e-6)
    assert np.isfinite(factor).all()
    assert np.isfinite(evidence(log_S, 1e-8, [Moments.of(features, targets)])[0])


def test_the_evidence_is_climbed_to_a_stationary_point():
    eigenvalues, features, _ = linear_model(M=400)
    rng = np.random.default_rng(1)
    log_S, _ = prior_variances(eigenvalues, Hyperparameters(3.0, 1.0, 0.05, 1.5), 70)
    W = np.exp(0.5 * log_S)[:, None] * rng.standard_normal((12, 20))
    moments = [Moments.of(features, features @ W + np.sqrt(0.05) * rng.standard_normal((400, 20)))]
    best = maximize_evidence(eigenvalues, moments, 70, nu=1.5, optimise_nu=True, max_iter=1000)
    assert best.converged
    found = best.parameters
    log_S, slopes = prior_variances(eigenvalues, found, 70)
    value, slope_S, slope_noise = evidence(log_S, found.noise_variance, moments)
    assert np.abs([*(slope_S @ slopes), slope_noise]).max() < 1e-5 * 400 * 20
    assert value > evidence(prior_variances(eigenvalues, Hyperparameters(3.0, 1.0, 0.05, 1.5), 70)[0], 0.05, moments)[0]
    assert found.noise_variance == pytest.approx(0.05, rel=0.05)
    assert found.sigma_f == pytest.approx(1.0, rel=0.2)


@pytest.mark.parametrize(("seed", "winner"), [(42, 0), (128, 1), (48, 2)])
def test_the_best_of_three_starts_wins(seed, winner, monkeypatch):
    rng = np.random.default_rng(seed)
    K, M, noise, kappa = (30, 12, 1.0, 10.0) if seed == 48 else (20, 8, 0.5, 3.0)  # few values: several maxima
    eigenvalues = np.sort(rng.random(K))
    eigenvalues[0] = 0.0
    features = rng.standard_normal((M, K))
    log_S, _ = prior_variances(eigenvalues, Hyperparameters(kappa, 1.0, noise, 1.5), 70)
    signal = features @ (np.exp(0.5 * log_S) * rng.standard_normal(K))[:, None]
    moments = [Moments.of(features, signal + 7 * np.sqrt(noise) * rng.standard_normal((M, 1)))]

    def reached():
        found = maximize_evidence(eigenvalues, moments, 70, nu=1.5, optimise_nu=True, max_iter=1000).parameters
        return evidence(prior_variances(eigenvalues, found, 70)[0], found.noise_variance, moments)[0]

    best, single = reached(), []
    for quantile in (0.05, 0.30, 0.80):
        monkeypatch.setattr(evidence_module, "QUANTILES", (quantile,))
        single.append(reached())
    assert max(single) - min(single) > 0.2
    assert single[winner] == pytest.approx(max(single), abs=1e-6)
    assert best == pytest.approx(max(single), abs=1e-6)


@pytest.mark.parametrize("kernel", ["matern", "se"])
@pytest.mark.parametrize("optimise", [True, False])
def test_the_estimator_is_the_dense_vector_gaussian_process(data, kernel, optimise):
    X, y = data
    model = VectorFieldGP(n_eigenpairs=40, kernel=kernel, optimise=optimise).fit(X, y)
    E, S, s2 = model.encoding_, model.spectral_density_, model.noise_variance_
    rows = np.flatnonzero(~np.isnan(y[:, 0]))
    np.testing.assert_array_equal(model.labelled_, rows)
    T, d = model.frames_, model.dim_
    Phi = np.einsum("nDd,nDk->ndk", T, E)[rows].reshape(-1, 40)
    z = np.einsum("nDd,nD->nd", T[rows], y[rows]).ravel()
    dense = Phi * S @ Phi.T + s2 * np.eye(len(z))
    expected = multivariate_normal(np.zeros(len(z)), dense).logpdf(z)
    assert model.log_marginal_likelihood_ == pytest.approx(expected, rel=1e-8)
    cross = np.einsum("nDk,k,mk->nDm", E, S, Phi)
    weights = np.linalg.solve(dense, z)
    mean, cov = model.predict(X, return_cov=True)
    np.testing.assert_allclose(mean, cross @ weights, atol=1e-8)
    prior = np.einsum("nDk,k,nBk->nDB", E, S, E)
    np.testing.assert_allclose(cov, prior - np.einsum("nDm,nBm->nDB", cross @ np.linalg.inv(dense), cross), atol=1e-8)
    # the mean prior variance per tangent direction is sigma_f^2
    assert np.trace(prior, axis1=1, axis2=2).mean() / d == pytest.approx(model.hyperparameters_["sigma_f"] ** 2)
    lam, kappa = model.eigenvalues_, model.hyperparameters_["kappa"]
    nu = model.hyperparameters_.get("nu")
    s = np.exp(-0.5 * kappa**2 * lam) if kernel == "se" else (lam + 2 * nu / kappa**2) ** -nu
    np.testing.assert_allclose(S / S[0], s / s[0], rtol=1e-10)
    if not optimise:
        given = {"kappa": 5.0, "sigma_f": 1.0, "noise_variance": 1e-3} | ({"nu": 1.5} if kernel == "matern" else {})
        assert model.hyperparameters_ == given
        assert model.n_iter_ == 0


def test_the_spectrum_is_that_of_the_connection_laplacian_and_the_encoding_is_tangent(fitted):
    from steepest.geometry import connection_laplacian

    U, lam = fitted.eigenvectors_, fitted.eigenvalues_
    L = connection_laplacian(fitted.graph_, fitted.frames_)
    np.testing.assert_allclose(U.T @ U, np.eye(40), atol=1e-10)
    assert np.abs(L @ U - U * lam).max() < 1e-8
    assert lam.min() >= 0
    np.testing.assert_allclose(lam, np.linalg.eigvalsh(L.toarray())[:40], atol=1e-10)
    normal = np.cross(fitted.frames_[:, :, 0], fitted.frames_[:, :, 1])
    assert np.abs(np.einsum("nD,nDk->nk", normal, fitted.encoding_)).max() < 1e-12


def circle_eigenvalue(order, n):
    """Of the graph in which each of n points on a circle is joined to the two nearest on each side."""
    return sum(2 - 2 * np.cos(2 * np.pi * step * order / n) for step in (1, 2))


@pytest.mark.parametrize("laplacian", ["combinatorial", "normalized", "random_walk"])
def test_on_the_circle_spectrum_and_new_points_have_closed_forms(laplacian):
    errors = []
    for n in (48, 96):
        X, order = circle(n), 3
        tangents = np.column_stack([-X[:, 1], X[:, 0]])
        y = tangents * np.cos(order * np.arctan2(X[:, 1], X[:, 0]))[:, None]
        model = VectorFieldGP(
            2 * order + 1, 4, dim=1, laplacian=laplacian, optimise=False, noise_variance=1e-10, kappa=0.1
        ).fit(X, y)
        scale = 1 if laplacian == "combinatorial" else 4
        expected = [circle_eigenvalue((i + 1) // 2, n) / scale for i in range(2 * order + 1)]
        np.testing.assert_allclose(model.eigenvalues_, expected, atol=1e-10)
        np.testing.assert_allclose(model.predict(X), y, atol=1e-6)
        # halfway between two points: its four neighbors are half a step and one and a half away
        angle = 2 * np.pi * (np.arange(n) + 0.5) / n
        middle = np.column_stack([np.cos(angle), np.sin(angle)])
        true = np.column_stack([-np.sin(angle), np.cos(angle)]) * np.cos(order * angle)[:, None]
        a = 2 * np.pi * order / n
        ratio = 2 * (np.cos(a / 2) + np.cos(3 * a / 2)) / (4 - circle_eigenvalue(order, n))
        np.testing.assert_allclose(model.predict(middle), ratio * true, atol=1e-6)
        errors.append(abs(ratio - 1))
    assert errors[0] / errors[1] > 3.9  # second order in the spacing


def test_all_labels_at_once_interpolate_and_noise_is_recovered():
    X = sphere(400)
    y = labelled(X, share=0.5, noise=0.1)
    model = VectorFieldGP(n_eigenpairs=60).fit(X, y)
    hidden = np.isnan(y[:, 0])
    assert model.noise_variance_ == pytest.approx(0.01, rel=0.2)
    assert relative(model.predict(X)[hidden], field(X)[hidden]) < 0.1
    assert model.score(X, field(X)) > 0.99


# --- what a prediction must not depend on ----------------------------------------------------------------------------


def test_rotating_and_shifting_the_space_rotates_the_prediction(data, fitted):
    X, y = data
    Q = np.linalg.qr(np.random.default_rng(3).standard_normal((3, 3)))[0]
    new = on_sphere(7, np.random.default_rng(4))
    moved = VectorFieldGP(n_eigenpairs=40).fit(X @ Q.T + [1.0, -2.0, 3.0], y @ Q.T)
    for points in (X, new):
        mean, cov = fitted.predict(points, return_cov=True)
        mean_moved, cov_moved = moved.predict(points @ Q.T + [1.0, -2.0, 3.0], return_cov=True)
        np.testing.assert_allclose(mean_moved, mean @ Q.T, atol=1e-6)
        np.testing.assert_allclose(cov_moved, Q @ cov @ Q.T, atol=1e-6)
    assert moved.log_marginal_likelihood_ == pytest.approx(fitted.log_marginal_likelihood_, rel=1e-8)


def test_the_choice_of_frames_within_the_tangent_planes_is_of_no_account(data, fitted, monkeypatch):
    X, y = data
    original, rng = eigenfields_module.tangent_frames, np.random.default_rng(5)

    def turned(*args, **kwargs):
        found = original(*args, **kwargs)
        gauge = np.linalg.qr(rng.standard_normal((len(found.frames), found.dim, found.dim)))[0]
        assert (np.linalg.det(gauge) < 0).any()
        return type(found)(found.frames @ gauge, found.singular_values, found.dim, found.explained)

    monkeypatch.setattr(eigenfields_module, "tangent_frames", turned)
    other = VectorFieldGP(n_eigenpairs=40).fit(X, y)
    assert relative(other.frames_, fitted.frames_) > 0.1
    for points in (X, on_sphere(7, rng)):
        for a, b in zip(other.predict(points, return_cov=True), fitted.predict(points, return_cov=True), strict=True):
            np.testing.assert_allclose(a, b, atol=1e-6)


def test_the_order_of_the_points_is_of_no_account(data, fitted):
    X, y = data
    order = np.random.default_rng(6).permutation(len(X))
    other = VectorFieldGP(n_eigenpairs=40).fit(X[order], y[order])
    np.testing.assert_allclose(other.predict(X), fitted.predict(X), atol=1e-6)


def test_normal_noise_is_left_out_of_the_field_and_reported(data):
    X, y = data
    away = y + 2 * np.random.default_rng(7).standard_normal((len(X), 1)) * X
    quiet = VectorFieldGP(n_eigenpairs=40).fit(X, y)
    with pytest.warns(GeometryWarning, match="normal to the estimated tangent spaces"):
        loud = VectorFieldGP(n_eigenpairs=40).fit(X, away)
    rows = quiet.labelled_
    shares = [
        1 - np.square(np.einsum("nDd,nD->nd", quiet.frames_[rows], v[rows])).sum() / np.square(v[rows]).sum()
        for v in (y, away)
    ]
    np.testing.assert_allclose([quiet.normal_residual_, loud.normal_residual_], shares, rtol=1e-10)
    assert shares[0] < 0.05 < 0.5 < shares[1]
    assert relative(loud.predict(X), quiet.predict(X)) < 0.1  # frames are not exactly those of the sphere


# --- uncertainty -----------------------------------------------------------------------------------------------------


def test_the_posterior_has_no_variance_along_the_normal(fitted):
    new = on_sphere(20, np.random.default_rng(8))
    for points in (fitted._fields.points, new):
        _, std = fitted.predict(points, return_std=True)
        _, cov = fitted.predict(points, return_cov=True)
        np.testing.assert_allclose(std**2, np.diagonal(cov, axis1=1, axis2=2), rtol=1e-10)
        values, vectors = np.linalg.eigh(cov)
        assert np.abs(values[:, 0]).max() < 1e-14
        assert values[:, 1].min() > 1e-6
        assert np.abs(np.einsum("nD,nD->n", vectors[:, :, 0], points)).min() > 0.98  # the normal of the sphere
    normal = np.cross(fitted.frames_[:, :, 0], fitted.frames_[:, :, 1])
    _, cov = fitted.predict(fitted._fields.points, return_cov=True)
    assert np.abs(cov @ normal[:, :, None]).max() < 1e-14


def test_samples_have_the_posterior_mean_and_joint_covariance(data, fitted):
    X, _ = data
    points = np.concatenate([X[:3], on_sphere(2, np.random.default_rng(9))])
    draws = fitted.sample(points, 20_000, random_state=0).reshape(20_000, -1)
    E = fitted.encode(points).reshape(-1, 40)
    cov = E @ fitted.cov_weights_ @ E.T
    np.testing.assert_allclose(draws.mean(axis=0), fitted.predict(points).ravel(), atol=4 * np.sqrt(cov.max() / 20_000))
    np.testing.assert_allclose(np.cov(draws.T), cov, atol=0.04 * cov.max())
    np.testing.assert_array_equal(fitted.sample(points, 2, random_state=1), fitted.sample(points, 2, random_state=1))
    assert not np.array_equal(fitted.sample(points, 2), fitted.sample(points, 2))
    seeded = clone(fitted).set_params(random_state=3).fit(*data)
    np.testing.assert_array_equal(seeded.sample(points), fitted.sample(points, random_state=3))


def test_intervals_cover_what_they_say():
    X = sphere(200)
    prior = VectorFieldGP(40, optimise=False, kappa=4.0, noise_variance=1e-8).fit(X, np.full_like(X, 0.0))
    rng, covered = np.random.default_rng(10), []
    root = np.sqrt(prior.spectral_density_)
    for _ in range(12):
        truth = prior.encoding_ @ (root * rng.standard_normal(40))
        y = truth + 0.2 * rng.standard_normal(X.shape)
        y[rng.random(len(X)) < 0.6] = np.nan
        model = VectorFieldGP(40).fit(X, y)
        mean, std = model.predict(X, return_std=True)
        T = model.frames_
        _, cov = model.predict(X, return_cov=True)
        spread = np.sqrt(np.einsum("nDd,nDB,nBd->nd", T, cov, T))
        error = np.einsum("nDd,nD->nd", T, mean - truth)
        covered.append((np.abs(error) < 1.645 * spread)[np.isnan(y[:, 0])].mean())
        assert std.shape == X.shape
    assert 0.86 < np.mean(covered) < 0.94


# --- pieces, clusters, new points ------------------------------------------------------------------------------------


def test_a_piece_of_the_graph_without_a_label_keeps_the_prior():
    half = sphere(100)
    X = np.concatenate([half, half + np.array([10.0, 0.0, 0.0])])  # twins: each eigenvalue is there twice
    y = np.concatenate([field(half), np.full_like(half, np.nan)])
    with pytest.warns(GeometryWarning, match=r"2 connected components of sizes 100, 100; 1 of them without a label"):
        model = VectorFieldGP(32).fit(X, y)
    mean, cov = model.predict(X, return_cov=True)
    assert np.abs(mean[100:]).max() == 0
    prior = np.einsum("nDk,k,nBk->nDB", model.encoding_, model.spectral_density_, model.encoding_)
    np.testing.assert_allclose(cov[100:], prior[100:], atol=1e-12)
    assert relative(mean[:100], field(half)) < 0.3
    with pytest.warns(GeometryWarning, match="0 of them without a label"):
        both = VectorFieldGP(32).fit(X, np.concatenate([field(half), field(half)]))
    assert relative(both.predict(X)[100:], field(half)) < 0.3


def test_a_cut_cluster_is_reported_or_completed():
    X = circle(40)
    y = np.column_stack([-X[:, 1], X[:, 0]])
    with pytest.warns(GeometryWarning, match=r"n_eigenpairs=2 cuts a set of equal eigenvalues"):
        cut = VectorFieldGP(2, 4, dim=1).fit(X, y)
    assert cut.eigenvalues_.shape == (2,)
    whole = VectorFieldGP(2, 4, dim=1, complete_clusters=True).fit(X, y)
    assert whole.eigenvalues_.shape == (3,)
    assert whole.encoding_.shape == (40, 2, 3)
    uncut = VectorFieldGP(3, 4, dim=1, complete_clusters=True).fit(X, y)
    assert uncut.eigenvalues_.shape == (3,)
    full = VectorFieldGP(40, 4, dim=1, complete_clusters=True).fit(X, y)
    assert full.eigenvalues_.shape == (40,)


@pytest.mark.parametrize("message", ["ABNORMAL: ", "CONVERGENCE"])
def test_a_search_that_ends_in_rounding_has_converged(monkeypatch, message):
    """Noiseless values: the line search failed on one processor, with a gradient of 1e-7, and not on another."""
    from steepest.manifold import _evidence

    minimize = _evidence.minimize

    def failing(*args, **options):
        found = minimize(*args, **options)
        found.success, found.message = message == "CONVERGENCE", message
        return found

    monkeypatch.setattr(_evidence, "minimize", failing)
    X = circle(40)
    VectorFieldGP(3, 4, dim=1).fit(X, np.column_stack([-X[:, 1], X[:, 0]]))


def test_a_node_has_its_own_encoding_and_new_points_come_closer_as_the_points_do(data, fitted):
    X, _ = data
    np.testing.assert_allclose(fitted.encode(X), fitted.encoding_, atol=1e-14)
    mixed = np.concatenate([X[5:6], on_sphere(1, np.random.default_rng(1)), X[9:10]])
    np.testing.assert_allclose(fitted.encode(mixed)[[0, 2]], fitted.encoding_[[5, 9]], atol=1e-14)
    errors = []
    for n in (150, 600):
        rng = np.random.default_rng(11)
        X, new = sphere(n), on_sphere(200, rng)
        model = VectorFieldGP(24, optimise=False, noise_variance=1e-6).fit(X, field(X))  # three whole clusters
        nodes = model.predict(X)
        nearest = np.argmax(new @ X.T, axis=1)
        errors.append(relative(model.predict(new), nodes[nearest] + 0 * new))
        assert relative(model.predict(new), field(new)) < 1.5 * relative(nodes, field(X)) + 0.02
    assert errors[1] < 0.7 * errors[0]


@pytest.mark.parametrize("laplacian", ["combinatorial", "normalized", "random_walk"])
def test_new_points_solve_the_eigenvalue_equation_of_an_uneven_cloud(laplacian):
    rng = np.random.default_rng(16)
    X, k = on_sphere(80, rng), 8
    model = VectorFieldGP(12, k, dim=2, laplacian=laplacian, optimise=False).fit(X, field(X))
    degree, lam, U = model.graph_.sum(axis=1), model.eigenvalues_, model.eigenvectors_
    assert np.ptp(degree) > 0
    blocks = U.reshape(80, 2, -1)
    if laplacian == "random_walk":  # (1 - λ) U_i = Σ_j R_ij U_j / degree_i
        for i in range(5):
            carried = 0
            for j in model.graph_[[i]].indices:
                left, _, right = np.linalg.svd(model.frames_[i].T @ model.frames_[j])
                carried = carried + left @ right @ blocks[j]
            np.testing.assert_allclose((1 - lam) * blocks[i], carried / degree[i], atol=1e-8)
    for x in on_sphere(4, rng):
        nearest = np.argsort(np.linalg.norm(X - x, axis=1))
        cloud = np.vstack([X[nearest[:12]], x])
        T = np.linalg.svd(cloud - cloud.mean(axis=0))[2][:2].T
        carried = 0
        for j in nearest[:k]:
            left, _, right = np.linalg.svd(T.T @ model.frames_[j])
            weight = {"combinatorial": 1.0, "normalized": (k * degree[j]) ** -0.5, "random_walk": 1 / k}[laplacian]
            carried = carried + weight * left @ right @ blocks[j]
        expected = T @ (carried / ((k if laplacian == "combinatorial" else 1) - lam))
        np.testing.assert_allclose(model.encode(x[None])[0], expected, atol=1e-10)


def test_steep_terms_are_left_out_at_new_points(data):
    X, y = data
    model = VectorFieldGP(n_eigenpairs=400, n_neighbors=6).fit(X, y)
    E = model.encode(on_sphere(5, np.random.default_rng(12)))
    steep = 6 - model.eigenvalues_ < 0.6
    assert 0 < steep.sum() < 400
    assert (E[:, :, steep] == 0).all()
    assert np.abs(E[:, :, ~steep]).max() < 10


def test_queries_go_in_batches(fitted, monkeypatch):
    new = on_sphere(25, np.random.default_rng(13))
    whole = fitted.predict(new, return_std=True), fitted.sample(new, 2, random_state=0), fitted.encode(new)
    monkeypatch.setattr(vector_gp_module, "QUERY_BATCH", 10)
    parts = fitted.predict(new, return_std=True), fitted.sample(new, 2, random_state=0), fitted.encode(new)
    for a, b in zip((*whole[0], *whole[1:]), (*parts[0], *parts[1:]), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-13)


@pytest.mark.parametrize("laplacian", ["normalized", "random_walk"])
def test_other_laplacians_predict_as_well(data, laplacian):
    X, y = data
    model = VectorFieldGP(40, laplacian=laplacian).fit(X, y)
    hidden = np.isnan(y[:, 0])
    assert relative(model.predict(X)[hidden], field(X)[hidden]) < 0.15
    assert relative(model.predict(X + 1e-7), model.predict(X)) < 0.15
    np.testing.assert_allclose(np.linalg.norm(model.eigenvectors_, axis=0), 1.0)
    assert model.eigenvalues_.max() < 2


def test_a_plane_curve_and_a_line_are_manifolds_too():
    t = np.linspace(0.0, 1.0, 40)[:, None]
    model = VectorFieldGP(10, 4).fit(t, np.sin(3 * t))
    assert model.dim_ == 1
    assert relative(model.predict(t), np.sin(3 * t)) < 0.08
    spiral = np.column_stack([(1 + t) * np.cos(4 * t), (1 + t) * np.sin(4 * t), np.zeros((40, 12))])  # D = 14
    assert VectorFieldGP(10, 4).fit(spiral, np.gradient(spiral, axis=0)).dim_ == 1


# --- many frames -----------------------------------------------------------------------------------------------------


def frames_of(X, T=5):
    Y = np.stack([labelled(X, seed=7) * (1 + 0.2 * t) for t in range(T)])  # one mask
    Y[3] = labelled(X, share=0.8, seed=9)  # and another
    return Y


def test_many_frames_are_single_fits_with_shared_hyperparameters(data, monkeypatch):
    X, _ = data
    Y = frames_of(X)
    model = VectorFieldGP(30)
    means = model.fit_many(X, Y)
    assert len(means) == 5
    h = model.hyperparameters_
    total = 0.0
    for t, y in enumerate(Y):
        single = VectorFieldGP(30, optimise=False, **h).fit(X, y)
        np.testing.assert_allclose(means[t], single.predict(X), atol=1e-8)
        np.testing.assert_allclose(model.frame_weights_[t], single.mean_weights_, atol=1e-7)
        total += single.log_marginal_likelihood_
    assert model.log_marginal_likelihood_ == pytest.approx(total, rel=1e-9)
    np.testing.assert_allclose(model.cov_weights_, single.cov_weights_, atol=1e-9)
    np.testing.assert_allclose(model.predict(X), means[-1], atol=1e-12)
    for factor in (0.9, 1.1):
        shifted = {**h, "kappa": factor * h["kappa"]}
        other = sum(VectorFieldGP(30, optimise=False, **shifted).fit(X, y).log_marginal_likelihood_ for y in Y)
        assert other < total
    monkeypatch.setattr(vector_gp_module, "FRAME_BLOCK", 2)
    for a, b in zip(VectorFieldGP(30).fit_many(X, Y), means, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)


def test_one_frame_is_a_fit(data, fitted):
    X, y = data
    np.testing.assert_allclose(VectorFieldGP(40).fit_many(X, y[None])[0], fitted.predict(X), atol=1e-12)
    assert fitted.frame_weights_.shape == (1, 40)


def test_work_can_be_sent_to_other_processes(data, monkeypatch):
    X, _ = data
    Y = frames_of(X)
    here = VectorFieldGP(30).fit_many(X, Y)
    calls = []

    def elsewhere(fn, items, *, backend="serial", n_workers=None):
        calls.append((backend, n_workers))
        return [pickle.loads(pickle.dumps(fn))(pickle.loads(pickle.dumps(item))) for item in items]

    monkeypatch.setattr(vector_gp_module, "ordered_map", elsewhere)
    for a, b in zip(VectorFieldGP(30).fit_many(X, Y, backend="processes", n_workers=2), here, strict=True):
        np.testing.assert_array_equal(a, b)
    assert set(calls) == {("processes", 2)}


# --- bad input -------------------------------------------------------------------------------------------------------


def spoiled(y, where, value):
    y = y.copy()
    y[where] = value
    return y


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda y: y[:-1], r"y must be of shape \(200, 3\).* got ndarray of shape \(199, 3\)"),
        (lambda y: y[:, :2], r"y must be of shape \(200, 3\)"),
        (lambda y: y[:, 0], r"y must be of shape \(200, 3\)"),
        (
            lambda y: spoiled(y, (7, 1), np.nan),
            r"y must be rows that are all known or all NaN, got .*1 mixed \(row 7\)",
        ),
        (lambda y: spoiled(y, (7, 1), np.inf), r"y must be finite, or NaN where unknown, got .*1 infinite"),
        (lambda y: spoiled(y, (7, 1), -np.inf), r"y must be finite"),
        (lambda y: np.full_like(y, np.nan), r"y must be known in at least one row"),
    ],
)
def test_bad_targets(change, message):
    X = sphere(200)
    y = field(X)
    with pytest.raises(ValueError, match=message):
        VectorFieldGP().fit(X, change(y))


@pytest.mark.parametrize(
    ("params", "error", "message"),
    [
        ({"n_eigenpairs": 0}, ValueError, "n_eigenpairs must be an integer >= 1, got 0"),
        ({"noise_variance": 0.0}, ValueError, "noise_variance must be > 0, got 0.0"),
        ({"noise_variance": -1.0}, ValueError, "noise_variance must be > 0"),
        ({"kernel": "rbf"}, ValueError, "kernel must be one of 'matern', 'se', got 'rbf'"),
        ({"laplacian": "cotangent"}, ValueError, "laplacian must be one of"),
        ({"kappa": 0.0}, ValueError, "kappa must be > 0"),
        ({"sigma_f": float("nan")}, ValueError, "sigma_f must be > 0"),
        ({"nu": -1}, ValueError, "nu must be > 0"),
        ({"dim": 0}, ValueError, "dim must be None or an integer >= 1"),
        ({"dim": 4}, ValueError, "dim must be"),
        ({"explained_variance": 1.5}, ValueError, "explained_variance must be"),
        ({"n_neighbors": 200}, ValueError, "n_neighbors must be less than the number of points 200"),
        ({"max_iter": 0}, ValueError, "max_iter must be"),
        ({"optimise": 1}, TypeError, "optimise must be True or False, got int 1"),
        ({"n_eigenpairs": 2.5}, TypeError, "n_eigenpairs must be an integer >= 1, got float 2.5"),
    ],
)
def test_bad_arguments(params, error, message):
    X = sphere(200)
    with pytest.raises(error, match=message):
        VectorFieldGP(**params).fit(X, field(X))


def test_bad_queries_and_frames(data, fitted):
    X, y = data
    with pytest.raises(ValueError, match="return_std must be False where return_cov is True"):
        fitted.predict(X, return_std=True, return_cov=True)
    with pytest.raises(ValueError, match="2 features"):
        fitted.predict(X[:, :2])
    with pytest.raises(ValueError, match="NaN"):
        fitted.predict(X * np.nan)
    with pytest.raises(ValueError, match="n_samples must be"):
        fitted.sample(X, 0)
    with pytest.raises(ValueError, match="y must be known in at least one row"):
        fitted.score(X, y * np.nan)
    with pytest.raises(ValueError, match=r"Y must be of shape \(200, 200, 3\)"):
        VectorFieldGP().fit_many(X, y)
    with pytest.raises(ValueError, match="Y must be one frame or more"):
        VectorFieldGP().fit_many(X, np.empty((0, 200, 3)))
    with pytest.raises(ValueError, match="Y must be known in at least one row of each frame"):
        VectorFieldGP().fit_many(X, np.stack([y, y * np.nan]))
    with pytest.raises(ValueError, match=r"Y must be rows that are all known or all NaN, got .*\(row \(1, 4\)\)"):
        VectorFieldGP().fit_many(X, np.stack([field(X), spoiled(field(X), (4, 0), np.nan)]))
    with pytest.raises(ValueError, match="NaN"):
        VectorFieldGP().fit(X * np.nan, y)


def test_what_is_doubtful_is_said(data):
    X, y = data
    with pytest.warns(GeometryWarning, match="n_eigenpairs=500 is more than the 400"):
        assert VectorFieldGP(500).fit(X, y).eigenvalues_.shape == (400,)
    with pytest.warns(ConvergenceWarning, match="best point met is kept, raise max_iter"):
        stopped = VectorFieldGP(40, max_iter=1).fit(X, y)
    assert stopped.log_marginal_likelihood_ < VectorFieldGP(40).fit(X, y).log_marginal_likelihood_
    with pytest.warns(ConvergenceWarning, match="evidence has no maximum"):
        zero = VectorFieldGP(40).fit(X, 0 * X)
    assert (zero.predict(X) == 0).all()
    assert zero.hyperparameters_["kappa"] == 5.0
    rough = X + 0.15 * np.random.default_rng(14).standard_normal(X.shape)
    with pytest.warns(GeometryWarning, match=r"the dimension \d is uncertain"):
        VectorFieldGP(39, explained_variance=0.87).fit(rough, y)


# --- scikit-learn ----------------------------------------------------------------------------------------------------


def test_it_is_cloned_and_pickled(data, fitted):
    twin = pickle.loads(pickle.dumps(fitted))
    new = on_sphere(4, np.random.default_rng(15))
    np.testing.assert_array_equal(twin.predict(new), fitted.predict(new))
    again = clone(fitted).fit(*data)
    np.testing.assert_array_equal(again.predict(new), fitted.predict(new))
    assert fitted.get_params()["n_eigenpairs"] == 40
    assert clone(fitted).set_params(kernel="se").kernel == "se"


WIDTH = "passes a y of one column; a vector field has as many columns as X"
EXPECTED_FAILED_CHECKS = dict.fromkeys(
    [
        "check_dict_unchanged",
        "check_dont_overwrite_parameters",
        "check_dtype_object",
        "check_estimators_dtypes",
        "check_estimators_fit_returns_self",
        "check_estimators_nan_inf",
        "check_estimators_overwrite_params",
        "check_estimators_pickle",
        "check_f_contiguous_array_estimator",
        "check_fit2d_predict1d",
        "check_fit_check_is_fitted",
        "check_fit_idempotent",
        "check_fit_score_takes_y",
        "check_methods_sample_order_invariance",
        "check_methods_subset_invariance",
        "check_n_features_in",
        "check_n_features_in_after_fitting",
        "check_non_transformer_estimators_n_iter",
        "check_pipeline_consistency",
        "check_positive_only_tag_during_fit",
        "check_readonly_memmap_input",
        "check_regressor_data_not_an_array",
        "check_regressors_int",
        "check_regressors_no_decision_function",
        "check_regressors_train",
    ],
    WIDTH,
) | {"check_regressor_multioutput": "passes a y of five columns with an X of ten; here the two agree"}
# these compare the prediction's shape with that of the narrow y, which no widening mends
NARROW = {"check_regressors_train", "check_regressor_multioutput"}


class Widened(VectorFieldGP):
    """Repeats the first column of y as often as X has columns, so that scikit-learn's own data are vector fields."""

    def fit(self, X, y):
        return super().fit(X, _widened(X, y))

    def score(self, X, y):
        return super().score(X, _widened(X, y))


def _widened(X, y):
    X = np.asarray(X)
    if y is None or X.ndim != 2 or np.iscomplexobj(X):
        return y
    y = np.asarray(y, dtype=float)
    return np.repeat(y.reshape(len(y), -1)[:, :1], X.shape[1], axis=1)


def failures_of(estimator, skip=()):
    failed = {}
    for instance, check in estimator_checks_generator(estimator, mark=None):
        name = check.func.__name__
        if name in skip:
            continue
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # few points in many dimensions: the geometry complains, rightly
            try:
                check(instance)
            except SkipTest:
                continue
            except Exception as error:
                failed[name] = error
    return failed


def test_check_estimator():
    failed = failures_of(VectorFieldGP(n_eigenpairs=5, n_neighbors=5))
    assert set(failed) == set(EXPECTED_FAILED_CHECKS)
    for name, error in failed.items():
        assert "y must be of shape" in f"{error} {error.__cause__}", name


def test_check_estimator_on_targets_that_are_vector_fields():
    assert failures_of(Widened(n_eigenpairs=5, n_neighbors=5), skip=NARROW) == {}
