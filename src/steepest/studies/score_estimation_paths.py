"""The test bed of score estimation: two modes with known denoiser, the whole path of training, rivals on the same data.

Two modes at +-1.5 on the first axis, variance 0.15, t in [0.05, 3]. The clean error is mean |f - f*|^2 on fresh inputs.
Errors at all steps come from one eigendecomposition (`steepest.generative.KernelGradientFlow`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from threadpoolctl import threadpool_limits
from torch import Tensor

from steepest.core.random import child_seeds
from steepest.generative import GaussianMixtureScore, relu_ntk
from steepest.generative._score_problem import Noised, ScoreProblem, draw_noised
from steepest.generative._stopping import step_grid
from steepest.studies.score_estimation_peers import adam_denoiser, density_denoiser, ridge_predictions

__all__ = ["END", "T_MAX", "T_MIN", "Trial", "follow", "fresh", "mixture"]

T_MIN, T_MAX = 0.05, 3.0
END = 10**6  # steps of long training
TUNED = 20  # values that a tuned rival, or the stop in hindsight beside it, may choose from


def mixture(d: int) -> GaussianMixtureScore:
    """The test bed in dimension d."""
    means = torch.zeros(2, d, dtype=torch.float64)
    means[0, 0], means[1, 0] = 1.5, -1.5
    covariance = 0.15 * torch.eye(d, dtype=torch.float64)
    return GaussianMixtureScore(torch.tensor([0.5, 0.5], dtype=torch.float64), means, torch.stack([covariance] * 2))


def fresh(d: int, n: int, seed: int) -> tuple[Noised, Tensor]:
    """New inputs of the test bed, and the truth there."""
    first, second = child_seeds(seed, 2)
    noised = draw_noised(mixture(d).sample(n, generator=first), T_MIN, T_MAX, seed=second)
    return noised, mixture(d).denoise(noised.x, noised.t)


@dataclass(frozen=True)
class Trial:
    """One data set.

    `doubled` measures what twice the truncation radius changes, `rivals` the tuned ones beside it and four noisings a
    point, `adam_steps` Adam with so many steps of every rate.
    """

    d: int
    n: int
    seed: int
    n_test: int = 2000
    doubled: bool = False
    rivals: bool = False
    adam_steps: int = 0


def follow(trial: Trial) -> dict[str, object]:
    """Clean error along the path, at each stop, and of rivals; what theory allows."""
    with threadpool_limits(1):
        return _follow(trial)


def _follow(trial: Trial) -> dict[str, object]:
    data_seed, noise_seed, test_seed, adam_seed = child_seeds(trial.seed, 4)
    points = mixture(trial.d).sample(trial.n, generator=data_seed)
    test, truth = fresh(trial.d, trial.n_test, test_seed)
    problem = ScoreProblem.build(points, standardize=False, max_iter=END, seeds=(noise_seed, 0))
    kernel_to_test = relu_ntk(problem.inputs(test.x, test.t), problem.U)

    def error(f: Tensor) -> float:
        return float((f - truth).square().sum(1).mean())

    def at(k: int) -> float:
        return error(kernel_to_test @ problem.path.dual(k))

    grid = step_grid(END)
    path = [at(k) for k in grid]
    on_train = mixture(trial.d).denoise(problem.train.x, problem.train.t)
    fitted = problem.train.y - problem.path.flow.residual(problem.kernel_step)
    found: dict[str, object] = {
        "grid": grid,
        "path": path,
        "best": min(path),
        "end": path[-1],
        "mallows": at(problem.mallows_step),
        "kernel": at(problem.kernel_step),
        "steps": (problem.kernel_step, problem.mallows_step),
        "noise": problem.sigma / float((problem.train.y - on_train).square().mean().sqrt()),
        "train": float((fitted - on_train).square().mean(0).max()),  # of the worst coordinate
        "bound": problem.error_bound,
    }

    def stopped(**options: float) -> float:
        """Clean error at the unbiased-risk stop of the same data under other settings."""
        other = ScoreProblem.build(points, standardize=False, max_iter=END, seeds=(noise_seed, 0), **options)  # type: ignore[arg-type]
        K = relu_ntk(other.inputs(test.x, test.t), other.U)
        return error(K @ other.path.dual(other.mallows_step))

    if trial.doubled:
        found["doubled"] = abs(stopped(reach=2.0) / at(problem.mallows_step) - 1)
    if trial.rivals:
        K, Y = relu_ntk(problem.U).numpy(), problem.train.y.numpy()
        few = [int(k) for k in np.geomspace(1, END, TUNED).round()]
        found["path of 20"] = min(at(k) for k in few)
        penalties = np.geomspace(1e-6, 1e2, TUNED) * trial.n
        found["ridge"] = min(
            error(torch.from_numpy(f)) for f in ridge_predictions(K, Y, kernel_to_test.numpy(), penalties)
        )
        found["four noisings"] = stopped(n_noisings=4)
        found["density"] = error(density_denoiser(points, TUNED)(test.x, test.t))
    if trial.adam_steps:
        network = adam_denoiser(points, T_MIN, T_MAX, steps=trial.adam_steps, seed=adam_seed)
        found["Adam"] = error(network(test.x, test.t))
    for name, value in found.items():
        assert not isinstance(value, float) or math.isfinite(value), name
    return found
