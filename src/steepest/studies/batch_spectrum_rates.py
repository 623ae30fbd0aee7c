"""The largest learning rate that trains, as a function of the batch size: many trainings at once, in two passes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from steepest.core.parallel import ordered_map
from steepest.studies.batch_spectrum_training import (
    Data,
    Grid,
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

__all__ = ["largest_rates", "rates_by_batch"]

SIZES = (2, 4, 8, 16, 32, 64, 128, 256, 512)
TRAINED = 0.9  # of the initial loss, over the whole training set
OCTAVES = {"sgd": (-3, 10), "adam": (-6, 5)}  # powers of two that are tried first
PARTS = 9  # a factor of 2 in steps of 8 %


def largest_rates(
    data: Data, batch_size: int, seeds: Sequence[int], *, optimizer: str, steps: int
) -> NDArray[np.float64]:  # (seeds,)
    """Find, for every seed, the largest learning rate whose full training loss falls below 0.9 of the initial one.

    First in octaves, then in steps of 8 % between the largest that trains and its double. NaN where none does.
    """
    octaves = 2.0 ** np.arange(OCTAVES[optimizer][0], OCTAVES[optimizer][1] + 1)
    coarse = np.tile(octaves, (len(seeds), 1))
    best = _largest(coarse, _trains(data, batch_size, seeds, coarse, optimizer, steps))
    fine = np.nan_to_num(best)[:, None] * 2.0 ** (np.arange(PARTS) / PARTS)
    return _largest(fine, _trains(data, batch_size, seeds, fine, optimizer, steps) & (fine > 0))


def rates_by_batch(ctx: Context, seeds: Sequence[int], steps: int, workers: int) -> None:
    """Fit how the largest rate grows with the batch, for SGD and for Adam."""
    sizes = SIZES if ctx.wants("root-adam") else tuple(B for B in SIZES if B <= 128)
    jobs = [(optimizer, B, tuple(seeds), steps) for optimizer in ("adam", "sgd") for B in reversed(sizes)]
    how: Any = "processes" if workers > 1 else "serial"
    found = dict(zip(jobs, ordered_map(_job, jobs, backend=how, n_workers=workers)))
    rates = {name: np.array([found[name, B, tuple(seeds), steps] for B in sizes]).T for name in ("sgd", "adam")}

    def slopes(name: str, low: int, high: int) -> list[float]:
        inside = [i for i, B in enumerate(sizes) if low <= B <= high]
        return [float(np.polyfit(np.log(np.array(sizes)[inside]), np.log(row[inside]), 1)[0]) for row in rates[name]]

    for claim, values in (
        ("linear-sgd", slopes("sgd", 2, 32)),
        ("root-adam", slopes("adam", 2, 512)),
        ("root-gap", list(np.subtract(slopes("sgd", 2, 128), slopes("adam", 2, 128)))),
        ("saturation-sgd", slopes("sgd", 128, 512) if sizes == SIZES else []),
    ):
        if ctx.wants(claim):
            ctx.measured(claim, float(np.mean(values)), bootstrap_interval(values))
    for name, label in (("sgd", "SGD"), ("adam", "Adam")):
        for seed, row in zip(seeds, rates[name]):
            ctx.series("largest rate", list(zip(sizes, row)), method=label, seed=seed)
        start, power = float(np.exp(np.log(rates[name][:, 0]).mean())), 1.0 if name == "sgd" else 0.5
        theory = [(B, start * (B / sizes[0]) ** power) for B in sizes]
        ctx.series("largest rate", theory, method="theory, B" if name == "sgd" else "theory, root of B")


def _job(job: tuple[str, int, tuple[int, ...], int]) -> NDArray[np.float64]:
    optimizer, batch_size, seeds, steps = job
    return largest_rates(digits_data(), batch_size, seeds, optimizer=optimizer, steps=steps)


def _largest(rates: NDArray[np.float64], trains: NDArray[np.bool_]) -> NDArray[np.float64]:
    return np.where(trains.any(1), np.where(trains, rates, 0.0).max(1), np.nan)


def _trains(
    data: Data,
    batch_size: int,
    seeds: Sequence[int],
    rates: NDArray[np.float64],
    optimizer: str,
    steps: int,
) -> NDArray[np.bool_]:  # (seeds, rates)
    n_rates = rates.shape[1]
    model = digits_mlp()
    theta = initial([seeded(digits_mlp, seed) for seed in seeds], n_rates)
    batches = torch.stack([independent_batches(len(data), batch_size, steps, seed) for seed in seeds], 1)
    lr = torch.tensor(rates.ravel(), dtype=torch.float32)
    grid = Grid(lr, torch.zeros_like(lr) if optimizer == "sgd" else None)
    before = losses_of(model, theta, data)
    after = losses_of(model, train_grid(model, theta, data, grid, batches.repeat_interleave(n_rates, 1)), data)
    trained: Tensor = after < TRAINED * before  # NaN is not
    return trained.view(len(seeds), n_rates).numpy()
