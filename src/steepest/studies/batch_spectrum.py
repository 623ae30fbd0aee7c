"""Batch spectrum predicts the sharpest direction of a batch of any size, and with it the learning rate.

It is for people whose batch size changes (more devices, less memory, a shared cluster) and who do not want a new sweep
for it, and for those who have no learning rate at all: curvature gives one, with the momentum, and keeps it up to date.
It also says from which batch size on more batch hardly helps. Here: sampled matrices and the digits against the theory
(`studies.batch_spectrum_curvature`), the largest learning rates that train (`studies.batch_spectrum_rates`), and the
learner beside a sweep of SGD (`studies.batch_spectrum_learner`). ``paper`` takes CIFAR-100
(`studies.batch_spectrum_paper`).
"""

from __future__ import annotations

from steepest.studies import batch_spectrum_paper
from steepest.studies.batch_spectrum_curvature import MOMENTS, extremes_of_batches, spiked_matrices
from steepest.studies.batch_spectrum_learner import learner_against_sweep, learner_costs
from steepest.studies.batch_spectrum_rates import rates_by_batch
from steepest.studies.batch_spectrum_tools import compare_tools, draw_tools
from steepest.studies.claim import Claim, Figure, Paper, Peer, Picture
from steepest.studies.context import Context
from steepest.studies.provenance import cores

AREA = "landscape"

PAPER = Paper(
    title="Learning Rates as a Function of Batch Size: A Random Matrix Theory Approach to Neural Network Training",
    authors="Diego Granziol, Stefan Zohren, Stephen Roberts",
    venue="JMLR",
    year=2022,
    url="https://jmlr.org/papers/v23/20-1258.html",
)

# fmt: off
CLAIMS = [  # id, what it says, the paper's claim, bound, unit, scales, invariant
    Claim("excess-top-ggn", "Batches are sharper than the data at every size and moment: Gauss-Newton.",
          "batch extremes exceed the full ones", "== 1", "share of sizes and moments", "quick full"),
    Claim("excess-top-hessian", "Batches are sharper than the data at every size: Hessian.",
          "batch extremes exceed the full ones", "== 1", "share of sizes and moments", "full"),
    Claim("excess-bottom", "The most negative curvature of batches lies below that of the data: Hessian.",
          "batch extremes exceed the full ones", "== 1", "share of sizes and moments", "full"),
    Claim("slope-ggn", "The excess falls with the effective batch b as the theory says: Gauss-Newton.",
          "between -1/2 (hidden) and -1 (visible)", "between(-1.15, -0.75)", "exponent", "quick full"),
    Claim("slope-hessian", "The excess falls with the effective batch b as the theory says: Hessian.",
          "between -1/2 (hidden) and -1 (visible)", "between(-1.15, -0.75)", "exponent", "full"),
    Claim("prediction-ggn", "Two batch sizes predict all others up to 256: Gauss-Newton.", "spiked model", "<= 0.25",
          "largest relative error, median over moments", "quick full"),
    Claim("prediction-hessian", "Two batch sizes predict all others up to 256: Hessian.", "spiked model", "<= 0.25",
          "largest relative error, median over moments", "full"),
    Claim("prediction-directional", "The same from per-sample curvature along the top eigenvector.", "not in the paper",
          "reported", "largest relative error, median over moments", "quick full"),
    Claim("prediction-frobenius", "The same from independent entries, as the paper has them.", "spiked model",
          "reported", "largest relative error, median over moments", "quick full"),
    Claim("prediction-one-regime", "The same where the spike is taken as visible at all sizes.", "not in the paper",
          "reported", "largest relative error, median over moments", "quick full"),
    *(Claim(f"tools-{key}", f"CPU time to {goal}, beside the fastest other tool.", "not in the paper", "<= 1",
            "x its CPU time", "full")
      for key, goal in (("largest", "1 % of a Hessian's largest eigenvalue"), ("trace", "3 % of its trace"),
                        ("density", "a distance of 0.15 to its spectral density"))),
    Claim("spiked-spikes", "Visible spikes of sampled matrices lie where the formula says, P = 1,000.", "spiked model",
          "<= 0.02", "largest relative error", "quick full", True),
    Claim("spiked-edge", "The edge of their bulk lies at twice s.", "spiked model", "<= 0.02", "largest relative error",
          "quick full", True),
    Claim("linear-sgd", "The largest learning rate that trains grows with the batch: SGD, B = 2 to 32.",
          "linear scaling", "between(0.85, 1.2)", "exponent", "quick full"),
    Claim("saturation-sgd", "The growth from B = 128 to 512.", "saturation", "reported", "exponent", "full"),
    Claim("root-adam", "It grows as the root of the batch: Adam, B = 2 to 512.", "square-root scaling",
          "between(0.4, 0.75)", "exponent", "full"),
    Claim("root-gap", "Adam's exponent lies below SGD's over B = 2 to 128.", "1 against 1/2", ">= 0.25",
          "difference of exponents", "quick full"),
    *(Claim(f"learner-loss-{key}", f"The learner's loss against the best of 36 cells of SGD: {name}.",
            "learning rates on the fly", "<= 3", "x the best cell's training loss", scales)
      for key, name, scales in (("mlp", "network 64-32-10", "quick full"), ("cnn", "small convolutions", "full"))),
    *(Claim(f"learner-ahead-{key}", f"The learner ends ahead of most cells: {name}.", "learning rates on the fly",
            ">= 0.7", "share of cells, median over runs", scales)
      for key, name, scales in (("mlp", "network 64-32-10", "quick full"), ("cnn", "small convolutions", "full"))),
    *(Claim(f"learner-lost-{key}", f"At most one run in twenty ends above a loss of 0.01: {name}.",
            "not in the paper", "<= 0.05", "share of 20 runs", scales)
      for key, name, scales in (("mlp", "network 64-32-10", "full"), ("cnn", "small convolutions", "full"))),
    *(Claim(f"warm-loss-{key}", f"The same with warmup=20 and safety=0.2: {name}.", "not in the paper", "<= 3",
            "x the best cell's training loss", "full")
      for key, name in (("mlp", "network 64-32-10"), ("cnn", "small convolutions"))),
    *(Claim(f"warm-lost-{key}", f"At most one such run in twenty ends above a loss of 0.01: {name}.",
            "not in the paper", "<= 0.05", "share of 20 runs", "full")
      for key, name in (("mlp", "network 64-32-10"), ("cnn", "small convolutions"))),
    *(Claim(f"learner-cost-{key}", f"The learner costs a fraction of the sweep: {name}.", "no sweep", "<= 0.1",
            "x the sweep's CPU time", "quick full")
      for key, name in (("mlp", "network 64-32-10"), ("cnn", "small convolutions"))),
    *(Claim(f"time-{every}-{key}", f"Time of a training step, curvature every {every} steps: {name}.",
            "not in the paper", bound, "x plain SGD", "quick full")
      for key, name in (("mlp", "network 64-32-10"), ("cnn", "small convolutions"))
      for every, bound in ((20, "<= 2"), (100, "<= 1.25"))),
    Claim("cifar-slope-vgg16", "The excess falls with the batch: VGG-16 on CIFAR-100, B = 64 to 8,192.",
          "spiked model", "between(-1.15, -0.75)", "exponent", "paper"),
    Claim("cifar-slope-wideresnet", "The excess falls with the batch: WideResNet-28-10 on CIFAR-100.",
          "spiked model", "between(-1.15, -0.75)", "exponent", "paper"),
    Claim("imagenet-slope", "The excess falls with the batch: ResNet-18 on 10,000 images of ImageNet, B = 64 to 8,192.",
          "spiked model", "between(-1.15, -0.75)", "exponent", "paper"),
    Claim("cifar-learner", "Training loss of the learner against rate 0.1 and momentum 0.9: PreResNet-110, CIFAR-100.",
          "learning rates on the fly", "reported", "x SGD's training loss", "paper"),
]
# fmt: on

PEERS = [
    Peer("SGD"),
    Peer("Adam"),
    Peer("curvlinops", "curvlinops"),
    Peer("PyHessian", "pyhessian"),
    Peer("torch-lr-finder", "torch_lr_finder"),
]

OPTIONS = {
    "workers": "at full: processes at a time (default: two, or one on a single core)",
    "task": "what --scale paper trains: cifar (default) or imagenet",
}

# fmt: off
FIGURES = [
    Figure("extremes", "Two batch sizes tell the sharpness of all others", "extremes", "batch size B",
           "largest eigenvalue", log_x=True, log_y=True,
           methods=("measured batches", "predicted", "directional noise", "frobenius noise"),
           caption="Digits, network 64-32-10, Gauss-Newton matrix at a loss of 0.26. Predicted: from batches of 16 and "
           "64. Median and range over seeds of means over batches."),
    Figure("rates", "SGD's largest learning rate grows with the batch, Adam's with its root", "largest rate",
           "batch size B", "largest learning rate that trains", log_x=True, log_y=True,
           caption="Digits, full training loss below 0.9 of the initial one after 120 steps. Median and range over "
           "seeds; theory from the smallest batch on."),
    Figure("sweep", "One run of the learner against a sweep of 36", "sweep mlp", "learning rate of the cell",
           "training loss after 400 steps", log_x=True, log_y=True,
           methods=("learner", "momentum 0", "momentum 0.5", "momentum 0.9"),
           caption="Digits, network 64-32-10, batch 128; the learner has no learning rate, its line is its final loss. "
           "Median and range over seeds; cells that diverged are missing."),
    Figure("losses", "The learner's runs beside the sweep's best cell", "losses mlp", "training loss after 400 steps",
           "training", "dots", log_x=True,
           caption="Twenty seeds of the learner, none chosen; the sweep's seeds are the first of them."),
    Figure("rate", "The learning rate that curvature gives", "learner rate mlp", "step", "learning rate", log_y=True,
           caption="It falls within the first updates, when curvature rises, then grows as the loss flattens, at most "
           "by 1.2 each. Median and range over seeds."),
    Figure("lower", "Negative curvature grows in small batches too", "lower", "batch size B",
           "most negative eigenvalue, sign changed", log_x=True, log_y=True,
           caption="Hessian at a loss of 0.26; theory calibrated at 16 and 64."),
    Figure("spiked", "Sampled matrices follow the formula", "spiked", "batch size B", "largest eigenvalue", log_x=True,
           log_y=True, caption="Order 1,000, spikes of 1.5, 3 and 6 on each side: hidden at B = 1, visible at B = 64."),
]
PICTURES = [
    Picture("tools", "The same products for every tool: what differs is their price", "tools", draw_tools,
            "Hessian of the network 64-32-10 on all digits, 2,410 parameters, at a loss of 0.26. A line is a way of a "
            "tool at growing budgets of products, from model to number; medians and quartiles over ten seeds against "
            "all eigenvalues in double precision. Gray: the error that the claims ask for.",
            "Three panels of error against CPU time on logarithmic axes: Lanczos of steepest and of PyHessian fall "
            "together to 1e-7, curvlinops three times later; traces fall slowly and scatter; densities lie together.",
            size=(11.0, 4.0)),
]
# fmt: on

SNIPPET = """\
import torch
from torch import nn
from steepest.landscape import BatchSpectrum

g = torch.Generator().manual_seed(0)
X = torch.randn(512, 20, generator=g)
y = (X[:, 0] * X[:, 1] > 0).long()
model, loss_fn = nn.Sequential(nn.Linear(20, 32), nn.Tanh(), nn.Linear(32, 2)), nn.CrossEntropyLoss()

spectrum = BatchSpectrum(model, loss_fn, X, y).fit()
print(spectrum.recommend(0.1, batch_size=16, new_batch_size=128))   # a new batch size, no new sweep

optimizer = torch.optim.SGD(model.parameters(), lr=1.0)             # this rate is replaced
spectrum.attach(optimizer, batch_size=128, every=20)                # curvature sets rate and momentum
for _ in range(100):
    index = torch.randint(512, (128,), generator=g)
    optimizer.zero_grad()
    loss_fn(model(X[index]), y[index]).backward()
    optimizer.step()
spectrum.detach()
"""

_FLOOR = (
    "30 products of about a gradient each are 1.5 gradients a step at every 20 steps and 0.3 at every 100, so that no "
    "implementation of 30 steps stays below 2.5 and 1.3; on networks this small the calls cost as much again"
)
_SHARE = (
    "a training with curvature every 20 steps costs four to five plain ones here, of 36 in the sweep; every 100 steps, "
    "which trained 64 of 64 digits networks below 0.01, it is a twentieth of the sweep"
)
_SHARP = (
    "in the slow runs that were traced the rule itself holds the rate down, not the cap: curvature rises from about 1 "
    "to 20 or 30 within seven steps at the full first rate and stays high, of which a tenth of the quadratic's rate "
    "is 0.03, where the best cells have 0.13 at momentum 0.9 (noise of the estimate was not excluded). Growth by 2 "
    "instead of 1.2 leaves the median of six runs at 0.0044 (0.0026), earlier looks raise it to 0.016; working up the "
    "first rate over 20 steps gives 0.0015, with safety 0.2 also 0.0001"
)
REASONS: dict[str, str] = {
    **{f"time-{every}-{key}": _FLOOR for every in (20, 100) for key in ("mlp", "cnn")},
    **{f"learner-cost-{key}": _SHARE for key in ("mlp", "cnn")},
    **{f"learner-{what}-cnn": _SHARP for what in ("loss", "lost")},
    "warm-lost-cnn": "a network with a fresh seed is thrown off now and then: one of twenty ended at 0.07, of "
    "the six that the setting was chosen on none",
    "tools-largest": "the same Lanczos products, seven of them, at the same price as PyHessian's",
    "tools-trace": "Hutchinson's estimator on the same products: at six of them chance among ten seeds decides; "
    "curvlinops multiplies many probes at once, which pays from 48 on",
    "learner-loss-mlp": "six runs against two sweeps at quick; twenty paired ones decide at full",
    "prediction-hessian": "means of 20 Hessians at B = 4 and 8 scatter more than those of Gauss-Newton matrices, and "
    "so does the noise that two sizes give",
}

WHEN_NOT = [
    "A tuned learning rate for this batch size exists: the learner saves a sweep, it does not beat its best cell.",
    "The loss is no mean over samples that could be drawn independently (contrastive losses, reinforcement learning): "
    "its batches are not noisy copies of one curvature.",
    "The network is tiny and every second counts: thirty products every twenty steps cost more than the steps.",
    "Adam is to be tuned from nothing: for adaptive methods only ratios between batch sizes are predicted.",
    "Training runs with Nesterov's momentum or dampening: the momentum formula is the heavy ball's.",
]


def run(ctx: Context) -> None:
    """Measure; see the module."""
    if ctx.scale == "paper":
        batch_spectrum_paper.measure(ctx)
        return
    workers = int(ctx.options.get("workers", min(2, cores()))) if ctx.scale == "full" else 1
    many = ctx.pick(tiny=2, quick=6, full=20, paper=0)
    runs = [ctx.seed + 101 + k for k in range(many)]  # not those that settings were chosen on
    five = [ctx.seed + 1 + k for k in range(5)]
    seeds = ctx.seeds[:1] if ctx.scale == "tiny" else ctx.seeds if ctx.scale != "full" or ctx.seeds_asked else five
    ctx.progress(0.0)
    spiked_matrices(ctx, ctx.pick(tiny=200, quick=1000, full=1000, paper=0), ctx.pick(tiny=1, quick=2, full=5, paper=0))
    ctx.progress(0.08)
    repeats = ctx.pick(tiny=1, quick=20, full=20, paper=0)
    moments = ctx.pick(tiny=(3,), quick=MOMENTS[::2], full=MOMENTS, paper=MOMENTS)
    ctx.timed("curvature of batches", lambda: extremes_of_batches(ctx, seeds, moments, repeats, workers))
    ctx.progress(0.4)
    steps = ctx.pick(tiny=8, quick=120, full=120, paper=0)
    ctx.timed("largest rates", lambda: rates_by_batch(ctx, seeds[:3], steps, workers))
    ctx.progress(0.7)
    for network in ("mlp", "cnn"):
        learner_costs(
            ctx, network, ctx.pick(tiny=1, quick=5, full=15, paper=0), ctx.pick(tiny=3, quick=100, full=100, paper=0)
        )
    steps, sweeps = ctx.pick(tiny=2, quick=400, full=400, paper=0), ctx.pick(tiny=1, quick=2, full=20, paper=0)
    learner_against_sweep(ctx, "mlp", runs, runs[:sweeps], steps, workers)
    if ctx.wants("learner-loss-cnn"):
        ctx.progress(0.8)
        learner_against_sweep(ctx, "cnn", runs, runs[: min(sweeps, 3)], steps, workers)
    if ctx.wants("tools-largest"):
        ctx.progress(0.95)
        tried = (seeds[:1], (6, 12)) if ctx.scale == "tiny" else (runs[:10], None)
        ctx.timed("tools", lambda: compare_tools(ctx, *tried))
    if ctx.scale == "quick":
        ctx.note(
            "Quick: two networks (full: 5) at two moments (3), Gauss-Newton alone, 6 runs of the learner (20), "
            "2 sweeps (20). The share of 20 runs that end above a loss of 0.01 is measured at full."
        )
