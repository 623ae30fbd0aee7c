"""Pictures of the study: samples by number of steps, paths before and after reflow, digits, and their translation."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["draw_digits", "draw_paths", "draw_samples", "draw_translation"]

Arrays = Mapping[str, NDArray[Any]]
COLUMNS = {"1": "1 step", "2": "2 steps", "8": "8 steps", "accurate": "RK45"}


def draw_samples(figure: Any, arrays: Arrays, ink: Any) -> None:
    """Noise to moons: rows are flows, columns steps of Euler; true samples behind."""
    rows = [row for row in ("1-flow", "2-flow", "VP", "sub-VP") if f"{row} accurate" in arrays]
    axes = figure.subplots(
        len(rows), len(COLUMNS), sharex=True, sharey=True, gridspec_kw={"wspace": 0.03, "hspace": 0.03}
    )
    for i, row in enumerate(rows):
        for ax, (column, title) in zip(axes[i], COLUMNS.items(), strict=True):
            ax.scatter(*arrays["target"].T, s=2, color=ink.line, linewidths=0)
            ax.scatter(*arrays[f"{row} {column}"].T, s=2.5, color=ink.categories[i], linewidths=0)
            _bare(ax)
            ax.set_xlim(-6.5, 7.5)
            ax.set_ylim(-5, 4.5)
            if i == 0:
                ax.set_title(title, color=ink.text, fontsize=10)
        axes[i, 0].set_ylabel(row, color=ink.text)


def draw_paths(figure: Any, arrays: Arrays, ink: Any) -> None:
    """Eight Gaussians to moons: the paths of the 1-flow and of the 2-flow."""
    axes = figure.subplots(1, 2, sharex=True, sharey=True, gridspec_kw={"wspace": 0.03})
    for k, (ax, title) in enumerate(zip(axes, ("1-flow: paths bend", "2-flow: paths are straight"), strict=True), 1):
        ax.scatter(*arrays["source"].T, s=4, color=ink.muted, alpha=0.5, linewidths=0)
        ax.scatter(*arrays["target"].T, s=4, color=ink.line, linewidths=0)
        path = arrays[f"path_{k}"]  # (times, samples, 2)
        for i in range(path.shape[1]):
            ax.plot(*path[:, i].T, color=ink.categories[k - 1], lw=0.8, alpha=0.65)
        ax.scatter(*path[-1].T, s=8, color=ink.text, linewidths=0, zorder=3)
        _bare(ax)
        ax.set_aspect("equal")
        ax.set_title(title, color=ink.text, fontsize=11)


def draw_digits(figure: Any, arrays: Arrays, ink: Any) -> None:
    """Digits from noise: the same noise by two flows in one step, four steps and accurately."""
    rows = [(f"{flow} {n}", f"{flow}, {words}") for flow in ("1-flow", "2-flow")
            for n, words in (("1", "one step"), ("4", "four steps"), ("accurate", "RK45"))]  # fmt: skip
    _strips(figure, [(arrays[key], title) for key, title in [*rows, ("data", "digits")]], ink)


def draw_translation(figure: Any, arrays: Arrays, ink: Any) -> None:
    """Ones on their way to sevens."""
    times = (0, 0.25, 0.5, 0.75, 1)
    rows = [(images, f"t = {t:g}") for images, t in zip(arrays["translation"], times, strict=True)]
    _strips(figure, [*rows, (arrays["one step"], "2-flow, one step")], ink)


def _strips(figure: Any, rows: list[tuple[NDArray[Any], str]], ink: Any) -> None:
    axes = figure.subplots(len(rows), 1, gridspec_kw={"hspace": 0.08})
    for ax, (images, title) in zip(axes, rows, strict=True):
        tiles = np.pad(images.reshape(len(images), 8, 8), ((0, 0), (0, 0), (0, 1)))
        strip = np.concatenate(list(tiles), axis=1)
        ax.imshow(strip, cmap="gray", vmin=0, vmax=16, interpolation="nearest", aspect="equal")
        _bare(ax)
        ax.set_ylabel(title, color=ink.text, rotation=0, ha="right", va="center", fontsize=9)


def _bare(ax: Any) -> None:
    ax.set_xticks([])
    ax.set_yticks([])
    for spine in ax.spines.values():
        spine.set_visible(False)
