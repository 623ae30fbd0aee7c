"""Surfaces and vector fields with a known truth: shapes, diffused fields, fields with chosen singularities, holes.

Diffused fields are made in two ways. `official_field` is the official code's: diffusion on the very graph and estimated
tangent planes that the method then uses. `diffused_field` diffuses on a sample several times denser with the surface's
true tangent planes, so that no method is tested on the operator that made its data.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy.spatial import ConvexHull, Delaunay

from steepest.core.errors import at_least, check, one_of
from steepest.core.random import numpy_generator
from steepest.geometry.connection import tangent_frames, vector_field_index
from steepest.geometry.graph import farthest_points, knn_graph
from steepest.manifold import vector_diffusion

__all__ = [
    "KINDS",
    "SHAPES",
    "SingularField",
    "Surface",
    "Zero",
    "cosine",
    "diffused_field",
    "find_zeros",
    "hole",
    "observe",
    "official_field",
    "relative_error",
    "singular_field",
    "surface",
]

Array = np.ndarray
SHAPES = ("sphere", "torus", "bumpy sphere", "Swiss roll")
KINDS = ("vortex", "source", "saddle")
MAJOR, MINOR = 2.0, 0.8  # radii of the torus
TURNS, GAP, INNER, HEIGHT = 2, 2.0, 1.5, 8.0  # the roll: windings, distance between them, first radius, width
CANDIDATES = 6  # random points that farthest-point sampling chooses one from


@dataclass(frozen=True)
class Surface:
    """A sample of a surface whose normals are known in closed form.

    Attributes
    ----------
    name : str
    points, normals : array (n, 3)
        In order of farthest-point sampling: the first m points are themselves an even sample.
    parameters : array (n, 2)
        Coordinates that are one-to-one on the surface cut open; for spheres the direction angles.
    """

    name: str
    points: Array
    normals: Array
    parameters: Array

    def __len__(self) -> int:
        return len(self.points)

    def first(self, n: int) -> Surface:
        """The coarser sample of the first `n` points."""
        return Surface(self.name, self.points[:n], self.normals[:n], self.parameters[:n])

    @functools.cached_property
    def frames(self) -> Array:
        """Orthonormal bases of the true tangent planes, oriented alike, (n, 3, 2)."""
        rows = np.arange(len(self))
        helper = np.zeros_like(self.normals)
        helper[rows, np.abs(self.normals).argmin(axis=1)] = 1
        first = np.cross(helper, self.normals)
        first /= np.linalg.norm(first, axis=1, keepdims=True)
        return np.stack([first, np.cross(self.normals, first)], axis=2)

    @property
    def diameter(self) -> float:
        """Length of the diagonal of the bounding box."""
        return float(np.linalg.norm(np.ptp(self.points, axis=0)))

    @functools.cached_property
    def faces(self) -> Array:
        """Triangles over the sample, (m, 3): for reading indices of fields, never shown to a method.

        Those whose corners see different sides of the surface (slivers along the rim of the roll) are left out.
        """
        if self.name in ("sphere", "bumpy sphere"):
            faces = ConvexHull(self.points / np.linalg.norm(self.points, axis=1, keepdims=True)).simplices
        elif self.name == "Swiss roll":
            faces = Delaunay(self.parameters).simplices
        else:
            faces = _periodic_triangles(self.parameters * (MAJOR, MINOR), 2 * math.pi * np.array([MAJOR, MINOR]))
        normals = self.normals[faces]
        return faces[(normals * np.roll(normals, 1, axis=1)).sum(axis=2).min(axis=1) > 0.2]

    def tangential(self, vectors: Array) -> Array:
        """Remove the normal part of vectors (..., n, 3)."""
        return vectors - np.einsum("...nd,nd->...n", vectors, self.normals)[..., None] * self.normals


def surface(name: str, n: int, random_state: int | np.random.Generator = 0) -> Surface:
    """Sample a surface by farthest points.

    Parameters
    ----------
    name : {"sphere", "torus", "bumpy sphere", "Swiss roll"}
        Unit sphere; torus of radii 2 and 0.8; a sphere of radius 1 + (sin 4x + sin 4y + sin 4z) / 10; a sheet rolled
        into two windings, 2 apart.
    n : int
        Points.
    random_state : int or Generator

    Examples
    --------
    >>> round(float(np.linalg.norm(surface("sphere", 50).points, axis=1).max()), 12)
    1.0
    """
    check("name", name, one_of(*SHAPES))
    check("n", n, at_least(4, integer=True))
    rng = numpy_generator(random_state)
    points, normals, parameters = _MAKERS[name](CANDIDATES * n, rng)
    order = farthest_points(points, n, random_state=rng)
    return Surface(name, points[order], normals[order], parameters[order])


def diffused_field(dense: Surface, n: int, time: float = 100.0, random_state: int | np.random.Generator = 0) -> Array:
    """Diffuse random unit tangent vectors on the dense sample; give the field there, (len(dense), 3).

    Parameters
    ----------
    dense : Surface
    n : int
        Points that methods will see. `time` is measured on their graph: on the dense one it is len(dense) / n times
        as long, because edges are shorter.
    time : float
        100 by default, the official code's.
    random_state : int or Generator
    """
    graph = knn_graph(dense.points, 10)
    return vector_diffusion(_unit_vectors(dense.frames, random_state), time * len(dense) / n, dense.frames, graph)


def official_field(s: Surface, time: float = 100.0, random_state: int | np.random.Generator = 0) -> Array:
    """Diffuse random unit tangent vectors on the neighbor graph of the sample, in estimated tangent planes, (n, 3)."""
    graph = knn_graph(s.points, 10)
    frames = tangent_frames(s.points, n_neighbors=15, dim=2, graph=graph).frames
    return vector_diffusion(_unit_vectors(frames, random_state), time, frames, graph)


def _unit_vectors(frames: Array, random_state: int | np.random.Generator) -> Array:
    angle = numpy_generator(random_state).uniform(0, 2 * math.pi, len(frames))
    return np.einsum("nda,na->nd", frames, np.stack([np.cos(angle), np.sin(angle)], axis=1))


@dataclass(frozen=True)
class SingularField:
    """A smooth field (n, 3) with a zero of known index at a known place."""

    vectors: Array
    place: Array
    index: int
    kind: str


def singular_field(
    s: Surface, kind: str, random_state: int | np.random.Generator = 0, *, even: bool = True
) -> SingularField:
    """Make a field with a vortex, a source or a saddle at a random place of the sphere or the torus.

    On the sphere it is the gradient of a linear or quadratic function, on the torus a sine of each angle along that
    angle's direction: of equal amplitudes where `even`, else the gradient of the sum of their cosines, which is weak
    along the long way around. Turned by 90 degrees in the tangent plane for the vortex. Mean squared length 1.
    """
    check("kind", kind, one_of(*KINDS))
    check("surface", s.name, one_of("sphere", "torus"))
    rng = numpy_generator(random_state)
    if s.name == "sphere":
        basis = np.linalg.qr(rng.standard_normal((3, 3)))[0]
        place = basis[:, 0]
        if kind == "saddle":
            gradient = s.points @ (basis * np.array([0.0, 1.0, -1.0])) @ basis.T
        else:
            gradient = -np.broadcast_to(place, s.points.shape)
    else:
        u0, v0 = rng.uniform(0, 2 * math.pi, 2)
        place = _torus(np.array([[u0, v0]]))[0][0]
        u, v = s.parameters.T
        along = np.stack([-np.sin(u), np.cos(u), 0 * u], axis=1)
        around = np.stack([-np.sin(v) * np.cos(u), -np.sin(v) * np.sin(u), np.cos(v)], axis=1)
        sign = -1 if kind == "saddle" else 1
        ways = (1.0, 1.0) if even else (MAJOR + MINOR * np.cos(v), MINOR)
        gradient = (np.sin(u - u0) / ways[0])[:, None] * along + sign * (np.sin(v - v0) / ways[1])[:, None] * around
    vectors = s.tangential(gradient)
    if kind == "vortex":
        vectors = np.cross(s.normals, vectors)
    vectors = vectors / np.sqrt((vectors**2).sum(axis=1).mean())
    return SingularField(vectors, place, -1 if kind == "saddle" else 1, kind)


def hole(points: Array, place: Array, radius: float) -> Array:
    """Which points lie within `radius` of a place, (n,) bool."""
    return np.linalg.norm(points - place, axis=1) < radius


@dataclass(frozen=True)
class Zero:
    """A zero of a field: where, and its index."""

    place: Array
    index: int


def find_zeros(s: Surface, vectors: Array) -> list[Zero]:
    """Zeros of a field: triangles of nonzero index, with the field interpolated linearly inside each.

    Examples
    --------
    >>> s = surface("sphere", 100)
    >>> sum(zero.index for zero in find_zeros(s, singular_field(s, "saddle").vectors))
    2
    """
    faces = s.faces
    index = vector_field_index(s.points, vectors, s.frames, faces)
    found = []
    for corners, value in zip(faces[index != 0], index[index != 0]):
        plane = s.frames[corners[0]]
        weights = np.linalg.lstsq(
            np.vstack([(vectors[corners] @ plane).T, np.ones(3)]), np.array([0.0, 0.0, 1.0]), rcond=None
        )[0]
        weights = np.clip(weights, 0, None)
        found.append(Zero(weights / weights.sum() @ s.points[corners], int(value)))
    return found


def observe(
    s: Surface, vectors: Array, labelled: Array, noise: float, random_state: int | np.random.Generator
) -> Array:
    """Noisy tangent vectors at the points `labelled` (indices or bool), rows of NaN elsewhere.

    `noise` is the standard deviation of each tangential component.
    """
    rng = numpy_generator(random_state)
    noisy = vectors + noise * s.tangential(rng.standard_normal(vectors.shape))
    seen = np.full_like(noisy, np.nan)
    seen[labelled] = noisy[labelled]
    return seen


def relative_error(found: Array, truth: Array) -> float:
    """Root of the summed squared errors over that of the squared truth."""
    return float(np.linalg.norm(found - truth) / np.linalg.norm(truth))


def cosine(found: Array, truth: Array) -> float:
    """Mean cosine of the angle between found and true vectors."""
    lengths = np.linalg.norm(found, axis=-1) * np.linalg.norm(truth, axis=-1)
    return float(np.mean((found * truth).sum(axis=-1) / np.maximum(lengths, 1e-300)))


# -------------------------------------------------------------------------------------------------------------- shapes


def _directions(n: int, rng: np.random.Generator) -> Array:
    x = rng.standard_normal((n, 3))
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def _angles(x: Array) -> Array:
    return np.stack([np.arctan2(x[:, 1], x[:, 0]), np.arccos(np.clip(x[:, 2], -1, 1))], axis=1)


def _sphere_sample(n: int, rng: np.random.Generator) -> tuple[Array, Array, Array]:
    x = _directions(n, rng)
    return x, x, _angles(x)


def _bumpy_sample(n: int, rng: np.random.Generator) -> tuple[Array, Array, Array]:
    x = _directions(n, rng)
    radius = 1 + np.sin(4 * x).sum(axis=1, keepdims=True) / 10
    slope = 0.4 * np.cos(4 * x)  # gradient of the radius in the direction; its part along x does not count
    slope = slope - (slope * x).sum(axis=1, keepdims=True) * x
    normals = x - slope / radius
    return radius * x, normals / np.linalg.norm(normals, axis=1, keepdims=True), _angles(x)


def _torus(parameters: Array) -> tuple[Array, Array]:
    u, v = parameters.T
    normals = np.stack([np.cos(v) * np.cos(u), np.cos(v) * np.sin(u), np.sin(v)], axis=1)
    ring = np.stack([np.cos(u), np.sin(u), 0 * u], axis=1)
    return MAJOR * ring + MINOR * normals, normals


def _torus_sample(n: int, rng: np.random.Generator) -> tuple[Array, Array, Array]:
    u, v = rng.uniform(0, 2 * math.pi, (2, 3 * n))
    keep = rng.uniform(size=3 * n) < (MAJOR + MINOR * np.cos(v)) / (MAJOR + MINOR)  # uniform in area
    parameters = np.stack([u, v], axis=1)[keep][:n]
    return (*_torus(parameters), parameters)


def _roll_sample(n: int, rng: np.random.Generator) -> tuple[Array, Array, Array]:
    fine = np.linspace(0, 2 * math.pi * TURNS, 4001)
    pitch = GAP / (2 * math.pi)
    speed = np.hypot(INNER + pitch * fine, pitch)
    length = np.concatenate([[0], np.cumsum((speed[1:] + speed[:-1]) / 2 * np.diff(fine))])
    along, across = rng.uniform(0, length[-1], n), rng.uniform(0, HEIGHT, n)
    turn = np.interp(along, length, fine)
    radius = INNER + pitch * turn
    points = np.stack([radius * np.cos(turn), across, radius * np.sin(turn)], axis=1)
    normals = np.stack(
        [pitch * np.sin(turn) + radius * np.cos(turn), 0 * turn, radius * np.sin(turn) - pitch * np.cos(turn)], axis=1
    )
    return points, normals / np.linalg.norm(normals, axis=1, keepdims=True), np.stack([along, across], axis=1)


_MAKERS: dict[str, Callable[[int, np.random.Generator], tuple[Array, Array, Array]]] = {
    "sphere": _sphere_sample,
    "torus": _torus_sample,
    "bumpy sphere": _bumpy_sample,
    "Swiss roll": _roll_sample,
}


def _periodic_triangles(places: Array, period: Array) -> Array:
    """Delaunay triangles of a sample of the flat torus: those of its nine copies whose center is in the middle one."""
    shifts = np.array([(i, j) for i in (0, -1, 1) for j in (0, -1, 1)]) * period
    places = np.mod(places, period)
    copies = (places + shifts[:, None]).reshape(-1, 2)
    triangles = Delaunay(copies).simplices
    center = copies[triangles].mean(axis=1)
    return triangles[((center >= 0) & (center < period)).all(axis=1)] % len(places)
