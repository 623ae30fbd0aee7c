r"""Primal-dual steps for the convex program of any loss, against perturbations of the inputs or without.

A vector is split into parts p, m >= 0 with v = p - m: its robust cone ``E x'(p - m) >= r'(p + m)`` is linear, and
the norm of the pair stands for that of v. The worst-case loss is written with multipliers of each sample: t of the
margin or residual, q of the 1-norm, bounded by multiples of t:

    hinge     max  t (1 - y x'c) + q'c              0 <= t <= 1,  |q_j| <= r_j t
    logistic  max  -2 t y x'c + q'c + entropy(t)    0 <= t <= 1,  |q_j| <= 2 r_j t
    squared   max  tau (x'c - y) + q'c - t^2 / 2    |tau| <= t,   |q_j| <= r_j t

The proximal step of the multipliers is a root in t alone. Step sizes are the inverse norm of the operator times and
over a weight, which follows the distances travelled at each restart; a restart goes to the average or the iterate once
the error has halved, or after long.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from steepest.convex import _losses
from steepest.convex._program import Candidate, Program
from steepest.core.linalg import operator_norm

__all__ = ["Point", "PrimalDual", "candidate_of", "root_of_multiplier"]

LOOK_EACH = 20
"""Iterations between two looks at the average."""


@dataclass
class Point:
    """Parts (2, 2, P, d), multipliers of samples tau (n,), q (n, d), t (n,) and of the cones mu (2, P, n)."""

    parts: Tensor
    tau: Tensor
    q: Tensor
    t: Tensor
    mu: Tensor

    def combine(self, other: Point, a: float, b: float) -> Point:
        return Point(*(a * x + b * y for x, y in zip(self.tensors, other.tensors, strict=True)))

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        return self.parts, self.tau, self.q, self.t, self.mu

    @property
    def u(self) -> Tensor:
        return self.parts[:, 0] - self.parts[:, 1]


class PrimalDual:
    """One iteration at a time; `point` is the iterate."""

    def __init__(self, program: Program, point: Point | None = None) -> None:
        self.program = program
        X = program.X
        n, (_, P, d) = len(X), program.shape
        zeros = X.new_zeros
        self.point = point or Point(zeros((2, 2, P, d)), zeros(n), zeros((n, d)), zeros(n), zeros((2, P, n)))
        self._norm = 1.01 * operator_norm(self._flat, 4 * P * d, adjoint=self._flat_adjoint, seed=0, rtol=1e-4)
        self._weight = 1.0
        self._anchor = self._sum = self.point
        self._steps, self._error, self._iteration = 0, math.inf, 0
        self.primal_residual = self.dual_residual = math.inf

    def step(self) -> None:
        tau, sigma = 1 / (self._norm * self._weight), self._weight / self._norm
        at = self.point
        parts = (at.parts - tau * pull_back(self.program, at)).clamp(min=0)
        parts = _shrink_pairs(parts, tau * self.program.beta)
        ahead = 2 * parts - at.parts
        new = self._ascend(at, ahead, sigma)
        new.parts = parts
        self.primal_residual = float((parts - at.parts).norm()) / tau
        self.dual_residual = math.sqrt(sum(float((a - b).norm()) ** 2 for a, b in _dual_pairs(new, at))) / sigma
        self.point = new
        self._sum = new if self._steps == 0 else self._sum.combine(new, 1.0, 1.0)
        self._steps += 1
        self._iteration += 1
        if self._iteration % LOOK_EACH == 0:
            self._look()

    def candidate(self) -> Candidate:
        return candidate_of(self.program, self.point)

    # ---- the operator: parts -> (x'c, c, cones)

    def _forward(self, parts: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        program = self.program
        u = parts[:, 0] - parts[:, 1]
        c = program.coefficients(u)
        cones = program.cone(u) - (parts.sum(1) @ program.radius)[..., None]
        return (program.X * c).sum(1), c, cones

    def _flat(self, x: Tensor) -> Tensor:
        margin, c, cones = self._forward(x.reshape(self.point.parts.shape))
        return torch.cat([margin, c.reshape(-1), -cones.reshape(-1)])

    def _flat_adjoint(self, x: Tensor) -> Tensor:
        at = self.point
        tau, q, mu = x.split([at.tau.numel(), at.q.numel(), at.mu.numel()])
        dual = Point(at.parts, tau, q.reshape(at.q.shape), at.t, mu.reshape(at.mu.shape))
        return pull_back(self.program, dual).reshape(-1)

    def _ascend(self, at: Point, ahead: Tensor, sigma: float) -> Point:
        """Move the multipliers up and back into their sets."""
        program, y = self.program, self.program.y
        margin, c, cones = self._forward(ahead)
        tau, q = at.tau + sigma * margin, at.q + sigma * c
        if program.loss == "squared":
            tau = tau - sigma * y
            t = root_of_multiplier("squared", tau.abs(), q.abs(), program.radius, sigma)
            tau = tau.clamp(-t, t)
        else:
            scale = 2.0 if program.loss == "logistic" else 1.0
            t = root_of_multiplier(program.loss, -y * tau / scale, q.abs(), scale * program.radius, sigma, scale)
            tau = -scale * y * t
            t_limit = scale * t
        limit = (t if program.loss == "squared" else t_limit)[:, None] * program.radius
        return Point(at.parts, tau, q.clamp(-limit, limit), t, (at.mu - sigma * cones).clamp(min=0))

    def _error_of(self, at: Point) -> float:
        candidate = candidate_of(self.program, at)
        objective, dual = self.program.objective(candidate.u), self.program.dual_bound(candidate)
        return abs(objective - dual) / max(abs(objective), 1e-12) + self.program.violation(candidate.u)

    def _look(self) -> None:
        """Restart from the average when it halves the error of the last start, and set the weight anew."""
        average = self._sum.combine(self._sum, 1.0 / self._steps, 0.0)
        of_average, of_last = self._error_of(average), self._error_of(self.point)
        best, error = (average, of_average) if of_average < of_last else (self.point, of_last)
        if error > 0.5 * self._error and self._steps < 0.4 * self._iteration:
            return
        primal = float((best.parts - self._anchor.parts).norm())
        dual = math.sqrt(sum(float((a - b).norm()) ** 2 for a, b in _dual_pairs(best, self._anchor)))
        if primal > 1e-12 and dual > 1e-12:
            self._weight = math.exp(0.5 * math.log(dual / primal) + 0.5 * math.log(self._weight))
        self.point = self._anchor = self._sum = best
        self._steps, self._error = 0, error


# ---- the value of a point


def pull_back(program: Program, at: Point) -> Tensor:
    """Gradient in the parts: (2, 2, P, d)."""
    along = _loss_pull(program, at) - program.cone_adjoint(at.mu)
    shared = at.mu.sum(-1)[..., None] * program.radius
    return torch.stack([along + shared, shared - along], dim=1)


def candidate_of(program: Program, at: Point) -> Candidate:
    """Give the vectors of a point with the bound that its multipliers prove."""
    slope = (-pull_back(program, at)).clamp(min=0).square().sum((1, 3)).sqrt()
    ceiling = math.inf if program.loss == "squared" else 1.0

    def dual_at(c: float) -> float:
        lower = -float(_losses.conjugate(program.loss, (c * at.t).clamp(max=ceiling)).sum())
        return lower - (c * float(at.tau @ program.y) if program.loss == "squared" else 0.0)

    return Candidate(at.u, -_loss_pull(program, at), slope, dual_at)


def _loss_pull(program: Program, at: Point) -> Tensor:
    """Gradient of the loss part in u: (2, P, d)."""
    return program.halves * (program.patterns @ (at.tau[:, None] * program.X + at.q))


def root_of_multiplier(loss: str, start: Tensor, q: Tensor, radius: Tensor, sigma: float, scale: float = 1.0) -> Tensor:
    r"""Minimize the proximal function of t for each sample, by Newton's method inside a bracket.

    Its derivative is :math:`\kappa^2 (t - t_0) - \sum_j r_j (q_j - r_j t)_+ + \sigma\,` conj'(t), with the first term
    :math:`-(t_0 - t)_+` for the squared loss; `start` is t_0 (n,), `q` (n, d) absolute values, `scale` kappa.
    """

    def slope(t: Tensor) -> tuple[Tensor, Tensor]:
        over = q - t[:, None] * radius
        first = -(over.clamp(min=0) @ radius)
        second = (over > 0).to(t) @ radius.square()
        if loss == "squared":
            return first - (start - t).clamp(min=0) + sigma * t, second + (t < start).to(t) + sigma
        first, second = first + scale**2 * (t - start), second + scale**2
        if loss == "hinge":
            return first - sigma, second
        return first + sigma * torch.logit(t), second + sigma / (t * (1 - t)).clamp(min=1e-300)

    low = torch.zeros_like(start)
    if loss == "squared":
        reach = torch.where(radius > 0, q / radius.clamp(min=1e-300), torch.zeros_like(q)).amax(1)
        high = torch.maximum(start, reach)
    else:
        high = torch.ones_like(start)
    if loss == "hinge":
        high = torch.where(slope(low)[0] >= 0, low, high)
        low = torch.where(slope(high)[0] <= 0, high, low)
    t = (low + high) / 2
    for _ in range(100):
        g, h = slope(t)
        low, high = torch.where(g <= 0, t, low), torch.where(g >= 0, t, high)
        new = t - g / h
        new = torch.where((new >= low) & (new <= high), new, (low + high) / 2)
        done = bool(((new - t).abs() <= 1e-15 * (1 + t)).all())
        t = new
        if done:
            break
    return t


def _shrink_pairs(parts: Tensor, by: float) -> Tensor:
    """Shrink the joint norm of the two parts of each vector."""
    norms = parts.square().sum((1, 3), keepdim=True).sqrt()
    return parts * (1 - by / norms.clamp(min=torch.finfo(parts.dtype).tiny)).clamp(min=0)


def _dual_pairs(a: Point, b: Point) -> list[tuple[Tensor, Tensor]]:
    return [(a.tau, b.tau), (a.q, b.q), (a.mu, b.mu)]
