"""The embedded engine: a discrete-event simulation whose seconds are whole nanoseconds, deterministic by seed."""

from __future__ import annotations

import heapq
import itertools
import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from steepest.core.errors import check, kind_error, nonnegative, optional, positive, value_error
from steepest.federated._checkpoint import read_checkpoint, rule_from
from steepest.federated._events import read_events
from steepest.federated._session import (
    RETURN,
    FederatedResult,
    Outcome,
    Session,
    Settings,
)
from steepest.federated._speeds import Injected, as_speeds, failure_plan, to_ns
from steepest.federated.engine import Client, Reply, ServerRule, State, Task, as_state

__all__ = ["SimulatedEngine", "checked_clients", "replay"]


class SimulatedEngine:
    """Run a federated rule in simulated time, on one machine, bit for bit the same for the same seed.

    A client's work is done when its return comes up in the queue, from the model that it was sent. So memory is one
    reference per model version in flight, not a copy per client, and 10^4 clients are no trouble.

    Parameters
    ----------
    clients : sequence of Client
        Each with ``n_samples``, ``fit(model, task)``, ``state_dict()`` and ``load_state_dict(d)``.
    speeds : array_like, Speeds or callable, optional
        Mean seconds per task and client, a `Speeds`, or ``(client, number, rng) -> seconds`` (``inf``: never returns).
        One second each by default.
    seed : int
        Seeds the clients' tasks, their times, their failures and the rule.
    failures : list of dict, or FailureModel
        ``{"client": i, "task": number, "kind": "crash" | "hang" | "nan" | "slow", "factor": 10.0}``, or probabilities.
        A crash is reported as ``exception``, a hang as ``timeout`` (where there is one), NaN as ``nonfinite``.
    task_timeout : float, optional
        Seconds after which the server gives a task up.
    record : sequence of str or Path
        What the result shall hold besides numbers: "aggregations", "updates", "events" (what `replay` needs); a `Path`
        writes the events to that folder.

    Raises
    ------
    ValueError
        No clients, a wrong number of speeds, means that are not positive, an unknown kind of failure.

    Examples
    --------
    >>> import torch
    >>> from steepest.federated import FedAvg, FunctionClient, Reply
    >>> clients = [FunctionClient(lambda m, t, c=c: Reply({"w": 0.5 * (c - m["w"])})) for c in (0.0, 1.0)]
    >>> engine = SimulatedEngine(clients, speeds=[1.0, 0.2])
    >>> result = engine.run(FedAvg(), {"w": torch.zeros(1)}, until=20.0)
    >>> result.nit, round(result.model["w"].item(), 3)
    (20, 0.5)
    """

    def __init__(
        self,
        clients: Sequence[Client],
        *,
        speeds: Any = None,
        seed: int = 0,
        failures: Any = (),
        task_timeout: float | None = None,
        record: Sequence[str | Path] = ("aggregations", "updates"),
    ) -> None:
        self.clients = checked_clients(clients)
        check("seed", seed, nonnegative(integer=True))
        check("task_timeout", task_timeout, optional(positive()))
        self.speeds = as_speeds(speeds, len(self.clients))
        self.injected = failure_plan(failures, len(self.clients))
        self.seed, self.task_timeout, self.record = seed, task_timeout, record

    def run(
        self,
        rule: ServerRule,
        model: torch.nn.Module | Mapping[str, Tensor],
        *,
        until: float = math.inf,
        max_aggregations: int | None = None,
        evaluate: Callable[[State], Mapping[str, float]] | None = None,
        evaluate_every: int = 1,
        callback: Callable[..., object] | None = None,
        checkpoint: str | os.PathLike[str] | None = None,
        checkpoint_every: float | None = None,
    ) -> FederatedResult:
        """Run `rule` from `model`, which is not modified.

        Parameters
        ----------
        rule : ServerRule
        model : torch.nn.Module or dict of Tensor
        until : float
            Seconds; what happens at ``t <= until`` is processed.
        max_aggregations : int, optional
        evaluate : callable, optional
            ``evaluate(state) -> dict of float``, on the server: at time 0, after every `evaluate_every`-th aggregation
            and at the end.
        callback : callable, optional
            ``callback(intermediate_result=...)`` after each aggregation with ``model, time, nit``; `StopIteration` ends
            the run.
        checkpoint : path, optional
            A file that is written every `checkpoint_every` seconds of the engine's clock and at the end.

        Returns
        -------
        FederatedResult

        Raises
        ------
        ValueError
            Neither `until` nor `max_aggregations` for a rule that never stops.
        """
        settings = Settings(until, max_aggregations, evaluate, evaluate_every, callback, checkpoint, checkpoint_every)
        settings.check_ends(rule)
        session = _Simulation(self, rule, settings)
        infos = [self.speeds.info(k, client.n_samples, self.seed) for k, client in enumerate(self.clients)]
        session.begin(infos, as_state(model))
        return session.finish()

    def resume(
        self,
        checkpoint: str | os.PathLike[str],
        *,
        rule: ServerRule | None = None,
        **settings: Any,
    ) -> FederatedResult:
        """Go on from a checkpoint as if nothing had happened, bit for bit.

        Parameters
        ----------
        checkpoint : path
            Also where this run writes its own, at its end and every ``checkpoint_every`` seconds.
        rule : ServerRule, optional
            Needed for a rule of your own, and for one that was made with a callable.
        **settings
            Those of `run`.

        Raises
        ------
        ValueError
            A checkpoint of another rule, another number of clients, another engine or a newer format.
        """
        state = read_checkpoint(checkpoint, _Simulation.engine, len(self.clients))
        made = rule_from(state, rule)
        chosen = Settings(checkpoint=checkpoint, **settings)
        chosen.check_ends(made)
        self.seed = state["seed"]
        session = _Simulation(self, made, chosen)
        session.load_state_dict(state)
        return session.finish()


class _Simulation(Session):
    engine = "simulated"

    def __init__(self, owner: SimulatedEngine, rule: ServerRule, settings: Settings) -> None:
        super().__init__(owner.clients, rule, settings, seed=owner.seed, record=owner.record)
        self.owner = owner

    def begin_task(self, task: Task, model: State) -> None:
        """Queue the return of the task, or the moment at which the server gives it up."""
        injected = self.owner.injected(self.seed, task.client, task.number)
        seconds = self.owner.speeds.duration(self.seed, task.client, task.number)
        if injected is not None and injected.kind == "hang":
            seconds = math.inf
        elif injected is not None and injected.kind == "slow":
            seconds *= injected.factor
        timeout = self.owner.task_timeout
        if timeout is not None and seconds > timeout:
            self.push(self.now + max(to_ns(timeout), 1), RETURN, (task.client, True))
        elif math.isfinite(seconds):
            self.push(self.now + max(to_ns(seconds), 1), RETURN, (task.client, False))

    def loop(self) -> None:
        """Take events in order of time until the run has ended."""
        until = self.settings.until
        limit = to_ns(until) if math.isfinite(until) else math.inf
        while self.ended is None:
            time = self.queue[0][0] if self.queue else math.inf
            if time <= limit:
                self.checkpoint_due(time)
            if time > limit and math.isfinite(limit):
                self.now, self.ended = int(limit), ("until", True)
            elif not self.queue or self.nothing_can_come():
                self.deadlock()
            else:
                self.step()

    def step(self) -> None:
        """Process the next event.

        A client's work is done before the event leaves the queue, so that an interrupt in the middle costs nothing.
        """
        time, kind, _, item = self.queue[0]
        if kind != RETURN:
            heapq.heappop(self.queue)
            self.now = time
            self.ring(item, kind)
            return
        client, given_up = item
        task, model, started = self.in_flight[client]
        outcome = self.give_up() if given_up else self.work(task, model)
        heapq.heappop(self.queue)
        self.now = time
        self.deliver(client, outcome, started, time)

    def give_up(self) -> Outcome:
        """A task that took too long."""
        return Outcome(None, "timeout", f"no reply within {self.owner.task_timeout:g} s")

    def work(self, task: Task, model: State) -> Outcome:
        """Let the client work now, from the model that it was sent."""
        injected = self.owner.injected(self.seed, task.client, task.number)
        if injected == Injected("crash"):
            return Outcome(None, "exception", "injected crash")
        try:
            reply: object = self.clients[task.client].fit(model, task)
        except Exception as error:
            import traceback

            return Outcome(None, "exception", f"{type(error).__name__}: {error}\n{traceback.format_exc()}")
        if injected == Injected("nan") and isinstance(reply, Reply):
            reply = replace(reply, delta=dict(itertools.starmap(_spoiled, reply.delta.items())))
        return Outcome(reply)


def _spoiled(name: str, value: Tensor) -> tuple[str, Tensor]:
    return name, torch.full_like(value, math.nan) if value.is_floating_point() else value


def checked_clients(clients: Sequence[Client]) -> list[Client]:
    """Read the argument `clients`."""
    if not isinstance(clients, Sequence):
        raise kind_error("clients", "a list of clients", clients)
    if not clients:
        raise value_error("clients", "at least one client", "none")
    for k, client in enumerate(clients):
        if not isinstance(client, Client):
            raise kind_error(f"clients[{k}]", "a Client (n_samples, fit, state_dict, load_state_dict)", client)
    return list(clients)


def replay(result_or_path: object, rule: ServerRule, model: torch.nn.Module | Mapping[str, Tensor]) -> FederatedResult:
    """Feed a recorded log of events to a fresh rule: the same events make the same model, bit for bit.

    Parameters
    ----------
    result_or_path : FederatedResult, path or list of dict
        A result of a run with ``record=("events",)``, or the folder that its log was written to.
    rule : ServerRule
        A new rule with the arguments of the recorded one.
    model : torch.nn.Module or dict of Tensor
        The model that the recorded run began with.

    Returns
    -------
    FederatedResult
        ``model``, ``nit``, ``dropped`` and ``aggregations`` (without times).
    """
    from steepest.federated.engine import Aggregated

    aggregations: list[dict[str, Any]] = []
    for event in read_events(result_or_path):
        if event["event"] == "start":
            commands = rule.start(event["clients"], as_state(model), seed=event["seed"])
        elif event["event"] == "timer":
            commands = rule.on_timer(event["tag"], event["now"])
        elif event["event"] == "update":
            rule.succeeded(event["update"].task.client)
            commands = rule.on_update(event["update"], event["now"])
        else:
            commands = rule.on_failure(event["failure"], event["now"])
        aggregations += [
            {"version": rule.version, "clients": list(c.clients), "weights": list(c.weights)}
            for c in commands
            if isinstance(c, Aggregated)
        ]
    return FederatedResult(model=rule.model, nit=rule.version, dropped=list(rule.dropped), aggregations=aggregations)
