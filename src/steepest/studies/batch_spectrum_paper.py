"""The paper's size, by path: batches of 64 to 8,192 on CIFAR-100 and a subset of ImageNet; the learner on CIFAR-100.

VGG-16 and WideResNet-28-10 for the former, ResNet-18 for the latter, PreResNet-110 for the learner.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from steepest.core.errors import SteepestWarning, check, one_of
from steepest.core.extras import require
from steepest.core.random import torch_generator
from steepest.landscape import BatchSpectrum, effective_batch
from steepest.studies.batch_spectrum_training import seeded
from steepest.studies.claim import slope_fit
from steepest.studies.context import Context
from steepest.studies.image_training import cifar_loaders, imagenet_loaders

__all__ = ["PreActivation", "measure", "vgg16"]

LOSS = nn.CrossEntropyLoss()
PLAN = (1, 1, "M", 2, 2, "M", 4, 4, 4, "M", 8, 8, 8, "M", 8, 8, 8, "M")


def vgg16(n_classes: int = 100, width: int = 64) -> nn.Module:
    """Thirteen convolutions with batch normalization, five times pooled to one pixel, and a linear layer."""
    layers: list[nn.Module] = []
    inner = 3
    for factor in PLAN:
        if isinstance(factor, str):
            layers.append(nn.MaxPool2d(2))
        else:
            outer = factor * width
            layers += [nn.Conv2d(inner, outer, 3, padding=1), nn.BatchNorm2d(outer), nn.ReLU()]
            inner = outer
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(inner, n_classes))


class _Block(nn.Module):
    def __init__(self, inner: int, outer: int, stride: int) -> None:
        super().__init__()
        self.norms = nn.ModuleList([nn.BatchNorm2d(inner), nn.BatchNorm2d(outer)])
        self.first = nn.Conv2d(inner, outer, 3, stride, 1, bias=False)
        self.second = nn.Conv2d(outer, outer, 3, 1, 1, bias=False)
        self.shortcut = nn.Conv2d(inner, outer, 1, stride, bias=False) if stride > 1 or inner != outer else None

    def forward(self, x: Tensor) -> Tensor:
        h = F.relu(self.norms[0](x))
        skip = x if self.shortcut is None else self.shortcut(h)
        return self.second(F.relu(self.norms[1](self.first(h)))) + skip


class PreActivation(nn.Module):
    """Residual network with normalization first: `blocks` per stage of widths 16, 32, 64 times `width`.

    WideResNet-28-10 has 4 blocks and width 10, PreResNet-110 has 18 and width 1.
    """

    def __init__(self, blocks: int, width: int, n_classes: int = 100) -> None:
        super().__init__()
        stages, inner = [nn.Conv2d(3, 16, 3, 1, 1, bias=False)], 16
        layers: list[nn.Module] = list(stages)
        for stage, outer in enumerate((16 * width, 32 * width, 64 * width)):
            for k in range(blocks):
                layers.append(_Block(inner, outer, 2 if stage and k == 0 else 1))
                inner = outer
        self.body, self.norm, self.head = nn.Sequential(*layers), nn.BatchNorm2d(inner), nn.Linear(inner, n_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Map images (n, 3, 32, 32) to logits (n, n_classes)."""
        return self.head(F.relu(self.norm(self.body(x))).mean((2, 3)))


@dataclass(frozen=True)
class Setting:
    """Sizes of a run: the paper's, or a few steps on random images that test the code."""

    device: torch.device
    n_kept: int
    sizes: tuple[int, ...]
    steps: int
    num_steps: int
    narrow: bool


def measure(ctx: Context) -> None:
    """Measure the claims of this scale."""
    trial = ctx.max_steps is not None and ctx.max_steps <= 20
    with warnings.catch_warnings():
        if trial:
            warnings.simplefilter("ignore", SteepestWarning)  # four Lanczos steps resolve nothing
        _measure(ctx, trial)


def _measure(ctx: Context, trial: bool) -> None:
    tasks = {"cifar": _cifar, "imagenet": _imagenet}
    task = ctx.options.get("task", "cifar")
    check("task", task, one_of(*tasks))
    found: dict[str, tuple[float, tuple[float, float] | None]] = {}
    for name in tasks if trial else (task,):
        found |= tasks[name](ctx, trial)
    for claim in ctx.claims:
        if not ctx.wants(claim):
            continue
        if claim not in found:
            ctx.skipped(claim, f"another task: --option task={claim.split('-')[0]}")
        elif trial:
            value = found[claim][0]
            ctx.skipped(claim, f"a few steps on random images, which test the code and nothing else (gave {value:.3g})")
        else:
            ctx.measured(claim, *found[claim])


def _setting(ctx: Context, trial: bool, n_kept: int) -> Setting:
    if trial:
        return Setting(torch.device("cpu"), 12, (2, 4, 8), ctx.max_steps or 1, 4, True)
    sizes = tuple(2**k for k in range(6, 14))
    return Setting(ctx.need_cuda(), n_kept, sizes, ctx.max_steps or 2_000, 30, False)


def _cifar(ctx: Context, trial: bool) -> dict[str, tuple[float, tuple[float, float] | None]]:
    """Both networks' slopes, and the learner."""
    setting = _setting(ctx, trial, 20_000)
    batches = _random(ctx, 100) if trial else _forever(cifar_loaders(ctx.data("path"), n_classes=100, seed=ctx.seed)[0])
    X, y = _kept(batches, setting)
    networks: dict[str, Callable[[], nn.Module]] = {
        "vgg16": lambda: vgg16(width=4 if trial else 64),
        "wideresnet": lambda: PreActivation(1 if trial else 4, 1 if trial else 10),
    }
    found = {f"cifar-slope-{name}": _slope(ctx, name, make, setting, batches, X, y) for name, make in networks.items()}
    ours, sgd = (_preresnet(ctx, setting, batches, X, y, learner) for learner in (True, False))
    return found | {"cifar-learner": (ours / sgd, None)}


def _imagenet(ctx: Context, trial: bool) -> dict[str, tuple[float, tuple[float, float] | None]]:
    """The slope on 10,000 images; training runs over the whole set."""
    setting = _setting(ctx, trial, 10_000)
    if trial:
        batches, make = _random(ctx, 1000, 64), lambda: PreActivation(1, 1, n_classes=1000)
    else:
        vision = require("torchvision.models", "data", what="ResNet-18")
        batches = _forever(imagenet_loaders(ctx.data("path"), seed=ctx.seed)[0])
        make = lambda: vision.resnet18(weights=None)  # noqa: E731
    return {"imagenet-slope": _slope(ctx, "resnet18", make, setting, batches, *_kept(batches, setting))}


def _random(ctx: Context, n_classes: int, side: int = 32) -> Iterator[tuple[Tensor, Tensor]]:
    g = torch_generator(ctx.seed)
    while True:
        yield torch.randn(16, 3, side, side, generator=g), torch.randint(n_classes, (16,), generator=g)


def _forever(loader: Any) -> Iterator[tuple[Tensor, Tensor]]:
    while True:
        yield from loader


def _kept(batches: Iterator[tuple[Tensor, Tensor]], setting: Setting) -> tuple[Tensor, Tensor]:
    """Keep a fixed subset for the spectrum."""
    images: list[Tensor] = []
    labels: list[Tensor] = []
    while sum(len(x) for x in images) < setting.n_kept:
        x, y = next(batches)
        images.append(x)
        labels.append(y)
    X, y = torch.cat(images)[: setting.n_kept], torch.cat(labels)[: setting.n_kept]
    return X.to(setting.device), y.to(setting.device)


def _train(model: nn.Module, opt: torch.optim.Optimizer, setting: Setting, batches: Iterator[Any]) -> None:
    model.train()
    for _ in range(setting.steps):
        x, y = next(batches)
        opt.zero_grad()
        LOSS(model(x.to(setting.device)), y.to(setting.device)).backward()
        opt.step()


def _slope(
    ctx: Context,
    name: str,
    make: Callable[[], nn.Module],
    setting: Setting,
    batches: Iterator[Any],
    X: Tensor,
    y: Tensor,
) -> tuple[float, tuple[float, float] | None]:
    """Slope of the excess of the batches' largest eigenvalue in logarithms, after 2,000 steps of SGD."""
    model = seeded(make, ctx.seed).to(setting.device)
    opt = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4)
    _train(model, opt, setting, batches)
    sizes = setting.sizes
    spectrum = BatchSpectrum(
        model,
        LOSS,
        X,
        y,
        num_data=None,
        batch_sizes=sizes[:2],
        repeats=1 if setting.narrow else 4,
        num_steps=setting.num_steps,
        seed=ctx.seed,
    ).fit()
    means = np.array([spectrum.measure(B).mean() for B in sizes])
    ctx.series(f"extremes {name}", list(zip(sizes, means)), method="measured", seed=ctx.seed)
    ctx.series(f"extremes {name}", [(B, spectrum.extreme(B)) for B in sizes], method="theory", seed=ctx.seed)
    excess = means - spectrum.lambda_max_
    shown = excess > 0
    if shown.sum() < 2:
        return float("nan"), None
    b = np.array([effective_batch(B, len(X)) for B in sizes])
    return slope_fit(b[shown], excess[shown])


def _preresnet(ctx: Context, setting: Setting, batches: Iterator[Any], X: Tensor, y: Tensor, learner: bool) -> float:
    """Train PreResNet-110 with the learner, or with rate 0.1 and momentum 0.9; give the loss on the subset."""
    blocks = 1 if setting.narrow else 18
    model = seeded(lambda: PreActivation(blocks, 1), ctx.seed).to(setting.device)
    opt = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    tool = BatchSpectrum(model, LOSS, X, y, num_steps=setting.num_steps, seed=ctx.seed)
    if learner:
        tool.attach(opt, batch_size=min(128, len(X)), every=100)
    _train(model, opt, setting, batches)
    model.eval()
    with torch.no_grad():
        return float(sum(float(LOSS(model(x), t)) * len(x) for x, t in zip(X.split(1000), y.split(1000)))) / len(X)
