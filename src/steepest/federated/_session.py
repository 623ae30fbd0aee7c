"""What runs have in common on any engine: carrying out commands, keeping books, checkpoints.

An engine subclasses `Session` and says how a task is begun and how time passes.
"""

from __future__ import annotations

import abc
import heapq
import importlib.metadata
import itertools
import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from scipy.optimize import OptimizeResult

from steepest.core.errors import at_least, check, kind_error, optional, positive, value_error
from steepest.federated._checkpoint import FORMAT, plain_arguments, write_checkpoint
from steepest.federated._events import EventLog
from steepest.federated._seeds import task_seed
from steepest.federated._speeds import NANOSECONDS, to_ns
from steepest.federated.engine import (
    Aggregated,
    Client,
    ClientInfo,
    Command,
    Failure,
    FailureKind,
    Reply,
    Send,
    ServerRule,
    State,
    Stop,
    Task,
    Timer,
    Update,
    fault_of,
    state_bytes,
)

__all__ = ["FederatedResult", "Outcome", "Session", "Settings"]

RETURN, TIMER, SEND = 0, 1, 2
"""Kinds of queued events, in the order in which they happen at the same nanosecond."""

_RECORDS = ("aggregations", "updates", "events")
_IDLE_TIMERS = 1_000


class FederatedResult(OptimizeResult):
    """What a federated run came to.

    Attributes
    ----------
    model : dict of Tensor
        The final global model.
    success : bool
        False for a deadlock, a run without clients left, or a rule that gave up.
    message : str
        ``"until"``, ``"max_aggregations"``, ``"callback"``, the rule's reason, or ``"deadlock: ..."``.
    time : float
        Seconds of the engine's clock.
    nit : int
        Aggregations.
    history : list of dict
        ``time, version`` and what `evaluate` returned.
    aggregations : list of dict
        ``time, version, clients, weights, staleness``; the last three of equal length, clients ascending.
    updates : list of dict
        ``time, started, client, number, version, staleness, n_samples, metrics`` of each update that came.
    failures : list of Failure
    dropped : list of int
        Clients that the rule gave up.
    n_tasks, bytes_up, bytes_down : int
        Tasks begun, and bytes of tensors and numbers sent to the server and from it.
    idle : list of float
        Seconds of each client between a return and the next start.
    events : list of dict or Path
        With ``record=("events",)``: what `replay` needs, or the folder that holds it.
    """


@dataclass(frozen=True)
class Outcome:
    """How a task ended on the client's side: a reply, or a kind of failure and its text."""

    reply: object = None
    kind: FailureKind | None = None
    error: str = ""


@dataclass(frozen=True)
class Settings:
    """The keywords of `run` that say when to stop and what to report."""

    until: float = math.inf
    max_aggregations: int | None = None
    evaluate: Callable[[State], Mapping[str, float]] | None = None
    evaluate_every: int = 1
    callback: Callable[..., object] | None = None
    checkpoint: str | os.PathLike[str] | None = None
    checkpoint_every: float | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.until, (int, float)) or not self.until >= 0:
            raise value_error("until", "a number of seconds >= 0", self.until)
        check("max_aggregations", self.max_aggregations, optional(at_least(1, integer=True)))
        check("evaluate_every", self.evaluate_every, at_least(1, integer=True))
        check("checkpoint_every", self.checkpoint_every, optional(positive()))
        for name in ("evaluate", "callback"):
            if getattr(self, name) is not None and not callable(getattr(self, name)):
                raise kind_error(name, "callable or None", getattr(self, name))
        if self.checkpoint_every is not None and self.checkpoint is None:
            raise value_error("checkpoint", "a path where checkpoint_every is given", None)

    def check_ends(self, rule: ServerRule) -> None:
        """Refuse a run that nothing would end."""
        if math.isinf(self.until) and self.max_aggregations is None and not rule.stops_itself:
            raise value_error("until or max_aggregations", f"given, for {type(rule).__name__} never stops", "neither")


class Session(abc.ABC):
    """One run of one rule: its queue of timers and delayed sends, its tasks in flight and its books."""

    engine: str

    def __init__(
        self,
        clients: Sequence[Client],
        rule: ServerRule,
        settings: Settings,
        *,
        seed: int,
        record: Sequence[str | Path],
    ) -> None:
        self.clients, self.rule, self.settings, self.seed = clients, rule, settings, seed
        self.recorded = {r for r in record if isinstance(r, str)}
        for entry in self.recorded - set(_RECORDS):
            raise value_error("record", f"made of {', '.join(_RECORDS)} and a Path for events", entry)
        folder = next((r for r in record if isinstance(r, Path)), None)
        self.events = EventLog(folder) if folder is not None or "events" in self.recorded else None
        n = len(clients)
        self.now = 0  # nanoseconds
        self.queue: list[tuple[int, int, int, Any]] = []
        self.sequence = itertools.count()
        self.in_flight: dict[int, tuple[Task, State, int]] = {}  # client -> task, the model it was sent, its start
        self.numbers, self.returned, self.idle = [0] * n, [-1] * n, [0] * n
        self.n_tasks = self.bytes_up = self.bytes_down = 0
        self.history: list[dict[str, Any]] = []
        self.aggregations: list[dict[str, Any]] = []
        self.updates: list[dict[str, Any]] = []
        self.failures: list[Failure] = []
        self.ended: tuple[str, bool] | None = None
        self.quiet_timers = 0
        self.consistent = True
        self.next_checkpoint = math.inf
        if settings.checkpoint_every is not None:
            self.next_checkpoint = to_ns(settings.checkpoint_every)

    # What an engine says

    @abc.abstractmethod
    def begin_task(self, task: Task, model: State) -> None:
        """Let the client work."""

    @abc.abstractmethod
    def loop(self) -> None:
        """Let time pass until the run has ended."""

    # A run from its start, or from a checkpoint, to its end

    def begin(self, infos: Sequence[ClientInfo], model: State) -> None:
        """Start the rule, and report the model that it starts from."""
        if self.events is not None:
            self.events.start(infos, self.seed)
        commands = self.rule.start(infos, model, seed=self.seed)
        self.evaluate()
        self.execute(commands)

    def finish(self) -> FederatedResult:
        """Run to the end and give the result; what was done is in the checkpoint, if there is one."""
        path = self.settings.checkpoint
        try:
            self.loop()
        except KeyboardInterrupt:
            if path is not None and self.consistent:
                write_checkpoint(self.state_dict(), path)
            raise
        assert self.ended is not None
        if path is not None:
            write_checkpoint(self.state_dict(), path)
        if self.settings.evaluate and (not self.history or self.history[-1]["version"] != self.rule.version):
            self.evaluate()
        message, success = self.ended
        return FederatedResult(
            model=self.rule.model,
            success=success,
            message=message,
            time=self.now / NANOSECONDS,
            nit=self.rule.version,
            history=self.history,
            aggregations=self.aggregations,
            updates=self.updates,
            failures=self.failures,
            dropped=list(self.rule.dropped),
            n_tasks=self.n_tasks,
            bytes_up=self.bytes_up,
            bytes_down=self.bytes_down,
            idle=[ns / NANOSECONDS for ns in self.idle],
            **({} if self.events is None else {"events": self.events.close()}),
        )

    # Commands

    def execute(self, commands: Iterable[Command]) -> None:
        """Carry out a rule's commands in order."""
        for command in commands:
            if isinstance(command, Send):
                if command.after > 0:
                    self.push(self.now + to_ns(command.after), SEND, command)
                else:
                    self.send(command)
            elif isinstance(command, Timer):
                self.push(max(to_ns(command.at), self.now), TIMER, command.tag)
                continue
            elif isinstance(command, Aggregated):
                self.note_aggregation(command)
            elif isinstance(command, Stop):
                self.ended = command.reason, command.success
            else:
                raise kind_error("a rule's command", "Send, Timer, Aggregated or Stop", command)
            self.quiet_timers = 0

    def push(self, time: int, kind: int, item: Any) -> None:
        """Queue something for a time."""
        heapq.heappush(self.queue, (time, kind, next(self.sequence), item))

    def send(self, command: Send) -> None:
        """Begin a task with the current model."""
        client = command.client
        if not 0 <= client < len(self.clients):
            raise value_error("client of a Send", f"in [0, {len(self.clients)})", client)
        if client in self.in_flight:
            raise value_error("client of a Send", "one that is not at work", client, "wait for its update or failure")
        number = self.numbers[client]
        self.numbers[client] += 1
        task = Task(
            self.n_tasks,
            client,
            number,
            self.rule.version,
            task_seed(self.seed, client, number),
            command.attempt,
            command.payload,
        )
        if self.returned[client] >= 0:
            self.idle[client] += self.now - self.returned[client]
        self.n_tasks += 1
        self.bytes_down += state_bytes(self.rule.model, command.payload)
        self.in_flight[client] = task, self.rule.model, self.now
        self.begin_task(task, self.rule.model)

    def note_aggregation(self, command: Aggregated) -> None:
        """Write down an aggregation, evaluate, and see whether it was the last one."""
        if "aggregations" in self.recorded:
            order = sorted(range(len(command.clients)), key=lambda k: command.clients[k])
            self.aggregations.append(
                {"time": self.now / NANOSECONDS, "version": self.rule.version}
                | {key: [getattr(command, key)[k] for k in order] for key in ("clients", "weights", "staleness")}
            )
        if self.rule.version % self.settings.evaluate_every == 0:
            self.evaluate()
        if self.rule.version == self.settings.max_aggregations:
            self.ended = "max_aggregations", True
        if self.settings.callback is not None:
            shown = OptimizeResult(model=self.rule.model, time=self.now / NANOSECONDS, nit=self.rule.version)
            try:
                self.settings.callback(intermediate_result=shown)
            except StopIteration:
                self.ended = "callback", True

    def evaluate(self) -> None:
        """Add a row to the history."""
        if self.settings.evaluate is not None:
            row = {name: float(value) for name, value in self.settings.evaluate(self.rule.model).items()}
            self.history.append({"time": self.now / NANOSECONDS, "version": self.rule.version, **row})

    # Events

    def deliver(self, client: int, outcome: Outcome, started: int, finished: int) -> None:
        """Tell the rule how a client's task ended."""
        task, model, _ = self.in_flight.pop(client)
        self.returned[client] = self.now
        reply, kind, error = outcome.reply, outcome.kind, outcome.error
        if kind is None and not isinstance(reply, Reply):
            kind, error = "malformed", f"fit must return a Reply, got {type(reply).__name__}"
        elif kind is None and isinstance(reply, Reply) and (fault := fault_of(reply.delta, model)):
            kind, error = fault
        now = self.now / NANOSECONDS
        self.consistent = False
        if kind is not None:
            failure = Failure(task, kind, error, now)
            self.failures.append(failure)
            if self.events is not None:
                self.events.failure(failure)
            self.execute(self.rule.on_failure(failure, now))
        else:
            assert isinstance(reply, Reply)
            self.bytes_up += state_bytes(reply.delta, reply.payload)
            n_samples = self.clients[client].n_samples if reply.n_samples is None else reply.n_samples
            update = Update(
                task,
                reply.delta,
                n_samples,
                reply.metrics,
                reply.payload,
                started / NANOSECONDS,
                finished / NANOSECONDS,
            )
            if "updates" in self.recorded:
                self.updates.append(
                    {
                        "time": now,
                        "started": update.started,
                        "client": client,
                        "number": task.number,
                        "version": task.version,
                        "staleness": self.rule.version - task.version,
                        "n_samples": n_samples,
                        "metrics": reply.metrics,
                    }
                )
            if self.events is not None:
                self.events.update(update, now)
            self.rule.succeeded(client)
            self.execute(self.rule.on_update(update, now))
        self.consistent = True

    def ring(self, item: Any, kind: int) -> None:
        """Let a timer ring, or a delayed message leave."""
        self.consistent = False
        if kind == SEND:
            self.send(item)
        else:
            self.quiet_timers += 1
            now = self.now / NANOSECONDS
            if self.events is not None:
                self.events.timer(item, now)
            self.execute(self.rule.on_timer(item, now))
        self.consistent = True

    def nothing_can_come(self) -> bool:
        """Whether only timers are left, and they have long changed nothing."""
        return self.quiet_timers > _IDLE_TIMERS and all(kind == TIMER for _, kind, _, _ in self.queue)

    def deadlock(self) -> None:
        """End a run in which nothing can happen any more."""
        waiting = sorted(self.in_flight)
        self.ended = f"deadlock: waiting for clients {waiting}", False

    # Checkpoints

    def checkpoint_due(self, time: float) -> None:
        """Write a checkpoint if one falls due before `time`."""
        if time < self.next_checkpoint or self.settings.checkpoint_every is None or self.settings.checkpoint is None:
            return
        every = to_ns(self.settings.checkpoint_every)
        last = time // every * every if math.isfinite(time) else self.next_checkpoint
        write_checkpoint(self.state_dict(), self.settings.checkpoint)
        self.next_checkpoint = last + every

    def state_dict(self) -> dict[str, Any]:
        """The whole run in plain containers."""
        return {
            "format": FORMAT,
            "library": importlib.metadata.version("steepest"),
            "engine": self.engine,
            "seed": self.seed,
            "n_clients": len(self.clients),
            "rule": {
                "name": type(self.rule).__qualname__,
                "module": type(self.rule).__module__,
                "arguments": plain_arguments(getattr(self.rule, "arguments", None)),
                "state": self.rule.state_dict(),
            },
            "now": self.now,
            "sequence": next(self.sequence),
            "queue": [(t, k, s, asdict(item) if k == SEND else item) for t, k, s, item in self.queue],
            "in_flight": [(asdict(task), model, started) for task, model, started in self.in_flight.values()],
            "client_states": [self.client_state(k) for k in range(len(self.clients))],
            "books": {name: getattr(self, name) for name in _BOOKS},
            "failures": [asdict(f) for f in self.failures],
        }

    def client_state(self, client: int) -> dict[str, Any]:
        """What the client remembers."""
        return self.clients[client].state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Put a run back to where `state_dict` saw it."""
        self.rule.load_state_dict(state["rule"]["state"])
        self.now, self.sequence = state["now"], itertools.count(state["sequence"])
        self.queue = [(t, k, s, Send(**item) if k == SEND else item) for t, k, s, item in state["queue"]]
        self.in_flight = {task["client"]: (Task(**task), model, at) for task, model, at in state["in_flight"]}
        for client, remembered in zip(self.clients, state["client_states"], strict=True):
            if remembered:
                client.load_state_dict(remembered)
        for name in _BOOKS:
            setattr(self, name, state["books"][name])
        self.failures = [Failure(**{**f, "task": Task(**f["task"])}) for f in state["failures"]]
        if self.settings.checkpoint_every is not None:
            every = to_ns(self.settings.checkpoint_every)
            self.next_checkpoint = (self.now // every + 1) * every


_BOOKS = (
    "numbers",
    "returned",
    "idle",
    "n_tasks",
    "bytes_up",
    "bytes_down",
    "history",
    "aggregations",
    "updates",
    "quiet_timers",
)
