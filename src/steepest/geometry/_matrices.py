"""Points and sparse matrices as this room takes them: checked once at the door, then trusted."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import sparse

from steepest.core.errors import kind_error, value_error

__all__ = ["as_graph", "as_points", "as_square", "asymmetry_of", "degrees", "positive_degrees", "row_indices"]

Floats = NDArray[np.float64]
Integers = NDArray[np.integer[Any]]


def as_points(X: ArrayLike, name: str = "X") -> Floats:
    """Turn an argument into a contiguous float64 array (n, D) of finite numbers, or say what is wrong with it."""
    try:
        points = np.ascontiguousarray(X, dtype=np.float64)
    except (TypeError, ValueError):
        raise kind_error(name, "an array of numbers of shape (n, D)", X) from None
    if points.ndim != 2 or 0 in points.shape:
        raise value_error(name, "a non-empty 2-D array (n, D)", points)
    if not np.isfinite(points).all():
        raise value_error(name, "finite", f"{np.count_nonzero(~np.isfinite(points))} values that are not")
    return points


def as_square(W: Any, name: str = "W") -> sparse.csr_array:
    """Turn a sparse matrix or array into a square csr_array of float64 with sorted, unique indices."""
    if not sparse.issparse(W):
        try:
            W = np.asarray(W, dtype=np.float64)
        except (TypeError, ValueError):
            raise kind_error(name, "a sparse matrix or an array of numbers", W) from None
    if W.ndim != 2 or W.shape[0] != W.shape[1] or W.shape[0] == 0:
        raise value_error(name, "a square matrix (n, n)", W)
    out = sparse.csr_array(W, dtype=np.float64)
    if not out.has_canonical_format:
        if out is W or np.shares_memory(out.data, getattr(W, "data", np.empty(0))):
            out = out.copy()
        out.sum_duplicates()
    if not np.isfinite(out.data).all():
        raise value_error(name, "finite", f"{np.count_nonzero(~np.isfinite(out.data))} entries that are not")
    return out


def as_graph(W: Any, name: str = "W") -> sparse.csr_array:
    """Like `as_square`, for weights: nonnegative and symmetric to 1e-10 of the largest."""
    out = as_square(W, name)
    largest = float(np.abs(out.data).max(initial=0.0))
    if out.data.min(initial=0.0) < 0:
        raise value_error(name, "nonnegative", f"a least weight of {out.data.min():g}")
    asymmetry = asymmetry_of(out)
    if asymmetry > 1e-10 * largest:
        raise value_error(name, "symmetric (relative 1e-10)", f"|W - W^T| up to {asymmetry:g}", "use (W + W.T) / 2")
    return out


def asymmetry_of(A: sparse.csr_array) -> float:
    """Largest entry of |A - A^T|."""
    transposed = A.T.tocsr()
    if np.array_equal(A.indptr, transposed.indptr) and np.array_equal(A.indices, transposed.indices):
        return float(np.abs(A.data - transposed.data).max(initial=0.0))
    return float(np.abs((A - transposed).data).max(initial=0.0))


def degrees(W: sparse.csr_array) -> Floats:
    """Sum the rows of W, shape (n,)."""
    return np.asarray(W.sum(axis=1), dtype=np.float64).ravel()


def positive_degrees(deg: Floats) -> None:
    """Raise where a vertex has degree 0, which a normalized Laplacian cannot have."""
    if not (deg > 0).all():
        isolated = np.nonzero(~(deg > 0))[0]
        raise value_error(
            "W", "without isolated vertices for a normalized kind", f"{isolated.size} (vertex {isolated[0]})"
        )


def row_indices(A: sparse.csr_array) -> Integers:
    """Row of each stored entry, shape (nnz,)."""
    return np.repeat(np.arange(A.shape[0], dtype=A.indices.dtype), np.diff(A.indptr))
