"""What training costs beside a plain loop of PyTorch, and a step of the loss beside other libraries."""

from __future__ import annotations

import importlib
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from steepest.core.extras import installed
from steepest.generative import MLPVelocity, RectifiedFlow, fit_flow
from steepest.studies.rectified_flow_clouds import moons, noise

__all__ = ["bare_loop", "loss_steps", "overhead", "single_thread"]

BATCH = 256


@contextmanager
def single_thread() -> Iterator[None]:
    """One thread for torch, put back after."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def bare_loop(steps: int, seed: int) -> None:
    """Least squares as one would write it down, with Adam's fused kernel, which `fit_flow` uses too."""
    network, generator = MLPVelocity(2, seed=seed), torch.Generator().manual_seed(seed)
    optimizer = torch.optim.Adam(network.parameters(), 1e-3, fused=True)
    losses = []
    for _ in range(steps):
        x0, x1 = noise(BATCH, generator), moons(BATCH, generator)
        t = torch.rand(BATCH, generator=generator)
        x_t = t[:, None] * x1 + (1 - t[:, None]) * x0
        loss = (network(x_t, t) - (x1 - x0)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())


def overhead(steps: int, turns: int) -> dict[str, list[float]]:
    """CPU seconds of the training without and with averaging and clipping, divided by the bare loop's, in turns."""

    def ours(**options: Any) -> None:
        flow = RectifiedFlow(MLPVelocity(2, seed=0))
        fit_flow(flow, noise, moons, n_steps=steps, batch_size=BATCH, generator=0, **options)

    tasks: dict[str, Callable[[], Any]] = {
        "bare": lambda: bare_loop(steps, 0),
        "plain": lambda: ours(ema=None, grad_clip=None),
        "whole": ours,
    }
    bare_loop(20, 0)
    seconds: dict[str, list[float]] = {name: [] for name in tasks}
    for _ in range(turns):
        for name, task in tasks.items():
            start = time.process_time()
            task()
            seconds[name].append(time.process_time() - start)
    return {name: [a / b for a, b in zip(seconds[name], seconds["bare"], strict=True)] for name in ("plain", "whole")}


def loss_steps() -> dict[str, Callable[[], Tensor]]:
    """One evaluation of the loss with its gradient, ours and those of the libraries that are installed."""
    network, generator = MLPVelocity(2, seed=0), torch.Generator().manual_seed(0)
    x0, x1, flow = noise(BATCH, generator), moons(BATCH, generator), RectifiedFlow(network)

    def stepped(loss: Tensor) -> Tensor:
        network.zero_grad()
        loss.backward()
        return loss

    found: dict[str, Callable[[], Tensor]] = {"steepest": lambda: stepped(flow.loss(x0, x1, generator=generator))}
    if installed("torchcfm"):
        cfm: Any = importlib.import_module("torchcfm.conditional_flow_matching")
        matcher = cfm.ConditionalFlowMatcher(sigma=0.0)

        def torchcfm() -> Tensor:
            t, x_t, u_t = matcher.sample_location_and_conditional_flow(x0, x1)
            return stepped(torch.mean((network(x_t, t) - u_t) ** 2))

        found["torchcfm"] = torchcfm
    if installed("flow_matching"):
        paths: Any = importlib.import_module("flow_matching.path")
        path = paths.CondOTProbPath()

        def flow_matching() -> Tensor:
            sample = path.sample(t=torch.rand(BATCH), x_0=x0, x_1=x1)
            return stepped(torch.pow(network(sample.x_t, sample.t) - sample.dx_t, 2).mean())

        found["flow_matching"] = flow_matching
    return found
