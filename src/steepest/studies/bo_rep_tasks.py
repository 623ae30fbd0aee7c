"""The comparisons of the BO-REP study: cleaning of labels, a recurrent representation, and one whose gradient explodes.

Every way gets the same oracle calls, the same number of tuning trials on a seed of its own, judged by the validation
loss, and the same linear decay of the upper step size.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from steepest.bilevel import BilevelProblem, aid_cg, bo_rep, itd, solve_lower, stocbio
from steepest.bilevel.tasks import hyper_cleaning, rnn_representation
from steepest.core.parallel import ordered_map
from steepest.studies.bo_rep_exact import calls
from steepest.studies.claim import bootstrap_interval
from steepest.studies.context import Context

__all__ = ["ABLATIONS", "RIVALS", "WAYS", "Outcome", "Trial", "Way", "cleaning", "exploding", "representation", "solve"]

BATCH = 64
EPOCHS = 5  # of the refinement, the default: 496 lower gradients


@dataclass(frozen=True)
class Way:
    """A method with its structure.

    Parameters
    ----------
    method : callable
        Of `steepest.bilevel`.
    each : float
        Oracle calls of a step.
    options : mapping
        What differs from the method's defaults.
    unit : "length" or "factor"
        What `lr_x` is: the length of a step, or what multiplies the hypergradient.
    """

    method: Callable[..., Any]
    each: float
    options: Mapping[str, Any] = field(default_factory=dict)
    unit: str = "factor"

    def steps(self, budget: int, epochs: int = EPOCHS) -> int:
        """Upper steps that `budget` oracle calls pay for, a refinement of `epochs` epochs included."""
        refined = self.method is bo_rep and self.options.get("refine_steps") != 0
        return max(1, int((budget - (16 * (2**epochs - 1) if refined else 0)) / self.each))


WAYS = {
    "BO-REP": Way(bo_rep, 3 + 3 / 2, unit="length"),
    "aid_cg": Way(aid_cg, 10 + 1 + 11 + 1),  # conjugate gradients from the last v take a product more
    "itd": Way(itd, 10 + 1 + 2 * 10),
    "stocBiO": Way(stocbio, 10 + 1 + 9 + 1),
    "not normalized": Way(bo_rep, 3 + 3 / 2, {"normalize": False}),
    "without refinement": Way(bo_rep, 3 + 3 / 2, {"refine_steps": 0}, "length"),
    "lower steps every time": Way(bo_rep, 3 + 3, {"period": 1}, "length"),
}
OURS = "BO-REP"
RIVALS = ("aid_cg", "itd", "stocBiO")
ABLATIONS = {
    "normalization": "not normalized",
    "refinement": "without refinement",
    "period": "lower steps every time",
}
LR_X: dict[str, dict[str, tuple[float, ...]]] = {  # grids, from the second of which the shorter ones start
    "cleaning": {"length": (0.27, 0.8, 2.4, 7.2, 21.6), "factor": (100.0, 300.0, 900.0, 2700.0, 8100.0)},
    "representation": {"length": (0.06, 0.18, 0.54, 1.62, 4.86), "factor": (2.0, 6.0, 18.0, 54.0, 162.0)},
    "exploding": {"length": (0.02, 0.06, 0.18, 0.54), "factor": (0.02, 0.2, 2.0, 20.0)},
}
LR_Y = (1.0, 2.0)
TASKS: dict[str, Callable[..., Any]] = {
    "cleaning": hyper_cleaning,
    "representation": rnn_representation,
    "exploding": partial(rnn_representation, length=60, cell="rnn", spectral_radius=1.5),
}


@dataclass(frozen=True)
class Trial:
    """One run: a way on a task with these rates, data and batches of this seed, and as many oracle calls."""

    task: str
    way: str
    lr_x: float
    lr_y: float
    seed: int
    budget: int
    sizes: Mapping[str, int] = field(default_factory=dict)
    epochs: int = EPOCHS
    log: bool = False


@dataclass(frozen=True)
class Outcome:
    """What came of a trial.

    Parameters
    ----------
    accuracy, own : float
        On test data, y retrained at the final x; and y as it ends.
    validation, ends : float
        Validation loss of the retrained y and of y as it ends; infinite where the run broke off.
    start, trained_start : float
        Validation loss at the start, and with y trained at x0.
    calls : int
    path : list of (calls, validation loss)
    x : array, shape (n,), or None
        Kept of logged runs.
    """

    accuracy: float
    own: float
    validation: float
    ends: float
    start: float
    trained_start: float
    calls: int
    path: list[tuple[float, float]]
    x: NDArray[Any] | None


def _upper(problem: BilevelProblem, x: Any, y: Any) -> float:
    return float(problem.upper(x, y, None))


def _validation(problem: BilevelProblem, x: Any) -> float:
    """Validation loss of y trained at x; infinite where that fails."""
    try:
        y, _ = solve_lower(problem, x, tol=1e-6, maxiter=300)
    except FloatingPointError:
        return math.inf
    return _upper(problem, x, y)


def solve(trial: Trial) -> Outcome:
    """Make one run; every `log`ged one measures its validation loss on the way, at no oracle calls."""
    way = WAYS[trial.way]
    problem, evaluate = TASKS[trial.task](seed=trial.seed, **trial.sizes)
    steps = way.steps(trial.budget, trial.epochs)
    path: list[tuple[float, float]] = []

    def watch(intermediate_result: Any) -> None:
        spent = calls(intermediate_result.counts)
        if intermediate_result.nit % max(1, steps // 30) == 0 or intermediate_result.nit in (1, steps):
            path.append((float(spent), _upper(problem, intermediate_result.x, intermediate_result.y)))

    own = {"lr_z": trial.lr_y, "refine_epochs": trial.epochs} if way.method is bo_rep else {}
    found = way.method(
        problem, lr_x=trial.lr_x, lr_y=trial.lr_y, decay="linear", maxiter=steps, batch_size=BATCH,
        random_state=trial.seed, callback=watch if trial.log else None, **own, **way.options,
    )  # fmt: skip
    ends = found.fun if found.success and math.isfinite(found.fun) else math.inf
    score = {"own": math.nan, "retrained": math.nan}
    if math.isfinite(ends):
        score = evaluate(found.x, found.y) if trial.log else score
        validation = _validation(problem, found.x)
    else:
        validation = math.inf
    return Outcome(
        accuracy=score["retrained"], own=score["own"], validation=validation, ends=ends,
        start=_upper(problem, problem.x0, problem.y0),
        trained_start=_validation(problem, problem.x0) if trial.log and trial.task == "exploding" else math.nan,
        calls=calls(found.counts), path=path,
        x=problem.pack_x(found.x).detach().numpy() if trial.log and trial.task == "cleaning" else None,
    )  # fmt: skip


def compare(
    ctx: Context,
    task: str,
    ways: Sequence[str],
    budget: int,
    n_lr_x: int,
    lr_y: Sequence[float],
    seeds: Sequence[int],
    *,
    sizes: Mapping[str, int] | None = None,
    by: str = "validation",
) -> dict[str, list[Outcome]]:
    """Tune every way on `ctx.seed` by its validation loss, then run it on the seeds; two at a time at full scale."""
    sizes, epochs = sizes or {}, 1 if ctx.scale == "tiny" else EPOCHS
    how: dict[str, Any] = {"backend": "processes", "n_workers": 2} if ctx.scale == "full" else {}
    grids = {}
    for name in ways:
        lr_x = LR_X[task][WAYS[name].unit]
        lr_x = lr_x if n_lr_x == len(lr_x) else lr_x[1 : 1 + n_lr_x]
        grids[name] = [Trial(task, name, a, b, ctx.seed, budget, sizes, epochs) for a in lr_x for b in lr_y]
    trials = [trial for grid in grids.values() for trial in grid]
    tuned = dict(zip(map(repr, trials), ordered_map(solve, trials, **how), strict=True))
    finals = []
    for name, grid in grids.items():
        best = min(grid, key=lambda trial: getattr(tuned[repr(trial)], by))
        finals += [Trial(task, name, best.lr_x, best.lr_y, seed, budget, sizes, epochs, True) for seed in seeds]
        edge = best.lr_x in (grid[0].lr_x, grid[-1].lr_x) and n_lr_x > 2
        ctx.note(f"{task}: {name} runs with lr_x {best.lr_x:g}, lr_y {best.lr_y:g}, the best of {len(grid)}"
                 f"{', at the edge of its grid' if edge else ''}.")  # fmt: skip
    outcomes = ordered_map(solve, finals, **how)
    return {name: [o for t, o in zip(finals, outcomes, strict=True) if t.way == name] for name in ways}


def _seeds(ctx: Context, quick: int, full: int) -> list[int]:
    if ctx.scale == "tiny" or ctx.seeds_asked:
        return ctx.seeds
    return [ctx.seed + 1 + i for i in range(ctx.pick(quick=quick, full=full, paper=full))]


def _points(ours: Sequence[Outcome], theirs: Sequence[Outcome]) -> tuple[float, tuple[float, float]]:
    """Mean difference of test accuracy in points, its interval over paired seeds."""
    gaps = [100 * (a.accuracy - b.accuracy) for a, b in zip(ours, theirs, strict=True)]
    return float(np.mean(gaps)), bootstrap_interval(gaps)


def _mean(outcomes: Sequence[Outcome]) -> float:
    return float(np.mean([o.accuracy for o in outcomes]))


def _show(ctx: Context, task: str, found: Mapping[str, list[Outcome]], seeds: Sequence[int]) -> None:
    """Keep the paths and accuracies for figures."""
    for name, outcomes in found.items():
        for seed, o in zip(seeds, outcomes, strict=True):
            if name == OURS or name in RIVALS:
                ctx.series(f"{task} loss", o.path, method=name, seed=seed)
            ctx.series(f"{task} accuracy", [100 * o.accuracy], method=name, seed=seed)
        own = float(np.mean([o.own for o in outcomes]))
        validation = float(np.mean([o.validation for o in outcomes]))
        ctx.note(f"{task}: {name} reaches {100 * _mean(outcomes):.1f} % (y as it ends: {100 * own:.1f} %) and a "
                 f"validation loss of {validation:.3f}, y retrained; {outcomes[0].calls} oracle calls.")  # fmt: skip


def cleaning(ctx: Context) -> None:
    """Digits with 40 % of the training labels redrawn: accuracy beside the rivals and beside no cleaning."""
    budget, n_lr_x = ctx.pick(tiny=(150, 1), quick=(3000, 2), full=(3000, 5), paper=(3000, 5))
    lr_y = ctx.pick(tiny=LR_Y[:1], quick=LR_Y[:1], full=LR_Y, paper=LR_Y)
    seeds = _seeds(ctx, 2, 5)
    full = ctx.wants("cleaning-ablation-period")
    ways = [OURS, *RIVALS, *(ABLATIONS.values() if full else ())]
    found = compare(ctx, "cleaning", ways, budget, n_lr_x, lr_y, seeds)
    _show(ctx, "cleaning", found, seeds)
    best = max(RIVALS, key=lambda name: _mean(found[name]))
    ctx.measured("cleaning-best", *_points(found[OURS], found[best]))
    ctx.measured("cleaning-stocbio", *_points(found[OURS], found["stocBiO"]))
    ctx.measured("cleaning-itd", *_points(found[OURS], found["itd"]))
    gains = []
    for seed, outcome in zip(seeds, found[OURS], strict=True):
        problem, evaluate = hyper_cleaning(seed=seed)
        plain = evaluate(problem.x0)["retrained"]
        ctx.series("cleaning accuracy", [100 * plain], method="no cleaning", seed=seed)
        gains.append(100 * (outcome.accuracy - plain))
    ctx.measured("cleaning-none", float(np.mean(gains)), bootstrap_interval(gains))
    ratios = [(1 - b.accuracy) / (1 - a.accuracy) for a, b in zip(found[OURS], found[best], strict=True)]
    ctx.against(best, float(np.mean(ratios)), bootstrap_interval(ratios, level=0.95),
                what=f"test error after cleaning labels, {budget} oracle calls")  # fmt: skip
    ctx.note(f"cleaning: {len(seeds)} seeds, {n_lr_x * len(lr_y)} tuning trials each; the best rival is {best}.")
    for part, name in ABLATIONS.items():
        if name in found:
            ctx.measured(f"cleaning-ablation-{part}", *_points(found[name], found[OURS]))
    weights = found[OURS][0].x
    if weights is not None:
        ctx.arrays("weights", weights=1 / (1 + np.exp(-weights)), wrong=wrong_labels(seeds[0]))


def wrong_labels(seed: int) -> NDArray[Any]:
    """Which of the 800 training labels of `hyper_cleaning("digits", 0.4, seed)` differ from the true ones, (800,)."""
    from sklearn.datasets import load_digits

    rng = np.random.default_rng(seed)
    labels = load_digits().target
    order = rng.permutation(len(labels))
    true, noisy = labels[order][:800], labels[order][:800].copy()
    redrawn = rng.permutation(800)[:320]
    noisy[redrawn] = rng.integers(10, size=320)
    return np.asarray(noisy != true)


def representation(ctx: Context) -> None:
    """Heads of eight tasks on one recurrent encoder."""
    budget = ctx.pick(tiny=80, quick=1500, full=1500, paper=1500)
    sizes = {"n_tasks": 2, "n_train": 20, "n_validation": 20, "length": 4, "hidden": 3} if ctx.scale == "tiny" else {}
    seeds = _seeds(ctx, 2, 5)
    ways = [OURS, *RIVALS, *ABLATIONS.values()]
    found = compare(ctx, "representation", ways, budget, 1 if ctx.scale == "tiny" else 5, LR_Y[1:], seeds, sizes=sizes)
    _show(ctx, "representation", found, seeds)
    best = max(RIVALS, key=lambda name: _mean(found[name]))
    ctx.note(f"representation: {len(seeds)} seeds; the best rival is {best}.")
    points = _points(found[OURS], found[best])
    ctx.measured("representation-two-points", *points)
    ctx.measured("representation", *points)
    for part, name in ABLATIONS.items():
        ctx.measured(f"representation-ablation-{part}", *_points(found[name], found[OURS]))


def exploding(ctx: Context) -> None:
    """A tanh network over 60 tokens with recurrent weights of spectral radius 1.5: which runs end well?"""
    budget = ctx.pick(tiny=80, quick=1500, full=1500, paper=1500)
    sizes: dict[str, int] = {}
    if ctx.scale == "tiny":
        sizes = {"n_tasks": 2, "n_train": 20, "n_validation": 20, "length": 8, "hidden": 3}
    seeds = _seeds(ctx, 2, 5)
    ways = [OURS, ABLATIONS["normalization"]]
    found = compare(
        ctx, "exploding", ways, budget, 1 if ctx.scale == "tiny" else 4, LR_Y[1:], seeds, sizes=sizes, by="ends"
    )
    for name, claim in zip(ways, ("exploding-ours", "exploding-plain"), strict=True):
        ctx.measured(claim, float(np.mean([o.ends < o.start for o in found[name]])))
        loss = [o.ends for o in found[name]]
        trained = float(np.mean([o.ends < o.trained_start for o in found[name]]))
        ctx.note(f"exploding: {name} ends at a validation loss of {np.mean(loss):.3f} on average (start "
                 f"{found[name][0].start:.3f}); {trained:.0%} of its runs end below the loss of heads trained on the "
                 "encoder of the start.")  # fmt: skip
        for seed, o in zip(seeds, found[name], strict=True):
            ctx.series("exploding loss", o.path, method=name, seed=seed)
