"""The FZooS study's comparisons: queries to a value, attacks and metrics, each method tuned on seeds of its own."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import islice
from typing import Any

import numpy as np

from steepest.core.extras import installed
from steepest.core.parallel import ordered_map
from steepest.studies import fzoos_peers as peers
from steepest.studies.claim import bootstrap_interval
from steepest.studies.context import Context
from steepest.studies.fzoos_problems import METRICS
from steepest.studies.fzoos_runs import (
    BASELINES,
    METHODS,
    Course,
    Race,
    Setting,
    digits,
    directions,
    grid,
    race,
    tuned,
)  # fmt: skip

__all__ = ["attacks", "disparity", "few_attacks", "low_dimension", "metrics", "queries"]

TUNING = 1000  # added to the seed: problems that no result is taken from
Description = tuple[Any, ...]
Found = dict[str, list[Course]]


def _each(ctx: Context, fn: Callable[[Any], Any], items: Sequence[Any]) -> list[Any]:
    return ordered_map(fn, items, backend="processes" if ctx.scale in ("full", "paper") else "serial")


def compared(
    ctx: Context, tuning: Sequence[Description], judged: Sequence[Description], trials: int | None = None,
    target: float = -math.inf, grids: Callable[[str], list[Setting]] = grid, tuning_rounds: int | None = None,
    **limits: Any,
) -> tuple[dict[str, Setting], Found]:  # fmt: skip
    """Tune every method on the first problems, then run each once on the others."""
    return all_compared(ctx, [(tuning, judged)], trials, target, grids, tuning_rounds, **limits)[0]


def all_compared(
    ctx: Context, tasks: Sequence[tuple[Sequence[Description], Sequence[Description]]], trials: int | None = None,
    target: float = -math.inf, grids: Callable[[str], list[Setting]] = grid, tuning_rounds: int | None = None,
    **limits: Any,
) -> list[tuple[dict[str, Setting], Found]]:  # fmt: skip
    """The same for several pairs of problems to tune on and to judge by, with one pool of processes for each step."""
    settings = {method: grids(method)[:trials] for method in METHODS}
    shorter = limits | ({} if tuning_rounds is None else {"rounds": min(tuning_rounds, limits["rounds"])})
    tried = iter(_each(ctx, race, [Race(p, s, 0, target=target, **shorter) for tuning, _ in tasks
                                   for method in METHODS for s in settings[method] for p in tuning]))  # fmt: skip
    best = []
    for tuning, _ in tasks:
        courses = {m: [list(islice(tried, len(tuning))) for _ in settings[m]] for m in METHODS}
        best.append({m: tuned(settings[m], courses[m], target) for m in METHODS})
    done = iter(_each(ctx, race, [Race(p, chosen[m], k, target=target, **limits)
                                  for (_, judged), chosen in zip(tasks, best, strict=True)
                                  for m in METHODS for k, p in enumerate(judged)]))  # fmt: skip
    found: list[Found] = [{m: list(islice(done, len(judged))) for m in METHODS} for _, judged in tasks]
    return list(zip(best, found, strict=True))


def _median(values: Any) -> tuple[float, tuple[float, float]]:
    return float(np.median(values)), bootstrap_interval(values, statistic=np.median)


def best_of(found: Found, of: Callable[[Course], float], methods: Sequence[str] = BASELINES) -> str:
    """The method with the lowest median."""
    return min(methods, key=lambda m: float(np.median([of(c) for c in found[m]])))


def queries(
    ctx: Context, name: str, dim: int, div: float, rounds: int, n_seeds: int, n_tuning: int, trials: int | None = None,
    *, grids: Callable[[str], list[Setting]] = grid, tuning_rounds: int | None = None,
) -> None:  # fmt: skip
    """Queries (and rounds) to a value of the paper's quadratic, over those of the best baseline."""
    few = ctx.seeds if ctx.seeds_asked else [ctx.seed + 1 + k for k in range(n_seeds)]
    tuning = [("Quadratic", dim, 5, div, ctx.seed + TUNING + k) for k in range(n_tuning)]
    judged = [("Quadratic", dim, 5, div, seed) for seed in few]
    target = 1e-2 if dim < 300 else 0.1 * 3.3  # ten percent of the gap at a uniform start, 10/3 in the mean
    best, found = compared(ctx, tuning, judged, trials, target, grids, tuning_rounds, rounds=rounds)
    rival = best_of(found, lambda c: c.spent(target))
    ratios = [a.hit(target) / b.spent(target) for a, b in zip(found["FZooS"], found[rival], strict=True)]
    ctx.measured(name, *_median(ratios))
    if name == "queries":
        rival_ = best_of(found, lambda c: c.spent(target, "rounds"))
        ctx.measured("rounds", *_median([a.hit(target, "rounds") / b.spent(target, "rounds")
                                         for a, b in zip(found["FZooS"], found[rival_], strict=True)]))  # fmt: skip
        default = _each(ctx, race, [Race(p, Setting(m), k, rounds, target) for m in METHODS
                                    for k, p in enumerate(judged)])  # fmt: skip
        plain = {m: default[k * len(judged) : (k + 1) * len(judged)] for k, m in enumerate(METHODS)}
        other = best_of(plain, lambda c: c.spent(target))
        ctx.measured("queries-default", *_median([a.hit(target) / b.spent(target) for a, b in
                                                  zip(plain["FZooS"], plain[other], strict=True)]))  # fmt: skip
        gains = [1 / r if r else math.inf for r in ratios]
        ctx.against(rival, *_median(gains), ahead="fewer queries", behind="more queries",
                    what=f"quadratic, d = {dim}, to 1e-2, all tuned")  # fmt: skip
        _centralized(ctx, judged, found["FZooS"], target)
    for method, courses in found.items():
        asked = best[method].asked
        ctx.note(f"Quadratic, d {dim}, div {div}, {method} with lr {best[method].lr}"
                 f"{f', prox {best[method].prox}' if 'prox' in method else ''}"
                 f"{'' if asked is None else f', {asked} queries'}: queries to {target:.2g} "
                 f"{[c.hit(target) for c in courses]}, rounds "
                 f"{[c.hit(target, 'rounds') for c in courses]}.")  # fmt: skip
        for seed, course in zip(few, courses, strict=True):
            ctx.series(f"gap, {name}", list(zip(course.queries, course.gaps, strict=True)), method=method, seed=seed)


def _centralized(ctx: Context, judged: Sequence[tuple[Any, ...]], ours: Sequence[Course], target: float) -> None:
    """The same beside optimizers that see F itself."""
    budget = ctx.pick(tiny=100, quick=2000, full=2000, paper=6000)
    wanted = {peer: package for peer, package in peers.PEERS.items() if ctx.wants(f"peer-{peer.lower()}")}
    for peer, package in wanted.items():
        if not installed(package):
            ctx.skipped(f"peer-{peer.lower()}", f"{package} is not installed: pip install {package}")
    there = [peer for peer, package in wanted.items() if installed(package)]
    done = iter(_each(ctx, peers.queries_to, [(peer, p, target, k, budget) for peer in there
                                              for k, p in enumerate(judged)]))  # fmt: skip
    for peer in there:
        claim, package, spent = f"peer-{peer.lower()}", wanted[peer], list(islice(done, len(judged)))
        ctx.measured(claim, *_median([a.hit(target) / min(b, 5.0 * budget)
                                      for a, b in zip(ours, spent, strict=True)]))  # fmt: skip
        ctx.note(f"{peer} ({package}), d {judged[0][1]}: queries to {target:.2g} {spent}.")


def low_dimension(ctx: Context, dim: int = 5) -> None:
    """CMA-ES beside FZooS where the dimension is low."""
    judged = [("Quadratic", dim, 5, 0.5, seed) for seed in ctx.seeds]
    ours = _each(ctx, race, [Race(p, Setting("FZooS", 0.03), k, 10, 1e-2) for k, p in enumerate(judged)])
    theirs = [peers.queries_to(("cma", p, 1e-2, k, 6000)) for k, p in enumerate(judged)]
    if theirs[0] is None:
        ctx.skipped("peer-cma-low", "cma is not installed: pip install cma")
    else:
        ctx.measured("peer-cma-low", *_median([a.hit(1e-2) / b for a, b in zip(ours, theirs, strict=True)]))


def disparity(ctx: Context, prefix: str, div: float, seeds: Sequence[int], rounds: int) -> None:
    """With the correction and without: directions, final gaps and the spread of the end points."""
    items = [(("Quadratic", 50, 5, div, seed), correction, seed, rounds)
             for correction in ("decay", "none") for seed in seeds]  # fmt: skip
    done = _each(ctx, directions, items)
    ours, plain = done[: len(seeds)], done[len(seeds) :]
    pairs = list(zip(ours, plain, strict=True))
    ctx.measured(f"{prefix}-direction", *_median([a[0] / b[0] for a, b in pairs]))
    ctx.measured(f"{prefix}-gap", *_median([b[1].gaps[-1] / a[1].gaps[-1] for a, b in pairs]))
    ctx.measured(f"{prefix}-spread", *_median([np.mean(a[1].disparity[1:]) / np.mean(b[1].disparity[1:])
                                              for a, b in pairs]))  # fmt: skip
    for name, runs in (("corrected", ours), ("not corrected", plain)):
        for seed, (_, course) in zip(seeds, runs, strict=True):
            ctx.series(f"{prefix}, gap", list(zip(course.queries, course.gaps, strict=True)), method=name, seed=seed)


def attacks(
    ctx: Context, n_tuning: int, n: int, rounds: int, trials: int | None = None, *, claim: str = "attack",
    read: Callable[[], Any] = digits, share: float = 0.5, width: float = 0.2,
) -> None:  # fmt: skip
    """Share of images that are missed after half the baselines' queries, less the best baseline's share."""
    tuning = [("attack", read, share, width, n_tuning, ctx.seed + TUNING, k) for k in range(n_tuning)]
    judged = [("attack", read, share, width, n, ctx.seed + 1, k) for k in range(n)]
    best, found = compared(ctx, tuning, judged, trials, 0.0, rounds=rounds)
    again = iter(_each(ctx, race, [Race(p, best[m], 0, rounds, 0.0) for m in BASELINES for p in tuning]))
    tried = {m: list(islice(again, len(tuning))) for m in BASELINES}
    budget = min(float(np.median([c.spent(0.0) for c in tried[m]])) for m in BASELINES)

    def missed(method: str, queries: float) -> np.ndarray:
        return np.array([c.hit(0.0) <= queries for c in found[method]], float)

    rival = max(BASELINES, key=lambda m: missed(m, budget).mean())
    for name, queries in ((claim, budget / 2), (f"{claim}-equal", budget)):
        if name in ctx.claims:
            gain = 100 * (missed("FZooS", queries) - missed(rival, budget))
            ctx.measured(name, float(gain.mean()), bootstrap_interval(gain))
    ctx.note(f"Attack: the best baseline misses half of the tuning images' classes after {budget:g} queries. Of "
             f"{n} images, shares at that budget: {({m: round(float(missed(m, budget).mean()), 2) for m in METHODS})}; "
             f"FZooS at half of it {missed('FZooS', budget / 2).mean():.2f}.")  # fmt: skip
    _draw_missed(ctx, found, 4 * budget)


def few_attacks(ctx: Context, n: int, rounds: int) -> None:
    """Queries until an image is missed, over those of the best baseline; nothing tuned."""
    judged = [("attack", digits, 0.5, 0.2, n, ctx.seed + 1, k) for k in range(n)]
    found = {m: _each(ctx, race, [Race(p, Setting(m, 0.03), 0, rounds, 0.0) for p in judged]) for m in METHODS}
    rival = best_of(found, lambda c: c.spent(0.0))
    ctx.measured("attack-few", *_median([a.hit(0.0) / b.spent(0.0)
                                         for a, b in zip(found["FZooS"], found[rival], strict=True)]))  # fmt: skip
    ctx.note(f"Attack, {n} images: queries until each is missed, FZooS {[c.hit(0.0) for c in found['FZooS']]}, {rival} "
             f"{[c.hit(0.0) for c in found[rival]]}.")  # fmt: skip
    _draw_missed(ctx, found, max(c.queries[-1] for c in found["FedZO"]))


def _draw_missed(ctx: Context, found: Found, most: float) -> None:
    for method, courses in found.items():
        hits = np.array([c.hit(0.0) for c in courses])
        ctx.series("missed", [(q, float((hits <= q).mean())) for q in np.linspace(0, most, 81)], method=method)


def metrics(
    ctx: Context, data: str, read: Callable[..., Any], hidden: tuple[int, ...], budget: int, seeds: Sequence[int],
    trials: int | None = None, *, claim: str | None = None, names: Sequence[str] = METRICS,
) -> None:  # fmt: skip
    """In how many of the four metrics FZooS ends lower than every baseline at equal queries."""
    lower = []
    tasks = [([("metric", read, hidden, name, ctx.seed + TUNING)], [("metric", read, hidden, name, s) for s in seeds])
             for name in names]  # fmt: skip
    for name, (_, found) in zip(names, all_compared(ctx, tasks, trials, rounds=1000, max_queries=budget), strict=True):
        ends = {m: float(np.mean([c.gaps[-1] for c in courses])) for m, courses in found.items()}
        start = float(np.mean([c.gaps[0] for c in found["FZooS"]]))
        lower.append(ends["FZooS"] < min(ends[m] for m in BASELINES))
        ctx.note(f"1 - {name}, {data}, from {start:.3f}: { ({m: round(v, 3) for m, v in ends.items()}) }.")
        for method, value in ends.items():
            ctx.series(f"metric, {data}", [value / start], method=method)
    ctx.measured(claim or f"metrics-{data}", float(np.sum(lower)))
