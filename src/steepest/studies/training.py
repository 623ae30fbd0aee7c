"""How optimizers are compared: every contender gets the same trials, steps, data order, schedule and clipping.

A `Task` is what is trained, a `Contender` an optimizer with its search space. `compare` tunes every contender on half
A of the validation data with seed 0 and reports on half B with fresh seeds; `speedup` turns runs of several lengths
into the factor by which fewer steps reach the baseline's end value. The value of a run is always the one at the end of
a completed schedule.

The tuning of one contender spends exactly `Budget.n_trials` runs:

1. learning rates, log-spaced around the recommended one (half of the trials, the other settings at their first value);
2. if the best lies at an edge: the grid is centred on it, and the new rates are tried, once;
3. the other values of the search space, one at a time, in the order of the space;
4. what is left refines the learning rate.

Where a contender names hyperparameters as `first` and there are 6 trials or more, their values come before step 1, at
the recommended rate: a rate chosen for the wrong momentum hides the right one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise
from typing import Any, Literal, Protocol

import numpy as np

from steepest.core.errors import at_least, check, value_error
from steepest.studies.claim import bootstrap_interval
from steepest.studies.task import (
    Contender,
    Curvature,
    Run,
    Setting,
    Split,
    Task,
    cross_entropy,
    decay_groups,
    estimate_curvature,
    fresh_model,
    schedule,
    train,
)

__all__ = [
    "Budget",
    "Comparison",
    "Contender",
    "Curvature",
    "Recorder",
    "Run",
    "Setting",
    "Split",
    "Task",
    "Tuned",
    "compare",
    "cross_entropy",
    "decay_groups",
    "estimate_curvature",
    "fresh_model",
    "learning_rates",
    "schedule",
    "search",
    "speedup",
    "steps_to_reach",
    "train",
    "tune",
]


class Recorder(Protocol):
    """What is used of a study's `Context`."""

    seed: int

    def timed(self, label: str, fn: Callable[[], Any]) -> Any:
        """Call `fn`, keep its seconds."""

    def series(self, name: str, values: Any, *, method: str | None = None, seed: int | None = None) -> None:
        """Keep a series for the figures."""

    def progress(self, fraction: float, **numbers: Any) -> None:
        """Show how far the study is."""

    def note(self, text: str) -> None:
        """Put a sentence into the result."""


@dataclass(frozen=True)
class Budget:
    """What every contender may spend: trials, steps a run, and the number of fresh seeds."""

    n_trials: int
    steps: int
    n_seeds: int

    def __post_init__(self) -> None:
        check("n_trials", self.n_trials, at_least(2, integer=True))
        check("steps", self.steps, at_least(1, integer=True))
        check("n_seeds", self.n_seeds, at_least(1, integer=True))

    def cut_from(self, wanted: Budget) -> str:
        """Say what is less here than in `wanted`; empty when nothing is."""
        pairs = [
            (self.n_seeds, wanted.n_seeds, "seeds"),
            (self.n_trials, wanted.n_trials, "trials per optimizer"),
            (self.steps, wanted.steps, "steps"),
        ]
        return ", ".join(f"{now} {what} instead of {full}" for now, full, what in pairs if now < full)


@dataclass(frozen=True)
class Tuned:
    """The trials of one contender, the best setting, and remarks (edge, recentred grid, values not tried)."""

    contender: Contender
    trials: list[Run]
    setting: Setting
    remarks: list[str]


def learning_rates(centre: float, ratio: float, n: int) -> list[float]:
    """`n` learning rates, log-spaced with `ratio`, symmetric around `centre`.

    Examples
    --------
    >>> [round(lr, 6) for lr in learning_rates(1e-2, 10.0, 3)]
    [0.001, 0.01, 0.1]
    """
    return [centre * ratio ** (i - (n - 1) / 2) for i in range(n)]


def tune(
    task: Task,
    contender: Contender,
    *,
    n_trials: int,
    steps: int,
    seed: int = 0,
    on_trial: Callable[[Run], None] | None = None,
    **options: Any,
) -> Tuned:
    """Search with runs of `steps` steps on half A and the tuning seed; `options` go to `train`."""

    def attempt(setting: Setting) -> Run:
        run = train(task, contender, setting, steps=steps, seed=seed, split="tune", **options)
        if on_trial is not None:
            on_trial(run)
        return run

    return search(contender, attempt, n_trials=n_trials, better=task.better)


def search(
    contender: Contender,
    attempt: Callable[[Setting], Run],
    *,
    n_trials: int,
    better: Literal["lower", "higher"] = "lower",
) -> Tuned:
    """Spend `n_trials` calls of `attempt` on the contender's space, as the module says, and keep the best setting."""
    trials: list[Run] = []
    remarks: list[str] = []

    def visit(setting: Setting) -> None:
        trials.append(attempt(setting))

    def best() -> Setting:  # the first of equals
        order = min if better == "lower" else max
        return order(trials, key=lambda run: run.value).setting

    base, ratio = contender.recommended(), contender.ratio
    first = contender.first if n_trials >= 6 else ()
    if first:
        visit(base)
        for name in first:
            for value in contender.space[name][1:]:
                visit(best() | {name: value})
        base = best()
    grid = learning_rates(contender.lr, ratio, max(2, n_trials // 2))
    for lr in grid:
        if base | {"lr": lr} not in [run.setting for run in trials]:
            visit(base | {"lr": lr})
    top = best()["lr"]
    if top in (grid[0], grid[-1]) and len(trials) < n_trials:
        outward = 1 if top == grid[-1] else -1
        for i in range(1, min(len(grid) // 2, n_trials - len(trials)) + 1):
            visit(base | {"lr": top * ratio ** (outward * i)})
        remarks.append(f"best learning rate at an edge, grid centred anew on {top:.2g}")
    rates = sorted(run.setting["lr"] for run in trials)
    if best()["lr"] in (rates[0], rates[-1]):
        remarks.append(f"best learning rate {best()['lr']:.2g} lies at the edge of those tried")
    untried = []
    for name, values in contender.space.items():
        for value in values[1:] if name not in first else ():
            if len(trials) < n_trials:
                visit(best() | {name: value})
            else:
                untried.append(f"{name}={value}")
    if untried:
        remarks.append("not tried within the budget: " + ", ".join(untried))
    middle = best()["lr"]
    for exponent in _refinements(n_trials - len(trials)):
        visit(best() | {"lr": middle * ratio**exponent})
    return Tuned(contender, trials, best(), remarks)


def _refinements(n: int) -> list[float]:
    """Exponents of the ratio that fill the gaps beside a rate: +1/2, -1/2, +1/4, -1/4, 3/4, ..."""
    exponents: list[float] = []
    denominator = 2
    while len(exponents) < n:
        for numerator in range(1, denominator, 2):
            exponents += [numerator / denominator, -numerator / denominator]
        denominator *= 2
    return exponents[:n]


@dataclass
class Comparison:
    """Tuned contenders and their runs with fresh seeds on held-out data."""

    task: Task
    budget: Budget
    tuned: dict[str, Tuned] = field(default_factory=dict)
    runs: dict[str, list[Run]] = field(default_factory=dict)

    def values(self, name: str) -> list[float]:
        """End values, one per seed."""
        return [run.value for run in self.runs[name]]

    def seconds(self, name: str) -> float:
        """Median seconds of a run."""
        return float(np.median([run.seconds for run in self.runs[name]]))

    def gain(self, name: str, baseline: str) -> tuple[float, tuple[float, float]]:
        """Mean paired gain of `name` over `baseline` (positive: better), with its 90 % bootstrap interval."""
        pairs = [self.task.gain(a, b) for a, b in zip(self.values(name), self.values(baseline), strict=True)]
        return float(np.mean(pairs)), bootstrap_interval(pairs, level=0.90)

    def ratio(self, name: str, baseline: str) -> tuple[float, tuple[float, float]]:
        """Mean paired ratio of end values, with its 90 % bootstrap interval."""
        pairs = [a / b for a, b in zip(self.values(name), self.values(baseline), strict=True)]
        return float(np.mean(pairs)), bootstrap_interval(pairs, level=0.90)

    def best(self, names: Iterable[str]) -> str:
        """The contender with the best median end value."""
        return max(names, key=lambda name: self.task.gain(float(np.median(self.values(name))), 0.0))

    def table(self) -> list[str]:
        """One line per contender: setting, median and range of the end values, seconds."""
        lines = []
        for name in self.runs:
            v = self.values(name)
            chosen = ", ".join(f"{k}={_short(x)}" for k, x in self.tuned[name].setting.items())
            spread = f"{np.median(v):.4g} ({min(v):.4g} to {max(v):.4g})"
            lines.append(f"{self.task.name}: {name}: {spread}, {self.seconds(name):.1f} s a run; {chosen}")
        return lines


def compare(
    ctx: Recorder,
    task: Task,
    contenders: Sequence[Contender],
    budget: Budget,
    *,
    wanted: Budget | None = None,
    span: tuple[float, float] = (0.0, 1.0),
    series: str = "loss",
    **options: Any,
) -> Comparison:
    """Tune every contender alike, run the winners with fresh seeds, keep curves, and note what was cut.

    Parameters
    ----------
    ctx : Recorder
        The study's context. Its `seed` is the tuning seed, the fresh ones follow it.
    wanted : Budget, optional
        The protocol's own budget; what `budget` has less of is noted.
    span : (float, float)
        The part of the study's progress that this is.
    series : str
        Name of the training curves.
    options
        Go to `train`.
    """
    names = [c.name for c in contenders]
    if len(set(names)) < len(names):
        raise value_error("contenders", "of different names", names)
    if wanted is not None and (cut := budget.cut_from(wanted)):
        ctx.note(f"{task.name}: cut to keep the time: {cut} (for every optimizer alike).")
    total = len(contenders) * (budget.n_trials + budget.n_seeds)
    done = 0

    def advance(run: Run) -> None:
        nonlocal done
        done += 1
        ctx.progress(span[0] + (span[1] - span[0]) * done / total, **{run.contender: run.value})

    result = Comparison(task, budget)
    for c in contenders:
        tuned = tune(task, c, n_trials=budget.n_trials, steps=budget.steps, seed=ctx.seed, on_trial=advance, **options)
        result.tuned[c.name], result.runs[c.name] = tuned, []
        for remark in tuned.remarks:
            ctx.note(f"{task.name}: {c.name}: {remark}.")
    for seed in range(
        ctx.seed + 1, ctx.seed + 1 + budget.n_seeds
    ):  # contenders take turns, so that a busy minute of the machine hits all of them
        for c in contenders:
            again = partial(train, task, c, result.tuned[c.name].setting, steps=budget.steps, seed=seed, **options)
            run: Run = ctx.timed(c.name, again)
            result.runs[c.name].append(run)
            ctx.series(series, list(zip(run.steps, run.losses)), method=c.name, seed=seed)
            advance(run)
    for line in result.table():
        ctx.note(line)
    return result


def _short(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def steps_to_reach(target: float, steps: Sequence[float], losses: Sequence[float]) -> float:
    """Steps at which end losses of schedules of several lengths reach `target`: log loss is linear in log steps.

    Between two lengths it is interpolated (at the first crossing); beyond the longest the line through the first and
    last point goes on, and where that does not fall, the answer is infinite. Never less than the shortest length.

    Examples
    --------
    >>> round(steps_to_reach(5.0, [100, 400], [10.0, 5.0]), 6), round(steps_to_reach(2.5, [100, 400], [10.0, 5.0]), 6)
    (400.0, 1600.0)
    """
    if len(steps) < 2 or len(steps) != len(losses) or any(b <= a for a, b in pairwise(steps)):
        raise value_error("steps", "at least two increasing lengths, one for every loss", list(steps))
    if not (target > 0 and all(loss > 0 for loss in losses)):
        raise value_error("losses", "positive", [target, *losses])
    goal, n, v = math.log(target), np.log(steps), np.log(losses)
    if v[0] <= goal:
        return float(steps[0])
    for i in range(1, len(n)):
        if v[i] <= goal:
            return float(np.exp(n[i - 1] + (n[i] - n[i - 1]) * (v[i - 1] - goal) / (v[i - 1] - v[i])))
    slope = (v[-1] - v[0]) / (n[-1] - n[0])
    return float(np.exp(n[-1] + (goal - v[-1]) / slope)) if slope < 0 else math.inf


def speedup(
    task: Task,
    tuned: Tuned,
    baseline: Sequence[Run],
    full_runs: Sequence[Run],
    *,
    steps: int,
    fractions: Sequence[float] = (1 / 4, 1 / 3, 1 / 2, 2 / 3),
    on_run: Callable[[Run], None] | None = None,
    **options: Any,
) -> tuple[list[float], list[list[Run]]]:
    """``steps / (steps needed to reach the baseline's end value)`` for every seed of the baseline.

    Parameters
    ----------
    tuned : Tuned
        The method with its chosen setting, used again at every length.
    baseline, full_runs : sequences of Run
        Runs of `steps` steps of the baseline and of the method, with the same seeds.
    fractions : sequence of float
        The shorter schedules, as parts of `steps`, increasing.

    Returns
    -------
    factors : list of float
        One per seed; below 1 where the method is slower.
    runs : list of lists of Run
        Per seed, the method's runs by length, the full one last.
    """
    factors, runs = [], []
    for reference, full in zip(baseline, full_runs, strict=True):
        if reference.seed != full.seed:
            raise value_error("full_runs", "of the baseline's seeds in its order", full.seed)
        lengths = [max(2, round(f * steps)) for f in fractions]
        mine = []
        for length in lengths:
            run = train(task, tuned.contender, tuned.setting, steps=length, seed=reference.seed, **options)
            mine.append(run)
            if on_run is not None:
                on_run(run)
        mine.append(full)
        values = [run.value for run in mine]
        if all(map(math.isfinite, [reference.value, *values])):
            factors.append(steps / steps_to_reach(reference.value, [*lengths, steps], values))
        else:
            factors.append(math.nan)
        runs.append(mine)
    return factors, runs
