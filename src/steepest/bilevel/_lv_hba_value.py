r"""The value function of the lower level, smoothed on both sides, and the box of the multipliers.

    v(x, y, z) = min over theta in Y, max over lam in Z of   f(x, theta) + lam . g(x, theta)
                 + |theta - y|^2 / (2 gamma1) - |lam - z|^2 / (2 gamma2),      Z = [0, r]^p, for equalities [-r, r]^p

Given theta the best lam is ``P_Z(z + gamma2 g(x, theta))``; with it theta solves one strongly convex problem over Y.

Paper: yao2024constrained.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from steepest.bilevel._lower import minimize_lower_on_set
from steepest.bilevel._oracles import Oracles
from steepest.bilevel.problem import BilevelProblem
from steepest.core.errors import ConvergenceWarning, check, kind_error, positive, value_error

__all__ = [
    "LIMITS",
    "SADDLE_TOL",
    "MultiplierProjection",
    "check_finite",
    "check_problem",
    "multiplier_projection",
    "norm",
    "proximal_lagrangian_value",
    "start_in",
]

LIMITS = {"gamma1": positive(), "gamma2": positive(), "r": positive()}
SADDLE_TOL = 1e-8
SADDLE_STEPS = 20_000


def proximal_lagrangian_value(
    problem: BilevelProblem,
    x: Any,
    y: Any,
    z: Tensor,
    *,
    gamma1: float = 10.0,
    gamma2: float = 10.0,
    r: float = 1000.0,
    tol: float = SADDLE_TOL,
) -> tuple[float, Any, Tensor]:
    """Compute v(x, y, z) and its saddle point, on the full data.

    The best lam is known for every theta, ``P_Z(z + gamma2 g(x, theta))``; what is left is strongly convex in theta and
    is minimized over Y by accelerated projected gradients.

    Parameters
    ----------
    problem : BilevelProblem
        With a constraint.
    x, y : Tensor or dict
        In the form of x0 and y0; need not lie in C.
    z : Tensor (p,)
    gamma1, gamma2, r : float
        As in `lv_hba`.
    tol : float
        On the norm of the projected gradient step over its length, relative to ``1 + |grad_y f| + |J_y g' lam|`` at y;
        theta is then right to about gamma1 times that, the value to half its square over gamma1. Not below 64 units of
        rounding.

    Returns
    -------
    value : float
    theta
        In the form of y0.
    lam : Tensor (p,)
        With them the gradients of v are ``grad_x f + J_x g' lam`` at theta, ``(y - theta) / gamma1`` and
        ``(lam - z) / gamma2``.

    Raises
    ------
    ValueError, TypeError
        An argument outside its limits, a problem without a constraint, a z of another shape or dtype.
    FloatingPointError
        The lower objective or its gradient is not finite.

    Warns
    -----
    ConvergenceWarning
        `tol` was not met within 20 000 steps.

    Examples
    --------
    >>> one = torch.ones(1, 1, dtype=torch.float64)
    >>> problem = BilevelProblem(  # theta^2 / 2 under theta = 1
    ...     lambda x, y, batch: y.sum(), lambda x, y, batch: (y**2).sum() / 2, one[0], one[0],
    ...     affine=(0 * one, one, -one[0]), equality=True)
    >>> value, theta, lam = proximal_lagrangian_value(problem, one[0], one[0], -one[0])
    >>> round(value, 6), round(theta.item(), 6), round(lam.item(), 6)  # z is the multiplier: nothing is gained
    (0.5, 1.0, -1.0)
    """
    check_problem(problem)
    for name, value in {"gamma1": gamma1, "gamma2": gamma2, "r": r}.items():
        check(name, value, LIMITS[name])
    check("tol", tol, positive())
    at, y = check_finite("x", problem.pack_x(x)), check_finite("y", problem.pack_y(y))
    oracles = Oracles(problem)
    g = oracles.constraint_value(at, y)
    in_Z = multiplier_projection(problem, g, r)
    _check_multipliers("z", z, g)
    onto_y = oracles.set_projections()[1]

    def lagrangian(x: Tensor, theta: Tensor, batch: Any) -> Tensor:
        g = _rows(problem, x, theta)
        lam = in_Z(z + gamma2 * g.detach())  # the maximizer, whose own derivative does not matter
        prox = (theta - y).square().sum() / (2 * gamma1) - (lam - z).square().sum() / (2 * gamma2)
        return _lower(problem, x, theta) + lam @ g + prox

    smooth = BilevelProblem(lagrangian, lagrangian, at, y, project_y=onto_y or (lambda theta: theta))
    pull = oracles.constraint_vjp(at, y, in_Z(z + gamma2 * g))[1]
    scale = 1 + norm(oracles.lower_grad_y(at, y)) + norm(pull)
    limit = max(tol, 64 * torch.finfo(y.dtype).eps) * scale
    theta, info = minimize_lower_on_set(Oracles(smooth), at, y, tol=limit, maxiter=SADDLE_STEPS)
    if info:
        warnings.warn(
            f"v was not solved to tol = {tol:g} within {info} steps; raise tol, lower gamma1 or gamma2, or scale the "
            "rows of the constraint to norm 1",
            ConvergenceWarning,
            stacklevel=2,
        )
    with torch.no_grad():
        found = float(lagrangian(at, theta, None))
        return found, problem.unpack_y(theta), in_Z(z + gamma2 * oracles.constraint_value(at, theta))


# ------------------------------------------------------------------------------------------------------------ the box Z


@dataclass(frozen=True)
class MultiplierProjection:
    """Projection on Z, and how far g is from what its rows want."""

    equality: Tensor  # (p,)
    high: Tensor  # (p,)

    def __call__(self, lam: Tensor) -> Tensor:
        return torch.clamp(lam, torch.where(self.equality, -self.high, torch.zeros_like(self.high)), self.high)

    def violation(self, g: Tensor) -> float:
        return float(torch.where(self.equality, g.abs(), g.clamp(min=0)).max()) if len(g) else 0.0


def multiplier_projection(problem: BilevelProblem, g: Tensor, r: float) -> MultiplierProjection:
    equality = problem.equality_mask(len(g))
    if len(equality) != len(g):
        raise value_error("equality", f"of shape ({len(g)},), as the constraint is", tuple(equality.shape))
    return MultiplierProjection(equality, torch.full_like(g, r))


def _check_multipliers(name: str, lam: Any, like: Tensor) -> None:
    if not isinstance(lam, Tensor):
        raise kind_error(name, f"a tensor of shape ({len(like)},)", lam)
    if lam.shape != like.shape or lam.dtype != like.dtype or lam.device != like.device:
        raise value_error(name, f"of shape ({len(like)},) and dtype {like.dtype} on {like.device}", lam)
    check_finite(name, lam)


def start_in(name: str, lam: Any, in_Z: MultiplierProjection) -> Tensor:
    _check_multipliers(name, lam, in_Z.high)
    found: Tensor = lam.detach()
    if not torch.equal(in_Z(found), found):
        raise value_error(name, "within [0, r], for equalities [-r, r]", lam)
    return found


def check_finite(name: str, start: Tensor) -> Tensor:
    if not bool(torch.isfinite(start).all()):
        raise value_error(name, "finite", start if start.numel() == 1 else "values that are not")
    return start


# ---------------------------------------------------------------------------------------------------------- the problem


def _lower(problem: BilevelProblem, x: Tensor, theta: Tensor) -> Tensor:
    """Evaluate f on flat vectors with its graph; with blocks the sum over them."""
    blocks = () if problem.n_blocks is None else (problem.all_blocks,)
    return problem.lower(problem.unpack_x(x), problem.unpack_y(theta), None, *blocks).sum()


def _rows(problem: BilevelProblem, x: Tensor, theta: Tensor) -> Tensor:
    """Evaluate g on flat vectors with its graph."""
    if problem.affine is not None:
        A, B, c = problem.affine
        return A @ x + B @ theta + c
    assert problem.constraint is not None
    return problem.constraint(problem.unpack_x(x), problem.unpack_y(theta))


def check_problem(problem: Any) -> None:
    if not isinstance(problem, BilevelProblem):
        raise kind_error("problem", "a BilevelProblem", problem)
    if not problem.is_constrained:
        raise value_error("constraint", "given, or affine", None, "without one use bo_rep or a baseline")


def norm(v: Tensor) -> float:
    return float(torch.linalg.vector_norm(v))
