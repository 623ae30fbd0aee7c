"""AdaHessian at the paper's own settings: CIFAR-10, ImageNet, WikiText-103 and Criteo, by path."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch

from steepest.core.errors import check, one_of
from steepest.core.extras import require
from steepest.core.random import torch_generator
from steepest.optim import AdaHessian
from steepest.studies.adahessian import ADAGRAD, CLAIMS, HUTCHINSON, adahessian
from steepest.studies.claim import bootstrap_interval
from steepest.studies.click_logs import click_task, generated_clicks, read_criteo
from steepest.studies.context import Context
from steepest.studies.image_training import ResNet, cifar_loaders, imagenet_loaders, train_epochs
from steepest.studies.language import GPTConfig
from steepest.studies.pretraining import Pretraining, pretrain
from steepest.studies.training import Budget, Curvature, compare, fresh_model

__all__ = ["run_paper"]


def run_paper(ctx: Context) -> None:
    """Measure the claims of the task that ``--option task=`` names."""
    task = ctx.options.get("task", "cifar")
    work = {
        "cifar": _paper_cifar,
        "imagenet": _paper_imagenet,
        "wikitext": _paper_wikitext,
        "criteo": _paper_criteo,
        "glue": _paper_glue,
    }
    check("task", task, one_of(*work))
    work[task](ctx)
    for claim in CLAIMS:
        other = claim.id.split("-")[0]
        if ctx.wants(claim.id) and other != task:
            ctx.skipped(claim.id, f"another task: --option task={other}")


def _is_code_test(ctx: Context) -> bool:
    """Whether this run only shows that the code runs: 20 steps at most, on random data."""
    return ctx.max_steps is not None and ctx.max_steps <= 20


def _measured(ctx: Context, claim_id: str, value: float, interval: tuple[float, float] | None = None) -> None:
    if _is_code_test(ctx):
        ctx.skipped(claim_id, f"a few steps on random data, which test the code and nothing else (gave {value:.3g})")
    else:
        ctx.measured(claim_id, value, interval)


def _paper_device(ctx: Context) -> torch.device:
    """CUDA, or the CPU for a test of the code."""
    return torch.device("cpu") if _is_code_test(ctx) else ctx.need_cuda()


def _random_images(ctx: Context, n_classes: int, size: int) -> tuple[list[Any], list[Any]]:
    g = torch_generator(ctx.seed)
    batches = [
        (torch.randn(8, 3, size, size, generator=g), torch.randint(n_classes, (8,), generator=g)) for _ in range(3)
    ]
    return batches[:2], batches[2:]


def _cifar_runs(lr_tuned: dict[str, float]) -> dict[str, tuple[Callable[..., Any], Curvature | None]]:
    """The paper's AdaHessian and Adam, and AdamW with the given learning rate."""
    lr = 0.15
    return {
        "AdaHessian": (lambda params, seed: AdaHessian(params, lr, weight_decay=5e-4 / lr, seed=seed), HUTCHINSON),
        "Adam": (lambda params, seed: torch.optim.Adam(params, 1e-3, weight_decay=5e-4), None),
        "AdamW": (lambda params, seed: torch.optim.AdamW(params, lr_tuned["AdamW"], weight_decay=0.1), None),
    }


def _paper_cifar(ctx: Context) -> None:
    """ResNet-20 and -32: batch 256, 160 epochs, learning rate / 10 at epochs 80 and 120, five seeds."""
    device = _paper_device(ctx)
    seeds = ctx.seeds if ctx.max_steps is not None else [ctx.seed + 1 + i for i in range(5)]

    def loaders(seed: int) -> tuple[Any, Any]:
        test_of_code = _is_code_test(ctx)
        return _random_images(ctx, 10, 32) if test_of_code else cifar_loaders(ctx.data("path"), batch=256, seed=seed)

    def accuracy(depth: int, make: Callable[..., Any], curvature: Curvature | None, seed: int, epochs: int) -> float:
        model = fresh_model(lambda: ResNet(depth), seed).to(device)
        training, test = loaders(seed)
        if ctx.max_steps is not None:
            epochs = min(epochs, math.ceil(ctx.max_steps / len(training)))
        done = train_epochs(
            model, make(model.parameters(), seed), training, test,
            epochs=epochs, lr_factor=lambda e: 0.1 ** ((e >= 0.5 * epochs) + (e >= 0.75 * epochs)),
            curvature=curvature, max_steps=ctx.max_steps, seed=seed,
        )  # fmt: skip
        return float(done["accuracy"])

    if not _is_code_test(ctx):
        ctx.note(
            "AdamW's learning rate is chosen among four by its test accuracy with a seed of its own, in its favor."
        )
    for depth in (20, 32):
        rates = (1e-3,) if _is_code_test(ctx) else (3e-4, 1e-3, 3e-3, 1e-2)
        tried = {
            lr: accuracy(depth, lambda p, s, lr=lr: torch.optim.AdamW(p, lr, weight_decay=0.1), None, ctx.seed, 40)
            for lr in rates
        }
        best = max(tried, key=tried.__getitem__)
        runs = _cifar_runs({"AdamW": best})
        values = {name: [accuracy(depth, *how, seed, 160) for seed in seeds] for name, how in runs.items()}
        for claim, peer in ((f"cifar-resnet{depth}", "Adam"), (f"cifar-resnet{depth}-tuned", "AdamW")):
            pairs = np.subtract(values["AdaHessian"], values[peer])
            _measured(ctx, claim, float(pairs.mean()), bootstrap_interval(pairs))
        for name, v in values.items():
            ctx.series(f"ResNet-{depth} accuracy", v, method=name)  # one value per seed


def _paper_imagenet(ctx: Context) -> None:
    """ResNet-18: 90 epochs, batch 256, learning rate / 10 every 30 epochs."""
    device = _paper_device(ctx)
    resnet18 = require("torchvision.models", "data", what="ResNet-18").resnet18
    accuracy = {}
    plans = {
        "AdaHessian": (lambda p: AdaHessian(p, 0.15, weight_decay=1e-4 / 0.15, seed=ctx.seed), HUTCHINSON),
        "Adam": (lambda p: torch.optim.Adam(p, 1e-3, weight_decay=1e-4), None),
        "AdamW": (lambda p: torch.optim.AdamW(p, 3e-3, weight_decay=0.1), None),
    }
    for name, (make, curvature) in plans.items():
        model = fresh_model(lambda: resnet18(weights=None), ctx.seed + 1).to(device)
        batches = (
            _random_images(ctx, 1000, 64)
            if _is_code_test(ctx)
            else imagenet_loaders(ctx.data("path"), seed=ctx.seed + 1)
        )
        done = train_epochs(
            model, make(model.parameters()), *batches, epochs=90, max_steps=ctx.max_steps, seed=ctx.seed + 1,
            lr_factor=lambda e: 0.1 ** int(e // 30), curvature=curvature,
        )  # fmt: skip
        accuracy[name] = done["accuracy"]
    _measured(ctx, "imagenet", accuracy["AdaHessian"] - max(accuracy["Adam"], accuracy["AdamW"]))


def _paper_wikitext(ctx: Context) -> None:
    """A six-layer decoder on WikiText-103 in nanoGPT's format, both with three learning rates."""
    model = GPTConfig(vocab=50304, block=256, n_layer=6, n_head=8, n_embd=512, attention="math")
    plan = Pretraining(model, sequences=120, micro=12, steps=30_000, warmup=1_000)
    if _is_code_test(ctx):
        model = replace(model, vocab=512, block=16, n_layer=2, n_embd=64)  # the test of the code
        plan = replace(plan, model=model, sequences=4, micro=2, eval_batches=2)
    contenders: dict[str, tuple[Callable[..., Any], dict[str, Any], tuple[float, ...], Curvature | None]] = {
        "AdamW": (torch.optim.AdamW, {"weight_decay": 0.1}, (3e-4, 1e-3, 3e-3), None),
        "AdaHessian": (
            partial(AdaHessian, block="row", seed=0),
            {"weight_decay": 1e-4},
            (0.02, 0.05, 0.15),
            HUTCHINSON,
        ),
    }
    data = None if _is_code_test(ctx) else ctx.data("path")
    best = {}
    for name, (make, setting, rates, curvature) in contenders.items():
        runs = [
            pretrain(plan, make, setting | {"lr": lr}, data=data, curvature=curvature, max_steps=ctx.max_steps,
                     seed=ctx.seed)["value"]
            for lr in (rates[:1] if _is_code_test(ctx) else rates)
        ]  # fmt: skip
        best[name] = min(runs)
    _measured(ctx, "wikitext", best["AdaHessian"] - best["AdamW"])


def _paper_criteo(ctx: Context) -> None:
    """Criteo Kaggle by path, tuned Adagrad."""
    log = generated_clicks(4000, seed=ctx.seed) if _is_code_test(ctx) else read_criteo(ctx.data("path"))
    wanted = Budget(8, 4000, 3)
    budget = wanted if ctx.max_steps is None else Budget(2, min(ctx.max_steps, 4000), 2)
    found = compare(ctx, click_task(log, width=16), [adahessian("AdaHessian", 0.05, (0.0, 1e-3)), ADAGRAD], budget)
    _measured(ctx, "criteo", *found.gain("AdaHessian", "Adagrad"))


def _paper_glue(ctx: Context) -> None:
    ctx.skipped("glue", "needs a SqueezeBERT checkpoint and the GLUE data, which no extra brings")
