"""The layer of PI-HC and its experts: many small solves beside other solvers, growth with points, fields and workers.

CPU seconds of one core. The limit of a Levenberg-Marquardt step is the product J'J, 2 R N² operations; here it is the
time of that product alone, on a matrix that lies ready.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from functools import partial

import torch

from _rows import Row, alone, compared, fastest, fitted, interleaved, rows_of
from steepest.core.extras import MissingExtra
from steepest.studies.hard_constraint_moe_costs import LayerProblem, jaxopt_task, many_tasks, optimistix_task

B, R, N, K = 64, 2000, 16, 4
GRIDS = ((32, 64), (64, 64), (64, 128), (128, 128), (128, 256))
CPU = time.process_time


def bench(progress: Callable[[float], None] | None = None) -> list[Row]:
    """Measure."""
    return rows_of((_many, _points, _workers, _limit), progress)


def _many() -> list[Row]:
    tasks, what = many_tasks(B, R, 0), f"{B} fits of {R} rows and {N} unknowns, to 1e-8"
    peers = {"scipy least_squares, in a loop": tasks["SciPy"]}
    for name, task in (("vmapped jaxopt", jaxopt_task), ("vmapped optimistix", optimistix_task)):
        with contextlib.suppress(MissingExtra):
            peers[name] = task(B, R, 0)
    for solve in (tasks["ours"], *peers.values()):
        solve()
    seconds = interleaved({"ours": tasks["ours"], **peers}, 7, CPU)
    bounds = {"vmapped jaxopt": "<= 0.667", "vmapped optimistix": None}
    return [compared(f"many solves, {peer}", seconds, peer, bounds.get(peer, "<= 0.333"), what) for peer in peers]


def _points() -> list[Row]:
    rows = []
    for name, parts in (("single", (1, 1)), ("four experts", (1, K))):
        seconds = [fastest(LayerProblem(nt, nx, parts).both_ways, 4, CPU) for nt, nx in GRIDS]
        rows.append(fitted(f"points, {name}", [nt * nx for nt, nx in GRIDS], seconds, "<= 1.1",
                           "2k to 32k points, forward and backward, ten steps"))  # fmt: skip
    return rows


def _workers() -> list[Row]:
    one, four = LayerProblem(*GRIDS[-1], (1, 1)), LayerProblem(*GRIDS[-1], (1, K))
    what = "32k points, four experts, against the single solve"
    tasks = {"single solve": one.both_ways, "one core": four.both_ways, "half": partial(four.both_ways, slice(0, 2))}
    seconds = interleaved(tasks, 5, CPU)
    return [
        compared("experts on one core", seconds, "single solve", "<= 1.5", what, "one core"),
        compared("experts, one of two workers", seconds, "single solve", "<= 0.65", what, "half"),
    ]


def _limit() -> list[Row]:
    nt, nx = GRIDS[-1]
    problem = LayerProblem(nt, nx, (1, 1))
    J = torch.rand(1, nt * nx, N, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        groups = problem.rows(problem.basis)

        def ten_products() -> None:
            for _ in range(10):
                J.mT @ J

        seconds = interleaved({"ours": lambda: problem.solve(groups), "ten products J'J alone": ten_products}, 5, CPU)
    what = "ten steps on 32k points and 16 fields, forward"
    return [
        compared("limit", seconds, "ten products J'J alone", None, what),
        alone("products", 2 * nt * nx * N**2 / 1e6, "million operations a step", None, "2 R N² of the same solve"),
    ]
