"""The dual D(u, v) = a'u + b'v - sum P and its gradient at points that Newton's steps look at."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from steepest.transport._kernel import LARGEST, Kernel, sinkhorn_sweeps

__all__ = ["Dual", "Point"]

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Point:
    """A pair of potentials (less those absorbed in C) with the marginals r, c of its plan."""

    u: Array
    v: Array
    r: Array
    c: Array
    err: float
    gain: float = 0.0  # of D over the point it was tried from
    before: float | None = None  # err before the sweep that ended here


class Dual:
    """D on one problem of mass one, with the cost `scale` C; `kernel` holds the plan that was evaluated last."""

    def __init__(self, a: Array, b: Array, C: Array) -> None:
        self.a, self.b, self.kernel, self.scale = a, b, Kernel(C), 1.0

    def at(self, u: Array, v: Array, origin: Point | None = None, sweep: bool = False) -> Point | None:
        """Evaluate the plan at (u, v), after one more sweep if asked; None where it is not finite or overflows."""
        if not self._filled(u, v):
            return None
        r, c = self.kernel.marginals()
        before = self._error(r, c) if sweep else None
        if sweep:
            with np.errstate(all="ignore"):
                x = self.a / r
                y = self.b / (x @ self.kernel.P)
                u, v = u + np.log(x), v + np.log(y)
            if not self._filled(u, v):
                return None
            r, c = self.kernel.marginals()
        gain = 0.0
        if origin is not None:  # differences of sums lose fewer digits than the difference of two values of D
            moved = float(self.a @ (u - origin.u) + self.b @ (v - origin.v))
            gain = moved - float(r.sum() - origin.r.sum())
        err = self._error(r, c)
        return Point(u, v, r, c, err, gain, before) if np.isfinite(err) else None

    def swept(self, v: Array, n: int) -> tuple[Point, list[float]]:
        """The point after `n` sweeps from `v`, and their errors; the exponents of a swept plan are at most log(b)."""
        u, v, errors = sinkhorn_sweeps(self.kernel, self.a, self.b, v, n, self.scale)
        self.kernel.fill(u, v, self.scale)
        r, c = self.kernel.marginals()
        return Point(u, v, r, c, self._error(r, c)), errors

    def accepted(self, trial: Point, point: Point, slope: float, share: float) -> bool:
        """Armijo's condition; below the rounding error of D, a smaller error without a smaller D."""
        rounding = 1e-12 * abs(float(self.a @ point.u + self.b @ point.v - point.r.sum()))
        return trial.gain >= share * slope or (trial.err <= 0.9 * point.err and trial.gain >= -rounding)

    def fill(self, point: Point) -> None:
        """Bring the plan of a point back."""
        self.kernel.fill(point.u, point.v, self.scale)

    def _filled(self, u: Array, v: Array) -> bool:
        return bool(np.isfinite(u).all() and np.isfinite(v).all()) and self.kernel.fill(u, v, self.scale, LARGEST)

    def _error(self, r: Array, c: Array) -> float:
        return float(np.abs(self.a - r).sum() + np.abs(self.b - c).sum())
