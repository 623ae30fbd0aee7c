"""Score estimation at the paper's size: a wide network on a table, against the best of 20 tuned three-layer ones."""

from __future__ import annotations

import itertools
import warnings
from functools import partial
from pathlib import Path

import numpy as np
import torch

from steepest.core.errors import ConvergenceWarning
from steepest.core.random import child_seeds
from steepest.generative import ScoreRegression, sliced_wasserstein
from steepest.generative._diffusion import noise_levels, run_backwards
from steepest.generative._score_problem import Standardization
from steepest.studies.context import Context, Unavailable
from steepest.studies.score_estimation_paths import T_MAX, T_MIN
from steepest.studies.score_estimation_peers import adam_denoiser

__all__ = ["measure", "read_table"]

WIDTH = 8192
STEPS = 5000
RATES = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2)
WIDTHS = (64, 128, 256, 512)
OPENML = 42477  # "default-of-credit-card-clients"


def measure(ctx: Context) -> None:
    """Train on four fifths of the rows, draw as many samples as rows are held out, compare with those."""
    rows = _rows(ctx)
    rows = (rows - rows.mean(0)) / np.where(rows.std(0) > 0, rows.std(0), 1.0)
    order = np.random.default_rng(ctx.seed).permutation(len(rows))
    held = max(2, len(rows) // 5)
    train, new = rows[order[held:]], torch.from_numpy(rows[order[:held]])
    steps = STEPS if ctx.max_steps is None else ctx.max_steps
    width = WIDTH if ctx.max_steps is None else 64
    model = ScoreRegression(width=width, stopping="holdout", max_iter=steps, random_state=ctx.seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # the note tells the step
        ctx.timed("network", lambda: model.fit(train))
    ours = float(sliced_wasserstein(torch.from_numpy(model.sample(held)), new, generator=0))
    seeds = child_seeds(ctx.seed, len(RATES) * len(WIDTHS))
    tuned: list[float] = []
    for seed, (rate, hidden) in zip(seeds, itertools.product(RATES, WIDTHS)):
        tuned.append(ctx.timed("Adam", partial(_adam, train, new, rate, hidden, steps, seed)))
        ctx.progress(len(tuned) / len(seeds))
    ctx.measured("credit-default", ours / min(tuned))
    best = min(tuned)
    ctx.note(
        f"Stop at step {model.stopping_step_}. Sliced W2 to held-out rows: {ours:.4f}; best of the rest {best:.4f}."
    )


def _adam(train: np.ndarray, new: torch.Tensor, rate: float, width: int, steps: int, seed: int) -> float:
    points = torch.from_numpy(train)
    standard = Standardization.of(points, True)
    denoise = adam_denoiser(
        standard.data(points), T_MIN, T_MAX, steps=steps, seed=seed, width=width, rates=(rate,), standardize=False
    )
    x = torch.randn(new.shape, generator=torch.Generator().manual_seed(seed % 2**31), dtype=new.dtype)
    times = noise_levels(T_MIN, T_MAX, 200)
    drawn = run_backwards(lambda y, t: denoise(y, torch.full((len(y),), t, dtype=y.dtype)), x, times, generator=seed)
    return float(sliced_wasserstein(standard.back(drawn), new, generator=0))


def _rows(ctx: Context) -> np.ndarray:
    try:
        return read_table(ctx.data("path"))
    except Unavailable:
        if ctx.options.get("download") != "yes":
            raise
    from sklearn.datasets import fetch_openml

    try:
        return np.asarray(fetch_openml(data_id=OPENML, as_frame=False, parser="liac-arff").data, dtype=np.float64)
    except OSError as error:
        raise Unavailable(f"OpenML cannot be reached ({error}): give a table with --data FILE.csv") from None


def read_table(path: Path) -> np.ndarray:
    """Read the numbers of a comma-separated file with or without a line of names; rows that lack one are left out."""
    rows = np.genfromtxt(path, delimiter=",", dtype=np.float64)
    rows = np.atleast_2d(rows)
    full = rows[~np.isnan(rows).any(axis=1)]
    if len(full) < 10:
        raise Unavailable(f"{path} has {len(full)} rows of numbers, and at least 10 are needed")
    return full
