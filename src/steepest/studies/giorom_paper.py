"""The paper's own setting: 100,000 particles in space from 1,000, width 128, 16 nodes an axis, on an accelerator.

Trajectories come from ``--data``, an ``.npz`` or ``.pt`` file as `physics.load_trajectories` reads it (the authors'
sets, WaterDrop, Sand), scaled to the unit box; the last eight of 21, or the last third, are held out. Without it our
own material point method simulates prisms of fluid.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from steepest.core.errors import value_error
from steepest.physics import GIOROM, GNS, Upsampler, load_trajectories
from steepest.physics._particle_model import ParticleModel
from steepest.studies import giorom_training as training
from steepest.studies.claim import Claim
from steepest.studies.context import Context, Unavailable
from steepest.studies.giorom_scenes import Setting, trajectories
from steepest.studies.giorom_training import WINDOW

__all__ = ["CLAIMS", "measure"]

N_SAMPLE, N_TRAINING, N_TEST = 1000, 13, 8
STEPS = 200_000
# fmt: off
CLAIMS = [
    Claim("paper-speed", "A frame of 10^5 particles in space is faster than by GNS on all of them.", "25x", ">= 25",
          "x faster", "paper"),
    Claim("paper-step", "One step over constant acceleration's error.", "not given", "reported",
          "x the mean squared error", "paper"),
    Claim("paper-rollout", "30 steps over constant velocity's error.", "not given", "reported",
          "x the mean squared error", "paper"),
    Claim("paper-inference", "All particles from true motion of the samples.", "not given", "reported",
          "error / deformation", "paper"),
]
# fmt: on


def measure(ctx: Context) -> None:
    """Train and measure; ``--max-steps`` is a test of the code, which then runs anywhere on fewer particles."""
    device = ctx.need_cuda() if ctx.max_steps is None else torch.device("cpu")
    short = ctx.max_steps is not None
    scenes = _scenes(ctx, short)
    dim, n = scenes[0].shape[2], min(scene.shape[1] for scene in scenes)
    n_test = min(N_TEST, len(scenes) // 3)
    fitted, held = scenes[:-n_test], scenes[-n_test:]
    n_sample = min(N_SAMPLE, n // 6)
    seed = ctx.seeds[0]
    samples = training.chosen(held, n_sample, seed)
    radius = 2.3 * _spacing(samples[0, WINDOW].numpy())
    hidden, grid = (8, 4) if short else (128, 16 if dim == 3 else 32)
    model = GIOROM(dim, hidden=hidden, latent_grid=grid, connectivity_radius=radius, seed=seed).to(device)
    model.fit(fitted, n_sample=n_sample, steps=ctx.max_steps or STEPS, lr=1e-3, lr_final=1e-5, seed=seed)
    ctx.progress(0.8)
    on_device = samples.to(device)
    laws = training.scores_of_extrapolation(samples, training.Plan(0.0, setting=Setting(dim=dim)))
    found = training.scores_of_model(model, on_device)
    _report(ctx, short, "paper-step", found.step / laws["constant acceleration"].step)
    _report(ctx, short, "paper-rollout", found.rollout / laws["constant velocity"].rollout)
    _speed(ctx, short, model, held[0], n_sample)
    ctx.note(f"{len(fitted)} trajectories of {n} particles, {n_sample} stepped, connectivity radius {radius:.3g}.")
    ctx.progress(1.0)


def _scenes(ctx: Context, short: bool) -> list[np.ndarray]:
    try:
        path = ctx.data("path")
    except Unavailable:
        setting = Setting(n_points=300, dim=3) if short else Setting(
            n_grid=64, n_points=100_000, dt=2e-4, substeps=25, dim=3
        )  # fmt: skip
        n = 3 if short else N_TRAINING + N_TEST
        return [np.array(x) for x in trajectories("newtonian", "training", n, ctx.seed, setting)]
    found = [item["positions"] if isinstance(item, dict) else item for item in load_trajectories(path)]
    if len(found) < 3:
        raise value_error("data", "a file of at least three trajectories", len(found))
    return found


def _speed(ctx: Context, short: bool, model: ParticleModel, scene: np.ndarray, n_sample: int) -> None:
    """One frame by both models, and the error of inference."""
    device = model.acc_std_.device
    window = torch.tensor(scene[: WINDOW + 1]).transpose(0, 1).contiguous().to(device)
    picked = torch.from_numpy(np.random.default_rng(0).choice(len(window), n_sample, replace=False)).to(device)
    few, reference = window[picked], window[:, -1]
    upsampler = Upsampler(reference[picked], reference)
    frame = len(scene) // 2
    placed = upsampler(torch.tensor(scene[frame]).to(device)[picked])
    truth = torch.tensor(scene[frame]).to(device)
    moved = truth - reference
    error = (placed - truth).norm() / (moved - moved.mean(0)).norm()
    _report(ctx, short, "paper-inference", float(error))
    radius = 2.3 * _spacing(reference.cpu().numpy())
    dense = GNS(model.dim, hidden=model.hidden, connectivity_radius=radius).to(device)
    dense.fit([scene[: WINDOW + 2]], steps=0)
    ours = _seconds(lambda: upsampler(model.step(few)))
    theirs = _seconds(lambda: dense.step(window))
    _report(ctx, short, "paper-speed", theirs / ours)
    ctx.note(f"One frame of {len(window)} particles: {1e3 * ours:.1f} ms, GNS on all {1e3 * theirs:.1f} ms.")


def _report(ctx: Context, short: bool, claim: str, value: float) -> None:
    if short:
        ctx.skipped(claim, f"{ctx.max_steps} steps: a test of the code")
    else:
        ctx.measured(claim, value)


def _seconds(task: Callable[[], Tensor], repeats: int = 5) -> float:
    times = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        task().sum().item()  # waits for the device
        times.append(time.perf_counter() - start)
    return min(times[1:])


def _spacing(points: np.ndarray) -> float:
    """Mean spacing, from the median distance to the nearest other of points spread like a Poisson process."""
    from scipy.spatial import cKDTree

    d = points.shape[1]
    nearest = float(np.median(cKDTree(points).query(points, k=2)[0][:, 1]))
    ball = math.pi if d == 2 else 4 / 3 * math.pi
    return nearest * (ball / math.log(2)) ** (1 / d)
