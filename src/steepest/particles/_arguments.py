"""Where a swarm starts: points and boxes as callers give them, and the normal draws that move it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from steepest.core.errors import kind_error, value_error
from steepest.core.random import torch_generator
from steepest.particles._weights import float_array

__all__ = ["Box", "Normals", "check_functions", "first_swarm", "point_of", "read_bounds"]

BLOCK = 1 << 15  # numbers drawn at a time
ALIGN = 16  # numbers that torch's generator draws at a time


@dataclass(frozen=True)
class Box:
    """Bounds low <= x <= high, each of shape (d,)."""

    low: Tensor
    high: Tensor

    def reflect(self, x: Tensor) -> None:
        """Fold coordinates that left the box back in, in place, as mirrors at its walls would."""
        outside = (x < self.low) | (x > self.high)
        if not bool(outside.any()):
            return
        width = self.high - self.low
        period = 2 * width
        phase = torch.remainder(x - self.low, torch.where(width > 0, period, 1))
        folded = self.low + (width - (phase - width).abs())
        folded = torch.maximum(torch.minimum(folded, self.high), self.low)
        torch.where(outside, folded, x, out=x)

    def uniform(self, n: int, generator: torch.Generator) -> Tensor:
        """Draw (n, d) points."""
        drawn = self.low.new_empty((n, len(self.low))).uniform_(generator=generator)
        return self.low + drawn * (self.high - self.low)


class Normals:
    """Standard normal draws for a swarm, in a buffer made once: on a CPU as many rows at a time as a cache holds.

    torch draws float32 normals several times faster than float64 ones; ``draw="float32"`` copies them into the
    particles' dtype.
    """

    def __init__(self, x: Tensor, generator: torch.Generator, draw: str | None) -> None:
        self.generator = generator
        rows = len(x)
        if x.device.type == "cpu":  # whole vectors of the generator: blocks then draw what one draw would
            rows = min(rows, max(1, BLOCK // (ALIGN * x.shape[1])) * ALIGN)
        self.buffer = x.new_empty((rows, x.shape[1]))
        narrow = draw == "float32" or (draw is None and x.device.type == "cpu")
        self.narrow = self.buffer.float() if narrow and x.dtype == torch.float64 else None

    def blocks(self, n: int) -> Iterator[tuple[slice, Tensor]]:
        """Draw for `n` particles: rows and their draws, which the next block overwrites."""
        for start in range(0, n, len(self.buffer)):
            rows = slice(start, min(start + len(self.buffer), n))
            drawn = self.buffer[: rows.stop - start]
            if self.narrow is None:
                drawn.normal_(generator=self.generator)
            else:
                drawn.copy_(self.narrow[: len(drawn)].normal_(generator=self.generator))
            yield rows, drawn

    def shake(self, x: Tensor, width: float) -> Tensor:
        """Add draws times `width` to the particles `x`, in place."""
        for rows, xi in self.blocks(len(x)):
            x[rows].add_(xi, alpha=width)
        return x


def check_functions(**functions: Any) -> None:
    """Refuse what is neither None nor callable; `fun` must be callable."""
    for name, value in functions.items():
        if not callable(value) and (value is not None or name == "fun"):
            raise kind_error(name, "callable", value)


def point_of(name: str, value: Any, dims: tuple[int, ...]) -> tuple[Tensor, bool]:
    """Copy a point or an ensemble; also say whether the caller speaks NumPy."""
    as_array = not isinstance(value, Tensor)
    if as_array:
        x = torch.from_numpy(float_array(name, value))
    else:
        x = value.detach().clone(memory_format=torch.contiguous_format)
    if not x.is_floating_point():
        raise kind_error(name, "of a floating dtype", value)
    if x.ndim not in dims or 0 in x.shape:
        raise value_error(name, "of shape " + " or ".join("(d,)" if k == 1 else "(N, d)" for k in dims), value)
    if not bool(torch.isfinite(x).all()):
        raise value_error(name, "finite", value)
    return x, as_array


def read_bounds(bounds: Any) -> tuple[Box, bool]:
    """Read SciPy's two forms of bounds, or a tensor of shape (d, 2); also say whether they speak NumPy."""
    if hasattr(bounds, "lb") and hasattr(bounds, "ub"):
        pairs: Any = np.stack(np.broadcast_arrays(np.atleast_1d(bounds.lb), np.atleast_1d(bounds.ub)), -1)
    elif isinstance(bounds, Tensor):
        pairs = bounds
    else:
        pairs = list(bounds)
        if not all(np.size(pair) == 2 and None not in tuple(np.ravel(np.array(pair, object))) for pair in pairs):
            raise value_error("bounds", "(low, high) pairs of finite numbers", bounds)
    found, as_array = point_of("bounds", pairs, (2,))
    if found.shape[1] != 2:
        raise value_error("bounds", "of shape (d, 2)", bounds)
    low, high = found.T.contiguous()
    if not bool((low <= high).all()):
        k = int((low > high).nonzero()[0])
        raise value_error("bounds", "pairs with low <= high", (float(low[k]), float(high[k])))
    return Box(low, high), as_array


def first_swarm(
    x0: Any, bounds: Any, n: int, std: float, seed: int | torch.Generator | None, draw: str | None
) -> tuple[Tensor, Box | None, torch.Generator, Normals, bool]:
    """Read or draw the first swarm."""
    box, as_array = (None, True) if bounds is None else read_bounds(bounds)
    if x0 is None:
        if box is None:
            raise value_error("x0", "given when bounds are not", None)
        generator = torch_generator(seed, box.low.device)
        x = box.uniform(n, generator)
        return x, box, generator, Normals(x, generator, draw), as_array
    x, as_array = point_of("x0", x0, (1, 2))
    d = x.shape[-1]
    if box is not None:
        if len(box.low) != d:
            raise value_error("bounds", f"{d} pairs like x0", bounds)
        box = Box(box.low.to(x), box.high.to(x))
        if not bool(((x >= box.low) & (x <= box.high)).all()):
            raise value_error("x0", "within bounds", x0)
    generator = torch_generator(seed, x.device)
    if x.ndim == 1:
        x = x.repeat(n, 1)
        normals = Normals(x, generator, draw)
        normals.shake(x, std)
        if box is not None:
            box.reflect(x)
        return x, box, generator, normals, as_array
    if len(x) < 2:
        raise value_error("x0", "an ensemble of at least 2 particles", x0)
    return x, box, generator, Normals(x, generator, draw), as_array
