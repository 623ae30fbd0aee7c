"""Deep conjugate directions beside CG, incomplete factors, deflation, multigrid and sparse LU, and its limits.

Obstacles change with every system, so set-up counts. A network of the paper's width is trained for half a minute on
up to 64 x 64 cells and solves grids of 256 x 256. On a processor it loses to every peer: the rows say by how much.
CPU time of one thread, but for the row of two threads, which is wall time.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from functools import partial

import numpy as np

from _rows import Row, Seconds, alone, compared, fitted, interleaved, rows_of, threads
from steepest.core.extras import installed
from steepest.physics import ConjugateDirectionNet, DeepConjugateDirection
from steepest.physics._conjugate_direction_net import levels_for
from steepest.studies.deep_conjugate_direction_peers import PACKAGES, SOLVERS
from steepest.studies.deep_conjugate_direction_systems import grids
from steepest.studies.deep_conjugate_direction_trials import BATCH, RTOL, seconds_per_iteration

N, REPEATS = 256, 3
KIND = "white noise"
CPU = time.process_time


def bench(progress: Callable[[float], None] | None = None) -> list[Row]:
    """Measure all rows."""
    return rows_of([whole_solves, two_threads, cells], progress)


@functools.cache
def trained() -> DeepConjugateDirection:
    """Trained on the empty box of 32 x 32 cells, then of 64 x 64."""
    net = ConjugateDirectionNet(2, levels=4, pairs=2, seed=1)
    DeepConjugateDirection(net, shape=(32, 32), seed=1).fit(
        n_vectors=1600, n_lanczos=200, epochs=1, batch_size=BATCH
    )  # fmt: skip
    model = DeepConjugateDirection(net, shape=(64, 64), seed=1)
    return model.fit(n_vectors=2400, n_lanczos=400, epochs=1, batch_size=BATCH, lr=2e-3)


def whole_solves() -> list[Row]:
    """To a residual of 1e-4 around obstacles that have just changed."""
    model = trained()
    _, grid = grids(N, 1, 2)
    b = grid.right_sides[KIND]
    found: dict[str, int] = {}

    def ours() -> None:
        *_, info, stats = model.solve(grid.A, b, rtol=RTOL, maxiter=500, shape=grid.shape, solid=~grid.fluid,
                                      full_output=True)  # fmt: skip
        if info:
            raise RuntimeError(stats["message"])
        found["ours"] = stats["iterations"]

    def peer(name: str) -> None:
        found[name] = SOLVERS[name](grid.reduced, grid.level)(b[grid.inside], RTOL, None)[1]

    names = [name for name in SOLVERS if installed(PACKAGES.get(name, "scipy"))]
    seconds: Seconds = interleaved({"ours": ours} | {name: partial(peer, name) for name in names}, REPEATS, CPU)
    rows = []
    for name in names:
        what = f"256 x 256 cells with obstacles, to 1e-4, {found['ours']} iterations against {found[name]}"
        bound = "<= 8" if name == "CG" else None
        rows.append(compared(name, seconds, name, bound, what + "; above 1 ours is slower"))
    return rows


def two_threads() -> list[Row]:
    """An iteration at 256 x 256 cells: wall seconds on two threads, CPU seconds on one; any weights cost the same."""
    model = DeepConjugateDirection(ConjugateDirectionNet(2, levels=levels_for((N, N))), shape=(N, N))
    one = seconds_per_iteration(model, N, 20, CPU)
    with threads(2):
        two = [seconds_per_iteration(model, N, 20, time.perf_counter) for _ in range(REPEATS)]
    what = "256 x 256 cells, five levels, three pairs, median over 20 iterations"
    return [
        alone("an iteration on two threads", 1e3 * float(np.min(two)), "ms", "<= 40", what + ", wall time, least of 3"),
        alone("an iteration on one thread", 1e3 * one, "ms", None, what + ", CPU time"),
    ]


def cells() -> list[Row]:
    """An iteration against the number of cells."""
    model = trained()
    sizes = (64, 128, 256, 512)
    seconds = [min(seconds_per_iteration(model, n, 5, CPU) for _ in range(REPEATS)) for n in sizes]
    what = "an iteration on the empty box, 64 x 64 to 512 x 512, one thread, CPU time"
    return [fitted("iteration against cells", [n * n for n in sizes], seconds, "<= 1.15", what)]
