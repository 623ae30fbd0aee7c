"""What M-FAC's study measures on pruning: a digits network of 97 % accuracy, and gradual pruning of any network."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from steepest.core.random import torch_generator
from steepest.optim import keep_mask, mfac_prune
from steepest.studies.claim import bootstrap_interval
from steepest.studies.context import Context
from steepest.studies.images import ImageSplit, digits, mlp
from steepest.studies.task import fresh_model

__all__ = ["METHODS", "gradual", "measure"]

METHODS: dict[str, dict[str, Any]] = {
    "magnitude": {"score": "magnitude", "correction": "none"},
    "diagonal Fisher": {"score": "diagonal", "correction": "none"},
    "M-FAC's choice, nothing moves": {"correction": "none"},
    "M-FAC, independent": {"correction": "independent"},
    "M-FAC": {"correction": "joint"},
}


def measure(ctx: Context) -> None:
    """All rows on pruning."""
    data = digits(ctx.pick(quick=1200, full=1200, paper=1200, tiny=80)).flat()
    first, count = ctx.seeds[0], max(ctx.pick(quick=2, full=10, paper=0, tiny=2), len(ctx.seeds))
    epochs = ctx.pick(quick=60, full=60, paper=60, tiny=2)
    networks = [_trained(data, first + i, epochs) for i in range(count)]
    ctx.note(f"Pruning: {count} networks, dense accuracy {np.mean([n.accuracy(n.model) for n in networks]):.3f}.")
    cells = _cells(ctx, networks)

    def against(claim: str, ours: list[float], theirs: list[float]) -> None:
        pairs = np.subtract(ours, theirs)
        ctx.measured(claim, float(pairs.mean()), bootstrap_interval(pairs, level=0.90))

    best = cells["M-FAC", 8, 0.9]
    against("pruning-diagonal", best, cells["diagonal Fisher", 8, 0.9])
    against("pruning-magnitude", best, cells["magnitude", 8, 0.9])
    against("pruning-dense", cells["M-FAC", 8, 0.8], [n.accuracy(n.model) for n in networks])
    against("joint-one-step", cells["M-FAC", 1, 0.8], cells["M-FAC, independent", 1, 0.8])
    against("score-alone", cells["M-FAC's choice, nothing moves", 8, 0.8], cells["diagonal Fisher", 8, 0.8])
    joint = [
        np.mean(values) >= np.mean(cells["M-FAC, independent", steps, sparsity])
        for (name, steps, sparsity), values in cells.items()
        if name == "M-FAC"
    ]
    ctx.measured("joint-everywhere", float(np.mean(joint)))
    errors = 1 - np.array(best), 1 - np.array(cells["diagonal Fisher", 8, 0.9])
    ctx.against(
        "diagonal Fisher",
        float(errors[1].mean() / max(errors[0].mean(), 1e-6)),
        what="test error of a digits network pruned to 90 % in 8 steps, no fine-tuning",
    )
    ctx.progress(0.6)
    _settings(ctx, networks)
    ctx.progress(0.68)
    _gradual(ctx, networks)
    ctx.progress(0.75)


def gradual(
    model: nn.Module,
    batches: Iterable[tuple[Tensor, Tensor]],
    targets: Sequence[float],
    fine_tune: Callable[[dict[str, Tensor], int], float],
    **how: Any,
) -> list[float]:
    """Prune `model` to one target after the other; ``fine_tune(mask, step)`` trains on and gives the accuracy."""
    mask, accuracies = None, []
    for step, sparsity in enumerate(targets):
        mask = mfac_prune(model, batches, F.cross_entropy, sparsity, mask=mask, **how).mask
        accuracies.append(fine_tune(mask, step))
    return accuracies


@dataclass(frozen=True)
class Trained:
    """A trained network, what prunes it, and what judges it."""

    model: nn.Module
    batches: list[tuple[Tensor, Tensor]]
    data: ImageSplit
    seed: int

    def accuracy(self, model: nn.Module) -> float:
        """Share of right answers on all images that were not trained on."""
        x, y = torch.cat([self.data.x_tune, self.data.x_test]), torch.cat([self.data.y_tune, self.data.y_test])
        with torch.no_grad():
            return float((model(x).argmax(1) == y).float().mean())

    def pruned(self, sparsity: float, **how: Any) -> float:
        """Accuracy after pruning a copy."""
        model = copy.deepcopy(self.model)
        mfac_prune(model, self.batches, F.cross_entropy, sparsity, **({"n_grads": len(self.batches)} | how))
        return self.accuracy(model)

    def shuffled(self, epoch: int) -> Iterable[tuple[Tensor, Tensor]]:
        """Batches of 32 for training."""
        order = torch.randperm(len(self.data.x_train), generator=torch_generator(1_000 * self.seed + epoch))
        return [(self.data.x_train[rows], self.data.y_train[rows]) for rows in order.split(32)]


def _trained(data: ImageSplit, seed: int, epochs: int) -> Trained:
    model = fresh_model(mlp, seed)
    order = torch.randperm(len(data.x_train), generator=torch_generator(seed))
    found = Trained(model, [(data.x_train[rows], data.y_train[rows]) for rows in order.split(4)], data, seed)
    optimizer = torch.optim.Adam(model.parameters(), 1e-3, weight_decay=1e-4)
    for epoch in range(epochs):
        _epoch(model, optimizer, found.shuffled(epoch))
    return found


def _epoch(model: nn.Module, optimizer: torch.optim.Optimizer, batches: Iterable[tuple[Tensor, Tensor]]) -> None:
    for x, y in batches:
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()


def _cells(ctx: Context, networks: Sequence[Trained]) -> dict[tuple[str, int, float], list[float]]:
    """Accuracies by method, steps and sparsity; magnitude does not depend on the steps."""
    sparsities = ctx.pick(quick=(0.8, 0.9), full=(0.5, 0.7, 0.8, 0.9), paper=(), tiny=(0.8, 0.9))
    plan = [(name, steps, s) for s in sparsities for name in METHODS for steps in (1, 8)]
    if ctx.scale == "quick":
        ctx.note("Pruning at 50 and 70 % is left to full; only M-FAC is tried in one step, its choice alone at 80 %.")
        alone = "M-FAC's choice, nothing moves"
        plan = [c for c in plan if c[1] == 8 or c[0] in ("M-FAC", "M-FAC, independent")]
        plan.remove((alone, 8, 0.9))
    cells: dict[tuple[str, int, float], list[float]] = {}
    for k, (name, steps, sparsity) in enumerate(plan):
        if name == "magnitude" and ("magnitude", 1, sparsity) in cells:
            cells[name, steps, sparsity] = cells["magnitude", 1, sparsity]
            continue
        recompute = 1 if name == "magnitude" else ctx.pick(quick=steps, full=steps, paper=steps, tiny=min(steps, 2))
        cells[name, steps, sparsity] = [n.pruned(sparsity, recompute=recompute, **METHODS[name]) for n in networks]
        ctx.progress(0.25 + 0.35 * (k + 1) / len(plan), **{f"{name} {sparsity}": cells[name, steps, sparsity][0]})
    for steps, series in ((8, "accuracy"), (1, "accuracy in one step")):
        for name in METHODS:
            for i, network in enumerate(networks):
                points = [(s, cells[name, steps, s][i]) for s in sparsities if (name, steps, s) in cells]
                if points:
                    ctx.series(series, points, method=name, seed=network.seed)
    return cells


def _settings(ctx: Context, networks: Sequence[Trained]) -> None:
    steps = ctx.pick(quick=8, full=8, paper=8, tiny=1)
    whole: dict[tuple[int | None, int], list[float]] = {}

    def accuracy(block: int | None, m: int) -> float:
        if (block, m) not in whole:
            whole[block, m] = [n.pruned(0.8, n_grads=m, block_size=block, recompute=steps) for n in networks]
            label = f"block {block or 'all'}, m = {m}"
            for network, value in zip(networks, whole[block, m]):
                ctx.series("settings", [(0, value)], method=label, seed=network.seed)
        return float(np.mean(whole[block, m]))

    for claim, chain in (
        ("larger-blocks", [accuracy(block, 256) for block in (32, 256, None)]),
        ("more-gradients", [accuracy(None, m) for m in (16, 64, 256)]),
    ):
        ctx.measured(claim, max(a - b for a, b in pairwise(chain)))


def _gradual(ctx: Context, networks: Sequence[Trained]) -> None:
    """Eight geometric steps to 95 %, two epochs of fine-tuning after each."""
    steps = ctx.pick(quick=8, full=8, paper=8, tiny=2)
    targets = [1 - 0.05 ** (j / steps) for j in range(1, steps + 1)]
    gains = []
    for network in networks:
        ends = {}
        for name in ("magnitude", "M-FAC"):
            model = copy.deepcopy(network.model)

            def tune(mask: dict[str, Tensor], step: int, model: nn.Module = model, network: Trained = network) -> float:
                optimizer = torch.optim.Adam(model.parameters(), 1e-3)
                keep_mask(model, mask, optimizer)
                for epoch in range(2):
                    _epoch(model, optimizer, network.shuffled(100 + 2 * step + epoch))
                return network.accuracy(model)

            how = {"n_grads": len(network.batches)} | METHODS[name]
            ends[name] = gradual(model, network.batches, targets, tune, **how)
            ctx.series("gradual", list(zip(targets, ends[name])), method=name, seed=network.seed)
        gains.append(ends["M-FAC"][-1] - ends["magnitude"][-1])
    ctx.measured("gradual", float(np.mean(gains)), bootstrap_interval(gains, level=0.90))
