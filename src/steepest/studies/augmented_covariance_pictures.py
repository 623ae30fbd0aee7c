"""Pictures of the study of augmented covariances: scalp maps and matrices, drawn from arrays that a run kept."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from scipy.interpolate import RBFInterpolator

__all__ = ["draw_matrices", "draw_topography", "flatten", "scalp_map"]


def flatten(positions: np.ndarray) -> np.ndarray:
    """Electrodes (m, 3) on the unit sphere seen from above: arcs from the vertex keep their lengths, (m, 2).

    Fpz, T8, Oz and T7 lie at 0.8, the circle through nasion, ears and inion at 1.
    """
    arc = np.arccos(np.clip(positions[:, 2], -1, 1)) / (np.pi / 2)
    radius = np.linalg.norm(positions[:, :2], axis=1)
    return positions[:, :2] * (arc / np.where(radius > 0, radius, 1.0))[:, None]


def scalp_map(positions: np.ndarray, values: np.ndarray, size: int = 160) -> np.ndarray:
    """Thin-plate spline through values at electrodes on a (size, size) grid over [-1, 1]^2; NaN outside the head."""
    axis = np.linspace(-1, 1, size)
    grid = np.stack(np.meshgrid(axis, axis), axis=-1)
    spline = RBFInterpolator(flatten(positions), values, kernel="thin_plate_spline")
    image = spline(grid.reshape(-1, 2)).reshape(size, size)
    return np.where(np.linalg.norm(grid, axis=2) <= 1, image, np.nan)


def draw_topography(figure: Any, arrays: Mapping[str, np.ndarray], ink: Any) -> None:
    """Three heads: power of both tasks, and the change of timing."""
    maps = [
        ("power_left_right", "power, right minus left hand", "log ratio"),
        ("power_hands_feet", "power, feet minus hands", "log ratio"),
        ("timing_left_right", "timing, right minus left hand", "autocorrelation at 25 ms"),
    ]
    points = flatten(arrays["positions"])
    for axes, (name, title, unit) in zip(figure.subplots(1, 3), maps):
        values = np.asarray(arrays[name], dtype=float)
        limit = float(np.abs(values).max())
        axes.set_axis_off()
        axes.set_aspect("equal")
        axes.text(0, 1.24, title, fontsize=9, color=ink.text, ha="center", va="bottom")
        image = axes.imshow(
            scalp_map(np.asarray(arrays["positions"], dtype=float), values),
            extent=(-1, 1, -1, 1),
            origin="lower",
            cmap=ink.diverging,
            vmin=-limit,
            vmax=limit,
        )
        _outline(axes, ink.muted)
        axes.scatter(*points.T, s=3, color="#1a1a1a", linewidths=0, alpha=0.7)
        bar = figure.colorbar(image, ax=axes, location="bottom", shrink=0.7, aspect=22, pad=0.03)
        bar.set_label(unit, color=ink.muted)
        bar.set_ticks(
            [-limit, 0, limit], labels=[f"{v:.2g}".replace("-", "\N{MINUS SIGN}") for v in (-limit, 0, limit)]
        )
        bar.outline.set_visible(False)


def _outline(axes: Any, color: str) -> None:
    """Head, nose and ears."""
    angle = np.linspace(0, 2 * np.pi, 200)
    axes.plot(np.cos(angle), np.sin(angle), color=color, linewidth=1.2)
    axes.plot([-0.12, 0, 0.12], [0.993, 1.14, 0.993], color=color, linewidth=1.2)
    ear = np.linspace(-np.pi / 2, np.pi / 2, 40)
    for side in (-1, 1):
        axes.plot(side * (1 + 0.08 * np.cos(ear)), 0.18 * np.sin(ear), color=color, linewidth=1.2)
    axes.set_xlim(-1.2, 1.2)
    axes.set_ylim(-1.1, 1.5)


def draw_matrices(figure: Any, arrays: Mapping[str, np.ndarray], ink: Any) -> None:
    """Mean correlation matrices of both classes and their difference, blocks marked."""
    left, right = np.asarray(arrays["left"]), np.asarray(arrays["right"])
    difference = right - left
    top = float(np.abs(difference).max())
    panels = [(left, "left hand", 1.0), (right, "right hand", 1.0), (difference, "right minus left", top)]
    size, p = len(left), 4
    for axes, (matrix, title, limit) in zip(figure.subplots(1, 3), panels):
        image = axes.imshow(matrix, cmap=ink.diverging, vmin=-limit, vmax=limit, interpolation="nearest")
        axes.set_title(title, fontsize=9, fontweight="normal")
        for cut in np.arange(1, p) * size / p - 0.5:
            axes.axhline(cut, color=ink.muted, linewidth=0.5)
            axes.axvline(cut, color=ink.muted, linewidth=0.5)
        ticks = (np.arange(p) + 0.5) * size / p - 0.5
        axes.set_xticks(ticks, labels=["0", "τ", "2τ", "3τ"])
        axes.set_yticks(ticks, labels=["0", "τ", "2τ", "3τ"])
        axes.tick_params(length=0)
        axes.set_xlabel("delay")
        for spine in axes.spines.values():
            spine.set_visible(False)
        bar = figure.colorbar(image, ax=axes, location="bottom", shrink=0.7, aspect=22, pad=0.03)
        bar.set_label("correlation" if matrix is not difference else "difference of correlations", color=ink.muted)
        bar.set_ticks(
            [-limit, 0, limit], labels=[f"{v:.2g}".replace("-", "\N{MINUS SIGN}") for v in (-limit, 0, limit)]
        )
        bar.outline.set_visible(False)
