"""The exact augmented Lagrangian: its value, its gradient, and what regularity its steps need.

M(x, lam) = f + lam' c + eta1/2 ||c||^2 + eta2/2 ||gL||^2,     gL = grad f + G' lam
grad_x M = gL + eta2 H gL + eta1 G' c,    grad_lam M = c + eta2 G gL,    H the Hessian of the Lagrangian
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from scipy.sparse.csgraph import structural_rank
from scipy.sparse.linalg import LinearOperator, lsmr

from steepest.constrained._problem import Matrix, Point
from steepest.curvature import extreme_eigenvalues

__all__ = [
    "frobenius",
    "lagrangian_gradient",
    "merit",
    "merit_floor",
    "merit_gradient",
    "reduced_smallest",
    "singular_values",
]

Vector = NDArray[np.float64]


def lagrangian_gradient(p: Point, lam: Vector) -> Vector:
    return p.g + p.G.T @ lam


def merit_floor(f: float, c: Vector, lam: Vector, eta1: float) -> float:
    """M without its last term, which is not negative: a lower bound that needs no derivatives."""
    return float(f + lam @ c + eta1 / 2 * (c @ c))


def merit(p: Point, lam: Vector, eta1: float, eta2: float) -> float:
    gL = lagrangian_gradient(p, lam)
    return merit_floor(p.f, p.c, lam, eta1) + float(eta2 / 2 * (gL @ gL))


def merit_gradient(p: Point, lam: Vector, H: Matrix, eta1: float, eta2: float) -> Vector:  # (n + m,)
    gL = lagrangian_gradient(p, lam)
    return np.concatenate([gL + eta2 * (H @ gL) + eta1 * (p.G.T @ p.c), p.c + eta2 * (p.G @ gL)])


# ---------------------------------------------------------------------------------------------------------- regularity

RESOLVED = 1e-7  # smallest ratio of singular values that Lanczos on G G' can tell from zero


def singular_values(G: Matrix, seed: int) -> tuple[float, float, bool]:
    """Smallest and largest singular value of G (m, n), and whether the rows are dependent.

    Dense: ``sigma_min <= 1e-10 max(1, sigma_max)``. Sparse: the pattern's rank, then Lanczos on ``G G'``, which squares
    the singular values and tells ratios from 0 only above 1e-7.
    """
    m = G.shape[0]
    if not sparse.issparse(G):
        s = np.linalg.svd(G, compute_uv=False)
        return float(s[-1]), float(s[0]), bool(s[-1] <= 1e-10 * max(1.0, s[0]))
    if structural_rank(G) < m:
        return 0.0, frobenius(G), True
    if m <= 2:
        return singular_values(G.toarray(), seed)
    gram = LinearOperator((m, m), matvec=lambda v: G @ (G.T @ v), dtype=np.float64)
    low, high = _ends(gram, seed)
    low, high = math.sqrt(max(low, 0.0)), math.sqrt(max(high, 0.0))
    return low, high, low <= RESOLVED * high or low <= 1e-10


def reduced_smallest(H: Matrix, G: Matrix, seed: int) -> float:
    """Smallest eigenvalue of H on the null space of G, inf where that is {0}; or a positive lower bound.

    Sparse: Gershgorin's disks first, which bound it from below; then Lanczos on ``P H P + c (I - P)`` with the
    projector P by LSMR and c above the spectrum, so that the row space cannot hold the smallest eigenvalue.
    """
    m, n = G.shape
    if m == n:
        return math.inf
    if not sparse.issparse(H):
        Q = np.linalg.qr(G.T, mode="complete")[0]
        Z = Q[:, m:]
        return float(np.linalg.eigvalsh(Z.T @ H @ Z)[0])
    diagonal = H.diagonal()
    disks = diagonal - (np.asarray(abs(H).sum(axis=1)).ravel() - abs(diagonal))
    if disks.min() >= 1e-6:
        return float(disks.min())
    GT, above = G.T.tocsr(), frobenius(H) + 1.0

    def project(v: Vector) -> Vector:
        return v - GT @ lsmr(GT, v, atol=1e-12, btol=1e-12, maxiter=10 * m)[0]

    def product(v: Vector) -> Vector:
        v = np.ravel(v)
        w = project(v)
        return project(H @ w) + above * (v - w)

    return _ends(LinearOperator((n, n), matvec=product, dtype=np.float64), seed)[0]


def _ends(A: LinearOperator, seed: int) -> tuple[float, float]:
    """Smallest and largest eigenvalue of a symmetric operator by Lanczos, or what 300 products give."""
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # short of the tolerance: Ritz values are used as they are
        found: Any = extreme_eigenvalues(A, 2, which="BE", tol=1e-8, max_matvecs=300, check_symmetric=False, seed=seed)
    return float(found.values[-1]), float(found.values[0])


def frobenius(A: Matrix) -> float:
    """Frobenius norm of a dense or sparse matrix."""
    return float(np.linalg.norm(A.data if sparse.issparse(A) else A))
