"""Finite differences along one axis of a grid, of order 2 or 4 up to and including the edges.

Weights solve the moment equations Σ_k w_k k^m = m! δ_{m,d} for the d-th derivative on the offsets k (in steps).
Inside, the offsets are -p/2 .. p/2 for order p; at an edge that is not periodic they are the first p + d points,
which keeps the order.
"""

from __future__ import annotations

import functools
import math

import numpy as np
import torch

__all__ = ["axis_derivatives", "difference", "smallest_size"]


def smallest_size(order: int, periodic: bool) -> int:
    """Give the least number of points per axis: the longest stencil that will be laid on it."""
    return order + 1 if periodic else order + 2


def axis_derivatives(
    x: torch.Tensor, axis: int, order: int, periodic: bool, spacing: float | torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """First and second derivative of `x` along `axis`.

    Parameters
    ----------
    x : torch.Tensor
    axis : int
    order : int
        2 or 4.
    periodic : bool
    spacing : float or torch.Tensor
        The step, or the parameter's values s along the axis (one more than points where periodic): then the chain rule
        x_s = x'/s', x_ss = (x'' - x_s s'')/s'², where a dash is a difference in index.
    """
    first, second = (difference(x, axis, derivative, order, periodic) for derivative in (1, 2))
    if not isinstance(spacing, torch.Tensor):
        return first / spacing, second / spacing**2
    shape = [1] * x.ndim
    shape[axis] = -1
    slope, bend = (s.reshape(shape) for s in _parameter_derivatives(spacing, order, periodic))
    first = first / slope
    return first, (second - first * bend) / slope**2


def difference(x: torch.Tensor, axis: int, derivative: int, order: int, periodic: bool) -> torch.Tensor:
    """Differentiate `x` along `axis` in steps of one; same shape as `x`."""
    x = x.movedim(axis, 0)
    n, half = len(x), order // 2
    center = _weights(tuple(range(-half, half + 1)), derivative)
    if periodic:
        total = sum(w * x.roll(-k, 0) for k, w in zip(range(-half, half + 1), center, strict=True) if w)
        return torch.as_tensor(total).movedim(0, axis)
    inside = sum(w * x[half + k : n - half + k] for k, w in zip(range(-half, half + 1), center, strict=True) if w)
    length = order + derivative
    edge = torch.tensor(
        [_weights(tuple(range(-j, length - j)), derivative) for j in range(half)], dtype=x.dtype, device=x.device
    )
    start = torch.tensordot(edge, x[:length], 1)
    stop = (-1) ** derivative * torch.tensordot(edge, x[n - length :].flip(0), 1).flip(0)
    return torch.cat((start, torch.as_tensor(inside), stop)).movedim(0, axis)


def _parameter_derivatives(s: torch.Tensor, order: int, periodic: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Differences of the parameter; a periodic one has one value more, which closes its period."""
    if not periodic:
        return difference(s, 0, 1, order, False), difference(s, 0, 2, order, False)
    n, period = len(s) - 1, s[-1] - s[0]
    ramp = period / n * torch.arange(n, dtype=s.dtype, device=s.device)
    wave = s[:-1] - ramp  # periodic, and the ramp's derivatives are known
    return period / n + difference(wave, 0, 1, order, True), difference(wave, 0, 2, order, True)


@functools.lru_cache
def _weights(offsets: tuple[int, ...], derivative: int) -> tuple[float, ...]:
    powers = np.vander(np.array(offsets, dtype=float), increasing=True).T
    moments = np.zeros(len(offsets))
    moments[derivative] = math.factorial(derivative)
    exact = np.linalg.solve(powers, moments)
    return tuple((np.round(exact * 360) / 360).tolist())  # fractions over 2, 3, 12: rid them of round-off
