"""MDPO beside PPO, TRPO and SAC: CPU seconds of `learn` on CartPole and Pendulum, and what the environments alone take.

On-policy all have the same network, 1024 steps an iteration and their own default updates; off-policy one gradient step
follows each step of the environment, batch 256, networks 256-256.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import Any

import gymnasium
import torch

from _rows import Row, compared, fastest, fitted, interleaved, rows_of
from steepest.core.extras import installed
from steepest.policy import OffPolicyMDPO, OnPolicyMDPO
from steepest.policy._streams import Streams


def bench(progress: Callable[[float], None] | None = None) -> list[Row]:
    return rows_of([on_policy, off_policy, growth], progress)


def learning(make: Callable[..., Any], env: str, steps: int, **options: Any) -> Callable[[], object]:
    """A run from the start; the peers seed global generators, which get their states back."""

    def task() -> None:
        with Streams().own(torch.device("cpu")):
            make("MlpPolicy", env, seed=0, device="cpu", **options).learn(steps)

    return task


def environment(name: str, steps: int) -> None:
    """Random actions, nothing learned."""
    env = gymnasium.make(name)
    env.reset(seed=0)
    env.action_space.seed(0)
    for _ in range(steps):
        _, _, terminated, truncated, _ = env.step(env.action_space.sample())
        if terminated or truncated:
            env.reset()


def on_policy() -> list[Row]:
    from stable_baselines3 import PPO

    steps = 4096
    run = partial(learning, env="CartPole-v1", steps=steps, n_steps=1024)
    tasks = {"ours": run(OnPolicyMDPO), "PPO": run(PPO)}
    if installed("sb3_contrib"):
        from sb3_contrib import TRPO

        tasks["TRPO"] = run(TRPO)
    tasks["environment alone"] = partial(environment, "CartPole-v1", steps)
    seconds = interleaved(tasks, 3, time.process_time)
    what = f"CartPole, {steps} steps, 1024 an iteration"
    bounds = {"PPO": "<= 0.6", "TRPO": "<= 1.0"}
    rows = [compared(f"on-policy, {p}", seconds, p, bounds.get(p), what) for p in tasks if p != "ours"]
    return [*rows, compared("on-policy, steps a second", seconds, "PPO", "<= 0.83", f"{what}; 1.2 times PPO's rate")]


def off_policy() -> list[Row]:
    from stable_baselines3 import SAC

    steps = 500
    run = partial(learning, env="Pendulum-v1", steps=steps, learning_starts=100, buffer_size=10_000)
    tasks = {"ours": run(OffPolicyMDPO), "SAC": run(SAC, ent_coef=0.2)}
    seconds = interleaved(tasks, 3, time.process_time)
    what = "Pendulum, 400 gradient steps; 0.85 times SAC's rate"
    return [compared("off-policy, SAC", seconds, "SAC", "<= 1.18", what)]


def growth() -> list[Row]:
    """The actor's part of an iteration against the number of gradient steps."""
    counts, seconds = (10, 40, 160), []
    for m in counts:
        model = OnPolicyMDPO("MlpPolicy", "CartPole-v1", n_steps=1024, n_policy_steps=m, vf_epochs=1, seed=0)
        model.learn(1024)
        seconds.append(fastest(model.train, 3, time.process_time))
    what = "training on a rollout of 1024 steps, m = 10, 40, 160; one pass of the critic is in it"
    return [fitted("an update against m", counts, seconds, "<= 1.1", what)]
