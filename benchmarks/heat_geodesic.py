"""What a heat-geodesic embedding costs beside PHATE, UMAP and Isomap, and how its cost grows.

``bench()`` returns one dict a row: name, ours (CPU seconds, an exponent, or GiB), peer, ratio (ours / peer, median over
turns), interval (90 % bootstrap of that median; for exponents of the fit), bound (on the ratio, or on ours where there
is no peer), unit, what (in words) and better. CPU seconds of this process on one thread; peers are warm: each has run
once on few points before. The rows of correlation say that the embeddings timed are good ones.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from scipy.spatial.distance import cdist
from threadpoolctl import threadpool_limits

from steepest.studies.claim import bootstrap_interval, slope_fit
from steepest.studies.heat_geodesic_data import Sample, swiss_roll
from steepest.studies.heat_geodesic_peers import embeddings, ours
from steepest.studies.heat_geodesic_scores import pearson_of_rows

Row = dict[str, Any]
SMALL, LARGE, HUGE = 2_000, 10_000, 100_000
TARGETS = {
    (SMALL, None): {"PHATE": "<= 0.333", "UMAP": "<= 0.5", "Isomap": "<= 2.5"},
    (SMALL, 500): {"Isomap": "<= 1.3"},
    (LARGE, 500): {"Isomap": "<= 0.65", "PHATE": "<= 0.95", "UMAP": "<= 0.4"},
}
LOWEST = {(SMALL, None): ">= 0.98", (SMALL, 500): None, (LARGE, 500): ">= 0.97"}
DENSE_SIZES, LANDMARK_SIZES = (500, 1_000, 2_000, 4_000), (5_000, 10_000, 20_000, 40_000)
IN_A_PROCESS = """
import json, resource, sys, time, warnings
from steepest.manifold import HeatGeodesicEmbedding
from steepest.studies.heat_geodesic_data import swiss_roll
X = swiss_roll(int(sys.argv[1]), 0.1, seed=0).X
warnings.simplefilter("ignore")
start = time.process_time()
HeatGeodesicEmbedding(t=10.0, n_landmarks=int(sys.argv[2]), random_state=0).fit(X)
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
print(json.dumps([time.process_time() - start, peak / 2**30]))
"""


def bench(progress: Callable[[float], None] | None = None) -> list[Row]:
    """Measure every row; `progress` is told the share that is done."""
    parts: list[Callable[[], list[Row]]] = [
        partial(beside_peers, SMALL, None, 3),
        partial(beside_peers, SMALL, 500, 3),
        partial(beside_peers, LARGE, 500, 1),
        exponents,
        large_scale,
    ]
    rows: list[Row] = []
    with threadpool_limits(1):
        for i, part in enumerate(parts):
            rows += part()
            if progress is not None:
                progress((i + 1) / len(parts))
    return rows


def beside_peers(n: int, n_landmarks: int | None, turns: int) -> list[Row]:
    """`fit_transform` in turns with the peers that have a target at this size, and the correlation it reaches."""
    sample = swiss_roll(n, 0.1, seed=0)
    peers = embeddings(*TARGETS[n, n_landmarks])
    small = swiss_roll(200, 0.1, seed=1).X
    for embed in peers.values():
        embed(small, 0)
    ours(small)
    tasks: dict[str, Callable[[], Any]] = {"ours": partial(ours, sample.X, n_landmarks=n_landmarks)}
    tasks |= {name: partial(embed, sample.X, 0) for name, embed in peers.items()}
    seconds: dict[str, list[float]] = {name: [] for name in tasks}
    model = None
    for _ in range(turns):
        for name, task in tasks.items():
            start = time.process_time()
            result = task()
            seconds[name].append(time.process_time() - start)
            model = result if name == "ours" else model
    where = f"roll n={n}" + ("" if n_landmarks is None else f" landmarks={n_landmarks}")
    rows = [
        compared(f"fit {where}", seconds["ours"], peer, seconds[peer], bound)
        for peer, bound in TARGETS[n, n_landmarks].items()
        if peer in seconds
    ]
    row = single(f"correlation {where}", correlation(model, sample), LOWEST[n, n_landmarks], "", "higher")
    return [*rows, row | {"what": "Pearson correlation of the plane with geodesics, rows of 500 points, same run"}]


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
            tries = []
            for _ in range(3 if n <= LARGE else 1):
                start = time.process_time()
                ours(X, t=10.0, n_landmarks=landmarks)
                tries.append(time.process_time() - start)
            seconds.append(min(tries))
        slope, interval = slope_fit(sizes, seconds)
        what = f"exponent of the time in n, {sizes[0]} to {sizes[-1]}, t = 10"
        row = single(f"{name}-in-n", slope, bound, "exponent", "lower")
        rows.append(row | {"interval": interval, "what": what})
    return rows


def large_scale(n: int = HUGE, n_landmarks: int = 2_000) -> list[Row]:
    """Time and peak memory at 1e5 points, in a process of its own."""
    command = [sys.executable, "-c", IN_A_PROCESS, str(n), str(n_landmarks)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    seconds, memory = json.loads(done.stdout)
    where = f"n={n} landmarks={n_landmarks} t=10"
    return [
        single(f"fit {where}", seconds, "<= 180", "s", "lower") | {"what": "CPU seconds, one thread"},
        single(f"memory {where}", memory, None, "GiB", "lower") | {"what": "peak resident memory of the process"},
    ]


def compared(name: str, seconds: list[float], peer: str, theirs: list[float], bound: str | None) -> Row:
    pairs = np.divide(seconds, theirs)
    return {
        "name": name,
        "ours": float(np.median(seconds)),
        "peer": f"{peer} ({float(np.median(theirs)):.2f} s)",
        "ratio": float(np.median(pairs)),
        "interval": bootstrap_interval(pairs, statistic=np.median),
        "bound": bound,
        "unit": "s",
        "what": f"CPU seconds of fit_transform against {peer}",
        "better": "lower",
    }


def single(name: str, value: float, bound: str | None, unit: str, better: str) -> Row:
    return {
        "name": name,
        "ours": value,
        "peer": None,
        "ratio": None,
        "interval": None,
        "bound": bound,
        "unit": unit,
        "what": name,
        "better": better,
    }
