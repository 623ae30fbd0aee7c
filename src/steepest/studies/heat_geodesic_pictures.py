"""The pictures of the heat-geodesic study: planes side by side with peers, and distances against geodesics."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from steepest.studies.claim import Picture

__all__ = ["PICTURES", "draw_groups", "draw_pairs", "draw_positions"]

Arrays = Mapping[str, np.ndarray]


def draw_positions(figure: Any, arrays: Arrays, ink: Any, *, label: str) -> None:
    """Planes colored by a number: the roll's angle, the time of a cell."""
    axes = _row(figure, arrays)
    for ax, name, points in zip(axes, arrays["names"], arrays["points"]):
        dots = ax.scatter(*points.T, c=arrays["values"], cmap=ink.sequential, s=7, linewidths=0)
        _bare(ax, str(name))
    bar = figure.colorbar(dots, ax=list(axes), orientation="horizontal", shrink=0.35, aspect=32, pad=0.04)
    bar.set_label(label)
    bar.outline.set_visible(False)


def draw_groups(figure: Any, arrays: Arrays, ink: Any) -> None:
    """Planes colored by group: a color of the page for each of the first seven, rings for the others."""
    axes = _row(figure, arrays)
    groups, colors = np.unique(arrays["values"]), ink.categories
    for ax, name, points in zip(axes, arrays["names"], arrays["points"]):
        for k, group in enumerate(groups):
            color = colors[k % len(colors)]
            face = color if k < len(colors) else "none"
            chosen = points[arrays["values"] == group]
            ax.scatter(*chosen.T, s=9, facecolors=face, edgecolors=color, linewidths=0 if face == color else 0.7)
        _bare(ax, str(name))


def draw_pairs(figure: Any, arrays: Arrays, ink: Any) -> None:
    """Distances in the plane against true geodesics, one field for each method."""
    axes = np.atleast_1d(figure.subplots(1, len(arrays["names"]), sharex=True, sharey=True))
    x = arrays["geodesic"]
    for ax, name, y in zip(axes, arrays["names"], arrays["distance"]):
        ax.scatter(x, y, s=4, color=ink.color(str(name)), alpha=0.35, linewidths=0)
        slope = float(x @ y / (x @ x))
        ax.plot([0, x.max()], [0, slope * x.max()], color=ink.muted, linewidth=1)
        ax.set_title(f"{_title(str(name))}\nr = {np.corrcoef(x, y)[0, 1]:.2f}", fontsize=9)
        ax.set_xlim(0, None)
        ax.set_ylim(0, None)
    axes[0].set_ylabel("distance in the plane / median")
    figure.supxlabel("geodesic distance on the sheet", color=ink.muted, fontsize=9)


def _row(figure: Any, arrays: Arrays) -> np.ndarray:
    return np.atleast_1d(figure.subplots(1, len(arrays["names"])))


def _bare(ax: Any, name: str) -> None:
    """Only the points count: no axes, the same length for one unit on both."""
    ax.set_title(_title(name))
    ax.set_aspect("equal", adjustable="datalim")
    ax.set_xticks([])
    ax.set_yticks([])
    for side in ("left", "bottom"):
        ax.spines[side].set_visible(False)


def _title(name: str) -> str:
    return name[:1].upper() + name[1:]


def _roll(figure: Any, arrays: Arrays, ink: Any) -> None:
    draw_positions(figure, arrays, ink, label="angle along the roll (rad)")


def _time(figure: Any, arrays: Arrays, ink: Any) -> None:
    draw_positions(figure, arrays, ink, label="time of the cell (steps of the simulation)")


PICTURES = [
    Picture(
        id="roll",
        title="The heat-geodesic plane opens a noisy roll that PHATE leaves curled",
        arrays="roll",
        draw=_roll,
        caption="Swiss roll of width 5, noise 0.5; planes from the same points, ten neighbors each. "
        "Every plane is centered and scaled to the same size.",
        alt="Clouds of points colored by the angle along the roll. The heat-geodesic plane shows an open, gently bent "
        "strip, PHATE's an almost closed ring, Isomap's a straight strip.",
        size=(7.6, 2.9),
    ),
    Picture(
        id="pairs",
        title="Distances in its plane grow with the geodesics, up to the longest",
        arrays="distance pairs",
        draw=draw_pairs,
        caption="The roll above, 1,500 pairs of points; the line is the best proportionality, r the correlation of "
        "all pairs.",
        alt="Scatter plots of plane distance against geodesic distance. For Isomap the points lie on a straight line, "
        "for heat geodesic on a line that bends a little at the longest distances, for PHATE on an arch: the ends of "
        "the roll are drawn close together.",
        size=(7.6, 2.8),
    ),
    Picture(
        id="time",
        title="Simulated blood formation: time runs along the branches",
        arrays="cells in time",
        draw=_time,
        caption="krumsiek11: 640 cells of four simulated runs with measurement noise 0.05 (where these are not on the "
        "machine, simulated branching cells), colored by time.",
        alt="Clouds of cells colored by time. In the heat-geodesic plane four branches leave a common start and time "
        "grows along each; in PHATE's the branches are curled, in Isomap's two of them lie on top of each other.",
        size=(7.6, 2.9),
    ),
    Picture(
        id="groups",
        title="Blood cells keep their types",
        arrays="blood cells",
        draw=draw_groups,
        caption="700 blood cells of ten types (10x Genomics, fresh 68k PBMCs), 50 principal components. The colors of "
        "types eight to ten are drawn as rings.",
        alt="Clouds of cells colored by type. In each plane a few types form islands of their own; T cells of several "
        "types share one.",
        size=(7.6, 2.7),
    ),
]
