"""Frames and the orthogonal factor of T_i^T T_j, pair by pair."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from steepest.core.errors import kind_error, value_error
from steepest.geometry.graph import GeometryWarning

__all__ = ["as_frames", "as_vertices", "overlaps", "transport", "warn_if_perpendicular"]

Floats = NDArray[np.float64]
Integers = NDArray[np.integer[Any]]

ILL_DEFINED = 0.1  # least singular value of T_i^T T_j under which a transport is counted as ill-defined
BLOCK_ENTRIES = 2**21  # float64 entries of a temporary array: 16 MiB


def as_frames(frames: Any) -> Floats:
    """Turn frames, or the result that holds them, into a float64 array (n, D, d) with orthonormal columns."""
    try:
        T = np.ascontiguousarray(getattr(frames, "frames", frames), dtype=np.float64)
    except (TypeError, ValueError):
        raise kind_error("frames", "an array of numbers (n, D, d)", frames) from None
    if T.ndim != 3 or 0 in T.shape or T.shape[2] > T.shape[1]:
        raise value_error("frames", "of shape (n, D, d), d <= D", T)
    if not np.isfinite(T).all():
        raise value_error("frames", "finite", f"{np.count_nonzero(~np.isfinite(T))} values that are not")
    every = np.arange(len(T))
    error = float(np.abs(overlaps(T, every, every) - np.eye(T.shape[2])).max())
    if error > 1e-6:
        raise value_error("frames", "orthonormal columns", f"|T^T T - I| up to {error:.1e}")
    return T


def as_vertices(name: str, index: ArrayLike, n: int) -> NDArray[np.intp]:
    found = np.asarray(index)
    if found.size and not np.issubdtype(found.dtype, np.integer):
        raise kind_error(name, "integers", index)
    if found.size and (found.min() < 0 or found.max() >= n):
        raise value_error(name, f"indices in [0, {n})", f"[{found.min()}, {found.max()}]")
    return found.astype(np.intp)


def overlaps(T: Floats, rows: Integers, cols: Integers) -> Floats:
    """T_i^T T_j of each pair, shape (e, d, d)."""
    _, dimension, d = T.shape
    out = np.empty((len(rows), d, d))
    block = max(1, BLOCK_ENTRIES // (dimension * d))
    transposed = np.ascontiguousarray(T.transpose(0, 2, 1))
    for first in range(0, len(rows), block):
        part = slice(first, first + block)
        np.matmul(transposed[rows[part]], T[cols[part]], out=out[part])
    return out


def transport(T: Floats, rows: Integers, cols: Integers, proper: bool) -> tuple[Floats, Floats]:
    """Orthogonal factor of T_i^T T_j for each pair, and the least singular value of each."""
    M = overlaps(T, rows, cols)
    d = T.shape[2]
    if d == 1:
        R = np.ones_like(M) if proper else np.where(M < 0, -1.0, 1.0)
        return R, np.abs(M[:, 0, 0])
    if d == 2:
        return _polar_of_two(M, proper)
    U, S, V = np.linalg.svd(M)
    if proper:
        U[:, :, -1] *= np.where(np.linalg.det(U) * np.linalg.det(V) < 0, -1.0, 1.0)[:, None]
    return U @ V, S[:, -1]


def _polar_of_two(M: Floats, proper: bool) -> tuple[Floats, Floats]:
    """Split M = [[p, -q], [q, p]] + [[r, s], [s, -r]]: nearest rotation and reflection.

    They have the directions of (p, q) and of (r, s); the singular values are |p, q| +- |r, s|.
    """
    p, q = (M[:, 0, 0] + M[:, 1, 1]) / 2, (M[:, 1, 0] - M[:, 0, 1]) / 2
    r, s = (M[:, 0, 0] - M[:, 1, 1]) / 2, (M[:, 1, 0] + M[:, 0, 1]) / 2
    rotation, reflection = np.hypot(p, q), np.hypot(r, s)
    turned = rotation >= reflection if not proper else np.ones(len(M), dtype=bool)
    length = np.where(turned, rotation, reflection)
    defined = length > 0
    length[~defined] = 1.0
    a = np.where(defined, np.where(turned, p, r), 1.0) / length
    b = np.where(turned, q, s) / length
    R = np.empty_like(M)
    R[:, 0, 0], R[:, 1, 0] = a, b
    R[:, 0, 1], R[:, 1, 1] = np.where(turned, -b, b), np.where(turned, a, -a)
    return R, np.abs(rotation - reflection)


def warn_if_perpendicular(smallest: Floats) -> None:
    count = int(np.count_nonzero(smallest < ILL_DEFINED))
    if count:
        warnings.warn(
            f"{count} of {smallest.size} edges join nearly perpendicular tangent planes (least singular value of "
            f"T_i^T T_j under {ILL_DEFINED}): their transport is ill-defined; take fewer neighbors or more points",
            GeometryWarning,
            stacklevel=3,
        )
