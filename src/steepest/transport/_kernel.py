"""Passes over all n x m entries of the plan exp(u + v' - C), in place and a few rows at a time."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

__all__ = ["Kernel", "sinkhorn_sweeps"]

Array = NDArray[np.float64]

BLOCK = 65_536  # entries that are worked on at a time: they stay in a core's cache from one operation to the next
LARGEST = 30.0  # scalings beyond exp(30) are absorbed, trial points beyond exp(30) are not evaluated
ABSORB_EACH = 100
FLOOR = -650.0  # exp of less is slow by an order of magnitude, and so is what is multiplied with it
HARMLESS = 600.0  # exponents down to minus this keep all digits
UNDERFLOW = 1e-200  # a column whose sum is less has lost its digits


class Kernel:
    """The cost in units of the entropy, C = M / reg, and one buffer P of its size that holds exp(u + v' - scale C)."""

    def __init__(self, C: Array) -> None:
        self.C, self.P = C, np.empty_like(C)
        self.rows = max(1, BLOCK // C.shape[1])

    def _blocks(self) -> Iterator[slice]:
        n = len(self.C)
        return (slice(k, min(k + self.rows, n)) for k in range(0, n, self.rows))

    def fill(self, u: Array, v: Array, scale: float = 1.0, limit: float = np.inf) -> bool:
        """Put exp(u + v' - scale C) into P; stop and say False where an exponent exceeds `limit`."""
        for rows in self._blocks():
            S = self.P[rows]
            if scale == 1:
                np.subtract(v, self.C[rows], out=S)
            else:
                np.multiply(self.C[rows], -scale, out=S)
                S += v
            S += u[rows, None]
            if not limit >= S.max():  # NaN exceeds every limit
                return False
            np.maximum(S, FLOOR, out=S)
            np.exp(S, out=S)
        return True

    def marginals(self) -> tuple[Array, Array]:
        """Row and column sums of P."""
        n, m = self.P.shape
        return self.P @ np.ones(m), np.ones(n) @ self.P

    def log_row_sums(self, v: Array, scale: float = 1.0) -> Array:
        """Log of the row sums of exp(v' - scale C), without overflow or underflow; P is overwritten."""
        found = np.empty(len(self.C))
        for rows in self._blocks():
            S = self.P[rows]
            np.multiply(self.C[rows], -scale, out=S)
            S += v
            top = S.max(axis=1)
            S -= top[:, None]
            np.maximum(S, FLOOR, out=S)
            np.exp(S, out=S)
            found[rows] = top + np.log(S.sum(axis=1))
        return found

    def log_column_sums(self, u: Array, scale: float = 1.0) -> Array:
        """Log of the column sums of exp(u - scale C); P is overwritten."""
        top = np.full(self.C.shape[1], -np.inf)
        for rows in self._blocks():
            S = self.P[rows]
            np.multiply(self.C[rows], -scale, out=S)
            S += u[rows, None]
            np.maximum(top, S.max(axis=0), out=top)
        total = np.zeros_like(top)
        for rows in self._blocks():
            S = self.P[rows]
            S -= top
            np.maximum(S, FLOOR, out=S)
            np.exp(S, out=S)
            total += S.sum(axis=0)
        return top + np.log(total)

    def shift(self, u: Array, v: Array) -> None:
        """Replace C by C - u - v', so that the potentials of the same plan are zero."""
        for rows in self._blocks():
            self.C[rows] -= v
            self.C[rows] -= u[rows, None]


def sinkhorn_sweeps(
    kernel: Kernel, a: Array, b: Array, v: Array, n: int, scale: float = 1.0, stop: float = 0.0
) -> tuple[Array, Array, list[float]]:
    """Sinkhorn from the column potentials `v`: one sweep on logarithms, the rest on the absorbed kernel.

    u <- log a - LSE_j(v_j - C_ij),  v <- log b - LSE_i(u_i - C_ij). In the absorbed kernel P = exp(u + v' - C) a sweep
    is x <- a / (P y),  y <- b / (P' x).

    Returns
    -------
    u, v, errors : potentials, and sum |P 1 - a| after each sweep (the columns are exact)
    """
    errors: list[float] = []
    u = np.zeros(len(a))
    while len(errors) < n:
        u, v = _log_sweep(kernel, a, b, v, scale)
        P, y = kernel.P, np.ones_like(v)
        rows = P @ y
        errors.append(float(np.abs(rows - a).sum()))
        x = np.ones_like(u)
        while len(errors) < n and errors[-1] > stop:
            with np.errstate(all="ignore"):
                x_new = a / rows
                y_new = b / (x_new @ P)
                rows = P @ y_new
                largest = max(np.abs(np.log(x_new)).max(), np.abs(np.log(y_new)).max())
            if not np.isfinite(largest):
                break
            x, y = x_new, y_new
            errors.append(float(np.abs(x * rows - a).sum()))
            if largest > LARGEST or len(errors) % ABSORB_EACH == 0:
                u, v = u + np.log(x), v + np.log(y)
                kernel.fill(u, v, scale)
                x, y = np.ones_like(u), np.ones_like(v)
                rows = P @ y
        u, v = u + np.log(x), v + np.log(y)
        if errors[-1] <= stop:
            break
    return u, v, errors


def _log_sweep(kernel: Kernel, a: Array, b: Array, v: Array, scale: float) -> tuple[Array, Array]:
    """One sweep without underflow; P is that of the new potentials."""
    if scale * max(kernel.C.max(), -kernel.C.min()) + np.ptp(v) < HARMLESS:
        v = v - v.max()
        kernel.fill(np.zeros_like(a), v, scale)
        x = a / (kernel.P @ np.ones_like(v))
        u, columns = np.log(x), x @ kernel.P
        kernel.P *= x[:, None]
    else:
        u = np.log(a) - kernel.log_row_sums(v, scale)
        kernel.fill(u, v, scale)
        columns = np.ones(len(a)) @ kernel.P
    if columns.min() > UNDERFLOW:
        y = b / columns
        kernel.P *= y
        return u, v + np.log(y)
    v = np.log(b) - kernel.log_column_sums(u, scale)
    kernel.fill(u, v, scale)
    return u, v
