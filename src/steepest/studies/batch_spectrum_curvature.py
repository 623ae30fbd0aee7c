"""What a batch does to the extremes of curvature: sampled matrices against the formula, and digits against both."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from steepest.core.errors import SteepestWarning
from steepest.core.parallel import ordered_map
from steepest.landscape import BatchSpectrum, batch_extreme_eigenvalue, effective_batch
from steepest.studies.batch_spectrum_training import Data, digits_data, digits_mlp, independent_batches, seeded
from steepest.studies.claim import bootstrap_interval
from steepest.studies.context import Context

__all__ = ["MOMENTS", "extremes_of_batches", "spiked_matrices"]

Floats = NDArray[np.float64]
MOMENTS = (50, 150, 300)  # steps of SGD, learning rate 0.1, batch 64: losses about 0.7, 0.26 and 0.14
SIZES = (4, 8, 16, 32, 64, 128, 256, 512)
CALIBRATION = (16, 64)
SPIKES = (1.5, 3.0, 6.0)
NOISE = 16.0
LANCZOS = {"ggn": 20, "hessian": 30}  # steps; both ends of a Hessian take longer


def spiked_matrices(ctx: Context, order: int, draws: int) -> None:
    """Three spikes on each side, from hidden (B = 1) to visible (B = 64), and the edge of the bulk."""
    sizes = (1, 4, 16, 64)
    spikes, edges = [], []
    for B in sizes:
        s = (NOISE / B) ** 0.5
        found = np.mean([_sampled(order, s, np.random.default_rng([ctx.seed, B, k])) for k in range(draws)], 0)
        visible = [lam for lam in SPIKES if lam > 1.25 * s]  # at the threshold itself a finite matrix is neither
        for sign in (1, -1):
            side = np.sort(sign * found)[::-1]  # from the end inwards
            for lam, value in zip(sorted(visible, reverse=True), side):
                spikes.append(abs(value / batch_extreme_eigenvalue(lam, NOISE, B) - 1))
            n_outside = sum(lam > s for lam in SPIKES)
            if n_outside == len(visible):
                edges.append(abs(side[n_outside] / (2 * s) - 1))
        ctx.series("spiked", [(B, float(found.max()))], method="measured")
        ctx.series("spiked", [(B, batch_extreme_eigenvalue(max(SPIKES), NOISE, B))], method="theory")
    ctx.measured("spiked-spikes", max(spikes))
    ctx.measured("spiked-edge", max(edges))


def _sampled(order: int, s: float, rng: np.random.Generator) -> Floats:
    """Draw all eigenvalues of the spiked matrix."""
    E = rng.standard_normal((order, order)) * (s / order**0.5)
    E = np.triu(E) + np.triu(E, 1).T
    where = np.arange(2 * len(SPIKES))
    E[where, where] += np.concatenate([SPIKES, np.negative(SPIKES)])
    return np.linalg.eigvalsh(E)


def extremes_of_batches(ctx: Context, seeds: Sequence[int], moments: Sequence[int], repeats: int, workers: int) -> None:
    """Means over random batches of both ends, for both matrices, at three moments of training."""
    kinds = ("ggn", "hessian") if ctx.wants("slope-hessian") else ("ggn",)
    jobs = [(seed, curvature, tuple(moments), repeats) for seed in seeds for curvature in kinds]
    how: Any = "processes" if workers > 1 else "serial"
    found = dict(zip(jobs, ordered_map(_follow, jobs, backend=how, n_workers=workers)))
    for curvature in kinds:
        runs = [moment for job, seen in found.items() if job[1] == curvature for moment in seen]
        top = np.array([moment["top"] for moment in runs])  # (seeds x moments, sizes)
        lam = np.array([moment["lambda"] for moment in runs])
        if ctx.wants(f"excess-top-{curvature}"):
            ctx.measured(f"excess-top-{curvature}", float((top > lam[:, None]).mean()))
        if curvature == "hessian":
            low, lam_low = (np.array([moment[name] for moment in runs]) for name in ("low", "lambda_low"))
            ctx.measured("excess-bottom", float((low < lam_low[:, None]).mean()))
        slopes = [_slope(excess) for excess in top - lam[:, None]]
        ctx.measured(f"slope-{curvature}", float(np.mean(slopes)), bootstrap_interval(slopes))
        if ctx.wants(f"prediction-{curvature}"):
            wrong = [_worst(moment, "measured") for moment in runs]
            ctx.measured(
                f"prediction-{curvature}", float(np.median(wrong)), bootstrap_interval(wrong, statistic=np.median)
            )
            ctx.note(f"{curvature}: largest error of a prediction at any moment and size {max(wrong):.2f}.")
        if curvature == "ggn":
            for noise in ("directional", "frobenius", "one regime"):
                if ctx.wants(claim := f"prediction-{noise.replace(' ', '-')}"):
                    ctx.measured(claim, float(np.median([_worst(moment, noise) for moment in runs])))
            middle = [seen[len(seen) // 2] for job, seen in found.items() if job[1] == "ggn"]
            for name in ("measured batches", "predicted", "directional noise", "frobenius noise"):
                key = {"measured batches": "top", "predicted": "measured"}.get(name, name.split()[0])
                for seed, moment in zip(seeds, middle):
                    ctx.series("extremes", list(zip(SIZES, moment[key])), method=name, seed=seed)
        for job, seen in found.items():
            if job[1] == "hessian" and curvature == "hessian":
                ctx.series(
                    "lower", list(zip(SIZES, -np.array(seen[len(seen) // 2]["low"]))), method="measured", seed=job[0]
                )
                ctx.series(
                    "lower",
                    list(zip(SIZES, -np.array(seen[len(seen) // 2]["low predicted"]))),
                    method="theory",
                    seed=job[0],
                )


def _slope(excess: Floats) -> float:
    """Slope in logarithms over the sizes whose mean shows an excess."""
    b = np.array([effective_batch(B, _N) for B in SIZES])
    shown = excess > 0
    return float(np.polyfit(np.log(b[shown]), np.log(excess[shown]), 1)[0])


def _worst(moment: dict[str, Any], noise: str) -> float:
    """Largest relative error of a prediction at the sizes up to 256 that did not calibrate it."""
    return max(
        abs(predicted / measured - 1)
        for B, predicted, measured in zip(SIZES, moment[noise], moment["top"])
        if B <= 256 and B not in CALIBRATION
    )


_N = 1797


def _follow(job: tuple[int, str, tuple[int, ...], int]) -> list[dict[str, Any]]:
    """Train one network and measure its batches at every moment."""
    seed, curvature, steps, repeats = job
    data, model, loss_fn = digits_data(), seeded(digits_mlp, seed), nn.CrossEntropyLoss()
    opt = torch.optim.SGD(model.parameters(), lr=0.1)
    moments = []
    for t, index in enumerate(independent_batches(len(data), 64, max(steps), seed), 1):
        opt.zero_grad()
        loss_fn(model(data.X[index]), data.y[index]).backward()
        opt.step()
        if t in steps:
            moments.append(_moment(model, data, curvature, repeats, seed))
    return moments


def _moment(model: nn.Module, data: Data, curvature: str, repeats: int, seed: int) -> dict[str, Any]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SteepestWarning)  # the Hessian's noise may drown at a single moment
        spectrum = BatchSpectrum(
            model, nn.CrossEntropyLoss(), data.X, data.y, curvature=curvature, batch_sizes=CALIBRATION, repeats=repeats,
            num_steps=LANCZOS[curvature], seed=seed,
        ).fit()  # fmt: skip
        ends = {
            B: (spectrum.lambda_min_, spectrum.measured_[B])  # known from `fit`
            if curvature == "ggn" and B in CALIBRATION
            else spectrum.measure_ends(B).mean(0)
            for B in SIZES
        }
    lam = spectrum.lambda_max_
    found: dict[str, Any] = {
        "lambda": lam,
        "lambda_low": spectrum.lambda_min_,
        "top": [ends[B][1] for B in SIZES],
        "low": [ends[B][0] for B in SIZES],
        "low predicted": [spectrum.extreme_lower(B) for B in SIZES],
    }
    noises = dict(spectrum.noise_estimates_)
    visible = [(spectrum.measured_[B] - lam) * effective_batch(B, len(data)) * lam for B in CALIBRATION]
    noises["one regime"] = float(np.exp(np.mean(np.log(np.maximum(visible, 1e-12)))))
    for name, noise in noises.items():
        found[name] = [
            lam + noise / effective_batch(B, len(data)) / lam
            if name == "one regime"
            else batch_extreme_eigenvalue(lam, noise, B, num_data=len(data))
            for B in SIZES
        ]
    return found
