"""Imitation of scripted experts on Gymnasium's tasks, where what is dear is asking the expert.

DAgger: in every round the learner acts, the expert says what it would have done in the states that were met, and the
learner takes one step on that batch. The loss needs the expert's actions, so its gradient by the policy's outputs costs
one query for each state; SSO makes several policy updates of it, Adam one. "Adam, replay" keeps all answers and takes
ten steps on batches of them each round, which is what one does where labels can be stored.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from steepest.core.extras import MissingExtra, require
from steepest.core.random import child_seeds, torch_generator
from steepest.optim.target_surrogate import TargetSurrogate
from steepest.studies.claim import bootstrap_interval
from steepest.studies.context import Context
from steepest.studies.task import fresh_model

__all__ = ["TASKS", "Imitation", "cartpole_expert", "compare", "dagger", "measure", "pendulum_expert"]

Loss = Callable[[Tensor, Tensor], Tensor]


def cartpole_expert(state: np.ndarray) -> list[float]:
    """Push towards the side to which the pole will fall, with a pull back to the middle: 1 is right."""
    x, speed, angle, turning = state
    return [float(10 * angle + 2 * turning + 0.3 * x + 0.6 * speed > 0)]


def pendulum_expert(state: np.ndarray) -> list[float]:
    """Pump energy until the pendulum is nearly upright, then hold it: a torque in [-2, 2]."""
    cosine, sine, turning = state
    angle = math.atan2(sine, cosine)
    energy = turning**2 / 6 + 5 * cosine
    torque = -(12 * angle + 3 * turning) if abs(angle) < 0.4 else 2 * turning * (5 - energy)
    if abs(angle) >= 0.4 and abs(turning) < 0.05:
        torque = 2.0  # it hangs at rest
    return [float(np.clip(torque, -2, 2))]


@dataclass(frozen=True)
class Imitation:
    """A task: environment, scale of its observations, the expert, and how the policy's outputs become an action.

    `rounds` is how many there are, `columns` how many outputs the policy has, `etas` the grid of SSO.
    """

    key: str
    env: str
    scale: tuple[float, ...]
    expert: Callable[[np.ndarray], Sequence[float]]
    loss: Loss
    action: Callable[[list[float]], Any]
    etas: tuple[float, ...]
    rounds: int
    columns: int = 1
    hidden: int = 32

    def policy(self) -> nn.Module:
        """Observations to a logit or to torques."""
        return nn.Sequential(nn.Linear(len(self.scale), self.hidden), nn.Tanh(), nn.Linear(self.hidden, self.columns))


TASKS = [
    Imitation(
        "cartpole", "CartPole-v1", (1.0, 1.0, 0.1, 1.0), cartpole_expert,
        lambda z, y: F.binary_cross_entropy_with_logits(z, y), lambda z: int(z[0] > 0), (1.0, 4.0, 16.0, 64.0), 40,
    ),
    Imitation(
        "pendulum", "Pendulum-v1", (1.0, 1.0, 4.0), pendulum_expert,
        lambda z, y: F.mse_loss(z, y), lambda z: np.clip(z, -2, 2).astype(np.float32), (0.06, 0.12, 0.25, 0.5), 80,
    ),
]  # fmt: skip
RATES = (1e-3, 3e-3, 1e-2, 3e-2)
ROUND = 100  # states, and so queries, of a round


@dataclass(frozen=True)
class Curve:
    """Average return after so many queries."""

    queries: list[int]
    returns: list[float]

    def at(self, queries: float) -> float:
        """The last measurement that is not later."""
        return max((q, r) for q, r in zip(self.queries, self.returns, strict=True) if q <= queries)[1]


def dagger(task: Imitation, method: str, value: float, seed: int, rounds: int, each: int) -> Curve:
    """Learn for some rounds; the policy is evaluated after every `each` of them."""
    gymnasium = require("gymnasium", "rl", what="imitation learning")
    env = gymnasium.make(task.env)
    seeds = child_seeds(seed, 3)
    model = fresh_model(task.policy, seeds[0])
    g, kept = torch_generator(seeds[1]), _Labels([], [])
    optimizer: Any
    if method == "SSO":
        optimizer = TargetSurrogate(model.parameters(), target_lr=value, inner="lbfgs")
    else:
        optimizer = torch.optim.Adam(model.parameters(), value)
    walk = _Walk(env, seeds[2] % 2**31)
    curve = Curve([0], [_average_return(gymnasium, task, model)])
    for k in range(1, rounds + 1):
        states = walk.states(task, model)
        x, y = _observed(task, states), torch.tensor(np.array([task.expert(s) for s in states]), dtype=torch.float32)
        if method == "SSO":
            optimizer.step(partial(model, x), lambda z, y=y: task.loss(z, y))
        else:
            kept.add(x, y)
            for _ in range(10 if method == "Adam, replay" else 1):
                xb, yb = kept.sample(g) if method == "Adam, replay" else (x, y)
                optimizer.zero_grad()
                task.loss(model(xb), yb).backward()
                optimizer.step()
        if k % each == 0:
            curve.queries.append(k * ROUND)
            curve.returns.append(_average_return(gymnasium, task, model))
    env.close()
    return curve


@dataclass
class _Labels:
    x: list[Tensor]
    y: list[Tensor]

    def add(self, x: Tensor, y: Tensor) -> None:
        self.x.append(x)
        self.y.append(y)

    def sample(self, g: torch.Generator) -> tuple[Tensor, Tensor]:
        x, y = torch.cat(self.x), torch.cat(self.y)
        rows = torch.randint(len(x), (ROUND,), generator=g)
        return x[rows], y[rows]


def _observed(task: Imitation, states: Sequence[np.ndarray]) -> Tensor:
    return torch.tensor(np.array(states), dtype=torch.float32) / torch.tensor(task.scale)


class _Walk:
    """States that the learner meets, episode after episode."""

    def __init__(self, env: Any, seed: int) -> None:
        self._env = env
        self._state, _ = env.reset(seed=seed)

    @torch.no_grad()
    def states(self, task: Imitation, model: nn.Module) -> list[np.ndarray]:
        met = []
        for _ in range(ROUND):
            met.append(self._state)
            action = task.action(model(_observed(task, [self._state]))[0].tolist())
            self._state, _, ended, cut, _ = self._env.step(action)
            if ended or cut:
                self._state, _ = self._env.reset()
        return met


@torch.no_grad()
def _average_return(gymnasium: Any, task: Imitation, model: nn.Module, episodes: int = 8) -> float:
    """Mean over the same starts, all episodes side by side: the policy sees them as one batch."""
    envs = [gymnasium.make(task.env) for _ in range(episodes)]
    states = [env.reset(seed=1000 + i)[0] for i, env in enumerate(envs)]
    totals, alive = np.zeros(episodes), list(range(episodes))
    while alive:
        outputs = model(_observed(task, [states[i] for i in alive])).tolist()
        still = []
        for i, z in zip(alive, outputs, strict=True):
            states[i], reward, ended, cut, _ = envs[i].step(task.action(z))
            totals[i] += reward
            if not (ended or cut):
                still.append(i)
        alive = still
    for env in envs:
        env.close()
    return float(totals.mean())


def measure(ctx: Context) -> None:
    """Returns of SSO at half the queries beside those of Adam at all of them."""
    try:
        require("gymnasium", "rl", what="imitation learning")
    except MissingExtra as missing:
        for task in TASKS:
            for claim in (f"imitation-{task.key}", f"imitation-{task.key}-replay"):
                ctx.skipped(claim, str(missing))
        return
    seeds = ctx.seeds if ctx.seeds_asked or ctx.scale != "full" else [ctx.seed + 1 + k for k in range(5)]
    for task in TASKS:
        gains = compare(ctx, task, seeds, 4 if ctx.scale == "tiny" else task.rounds)
        for claim, peer in ((f"imitation-{task.key}", "Adam"), (f"imitation-{task.key}-replay", "Adam, replay")):
            ctx.measured(claim, float(np.mean(gains[peer])), bootstrap_interval(gains[peer]))
        ctx.progress(0.7 + 0.3 * (TASKS.index(task) + 1) / len(TASKS))


def compare(ctx: Context, task: Imitation, seeds: Sequence[int], rounds: int) -> dict[str, list[float]]:
    """Tune and run SSO, Adam, and Adam with all labels kept; by peer, SSO's return at half the queries less its own."""
    curves: dict[str, list[Curve]] = {}
    each = max(1, rounds // 20)
    for method in ("SSO", "Adam", "Adam, replay"):
        grid = (task.etas if method == "SSO" else RATES)[: 2 if ctx.scale == "tiny" else None]
        tried = [np.mean(dagger(task, method, value, ctx.seed, rounds, each).returns[1:]) for value in grid]
        best = grid[int(np.argmax(tried))]
        said = ", ".join(f"{v:g}: {r:.0f}" for v, r in zip(grid, tried, strict=True))
        ctx.note(f"{task.env}, tuning {method} (mean return while it learns, one seed): {said}.")
        curves[method] = [dagger(task, method, best, seed, rounds, each) for seed in seeds]
        for seed, curve in zip(seeds, curves[method], strict=True):
            points = list(zip(curve.queries, curve.returns, strict=True))
            ctx.series(f"imitation {task.key}", points, method=method, seed=seed)
    total = rounds * ROUND
    return {
        peer: [a.at(total / 2) - b.at(total) for a, b in zip(curves["SSO"], curves[peer], strict=True)]
        for peer in ("Adam", "Adam, replay")
    }
