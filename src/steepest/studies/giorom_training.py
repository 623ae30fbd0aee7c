"""Trains the particle study's networks for equal processor time and measures them against extrapolation.

A network predicts accelerations of sampled particles. Its errors are those of one step on clean windows, and of 30
steps that each start from the one before, both on scenes it has not seen. Beside it: constant velocity, free fall that
ends at the walls, constant acceleration, and the linear autoregression that training starts from.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from steepest.core.parallel import ordered_map
from steepest.core.random import numpy_generator
from steepest.physics import GIOROM, GNS, farthest_point_sample
from steepest.physics._particle_model import ParticleModel
from steepest.physics._particle_training import Batch, History
from steepest.studies.giorom_scenes import Setting, trajectories

__all__ = [
    "WINDOW", "Plan", "Run", "Scores", "Trained", "build", "chosen", "of_model", "of_skip", "one_step", "rolled",
    "rollout_errors", "scores_of_extrapolation", "scores_of_model", "scores_of_skip", "train_all", "train_one",
]  # fmt: skip

WINDOW = 5
STRIDE = 10  # of the windows that one-step errors are taken on
STARTS = (14, 44)  # first frames of the windows that rollouts start from
N_STEPS = 30
WALL = 3  # cells on each side of the simulator's box
CALMER = {"elastic": 0.5}  # of the noise: better at one step and at 30 (validation scenes); officially it has none
CHUNK = 24  # windows in one forward pass

Predict = Callable[[Tensor], Tensor]
"""Accelerations (B, n, d) of windows (B, n, W + 1, d), a frame being the unit of time."""


@dataclass(frozen=True)
class Plan:
    """What the trainings of one scale share.

    Attributes
    ----------
    seconds : float
        Processor time of one training.
    hidden, latent_grid, connectivity_radius, n_layers
        Of the networks; `n_layers` of GNS alone.
    n_training, n_test, n_sample : int
        Scenes; particles of a window.
    batch_size, lr, lr_final, unroll, noise
        Of the training.
    looks : int
        How many times within the training a rollout of validation scenes decides whether the weights are kept. It
        decides as well whether training starts from the linear map with neighbors and walls or the one without.
    """

    seconds: float
    hidden: int = 32
    latent_grid: int = 10
    connectivity_radius: float = 0.045
    n_layers: int = 10
    n_training: int = 16
    n_test: int = 4
    n_sample: int = 150
    batch_size: int = 2
    lr: float = 3e-4
    lr_final: float = 2e-5
    unroll: int = 3
    noise: float = 0.2
    looks: int = 2
    setting: Setting = field(default_factory=Setting)

    @property
    def wall(self) -> float:
        """Distance of the material's walls from the box; the networks' bounds."""
        return WALL / self.setting.n_grid


@dataclass(frozen=True)
class Run:
    """One training; `share` of the plan's time."""

    method: str
    material: str
    seed: int
    plan: Plan
    data_seed: int = 0
    lr: float | None = None
    split: str = "test"
    share: float = 1.0


class Scores(NamedTuple):
    """Mean squared errors of positions after one step, and after each step of a rollout."""

    step: float
    curve: list[float]

    @property
    def rollout(self) -> float:
        """Mean over the rollout's frames."""
        return float(np.mean(self.curve))


class Trained(NamedTuple):
    """What came of a run.

    Attributes
    ----------
    skip : Tensor (d, (W - 1) d)
        The autoregression on own accelerations, by least squares on the same data, and `start` its scores.
    linear : Scores or None
        Of the model's own linear skip, before the network is trained.
    kept : float
        Share of the training time after which the weights were the best on validation scenes.
    """

    run: Run
    model: ParticleModel
    scores: Scores
    skip: Tensor
    start: Scores
    linear: Scores | None
    kept: float


def build(run: Run, skip: str = "neighbors") -> ParticleModel:
    """Make the network of a run with its first weights."""
    plan = run.plan
    common: dict[str, Any] = {
        "dim": plan.setting.dim,
        "hidden": plan.hidden,
        "connectivity_radius": plan.connectivity_radius,
        "bounds": [[plan.wall, 1 - plan.wall]] * plan.setting.dim,
        "seed": run.seed,
        "skip": skip,
    }
    if run.method == "GNS":
        return GNS(n_layers=plan.n_layers, **common)
    if run.method == "published":
        common |= {"node_input": "velocities", "skip": None, "upsample_order": 0}
    return GIOROM(latent_grid=plan.latent_grid, **common)


def train_one(run: Run) -> Trained:
    """Train for the plan's processor time, on scenes of one material, and measure on others."""
    plan = run.plan
    training = list(trajectories(run.material, "training", plan.n_training, run.data_seed, plan.setting))
    unseen = chosen(
        trajectories(run.material, run.split, plan.n_test, run.data_seed, plan.setting), plan.n_sample, run.seed
    )
    theirs = run.method == "published"
    ours = plan.noise * CALMER.get(run.material, 1.0)
    noise: dict[str, Any] = {"noise": 3e-4, "noise_unit": "frame"} if theirs else {"noise": ours}
    skip, start = own_past(replace(run, method="GNS", lr=None, share=1.0))
    model = build(run).fit(training, n_sample=plan.n_sample, steps=0, seed=run.seed, **noise)
    keeper, before = Keeper(model, run), None
    if model.autoregression is not None:
        before = scores_of_law(model, of_linear(model), unseen) if run.method == "GIOROM" else None
        keeper.look(0.0, linear=True)
        with torch.no_grad():  # the same map without neighbors and walls
            model.autoregression.weight.zero_()[:, : skip.shape[1]].copy_(skip)
        keeper.look(0.0, linear=True)
        model.load_state_dict(keeper.best)
    model.fit(
        training, n_sample=plan.n_sample, steps=10**6, max_seconds=run.share * plan.seconds, batch_size=plan.batch_size,
        lr=plan.lr if run.lr is None else run.lr, lr_final=plan.lr_final, seed=run.seed,
        unroll=0 if theirs else plan.unroll, callback=keeper, **noise,
    )  # fmt: skip
    keeper.look(1.0)
    model.load_state_dict(keeper.best)
    return Trained(run, model, scores_of_model(model, unseen), skip, start, before, keeper.share)


@functools.lru_cache(maxsize=16)
def own_past(run: Run) -> tuple[Tensor, Scores]:
    """The autoregression on a particle's own past and its scores, the same for all networks of a material and seed."""
    plan = run.plan
    training = list(trajectories(run.material, "training", plan.n_training, run.data_seed, plan.setting))
    unseen = chosen(
        trajectories(run.material, run.split, plan.n_test, run.data_seed, plan.setting), plan.n_sample, run.seed
    )
    linear = build(run, "least_squares")
    noise = plan.noise * CALMER.get(run.material, 1.0)
    linear.fit(training, n_sample=plan.n_sample, steps=0, seed=run.seed, noise=noise)
    assert linear.autoregression is not None
    skip = linear.autoregression.weight.detach().clone()
    return skip, scores_of_skip(linear, skip, unseen)


class Keeper:
    """Keeps the weights with the least error of 30 steps on validation scenes; a callback of `fit`."""

    def __init__(self, model: ParticleModel, run: Run) -> None:
        plan = run.plan
        self.model, self.seconds, self.looks = model, run.share * plan.seconds, plan.looks
        frames = trajectories(run.material, "validation", plan.n_test, run.data_seed, plan.setting)
        self.scenes = chosen(frames, plan.n_sample, run.seed)
        self.error, self.share, self.best = float("inf"), 0.0, copies(model)
        self.left = plan.looks

    def look(self, share: float, linear: bool = False) -> None:
        """Measure the model as it is, or as its linear map alone, and keep it if it is the best so far."""
        model = self.model
        roll = by_law(model, of_linear(model)) if linear else lambda initial, n: rolled(model, initial, n)
        error = float(np.mean(rollout_errors(roll, self.scenes, STARTS[:1])))
        if error < self.error:
            self.error, self.share, self.best = error, share, copies(self.model)

    def __call__(self, step: int, history: History) -> None:
        share = history["seconds"][-1] / self.seconds
        if self.left > 1 and share >= 1 - (self.left - 1) / self.looks:
            self.left -= 1
            self.look(min(1.0, share))


def copies(model: ParticleModel) -> dict[str, Tensor]:
    """Copy a model's weights and statistics."""
    return {name: value.clone() for name, value in model.state_dict().items()}


def train_all(runs: Sequence[Run], workers: int, done: Callable[[float], object]) -> list[Trained]:
    """Train every run, `workers` at a time."""
    if workers == 1:
        return ordered_map(train_one, runs, progress=done)
    return ordered_map(train_one, runs, backend="processes", n_workers=workers, progress=done)


# ---------------------------------------------------------------------------------------------------------- measuring


def chosen(frames: Sequence[NDArray[np.float32]], n: int, seed: int, sampling: str = "random") -> Tensor:
    """Take n particles of each scene: (scenes, T, n, d)."""
    rng = numpy_generator(seed)
    found = []
    for x in frames:
        if sampling == "fps":
            picked = farthest_point_sample(torch.tensor(x[WINDOW]), n, seed=int(rng.integers(2**31))).numpy()
        else:
            picked = rng.choice(x.shape[1], n, replace=False)
        found.append(torch.tensor(x[:, picked]))
    return torch.stack(found)


def of_model(model: ParticleModel) -> Predict:
    """Let a model predict accelerations of many windows."""

    @torch.no_grad()
    def predict(windows: Tensor) -> Tensor:
        parts = [model.accelerations(_batch(part)) for part in windows.split(CHUNK)]
        found = torch.cat(parts) * model.acc_std_ + model.acc_mean_
        return found.reshape(*windows.shape[:2], -1)

    return predict


def of_skip(model: ParticleModel, skip: Tensor) -> Predict:
    """Let the autoregression alone predict accelerations."""

    def predict(windows: Tensor) -> Tensor:
        past = model.normalized_accelerations(windows.flatten(0, 1)).flatten(1)
        found = past @ skip.to(past).T * model.acc_std_ + model.acc_mean_
        return found.reshape(*windows.shape[:2], -1)

    return predict


def of_linear(model: ParticleModel) -> Predict:
    """Let a model's linear skip alone predict accelerations."""
    assert model.autoregression is not None
    linear = model.autoregression

    @torch.no_grad()
    def predict(windows: Tensor) -> Tensor:
        found = linear(torch.cat([model.linear_inputs(_batch(part)) for part in windows.split(CHUNK)]))
        return (found * model.acc_std_ + model.acc_mean_).reshape(*windows.shape[:2], -1)

    return predict


def one_step(predict: Predict, scenes: Tensor) -> float:
    """Mean squared error of the next positions on clean windows of scenes (S, T, n, d)."""
    windows = scenes.unfold(1, WINDOW + 2, STRIDE).flatten(0, 1).permute(0, 1, 3, 2)  # (B, n, W + 2, d)
    past = windows[:, :, :-1].contiguous()
    truth = windows.double().diff(n=2, dim=2)[:, :, -1]
    return float((predict(past).double() - truth).square().mean())


def rolled(model: ParticleModel, initial: Tensor, n_steps: int) -> Tensor:
    """Roll out all scenes (S, n, W + 1, d) at once: (n_steps, S, n, d)."""
    return model.unroll(_batch(initial), n_steps, True).unflatten(1, initial.shape[:2])


def rollout_errors(
    roll: Callable[[Tensor, int], Tensor], scenes: Tensor, starts: Sequence[int] = STARTS
) -> list[float]:
    """Mean squared error of positions in each of 30 frames, over several starts of each scene; infinite if it fails."""
    last = WINDOW + 1 + N_STEPS
    cut = torch.cat([scenes[:, start : start + last] for start in starts])
    initial, truth = cut[:, : WINDOW + 1].transpose(1, 2).contiguous(), cut[:, WINDOW + 1 :].transpose(0, 1)
    try:
        found = roll(initial, len(truth))
    except RuntimeError:  # positions that are not finite
        return [float("inf")] * N_STEPS
    errors: list[float] = (found - truth).square().mean((1, 2, 3)).tolist()
    return errors


def scores_of_model(model: ParticleModel, scenes: Tensor) -> Scores:
    """Both errors of a model."""
    return Scores(
        one_step(of_model(model), scenes),
        rollout_errors(lambda initial, n: rolled(model, initial, n), scenes),
    )


def scores_of_skip(model: ParticleModel, skip: Tensor, scenes: Tensor) -> Scores:
    """Both errors of the autoregression."""
    return scores_of_law(model, of_skip(model, skip), scenes)


def scores_of_law(model: ParticleModel, law: Predict, scenes: Tensor) -> Scores:
    """Both errors of accelerations by any law, with the model's walls."""
    return Scores(one_step(law, scenes), rollout_errors(by_law(model, law), scenes))


def by_law(model: ParticleModel, law: Predict) -> Callable[[Tensor, int], Tensor]:
    """Roll out accelerations by any law between the model's walls."""

    def roll(initial: Tensor, n: int) -> Tensor:
        window, frames = initial, []
        for _ in range(n):
            following = 2 * window[:, :, -1] - window[:, :, -2] + law(window)
            window = model.kept_inside(torch.cat((window[:, :, 1:], following[:, :, None]), 2))
            frames.append(window[:, :, -1])
            if not bool(torch.isfinite(frames[-1]).all()):
                raise RuntimeError("positions are not finite")
        return torch.stack(frames)

    return roll


def scores_of_extrapolation(scenes: Tensor, plan: Plan) -> dict[str, Scores]:
    """Errors without a network: constant velocity, free fall between walls, constant acceleration."""
    setting = plan.setting
    pull = torch.zeros(setting.dim)
    pull[1] = -setting.gravity * (setting.dt * setting.substeps) ** 2
    laws: dict[str, Predict] = {
        "constant velocity": lambda x: torch.zeros_like(x[:, :, -1]),
        "gravity between walls": lambda x: pull.expand_as(x[:, :, -1]),
        "constant acceleration": lambda x: x.diff(n=2, dim=2)[:, :, -1],
    }

    def roll(name: str) -> Callable[[Tensor, int], Tensor]:
        def extrapolate(initial: Tensor, n: int) -> Tensor:
            k = torch.arange(1, n + 1)[:, None, None, None]
            moved = initial[:, :, -1] + k * initial.diff(dim=2)[:, :, -1] + k * (k + 1) / 2 * laws[name](initial)
            return moved.clamp(plan.wall, 1 - plan.wall) if "walls" in name else moved

        return extrapolate

    return {name: Scores(one_step(law, scenes), rollout_errors(roll(name), scenes)) for name, law in laws.items()}


def _batch(windows: Tensor) -> Batch:
    (n_windows, n), device = windows.shape[:2], windows.device
    graphs = torch.arange(n_windows, device=device).repeat_interleave(n)
    types = torch.zeros(n_windows * n, dtype=torch.int64, device=device)
    return Batch(windows.flatten(0, 1), types, graphs, n_windows)
