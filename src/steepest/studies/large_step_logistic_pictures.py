"""Pictures of the study of large steps: lines of the worst case, and measured updates against the bound."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

__all__ = ["draw_bounds", "draw_lines"]


def draw_lines(figure: Any, arrays: Mapping[str, np.ndarray], ink: Any) -> None:
    """Lines theta^T a = 0 after every update, plain and normalized."""
    import matplotlib as mpl

    panels = figure.subplots(1, 2, sharey=True)
    colors = mpl.colormaps[ink.sequential] if isinstance(ink.sequential, str) else ink.sequential
    last = max(len(arrays["plain"]), 2)
    for axes, name in zip(panels, ("plain", "normalized")):
        thetas = np.asarray(arrays[name], dtype=float)
        for t, theta in enumerate(thetas, 1):
            along = np.array([-theta[1], theta[0]]) / np.linalg.norm(theta)
            final = t == len(thetas)
            line = 3 * np.array([-along, along])
            axes.plot(*line.T, color=ink.text if final else colors(0.15 + 0.7 * t / last), lw=2.4 if final else 0.9)
        axes.plot(-0.5, -1, "s", color=ink.categories[0], ms=9)
        axes.plot(0.5, -1, "o", color=ink.categories[1], ms=9)
        axes.text(-0.6, -1, "99 samples", ha="right", va="center", color=ink.muted, fontsize=8)
        box = {"facecolor": ink.background, "edgecolor": "none", "pad": 1.5}
        axes.text(0.63, -1, "one sample", ha="left", va="center", color=ink.muted, fontsize=8, bbox=box)
        axes.set(xlim=(-1.3, 1.3), ylim=(-1.35, 0.35), aspect="equal", title=f"{name}: {len(thetas)} updates")
        axes.title.set(fontsize=9, fontweight="normal")
        axes.set_xlabel("first feature")
    panels[0].set_ylabel("second feature")


def draw_bounds(figure: Any, arrays: Mapping[str, np.ndarray], ink: Any) -> None:
    """Measured updates against the bound, colored by step size."""
    axes = figure.subplots()
    found, bound = np.asarray(arrays["found"], dtype=float), np.asarray(arrays["bound"], dtype=float)
    gammas = np.asarray(arrays["step_size"], dtype=float)
    for i, gamma in enumerate(np.unique(gammas)):
        mine = gammas == gamma
        label = "∞" if np.isinf(gamma) else f"{gamma:g}"
        axes.scatter(bound[mine], found[mine], s=14, color=ink.categories[i], label=label, alpha=0.8, linewidths=0)
    ends = np.array([1.0, bound.max()])
    axes.plot(ends, ends, color=ink.muted, lw=1.2, ls="--")
    axes.set(xscale="log", yscale="log", xlabel="bound on the updates", ylabel="updates")
    axes.legend(title="step size", fontsize=8, title_fontsize=8, frameon=False)
