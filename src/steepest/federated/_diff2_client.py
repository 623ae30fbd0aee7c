"""What a client of DIFF2 does: clipped sums over its samples, noise on what it sends, and local steps.

A message depends on the client's own randomness, the round and its kind alone. So a task that failed and is given out
again sends the same message, and not a second noisy look at the same data.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.func import grad, vmap

from steepest.federated.engine import Reply, State, Task

__all__ = ["Entropy", "GradientClient", "Mechanism", "Rows", "Samples", "clipped_sum"]

Rows = Tensor | tuple[Tensor, Tensor]
"""Per-sample gradients ``(m, d)``, or a pair ``c (m,), a (m, d)`` that stands for the rows ``c_j a_j``."""

_CACHE_BYTES = 2**26  # per-sample gradients of the last point are kept up to this size, else computed again
_CHUNK_ELEMENTS = 2**20  # gradients made at a time by default: 8 MiB in double precision


@dataclass(frozen=True)
class Mechanism:
    """What all parties know: norms, noise and steps."""

    clip: float
    clip_difference: float
    z1: float
    z2: float
    z3: float
    sensitivity: float
    local_noise: bool
    n_samples: int
    n_clients: int
    lr: float
    local_steps: int = 1
    local_batch_size: int = 1
    record: bool = False
    diagnostics: bool = False

    def bound(self, kind: str, step: float) -> float:
        """Norm to which a sample's contribution is clipped: C1, or ``C2 |x - x_previous|``."""
        if kind == "restart":
            return self.clip
        return self.clip_difference * step if step > 0 else 0.0

    def std(self, kind: str, bound: float, size: int) -> float:
        """Standard deviation of the noise on a mean over `size` samples."""
        z = self.z1 if kind == "restart" else self.z2
        return z * self.sensitivity * bound / size if z else 0.0

    def client_std(self, kind: str, bound: float, n_samples: int) -> float:
        """Noise of one client's message: its share of the aggregate's, or all that its own mean needs."""
        if self.local_noise:
            return self.std(kind, bound, n_samples)
        return self.std(kind, bound, self.n_samples) / math.sqrt(self.n_clients)

    def released_std(self, kind: str, bound: float) -> float:
        """Noise of the mean over all clients."""
        return self.std(kind, bound, self.n_samples) * (math.sqrt(self.n_clients) if self.local_noise else 1.0)


class Entropy:
    """Normal and uniform numbers for one purpose of one round: repeatable from a seed, or from the system's entropy."""

    def __init__(self, seed: int | None, *purpose: int) -> None:
        self.rng = None if seed is None else np.random.default_rng(np.random.SeedSequence([seed, *purpose]))

    def normal(self, n: int) -> np.ndarray:
        """Give `n` standard normal numbers."""
        if self.rng is not None:
            return self.rng.standard_normal(n)
        from scipy.special import ndtri

        return np.asarray(ndtri(self.uniform(n)))

    def uniform(self, n: int) -> np.ndarray:
        """Give `n` uniform numbers in (0, 1)."""
        if self.rng is not None:
            return self.rng.random(n)
        bits = np.frombuffer(os.urandom(8 * n), np.uint64) >> np.uint64(12)
        return (bits.astype(np.float64) + 0.5) / 2.0**52

    def noise(self, like: Tensor, std: float) -> Tensor:
        """Draw in double precision, and give it in the dtype and on the device of `like`."""
        return torch.from_numpy(std * self.normal(like.numel())).to(like.device, like.dtype)


class Samples:
    """A client's samples and their gradients, in chunks.

    Parameters
    ----------
    data : tuple of Tensor
        Sample j is made of the j-th entries.
    fun : callable, optional
        ``fun(x, *sample) -> scalar``, for one sample.
    per_sample_grad : callable, optional
        ``per_sample_grad(x, *batch)`` gives ``(m, d)``, or a pair ``c (m,), a (m, d)`` of which a does not depend on x;
        by automatic differentiation of `fun` without it.
    """

    def __init__(
        self,
        data: tuple[Tensor, ...],
        fun: Callable[..., Tensor] | None,
        per_sample_grad: Callable[..., Rows] | None,
        chunk_size: int | None,
    ) -> None:
        self.data, self.fun, self.per_sample_grad, self.chunk_size = data, fun, per_sample_grad, chunk_size
        self.n = len(data[0])

    def gradients(self, x: Tensor, batch: Sequence[Tensor]) -> Rows:
        """Per-sample gradients of one batch."""
        if self.per_sample_grad is not None:
            return self.per_sample_grad(x, *batch)
        assert self.fun is not None
        over_batch = vmap(grad(self.fun), in_dims=(None, *[0] * len(batch)))
        return over_batch(x, *batch)

    def chunks(self, x: Tensor, chosen: Tensor | None = None) -> Iterator[tuple[Tensor, ...]]:
        """All samples, or the chosen ones, a chunk at a time."""
        data = self.data if chosen is None else tuple(part[chosen] for part in self.data)
        size = self.chunk_size or max(1, _CHUNK_ELEMENTS // x.numel())
        for start in range(0, len(data[0]), size):
            yield tuple(part[start : start + size] for part in data)

    def loss(self, x: Tensor) -> float:
        """Sum of the losses."""
        if self.fun is None:
            return math.nan
        over_batch = vmap(self.fun, in_dims=(None, *[0] * len(self.data)))
        return sum(float(over_batch(x, *batch).sum()) for batch in self.chunks(x))


def row_norms(rows: Rows) -> Tensor:  # (m,)
    """Norm of each row, whether it is written out or a multiple of another."""
    if isinstance(rows, Tensor):
        return torch.linalg.vector_norm(rows, dim=1)
    c, a = rows
    return c.abs() * torch.linalg.vector_norm(a, dim=1)


def clipped_sum(rows: Rows, bound: float) -> Tensor:  # (d,)
    """Sum rows clipped to the norm `bound`; rows that are not finite count as zero."""
    norms = row_norms(rows)
    c, a = (torch.ones_like(norms), rows) if isinstance(rows, Tensor) else rows
    if not math.isfinite(float(norms.sum())):
        good = torch.isfinite(norms)
        c, a, norms = c.where(good, 0.0), a.where(good[:, None], 0.0), norms.where(good, 0.0)
    if math.isinf(bound):
        return c @ a
    return (c * (bound / norms.clamp(min=bound)) if bound > 0 else torch.zeros_like(c)) @ a


def change(rows: Rows, before: Rows) -> Rows:
    """Differences of rows of the same samples."""
    if isinstance(rows, Tensor):
        return rows - before  # type: ignore[operator]
    return rows[0] - before[0], rows[1]


class GradientClient:
    """An engine's client that answers with a noisy mean, or with where its local steps led.

    The reply's delta is the message itself in the first case. Between tasks it remembers the last point that it was
    sent, so that a round costs one vector in each direction.
    """

    def __init__(
        self,
        samples: Samples,
        mechanism: Mechanism,
        public_gradient: Callable[[Tensor], Tensor] | None,
        seed: int | None,
    ) -> None:
        self.samples, self.mechanism, self.public_gradient, self.seed = samples, mechanism, public_gradient, seed
        self.n_samples = samples.n
        self.last: Tensor | None = None
        self.cached: tuple[Tensor, list[Rows]] | None = None

    def fit(self, model: State, task: Task) -> Reply:
        """Answer a task: a restart, a difference, or local steps."""
        x, kind, round_ = model["x"], task.payload["kind"], task.payload["round"]
        if kind == "local":
            return Reply({"x": self.local_steps(x, task.payload["v"], round_) - x})
        previous = task.payload.get("previous", self.last)
        self.last = x
        return self.message(x, None if kind == "restart" else previous, round_)

    def message(self, x: Tensor, previous: Tensor | None, round_: int) -> Reply:
        """Mean of clipped gradients, or of their clipped differences from the previous point, with noise."""
        m, kind = self.mechanism, "restart" if previous is None else "difference"
        step = 0.0 if previous is None else float(torch.linalg.vector_norm(x - previous))
        bound = m.bound(kind, step)
        size = self.n_samples if m.local_noise else m.n_samples
        total, gradient, clipped, broken = torch.zeros_like(x), torch.zeros_like(x), 0, 0
        for g, before in self.pairs(x, previous):
            rows = g if before is None else change(g, before)
            total += clipped_sum(rows, bound)
            if m.diagnostics:
                gradient += clipped_sum(g, math.inf)
                norms = row_norms(rows)
                finite = torch.isfinite(norms)
                clipped += int((norms[finite] > bound * (1 + 1e-12)).sum())
                broken += int((~finite).sum())
        clean = total / size
        noise = Entropy(self.seed, round_, 0).noise(x, m.client_std(kind, bound, self.n_samples))
        payload: dict[str, Any] = {"clean": clean} if m.record else {}
        metrics = {}
        if m.diagnostics:
            payload["gradient"] = gradient
            metrics = {"loss": self.samples.loss(x), "clipped": float(clipped), "nonfinite": float(broken)}
        return Reply({"x": clean + noise}, metrics=metrics, payload=payload)

    def pairs(self, x: Tensor, previous: Tensor | None) -> Iterator[tuple[Rows, Rows | None]]:
        """Gradients of all samples at x, and at the previous point where there is one; those are kept if they fit."""
        kept: list[Rows] = []
        keeps = self.n_samples * x.numel() * x.element_size() <= _CACHE_BYTES
        cached = self.cached if previous is not None else None
        known = cached[1] if cached is not None and previous is not None and torch.equal(cached[0], previous) else None
        for k, batch in enumerate(self.samples.chunks(x)):
            g = self.samples.gradients(x, batch)
            before: Rows | None = None
            if previous is not None:
                before = self.samples.gradients(previous, batch) if known is None else known[k]
            if keeps:
                kept.append(g)
            yield g, before
        self.cached = (x, kept) if keeps else None

    def local_steps(self, x: Tensor, v: Tensor, round_: int) -> Tensor:
        """K steps from x, the first along v, the others along v plus sampled differences with noise."""
        m, draws = self.mechanism, Entropy(self.seed, round_, 1)
        rate = m.local_batch_size / self.n_samples
        y, u = x, v
        y_next = y - m.lr * self.with_public(u, y)
        for _ in range(1, m.local_steps):
            previous, y = y, y_next
            bound = m.bound("difference", float(torch.linalg.vector_norm(y - previous)))
            chosen = torch.from_numpy(np.flatnonzero(draws.uniform(self.n_samples) < rate)).to(x.device)
            total = torch.zeros_like(x)
            for batch in self.samples.chunks(x, chosen):
                rows = change(self.samples.gradients(y, batch), self.samples.gradients(previous, batch))
                total += clipped_sum(rows, bound)
            std = m.z3 * bound / m.local_batch_size if m.z3 else 0.0
            u = u + total / m.local_batch_size + draws.noise(x, std)
            y_next = y - m.lr * self.with_public(u, y)
        return y_next

    def with_public(self, u: Tensor, y: Tensor) -> Tensor:
        """Add the gradient of the public term."""
        return u if self.public_gradient is None else u + self.public_gradient(y)

    def state_dict(self) -> dict[str, Any]:
        """The last point that it was sent."""
        return {} if self.last is None else {"last": self.last}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Put it back."""
        self.last = state["last"]
