"""The longer trainings of the hard-constraint study: all methods from scratch, on a column and on a vorticity."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from steepest.physics import pde_loss
from steepest.studies.claim import bootstrap_interval
from steepest.studies.context import Context
from steepest.studies.hard_constraint_moe_training import (
    HC,
    LAYER,
    MOE,
    PADDING,
    SC,
    SMOOTHING,
    Problem,
    Run,
    Trained,
    best_rates,
    by_method,
    dots,
    flow,
    long_seeds,
    moe_on_bases,
    ratio,
    score_of,
    sorption,
    train_all,
    workers_of,
)

__all__ = ["trained_through", "vorticity"]


def trained_through(ctx: Context) -> list[Trained]:
    """101 x 256 points, the paper's start: all three methods from scratch, equal CPU time."""
    nt, nx, n_test, seconds, tuning, sampled = ctx.pick(
        tiny=(8, 16, 2, 0.2, 0.1, 16), quick=(101, 256, 8, 5.0, 2.0, 2048), full=(101, 256, 12, 25.0, 5.0, 2048),
        paper=(101, 256, 12, 25.0, 5.0, 2048),
    )  # fmt: skip
    network = {"modes": (8, 8), "widths": (32,) * 6, "head": 128, "output_activation": None}
    network |= {"padding": (PADDING, PADDING)}
    if ctx.scale == "tiny":
        network |= {"modes": (2, 2), "widths": (4, 4), "head": 8}
    problem = sorption(nt, nx, n_test, ctx.seed + 1, network=network, layer=LAYER | {"num_sampled_points": sampled},
                       compatible=False, smoothing=SMOOTHING, skip_corner=5 if ctx.scale != "tiny" else 1,
                       batch_size=1)  # fmt: skip
    workers, methods, seeds = workers_of(ctx), (SC, HC, MOE), long_seeds(ctx)
    rates = best_rates(problem, methods, ctx.seed, tuning, workers)
    ctx.note(f"101 x 256 points: learning rates {rates} of two each; PI-HC samples {sampled} points, each of four "
             f"experts {sampled}.")  # fmt: skip
    jobs = [Run(problem, m, seed, rates[m], max_seconds=seconds) for seed in seeds for m in methods]
    found = by_method(train_all(jobs, workers))
    steps = int(np.median([t.steps for t in found[MOE]]))
    equal = train_all([Run(problem, SC, seed, rates[SC], steps) for seed in seeds], workers)
    shared = replace(problem, layer=problem.layer | {"num_sampled_points": 4 * sampled})
    same_points = train_all([Run(shared, HC, ctx.seeds[0], rates[HC], max(3, steps // 8))], 1)
    ratio(ctx, "moe-trained-sc", found[MOE], found[SC])
    ratio(ctx, "moe-trained-hc", found[MOE], found[HC])
    ratio(ctx, "moe-trained-hc-paper", found[MOE], found[HC])
    ratio(ctx, "moe-trained-sc-steps", found[MOE], equal)
    ratio(ctx, "adherence-moe", found[MOE], found[SC], "residual")
    for claim, part in (("hc", "residual"), ("initial", "initial"), ("boundary", "boundary")):
        ratio(ctx, f"adherence-{claim}", found[HC], found[SC], part)
    per_step = {
        name: np.median(np.diff(t.history["seconds"])) for name, t in ((MOE, found[MOE][0]), (HC, same_points[0]))
    }
    ctx.measured("step-time-experts", float(per_step[MOE] / per_step[HC]))
    spreads = {m: _spread([t.score.residual + t.score.initial + t.score.boundary for t in found[m]]) for m in (HC, MOE)}
    ctx.measured("stable-spread", spreads[MOE] / spreads[HC])
    dots(ctx, "trained", {**found, "PI-SC, equal steps": equal}, seeds)
    ctx.note(
        f"101 x 256 points, residual of the equation on unseen starts: {_medians(found, 'residual', '.2f')}; the "
        f"solver's own answer {_residual(problem, problem.test[1]):.2f}, a constant none: it is no measure of quality "
        f"alone. Relative errors: {_medians(found, 'error', '.3f')}."
    )
    ctx.note(
        f"101 x 256 points: steps in {seconds:.0f} CPU seconds: {_medians(found, 'steps', '.0f')}; "
        f"{len(seeds)} seeds, {n_test} unseen starts, {tuning:.0f} CPU seconds for each trial of a rate."
    )
    return [*(t for m in methods for t in found[m]), *equal]


# -------------------------------------------------------------------------------------------------------- Navier-Stokes


def vorticity(ctx: Context) -> list[Trained]:
    """16 x 32 x 32 points: short and longer training."""
    sizes = (16, 32, 8, 15.0, 25.0, 6.0)
    nt, n, n_test, short, long, tuning = ctx.pick(tiny=(4, 8, 2, 0.2, 0.2, 0.1), quick=sizes, full=sizes, paper=sizes)
    network = {"modes": (4, 4, 4), "widths": (12,) * 5, "head": 48, "output_activation": None}
    network |= {"padding": (PADDING, 0.0, 0.0)}
    if ctx.scale == "tiny":
        network |= {"modes": (1, 1, 1), "widths": (4, 4), "head": 8}
    layer = LAYER | {"pde_weight": 1.0, "ridge": 1e-4, "num_sampled_points": 2048 if ctx.scale != "tiny" else 32}
    problem = flow(nt, n, n_test, ctx.seed + 2, network=network, layer=layer, batch_size=1)
    workers, seeds = workers_of(ctx), long_seeds(ctx)
    rates = best_rates(problem, (SC, HC, MOE), ctx.seed, tuning, workers)
    first = by_method(
        train_all([Run(problem, m, seed, rates[m], max_seconds=short) for seed in seeds for m in (SC, HC)], workers)
    )
    swapped = [moe_on_bases(t, "none") for t in first[HC]]
    later = by_method(
        train_all([Run(problem, m, seed, rates[m], max_seconds=long) for seed in seeds for m in (SC, HC, MOE)], workers)
    )
    truth = problem.test[1]
    still = torch.linalg.vector_norm((truth - truth[:, :1]).flatten(1), dim=1)
    persistence = float(np.median((still / torch.linalg.vector_norm(truth.flatten(1), dim=1)).numpy()))
    ratio(ctx, "flow-hc-sc", first[HC], first[SC])
    ratio(ctx, "flow-moe-bases", swapped, first[HC])
    by_seed = zip(first[SC], first[HC], swapped, strict=True)
    worst = [max(score_of(x).error for x in group) / persistence for group in by_seed]
    ctx.measured("flow-persistence", float(np.median(worst)), bootstrap_interval(worst, statistic=np.median))
    ratio(ctx, "flow-moe-trained", later[MOE], later[HC])
    ratio(ctx, "flow-moe-trained-sc", later[MOE], later[SC])
    ratio(ctx, "flow-hc-sc-long", later[HC], later[SC])
    dots(ctx, "flow", {
        f"PI-SC, {short:.0f} s": first[SC], f"PI-HC, {short:.0f} s": first[HC], f"{MOE} on PI-HC": swapped,
        f"PI-SC, {long:.0f} s": later[SC], f"PI-HC, {long:.0f} s": later[HC], f"{MOE}, {long:.0f} s": later[MOE],
    }, seeds)  # fmt: skip
    ctx.series("flow", [persistence], method="persistence")
    ctx.note(
        f"vorticity: persistence has a relative error of {persistence:.2f}; steps in {short:.0f} CPU seconds: "
        f"{_medians(first, 'steps', '.0f')}, in {long:.0f}: {_medians(later, 'steps', '.0f')}; learning rates {rates} "
        f"of two each, pde_weight 1 and ridge 1e-4 not tuned; {len(seeds)} seeds."
    )
    ctx.note(
        f"vorticity, residual of the equation on unseen starts: {_medians(later, 'residual', '.0f')} in {long:.0f} CPU "
        f"seconds; persistence {_residual(problem, truth[:, :1].expand_as(truth)):.0f}, the solver's own answer "
        f"{_residual(problem, truth):.0f}."
    )
    return [t for found in (first, later) for group in found.values() for t in group]


def _residual(problem: Problem, u: Tensor) -> float:
    """Median norm of the residual of given fields of the unseen starts."""
    parts = [pde_loss(problem.pde, u[i : i + 1], problem.test[0][i : i + 1])["residual"] for i in range(len(u))]
    return float(torch.stack(parts).median())


def _medians(found: Mapping[str, Sequence[Trained]], what: str, form: str) -> str:
    """Median over seeds of the steps or of a part of the score, method by method."""
    values = {m: [t.steps if what == "steps" else getattr(t.score, what) for t in group] for m, group in found.items()}
    return ", ".join(f"{m} {np.median(x):{form}}" for m, x in values.items())


def _spread(values: Sequence[float]) -> float:
    return (max(values) - min(values)) / float(np.median(values))
