"""The particle simulator's step compiled by Numba; formulas and meaning of all arguments are those of
`_mpm_arrays` and `_mpm_laws`.

All kernels stand in one file: Numba's cache on disk (beside Python's own, in ``__pycache__``) is renewed when a file
changes, and does not see that a function of another file did.
"""

# mypy: allow-untyped-defs
# Numba infers the types of what it compiles.

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numba
import numpy as np

from steepest.physics._mpm_arrays import WALL
from steepest.physics._mpm_laws import (
    ELASTIC,
    NEWTONIAN,
    NON_NEWTONIAN,
    SAND,
    SMALLEST,
)

__all__ = ["advance_2d", "advance_3d"]


def _cached(function: Callable[..., Any]) -> Any:
    try:
        return numba.njit(cache=True, error_model="numpy")(function)
    except RuntimeError:  # no folder for the cache can be written to
        return _jit(function)


_jit = numba.njit(error_model="numpy")


def advance_2d(*arguments: Any) -> int:
    """Advance points of the plane in place; give the number of steps done, fewer where a point left the grid."""
    n = arguments[3]
    return int(_steps_2d(np.empty((n + 1, n + 1, 3)), np.empty((2, 3)), *arguments))


def advance_3d(*arguments: Any) -> int:
    """Advance points of space in place; give the number of steps done, fewer where a point left the grid."""
    n = arguments[3]
    return int(
        _steps_3d(np.empty((n + 1, n + 1, n + 1, 4)), np.empty((8, 3, 3)), np.empty(3, dtype=np.int64), *arguments)
    )


@_jit
def _returned(material, k, d, e0, e1, e2, volume):
    """Principal logarithmic strains after the return mapping; in the plane e2 is 0 and stays so."""
    mean = (e0 + e1 + e2) / d
    e0, e1, e2 = e0 - mean, e1 - mean, (e2 - mean if d == 3 else 0.0)
    if material == SAND:
        if volume >= 0:
            return 0.0, 0.0, 0.0
        mean = volume / d
    norm = math.sqrt(e0 * e0 + e1 * e1 + e2 * e2)
    scale = 1.0
    if material == NON_NEWTONIAN:
        shear = math.sqrt(2.0) * k.mu * norm
        excess = shear - k.yield_stress
        if excess > 0:
            root = 2 * excess / (k.viscosity + math.sqrt(k.viscosity**2 + 4 * k.mu * k.dt * excess))
            scale = (k.yield_stress + k.viscosity * root) / shear
    else:
        if material == SAND:
            limit = -volume * k.friction * (d * k.lam + 2 * k.mu) / (2 * k.mu)
        else:
            limit = k.yield_stress / (math.sqrt(6.0) * k.mu)
        if norm > limit:
            scale = limit / norm
    return mean + scale * e0, mean + scale * e1, (mean + scale * e2 if d == 3 else 0.0)


@_jit
def _principal(material, k, d, s0, s1, s2, volume):
    """Principal stresses and new singular values from those of the trial; s2 is 1 in the plane."""
    if material == ELASTIC:
        J = s0 * s1 * s2
        bulk = k.lam * (J - 1) * J
        double = 2 * k.mu
        return (double * (s0 - 1) * s0 + bulk, double * (s1 - 1) * s1 + bulk, double * (s2 - 1) * s2 + bulk, s0, s1, s2)
    e0, e1, e2 = math.log(max(s0, SMALLEST)), math.log(max(s1, SMALLEST)), math.log(max(s2, SMALLEST))
    e0, e1, e2 = _returned(material, k, d, e0, e1, e2, volume)
    bulk = k.lam * (e0 + e1 + e2)
    double = 2 * k.mu
    return (double * e0 + bulk, double * e1 + bulk, double * e2 + bulk, math.exp(e0), math.exp(e1), math.exp(e2))


# ---------------------------------------------------------------------------------------------------------- plane


@_jit
def _respond_2d(material, k, p, C, F, J):
    """Advance F[p] and J[p]; give tau as (xx, xy, yy)."""
    dt = k.dt
    if material == NEWTONIAN:
        J[p] = max(J[p] * (1 + dt * (C[p, 0, 0] + C[p, 1, 1])), SMALLEST)
        pull, mu = J[p] * k.bulk * (J[p] - 1), J[p] * k.viscosity
        return 2 * mu * C[p, 0, 0] + pull, mu * (C[p, 0, 1] + C[p, 1, 0]), 2 * mu * C[p, 1, 1] + pull
    a, b, c, d = 1 + dt * C[p, 0, 0], dt * C[p, 0, 1], dt * C[p, 1, 0], 1 + dt * C[p, 1, 1]
    if material == SAND:
        J[p] *= max(a * d - b * c, SMALLEST)
    f00, f01 = a * F[p, 0, 0] + b * F[p, 1, 0], a * F[p, 0, 1] + b * F[p, 1, 1]
    f10, f11 = c * F[p, 0, 0] + d * F[p, 1, 0], c * F[p, 0, 1] + d * F[p, 1, 1]
    # F = q R(α) + r (reflection): σ = q ± r, and twice the angle of the first left singular vector from F F^T
    q = 0.5 * math.hypot(f00 + f11, f10 - f01)
    r = 0.5 * math.hypot(f00 - f11, f10 + f01)
    s0, s1 = q + r, q - r
    x, y = 0.5 * (f00 * f00 + f01 * f01 - f10 * f10 - f11 * f11), f00 * f10 + f01 * f11
    length = math.hypot(x, y)
    cos2, sin2 = (x / length, y / length) if length > 0 else (1.0, 0.0)
    t0, t1, _, n0, n1, _ = _principal(material, k, C.shape[1], s0, s1, 1.0, math.log(J[p]) if material == SAND else 0.0)
    mean, half = 0.5 * (t0 + t1), 0.5 * (t0 - t1)
    if material == ELASTIC:
        F[p, 0, 0], F[p, 0, 1], F[p, 1, 0], F[p, 1, 1] = f00, f01, f10, f11
        J[p] = s0 * s1
    else:
        cos = math.sqrt(0.5 * (1 + abs(cos2)))
        sin = 0.5 * sin2 / cos
        if cos2 < 0:
            cos, sin = sin, cos
        v0, v1 = cos * f00 + sin * f10, cos * f01 + sin * f11  # F^T u = σ0 v
        size = math.hypot(v0, v1)
        v0, v1 = (v0 / size, v1 / size) if size > 0 else (1.0, 0.0)
        F[p, 0, 0], F[p, 0, 1] = n0 * cos * v0 + n1 * sin * v1, n0 * cos * v1 - n1 * sin * v0
        F[p, 1, 0], F[p, 1, 1] = n0 * sin * v0 - n1 * cos * v1, n0 * sin * v1 + n1 * cos * v0
        if material != SAND:
            J[p] = n0 * n1
    return mean + half * cos2, half * sin2, mean - half * cos2


@_jit
def _spline(position, w):
    """Fill the three weights of a quadratic B-spline; give the first node and the distance to it, in cells."""
    base = int(position - 0.5)
    f = position - base
    w[0], w[1], w[2] = 0.5 * (1.5 - f) ** 2, 0.75 - (f - 1) ** 2, 0.5 * (f - 0.5) ** 2
    return base, f


@_jit
def _against_wall(velocity, node, n):
    """Let the velocity across a wall only lead away from it."""
    if node <= WALL:
        return max(velocity, 0.0)
    if node >= n - WALL:
        return min(velocity, 0.0)
    return velocity


@_cached
def _steps_2d(grid, weights, steps, material, sticky, n, gravity, k, mass, volume, x, v, C, F, J):
    dt, h = k.dt, 1.0 / n
    wx, wy = weights[0], weights[1]
    for done in range(steps):
        grid[:] = 0.0
        for p in range(len(x)):
            if not (1 <= x[p, 0] * n <= n - 1 and 1 <= x[p, 1] * n <= n - 1):
                return done
        for p in range(len(x)):
            xx, xy, yy = _respond_2d(material, k, p, C, F, J)
            m, pull = mass[p], -4.0 * n * n * dt * volume[p]
            a00, a01 = m * C[p, 0, 0] + pull * xx, m * C[p, 0, 1] + pull * xy
            a10, a11 = m * C[p, 1, 0] + pull * xy, m * C[p, 1, 1] + pull * yy
            bx, fx = _spline(x[p, 0] * n, wx)
            by, fy = _spline(x[p, 1] * n, wy)
            px, py = m * v[p, 0], m * v[p, 1]
            for i in range(3):
                rx = (i - fx) * h
                for j in range(3):
                    ry, w = (j - fy) * h, wx[i] * wy[j]
                    grid[bx + i, by + j, 0] += w * m
                    grid[bx + i, by + j, 1] += w * (px + a00 * rx + a01 * ry)
                    grid[bx + i, by + j, 2] += w * (py + a10 * rx + a11 * ry)
        for i in range(n + 1):
            for j in range(n + 1):
                if grid[i, j, 0] > 0:
                    grid[i, j, 1] = grid[i, j, 1] / grid[i, j, 0] + dt * gravity[0]
                    grid[i, j, 2] = grid[i, j, 2] / grid[i, j, 0] + dt * gravity[1]
                    if not sticky:
                        grid[i, j, 1] = _against_wall(grid[i, j, 1], i, n)
                        grid[i, j, 2] = _against_wall(grid[i, j, 2], j, n)
                    elif min(i, j) <= WALL or max(i, j) >= n - WALL:
                        grid[i, j, 1:] = 0.0
        for p in range(len(x)):
            bx, fx = _spline(x[p, 0] * n, wx)
            by, fy = _spline(x[p, 1] * n, wy)
            vx = vy = c00 = c01 = c10 = c11 = 0.0
            for i in range(3):
                rx = (i - fx) * h
                for j in range(3):
                    ry, w = (j - fy) * h, wx[i] * wy[j]
                    ux, uy = w * grid[bx + i, by + j, 1], w * grid[bx + i, by + j, 2]
                    vx, vy = vx + ux, vy + uy
                    c00, c01 = c00 + ux * rx, c01 + ux * ry
                    c10, c11 = c10 + uy * rx, c11 + uy * ry
            s = 4.0 * n * n
            v[p, 0], v[p, 1] = vx, vy
            C[p, 0, 0], C[p, 0, 1], C[p, 1, 0], C[p, 1, 1] = s * c00, s * c01, s * c10, s * c11
            x[p, 0] += dt * vx
            x[p, 1] += dt * vy
    return steps


# ---------------------------------------------------------------------------------------------------------- space


@_jit
def _rotate(A, V, p, q):
    """One Jacobi rotation: zero A[p, q] of a symmetric matrix and turn the columns p and q of V."""
    if A[p, q] == 0.0:
        return
    theta = 0.5 * (A[q, q] - A[p, p]) / A[p, q]
    t = math.copysign(1.0, theta) / (abs(theta) + math.sqrt(1 + theta * theta))
    c = 1 / math.sqrt(1 + t * t)
    s = t * c
    r = 3 - p - q
    A[p, p], A[q, q] = A[p, p] - t * A[p, q], A[q, q] + t * A[p, q]
    A[p, q] = A[q, p] = 0.0
    A[p, r], A[q, r] = c * A[p, r] - s * A[q, r], s * A[p, r] + c * A[q, r]
    A[r, p], A[r, q] = A[p, r], A[q, r]
    for i in range(3):
        V[i, p], V[i, q] = c * V[i, p] - s * V[i, q], s * V[i, p] + c * V[i, q]


@_jit
def _svd_3d(F, A, U, V, sigma):
    """Fill U, sigma, V with F = U diag(sigma) V^T by rotations: V from F^T F, columns of U from F V by Gram-Schmidt."""
    for i in range(3):
        for j in range(3):
            A[i, j] = F[0, i] * F[0, j] + F[1, i] * F[1, j] + F[2, i] * F[2, j]
            V[i, j] = 1.0 if i == j else 0.0
    for _ in range(6):
        if abs(A[0, 1]) + abs(A[0, 2]) + abs(A[1, 2]) <= 1e-18 * (A[0, 0] + A[1, 1] + A[2, 2]):
            break
        for p in range(2):
            for q in range(p + 1, 3):
                _rotate(A, V, p, q)
    for i in range(2):  # descending, swaps keep det V = 1
        for j in range(i + 1, 3):
            if A[j, j] > A[i, i]:
                A[i, i], A[j, j] = A[j, j], A[i, i]
                for r in range(3):
                    V[r, i], V[r, j] = V[r, j], -V[r, i]
    for j in range(2):
        for r in range(3):
            U[r, j] = F[r, 0] * V[0, j] + F[r, 1] * V[1, j] + F[r, 2] * V[2, j]
        if j == 1:
            along = U[0, 0] * U[0, 1] + U[1, 0] * U[1, 1] + U[2, 0] * U[2, 1]
            for r in range(3):
                U[r, 1] -= along * U[r, 0]
        sigma[j] = math.sqrt(U[0, j] ** 2 + U[1, j] ** 2 + U[2, j] ** 2)
        if sigma[j] < 1e-12:  # any unit vector across the one before
            least = 0
            for r in range(1, 3):
                if j == 0 or abs(U[r, 0]) < abs(U[least, 0]):
                    least = r
            for r in range(3):
                U[r, j] = (1.0 if r == least else 0.0) - (U[least, 0] * U[r, 0] if j == 1 else 0.0)
        size = math.sqrt(U[0, j] ** 2 + U[1, j] ** 2 + U[2, j] ** 2)
        for r in range(3):
            U[r, j] /= size
    sigma[2] = 0.0
    for r in range(3):
        a, b = (r + 1) % 3, (r + 2) % 3
        U[r, 2] = U[a, 0] * U[b, 1] - U[b, 0] * U[a, 1]
        sigma[2] += U[r, 2] * (F[r, 0] * V[0, 2] + F[r, 1] * V[1, 2] + F[r, 2] * V[2, 2])


@_jit
def _respond_3d(material, k, C, F, J, p, tau, trial, A, U, V, sigma):
    """Advance F[p] and J[p]; fill tau (3, 3). The last five arrays are scratch."""
    dt = k.dt
    if material == NEWTONIAN:
        J[p] = max(J[p] * (1 + dt * (C[p, 0, 0] + C[p, 1, 1] + C[p, 2, 2])), SMALLEST)
        for i in range(3):
            for j in range(3):
                tau[i, j] = J[p] * k.viscosity * (C[p, i, j] + C[p, j, i])
            tau[i, i] += J[p] * k.bulk * (J[p] - 1)
        return
    for i in range(3):
        for j in range(3):
            trial[i, j] = F[p, i, j] + dt * (
                C[p, i, 0] * F[p, 0, j] + C[p, i, 1] * F[p, 1, j] + C[p, i, 2] * F[p, 2, j]
            )
            A[i, j] = dt * C[p, i, j] + (1.0 if i == j else 0.0)
    if material == SAND:
        growth = (
            A[0, 0] * (A[1, 1] * A[2, 2] - A[1, 2] * A[2, 1])
            - A[0, 1] * (A[1, 0] * A[2, 2] - A[1, 2] * A[2, 0])
            + A[0, 2] * (A[1, 0] * A[2, 1] - A[1, 1] * A[2, 0])
        )
        J[p] *= max(growth, SMALLEST)
    _svd_3d(trial, A, U, V, sigma)
    t0, t1, t2, n0, n1, n2 = _principal(
        material, k, C.shape[1], sigma[0], sigma[1], sigma[2], math.log(J[p]) if material == SAND else 0.0
    )
    for i in range(3):
        for j in range(3):
            tau[i, j] = t0 * U[i, 0] * U[j, 0] + t1 * U[i, 1] * U[j, 1] + t2 * U[i, 2] * U[j, 2]
            if material == ELASTIC:
                F[p, i, j] = trial[i, j]
            else:
                F[p, i, j] = n0 * U[i, 0] * V[j, 0] + n1 * U[i, 1] * V[j, 1] + n2 * U[i, 2] * V[j, 2]
    if material != SAND:
        J[p] = n0 * n1 * n2


@_cached
def _steps_3d(grid, scratch, base, steps, material, sticky, n, gravity, k, mass, volume, x, v, C, F, J):
    dt, h = k.dt, 1.0 / n
    w, moment, tau, trial, A, U, V = scratch[0], scratch[1], scratch[2], scratch[3], scratch[4], scratch[5], scratch[6]
    f, sigma = scratch[7, 0], scratch[7, 1]
    for done in range(steps):
        for p in range(len(x)):
            for a in range(3):
                if not 1 <= x[p, a] * n <= n - 1:
                    return done
        grid[:] = 0.0
        for p in range(len(x)):
            _respond_3d(material, k, C, F, J, p, tau, trial, A, U, V, sigma)
            m, pull = mass[p], -4.0 * n * n * dt * volume[p]
            for a in range(3):
                base[a], f[a] = _spline(x[p, a] * n, w[a])
                for b in range(3):
                    moment[a, b] = m * C[p, a, b] + pull * tau[a, b]
            a00, a01, a02 = moment[0, 0], moment[0, 1], moment[0, 2]
            a10, a11, a12 = moment[1, 0], moment[1, 1], moment[1, 2]
            a20, a21, a22 = moment[2, 0], moment[2, 1], moment[2, 2]
            px, py, pz = m * v[p, 0], m * v[p, 1], m * v[p, 2]
            for i in range(3):
                rx = (i - f[0]) * h
                for j in range(3):
                    ry = (j - f[1]) * h
                    for q in range(3):
                        rz, weight = (q - f[2]) * h, w[0, i] * w[1, j] * w[2, q]
                        a, b, c = base[0] + i, base[1] + j, base[2] + q
                        grid[a, b, c, 0] += weight * m
                        grid[a, b, c, 1] += weight * (px + a00 * rx + a01 * ry + a02 * rz)
                        grid[a, b, c, 2] += weight * (py + a10 * rx + a11 * ry + a12 * rz)
                        grid[a, b, c, 3] += weight * (pz + a20 * rx + a21 * ry + a22 * rz)
        for i in range(n + 1):
            for j in range(n + 1):
                for q in range(n + 1):
                    if grid[i, j, q, 0] > 0:
                        grid[i, j, q, 1] = grid[i, j, q, 1] / grid[i, j, q, 0] + dt * gravity[0]
                        grid[i, j, q, 2] = grid[i, j, q, 2] / grid[i, j, q, 0] + dt * gravity[1]
                        grid[i, j, q, 3] = grid[i, j, q, 3] / grid[i, j, q, 0] + dt * gravity[2]
                        if not sticky:
                            grid[i, j, q, 1] = _against_wall(grid[i, j, q, 1], i, n)
                            grid[i, j, q, 2] = _against_wall(grid[i, j, q, 2], j, n)
                            grid[i, j, q, 3] = _against_wall(grid[i, j, q, 3], q, n)
                        elif min(i, j, q) <= WALL or max(i, j, q) >= n - WALL:
                            grid[i, j, q, 1:] = 0.0
        for p in range(len(x)):
            for a in range(3):
                base[a], f[a] = _spline(x[p, a] * n, w[a])
            vx = vy = vz = c00 = c01 = c02 = c10 = c11 = c12 = c20 = c21 = c22 = 0.0
            for i in range(3):
                rx = (i - f[0]) * h
                for j in range(3):
                    ry = (j - f[1]) * h
                    for q in range(3):
                        rz, weight = (q - f[2]) * h, w[0, i] * w[1, j] * w[2, q]
                        a, b, c = base[0] + i, base[1] + j, base[2] + q
                        ux, uy, uz = weight * grid[a, b, c, 1], weight * grid[a, b, c, 2], weight * grid[a, b, c, 3]
                        vx, vy, vz = vx + ux, vy + uy, vz + uz
                        c00, c01, c02 = c00 + ux * rx, c01 + ux * ry, c02 + ux * rz
                        c10, c11, c12 = c10 + uy * rx, c11 + uy * ry, c12 + uy * rz
                        c20, c21, c22 = c20 + uz * rx, c21 + uz * ry, c22 + uz * rz
            s = 4.0 * n * n
            v[p, 0], v[p, 1], v[p, 2] = vx, vy, vz
            C[p, 0, 0], C[p, 0, 1], C[p, 0, 2] = s * c00, s * c01, s * c02
            C[p, 1, 0], C[p, 1, 1], C[p, 1, 2] = s * c10, s * c11, s * c12
            C[p, 2, 0], C[p, 2, 1], C[p, 2, 2] = s * c20, s * c21, s * c22
            for a in range(3):
                x[p, a] += dt * v[p, a]
    return steps
