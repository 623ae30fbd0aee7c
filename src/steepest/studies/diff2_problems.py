"""Private learning problems of the DIFF2 study: logistic losses and a small network, with their per-sample gradients.

Every problem has private per-sample losses and a public term. It is judged by the squared norm of the true gradient
*and* by the objective, for noise can carry a bounded loss off to where gradients vanish.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy.optimize import minimize
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, softplus

__all__ = ["Problem", "logistic", "network", "real_sets", "synthetic"]


@dataclass(frozen=True)
class Problem:
    """Data of one client, a loss in the terms of `diff2`, and norms that bound it without a look at labels."""

    data: tuple[Tensor, ...]
    start: Tensor
    arguments: dict[str, Any]
    """``fun`` or ``per_sample_grad``, and ``public_term``."""
    value: Callable[[Tensor], Tensor]
    """The whole objective F, differentiable."""
    clip: float
    first_clip: float
    """Bound of the gradients at the start, which a run with a single restart needs no more than."""
    clip_difference: float

    def judge(self, x: Tensor) -> tuple[float, float]:
        """Squared norm of the gradient of F, and F."""
        x = x.detach().clone().requires_grad_(True)
        F = self.value(x)
        (g,) = torch.autograd.grad(F, x)
        return float(g @ g), float(F.detach())

    def fall(self) -> float:
        """``F(x_0) - min F``, with no privacy: how far there is to go."""

        def both(z: np.ndarray) -> tuple[float, np.ndarray]:
            x = torch.as_tensor(z, dtype=self.start.dtype).requires_grad_(True)
            F = self.value(x)
            (g,) = torch.autograd.grad(F, x)
            return float(F.detach()), g.double().numpy()

        found = minimize(both, self.start.double().numpy(), jac=True, method="L-BFGS-B", options={"maxiter": 500})
        return self.judge(self.start)[1] - float(found.fun)


def wells(x: Tensor) -> Tensor:
    """The nonconvex public term ``0.01 sum x^2 / (1 + x^2)``."""
    return 0.01 * (x**2 / (1 + x**2)).sum()


def nothing(x: Tensor) -> Tensor:
    """No public term: what has little curvature in the data is then slow to learn, as the theory has it."""
    return 0.0 * x.sum()


def ball(x: Tensor) -> Tensor:
    """A strongly convex public term, for the regime in which gradient descent needs few steps."""
    return 0.25 * (x**2).sum()


def _slopes(x: Tensor, a: Tensor) -> tuple[Tensor, Tensor]:
    return -torch.sigmoid(-(a @ x)), a


def logistic(a: Tensor, public: Callable[[Tensor], Tensor] = wells) -> Problem:
    """Logistic loss of rows that were multiplied with their labels (-1 or 1), all of norm at most 2."""
    return Problem(
        (a,),
        torch.zeros(a.shape[1], dtype=a.dtype),
        {"fun": None, "per_sample_grad": _slopes, "public_term": public},
        lambda x: softplus(-(a @ x)).mean() + public(x),
        clip=2.0,
        first_clip=1.0,
        clip_difference=0.5,
    )


def synthetic(
    n: int, d: int = 40, *, seed: int = 0, isotropic: bool = False, public: Callable[[Tensor], Tensor] = wells,
    scale: float = 0.5,
) -> Problem:  # fmt: skip
    """Features of scale 1/k (or all alike), rows of norm 2, labels by a logistic model of weights of size `scale`.

    The weights are drawn first: every n is a sample of one and the same population.
    """
    rng = np.random.default_rng(seed)
    weights = scale * rng.standard_normal(d)
    a = rng.standard_normal((n, d)) / (1.0 if isotropic else np.arange(1, d + 1))
    a *= 2 / np.linalg.norm(a, axis=1, keepdims=True)
    logits = a @ weights
    y = np.where(rng.random(n) < 1 / (1 + np.exp(-logits)), 1.0, -1.0)
    return logistic(torch.as_tensor(a * y[:, None], dtype=torch.float32), public)


def network(X: Tensor, y: Tensor, hidden: int = 16, seed: int = 0) -> Problem:
    """A network of one hidden layer of tanh units, binary cross-entropy; its parameters in one vector."""
    d = X.shape[1]
    sizes = [hidden * d, hidden, hidden, 1]
    rng = np.random.default_rng(seed)
    start = np.concatenate(
        [rng.standard_normal(sizes[0]) / math.sqrt(d), np.zeros(hidden), rng.standard_normal(hidden) / 4, np.zeros(1)]
    )

    def logit(x: Tensor, features: Tensor) -> Tensor:
        W, b, w, c = torch.split(x, sizes)
        return torch.tanh(features @ W.reshape(hidden, d).T + b) @ w + c.squeeze()

    def loss(x: Tensor, features: Tensor, label: Tensor) -> Tensor:
        return binary_cross_entropy_with_logits(logit(x, features), label)

    return Problem(
        (X, y),
        torch.as_tensor(start, dtype=X.dtype),
        {"fun": loss, "public_term": wells},
        lambda x: loss(x, X, y) + wells(x),
        clip=2.0,
        first_clip=2.0,
        clip_difference=1.0,
    )


def real_sets() -> dict[str, tuple[Tensor, Tensor]]:
    """Breast cancer and digits (zero against the rest), rows of norm 2, labels 0 and 1.

    Columns are divided by their largest values, which are taken as known; rows are normalized one by one.
    """
    from sklearn.datasets import load_breast_cancer, load_digits

    found = {}
    for name, (X, y) in (
        ("breast cancer", load_breast_cancer(return_X_y=True)),
        ("digits", load_digits(return_X_y=True)),
    ):
        X = X / np.maximum(np.abs(X).max(axis=0), 1e-12)
        X = X - 0.5
        X = 2 * X / np.linalg.norm(X, axis=1, keepdims=True)
        labels = y == 0 if name == "digits" else y
        found[name] = torch.as_tensor(X, dtype=torch.float32), torch.as_tensor(np.asarray(labels, dtype=np.float32))
    return found
