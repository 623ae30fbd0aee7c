"""Nearest neighbors by index: a KD-tree where it prunes, blocks of inner products where it does not."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from scipy.spatial import cKDTree

from steepest.core.errors import check, interval, positive, value_error
from steepest.geometry._matrices import row_indices

__all__ = ["check_n_neighbors", "edge_lengths", "nearest", "principal_components", "ratio", "scaled_neighbors"]

Floats = NDArray[np.float64]
Integers = NDArray[np.integer[Any]]

TREE_DIMENSION = 15  # above it a KD-tree visits nearly every point and blocks of inner products win
JOBS = interval(-1, integer=True)


def check_n_neighbors(n_neighbors: int, n: int) -> None:
    """Raise unless 1 <= k < n."""
    check("n_neighbors", n_neighbors, positive(integer=True))
    if n_neighbors >= n:
        raise value_error("n_neighbors", f"less than the number of points {n}", n_neighbors)


def nearest(points: Floats, k: int, *, n_jobs: int = 1) -> tuple[Floats, Integers]:
    """Find the k nearest others of each point: distances ascending (n, k) and indices (n, k)."""
    check("n_jobs", n_jobs, JOBS)
    if n_jobs == 0:
        raise value_error("n_jobs", "-1 or >= 1", n_jobs)
    n, dimension = points.shape
    if dimension > TREE_DIMENSION:
        return _nearest_brute(points, k, n_jobs)
    tree = cKDTree(points, balanced_tree=False, compact_nodes=False)
    order = tree.indices  # neighbors in space are neighbors in this order: the search finds its nodes in the cache
    found, others = tree.query(points[order], k=k + 1, workers=n_jobs)
    distances, neighbors = np.empty((n, k)), np.empty((n, k), dtype=np.int32 if n < 2**31 else np.intp)
    others_kept = _without_self(others, order)
    neighbors[order] = others[others_kept].reshape(n, k)
    distances[order] = found[others_kept].reshape(n, k)
    return distances, neighbors


def _without_self(others: Integers, own: Integers) -> NDArray[np.bool_]:
    """Mark all but the point itself in each row; all but the last where k + 1 duplicates crowded it out."""
    kept = others != own[:, None]
    kept[kept.all(axis=1), -1] = False
    return kept


def _nearest_brute(points: Floats, k: int, n_jobs: int) -> tuple[Floats, Integers]:
    from sklearn.neighbors import NearestNeighbors
    from threadpoolctl import threadpool_limits

    n = len(points)
    centered = points - points.mean(axis=0)  # |x|^2 + |y|^2 - 2 x.y cancels least there
    with threadpool_limits(limits=None if n_jobs == -1 else n_jobs):
        others = NearestNeighbors(n_neighbors=k, algorithm="brute").fit(centered).kneighbors(return_distance=False)
    # scikit-learn leaves the point itself out of a query without X
    distances = np.empty((n, k))
    block = max(1, 2**21 // (k * points.shape[1]))
    for first in range(0, n, block):
        rows = slice(first, first + block)
        distances[rows] = np.linalg.norm(points[others[rows]] - points[rows, None], axis=2)
    order = np.argsort(distances, axis=1, kind="stable")
    return np.take_along_axis(distances, order, axis=1), np.take_along_axis(others, order, axis=1)


def scaled_neighbors(points: Floats, k: int, reach: float) -> tuple[Integers, Integers, Floats]:
    """Find all pairs with d_ij <= reach rho_i: rows, columns, d_ij / rho_i. Rows that want more are searched again."""
    n = len(points)
    size = min(n - 1, k + 1 + k // 2)
    distances, others = nearest(points, size)
    rho = distances[:, k - 1]
    pieces = []
    wanted = np.arange(n)
    tree = None
    while True:
        ratios = ratio(distances, rho[wanted][:, None])
        full = (ratios[:, -1] <= reach) & (distances.shape[1] < n - 1)
        inside = (ratios <= reach) & ~full[:, None]
        rows = np.nonzero(inside)[0]
        pieces.append((wanted[rows], others[inside], ratios[inside]))
        wanted = wanted[full]
        if not wanted.size:
            break
        size = min(n - 1, 2 * size)
        tree = cKDTree(points) if tree is None else tree
        found, candidates = tree.query(points[wanted], k=size + 1)
        kept = _without_self(candidates, wanted)
        distances, others = found[kept].reshape(-1, size), candidates[kept].reshape(-1, size)
    rows, cols, scaled = (np.concatenate(piece) for piece in zip(*pieces, strict=True))
    return rows, cols, scaled


def ratio(distance: Floats, scale: Floats) -> Floats:
    """Divide d by s; 0 where both are zero (a duplicate), infinite where only the scale is."""
    out = np.where(distance > 0, np.inf, 0.0)
    np.divide(distance, scale, out=out, where=scale > 0)
    return out


def edge_lengths(points: Floats, graph: sparse.csr_array) -> Floats:
    """||x_i - x_j|| of each stored entry, the same to the last bit for (i, j) and (j, i), shape (nnz,)."""
    rows, cols = row_indices(graph), graph.indices
    squared = np.zeros(graph.nnz)
    for column in points.T:
        offset = column[rows] - column[cols]
        offset *= offset
        squared += offset
    return np.sqrt(squared)


def principal_components(points: Floats, n_components: int) -> Floats:
    """Scores on the leading principal components, shape (n, n_components)."""
    centered = points - points.mean(axis=0)
    n, dimension = centered.shape
    if dimension <= n:
        _, vectors = np.linalg.eigh(centered.T @ centered)
        return np.ascontiguousarray(centered @ vectors[:, ::-1][:, :n_components])
    values, vectors = np.linalg.eigh(centered @ centered.T)
    scale = np.sqrt(np.maximum(values[::-1][:n_components], 0.0))
    return np.ascontiguousarray(vectors[:, ::-1][:, :n_components] * scale)
