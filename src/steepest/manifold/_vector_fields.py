"""Vector fields at scattered points of a manifold: well spread points, diffusion, divergence and curl.

With frames T_i (D×d), components ``v_i = T_iᵀ V_i`` and parallel transport R_ij (frame j to frame i)::

    diffusion   u = e^{-t L_c} v,   lengths  |u_i| <- (e^{-tL} |v|)_i / (e^{-tL} 1)_i
    Jacobian    J_i = argmin_J min_a Σ_{j ~ i, j = i} |R_ij v_j - a - J T_iᵀ(x_j - x_i)|²
    divergence  tr J_i,             curl  [J_i]_21 - [J_i]_12  (d = 2)

L_c is the connection Laplacian, L the scalar one of the same graph, and 1 marks the points that carry a vector.

Paper: peach2024implicit, App. D (test fields by diffusion, features of the EEG study). Departure: the Jacobian's
regression has an intercept, so that the vector at the point itself counts as one datum among its neighbors.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from steepest.core.errors import boolean, check, kind_error, nonnegative, optional, positive, value_error
from steepest.geometry._matrices import as_graph, as_points, row_indices
from steepest.geometry.connection import connection_laplacian, parallel_transport
from steepest.geometry.graph import connected_components, farthest_points, laplacian
from steepest.geometry.heat import heat_apply

__all__ = ["divergence_curl", "furthest_point_sampling", "vector_diffusion"]

Floats = NDArray[np.float64]

REACHED = 1e-8  # of the mass of heat below which a length restored by division is round-off of the diffusion
KEPT = 1e-4  # of the norm: what one piece of diffusion must leave, far above the 1e-10 to which it is exact
SHORTEST = 1 / 1024  # of the time
SWEEPS = 10


def furthest_point_sampling(
    X: ArrayLike,
    n: int | None = None,
    spacing: float | None = None,
    *,
    start: int | None = None,
    random_state: int | np.random.Generator | np.random.RandomState | None = 0,
) -> NDArray[np.intp]:
    """Choose well spread points, each the farthest from all before it, until `n` or a relative `spacing` is reached.

    Parameters
    ----------
    X : array_like, shape (N, D)
    n : int or None
        How many, at most N; None goes on until `spacing` stops it.
    spacing : float or None
        Stop when the next point is nearer than ``spacing * diameter`` to a chosen one (the paper's meshes: 0.015).
        The diameter is that found by sweeps from farthest point to farthest point.
    start : int or None
        First point; None draws it.
    random_state : int, Generator, RandomState or None
        For the first point.

    Returns
    -------
    ndarray of intp
        Distinct indices in the order of choice. Memory O(N), time O(N n).

    Raises
    ------
    ValueError
        Neither `n` nor `spacing`, or one outside its range.

    See Also
    --------
    steepest.geometry.farthest_points : the same with an absolute spacing.

    Examples
    --------
    >>> furthest_point_sampling([[0.0], [1.0], [4.0], [9.0]], spacing=0.4, start=0).tolist()
    [0, 3, 2]
    """
    points = as_points(X)
    check("spacing", spacing, optional(positive()))
    length = None if spacing is None else spacing * _diameter(points)
    if length == 0:  # all points are one
        length = None
        n = 1 if n is None else n
    return farthest_points(points, n, spacing=length, start=start, random_state=random_state)


def vector_diffusion(V: ArrayLike, t: float, frames: Any, W: Any, normalise: bool = True) -> Floats:
    """Diffuse vectors along the manifold by the connection Laplacian.

    From isotropic random unit tangent vectors and t = 100 this makes the smooth test fields of the paper.

    Parameters
    ----------
    V : array_like, shape (n, D)
        Ambient vectors, of which the tangential parts are diffused; a row of NaN carries no vector.
    t : float
        Time, >= 0, in units of 1 / (weight of an edge).
    frames : array_like, shape (n, D, d), or TangentFrames
        Orthonormal tangent frames, see `steepest.geometry.tangent_frames`.
    W : sparse array, shape (n, n)
        Weights of the graph.
    normalise : bool
        Give the diffused vectors the diffused lengths, ``e^{-tL}|v| / e^{-tL}1``, in place of the lengths that
        cancellation has left.

    Returns
    -------
    ndarray, shape (n, D)
        Tangent vectors; NaN (with `normalise`) at points that heat from no vector has reached.

    Raises
    ------
    ValueError
        Shapes that do not fit, a row that is only partly NaN, infinite entries, ``t < 0``.

    Examples
    --------
    A constant field on a flat patch stays as it is:

    >>> from steepest.geometry import knn_graph
    >>> rng = np.random.default_rng(0)
    >>> X = rng.random((30, 2))
    >>> frames = np.broadcast_to(np.eye(2), (30, 2, 2))
    >>> V = np.tile([3.0, 4.0], (30, 1))
    >>> bool(np.allclose(vector_diffusion(V, 5.0, frames, knn_graph(X, 5)), V))
    True
    """
    T = _frames_of(frames)
    graph = _graph_of(W, len(T))
    vectors, carried = vectors_with_gaps(V, T.shape[:2], "V")
    check("t", t, nonnegative())
    check("normalise", normalise, boolean())
    components = np.where(carried[:, None], np.einsum("nDd,nD->nd", T, np.where(carried[:, None], vectors, 0.0)), 0.0)
    L = connection_laplacian(graph, T)
    if not normalise:
        diffused = heat_apply(L, components.ravel(), t).reshape(components.shape)
    else:
        diffused = _diffused_directions(L, components, t, connected_components(graph)[1])
        start = np.column_stack([np.linalg.norm(components, axis=1), carried.astype(float)])
        length, mass = heat_apply(laplacian(graph), start, t).T
        reached = mass > REACHED
        length = np.where(reached, length / np.where(reached, mass, 1.0), np.nan)
        present = np.linalg.norm(diffused, axis=1)
        diffused *= (length / np.where(present > 0, present, 1.0))[:, None]
    return np.einsum("nDd,nd->nD", T, diffused)


def _diffused_directions(L: Any, z: Floats, t: float, labels: Any) -> Floats:
    """Diffuse in pieces of time, with the norm of each component of the graph restored after each.

    Heat is exact to a share of what it began with; a field that decays below that share keeps no direction.
    """
    left, piece = t, t
    while left > 0:
        w = heat_apply(L, z.ravel(), min(piece, left)).reshape(z.shape)
        before, after = (np.sqrt(np.bincount(labels, np.square(v).sum(axis=1))) for v in (z, w))
        if (after < KEPT * before).any() and piece > SHORTEST * t:
            piece /= 2
            continue
        z = w * np.where(after > 0, 1 / np.where(after > 0, after, 1.0), 0.0)[labels, None]
        left -= min(piece, left)
    return z


def divergence_curl(X: ArrayLike, V: ArrayLike, frames: Any, W: Any) -> tuple[Floats, Floats]:
    """Differentiate a vector field along the manifold by least squares over neighbors.

    Parameters
    ----------
    X : array_like, shape (n, D)
        Points.
    V : array_like, shape (n, D)
        Vectors; their tangential parts count.
    frames : array_like, shape (n, D, d), or TangentFrames
        Orthonormal tangent frames. The sign of the curl is that of each frame's orientation:
        `steepest.geometry.orient_frames` makes it one.
    W : sparse array, shape (n, n)
        Graph; its weights weigh the neighbors, and the point itself weighs as their mean.

    Returns
    -------
    divergence : ndarray, shape (n,)
    curl : ndarray, shape (n,) for d = 2, else (n, d, d)
        ``J_21 - J_12``; in other dimensions the antisymmetric matrix ``J - Jᵀ``.

    Raises
    ------
    ValueError
        Shapes that do not fit, non-finite values, or a point whose neighbors do not span the tangent plane.

    Examples
    --------
    The field (x, y) -> (2x - y, x) has divergence 2 and curl 2:

    >>> from steepest.geometry import knn_graph
    >>> X = np.random.default_rng(0).random((40, 2))
    >>> V = X @ np.array([[2.0, 1.0], [-1.0, 0.0]])
    >>> divergence, curl = divergence_curl(X, V, np.broadcast_to(np.eye(2), (40, 2, 2)), knn_graph(X, 6))
    >>> bool(np.allclose(divergence, 2)), bool(np.allclose(curl, 2))
    (True, True)
    """
    T = _frames_of(frames)
    n, _, d = T.shape
    graph = _graph_of(W, n).copy()
    points, vectors = as_points(X), as_points(V, "V")
    for name, array in (("X", points), ("V", vectors)):
        if array.shape != T.shape[:2]:
            raise value_error(name, f"of shape {T.shape[:2]} as frames have", array)
    graph.eliminate_zeros()  # a neighbor of weight 0 says nothing
    counts = np.diff(graph.indptr)
    if counts.min() < d:
        raise value_error("W", f"a graph with at least {d} neighbors at each point", f"{counts.min()} at one")
    rows, cols = row_indices(graph), graph.indices
    components = np.einsum("nDd,nD->nd", T, vectors)
    steps = np.einsum("eDd,eD->ed", T[rows], points[cols] - points[rows])
    change = np.einsum("eab,eb->ea", parallel_transport(T, rows, cols), components[cols]) - components[rows]
    # moments over the neighbors and the point itself, where step and change are zero
    starts, w = graph.indptr[:-1], graph.data[:, None]
    total = np.add.reduceat(w, starts) * (1 + 1 / counts[:, None])
    mean_step, mean_change = np.add.reduceat(w * steps, starts) / total, np.add.reduceat(w * change, starts) / total
    products = np.add.reduceat(w[:, :, None] * steps[:, :, None] * steps[:, None, :], starts) / total[:, :, None]
    cross = np.add.reduceat(w[:, :, None] * change[:, :, None] * steps[:, None, :], starts) / total[:, :, None]
    covariance = products - mean_step[:, :, None] * mean_step[:, None, :]
    cross -= mean_change[:, :, None] * mean_step[:, None, :]
    spread = np.linalg.eigvalsh(covariance)
    flat = spread[:, 0] <= 1e-12 * spread[:, -1]
    if flat.any():
        found = f"{np.count_nonzero(flat)} points (the first: {np.nonzero(flat)[0][0]}) where they do not"
        raise value_error("W", "a graph whose neighborhoods span the tangent planes", found)
    jacobian = np.linalg.solve(covariance, cross.transpose(0, 2, 1)).transpose(0, 2, 1)
    antisymmetric = jacobian - jacobian.transpose(0, 2, 1)
    return np.trace(jacobian, axis1=1, axis2=2), antisymmetric[:, 1, 0] if d == 2 else antisymmetric


def _frames_of(frames: Any) -> Floats:
    """Return the array (n, D, d); that its columns are orthonormal the functions of `geometry.connection` check."""
    try:
        T = np.asarray(getattr(frames, "frames", frames), dtype=np.float64)
    except (TypeError, ValueError):
        raise kind_error("frames", "an array of numbers of shape (n, D, d)", frames) from None
    if T.ndim != 3 or 0 in T.shape:
        raise value_error("frames", "a non-empty array of shape (n, D, d)", T)
    return T


def vectors_with_gaps(V: ArrayLike, shape: tuple[int, ...], name: str) -> tuple[Floats, NDArray[np.bool_]]:
    """Turn an argument into vectors of a shape and the mask of those that are known; NaN marks a whole one as not."""
    try:
        vectors = np.asarray(V, dtype=np.float64)
    except (TypeError, ValueError):
        raise kind_error(name, f"an array of numbers of shape {shape}", V) from None
    if vectors.shape != shape:
        raise value_error(name, f"of shape {shape}, one vector for each point of X", vectors)
    if np.isinf(vectors).any():
        raise value_error(
            name, "finite, or NaN where unknown", f"{np.count_nonzero(np.isinf(vectors))} infinite values"
        )
    missing = np.isnan(vectors)
    partly = missing.any(axis=-1) & ~missing.all(axis=-1)
    if partly.any():
        first = tuple(int(i) for i in np.argwhere(partly)[0])
        at = first[0] if len(first) == 1 else first
        raise value_error(name, "rows that are all known or all NaN", f"{np.count_nonzero(partly)} mixed (row {at})")
    return vectors, np.asarray(~missing.any(axis=-1))


def _graph_of(W: Any, n: int) -> Any:
    graph = as_graph(W)
    if graph.shape[0] != n:
        raise value_error("W", f"of shape {(n, n)} as frames have", graph)
    return graph


def _diameter(points: Floats) -> float:
    """Largest distance met by sweeping from farthest point to farthest point until it grows no more."""
    longest, here = 0.0, points.mean(axis=0)
    for sweep in range(SWEEPS):
        distances = np.linalg.norm(points - here, axis=1)
        here = points[int(np.argmax(distances))]
        if sweep and distances.max() <= longest:
            break
        longest = float(distances.max()) if sweep else 0.0
    return longest
