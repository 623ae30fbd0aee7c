"""Time to a separating hyperplane beside scikit-learn's linear classifiers, growth with the data, limits and memory."""

from __future__ import annotations

import math
import time
import tracemalloc
import warnings
from collections.abc import Callable

import numpy as np
from sklearn.utils.validation import validate_data

from _rows import Row, alone, compared, fitted, interleaved, rows_of
from steepest.landscape import LargeStepLogisticRegression
from steepest.studies.data import load
from steepest.studies.large_step_logistic_problems import digits_pair, separable
from steepest.studies.large_step_logistic_speed import GAPS, OWN, separating_peers

PAIRS = ((3, 8), (2, 8), (4, 9))
CLOCK = time.process_time


def bench(progress: Callable[[float], None] | None = None) -> list[Row]:
    """Measure every row; `progress` is told the share that is done."""
    return rows_of([digits, large, checks, passes, size, memory], progress)


def digits() -> list[Row]:
    """Pairs of digits against the fastest peer, CPU seconds."""
    rows = []
    for pair in PAIRS:
        X, y = digits_pair(load("digits"), pair)
        rows += _against_fastest(f"digits {pair[0]} and {pair[1]}", X, y, 31, "<= 0.333")
    return rows


def large() -> list[Row]:
    """Generated data, 5,000 x 784, of three gaps."""
    rows = []
    for gap in GAPS.values():
        X, y = separable(5_000, 784, gap, 1)
        rows += _against_fastest(f"5,000 x 784, gap {gap:g}", X, y, 5, "<= 0.667")
    return rows


def _against_fastest(name: str, X: np.ndarray, y: np.ndarray, repeats: int, bound: str) -> list[Row]:
    models = {key: make() for key, make in OWN.items()} | separating_peers(X, y)
    seconds = interleaved({key: lambda m=m: m.fit(X, y) for key, m in models.items()}, repeats, CLOCK)
    peer = min((key for key in models if key not in OWN), key=lambda key: float(np.median(seconds[key])))
    rows = []
    for own in OWN:
        what = f"CPU seconds to 100 %, {int(models[own].n_iter_[0])} updates"
        bounded = bound if own == "large steps" else None
        rows.append(compared(f"{own}: {name}", seconds, peer, bounded, what, ours=own))
    return rows


def checks() -> list[Row]:
    """What of a fit on digits is scikit-learn's checks of X and y."""
    X, y = digits_pair(load("digits"), (4, 9))
    model = LargeStepLogisticRegression()
    tasks = {"ours": lambda: model.fit(X, y), "checks": lambda: validate_data(model, X, y)}
    return [
        compared("checks of X and y", interleaved(tasks, 101, CLOCK), "checks", None, "a fit over its checks alone")
    ]


def passes() -> list[Row]:
    """An update against the two passes over X that it cannot do without."""
    rng = np.random.default_rng(0)
    X, y = rng.standard_normal((20_000, 784)), rng.integers(0, 2, 20_000)
    theta, c = rng.standard_normal(784), rng.standard_normal(20_000)
    tasks = {
        "ours": lambda: fit_quietly(LargeStepLogisticRegression(1e-3, max_iter=20), X, y),
        "start": lambda: fit_quietly(LargeStepLogisticRegression(1e-3, max_iter=1), X, y),
        "two passes alone": lambda: (X @ theta, c @ X),
    }
    seconds = interleaved(tasks, 7, CLOCK)
    per_update = np.subtract(seconds["ours"], seconds["start"]) / 19
    both = {"ours": per_update.tolist(), "two passes alone": seconds["two passes alone"]}
    return [
        compared("an update, 20,000 x 784", both, "two passes alone", "<= 1.3", "all weights matter: step size 1e-3")
    ]


def size() -> list[Row]:
    """Seconds of ten updates against n d, beyond the caches of a core."""
    rng = np.random.default_rng(0)
    sizes = (8_000, 16_000, 32_000, 64_000)
    problems = {n: (rng.standard_normal((n, 128)), rng.integers(0, 2, n)) for n in sizes}
    tasks = {
        n: lambda X=X, y=y: fit_quietly(LargeStepLogisticRegression(1e-3, max_iter=10), X, y)
        for n, (X, y) in problems.items()
    }
    seconds = interleaved(tasks, 7, CLOCK)
    best = [min(seconds[n]) for n in sizes]
    return [fitted("ten updates in n d", [128 * n for n in sizes], best, "<= 1.05", "O(n d)")]


def memory() -> list[Row]:
    """Peak memory beyond the data, in numbers per sample and feature."""
    X, y = separable(20_000, 400, 0.5, 0)
    rows = []
    for name, gamma in (("all weights", 1e-3), ("limit", math.inf)):
        model = LargeStepLogisticRegression(gamma, max_iter=3)
        fit_quietly(model, X[:200], y[:200])
        tracemalloc.start()
        fit_quietly(model, X, y)
        extra = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        what = "peak beyond X over 8 (n + d) bytes; a quarter of a block of 8 MB may be copied"
        rows.append(alone(f"memory, {name}", extra / (8 * sum(X.shape)), "x (n + d)", "<= 20", what))
    return rows


def fit_quietly(model: LargeStepLogisticRegression, X: np.ndarray, y: np.ndarray) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.fit(X, y)
