r"""Linear measurements of a matrix that is known by its factors: ``y_i = <A_i, F G^T>`` and the normalized adjoint.

    forward   (F, G) -> (<A_i, F G^T>)_i                  (m,)
    adjoint   r -> weight * sum_i r_i A_i                 (n1, n2), anything with ``@`` and ``.T``
    misfit    (F, G, y) -> r = forward - y and adjoint(r), in one reading of the data

``weight`` makes the adjoint of the forward map near the identity: ``1 / m``, and ``n1 n2 / m`` for observed entries.
Four kinds: a dense stack, read in blocks of rows that stay in the cache (or on disk, `numpy.memmap`); single entries; a
stack of sparse matrices, which is a weighted sum over the entries that occur; a linear operator.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from scipy import sparse
from torch import Tensor

from steepest.core.errors import value_error

__all__ = [
    "DenseMeasurements",
    "EntryMeasurements",
    "LazyProduct",
    "Measurements",
    "OperatorMeasurements",
    "SparseMeasurements",
    "entries",
]

BLOCK_BYTES = 2**20  # of a dense stack at a time: in a core's cache for both products, large beside a call's cost
CHUNK = 2**13  # entries at a time, so that gathered rows of the factors stay small
Array = Any  # numpy.ndarray or Tensor: both have @, .T, indexing and arithmetic
Shape = tuple[int, int]


class LazyProduct:
    """The matrix ``F G^T`` without its n1 n2 numbers: products, single entries, and `toarray` for those who insist.

    `scipy.sparse.linalg.aslinearoperator` accepts it.
    """

    ndim = 2

    def __init__(self, F: Array, G: Array) -> None:
        self.F, self.G = F, G
        self.shape: Shape = (len(F), len(G))
        self.dtype = F.dtype

    @property
    def T(self) -> LazyProduct:
        """The transpose, lazy too."""
        return LazyProduct(self.G, self.F)

    def __matmul__(self, other: Array) -> Array:
        return self.F @ (self.G.T @ other)

    def matvec(self, x: Array) -> Array:
        """Multiply a vector (n2,)."""
        return self @ x

    def rmatvec(self, x: Array) -> Array:
        """Multiply a vector (n1,) by the transpose."""
        return self.T @ x

    def entries(self, rows: Array, cols: Array) -> Array:
        """Give single entries (s,)."""
        return entries(self.F, self.G, rows, cols)

    def toarray(self) -> Array:
        """Form the matrix (n1, n2)."""
        return self.F @ self.G.T


def entries(F: Array, G: Array, rows: Array, cols: Array) -> Array:
    """Evaluate ``F G^T`` at index pairs, (s,), some thousands at a time."""
    values = empty(F, len(rows))
    for at in _slices(len(rows), CHUNK if isinstance(F, np.ndarray) else 8 * CHUNK):
        if isinstance(F, np.ndarray):
            values[at] = np.einsum("ij,ij->i", F.take(rows[at], axis=0), G.take(cols[at], axis=0))
        else:
            values[at] = (F[rows[at]] * G[cols[at]]).sum(1)
    return values


def empty(like: Array, *shape: int) -> Array:
    """Make an array of the kind, type and device of another."""
    return np.empty(shape, like.dtype) if isinstance(like, np.ndarray) else like.new_empty(shape)


def _slices(n: int, size: int) -> Iterator[slice]:
    return (slice(start, min(start + size, n)) for start in range(0, n, size))


class Measurements(ABC):
    """What every kind of measurement offers; see the module.

    Attributes
    ----------
    shape : (int, int)
    count : int
        m.
    weight : float
    tensor : Tensor or None
        A tensor whose device (and, if it is a floating one, type) factors must share; None for NumPy.
    dtype : numpy.dtype, torch.dtype or None
        Of the data, where they have one.
    """

    shape: Shape
    count: int
    weight: float
    tensor: Tensor | None = None
    dtype: Any = None

    @abstractmethod
    def forward(self, F: Array, G: Array) -> Array:
        """Measure ``F G^T``, (m,)."""

    @abstractmethod
    def adjoint(self, r: Array) -> Any:
        """Give ``weight * sum_i r_i A_i``."""

    def misfit(self, F: Array, G: Array, y: Array) -> tuple[Array, Any]:
        """Give the residuals and their adjoint."""
        r = self.forward(F, G) - y
        return r, self.adjoint(r)

    def arranged(self, y: Array) -> tuple[Measurements, Array]:
        """Give the same measurements and values in the order that is read fastest."""
        return self, y


class DenseMeasurements(Measurements):
    """A stack (m, n1, n2), or flattened (m, n1 n2), read by blocks of rows; both maps in one reading."""

    def __init__(self, A: Array, shape: Shape, block_size: int | None) -> None:
        self.A, self.shape, self.count, self.weight, self.dtype = A, shape, len(A), 1 / len(A), A.dtype
        self.tensor = A if isinstance(A, Tensor) else None
        row_bytes = shape[0] * shape[1] * A.dtype.itemsize
        on_accelerator = self.tensor is not None and self.tensor.device.type != "cpu"
        self.block_size = block_size or max(1, (2**28 if on_accelerator else BLOCK_BYTES) // row_bytes)
        for _, block in self._blocks():
            if not bool((np.isfinite(block) if self.tensor is None else block.isfinite()).all()):
                raise value_error("A", "finite", A)

    def _blocks(self, dtype: Any = None) -> Iterator[tuple[slice, Array]]:
        for at in _slices(self.count, self.block_size):
            block = self.A[at].reshape(at.stop - at.start, -1)
            yield at, np.asarray(block, dtype=dtype) if self.tensor is None else block

    def forward(self, F: Array, G: Array) -> Array:
        x, values = (F @ G.T).reshape(-1), empty(F, self.count)
        for at, block in self._blocks(F.dtype):
            values[at] = block @ x
        return values

    def adjoint(self, r: Array) -> Array:
        total = sum(r[at] @ block for at, block in self._blocks(r.dtype))
        return self.weight * total.reshape(self.shape)

    def misfit(self, F: Array, G: Array, y: Array) -> tuple[Array, Array]:
        x, r = (F @ G.T).reshape(-1), empty(F, self.count)
        total: Any = 0
        for at, block in self._blocks(F.dtype):
            r[at] = block @ x - y[at]
            total = total + r[at] @ block
        return r, self.weight * total.reshape(self.shape)


class EntryMeasurements(Measurements):
    """Single entries, given by rows and columns; a pair that occurs twice is two measurements."""

    def __init__(self, rows: Array, cols: Array, shape: Shape) -> None:
        self.shape, self.count = shape, len(rows)
        self.weight = shape[0] * shape[1] / len(rows)
        self.tensor = rows if isinstance(rows, Tensor) else None
        if self.tensor is None:
            self._order: Any = slice(None)  # by rows, as a CSR matrix wants them
            self._place: Any = slice(None)
            if bool((rows[1:] < rows[:-1]).any()):
                self._order = np.argsort(rows, kind="stable")
                self._place = np.argsort(self._order, kind="stable")
            rows, cols = rows[self._order], cols[self._order]
            self._starts = np.searchsorted(rows, np.arange(shape[0] + 1))
        self.rows, self.cols = rows, cols

    def arranged(self, y: Array) -> tuple[Measurements, Array]:
        if self.tensor is not None:
            return self, y
        return EntryMeasurements(self.rows, self.cols, self.shape), y[self._order]

    def forward(self, F: Array, G: Array) -> Array:
        values = entries(F, G, self.rows, self.cols)
        return values[self._place] if self.tensor is None else values

    def adjoint(self, r: Array) -> Any:
        return self._matrix(self.weight * (r[self._order] if self.tensor is None else r))

    def _matrix(self, values: Array) -> Any:
        if self.tensor is None:
            return sparse.csr_array((values, self.cols, self._starts), shape=self.shape)
        return _ScatteredMatrix(self.rows, self.cols, values, self.shape)


class SparseMeasurements(Measurements):
    """A stack of sparse matrices: value k belongs to measurement ``which[k]`` and to entry ``(rows[k], cols[k])``."""

    def __init__(self, which: Array, rows: Array, cols: Array, values: Array, count: int, shape: Shape) -> None:
        self.shape, self.count, self.weight, self.dtype = shape, count, 1 / count, values.dtype
        self.tensor = values if isinstance(values, Tensor) else None
        flat = rows * shape[1] + cols
        if self.tensor is None:
            support, place = np.unique(flat, return_inverse=True)
            self.weights = sparse.csr_array((values, (which, place)), shape=(count, len(support)))
        else:
            support, place = torch.unique(flat, return_inverse=True)
            self._triplets = which, place, values
        self.support = EntryMeasurements(support // shape[1], support % shape[1], shape)

    def forward(self, F: Array, G: Array) -> Array:
        found = self.support.forward(F, G)
        if self.tensor is None:
            return self.weights @ found
        which, place, values = self._triplets
        return found.new_zeros(self.count).index_add_(0, which, values * found[place])

    def adjoint(self, r: Array) -> Any:
        if self.tensor is None:
            return self.support._matrix(self.weight * (self.weights.T @ r))
        which, place, values = self._triplets
        total = r.new_zeros(self.support.count).index_add_(0, place, values * r[which])
        return self.support._matrix(self.weight * total)


class OperatorMeasurements(Measurements):
    """A linear operator (m, n1 n2) on the row-major matrix; only its `matvec` and `rmatvec` are called."""

    def __init__(self, A: Any, shape: Shape) -> None:
        self.A, self.shape, self.count, self.weight = A, shape, A.shape[0], 1 / A.shape[0]
        self.dtype = None if getattr(A, "dtype", None) is None else np.dtype(A.dtype)

    def forward(self, F: Array, G: Array) -> Array:
        return np.asarray(self.A.matvec((F @ G.T).reshape(-1)), dtype=F.dtype).reshape(-1)

    def adjoint(self, r: Array) -> Array:
        return self.weight * np.asarray(self.A.rmatvec(r), dtype=r.dtype).reshape(self.shape)


class _ScatteredMatrix:
    """A sparse tensor whose entries may repeat; products by gathering and adding, on any device."""

    def __init__(self, rows: Tensor, cols: Tensor, values: Tensor, shape: Shape) -> None:
        self.rows, self.cols, self.values, self.shape = rows, cols, values, shape

    @property
    def T(self) -> _ScatteredMatrix:
        return _ScatteredMatrix(self.cols, self.rows, self.values, self.shape[::-1])

    def __matmul__(self, G: Tensor) -> Tensor:
        product = G.new_zeros(self.shape[0], G.shape[1])
        for at in _slices(len(self.values), 8 * CHUNK):
            product.index_add_(0, self.rows[at], self.values[at, None] * G[self.cols[at]])
        return product
