"""Logistic regression by gradient descent with steps as large as one likes: a hyperplane without tuning a step size.

It is for people who need a separating hyperplane (probes on embeddings, last layers, a certificate that data are
linearly separable) and must not be misled by the loss. Here: the limit of large steps against a batch perceptron
written out, the paper's Table 1, iterations and losses on pairs of digits, the worst case in the number of samples, the
bound on fifty random sets with their exact margins, unbalanced classes, whether the report of the estimator is true,
and time beside scikit-learn's linear classifiers (`studies.large_step_logistic_speed`). ``paper`` takes the image sets
of the paper, two classes and 5,000 samples each (`studies.large_step_logistic_paper`).
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from sklearn.preprocessing import StandardScaler

from steepest.core.random import child_seeds
from steepest.landscape import perceptron_bound, worst_case_data
from steepest.landscape._row_blocks import is_separable
from steepest.studies import large_step_logistic_paper as paper
from steepest.studies import large_step_logistic_pictures as pictures
from steepest.studies import large_step_logistic_speed as speed
from steepest.studies.claim import Claim, Figure, Paper, Peer, Picture, bootstrap_interval, slope_fit
from steepest.studies.context import Context
from steepest.studies.large_step_logistic_problems import (
    ALL_PAIRS,
    batch_perceptron,
    digits_pair,
    fitted,
    hard_margin,
    iterates,
    separable,
    signed,
)

AREA = "landscape"

PAPER = Paper(
    title="From Logistic Regression to the Perceptron Algorithm: Exploring Gradient Descent with Large Step Sizes",
    authors="Alexander Tyurin",
    venue="AAAI",
    year=2025,
    url="https://arxiv.org/abs/2412.08424",
)

_LOSS = "Section 4: higher loss, fewer iterations"
_UNBALANCED = "311 iterations against 538"
_TABLE = {  # claim -> normalized, step size, iterations of Table 1
    "table-normalized-100": (True, 100.0, 2),
    "table-normalized-10": (True, 10.0, 2),
    "table-normalized-1": (True, 1.0, 16),
    "table-normalized-01": (True, 0.1, 157),
    "table-plain-100": (False, 100.0, 308),
}

# fmt: off
CLAIMS = [  # id, what it says, the paper's number, bound, unit, scales, invariant
    Claim("limit-iterates", "With large steps the iterates are those of the batch perceptron, to the end: step size "
          "1e6, pairs of digits without near-ties.", "Section 3, exact as the step size grows", "<= 1e-4",
          "largest relative difference", "quick full", True),
    Claim("limit-count", "It takes as many iterations.", "Section 3", "== 1", "share of pairs", "quick full", True),
    Claim("limit-all-pairs", "With near-ties too, once the step size is 1e8.", "Section 3", "<= 1e-4",
          "largest relative difference", "quick full", True),
    *(Claim(claim, f"{'Normalized' if normalized else 'Plain'}, step size {gamma:g}: iterations on the worst-case data "
            "with 1,000 samples.", f"{count}, Table 1", f"== {count}", "iterations", "quick full", True)
      for claim, (normalized, gamma, count) in _TABLE.items()),
    Claim("loss-grows-100", "From step size 10 to 100 the mean loss on the way grows: three pairs of digits.",
          _LOSS, "== 1", "share of pairs", "quick full"),
    Claim("loss-grows-1000", "So it does from 100 to 1,000.", _LOSS, "== 1", "share of pairs", "quick full"),
    Claim("faster-each", "And yet it is faster: iterations at 0.1 over those at 100, the least of the three pairs.",
          _LOSS, ">= 5", "x fewer iterations", "quick full"),
    Claim("faster-two", "The second largest of the three.", _LOSS, ">= 30", "x fewer iterations", "quick full"),
    Claim("worst-plain-exponent", "In the worst case the plain method needs a multiple of n: n = 100 to 1e5, limit.",
          "Omega(n)", "between(0.95, 1.05)", "exponent of n", "quick full"),
    Claim("worst-plain-bound", "It never needs more than n R^2 / mu^2.", "Theorem, Section 5", "<= 1",
          "largest share of the bound", "quick full", True),
    Claim("worst-normalized-exponent", "The normalized method does not notice n.", "no n in its bound", "<= 0.02",
          "exponent of n", "quick full", True),
    Claim("worst-normalized-count", "A few iterations do, whatever n.", "R^2 / mu^2 = 5", "<= 5", "iterations",
          "quick full", True),
    Claim("bound", "The bound of the normalized method holds on 50 random separable sets, step sizes 0.1 to infinity.",
          "R^2/mu^2 + 2 log(2n-1)/(step mu^2)", "== 0", "violations", "quick full", True),
    Claim("bound-share", "How much of the bound is used.", "not given", "reported", "largest share", "quick full"),
    Claim("unbalanced-median", "With four samples in the smaller class, normalized over plain: five pairs of digits.",
          _UNBALANCED, "<= 0.5", "x iterations, median pair", "quick full"),
    Claim("unbalanced-each", "The same, the worst of the five pairs.", _UNBALANCED, "<= 0.75",
          "x iterations, worst pair", "quick full"),
    Claim("balanced", "The same with all samples.", "3,160 iterations against 2,928", "reported",
          "x iterations, median pair", "quick full"),
    Claim("report-true", "What the estimator says of separation is true: ten digits against the rest, breast cancer "
          "with 30 and with 10 features, checked by a linear program.", "not in the paper", "== 1",
          "share of problems", "quick full", True),
    Claim("report-found", "Separable problems of these that are separated within 10,000 updates.", "not in the paper",
          "reported", "share of the separable", "quick full"),
    Claim("speed-digits", "It separates pairs of digits faster than the fastest peer; default settings.",
          "no peers; target of ours", ">= 3", "x faster, median pair", "quick full"),
    Claim("speed-digits-known", "The same where every peer knows how many epochs suffice.", "no peers", "reported",
          "x faster, median pair", "full"),
    *(Claim(f"speed-large-{name}", f"The same on generated data, 5,000 x 784, gap {gap:g} (deviations of a feature).",
            "no peers; target of ours", ">= 1.5", "x faster", "quick full") for name, gap in speed.GAPS.items()),
    *(Claim(f"speed-large-{name}-plain", f"The same without normalization, gap {gap:g}.", "no peers", "reported",
            "x faster", "quick full") for name, gap in speed.GAPS.items()),
    Claim("size-exponent", "The time of an update grows with the size of the data and no faster.", "O(n d)", "<= 1.05",
          "exponent of n d", "quick full"),
    Claim("size-exponent-reused", "The same where all rows lie in the same 8 MB of memory, gone through again and "
          "again: as many operations, fewer bytes.", "O(n d)", "reported", "exponent of n d", "quick full"),
    *(Claim(f"paper-faster-{name}", f"{title}: iterations at step size 0.1 over those at 100, plain.", _LOSS,
            "reported", "x fewer iterations", "paper") for name, title in paper.TITLES.items()),
    *(Claim(f"paper-unbalanced-{name}", f"{title}, unbalanced: normalized over plain at step size 100.", _UNBALANCED,
            "reported", "x iterations", "paper") for name, title in paper.TITLES.items()),
]
# fmt: on

PEERS = [Peer(name, "sklearn") for name in speed.PEER_MODELS]

OPTIONS = {"dataset": "at paper: mnist, fashion-mnist, cifar10, eurosat (all by default) or libsvm, a file at --data"}

_WAY = "Digits 3 and 8 (357 x 64), plain method, one run each: it draws nothing at random."
# fmt: off
FIGURES = [
    Figure("errors", "Larger steps reach zero errors first", "errors", "update", "misclassified share of the samples",
           log_x=True, caption=_WAY),
    Figure("losses", "On the way their loss is higher", "losses", "update", "mean logistic loss", log_x=True,
           log_y=True, caption=_WAY + " Every line ends where the classes are separated."),
    Figure("iterations", "Iterations fall with the step size until the perceptron is reached", "iterations",
           "step size", "updates until separated", log_x=True, log_y=True,
           caption="Pairs of digits, plain method; dashed, the batch perceptron on 3 and 8 (step size infinity)."),
    Figure("worst", "In the worst case only the normalized method does not notice n", "worst case", "samples",
           "updates until separated", log_x=True, log_y=True,
           caption="One sample against n - 1; limits of both methods, and their bounds n R²/μ² and R²/μ²."),
    Figure("time", "Time to a separating hyperplane on pairs of digits", "time on digits", "milliseconds of a fit",
           "classifier", "dots", log_x=True,
           caption="CPU milliseconds of one thread, median and range over pairs; peers with their default stopping "
           "rule or the first stricter one that separates."),
]
PICTURES = [
    Picture("lines", "The plain method turns its line slowly, the normalized one at once", "lines",
            pictures.draw_lines, size=(7.6, 3.5),
            caption="Worst-case data, 100 samples: one at the right (circle), 99 on one point at the left (square); "
            "limits of both methods without intercept. Bold, the first line that separates.",
            alt="Two panels with two points below the origin and lines through it. Left, plain: thirty lines turn "
            "little by little from nearly horizontal until one passes between the points. Right, normalized: the "
            "second does."),
    Picture("bounds", "The bound is never violated", "bounds", pictures.draw_bounds, size=(5.8, 4.2),
            caption="Fifty random separable sets of 10 to 300 samples in 2 to 20 dimensions, five step sizes each; mu "
            "by nonnegative least squares. The line is equality.",
            alt="Points of measured updates against the bound, all below the diagonal, most by a factor of ten or "
            "more."),
]
# fmt: on

SNIPPET = """\
from sklearn.datasets import load_digits
from steepest.landscape import LargeStepLogisticRegression

X, y = load_digits(n_class=4, return_X_y=True)
model = LargeStepLogisticRegression(check_separable=True).fit(X / 16, y)
print("separated:", model.separated_, "after", model.n_iter_, "updates")
print("training accuracy:", model.score(X / 16, y), "separable at all:", model.separable_)
"""

_FEW = (
    "the ratio depends on which four samples are kept more than on anything else: the median pair is 0.55 (0.39 to "
    "0.59) over twenty draws and 0.49 (0.41 to 0.53) over a hundred, the worst 0.70 (0.57 to 0.80) and 0.65 (0.56 to "
    "0.72)"
)
REASONS = {
    "unbalanced-median": _FEW,
    "unbalanced-each": _FEW,
    "speed-digits": "a third of the fastest peer's 1.5 ms is 0.5 ms. The checks of X and y, which all share, take 0.2 "
    "of it, and the two products with X, which an update cannot do without, 0.007 to 0.01 ms each time: with nothing "
    "else left, the three hardest pairs (67, 36 and 35 updates) would be 2.4, 2.8 and 3.4 times as fast as the peer. "
    "An update takes 0.05 ms, of which a dozen NumPy calls on 357 numbers are 0.034; the online perceptron needs ten "
    "epochs in compiled code",
    "speed-large-05": "after the first update 6 of 5,000 samples are wrong; the step of 100 moves by the mean of these "
    "six as far as by eight times the mean of all, then 2,244 are wrong, and it takes 196 updates (114 at step size "
    "10, 2 at 1). The plain method moves by a fiftieth, and is done after three. Engineering cannot close it: 196 "
    "bare products with X take nine times as long as the fastest peer",
    "size-exponent": "the machine, not the method: the same updates on rows that lie in the same 8 MB have an exponent "
    "of 0.99, and a byte of a bare product costs 1.7 times as much from 31 MB on as at 8 MB, with large pages and "
    "without, so that it is the cache; the exponent of two bare products on these sizes is 1.36",
}

WHEN_NOT = [
    "The classes overlap: it stops at the iterate with the fewest errors, which minimizes nothing; use "
    "LogisticRegression.",
    "The margin is tiny against the norms (breast cancer with all thirty features: R²/μ² is 2e8): updates are counted "
    "in R²/μ², and the linear program decides at once.",
    "The widest margin or probabilities are wanted: the first separating hyperplane is neither, and its scale is the "
    "step size's.",
    "A single core and data in memory: an online perceptron turns after every error where this one turns once a pass.",
]

PAIRS = ((3, 8), (2, 8), (4, 9))
UNBALANCED = (*PAIRS, (1, 7), (5, 9))


def run(ctx: Context) -> None:
    """Measure; see the module."""
    if ctx.scale == "paper":
        paper.measure(ctx)
        return
    digits = ctx.data("digits")
    ctx.progress(0.0)
    ctx.timed("limit", lambda: _limit(ctx, digits))
    _table(ctx)
    ctx.timed("steps", lambda: _steps(ctx, digits))
    ctx.progress(0.1)
    ctx.timed("worst case", lambda: _worst_case(ctx))
    ctx.timed("bound", lambda: _bound(ctx))
    ctx.progress(0.3)
    ctx.timed("unbalanced", lambda: _unbalanced(ctx, digits))
    ctx.timed("report", lambda: _report(ctx, digits))
    ctx.progress(0.5)
    ctx.timed("speed", lambda: speed.measure(ctx))


# -------------------------------------------------------------------------------------------------------- the iteration


def _limit(ctx: Context, digits: tuple[np.ndarray, np.ndarray]) -> None:
    """Theta_t / step_size against the batch perceptron; a near-tie is a margin whose weight is not yet 0 or 1."""
    gap, far, same, ties = 0.0, 0.0, [], 0
    for pair in ALL_PAIRS[:: ctx.pick(quick=1, full=1, paper=1, tiny=9)]:
        X, y = digits_pair(digits, pair)
        A = signed(X, y, False)
        limit = batch_perceptron(A)
        tie = 1e6 * min(float(np.abs(A @ theta).min()) for theta in limit[1:]) < 20
        ties += tie
        for gamma in (1e8,) if tie else (1e6, 1e8):
            ours = iterates(X, y, step_size=gamma, normalize=False, fit_intercept=False, max_iter=100_000)
            difference = max(np.linalg.norm(a - b) / np.linalg.norm(b) for a, b in zip(ours[1:], limit[1:]))
            if gamma == 1e6:
                gap = max(gap, float(difference))
                same.append(len(ours) == len(limit))
            else:
                far = max(far, float(difference) if len(ours) == len(limit) else math.inf)
    ctx.measured("limit-iterates", gap)
    ctx.measured("limit-count", float(np.mean(same)))
    ctx.measured("limit-all-pairs", far)
    ctx.note(
        f"Limit at step size 1e6: {len(same)} pairs of digits without intercept; {ties} more have near-ties (a margin "
        "of the perceptron's iterates within 20 / step size of 0, where the weight is still moving)."
    )


def _table(ctx: Context) -> None:
    X, y = worst_case_data(1_000)
    for claim, (normalize, gamma, _) in _TABLE.items():
        ctx.measured(claim, int(fitted(X, y, gamma, normalize=normalize, fit_intercept=False).n_iter_[0]))


def _steps(ctx: Context, digits: tuple[np.ndarray, np.ndarray]) -> None:
    """Plain method, step sizes 0.1 to 1,000."""
    grid = [0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1_000.0]
    count: dict[Any, dict[float, int]] = {}
    loss: dict[Any, dict[float, float]] = {}
    for pair in PAIRS:
        X, y = digits_pair(digits, pair)
        models = {g: fitted(X, y, g, normalize=False, record_history=True) for g in (*grid, math.inf)}
        count[pair] = {g: int(model.n_iter_[0]) for g, model in models.items()}
        loss[pair] = {g: float(model.history_[0]["loss"][:-1].mean()) for g, model in models.items()}
        ctx.series("iterations", [(g, count[pair][g]) for g in grid], method=f"{pair[0]} and {pair[1]}")
        if pair == PAIRS[0]:
            ctx.series("iterations", [(g, count[pair][math.inf]) for g in grid], method="batch perceptron")
            for g in (0.1, 1.0, 1_000.0):
                history = models[g].history_[0]
                ctx.series("errors", _thinned(1 - history["accuracy"]), method=f"step {g:g}")
                ctx.series("losses", _thinned(history["loss"]), method=f"step {g:g}")
        ctx.note(f"{pair[0]} and {pair[1]}: iterations " + ", ".join(f"{g:g}: {n}" for g, n in count[pair].items())
                 + "; mean loss " + ", ".join(f"{g:g}: {loss[pair][g]:.3g}" for g in grid[::2]) + ".")  # fmt: skip
    for low, high in ((10.0, 100.0), (100.0, 1_000.0)):
        grows = [loss[pair][high] > loss[pair][low] for pair in PAIRS]
        ctx.measured(f"loss-grows-{high:g}", float(np.mean(grows)))
    gains = sorted(count[pair][0.1] / count[pair][100.0] for pair in PAIRS)
    ctx.measured("faster-each", gains[0])
    ctx.measured("faster-two", gains[1])


def _thinned(values: np.ndarray) -> list[tuple[float, float]]:
    """About 150 of the values after updates, evenly spaced in the logarithm, the first and the last among them."""
    last = len(values) - 1
    kept = np.unique(np.geomspace(1, last, 150).round().astype(int))
    return [(float(t), float(values[t])) for t in kept]


def _worst_case(ctx: Context) -> None:
    sizes = ctx.pick(quick=(100, 1_000, 10_000, 100_000), full=(100, 316, 1_000, 3_162, 10_000, 31_623, 100_000),
                     paper=(), tiny=(100, 400))  # fmt: skip
    direct = ctx.pick(quick=10_000, full=100_000, paper=0, tiny=100)
    counts: dict[bool, list[int]] = {True: [], False: []}
    for n in sizes:
        for normalize, found in counts.items():
            X, y = worst_case_data(n) if n <= direct else worst_case_data(2)
            weight = None if n <= direct else np.where(y > 0, 1, n - 1)
            settings = {"normalize": normalize, "fit_intercept": False, "max_iter": 5 * n}
            found.append(int(fitted(X, y, math.inf, weight, **settings).n_iter_[0]))
    bounds = {
        normalize: [perceptron_bound(1.25**0.5, 0.5, n, normalize=normalize) for n in sizes] for normalize in counts
    }
    for normalize, name in ((False, "plain"), (True, "normalized")):
        slope, span = slope_fit(sizes, counts[normalize])
        ctx.measured(f"worst-{name}-exponent", slope, span if np.isfinite(span).all() else None)
        ctx.series("worst case", list(zip(sizes, counts[normalize])), method=name)
        ctx.series("worst case", list(zip(sizes, bounds[normalize])), method=f"bound, {name}")
    ctx.measured("worst-plain-bound", max(np.divide(counts[False], bounds[False])))
    ctx.measured("worst-normalized-count", max(counts[True]))
    if max(sizes) > direct:
        ctx.note(
            f"Worst case above n = {direct:,}: the n - 1 equal samples are one with that weight, which is the same."
        )
    X, y = worst_case_data(100)
    lines = {name: np.array(iterates(X, y, step_size=math.inf, normalize=name == "normalized", fit_intercept=False)[1:])
             for name in ("plain", "normalized")}  # fmt: skip
    ctx.arrays("lines", **lines)


def _bound(ctx: Context) -> None:
    gammas = (0.1, 1.0, 10.0, 100.0, math.inf)
    used, found, limits = [], [], []
    for seed in child_seeds(ctx.seed, ctx.pick(quick=50, full=50, paper=0, tiny=4)):
        rng = np.random.default_rng(seed)
        X, y = separable(int(rng.integers(10, 300)), int(rng.integers(2, 21)), float(rng.uniform(0.05, 1)), seed)
        A = signed(X, y, True)
        mu, R = hard_margin(A), float(np.linalg.norm(A, axis=1).max())
        for gamma in gammas:
            bound = perceptron_bound(R, mu, len(X), gamma)
            found.append(int(fitted(X, y, gamma, max_iter=int(2 * bound) + 1).n_iter_[0]))
            limits.append(bound)
            used.append(found[-1] / bound)
    ctx.measured("bound", int(np.sum(np.array(used) > 1)))
    ctx.measured("bound-share", max(used))
    ctx.arrays("bounds", found=found, bound=limits, step_size=np.tile(gammas, len(found) // len(gammas)))


# ------------------------------------------------------------------------------------------------- classes and reports


def _unbalanced(ctx: Context, digits: tuple[np.ndarray, np.ndarray]) -> None:
    """Four random samples of one of the two digits, of each in turn; the ratio of a pair is its median over draws."""
    draws = ctx.pick(quick=20, full=100, paper=0, tiny=2)
    ratios = np.zeros((len(UNBALANCED), draws))
    whole = []
    for i, pair in enumerate(UNBALANCED):
        X, y = digits_pair(digits, pair)
        whole.append(_normalized_over_plain(X, y))
        for j, seed in enumerate(child_seeds(ctx.seeds[0], draws)):
            few = np.flatnonzero(y == (1 if j % 2 == 0 else -1))
            lost = np.random.default_rng(seed).permutation(few)[4:]
            ratios[i, j] = _normalized_over_plain(np.delete(X, lost, axis=0), np.delete(y, lost))
    by_pair = np.median(ratios, axis=1)
    resampled = np.random.default_rng(ctx.seed).integers(draws, size=(2_000, draws))
    again = np.median(ratios[:, resampled], axis=2)  # (pairs, 2000)
    for claim, statistic in (("unbalanced-median", np.median), ("unbalanced-each", np.max)):
        span = np.quantile(statistic(again, axis=0), [0.025, 0.975])
        ctx.measured(claim, float(statistic(by_pair)), (span[0], span[1]) if draws > 2 else None)
    ctx.measured("balanced", float(np.median(whole)), bootstrap_interval(whole, statistic=np.median))
    pairs = ", ".join(f"{a} and {b} {r:.2f}" for (a, b), r in zip(UNBALANCED, by_pair))
    ctx.note(f"Unbalanced, normalized over plain, median of {draws} draws of four samples: {pairs}.")


def _normalized_over_plain(X: np.ndarray, y: np.ndarray) -> float:
    counts = [int(fitted(X, y, 100.0, normalize=normalize).n_iter_[0]) for normalize in (True, False)]
    return counts[0] / counts[1]


def _report(ctx: Context, digits: tuple[np.ndarray, np.ndarray]) -> None:
    max_iter = ctx.pick(quick=10_000, full=10_000, paper=0, tiny=100)
    X, y = ctx.data("breast_cancer")
    X = StandardScaler().fit_transform(X)
    problems: list[tuple[np.ndarray, np.ndarray]] = [(X, y), (X[:, :10], y), (digits[0] / 16, digits[1])]
    true, found = [], []
    for data, labels in problems:
        model = fitted(data, labels, 100.0, max_iter=max_iter)
        positives = np.unique(labels)[1:] if len(model.separated_) == 1 else model.classes_
        decisions = model.decision_function(data).reshape(len(data), -1)
        for k, label in enumerate(positives):
            signs = np.where(labels == label, 1.0, -1.0)
            possible, said = is_separable(data, signs, True), bool(model.separated_[k])
            right = bool(((decisions[:, k] > 0) == (signs > 0)).all())
            true.append(said == right and (possible is True or not said) and (model.margin_[k] > 0) == said)
            if possible:
                found.append(said)
    ctx.measured("report-true", float(np.mean(true)))
    ctx.measured("report-found", float(np.mean(found)))
    ctx.note(f"By the linear program {len(found)} of {len(true)} problems are separable, breast cancer with all 30 "
             "features among them (margin 7e-5 of R).")  # fmt: skip
