r"""Tangent frames of a point cloud, transport between them, and the connection Laplacian that compares vectors.

A neighborhood of x_i (its K nearest points and itself), centered at its mean, has the singular values s_i1 >= s_i2 ..
and d leading left singular vectors, the frame T_i (D x d). With T_i^T T_j = U S V^T the orthogonal R_ij = U V^T carries
components in frame j to frame i. The graph connection Laplacian has the blocks

    (i, j): -W_ij R_ij,    (i, i): deg_i I_d,    v^T L v = sum_{i<j} W_ij ||v_i - R_ij v_j||^2,

and is `normalized` by sqrt(deg_i deg_j) or made a `random_walk` by deg_i. The dimension, where it is not given, is the
least m with mean_i r_im - std_i r_im >= explained_variance, r_im = sum_{l<=m} s_il^2 / sum_l s_il^2.

Papers: singer2012vector (connection Laplacian), budninskiy2018parallel (neighborhoods along the graph),
peach2024implicit (dimension).   Notation: O_ij of singer2012vector is `R`, theirs O_i the `frames`.
Departures: neighborhoods are unweighted and centered at their mean, as peach2024implicit has it; singer2012vector
weights by a kernel and centers at x_i.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import sparse
from scipy.sparse import csgraph

from steepest.core.errors import check, interval, one_of, optional, value_error
from steepest.geometry._field_index import vector_field_index
from steepest.geometry._matrices import as_graph, as_points, asymmetry_of, degrees, positive_degrees, row_indices
from steepest.geometry._search import check_n_neighbors
from steepest.geometry._tangent_planes import neighborhoods, principal_directions
from steepest.geometry._transport import as_frames, as_vertices, overlaps, transport, warn_if_perpendicular

__all__ = [
    "TangentFrames",
    "connection_laplacian",
    "orient_frames",
    "parallel_transport",
    "tangent_frames",
    "vector_field_index",
]

Floats = NDArray[np.float64]
Integers = NDArray[np.integer[Any]]


@dataclass(frozen=True)
class TangentFrames:
    """Orthonormal tangent frames and what they were taken from.

    Attributes
    ----------
    frames : ndarray, shape (n, D, d)
        Columns span the tangent plane at each point.
    singular_values : ndarray, shape (n, min(D, K + 1))
        Of the centered neighborhoods, descending.
    dim : int
        d.
    explained : ndarray, shape (min(D, K + 1),)
        Mean over points of the share of variance within the first m directions.
    """

    frames: Floats
    singular_values: Floats
    dim: int
    explained: Floats


def tangent_frames(
    X: ArrayLike,
    *,
    n_neighbors: int = 15,
    dim: int | None = None,
    explained_variance: float = 0.8,
    graph: Any = None,
) -> TangentFrames:
    """Estimate the tangent plane at each point by the principal directions of its neighborhood.

    Parameters
    ----------
    X : array_like, shape (n, D)
    n_neighbors : int
        K, points of a neighborhood besides its own; 1.5 times the k of the graph in the methods' papers.
    dim : int or None
        d; None takes the least that explains enough variance (see the module).
    explained_variance : float
        In (0, 1].
    graph : sparse matrix or array, shape (n, n), or None
        None takes the K nearest points in space. A graph (such as that of `knn_graph`, whatever its weights) takes the
        K nearest along its edges, which have their length in space: two sheets that come close do not mix. A component
        with fewer points is taken whole.

    Returns
    -------
    TangentFrames

    Raises
    ------
    ValueError
        Bad points, ``K < 1`` or ``K >= n``, a `dim` beyond ``min(D, K)`` or beyond what a component of the graph
        spans, a graph of another size, or no dimension explains enough.

    Examples
    --------
    >>> angle = np.linspace(0.0, 2 * np.pi, 100, endpoint=False)
    >>> found = tangent_frames(np.c_[np.cos(angle), np.sin(angle)], n_neighbors=4)
    >>> found.dim, bool(abs(abs(found.frames[0, 1, 0]) - 1) < 1e-12)
    (1, True)
    """
    points = as_points(X)
    n, dimension = points.shape
    check_n_neighbors(n_neighbors, n)
    check("explained_variance", explained_variance, interval(0, 1, low_open=True))
    check("dim", dim, optional(interval(1, min(dimension, n_neighbors), integer=True)))
    members, present = neighborhoods(points, n_neighbors, graph)
    largest = min(dimension, n_neighbors + 1) if dim is None else dim
    values, vectors = principal_directions(points, members, present, min(largest, dimension))
    squared = np.cumsum(values**2, axis=1)
    shares = np.zeros_like(squared)
    np.divide(squared, squared[:, -1:], out=shares, where=squared[:, -1:] > 0)
    if dim is None:
        enough = np.nonzero(shares.mean(axis=0) - shares.std(axis=0) >= explained_variance)[0]
        if not enough.size:
            raise value_error(
                "explained_variance",
                "reached by the mean minus the spread of some number of directions",
                explained_variance,
                f"the best is {float((shares.mean(axis=0) - shares.std(axis=0)).max()):.3g}; give dim",
            )
        dim = int(enough[0]) + 1
    if present is not None and (fewest := int(present.sum(axis=1).min())) <= dim:
        raise value_error("graph", f"of components with more than {dim} points", f"one of {fewest}")
    return TangentFrames(np.ascontiguousarray(vectors[:, :, :dim]), values, dim, shares.mean(axis=0))


def parallel_transport(frames: Any, rows: ArrayLike, cols: ArrayLike, proper: bool = False) -> Floats:
    """Compute the orthogonal maps that carry components in frame j to frame i: ``v_i = R_ij v_j``.

    R_ij is the orthogonal matrix nearest to ``T_i^T T_j``; ``R_ji = R_ij^T``.

    Parameters
    ----------
    frames : array_like, shape (n, D, d), or TangentFrames
    rows, cols : array_like of int, shape (e,)
        i and j of each map.
    proper : bool
        Take the nearest rotation, of determinant 1, instead (for frames that are oriented).

    Returns
    -------
    ndarray, shape (e, d, d)

    Raises
    ------
    ValueError
        Frames that are not orthonormal, indices outside [0, n) or of unlike shape.

    Warns
    -----
    GeometryWarning
        Edges whose ``T_i^T T_j`` has a singular value below 0.1: nearly perpendicular planes, whose transport is
        decided by round-off and noise.

    Examples
    --------
    >>> frames = np.array([[[1.0], [0.0]], [[0.6], [0.8]], [[-1.0], [0.0]]])
    >>> parallel_transport(frames, [0, 0], [1, 2])[:, 0, 0]
    array([ 1., -1.])
    """
    T = as_frames(frames)
    i, j = as_vertices("rows", rows, len(T)), as_vertices("cols", cols, len(T))
    if i.shape != j.shape or i.ndim != 1:
        raise value_error("cols", f"1-D and as long as rows {i.shape}", j)
    R, smallest = transport(T, i, j, proper)
    warn_if_perpendicular(smallest)
    return R


def connection_laplacian(W: Any, frames: Any, kind: str = "combinatorial") -> sparse.bsr_array:
    """Form the connection Laplacian of a graph whose vertices carry tangent frames.

    Parameters
    ----------
    W : sparse matrix or array, shape (n, n)
        Symmetric, nonnegative weights; the diagonal is of no account.
    frames : array_like, shape (n, D, d), or TangentFrames
    kind : "combinatorial", "normalized" or "random_walk"
        The last is not symmetric: take the eigenvectors of the normalized one times ``deg^-1/2``.

    Returns
    -------
    scipy.sparse.bsr_array, shape (n d, n d), blocks (d, d), float64
        Symmetric (but for random_walk) and positive semi-definite.

    Raises
    ------
    ValueError
        A bad `W` (see `laplacian`), frames of another number or not orthonormal, an unknown `kind`, or a vertex of
        degree 0 with a normalized kind.

    Warns
    -----
    GeometryWarning
        See `parallel_transport`.

    Examples
    --------
    >>> frames = np.array([[[1.0], [0.0]], [[-0.8], [0.6]]])
    >>> connection_laplacian([[0.0, 2.0], [2.0, 0.0]], frames).toarray()
    array([[2., 2.],
           [2., 2.]])
    """
    T = as_frames(frames)
    W = _plain_graph(W, len(T))
    check("kind", kind, one_of("combinatorial", "normalized", "random_walk"))
    n, d = len(T), T.shape[2]
    deg = degrees(W)
    rows, cols = row_indices(W), W.indices
    upper = np.nonzero(cols > rows)[0]
    R, smallest = transport(T, rows[upper], cols[upper], False)
    warn_if_perpendicular(smallest)
    weights, diagonal = W.data, deg
    if kind != "combinatorial":
        positive_degrees(deg)
        scale = deg**-0.5
        weights = W.data / deg[rows] if kind == "random_walk" else W.data * (scale[rows] * scale[cols])
        diagonal = np.ones(n)
    place = np.arange(W.nnz) + rows + (cols > rows)  # where the entries go once a diagonal is put among them
    center = W.indptr[:-1] + np.arange(n) + np.bincount(rows[cols < rows], minlength=n)
    lower = (
        sparse.csr_array((np.arange(W.nnz), cols, W.indptr), shape=W.shape).T.tocsr().data[upper]
    )  # (j, i) of (i, j)
    blocks = np.zeros((W.nnz + n, d, d))
    indices = np.empty(W.nnz + n, dtype=W.indices.dtype)
    indices[place], indices[center] = cols, np.arange(n)
    blocks[place[upper]] = -weights[upper, None, None] * R
    blocks[place[lower]] = -weights[lower, None, None] * R.transpose(0, 2, 1)
    blocks[center] = diagonal[:, None, None] * np.eye(d)
    pointers = (W.indptr + np.arange(n + 1)).astype(W.indptr.dtype)
    return sparse.bsr_array((blocks, indices, pointers), shape=(n * d, n * d))


def orient_frames(frames: Any, W: Any) -> Floats:
    """Flip frames so that neighbors agree in orientation: ``det(T_i^T T_j) > 0`` on every edge.

    Parameters
    ----------
    frames : array_like, shape (n, D, d), or TangentFrames
    W : sparse matrix or array, shape (n, n)
        Symmetric; only its pattern counts.

    Returns
    -------
    ndarray, shape (n, D, d)
        The frames, the last column of some of them negated. The first vertex of each component keeps its own.

    Raises
    ------
    ValueError
        No choice of flips agrees on every edge (a Möbius strip, or edges between perpendicular planes), or bad input.

    Examples
    --------
    >>> frames = np.array([[[1.0], [0.0]], [[-0.8], [0.6]]])
    >>> orient_frames(frames, [[0.0, 1.0], [1.0, 0.0]])[1, :, 0]
    array([ 0.8, -0.6])
    """
    T = as_frames(frames)
    W = _plain_graph(W, len(T))
    rows, cols = row_indices(W), W.indices
    determinants = np.linalg.det(overlaps(T, rows, cols)) if T.shape[2] > 1 else overlaps(T, rows, cols)[:, 0, 0]
    sign = np.where(determinants < 0, -1.0, 1.0)
    flips = _signs_along_tree(sparse.csr_array((sign, cols, W.indptr), shape=W.shape))
    against = np.count_nonzero(flips[rows] * flips[cols] * determinants <= 0) // 2
    if against:
        raise value_error(
            "frames",
            "orientable along the edges of W",
            f"{against} of {W.nnz // 2} edges that disagree",
            "det(T_i^T T_j) > 0 cannot hold on all",
        )
    out = T.copy()
    out[:, :, -1] *= flips[:, None]
    return out


def _plain_graph(W: Any, n: int) -> sparse.csr_array:
    """Check a graph and give it without diagonal and stored zeros, exactly symmetric."""
    W = as_graph(W)
    if W.shape[0] != n:
        raise value_error("W", f"of shape ({n}, {n}), as there are frames", W.shape)
    if asymmetry_of(W):
        W = ((W + W.T) * 0.5).tocsr()
    if (W.data == 0).any() or W.diagonal().any():
        W = (W - sparse.diags_array(W.diagonal())).tocsr()
        W.eliminate_zeros()
    W.sort_indices()
    return W


def _signs_along_tree(signs: sparse.csr_array) -> Floats:
    """Multiply signs of edges along a breadth-first tree from the first vertex of each component, shape (n,)."""
    n = signs.shape[0]
    _, labels = csgraph.connected_components(signs, directed=False)
    firsts = np.unique(labels, return_index=True)[1]
    rows = np.concatenate((row_indices(signs), np.full(firsts.size, n)))  # a root n above the first vertices
    cols = np.concatenate((signs.indices, firsts))
    joined = sparse.csr_array((np.ones(rows.size), (rows, cols)), shape=(n + 1, n + 1))
    _, parent = csgraph.breadth_first_order(joined, n, directed=True)
    parent[n] = n
    value = np.ones(n + 1)
    inner = np.nonzero(parent[:n] != n)[0]
    value[inner] = np.asarray(signs[inner, parent[inner]]).ravel()
    while (parent != n).any():  # every vertex looks twice as far up each time
        value *= value[parent]
        parent = parent[parent]
    return value[:n]
