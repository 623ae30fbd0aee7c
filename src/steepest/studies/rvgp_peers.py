"""What people use for vectors at scattered points: Gaussian processes channel by channel, and spherical splines.

Every function takes points X (n, 3), vectors y (n, 3) with rows of NaN where unknown, and gives vectors (n, 3).
"""

from __future__ import annotations

import math
import warnings

import numpy as np
from scipy.special import eval_legendre

from steepest.geometry.eigenpairs import lowest_eigenpairs
from steepest.geometry.graph import knn_graph, laplacian

__all__ = ["ambient_gp", "eigenvector_gp", "laplacian_eigenvectors", "spherical_spline", "spline_matrix"]

Array = np.ndarray
STARTS = (0.3, 1.0)  # first length scales, in units of the median distance between labelled points


def ambient_gp(X: Array, y: Array, *, tune: bool = True) -> Array:
    """Gaussian process with a squared exponential kernel in the ambient space, each channel for itself."""
    return _by_channel(X, y, tune)


def eigenvector_gp(features: Array, y: Array, *, tune: bool = True) -> Array:
    """The paper's baseline: squared exponential kernel on Laplacian eigenvectors, each channel for itself."""
    return _by_channel(features, y, tune)


def laplacian_eigenvectors(X: Array, n_eigenpairs: int = 50, n_neighbors: int = 10) -> Array:
    """Lowest eigenvectors of the scalar graph Laplacian, (n, n_eigenpairs), of mean square 1."""
    graph = knn_graph(X, n_neighbors)
    _, vectors = lowest_eigenpairs(laplacian(graph), n_eigenpairs, points=X)
    return vectors * math.sqrt(len(X))


def _by_channel(features: Array, y: Array, tune: bool) -> Array:
    """Fit amplitude, length scale and noise by the evidence, from two starts; predict all points.

    Without `tune` the better start is taken as it is.
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.gaussian_process import GaussianProcessRegressor
    from sklearn.gaussian_process.kernels import RBF, ConstantKernel, WhiteKernel

    labelled = ~np.isnan(y).any(axis=1)
    seen = features[labelled]
    distances = np.linalg.norm(seen[:, None] - seen[:200], axis=2)
    scale = float(np.median(distances[distances > 0]))
    optimizer = "fmin_l_bfgs_b" if tune else None
    found = np.empty_like(y)
    for channel in range(y.shape[1]):
        values = y[labelled, channel]
        variance = float(values.var()) + 1e-12
        fits = []
        for start in STARTS:
            kernel = ConstantKernel(variance, (1e-3 * variance, 1e3 * variance)) * RBF(
                start * scale, (0.02 * scale, 50 * scale)
            ) + WhiteKernel(0.05 * variance, (1e-6 * variance, 2 * variance))
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", ConvergenceWarning)  # a parameter at its bound is an answer here
                fits.append(GaussianProcessRegressor(kernel, optimizer=optimizer).fit(seen, values - values.mean()))
        best = max(fits, key=lambda fit: fit.log_marginal_likelihood_value_)
        found[:, channel] = best.predict(features) + values.mean()
    return found


def spherical_spline(X: Array, y: Array, *, order: int = 4, smoothing: float = 1e-5) -> Array:
    """Spherical splines (Perrin et al., 1989), each channel for itself."""
    labelled = ~np.isnan(y).any(axis=1)
    return spline_matrix(X, labelled, order=order, smoothing=smoothing) @ y[labelled]


def spline_matrix(X: Array, labelled: Array, *, order: int = 4, smoothing: float = 1e-5, n_terms: int = 50) -> Array:
    """The linear map from labelled values to all points, (n, n_labelled).

    g(cos) = 1/(4 pi) sum_l (2l+1) / (l(l+1))^order P_l(cos), and a constant; `smoothing` is added to the diagonal.

    Examples
    --------
    >>> X = np.eye(3)
    >>> float(np.round(spline_matrix(X, np.array([True, True, False])).sum(axis=1), 12)[2])
    1.0
    """
    directions = X / np.linalg.norm(X, axis=1, keepdims=True)
    cosines = np.clip(directions @ directions[labelled].T, -1, 1)
    kernel = sum(
        (2 * degree + 1) / (degree * (degree + 1)) ** order * eval_legendre(degree, cosines)
        for degree in range(1, n_terms + 1)
    ) / (4 * math.pi)
    n = cosines.shape[1]
    system = np.zeros((n + 1, n + 1))
    system[:n, :n] = kernel[labelled] + smoothing * np.eye(n)
    system[:n, n] = system[n, :n] = 1
    weights = np.linalg.solve(system, np.vstack([np.eye(n), np.zeros((1, n))]))
    return kernel @ weights[:n] + weights[n]
