"""Scenes that the particle study learns from: boxes and discs of five materials, and shapes it never sees.

A scene is a polygon (in space a prism over it) of random place, size, turn and initial velocity, simulated by
`steepest.physics.MPM`. What is drawn depends on the seed, the split and the scene's number alone, not on the material.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from steepest.core.errors import check, interval, one_of, positive
from steepest.core.random import child_seeds, numpy_generator
from steepest.physics._mpm_laws import MATERIALS
from steepest.physics.mpm import MPM, scatter_points

__all__ = ["MATERIALS", "SPLITS", "Setting", "simulator", "trajectories"]

Array = NDArray[np.float64]

SPLITS = {
    "training": ("box", "disc"),
    "validation": ("box", "disc"),
    "test": ("box", "disc"),
    "shapes": ("star", "triangle"),
    "fast": ("box", "disc"),
}
"""Shapes of each split; ``fast`` has the scenes of ``test`` at 1.5 times their initial velocity."""

FASTER = 1.5
DEPTH = 0.15  # of prisms


@dataclass(frozen=True)
class Setting:
    """What all scenes share; lengths in units of the box, times in seconds.

    Attributes
    ----------
    n_grid, n_points : int
        Cells on each axis; points of a scene.
    E : float
        Young's modulus, at density 1. With `dt` and `substeps` it decides how far apart the errors of constant velocity
        and of constant acceleration lie, and so what a number in a table means.
    yield_stress : float
        Of plasticine and the non-Newtonian fluid. At 20 both yield in impacts only, at 2 the fluid runs by its weight.
    gravity, speed : float
        Along the second axis; the largest initial speed.
    dt, substeps, n_frames
        Step, steps to a frame, frames.
    dim : int
    """

    n_grid: int = 32
    n_points: int = 1000
    E: float = 200.0
    yield_stress: float = 20.0
    gravity: float = 9.8
    speed: float = 2.0
    dt: float = 5e-4
    substeps: int = 10
    n_frames: int = 80
    dim: int = 2


@functools.lru_cache(maxsize=64)
def trajectories(
    material: str, split: str = "training", n: int = 16, seed: int = 0, setting: Setting = Setting()
) -> tuple[NDArray[np.float32], ...]:
    """Simulate n scenes; a second call with the same arguments gives the same arrays.

    Parameters
    ----------
    material : str
        One of `MATERIALS`.
    split : str
        One of `SPLITS`. Their draws are independent of each other, and the first scenes of many are those of few.
    n : int
    seed : int
    setting : Setting

    Returns
    -------
    tuple of n ndarray (n_frames, n_points, dim), float32, read-only

    Examples
    --------
    >>> (frames,) = trajectories("elastic", "test", 1, setting=Setting(n_points=50, n_frames=4))
    >>> frames.shape, frames.dtype
    ((4, 50, 2), dtype('float32'))
    """
    check("n", n, positive(integer=True))
    found = []
    for number in range(n):
        frames = simulator(material, split, number, seed, setting).run(setting.n_frames, setting.substeps)
        frames32 = frames.astype(np.float32)
        frames32.setflags(write=False)
        found.append(frames32)
    return tuple(found)


def simulator(
    material: str, split: str = "training", number: int = 0, seed: int = 0, setting: Setting = Setting()
) -> MPM:
    """Set up one scene, ready to run: sand between sticky walls, the others between slippery ones."""
    check("material", material, one_of(*MATERIALS))
    check("split", split, one_of(*SPLITS))
    check("number", number, interval(0, integer=True))
    drawn_as = "test" if split == "fast" else split
    stream = child_seeds(child_seeds(seed, len(SPLITS))[list(SPLITS).index(drawn_as)], number + 1)[number]
    rng = numpy_generator(stream)
    down = np.zeros(setting.dim)
    down[1] = -setting.gravity
    mpm = MPM(
        setting.dim,
        setting.n_grid,
        material,
        dt=setting.dt,
        gravity=down,
        E=setting.E,
        yield_stress=setting.yield_stress,
        walls="sticky" if material == "sand" else "slip",
    )
    kinds = SPLITS[split]
    radius = rng.uniform(0.12, 0.18)
    corners = _corners(kinds[number % len(kinds)], radius, rng)
    reach = np.abs(corners).max(0)
    wall = 3 / setting.n_grid + 1e-9
    center = rng.uniform(wall + reach, 1 - wall - reach)
    direction = rng.standard_normal(setting.dim)
    speed = setting.speed * rng.random() * (FASTER if split == "fast" else 1.0)
    low, high = center - reach, center + reach
    volume = _area(corners)
    if setting.dim == 3:
        low, high, volume = np.append(low, 0.5 - DEPTH / 2), np.append(high, 0.5 + DEPTH / 2), volume * DEPTH
    points = scatter_points(setting.n_points, low, high, lambda x: _inside(x[:, :2] - center, corners), seed=rng)
    mpm.add_points(points, speed * direction / np.linalg.norm(direction), volume=volume / setting.n_points)
    return mpm


def _corners(kind: str, radius: float, rng: np.random.Generator) -> Array:
    """Corners of a polygon about the origin, in order, within `radius`."""
    n = {"box": 4, "disc": 48, "star": 10, "triangle": 3}[kind]
    angles = 2 * np.pi * np.arange(n) / n
    if kind == "box":
        half = rng.uniform(0.5, 1.1)  # of the angle between the diagonals
        angles = np.array([half, np.pi - half, np.pi + half, -half])
    reach = np.where(np.arange(n) % 2, 0.5, 1.0) if kind == "star" else np.ones(n)
    turned = angles + rng.uniform(0, 2 * np.pi)
    return radius * (reach * np.stack((np.cos(turned), np.sin(turned)))).T


def _area(corners: Array) -> float:
    x, y = corners.T
    return float(abs(x @ np.roll(y, -1) - y @ np.roll(x, -1)) / 2)


def _inside(points: Array, corners: Array) -> NDArray[np.bool_]:
    """Whether a ray to the right crosses the polygon's sides an odd number of times."""
    x, y = points.T[:, :, None]
    (ax, ay), (bx, by) = corners.T, np.roll(corners, -1, axis=0).T
    spans = (ay > y) != (by > y)
    with np.errstate(divide="ignore", invalid="ignore"):
        crossing = ax + (y - ay) * (bx - ax) / (by - ay)
    return (spans & (x < crossing)).sum(1) % 2 == 1
