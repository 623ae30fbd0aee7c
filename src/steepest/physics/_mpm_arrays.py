"""The particle simulator's step in NumPy, all points at once: the twin of the compiled kernels, in any dimension.

    p_i = sum_p w_ip (m v + (m C - 4 n^2 dt V tau) (x_i - x_p)),  m_i = sum_p w_ip m      points to nodes x_i
    v_i = p_i / m_i + dt gravity,  then the walls
    v = sum_i w_ip v_i,  C = 4 n^2 sum_i w_ip v_i (x_i - x_p)^T,  x <- x + dt v            nodes to points

with quadratic B-splines w, nodes 1 / n apart and the Kirchhoff stress tau of `_mpm_laws` (hu2018moving).
"""

from __future__ import annotations

import itertools

import numpy as np
from numpy.typing import NDArray

from steepest.physics._mpm_laws import Array, Constants, respond

__all__ = ["WALL", "advance"]

WALL = 3  # cells


def advance(
    steps: int,
    material: int,
    sticky: bool,
    n_grid: int,
    gravity: Array,
    k: Constants,
    mass: Array,
    volume: Array,
    x: Array,
    v: Array,
    C: Array,
    F: Array,
    J: Array,
) -> int:
    """Advance the points in place; give the number of steps done, fewer than asked where a point left the grid."""
    d, side = x.shape[1], n_grid + 1
    corners = np.array(list(itertools.product(range(3), repeat=d)))  # (3^d, d)
    strides = side ** np.arange(d - 1, -1, -1)
    node = np.arange(side)
    below, above = node <= WALL, node >= n_grid - WALL
    for done in range(steps):
        if not ((x * n_grid >= 1) & (x * n_grid <= n_grid - 1)).all():
            return done
        tau, F[:], J[:] = respond(material, k, C, F, J)
        base = (x * n_grid - 0.5).astype(np.int64)
        f = x * n_grid - base
        w = np.stack((0.5 * (1.5 - f) ** 2, 0.75 - (f - 1) ** 2, 0.5 * (f - 0.5) ** 2), -1)  # (n, d, 3)
        weight = np.prod([w[:, a, corners[:, a]] for a in range(d)], axis=0)  # (n, 3^d)
        offset = (corners - f[:, None]) / n_grid  # (n, 3^d, d)
        where = ((base[:, None] + corners) @ strides).ravel()

        affine = mass[:, None, None] * C - (4 * n_grid**2 * k.dt) * volume[:, None, None] * tau
        momentum = weight[..., None] * (mass[:, None, None] * v[:, None] + offset @ affine.transpose(0, 2, 1))
        total = np.bincount(where, (weight * mass[:, None]).ravel(), side**d)
        velocity = np.stack([np.bincount(where, momentum[..., a].ravel(), side**d) for a in range(d)], -1)
        moving = total > 0
        velocity[moving] = velocity[moving] / total[moving, None] + k.dt * gravity
        _walls(velocity.reshape((side,) * d + (d,)), below, above, sticky)

        gathered = weight[..., None] * velocity[where].reshape(len(x), -1, d)
        v[:] = gathered.sum(1)
        C[:] = 4 * n_grid**2 * gathered.transpose(0, 2, 1) @ offset
        x += k.dt * v
    return steps


def _walls(velocity: Array, below: NDArray[np.bool_], above: NDArray[np.bool_], sticky: bool) -> None:
    d = velocity.shape[-1]
    for axis in range(d):
        moved = np.moveaxis(velocity, axis, 0)
        if sticky:
            moved[below | above] = 0.0
        else:
            moved[below, ..., axis] = np.maximum(moved[below, ..., axis], 0.0)
            moved[above, ..., axis] = np.minimum(moved[above, ..., axis], 0.0)
