r"""Newton steps along the central path of the program against perturbations, where primal-dual steps are slow.

With absolute values in the loss smoothed to :math:`|c| \approx \sqrt{c^2 + \mu^2}`, norms likewise, and mu to zero,
minimize

    sum_k loss(x_k'c_k; sum_j r_j |c_kj|) + beta sum_i ||u_i||
        - mu sum_ik log(E_i[k] x_k'u_i - r'e_i) - mu sum_ij (log(e_ij - u_ij) + log(e_ij + u_ij))

over u and e >= |u|, from inside all cones; each e is eliminated from the Newton system with its own u. At the minimum
the derivatives of loss and logarithms are feasible multipliers (the q of `_robust.py` are t r c / |c|), and the gap is
a multiple of mu. The hinge is smoothed by the same logarithms: min over xi of xi - mu log xi - mu log(xi - s).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from steepest.convex._program import Candidate, Program
from steepest.convex._robust import Point, candidate_of

__all__ = ["Barrier", "is_small"]

MOST_UNKNOWNS = 1500
"""Unknowns up to which their dense Newton system is factored."""
FIRST, SHRINK, CENTERED = 0.1, 0.2, 1.0
"""First mu in units of the loss at zero over the number of samples; its factor; decrement^2 / mu at which it sinks."""
ROUNDING = 1e-13
"""Added to the diagonal of the scaled Hessian."""
ARMIJO, SHUT = 0.1, 100.0
"""Share of the predicted decrease asked for; vectors of a norm below so many mu / beta count as zero."""


def is_small(program: Program) -> bool:
    """Whether the Newton system is small enough to factor it."""
    return math.prod(program.shape) <= MOST_UNKNOWNS


@dataclass
class Loss:
    """Smoothed worst losses: first and second derivative in the sunk margin (or grown residual), its gradient in c."""

    value: Tensor  # (n,)
    first: Tensor  # (n,)
    second: Tensor  # (n,)
    slope: Tensor  # (n, d)
    bend: Tensor  # (n, d), second derivatives in c of the smoothed 1-norms
    extra: Tensor  # (n,), weight of x x' in the second derivative of the residual
    tau: Tensor  # (n,), multiplier of x'c
    t: Tensor  # (n,)


class Barrier:
    """One Newton step at a time; `u` (2, P, d) starts inside all cones."""

    def __init__(self, program: Program, inside: Tensor, tol: float) -> None:
        self.program, self.tol = program, tol
        X = program.X
        at_zero = program.objective(torch.zeros(program.shape).to(X))
        self._mu = FIRST * at_zero / len(X)
        shallow = program.cone(inside.expand(program.shape)) - (inside.abs() @ program.radius)[..., None]
        self.u = (inside / shallow.amin((0, 2))[:, None]).expand(program.shape).clone()
        self.u *= at_zero / (at_zero + program.penalty(self.u))
        self._moves = (program.radius > 0).to(X)
        room = program.cone(self.u).amin(-1, keepdim=True) - (self.u.abs() @ program.radius)[..., None]
        self.e = self.u.abs() + 0.5 * self._moves * room / program.radius.sum()
        self.primal_residual = self.dual_residual = math.inf

    def step(self) -> None:
        gu, ge = self._gradient(self.u, self.e)
        Huu, Hue, Hee = self._blocks()
        L = torch.linalg.cholesky(Hee)
        across = torch.cholesky_solve(Hue.mT, L)
        g = gu - (ge[..., None, :] @ across)[..., 0, :]
        H = self._hessian(Huu - Hue @ across)
        scale = H.diagonal().rsqrt()
        H = scale[:, None] * H * scale
        H.diagonal().add_(ROUNDING)
        du = -scale * torch.cholesky_solve((scale * g.reshape(-1))[:, None], torch.linalg.cholesky(H))[:, 0]
        du = du.reshape(g.shape)
        de = -torch.cholesky_solve(ge[..., None], L)[..., 0] - (across @ du[..., None])[..., 0]
        slope = float((gu * du).sum() + (ge * de).sum())
        start, length = self._value(self.u, self.e), 1.0
        while length > 1e-12:
            u, e = self.u + length * du, self.e + length * de
            if self._value(u, e) <= start + ARMIJO * length * slope + 1e-14 * abs(start):
                self.u, self.e = u, e
                break
            length *= 0.5
        self.primal_residual, self.dual_residual = 0.0, math.hypot(float(gu.norm()), float(ge.norm()))
        if -slope <= CENTERED * self._mu or length <= 1e-12:
            enough = 0.02 * self.tol * abs(self.program.objective(self.u)) / (2 * self.program.patterns.numel())
            self._mu = max(SHRINK * self._mu, enough)

    @property
    def point(self) -> Point:
        program, mu = self.program, self._mu
        loss = self._loss(self.u)
        c = program.coefficients(self.u)
        q = (loss.first[:, None] * program.radius) * c / torch.sqrt(c.square() + mu**2)
        parts = torch.stack([self.u.clamp(min=0), (-self.u).clamp(min=0)], dim=1)
        return Point(parts, loss.tau, q, loss.t, mu / self._slack(self.u, self.e))

    def candidate(self) -> Candidate:
        found = candidate_of(self.program, self.point)
        norms = torch.linalg.vector_norm(self.u, dim=-1, keepdim=True)
        found.u = found.u * (norms > SHUT * self._mu / self.program.beta)
        return found

    def _slack(self, u: Tensor, e: Tensor) -> Tensor:
        """Distances to the cones: (2, P, n)."""
        return self.program.cone(u) - (e @ self.program.radius)[..., None]

    def _value(self, u: Tensor, e: Tensor) -> float:
        slack, below, above = self._slack(u, e), self._inside(e - u), self._inside(e + u)
        if not bool((slack > 0).all() and (below > 0).all() and (above > 0).all()):
            return math.inf
        norms = torch.sqrt(u.square().sum(-1) + (self._mu / self.program.beta) ** 2)
        smooth = self._loss(u).value.sum() + self.program.beta * norms.sum()
        return float(smooth - self._mu * (slack.log().sum() + below.log().sum() + above.log().sum()))

    def _inside(self, room: Tensor) -> Tensor:
        """Entries of the columns that are perturbed, ones elsewhere."""
        return torch.where(self._moves > 0, room, 1.0)

    def _loss(self, u: Tensor) -> Loss:
        program, mu, X, y = self.program, self._mu, self.program.X, self.program.y
        c = program.coefficients(u)
        root = torch.sqrt(c.square() + mu**2)
        sink, slope, bend = root @ program.radius, program.radius * c / root, program.radius * mu**2 / root**3
        f = (X * c).sum(1)
        if program.loss == "squared":
            size = torch.sqrt((f - y).square() + mu**2)
            share, grown = (f - y) / size, size + sink
            one, extra = torch.ones_like(f), grown * mu**2 / size**3
            slope = share[:, None] * X + slope
            return Loss(0.5 * grown.square(), grown, one, slope, bend, extra, grown * share, grown)
        slope = slope - y[:, None] * X
        none = torch.zeros_like(f)
        if program.loss == "logistic":
            s = 2 * (sink - y * f)
            t = torch.sigmoid(s)
            value = torch.nn.functional.softplus(s, threshold=1e9)
            return Loss(value, 2 * t, 4 * t * (1 - t), slope, bend, none, -2 * y * t, t)
        s = 1 - y * f + sink
        spread = torch.sqrt(s.square() + 4 * mu**2)
        over = torch.where(s > 0, 2 * mu * mu / (spread + s), (spread - s) / 2)  # xi - s - mu, without cancellation
        above = over + mu
        xi = above + s
        xi = torch.where(s > 0, xi, mu * above / (above - mu).clamp(min=1e-300))
        t = mu / above
        second = t.square() / mu * 0.5 * (1 - s / spread)
        return Loss(xi - mu * xi.log() - mu * above.log(), t, second, slope, bend, none, -y * t, t)

    def _gradient(self, u: Tensor, e: Tensor) -> tuple[Tensor, Tensor]:
        program, mu, beta = self.program, self._mu, self.program.beta
        loss, rate = self._loss(u), mu / self._slack(u, e)
        size = torch.sqrt(u.square().sum(-1, keepdim=True) + (mu / beta) ** 2)
        below, above = (mu * self._moves / self._inside(room) for room in (e - u, e + u))
        outer = program.halves * (program.patterns @ (loss.first[:, None] * loss.slope))
        along = outer - program.cone_adjoint(rate) + below - above + beta * u / size
        return along, rate.sum(-1, keepdim=True) * program.radius - below - above

    def _blocks(self) -> tuple[Tensor, Tensor, Tensor]:
        """Second derivatives of barriers and norms in u and e of each vector: (2, P, d, d) three times."""
        program, mu, beta, u, r = self.program, self._mu, self.program.beta, self.u, self.program.radius
        curve = (mu / self._slack(u, self.e)).square() / mu
        size = torch.sqrt(u.square().sum(-1)[..., None, None] + (mu / beta) ** 2)
        below, above = (mu * self._moves / self._inside(room).square() for room in (self.e - u, self.e + u))
        still = torch.diag_embed(below + above)
        Huu = (curve[..., None] * program.X).mT @ program.X + still
        Huu = Huu + beta * (torch.eye(len(r)).to(u) / size - u[..., None] * u[..., None, :] / size**3)
        Hue = torch.diag_embed(above - below) - program.cone_adjoint(curve)[..., None] * r
        Hee = curve.sum(-1)[..., None, None] * r[:, None] * r + still + torch.diag(1 - self._moves)
        return Huu, Hue, Hee

    def _hessian(self, blocks: Tensor) -> Tensor:
        """Second derivatives of the loss in all of u, plus those of each vector alone (2, P, d, d)."""
        program = self.program
        X, D = program.X, program.patterns
        _, P, d = program.shape
        loss = self._loss(self.u)
        tall = [loss.second.sqrt()[:, None] * loss.slope, loss.extra.sqrt()[:, None] * X]
        shared = X.new_zeros(P * d, P * d)
        for part in tall:
            if bool(part.any()):
                F = (D.T[:, :, None] * part[:, None, :]).reshape(len(X), P * d)
                shared += F.T @ F
        bend = loss.first[:, None] * loss.bend
        diagonals = shared.reshape(P, d, P, d).diagonal(dim1=1, dim2=3)  # (P, P, d)
        diagonals += torch.einsum("pk,kj,qk->pqj", D, bend, D)

        H = torch.cat([torch.cat([shared, -shared], 1), torch.cat([-shared, shared], 1)])
        own = H.reshape(2 * P, d, 2 * P, d).diagonal(dim1=0, dim2=2)  # (d, d, 2 P)
        own += blocks.reshape(2 * P, d, d).permute(1, 2, 0)
        return H
