"""Searches of the CBO study: through the canyon, over rough functions, and in many dimensions beside other tools."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import mannwhitneyu

from steepest.core.parallel import ordered_map
from steepest.particles import consensus_hopping, minimize_cbo
from steepest.particles.test_functions import FUNCTIONS
from steepest.particles.test_functions import canyon as landscape
from steepest.studies.cbo_peers import NEVERGRAD, Course, Task, course
from steepest.studies.claim import Interval, bootstrap_interval
from steepest.studies.context import Context

__all__ = ["FUNCTIONS_HIGH", "canyon", "dimensions", "each", "nevergrad", "rough", "wilson"]

Array = NDArray[np.float64]
FUNCTIONS_HIGH = ("ackley", "rastrigin", "griewank")
SOLVED = 1e-2
LIBRARIES = ("CMA-ES", "differential evolution", "dual annealing")


def each(ctx: Context, fn: Callable[[Any], Any], items: Sequence[Any]) -> list[Any]:
    """Results in order; at full scale from two processes."""
    return ordered_map(fn, items, backend="processes" if ctx.scale in ("full", "paper") else "serial", n_workers=2)


def wilson(hits: int, n: int, z: float = 1.959964) -> Interval:
    """The 95 % interval of a share, after Wilson."""
    p, spread = hits / n, z * z / n
    half = z * math.sqrt(p * (1 - p) / n + spread / (4 * n))
    center = p + spread / 2
    return (max(0.0, (center - half) / (1 + spread)), min(1.0, (center + half) / (1 + spread)))


# ----------------------------------------------------------------------------------------------------------- the canyon


def descent(starts: Array, lr: float, steps: int) -> Array:
    """Paths (steps + 1, runs, 2) of gradient descent in the canyon."""
    x = torch.tensor(starts)
    path = [x]
    for _ in range(steps):
        x = x.detach().requires_grad_()
        x = (x - lr * torch.autograd.grad(landscape(x).sum(), x)[0]).detach()
        path.append(x)
    return torch.stack(path).numpy()


def canyon(ctx: Context) -> None:
    """Shares of runs that arrive at the minimum of the canyon, in the paper's setting."""
    runs, length = ctx.pick(tiny=(3, 40), quick=(20, 250), full=(50, 250), paper=(50, 250))
    starts = 8 + 0.5 * np.random.default_rng(ctx.seed).standard_normal((runs, 2))
    paths: dict[str, list[Array]] = {"CBO": [], "CH, s = 0.7": [], "CH, s = 0.4": []}
    for k, start in enumerate(starts):
        seed = ctx.seed + 1 + k
        swarm = minimize_cbo(
            landscape, [8.0, 8.0], init_std=0.5, n_particles=200, alpha=100.0, sigma=1.6, dt=0.01, noise="isotropic",
            maxiter=length, vectorized=True, seed=seed, return_all=True,
        )  # fmt: skip
        paths["CBO"].append(np.vstack([swarm.allvecs, swarm.consensus]))
        for s in (0.7, 0.4):
            hopped = consensus_hopping(
                landscape, start, n_particles=200, alpha=100.0, sigma=s, maxiter=length, vectorized=True, seed=seed,
                return_all=True,
            )  # fmt: skip
            paths[f"CH, s = {s}"].append(hopped.allvecs)
    descents = [descent(starts, lr, 5 * length) for lr in (1e-3, 3e-3, 1e-2, 3e-2)]
    left = [np.linalg.norm(path[-1], axis=1) for path in descents]
    best = max(zip(descents, left, strict=True), key=lambda p: (float((p[1] <= 0.5).mean()), -np.median(p[1])))[0]
    paths["gradient descent"] = list(best.transpose(1, 0, 2))
    for claim, name in (("canyon-cbo", "CBO"), ("canyon-hopping", "CH, s = 0.7"), ("canyon-narrow", "CH, s = 0.4"),
                        ("canyon-descent", "gradient descent")):  # fmt: skip
        ends = np.array([np.linalg.norm(path[-1]) for path in paths[name]])
        arrived = (ends <= 0.5).astype(float)
        ctx.measured(claim, float(arrived.mean()), bootstrap_interval(arrived, level=0.95))
        if name == "CBO":
            ctx.measured("canyon-distance", float(np.median(ends)),
                         bootstrap_interval(ends, level=0.95, statistic=np.median))  # fmt: skip
        low, high = wilson(int(arrived.sum()), runs)
        ctx.note(f"canyon, {name}: {int(arrived.sum())} of {runs} runs arrive (Wilson {low:.2f} to {high:.2f}).")
    grid = np.linspace(-4, 10, 281)
    shown = {name: np.stack([_thinned(path) for path in paths[name][:8]]) for name in paths}
    ctx.arrays("canyon", grid=grid, values=landscape(np.stack(np.meshgrid(grid, grid), -1)), cbo=shown["CBO"],
               hopping=shown["CH, s = 0.7"], narrow=shown["CH, s = 0.4"], descent=shown["gradient descent"],
               shares=np.array([np.mean([np.linalg.norm(p[-1]) <= 0.5 for p in paths[n]]) for n in paths]))  # fmt: skip


def _thinned(path: Array) -> Array:
    """At most 251 points of a path, its ends among them."""
    return path[np.unique(np.linspace(0, len(path) - 1, min(251, len(path))).astype(int))]


# ------------------------------------------------------------------------------------------------------ rough functions


def rough_run(item: tuple[str, int, int, int]) -> list[float]:
    """Best values after every iteration, until one is below 1e-2: d = 20, particles uniform in [-3, 3]."""
    name, n, seed, length = item
    torch.set_num_threads(1)

    def solved(intermediate_result: Any) -> bool:
        return bool(intermediate_result.fun < SOLVED)

    result = minimize_cbo(
        FUNCTIONS[name], np.random.default_rng(seed).uniform(-3, 3, (n, 20)), sigma=5.0, dt=0.01, tol=0.0,
        maxiter=length, vectorized=True, seed=seed, callback=solved,
    )  # fmt: skip
    return [*result.history["fun"], float(result.fun)]


def rough(ctx: Context) -> None:
    """Shares of runs that find the global minimum of rough functions."""
    seeds, length = ctx.pick(tiny=(2, 60), quick=(20, 3000), full=(40, 3000), paper=(40, 3000))
    sizes = (1000,) if ctx.scale == "quick" else (200, 400, 1000)
    cases = [*(("rastrigin", n) for n in sizes), ("ackley", 200)]
    items = [(name, n, ctx.seed + 1 + k, length) for name, n in cases for k in range(seeds)]
    found = each(ctx, rough_run, items)
    iterations = np.unique(np.geomspace(1, length, 40).astype(int))
    shares = {}
    for i, (name, n) in enumerate(cases):
        values = found[i * seeds : (i + 1) * seeds]
        hits = sum(best[-1] < SOLVED for best in values)
        share, (low, high) = hits / seeds, wilson(hits, seeds)
        if f"{name}-{n}" in ctx.claims:
            ctx.measured(f"{name}-{n}", share)  # the promise is a count of runs; the share below has the interval
        if name == "rastrigin":
            shares[n] = share
            ctx.measured(f"{name}-{n}-share", share, (low, high))
            if n == 200:
                last = [best[-1] for best in values]
                ctx.measured("rastrigin-200-median", float(np.median(last)),
                             bootstrap_interval(last, level=0.95, statistic=np.median))  # fmt: skip
        label = f"N = {n}" if name == "rastrigin" else "Ackley, N = 200"
        for k, value in enumerate((low, share, high)):  # the bar that is drawn is Wilson's interval
            ctx.series("share", [value], method=label, seed=k)
        if name == "rastrigin":
            for k, best in enumerate(values):
                steps = [(n * int(j), best[min(int(j), len(best)) - 1]) for j in iterations]
                ctx.series("rough", steps, method=label, seed=k)
        ctx.note(f"{name}, d = 20, N = {n}: {hits} of {seeds} runs below 1e-2 (Wilson {low:.2f} to {high:.2f}), "
                 f"median {np.median([best[-1] for best in values]):.2g}.")  # fmt: skip
    if len(shares) > 1:
        ctx.measured("rastrigin-rises", min(shares[400] - shares[200], shares[1000] - shares[400]))


# ------------------------------------------------------------------------------------------------------ many dimensions


def dimensions(ctx: Context, d: int, budget: int, functions: Sequence[str], seeds: int, few: int) -> None:
    """CBO beside cbx with identical parameters, and beside other tools at the same budget."""
    own = [ctx.seed + 1 + k for k in range(seeds)]
    tasks = [Task(method, f, d, budget, seed) for f in functions for method in ("CBO", "cbx") for seed in own]
    tasks += [Task(method, f, d, budget, seed) for f in functions for method in LIBRARIES for seed in own[:few]]
    found = _grouped(ctx, tasks)
    for f in functions:
        last = {method: [c.best[-1] for c in found[method, f]] for method in ("CBO", "cbx", *LIBRARIES)}
        if last["cbx"]:
            p = float(mannwhitneyu(last["CBO"], last["cbx"]).pvalue)
            off = _relative(np.array(last["CBO"]), np.array(last["cbx"]))
            ctx.measured(f"law-{f}-{d}", p)
            ctx.measured(f"median-{f}-{d}", *off)
        else:
            for claim in ("law", "median"):
                ctx.skipped(f"{claim}-{f}-{d}", "cbx is not installed: pip install cbx")
        gaps = np.array(last["CBO"]) / d
        ctx.measured(f"gap-{f}-{d}", float(np.median(gaps)),
                     bootstrap_interval(gaps, level=0.95, statistic=np.median))  # fmt: skip
        ctx.note(f"{f}, d = {d}, {budget} evaluations, median f/d and CPU seconds: " + "; ".join(
            f"{method} {np.median(values) / d:.3g}, {np.median([c.seconds for c in found[method, f]]):.2g} s"
            for method, values in last.items() if values) + ".")  # fmt: skip
        _draw(ctx, found, f, d, last)
    if d == 100 and "rastrigin" in functions:
        _against(ctx, found, budget)


def _relative(ours: Array, theirs: Array) -> tuple[float, Interval]:
    """Distance of the medians over theirs, and its bootstrap interval."""
    rng = np.random.default_rng(0)
    draws = [np.median(rng.choice(ours, len(ours))) / np.median(rng.choice(theirs, len(theirs))) for _ in range(2000)]
    low, high = np.quantile(draws, [0.025, 0.975])
    return float(np.median(ours) / np.median(theirs)), (float(low), float(high))


def _grouped(ctx: Context, tasks: list[Task]) -> dict[tuple[str, str], list[Course]]:
    """Courses by method and function; a peer that is not installed has none."""
    found: dict[tuple[str, str], list[Course]] = {(t.method, t.function): [] for t in tasks}
    for task, run in zip(tasks, each(ctx, course, tasks), strict=True):
        if run is not None:
            found[task.method, task.function].append(run)
    return found


def _draw(ctx: Context, found: Any, f: str, d: int, last: dict[str, list[float]]) -> None:
    for method, values in last.items():
        for k, value in enumerate(values):
            ctx.series(f"gap, {f}, {d}", [value / d], method=method, seed=k)
            run = found[method, f][k]
            ctx.series(f"seconds, {d}", [run.seconds], method=method, seed=1000 * FUNCTIONS_HIGH.index(f) + k)
            if f == "rastrigin":
                steps = [(e, max(b, SOLVED) / d) for e, b in zip(run.evaluations, run.best, strict=True)]
                ctx.series(f"course, {d}", steps, method=method, seed=k)


def _against(ctx: Context, found: dict[tuple[str, str], list[Course]], budget: int) -> None:
    """The best of the other tools on rastrigin; below 1e-2 it counts as solved, and no lower value as better."""
    ends = {m: float(np.median([c.best[-1] for c in found[m, "rastrigin"]])) for m in (*LIBRARIES, "cbx")
            if found[m, "rastrigin"]}  # fmt: skip
    best = min(ends, key=lambda name: ends[name])
    ours = [c.best[-1] for c in found["CBO", "rastrigin"]]
    ratios = np.array([max(ends[best], SOLVED) / max(value, SOLVED) for value in ours])
    ctx.against(best, float(np.median(ratios)), bootstrap_interval(ratios, level=0.95, statistic=np.median),
                ahead="lower value", behind="higher value",
                what=f"Rastrigin, d = 100, {budget} evaluations, defaults; below 0.01 counts as 0.01")  # fmt: skip


def nevergrad(ctx: Context, d: int, budget: int, seeds: int) -> None:
    """CBO beside Nevergrad's optimizers, whose evaluations take longer to ask for: a smaller budget for both."""
    own = [ctx.seed + 1 + k for k in range(seeds)]
    tasks = [Task(m, f, d, budget, seed) for f in FUNCTIONS_HIGH for m in ("CBO", *NEVERGRAD) for seed in own]
    found = _grouped(ctx, tasks)
    middle = partial(np.median, axis=0)
    for name in NEVERGRAD:
        claim = "beside-" + name.lower().replace(" ", "-")
        if not found[name, "ackley"]:
            ctx.skipped(claim, "Nevergrad is not installed: pip install nevergrad")
            continue
        ratios = [middle([c.best[-1] for c in found["CBO", f]]) / middle([c.best[-1] for c in found[name, f]])
                  for f in FUNCTIONS_HIGH]  # fmt: skip
        ctx.measured(claim, float(np.exp(np.mean(np.log(ratios)))))
        ctx.note(f"{name}, d = {d}, {budget} evaluations, f/d beside CBO's: " + "; ".join(
            f"{f} {middle([c.best[-1] for c in found[name, f]]) / d:.3g} and "
            f"{middle([c.best[-1] for c in found['CBO', f]]) / d:.3g}" for f in FUNCTIONS_HIGH) + ".")  # fmt: skip
