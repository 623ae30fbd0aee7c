"""The iteration of consensus hopping."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from steepest.core.driver import Progress, Stop
from steepest.particles._arguments import Normals
from steepest.particles._objective import Objective
from steepest.particles._run import SPREAD_MAX, Run, Status
from steepest.particles._weights import weighted_mean, weights

if TYPE_CHECKING:
    from scipy.optimize import OptimizeResult

__all__ = ["Hopping"]


class Hopping(Run):
    """A consensus `c` that hops to that of N fresh points, drawn with width `s` around it."""

    def __init__(
        self,
        objective: Objective,
        c: Tensor,
        n: int,
        normals: Normals,
        alpha: float,
        s: float,
        factor: float,
        every: int,
        tol: float,
        return_all: bool,
    ) -> None:
        super().__init__(objective, return_all)
        self.c, self.normals, self.alpha, self.s = c, normals, alpha, s
        self.factor, self.every, self.tol, self.k = factor, every, tol, 0
        self.x = c.repeat(n, 1)
        self.f = c.new_full((len(self.x),), math.inf, dtype=torch.float64)
        self.D = torch.empty_like(self.x)
        self.path = [c.clone()]

    def step(self) -> Progress:
        """Draw, average, hop."""
        self.normals.shake(self.x.copy_(self.c.expand_as(self.x)), self.s)
        self.f = self.objective(self.x, self.D)
        c, before = weighted_mean(weights(self.f, self.alpha), self.x), self.c
        D = torch.sub(self.x, c, out=self.D)
        self.spread = float(torch.dot(D.view(-1), D.view(-1))) / len(D)
        if not self.spread <= SPREAD_MAX:
            return self.stop(Status.DIVERGED)
        self.c, self.k = c, self.k + 1
        if self.return_all:
            self.path.append(c.clone())
        if self.k % self.every == 0:
            self.s *= self.factor
        return self.progress(Stop.CONVERGED if float(torch.linalg.vector_norm(c - before)) < self.tol else None)

    def conclude(self) -> None:
        """Evaluate the last consensus."""
        self.fun_consensus = float(self.objective(self.c[None])[0])

    def report(self, result: OptimizeResult) -> None:
        """Put the last consensus forward, the best point beside it."""
        result.update(
            best_x=result.x, best_fun=result.fun, x=self.out(self.c), fun=self.fun_consensus,
            step=self.alpha * self.s**2 if self.s else 0.0, alpha=self.alpha, sigma=self.s,
            success=result.status not in (Status.DIVERGED, Status.FAILED),
        )  # fmt: skip
