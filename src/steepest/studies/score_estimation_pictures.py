"""Images of the score-estimation study: error along training with the stops, and samples beside training points."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

__all__ = ["draw_paths", "draw_samples"]

Arrays = Mapping[str, np.ndarray]
KERNEL, MALLOWS = 1, 0  # places in `Ink.categories`


def draw_paths(figure: Any, arrays: Arrays, ink: Any) -> None:
    """Error against steps, d = 2 and 8, one line a data set, with the stop of each rule."""
    axes = figure.subplots(1, 2)
    for ax, d in zip(axes, (2, 8)):
        for row in arrays[f"errors_{d}"]:
            ax.loglog(arrays[f"steps_{d}"], row, color=ink.muted, lw=1, alpha=0.7)
        for i, (name, marker, color) in enumerate((("kernel rule", "D", KERNEL), ("unbiased risk", "o", MALLOWS))):
            stops, errors = arrays[f"stops_{d}"][:, i], arrays[f"stopped_{d}"][:, i]
            seen = stops > 0
            ax.plot(
                stops[seen], errors[seen], marker, ms=6, color=ink.categories[color], mec=ink.background, label=name
            )
        ax.set_title(f"d = {d}, n = {int(arrays['n'])}", color=ink.text)
        ax.set_xlabel("step of gradient descent")
    axes[0].set_ylabel("clean error")
    handles, names = axes[0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=2)


def draw_samples(figure: Any, arrays: Arrays, ink: Any) -> None:
    """Fresh data, stopped, trained to the end; training points as small crosses."""
    axes = figure.subplots(1, 3, sharex=True, sharey=True)
    points = arrays["points"]
    for i, (ax, name) in enumerate(zip(axes, ("fresh data", "stopped by the unbiased risk", "trained to the end"))):
        drawn = arrays[f"samples_{i}"]
        ax.plot(points[:, 0], points[:, 1], "+", ms=4, mew=0.7, color=ink.muted, label="training points")
        ax.plot(drawn[:, 0], drawn[:, 1], ".", ms=3, color=ink.categories[(5, MALLOWS, KERNEL)[i]], label="samples")
        ax.set_title(name, color=ink.text)
        ax.set_aspect("equal")
        ax.set_xlim(-3.2, 3.2)
        ax.set_ylim(-1.9, 1.9)
