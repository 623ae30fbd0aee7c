"""Two classes of handwritten digits: a monitored run of SGD with single samples, from start to limit."""

from __future__ import annotations

import warnings

import numpy as np
import torch
from torch import nn

from steepest.core.errors import SteepestWarning
from steepest.core.random import torch_generator
from steepest.landscape import StabilityMonitor, StabilityReport
from steepest.studies.claim import bootstrap_interval
from steepest.studies.context import Context
from steepest.studies.training import fresh_model

__all__ = ["NAMES", "measure_digits"]

NAMES = {"exact": "exact threshold", "trace": "trace bound", "gd": "gradient descent's limit"}
"""How figures call the notions of stability."""

LR, WIDTH, SAMPLES = 0.1, 30, 60


def measure_digits(ctx: Context, reports: list[StabilityReport]) -> None:
    """Threes against eights, targets -1 and 1, squared error."""
    steps = ctx.pick(tiny=200, quick=8_000, full=60_000, paper=200)
    readings = ctx.pick(tiny=4, quick=16, full=50, paper=4)
    images, labels = ctx.data("digits")
    chosen = np.flatnonzero((labels == 3) | (labels == 8))
    last = []
    for seed in ctx.seeds:
        rows = np.random.default_rng([seed, 5]).permutation(chosen)[:SAMPLES]
        X = torch.from_numpy(images[rows] / 16).double()
        X = X - X.mean(0)
        y = torch.from_numpy(np.where(labels[rows] == 3, -1.0, 1.0)).unsqueeze(1)
        history = _train(X, y, seed, steps, readings)
        reports += history
        for name in NAMES:
            ctx.series("digits", [(r.step, r.ratios[name]) for r in history], method=NAMES[name], seed=seed)
        last.append(history[-1].ratios["exact"])
    ctx.series("digits", [(0, 1.0), (steps, 1.0)], method="limit")
    ctx.measured("digits", float(np.median(last)), bootstrap_interval(last, statistic=np.median))


def _train(X: torch.Tensor, y: torch.Tensor, seed: int, steps: int, readings: int) -> list[StabilityReport]:
    model = fresh_model(lambda: nn.Sequential(nn.Linear(64, WIDTH), nn.ReLU(), nn.Linear(WIDTH, 1)).double(), seed)
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(2.0)
    optimizer = torch.optim.SGD(model.parameters(), lr=LR)
    generator = torch_generator(seed)
    loss_fn = nn.MSELoss()
    with (
        StabilityMonitor(
            model, loss_fn, X, y, every=max(1, steps // readings), batch_size=1, replacement=True, optimizer=optimizer
        ) as monitor,
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore", SteepestWarning)  # the loss is far from 0 at first, as the figure shows
        for t, i in enumerate(torch.randint(len(X), (steps,), generator=generator).tolist()):
            optimizer.param_groups[0]["lr"] = LR * min(1.0, (t + 1) / (steps / 2))
            optimizer.zero_grad()
            loss_fn(model(X[i : i + 1]), y[i : i + 1]).backward()
            optimizer.step()
    return monitor.history
