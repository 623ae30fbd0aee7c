r"""The convex program of a two-layer ReLU network: its products, its feasible points and the value of its dual.

    minimize    sum_k loss(c_k; x_k, y_k) + beta sum_i (||v_i|| + ||w_i||),   c_k = sum_i D_i[k] (v_i - w_i)
    subject to  E_i[k] x_k^T v_i >= r^T |v_i|,  E_i[k] x_k^T w_i >= r^T |w_i|     for every sample k and pattern i

D_i is pattern i as zeros and ones, E_i = 2 D_i - 1, r the radius of the perturbations of each column (all zero in plain
training, where the loss depends on :math:`x_k^T c_k` alone). Vectors v and w are the two halves of an array (2, P, d).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from scipy.optimize import linprog, nnls
from torch import Tensor

from steepest.convex import _losses
from steepest.core.distributed import all_reduce_sum

__all__ = ["Candidate", "Certificate", "Program"]


@dataclass
class Candidate:
    """What a solver holds after an iteration: a nearly feasible point, and multipliers that bound the optimum.

    `pull` (2, P, d) is minus the gradient of the loss part at the dual point, `slope` (2, P) the norm of `pull` plus
    the multipliers' pull (an upper bound on the smallest one), `dual_at` the dual's value at c times the dual point.
    """

    u: Tensor
    pull: Tensor
    slope: Tensor
    dual_at: Callable[[float], float]


@dataclass
class Certificate:
    """A feasible point (or, where none is near, the network's own patterns), its objective and the bound below it."""

    u: Tensor
    objective: float
    dual: float
    violation: float
    feasible: bool

    @property
    def gap(self) -> float:
        return self.objective - self.dual


@dataclass
class Program:
    """Data, patterns and penalty; `X` (n, d), `y` (n,), `patterns` (P, n) of zeros and ones, `radius` (d,).

    With a process `group` the patterns are this rank's share, and predictions and sums are those of all ranks.
    """

    X: Tensor
    y: Tensor
    patterns: Tensor
    loss: str
    beta: float
    radius: Tensor
    group: Any = None
    signs: Tensor = field(init=False)
    halves: Tensor = field(init=False)

    def __post_init__(self) -> None:
        self.signs = 2 * self.patterns - 1
        self.halves = self.X.new_tensor([1.0, -1.0])[:, None, None]

    @property
    def robust(self) -> bool:
        return bool(self.radius.any())

    @property
    def shape(self) -> tuple[int, int, int]:
        return 2, len(self.patterns), self.X.shape[1]

    def forward(self, u: Tensor) -> Tensor:
        """F u: predictions (n,) through the fixed patterns."""
        return self.total((self.patterns * ((u[0] - u[1]) @ self.X.T)).sum(0))

    def total(self, share: Tensor) -> Tensor:
        """Sum over the ranks, in place."""
        all_reduce_sum([share], self.group)
        return share

    def norm(self, *shares: Tensor) -> float:
        """Euclidean norm of what all ranks hold."""
        return math.sqrt(float(self.total(torch.stack([share.square().sum() for share in shares]).sum())))

    def adjoint(self, residual: Tensor) -> Tensor:
        """F' r: (2, P, d)."""
        return self.halves * ((self.patterns * residual) @ self.X)

    def cone(self, u: Tensor) -> Tensor:
        """G u: (2, P, n), nonnegative where a vector has its pattern."""
        return self.signs * (u @ self.X.T)

    def cone_adjoint(self, s: Tensor) -> Tensor:
        """G' s: (2, P, d)."""
        return (self.signs * s) @ self.X

    def coefficients(self, u: Tensor) -> Tensor:
        """c: (n, d), what each sample is multiplied with."""
        return self.patterns.T @ (u[0] - u[1])

    def penalty(self, u: Tensor) -> float:
        return self.beta * float(self.total(torch.linalg.vector_norm(u, dim=-1).sum()))

    def objective(self, u: Tensor) -> float:
        """Value at u, whether or not it is feasible."""
        sink: Tensor | float = self.coefficients(u).abs() @ self.radius if self.robust else 0.0
        return float(_losses.value(self.loss, self.forward(u), self.y, sink).sum()) + self.penalty(u)

    def network(self, u: Tensor) -> Tensor:
        """Predictions (n,) of the network with these neurons, each with the pattern that it really has."""
        alive = [half[half.any(-1)] for half in u]
        return (self.X @ alive[0].T).clamp(min=0).sum(1) - (self.X @ alive[1].T).clamp(min=0).sum(1)

    def network_objective(self, u: Tensor) -> float:
        """Non-convex objective of the balanced network, at the unperturbed samples."""
        return float(_losses.value(self.loss, self.network(u), self.y).sum()) + self.penalty(u)

    def violation(self, u: Tensor) -> float:
        """Largest amount by which a constraint is missed."""
        return max(0.0, -float((self.cone(u) - (u.abs() @ self.radius)[..., None]).min()))

    def cone_rows(self, i: int) -> np.ndarray:
        """Rows A of pattern i's cone ``A z >= 0``; with a radius z is (positive part, negative part) of the vector."""
        rows = (self.signs[i][:, None] * self.X).cpu().numpy()
        if not self.robust:
            return rows
        radius = self.radius.cpu().numpy()
        return np.vstack([np.hstack([rows - radius, -rows - radius]), np.eye(2 * rows.shape[1])])

    def points_inside(self) -> Tensor:
        """Small vectors (P, d) that keep their pattern over all boxes, by a linear program each; zero if none does."""
        d = self.X.shape[1]
        found = np.zeros((len(self.patterns), d))
        for i in range(len(found)):
            rows = self.cone_rows(i)[: len(self.X)]
            point = linprog(np.ones(2 * d), A_ub=-rows, b_ub=-np.ones(len(rows)), method="highs")
            if point.status == 0:
                found[i] = point.x[:d] - point.x[d:]
        return torch.as_tensor(found).to(self.X)

    def of_patterns(self, chosen: Tensor) -> Program:
        """Give the program of these patterns (P,) alone."""
        return Program(self.X, self.y, self.patterns[chosen], self.loss, self.beta, self.radius)

    def feasible(self, u: Tensor) -> Tensor:
        """Give the nearest vectors in their cones."""
        u = u.clone()
        for half, i in torch.nonzero(u.any(-1)).tolist():
            u[half, i] = self._nearest(u[half, i], i)
        return u

    def dual_bound(self, candidate: Candidate) -> float:
        """Value of the dual with the solver's own multipliers."""
        return candidate.dual_at(self._shrink(float(candidate.slope.max())))

    def certify(self, candidate: Candidate, tol: float) -> Certificate:
        """Project onto the cones, find the best multipliers of the patterns that bind, and compare the two values."""
        violation = self.violation(candidate.u)
        u = self.feasible(candidate.u)
        objective, feasible = self.objective(u), True
        if not self.robust:
            own = self.network_objective(candidate.u)
            if objective - own > tol * max(own, 1e-12) and violation > tol:
                u, objective, feasible = candidate.u.clone(), own, False
        slope = candidate.slope.cpu().numpy().copy()
        done = np.zeros(slope.shape, dtype=bool)
        while True:
            half, i = (int(k) for k in np.unravel_index(int(slope.argmax()), slope.shape))
            if slope[half, i] <= self.beta or done[half, i]:
                break
            if feasible and objective - candidate.dual_at(self._shrink(float(slope.max()))) <= 0.1 * tol * objective:
                break
            pull = candidate.pull[half, i].cpu().numpy()
            target = np.concatenate([pull, -pull]) if self.robust else pull
            slope[half, i] = min(slope[half, i], _cone_distance(self.cone_rows(i), target))
            done[half, i] = True
        dual = candidate.dual_at(self._shrink(float(slope.max())))
        return Certificate(u, objective, dual, violation, feasible)

    def _shrink(self, slope: float) -> float:
        return min(1.0, self.beta / slope) if slope > 0 else 1.0

    def _nearest(self, vector: Tensor, i: int) -> Tensor:
        """Nearest vector of pattern i's cone (with a radius: nearest pair of parts)."""
        z = vector.cpu().numpy()
        z = np.concatenate([z.clip(0), (-z).clip(0)]) if self.robust else z
        rows = self.cone_rows(i)
        if (rows @ z).min() < 0:
            z = z + rows.T @ nnls(rows.T, -z, maxiter=100 * len(rows))[0]
        d = len(vector)
        return torch.as_tensor(z[:d] - z[d:] if self.robust else z).to(vector)


def _cone_distance(rows: np.ndarray, pull: np.ndarray) -> float:
    """Smallest norm of ``pull + rows' s`` over s >= 0."""
    return float(nnls(rows.T, -pull, maxiter=100 * len(rows))[1])
