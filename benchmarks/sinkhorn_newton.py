"""Sinkhorn-Newton-Sparse beside POT: time to an error of 1e-12, an easy problem, and how the time of a step grows.

A peer that does not get there within the limit is recorded with the limit: its ratio is then an upper bound.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial

import numpy as np

from _rows import Row, alone, compared, fitted, rows_of
from steepest.studies.sinkhorn_newton import EASY_REG, EASY_STOP, FASTER, STOP, TITLES, newton_seconds, solved
from steepest.studies.sinkhorn_newton_peers import EXACT, Race, present, race
from steepest.studies.sinkhorn_newton_problems import PROBLEMS, REG, random_assignment
from steepest.transport._kernel import Kernel

TURNS, SEED, PEERS = 3, 1, ("POT sinkhorn", "POT stabilized")
SIZES = (500, 1000, 2000)


def bench(progress: Callable[[float], None] | None = None) -> list[Row]:
    """Measure all rows."""
    sharp = [partial(_sharp, key) for key in PROBLEMS]
    return rows_of([*sharp, *(partial(_easy, key) for key in PROBLEMS), _growth, _passes], progress)


def _sharp(key: str) -> list[Row]:
    """The race to 1e-12, turns of ours and one run of each peer; ``ot.emd`` as what it is."""
    problem = PROBLEMS[key](SEED)
    own = [solved(problem)[1] for _ in range(TURNS)]
    limit = 1.2 * FASTER[key] * float(np.median(own))
    rows = []
    for peer in (*PEERS, EXACT):
        if peer in present():
            found = race(peer, problem, REG, STOP, limit)
            other = " (another problem, without entropy)" if peer == EXACT else _reached(found)
            seconds = {"ours": own, peer: [found.seconds] * TURNS}
            bound = None if peer == EXACT else f"<= {1 / FASTER[key]:.3g}"
            rows.append(compared(f"{key}-{peer}", seconds, peer, bound, f"{TITLES[key]}, error 1e-12{other}"))
    return rows


def _reached(found: Race) -> str:
    return "" if found.done else f", stopped at {found.err:.0e}"


def _easy(key: str) -> list[Row]:
    """Much entropy, nine digits: in turn."""
    problem, peer = PROBLEMS[key](SEED), "POT sinkhorn"
    if peer not in present():
        return []
    seconds: dict[str, list[float]] = {"ours": [], peer: []}
    for _ in range(TURNS + 2):
        seconds["ours"].append(solved(problem, EASY_REG, EASY_STOP)[1])
        seconds[peer].append(race(peer, problem, EASY_REG, EASY_STOP, 2.0).seconds)
    return [compared(f"{key}-easy", seconds, peer, "<= 2", f"{TITLES[key]}, entropy 0.05, error 1e-9")]


def _growth() -> list[Row]:
    """Time of a Newton step, and iterations, random assignment."""
    seconds, iterations = [], []
    for n in SIZES:
        problem = random_assignment(SEED, n)
        seconds.append(newton_seconds(problem))
        iterations.append(float(solved(problem)[0]["niter"]))
    return [
        fitted("step-exponent", SIZES, seconds, "<= 2.3", "time of a Newton step, random assignment"),
        fitted("iterations-exponent", SIZES, iterations, "<= 0.3", "iterations to 1e-12, random assignment"),
    ]


def _passes() -> list[Row]:
    """The floor: one evaluation of the plan, n^2 exponentials."""
    kernel = Kernel(random_assignment(SEED, 2000).M / REG)
    zeros, best = np.zeros(2000), np.inf
    for _ in range(5):
        begin = time.process_time()
        kernel.fill(zeros, zeros)
        best = min(best, time.process_time() - begin)
    return [alone("exponential", 1e9 * best / 2000**2, "ns", None, "one entry of the plan, n = 2,000")]
