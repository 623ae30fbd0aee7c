"""Dense and matrix-free linear algebra that several methods share, on tensors.

Conjugate gradients for many right-hand sides at once, Cholesky solves with one step of refinement, operator norms by
power iteration. NumPy code calls SciPy's versions instead.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable

import torch
from torch import Tensor

from steepest.core.errors import (
    ConvergenceWarning,
    at_least,
    check,
    nonnegative,
    optional,
    positive,
    value_error,
)
from steepest.core.random import Seed, torch_generator

__all__ = ["cg", "cholesky_solve", "operator_norm"]

Operator = Tensor | Callable[[Tensor], Tensor]


def _apply(A: Operator, x: Tensor) -> Tensor:
    return A @ x if isinstance(A, Tensor) else A(x)


def cg(
    A: Operator,
    b: Tensor,  # (n,) or (n, k)
    x0: Tensor | None = None,
    *,
    rtol: float = 1e-5,
    atol: float = 0.0,
    maxiter: int | None = None,
    M: Operator | None = None,
    callback: Callable[[Tensor], None] | None = None,
) -> tuple[Tensor, int]:
    """Solve ``A x = b`` for a symmetric positive definite `A` by preconditioned conjugate gradients.

    All columns of `b` advance together, each with its own step lengths; a column that has converged stays still.

    Parameters
    ----------
    A : Tensor (n, n) or callable
        The matrix, or a function that multiplies it with a tensor shaped as `b`.
    b : Tensor of shape (n,) or (n, k)
        Right-hand sides.
    x0 : Tensor, optional
        Start, shaped as `b`; zero by default.
    rtol, atol : float
        A column stops when ``norm(b - A x) <= max(rtol * norm(b), atol)`` (SciPy's rule and defaults).
    maxiter : int, optional
        Budget of products; ``10 n`` by default.
    M : Tensor or callable, optional
        Approximate inverse of `A`.
    callback : callable, optional
        Called with the iterate after each step.

    Returns
    -------
    x : Tensor
        Shaped as `b`.
    info : int
        0 when every column converged, else the number of iterations made (SciPy's meaning).

    Raises
    ------
    ValueError
        Shapes that do not fit, or an `A` found not to be positive definite.
    FloatingPointError
        `b`, the first residual or a product with `A` is not finite.

    Examples
    --------
    >>> A = torch.tensor([[4.0, 1.0], [1.0, 3.0]], dtype=torch.float64)
    >>> x, info = cg(A, torch.tensor([1.0, 2.0], dtype=torch.float64), rtol=1e-12)
    >>> info, [round(v, 6) for v in x.tolist()]
    (0, [0.090909, 0.636364])
    """
    check("rtol", rtol, nonnegative())
    check("atol", atol, nonnegative())
    check("maxiter", maxiter, optional(at_least(0, integer=True)))
    if b.ndim not in (1, 2):
        raise value_error("b", "of shape (n,) or (n, k)", b)
    if isinstance(A, Tensor) and A.shape != (len(b), len(b)):
        raise value_error("A", f"of shape {(len(b), len(b))}", A)
    if x0 is not None and x0.shape != b.shape:
        raise value_error("x0", f"of b's shape {tuple(b.shape)}", x0)

    x = torch.zeros_like(b) if x0 is None else x0.clone()
    r = b.clone() if x0 is None else b - _apply(A, x)
    norm = torch.linalg.vector_norm(b, dim=0)
    if not bool(torch.isfinite(norm + torch.linalg.vector_norm(r, dim=0)).all()):
        raise FloatingPointError("b or the first residual is not finite")
    limit = (rtol * norm).clamp(min=atol)
    zero = b.new_zeros(())
    p: Tensor = torch.zeros_like(b)
    rho_old = torch.ones_like(limit)
    budget = 10 * len(b) if maxiter is None else maxiter
    for k in range(budget + 1):
        active = torch.linalg.vector_norm(r, dim=0) > limit
        if not bool(active.any()):
            return x, 0
        if k == budget:
            break
        z = r if M is None else _apply(M, r)
        rho = (r * z).sum(0)
        p = z + torch.where(active, rho / rho_old, zero) * p if k else z.clone()
        q = _apply(A, p)
        pq = (p * q).sum(0)
        if not bool(torch.isfinite(pq).all()):
            raise FloatingPointError(f"the product with A is not finite at iteration {k}")
        if bool(((pq <= 0) & active).any()):
            raise value_error("A", "positive definite", f"p.Ap = {float(pq[active].min()):.3g} at iteration {k}")
        alpha = torch.where(active, rho / pq, zero)
        x += alpha * p
        r -= alpha * q
        rho_old = torch.where(active, rho, torch.ones_like(rho))
        if callback is not None:
            callback(x)
    return x, max(budget, 1)


def cholesky_solve(A: Tensor, b: Tensor, *, refine: int = 1, name: str = "A") -> Tensor:
    r"""Solve ``A x = b`` by a Cholesky factorization and `refine` steps of iterative refinement.

    Parameters
    ----------
    A : Tensor (n, n)
        Symmetric positive definite.
    b : Tensor (n,) or (n, k)
    refine : int
        Steps of ``x += L L^T \\ (b - A x)``.
    name : str
        The caller's word for `A` in the message.

    Raises
    ------
    torch.linalg.LinAlgError
        `A` is not numerically positive definite. No jitter is ever added.

    Examples
    --------
    >>> A = torch.diag(torch.tensor([2.0, 4.0]))
    >>> cholesky_solve(A, torch.tensor([2.0, 2.0])).tolist()
    [1.0, 0.5]
    """
    check("refine", refine, at_least(0, integer=True))
    L, info = torch.linalg.cholesky_ex(A)
    if int(info) != 0:
        message = f"{name} is not positive definite: its leading minor {int(info)} fails"
        raise torch.linalg.LinAlgError(message)  # type: ignore[attr-defined]
    rhs = b.unsqueeze(-1) if b.ndim == 1 else b
    x = torch.cholesky_solve(rhs, L)
    for _ in range(refine):
        x = x + torch.cholesky_solve(rhs - A @ x, L)
    return x.squeeze(-1) if b.ndim == 1 else x


def operator_norm(
    A: Operator,
    n: int | None = None,
    *,
    adjoint: Operator | None = None,
    rtol: float = 1e-4,
    maxiter: int = 1000,
    seed: Seed = None,
    dtype: torch.dtype = torch.float64,
    device: torch.device | None = None,
) -> float:
    """Compute the largest singular value of `A` by power iteration on ``A^T A``.

    Parameters
    ----------
    A : Tensor (m, n) or callable
    n : int, optional
        Number of columns; needed when `A` is a callable.
    adjoint : Tensor or callable, optional
        ``A^T``; a callable `A` without it is taken as symmetric.
    rtol : float
        Stop when the estimate changes by less than this share, twice in a row.
    maxiter : int
        Budget of iterations; when spent, a `ConvergenceWarning` says how far the estimate still moved.
    seed : int, torch.Generator or None
        Of the start vector.

    Returns
    -------
    float
        A lower bound on the norm that converges to it.

    Examples
    --------
    >>> round(operator_norm(torch.diag(torch.tensor([3.0, -5.0, 1.0])), seed=0), 3)
    5.0
    """
    check("rtol", rtol, positive())
    check("maxiter", maxiter, at_least(1, integer=True))
    if isinstance(A, Tensor):
        n, dtype, device = A.shape[1], A.dtype, A.device
        adjoint = A.mT if adjoint is None else adjoint
    elif n is None:
        raise value_error("n", "given when A is a callable", n)
    back = A if adjoint is None else adjoint
    v = torch.randn(n, generator=torch_generator(seed, device), dtype=dtype, device=device)
    v /= torch.linalg.vector_norm(v)
    sigma, calm, change = 0.0, 0, float("inf")
    for k in range(maxiter):
        w = _apply(A, v)
        estimate = float(torch.linalg.vector_norm(w))
        if not estimate < float("inf"):
            raise FloatingPointError(f"the product with A is not finite at iteration {k}")
        u = _apply(back, w)
        size = torch.linalg.vector_norm(u)
        if estimate == 0.0 or float(size) == 0.0:
            return estimate
        v = u / size
        change = abs(estimate - sigma)
        calm = calm + 1 if change <= rtol * estimate else 0
        sigma = estimate
        if calm == 2:
            return sigma
    warnings.warn(
        f"operator_norm still moved by {change / sigma:.1e} after maxiter={maxiter}; raise maxiter or rtol",
        ConvergenceWarning,
        stacklevel=2,
    )
    return sigma
