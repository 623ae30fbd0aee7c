"""Runs of DADAO and its peers: against the condition number, on rings, for edge uses, over processes."""

from __future__ import annotations

import math
import time
from collections import defaultdict
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from steepest.core.extras import installed
from steepest.core.parallel import joined_ray
from steepest.federated._dadao import dadao
from steepest.federated._gossip_rates import uniform_gossip_rates
from steepest.studies import dadao_peers as peers
from steepest.studies import dadao_problems as problems
from steepest.studies.claim import bootstrap_interval, slope_fit
from steepest.studies.context import Context
from steepest.studies.dadao_peers import Course
from steepest.studies.dadao_problems import Edges, Problem

__all__ = ["condition", "course_of", "edges", "log_courses", "paper", "rings", "workers"]

LEVEL = 1e-8  # mean squared distance, relative to the start's
TINY = 1e-300  # of which there is a logarithm
GUARANTEE = 1 / (8 * math.sqrt(2))
STEP = 0.25  # of gossip tracking, in 1 / L: at 0.5 the network, not L / mu, sets its time for small L / mu


def course_of(problem: Problem, graph: Any, seed: int, level: float = LEVEL, **options: Any) -> Course:
    """Run DADAO until the distance has been below `level` for a while."""
    start = float((problem.x_star**2).sum())
    course, below = Course(), 0

    def stop(intermediate_result: Any) -> None:
        nonlocal below
        row = intermediate_result
        course.edges.append(float(row.communications))
        course.time.append(row.time)
        course.distance.append(row.distance / start)
        below = below + 1 if course.distance[-1] <= level else 0
        if below >= 20:
            raise StopIteration

    longest = 60 / GUARANTEE * math.sqrt(problem.kappa)
    dadao(
        problem.gradient, np.zeros(problem.d), graph=graph, L=problem.L, mu=problem.mu, x_star=problem.x_star,
        seed=seed, t_max=longest, callback=stop, **options,
    )  # fmt: skip
    return course


def log_courses(
    ctx: Context, name: str, method: str, courses: dict[int, Course], first: float = 1.0, points: int = 150
) -> None:
    """Keep distance against edge uses by seed, all at the same places, from `first` to where the first of them ends."""
    last = min(course.edges[-1] for course in courses.values())
    at = np.geomspace(min(first, last), last, points)
    for seed, course in courses.items():
        distance = np.exp(np.interp(at, course.edges, np.log(np.maximum(course.distance, TINY))))
        ctx.series(name, list(zip(at, distance, strict=True)), method=method, seed=seed)


def condition(ctx: Context) -> None:
    """Time and edge uses against the condition number, on a ring."""
    kappas = ctx.pick(tiny=(4, 16), quick=(10, 30, 90), full=(10, 40, 160, 640), paper=())
    level = 1e-3 if ctx.scale == "tiny" else LEVEL
    graph = problems.cycle(ctx.pick(tiny=6, quick=20, full=20, paper=20))
    rate = float(uniform_gossip_rates(graph).rates[0])
    slopes: dict[str, list[float]] = {"DADAO": [], "gossip tracking": []}
    ratios, stiff = [], []
    for seed in ctx.seeds:
        found: dict[str, list[tuple[float, float]]] = {name: [] for name in slopes}
        used: dict[str, list[tuple[float, float]]] = {"DADAO": [], "EXTRA": [], "gradient tracking": []}
        for kappa in kappas:
            problem = problems.quadratics(graph[0], 10, kappa, seed)
            ours = ctx.timed("DADAO", partial(course_of, problem, graph, seed, level))
            gossip = ctx.timed("gossip tracking", partial(
                peers.gossip_tracking, problem, graph, rate, level, seed, step=STEP, max_time=60 * kappa))  # fmt: skip
            found["DADAO"].append((kappa, ours.reach(level, "time")))
            found["gossip tracking"].append((kappa, gossip.reach(level, "time")))
            ratios.append(_rate(ours, level) * math.sqrt(kappa) / GUARANTEE)
            used["DADAO"].append((kappa, ours.reach(level)))
            used["EXTRA"].append((kappa, peers.extra(problem, graph, level).reach(level)))
            used["gradient tracking"].append((kappa, peers.gradient_tracking(problem, graph, level).reach(level)))
        for name, pairs in found.items():
            ctx.series("time", pairs, method=name, seed=seed)
            slopes[name].append(slope_fit(*zip(*pairs, strict=True))[0])
        for name, pairs in used.items():
            ctx.series("stiff", pairs, method=name, seed=seed)
        stiff.append(used["EXTRA"][-1][1] / used["DADAO"][-1][1])
    theory = [(kappa, math.log(1 / level) * math.sqrt(kappa) / GUARANTEE) for kappa in kappas]
    ctx.series("time", theory, method="theory")
    for claim, values in (("accelerated", slopes["DADAO"]), ("not-accelerated", slopes["gossip tracking"]),
                          ("stiff", stiff)):  # fmt: skip
        ctx.measured(claim, float(np.median(values)), bootstrap_interval(values))
    if ctx.scale == "quick":
        ctx.note("Condition numbers up to 90 for time; the full scale goes to 640.")
    ctx.measured("guarantee", min(ratios), (min(ratios), max(ratios)))


def _rate(course: Course, level: float) -> float:
    """Slope of the logarithm of the distance, from a hundredth of the start to `level`."""
    distance, t = np.array(course.distance), np.array(course.time)
    used = (distance < 1e-2) & (distance > level / 10) if (distance < 1e-2).sum() > 5 else distance < 1
    return float(-np.polyfit(t[used], np.log(distance[used]), 1)[0])


def rings(ctx: Context) -> None:
    """Communications to 1e-6 on rings, over the total of the rates."""
    sizes = ctx.pick(tiny=(4, 6), quick=(10, 20, 40), full=(10, 20, 40), paper=())
    level = 1e-3 if ctx.scale == "tiny" else 1e-6
    deviations = []
    for seed in ctx.seeds:
        per_rate = []
        for n in sizes:
            course = course_of(problems.quadratics(n, 10, 10, seed), problems.cycle(n), seed, level)
            per_rate.append(course.reach(level) / uniform_gossip_rates(problems.cycle(n)).total)
        deviations.append(float(np.abs(np.array(per_rate) / np.mean(per_rate) - 1).max()))
    ctx.measured("communications", float(np.median(deviations)), bootstrap_interval(deviations))


def edges(ctx: Context, task: str, names: dict[str, str]) -> None:
    """Edge uses to 1e-8 on random geometric graphs, ours beside all peers."""
    make = {"regression": problems.least_squares, "logistic": problems.logistic}[task]
    n, level = ctx.pick(tiny=(8, 1e-3), quick=(20, LEVEL), full=(20, LEVEL), paper=(20, LEVEL))
    ratios: dict[str, list[float]] = {key: [] for key in names}
    courses: defaultdict[str, dict[int, Course]] = defaultdict(dict)
    for seed in ctx.seeds:
        problem = make(n, 10, seed)
        graph, _ = problems.geometric_graph(n, 0.4 if n == 20 else 0.6, seed)
        ours = course_of(problem, graph, seed, level)
        courses["DADAO"][seed] = ours
        if installed("cvxpy"):
            courses["DADAO, best rates"][seed] = course_of(problem, graph, seed, level, rates="sdp")
        for key, course in _peers(problem, graph, level, seed).items():
            courses[names[key]][seed] = course
            ratios[key].append(course.reach(level) / ours.reach(level))
    for method, by_seed in courses.items():
        log_courses(ctx, task, method, by_seed, first=50.0)
    for key, values in ratios.items():
        ctx.measured(f"edges-{task}-{key}", float(np.median(values)), bootstrap_interval(values, statistic=np.median))
    if task == "regression":
        best = min(ratios, key=lambda key: float(np.median(ratios[key])))
        factor = float(np.median(ratios[best]))
        ctx.against(names[best], factor, bootstrap_interval(ratios[best], statistic=np.median),
                    ahead="fewer edge uses", behind="more edge uses",
                    what="least squares over a random geometric graph of 20 nodes, to 1e-8")  # fmt: skip


def _peers(problem: Problem, graph: Edges, level: float, seed: int) -> dict[str, Course]:
    return {
        "extra": peers.extra(problem, graph, level),
        "tracking": peers.gradient_tracking(problem, graph, level),
        "adom": peers.adom_plus(problem, graph, level, multi_consensus=False),
        "adom-consensus": peers.adom_plus(problem, graph, level, multi_consensus=True),
        "msda": peers.msda(problem, graph, level),
        "continuized": peers.continuized_dual(problem, graph, level, seed),
    }


class _Slow:
    """Gradients that take a while: they sleep."""

    def __init__(self, gradient: Callable[[int, Any], Any], seconds: float) -> None:
        self.gradient, self.seconds = gradient, seconds

    def __call__(self, i: int, x: Any) -> Any:
        time.sleep(self.seconds)
        return self.gradient(i, x)


def workers(ctx: Context) -> None:
    """Two processes against one, gradients of 10 ms, and against the simulation."""
    if not installed("ray"):
        for claim in ("workers-equal", "workers-faster"):
            ctx.skipped(claim, 'Ray is not installed: pip install "steepest[federated]"')
        return
    import ray

    from steepest.federated import FunctionClient, RayEngine

    rng = np.random.default_rng(ctx.seed)
    c = rng.standard_normal((8, 10))

    def gradient(i: int, x: Any) -> Any:
        return x - c[i]

    units = ctx.pick(tiny=1.0, quick=1.0, full=30.0, paper=30.0)
    options: dict[str, Any] = {"graph": problems.cycle(8), "L": 1.0, "mu": 0.1, "t_max": units, "seed": ctx.seed}
    alone = dadao(gradient, np.zeros(10), **options)
    seconds: dict[int, list[float]] = {1: [], 2: []}
    difference = 0.0
    with joined_ray(ray, 2):
        for _ in range(ctx.pick(tiny=1, quick=1, full=3, paper=3)):
            for n in seconds:
                clock: list[float] = []
                engine = RayEngine([FunctionClient(_nothing)] * 8, workers=n)
                found = dadao(_Slow(gradient, 0.01), np.zeros(10), engine=engine,
                              callback=partial(_note, clock), **options)  # fmt: skip
                seconds[n].append(clock[-1] - clock[0])
                difference = max(difference, float(np.abs(found.state - alone.state).max()))
    faster = np.array(seconds[1]) / seconds[2]
    ctx.measured("workers-equal", difference)
    ctx.measured("workers-faster", float(np.median(faster)), (float(faster.min()), float(faster.max())))


def _nothing(model: Any, task: Any) -> Any:
    return None


def _note(clock: list[float], x: Any) -> None:
    clock.append(time.perf_counter())


def paper(ctx: Context) -> None:
    """A hundred nodes and fifty random geometric graphs in turns, least squares of 100 variables."""
    n, d, count = 100, 100, 50
    problem = problems.least_squares(n, d, ctx.seed, samples=500)
    graphs = [problems.geometric_graph(n, 0.2, ctx.seed + k)[0] for k in range(count)]
    hardest = max(graphs, key=lambda graph: 1 / float(np.linalg.eigvalsh(peers.laplacian(graph))[1]))
    level = LEVEL if ctx.max_steps is None else 0.5
    ours = course_of(problem, graphs, ctx.seed, level, switch_every=1.0)
    log_courses(ctx, "regression", "DADAO", {ctx.seed: ours})
    limit = ctx.max_steps or 20_000
    adom = peers.adom_plus(problem, hardest, level, multi_consensus=True, maxiter=limit)
    log_courses(ctx, "regression", "ADOM+, multi-consensus", {ctx.seed: adom})
    ctx.note("ADOM+ gossips over the graph with the largest chi1 of the fifty, which its constants are for.")
    ctx.measured("paper-switching", adom.reach(level) / ours.reach(level))
