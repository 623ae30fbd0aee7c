r"""Constitutive laws of the particle simulator, many points at a time.

Singular values σ of the deformation F = U diag(σ) V^T (U and V rotations, so that the last σ may be negative),
e = ln σ, p and s pressure and deviator of the Kirchhoff stress τ (J times Cauchy's), G = mu:

    elastic        τ_i = 2 mu (σ_i - 1) σ_i + lam (J - 1) J                                    (fixed corotated)
    newtonian      τ = J (bulk (J - 1) I + viscosity (C + C^T)),   J <- J (1 + dt tr C)
    the others     τ_i = 2 mu h_i + lam tr h,   σ <- exp h,   h what the return mapping leaves of e:
    plasticine     sqrt(3/2) |s| <= yield_stress                                               (von Mises)
    non_newtonian  |s| / sqrt(2) = yield_stress + viscosity sqrt(γ')       (Herschel-Bulkley, γ' the plastic rate)
    sand           |s| <= friction d p,  h = 0 in tension                                      (Drucker-Prager)

All three returns keep tr h, the volume. Sand that was pulled apart carries no stress until it is pushed back: its e is
shifted so that tr e = ln J, J being the whole volume change.

Papers: hu2018moving (transfer), stomakhin2012energetically (elastic), klar2016drucker (sand), yue2015continuum
(Herschel-Bulkley by return mapping), tampubolon2017multi (volume of sand).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "ELASTIC",
    "MATERIALS",
    "NEWTONIAN",
    "NON_NEWTONIAN",
    "PLASTICINE",
    "SAND",
    "SMALLEST",
    "Constants",
    "respond",
]

Array = NDArray[np.float64]

MATERIALS = ("elastic", "newtonian", "non_newtonian", "sand", "plasticine")
ELASTIC, NEWTONIAN, NON_NEWTONIAN, SAND, PLASTICINE = range(5)
SMALLEST = 1e-6  # floor of singular values in logarithms, and of a fluid's J


class Constants(NamedTuple):
    """What the laws and the step need, as plain numbers."""

    mu: float
    lam: float
    bulk: float
    viscosity: float
    yield_stress: float
    friction: float
    dt: float


def respond(material: int, k: Constants, C: Array, F: Array, J: Array) -> tuple[Array, Array, Array]:
    """Deform by ``I + dt C``, return to the admissible set, give Kirchhoff stress and the new F and J.

    Parameters
    ----------
    material : int
        Index into `MATERIALS`.
    k : Constants
    C, F : ndarray (n, d, d)
        Velocity gradient, deformation (elastic part of it).
    J : ndarray (n,)
        Volume over initial volume; read and advanced for fluids and sand, for the others det F.

    Returns
    -------
    tau, F, J : ndarray (n, d, d), (n, d, d), (n,)
    """
    identity = np.eye(C.shape[1])
    if material == NEWTONIAN:
        J = np.maximum(J * (1 + k.dt * np.trace(C, axis1=1, axis2=2)), SMALLEST)
        pressure = (k.bulk * (1 - J))[:, None, None] * identity
        return J[:, None, None] * (k.viscosity * (C + C.transpose(0, 2, 1)) - pressure), F, J
    step = identity + k.dt * C
    trial = step @ F
    U, sigma, Vt = _svd(trial)
    if material == ELASTIC:
        J = sigma.prod(1)
        stress = 2 * k.mu * (sigma - 1) * sigma + (k.lam * (J - 1) * J)[:, None]
        return (U * stress[:, None]) @ U.transpose(0, 2, 1), trial, J
    e = np.log(np.maximum(sigma, SMALLEST))
    if material == SAND:
        J = J * np.maximum(np.linalg.det(step), SMALLEST)
        h = _sand(e, np.log(J), k)
    elif material == PLASTICINE:
        h = _von_mises(e, k)
    else:
        h = _herschel_bulkley(e, k)
    stretch = np.exp(h)
    stress = 2 * k.mu * h + k.lam * h.sum(1, keepdims=True)
    if material != SAND:
        J = stretch.prod(1)
    return (U * stress[:, None]) @ U.transpose(0, 2, 1), (U * stretch[:, None]) @ Vt, J


def _svd(F: Array) -> tuple[Array, Array, Array]:
    """Singular value decomposition by rotations: a reflection is moved into the sign of the last singular value."""
    U, sigma, Vt = np.linalg.svd(F)
    flip_u, flip_v = np.sign(np.linalg.det(U)), np.sign(np.linalg.det(Vt))
    U[:, :, -1] *= flip_u[:, None]
    Vt[:, -1] *= flip_v[:, None]
    sigma[:, -1] *= flip_u * flip_v
    return U, sigma, Vt


def _deviator(e: Array) -> tuple[Array, Array, Array]:
    mean = e.mean(1, keepdims=True)
    deviator = e - mean
    return mean, deviator, np.linalg.norm(deviator, axis=1)


def _shortened(deviator: Array, norm: Array, limit: Array | float) -> Array:
    """Shorten each row to `limit` where it is longer."""
    longer = norm > limit
    return deviator * np.divide(limit, norm, out=np.ones_like(norm), where=longer)[:, None]


def _von_mises(e: Array, k: Constants) -> Array:
    mean, deviator, norm = _deviator(e)
    return mean + _shortened(deviator, norm, k.yield_stress / (np.sqrt(6) * k.mu))


def _herschel_bulkley(e: Array, k: Constants) -> Array:
    mean, deviator, norm = _deviator(e)
    shear = np.sqrt(2) * k.mu * norm  # |s| / sqrt(2), the stress in simple shear
    flows = shear > k.yield_stress
    excess = np.where(flows, shear - k.yield_stress, 0.0)
    # shear - mu dt γ' = yield_stress + viscosity sqrt(γ'), a quadratic in sqrt(γ')
    below = k.viscosity + np.sqrt(k.viscosity**2 + 4 * k.mu * k.dt * excess)
    root = np.divide(2 * excess, below, out=np.zeros_like(shear), where=flows & (below > 0))
    scale = np.divide(k.yield_stress + k.viscosity * root, shear, out=np.ones_like(shear), where=flows)
    return mean + deviator * scale[:, None]


def _sand(e: Array, volume: Array, k: Constants) -> Array:
    d = e.shape[1]
    _, deviator, norm = _deviator(e)
    limit = k.friction * (d * k.lam + 2 * k.mu) / (2 * k.mu) * np.maximum(-volume, 0.0)
    h = (volume / d)[:, None] + _shortened(deviator, norm, limit)
    return np.where(volume[:, None] < 0, h, 0.0)
