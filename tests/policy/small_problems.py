"""A Markov decision process that can be enumerated, policies in float64, environments with known episodes."""

from __future__ import annotations

import itertools

import gymnasium
import numpy as np
import torch
from torch import nn

from steepest.policy import Trajectory

GAMMA = 0.8
START = torch.tensor([0.7, 0.3], dtype=torch.float64)
MOVE = torch.tensor([[[0.9, 0.1], [0.2, 0.8]], [[0.4, 0.6], [0.5, 0.5]]], dtype=torch.float64)  # (s, a, s')
REWARD = torch.tensor([[1.0, -0.5], [0.3, 2.0]], dtype=torch.float64)  # (s, a)
H = 3


class SoftmaxPolicy(nn.Module):
    """Two states one-hot, a tanh layer, two actions: its logarithm is curved in the parameters."""

    def __init__(self, seed: int = 0, dropout: float = 0.0):
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.hidden = nn.Parameter(torch.randn(2, 3, generator=generator, dtype=torch.float64))
        self.output = nn.Parameter(torch.randn(3, 2, generator=generator, dtype=torch.float64))
        self.dropout = nn.Dropout(dropout)

    def get_distribution(self, observations):
        logits = self.dropout(torch.tanh(observations @ self.hidden)) @ self.output
        return torch.distributions.Categorical(logits=logits)


class GaussianPolicy(nn.Module):
    """A curved mean and a trained standard deviation."""

    def __init__(self, seed: int = 0):
        super().__init__()
        self.mean = nn.Parameter(torch.tensor([[0.4, -0.3]], dtype=torch.float64))
        self.log_std = nn.Parameter(torch.tensor([-0.2], dtype=torch.float64))

    def get_distribution(self, observations):
        mean = torch.sin(observations @ self.mean.T)
        return torch.distributions.Independent(torch.distributions.Normal(mean, self.log_std.exp()), 1)


def one_hot(s):
    return torch.eye(2, dtype=torch.float64)[s]


def all_trajectories():
    """Every (states, actions) with the probability that the world gives its transitions."""
    for states in itertools.product(range(2), repeat=H):
        for actions in itertools.product(range(2), repeat=H):
            p = START[states[0]].clone()
            for t in range(H - 1):
                p *= MOVE[states[t], actions[t], states[t + 1]]
            s, a = torch.tensor(states), torch.tensor(actions)
            yield p, Trajectory(one_hot(s), a, REWARD[s, a])


def exact_return(policy):
    """J_H by dynamic programming, no trajectory in it."""
    pi = policy.get_distribution(torch.eye(2, dtype=torch.float64)).probs  # (s, a)
    value = torch.zeros(2, dtype=torch.float64)
    for _ in range(H):
        value = (pi * (REWARD + GAMMA * (MOVE @ value))).sum(1)
    return START @ value


class Counter(gymnasium.Env):
    """Observes the number of the step and which environment it is; the episode ends after `length` steps."""

    def __init__(self, length=5, who=0.0, action_space=None, rewards=None):
        self.observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (2,), np.float32)
        self.action_space = action_space or gymnasium.spaces.Discrete(2)
        self.length, self.who, self.rewards, self.t = length, who, rewards, 0
        self.received = []

    def _observation(self):
        return np.array([self.t, self.who], dtype=np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.t = 0
        return self._observation(), {}

    def step(self, action):
        assert self.action_space.contains(action), action
        self.received.append(action)
        self.t += 1
        reward = float(np.sum(action)) if self.rewards is None else self.rewards(self.t, action)
        return self._observation(), reward, self.t >= self.length, False, {}


def box(low=-1.0, high=1.0):
    return gymnasium.spaces.Box(low, high, (1,), np.float32)
