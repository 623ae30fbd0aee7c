"""Rates of factored descent: error curves of every regime, their tails, and the lines that theory draws.

Gaussian measurements of a matrix with singular values 1, 0.8, 0.6. A system of more equations than unknowns is first
replaced by its triangular factor (`compressed`): descent sees the measurements only through ``sum_i <A_i, .> A_i``, so
that the path is the same to rounding and thousands of updates take seconds.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from steepest.core.random import child_seeds
from steepest.landscape import factored_descent
from steepest.studies.claim import median_interval, slope_fit
from steepest.studies.context import Context

__all__ = ["Setting", "compressed", "decay_rate", "first_below", "gaussian_problem", "measure", "rate_from_start"]

Array = NDArray[Any]
SIGMAS = np.array([1.0, 0.8, 0.6])
STEP = 0.25
FLOOR = 1e-12  # rounding: tails are fitted above it
DROPPED = 0.3  # share of the iterations before the tail
SCALES = (0.025, 0.05, 0.1)
REBALANCED_SCALES = (0.025, 0.05, 0.1, 0.2, 0.4)


@dataclass(frozen=True)
class Setting:
    """Sizes of a scale: order of the matrix, measurements (None: 5 n k r), budgets in iterations.

    Descent on two factors gets ``patience / alpha^2`` updates, since that is how its time grows.
    """

    n: int
    m: int | None
    exact: int = 600
    symmetric: int = 6000
    tail_from: int = 1800
    patience: float = 24.0
    most: int = 40_000
    scales: tuple[float, ...] = SCALES
    rebalanced_scales: tuple[float, ...] = REBALANCED_SCALES


@dataclass
class Found:
    """What one seed gives."""

    numbers: dict[str, float] = field(default_factory=dict)
    curves: dict[str, Array] = field(default_factory=dict)
    rates: dict[str, list[tuple[float, float]]] = field(default_factory=dict)


# ----------------------------------------------------------------------------------------------------------- problems


def gaussian_problem(
    setting: Setting, k: int, seed: int, *, definite: bool, symmetric: bool | None = None
) -> tuple[Array, Array]:
    """Measurements (count, n, n), compressed where that pays, and the matrix, positive semidefinite or general.

    `symmetric` keeps their symmetric part alone, all that one factor sees; by default for a semidefinite matrix.
    """
    rng = np.random.default_rng(seed)
    n, r = setting.n, len(SIGMAS)
    U, V = (np.linalg.qr(rng.standard_normal((n, r)))[0] for _ in range(2))
    M = (U * SIGMAS) @ (U if definite else V).T
    A = rng.standard_normal((setting.m or 5 * n * k * r, n, n))
    return compressed(A, symmetric=definite if symmetric is None else symmetric), M


def compressed(A: Array, *, symmetric: bool = False) -> Array:
    """Give fewer measurements of the same ``(1/m) sum_i <A_i, .> A_i``; with `symmetric`, of its symmetric part.

    The Cholesky factor of the Gram matrix, which Gaussian measurements leave well conditioned.
    """
    m, n, _ = A.shape
    flat = A.reshape(m, -1)
    if symmetric:
        i, j = np.triu_indices(n)
        weight = np.where(i == j, 1.0, math.sqrt(0.5))
        flat = weight * np.where(i == j, A[:, i, j], A[:, i, j] + A[:, j, i])
    if m < 1.2 * flat.shape[1]:
        return (A + A.transpose(0, 2, 1)) / 2 if symmetric else A
    R = np.linalg.cholesky(flat.T @ flat / m).T * math.sqrt(flat.shape[1])
    if not symmetric:
        return R.reshape(-1, n, n)
    full = np.zeros((len(R), n, n))
    full[:, i, j] = R * np.where(i == j, 1.0, math.sqrt(0.5))
    full[:, j, i] = full[:, i, j]
    return full


def run(A: Array, M: Array, k: int, seed: int, maxiter: int, *, tol: float = FLOOR, **options: Any) -> Any:
    """Descend with the study's step, errors kept."""
    y = A.reshape(len(A), -1) @ M.ravel()
    settings = {"step_size": STEP, "maxiter": maxiter, "tol": tol, "seed": seed, "method": "gd", "truth": M}
    return factored_descent(A, y, rank=k, **(settings | options))


# -------------------------------------------------------------------------------------------------------------- tails


def first_below(errors: Array, level: float) -> float:
    """Iterations to an error, infinite where it was not reached."""
    hits = np.flatnonzero(errors <= level)
    return float(hits[0]) if len(hits) else math.inf


def decay_rate(errors: Array) -> tuple[float, float]:
    """Rate a step of the tail (the last 70 % above rounding) and R^2 of the line through the logarithms."""
    end = min(first_below(errors, FLOOR), len(errors))
    steps = np.arange(int(DROPPED * end), int(end))
    logs = np.log(errors[steps])
    slope, intercept = np.polyfit(steps, logs, 1)
    return float(-slope), float(1 - np.var(logs - intercept - slope * steps) / np.var(logs))


def rate_from_start(M: Array, F: Array, G: Array) -> float:
    """Smallest eigenvalue of ``W^T (F^T F - G^T G) W``: step times it is the rate that theory draws, for small starts.

    Early on ``U^T F + V^T G`` grows (U, V the singular vectors of M); the signal takes its row space, W spans what is
    left for redundant directions, where the imbalance is conserved.
    """
    r = len(SIGMAS)
    U, _, Vt = np.linalg.svd(M)
    W = np.linalg.svd(U[:, :r].T @ F + Vt[:r] @ G)[2][r:].T
    return float(np.linalg.eigvalsh(W.T @ (F.T @ F - G.T @ G) @ W)[0])


def _start(n: int, k: int, seed: int) -> tuple[Array, Array]:
    """The random start of the solver at scale 1."""
    rng = np.random.default_rng(seed)
    return rng.standard_normal((n, k)), rng.standard_normal((n, k)) / 3


# ---------------------------------------------------------------------------------------------------------- one seed


def symmetric_regimes(setting: Setting, seed: int, found: Found) -> None:
    """X X^T: exact rank, one column too many, twice as many; and what two factors do with the same target."""
    r, (data, start) = len(SIGMAS), child_seeds(seed, 2)
    for name, k in (("k = r", r), ("k = r + 1", r + 1), ("k = 2r", 2 * r)):
        A, M = gaussian_problem(setting, k, data, definite=True)
        budget = setting.exact if k == r else setting.symmetric
        e = run(A, M, k, start, budget, parametrization="symmetric").history["error"]
        found.curves[f"symmetric, {name}"] = e
        if k == r:
            found.numbers["symmetric-exact-iterations"] = first_below(e, 1e-10)
            found.numbers["symmetric-exact-log-linear"] = decay_rate(e)[1]
            continue
        T = np.arange(setting.tail_from, len(e))
        claim = "symmetric-slope-one" if k == r + 1 else "symmetric-slope-double"
        found.numbers[claim] = slope_fit(T, e[T] ** 2)[0]
        found.curves[f"theory, {name}"] = np.sqrt(k - r) / (2 * STEP * np.arange(1, len(e)))
        if k == r + 1:
            found.numbers["symmetric-constant"] = float(e[-1] * 2 * STEP * (len(e) - 1))
            found.numbers["cure-symmetric-cost"] = float(e[-1] * (len(e) - 1) / 1e-6)  # from the law e = c / T
            A, _ = gaussian_problem(
                setting, k, data, definite=True, symmetric=False
            )  # two factors need all of each A_i
            cured = run(A, M, k, start, setting.symmetric, init_scale=0.1, tol=1e-8).history["error"]
            found.curves["asymmetric, k = r + 1"] = cured
            # The symmetric run ended above 1e-6: a lower bound, all of it measured.
            arrived = first_below(cured, 1e-6)
            found.numbers["cure"] = (len(e) - 1) / arrived
            found.numbers["cure by the law"] = found.numbers["cure-symmetric-cost"] / arrived


def asymmetric_regimes(setting: Setting, seed: int, found: Found) -> None:
    """F G^T: exact rank, and two columns too many at several scales of the start."""
    r, (data, start) = len(SIGMAS), child_seeds(seed + 10_000, 2)
    A, M = gaussian_problem(setting, r, data, definite=False)
    e = run(A, M, r, start, setting.exact).history["error"]
    found.curves["asymmetric, k = r"] = e
    found.numbers["asymmetric-exact-iterations"] = first_below(e, 1e-9)
    found.numbers["exact rate"] = decay_rate(e)[0]

    k = r + 2
    A, M = gaussian_problem(setting, k, data, definite=False)
    predicted = rate_from_start(M, *_start(setting.n, k, start))
    measured, fits, ratios = [], [], []
    gd_iterations = math.inf
    for alpha in setting.scales:
        budget = min(setting.most, round(setting.patience / alpha**2) + 300)
        result = run(A, M, k, start, budget, init_scale=alpha)
        e = result.history["error"]
        rate, fit = decay_rate(e)
        measured.append(rate)
        fits.append(fit)
        theory = STEP * alpha**2 * predicted
        ratios.append(rate / theory)
        found.curves[f"start {alpha:g}"] = e
        end = min(first_below(e, FLOOR), len(e) - 1)
        middle, t = int((DROPPED + 1) / 2 * end), np.arange(len(e))
        line = e[middle] * np.exp(-theory * (t - middle))
        found.curves[f"theory, start {alpha:g}"] = np.where(t < DROPPED * end, math.nan, line)
        found.rates.setdefault("two factors", []).append((alpha, rate))
        found.rates.setdefault("theory", []).append((alpha, theory))
        if alpha == 0.05:
            gd_iterations = first_below(e, 1e-9)
            if not math.isfinite(gd_iterations):  # a lower bound
                gd_iterations = float(len(e) - 1)
    found.numbers["asymmetric-exponent"] = slope_fit(setting.scales, measured)[0]
    found.numbers["asymmetric-log-linear"] = min(fits)
    found.numbers["asymmetric-constant"] = float(np.exp(np.mean(np.log(ratios))))

    rates = []
    for alpha in setting.rebalanced_scales:
        result = run(A, M, k, start, setting.exact * 2, init_scale=alpha, method="rebalanced")
        e = result.history["error"]
        rates.append(decay_rate(e)[0])
        found.rates.setdefault("rebalanced", []).append((alpha, rates[-1]))
        found.rates.setdefault("two factors, k = r", []).append((alpha, found.numbers["exact rate"]))
        if alpha == 0.05:
            found.curves["rebalanced, start 0.05"] = e
            found.numbers["rebalanced-against-gd"] = gd_iterations / first_below(e, 1e-9)
    found.numbers["rebalanced-spread"] = max(rates) / min(rates)
    found.numbers["rebalanced-of-exact"] = min(rates) / found.numbers["exact rate"]
    found.numbers["rebalanced-product"] = _change_of_product(A, M, k, start)


def _change_of_product(A: Array, M: Array, k: int, seed: int) -> float:
    """Relative change of F G^T by the modified step alone: an update of vanishing length after it."""
    before = run(A, M, k, seed, 40)
    after = run(A, M, k, seed, 1, x0=before.factors, method="rebalanced", switch_iter=0, step_size=1e-300)
    return float(np.linalg.norm(after.x - before.x) / np.linalg.norm(before.x))


def one_seed(work: tuple[Setting, int]) -> Found:
    """Everything that is measured for one seed."""
    setting, seed = work
    found = Found()
    symmetric_regimes(setting, seed, found)
    asymmetric_regimes(setting, seed, found)
    return found


# ------------------------------------------------------------------------------------------------------------ reporting


def measure(ctx: Context, setting: Setting, seeds: list[int], share: float) -> None:
    """Run all seeds and report; `share` of the study's progress is this part's."""
    found = []
    for i, seed in enumerate(seeds):
        found.append(ctx.timed("rates", lambda: one_seed((setting, seed))))  # noqa: B023 - called at once
        ctx.progress(share * (i + 1) / len(seeds))
    for claim in [c for c in ctx.claims if c in found[0].numbers]:
        values = [f.numbers[claim] for f in found]
        if all(map(math.isfinite, values)):
            value, span = median_interval(values)
            ctx.measured(claim, value, span)
        else:
            ctx.measured(claim, float(np.median(values)) if np.isfinite(np.median(values)) else math.nan,
                         reason="an error level was not reached within the budget.")  # fmt: skip
    factor = float(np.median([f.numbers["cure by the law"] for f in found]))
    ctx.note(
        f"cure: a lower bound, since one factor did not reach 1e-6 within its {setting.symmetric} updates; by the law "
        f"error = c / T that it follows, the factor is {factor:.0f}."
    )
    for seed, f in zip(seeds, found, strict=True):
        for method, e in f.curves.items():
            group = "two factors" if "start" in method else "one factor"
            if group == "two factors" and seed != seeds[0]:  # they end at different iterations: a median would jump
                continue
            ctx.series(group, _thinned(e, log=group == "one factor"), method=method, seed=seed)
        for method, pairs in f.rates.items():
            ctx.series("rates", pairs, method=method, seed=seed)


def _thinned(values: Array, *, log: bool, points: int = 160) -> list[tuple[float, float]]:
    """Some points of a curve, evenly in the iterations or in their logarithms, above rounding."""
    last = max(2, int(min(first_below(values, FLOOR), len(values) - 1)))
    at = np.geomspace(1, last, points) if log else np.linspace(0, last, points)
    return [(float(t), float(values[t])) for t in np.unique(at.astype(int)) if t < len(values) and values[t] > FLOOR]
