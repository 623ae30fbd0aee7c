r"""Second moments of SGD at an interpolating minimum, in the coordinates of the samples.

With per-sample matrices ``H_i = A_i^T A_i``, ``H = (1/n) sum_i H_i`` and the distance d to the minimum, ``M = E d d^T``
follows

    M <- M - 2 lr C(M) + lr^2 D(M),        C(M) = (H M + M H) / 2,
    D(M) = (1 - p) H M H + p (1/n) sum_i H_i M H_i,

where ``p = (n - B) / (B (n - 1))`` for batches without replacement and ``1/B`` with it: from
``E H_b M H_b = B^-2 sum_ij P(i, j in b) H_i M H_j``. C and D are self-adjoint, and the map keeps positive matrices
positive, so that its spectral radius is an eigenvalue with a positive eigenvector: M stays bounded on range(H) exactly
if ``lr max <M, D M> / <M, C M> <= 2``.

Everything happens in range(H), of dimension r <= n C: with ``K = A A^T / n = U diag(s) U^T`` the rows of
``a = sqrt(n) U diag(sqrt(s))`` are A in an orthonormal basis in which H is ``diag(s)``. A product with D costs
O(n C r^2); C is division by elements ``(s_k + s_l) / 2``.
"""

from __future__ import annotations

import numpy as np
import torch
from scipy.sparse.linalg import LinearOperator, eigsh
from torch import Tensor

__all__ = ["Coordinates", "critical_curvature", "noise_fraction", "second_moment_step"]

RANK_FLOOR = 1e-12  # eigenvalues of H below this times the largest are zero


def noise_fraction(n: int, batch_size: int, replacement: bool) -> float:
    """Give p, the weight of the per-sample term: 1 for single samples, 0 for the full batch without replacement."""
    if replacement:
        return 1 / batch_size
    return 0.0 if batch_size == n else (n - batch_size) / (batch_size * (n - 1))


class Coordinates:
    """The per-sample factors in an orthonormal basis of range(H), in which H is diagonal.

    Attributes
    ----------
    rows : Tensor of shape (n, C, r), float64
    eigenvalues : Tensor of shape (r,), float64
        Of H, ascending, positive.
    """

    def __init__(self, rows: Tensor, eigenvalues: Tensor) -> None:
        self.rows, self.eigenvalues = rows, eigenvalues

    @classmethod
    def from_gram(cls, K: Tensor, n: int) -> Coordinates:
        """From ``K = A A^T / n``, of order n C."""
        s, U = torch.linalg.eigh(K)
        kept = s > RANK_FLOOR * s[-1].clamp(min=0)
        return cls((U[:, kept] * (n * s[kept]).sqrt()).view(n, -1, int(kept.sum())), s[kept])

    @classmethod
    def from_rows(cls, A: Tensor) -> Coordinates:
        """From the factors (n, C, P) themselves, where P < n C."""
        n, C, P = A.shape
        s, V = torch.linalg.eigh(A.view(n * C, P).T @ A.view(n * C, P) / n)
        kept = s > RANK_FLOOR * s[-1].clamp(min=0)
        return cls(A @ V[:, kept], s[kept])

    def noise(self, M: Tensor) -> Tensor:  # (r, r) -> (r, r)
        """Compute ``(1/n) sum_i H_i M H_i``."""
        n, C, r = self.rows.shape
        blocks = (self.rows.reshape(n * C, r) @ M).view(n, C, r) @ self.rows.mT  # A_i M A_i^T
        return self.rows.reshape(n * C, r).T @ (blocks @ self.rows).reshape(n * C, r) / n

    def D(self, M: Tensor, p: float) -> Tensor:  # (r, r) -> (r, r)
        """Compute ``(1 - p) H M H + p (1/n) sum_i H_i M H_i``."""
        s = self.eigenvalues
        drift = (1 - p) * s[:, None] * M * s
        return drift if p == 0 else drift + p * self.noise(M)


def second_moment_step(coordinates: Coordinates, M: Tensor, lr: float, p: float) -> Tensor:
    """Make one step of the recursion for M, in the coordinates' basis."""
    s = coordinates.eigenvalues
    return M - lr * (s[:, None] + s) * M + lr**2 * coordinates.D(M, p)


def critical_curvature(coordinates: Coordinates, p: float) -> float:
    """Compute ``lambda_max(C^+ D)`` on range(H): SGD is stable in mean square exactly if ``lr <= 2 / it``.

    By Lanczos on ``S = C^-1/2 D C^-1/2`` from the identity, which is never orthogonal to the wanted eigenvector: that
    is ``C^1/2 M`` with M positive, and its product with the identity is ``sum_k sqrt(s_k) M_kk > 0``.

    Raises
    ------
    ArithmeticError
        The value lies below ``lambda_max(H)``, which is impossible.
    """
    s = coordinates.eigenvalues
    r = len(s)
    if r == 0:
        return 0.0
    root = ((s[:, None] + s) / 2).rsqrt()

    def product(x: np.ndarray) -> np.ndarray:
        M = root * torch.from_numpy(np.ascontiguousarray(x, dtype=np.float64)).view(r, r)
        S = root * coordinates.D((M + M.T) / 2, p)
        return ((S + S.T) / 2).numpy().ravel()

    if r == 1:
        value = float(product(np.ones(1))[0])
    else:
        S = LinearOperator((r * r, r * r), matvec=product, dtype=np.float64)
        start, rng = np.eye(r).ravel(), np.random.default_rng(0)
        value = float(eigsh(S, 1, which="LA", v0=start, tol=1e-10, rng=rng, return_eigenvectors=False)[0])
    if value < float(s[-1]) * (1 - 1e-6):
        raise ArithmeticError(
            f"the exact threshold's curvature {value:.6g} lies below lambda_max(H) {float(s[-1]):.6g}"
        )
    return value
