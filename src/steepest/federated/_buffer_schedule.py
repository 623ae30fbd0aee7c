"""How often clients contribute to a buffer that is emptied at every c-th return."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable

import numpy as np

from steepest.federated._speeds import to_ns

__all__ = ["buffer_frequencies"]

_AGGREGATIONS = 4_000


def buffer_frequencies(
    times: np.ndarray, size: int, restart: str, draw: Callable[[int], float] | None = None
) -> np.ndarray:
    """Mean number of contributions of each client to an aggregation.

    Clients that restart at once contribute at the rates ``1 / tau``, exactly. Where buffered ones wait for the buffer,
    the schedule is played through: constant times, whole nanoseconds, end in a cycle, over which the mean is taken as
    soon as it is found; random ones (`draw(client)` gives seconds) are averaged over many aggregations.
    """
    if restart == "immediate":
        rates = 1 / times
        return size * rates / rates.sum()
    n, constant = len(times), [max(to_ns(t), 1) for t in times]
    if size == n:
        return np.ones(n)
    sequence = itertools.count()

    def entry(now: int, k: int) -> tuple[int, int, int]:
        span = constant[k] if draw is None else max(to_ns(draw(k)), 1)
        return now + span, next(sequence), k

    queue = [entry(0, k) for k in range(n)]
    heapq.heapify(queue)
    counts = np.zeros(n)
    met: dict[tuple[tuple[int, int], ...], tuple[int, np.ndarray]] = {}
    for done in range(1, _AGGREGATIONS + 1):
        buffered = [heapq.heappop(queue) for _ in range(size)]
        now = buffered[-1][0]
        for k in sorted(k for _, _, k in buffered):
            counts[k] += 1
            heapq.heappush(queue, entry(now, k))
        if draw is None:
            state = tuple((time - now, k) for time, _, k in sorted(queue))
            if state in met:
                before, earlier = met[state]
                return (counts - earlier) / (done - before)
            met[state] = done, counts.copy()
    return np.maximum(counts, 1) / _AGGREGATIONS
