"""Least-squares blocks on a stream of fresh samples, and many runs of BSVRB on them at once.

Block i sees a, b = a'(A_i x + c_i) + noise, with a standard normal, and fits ``1/2 (a'y - b)^2``; the upper objective
is ``1/2 |y - t_i - noise|^2`` over the noise. So y_i(x) = A_i x + c_i, and the gradient of F is linear in x: a run
knows exactly how far it is. Each step of `iterates` is one of `steepest.bilevel.bsvrb` (v2) for all settings and seeds
together: a test compares the two to rounding.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from steepest.bilevel import BilevelProblem, msvr_gamma
from steepest.core.random import child_seeds

__all__ = ["Draw", "Settings", "Streaming", "Tuned", "draws", "iterates", "search", "tuned_steps"]

F64 = torch.float64
V_BOUND = 10.0
RANGES = {"lr_x": (-3.0, -0.3), "lr_y": (-2.0, 0.0), "alpha": (-1.7, -0.5), "beta": (-2.0, 0.0)}  # powers of ten


@dataclass(frozen=True)
class Streaming:
    """The blocks: A (m, p, n), c and t (m, p)."""

    A: Tensor
    c: Tensor
    t: Tensor

    @classmethod
    def draw(cls, m: int = 64, p: int = 3, n: int = 4, seed: int = 0) -> Streaming:
        """Draw normal entries; targets lie half a unit around c, so that noise is larger than what blocks differ by."""
        generator = torch.Generator().manual_seed(seed)
        A = torch.randn(m, p, n, generator=generator, dtype=F64) / n**0.5
        c, t = torch.randn(2, m, p, generator=generator, dtype=F64)
        return cls(A, c, c + (t - c) / 2)

    def gradient(self, x: Tensor) -> Tensor:  # (..., n)
        """Gradient of F, exactly."""
        K = (self.A.mT @ self.A).mean(0)
        h = (self.A.mT @ (self.t - self.c).unsqueeze(-1)).mean(0).squeeze(-1)
        return x @ K - h

    def problem(self, stream: Iterator[Draw]) -> BilevelProblem:
        """The same for `bsvrb`, which gets its batches from `stream`, of one seed."""
        latest: list[Draw] = []

        def sample_upper(generator: torch.Generator, size: int | None, blocks: Tensor) -> Tensor:
            latest.append(next(stream))
            return latest[-1].upper[0]

        def sample_lower(generator: torch.Generator, size: int | None, blocks: Tensor) -> tuple[Tensor, Tensor]:
            return latest[-1].gram[0], latest[-1].right[0]

        def upper(x: Tensor, yb: Tensor, batch: Tensor | None, blocks: Tensor) -> Tensor:
            return (yb - self.t[blocks] - (0.0 if batch is None else batch)).square().sum(1) / 2

        def lower(x: Tensor, yb: Tensor, batch: tuple[Tensor, Tensor] | None, blocks: Tensor) -> Tensor:
            error = yb - self.A[blocks] @ x - self.c[blocks]
            if batch is None:
                return error.square().sum(1) / 2
            gram, right = batch
            return torch.einsum("ip,ipq,iq->i", error, gram, error) / 2 - (error * right).sum(1)

        m, p, n = self.A.shape
        return BilevelProblem(
            upper, lower, torch.zeros(n, dtype=F64), torch.zeros(m, p, dtype=F64), n_blocks=m,
            sample_upper=sample_upper, sample_lower=sample_lower, name="streaming least squares",
        )  # fmt: skip


@dataclass(frozen=True)
class Draw:
    """One step's draw for S seeds: blocks (S, I); means over B samples of a a', a noise and the upper noise."""

    blocks: Tensor
    gram: Tensor  # (S, I, p, p)
    right: Tensor  # (S, I, p)
    upper: Tensor  # (S, I, p)


def draws(seeds: list[int], m: int, n_drawn: int, batch: int, p: int = 3) -> Iterator[Draw]:
    """Draw without end: a stream for each seed, so that all settings see the same samples."""
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]

    def normal(*shape: int) -> Tensor:
        return torch.stack([torch.randn(*shape, generator=g, dtype=F64) for g in generators])

    while True:
        blocks = torch.stack([torch.rand(m, generator=g).topk(n_drawn).indices for g in generators])
        a, noise = normal(n_drawn, batch, p), normal(n_drawn, batch, 1)
        gram, right = a.mT @ a / batch, (a * noise).mean(2)
        yield Draw(blocks, gram, right, normal(n_drawn, p) / batch**0.5)  # the mean of so many has this law


@dataclass(frozen=True)
class Settings:
    """K settings: one entry of each array is one of them; lr_v is lr_y."""

    lr_x: Tensor
    lr_y: Tensor
    alpha: Tensor
    beta: Tensor

    def take(self, at: NDArray[np.int64]) -> Settings:
        """Some of them."""
        index = torch.as_tensor(at)
        return Settings(*(getattr(self, name)[index] for name in RANGES))

    def say(self, k: int) -> str:
        """One of them in words."""
        return ", ".join(f"{name} {float(getattr(self, name)[k]):.3g}" for name in RANGES)


def search(n: int, seed: int) -> Settings:
    """Draw n settings, each number log-uniform in its range."""
    rng = np.random.default_rng(seed)
    columns = {name: torch.tensor(10 ** rng.uniform(*span, n)) for name, span in RANGES.items()}
    return Settings(**columns)


def iterates(blocks: Streaming, settings: Settings, stream: Iterator[Draw]) -> Iterator[Tensor]:
    """Run BSVRB, v2, for all settings on all seeds of `stream`; give x (S, K, n) after each step.

    Tensors have axes seed, block, setting, entry, and in front of them, where both points are measured, now and before.
    """
    A, c, t = blocks.A, blocks.c.unsqueeze(1), blocks.t.unsqueeze(1)
    m, p, n = A.shape
    alpha, beta = settings.alpha[:, None], settings.beta[:, None]
    lr_x, lr_y = settings.lr_x[:, None], settings.lr_y[:, None]
    gamma: Tensor | None = None
    x = x_old = z = y = y_old = v = v_old = s = u = seen = torch.empty(0)
    at = torch.empty(0, dtype=torch.long)
    for k, draw in enumerate(stream):
        S, n_drawn = draw.blocks.shape
        if gamma is None:
            gamma = torch.tensor([[msvr_gamma(m, n_drawn, float(a))] for a in settings.alpha], dtype=F64)
            x = x_old = z = torch.zeros(S, len(alpha), n, dtype=F64)
            y = y_old = v = v_old = s = u = torch.zeros(S, m, len(alpha), p, dtype=F64)
            seen, at = torch.zeros(S, m, 1, 1, dtype=torch.bool), torch.arange(S).unsqueeze(1)
        rows = (at, draw.blocks)
        A_b, gram = A[draw.blocks], draw.gram
        Y = torch.stack([y[rows], y_old[rows]])  # (2, S, I, K, p)
        V = torch.stack([v[rows], v_old[rows]])
        X = torch.stack([x, x_old]).unsqueeze(2)
        error = Y - X @ A_b.mT - c[draw.blocks]
        q_s = error @ gram - draw.right.unsqueeze(2)
        Hv = V @ gram
        q_u = Hv - (Y - t[draw.blocks] - draw.upper.unsqueeze(2))
        G, G_old = (Hv @ A_b).mean(2)
        z = G if k == 0 else G + (1 - beta) * (z - G_old)
        first = ~seen[rows]
        tracked = []
        for e, (now, before) in ((s, q_s), (u, q_u)):
            new = torch.where(first, now, (1 - alpha) * e[rows] + alpha * now + gamma * (now - before))
            e = e.clone()
            e[rows] = new
            tracked.append(e)
        s, u = tracked
        seen = seen.clone()
        seen[rows] = True
        x, x_old = x - lr_x * z, x
        y, y_old = y - lr_y * s, y
        moved = v - lr_y * u
        length = torch.linalg.vector_norm(moved, dim=-1, keepdim=True)
        v, v_old = moved * (V_BOUND / length.clamp(min=V_BOUND)), v
        yield x


def distances(
    blocks: Streaming,
    settings: Settings,
    seeds: list[int],
    level: float,
    *,
    n_drawn: int,
    batch: int,
    maxiter: int,
    enough: int,
    longer: float = 1.0,
) -> NDArray[np.float64]:  # (steps, S, K)
    """Run until `enough` settings have reached the target, `longer` times that; the gradient's norm over the first.

    The target, as in the theorem: the mean over the seeds is at most `level`.
    """
    m, p, n = blocks.A.shape
    start = torch.linalg.vector_norm(blocks.gradient(torch.zeros(n, dtype=F64)))
    reached = torch.zeros(len(settings.lr_x), dtype=torch.bool)
    norms, last = [], maxiter
    for k, x in enumerate(iterates(blocks, settings, draws(seeds, m, n_drawn, batch, p)), 1):
        norms.append(torch.linalg.vector_norm(blocks.gradient(x), dim=-1) / start)
        reached |= norms[-1].mean(0) <= level
        if last == maxiter and int(reached.sum()) >= enough:
            last = min(maxiter, math.ceil(longer * k))
        if k >= last:
            break
    return torch.stack(norms).numpy()


def first_below(means: NDArray[np.float64], level: float) -> NDArray[np.float64]:
    """Count steps until each column is at most `level`; infinite where it never is."""
    below = means <= level
    return np.where(below.any(0), below.argmax(0) + 1.0, np.inf)


@dataclass(frozen=True)
class Tuned:
    """Steps to the target of the best setting, their interval over seeds, the setting, and its course (steps, S)."""

    steps: float
    interval: tuple[float, float]
    setting: str
    course: NDArray[np.float64]


def tuned_steps(
    blocks: Streaming,
    level: float,
    *,
    n_drawn: int,
    batch: int,
    trials: int,
    finalists: int,
    n_seeds: int,
    seed: int,
    maxiter: int,
) -> Tuned:
    """Try `trials` settings on two seeds, the fastest `finalists` again on fresh ones; the fastest there wins."""
    seeds, settings = child_seeds(seed, 2 + n_seeds), search(trials, seed)
    shared = {"n_drawn": n_drawn, "batch": batch, "maxiter": maxiter}
    norms = distances(blocks, settings, seeds[:2], level, enough=finalists, **shared)
    order = np.argsort(first_below(norms.mean(1), level), kind="stable")
    chosen = settings.take(order[:finalists])
    norms = distances(blocks, chosen, seeds[2:], level, enough=1, longer=1.5, **shared)
    steps = first_below(norms.mean(1), level)
    best = int(np.argmin(steps))
    course = norms[:, :, best]
    resampled = np.random.default_rng(0).multinomial(n_seeds, np.full(n_seeds, 1 / n_seeds), 1000) / n_seeds
    with np.errstate(invalid="ignore"):
        low, high = np.quantile(first_below(course @ resampled.T, level).clip(max=len(course)), [0.05, 0.95])
    return Tuned(float(steps[best]), (float(low), float(high)), chosen.say(best), course)
