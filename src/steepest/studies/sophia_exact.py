"""Problems on which Sophia can be checked exactly: a transcription of its update, dense curvature, two toy landscapes.

Every function measures and returns numbers; the claims about them are in `studies.sophia`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.optim import Optimizer

from steepest.curvature.diagonal import gnb_diagonal, hessian_diagonal, sample_labels, sampled_label_loss
from steepest.optim import Sophia

__all__ = [
    "gnb_bias",
    "gradient_descent_steps",
    "hutchinson_bias",
    "largest_toy_step",
    "picture_steps",
    "sophia_steps",
    "update_difference",
]

# The Hessians of the toy problems are diagonal: a signed probe gives them exactly.
_EXACT: dict[str, Any] = {"estimator": "hutchinson", "distribution": "rademacher", "seed": 0, "compile": False}
_NEWTON: dict[str, Any] = {"betas": (0.0, 0.0), "gamma": 1.0, "weight_decay": 0.0, "update_each": 1, **_EXACT}


def update_difference(steps: int = 25) -> float:
    """Largest relative difference between our steps and a transcription in NumPy, both estimators."""
    return max(_hutchinson_difference(steps), _gnb_difference(steps))


def _transcribed(
    w: list[NDArray], m: list[NDArray], h: list[NDArray], g: list[NDArray], *, lr: float, gamma: float = 0.3
) -> None:
    for i in range(len(w)):
        m[i] = 0.965 * m[i] + (1 - 0.965) * g[i]
        w[i] = w[i] * (1 - lr * 0.1)
        w[i] = w[i] - lr * np.clip(m[i] / np.maximum(gamma * h[i], 1e-12), -1, 1)


def _hutchinson_difference(steps: int) -> float:
    """On sum a (w^2 / 2 + cos 2w), whose diagonal Hessian a (1 - 4 cos 2w) is negative in places."""
    rng = np.random.default_rng(0)
    shapes = [(3, 4), (5,), (2, 3, 2)]
    a = [rng.uniform(0.1, 3, s) for s in shapes]
    w = [rng.standard_normal(s) for s in shapes]
    params = [torch.from_numpy(x.copy()).requires_grad_() for x in w]
    scales = [torch.from_numpy(x) for x in a]
    optimizer = Sophia(params, 0.05, gamma=0.3, **_EXACT)
    m, h = ([np.zeros(s) for s in shapes] for _ in range(2))

    def loss() -> Tensor:
        return torch.stack([(c * (p * p / 2 + (2 * p).cos())).sum() for c, p in zip(scales, params)]).sum()

    worst = 0.0
    for step in range(steps):
        if optimizer.hessian_due():
            optimizer.update_hessian(loss())
        _descend(optimizer, loss())
        if step % 10 == 0:
            h = [0.99 * h[i] + 0.01 * a[i] * (1 - 4 * np.cos(2 * w[i])) for i in range(3)]
        _transcribed(w, m, h, [a[i] * (w[i] - 2 * np.sin(2 * w[i])) for i in range(3)], lr=0.05)
        worst = max(worst, _relative(params, w))
    return worst


def _gnb_difference(steps: int) -> float:
    """On softmax regression with logits x W + x^2 V + b, gradients by hand."""
    rng = np.random.default_rng(1)
    x, y = rng.standard_normal((12, 4)), rng.integers(3, size=12)
    features = [x, x * x, np.ones((12, 1))]
    w = [0.3 * rng.standard_normal((f.shape[1], 3)) for f in features]
    inputs = [torch.from_numpy(f) for f in features]
    params = [torch.from_numpy(v.copy()).requires_grad_() for v in w]
    optimizer = Sophia(params, 0.02, gamma=0.3, compile=False)
    m, h = ([np.zeros(v.shape) for v in w] for _ in range(2))

    def logits() -> Tensor:
        return torch.stack([f @ p for f, p in zip(inputs, params)]).sum(0)

    def by_hand(labels: NDArray) -> list[NDArray]:
        z = np.hstack(features) @ np.vstack(w)
        p = np.exp(z - z.max(1, keepdims=True))
        residual = p / p.sum(1, keepdims=True) - np.eye(3)[labels]
        return [f.T @ residual / len(x) for f in features]

    worst = 0.0
    for step in range(steps):
        if optimizer.hessian_due():
            labels = sample_labels(logits().detach(), torch.Generator().manual_seed(step)).numpy()
            h = [0.99 * a + 0.01 * 12 * g * g for a, g in zip(h, by_hand(labels))]
            optimizer.update_hessian(sampled_label_loss(logits(), torch.Generator().manual_seed(step)), batch_size=12)
        gradient = by_hand(y)
        _descend(optimizer, nn.functional.cross_entropy(logits(), torch.from_numpy(y)))
        _transcribed(w, m, h, gradient, lr=0.02)
        worst = max(worst, _relative(params, w))
    return worst


def _descend(optimizer: Optimizer, loss: Tensor) -> None:
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


def _relative(params: list[Tensor], w: list[NDArray]) -> float:
    return max(float(np.abs(p.detach().numpy() - v).max() / np.abs(v).max()) for p, v in zip(params, w))


def gnb_bias(draws: int, generator: torch.Generator) -> tuple[float, float]:
    """Softmax regression, 40 samples, 6 features, 5 classes: relative L2 error of the mean estimate against the dense
    Gauss-Newton diagonal, and the share of coordinates within 4 standard errors.
    """
    x = torch.randn(40, 6, generator=generator, dtype=torch.float64)
    w = torch.randn(6, 5, generator=generator, dtype=torch.float64).requires_grad_()
    p = (x @ w).detach().softmax(1)
    exact = (x * x).T @ (p * (1 - p)) / len(x)
    estimates = torch.stack(
        [gnb_diagonal(sampled_label_loss(x @ w, generator), [w], batch_size=40)[0] for _ in range(draws)]
    )
    error = estimates.mean(0) - exact
    within = error.abs() <= 4 * estimates.std(0) / math.sqrt(draws)
    return float(error.norm() / exact.norm()), float(within.double().mean())


def hutchinson_bias(draws: int, generator: torch.Generator) -> tuple[float, float]:
    """A tanh network with 30 parameters: relative L2 error of the mean estimate against the dense Hessian's diagonal,
    and the share of right signs where the diagonal exceeds a tenth of its maximum.
    """
    net = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 2, bias=False)).double()
    params = list(net.parameters())
    with torch.no_grad():
        for q in params:
            q.copy_(torch.randn(q.shape, generator=generator, dtype=q.dtype))
    inputs, targets = (torch.randn(20, n, generator=generator, dtype=torch.float64) for n in (3, 2))

    def loss_of(*values: Tensor) -> Tensor:
        named = dict(zip(dict(net.named_parameters()), values))
        return (torch.func.functional_call(net, named, (inputs,)) - targets).square().mean()

    blocks = torch.autograd.functional.hessian(loss_of, tuple(q.detach() for q in params))
    exact = torch.cat([blocks[i][i].reshape(q.numel(), -1).diagonal() for i, q in enumerate(params)])
    found = hessian_diagonal(loss_of(*params), params, n_samples=draws, distribution="gaussian", generator=generator)
    mean = torch.cat([f.flatten() for f in found])
    large = exact.abs() > 0.1 * exact.abs().max()
    return float((mean - exact).norm() / exact.norm()), float((mean.sign() == exact.sign())[large].double().mean())


def largest_toy_step(steps: int = 40) -> float:
    """Largest move of a coordinate, in units of lr * clip, on the 2-D picture and on a quartic."""
    worst = 0.0

    def follow(loss_of: Callable[[Tensor], Tensor], start: Tensor, **options: Any) -> None:
        nonlocal worst
        w = start.clone().requires_grad_()
        optimizer = Sophia([w], weight_decay=0.0, **_EXACT, **options)
        for _ in range(steps):
            before = w.detach().clone()
            if optimizer.hessian_due():
                optimizer.update_hessian(loss_of(w))
            _descend(optimizer, loss_of(w))
            group = optimizer.param_groups[0]
            worst = max(worst, float((w.detach() - before).abs().max()) / (group["lr"] * group["clip"]))

    follow(lambda w: _picture(w).sum(), _starts(), lr=0.1, update_each=1)
    follow(lambda w: (w**4).sum(), torch.linspace(-3, 3, 50, dtype=torch.float64), lr=0.01, clip=0.5)
    return worst


# ------------------------------------------------------- sum a_i (sqrt(1 + x_i^2) - 1), a log-spaced, 20 coordinates


def _coefficients(kappa: float) -> NDArray:
    return np.logspace(0, -math.log10(kappa), 20)


def sophia_steps(kappa: float, budget: int = 500) -> int:
    """Steps to 1e-6 of the initial value: full batch, b1 = b2 = 0, gamma = 1, lr 0.5, exact diagonal."""
    a = torch.from_numpy(_coefficients(kappa))
    x = torch.full_like(a, 2.0).requires_grad_()
    optimizer = Sophia([x], 0.5, **_NEWTON)

    def loss() -> Tensor:
        return (a * ((1 + x * x).sqrt() - 1)).sum()

    goal = 1e-6 * float(loss().detach())
    for step in range(1, budget + 1):
        optimizer.update_hessian(loss())
        _descend(optimizer, loss())
        if float(loss().detach()) <= goal:
            return step
    return budget


def gradient_descent_steps(kappa: float, budget: int) -> int:
    """Fewest steps over 24 step sizes from 0.1 to 10 times the inverse of the largest curvature."""
    a = _coefficients(kappa)
    lr = np.logspace(-1, 1, 24)[:, None] * a
    x = np.full((24, len(a)), 2.0)
    goal = 1e-6 * a.sum() * (math.sqrt(5) - 1)
    for step in range(1, budget + 1):
        x -= lr * x / np.sqrt(1 + x * x)
        if ((np.sqrt(1 + x * x) - 1) @ a <= goal).any():
            return step
    return budget


# ------------------------------------------------------------------------------------------------ the 2-D picture


def _picture(w: Tensor) -> Tensor:
    """8 (x-1)^2 (1.3 x^2 + 2x + 1) + (y-4)^2 / 2 at points (..., 2)."""
    x, y = w[..., 0], w[..., 1]
    return 8 * (x - 1) ** 2 * (1.3 * x * x + 2 * x + 1) + (y - 4) ** 2 / 2


def _starts() -> Tensor:
    """25 starts on a grid over [-1, 2] x [0, 8], (25, 2)."""
    x, y = torch.linspace(-1, 2, 5, dtype=torch.float64), torch.linspace(0, 8, 5, dtype=torch.float64)
    return torch.cartesian_prod(x, y)


def _arrived(w: Tensor) -> Tensor:
    """Whether points (..., 2) are within 1e-3 of the value of the minimum in whose basin they lie.

    The x-part, a quartic, has its two minima and the maximum between them at the roots of its derivative.
    """
    left, ridge, right = np.sort(np.roots(np.polyder(np.polymul([8, -16, 8], [1.3, 2, 1]))).real)
    here, there = (float(_picture(torch.tensor([x, 4.0], dtype=torch.float64))) for x in (left, right))
    return _picture(w) <= torch.where(w[..., 0] < ridge, here + 1e-3, there + 1e-3)


def picture_steps(budget: int = 300) -> dict[str, Tensor]:
    """Steps from each of the 25 starts until a minimum is reached, at the best of the same 12 learning rates."""
    rates = [0.001 * 2**i for i in range(12)]

    def fewest(make: Callable[[list[dict[str, Any]]], Any]) -> Tensor:
        params = [_starts().requires_grad_() for _ in rates]  # all starts and learning rates side by side
        optimizer = make([{"params": [p], "lr": lr} for p, lr in zip(params, rates)])
        steps = torch.full((len(rates), 25), float(budget))
        for step in range(1, budget + 1):
            if isinstance(optimizer, Sophia):
                optimizer.update_hessian(_picture(torch.stack(params)).sum())
            _descend(optimizer, _picture(torch.stack(params)).sum())
            arrived = _arrived(torch.stack(params).detach())
            steps = torch.where(arrived & (steps == budget), float(step), steps)
            if float(steps.min(0).values.max()) <= step:
                break
        return steps.min(0).values

    return {
        "Sophia": fewest(lambda groups: Sophia(groups, 0.1, **_NEWTON)),
        "gradient descent": fewest(lambda groups: torch.optim.SGD(groups, lr=0.1)),
        "Adam": fewest(lambda groups: torch.optim.Adam(groups, lr=0.1)),
        "SignGD": fewest(lambda groups: _SignGD(groups, {"lr": 0.1})),
    }


class _SignGD(Optimizer):
    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for p in group["params"]:
                p.sub_(p.grad.sign(), alpha=group["lr"])
