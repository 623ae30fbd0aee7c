"""Heat-geodesic embedding draws data in two dimensions so that distances in the picture are distances along the data.

It is for single-cell biologists and anyone else who looks at noisy points near a curved shape. The distances come from
the heat kernel of a neighbor graph by Varadhan's formula, with a correction for the volume of the ball that heat has
reached. Here: how well they agree with geodesics that are known (`studies.heat_geodesic_distances`), whether clusters
and withheld times survive (blood cells, digits, simulated cells), and whether PHATE and SNE are reached as special
cases. Peers are PHATE, Isomap, diffusion map, t-SNE and UMAP on the same points with the same neighbors.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from scipy import stats

from steepest.studies import heat_geodesic_cells as cells
from steepest.studies import heat_geodesic_distances as distances
from steepest.studies import heat_geodesic_limits as limits
from steepest.studies import heat_geodesic_paper, heat_geodesic_pictures
from steepest.studies.claim import Claim, Figure, Paper, Peer, bootstrap_interval
from steepest.studies.context import Context
from steepest.studies.heat_geodesic_data import code_test, size
from steepest.studies.heat_geodesic_distances import QUICK, SETTINGS, Scores, Setting
from steepest.studies.heat_geodesic_peers import OURS

AREA = "manifold"

PAPER = Paper(
    title="A Heat Diffusion Perspective on Geodesic Preserving Dimensionality Reduction",
    authors="Guillaume Huguet, Alexander Tong, Edward De Brouwer, Yanlei Zhang, Guy Wolf, Ian Adelstein, "
    "Smita Krishnaswamy",
    venue="NeurIPS",
    year=2023,
    url="https://arxiv.org/abs/2305.19043",
)

_DISTANCES = "outperforms existing methods on Swiss rolls and trees"
_CLUSTERS = "preserves cluster structure better than other diffusion methods"

# fmt: off
CLAIMS = [  # id, what it says, the paper's number, bound, unit, scales
    Claim("distances-phate", "Its distances follow the true geodesics better than PHATE's, both at their defaults.",
          _DISTANCES, ">= 0.05", "Pearson correlation above PHATE's, mean over the settings", "quick full paper"),
    Claim("distances-phate-share", "They do so on nearly every data set.", _DISTANCES, ">= 0.75",
          "share of (setting, seed) pairs", "quick full paper"),
    Claim("distances-phate-significant", "This is no accident.", _DISTANCES, "< 0.05",
          "p of Wilcoxon's signed-rank test", "quick full paper"),
    Claim("distances-isomap-roll", "Against shortest paths the gain is in noise: roll at noise 1.", _DISTANCES,
          ">= 0.1", "Pearson correlation above Isomap's", "quick full paper"),
    Claim("distances-isomap-tree", "Against shortest paths the gain is in noise: trees at noise 0.5 and 1.",
          _DISTANCES, ">= 0.05", "Pearson correlation above Isomap's", "quick full paper"),
    Claim("distances-isomap-clean", "What Isomap reaches on the almost clean roll.", "not said", "reported",
          "Isomap's Pearson correlation, noise 0.1", "quick full paper"),
    Claim("distances-default", "With its defaults it unrolls a roll of 2,000 points at noise up to 0.5.", _DISTANCES,
          ">= 0.98", "lowest mean Pearson correlation, rolls in 3, 10 and 50 dimensions", "full paper"),
    Claim("distances-landmarks", "With its defaults it unrolls a roll of 10,000 points (500 landmarks).", _DISTANCES,
          ">= 0.97", "Pearson correlation of the plane, noise 0.1", "full paper"),
    Claim("distances-selected", "With chosen neighbors, time and correction it unrolls rolls at noise up to 0.5.",
          _DISTANCES, ">= 0.98", "lowest mean Pearson correlation", "full paper"),
    Claim("plane-phate", "The plane too keeps geodesics better than PHATE's.", _DISTANCES, ">= 0.05",
          "Pearson correlation above PHATE's, mean over the settings", "full paper"),
    Claim("plane-phate-share", "It does so on nearly every data set.", _DISTANCES, ">= 0.75",
          "share of (setting, seed) pairs", "full paper"),
    Claim("plane-phate-significant", "This is no accident.", _DISTANCES, "< 0.05",
          "p of Wilcoxon's signed-rank test", "full paper"),
    Claim("plane-tsne", "What the plane gains over t-SNE's.", _DISTANCES, "reported",
          "Pearson correlation above t-SNE's, mean over the settings", "full paper"),
    Claim("plane-umap", "What the plane gains over UMAP's.", _DISTANCES, "reported",
          "Pearson correlation above UMAP's, mean over the settings", "full paper"),
    Claim("clusters-phate", "Clusters survive at least as well as in PHATE's plane, on every data set.", _CLUSTERS,
          "== 1", "share of data sets, AMI of k-means", "full paper"),
    Claim("clusters-diffusion", "On average they survive at least as well as in the best diffusion method's plane.",
          _CLUSTERS, ">= 0", "mean AMI above the best of PHATE, diffusion map, spectral", "full paper"),
    Claim("clusters-digits-tsne", "What t-SNE is ahead by on digits.", "not said", "reported",
          "AMI of t-SNE above ours", "full paper"),
    Claim("times-phate", "A withheld time lies nearer to the middle of its neighbors in time than in PHATE's plane.",
          "lower than PHATE on most data sets", "<= 0.8", "x PHATE's mean Wasserstein distance", "quick full paper"),
    Claim("times-phate-share", "It does so for most of the withheld times.", "lower than PHATE on most data sets",
          ">= 0.6", "share of withheld times", "quick full paper"),
    Claim("times-isomap", "The same against Isomap.", "not compared", "reported",
          "x Isomap's mean Wasserstein distance", "quick full paper"),
    Claim("times-without-harnack", "What the correction for volume is worth.", "not separated", "reported",
          "x the mean Wasserstein distance at sigma = 0", "quick full paper"),
    Claim("phate-disparity", "It can be set to give PHATE's picture.", "PHATE is a special case", "<= 0.02",
          "Procrustes disparity, best time", "quick full paper"),
    Claim("phate-correlation", "It can be set to give PHATE's distances.", "PHATE is a special case", ">= 0.98",
          "correlation of the distances in the planes, best time", "quick full paper"),
    Claim("sne-trustworthiness", "Weights by heat make near points rule, as in SNE.", "SNE is a special case",
          ">= 0.01", "trustworthiness above that of the default", "quick full paper"),
    Claim("sne-overlap", "Its neighbors are then more like those of t-SNE.", "SNE is a special case", "> 0",
          "common 10 nearest neighbors with t-SNE's above the default's", "quick full paper"),
    Claim("heat-chebyshev", "Chebyshev polynomials are as good as the exact heat kernel.", "Table of approximations",
          ">= 0.9999", "correlation of the distances", "quick full paper"),
    Claim("heat-euler", "Twenty backward Euler steps are nearly as good.", "Table of approximations", ">= 0.98",
          "correlation of the distances", "quick full paper"),
    Claim("heat-lowrank", "What 200 eigenpairs give.", "Table of approximations", "reported",
          "correlation of the distances", "quick full paper"),
    Claim("own-cells-clusters", "On your own cells types survive at least as well as in PHATE's plane.", _CLUSTERS,
          ">= 0", "AMI above PHATE's", "paper"),
    Claim("own-cells-times", "On your own cells withheld times lie nearer to the middle of their neighbors.",
          "lower than PHATE on most data sets", "<= 0.8", "x PHATE's mean Wasserstein distance", "paper"),
]
# fmt: on

PEERS = [
    Peer("PHATE", "phate"),
    Peer("Isomap", "sklearn"),
    Peer("diffusion map", "sklearn"),
    Peer("t-SNE", "sklearn"),
    Peer("UMAP", "umap"),
    Peer("spectral", "sklearn"),
    Peer("pydiffmap", "pydiffmap"),
]

OPTIONS = {
    "data": "at paper: an AnnData file (.h5ad) below --data, with scanpy or anndata installed",
    "time": "at paper: the column of its cells that holds the time (default: time)",
    "label": "at paper: the column that holds the type (default: cell_type)",
}

# fmt: off
FIGURES = [
    Figure("geodesics", "Its distances follow geodesics that noise hides from shortest paths", "distances",
           "mean Pearson correlation of rows", "setting and method", "bars",
           caption="Each method's own distances; one bar is the mean over the settings of one seed."),
    Figure("noise-roll", "On the roll the noise decides who is ahead", "roll",
           "noise (standard deviation in each dimension)", "Pearson correlation with geodesics",
           caption="Swiss roll of width 5; each method's own distances, ten neighbors."),
    Figure("noise-tree", "On trees diffusion helps as long as anything is left", "tree",
           "noise (standard deviation / 10)", "Pearson correlation with geodesics",
           caption="Five random-walk branches in ten dimensions; each method's own distances, ten neighbors."),
    Figure("planes", "What is left of geodesics in the plane", "planes", "mean Pearson correlation of rows", "method",
           "bars", caption="Two dimensions, ten settings."),
    Figure("clusters", "Clusters found in the plane", "clusters", "AMI of k-means, mean over data sets", "method",
           "bars", caption="Two groups on a roll, five branches, blood cells (10 types), digits."),
    Figure("times", "Withheld times, interpolated in the plane", "times", "mean Wasserstein distance", "method",
           "bars", caption="Simulated cells, eight bins of time; the middle of the two neighbors against the bin."),
    Figure("approximations", "How many steps the heat kernel needs", "approximations", "steps or rank",
           "correlation of distances with the exact ones", log_x=True, caption="Swiss roll, noise 0.5."),
    Figure("phate", "As PHATE: where the time fits", "phate-like", "time t", "Procrustes disparity to PHATE's plane",
           log_x=True, log_y=True, caption="normalized Laplacian, sigma = 0, power 2, full denoising."),
]
# fmt: on

PICTURES = heat_geodesic_pictures.PICTURES

SNIPPET = """\
import numpy as np
from steepest.manifold import HeatGeodesicEmbedding

rng = np.random.default_rng(0)
angle = 1.5 * np.pi * (1 + 2 * rng.random(400))
X = np.column_stack([angle * np.cos(angle), 5 * rng.random(400), angle * np.sin(angle)])
X += 0.1 * rng.standard_normal(X.shape)
model = HeatGeodesicEmbedding(n_components=2, random_state=0)
Y = model.fit_transform(X)
print(model.t_, model.stress_, abs(np.corrcoef(Y[:, 0], angle)[0, 1]))
new = model.transform(X[:3] + 0.01)
"""

_BRIDGE = (
    "In 50 dimensions distances are so much alike that the kernel, which ends 6 % beyond the tenth neighbor, "
    "joins two windings on 5 of 100 further seeds (40 seeds in 3 and in 10 dimensions: never). The logarithm of heat "
    "discounts such an edge by -4t ln of its weight only: on seed 49 one edge of 31,659, weight 8e-4, takes the "
    "default's correlation from 0.997 to 0.927. The other four seeds have 0.994 to 0.998; seeds, not noise, make the "
    "interval wide. Dropping affinities below 0.01 spares two of the five seeds, below 1/e (the ten neighbors alone) "
    "all five."
)
REASONS: dict[str, str] = {
    "distances-default": _BRIDGE,
    "distances-selected": _BRIDGE + " The tuning seeds have no such edge, so short times look best on them.",
    "distances-isomap-roll": "The time is short: the knee, 5.3, stays because nothing is at the floor there. On the "
    "tuning seeds t = 16 takes the correlation from 0.44-0.52 to 0.52-0.64 (Isomap 0.35-0.40), with nothing else "
    "changed; on trees at noise 1 it costs 0.01 to 0.04. Between 0.2 and 0.6 % of the edges join two windings.",
    "clusters-phate": "Two groups on a roll: the thin ends of the groups have their tenth neighbor on the next winding "
    "(37 to 161 such edges on seven of eight seeds). Without these edges the AMI rises from 0.828 to 0.936 on this "
    "sample, from 0.741 to 0.910 and from 0.758 to 0.960 on others. The sample decides: over four of them ours less "
    "PHATE's is -0.005, -0.045, +0.005 and -0.099.",
}

WHEN_NOT = [
    "The data are almost free of noise: shortest paths (Isomap) give geodesics exactly and cost less.",
    "Only clusters or nearest neighbors matter: t-SNE finds the digits' classes better.",
    "Hardly anything of the shape is left in the noise (trees at noise 1): no method here follows its geodesics.",
    "Data fall into components: distances between them are one and the same large number.",
]


def run(ctx: Context) -> None:
    """Measure; see the module."""
    ctx.progress(0.0)
    parts: list[tuple[float, str, Callable[[Context], None]]] = [
        (0.6, "geodesics", _geodesics),
        (0.65, "approximations", limits.approximations),
        (0.7, "as PHATE", limits.as_phate),
        (0.75, "as SNE", limits.as_sne),
        (0.85, "withheld times", cells.times),
        (0.95, "clusters", cells.clusters),
        (1.0, "pictures", cells.pictures),
        *([(1.0, "own cells", heat_geodesic_paper.own_cells)] if ctx.scale == "paper" else []),
    ]
    for share, name, part in parts:
        ctx.timed(name, lambda part=part: part(ctx))  # type: ignore[misc]
        ctx.progress(share, part=name)


def _geodesics(ctx: Context) -> None:
    """Each method's own distances and planes against true geodesics."""
    settings = ctx.pick(quick=QUICK, full=SETTINGS, paper=SETTINGS, tiny=QUICK[:1] + QUICK[2:4])
    n = size(ctx, quick=600, full=2000, paper=2500, tiny=60)
    tuning, test = _seeds(ctx)
    seeds = test[: ctx.seeds_asked or ctx.pick(quick=len(test), full=4, paper=10)]
    workers = 2 if ctx.scale in ("full", "paper") and not code_test(ctx) else None
    found = distances.compare(settings, n, seeds, n_workers=workers, progress=lambda done: ctx.progress(0.3 * done))
    _against_phate(ctx, "distances-phate", found)
    _against_isomap(ctx, found)
    for name, by_setting in found.items():
        for k, seed in enumerate(seeds):
            ctx.series(
                "distances", [(0, float(np.mean([p[k][0] for p in by_setting.values()])))], method=name, seed=seed
            )
            for shape, dim in (("roll", 3), ("tree", 10)):
                along = [(s.noise, by_setting[s.name][k][0]) for s in settings if (s.shape, s.dim) == (shape, dim)]
                ctx.series(shape, along, method=name, seed=seed)
    ctx.note(
        f"Geodesics: {len(settings)} settings, {n} points, seeds {seeds[0]} to {seeds[-1]}. {_table(found, settings)}"
    )
    if ctx.scale == "quick":
        ctx.note("At quick each method's own distances are compared; planes, t-SNE and UMAP come at full.")
        return
    peers = ("PHATE", "Isomap", "diffusion map", "t-SNE", *(() if workers is None else ("UMAP",)))
    n_planes = size(ctx, quick=600, full=1000, paper=2500, tiny=60)
    planes = distances.compare(
        settings,
        n_planes,
        seeds[:1],
        planes=peers,
        n_workers=workers,
        progress=lambda done: ctx.progress(0.3 + 0.15 * done),
    )
    _against_phate(ctx, "plane-phate", planes)
    for claim, peer in (("plane-tsne", "t-SNE"), ("plane-umap", "UMAP")):
        if peer in planes:
            ctx.measured(claim, float(np.mean(_differences(planes, peer))))
        else:
            ctx.skipped(claim, f"{peer} is not installed, or this is a test of the code")
    for name, by_setting in planes.items():
        ctx.series("planes", [(0, float(np.mean([p[0][0] for p in by_setting.values()])))], method=name, seed=seeds[0])
    ctx.note(f"Planes, {n_planes} points, seed {seeds[0]}. {_table(planes, settings)}")
    if ctx.scale == "full":
        ctx.note(
            "So that full takes less than a quarter of an hour, it has less than the paper's protocol: "
            f"{len(seeds)} of the 5 test seeds with peers (all 5 in the rows that are ours alone), {len(tuning)} of 5 "
            f"tuning seeds, and {n_planes} points for planes (t-SNE, UMAP and PHATE's scaling are the slowest rows)."
        )
    _absolute(ctx, found, [s for s in settings if s.low_noise_roll], n, tuning, test, workers)


def _seeds(ctx: Context) -> tuple[list[int], list[int]]:
    """Seeds to choose settings on and seeds to report on; at full and paper those of the paper's protocol."""
    if ctx.scale in ("quick", "tiny") or code_test(ctx):
        return [ctx.seed], ctx.seeds
    count = ctx.seeds_asked or ctx.pick(quick=0, full=5, paper=10)
    return list(range(42, ctx.pick(quick=42, full=45, paper=47))), list(range(47, 47 + count))


def _differences(found: Scores, peer: str, settings: Sequence[str] | None = None) -> np.ndarray:
    """Pearson correlation above the peer's, for each setting and seed."""
    names = found[OURS] if settings is None else settings
    return np.array([[a[0] - b[0] for a, b in zip(found[OURS][s], found[peer][s])] for s in names])


def _against_phate(ctx: Context, claim: str, found: Scores) -> None:
    names = (claim, f"{claim}-share", f"{claim}-significant")
    if "PHATE" not in found:
        for name in names:
            ctx.skipped(name, "PHATE is not installed")
        return
    gains = _differences(found, "PHATE")
    ctx.measured(names[0], float(gains.mean()), bootstrap_interval(gains.mean(axis=0)))
    ctx.measured(names[1], float(np.mean(gains > 0)))
    ctx.measured(names[2], float(stats.wilcoxon(gains.ravel(), alternative="greater").pvalue))


def _against_isomap(ctx: Context, found: Scores) -> None:
    present = found[OURS]
    roll = [s.name for s in SETTINGS if (s.shape, s.noise, s.dim) == ("roll", 1.0, 3) and s.name in present]
    trees = [s.name for s in SETTINGS if s.shape == "tree" and s.noise >= 0.5 and s.name in present]
    clean = [s.name for s in SETTINGS if (s.shape, s.noise, s.dim) == ("roll", 0.1, 3)]
    for claim, names in (("distances-isomap-roll", roll), ("distances-isomap-tree", trees)):
        gains = _differences(found, "Isomap", names).mean(axis=0)
        ctx.measured(claim, float(gains.mean()), bootstrap_interval(gains))
    ctx.measured("distances-isomap-clean", float(np.mean([p for p, _ in found["Isomap"][clean[0]]])))
    means = {name: np.mean([[p for p, _ in pairs] for pairs in v.values()], axis=0) for name, v in found.items()}
    best = max((name for name in means if name != OURS), key=lambda name: float(means[name].mean()))
    ratios = (1 - means[best]) / (1 - means[OURS])
    ctx.against(
        best,
        float(np.median(ratios)),
        bootstrap_interval(ratios, level=0.95, statistic=np.median),
        what="1 - Pearson correlation with true geodesics, mean over rolls and trees",
    )


def _absolute(
    ctx: Context,
    found: Scores,
    rolls: Sequence[Setting],
    n: int,
    tuning: Sequence[int],
    test: Sequence[int],
    workers: int | None,
) -> None:
    """The rows with absolute bounds: rolls at noise up to 0.5, on all test seeds."""
    known = {s.name: [p for p, _ in found[OURS][s.name]] for s in rolls}
    more = distances.score_default(rolls, n, test[len(known[rolls[0].name]) :], n_workers=workers)
    means = {name: np.array(known[name] + more[name]) for name in known}
    lowest = min(means, key=lambda name: float(means[name].mean()))
    ctx.measured("distances-default", float(means[lowest].mean()), bootstrap_interval(means[lowest]))
    chosen = distances.score_selected(rolls, n, tuning, test, n_workers=workers)
    lowest = min(chosen, key=lambda name: float(np.mean(chosen[name])))
    ctx.measured("distances-selected", float(np.mean(chosen[lowest])), bootstrap_interval(chosen[lowest]))
    ctx.note("Selected: " + "; ".join(f"{name}: {np.mean(values):.3f}" for name, values in chosen.items()) + ".")
    large = size(ctx, quick=0, full=10_000, paper=10_000, tiny=120)
    ctx.measured("distances-landmarks", distances.score_large(large, test[0], n_landmarks=min(500, large // 4)))


def _table(found: Scores, settings: Sequence[Setting]) -> str:
    rows = [
        f"{s.name}: " + ", ".join(f"{name} {np.mean([p for p, _ in v[s.name]]):.3f}" for name, v in found.items())
        for s in settings
    ]
    return "Mean Pearson correlation: " + "; ".join(rows) + "."
