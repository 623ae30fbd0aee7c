"""What the heat-geodesic study measures on data whose geodesics are known: ten settings, defaults and chosen settings.

Two kinds of number for each method: of its own distances (ours; PHATE's potential distances; Isomap's graph distances;
the diffusion map's coordinates) and of the distances in its plane of two dimensions, the only one that t-SNE and UMAP
have. Each is the correlation of a row with the true row, averaged over rows.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product
from typing import Literal

import numpy as np
from scipy.spatial.distance import cdist
from threadpoolctl import threadpool_limits

from steepest.core.extras import installed
from steepest.core.parallel import ordered_map
from steepest.geometry.graph import GeometryWarning, alpha_decay_graph, laplacian
from steepest.geometry.heat import heat_geodesic_distance, heat_kernel
from steepest.studies.heat_geodesic_data import Sample, swiss_roll, tree
from steepest.studies.heat_geodesic_peers import (
    OURS,
    diffusion_map,
    embeddings,
    isomap_distances,
    ours,
    phate_distances,
    plane,
)
from steepest.studies.heat_geodesic_scores import pearson_of_rows, row_correlations

__all__ = ["QUICK", "SETTINGS", "Scores", "Setting", "compare", "score_default", "score_large", "score_selected"]

Scores = dict[str, dict[str, list[tuple[float, float]]]]


@dataclass(frozen=True)
class Setting:
    """A shape, its noise and its dimension."""

    shape: str
    noise: float
    dim: int

    @property
    def name(self) -> str:
        """As figures show it."""
        return f"{self.shape}, {self.dim} dimensions, noise {self.noise:g}"

    @property
    def low_noise_roll(self) -> bool:
        """Whether absolute bounds are set for it."""
        return self.shape == "roll" and self.noise <= 0.5

    def sample(self, n: int, seed: int) -> Sample:
        """Draw `n` points."""
        make = swiss_roll if self.shape == "roll" else tree
        return make(n, self.noise, dim=self.dim, seed=seed)


SETTINGS = [
    *(Setting("roll", noise, 3) for noise in (0.1, 0.5, 1.0)),
    *(Setting("roll", 0.5, dim) for dim in (10, 50)),
    *(Setting("tree", noise, 10) for noise in (0.1, 0.5, 1.0)),
    *(Setting("tree", noise, 30) for noise in (0.5, 1.0)),
]
QUICK = [s for s in SETTINGS if (s.shape, s.dim) in (("roll", 3), ("tree", 10)) and (s.shape, s.noise) != ("tree", 0.1)]
Trial = tuple[int, float, float]
TRIALS: list[Trial] = list(product((10, 15), (10.0, 30.0, 100.0), (0.5, 1.0)))
"""Of the selection: neighbors, time, σ."""


def compare(
    settings: Sequence[Setting],
    n: int,
    seeds: Sequence[int],
    *,
    planes: Sequence[str] = (),
    n_workers: int | None = None,
    progress: Callable[[float], object] | None = None,
) -> Scores:
    """Score every method on every setting and seed.

    Parameters
    ----------
    settings, seeds : sequence
    n : int
        Points of each sample.
    planes : sequence of str
        Score our plane and those of these peers; by default each method's own distances.
    n_workers : int, optional
        Processes; None works here.
    progress : callable, optional
        Told the share that is done.

    Returns
    -------
    dict
        Method to setting's name to pairs (Pearson, Spearman), one for each seed.
    """
    items = [(setting, seed) for setting in settings for seed in seeds]
    work = partial(_score_planes, n, tuple(planes)) if planes else partial(_score_distances, n)
    backend: Literal["serial", "processes"] = "serial" if n_workers is None else "processes"
    found: Scores = {}
    scored = ordered_map(work, items, backend=backend, n_workers=n_workers, progress=progress)
    for (setting, _), scores in zip(items, scored):
        for name, pair in scores.items():
            found.setdefault(name, {}).setdefault(setting.name, []).append(pair)
    return found


def _score_distances(n: int, item: tuple[Setting, int]) -> dict[str, tuple[float, float]]:
    setting, seed = item
    sample = setting.sample(n, seed)
    with threadpool_limits(1):
        coordinates = diffusion_map(sample.X)
        matrices = {
            OURS: _our_distances(sample.X, seed),
            "Isomap": isomap_distances(sample.X),
            "diffusion map": cdist(coordinates, coordinates),
        }
        if installed("phate"):
            matrices["PHATE"] = phate_distances(sample.X, seed)
        return row_correlations(matrices, sample.geodesics)


def _score_planes(n: int, peers: tuple[str, ...], item: tuple[Setting, int]) -> dict[str, tuple[float, float]]:
    setting, seed = item
    sample = setting.sample(n, seed)
    with threadpool_limits(1):
        planes = {OURS: plane(sample.X, random_state=seed, n_landmarks=None)}
        for name, embed in embeddings(*peers).items():
            planes[name] = embed(sample.X, seed)
        return row_correlations({name: cdist(Y, Y) for name, Y in planes.items()}, sample.geodesics)


def score_default(
    settings: Sequence[Setting], n: int, seeds: Sequence[int], *, n_workers: int | None = None
) -> dict[str, list[float]]:
    """Pearson correlations of our own distances alone, at the defaults."""
    backend: Literal["serial", "processes"] = "serial" if n_workers is None else "processes"
    items = [(setting, seed) for setting in settings for seed in seeds]
    scores = ordered_map(partial(_score_default, n), items, backend=backend, n_workers=n_workers)
    return {s.name: [score for score, (setting, _) in zip(scores, items) if setting == s] for s in settings}


def _score_default(n: int, item: tuple[Setting, int]) -> float:
    setting, seed = item
    sample = setting.sample(n, seed)
    with threadpool_limits(1):
        return pearson_of_rows(_our_distances(sample.X, seed), sample.geodesics)


def _our_distances(X: np.ndarray, seed: int) -> np.ndarray:
    return np.asarray(ours(X, random_state=seed, n_landmarks=None, mds="classic").distances_)


def score_selected(
    settings: Sequence[Setting], n: int, tuning: Sequence[int], test: Sequence[int], *, n_workers: int | None = None
) -> dict[str, list[float]]:
    """Choose neighbors, time and σ of each setting on the tuning seeds; give Pearson correlations on the others."""
    backend: Literal["serial", "processes"] = "serial" if n_workers is None else "processes"
    items = [(setting, seed) for setting in settings for seed in tuning]
    tried = ordered_map(partial(_score_trials, n, TRIALS), items, backend=backend, n_workers=n_workers)
    found = {}
    for setting in settings:
        means = np.mean([scores for scores, item in zip(tried, items) if item[0] == setting], axis=0)
        work = partial(_score_trials, n, [TRIALS[int(np.argmax(means))]])
        scores = ordered_map(work, [(setting, seed) for seed in test], backend=backend, n_workers=n_workers)
        found[setting.name] = [score[0] for score in scores]
    return found


def _score_trials(n: int, trials: Sequence[Trial], item: tuple[Setting, int]) -> list[float]:
    """Pearson correlation of each trial; one recurrence gives the kernels of all times."""
    setting, seed = item
    sample = setting.sample(n, seed)
    truth, found = sample.geodesics, {}
    with threadpool_limits(1), warnings.catch_warnings():
        warnings.simplefilter("ignore", GeometryWarning)
        for k in dict.fromkeys(k for k, _, _ in trials):
            times = sorted({t for neighbors, t, _ in trials if neighbors == k})
            kernels = heat_kernel(laplacian(alpha_decay_graph(sample.X, k)), np.array(times))
            for t, H in zip(times, kernels):
                for sigma in {s for neighbors, time, s in trials if (neighbors, time) == (k, t)}:
                    D = heat_geodesic_distance(np.maximum(H, 0), t, harnack_regul=sigma)
                    found[k, t, sigma] = pearson_of_rows(D, truth)
    return [found[trial] for trial in trials]


def score_large(n: int, seed: int, *, n_landmarks: int, noise: float = 0.1) -> float:
    """Pearson correlation on one large roll with landmarks: the lower one of their distances and of the plane.

    Only rows of landmarks are compared, so that nothing is n×n.

    Parameters
    ----------
    n, seed, n_landmarks : int
    noise : float
    """
    sample = swiss_roll(n, noise, seed=seed)
    model = ours(sample.X, n_landmarks=n_landmarks, random_state=seed)
    Y, rows = model.embedding_, np.asarray(model.landmarks_)
    flat = np.asarray(sample.flat)
    truth = cdist(flat[rows], flat)
    return min(pearson_of_rows(D, truth) for D in (model.distances_, cdist(Y[rows], Y)))
