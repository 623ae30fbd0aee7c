"""The rest of the score-estimation study: equalities, wide networks, samples, heavy tails and bundled tables."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from threadpoolctl import threadpool_limits

from steepest.core.errors import ConvergenceWarning
from steepest.core.random import child_seeds
from steepest.generative import OUProcess, ScoreRegression, TwoLayerReLU, relu_ntk, sliced_wasserstein
from steepest.generative._full_batch import FullBatch
from steepest.generative._score_problem import ScoreProblem, draw_noised
from steepest.studies.score_estimation_paths import END, T_MAX, T_MIN, fresh, mixture

__all__ = ["Cloud", "Width", "cloud", "distance_to_kernel", "heavy_tail", "matching_is_regression", "table"]

STOPS: dict[str, str | int] = {"Mallows stop": "mallows", "held-out stop": "holdout", "to the end": END}


@contextmanager
def _quiet() -> Iterator[None]:
    """One thread; a rule that did not stop is a result here and not a warning."""
    with threadpool_limits(1), warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        yield


# --------------------------------------------------------------------------------------------------- exact equalities


def matching_is_regression(d: int, n: int, n_noise: int, seed: int) -> tuple[float, float]:
    """Relative difference of the two losses' gradients; largest |t| between label noise and 20 random features."""
    for_net, for_data, for_features = child_seeds(seed, 3)
    process = OUProcess()
    noised, _ = fresh(d, n, for_data)
    net = TwoLayerReLU(d + 2, d, 64, antisymmetric=False, generator=for_net, dtype=torch.float64)
    u = torch.cat([noised.x, noised.t[:, None], torch.ones(n, 1, dtype=torch.float64)], 1)
    f = net(u)
    a, h = process.alpha(noised.t)[:, None], process.h(noised.t)[:, None]
    conditional = -(noised.x - a * noised.y) / h
    scores = process.score_from_denoiser(f, noised.x, noised.t)
    matching = (process.weight(noised.t) * (scores - conditional).square().sum(1)).mean()
    regression = (f - noised.y).square().sum(1).mean()
    one, other = (torch.autograd.grad(loss, net.W, retain_graph=True)[0] for loss in (matching, regression))
    many, truth = fresh(d, n_noise, for_features + 1)
    noise = (many.y - truth)[:, 0]
    u = torch.cat([many.x, many.t[:, None], torch.ones(len(noise), 1, dtype=torch.float64)], 1)
    g = torch.Generator().manual_seed(for_features)
    features = torch.tanh(u @ torch.randn(d + 2, 20, generator=g, dtype=torch.float64))
    products = features * noise[:, None]
    t = products.mean(0) / (products.std(0) / len(noise) ** 0.5)
    return float((one - other).norm() / other.norm()), float(t.abs().max())


@dataclass(frozen=True)
class Width:
    """A network of one width beside the kernel regression."""

    width: int
    seed: int
    n: int = 100
    d: int = 2
    steps: int = 100


def distance_to_kernel(case: Width) -> float:
    """Max over steps of |f_net - f_kernel| / |f_kernel| on new inputs."""
    with _quiet():
        for_data, for_noise, for_net, for_test = child_seeds(case.seed, 4)
        points = mixture(case.d).sample(case.n, generator=for_data)
        problem = ScoreProblem.build(points, standardize=False, seeds=(for_noise, 0))
        test, _ = fresh(case.d, case.n, for_test)
        v = problem.inputs(test.x, test.t)
        K = relu_ntk(v, problem.U)
        net = TwoLayerReLU(case.d + 2, case.d, case.width, generator=for_net, dtype=torch.float64)
        descent = FullBatch(net, problem.U, problem.train.y)
        worst = 0.0
        for k in range(1, case.steps + 1):
            descent.step(problem.path.step_size)
            exact = K @ problem.path.dual(k)
            with torch.no_grad():
                worst = max(worst, float((net(v) - exact).norm() / exact.norm()))
        return worst


# ------------------------------------------------------------------------------------------------------------ samples


@dataclass(frozen=True)
class Cloud:
    """Samples of the test bed drawn from fits that stop differently."""

    d: int
    n: int
    seed: int
    n_samples: int = 2000
    n_steps: int = 200


def cloud(case: Cloud) -> dict[str, Any]:
    """Sliced W2 to fresh data, median distance to the nearest training point, and the samples, of every stop."""
    with _quiet():
        for_data, for_fresh, for_floor, for_fit = child_seeds(case.seed, 4)
        bed = mixture(case.d)
        points, target, floor = (
            bed.sample(n, generator=seed)
            for n, seed in ((case.n, for_data), (case.n_samples, for_fresh), (case.n_samples, for_floor))
        )

        def distances(x: torch.Tensor) -> tuple[float, float]:
            nearest = torch.cdist(x, points).min(1).values.median()
            return float(sliced_wasserstein(x, target, generator=for_fit % 2**31)), float(nearest)

        found: dict[str, Any] = {"points": points.numpy(), "fresh data": (*distances(floor), floor.numpy())}
        for name, stop in STOPS.items():
            model = ScoreRegression(
                model="kernel", stopping=stop, max_iter=END, standardize=False, random_state=for_fit % 2**31
            ).fit(points.numpy())
            drawn = torch.from_numpy(model.sample(case.n_samples, n_steps=case.n_steps))
            found[name] = (*distances(drawn), drawn.numpy())
        return found


def heavy_tail(n: int, seed: int, n_test: int) -> tuple[float, float, float]:
    """Student-t(3) data in the plane, unbiased-risk stop: how cutting the inputs changes the loss on new data.

    Returns
    -------
    ratio, inside, beyond
        Loss over that without cutting; the same on inputs that are not cut; share of those that are.
    """
    with _quiet():
        rng = np.random.default_rng(seed)
        points, new = (torch.from_numpy(rng.standard_t(3, (m, 2))) for m in (n, n_test))
        losses = []
        for reach in (1.0, 1e9):
            problem = ScoreProblem.build(points, max_iter=END, reach=reach, seeds=(seed, 0))
            test = draw_noised(problem.standard.data(new), T_MIN, T_MAX, seed=seed + 1)
            f = relu_ntk(problem.inputs(test.x, test.t), problem.U) @ problem.path.dual(problem.mallows_step)
            losses.append((f - test.y).square().sum(1))
            if reach == 1.0:
                cut = torch.linalg.vector_norm(test.x, dim=1) > problem.inputs.radius
        ratios = [float(losses[0][rows].sum() / losses[1][rows].sum()) for rows in (cut >= 0, ~cut)]
        return ratios[0], ratios[1], float(cut.double().mean())


def table(X: np.ndarray, n: int, seed: int) -> dict[str, float]:
    """Loss on held-out rows of a table, of fits to n rows that stop by each rule or at the end."""
    with _quiet():
        order = np.random.default_rng(seed).permutation(len(X))
        train, held = X[order[:n]], X[order[n:]]
        return {
            name: -ScoreRegression(model="kernel", stopping=stop, max_iter=END, random_state=seed)
            .fit(train)
            .score(held)
            for name, stop in (STOPS | {"kernel stop": "kernel"}).items()
        }
