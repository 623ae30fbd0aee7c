r"""Let a few landmarks carry the heat and the scaling, and place all other points against them.

The heat that stays where it was, ``H_t(x, x)``, is needed at every point, and columns of landmarks do not hold it:

    H_t(x, x) = Σ_y H_{t/2}(x, y)² = E (H_{t/2} z)_x²,        z standard normal,

exact from column blocks of the half-time kernel, or the mean over 64 probes (relative error sqrt(2/64), never
negative). Placing a point with distances d_l to landmarks z_l is linear by landmark scaling, ``y = ½ Z⁺ (μ - d²)`` with
μ_l the mean of D² over landmarks, and goes on by Guttman steps
``y <- Σ w_l (z_l + d_l (y - z_l)/‖y - z_l‖) / Σ w_l``.

Papers: huguet2023heat; desilva2004sparse (landmark scaling). The combination is ours.
"""

from __future__ import annotations

import numpy as np
from scipy.spatial.distance import cdist

from steepest.geometry._heat_flow import HeatFlow
from steepest.manifold._diffusion_time import unit_columns

__all__ = ["heat_diagonal", "triangulate"]

Array = np.ndarray
EXACT = 5000  # points up to which the half-time kernel is summed whole
PROBES = 64
GUTTMAN_STEPS = 20
COLUMNS = 1024  # of the half-time kernel, at a time
BLOCK = 2**16


def heat_diagonal(flow: HeatFlow, times: Array, rng: np.random.Generator) -> Array:
    """``H_t(x, x)`` of all points, (n_times, n): exact for n <= 5000 and by eigenpairs, else from 64 probes."""
    n = flow.n
    if flow.eigenpairs is not None:
        w, V = flow.eigenpairs
        return np.stack([(V * V) @ np.exp(-t * w) for t in times])
    half = flow.half()
    if n > EXACT:
        return np.square(half(rng.standard_normal((n, PROBES)), times / 2)).mean(axis=2)
    diagonal = np.zeros((len(times), n))
    for first in range(0, n, COLUMNS):
        columns = unit_columns(np.arange(first, min(first + COLUMNS, n)), n)
        diagonal += np.square(half(columns, times / 2)).sum(axis=2)
    return diagonal


def triangulate(
    Z: Array,  # (l, m) landmarks
    mean_squares: Array,  # (l,) mean of D² over landmarks
    d: Array,  # (n, l) distances to them
    anchors: Array | None,  # indices of the landmarks that Guttman steps use; None: no steps
    weights: Array | None = None,  # (n, l)
) -> Array:
    """Place points by their distances to landmarks: (n, m).

    Examples
    --------
    >>> Z = np.array([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0], [0.0, -1.0]])
    >>> y = np.array([[0.3, 0.4]])
    >>> D = cdist(Z, Z)
    >>> triangulate(Z, (D**2).mean(axis=0), cdist(y, Z), np.arange(4)).round(9).tolist()
    [[0.3, 0.4]]
    """
    center = Z.mean(axis=0)
    inverse = np.linalg.pinv(Z - center)  # (m, l)
    Y = np.empty((len(d), Z.shape[1]))
    size = max(1, BLOCK // len(Z))
    for i in range(0, len(d), size):
        rows = slice(i, i + size)
        Y[rows] = center + 0.5 * (mean_squares - d[rows] ** 2) @ inverse.T
    if anchors is None:
        return Y
    A = Z[anchors]
    size = max(1, BLOCK // len(A))
    for i in range(0, len(d), size):
        rows = slice(i, i + size)
        w = None if weights is None else weights[rows][:, anchors]
        Y[rows] = _guttman(A, Y[rows], d[rows][:, anchors], w)
    return Y


def _guttman(A: Array, Y: Array, d: Array, weights: Array | None) -> Array:
    """Move each point alone down the stress of its distances to the anchors."""
    w = np.full_like(d, 1.0 / d.shape[1]) if weights is None else weights / weights.sum(axis=1, keepdims=True)
    pulls = w * d
    target = w @ A
    for _ in range(GUTTMAN_STEPS):
        apart = cdist(Y, A)
        apart[apart == 0.0] = np.inf
        ratio = np.divide(pulls, apart, out=apart)
        Y = target + ratio.sum(axis=1)[:, None] * Y - ratio @ A
    return Y
