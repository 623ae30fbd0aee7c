"""What rules that average deltas share: importance, times, factors and the update itself; see ``server``."""

from __future__ import annotations

import abc
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from steepest.core.errors import check, kind_error, one_of, positive, value_error
from steepest.federated.engine import (
    Aggregated,
    ClientInfo,
    Command,
    Send,
    ServerRule,
    State,
    Task,
    Update,
    floating,
    moved,
    weighted_sum,
)

__all__ = ["AveragingRule", "read_weights"]

Weights = Literal["unbiased", "identical"] | Sequence[float]
Importance = Literal["samples", "uniform"] | Sequence[float]


class AveragingRule(ServerRule):
    """What the rules share: importance, times, weights and the update; a rule says when it aggregates.

    Attributes
    ----------
    importance_ : ndarray of shape (n_clients,)
        p; 0 for clients that were dropped.
    weights_ : ndarray of shape (n_clients,)
        The factors d as they stand.
    """

    def __init__(
        self,
        *,
        importance: Importance = "samples",
        server_lr: float = 1.0,
        weights: Weights = "unbiased",
        times: Literal["auto", "expected", "observed"] | Sequence[float] = "auto",
        staleness: Literal["polynomial"] | Callable[[int], float] | None = None,
        server_optimizer: Callable[[list[Tensor]], torch.optim.Optimizer] | None = None,
        normalise_steps: bool = False,
        on_failure: Literal["retry", "drop", "raise"] = "retry",
        max_failures: int = 3,
        backoff: float | None = None,
    ) -> None:
        super().__init__(on_failure=on_failure, max_failures=max_failures, backoff=backoff)
        check("server_lr", server_lr, positive())
        if (isinstance(staleness, str) and staleness != "polynomial") or not (
            staleness is None or isinstance(staleness, str) or callable(staleness)
        ):
            raise value_error("staleness", 'None, "polynomial" or callable', staleness)
        if server_optimizer is not None and not callable(server_optimizer):
            raise kind_error("server_optimizer", "callable or None", server_optimizer)
        self.importance = read_weights("importance", importance, ("samples", "uniform"))
        self.weights = read_weights("weights", weights, ("unbiased", "identical"))
        self.times = read_weights("times", times, ("auto", "expected", "observed"))
        if not isinstance(self.times, str) and not np.all(self.times > 0):
            raise value_error("times", "positive seconds", times)
        self.server_lr, self.staleness, self.normalise_steps = server_lr, staleness, normalise_steps
        self.server_optimizer = server_optimizer
        self.arguments: dict[str, Any] = {
            "importance": self.importance,
            "server_lr": server_lr,
            "weights": self.weights,
            "times": self.times,
            "staleness": staleness,
            "server_optimizer": server_optimizer,
            "normalise_steps": normalise_steps,
            "on_failure": on_failure,
            "max_failures": max_failures,
            "backoff": backoff,
        }
        self.buffer: list[Update] = []

    # What a rule defines

    @abc.abstractmethod
    def participation(self) -> np.ndarray:
        """Mean number of contributions of each client to an aggregation (to a tick, for `FedFix`)."""

    @abc.abstractmethod
    def identical_factor(self) -> float:
        """The factor d of every client with ``weights="identical"``."""

    # Shared

    def begin(self, clients: Sequence[ClientInfo], model: State) -> None:
        """Read what depends on the clients: importance, times, weights."""
        super().begin(clients, model)
        n = len(clients)
        for name in ("importance", "weights", "times"):
            value = getattr(self, name)
            if not isinstance(value, str) and len(value) != n:
                raise value_error(name, f"one value per client ({n})", value)
        if isinstance(self.times, str) and self.times == "expected" and not self.time_is_known:
            raise value_error("times", '"observed" or seconds, where the engine does not know the times', "expected")
        self.known = not isinstance(self.times, str) or (self.times != "observed" and self.time_is_known)
        self.seen, self.seconds = np.zeros(n, int), np.zeros(n)
        self.steps_seen = [0, 0.0]
        self.buffer = []
        self.optimizer: torch.optim.Optimizer | None = None
        self.refresh()

    @property
    def tau(self) -> np.ndarray:
        """Mean seconds per task; before a client has been seen, the mean over those that have (1 at first)."""
        if not isinstance(self.times, str):
            return self.times
        if self.known:
            return np.array([info.expected_time for info in self.clients], float)
        seen = self.seen > 0
        prior = float(np.mean(self.seconds[seen] / self.seen[seen])) if seen.any() else 1.0
        return np.where(seen, self.seconds / np.maximum(self.seen, 1), prior)

    def refresh(self) -> None:
        """Renormalise the importance over the living clients, and find d anew."""
        alive = np.zeros(len(self.clients))
        alive[self.living] = 1.0
        if isinstance(self.importance, str):
            samples = [info.n_samples for info in self.clients]
            p = np.array(samples if self.importance == "samples" else np.ones(len(samples)), float)
        else:
            p = self.importance
        p = p * alive
        if p.sum() <= 0:
            raise value_error("importance", "positive for at least one living client", p)
        self.importance_ = p / p.sum()
        if not isinstance(self.weights, str):
            self.weights_ = self.weights * alive
        elif self.weights == "identical":
            self.weights_ = alive * self.identical_factor()
        else:
            self.weights_ = np.where(p > 0, self.importance_ / np.maximum(self.participation(), 1e-12), 0.0)

    def take(self, update: Update) -> None:
        """Put an update into the buffer, and learn from it how long its client takes."""
        client = update.task.client
        if not self.known:
            self.seen[client] += 1
            self.seconds[client] += max(update.finished - update.started, 1e-9)
            self.refresh()
        steps = float(update.metrics.get("steps", 1.0))
        self.steps_seen = [self.steps_seen[0] + 1, self.steps_seen[1] + steps]
        self.buffer.append(update)

    def aggregate(self, share: float = 1.0) -> Aggregated:
        """Apply the buffered updates, in the clients' order, times `share`, and empty the buffer."""
        updates = sorted(self.buffer, key=lambda u: (u.task.client, u.task.number))
        ages = [self.version - u.task.version for u in updates]
        applied = [
            share * float(self.weights_[u.task.client]) * self.discount(age)
            for u, age in zip(updates, ages, strict=True)
        ]
        scale = [self.per_step(u) for u in updates]
        step = weighted_sum(
            [u.delta for u in updates],
            [self.server_lr * w * s for w, s in zip(applied, scale, strict=True)],
            floating(self.model),
        )
        last = max(u.task.version for u in updates)
        newest = [u.delta for u in updates if u.task.version == last]
        self.model = moved(self.model, self.through_optimizer(step), newest)
        self.version += 1
        self.buffer = []
        return Aggregated([u.task.client for u in updates], applied, ages)

    def discount(self, age: int) -> float:
        """The staleness factor."""
        if self.staleness is None:
            return 1.0
        return 1 / math.sqrt(1 + age) if isinstance(self.staleness, str) else float(self.staleness(age))

    def per_step(self, update: Update) -> float:
        """The factor that undoes a client's own number of local steps."""
        if not self.normalise_steps:
            return 1.0
        count, total = self.steps_seen
        return (total / count) / float(update.metrics.get("steps", 1.0))

    def through_optimizer(self, step: State) -> State:
        """What the server's optimizer makes of the summed step; the step itself without one."""
        if self.server_optimizer is None:
            return step
        if self.optimizer is None:
            self.parameters = {name: self.model[name].clone().requires_grad_() for name in step}
            self.optimizer = self.server_optimizer(list(self.parameters.values()))
        with torch.no_grad():
            for name, parameter in self.parameters.items():
                parameter.copy_(self.model[name])
                parameter.grad = -step[name]
        self.optimizer.step()
        return {name: p.detach() - self.model[name] for name, p in self.parameters.items()}

    def send_all(self, clients: Sequence[int]) -> list[Command]:
        """Send the current model to those clients that live."""
        return [Send(client) for client in sorted(clients) if client not in self.dropped]

    def on_drop(self, client: int, now: float) -> list[Command]:
        """Share the importance out among the others."""
        self.refresh()
        return []

    def state_dict(self) -> dict[str, Any]:
        """The rule's state: also what it has learned of times, its buffer and its optimizer."""
        return {
            **super().state_dict(),
            "known": self.known,
            "seen": self.seen.tolist(),
            "seconds": self.seconds.tolist(),
            "steps_seen": list(self.steps_seen),
            "buffer": [{**vars(u), "task": vars(u.task).copy()} for u in self.buffer],
            "optimizer": None if self.optimizer is None else self.optimizer.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Put back what `state_dict` gave."""
        super().load_state_dict(state)
        self.known = state["known"]
        self.seen, self.seconds = np.array(state["seen"], int), np.array(state["seconds"], float)
        self.steps_seen, self.optimizer = list(state["steps_seen"]), None
        self.buffer = [Update(**{**u, "task": Task(**u["task"])}) for u in state["buffer"]]
        if state["optimizer"] is not None:
            assert self.server_optimizer is not None
            names = floating(self.model)
            self.parameters = {name: self.model[name].clone().requires_grad_() for name in names}
            self.optimizer = self.server_optimizer(list(self.parameters.values()))
            self.optimizer.load_state_dict(state["optimizer"])
        self.refresh()


def read_weights(name: str, value: Any, words: tuple[str, ...]) -> Any:
    """One of the words, or an array of numbers that are not negative and not all zero."""
    if isinstance(value, str):
        check(name, value, one_of(*words))
        return value
    try:
        read = np.asarray(value, dtype=float)
    except (TypeError, ValueError):
        raise kind_error(name, f"one of {', '.join(map(repr, words))} or numbers", value) from None
    if read.ndim != 1 or not np.isfinite(read).all() or (read < 0).any() or not read.any():
        raise value_error(name, "finite numbers >= 0, one per client, not all zero", value)
    return read
