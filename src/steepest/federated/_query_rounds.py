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
import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from scipy.optimize import OptimizeResult
from torch import Tensor

from steepest.core.errors import at_least, boolean, check, kind_error, nonnegative, optional, positive, value_error
from steepest.federated._averaging import read_weights
from steepest.federated._query_client import Function, QueryClient, clipped, read_model
from steepest.federated._seeds import RULE, stream
from steepest.federated._session import FederatedResult
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
from steepest.federated.simulation import SimulatedEngine

__all__ = ["QueryRule"]

Importance = Literal["uniform", "samples"] | Sequence[float]
MakeEngine = Callable[..., Any]


class QueryRule(ServerRule):
    """What rules that spend queries in rounds share; a method says what a client does and what it costs."""

    client_class: ClassVar[type[QueryClient]]

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
        self.server_lr, self.safeguard, self.bounds = server_lr, safeguard, _read_bounds(bounds)
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
        _check_inside(x, self.bounds)
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

    # The one-call form

    def minimize(
        self,
        fs: Sequence[Function],
        x0: Any,
        *,
        rounds: int = 50,
        max_queries: int | None = None,
        seed: int = 0,
        engine: MakeEngine | None = None,
        callback: Callable[..., Any] | None = None,
        vectorized: bool = False,
    ) -> OptimizeResult:
        """Minimize ``sum_i p_i f_i(x)`` from values alone.

        Parameters
        ----------
        fs : list of callables
            Each client's ``f_i(x) -> float`` for x of shape (d,); with `vectorized` ``f_i(X) -> (m,)`` for (m, d).
        x0 : array_like of shape (d,)
        rounds : int
        max_queries : int, optional
            Evaluations of all clients together, never exceeded; a round begins only if all of it fits.
        seed : int
        engine : callable, optional
            ``engine(clients, seed=seed)``, e.g. ``functools.partial(RayEngine, workers=2)``; `SimulatedEngine` by
            default.
        callback : callable, optional
            ``callback(intermediate_result)`` with ``x, fun, nit, nfev``, or ``callback(x)``, after each round;
            `StopIteration` ends the run.
        vectorized : bool

        Returns
        -------
        OptimizeResult
            ``x, fun`` (the last), ``x_best, fun_best`` (of the points after rounds), ``nit`` (rounds), ``nfev``
            (every evaluation of every client), ``history`` (a dict per round, from round 0: ``round, queries, fun,
            disparity, bytes_up, x``; disparity is the mean squared distance of the clients' end points from their
            mean), ``bytes_up``, ``surrogates`` (those of clients in this process), ``basis``, ``local_weights`` (by
            client), ``global_weights``, ``offending`` (the point with a value that is not finite, else None),
            ``failures, dropped, success, message`` (``"rounds"``, ``"max_queries"``, ``"callback"`` or what went
            wrong).

        Raises
        ------
        ValueError, TypeError
            No functions; x0 not finite or out of bounds; `max_queries` below the cost of the initial design.

        Notes
        -----
        Where a worker process dies, its unfinished task is counted in full.
        """
        if not isinstance(fs, Sequence):
            raise kind_error("fs", "a list of callables", fs)
        if not fs:
            raise value_error("fs", "at least one callable", "none")
        for k, f in enumerate(fs):
            if not callable(f):
                raise kind_error(f"fs[{k}]", "callable", f)
        x = np.asarray(x0, float)
        if x.ndim != 1 or not x.size or not np.isfinite(x).all():
            raise value_error("x0", "finite and of shape (d,)", x0)
        _check_inside(x, self.bounds)
        check("rounds", rounds, at_least(1, integer=True))
        check("seed", seed, nonnegative(integer=True))
        check("max_queries", max_queries, optional(at_least(len(fs) * self.costs()["init"], integer=True)))
        if engine is not None and not callable(engine):
            raise kind_error("engine", "callable or None", engine)
        rule = type(self)(**self.arguments)
        rule.max_queries = max_queries
        clients = [self.client_class(f, vectorized=vectorized) for f in fs]
        made = SimulatedEngine(clients, seed=seed) if engine is None else engine(clients, seed=seed)
        ran = made.run(rule, {"x": torch.tensor(x)}, max_aggregations=rounds, callback=_told(rule, callback))
        return rule.result(ran, clients)

    def result(self, ran: FederatedResult, clients: Sequence[QueryClient]) -> OptimizeResult:
        """What a finished run came to."""
        history = [{**row, "x": row["x"].cpu().numpy().copy()} for row in self.history]
        start = {"x": self.model[self.name].cpu().numpy().copy(), "fun": math.nan}
        last, best = history[-1] if history else start, min(history, key=lambda row: row["fun"], default=start)
        return OptimizeResult(
            x=last["x"],
            fun=last["fun"],
            x_best=best["x"],
            fun_best=best["fun"],
            nit=max(len(history) - 1, 0),
            nfev=sum(client.n_queries for client in clients) or self.n_queries,
            history=history,
            bytes_up=ran.bytes_up,
            local_weights={c: w.numpy() for c, w in self.local_weights.items()},
            global_weights=None if self.global_weights is None else self.global_weights.numpy(),
            offending=None if self.offending is None else self.offending.numpy(),
            failures=ran.failures,
            dropped=ran.dropped,
            success=ran.success,
            message="rounds" if ran.message == "max_aggregations" else ran.message,
        )


_KEPT = (
    "name", "seed", "fun", "lengthscale_", "local_weights", "ends", "history", "told", "lost", "gone", "spread",
    "offending", "uploaded", "phase", "replies", "candidate", "movers", "applied",
    "max_queries",
)  # fmt: skip


def _read_bounds(bounds: Any) -> list[Any] | None:
    """(low, high), numbers or vectors, as plain values."""
    if bounds is None:
        return None
    try:
        low, high = (np.asarray(side, float) for side in bounds)
        inside = bool(np.all(low < high))
    except (TypeError, ValueError):
        raise kind_error("bounds", "None or a pair (low, high) of numbers or vectors", bounds) from None
    if not inside:
        raise value_error("bounds", "a pair with low < high", bounds)
    return [low.tolist(), high.tolist()]


def _check_inside(x: np.ndarray, bounds: list[Any] | None) -> None:
    if bounds is None:
        return
    for side in bounds:
        if np.ndim(side) and np.shape(side) != x.shape:
            raise value_error("bounds", f"numbers or vectors of x0's shape {x.shape}", side)
    if not np.array_equal(clipped(x, bounds), x):
        raise value_error("x0", "within bounds", x)


def _told(rule: QueryRule, callback: Callable[..., Any] | None) -> Callable[..., Any] | None:
    """SciPy's two forms of a callback, behind the engine's one."""
    if callback is None:
        return None
    wants_result = "intermediate_result" in inspect.signature(callback).parameters

    def tell(intermediate_result: OptimizeResult) -> None:
        x = intermediate_result.model["x"].numpy().copy()
        if wants_result:
            nit, nfev = intermediate_result.nit, rule.n_queries
            callback(intermediate_result=OptimizeResult(x=x, fun=rule.fun, nit=nit, nfev=nfev))
        else:
            callback(x)

    return tell
