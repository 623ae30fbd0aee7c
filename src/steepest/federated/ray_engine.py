"""The distributed engine: the same rules and clients on Ray, with real seconds and really asynchronous clients.

Clients are hosted by a few worker processes, not one each: a process holds hundreds of megabytes as soon as it has
imported torch. A worker takes its clients' tasks in turn. When one dies, only the task that it was working on has
failed; its other tasks are sent again with the same seeds to the process that replaces it. A process that dies may take
with it the reply to the task before, so where several were on their way, they are sent again one by one until it is
seen which one kills.
"""

from __future__ import annotations

import math
import os
import time
import traceback
import warnings
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from steepest.core.errors import SteepestWarning, at_least, check, nonnegative, optional, positive
from steepest.core.extras import require
from steepest.core.parallel import joined_ray
from steepest.federated._checkpoint import read_checkpoint, rule_from
from steepest.federated._session import (
    FederatedResult,
    Outcome,
    Session,
    Settings,
)
from steepest.federated._speeds import NANOSECONDS, as_speeds, to_ns
from steepest.federated.engine import Client, ClientInfo, ServerRule, State, Task, as_state
from steepest.federated.simulation import checked_clients

__all__ = ["RayEngine"]

_POLL = 1.0  # seconds between looks at clients that may hang
_START_LIMIT = 300.0  # seconds for the workers to come up
_DEATHS_IN_A_ROW = 10
_PATIENCE = 10  # a task seems to hang after this many times the longest one seen,
_IMPORTS = 5.0  # and no sooner than this many seconds, which a worker's first task may need to load libraries


class RayEngine:
    """Run a federated rule over worker processes of Ray, on one machine or many.

    Parameters
    ----------
    clients : sequence of Client
        Sent to the workers once; a data set that clients share travels once.
    workers : int, optional
        Worker processes; ``min(n_clients, cores)`` by default.
    seed : int
    task_timeout : float, optional
        Seconds of work after which a task has failed (``timeout``); its worker is killed and replaced.
    emulate_speeds : array_like, Speeds or callable, optional
        Let workers sleep until a task has taken as long as `SimulatedEngine` would say, to compare both.
    ray_init : dict, optional
        Keywords of ``ray.init``, e.g. ``{"address": "auto"}``. A Ray that already runs is used and left running.
    resources : dict, optional
        Ray's resources of a worker, e.g. ``{"num_gpus": 0.5}``; one CPU by default.
    record : sequence of str or Path
        As in `SimulatedEngine`.

    Raises
    ------
    ImportError
        Ray is not installed; the text has the command.

    Notes
    -----
    The clock starts when all workers have come up. Returns reach the rule in the order in which the clients finished,
    and before timers that were due later.
    """

    def __init__(
        self,
        clients: Sequence[Client],
        *,
        workers: int | None = None,
        seed: int = 0,
        task_timeout: float | None = None,
        emulate_speeds: Any = None,
        ray_init: Mapping[str, Any] | None = None,
        resources: Mapping[str, Any] | None = None,
        record: Sequence[str | Path] = ("aggregations", "updates"),
    ) -> None:
        require("ray", "federated", what="RayEngine")
        self.clients = checked_clients(clients)
        check("workers", workers, optional(at_least(1, integer=True)))
        check("seed", seed, nonnegative(integer=True))
        check("task_timeout", task_timeout, optional(positive()))
        self.workers = min(workers or os.cpu_count() or 1, len(self.clients))
        self.speeds = None if emulate_speeds is None else as_speeds(emulate_speeds, len(self.clients), "emulate_speeds")
        self.seed, self.task_timeout, self.record = seed, task_timeout, record
        self.ray_init, self.resources = dict(ray_init or {}), {"num_cpus": 1, **(resources or {})}

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
        """Run `rule` from `model`, with the keywords and the result of `SimulatedEngine.run`."""
        settings = Settings(until, max_aggregations, evaluate, evaluate_every, callback, checkpoint, checkpoint_every)
        settings.check_ends(rule)
        session = _RaySession(self, rule, settings)
        with _Cluster(self, [client.state_dict() for client in self.clients]) as session.cluster:
            session.start_clock()
            session.begin(self._infos(), as_state(model))
            return session.finish()

    def resume(
        self, checkpoint: str | os.PathLike[str], *, rule: ServerRule | None = None, **settings: Any
    ) -> FederatedResult:
        """Go on from a checkpoint: tasks that were in flight are sent again, with the same seeds."""
        state = read_checkpoint(checkpoint, _RaySession.engine, len(self.clients))
        made = rule_from(state, rule)
        chosen = Settings(checkpoint=checkpoint, **settings)
        chosen.check_ends(made)
        self.seed = state["seed"]
        session = _RaySession(self, made, chosen)
        session.load_state_dict(state)
        with _Cluster(self, state["client_states"]) as session.cluster:
            session.start_clock()
            for client, (task, sent, _) in sorted(session.in_flight.items()):
                again = replace(task, attempt=task.attempt + 1)
                session.in_flight[client] = again, sent, session.now
                session.begin_task(again, sent)
            return session.finish()

    def _infos(self) -> list[ClientInfo]:
        if self.speeds is None:
            return [ClientInfo(k, client.n_samples) for k, client in enumerate(self.clients)]
        return [self.speeds.info(k, client.n_samples, self.seed) for k, client in enumerate(self.clients)]


class _Host:
    """What runs in a worker process."""

    def __init__(self, clients: list[Client], states: Mapping[int, dict[str, Any]]) -> None:
        torch.set_num_threads(1)
        self.clients = clients
        for k, state in states.items():
            if state:
                clients[k].load_state_dict(state)

    def ping(self) -> None:
        """Answer as soon as the process is up."""

    def fit(self, model: State, task: Task, seconds: float | None) -> dict[str, Any]:
        """Let a client work, and tell when it began and ended."""
        started = time.time()
        client, reply, error = self.clients[task.client], None, ""
        try:
            reply = client.fit(model, task)
        except Exception as raised:
            error = f"{type(raised).__name__}: {raised}\n{traceback.format_exc()}"
        if seconds is not None:
            time.sleep(min(max(0.0, seconds - (time.time() - started)), 1e9))
        return {
            "reply": reply,
            "error": error,
            "state": client.state_dict(),
            "started": started,
            "finished": time.time(),
        }


@dataclass
class _Worker:
    """The server's view of one worker process."""

    actor: Any
    ping: Any
    """Reference of the first call, until the process has answered it."""
    tasks: deque[tuple[Any, Task]] = field(default_factory=deque)
    head_since: float = math.inf
    """When it began with its first task, in seconds of a monotonic clock."""
    deaths: int = 0
    held: deque[tuple[Task, State, float | None]] = field(default_factory=deque)
    """Tasks that wait for the one at work, because one of them has killed the process."""
    in_doubt: bool = False


class _Cluster:
    """Worker processes, the clients in them and the models that were sent."""

    def __init__(self, owner: RayEngine, states: list[dict[str, Any]]) -> None:
        self.ray = require("ray", "federated", what="RayEngine")
        self.owner, self.states = owner, states
        self.models: dict[int, Any] = {}  # version -> reference in Ray's store
        self.workers: list[_Worker] = []

    def __enter__(self) -> _Cluster:
        ray, owner = self.ray, self.owner
        self.joined = joined_ray(ray, max(owner.workers, os.cpu_count() or 1), owner.ray_init)
        self.joined.__enter__()
        try:
            self.actor_class = ray.remote(**owner.resources)(_Host)
            self.clients = ray.put(owner.clients)
            self.workers = [self.start(k) for k in range(owner.workers)]
            pings = [worker.ping for worker in self.workers]
            ready, late = ray.wait(pings, num_returns=len(pings), timeout=_START_LIMIT)
            ray.get(ready)
            if late:
                raise RuntimeError(
                    f"{len(late)} of {len(pings)} workers did not come up within {_START_LIMIT:g} s: "
                    f"is there room for {owner.workers} workers of {owner.resources}?"
                )
        except BaseException:
            self.__exit__()
            raise
        for worker in self.workers:
            worker.ping = None
        return self

    def __exit__(self, *error: object) -> None:
        for worker in self.workers:
            self.ray.kill(worker.actor)
        self.workers, self.models = [], {}
        self.clients = None
        self.joined.__exit__(None, None, None)

    def start(self, k: int) -> _Worker:
        """A new process for the clients of worker `k`, as they last were."""
        mine = {i: self.states[i] for i in range(k, len(self.states), self.owner.workers)}
        actor = self.actor_class.remote(self.clients, mine)
        return _Worker(actor, actor.ping.remote())

    def submit(self, task: Task, model: State, seconds: float | None) -> None:
        """Send a task to its client's worker; a model version travels once."""
        worker = self.workers[task.client % len(self.workers)]
        if worker.in_doubt and worker.tasks:
            worker.held.append((task, model, seconds))
            return
        if task.version not in self.models:
            self.models[task.version] = self.ray.put(model)
        reference = worker.actor.fit.remote(self.models[task.version], task, seconds)
        worker.tasks.append((reference, task))
        if len(worker.tasks) == 1 and worker.ping is None:
            worker.head_since = time.monotonic()

    def submit_held(self, worker: _Worker) -> None:
        """Send the next task of a worker in doubt, once the one before has come back."""
        if worker.in_doubt and not worker.tasks:
            if worker.held:
                self.submit(*worker.held.popleft())
            worker.in_doubt = bool(worker.held)

    def forget_models(self, in_use: set[int]) -> None:
        """Let Ray free the models that no task needs any more."""
        for version in self.models.keys() - in_use:
            del self.models[version]


class _RaySession(Session):
    engine = "ray"
    cluster: _Cluster

    def __init__(self, owner: RayEngine, rule: ServerRule, settings: Settings) -> None:
        super().__init__(owner.clients, rule, settings, seed=owner.seed, record=owner.record)
        self.owner, self.longest, self.warned = owner, 0.0, False

    def start_clock(self) -> None:
        """Let the clock go on from where it stood."""
        self.zero = time.monotonic() - self.now / NANOSECONDS
        self.epoch = time.time() - self.now / NANOSECONDS

    def clock(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self.zero

    def client_state(self, client: int) -> dict[str, Any]:
        """What the client last told of itself."""
        return self.cluster.states[client]

    def begin_task(self, task: Task, model: State) -> None:
        """Hand the task to a worker."""
        if self.ended is None:
            speeds = self.owner.speeds
            seconds = None if speeds is None else speeds.duration(self.seed, task.client, task.number)
            self.cluster.submit(task, model, seconds)

    def loop(self) -> None:
        """Wait for whatever comes first: a return, a timer, a task that takes too long, the end."""
        until = self.settings.until
        while self.ended is None:
            now = self.clock()
            self.checkpoint_due(to_ns(now))
            if (not self.in_flight and not self.queue) or self.nothing_can_come():
                self.deadlock()
                break
            timer = self.queue[0][0] / NANOSECONDS if self.queue else math.inf
            pause = max(0.0, min(timer, until, now + _POLL, self.next_timeout()) - now)
            for finished, act in self.arrived(pause):
                self.ring_until(finished)
                if self.ended is None and finished <= until:
                    self.now = max(self.now, to_ns(finished))
                    act()
            self.ring_until(min(self.clock(), until))
            if self.ended is None and self.clock() >= until:
                self.now, self.ended = max(self.now, to_ns(until)), ("until", True)
            self.cluster.forget_models({task.version for task, _, _ in self.in_flight.values()})

    def ring_until(self, time: float) -> None:
        """Let the timers ring that were due by `time`, and delayed messages leave."""
        import heapq

        while self.ended is None and self.queue and self.queue[0][0] <= to_ns(min(time, self.settings.until)):
            due, kind, _, item = heapq.heappop(self.queue)
            self.now = max(self.now, due)
            self.ring(item, kind)

    def arrived(self, pause: float) -> list[tuple[float, Callable[[], None]]]:
        """What has happened to tasks within `pause` seconds, in the order of finishing."""
        ray, workers = self.cluster.ray, self.cluster.workers
        owners = {w.tasks[0][0] if w.ping is None else w.ping: k for k, w in enumerate(workers) if w.tasks or w.ping}
        if not owners:
            time.sleep(pause)
            return []
        ready, _ = ray.wait(list(owners), num_returns=1, timeout=pause)
        if ready:
            ready, _ = ray.wait(list(owners), num_returns=len(owners), timeout=0)
        found: list[tuple[float, Callable[[], None]]] = []
        for reference in ready:
            found += self.harvest(owners[reference])
        found += self.overdue()
        return sorted(found, key=lambda pair: pair[0])

    def harvest(self, k: int) -> list[tuple[float, Callable[[], None]]]:
        """Take what worker `k` has finished; replace it if it died."""
        ray, worker = self.cluster.ray, self.cluster.workers[k]
        found: list[tuple[float, Callable[[], None]]] = []
        try:
            if worker.ping is not None:
                ray.get(worker.ping)
                worker.ping, worker.head_since = None, time.monotonic()
            while worker.tasks and ray.wait([worker.tasks[0][0]], timeout=0)[0]:
                reference, task = worker.tasks[0]
                try:
                    answer = ray.get(reference)
                except ray.exceptions.RayTaskError as error:  # the reply could not travel
                    answer = {"reply": None, "error": str(error), "state": {}, "started": None, "finished": None}
                worker.tasks.popleft()
                worker.deaths, worker.head_since = 0, time.monotonic()
                found.append(self.answered(task, answer))
                self.cluster.submit_held(worker)
        except ray.exceptions.RayActorError as error:
            found += self.replace(k, "died", f"its worker died: {str(error).splitlines()[0]}")
        return found

    def answered(self, task: Task, answer: dict[str, Any]) -> tuple[float, Callable[[], None]]:
        """What to do about a task's answer, and when it was finished."""
        now = self.clock()
        finished = now if answer["finished"] is None else min(now, answer["finished"] - self.epoch)
        started = finished if answer["started"] is None else min(finished, answer["started"] - self.epoch)
        self.longest = max(self.longest, finished - started)
        if answer["state"]:
            self.cluster.states[task.client] = answer["state"]
        outcome = Outcome(None, "exception", answer["error"]) if answer["error"] else Outcome(answer["reply"])
        return finished, lambda: self.deliver(task.client, outcome, to_ns(started), to_ns(finished))

    def replace(self, k: int, kind: Any, text: str) -> list[tuple[float, Callable[[], None]]]:
        """Put a new process in the place of worker `k`; only the task that it was at has failed, once it is known."""
        old = self.cluster.workers[k]
        if old.deaths + 1 >= _DEATHS_IN_A_ROW:
            raise RuntimeError(
                f"worker {k} died {old.deaths + 1} times without finishing a task; the last time: {text}"
            )
        new = self.cluster.workers[k] = self.cluster.start(k)
        new.deaths = old.deaths + 1
        found: list[tuple[float, Callable[[], None]]] = []
        unclear = kind == "died" and len(old.tasks) > 1
        new.in_doubt = unclear or bool(old.held)
        if old.tasks and old.ping is None and not unclear:
            _, failed = old.tasks.popleft()
            moment, outcome = self.clock(), Outcome(None, kind, text)
            found = [(moment, lambda: self.deliver(failed.client, outcome, to_ns(moment), to_ns(moment)))]
        for task in [task for _, task in old.tasks] + [task for task, _, _ in old.held]:
            again = replace(task, attempt=task.attempt + 1)
            _, model, began = self.in_flight[task.client]
            self.in_flight[task.client] = again, model, began
            self.begin_task(again, model)
        return found

    def next_timeout(self) -> float:
        """When the first task at work will have taken too long, in seconds of the run's clock."""
        if self.owner.task_timeout is None:
            return math.inf
        heads = [w.head_since for w in self.cluster.workers if w.tasks]
        return min(heads, default=math.inf) - self.zero + self.owner.task_timeout

    def overdue(self) -> list[tuple[float, Callable[[], None]]]:
        """Kill workers whose task takes too long; without a limit, warn once of a task that seems to hang."""
        limit, found = self.owner.task_timeout, list[tuple[float, Callable[[], None]]]()
        for k, worker in enumerate(self.cluster.workers):
            at_work = time.monotonic() - worker.head_since if worker.tasks and worker.ping is None else 0.0
            if limit is not None and at_work > limit:
                self.cluster.ray.kill(worker.actor)
                found += self.replace(k, "timeout", f"no reply within {limit:g} s")
            elif (
                limit is None and not self.warned and self.longest and at_work > max(_PATIENCE * self.longest, _IMPORTS)
            ):
                self.warned = True
                client = worker.tasks[0][1].client
                text = f"client {client} has worked for {at_work:.1f} s, {_PATIENCE} times the longest task so far"
                warnings.warn(f"{text}; set task_timeout to give such tasks up", SteepestWarning, stacklevel=2)
        return found
