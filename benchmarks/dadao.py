"""Events of DADAO a second, against the limit that the gradients set and against recomputing everything at each event.

The official code clones all n x d states at each event, takes a 6 x 6 `matrix_exp`, and differentiates the loss of all
nodes; *whole-network script* does these three things with torch, and nothing else of it. CPU seconds.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial

import numpy as np
import torch

from _rows import Row, alone, compared, fastest, fitted, interleaved, rows_of
from steepest.core.extras import installed
from steepest.federated._dadao import dadao
from steepest.federated._gossip_rates import optimal_gossip_rates, uniform_gossip_rates
from steepest.studies.dadao_problems import barbell, cycle, grid, least_squares


def bench(progress: Callable[[float], None] | None = None) -> list[Row]:
    return rows_of([speed, whole_network, limit, growth, convex_programs, larger_programs], progress)


def events(n: int, d: int, count: int) -> Callable[[], object]:
    """A run of about `count` events on a ring."""
    problem, graph = least_squares(n, d, 0, samples=50), cycle(n)
    units = count / (n + uniform_gossip_rates(graph).total)
    return partial(
        dadao, problem.gradient, np.zeros(d), graph=graph, L=problem.L, mu=problem.mu, t_max=units, record_every=units
    )


def speed() -> list[Row]:
    seconds = fastest(events(20, 10, 20_000), 5, time.process_time)
    return [alone("an event, d = 10", seconds / 20_000 * 1e6, "us", "<= 50", "20 nodes on a ring, quadratics")]


def script(n: int, d: int, count: int) -> None:
    """What the official code does at an event, on `count` gradient events."""
    generator = torch.Generator().manual_seed(0)
    data = torch.randn(n, 50, d, generator=generator, dtype=torch.float64)
    labels = torch.randn(n, 50, 1, generator=generator, dtype=torch.float64)
    x = torch.zeros(n, d, 1, dtype=torch.float64, requires_grad=True)
    states = torch.zeros(6, n, d, dtype=torch.float64)
    flow = 0.1 * torch.randn(6, 6, generator=generator, dtype=torch.float64)
    for k in range(count):
        i = k % n
        states[:, i] = torch.linalg.matrix_exp(flow * 0.01) @ states[:, i]
        x.grad = None
        ((torch.bmm(data, x) - labels) ** 2).mean(1)[i].backward()
        copies = states.clone()
        states[0, i] = copies[0, i] - 0.01 * x.grad[i, :, 0]


def whole_network() -> list[Row]:
    rows = []
    for n, bound in ((20, None), (100, "<= 0.02")):
        tasks = {"ours": events(n, 10, 2000), "whole-network script": partial(script, n, 10, 2000)}
        seconds = interleaved(tasks, 5, time.process_time)
        what = f"2 000 events, n = {n}, d = 10; 50 samples a node"
        rows.append(compared(f"whole network, n = {n}", seconds, "whole-network script", bound, what))
    return rows


def limit() -> list[Row]:
    """The gradients alone."""
    problem = least_squares(20, 1000, 0, samples=1200)
    graph, x = cycle(20), np.zeros(1000)
    run = partial(
        dadao, problem.gradient, x, graph=graph, L=problem.L, mu=problem.mu, max_gradients=400, record_every=50.0
    )
    tasks = {"ours": run, "gradients alone": lambda: [problem.gradient(k % 20, x) for k in range(400)]}
    seconds = interleaved(tasks, 5, time.process_time)
    return [compared("limit", seconds, "gradients alone", None, "400 gradients of d = 1 000 and the gossips between")]


def growth() -> list[Row]:
    sizes = (20, 80, 320, 1280)
    seconds = [fastest(events(n, 10, 20_000), 3, time.process_time) for n in sizes]
    return [fitted("an event against n", sizes, seconds, "<= 0.2", "20 000 events on a ring, d = 10, no looks")]


def convex_programs() -> list[Row]:
    methods = {"ours": "barrier", "cutting planes": "cutting-plane", "cvxpy": "sdp"}
    if not installed("cvxpy"):
        del methods["cvxpy"]
    rows = []
    for name, graph in (("barbell 2 x 10", barbell(10)), ("grid 4 x 5", grid(4, 5))):
        tasks = {who: partial(optimal_gossip_rates, graph, method=method) for who, method in methods.items()}
        seconds = interleaved(tasks, 3, time.process_time)
        what = "the best rates; cutting planes to a gap of 1e-6"
        rows += [compared(f"rates, {name}, {peer}", seconds, peer, None, what) for peer in list(tasks)[1:]]
    return rows


def larger_programs() -> list[Row]:
    graphs = [barbell(k) for k in (10, 15, 20, 25)]
    sizes = [len(graph[1]) for graph in graphs]
    seconds = [fastest(partial(optimal_gossip_rates, g, method="barrier"), 2, time.process_time) for g in graphs]
    return [fitted("best rates against edges", sizes, seconds, "<= 3", f"barbells of {sizes[0]} to {sizes[-1]} edges")]
