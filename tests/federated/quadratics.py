"""Clients with quadratic losses, whose local work has a closed form."""

from __future__ import annotations

import numpy as np
import torch

from steepest.federated import FunctionClient, Reply

CENTERS = np.array([[-2.0, 1.0], [0.5, 3.0], [4.0, -1.0], [1.0, 0.0]])
TIMES = np.array([1.0, 0.5, 0.75, 0.2])
START = {"w": torch.zeros(2, dtype=torch.float64)}


def quadratic(center, rate=0.1, steps=3, n_samples=1, noise=0.0):
    """Gradient steps on ``|w - center|^2 / 2``: the model shrinks towards the center by (1 - rate)^steps."""
    c = torch.as_tensor(center, dtype=torch.float64)

    def fit(model, task):
        delta = ((1 - rate) ** steps - 1) * (model["w"] - c)
        if noise:
            draws = torch.Generator().manual_seed(task.seed)
            delta = delta + noise * torch.randn(delta.shape, generator=draws, dtype=delta.dtype)
        return Reply({"w": delta}, metrics={"steps": float(steps)})

    return FunctionClient(fit, n_samples)


def quadratics(centers=CENTERS, **options):
    return [quadratic(c, **options) for c in centers]
