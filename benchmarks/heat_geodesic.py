"""What a heat-geodesic embedding costs beside PHATE, UMAP and Isomap, and how its cost grows.

CPU seconds; peers are warm: each has run once on few points before. The rows of correlation say that the embeddings
timed are good ones.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from scipy.spatial.distance import cdist

from _rows import Row, alone, compared, cost, fastest, fitted, in_child, interleaved, rows_of
from steepest.manifold import HeatGeodesicEmbedding
from steepest.studies.heat_geodesic_data import Sample, swiss_roll
from steepest.studies.heat_geodesic_peers import embeddings, ours
from steepest.studies.heat_geodesic_scores import pearson_of_rows

SMALL, LARGE, HUGE = 2_000, 10_000, 100_000
TARGETS = {
    (SMALL, None): {"PHATE": "<= 0.333", "UMAP": "<= 0.5", "Isomap": "<= 2.5"},
    (SMALL, 500): {"Isomap": "<= 1.3"},
    (LARGE, 500): {"Isomap": "<= 0.65", "PHATE": "<= 0.95", "UMAP": "<= 0.4"},
}
LOWEST = {(SMALL, None): ">= 0.98", (SMALL, 500): None, (LARGE, 500): ">= 0.97"}
DENSE_SIZES, LANDMARK_SIZES = (500, 1_000, 2_000, 4_000), (5_000, 10_000, 20_000, 40_000)


def bench(progress: Callable[[float], None] | None = None) -> list[Row]:
    """Measure every row; `progress` is told the share that is done."""
    parts: list[Callable[[], list[Row]]] = [
        partial(beside_peers, SMALL, None, 3),
        partial(beside_peers, SMALL, 500, 3),
        partial(beside_peers, LARGE, 500, 1),
        exponents,
        large_scale,
    ]
    return rows_of(parts, progress)


def beside_peers(n: int, n_landmarks: int | None, turns: int) -> list[Row]:
    """`fit_transform` in turns with the peers that have a target at this size, and the correlation it reaches."""
    sample = swiss_roll(n, 0.1, seed=0)
    peers = embeddings(*TARGETS[n, n_landmarks])
    small = swiss_roll(200, 0.1, seed=1).X
    for embed in peers.values():
        embed(small, 0)
    ours(small)
    models: list[Any] = []
    tasks: dict[str, Callable[[], Any]] = {
        "ours": lambda: models.append(ours(sample.X, n_landmarks=n_landmarks)),
        **{name: partial(embed, sample.X, 0) for name, embed in peers.items()},
    }
    seconds = interleaved(tasks, turns, time.process_time)
    where = f"roll n={n}" + ("" if n_landmarks is None else f" landmarks={n_landmarks}")
    rows = [
        compared(f"fit {where}", seconds, peer, bound, f"CPU seconds of fit_transform against {peer}")
        for peer, bound in TARGETS[n, n_landmarks].items()
        if peer in seconds
    ]
    what = "Pearson correlation of the plane with geodesics, rows of 500 points, same run"
    row = alone(f"correlation {where}", correlation(models[-1], sample), "", LOWEST[n, n_landmarks], what)
    return [*rows, row | {"better": "higher"}]


def correlation(model: Any, sample: Sample) -> float:
    """Of 500 rows of the plane's distances with true geodesics."""
    assert sample.flat is not None
    rows = np.random.default_rng(0).permutation(len(sample.flat))[:500]
    Y = model.embedding_
    return pearson_of_rows(cdist(Y[rows], Y), cdist(sample.flat[rows], sample.flat))


def exponents() -> list[Row]:
    """Growth of the time with n at t = 10, dense and with 500 landmarks."""
    rows = []
    for name, sizes, landmarks, bound in (
        ("dense", DENSE_SIZES, None, "<= 2.1"),
        ("landmarks=500", LANDMARK_SIZES, 500, "<= 1.15"),
    ):
        seconds = []
        for n in sizes:
            X = swiss_roll(n, 0.1, seed=0).X
            task = partial(ours, X, t=10.0, n_landmarks=landmarks)
            seconds.append(fastest(task, 3 if n <= LARGE else 1, time.process_time))
        what = f"exponent of the time in n, {sizes[0]} to {sizes[-1]}, t = 10"
        rows.append(fitted(f"{name}-in-n", sizes, seconds, bound, what))
    return rows


def large_scale(n: int = HUGE, n_landmarks: int = 2_000) -> list[Row]:
    """Time and peak memory at 1e5 points, in a process of its own."""
    seconds, memory = in_child(measure, n, n_landmarks)
    where = f"n={n} landmarks={n_landmarks} t=10"
    return [
        alone(f"fit {where}", seconds, "s", "<= 180", "CPU seconds, one thread"),
        alone(f"memory {where}", memory, "GiB", None, "peak resident memory of the process"),
    ]


def measure(n: int, n_landmarks: int) -> tuple[float, float]:
    X = swiss_roll(n, 0.1, seed=0).X
    return cost(lambda: HeatGeodesicEmbedding(t=10.0, n_landmarks=n_landmarks, random_state=0).fit(X))[:2]
