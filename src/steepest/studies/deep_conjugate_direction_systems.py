"""Pressure systems that no network has seen: layouts of obstacles beside the empty box, three kinds of right sides."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from steepest.physics import poisson_matrix, random_obstacles
from steepest.studies.deep_conjugate_direction_smoke import smoke_frames

__all__ = ["KINDS", "LAYOUTS", "Grid", "grids", "smooth_sources"]

Array = NDArray[np.float64]
Mask = NDArray[np.bool_]

KINDS = ("white noise", "smooth sources", "smoke")
LAYOUTS = 4  # the empty box, and three with obstacles
OBSTACLES = 4  # in each
FRAMES = 25  # after which the divergence of the smoke is taken
BLOBS, WIDTH = 5, 0.07  # smooth sources: Gaussians of either sign, and their width as a part of the side


@dataclass(frozen=True)
class Grid:
    """A layout, its matrices, and its right-hand sides by kind, zero in solid cells."""

    fluid: Mask
    right_sides: dict[str, Array] = field(repr=False)

    @property
    def shape(self) -> tuple[int, ...]:
        """Cells along every axis."""
        return self.fluid.shape

    @cached_property
    def A(self) -> Any:
        """On all cells, with zero rows in solid ones."""
        return poisson_matrix(self.shape, ~self.fluid)

    @cached_property
    def reduced(self) -> Any:
        """On the fluid cells."""
        return poisson_matrix(self.shape, ~self.fluid, reduced=True)

    @property
    def inside(self) -> Mask:
        """Which of all cells are fluid."""
        return self.fluid.reshape(-1)

    @property
    def level(self) -> NDArray[np.int64]:
        """The sum of the indices of every fluid cell."""
        return np.indices(self.shape).sum(0)[self.fluid]


def grids(n: int, seed: int, n_layouts: int = LAYOUTS) -> Iterator[Grid]:
    """The empty box of n x n cells and the layouts of a seed, the same shapes at every n."""
    for layout in range(n_layouts):
        rng = np.random.default_rng([seed, layout])
        solid = random_obstacles((n, n), OBSTACLES if layout else 0, rng)
        yield Grid(~solid, _right_sides(~solid, rng))


def _right_sides(fluid: Mask, rng: np.random.Generator) -> dict[str, Array]:
    *_, frame = smoke_frames(fluid, FRAMES, rng)
    fields = {
        "white noise": rng.standard_normal(fluid.shape),
        "smooth sources": smooth_sources(fluid.shape, rng),
        "smoke": frame.right_side,
    }
    return {kind: (f * fluid).reshape(-1) for kind, f in fields.items()}


def smooth_sources(shape: tuple[int, ...], rng: np.random.Generator) -> Array:
    """A few smooth sources and sinks."""
    centers = np.stack(np.meshgrid(*(np.arange(k) + 0.5 for k in shape), indexing="ij"), -1)
    out = np.zeros(shape)
    for _ in range(BLOBS):
        middle = rng.uniform(0.1, 0.9, len(shape)) * shape
        distance = np.linalg.norm(centers - middle, axis=-1) / (WIDTH * min(shape))
        out += rng.standard_normal() * np.exp(-(distance**2) / 2)
    return out
