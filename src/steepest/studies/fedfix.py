"""Asynchronous federated learning whose weights make it reach the optimum that was meant.

It is for people who train one model over parties of unequal speed and unequal data: which rule of aggregation to
take, how to weigh contributions so that fast clients do not pull the model to their data, and how long the server
should wait. Here: what the rules minimise, in closed form and as applied; learning curves in simulated time on
handwritten digits that are split unevenly over ten clients, the slowest five times as slow as the fastest; and whether
the two engines keep what they promise. ``paper`` takes MNIST, CIFAR-10 and Shakespeare (`studies.fedfix_paper`).
"""

from __future__ import annotations

import itertools
import math
from functools import partial

import numpy as np

from steepest.core.parallel import ordered_map
from steepest.studies import fedfix_engine as engine
from steepest.studies import fedfix_exact as exact
from steepest.studies import fedfix_paper as paper
from steepest.studies.claim import Claim, Figure, Paper, Peer, bootstrap_interval
from steepest.studies.context import Context
from steepest.studies.fedfix_training import ASYNC, RULES, Curve, Run, train

AREA = "federated"

PAPER = Paper(
    title="A General Theory for Federated Optimization with Asynchronous and Heterogeneous Clients Updates",
    authors="Yann Fraboni, Richard Vidal, Laetitia Kameni, Marco Lorenzi",
    venue="arXiv",
    year=2022,
    url="https://arxiv.org/abs/2206.10189",
)

_LIMIT = "the rules are one update with other weights, Sec. 2"
_FAST = "async converges fastest, at the expense of stability, Sec. 5"
_FIX = "FedFix improves on both, Sec. 5"

# fmt: off
CLAIMS = [  # id, what it says, the paper's number, bound, unit, scales, invariant
    Claim("limits", "Waiting for all is FedAvg, a buffer of all too, one client is plain descent: largest difference.",
          _LIMIT, "<= 1e-12", "distance", "quick full", True),
    Claim("by-hand", "FedAvg's loss after three rounds, less that of averaging written out.", "not in the paper",
          "<= 1e-6", "loss", "quick full", True),
    Claim("surrogate-identical", "With equal weights asynchronous rules end at the surrogate's optimum: distance over "
          "that to the intended one.", "surrogate objective, Th. 1", "<= 0.05", "ratio", "quick full"),
    Claim("surrogate-unbiased", "With corrected weights they end at the intended one.", "condition (i)", "<= 0.05",
          "ratio", "quick full"),
    Claim("chi2-unbiased", "Chi-square of the weights that corrected rules applied.", "0", "< 1e-3", "chi-square",
          "quick full"),
    Claim("chi2-async", "The same of equal weights, asynchronous: 0.32 up to 2 %.", "0.32, as we derive it",
          "between(0.3136, 0.3264)", "chi-square", "quick full"),
    Claim("chi2-fedfix", "The same of equal weights, FedFix with window 0.5: 0.1224 up to 2 %.",
          "0.1224, as we derive it", "between(0.12, 0.1248)", "chi-square", "quick full"),
    Claim("async-first", "lr 0.02: seconds to loss 0.5 of the asynchronous rule over those of the next.", _FAST, "< 1",
          "ratio", "quick full"),
    Claim("async-residual", "lr 0.02: how much its loss jitters, over FedFix's (window 0.5).", _FAST, ">= 5", "ratio",
          "quick full"),
    Claim("async-residual-parabola", "The same with a parabola taken out, not a straight line: a slow rule's trend is "
          "still curved.", "not in the paper", "reported", "ratio", "quick full"),
    Claim("async-lr", "Its largest learning rate that ends below loss 1, over FedFix's (of 0.01, 0.02, 0.05, 0.1).",
          _FAST, "< 1", "ratio", "quick full"),
    Claim("fedfix-earlier", "FedFix (0.2 and 0.5) reaches loss 0.5 before FedAvg: share of learning rates and seeds at "
          "which one of them does.", _FIX, "== 1", "share", "quick full"),
    Claim("fedfix-lower", "It ends lower than FedAvg: share of learning rates and seeds.", _FIX, "== 1", "share",
          "quick full"),
    Claim("fedfix-residual-short", "lr 0.02: its jitter over that of the asynchronous rule, window 0.2.", _FIX,
          "<= 0.2", "ratio", "quick full"),
    Claim("fedfix-residual-medium", "The same, window 0.5.", _FIX, "<= 0.2", "ratio", "quick full"),
    Claim("best-loss", "Each at its best learning rate: FedFix's final loss (window 0.5) over the asynchronous rule's.",
          _FIX, "<= 1.15", "ratio", "full"),
    Claim("best-residual", "The same, jitter.", _FIX, "<= 0.3333", "ratio", "full"),
    Claim("window-residual", "lr 0.02: longer windows are steadier: largest jitter of windows 0.5 and 0.8 over that of "
          "the next shorter one.", "longer window, more stable", "<= 1.1", "ratio", "quick full"),
    Claim("window-time", "lr 0.05: longer windows are slower to loss 0.5: share of neighbors.",
          "longer window, slower", "== 1", "share", "quick full"),
    Claim("steps-order", "With 1, 5 and 20 local steps the order in speed, to a loss that all reach, is asynchronous, "
          "FedFix, FedAvg: share.",
          "K = 1 to 20", ">= 0.6666", "share", "full"),
    Claim("deterministic", "Two simulated runs of any rule with failures are equal bit for bit.", "not in the paper",
          "== 1", "share", "quick full", True),
    Claim("resume", "So is one that was interrupted at a random moment and resumed.", "not in the paper", "== 1",
          "share", "quick full", True),
    Claim("tasks-per-second", "Tasks without work a second, simulated (10 clients, 650 parameters).",
          "not in the paper", ">= 5000", "tasks a second", "quick full"),
    Claim("flower", "The same over Flower's simulation.", "not in the paper", ">= 20", "ratio", "full"),
    Claim("flower-ray", "Tasks a second on Ray over Flower's simulation.", "not in the paper", ">= 3", "ratio", "full"),
    Claim("memory", "Peak memory of 1,000 simulated clients with 10^6 parameters each.", "not in the paper", "< 2",
          "GiB", "full"),
    Claim("replay", "The log of a run on Ray makes the same model again, bit for bit: share of rules.",
          "not in the paper", "== 1", "share", "full", True),
    Claim("emulated-ticks", "Ray with emulated times: share of ticks with the same clients as simulated.",
          "not in the paper", ">= 0.95", "share", "full"),
    Claim("emulated-loss", "The same: largest relative gap between the losses.", "not in the paper", "<= 0.05",
          "relative gap", "full"),
    Claim("faults-dropped", "Of ten clients on Ray one dies, one hangs, one returns NaN: just they are dropped and the "
          "run goes on to its end.", "not in the paper", "== 1", "share", "full"),
    Claim("faults-loss", "The same: final loss over that of a run without the three, less 1.", "not in the paper",
          "<= 0.1", "relative gap", "full"),
    *(Claim(f"paper-{name}{ending}", f"{title}, times spread by {spread:.0%}: FedFix's final loss over FedAvg's at "
            "equal time, each at its best learning rate.", "lower, Sec. 5", "< 1" if spread else "reported", "ratio",
            "paper")
      for name, title in paper.TITLES.items() for ending, spread in paper.SPREADS.items()),
]
# fmt: on

PEERS = [Peer("FedAvg"), Peer("FedBuff, 5"), Peer("Flower", "flwr")]
OPTIONS = {
    "clients": "number of clients at paper scale (10)",
    "flower-python": "at full: interpreter of an environment with flwr[simulation] (this one, if it has it)",
}

_RUNS = (
    "Digits split by a Dirichlet law with 0.1 over ten clients, 5 local steps of SGD with batches of 64; times fall "
    "evenly from 1 to 0.2 s. Loss of the federation, each client counted the same. Median and 10-90 % over seeds."
)
FIGURES = [
    Figure("loss-small-rate", "At a small learning rate, waiting less is learning faster", "loss, lr 0.02",
           "simulated seconds", "loss", log_y=True, caption=_RUNS),
    Figure("loss-large-rate", "At a larger one the asynchronous rule collapses, and FedFix learns", "loss, lr 0.05",
           "simulated seconds", "loss", log_y=True, caption=_RUNS),
    Figure("jitter", "How much the loss jitters", "jitter", "standard deviation of the log-loss about its trend",
           "rule", "dots", log_x=True,
           caption="lr 0.02, over the last 40 % of the time, the straight trend taken out. Median and range over "
           "seeds."),
    Figure("weights", "Equal weights count fast clients more; corrected ones do not", "applied weights",
           "seconds a task of the client takes", "share of the weight that was applied",
           caption="Ten clients; equal importance is 0.1. Theory: expected_weights."),
]  # fmt: skip

SNIPPET = """\
import torch
from sklearn.datasets import load_digits
from steepest.federated import FedFix, SimulatedEngine, dirichlet_partition, linear_speeds, make_clients, weight_report

X, y = map(torch.as_tensor, load_digits(return_X_y=True))
parts = dirichlet_partition(y, n_clients=10, alpha=0.1)
net = torch.nn.Sequential(torch.nn.Linear(64, 32), torch.nn.ReLU(), torch.nn.Linear(32, 10))
clients = make_clients(net, (X.float() / 16, y), parts, torch.nn.functional.cross_entropy,
                       optimizer=lambda p: torch.optim.SGD(p, 0.05), steps=5)
engine = SimulatedEngine(clients, speeds=linear_speeds(10))  # or RayEngine(clients)
result = engine.run(FedFix(window=0.5), net, until=20.0)
net.load_state_dict(result.model)
print(result.nit, "aggregations;", weight_report(result, [len(part) for part in parts]).max_abs_bias)
"""

REASONS: dict[str, str] = {
    "async-residual": "FedFix's loss still bends after 60 s, and a straight line counts the bend as jitter, two to six "
    "times as much as there is: with a parabola taken out the ratio is 8.5.",
    "fedfix-residual-short": "at this rate the asynchronous rule, once it has learned, is steady itself (jitter 0.03 "
    "after 60 s); at 0.05, where it collapses, its jitter is 0.2 and that of window 0.2 0.03",
    "fedfix-residual-medium": "as in async-residual: with a parabola taken out it is 0.12",
    "best-residual": "the best rate is the largest at which a rule still learns, 0.8 for FedFix, and there FedFix "
    "jitters as well; at 0.3 it ends as low as the asynchronous rule at 0.02 and jitters as much (0.025 to 0.072)",
}

WHEN_NOT = [
    "All clients are equally fast: FedAvg is as good and needs no window.",
    "Clients share one distribution: any weights reach the optimum, the fastest rule is best.",
    "Privacy is what you need: a delta tells much about its data; see diff2.",
    "One machine holds all the data: train there.",
]

LRS = (0.01, 0.02, 0.05, 0.1)
GRID = (*LRS, 0.2, 0.4, 0.8)  # for each rule's best rate
WINDOWS = ("FedFix, 0.2", "FedFix, 0.5", "FedFix, 0.8")
STEADY = "FedFix, 0.5"
LR_OF_STEPS = {1: 0.1, 5: 0.02, 20: 0.005}


def run(ctx: Context) -> None:
    """Measure; see the module."""
    if ctx.scale == "paper":
        paper.measure(ctx)
        return
    ctx.timed("exact", lambda: exact.measure(ctx))
    ctx.progress(0.1)
    ctx.timed("engine", lambda: engine.measure_simulated(ctx))
    ctx.progress(0.15)
    ctx.timed("training", lambda: learning(ctx))
    if ctx.wants("replay"):
        ctx.progress(0.9)
        ctx.timed("Ray", lambda: engine.measure_real(ctx))
    if ctx.wants("flower"):
        ctx.timed("Flower", lambda: engine.measure_flower(ctx))


def learning(ctx: Context) -> None:
    """Train under every rule, and compare."""
    whole = dict.fromkeys(GRID, 100.0)
    until = ctx.pick(tiny=dict.fromkeys(whole, 3.0), quick={0.02: 35.0, 0.05: 70.0, 0.1: 30.0}, full=whole, paper=whole)
    every = ctx.scale == "full"
    compared = [r for r in RULES if every or r != "FedBuff, 5"]
    work = [Run(rule, lr, seed, until[lr]) for lr in (0.02, 0.05) for seed in ctx.seeds for rule in compared]
    # the other rates: all seeds at full, else what the question of stability needs, on the tuning seed
    others = [ASYNC, *WINDOWS[:2], "FedAvg"] if every else [ASYNC, STEADY]
    seeds = ctx.seeds if every else [ctx.seed]
    work += [
        Run(rule, lr, seed, until[lr]) for lr in ((0.01, 0.1) if every else (0.1,)) for seed in seeds for rule in others
    ]
    if every:
        work += [Run(rule, lr, ctx.seed, until[lr]) for lr in GRID for rule in (ASYNC, STEADY)]
    if ctx.wants("steps-order"):
        work += [Run(rule, lr, seed, until[0.02], steps) for steps, lr in LR_OF_STEPS.items() if steps != 5
                 for seed in ctx.seeds[:3] for rule in (ASYNC, STEADY, "FedAvg")]  # fmt: skip
    done = dict(zip(work, ordered_map(
        train, work, backend="processes" if every else "serial",
        progress=lambda share: ctx.progress(0.15 + 0.75 * share),
    ), strict=True))  # fmt: skip
    of = partial(_curves, done)
    for lr in (0.02, 0.05):
        for run_, curve in done.items():
            if run_.lr == lr and run_.seed in ctx.seeds and run_.steps == 5:
                ctx.series(f"loss, lr {lr}", list(zip(curve.times, curve.losses, strict=True)), method=run_.rule,
                           seed=run_.seed)  # fmt: skip
                if lr == 0.02:
                    ctx.series("jitter", [curve.residual], method=run_.rule, seed=run_.seed)
    if ctx.scale == "quick":
        ctx.note(f"Two seeds; simulated seconds by learning rate: {until} (100 at full).")
    for rule in compared:
        for lr in (0.02, 0.05):
            curves = of(rule, lr, ctx.seeds)
            reached, last, jitter = (
                float(np.median([getattr(c, what) for c in curves])) for what in ("reached", "last", "residual")
            )
            ctx.note(f"{rule}, lr {lr}: loss 0.5 after {reached:.3g} s, final loss {last:.3g}, jitter {jitter:.2g}, "
                     f"{curves[0].n_tasks} tasks, {curves[0].n_aggregations} aggregations.")  # fmt: skip
    _speed_and_stability(ctx, of, until[0.02], compared, seeds)
    _windows(ctx, of, until[0.05])
    if every:
        _best_rates(ctx, done, until)
        compared_here = (ASYNC, STEADY, "FedAvg")
        orders = [_in_order(_times_to_the_slowest([of(rule, lr, ctx.seeds[:3], steps) for rule in compared_here]))
                  for steps, lr in LR_OF_STEPS.items()]  # fmt: skip
        ctx.measured("steps-order", float(np.mean(orders)))
    elif ctx.scale == "tiny":
        for claim in ("best-loss", "best-residual", "steps-order"):
            ctx.skipped(claim, "not at tiny")
    gain = [a.last / f.last for a, f in zip(of("FedAvg", 0.05, ctx.seeds), of(STEADY, 0.05, ctx.seeds), strict=True)]
    ctx.against("FedAvg", float(np.median(gain)), bootstrap_interval(gain, statistic=np.median), ahead="lower loss",
                behind="higher loss", what="lr 0.05, equal simulated time")  # fmt: skip


def _curves(done: dict[Run, Curve], rule: str, lr: float, seeds: list[int], steps: int = 5) -> list[Curve]:
    found = {run.seed: c for run, c in done.items() if (run.rule, run.lr, run.steps) == (rule, lr, steps)}
    return [found[seed] for seed in seeds if seed in found]


def _time(curves: list[Curve], until: float) -> float:
    """Median seconds to the target; a run that never got there counts as twice its length."""
    return float(np.median([min(c.reached, 2 * until) for c in curves]))


def _times_to_the_slowest(curves: list[list[Curve]]) -> list[float]:
    """Each rule's median seconds to the loss that all of them reach: the highest of their final ones, seed by seed."""
    levels = [max(c.last for c in one_seed) for one_seed in zip(*curves, strict=True)]
    return [float(np.median([c.time_to(level) for c, level in zip(one, levels, strict=True)])) for one in curves]


def _in_order(times: list[float]) -> bool:
    return all(a < b for a, b in itertools.pairwise(times))


def _speed_and_stability(ctx: Context, of: partial, until: float, compared: list[str], grid_seeds: list[int]) -> None:
    first = [min(c.reached, 2 * until) for c in of(ASYNC, 0.02, ctx.seeds)]
    rest = [[min(c.reached, 2 * until) for c in of(rule, 0.02, ctx.seeds)] for rule in compared if rule != ASYNC]
    ratios = np.array(first) / np.min(rest, axis=0)
    ctx.measured("async-first", float(np.median(ratios)), bootstrap_interval(ratios, statistic=np.median))
    jitter = {rule: np.array([c.residual for c in of(rule, 0.02, ctx.seeds)]) for rule in compared}
    curved = {rule: np.array([c.about(2) for c in of(rule, 0.02, ctx.seeds)]) for rule in (ASYNC, STEADY)}
    for claim, ratio in (
        ("async-residual", jitter[ASYNC] / jitter[STEADY]),
        ("async-residual-parabola", curved[ASYNC] / curved[STEADY]),
        ("fedfix-residual-short", jitter["FedFix, 0.2"] / jitter[ASYNC]),
        ("fedfix-residual-medium", jitter[STEADY] / jitter[ASYNC]),
    ):
        ctx.measured(claim, float(np.median(ratio)), bootstrap_interval(ratio, statistic=np.median))
    stable = []
    for rule in (ASYNC, STEADY):
        ends = {lr: of(rule, lr, grid_seeds) or of(rule, lr, ctx.seeds) for lr in LRS}
        low = [lr for lr, curves in ends.items() if curves and np.median([c.last for c in curves]) < 1]
        stable.append(max(low, default=math.nan))
        ctx.note(f"{rule}: ends below loss 1 with learning rates {low}.")
    ctx.measured("async-lr", stable[0] / stable[1])
    earlier, lower = [], []
    for lr in LRS if ctx.scale == "full" else (0.02, 0.05):
        for rule in WINDOWS[:2]:
            for ours, theirs in zip(of(rule, lr, ctx.seeds), of("FedAvg", lr, ctx.seeds), strict=True):
                if math.isfinite(min(ours.reached, theirs.reached)):
                    earlier.append(ours.reached < theirs.reached)
                lower.append(ours.last < theirs.last)
    ctx.measured("fedfix-earlier", float(np.mean(earlier)) if earlier else math.nan)
    ctx.measured("fedfix-lower", float(np.mean(lower)))


def _windows(ctx: Context, of: partial, until: float) -> None:
    jitter = [np.array([c.residual for c in of(rule, 0.02, ctx.seeds)]) for rule in WINDOWS]
    growth = np.max([longer / shorter for shorter, longer in itertools.pairwise(jitter)], axis=0)
    ctx.measured("window-residual", float(np.median(growth)), bootstrap_interval(growth, statistic=np.median))
    times = [_time(of(rule, 0.05, ctx.seeds), until) for rule in WINDOWS]
    ctx.measured("window-time", float(np.mean([a < b for a, b in itertools.pairwise(times)])))


def _best_rates(ctx: Context, done: dict[Run, Curve], until: dict[float, float]) -> None:
    """Each rule at the rate with the least final loss on the tuning seed, compared on the others."""
    rules = STEADY, ASYNC
    best = {rule: min((_curves(done, rule, lr, [ctx.seed])[0].last, lr) for lr in GRID)[1] for rule in rules}
    work = [Run(rule, best[rule], seed, until[best[rule]]) for rule in rules for seed in ctx.seeds]
    missing = [run_ for run_ in work if run_ not in done]
    done |= dict(zip(missing, ordered_map(train, missing, backend="processes"), strict=True))
    ours, theirs = (_curves(done, rule, best[rule], ctx.seeds) for rule in rules)
    for claim, what in (("best-loss", "last"), ("best-residual", "residual")):
        ratio = [getattr(a, what) / getattr(b, what) for a, b in zip(ours, theirs, strict=True)]
        ctx.measured(claim, float(np.median(ratio)), bootstrap_interval(ratio, statistic=np.median))
    ctx.note(f"Best learning rates on the tuning seed, of {GRID}: {best}.")
