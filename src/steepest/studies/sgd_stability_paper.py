"""The paper's own experiments: fully connected and convolutional networks on 1,000 images of two classes of CIFAR-10.

Squared error on targets -1 and 1, SGD with single samples and gradient descent, over learning rates; every run ends
when its loss is 1e-4 or its steps are spent.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from steepest.core.extras import require
from steepest.core.random import torch_generator
from steepest.landscape import StabilityReport, linear_stability
from steepest.studies.context import Context, Unavailable
from steepest.studies.training import fresh_model

__all__ = ["run_paper"]

RATES = (0.0025, 0.005, 0.01, 0.02)  # for nn.MSELoss, which has no 1/2
STEPS, GD_STEPS, ENOUGH = 200_000, 50_000, 1e-4
Data = tuple[Tensor, Tensor, Tensor, Tensor]


def fully_connected() -> nn.Module:
    """Three hidden layers of 256 units."""
    return nn.Sequential(
        nn.Flatten(),
        nn.Linear(3072, 256), nn.ReLU(),
        nn.Linear(256, 256), nn.ReLU(),
        nn.Linear(256, 256), nn.ReLU(),
        nn.Linear(256, 1),
    )  # fmt: skip


def convolutional() -> nn.Module:
    """Three convolutions with pooling, then a linear layer."""
    return nn.Sequential(
        nn.Conv2d(3, 32, 3, padding=1), nn.ReLU(), nn.AvgPool2d(2),
        nn.Conv2d(32, 32, 3, padding=1), nn.ReLU(), nn.AvgPool2d(2),
        nn.Conv2d(32, 32, 3, padding=1), nn.ReLU(), nn.AvgPool2d(4),
        nn.Flatten(), nn.Linear(128, 1),
    )  # fmt: skip


def run_paper(ctx: Context) -> None:
    """Measure the claims of the paper's scale; with ``--max-steps`` up to 20 on random images, which tests the code."""
    test_of_code = ctx.max_steps is not None and ctx.max_steps <= 20
    device = torch.device("cpu") if test_of_code else ctx.need_cuda()
    data = random_images(ctx.seed) if test_of_code else cifar(ctx)
    data = tuple(part.to(device) for part in data)  # type: ignore[assignment]
    rates = RATES[:2] if test_of_code else RATES
    steps = ctx.max_steps or STEPS
    upper, gd_ratio, gains = {}, [], []
    for name, build in (("cifar-fc", fully_connected), ("cifar-conv", convolutional)):
        found, accuracy = [], []
        for rate in rates:
            report, score = train(build, data, rate, 1, steps, ctx.seed)
            found.append(report)
            accuracy.append(score)
            gd_ratio.append(train(build, data, rate, len(data[0]), min(steps, GD_STEPS), ctx.seed)[0].ratios["trace"])
            ctx.series(name, [(rate, report.ratios["trace"])], method="SGD")
        upper[name] = max(report.ratios["trace"] for report in found)
        gains.append(100 * (accuracy[-1] - accuracy[0]))
    values = {**upper, "cifar-gd": min(gd_ratio), "cifar-generalization": float(np.median(gains))}
    for claim, value in values.items():
        if test_of_code:
            ctx.skipped(claim, f"a few steps on random data, which test the code and nothing else (gave {value:.3g})")
        else:
            ctx.measured(claim, value)


def train(
    build: object, data: Data, lr: float, batch_size: int, steps: int, seed: int
) -> tuple[StabilityReport, float]:
    """Train one network, the learning rate raised over the first half; give its report for B = 1, and test accuracy."""
    X, y, X_test, y_test = data
    model = fresh_model(build, seed).to(X.device)  # type: ignore[arg-type]
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    loss_fn, generator = nn.MSELoss(), torch_generator(seed)
    for t in range(steps):
        optimizer.param_groups[0]["lr"] = lr * min(1.0, 2 * (t + 1) / steps)
        rows = slice(None) if batch_size == len(X) else torch.randint(len(X), (batch_size,), generator=generator)
        optimizer.zero_grad()
        loss_fn(model(X[rows]), y[rows]).backward()
        optimizer.step()
        if t >= steps // 2 and t % 1000 == 0:
            with torch.no_grad():
                if float(loss_fn(model(X), y)) <= ENOUGH:
                    break
    with torch.no_grad():
        accuracy = float(((model(X_test) > 0) == (y_test > 0)).double().mean())
    report = linear_stability(model, loss_fn, X, y, lr=lr, batch_size=1, method="bounds", chunk_size=250, seed=seed)
    return report, accuracy


def random_images(seed: int) -> Data:
    """Twelve images for a test of the code."""
    generator = torch_generator(seed)
    X = torch.randn(12, 3, 32, 32, generator=generator)
    y = torch.sign(torch.randn(12, 1, generator=generator))
    return X[:8], y[:8], X[8:], y[8:]


def cifar(ctx: Context) -> Data:
    """500 training images of each of the first two classes of CIFAR-10 below ``--data``, and their test images.

    Raises
    ------
    Unavailable
        torchvision or the images are not here.
    """
    folder = ctx.data("path")
    try:
        datasets = require("torchvision.datasets", "data", what="CIFAR-10")
        parts = [datasets.CIFAR10(str(folder), train=train, download=False) for train in (True, False)]
    except (ImportError, RuntimeError) as error:
        raise Unavailable(f"CIFAR-10 cannot be read from {folder}: {error}") from error
    found: list[Tensor] = []
    for part, most in zip(parts, (500, 1000)):
        labels = np.asarray(part.targets)
        rows = np.concatenate([np.flatnonzero(labels == k)[:most] for k in (0, 1)])
        images = torch.from_numpy(part.data[rows]).permute(0, 3, 1, 2).float() / 127.5 - 1
        targets = torch.from_numpy(np.where(labels[rows] == 0, -1.0, 1.0)).float().unsqueeze(1)
        found += [images, targets]
    return found[0], found[1], found[2], found[3]
