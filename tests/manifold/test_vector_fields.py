"""Well spread points, diffusion, divergence and curl against dense algebra and closed forms."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.linalg import expm

from steepest.geometry import connection_laplacian, farthest_points, knn_graph, laplacian, orient_frames, tangent_frames
from steepest.manifold import divergence_curl, furthest_point_sampling, vector_diffusion


def sphere(n):
    i = np.arange(n) + 0.5
    z, angle = 1 - 2 * i / n, np.pi * (1 + 5**0.5) * i
    r = np.sqrt(1 - z**2)
    return np.column_stack([r * np.cos(angle), r * np.sin(angle), z])


def framed(n, k=10):
    X = sphere(n)
    W = knn_graph(X, k)
    return X, W, tangent_frames(X, n_neighbors=15, dim=2, graph=W).frames


def outward(X, frames, W):
    oriented = orient_frames(frames, W)
    if np.einsum("i,i->", np.cross(*oriented[0].T), X[0]) < 0:
        oriented = oriented * [1.0, -1.0]
    return oriented


def unit_tangents(frames, seed=0):
    components = np.random.default_rng(seed).standard_normal((len(frames), frames.shape[2]))
    components /= np.linalg.norm(components, axis=1, keepdims=True)
    return np.einsum("nDd,nd->nD", frames, components)


# --- points ----------------------------------------------------------------------------------------------------------


def test_points_are_those_of_the_greedy_rule():
    X = np.random.default_rng(0).standard_normal((60, 4))
    distances = np.linalg.norm(X[:, None] - X, axis=2)
    chosen = [7]
    for _ in range(11):
        chosen.append(int(np.argmax(distances[chosen].min(axis=0))))
    assert furthest_point_sampling(X, 12, start=7).tolist() == chosen
    np.testing.assert_array_equal(furthest_point_sampling(X, 12), farthest_points(X, 12))
    assert furthest_point_sampling(X, 60).size == 60


def test_spacing_is_a_share_of_the_diameter():
    X = sphere(500) * 7 + [1.0, 2.0, 3.0]
    diameter = np.linalg.norm(X[:, None] - X, axis=2).max()
    chosen = furthest_point_sampling(X, spacing=0.2)
    apart = np.linalg.norm(X[chosen][:, None] - X[chosen], axis=2)
    assert apart[~np.eye(len(chosen), dtype=bool)].min() >= 0.2 * diameter * (1 - 1e-3)
    assert np.linalg.norm(X[:, None] - X[chosen], axis=2).min(axis=1).max() < 0.2 * diameter
    np.testing.assert_array_equal(chosen, farthest_points(X, spacing=0.2 * diameter))
    assert len(furthest_point_sampling(X, 5, spacing=0.2)) == 5
    assert len(furthest_point_sampling(X, spacing=3.0)) == 1
    np.testing.assert_array_equal(furthest_point_sampling(X[::-1], spacing=0.2, start=0)[:1], [0])
    assert furthest_point_sampling(np.ones((5, 2)), spacing=0.1).size == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "n must be given where spacing is None"),
        ({"n": 0}, "n must be"),
        ({"n": 6}, "n must be"),
        ({"spacing": 0.0}, "spacing must be None or > 0"),
        ({"spacing": -1.0}, "spacing must be"),
    ],
)
def test_bad_sampling(arguments, message):
    with pytest.raises(ValueError, match=message):
        furthest_point_sampling(np.arange(5.0)[:, None], **arguments)


# --- diffusion -------------------------------------------------------------------------------------------------------


def test_diffusion_is_the_matrix_exponential_with_lengths_restored():
    X, W, T = framed(60, 8)
    V = 3 * unit_tangents(T) + 0.5 * X  # the normal part is left out
    components = np.einsum("nDd,nD->nd", T, V)
    expected = (expm(-2.0 * connection_laplacian(W, T).toarray()) @ components.ravel()).reshape(-1, 2)
    plain = vector_diffusion(V, 2.0, T, W, normalise=False)
    np.testing.assert_allclose(plain, np.einsum("nDd,nd->nD", T, expected), atol=1e-8)
    lengths = expm(-2.0 * laplacian(W).toarray()) @ np.linalg.norm(components, axis=1)
    found = vector_diffusion(V, 2.0, T, W)
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), lengths, rtol=1e-8)
    np.testing.assert_allclose(np.cross(found, plain), 0, atol=1e-8)
    assert (np.einsum("nD,nD->n", found, plain) > 0).all()
    np.testing.assert_allclose(vector_diffusion(V, 0.0, T, W), np.einsum("nDd,nd->nD", T, components), atol=1e-9)


def test_directions_stay_exact_where_the_field_has_decayed_below_round_off():
    _, W, T = framed(150)
    z = np.random.default_rng(3).standard_normal((150, 2))
    V = np.einsum("nDd,nd->nD", T, z)
    values, vectors = np.linalg.eigh(connection_laplacian(W, T).toarray())
    t = 40 / values[0]  # e^{-40} is left of the slowest field
    exact = (vectors * np.exp(-t * (values - values[0]))) @ (vectors.T @ z.ravel())
    expected = np.einsum("nDd,nd->nD", T, exact.reshape(150, 2))
    found = vector_diffusion(V, t, T, W)
    cosine = np.einsum("nD,nD->n", found, expected)
    cosine /= np.linalg.norm(found, axis=1) * np.linalg.norm(expected, axis=1)
    assert cosine.min() > 1 - 1e-6


def test_a_few_vectors_are_carried_along_the_manifold():
    X, W, T = framed(400)
    V = np.full_like(X, np.nan)
    V[:5] = 2 * unit_tangents(T)[0]
    V[:5] -= np.einsum("nD,nD->n", V[:5], X[:5])[:, None] * X[:5]
    found = vector_diffusion(V, 200.0, T, W)
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 2.0, rtol=0.05)  # lengths of the sources, everywhere
    weight = np.isfinite(V[:, 0]).astype(float)
    mass = expm(-200.0 * laplacian(W).toarray()) @ weight
    length = expm(-200.0 * laplacian(W).toarray()) @ np.where(
        weight > 0, np.linalg.norm(np.einsum("nDd,nD->nd", T, np.nan_to_num(V)), axis=1), 0
    )
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), length / mass, rtol=1e-5)


def test_where_no_heat_has_come_the_vector_is_unknown():
    X = np.concatenate([sphere(50), sphere(50) + 10.0])
    W = knn_graph(X, 8)
    T = tangent_frames(X, n_neighbors=12, dim=2, graph=W).frames
    V = unit_tangents(T)
    V[50:] = np.nan
    found = vector_diffusion(V, 5.0, T, W)
    assert np.isfinite(found[:50]).all()
    assert np.isnan(found[50:]).all()
    assert (vector_diffusion(V, 5.0, T, W, normalise=False)[50:] == 0).all()


def test_diffused_noise_is_smooth_and_of_unit_length():
    _, W, T = framed(400)
    V = unit_tangents(T)
    L = connection_laplacian(W, T)

    def roughness(V):
        v = np.einsum("nDd,nD->nd", T, V).ravel()
        return float(v @ (L @ v) / (v @ v))

    smooth = vector_diffusion(V, 100.0, T, W)
    np.testing.assert_allclose(np.linalg.norm(smooth, axis=1), 1.0, atol=1e-8)
    assert roughness(smooth) < 0.05 * roughness(V)


def test_frames_are_of_no_account():
    X, W, T = framed(100)
    gauge = np.linalg.qr(np.random.default_rng(1).standard_normal((100, 2, 2)))[0]
    V = unit_tangents(T)
    np.testing.assert_allclose(vector_diffusion(V, 3.0, T @ gauge, W), vector_diffusion(V, 3.0, T, W), atol=1e-8)
    for a, b in zip(divergence_curl(X, V, T @ gauge, W), divergence_curl(X, V, T, W), strict=True):
        np.testing.assert_allclose(np.abs(a), np.abs(b), atol=1e-9)  # the curl's sign is the frame's orientation


# --- divergence and curl ---------------------------------------------------------------------------------------------


def test_on_the_sphere_they_converge_to_the_closed_forms():
    errors = []
    for n in (300, 1200):
        X, W, T = framed(n)
        T = outward(X, T, W)
        z = X[:, 2]
        rotation, gradient = np.cross([0.0, 0.0, 1.0], X), [0.0, 0.0, 1.0] - X * z[:, None]
        divergence, curl = divergence_curl(X, rotation + gradient, T, W)
        errors.append([np.sqrt(np.mean((divergence + 2 * z) ** 2)), np.sqrt(np.mean((curl - 2 * z) ** 2))])
    assert max(errors[1]) < 0.04
    assert (np.array(errors[1]) < 0.8 * np.array(errors[0])).all()


def test_weights_count_and_affine_fields_are_exact_in_any_dimension():
    rng = np.random.default_rng(2)
    for d in (1, 2, 3):
        X, A = rng.standard_normal((60, d)), rng.standard_normal((d, d))
        T = np.broadcast_to(np.eye(d), (60, d, d))
        for weight in ("connectivity", "distance"):
            W = knn_graph(X, 8, weight=weight)
            divergence, curl = divergence_curl(X, X @ A.T + 1.0, T, W)
            np.testing.assert_allclose(divergence, np.trace(A), atol=1e-9)
            expected = A[1, 0] - A[0, 1] if d == 2 else np.broadcast_to(A - A.T, (60, d, d))
            np.testing.assert_allclose(curl, np.broadcast_to(expected, curl.shape), atol=1e-9)
    # one neighborhood by hand: the regression with an intercept, the point itself weighing as the mean of its neighbors
    V, W = rng.standard_normal((60, 3)), knn_graph(X, 8, weight="distance")
    near, w = W[[0]].indices, W[[0]].data
    points, values = np.vstack([X[near], X[:1]]) - X[0], np.vstack([V[near], V[:1]])
    root = np.sqrt(np.append(w, w.mean()))[:, None]
    solution = np.linalg.lstsq(root * np.column_stack([points, np.ones(len(points))]), root * values, rcond=None)[0]
    divergence, curl = divergence_curl(X, V, T, W)
    assert divergence[0] == pytest.approx(np.trace(solution[:3]), rel=1e-9)
    np.testing.assert_allclose(curl[0], solution[:3].T - solution[:3], atol=1e-9)


# --- bad input -------------------------------------------------------------------------------------------------------


def test_bad_fields():
    X, W, T = framed(40, 8)
    V = unit_tangents(T)
    broken = V.copy()
    broken[3, 0] = np.nan
    for call, message in [
        (lambda: vector_diffusion(V[:-1], 1.0, T, W), r"V must be of shape \(40, 3\)"),
        (lambda: vector_diffusion(broken, 1.0, T, W), r"V must be rows that are all known or all NaN.*row 3"),
        (lambda: vector_diffusion(V * np.inf, 1.0, T, W), "V must be finite"),
        (lambda: vector_diffusion(V, -1.0, T, W), "t must be >= 0"),
        (lambda: vector_diffusion(V, np.inf, T, W), "t must be >= 0"),
        (lambda: vector_diffusion(V, 1.0, T[0], W), "frames must be a non-empty array"),
        (lambda: vector_diffusion(V, 1.0, 2 * T, W), "frames must be"),
        (lambda: vector_diffusion(V, 1.0, T, W[:-1][:, :-1]), r"W must be of shape \(40, 40\)"),
        (lambda: vector_diffusion(V, 1.0, T, -W), "W must be nonnegative"),
        (lambda: divergence_curl(X[:-1], V, T, W), r"X must be of shape \(40, 3\)"),
        (lambda: divergence_curl(X, V[:, :2], T, W), r"V must be of shape \(40, 3\)"),
        (lambda: divergence_curl(X, broken, T, W), "V must be finite"),
        (lambda: divergence_curl(X, V, T, 0 * W), "W must be a graph with at least 2"),
        (lambda: divergence_curl(X, V, T, knn_graph(X, 1, symmetrise="mutual")), "W must be a graph with at least 2"),
        (lambda: divergence_curl(np.ones_like(X), V, T, W), "W must be a graph whose neighborhoods span"),
    ]:
        with pytest.raises(ValueError, match=message):
            call()
    with pytest.raises(TypeError, match="normalise must be True or False"):
        vector_diffusion(V, 1.0, T, W, normalise=1)
    with pytest.raises(TypeError, match="V must be an array of numbers"):
        vector_diffusion([["a"]], 1.0, T, W)
