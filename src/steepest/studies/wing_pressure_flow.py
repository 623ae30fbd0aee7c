"""Is the data aerodynamics? The panel method beside closed forms, lifting-line theory and a vortex-lattice code.

Bodies with a closed form: a sphere, and ellipsoids with semi-axes a in a stream U, on whose surface the velocity is the
tangential part of W, ``W_i = (1 + k_i) U_i``, ``k_i = α_i / (2 - α_i)`` with
``α_i = a_1 a_2 a_3 ∫_0^∞ dλ / ((a_i² + λ) sqrt((a_1² + λ)(a_2² + λ)(a_3² + λ)))`` (Lamb, Hydrodynamics, §114); k = 1/2
for a sphere. Wings: lift is the sum of the pressure forces over the panels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from steepest.core.extras import installed, require
from steepest.physics import WingParameters, panel_method, sample_wings, wing_surface
from steepest.studies.claim import slope_fit
from steepest.studies.context import Context

__all__ = [
    "SectionPressure",
    "ellipsoid",
    "ellipsoid_cp",
    "ellipsoid_error",
    "lift_coefficient",
    "lift_slope",
    "lifting_line_slope",
    "measure",
    "section_pressure",
    "vortex_lattice_lift",
]

Array = NDArray[np.float64]


def measure(ctx: Context, panels: Sequence[tuple[int, int]], wing: tuple[int, int]) -> None:
    """Measure the claims on the solver: closed forms, lifting line, and the vortex lattice where it is installed.

    `panels` are the sizes of the sphere (n_u, n_v), `wing` is the grid of a wing.
    """
    errors = [(n_u, *ellipsoid_error((1.0, 1.0, 1.0), n_u, n_v)) for n_u, n_v in panels]
    n_u, rms, worst = next((e for e in errors if e[0] == 24), errors[-1])
    ctx.measured("sphere", rms)
    ctx.note(f"Sphere, {n_u} panels from pole to pole: largest error of CP {worst:.4f}, beside a pole.")
    ctx.measured("refinement", -slope_fit([e[0] for e in errors], [e[1] for e in errors])[0])
    ctx.series("error on the sphere", [(e[0], e[1]) for e in errors], method="root mean square")
    ctx.series("error on the sphere", [(e[0], e[2]) for e in errors], method="largest")
    ctx.progress(0.03)
    rms, worst = ellipsoid_error((1.0, 2.0, 0.5), *panels[min(2, len(panels) - 1)], alpha=5.0)
    ctx.measured("ellipsoid", rms)
    ctx.note(f"Ellipsoid: largest error of CP {worst:.4f}.")
    thick, thin = (lift_slope(40.0, t, *wing) for t in (0.12, 0.06))
    ctx.measured("lift-slope", thick / lifting_line_slope(40.0))
    ctx.measured("lift-thickness", thick / thin)
    ctx.progress(0.06)
    if not installed("aerosandbox"):
        ctx.skipped("lift-lattice", "aerosandbox is not installed")
        return
    wings = sample_wings(10, seed=ctx.seed)
    grids = [wing_surface(w, *wing) for w in wings]
    ours = np.array([lift_coefficient(P, panel_method(P, 5.0), 5.0) for P in grids])
    theirs = np.array([vortex_lattice_lift(w, 5.0) for w in wings])
    ctx.measured("lift-lattice", float(np.max(np.abs(ours / theirs - 1))))
    ctx.arrays("lift", panels=ours, lattice=theirs)


# ---------------------------------------------------------------------------------------------------- closed forms


def ellipsoid(axes: Sequence[float], n_u: int, n_v: int) -> Array:
    """Grid of an ellipsoid with n_u x n_v panels, (n_u + 1, n_v + 1, 3): u from pole to pole along y, v round the axis.

    ``r_u x r_v`` points outwards; the poles are points, so the panels beside them are triangles.
    """
    t = np.linspace(0, np.pi, n_u + 1)[:, None]
    p = np.linspace(0, 2 * np.pi, n_v + 1)[None, :]
    ring = np.sin(t)
    ring[[0, -1]] = 0.0
    P = np.stack([ring * np.sin(p), np.broadcast_to(np.cos(t), (n_u + 1, n_v + 1)), ring * np.cos(p)], axis=-1)
    P[:, -1] = P[:, 0]
    return np.asarray(P * np.asarray(axes, dtype=float))


def ellipsoid_cp(axes: Sequence[float], points: Array, alpha: float = 0.0) -> Array:
    """Closed form of CP where the rays through `points` leave the ellipsoid; `alpha` in degrees in the x-z plane."""
    from scipy.special import elliprd

    a = np.asarray(axes, dtype=float)
    squares = [np.roll(a**2, -i) for i in (1, 2, 3)]  # a_i² last; the integral is Carlson's R_D
    added = np.array([2 / 3 * a.prod() * elliprd(*three) for three in squares])
    stream = np.array([np.cos(np.radians(alpha)), 0.0, np.sin(np.radians(alpha))])
    W = (1 + added / (2 - added)) * stream
    normal = points / a**2  # of the similar ellipsoid through the point
    normal = normal / np.linalg.norm(normal, axis=-1, keepdims=True)
    across = (normal @ W)[..., None] * normal
    return np.asarray(1 - ((W - across) ** 2).sum(axis=-1))


def ellipsoid_error(axes: Sequence[float], n_u: int, n_v: int, alpha: float = 0.0) -> tuple[float, float]:
    """Error of CP against the closed form: root mean square over the surface (by area), and the largest."""
    P = ellipsoid(axes, n_u, n_v)
    cp, info = panel_method(P, alpha, symmetric=False, kutta=False, return_info=True)
    error = np.abs(cp - ellipsoid_cp(axes, info["centers"], alpha))
    return float(np.sqrt(np.average(error**2, weights=info["areas"]))), float(error.max())


def _area_vectors(P: Array) -> Array:
    """Outward normal times area of every panel, from its diagonals."""
    return np.cross(P[1:, 1:] - P[:-1, :-1], P[:-1, 1:] - P[1:, :-1]) / 2


def lift_coefficient(P: Array, cp: Array, alpha: float) -> float:
    """Lift of half a wing over its planform area (projected on z = 0), from the pressures on its panels."""
    vectors = _area_vectors(P)
    force = -(cp[..., None] * vectors).sum(axis=(0, 1))
    planform = np.abs(vectors[..., 2]).sum() / 2
    a = np.radians(alpha)
    return float((force[2] * np.cos(a) - force[0] * np.sin(a)) / planform)


def rectangular(aspect: float, thickness: float) -> WingParameters:
    """A plain wing: chord 1, no taper, sweep, twist or camber."""
    return WingParameters(
        half_span=aspect / 2,
        taper=1.0,
        sweep=0.0,
        dihedral=0.0,
        twist=0.0,
        camber=0.0,
        thickness_root=thickness,
        thickness_tip=thickness,
    )


def lift_slope(aspect: float, thickness: float, n_u: int, n_v: int, alpha: float = 5.0) -> float:
    """Lift coefficient of a plain wing at `alpha` over the angle in radians."""
    P = wing_surface(rectangular(aspect, thickness), n_u, n_v)
    return lift_coefficient(P, panel_method(P, alpha), alpha) / float(np.radians(alpha))


def lifting_line_slope(aspect: float) -> float:
    """Slope of the lift of an elliptically loaded thin wing, ``2π AR / (AR + 2)`` per radian."""
    return 2 * np.pi * aspect / (aspect + 2)


# ------------------------------------------------------------------------------------------------------ other programs


def _airfoil(asb: Any, params: WingParameters, at: float) -> Any:
    """The NACA 4-digit section at the share `at` of the half span, with exact (not rounded) digits."""
    thickness = (1 - at) * params.thickness_root + at * params.thickness_tip
    x = (1 - np.cos(np.linspace(0, np.pi, 81))) / 2
    half = 5 * thickness * (0.2969 * np.sqrt(x) - 0.1260 * x - 0.3516 * x**2 + 0.2843 * x**3 - 0.1036 * x**4)
    m, p = params.camber, params.camber_pos
    fore = m / p**2 * (2 * p * x - x**2)
    aft = m / (1 - p) ** 2 * (1 - 2 * p + 2 * p * x - x**2)
    line = np.where(x < p, fore, aft)
    slope = np.arctan(np.where(x < p, 2 * m / p**2 * (p - x), 2 * m / (1 - p) ** 2 * (p - x)))
    upper = np.stack([x - half * np.sin(slope), line + half * np.cos(slope)], axis=1)
    lower = np.stack([x + half * np.sin(slope), line - half * np.cos(slope)], axis=1)
    return asb.Airfoil(name="section", coordinates=np.concatenate([upper[::-1], lower[1:]]))


def vortex_lattice_lift(params: WingParameters, alpha: float, spanwise: int = 20, chordwise: int = 12) -> float:
    """Lift coefficient by AeroSandbox's vortex lattice: the camber surface without thickness.

    Raises
    ------
    MissingExtra
        AeroSandbox is not installed.
    """
    asb: Any = require("aerosandbox", "aero", what="the vortex lattice")
    b, c = params.half_span, params.root_chord
    tip = [b * np.tan(np.radians(params.sweep)), b, b * np.tan(np.radians(params.dihedral))]
    wing = asb.Wing(
        symmetric=True,
        xsecs=[
            asb.WingXSec(xyz_le=[0, 0, 0], chord=c, twist=0, airfoil=_airfoil(asb, params, 0.0)),
            asb.WingXSec(xyz_le=tip, chord=c * params.taper, twist=params.twist, airfoil=_airfoil(asb, params, 1.0)),
        ],
    )
    airplane = asb.Airplane(wings=[wing], s_ref=b * c * (1 + params.taper))
    point = asb.OperatingPoint(velocity=1.0, alpha=alpha)
    lattice = asb.VortexLatticeMethod(
        airplane=airplane, op_point=point, spanwise_resolution=spanwise, chordwise_resolution=chordwise
    )
    return float(lattice.run()["CL"])


@dataclass(frozen=True)
class SectionPressure:
    """CP along a section: x over chord, and CP of the upper and the lower side."""

    x: Array
    upper: Array
    lower: Array


def section_pressure(params: WingParameters, at: float, lift: float, reynolds: float = 5e6) -> SectionPressure:
    """CP of a section with a boundary layer, ``1 - (u_e / U)²``, by NeuralFoil at the angle that gives `lift`.

    Parameters
    ----------
    params : WingParameters
    at : float
        Share of the half span.
    lift : float
        Lift coefficient of the strip; the section's angle is found by bisection between -10 and 15 degrees.
    reynolds : float
        Of the section's chord.

    Raises
    ------
    MissingExtra
        AeroSandbox or NeuralFoil is not installed.
    """
    asb: Any = require("aerosandbox", "aero", what="the section's boundary layer")
    neuralfoil: Any = require("neuralfoil", "aero", what="the section's boundary layer")
    airfoil = _airfoil(asb, params, at)
    low, high = -10.0, 15.0
    for _ in range(30):
        middle = (low + high) / 2
        found = neuralfoil.get_aero_from_airfoil(airfoil, alpha=middle, Re=reynolds, model_size="large")
        low, high = (middle, high) if float(found["CL"].item()) < lift else (low, middle)
    x = np.asarray(neuralfoil.bl_x_points, dtype=float)

    def cp(side: str) -> Array:
        speed = [float(found[f"{side}_bl_ue/vinf_{i}"].item()) for i in range(len(x))]
        return np.asarray(1 - np.square(speed))

    return SectionPressure(x, cp("upper"), cp("lower"))
