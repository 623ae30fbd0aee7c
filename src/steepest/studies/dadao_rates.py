"""How much less a network has to talk with the best rates, and what they look like."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from steepest.core.extras import installed
from steepest.federated._gossip_rates import optimal_gossip_rates
from steepest.studies import dadao_problems as problems
from steepest.studies.claim import bootstrap_interval
from steepest.studies.context import Context
from steepest.studies.dadao_peers import Course
from steepest.studies.dadao_runs import course_of, log_courses

__all__ = ["barbell_run", "draw_networks", "gains"]


def gains(ctx: Context) -> Any:
    """Equal rates over the best ones, on graphs of seven kinds; return the best of the barbell."""
    small = ctx.scale == "tiny"
    graphs = {
        "barbell": problems.barbell(4 if small else 10),
        "grid": problems.grid(2, 3) if small else problems.grid(4, 5),
        "cycle": problems.cycle(6 if small else 20),
        "complete": problems.complete(5 if small else 12),
        "star": (6, [(0, i) for i in range(1, 6)]) if small else (20, [(0, i) for i in range(1, 20)]),
        "path": (6, [(i, i + 1) for i in range(5)]) if small else (20, [(i, i + 1) for i in range(19)]),
    }
    method = "sdp" if installed("cvxpy") else "barrier"
    best = {name: optimal_gossip_rates(graph, method=method) for name, graph in graphs.items()}
    for name, found in best.items():
        ctx.measured(f"rates-{name}", found.gain, (found.gain, found.uniform_total / found.lower_bound))
    n, radius, draws = ctx.pick(tiny=(8, 0.6, 2), quick=(20, 0.4, 5), full=(20, 0.4, 15), paper=(20, 0.4, 15))
    drawn = [problems.geometric_graph(n, radius, ctx.seed + 1 + k) for k in range(draws)]
    results = [optimal_gossip_rates(graph, method=method) for graph, _ in drawn]
    values = [found.gain for found in results]
    ctx.measured("rates-geometric", float(np.median(values)), bootstrap_interval(values, statistic=np.median))
    _keep_networks(ctx, best["barbell"], drawn[0][1], results[0])
    return best["barbell"].rates


def _keep_networks(ctx: Context, best: Any, points: Any, found: Any) -> None:
    half = (int(best.edges.max()) + 1) // 2
    turn = 2 * np.pi * np.arange(half) / half
    left = np.stack([-1.6 + np.cos(turn - 2 * np.pi * (half - 1) / half), np.sin(turn + 2 * np.pi / half)], axis=1)
    right = np.stack([1.6 - np.cos(turn), np.sin(turn)], axis=1)
    ctx.arrays(
        "networks", places_1=np.concatenate([left, right]), edges_1=best.edges, rates_1=best.rates,
        equal_1=best.uniform_total / len(best.edges), places_2=points, edges_2=found.edges, rates_2=found.rates,
        equal_2=found.uniform_total / len(found.edges),
    )  # fmt: skip


def barbell_run(ctx: Context, best: Any) -> None:
    """Equal rates and the best ones on a barbell: time and communications to 1e-6."""
    graph = problems.barbell(ctx.pick(tiny=4, quick=10, full=10, paper=10))
    level = 1e-3 if ctx.scale == "tiny" else 1e-6
    times, fewer = [], []
    courses: dict[str, dict[int, Course]] = {"DADAO": {}, "DADAO, best rates": {}}
    for seed in ctx.seeds:
        problem = problems.quadratics(graph[0], 10, 10, seed)
        equal, ours = (course_of(problem, graph, seed, level, rates=rates) for rates in ("uniform", best))
        courses["DADAO"][seed], courses["DADAO, best rates"][seed] = equal, ours
        times.append(ours.reach(level, "time") / equal.reach(level, "time"))
        fewer.append(equal.reach(level) / ours.reach(level))
    for method, by_seed in courses.items():
        log_courses(ctx, "barbell", method, by_seed)
    ctx.measured("rates-time", float(np.median(times)), bootstrap_interval(times))
    ctx.measured("rates-communications", float(np.median(fewer)), bootstrap_interval(fewer))


def draw_networks(figure: Any, arrays: Mapping[str, np.ndarray], ink: Any) -> None:
    """Draw both networks, links as wide and dark as they talk."""
    from matplotlib.collections import LineCollection

    axes = figure.subplots(1, 2)
    for k, (ax, title) in enumerate(zip(axes, ("barbell", "random geometric graph"), strict=True), 1):
        places, edges, rates = (arrays[f"{name}_{k}"] for name in ("places", "edges", "rates"))
        order = np.argsort(rates)
        widths = 0.6 + 5 * rates[order] / rates.max()
        lines = LineCollection(places[edges[order]], linewidths=widths, cmap=ink.sequential, zorder=1)
        lines.set_array(rates[order])
        ax.add_collection(lines)
        ax.scatter(*places.T, s=26, color=ink.text, zorder=2)
        ax.set_aspect("equal")
        ax.margins(0.08)
        ax.set_axis_off()
        gain = float(arrays[f"equal_{k}"]) * len(edges) / float(rates.sum())
        ax.set_title(f"{title}: {gain:.1f} x fewer", color=ink.text, fontsize=10)
        bar = figure.colorbar(lines, ax=ax, shrink=0.7)
        bar.set_label("gossips per unit of time", color=ink.muted, fontsize=8)
        bar.ax.tick_params(colors=ink.muted, labelsize=7)
