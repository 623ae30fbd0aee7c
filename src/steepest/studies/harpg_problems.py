r"""Three control problems whose optimum is known, with the trajectories of many runs sampled side by side.

All have a Gaussian policy whose mean is linear in theta, ``a = F theta + sigma e``. With the rows of F for every step
of an episode and the discounted reward to come ``w``, one trajectory estimates

    g = sum w e F / sigma,        B u = g <sum e F / sigma, u> - sum w F <F, u> / sigma^2

which is what `policy.trajectory_gradient` and `policy.trajectory_hvp` give, written out.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

__all__ = ["Bandit", "Problem", "Regulator", "Tracking"]

DTYPE = torch.float64


class Problem:
    """A policy class, its return J, and one trajectory's word on gradient and Hessian.

    theta is (runs, p): row i belongs to run i.
    """

    p: int
    sigma: float
    optimum: float

    def rollout(self, theta: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """Sample one trajectory a run: rows F (runs, R, p), noises e (runs, R), reward to come w (runs, R)."""
        raise NotImplementedError

    def value(self, theta: Tensor) -> tuple[Tensor, Tensor]:
        """J (runs,) and its gradient (runs, p), exactly."""
        raise NotImplementedError

    def gap(self, theta: Tensor) -> Tensor:
        """How far J is from its largest value in the policy class."""
        return self.optimum - self.value(theta)[0]

    def gradient(self, theta: Tensor, generator: torch.Generator) -> Tensor:
        """One trajectory's estimate of the gradient."""
        F, e, w = self.rollout(theta, generator)
        return _sum_rows(w * e, F) / self.sigma

    def hvp(self, theta: Tensor, u: Tensor, generator: torch.Generator) -> Tensor:
        """One trajectory's estimate of the Hessian times u (runs, p)."""
        F, e, w = self.rollout(theta, generator)
        along = _rows(F, u)
        score = (e * along).sum(1, keepdim=True) / self.sigma
        return _sum_rows(w * e, F) * score / self.sigma - _sum_rows(w * along, F) / self.sigma**2


def _sum_rows(weights: Tensor, F: Tensor) -> Tensor:
    return torch.bmm(weights.unsqueeze(1), F).squeeze(1)


def _rows(F: Tensor, vector: Tensor) -> Tensor:
    return torch.bmm(F, vector.unsqueeze(-1)).squeeze(-1)


def _noise(generator: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=generator, dtype=DTYPE)


@functools.cache
def _to_come(horizon: int, gamma: float) -> Tensor:
    """Matrix (H, H) that turns rewards into sums over h >= t of gamma^h r_h, from the start of the episode."""
    h = torch.arange(horizon)
    return torch.where(h[:, None] >= h, gamma ** h[:, None].to(DTYPE), 0.0)


@dataclass
class Regulator(Problem):
    """Discounted linear-quadratic regulator: s' = A s + B a + 0.05 w, cost s's + a^2/2, gamma = 0.7."""

    horizon: int
    p: int = 2
    sigma: float = 0.5
    gamma: float = 0.7
    drive: float = 0.05
    start: float = 0.5  # variance of each coordinate of s_0

    def __post_init__(self) -> None:
        from scipy.linalg import solve_discrete_are

        A, B, R = np.array([[0.7, 0.3], [0.0, 0.6]]), np.array([[0.0], [1.0]]), 0.5
        self.A, self.B = torch.as_tensor(A), torch.as_tensor(B)
        P = solve_discrete_are(math.sqrt(self.gamma) * A, math.sqrt(self.gamma) * B, np.eye(2), R * np.eye(1))
        self.best = torch.as_tensor(-self.gamma * np.linalg.solve(R + self.gamma * B.T @ P @ B, B.T @ P @ A))  # (1, 2)
        self.optimum = float(self.value(self.best)[0])

    def rollout(self, theta: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """States of all runs and steps by doubling, since the closed loop is linear."""
        runs, H = len(theta), self.horizon
        noise = _noise(generator, runs, H, 3)
        e, M = noise[..., 0], self.A + self.B * theta.unsqueeze(1)
        pushed = self.sigma * e.unsqueeze(-1) * self.B.T + self.drive * noise[..., 1:]
        first = math.sqrt(self.start) * _noise(generator, runs, 1, 2)
        s, power, reach = torch.cat([first, pushed[:, :-1]], 1), M.mT, 1
        while reach < H:
            s = torch.cat([s[:, :reach], torch.baddbmm(s[:, reach:], s[:, :-reach], power)], 1)
            power, reach = torch.bmm(power, power), 2 * reach
        a = _rows(s, theta) + self.sigma * e
        return s, e, -(s.square().sum(-1) + 0.5 * a.square()) @ _to_come(H, self.gamma)

    def value(self, theta: Tensor) -> tuple[Tensor, Tensor]:
        """From two discrete Lyapunov equations, with no horizon; minus infinity where costs grow faster than gamma."""
        eye, gamma, M = torch.eye(2, dtype=DTYPE), self.gamma, self.A + self.B * theta.unsqueeze(1)
        P = _lyapunov(M.mT, eye + 0.5 * theta.unsqueeze(2) * theta.unsqueeze(1), gamma)
        W = self.drive**2 * eye + self.sigma**2 * self.B @ self.B.T
        trace = (P * (self.start * eye + gamma / (1 - gamma) * W)).sum((1, 2))
        J = -(trace + 0.5 * self.sigma**2 / (1 - gamma))
        J = torch.where(gamma * torch.linalg.eigvals(M).abs().amax(1).square() < 1, J, -math.inf)
        seen = _lyapunov(M, (self.start * eye + gamma / (1 - gamma) * W).expand_as(P), gamma)
        pull = 0.5 * theta.unsqueeze(1) + gamma * self.B.T @ P @ M
        return J, -2 * (pull @ seen).squeeze(1)


def _lyapunov(M: Tensor, Q: Tensor, gamma: float) -> Tensor:
    """X with X = Q + gamma M X M^T, for every run."""
    runs, n = len(M), M.shape[-1]
    kron = torch.einsum("rij,rkl->rikjl", M, M).reshape(runs, n * n, n * n)
    return torch.linalg.solve(torch.eye(n * n, dtype=DTYPE) - gamma * kron, Q.reshape(runs, n * n)).reshape(runs, n, n)


@dataclass
class Bandit(Problem):
    """One step, reward quadratic in the action and noisy: J is quadratic in theta."""

    p: int = 5
    sigma: float = 0.5
    reward_noise: float = 0.5
    optimum: float = 0.0

    def __post_init__(self) -> None:
        self.curvature = torch.linspace(0.5, 2.0, self.p, dtype=DTYPE)
        self.target = torch.linspace(-1.0, 1.0, self.p, dtype=DTYPE)
        self.optimum = -0.5 * self.sigma**2 * float(self.curvature.sum())

    def rollout(self, theta: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """Every coordinate of the action is a row, and all share the reward."""
        e = _noise(generator, len(theta), self.p)
        off = theta + self.sigma * e - self.target
        r = -0.5 * (self.curvature * off.square()).sum(1, keepdim=True)
        r = r + self.reward_noise * _noise(generator, len(theta), 1)
        return torch.eye(self.p, dtype=DTYPE).expand(len(theta), -1, -1), e, r.expand_as(e)

    def value(self, theta: Tensor) -> tuple[Tensor, Tensor]:
        """A parabola."""
        off = theta - self.target
        return self.optimum - 0.5 * (self.curvature * off.square()).sum(1), -self.curvature * off


@dataclass
class Tracking(Problem):
    """Follow sin(3 s) along a random path s in [-1, 1], with a polynomial of degree 3: the class lacks the target.

    s is the normal distribution function of an autoregressive path, stretched: uniform at every step.
    """

    horizon: int
    p: int = 4
    sigma: float = 0.3
    gamma: float = 0.7
    memory: float = 0.9

    def __post_init__(self) -> None:
        nodes, weights = np.polynomial.legendre.leggauss(60)
        s, weight = torch.as_tensor(nodes), torch.as_tensor(weights / 2)
        self.best = (weight * torch.sin(3 * s)) @ self.features(s)  # the features are orthonormal
        self.missed = float(weight @ torch.sin(3 * s).square() - self.best.square().sum())
        self.total = (1 - self.gamma**self.horizon) / (1 - self.gamma)
        self.optimum = -self.total * (self.missed + self.sigma**2)

    @staticmethod
    def features(s: Tensor) -> Tensor:
        """Legendre polynomials up to degree 3, of unit mean square."""
        P2, P3 = 1.5 * s**2 - 0.5, 2.5 * s**3 - 1.5 * s
        return torch.stack([torch.ones_like(s), math.sqrt(3) * s, math.sqrt(5) * P2, math.sqrt(7) * P3], -1)

    @functools.cached_property
    def mixing(self) -> Tensor:
        """Lower triangle that turns independent draws into a stationary path."""
        lag = torch.arange(self.horizon)[:, None] - torch.arange(self.horizon)
        L = torch.where(lag >= 0, self.memory ** lag.clamp(min=0).to(DTYPE), 0.0)
        L[:, 1:] *= math.sqrt(1 - self.memory**2)
        return L

    def rollout(self, theta: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """Sample paths of the state, which does not heed the action."""
        s = torch.erf(_noise(generator, len(theta), self.horizon) @ self.mixing.T / math.sqrt(2))
        e, F = _noise(generator, len(theta), self.horizon), self.features(s)
        a = _rows(F, theta) + self.sigma * e
        return F, e, -(a - torch.sin(3 * s)).square() @ _to_come(self.horizon, self.gamma)

    def value(self, theta: Tensor) -> tuple[Tensor, Tensor]:
        """A parabola around the projection of the target."""
        off = theta - self.best
        return self.optimum - self.total * off.square().sum(1), -2 * self.total * off
