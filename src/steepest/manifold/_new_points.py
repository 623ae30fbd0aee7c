"""What `HeatGeodesicEmbedding` asks of data beside heat: neighbors of new points, known rows, room in memory."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse
from sklearn.neighbors import NearestNeighbors

__all__ = ["alpha_decay_rows", "known_rows", "refuse_beyond_memory"]

Array = np.ndarray
THRESHOLD = 1e-4  # affinities of a new point below it are dropped, as in the graph


def known_rows(training: Any, points: Any) -> Array:
    """Index of the first training row equal to each row, -1 where none is; both dense, or both CSR.

    Examples
    --------
    >>> known_rows(np.array([[1.0], [2.0]]), np.array([[2.0], [3.0]])).tolist()
    [1, -1]
    """
    where: dict[bytes, int] = {}
    for i, row in enumerate(_row_bytes(training)):
        where.setdefault(row, i)
    return np.array([where.get(row, -1) for row in _row_bytes(points)])


def alpha_decay_rows(training: Array, points: Array, k: int, decay: float, n_jobs: int) -> Any:
    """Affinities ``exp(-(d/ρ)^decay)`` of points to training points, ρ the distance to the k-th: CSR (n_new, n).

    Examples
    --------
    >>> alpha_decay_rows(np.array([[0.0], [1.0], [5.0]]), np.array([[0.5]]), 2, 40.0, 1).toarray().round(4).tolist()
    [[0.3679, 0.3679, 0.0]]
    """
    n = len(training)
    reach = (-np.log(THRESHOLD)) ** (1.0 / decay)
    neighbors = NearestNeighbors(n_jobs=n_jobs).fit(training)
    size = min(n, 2 * k)
    while True:
        d, index = neighbors.kneighbors(points, size)
        rho = np.where(d[:, k - 1] > 0, d[:, k - 1], 1.0)
        if size == n or bool((d[:, -1] > reach * rho).all()):
            break
        size = min(n, 2 * size)
    K = np.exp(-((d / rho[:, None]) ** decay))
    K[K < THRESHOLD] = 0.0
    rows = np.repeat(np.arange(len(points)), size)
    P = scipy.sparse.csr_array((K.ravel(), (rows, index.ravel())), shape=(len(points), n))
    P.eliminate_zeros()
    return P


def _row_bytes(X: Any) -> Iterator[bytes]:
    if not scipy.sparse.issparse(X):
        return (row.tobytes() for row in X)
    ends = zip(X.indptr[:-1], X.indptr[1:])
    return (X.indices[i:j].astype(np.int64).tobytes() + X.data[i:j].tobytes() for i, j in ends)


def refuse_beyond_memory(n: int) -> None:
    needed, free = 3 * 8 * n * n, _free_memory()
    if free is not None and needed > 0.6 * free:
        raise MemoryError(
            f"the dense method needs {needed / 2**30:.1f} GiB for {n} samples, more than 60 % of the "
            f"{free / 2**30:.1f} GiB that are free; set n_landmarks"
        )


def _free_memory() -> int | None:
    """Bytes that can be had without swapping, where the system says so."""
    status = Path("/proc/meminfo")
    if status.exists():
        for line in status.read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    if "SC_AVPHYS_PAGES" in os.sysconf_names:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return None
