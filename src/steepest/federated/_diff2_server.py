"""The server of DIFF2: a rule that sums the clients' messages, keeps the running estimate and steps along it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor

from steepest.federated._diff2_client import Mechanism
from steepest.federated.engine import (
    Aggregated,
    ClientInfo,
    Command,
    Failure,
    Send,
    ServerRule,
    State,
    Stop,
    Task,
    Update,
)

__all__ = ["Diff2Rule", "Plan"]

_DIVERGED = 1e8


@dataclass(frozen=True)
class Plan:
    """Everything about a run that is settled, and public, before it begins."""

    rounds: int
    restart: int
    schedule: tuple[int, ...] = ()
    """The client that makes the local steps of each round; empty for plain gradient steps."""
    output: str = "last"
    chosen: int = 0
    """The round whose point is the output with ``output="random"``."""
    repeatable: bool = True
    """Whether a failed task may be given out again: its message would be the same."""


@dataclass
class Books:
    """What the result tells, by round."""

    estimates: list[float] = field(default_factory=list)
    steps: list[float] = field(default_factory=list)
    messages: list[dict[str, Any]] = field(default_factory=list)
    diagnostics: list[dict[str, float]] = field(default_factory=list)


class Diff2Rule(ServerRule):
    """Round after round: a message of every client, the estimate v, a step (or one client's local steps)."""

    stops_itself: ClassVar[bool] = True

    def __init__(
        self, plan: Plan, mechanism: Mechanism, public_gradient: Callable[[Tensor], Tensor] | None = None
    ) -> None:
        super().__init__()
        self.plan, self.mechanism, self.public_gradient = plan, mechanism, public_gradient
        self.books = Books()

    def start(self, clients: Sequence[ClientInfo], model: State, *, seed: int) -> list[Command]:
        """Ask all clients for their first message."""
        self.begin(clients, model)
        self.round, self.previous, self.v = 0, model["x"], torch.zeros_like(model["x"])
        self.limit = _DIVERGED * (1 + float(torch.linalg.vector_norm(model["x"])))
        self.best: tuple[float, Tensor] = (math.inf, model["x"])
        return self.ask()

    @property
    def kind(self) -> str:
        """Of the current round's messages."""
        return "restart" if self.round % self.plan.restart == 0 else "difference"

    def ask(self) -> list[Command]:
        """Send the current point to all clients."""
        self.came: dict[int, Update] = {}
        return [Send(info.index, {"kind": self.kind, "round": self.round}) for info in self.clients]

    def on_retry(self, task: Task, after: float, now: float) -> list[Command]:
        """Give the same task again, with the point of the round before, which the client may have lost."""
        payload = task.payload | ({"previous": self.previous} if task.payload["kind"] == "difference" else {})
        return [Send(task.client, payload, after, task.attempt + 1)]

    def on_failure(self, failure: Failure, now: float) -> list[Command]:
        """Repeat the message if it would be the same; else end, for a second one would cost privacy."""
        if self.plan.repeatable:
            return super().on_failure(failure, now)
        client, kind = failure.task.client, failure.kind
        return [Stop(f"client {client} failed ({kind}) and its noise cannot be repeated", success=False)]

    def on_drop(self, client: int, now: float) -> list[Command]:
        """End: the running estimate holds the lost client's samples, and the aggregate would lack its noise."""
        return [Stop(f"client {client} is lost, and with it its part of the estimate and of the noise", success=False)]

    def on_update(self, update: Update, now: float) -> list[Command]:
        """Keep a message; with the last one, or after local steps, make the step."""
        client = update.task.client
        if update.task.payload["kind"] == "local":
            return self.move(self.model["x"] + update.delta["x"], [client])
        self.came[client] = update
        return self.estimated() if len(self.came) == len(self.clients) else []

    def sum_up(self) -> None:
        """Add the messages in the clients' order, so that the order of their arrival does not change a bit."""
        m = self.mechanism
        self.total = torch.zeros_like(self.model["x"])
        self.clean, self.gradient, self.seen = self.total, self.total, dict[str, float]()
        for client, update in sorted(self.came.items()):
            share = self.clients[client].n_samples / m.n_samples if m.local_noise else 1.0
            self.total = self.total + share * update.delta["x"]
            if m.record:
                self.clean = self.clean + share * update.payload["clean"]
            if m.diagnostics:
                self.gradient = self.gradient + update.payload["gradient"]
                self.seen = {name: self.seen.get(name, 0.0) + value for name, value in update.metrics.items()}

    def estimated(self) -> list[Command]:
        """All messages are in: update the estimate and step, or let a client step."""
        x = self.model["x"]
        self.sum_up()
        self.v = self.total if self.kind == "restart" else self.v + self.total
        self.note(x)
        if self.plan.schedule:
            client = self.plan.schedule[self.round]
            return [Send(client, {"kind": "local", "round": self.round, "v": self.v})]
        public = 0.0 if self.public_gradient is None else self.public_gradient(x)
        return self.move(x - self.mechanism.lr * (self.v + public), [info.index for info in self.clients])

    def note(self, x: Tensor) -> None:
        """Write down the round, and keep the point if it may become the output."""
        m, books = self.mechanism, self.books
        size, half = float(torch.linalg.vector_norm(self.v)), self.round >= self.plan.rounds // 2
        books.estimates.append(size)
        if {
            "last": False,
            "random": self.round == self.plan.chosen,
            "smallest_estimate": size < self.best[0],
            "best_half": half and size < self.best[0],
        }[self.plan.output]:
            self.best = size, x
        if m.record:
            std = m.released_std(self.kind, m.bound(self.kind, books.steps[-1] if books.steps else 0.0))
            books.messages.append(
                {"round": self.round, "kind": self.kind, "std": std, "clean": self.clean, "released": self.total}
            )
        if m.diagnostics:
            public = 0.0 if self.public_gradient is None else self.public_gradient(x)
            norm = float(torch.linalg.vector_norm(self.gradient / m.n_samples + public))
            books.diagnostics.append(
                {
                    "round": self.round,
                    "loss": self.seen["loss"] / m.n_samples,
                    "grad_norm": norm,
                    "clipped": self.seen["clipped"] / m.n_samples,
                    "nonfinite": self.seen["nonfinite"],
                }
            )

    def move(self, x: Tensor, movers: Sequence[int]) -> list[Command]:
        """Take the new point, and go on unless the rounds are used up or the point has run away."""
        self.previous = self.model["x"]
        self.books.steps.append(float(torch.linalg.vector_norm(x - self.previous)))
        self.model, self.version, self.round = {"x": x}, self.version + 1, self.round + 1
        if self.plan.output == "last":
            self.best = (0.0, x)
        done: list[Command] = [Aggregated(movers, [1 / len(movers)] * len(movers), [0] * len(movers))]
        size = float(torch.linalg.vector_norm(x))
        if not size <= self.limit:
            return [*done, Stop(f"diverged: |x| = {size:.3g} after round {self.round}", success=False)]
        if self.round == self.plan.rounds:
            return [*done, Stop("all rounds are used")]
        return done + self.ask()
