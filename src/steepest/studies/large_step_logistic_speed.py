"""How long a separating hyperplane takes: large steps beside scikit-learn's linear classifiers.

A peer runs as one calls it, from its default stopping rule on through stricter ones, and the first setting with which
it gets every training sample right is timed. The search for that setting is not. Besides, every peer is timed with
the smallest number of epochs that suffices, which nobody knows beforehand. Times are CPU seconds of one thread, so
that what else runs on the machine matters little.
"""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any
from unittest import mock

import numpy as np
from sklearn.linear_model import LogisticRegression, Perceptron, SGDClassifier
from sklearn.svm import LinearSVC
from threadpoolctl import threadpool_limits

from steepest.landscape import LargeStepLogisticRegression
from steepest.landscape import separable as separable_module
from steepest.landscape._row_blocks import RowBlocks
from steepest.studies.claim import bootstrap_interval, slope_fit
from steepest.studies.context import Context
from steepest.studies.large_step_logistic_problems import ALL_PAIRS, digits_pair, separable

__all__ = ["GAPS", "OURS", "PEER_MODELS", "PLAIN", "first_that_separates", "fit_seconds", "measure", "smallest_budget"]

OURS, PLAIN, LIMIT = "large steps", "large steps, plain", "large steps, limit"
OWN: dict[str, Callable[[], Any]] = {
    OURS: lambda: LargeStepLogisticRegression(max_iter=1_000_000),
    LIMIT: lambda: LargeStepLogisticRegression(math.inf, max_iter=1_000_000),
    PLAIN: lambda: LargeStepLogisticRegression(normalize=False, max_iter=1_000_000),
}
PEER_MODELS: dict[str, Callable[..., Any]] = {
    "Perceptron": lambda **k: Perceptron(random_state=0, **k),
    "SGD, perceptron loss": lambda **k: SGDClassifier(loss="perceptron", random_state=0, **k),
    "SGD, logistic loss": lambda **k: SGDClassifier(loss="log_loss", random_state=0, **k),
    "LogisticRegression": lambda **k: LogisticRegression(C=1e6, **k),
    "LinearSVC": lambda **k: LinearSVC(C=1e4, random_state=0, **k),
}
STRICTER: tuple[dict[str, Any], ...] = (
    {},
    {"tol": 1e-5, "max_iter": 10_000},
    {"tol": 1e-8, "max_iter": 100_000},
)
GAPS = {"05": 0.5, "1": 1.0, "2": 2.0}
Data = tuple[np.ndarray, np.ndarray]


def measure(ctx: Context) -> None:
    """Report the claims on speed."""
    digits = ctx.data("digits")
    pairs = ctx.pick(quick=((3, 8), (2, 8), (4, 9), (1, 7), (5, 9)), full=ALL_PAIRS, paper=(), tiny=((4, 9),))
    rounds = ctx.pick(quick=7, full=7, paper=0, tiny=2)
    _pairs(ctx, [digits_pair(digits, pair) for pair in pairs], rounds)
    _large(ctx, ctx.pick(quick=(5_000, 784), full=(5_000, 784), paper=(0, 0), tiny=(300, 40)))
    _exponent(ctx)


def _pairs(ctx: Context, problems: Sequence[Data], rounds: int) -> None:
    ratios: list[float] = []
    oracle: list[float] = []
    table: dict[str, list[float]] = {}
    for i, (X, y) in enumerate(problems):
        models = {name: make() for name, make in OWN.items()} | separating_peers(X, y)
        seconds = medians(fit_seconds(models, X, y, rounds))
        for name, value in seconds.items():
            table.setdefault(name, []).append(value)
        best = min(value for name, value in seconds.items() if name in PEER_MODELS)
        ratios.append(best / seconds[OURS])
        if ctx.wants("speed-digits-known"):
            known = {name: PEER_MODELS[name](**smallest_budget(name, X, y)) for name in models if name in PEER_MODELS}
            timed = medians(fit_seconds({OURS: models[OURS]} | known, X, y, rounds))
            oracle.append(min(value for name, value in timed.items() if name != OURS) / timed[OURS])
        ctx.progress(0.5 + 0.25 * (i + 1) / len(problems), faster=float(np.median(ratios)))
    for name, values in table.items():
        for i, value in enumerate(values):
            ctx.series("time on digits", [1e3 * value], method=name, seed=i)
    names = [name for name in PEER_MODELS if len(table.get(name, [])) == len(problems)]
    best_name = min(names, key=lambda name: float(np.median(table[name])))
    span = bootstrap_interval(ratios, statistic=np.median) if len(ratios) > 1 else None
    ctx.measured("speed-digits", float(np.median(ratios)), span)
    if oracle:
        ctx.measured("speed-digits-known", float(np.median(oracle)))
    ctx.against(
        best_name,
        float(np.median(ratios)),
        span,
        ahead="faster",
        behind="slower",
        what=f"time to a separating hyperplane, {len(problems)} pairs of digits, default settings",
    )
    text = ", ".join(f"{name} {1e3 * float(np.median(values)):.2g} ms" for name, values in table.items())
    ctx.note(f"Digits, median over pairs: {text}.")


def _large(ctx: Context, shape: tuple[int, int]) -> None:
    rounds = ctx.pick(quick=1, full=5, paper=0, tiny=1)
    for i, (label, gap) in enumerate(GAPS.items()):
        ratios: dict[str, list[float]] = {OURS: [], PLAIN: []}
        times: dict[str, list[float]] = {}
        for seed in ctx.seeds:
            X, y = separable(*shape, gap, seed)
            models = {name: make() for name, make in OWN.items()} | separating_peers(X, y)
            seconds = medians(fit_seconds(models, X, y, rounds))
            best = min(seconds[name] for name in PEER_MODELS if name in seconds)
            for name, values in ratios.items():
                values.append(best / seconds[name])
            for name, value in seconds.items():
                times.setdefault(name, []).append(value)
                ctx.series("time on large data", [(gap, 1e3 * value)], method=name, seed=seed)
        for name, claim in ((OURS, f"speed-large-{label}"), (PLAIN, f"speed-large-{label}-plain")):
            ctx.measured(claim, float(np.median(ratios[name])), (min(ratios[name]), max(ratios[name])))
        text = ", ".join(f"{name} {1e3 * float(np.median(values)):.3g} ms" for name, values in times.items())
        ctx.note(f"{shape[0]} x {shape[1]}, gap {gap:g}: {text}.")
        ctx.progress(0.75 + 0.05 * (i + 1))


def _exponent(ctx: Context) -> None:
    """Ten updates on labels that cannot be learned, beyond the caches of a core, and on one block used again."""
    sizes = ctx.pick(
        quick=(8_000, 16_000, 32_000, 64_000), full=(8_000, 16_000, 32_000, 64_000), paper=(), tiny=(500, 1_000)
    )
    rng = np.random.default_rng(ctx.seed)
    X, y = rng.standard_normal((sizes[-1], 128)), rng.integers(0, 2, sizes[-1])
    best = {"10 updates": [math.inf] * len(sizes), "10 updates, one block": [math.inf] * len(sizes)}
    for _ in range(ctx.pick(quick=5, full=9, paper=0, tiny=2)):
        for i, n in enumerate(sizes):
            for method, rows in (("10 updates", RowBlocks), ("10 updates, one block", _OneBlock)):
                with mock.patch.object(separable_module, "RowBlocks", rows):
                    model = LargeStepLogisticRegression(1e-3, max_iter=10)
                    seconds = medians(fit_seconds({"": model}, X[:n], y[:n], 1))[""]
                best[method][i] = min(best[method][i], seconds)
    for claim, (method, times) in zip(("size-exponent", "size-exponent-reused"), best.items(), strict=True):
        slope, span = slope_fit([128 * n for n in sizes], times)
        ctx.measured(claim, slope, span if len(sizes) > 2 else None)
        ctx.series("time against size", [(128 * n, 1e3 * t) for n, t in zip(sizes, times)], method=method)


class _OneBlock(RowBlocks):
    """Every block is the first one: the same work, in memory that fits the cache."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._X = [self._X[0][: len(block)] for block in self._X]


def fit_seconds(models: dict[str, Any], X: np.ndarray, y: np.ndarray, rounds: int) -> dict[str, list[float]]:
    """CPU seconds of every model's fit, in turns."""
    seconds: dict[str, list[float]] = {name: [] for name in models}
    with warnings.catch_warnings(), threadpool_limits(1):
        warnings.simplefilter("ignore")
        for _ in range(rounds):
            for name, model in models.items():
                start = time.process_time()
                model.fit(X, y)
                seconds[name].append(time.process_time() - start)
    return seconds


def medians(seconds: dict[str, list[float]]) -> dict[str, float]:
    """The median of each."""
    return {name: float(np.median(values)) for name, values in seconds.items()}


def separating_peers(X: np.ndarray, y: np.ndarray) -> dict[str, Any]:
    """The peers with the first of their settings that gets all training samples right; who never does is left out."""
    found = {name: first_that_separates(make, X, y) for name, make in PEER_MODELS.items()}
    return {name: model for name, model in found.items() if model is not None}


def first_that_separates(make: Callable[..., Any], X: np.ndarray, y: np.ndarray) -> Any:
    """Default stopping rule first, then stricter ones; None where none of them separates."""
    return next((make(**rule) for rule in STRICTER if _separates(make(**rule), X, y)), None)


def smallest_budget(name: str, X: np.ndarray, y: np.ndarray) -> dict[str, Any]:
    """Fewest epochs (or iterations) after which a peer separates, without a stopping rule of its own."""
    stop: dict[str, Any] = {"tol": 1e-14} if name in ("LogisticRegression", "LinearSVC") else {"tol": None}
    for budget in _doubling(200_000):
        if _separates(PEER_MODELS[name](max_iter=budget, **stop), X, y):
            low, high = budget // 2, budget
            while high - low > 1:
                middle = (low + high) // 2
                done = _separates(PEER_MODELS[name](max_iter=middle, **stop), X, y)
                low, high = (low, middle) if done else (middle, high)
            return {"max_iter": high, **stop}
    return {"max_iter": 200_000, **stop}


def _doubling(limit: int) -> Iterator[int]:
    budget = 1
    while budget <= limit:
        yield budget
        budget *= 2


def _separates(model: Any, X: np.ndarray, y: np.ndarray) -> bool:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return bool(model.fit(X, y).score(X, y) == 1.0)
