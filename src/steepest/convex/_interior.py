r"""Interior-point steps for the convex program: the last digits, where ADMM is slow.

Slacks a = G u > 0 have multipliers t > 0; each norm is a cone tau >= \|u\| with multiplier (beta, -p), \|p\| <= beta.
A step is Newton's on

    F' g(F u) + p - G' t = 0,    G u = a,    a t = mu,    (tau, u) o (beta, -p) = (mu, 0)

with o the product of second-order cones, scaled symmetrically (Nesterov and Todd), and mu chosen after a trial
step towards mu = 0, whose products also correct for curvature (Mehrotra). Without a, t, tau and p it is
(K + F' W F) du = b with one block of K for each vector, W the second derivatives of the loss, so that again only a
matrix of n rows couples all: (I + sqrt(W) F K^{-1} F' sqrt(W)) is factored. Blocks of vectors that are free to grow are
nearly singular; a ridge keeps them definite, and refinement on (du, W F du) takes it away again. The hinge has a slack
and a multiplier for each of its two pieces, from which its W follows.
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
SHORTEN = 0.99
"""Share of the way to the boundary."""
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
    """One iteration at a time; `u` (2, P, d) is feasible in the end, `t` (2, P, n) are the cones' multipliers.

    `p` (2, P, d) are those of the norms, with norms of at most beta.
    """

    def __init__(self, program: Program, tol: float) -> None:
        self.program, self.tol = program, tol
        X, y = program.X, program.y
        self._count = 2 * len(program.patterns) * (len(X) + 1)
        slack = START_SLACK * float(y.square().mean().sqrt()) or START_SLACK
        mu = START_PRODUCT * float(_losses.value(program.loss, 0 * y, y).sum() or 1.0) / self._count
        self._loss = (Hinge if program.loss == "hinge" else Smooth)(program)
        self._cones = Pairs(X.new_full((*program.shape[:2], len(X)), slack), mu)
        self._norms = Norms(X.new_zeros(program.shape), program.beta, mu)
        self.primal_residual = self.dual_residual = math.inf

    @property
    def u(self) -> Tensor:
        return self._norms.u

    @property
    def t(self) -> Tensor:
        return self._cones.t

    @property
    def p(self) -> Tensor:
        return self._norms.p

    def step(self) -> None:
        program, cones, norms = self.program, self._cones, self._norms
        f, missed = program.forward(self.u), program.cone(self.u) - cones.a
        K = norms.curvature() + ((cones.t / cones.a)[..., None] * program.X).mT @ program.X
        blocks = Blocks(program, K, RIDGE * norms.stiffness, self._loss.curvature(f))

        def solve(mu: float, corrected: bool) -> float:
            """Set the directions of all parts towards a t = mu; give the length of the step to the boundary."""
            g, push = self._loss.aim(f, mu, corrected), cones.aim(mu, missed, corrected)
            du, z = blocks.solve(
                program.cone_adjoint(push) - program.adjoint(g) + norms.aim(mu, corrected), REFINEMENTS * corrected
            )
            return min(
                cones.move(program.cone(du) + missed),
                norms.move(du),
                self._loss.move(z),
            )

        mean, enough = self._mean(), 0.02 * self.tol * abs(program.objective(self.u)) / self._count
        ahead = min(1.0, solve(0.0, False))
        length = min(1.0, SHORTEN * solve(max((1 - ahead) ** 3 * mean, enough, 1e-300), True))
        for part in (cones, norms, self._loss):
            part.apply(length)
        self.primal_residual, self.dual_residual = float(missed.norm()), mean

    def candidate(self) -> Candidate:
        program = self.program
        nu = self._loss.nu(program.forward(self.u))
        pull = program.adjoint(nu)
        slope = torch.linalg.vector_norm(pull + program.cone_adjoint(self.t), dim=-1)
        alive = torch.linalg.vector_norm(self.u, dim=-1, keepdim=True) > SHUT * self._mean() / program.beta
        return Candidate(
            self.u * alive, pull, slope, lambda c: float(_losses.dual_value(program.loss, c * nu, program.y))
        )

    def _mean(self) -> float:
        """Mean of the products that mu stands for."""
        parts = [part.products() for part in (self._cones, self._norms, self._loss)]
        return sum(total for total, _ in parts) / sum(count for _, count in parts)


class Pairs:
    """Slacks a > 0 with multipliers t > 0."""

    def __init__(self, a: Tensor, mu: float) -> None:
        self.a, self.t = a, mu / a
        self._da = self._dt = torch.zeros_like(a)

    def aim(self, mu: float, missed: Tensor, corrected: bool) -> Tensor:
        """Give the multipliers after the step, but for what the slacks change."""
        self._r = mu - self.a * self.t - (self._da * self._dt if corrected else 0.0)
        return self.t + (self._r - self.t * missed) / self.a

    def move(self, da: Tensor) -> float:
        self._da, self._dt = da, (self._r - self.t * da) / self.a
        return min(_reach(self.a, self._da), _reach(self.t, self._dt))

    def apply(self, length: float) -> None:
        self.a, self.t = self.a + length * self._da, self.t + length * self._dt

    def products(self) -> tuple[float, int]:
        return float((self.a * self.t).sum()), self.a.numel()


class Norms:
    """Cones tau >= ||u|| with multipliers (beta, -p); a pair (number, vector) is one tensor (..., 1 + d).

    With both scaled to determinant one, and w the unit vector halfway, W = eta [w_0, w_1'; w_1, I + w_1 w_1' /
    (1 + w_0)] takes the multiplier where W^{-1} takes the cone: to `_middle`.
    """

    def __init__(self, u: Tensor, beta: float, mu: float) -> None:
        self._s = torch.cat([torch.full_like(u[..., :1], mu / beta), u], -1)
        self._z = torch.cat([torch.full_like(u[..., :1], beta), torch.zeros_like(u)], -1)
        self._ds = self._dz = torch.zeros_like(self._s)

    @property
    def u(self) -> Tensor:
        return self._s[..., 1:]

    @property
    def p(self) -> Tensor:
        return -self._z[..., 1:]

    def curvature(self) -> Tensor:
        """Second derivatives (2, P, d, d) in u, tau eliminated; also sets the scaling."""
        size_s, size_z = _determinant(self._s), _determinant(self._z)
        s, z = self._s / size_s.sqrt(), self._z / size_z.sqrt()
        middle = s + _reflect(z)
        self._w = middle / (2 * (1 + (s * z).sum(-1, keepdim=True))).sqrt()
        self._eta = (size_s / size_z) ** 0.25
        self._middle = self._scaled(self._z, 1.0)
        self._long = 2 * self._w[..., :1] ** 2 - 1
        w = self._w[..., 1:]
        curvature = torch.eye(w.shape[-1]).to(w) - (2 / self._long * w)[..., None] * w[..., None, :]
        return curvature * self.stiffness[..., None]

    @property
    def stiffness(self) -> Tensor:
        """Largest second derivative (2, P, 1)."""
        return self._eta**-2

    def aim(self, mu: float, corrected: bool) -> Tensor:
        """Give minus p after the step, but for what u changes."""
        r = -_product(self._middle, self._middle)
        r[..., 0] += mu
        if corrected:
            r = r - _product(self._scaled(self._ds, -1.0), self._scaled(self._dz, 1.0))
        self._c = self._scaled(_quotient(r, self._middle), -1.0)
        tilt = 2 * self._w[..., :1] / self._long * self._w[..., 1:]
        return self._z[..., 1:] + self._c[..., 1:] + tilt * self._c[..., :1]

    def move(self, du: Tensor) -> float:
        first, w = self._w[..., :1], self._w[..., 1:]
        along = (w * du).sum(-1, keepdim=True)
        dtau = (self._c[..., :1] / self.stiffness + 2 * first * along) / self._long
        dz = self._c[..., 1:] - self.stiffness * (du + 2 * w * (along - first * dtau))
        self._ds, self._dz = torch.cat([dtau, du], -1), torch.cat([torch.zeros_like(dtau), dz], -1)
        steps = (self._scaled(self._ds, -1.0), self._scaled(self._dz, 1.0))
        return min(_reach_of_cone(self._middle, step) for step in steps)

    def apply(self, length: float) -> None:
        self._s, self._z = self._s + length * self._ds, self._z + length * self._dz

    def products(self) -> tuple[float, int]:
        return float((self._s * self._z).sum()), self._s[..., 0].numel()

    def _scaled(self, x: Tensor, power: float) -> Tensor:
        """W x, or its inverse."""
        first, w = self._w[..., :1], self._w[..., 1:]
        along = (w * x[..., 1:]).sum(-1, keepdim=True)
        out = torch.cat([first * x[..., :1] + power * along,
                         power * x[..., :1] * w + x[..., 1:] + along / (1 + first) * w], -1)  # fmt: skip
        return out * self._eta**power


class Blocks:
    """Solve K du + F' z = b, F du = z / W, with K block by block."""

    def __init__(self, program: Program, K: Tensor, ridge: Tensor, W: Tensor) -> None:
        self.program, self._K, self._W = program, K, W
        firm = K.clone()
        diagonal = firm.diagonal(dim1=-2, dim2=-1)
        diagonal += ridge + ROUNDING * diagonal.amax(-1, keepdim=True)
        self._L = torch.linalg.cholesky(firm)
        self._root = W.sqrt()
        X = program.X
        roots = torch.linalg.solve_triangular(self._L, torch.eye(X.shape[1]).to(K).expand_as(K), upper=False)
        both = torch.linalg.qr(torch.cat([*roots], dim=-2), mode="r").R  # v and w of a pattern are gated alike
        F = ((both @ X.T) * (self._root * program.patterns)[:, None]).reshape(-1, len(X))
        system = F.T @ F
        system.diagonal().add_(1.0)
        self._S = torch.linalg.cholesky(system)

    def solve(self, b: Tensor, refinements: int = REFINEMENTS) -> tuple[Tensor, Tensor]:
        du, z = self._once(b, torch.zeros_like(self._W))
        for _ in range(refinements):
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
        self.loss, self.y = program.loss, program.y

    def curvature(self, f: Tensor) -> Tensor:
        """Second derivatives (n,)."""
        if self.loss == "squared":
            return torch.ones_like(f)
        g = _losses.gradient(self.loss, f, self.y)
        return (-g * (2 * self.y + g)).clamp(min=1e-300)

    def aim(self, f: Tensor, mu: float, corrected: bool) -> Tensor:
        """Give the gradient after the step, but for what f changes."""
        return _losses.gradient(self.loss, f, self.y)

    def move(self, change: Tensor) -> float:
        return math.inf

    def apply(self, length: float) -> None:
        pass

    def products(self) -> tuple[float, int]:
        return 0.0, 0

    def nu(self, f: Tensor) -> Tensor:
        return -_losses.gradient(self.loss, f, self.y)


class Hinge:
    """xi >= 0 and zeta = xi - 1 + y f >= 0 with multipliers 1 - t and t."""

    def __init__(self, program: Program) -> None:
        self.y = program.y
        self.xi, self.zeta, self.t = (torch.full_like(self.y, value) for value in (1.0, 1.0, 0.5))
        self._dxi = self._dzeta = self._dt = torch.zeros_like(self.y)

    def curvature(self, f: Tensor) -> Tensor:
        self._Q = self.zeta + self.t * self.xi / (1 - self.t)
        return self.t / self._Q

    def aim(self, f: Tensor, mu: float, corrected: bool) -> Tensor:
        xi, zeta, t = self.xi, self.zeta, self.t
        missed = xi - 1 + self.y * f - zeta
        self._first, self._second = mu - t * zeta, mu - (1 - t) * xi
        if corrected:
            self._first, self._second = self._first - self._dt * self._dzeta, self._second + self._dt * self._dxi
        self._shift = (self._first - t * self._second / (1 - t) - t * missed) / self._Q
        return -self.y * (t + self._shift)

    def move(self, change: Tensor) -> float:
        """Take what the change of f adds to the multiplier (n,)."""
        self._dt = self._shift - self.y * change
        self._dxi = (self._second + self.xi * self._dt) / (1 - self.t)
        self._dzeta = (self._first - self.zeta * self._dt) / self.t
        pairs = (self.xi, self._dxi), (self.zeta, self._dzeta), (self.t, self._dt), (1 - self.t, -self._dt)
        return min(_reach(x, dx) for x, dx in pairs)

    def apply(self, length: float) -> None:
        self.xi, self.zeta = self.xi + length * self._dxi, self.zeta + length * self._dzeta
        self.t = self.t + length * self._dt

    def products(self) -> tuple[float, int]:
        return float((self.t * self.zeta + (1 - self.t) * self.xi).sum()), 2 * len(self.y)

    def nu(self, f: Tensor) -> Tensor:
        return self.t * self.y


def _reach(x: Tensor, dx: Tensor) -> float:
    """Largest step that keeps x nonnegative."""
    shrinks = float((-dx / x).max())
    return 1 / shrinks if shrinks > 0 else math.inf


def _reach_of_cone(x: Tensor, dx: Tensor) -> float:
    """Largest step that keeps all x in the second-order cone."""
    root = _determinant(x).sqrt()
    unit = x / root
    first = (_reflect(unit) * dx).sum(-1, keepdim=True)
    rest = dx[..., 1:] - (first + dx[..., :1]) / (1 + unit[..., :1]) * unit[..., 1:]
    shrinks = float(((torch.linalg.vector_norm(rest, dim=-1, keepdim=True) - first) / root).max())
    return 1 / shrinks if shrinks > 0 else math.inf


def _reflect(x: Tensor) -> Tensor:
    return torch.cat([x[..., :1], -x[..., 1:]], -1)


def _determinant(x: Tensor) -> Tensor:
    """x_0^2 - ||x_1||^2, kept positive."""
    norm = torch.linalg.vector_norm(x[..., 1:], dim=-1, keepdim=True)
    return torch.maximum((x[..., :1] - norm) * (x[..., :1] + norm), 1e-16 * x[..., :1] ** 2)


def _product(x: Tensor, y: Tensor) -> Tensor:
    """Give x o y."""
    return torch.cat([(x * y).sum(-1, keepdim=True), x[..., :1] * y[..., 1:] + y[..., :1] * x[..., 1:]], -1)


def _quotient(r: Tensor, x: Tensor) -> Tensor:
    """Solve x o y = r for y."""
    first = (_reflect(x) * r).sum(-1, keepdim=True) / _determinant(x)
    return torch.cat([first, (r[..., 1:] - first * x[..., 1:]) / x[..., :1]], -1)
