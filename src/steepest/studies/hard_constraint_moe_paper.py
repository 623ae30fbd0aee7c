"""The paper's own setting: its networks, grids and 20,000 sampled points, on an accelerator.

Training needs no data. Diffusion-sorption is scored on trajectories of PDEBench's file where ``--data`` gives it
(``1D_diff-sorp_NA_NA.h5``), otherwise on the solver's; the vorticity always on the solver's.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from steepest.physics import load_pdebench
from steepest.studies.claim import bootstrap_interval
from steepest.studies.context import Context, Unavailable
from steepest.studies.hard_constraint_moe_training import HC, MOE, SC, Problem, Run, flow, sorption, train_all

__all__ = ["Sizes", "measure", "run_paper"]


@dataclass(frozen=True)
class Sizes:
    """Grids, networks and steps; the defaults are the paper's."""

    sorption: tuple[int, int] = (101, 1024)
    flow: tuple[int, int] = (64, 64)
    sampled: int = 20_000
    sorption_modes: int = 8
    flow_modes: int = 8
    sorption_widths: tuple[int, ...] = (32, 64, 64, 64, 64, 64)
    flow_widths: tuple[int, ...] = (64,) * 9
    heads: tuple[int, int] = (128, 256)
    flow_fields: int = 64
    steps: tuple[int, int] = (4050, 5000)
    n_train: int = 4096
    n_test: int = 64
    skip_corner: int = 5


def run_paper(ctx: Context) -> None:
    """Measure on the accelerator."""
    measure(ctx, str(ctx.need_cuda()), Sizes())


def measure(ctx: Context, device: str, sizes: Sizes) -> None:
    """Train all three methods on both equations, layers as in the paper: raw rows, exact Hessian."""
    steps = [min(n, ctx.max_steps or n) for n in sizes.steps]
    layer: dict[str, Any] = {"num_sampled_points": sizes.sampled, "maxiter": 100, "atol": 1e-4, "rtol": 1e-4}
    network = {"modes": (sizes.sorption_modes,) * 2, "widths": sizes.sorption_widths, "head": sizes.heads[0]}
    column = sorption(
        *sizes.sorption, sizes.n_test, ctx.seed, network=network, layer=layer, compatible=False, batch_size=6,
        skip_corner=sizes.skip_corner, n_train=sizes.n_train,
    )  # fmt: skip
    try:
        column = _on_pdebench(column, ctx.data("path"))
    except Unavailable:
        ctx.note("diffusion-sorption is scored on the project's own solver; --data FILE takes PDEBench's trajectories.")
    network = {"modes": (sizes.flow_modes,) * 3, "widths": sizes.flow_widths, "head": sizes.heads[1]}
    eddies = flow(
        *sizes.flow, sizes.n_test, ctx.seed, network=network, layer=layer, Re=1e4, t_max=1.0,
        fields=sizes.flow_fields, n_train=sizes.n_train,
    )  # fmt: skip
    for k, (name, problem) in enumerate((("sorption", column), ("flow", eddies))):
        errors: dict[str, list[float]] = {}
        for method in (SC, HC, MOE):
            settings = {"output_activation": None if method == SC else "gelu"}
            given = replace(problem, network=problem.network | settings)
            for seed in ctx.seeds:
                (found,) = train_all([Run(given, method, seed, 1e-3, steps[k], device=device)], 1)
                errors.setdefault(method, []).append(found.score.error)
                ctx.series(f"paper {name}", found.history["fun"], method=method, seed=seed)
        for claim, peer in ((f"paper-{name}-sc", SC), (f"paper-{name}-hc", HC)):
            ratios = np.divide(errors[MOE], errors[peer])
            ctx.measured(claim, float(np.median(ratios)), bootstrap_interval(ratios, statistic=np.median))
        ctx.progress((k + 1) / 2)


def _on_pdebench(problem: Problem, path: Path) -> Problem:
    """Score on the file's trajectories, at every time of the grid that it has."""
    data = load_pdebench(path, len(problem.test[0]))
    if tuple(data.u.shape[1:]) != tuple(problem.pde.grid):
        raise Unavailable(f"{path} has grids of {tuple(data.u.shape[1:])}, not {tuple(problem.pde.grid)}")
    return replace(problem, test=(data.u[:, 0].clone(), data.u.to(torch.float64)))
