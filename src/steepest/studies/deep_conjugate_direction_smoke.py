r"""Smoke that rises around obstacles: stable fluids in 2-D, whose pressure systems are right-hand sides of a study.

    u <- u(x - dt u(x)),  s <- s(x - dt u(x))            semi-Lagrangian, along the flow backwards
    u_vertical <- u_vertical + dt buoyancy s
    A p = -div u,  u <- u - grad p                       A of `poisson_matrix`: p = 0 beyond the open walls

Velocities live on faces, smoke and pressure in cells; a cell is one long, a step of time is one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from scipy.sparse.linalg import splu

from steepest.physics import poisson_matrix

__all__ = ["SmokeFrame", "divergence", "exact_pressure", "smoke_frames"]

Array = NDArray[np.float64]
Mask = NDArray[np.bool_]
BUOYANCY = 6e-4  # of the longest side, in cells a step squared: smoke crosses the box in some fifty steps
SOURCE = 0.09  # radius, as a part of the shortest side
UP, SIDE = 0, 1


@dataclass(frozen=True)
class SmokeFrame:
    """One step: smoke (n, m), -div u before the projection (n, m), pressure (n, m), div u after it (n, m)."""

    smoke: Array
    right_side: Array
    pressure: Array
    divergence: Array


def smoke_frames(
    fluid: Mask, n_frames: int, rng: np.random.Generator, solve: Callable[[Array], Array] | None = None
) -> Iterator[SmokeFrame]:
    """Step `n_frames` times from rest; smoke comes in through a disc near the lower wall.

    `solve` maps the right-hand side on all cells (n m,) to the pressure; by default by a sparse factorization.
    """
    solve = solve or exact_pressure(fluid)
    shape = fluid.shape
    centers = np.stack(np.meshgrid(*(np.arange(k) + 0.5 for k in shape), indexing="ij"))
    source = _disc(centers, shape, rng) & fluid
    smoke = np.zeros(shape)
    velocity = [np.zeros((shape[0] + 1, shape[1])), np.zeros((shape[0], shape[1] + 1))]
    faces = _open_faces(fluid)
    for _ in range(n_frames):
        smoke = np.where(source, 1.0, np.where(fluid, _carried(smoke, None, velocity), 0.0))
        velocity = [_carried(u, axis, velocity) for axis, u in enumerate(velocity)]
        lift = np.pad(smoke, ((1, 1), (0, 0)), mode="edge")
        velocity[UP] = velocity[UP] - BUOYANCY * max(shape) * (lift[1:] + lift[:-1]) / 2  # row 0 is the top
        velocity = [u * face for u, face in zip(velocity, faces, strict=True)]
        b = -divergence(velocity) * fluid
        p = solve(b.reshape(-1)).reshape(shape) * fluid
        edges = [((1, 1), (0, 0)), ((0, 0), (1, 1))]
        velocity = [(u - np.diff(np.pad(p, edges[axis]), axis=axis)) * faces[axis] for axis, u in enumerate(velocity)]
        yield SmokeFrame(smoke, b, p, divergence(velocity) * fluid)


def divergence(velocity: list[Array]) -> Array:
    """Flow out of every cell."""
    return np.diff(velocity[UP], axis=UP) + np.diff(velocity[SIDE], axis=SIDE)


def exact_pressure(fluid: Mask) -> Callable[[Array], Array]:
    """Factor the matrix of the fluid cells once; the function that solves with it."""
    inside = fluid.reshape(-1)
    factor = splu(poisson_matrix(fluid.shape, ~fluid, reduced=True).tocsc(), permc_spec="MMD_AT_PLUS_A")

    def solve(b: Array) -> Array:
        p = np.zeros(len(b))
        p[inside] = factor.solve(b[inside])
        return p

    return solve


def _disc(centers: Array, shape: tuple[int, ...], rng: np.random.Generator) -> Mask:
    middle = np.array([0.85 * shape[0], rng.uniform(0.35, 0.65) * shape[1]])
    return np.asarray(np.linalg.norm(centers - middle[:, None, None], axis=0) <= SOURCE * min(shape))


def _open_faces(fluid: Mask) -> list[Mask]:
    """Faces through which the fluid may flow: between fluid cells, and through the open walls."""
    up = np.pad(fluid, ((1, 1), (0, 0)), constant_values=True)
    side = np.pad(fluid, ((0, 0), (1, 1)), constant_values=True)
    return [up[:-1] & up[1:], side[:, :-1] & side[:, 1:]]


def _carried(field: Array, axis: int | None, velocity: list[Array]) -> Array:
    """Follow the flow backwards for one step from where the field's values lie; `axis` None: in cell centers."""
    offset = np.array([0.0 if axis == k else 0.5 for k in range(2)])
    places = np.stack(np.meshgrid(*(np.arange(k) for k in field.shape), indexing="ij")) + offset[:, None, None]
    flow = [_at(u, places, np.array([0.0 if k == own else 0.5 for k in range(2)])) for own, u in enumerate(velocity)]
    return _at(field, places - np.stack(flow), offset)


def _at(field: Array, places: Array, offset: Array) -> Array:
    values: Array = ndimage.map_coordinates(field, places - offset[:, None, None], order=1, mode="nearest")
    return values
