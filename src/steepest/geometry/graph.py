r"""Neighbor graphs of point clouds and their Laplacians, as sparse matrices.

Points x_1 .. x_n in R^D, edges i ~ j between neighbors, weights W_ij = W_ji >= 0, degrees deg_i = sum_j W_ij. With
rho_i the distance to the k-th neighbor the weights of `knn_graph` are

    connectivity  1                distance     ||x_i - x_j||
    gaussian      exp(-d^2 / (2 sigma^2))       self_tuning  exp(-d^2 / (rho_i rho_j))

and `alpha_decay_graph` takes K_ij = exp(-(d_ij / rho_i)^decay), cut at a threshold, W = (K + K^T) / 2. A weight that
must not know the sampling density is divided by (q_i q_j)^alpha (`density_normalise`). Laplacians: D - W,
I - D^-1/2 W D^-1/2, I - D^-1 W.

Papers: moon2019visualizing (alpha decay), coifman2006diffusion (density), zelnik2004self (self-tuning),
gonzalez1985clustering (farthest points).
Departures: q_i = 1 + sum_j W_ij in the density, since the diagonal is not stored here.
"""

from __future__ import annotations

import math
import warnings
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import sparse
from scipy.sparse import csgraph
from scipy.spatial import cKDTree

from steepest.core.errors import (
    SteepestWarning,
    check,
    interval,
    nonnegative,
    one_of,
    optional,
    positive,
    value_error,
)
from steepest.core.random import numpy_generator
from steepest.geometry._matrices import as_graph, as_points, as_square, degrees, positive_degrees, row_indices
from steepest.geometry._search import (
    check_n_neighbors,
    edge_lengths,
    nearest,
    principal_components,
    ratio,
    scaled_neighbors,
)

__all__ = [
    "GeometryWarning",
    "alpha_decay_graph",
    "as_graph",
    "as_points",
    "connected_components",
    "density_normalise",
    "farthest_points",
    "knn_graph",
    "laplacian",
    "radius_neighbors",
    "row_indices",
    "warn_if_disconnected",
]

Floats = NDArray[np.float64]
Integers = NDArray[np.integer[Any]]


class GeometryWarning(SteepestWarning):
    """A graph or a set of frames is not what the theory assumes: several components, a bad edge, a clipped value."""


def knn_graph(
    X: ArrayLike,
    n_neighbors: int = 10,
    *,
    weight: str = "connectivity",
    symmetrise: str = "union",
    sigma: float | None = None,
    n_jobs: int = 1,
) -> sparse.csr_array:
    """Join each point with its nearest neighbors.

    Each point lists exactly `n_neighbors` points other than itself, found by index, so that duplicated points are
    neighbors at distance 0. Up to 15 coordinates a KD-tree is searched, above that blocks of inner products.

    Parameters
    ----------
    X : array_like, shape (n, D)
    n_neighbors : int
        k, in [1, n - 1].
    weight : "connectivity", "distance", "gaussian" or "self_tuning"
        See the module's table. A weight of zero stays a stored entry: it is an edge.
    symmetrise : "union" or "mutual"
        Keep an edge that either end lists, or one that both list.
    sigma : float or None
        Width for ``weight="gaussian"``; None takes the median edge length.
    n_jobs : int
        Threads of the search, -1 for all.

    Returns
    -------
    scipy.sparse.csr_array, shape (n, n), float64
        Symmetric, zero diagonal, sorted indices.

    Raises
    ------
    ValueError
        `X` is not 2-D or not finite, ``k < 1`` or ``k >= n``, an unknown word, or ``sigma=None`` where more than half
        of the edges have length zero.

    Examples
    --------
    >>> knn_graph([[0.0], [1.0], [3.0]], 1, weight="distance").toarray()
    array([[0., 1., 0.],
           [1., 0., 2.],
           [0., 2., 0.]])
    """
    points = as_points(X)
    n = len(points)
    check("weight", weight, one_of("connectivity", "distance", "gaussian", "self_tuning"))
    check("symmetrise", symmetrise, one_of("union", "mutual"))
    check("sigma", sigma, optional(positive()))
    check_n_neighbors(n_neighbors, n)
    distances, neighbors = nearest(points, n_neighbors, n_jobs=n_jobs)
    pattern = _symmetric_pattern(neighbors, symmetrise)
    if weight == "connectivity":
        pattern.data = np.ones(pattern.nnz)
        return pattern
    pattern.data = edge_lengths(points, pattern)
    if weight == "gaussian":
        width = sigma if sigma is not None else float(np.median(pattern.data)) if pattern.nnz else 1.0
        if width == 0:
            raise value_error("sigma", "given when the median edge length is 0", sigma)
        pattern.data = np.exp(-0.5 * (pattern.data / width) ** 2)
    elif weight == "self_tuning":
        rho = distances[:, -1]
        rows = row_indices(pattern)
        scale = np.sqrt(rho[rows]) * np.sqrt(rho[pattern.indices])
        pattern.data = np.exp(-(ratio(pattern.data, scale) ** 2))
    return pattern


def alpha_decay_graph(
    X: ArrayLike,
    n_neighbors: int = 5,
    *,
    decay: float = 40.0,
    threshold: float = 1e-4,
    anisotropy: float = 0.0,
    n_pca: int | None = None,
) -> sparse.csr_array:
    """Build the graph with a kernel that adapts to the density and decays at a chosen rate (PHATE's).

    ``K_ij = exp(-(d_ij / rho_i)^decay)`` with rho_i the distance to the k-th neighbor; entries below `threshold` are
    dropped, that is those beyond ``rho_i (-ln threshold)^(1 / decay)``; ``W = (K + K^T) / 2``, diagonal 0.

    Parameters
    ----------
    X : array_like, shape (n, D)
    n_neighbors : int
        k, in [1, n - 1]. Default of PHATE.
    decay : float
        > 0; 40 is PHATE's, 2 gives an adaptive Gaussian.
    threshold : float
        In (0, 1); graphtools' default 1e-4.
    anisotropy : float
        alpha >= 0 of `density_normalise`; 0 leaves W as it is.
    n_pca : int or None
        Search on this many principal components of `X`.

    Returns
    -------
    scipy.sparse.csr_array, shape (n, n), float64
        Symmetric, zero diagonal, sorted indices.

    Raises
    ------
    ValueError
        Bad points, ``k < 1`` or ``k >= n``, or a number outside its range.

    Examples
    --------
    >>> W = alpha_decay_graph([[0.0], [1.0], [2.0], [4.0]], 1, decay=2.0)
    >>> [round(float(w), 4) for w in W.toarray()[0]]
    [0.0, 0.3679, 0.0183, 0.0092]
    """
    points = as_points(X)
    n = len(points)
    check_n_neighbors(n_neighbors, n)
    check("decay", decay, positive())
    check("threshold", threshold, interval(0, 1, low_open=True, high_open=True))
    check("anisotropy", anisotropy, nonnegative())
    check("n_pca", n_pca, optional(interval(1, min(points.shape), integer=True)))
    if n_pca is not None:
        points = principal_components(points, n_pca)
    reach = (-math.log(threshold)) ** (1 / decay)
    rows, cols, scaled = scaled_neighbors(points, n_neighbors, reach)
    K = sparse.coo_array((np.exp(-(scaled**decay)), (rows, cols)), shape=(n, n)).tocsr()
    W = ((K + K.T) * 0.5).tocsr()
    W.sort_indices()
    return density_normalise(W, anisotropy) if anisotropy else W


def density_normalise(W: Any, alpha: float = 1.0) -> sparse.csr_array:
    """Divide the influence of the sampling density out of a graph: ``W_ij / (q_i q_j)^alpha``, ``q_i = 1 + deg_i``.

    Parameters
    ----------
    W : sparse matrix or array, shape (n, n)
        Symmetric, nonnegative.
    alpha : float
        0 leaves W as it is, 1 removes the density, 1/2 is the Fokker-Planck normalization.

    Returns
    -------
    scipy.sparse.csr_array, shape (n, n)

    Raises
    ------
    ValueError
        `W` is not square, finite, symmetric and nonnegative, or ``alpha < 0``.

    Examples
    --------
    >>> density_normalise([[0.0, 1.0], [1.0, 0.0]]).toarray()
    array([[0.  , 0.25],
           [0.25, 0.  ]])
    """
    out = as_graph(W).copy()
    check("alpha", alpha, nonnegative())
    factors = (1.0 + degrees(out)) ** -float(alpha)
    out.data *= factors[row_indices(out)] * factors[out.indices]
    return out


def laplacian(W: Any, kind: str = "combinatorial") -> sparse.csr_array:
    """Form the Laplacian of a graph.

    Parameters
    ----------
    W : sparse matrix or array, shape (n, n)
        Symmetric (to 1e-10 of the largest weight), nonnegative.
    kind : "combinatorial", "normalized" or "random_walk"
        D - W, I - D^-1/2 W D^-1/2 (eigenvalues in [0, 2]) or I - D^-1 W (the same eigenvalues, not symmetric).

    Returns
    -------
    scipy.sparse.csr_array, shape (n, n), float64

    Raises
    ------
    ValueError
        `W` is not square, finite, symmetric and nonnegative; an unknown `kind`; a vertex of degree 0 with a
        normalized kind.

    Examples
    --------
    >>> laplacian([[0.0, 2.0], [2.0, 0.0]]).toarray()
    array([[ 2., -2.],
           [-2.,  2.]])
    """
    W = as_graph(W)
    check("kind", kind, one_of("combinatorial", "normalized", "random_walk"))
    deg = degrees(W)
    if kind == "combinatorial":
        L = sparse.diags_array(deg, format="csr") - W
    else:
        rows, cols = row_indices(W), W.indices
        positive_degrees(deg)
        scale = 1 / deg[rows] if kind == "random_walk" else (deg**-0.5)[rows] * (deg**-0.5)[cols]
        L = sparse.eye_array(len(deg), format="csr") - sparse.csr_array((W.data * scale, cols, W.indptr), shape=W.shape)
    L = L.tocsr()
    L.sort_indices()
    return L


def connected_components(W: Any) -> tuple[int, NDArray[np.int32]]:
    """Count the connected components of a graph; a stored zero is an edge.

    Parameters
    ----------
    W : sparse matrix or array, shape (n, n)

    Returns
    -------
    count : int
    labels : ndarray of int32, shape (n,)
        Component of each vertex.

    Examples
    --------
    >>> connected_components([[0.0, 1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 0.0]])
    (2, array([0, 0, 1], dtype=int32))
    """
    count, labels = csgraph.connected_components(as_square(W), directed=False)
    return int(count), labels


def warn_if_disconnected(W: Any) -> int:
    """Give a `GeometryWarning` with the sizes when a graph has several connected components; return their number.

    Examples
    --------
    >>> warn_if_disconnected([[0.0, 1.0], [1.0, 0.0]])
    1
    """
    count, labels = connected_components(W)
    if count > 1:
        sizes = np.sort(np.bincount(labels))[::-1]
        shown = ", ".join(str(s) for s in sizes[:10]) + (", …" if count > 10 else "")
        warnings.warn(
            f"the graph has {count} connected components of sizes {shown}; raise n_neighbors or treat them one by one",
            GeometryWarning,
            stacklevel=3,
        )
    return count


def radius_neighbors(
    X: ArrayLike, radius: float, Y: ArrayLike | None = None, max_neighbors: int | None = None
) -> tuple[NDArray[np.intp], NDArray[np.intp], Floats]:
    """List all pairs of points within a distance of each other.

    Parameters
    ----------
    X : array_like, shape (n, D)
        Points whose neighborhoods are wanted.
    radius : float
        > 0; a pair at exactly this distance counts.
    Y : array_like, shape (m, D), or None
        Where the neighbors are looked for; None takes `X`, and each point is then its own neighbor too (distance 0).
    max_neighbors : int or None
        Keep the nearest this many of each row.

    Returns
    -------
    rows, cols : ndarray of intp, shape (e,)
        Indices into `X` and into `Y`, sorted by row, then column.
    distances : ndarray of float64, shape (e,)

    Raises
    ------
    ValueError
        Points that are not 2-D and finite or of unlike dimension, ``radius <= 0``, ``max_neighbors < 1``.

    Examples
    --------
    >>> rows, cols, distances = radius_neighbors([[0.0], [1.0], [3.0]], 1.0)
    >>> rows.tolist(), cols.tolist(), distances.tolist()
    ([0, 0, 1, 1, 2], [0, 1, 0, 1, 2], [0.0, 1.0, 1.0, 0.0, 0.0])
    """
    points = as_points(X)
    targets = points if Y is None else as_points(Y, "Y")
    if targets.shape[1] != points.shape[1]:
        raise value_error("Y", f"of {points.shape[1]} columns as X has", targets)
    check("radius", radius, positive())
    check("max_neighbors", max_neighbors, optional(positive(integer=True)))
    shape = (len(points), len(targets))
    tree = cKDTree(targets, balanced_tree=False, compact_nodes=False)
    if max_neighbors is None:
        found = cKDTree(points, balanced_tree=False, compact_nodes=False).sparse_distance_matrix(
            tree, float(radius), output_type="ndarray"
        )
        rows, cols, distances = found["i"], found["j"], found["v"]
    else:
        limit = float(np.nextafter(float(radius), math.inf))  # the tree keeps what is strictly nearer
        distances, cols = tree.query(points, k=range(1, min(max_neighbors, shape[1]) + 1), distance_upper_bound=limit)
        inside = np.isfinite(distances)
        rows = np.nonzero(inside)[0]
        cols, distances = cols[inside], distances[inside]
    graph = sparse.coo_array((distances, (rows, cols)), shape=shape).tocsr()
    graph.sort_indices()
    return row_indices(graph).astype(np.intp), graph.indices.astype(np.intp), graph.data


def farthest_points(
    X: ArrayLike,
    n: int | None = None,
    *,
    spacing: float | None = None,
    start: int | None = None,
    random_state: int | np.random.Generator | np.random.RandomState | None = 0,
) -> NDArray[np.intp]:
    """Choose well spread points: each next one is the farthest from all that are chosen.

    Parameters
    ----------
    X : array_like, shape (N, D)
    n : int or None
        How many, at most N; None goes on until `spacing` stops it.
    spacing : float or None
        Stop when the next point is nearer than this (a length, in the units of `X`) to a chosen one. The chosen are
        then at least `spacing` apart, and every point has a chosen one nearer than `spacing`.
    start : int or None
        First point; None draws it.
    random_state : int, Generator, RandomState or None
        For the first point.

    Returns
    -------
    ndarray of intp, shape (at most n,)
        Distinct indices in the order of choice. Memory O(N), time O(N n).

    Raises
    ------
    ValueError
        Neither `n` nor `spacing`, or one outside its range.

    Examples
    --------
    >>> farthest_points([[0.0], [1.0], [4.0], [9.0]], 3, start=0).tolist()
    [0, 3, 2]
    """
    points = as_points(X)
    size = len(points)
    check("n", n, optional(interval(1, size, integer=True)))
    check("spacing", spacing, optional(positive()))
    check("start", start, optional(interval(0, size - 1, integer=True)))
    if n is None and spacing is None:
        raise value_error("n", "given where spacing is None", n)
    budget = size if n is None else n
    first = int(numpy_generator(random_state, name="random_state").integers(size)) if start is None else int(start)
    columns = np.ascontiguousarray(points.T)  # (D, N): one pass a coordinate
    nearest_squared = np.full(size, np.inf)
    chosen = [first]
    while len(chosen) < budget:
        squared = np.zeros(size)
        for column in columns:
            offset = column - column[chosen[-1]]
            offset *= offset
            squared += offset
        np.minimum(nearest_squared, squared, out=nearest_squared)
        nearest_squared[chosen[-1]] = -1.0  # a duplicate is at 0 and may still be chosen
        best = int(np.argmax(nearest_squared))
        if spacing is not None and nearest_squared[best] < spacing**2:
            break
        chosen.append(best)
    return np.array(chosen, dtype=np.intp)


def _symmetric_pattern(neighbors: Integers, symmetrise: str) -> sparse.csr_array:
    """Symmetrize the lists: entry 1 where one end lists the other, 2 where both do."""
    n, k = neighbors.shape
    columns = np.sort(neighbors, axis=1).astype(np.int32 if n * k < 2**30 else np.int64, copy=False).ravel()
    pointers = np.arange(0, n * k + 1, k, dtype=columns.dtype)
    listed = sparse.csr_array((np.ones(n * k, dtype=np.int8), columns, pointers), shape=(n, n))
    both = listed + listed.T.tocsr()
    if symmetrise == "mutual":
        both.data = (both.data == 2).astype(np.int8)
        both.eliminate_zeros()
    return sparse.csr_array((both.data.astype(np.float64), both.indices, both.indptr), shape=(n, n))
