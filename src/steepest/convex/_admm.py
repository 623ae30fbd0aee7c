r"""ADMM for the convex program, its primal step solved exactly (squared loss) or by random block descent.

Copies ``u = z`` and ``G u = s >= 0`` carry the norms and the cones; with scaled multipliers lam, nu one iteration is

    u <- argmin loss(F u) + rho/2 ||u - z + lam||^2 + rho/2 ||G u - s + nu||^2
    z_i <- (1 - beta / (rho ||u_i + lam_i||))_+ (u_i + lam_i),     s <- (G u + nu)_+
    lam <- lam + dual_step (u - z),     nu <- nu + dual_step (G u - s)                            (Algorithm 3.1)

Exact step. Every E_i is its own inverse, so each block of G'G is X'X, and with B = (I + X'X)^{-1}, K = X B X' and
M = 2 K o (D'D) (elementwise) Woodbury's identity gives u = B t - B F' (rho I + M)^{-1} F B t: n^2 numbers are factored
once for each rho, nothing of the size of u squared. When u has fewer than n entries its own system is smaller.

Approximate step. Random blocks of patterns move along -B g / rho, g the gradient of the block, as far as Armijo's rule
allows. B is the inverse of the quadratic part; the paper moves along -g.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from steepest.convex import _losses
from steepest.convex._anderson import Anderson
from steepest.convex._program import Candidate, Program

__all__ = ["ADMM", "BlockDescent", "ExactStep"]

BALANCE_EACH, IMBALANCE = 10, 10.0
"""Iterations between looks at the residuals, and the ratio from which rho is changed by a factor of two."""
ACCEPTED, REJECTED, BACKTRACK, SMALLEST, ARMIJO = 1.05, 1.5, 2.5, 1e-8, 1e-3
"""Step lengths of the authors' block descent; their rule's last constant multiplies the predicted decrease here."""
TIGHTEN = 0.95
"""Factor of the block descent's tolerance after each outer iteration (authors: 0.94 to 0.96)."""

PrimalStep = Callable[[Tensor, Tensor, float], Tensor]


@dataclass
class Copies:
    """Iterates of ADMM; all zero at the start."""

    u: Tensor  # (2, P, d)
    z: Tensor  # (2, P, d)
    s: Tensor  # (2, P, n)
    lam: Tensor  # (2, P, d)
    nu: Tensor  # (2, P, n)
    rho: float

    @classmethod
    def zero(cls, program: Program, rho: float) -> Copies:
        small = program.X.new_zeros(program.shape)
        large = program.X.new_zeros((*program.shape[:2], len(program.X)))
        return cls(small, small.clone(), large, small.clone(), large.clone(), rho)


class ADMM:
    """One iteration at a time: `primal_step` takes (target, u, rho) and returns the new u."""

    def __init__(self, program: Program, primal_step: PrimalStep, dual_step: float, copies: Copies) -> None:
        self.program, self.primal_step, self.dual_step, self.copies = program, primal_step, dual_step, copies
        self.primal_residual = self.dual_residual = math.inf
        self._iteration = 0
        self._accelerate = Anderson(program.total) if dual_step == 1 else None

    def step(self) -> None:
        program, at = self.program, self.copies
        target = at.z - at.lam + program.cone_adjoint(at.s - at.nu)
        at.u = self.primal_step(target, at.u, at.rho)
        Gu = program.cone(at.u)
        z = _shrink_groups(at.u + at.lam, program.beta / at.rho)
        s = (Gu + at.nu).clamp(min=0)
        self.primal_residual = program.norm(at.u - z, Gu - s)
        self.dual_residual = at.rho * program.norm(z - at.z + program.cone_adjoint(s - at.s))
        if self._accelerate is None:
            at.lam = at.lam + self.dual_step * (at.u - z)
            at.nu = at.nu + self.dual_step * (Gu - s)
            at.z, at.s = z, s
        else:  # with a dual step of 1 all follows from u + lam and G u + nu
            before, after = _flat(at.z + at.lam, at.s + at.nu), _flat(at.u + at.lam, Gu + at.nu)
            self._split(self._accelerate.next(before, after))
        self._iteration += 1
        if self._iteration % BALANCE_EACH == 0:
            self._balance()

    def _split(self, point: Tensor) -> None:
        at = self.copies
        first, second = point.split([at.z.numel(), at.s.numel()])
        first, second = first.reshape(at.z.shape), second.reshape(at.s.shape)
        at.z, at.s = _shrink_groups(first, self.program.beta / at.rho), second.clamp(min=0)
        at.lam, at.nu = first - at.z, second - at.s

    def candidate(self) -> Candidate:
        program, at = self.program, self.copies
        nu = -_losses.gradient(program.loss, program.forward(at.u), program.y)
        pull = program.adjoint(nu)
        held = pull + program.cone_adjoint((-at.rho * at.nu).clamp(min=0))
        slope = torch.linalg.vector_norm(held, dim=-1)
        return Candidate(at.z, pull, slope, lambda c: float(_losses.dual_value(program.loss, c * nu, program.y)))

    def _balance(self) -> None:
        """Bring the residuals within a factor of ten; scaled multipliers change inversely to rho."""
        if self.primal_residual > IMBALANCE * self.dual_residual:
            factor = 2.0
        elif self.dual_residual > IMBALANCE * self.primal_residual:
            factor = 0.5
        else:
            return
        at = self.copies
        at.rho, at.lam, at.nu = at.rho * factor, at.lam / factor, at.nu / factor
        if self._accelerate is not None:
            self._accelerate.reset()


class ExactStep:
    """Solve (I + F'F/rho + G'G) u = F'y/rho + target."""

    def __init__(self, program: Program) -> None:
        self.program = program
        X, D = program.X, program.patterns
        self._small = program.group is None and 2 * len(D) * X.shape[1] < len(X)
        gram = torch.eye(X.shape[1]).to(X) + X.T @ X
        self._B = torch.cholesky_inverse(torch.linalg.cholesky(gram))
        if self._small:
            gated = (D[:, :, None] * X).transpose(0, 1).reshape(len(X), -1)
            self._F = torch.cat([gated, -gated], dim=1)  # (n, 2 P d)
            self._M = self._F.T @ self._F
            self._quadratic = torch.block_diag(*[gram] * (2 * len(D)))
        else:
            self._M = 2 * (X @ self._B @ X.T) * program.total(D.T @ D)
        self._rho = math.nan

    def __call__(self, target: Tensor, u: Tensor, rho: float) -> Tensor:
        program = self.program
        self._factor(rho)
        t = program.adjoint(program.y) / rho + target
        if self._small:
            return self._solve(t.reshape(-1)).reshape(t.shape)
        Bt = t @ self._B
        return Bt - program.adjoint(self._solve(program.forward(Bt))) @ self._B

    def with_y(self, program: Program) -> ExactStep:
        """Share the factors with another class of the same data."""
        other = object.__new__(ExactStep)
        other.__dict__.update(self.__dict__, program=program)
        return other

    def _factor(self, rho: float) -> None:
        if rho == self._rho:
            return
        self._system = (
            self._M / rho + self._quadratic if self._small else self._M + rho * torch.eye(len(self._M)).to(self._M)
        )
        self._L = torch.linalg.cholesky(self._system)
        self._rho = rho

    def _solve(self, b: Tensor) -> Tensor:
        """Two triangular solves and one step of refinement."""
        x = torch.cholesky_solve(b[:, None], self._L)[:, 0]
        return x + torch.cholesky_solve((b - self._system @ x)[:, None], self._L)[:, 0]


class BlockDescent:
    """Lower loss(F u) + rho/2 (u'(I + X'X) u - 2 u'target) block by block, until the decrease fades."""

    def __init__(self, program: Program, block: int, tol: float, rng: np.random.Generator) -> None:
        self.program, self.block, self.tol, self._rng = program, min(block, len(program.patterns)), tol, rng
        X = program.X
        self._A = torch.eye(X.shape[1]).to(X) + X.T @ X
        self._B = torch.cholesky_inverse(torch.linalg.cholesky(self._A))
        self._window = math.ceil(8 * math.sqrt(len(program.patterns) / self.block))
        self._length, self.width = 1.0, 0.5 if program.loss == "hinge" else 0.0
        self.blocks = 0

    def __call__(self, target: Tensor, u: Tensor, rho: float) -> Tensor:
        program, P = self.program, len(self.program.patterns)
        u, f = u.clone(), program.forward(u)
        recent: deque[float] = deque(maxlen=self._window)
        for _ in range(50 * P):
            chosen = self._choose(P)
            move, slope, quadratic = self._direction(u[:, chosen], target[:, chosen], f, chosen, rho)
            shift = (program.patterns[chosen] * ((move[0] - move[1]) @ program.X.T)).sum(0)
            length, decrease = self._search(f, shift, slope, quadratic)
            if length > 0:
                u[:, chosen] += length * move
                f = f + length * shift
            recent.append(decrease)
            self.blocks += 1
            if len(recent) == self._window and sum(recent) / self._window < self.tol:
                break
        self.tol *= TIGHTEN
        if program.loss == "hinge":
            self.width = max(self.width * TIGHTEN, 1e-6)
        return u

    def _choose(self, P: int) -> Tensor:
        if self.block == 1:
            return torch.tensor([int(self._rng.integers(P))], device=self.program.X.device)
        return torch.as_tensor(self._rng.choice(P, self.block, replace=False), device=self.program.X.device)

    def _direction(
        self, u: Tensor, target: Tensor, f: Tensor, chosen: Tensor, rho: float
    ) -> tuple[Tensor, float, tuple[float, float]]:
        """Give the move, the slope along it, and the coefficients of the quadratic part along it."""
        program = self.program
        pull = _losses.gradient(program.loss, f, program.y, width=self.width)
        quadratic = rho * (u @ self._A - target)
        g = program.halves * ((program.patterns[chosen] * pull) @ program.X) + quadratic
        move = -g @ self._B / rho
        linear = float((move * quadratic).sum())
        return move, float((move * g).sum()), (linear, 0.5 * rho * float((move @ self._A * move).sum()))

    def _search(self, f: Tensor, shift: Tensor, slope: float, quadratic: tuple[float, float]) -> tuple[float, float]:
        start = self._value(f)
        length = self._length
        while length >= SMALLEST:
            change = length * quadratic[0] + length * length * quadratic[1]
            decrease = start - self._value(f + length * shift) - change
            if decrease >= -ARMIJO * length * slope and decrease >= 0:
                self._length *= ACCEPTED
                return length, decrease
            self._length = max(self._length / REJECTED, 100 * SMALLEST)
            length /= BACKTRACK
        return 0.0, 0.0

    def _value(self, f: Tensor) -> float:
        return float(_losses.value(self.program.loss, f, self.program.y, width=self.width).sum())


def _flat(a: Tensor, b: Tensor) -> Tensor:
    return torch.cat([a.reshape(-1), b.reshape(-1)])


def _shrink_groups(a: Tensor, by: float) -> Tensor:
    norms = torch.linalg.vector_norm(a, dim=-1, keepdim=True)
    return a * (1 - by / norms.clamp(min=torch.finfo(a.dtype).tiny)).clamp(min=0)
