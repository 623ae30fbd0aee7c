"""The paper's own setting: grids in three dimensions on an accelerator, beside CG there and pyamg on the host."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from steepest.core.extras import MissingExtra
from steepest.physics import ConjugateDirectionNet, DeepConjugateDirection, poisson_matrix, random_obstacles
from steepest.physics._poisson import PoissonStencil
from steepest.studies.context import Context
from steepest.studies.deep_conjugate_direction_peers import SOLVERS

__all__ = ["PaperPlan", "conjugate_gradients", "measure", "run_paper"]

RTOL, MAXITER = 1e-4, 500
OBSTACLES = 4


@dataclass(frozen=True)
class PaperPlan:
    """Training on n^3 cells, tests on the sizes; obstacles change with every solve."""

    trained: int = 64
    sizes: tuple[int, ...] = (64, 128, 256)
    n_vectors: int = 20_000  # official code
    n_lanczos: int = 10_000  # official code; 21 GB in float64 at 64^3
    epochs: int = 10
    batch_size: int = 10
    lr: float = 1e-3
    filters: int = 16
    levels: int = 4
    n_solves: int = 3


def run_paper(ctx: Context) -> None:
    """Train and measure on the accelerator."""
    measure(ctx, ctx.need_cuda(), PaperPlan())


def measure(ctx: Context, device: torch.device, plan: PaperPlan) -> None:
    """Iterations at every size, and seconds at the largest."""
    n = plan.trained
    net = ConjugateDirectionNet(3, plan.filters, levels=plan.levels, seed=ctx.seed)
    model = DeepConjugateDirection(net, shape=(n,) * 3, device=device, seed=ctx.seed)
    n_vectors = min(plan.n_vectors, ctx.max_steps * plan.batch_size) if ctx.max_steps else plan.n_vectors
    model.fit(n_vectors=n_vectors, n_lanczos=plan.n_lanczos, epochs=plan.epochs, batch_size=plan.batch_size, lr=plan.lr)
    ctx.series("paper loss", [train for train, _ in model.history_], method="DCDM", seed=ctx.seed)
    for size in plan.sizes:
        ours, theirs, multigrid = [], [], []
        iterations: dict[str, list[int]] = {"DCDM": [], "CG": []}
        for solve in range(plan.n_solves):
            shape = (size,) * 3
            rng = np.random.default_rng([ctx.seed, size, solve])
            solid = random_obstacles(shape, OBSTACLES if solve else 0, rng)
            b = torch.as_tensor((rng.standard_normal(shape) * ~solid).reshape(-1)).to(device)
            A = _product(PoissonStencil(shape, solid, device=device), shape)
            options = {"rtol": RTOL, "maxiter": MAXITER, "shape": shape, "solid": solid, "full_output": True}
            seconds, (_, info, stats) = _timed(device, partial(model.solve, A, b, **options))
            ours.append(seconds)
            iterations["DCDM"].append(stats["iterations"] if info == 0 else MAXITER)
            seconds, (_, count) = _timed(device, partial(conjugate_gradients, A, b, RTOL))
            theirs.append(seconds)
            iterations["CG"].append(count)
            multigrid.append(_multigrid_seconds(shape, solid, b.cpu().numpy()))
        for name, counts in iterations.items():
            ctx.series("paper iterations", [(size, float(np.mean(counts)))], method=name)
        if size == plan.sizes[-1]:
            ctx.measured("gpu-iterations", float(np.mean(iterations["DCDM"])))
            ctx.measured("gpu-cg", float(np.median(np.divide(ours, theirs))))
            if np.isnan(multigrid).any():
                ctx.skipped("gpu-pyamg", "pyamg is not installed: pip install pyamg")
            else:
                ctx.measured("gpu-pyamg", float(np.median(np.divide(ours, multigrid))))
    ctx.note(f"trained on {n} cells a side, tested on {', '.join(map(str, plan.sizes))}, rtol {RTOL:g}, on {device}.")


def conjugate_gradients(A: Callable[[Tensor], Tensor], b: Tensor, rtol: float) -> tuple[Tensor, int]:
    """The textbook's, on b's device."""
    x, r, p = torch.zeros_like(b), b, b
    rr = float(r @ r)
    limit, count = rtol**2 * rr, 0
    while rr > limit and count < 10 * len(b):
        Ap = A(p)
        step = rr / float(p @ Ap)
        x, r = x + step * p, r - step * Ap
        rr, before = float(r @ r), rr
        p = r + rr / before * p
        count += 1
    return x, count


def _product(stencil: PoissonStencil, shape: tuple[int, ...]) -> Callable[[Tensor], Tensor]:
    return lambda v: stencil(v.reshape(1, 1, *shape)).reshape(-1)


def _timed(device: torch.device, work: Callable[[], Any]) -> tuple[float, Any]:
    """Wall seconds, once to warm up and once to measure."""
    work()
    _wait(device)
    start = time.perf_counter()
    result = work()
    _wait(device)
    return time.perf_counter() - start, result


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _multigrid_seconds(shape: tuple[int, ...], solid: Any, b: Any) -> float:
    """Of pyamg on the host, its set-up included, since obstacles move; NaN without it."""
    A = poisson_matrix(shape, solid, reduced=True)
    start = time.perf_counter()
    try:
        SOLVERS["pyamg, Ruge-Stuben"](A, np.empty(0, np.int64))(b[~solid.reshape(-1)], RTOL, None)
    except MissingExtra:
        return float("nan")
    return time.perf_counter() - start
