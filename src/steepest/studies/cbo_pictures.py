"""The picture of the CBO study: what swarm, hops and gradient descent do in the canyon."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

__all__ = ["draw_canyon"]

PANELS = (("cbo", "CBO"), ("hopping", "hopping, s = 0.7"), ("narrow", "hopping, s = 0.4"),
          ("descent", "gradient descent"))  # fmt: skip


def draw_canyon(figure: Any, arrays: Mapping[str, np.ndarray], ink: Any) -> None:
    """Four maps of the landscape with the paths of eight runs each; the title says how many runs arrive."""
    grid, values = arrays["grid"], arrays["values"]
    for i, (ax, (key, name)) in enumerate(zip(figure.subplots(2, 2, sharex=True, sharey=True).ravel(), PANELS,
                                              strict=True)):  # fmt: skip
        image = ax.contourf(grid, grid, np.minimum(values, 70), levels=24, cmap=ink.sequential, extend="max")
        image.set_edgecolor("face")  # no hairlines between levels
        for path in arrays[key]:
            ax.plot(*path.T, color="white", linewidth=1.1, alpha=0.85)
            ax.plot(*path[0], "o", color="white", markersize=3.5)
            ax.plot(*path[-1], "o", color="#ff4d3d", markeredgecolor="white", markersize=5, zorder=5)
        ax.plot(0, 0, "*", color="white", markeredgecolor="black", markersize=17, zorder=4)
        ax.set(xlim=(-4, 10), ylim=(-4, 10), aspect="equal")
        ax.set_title(f"{name}: {100 * float(arrays['shares'][i]):.0f} % arrive", color=ink.text, fontsize=10)
        ax.tick_params(colors=ink.muted, labelsize=8)
        for side in ax.spines.values():
            side.set_color(ink.line)
