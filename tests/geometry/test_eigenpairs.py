import math
import re

import numpy as np
import pytest
from scipy import sparse

from steepest.core.extras import MissingExtra
from steepest.geometry import (
    GeometryWarning,
    connection_laplacian,
    eigenpairs,
    knn_graph,
    laplacian,
    lowest_eigenpairs,
    tangent_frames,
)
from steepest.geometry._dissection import nested_dissection
from tests.geometry.shapes import clifford_torus, cycle_graph, fibonacci_sphere, random_sphere


@pytest.fixture(scope="module")
def sphere():
    """Points, frames and connection Laplacian of 700 points, and its dense spectrum."""
    X = random_sphere(700)
    W = knn_graph(X, 10)
    T = tangent_frames(X, graph=W).frames
    L = connection_laplacian(W, T)
    return X, T, L, *np.linalg.eigh(L.toarray())


def check_pairs(L, w, V, k, tol=1e-8):
    assert w.shape == (k,)
    assert V.shape == (L.shape[0], k)
    assert (np.diff(w) >= 0).all()
    np.testing.assert_allclose(V.T @ V, np.eye(k), atol=1e-10)
    assert np.linalg.norm(L @ V - V * w, axis=0).max() <= max(tol * w[-1], 1e-12)
    assert (V[np.abs(V).argmax(axis=0), np.arange(k)] > 0).all()


@pytest.mark.parametrize("k", [1, 6, 20])
@pytest.mark.parametrize("options", ["dense", "dissected", "plain", "lobpcg"])
def test_every_method_gives_the_dense_pairs(sphere, options, k):
    X, T, L, w, V = sphere
    kernel = T.transpose(0, 2, 1).reshape(-1, 3)
    found, vectors = {
        "dense": lambda: lowest_eigenpairs(L, k, method="dense"),
        "dissected": lambda: lowest_eigenpairs(L, k, method="shift-invert", points=X),
        "plain": lambda: lowest_eigenpairs(L, k, method="shift-invert"),
        "lobpcg": lambda: lowest_eigenpairs(L, k, method="lobpcg", near_kernel=kernel),
    }[options]()
    tol = 1e-4 if options == "lobpcg" else 1e-8
    check_pairs(L, found, vectors, k, tol)
    np.testing.assert_allclose(found, w[:k], rtol=tol**2 if options == "lobpcg" else 1e-11)
    if k > 1:  # a space that is set apart: compare the projectors, not the vectors
        gap = int(np.argmax(np.diff(w[: k + 1]))) + 1
        ours, dense = (Q[:, :gap] @ Q[:, :gap].T for Q in (vectors, V))
        assert np.abs(ours - dense).max() < 100 * tol


def test_spectrum_of_the_sphere():
    X = fibonacci_sphere(4000)
    W = knn_graph(X, 10)
    L = connection_laplacian(W, tangent_frames(X, graph=W))
    w, V = lowest_eigenpairs(L, 16, points=X)
    check_pairs(L, w, V, 16)
    assert w[6:].mean() / w[:6].mean() == pytest.approx(5, rel=0.06)
    assert w[6] / w[5] > 3


def test_the_flat_torus_has_two_parallel_fields():
    X = clifford_torus(48, 48)
    L = connection_laplacian(knn_graph(X, 8), tangent_frames(X, n_neighbors=12, dim=2))
    w, _ = lowest_eigenpairs(L, 6, points=X)
    assert w[1] < 0.02 * w[2]


@pytest.mark.parametrize("k", [2, 8, 30])
@pytest.mark.parametrize("seed", range(3))
def test_all_copies_of_a_multiple_eigenvalue_are_found(k, seed):
    """One Lanczos vector sees a single copy but for round-off: values were skipped without a word."""
    ring, hypercube = cycle_graph(20), sparse.csr_array((1, 1))
    eye = sparse.eye_array(20)
    for _ in range(10):
        flip = sparse.csr_array(np.array([[0.0, 1], [1, 0]]))
        hypercube = sparse.kron(hypercube, sparse.eye_array(2)) + sparse.kron(
            sparse.eye_array(hypercube.shape[0]), flip
        )
    around = 2 - 2 * np.cos(2 * np.pi * np.arange(20) / 20)
    for W, exact in (
        (sparse.kron(ring, eye) + sparse.kron(eye, ring), np.add.outer(around, around)),
        (hypercube, [2 * j for j in range(11) for _ in range(math.comb(10, j))]),
        (sparse.block_diag([ring] * 40), np.repeat(around, 40)),
    ):
        L = laplacian(W)
        exact = np.sort(np.ravel(exact))[:k]
        w, V = lowest_eigenpairs(L, k, method="shift-invert", random_state=seed)
        check_pairs(L, w, V, k)
        np.testing.assert_allclose(w, exact, rtol=1e-6, atol=1e-11)


def test_scalar_laplacian_with_points():
    X = random_sphere(900)
    L = laplacian(knn_graph(X, 8))
    w, V = lowest_eigenpairs(L, 9, points=X)
    check_pairs(L, w, V, 9)
    np.testing.assert_allclose(w, np.linalg.eigvalsh(L.toarray())[:9], rtol=1e-9, atol=1e-12)
    assert w[4] / w[3] > 2  # 0, then 2 three times, then 6 five times
    w, V = lowest_eigenpairs(L, 9, method="lobpcg")
    check_pairs(L, w, V, 9, 1e-4)


def test_choice_of_the_method():
    choose = eigenpairs._choice
    assert choose(600, 10, 2) == "dense"
    assert choose(5000, 1250, 2) == "dense"
    assert choose(400_000, 10, 2) == "shift-invert"
    assert choose(400_002, 10, 2) == "lobpcg"
    assert choose(45_000, 10, 3) == choose(45_000, 10, 1) == "shift-invert"
    assert choose(45_003, 10, 3) == choose(45_003, 10, 1) == choose(601, 10, 4) == "lobpcg"


def test_lobpcg_takes_over_when_memory_ends(sphere, monkeypatch):
    X, T, L, w, _ = sphere

    def no_memory(*args, **kwargs):
        raise MemoryError

    monkeypatch.setattr(eigenpairs, "splu", no_memory)
    with pytest.warns(GeometryWarning, match="no memory for the factor of 1400 unknowns"):
        found, _ = lowest_eigenpairs(L, 6, points=X, near_kernel=T.transpose(0, 2, 1).reshape(-1, 3))
    np.testing.assert_allclose(found, w[:6], rtol=1e-6)


def test_missing_multigrid_is_said(sphere, monkeypatch):
    def missing(package, extra=None, *, what="this"):
        raise MissingExtra(what, package, extra)

    monkeypatch.setattr(eigenpairs, "require", missing)
    with pytest.raises(ImportError, match=r"lowest_eigenpairs.* needs pyamg: pip install"):
        lowest_eigenpairs(sphere[2], 6, method="lobpcg")


@pytest.mark.parametrize("method", ["shift-invert", "lobpcg"])
def test_what_has_not_converged_is_not_returned(sphere, method):
    _X, T, L, *_ = sphere
    with pytest.raises(RuntimeError, match=r"(have not converged: residuals .*allowed|found \d+ of 20 pairs)"):
        lowest_eigenpairs(L, 20, method=method, maxiter=1, near_kernel=T.transpose(0, 2, 1).reshape(-1, 3))


def test_the_criterion_is_relative_to_the_low_end(sphere, monkeypatch):
    _X, _T, L, _w, V = sphere
    rough = V[:, :6] + 1e-4 * np.random.default_rng(0).standard_normal((1400, 6))
    norm = float(abs(L).sum(axis=0).max())
    values, vectors = eigenpairs._rayleigh_ritz(L, rough)
    with pytest.raises(RuntimeError, match="6 of 6 eigenpairs have not converged"):
        eigenpairs._finished(L, values, vectors, 6, norm, 1e-4)


def test_same_answer_twice_and_no_global_randomness(sphere):
    X, _, L, *_ = sphere
    before = np.random.get_state()[1].copy()
    first = lowest_eigenpairs(L, 5, points=X, random_state=3)
    second = lowest_eigenpairs(L, 5, points=X, random_state=3)
    for a, b in zip(first, second):
        np.testing.assert_array_equal(a, b)
    assert (np.random.get_state()[1] == before).all()
    np.testing.assert_allclose(lowest_eigenpairs(L, 5, random_state=None)[0], first[0], rtol=1e-10)


def test_matrices_of_any_kind_are_taken(sphere):
    L = laplacian(cycle_graph(20))
    expected = lowest_eigenpairs(L, 3)[0]
    for other in (L.toarray(), L.tocoo(), L.tocsc(), sparse.csr_matrix(L)):
        np.testing.assert_array_equal(lowest_eigenpairs(other, 3)[0], expected)
    w, V = lowest_eigenpairs(L, 20)
    check_pairs(L, w, V, 20)
    w, V = lowest_eigenpairs(sparse.csr_array((700, 700)), 2)
    assert (w == 0).all()


def test_dissection_is_a_permutation_whose_separators_separate():
    X = random_sphere(500)
    W = knn_graph(X, 6)
    order = nested_dissection(X, W)
    assert sorted(order.tolist()) == list(range(500))
    extent = np.argmax(X.max(axis=0) - X.min(axis=0))
    left = np.zeros(500, dtype=bool)
    left[np.argsort(X[:, extent])[:250]] = True
    A = W.toarray() > 0
    sides = [left & A[:, ~left].any(axis=1), ~left & A[:, left].any(axis=1)]
    separator = min(sides, key=np.count_nonzero)
    last = set(order[500 - separator.sum() :].tolist())
    assert last == set(np.nonzero(separator)[0].tolist())
    first, second = left & ~separator, ~left & ~separator
    assert not A[np.ix_(first, second)].any()
    assert order[: first.sum()].tolist() != np.nonzero(first)[0].tolist()
    assert set(order[: first.sum()].tolist()) == set(np.nonzero(first)[0].tolist())


def test_dissection_saves_fill():
    X = fibonacci_sphere(2000)
    W = knn_graph(X, 10)
    L = laplacian(W) + 1e-3 * sparse.eye_array(2000)

    def fill(order):
        A = L.tocsr()[order][:, order].tocsc()
        return eigenpairs._factor(A, 0.0, True).nnz

    assert fill(nested_dissection(X, W)) < 0.25 * fill(np.random.default_rng(0).permutation(2000))


def test_dissection_of_duplicates_ends():
    X = np.zeros((200, 2))
    assert sorted(nested_dissection(X, sparse.csr_array(np.ones((200, 200)))).tolist()) == list(range(200))


SMALL = laplacian(cycle_graph(6))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: lowest_eigenpairs(SMALL, 0), r"k must be an integer in \[1, 6\], got 0"),
        (lambda: lowest_eigenpairs(SMALL, 7), r"k must be an integer in \[1, 6\], got 7"),
        (lambda: lowest_eigenpairs(SMALL, 2, method="arpack"), "method must be one of"),
        (lambda: lowest_eigenpairs(SMALL, 6, method="shift-invert"), "k must be less than the 6 unknowns"),
        (lambda: lowest_eigenpairs(SMALL, 3, method="lobpcg"), "k must be at most about"),
        (lambda: lowest_eigenpairs(SMALL, 2, tol=0.0), "tol must be None or > 0"),
        (lambda: lowest_eigenpairs(SMALL, 2, maxiter=0), "maxiter must be None or"),
        (lambda: lowest_eigenpairs(SMALL[:3], 2), "L must be a square matrix"),
        (lambda: lowest_eigenpairs([[1.0, 2.0], [0.0, 1.0]], 1), "L must be symmetric"),
        (lambda: lowest_eigenpairs([[np.nan]], 1), "L must be finite"),
        (lambda: lowest_eigenpairs(SMALL, 2, points=np.eye(4)), "points must be of a number that divides the 6"),
        (lambda: lowest_eigenpairs(SMALL, 2, near_kernel=np.eye(4)), "near_kernel must be of 6 rows"),
        (lambda: lowest_eigenpairs(SMALL, 2, random_state=-1), re.escape("random_state must be in [0, 2**63)")),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
