"""M-FAC prunes networks, and trains them, with exact products of the inverse empirical Fisher at O(m) a weight.

It is for people who compress trained networks (which weights can go, and how the rest must move), or want steps scaled
by curvature without Kronecker structure, where m gradients of all weights fit into memory. Here: that the inverse is
exact is checked against dense algebra; what it costs is timed (`studies.mfac_costs`); pruning is measured on a digits
network of 97 % accuracy (`studies.mfac_pruning`); the optimizer meets tuned baselines under the common protocol
(`studies.training`). ``paper`` trains ResNet-20 on CIFAR-10 and prunes ResNet-50 gradually (`studies.mfac_paper`).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from steepest.core.errors import value_error
from steepest.core.random import torch_generator
from steepest.curvature import EmpiricalFisherInverse, SlidingFisherInverse
from steepest.optim import MFAC, AdaHessian
from steepest.studies import mfac_costs as costs
from steepest.studies import mfac_paper, mfac_pruning
from steepest.studies.claim import Claim, Figure, Paper, Peer, bootstrap_interval, slope_fit
from steepest.studies.context import Context
from steepest.studies.images import ConvNet, classification_task, digits, mlp
from steepest.studies.task import Contender, Curvature
from steepest.studies.training import Budget, compare

AREA = "optim"

PAPER = Paper(
    title="M-FAC: Efficient Matrix-Free Approximations of Second-Order Information",
    authors="Elias Frantar, Eldar Kurtic, Dan Alistarh",
    venue="NeurIPS",
    year=2021,
    url="https://arxiv.org/abs/2107.03356",
)

_ONE_SHOT = "best one-shot accuracy with recomputation, ResNet-50 and MobileNetV1 on ImageNet"

# fmt: off
CLAIMS = [  # id, what it says, the paper's number, bound, unit, scales, invariant
    Claim("exact-inverse", "Products are exact: static, recursive, and sliding after three windows of changes.",
          "exact by construction", "<= 1e-9", "largest relative error, damping 1e-3 to 1", "quick full", True),
    Claim("exact-inverse-small-damping", "They are exact at the default damping too.",
          "exact by construction", "<= 1e-7", "largest relative error, damping 1e-5", "quick full", True),
    Claim("precompute-d", "Preparation takes O(d m^2): linear in d.", "O(d m^2)", "between(0.9, 1.15)",
          "exponent in d, 2e4 to 6.4e5, m = 32", "quick full"),
    Claim("precompute-m", "Preparation takes O(d m^2): quadratic in m.", "O(d m^2)", "<= 2.1",
          "exponent in m, 16 to 256, d = 5e4", "quick full"),
    Claim("product-d", "A product takes O(d m): linear in d.", "O(d m)", "<= 1.15", "exponent in d", "quick full"),
    Claim("product-m", "A product takes O(d m): linear in m.", "O(d m)", "<= 1.15", "exponent in m", "quick full"),
    Claim("element-d", "An element takes O(m): the same for any d.", "O(m)", "<= 0.1",
          "exponent in d, 1e4 to 1e6", "quick full"),
    Claim("element-m", "An element takes O(m): at most linear in m.", "O(m)", "<= 1.15", "exponent in m", "quick full"),
    Claim("dynamic-product-d", "A product with the sliding window is linear in d.", "O(d m + m^2)", "<= 1.15",
          "exponent in d, 2e4 to 6.4e5, m = 64", "quick full"),
    Claim("dynamic-product-m", "It is at most quadratic in m where d is small.", "O(d m + m^2)", "<= 2.2",
          "exponent in m, 64 to 1024, d = 2e3", "quick full"),
    Claim("dynamic-change-d", "A change of the window is linear in d.", "O(d m + m^3)", "<= 1.15",
          "exponent in d, with a product", "quick full"),
    Claim("dynamic-change-m", "It is at most cubic in m where d is small.", "O(d m + m^3)", "<= 3.2",
          "exponent in m, with a product", "quick full"),
    Claim("dynamic-product-bare", "A product costs little more than the two passes over the gradients it needs.",
          "O(d m + m^2)", "<= 2", "x two bare matrix-vector products, d = 6.4e5, m = 64", "quick full"),
    Claim("overhead-conv", "A step of MFAC (m = 64) costs little more than SGD's: convolutional network, batch 128.",
          "lower overhead than other second-order methods", "<= 3", "x SGD's step", "quick full"),
    Claim("overhead-mlp", "The same for a small MLP.", "lower overhead", "<= 3", "x SGD's step", "quick full"),
    Claim("overhead-shampoo", "Against Shampoo (pytorch_optimizer), convolutional network.", "lower overhead",
          "reported", "x Shampoo's step", "quick full"),
    Claim("overhead-soap", "Against SOAP (pytorch_optimizer), convolutional network.", "lower overhead",
          "reported", "x SOAP's step", "quick full"),
    Claim("overhead-psgd", "Against PSGDKron (heavyball), convolutional network.", "lower overhead",
          "reported", "x PSGDKron's step", "quick full"),
    Claim("pruning-diagonal", "At 90 %, recomputing 8 times, it beats the diagonal Fisher.",
          _ONE_SHOT, ">= 0.15", "accuracy", "quick full"),
    Claim("pruning-magnitude", "At 90 % it beats pruning by magnitude.", _ONE_SHOT, ">= 0.4", "accuracy",
          "quick full"),
    Claim("pruning-dense", "At 80 % the pruned network is as good as the whole one.",
          _ONE_SHOT, ">= -0.03", "accuracy above the dense network's", "quick full"),
    Claim("joint-everywhere", "Moving the other weights for all removed ones jointly is never worse than one by one.",
          "the paper adds single-weight moves", "== 1", "share of cells (sparsity, steps)", "quick full"),
    Claim("joint-one-step", "In one step to 80 % the joint move gains.",
          "the paper adds single-weight moves", ">= 0.04", "accuracy", "quick full"),
    Claim("score-alone", "What M-FAC's choice of weights is worth against the diagonal's when nothing moves (80 %).",
          "not separated in the paper", "reported", "accuracy", "quick full"),
    Claim("gradual", "Pruned gradually to 95 % with two epochs of fine-tuning a step, it beats magnitude.",
          "ResNet-50 at 95 %: 72.6 %, best of those compared", ">= 0.02", "accuracy", "quick full"),
    Claim("larger-blocks", "Larger blocks (32, 256, all) do not hurt.", "larger blocks help", "<= 0.02",
          "largest drop of accuracy at 80 %", "quick full"),
    Claim("more-gradients", "More gradients (16, 64, 256) do not hurt.", "more gradients help", "<= 0.02",
          "largest drop of accuracy at 80 %", "quick full"),
    Claim("optimizer", "As an optimizer it is within one point of the best tuned baseline.",
          "competitive or better, ResNet-20 on CIFAR-10 and others", ">= -1", "% accuracy above the best baseline",
          "quick full paper"),
    Claim("gradual-imagenet", "ResNet-50 on ImageNet, gradually to 95 %, against magnitude.",
          "72.6 %, best of those compared", ">= 2", "% accuracy", "paper"),
]
# fmt: on

PEERS = [
    Peer("SGD"),
    Peer("AdamW"),
    Peer("magnitude pruning"),
    Peer("Shampoo", "pytorch_optimizer"),
    Peer("SOAP", "pytorch_optimizer"),
    Peer("PSGDKron", "heavyball"),
]

OPTIONS = {
    "task": "at paper: optimizer (CIFAR-10 below --data) or pruning (ImageNet below --data); the default is optimizer",
    "checkpoint": "at paper, pruning: a state dict of torchvision's ResNet-50",
    "trials": "at paper, optimizer: tuning runs for each optimizer (default 8)",
}

# fmt: off
FIGURES = [
    Figure("accuracy", "Accuracy of the pruned network against sparsity", "accuracy", "sparsity", "test accuracy",
           caption="Digits, MLP 64-64-32-10, no fine-tuning; 8 steps with fresh gradients where not said otherwise."),
    Figure("one-step", "The same in one step", "accuracy in one step", "sparsity", "test accuracy",
           caption="Digits, MLP 64-64-32-10, no fine-tuning."),
    Figure("gradual", "Gradual pruning with fine-tuning", "gradual", "sparsity", "test accuracy",
           caption="Two epochs after each of 8 steps."),
    Figure("settings", "What blocks and gradients change at 80 %", "settings", "test accuracy", "setting", "bars",
           caption="8 steps; blocks with 256 gradients, gradients with the whole matrix."),
    Figure("cost-d", "Seconds against the number of weights", "cost in d", "weights d", "seconds",
           log_x=True, log_y=True, caption="Fastest of several, from memory: m = 32 static, m = 64 sliding."),
    Figure("cost-m", "Seconds against the number of gradients", "cost in m", "gradients m", "seconds",
           log_x=True, log_y=True, caption="Fastest of several: d = 50,000 static, d = 2,000 sliding."),
    Figure("step", "A training step of the convolutional network, batch 128", "step time",
           "milliseconds", "optimizer", "bars", caption="Forward, backward and update; fastest of several, in turns."),
    Figure("loss", "Training loss of the tuned optimizers on the same batches", "loss", "step",
           "training loss (nats)", log_y=True, caption="Digits, 300 images, convolutional network; median over seeds."),
]
# fmt: on

SNIPPET = """\
import torch
from steepest.optim import MFAC, keep_mask, mfac_prune

x = torch.randn(256, 8)
batches = list(zip(x.split(8), x.sum(1, keepdim=True).sin().split(8)))
model = torch.nn.Sequential(torch.nn.Linear(8, 32), torch.nn.Tanh(), torch.nn.Linear(32, 1))
loss_fn = torch.nn.MSELoss()
optimizer = MFAC(model.parameters(), lr=0.1, momentum=0.9, window=64, damping=1e-3)
result = mfac_prune(model, batches, loss_fn, sparsity=0.5, recompute=4, damping=1e-3)
keep_mask(model, result.mask, optimizer)  # removed weights stay at zero while the others are trained on
for inputs, targets in batches:
    optimizer.zero_grad()
    loss_fn(model(inputs), targets).backward()
    optimizer.step()
"""

REASONS = {
    "pruning-magnitude": "magnitude is right on 0.49 to 0.70 of the images at 90 %, depending on the network (with "
    "weight decay in training or without), M-FAC always on 0.94 to 0.96: over ten networks the gain is 0.33",
    "joint-everywhere": "in eight steps to 50 % both keep all that the network knew, and the means of ten networks "
    "differ by 0.0002 of accuracy; in the other seven cells the joint move is ahead, by up to 0.08 in one step",
    "joint-one-step": "over ten networks the gain is 0.041, with the bound of 0.04 inside its interval",
    "optimizer": "in 72 steps and four trials damping and weight decay stay untried and the best learning rate is the "
    "largest tried; with 160 steps and six trials MFAC is level with the best baseline",
}

WHEN_NOT = [
    "The network is trained from scratch and nothing else is asked: tuned SGD or AdamW is cheaper and, on the digits "
    "network, ends higher.",
    "m gradients of all weights do not fit into memory: Kronecker-factored methods keep far less.",
    "Whole channels or heads are to go: the scores here are of single weights.",
    "The pruned network is fine-tuned for long anyway at moderate sparsity: magnitude costs nothing and catches up.",
]


def run(ctx: Context) -> None:
    """Measure; see the module."""
    if ctx.scale == "paper":
        _paper(ctx)
        return
    ctx.progress(0.0)
    ctx.timed("exactness", lambda: _exactness(ctx))
    ctx.timed("costs", lambda: _costs(ctx))
    ctx.progress(0.15)
    ctx.timed("overhead", lambda: _overhead(ctx))
    ctx.progress(0.25)
    ctx.timed("pruning", lambda: mfac_pruning.measure(ctx))
    ctx.timed("optimizer", lambda: _optimizer(ctx))


# ------------------------------------------------------------------------------------------------- exact, and costs


def _exactness(ctx: Context) -> None:
    d = ctx.pick(quick=200, full=200, paper=200, tiny=40)
    for claim, dampings in (("exact-inverse", (1.0, 1e-2, 1e-3)), ("exact-inverse-small-damping", (1e-5,))):
        ctx.measured(claim, max(_error(d, m, damping) for damping in dampings for m in (1, 10, 64, 300)))


def _error(d: int, m: int, damping: float) -> float:
    """Largest relative error of a product over static, recursive and sliding inverses, in float64."""
    rows = torch.randn(4 * m, d, generator=torch_generator(m), dtype=torch.float64)
    x = torch.randn(d, generator=torch_generator(1), dtype=torch.float64)
    sliding = SlidingFisherInverse(d, m, damping, dtype=torch.float64)
    held: list[Tensor] = []
    for t, g in enumerate(rows[:-1]):
        sliding.push(g)
        held = [*held, g][-m:]
        if t % 3 == 2 and len(held) > 1:
            sliding.pop(t % len(held))
            held.pop(t % len(held))
    pushed = sliding.push_matvec(rows[-1])
    G = torch.stack([*held, rows[-1]][-m:])
    pairs = [(pushed, _dense_solve(G, m, damping, rows[-1])), (sliding.matvec(x), _dense_solve(G, m, damping, x))]
    for algorithm in ("cholesky", "recursive"):
        product = EmpiricalFisherInverse(rows[:m], damping, algorithm=algorithm) @ x
        pairs.append((product, _dense_solve(rows[:m], m, damping, x)))
    return max(float((a - b).norm() / b.norm()) for a, b in pairs)


def _dense_solve(G: Tensor, m: int, damping: float, x: Tensor) -> Tensor:
    return torch.linalg.solve(G.T @ G / m + damping * torch.eye(len(x), dtype=torch.float64), x)


def _costs(ctx: Context) -> None:
    """Exponents of times against sizes, and the product against its two passes."""
    ds = ctx.pick(
        quick=(20_000, 80_000, 320_000, 640_000),
        full=(20_000, 40_000, 80_000, 160_000, 320_000, 640_000),
        paper=(),
        tiny=(1_000, 2_000, 4_000),
    )
    ms = ctx.pick(quick=(16, 64, 256), full=(16, 32, 64, 128, 256), paper=(), tiny=(4, 8))
    windows = ctx.pick(quick=(64, 256, 1024), full=(64, 128, 256, 512, 1024), paper=(), tiny=(4, 8))
    wide = ctx.pick(quick=(10_000, 100_000, 1_000_000), full=(10_000, 100_000, 1_000_000), paper=(), tiny=(500, 1_000))
    n, few = ctx.pick(quick=12, full=25, paper=0, tiny=1), ctx.pick(quick=3, full=9, paper=0, tiny=1)
    d = ctx.pick(quick=50_000, full=50_000, paper=0, tiny=1_000)

    def fitted(claim: str, seconds: costs.Times, axis: int) -> None:
        sizes, best = costs.fastest(seconds)
        along = [size[axis] for size in sizes]
        ctx.measured(claim, slope_fit(along, best)[0])
        ctx.series("cost in d" if axis else "cost in m", list(zip(along, best)), method=claim.rsplit("-", 1)[0])

    fitted("precompute-d", costs.precompute([(32, k) for k in ds], few), 1)
    fitted("precompute-m", costs.precompute([(k, d) for k in ms], few), 0)
    fitted("product-d", costs.product([(32, k) for k in ds], n), 1)
    fitted("product-m", costs.product([(k, d) for k in ms], n), 0)
    fitted("element-d", costs.element([(32, k) for k in wide], n), 1)
    fitted("element-m", costs.element([(k, d) for k in ms], n), 0)
    ctx.progress(0.1)
    along_d = costs.sliding([(64, k) for k in ds], n)
    along_m = costs.sliding([(k, min(2_000, d)) for k in windows], n, cold=False)
    for name in ("product", "change"):
        fitted(f"dynamic-{name}-d", along_d[name], 1)
        fitted(f"dynamic-{name}-m", along_m[name], 0)
    ratios = np.divide(along_d["product"][64, ds[-1]], along_d["bare"][64, ds[-1]])  # of one turn each
    ctx.measured("dynamic-product-bare", float(np.median(ratios)))


def _overhead(ctx: Context) -> None:
    repeats, window = ctx.pick(quick=30, full=200, paper=0, tiny=2), ctx.pick(quick=64, full=64, paper=64, tiny=4)
    small = costs.step_times(mlp, (64,), repeats, window=window, names=("SGD", "MFAC"))
    ctx.measured("overhead-mlp", min(small["MFAC"]) / min(small["SGD"]))
    steps = costs.step_times(ConvNet, (1, 8, 8), repeats, window=window)
    for name, seconds in steps.items():
        ctx.series("step time", [(0, 1e3 * min(seconds))], method=name)
    for claim, name in (("conv", "SGD"), ("shampoo", "Shampoo"), ("soap", "SOAP"), ("psgd", "PSGDKron")):
        if name in steps:
            ctx.measured(f"overhead-{claim}", min(steps["MFAC"]) / min(steps[name]))
        else:
            ctx.skipped(f"overhead-{claim}", f"the package that has {name} is not installed")


# ---------------------------------------------------------------------------------------------------------- optimizer


def _mfac(window: int, lr: float = 0.3, damping: Sequence[float] = (0.1, 1e-3), decay: float = 1e-3) -> Contender:
    """Centre and damping at this size: a scan on the tuning half; at ``paper`` those of the official code."""
    space = {"momentum": (0.0, 0.9), "damping": tuple(damping), "weight_decay": (decay, 0.0)}
    return Contender(f"MFAC m={window}", lambda p, **k: MFAC(p, window=window, **k), lr, space)


def _baselines(lr: float = 0.1) -> list[Contender]:
    decay = {"weight_decay": (5e-4, 0.0)}
    hutchinson = Curvature("hutchinson")
    return [
        Contender("SGD", lambda p, **k: torch.optim.SGD(p, momentum=0.9, **k), lr, decay, package="torch"),
        Contender("AdamW", torch.optim.AdamW, 3e-3, {"weight_decay": (0.1, 0.0)}, package="torch"),
        Contender("AdaHessian", lambda p, **k: AdaHessian(p, seed=0, compile=False, **k), 0.15, decay, hutchinson),
    ]


def _optimizer(ctx: Context) -> None:
    protocol = ctx.pick(quick=Budget(4, 72, 2), full=Budget(6, 160, 5), paper=None)
    budget = ctx.pick(quick=Budget(4, 72, 2), full=Budget(6, 160, 5), paper=None, tiny=Budget(2, 4, 2))
    assert protocol is not None
    assert budget is not None
    task = classification_task(digits(300), ConvNet, batch=32)
    windows = ctx.pick(quick=(64,), full=(64, 256), paper=(), tiny=(4,))
    ours, theirs = [_mfac(window) for window in windows], _baselines()
    if ctx.scale == "quick":
        theirs = theirs[:2]
        ctx.note("AdaHessian and the window of 256 gradients are tried at full.")
    result = compare(ctx, task, [*theirs, *ours], budget, wanted=protocol, span=(0.75, 1.0))
    values = {name: result.values(name) for name in result.runs}
    _judge(ctx, values, [c.name for c in ours])


def _judge(ctx: Context, values: dict[str, list[float]], names: list[str]) -> None:
    """The best of ours, by the median over seeds, against the best baseline, paired over seeds."""
    ours = max(names, key=lambda name: float(np.median(values[name])))
    theirs = max(set(values) - set(names), key=lambda name: (float(np.median(values[name])), name))
    ctx.note(f"Optimizer: the best of ours is {ours}, the best baseline {theirs}.")
    pairs = np.subtract(values[ours], values[theirs])
    ctx.measured("optimizer", float(pairs.mean()), bootstrap_interval(pairs, level=0.90))


def _paper(ctx: Context) -> None:
    task = ctx.options.get("task", "optimizer")
    if task == "pruning":
        mfac_paper.prune_resnet(ctx)
        ctx.skipped("optimizer", "another task: --option task=optimizer")
    elif task == "optimizer":
        values = mfac_paper.train_resnet(ctx, _baselines(), lambda window: _mfac(window, 1e-3, (1e-5, 1e-3), 3e-3))
        if values is not None:
            _judge(ctx, values, [name for name in values if name.startswith("MFAC")])
        ctx.skipped("gradual-imagenet", "another task: --option task=pruning")
    else:
        raise value_error("option task", "optimizer or pruning", task)
