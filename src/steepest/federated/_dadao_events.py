"""When nodes of DADAO wake up: Poisson clocks drawn in chunks, cut into the segments between two looks at the network.

All that does not depend on the states is settled here, for any engine: who meets whom at what time, and the flow of
each node since its last event.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from steepest.federated._dadao_flow import DadaoConstants
from steepest.federated._gossip_graph import Graph

__all__ = ["Chunk", "Clocks", "Piece", "Schedule", "Segment"]

Array = NDArray[Any]
CHUNK = 2048  # events drawn at a time


class Clocks:
    """The jumps of all Poisson processes in order: rate 1 for a node's gradients, lambda_ij for an edge's gossip.

    A process of rate 1 in a time tau in which the whole network ticks once per unit is drawn, and tau is turned into
    time: with graphs that take turns, time is piecewise linear in tau.
    """

    def __init__(
        self, graphs: Sequence[Graph], rates: Sequence[Array], switch_every: float, rng: np.random.Generator
    ) -> None:
        self.n, self.rng, self.switch_every, self.tau = graphs[0].n, rng, switch_every, 0.0
        used = [np.flatnonzero(r > 0) for r in rates]
        self.edges = [graph.edges[kept] for graph, kept in zip(graphs, used, strict=True)]
        self.edge_clock = [np.cumsum(r[kept]) for r, kept in zip(rates, used, strict=True)]
        self.total = np.array([self.n + clock[-1] for clock in self.edge_clock])

    def draw(self, size: int) -> tuple[Array, Array, Array]:
        """Times, first nodes and second nodes (-1 at a gradient) of the next events."""
        tau = self.tau + np.cumsum(self.rng.standard_exponential(size))
        share = self.rng.random(size)
        self.tau = float(tau[-1])
        times, which = self._times(tau)
        ticks = share * self.total[which]
        first, second = np.minimum(ticks, self.n - 1).astype(np.int64), np.full(size, -1)
        for k in np.unique(which):
            gossip = np.flatnonzero((which == k) & (ticks >= self.n))
            edge = np.searchsorted(self.edge_clock[k], ticks[gossip] - self.n, side="right")
            pairs = self.edges[k][np.minimum(edge, len(self.edges[k]) - 1)]
            first[gossip], second[gossip] = pairs.T
        return times, first, second

    def _times(self, tau: Array) -> tuple[Array, Array]:
        """Time of every tau, and which graph is in use then."""
        if len(self.total) == 1:
            return tau / self.total[0], np.zeros(len(tau), dtype=np.int64)
        ends = np.cumsum(self.total) * self.switch_every
        cycle, rest = np.divmod(tau, ends[-1])
        which = np.minimum(np.searchsorted(ends, rest, side="right"), len(ends) - 1)
        begins = ends[which] - self.total[which] * self.switch_every
        times = (cycle * len(ends) + which) * self.switch_every + (rest - begins) / self.total[which]
        return np.maximum.accumulate(times), which


@dataclass
class Chunk:
    """Events in the order of time; ``flow[k]`` leads the first node of event k there from its last one, ``flow2`` j."""

    times: Array
    first: Array
    second: Array
    flow: Any
    flow2: Any


@dataclass
class Piece:
    """Events ``start`` to ``stop`` of a chunk."""

    chunk: Chunk
    start: int
    stop: int

    def events(self) -> Iterator[tuple[int, int, Any, Any]]:
        """Give i, j (-1 at a gradient), the flow of i and the flow of j."""
        part, chunk = slice(self.start, self.stop), self.chunk
        numbers = chunk.first[part].tolist(), chunk.second[part].tolist()
        return zip(*numbers, chunk.flow[part], chunk.flow2[part], strict=True)

    def pass_on(self, last: Array) -> None:
        """Write the time of each node's last event."""
        part, chunk = slice(self.start, self.stop), self.chunk
        first, second, times = chunk.first[part], chunk.second[part], chunk.times[part]
        np.maximum.at(last, first, times)
        np.maximum.at(last, second[second >= 0], times[second >= 0])


@dataclass
class Segment:
    """Events up to `time`, when there is a look at the network, and why the run ends then, if it does."""

    time: float
    before: Array
    """(n,) when each node had its last event before this segment."""
    end: str = ""
    failed: bool = False
    pieces: list[Piece] = field(default_factory=list)

    @property
    def last(self) -> Array:
        """(n,) when each node had its last event."""
        last = self.before.copy()
        for piece in self.pieces:
            piece.pass_on(last)
        return last

    @property
    def counts(self) -> tuple[int, int]:
        """Gradients and communications."""
        kinds = [piece.chunk.second[piece.start : piece.stop] for piece in self.pieces]
        gradients = sum(int((kind < 0).sum()) for kind in kinds)
        return gradients, sum(map(len, kinds)) - gradients

    def until_failure(self, n_events: int, node: int) -> Segment:
        """What comes before the event at which the gradient of `node` is not finite."""
        pieces = []
        for piece in self.pieces:
            stop = min(piece.stop, piece.start + n_events)
            pieces.append(Piece(piece.chunk, piece.start, stop))
            n_events -= stop - piece.start
            if stop < piece.stop:
                time = float(piece.chunk.times[stop])
                return Segment(
                    time, self.before, f"the gradient of node {node} is not finite at time {time:.6g}", True, pieces
                )
        raise IndexError(n_events)


class Schedule:
    """Segment after segment, until the time or a budget of events runs out."""

    def __init__(
        self,
        clocks: Clocks,
        constants: DadaoConstants,
        lift: Callable[[Array], Any],
        *,
        record_every: float,
        t_max: float | None,
        max_gradients: int | None,
        max_communications: int | None,
    ) -> None:
        self.clocks, self.constants, self.lift, self.record_every = clocks, constants, lift, record_every
        self.t_max, self.looks = math.inf if t_max is None else t_max, 0
        self.left = {"max_gradients": max_gradients, "max_communications": max_communications}
        self.last, self.drawn = np.zeros(clocks.n), np.zeros(clocks.n)
        self.chunk, self.at = self._chunk(), 0

    def affords(self, n_gradients: int) -> bool:
        """Take the gradients of a check out of the budget; False, and nothing is taken, where less is left."""
        left = self.left["max_gradients"]
        if left is None:
            return True
        if left >= n_gradients:
            self.left["max_gradients"] = left - n_gradients
        return left >= n_gradients

    @property
    def used_up(self) -> str:
        """The budget of which nothing is left."""
        return next((name for name, left in self.left.items() if left == 0), "")

    def next(self) -> Segment:
        """The events up to the next look, fewer where a budget ends before."""
        self.looks += 1
        due = self.looks * self.record_every
        segment = Segment(min(due, self.t_max), self.last.copy(), end="t_max" if self.t_max <= due else "")
        while True:
            times = self.chunk.times
            stop = self._affordable(int(np.searchsorted(times, segment.time, side="right")))
            piece, self.at = Piece(self.chunk, self.at, stop), stop
            segment.pieces.append(piece)
            piece.pass_on(self.last)
            if self.used_up:
                segment.time, segment.end = float(times[stop - 1]), self.used_up
                return segment
            if stop < len(times):
                return segment
            self.chunk, self.at = self._chunk(), 0

    def _affordable(self, stop: int) -> int:
        """Where the events must end that begin at ``self.at``, and pay for them."""
        gradient = self.chunk.second[self.at : stop] < 0
        kinds = {"max_gradients": gradient, "max_communications": ~gradient}
        n_events = len(gradient)
        for name, left in self.left.items():
            if left is not None and kinds[name].sum() >= left:
                n_events = min(n_events, int(np.searchsorted(np.cumsum(kinds[name]), left)) + 1)
        for name, left in self.left.items():
            if left is not None:
                self.left[name] = left - int(kinds[name][:n_events].sum())
        return self.at + n_events

    def _chunk(self) -> Chunk:
        """Draw events; the flows of all of them follow from when each node had its last one."""
        times, first, second = self.clocks.draw(CHUNK)
        gossip = np.flatnonzero(second >= 0)
        event, node = np.r_[np.arange(CHUNK), gossip], np.r_[first, second[gossip]]
        order = np.lexsort((event, node))
        now, whose = times[event[order]], node[order]
        before = np.r_[0.0, now[:-1]]
        new = np.r_[True, whose[1:] != whose[:-1]]
        before[new] = self.drawn[whose[new]]
        dt = np.empty(len(event))
        dt[order] = now - before
        np.maximum.at(self.drawn, node, times[event])
        flows = self.constants.flows(dt)
        flow2 = np.zeros((CHUNK, 6, 6))
        flow2[gossip] = flows[CHUNK:]
        return Chunk(times, first, second, self.lift(flows[:CHUNK]), self.lift(flow2))
