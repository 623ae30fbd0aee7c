"""The transport problems of the Sinkhorn-Newton study: random assignment, images of digits, densities on a grid."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.distance import cdist

__all__ = ["PROBLEMS", "REG", "Problem", "densities", "digits", "error", "image_pair", "random_assignment"]

Array = NDArray[np.float64]
REG = 1 / 1200  # 1 / eta of the paper, for costs whose largest entry is 1
BACKGROUND = 0.01  # share of the mass that lies evenly on all points of a grid
UPSAMPLE, GRID, BUMPS = 3, 28, 3


@dataclass(frozen=True)
class Problem:
    """Weights a (n,) and b (m,) of mass 1, cost M (n, m) with largest entry 1."""

    a: Array
    b: Array
    M: Array


def error(plan: Array, problem: Problem) -> float:
    """Sum of the absolute errors of both marginals."""
    return float(np.abs(plan.sum(1) - problem.a).sum() + np.abs(plan.sum(0) - problem.b).sum())


def random_assignment(seed: int, n: int = 500) -> Problem:
    """Uniform weights, independent costs uniform on [0, 1]: random linear assignment."""
    w = np.full(n, 1 / n)
    M = np.random.default_rng(seed).random((n, n))
    return Problem(w, w, M / M.max())


def _points(side: int) -> Array:
    t = np.arange(side) / (side - 1)
    return np.stack(np.meshgrid(t, t, indexing="ij"), axis=-1).reshape(-1, 2)


def image_pair(first: Array, second: Array, metric: str) -> Problem:
    """Two square images as weights on their pixels, with a little mass everywhere."""
    a, b = (w.ravel() / w.sum() * (1 - BACKGROUND) + BACKGROUND / w.size for w in (first, second))
    X = _points(len(first))
    M = cdist(X, X, metric)
    return Problem(a, b, M / M.max())


def digits(seed: int, metric: str) -> Problem:
    """Images of two different digits of scikit-learn, every pixel of 8 x 8 repeated three times along both axes."""
    from sklearn.datasets import load_digits

    rng = np.random.default_rng(seed)
    images, labels = load_digits(return_X_y=True)
    chosen = (images[rng.choice(np.flatnonzero(labels == k))] for k in rng.choice(10, 2, replace=False))
    first, second = (np.kron(x.reshape(8, 8), np.ones((UPSAMPLE, UPSAMPLE))) for x in chosen)
    return image_pair(first, second, metric)


def densities(seed: int, metric: str, side: int = GRID) -> Problem:
    """Two mixtures of three normal densities on a grid of the unit square: widths 0.05 to 0.15."""
    rng = np.random.default_rng(seed)
    X = _points(side)

    def mixture() -> Array:
        centers, widths = rng.uniform(0.15, 0.85, (BUMPS, 2)), rng.uniform(0.05, 0.15, BUMPS)
        shares = rng.dirichlet(np.ones(BUMPS))
        squared = cdist(X, centers, "sqeuclidean")
        found: Array = (shares / widths**2 * np.exp(-squared / (2 * widths**2))).sum(axis=1)
        return found.reshape(side, side)

    return image_pair(mixture(), mixture(), metric)


PROBLEMS: dict[str, Callable[[int], Problem]] = {
    "rla": random_assignment,
    "digits-l2": lambda seed: digits(seed, "sqeuclidean"),
    "digits-l1": lambda seed: digits(seed, "cityblock"),
    "w1": lambda seed: densities(seed, "euclidean"),
    "w2": lambda seed: densities(seed, "sqeuclidean"),
}
