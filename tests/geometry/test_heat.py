"""The heat kernel against the matrix exponential, its bounds, and distances against closed forms."""

from __future__ import annotations

import itertools
import pickle
import warnings

import numpy as np
import pytest
import scipy.linalg
import scipy.sparse
import scipy.special

from steepest.geometry import (
    GeometryWarning,
    _heat_flow,
    chebyshev_order,
    connection_laplacian,
    heat_apply,
    heat_geodesic_distance,
    heat_kernel,
    knn_graph,
    laplacian,
    spectral_upper_bound,
    tangent_frames,
)
from steepest.geometry._heat_flow import HeatFlow

N = 300
TIMES = (0.1, 1.0, 10.0, 50.0)


@pytest.fixture(scope="module")
def L():
    X = np.random.default_rng(0).standard_normal((N, 3))
    return laplacian(knn_graph(X, 10, weight="self_tuning"))


@pytest.fixture(scope="module")
def B():
    return np.random.default_rng(1).standard_normal((N, 70))  # more than one block of columns


@pytest.fixture(scope="module")
def exact(L):
    return {t: scipy.linalg.expm(-t * L.toarray()) for t in TIMES}


@pytest.mark.parametrize("t", TIMES)
def test_chebyshev_and_eigenpairs_agree_with_expm(L, B, exact, t):
    assert np.abs(heat_apply(L, B, t) - exact[t] @ B).max() < 1e-8
    assert np.abs(heat_apply(L, B, t, method="exact") - exact[t] @ B).max() < 1e-11
    assert np.abs(heat_kernel(L, t) - exact[t]).max() < 1e-9


@pytest.mark.parametrize("t", TIMES)
def test_truncation_stays_within_its_bound(L, exact, t):
    for order in (3, 10, 20):
        H, info = heat_apply(L, np.eye(N), t, order=order, return_info=True)
        error = np.linalg.norm(H - exact[t], 2)
        assert error <= info["tail"] + 1e-12
        assert info["order"] == order
    H, info = heat_apply(L, np.eye(N), t, tol=1e-6, return_info=True)
    assert np.linalg.norm(H - exact[t], 2) <= info["tail"] + 1e-12  # attained by constants
    assert info["tail"] <= 1e-6
    assert chebyshev_order(t, info["lmax"], 1e-6) == info["order"]


def test_order_is_the_least_one():
    for t, lmax, tol in ((1.0, 2.0, 1e-10), (50.0, 20.0, 1e-10), (300.0, 25.0, 1e-6), (1e-3, 1.0, 1e-12)):
        K, z = chebyshev_order(t, lmax, tol), t * lmax / 2
        j = np.arange(1, 4000)
        terms = 2 * scipy.special.ive(j, z)
        assert terms[K:].sum() <= tol
        assert K == 0 or terms[K - 1 :].sum() > tol
    assert chebyshev_order(0.0, 5.0) == 0


def test_euler_is_first_order_and_stays_positive(L, B, exact):
    # the error O(t²/K) at a time that the steps resolve
    errors = [np.abs(heat_apply(L, B, 1.0, method="euler", order=k) - exact[1.0] @ B).max() for k in (20, 40, 80, 160)]
    assert all(a / b >= 1.8 for a, b in itertools.pairwise(errors))
    H = heat_apply(L, np.eye(N), 1.0, method="euler")
    expected = np.linalg.matrix_power(np.linalg.inv(np.eye(N) + L.toarray() / 32), 32)
    assert np.abs(H - expected).max() < 1e-12
    assert H.min() > -1e-15


def test_lowrank_is_the_truncated_eigendecomposition(L, B):
    w, V = np.linalg.eigh(L.toarray())
    H, info = heat_apply(L, B, 0.3, method="lowrank", rank=40, return_info=True)
    assert np.abs(H - V[:, :40] @ (np.exp(-0.3 * w[:40])[:, None] * (V[:, :40].T @ B))).max() < 1e-9
    assert info["tail"] == pytest.approx(np.exp(-0.3 * w[39]))  # no lower: the next eigenvalue is not computed
    full, info = heat_apply(L, B, 0.3, method="lowrank", rank=10_000, return_info=True)
    assert np.abs(full - scipy.linalg.expm(-0.3 * L.toarray()) @ B).max() < 1e-9
    assert info["tail"] == 0.0


@pytest.mark.parametrize("method", ["chebyshev", "euler", "exact", "lowrank"])
def test_shapes_times_and_sparse_columns(L, B, method):
    many = heat_apply(L, B, [0.5, 0.0, 2.0], method=method)
    assert many.shape == (3, N, 70)
    for i, t in enumerate((0.5, 0.0, 2.0)):
        assert np.allclose(many[i], heat_apply(L, B, t, method=method), atol=1e-10, rtol=0)
    vector = heat_apply(L, B[:, 3], 0.5, method=method)
    assert vector.shape == (N,)
    assert np.allclose(vector, many[0, :, 3], atol=1e-12)
    units = scipy.sparse.eye_array(N, format="csr")[:, [5, 7]]
    assert np.allclose(
        heat_apply(L, units, 0.5, method=method), heat_apply(L, np.eye(N)[:, [5, 7]], 0.5, method=method)
    )
    H = heat_kernel(L, [0.5, 2.0], method=method)
    assert H.shape == (2, N, N)
    assert np.array_equal(H, H.transpose(0, 2, 1))
    assert np.allclose(H[1], heat_apply(L, np.eye(N), 2.0, method=method), atol=1e-9)


def test_semigroup_conservation_and_decay(L, B):
    assert np.allclose(heat_apply(L, heat_apply(L, B, 0.7), 1.3), heat_apply(L, B, 2.0), atol=1e-9)
    assert np.allclose(heat_apply(L, np.ones(N), 3.0), 1.0, atol=1e-9)  # constants do not diffuse
    assert np.linalg.norm(heat_apply(L, B, 5.0)) < np.linalg.norm(B)


def test_upper_bound_is_above_and_tight(L):
    for A in (L, laplacian(knn_graph(np.random.default_rng(3).random((500, 2)), 6), "normalized"), np.diag([0.0, 3.0])):
        dense = A.toarray() if scipy.sparse.issparse(A) else A
        top = np.linalg.eigvalsh(dense)[-1]
        assert top <= spectral_upper_bound(A) <= 1.0201 * top
    assert spectral_upper_bound(np.zeros((3, 3))) == 0.0
    assert np.array_equal(heat_apply(np.zeros((3, 3)), np.eye(3), 2.0), np.eye(3))


def test_too_low_a_bound_is_noticed(L, B, exact):
    # a bare Lanczos estimate lies below the spectrum, where T_j grows without bound
    low = 0.8 * np.linalg.eigvalsh(L.toarray())[-1]
    assert np.abs(heat_apply(L, B, 10.0, lmax=low) - exact[10.0] @ B).max() < 1e-8


def test_dense_input_and_connection_laplacians():
    X = np.random.default_rng(2).standard_normal((60, 3))
    X /= np.linalg.norm(X, axis=1, keepdims=True)
    W = knn_graph(X, 6)
    C = connection_laplacian(W, tangent_frames(X, n_neighbors=9, dim=2).frames)
    b = np.arange(120.0)
    expected = scipy.linalg.expm(-C.toarray()) @ b
    assert np.allclose(heat_apply(C, b, 1.0), expected, atol=1e-7)
    assert np.allclose(heat_apply(C.toarray(), b, 1.0), expected, atol=1e-7)


def test_info_of_the_kernel_counts_squarings(L, exact):
    H, info = heat_kernel(L, 50.0, return_info=True)
    assert info["squarings"] > 0
    assert np.linalg.norm(H - exact[50.0], 2) <= info["tail"] + 1e-12
    assert info["tail"] <= 1e-10


@pytest.mark.parametrize("method", ["chebyshev", "euler"])
def test_half_flow_gives_the_diagonal_exactly(L, method):
    flow = HeatFlow(L, method)
    half = flow.half()(np.eye(N), 1.5)
    assert np.allclose(np.square(half).sum(axis=1), flow(np.eye(N), 3.0).diagonal(), atol=1e-9)


def test_tasks_change_nothing(L, monkeypatch):
    def through_pickle(fn, items, *, backend, n_workers):
        assert (backend, n_workers) == ("processes", 2)
        return [pickle.loads(pickle.dumps(fn))(pickle.loads(pickle.dumps(item))) for item in items]

    monkeypatch.setattr(_heat_flow, "ordered_map", through_pickle)
    B = np.random.default_rng(4).standard_normal((N, 600))
    for method in ("chebyshev", "euler"):
        one, two = (heat_apply(L, B, [0.5, 4.0], method=method, n_jobs=k) for k in (1, 2))
        assert np.array_equal(one, two)


# ---- distances ----


@pytest.mark.parametrize("sigma", [0.0, 0.5, 1.0])
def test_distance_is_the_formula(exact, sigma):
    H, t = exact[1.0], 1.0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", GeometryWarning)
        d = heat_geodesic_distance(H, t, harnack_regul=sigma)
    clipped, diagonal = np.maximum(H, 0), H.diagonal()
    square = -4 * t * np.log(clipped + 1e-16)
    square += sigma * 4 * t * np.log(0.5 * (diagonal[:, None] + diagonal) + 1e-16)
    square[np.diag_indices(N)] = 0
    assert np.allclose(d**2, np.maximum(square, 0), atol=1e-9)
    assert np.array_equal(d.diagonal(), np.zeros(N))
    if sigma == 1.0:
        assert square.min() > -1e-9  # Cauchy-Schwarz: H_xy² <= H_xx H_yy


def test_distance_in_the_plane_is_euclidean():
    # the heat kernel of the line, h exp(-d²/4t)/sqrt(4πt): -4t ln H - σ correction is d² to the last digit
    x = np.linspace(0.0, 3.0, 40)
    t = 0.4
    square = np.subtract.outer(x, x) ** 2
    H = np.exp(-square / (4 * t)) / np.sqrt(4 * np.pi * t)
    assert np.allclose(heat_geodesic_distance(H, t), np.sqrt(square), atol=1e-7)


def test_varadhan_without_the_correction(exact):
    H = np.maximum(exact[10.0], 1e-12)
    d = heat_geodesic_distance(H, 10.0, harnack_regul=0.0)
    off = ~np.eye(N, dtype=bool)
    assert np.allclose(d[off] ** 2, -40.0 * np.log(H[off]), rtol=1e-3)
    assert np.array_equal(np.argsort(d[0][1:]), np.argsort(-H[0][1:]))


def test_distances_on_the_sphere_follow_great_circles():
    n = 1000
    i = np.arange(n) + 0.5
    polar, azimuth = np.arccos(1 - 2 * i / n), np.pi * (1 + 5**0.5) * i
    X = np.column_stack([np.sin(polar) * np.cos(azimuth), np.sin(polar) * np.sin(azimuth), np.cos(polar)])
    d = heat_geodesic_distance(heat_kernel(laplacian(knn_graph(X, 10)), 20.0), 20.0)
    circle = np.arccos(np.clip(X @ X.T, -1, 1))
    near = (circle < 1.5) & ~np.eye(n, dtype=bool)
    assert np.corrcoef(d[near], circle[near])[0, 1] >= 0.95


def test_floored_entries_are_counted():
    H = np.array([[1.0, 0.0, -1e-13], [0.0, 1.0, 0.5], [-1e-13, 0.5, 1.0]])
    with pytest.warns(GeometryWarning, match="4 of 9 entries"):
        d = heat_geodesic_distance(H, 2.0, harnack_regul=0.0)
    assert d[0, 1] == d[0, 2] == pytest.approx(np.sqrt(-8 * np.log(1e-16)))
    assert d[0, 1] > d[1, 2]


# ---- misuse ----


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"t": -1.0}, "t must be >= 0"),
        ({"t": np.nan}, "t must be"),
        ({"t": [1.0, np.inf]}, "t must be >= 0 and finite"),
        ({"t": []}, "t must be a number or a non-empty"),
        ({"method": "magic"}, "method must be one of"),
        ({"order": 0}, "order must be"),
        ({"tol": 0.0}, "tol must be"),
        ({"lmax": -1.0}, "lmax must be"),
        ({"rank": 0}, "rank must be"),
        ({"n_jobs": 0}, "n_jobs must be"),
        ({"B": np.zeros((4, 2))}, "B must be of shape"),
        ({"B": np.full(3, np.nan)}, "B must be finite"),
        ({"L": np.zeros((2, 3))}, "L must be a square"),
        ({"L": np.zeros(3)}, "L must be a square"),
        ({"L": np.full((3, 3), np.inf)}, "L must be finite"),
        ({"L": np.triu(np.ones((3, 3)))}, "L must be symmetric"),
    ],
)
def test_bad_input_names_the_argument(change, message):
    given = {"L": np.eye(3), "B": np.ones(3), "t": 1.0} | change
    with pytest.raises(ValueError, match=message):
        heat_apply(given.pop("L"), given.pop("B"), given.pop("t"), **given)


def test_bad_kinds_are_type_errors():
    with pytest.raises(TypeError, match="order must be"):
        heat_apply(np.eye(3), np.ones(3), 1.0, order=2.5)
    with pytest.raises(TypeError, match="return_info must be"):
        heat_kernel(np.eye(3), 1.0, return_info=1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"H": np.zeros((2, 3))}, "H must be a square"),
        ({"H": np.full((2, 2), np.nan)}, "H must be finite"),
        ({"t": 0.0}, "t must be > 0"),
        ({"harnack_regul": -0.1}, "harnack_regul must be"),
        ({"floor": 0.0}, "floor must be > 0"),
    ],
)
def test_bad_distances_name_the_argument(change, message):
    given = {"H": np.eye(2), "t": 1.0} | change
    with pytest.raises(ValueError, match=message):
        heat_geodesic_distance(given.pop("H"), given.pop("t"), **given)
