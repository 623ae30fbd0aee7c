r"""A Gaussian process over everything that was queried, and the gradient that it implies, in closed form.

With a stationary kernel k, ``dk(x, x_a)/dx = h(|x - x_a|) (x_a - x)`` for a function h > 0, so that the posterior of
the gradient at x is, for the m points nearest to x and ``A = (K + s2 I)^{-1}``,

    mean      grad mu(x) = sum_a h_a (A y)_a (x_a - x)
    variance  V(x) = tr[d h(0) I - J^T A J] = d h(0) - sum_ab h_a h_b A_ab (x_a - x).(x_b - x)

    rbf        k = exp(-r^2 / 2 l^2)                          h = k / l^2
    matern52   k = (1 + u + u^2/3) e^-u,  u = sqrt(5) r / l   h = 5/(3 l^2) (1 + u) e^-u

Values are centred and scaled by mean and standard deviation of the whole history, and s2 is relative to those; the
gradient comes back in the units of y.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal, overload

import numpy as np
from scipy.linalg import cho_solve, cholesky, lapack, solve_triangular
from scipy.optimize import minimize_scalar

from steepest.core.errors import at_least, check, one_of, positive, value_error

__all__ = ["KERNELS", "TrajectorySurrogate", "read_points"]

Kernel = Literal["rbf", "matern52"]
KERNELS = ("rbf", "matern52")

_JITTERS = (0.0, 1e-8, 1e-6, 1e-4)
_SAME = 8 * np.finfo(float).eps  # values that differ by less than this share of their size are one value
_LENGTHS = (1e-2, 1e2)


def _rbf(r2: np.ndarray, lengthscale: float) -> tuple[np.ndarray, np.ndarray]:
    k = np.exp(-r2 / (2 * lengthscale**2))
    return k, k / lengthscale**2


def _matern52(r2: np.ndarray, lengthscale: float) -> tuple[np.ndarray, np.ndarray]:
    u = np.sqrt(5 * r2) / lengthscale
    decay = np.exp(-u)
    return (1 + u + u**2 / 3) * decay, 5 / (3 * lengthscale**2) * (1 + u) * decay


_FORMULAS: dict[str, Callable[[np.ndarray, float], tuple[np.ndarray, np.ndarray]]] = {
    "rbf": _rbf,
    "matern52": _matern52,
}


def read_points(name: str, X: object, dim: int) -> np.ndarray:  # (n, dim)
    """Read finite points of the right dimension; a single one gives n = 1."""
    points = np.asarray(X, float)
    if points.ndim == 1:
        points = points[None]
    if points.ndim != 2 or points.shape[1] != dim:
        raise value_error(name, f"of shape (n, {dim}) or ({dim},)", X)
    if not np.isfinite(points).all():
        raise value_error(name, "finite", "an entry that is not")
    return points


def _squared_distances(P: np.ndarray, Q: np.ndarray) -> np.ndarray:
    squares = np.einsum("ij,ij->i", P, P)[:, None] + np.einsum("ij,ij->i", Q, Q) - 2 * P @ Q.T
    return np.maximum(squares, 0.0)


class TrajectorySurrogate:
    """The derived Gaussian process of one client: gradients from values that were queried anyway.

    Parameters
    ----------
    dim : int
        d.
    kernel : "rbf" or "matern52"
    lengthscale : float
        l, in the units of x; 1.0 suits inputs in the unit box.
    noise : float
        s2, the variance of the noise relative to that of the values; 1e-6 as in the authors' code.
    max_points : int
        Only so many points, those nearest to x, are used; 150 as in the authors' code.

    Attributes
    ----------
    X : ndarray of shape (n, dim)
        Everything that was added.
    y : ndarray of shape (n,)
    jitter : float
        What the last factorization needed besides `noise`: 0 as a rule, else 1e-8, 1e-6 or 1e-4.

    Raises
    ------
    ValueError
        A value out of range, points of another dimension, values that are not finite.

    Examples
    --------
    >>> surrogate = TrajectorySurrogate(2)
    >>> X = np.random.default_rng(0).uniform(-0.3, 0.3, (30, 2))
    >>> surrogate.add(X, X[:, 0] + X[:, 1] ** 2)
    >>> surrogate.gradient(np.array([0.0, 0.1])).round(1).tolist()
    [1.0, 0.2]
    """

    def __init__(
        self,
        dim: int,
        *,
        kernel: Kernel = "rbf",
        lengthscale: float = 1.0,
        noise: float = 1e-6,
        max_points: int = 150,
    ) -> None:
        check("dim", dim, at_least(1, integer=True))
        check("kernel", kernel, one_of(*KERNELS))
        check("lengthscale", lengthscale, positive())
        check("noise", noise, positive())
        check("max_points", max_points, at_least(1, integer=True))
        self.dim, self.kernel, self.lengthscale, self.noise = dim, kernel, float(lengthscale), float(noise)
        self.max_points = max_points
        self.jitter = 0.0
        self._points, self._values, self._n = np.empty((64, dim)), np.empty(64), 0
        self._factored: tuple[bytes, float, np.ndarray] | None = None
        self._inverse: np.ndarray | None = None

    @property
    def X(self) -> np.ndarray:  # (n, dim)
        return self._points[: self._n]

    @property
    def y(self) -> np.ndarray:  # (n,)
        return self._values[: self._n]

    def add(self, X: np.ndarray, y: np.ndarray | float) -> None:
        """Remember points and their values, for good."""
        points, values = read_points("X", X, self.dim), np.atleast_1d(np.asarray(y, float))
        if values.shape != (len(points),):
            raise value_error("y", f"one value per point ({len(points)})", y)
        if not np.isfinite(values).all():
            raise value_error("y", "finite", "an entry that is not")
        n = self._n + len(points)
        if n > len(self._values):
            size = max(n, 2 * len(self._values))
            self._points = np.concatenate([self.X, np.empty((size - self._n, self.dim))])
            self._values = np.concatenate([self.y, np.empty(size - self._n)])
        self._points[self._n : n], self._values[self._n : n] = points, values
        self._n = n

    def nearest(self, x: np.ndarray, count: int) -> np.ndarray:
        """Indices of the `count` points nearest to x, ascending; of two at the same distance the earlier one."""
        if not self._n:
            raise value_error("history", "at least one point; call add first", "none")
        if self._n <= count:
            return np.arange(self._n)
        shifted = self.X - x
        return np.sort(np.argsort(np.einsum("ij,ij->i", shifted, shifted), kind="stable")[:count])

    @property
    def scale(self) -> float:
        """Standard deviation of the values, 1 where they are constant."""
        spread = float(self.y.std())
        return spread if spread > _SAME * float(np.abs(self.y).max()) else 1.0

    def standardized(self, y: np.ndarray) -> np.ndarray:
        """Values in units of the whole history's deviation from its mean; exactly 0 where that is constant."""
        flat = float(self.y.std()) != self.scale
        return np.zeros_like(y) if flat else (y - self.y.mean()) / self.scale

    @overload
    def gradient(self, x: np.ndarray, return_var: Literal[False] = False) -> np.ndarray: ...
    @overload
    def gradient(self, x: np.ndarray, return_var: Literal[True]) -> tuple[np.ndarray, np.ndarray]: ...
    def gradient(self, x: np.ndarray, return_var: bool = False) -> np.ndarray | tuple[np.ndarray, np.ndarray]:
        """Posterior mean of the gradient at x, in the units of y.

        Parameters
        ----------
        x : ndarray of shape (dim,)
        return_var : bool
            Also give the posterior variance of each entry.

        Returns
        -------
        ndarray of shape (dim,), or two of them
        """
        (x,) = read_points("x", x, self.dim)
        P, y, L = self._near(x)
        _, h = _FORMULAS[self.kernel](np.einsum("ij,ij->i", P, P), self.lengthscale)
        mean = self.scale * (h * cho_solve((L, True), y)) @ P
        if not return_var:
            return mean
        reduced = solve_triangular(L, h[:, None] * P, lower=True)
        spread = self._prior() - np.einsum("ij,ij->j", reduced, reduced)
        return mean, self.scale**2 * np.maximum(spread, 0.0)

    def variance(self, Z: np.ndarray, x: np.ndarray) -> np.ndarray:
        """Total posterior variance of the gradient at each row of Z, from the points nearest to x.

        Parameters
        ----------
        Z : ndarray of shape (c, dim)
        x : ndarray of shape (dim,)

        Returns
        -------
        ndarray of shape (c,)
            ``tr Cov``, in the squared units of y.

        Notes
        -----
        ``O(c m^2 + c m d)``: inner products are taken relative to x, where they are small, and the sum over pairs of
        points is one matrix product for all candidates.
        """
        (x,) = read_points("x", x, self.dim)
        zeta = read_points("Z", Z, self.dim) - x
        P, _, L = self._near(x)
        A = self._inverted(L)
        _, H = _FORMULAS[self.kernel](_squared_distances(zeta, P), self.lengthscale)  # (c, m)
        HA = H @ A
        explained = (
            np.einsum("ij,ij->i", H @ (A * (P @ P.T)), H)
            - 2 * np.einsum("ij,ij->i", H * (zeta @ P.T), HA)
            + np.einsum("ij,ij->i", zeta, zeta) * np.einsum("ij,ij->i", HA, H)
        )
        return np.asarray(self.scale**2 * np.maximum(self.dim * self._prior() - explained, 0.0))

    def fitted_lengthscale(self) -> float:
        """The length scale in [0.01, 100] with the largest marginal likelihood of the last `max_points` points."""
        X, y = self.X[-self.max_points :], self.y[-self.max_points :]
        y = self.standardized(y)
        r2 = _squared_distances(X - X.mean(0), X - X.mean(0))

        def loss(log_length: float) -> float:
            K, _ = _FORMULAS[self.kernel](r2, math.exp(log_length))
            L, _ = self._cholesky(K)
            return float(y @ cho_solve((L, True), y) / 2 + np.log(np.diag(L)).sum())

        grid = np.linspace(math.log(_LENGTHS[0]), math.log(_LENGTHS[1]), 25)
        best = int(np.argmin([loss(t) for t in grid]))
        around = grid[max(best - 1, 0)], grid[min(best + 1, len(grid) - 1)]
        return math.exp(float(minimize_scalar(loss, bounds=around, method="bounded").x))

    # Shared

    def _prior(self) -> float:
        """h(0), the variance of one entry of the gradient before anything is known."""
        return float(_FORMULAS[self.kernel](np.zeros(1), self.lengthscale)[1][0])

    def _near(self, x: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Points nearest to x relative to it, their standardized values, and the factor L of ``K + s2 I``."""
        chosen = self.nearest(x, self.max_points)
        key = chosen.tobytes()
        if self._factored is None or self._factored[:2] != (key, self.lengthscale):
            P = self.X[chosen] - self.X[chosen].mean(0)
            K, _ = _FORMULAS[self.kernel](_squared_distances(P, P), self.lengthscale)
            L, self.jitter = self._cholesky(K)
            self._factored, self._inverse = (key, self.lengthscale, L), None
        return self.X[chosen] - x, self.standardized(self.y[chosen]), self._factored[2]

    def _inverted(self, L: np.ndarray) -> np.ndarray:
        """A, which only variances need, for the factor at hand."""
        if self._inverse is None:
            lower = np.tril(lapack.dpotri(L, lower=1)[0])
            self._inverse = lower + np.tril(lower, -1).T
        return self._inverse

    def _cholesky(self, K: np.ndarray) -> tuple[np.ndarray, float]:
        for jitter in _JITTERS:
            try:
                return cholesky(K + (self.noise + jitter) * np.eye(len(K)), lower=True), jitter
            except np.linalg.LinAlgError:
                continue
        raise np.linalg.LinAlgError(f"the kernel matrix is not positive definite, even with jitter {_JITTERS[-1]:g}")
