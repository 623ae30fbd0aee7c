"""Bounds on a point: a pair of numbers or vectors, or None."""

from __future__ import annotations

from typing import Any

import numpy as np

from steepest.core.errors import kind_error, value_error

__all__ = ["check_inside", "clipped", "read_bounds"]


def clipped(x: np.ndarray, bounds: Any) -> np.ndarray:
    """The nearest point within the bounds, which may be None."""
    return x if bounds is None else np.clip(x, *(np.asarray(side, float) for side in bounds))


def read_bounds(bounds: Any) -> list[Any] | None:
    """(low, high), numbers or vectors, as plain values."""
    if bounds is None:
        return None
    try:
        low, high = (np.asarray(side, float) for side in bounds)
        inside = bool(np.all(low < high))
    except (TypeError, ValueError):
        raise kind_error("bounds", "None or a pair (low, high) of numbers or vectors", bounds) from None
    if not inside:
        raise value_error("bounds", "a pair with low < high", bounds)
    return [low.tolist(), high.tolist()]


def check_inside(x: np.ndarray, bounds: list[Any] | None) -> None:
    """Refuse a start outside its bounds, or bounds of another shape."""
    if bounds is None:
        return
    for side in bounds:
        if np.ndim(side) and np.shape(side) != x.shape:
            raise value_error("bounds", f"numbers or vectors of x0's shape {x.shape}", side)
    if not np.array_equal(clipped(x, bounds), x):
        raise value_error("x0", "within bounds", x)
