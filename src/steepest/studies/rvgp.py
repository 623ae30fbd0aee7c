"""RVGP fills in vector fields on a surface that is known only by points: between sparse vectors and across holes.

It is for people who hold vectors at scattered points of an unknown surface (EEG phase flow on the scalp, winds, neural
state spaces) and want them denoised, super-resolved or inpainted, with uncertainty and without a mesh. Here: diffused
fields on four surfaces of which a tenth to a half is seen, vortices, sources and saddles under holes, error against
density and eigenpairs, test points off the surface (`studies.rvgp_fields`), and phase flow on a simulated scalp with
61 of 256 sensors and the diagnosis made from its singularities (`studies.rvgp_eeg`). Peers are the paper's baseline, a
Gaussian process in space, and spherical splines (`studies.rvgp_peers`). ``paper`` takes the Stanford bunny and the
authors' EEG fields (`studies.rvgp_paper`).
"""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
from scipy import stats
from threadpoolctl import threadpool_limits

from steepest.core.parallel import ordered_map
from steepest.geometry.graph import GeometryWarning
from steepest.studies import rvgp_eeg as eeg
from steepest.studies import rvgp_paper
from steepest.studies.claim import Claim, Figure, Paper, Peer, Picture, bootstrap_interval
from steepest.studies.context import Context
from steepest.studies.rvgp_fields import KINDS, SHAPES, find_zeros
from steepest.studies.rvgp_pictures import draw_error_map, draw_fields, draw_scalp
from steepest.studies.rvgp_trials import (
    AMBIENT,
    BASELINE,
    OURS,
    Density,
    Hole,
    Trial,
    density_error,
    fill_in,
    inpaint,
    linear_field,
    off_surface,
    predictions,
)

AREA = "manifold"

PAPER = Paper(
    title="Implicit Gaussian process representation of vector fields over arbitrary latent manifolds",
    authors="R. Peach, M. Vinao-Carl, N. Grossman, M. David, E. Mallas, D. Sharp, P. Malhotra, P. Vandergheynst, "
    "A. Gosztolai",
    venue="ICLR",
    year=2024,
    url="https://arxiv.org/abs/2309.16746",
)

SPLINES = "spherical splines"
FEW = (0.2, 0.1)  # shares of the vectors that are seen
_MESHES = "super-resolves diffused fields on the bunny and other meshes, 50 % of the vectors known"
_EEG = "high-density EEG from low density, SVM accuracy close to high density's"


def _slug(shape: str) -> str:
    return shape.lower().replace(" ", "-")


# fmt: off
CLAIMS = [  # id, what it says, the paper's number, bound, unit, scales
    *(Claim(f"super-resolution-{_slug(shape)}",
            f"On the {shape} it fills in a field of which at most a fifth is seen better than the paper's baseline.",
            _MESHES, "<= 0.75", "x the baseline's error, worse of 20 % and 10 % seen", "quick full")
      for shape in SHAPES),
    Claim("super-resolution-cosine", "The directions that it fills in are right.", _MESHES, ">= 0.98",
          "mean cosine at hidden points, lowest of four surfaces and all shares seen", "quick full"),
    Claim("super-resolution-ambient", "On diffused fields it is not worse than a Gaussian process in space.",
          "not compared", "<= 1", "x its error, geometric mean over surfaces, at most 20 % seen", "quick full"),
    Claim("super-resolution-tuned", "Against the baseline with the better of 50 and 100 eigenvectors.", "not compared",
          "reported", "x the baseline's error, worst surface and share", "full"),
    Claim("super-resolution-dense", "The same for fields whose truth comes from a denser sample and true tangents.",
          "truth on the method's own graph", "reported", "x the baseline's error, worst surface and share", "full"),
    Claim("super-resolution-dense-ambient", "Such fields against a Gaussian process in space.",
          "truth on the method's own graph", "reported", "x its error, geometric mean over surfaces", "full"),
    Claim("smooth-in-space", "Fields that are linear in space, on a round sphere, against a Gaussian process in space.",
          "not compared", "reported", "x its error, 20 % seen", "full"),
    Claim("inpainting-index", "Under a hole it finds the one zero, with the right index.",
          "inpaints while preserving singularities", ">= 0.95", "share of holes", "quick full"),
    Claim("inpainting-place", "It finds the zero where it is.", "inpaints while preserving singularities", "<= 0.2",
          "95 % quantile of the distance, hole of radius 0.45", "quick full"),
    Claim("inpainting-place-median", "It usually finds it closer still.", "inpaints while preserving singularities",
          "<= 0.1", "median distance", "quick full"),
    Claim("inpainting-baseline", "The paper's baseline in the same holes.",
          "channel-wise fields lose singularities", "reported", "share of holes with the one zero", "full"),
    Claim("inpainting-ambient", "A Gaussian process in space in the same holes.", "not compared", "reported",
          "share of holes with the one zero", "full"),
    Claim("density", "The error falls with the density of the sample.", "error falls with density", "<= 0.5",
          "x, from 200 to 1600 points, worst surface", "full"),
    Claim("eigenpairs", "The error falls with the number of eigenpairs.", "error falls with eigenpairs", "== 0",
          "steps of K in which it rises by more than two standard errors", "full"),
    Claim("off-manifold", "Test points need not lie on the surface.", "robust to noise off the manifold", ">= 0.9",
          "mean cosine, displaced by 2 % of the diameter, lowest surface", "full"),
    Claim("eeg-error", "From 61 of 256 sensors it is nearer to the truth than spherical splines.", _EEG, "< 1",
          "x the splines' error", "quick full"),
    Claim("eeg-error-p", "And reliably so.", _EEG, "< 0.01", "p, Wilcoxon signed-rank over subjects", "full"),
    Claim("eeg-auc-high", "Diagnosis from 61 sensors is close to that from 256.", _EEG, ">= -0.05",
          "AUC above 256 sensors'", "full"),
    Claim("eeg-auc-splines", "It is not worse than with splines.", _EEG, ">= 0", "AUC above the splines'", "full"),
    Claim("eeg-tuned-splines", "Against splines whose smoothing is chosen with the truth at hand.", "not compared",
          "reported", "x their error", "full"),
    Claim("bunny", "On the Stanford bunny with half the vectors known.", "bunny, Fig. 3", "<= 0.75",
          "x the baseline's error", "paper"),
    Claim("eeg-fields", "On the authors' EEG fields: hidden electrodes against splines.", _EEG, "reported",
          "x the splines' error", "paper"),
]
# fmt: on

PEERS = [
    Peer(BASELINE, "sklearn"),
    Peer(AMBIENT, "sklearn"),
    Peer(SPLINES, "scipy"),
]

OPTIONS = {
    "eeg": "at paper: a MATLAB file with the authors' vector fields; --data is then the bunny's OBJ or PLY file",
    "positions": "at paper: the name of the variable that holds electrode positions (n, 3) (default: positions)",
    "fields": "at paper: the name of the variable that holds vectors (n, 3, frames) (default: fields)",
}

# fmt: off
FIGURES = [
    Figure("super-resolution", "Error at hidden points, one in five vectors seen", "error at 20 %", "relative error",
           "method", "dots", caption="Mean over four surfaces, noise 0.1; median and range over seeds."),
    Figure("seen", "Error against the share of vectors that is seen", "error against share", "share seen (%)",
           "relative error", log_y=True, caption="Mean over four surfaces; median and band over seeds."),
    Figure("density", "Error against the number of points", "error against density", "points", "relative error",
           log_x=True, log_y=True, caption="The same field of each surface at all densities; half is seen, noise 0.1."),
    Figure("eigenpairs", "Error against the number of eigenpairs", "error against eigenpairs", "eigenpairs K",
           "relative error", log_x=True, log_y=True, caption="800 points, half seen, noise 0.1."),
    Figure("off-manifold", "Directions at test points off the surface", "cosine off the surface",
           "displacement (share of the diameter)", "mean cosine", caption="Half of 800 vectors seen; three seeds."),
    Figure("eeg", "Error at hidden sensors against the noise of the sensors", "EEG error", "noise (per component)",
           "relative error", caption="Simulated scalp, 61 of 256 sensors; median and band over subjects."),
    Figure("auc", "Diagnosis by singularities, divergence and curl", "AUC", "area under the ROC curve", "fields",
           "dots", caption="40 + 40 subjects, 20 frames each, linear support vector machine; range over cohorts."),
]
# fmt: on

PICTURES = [
    Picture(
        "fields",
        "A fifth of the vectors is enough for the whole field, zeros included",
        "fields",
        draw_fields,
        "Noisy vectors seen at 20 % of 600 points (orange; 10 % on the roll); RVGP's field at the other "
        "points, colored by its angle error; circles mark its zeros.",
        "Four surfaces, a sphere, a torus, a bumpy sphere and a rolled sheet, covered with arrows that flow smoothly; "
        "circles mark the places where the flow vanishes.",
        (7.6, 6.6),
    ),
    Picture(
        "errors",
        "Where the methods go wrong on the rolled sheet",
        "errors",
        draw_error_map,
        "Swiss roll unrolled, 10 % of 600 vectors seen (rings): length of the error at each point, fields of length 1.",
        "Three maps of the unrolled sheet; the one of RVGP is almost uniformly dark, the others show bright patches.",
        (7.6, 4.6),
    ),
    Picture(
        "scalp",
        "Centers of the flow on the scalp, from 61 of 256 sensors",
        "scalp",
        draw_scalp,
        "One frame seen from above, nose up: true field, RVGP and splines; filled marks are zeros of index +1 "
        "(centers), open ones of index -1 (saddles); small dots are the 61 sensors.",
        "Three round maps of arrows; the marked centers of the middle map lie where those of the true one do.",
        (7.6, 3.4),
    ),
]

SNIPPET = """\
import numpy as np
from steepest.manifold import VectorFieldGP, furthest_point_sampling

rng = np.random.default_rng(0)
cloud = rng.standard_normal((3000, 3))
cloud /= np.linalg.norm(cloud, axis=1, keepdims=True)
X = cloud[furthest_point_sampling(cloud, n=400)]
field = np.cross([0.0, 0.0, 1.0], X)  # a rotation about the z axis
y = np.where((np.arange(400) % 5 == 0)[:, None], field, np.nan)  # one vector in five is known
model = VectorFieldGP(n_eigenpairs=30).fit(X, y)
mean, std = model.predict(X, return_std=True)
print(np.abs(mean - field).max(), std.mean())
"""

REASONS = {
    "density": "K stays at 100 while the points grow: a field of unit length with jumps has a part beyond any fixed K. "
    "On the sphere from 200 to 1600 points the error falls from 0.19 to 0.11 with K = 100, and from 0.197 to 0.090, a "
    "ratio of 0.46, where K is a quarter of the points",
    "eeg-auc-splines": "the lead over splines is 0.012, and the interval over cohorts of 40 patients and 40 controls "
    "reaches down to -0.004",
    "inpainting-place": "the quantile of 27 holes is all but the worst one, and the worst lie on the torus with the "
    "second kind of field; at full, with 180 holes and 1000 points in place of 600, it is 0.16",
}

WHEN_NOT = [
    "The field is smooth in the space around the surface (a linear field on a round sphere): a Gaussian process in "
    "space per component needs no graph and is more accurate.",
    "The surface is known in closed form, or is exactly a sphere: spherical splines with a smoothing chosen for the "
    "noise use that knowledge.",
    "Layers lie closer to each other than the points on them: no neighbor graph keeps them apart.",
    "The points are so few that tangent planes cannot be estimated: the estimated plane's error is a floor of the "
    "field's.",
]


def run(ctx: Context) -> None:
    """Measure; see the module."""
    if ctx.scale == "paper":
        rvgp_paper.measure(ctx)
        return
    ctx.progress(0.0)
    with threadpool_limits(1), warnings.catch_warnings():
        warnings.simplefilter("ignore", GeometryWarning)  # cut clusters of eigenvalues: they do not matter here
        ctx.timed("super-resolution", lambda: _super_resolution(ctx))
        ctx.progress(0.55)
        ctx.timed("inpainting", lambda: _inpainting(ctx))
        ctx.progress(0.7)
        if ctx.wants("density"):
            ctx.timed("density", lambda: _density(ctx))
        ctx.progress(0.8)
        ctx.timed("EEG", lambda: _eeg(ctx))


def _seeds(ctx: Context, n: int) -> list[int]:
    return ctx.seeds if ctx.seeds_asked else [ctx.seed + 1 + i for i in range(n)]


Progress = Callable[[float], object] | None


def _mapped(ctx: Context, fn: Callable[[Any], Any], items: Sequence[Any], progress: Progress = None) -> list[Any]:
    """Over two processes at full scale, one after the other otherwise."""
    if ctx.scale == "full":
        return ordered_map(fn, items, backend="processes", n_workers=2, progress=progress)
    return ordered_map(fn, items, progress=progress)


def _apply(ctx: Context, fn: Callable[[Any], Any], items: Sequence[Any], progress: Progress = None) -> dict[Any, Any]:
    """Results by item."""
    return dict(zip(items, _mapped(ctx, fn, items, progress)))


def _super_resolution(ctx: Context) -> None:
    n = ctx.pick(quick=600, full=1000, paper=1000, tiny=150)
    seeds = _seeds(ctx, ctx.pick(quick=3, full=10, paper=10, tiny=1))
    everything = ctx.wants("super-resolution-dense")
    new = partial(Trial, tune=ctx.scale != "tiny")
    trials = [new(shape, n, seed, share, half=everything) for shape in SHAPES for seed in seeds for share in FEW]
    if everything:
        trials += [new(shape, n, seed, 0.5) for shape in SHAPES for seed in seeds[:3]]
        trials += [new(shape, n, seed, share, True) for shape in SHAPES for seed in seeds[:5] for share in FEW]
    results = _apply(ctx, fill_in, trials, lambda done: ctx.progress(0.55 * done))

    def column(name: str, shape: str, share: float, dense: bool = False) -> np.ndarray:
        chosen = (r for t, r in results.items() if (t.shape, t.share, t.dense) == (shape, share, dense))
        return np.array([r[name] for r in chosen])

    def logs(peer: str, dense: bool = False) -> np.ndarray:
        """Log ratio of errors, ours to the peer's, (4 surfaces, 2 shares, seeds)."""
        return np.array([[np.log(column(OURS, s, f, dense) / column(peer, s, f, dense)) for f in FEW] for s in SHAPES])

    against = logs(BASELINE)
    for shape, values in zip(SHAPES, against):
        worst = max(values, key=np.mean)
        ctx.measured(f"super-resolution-{_slug(shape)}", *_geometric(worst))
    shares = sorted({t.share for t in trials})
    lowest = min((column("cosine", shape, share) for shape in SHAPES for share in shares), key=np.mean)
    ctx.measured("super-resolution-cosine", float(lowest.mean()), bootstrap_interval(lowest))
    in_space = logs(AMBIENT).mean(axis=(0, 1))
    ctx.measured("super-resolution-ambient", *_geometric(in_space))
    if everything:
        better = np.maximum(against, logs("half")).reshape(-1, len(seeds))
        ctx.measured("super-resolution-tuned", *_geometric(max(better, key=np.mean)))
        dense = logs(BASELINE, dense=True)
        ctx.measured("super-resolution-dense", *_geometric(max(dense.reshape(-1, dense.shape[-1]), key=np.mean)))
        ctx.measured("super-resolution-dense-ambient", *_geometric(logs(AMBIENT, dense=True).mean(axis=(0, 1))))
    for name in (OURS, BASELINE, AMBIENT):
        for i, seed in enumerate(seeds):
            means = {f: np.mean([column(name, s, f)[i] for s in SHAPES]) for f in shares if f in FEW or i < 3}
            ctx.series("error against share", [(100 * f, m) for f, m in means.items()], method=name, seed=seed)
            ctx.series("error at 20 %", [means[0.2]], method=name, seed=seed)
    factor, interval = _geometric(-in_space, level=0.95)
    ctx.against(AMBIENT, factor, interval, what=f"diffused fields on four surfaces, {n} points, 10 and 20 % seen")
    _keep_pictures(ctx, ctx.pick(quick=600, full=600, paper=600, tiny=150))


def _geometric(logs: np.ndarray, level: float = 0.9) -> tuple[float, tuple[float, float]]:
    """Geometric mean over seeds from logarithms, and its interval."""
    low, high = np.exp(bootstrap_interval(logs, level=level))
    return float(np.exp(np.mean(logs))), (float(low), float(high))


def _keep_pictures(ctx: Context, n: int) -> None:
    """One field of each surface, and the errors on the roll by method."""
    kept: dict[str, Any] = {"shapes": np.array(SHAPES)}
    for i, shape in enumerate(SHAPES):
        s, truth, y, found = predictions(
            Trial(shape, n, ctx.seed, 0.1 if shape == SHAPES[-1] else 0.2, tune=ctx.scale != "tiny")
        )
        zeros = find_zeros(s, found[OURS])
        kept |= {f"points_{i}": s.points, f"normals_{i}": s.normals, f"field_{i}": found[OURS], f"truth_{i}": truth}
        kept |= {f"seen_{i}": ~np.isnan(y).any(axis=1), f"zeros_{i}": np.array([z.place for z in zeros]).reshape(-1, 3)}
        kept[f"index_{i}"] = np.array([z.index for z in zeros], dtype=int)
    ctx.arrays("fields", **kept)
    lengths = [np.linalg.norm(field - truth, axis=1) for field in found.values()]
    ctx.arrays(
        "errors", places=s.parameters, seen=kept["seen_3"], errors=np.array(lengths), names=np.array(list(found))
    )


def _inpainting(ctx: Context) -> None:
    n = ctx.pick(quick=600, full=1000, paper=1000, tiny=150)
    seeds = _seeds(ctx, ctx.pick(quick=3, full=20, paper=20, tiny=1))
    everything = ctx.wants("inpainting-baseline")
    cases = [
        Hole(shape, kind, n, seed, everything and i < 1, ctx.scale != "tiny", even)
        for shape, even in (("sphere", True), ("torus", True), ("torus", False))
        for kind in KINDS
        for i, seed in enumerate(seeds)
    ]
    results = _apply(ctx, inpaint, cases)
    right = np.array([r[OURS][0] for r in results.values()], dtype=float)
    distance = np.array([r[OURS][1] for r in results.values()])
    ctx.measured("inpainting-index", float(right.mean()))
    ctx.measured("inpainting-place", float(np.quantile(distance, 0.95)))
    ctx.measured("inpainting-place-median", float(np.median(distance)))
    for shape, even in (("sphere", True), ("torus", True), ("torus", False)):
        some = [r[OURS][1] for c, r in results.items() if (c.shape, c.even) == (shape, even)]
        what = shape + ("" if even else ", gradient of the sum of two cosines")
        ctx.note(f"Holes on the {what}: 95 % quantile of the distance {np.quantile(some, 0.95):.3f}.")
    missed = [f"{c.kind} on the {c.shape}" for c, r in results.items() if not r[OURS][0]]
    if missed:
        ctx.note("Holes without the one zero: " + ", ".join(sorted(missed)) + ".")
    if everything:
        for name, claim in ((BASELINE, "inpainting-baseline"), (AMBIENT, "inpainting-ambient")):
            ctx.measured(claim, float(np.mean([r[name][0] for r in results.values() if name in r])))


def _density(ctx: Context) -> None:
    """Error against points and against eigenpairs, directions off the surface, and fields that are smooth in space."""
    sizes = ctx.pick(quick=(200, 1600), full=(200, 400, 800, 1600), paper=(), tiny=(100, 160))
    ranks = ctx.pick(quick=(), full=(2, 5, 10, 50, 100, 200), paper=(), tiny=(2, 5))
    seeds = _seeds(ctx, ctx.pick(quick=1, full=5, paper=5, tiny=2))
    dense, n, best = 3 * sizes[-1] // 2, sizes[-2], ranks[-2]
    by_n = {(s, m): [Density(s, m, best, seed, dense) for seed in seeds] for s in SHAPES for m in sizes}
    by_k = {(s, k): [Density(s, n, k, seed, dense) for seed in seeds] for s in SHAPES for k in ranks}
    cases = {case for group in [*by_n.values(), *by_k.values()] for case in group}
    errors = _apply(ctx, density_error, sorted(cases, key=lambda c: (c.shape, c.seed, c.n, c.n_eigenpairs)))

    def column(group: list[Density]) -> np.ndarray:
        return np.array([errors[case] for case in group])

    falls = [np.log(column(by_n[s, sizes[-1]]) / column(by_n[s, sizes[0]])) for s in SHAPES]
    ctx.measured("density", *_geometric(max(falls, key=np.mean)))
    rises = []
    for s in SHAPES:
        for k, more in itertools.pairwise(ranks):
            rise = column(by_k[s, more]) - column(by_k[s, k])
            if len(rise) > 1 and rise.mean() > 2 * rise.std(ddof=1) / np.sqrt(len(rise)):  # one seed decides nothing
                rises.append(
                    f"{s}, {k} to {more}: {column(by_k[s, k]).mean():.4f} to {column(by_k[s, more]).mean():.4f}"
                )
    ctx.measured("eigenpairs", len(rises))
    if rises:
        ctx.note("The error rises with the number of eigenpairs: " + "; ".join(rises) + ".")
    for s in SHAPES:
        for i, seed in enumerate(seeds):
            ctx.series("error against density", [(m, column(by_n[s, m])[i]) for m in sizes], method=s, seed=seed)
            ctx.series("error against eigenpairs", [(k, column(by_k[s, k])[i]) for k in ranks], method=s, seed=seed)

    away = (0.0, 0.005, 0.01, 0.02, 0.03, 0.045)
    cases_off = [Density(s, sizes[-2], best, seed, dense) for s in SHAPES for seed in seeds[:3]]
    cosines = _apply(ctx, partial(off_surface, displacements=away), cases_off)
    at_two = [np.array([cosines[c][3] for c in cases_off if c.shape == s]) for s in SHAPES]
    lowest = min(at_two, key=np.mean)
    ctx.measured("off-manifold", float(lowest.mean()), bootstrap_interval(lowest))
    for case in cases_off:
        ctx.series("cosine off the surface", list(zip(away, cosines[case])), method=case.shape, seed=case.seed)

    trials = [Trial("sphere", n, seed, 0.2, tune=ctx.scale != "tiny") for seed in seeds]
    ratios = _apply(ctx, linear_field, trials)
    ctx.measured("smooth-in-space", *_geometric(np.log(list(ratios.values()))))


# ----------------------------------------------------------------------------------------------------------------- EEG


def _eeg(ctx: Context) -> None:
    sensors = eeg.cap(80, 30) if ctx.scale == "tiny" else eeg.cap()
    n_subjects = ctx.pick(quick=4, full=40, paper=40, tiny=5)
    n_frames = ctx.pick(quick=10, full=20, paper=20, tiny=2)
    hidden = ~sensors.low
    cohorts = [
        eeg.simulate(sensors, n_subjects, n_frames, seed)
        for seed in _seeds(ctx, ctx.pick(quick=1, full=3, paper=3, tiny=1))
    ]
    found = [{name: eeg.reconstruct(sensors, cohort.noisy, name) for name in (OURS, SPLINES)} for cohort in cohorts]
    first, fields = cohorts[0], found[0]
    errors = {name: eeg.subject_errors(first, field, hidden) for name, field in fields.items()}
    logs = np.log(errors[OURS] / errors[SPLINES])
    ctx.measured("eeg-error", *_geometric(logs))
    _keep_scalp(ctx, sensors, first, fields)
    if not ctx.wants("eeg-error-p"):
        return
    ctx.measured("eeg-error-p", float(stats.wilcoxon(logs, alternative="less").pvalue))
    best, smoothing = eeg.best_splines(sensors, first)
    ctx.measured("eeg-tuned-splines", *_geometric(np.log(errors[OURS] / best)))
    ctx.note(f"EEG: the best smoothing of the splines is {smoothing:g} (the paper's: 1e-5).")
    noises = (0.1,) if ctx.scale == "tiny" else (0.0, 0.05, 0.1, 0.2, 0.4)
    for noise in noises:
        cohort = eeg.simulate(sensors, 1 if ctx.scale == "tiny" else 5, n_frames, ctx.seed, noise)
        for name in (OURS, SPLINES):
            values = eeg.subject_errors(cohort, eeg.reconstruct(sensors, cohort.noisy, name), hidden)
            for i, value in enumerate(values):
                ctx.series("EEG error", [(noise, value)], method=name, seed=i)
    ctx.progress(0.9)
    many = "256 sensors"
    work = [(i, name) for i in range(len(cohorts)) for name in (many, OURS, SPLINES)]
    tasks = [
        eeg.Diagnosis(sensors, cohorts[i].noisy if name == many else found[i][name], cohorts[i].patient)
        for i, name in work
    ]
    areas = dict(zip(work, _mapped(ctx, eeg.diagnose, tasks)))
    by_name = {name: np.array([areas[i, name] for i in range(len(cohorts))]) for name in (many, OURS, SPLINES)}
    for claim, peer in (("eeg-auc-high", many), ("eeg-auc-splines", SPLINES)):
        gain = by_name[OURS] - by_name[peer]
        ctx.measured(claim, float(gain.mean()), bootstrap_interval(gain))
    for name, values in by_name.items():
        for i, value in enumerate(values):
            ctx.series("AUC", [value], method=name, seed=i)


def _keep_scalp(ctx: Context, sensors: eeg.Cap, cohort: eeg.Cohort, fields: dict[str, np.ndarray]) -> None:
    """The frame with most centers of the first three controls: truth, ours, splines, and the zeros of each."""
    frames = cohort.truth[:3].reshape(-1, len(sensors.points), 3)
    zeros = [eeg.zeros(sensors, frame) for frame in frames]
    t = max(range(len(frames)), key=lambda i: len(zeros[i][1]))
    kept: dict[str, Any] = {"points": sensors.points, "low": sensors.low, "names": np.array(["truth", *fields])}
    shown = [frames[t], *(field[:3].reshape(frames.shape)[t] for field in fields.values())]
    for i, frame in enumerate(shown):
        places, index = eeg.zeros(sensors, frame)
        kept |= {f"field_{i}": frame, f"places_{i}": places, f"index_{i}": index}
    ctx.arrays("scalp", **kept)
