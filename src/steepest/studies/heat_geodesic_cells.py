"""What the heat-geodesic study measures on cells and digits: withheld times and clusters; and what pictures show."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np

from steepest.core.extras import MissingExtra
from steepest.core.parallel import ordered_map
from steepest.studies.context import Context, Unavailable
from steepest.studies.heat_geodesic_data import (
    Sample,
    blood_cells,
    code_test,
    differentiation,
    krumsiek,
    size,
    swiss_roll,
    time_bins,
    tree,
    two_cluster_roll,
)
from steepest.studies.heat_geodesic_peers import OURS, embeddings, plane
from steepest.studies.heat_geodesic_scores import cluster_scores, interpolation_errors

__all__ = ["cells_or_digits", "clusters", "digits", "numbers", "pictures", "times"]


def times(ctx: Context) -> None:
    """Wasserstein distance from a withheld bin of time to the middle of its two neighbors."""
    n, seeds = size(ctx, quick=400, full=800, paper=800, tiny=80), ctx.seeds
    samples = {f"branching, seed {seed}": differentiation(n, seed=seed) for seed in seeds}
    try:
        folder = Path(ctx.data("single_cell"))
        samples |= {f"krumsiek11, seed {seed}": krumsiek(folder, seed=seed) for seed in seeds}
    except Unavailable as error:
        ctx.note(f"Withheld times on the branching simulation alone: {error}.")
    if ctx.scale == "tiny" or code_test(ctx):
        samples = dict(list(samples.items())[:1])
    peers = ("PHATE", "Isomap", *(("t-SNE", "UMAP") if _large(ctx) else ()))
    backend: Literal["serial", "processes"] = "processes" if _large(ctx) else "serial"
    errors: dict[str, list[float]] = {}
    try:
        drawn = ordered_map(partial(_planes, peers, ctx.seed), samples.values(), backend=backend, n_workers=2)
        for (name, sample), planes in zip(samples.items(), drawn, strict=True):
            assert sample.position is not None
            bins = time_bins(sample.position, 8)
            for method, Y in planes.items():
                each = interpolation_errors(Y, bins)
                errors.setdefault(method, []).extend(each)
                ctx.series("times", [(0, float(each.mean()))], method=method)
            if name == "krumsiek11, seed 1" or len(samples) == 1:
                _keep_planes(ctx, "cells in time", planes, sample.position)
    except MissingExtra as error:
        for claim in ("times-phate", "times-phate-share", "times-isomap", "times-without-harnack"):
            ctx.skipped(claim, str(error))
        return
    values = np.array(errors[OURS])
    ctx.note(
        f"Mean Wasserstein distance of withheld times: {numbers({m: float(np.mean(e)) for m, e in errors.items()})}."
    )
    ctx.measured("times-isomap", float(values.mean() / np.mean(errors["Isomap"])))
    ctx.measured("times-without-harnack", float(values.mean() / np.mean(errors["sigma = 0"])))
    if "PHATE" in errors:
        theirs = np.array(errors["PHATE"])
        ctx.measured("times-phate", float(values.mean() / theirs.mean()), _ratio_interval(values, theirs))
        ctx.measured("times-phate-share", float(np.mean(values < theirs)))
    else:
        for claim in ("times-phate", "times-phate-share"):
            ctx.skipped(claim, "PHATE is not installed")


def _planes(peers: tuple[str, ...], seed: int, sample: Sample) -> dict[str, np.ndarray]:
    """Our plane with and without Harnack's term, and the peers'."""
    ours = {OURS: plane(sample.X), "sigma = 0": plane(sample.X, harnack_regul=0.0)}
    return ours | {peer: embed(sample.X, seed) for peer, embed in embeddings(*peers).items()}


def _ratio_interval(a: np.ndarray, b: np.ndarray) -> tuple[float, float]:
    """90 % bootstrap interval of a ratio of means over withheld bins."""
    draws = np.random.default_rng(0).integers(len(a), size=(4000, len(a)))
    low, high = np.quantile(a[draws].mean(axis=1) / b[draws].mean(axis=1), [0.05, 0.95])
    return float(low), float(high)


def clusters(ctx: Context) -> None:
    """k-means in the plane against known groups."""
    if ctx.scale == "quick":
        return
    n = size(ctx, quick=0, full=1000, paper=1000, tiny=60)
    samples = {
        "two groups on a roll": two_cluster_roll(n, seed=ctx.seed),
        "tree": tree(n, 0.1, seed=ctx.seed),
        "digits": digits(ctx, n),
    }
    try:
        samples["blood cells"] = blood_cells(_folder(ctx))
    except Unavailable as error:
        ctx.note(f"Clusters without blood cells: {error}.")
    names = ("PHATE", "diffusion map", "spectral", "t-SNE", "Isomap", "UMAP")
    if ctx.scale == "tiny" or code_test(ctx):
        del samples["two groups on a roll"]
    known = embeddings(*(names if _large(ctx) else names[:4]))
    ami: dict[str, dict[str, float]] = {}
    for where, sample in samples.items():
        X = sample.X[: min(n, len(sample.X))]
        assert sample.labels is not None
        planes = {OURS: plane(X)} | {peer: embed(X, ctx.seed) for peer, embed in known.items()}
        scores = {name: cluster_scores(Y, sample.labels[: len(X)]) for name, Y in planes.items()}
        ami[where] = {name: s["AMI"] for name, s in scores.items()}
        for score in ("homogeneity", "ARI", "AMI"):
            ctx.note(f"{where}, {score}: {numbers({name: s[score] for name, s in scores.items()})}.")
        if where == "blood cells":
            _keep_planes(ctx, "blood cells", planes, sample.labels[: len(X)])
    means = {name: float(np.mean([by[name] for by in ami.values()])) for name in (OURS, *known)}
    for name, value in means.items():
        ctx.series("clusters", [(0, value)], method=name)
    rivals = [name for name in ("PHATE", "diffusion map", "spectral") if name in means]
    ctx.measured("clusters-diffusion", means[OURS] - max(means[name] for name in rivals))
    ctx.measured("clusters-digits-tsne", ami["digits"]["t-SNE"] - ami["digits"][OURS])
    if "PHATE" in means:
        ctx.measured("clusters-phate", float(np.mean([by[OURS] >= by["PHATE"] for by in ami.values()])))
    else:
        ctx.skipped("clusters-phate", "PHATE is not installed")


def pictures(ctx: Context) -> None:
    """Keep planes of a noisy roll, and pairs of distances against their geodesics."""
    n = size(ctx, quick=400, full=1500, paper=1500, tiny=60)
    sample = swiss_roll(n, 0.5, seed=ctx.seed)
    assert sample.position is not None
    peers = embeddings("PHATE", "Isomap", *(("t-SNE",) if ctx.scale != "quick" else ()))
    planes = {OURS: plane(sample.X)} | {name: embed(sample.X, 0) for name, embed in peers.items()}
    _keep_planes(ctx, "roll", planes, sample.position)
    pairs = np.random.default_rng(0).integers(n, size=(2, 1500))
    i, j = pairs[:, pairs[0] != pairs[1]]
    found = {name: np.linalg.norm(Y[i] - Y[j], axis=1) for name, Y in planes.items()}
    ctx.arrays(
        "distance pairs",
        names=np.array(list(found)),
        geodesic=sample.geodesics[i, j],
        distance=np.array([d / np.median(d) for d in found.values()]),
    )


def _keep_planes(ctx: Context, name: str, planes: Mapping[str, np.ndarray], values: np.ndarray) -> None:
    """At most 800 points of at most four planes, each centered and of unit size."""
    shown = [m for m in (OURS, "PHATE", "Isomap", "t-SNE", "UMAP") if m in planes][:4]
    kept = np.sort(np.random.default_rng(0).permutation(len(values))[:800])
    points = [(planes[m][kept] - planes[m].mean(axis=0)) / np.sqrt(planes[m].var(axis=0).sum()) for m in shown]
    ctx.arrays(name, names=np.array(shown), points=np.array(points), values=values[kept])


def cells_or_digits(ctx: Context, n: int) -> Sample:
    """Blood cells, or digits where those are not on this machine."""
    try:
        cells = blood_cells(_folder(ctx))
        return Sample(cells.X[:n], labels=None if cells.labels is None else cells.labels[:n])
    except Unavailable as error:
        ctx.note(f"Digits instead of blood cells: {error}.")
        return digits(ctx, n)


def _folder(ctx: Context) -> Path | None:
    try:
        return Path(ctx.data("single_cell"))
    except Unavailable:
        return None


def digits(ctx: Context, n: int) -> Sample:
    """`n` of scikit-learn's digits, drawn by the run's seed."""
    X, y = ctx.data("digits")
    kept = np.sort(np.random.default_rng(ctx.seed).permutation(len(X))[:n])
    return Sample(np.asarray(X[kept], dtype=float), labels=np.asarray(y[kept]))


def numbers(values: Mapping[str, float]) -> str:
    """Names with their numbers, for a note."""
    return ", ".join(f"{name} {value:.3f}" for name, value in values.items())


def _large(ctx: Context) -> bool:
    """Whether UMAP's minute of compiling is spent."""
    return ctx.scale in ("full", "paper") and not code_test(ctx)
