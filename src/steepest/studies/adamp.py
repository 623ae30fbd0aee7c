"""AdamP and SGDP keep the step sizes of normalized networks honest: do norms stay put, and is it worth accuracy?

What the projection promises about norms and directions is exact and is checked in float64 on a function that is
scale-invariant in every row. What it does to a network with batch normalization is watched during training. What it is
worth is measured by tuning AdamP beside AdamW and SGDP beside SGD with equal budgets on small tasks; ImageNet is at
``--scale paper``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import SGD, AdamW, Optimizer

from steepest.core.extras import require
from steepest.core.random import torch_generator
from steepest.optim import SGDP, AdamP, EffectiveStepMonitor
from steepest.studies.claim import Claim, Figure, Paper, Peer
from steepest.studies.context import Context
from steepest.studies.image_training import ResNet, imagenet_loaders, train_epochs
from steepest.studies.images import ConvNet, ToneNet, classification_task, digits, olivetti, tones
from steepest.studies.language import language_task
from steepest.studies.pretraining import CODE_TEST_STEPS
from steepest.studies.training import (
    Budget,
    Comparison,
    Contender,
    Task,
    compare,
    cross_entropy,
    fresh_model,
    schedule,
)

AREA = "optim"

PAPER = Paper(
    title="AdamP: Slowing Down the Slowdown for Momentum Optimizers on Scale-invariant Weights",
    authors="Byeongho Heo, Sanghyuk Chun, Seong Joon Oh, Dongyoon Han, Sangdoo Yun, Gyuwan Kim, Youngjung Uh, "
    "Jung-Woo Ha",
    venue="ICLR",
    year=2021,
    url="https://arxiv.org/abs/2006.08217",
)

_GROWTH = "the factor 1 + 2b/(1-b), Sec. 2"
_GAINS = "gains on 13 benchmarks, Sec. 4"
PAIRS = {"adamp": ("AdamP", "AdamW"), "sgdp": ("SGDP", "SGD")}
TASKS = {"digits": "quick full", "faces": "full", "language": "full", "tones": "full"}
BETAS = (0.5, 0.9, 0.95)

# fmt: off
CLAIMS = [  # id, what it says, the paper's number, bound, unit, scales, invariant
    *(Claim(f"growth-momentum-{round(100 * b)}", f"Momentum {b} multiplies the growth of weight norms as predicted.",
            _GROWTH, "between(0.98, 1.02)", "measured / predicted factor", "quick full", True) for b in BETAS),
    Claim("growth-plain", "Without momentum the squared norm grows by the squared updates.", "Sec. 2", "<= 1e-8",
          "|factor - 1|", "quick full", True),
    Claim("no-growth-sgdp", "SGDP removes the extra growth.", "Sec. 3", "<= 1e-6", "|factor - 1|",
          "quick full", True),
    Claim("no-growth-sgdp-nesterov", "So it does with Nesterov momentum.", "Sec. 3", "<= 1e-6", "|factor - 1|",
          "quick full", True),
    Claim("no-growth-adamp", "AdamP removes the extra growth.", "Sec. 3", "<= 1e-5", "|factor - 1|",
          "quick full", True),
    Claim("recursion", "The squared norm follows the exact recursion at every step.", "Sec. 2", "<= 1e-9",
          "largest relative error", "quick full", True),
    Claim("direction", "The projection changes the length of the turn, not its direction.", "Sec. 3",
          ">= 0.9999999999", "cosine of the tangent parts", "quick full", True),
    Claim("effective-step-sgdp", "SGDP keeps larger effective steps than SGD to the end.", "Sec. 3", ">= 1.3",
          "ratio of effective steps", "quick full"),
    Claim("norm-sgdp", "SGDP keeps weight norms below SGD's.", "Sec. 3", "<= 0.9", "ratio of norms", "quick full"),
    Claim("norm-adamp", "AdamP keeps weight norms at or below AdamW's.", "Sec. 3", "<= 1", "ratio of norms",
          "quick full"),
    Claim("norm-every-seed", "These three hold in direction on every seed.", "Sec. 3", "== 1", "share of cases",
          "quick full"),
    Claim("found-invariant", "The cosine test finds the convolutions before normalization.", "Sec. 3", ">= 0.95",
          "share of decisions 'channel'", "quick full"),
    Claim("found-variant", "It leaves the final linear layer alone.", "Sec. 3", ">= 0.8", "share of decisions 'none'",
          "quick full"),
    *(claim for pair, (ours, base) in PAIRS.items() for task, scales in TASKS.items() for claim in (
        Claim(f"gain-{pair}-{task}", f"{ours} ends better than {base} on {task}.", _GAINS, "> 0",
              "% of the loss" if task == "language" else "points", scales),
        Claim(f"gain-{pair}-{task}-noninferior", f"{ours} is nowhere worse than {base} by 0.2 on {task}.", _GAINS,
              "> -0.2", "% of the loss" if task == "language" else "points", scales))),
    *(Claim(f"imagenet-{pair}", f"{ours} beats {base} with ResNet-18 on ImageNet at the same settings.",
            "tenths of a point to 2 points", "> 0", "points", "paper") for pair, (ours, base) in PAIRS.items()),
]
# fmt: on

PEERS = [Peer("AdamW"), Peer("SGD")]
OPTIONS: dict[str, str] = {}
FIGURES = [
    Figure(
        "norm",
        "Momentum lengthens scale-invariant weights, the projection does not",
        "weight norm",
        "step",
        "norm of the convolution weights (start = 1)",
        caption="Digits, batch-normalized convolutions, equal constant learning rates, no decay.",
    ),
    Figure(
        "effective",
        "So their effective steps stay larger",
        "effective step",
        "step",
        "turn of a weight in a step",
        log_y=True,
        caption="Mean over convolutions of the step of the normalized weight, running mean of 10 steps.",
    ),
    Figure("loss", "Training loss of the tuned optimizers on digits", "loss", "step", "training loss (nats)"),
    Figure(
        "end",
        "Held-out accuracy on digits at the end of a completed schedule",
        "end value digits",
        "accuracy (%)",
        "optimizer",
        "dots",
    ),
]
_FEW = "the byte-level GPT has hardly any scale-invariant weights to project: a tie"
REASONS = {
    "effective-step-sgdp": "how much is gained depends on the learning rate, 1.04 times at 0.02 to 2.1 times at 0.5, "
    "and differs between seeds (1.1 to 1.6 at 0.2): the norms must have grown before anything can be gained",
    "gain-adamp-language": _FEW,
    "gain-adamp-language-noninferior": _FEW,
    "gain-sgdp-language": _FEW,
    "gain-sgdp-language-noninferior": _FEW,
}
WHEN_NOT = [
    "No layer is followed by a normalization (most transformers): the test finds nothing, and AdamW is as good.",
    "Weights are decayed strongly: decay keeps norms in check by itself, and the projection adds little.",
    "Embedding tables lie in the same group: rows without gradient pass the test; give them projection='none'.",
]

SNIPPET = """\
import torch
from steepest.optim import AdamP

model = torch.nn.Sequential(torch.nn.Conv2d(1, 8, 3, bias=False), torch.nn.BatchNorm2d(8), torch.nn.ReLU(),
                            torch.nn.Flatten(), torch.nn.Linear(8 * 6 * 6, 10))
optimizer = AdamP(model.parameters(), lr=1e-3, weight_decay=1e-2)
for _ in range(20):
    x, y = torch.randn(32, 1, 8, 8), torch.randint(10, (32,))
    optimizer.zero_grad()
    torch.nn.functional.cross_entropy(model(x), y).backward()
    optimizer.step()
print(optimizer.projection_report())
"""


def run(ctx: Context) -> None:
    """Measure; see the module."""
    if ctx.scale == "paper":
        _imagenet(ctx)
        return
    ctx.timed("norm growth", lambda: _norm_growth(ctx))
    ctx.measured("direction", tangent_cosine(ctx.generator))
    ctx.progress(0.1)
    ctx.timed("effective steps", lambda: _effective_steps(ctx))
    ctx.timed("decisions", lambda: _decisions(ctx))
    ctx.progress(0.4)
    _gains(ctx)


# ------------------------------------------------------------------------------------------------ exact, in float64


def _norm_growth(ctx: Context) -> None:
    steps = ctx.pick(quick=400, full=400, paper=400, tiny=40)
    errors = []
    for b in BETAS:
        factor, error = growth(partial(SGD, lr=0.05, momentum=b), steps, momentum=b)
        ctx.measured(f"growth-momentum-{round(100 * b)}", factor / (1 + 2 * b / (1 - b)))
        errors.append(error)
    ctx.measured("growth-plain", abs(growth(partial(SGD, lr=0.05), steps)[0] - 1))
    ctx.measured("recursion", max(errors))
    for name, nesterov in (("no-growth-sgdp", False), ("no-growth-sgdp-nesterov", True)):
        runs = [growth(partial(SGDP, lr=0.05, momentum=b, nesterov=nesterov), steps)[0] for b in BETAS]
        ctx.measured(name, max(abs(factor - 1) for factor in runs))
    ctx.measured("no-growth-adamp", abs(growth(partial(AdamP, lr=0.05), steps)[0] - 1))


def growth(make: Callable[[list[Tensor]], Optimizer], steps: int, momentum: float = 0.0) -> tuple[float, float]:
    """Growth of ||w||^2 over the sum of squared updates, and the largest relative error of the exact recursion.

    ``||w_{t+1}||^2 = ||w_t||^2 + lr^2 ||p_t||^2 + 2 lr^2 sum_{k<t} b^{t-k} ||p_k||^2`` with ``lr p_t`` the update.
    """
    w = nn.Parameter(torch.randn(4, 50, dtype=torch.float64, generator=torch.Generator().manual_seed(0)))
    A = torch.linspace(-1.0, 1.0, 50, dtype=torch.float64)
    optimizer = make([w])
    start, moved, carried, error = float(w.detach().square().sum()), 0.0, 0.0, 0.0
    for _ in range(steps):
        optimizer.zero_grad()
        x = w / w.norm(dim=1, keepdim=True)  # Rayleigh quotients of the rows
        ((x * A) * x).sum().backward()
        before = w.detach().clone()
        optimizer.step()
        now, update = float(w.detach().square().sum()), float((w.detach() - before).square().sum())
        predicted = float(before.square().sum()) + update + 2 * carried
        error = max(error, abs(now - predicted) / now)
        carried = momentum * (carried + update)
        moved += update
    return (float(w.detach().square().sum()) - start) / moved, error


def tangent_cosine(generator: torch.Generator) -> float:
    """Cosine between the tangent parts of one step from equal state with and without projection."""
    w, g, b = (torch.randn(1, 50, dtype=torch.float64, generator=generator) for _ in range(3))
    turns = []
    for projection in ("channel", "none"):
        p = nn.Parameter(w.clone())
        optimizer = SGDP([p], lr=0.1, momentum=0.9, projection=projection)
        for gradient in (b, g):  # the first fills the momentum, at a learning rate of 0
            optimizer.param_groups[0]["lr"] = 0.1 if gradient is g else 0.0
            p.grad = gradient
            optimizer.step()
        x, y = (t.detach()[0] / t.detach().norm() for t in (w, p))
        turn = y - x * (x @ y)
        turns.append(turn / turn.norm())
    return float(turns[0] @ turns[1])


# -------------------------------------------------------------------------------------------- a network with batch norm


def _network_run(
    make: Callable[..., Optimizer], seed: int, steps: int
) -> tuple[EffectiveStepMonitor, list[int], int, float]:
    """Train the digits network at a constant rate; give the monitor, the convolutions, the head, and a start norm."""
    task = classification_task(digits(300), ConvNet)
    model = task.model(seed)
    params = dict(model.named_parameters())
    optimizer = make(params.values())
    monitor = EffectiveStepMonitor(optimizer)
    convolutions = [i for i, p in enumerate(params.values()) if p.dim() == 4]
    head = max(i for i, p in enumerate(params.values()) if p.dim() == 2)
    start = sum(float(p.detach().norm()) for p in params.values() if p.dim() == 4)
    for x, y in task.batches(seed, steps):
        optimizer.zero_grad()
        cross_entropy(model, x, y).backward()
        optimizer.step()
        monitor.record()
    return monitor, convolutions, head, start


MAKERS: dict[str, Callable[..., Optimizer]] = {  # near the tuned rates of each pair on this task
    "SGD": partial(SGD, lr=0.2, momentum=0.9),
    "SGDP": partial(SGDP, lr=0.2, momentum=0.9),
    "AdamW": partial(AdamW, lr=0.01, weight_decay=0.0),
    "AdamP": partial(AdamP, lr=0.01),
}


def _effective_steps(ctx: Context) -> None:
    steps = ctx.pick(quick=300, full=300, paper=300, tiny=12)
    norms: dict[str, list[float]] = {name: [] for name in MAKERS}
    turns: dict[str, list[float]] = {name: [] for name in MAKERS}
    for seed in ctx.seeds:
        for name, make in MAKERS.items():
            monitor, convolutions, _, start = _network_run(make, seed, steps)
            table = monitor.table()
            norm = table["norm"][:, convolutions].sum(1) / start
            turn = np.convolve(table["effective_step"][:, convolutions].mean(1), np.full(10, 0.1), "valid")
            ctx.series("weight norm", norm, method=name, seed=seed)
            ctx.series("effective step", turn, method=name, seed=seed)
            norms[name].append(float(norm[-1]))
            turns[name].append(float(turn[-30:].mean()))

    def ratios(values: dict[str, list[float]], ours: str, base: str) -> np.ndarray:
        return np.divide(values[ours], values[base])

    turn, norm_s, norm_a = ratios(turns, "SGDP", "SGD"), ratios(norms, "SGDP", "SGD"), ratios(norms, "AdamP", "AdamW")
    ctx.measured("effective-step-sgdp", float(np.median(turn)), (float(turn.min()), float(turn.max())))
    ctx.measured("norm-sgdp", float(np.median(norm_s)), (float(norm_s.min()), float(norm_s.max())))
    ctx.measured("norm-adamp", float(np.median(norm_a)), (float(norm_a.min()), float(norm_a.max())))
    ctx.measured("norm-every-seed", float(np.mean(np.concatenate([turn > 1, norm_s < 1, norm_a <= 1]))))


def _decisions(ctx: Context) -> None:
    conv, head = [], []
    for seed in ctx.seeds:
        for name in ("SGDP", "AdamP"):
            monitor, convolutions, last, _ = _network_run(
                MAKERS[name], seed, ctx.pick(quick=50, full=50, paper=50, tiny=5)
            )
            codes = monitor.table()["projection"]
            conv.append(float((codes[:, convolutions] == 1).mean()))
            head.append(float((codes[:, last] == 0).mean()))
    ctx.measured("found-invariant", float(np.mean(conv)))
    ctx.measured("found-variant", float(np.mean(head)))


# ----------------------------------------------------------------------------------------------------- what it is worth


def _contenders() -> list[Contender]:
    adam = {"weight_decay": (1e-2, 1e-4)}  # the paper's settings for images, both kinds of both pairs
    sgd = {"weight_decay": (1e-4, 1e-3)}
    return [
        Contender("AdamW", lambda p, **k: AdamW(p, fused=True, **k), 3e-3, adam, package="torch"),
        Contender("AdamP", lambda p, **k: AdamP(p, **k), 3e-3, adam),
        Contender("SGD", lambda p, **k: SGD(p, momentum=0.9, nesterov=True, **k), 0.1, sgd, package="torch"),
        Contender("SGDP", lambda p, **k: SGDP(p, momentum=0.9, nesterov=True, **k), 0.1, sgd),
    ]


def _tasks(ctx: Context) -> Iterable[tuple[str, Task]]:
    yield "digits", classification_task(digits(300), ConvNet)
    if ctx.scale != "full":
        return
    faces = olivetti(200)
    if faces is None:
        for pair in PAIRS:
            for claim in (f"gain-{pair}-faces", f"gain-{pair}-faces-noninferior"):
                ctx.skipped(claim, "scikit-learn has not cached the Olivetti faces here")
    else:
        yield "faces", classification_task(faces, lambda: ConvNet(n_classes=40, width=8), batch=32)
    yield "language", language_task()
    yield "tones", classification_task(tones(600), ToneNet)


def _gains(ctx: Context) -> None:
    wanted = Budget(6, 300, 5)
    budget = ctx.pick(tiny=Budget(2, 3, 2), quick=Budget(2, 120, 2), full=wanted, paper=wanted)
    tasks = list(_tasks(ctx))
    for i, (name, task) in enumerate(tasks):
        span = (0.4 + 0.6 * i / len(tasks), 0.4 + 0.6 * (i + 1) / len(tasks))
        series = "loss" if name == "digits" else f"loss {name}"
        contenders = _contenders()
        if name == "language":  # the grid that all studies use for this task: sqrt(10) steps over AdamW's best rate
            contenders = [replace(c, ratio=2.0) for c in contenders]
        found = compare(ctx, task, contenders, budget, wanted=wanted, span=span, series=series)
        for c in found.runs:
            for seed, value in zip(ctx.seeds, found.values(c)):
                ctx.series(f"end value {name}", [(0, value)], method=c, seed=seed)
        for pair, (ours, base) in PAIRS.items():
            gain, interval = _gain(found, ours, base)
            ctx.measured(f"gain-{pair}-{name}", gain)
            ctx.measured(f"gain-{pair}-{name}-noninferior", gain, interval)
        if name == "digits":
            errors = {c: 100 - float(np.mean(found.values(c))) for c in ("AdamW", "AdamP")}
            ctx.against(
                "AdamW",
                errors["AdamW"] / max(errors["AdamP"], 1e-9),
                ahead="fewer errors",
                behind="more errors",
                what="held-out digits, both tuned alike",
            )


def _gain(found: Comparison, ours: str, base: str) -> tuple[float, tuple[float, float]]:
    """Mean paired gain and interval: points of accuracy, or per cent of the baseline's loss."""
    gain, (low, high) = found.gain(ours, base)
    unit = 1.0 if found.task.better == "higher" else 100 / float(np.mean(found.values(base)))
    return gain * unit, (low * unit, high * unit)


# --------------------------------------------------------------------------------------------------- the paper's size


def _imagenet(ctx: Context) -> None:
    """ResNet-18, 100 epochs, batch 256, cosine; SGD lr 0.1, decay 1e-4; AdamW lr 1e-3, decay 1e-2; the pairs alike."""
    code_test = ctx.max_steps is not None and ctx.max_steps <= CODE_TEST_STEPS and not torch.cuda.is_available()
    if code_test:
        loaders: Any = (_random_images(16), _random_images(8))
        build: Callable[[], nn.Module] = partial(ResNet, 8)
        device, epochs = torch.device("cpu"), 1
    else:
        device, epochs = ctx.need_cuda(), 100
        vision: Any = require("torchvision", "data", what="ResNet-18")
        loaders, build = imagenet_loaders(ctx.data("path"), seed=ctx.seed), vision.models.resnet18
    makers: dict[str, Callable[..., Optimizer]] = {
        "SGD": partial(SGD, lr=0.1, momentum=0.9, weight_decay=1e-4),
        "SGDP": partial(SGDP, lr=0.1, momentum=0.9, weight_decay=1e-4),
        "AdamW": partial(AdamW, lr=1e-3, weight_decay=1e-2),
        "AdamP": partial(AdamP, lr=1e-3, weight_decay=1e-2),
    }
    accuracy: dict[str, list[float]] = {name: [] for name in makers}
    for seed in ctx.seeds:
        for name, make in makers.items():
            model = fresh_model(build, seed).to(device)
            done = train_epochs(
                model,
                make(model.parameters()),
                *loaders,
                epochs=epochs,
                lr_factor=lambda epoch: schedule(round(1000 * epoch), 1000 * epochs, warmup=0.0, floor=0.0),
                autocast=not code_test,
                max_steps=ctx.max_steps,
                seed=seed,
            )
            accuracy[name].append(done["accuracy"])
            ctx.series("accuracy", done["accuracies"], method=name, seed=seed)
    for pair, (ours, base) in PAIRS.items():
        if code_test:
            ctx.skipped(f"imagenet-{pair}", f"at most {CODE_TEST_STEPS} steps: a test of the code")
        else:
            gains = np.subtract(accuracy[ours], accuracy[base])
            ctx.measured(f"imagenet-{pair}", float(gains.mean()), (float(gains.min()), float(gains.max())))


def _random_images(n: int) -> list[tuple[Tensor, Tensor]]:
    g = torch_generator(0)
    return [(torch.randn(n, 3, 32, 32, generator=g), torch.randint(10, (n,), generator=g)) for _ in range(2)]
