"""Completion of images: hidden pixels of digits and of a photograph, and what spread singular values cost.

Every method gets the same seen pixels and tries three values of its one parameter (rank bound or penalty), chosen on a
tenth of the seen pixels; the error is that of the hidden ones.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from steepest.core.extras import installed
from steepest.landscape import factored_descent
from steepest.studies.claim import median_interval, slope_fit
from steepest.studies.context import Context
from steepest.studies.matrix_sensing_peers import scaled_gd, soft_impute, svd_projection
from steepest.studies.matrix_sensing_rates import compressed, decay_rate, run

__all__ = ["conditioning", "draw_photograph", "measure"]

Array = NDArray[Any]
Fit = Callable[[Array, Array, Array, float], Array]  # rows, cols, y, parameter -> matrix
RANKS = (4, 8, 16)
PENALTIES = (0.03, 0.1, 0.2)  # shares of the largest singular value
SPREADS = (1.5, 3.0, 6.0)


def methods(shape: tuple[int, int], seed: int, steps: int) -> dict[str, tuple[Fit, tuple[float, ...]]]:
    """Contenders: how they fit, and the three values of their parameter."""

    def descent(method: str) -> Fit:
        def fit(rows: Array, cols: Array, y: Array, rank: float) -> Array:
            found = factored_descent(
                (rows, cols), y, shape=shape, rank=int(rank), method=method, init_scale=None, tol=1e-6, maxiter=steps,
                seed=seed,
            )  # fmt: skip
            return np.asarray(found.x)

        return fit

    def scaled(rows: Array, cols: Array, y: Array, rank: float) -> Array:
        rng, k = np.random.default_rng(seed), int(rank)
        top = np.linalg.norm(np.bincount(rows * shape[1] + cols, y, shape[0] * shape[1]).reshape(shape), 2)
        top *= shape[0] * shape[1] / len(y)
        start = tuple(0.05 * np.sqrt(top) * rng.standard_normal((n, k)) / np.sqrt(n) for n in shape)
        found = scaled_gd(
            (rows, cols), y, shape, (start[0], start[1]), step_size=0.25, damping=0.05 * float(top), maxiter=steps
        )
        return found.x

    def projection(rows: Array, cols: Array, y: Array, rank: float) -> Array:
        return svd_projection((rows, cols), y, shape, int(rank), step_size=0.4, maxiter=steps // 5).x

    def imputation(rows: Array, cols: Array, y: Array, penalty: float) -> Array:
        sweeps = max(2, steps // 60)
        return soft_impute(rows, cols, y, shape, penalty=penalty, levels=5, sweeps=sweeps).x

    return {
        "rebalanced": (descent("rebalanced"), RANKS),
        "two factors": (descent("gd"), RANKS),
        "ScaledGD": (scaled, RANKS),
        "singular-value projection": (projection, RANKS),
        "soft-impute": (imputation, PENALTIES),
    }


def measure(ctx: Context, seeds: list[int]) -> None:
    """Hidden pixels of digits: relative error of every method, ours against the best peer."""
    X, _ = ctx.data("digits")
    X = X[: ctx.pick(tiny=60, quick=300, full=1797, paper=1797)] / 16
    steps = ctx.pick(tiny=40, quick=200, full=600, paper=600)
    errors: dict[str, list[float]] = {}
    for seed in seeds:
        rng = np.random.default_rng(seed)
        order = rng.permutation(X.size)[: X.size // 2]
        tune, rest = order[: len(order) // 10], order[len(order) // 10 :]
        hidden = np.setdiff1d(np.arange(X.size), order)
        level = X.ravel()[order].mean()
        Y = X - level  # the mean is the largest singular value by far, and known
        for name, (fit, values) in methods(X.shape, seed, steps).items():

            def error(at: Array, parameter: float, where: Array) -> float:
                guess = fit(*np.divmod(at, X.shape[1]), Y.ravel()[at], parameter)  # noqa: B023 - called at once
                return float(np.linalg.norm((guess - Y).ravel()[where]) / np.linalg.norm(Y.ravel()[where]))  # noqa: B023

            best = min(values, key=lambda value: error(rest, value, tune))
            errors.setdefault(name, []).append(error(order, best, hidden))
            ctx.series("hidden pixels", [errors[name][-1]], method=name, seed=seed)
    peers = [name for name in errors if name not in ("rebalanced", "two factors")]
    best_peer = min(peers, key=lambda name: float(np.median(errors[name])))
    value, span = median_interval([a / b for a, b in zip(errors["rebalanced"], errors[best_peer], strict=True)])
    ctx.measured("digits-hidden", value, span)
    ctx.against(best_peer, 1 / value, (1 / span[1], 1 / span[0]), what="hidden pixels of the digits, half of them seen")
    ctx.note("digits: relative errors of hidden pixels: " + ", ".join(
        f"{name} {np.median(values):.3f}" for name, values in errors.items()) + ".")  # fmt: skip


def conditioning(ctx: Context, seeds: list[int]) -> None:
    """How the rates fall with the ratio of the largest to the smallest singular value, k = r and k = r + 2."""
    spreads = ctx.pick(tiny=SPREADS[:2], quick=SPREADS, full=SPREADS, paper=SPREADS)
    n, m, r = ctx.pick(tiny=(8, 300, 2), quick=(20, 1500, 3), full=(20, 3000, 3), paper=(20, 3000, 3))
    slopes: dict[str, list[float]] = {}
    for seed in seeds:
        rng = np.random.default_rng(seed)
        A = compressed(rng.standard_normal((m, n, n)))
        U, V = (np.linalg.qr(rng.standard_normal((n, r)))[0] for _ in range(2))
        rates: dict[str, list[float]] = {"two factors, k = r": [], "rebalanced": []}
        for spread in spreads:
            M = (U * np.geomspace(1, 1 / spread, r)) @ V.T
            budget = round(120 * spread**2) + 200
            exact = run(A, M, r, seed, budget).history["error"]
            more = run(A, M, r + 2, seed, budget, method="rebalanced", switch_tol=0.05 / spread).history["error"]
            for name, e in (("two factors, k = r", exact), ("rebalanced", more)):
                rates[name].append(decay_rate(e)[0])
        for name, values in rates.items():
            slopes.setdefault(name, []).append(slope_fit(spreads, values)[0])
            ctx.series("spread", list(zip(spreads, values, strict=True)), method=name, seed=seed)
    ctx.measured("spread-exact", *median_interval(slopes["two factors, k = r"]))
    ctx.measured("spread-rebalanced", *median_interval(slopes["rebalanced"]))


# ------------------------------------------------------------------------------------------------------ the photograph


def photograph(ctx: Context) -> None:
    """The part of rank 6 of a bundled photograph from 30 % of its pixels, by methods that were told rank 12."""
    if not installed("PIL"):
        ctx.note("photograph: not drawn, since scikit-learn's images need Pillow: pip install pillow")
        return
    from sklearn.datasets import load_sample_image

    image = load_sample_image("china.jpg") @ [0.299, 0.587, 0.114] / 255
    image = image[:424].reshape(106, 4, 160, 4).mean(axis=(1, 3))
    level = float(image.mean())
    U, S, Vt = np.linalg.svd(image - level, full_matrices=False)
    M = (U[:, :6] * S[:6]) @ Vt[:6]
    rng = np.random.default_rng(ctx.seed)
    chosen = rng.choice(M.size, round(0.3 * M.size), replace=False)
    (rows, cols), steps = np.divmod(chosen, M.shape[1]), ctx.pick(tiny=20, quick=2000, full=2000, paper=2000)
    y = M[rows, cols]
    seen = np.full(M.shape, np.nan)
    seen[rows, cols] = y
    hidden = np.isnan(seen)
    fits = methods(M.shape, ctx.seed, steps)
    found = {
        "rebalanced": np.asarray(
            factored_descent(
                (rows, cols), y, shape=M.shape, rank=12, switch_tol=0.02, tol=1e-6, maxiter=steps, seed=ctx.seed
            ).x
        ),
        "two factors": fits["two factors"][0](rows, cols, y, 12),
        "ScaledGD": fits["ScaledGD"][0](rows, cols, y, 12),
        "soft-impute": soft_impute(rows, cols, y, M.shape, penalty=0.01, levels=8, sweeps=max(2, steps // 80)).x,
    }
    keys = {"rebalanced": "rebalanced", "two factors": "descent", "ScaledGD": "scaled", "soft-impute": "imputed"}
    errors = [float(np.linalg.norm((x - M)[hidden]) / np.linalg.norm(M[hidden])) for x in found.values()]
    ctx.arrays(
        "photograph", truth=M + level, seen=seen + level, errors=np.array(errors), names=np.array(list(found)),
        **{keys[name]: x + level for name, x in found.items()},
    )  # fmt: skip
    ctx.note("photograph, rank 6 and bound 12, 30 % seen, relative error of hidden pixels: " + ", ".join(
        f"{name} {error:.3f}" for name, error in zip(found, errors, strict=True)) + ".")  # fmt: skip


def draw_photograph(figure: Any, arrays: Mapping[str, Array], ink: Any) -> None:
    """Above what is seen, ours, truth; below the peers; the title of each says its error."""
    truth, errors = arrays["truth"], arrays["errors"]
    panels = [
        ("30 % of the pixels", arrays["seen"]),
        (f"rebalanced: error {100 * errors[0]:.1f} %", arrays["rebalanced"]),
        ("the matrix, rank 6", truth),
        (f"plain descent: error {100 * errors[1]:.1f} %", arrays["descent"]),
        (f"ScaledGD, damped: error {100 * errors[2]:.1f} %", arrays["scaled"]),
        (f"soft-impute: error {100 * errors[3]:.1f} %", arrays["imputed"]),
    ]
    low, high = float(truth.min()), float(truth.max())
    for ax, (title, image) in zip(figure.subplots(2, 3).ravel(), panels, strict=True):
        ax.imshow(image, cmap="gray", vmin=low, vmax=high, interpolation="nearest")
        ax.set_title(title, color=ink.text, fontsize=9)
        ax.set_xticks([])
        ax.set_yticks([])
        for side in ax.spines.values():
            side.set_color(ink.line)
