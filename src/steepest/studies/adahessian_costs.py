"""What an iteration of AdaHessian costs: beside AdamW for several periods, beside other AdaHessians, in memory."""

from __future__ import annotations

import gc
import math
import time
import warnings
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from steepest.core.extras import MissingExtra, require
from steepest.core.memory import peak_tensor_bytes
from steepest.optim import AdaHessian
from steepest.studies.context import Context
from steepest.studies.images import ConvNet, classification_task, digits
from steepest.studies.language import QUICK, language_task
from steepest.studies.training import Task

__all__ = ["against_other_implementations", "cost_of_curvature"]

PERIODS = (1, 2, 5, 10)


def cost_of_curvature(ctx: Context) -> None:
    """Cycles of ten iterations, interleaved with AdamW's; minima."""
    batch, repeats = ctx.pick(tiny=(16, 1), quick=(128, 6), full=(128, 10), paper=(128, 1))
    tasks = {"images": classification_task(digits(300), ConvNet, batch=batch)}
    if ctx.wants("cost-text-every-step"):
        tasks["text"] = language_task(QUICK, batch=ctx.pick(tiny=4, quick=128, full=128, paper=128))
    for name, task in tasks.items():
        seconds = _cycles(task, repeats if name == "images" else min(repeats, 3), ctx.seed)
        ratio = {k: seconds[k] / seconds[0] for k in PERIODS}
        ctx.series("cost", list(ratio.items()), method=f"AdaHessian, {name}")
        ctx.measured(f"cost-{name}-every-step", ratio[1])
        if name == "images":
            ctx.measured("cost-images-target", ratio[1])
        ctx.measured(f"cost-{name}-every-tenth", ratio[10])
        ctx.note(
            f"cost, {name}: forward, backward and double backward alone take {seconds[-1] / seconds[0]:.2f} x AdamW."
        )
        falls = [ratio[b] < ratio[a] for a, b in pairwise(PERIODS)]
        ctx.measured(f"cost-{name}-monotone", sum(falls) / len(falls))
        ctx.measured(f"cost-{name}-memory", _peak_bytes(task, 1) / _peak_bytes(task, 0))


def _iterations(task: Task, k: int, batch: tuple[Tensor, Tensor]) -> Callable[[int], None]:
    """``go(t)`` makes iteration t: AdaHessian with period k, or AdamW for k = 0."""
    model = task.model(0)
    params = list(model.parameters())
    opt: Any = AdaHessian(params, lr=1e-3, update_each=k, seed=0) if k else torch.optim.AdamW(params, fused=True)
    x, y = batch

    def go(t: int) -> None:
        due = k > 0 and opt.hessian_due()
        opt.zero_grad()
        if due:
            with task.twice(model):
                loss = task.loss(model, x, y)
            for p, g in zip(params, torch.autograd.grad(loss, params, create_graph=True)):
                p.grad = g
        else:
            task.loss(model, x, y).backward()
        opt.step()

    return go


def _cycles(task: Task, repeats: int, seed: int) -> dict[int, float]:
    batch = next(iter(task.batches(seed, 1)))
    runs = {k: _iterations(task, k, batch) for k in (0, *PERIODS)}
    runs[-1] = _bare_passes(task, batch)
    best = dict.fromkeys(runs, math.inf)
    for r in range(repeats + 1):
        for k, go in runs.items():
            start = time.perf_counter()
            for t in range(10):
                go(10 * r + t)
            if r:
                best[k] = min(best[k], time.perf_counter() - start)
    return best


def _peak_bytes(task: Task, k: int) -> int:
    """Largest number of bytes that an iteration holds beyond what was there before it, from the allocator's log."""
    go = _iterations(task, k, next(iter(task.batches(0, 1))))
    go(0)
    return peak_tensor_bytes(lambda: go(1))


def against_other_implementations(ctx: Context) -> None:
    """Whole iterations with k = 1 on the digits network, and live tensors over 200 of ours."""
    task = classification_task(digits(300), ConvNet, batch=ctx.pick(tiny=16, quick=128, full=128, paper=128))
    batch = next(iter(task.batches(ctx.seed, 1)))
    runs = {"steepest": _iterations(task, 1, batch), "bare": _bare_passes(task, batch)}
    for name, package, kind in (
        ("torch_optimizer", "torch_optimizer", "Adahessian"),
        ("pytorch_optimizer", "pytorch_optimizer", "AdaHessian"),
    ):
        try:
            make = getattr(require(package, "peers", what="its AdaHessian"), kind)
        except MissingExtra as error:
            ctx.note(f"no row for {name}: {error}")
            continue
        runs[name] = _peer_iterations(task, make, batch)
    best = dict.fromkeys(runs, math.inf)
    for r in range(ctx.pick(tiny=2, quick=15, full=60, paper=1)):
        for name, go in runs.items():
            start = time.perf_counter()
            go(r)
            best[name] = min(best[name], time.perf_counter() - start)
    bare = best.pop("bare")
    peers = {name: s for name, s in best.items() if name != "steepest"}
    if peers:
        ctx.note(
            f"iteration: forward, backward and double backward alone, which all implementations share, take "
            f"{bare / min(peers.values()):.2f} of the fastest other AdaHessian's whole iteration."
        )
        ctx.measured("peer-iteration", best["steepest"] / min(peers.values()))
    else:
        ctx.skipped("peer-iteration", 'no other AdaHessian is installed: pip install "steepest[peers]"')
    ctx.measured("peer-memory", _growth_of_live_tensors(task, ctx.pick(tiny=5, quick=200, full=200, paper=200)))


def _bare_passes(task: Task, batch: tuple[Tensor, Tensor]) -> Callable[[int], None]:
    """Forward, backward and double backward without any optimizer: the floor of an iteration."""
    model = task.model(0)
    params = list(model.parameters())
    ones = [torch.ones_like(p) for p in params]

    def go(t: int) -> None:
        with task.twice(model):
            g = torch.autograd.grad(task.loss(model, *batch), params, create_graph=True)
        torch.autograd.grad(g, params, ones)

    return go


def _peer_iterations(task: Task, make: Callable[..., Any], batch: tuple[Tensor, Tensor]) -> Callable[[int], None]:
    model = task.model(0)
    params = list(model.parameters())
    opt = make(params, lr=1e-3)
    x, y = batch

    def go(t: int) -> None:
        opt.zero_grad()
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Using backward.* with create_graph=True")
            task.loss(model, x, y).backward(create_graph=True)
        opt.step()

    return go


def _growth_of_live_tensors(task: Task, steps: int) -> int:
    go = _iterations(task, 1, next(iter(task.batches(0, 1))))
    counts = []
    gc.collect()
    gc.disable()  # what a reference cycle holds would be seen
    try:
        for t in range(steps):
            go(t)
            if t in (2, steps - 1):
                counts.append(sum(issubclass(type(o), Tensor) for o in gc.get_objects()))
    finally:
        gc.enable()
    return counts[-1] - counts[0]
