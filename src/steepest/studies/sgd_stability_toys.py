"""SGD on the two models of the paper, many runs at once: every run is a row of the arrays, with its own learning rate,
batch size, data and draws.

The loss of a sample is ``(f - y)^2 / 2``, batches are drawn with replacement. The learning rate rises linearly over the
first half of the steps. Exact interpolation would freeze a run at a point that it could not hold: every 1,000 steps of
the first three quarters the parameters get relative noise of 1e-6.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from steepest.landscape import StabilityReport, stability_of_factors

__all__ = ["Solutions", "sparse_regression", "train_diagonal", "train_two_layer", "two_layer_problem"]

Array = NDArray[np.float64]
NOISE, NOISE_EACH = 1e-6, 1000


@dataclass(frozen=True)
class Solutions:
    """Where the runs ended.

    Attributes
    ----------
    factors : array (runs, n, P)
        Gradients of the outputs.
    residuals : array (runs, n)
        Outputs less targets.
    norms : array (runs,)
        What stability bounds: the l1 norm of the coefficients, or the path norm.
    errors : array (runs,) or None
        Test errors, where the truth is known.
    """

    factors: Array
    residuals: Array
    norms: Array
    errors: Array | None = None

    @property
    def losses(self) -> Array:
        """Training losses (runs,)."""
        return np.asarray((self.residuals**2).mean(1) / 2)

    def report(self, run: int, lr: float, batch_size: int) -> StabilityReport:
        """Measure one run's stability from its factors."""
        A = torch.from_numpy(self.factors[run])
        return stability_of_factors(A, lr=lr, batch_size=batch_size, replacement=True)

    def loss_ratio(self, run: int, report: StabilityReport) -> float:
        """The ratio ``frobenius``: ``lr sqrt(p tr(H S) / (2 loss))``, S the covariance of the samples' gradients.

        At a loss that is rounding alone the residuals say nothing; random ones in the span of the rows replace them.
        """
        A, e = self.factors[run], self.residuals[run]
        n = len(A)
        K = A @ A.T / n
        if float((e**2).mean()) < 1e-24:
            e = K @ np.random.default_rng(run).standard_normal(n)
        AG = n * K * e  # A g_i, with g_i = e_i a_i
        noise = float(((AG - AG.mean(1, keepdims=True)) ** 2).sum()) / n**2
        return report.lr * float(np.sqrt(report.noise_fraction * noise / (e**2).mean()))


def _rates(lr: Array, steps: int, t: int) -> Array:
    return lr * min(1.0, (t + 1) / (steps / 2))


def _perturb(parts: list[Array], t: int, steps: int, rng: np.random.Generator) -> None:
    if t % NOISE_EACH == NOISE_EACH - 1 and t < 0.75 * steps:
        for x in parts:
            x *= 1 + NOISE * rng.standard_normal(x.shape)


# --------------------------------------------------------------------------------------------------- sparse regression


def sparse_regression(seeds: list[int], d: int = 100, n: int = 40, nonzeros: int = 3) -> tuple[Array, Array, Array]:
    """Inputs (seeds, n, d) from N(0, I), targets (seeds, n), and coefficients of +-1 at random places (seeds, d)."""
    X, beta = np.empty((len(seeds), n, d)), np.zeros((len(seeds), d))
    for k, seed in enumerate(seeds):
        rng = np.random.default_rng([seed, 1])
        X[k] = rng.standard_normal((n, d))
        beta[k, rng.choice(d, nonzeros, replace=False)] = rng.choice([-1.0, 1.0], nonzeros)
    return X, np.einsum("knd,kd->kn", X, beta), beta


@np.errstate(over="ignore", invalid="ignore")  # a run that diverges stays where it went
def train_diagonal(
    X: Array, y: Array, beta: Array, lr: Array, steps: int, *, full_batch: bool, scale: float = 0.7, seed: int = 0
) -> Solutions:
    """Train ``f(x) = <u^2 - v^2, x>`` from ``u = v = scale`` by single samples or by full batches, one run a row."""
    rng = np.random.default_rng([seed, 2])
    runs, n, d = X.shape
    w = np.full((runs, 2, d), scale)  # u and v
    signs = np.array([1.0, -1.0])[:, None]
    rows = np.arange(runs)
    XT = np.ascontiguousarray(X.transpose(0, 2, 1))
    for t in range(steps):
        if t % 1000 == 0:
            draws = rng.integers(n, size=(1000, runs))
        coefficients = (signs * w * w).sum(1)
        if full_batch:
            residual = (X @ coefficients[:, :, None])[:, :, 0] - y
            g = (XT @ residual[:, :, None])[:, :, 0] / n
        else:
            i = draws[t % 1000]
            x = X[rows, i]
            g = x * ((x * coefficients).sum(1) - y[rows, i])[:, None]
        w -= (2 * _rates(lr, steps, t))[:, None, None] * signs * w * g[:, None]
        _perturb([w], t, steps, rng)
    coefficients = (signs * w * w).sum(1)
    factors = np.concatenate([2 * X * w[:, None, 0], -2 * X * w[:, None, 1]], 2)
    residual = (X @ coefficients[:, :, None])[:, :, 0] - y
    return Solutions(factors, residual, np.abs(coefficients).sum(1), ((coefficients - beta) ** 2).sum(1))


# ---------------------------------------------------------------------------------------------------- two-layer network


def two_layer_problem(seeds: list[int], d: int = 10, n: int = 40, teachers: int = 3) -> tuple[Array, Array]:
    """Inputs (seeds, n, d) from N(0, I) and the outputs (seeds, n) of a small ReLU network."""
    X, y = np.empty((len(seeds), n, d)), np.empty((len(seeds), n))
    for k, seed in enumerate(seeds):
        rng = np.random.default_rng([seed, 3])
        X[k] = rng.standard_normal((n, d))
        b = rng.standard_normal((teachers, d))
        b /= np.linalg.norm(b, axis=1, keepdims=True)
        y[k] = np.maximum(X[k] @ b.T, 0) @ rng.choice([-1.0, 1.0], teachers)
    return X, y


@np.errstate(over="ignore", invalid="ignore")
def train_two_layer(
    X: Array, y: Array, width: int, lr: Array, batch_size: int, steps: int, *, path_norm: float, seed: int = 0
) -> Solutions:
    """Train ``f(x) = sum_j a_j relu(b_j^T x)``, one run a row, balanced at first."""
    rng = np.random.default_rng([seed, 4])
    runs, n, d = X.shape
    b = rng.standard_normal((runs, width, d)) * np.sqrt(path_norm / (width * d**0.5))
    a = rng.choice([-1.0, 1.0], (runs, width)) * np.linalg.norm(b, axis=2) / d**0.5  # balanced
    rows = np.arange(runs)[:, None]
    for t in range(steps):
        if t % 1000 == 0:
            draws = rng.integers(n, size=(1000, runs, batch_size))
        i = draws[t % 1000]
        x = X[rows, i]  # (runs, B, d)
        h = np.maximum(x @ b.transpose(0, 2, 1), 0)  # (runs, B, width)
        rate = (_rates(lr, steps, t) / batch_size)[:, None]
        e = ((h @ a[:, :, None])[:, :, 0] - y[rows, i]) * rate
        back = (e[:, :, None] * (h > 0)) * a[:, None, :]
        a = a - (e[:, None, :] @ h)[:, 0]
        b -= back.transpose(0, 2, 1) @ x
        _perturb([a, b], t, steps, rng)
    h = np.maximum(X @ b.transpose(0, 2, 1), 0)
    active = (h > 0) * a[:, None, :]
    factors = np.concatenate([h, (active[..., None] * X[:, :, None, :]).reshape(runs, n, width * d)], 2)
    residual = (h @ a[:, :, None])[:, :, 0] - y
    norms = (np.abs(a) * np.linalg.norm(b, axis=2)).sum(1)
    return Solutions(factors, residual, norms)
