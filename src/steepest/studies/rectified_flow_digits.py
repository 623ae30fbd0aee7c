"""Handwritten digits: generation, translation of ones into sevens, and features of turned digits carried back.

A flow sees whitened directions of a principal component analysis (16 at `quick`, all 64 at `full`), whose variance is
1 on average.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from steepest.core.extras import installed
from steepest.generative import (
    MLPVelocity,
    RectifiedFlow,
    fit_flow,
    frechet_distance,
    reflow,
    transport_cost,
)
from steepest.studies.rectified_flow_clouds import CURVED, EULER, TRAINING, Found, cost_ratios

__all__ = ["Sizes", "adaptation", "generation", "translation"]

Array = NDArray[Any]


BRIEF = 300  # steps after which adaptation is looked at, too


@dataclass(frozen=True)
class Sizes:
    """Directions kept, steps of training, pairs of a reflow."""

    dims: int
    steps: int
    pairs: int
    width: int = 128


class Directions:
    """Principal directions of images, scaled by one number so that the mean variance is 1."""

    def __init__(self, images: Array, dims: int) -> None:
        self.mean = images.mean(0)
        _, _, rows = np.linalg.svd(images - self.mean, full_matrices=False)
        self.basis = rows[:dims]
        self.scale = float(((images - self.mean) @ self.basis.T).std())

    def of(self, images: Array) -> Tensor:
        """Images (n, 64) to coordinates (n, dims)."""
        return torch.from_numpy(((images - self.mean) @ self.basis.T / self.scale).astype(np.float32))

    def images(self, x: Tensor) -> Array:
        """Back to pixels."""
        return np.asarray(self.mean + self.scale * x.numpy() @ self.basis)


def _network(x: Tensor, sizes: Sizes, seed: int) -> MLPVelocity:
    return MLPVelocity(x.shape[1], width=sizes.width, seed=seed)


def _noise(dims: int) -> Any:
    def draw(n: int, generator: torch.Generator) -> Tensor:
        return torch.randn(n, dims, generator=generator)

    return draw


def _stopped_early(x0: Tensor, x1: Tensor, sizes: Sizes, seed: int) -> RectifiedFlow:
    """A flow between few samples, trained for as many steps as held-out fifths of both say.

    Finite clouds can be learned by heart: the loss on samples that were not seen turns up again.
    """
    generator = torch.Generator().manual_seed(seed)
    held, kept = [], []
    for x in (x0, x1):
        order, n = torch.randperm(len(x), generator=generator), len(x) // 5
        held.append(x[order[:n]][torch.randint(n, (1024,), generator=generator)])
        kept.append(x[order[n:]])
    options: dict[str, Any] = {"ema": TRAINING["ema"], "generator": seed}
    every = max(1, sizes.steps // 10)
    search = fit_flow(RectifiedFlow(_network(x0, sizes, seed)), *kept, n_steps=sizes.steps, val=(held[0], held[1]),
                      checkpoint_every=every, **options)  # fmt: skip
    steps = min(search.history["val"], key=lambda entry: entry[1])[0]
    return fit_flow(RectifiedFlow(_network(x0, sizes, seed)), x0, x1, n_steps=steps, **options).flow


def _halves(digits: tuple[Array, Array], seed: int) -> tuple[Array, Array, Array, Array]:
    """Images and labels of two halves."""
    X, y = digits
    order = np.random.default_rng(seed).permutation(len(X))
    a, b = order[: len(X) // 2], order[len(X) // 2 :]
    return X[a], y[a], X[b], y[b]


# ---------------------------------------------------------------------------------------------------------- generation


def _features(x: Tensor, y: Array, seed: int) -> Any:
    """What the hidden layer of a classifier of the digits sees."""
    from sklearn.neural_network import MLPClassifier

    model = MLPClassifier((32,), max_iter=40, early_stopping=False, tol=0.0, random_state=seed, n_iter_no_change=1000)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # 40 passes are what the budget has; it need not converge
        model.fit(x.numpy(), y)
    weight, bias = model.coefs_[0], model.intercepts_[0]
    return lambda z: torch.from_numpy(np.maximum(z.double().numpy() @ weight + bias, 0))


def generation(work: tuple[Sizes, int, tuple[Array, Array], bool]) -> Found:
    """Noise to digits: straight against curved flows, and the convex costs of two rounds."""
    sizes, seed, (X, y), curved = work
    directions, found = Directions(X, sizes.dims), Found()
    data, source = directions.of(X), _noise(sizes.dims)
    features = _features(data, y, seed)
    generator = torch.Generator().manual_seed(seed + 77)
    x0 = source(len(data), generator)
    options = {"n_steps": sizes.steps, "generator": seed, **TRAINING}
    straight = fit_flow(RectifiedFlow(_network(data, sizes, seed)), source, data, **options).flow
    again = reflow(straight, source, n_pairs=sizes.pairs, **options).flow
    ends = [flow.sample(x0).x for flow in (straight, again)]
    x1 = data[torch.randperm(len(data), generator=generator)]
    found.numbers["convex-1"] = max(cost_ratios((x0, ends[0]), (x0, x1)).values())
    found.numbers["convex-2"] = max(cost_ratios((x0, ends[1]), (x0, ends[0])).values())

    def frechet(z: Tensor) -> float:
        return float(frechet_distance(features(z), features(data)))

    half = torch.randperm(len(data), generator=generator)
    first, second = half[: len(data) // 2], half[len(data) // 2 :]
    found.numbers["floor"] = float(frechet_distance(features(data[first]), features(data[second])))
    flows = {"1-flow": straight, "2-flow": again}
    if curved:
        for name, interpolation in CURVED.items():
            flow = RectifiedFlow(_network(data, sizes, seed), interpolation=interpolation, t_eps=1e-3)
            flows[name] = fit_flow(flow, source, data, **options).flow
    values = {}
    for name, flow in flows.items():
        sample = flow.sample(x0)
        values[name] = frechet(sample.x)
        found.numbers[f"nfe {name}"] = sample.nfe
        found.curves["digits by steps", name] = [
            (n, frechet(flow.sample(x0, steps=n, **EULER).x)) for n in (1, 2, 4, 8, 16)
        ]
    if curved:
        found.numbers["quality"] = values["1-flow"] / min(values[name] for name in CURVED)
    for name, flow in {"1-flow": straight, "2-flow": again}.items():
        for n in (1, 4):
            found.arrays[f"{name} {n}"] = directions.images(flow.sample(x0[:20], steps=n, **EULER).x)
        found.arrays[f"{name} accurate"] = directions.images(flow.sample(x0[:20]).x)
    found.arrays["data"] = directions.images(x1[:20])
    return found


# --------------------------------------------------------------------------------------------------------- translation


def translation(work: tuple[Sizes, int, tuple[Array, Array]]) -> Found:
    """Ones to sevens without pairs: what a classifier says of held-out ones after the transfer, and the cost."""
    from sklearn.linear_model import LogisticRegression

    sizes, seed, digits = work
    X_train, y_train, X_test, y_test = _halves(digits, seed)
    directions, found = Directions(X_train, sizes.dims), Found()
    train = directions.of(X_train)
    judge = LogisticRegression(max_iter=1000).fit(directions.of(digits[0]).numpy(), digits[1])
    x0, x1 = train[y_train == 1], train[y_train == 7]
    held = directions.of(X_test[y_test == 1])
    options = {"n_steps": sizes.steps, "generator": seed, **TRAINING}
    flow = _stopped_early(x0, x1, sizes, seed)
    again = reflow(flow, x0, **options).flow
    ends = {"1-flow": flow.sample(held).x, "2-flow, one step": again.sample(held, steps=1, **EULER).x}
    for name, z in ends.items():
        found.numbers[name] = float((judge.predict(z.numpy()) == 7).mean())
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.randint(len(x1), (len(held),), generator=generator)
    found.numbers["cost"] = float(transport_cost(held, ends["1-flow"]) / transport_cost(held, x1[chosen]))
    kept = flow.sample(held[:8], keep=True)
    assert kept.path is not None
    found.arrays = {"translation": np.stack([directions.images(z) for z in kept.path[[0, 8, 16, 24, 32]]])}
    found.arrays["one step"] = directions.images(ends["2-flow, one step"][:8])
    return found


# ---------------------------------------------------------------------------------------------------------- adaptation


def turned(images: Array, degrees: float = 25.0, dim: float = 0.7) -> Array:
    """Images turned about their middle, and dimmed."""
    from scipy.ndimage import rotate

    square = images.reshape(-1, 8, 8)
    return dim * rotate(square, degrees, axes=(1, 2), reshape=False, order=1).reshape(len(images), 64)


def adaptation(work: tuple[Sizes, int, tuple[Array, Array]]) -> Found:
    """Features of turned, dimmed digits moved towards those that a classifier was trained on: accuracy in points."""
    from sklearn.linear_model import LogisticRegression

    sizes, seed, digits = work
    X_train, y_train, X_test, y_test = _halves(digits, seed)
    directions, found = Directions(X_train, sizes.dims), Found()
    train, test = directions.of(X_train), directions.of(turned(X_test))
    judge = LogisticRegression(max_iter=1000).fit(train.numpy(), y_train)
    moved = {"not moved": test}
    for name, steps in {"1-flow": sizes.steps, "1-flow, 300 steps": min(BRIEF, sizes.steps)}.items():
        flow = RectifiedFlow(_network(train, sizes, seed))
        moved[name] = fit_flow(flow, test, train, n_steps=steps, generator=seed).flow.sample(test).x
    if installed("ot"):
        moved["optimal transport"] = _barycentric(test, train)
    found.numbers = {name: 100 * float((judge.predict(z.numpy()) == y_test).mean()) for name, z in moved.items()}
    found.curves = {("adaptation", name): [(0, value)] for name, value in found.numbers.items()}
    return found


def _barycentric(x: Tensor, y: Tensor) -> Tensor:
    """Each sample to the mean of what exact optimal transport sends it to."""
    import ot

    a, b = np.full(len(x), 1 / len(x)), np.full(len(y), 1 / len(y))
    plan = ot.emd(a, b, torch.cdist(x.double(), y.double()).square().numpy(), numItermax=1_000_000)
    return torch.from_numpy((plan @ y.double().numpy() * len(x)).astype(np.float32))
