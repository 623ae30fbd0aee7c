"""What the heat-geodesic study measures of limits: approximate heat kernels, PHATE and SNE as special cases."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from scipy.spatial import procrustes
from scipy.spatial.distance import cdist

from steepest.core.extras import installed
from steepest.manifold.heat_geodesic import phate_like, sne_like
from steepest.studies.context import Context, Unavailable
from steepest.studies.heat_geodesic_cells import cells_or_digits, digits, numbers
from steepest.studies.heat_geodesic_data import blood_cells, krumsiek, size, swiss_roll, tree
from steepest.studies.heat_geodesic_peers import embeddings, ours, plane
from steepest.studies.heat_geodesic_scores import common_neighbors, distance_correlation

__all__ = ["approximations", "as_phate", "as_sne"]

WIDE_TIMES = (2, 3, 5, 8, 12, 20, 30, 40)


def approximations(ctx: Context) -> None:
    """Distances from approximate heat kernels against those from the exact one, all at the same time."""
    n = size(ctx, quick=400, full=1000, paper=1000, tiny=60)
    X = swiss_roll(n, 0.5, seed=ctx.seed).X
    chosen = ours(X, mds="classic")
    settings: dict[str, Any] = {"t": chosen.t_, "mds": "classic", "n_landmarks": None}
    exact = ours(X, heat_method="exact", **settings).distances_

    def agreement(method: str, order: int | None = None) -> float:
        approximate = ours(X, heat_method=method, order=order, **settings)
        return distance_correlation(approximate.distances_, exact)

    ctx.measured("heat-chebyshev", agreement("chebyshev"))
    euler = {k: agreement("euler", k) for k in (5, 10, 20, 50, 100)}
    lowrank = {k: agreement("lowrank", k) for k in (20, 50, 100, 200) if k < n // 2}
    ctx.measured("heat-euler", euler[20])
    ctx.measured("heat-lowrank", lowrank[max(lowrank)])
    ctx.series("approximations", list(euler.items()), method="backward Euler")
    ctx.series("approximations", list(lowrank.items()), method="low rank")


def as_phate(ctx: Context) -> None:
    """`phate_like` at several times against PHATE's plane, five neighbors as in PHATE itself: the worst data set."""
    if not installed("phate"):
        for claim in ("phate-disparity", "phate-correlation"):
            ctx.skipped(claim, "PHATE is not installed")
        return
    n = size(ctx, quick=400, full=700, paper=700, tiny=60)
    samples = {"tree": tree(n, 0.1, seed=ctx.seed).X, **_cells(ctx, n)}
    times = ctx.pick(quick=(8, 12, 20, 30), full=WIDE_TIMES, paper=WIDE_TIMES, tiny=(5, 8))
    disparity, correlation = {}, {}
    for where, X in samples.items():
        theirs = embeddings("PHATE", n_neighbors=5)["PHATE"](X, 0)
        planes = {t: plane(X, phate_like, n_neighbors=5, t=float(t), n_landmarks=None) for t in times}
        along = {t: float(procrustes(theirs, Y)[2]) for t, Y in planes.items()}
        agreement = [distance_correlation(cdist(theirs, theirs), cdist(Y, Y)) for Y in planes.values()]
        disparity[where], correlation[where] = min(along.values()), max(agreement)
        ctx.series("phate-like", list(along.items()), method=where)
    ctx.measured("phate-disparity", max(disparity.values()))
    ctx.measured("phate-correlation", min(correlation.values()))
    ctx.note(f"As PHATE, best time: disparity {numbers(disparity)}; correlation of distances {numbers(correlation)}.")


def _cells(ctx: Context, n: int) -> dict[str, np.ndarray]:
    """What there is of digits, blood cells and simulated cells."""
    samples = {"digits": digits(ctx, n).X}
    try:
        folder = Path(ctx.data("single_cell"))
        samples |= {"blood cells": blood_cells(folder).X[:n], "krumsiek11": krumsiek(folder, seed=ctx.seed).X}
    except Unavailable as error:
        ctx.note(f"As PHATE, on tree and digits alone: {error}.")
    return samples


def as_sne(ctx: Context) -> None:
    """`sne_like` and the default against t-SNE's plane."""
    from sklearn.manifold import trustworthiness

    sample = cells_or_digits(ctx, size(ctx, quick=400, full=700, paper=700, tiny=60))
    theirs = embeddings("t-SNE")["t-SNE"](sample.X, 0)
    planes = {
        "default": plane(sample.X),
        "sne_like": plane(sample.X, sne_like, t=2.0),
    }
    trust = {name: float(trustworthiness(sample.X, Y, n_neighbors=10)) for name, Y in planes.items()}
    shared = {name: common_neighbors(theirs, Y) for name, Y in planes.items()}
    ctx.measured("sne-trustworthiness", trust["sne_like"] - trust["default"])
    ctx.measured("sne-overlap", shared["sne_like"] - shared["default"])
    ctx.note(f"As SNE: trustworthiness {numbers(trust)}; common 10 nearest neighbors with t-SNE {numbers(shared)}.")
