"""The door of matrix sensing: recognizes the kind of measurements, checks them, their values and a start."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from scipy import sparse
from torch import Tensor

from steepest.core.errors import kind_error, value_error
from steepest.landscape._measurements import (
    Array,
    DenseMeasurements,
    EntryMeasurements,
    Measurements,
    OperatorMeasurements,
    Shape,
    SparseMeasurements,
)

__all__ = ["as_measurements", "checked_array", "checked_start", "checked_values"]

KINDS = (
    "an array (m, n1, n2), a pair (rows, cols) of integer arrays, a LinearOperator (m, n1 n2) or a stack of sparse "
    "matrices"
)


def as_measurements(A: Any, shape: Sequence[int] | None = None, block_size: int | None = None) -> Measurements:
    """Recognize the kind of measurements and check them.

    Raises
    ------
    TypeError, ValueError
        None of the kinds, a `shape` that is missing or does not fit, indices outside, numbers that are not finite.
    """
    size = None if shape is None else _checked_shape(shape)
    if isinstance(A, Tensor) and A.is_sparse:
        return _sparse_tensor(A, size)
    if isinstance(A, np.ndarray | Tensor):
        return _from_array(A, size, block_size)
    if sparse.issparse(A):
        return _sparse_stack([A], size)
    if isinstance(A, list | tuple) and len(A) and all(sparse.issparse(a) for a in A):
        return _sparse_stack(A, size)
    if isinstance(A, tuple) and len(A) == 2:
        return _from_pairs(A[0], A[1], size)
    if hasattr(A, "matvec") and hasattr(A, "rmatvec") and len(getattr(A, "shape", ())) == 2:
        size = _needed(size, "A is a linear operator")
        _fits("A.shape[1]", A.shape[1], size)
        return OperatorMeasurements(A, size)
    raise kind_error("A", KINDS, A)


def _checked_shape(shape: Sequence[int]) -> Shape:
    try:
        n1, n2 = (int(n) if is_integers(n) else -1 for n in shape)
    except (TypeError, ValueError):
        raise value_error("shape", "a pair of integers >= 1", shape) from None
    if min(n1, n2) < 1:
        raise value_error("shape", "a pair of integers >= 1", shape)
    return n1, n2


def _needed(shape: Shape | None, why: str) -> Shape:
    if shape is None:
        raise ValueError(f"shape must be given where {why}, got None")
    return shape


def _fits(name: str, columns: int, shape: Shape) -> None:
    if columns != shape[0] * shape[1]:
        raise value_error(name, f"n1 * n2 = {shape[0] * shape[1]} for shape {shape}", columns)


def is_integers(array: Any) -> bool:
    """Whether an array or tensor holds integers (booleans are none)."""
    if isinstance(array, Tensor):
        return not (array.is_floating_point() or array.is_complex() or array.dtype == torch.bool)
    return bool(np.asarray(array).dtype.kind in "iu")


def _from_array(A: Array, shape: Shape | None, block_size: int | None) -> Measurements:
    if A.ndim == 2 and A.shape[1] == 2 and is_integers(A) and shape is not None and shape[0] * shape[1] != 2:
        return _from_pairs(A[:, 0], A[:, 1], shape)  # pairs in one array, as cross-validation wants them
    if A.ndim == 2 and A.shape[0]:
        shape = _needed(shape, "A is two-dimensional")
        _fits("A.shape[1]", A.shape[1], shape)
    elif A.ndim != 3 or 0 in A.shape:
        raise value_error("A", KINDS, A)
    elif shape is not None and tuple(A.shape[1:]) != shape:
        raise value_error("shape", f"that of the matrices in A, {tuple(A.shape[1:])}", shape)
    if isinstance(A, Tensor) and A.dtype not in (torch.float32, torch.float64):
        raise kind_error("A", "of dtype float32 or float64", A)
    if isinstance(A, np.ndarray) and A.dtype.kind not in "iuf":
        raise kind_error("A", "real numbers", A)
    return DenseMeasurements(A, shape or tuple(A.shape[1:]), block_size)


def _from_pairs(rows: Any, cols: Any, shape: Shape | None) -> Measurements:
    shape = _needed(shape, "A is a pair of index arrays")
    if not isinstance(rows, Tensor):
        rows, cols = np.asarray(rows), np.asarray(cols)
    if type(rows) is not type(cols) or not is_integers(rows) or not is_integers(cols):
        raise kind_error("A", "a pair (rows, cols) of integer arrays", (rows, cols))
    if rows.ndim != 1 or rows.shape != cols.shape or len(rows) == 0:
        raise value_error("A", "a pair of index arrays of one length >= 1", (tuple(rows.shape), tuple(cols.shape)))
    for name, index, n in (("rows", rows, shape[0]), ("cols", cols, shape[1])):
        low, high = int(index.min()), int(index.max())
        if low < 0 or high >= n:
            raise value_error(f"A ({name})", f"indices in 0..{n - 1}", low if low < 0 else high)
    return EntryMeasurements(rows, cols, shape)


def _sparse_stack(stack: Sequence[Any], shape: Shape | None) -> Measurements:
    """Take matrices (n1, n2), or one flattened stack (m, n1 n2)."""
    parts = [sparse.coo_array(a) for a in stack]
    if len(parts) == 1 and shape is not None and parts[0].shape != shape:
        _fits("A.shape[1]", parts[0].shape[1], shape)
        which, flat = parts[0].coords
        rows, cols, count = flat // shape[1], flat % shape[1], parts[0].shape[0]
    else:
        shape = shape or parts[0].shape
        for a in parts:
            if a.shape != shape:
                raise value_error("A", f"sparse matrices of one shape {shape}", a)
        rows, cols = (np.concatenate([a.coords[k] for a in parts]) for k in (0, 1))
        which, count = np.repeat(np.arange(len(parts)), [a.nnz for a in parts]), len(parts)
    values = np.concatenate([a.data for a in parts])
    if values.dtype.kind not in "iuf" or not np.isfinite(values).all():
        raise value_error("A", "finite real numbers", values)
    which, rows, cols = (np.asarray(part, dtype=np.int64) for part in (which, rows, cols))
    return SparseMeasurements(which, rows, cols, values, count, shape)


def _sparse_tensor(A: Tensor, shape: Shape | None) -> Measurements:
    A = A.coalesce()
    if A.ndim != 3 or A.dtype not in (torch.float32, torch.float64) or not bool(A.values().isfinite().all()):
        raise value_error("A", "a sparse tensor (m, n1, n2) of finite float32 or float64", A)
    size = (int(A.shape[1]), int(A.shape[2]))
    if shape not in (None, size):
        raise value_error("shape", f"that of the matrices in A, {size}", shape)
    which, rows, cols = A.indices()
    return SparseMeasurements(which, rows, cols, A.values(), len(A), size)


def checked_values(measurements: Measurements, y: Any) -> Array:
    """Check y and give it in the type that everything is computed in."""
    tensor = measurements.tensor
    if tensor is not None:
        if not isinstance(y, Tensor):
            raise kind_error("y", "a tensor, as A is", y)
        if y.device != tensor.device or (tensor.is_floating_point() and y.dtype != tensor.dtype):
            raise kind_error("y", f"of A's dtype and device, {tensor.dtype} on {tensor.device}", y)
        if y.dtype not in (torch.float32, torch.float64):
            raise kind_error("y", "of dtype float32 or float64", y)
    else:
        if isinstance(y, Tensor):
            raise kind_error("y", "a NumPy array, as A is", y)
        y = np.asarray(y)
        if y.dtype.kind not in "iuf":
            raise kind_error("y", "real numbers", y)
        kinds = [np.dtype(d) for d in (y.dtype, measurements.dtype) if d is not None]
        y = y.astype(np.result_type(*(d if d.kind == "f" and d.itemsize >= 4 else np.float64 for d in kinds)))
    return _finite("y", y, (measurements.count,))


def checked_array(name: str, value: Any, shape: tuple[int, ...], like: Array) -> Array:
    """Check an array that must be of y's kind."""
    if isinstance(like, Tensor):
        if not isinstance(value, Tensor) or value.dtype != like.dtype or value.device != like.device:
            raise kind_error(name, f"a tensor of dtype {like.dtype} on {like.device}", value)
    else:
        if isinstance(value, Tensor):
            raise kind_error(name, "a NumPy array, as A and y are", value)
        value = np.asarray(value)
        if value.dtype.kind not in "iuf":
            raise kind_error(name, "real numbers", value)
        value = value.astype(like.dtype, copy=False)
    return _finite(name, value, shape)


def _finite(name: str, value: Array, shape: tuple[int, ...]) -> Array:
    if tuple(value.shape) != shape:
        raise value_error(name, f"of shape {shape}", value)
    finite = np.isfinite(value) if isinstance(value, np.ndarray) else value.isfinite()
    if not bool(finite.all()):
        raise value_error(name, "finite", value)
    return value


def checked_start(x0: Any, symmetric: bool, shape: tuple[int, int], rank: int, like: Array) -> tuple[Array, Array]:
    if symmetric:
        X = checked_array("x0", x0, (shape[0], rank), like)
        return X, X
    if not isinstance(x0, tuple | list) or len(x0) != 2:
        raise kind_error("x0", "a pair (F, G) for parametrization='asymmetric'", x0)
    F, G = (checked_array(f"x0[{i}]", part, (shape[i], rank), like) for i, part in enumerate(x0))
    return F, G
