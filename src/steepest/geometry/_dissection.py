"""Orderings for the sparse factorization of a matrix whose unknowns sit at points.

Geometric nested dissection: a set of points is split at the median of the coordinate in which it extends farthest; the
points of one half that have a neighbor in the other are its separator and come last, the halves are split in their
turn. On a surface a set of m points has a separator of O(sqrt(m)), so the factor of n points has O(n log n) entries
and costs O(n^{3/2}) operations.

Paper: george1973nested.
Departures: all sets of a level are split together; of the two candidate separators, one in each half, the smaller is
taken.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from steepest.geometry._matrices import row_indices

__all__ = ["nested_dissection"]

Floats = NDArray[np.float64]
Integers = NDArray[np.integer[Any]]


def nested_dissection(points: Floats, graph: sparse.csr_array, leaf: int = 32) -> NDArray[np.intp]:
    """Order points by nested dissection, shape (n,): ``order[p]`` is the point that comes p-th.

    Parameters
    ----------
    points : ndarray, shape (n, D)
    graph : csr_array, shape (n, n)
        Symmetric; its pattern says which points are coupled.
    leaf : int
        Sets of at most this many points are not split.

    Examples
    --------
    >>> line = np.arange(5.0)[:, None]
    >>> path = sparse.diags_array([np.ones(4), np.ones(4)], offsets=[-1, 1]).tocsr()
    >>> nested_dissection(line, path, leaf=2).tolist()
    [0, 1, 3, 4, 2]
    """
    n = len(points)
    order = np.arange(n)
    part = np.zeros(n, dtype=np.intp)  # which set a point is in; -1 once its place is final
    starts, sizes = np.zeros(1, dtype=np.intp), np.array([n])
    rows, cols = row_indices(graph), graph.indices
    half = np.zeros(n, dtype=np.int8)
    while starts.size:
        open_ = sizes > leaf
        starts, sizes = starts[open_], sizes[open_]
        if not starts.size:
            break
        part[:] = -1
        places = np.repeat(starts, sizes) + _counters(sizes)
        members = order[places]
        label = np.repeat(np.arange(starts.size), sizes)
        part[members] = label
        members = members[np.lexsort((_widest_coordinate(points[members], label, sizes), label))]
        half[members] = _counters(sizes) >= np.repeat((sizes + 1) // 2, sizes)  # label is sorted: sets stay in place
        inside = (part[rows] == part[cols]) & (part[rows] >= 0)
        rows, cols = rows[inside], cols[inside]
        half_of_sets = _separate(half, part, rows, cols, starts.size)
        key = half_of_sets[members]
        order[places] = members[np.lexsort((key, label))]
        counts = np.bincount(3 * label + key, minlength=3 * starts.size).reshape(-1, 3)
        starts, sizes = np.stack([starts, starts + counts[:, 0]], axis=1).ravel(), counts[:, :2].ravel()
    return order


def _counters(sizes: Integers) -> Integers:
    """0 .. size - 1 for each size, one after the other."""
    ends = np.cumsum(sizes)
    return np.arange(ends[-1]) - np.repeat(ends - sizes, sizes)


def _widest_coordinate(points: Floats, label: Integers, sizes: Integers) -> Floats:
    """Coordinate of each point along the axis in which its set extends farthest; sets lie one after the other."""
    firsts = np.cumsum(sizes) - sizes
    extent = np.maximum.reduceat(points, firsts) - np.minimum.reduceat(points, firsts)
    return points[np.arange(len(points)), np.argmax(extent, axis=1)[label]]


def _separate(half: NDArray[np.int8], part: Integers, rows: Integers, cols: Integers, n_sets: int) -> NDArray[np.int8]:
    """Say for each point 0 (first half), 1 (second half) or 2 (separator: one half's points with a neighbor across)."""
    across = half[rows] != half[cols]
    touching = np.unique(rows[across])
    counts = np.bincount(2 * part[touching] + half[touching], minlength=2 * n_sets).reshape(-1, 2)
    chosen = np.argmin(counts, axis=1)  # the half with fewer such points
    out = half.copy()
    out[touching[half[touching] == chosen[part[touching]]]] = 2
    return out
