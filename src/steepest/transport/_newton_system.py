"""The sparse Newton system: which entries of the plan are kept, and how the system is solved.

In variables scaled by the square roots of the diagonal the matrix is ``[[d I, N], [N', d I]]`` with
``N = diag(r)^-1/2 B diag(c)^-1/2``, so that plain conjugate gradients are those preconditioned by the diagonal.
Eliminating the longer block leaves ``d I - N' N / d``, on which they need half the iterations.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from scipy.linalg import LinAlgError, cho_factor, cho_solve
from scipy.sparse.linalg import splu

__all__ = ["Entries", "largest_entries", "newton_direction"]

Array = NDArray[np.float64]
DENSEST = 0.2  # beyond this share a product with the dense plan is cheaper
TRIES = 12
SPARSE_FACTOR = 0.03  # share of nonzeros of the Schur complement up to which a sparse factorization wins
LEAST_CG = 100


class Entries:
    """The kept entries of a plan P (n, m): their places in its flat form, or None for all of them."""

    def __init__(self, P: Array, places: NDArray[np.intp] | None) -> None:
        self.P, self.places = P, places

    @property
    def density(self) -> float:
        """Kept share of the entries."""
        return 1.0 if self.places is None else len(self.places) / self.P.size

    def matrix(self) -> Any:
        """B, in rows (CSR), or P itself where all entries are kept."""
        if self.places is None:
            return self.P
        n, m = self.P.shape
        rows, columns = np.divmod(self.places, m)
        starts = np.searchsorted(rows, np.arange(n + 1)).astype(np.int32)
        values = self.P.ravel()[self.places]
        return sparse.csr_array((values, columns.astype(np.int32), starts), shape=(n, m))


def largest_entries(P: Array, sparsity: float, dropped: float | None) -> Entries:
    """Keep the ``ceil(sparsity n m)`` largest entries, and more until the mass that is left out is at most `dropped`.

    With ``dropped=None`` the number alone counts. The threshold is lowered by factors of ten, at most 12 times; where
    more than 20 % are needed (and not asked for), all entries are.
    """
    n_kept = math.ceil(sparsity * P.size)
    if n_kept >= P.size:
        return Entries(P, None)
    flat = P.ravel()
    tau = float(np.partition(flat, P.size - n_kept)[P.size - n_kept])
    places = np.flatnonzero(flat >= tau)
    if dropped is None:
        return Entries(P, places)
    total = float(P.sum())
    for _ in range(TRIES):
        if total - float(flat[places].sum()) <= dropped:
            break
        tau *= 0.1
        places = np.flatnonzero(flat >= tau)
        if len(places) > max(DENSEST * P.size, n_kept):
            return Entries(P, None)
    return Entries(P, places)


def newton_direction(
    B: Any,
    r: Array,
    c: Array,
    g: Array,
    h: Array,
    *,
    damping: float,
    solver: str,
    cg_tol: float,
    cg_maxiter: int | None,
) -> tuple[Array, Array, int, bool]:
    """Solve ``[[(1 + damping) diag(r), B], [B', (1 + damping) diag(c)]] (du, dv) = (g, h)``, g and h of equal sum.

    Returns
    -------
    du, dv, n_cg, direct
        The solution orthogonal (in the diagonal's inner product) to (1, -1); iterations of conjugate gradients, and
        whether the system was factored in the end.
    """
    n, m = B.shape
    if m > n:
        dv, du, n_cg, direct = newton_direction(
            B.T, c, r, h, g, damping=damping, solver=solver, cg_tol=cg_tol, cg_maxiter=cg_maxiter
        )
        return du, dv, n_cg, direct
    d = 1.0 + damping
    root_r, root_c = np.sqrt(r), np.sqrt(c)
    N: Any
    if sparse.issparse(B):
        N = B.tocsr().copy()
        N.data /= np.repeat(root_r, np.diff(N.indptr))
        N.data /= root_c[N.indices]
        Nt = N.T.tocsr()
        nnz = N.nnz
    else:
        N = B / root_r[:, None]
        N /= root_c
        Nt, nnz = N.T, N.size
    h = h - c * ((h.sum() - g.sum()) / c.sum())
    top, rhs = g / root_r, h / root_c
    rhs = rhs - Nt @ top / d
    y, n_cg, done = np.zeros(m), 0, False
    if solver != "direct":
        budget = cg_maxiter if cg_maxiter is not None else _cg_budget(n, m, nnz, solver)
        y, n_cg, done = _conjugate_gradients(N, Nt, d, rhs, cg_tol, budget)
    direct = solver == "direct" or (solver == "auto" and not done)
    if direct:
        y = _factored(N, Nt, d, rhs)
    x = (top - N @ y) / d
    du, dv = x / root_r, y / root_c
    k = (r @ du - c @ dv) / (r.sum() + c.sum())
    return du - k, dv + k, n_cg, direct


def _cg_budget(n: int, m: int, nnz: int, solver: str) -> int:
    """Iterations before ``auto`` factors the system: never more than about what the factorization costs."""
    if solver == "cg":
        return 20 * (n + m)
    factor = m**3 / 3 / (40 * nnz)
    return int(min(max(LEAST_CG, factor), max(500, n + m)))


def _conjugate_gradients(N: Any, Nt: Any, d: float, rhs: Array, rtol: float, maxiter: int) -> tuple[Array, int, bool]:
    """Solve ``(d I - N' N / d) y = rhs``; SciPy's loop costs as much again as the products at this size."""
    y = np.zeros_like(rhs)
    residual, p = rhs.copy(), rhs.copy()
    rho = float(residual @ residual)
    limit = rtol**2 * rho
    for k in range(maxiter):
        if rho <= limit:
            return y, k, True
        q = Nt @ (N @ p)
        q *= -1 / d
        q += d * p
        curvature = float(p @ q)
        if not curvature > 0:  # rounding on a singular system: nothing more to gain
            return y, k, False
        alpha = rho / curvature
        y += alpha * p
        residual -= alpha * q
        rho, rho_old = float(residual @ residual), rho
        p *= rho / rho_old
        p += residual
    return y, maxiter, rho <= limit


def _factored(N: Any, Nt: Any, d: float, rhs: Array) -> Array:
    """Solve ``(d I - N' N / d) y = rhs`` by a factorization, sparse where it stays so."""
    S = Nt @ N
    m = S.shape[0]
    thin = sparse.issparse(S) and S.nnz <= SPARSE_FACTOR * m * m
    S = S.tocsc() if thin else S.toarray() if sparse.issparse(S) else S
    S *= -1 / d
    shift = 1e-15
    while True:
        try:
            if thin:
                A = (S + (d + shift) * sparse.eye_array(m, format="csc")).tocsc()
                options = {"SymmetricMode": True}
                y = splu(A, permc_spec="MMD_AT_PLUS_A", diag_pivot_thresh=0.0, options=options).solve(rhs)
            else:
                A = S.copy()
                A.flat[:: m + 1] += d + shift
                y = cho_solve(cho_factor(A, overwrite_a=True, check_finite=False), rhs, check_finite=False)
            if np.isfinite(y).all() or shift > 1:
                return np.asarray(y)
        except (LinAlgError, RuntimeError):  # singular to rounding: (1, -1), or parts that nothing connects
            if shift > 1:
                raise
        shift *= 100
