"""What else recovers low-rank matrices, transcribed: ScaledGD, singular-value projection, soft-impute, SciPy, SCS.

All but the convex program measure through the same operators as ours, so that seconds compare algorithms. Every solver
has the form ``peer(A, y, shape, rank, ...) -> Recovery``, stops at a relative residual `tol`, and returns factors.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from steepest.core.extras import require
from steepest.landscape._sensing_arguments import as_measurements

__all__ = ["Recovery", "least_squares_on_factors", "nuclear_norm", "scaled_gd", "soft_impute", "svd_projection"]

Array = NDArray[Any]
Shape = tuple[int, int]


@dataclass
class Recovery:
    """What a peer found: factors of the matrix, iterations, the relative residual."""

    factors: tuple[Array, Array]
    n_iter: int
    residual: float

    @property
    def x(self) -> Array:
        """The matrix."""
        F, G = self.factors
        return np.asarray(F @ G.T)


def scaled_gd(
    A: Any, y: Array, shape: Shape, start: tuple[Array, Array], *, step_size: float, damping: float = 0.0,
    tol: float = 1e-6, maxiter: int = 2000,
) -> Recovery:  # fmt: skip
    """ScaledGD: gradients of the factors, each times the inverse of the other's ``G^T G + damping I``."""
    measurements, y_norm, (F, G) = as_measurements(A, shape), float(np.linalg.norm(y)), start
    eye, residual = damping * np.eye(F.shape[1]), math.inf
    for t in range(maxiter + 1):
        r, D = measurements.misfit(F, G, y)
        residual = float(np.linalg.norm(r)) / y_norm
        if residual <= tol or t == maxiter or not residual < 1e6:
            break
        left, right = np.linalg.solve(G.T @ G + eye, (D @ G).T).T, np.linalg.solve(F.T @ F + eye, (D.T @ F).T).T
        F, G = F - step_size * left, G - step_size * right
    return Recovery((F, G), t, residual)


def svd_projection(
    A: Any, y: Array, shape: Shape, rank: int, *, step_size: float = 0.75, tol: float = 1e-6, maxiter: int = 500
) -> Recovery:
    """Singular-value projection: a gradient step on the matrix, then its best approximation of the given rank."""
    measurements, y_norm = as_measurements(A, shape), float(np.linalg.norm(y))
    F, G, residual = np.zeros((shape[0], rank)), np.zeros((shape[1], rank)), math.inf
    for t in range(maxiter + 1):
        r, D = measurements.misfit(F, G, y)
        residual = float(np.linalg.norm(r)) / y_norm
        if residual <= tol or t == maxiter or not residual < 1e6:
            break
        U, S, Vt = np.linalg.svd(F @ G.T - step_size * _dense(D), full_matrices=False)
        F, G = U[:, :rank] * S[:rank], Vt[:rank].T
    return Recovery((F, G), t, residual)


def soft_impute(
    rows: Array, cols: Array, y: Array, shape: Shape, *, penalty: float, levels: int = 10, sweeps: int = 20,
    max_rank: int | None = None,
) -> Recovery:  # fmt: skip
    """Soft-impute: hidden entries are filled from the last matrix, whose singular values then lose `penalty`.

    Warm starts along a geometric path from the largest singular value down to `penalty` (a share of it).
    """
    filled = np.zeros(shape)
    np.put(filled, rows * shape[1] + cols, y)
    seen = np.zeros(shape, dtype=bool)
    seen[rows, cols] = True
    data, top, n_iter = filled.copy(), float(np.linalg.norm(filled, 2)), 0
    F = G = np.zeros((0, 0))
    for level in np.geomspace(1.0, penalty, levels) * top:
        for _ in range(sweeps):
            U, S, Vt = np.linalg.svd(filled, full_matrices=False)
            S = np.maximum(S - level, 0)[: max_rank or len(S)]
            k = max(1, int((S > 0).sum()))
            F, G = U[:, :k] * S[:k], Vt[:k].T
            fresh = np.where(seen, data, F @ G.T)
            change = float(np.linalg.norm(fresh - filled)) / (float(np.linalg.norm(filled)) or 1.0)
            filled, n_iter = fresh, n_iter + 1
            if change < 1e-4:
                break
    r = (F @ G.T)[rows, cols] - y
    return Recovery((F, G), n_iter, float(np.linalg.norm(r) / np.linalg.norm(y)))


def least_squares_on_factors(
    A: Array, y: Array, shape: Shape, start: tuple[Array, Array], *, tol: float = 1e-6
) -> Recovery:
    """`scipy.optimize.least_squares` on the entries of both factors, with the exact Jacobian."""
    from scipy.optimize import least_squares

    (n1, n2), k, flat = shape, start[0].shape[1], A.reshape(len(A), -1)
    y_norm = float(np.linalg.norm(y))

    def split(z: Array) -> tuple[Array, Array]:
        return z[: n1 * k].reshape(n1, k), z[n1 * k :].reshape(n2, k)

    def residuals(z: Array) -> Array:
        F, G = split(z)
        return np.asarray(flat @ (F @ G.T).ravel() - y) / y_norm

    def jacobian(z: Array) -> Array:
        F, G = split(z)
        stack = A.reshape(-1, n1, n2)
        left = (stack.reshape(-1, n2) @ G).reshape(len(A), -1)
        right = np.matmul(stack.transpose(0, 2, 1), F).reshape(len(A), -1)
        return np.concatenate([left, right], axis=1) / y_norm

    found = least_squares(
        residuals, np.concatenate([part.ravel() for part in start]), jacobian, method="trf", tr_solver="lsmr",
        ftol=None, xtol=None, gtol=tol**2, max_nfev=60,
    )  # fmt: skip
    return Recovery(split(found.x), int(found.nfev), float(np.linalg.norm(found.fun)))


def nuclear_norm(A: Array, y: Array, shape: Shape, *, eps: float = 1e-7, max_iters: int = 5000) -> Recovery:
    """Solve the convex program, smallest nuclear norm that fits, by cvxpy and SCS."""
    cp: Any = require("cvxpy", "optim", what="the convex program")
    X = cp.Variable(shape)
    flat = A.reshape(len(A), -1)
    scale = float(np.linalg.norm(y)) / math.sqrt(len(y))  # of a single value, so that SCS's tolerances are relative
    fit = flat @ cp.vec(X, order="C") / scale == y / scale
    problem = cp.Problem(cp.Minimize(cp.normNuc(X)), [fit])
    problem.solve(solver="SCS", eps=eps, max_iters=max_iters)
    if X.value is None:
        raise RuntimeError(f"SCS found nothing: {problem.status}")
    U, S, Vt = np.linalg.svd(np.asarray(X.value), full_matrices=False)
    r = flat @ np.asarray(X.value).ravel() - y
    n_iter = int(problem.solver_stats.num_iters or 0)
    return Recovery((U * S, Vt.T), n_iter, float(np.linalg.norm(r) / np.linalg.norm(y)))


def _dense(D: Any) -> Array:
    return np.asarray(D.toarray() if hasattr(D, "toarray") else D)
