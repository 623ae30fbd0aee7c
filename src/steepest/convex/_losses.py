r"""Losses of a real prediction f, summed over samples, with what their duals need.

    squared   1/2 (f - y)^2                  dual of nu:  nu y - nu^2 / 2
    logistic  log(1 + exp(-2 y f))           entropy of tau = y nu / 2 in [0, 1]
    hinge     max(0, 1 - y f)                tau = y nu in [0, 1]

In the dual, nu is minus the gradient with respect to f; it may be scaled by any number in [0, 1]. Against perturbations
of the inputs the worst prediction is known: y f sinks by s for the last two, \|f - y\| grows by s for the first.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["CURVATURE", "LOSSES", "conjugate", "dual_value", "gradient", "value"]

LOSSES = ("squared", "logistic", "hinge")
CURVATURE = {"squared": 1.0, "logistic": 1.0}
"""Largest second derivative in f."""


def value(loss: str, f: Tensor, y: Tensor, sink: Tensor | float = 0.0, *, width: float = 0.0) -> Tensor:
    """Loss of each sample, its prediction worsened by `sink` >= 0; `width` smooths the hinge's corner."""
    if loss == "squared":
        return 0.5 * ((f - y).abs() + sink) ** 2
    margin = y * f - sink
    if loss == "logistic":
        return torch.nn.functional.softplus(-2 * margin, threshold=1e9)
    slack = 1 - margin
    if width == 0:
        return slack.clamp(min=0)
    return torch.where(slack < width, slack.clamp(min=0) ** 2 / (2 * width), slack - width / 2)


def gradient(loss: str, f: Tensor, y: Tensor, *, width: float = 0.0) -> Tensor:
    """Derivative in f (of the hinge the one-sided one)."""
    if loss == "squared":
        return f - y
    if loss == "logistic":
        return -2 * y * torch.sigmoid(-2 * y * f)
    slack = 1 - y * f
    return -y * ((slack > 0).to(f) if width == 0 else (slack / width).clamp(0, 1))


def conjugate(loss: str, t: Tensor) -> Tensor:
    """Conjugate of the scalar loss at the multiplier t >= 0 of a worsened residual or margin (without its y part)."""
    if loss == "squared":
        return 0.5 * t * t
    if loss == "logistic":
        return torch.xlogy(t, t) + torch.xlogy(1 - t, 1 - t)
    return -t


def dual_value(loss: str, nu: Tensor, y: Tensor) -> Tensor:
    """Value of the dual at a feasible nu."""
    if loss == "squared":
        return (nu * y).sum() - conjugate(loss, nu).sum()
    share = nu * y / (2 if loss == "logistic" else 1)
    return -conjugate(loss, share.clamp(0, 1)).sum()
