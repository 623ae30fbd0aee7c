"""Rounds of federated optimization from values: who is asked for what, and the account of every query.

    init      each client looks around x_0
    local     each client makes its local steps from x_{r-1} and sends its end point x_i
              x_r = x_{r-1} - server_lr sum_i p_i (x_{r-1} - x_i)
    check     with safeguard: f_i(x_r) is asked for first, and x_r taken only if sum_i p_i f_i is lower there
    sync      each client tells f_i(x_r) and a vector w_i, and the next local steps are sent w = sum_i p_i w_i
    compress  where a new length scale has been agreed on: w_i once more

A round is `Aggregated` when its sync is complete. A round begins only if all of it fits into ``max_queries``.
"""

from __future__ import annotations

import abc
import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from steepest.core.errors import at_least, boolean, check, positive, value_error
from steepest.federated._averaging import read_weights
from steepest.federated._bounds import check_inside, clipped, read_bounds
from steepest.federated._query_client import read_model
from steepest.federated._seeds import RULE, stream
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
    state_bytes,
)

__all__ = ["QueryRounds"]

Importance = Literal["uniform", "samples"] | Sequence[float]


class QueryRounds(ServerRule):
    """What rules that spend queries in rounds share; a method says what a client does and what it costs."""

    def __init__(
        self,
        *,
        server_lr: float,
        importance: Importance,
        safeguard: bool,
        bounds: Any,
        on_failure: Literal["retry", "drop", "raise"],
        max_failures: int,
        backoff: float | None,
    ) -> None:
        super().__init__(on_failure=on_failure, max_failures=max_failures, backoff=backoff)
        check("server_lr", server_lr, positive())
        check("safeguard", safeguard, boolean())
        self.importance = read_weights("importance", importance, ("samples", "uniform"))
        self.server_lr, self.safeguard, self.bounds = server_lr, safeguard, read_bounds(bounds)
        self.max_queries: int | None = None
        self.arguments: dict[str, Any] = {
            "server_lr": server_lr,
            "importance": self.importance,
            "safeguard": safeguard,
            "bounds": self.bounds,
            "on_failure": on_failure,
            "max_failures": max_failures,
            "backoff": backoff,
        }

    # What a method defines

    @abc.abstractmethod
    def costs(self) -> dict[str, int]:
        """Queries of one client's task, by phase."""

    @abc.abstractmethod
    def client_options(self, dim: int) -> dict[str, Any]:
        """What the clients are told once: plain values."""

    def refits(self) -> bool:
        """Whether a new length scale is asked for in this round's sync."""
        return False

    # The run

    def start(self, clients: Sequence[ClientInfo], model: State, *, seed: int) -> list[Command]:
        """Ask all clients to look around the start."""
        self.name, x = read_model(model)
        if not isinstance(self.importance, str) and len(self.importance) != len(clients):
            raise value_error("importance", f"one value per client ({len(clients)})", self.importance)
        check_inside(x, self.bounds)
        if self.max_queries is not None:
            design = len(clients) * self.costs()["init"]
            check("max_queries", self.max_queries, at_least(design, integer=True))
        self.begin(clients, model)
        self.seed = int(stream(seed, RULE, 0).integers(2**62))
        self.fun = math.nan
        self.lengthscale_: float | None = None
        self.local_weights: dict[int, Tensor] = {}
        self.ends: dict[int, Tensor] = {}
        self.history: list[dict[str, Any]] = []
        self.told, self.lost, self.gone = ({info.index: 0 for info in clients} for _ in range(3))
        self.spread, self.offending, self.uploaded = 0.0, None, 0
        return self.ask("init", {"options": {**self.client_options(len(x)), "seed": self.seed, "bounds": self.bounds}})

    def ask(self, phase: str, payload: dict[str, Any] | None = None) -> list[Command]:
        """Give all living clients the same task, if their queries are still to be had."""
        living = self.living
        if self.max_queries is not None and self.n_queries + len(living) * self.costs()[phase] > self.max_queries:
            return [Stop("max_queries")]
        self.phase, self.waiting, self.replies = phase, set(living), dict[int, dict[str, Any]]()
        return [Send(client, {"phase": phase, **(payload or {})}) for client in living]

    @property
    def n_queries(self) -> int:
        """Queries so far; a task that failed counts in full unless its client lived to tell."""
        return sum(sum(book.values()) for book in (self.told, self.lost, self.gone))

    def on_update(self, update: Update, now: float) -> list[Command]:
        """Take in an answer; with the last one of a phase, go on."""
        client, payload = update.task.client, update.payload
        self.told[client], self.lost[client] = int(payload["queries"]), 0
        self.uploaded += state_bytes(update.delta, payload)
        if "offending" in payload:
            self.offending = payload["offending"]
            text = f"client {client} returned {payload['value']} in round {self.round}"
            return [Stop(f"not finite: {text}", success=False)]
        self.replies[client] = payload
        if self.phase == "local":
            self.ends[client] = self.model[self.name] + update.delta[self.name]
        self.waiting.discard(client)
        return [] if self.waiting else self.proceed()

    @property
    def round(self) -> int:
        """The round at work, counted from 1; 0 while the clients look around the start."""
        return 0 if self.phase == "init" else self.version + (self.phase == "local" or self.phase == "check")

    def proceed(self) -> list[Command]:
        """All answers of a phase are in."""
        if self.phase == "init":
            self.take_lengthscale()
            self.fun = self.mean_value()
            self.take_weights()
            return self.note([])
        if self.phase == "local":
            return self.move()
        if self.phase == "check":
            value = self.mean_value()
            better = value < self.fun
            self.fun = value if better else self.fun
            return self.accept(self.candidate if better else self.model[self.name], better)
        if self.phase == "sync":
            if not self.safeguard:
                self.fun = self.mean_value()
            if self.take_lengthscale():
                return self.ask("compress", {"lengthscale": self.lengthscale_})
        self.take_weights()
        return self.note([Aggregated(self.movers, self.applied, [0] * len(self.movers))])

    def move(self) -> list[Command]:
        """The server's step towards the clients' end points."""
        x, p = self.model[self.name], self.shares(self.replies)
        ends = torch.stack([self.ends[c] for c in sorted(self.replies)])
        mean = torch.from_numpy(p).to(x) @ ends
        self.spread = float(torch.from_numpy(p).to(x) @ (ends - mean).square().sum(1))
        candidate = x - self.server_lr * (x - mean)
        if self.bounds is not None:
            candidate = torch.from_numpy(clipped(candidate.cpu().double().numpy(), self.bounds)).to(x)
        self.candidate = candidate
        if self.safeguard:
            return self.ask("check", {"candidate": candidate.double()})
        return self.accept(candidate, True)

    def accept(self, x: Tensor, moved: bool) -> list[Command]:
        """Let x be the common point of this round."""
        self.model, self.version = {self.name: x}, self.version + 1
        self.movers = sorted(self.replies)
        self.applied = [self.server_lr * float(p) * moved for p in self.shares(self.replies)]
        return self.ask("sync", {"refit": True} if self.refits() else {})

    def note(self, done: list[Command]) -> list[Command]:
        """Write the round down, and begin the next one if all of it can be paid."""
        self.history.append(
            {
                "round": self.version,
                "queries": self.n_queries,
                "fun": self.fun,
                "disparity": self.spread,
                "bytes_up": self.uploaded,
                "x": self.model[self.name],
            }
        )
        costs, n = self.costs(), len(self.living)
        if self.max_queries is not None:
            whole = costs["local"] + costs["sync"] + self.safeguard * costs["check"]
            if self.n_queries + n * whole > self.max_queries:
                return [*done, Stop("max_queries")]
        w = self.global_weights
        news: dict[str, Any] = {} if self.lengthscale_ is None else {"lengthscale": self.lengthscale_}
        return done + self.ask("local", {**news, **({} if w is None else {"w": w})})

    # Averages over those that are there

    def shares(self, clients: Mapping[int, object]) -> np.ndarray:
        """Importance of the given clients, ascending, renormalized over them."""
        present = sorted(clients)
        if isinstance(self.importance, str):
            p = np.array([self.clients[c].n_samples if self.importance == "samples" else 1 for c in present], float)
        else:
            p = self.importance[present]
        if p.sum() <= 0:
            raise value_error("importance", "positive for at least one living client", p)
        return np.asarray(p / p.sum())

    def mean_value(self) -> float:
        """F at the point that was asked about."""
        return float(self.shares(self.replies) @ [self.replies[c]["fun"] for c in sorted(self.replies)])

    @property
    def global_weights(self) -> Tensor | None:
        """W, the mean of what the clients sent."""
        if not self.local_weights:
            return None
        p = self.shares(self.local_weights)
        return torch.from_numpy(p) @ torch.stack([w for _, w in sorted(self.local_weights.items())])

    def take_weights(self) -> None:
        """Keep what was sent for the average; what a client sent before is out of date."""
        self.local_weights = {c: reply["w"] for c, reply in sorted(self.replies.items()) if "w" in reply}

    def take_lengthscale(self) -> bool:
        """Agree on the median of the length scales that were sent, if any were."""
        sent = [reply["lengthscale"] for reply in self.replies.values() if "lengthscale" in reply]
        if sent:
            self.lengthscale_ = float(np.median(sent))
        return bool(sent)

    # Failures

    def on_failure(self, failure: Failure, now: float) -> list[Command]:
        """Charge what the failed task may have spent, then retry, drop or raise."""
        client, cost = failure.task.client, self.costs()[failure.task.payload["phase"]]
        book = self.gone if failure.kind in ("died", "timeout") else self.lost
        book[client] += cost
        return super().on_failure(failure, now)

    def on_retry(self, task: Task, after: float, now: float) -> list[Command]:
        """Try again if that and what is under way can still be paid."""
        cost = self.costs()[self.phase]
        if self.max_queries is not None and self.n_queries + cost * len(self.waiting) > self.max_queries:
            return [Stop("max_queries")]
        return super().on_retry(task, after, now)

    def on_drop(self, client: int, now: float) -> list[Command]:
        """Go on without the client and without its weights."""
        self.waiting.discard(client)
        self.replies.pop(client, None)
        self.local_weights.pop(client, None)
        return [] if self.waiting else self.proceed()

    def state_dict(self) -> dict[str, Any]:
        """The rule's state."""
        kept = {name: getattr(self, name, None) for name in _KEPT}
        return {**super().state_dict(), "run": {**kept, "waiting": sorted(self.waiting)}}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Put back what `state_dict` gave."""
        super().load_state_dict(state)
        for name, value in state["run"].items():
            setattr(self, name, value)
        self.waiting = set(self.waiting)


_KEPT = (
    "name", "seed", "fun", "lengthscale_", "local_weights", "ends", "history", "told", "lost", "gone", "spread",
    "offending", "uploaded", "phase", "replies", "candidate", "movers", "applied",
    "max_queries",
)  # fmt: skip
