"""What else solves these systems: preconditioned and deflated conjugate gradients, algebraic multigrid, sparse LU.

Each is set up for a matrix, `set_up(A, level)`, and then solves, `solve(b, rtol, watch)`, which returns x and the
number of iterations; `watch(x)` sees every iterate. All stop when the residual is `rtol` of the right-hand side.
`level` is the sum of a cell's indices: what IC(0) needs to work on many cells at once.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import linalg, sparse
from scipy.sparse.linalg import LinearOperator, cg, spilu, splu

from steepest.core.extras import require
from steepest.physics._ritz import matrix_operator, ritz_mixtures

__all__ = [
    "PACKAGES",
    "SOLVERS",
    "Solve",
    "deflated_cg",
    "incomplete_cholesky",
    "measured",
    "plain_cg",
    "ritz_vectors",
]

Vector = NDArray[np.float64]
Levels = NDArray[np.int64]
Watch = Callable[[Vector], Any]
Solve = Callable[[Vector, float, Watch | None], tuple[Vector, int]]

PACKAGES = {"pyamg, Ruge-Stuben": "pyamg", "pyamg, aggregation": "pyamg"}
MAXITER = 5000
DEFLATED = 16  # Ritz vectors of as many Lanczos steps, as in the authors' test; more steps cost more than they save
ILU: dict[str, Any] = {"drop_tol": 1e-3, "fill_factor": 5.0}
SYMMETRIC: dict[str, Any] = {"diag_pivot_thresh": 0.0, "options": {"SymmetricMode": True}}  # no pivoting


def measured(set_up: Callable[..., Solve], A: Any, level: Levels) -> tuple[Solve, float]:
    """Set a solver up; it, and the CPU seconds this took."""
    start = time.process_time()
    solve = set_up(A, level)
    return solve, time.process_time() - start


# ------------------------------------------------------------------------------------------------- conjugate gradients


def plain_cg(A: Any, level: Levels) -> Solve:
    """SciPy's conjugate gradients as they are; the diagonal is nearly constant and would precondition nothing."""
    return _scipy_cg(A, None)


def _scipy_cg(A: Any, apply: Callable[[Vector], Vector] | None) -> Solve:
    M = None if apply is None else LinearOperator(A.shape, matvec=apply, dtype=np.float64)

    def solve(b: Vector, rtol: float, watch: Watch | None = None) -> tuple[Vector, int]:
        count = 0

        def seen(x: Vector) -> None:
            nonlocal count
            count += 1
            if watch is not None:
                watch(x)

        return cg(A, b, rtol=rtol, maxiter=MAXITER, M=M, callback=seen)[0], count

    return solve


def incomplete_cholesky(A: Any, level: Levels) -> Callable[[Vector], Vector]:
    """IC(0): L with the pattern of A's lower triangle and ``(L L')_ij = A_ij`` on it; the function r -> (L L')^-1 r.

    On these grids two neighbors of a cell are never neighbors of each other, so that elimination changes the diagonal
    alone: ``l_ii^2 = a_ii - sum_(j < i) a_ij^2 / l_jj^2``, level by level.
    """
    order = np.argsort(level, kind="stable")
    starts = np.searchsorted(level[order], np.arange(level.max() + 2))
    lower = sparse.tril(A, -1, format="csr")
    squares = lower.power(2)[order]
    pivots = A.diagonal()
    inverse = np.zeros(len(pivots))
    for begin, end in itertools.pairwise(starts):
        rows = order[begin:end]
        pivots[rows] -= squares[begin:end] @ inverse
        inverse[rows] = 1 / pivots[rows]
    roots = np.sqrt(pivots)
    L = (lower @ sparse.diags_array(1 / roots) + sparse.diags_array(roots)).tocsc()
    triangular = splu(L, permc_spec="NATURAL", **SYMMETRIC)
    return lambda r: triangular.solve(triangular.solve(r), "T")


def _ic_cg(A: Any, level: Levels) -> Solve:
    return _scipy_cg(A, incomplete_cholesky(A, level))


def _ilu_cg(A: Any, level: Levels) -> Solve:
    """SuperLU's incomplete factors, dropped by size alone: its own rules break their symmetry, and CG stagnates."""
    return _scipy_cg(A, spilu(A.tocsc(), permc_spec="NATURAL", drop_rule="basic", **ILU, **SYMMETRIC).solve)


def ritz_vectors(A: Any) -> Vector:  # (n, 16)
    """The Ritz vectors of a short Lanczos run."""
    mixtures = ritz_mixtures(matrix_operator(A), DEFLATED, generator=torch.Generator().manual_seed(0))
    return np.ascontiguousarray(mixtures.vectors.numpy().T)


def deflated_cg(A: Any, W: Vector, precondition: Callable[[Vector], Vector] | None = None) -> Solve:
    """Conjugate gradients A-orthogonal to the columns of W, on which the start is exact (Saad et al.)."""
    AW = A @ W
    coarse = linalg.cho_factor(W.T @ AW)

    def solve(b: Vector, rtol: float, watch: Watch | None = None) -> tuple[Vector, int]:
        x = W @ linalg.cho_solve(coarse, W.T @ b)
        r, p, rz = b - A @ x, np.zeros_like(b), np.inf
        limit, count = rtol * np.linalg.norm(b), 0
        while np.linalg.norm(r) > limit and count < MAXITER:
            z = r if precondition is None else precondition(r)
            rz, previous = float(r @ z), rz
            p = z + rz / previous * p - W @ linalg.cho_solve(coarse, AW.T @ z)
            Ap = A @ p
            step = rz / float(p @ Ap)
            x, r = x + step * p, r - step * Ap
            count += 1
            if watch is not None:
                watch(x)
        return x, count

    return solve


# ------------------------------------------------------------------------------------------------- multigrid and direct


@contextmanager
def _global_numbers_kept() -> Iterator[None]:
    """Seed NumPy's global generator, from which pyamg draws, and put it back."""
    before = np.random.get_state()  # noqa: NPY002
    np.random.seed(0)  # noqa: NPY002
    try:
        yield
    finally:
        np.random.set_state(before)  # noqa: NPY002


def _multigrid(kind: str) -> Callable[[Any, Levels], Solve]:
    def set_up(A: Any, level: Levels) -> Solve:
        pyamg = require("pyamg", "physics", what="the multigrid row")
        with _global_numbers_kept():
            hierarchy = getattr(pyamg, kind)(sparse.csr_matrix(A))

        def solve(b: Vector, rtol: float, watch: Watch | None = None) -> tuple[Vector, int]:
            norms: list[float] = []
            with _global_numbers_kept():
                x = hierarchy.solve(b, tol=rtol, accel="cg", maxiter=200, residuals=norms, callback=watch)
            return x, len(norms) - 1

        return solve

    return set_up


def _sparse_lu(A: Any, level: Levels) -> Solve:
    factors = splu(A.tocsc(), permc_spec="MMD_AT_PLUS_A", **SYMMETRIC)

    def solve(b: Vector, rtol: float, watch: Watch | None = None) -> tuple[Vector, int]:
        return factors.solve(b), 1

    return solve


SOLVERS: dict[str, Callable[[Any, Levels], Solve]] = {
    "CG": plain_cg,
    "IC(0)-PCG": _ic_cg,
    "ILU-PCG": _ilu_cg,
    "deflated CG": lambda A, level: deflated_cg(A, ritz_vectors(A)),
    "pyamg, Ruge-Stuben": _multigrid("ruge_stuben_solver"),
    "pyamg, aggregation": _multigrid("smoothed_aggregation_solver"),
    "sparse LU": _sparse_lu,
}
