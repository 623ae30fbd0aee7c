"""The stability reports say how near a training run is to the learning rate at which it would blow up or move on.

They are for whoever trains with SGD and wonders whether the learning rate is what made a solution flat, and how far it
can be raised. A monitor rides along in the training loop and gives ratios whose limit is 1: for gradient descent (the
largest eigenvalue of the curvature), and for SGD (its trace, its Frobenius norm, the exact mean-square threshold). Here
the promises of the theory are put to the test where everything can be known: sparse regression with a diagonal linear
network, two-layer networks of growing width, two classes of handwritten digits. Then what a reading costs, beside other
tools that read curvature. ``paper`` trains fully connected and convolutional networks on 1,000 images of two classes of
CIFAR-10.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch

from steepest.core.parallel import ordered_map
from steepest.landscape import StabilityReport, stability_of_factors
from steepest.landscape._second_moment import Coordinates, second_moment_step
from steepest.studies import sgd_stability_pictures as pictures
from steepest.studies.claim import Claim, Figure, Paper, Peer, Picture, bootstrap_interval, slope_fit
from steepest.studies.context import Context
from steepest.studies.sgd_stability_costs import measure_costs
from steepest.studies.sgd_stability_digits import NAMES, measure_digits
from steepest.studies.sgd_stability_paper import run_paper
from steepest.studies.sgd_stability_toys import (
    Solutions,
    sparse_regression,
    train_diagonal,
    train_two_layer,
    two_layer_problem,
)

AREA = "landscape"

PAPER = Paper(
    title="The Implicit Regularization of Dynamical Stability in Stochastic Gradient Descent",
    authors="Lei Wu, Weijie J. Su",
    venue="ICML",
    year=2023,
    url="https://arxiv.org/abs/2305.17490",
)

_SPARSE = "sparse regression, diagonal linear network"
_WIDE = "two-layer ReLU network, d = 10"

# fmt: off
CLAIMS = [  # id, what it says, the paper's number, bound, unit, scales, invariant
    Claim("trace-upper", f"SGD with single samples ends where tr H <= 2 / lr: {_SPARSE}.", "tr H <= 2 / lr, B = 1",
          "<= 1.0", "largest ratio, converged runs", "quick full"),
    Claim("trace-lower", "The bound is nearly attained: the flattest of these solutions.", "tr H <= 2 / lr, B = 1",
          ">= 0.7", "smallest ratio, converged runs", "quick full"),
    Claim("exact-lower", "SGD stops at the exact limit: the run farthest below it.",
          "mean-square stability is the limit", ">= 0.75", "smallest ratio", "quick full"),
    Claim("exact-upper", "SGD stops at the exact limit: the run farthest above it.",
          "mean-square stability is the limit", "<= 1.05", "largest ratio", "quick full"),
    Claim("gd-limit", "Gradient descent keeps to its own limit, lambda_max <= 2 / lr.", "lambda_max <= 2 / lr",
          "<= 1.02", "largest ratio", "quick full"),
    Claim("gd-trace", "Gradient descent does not feel the trace.", "only lambda_max is bounded", ">= 3",
          "smallest ratio trace", "quick full"),
    Claim("sharpness", "The trace at SGD's solutions falls as 1 / lr.", "tr H <= 2 / lr", "between(-1.15, -0.85)",
          "exponent of tr H in the learning rate", "quick full"),
    Claim("generalization-sgd", "A larger learning rate makes SGD's solution generalize better.",
          "larger learning rates generalize better", "<= 0.4", "test error, largest / smallest learning rate",
          "quick full"),
    Claim("generalization-gd", "Gradient descent's test error does not depend on its learning rate.",
          "the l-infinity bound does not help", "<= 5", "% change over all learning rates", "quick full"),
    Claim("path-norm", f"Stability for single samples bounds the path norm: {_WIDE}, trained with B = 1.",
          "path norm <= 2 / (lr sqrt(d))", "<= 1.15", "largest path norm / bound", "quick full"),
    Claim("trace-width", "The trace at SGD's solutions does not depend on the width.", "independent of the width",
          "between(-0.15, 0.15)", "exponent of tr H in the width", "quick full"),
    Claim("frobenius", "|H|_F <= 1 / (lr sqrt(p mu)) at the solutions, whatever width and batch size.",
          "|H|_F <= O(sqrt(B) / lr), NeurIPS 2022", "<= 1.1", "largest ratio", "quick full"),
    Claim("frobenius-batch", "The largest |H|_F that SGD keeps grows as the root of the batch size.",
          "|H|_F <= O(sqrt(B) / lr), NeurIPS 2022", "between(0.3, 0.7)", "exponent in B", "quick full"),
    Claim("threshold-below", "Below the exact threshold (0.99 of it) the second moments decay.",
          "necessary and sufficient", "== 1", "share of 20 random problems", "quick full", True),
    Claim("threshold-above", "Above it (1.01) they grow.", "necessary and sufficient", "== 1",
          "share of 20 random problems", "quick full", True),
    Claim("threshold-dense", "It equals the threshold from dense matrices of order r squared.", "exact", "<= 1e-8",
          "largest relative difference", "quick full", True),
    Claim("chain", "trace <= necessary <= exact and gd <= exact, in every report of this study.", "Lemma of each bound",
          "== 1", "share of reports", "quick full", True),
    Claim("digits", "Where SGD ends on two classes of handwritten digits, relative to the exact limit.",
          "not in the paper", "reported", "ratio exact", "quick full"),
    Claim("overhead-mlp", "A monitor every 100 steps costs little: 85,002 weights, steps on all 512 samples it reads.",
          "own target", "<= 10", "% of training time", "quick full"),
    Claim("overhead-small-batches", "The same with steps on 32 samples, while it reads all 512.", "not in the paper",
          "reported", "% of training time", "quick full"),
    Claim("overhead-language", "A monitor every 100 steps costs little: a small GPT, 16 sequences a step, reading 2.",
          "own target", "<= 5", "% of training time", "quick full"),
    Claim("peer-speed", "lambda_max, tr H and |H|_F to 5 %: faster than the best other tool that gives all three.",
          "own target", ">= 2", "x faster", "quick full"),
    Claim("threshold-speed", "The exact threshold of 200 samples, rank 60, against dense matrices of order r squared.",
          "own target", ">= 100", "x faster", "quick full"),
    Claim("cifar-fc", "The trace bound holds for a fully connected network on 1,000 images of CIFAR-10, B = 1.",
          "tr H <= 2 / lr, experiments section", "<= 1.0", "largest ratio trace", "paper"),
    Claim("cifar-conv", "The same for a convolutional network.", "tr H <= 2 / lr, experiments section", "<= 1.0",
          "largest ratio trace", "paper"),
    Claim("cifar-gd", "Gradient descent exceeds the trace bound there.", "only lambda_max is bounded", "> 1",
          "smallest ratio trace", "paper"),
    Claim("cifar-generalization", "Test accuracy that SGD gains from the smallest to the largest learning rate.",
          "larger learning rates generalize better", "reported", "points", "paper"),
]
# fmt: on

PEERS = [
    Peer("curvlinops", "curvlinops"),
    Peer("PyHessian", "pyhessian"),
    Peer("hessian-eigenthings", "hessian_eigenthings"),
]

OPTIONS: dict[str, str] = {}

# fmt: off
FIGURES = [
    Figure("edge", "SGD ends at its stability limit whatever the learning rate; gradient descent does not care",
           "trace ratio", "learning rate", "lr tr H / 2 (limit 1)", log_x=True, log_y=True,
           methods=("SGD", "gradient descent", "limit"),
           caption="Sparse regression with a diagonal linear network, single samples against full batches; median and "
           "10-90 % band over seeds."),
    Figure("exact", "The exact limit is met more closely than the trace bound", "ratios", "learning rate",
           "ratio at SGD's solution (limit 1)", log_x=True, methods=(*NAMES.values(), "limit"),
           caption="Single samples, sparse regression; median and 10-90 % band over seeds."),
    Figure("error", "The flatter solutions of large learning rates generalize better", "test error", "learning rate",
           "squared error of the coefficients", log_x=True, log_y=True, methods=("SGD", "gradient descent"),
           caption="The same runs: 3 of 100 coefficients are nonzero, 40 samples; median and 10-90 % band over seeds."),
    Figure("width", "The trace does not grow with the width", "trace by width", "width", "tr H", log_x=True,
           log_y=True, methods=("B = 1", "B = 4", "B = 16", "limit"),
           caption="Two-layer ReLU networks, d = 10, 40 samples, one learning rate; limit: 2 / lr, for B = 1. Median "
           "and 10-90 % band over seeds."),
    Figure("batch", "Larger batches keep sharper solutions", "Frobenius by batch", "batch size", "largest |H|_F",
           log_x=True, log_y=True, methods=("measured", "sqrt(B)"),
           caption="The same networks, largest of all widths and seeds. The line grows as the root of B, from B = 1."),
    Figure("digits", "A run on handwritten digits climbs to its limit and stays there", "digits", "step",
           "ratio (limit 1)", methods=(*NAMES.values(), "limit"),
           caption="Threes against eights, one hidden layer, single samples, learning rate raised over the first half; "
           "median and 10-90 % band over seeds, read by the monitor."),
]
PICTURES = [
    Picture("spectra", "What SGD flattens: not the largest eigenvalue, all of them", "spectra", pictures.draw_spectra,
            caption="Sparse regression, first seed: eigenvalues of H at SGD's solutions for growing learning rates, "
            "and at gradient descent's.",
            alt="Eigenvalue curves: gradient descent's lies highest and does not move with the learning rate; SGD's "
            "sink as a whole as the learning rate grows.", size=(7.6, 4.0)),
]
# fmt: on

SNIPPET = """\
import torch
from torch import nn
from steepest.landscape import DiagonalLinear, StabilityMonitor

g = torch.Generator().manual_seed(0)
X = torch.randn(40, 100, generator=g)
y = X[:, :3].sum(1, keepdim=True)
model = DiagonalLinear(100, scale=0.5)
optimizer = torch.optim.SGD(model.parameters(), lr=0.004)
monitor = StabilityMonitor(model, nn.MSELoss(), X, y, every=200, batch_size=1, optimizer=optimizer)
for _ in range(1000):
    i = torch.randint(40, (1,), generator=g)
    optimizer.zero_grad()
    nn.functional.mse_loss(model(X[i]), y[i]).backward()
    optimizer.step()
print(monitor.last)
"""

REASONS = {
    "overhead-mlp": "by operations a reading is 7 % of 100 steps (four products of 4/3 gradients each, a forward pass "
    "with the gradient's graph, three backward passes for the per-sample terms); measured it is 9 to 10 %, and on a "
    "busy machine the turns scatter across the bound.",
}

WHEN_NOT = [
    "The loss is far from zero, as when training large language models: the limits are those of a minimum that fits "
    "every sample, and the report then says how far it is.",
    "The optimizer is not plain SGD: Adam and its kin have other limits; with momentum only those of gradient descent "
    "and of the loss remain.",
    "A single run should be judged: unstable in mean square does not mean that this run blows up.",
    "Only the sharpness is wanted: an eigenvalue solver alone is cheaper.",
]

WIDE_LR, WIDE_PATH, CONVERGED = 0.05, 100.0, 1e-4


def run(ctx: Context) -> None:
    """Measure; see the module."""
    if ctx.scale == "paper":
        run_paper(ctx)
        return
    reports: list[StabilityReport] = []
    ctx.progress(0.0)
    ctx.timed("threshold", lambda: exact_threshold(ctx))
    ctx.progress(0.05)
    ctx.timed("sparse regression", lambda: sparse(ctx, reports))
    ctx.progress(0.2)
    ctx.timed("two-layer networks", lambda: two_layer(ctx, reports))
    ctx.progress(0.6)
    ctx.timed("digits", lambda: measure_digits(ctx, reports))
    ctx.progress(0.7)
    ctx.measured("chain", float(np.mean([_is_chain(report.ratios) for report in reports])))
    ctx.timed("costs", lambda: measure_costs(ctx))
    ctx.note(
        "Settings chosen after pilot runs: learning rate and initial path norm of the two-layer networks (so that "
        "batches of 1 to 16 all meet a limit below the start), and those of the digits."
    )


def _is_chain(ratios: dict[str, float]) -> bool:
    slack = 1 + 1e-9
    return (
        ratios["trace"] <= ratios["necessary"] * slack
        and ratios["necessary"] <= ratios["exact"] * slack
        and ratios["gd"] <= ratios["exact"] * slack
    )


# ----------------------------------------------------------------------------------------------------------- thresholds


def exact_threshold(ctx: Context) -> None:
    """The recursion for second moments at 0.99 and 1.01 of its threshold, on random problems of all kinds."""
    below: list[bool] = []
    above: list[bool] = []
    problems = ctx.pick(tiny=4, quick=20, full=20, paper=20)
    for k in range(problems):
        rng = np.random.default_rng([ctx.seed, k])
        n, C, P = int(rng.integers(4, 10)), int(rng.integers(1, 3)), int(rng.integers(3, 9))
        A = torch.from_numpy(rng.standard_normal((n, C, P)) * np.logspace(0, -rng.uniform(0, 1.5), P))
        batch, replacement = int(rng.integers(1, n)), bool(rng.integers(2))
        report = stability_of_factors(A, lr=1.0, batch_size=batch, replacement=replacement)
        coordinates = Coordinates.from_rows(A)
        r = len(coordinates.eigenvalues)
        for factor, outcome in ((0.99, below), (1.01, above)):
            lr = factor * report.max_lr["exact"]
            columns = [
                second_moment_step(coordinates, E.view(r, r), lr, report.noise_fraction).reshape(-1)
                for E in torch.eye(r * r, dtype=torch.float64)
            ]
            power = torch.linalg.matrix_power(torch.stack(columns, 1), 2**16)
            size = float((power @ torch.eye(r, dtype=torch.float64).reshape(-1)).norm()) / math.sqrt(r)
            outcome.append(not size <= 1)  # an overflow has grown, too
    ctx.measured("threshold-below", 1 - float(np.mean(below)))
    ctx.measured("threshold-above", float(np.mean(above)))


# --------------------------------------------------------------------------------------------------- sparse regression


def sparse(ctx: Context, reports: list[StabilityReport]) -> None:
    """SGD with single samples and gradient descent on the same problems, over learning rates."""
    rates = ctx.pick(
        tiny=(0.01, 0.02),
        quick=(0.005, 0.01, 0.02, 0.03, 0.04, 0.06),
        full=(0.005, 0.0075, 0.01, 0.015, 0.02, 0.03, 0.04, 0.05, 0.06),
        paper=(0.01,),
    )
    gd_rates = ctx.pick(tiny=(0.02, 0.08), quick=(0.005, 0.02, 0.04, 0.08), full=(*rates, 0.08), paper=(0.02,))
    n_seeds = ctx.seeds_asked or ctx.pick(tiny=2, quick=3, full=8, paper=3)
    seeds = [ctx.seed + 1 + k for k in range(n_seeds)]
    steps = ctx.pick(tiny=20_000, quick=40_000, full=40_000, paper=40_000)
    gd_steps = ctx.pick(tiny=1000, quick=10_000, full=10_000, paper=10_000)
    X, y, beta = sparse_regression(seeds)

    def tiled(rates: tuple[float, ...]) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        m = len(rates)
        return np.tile(X, (m, 1, 1)), np.tile(y, (m, 1)), np.tile(beta, (m, 1)), np.repeat(rates, n_seeds)

    sgd = train_diagonal(*tiled(rates), steps, full_batch=False, seed=ctx.seed)
    gd = train_diagonal(*tiled(gd_rates), gd_steps, full_batch=True, seed=ctx.seed)
    lr, gd_lr = np.repeat(rates, n_seeds), np.repeat(gd_rates, n_seeds)
    done = [k for k in range(len(lr)) if sgd.losses[k] <= 1e-6]
    ctx.note(f"Sparse regression: {len(done)} of {len(lr)} SGD runs converged; noise of 1e-6 keeps them from freezing.")
    done = done or [k for k in range(len(lr)) if np.isfinite(sgd.losses[k])]
    found = {k: sgd.report(k, lr[k], 1) for k in done}
    gd_found = [gd.report(k, rate, 1) for k, rate in enumerate(gd_lr)]
    reports += [*found.values(), *gd_found]
    trace, exact = (np.array([found[k].ratios[name] for k in done]) for name in ("trace", "exact"))
    ctx.measured("trace-upper", float(trace.max()))
    ctx.measured("trace-lower", float(trace.min()))
    ctx.measured("exact-lower", float(exact.min()))
    ctx.measured("exact-upper", float(exact.max()))
    ctx.measured("sharpness", *slope_fit(lr[done], [found[k].trace for k in done]))
    large = [k for k, rate in enumerate(gd_lr) if rate >= 0.02]
    ctx.measured("gd-limit", max(gd_found[k].ratios["gd"] for k in large))
    ctx.measured("gd-trace", min(gd_found[k].ratios["trace"] for k in large))
    assert sgd.errors is not None
    assert gd.errors is not None
    errors, gd_errors = sgd.errors.reshape(len(rates), -1), gd.errors.reshape(len(gd_rates), -1)
    gain = errors[-1] / errors[0]
    ctx.measured("generalization-sgd", float(np.median(gain)), bootstrap_interval(gain, statistic=np.median))
    ctx.measured("generalization-gd", 100 * float((gd_errors.max(0) / gd_errors.min(0) - 1).max()))

    for j, seed in enumerate(seeds):
        mine = [report for k, report in found.items() if k % n_seeds == j]
        ctx.series("trace ratio", [(r.lr, r.ratios["trace"]) for r in mine], method="SGD", seed=seed)
        theirs = [(r.lr, r.ratios["trace"]) for r in gd_found[j::n_seeds]]
        ctx.series("trace ratio", theirs, method="gradient descent", seed=seed)
        for name in NAMES:
            ctx.series("ratios", [(r.lr, r.ratios[name]) for r in mine], method=NAMES[name], seed=seed)
        ctx.series("test error", list(zip(rates, errors[:, j])), method="SGD", seed=seed)
        ctx.series("test error", list(zip(gd_rates, gd_errors[:, j])), method="gradient descent", seed=seed)
    ctx.series("trace ratio", [(rate, 1.0) for rate in sorted({*rates, *gd_rates})], method="limit")
    ctx.series("ratios", [(rate, 1.0) for rate in rates], method="limit")
    ctx.arrays(
        "spectra",
        sgd=np.array([_spectrum(sgd, k) for k in range(0, len(lr), n_seeds) if k in found]),
        gd=_spectrum(gd, len(gd_lr) - n_seeds),
        rates=np.array([rate for k, rate in zip(range(0, len(lr), n_seeds), rates) if k in found]),
    )


def _spectrum(solutions: Solutions, run: int) -> np.ndarray:
    A = solutions.factors[run]
    return np.asarray(np.linalg.eigvalsh(A @ A.T / len(A))[::-1])


# ---------------------------------------------------------------------------------------------------- two-layer network


def two_layer(ctx: Context, reports: list[StabilityReport]) -> None:
    """Networks of growing width, batches of growing size, one learning rate."""
    widths = ctx.pick(tiny=(16, 32), quick=(20, 80, 320), full=(20, 40, 80, 160, 320, 640), paper=(20,))
    sizes = ctx.pick(tiny=(1, 4), quick=(1, 2, 4, 8, 16), full=(1, 2, 4, 8, 16), paper=(1,))
    steps = ctx.pick(tiny=10_000, quick=15_000, full=40_000, paper=300)
    seeds = ctx.seeds if ctx.seeds_asked or ctx.scale != "full" else [ctx.seed + 1 + k for k in range(4)]
    work = [(width, B, seeds, steps, ctx.seed) for B in sizes for width in widths]
    backend: Literal["serial", "processes"] = "processes" if ctx.scale == "full" else "serial"
    found = dict(zip([job[:2] for job in work], ordered_map(_train_and_read, work, backend=backend, n_workers=2)))
    rows = [(width, B, row) for (width, B), group in found.items() for row in group]
    done = [entry for entry in rows if entry[2].loss <= (CONVERGED if ctx.scale != "tiny" else math.inf)]
    total = len(work) * len(seeds)
    ctx.note(f"Two-layer networks: {len(done)} of {total} runs converged (loss <= {CONVERGED:g}) and are counted.")
    reports += [row.report for _, _, row in done]
    single = [(width, row) for width, B, row in done if B == 1]
    bound = 2 / (WIDE_LR * math.sqrt(10))
    ctx.measured("path-norm", max(row.norm for _, row in single) / bound)
    ctx.measured("trace-width", *slope_fit([width for width, _ in single], [row.report.trace for _, row in single]))
    ctx.measured("frobenius", max(row.loss_ratio for _, _, row in done))
    largest = _largest(done)
    slopes = [slope_fit(*zip(*_largest([e for e in done if e[2].seed == seed]).items()))[0] for seed in seeds]
    spread = bootstrap_interval(slopes, statistic=np.median)
    ctx.measured("frobenius-batch", float(np.median(slopes)), spread)
    for B in sizes:
        for seed in seeds:
            points = [(width, row.report.trace) for width, b, row in done if (b, row.seed) == (B, seed)]
            if points:
                ctx.series("trace by width", points, method=f"B = {B}", seed=seed)
    ctx.series("trace by width", [(width, 2 / WIDE_LR) for width in widths], method="limit")
    ctx.series("Frobenius by batch", list(largest.items()), method="measured")
    root = [(B, largest[min(largest)] * math.sqrt(B / min(largest))) for B in largest]
    ctx.series("Frobenius by batch", root, method="sqrt(B)")


def _largest(entries: list[tuple[int, int, Row]]) -> dict[int, float]:
    """The largest |H|_F of each batch size."""
    return {B: max(row.report.frobenius for _, b, row in entries if b == B) for B in sorted({b for _, b, _ in entries})}


@dataclass(frozen=True)
class Row:
    """One run of a two-layer network: its report, loss, path norm, and the ratio of the loss's own bound."""

    seed: int
    report: StabilityReport
    loss: float
    norm: float
    loss_ratio: float


def _train_and_read(job: tuple[int, int, list[int], int, int]) -> list[Row]:
    width, batch_size, seeds, steps, seed = job
    X, y = two_layer_problem(seeds)
    rates = np.full(len(seeds), WIDE_LR)
    ends = train_two_layer(X, y, width, rates, batch_size, steps, path_norm=WIDE_PATH, seed=seed)
    rows = []
    for k, own in enumerate(seeds):
        if np.isfinite(ends.losses[k]):
            report = ends.report(k, WIDE_LR, batch_size)
            rows.append(Row(own, report, float(ends.losses[k]), float(ends.norms[k]), ends.loss_ratio(k, report)))
    return rows
