"""The principal directions of neighborhoods, taken in space or along a graph."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from scipy.spatial import cKDTree

from steepest.core.errors import value_error
from steepest.geometry._matrices import as_square
from steepest.geometry._neighborhoods import graph_nearest
from steepest.geometry._search import edge_lengths, nearest

__all__ = ["neighborhoods", "principal_directions"]

Floats = NDArray[np.float64]
Integers = NDArray[np.integer[Any]]

BLOCK_ENTRIES = 2**21  # float64 entries of a temporary array: 16 MiB


def neighborhoods(points: Floats, k: int, graph: Any) -> tuple[Integers, NDArray[np.bool_] | None]:
    """List the members (n, K + 1) of each neighborhood, its point first, and which of them are there (None: all)."""
    n = len(points)
    own = np.arange(n)[:, None]
    if graph is None:
        return np.concatenate((own, nearest(points, k)[1]), axis=1), None
    pattern = as_square(graph, "graph")
    if pattern.shape[0] != n:
        raise value_error("graph", f"of shape ({n}, {n})", pattern.shape)
    ones = sparse.csr_array((np.ones(pattern.nnz), pattern.indices, pattern.indptr), shape=pattern.shape)
    lengths = (ones + ones.T).tocsr()
    lengths.data = edge_lengths(points, lengths)
    order = cKDTree(points, balanced_tree=False, compact_nodes=False).indices if points.shape[1] <= 3 else None
    distances, others = graph_nearest(lengths, k, order)
    present = np.isfinite(np.concatenate((np.zeros((n, 1)), distances), axis=1))
    return np.concatenate((own, others), axis=1), None if present.all() else present


def principal_directions(
    points: Floats, members: Integers, present: NDArray[np.bool_] | None, wanted: int
) -> tuple[Floats, Floats]:
    """Singular values (n, min(D, K + 1)) and leading left singular vectors (n, D, wanted) of centered neighborhoods."""
    n, size = members.shape
    dimension = points.shape[1]
    values, vectors = np.empty((n, min(dimension, size))), np.empty((n, dimension, wanted))
    block = max(1, BLOCK_ENTRIES // (max(size, min(dimension, size)) * dimension))
    for first in range(0, n, block):
        rows = slice(first, first + block)
        P = points[members[rows]]  # (b, K + 1, D)
        if present is None:
            P -= P.mean(axis=1, keepdims=True)
        else:
            there = present[rows, :, None]
            P = np.where(there, P - (P * there).sum(axis=1, keepdims=True) / there.sum(axis=1, keepdims=True), 0.0)
        if dimension <= size:
            squared, directions = np.linalg.eigh(P.transpose(0, 2, 1) @ P)
            vectors[rows] = directions[:, :, ::-1][:, :, :wanted]
        else:
            squared, weights = np.linalg.eigh(P @ P.transpose(0, 2, 1))
            directions = P.transpose(0, 2, 1) @ weights[:, :, ::-1][:, :, :wanted]
            vectors[rows] = _orthonormal(directions)
        values[rows] = np.sqrt(np.maximum(squared[:, ::-1], 0.0))
    return values, vectors


def _orthonormal(directions: Floats) -> Floats:
    """Normalize columns that are orthogonal but for round-off, without changing their sense."""
    Q, R = np.linalg.qr(directions)
    return Q * np.where(np.diagonal(R, axis1=1, axis2=2) < 0, -1.0, 1.0)[:, None, :]
