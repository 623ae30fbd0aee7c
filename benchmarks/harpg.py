"""N-PG-IGT and (N-)HARPG beside A2C without a critic's loss on CartPole, and how their updates grow.

CPU seconds. A2C collects 88 steps an iteration, about four episodes of a policy that knows nothing; ours take four
episodes. The learning rates are so small that nobody leaves that policy.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from _rows import Row, compared, fastest, fitted, interleaved, rows_of
from steepest.curvature.vectors import flatten
from steepest.policy import actor_parameters, trajectory_gradient
from steepest.policy._trajectories import mean_gradient, mean_hvp
from steepest.studies.harpg_control import plain_a2c, policy_gradient
from steepest.studies.harpg_costs import GaussianPolicy, iteration, some_trajectory, width_of


def bench(progress: Callable[[float], None] | None = None) -> list[Row]:
    return rows_of([learning, updates, growth], progress)


def run(make: Callable[..., Any], steps: int, **options: Any) -> None:
    """Train from the start; A2C seeds global generators, which get their states back."""
    from steepest.policy._streams import Streams

    with Streams().own(torch.device("cpu")):
        make("CartPole-v1", seed=0, **options).learn(steps)


def learning() -> list[Row]:
    steps = 3000
    ours = partial(run, policy_gradient, steps, rate=1e-6, batch=4, width=32, horizon=500)
    tasks = {
        "N-PG-IGT": partial(ours, kind="N-PG-IGT"),
        "N-HARPG": partial(ours, kind="N-HARPG"),
        "A2C": partial(run, plain_a2c, steps, n_steps=88),
    }
    seconds = interleaved(tasks, 5, time.process_time)
    what = f"CartPole, {steps} steps, one gradient for about 88"
    return [
        compared("learn, N-PG-IGT", seconds, "A2C", "<= 1.0", what, "N-PG-IGT"),
        compared("learn, N-HARPG", seconds, "A2C", None, what, "N-HARPG"),
    ]


def updates() -> list[Row]:
    policy, trajectory = GaussianPolicy(width_of(10**5)), some_trajectory(200, 0)
    tasks = {
        "ours": iteration(policy, 200),
        "policy gradient alone": lambda: trajectory_gradient(policy, trajectory),
    }
    seconds = interleaved(tasks, 15, time.process_time)
    what = "one update of N-HARPG, its two episodes of 200 steps given, 10^5 parameters"
    return [compared("update, N-HARPG", seconds, "policy gradient alone", "<= 4", what)]


def growth() -> list[Row]:
    """In the number of trajectories and of parameters."""
    policy = GaussianPolicy(width_of(10**4))
    u = flatten(p.detach() for p in actor_parameters(policy))
    counts, seconds = (4, 16, 64), []
    for n in counts:
        batch = [some_trajectory(200, k) for k in range(n)]
        seconds.append(fastest(lambda batch=batch: estimates(policy, batch, u), 5, time.process_time))
    rows = [fitted("update against N", counts, seconds, "<= 1.1", "gradient and product of N episodes of 200 steps")]
    sizes, seconds = (10**4, 10**5, 10**6), []
    for p in sizes:
        seconds.append(fastest(iteration(GaussianPolicy(width_of(p)), 200), 5, time.process_time))
    return [*rows, fitted("update against p", sizes, seconds, "<= 1.1", "one update of N-HARPG, episodes of 200 steps")]


def estimates(policy: Any, batch: Any, u: torch.Tensor) -> None:
    mean_gradient(policy, batch, 0.99)
    mean_hvp(policy, batch, u, 0.99)
