r"""Simulate fluids, sand, clay and jelly as moving points that exchange momentum through a grid.

The material point method in its moving-least-squares form: points carry mass m, velocity v, its gradient C (affine
transfer, which keeps angular momentum) and deformation F. A step of dt deforms them by I + dt C, turns F into a stress
tau, and moves them with the grid:

    p_i = sum_p w_ip (m v + (m C - 4 n^2 dt V tau) (x_i - x_p)),  m_i = sum_p w_ip m
    v_i = p_i / m_i + dt gravity
    v = sum_i w_ip v_i,   C = 4 n^2 sum_i w_ip v_i (x_i - x_p)^T,   x <- x + dt v

Papers: hu2018moving (MLS-MPM), jiang2015affine (APIC), klar2016drucker (sand), yue2015continuum (Herschel-Bulkley);
five materials as in viswanath2024reduced. The laws are written down in `_mpm_laws`, the step once in NumPy
(`_mpm_arrays`) and once for Numba (`_mpm_kernels`), which gives the same numbers to rounding.
Notation: n = `n_grid` cells on each axis of the unit box, V volume of a point, tau the Kirchhoff stress.
Departures: (1) A fluid's stress acts on its present volume (tau = J sigma), not on the initial one. (2) The friction
cone in the plane is that of Mohr and Coulomb, |s| = sqrt(2) sin(angle) p; the three-dimensional formula taken over
would make 27.5 degrees of 30. (3) ``non_newtonian`` has its viscosity yield_stress / rate + viscosity rate^(-1/2) in an
implicit return of the elastic strain: below the yield it stands still, and dt needs no second bound.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from steepest.core.errors import check, interval, kind_error, nonnegative, one_of, optional, positive, value_error
from steepest.core.extras import installed, require
from steepest.core.random import numpy_generator
from steepest.physics import _mpm_arrays, _mpm_laws
from steepest.physics._mpm_laws import MATERIALS, NEWTONIAN, Constants

__all__ = ["MPM", "scatter_points"]

Array = NDArray[np.float64]

COURANT = 0.3  # of a cell that a compression wave may cross in a step
MAX_DIFFUSION = 0.25  # of viscosity dt / (rho dx^2) in an explicit step


class MPM:
    r"""Points of one material in the unit box, stepped by the MLS material point method (hu2018moving).

    Parameters
    ----------
    dim : int
        d, 2 or 3.
    n_grid : int
        Cells on each axis, at least 8; dx = 1 / n_grid. The outer three of each side are wall.
    material : str
        ``"elastic"`` (fixed corotated), ``"newtonian"`` (weakly compressible), ``"non_newtonian"`` (Herschel-Bulkley of
        index 1/2), ``"sand"`` (Drucker-Prager) or ``"plasticine"`` (von Mises).
    dt : float
        Step in seconds, at most ``0.3 dx / sqrt((lam + 2 mu) / rho)``; for ``newtonian`` also
        ``rho dx^2 / (4 viscosity)``.
    gravity : sequence of d floats
        Acceleration.
    E, nu : float
        Young's modulus and Poisson's ratio, from which mu, lam and bulk = E / (3 (1 - 2 nu)) follow.
    rho : float
        Initial density.
    viscosity : float
        Of ``newtonian``, in stress times seconds; of ``non_newtonian`` its consistency, in stress times sqrt(seconds).
    yield_stress : float
        Of ``plasticine`` the largest von Mises stress, of ``non_newtonian`` the shear stress below which it rests.
    friction_angle : float
        Of ``sand``, degrees.
    walls : "slip" or "sticky"
        Whether the walls take only the velocity into them, or all of it.
    backend : "numba", "numpy" or None
        None takes Numba where it is installed. The first call compiles for some seconds and leaves the result in
        Python's ``__pycache__``.

    Attributes
    ----------
    x, v : ndarray (n, d)
        Positions and velocities, float64, in the order in which the points were added.
    C : ndarray (n, d, d)
        Velocity gradients.
    mass, volume : ndarray (n,)
        Of each point; volume is the initial one.

    Raises
    ------
    ValueError
        An unknown material, a number outside its range, `dt` above the bound (which the message gives).

    Examples
    --------
    A drop of jelly falls freely:

    >>> jelly = MPM(2, 32, "elastic", dt=2e-4, gravity=(0.0, -9.8))
    >>> jelly.add_sphere((0.5, 0.6), 0.1, 200)
    >>> height = jelly.x[:, 1].mean()
    >>> frames = jelly.run(3, substeps=25)
    >>> frames.shape, round(float(height - frames[-1, :, 1].mean()), 6)
    ((3, 200, 2), 0.001117)
    """

    def __init__(
        self,
        dim: int,
        n_grid: int,
        material: str,
        *,
        dt: float,
        gravity: Sequence[float] | Array,
        E: float = 1e3,
        nu: float = 0.3,
        rho: float = 1.0,
        viscosity: float = 0.1,
        yield_stress: float = 20.0,
        friction_angle: float = 30.0,
        walls: str = "slip",
        backend: str | None = None,
    ) -> None:
        check("dim", dim, one_of(2, 3))
        check("n_grid", n_grid, interval(8, integer=True))
        check("material", material, one_of(*MATERIALS))
        for name, value in (("dt", dt), ("E", E), ("rho", rho)):
            check(name, value, positive())
        check("nu", nu, interval(0, 0.5, high_open=True))
        check("viscosity", viscosity, nonnegative())
        check("yield_stress", yield_stress, nonnegative())
        check("friction_angle", friction_angle, interval(0, 90, high_open=True))
        check("walls", walls, one_of("slip", "sticky"))
        check("backend", backend, optional(one_of("numba", "numpy")))
        self.dim, self.n_grid, self.material, self.dt, self.rho = dim, int(n_grid), material, float(dt), float(rho)
        self.walls = walls
        self.gravity = _vector("gravity", gravity, dim)
        mu, lam = E / (2 * (1 + nu)), E * nu / ((1 + nu) * (1 - 2 * nu))
        sine = math.sin(math.radians(friction_angle))
        friction = sine / math.sqrt(2) if dim == 2 else math.sqrt(2 / 3) * 2 * sine / (3 - sine)
        self.constants = Constants(
            *(float(c) for c in (mu, lam, E / (3 * (1 - 2 * nu)), viscosity, yield_stress, friction, dt))
        )
        self._code = MATERIALS.index(material)
        self._check_step()
        self._advance = _backend(dim, backend)
        self.x, self.v = np.empty((0, dim)), np.empty((0, dim))
        self.C, self._F = np.empty((0, dim, dim)), np.empty((0, dim, dim))
        self._J, self.mass, self.volume = np.empty(0), np.empty(0), np.empty(0)

    def _check_step(self) -> None:
        dx, k = 1 / self.n_grid, self.constants
        bound = COURANT * dx / math.sqrt((k.lam + 2 * k.mu) / self.rho)
        if self.dt > bound:
            raise value_error(
                "dt", f"at most {bound:.6g} = {COURANT} dx / sqrt((lam + 2 mu) / rho), the CFL bound", self.dt
            )
        if self._code == NEWTONIAN and k.viscosity * self.dt > MAX_DIFFUSION * self.rho * dx**2:
            bound = MAX_DIFFUSION * self.rho * dx**2 / k.viscosity
            raise value_error("dt", f"at most {bound:.6g} = rho dx^2 / (4 viscosity)", self.dt)

    # ------------------------------------------------------------------------------------------------ adding points

    def add_box(
        self,
        lo: Sequence[float],
        hi: Sequence[float],
        n_points: int,
        velocity: Sequence[float] | None = None,
        seed: int | np.random.Generator | None = 0,
    ) -> None:
        """Fill the box between the corners `lo` and `hi` evenly with `n_points` points.

        Raises
        ------
        ValueError
            Corners that are not d numbers with lo < hi, or that reach into the walls.
        """
        low, high = _vector("lo", lo, self.dim), _vector("hi", hi, self.dim)
        if not (low < high).all():
            raise value_error("hi", f"above lo {low.tolist()} on each axis", high.tolist())
        check("n_points", n_points, positive(integer=True))
        points = scatter_points(n_points, low, high, seed=seed)
        self.add_points(points, velocity, volume=float(np.prod(high - low)) / n_points)

    def add_sphere(
        self,
        center: Sequence[float],
        radius: float,
        n_points: int,
        velocity: Sequence[float] | None = None,
        seed: int | np.random.Generator | None = 0,
    ) -> None:
        """Fill a ball (a disc in the plane) evenly with `n_points` points.

        Raises
        ------
        ValueError
            A center that is not d numbers, ``radius <= 0``, or a ball that reaches into the walls.
        """
        middle = _vector("center", center, self.dim)
        check("radius", radius, positive())
        check("n_points", n_points, positive(integer=True))
        points = scatter_points(
            n_points,
            middle - radius,
            middle + radius,
            lambda x: np.square(x - middle).sum(1) <= radius**2,
            seed=seed,
        )
        ball = math.pi * radius**2 if self.dim == 2 else 4 / 3 * math.pi * radius**3
        self.add_points(points, velocity, volume=ball / n_points)

    def add_points(
        self,
        x: ArrayLike,
        velocity: ArrayLike | None = None,
        *,
        volume: float | None = None,
    ) -> None:
        """Add points at given places.

        Parameters
        ----------
        x : array (n, d)
            Between the walls: from 3 / n_grid to 1 - 3 / n_grid on each axis.
        velocity : array (d,) or (n, d), optional
            Zero by default.
        volume : float, optional
            Of each point; by default half a cell to the power d, that is 2^d points to a cell.

        Raises
        ------
        ValueError
            Shapes, values that are not finite, points in the walls, ``volume <= 0``.
        """
        d, dx = self.dim, 1 / self.n_grid
        points = _numbers("x", x)
        if points.ndim != 2 or points.shape[1] != d or not len(points):
            raise value_error("x", f"an array (n, {d}) of positions", points)
        wall = _mpm_arrays.WALL * dx
        if not ((points >= wall) & (points <= 1 - wall)).all():
            worst = points.ravel()[np.argmax(np.abs(points - 0.5))]
            raise value_error("x", f"between the walls, in [{wall:g}, {1 - wall:g}]", float(worst))
        speeds = np.zeros(d) if velocity is None else _numbers("velocity", velocity)
        if speeds.shape not in ((d,), points.shape):
            raise value_error("velocity", f"of shape ({d},) or {points.shape}", speeds)
        check("volume", volume, optional(positive()))
        n, V = len(points), (dx / 2) ** d if volume is None else float(volume)
        self.x = np.concatenate((self.x, points))
        self.v = np.concatenate((self.v, np.broadcast_to(speeds, (n, d))))
        self.C = np.concatenate((self.C, np.zeros((n, d, d))))
        self._F = np.concatenate((self._F, np.broadcast_to(np.eye(d), (n, d, d))))
        self._J = np.concatenate((self._J, np.ones(n)))
        self.volume = np.concatenate((self.volume, np.full(n, V)))
        self.mass = np.concatenate((self.mass, np.full(n, self.rho * V)))

    # ------------------------------------------------------------------------------------------------------- motion

    @property
    def F(self) -> Array:
        """Deformation gradients (n, d, d): the elastic part of a material that flows, ``J^(1/d) I`` of a fluid."""
        if self._code != NEWTONIAN:
            return self._F
        return self._J[:, None, None] ** (1 / self.dim) * np.eye(self.dim)

    @property
    def J(self) -> Array:
        """Volume over initial volume (n,)."""
        return self._J

    def stress(self) -> Array:
        """Kirchhoff stress tau (n, d, d) of the points as they are: J times Cauchy's."""
        still = self.constants._replace(dt=0.0)
        return _mpm_laws.respond(self._code, still, self.C, self._F, self._J)[0]

    def step(self, n: int = 1) -> None:
        """Advance by n steps of dt.

        Raises
        ------
        RuntimeError
            There are no points, or one has left the grid.
        FloatingPointError
            A position is not finite.
        """
        check("n", n, nonnegative(integer=True))
        if not len(self.x):
            raise RuntimeError("MPM cannot step without points: call add_box, add_sphere or add_points before step()")
        state = (self.mass, self.volume, self.x, self.v, self.C, self._F, self._J)
        done = self._advance(
            int(n), self._code, self.walls == "sticky", self.n_grid, self.gravity, self.constants, *state
        )
        lost = np.count_nonzero(~np.isfinite(self.x).all(1))
        if lost:
            raise FloatingPointError(f"{lost} points of {len(self.x)} are no longer finite after {done} of {n} steps")
        if done < n:
            fastest = float(np.linalg.norm(self.v, axis=1).max())
            raise RuntimeError(
                f"a point left the grid after {done} of {n} steps (largest speed {fastest:.3g}, "
                f"{fastest * self.dt * self.n_grid:.2g} cells a step): take a smaller dt"
            )

    def run(self, n_frames: int, substeps: int) -> Array:
        """Advance and record positions (n_frames, n, d), float64: after `substeps` steps, after 2 `substeps`, ...

        The state before the call is not among them, so the frames of one call follow those of another.
        """
        check("n_frames", n_frames, positive(integer=True))
        check("substeps", substeps, positive(integer=True))
        frames = np.empty((n_frames, *self.x.shape))
        for frame in frames:
            self.step(substeps)
            frame[:] = self.x
        return frames


def scatter_points(
    n: int,
    lo: ArrayLike,
    hi: ArrayLike,
    inside: Callable[[Array], NDArray[np.bool_]] | None = None,
    *,
    seed: int | np.random.Generator | None = 0,
) -> Array:
    """Spread n points evenly over a shape inside a box, by Roberts' additive recurrence with a random start.

    Parameters
    ----------
    n : int
    lo, hi : array (d,)
        Corners of the box.
    inside : callable, optional
        Gives for points (m, d) whether they belong to the shape (m,); without it the whole box.
    seed : int, numpy.random.Generator or None

    Returns
    -------
    ndarray (n, d)

    Raises
    ------
    ValueError
        Less than a hundredth of the box belongs to the shape.

    Examples
    --------
    >>> x = scatter_points(100, (0, 0), (1, 1), seed=0)
    >>> np.histogram2d(*x.T, bins=2)[0].astype(int).tolist()
    [[25, 25], [24, 26]]
    """
    low, high = np.asarray(lo, dtype=np.float64), np.asarray(hi, dtype=np.float64)
    d = len(low)
    ratio = 2.0
    for _ in range(60):  # the positive root of r^(d + 1) = r + 1
        ratio = (1 + ratio) ** (1 / (d + 1))
    start = numpy_generator(seed).random(d)
    pieces: list[Array] = []
    for block in itertools.count():
        steps = np.arange(block * 2 * n, (block + 1) * 2 * n)
        points = low + (high - low) * ((start + np.outer(steps, ratio ** -np.arange(1.0, d + 1))) % 1.0)
        pieces.append(points if inside is None else points[inside(points)])
        if sum(map(len, pieces)) >= n:
            break
        if block == 50:
            raise value_error("inside", "true on at least a hundredth of the box", sum(map(len, pieces)))
    return np.concatenate(pieces)[:n]


def _backend(dim: int, backend: str | None) -> Callable[..., int]:
    if backend == "numba":
        require("numba", what='MPM(backend="numba")')
    if backend == "numpy" or not installed("numba"):
        return _mpm_arrays.advance
    from steepest.physics import _mpm_kernels

    return _mpm_kernels.advance_2d if dim == 2 else _mpm_kernels.advance_3d


def _numbers(name: str, value: Any) -> Array:
    try:
        array = np.asarray(value, dtype=np.float64)
    except (TypeError, ValueError):
        raise kind_error(name, "an array of numbers", value) from None
    if not np.isfinite(array).all():
        raise value_error(name, "finite", array)
    return array


def _vector(name: str, value: Any, d: int) -> Array:
    array = _numbers(name, value)
    if array.shape != (d,):
        raise value_error(name, f"{d} numbers", array)
    return array
