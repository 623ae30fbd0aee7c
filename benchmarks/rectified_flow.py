"""Rectified flow beside torchcfm, flow_matching and torchdiffeq, the schedule of diffusers, and how its time grows."""

from __future__ import annotations

import importlib
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from _rows import Row, alone, compared, fitted, interleaved, rows_of
from steepest.core.extras import installed
from steepest.core.memory import peak_tensor_bytes
from steepest.generative import MLPVelocity, RectifiedFlow, crossing, fit_flow, straightness
from steepest.studies.rectified_flow_clouds import moons, noise
from steepest.studies.rectified_flow_costs import loss_steps, overhead

TURNS, BATCH = 30, 2000
CLOCK = time.process_time


def bench(progress: Callable[[float], None] | None = None) -> list[Row]:
    """Measure all rows; a peer that is not installed has none."""
    return rows_of([_training, _losses, _adaptive, _schedule, _growth, _memory], progress)


def _training() -> list[Row]:
    """`fit_flow` beside a bare loop."""
    found = overhead(150, 11)
    rows = []
    for name, bound, what in (("plain", "<= 1.05", "no averaging, no clipping"), ("whole", "<= 1.2", "both")):
        value = float(np.median(found[name]))
        rows.append(alone(f"fit-{name}", value, "x", bound, f"CPU time of fit_flow / bare loop: {what}"))
    return rows


def _losses() -> list[Row]:
    """A step of the loss, forward and backward, batch 256, the same network."""
    tasks = {name: _repeated(task, 20) for name, task in loss_steps().items()}
    seconds = interleaved(tasks, TURNS, CLOCK)
    return [
        compared(f"loss-{peer}", seconds, peer, "<= 1.0", "20 steps of the loss, 128 x 3, batch 256", "steepest")
        for peer in seconds
        if peer != "steepest"
    ]


def _repeated(task: Callable[[], Any], times: int) -> Callable[[], None]:
    def run() -> None:
        for _ in range(times):
            task()

    return run


def _trained() -> RectifiedFlow:
    flow = RectifiedFlow(MLPVelocity(2, seed=0))
    return fit_flow(flow, noise, moons, n_steps=600, generator=0).flow


def _adaptive() -> list[Row]:
    """RK45 at 1e-5 beside torchdiffeq's dopri5: time, evaluations, error, on a trained flow and a batch of 256."""
    if not installed("torchdiffeq"):
        return []
    torchdiffeq: Any = importlib.import_module("torchdiffeq")
    flow = _trained()
    rows = []
    for n in (256, BATCH):
        x0 = noise(n, torch.Generator().manual_seed(1))
        exact = flow.sample(x0, rtol=1e-7, atol=1e-7).x
        calls = [0]

        def field(t: Tensor, x: Tensor, calls: list[int] = calls) -> Tensor:
            calls[0] += 1
            return flow.velocity(x, t.expand(len(x)))

        @torch.no_grad()
        def theirs(x0: Tensor = x0, field: Any = field) -> Tensor:
            ts = torch.tensor([0.0, 1.0])
            return torchdiffeq.odeint(field, x0, ts, rtol=1e-5, atol=1e-5, method="dopri5")[-1]

        ours = flow.sample(x0)
        other = theirs()
        nfe = calls[0]
        errors = [float((z - exact).square().mean().sqrt()) for z in (ours.x, other)]
        seconds = interleaved({"ours": lambda x0=x0: flow.sample(x0), "torchdiffeq": theirs}, TURNS, CLOCK)
        what = f"{n} samples, tolerance 1e-5; errors {errors[0]:.1e} and {errors[1]:.1e}"
        rows += [
            compared(f"rk45-{n}", seconds, "torchdiffeq", "<= 0.7", what),
            alone(f"nfe-{n}", ours.nfe / nfe, "x", "<= 1.05", f"evaluations beside torchdiffeq's {nfe}"),
        ]
    return rows


def _schedule() -> list[Row]:
    """Euler beside diffusers at equal sigmas."""
    name = "diffusers.schedulers.scheduling_flow_match_euler_discrete"
    try:
        module: Any = importlib.import_module(name)
    except ImportError:
        return []
    scheduler = module.FlowMatchEulerDiscreteScheduler()
    scheduler.set_timesteps(sigmas=np.linspace(1, 0, 9)[:-1].tolist())
    flow, x = RectifiedFlow(MLPVelocity(2, seed=0)), noise(100, torch.Generator().manual_seed(0))
    ours = flow.sample(x, steps=8, method="euler").x
    with torch.no_grad():
        for step, sigma in zip(scheduler.timesteps, scheduler.sigmas, strict=False):
            x = scheduler.step(-flow.velocity(x, (1 - sigma).expand(len(x))), step, x).prev_sample
    gap = float((ours - x).abs().max())
    return [alone("euler-diffusers", gap, "largest difference", "<= 1e-6", "8 steps at equal sigmas")]


def _growth() -> list[Row]:
    """Exponents of the time of sampling in samples, steps and dimension."""
    flow = RectifiedFlow(MLPVelocity(2, seed=0))
    generator = torch.Generator().manual_seed(0)

    def seconds(tasks: dict[int, Callable[[], Any]]) -> list[float]:
        return [min(times) for times in interleaved(tasks, 9, CLOCK).values()]

    clouds = {n: noise(n, generator) for n in (2000, 4000, 8000, 16000)}
    steps = (10, 20, 40, 80)
    dims = (2**15, 2**16, 2**17, 2**18)
    wide = RectifiedFlow(lambda x, t: torch.tanh(x) * t[:, None])
    points = {d: torch.randn(16, d, generator=generator) for d in dims}
    euler = {"method": "euler"}
    return [
        fitted("exponent-n", list(clouds), seconds(
            {n: (lambda x=x: flow.sample(x, steps=10, **euler)) for n, x in clouds.items()}),
            "between(0.9, 1.1)", "CPU time in the number of samples"),
        fitted("exponent-steps", steps, seconds(
            {k: (lambda k=k: flow.sample(clouds[2000], steps=k, **euler)) for k in steps}),
            "between(0.9, 1.1)", "CPU time in the number of steps"),
        fitted("exponent-dimension", dims, seconds(
            {d: (lambda x=x: wide.sample(x, steps=10, **euler)) for d, x in points.items()}),
            "between(0.9, 1.1)", "CPU time in the dimension, a velocity of cost d"),
    ]  # fmt: skip


def _memory() -> list[Row]:
    """Tensors that are alive at once in the sums over time, for 10 and for 100 of its points."""
    flow = RectifiedFlow(lambda x, t: torch.tanh(x) * t[:, None])
    x = torch.randn(1000, 100, generator=torch.Generator().manual_seed(0))
    rows = []
    for name, task in {
        "straightness": lambda n: straightness(flow, x, steps=n, method="euler"),
        "crossing": lambda n: crossing(flow, x, x + 1, n_times=n, generator=0),
    }.items():
        few, many = (peak_tensor_bytes(lambda n=n, task=task: task(n)) for n in (10, 100))
        what = "most bytes of tensors at once, 100 times against 10"
        rows.append(alone(f"memory-{name}", many / few, "x", "<= 1.1", what))
    return rows
