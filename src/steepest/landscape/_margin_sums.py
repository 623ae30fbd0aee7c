"""What a pass over rows of a linear classifier adds up: margins, the weights of the logistic loss, weighted rows.

These sums are all that blocks of rows, processes or machines would have to reduce: d + 4 numbers an iteration.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from scipy.special import expit, log_expit

from steepest.landscape._row_blocks import Matrix

__all__ = ["Sums", "_block_sums", "decision"]

NEGLIGIBLE, LARGE = 1e-18, 2**16
"""Rows with less than this share of the largest weight, divided by their number, change no sum in double precision;
in blocks of more entries than this they are left out."""


class Sums(NamedTuple):
    """What is added up over blocks of rows, for every column of theta."""

    gradient: np.ndarray  # (d or d + 1, K)  sum_i s_i w_i y_i a_i
    weight: np.ndarray  # (K,)               sum_i s_i w_i
    wrong: np.ndarray  # (K,)                sum of s_i with m_i <= 0
    lowest: np.ndarray  # (K,)               smallest m_i
    loss: np.ndarray  # (K,)                 sum_i s_i log(1 + exp(-step_size m_i)), only where asked for

    def plus(self, other: Sums) -> Sums:
        """Both blocks together."""
        lowest = np.minimum(self.lowest, other.lowest)
        gradient, loss = self.gradient + other.gradient, self.loss + other.loss
        return Sums(gradient, self.weight + other.weight, self.wrong + other.wrong, lowest, loss)

    def only(self, columns: np.ndarray) -> Sums:
        """Some columns."""
        return Sums(*(values[..., columns] if values.size else values for values in self))


def _block_sums(
    X: Matrix,
    y: np.ndarray,
    theta: np.ndarray,
    weight: np.ndarray | None = None,
    *,
    step_size: float = 1.0,
    start: bool = False,
    relative_to: np.ndarray | None = None,
    with_loss: bool = False,
) -> Sums:
    """Sums over the rows of a block: all that has to be reduced over blocks, processes or machines.

    Parameters
    ----------
    X : (n, d) array or CSR matrix
    y : (n, K) array
        Signs.
    theta : (d or d + 1, K) float64 array
        In units of the step size; the last row is the intercept where there is one.
    weight : (n, 1) array, optional
        s_i.
    step_size : float
    start : bool
        theta is zero: all weights are 1/2, at ``inf`` too.
    relative_to : (K,) array, optional
        Smallest margins of all rows: divides all weights by that of a sample there.
    with_loss : bool
    """
    d = X.shape[1]
    if start:
        m, w = np.zeros(y.shape), np.full(y.shape, 0.5)
    else:
        m = y * decision(X, theta.astype(X.dtype, copy=False))  # float64: the signs are
        w = _weights(m, step_size, relative_to)
    wrong, loss = m <= 0, np.empty(0)
    if with_loss:
        with np.errstate(over="ignore", invalid="ignore"):  # 0 times inf: the limit has no loss
            loss = -_total(log_expit(step_size * m), weight) * (1.0 if math.isfinite(step_size) else math.nan)
    c = y * w if weight is None else y * (w * weight)
    gradient = np.empty(theta.shape)
    gradient[:d] = _weighted_rows(X, c.astype(X.dtype, copy=False))
    if len(theta) > d:
        gradient[d] = np.add.reduce(c, axis=0)
    return Sums(gradient, _total(w, weight), _total(wrong, weight), np.minimum.reduce(m, axis=0), loss)


def _weights(m: np.ndarray, step_size: float, relative_to: np.ndarray | None) -> np.ndarray:
    """``1 / (1 + exp(step_size m))`` or its limit; or these divided by the weight at the smallest margin."""
    if math.isinf(step_size):
        return (m <= (0.0 if relative_to is None else np.maximum(relative_to, 0.0))).astype(np.float64)
    with np.errstate(over="ignore"):
        if relative_to is None:
            return expit(-step_size * m)
        small = log_expit(step_size * m) - log_expit(step_size * relative_to)
        return np.exp(step_size * (relative_to - m) + small)


def decision(X: Matrix, theta: np.ndarray) -> np.ndarray:
    """``a_i^T theta`` (n, K) by the operations of `predict`."""
    d = X.shape[1]
    found = X @ theta[:d]
    return found + theta[d] if len(theta) > d else found


def _weighted_rows(X: Matrix, c: np.ndarray) -> np.ndarray:
    """``sum_i c_i a_i`` (d, K); of a large dense block only the rows that make a difference in double precision."""
    if isinstance(X, np.ndarray) and X.size > LARGE and len(c) > 1:
        size = np.abs(c).max(axis=1)
        kept = np.flatnonzero(size > (NEGLIGIBLE / len(c)) * size.max())
        if len(kept) < len(c) // 4:
            return X[kept].T @ c[kept]
    return X.T @ c


def _total(values: np.ndarray, weight: np.ndarray | None) -> np.ndarray:
    return np.add.reduce(values if weight is None else values * weight, axis=0)
