r"""Random Fourier features: a Gaussian process in one vector that clients can average.

    phi(x) = sqrt(2/M) cos(W x + b),   E phi(x).phi(x') = k(x, x')
    w = Phi^T (Phi Phi^T + s2 I)^{-1} (y - mean),   grad muhat(x) = -sqrt(2/M) sum_m w_m sin(W_m x + b_m) W_m

Rows of W come from the kernel's spectral density: N(0, I/l^2) for the squared exponential, a multivariate t with 5
degrees of freedom for Matern 5/2. Weights of several clients may be averaged only if all of them have the same W and b,
and so the same seed, length scale and kernel.
"""

from __future__ import annotations

import numpy as np
from scipy.linalg import cho_factor, cho_solve

from steepest.core.errors import at_least, check, one_of, positive, value_error
from steepest.core.random import numpy_generator
from steepest.federated._trajectory_surrogate import KERNELS, Kernel, read_points

__all__ = ["FourierBasis"]

_FREEDOM = 5  # 2 nu degrees of freedom of Matern's spectral density with nu = 5/2


class FourierBasis:
    """Features whose inner products approximate a kernel; the same for everybody with the same seed.

    Parameters
    ----------
    dim : int
        d.
    n_features : int
        M, well above the number of points that are fitted.
    lengthscale : float
        l; another one with the same seed stretches the same draws.
    seed : int
    kernel : "rbf" or "matern52"

    Attributes
    ----------
    W : ndarray of shape (n_features, dim)
    b : ndarray of shape (n_features,)

    Examples
    --------
    >>> basis = FourierBasis(2, 4000, 1.0, seed=0)
    >>> x, z = np.array([0.1, 0.2]), np.array([0.4, 0.0])
    >>> bool(abs((basis.phi(x) @ basis.phi(z).T).item() - np.exp(-0.13 / 2)) < 0.05)
    True
    """

    def __init__(self, dim: int, n_features: int, lengthscale: float, seed: int, kernel: Kernel = "rbf") -> None:
        check("dim", dim, at_least(1, integer=True))
        check("n_features", n_features, at_least(1, integer=True))
        check("lengthscale", lengthscale, positive())
        check("kernel", kernel, one_of(*KERNELS))
        rng = numpy_generator(seed)
        self.dim, self.n_features, self.kernel = dim, n_features, kernel
        self.b = rng.uniform(0, 2 * np.pi, n_features)
        directions = rng.standard_normal((n_features, dim))
        if kernel == "matern52":
            directions *= np.sqrt(_FREEDOM / rng.chisquare(_FREEDOM, n_features))[:, None]
        self.W = directions / lengthscale
        self._height = np.sqrt(2 / n_features)

    def phi(self, X: np.ndarray) -> np.ndarray:  # (n, n_features)
        """Features of points of shape (n, dim), or of a single one."""
        return np.asarray(self._height * np.cos(read_points("X", X, self.dim) @ self.W.T + self.b))

    def fit(self, X: np.ndarray, y: np.ndarray, noise: float) -> np.ndarray:  # (n_features,)
        """Ridge weights of the centred values, in the units of y."""
        check("noise", noise, positive())
        features, values = self.phi(X), np.atleast_1d(np.asarray(y, float))
        if values.shape != (len(features),) or not np.isfinite(values).all():
            raise value_error("y", f"one finite value per point ({len(features)})", y)
        gram = features @ features.T
        gram[np.diag_indices_from(gram)] += noise
        return np.asarray(features.T @ cho_solve(cho_factor(gram), values - values.mean()))

    def gradient(self, x: np.ndarray, w: np.ndarray) -> np.ndarray:  # (dim,)
        """Gradient of ``phi(x) @ w`` at x."""
        (x,) = read_points("x", x, self.dim)
        return np.asarray(-self._height * (w * np.sin(self.W @ x + self.b)) @ self.W)
