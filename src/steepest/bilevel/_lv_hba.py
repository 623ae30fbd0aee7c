r"""Bilevel descent with a constrained, merely convex lower level, by first derivatives alone.   minimize F(x, y)

    y in argmin { f(x, .) : y in Y, g(x, y) <= 0 (or = 0) },   C = {x in X, y in Y, g(x, y) <= 0 (or = 0)}

    v(x, y, z) = min over theta in Y, max over lam in Z of   f(x, theta) + lam . g(x, theta)
                 + |theta - y|^2 / (2 gamma1) - |lam - z|^2 / (2 gamma2),      Z = [0, r]^p, for equalities [-r, r]^p

v is smooth, f - v >= 0 on C x Z, and f - v = 0 says that y solves the lower problem. So F + c_k (f - v) is descended on
C x Z, c_k growing, while one descent-ascent step follows the saddle point (theta, lam) that v needs:

    theta <- P_Y(theta - eta [ grad_y f(x, theta) + J_y g(x, theta)' lam + (theta - y) / gamma1 ])
    lam   <- P_Z(lam - eta [ -g(x, theta) + (lam - z) / gamma2 ])               both from the old pair
    d_x = grad_x F(x, y) / c_k + grad_x f(x, y) - grad_x f(x, theta) - J_x g(x, theta)' lam      with the new pair
    d_y = grad_y F(x, y) / c_k + grad_y f(x, y) - (y - theta) / gamma1
    (x, y) <- P_C((x, y) - alpha (d_x, d_y)),   z <- P_Z(z + beta (lam - z) / gamma2),   c_k = c (k + 1)^power

The pair turns while it contracts. With s = |J_y g|, gamma1 = gamma2 = 1/a and f flat in y it is stable for
eta < 2 a / (s^2 + a^2), contracts fastest at half of that, and needs about 1 / (a eta) steps each time its error falls
by e: long rows cost time, no step size removes it. g is taken as it is given, so that lam belongs to it; rows of norm
1 are the caller's to choose.

Paper: yao2024constrained.
Notation: (theta, lam) = ``theta, lam``, the paper's (theta, lambda); C, Y, Z as above.
Departures: (1) ``pair="gauss-seidel"`` (ours) lets lam see the new theta; that pair is stable for eta < 2 / (s + a).
(2) ``eta=None`` (ours) is 0.9 of half the stable range, and no more than 1 / (L + a) and gamma2, with L the curvature
of f in y. (3) The published cleaning script drops its step of x, keeps z fixed and does not bound lam below; the
published coupled example projects theta on the constraint; none of that is done here.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from steepest.bilevel._loop import iterate
from steepest.bilevel._lv_hba_value import LIMITS as VALUE_LIMITS
from steepest.bilevel._lv_hba_value import (
    SADDLE_TOL,
    check_finite,
    check_problem,
    multiplier_projection,
    norm,
    proximal_lagrangian_value,
    start_in,
)
from steepest.bilevel._oracles import Oracles
from steepest.bilevel.problem import BilevelProblem, BilevelResult
from steepest.core.errors import (
    SteepestWarning,
    check,
    interval,
    nonnegative,
    one_of,
    optional,
    positive,
)

__all__ = ["lv_hba", "proximal_lagrangian_value"]

LIMITS = {
    "alpha": positive(),
    "beta": positive(),
    "eta": optional(positive()),
    **VALUE_LIMITS,
    "c": positive(),
    "power": interval(0, 0.5, low_open=True, high_open=True),
    "pair": one_of("jacobi", "gauss-seidel"),
    "maxiter": nonnegative(integer=True),
    "tol": nonnegative(),
}
POWER_ITERATIONS = 20
TIME_CONSTANTS = 20  # of the pair, below which a run is told to be too short
BOUND_SHIFT = 1e-6
BOUND_GAP = 1e-1


@dataclass(frozen=True)
class _State:
    k: int
    x: Tensor
    y: Tensor
    theta: Tensor
    lam: Tensor
    z: Tensor


def lv_hba(
    problem: BilevelProblem,
    *,
    alpha: float = 0.01,
    beta: float = 0.1,
    eta: float | None = 0.01,
    gamma1: float = 10.0,
    gamma2: float = 10.0,
    r: float = 1000.0,
    c: float = 1.0,
    power: float = 0.3,
    pair: str = "jacobi",
    theta0: Any = None,
    lam0: Tensor | None = None,
    z0: Tensor | None = None,
    maxiter: int = 1000,
    tol: float = 0.0,
    log_every: int | None = 1,
    callback: Callable[..., Any] | None = None,
) -> BilevelResult:
    """Descend on F + c_k (f - v) with one step of every variable in turn (yao2024constrained).

    A step costs one upper and three lower gradients, products with the constraint's Jacobian and one projection on C;
    no second derivative. The full data are used. Memory is O(dim x + dim y + p).

    Parameters
    ----------
    problem : BilevelProblem
        With a constraint (`affine`, or `constraint` and `project_joint`); f and g convex in y.
    alpha : float
        Step size of (x, y) (official: 0.01 for SVMs and cleaning, 0.008 and 0.02 for the examples).
    beta : float
        Step size of z (official: 0.1; examples 0.02 and 0.001).
    eta : float, optional
        Step size of theta and lam (official: 0.01; coupled example 0.1). None is the safe value of the module's
        departure (2), from power iterations on J_y g and on differences of grad_y f at the start (counted).
    gamma1, gamma2 : float
        Proximal weights of theta and lam (official: 10; coupled example 1).
    r : float
        Bound on the multipliers (official: 1000).
    c, power : float
        ``c_k = c (k + 1)^power``, power in (0, 1/2) (official: 0.3; c 1 and 0.025).
    pair : "jacobi" or "gauss-seidel"
        Whether lam steps from the old theta (the paper) or from the new one.
    theta0 : Tensor or dict, optional
        In the form of y0; the projected y0 by default.
    lam0, z0 : Tensor (p,), optional
        Within Z. lam0 is 0 by default, z0 is lam0.
    maxiter : int
    tol : float
        The run ends with success when the residual is at most this; 0 asks for nothing.
    log_every : int, optional
        Steps between entries of the history; None: the end alone.
    callback : callable, optional
        ``callback(intermediate_result=...)`` after every step, with ``x, y, theta, lam, z, nit, counts``;
        `StopIteration` ends the run.

    Returns
    -------
    BilevelResult
        Adds ``theta, lam, z``, the ``eta`` that was used, ``residual``, the norm of the last projected step of (x, y)
        over alpha (NaN where none was made), and ``value_gap``, f(x, y) - v(x, y, z) with v solved to 1e-8 (not
        counted; NaN where it cannot be had). The history adds ``residual`` and ``violation``, the largest entry of g
        that is above 0 (of equalities: apart from 0).

    Raises
    ------
    ValueError, TypeError
        An argument outside its limits, a problem without a constraint, multipliers of another shape or outside Z.

    Warns
    -----
    SteepestWarning
        `eta` exceeds what |J_y g| at the start allows, or the run is shorter than 20 time constants of the pair,
        ``eta * maxiter < 20 gamma1``.
    ConvergenceWarning
        v was not solved to 1e-8 within its budget.

    Notes
    -----
    c_k is finite, so (x, y) is biased: look at `value_gap`. Where most of x sits on the bounds of X with a large gap,
    ``message`` says that it is no bilevel point. A value that is not finite ends the run with status 2.

    Examples
    --------
    >>> ones = torch.ones(1, 1, dtype=torch.float64)
    >>> problem = BilevelProblem(  # minimize over y >= x: y = max(x, 0), F is least at x = 1
    ...     lambda x, y, batch: ((y - 1) ** 2).sum() + ((x - 1) ** 2).sum(), lambda x, y, batch: (y**2).sum() / 2,
    ...     0 * ones[0], 0 * ones[0], affine=(ones, -ones, 0 * ones[0]))
    >>> result = lv_hba(problem, alpha=0.1, eta=0.3, gamma1=1.0, gamma2=1.0, maxiter=500)
    >>> round(result.x.item(), 3), round(result.y.item(), 3), result.counts["hvp"]
    (1.0, 1.0, 0)
    """
    check_problem(problem)
    options = locals()
    for name, limit in LIMITS.items():
        check(name, options[name], limit)
    oracles = Oracles(problem)
    x, y = oracles.project_joint(problem.pack_x(problem.x0), problem.pack_y(problem.y0))
    in_Z = multiplier_projection(problem, oracles.constraint_value(x, y), r)
    theta = y if theta0 is None else check_finite("theta0", problem.pack_y(theta0, "theta0"))
    lam = in_Z(torch.zeros_like(in_Z.high)) if lam0 is None else start_in("lam0", lam0, in_Z)
    z = lam if z0 is None else start_in("z0", z0, in_Z)
    safe = _largest_eta(oracles.constraint_norm(x, y), gamma1, gamma2, pair)
    if eta is None:
        eta = min(0.9 * safe, 1 / (_curvature(oracles, x, y) + 1 / gamma1), gamma2)
    elif eta > safe:
        warnings.warn(
            f"eta = {eta:g} exceeds {safe:.3g}, what |J_y g| and gamma1 allow at the start: theta and lam may "
            "diverge; scale the rows of the constraint to norm 1, lower eta, or let eta=None choose",
            SteepestWarning,
            stacklevel=2,
        )
    if eta * maxiter < TIME_CONSTANTS * gamma1:
        warnings.warn(
            f"eta * maxiter = {eta * maxiter:.3g} is below {TIME_CONSTANTS} gamma1 = {TIME_CONSTANTS * gamma1:.3g}: "
            "theta and lam cannot follow x and y; raise maxiter or eta, or lower gamma1",
            SteepestWarning,
            stacklevel=2,
        )

    def step(s: _State) -> tuple[_State, dict[str, float]]:
        c_k = c * (s.k + 1) ** power
        pull = oracles.lower_grad_y(s.x, s.theta) + oracles.constraint_vjp(s.x, s.theta, s.lam)[1]
        theta = oracles.project_y(s.theta - eta * (pull + (s.theta - s.y) / gamma1))
        g = oracles.constraint_value(s.x, s.theta if pair == "jacobi" else theta)
        lam = in_Z(s.lam - eta * ((s.lam - s.z) / gamma2 - g))

        dF_dx, dF_dy = oracles.upper_grad(s.x, s.y)
        df_dx, df_dy = oracles.lower_grad(s.x, s.y)
        dv_dx = oracles.lower_grad(s.x, theta)[0] + oracles.constraint_vjp(s.x, theta, lam)[0]
        d_x = dF_dx / c_k + df_dx - dv_dx
        d_y = dF_dy / c_k + df_dy - (s.y - theta) / gamma1
        x, y = oracles.project_joint(s.x - alpha * d_x, s.y - alpha * d_y)
        z = in_Z(s.z + beta * (lam - s.z) / gamma2)

        moved = math.hypot(norm(x - s.x), norm(y - s.y)) / alpha
        violation = in_Z.violation(oracles.constraint_value(x, y))
        return _State(s.k + 1, x, y, theta, lam, z), {"residual": moved, "violation": violation}

    result = iterate(
        oracles,
        step,
        _State(0, x, y, theta, lam, z),
        view=lambda s: {"x": s.x, "y": s.y, "theta": problem.unpack_y(s.theta), "lam": s.lam, "z": s.z},
        maxiter=maxiter,
        callback=callback,
        log_every=log_every,
        keep=("residual", "violation"),
        converged=None if tol == 0 else lambda s, numbers: numbers["residual"] <= tol,
        probe=lambda s: float(s.x.sum() + s.y.sum() + s.theta.sum() + s.lam.sum() + s.z.sum()),
    )
    result.eta, result.residual = eta, result.history["residual"][-1]
    result.value_gap = _value_gap(problem, result, gamma1, gamma2, r)
    if result.value_gap > BOUND_GAP * (1 + abs(result.lower_fun)) and _share_on_bounds(problem, result.x) > 0.5:
        result.message += (
            f" Most of x sits on its bounds while the value gap is {result.value_gap:.2g}: (x, y) is no bilevel point; "
            "raise c or maxiter, or lower alpha."
        )
    return result


# ----------------------------------------------------------------------------------------------------------- step sizes


def _largest_eta(s: float, gamma1: float, gamma2: float, pair: str) -> float:
    """Give half of the range in which the linearized pair is stable; of the Jacobi pair the fastest step."""
    a = 1 / gamma1
    return a / (s * s + a * a) if pair == "jacobi" else 1 / (s + a)


def _curvature(oracles: Oracles, x: Tensor, y: Tensor) -> float:
    """Estimate the largest curvature of f in y by power iterations on differences of its gradient."""
    g, length = oracles.lower_grad_y(x, y), torch.finfo(y.dtype).eps ** 0.5 * (1 + norm(y))
    v = torch.randn(y.shape, generator=torch.Generator(y.device).manual_seed(0), dtype=y.dtype, device=y.device)
    estimate = norm(v)
    for _ in range(POWER_ITERATIONS):
        v = (oracles.lower_grad_y(x, y + (length / estimate) * v) - g) / length
        estimate = norm(v)
        if not 0 < estimate < math.inf:
            break
    return estimate


# ----------------------------------------------------------------------------------------------------------- the report


def _value_gap(problem: BilevelProblem, result: BilevelResult, gamma1: float, gamma2: float, r: float) -> float:
    try:
        v, _, _ = proximal_lagrangian_value(
            problem, result.x, result.y, result.z, gamma1=gamma1, gamma2=gamma2, r=r, tol=SADDLE_TOL
        )
    except FloatingPointError:
        return math.nan
    return result.lower_fun - v


def _share_on_bounds(problem: BilevelProblem, x: Any) -> float:
    """Count the coordinates of x that `project_x` brings back when they are shifted up or down."""
    project, at = Oracles(problem).set_projections()[0], problem.pack_x(x)
    if project is None or not at.numel():
        return 0.0
    shift = BOUND_SHIFT * (1 + at.abs())
    held = (project(at + shift) - at < shift / 2) | (project(at - shift) - at > -shift / 2)
    return float(held.double().mean())
