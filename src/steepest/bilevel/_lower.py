"""Minimize the lower objective to convergence at a fixed x: Newton steps by conjugate gradients, or on a set."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from steepest.bilevel._oracles import Oracles
from steepest.bilevel._projections import AffineProjection, SetProjection
from steepest.core.linalg import cg

__all__ = ["minimize_lower", "minimize_lower_on_set"]

ARMIJO = 1e-4
HALVINGS = 40
PRODUCTS = 500  # of one Newton step


def minimize_lower(oracles: Oracles, x: Tensor, y: Tensor, *, tol: float, maxiter: int) -> tuple[Tensor, int]:
    """Take Newton steps until the gradient's norm is at most `tol`; ``(y, 0)``, or ``(y, steps made)``.

    The systems are solved to ``min(0.1, sqrt(|g| / |g_0|))``, so that convergence is faster than linear; where the
    Hessian is not positive definite the step is along the gradient. Near the minimum, where values no longer resolve
    descent, a step counts by the gradient it leaves.
    """
    value = _finite(oracles.lower_value(x, y))
    g = oracles.lower_grad_y(x, y)
    first = norm = _finite(torch.linalg.vector_norm(g))
    for k in range(maxiter):
        if norm <= tol:
            return y, 0
        step = _newton_step(oracles, x, y, g, min(0.1, math.sqrt(norm / first)))
        slope, t = float(g @ step), 1.0
        resolution = 16 * torch.finfo(y.dtype).eps * (1 + abs(value))
        for _ in range(HALVINGS):
            y_new = y - t * step
            value_new = float(oracles.lower_value(x, y_new))
            if abs(value_new - value) > resolution:
                descends = value_new <= value - ARMIJO * t * slope
            else:
                descends = float(torch.linalg.vector_norm(oracles.lower_grad_y(x, y_new))) < norm
            if descends:
                break
            t /= 2
        else:
            return y, max(k, 1)
        y, value = y_new, value_new
        g = oracles.lower_grad_y(x, y)
        norm = _finite(torch.linalg.vector_norm(g))
    return (y, 0) if norm <= tol else (y, max(maxiter, 1))


def _newton_step(oracles: Oracles, x: Tensor, y: Tensor, g: Tensor, rtol: float) -> Tensor:
    try:
        return cg(oracles.hessian_operator(x, y), g, rtol=rtol, maxiter=PRODUCTS)[0]
    except ValueError:
        return g


def minimize_lower_on_set(oracles: Oracles, x: Tensor, y: Tensor, *, tol: float, maxiter: int) -> tuple[Tensor, int]:
    """Minimize over {y in Y, A x + B y + c <= 0 (or = 0)} by accelerated projected gradients with backtracking."""
    project = _lower_projection(oracles, x)
    y = z = project(y)
    t, L = 1.0, 1.0
    for _ in range(maxiter):
        g = oracles.lower_grad_y(x, z)
        _finite(torch.linalg.vector_norm(g))
        L /= 1.5
        while True:  # gradients tell the curvature where values no longer resolve it
            y_new = project(z - g / L)
            move = y_new - z
            if float((oracles.lower_grad_y(x, y_new) - g) @ move) <= L * float(move @ move):
                break
            L *= 2
        if L * float(torch.linalg.vector_norm(move)) <= tol:
            return y_new, 0
        if float((z - y_new) @ (y_new - y)) > 0:
            t, y = 1.0, y_new
        t_new = (1 + math.sqrt(1 + 4 * t * t)) / 2
        z = y_new + (t - 1) / t_new * (y_new - y)
        y, t = y_new, t_new
    return y, max(maxiter, 1)


def _lower_projection(oracles: Oracles, x: Tensor) -> SetProjection:
    problem = oracles.problem
    _, onto_y = oracles.set_projections()
    if problem.affine is None:
        assert onto_y is not None
        return onto_y
    A, B, c = problem.affine
    rows = AffineProjection([B], A @ x + c, problem.equality_mask(len(c)), [onto_y])
    return lambda y: rows(y)[0]


def _finite(value: Tensor) -> float:
    number = float(value)
    if not math.isfinite(number):
        raise FloatingPointError(f"the lower objective or its gradient is {number}")
    return number
