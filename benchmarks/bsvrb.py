"""What a step of BSVRB costs, and seconds to a validation loss beside libraries for nested problems.

The libraries take the joined problem: every step of theirs makes lower steps of all 100 heads.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from _rows import Row, alone, compared, fitted, rows_of
from steepest.bilevel import BilevelProblem, bsvrb
from steepest.bilevel.tasks import multi_block_weighting
from steepest.core.extras import installed
from steepest.studies.bsvrb import quadratic
from steepest.studies.bsvrb_libraries import LIBRARIES, Joined, Watch, at_rates, present
from steepest.studies.bsvrb_workers import Case, cluster, step_milliseconds
from steepest.studies.context import Unavailable

STEPS, LIMIT_S, LR_Y, RATES = 200, 10.0, 1.6, (300.0, 1000.0)


def bench(progress: Callable[[float], None] | None = None) -> list[Row]:
    """Measure all rows."""
    return rows_of([steps, peers, two_workers], progress)


# ------------------------------------------------------------------------------------------------------- cost of a step


def steps() -> list[Row]:
    """CPU seconds of 200 steps with 10 blocks each, whatever the number of all blocks."""
    sizes = (100, 1000, 10_000)
    tasks = {m: partial(_more_steps, quadratic(m, 0)[0], lazy=True) for m in sizes}
    seconds = {m: task() for m, task in tasks.items()}
    plain = _more_steps(quadratic(10_000, 0)[0], lazy=False)
    what = "version 2, 10 blocks a step, ball inactive, CPU time"
    return [
        fitted("step against blocks", sizes, [seconds[m] for m in sizes], "<= 0.1", f"{what}, m = 100 to 10 000"),
        alone("lazy against plain rows", seconds[10_000] / plain, "ratio", None, f"{what}, m = 10 000"),
    ]


def _more_steps(problem: BilevelProblem, *, lazy: bool) -> float:
    """CPU seconds of 200 steps: those of runs of 1,020 less those of runs of 20, so that start and report fall out."""

    def shortest(n: int) -> float:
        taken = []
        for _ in range(3):
            start = time.process_time()
            bsvrb(problem, variant="v2", lr_x=1e-3, lr_y=0.01, blocks_per_step=10, lazy=lazy, maxiter=n)
            taken.append(time.process_time() - start)
        return min(taken)

    return (shortest(1020) - shortest(20)) / 5


# --------------------------------------------------------------------------------------------- seconds to a target loss


def peers() -> list[Row]:
    """CPU seconds to the validation loss that 200 steps of ours reach at least; each at the better of two rates."""
    problem, _ = multi_block_weighting(100, 0, data="breast_cancer")
    ours = partial(_ours, problem)
    target = 1.02 * min(float(ours(lr).fun) for lr in RATES)
    own = min(_first(partial(_watched, ours, lr), problem, target) for lr in RATES)
    rows = []
    for name in present():
        at_rates(name, problem, lr_x=RATES[0], lr_y=LR_Y, decay="linear", maxiter=2, random_state=0)  # loads, compiles
        theirs = min(_first(partial(_library, name, problem, lr), problem, target) for lr in RATES)
        what = f"sample weights, breast-cancer, 100 heads, I = 10, validation loss {target:.3f}, CPU time"
        if math.isinf(theirs):
            theirs, what = LIMIT_S, f"{what}; {name} had not reached it"
        rows.append(compared(name, {"ours": [own], name: [theirs]}, name, "<= 0.3333", what))
    return rows


def _ours(problem: BilevelProblem, lr_x: float, **options: Any) -> Any:
    return bsvrb(
        problem, variant="v2", lr_x=lr_x, lr_y=LR_Y, alpha=0.9, gamma=1.0, blocks_per_step=10, maxiter=STEPS,
        decay="linear", **options,
    )  # fmt: skip


def _library(name: str, problem: BilevelProblem, lr_x: float, watch: Watch) -> None:
    """A library at one rate of its upper steps."""
    LIBRARIES[name][1](Joined(problem, lambda k: lr_x, LR_Y, 0), watch)


def _watched(ours: Callable[..., Any], lr_x: float, watch: Watch) -> None:
    ours(lr_x, callback=lambda intermediate_result: watch(intermediate_result.x, intermediate_result.y))


def _first(run: Callable[[Watch], None], problem: BilevelProblem, target: float) -> float:
    """CPU seconds until F(x, y) is at the target; looking does not count."""
    spent, since = 0.0, time.process_time()
    found = math.inf

    def watch(x: torch.Tensor, y: torch.Tensor) -> None:
        nonlocal spent, since, found
        spent += time.process_time() - since
        with torch.no_grad():
            value = float(problem.upper(x, y, None, problem.all_blocks).mean())
        if value <= target:
            found = spent
        if value <= target or spent > LIMIT_S:
            raise StopIteration
        since = time.process_time()

    with contextlib.suppress(StopIteration):
        run(watch)
    return found


# -------------------------------------------------------------------------------------------------------------- workers


def two_workers() -> list[Row]:
    """Wall-clock of a step over two Ray workers, against one process; below 1 they pay."""
    if not installed("ray"):
        return []
    rows = []
    with contextlib.suppress(Unavailable), cluster(2):  # costs its rows where Ray does not start
        for p in (16, 128):
            case = Case("v1", 64, 32, p, 64)
            seconds = {key: [step_milliseconds(case, n) / 1e3] for key, n in (("ours", 2), ("one process", 0))}
            rows.append(compared(f"two workers, p = {p}", seconds, "one process", None, f"{case}, wall-clock"))
    return rows
