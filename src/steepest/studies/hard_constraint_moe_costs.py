"""What the layer costs: seconds and memory as points grow, one core and two workers, and many small problems at once.

Seconds are CPU seconds of one core, of a forward and a backward pass of the layer without the network, with ten
Levenberg-Marquardt steps whatever the fit. A worker of two has all terms to compute and half of the experts to solve.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from steepest.core.extras import MissingExtra, require
from steepest.core.parallel import joined_ray
from steepest.core.random import torch_generator
from steepest.physics import DiffusionSorption1D, HardConstraintMoE
from steepest.physics._constraint_rows import ConstraintData, constraint_rows, sample_points
from steepest.physics._expert_backends import members, solve_experts
from steepest.physics._least_squares import Settings, solve
from steepest.physics._pointwise_rows import PointwiseLeastSquares, Rows
from steepest.studies.claim import bootstrap_interval, slope_fit
from steepest.studies.context import Context

__all__ = [
    "LayerProblem",
    "devices",
    "jaxopt_task",
    "layer_seconds",
    "many_problems",
    "many_tasks",
    "memory",
    "optimistix_task",
    "points",
    "smooth_fields",
]

SETTINGS = Settings(10, 0.0, 0.0, hessian="gauss-newton")
RIDGE, N, K = 1e-2, 16, 4


def smooth_fields(pde: DiffusionSorption1D, fields: int, seed: int) -> Tensor:
    """Random smooth fields (1, nt, nx, fields), the first of them a front that moves in."""
    nt, nx = pde.grid
    g = torch_generator(seed)
    t, x = torch.linspace(0, 1, nt, dtype=torch.float64)[:, None], (torch.arange(nx, dtype=torch.float64) + 0.5) / nx
    made = [0.1 + 0.9 * torch.exp(-x / (0.1 + 0.5 * t.sqrt()))]
    for k in range(1, fields):
        phase = torch.rand(2, generator=g, dtype=torch.float64)
        made.append(torch.cos((1 + k // 4) * x + phase[0]) * (1 + t * phase[1]) ** (k % 4) + 0.1 * t * x**k)
    return torch.stack(made, -1)[None]


class LayerProblem:
    """Rows of the layer on a grid, for all of its boxes or some."""

    def __init__(self, nt: int, nx: int, num_experts: tuple[int, int], seed: int = 0) -> None:
        self.pde, self.num_experts = DiffusionSorption1D(nt, nx), num_experts
        self.basis, self.u0 = smooth_fields(self.pde, N, seed), torch.full((1, nx), 0.1, dtype=torch.float64)

    def rows(self, basis: Tensor, own: slice = slice(None)) -> list[Rows]:
        """Groups of rows of these experts."""
        data = ConstraintData.of(self.pde, [basis, self.u0], ())
        sample = sample_points(self.pde, self.num_experts, None, torch_generator(0), N)
        groups = constraint_rows(self.pde, data, *sample, balanced=True, pde_weight=0.1)
        return [rows.each(lambda x: x[:, own]) for rows in groups]

    def start(self, own: slice = slice(None)) -> Tensor:
        """First weights of these experts."""
        return torch.ones(1, math.prod(self.num_experts), N, dtype=torch.float64)[:, own]

    def solve(self, groups: Sequence[Rows], own: slice = slice(None), settings: Settings = SETTINGS) -> Any:
        """Weights, and how it went."""
        return solve_experts("batched", groups, self.start(own), settings, RIDGE)

    def both_ways(self, own: slice = slice(None)) -> None:
        """Terms, rows, solve and the gradient in the basis."""
        leaf = self.basis.clone().requires_grad_()
        self.solve(self.rows(leaf, own), own)[0].square().sum().backward()

    def expert_both_ways(self, k: int) -> Callable[[], None]:
        """Solve and gradient of one expert whose terms have come."""
        own = slice(k, k + 1)
        with torch.no_grad():
            given = [rows.each(lambda x: x.contiguous().clone()) for rows in self.rows(self.basis, own)]

        def work() -> None:
            leaves = [rows.with_tensors([x.requires_grad_() for x in rows.tensors]) for rows in given]
            self.solve(leaves, own)[0].square().sum().backward()

        return work


def layer_seconds(tasks: dict[str, Callable[[], Any]], repeats: int) -> dict[str, NDArray[Any]]:
    """CPU seconds of each task, taken in turns after one round that does not count."""
    seconds: dict[str, list[float]] = {name: [] for name in tasks}
    for round_ in range(repeats + 1):
        for name, task in tasks.items():
            start = time.process_time()
            task()
            if round_:
                seconds[name].append(time.process_time() - start)
    return {name: np.array(values) for name, values in seconds.items()}


def points(ctx: Context) -> None:
    """Seconds against points: one solve, four experts on one core, four over two workers; one expert each 8k points."""
    doubling = ((32, 64), (64, 64), (64, 128), (128, 128), (128, 256))
    grids = ctx.pick(tiny=((16, 32), (32, 64)), quick=doubling, full=doubling, paper=doubling)
    repeats = ctx.pick(tiny=1, quick=3, full=4, paper=1)
    found: dict[str, list[float]] = {}
    for nt, nx in grids:
        one, four = LayerProblem(nt, nx, (1, 1)), LayerProblem(nt, nx, (1, K))
        halves = {f"half {h}": partial(four.both_ways, slice(2 * h, 2 * h + 2)) for h in range(2)}
        seconds = layer_seconds({"one": one.both_ways, "four": four.both_ways, **halves}, repeats)
        seconds["two workers"] = np.maximum(seconds["half 0"], seconds["half 1"])
        for name, values in seconds.items():
            found.setdefault(name, []).append(float(np.min(values)))
    sizes = [nt * nx for nt, nx in grids]
    for claim, name in (("points-workers", "two workers"), ("points-one-core", "four")):
        ratios = seconds[name] / seconds["one"]
        ctx.measured(claim, float(np.median(ratios)), bootstrap_interval(ratios, statistic=np.median))
    exponent, interval = slope_fit(sizes, found["four"])
    ctx.measured("points-exponent", exponent, interval if len(sizes) > 2 else None)
    names = {"one": "PI-HC", "four": "PI-HC-MoE", "two workers": "PI-HC-MoE, 2 workers"}
    for key, method in names.items():
        ctx.series("layer", list(zip(sizes, found[key], strict=True)), method=method)
    slope = [(n, found["one"][0] * n / sizes[0]) for n in sizes]
    ctx.series("layer", slope, method="in proportion")
    _free_running(ctx, *grids[-1])
    if ctx.wants("points-experts"):
        _experts_grow(ctx, min(repeats, 2))


def _free_running(ctx: Context, nt: int, nx: int) -> None:
    """Seconds and steps when solves stop by themselves."""
    free, told = Settings(50, 1e-6, 1e-6, hessian="gauss-newton"), []
    for name, parts in (("PI-HC", (1, 1)), ("PI-HC-MoE", (1, K))):
        problem = LayerProblem(nt, nx, parts)
        with torch.no_grad():
            groups = problem.rows(problem.basis)
            start = time.process_time()
            _, info = problem.solve(groups, settings=free)
        told.append(f"{name} {time.process_time() - start:.2f} s with {info['nit'].flatten().tolist()} steps")
    ctx.note(f"layer on {nt} x {nx} points, stopping by itself: {'; '.join(told)}.")


def _experts_grow(ctx: Context, repeats: int) -> None:
    """One expert for each 8k points: seconds of the slowest."""
    cases = ctx.pick(
        tiny=((16, 32, 1), (16, 64, 2)), quick=((64, 128, 1),), full=((64, 128, 1), (64, 512, 4), (128, 1024, 16)),
        paper=((64, 128, 1),),
    )  # fmt: skip
    slowest = []
    for nt, nx, parts in cases:
        problem = LayerProblem(nt, nx, (1, parts))
        seconds = layer_seconds({str(k): problem.expert_both_ways(k) for k in range(parts)}, repeats)
        slowest.append(max(float(np.min(values)) for values in seconds.values()))
    sizes = [nt * nx for nt, nx, _ in cases]
    exponent, interval = slope_fit(sizes, slowest)
    ctx.measured("points-experts", exponent, interval if len(sizes) > 2 else None)
    ctx.note(f"slowest of 1, 4 and 16 experts for 8k points each: {', '.join(f'{1e3 * s:.0f} ms' for s in slowest)}.")


def memory(ctx: Context) -> None:
    """Bytes of the rows that one expert of four holds, in units of a quarter of those of the single solve."""
    one, four = LayerProblem(48, 64, (1, 1)), LayerProblem(48, 64, (1, K))

    def held(problem: LayerProblem, own: slice) -> int:
        return sum(8 * x.numel() for rows in members(problem.rows(problem.basis, own)) for x in rows.tensors)

    with torch.no_grad():
        whole, parts = held(one, slice(None)), [held(four, slice(k, k + 1)) for k in range(K)]
    ctx.measured("memory-expert", K * max(parts) / whole)
    ctx.note(f"rows of the single solve on 48 x 64 points: {whole / 1e6:.2f} MB; of one expert of four: "
             f"{max(parts) / 1e6:.2f} MB.")  # fmt: skip


# -------------------------------------------------------------------------------------------------- many small problems


def _many(B: int, R: int, seed: int) -> tuple[NDArray[Any], NDArray[Any]]:
    rng = np.random.default_rng(seed)
    T = rng.standard_normal((B, R, N)) / math.sqrt(N)
    z = np.einsum("brn,bn->br", T, rng.standard_normal((B, N)))
    return T, z + 0.3 * z**3 + 0.1 * rng.standard_normal((B, R))


def many_tasks(B: int, R: int, seed: int) -> dict[str, Callable[..., NDArray[Any]]]:
    """Fits of ``z + 0.3 z^3 = y``, z = T w: by the layer's solver all at once, and by SciPy one after the other."""
    from scipy.optimize import least_squares

    T, y = _many(B, R, seed)
    T_, y_ = torch.from_numpy(T), torch.from_numpy(y)

    def point(terms: Sequence[Tensor], data: Sequence[Tensor]) -> Tensor:
        return terms[0] + 0.3 * terms[0] ** 3 - data[0]

    problem = PointwiseLeastSquares((Rows(point, (T_,), (), (y_,), torch.ones_like(y_)),), ridge=0.0)
    start, tight = torch.zeros(B, N, dtype=torch.float64), Settings(50, 1e-15, 1e-15, hessian="gauss-newton")

    def ours() -> NDArray[Any]:
        return np.asarray(solve(problem, start, tight).w.numpy())

    def scipy(tol: float = 1e-8) -> NDArray[Any]:
        return np.stack([
            least_squares(
                lambda w, A=A, b=b: (z := A @ w) + 0.3 * z**3 - b, np.zeros(N),
                jac=lambda w, A=A: (1 + 0.9 * (A @ w) ** 2)[:, None] * A, method="lm",
                **dict.fromkeys(("xtol", "ftol", "gtol"), tol),
            ).x
            for A, b in zip(T, y, strict=True)
        ])  # fmt: skip

    return {"ours": ours, "SciPy": scipy}


def many_problems(ctx: Context) -> None:
    """Many small problems at once, beside a loop over SciPy and a vectorized jaxopt."""
    B, R = ctx.pick(tiny=(4, 100), quick=(64, 2000), full=(64, 2000), paper=(64, 2000))
    tasks = many_tasks(B, R, ctx.seed)
    for name, task in (("jaxopt", jaxopt_task), ("optimistix", optimistix_task)):
        if ctx.wants(f"batched-{name}"):
            try:
                tasks[name] = task(B, R, ctx.seed)
            except MissingExtra as missing:
                ctx.skipped(f"batched-{name}", str(missing))
    seconds = layer_seconds(tasks, ctx.pick(tiny=1, quick=3, full=5, paper=1))
    for peer in ("SciPy", "jaxopt", "optimistix"):
        if peer in seconds:
            claim = f"batched-{peer.lower()}"
            ratios = seconds[peer] / seconds["ours"]
            ctx.measured(claim, float(np.median(ratios)), bootstrap_interval(ratios, statistic=np.median))
    reference = tasks["SciPy"](1e-14)
    ctx.measured("batched-minima", float(np.abs(tasks["ours"]() - reference).max() / np.abs(reference).max()))


def jaxopt_task(B: int, R: int, seed: int) -> Callable[..., NDArray[Any]]:
    """The same problems by a vectorized, compiled jaxopt.

    Raises
    ------
    MissingExtra
        It is not installed.
    """
    jaxopt: Any = require("jaxopt", what="its Levenberg-Marquardt method")
    solver = jaxopt.LevenbergMarquardt(_jax_residual, maxiter=50, tol=1e-8, jit=True)
    return _jax_task(B, R, seed, lambda start, T, y: solver.run(start, T, y).params)


def optimistix_task(B: int, R: int, seed: int) -> Callable[..., NDArray[Any]]:
    """The same problems by a vectorized, compiled optimistix.

    Raises
    ------
    MissingExtra
        It is not installed.
    """
    optimistix: Any = require("optimistix", what="its Levenberg-Marquardt method")
    solver = optimistix.LevenbergMarquardt(rtol=1e-8, atol=1e-8)

    def run(start: Any, T: Any, y: Any) -> Any:
        return optimistix.least_squares(
            lambda w, data: _jax_residual(w, *data), solver, start, (T, y), max_steps=50, throw=False
        ).value

    return _jax_task(B, R, seed, run)


def _jax_residual(w: Any, T: Any, y: Any) -> Any:
    z = T @ w
    return z + 0.3 * z**3 - y


def _jax_task(B: int, R: int, seed: int, run: Callable[[Any, Any, Any], Any]) -> Callable[..., NDArray[Any]]:
    jax: Any = require("jax", what="a vectorized Levenberg-Marquardt method")
    jax.config.update("jax_enable_x64", True)
    solve = jax.jit(jax.vmap(lambda T, y: run(jax.numpy.zeros(N), T, y)))
    T_, y_ = (jax.numpy.asarray(x) for x in _many(B, R, seed))
    return lambda: np.asarray(solve(T_, y_))


# ------------------------------------------------------------------------------------------------------------- devices


def devices(ctx: Context) -> None:
    """Wall seconds of four experts on one Ray worker and on two, and the weights of both."""
    try:
        ray: Any = require("ray", "federated", what="experts on workers")
        missing = "Ray is not started at tiny" if ctx.scale == "tiny" else ""
    except MissingExtra as error:
        missing = str(error)
    if missing:
        for claim in ("devices-ray", "devices-same"):
            ctx.skipped(claim, missing)
        return
    nt, nx = ctx.pick(tiny=(16, 32), quick=(32, 64), full=(128, 512), paper=(128, 512))
    problem = LayerProblem(nt, nx, (1, K))
    options: dict[str, Any] = {"row_scaling": "balanced", "pde_weight": 0.1, "ridge": RIDGE, "maxiter": 30}
    options |= {"atol": 0.0, "rtol": 0.0, "hessian": "gauss-newton"}
    seconds, weights = {}, {}
    for workers in (1, 2):
        with joined_ray(ray, workers):
            layer = HardConstraintMoE(problem.pde, (1, K), backend="ray", **options)
            taken = []
            with torch.no_grad():
                for _ in range(ctx.pick(tiny=2, quick=2, full=9, paper=9)):
                    start = time.perf_counter()
                    weights[workers] = layer(problem.basis, problem.u0).weights
                    taken.append(time.perf_counter() - start)
            seconds[workers] = min(taken[1:])  # the first one starts the workers
    with torch.no_grad():
        here = HardConstraintMoE(problem.pde, (1, K), **options)(problem.basis, problem.u0).weights
    ctx.measured("devices-ray", seconds[1] / seconds[2])
    ctx.measured("devices-same", max(float((w - here).abs().max() / here.abs().max()) for w in weights.values()))
    ctx.note(f"experts on Ray, {nt} x {nx} points, 30 steps: {seconds[1]:.2f} s on one worker, {seconds[2]:.2f} s on "
             "two (wall).")  # fmt: skip
