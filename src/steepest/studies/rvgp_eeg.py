"""Phase flow on the scalp: a simulator, the comparison of few with many sensors, and the markers made of singularities.

256 sensors on a cap of the unit sphere, 61 of them a low-density set. A frame is a velocity field: plane waves, whose
phase gradient on the sphere is the projected wave vector, and rotating or expanding centers with a core and an
envelope. "Patients" have fewer and slower centers. All sensors are noisy.
"""

from __future__ import annotations

import functools
import math
import warnings
from dataclasses import dataclass

import numpy as np
from scipy import sparse
from scipy.spatial import Delaunay

from steepest.core.random import numpy_generator
from steepest.geometry.connection import orient_frames, tangent_frames, vector_field_index
from steepest.geometry.graph import GeometryWarning, farthest_points, knn_graph
from steepest.manifold import VectorFieldGP, divergence_curl
from steepest.studies.rvgp_peers import spline_matrix

__all__ = [
    "Cap",
    "Cohort",
    "Diagnosis",
    "auc",
    "best_splines",
    "cap",
    "diagnose",
    "features",
    "reconstruct",
    "simulate",
    "subject_errors",
    "zeros",
]

Array = np.ndarray
N_SENSORS, N_LOW = 256, 61
EDGE = math.radians(105)  # polar angle at which the cap ends
RATES = (2.0, 1.2)  # centers a frame: controls, patients
STRENGTHS = (1.0, 0.7)  # speed of the centers: controls, patients
CORE, ENVELOPE = 0.25, 0.45  # radii of a center, rad
SPREAD = 0.35  # standard deviation of the logarithm of rate and strength over subjects of a group
NOISE = 0.1  # standard deviation of each tangential component; fields have root mean square 0.5 to 1
N_BINS = 8
EIGENPAIRS, NEIGHBORS = 100, 8


@dataclass(frozen=True)
class Cap:
    """Sensors on the scalp: positions (n, 3), the low-density subset (n,) bool, and triangles for indices."""

    points: Array
    low: Array
    faces: Array

    @functools.cached_property
    def graph(self) -> sparse.csr_array:
        """Neighbor graph of the sensors."""
        return knn_graph(self.points, 8)

    @functools.cached_property
    def frames(self) -> Array:
        """Tangent frames estimated from the sensors, oriented alike, (n, 3, 2)."""
        return orient_frames(tangent_frames(self.points, n_neighbors=12, dim=2, graph=self.graph).frames, self.graph)


def cap(n: int = N_SENSORS, n_low: int = N_LOW) -> Cap:
    """Place sensors evenly on the cap, and choose the low-density ones by farthest points.

    Examples
    --------
    >>> sensors = cap()
    >>> sensors.points.shape, int(sensors.low.sum())
    ((256, 3), 61)
    """
    i = np.arange(n) + 0.5
    z = 1 - i / n * (1 - math.cos(EDGE))
    angle = math.pi * (1 + math.sqrt(5)) * i
    ring = np.sqrt(1 - z**2)
    points = np.stack([ring * np.cos(angle), ring * np.sin(angle), z], axis=1)
    low = np.zeros(n, dtype=bool)
    low[farthest_points(points, n_low, start=0)] = True
    flat = np.arccos(z)[:, None] * np.stack([np.cos(angle), np.sin(angle)], axis=1)
    faces = Delaunay(flat).simplices
    edges = np.linalg.norm(points[faces] - points[np.roll(faces, 1, axis=1)], axis=2)
    return Cap(points, low, faces[edges.max(axis=1) < 2.5 * np.median(edges)])


@dataclass(frozen=True)
class Cohort:
    """Fields of all subjects (subjects, frames, n, 3): true and noisy; `patient` (subjects,) bool."""

    truth: Array
    noisy: Array
    patient: Array


def simulate(
    sensors: Cap,
    n_subjects: int = 40,
    n_frames: int = 20,
    random_state: int | np.random.Generator = 0,
    noise: float = NOISE,
) -> Cohort:
    """Simulate `n_subjects` controls and as many patients."""
    rng = numpy_generator(random_state)
    patient = np.repeat([False, True], n_subjects)
    truth = np.stack([_subject(sensors.points, bool(ill), n_frames, rng) for ill in patient])
    return Cohort(truth, truth + noise * _tangential(sensors.points, rng.standard_normal(truth.shape)), patient)


def _subject(X: Array, ill: bool, n_frames: int, rng: np.random.Generator) -> Array:
    """Frames (n_frames, n, 3): two waves whose directions turn slowly, and centers that come anew in each frame."""
    rate = RATES[ill] * math.exp(SPREAD * rng.standard_normal())
    strength = STRENGTHS[ill] * math.exp(SPREAD * rng.standard_normal())
    waves, turning = rng.standard_normal((2, 3)) * 0.35, rng.standard_normal(3) * 0.1
    fields = []
    for _ in range(n_frames):
        waves = waves + np.cross(turning, waves) + 0.05 * rng.standard_normal((2, 3))
        field = np.broadcast_to(waves.sum(axis=0), X.shape)
        for _ in range(rng.poisson(rate)):
            field = field + strength * _center(X, rng)
        fields.append(_tangential(X, field))
    return np.stack(fields)


def _center(X: Array, rng: np.random.Generator) -> Array:
    """One center at a random place of the cap: rotating or expanding, either sign; fastest, 1, about a core away."""
    z = rng.uniform(math.cos(EDGE - 0.3), 1)
    angle = rng.uniform(0, 2 * math.pi)
    place = np.array([math.sqrt(1 - z**2) * math.cos(angle), math.sqrt(1 - z**2) * math.sin(angle), z])
    distance = np.arccos(np.clip(X @ place, -1, 1))[:, None]
    away = X * (X @ place)[:, None] - place
    away = away / np.maximum(np.linalg.norm(away, axis=1, keepdims=True), 1e-9)
    direction = np.cross(X, away) if rng.random() < 0.5 else away
    profile = distance / np.hypot(distance, CORE) * np.exp(-(distance**2) / (2 * ENVELOPE**2))
    return 1.5 * rng.choice([-1.0, 1.0]) * profile * direction


def _tangential(X: Array, vectors: Array) -> Array:
    return vectors - np.einsum("...nd,nd->...n", vectors, X)[..., None] * X


def reconstruct(sensors: Cap, noisy: Array, method: str) -> Array:
    """Fields at all sensors, (subjects, frames, n, 3), from the low-density ones: by "RVGP" or "spherical splines".

    RVGP has hyper-parameters of its own for each subject; the splines' fields are projected onto the tangent planes.
    """
    if method == "spherical splines":
        matrix = spline_matrix(sensors.points, sensors.low)
        return _tangential(sensors.points, np.einsum("nm,...md->...nd", matrix, noisy[..., sensors.low, :]))
    seen = np.where(sensors.low[:, None], noisy, np.nan)
    model = VectorFieldGP(EIGENPAIRS, NEIGHBORS, dim=2)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", GeometryWarning)  # a cut cluster of eigenvalues does not matter here
        return np.stack([model.fit_many(sensors.points, frames) for frames in seen])


def best_splines(sensors: Cap, cohort: Cohort) -> tuple[Array, float]:
    """Errors of each subject with the smoothing that is best on the truth, and that smoothing."""
    tried = {}
    for smoothing in 10.0 ** np.arange(-8, -3):
        matrix = spline_matrix(sensors.points, sensors.low, smoothing=smoothing)
        field = np.einsum("nm,stmd->stnd", matrix, cohort.noisy[:, :, sensors.low])
        tried[float(smoothing)] = subject_errors(cohort, _tangential(sensors.points, field), ~sensors.low)
    best = min(tried, key=lambda smoothing: float(tried[smoothing].mean()))
    return tried[best], best


def subject_errors(cohort: Cohort, found: Array, hidden: Array) -> Array:
    """Relative error of each subject at hidden sensors, (subjects,)."""
    off = found[:, :, hidden] - cohort.truth[:, :, hidden]
    return np.sqrt((off**2).sum(axis=(1, 2, 3)) / (cohort.truth[:, :, hidden] ** 2).sum(axis=(1, 2, 3)))


def features(sensors: Cap, fields: Array) -> Array:
    """Markers of each subject: mean histograms of divergence and curl, mean counts of index +1 and -1.

    Bins are quantiles over all subjects of the same fields.
    """
    subjects, n_frames = fields.shape[:2]
    graph, frames = sensors.graph, sensors.frames
    values = np.empty((2, subjects, n_frames, len(sensors.points)))
    counts = np.empty((subjects, n_frames, 2))
    for s in range(subjects):
        for t in range(n_frames):
            values[:, s, t] = divergence_curl(sensors.points, fields[s, t], frames, graph)
            index = vector_field_index(sensors.points, fields[s, t], frames, sensors.faces)
            counts[s, t] = (index == 1).sum(), (index == -1).sum()
    columns = [counts.mean(axis=1)]
    for quantity in values:
        edges = np.quantile(quantity, np.linspace(0, 1, N_BINS + 1)[1:-1])
        bins = np.searchsorted(edges, quantity.reshape(subjects, -1))
        columns.append(np.stack([np.bincount(row, minlength=N_BINS) for row in bins]) / bins.shape[1])
    return np.hstack(columns)


def zeros(sensors: Cap, field: Array) -> tuple[Array, Array]:
    """Places (m, 3), centers of triangles, and indices (m,) of a field's zeros."""
    index = vector_field_index(sensors.points, field, sensors.frames, sensors.faces)
    return sensors.points[sensors.faces[index != 0]].mean(axis=1), index[index != 0]


@dataclass(frozen=True)
class Diagnosis:
    """What a diagnosis is made from: the sensors, fields (subjects, frames, n, 3), and who is a patient."""

    sensors: Cap
    fields: Array
    patient: Array


def diagnose(case: Diagnosis) -> float:
    """Area under the ROC curve of the markers of all subjects."""
    return auc(features(case.sensors, case.fields), case.patient)


def auc(markers: Array, patient: Array, *, n_repeats: int = 10, n_folds: int = 5, seed: int = 0) -> float:
    """Mean area under the ROC curve of a linear support vector machine over repeated stratified folds."""
    from sklearn.model_selection import RepeatedStratifiedKFold, cross_val_score
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler
    from sklearn.svm import SVC

    folds = RepeatedStratifiedKFold(n_splits=n_folds, n_repeats=n_repeats, random_state=seed)
    machine = make_pipeline(StandardScaler(), SVC(kernel="linear", C=0.1))
    return float(cross_val_score(machine, markers, patient, cv=folds, scoring="roc_auc").mean())
