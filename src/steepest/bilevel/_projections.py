r"""Euclidean projection on sets cut out by affine rows.   minimize |w - w0|^2 / 2   over w in W,  M w + c <= 0 (or = 0)

    free, equalities only     w = w0 - V V^T w0 + w_p,   V an orthonormal basis of the rows, w_p the least-norm solution
    otherwise, by the dual    w(lam) = P_W(w0 - M^T lam),   lam <- clip(mu + (M w(mu) + c) / |M|^2)

The dual iteration is accelerated, restarted where it turns back (O'Donoghue and Candes, Adaptive restart for
accelerated gradient schemes, 2015) and starts from the multipliers of the last call. Newton steps on the active rows
are tried first: where W is the whole space or a box they are exact as soon as they know which rows and bounds are
active, and the projections of one run are near each other. Rows are scaled to norm 1, which leaves the set as it is.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from steepest.core.errors import ConvergenceWarning, value_error
from steepest.core.linalg import cg, operator_norm

__all__ = ["AffineProjection", "SetProjection"]

SetProjection = Callable[[Tensor], Tensor]

TOLERANCE = 1e-12  # of the dual's residual, rows of norm 1, relative to 1 + |w0|
MAXITER = 50_000
DENSE_ROWS = 2000  # above it no Gram matrix of rows is formed
NEWTON_STEPS = 12
NEWTON_EACH = 50  # dual steps


class AffineProjection:
    """Projection of ``w = (w_1, ..., w_q)`` on ``{w_i in W_i, sum_i M_i w_i + c <= 0 (or = 0)}``.

    Parameters
    ----------
    matrices : sequence of Tensor (p, n_i)
        Strided or sparse.
    c : Tensor (p,)
    equality : bool Tensor (p,)
    sets : sequence of callable or None
        Projections on W_i; None where W_i is the whole space.

    Raises
    ------
    ValueError
        A row of zeros that its constant violates, or equalities that contradict one another.

    Examples
    --------
    >>> row = torch.ones(1, 2)
    >>> project = AffineProjection([row], torch.zeros(1), torch.tensor([False]), [None])
    >>> project(torch.tensor([2.0, 0.0]))[0].tolist()
    [1.0, -1.0]
    """

    def __init__(
        self, matrices: Sequence[Tensor], c: Tensor, equality: Tensor, sets: Sequence[SetProjection | None]
    ) -> None:
        sparse = any(M.layout is not torch.strided for M in matrices)
        rows = [M.to_sparse_coo().coalesce() if sparse else M for M in matrices]
        self.sets = list(sets)
        self.coupled = [i for i, M in enumerate(rows) if bool(_entries(M).any())]  # the others are projected alone
        self.sizes = [rows[i].shape[1] for i in self.coupled]
        self.equality = equality
        self.free = all(sets[i] is None for i in self.coupled)
        joint = torch.cat([rows[i] for i in self.coupled], 1) if self.coupled else c.new_zeros(len(c), 0)
        norms = _row_norms(joint)
        self.scale = torch.where(norms > 0, norms, torch.ones_like(norms))
        self.empty = norms == 0
        self.M = _scale_rows(joint, 1 / self.scale)
        self.Mt = self.M.t().coalesce() if sparse else self.M.mT
        self.sparse = sparse
        self.lam = torch.zeros_like(c)
        self.tolerance = max(TOLERANCE, 32 * torch.finfo(c.dtype).eps)
        self.basis = self._row_basis() if self.free and bool(equality.all()) and not sparse else None
        self.set_offset(c)
        self.dense = self.basis is None and not sparse and len(c) <= DENSE_ROWS
        self.gram = self.M @ self.Mt if self.dense and self.free else None
        self.lipschitz = self._lipschitz()

    def set_offset(self, c: Tensor) -> None:
        """Use another constant with the same rows."""
        violated = torch.where(self.equality, c.abs(), c.clamp(min=0))
        if bool((violated[self.empty] > 0).any()):
            raise value_error("affine", "feasible", "a row of zeros that its constant violates")
        self.c = c / self.scale
        if self.basis is not None:
            self.particular = -(self.inverse_rows @ self.c)
            if _largest(self.M @ self.particular + self.c) > 1e3 * self.tolerance * (1 + _largest(self.c)):
                raise value_error("affine", "feasible", "equalities that contradict one another")

    def __call__(self, *points: Tensor) -> tuple[Tensor, ...]:
        """Project ``(w_1, ..., w_q)``, flat tensors.

        Warns
        -----
        ConvergenceWarning
            The dual iteration used up its budget; the set may be empty.
        """
        found = [w if project is None else project(w) for w, project in zip(points, self.sets, strict=True)]
        if self.coupled and len(self.c):
            w = self._project(torch.cat([points[i] for i in self.coupled]))
            for i, part in zip(self.coupled, w.split(self.sizes), strict=True):
                found[i] = part
        return tuple(found)

    def _project(self, w0: Tensor) -> Tensor:
        if self.basis is not None:
            return w0 - self.basis @ (self.basis.mT @ (w0 - self.particular))
        if self.free and bool(self.equality.all()):
            tolerance = self.tolerance * (1 + _largest(w0))
            self.lam, _ = cg(lambda v: self.M @ (self.Mt @ v), self.M @ w0 + self.c, self.lam, rtol=0, atol=tolerance)
            return w0 - self.Mt @ self.lam
        return self._dual(w0)

    def _dual(self, w0: Tensor) -> Tensor:
        tolerance = self.tolerance * (1 + _largest(w0))
        lam, t, residual = self.lam, 1.0, float("inf")
        mu = lam
        for k in range(MAXITER):
            if self.dense and k % NEWTON_EACH == 0:
                exact = self._newton(w0, lam, tolerance)
                if exact is not None:
                    self.lam, w = exact
                    return w
            w = self._in_sets(w0 - self.Mt @ mu)
            new = self._clip(mu + (self.M @ w + self.c) / self.lipschitz)
            residual = self.lipschitz * _largest(new - mu)
            if not residual > tolerance:  # also where it is NaN: the caller meets it in w
                self.lam = mu
                return w
            if float((mu - new) @ (new - lam)) > 0:
                t, lam = 1.0, new
            t_new = (1 + (1 + 4 * t * t) ** 0.5) / 2
            mu, lam, t = new + (t - 1) / t_new * (new - lam), new, t_new
        warnings.warn(
            f"the projection on the affine rows still had a residual of {residual:.1e} after {MAXITER} steps: "
            "is the set empty?",
            ConvergenceWarning,
            stacklevel=2,
        )
        self.lam = lam
        return self._in_sets(w0 - self.Mt @ lam)

    def _newton(self, w0: Tensor, lam: Tensor, tolerance: float) -> tuple[Tensor, Tensor] | None:
        """Take Newton steps on the rows that seem active and the entries that W leaves alone; None without success.

        Exact once both are right, where W bounds entries one by one; what is found is returned only if it is optimal.
        """
        for _ in range(NEWTON_STEPS):
            moved = w0 - self.Mt @ lam
            w = self._in_sets(moved)
            g = self.M @ w + self.c
            if _largest(self._clip(lam + g) - lam) <= tolerance:
                return lam, w
            active = self.equality | (lam + g > 0)
            rows, inside = active.nonzero().squeeze(1), w == moved
            kept = torch.where(active, lam, torch.zeros_like(lam))
            g = g + self.M @ (inside * (self.Mt @ (lam - kept)))
            G = self._gram_of(rows, inside)
            L, info = torch.linalg.cholesky_ex(G)
            if int(info) != 0:
                return None
            b = g[rows].unsqueeze(1)
            step = torch.cholesky_solve(b, L)
            step = step + torch.cholesky_solve(b - G @ step, L)
            lam = kept.index_add(0, rows, step.squeeze(1))
        return None

    def _gram_of(self, rows: Tensor, inside: Tensor) -> Tensor:
        if self.gram is not None:
            return self.gram[rows][:, rows]
        M = self.M[rows] * inside
        return M @ M.mT

    def _clip(self, lam: Tensor) -> Tensor:
        return torch.where(self.equality, lam, lam.clamp(min=0))

    def _in_sets(self, w: Tensor) -> Tensor:
        if self.free:
            return w
        parts = zip(self.coupled, w.split(self.sizes), strict=True)
        return torch.cat([part if (P := self.sets[i]) is None else P(part) for i, part in parts])

    def _row_basis(self) -> Tensor:  # (N, rank)
        U, S, Vh = torch.linalg.svd(self.M, full_matrices=False)
        limit = max(self.M.shape) * torch.finfo(S.dtype).eps
        kept = int((limit * S[:1] < S).sum())
        self.inverse_rows = Vh[:kept].mT @ (U[:, :kept] / S[:kept]).mT  # (N, p)
        return Vh[:kept].mT

    def _lipschitz(self) -> float:
        """Bound the squared norm of the rows from above."""
        if not self.coupled or self.basis is not None:
            return 1.0
        if not self.sparse:
            return float(torch.linalg.matrix_norm(self.M, 2)) ** 2
        norm = operator_norm(
            lambda v: self.M @ v,
            self.M.shape[1],
            adjoint=lambda v: self.Mt @ v,
            rtol=1e-3,
            seed=0,
            dtype=self.c.dtype,
            device=self.c.device,
        )
        return (1.1 * norm) ** 2


def _largest(v: Tensor) -> float:
    return float(v.abs().max()) if v.numel() else 0.0


def _entries(M: Tensor) -> Tensor:
    return M if M.layout is torch.strided else M.values()


def _row_norms(M: Tensor) -> Tensor:
    if M.layout is torch.strided:
        return torch.linalg.vector_norm(M, dim=1)
    squares = torch.zeros(M.shape[0], dtype=M.dtype, device=M.device)
    M = M.coalesce()
    return squares.index_add(0, M.indices()[0], M.values().square()).sqrt()


def _scale_rows(M: Tensor, by: Tensor) -> Tensor:
    if M.layout is torch.strided:
        return M * by.unsqueeze(1)
    M = M.coalesce()
    values = M.values() * by[M.indices()[0]]
    return torch.sparse_coo_tensor(M.indices(), values, M.shape, check_invariants=False, is_coalesced=True)
