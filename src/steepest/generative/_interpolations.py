"""Curved paths between a pair of points: those of variance-preserving diffusion and its relatives."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["CURVED", "SINGULAR"]


def _variance_preserving(t: Tensor) -> tuple[Tensor, Tensor]:
    """A and a' with the rates A = 19.9, B = 0.1 of Song et al. 2021."""
    a = torch.exp(-19.9 * (1 - t) ** 2 / 4 - 0.1 * (1 - t) / 2)
    return a, a * (19.9 * (1 - t) + 0.1) / 2


def _vp(t: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    a, slope = _variance_preserving(t)
    b = torch.sqrt(1 - a**2)
    return a, b, slope, -a * slope / b


def _subvp(t: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    a, slope = _variance_preserving(t)
    return a, 1 - a**2, slope, -2 * a * slope


def _spherical(t: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    b = torch.sqrt(1 - t**2)
    return t, b, torch.ones_like(t), -t / b


CURVED = {"vp": _vp, "subvp": _subvp, "spherical": _spherical}
"""t to (a, b, a', b') of ``x_t = a x1 + b x0``."""
SINGULAR = ("vp", "spherical")  # b' is infinite at t = 1
