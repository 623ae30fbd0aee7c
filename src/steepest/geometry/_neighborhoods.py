"""The K nearest vertices of each vertex in graph distance: Dijkstra's method from all sources in lockstep, cut at K.

Every source settles its next vertex in the same array operation, so that a step is a gather, a minimum and two
comparisons over a block of sources. Of a vertex with more than K edges only the K + 1 shortest are kept: whatever lies
behind a longer one has K nearer vertices. Memory O(n K), time O(n K^2 min(K, degree)).

Paper: dijkstra1959note.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from steepest.geometry._matrices import row_indices

__all__ = ["graph_nearest"]

Floats = NDArray[np.float64]
Integers = NDArray[np.integer[Any]]

BLOCK_ENTRIES = 2**18  # frontier entries that are worked on at a time: 3 MiB


def graph_nearest(lengths: sparse.csr_array, k: int, order: Integers | None = None) -> tuple[Floats, Integers]:
    """Find the k nearest other vertices of each vertex along the edges of a graph.

    Parameters
    ----------
    lengths : csr_array, shape (n, n)
        Symmetric edge lengths >= 0, canonical; a stored zero is an edge.
    k : int
    order : ndarray or None
        A permutation in which vertices that are near one another come near one another; saves cache misses.

    Returns
    -------
    distances : ndarray, shape (n, k)
        Ascending; infinite where the component is smaller.
    neighbors : ndarray, shape (n, k)
        Their indices; the vertex itself where the distance is infinite.

    Examples
    --------
    >>> path = sparse.diags_array([[1.0, 2.0], [1.0, 2.0]], offsets=[-1, 1]).tocsr()
    >>> graph_nearest(path, 2)[0].tolist()
    [[1.0, 3.0], [1.0, 2.0], [2.0, 3.0]]
    """
    n = lengths.shape[0]
    table, reach = _shortest_edges(lengths, k + 1)
    order = np.arange(n) if order is None else order
    distances, neighbors = np.empty((n, k)), np.empty((n, k), dtype=table.dtype)
    block = max(1, BLOCK_ENTRIES // (k * table.shape[1]))
    for first in range(0, n, block):
        sources = order[first : first + block]
        distances[sources], neighbors[sources] = _settle(table, reach, sources, k)
    return distances, neighbors


def _shortest_edges(lengths: sparse.csr_array, most: int) -> tuple[Integers, Floats]:
    """Lay the shortest edges of each vertex out in a table (n, width): other ends, and lengths padded with infinity."""
    n = lengths.shape[0]
    counts = np.diff(lengths.indptr)
    if counts.max(initial=0) > most:
        rows = row_indices(lengths)
        ascending = np.lexsort((lengths.data, rows))
        place = np.arange(lengths.nnz) - np.repeat(lengths.indptr[:-1], counts)
        ends, values = lengths.indices[ascending], lengths.data[ascending]
        kept = place < most
        rows, place, ends, values = rows[kept], place[kept], ends[kept], values[kept]
    else:
        rows, ends, values = row_indices(lengths), lengths.indices, lengths.data
        place = np.arange(lengths.nnz) - np.repeat(lengths.indptr[:-1], counts)
    width = max(1, min(int(counts.max(initial=0)), most))
    table = np.zeros((n, width), dtype=lengths.indices.dtype)
    reach = np.full((n, width), np.inf)
    table[rows, place] = ends
    reach[rows, place] = values
    return table, reach


def _settle(table: Integers, reach: Floats, sources: Integers, k: int) -> tuple[Floats, Integers]:
    """Run the search from a block of sources: distances and indices of the k vertices settled first."""
    size, width = len(sources), table.shape[1]
    every = np.arange(size)
    ends = np.zeros((size, k * width), dtype=table.dtype)  # the frontier: ends of edges from settled vertices
    lengths = np.full((size, k * width), np.inf)
    settled = np.empty((size, k + 1), dtype=table.dtype)
    distances = np.zeros((size, k + 1))
    settled[:, 0] = sources
    for step in range(k):
        fresh = slice(step * width, (step + 1) * width)
        current = settled[:, step]
        new_ends, new_lengths = table[current], reach[current] + distances[:, step, None]
        for known in settled[:, : step + 1].T:
            new_lengths[new_ends == known[:, None]] = np.inf
        ends[:, fresh], lengths[:, fresh] = new_ends, new_lengths
        frontier = slice(0, fresh.stop)
        best = np.argmin(lengths[:, frontier], axis=1)
        distances[:, step + 1] = lengths[every, best]
        settled[:, step + 1] = np.where(np.isfinite(distances[:, step + 1]), ends[every, best], sources)
        lengths[:, frontier][ends[:, frontier] == settled[:, step + 1, None]] = np.inf
    return distances[:, 1:], settled[:, 1:]
