"""DADAO with its nodes in worker processes of Ray: different nodes compute gradients at the same time.

Every event becomes one task, or where a gossip crosses workers four: both nodes send, both mix. A worker does its tasks
in the order in which they come; this process sends a node's tasks in the order of its events, and a mixing only when
the other's message is here. So each node sees the same numbers in the same order as in a simulation, and no node waits
for one that it does not talk to.
"""

from __future__ import annotations

import heapq
import itertools
import os
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch

from steepest.core.extras import require
from steepest.core.parallel import joined_ray
from steepest.federated._dadao_events import Schedule, Segment
from steepest.federated._dadao_nodes import Nodes, NonFiniteGradient, Simulation
from steepest.federated.ray_engine import RayEngine

__all__ = ["RayNodes"]

IN_FLIGHT = 2  # calls to a worker that have not returned: one is at work, one waits
MOST = 64  # tasks of a call
AHEAD = 4  # segments that are sent before the first of them is complete


class _Host:
    """What runs in a worker process: some of the nodes."""

    def __init__(self, nodes: Nodes) -> None:
        torch.set_num_threads(1)
        self.nodes = nodes

    def do(self, tasks: list[tuple[Any, ...]]) -> list[Any]:
        """Do tasks in order and return what they give; the rest is left out after a gradient that is not finite."""
        given: list[Any] = []
        for name, *arguments in tasks:
            try:
                given.append(getattr(self, name)(*arguments))
            except NonFiniteGradient:
                return [*given, "failed"]
        return given

    def event(self, i: int, j: int, flow: Any, flow2: Any) -> None:
        """A gradient, or a gossip between two nodes of this worker."""
        self.nodes.event(i, j, flow, flow2)

    def send(self, i: int, flow: Any) -> Any:
        """Node i's message."""
        return self.nodes.message(i, flow)

    def mix(self, i: int, theirs: Any) -> None:
        """Node i takes in a message."""
        self.nodes.mix(i, theirs)

    def show(self, i: int) -> tuple[Any, float | None]:
        """Node i's state and the squared norm of its first gradient."""
        return self.nodes.blocks[i], self.nodes.first.get(i)

    def gradients_at(self, x: Any) -> list[tuple[int, Any]]:
        """The gradients of all nodes here at one point."""
        return [(i, self.nodes.gradients(i, x)) for i in self.nodes.blocks]


@dataclass
class _Seen:
    """All nodes after a segment."""

    blocks: dict[int, Any] = field(default_factory=dict)
    first: dict[int, float] = field(default_factory=dict)


@dataclass(order=True)
class _Task:
    """Something that a worker does to one or two of its nodes; sorted by the number of the event."""

    number: int
    what: tuple[Any, ...] = field(compare=False)
    nodes: tuple[int, ...] = field(compare=False)
    partner: _Task | None = field(default=None, compare=False)
    """The task that needs what this one gives."""
    waits: bool = field(default=False, compare=False)
    """Whether a message is missing."""
    segment: int = field(default=0, compare=False)


class RayNodes:
    """Nodes 0 to n - 1, dealt to the engine's workers in equal runs."""

    def __init__(self, engine: RayEngine, nodes: Nodes) -> None:
        self.ray, self.engine, self.nodes = require("ray", "federated", what="RayEngine"), engine, nodes
        n = len(nodes.blocks)
        self.workers = min(engine.workers, n)
        self.owner = [i * self.workers // n for i in range(n)]
        self.queues: list[deque[_Task]] = [deque() for _ in range(n)]
        self.ready: list[list[_Task]] = [[] for _ in range(self.workers)]
        self.in_flight: list[deque[tuple[Any, list[_Task]]]] = [deque() for _ in range(self.workers)]
        self.sent: list[Segment] = []
        self.seen: dict[int, _Seen] = {}
        self.number = 0

    def __enter__(self) -> RayNodes:
        ray, nodes = self.ray, self.nodes
        self.joined = joined_ray(ray, max(self.workers, os.cpu_count() or 1), self.engine.ray_init)
        self.joined.__enter__()
        actor = ray.remote(**self.engine.resources)(_Host)
        parts = [{i: S for i, S in nodes.blocks.items() if self.owner[i] == w} for w in range(self.workers)]
        self.hosts = [actor.remote(Nodes(nodes.gradients, nodes.constants, part)) for part in parts]
        ray.get([host.do.remote([]) for host in self.hosts])
        return self

    def __exit__(self, *error: object) -> None:
        """Let the workers go, and Ray where it was started here."""
        for host in self.hosts:
            self.ray.kill(host)
        self.joined.__exit__(None, None, None)

    def gradients_at(self, x: Any) -> list[Any]:
        """The gradients of all nodes at one point."""
        found = self.ray.get([host.gradients_at.remote(x) for host in self.hosts])
        return [g for _, g in sorted((pair for part in found for pair in part), key=lambda pair: pair[0])]

    def run(self, schedule: Schedule, ahead: bool) -> Iterator[tuple[Segment, Any]]:
        """Give each segment that was played, and the nodes after it."""
        before = _Seen(dict(self.nodes.blocks))
        for k in itertools.count():
            while len(self.sent) <= k or (ahead and len(self.sent) < k + AHEAD and not self.sent[-1].end):
                self.queue(schedule.next())
            seen = self.seen[k]
            while len(seen.blocks) < len(self.owner):
                if not self.work():
                    yield from self.play_here(before, self.sent[k:], schedule)
                    return
            seen.blocks = dict(sorted(seen.blocks.items()))
            yield self.sent[k], seen
            if self.sent[k].end:
                return
            before = self.seen.pop(k)

    def play_here(self, before: _Seen, segments: list[Segment], schedule: Schedule) -> Iterator[tuple[Segment, Nodes]]:
        """After a gradient that is not finite: other nodes are past that event, so it is played again from `before`."""
        nodes = Nodes(self.nodes.gradients, self.nodes.constants, before.blocks)
        nodes.first.update(before.first)
        yield from Simulation(nodes).run(schedule, False, segments)

    def queue(self, segment: Segment) -> None:
        """Turn events into tasks, and end with a look at every node."""
        k = len(self.sent)
        for piece in segment.pieces:
            for i, j, flow, flow2 in piece.events():
                self.number += 1
                if j < 0 or self.owner[i] == self.owner[j]:
                    self.add(_Task(self.number, ("event", i, j, flow, flow2), (i,) if j < 0 else (i, j)))
                    continue
                mixes = [_Task(self.number, ("mix", node), (node,), waits=True) for node in (i, j)]
                self.add(_Task(self.number, ("send", i, flow), (i,), partner=mixes[1]))
                self.add(_Task(self.number, ("send", j, flow2), (j,), partner=mixes[0]))
                for mix in mixes:
                    self.add(mix)
        self.number += 1
        self.sent.append(segment)
        self.seen[k] = _Seen()
        for i in range(len(self.owner)):
            self.add(_Task(self.number, ("show", i), (i,), segment=k))

    def add(self, task: _Task) -> None:
        """Put a task behind the earlier ones of its nodes."""
        for i in task.nodes:
            self.queues[i].append(task)
        self.offer(task)

    def offer(self, task: _Task) -> None:
        """Let the worker have a task if nothing has to be sent before it."""
        if not task.waits and all(self.queues[i][0] is task for i in task.nodes):
            heapq.heappush(self.ready[self.owner[task.nodes[0]]], task)

    def batch(self, worker: int) -> list[_Task]:
        """The next tasks of a worker: up to a gradient, and none after messages, for which somebody may wait."""
        tasks: list[_Task] = []
        ready = self.ready[worker]
        while ready and len(tasks) < MOST:
            gradient = ready[0].what[0] == "event" and ready[0].what[2] < 0
            if gradient and any(task.partner for task in tasks):
                break
            task = heapq.heappop(ready)
            tasks.append(task)
            for i in task.nodes:
                self.queues[i].popleft()
            heads = [self.queues[i][0] for i in task.nodes if self.queues[i]]
            for k, head in enumerate(heads):
                if all(head is not other for other in heads[:k]):
                    self.offer(head)
            if gradient:
                break
        return tasks

    def work(self) -> bool:
        """Send tasks, wait for a return and take it in; False after a gradient that is not finite."""
        for w, host in enumerate(self.hosts):
            while len(self.in_flight[w]) < IN_FLIGHT and (tasks := self.batch(w)):
                self.in_flight[w].append((host.do.remote([task.what for task in tasks]), tasks))
        heads = {calls[0][0]: w for w, calls in enumerate(self.in_flight) if calls}
        arrived, _ = self.ray.wait(list(heads), num_returns=1)
        for reference in arrived:
            _, tasks = self.in_flight[heads[reference]].popleft()
            try:
                given = self.ray.get(reference)
            except self.ray.exceptions.RayTaskError as error:
                raise error.as_instanceof_cause() from None
            if isinstance(given[-1], str):
                return False
            for task, value in zip(tasks, given, strict=True):
                self.take(task, value)
        return True

    def take(self, task: _Task, value: Any) -> None:
        """A message goes to the task that needs it, a look into the picture of its segment."""
        if task.partner is not None:
            task.partner.what, task.partner.waits = (*task.partner.what, value), False
            self.offer(task.partner)
        elif task.what[0] == "show":
            seen, i = self.seen[task.segment], task.nodes[0]
            seen.blocks[i], size = value
            if size is not None:
                seen.first[i] = size
