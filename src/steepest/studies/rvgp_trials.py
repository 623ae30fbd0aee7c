"""Single experiments of the RVGP study: one field, one hole, one density; each a pure function of its setting.

They can be spread over processes: everything random is drawn from the setting's own seed.
"""

from __future__ import annotations

import functools
import math
import warnings
from dataclasses import dataclass

import numpy as np

from steepest.geometry.graph import GeometryWarning
from steepest.manifold import VectorFieldGP
from steepest.studies.rvgp_fields import (
    KINDS,
    Surface,
    cosine,
    diffused_field,
    find_zeros,
    hole,
    observe,
    official_field,
    relative_error,
    singular_field,
    surface,
)
from steepest.studies.rvgp_peers import ambient_gp, eigenvector_gp, laplacian_eigenvectors

__all__ = [
    "AMBIENT",
    "BASELINE",
    "OURS",
    "Density",
    "Hole",
    "Trial",
    "density_error",
    "fill_in",
    "inpaint",
    "linear_field",
    "off_surface",
    "predictions",
]

Array = np.ndarray
OURS, BASELINE, AMBIENT = "RVGP", "RBF GP on Laplacian eigenvectors", "RBF GP in space"
NOISE = 0.1  # standard deviation of each tangential component; fields have length 1
RADIUS = 0.45  # of the holes
N_EIGENPAIRS = 100  # official examples on meshes


def fitted(X: Array, y: Array, n_eigenpairs: int = N_EIGENPAIRS) -> VectorFieldGP:
    """Fit the method; a cut cluster of equal eigenvalues is no news here."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", GeometryWarning)
        return VectorFieldGP(min(n_eigenpairs, len(X) // 4), dim=2).fit(X, y)


# ---------------------------------------------------------------------------------------------------- super-resolution


@dataclass(frozen=True)
class Trial:
    """One field of one surface, of which a share is seen.

    Attributes
    ----------
    dense : bool
        Truth from a sample three times denser (`diffused_field`), not from the method's own graph.
    half : bool
        Fit the baseline with half the eigenvectors too.
    tune : bool
        Choose the peers' hyper-parameters by the evidence.
    """

    shape: str
    n: int
    seed: int
    share: float
    dense: bool = False
    half: bool = False
    tune: bool = True


@functools.lru_cache(maxsize=2)
def _field(shape: str, n: int, seed: int, dense: bool) -> tuple[Surface, Array]:
    if dense:
        whole = surface(shape, 3 * n, seed)
        return whole.first(n), diffused_field(whole, n, random_state=seed)[:n]
    s = surface(shape, n, seed)
    return s, official_field(s, random_state=seed)


def predictions(trial: Trial) -> tuple[Surface, Array, Array, dict[str, Array]]:
    """Surface, true field, what is seen of it, and the field of each method."""
    s, truth = _field(trial.shape, trial.n, trial.seed, trial.dense)
    rng = np.random.default_rng([trial.seed, round(100 * trial.share)])
    y = observe(s, truth, rng.permutation(trial.n)[: round(trial.share * trial.n)], NOISE, rng)
    k = min(N_EIGENPAIRS, trial.n // 4)
    found = {
        OURS: fitted(s.points, y).predict(s.points),
        BASELINE: eigenvector_gp(laplacian_eigenvectors(s.points, k), y, tune=trial.tune),
        AMBIENT: ambient_gp(s.points, y, tune=trial.tune),
    }
    if trial.half:
        found["half"] = eigenvector_gp(laplacian_eigenvectors(s.points, k // 2), y, tune=trial.tune)
    return s, truth, y, found


def fill_in(trial: Trial) -> dict[str, float]:
    """Relative error at hidden points by method, and ``cosine``, that of RVGP."""
    _, truth, y, found = predictions(trial)
    hidden = np.isnan(y).any(axis=1)
    errors = {name: relative_error(field[hidden], truth[hidden]) for name, field in found.items()}
    return errors | {"cosine": cosine(found[OURS][hidden], truth[hidden])}


def linear_field(trial: Trial) -> float:
    """RVGP's error over that of a Gaussian process in space: a field that is the tangential part of a linear one."""
    s = surface(trial.shape, trial.n, trial.seed)
    rng = np.random.default_rng([trial.seed, 1])
    truth = s.tangential(s.points @ rng.standard_normal((3, 3)) + rng.standard_normal(3))
    truth = truth / np.sqrt((truth**2).sum(axis=1).mean())
    y = observe(s, truth, rng.permutation(trial.n)[: round(trial.share * trial.n)], NOISE, rng)
    hidden = np.isnan(y).any(axis=1)
    ours = relative_error(fitted(s.points, y).predict(s.points)[hidden], truth[hidden])
    return ours / relative_error(ambient_gp(s.points, y, tune=trial.tune)[hidden], truth[hidden])


# ------------------------------------------------------------------------------------------------------------- holes


@dataclass(frozen=True)
class Hole:
    """A field with a singularity of a kind, unseen within `RADIUS` of it; all other points are seen."""

    shape: str
    kind: str
    n: int
    seed: int
    peers: bool = False
    tune: bool = True
    even: bool = True


def inpaint(case: Hole) -> dict[str, tuple[bool, float]]:
    """By method: whether the hole has one zero and its index is right, and how far the nearest zero is.

    Zeros on triangles that touch the hole count; without any the distance is infinite.
    """
    s = surface(case.shape, case.n, case.seed)
    rng = np.random.default_rng([case.seed, KINDS.index(case.kind)])
    truth = singular_field(s, case.kind, rng, even=case.even)
    inside = hole(s.points, truth.place, RADIUS)
    y = observe(s, truth.vectors, ~inside, NOISE, rng)
    found = {OURS: fitted(s.points, y).predict(s.points)}
    if case.peers:
        found[BASELINE] = eigenvector_gp(
            laplacian_eigenvectors(s.points, min(N_EIGENPAIRS, case.n // 4)), y, tune=case.tune
        )
        found[AMBIENT] = ambient_gp(s.points, y, tune=case.tune)
    results = {}
    for name, field in found.items():
        zeros = [(z, float(np.linalg.norm(z.place - truth.place))) for z in find_zeros(s, field)]
        within = [(z, distance) for z, distance in zeros if distance < RADIUS]
        right = [z.index for z, _ in within] == [truth.index]
        results[name] = right, min((distance for _, distance in within), default=math.inf)
    return results


# ------------------------------------------------------------------------------------- density, eigenpairs, off surface


@dataclass(frozen=True)
class Density:
    """The first `n` of `dense` points of a surface, half of whose vectors are seen, and K eigenpairs."""

    shape: str
    n: int
    n_eigenpairs: int
    seed: int
    dense: int


@functools.lru_cache(maxsize=2)
def _dense_field(shape: str, dense: int, seed: int) -> tuple[Surface, Array]:
    s = surface(shape, dense, seed)
    return s, diffused_field(s, dense // 3, random_state=seed)


def _half_seen(case: Density) -> tuple[Surface, Array, Array, VectorFieldGP]:
    whole, field = _dense_field(case.shape, case.dense, case.seed)
    s, truth = whole.first(case.n), field[: case.n]
    rng = np.random.default_rng([case.seed, case.n])
    y = observe(s, truth, rng.permutation(case.n)[: case.n // 2], NOISE, rng)
    return whole, field, y, fitted(s.points, y, case.n_eigenpairs)


def density_error(case: Density) -> float:
    """Relative error at the hidden points."""
    whole, field, y, model = _half_seen(case)
    hidden = np.flatnonzero(np.isnan(y).any(axis=1))
    return relative_error(model.predict(whole.points[: case.n])[hidden], field[hidden])


def off_surface(case: Density, displacements: tuple[float, ...]) -> list[float]:
    """Mean cosine at the dense sample's other points, displaced in random directions by shares of the diameter."""
    whole, field, _, model = _half_seen(case)
    rng = np.random.default_rng([case.seed, 3])
    direction = rng.standard_normal((len(whole) - case.n, 3))
    direction *= whole.diameter / np.linalg.norm(direction, axis=1, keepdims=True)
    rest = whole.points[case.n :]
    return [cosine(model.predict(rest + share * direction), field[case.n :]) for share in displacements]
