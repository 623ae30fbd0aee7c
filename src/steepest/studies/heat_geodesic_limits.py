"""What the heat-geodesic study measures of limits: approximate heat kernels, PHATE and SNE as special cases."""

from __future__ import annotations

from typing import Any

from scipy.spatial import procrustes
from scipy.spatial.distance import cdist

from steepest.core.extras import installed
from steepest.manifold.heat_geodesic import phate_like, sne_like
from steepest.studies.context import Context
from steepest.studies.heat_geodesic_cells import cells_or_digits, numbers
from steepest.studies.heat_geodesic_data import size, swiss_roll
from steepest.studies.heat_geodesic_peers import embeddings, ours, plane
from steepest.studies.heat_geodesic_scores import common_neighbors, distance_correlation

__all__ = ["approximations", "as_phate", "as_sne"]


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
    """`phate_like` at several times against PHATE's plane, both on PHATE's own graph of five neighbors."""
    if not installed("phate"):
        for claim in ("phate-disparity", "phate-correlation"):
            ctx.skipped(claim, "PHATE is not installed")
        return
    X = cells_or_digits(ctx, size(ctx, quick=400, full=700, paper=700, tiny=60)).X
    theirs = embeddings("PHATE", n_neighbors=5)["PHATE"](X, 0)
    disparity, correlation = {}, {}
    for t in ctx.pick(quick=(3, 5, 8, 12), full=(2, 3, 5, 8, 12, 20, 40), paper=(2, 3, 5, 8, 12, 20, 40), tiny=(5, 8)):
        Y = plane(X, phate_like, n_neighbors=5, t=float(t), n_landmarks=None)
        disparity[t] = float(procrustes(theirs, Y)[2])
        correlation[t] = distance_correlation(cdist(theirs, theirs), cdist(Y, Y))
    ctx.measured("phate-disparity", min(disparity.values()))
    ctx.measured("phate-correlation", max(correlation.values()))
    ctx.series("phate-like", list(disparity.items()), method="phate_like")


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
