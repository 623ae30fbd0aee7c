"""What every policy algorithm owes a Stable-Baselines3 user."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch


@dataclass
class Agent:
    """How to make the algorithm under examination: ``make(env, seed=…, **options)``, and environments for it."""

    make: Callable[..., Any]
    env: Callable[[], Any]
    steps: int = 64
    options: dict[str, Any] = field(default_factory=dict)

    def fresh(self, seed: int = 0, **changes: Any) -> Any:
        return self.make(self.env(), seed=seed, **(self.options | changes))


def _weights(algorithm: Any) -> dict[str, torch.Tensor]:
    return {k: v.clone() for k, v in algorithm.policy.state_dict().items()}


def _same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def check_learning_moves_the_policy_and_counts_steps(agent: Agent) -> None:
    algorithm = agent.fresh()
    before = _weights(algorithm)
    assert algorithm.learn(agent.steps) is algorithm
    assert algorithm.num_timesteps >= agent.steps
    assert not _same(before, _weights(algorithm))
    assert all(torch.isfinite(v).all() for v in _weights(algorithm).values())


def check_same_seed_same_policy(agent: Agent) -> None:
    a, b, c = (agent.fresh(seed).learn(agent.steps) for seed in (0, 0, 1))
    assert _same(_weights(a), _weights(b))
    assert not _same(_weights(a), _weights(c))


def check_save_and_load_give_the_same_actions(agent: Agent) -> None:
    algorithm = agent.fresh().learn(agent.steps)
    file = io.BytesIO()
    algorithm.save(file)
    file.seek(0)
    again = type(algorithm).load(file, env=agent.env())
    assert _same(_weights(algorithm), _weights(again))
    observations = np.stack([algorithm.observation_space.sample() for _ in range(8)])
    first, _ = algorithm.predict(observations, deterministic=True)
    second, _ = again.predict(observations, deterministic=True)
    assert np.array_equal(first, second)
    again.learn(agent.steps, reset_num_timesteps=False)
    assert again.num_timesteps >= 2 * agent.steps


def check_actions_are_in_the_space(agent: Agent) -> None:
    algorithm = agent.fresh()
    for _ in range(8):
        action, state = algorithm.predict(algorithm.observation_space.sample())
        assert algorithm.action_space.contains(action if np.ndim(action) else int(action))
        assert state is None


def check_callbacks_stop_learning(agent: Agent) -> None:
    from stable_baselines3.common.callbacks import BaseCallback

    class Stop(BaseCallback):
        def _on_step(self) -> bool:
            return self.num_timesteps < 10

    algorithm = agent.fresh().learn(10_000, callback=Stop())
    assert algorithm.num_timesteps < 10_000


POLICY_CHECKS = [v for k, v in list(globals().items()) if k.startswith("check_")]
