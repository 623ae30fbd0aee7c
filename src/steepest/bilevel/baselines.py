r"""The usual bilevel methods, as measures for the published ones: four ways to the gradient of F(x, y(x)).

Every step moves y by K steps ``y <- y - lr_y grad_y f(x, y)`` from where it was, then ``x <- P_X(x - lr_x h)`` with

    aid_cg          h = grad_x F - (d2f/dxdy) v,   (d2f/dy2) v = grad_y F by conjugate gradients from the last v
    stocbio         the same with v = lr_y sum_{q<Q} prod_{j<=q} (I - lr_y d2f_j/dy2) grad_y F, a fresh batch for each j
    itd             h = d F(x, y_K(x)) / dx through the K steps, backwards from p = grad_y F(x, y_K):
                    h <- h - lr_y (d2f/dxdy)_k p,   p <- p - lr_y (d2f/dy2)_k p       for k = K-1, ..., 0
    value_penalty   h = grad_x F(x, y) + lam (grad_x f(x, y) - grad_x f(x, w)), where w takes the K steps above and
                    y <- y - lr_y (grad_y F(x, y) / lam + grad_y f(x, y)) as many; lam grows by a constant each step

Papers: Pedregosa, Hyperparameter optimization with approximate gradient, ICML 2016 (aid_cg); Franceschi et al., Forward
and reverse gradient-based hyperparameter optimization, ICML 2017 (itd); Ji, Yang and Liang, Bilevel optimization:
convergence analysis and enhanced design, ICML 2021 (stocbio); Kwon et al., A fully first-order method for stochastic
bilevel optimization, ICML 2023 (value_penalty).
Notation: K = `inner_steps`, Q = `neumann_steps`, lam = `penalty`.
Departures: (1) all four start the lower steps, and conjugate gradients v, from their last values. (2) stocbio's series
has the step size of the lower steps. (3) The penalty's steps are divided by lam, so that one lr_y serves while lam
grows. (4) Where the problem has a set Y the lower steps are projected, and derivatives are those of an inactive
projection.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from steepest.bilevel._loop import DECAY, decayed, iterate
from steepest.bilevel._oracles import Oracles
from steepest.bilevel.problem import BilevelProblem, BilevelResult, solve_hessian
from steepest.core.errors import check, kind_error, nonnegative, optional, positive
from steepest.core.random import Seed, torch_generator

__all__ = ["aid_cg", "itd", "stocbio", "value_penalty"]

LIMITS = {
    "lr_x": positive(),
    "lr_y": positive(),
    "decay": DECAY,
    "inner_steps": nonnegative(integer=True),
    "cg_steps": positive(integer=True),
    "neumann_steps": positive(integer=True),
    "penalty": positive(),
    "penalty_growth": nonnegative(),
    "batch_size": optional(positive(integer=True)),
}
CG_RTOL = 1e-10  # below it the remaining cg_steps are not made


@dataclass(frozen=True)
class _State:
    k: int
    x: Tensor
    y: Tensor
    aid: Tensor  # v of aid_cg and stocbio, w of value_penalty, p of itd


Rule = Callable[[Oracles, _State], tuple[Tensor, Tensor, Tensor]]  # (y, aid, h)


def aid_cg(
    problem: BilevelProblem,
    *,
    lr_x: float,
    lr_y: float,
    decay: str | None = None,
    inner_steps: int = 10,
    cg_steps: int = 10,
    maxiter: int = 1000,
    batch_size: int | None = None,
    log_every: int | None = None,
    random_state: Seed = 0,
    callback: Callable[..., Any] | None = None,
) -> BilevelResult:
    """Descend along the implicit gradient, its linear system solved by conjugate gradients.

    Parameters
    ----------
    problem : BilevelProblem
        Without a constraint that couples x and y.
    lr_x, lr_y : float
        Step sizes of the upper and of the lower variable.
    decay : None or "linear"
        Multiplies `lr_x` by ``1 - 0.98 k / maxiter``.
    inner_steps : int
        K, lower steps before each upper one, each on a fresh batch.
    cg_steps : int
        Largest number of products for v, all on one batch.
    maxiter : int
        Upper steps.
    batch_size : int, optional
        Handed to the problem's samplers; None is their own size. Without samplers the data are full.
    log_every : int, optional
        Steps between entries of the history; None: the end alone.
    random_state : int, torch.Generator or None
        Of the batches.
    callback : callable, optional
        ``callback(intermediate_result=...)`` after every step, with ``x, y, v, nit, counts``.

    Returns
    -------
    BilevelResult
        Adds ``v``, in the form of y0. The history adds ``grad_norm``, the norm of h.

    Raises
    ------
    ValueError, TypeError
        An argument outside its limits, a constrained problem, a lower Hessian that is not positive definite.

    Examples
    --------
    >>> problem = BilevelProblem(
    ...     lambda x, y, batch: ((y - 1) ** 2).sum() / 2, lambda x, y, batch: ((y - x) ** 2).sum() / 2,
    ...     torch.zeros(2), torch.zeros(2))
    >>> aid_cg(problem, lr_x=0.5, lr_y=0.5, maxiter=50).x.round(decimals=3).tolist()
    [1.0, 1.0]
    """
    check("cg_steps", cg_steps, LIMITS["cg_steps"])

    def rule(oracles: Oracles, s: _State) -> tuple[Tensor, Tensor, Tensor]:
        y = _lower_steps(oracles, s.x, s.y, lr_y, inner_steps)
        dF_dx, dF_dy = oracles.upper_grad(s.x, y, oracles.draw_upper())
        batch = oracles.draw_lower()
        v = solve_hessian(oracles, s.x, y, dF_dy, v0=s.aid, batch=batch, rtol=CG_RTOL, maxiter=cg_steps)
        return y, v, dF_dx - oracles.jvp(s.x, y, v, batch)

    return _run(
        problem, rule, "v", lr_x, lr_y, decay, inner_steps, maxiter, batch_size, log_every, random_state, callback
    )


def itd(
    problem: BilevelProblem,
    *,
    lr_x: float,
    lr_y: float,
    decay: str | None = None,
    inner_steps: int = 10,
    maxiter: int = 1000,
    batch_size: int | None = None,
    log_every: int | None = None,
    random_state: Seed = 0,
    callback: Callable[..., Any] | None = None,
) -> BilevelResult:
    """Descend along the gradient through the unrolled lower steps.

    Of memory it takes K copies of y. A step costs K lower gradients, K Hessian and K mixed products.

    Parameters
    ----------
    problem, lr_x, lr_y, decay, inner_steps, maxiter, batch_size, log_every, random_state, callback
        As in `aid_cg`.

    Returns
    -------
    BilevelResult
        The history adds ``grad_norm``.

    Raises
    ------
    ValueError, TypeError
        An argument outside its limits, a constrained problem.

    Examples
    --------
    >>> problem = BilevelProblem(
    ...     lambda x, y, batch: ((y - 1) ** 2).sum() / 2, lambda x, y, batch: ((y - x) ** 2).sum() / 2,
    ...     torch.zeros(2), torch.zeros(2))
    >>> itd(problem, lr_x=0.5, lr_y=0.5, maxiter=50).x.round(decimals=3).tolist()
    [1.0, 1.0]
    """

    def rule(oracles: Oracles, s: _State) -> tuple[Tensor, Tensor, Tensor]:
        tape: list[tuple[Tensor, Any]] = []
        y = _lower_steps(oracles, s.x, s.y, lr_y, inner_steps, tape)
        h, p = oracles.upper_grad(s.x, y, oracles.draw_upper())
        for y_k, batch in reversed(tape):
            Hp, Jp = oracles.products(s.x, y_k, p, batch)
            h, p = h - lr_y * Jp, p - lr_y * Hp
        return y, s.aid, h

    return _run(
        problem, rule, None, lr_x, lr_y, decay, inner_steps, maxiter, batch_size, log_every, random_state, callback
    )


def stocbio(
    problem: BilevelProblem,
    *,
    lr_x: float,
    lr_y: float,
    decay: str | None = None,
    inner_steps: int = 10,
    neumann_steps: int = 10,
    maxiter: int = 1000,
    batch_size: int | None = None,
    log_every: int | None = None,
    random_state: Seed = 0,
    callback: Callable[..., Any] | None = None,
) -> BilevelResult:
    """Descend along the implicit gradient, its linear system solved by a Neumann series with fresh samples.

    Parameters
    ----------
    problem, lr_x, lr_y, decay, inner_steps, maxiter, batch_size, log_every, random_state, callback
        As in `aid_cg`; the series converges where `lr_y` is below 2 / L, L the curvature of f in y.
    neumann_steps : int
        Q, terms of the series: Q - 1 Hessian products, each on a fresh batch.

    Returns
    -------
    BilevelResult
        Adds ``v``, in the form of y0. The history adds ``grad_norm``.

    Raises
    ------
    ValueError, TypeError
        An argument outside its limits, a constrained problem.

    Examples
    --------
    >>> problem = BilevelProblem(
    ...     lambda x, y, batch: ((y - 1) ** 2).sum() / 2, lambda x, y, batch: ((y - x) ** 2).sum() / 2,
    ...     torch.zeros(2), torch.zeros(2))
    >>> stocbio(problem, lr_x=0.5, lr_y=0.5, maxiter=50).x.round(decimals=3).tolist()
    [1.0, 1.0]
    """
    check("neumann_steps", neumann_steps, LIMITS["neumann_steps"])

    def rule(oracles: Oracles, s: _State) -> tuple[Tensor, Tensor, Tensor]:
        y = _lower_steps(oracles, s.x, s.y, lr_y, inner_steps)
        dF_dx, term = oracles.upper_grad(s.x, y, oracles.draw_upper())
        v = term
        for _ in range(neumann_steps - 1):
            term = term - lr_y * oracles.hvp(s.x, y, term, oracles.draw_lower())
            v = v + term
        v = lr_y * v
        return y, v, dF_dx - oracles.jvp(s.x, y, v, oracles.draw_lower())

    return _run(
        problem, rule, "v", lr_x, lr_y, decay, inner_steps, maxiter, batch_size, log_every, random_state, callback
    )


def value_penalty(
    problem: BilevelProblem,
    *,
    lr_x: float,
    lr_y: float,
    decay: str | None = None,
    inner_steps: int = 10,
    penalty: float = 1.0,
    penalty_growth: float = 0.1,
    maxiter: int = 1000,
    batch_size: int | None = None,
    log_every: int | None = None,
    random_state: Seed = 0,
    callback: Callable[..., Any] | None = None,
) -> BilevelResult:
    """Descend on ``F(x, y) + lam (f(x, y) - min f(x, .))`` with lam growing; first derivatives alone.

    Parameters
    ----------
    problem, lr_x, lr_y, decay, inner_steps, maxiter, batch_size, log_every, random_state, callback
        As in `aid_cg`; both y and w take `inner_steps` steps.
    penalty : float
        lam of the first step. The minimizer is biased by O(1 / lam).
    penalty_growth : float
        What lam grows by in every step (0.1, ours: 100 after 1000 steps).

    Returns
    -------
    BilevelResult
        Adds ``w``, in the form of y0, which follows the lower minimum. The history adds ``grad_norm``.

    Raises
    ------
    ValueError, TypeError
        An argument outside its limits, a constrained problem.

    Examples
    --------
    >>> problem = BilevelProblem(
    ...     lambda x, y, batch: ((y - 1) ** 2).sum() / 2, lambda x, y, batch: ((y - x) ** 2).sum() / 2,
    ...     torch.zeros(2), torch.zeros(2))
    >>> value_penalty(problem, lr_x=0.1, lr_y=0.5, maxiter=200).x.round(decimals=3).tolist()
    [1.0, 1.0]
    """
    for name, value in {"penalty": penalty, "penalty_growth": penalty_growth}.items():
        check(name, value, LIMITS[name])

    def rule(oracles: Oracles, s: _State) -> tuple[Tensor, Tensor, Tensor]:
        lam = penalty + penalty_growth * s.k
        w = _lower_steps(oracles, s.x, s.aid, lr_y, inner_steps)
        y = s.y
        for _ in range(inner_steps):
            dF_dy = oracles.upper_grad(s.x, y, oracles.draw_upper())[1]
            y = oracles.project_y(y - lr_y * (dF_dy / lam + oracles.lower_grad_y(s.x, y, oracles.draw_lower())))
        batch = oracles.draw_lower()
        gap_x = oracles.lower_grad(s.x, y, batch)[0] - oracles.lower_grad(s.x, w, batch)[0]
        return y, w, oracles.upper_grad(s.x, y, oracles.draw_upper())[0] + lam * gap_x

    return _run(
        problem, rule, "w", lr_x, lr_y, decay, inner_steps, maxiter, batch_size, log_every, random_state, callback
    )


def _lower_steps(
    oracles: Oracles, x: Tensor, y: Tensor, lr: float, steps: int, tape: list[tuple[Tensor, Any]] | None = None
) -> Tensor:
    """Descend on f(x, .), each step on a fresh batch; `tape` keeps where each step started, and its batch."""
    for _ in range(steps):
        batch = oracles.draw_lower()
        if tape is not None:
            tape.append((y, batch))
        y = oracles.project_y(y - lr * oracles.lower_grad_y(x, y, batch))
    return y


def _run(
    problem: BilevelProblem,
    rule: Rule,
    aid: str | None,
    lr_x: float,
    lr_y: float,
    decay: str | None,
    inner_steps: int,
    maxiter: int,
    batch_size: int | None,
    log_every: int | None,
    random_state: Seed,
    callback: Callable[..., Any] | None,
) -> BilevelResult:
    """Check what the four share, and run ``x <- P_X(x - lr_x h)``."""
    if not isinstance(problem, BilevelProblem):
        raise kind_error("problem", "a BilevelProblem", problem)
    options = {"lr_x": lr_x, "lr_y": lr_y, "decay": decay, "inner_steps": inner_steps, "batch_size": batch_size}
    for name, value in options.items():
        check(name, value, LIMITS[name])
    if problem.is_constrained:
        raise ValueError("problem must have no constraint on (x, y) together; for such problems use lv_hba")
    x, y = problem.pack_x(problem.x0), problem.pack_y(problem.y0)
    generator = torch_generator(random_state, y.device, name="random_state")
    oracles = Oracles(problem, generator=generator, batch_size=batch_size)

    def step(s: _State) -> tuple[_State, dict[str, float]]:
        y, aid, h = rule(oracles, s)
        x = oracles.project_x(s.x - decayed(lr_x, decay, s.k, maxiter) * h)
        return _State(s.k + 1, x, y, aid), {"grad_norm": float(torch.linalg.vector_norm(h))}

    def view(s: _State) -> dict[str, Any]:
        return {"x": s.x, "y": s.y} | ({} if aid is None else {aid: problem.unpack_y(s.aid)})

    start = _State(0, x, y, y if aid == "w" else torch.zeros_like(y))
    return iterate(
        oracles, step, start, view=view, maxiter=maxiter, callback=callback, log_every=log_every, keep=("grad_norm",)
    )
