"""A denoiser is learned from noisy labels, and theory says at which step of training the noise begins to be learned.

It is for people who train score networks on small or tabular data, where long training memorizes the training set, and
want a rule in place of a guess for when to stop. Here: the equality of score matching and regression, networks beside
the kernel regression that they become when wide, and on two modes with a known denoiser the error at every step of
training, at the stop of each rule, and of tuned rivals (`studies.score_estimation_paths`); samples that repeat the
training points or do not, heavy tails, and tables (`studies.score_estimation_samples`). ``paper`` takes the Credit
Default table.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np

from steepest.core.parallel import ordered_map
from steepest.studies import score_estimation_paper
from steepest.studies import score_estimation_samples as samples
from steepest.studies.claim import Claim, Figure, Paper, Peer, Picture, bootstrap_interval, slope_fit
from steepest.studies.context import Context
from steepest.studies.score_estimation_paths import Trial, follow
from steepest.studies.score_estimation_pictures import draw_paths, draw_samples

AREA = "generative"

PAPER = Paper(
    title="Neural Network-Based Score Estimation in Diffusion Models: Optimization and Generalization",
    authors="Yinbin Han, Meisam Razaviyayn, Renyuan Xu",
    venue="ICLR",
    year=2024,
    url="https://arxiv.org/abs/2401.15604",
)

DIMENSIONS = (2, 8)
_STOP = "early stopping, no number"
# fmt: off
CLAIMS = [  # id, what it says, the paper's number, bound, unit, scales, invariant
    Claim("dsm-is-regression", "Weighted score matching and least squares on the data have one gradient.",
          "regression with noisy labels", "<= 1e-10", "relative difference", "quick full", True),
    Claim("noise-uncorrelated", "The labels' noise is uncorrelated with functions of the input: 20 random features.",
          "regression with noisy labels", "< 4", "largest |t|", "quick full"),
    Claim("kernel-limit-slope", "As the network widens, training becomes kernel regression.",
          "kernel regressions, no rate", "between(-0.65, -0.35)", "exponent in the width", "quick full"),
    Claim("kernel-limit-widest", "At width 16384 the two paths are close, n = 100, 100 steps.",
          "kernel regressions", "<= 0.04", "relative distance", "quick full"),
    Claim("overfit-2", "Long training learns the noise: error after 1e6 steps, d = 2, n = 300 and 1000.",
          _STOP, ">= 5", "x the best step's", "quick full"),
    Claim("overfit-8", "The same in d = 8.", _STOP, ">= 2", "x the best step's", "quick full"),
    *(Claim(f"{rule}-rule-{d}", f"{name} finds the stop without the truth, d = {d}: worst median over n.",
            _STOP, bound, "x the best step's error", "quick full")
      for rule, name, bound in (("mallows", "The unbiased risk", "<= 1.15"), ("kernel", "The kernel rule", "<= 2.4"))
      for d in DIMENSIONS),
    *(Claim(f"kernel-rule-end-{d}", f"The kernel rule is far better than the end, n >= 300, d = {d}.",
            _STOP, "<= 0.35", "x the error at the end", "quick full") for d in DIMENSIONS),
    Claim("slope-kernel-2", "The error falls with n at the kernel rule's stop, d = 2, n = 100 to 2000.",
          "sample complexity, no number", "<= -0.3", "exponent", "full"),
    Claim("slope-mallows-2", "And at that of the unbiased risk.", "sample complexity", "<= -0.5", "exponent", "full"),
    Claim("slope-kernel-8", "In d = 8 it falls more slowly: kernel rule.", "sample complexity", "<= -0.15", "exponent",
          "full"),
    Claim("slope-mallows-8", "And unbiased risk.", "sample complexity", "<= -0.15", "exponent", "full"),
    Claim("guarantee", "The guarantee holds at the kernel rule's stop: worst run and coordinate.",
          "12 B^2 delta^2 (Raskutti et al.)", "<= 1", "x the bound on the squared error", "quick full"),
    Claim("guarantee-slope", "The bound shrinks with n; slower of d = 2 and 8.", "12 B^2 delta^2", "<= -0.4",
          "exponent", "full"),
    Claim("radius-doubled", "How far inputs are cut hardly matters: largest change of the error when R doubles.",
          "unbounded inputs", "<= 0.05", "relative change", "full"),
    Claim("heavy-tails", "For Student-t(3) data cutting does not hurt: loss beside that without cutting.",
          "unbounded inputs", "<= 1.0", "x the loss without", "quick full"),
    Claim("samples-mallows", "Samples of the stopped fit are nearer to fresh data, d = 2, n = 300.",
          "not measured", "<= 0.75", "x sliced W2 of the end", "full"),
    Claim("samples-holdout", "And those of the held-out stop.", "not measured", "<= 0.6", "x sliced W2 of the end",
          "full"),
    Claim("memorized-end", "Trained to the end, samples lie nearer to training points: d = 2, n = 300.",
          "not measured", "reported", "x fresh data's median distance to the nearest", "full"),
    Claim("memorized-mallows", "The same of the unbiased-risk stop.", "not measured", "reported",
          "x fresh data's median distance", "full"),
    Claim("samples-8", "In d = 8, n = 400, the stopped fit smooths, and its samples are farther from fresh data.",
          "not measured", "reported", "x sliced W2 of the end", "full"),
    Claim("digits", "Digits in 8 principal directions, n = 400: loss on new digits, unbiased risk.", "not measured",
          "<= 0.92", "x the end's", "quick full"),
    Claim("wine", "The wine table (13 columns, 118 rows): the same.", "not measured", "reported", "x the end's",
          "full"),
    Claim("breast-cancer", "The breast-cancer table (30 columns, 380 rows): the same.", "not measured", "reported",
          "x the end's", "full"),
    Claim("against-ridge", "The best of 80 stops, which cost one decomposition, is as good as ridge.", "not compared",
          "<= 1.05", "x the clean error of the best of 20 ridge values", "quick full"),
    Claim("against-ridge-20", "The same with as many stops as ridge values.", "not compared", "reported",
          "x the clean error of the best of 20 ridge values", "quick full"),
    Claim("against-density", "It beats the score of a kernel density with tuned bandwidth, d = 8.", "not compared",
          "<= 0.8", "x the clean error", "quick full"),
    *(Claim(f"against-adam-{d}", f"Untuned it matches a three-layer network with Adam, tuned, d = {d}, n <= 1000.",
            "not compared", "<= 1.2", "x the clean error", "full") for d in DIMENSIONS),
    *(Claim(f"four-noisings-adam-{d}", f"The same with four noisy copies of each point, d = {d}.", "not compared",
            "reported", "x Adam's clean error", "full") for d in DIMENSIONS),
    Claim("credit-default", "Samples of the Credit Default table against the best of 20 tuned networks.",
          "an experiment on this table", "<= 1.1", "x its sliced W2", "paper"),
]
# fmt: on

PEERS = [Peer("kernel ridge", "sklearn"), Peer("kernel density", "sklearn"), Peer("Adam, held-out")]

OPTIONS = {
    "workers": "at full: trials at a time (default 2)",
    "download": "at paper: yes fetches the Credit Default table from OpenML where --data gives no table",
}

# fmt: off
FIGURES = [
    *(Figure(f"error-{d}", f"d = {d}: the unbiased risk stops close to the best step", f"clean error, d = {d}",
             "data points", "clean error", log_x=True, log_y=True,
             methods=("to the end", "kernel stop", "Mallows stop", "best in hindsight"),
             caption="Two modes with a known denoiser, one noising a point; median and 10-90 % band over seeds.")
      for d in DIMENSIONS),
    Figure("width", "As the network widens, its training becomes kernel regression", "distance to the kernel", "width",
           "largest relative distance over 100 steps", log_x=True, log_y=True, methods=("measured", "theory"),
           caption="n = 100, d = 2, on new inputs; theory: slope -1/2 through the first median."),
    Figure("guarantee", "The guarantee holds and is loose", "guarantee", "data points",
           "squared error per coordinate, training inputs", log_x=True, log_y=True, methods=("measured", "theory"),
           caption="d = 2, kernel rule; theory: 12 B² delta², B measured. Median and 10-90 % band over seeds."),
    Figure("rivals", "Fresh noise at every step or none at all: what rivals gain", "rivals", "clean error",
           "method, d = 8, n = 300", "dots", log_x=True,
           caption="One point a seed. The kernel density knows every noise level in closed form, Adam draws new noise "
           "for each batch; the others see one noisy copy of each point, or four."),
]
PICTURES = [
    Picture("paths", "Trained too long, the error rises again; rules that do not see the truth stop before",
            "paths", draw_paths,
            caption="Clean error of the kernel regression at every step, one line a data set, n = 300. In "
            "d = 8 both rules stop at the same step.",
            alt="Two panels of error against steps, first falling, then rising; diamonds of the kernel rule and "
            "circles of the unbiased risk lie near the valley.", size=(8.2, 3.6)),
    Picture("samples", "A stopped fit smooths, one trained to the end falls into clots", "samples", draw_samples,
            caption="Two modes in the plane, n = 300 points; samples by the reversed equation; first seed.",
            alt="Three scatter plots: fresh data, samples of the stopped fit, samples of the fit trained to the end; "
            "the stopped ones lie near the first axis, the last in clots.", size=(8.2, 2.4)),
]
# fmt: on

SNIPPET = """\
import numpy as np
from steepest.generative import ScoreRegression

rng = np.random.default_rng(0)
X = rng.choice([-1.5, 1.5], 300)[:, None] * [1, 0] + 0.4 * rng.standard_normal((300, 2))
model = ScoreRegression(model="kernel", stopping="mallows", random_state=0).fit(X)
print(f"stopped at step {model.stopping_step_}; the noise of a label is {model.sigma_:.2f}")
print(f"loss on new samples {-model.score(X + 0.1):.2f}, samples of shape {model.sample(5, n_steps=20).shape}")
"""

REASONS = {
    "mallows-rule-8": "at n = 100 to 1000 the medians are 1.00; at n = 2000 the risk has two valleys nearly level, "
    "after a few steps and after about 150, and for one data set of five the estimate takes the wrong one (1.18).",
    "guarantee-slope": "the slope keeps the bound, in d = 2 with room (the bound falls from 11 to 2.4); in d = 8 B, "
    "measured from the fit of least unbiased risk, scatters between data sets, and five of them do not decide.",
    "kernel-limit-slope": "few seeds at quick: the distance of a single network scatters by a third; the interval at "
    "full lies inside.",
    "heavy-tails": "0.2 % of new inputs lie beyond the ball and carry the whole excess: on the others the loss is the "
    "same to three digits. For a heavy tail the best denoiser keeps growing with x, and a fit to cut inputs "
    "cannot.",
    "samples-mallows": "from 300 labels with noise every stop hits the shares of the modes only to within 0.15, and "
    "that decides the distance: over seeds the ratio goes from about 0.5 to 1.8. The last step, which returns denoised "
    "samples, is not the cause: without it the ratio was 1.13 in place of 0.96 (six seeds).",
    "samples-holdout": "as for the unbiased risk: the shares of the modes decide and vary with the seed; this fit also "
    "sees a fifth less data.",
    "against-ridge": "level in the median, and over seeds from 0.96 to 1.12 at the worst size; at n = 300 in d = 8 the "
    "stops are ahead (0.18 against 0.22).",
    "against-density": "two round clusters are nearly what a kernel density models, and it knows every noise level in "
    "closed form. With labels free of noise the same regression has an error of 0.07 in d = 8, n = 300 (0.20 with "
    "noise, 0.16 with four noisings): more than twice the density's 0.03, so the noise is the larger part of the "
    "gap and not all of it.",
    "against-adam-2": "Adam draws new noise for every batch, 1500 times 128 noisings, where the default fit sees one "
    "of each point. With four noisings of each point the ratio falls from 4.3 to 2.2.",
    "against-adam-8": "as in d = 2, and beyond it the kernel learns slowly in d = 8: four noisings lower the ratio "
    "from 4.3 to 3.6 only, and labels free of noise leave an error of 0.07 at n = 300 where Adam's network has "
    "0.05.",
}

WHEN_NOT = [
    "There are many data and a deep network fits them: fresh noise in every batch is worth more than a stopping rule, "
    "and a tuned three-layer network with Adam has a lower error on the test bed here.",
    "The dimension is beyond about ten: the tangent kernel of two layers knows no structure of images or text.",
    "A kernel density is a good model, as for a few round clusters: its score is in closed form at every noise level.",
    "Samples that look sharp are wanted from few points in many dimensions: a stopped fit smooths them.",
]


def run(ctx: Context) -> None:
    """Measure; see the module."""
    if ctx.scale == "paper":
        score_estimation_paper.measure(ctx)
        return
    ctx.progress(0.0)
    ctx.timed("equalities", lambda: _equalities(ctx))
    ctx.timed("width", lambda: _width(ctx))
    ctx.progress(0.2)
    ctx.timed("paths", lambda: _paths(ctx))
    ctx.progress(0.7)
    ctx.timed("samples", lambda: _samples(ctx))
    ctx.progress(0.9)
    ctx.timed("tables", lambda: _tables(ctx))
    ctx.progress(1.0)


def _seeds(ctx: Context, n: int) -> list[int]:
    return ctx.seeds if ctx.seeds_asked else [ctx.seed + 1 + i for i in range(n)]


def _map(ctx: Context, fn: Callable[[Any], Any], items: Sequence[Any], progress: Any = None) -> dict[Any, Any]:
    """Results by item; over two processes at full."""
    workers = int(ctx.options.get("workers", 2)) if ctx.scale == "full" else 1
    backend: Any = "processes" if workers > 1 else "serial"
    return dict(zip(items, ordered_map(fn, items, backend=backend, n_workers=workers, progress=progress)))


def _median(values: Any) -> tuple[float, tuple[float, float]]:
    return float(np.median(values)), bootstrap_interval(values, statistic=np.median)


def _equalities(ctx: Context) -> None:
    n_noise = ctx.pick(quick=20_000, full=200_000, paper=0, tiny=2000)
    difference, t = samples.matching_is_regression(2, 500, n_noise, ctx.seed)
    ctx.measured("dsm-is-regression", difference)
    ctx.measured("noise-uncorrelated", t)


def _width(ctx: Context) -> None:
    widths = ctx.pick(
        quick=(256, 1024, 4096, 16_384), full=(256, 512, 1024, 2048, 4096, 8192, 16_384), paper=(), tiny=(64, 256, 1024)
    )
    seeds = _seeds(ctx, ctx.pick(quick=3, full=5, paper=0, tiny=2))
    steps = ctx.pick(quick=100, full=100, paper=0, tiny=20)
    cases = [samples.Width(width, seed, steps=steps) for width in widths for seed in seeds]
    found = _map(ctx, samples.distance_to_kernel, cases)
    by_width = {w: np.array([found[c] for c in cases if c.width == w]) for w in widths}
    slope, interval = slope_fit([c.width for c in cases], [found[c] for c in cases])
    ctx.measured("kernel-limit-slope", slope, interval)
    ctx.measured("kernel-limit-widest", *_median(by_width[widths[-1]]))
    for i, seed in enumerate(seeds):
        ctx.series("distance to the kernel", [(w, by_width[w][i]) for w in widths], method="measured", seed=seed)
    first = float(np.median(by_width[widths[0]]))
    line = [(w, first * (w / widths[0]) ** -0.5) for w in widths]
    ctx.series("distance to the kernel", line, method="theory")


def _paths(ctx: Context) -> None:
    sizes = ctx.pick(quick=(100, 300, 1000), full=(100, 300, 1000, 2000), paper=(), tiny=(40, 80))
    middle = ctx.pick(quick=(300, 1000), full=(300, 1000), paper=(), tiny=(40, 80))
    beside = ctx.pick(quick=(300,), full=(300, 1000), paper=(), tiny=(40,))
    seeds = _seeds(ctx, ctx.pick(quick=5, full=5, paper=0, tiny=2))
    with_rivals = seeds[:2] if ctx.scale == "quick" else seeds
    adam_steps = ctx.pick(quick=0, full=1500, paper=0, tiny=20)
    n_test = ctx.pick(quick=1000, full=2000, paper=0, tiny=100)
    new = partial(Trial, n_test=n_test, doubled=ctx.wants("radius-doubled"))
    trials = [
        new(d, n, seed, rivals=rival, adam_steps=adam_steps if rival else 0)
        for n in reversed(sizes)
        for d in DIMENSIONS
        for seed in seeds
        for rival in [n in beside and seed in with_rivals]
    ]
    results = _map(ctx, follow, trials, lambda done: ctx.progress(0.2 + 0.5 * done))

    def column(name: str, d: int, n: int) -> np.ndarray:
        return np.array([r[name] for t, r in results.items() if (t.d, t.n) == (d, n) and name in r], dtype=float)

    def ratio(name: str, other: str, d: int, ns: Sequence[int], worst: Callable[..., Any]) -> Any:
        """Median and interval at the worst n; where a rival is missing, of the seeds that have both."""
        both = [
            np.array([r[name] / r[other] for t, r in results.items() if (t.d, t.n) == (d, n) and other in r])
            for n in ns
        ]
        return _median(worst(both, key=np.median))

    for d in DIMENSIONS:
        ctx.measured(f"overfit-{d}", *ratio("end", "best", d, middle, min))
        ctx.measured(f"mallows-rule-{d}", *ratio("mallows", "best", d, sizes, max))
        ctx.measured(f"kernel-rule-{d}", *ratio("kernel", "best", d, sizes, max))
        ctx.measured(f"kernel-rule-end-{d}", *ratio("kernel", "end", d, sizes[1:], max))
        for rule in ("kernel", "mallows") if ctx.wants("slope-kernel-2") else ():
            points = [(n, e) for n in sizes for e in column(rule, d, n)]
            ctx.measured(f"slope-{rule}-{d}", *slope_fit(*zip(*points)))
        for name, method in (
            ("end", "to the end"), ("kernel", "kernel stop"),
            ("mallows", "Mallows stop"), ("best", "best in hindsight"),
        ):  # fmt: skip
            for seed in seeds:
                line = [(n, _of(results, d, n, seed)[name]) for n in sizes]
                ctx.series(f"clean error, d = {d}", line, method=method, seed=seed)
    ctx.measured("guarantee", max(r["train"] / r["bound"] for r in results.values() if r["bound"] > 0))
    if ctx.wants("guarantee-slope"):
        slopes = []
        for d in DIMENSIONS:
            points = [(t.n, r["bound"]) for t, r in results.items() if t.d == d]
            slopes.append(slope_fit(*zip(*points)))
        ctx.measured("guarantee-slope", *max(slopes))
        ctx.measured("radius-doubled", max(r["doubled"] for r in results.values()))
    for seed in seeds:
        for name, method in (("train", "measured"), ("bound", "theory")):
            line = [(n, _of(results, 2, n, seed)[name]) for n in sizes]
            ctx.series("guarantee", line, method=method, seed=seed)
    noise = [r["noise"] for r in results.values()]
    ctx.note(f"Measured noise over the true: {min(noise):.2f} to {max(noise):.2f}, median {np.median(noise):.2f}.")
    _beside_rivals(ctx, results, ratio, beside)
    _keep_paths(ctx, results, middle[0])


def _of(results: dict[Any, Any], d: int, n: int, seed: int) -> dict[str, Any]:
    return next(r for t, r in results.items() if (t.d, t.n, t.seed) == (d, n, seed))


def _beside_rivals(ctx: Context, results: dict[Any, Any], ratio: Callable[..., Any], beside: Sequence[int]) -> None:
    for claim, name in (("against-ridge", "best"), ("against-ridge-20", "path of 20")):
        worst = max((ratio(name, "ridge", d, beside, max) for d in DIMENSIONS), key=lambda found: found[0])
        ctx.measured(claim, *worst)
    ctx.measured("against-density", *ratio("mallows", "density", 8, beside, max))
    names = {
        "best in hindsight": "path of 20", "Mallows stop": "mallows", "kernel ridge": "ridge",
        "kernel density": "density", "four noisings": "four noisings", "Adam, held-out": "Adam",
    }  # fmt: skip
    for t, r in results.items():
        if (t.d, t.n) == (8, beside[0]) and "ridge" in r:
            for method, name in names.items():
                if name in r:
                    ctx.series("rivals", [r[name]], method=method, seed=t.seed)
    if ctx.wants("against-adam-2"):
        for d in DIMENSIONS:
            ctx.measured(f"against-adam-{d}", *ratio("mallows", "Adam", d, beside, max))
            ctx.measured(f"four-noisings-adam-{d}", *ratio("four noisings", "Adam", d, beside, max))
    logs = [np.log(r["density"] / r["mallows"]) for t, r in results.items() if t.d == 8 and "density" in r]
    low, high = np.exp(bootstrap_interval(logs, level=0.95))
    what = "clean error, two modes in d = 8, one noisy copy of each point"
    ctx.against("kernel density", float(np.exp(np.mean(logs))), (low, high), what=what)


def _keep_paths(ctx: Context, results: dict[Any, Any], n: int) -> None:
    kept: dict[str, Any] = {"n": np.array(n)}
    for d in DIMENSIONS:
        chosen = [r for t, r in results.items() if (t.d, t.n) == (d, n)]
        kept[f"steps_{d}"] = np.array(chosen[0]["grid"], dtype=float)
        kept[f"errors_{d}"] = np.array([r["path"] for r in chosen])
        kept[f"stops_{d}"] = np.array([r["steps"] for r in chosen], dtype=float)
        kept[f"stopped_{d}"] = np.array([(r["kernel"], r["mallows"]) for r in chosen])
    ctx.arrays("paths", **kept)


def _samples(ctx: Context) -> None:
    n = ctx.pick(quick=300, full=300, paper=0, tiny=30)
    n_samples, n_steps = ctx.pick(quick=(600, 60), full=(2000, 200), paper=(0, 0), tiny=(50, 5))
    judged = ctx.wants("samples-mallows")
    seeds = _seeds(ctx, ctx.pick(quick=1, full=5, paper=0, tiny=2))
    eight = 400 if ctx.scale == "full" else n
    cases = [samples.Cloud(2, n, seed, n_samples, n_steps) for seed in seeds]
    wide = [samples.Cloud(8, eight, seed, n_samples, n_steps) for seed in seeds] if judged else []
    found = _map(ctx, samples.cloud, cases + wide)

    def ratio(some: Sequence[Any], name: str, other: str, which: int) -> Any:
        return _median([found[c][name][which] / found[c][other][which] for c in some])

    if judged:
        ctx.measured("samples-mallows", *ratio(cases, "Mallows stop", "to the end", 0))
        ctx.measured("samples-holdout", *ratio(cases, "held-out stop", "to the end", 0))
        ctx.measured("memorized-end", *ratio(cases, "to the end", "fresh data", 1))
        ctx.measured("memorized-mallows", *ratio(cases, "Mallows stop", "fresh data", 1))
        ctx.measured("samples-8", *ratio(wide, "Mallows stop", "to the end", 0))
        for some, d in ((cases, 2), (wide, 8)):
            names = ("Mallows stop", "held-out stop", "to the end", "fresh data")
            told = "; ".join(
                f"{name} {np.median([found[c][name][0] for c in some]):.2f} "
                f"({np.median([found[c][name][1] for c in some]):.2f})"
                for name in names
            )
            ctx.note(f"Sliced W2 (median distance to the nearest training point), d = {d}: {told}.")
    first = found[cases[0]]
    kept = {f"samples_{i}": first[k][2][:600] for i, k in enumerate(("fresh data", "Mallows stop", "to the end"))}
    ctx.arrays("samples", points=first["points"], **kept)
    seeds = _seeds(ctx, ctx.pick(quick=5, full=20, paper=0, tiny=2))
    tails = np.array([samples.heavy_tail(n, seed, n_samples) for seed in seeds])
    ctx.measured("heavy-tails", *_median(tails[:, 0]))
    beyond, inside = np.median(tails[:, 2]), np.median(tails[:, 1])
    ctx.note(f"Student-t(3): {100 * beyond:.1f} % of new inputs are cut; on the others the loss is {inside:.3f} x.")


def _tables(ctx: Context) -> None:
    from sklearn.datasets import load_wine
    from sklearn.decomposition import PCA
    from sklearn.preprocessing import StandardScaler

    digits = PCA(8, svd_solver="full").fit_transform(ctx.data("digits")[0])
    tables = {"digits": (digits, 400)}
    if ctx.wants("wine"):
        tables["wine"] = (StandardScaler().fit_transform(load_wine(return_X_y=True)[0]), 118)
        tables["breast-cancer"] = (StandardScaler().fit_transform(ctx.data("breast_cancer")[0]), 380)
    seeds = _seeds(ctx, ctx.pick(quick=3, full=5, paper=0, tiny=2))
    for claim, (X, n) in tables.items():
        losses = [samples.table(X, n if ctx.scale != "tiny" else 40, seed) for seed in seeds]
        ctx.measured(claim, *_median([found["Mallows stop"] / found["to the end"] for found in losses]))
        told = ", ".join(f"{name} {np.median([found[name] for found in losses]):.3g}" for name in losses[0])
        ctx.note(f"Loss on held-out rows of {claim}: {told}.")
