"""What else CBO is for: networks trained without gradients, and objectives whose evaluations Ray shares out."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from steepest.core.extras import MissingExtra, installed, require
from steepest.core.parallel import joined_ray
from steepest.core.random import torch_generator
from steepest.particles import minimize_cbo, train_module
from steepest.studies.cbo_search import each
from steepest.studies.claim import bootstrap_interval
from steepest.studies.context import Context, Unavailable

__all__ = ["Trained", "mnist", "network", "networks", "ray"]

BATCH = 60
RATES = (0.03, 0.1, 0.3)
Set = tuple[Tensor, Tensor]


def network(kind: str, inputs: int) -> nn.Module:
    """``shallow``: ten neurons with a softmax; ``deep``: three more layers in front. Not initialized."""
    widths = (inputs, 10) if kind == "shallow" else (inputs, 20, 10, 10, 10)
    layers: list[nn.Module] = []
    for n, m in pairwise(widths):
        layers += [nn.utils.skip_init(nn.Linear, n, m), nn.ReLU()]  # the caller draws, from a generator of its own
    return nn.Sequential(*layers[:-1])


@dataclass(frozen=True)
class Trained:
    """A network to train: by CBO, or by SGD at a learning rate."""

    kind: str
    by: str
    seed: int
    epochs: int
    lr: float = 0.0

    def __call__(self, train: Set, test: Set, device: str = "cpu", steps: int | None = None) -> list[float]:
        """Test accuracy after every epoch, then the mean loss on the training data."""
        generator = torch_generator(self.seed)
        X, y = train
        model = network(self.kind, X.shape[1])
        for p in model.parameters():
            bound = p.shape[-1] ** -0.5
            nn.init.uniform_(p, -bound, bound, generator=generator)
        model.to(device)
        order = torch.randperm(len(y), generator=generator)
        parts = [order[i : i + BATCH] for i in range(0, len(y), BATCH)][:steps]
        batches = [(X[rows].to(device), y[rows].to(device)) for rows in parts]
        held = test[0].to(device), test[1].to(device)
        return (self._consensus if self.by == "CBO" else self._descent)(model, batches, held)

    def _consensus(self, model: nn.Module, batches: list[Set], test: Set) -> list[float]:
        accuracies: list[float] = []

        def watch(intermediate_result: Any) -> None:
            if intermediate_result.nit % len(batches) == 0:
                nn.utils.vector_to_parameters(intermediate_result.consensus, model.parameters())
                accuracies.append(_accuracy(model, test))

        generator = torch_generator(self.seed, batches[0][0].device)
        result = train_module(
            model, nn.functional.cross_entropy, batches, epochs=self.epochs, seed=generator, callback=watch
        )
        return [*accuracies[:-1], _accuracy(model, test), float(result.fun)]

    def _descent(self, model: nn.Module, batches: list[Set], test: Set) -> list[float]:
        optimizer, accuracies = torch.optim.SGD(model.parameters(), lr=self.lr), []
        for _ in range(self.epochs):
            for X, y in batches:
                optimizer.zero_grad()
                nn.functional.cross_entropy(model(X), y).backward()
                optimizer.step()
            accuracies.append(_accuracy(model, test))
        with torch.no_grad():
            losses = [float(nn.functional.cross_entropy(model(X), y)) * len(y) for X, y in batches]
        return [*accuracies, sum(losses) / sum(len(y) for _, y in batches)]


def _accuracy(model: nn.Module, test: Set) -> float:
    with torch.no_grad():
        return float((model(test[0]).argmax(1) == test[1]).float().mean())


@dataclass(frozen=True)
class _OnDigits:
    data: tuple[NDArray[np.float64], NDArray[np.int64]]

    def __call__(self, job: Trained) -> list[float]:
        torch.set_num_threads(1)
        X, y = torch.tensor(self.data[0] / 16, dtype=torch.float32), torch.tensor(self.data[1])
        order = torch.randperm(len(y), generator=torch_generator(job.seed + 10_000))
        train, test = order[360:], order[:360]
        return job((X[train], y[train]), (X[test], y[test]))


def networks(ctx: Context, epochs: Mapping[str, int]) -> None:
    """Test accuracies on a fifth of the digits, beside SGD at the best of three learning rates."""
    on = _OnDigits(ctx.data("digits"))
    rates = {
        kind: min(RATES, key=lambda lr: on(Trained(kind, "SGD", ctx.seed, n, lr))[-1]) for kind, n in epochs.items()
    }
    jobs = [Trained(kind, by, seed, n, rates[kind]) for kind, n in epochs.items() for by in ("CBO", "SGD")
            for seed in ctx.seeds]  # fmt: skip
    found = each(ctx, on, jobs)
    for kind, n in epochs.items():
        ends: dict[str, list[float]] = {"CBO": [], "SGD": []}
        for job, values in zip(jobs, found, strict=True):
            if job.kind == kind:
                ends[job.by].append(values[-2])
                ctx.series(f"accuracy, {kind}", [(k + 1, v) for k, v in enumerate(values[:-1])], method=job.by,
                           seed=job.seed)  # fmt: skip
        behind = np.subtract(ends["SGD"], ends["CBO"])
        ctx.measured(f"network-{kind}", float(np.mean(ends["CBO"])), bootstrap_interval(ends["CBO"], level=0.95))
        ctx.measured(f"network-{kind}-sgd", float(np.mean(behind)), bootstrap_interval(behind, level=0.95))
        ctx.note(f"digits, {kind} network, {n} epochs: test accuracy CBO {np.mean(ends['CBO']):.3f}, SGD at "
                 f"learning rate {rates[kind]:g} {np.mean(ends['SGD']):.3f}.")  # fmt: skip


# ------------------------------------------------------------------------------------------------------------------ Ray


def simulator(x: NDArray[np.float64]) -> float:
    """Keep a processor busy for 20 ms, then tell a rough value."""
    end = time.thread_time() + 0.02
    while time.thread_time() < end:
        pass
    return float((x * x + 2.5 * (1 - np.cos(2 * np.pi * x))).sum())


def ray(ctx: Context, particles: int, iterations: int) -> None:
    """A run whose objective takes 20 ms, on two Ray workers and alone."""
    if not installed("ray") or (os.cpu_count() or 1) < 2:
        for claim in ("ray-same", "ray-speedup"):
            ctx.skipped(claim, "needs Ray and two cores: pip install 'steepest[federated]'")
        return
    library: Any = require("ray", "federated", what="workers='ray'")
    options: dict[str, Any] = {"n_particles": particles, "maxiter": iterations, "seed": ctx.seed, "tol": 0.0}
    seconds, found = {}, {}
    with joined_ray(library, 2):
        minimize_cbo(simulator, np.ones(5), workers="ray", **(options | {"maxiter": 1}))  # processes start
        for name, workers in (("ray", "ray"), ("serial", None)):
            start = time.perf_counter()
            found[name] = minimize_cbo(simulator, np.ones(5), workers=workers, **options)
            seconds[name] = time.perf_counter() - start
    ctx.measured("ray-same", float(np.abs(found["ray"].population - found["serial"].population).max()))
    ctx.measured("ray-speedup", seconds["serial"] / seconds["ray"])
    ctx.note(f"Ray: {found['ray'].nfev} evaluations of 20 ms took {seconds['serial']:.1f} s alone and "
             f"{seconds['ray']:.1f} s on two workers (wall time, workers started before).")  # fmt: skip


# ---------------------------------------------------------------------------------------------------------------- paper


def mnist(ctx: Context, device: str, epochs: int) -> None:
    """The networks on MNIST, 100 particles, as many epochs; torchvision's folder below ``--data``."""
    try:
        folder = ctx.data("path")
        train, test = (_read_mnist(Path(folder), train) for train in (True, False))
    except (Unavailable, MissingExtra, RuntimeError, OSError) as missing:
        for kind in ("shallow", "deep"):
            ctx.skipped(f"paper-mnist-{kind}", f"its data are not here: {missing}")
        return
    for kind in ("shallow", "deep"):
        ends: dict[str, list[float]] = {}
        for by in ("CBO", "SGD"):
            for seed in ctx.seeds:
                values = Trained(kind, by, seed, epochs, 0.1)(train, test, device=device, steps=ctx.max_steps)
                ends.setdefault(by, []).append(values[-2])
                ctx.series(f"accuracy, {kind}", [(k + 1, v) for k, v in enumerate(values[:-1])], method=by, seed=seed)
        ctx.measured(f"paper-mnist-{kind}", float(np.mean(ends["CBO"])), bootstrap_interval(ends["CBO"], level=0.95))
        ctx.note(f"MNIST, {kind} network: SGD at learning rate 0.1 {np.mean(ends['SGD']):.3f}.")


def _read_mnist(folder: Path, train: bool) -> Set:
    sets: Any = require("torchvision", "data", what="MNIST").datasets
    found = sets.MNIST(folder, train=train, download=False)
    return found.data.flatten(1).float() / 255, found.targets
