"""How fast the gap to a known optimum closes, beside the rates that were proved; and how well the direction follows.

All runs of a method go side by side through the library's own iterations, one row of theta each, and stop by at
log-spaced iterations, where J and its gradient are exact.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from steepest.core.parallel import ordered_map
from steepest.core.random import child_seeds, torch_generator
from steepest.policy import harpg_ascent, igt_ascent
from steepest.policy._ascent import State, StepRule, harpg_step, igt_step
from steepest.studies.context import Context
from steepest.studies.harpg_problems import Bandit, Problem, Regulator, Tracking

__all__ = ["Curves", "Run", "ascend", "crossing", "rates", "slope", "transport"]

Array = NDArray[np.float64]
DECADES = 1.5  # of trajectories, at the end, that slopes are fitted to
PG_STEPS = (1e-3, 3e-3, 1e-2, 3e-2, 1e-1)
RULES = {  # step, momentum, exponent of eta, exponent of the step, normalized, transported
    "N-PG-IGT": StepRule(0.1, 1.0, 0.8, 1.0, True, True),
    "N-HARPG": StepRule(0.1, 1.0, 1.0, 1.0, True),
    "HARPG": StepRule(0.006, 1.0, 1.0, 0.5, False),
    "momentum": StepRule(0.1, 1.0, 2 / 3, 1.0, True),
    "policy gradient": StepRule(1.0, 1.0, 0.0, 2 / 3, False),
}
"""Schedules of the paper; the constants of the first three were fixed before anything was measured."""
LONGER = (0.5, 2.0)  # other steps for N-PG-IGT, where it is tuned as the policy gradient is
PROVED = {"N-PG-IGT": -0.4, "N-HARPG": -0.5, "HARPG": -0.5, "policy gradient": -1 / 3}


@dataclass(frozen=True)
class Run:
    """One method on one problem: what another process needs to do it."""

    method: str
    problem: Problem
    iterations: int
    runs: int
    seed: int
    steps: tuple[float, ...] = (1.0,)  # factors of the step, for methods that do not normalize
    longer: float = 1.0  # factor of the step for those that do


@dataclass(frozen=True)
class Curves:
    """At some iterations: trajectories used so far, and of every run the gap and the error of the direction.

    Of several steps those with the smallest mean gap at the end, which favors the method.
    """

    trajectories: Array  # (K,)
    gap: Array  # (K, runs)
    error: Array  # (K, runs): |d_t - grad J(theta_t)|^2
    variance: float  # of one trajectory's gradient at the end, mean over the runs
    step: float = 1.0


def ascend(run: Run) -> Curves:
    """Do a run from theta = 0."""
    problem, generator = run.problem, torch_generator(run.seed)
    rule = replace(RULES[run.method], step=RULES[run.method].step * run.longer)
    factor = torch.tensor(run.steps, dtype=torch.float64).repeat_interleave(run.runs).unsqueeze(1)
    state = State.start(torch.zeros(len(factor), problem.p, dtype=torch.float64))
    recorded = set(np.geomspace(1, run.iterations, 60).round().astype(int).tolist())
    at, gaps, errors = [], [], []

    def held(point: Tensor, x: Tensor) -> Tensor:
        """Let a run whose step was too large stand still, far away: it must not end the others."""
        if rule.normalize:
            return x
        usable = (point.abs() < 1e3) & (x.abs() < 1e9)
        return torch.where(usable.all(1, keepdim=True), x, 0.0)

    def gradient(point: Tensor) -> Tensor:
        return held(point, factor * problem.gradient(point, generator))

    def hvp(point: Tensor, u: Tensor) -> Tensor:
        return held(point, problem.hvp(point, u, generator))

    def q() -> Tensor:
        return torch.rand(len(factor), 1, generator=generator, dtype=torch.float64)

    for t in range(run.iterations):
        before, hessian = state, "HARPG" in run.method
        state, _ = harpg_step(state, rule, gradient, hvp, q) if hessian else igt_step(state, rule, gradient)
        if t + 1 in recorded:
            at.append(2 * t + 1 if hessian else t + 1)
            gaps.append(problem.gap(state.theta))
            errors.append((state.direction - factor * problem.value(before.theta)[1]).square().sum(1))
    gap, error = (torch.stack(x).unflatten(1, (len(run.steps), run.runs)) for x in (gaps, errors))
    best = int(gap[-1].mean(1).argmin())
    theta = state.theta.unflatten(0, (len(run.steps), run.runs))[best].repeat_interleave(max(1, 4000 // run.runs), 0)
    noise = problem.gradient(theta, generator) - problem.value(theta)[1]
    variance = float(noise.square().sum(1).mean())
    return Curves(np.array(at, dtype=float), gap[:, best].numpy(), error[:, best].numpy(), variance, run.steps[best])


# ------------------------------------------------------------------------------------------------------------- slopes


@dataclass(frozen=True)
class Slope:
    """Exponent of a curve's end in the number of trajectories, and what resampling the runs makes of it."""

    value: float
    resampled: Array

    @property
    def interval(self) -> tuple[float, float]:
        """Holds 95 %."""
        return _interval(self.resampled)

    def minus(self, other: Slope) -> tuple[float, tuple[float, float]]:
        """The difference of two slopes and its interval."""
        return self.value - other.value, _interval(self.resampled - other.resampled)


def _interval(values: Array) -> tuple[float, float]:
    low, high = np.quantile(values, [0.025, 0.975], method="nearest")  # values may be infinite
    return float(low), float(high)


def _draws(runs: int, seed: int, n: int = 1000) -> NDArray[np.int64]:
    return np.random.default_rng(seed).integers(runs, size=(n, runs))


def slope(trajectories: Array, values: Array, *, median: bool = False, seed: int = 0) -> Slope:
    """Fit the logarithm of the mean over runs by least squares, over the last decade and a half.

    Parameters
    ----------
    trajectories : ndarray of shape (K,)
    values : ndarray of shape (K, runs)
        Runs that are infinite there are left out.
    median : bool
        Of the runs, in place of their mean.

    Examples
    --------
    >>> n = np.array([1.0, 100.0, 1000.0, 1e4])
    >>> round(slope(n, np.stack([n**-0.5, 3 * n**-0.5], 1)).value, 6)
    -0.5
    """
    end = trajectories >= trajectories[-1] / 10**DECADES
    x, y = np.log(trajectories[end]), values[end][:, np.isfinite(values[end]).all(axis=0)]
    x = (x - x.mean()) / ((x - x.mean()) ** 2).sum()
    middle = np.median if median else np.mean
    drawn = y[:, _draws(y.shape[1], seed)]  # (K, resamples, runs)
    return Slope(float(x @ np.log(middle(y, axis=1))), x @ np.log(middle(drawn, axis=2)))


def crossing(curve: Curves, level: Array) -> Array:
    """Trajectories after which the mean gap stays at most `level`, one for each column of runs; inf if it never is.

    Both are resampled with the same number of columns: `curve.gap` is (K, runs), `level` (n,), and the result (n,).
    """
    drawn = curve.gap[:, _draws(curve.gap.shape[1], 1, len(level))].mean(axis=2)  # (K, n)
    above = drawn > level
    last = np.where(above.any(axis=0), len(above) - 1 - above[::-1].argmax(axis=0), -1)
    padded = np.append(curve.trajectories, math.inf)
    return np.asarray(padded[last + 1])


# --------------------------------------------------------------------------------------------------------- measurement


def rates(ctx: Context, n_workers: int) -> None:
    """Slopes, gaps and errors on the regulator, and slopes on the two problems with a parabola for J."""
    T = ctx.pick(tiny=60, quick=4000, full=30_000, paper=0)
    runs = ctx.pick(tiny=6, quick=32, full=64, paper=0)
    horizon = math.ceil(math.log(T + 1) / 0.3)
    seeds = iter(child_seeds(ctx.seed, 13))
    plain = min(runs, 32)  # of each of five steps
    regulator = Regulator(horizon)
    work = {
        "policy gradient": Run("policy gradient", regulator, T, plain, next(seeds), PG_STEPS),
        **{m: Run(m, regulator, T, runs, next(seeds)) for m in ("N-HARPG", "HARPG", "N-PG-IGT")},
    }
    if ctx.wants("bandit-igt"):
        work["momentum"] = Run("momentum", regulator, T, runs, next(seeds))
        for x in LONGER:
            work[f"longer {x:g}"] = Run("N-PG-IGT", regulator, T, 16, next(seeds), longer=x)
        for name, problem in {"bandit": Bandit(), "tracking": Tracking(horizon)}.items():
            for m in SHOWN:
                steps = PG_STEPS if m == "policy gradient" else (1.0,)
                work[f"{name} {m}"] = Run(m, problem, min(T, 10_000), plain, next(seeds), steps)
    backend = "serial" if n_workers == 1 else "processes"
    curves = ordered_map(ascend, work.values(), backend=backend, n_workers=n_workers,  # type: ignore[arg-type]
                         progress=lambda done: ctx.progress(0.35 * done))  # fmt: skip
    found = dict(zip(work, curves, strict=True))
    pg = found["policy gradient"]
    ctx.note(f"regulator: horizon {horizon}, {runs} runs, {plain} for the policy gradient, whose step is the best of "
             f"{', '.join(f'{x:g}' for x in PG_STEPS)}, chosen by its result: {pg.step:g}.")  # fmt: skip
    _report_slopes(ctx, found)
    _report_comparison(ctx, found)
    _report_errors(ctx, found)
    for key in [name for name in found if name.startswith(("bandit", "tracking"))]:
        name, _, m = key.partition(" ")
        c = found[key]
        fit = slope(c.trajectories, c.gap)
        ctx.measured(f"{name}-{CLAIM_OF[m]}", fit.value, fit.interval)
        _draw(ctx, name, m, c, c.gap)


SHOWN = ("N-PG-IGT", "N-HARPG", "policy gradient")
CLAIM_OF = {"N-PG-IGT": "igt", "N-HARPG": "nharpg", "HARPG": "harpg", "policy gradient": "pg"}


def _report_slopes(ctx: Context, found: dict[str, Curves]) -> None:
    fits = {m: slope(c.trajectories, c.gap) for m, c in found.items()}
    for m, key in CLAIM_OF.items():
        ctx.measured(f"{key}-slope", fits[m].value, fits[m].interval)
    harpg = found["HARPG"]
    middle = slope(harpg.trajectories, harpg.gap, median=True)
    ctx.measured("harpg-slope-median", middle.value, middle.interval)
    for m in ("N-PG-IGT", "N-HARPG"):
        ctx.measured(f"{CLAIM_OF[m]}-steeper", *fits[m].minus(fits["policy gradient"]))
    for m in ("N-PG-IGT", "N-HARPG", "HARPG", "policy gradient"):
        c = found[m]
        _draw(ctx, "gap", m, c, c.gap)
        if lost := int((~np.isfinite(c.gap[-1])).sum()):
            ctx.note(f"regulator: {m}: {lost} of {c.gap.shape[1]} runs left the stable region for good; the exponent "
                     "is that of the others.")  # fmt: skip
        ctx.note(f"regulator: {m}: mean gap {c.gap[-1].mean():.2g} after {c.trajectories[-1]:.0f} trajectories.")
        line = c.gap[0].mean() * (c.trajectories / c.trajectories[0]) ** PROVED[m]
        if m != "HARPG":
            ctx.series("gap", zip(c.trajectories, line, strict=True), method=f"proved for {m}")


def _report_comparison(ctx: Context, found: dict[str, Curves]) -> None:
    """Trajectories to the policy gradient's last gap, and whether N-HARPG ever falls below N-PG-IGT."""
    igt, harpg, pg = found["N-PG-IGT"], found["N-HARPG"], found["policy gradient"]
    level = np.append(pg.gap[-1].mean(), pg.gap[-1][_draws(pg.gap.shape[1], 2, 999)].mean(axis=1))
    ctx.measured("igt-fewer", *_share(igt, pg, level))
    longer = [(x, found[f"longer {x:g}"]) for x in LONGER if f"longer {x:g}" in found]
    if longer:
        x, best = min([(1.0, igt), *longer], key=lambda pair: float(pair[1].gap[-1].mean()))
        ctx.measured("igt-fewer-tuned", *_share(best, pg, level))
        ctx.note(f"regulator: N-PG-IGT's best step of three, chosen by its result, is {0.1 * x:g}: mean gap "
                 f"{best.gap[-1].mean():.2g}.")  # fmt: skip
    factor = pg.gap[-1].mean() / igt.gap[-1].mean()
    drawn = level[1:] / igt.gap[-1][_draws(igt.gap.shape[1], 3, 999)].mean(axis=1)
    ctx.against("policy gradient", float(factor), _interval(drawn), ahead="smaller gap", behind="larger gap",
                what=f"N-PG-IGT, linear-quadratic regulator, {pg.trajectories[-1]:.0f} trajectories")  # fmt: skip
    same = np.interp(np.log(igt.trajectories[-1]), np.log(harpg.trajectories), harpg.gap.mean(axis=1))
    ctx.measured("crossing", float(same / igt.gap[-1].mean()))
    on_grid = np.exp(np.interp(np.log(igt.trajectories), np.log(harpg.trajectories), np.log(harpg.gap.mean(axis=1))))
    below = igt.trajectories[on_grid < igt.gap.mean(axis=1)]
    ctx.note(
        "N-HARPG's mean gap is below N-PG-IGT's at no number of trajectories."
        if len(below) == 0
        else f"N-HARPG's mean gap is below N-PG-IGT's at {len(below)} of {len(on_grid)} points, "
        f"{below[0]:.0f} to {below[-1]:.0f} trajectories."
    )


def _share(curve: Curves, pg: Curves, level: Array) -> tuple[float, tuple[float, float]]:
    """Trajectories to the policy gradient's last mean gap over its own; `level` has it first, then resampled."""
    mean = Curves(curve.trajectories, curve.gap.mean(axis=1, keepdims=True), curve.error, 0.0)
    used = pg.trajectories[-1]
    return float(crossing(mean, level[:1])[0] / used), _interval(crossing(curve, level) / used)


def _report_errors(ctx: Context, found: dict[str, Curves]) -> None:
    """The direction's squared error, and that at 4000 iterations over the variance of one gradient."""
    for m in ("N-PG-IGT", "N-HARPG"):
        c = found[m]
        iterations = (c.trajectories + 1) / 2 if m == "N-HARPG" else c.trajectories
        k = int(np.abs(np.log(iterations / 4000)).argmin())
        ratio = c.error[k] / c.variance
        ctx.measured(f"{CLAIM_OF[m]}-variance", float(ratio.mean()), _interval(
            ratio[_draws(len(ratio), 4)].mean(axis=1)))  # fmt: skip
        fit = slope(c.trajectories, c.error)
        ctx.measured(f"{CLAIM_OF[m]}-variance-slope", fit.value, fit.interval)
        ctx.note(f"{m}: error of the direction {c.error[k].mean():.3g} at iteration {iterations[k]:.0f}, variance of "
                 f"one trajectory's gradient {c.variance:.3g}.")  # fmt: skip
        _draw(ctx, "error", m, c, c.error)
    igt = found["N-PG-IGT"]
    ctx.series("error", [(n, igt.variance) for n in igt.trajectories], method="one gradient")
    if "momentum" in found:
        plain = found["momentum"]
        _draw(ctx, "error", "momentum", plain, plain.error)
        ctx.measured("transport-noisy", float(plain.error[-1].mean() / igt.error[-1].mean()))


def _draw(ctx: Context, series: str, method: str, c: Curves, values: Array) -> None:
    for k in range(min(16, values.shape[1])):
        ctx.series(series, zip(c.trajectories, values[:, k], strict=True), method=method, seed=k)


# ------------------------------------------------------------------------------------------------- transport, exactly


def transport(ctx: Context) -> None:
    """Without noise, on a parabola: the direction is the gradient, but for plain momentum."""
    A = torch.diag(torch.linspace(0.3, 2.0, 6, dtype=torch.float64)) + 0.1
    best = torch.linspace(-1.0, 1.0, 6, dtype=torch.float64)
    start, n = torch.zeros(6, dtype=torch.float64), ctx.pick(tiny=100, quick=300, full=300, paper=300)

    def gradient(theta: Tensor, generator: torch.Generator) -> Tensor:
        return A @ (best - theta)

    def hvp(theta: Tensor, u: Tensor, generator: torch.Generator) -> Tensor:
        return -A @ u

    igt = partial(igt_ascent, gradient, start, n_iter=n, return_all=True)
    found = {
        "transport-igt": igt(),
        "transport-harpg": harpg_ascent(gradient, hvp, start, n_iter=n, step=0.2, return_all=True),
        "transport-nharpg": harpg_ascent(gradient, hvp, start, n_iter=n, normalize=True, return_all=True),
        "transport-plain": igt(transport=False),
    }
    names = ("N-PG-IGT", "HARPG", "N-HARPG", "momentum")
    for (claim, result), name in zip(found.items(), names, strict=True):
        exact = (best - result.allvecs[:-1]) @ A
        errors = (result.directions - exact).norm(dim=1)
        ctx.measured(claim, float(errors.max()))
        if name in ("N-PG-IGT", "momentum", "N-HARPG"):
            floor = torch.clamp(errors[1:], min=1e-17)
            ctx.series("exact", zip(range(1, n), floor.tolist(), strict=True), method=name)
