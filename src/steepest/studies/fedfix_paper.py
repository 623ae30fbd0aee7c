"""The paper's setting: MNIST and CIFAR-10 split by a Dirichlet law with 0.1 over 10 to 50 clients.

The images are read from torchvision's layout below ``--data`` (or the working folder); nothing is downloaded.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from steepest.core.extras import MissingExtra, require
from steepest.core.parallel import ordered_map
from steepest.federated import dirichlet_partition
from steepest.studies.context import Context, Unavailable
from steepest.studies.fedfix_training import Federation, Run, federation, train
from steepest.studies.images import mlp

__all__ = ["TITLES", "convolutional", "measure"]

TITLES = {"mnist": "MNIST", "cifar10": "CIFAR-10"}
LRS = (1e-3, 5e-3, 1e-2, 5e-2, 1e-1)
SAMPLES, STEPS, UNTIL = 10_000, 10, 300.0


def convolutional() -> nn.Module:
    """Two convolutions of 32 and 64 channels and a hidden layer of 512, for images of 32 x 32."""
    layers: list[nn.Module] = []
    for inner, outer in ((3, 32), (32, 64)):
        layers += [nn.Conv2d(inner, outer, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2)]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(64 * 8 * 8, 512), nn.ReLU(), nn.Linear(512, 10))


def measure(ctx: Context) -> None:
    """Compare FedFix and FedAvg on what is here; each at the best of five learning rates on the tuning seed."""
    n_clients = int(ctx.options.get("clients", 10))
    done = 0
    reasons: dict[str, str] = {}
    for name, title in TITLES.items():
        try:
            made = partial(image_federation, images=_images(ctx, name), name=name, n_clients=n_clients)
        except (Unavailable, MissingExtra) as missing:
            reasons[name] = str(missing)
            continue
        until = UNTIL if ctx.max_steps is None else float(ctx.max_steps)
        rules, backend = ("FedFix, 0.5", "FedAvg"), "serial" if ctx.max_steps else "processes"
        tuning = [Run(rule, lr, ctx.seed, until, STEPS) for rule in rules for lr in LRS]
        tried = dict(zip(tuning, _all(tuning, made, backend), strict=True))
        best = {rule: min((r for r in tuning if r.rule == rule), key=lambda r: tried[r].last).lr for rule in rules}
        work = [Run(rule, best[rule], seed, until, STEPS) for seed in ctx.seeds for rule in rules]
        last = np.array([curve.last for curve in _all(work, made, backend)]).reshape(-1, 2)
        ctx.measured(f"paper-{name}", float(np.median(last[:, 0] / last[:, 1])))
        ctx.note(f"{title}, {n_clients} clients: best learning rates {best}, final losses {last.mean(0).round(3)}.")
        done += 1
    if not done:
        raise Unavailable("; ".join(sorted(set(reasons.values()))))
    for name, reason in reasons.items():
        ctx.skipped(f"paper-{name}", reason)


def _all(work: list[Run], made: Callable[[int], Federation], backend: Any) -> list[Any]:
    return ordered_map(partial(train, made=made), work, backend=backend)


def image_federation(seed: int, *, images: tuple[torch.Tensor, torch.Tensor], name: str, n_clients: int) -> Federation:
    """Ten thousand images split over the clients, and the network of their kind."""
    X, y = images
    rows = torch.as_tensor(np.random.default_rng(seed).permutation(len(y))[:SAMPLES])
    X, y = X[rows], y[rows]
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        network = mlp(784, 200, 10) if name == "mnist" else convolutional()
    return federation((X, y), network, dirichlet_partition(y.numpy(), n_clients, 0.1, seed=seed))


def _images(ctx: Context, name: str) -> tuple[torch.Tensor, torch.Tensor]:
    try:
        sets: Any = require("torchvision", "data", what=TITLES[name]).datasets
    except (RuntimeError, OSError, AttributeError) as error:  # built for another version of torch
        raise Unavailable(f"{TITLES[name]} needs torchvision, which does not load here: {error}") from error
    try:
        folder = ctx.data("path")
    except Unavailable:
        folder = Path()
    try:
        found = (sets.MNIST if name == "mnist" else sets.CIFAR10)(folder, train=True, download=False)
    except RuntimeError as error:
        raise Unavailable(f"{TITLES[name]} is not below {folder.resolve()}: {error}") from error
    X = torch.as_tensor(np.asarray(found.data), dtype=torch.float32) / 255
    X = X.reshape(len(X), -1) if name == "mnist" else X.permute(0, 3, 1, 2).contiguous()
    return X, torch.as_tensor(np.asarray(found.targets), dtype=torch.long)
