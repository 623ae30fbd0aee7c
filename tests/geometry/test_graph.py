import warnings

import numpy as np
import pytest
from scipy import sparse
from scipy.spatial.distance import cdist
from sklearn.neighbors import kneighbors_graph

from steepest.core.errors import SteepestWarning
from steepest.geometry import (
    GeometryWarning,
    alpha_decay_graph,
    connected_components,
    density_normalise,
    farthest_points,
    knn_graph,
    laplacian,
    radius_neighbors,
)
from steepest.geometry._search import nearest
from steepest.geometry.graph import warn_if_disconnected
from tests.geometry.shapes import cycle_graph, fibonacci_sphere, random_sphere, swiss_roll


@pytest.fixture(scope="module")
def cloud() -> np.ndarray:
    return np.random.default_rng(1).standard_normal((150, 3))


def listed(X, k):
    """Which point lists which, by sorting all distances."""
    D = cdist(X, X)
    np.fill_diagonal(D, np.inf)
    near = np.argsort(D, axis=1)[:, :k]
    A = np.zeros(D.shape, dtype=bool)
    A[np.arange(len(X))[:, None], near] = True
    return A, D


@pytest.mark.parametrize("symmetrise", ["union", "mutual"])
@pytest.mark.parametrize("weight", ["connectivity", "distance", "gaussian", "self_tuning"])
def test_knn_graph_is_the_dense_one(cloud, weight, symmetrise):
    A, D = listed(cloud, 7)
    pattern = A | A.T if symmetrise == "union" else A & A.T
    rho = np.sort(D, axis=1)[:, 6]
    sigma = np.median(D[pattern])
    expected = {
        "connectivity": np.ones_like(D),
        "distance": D,
        "gaussian": np.exp(-(D**2) / (2 * sigma**2)),
        "self_tuning": np.exp(-(D**2) / np.outer(rho, rho)),
    }[weight]
    W = knn_graph(cloud, 7, weight=weight, symmetrise=symmetrise)
    assert isinstance(W, sparse.csr_array)
    assert W.dtype == np.float64
    np.testing.assert_allclose(W.toarray(), np.where(pattern, expected, 0), rtol=1e-12, atol=1e-15)
    assert W.has_sorted_indices
    assert (W != W.T).nnz == 0  # to the last bit
    assert not W.diagonal().any()


def test_gaussian_width_is_an_argument(cloud):
    W, D = knn_graph(cloud, 4, weight="gaussian", sigma=0.3), knn_graph(cloud, 4, weight="distance")
    np.testing.assert_allclose(W.data, np.exp(-(D.data**2) / (2 * 0.09)), rtol=1e-12)


@pytest.mark.parametrize("dimension", [3, 40])
def test_neighbors_of_trees_and_of_blocks_agree_with_scikit_learn(dimension):
    X = np.random.default_rng(2).standard_normal((300, dimension)) + 100
    A = kneighbors_graph(X, 6, mode="connectivity")
    np.testing.assert_array_equal(knn_graph(X, 6).toarray(), np.maximum(A.toarray(), A.T.toarray()))
    distances, neighbors = nearest(X, 6)
    np.testing.assert_allclose(distances, np.take_along_axis(cdist(X, X), neighbors, 1), rtol=1e-14)
    assert (np.diff(distances, axis=1) >= 0).all()
    np.testing.assert_array_equal(knn_graph(X, 6, n_jobs=2).toarray(), knn_graph(X, 6).toarray())


@pytest.mark.parametrize("dimension", [2, 20])
@pytest.mark.parametrize("k", [3, 7, 8, 30])
def test_duplicates_are_neighbors_at_distance_zero_and_never_their_own(dimension, k):
    X = np.repeat(np.random.default_rng(3).standard_normal((12, dimension)), 8, axis=0)
    _, neighbors = nearest(X, k)
    assert (neighbors != np.arange(96)[:, None]).all()
    assert all(len(set(row)) == k for row in neighbors.tolist())
    W = knn_graph(X, k, weight="distance")
    assert (np.diff(W.indptr) >= k).all()  # zeros are stored
    same = np.repeat(np.arange(12), 8)
    rows = np.repeat(np.arange(96), np.diff(W.indptr))
    np.testing.assert_allclose(W.data == 0, same[rows] == same[W.indices])
    for kind in ("gaussian", "self_tuning"):
        G = knn_graph(X, k, weight=kind, sigma=1.0)
        assert G.nnz == W.nnz
        assert (G.data[W.data == 0] == 1).all()


def test_a_stored_zero_connects():
    W = knn_graph([[0.0], [0.0], [5.0], [5.0]], 1, weight="distance")
    assert W.nnz == 4
    assert connected_components(W)[0] == 2


@pytest.mark.parametrize(("decay", "k"), [(40.0, 5), (2.0, 5), (10.0, 1), (0.5, 3)])
def test_alpha_decay_is_the_dense_kernel(cloud, decay, k):
    D = cdist(cloud, cloud)
    rho = np.sort(D, axis=1)[:, k]
    K = np.exp(-((D / rho[:, None]) ** decay))
    K[K < 1e-4] = 0
    np.fill_diagonal(K, 0)
    W = alpha_decay_graph(cloud, k, decay=decay)
    np.testing.assert_allclose(W.toarray(), (K + K.T) / 2, rtol=1e-9, atol=1e-14)
    assert (W != W.T).nnz == 0
    q = 1 + W.sum(axis=1)
    np.testing.assert_allclose(
        alpha_decay_graph(cloud, k, decay=decay, anisotropy=0.7).toarray(),
        W.toarray() / np.outer(q, q) ** 0.7,
        rtol=1e-12,
    )


def test_alpha_decay_agrees_with_graphtools():
    graphtools = pytest.importorskip("graphtools")
    X = np.random.default_rng(5).standard_normal((200, 10))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = graphtools.Graph(X, knn=5, decay=40, thresh=1e-4, verbose=0).kernel.toarray()
    np.fill_diagonal(theirs, 0)
    np.testing.assert_allclose(alpha_decay_graph(X, 5).toarray(), theirs, atol=1e-5)  # their distances are rounded


def test_alpha_decay_with_duplicates_and_on_principal_components():
    X = np.repeat(np.random.default_rng(3).standard_normal((12, 2)), 8, axis=0)
    W = alpha_decay_graph(X, 5)
    assert (np.diff(W.indptr) == 7).all()
    assert (W.data == 1).all()
    flat = swiss_roll(200)[0]
    rotation = np.linalg.qr(np.random.default_rng(4).standard_normal((250, 250)))[0][:3]
    np.testing.assert_allclose(
        alpha_decay_graph(flat @ rotation, 5, n_pca=3).toarray(), alpha_decay_graph(flat, 5).toarray(), atol=1e-8
    )
    assert alpha_decay_graph(np.c_[flat, np.zeros((200, 4))], 5, n_pca=2).shape == (200, 200)


@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0])
def test_density_normalise(cloud, alpha):
    W = knn_graph(cloud, 5, weight="gaussian")
    before = W.copy()
    q = 1 + W.toarray().sum(1)
    np.testing.assert_allclose(density_normalise(W, alpha).toarray(), W.toarray() / np.outer(q, q) ** alpha, rtol=1e-13)
    assert (before != W).nnz == 0


def test_laplacians_are_the_dense_ones(cloud):
    W = knn_graph(cloud, 6, weight="gaussian")
    A, deg = W.toarray(), W.toarray().sum(1)
    eye = np.eye(len(A))
    np.testing.assert_allclose(laplacian(W).toarray(), np.diag(deg) - A, atol=1e-14)
    np.testing.assert_allclose(laplacian(W, "normalized").toarray(), eye - A / np.sqrt(np.outer(deg, deg)), atol=1e-14)
    np.testing.assert_allclose(laplacian(W, "random_walk").toarray(), eye - A / deg[:, None], atol=1e-14)
    for kind in ("combinatorial", "normalized"):
        L = laplacian(W, kind)
        assert (L != L.T).nnz == 0
        assert np.linalg.eigvalsh(L.toarray())[0] > -1e-12
    assert np.linalg.eigvalsh(laplacian(W, "normalized").toarray())[-1] <= 2


def test_laplacian_of_a_cycle_has_its_closed_spectrum():
    expected = np.sort(2 - 2 * np.cos(2 * np.pi * np.arange(9) / 9))
    np.testing.assert_allclose(np.linalg.eigvalsh(laplacian(cycle_graph(9)).toarray()), expected, atol=1e-13)


def test_disconnected_graph_is_reported_with_its_sizes():
    X = np.concatenate([fibonacci_sphere(40), fibonacci_sphere(60) + 10])
    W = knn_graph(X, 5)
    count, labels = connected_components(W)
    assert count == 2
    assert np.bincount(labels).tolist() == [40, 60]
    with pytest.warns(GeometryWarning, match="2 connected components of sizes 60, 40"):
        assert warn_if_disconnected(W) == 2
    assert issubclass(GeometryWarning, SteepestWarning)
    assert warn_if_disconnected(knn_graph(fibonacci_sphere(50), 6)) == 1


@pytest.mark.parametrize("dimension", [1, 3])
def test_radius_neighbors_are_the_dense_ones(dimension):
    rng = np.random.default_rng(6)
    X, Y = rng.standard_normal((80, dimension)), rng.standard_normal((50, dimension))
    for targets, given in ((X, None), (Y, Y)):
        D = cdist(X, targets)
        rows, cols, distances = radius_neighbors(X, 0.8, given)
        np.testing.assert_array_equal(np.stack([rows, cols]), np.stack(np.nonzero(D <= 0.8)))
        np.testing.assert_allclose(distances, D[rows, cols], atol=1e-15)
        capped = radius_neighbors(X, 0.8, given, max_neighbors=3)
        rank = np.argsort(np.argsort(D, axis=1), axis=1)
        np.testing.assert_array_equal(np.stack(capped[:2]), np.stack(np.nonzero((D <= 0.8) & (rank < 3))))


def test_radius_includes_its_end():
    rows, cols, _ = radius_neighbors([[0.0], [0.5]], 0.5, [[0.5], [1.0], [-0.5]])
    assert list(zip(rows.tolist(), cols.tolist())) == [(0, 0), (0, 2), (1, 0), (1, 1)]
    rows, cols, _ = radius_neighbors([[0.0], [0.5]], 0.5, [[0.5], [1.0], [-0.5]], max_neighbors=9)
    assert list(zip(rows.tolist(), cols.tolist())) == [(0, 0), (0, 2), (1, 0), (1, 1)]
    assert all(len(part) == 0 for part in radius_neighbors([[0.0]], 0.5, [[9.0]]))


def test_farthest_points_are_greedy(cloud):
    chosen = farthest_points(cloud, 20, start=3)
    D = cdist(cloud, cloud)
    expected = [3]
    while len(expected) < 20:
        expected.append(int(np.argmax(D[:, expected].min(axis=1))))
    assert chosen.tolist() == expected
    spaced = farthest_points(cloud, spacing=0.9, start=3)
    among = D[np.ix_(spaced, spaced)] + 10 * np.eye(len(spaced))
    assert among.min() >= 0.9  # packing
    assert D[:, spaced].min(axis=1).max() < 0.9  # covering
    assert farthest_points(cloud, 5, spacing=0.9, start=3).tolist() == spaced[:5].tolist()
    assert farthest_points(cloud, 4).tolist() == farthest_points(cloud, 4, random_state=0).tolist()


def test_farthest_points_are_distinct_among_duplicates():
    assert sorted(farthest_points(np.zeros((6, 2)), 6).tolist()) == list(range(6))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: knn_graph(np.zeros(5), 1), "X must be a non-empty 2-D array"),
        (lambda: knn_graph([[np.nan], [1.0]], 1), "X must be finite, got '1 values"),
        (lambda: knn_graph(np.eye(4), 4), "n_neighbors must be less than the number of points 4, got 4"),
        (lambda: knn_graph(np.eye(4), 0), "n_neighbors must be an integer > 0, got 0"),
        (lambda: knn_graph(np.eye(4), 2, weight="heat"), "weight must be one of"),
        (lambda: knn_graph(np.eye(4), 2, symmetrise="both"), "symmetrise must be one of"),
        (lambda: knn_graph(np.eye(4), 2, weight="gaussian", sigma=0.0), "sigma must be None or > 0"),
        (lambda: knn_graph(np.zeros((4, 1)), 2, weight="gaussian"), "sigma must be given when the median"),
        (lambda: knn_graph(np.eye(4), 2, n_jobs=0), "n_jobs must be -1 or >= 1"),
        (lambda: alpha_decay_graph(np.eye(4), 4), "n_neighbors must be less than"),
        (lambda: alpha_decay_graph(np.eye(4), 2, decay=0.0), "decay must be > 0"),
        (lambda: alpha_decay_graph(np.eye(4), 2, threshold=1.0), "threshold must be a number in"),
        (lambda: alpha_decay_graph(np.eye(4), 2, n_pca=5), "n_pca must be None or an integer in"),
        (lambda: alpha_decay_graph(np.eye(4), 2, anisotropy=-1.0), "anisotropy must be >= 0"),
        (lambda: laplacian(np.eye(3)[:2]), "W must be a square matrix"),
        (lambda: laplacian([[0, -1], [-1, 0]]), "W must be nonnegative, got 'a least weight of -1'"),
        (lambda: laplacian([[0, 1], [2, 0]]), "W must be symmetric"),
        (lambda: laplacian(sparse.csr_array(np.array([[0, 1.0], [0, 0]]))), "W must be symmetric"),
        (lambda: laplacian([[0, np.inf], [np.inf, 0]]), "W must be finite"),
        (lambda: laplacian([[0, 1], [1, 0]], "sym"), "kind must be one of"),
        (lambda: laplacian(np.diag([1.0, 1], 1) + np.diag([1.0, 1], -1), "normal"), "kind must be one of"),
        (lambda: laplacian([[0, 1, 0], [1, 0, 0], [0, 0, 0]], "normalized"), "isolated vertices .*vertex 2"),
        (lambda: laplacian([[0, 1, 0], [1, 0, 0], [0, 0, 0]], "random_walk"), "isolated vertices"),
        (lambda: density_normalise([[0, 1], [1, 0]], -1.0), "alpha must be >= 0"),
        (lambda: radius_neighbors(np.eye(3), 0.0), "radius must be > 0"),
        (lambda: radius_neighbors(np.eye(3), 1.0, np.eye(4)), "Y must be of 3 columns"),
        (lambda: radius_neighbors(np.eye(3), 1.0, max_neighbors=0), "max_neighbors must be None or"),
        (lambda: farthest_points(np.eye(3)), "n must be given where spacing is None"),
        (lambda: farthest_points(np.eye(3), 4), "n must be None or an integer in"),
        (lambda: farthest_points(np.eye(3), 2, start=3), "start must be None or"),
        (lambda: farthest_points(np.eye(3), spacing=0.0), "spacing must be None or > 0"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_wrong_kinds_are_named():
    with pytest.raises(TypeError, match="n_neighbors must be an integer"):
        knn_graph(np.eye(4), 2.0)
    with pytest.raises(TypeError, match="X must be an array of numbers"):
        knn_graph([["a"]], 1)
    with pytest.raises(TypeError, match="W must be a sparse matrix or an array"):
        laplacian([["a"]])


def test_inputs_stay_as_they_were():
    W = sparse.coo_array((np.ones(4), ([0, 1, 0, 1], [1, 0, 1, 0])), shape=(2, 2)).tocsr(copy=True)
    unsorted = sparse.csr_array(
        (np.array([1.0, 2.0, 2.0, 1.0]), np.array([2, 1, 0, 0]), np.array([0, 2, 3, 4])), shape=(3, 3)
    )
    expected = np.array([[3.0, -2, -1], [-2, 2, 0], [-1, 0, 1]])
    np.testing.assert_array_equal(laplacian(unsorted).toarray(), expected)
    assert unsorted.indices.tolist() == [2, 1, 0, 0]
    assert unsorted.data.tolist() == [1, 2, 2, 1]
    np.testing.assert_array_equal(laplacian(W).toarray(), [[2, -2], [-2, 2]])


def test_float32_points_are_taken():
    X = random_sphere(60).astype(np.float32)
    np.testing.assert_array_equal(knn_graph(X, 5).toarray(), knn_graph(X.astype(np.float64), 5).toarray())
