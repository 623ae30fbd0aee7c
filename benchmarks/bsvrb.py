"""What a step of BSVRB costs, and seconds to a validation loss beside libraries that differentiate through lower steps.

The libraries take the joined problem: every step of theirs unrolls K lower steps of all 100 heads.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch

from _rows import Row, alone, compared, fitted, rows_of
from steepest.bilevel import BilevelProblem, bsvrb
from steepest.bilevel.tasks import multi_block_weighting
from steepest.core.extras import installed, require
from steepest.studies.bsvrb import quadratic
from steepest.studies.bsvrb_workers import Case, cluster, step_milliseconds
from steepest.studies.context import Unavailable

UNROLLED, STEPS, LIMIT_S, RATES = 5, 200, 10.0, (300.0, 1000.0)


def bench(progress: Callable[[float], None] | None = None) -> list[Row]:
    """Measure all rows."""
    return rows_of([steps, peers, two_workers], progress)


# ------------------------------------------------------------------------------------------------------- cost of a step


def steps() -> list[Row]:
    """CPU seconds of 200 steps with 10 blocks each, whatever the number of all blocks."""
    sizes = (100, 1000, 10_000)
    tasks = {m: partial(_more_steps, quadratic(m, 0)[0], lazy=True) for m in sizes}
    seconds = {m: min(task() for _ in range(5)) for m, task in tasks.items()}
    plain = min(_more_steps(quadratic(10_000, 0)[0], lazy=False) for _ in range(2))
    what = "version 2, 10 blocks a step, ball inactive, CPU time"
    return [
        fitted("step against blocks", sizes, [seconds[m] for m in sizes], "<= 0.1", f"{what}, m = 100 to 10 000"),
        alone("lazy against plain rows", seconds[10_000] / plain, "ratio", None, f"{what}, m = 10 000"),
    ]


def _more_steps(problem: BilevelProblem, *, lazy: bool) -> float:
    """CPU seconds of 200 steps: those of a run of 220 less those of one of 20, so that reports fall out."""
    taken = []
    for n in (20, 220):
        start = time.process_time()
        bsvrb(problem, variant="v2", lr_x=1e-3, lr_y=0.01, blocks_per_step=10, lazy=lazy, maxiter=n)
        taken.append(time.process_time() - start)
    return taken[1] - taken[0]


# --------------------------------------------------------------------------------------------- seconds to a target loss


def peers() -> list[Row]:
    """CPU seconds to the validation loss that 200 steps of ours reach at least; each at the better of two rates."""
    problem, _ = multi_block_weighting(100, 0, data="breast_cancer")
    ours = partial(_ours, problem)
    target = 1.02 * min(float(ours(lr).fun) for lr in RATES)
    own = min(_first(partial(_watched, ours, lr), problem, target) for lr in RATES)
    rows = []
    for name, (package, adapter) in PEERS.items():
        if not installed(package):
            continue
        theirs = min(_first(partial(adapter, problem, lr), problem, target) for lr in RATES)
        what = f"sample weights, breast-cancer, 100 heads, I = 10, validation loss {target:.3f}, CPU time"
        if math.isinf(theirs):
            theirs, what = LIMIT_S, f"{what}; {name} had not reached it"
        rows.append(compared(name, {"ours": [own], name: [theirs]}, name, "<= 0.3333", what))
    return rows


def _ours(problem: BilevelProblem, lr_x: float, **options: Any) -> Any:
    return bsvrb(
        problem, variant="v2", lr_x=lr_x, lr_y=1.6, alpha=0.9, gamma=1.0, blocks_per_step=10, maxiter=STEPS,
        decay="linear", **options,
    )  # fmt: skip


Watch = Callable[[torch.Tensor, torch.Tensor], None]


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


class Heads(torch.nn.Module):
    """The rows of y as a module, which is what the libraries unroll."""

    def __init__(self, problem: BilevelProblem) -> None:
        super().__init__()
        assert isinstance(problem.y0, torch.Tensor)
        self.y = torch.nn.Parameter(problem.y0.clone())


def _joined(problem: BilevelProblem) -> tuple[Callable[..., torch.Tensor], Callable[..., torch.Tensor]]:
    """Minibatch objectives of all heads: the sum of the lower ones, the mean of the upper ones."""
    generator, blocks = torch.Generator().manual_seed(0), problem.all_blocks
    assert problem.sample_lower is not None
    assert problem.sample_upper is not None
    draw_lower, draw_upper = problem.sample_lower, problem.sample_upper

    def lower(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return problem.lower(x, y, draw_lower(generator, None, blocks), blocks).sum()

    def upper(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return problem.upper(x, y, draw_upper(generator, None, blocks), blocks).mean()

    return lower, upper


def _rounds(problem: BilevelProblem) -> Iterator[torch.Tensor]:
    """The shared weights as a leaf, for as long as somebody asks."""
    assert isinstance(problem.x0, torch.Tensor)
    x = problem.x0.clone().requires_grad_()
    while True:
        yield x


def higher_unrolled(problem: BilevelProblem, lr_x: float, watch: Watch) -> None:
    """Differentiate through K lower steps with `higher`, from where the last ones ended."""
    higher: Any = require("higher", what="the row of higher")
    lower, upper = _joined(problem)
    heads = Heads(problem)
    for x in _rounds(problem):
        optimizer = torch.optim.SGD(heads.parameters(), lr=1.6)
        with higher.innerloop_ctx(heads, optimizer) as (unrolled, differentiable):
            for _ in range(UNROLLED):
                differentiable.step(lower(x, unrolled.y))
            (g,) = torch.autograd.grad(upper(x, unrolled.y), (x,))
            last = unrolled.y.detach()
        with torch.no_grad():
            heads.y.copy_(last)
            x -= lr_x * g
        watch(x.detach(), last)


def torchopt_unrolled(problem: BilevelProblem, lr_x: float, watch: Watch) -> None:
    """The same with TorchOpt's `MetaSGD`."""
    torchopt: Any = require("torchopt", what="the row of torchopt")
    lower, upper = _joined(problem)
    heads = Heads(problem)
    optimizer = torchopt.MetaSGD(heads, lr=1.6)
    for x in _rounds(problem):
        for _ in range(UNROLLED):
            optimizer.step(lower(x, heads.y))
        (g,) = torch.autograd.grad(upper(x, heads.y), (x,))
        torchopt.stop_gradient(heads)
        torchopt.stop_gradient(optimizer)
        with torch.no_grad():
            x -= lr_x * g
        watch(x.detach(), heads.y.detach())


PEERS: dict[str, tuple[str, Callable[[BilevelProblem, float, Watch], None]]] = {
    "higher": ("higher", higher_unrolled),
    "torchopt": ("torchopt", torchopt_unrolled),
}


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
