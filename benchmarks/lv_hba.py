"""LV-HBA beside the KKT form solved by Ipopt, with 1,000 lower constraints, and what a step costs as problems grow.

Program: `studies.lv_hba_peers.CoupledProgram`, 50 upper and 200 lower variables. Ipopt gets exact second derivatives;
LV-HBA is timed until y, solved exactly at its x, has Ipopt's upper value up to 1 % (and up to 5 %). CPU seconds.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from _rows import Row, alone, compared, fitted, rows_of
from steepest.bilevel import BilevelProblem, lv_hba, solve_lower
from steepest.core.errors import SteepestWarning
from steepest.core.extras import installed
from steepest.studies.lv_hba_peers import CoupledProgram, ipopt

ROWS, UPPER, LOWER = 1000, 50, 200
SETTINGS: dict[str, Any] = {
    "alpha": 0.5, "beta": 1.5, "eta": None, "gamma1": 3.0, "gamma2": 3.0, "c": 20.0, "pair": "gauss-seidel"
}  # fmt: skip
STEPS, EACH = 1500, 50
WITHIN = {"1 %": 0.01, "5 %": 0.05}


def bench(progress: Callable[[float], None] | None = None) -> list[Row]:
    """Measure all rows."""
    return rows_of([against_ipopt, step_costs], progress)


def against_ipopt() -> list[Row]:
    """Seconds to Ipopt's upper value; one run of each, for neither draws anything at random."""
    problem = CoupledProgram.drawn(ROWS, UPPER, LOWER, 0)
    stated = problem.problem(dense=True)
    if not installed("casadi"):
        _, last, seconds = _times(stated, float("-inf"))
        what = f"coupled program, {ROWS:,} lower constraints, {STEPS:,} steps to the upper value {last:.4g}"
        return [alone("coupled program", seconds, "s", None, f"{what} (casadi is not installed: pip install casadi)")]
    taken, x, _ = ipopt(problem)
    target = _upper(stated, torch.tensor(x))
    reached, last, seconds = _times(stated, target)
    what = f"coupled program, {ROWS:,} lower constraints, to Ipopt's upper value {target:.4g} up to "
    rows = []
    for name, share in WITHIN.items():
        found = reached.get(name)
        note = "" if found is not None else f"; not reached in {STEPS:,} steps, at {last:.4g}"
        rows.append(
            compared(
                f"Ipopt, {name}", {"ours": [seconds if found is None else found], "Ipopt": [taken]}, "Ipopt",
                "<= 0.2" if share == 0.01 else None, what + name + note,
            )
        )  # fmt: skip
    return rows


def _times(problem: BilevelProblem, target: float) -> tuple[dict[str, float], float, float]:
    """Seconds until each share is met, the last value, all seconds; those of looking are left out."""
    reached: dict[str, float] = {}
    values = [float("inf")]
    start, looking = time.process_time(), 0.0

    def look(intermediate_result: Any) -> None:
        nonlocal looking
        if intermediate_result.nit % EACH:
            return
        now = time.process_time()
        values.append(_upper(problem, intermediate_result.x))
        for name, share in WITHIN.items():
            if name not in reached and values[-1] <= target + share * abs(target):
                reached[name] = now - start - looking
        looking += time.process_time() - now
        if len(reached) == len(WITHIN):
            raise StopIteration

    _quietly(problem, SETTINGS, STEPS, look)
    return reached, values[-1], time.process_time() - start - looking


def _upper(problem: BilevelProblem, x: torch.Tensor) -> float:
    y, _ = solve_lower(problem, x, tol=1e-4, maxiter=1000)
    return float(problem.upper(x, y, None))


def _quietly(problem: BilevelProblem, settings: dict[str, Any], steps: int, callback: Any = None) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SteepestWarning)  # of a run that is short on purpose
        lv_hba(problem, **settings, maxiter=steps, log_every=None, callback=callback)


def step_costs() -> list[Row]:
    """CPU seconds of a step: the median time between two callbacks; n = d = p."""
    sizes, seconds = (2_000, 4_000, 8_000, 16_000), []
    for n in sizes:
        problem, ends = CoupledProgram.drawn(n, n, n, 0).problem(), []

        def mark(intermediate_result: Any, ends: list[float] = ends) -> None:
            ends.append(time.process_time())

        _quietly(problem, SETTINGS | {"eta": 0.1, "alpha": 0.02}, 12, mark)
        seconds.append(float(np.median(np.diff(ends))))
    what = "sparse rows of six entries, n = d = p"
    return [
        fitted("step against size", sizes, seconds, "<= 1.1", what + " = 2,000 to 16,000, CPU seconds"),
        alone("step", 1e3 * seconds[-1], "ms", None, what + " = 16,000, CPU time"),
    ]
