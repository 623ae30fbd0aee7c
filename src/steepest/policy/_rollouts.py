"""Whole episodes from a vectorized environment, each a function of its seeds alone: here, or on Ray.

A round starts all environments together from seeds of its own and takes exactly one episode of each, so that short
episodes are not taken more often than long ones. What an environment does after the end of its episode is thrown away.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from steepest.core.errors import kind_error, value_error
from steepest.core.extras import require
from steepest.core.parallel import joined_ray, ordered_map
from steepest.core.random import torch_generator
from steepest.policy._trajectories import Trajectory

__all__ = ["Moment", "Rollouts", "Round", "rollouts"]


@dataclass(frozen=True)
class Round:
    """One episode from each of the first `n_kept` environments, `horizon` steps at most."""

    horizon: int
    n_kept: int
    env_seed: int
    action_seed: int
    iteration: int
    first: int  # number of the round's first trajectory in its batch


@dataclass(frozen=True)
class Moment:
    """One step of all environments; `live` tells whose episode still counted."""

    rewards: np.ndarray  # (n_envs,)
    dones: np.ndarray
    infos: list[dict[str, Any]]
    live: np.ndarray


Tell = Callable[[Moment], None]
Rollouts = Callable[[Any, Sequence[Round], Tell], list[Trajectory]]
"""Sample the rounds' trajectories from a policy, telling of every step; what the teller raises ends the sampling."""


@contextmanager
def rollouts(venv: Any, collector: str) -> Iterator[Rollouts]:
    """Give the function that samples rounds, in this process or as Ray tasks on copies of the environments."""
    if collector == "serial":
        yield lambda policy, rounds, tell: [
            trajectory for plan in rounds for trajectory in play(venv, policy, plan, tell)
        ]
        return
    ray = require("ray", "federated", what="collector='ray'")
    with joined_ray(ray, os.cpu_count() or 1):
        try:
            envs = ray.put(venv)
        except TypeError as error:
            raise value_error("env", "one that can be pickled for collector='ray'", venv) from error

        def collect(policy: Any, rounds: Sequence[Round], tell: Tell) -> list[Trajectory]:
            weights = ray.put(policy)
            trajectories = []
            for moments, played in ordered_map(_play_there, [(envs, weights, r) for r in rounds], backend="ray"):
                for moment in moments:
                    tell(moment)
                trajectories += played
            return trajectories

        yield collect


def _play_there(work: tuple[Any, Any, Round]) -> tuple[list[Moment], list[Trajectory]]:
    import ray

    venv, policy = copy.deepcopy(ray.get(list(work[:2])))  # Ray's own arrays are read-only
    moments: list[Moment] = []
    with torch.no_grad():
        return moments, play(venv, policy, work[2], moments.append)


@torch.no_grad()
def play(venv: Any, policy: Any, plan: Round, tell: Tell) -> list[Trajectory]:
    """Sample one round."""
    device = policy.device  # Stable-Baselines3 looks for it anew each time
    generator = torch_generator(plan.action_seed, device)
    venv.seed(plan.env_seed)
    observations = venv.reset()
    live = np.arange(venv.num_envs) < plan.n_kept
    lengths = np.zeros(venv.num_envs, dtype=int)
    seen, taken, paid = [], [], []
    for h in range(plan.horizon):
        seen.append(torch.tensor(observations, device=device))
        taken.append(draw(_distribution(policy, seen[-1], plan, h), generator))
        observations, rewards, dones, infos = venv.step(to_environment(taken[-1], venv.action_space))
        paid.append(rewards)
        lengths += live
        _check_finite(rewards, live, "reward", plan, h)
        _check_finite(observations, live & ~dones, "observation", plan, h)
        tell(Moment(rewards, dones, infos, live))
        live = live & ~dones
        if not live.any():
            break
    seen_, taken_ = torch.stack(seen), torch.stack(taken)
    paid_ = torch.as_tensor(np.stack(paid), device=device)
    return [Trajectory(seen_[:T, k], taken_[:T, k], paid_[:T, k]) for k, T in enumerate(lengths[: plan.n_kept])]


def draw(distribution: Any, generator: torch.Generator) -> Tensor:  # (n_envs, *act)
    """Sample actions from one of Stable-Baselines3's distributions with a generator of our own."""
    inner = getattr(distribution, "distribution", distribution)
    if isinstance(inner, torch.distributions.Normal):
        noise = torch.randn(inner.loc.shape, generator=generator, dtype=inner.loc.dtype, device=inner.loc.device)
        return inner.loc + inner.scale * noise
    if isinstance(inner, torch.distributions.Categorical):
        return torch.multinomial(inner.probs, 1, generator=generator).squeeze(-1)
    if isinstance(inner, list):
        return torch.stack([draw(part, generator) for part in inner], 1)
    if isinstance(inner, torch.distributions.Bernoulli):
        return torch.bernoulli(inner.probs, generator=generator)
    raise kind_error("the policy's distribution", "Gaussian, categorical or Bernoulli", inner)


def to_environment(actions: Tensor, space: Any) -> np.ndarray:
    """Clip to the bounds of a box, for the environment only: probabilities are of the action as drawn."""
    array = actions.cpu().numpy()
    if hasattr(space, "low"):
        array = np.clip(array.reshape(-1, *space.shape), space.low, space.high)
    return array.astype(space.dtype)


def _distribution(policy: Any, observations: Tensor, plan: Round, h: int) -> Any:
    cause, what = None, ""
    try:
        distribution = policy.get_distribution(observations)
        if not torch.distributions.Distribution._validate_args:  # else torch has looked
            what = _invalid(distribution.distribution)
    except ValueError as error:
        if not str(error).startswith("Expected parameter"):  # of a distribution, from finite observations
            raise
        cause, what = error, str(error).partition(" of distribution")[0]
    if what:
        raise FloatingPointError(
            f"the policy's distribution is not valid at iteration {plan.iteration}, trajectory {plan.first}, step {h} "
            f"({what}): try a smaller learning_rate"
        ) from cause
    return distribution


def _invalid(distributions: Any) -> str:
    """Which parameter is outside its limits: torch does not look for itself once something has been compiled."""
    for one in distributions if isinstance(distributions, list) else [distributions]:
        for name, constraint in one.arg_constraints.items():
            if name in vars(one) and not bool(constraint.check(vars(one)[name]).all()):
                return f"{name} of {type(one).__name__} is not {constraint}"
    return ""


def _check_finite(values: np.ndarray, live: np.ndarray, what: str, plan: Round, h: int) -> None:
    bad = [k for k in np.flatnonzero(live) if not np.isfinite(values[k]).all()]
    if bad:
        raise FloatingPointError(
            f"a {what} is not finite at iteration {plan.iteration}, trajectory {plan.first + bad[0]}, step {h}: the "
            "policy may have left the region where the environment is stable; try a smaller learning_rate"
        )
