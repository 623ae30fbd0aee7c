"""The data of a linear classifier in blocks of rows: one pass gives sums over all of them, dense or CSR.

A block stays in the cache between the product that gives its margins and the product that adds up its rows. Blocks are
added in their order, whoever computed them: the sums are the same for any number of threads.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, TypeVar

import numpy as np
from scipy import sparse

__all__ = ["Matrix", "RowBlocks", "is_separable"]

T = TypeVar("T")
Matrix = Any
"""Dense (n, d) array or CSR matrix."""

BLOCK_BYTES = 2**23  # ours: in blocks below 2 MB the calls cost more than the cache gains
LARGEST_PROGRAM = 10_000_000


class RowBlocks:
    """Blocks of rows with their signs and weights.

    Parameters
    ----------
    X : (n, d) array or CSR matrix
    codes : (n,) int array
        Index of each row's class.
    n_columns : int
        1: class 1 against class 0. Else one column a class: that class against the rest.
    weight : (n,) array, optional
        Weights of the rows.
    n_threads : int
    """

    def __init__(self, X: Matrix, codes: np.ndarray, n_columns: int, weight: np.ndarray | None, n_threads: int) -> None:
        n, d = X.shape
        row = (X.data.nbytes + X.indices.nbytes) / n if sparse.issparse(X) else d * X.dtype.itemsize
        size = max(int(BLOCK_BYTES / max(row, 1)), d if sparse.issparse(X) else 1)  # a block also costs a sum of d
        self.X, self.n_columns, self._threads = X, n_columns, n_threads
        self.total = float(n) if weight is None else float(weight.sum())
        self._codes = codes
        self._ranges = [slice(a, min(a + size, n)) for a in range(0, n, size)]
        self._X = [X] if len(self._ranges) == 1 else [X[part] for part in self._ranges]
        self._weight = [None if weight is None else weight[part, None] for part in self._ranges]
        self._binary = [self._against(part, np.array([1])) for part in self._ranges] if n_columns == 1 else []
        self._map: Callable[..., Any] = map

    def _against(self, part: slice, columns: np.ndarray) -> np.ndarray:
        return np.where(self._codes[part, None] == columns, 1.0, -1.0)

    @contextmanager
    def threads(self) -> Iterator[None]:
        """Let `over` work on several blocks at a time."""
        workers = min(self._threads, len(self._ranges))
        if workers == 1:
            yield
            return
        with ThreadPoolExecutor(workers) as pool:
            self._map = pool.map
            try:
                yield
            finally:
                self._map = map

    def over(self, columns: np.ndarray, fn: Callable[[Matrix, np.ndarray, np.ndarray | None], T]) -> Iterator[T]:
        """``fn(rows, signs, weights)`` for every block in order; signs (n_block, len(columns)) are +1 or -1."""

        def one(i: int) -> T:
            signs = self._binary[i] if self.n_columns == 1 else self._against(self._ranges[i], columns)
            return fn(self._X[i], signs, self._weight[i])

        return iter(self._map(one, range(len(self._ranges))))

    def radius(self, intercept: bool) -> float:
        """R, the largest norm of a row, its constant 1 included with an intercept."""
        return float(np.sqrt(max(_squares(block).max() for block in self._X) + intercept))


def _squares(X: Matrix) -> np.ndarray:
    if sparse.issparse(X):
        return np.asarray(X.astype(np.float64).power(2).sum(axis=1)).ravel()
    return np.einsum("ij,ij->i", X, X, dtype=np.float64)


def is_separable(X: Matrix, signs: np.ndarray, intercept: bool) -> bool | None:
    """Decide by a linear program whether some theta has ``signs_i a_i^T theta >= 1`` for all rows.

    Returns
    -------
    True with a solution whose margins are checked here, False where the program is infeasible, None where it is too
    large (more than 1e7 entries) or the solver gives up.
    """
    from scipy.optimize import linprog

    if X.shape[0] * X.shape[1] > LARGEST_PROGRAM:
        return None
    X = X.astype(np.float64)
    if sparse.issparse(X):
        rows = sparse.diags_array(signs) @ sparse.csr_array(X)
        rows = sparse.hstack([rows, signs[:, None]], format="csr") if intercept else rows
    else:
        rows = signs[:, None] * (np.column_stack([X, np.ones(len(X))]) if intercept else X)
    found = linprog(np.zeros(rows.shape[1]), -rows, -np.ones(len(signs)), bounds=(None, None), method="highs")
    if found.status == 2:
        return False
    return True if found.status == 0 and bool((rows @ found.x > 0).all()) else None
