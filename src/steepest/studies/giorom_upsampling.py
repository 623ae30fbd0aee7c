"""How well the motion of many particles follows from that of few, by several interpolations of true motion.

Samples and all others come from the same simulated scene; the reference is the frame from which a rollout would start.
The error is the norm of (inferred minus true positions) over the norm of the deformation, which is the displacement
less its mean over the particles: the fall of a rigid body would make any error look small. Only particles that are not
samples count. Norms are pooled over frames and scenes. Samples are farthest points of the reference unless said
otherwise; of moving least squares of order 2, ten neighbors were the best of 10 to 36 on validation scenes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.interpolate import LinearNDInterpolator, RBFInterpolator
from scipy.spatial import cKDTree

from steepest.core.extras import installed
from steepest.core.random import numpy_generator
from steepest.physics import GIOROM, Upsampler, farthest_point_sample
from steepest.studies.context import Context
from steepest.studies.giorom_operator import trained_operator
from steepest.studies.giorom_scenes import Setting, trajectories
from steepest.studies.giorom_training import WINDOW

__all__ = ["METHODS", "Squares", "errors", "measure", "pooled", "pooled_ratio", "train_kernels"]

Array = NDArray[np.float64]
Interpolate = Callable[[Array, Array, Array, Array], Array]
"""From samples Y (n, d), queries X (q, d), samples' displacements (T, n, d) and early ones of all, give (T, q, d)."""

FRAMES = slice(20, 60)
EARLY = 15  # frames whose full motion the reduced basis may see
N_MODES = 12
NEIGHBORS = 10
ORDER, ORDER_ONE = "moving least squares", "moving least squares, order 1"


def _moving(order: int) -> Interpolate:
    def interpolate(Y: Array, X: Array, u: Array, early: Array) -> Array:
        moved: Array = Upsampler(Y, X, order=order, neighbors=NEIGHBORS)(Y + u) - X
        return moved

    return interpolate


def _nearest(Y: Array, X: Array, u: Array, early: Array) -> Array:
    return u[:, cKDTree(Y).query(X)[1]]


def _radial(Y: Array, X: Array, u: Array, early: Array) -> Array:
    found: Array = RBFInterpolator(Y, u.transpose(1, 0, 2).reshape(len(Y), -1), neighbors=20)(X)
    return found.reshape(len(X), len(u), -1).transpose(1, 0, 2)


def _linear(Y: Array, X: Array, u: Array, early: Array) -> Array:
    found = LinearNDInterpolator(Y, u.transpose(1, 0, 2))(X).transpose(1, 0, 2)
    outside = np.isnan(found[0, :, 0])  # of the samples' hull
    found[:, outside] = _nearest(Y, X[outside], u, early)
    return np.asarray(found)


def _modes(Y: Array, X: Array, u: Array, early: Array) -> Array:
    """Principal components of all particles' early motion, their shares by least squares on the samples."""
    n, q = len(Y), len(X)
    basis = np.linalg.svd(early.reshape(len(early), -1), full_matrices=False)[2][:N_MODES]
    at_samples, at_queries = np.split(basis.reshape(len(basis), n + q, -1), [n], axis=1)
    shares = np.linalg.lstsq(at_samples.reshape(len(basis), -1).T, u.reshape(len(u), -1).T, rcond=1e-6)[0]
    return (shares.T @ at_queries.reshape(len(basis), -1)).reshape(len(u), q, -1)


METHODS: Mapping[str, Interpolate] = {
    ORDER: _moving(2),
    ORDER_ONE: _moving(1),
    "kernel integral": _moving(0),
    "nearest neighbor": _nearest,
    "radial basis functions": _radial,
    "linear on triangles": _linear,
    "PCA of early frames": _modes,
}

Squares = dict[str, list[tuple[float, float]]]
"""For each method the squared norms of error and deformation, scene by scene."""


def errors(
    scenes: Sequence[NDArray[Any]],
    ratio: float,
    seed: int,
    methods: Mapping[str, Interpolate] = METHODS,
    sampling: str = "fps",
) -> Squares:
    """Infer all particles of scenes (T, n, d) from one in `ratio`, "random" ones or farthest points ("fps")."""
    found: Squares = {name: [] for name in methods}
    for scene in scenes:
        x = np.asarray(scene, dtype=np.float64)
        samples, others = _split(x[WINDOW], ratio, seed, sampling)
        reference = x[WINDOW]
        u = x[FRAMES] - reference
        early = _early(x, samples, others)
        truth = u[:, others]
        deformation = float(np.square(truth - truth.mean(1, keepdims=True)).sum())
        for name, interpolate in methods.items():
            moved = interpolate(reference[samples], reference[others], u[:, samples], early)
            found[name].append((float(np.square(moved - truth).sum()), deformation))
    return found


def _split(reference: Array, ratio: float, seed: int, sampling: str) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Give the indices of the samples and of all others."""
    n = round(len(reference) / ratio)
    if sampling == "fps":
        samples = farthest_point_sample(torch.from_numpy(reference), n, seed=seed).numpy()
    else:
        samples = numpy_generator(seed).choice(len(reference), n, replace=False)
    return samples, np.setdiff1d(np.arange(len(reference)), samples)


def _early(x: Array, samples: NDArray[np.int64], others: NDArray[np.int64]) -> Array:
    """Displacements of all particles in the frames that the reduced basis may see, samples first."""
    order = np.concatenate((samples, others))
    return np.asarray(x[WINDOW : WINDOW + EARLY, order] - x[WINDOW, order])


def pooled(squares: Sequence[tuple[float, float]]) -> float:
    """Error over deformation of all scenes together."""
    error, deformation = np.sum(squares, axis=0)
    return float(np.sqrt(error / deformation))


def pooled_ratio(
    ours: Sequence[tuple[float, float]], theirs: Sequence[tuple[float, float]], n_resamples: int = 2000
) -> tuple[float, tuple[float, float]]:
    """Ratio of two pooled errors, with its 90 % bootstrap interval over scenes; paired.

    Examples
    --------
    >>> ratio, (low, high) = pooled_ratio([(1.0, 2.0), (4.0, 8.0)], [(4.0, 2.0), (16.0, 8.0)])
    >>> ratio, low, high
    (0.5, 0.5, 0.5)
    """
    a, b = (np.array(squares)[:, 0] for squares in (ours, theirs))
    draws = np.random.default_rng(0).integers(len(a), size=(n_resamples, len(a)))
    low, high = np.quantile(np.sqrt(a[draws].sum(1) / b[draws].sum(1)), [0.05, 0.95])
    return float(np.sqrt(a.sum() / b.sum())), (float(low), float(high))


# ----------------------------------------------------------------------------------------------------------- measuring

RATIOS = (6.6, 16.0, 32.0)
NEAREST, RADIAL = "nearest neighbor", "radial basis functions"


def measure(ctx: Context, materials: Sequence[str], seeds: Sequence[int], n_scenes: int, setting: Setting) -> None:
    """Report every claim on inferred particles."""
    nearest: list[tuple[float, tuple[float, float]]] = []
    radial: list[tuple[float, tuple[float, float]]] = []
    for material in materials:
        scenes = trajectories(material, "test", n_scenes, ctx.seed, setting)
        for ratio in RATIOS if material == "elastic" else (16.0,):
            found: Squares = {name: [] for name in METHODS}
            for seed in seeds:
                for name, squares in errors(scenes, ratio, seed).items():
                    found[name] += squares
                    if material == "elastic":
                        ctx.series("inference", [(ratio, 100 * pooled(squares))], method=name, seed=seed)
            said = ", ".join(f"{name} {100 * pooled(squares):.2f}" for name, squares in found.items())
            ctx.note(f"{material}, one particle in {ratio:g}: error over deformation in %: {said}.")
            if ratio == 16.0:
                value = 100 * pooled(found[ORDER])
                ctx.measured(f"reduction-{material.replace('_', '-')}", value, _percent(found[ORDER]))
                nearest.append(pooled_ratio(found[ORDER], found[NEAREST]))
                radial.append(pooled_ratio(found[ORDER], found[RADIAL]))
                if material == "elastic":
                    random = [errors(scenes, ratio, seed, {ORDER: METHODS[ORDER]}, "random")[ORDER] for seed in seeds]
                    ctx.measured("reduction-random", 100 * pooled([pair for one in random for pair in one]))
                    ctx.measured("kernel-untrained", pooled_ratio(found["kernel integral"], found[NEAREST])[0])
                    ctx.measured("order-one", pooled_ratio(found[ORDER_ONE], found[RADIAL])[0])
                    ctx.measured("pca", pooled_ratio(found[ORDER], found["PCA of early frames"])[0])
                    _keep(ctx, scenes[0], seeds[0])
    ctx.measured("against-nearest", *max(nearest))
    ctx.measured("against-radial", *max(radial))


def train_kernels(ctx: Context, setting: Setting, n_training: int, n_scenes: int, steps: int) -> None:
    """Report what training does for the kernels of orders 0 and 1, on jelly at one particle in 16."""
    training = list(trajectories("elastic", "training", n_training, ctx.seed, setting))
    scenes = trajectories("elastic", "test", n_scenes, ctx.seed, setting)
    n_sample = round(setting.n_points / 16)
    for order, claim in ((0, "kernel-trained"), (1, "order-one-trained")):
        model = GIOROM(hidden=8, latent_grid=4, upsample_order=order)
        before = pooled(errors(scenes, 16.0, ctx.seeds[0], {"": _by_model(model)})[""])
        model.fit_upsampler(training, n_sample=n_sample, steps=steps)
        after = pooled(errors(scenes, 16.0, ctx.seeds[0], {"": _by_model(model)})[""])
        ctx.measured(claim, after / before)
    if not installed("neuralop"):
        ctx.skipped("peer-operator", "neuraloperator is not installed: pip install neuraloperator")
        return
    theirs = trained_operator(training, n_sample, steps)
    found = errors(scenes, 16.0, ctx.seeds[0], {"": theirs, ORDER: METHODS[ORDER]})
    ctx.measured("peer-operator", pooled(found[""]) / pooled(found[ORDER]))


def _by_model(model: GIOROM) -> Interpolate:
    def interpolate(Y: Array, X: Array, u: Array, early: Array) -> Array:
        moved: Array = model.build_upsampler(Y, X)(Y + u) - X
        return moved

    return interpolate


def _percent(squares: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """Interval of an error over deformation."""
    table = np.array(squares)
    draws = np.random.default_rng(0).integers(len(table), size=(2000, len(table)))
    sums = table[draws].sum(1)
    low, high = np.quantile(100 * np.sqrt(sums[:, 0] / sums[:, 1]), [0.05, 0.95])
    return float(low), float(high)


def _keep(ctx: Context, scene: NDArray[Any], seed: int) -> None:
    """Arrays of the picture: each particle's error in one frame over the root mean square deformation there."""
    x = np.asarray(scene, dtype=np.float64)
    samples, others = _split(x[WINDOW], 16.0, seed, "fps")
    reference, frame = x[WINDOW], FRAMES.stop - 1
    u = x[frame : frame + 1] - reference
    truth = u[0, others]
    scale = np.sqrt(np.square(truth - truth.mean(0)).sum(1).mean())
    early = _early(x, samples, others)
    names = (NEAREST, "kernel integral", RADIAL, ORDER)
    found = [METHODS[name](reference[samples], reference[others], u[:, samples], early)[0] for name in names]
    ctx.arrays(
        "inference",
        names=np.array(names),
        positions=x[frame, others],
        samples=x[frame, samples],
        errors=np.array([np.linalg.norm(moved - truth, axis=1) / scale for moved in found]),
    )
