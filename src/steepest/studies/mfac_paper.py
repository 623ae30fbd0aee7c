"""M-FAC's study at the paper's size: ResNet-20 trained on CIFAR-10, ResNet-50 pruned gradually on ImageNet."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from steepest.core.errors import value_error
from steepest.core.extras import require
from steepest.core.random import torch_generator
from steepest.optim import keep_mask
from steepest.studies.context import Context
from steepest.studies.image_training import ResNet, cifar_loaders, imagenet_loaders, train_epochs
from steepest.studies.mfac_pruning import METHODS, gradual
from steepest.studies.pretraining import CODE_TEST_STEPS
from steepest.studies.task import Contender, Run, Setting, fresh_model
from steepest.studies.training import search

__all__ = ["CODE_TEST", "prune_resnet", "train_resnet"]

CODE_TEST = f"at most {CODE_TEST_STEPS} steps: a test of the code"


def train_resnet(
    ctx: Context, baselines: Sequence[Contender], ours: Callable[[int], Contender]
) -> dict[str, list[float]] | None:
    """ResNet-20 on CIFAR-10: 164 epochs of batches of 128, learning rate divided by 10 at 1/2 and 3/4.

    Gives the accuracies by optimizer, or None after a test of the code.
    """
    device, code_test = _device(ctx)
    epochs = 1 if code_test else 164
    window = 4 if code_test else 512
    if code_test:
        loaders: Any = (_random_images(32, 32, 8), _random_images(16, 32, 8))
    else:
        loaders = cifar_loaders(ctx.data("path"), batch=128, seed=ctx.seed)
    contenders = [*baselines, ours(window)]
    trials = 2 if code_test else int(ctx.options.get("trials", 8))

    def decay(epoch: float) -> float:
        return 0.1 ** (int(epoch >= epochs / 2) + int(epoch >= 3 * epochs / 4)) if epochs > 1 else 1.0

    def attempt(c: Contender, setting: Setting, seed: int) -> Run:
        model = fresh_model(ResNet, seed).to(device)
        optimizer = c.make([p for p in model.parameters() if p.requires_grad], **setting)
        found = train_epochs(
            model,
            optimizer,
            *loaders,
            epochs=epochs,
            lr_factor=decay,
            curvature=c.curvature,
            max_steps=ctx.max_steps,
            seed=seed,
        )
        return Run(c.name, setting, seed, found["accuracy"], [found["steps"]], [], found["seconds"])

    values: dict[str, list[float]] = {}
    for c in contenders:
        tuned = search(c, lambda s, c=c: attempt(c, s, ctx.seed), n_trials=trials, better="higher")  # type: ignore[misc]
        values[c.name] = [attempt(c, tuned.setting, seed).value for seed in ctx.seeds]
        ctx.note(f"{c.name}: {tuned.setting}, accuracy {np.median(values[c.name]):.2f} %.")
    if code_test:
        ctx.skipped("optimizer", CODE_TEST)
    return None if code_test else values


def prune_resnet(ctx: Context) -> None:
    """ResNet-50 on ImageNet, gradually to 95 %: eight steps six epochs apart, 52 epochs at the end."""
    device, code_test = _device(ctx)
    if code_test:
        train: Any = _random_images(32, 32, 8)
        test: Any = _random_images(16, 32, 8)
        model = fresh_model(lambda: ResNet(8), ctx.seed)
    else:
        if "checkpoint" not in ctx.options:
            raise value_error("option checkpoint", "a state dict of torchvision's ResNet-50", None)
        vision: Any = require("torchvision", "data", what="ResNet-50")
        train, test = imagenet_loaders(ctx.data("path"), seed=ctx.seed)
        model = vision.models.resnet50()
        model.load_state_dict(torch.load(ctx.options["checkpoint"], weights_only=True))
    model.to(device)
    steps = 2 if code_test else 8
    targets = [1 - 0.05 ** (j / steps) for j in range(1, steps + 1)]
    how = {"n_grads": 4 if code_test else 64, "block_size": 128}

    class OnDevice:
        def __iter__(self) -> Any:
            return ((x.to(device), y.to(device)) for x, y in train)

    ends = {}
    for name in ("magnitude", "M-FAC"):
        network = copy.deepcopy(model)

        def tune(mask: dict[str, Tensor], step: int, network: nn.Module = network) -> float:
            optimizer = torch.optim.SGD(network.parameters(), 5e-3, momentum=0.9, weight_decay=1e-4)
            keep_mask(network, mask, optimizer)
            epochs = 1 if code_test else 52 if step == steps - 1 else 6
            found = train_epochs(
                network,
                optimizer,
                train,
                test,
                epochs=epochs,
                lr_factor=lambda epoch: 0.1 ** (2 * epoch / 52) if epochs == 52 else 1.0,
                max_steps=ctx.max_steps,
                seed=step,
            )
            return float(found["accuracy"])

        accuracies = gradual(network, OnDevice(), targets, tune, **how, **METHODS[name])
        ctx.series("gradual", list(zip(targets, accuracies)), method=name, seed=ctx.seed)
        ends[name] = accuracies[-1]
    if code_test:
        ctx.skipped("gradual-imagenet", CODE_TEST)
    else:
        ctx.measured("gradual-imagenet", ends["M-FAC"] - ends["magnitude"])


def _device(ctx: Context) -> tuple[torch.device, bool]:
    """Where to compute, and whether this is only a test of the code."""
    code_test = ctx.max_steps is not None and ctx.max_steps <= CODE_TEST_STEPS
    if torch.cuda.is_available():
        return torch.device("cuda"), code_test
    if code_test:
        return torch.device("cpu"), True
    return ctx.need_cuda(), False


def _random_images(n: int, size: int, batch: int, n_classes: int = 10) -> list[tuple[Tensor, Tensor]]:
    g = torch_generator(0)
    x, y = torch.randn(n, 3, size, size, generator=g), torch.randint(n_classes, (n,), generator=g)
    return list(zip(x.split(batch), y.split(batch)))
