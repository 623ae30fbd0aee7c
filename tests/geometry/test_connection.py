import numpy as np
import pytest
from scipy import sparse
from scipy.linalg import subspace_angles
from scipy.sparse import csgraph
from scipy.spatial import ConvexHull

from steepest.geometry import (
    GeometryWarning,
    connection_laplacian,
    knn_graph,
    laplacian,
    orient_frames,
    parallel_transport,
    tangent_frames,
    vector_field_index,
)
from steepest.geometry._neighborhoods import graph_nearest
from steepest.studies.claim import slope_fit
from tests.geometry.shapes import (
    angles,
    clifford_torus,
    fibonacci_sphere,
    mobius_strip,
    random_sphere,
    swiss_roll,
    torus_faces,
    torus_grid,
)


@pytest.fixture(scope="module")
def sphere():
    X = fibonacci_sphere(400)
    W = knn_graph(X, 10, weight="gaussian")
    return X, W, tangent_frames(X, graph=W)


def random_frames(n, D, d, seed=0):
    return np.linalg.qr(np.random.default_rng(seed).standard_normal((n, D, d)))[0]


@pytest.mark.parametrize("k", [3, 15, 40])
def test_neighborhoods_along_a_graph_are_those_of_dijkstra(k):
    X = random_sphere(300)
    for lengths in (
        knn_graph(X, 5, weight="distance"),
        sparse.block_diag([knn_graph(X[:30], 3, weight="distance")] * 4),
    ):
        lengths = sparse.csr_array(lengths)
        lengths.sort_indices()
        n = lengths.shape[0]
        exact = csgraph.dijkstra(lengths, directed=False)
        distances, neighbors = graph_nearest(lengths, k)
        np.testing.assert_allclose(distances, np.sort(exact, axis=1)[:, 1 : k + 1], rtol=1e-13)
        there = np.isfinite(distances)
        np.testing.assert_allclose(exact[np.arange(n)[:, None], neighbors][there], distances[there], rtol=1e-13)


def test_neighborhoods_cross_edges_of_length_zero():
    X = np.repeat(np.arange(6.0), 3)[:, None]
    W = knn_graph(X, 3, weight="distance")
    assert (graph_nearest(W, 2)[0] == 0).all()
    assert (graph_nearest(W, 3)[0][:, 2] == 1).all()


@pytest.mark.parametrize("D", [3, 30, 80])
def test_frames_are_the_singular_vectors_of_the_neighborhood(D):
    X = random_sphere(120) @ np.linalg.qr(np.random.default_rng(1).standard_normal((D, D)))[0][:3]
    X = X + 0.01 * np.random.default_rng(2).standard_normal(X.shape)
    found = tangent_frames(X, n_neighbors=12, dim=2)
    distances = np.linalg.norm(X[:, None] - X[None], axis=2)
    assert found.frames.shape == (120, D, 2)
    assert found.singular_values.shape == (120, min(D, 13))
    assert found.explained.shape == (min(D, 13),)
    for i in range(0, 120, 10):
        P = X[np.argsort(distances[i])[:13]]
        U, S, _ = np.linalg.svd((P - P.mean(axis=0)).T, full_matrices=False)
        assert subspace_angles(U[:, :2], found.frames[i]).max() < 1e-6
        np.testing.assert_allclose(found.singular_values[i], S[: min(D, 13)], atol=1e-6)
        np.testing.assert_allclose(np.abs(np.diag(U[:, :2].T @ found.frames[i])), 1, atol=1e-9)  # in this order
    np.testing.assert_allclose(
        found.frames.transpose(0, 2, 1) @ found.frames, np.eye(2)[None].repeat(120, 0), atol=1e-12
    )


def test_frames_of_a_plane_are_exact():
    basis = np.linalg.qr(np.random.default_rng(3).standard_normal((5, 2)))[0]
    X = np.random.default_rng(4).random((200, 2)) @ basis.T
    found = tangent_frames(X)
    assert found.dim == 2
    assert np.abs(found.frames - basis @ (basis.T @ found.frames)).max() < 1e-12


def test_frames_converge_to_the_tangent_planes_of_the_sphere():
    sizes, errors = (1000, 4000, 16000), []
    for n in sizes:
        X = fibonacci_sphere(n)
        normal = np.einsum("nDd,nD->nd", tangent_frames(X, dim=2, graph=knn_graph(X, 10)).frames, X)
        errors.append(np.arcsin(np.linalg.norm(normal, axis=1)).mean())
    assert slope_fit(sizes, errors)[0] <= -0.4


def test_dimension_is_the_least_that_explains_enough():
    X = fibonacci_sphere(500)
    found = tangent_frames(X)
    assert found.dim == 2
    shares = np.cumsum(found.singular_values**2, axis=1) / np.sum(found.singular_values**2, axis=1, keepdims=True)
    np.testing.assert_allclose(found.explained, shares.mean(axis=0), rtol=1e-12)
    lower = shares.mean(axis=0) - shares.std(axis=0)
    assert tangent_frames(X, explained_variance=float(lower[1])).dim == 2
    assert tangent_frames(X, explained_variance=float(lower[1]) + 1e-9).dim == 3
    assert tangent_frames(X, explained_variance=0.1).dim == 1
    with pytest.raises(ValueError, match="explained_variance must be reached"):
        tangent_frames(np.repeat(np.eye(3), 20, axis=0), n_neighbors=5)  # neighborhoods of one place


def test_a_graph_keeps_sheets_apart():
    y, z = (c.ravel() for c in np.meshgrid(np.arange(20.0), np.arange(20.0)))
    sheets = [np.stack([y, z + shift, np.full(400, height)], axis=1) for height, shift in ((0, 0.0), (0.8, 0.5))]
    X = np.concatenate(sheets)
    lower = knn_graph(sheets[0], 8)
    W = sparse.block_diag([lower, lower]).tocsr()
    flat = np.array([0.0, 0.0, 1.0])

    def worst(found):
        return np.linalg.norm(np.einsum("nDd,D->nd", found.frames, flat), axis=1).max()

    assert worst(tangent_frames(X, n_neighbors=12, dim=2, graph=W)) < 1e-12
    assert worst(tangent_frames(X, n_neighbors=12, dim=2)) > 0.05
    X, _ = swiss_roll(1500)
    assert tangent_frames(X, graph=knn_graph(X, 10)).dim == 2


def test_a_small_component_is_taken_whole():
    X = np.concatenate([fibonacci_sphere(100), fibonacci_sphere(8) + 10])
    W = sparse.block_diag([knn_graph(X[:100], 10), knn_graph(X[100:], 7)]).tocsr()
    found = tangent_frames(X, n_neighbors=15, dim=2, graph=W)
    P = X[100:]
    _U, S, _ = np.linalg.svd((P - P.mean(axis=0)).T, full_matrices=False)
    np.testing.assert_allclose(found.singular_values[103], S, atol=1e-12)
    with pytest.raises(ValueError, match="graph must be of components with more than 2 points"):
        tangent_frames(np.eye(4, 3), n_neighbors=3, dim=2, graph=np.kron(np.eye(2), [[0, 1.0], [1, 0]]))


@pytest.mark.parametrize("proper", [False, True])
@pytest.mark.parametrize("d", [1, 2, 3])
def test_transport_is_the_nearest_orthogonal_matrix(d, proper):
    T = random_frames(60, 4, d)
    rows, cols = np.random.default_rng(5).integers(60, size=(2, 300))
    with pytest.warns(GeometryWarning, match="nearly perpendicular"):
        R = parallel_transport(T, rows, cols, proper)
    for r, i, j in zip(R, rows, cols):
        U, _, V = np.linalg.svd(T[i].T @ T[j])
        if proper:
            U[:, -1] *= np.linalg.det(U @ V)
        np.testing.assert_allclose(r, U @ V, atol=1e-9)
    if proper:
        np.testing.assert_allclose(np.linalg.det(R), 1, atol=1e-12)


def test_transport_back_is_the_transpose_and_perpendicular_planes_are_counted(sphere):
    _X, W, found = sphere
    rows, cols = W.nonzero()
    np.testing.assert_allclose(
        parallel_transport(found, rows, cols), parallel_transport(found, cols, rows).transpose(0, 2, 1), atol=1e-14
    )
    T = np.array([np.eye(3)[:, :2], np.eye(3)[:, 1:], np.eye(3)[:, :2]])
    with pytest.warns(GeometryWarning, match="2 of 3 edges"):
        R = parallel_transport(T, [0, 1, 0], [1, 2, 2])
    assert np.isfinite(R).all()
    np.testing.assert_array_equal(R[2], np.eye(2))
    assert parallel_transport(found, [], []).shape == (0, 2, 2)


@pytest.mark.parametrize("kind", ["combinatorial", "normalized", "random_walk"])
@pytest.mark.parametrize("d", [1, 2, 3])
@pytest.mark.filterwarnings("ignore::steepest.geometry.GeometryWarning")
def test_connection_laplacian_is_the_dense_one(d, kind):
    X = random_sphere(40)
    W, T = knn_graph(X, 6, weight="gaussian"), random_frames(40, 4, d)
    A = W.toarray()
    deg = A.sum(axis=1)
    expected = np.zeros((40 * d, 40 * d))
    for i in range(40):
        for j in np.nonzero(A[i])[0]:
            U, _, V = np.linalg.svd(T[i].T @ T[j])
            scale = {"combinatorial": 1, "normalized": np.sqrt(deg[i] * deg[j]), "random_walk": deg[i]}[kind]
            expected[i * d : i * d + d, j * d : j * d + d] = -A[i, j] * (U @ V) / scale
        expected[i * d : i * d + d, i * d : i * d + d] = np.eye(d) * (deg[i] if kind == "combinatorial" else 1)
    L = connection_laplacian(W, T, kind)
    assert L.format == "bsr"
    assert L.blocksize == (d, d)
    assert L.has_sorted_indices
    np.testing.assert_allclose(L.toarray(), expected, atol=1e-9)


def test_connection_laplacian_is_semidefinite_and_measures_differences(sphere):
    _X, W, found = sphere
    L = connection_laplacian(W, found)
    A = L.tocsr()
    assert (A != A.T).nnz == 0
    w = np.linalg.eigvalsh(A.toarray())
    assert w[0] > 0  # a sphere has no parallel field
    normalized = np.linalg.eigvalsh(connection_laplacian(W, found, "normalized").toarray())
    assert normalized[0] > -1e-12
    assert normalized[-1] <= 2 + 1e-12
    v = np.random.default_rng(7).standard_normal((400, 2))
    rows, cols = W.nonzero()
    R = parallel_transport(found, rows, cols)
    energy = (W.data * np.sum((v[rows] - np.einsum("eab,eb->ea", R, v[cols])) ** 2, axis=1)).sum() / 2
    np.testing.assert_allclose(v.ravel() @ (L @ v.ravel()), energy, rtol=1e-12)


def test_spectrum_does_not_depend_on_the_choice_of_frames(sphere):
    _X, W, found = sphere
    turned = found.frames @ np.linalg.qr(np.random.default_rng(8).standard_normal((400, 2, 2)))[0]
    before, after = (np.linalg.eigvalsh(connection_laplacian(W, T).toarray()) for T in (found, turned))
    np.testing.assert_allclose(before, after, atol=1e-11)


def test_one_dimensional_trivial_connection_is_the_laplacian(sphere):
    _, W, _ = sphere
    same = np.repeat(np.array([[[1.0], [0.0]]]), 400, axis=0)
    np.testing.assert_allclose(connection_laplacian(W, same).toarray(), laplacian(W).toarray(), atol=1e-13)


def test_zero_weights_and_the_diagonal_are_of_no_account(sphere):
    _, W, found = sphere
    other = (W + sparse.eye_array(400)).tolil()
    other[0, 399] = other[399, 0] = 1.0
    other = other.tocsr()
    other.data[other.indptr[0] + np.searchsorted(other.indices[: other.indptr[1]], 399)] = 0.0
    other.data[other.indptr[399] + np.searchsorted(other.indices[other.indptr[399] :], 0)] = 0.0
    np.testing.assert_array_equal(
        connection_laplacian(other, found).toarray(), connection_laplacian(W, found).toarray()
    )


def test_the_flat_torus_has_two_parallel_fields():
    X = clifford_torus(24, 24)
    W = knn_graph(X, 8)
    w = np.linalg.eigvalsh(connection_laplacian(W, tangent_frames(X, n_neighbors=12, dim=2)).toarray())
    assert w[1] < 0.02 * w[2]


def test_orientation(sphere):
    X, W, found = sphere
    flipped = found.frames * np.where(np.random.default_rng(9).random(400) < 0.5, -1, 1)[:, None, None] ** np.arange(2)
    out = orient_frames(flipped, W)
    rows, cols = W.nonzero()
    assert (np.linalg.det(out[rows].transpose(0, 2, 1) @ out[cols]) > 0).all()
    np.testing.assert_array_equal(out[0], flipped[0])
    np.testing.assert_array_equal(out[:, :, 0], flipped[:, :, 0])
    outward = np.einsum("nD,nD->n", np.cross(out[:, :, 0], out[:, :, 1]), X)
    assert len(set(np.sign(outward))) == 1
    two = sparse.block_diag([W, W]).tocsr()
    twice = orient_frames(np.concatenate([flipped, flipped]), two)
    np.testing.assert_array_equal(twice[:400], out)
    np.testing.assert_array_equal(twice[400:], out)
    lines = orient_frames(random_frames(400, 3, 1), sparse.csr_array((400, 400)))
    assert lines.shape == (400, 3, 1)


def test_a_moebius_strip_has_no_orientation():
    X = mobius_strip(80, 7)
    W = knn_graph(X, 6)
    found = tangent_frames(X, n_neighbors=9, dim=2, graph=W)
    with pytest.raises(ValueError, match="frames must be orientable along the edges of W"):
        orient_frames(found, W)


def test_indices_add_up_to_two_on_the_sphere():
    X = fibonacci_sphere(1500)
    W = knn_graph(X, 10)
    T = orient_frames(tangent_frames(X, graph=W), W)
    faces = ConvexHull(X).simplices
    turning = np.cross([0.1, 0.2, 1.0], X)
    gradient = np.eye(3)[0] - X * X[:, :1]
    wild = np.stack([X[:, 1] ** 2 - 0.3, X[:, 0] * X[:, 2] + 0.2, X[:, 1] - 0.1 * X[:, 2] ** 3], axis=1)
    for field in (turning, gradient, wild):
        assert vector_field_index(X, field, T, faces).sum() == 2
    index = vector_field_index(X, gradient, T, faces)
    assert sorted(index[index != 0].tolist()) == [1, 1]
    poles = X[faces[index != 0]].mean(axis=1)
    assert np.abs(np.abs(poles[:, 0]) - 1).max() < 0.01
    mixed = np.array([np.roll(f, s)[:: 1 if s % 2 else -1] for s, f in enumerate(faces)])
    np.testing.assert_array_equal(vector_field_index(X, gradient, T, mixed), index)
    mirrored = T * np.array([1.0, -1.0])  # the other orientation of all frames: the same index
    np.testing.assert_array_equal(vector_field_index(X, gradient, mirrored, faces), index)


def test_indices_add_up_to_zero_on_the_torus():
    X, (u, _v) = torus_grid(40, 24), angles(40, 24)
    W = knn_graph(X, 8)
    T = orient_frames(tangent_frames(X, n_neighbors=12, dim=2, graph=W), W)
    faces = torus_faces(40, 24)
    around = np.stack([-np.sin(u), np.cos(u), 0 * u], axis=-1).reshape(-1, 3)
    assert not vector_field_index(X, around, T, faces).any()
    height = np.array([0.3, 0.0, 1.0]) + 0 * X  # the gradient of a height: a maximum, a minimum and two saddles
    index = vector_field_index(X, np.array([1.0, 0.2, 0.13]) + 0 * height, T, faces)
    assert index.sum() == 0
    assert sorted(index[index != 0].tolist()) == [-1, -1, 1, 1]


EDGE = [[0, 1.0], [1, 0]]
PLANES = np.repeat(np.eye(3)[None, :, :2], 3, axis=0)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: tangent_frames(np.eye(4), n_neighbors=4), "n_neighbors must be less than"),
        (lambda: tangent_frames(np.eye(4), n_neighbors=3, dim=5), "dim must be None or an integer in"),
        (lambda: tangent_frames(np.eye(4), n_neighbors=2, dim=3), "dim must be None or an integer in"),
        (lambda: tangent_frames(np.eye(4), n_neighbors=2, explained_variance=0.0), "explained_variance must be"),
        (lambda: tangent_frames(np.eye(4), n_neighbors=2, graph=EDGE), r"graph must be of shape \(4, 4\)"),
        (lambda: tangent_frames([[np.inf, 0.0]] * 4, n_neighbors=2), "X must be finite"),
        (lambda: parallel_transport(np.ones((3, 2)), [0], [1]), r"frames must be of shape \(n, D, d\)"),
        (lambda: parallel_transport(np.ones((3, 2, 2)), [0], [1]), "frames must be orthonormal"),
        (lambda: parallel_transport(np.full((3, 2, 1), np.nan), [0], [1]), "frames must be finite"),
        (lambda: parallel_transport(PLANES, [0], [3]), r"cols must be indices in \[0, 3\)"),
        (lambda: parallel_transport(PLANES, [0, 1], [2]), "cols must be 1-D and as long"),
        (lambda: connection_laplacian(EDGE, PLANES), "W must be of shape"),
        (lambda: connection_laplacian(EDGE, PLANES[:2], "sym"), "kind must be one of"),
        (lambda: connection_laplacian([[0, -1.0], [-1, 0]], PLANES[:2]), "W must be nonnegative"),
        (lambda: connection_laplacian(np.zeros((3, 3)), PLANES, "normalized"), "isolated vertices"),
        (lambda: vector_field_index(np.eye(3), np.eye(3), PLANES, [[0, 1]]), r"faces must be of shape \(m, 3\)"),
        (lambda: vector_field_index(np.eye(3), np.eye(3)[:2], PLANES, [[0, 1, 2]]), "vectors must be of the shape"),
        (lambda: vector_field_index(np.eye(3), np.eye(3), PLANES, [[0, 1, 2]]), "vectors must be nonzero within"),
        (
            lambda: vector_field_index(np.eye(3), np.ones((3, 3)), PLANES[:, :, :1], [[0, 1, 2]]),
            "frames must be of 2-D",
        ),
        (
            lambda: vector_field_index(
                np.eye(3), np.ones((3, 3)), PLANES * [[[1, 1]], [[1, -1]], [[1, 1]]], [[0, 1, 2]]
            ),
            "frames must be oriented",
        ),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_indices_that_are_no_integers_are_refused():
    with pytest.raises(TypeError, match="rows must be integers"):
        parallel_transport(PLANES, [0.5], [1])
