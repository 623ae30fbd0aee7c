"""Deep conjugate directions solves a grid's Poisson systems in few iterations, along directions that a network learned.

It is for those who solve the same kind of symmetric positive definite grid system again and again, as fluid solvers do
for the pressure of every frame, with other right-hand sides, obstacles and resolutions. The network is trained once for
the kind, without a single solution. Here: iterations to a residual of 1e-4 on layouts, right-hand sides (smoke among
them) and sizes that no network has seen, beside conjugate gradients, incomplete factors, deflation, algebraic multigrid
and sparse LU (`studies.deep_conjugate_direction_trials`, `..._peers`), and what this takes in seconds. **On a processor
it is slower than most of them**, though it needs fewer iterations; the paper's regime is an accelerator and
three dimensions (`--scale paper`).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence

import numpy as np
import torch
from threadpoolctl import threadpool_limits

from steepest.core.parallel import ordered_map
from steepest.studies import deep_conjugate_direction_pictures as pictures
from steepest.studies.claim import Claim, Figure, Paper, Peer, Picture, bootstrap_interval, slope_fit
from steepest.studies.context import Context
from steepest.studies.deep_conjugate_direction_paper import run_paper
from steepest.studies.deep_conjugate_direction_peers import PACKAGES, SOLVERS
from steepest.studies.deep_conjugate_direction_systems import KINDS
from steepest.studies.deep_conjugate_direction_trials import (
    MEMORY_LAYOUTS,
    OURS,
    Plan,
    Run,
    Stage,
    Trial,
    a_smoke,
    run_seed,
    seconds_per_iteration,
    surplus_products,
)
from steepest.studies.provenance import cores

AREA = "physics"

PAPER = Paper(
    title="A Deep Conjugate Direction Method for Iteratively Solving Linear Systems",
    authors="Ayano Kaneda, Osman Akar, Jingyu Chen, Victoria Kala, David Hyde, Joseph Teran",
    venue="ICML",
    year=2023,
    url="https://arxiv.org/abs/2205.10763",
)

_FEW = "tens, where CG takes hundreds"
_ANY = "generalizes beyond its training"
_SIZE = "iterations independent of the size"
_FAST = "faster than ICPCG and deflated PCG (GPU)"
_OURS = "not in the paper; target of ours"
SHORT = {
    "CG": "cg", "IC(0)-PCG": "ic", "ILU-PCG": "ilu", "deflated CG": "deflation", "pyamg, Ruge-Stuben": "pyamg",
    "pyamg, aggregation": "aggregation", "sparse LU": "lu",
}  # fmt: skip
FEWER = ("CG", "IC(0)-PCG", "deflated CG")  # than which ours is to take fewer iterations
FASTER = ("IC(0)-PCG", "deflated CG")  # than which the paper's is faster

# fmt: off
CLAIMS = [  # id, what it says, the paper's number, bound, unit, scales, invariant
    Claim("iterations-64", "It needs a fraction of the iterations of CG to a residual of 1e-4: 64 x 64 cells.", _FEW,
          "<= 0.25", "x those of CG", "quick full"),
    Claim("iterations-128", "It needs tens of iterations: 128 x 128 cells, mean.", _FEW, "<= 40", "iterations",
          "full"),
    Claim("ratio-128", "A seventh of those of CG or fewer: 128 x 128 cells.", _FEW, "<= 0.1428", "x those of CG",
          "full"),
    Claim("ratio-256", "A sixth of those of CG or fewer: 256 x 256 cells, a size of no training.", _FEW, "<= 0.1666",
          "x those of CG", "full"),
    Claim("doubling-64", "Networks trained at their size need as many iterations on finer grids: from 32 to 64.",
          _SIZE, "<= 1.25", "x for twice the size", "full"),
    Claim("doubling-128", "The same from 64 to 128.", _SIZE, "<= 1.25", "x for twice the size", "full"),
    Claim("transfer", "A network needs few more iterations at twice the size of its training.", _SIZE, "<= 1.5",
          "x for twice the size", "quick full"),
    Claim("transfer-cg", "What CG needs more at twice that size.", "about 2", "reported", "x for twice the size",
          "quick full"),
    Claim("obstacles", "Trained on the empty box, it needs few more iterations around unseen obstacles.", _ANY,
          "<= 1.5", "x the empty box", "quick full"),
    Claim("obstacles-converged", "Every run reaches the tolerance.", _ANY, "== 1", "share of runs", "quick full"),
    Claim("right-sides", "The hardest kind of right-hand side (noise, smooth sources, smoke).", _ANY, "reported",
          "x the mean", "quick full"),
    Claim("fallbacks", "How often the residual took the place of the network's direction.", "no safeguard",
          "reported", "share of iterations", "quick full"),
    Claim("unsupervised", "Training asks for products with A, and for nothing else: products beyond Lanczos and loss.",
          "no solutions needed", "== 0", "products", "quick full", True),
    Claim("memory-0", "Making directions conjugate matters: two kept directions against none.", "Sec. 4", "<= 0.9",
          "x the iterations", "quick full"),
    Claim("memory-1", "Two kept directions against one.", "Sec. 4", "<= 1.05", "x the iterations", "quick full"),
    Claim("descent", "The error in the norm of A never grows, whatever the network returns: largest factor.",
          "exact line search", "<= 1.000000001", "x an iteration", "quick full", True),
    Claim("smoke-divergence", "The smoke's flow is free of divergence after an exact projection.", "not in the paper",
          "< 1e-6", "largest divergence of a cell", "quick full", True),
    *(Claim(f"fewer-{SHORT[name]}", f"It takes fewer iterations than {name}, at every size (the worst).", _FEW,
            "< 1" if name in FEWER else "reported", "x theirs", "quick full") for name in SOLVERS
      if name != "sparse LU"),
    Claim("time-cg", "Seconds of one core beside CG, above 1 where ours is slower: the largest grid.",
          "not in the paper", "reported", "x theirs", "quick"),
    Claim("time-cg-256", "Seconds of one core beside CG: 256 x 256 cells.", _OURS, "<= 8", "x theirs", "full"),
    *(Claim(f"time-{SHORT[name]}", f"Seconds of one core, set-up included, beside {name}: the largest grid.",
            _FAST if name in FASTER else "not in the paper", "< 1" if name in FASTER else "reported", "x theirs",
            "quick full") for name in SOLVERS if name != "CG"),
    Claim("training", "What the training takes, which no other solver here needs.", "a day on a GPU", "reported",
          "CPU seconds", "quick full"),
    Claim("milliseconds", "An iteration at 256 x 256 cells on two threads.", _OURS, "<= 40", "ms", "full"),
    Claim("cost-exponent", "An iteration costs in proportion to the cells.", "a convolutional network", "<= 1.15",
          "exponent of the cells", "quick full"),
    Claim("gpu-iterations", "Iterations in three dimensions, 256 cells a side.", _FEW, "reported", "iterations",
          "paper"),
    Claim("gpu-cg", "It is faster than CG on the same accelerator: 256 cells a side.", _FAST, "<= 0.7", "x theirs",
          "paper"),
    Claim("gpu-pyamg", "It is as fast as multigrid on the host, whose set-up is due whenever obstacles move.", _OURS,
          "<= 1", "x theirs", "paper"),
]
# fmt: on

PEERS = [Peer(name, PACKAGES.get(name, "scipy")) for name in SOLVERS]
OPTIONS: dict[str, str] = {}

_SYSTEMS = "Unseen right-hand sides of three kinds on the empty box and three unseen layouts of obstacles."
# fmt: off
FIGURES = [
    Figure("iterations", "Fewer iterations than CG at every size; multigrid needs fewer still", "iterations",
           "cells along a side", "iterations to a residual of 1e-4", log_x=True, log_y=True,
           caption=_SYSTEMS + " Mean over them; median and range over seeds."),
    Figure("residual", "One residual, seven solvers", "residual", "iteration", "relative residual",
           log_x=True, log_y=True,
           caption="White noise on a layout with obstacles that the network has not seen, to 1e-8; first seed."),
    Figure("seconds", "On a processor multigrid, LU and plain CG are faster", "seconds", "CPU seconds for a system",
           "solver", "dots", log_x=True, caption="The largest grid of the run, set-up included; one point a seed."),
    Figure("obstacles", "Obstacles and right-hand sides, size by size", "by kind", "cells along a side",
           "iterations to a residual of 1e-4", log_x=True,
           caption="The network was trained on the empty box. Mean over systems; median and range over seeds."),
    Figure("memory", "Without conjugate directions the network alone needs more", "memory",
           "iterations to a residual of 1e-4", "directions that are kept", "dots",
           caption="64 x 64 cells, the empty box and one layout, three kinds of right sides; one point a seed."),
    Figure("cost", "An iteration costs no more than in proportion to the cells", "cost", "cells", "milliseconds",
           log_x=True, log_y=True, caption="Empty box, one thread, CPU time, the fastest of seven iterations."),
]
PICTURES = [
    Picture("direction", "What the network makes of a residual", "direction", pictures.draw_direction,
            caption="A smooth right-hand side around obstacles that the network has not seen (gray); its direction "
            "has the length of the exact step. First seed.",
            alt="Four square maps: a residual of a few blobs, the network's smoother direction, the solution, smoother "
            "still, and what is left after the step, a part of it beside obstacles.", size=(7.6, 2.9)),
    Picture("smoke", "Where the right-hand sides come from: smoke around obstacles", "smoke", pictures.draw_smoke,
            caption="A step of stable fluids: smoke rises between obstacles (gray), its buoyancy makes the flow "
            "diverge, and the pressure takes the divergence away.",
            alt="Three square maps: a plume of smoke that parts around an obstacle, the divergence at its edges, and "
            "the pressure, high above the plume and low below.", size=(7.6, 3.3)),
]
# fmt: on

SNIPPET = """\
import numpy as np
from steepest.physics import ConjugateDirectionNet, DeepConjugateDirection, poisson_matrix, random_obstacles

model = DeepConjugateDirection(ConjugateDirectionNet(2, filters=8, levels=2, pairs=1), shape=(16, 16))
model.fit(n_vectors=600, n_lanczos=150, epochs=1, batch_size=4)  # the empty box, no solutions

shape, solid = (24, 24), random_obstacles((24, 24), 3, seed=0)
b = np.random.default_rng(0).standard_normal(shape) * ~solid
x, info, stats = model.solve(poisson_matrix(shape, solid), b.ravel(), shape=shape, solid=solid, rtol=1e-4,
                             full_output=True)
print("converged" if info == 0 else "not converged", "in", stats["iterations"], "iterations")
"""

_DEAR = (
    "one evaluation of the network costs about a hundred products with the matrix, two thirds of it convolutions that "
    "already run near a core's speed; {} of the iterations do not pay for that"
)
REASONS: dict[str, str] = {
    "obstacles": "The network was trained on the empty box alone, where it now takes 5 iterations at 64 x 64; around "
    "obstacles it takes 11. With earlier first weights and right-hand sides these were 9 and 14: both fell, the box's "
    "more. Training with obstacles was not tried.",
    "milliseconds": "Two thirds of an evaluation are convolutions at 50 GFLOP/s, most of them on the finest level; "
    "by itself an evaluation takes 50 to 60 ms on one thread, beside other work twice that.",
    "time-ic": _DEAR.format("0.4 of IC(0)-PCG's"),
    "time-deflation": _DEAR.format("an eighth"),
}

WHEN_NOT = [
    "There is no accelerator: on a processor multigrid, sparse LU and even plain CG are faster.",
    "A few systems are solved: training takes longer than all of them together by any other solver here.",
    "Obstacles stay where they are: factors or a multigrid hierarchy can be kept, and each solve is then nearly free.",
    "Residuals far below 1e-6 are wanted: the network was trained for the first digits and slows down behind them.",
    "The matrix is no stencil on a regular grid: a convolution cannot read it.",
]


def run(ctx: Context) -> None:
    """Measure with one thread; see the module."""
    if ctx.scale == "paper":
        run_paper(ctx)
        return
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with threadpool_limits(1):
            _measure(ctx)
    finally:
        torch.set_num_threads(before)


def _plan(ctx: Context) -> Plan:
    stages = (Stage(32, 1600, 200, 3e-3), Stage(64, 2400, 400, 2e-3), Stage(128, 2400, 400, 6e-4))
    return ctx.pick(
        quick=Plan(stages[:1], {32: {32: 4, 64: 4, 128: 2}}, memory_at=64, levels=3, pairs=2),
        full=Plan(stages, {32: {32: 4}, 64: {64: 4}, 128: {128: 4, 256: 4}}, memory_at=64, levels=4, pairs=2),
        paper=None,
        tiny=Plan(
            (Stage(32, 320, 40, 4e-3), Stage(64, 160, 120, 2e-3), Stage(128, 40, 200, 1e-3)),
            {32: {32: 2}, 64: {64: 2}, 128: {128: 2, 256: 2}},
            memory_at=64, levels=2, pairs=1, filters=8, shrink=4,
        ),
    )  # type: ignore[return-value]  # fmt: skip


def _measure(ctx: Context) -> None:
    plan = _plan(ctx)
    in_processes = ctx.scale == "full" and cores() > 1
    seeds = ctx.seeds if ctx.seeds_asked or ctx.scale != "full" else ctx.seeds[:2]
    trials = ordered_map(
        run_seed,
        [(plan, seed) for seed in seeds],
        backend="processes" if in_processes else "serial",
        n_workers=2,
        progress=lambda share: ctx.progress(0.9 * share),
    )
    for text in sorted(set().union(*(t.missing for t in trials))):
        ctx.note(text)
    iterations(ctx, plan, trials)
    beyond_training(ctx, plan, trials)
    memory(ctx, plan, trials)
    seconds(ctx, plan, trials)
    ctx.measured("unsupervised", surplus_products())
    ctx.measured("descent", max(t.growth for t in trials))
    cost(ctx, trials[0])
    worst, frame = a_smoke(ctx.pick(tiny=24, quick=80, full=128, paper=0), ctx.pick(tiny=5, quick=60, full=90, paper=0),
                           ctx.seeds[0])  # fmt: skip
    ctx.measured("smoke-divergence", worst)
    ctx.arrays("smoke", **frame)
    ctx.arrays("direction", **trials[0].direction)
    for name, norms in trials[0].curves.items():
        ctx.series("residual", norms, method=name, seed=ctx.seeds[0])
    stages = "; ".join(
        f"{s.n // plan.shrink} x {s.n // plan.shrink}: {s.n_vectors} right-hand sides" for s in plan.stages
    )
    ctx.note(f"trained on the empty box, {stages}; {plan.filters} filters, {plan.levels} levels, {plan.pairs} pairs, "
             "batches of 4. Every seed has its own network, obstacles and right-hand sides.")  # fmt: skip


# ------------------------------------------------------------------------------------------------------------- numbers


def _sizes(plan: Plan) -> dict[int, int]:
    """Every tested size, and the size of the training of the network that counts there: the nearest from below."""
    best: dict[int, int] = {}
    for trained, tested in plan.tested.items():
        for n in tested:
            best[n] = max(trained, best.get(n, 0))
    return dict(sorted(best.items()))


def _count(run: Run) -> float:
    return run.iterations


def _ours(plan: Plan, trial: Trial, n: int, value: Callable[[Run], float] = _count, **where: object) -> float:
    return float(trial.mean(OURS, n, value, _sizes(plan)[n], **where))


def _report(ctx: Context, claim: str, values: Sequence[float], missing: str = "") -> None:
    """The mean over the seeds and its interval; a peer that is not here costs its row."""
    if not ctx.wants(claim):
        return
    if any(math.isnan(v) for v in values):
        ctx.skipped(claim, missing)
    else:
        ctx.measured(claim, float(np.mean(values)), bootstrap_interval(values))


def _without(name: str) -> str:
    package = PACKAGES.get(name, "scipy")
    return f"{package} is not installed: pip install {package}"


# ---------------------------------------------------------------------------------------------------------- iterations


def iterations(ctx: Context, plan: Plan, trials: list[Trial]) -> None:
    """To a residual of 1e-4, beside all others, and how they grow with the grid."""
    sizes = _sizes(plan)
    for trial in trials:
        for name in (OURS, *SOLVERS):
            if name != "sparse LU":
                points = [(n, trial.mean(name, n, _count, sizes[n] if name == OURS else 0)) for n in sizes]
                ctx.series("iterations", [(n, v) for n, v in points if not math.isnan(v)], method=name, seed=trial.seed)
    ratios = {n: [_ours(plan, t, n) / t.mean("CG", n, _count) for t in trials] for n in sizes}
    _report(ctx, "iterations-64", ratios[64])
    if 256 in sizes:
        _report(ctx, "iterations-128", [_ours(plan, t, 128) for t in trials])
        _report(ctx, "ratio-128", ratios[128])
        _report(ctx, "ratio-256", ratios[256])
        for n in (64, 128):
            _report(ctx, f"doubling-{n}", [_ours(plan, t, n) / _ours(plan, t, n // 2) for t in trials])
    n = max(plan.tested)  # of the last training
    _report(ctx, "transfer", [t.mean(OURS, 2 * n, _count, n) / t.mean(OURS, n, _count, n) for t in trials])
    _report(ctx, "transfer-cg", [t.mean("CG", 2 * n, _count) / t.mean("CG", n, _count) for t in trials])
    for name in SOLVERS:
        if name != "sparse LU":
            worst = [float(np.max([_ours(plan, t, n) / t.mean(name, n, _count) for n in sizes])) for t in trials]
            _report(ctx, f"fewer-{SHORT[name]}", worst, _without(name))


def beyond_training(ctx: Context, plan: Plan, trials: list[Trial]) -> None:
    """Obstacles and kinds of right-hand sides, at the sizes of their own training and beyond."""
    sizes = _sizes(plan)
    layouts = {"empty box": (0,), "obstacles": tuple(range(1, 9))}
    for trial in trials:
        for name, which in layouts.items():
            points = [(n, _ours(plan, trial, n, layout=which)) for n in sizes]
            ctx.series("by kind", points, method=f"{OURS}, {name}", seed=trial.seed)
        for kind in KINDS:
            points = [(n, _ours(plan, trial, n, kind=(kind,))) for n in sizes]
            ctx.series("by kind", points, method=kind, seed=trial.seed)
    _report(ctx, "obstacles", [
        float(np.mean([
            _ours(plan, t, n, layout=layouts["obstacles"]) / _ours(plan, t, n, layout=(0,)) for n in sizes
        ])) for t in trials
    ])  # fmt: skip
    runs = [run for t in trials for run in t.runs if run.solver == OURS]
    ctx.measured("obstacles-converged", float(np.mean([run.arrived for run in runs])))
    ctx.measured("fallbacks", sum(run.fallbacks for run in runs) / sum(run.iterations for run in runs))
    _report(ctx, "right-sides", [
        max(float(np.mean([_ours(plan, t, n, kind=(kind,)) / _ours(plan, t, n) for n in sizes])) for kind in KINDS)
        for t in trials
    ])  # fmt: skip


def memory(ctx: Context, plan: Plan, trials: list[Trial]) -> None:
    """Two kept directions against one and none."""
    n = plan.memory_at
    spent = {"2": [_ours(plan, t, n, layout=MEMORY_LAYOUTS) for t in trials]}
    for kept in ("0", "1"):
        spent[kept] = [t.mean(f"{OURS}, memory {kept}", n, _count) for t in trials]
        ctx.measured(f"memory-{kept}", *_mean_of(np.divide(spent["2"], spent[kept])))
    for kept, values in spent.items():
        for trial, value in zip(trials, values, strict=True):
            name = OURS if kept == "2" else f"{OURS}, memory {kept}"
            ctx.series("memory", [value], method=name, seed=trial.seed)


def _mean_of(values: np.ndarray) -> tuple[float, tuple[float, float]]:
    return float(np.mean(values)), bootstrap_interval(values)


# ------------------------------------------------------------------------------------------------------------- seconds


def seconds(ctx: Context, plan: Plan, trials: list[Trial]) -> None:
    """At the largest grid, set-up included because obstacles move; and what the training takes."""
    largest = max(_sizes(plan))
    spent = {name: [t.mean(name, largest, lambda run: run.total) for t in trials] for name in (OURS, *SOLVERS)}
    for name, values in spent.items():
        for trial, value in zip(trials, values, strict=True):
            if not math.isnan(value):
                ctx.series("seconds", [value], method=name, seed=trial.seed)
        if name != OURS:
            ratios = [float(r) for r in np.divide(spent[OURS], values)]
            _report(ctx, "time-cg" if name == "CG" else f"time-{SHORT[name]}", ratios, _without(name))
            if name == "CG":
                _report(ctx, "time-cg-256", ratios)
    ctx.measured("training", *_mean_of(np.array([sum(t.training.values()) for t in trials])))
    there = [name for name in SOLVERS if not math.isnan(spent[name][0])]
    best = min(there, key=lambda name: float(np.mean(spent[name])))
    factors = np.divide(spent[best], spent[OURS])
    ctx.against(best, float(np.mean(factors)), bootstrap_interval(factors, level=0.95), ahead="faster", behind="slower",
                what=f"pressure systems on {largest} x {largest} cells to 1e-4, one core, set-up included")  # fmt: skip
    n = largest // plan.shrink
    listed = ", ".join(f"{name} {np.mean(spent[name]):.3g}" for name in (OURS, *there))
    ctx.note(f"CPU seconds for a system of {n} x {n} cells, set-up included: {listed}.")


def cost(ctx: Context, trial: Trial) -> None:
    """Of an iteration against the cells, one thread; and on two threads at 256 x 256."""
    model = trial.model
    assert model is not None
    sizes = ctx.pick(tiny=(32, 64), quick=(64, 96, 128, 192, 256), full=(64, 128, 192, 256, 384, 512), paper=())
    taken = [seconds_per_iteration(model, n, 7, statistic=np.min) for n in sizes]
    cells = [n * n for n in sizes]
    slope, interval = slope_fit(cells, taken)
    ctx.measured("cost-exponent", slope, interval if len(sizes) > 2 else None)
    ctx.series("cost", zip(cells, np.multiply(taken, 1e3), strict=True), method=OURS)
    ctx.series("cost", [(c, 1e3 * taken[0] * c / cells[0]) for c in cells], method="in proportion to the cells")
    if ctx.wants("milliseconds"):
        with threadpool_limits(2):
            torch.set_num_threads(2)
            wall = seconds_per_iteration(
                model, ctx.pick(tiny=64, quick=256, full=256, paper=256), 20, time.perf_counter
            )
            torch.set_num_threads(1)
        ctx.measured("milliseconds", 1e3 * wall)
