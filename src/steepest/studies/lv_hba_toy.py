"""The paper's example with many lower solutions, what a step costs, and a lower objective without second derivatives.

    F = |x - y2|^2 / 2 + |y1 - 1|^2 / 2,   f = |y1|^2 / 2 - x . y1 + 1 . y2,   1 . (x + y1 + y2) = 0

The optimum is x = -0.3, y1 = 0.7, y2 = -0.4 in every entry. The row is scaled to norm 1.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import torch
from torch import Tensor

from steepest.bilevel import BilevelProblem, lv_hba, proximal_lagrangian_value
from steepest.core.parallel import ordered_map
from steepest.core.random import torch_generator
from steepest.studies.claim import bootstrap_interval, slope_fit
from steepest.studies.context import Context

__all__ = ["counts_of_a_step", "error", "measure", "measure_costs", "opaque", "toy"]

N = 10
SETTINGS: dict[str, Any] = {
    "alpha": 0.1, "beta": 0.1, "eta": 0.1, "gamma1": 2.0, "gamma2": 2.0, "c": 1.0, "power": 0.3
}  # fmt: skip
FIRST = 100  # the fits leave out what comes before


def toy(n: int, seed: int) -> BilevelProblem:
    """The example from a random start."""
    row = torch.full((1, 3 * n), (3 * n) ** -0.5, dtype=torch.float64)
    start = torch.randn(3 * n, generator=torch_generator(seed), dtype=torch.float64)
    return BilevelProblem(
        lambda x, y, batch: (x - y[n:]).square().sum() / 2 + (y[:n] - 1).square().sum() / 2,
        lambda x, y, batch: y[:n].square().sum() / 2 - x @ y[:n] + y[n:].sum(),
        start[:n],
        start[n:],
        affine=(row[:, :n], row[:, n:], row.new_zeros(1)),
        equality=True,
        name="toy",
    )


def error(x: Tensor) -> float:
    """Relative distance from the optimal x."""
    return float((x + 0.3).norm() / (0.3 * len(x) ** 0.5))


def measure(ctx: Context) -> None:
    """Error, residual and gap along runs from random starts."""
    steps = ctx.pick(quick=3000, full=30_000, paper=3000, tiny=450)
    errors: list[float] = []
    later: list[float] = []
    slopes: dict[str, list[float]] = {"residual": [], "gap": []}
    seeds = ctx.seeds[:2] if ctx.seeds_asked is None else ctx.seeds  # every start ends at the same error
    backend: Any = "processes" if ctx.scale == "full" else "serial"
    runs = ordered_map(functools.partial(_trajectory, steps=steps), seeds, backend=backend, n_workers=2)
    for seed, found in zip(seeds, runs, strict=True):
        for name, values in found.items():
            ctx.series(f"toy {name}", values, method="LV-HBA", seed=seed)
        at = dict(found["error"])
        errors.append(at[min(3000, steps)])
        later.append(at[steps] / errors[-1])
        for name, kept in slopes.items():
            pairs = [(k, v) for k, v in found[name] if k >= min(FIRST, steps // 3) and v > 0]
            kept.append(slope_fit(*zip(*pairs))[0])
    _theory(ctx, steps)
    ctx.measured("toy-error", float(np.median(errors)), bootstrap_interval(errors, statistic=np.median))
    if ctx.wants("toy-longer"):
        ctx.measured("toy-longer", float(np.median(later)), bootstrap_interval(later, statistic=np.median))
    for name, kept in slopes.items():
        ctx.measured(f"{name}-slope", float(np.median(kept)), bootstrap_interval(kept, statistic=np.median))


def _trajectory(seed: int, steps: int) -> dict[str, list[tuple[float, float]]]:
    """Error, least residual so far and gap at steps that are even in the logarithm."""
    problem = toy(N, seed)
    marks = {1, min(FIRST, steps // 3), min(3000, steps), *np.unique(np.geomspace(1, steps, 14).astype(int)).tolist()}
    found: dict[str, list[tuple[float, float]]] = {"error": [], "gap": []}
    gammas = {key: SETTINGS[key] for key in ("gamma1", "gamma2")}

    def look(intermediate_result: Any) -> None:
        at = intermediate_result
        if at.nit in marks:
            v, _, _ = proximal_lagrangian_value(problem, at.x, at.y, at.z, **gammas)
            found["error"].append((at.nit, error(at.x)))
            found["gap"].append((at.nit, float(problem.lower(at.x, at.y, None)) - v))

    result = lv_hba(problem, **SETTINGS, maxiter=steps, callback=look)
    least = np.minimum.accumulate(result.history["residual"][1:])
    found["residual"] = [(k, float(least[k - 1])) for k in sorted(marks)]
    return found


def _theory(ctx: Context, steps: int) -> None:
    """Lines with the paper's slopes through the measured values at the step where the fits begin."""
    power, k0 = SETTINGS["power"], min(FIRST, steps // 3)
    for name, slope in (("residual", -(1 - 2 * power) / 2), ("gap", -power)):
        runs = [s for s in ctx.series_log if s.name == f"toy {name}"]
        level = np.median([np.interp(k0, s.steps, np.array(s.values, dtype=float)) for s in runs])
        ctx.series(f"toy {name}", [(k, level * (k / k0) ** slope) for k in (k0, steps)], method="theory")


# ---------------------------------------------------------------------------------------------------------------- costs


class _Once(torch.autograd.Function):
    """Half the squared norm; its backward cannot be differentiated."""

    @staticmethod
    def forward(ctx: Any, y: Tensor) -> Tensor:
        ctx.save_for_backward(y)
        return y.square().sum() / 2

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, g: Tensor) -> Tensor:
        (y,) = ctx.saved_tensors
        return torch.as_tensor(g * y)


def opaque() -> BilevelProblem:
    """Minimize |y - 1|^2 + |x - 1|^2 where y is the point nearest to x - 1 of {y >= x}, so y = x: optimum x = y = 1.

    The lower objective goes through a function whose backward cannot be differentiated.
    """
    eye, one = torch.eye(3, dtype=torch.float64), torch.ones(3, dtype=torch.float64)
    root = 2**-0.5
    return BilevelProblem(
        lambda x, y, batch: (y - 1).square().sum() + (x - 1).square().sum(),
        lambda x, y, batch: _Once.apply(y - x + 1),
        0 * one,
        0 * one,
        affine=(root * eye, -root * eye, 0 * one),
        name="opaque",
    )


def counts_of_a_step(problem: BilevelProblem, **settings: Any) -> tuple[float, float]:
    """Gradients and projections that a further step costs, from runs of 40 and 90 steps."""
    counts = [lv_hba(problem, **settings, maxiter=steps, log_every=None).counts for steps in (40, 90)]
    gradients, projections = (
        (sum(counts[1][key] - counts[0][key] for key in keys)) / 50
        for keys in (("upper_grad", "lower_grad", "hvp", "jvp"), ("projection",))
    )
    return gradients, projections


def measure_costs(ctx: Context) -> None:
    """No second derivative, one loop."""
    settings: dict[str, Any] = {"alpha": 0.1, "beta": 0.3, "eta": 0.4, "gamma1": 0.8, "gamma2": 0.8}
    result = lv_hba(opaque(), **settings, maxiter=400, log_every=None)
    near = float((result.x - 1).abs().max()) <= 0.05
    ctx.measured("hessian-free", result.counts["hvp"] + result.counts["jvp"] + result.counts["hessian"])
    ctx.measured("hessian-free-runs", float(result.success and near))
    gradients, projections = counts_of_a_step(opaque(), **settings)
    ctx.measured("single-loop-gradients", gradients)
    ctx.measured("single-loop-projections", projections)
