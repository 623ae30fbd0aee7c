r"""Potential flow about a wing or a closed body: Morino's panel method, which makes the data of wing-pressure.

Perturbation potential φ' of a body with outward normal n in the stream U∞, zero inside (internal Dirichlet condition),
by Green's identity with constant source and doublet strengths per panel, at the panels' centers p_i:

    Σ_j μ_j Ω_ij / 4π + Σ_w μ_w Ω_iw / 4π = Σ_j σ_j B_ij / 4π
    B_ij = ∫_j dS / r                       Ω_ij = ∫_j n·(q - p_i) / r³ dS    (the solid angle, 2π for i = j)
    σ = n·U∞      μ = φ' outside      μ_w = μ_upper - μ_lower  (Kutta: the wake carries the jump of the trailing edge)

Then φ = U∞·x + μ is the potential on the surface, V² = g^{ij} ∂_i φ ∂_j φ in the metric g of the grid, CP = 1 - V²/U∞².
Göthert's rule for a stream of Mach number M, β = sqrt(1 - M²): the body with y and z scaled by β at the angle βα in
incompressible flow, and CP = (1 - V²/U∞²)/β².

Each quadrilateral is two flat triangles (a, b, c) and (a, c, d), for source and doublet alike, so a closed grid is a
closed polyhedron whose solid angles add up to exactly 4π. With r the distances from p to the corners, h_e the
distance in the plane to edge e (positive inside), z the height above the plane, T the triangle's area:

    B = Σ_e h_e ln((r_1 + r_2 + L_e)/(r_1 + r_2 - L_e)) + z Ω                               (Ω has the sign of -z)
    tan(Ω/2) = -2 T z / (r_a r_b r_c + (a·b) r_c + (b·c) r_a + (c·a) r_b)                   (a, b, c seen from p)

It stands in for the Navier-Stokes solutions and measurements of hu2024incorporating. Departures from the usual panel
code: (1) the potential is linear in U∞, so two right-hand sides serve all angles of attack. (2) The mirror image of a
panel at p is the panel at the mirror image of p: only points are reflected. (3) Where the surface goes on (as its
image across y = 0, or over a seam where first and last row or column meet) differences are central, elsewhere at
edges one-sided.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from steepest.core.errors import SteepestWarning, boolean, check, interval, kind_error, positive, value_error

__all__ = ["FlowWarning", "panel_method"]

Array = NDArray[np.float64]

BLOCK = 16_384  # pairs of point and panel at a time: some thirty arrays of this size stay in the cache
MIRROR = np.array([1.0, -1.0, 1.0])


class FlowWarning(SteepestWarning):
    """Conditions outside those for which attached, shock-free potential flow is a model."""


def panel_method(
    P: ArrayLike,
    alpha: float | Sequence[float] | Array,
    mach: float = 0.0,
    *,
    symmetric: bool = True,
    kutta: bool = True,
    wake_length: float = 50.0,
    return_info: bool = False,
) -> Any:
    """Pressure coefficient on the panels of a surface grid.

    Parameters
    ----------
    P : array (n_u, n_v, 3)
        Corners of the panels, r_u × r_v pointing out of the body. For a wing u runs from the lower trailing edge about
        the leading edge to the upper trailing edge, v from root to tip (+y); x downstream, z up. At least 4 × 4.
    alpha : float or sequence of float
        Angles of attack in degrees. All of one Mach number share one factorization and two right-hand sides.
    mach : float
        Free-stream Mach number in [0, 1); Göthert's rule, sound up to about 0.6.
    symmetric : bool
        Add the mirror image in the plane y = 0 (half of a wing is given).
    kutta : bool
        Shed a wake from the trailing edge, where first and last row of `P` meet. False for a body without lift.
    wake_length : float
        Length of the wake, straight along x, in chords of the longest section (the root, where a wing tapers).
    return_info : bool
        Return a dict as well.

    Returns
    -------
    cp : (n_u - 1, n_v - 1), or (n_alpha, n_u - 1, n_v - 1) for a sequence
    info : dict
        Only with `return_info`. `centers`, `normals` (n_u - 1, n_v - 1, 3) and `areas`; `condition`, an estimate; and,
        with the leading axis of `cp`, `potential` φ'/U∞ of the scaled body (n_u - 1, n_v - 1), `circulation` of each
        strip over U∞ in the units of `P` (n_v - 1,), and from the pressures `lift_coefficient` on the planform.

    Warns
    -----
    FlowWarning
        Mach above 0.6 (shocks), an angle beyond 20° (stall): the numbers are those of potential flow all the same.

    Raises
    ------
    ValueError
        Mach outside [0, 1), shapes, values that are not finite, panels without area, a surface turned inside out, a
        trailing edge that does not close although `kutta`.
    RuntimeError
        A singular matrix, with its estimated condition.

    Examples
    --------
    A sphere: CP = 1 - 9/4 sin²θ, so -5/4 at the equator.

    >>> theta, phi = np.meshgrid(np.linspace(0, np.pi, 18), np.linspace(0, 2 * np.pi, 18), indexing="ij")
    >>> sphere = np.stack((np.cos(theta), np.sin(theta) * np.cos(phi), np.sin(theta) * np.sin(phi)), -1)
    >>> cp = panel_method(sphere, 0.0, symmetric=False, kutta=False)
    >>> bool(abs(cp.min() + 1.25) < 0.05)
    True
    """
    check("mach", mach, interval(0, 1, high_open=True))
    for name, value in (("symmetric", symmetric), ("kutta", kutta), ("return_info", return_info)):
        check(name, value, boolean())
    check("wake_length", wake_length, positive())
    angles, single = _angles(alpha)
    grid = _grid(P, symmetric, kutta)
    if mach > 0.6:
        warnings.warn(f"mach={mach:g}: above 0.6 a wing has shocks, which this flow has not", FlowWarning, stacklevel=2)
    if np.abs(angles).max() > 20:
        text = f"alpha={angles[np.abs(angles).argmax()]:g}: beyond 20 degrees a wing stalls, this flow stays attached"
        warnings.warn(text, FlowWarning, stacklevel=2)

    beta = float(np.sqrt(1 - mach**2))
    scaled = grid * [1.0, beta, beta]
    matrix, sources = _assemble(scaled, symmetric, kutta, wake_length)
    unit_potentials, condition = _solve(matrix, sources)  # (n, 2): for streams along x and along z
    centers = _centers(scaled)
    stream = np.stack((np.cos(beta * np.radians(angles)), np.sin(beta * np.radians(angles))), -1)  # (n_alpha, 2)
    mu = (stream @ unit_potentials.T).reshape(-1, *centers.shape[:2])
    potential = mu + np.einsum("ac,uvc->auv", stream, centers[..., ::2])
    squared = _squared_speed(centers, potential, *_seams(scaled, symmetric, kutta))
    cp = (1 - squared) / beta**2
    if not return_info:
        return cp[0] if single else cp
    circulation = (mu[:, -1] - mu[:, 0]) / beta**2
    info = {"potential": mu, "circulation": circulation, "lift_coefficient": _lift(grid, cp, angles)}
    if single:
        cp, info = cp[0], {name: value[0] for name, value in info.items()}
    vectors = _area_vectors(grid)
    areas = np.linalg.norm(vectors, axis=-1)
    normals = vectors / areas[..., None]
    return cp, info | {"centers": _centers(grid), "normals": normals, "areas": areas, "condition": condition}


def _angles(alpha: Any) -> tuple[Array, bool]:
    try:
        angles = np.asarray(alpha, dtype=float)
    except (TypeError, ValueError):
        raise kind_error("alpha", "a number or a sequence of numbers", alpha) from None
    if angles.ndim > 1 or not angles.size or not np.isfinite(angles).all():
        raise value_error("alpha", "a finite number or a sequence of them", alpha)
    return angles.reshape(-1), angles.ndim == 0


def _grid(P: Any, symmetric: bool, kutta: bool) -> Array:
    try:
        grid = np.asarray(P, dtype=float)
    except (TypeError, ValueError):
        raise kind_error("P", "an array (n_u, n_v, 3) of numbers", P) from None
    if grid.ndim != 3 or grid.shape[2] != 3 or min(grid.shape[:2]) < 4:
        raise value_error("P", "of shape (n_u, n_v, 3) with n_u, n_v >= 4", grid)
    if not np.isfinite(grid).all():
        raise value_error("P", "finite", f"{(~np.isfinite(grid)).sum()} values that are not")
    vectors = _area_vectors(grid)
    extent = float(np.ptp(grid.reshape(-1, 3), axis=0).max())
    empty = np.linalg.norm(vectors, axis=-1) <= 1e-14 * extent**2
    if empty.any():
        raise value_error("P", "of panels with an area", f"{empty.sum()} panels without")
    middle = grid.reshape(-1, 3).mean(axis=0) * (MIRROR != -1 if symmetric else 1.0)  # the image closes it at y = 0
    if float(((_centers(grid) - middle) * vectors).sum()) <= 1e-14 * extent**3:
        cure = "swap the order along u or v"
        raise value_error("P", "a surface around a volume with r_u x r_v pointing out of it", "none", cure)
    if kutta:
        gap = float(np.linalg.norm(grid[0] - grid[-1], axis=-1).max())
        if gap > 0.05 * np.ptp(grid[:, 0, 0]):
            got = f"a gap of {gap:g} between its first and last row"
            raise value_error("P", "closed at the trailing edge", got, "for a body without one pass kutta=False")
    return grid


def _assemble(grid: Array, symmetric: bool, kutta: bool, wake_length: float) -> tuple[Array, Array]:
    """The matrix Ω/4π (n, n), wake included, and the right-hand sides Σ_j B_ij n_j / 4π for x and z (n, 2)."""
    centers = _centers(grid).reshape(-1, 3)
    n, strips = len(centers), grid.shape[1] - 1
    vectors = _area_vectors(grid).reshape(-1, 3)
    strengths = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True))[:, ::2]  # σ for U∞ along x and along z
    edge = (grid[0] + grid[-1]) / 2
    downstream = [wake_length * float(np.ptp(grid[..., 0], axis=0).max()), 0.0, 0.0]
    panels, wake = _Panels(grid), _Panels(np.stack((edge, edge + downstream)))
    matrix, sources = np.empty((n, n)), np.empty((n, 2))
    rows = max(1, BLOCK // n)
    for start in range(0, n, rows):
        block = slice(start, min(start + rows, n))
        own = np.arange(start, block.stop)
        angle, potential = panels.influence(centers[block], own)
        if symmetric:
            more = panels.influence(centers[block] * MIRROR)
            angle, potential = angle + more[0], potential + more[1]
        sources[block] = potential @ strengths
        if kutta:
            shed = wake.influence(centers[block])[0]
            if symmetric:
                shed += wake.influence(centers[block] * MIRROR)[0]
            angle[:, -strips:] += shed
            angle[:, :strips] -= shed
        matrix[block] = angle
    matrix /= 4 * np.pi
    return matrix, sources / (4 * np.pi)


class _Panels:
    """The triangles of a grid, with what their influence on a point needs of them.

    Panels have their corners a, b, c, d in the order in which a-c is the shorter diagonal: so a panel, its image and a
    grid numbered otherwise are split alike.
    """

    def __init__(self, grid: Array) -> None:
        n_u, n_v = grid.shape[:2]
        self.nodes = grid.reshape(-1, 3)
        number = np.arange(n_u * n_v).reshape(n_u, n_v)
        along_u = number[:-1].reshape(-1), number[1:].reshape(-1)
        along_v = number[:, :-1].reshape(-1), number[:, 1:].reshape(-1)
        n_edges = len(along_u[0])
        edge_u = np.arange(n_edges).reshape(n_u - 1, n_v)
        edge_v = n_edges + np.arange(len(along_v[0])).reshape(n_u, n_v - 1)
        corners = np.stack(
            [k.reshape(-1) for k in (number[:-1, :-1], number[1:, :-1], number[1:, 1:], number[:-1, 1:])]
        )
        sides = np.stack([k.reshape(-1) for k in (edge_u[:, :-1], edge_v[1:], edge_u[:, 1:], edge_v[:-1])])
        diagonals = [np.linalg.norm(self.nodes[corners[k + 2]] - self.nodes[corners[k]], axis=1) for k in (0, 1)]
        turned = diagonals[1] < diagonals[0] * (1 - 1e-12)
        self.corners = np.where(turned, np.roll(corners, -1, axis=0), corners)  # (4, n)
        self.sides = np.where(turned, np.roll(sides, -1, axis=0), sides)  # (4, n): ab, bc, cd, da
        starts = np.concatenate((along_u[0], along_v[0], self.corners[0]))
        stops = np.concatenate((along_u[1], along_v[1], self.corners[2]))
        self.edges = np.stack((starts, stops))  # those of the grid, then the diagonals
        self.lengths = np.linalg.norm(self.nodes[stops] - self.nodes[starts], axis=1)
        a, b, c, d = self.nodes[self.corners]
        planes = [_triangle(a, b, c), _triangle(a, c, d)]
        # z and three h of either triangle: eight affine functions of the point, with slope (3, 8 n) and value at zero
        slopes, anchors = np.stack(planes[0][0] + planes[1][0]), np.stack(planes[0][1] + planes[1][1])  # (8, n, 3)
        self.slopes = np.ascontiguousarray(slopes.reshape(-1, 3).T)
        self.offsets = -(slopes * anchors).sum(-1).reshape(-1)
        self.doubled = planes[0][2], planes[1][2]

    def influence(self, points: Array, own: NDArray[np.intp] | None = None) -> tuple[Array, Array]:
        """Solid angles and source potentials ∫dS/r of the panels at points, both (m, n).

        `own` names for each point the panel whose center it is: its solid angle is 2π, never computed, and its
        diagonal, on which the point may lie, drops out as it does from every flat quadrilateral.
        """
        m, n = len(points), self.corners.shape[1]
        squared = np.zeros((m, len(self.nodes)))
        for k in range(3):
            squared += np.subtract.outer(points[:, k], self.nodes[:, k]) ** 2
        r = np.sqrt(squared)
        total = r[:, self.edges[0]] + r[:, self.edges[1]]
        if own is not None:
            total[np.arange(m), len(self.lengths) - n + own] = 1e300
        logarithm = np.log((total + self.lengths) / (total - self.lengths))  # 0 for an edge without length
        ab, bc, cd, da = self.sides
        diagonal = logarithm[:, -n:]
        affine = (points @ self.slopes + self.offsets).reshape(m, 8, n)
        z1, z2 = affine[:, 0], affine[:, 4]
        potential = -(affine[:, 1] * logarithm[:, ab] + affine[:, 2] * logarithm[:, bc] + affine[:, 3] * diagonal)
        potential -= affine[:, 5] * diagonal + affine[:, 6] * logarithm[:, cd] + affine[:, 7] * logarithm[:, da]

        # products of the corners seen from the point: 2 a·b = |a|² + |b|² - |a - b|²
        ra, rb, rc, rd = (r[:, k] for k in self.corners)
        aa, bb, cc, dd = (squared[:, k] for k in self.corners)
        square = self.lengths**2
        both = ra * rc + (aa + cc - square[-n:]) / 2
        first = both * rb + ((aa + bb - square[ab]) * rc + (bb + cc - square[bc]) * ra) / 2
        second = both * rd + ((cc + dd - square[cd]) * ra + (dd + aa - square[da]) * rc) / 2
        angle1 = -2 * np.arctan2(self.doubled[0] * z1, first)
        angle2 = -2 * np.arctan2(self.doubled[1] * z2, second)
        if own is not None:
            angle1[np.arange(m), own] = angle2[np.arange(m), own] = np.pi
            z1[np.arange(m), own] = z2[np.arange(m), own] = 0.0
        return angle1 + angle2, potential + z1 * angle1 + z2 * angle2


def _triangle(a: Array, b: Array, c: Array) -> tuple[list[Array], list[Array], Array]:
    """Unit normal and outward edge normals, a point on each of these planes, and twice the area."""
    normal = np.cross(b - a, c - a)
    doubled = np.linalg.norm(normal, axis=-1)
    normal = normal / np.where(doubled, doubled, 1.0)[..., None]
    slopes = [normal]
    for start, stop in ((a, b), (b, c), (c, a)):
        outward = np.cross(stop - start, normal)
        length = np.linalg.norm(outward, axis=-1)
        slopes.append(outward / np.where(length, length, 1.0)[..., None])
    return slopes, [a, a, b, c], doubled


def _solve(matrix: Array, rhs: Array) -> tuple[Array, float]:
    from scipy.linalg import lapack

    norm = float(np.abs(matrix).sum(axis=1).max())  # of the transpose, which LAPACK can factor in place
    lu, pivots, status = lapack.dgetrf(matrix.T, overwrite_a=True)
    reciprocal = 0.0 if status else float(lapack.dgecon(lu, norm)[0])
    if reciprocal < len(lu) * np.finfo(float).eps:
        condition = 1 / reciprocal if reciprocal else np.inf
        text = f"the influence matrix is singular (estimated condition {condition:.1e})"
        raise RuntimeError(f"{text}: do panels coincide?")
    return np.asarray(lapack.dgetrs(lu, pivots, rhs, trans=1)[0]), 1 / reciprocal


def _centers(grid: Array) -> Array:
    return np.asarray((grid[:-1, :-1] + grid[1:, :-1] + grid[1:, 1:] + grid[:-1, 1:]) / 4)


def _area_vectors(grid: Array) -> Array:
    """Normal times area of every panel, from its diagonals."""
    return np.cross(grid[1:, 1:] - grid[:-1, :-1], grid[:-1, 1:] - grid[1:, :-1]) / 2


def _seams(grid: Array, symmetric: bool, kutta: bool) -> tuple[bool, bool, bool]:
    """Where the surface goes on: from its last row and its last column to the first, and at the first as its image."""
    small = 1e-9 * float(np.ptp(grid.reshape(-1, 3), axis=0).max())
    rows = not kutta and bool(np.abs(grid[0] - grid[-1]).max() <= small)  # over a trailing edge the potential jumps
    columns = bool(np.abs(grid[:, 0] - grid[:, -1]).max() <= small)
    return rows, columns, symmetric and bool(np.abs(grid[:, 0, 1]).max() <= small)


def _squared_speed(centers: Array, potential: Array, rows: bool, columns: bool, mirrored: bool) -> Array:
    """g^{ij} ∂_i φ ∂_j φ for potentials (n_alpha, n_u, n_v), differences of second order."""
    fields = np.concatenate((centers.transpose(2, 0, 1), potential))
    along_u, along_v = _difference(fields, 1, rows), _difference(fields, 2, columns)
    if mirrored and not columns:
        image = fields[:, :, 0].copy()
        image[1] *= -1
        along_v[:, :, 0] = (fields[:, :, 1] - image) / 2
    x_u, x_v, phi_u, phi_v = along_u[:3], along_v[:3], along_u[3:], along_v[3:]
    g_11, g_12, g_22 = (x_u**2).sum(0), (x_u * x_v).sum(0), (x_v**2).sum(0)
    determinant = (np.cross(x_u, x_v, axis=0) ** 2).sum(0)
    return np.asarray((g_22 * phi_u**2 - 2 * g_12 * phi_u * phi_v + g_11 * phi_v**2) / determinant)


def _difference(fields: Array, axis: int, periodic: bool) -> Array:
    if periodic:
        return np.asarray((np.roll(fields, -1, axis) - np.roll(fields, 1, axis)) / 2)
    return np.asarray(np.gradient(fields, axis=axis, edge_order=2))


def _lift(grid: Array, cp: Array, angles: Array) -> Array:
    """Lift from the pressures over the area of the planform (projected on z = 0), (n_alpha,)."""
    vectors = _area_vectors(grid)
    force = -np.einsum("auv,uvc->ac", cp, vectors)
    planform = np.abs(vectors[..., 2]).sum() / 2
    up = np.radians(angles)
    return np.asarray((force[:, 2] * np.cos(up) - force[:, 0] * np.sin(up)) / planform)
