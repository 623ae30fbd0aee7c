r"""Interior-point steps for the convex program: the last digits, where ADMM is slow.

With slacks a = G u > 0 and multipliers t > 0, norms smoothed to :math:`q = \sqrt{\mu^2 + \beta^2 \|u\|^2}` and their
gradients kept as unknowns p of their own (as in primal-dual methods for total variation), one step is Newton's on

    F' g(F u) + p - G' t = 0,    G u = a,    a t = mu,    p (mu + q) = beta^2 u.

Without a, t and p it is (K + F' W F) du = b with one block of K for each vector, W the second derivatives of the loss,
so that again only a matrix of n rows couples all: (I + sqrt(W) F K^{-1} F' sqrt(W)) is factored. Blocks of vectors that
are free to grow are nearly singular; a ridge keeps them definite, and refinement on (du, W F du) takes it away again.
The hinge has a slack and a multiplier for each of its two pieces, from which its W follows.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from scipy.optimize import linprog
from torch import Tensor

from steepest.convex import _losses
from steepest.convex._program import Candidate, Program

__all__ = ["InteriorPoint", "fewest", "is_affordable"]

MOST_WORK = 2e10
"""Multiply-adds of a step up to which it is taken."""
START_SLACK, START_PRODUCT = 0.1, 10.0
"""First slacks in units of the targets, first a t in units of the loss at zero over the number of constraints."""
SHORTEN, CENTER = 0.99, 0.1
"""Share of the way to the boundary, and by how much mu sinks after a full step."""
RIDGE, ROUNDING, REFINEMENTS = 1e-6, 1e-15, 2
SHUT = 10.0
"""Vectors whose norm is below so many mu / beta count as zero."""


def fewest(program: Program, u: Tensor) -> Tensor:
    """Give at most n of the vectors, rescaled, with the same predictions and no larger norms.

    Interior points end in the middle of all optima, where most vectors are not zero. With c_g the new norms of the
    directions, a vertex of ``min 1'c, Phi c = F u, c >= 0`` (by HiGHS) is as good and has as many nonzeros as rows.
    """
    norms = torch.linalg.vector_norm(u, dim=-1, keepdim=True)
    units = u / norms.clamp(min=torch.finfo(u.dtype).tiny)
    outputs = program.halves * (program.patterns * (units @ program.X.T))  # (2, P, n)
    alive = norms[..., 0] > 0
    if int(alive.sum()) <= 1:
        return u
    columns, f = outputs[alive].T.cpu().numpy(), program.forward(u).cpu().numpy()
    scale = float(np.abs(f).max()) or 1.0
    found = linprog(np.ones(columns.shape[1]), A_eq=columns, b_eq=f / scale, method="highs-ds")
    if found.x is None:
        return u
    sizes = torch.zeros_like(norms[..., 0])
    sizes[alive] = scale * torch.as_tensor(found.x).to(u)
    return units * sizes[..., None]


def is_affordable(program: Program) -> bool:
    """Whether a step's products of n^2 P d numbers stay within bounds."""
    n, (_, P, d) = len(program.X), program.shape
    return not program.robust and 2 * P * d * n * n <= MOST_WORK


class InteriorPoint:
    """One iteration at a time; `u` (2, P, d) is feasible in the end, `t` (2, P, n) are the cones' multipliers."""

    def __init__(self, program: Program, tol: float) -> None:
        self.program, self.tol = program, tol
        X, y = program.X, program.y
        self._count = 2 * len(program.patterns) * (len(X) + 1)
        self.u = X.new_zeros(program.shape)
        scale = START_SLACK * float(y.square().mean().sqrt()) or START_SLACK
        self._a = X.new_full((*program.shape[:2], len(X)), scale)
        self._mu = START_PRODUCT * float(_losses.value(program.loss, 0 * y, y).sum() or 1.0) / self._count
        self.t = torch.full_like(self._a, self._mu / scale)
        self.p = torch.zeros_like(self.u)
        self._loss = (Hinge if program.loss == "hinge" else Smooth)(program)
        self.primal_residual = self.dual_residual = math.inf

    def step(self) -> None:
        program, beta, mu = self.program, self.program.beta, self._mu
        X, u, a, t = program.X, self.u, self._a, self.t
        q = torch.sqrt(mu**2 + beta**2 * u.square().sum(-1, keepdim=True))
        h = beta**2 / (mu + q)
        missed = program.cone(u) - a
        g, W, z_shift = self._loss.newton(program.forward(u), mu)

        up = self.p[..., None] * u[..., None, :]
        norms = h[..., None] * (torch.eye(X.shape[1]).to(X) - (up + up.mT) / (2 * q[..., None]))
        weighed = ((t / a)[..., None] * X).mT @ X
        K = norms + weighed
        b = program.cone_adjoint(t + (mu - a * t - t * missed) / a) - program.adjoint(g) - h * u
        du, z = Blocks(program, K, RIDGE * h[..., 0], W).solve(b)

        da = program.cone(du) + missed
        dt = (mu - a * t - t * da) / a
        dp = h * u + (norms @ du[..., None])[..., 0] - self.p
        primal, dual = self._loss.move(z + z_shift, program.forward(du))
        along = SHORTEN * min(_reach(a, da), primal)
        across = SHORTEN * min(_reach(t, dt), dual)
        along, across = min(1.0, along), min(1.0, across)
        while float(torch.linalg.vector_norm(self.p + across * dp, dim=-1).max()) >= beta and across > 1e-12:
            across *= 0.9
        self.u, self._a = u + along * du, a + along * da
        self.t, self.p = t + across * dt, self.p + across * dp
        self._loss.apply(along, across)
        self.primal_residual, self.dual_residual = float(missed.norm()), float((mu - a * t).norm())
        self._sink(min(along, across))

    def candidate(self) -> Candidate:
        program = self.program
        nu = self._loss.nu(program.forward(self.u))
        pull = program.adjoint(nu)
        slope = torch.linalg.vector_norm(pull + program.cone_adjoint(self.t), dim=-1)
        alive = torch.linalg.vector_norm(self.u, dim=-1, keepdim=True) > SHUT * self._mu / program.beta
        return Candidate(
            self.u * alive, pull, slope, lambda c: float(_losses.dual_value(program.loss, c * nu, program.y))
        )

    def _sink(self, length: float) -> None:
        """Lower mu after long steps, down to what the tolerance asks for."""
        total, count = self._loss.products()
        mean = (float((self._a * self.t).sum()) + total) / (self._a.numel() + count)
        enough = 0.02 * self.tol * abs(self.program.objective(self.u)) / self._count
        self._mu = max(min(self._mu, mean) * max(CENTER, 0.9 * (1 - length) ** 2), enough, 1e-300)


class Blocks:
    """Solve K du + F' z = b, F du = z / W, with K block by block."""

    def __init__(self, program: Program, K: Tensor, ridge: Tensor, W: Tensor) -> None:
        self.program, self._K, self._W = program, K, W
        firm = K.clone()
        diagonal = firm.diagonal(dim1=-2, dim2=-1)
        diagonal += (ridge + ROUNDING * diagonal.amax(-1))[..., None]
        self._L = torch.linalg.cholesky(firm)
        self._root = W.sqrt()
        X = program.X
        half = torch.linalg.solve_triangular(self._L, X.T.expand(*K.shape[:2], *X.T.shape), upper=False)
        F = (half * (self._root * program.patterns)[:, None, :]).reshape(-1, len(X))
        system = F.T @ F
        system.diagonal().add_(1.0)
        self._S = torch.linalg.cholesky(system)

    def solve(self, b: Tensor) -> tuple[Tensor, Tensor]:
        du, z = self._once(b, torch.zeros_like(self._W))
        for _ in range(REFINEMENTS):
            left = b - (self._K @ du[..., None])[..., 0] - self.program.adjoint(z)
            more, extra = self._once(left, z / self._W - self.program.forward(du))
            du, z = du + more, z + extra
        return du, z

    def _once(self, b: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        free = torch.cholesky_solve(b[..., None], self._L)[..., 0]
        right = self._root * (self.program.forward(free) - c)
        z = self._root * torch.cholesky_solve(right[:, None], self._S)[:, 0]
        return torch.cholesky_solve((b - self.program.adjoint(z))[..., None], self._L)[..., 0], z


class Smooth:
    """Squared and logistic losses: nothing of their own moves."""

    def __init__(self, program: Program) -> None:
        self.toss, self.y = program.loss, program.y

    def newton(self, f: Tensor, mu: float) -> tuple[Tensor, Tensor, Tensor]:
        """Gradient and second derivative of the model, and what makes W F du the change of the multiplier."""
        g = _losses.gradient(self.toss, f, self.y)
        if self.toss == "squared":
            return g, torch.ones_like(f), torch.zeros_like(f)
        return g, (-g * (2 * self.y + g)).clamp(min=1e-300), torch.zeros_like(f)

    def move(self, z: Tensor, df: Tensor) -> tuple[float, float]:
        return math.inf, math.inf

    def apply(self, along: float, across: float) -> None:
        pass

    def products(self) -> tuple[float, int]:
        return 0.0, 0

    def nu(self, f: Tensor) -> Tensor:
        return -_losses.gradient(self.toss, f, self.y)


class Hinge:
    """xi >= 0 and zeta = xi - 1 + y f >= 0 with multipliers 1 - t and t."""

    def __init__(self, program: Program) -> None:
        self.y = program.y
        self.xi, self.zeta, self.t = (torch.full_like(self.y, value) for value in (1.0, 1.0, 0.5))

    def newton(self, f: Tensor, mu: float) -> tuple[Tensor, Tensor, Tensor]:
        xi, zeta, t = self.xi, self.zeta, self.t
        missed = xi - 1 + self.y * f - zeta
        self._first, self._second = mu - t * zeta, mu - (1 - t) * xi
        Q = zeta + t * xi / (1 - t)
        shift = (self._first - t * self._second / (1 - t) - t * missed) / Q
        return -self.y * (t + shift), t / Q, -self.y * shift

    def move(self, z: Tensor, df: Tensor) -> tuple[float, float]:
        """Changes that follow from that of the multiplier; how far they reach."""
        self._dt = -self.y * z
        self._dxi = (self._second + self.xi * self._dt) / (1 - self.t)
        self._dzeta = (self._first - self.zeta * self._dt) / self.t
        primal = min(_reach(self.xi, self._dxi), _reach(self.zeta, self._dzeta))
        return primal, min(_reach(self.t, self._dt), _reach(1 - self.t, -self._dt))

    def apply(self, along: float, across: float) -> None:
        self.xi, self.zeta = self.xi + along * self._dxi, self.zeta + along * self._dzeta
        self.t = self.t + across * self._dt

    def products(self) -> tuple[float, int]:
        return float((self.t * self.zeta + (1 - self.t) * self.xi).sum()), 2 * len(self.y)

    def nu(self, f: Tensor) -> Tensor:
        return self.t * self.y


def _reach(x: Tensor, dx: Tensor) -> float:
    """Largest step that keeps x nonnegative."""
    down = dx < 0
    return float((x[down] / -dx[down]).min()) if bool(down.any()) else math.inf
