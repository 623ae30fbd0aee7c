"""The paper's setting: MNIST and CIFAR-10 split by a Dirichlet law with 0.1 over 10 to 50 clients, and Shakespeare.

The images are read from torchvision's layout below ``--data`` (or the working folder), the roles' lines from LEAF's
files ``shakespeare/*.json`` there; nothing is downloaded.
"""

from __future__ import annotations

import json
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

__all__ = ["SPREADS", "TITLES", "convolutional", "measure"]

TITLES = {"mnist": "MNIST", "cifar10": "CIFAR-10", "shakespeare": "Shakespeare"}
SPREADS = {"": 0.8, "-even": 0.0}  # of the clients' times, and what the claims' names end with
LRS = (1e-5, 1e-4, 1e-3, 5e-3, 1e-2, 5e-2, 1e-1, 5e-1)
RULES = ("FedFix, 0.5", "FedAvg")
SAMPLES, PER_ROLE, STEPS, UNTIL = 10_000, 1_000, 10, 300.0


def convolutional() -> nn.Module:
    """Two convolutions of 32 and 64 channels and a hidden layer of 512, for images of 32 x 32."""
    layers: list[nn.Module] = []
    for inner, outer in ((3, 32), (32, 64)):
        layers += [nn.Conv2d(inner, outer, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2)]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(64 * 8 * 8, 512), nn.ReLU(), nn.Linear(512, 10))


def measure(ctx: Context) -> None:
    """Compare FedFix and FedAvg on what is here; each at its best learning rate on the tuning seed."""
    n_clients = int(ctx.options.get("clients", 10))
    done = 0
    reasons: dict[str, str] = {}
    for name in TITLES:
        try:
            made = _maker(ctx, name, n_clients)
        except (Unavailable, MissingExtra) as missing:
            reasons[name] = str(missing)
            continue
        for ending, spread in SPREADS.items():
            _compare(
                ctx, f"paper-{name}{ending}", f"{TITLES[name]}, {n_clients} clients, spread {spread:g}", made, spread
            )
        done += 1
    if not done:
        raise Unavailable("; ".join(sorted(set(reasons.values()))))
    for name, reason in reasons.items():
        for ending in SPREADS:
            ctx.skipped(f"paper-{name}{ending}", reason)


def _maker(ctx: Context, name: str, n_clients: int) -> Callable[[int], Federation]:
    if name == "shakespeare":
        return partial(role_federation, roles=_roles(_folder(ctx), n_clients))
    return partial(image_federation, images=_images(ctx, name), name=name, n_clients=n_clients)


def _compare(ctx: Context, claim: str, what: str, made: Callable[[int], Federation], spread: float) -> None:
    until = UNTIL if ctx.max_steps is None else float(ctx.max_steps)
    backend = "serial" if ctx.max_steps else "processes"
    tuning = [Run(rule, lr, ctx.seed, until, STEPS, spread=spread) for rule in RULES for lr in LRS]
    tried = dict(zip(tuning, _all(tuning, made, backend), strict=True))
    best = {rule: min((r for r in tuning if r.rule == rule), key=lambda r: tried[r].last).lr for rule in RULES}
    work = [Run(rule, best[rule], seed, until, STEPS, spread=spread) for seed in ctx.seeds for rule in RULES]
    last = np.array([curve.last for curve in _all(work, made, backend)]).reshape(-1, 2)
    ctx.measured(claim, float(np.median(last[:, 0] / last[:, 1])))
    ctx.note(f"{what}: best learning rates {best}, final losses {last.mean(0).round(3)}.")


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


class NextCharacter(nn.Module):
    """The next one of LEAF's characters after eighty: embedding into 8, two LSTM layers of 256."""

    def __init__(self, n_characters: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(n_characters, 8)
        self.recurrent = nn.LSTM(8, 256, num_layers=2, batch_first=True)
        self.out = nn.Linear(256, n_characters)

    def forward(self, text: torch.Tensor) -> torch.Tensor:
        """Logits, from integers of shape (n, length)."""
        return self.out(self.recurrent(self.embedding(text))[0][:, -1])


def role_federation(seed: int, *, roles: tuple[torch.Tensor, torch.Tensor, list[np.ndarray], int]) -> Federation:
    """A role of the plays is a client."""
    X, y, parts, n_characters = roles
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        network = NextCharacter(n_characters)
    return federation((X, y), network, parts)


def _roles(folder: Path, n_clients: int) -> tuple[torch.Tensor, torch.Tensor, list[np.ndarray], int]:
    """The lines of the roles that have most, at most a thousand each, as numbers of characters."""
    files = sorted((folder / "shakespeare").glob("*.json"))
    if not files:
        raise Unavailable(f"Shakespeare needs LEAF's {(folder / 'shakespeare').resolve()}/*.json; give --data")
    lines: dict[str, Any] = {}
    for file in files:
        lines |= json.loads(file.read_text(encoding="utf-8"))["user_data"]
    if len(lines) < n_clients:
        raise Unavailable(f"Shakespeare: {len(lines)} roles in {folder / 'shakespeare'} for {n_clients} clients")
    most = sorted(lines, key=lambda role: (-len(lines[role]["y"]), role))[:n_clients]
    texts = [text for role in most for text in lines[role]["x"][:PER_ROLE]]
    following = [text for role in most for text in lines[role]["y"][:PER_ROLE]]
    number = {c: k for k, c in enumerate(sorted(set("".join(texts + following))))}
    X = torch.tensor([[number[c] for c in text] for text in texts])
    y = torch.tensor([number[c] for c in following])
    ends = np.cumsum([min(len(lines[role]["y"]), PER_ROLE) for role in most])
    return X, y, np.split(np.arange(len(y)), ends[:-1]), len(number)


def _folder(ctx: Context) -> Path:
    try:
        return ctx.data("path")
    except Unavailable:
        return Path()


def _images(ctx: Context, name: str) -> tuple[torch.Tensor, torch.Tensor]:
    try:
        sets: Any = require("torchvision", "data", what=TITLES[name]).datasets
    except (RuntimeError, OSError, AttributeError) as error:  # built for another version of torch
        raise Unavailable(f"{TITLES[name]} needs torchvision, which does not load here: {error}") from error
    folder = _folder(ctx)
    try:
        found = (sets.MNIST if name == "mnist" else sets.CIFAR10)(folder, train=True, download=False)
    except RuntimeError as error:
        raise Unavailable(f"{TITLES[name]} is not below {folder.resolve()}: {error}") from error
    X = torch.as_tensor(np.asarray(found.data), dtype=torch.float32) / 255
    X = X.reshape(len(X), -1) if name == "mnist" else X.permute(0, 3, 1, 2).contiguous()
    return X, torch.as_tensor(np.asarray(found.targets), dtype=torch.long)
