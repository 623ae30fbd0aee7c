"""Point clouds with known geometry."""

from __future__ import annotations

import numpy as np
from scipy import sparse

GOLDEN_ANGLE = np.pi * (3 - np.sqrt(5))


def fibonacci_sphere(n: int) -> np.ndarray:
    """Nearly even points on the unit sphere, (n, 3)."""
    i = np.arange(n) + 0.5
    z, angle = 1 - 2 * i / n, GOLDEN_ANGLE * i
    s = np.sqrt(1 - z**2)
    return np.stack([s * np.cos(angle), s * np.sin(angle), z], axis=1)


def random_sphere(n: int, seed: int = 0) -> np.ndarray:
    """Uniform random points on the unit sphere, (n, 3)."""
    X = np.random.default_rng(seed).standard_normal((n, 3))
    return X / np.linalg.norm(X, axis=1, keepdims=True)


def torus_grid(n_u: int, n_v: int, R: float = 2.0, r: float = 0.7) -> np.ndarray:
    """A torus of revolution, (n_u n_v, 3): u around the axis, v around the tube."""
    u, v = angles(n_u, n_v)
    rho = R + r * np.cos(v)
    return np.stack([rho * np.cos(u), rho * np.sin(u), r * np.sin(v)], axis=-1).reshape(-1, 3)


def clifford_torus(n_u: int, n_v: int) -> np.ndarray:
    """The flat torus in R^4, a regular grid, (n_u n_v, 4)."""
    u, v = angles(n_u, n_v)
    return np.stack([np.cos(u), np.sin(u), np.cos(v), np.sin(v)], axis=-1).reshape(-1, 4) / np.sqrt(2)


def swiss_roll(n: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Points on a rolled sheet (n, 3) and the angle of each (n,)."""
    rng = np.random.default_rng(seed)
    angle, height = 1.5 * np.pi * (1 + 2 * rng.random(n)), 10 * rng.random(n)
    return np.stack([angle * np.cos(angle), height, angle * np.sin(angle)], axis=1), angle


def mobius_strip(n_u: int, n_v: int) -> np.ndarray:
    """A strip with a half turn, (n_u n_v, 3)."""
    u = np.linspace(0, 2 * np.pi, n_u, endpoint=False)[:, None]
    v = np.linspace(-0.3, 0.3, n_v)[None]
    rho = 1 + v * np.cos(u / 2)
    return np.stack([rho * np.cos(u), rho * np.sin(u), v * np.sin(u / 2)], axis=-1).reshape(-1, 3)


def torus_faces(n_u: int, n_v: int) -> np.ndarray:
    """Triangles of a grid that closes in both directions, (2 n_u n_v, 3)."""
    i, j = np.divmod(np.arange(n_u * n_v), n_v)
    a, b = i * n_v + j, (i + 1) % n_u * n_v + j
    c, d = (i + 1) % n_u * n_v + (j + 1) % n_v, i * n_v + (j + 1) % n_v
    return np.concatenate([np.stack([a, b, c], axis=1), np.stack([a, c, d], axis=1)])


def angles(n_u: int, n_v: int) -> tuple[np.ndarray, np.ndarray]:
    u, v = (2 * np.pi * np.arange(n) / n for n in (n_u, n_v))
    return tuple(np.meshgrid(u, v, indexing="ij"))


def cycle_graph(n: int) -> sparse.csr_array:
    ones = np.ones(n)
    i = np.arange(n)
    forward = sparse.csr_array((ones, (i, (i + 1) % n)), shape=(n, n))
    return forward + forward.T
