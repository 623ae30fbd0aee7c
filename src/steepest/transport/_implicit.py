"""Gradients through the plan by the implicit-function theorem, without unrolling a single iteration.

The plan P(u, v) = exp(u + v' - M / reg) has the marginals a, b. With G = dL/dP and H the full negative Hessian of the
dual, H (p, q) = ((G P) 1, (G P)' 1) gives dL/dM = P (p + q' - G) / reg, dL/da = p, dL/db = q, up to (1, -1) in (p, q).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from steepest.transport._arguments import double
from steepest.transport._newton_system import newton_direction

__all__ = ["differentiable_plan"]

Array = NDArray[np.float64]
Solution = tuple[Array, Array, Array]  # plan, log_u, log_v, all entries, in double precision


def differentiable_plan(a: Tensor, b: Tensor, M: Tensor, reg: float, solve: Callable[[], Solution]) -> Tensor:
    """The plan that `solve` finds, as a function of a, b and M for autograd."""
    plan: Tensor = _ImplicitPlan.apply(a, b, M, reg, solve)
    return plan


class _ImplicitPlan(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor, M: Tensor, reg: float, solve: Callable[[], Solution]) -> Tensor:
        ctx.solution, ctx.reg, ctx.cost = solve(), reg, double(M)
        ctx.dtypes = a.dtype, b.dtype, M.dtype
        return torch.from_numpy(ctx.solution[0]).to(M.dtype)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        P, log_u, log_v = ctx.solution
        p, q, dM = implicit_gradients(P, log_u, log_v, ctx.cost, ctx.reg, double(grad))
        found = (torch.from_numpy(x).to(dtype) for x, dtype in zip((p, q, dM), ctx.dtypes, strict=True))
        wanted = (x if need else None for x, need in zip(found, ctx.needs_input_grad, strict=False))
        return (*wanted, None, None)


def implicit_gradients(
    P: Array, log_u: Array, log_v: Array, M: Array, reg: float, G: Array
) -> tuple[Array, Array, Array]:
    """dL/da (n,), dL/db (m,), dL/dM (n, m); at weights that are zero the derivatives from above."""
    rows, columns = np.flatnonzero(np.isfinite(log_u)), np.flatnonzero(np.isfinite(log_v))
    inside = np.ix_(rows, columns)
    kept, sensitivity = P[inside], G[inside]
    GP = sensitivity * kept
    p, q = np.zeros(len(P)), np.zeros(P.shape[1])
    p[rows], q[columns], _, _ = newton_direction(
        kept, kept.sum(1), kept.sum(0), GP.sum(1), GP.sum(0), damping=0.0, solver="auto", cg_tol=1e-12, cg_maxiter=None
    )
    dM = np.zeros_like(P)
    dM[inside] = kept * (p[rows][:, None] + q[columns] - sensitivity) / reg
    # a first grain of mass in an empty row is spread by softmax(log v - M / reg), and it costs what that changes
    empty_rows, empty_columns = np.isneginf(log_u), np.isneginf(log_v)
    p[empty_rows] = _from_above(G[empty_rows], M[empty_rows], reg, log_v, q)
    q[empty_columns] = _from_above(G.T[empty_columns], M.T[empty_columns], reg, log_u, p)
    return p, q, dM


def _from_above(G: Array, M: Array, reg: float, log_v: Array, q: Array) -> Array:
    exponent = log_v - M / reg
    weights = np.exp(exponent - exponent.max(axis=1, keepdims=True))
    weights /= weights.sum(axis=1, keepdims=True)
    return np.asarray((weights * (G - q)).sum(axis=1))
