"""Problems of the study of large steps: pairs of digits, random separable sets and their margins, iterates of a run."""

from __future__ import annotations

import warnings
from itertools import combinations
from typing import Any

import numpy as np
from scipy.optimize import nnls

from steepest.core.errors import ConvergenceWarning
from steepest.landscape._row_blocks import RowBlocks
from steepest.landscape.separable import LargeStepLogisticRegression, _Descent

__all__ = ["ALL_PAIRS", "batch_perceptron", "digits_pair", "fitted", "hard_margin", "iterates", "separable", "signed"]

ALL_PAIRS = tuple(combinations(range(10), 2))


def digits_pair(data: tuple[np.ndarray, np.ndarray], pair: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Pixels in [0, 1] of two of the ten digits; y is 1 for the second and -1 for the first."""
    X, y = data
    both = (y == pair[0]) | (y == pair[1])
    return X[both] / 16, np.where(y[both] == pair[1], 1, -1)


def separable(n: int, d: int, gap: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Standard normal points, labels from a random plane through 0, all moved away from it by `gap`."""
    rng = np.random.default_rng(seed)
    X, normal = rng.standard_normal((n, d)), rng.standard_normal(d)
    normal /= np.linalg.norm(normal)
    y = np.where(X @ normal > 0, 1, -1)
    return X + gap * y[:, None] * normal, y


def signed(X: np.ndarray, y: np.ndarray, intercept: bool) -> np.ndarray:
    """Rows y_i a_i, with the constant 1 for an intercept."""
    return y[:, None] * (np.column_stack([X, np.ones(len(X))]) if intercept else X)


def hard_margin(A: np.ndarray) -> float:
    """Margin of separable rows y_i a_i by the dual of the hard-margin support vector machine.

    It is the distance of their convex hull from 0, found by nonnegative least squares: an upper bound of the margin
    whatever its accuracy, so that bounds of ours made of it are never too generous.
    """
    share, _ = nnls(np.vstack([A.T, np.ones(len(A))]), np.append(np.zeros(A.shape[1]), 1.0), maxiter=100 * len(A))
    return float(np.linalg.norm(A.T @ share) / share.sum())


def batch_perceptron(A: np.ndarray, max_iter: int = 100_000) -> list[np.ndarray]:
    """Iterates of the batch perceptron on rows y_i a_i, from its definition: the limit of the plain method."""
    thetas = [np.zeros(A.shape[1]), A.mean(axis=0) / 2]
    while (wrong := A @ thetas[-1] <= 0).any() and len(thetas) <= max_iter:
        thetas.append(thetas[-1] + A[wrong].sum(axis=0) / len(A))
    return thetas


def iterates(X: np.ndarray, y: np.ndarray, **settings: Any) -> list[np.ndarray]:
    """All iterates (d or d + 1,) of a binary run, in units of the step size, the start at 0 included."""
    trace: list[np.ndarray] = []
    _Descent(RowBlocks(X, (y > 0).astype(int), 1, None, 1), LargeStepLogisticRegression(**settings), trace).run()
    return [theta[:, 0] for theta in trace]


def fitted(X: np.ndarray, y: np.ndarray, step_size: float, weight: Any = None, **settings: Any) -> Any:
    """A fitted model; that it may not separate is what is asked, so it does not warn."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        return LargeStepLogisticRegression(step_size, **settings).fit(X, y, weight)
