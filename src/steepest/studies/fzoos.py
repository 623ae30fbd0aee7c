"""FZooS minimizes a mean of losses that several parties can only evaluate, and asks them as little as it can.

It is for parties who each have a black box (a model behind an interface, a metric that has no derivative, a simulator)
and want one common minimizer without sharing what is behind theirs. Instead of asking around each point for finite
differences, a party learns its loss from everything it has asked before, and sends what it knows as one vector. Here:
queries to a value against finite differences with and without a correction of drift, all tuned with the same learning
rates, and against CMA-ES and Nevergrad; the estimates themselves; what the correction does; attacks on digit
classifiers; metrics of a network. ``paper`` takes the dimensions of the paper (`studies.fzoos_paper`).
"""

from __future__ import annotations

from functools import partial

import numpy as np
from sklearn.datasets import load_digits, load_wine
from threadpoolctl import threadpool_limits

from steepest.studies import fzoos_compared as compare
from steepest.studies import fzoos_paper as paper
from steepest.studies.claim import Claim, Figure, Paper, Peer, bootstrap_interval
from steepest.studies.context import Context
from steepest.studies.fzoos_problems import METRICS
from steepest.studies.fzoos_runs import METHODS, cosines, wide_grid

AREA = "federated"

PAPER = Paper(
    title="Federated Zeroth-Order Optimization using Trajectory-Informed Surrogate Gradients",
    authors="Yao Shu, Xiaoqiang Lin, Zhongxiang Dai, Bryan Kian Hsiang Low",
    venue="arXiv",
    year=2023,
    url="https://arxiv.org/abs/2308.04077",
)

_FEWER = "fewer queries than existing methods, Sec. 6"
_Q = "x the best baseline's queries"

# fmt: off
CLAIMS = [  # id, what it says, the paper's number, bound, unit, scales
    Claim("queries", "It reaches F - F* = 1e-2 with half the queries of the best baseline: quadratic, d = 50, "
          "heterogeneity 0.5, all tuned.", _FEWER, "<= 0.5", _Q, "quick full"),
    Claim("queries-default", "The same at the authors' learning rate, 0.01 for all.", _FEWER, "reported", _Q,
          "quick full"),
    Claim("queries-asked", "The same with the number of queries tuned as well, for the baselines too: 10, 25 or 50 "
          "around the common point, 5, 10 or 20 in an estimate.", _FEWER, "<= 0.5", _Q, "full"),
    Claim("queries-uneven", "The same at heterogeneity 5, all tuned.", _FEWER, "reported", _Q, "full"),
    Claim("queries-300", "Fewer queries to a tenth of the gap at the start, d = 300.", _FEWER, "< 1", _Q, "full"),
    Claim("queries-300-uneven", "The same at heterogeneity 5.", _FEWER, "< 1", _Q, "full"),
    Claim("rounds", "It needs no more rounds, d = 50, heterogeneity 0.5.", "communication-efficient, Sec. 6", "<= 1",
          "x the best baseline's rounds", "quick full"),
    Claim("cosine", "Its estimate points closer to the true gradient than 20 differences do: difference of the mean "
          "cosines along one trajectory.", "more accurate, Th. 1", ">= 0", "cosine", "quick full"),
    Claim("cosine-queries", "For that it spends at most a third of their queries.", "query-efficient",
          "<= 0.3334", "x the queries a step", "quick full"),
    Claim("cosine-equal", "The same beside differences with as many queries as it spends.", "not in the paper",
          "reported", "cosine", "quick full"),
    Claim("uneven-direction", "Heterogeneity 5: the correction brings local directions closer to the common gradient "
          "(squared distance, corrected over not).", "adaptive correction, Sec. 4.2", "<= 0.8", "ratio", "quick full"),
    Claim("uneven-gap", "The same, final gap: not corrected over corrected.", "Sec. 4.2", ">= 5", "ratio",
          "quick full"),
    Claim("uneven-spread", "The same, spread of the end points: corrected over not.", "Sec. 4.2", "< 1", "ratio",
          "quick full"),
    *(Claim(f"even-{what}", f"Heterogeneity 0.5, {text}.", "Sec. 4.2", "reported", "ratio", "full")
      for what, text in (("direction", "directions"), ("gap", "final gap"), ("spread", "spread"))),
    Claim("attack", "Attacks on digit classifiers: images missed after half the queries, less the best baseline's.",
          "higher success, Sec. 6.2", ">= 10", "points", "full"),
    Claim("attack-equal", "The same after equal queries.", "higher success, Sec. 6.2", ">= 10", "points", "full"),
    Claim("attack-few", "Queries until the networks miss a digit, five images, learning rate 0.03 for all.",
          "higher success, Sec. 6.2", "reported", _Q, "quick"),
    Claim("metrics-digits", "Metrics of a network on digits, of four: lower than every baseline's at equal queries.",
          "lower, Sec. 6.3", ">= 3", "metrics", "full"),
    Claim("metrics-wine", "The same on wine.", "lower, Sec. 6.3", ">= 3", "metrics", "full"),
    *(Claim(f"peer-{name}", f"Fewer queries than {text}, d = 50.", "not in the paper", "< 1", "x its queries", scales)
      for name, text, scales in (("cma", "CMA-ES (cma)", "quick full"),
                                 ("oneplusone", "Nevergrad's OnePlusOne", "quick full"),
                                 ("cma-nevergrad", "Nevergrad's CMA", "full"),
                                 ("ngopt", "Nevergrad's NGOpt", "full"))),
    Claim("peer-cma-low", "The same beside CMA-ES at d = 5.", "not in the paper", "reported", "x its queries",
          "quick full"),
    Claim("paper-queries", "d = 300, 50 rounds, heterogeneity 0.5: queries to a tenth of the gap.", _FEWER, "< 1", _Q,
          "paper"),
    Claim("paper-mnist", "Attacks on MNIST classifiers, as on digits.", "higher success, Fig. 3", ">= 10", "points",
          "paper"),
    Claim("paper-cifar10", "Attacks on CIFAR-10 classifiers.", "higher success, Fig. 3", ">= 10", "points", "paper"),
    Claim("paper-covertype", "Metrics of a network on Covertype, of four.", "lower, Fig. 4", ">= 3", "metrics",
          "paper"),
]
# fmt: on

PEERS = [Peer("FedZO"), Peer("FedZO, prox"), Peer("FedZO, scaffold 1"), Peer("FedZO, scaffold 2"), Peer("cma", "cma"),
         Peer("Nevergrad", "nevergrad")]  # fmt: skip
OPTIONS: dict[str, str] = {}

_TUNED = "Learning rates (and the weight of prox) tuned on other problems. Median and range over problems."
FIGURES = [
    Figure("queries", "With half the queries of finite differences", "gap, queries", "queries of all clients",
           "F less its least value", log_y=True, methods=METHODS,
           caption=f"Quadratics of five clients, d = 50, heterogeneity 0.5. {_TUNED}"),
    Figure("uneven", "Where clients differ, the correction decides", "uneven, gap", "queries of all clients",
           "F less its least value", log_y=True,
           caption="FZooS, quadratics with d = 50, heterogeneity 5, ten rounds. Median and range over problems."),
    Figure("cosine", "What was asked before tells the gradient better than differences", "cosine", "local step",
           "cosine with the true gradient",
           caption="One client's trajectory, d = 50: 6 queries a step for FZooS and 5 differences, 21 for 20. "
           "Median and range over problems."),
    Figure("missed", "Digit classifiers fail after about half the queries", "missed", "queries of all clients",
           "share of images missed",
           caption="Ten networks, each trained on five digits; at most 0.2 a pixel; 15 images. All tuned."),
    Figure("metric", "On digits FZooS ends lowest after equal queries, by little", "metric, digits",
           "one less a metric, over that at the start (lower is better)", "method", "dots",
           caption="Last layer of a network, seven clients. Median and range over the four metrics."),
]  # fmt: skip

SNIPPET = """\
import numpy as np
from steepest.federated import FZooS

centers = np.random.default_rng(0).uniform(0.2, 0.8, (5, 20))  # what five clients would each like best
fs = [lambda X, c=c: ((X - c) ** 2).sum(1) for c in centers]
result = FZooS(lr=0.03, bounds=(0, 1)).minimize(fs, np.full(20, 0.5), rounds=5, vectorized=True)
print(f"{result.nfev} queries, distance {np.linalg.norm(result.x - centers.mean(0)):.3f}")
"""

REASONS: dict[str, str] = {
    "queries": "tuned, FZooS and the best baseline both arrive in three rounds (learning rate 0.03), and so do the "
    "same steps along F's exact gradient, on five problems of five. Three rounds cost 5 (11 + 3 106) = 1645 queries "
    "and 5 (1 + 3 210) = 3155. With 10 queries around the common point, not the authors' 50, it is 0.35, though the "
    "baselines' numbers of queries are tuned as well.",
    "attack": "most images fall in the second round of either method, and two rounds cost 2230 and 4210 queries: half "
    "of 4210 ends 125 queries before FZooS's second round. At equal queries it is 33 points ahead, and with 25 "
    "queries around the common point, not 50, 13 points at half of them (0.80 against 0.67).",
    "metrics-wine": "a tie: within 0.01, where all methods query, no guess of the network changes on any client's "
    "wines, so that nobody leaves the start. With radii of 0.1 they tie again, in part at lower values; with 0.3 FZooS "
    "ended lowest on one of two problems and not on the other.",
}

WHEN_NOT = [
    "A gradient can be had: any method that uses it is orders of magnitude cheaper.",
    "Few dimensions (five, say) and one party that sees the mean: CMA-ES is simpler and soon done.",
    "Evaluations cost nothing: a step of a Gaussian process takes milliseconds, differences do not.",
    "The loss is rough at the scale of the steps: the surrogate believes in smoothness.",
]


def run(ctx: Context) -> None:
    """Measure; see the module."""
    with threadpool_limits(1):  # factors of 150 points are too small to share among threads
        if ctx.scale == "paper":
            paper.measure(ctx)
        else:
            measure(ctx)


def measure(ctx: Context) -> None:
    """Measure at the other scales."""
    full, tiny = ctx.scale == "full", ctx.scale == "tiny"
    trials = 1 if tiny else None
    rounds = 1 if tiny else 10
    n = 5 if full else 1 if tiny else 2
    seeds = ctx.seeds if ctx.seeds_asked else [ctx.seed + 1 + k for k in range(n)]
    ctx.timed("gradients", lambda: gradients(ctx, 4 if tiny else 50))
    ctx.timed("queries", lambda: compare.queries(ctx, "queries", 50, 0.5, rounds, n, 2 if full else 1, trials))
    ctx.timed("low dimension", lambda: compare.low_dimension(ctx))
    ctx.progress(0.3)
    ctx.timed("correction", lambda: compare.disparity(ctx, "uneven", 5.0, seeds, 2 if tiny else 10))
    ctx.progress(0.4)
    if ctx.wants("attack-few"):
        ctx.timed("attacks", lambda: compare.few_attacks(ctx, 1 if tiny else 5, 1 if tiny else 6))
    if ctx.wants("even-gap"):
        ctx.timed("correction", lambda: compare.disparity(ctx, "even", 0.5, seeds, 2 if tiny else 10))
        dim = 20 if tiny else 50
        ctx.timed("uneven", lambda: compare.queries(ctx, "queries-uneven", dim, 5.0, 1 if tiny else 20, n,
                                                    2 if full else 1, trials))  # fmt: skip
        ctx.progress(0.45)
        ctx.timed("queries", lambda: compare.queries(ctx, "queries-asked", dim, 0.5, rounds, n, 1, trials,
                                                     grids=wide_grid))  # fmt: skip
        ctx.progress(0.5)
        ctx.timed("attacks", lambda: compare.attacks(ctx, 1 if tiny else 3, 1 if tiny else 15, rounds, trials))
        ctx.progress(0.6)
        for data, read, tried in (("digits", load_digits, trials), ("wine", load_wine, trials or 2)):
            budget = 900 if tiny else 5880
            ctx.timed("metrics", partial(compare.metrics, ctx, data, read, (14,), budget, seeds[:2], tried,
                                         names=METRICS[:1] if tiny else METRICS))  # fmt: skip
        ctx.progress(0.7)
        sizes = (30, 1, 1) if tiny else (300, 50, 3)
        for name, div in (("queries-300", 0.5), ("queries-300-uneven", 5.0)):
            dim, many, problems = sizes
            ctx.timed("d = 300", partial(compare.queries, ctx, name, dim, div, many, problems, 1, trials,
                                         tuning_rounds=20))  # fmt: skip
    ctx.note("Results are of problems that nothing was tuned on; three learning rates for every method (prox: three "
             "weights with each), two on wine; at d = 300 tuning runs end after 20 rounds. A baseline that did not "
             "arrive counts with all that it spent.")  # fmt: skip


def gradients(ctx: Context, steps: int) -> None:
    """Estimates along one client's trajectory."""
    done = [cosines(50, steps, seed) for seed in ctx.seeds]
    for seed, found in zip(ctx.seeds, done, strict=True):
        for method, values in found.items():
            ctx.series("cosine", values, method=method, seed=seed)
    means = {method: np.array([np.mean(found[method]) for found in done]) for method in done[0]}
    for claim, other in (("cosine", "20 differences"), ("cosine-equal", "5 differences")):
        gain = means["FZooS"] - means[other]
        ctx.measured(claim, float(np.median(gain)), bootstrap_interval(gain, statistic=np.median))
    ctx.measured("cosine-queries", (10 + 6 * steps) / (21 * steps))
