"""The plain program of the study of convex networks: optima, convergence, cost, samples of patterns, seeds."""

from __future__ import annotations

import math
import time
import warnings
from functools import partial
from typing import Any

import numpy as np
import torch
from scipy.optimize import nnls

from steepest.convex import ConvexReLURegressor, enumerate_patterns, required_patterns, sample_patterns
from steepest.convex._admm import ADMM, Copies, ExactStep
from steepest.convex._program import Program
from steepest.core.errors import ConvergenceWarning, SteepestWarning
from steepest.core.extras import installed
from steepest.core.parallel import ordered_map
from steepest.studies import convex_relu_peers as peers
from steepest.studies.claim import bootstrap_interval, slope_fit
from steepest.studies.context import Context

__all__ = [
    "against_clarabel",
    "cost",
    "directions",
    "early_predictions",
    "linear_convergence",
    "one_more_pattern",
    "random_blocks",
    "seeds",
]

NO_CVXPY = "cvxpy is not installed: pip install steepest[optim]"
FLOOR, DECADES = 1e-7, 4.0
"""Distances above this share of the optimal predictions are fitted, over so many decades above it."""
PSI, XI = 0.2, 0.1
FILLED = 12
"""Iterations after which the memory of the extrapolation is full."""


def fit(X: Any, y: Any, patterns: Any, **options: Any) -> ConvexReLURegressor:
    """Fit on rows as given, without the warning of a fit that was cut short: its gap says so."""
    model = ConvexReLURegressor(patterns=patterns, fit_intercept=False, **options)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        warnings.simplefilter("ignore", SteepestWarning)
        return model.fit(X, y)


def against_clarabel(ctx: Context) -> None:
    """Objectives beside Clarabel's on the same patterns, and our own certificates."""
    sizes = ctx.pick(quick=[(12, 2), (8, 3)], full=[(n, d) for n in (8, 10, 12) for d in (2, 3)], paper=[],
                     tiny=[(8, 2)])  # fmt: skip
    found: dict[str, list[float]] = {"optimum-exact": [], "optimum-sampled": []}
    gaps = []
    for n, d in sizes:
        X, y = peers.planted(n, d, ctx.seed)
        for claim, chosen in (
            ("optimum-exact", enumerate_patterns(X)),
            ("optimum-sampled", sample_patterns(np.column_stack([X, np.ones(n)]), 20, random_state=ctx.seed)),
        ):
            rows = X if claim == "optimum-exact" else np.column_stack([X, np.ones(n)])
            for beta in (1e-2, 1e-1):
                model = fit(rows, y, chosen, beta=beta, tol=1e-7)
                gaps.append(model.duality_gap_ / model.objective_)
                if installed("cvxpy"):
                    best = peers.clarabel(rows, y, chosen, beta, tol=1e-10)[0]
                    found[claim].append(abs(model.objective_ - best) / best)
    for claim, differences in found.items():
        if differences:
            ctx.measured(claim, max(differences))
        else:
            ctx.skipped(claim, NO_CVXPY)
    ctx.measured("optimum-gap", max(gaps))


def linear_convergence(ctx: Context) -> None:
    """Distance of ADMM's predictions to the optimal ones; the whole method beside it."""
    X, y = peers.planted(10, 2, ctx.seed)
    patterns = enumerate_patterns(X)
    p = peers.program(X, y, patterns, 0.1)
    if installed("cvxpy"):
        f = torch.as_tensor(peers.clarabel(X, y, patterns, 0.1, tol=1e-11)[1])
    else:
        f = p.forward(peers.optimum(p, 1e-12)[2])
        ctx.note("cvxpy is not here: the optimal predictions of the figure are those of our own interior points.")

    def distance(z: torch.Tensor) -> float:
        return float((p.forward(z) - f).norm() / f.norm())

    for name, plain in (("ADMM, plain", True), ("ADMM, extrapolated", False)):
        steps = ctx.pick(quick=8000, full=16000, paper=0, tiny=3000) if plain else 1000
        path = np.array(peers.admm(p, steps, distance, plain=plain, rho=0.1))
        ctx.series("linear", [(k + 1, max(path[k], 1e-12)) for k in _thinned(len(path))], method=name, seed=ctx.seed)
        if plain:
            rate, fit_quality, decades = tail(path)
            ctx.measured("linear-fit", fit_quality)
            ctx.measured("linear-decades", decades)
            ctx.measured("linear-rate", rate)


def tail(path: np.ndarray) -> tuple[float, float, float]:
    """Factor per iteration, R^2 and decades of the last straight part of log distances, above the floor."""
    above = np.flatnonzero(path > FLOOR)
    end = int(above[-1]) + 1
    low = path[end - 1]
    start = int(np.flatnonzero(path[:end] > low * 10**DECADES)[-1]) + 1 if path[0] > low * 10**DECADES else 0
    k, values = np.arange(start, end), np.log(path[start:end])
    slope, intercept = np.polyfit(k, values, 1)
    rest = values - (slope * k + intercept)
    decades = (values[0] - values[-1]) / math.log(10)
    return float(np.exp(slope)), float(1 - rest.var() / values.var()), float(decades)


def early_predictions(ctx: Context) -> None:
    """Test accuracy along ADMM alone, against that of the optimum."""
    for claim, data in (("early-breast-cancer", "breast_cancer"), ("early-digits", "digits")):
        X, y = ctx.data(data)
        if data == "digits":
            X, y = X[(y == 2) | (y == 8)], y[(y == 2) | (y == 8)] == 8
        differences = []
        beta = _validated_beta(ctx, X, np.where(y, 1.0, -1.0))
        for seed in ctx.seeds:
            rows, target, test, truth = peers.split(X, np.where(y, 1.0, -1.0), seed)
            if ctx.scale == "tiny":
                rows, target = rows[:60], target[:60]
            patterns = _sampled(ctx, rows, seed)
            path = peers.admm(peers.program(rows, target, patterns, beta), 40, partial(_accuracy, test, truth))
            final = _optimal_accuracy(rows, target, patterns, beta, test, truth)
            differences.append(abs(path[19] - final))
            name = data.replace("_", " ")
            ctx.series("early", [(k + 1, v) for k, v in enumerate(path)], method=name, seed=seed)
            ctx.series("early", [(1, final), (40, final)], method=f"{name}, optimum", seed=seed)
        ctx.measured(claim, float(np.median(differences)), bootstrap_interval(differences, statistic=np.median))
        ctx.note(f"{data.replace('_', ' ')}: validation chose beta = {beta:g}.")


def _validated_beta(ctx: Context, X: np.ndarray, y: np.ndarray) -> float:
    """The penalty whose optimum is right most often on a quarter of the training rows, the smaller of equal ones."""
    rows, target, *_ = peers.split(X, y, ctx.seed)
    rows, target = (a[:60] if ctx.scale == "tiny" else a for a in (rows, target))
    cut = len(rows) // 4
    patterns = _sampled(ctx, rows[cut:], ctx.seed)
    return max((0.1, 1.0), key=lambda beta: _optimal_accuracy(rows[cut:], target[cut:], patterns, beta, rows[:cut],
                                                              target[:cut]))  # fmt: skip


def _sampled(ctx: Context, rows: np.ndarray, seed: int) -> np.ndarray:
    return sample_patterns(rows, ctx.pick(quick=20, full=50, paper=0, tiny=8), random_state=seed)


def _optimal_accuracy(
    rows: np.ndarray, y: np.ndarray, patterns: np.ndarray, beta: float, test: np.ndarray, truth: np.ndarray
) -> float:
    best = fit(rows, y, patterns, beta=beta, tol=1e-2)
    return _accuracy(test, truth, torch.as_tensor(np.stack([best.v_, best.w_])))


def _accuracy(test: np.ndarray, truth: np.ndarray, u: torch.Tensor) -> float:
    """Share of right signs of the network with these vectors."""
    unseen = torch.as_tensor(test)
    f = (unseen @ u[0].T).clamp(min=0).sum(1) - (unseen @ u[1].T).clamp(min=0).sum(1)
    return float(np.mean((f.numpy() > 0) == (truth > 0)))


def cost(ctx: Context) -> None:
    """CPU time of an iteration, and of a whole fit beside Clarabel's."""
    ends = ctx.pick(quick=(100, 1600, 9), full=(100, 1600, 9), paper=(1, 1, 1), tiny=(50, 200, 3))
    sizes, counts = ([int(k) for k in np.geomspace(a, b, ends[2]).round()] for a, b in (ends[:2], (50, 800)))
    repeats = ctx.pick(quick=8, full=30, paper=1, tiny=3)
    seconds = [_seconds(n, 50, repeats) for n in sizes]
    ctx.measured("cost-samples", *slope_fit(sizes, seconds))
    ctx.series("cost", [(n, 1e3 * s) for n, s in zip(sizes, seconds, strict=True)], method="measured")
    ctx.series("cost", [(n, 1e3 * seconds[-1] * n / sizes[-1]) for n in sizes], method="theory, n d P")
    ctx.measured("cost-patterns", *slope_fit(counts, [_seconds(400, P, repeats) for P in counts]))
    if not ctx.wants("cost-cvxpy"):
        return
    if not installed("cvxpy"):
        ctx.skipped("cost-cvxpy", NO_CVXPY)
        return
    n = ctx.pick(quick=400, full=400, paper=400, tiny=30)
    X, y = peers.planted(n, 20, ctx.seed)
    patterns = sample_patterns(X, 50, random_state=ctx.seed)
    start = time.process_time()
    fit(X, y, patterns, beta=1.0, tol=1e-3)
    ours = time.process_time() - start
    ctx.measured("cost-cvxpy", peers.clarabel(X, y, patterns, 1.0)[2] / ours)


def _seconds(n: int, P: int, repeats: int) -> float:
    """Fastest iteration; what depends on rho alone is factored before."""
    X, y = peers.planted(n, 20, 0)
    p = peers.program(X, y, np.random.default_rng(0).random((P, n)) < 0.5, 1.0)
    solver = ADMM(p, ExactStep(p), 1.0, Copies.zero(p, 1.0))
    taken = []
    for _ in range(FILLED + repeats):
        solver._iteration = 0  # no new rho, so no new factors
        start = time.process_time()
        solver.step()
        taken.append(time.process_time() - start)
    return min(taken[FILLED:])


def random_blocks(ctx: Context) -> None:
    """Block descent alone on cross-entropy, in distances to the optimum."""
    X, y = ctx.data("breast_cancer")
    P, steps = ctx.pick(quick=(10, 200), full=(10, 200), paper=(0, 0), tiny=(4, 20))
    worst = []
    for seed in ctx.seeds[: ctx.pick(quick=1, full=3, paper=1)]:
        rows, target, *_ = peers.split(X, 2.0 * y - 1, seed)
        if ctx.scale == "tiny":
            rows, target = rows[:60], target[:60]
        patterns = sample_patterns(rows, P, random_state=seed)
        p = peers.program(rows, target, patterns, 1.0, "logistic")
        best = peers.optimum(p, 1e-4)[1]
        if installed("cvxpy") and ctx.scale == "full" and seed == ctx.seeds[0]:
            known = peers.clarabel(rows, target, patterns, 1.0, "logistic")[0]
            ctx.note(f"cross-entropy: our lower bound is {(known - best) / known:.1e} below Clarabel's optimum.")
        reached: list[torch.Tensor] = []

        def told(u: torch.Tensor, p: Program = p, reached: list[torch.Tensor] = reached) -> float:
            reached[:] = [u]
            return p.network_objective(u)

        path = [value / best for value in peers.admm(p, steps, told, seed=seed)]
        worst.append(p.objective(p.feasible(reached[0])) / best - 1)
        ctx.series("rbcd", [(k + 1, v) for k, v in enumerate(path)], method="random blocks", seed=seed)
    ctx.measured("rbcd", max(worst))


def directions(ctx: Context) -> None:
    """The sampled program: violations of its dual by fresh directions, and its objective."""
    n, d = 20, 3
    X, y = peers.planted(n, d, ctx.seed)
    N = required_patterns(n, PSI, XI)
    shares = []
    for seed in range(ctx.pick(quick=2, full=50, paper=0, tiny=1)):
        model = fit(X, y, "sample", solver="scp", n_patterns=N, beta=0.1, tol=1e-2, max_iter=1000, random_state=seed)
        shares.append(model.dual_violation_)
    ctx.measured("scp-violation", float(np.mean(shares)), bootstrap_interval(shares))
    ctx.measured("scp-exceeded", float(np.mean(np.array(shares) > PSI)))
    best = fit(X, y, "exact", beta=0.1, tol=1e-3).objective_
    close = fit(X, y, "sample", solver="scp", n_patterns=20 * n, beta=0.1, tol=1e-2, max_iter=3000, random_state=0)
    ctx.measured("scp-objective", close.objective_ / best)
    ctx.note(f"sampled directions: N = {N} for psi = {PSI}, xi = {XI}; {len(shares)} samples, 10,000 fresh directions.")


def one_more_pattern(ctx: Context) -> None:
    """How often the pattern of one more direction lowers the optimum by more than 1e-6."""
    repeats = ctx.pick(quick=12, full=200, paper=0, tiny=3)
    counts = (10, 40, 160)
    jobs = [(P, 1000 * k + P) for P in counts for k in range(repeats)]
    how: Any = ctx.pick(quick="serial", full="processes", paper="serial")
    lowered = np.reshape(ordered_map(lowers, jobs, backend=how, n_workers=2), (len(counts), repeats))
    excess = []
    for P, row in zip(counts, lowered, strict=True):
        bound = min(1.0, 11 / (P + 1))
        deviation = max(math.sqrt(bound * (1 - bound) / repeats), 1e-9)
        excess.append((row.mean() - bound) / deviation)
    ctx.series("patterns", list(zip(counts, lowered.mean(1), strict=True)), method="measured")
    ctx.series("patterns", [(P, min(1.0, 11 / (P + 1))) for P in counts], method="theory")
    ctx.measured("pattern-quality", max(excess))
    ctx.note(f"one more pattern: {repeats} draws for each P; shares {', '.join(f'{v:.3f}' for v in lowered.mean(1))}.")


def lowers(job: tuple[int, int]) -> bool:
    """Whether a fresh pattern lowers the optimum of P drawn ones; drawn with repetition, as theory has it."""
    P, seed = job
    rng = np.random.default_rng(seed)
    X, y = peers.planted(10, 5, seed)
    drawn = (X @ rng.standard_normal((5, P + 1)) >= 0).T
    fresh, old = drawn[-1], np.unique(drawn[:-1], axis=0)
    if (old == fresh).all(1).any():
        return False
    p = peers.program(X, y, old, 0.1)
    before, _, _, nu = peers.optimum(p, 1e-8)
    residual, rows = nu.numpy(), (2.0 * fresh - 1)[:, None] * X
    pulls = [nnls(rows.T, -sign * (fresh * residual) @ X)[1] for sign in (1.0, -1.0)]
    if max(pulls) <= 0.1 * (1 + 1e-7):
        return False  # the old dual point stays feasible
    return before - peers.optimum(peers.program(X, y, np.vstack([old, fresh]), 0.1), 1e-8)[0] > 1e-6


def seeds(ctx: Context) -> None:
    """Twenty networks of the same width from random starts, against one convex optimum."""
    n, d, beta = ctx.pick(quick=12, full=14, paper=0), 3, 0.1
    X, y = peers.planted(n, d, ctx.seed)
    patterns = enumerate_patterns(X)
    best = fit(X, y, patterns, beta=beta, tol=1e-7)
    width = len(best.output_coef_)
    steps, count = ctx.pick(quick=(1500, 20), full=(5000, 20), paper=(0, 0), tiny=(100, 4))
    rows, target = torch.as_tensor(X), torch.as_tensor(y)
    reached = {}
    for name, kind, rates in (("Adam", "adam", (0.01, 0.03)), ("gradient descent", "sgd", (0.003, 0.01))):
        found = []
        for rate in rates:
            W, a = peers.adam_networks(X, y, width, list(range(count)), beta=beta, rate=rate, steps=steps,
                                       optimizer=kind)  # fmt: skip
            values = peers.network_objective(W, a, rows, target, beta).numpy()
            found.append(np.nan_to_num(values, nan=np.inf))
        reached[name] = min(found, key=lambda v: float(np.median(v)))
        for seed, value in enumerate(reached[name]):
            ctx.series("seeds", [value / best.objective_], method=name, seed=seed)
    ours = []
    for seed in range(ctx.pick(quick=2, full=20, paper=0, tiny=2)):
        rng = np.random.default_rng(seed)
        order = rng.permutation(n)
        model = fit(X[order], y[order], patterns[:, order], beta=beta, tol=1e-8, rho=10 ** rng.uniform(-1, 1),
                    random_state=seed)  # fmt: skip
        ours.append(model.objective_)
        ctx.series("seeds", [model.objective_ / best.objective_], method="convex program", seed=seed)
    ctx.measured("seeds-best", best.objective_ / min(v.min() for v in reached.values()))
    ctx.measured("seeds-spread-adam", reached["Adam"].max() / reached["Adam"].min())
    ctx.measured("seeds-spread-sgd", reached["gradient descent"].max() / reached["gradient descent"].min())
    ctx.measured("seeds-spread-ours", (max(ours) - min(ours)) / min(ours))
    ctx.note(f"seeds: networks of {width} neurons, as many as the convex optimum has; {count} seeds, {steps} steps.")


def _thinned(n: int) -> list[int]:
    return sorted({int(k) for k in np.concatenate([np.arange(min(n, 100)), np.linspace(0, n - 1, 200)])})
