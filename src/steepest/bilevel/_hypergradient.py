r"""The gradient of F(x, y(x)) by the implicit function theorem.   dF/dx - (d2f/dxdy) v,   (d2f/dy2) v = dF/dy"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from steepest.bilevel._oracles import Oracles
from steepest.core.errors import at_least, check, nonnegative, one_of, optional, positive
from steepest.core.linalg import cg, cholesky_solve

if TYPE_CHECKING:
    from steepest.bilevel.problem import BilevelProblem

__all__ = ["hypergradient", "solve_hessian"]

LIMITS = {
    "solver": one_of("direct", "cg", "neumann"),
    "rtol": nonnegative(),
    "maxiter": optional(at_least(1, integer=True)),
    "steps": optional(positive(integer=True)),
    "lr": optional(positive()),
}


def hypergradient(
    problem: BilevelProblem,
    x: Any,
    y: Any,
    *,
    solver: str = "direct",
    rtol: float = 1e-8,
    maxiter: int | None = None,
    steps: int | None = None,
    lr: float | None = None,
) -> tuple[Any, Any]:
    r"""Differentiate F(x, y(x)) by the implicit function theorem, on the full data.

    Parameters
    ----------
    problem : BilevelProblem
        Its constraints and projections are taken as inactive.
    x, y : Tensor or dict
        The formula is evaluated at y as it is; it is the gradient where y minimizes ``f(x, .)``.
    solver : "direct", "cg" or "neumann"
        For ``(d2f/dy2) v = dF/dy``: the dense matrix and its Cholesky factor (with blocks: one for each); conjugate
        gradients; the series ``v = lr sum_q (I - lr d2f/dy2)^q dF/dy``.
    rtol : float
        Of "cg" on the residual and, without `steps`, of "neumann" on the last term; relative to dF/dy.
    maxiter : int, optional
        Largest number of products of "cg" (``10 dim y`` by default) and of "neumann" without `steps` (10 000).
    steps : int, optional
        Number of terms of "neumann".
    lr : float, optional
        Of "neumann"; it converges below 2 / L. By default 1 / L, with the largest curvature L of f in y from 20 power
        iterations.

    Returns
    -------
    gradient
        ``dF/dx - (d2f/dxdy) v``, in the form of x0.
    v
        In the form of y0.

    Raises
    ------
    ValueError
        An option outside its limits; "direct" and "cg": f is not strongly convex in y at this point.

    Examples
    --------
    >>> from steepest.bilevel import BilevelProblem
    >>> problem = BilevelProblem(
    ...     lambda x, y, batch: (y**2).sum() / 2, lambda x, y, batch: (y**2).sum() - (x * y).sum(),
    ...     torch.tensor([2.0]), torch.tensor([1.0]))
    >>> [t.tolist() for t in hypergradient(problem, problem.x0, problem.y0)]  # y = x / 2, F = x^2 / 8
    [[0.5], [0.5]]
    """
    options = {"solver": solver, "rtol": rtol, "maxiter": maxiter, "steps": steps, "lr": lr}
    for key, limit in LIMITS.items():
        check(key, options[key], limit)
    oracles = Oracles(problem)
    at, v_at = problem.pack_x(x), problem.pack_y(y)
    dF_dx, dF_dy = oracles.upper_grad(at, v_at)
    if solver == "direct":
        v = _direct(oracles, at, v_at, dF_dy)
    elif solver == "cg":
        v = solve_hessian(oracles, at, v_at, dF_dy, rtol=rtol, maxiter=maxiter)
    else:
        v = _neumann(oracles, at, v_at, dF_dy, rtol, 10_000 if maxiter is None else maxiter, steps, lr)
    return problem.unpack_x(dF_dx - oracles.jvp(at, v_at, v)), problem.unpack_y(v)


def solve_hessian(
    oracles: Oracles,
    x: Tensor,
    y: Tensor,
    b: Tensor,
    *,
    v0: Tensor | None = None,
    batch: Any = None,
    rtol: float,
    maxiter: int | None = None,
) -> Tensor:
    """Solve ``(d2f/dy2) v = b`` by conjugate gradients from `v0`, all flat.

    Raises
    ------
    ValueError
        The Hessian is found not to be positive definite.
    """
    try:
        return cg(oracles.hessian_operator(x, y, batch), b, v0, rtol=rtol, maxiter=maxiter)[0]
    except ValueError as error:
        raise ValueError(f"lower must be strongly convex in y where its Hessian is inverted: {error}") from error


def _direct(oracles: Oracles, x: Tensor, y: Tensor, b: Tensor) -> Tensor:
    problem = oracles.problem
    try:
        if problem.n_blocks is None:
            return cholesky_solve(oracles.hessian(x, y), b, name="d2f/dy2")
        H = oracles.hessian(x, problem.unpack_y(y), None, problem.all_blocks)
        rows = b.view(problem.n_blocks, -1, 1)
        L = torch.linalg.cholesky(H)
        v = torch.cholesky_solve(rows, L)
        return (v + torch.cholesky_solve(rows - H @ v, L)).reshape(-1)
    except torch.linalg.LinAlgError as error:  # type: ignore[attr-defined]
        raise ValueError(f"lower must be strongly convex in y where its Hessian is inverted: {error}") from error


def _neumann(
    oracles: Oracles, x: Tensor, y: Tensor, b: Tensor, rtol: float, maxiter: int, steps: int | None, lr: float | None
) -> Tensor:
    if lr is None:
        L = oracles.curvature_bound(x, y)
        lr = 1 / L if L > 0 else 1.0
    H = oracles.hessian_operator(x, y)
    limit = rtol * float(torch.linalg.vector_norm(b))
    term, v = b, b.clone()
    for _ in range(1, maxiter if steps is None else steps):
        if steps is None and float(torch.linalg.vector_norm(term)) <= limit:
            break
        term = term - lr * H(term)
        v = v + term
    return lr * v
