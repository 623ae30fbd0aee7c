"""Pictures of the particle study: frames of simulations beside the networks' own, and errors of inferred particles."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["draw_inference", "draw_strip"]

Arrays = Mapping[str, NDArray[Any]]
WALL = 3 / 32
ROWS = {"truth": "simulated", "ours": "GIOROM", "gns": "GNS"}


def draw_strip(figure: Any, arrays: Arrays, ink: Any) -> None:
    """A fluid in four frames: simulated, by GIOROM and by GNS, colored by the height at the start."""
    rows = [row for row in ROWS if f"newtonian_{row}" in arrays]
    axes = figure.subplots(len(rows), len(arrays["frames"]), squeeze=False)
    color = arrays["newtonian_start"][:, 1]
    for i, row in enumerate(rows):
        for ax, x, frame in zip(axes[i], arrays[f"newtonian_{row}"], arrays["frames"], strict=True):
            _box(ax, ink)
            ax.scatter(*x.T, s=3.2, c=color, cmap=ink.sequential, linewidths=0)
            if i == 0:
                ax.set_title(f"frame {frame}", color=ink.text)
        _label(axes[i, 0], ROWS[row], ink)


def draw_inference(figure: Any, arrays: Arrays, ink: Any) -> None:
    """Errors of inferred particles in one frame, in percent of the deformation; the samples as rings."""
    names = [str(name) for name in arrays["names"]]
    axes = figure.subplots(1, len(names), squeeze=False)[0]
    x, samples = arrays["positions"], arrays["samples"]
    points = None
    for ax, name, error in zip(axes, names, arrays["errors"], strict=True):
        points = ax.scatter(
            *x.T, s=9, c=np.log10(np.maximum(100 * error, 1e-3)), cmap=ink.sequential, vmin=-2, vmax=2, linewidths=0
        )
        ax.scatter(*samples.T, s=22, facecolors="none", edgecolors=ink.text, linewidths=0.8)
        ax.set_title(name, color=ink.text)
        ax.set_aspect("equal")
        ax.set_axis_off()
    bar = figure.colorbar(points, ax=axes.tolist(), shrink=0.8, aspect=18, pad=0.01, ticks=[-2, -1, 0, 1, 2])
    bar.ax.set_yticklabels(["0.01 %", "0.1 %", "1 %", "10 %", "100 %"])
    bar.set_label("error / deformation", color=ink.text)
    bar.outline.set_visible(False)


def _box(ax: Any, ink: Any) -> None:
    """The room between the walls."""
    ax.plot([WALL, WALL, 1 - WALL, 1 - WALL], [0.58, WALL, WALL, 0.58], color=ink.line, lw=1)
    ax.set_xlim(0.07, 0.93)
    ax.set_ylim(0.07, 0.6)
    ax.set_aspect("equal")
    ax.set_axis_off()


def _label(ax: Any, text: str, ink: Any) -> None:
    ax.text(-0.03, 0.5, text, transform=ax.transAxes, rotation=90, ha="right", va="center", color=ink.text)
