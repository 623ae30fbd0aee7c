r"""Training of a particle model: noisy windows, the linear start, and Adam on the normalized acceleration.

Velocities and accelerations are differences of frames, so the step of time is 1. With W velocities in a window,

    noise of velocities   n_k = sum_{j <= k} z_j,  z_j ~ N(0, noise^2 / W),   so the last one's spread is `noise`
    noise of positions    0, n_1, n_1 + n_2, ...
    target                a = (x_next + noise of the last position) - 2 x_last + x_before,  with noisy x:
                          the true next velocity minus the noisy last one
    unrolled              half of the batches first go on by the model's own step, 1 to `unroll` frames; the target is
                          again the true next velocity minus the last one, which is now the model's

What the model itself does wrong is not the noise of a random walk: trained on noise alone it gets better at one step
and worse at thirty.

Paper: sanchezgonzalez2020learning (noise and target), viswanath2024reduced.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from steepest.core.distributed import all_reduce_mean, all_reduce_sum, group_rank, group_size
from steepest.core.errors import Limit, value_error
from steepest.physics._particle_data import Trajectory

if TYPE_CHECKING:
    from steepest.physics._particle_model import ParticleModel

__all__ = [
    "SAMPLE",
    "Batch",
    "History",
    "Windows",
    "least_squares_skip",
    "random_walk",
    "sample_size",
    "train",
    "wanted",
]

SKIP_WINDOWS = 512  # at most, for the least squares: few of them hold an impact, and those decide
SKIP_BATCH = 16
ROLLOUT_FRAMES = 30

History = dict[str, list[float]]


class Batch(NamedTuple):
    """Windows of several graphs, one after another."""

    positions: Tensor  # (N, W + 1, d)
    types: Tensor  # (N,)
    graph_index: Tensor  # (N,), sorted: the graph of each particle
    n_graphs: int


def _is_sample(value: Any) -> bool:
    if value is None or isinstance(value, bool):
        return value is None
    return value >= 1 if isinstance(value, int) else bool(0 < value <= 1)


SAMPLE = Limit(
    "None, an integer >= 1 or a share in (0, 1]",
    lambda value: value is None or (isinstance(value, int | float) and not isinstance(value, bool)),
    _is_sample,
)


def sample_size(n_sample: float | None, n: int) -> int:
    """Give how many of n particles are sampled; a float is a share."""
    if n_sample is None:
        return n
    if isinstance(n_sample, int):
        if n_sample > n:
            raise value_error("n_sample", f"at most the {n} particles there are", n_sample)
        return n_sample
    return max(1, round(n_sample * n))


def random_walk(n: int, window: int, dim: int, noise: float, generator: torch.Generator) -> Tensor:
    """Draw noise of positions (n, window + 1, dim) in float64, the sums of a random walk of the velocities."""
    steps = torch.randn(n, window, dim, generator=generator, dtype=torch.float64) * (noise / math.sqrt(window))
    positions = steps.cumsum(1).cumsum(1)
    return torch.cat((torch.zeros(n, 1, dim, dtype=torch.float64), positions), 1)


class Windows:
    """All windows of some trajectories; each draw takes a fresh sample of particles and fresh noise."""

    def __init__(
        self, trajectories: list[Trajectory], window: int, n_sample: float | None, noise: float,
        generator: torch.Generator,
    ) -> None:  # fmt: skip
        self.trajectories, self.window, self.noise, self.generator = trajectories, window, noise, generator
        self.sizes = [sample_size(n_sample, t.positions.shape[1]) for t in trajectories]
        self.where = [(t, k) for t, found in enumerate(trajectories) for k in range(len(found.positions) - window - 1)]

    def some(self, n: int) -> list[int]:
        """Draw n windows with replacement."""
        return torch.randint(len(self.where), (n,), generator=self.generator).tolist()

    def further(self, unroll: int) -> int:
        """Draw how many frames a batch goes on by the model: none in half of the cases."""
        if not unroll or bool(torch.randint(2, (), generator=self.generator)):
            return 0
        return int(torch.randint(1, unroll + 1, (), generator=self.generator))

    def draw(self, number: int, further: int = 0) -> tuple[Tensor, Tensor, Tensor]:
        """Give noisy positions (m, W + 1, d), kinds (m,), and the true velocity (m, d) `further` + 1 frames later."""
        t, first = self.where[number]
        positions, types = self.trajectories[t]
        n, d = positions.shape[1:]
        first %= len(positions) - self.window - 1 - further
        chosen = torch.randperm(n, generator=self.generator)[: self.sizes[t]]
        frames = positions[first : first + self.window + 2 + further].index_select(1, chosen).transpose(0, 1).double()
        noise = random_walk(len(chosen), self.window, d, self.noise, self.generator)
        noisy = (frames[:, : self.window + 1] + noise).to(positions.dtype)
        return noisy, types[chosen], (frames[:, -1] - frames[:, -2]).to(positions.dtype)


def wanted(velocity: Tensor, positions: Tensor) -> Tensor:
    """Give the accelerations (n, d) that bring windows (n, W + 1, d) to the next `velocity`."""
    return velocity - (positions[:, -1] - positions[:, -2])


def least_squares_skip(model: ParticleModel, windows: Windows) -> Tensor:
    """Fit the map (d, k) from what the skip sees to the next normalized acceleration, by normal equations."""
    order = torch.randperm(len(windows.where), generator=windows.generator)[:SKIP_WINDOWS].tolist()
    device = model.acc_std_.device
    normal: Any = 0.0
    moments: Any = 0.0
    for first in range(0, len(order), SKIP_BATCH):
        drawn = [windows.draw(number) for number in order[first : first + SKIP_BATCH]]
        batch = collate([(noisy, types) for noisy, types, _ in drawn], device)
        velocity = torch.cat([v for _, _, v in drawn]).to(device)
        seen = model.linear_inputs(batch).double().cpu()
        following = model.normalized(wanted(velocity, batch.positions)).double().cpu()
        normal, moments = normal + seen.T @ seen, moments + seen.T @ following
    return (torch.linalg.pinv(normal, hermitian=True) @ moments).T


def train(
    model: ParticleModel,
    windows: Windows,
    *,
    steps: int,
    max_seconds: float | None,
    batch_size: int,
    lr: float,
    lr_final: float,
    position_weight: float,
    unroll: int,
    rollout_every: int | None,
    callback: Callable[[int, History], Any] | None,
    process_group: Any,
) -> History:
    """Minimize the mean squared error of the normalized acceleration; each rank draws all and does its own part."""
    rank, size = group_rank(process_group), group_size(process_group)
    parameters = [p for p in model.trained_parameters() if p.requires_grad]
    device = parameters[0].device
    optimizer = torch.optim.Adam(parameters, lr=lr, fused=True)
    history: History = {"loss": [], "lr": [], "seconds": [], "rollout": []}
    start = time.process_time()
    for step in range(steps):
        share = step / steps
        if max_seconds is not None:
            used = torch.tensor([(time.process_time() - start) / max_seconds], dtype=torch.float64)
            all_reduce_mean([used], process_group)
            if used >= 1:
                break
            share = max(share, float(used))
        optimizer.param_groups[0]["lr"] = lr * (lr_final / lr) ** share
        further = windows.further(unroll)
        drawn = [windows.draw(number, further) for number in windows.some(batch_size)]
        n_numbers = sum(velocity.numel() for _, _, velocity in drawn)
        optimizer.zero_grad()
        total = torch.zeros((), dtype=torch.float64)
        if own := drawn[rank::size]:
            batch = collate([(x, types) for x, types, _ in own], device)
            with torch.no_grad():
                for _ in range(further):
                    batch = model.moved(batch)
            velocity = torch.cat([v for _, _, v in own]).to(device)
            target = model.normalized(wanted(velocity, batch.positions))
            error = model.accelerations(batch) - target
            loss = error.square().sum() / n_numbers
            if position_weight:
                loss = loss + position_weight * (error * model.acc_std_).square().sum() / n_numbers
            loss.backward()
            total += loss.detach().cpu()
        for p in parameters:
            p.grad = torch.zeros_like(p) if p.grad is None else p.grad
        all_reduce_sum([p.grad for p in parameters if p.grad is not None], process_group)
        all_reduce_sum([total], process_group)
        if not math.isfinite(total):
            raise FloatingPointError(f"the loss is not finite in step {step + 1}; lower lr={lr:g}")
        optimizer.step()
        for name, value in (
            ("loss", total), ("lr", optimizer.param_groups[0]["lr"]), ("seconds", time.process_time() - start)
        ):  # fmt: skip
            history[name].append(float(value))
        if rollout_every is not None and (step + 1) % rollout_every == 0:
            history["rollout"].append(rollout_error(model, windows))
        if callback is not None:
            try:
                callback(step + 1, history)
            except StopIteration:
                break
    return history


def collate(parts: list[tuple[Tensor, Tensor]], device: torch.device) -> Batch:
    """Join windows (n, W + 1, d) with their kinds."""
    counts = torch.tensor([len(x) for x, _ in parts])
    graph_index = torch.repeat_interleave(torch.arange(len(parts)), counts)
    positions, types = (torch.cat(values).to(device) for values in zip(*parts, strict=True))
    return Batch(positions, types, graph_index.to(device), len(parts))


def rollout_error(model: ParticleModel, windows: Windows) -> float:
    """Mean squared error of 30 frames of the first trajectory, on its first particles; inf if it fails."""
    positions, types = windows.trajectories[0]
    device = model.acc_std_.device
    chosen = positions[: model.window + 1 + ROLLOUT_FRAMES, : windows.sizes[0]].to(device)
    initial, truth = chosen[: model.window + 1].transpose(0, 1), chosen[model.window + 1 :]
    try:
        found = model.rollout(initial, len(truth), types[: windows.sizes[0]].to(device))
    except RuntimeError:
        return math.inf
    return float((found - truth).square().mean())
