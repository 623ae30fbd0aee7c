"""What a cloud of samples must be: a floating-point tensor (n, *shape), and two of one kind."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from steepest.core.errors import kind_error, value_error

__all__ = ["check_pair", "check_samples"]


def check_samples(name: str, x: Any) -> None:
    """Raise unless `x` is a floating-point tensor with a dimension of samples."""
    if not isinstance(x, Tensor) or not x.is_floating_point():
        raise kind_error(name, "a floating-point tensor (n, *shape)", x)
    if x.ndim == 0 or len(x) == 0:
        raise value_error(name, "at least one sample (n, *shape)", x)


def check_pair(name: str, x: Any, other_name: str, other: Tensor, *, same_length: bool) -> None:
    """Raise unless `x` is a cloud that fits the cloud `other`: same dtype, device and shape of a sample."""
    check_samples(name, x)
    if x.dtype != other.dtype or x.device != other.device:
        raise kind_error(name, f"{other.dtype} on {other.device} as {other_name} is", f"{x.dtype} on {x.device}")
    if x.shape[1:] != other.shape[1:]:
        raise value_error(name, f"samples of {other_name}'s shape {tuple(other.shape[1:])}", x)
    if same_length and len(x) != len(other):
        raise value_error(name, f"as many samples as {other_name} ({len(other)})", x)


def as_rows(x: Tensor) -> Tensor:
    """(n, *shape) to (n, d)."""
    return x.reshape(len(x), -1)


def per_sample(t: Tensor, like: Tensor) -> Tensor:
    """(n,) to (n, 1, ..., 1), so that it multiplies (n, *shape)."""
    return t.reshape(-1, *([1] * (like.ndim - 1)))


def rows_of_squares(x: Tensor) -> Tensor:
    """Squared length of every sample (n,)."""
    return as_rows(x).square().sum(1)


def clamped(t: Tensor, margin: float) -> Tensor:
    """`t` kept a margin away from both ends of [0, 1]."""
    return torch.clamp(t, margin, 1 - margin) if margin else t
