"""Problems of the FZooS study: what each client can evaluate, and what only the study knows (optimum, gradients).

Three generated families, as in the code of Shu et al. [shu2023federated]; an attack on classifiers that were each
trained on half of the digits; and a metric of a trained network in which a step of a parameter is a jump or nothing.
All of them live in the unit box.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.exceptions import ConvergenceWarning
from sklearn.model_selection import train_test_split
from sklearn.neural_network import MLPClassifier
from sklearn.preprocessing import StandardScaler
from torch import nn

from steepest.studies.images import mlp
from steepest.studies.task import fresh_model

__all__ = ["METRICS", "Problem", "attack", "images_to_attack", "local_networks", "macro", "metric", "synthetic"]

Array = NDArray[Any]
Values = Callable[[Array], Array]
Kind = Literal["Quadratic", "Ackley", "Levy"]

BOUNDS = (0.0, 1.0)
METRICS = ("precision", "recall", "Jaccard", "F1")


@dataclass(frozen=True)
class Problem:
    """What the clients can evaluate, at the rows of a matrix; the start; F's least value, and gradients if known."""

    fs: Sequence[Values]
    start: Array
    least: float = 0.0
    gradients: tuple[Values, ...] = ()

    def value(self, x: Array) -> float:
        """F, which the study may look at without counting."""
        return float(np.mean([f(x[None])[0] for f in self.fs]))

    def gradient(self, x: Array) -> Array:
        """F's gradient."""
        return np.asarray(np.mean([g(x) for g in self.gradients], axis=0))


def _stretched(X: Array) -> Array:
    return 20 * X - 10


def synthetic(kind: Kind, dim: int, n_clients: int, div: float, seed: int) -> Problem:
    """A function of the generator's family for every client; `div` says how much they differ, their mean does not."""
    rng = np.random.default_rng(seed)
    shares = rng.dirichlet(np.full(n_clients, 1 / n_clients), (2, dim)) - 1 / n_clients  # over clients, sum 0
    first, second = div * np.moveaxis(shares, 2, 1)
    start = rng.uniform(size=dim)
    if kind == "Quadratic":
        a, b = 1 + first, 1 + second
        fs = [lambda X, a=a, b=b: (_stretched(X) ** 2 @ a + _stretched(X) @ b + 1) / (10 * dim)
              for a, b in zip(a, b, strict=True)]  # fmt: skip
        gradients = tuple(lambda x, a=a, b=b: 2 * (2 * a * _stretched(x) + b) / dim for a, b in zip(a, b, strict=True))
        return Problem(fs, start, (1 / dim - 0.25) / 10, gradients)
    shape = _ackley if kind == "Ackley" else _levy
    pairs = zip(0.1 + first, second, strict=True)
    return Problem([partial(_moved, shape, scale, center) for scale, center in pairs], start)


def _moved(shape: Values, scale: Array, center: Array, X: Array) -> Array:
    return shape(scale * (_stretched(X) - center))


def _ackley(X: Array) -> Array:
    far = np.exp(-0.2 * np.sqrt((X**2).mean(1)))
    return np.asarray(20 * (1 - far) + np.e - np.exp(np.cos(np.pi * X).mean(1)))


def _levy(X: Array) -> Array:
    W = 1 + (X - 1) / 4
    middle = (W[:, 1:-1] - 1) ** 2 * (1 + 10 * np.sin(np.pi * W[:, 1:-1] + 1) ** 2)
    last = (W[:, -1] - 1) ** 2 * (1 + np.sin(2 * np.pi * W[:, -1]) ** 2)
    return np.asarray(np.sin(np.pi * W[:, 0]) ** 2 + middle.sum(1) + last)


# ------------------------------------------------------------------------------------------------------------- attacks


def local_networks(
    X: torch.Tensor, y: torch.Tensor, seed: int, *, n_clients: int = 10, share: float = 0.5, steps: int = 100
) -> list[nn.Module]:
    """A network for every client, trained on the share of the ten classes that it holds."""
    rng = np.random.default_rng(seed)
    networks = []
    for k in range(n_clients):
        classes = torch.as_tensor(rng.permutation(10)[: round(10 * share)])
        rows = torch.isin(y, classes)
        network = fresh_model(lambda: mlp(X.shape[1], 32, 10), 100 * seed + k)
        optimizer = torch.optim.Adam(network.parameters(), 0.01)
        for _ in range(steps):
            optimizer.zero_grad()
            nn.functional.cross_entropy(network(X[rows]), y[rows]).backward()
            optimizer.step()
        networks.append(network.requires_grad_(False))
    return networks


def attack(networks: Sequence[nn.Module], image: torch.Tensor, label: int, width: float) -> Problem:
    """Margin of the right class under a perturbation of at most `width` a pixel: missed where its mean is below 0."""

    def margin(X: Array, network: nn.Module) -> Array:
        moved = (image + torch.as_tensor(width * (2 * X - 1), dtype=image.dtype)).clamp(0, 1)
        logits = network(moved).double()
        right = logits[:, label].clone()
        logits[:, label] = -torch.inf
        return np.asarray((right - logits.amax(1)).numpy())

    fs = [lambda X, network=network: margin(X, network) for network in networks]
    return Problem(fs, np.full(len(image), 0.5))


def images_to_attack(
    networks: Sequence[nn.Module], X: torch.Tensor, y: torch.Tensor, n: int, seed: int, width: float
) -> list[Problem]:
    """The first images of a random order whose class the clients' networks get right in the mean."""
    found: list[Problem] = []
    for k in np.random.default_rng(seed).permutation(len(y)):
        problem = attack(networks, X[k], int(y[k]), width)
        if problem.value(problem.start) > 0:
            found.append(problem)
        if len(found) == n:
            break
    return found


# ------------------------------------------------------------------------------------------------------------- metrics


def metric(
    X: Array, y: Array, name: str, seed: int, *, hidden: tuple[int, ...], n_clients: int = 7, share: float = 0.3,
    width: float = 0.2, maxiter: int = 10,
) -> Problem:  # fmt: skip
    """One less a metric of a network whose last layer is moved; clients hold samples of few classes each.

    The network is trained briefly on one half of the data, the metric is taken on the clients' parts of the other.
    """
    train, test, y_train, y_test = train_test_split(X, y, test_size=0.5, random_state=seed, stratify=y)
    scaler = StandardScaler().fit(train)
    network = MLPClassifier(hidden, solver="lbfgs", alpha=1e-5, max_iter=maxiter, random_state=seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # it is to be improved, not to have converged
        network.fit(scaler.transform(train), y_train)
    parts = by_classes(y_test, n_clients, share, np.random.default_rng(seed))
    last = np.concatenate([network.coefs_[-1].ravel(), network.intercepts_[-1]])
    n_out, values = len(network.intercepts_[-1]), scaler.transform(test)
    for W, b in zip(network.coefs_[:-1], network.intercepts_[:-1], strict=True):
        values = np.maximum(values @ W + b, 0)

    kinds = len(network.classes_)
    y_test = np.searchsorted(network.classes_, y_test)

    def loss(rows: Array, P: Array) -> Array:
        moved = last + width * (2 * P - 1)
        weights = moved[:, :-n_out].reshape(len(P), -1, n_out)
        guesses = _decided(values[rows] @ weights + moved[:, None, -n_out:])
        return np.array([1 - macro(name, y_test[rows], guess, kinds) for guess in guesses])

    return Problem([partial(loss, rows) for rows in parts], np.full(len(last), 0.5))


def _decided(logits: Array) -> Array:
    """The class of the largest output, or, with a single one, whether it is positive."""
    return np.asarray(logits[..., 0] > 0, int) if logits.shape[-1] == 1 else np.asarray(logits.argmax(-1))


def macro(name: str, y: Array, guess: Array, n_classes: int) -> float:
    """Mean of a metric over the classes that occur, as scikit-learn has it; 0 where it divides by 0."""
    table = np.bincount(y * n_classes + guess, minlength=n_classes**2).reshape(n_classes, n_classes)
    right, true, guessed = np.diag(table), table.sum(1), table.sum(0)
    over = {"precision": guessed, "recall": true, "Jaccard": true + guessed - right, "F1": (true + guessed) / 2}[name]
    return float((right / np.maximum(over, 0.5))[true + guessed > 0].mean())


def by_classes(y: Array, n_clients: int, share: float, rng: np.random.Generator) -> list[Array]:
    """Rows of clients that hold the share of the classes each, every class split evenly over its holders."""
    classes = np.unique(y)
    each = max(1, round(share * len(classes)))
    turns = np.concatenate([rng.permutation(len(classes)) for _ in range(-(-n_clients * each // len(classes)))])
    held = turns[: n_clients * each].reshape(n_clients, each)
    rows: list[list[Array]] = [[] for _ in range(n_clients)]
    for k, label in enumerate(classes):
        holders = np.flatnonzero((held == k).any(1))
        for client, part in zip(holders, np.array_split(rng.permutation(np.flatnonzero(y == label)), len(holders)),
                                strict=True):  # fmt: skip
            rows[client].append(part)
    return [np.sort(np.concatenate(parts)) for parts in rows]
