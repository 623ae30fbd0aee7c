r"""Sampled convex program: fixed unit directions, an l1 penalty on what goes out of them.

With directions U (N, d) and :math:`\Phi = (X U^T)_+`, minimize loss(Phi a, y) + beta ||a||_1. Smooth losses take
accelerated proximal gradient steps that restart when they point uphill; with the hinge it is a linear program, which
HiGHS solves in one step. Feasible duals are those with :math:`|\Phi^T \nu| \le \beta`; the share of fresh directions
that violate it shows what N leaves out.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from scipy.optimize import linprog
from torch import Tensor

from steepest.convex import _losses
from steepest.core.linalg import operator_norm

__all__ = ["SampledProgram", "unit_directions", "violation_share"]

LOOK_EACH = 10
"""Iterations between two looks at the gap."""


def unit_directions(n: int, d: int, rng: np.random.Generator) -> np.ndarray:
    """Draw n unit vectors, uniform on the sphere."""
    h = rng.standard_normal((n, d))
    return h / np.linalg.norm(h, axis=1, keepdims=True)


def violation_share(X: Tensor, nu: Tensor, beta: float, directions: Tensor) -> float:
    """Share of the directions u with ``|nu' (X u)_+| > beta``."""
    return float(((nu @ (X @ directions.T).clamp(min=0)).abs() > beta * (1 + 1e-9)).double().mean())


class SampledProgram:
    """One iteration at a time; `a` (N,), `nu` (n,) the dual point, `objective` and `dual` as last looked at."""

    def __init__(
        self, X: Tensor, y: Tensor, directions: Tensor, loss: str, beta: float, a: Tensor | None = None
    ) -> None:
        self.y, self.loss, self.beta = y, loss, beta
        self.features = (X @ directions.T).clamp(min=0)
        self.a = X.new_zeros(len(directions)) if a is None else a.clone()
        norm = 1.01 * max(operator_norm(self.features, seed=0, rtol=1e-6, maxiter=5000), 1e-300)
        self._size = 1 / (_losses.CURVATURE.get(loss, 1.0) * norm**2)
        self._ahead, self._momentum = self.a.clone(), 1.0
        self._t = torch.zeros_like(y)
        self.nu, self.objective, self.dual, self.change = torch.zeros_like(y), math.inf, -math.inf, math.inf

    def step(self) -> None:
        before = self.a
        if self.loss == "hinge":
            self._linear_program()
        else:
            self._accelerated()
        self.change = float((self.a - before).norm())

    def look(self) -> float:
        """Update objective, dual and dual point; return the gap."""
        f = self.features @ self.a
        self.objective = float(_losses.value(self.loss, f, self.y).sum()) + self.beta * float(self.a.abs().sum())
        nu = self._t * self.y if self.loss == "hinge" else -_losses.gradient(self.loss, f, self.y)
        steepest = float((self.features.T @ nu).abs().max())
        nu = nu * min(1.0, self.beta / steepest) if steepest > 0 else nu
        dual = float(_losses.dual_value(self.loss, nu, self.y))
        if dual > self.dual:
            self.dual, self.nu = dual, nu
        return self.objective - self.dual

    def _accelerated(self) -> None:
        g = self.features.T @ _losses.gradient(self.loss, self.features @ self._ahead, self.y)
        a = _shrink(self._ahead - self._size * g, self._size * self.beta)
        uphill = float((self._ahead - a) @ (a - self.a)) > 0
        momentum = 1.0 if uphill else (1 + math.sqrt(1 + 4 * self._momentum**2)) / 2
        weight = 0.0 if uphill else (self._momentum - 1) / momentum
        self._ahead = a + weight * (a - self.a)
        self.a, self._momentum = a, momentum

    def _linear_program(self) -> None:
        """Minimize beta 1'(p + m) + 1'xi over p, m, xi >= 0 with y Phi (p - m) + xi >= 1; a = p - m."""
        rows = (self.y[:, None] * self.features).cpu().numpy()
        n, N = rows.shape
        costs = np.concatenate([np.full(2 * N, self.beta), np.ones(n)])
        left = np.hstack([rows, -rows, np.eye(n)])
        found = linprog(costs, A_ub=-left, b_ub=-np.ones(n), method="highs")
        if found.x is None:
            raise FloatingPointError(f"the linear program of the hinge loss was not solved: {found.message}")
        self.a = torch.as_tensor(found.x[:N] - found.x[N : 2 * N]).to(self.y)
        self._t = torch.as_tensor(-found.ineqlin.marginals).to(self.y).clamp(0, 1)


def _shrink(a: Tensor, by: float) -> Tensor:
    return a.sign() * (a.abs() - by).clamp(min=0)
