"""What a network has to solve in the study of DADAO: quadratics, regression and classification, one function a node."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["Problem", "barbell", "cycle", "geometric_graph", "grid", "least_squares", "logistic", "quadratics"]

Array = NDArray[Any]
Edges = tuple[int, list[tuple[int, int]]]


@dataclass
class Problem:
    """Functions f_1 to f_n of d numbers; `gradients` maps points (n, d) to gradients, `dual` does the opposite."""

    n: int
    d: int
    L: float
    mu: float
    x_star: Array
    gradient: Callable[[int, Array], Array]
    gradients: Callable[[Array], Array]
    dual: Callable[[Array], Array]
    dual_of: Callable[[int, Array], Array]

    @property
    def kappa(self) -> float:
        """Condition number."""
        return self.L / self.mu


def _quadratic(A: Array, b: Array, L: float, mu: float) -> Problem:
    """``f_i(x) = x^T A_i x / 2 - b_i^T x``."""
    inverse = np.linalg.inv(A)
    return Problem(
        len(A), A.shape[1], L, mu, np.linalg.solve(A.sum(0), b.sum(0)),
        lambda i, x: A[i] @ x - b[i],
        lambda X: np.einsum("nij,nj->ni", A, X) - b,
        lambda Y: np.einsum("nij,nj->ni", inverse, Y + b),
        lambda i, y: inverse[i] @ (y + b[i]),
    )  # fmt: skip


def quadratics(n: int, d: int, kappa: float, seed: int) -> Problem:
    """One matrix with eigenvalues from 1 / kappa to 1, so that the sum is as ill-conditioned as its terms.

    What the nodes do not share is where their minima lie.
    """
    rng = np.random.default_rng(seed)
    Q = np.linalg.qr(rng.standard_normal((d, d)))[0]
    A = Q * np.geomspace(1 / kappa, 1, d) @ Q.T
    return _quadratic(np.tile(A, (n, 1, 1)), rng.standard_normal((n, d)) @ A, 1.0, 1 / kappa)


def least_squares(n: int, d: int, seed: int, samples: int = 50) -> Problem:
    """Regression data drawn anew at every node, targets times a slope of the node's own."""
    from sklearn.datasets import make_regression

    rng = np.random.default_rng(seed)
    A, b = np.zeros((n, d, d)), np.zeros((n, d))
    for i in range(n):
        D, y = make_regression(samples, d, noise=10.0, random_state=int(rng.integers(2**31)))
        A[i], b[i] = 2 / samples * D.T @ D, 2 / samples * D.T @ y * rng.uniform(0.01, 5)
    eigenvalues = np.linalg.eigvalsh(A)
    return _quadratic(A, b, float(eigenvalues.max()), float(eigenvalues.min()))


def logistic(n: int, d: int, seed: int, samples: int = 50) -> Problem:
    """Two classes drawn anew at every node; logistic loss and ``|x|^2 / 2``, so that mu = 1."""
    from sklearn.datasets import make_classification

    rng = np.random.default_rng(seed)
    data = np.zeros((n, samples, d))
    for i in range(n):
        D, y = make_classification(samples, d, n_redundant=0, random_state=int(rng.integers(2**31)))
        data[i] = D * (2 * y - 1)[:, None]

    def probabilities(X: Array, part: Array) -> Array:
        return 1 / (1 + np.exp(np.clip(np.einsum("nsd,nd->ns", part, X), -500, 500)))

    def gradients(X: Array, part: Array = data) -> Array:
        return X - np.einsum("nsd,ns->nd", part, probabilities(X, part)) / samples

    def gradient(i: int, x: Array) -> Array:
        p = 1 / (1 + np.exp(np.clip(data[i] @ x, -500, 500)))
        return np.asarray(x - p @ data[i] / samples)

    def newton(X: Array, part: Array, residual: Callable[[Array], Array], together: bool) -> Array:
        for _ in range(50):
            r = residual(X)
            if np.abs(r).max() < 1e-13:
                break
            p = probabilities(X, part)
            H = np.eye(d) + np.einsum("nsd,ns,nse->nde", part, p * (1 - p), part) / samples
            if together:
                X = X - np.linalg.solve(H.mean(0), r.mean(0))
            else:
                X = X - np.linalg.solve(H, r[..., None])[..., 0]
        return X

    def dual(Y: Array, part: Array = data) -> Array:
        return newton(np.zeros(Y.shape), part, lambda X: gradients(X, part) - Y, False)

    x_star = newton(np.zeros((n, d)), data, lambda X: np.tile(gradients(X).mean(0), (n, 1)), True)[0]
    L = 1 + float(np.linalg.eigvalsh(np.einsum("nsd,nse->nde", data, data)).max()) / samples / 4
    return Problem(n, d, L, 1.0, x_star, gradient, gradients, dual, lambda i, y: dual(y[None], data[i : i + 1])[0])


# --------------------------------------------------------------------------------------------------------------- graphs


def cycle(n: int) -> Edges:
    """A ring."""
    return n, [(i, (i + 1) % n) for i in range(n)]


def complete(n: int, first: int = 0) -> Edges:
    """Everybody with everybody."""
    return n, [(first + i, first + j) for i in range(n) for j in range(i + 1, n)]


def barbell(k: int) -> Edges:
    """Two complete graphs of k nodes and one edge between them."""
    return 2 * k, [*complete(k)[1], *complete(k, k)[1], (k - 1, k)]


def grid(rows: int, columns: int) -> Edges:
    """A rectangle."""
    edges = [(r * columns + c, r * columns + c + 1) for r in range(rows) for c in range(columns - 1)]
    return rows * columns, [*edges, *((k, k + columns) for k in range((rows - 1) * columns))]


def geometric_graph(n: int, radius: float, seed: int) -> tuple[Edges, Array]:
    """Random points of the unit square, joined below `radius`; parts are joined by one random edge each."""
    from scipy.sparse import coo_array, csgraph

    rng = np.random.default_rng(seed)
    points = rng.random((n, 2))
    near = np.linalg.norm(points[:, None] - points, axis=2) <= radius
    edges = [(int(i), int(j)) for i, j in zip(*np.nonzero(np.triu(near, 1)), strict=True)]
    i, j = np.array(edges, dtype=int).reshape(-1, 2).T
    parts, label = csgraph.connected_components(coo_array((np.ones(len(i)), (i, j)), shape=(n, n)), directed=False)
    for k in range(parts - 1):
        a, b = (int(rng.choice(np.flatnonzero(label == part))) for part in (k, k + 1))
        edges.append((min(a, b), max(a, b)))
    return (n, edges), points
