"""Processor time of a simulated frame: few particles stepped and the others inferred, against all stepped.

Clouds are even points on a rectangle that moves smoothly. Time does not depend on the weights, so the networks are
fitted with no steps of training. Every network's neighbors lie within 2.3 times the mean spacing of what it steps.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.interpolate import RBFInterpolator
from torch import Tensor

from steepest.physics import GIOROM, GNS, MPM, Upsampler
from steepest.physics._particle_model import ParticleModel
from steepest.physics.mpm import scatter_points
from steepest.studies.context import Context
from steepest.studies.giorom_scenes import Setting
from steepest.studies.giorom_training import WINDOW

__all__ = ["Cloud", "Frame", "Sizes", "fastest", "in_turns", "measure", "model_for", "radial", "simulator"]

LOW, HIGH = (0.2, 0.2), (0.8, 0.6)
RADIUS = 2.3  # of the mean spacing

Array = NDArray[np.float64]
K = TypeVar("K")


class Cloud(NamedTuple):
    """Windows (n, W + 1, 2) of n points in motion, and their mean spacing."""

    window: Tensor
    spacing: float

    @classmethod
    def of(cls, n: int, seed: int = 0) -> Cloud:
        """Scatter n points and let them shear and turn a little."""
        x = scatter_points(n, LOW, HIGH, seed=seed)
        t = 2e-3 * np.arange(WINDOW + 1)[:, None]
        turned = np.stack([x[:, 0] + t * x[:, 1] ** 2, x[:, 1] - t * x[:, 0]], -1)
        area = math.prod(b - a for a, b in zip(LOW, HIGH))
        return cls(torch.tensor(turned.transpose(1, 0, 2), dtype=torch.float32), math.sqrt(area / n))


def model_for(cloud: Cloud, kind: type[ParticleModel], hidden: int, **settings: Any) -> ParticleModel:
    """Make a network for a cloud and give it the statistics that stepping needs."""
    frames = cloud.window[:32].transpose(0, 1)
    more = torch.cat((frames, 2 * frames[-1:] - frames[-2:-1]))
    model = kind(hidden=hidden, connectivity_radius=RADIUS * cloud.spacing, **settings)  # type: ignore[call-arg]
    return model.fit([more], steps=0)


class Frame:
    """One simulated frame of n points from n / `ratio` of them, or by stepping all.

    Parameters
    ----------
    n, n_sample : int
        All points, and those that the reduced model steps.
    hidden : int
        Width of the networks.
    latent_grid : int
    """

    def __init__(self, n: int, n_sample: int, hidden: int, latent_grid: int = 10) -> None:
        self.cloud, self.few = Cloud.of(n), Cloud.of(n_sample)
        self.hidden = hidden
        self.model = model_for(self.few, GIOROM, hidden, latent_grid=latent_grid)
        start = time.process_time()
        self.upsampler = Upsampler(self.few.window[:, -1], self.cloud.window[:, -1])
        self.build_seconds = time.process_time() - start

    def reduced(self) -> Tensor:
        """Step the samples, infer all."""
        placed: Tensor = self.upsampler(self.step())
        return placed

    def step(self) -> Tensor:
        """Step the samples alone."""
        return self.model.step(self.few.window)

    def infer(self) -> Tensor:
        """Infer all points alone."""
        placed: Tensor = self.upsampler(self.few.window[:, -1])
        return placed

    def dense(self) -> Callable[[], Tensor]:
        """Give a task that steps all by the graph network simulator."""
        model = model_for(self.cloud, GNS, self.hidden)
        return lambda: model.step(self.cloud.window)


def simulator(n: int) -> tuple[Callable[[], object], str]:
    """Give a task that simulates one frame of n points of jelly, four to a cell, and its setting in words."""
    setting = Setting()
    n_grid = round(1 / (2 * Cloud.of(64).spacing * math.sqrt(64 / n)))
    frame = setting.dt * setting.substeps
    nu = 0.3
    wave = math.sqrt(setting.E * (1 - nu) / ((1 + nu) * (1 - 2 * nu)))
    substeps = math.ceil(frame / (0.3 / n_grid / wave))
    mpm = MPM(2, n_grid, "elastic", dt=frame / substeps, gravity=(0.0, -setting.gravity), E=setting.E, nu=nu)
    mpm.add_box(LOW, HIGH, n)
    mpm.step(1)  # compiles
    return lambda: mpm.step(substeps), f"{n_grid}^2 cells, {substeps} substeps"


def radial(Y: Array, X: Array, u: Array) -> Array:
    """Infer one frame's displacements by SciPy's radial basis functions, which solve anew for each frame."""
    return np.asarray(RBFInterpolator(Y, u, neighbors=20)(X))


def in_turns(tasks: Mapping[K, Callable[[], object]], repeats: int) -> dict[K, list[float]]:
    """Processor seconds of every task, one after the other, after a first round that is not counted."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        seconds: dict[K, list[float]] = {name: [] for name in tasks}
        for k in range(repeats + 1):
            for name, task in tasks.items():
                start = time.process_time()
                task()
                if k:
                    seconds[name].append(time.process_time() - start)
    finally:
        torch.set_num_threads(threads)
    return seconds


def fastest(seconds: Mapping[K, list[float]]) -> dict[K, float]:
    """The fastest time of every task."""
    return {name: min(times) for name, times in seconds.items()}


# ----------------------------------------------------------------------------------------------------------- measuring


@dataclass(frozen=True)
class Sizes:
    """What is timed: points of the frame, width, points of the curves, points that are inferred from `n_sample`."""

    n: int
    hidden: int
    curve: tuple[int, ...]
    inferred: tuple[int, ...] = (10_000, 30_000, 100_000)
    n_sample: int = 1000
    repeats: int = 3
    wide: bool = False


def measure(ctx: Context, sizes: Sizes) -> None:
    """Report every claim on time."""
    _against_gns(ctx, sizes)
    _inference(ctx, sizes)


def _against_gns(ctx: Context, sizes: Sizes) -> None:
    for n in (*sizes.curve, sizes.n):
        frame = Frame(n, n // 16, sizes.hidden)
        simulate, words = simulator(n)
        tasks: dict[str, Callable[[], object]] = {
            "GIOROM": frame.reduced, "GNS": frame.dense(), "material point method": simulate
        }  # fmt: skip
        found = fastest(in_turns(tasks, sizes.repeats))
        for name, seconds in found.items():
            ctx.series("frame time", [(n, 1e3 * seconds)], method=name)
    factor = found["GNS"] / found["GIOROM"]
    for claim in ("speed", "speed-large"):
        if ctx.wants(claim):
            ctx.measured(claim, factor)
    ctx.measured("speed-simulator", found["material point method"] / found["GIOROM"])
    ctx.against("GNS", factor, ahead="faster", behind="slower", what=f"processor time of a frame of {n} particles")
    ctx.note(
        f"One frame of {n} particles, width {sizes.hidden}, one thread: GIOROM on {n // 16} and inference "
        f"{1e3 * found['GIOROM']:.1f} ms, GNS on all {1e3 * found['GNS']:.0f} ms, material point method ({words}) "
        f"{1e3 * found['material point method']:.0f} ms."
    )
    if sizes.wide and ctx.wants("speed-wide"):
        wide = Frame(n, n // 16, 128)
        found = fastest(in_turns({"GIOROM": wide.reduced, "GNS": wide.dense()}, 1))
        ctx.measured("speed-wide", found["GNS"] / found["GIOROM"])


def _inference(ctx: Context, sizes: Sizes) -> None:
    """Infer more and more points from the same samples."""
    frames = {n: Frame(n, sizes.n_sample, sizes.hidden) for n in sizes.inferred}
    seconds = fastest(in_turns({n: frame.infer for n, frame in frames.items()}, 3 * sizes.repeats))
    whole = fastest(in_turns({n: frame.reduced for n, frame in frames.items()}, 3 * sizes.repeats))
    for n, value in seconds.items():
        ctx.series("inference time", [(n, 1e3 * value)], method="inference")
        ctx.series("inference time", [(n, 1e3 * whole[n])], method="whole frame")
    first, last = min(sizes.inferred), max(sizes.inferred)
    ctx.measured("inference-time", seconds[last])
    ctx.measured("inference-build", frames[last].build_seconds)
    ctx.measured("inference-growth", whole[last] / whole[first])
    if ctx.wants("inference-radial"):
        few, all_points = (
            np.asarray(c.window[:, -1], dtype=np.float64) for c in (frames[last].few, frames[last].cloud)
        )
        u = np.asarray(frames[last].step(), dtype=np.float64) - few
        start = time.process_time()
        radial(few, all_points, u)
        ctx.measured("inference-radial", (time.process_time() - start) / seconds[last])
