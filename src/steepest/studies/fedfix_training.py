"""Learning curves of the aggregation rules: ten clients of unequal speed and unequal data."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from steepest.federated import (
    AsyncFedAvg,
    FedAvg,
    FedBuff,
    FedFix,
    SimulatedEngine,
    dirichlet_partition,
    linear_speeds,
    make_clients,
)
from steepest.studies.images import mlp

__all__ = ["ASYNC", "RULES", "Curve", "Federation", "Run", "digits_federation", "train"]

ASYNC = "asynchronous"
RULES: dict[str, Callable[[], Any]] = {
    ASYNC: lambda: AsyncFedAvg(importance="uniform"),
    "FedFix, 0.2": lambda: FedFix(0.2, importance="uniform"),
    "FedFix, 0.5": lambda: FedFix(0.5, importance="uniform"),
    "FedFix, 0.8": lambda: FedFix(0.8, importance="uniform"),
    "FedBuff, 5": lambda: FedBuff(5, importance="uniform"),
    "FedAvg": lambda: FedAvg(importance="uniform"),
}
TARGET, TAIL = 0.5, 0.4
ROWS = 160  # of a curve, about


@dataclass(frozen=True)
class Federation:
    """Data in parts, a network, and each sample's weight in ``sum_i p_i L_i`` for equal p."""

    data: tuple[Tensor, Tensor]
    parts: list[np.ndarray]
    network: nn.Module
    weights: Tensor

    def loss(self, state: dict[str, Tensor]) -> float:
        """The objective of the whole federation."""
        X, y = self.data
        with torch.no_grad():
            logits = torch.func.functional_call(self.network, state, (X,))
            return float(self.weights @ F.cross_entropy(logits, y, reduction="none"))


def federation(data: tuple[Tensor, Tensor], network: nn.Module, parts: list[np.ndarray]) -> Federation:
    """Weigh samples so that every client counts the same."""
    weights = torch.zeros(len(data[1]))
    for part in parts:
        weights[part] = 1 / (len(parts) * len(part))
    return Federation(data, parts, network, weights)


def digits_federation(seed: int, n_clients: int = 10, alpha: float = 0.1) -> Federation:
    """The 1,797 digits of scikit-learn by a Dirichlet law; a perceptron 64-32-10."""
    from sklearn.datasets import load_digits

    X, y = load_digits(return_X_y=True)
    parts = dirichlet_partition(y, n_clients, alpha, seed=seed)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        network = mlp(64, 32, 10)
    data = torch.as_tensor(X, dtype=torch.float32) / 16, torch.as_tensor(y)
    return federation(data, network, parts)


@dataclass(frozen=True)
class Run:
    """A rule, the local learning rate and number of steps, a seed, how long, and how unequal the clients' times are."""

    rule: str
    lr: float
    seed: int
    until: float
    steps: int = 5
    batch_size: int = 64
    spread: float = 0.8


@dataclass(frozen=True)
class Curve:
    """Loss of the federation against simulated seconds."""

    times: np.ndarray
    losses: np.ndarray
    n_tasks: int
    n_aggregations: int

    @property
    def reached(self) -> float:
        """Seconds until the loss is at most 0.5, infinite if it never is."""
        return self.time_to(TARGET)

    def time_to(self, loss: float) -> float:
        """Seconds until the loss is at most `loss`, infinite if it never is."""
        below = np.flatnonzero(self.losses <= loss)
        return float(self.times[below[0]]) if len(below) else np.inf

    @property
    def last(self) -> float:
        """The final loss."""
        return float(self.losses[-1])

    @property
    def residual(self) -> float:
        """Standard deviation of the log-loss about a straight line, over the last 40 % of the time.

        The plain standard deviation would measure the trend.
        """
        return self.about(1)

    def about(self, degree: int) -> float:
        """The same about a polynomial."""
        late = self.times >= (1 - TAIL) * self.times[-1]
        t, y = self.times[late] - self.times[-1], np.log(np.maximum(self.losses[late], 1e-12))
        return float(np.std(y - np.polyval(np.polyfit(t, y, degree), t)))


def train(run: Run, made: Callable[[int], Federation] = digits_federation) -> Curve:
    """Train under one rule, in simulated time; client times fall evenly from 1 second (to 0.2: F-80)."""
    there, rule = made(run.seed), RULES[run.rule]()
    clients = make_clients(
        there.network, there.data, there.parts, F.cross_entropy, steps=run.steps, batch_size=run.batch_size,
        optimizer=lambda p: torch.optim.SGD(p, run.lr), max_grad_norm=1e4,
    )  # fmt: skip
    speeds = linear_speeds(len(clients), spread=run.spread)
    per_second = {"FedAvg": 1.0, ASYNC: float(np.sum(1 / speeds)), "FedBuff, 5": float(np.sum(1 / speeds)) / 5}
    rate = per_second.get(run.rule, 1 / getattr(rule, "window", 1.0))
    engine = SimulatedEngine(clients, speeds=speeds, seed=run.seed, record=())
    result = engine.run(
        rule, there.network, until=run.until, evaluate=lambda state: {"loss": there.loss(state)},
        evaluate_every=max(1, round(rate * run.until / ROWS)),
    )  # fmt: skip
    times, losses = np.array([(row["time"], row["loss"]) for row in result.history]).T
    losses = np.where(np.isfinite(losses), losses, 1e6)  # a diverged model
    return Curve(times, losses, result.n_tasks, result.nit)
