"""Speed of FZooS: a local step of the surrogate, beside the authors' way, and its cost against points and dimension."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable

import numpy as np
from scipy.optimize import approx_fprime
from sklearn.exceptions import ConvergenceWarning
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import Matern

from _rows import Row, alone, compared, fitted, interleaved, rows_of
from steepest.federated import TrajectorySurrogate


def bench(progress: Callable[[float], None] | None = None) -> list[Row]:
    """Measure all rows."""
    return rows_of([step, official, sizes], progress)


def history(n: int, d: int) -> tuple[np.ndarray, np.ndarray]:
    X = np.random.default_rng(0).uniform(0.4, 0.6, (n, d))
    return X, (X**2).sum(1)


def local_step(surrogate: TrajectorySurrogate, x: np.ndarray, rng: np.random.Generator) -> None:
    """Gradient, a new point, and where to look next: what a client computes in a local step."""
    surrogate.gradient(x)
    surrogate.add(x + rng.uniform(-0.01, 0.01, len(x)), 1.0)
    surrogate.variance(x + rng.uniform(-0.01, 0.01, (100, len(x))), x)
    surrogate.add(x + rng.uniform(-0.01, 0.01, (5, len(x))), np.ones(5))


def seconds_a_step(d: int, points: int, steps: int = 40) -> float:
    surrogate, rng = TrajectorySurrogate(d, max_points=points), np.random.default_rng(1)
    X, y = history(700, d)
    surrogate.add(X, y)
    local_step(surrogate, X[0], rng)
    start = time.process_time()
    for k in range(steps):
        local_step(surrogate, X[k], rng)
    return (time.process_time() - start) / steps


def step() -> list[Row]:
    """CPU milliseconds of a local step."""
    each = 1e3 * float(np.median([seconds_a_step(50, 150) for _ in range(5)]))
    return [alone("local step", each, "ms", "<= 5", "d = 50, 150 points, 100 candidates, CPU time")]


def official() -> list[Row]:
    """A gradient as the authors' code gets it: a fit with 20 restarts, differentiated by d differences."""
    X, y = history(150, 50)
    x = X[0]

    def theirs() -> None:
        process = GaussianProcessRegressor(Matern(nu=2.5), alpha=1e-6, n_restarts_optimizer=20, random_state=0)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            process.fit(X, y)
        approx_fprime(x, lambda z: float(process.predict(z[None])[0]), 1.5e-8)

    def ours() -> None:
        surrogate = TrajectorySurrogate(50, kernel="matern52")
        surrogate.add(X, y)
        surrogate.gradient(x)

    seconds = interleaved({"ours": ours, "authors' way": theirs}, 3, time.process_time)
    return [compared("gradient", seconds, "authors' way", "<= 0.05", "d = 50, 150 points, Matern 5/2, CPU time")]


def sizes() -> list[Row]:
    """Exponents of a local step's CPU time in the dimension and in the points."""
    dims, points = (100, 400, 1600), (75, 150, 300, 600)
    by_dim = [seconds_a_step(d, 150, 10) for d in dims]
    by_points = [seconds_a_step(50, m, 10) for m in points]
    return [
        fitted("step against d", dims, by_dim, "<= 1.1", "150 points, d from 100 to 1,600, CPU time"),
        fitted("step against points", points, by_points, "<= 3", "d = 50, 75 to 600 points, CPU time"),
    ]
