"""The learner against a sweep: final losses of twenty runs, none chosen, beside 36 cells of SGD, and what both cost."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from steepest.core.parallel import ordered_map
from steepest.landscape import BatchSpectrum
from steepest.studies.batch_spectrum_training import (
    Grid,
    SmallConv,
    digits_data,
    digits_mlp,
    independent_batches,
    initial,
    losses_of,
    seeded,
    train_grid,
)
from steepest.studies.claim import bootstrap_interval
from steepest.studies.context import Context

__all__ = ["learner_against_sweep", "learner_costs"]

Floats = NDArray[np.float64]
NETWORKS: dict[str, Callable[[], nn.Module]] = {"mlp": digits_mlp, "cnn": SmallConv}
RATES = tuple(0.001 * 2.0**k for k in range(12))
MOMENTA = (0.0, 0.5, 0.9)
CELLS = list(itertools.product(RATES, MOMENTA))
BATCH = 128
LOST = 0.01
LOSS = nn.CrossEntropyLoss()
WARM = {"warmup": 20, "safety": 0.2}  # chosen on the convolutional network with seeds 1 to 6, which no claim uses


def learner_against_sweep(
    ctx: Context, network: str, seeds: Sequence[int], sweeps: Sequence[int], steps: int, workers: int
) -> None:
    """Train with the learner on every seed and with every cell on some of them."""
    how: Any = "processes" if workers > 1 else "serial"

    def over(fn: Callable[[Any], Any], which: Sequence[int], *more: Any) -> list[Any]:
        return ordered_map(fn, [(network, seed, steps, *more) for seed in which], backend=how, n_workers=workers)

    runs = ctx.timed(f"learner, {network}", lambda: over(run_learner, seeds, False))
    cells = np.array(ctx.timed(f"sweep, {network}", lambda: over(run_sweep, sweeps)))  # (sweeps, cells)
    ours = np.array([run["loss"] for run in runs])
    best = cells.min(1, where=np.isfinite(cells), initial=np.inf)
    paired = np.arange(len(ours)) % len(sweeps)
    ratios = ours / best[paired]
    beaten = np.array([(~(cells[p] <= loss)).mean() for loss, p in zip(ours, paired)])  # NaN is beaten
    ctx.measured(f"learner-loss-{network}", float(np.median(ratios)), bootstrap_interval(ratios, statistic=np.median))
    ctx.measured(f"learner-ahead-{network}", float(np.median(beaten)), bootstrap_interval(beaten, statistic=np.median))
    if ctx.wants(f"learner-lost-{network}"):
        ctx.measured(f"learner-lost-{network}", float((~(ours <= LOST)).mean()))
    if ctx.wants(f"warm-loss-{network}"):
        warm = np.array([run["loss"] for run in over(run_learner, seeds, True)])
        gains = warm / best[paired]
        ctx.measured(f"warm-loss-{network}", float(np.median(gains)), bootstrap_interval(gains, statistic=np.median))
        ctx.measured(f"warm-lost-{network}", float((~(warm <= LOST)).mean()))
        for seed, loss in zip(seeds, warm):
            ctx.series(f"losses {network}", [loss], method="learner, warmed up", seed=seed)
        ctx.note(f"{network}: worst of {len(warm)} runs of the warmed learner ends at {warm.max():.3g}.")
    if network == "mlp":
        ctx.against("best of 36 cells of SGD", float(1 / np.median(ratios)), _inverse(ratios),
                    what="training loss on digits after 400 steps, at a fraction of the sweep's cost")  # fmt: skip
    for seed, run in zip(seeds, runs):
        ctx.series(f"learner rate {network}", run["rates"], method="learner", seed=seed)
        ctx.series(f"losses {network}", [run["loss"]], method="learner", seed=seed)
    for seed, row in zip(sweeps, cells):
        for name, value in (("best cell", np.nanmin(row)), ("median cell", np.nanmedian(np.nan_to_num(row, nan=1e3)))):
            ctx.series(f"losses {network}", [value], method=name, seed=seed)
        for momentum in MOMENTA:
            points = [(lr, float(row[CELLS.index((lr, momentum))])) for lr in RATES]
            ctx.series(f"sweep {network}", points, method=f"momentum {momentum:g}", seed=seed)
        ctx.series(f"sweep {network}", [(RATES[0], float(ours[0])), (RATES[-1], float(ours[0]))], method="learner",
                   seed=seed)  # fmt: skip
    ctx.note(f"{network}: worst of {len(ours)} runs of the learner ends at {ours.max():.3g}.")


def _inverse(ratios: Floats) -> tuple[float, float]:
    low, high = bootstrap_interval(ratios, statistic=np.median)
    return 1 / high, 1 / low


def run_learner(job: tuple[str, int, int, bool]) -> dict[str, Any]:
    """Train one network whose rate and momentum the curvature sets, by the defaults of `attach` or warmed up."""
    network, seed, steps, warm = job
    options: dict[str, Any] = WARM if warm else {}
    data, model = digits_data(), seeded(NETWORKS[network], seed)
    opt = torch.optim.SGD(model.parameters(), lr=1e-3)
    tool = BatchSpectrum(model, LOSS, data.X, data.y, seed=seed).attach(opt, batch_size=BATCH, **options)
    try:
        for index in independent_batches(len(data), BATCH, steps, seed):
            _step(model, opt, data.X[index], data.y[index])
    except FloatingPointError:  # diverged
        return {"loss": np.inf, "rates": [(20 * k, r.lr) for k, r in enumerate(tool.history)]}
    with torch.no_grad():
        loss = float(LOSS(model(data.X), data.y))
    return {"loss": loss, "rates": [(20 * k, r.lr) for k, r in enumerate(tool.history)]}


def run_sweep(job: tuple[str, int, int]) -> list[float]:
    """Final losses of all cells, on the learner's initial weights and batches."""
    network, seed, steps = job
    data, model = digits_data(), NETWORKS[network]()
    lr, momentum = (torch.tensor(column, dtype=torch.float32) for column in zip(*CELLS))
    theta = initial([seeded(NETWORKS[network], seed)], len(CELLS))
    batches = independent_batches(len(data), BATCH, steps, seed)
    return losses_of(model, train_grid(model, theta, data, Grid(lr, momentum), batches), data).tolist()


def _step(model: nn.Module, opt: torch.optim.Optimizer, x: Tensor, y: Tensor) -> None:
    opt.zero_grad()
    LOSS(model(x), y).backward()
    opt.step()


def learner_costs(ctx: Context, network: str, rounds: int, steps: int) -> None:
    """Seconds of a step with updates every 20 and every 100 steps, in turns with plain SGD."""
    data, ratios, total = digits_data(), {20: [], 100: []}, []  # type: ignore[var-annotated]
    batches = list(independent_batches(len(data), BATCH, steps, ctx.seed))

    def seconds(every: int | None) -> float:
        model = seeded(NETWORKS[network], ctx.seed)
        opt = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)
        if every is not None:
            BatchSpectrum(model, LOSS, data.X, data.y, seed=0).attach(opt, batch_size=BATCH, every=every)
        start = time.process_time()
        for index in batches:
            _step(model, opt, data.X[index], data.y[index])
        return time.process_time() - start

    seconds(20)
    for _ in range(rounds):
        plain = seconds(None)
        for every, found in ratios.items():
            found.append(seconds(every) / plain)
        total.append(ratios[20][-1] / len(CELLS))
    for every, found in ratios.items():
        ctx.measured(f"time-{every}-{network}", float(np.median(found)), bootstrap_interval(found, statistic=np.median))
    ctx.measured(f"learner-cost-{network}", float(np.median(total)), bootstrap_interval(total, statistic=np.median))
