"""The iteration of consensus-based optimization, with batches, cooling and reduction."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from steepest.core.driver import Progress, Stop
from steepest.particles._arguments import Box, Normals
from steepest.particles._objective import Objective
from steepest.particles._run import SPREAD_MAX, Run, Status
from steepest.particles._weights import effective_alpha, weighted_mean, weights

if TYPE_CHECKING:
    from scipy.optimize import OptimizeResult

__all__ = ["Settings", "Swarm"]


@dataclass
class Settings:
    """The arguments of `minimize_cbo` that the iteration reads; `alpha` and `sigma` change while it cools."""

    alpha: float
    lam: float
    sigma: float
    dt: float
    noise: str
    tol: float
    maxfev: int | None
    batch_size: int | None
    batch_update: str
    stagnation_tol: float
    alpha_schedule: str | float | None
    alpha_max: float
    ess_fraction: float
    sigma_schedule: str | None
    steps_per_epoch: int
    particle_reduction: float
    n_particles_min: int
    gradient_weight: float
    gradient_lr: float


class Swarm(Run):
    """N particles that are drawn to their consensus and shaken by their distance from it."""

    def __init__(
        self,
        objective: Objective,
        x: Tensor,
        normals: Normals,
        box: Box | None,
        settings: Settings,
        resample: Callable[[int], Any] | None,
        return_all: bool,
    ) -> None:
        super().__init__(objective, return_all)
        self.x, self.normals, self.box, self.s, self.resample = x, normals, box, settings, resample
        self.f = x.new_full((len(x),), math.inf, dtype=torch.float64)
        self.c = x.mean(0)
        self.D = torch.empty_like(x)
        self.k = 0
        self.before: Tensor | None = None  # the consensus before this one
        self.known = False  # whether f belongs to x
        self.variance = math.nan
        self.effective = math.nan

    def step(self) -> Progress:
        s, n = self.s, len(self.x)
        if s.maxfev is not None and self.objective.nfev + 2 * n + 1 > s.maxfev:
            return self.stop(Status.MAXFEV)
        if self.resample is not None:
            self.resample(self.k)
        if s.particle_reduction and self.k % s.steps_per_epoch == 0:
            self.variance = self._variance()

        square = 0.0
        for rows in self._batches():
            batch = self.x if rows is None else self.x[rows]
            f = self.objective(batch, self.D)
            self.f[slice(None) if rows is None else rows] = f
            self.c = weighted_mean(weights(f, self._alpha(f)), batch)
            everyone = rows is None or s.batch_update == "full"
            moved = self.x if everyone else batch
            D, here = self._distances(moved)
            square = here if everyone else square + here
            self.spread = square / n
            if not here / len(moved) <= SPREAD_MAX:
                return self.stop(Status.DIVERGED)
            if rows is None and self.spread < s.tol:
                self.known = True
                break
            if not self._move(moved, D):
                return self.stop(Status.DIVERGED)
            if not everyone:
                self.x[rows] = moved
            self._kick()

        if self.return_all:
            self.path.append(self.c.clone())
        converged = self.spread < s.tol
        self.k += 1
        if self.k % s.steps_per_epoch == 0 and not converged:
            self._end_epoch(self.k // s.steps_per_epoch)
        return self.progress(Stop.CONVERGED if converged else None)

    def _distances(self, x: Tensor) -> tuple[Tensor, float]:
        """Return D = x - c and the sum of its squares."""
        D = torch.sub(x, self.c, out=self.D[: len(x)])
        return D, float(torch.dot(D.view(-1), D.view(-1)))

    def _move(self, x: Tensor, D: Tensor) -> bool:
        """Move particles in place; False, and back where they were, if one of them left the finite numbers.

        X <- X - lam dt D + sigma sqrt(dt) |D| xi; for the componentwise noise D xi has the law of |D| xi.
        """
        s = self.s
        x.add_(D, alpha=-s.lam * s.dt)
        if s.sigma > 0:
            for rows, xi in self.normals.blocks(len(x)):
                far = D[rows] if s.noise == "anisotropic" else torch.linalg.vector_norm(D[rows], dim=1, keepdim=True)
                x[rows].addcmul_(far, xi, value=s.sigma * math.sqrt(s.dt))
        if not self._settle(x, D):
            return False
        if s.gradient_weight > 0:
            x.add_(self.objective.gradient(x), alpha=-s.gradient_weight * s.gradient_lr * s.dt)
            return self._settle(x, D)
        return True

    def _settle(self, x: Tensor, D: Tensor) -> bool:
        """Reflect moved particles into the box, or undo a move that is not finite."""
        if not math.isfinite(float(x.sum())) and not bool(torch.isfinite(x).all()):
            torch.add(D, self.c, out=x)
            return False
        if self.box is not None:
            self.box.reflect(x)
        return True

    def _kick(self) -> None:
        """Shake all particles where the consensus stands still (official network code)."""
        s = self.s
        if s.stagnation_tol > 0:
            if self.before is not None and float((self.c - self.before).abs().max()) < s.stagnation_tol:
                self.normals.shake(self.x, s.sigma * math.sqrt(s.dt))
                if self.box is not None:
                    self.box.reflect(self.x)
            self.before = self.c.clone()

    def _batches(self) -> Iterator[Tensor | None]:
        """Cut one random permutation into batches; None stands for everybody."""
        n, size = len(self.x), self.s.batch_size
        if size is None or size >= n:
            yield None
            return
        order = torch.randperm(n, generator=self.normals.generator, device=self.x.device)
        yield from order.split(size)

    def _alpha(self, f: Tensor) -> float:
        if self.s.alpha_schedule != "effective":
            return self.s.alpha
        self.effective = effective_alpha(f, self.s.ess_fraction, self.s.alpha_max)
        return self.effective

    def _variance(self) -> float:
        """Return the length of the vector of the coordinates' variances."""
        return float(torch.linalg.vector_norm(self.x.var(0)))

    def _end_epoch(self, epoch: int) -> None:
        """Drop particles of a swarm that shrank, then cool."""
        s = self.s
        if s.particle_reduction and self.variance > 0:
            p = s.particle_reduction
            r = min(max((p * self._variance() + (1 - p) * self.variance) / self.variance, 1 - p), 1.0)
            self._keep(r)
        if s.sigma_schedule == "log":
            s.sigma *= math.log2(epoch + 1) / math.log2(epoch + 2)
        if isinstance(s.alpha_schedule, int | float):
            s.alpha = min(s.alpha * s.alpha_schedule, s.alpha_max)

    def _keep(self, share: float) -> None:
        n, size = len(self.x), self.s.batch_size or 1
        m = math.ceil(n / size * share) * size
        m = min(max(m, self.s.n_particles_min), n)
        if m < n:
            kept = torch.randperm(n, generator=self.normals.generator, device=self.x.device)[:m]
            self.x, self.f = self.x[kept], self.f[kept]

    def conclude(self) -> None:
        if not self.known:
            self.f = self.objective(self.x, self.D)
            self.c = weighted_mean(weights(self.f, self._alpha(self.f)), self.x)
            self.spread = self._distances(self.x)[1] / len(self.x)
        self.fun_consensus = float(self.objective(self.c[None])[0])

    def report(self, result: OptimizeResult) -> None:
        alpha = self.effective if self.s.alpha_schedule == "effective" else self.s.alpha
        result.update(alpha=alpha, sigma=self.s.sigma)
