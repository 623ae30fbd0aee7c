"""What an iteration counts, holds and takes: trajectories, bytes and CPU seconds against the number of parameters."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from steepest.core.memory import peak_tensor_bytes
from steepest.core.random import torch_generator
from steepest.curvature.vectors import flatten
from steepest.policy import HARPG, NPGIGT, Trajectory, actor_parameters, trajectory_gradient, trajectory_hvp
from steepest.policy._ascent import State, StepRule, harpg_step
from steepest.studies.claim import median_interval, slope_fit
from steepest.studies.context import Context

__all__ = ["GaussianPolicy", "costs", "counters", "width_of"]

OBSERVED, ACTIONS = 17, 6  # as of HalfCheetah


class GaussianPolicy(nn.Module):
    """Two tanh layers and a trained standard deviation, nothing but the actor."""

    def __init__(self, width: int, seed: int = 0) -> None:
        super().__init__()
        generator = torch_generator(seed)
        sizes = [OBSERVED, width, width, ACTIONS]
        layers: list[nn.Module] = []
        for n_in, n_out in itertools.pairwise(sizes):
            layer = nn.Linear(n_in, n_out)
            with torch.no_grad():
                layer.weight.copy_(torch.randn(n_out, n_in, generator=generator) / math.sqrt(n_in))
                layer.bias.zero_()
            layers += [layer, nn.Tanh()]
        self.mean = nn.Sequential(*layers[:-1])
        self.log_std = nn.Parameter(torch.zeros(ACTIONS))

    def get_distribution(self, observations: Tensor) -> Any:
        """Give the distribution of actions."""
        normal = torch.distributions.Normal(self.mean(observations), self.log_std.exp())
        return torch.distributions.Independent(normal, 1)


def width_of(p: int) -> int:
    """Width of the layers with which the policy has about p parameters."""
    linear = OBSERVED + ACTIONS + 2
    return round((-linear + math.sqrt(linear**2 + 4 * p)) / 2)


def some_trajectory(steps: int, seed: int) -> Trajectory:
    """Draw an episode from no environment: costs do not depend on what is in it."""
    generator = torch_generator(seed)
    shapes = ((steps, OBSERVED), (steps, ACTIONS), (steps,))
    return Trajectory(*(torch.randn(*shape, generator=generator) for shape in shapes))


def counters(ctx: Context) -> None:
    """Trajectories of the algorithms on CartPole against n and 2n - 1, for n iterations."""
    steps = ctx.pick(tiny=200, quick=1500, full=1500, paper=1500)
    for claim, made, expected in (
        ("trajectories-igt", NPGIGT, lambda n: n),
        ("trajectories-harpg", HARPG, lambda n: 2 * n - 1),
    ):
        model = made("MlpPolicy", "CartPole-v1", 0.01, seed=ctx.seed, device="cpu").learn(steps)
        ctx.measured(claim, float(model.n_trajectories - expected(model.n_updates)))


def costs(ctx: Context) -> None:
    """Bytes and seconds of an iteration of N-HARPG, whose episodes are given, for 10^4 to 10^6 parameters."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # CPU seconds would count threads that wait
    try:
        _costs(ctx)
    finally:
        torch.set_num_threads(threads)


def _costs(ctx: Context) -> None:
    sizes = ctx.pick(tiny=(1000, 4000), quick=(10**4, 10**5, 10**6), full=(10**4, 10**5, 10**6), paper=())
    steps = ctx.pick(tiny=10, quick=50, full=50, paper=50)
    repeats = ctx.pick(tiny=2, quick=5, full=15, paper=5)
    counts, peaks, seconds = [], [], []
    for p in sizes:
        policy = GaussianPolicy(width_of(p))
        iterate = iteration(policy, steps)
        iterate()
        counts.append(sum(q.numel() for q in actor_parameters(policy)))
        peaks.append(peak_tensor_bytes(iterate))
        seconds.append(fastest(iterate, repeats))
        ctx.note(f"N-HARPG, p = {counts[-1]}, {steps} steps an episode: {peaks[-1] / counts[-1]:.0f} bytes a "
                 f"parameter at the peak, {1e3 * seconds[-1]:.2f} ms of CPU an iteration.")  # fmt: skip
    for name, values in (("memory", [float(b) for b in peaks]), ("time", seconds)):
        ctx.measured(f"{name}-in-p", slope_fit(counts, values)[0])
        ctx.series(name, zip(counts, values, strict=True), method="N-HARPG")
        ctx.series(name, [(n, values[0] * n / counts[0]) for n in counts], method="theory")
    policy, trajectory = GaussianPolicy(width_of(sizes[-2])), some_trajectory(4 * steps, 0)
    u = torch.ones(sum(q.numel() for q in actor_parameters(policy)))
    pairs = [
        (fastest(lambda: trajectory_gradient(policy, trajectory), 3),
         fastest(lambda: trajectory_hvp(policy, trajectory, u), 3))
        for _ in range(2 * repeats + 1)
    ]  # fmt: skip
    ratios = [hvp / gradient for gradient, hvp in pairs[1:]]
    ctx.measured("hvp-cost", *median_interval(ratios))


def iteration(policy: nn.Module, steps: int) -> Callable[[], object]:
    """One iteration of N-HARPG after the first, its two trajectories drawn beforehand."""
    first, second = some_trajectory(steps, 1), some_trajectory(steps, 2)
    theta = flatten(q.detach() for q in actor_parameters(policy))
    state = State(theta, theta - 1e-3, torch.ones_like(theta), 5)
    rule = StepRule(0.1, 1.0, 1.0, 1.0, True)

    def once() -> object:
        return harpg_step(
            state, rule, lambda point: trajectory_gradient(policy, first),
            lambda point, u: trajectory_hvp(policy, second, u), lambda: 0.5,
        )  # fmt: skip

    return once


def fastest(task: Callable[[], object], repeats: int) -> float:
    """CPU seconds, the smallest of several."""
    best = math.inf
    for _ in range(repeats):
        start = time.process_time()
        task()
        best = min(best, time.process_time() - start)
    return best
