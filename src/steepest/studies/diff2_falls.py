"""Where differences of gradients pay: the DIFF2 study over tasks whose objective has little, or much, to fall.

Let t be rounds times step and h the curvature of a direction that has converged. DP-GD leaves a squared gradient of
``C1^2 e^2 t h / 2`` in it, over d directions ``C1^2 e^2 t tr H / 2``; DIFF2 with one restart leaves
``d e^2 (c1^2 + C2^2 t fall)``, c1 its own C1 and fall = F(x_0) - min F. For a logistic loss with rows of norm 2, tr H
is 1 at most. DP-GD over DIFF2 is then about

    C1^2 t tr H / 2  /  (d (c1^2 + C2^2 t fall)),    above 1 only where  d fall < C1^2 tr H / (2 C2^2),

however large n is, unless more restarts, each with its own noise, shorten the way that differences are added up over.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from scipy import stats

from steepest.core.parallel import ordered_map
from steepest.studies import diff2_problems as problems
from steepest.studies.claim import Picture, bootstrap_interval
from steepest.studies.context import Context
from steepest.studies.diff2_runs import GRIDS, Sizes, compared, kappa, ratio

__all__ = ["PICTURE", "measure", "predicted"]

FIRST = 101  # seed of the first task; the grids were chosen without these
SCALES = (0.1, 0.25, 0.5, 1.0)  # of the true weights
SHORT, LONG = 1.0, 4.0  # d times fall, below and above
TRACE = 1.0  # tr H at the start: a quarter of the rows' squared norm


def predicted(problem: problems.Problem, fall: Any, rounds: float, lr: float) -> Any:
    """DP-GD over DIFF2 where all directions have converged, both with the same rounds and steps."""
    ours = GRIDS["DIFF2"][0]
    t, d = rounds * lr, len(problem.start)
    own, slope = problem.first_clip, ours.difference * problem.clip_difference
    return problem.clip**2 * t * TRACE / 2 / (d * (own**2 + slope**2 * t * fall))


def one(item: tuple[int, float, int, Sizes]) -> tuple[float, float, float]:
    """What the objective can fall, DP-GD over DIFF2 as measured, and as predicted."""
    d, scale, seed, sizes = item
    problem = problems.synthetic(sizes.dimension_n, d, seed=seed, scale=scale)
    fall = problem.fall()
    found = ratio(compared(problem, 1.0, sizes, range(1, 4), sizes.real_trials))[0]
    setting = GRIDS["DIFF2"][0]
    rounds = min(sizes.max_rounds, setting.rounds * kappa(problem, 1.0))
    return fall, found, float(predicted(problem, fall, rounds, setting.lr))


def measure(ctx: Context, sizes: Sizes) -> None:
    """Fresh tasks: how the advantage depends on d times the fall."""
    dims, draws = sizes.dims[:2], 1 if ctx.scale == "tiny" else 4
    items = [(d, scale, FIRST + k, sizes) for d in dims for scale in SCALES for k in range(draws)]
    done = ordered_map(one, items, backend="processes" if ctx.scale == "full" else "serial")
    fall, found, theory = np.array(done).T
    d = np.array([item[0] for item in items])
    ctx.arrays("falls", d=d, fall=fall, found=found, theory=theory)
    ctx.measured("falls-rank", float(stats.spearmanr(d * fall, found).statistic))
    ctx.measured("falls-predicted", float(np.median(np.abs(np.log(found / theory)))))
    for claim, chosen in (("short-way", d * fall < SHORT), ("long-way", d * fall > LONG)):
        if chosen.any():
            values = found[chosen]
            ctx.measured(claim, float(np.median(values)), bootstrap_interval(values, statistic=np.median))
            ctx.note(f"{claim}: {chosen.sum()} of {len(items)} tasks, DP-GD over DIFF2 from {values.min():.2f} to "
                     f"{values.max():.2f}, {np.mean(values > 1):.0%} above 1.")  # fmt: skip
        else:
            ctx.skipped(claim, "no such task was drawn")


def draw(figure: Any, arrays: Mapping[str, np.ndarray], ink: Any) -> None:
    """Advantage against what the objective can fall, with the prediction."""
    axes = figure.add_subplot()
    dims = np.unique(arrays["d"])
    for d, color, mark in zip(dims, ink.categories, "os", strict=False):
        rows = np.flatnonzero(arrays["d"] == d)
        rows = rows[np.argsort(arrays["fall"][rows])]
        fall = arrays["fall"][rows]
        axes.plot(fall, arrays["found"][rows], mark, color=color, markersize=7, label=f"d = {d}, measured")
        axes.plot(fall, arrays["theory"][rows], color=color, linewidth=1.5, label=f"d = {d}, predicted")
    axes.axhline(1, color=ink.muted, linewidth=1, linestyle=(0, (4, 3)))
    axes.set(xscale="log", yscale="log", ylabel="squared gradient norm, DP-GD over DIFF2",
             xlabel="what the objective can fall, F(x\N{SUBSCRIPT ZERO}) \N{MINUS SIGN} min F")  # fmt: skip
    ticks = (0.3, 0.5, 1, 2, 5, 10)
    axes.set_yticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.minorticks_off()
    axes.legend(frameon=False)


PICTURE = Picture(
    "falls",
    "DIFF2 gains where the objective has little to fall and directions are few",
    "falls",
    draw,
    caption="Each mark is a task of its own: true weights of size 0.1 to 1, n = 8 000, epsilon 1, both methods tuned "
    "with four trials on two seeds, means of three others. Lines: the noise that either leaves in directions that have "
    "converged.",
    alt="Points that fall from left to right along two lines: with d = 10 from about ten to one, with d = 40 from "
    "about two to one half.",
)
