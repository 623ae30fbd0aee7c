"""Pictures of the RVGP study: fields on surfaces with their zeros, maps of errors, and flow on the scalp."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from steepest.core.extras import require

__all__ = ["draw_error_map", "draw_fields", "draw_scalp"]

Arrays = Mapping[str, np.ndarray]
VIEWS = ((18, 30), (42, 35), (18, 30), (58, -68))  # elevation and azimuth of the four surfaces, degrees
MOST_ANGLE = 30.0  # degrees at which the color scale ends


def draw_fields(figure: Any, arrays: Arrays, ink: Any) -> None:
    """Four surfaces: seen vectors, the field found elsewhere colored by its angle error, and zeros."""
    figure.set_layout_engine(None)  # axes are placed by hand
    shapes = [str(name) for name in arrays["shapes"]]
    arrows = None
    for i, shape in enumerate(shapes):
        axes = figure.add_axes((0.02 + 0.44 * (i % 2), 0.53 - 0.49 * (i // 2), 0.44, 0.46), projection="3d")
        elevation, azimuth = VIEWS[i]
        e, a = np.radians([elevation, azimuth])
        eye = np.array([np.cos(e) * np.cos(a), np.cos(e) * np.sin(a), np.sin(e)])
        upright = [0, 2, 1] if shape == "Swiss roll" else [0, 1, 2]  # the roll stands on its end
        points, field, truth, zeros, normals = (
            arrays[f"{name}_{i}"][:, upright] for name in ("points", "field", "truth", "zeros", "normals")
        )
        seen, closed = arrays[f"seen_{i}"], shape != "Swiss roll"
        front = normals @ eye > 0.05 if closed else np.ones(len(points), dtype=bool)
        lengths = 0.9 * np.sqrt(_spacing(points))
        angle = _angle(field, truth)
        hidden, known = front & ~seen, front & seen
        arrows = _arrows(axes, points[hidden], field[hidden], lengths, angle[hidden], ink)
        axes.scatter(*points[known].T, s=9, color=ink.categories[1], depthshade=False, zorder=5)
        if len(zeros):
            visible = zeros @ eye > 0 if shape in ("sphere", "bumpy sphere") else np.ones(len(zeros), dtype=bool)
            axes.scatter(
                *(1.02 * zeros[visible]).T,
                s=110,
                depthshade=False,
                facecolors="none",
                edgecolors=ink.text,
                linewidths=1.8,
                zorder=9,
            )
        axes.view_init(elevation, azimuth)
        axes.set_axis_off()
        axes.set_box_aspect(np.ptp(points, axis=0), zoom=1.25 if closed else 1.1)
        axes.text2D(0.5, 0.0, shape, transform=axes.transAxes, ha="center", color=ink.text, fontsize=11)
    bar_axes = figure.add_axes((0.915, 0.25, 0.016, 0.5))
    bar = figure.colorbar(arrows, cax=bar_axes)
    bar.set_label("angle between found and true vector (degrees)", color=ink.text)


def _arrows(axes: Any, points: np.ndarray, field: np.ndarray, length: float, values: np.ndarray, ink: Any) -> Any:
    """Arrows with flat heads as one collection, colored by `values`."""
    Line3DCollection: Any = require("mpl_toolkits.mplot3d.art3d", "report").Line3DCollection

    direction = field / np.maximum(np.linalg.norm(field, axis=1, keepdims=True), 1e-12)
    tail, tip = points - 0.5 * length * direction, points + 0.5 * length * direction
    side = np.cross(direction, points - points.mean(axis=0))
    side /= np.maximum(np.linalg.norm(side, axis=1, keepdims=True), 1e-12)
    back = tip - 0.35 * length * direction
    wings = [back + 0.18 * length * side, back - 0.18 * length * side]
    strokes = np.stack([tail, tip, wings[0], tip, wings[1]], axis=1)
    lines = Line3DCollection(strokes, cmap=_visible(ink), linewidths=1.1)
    lines.set_array(values)
    lines.set_clim(0, MOST_ANGLE)
    axes.add_collection3d(lines)
    for set_limits, low, high in zip(
        (axes.set_xlim, axes.set_ylim, axes.set_zlim), points.min(axis=0), points.max(axis=0)
    ):
        set_limits(low, high)
    return lines


def _visible(ink: Any) -> Any:
    """The map of amounts without its end that thin strokes lose on the page."""
    whole = require("matplotlib", "report").colormaps[ink.sequential]
    colors: Any = require("matplotlib.colors", "report")
    return colors.ListedColormap(whole(np.linspace(*((0.28, 1.0) if ink.dark else (0.0, 0.9)), 256)))


def _spacing(points: np.ndarray) -> float:
    """Median squared distance to the nearest point."""
    squared = ((points[:, None] - points[None]) ** 2).sum(axis=2)
    np.fill_diagonal(squared, np.inf)
    return float(np.median(squared.min(axis=1)))


def _angle(found: np.ndarray, truth: np.ndarray) -> np.ndarray:
    lengths = np.linalg.norm(found, axis=1) * np.linalg.norm(truth, axis=1)
    return np.degrees(np.arccos(np.clip((found * truth).sum(axis=1) / np.maximum(lengths, 1e-12), -1, 1)))


def draw_error_map(figure: Any, arrays: Arrays, ink: Any) -> None:
    """The unrolled sheet, once for each method, colored by the length of the error."""
    places, seen, errors = arrays["places"], arrays["seen"], arrays["errors"]
    names = [str(name) for name in arrays["names"]]
    all_axes = figure.subplots(len(names), 1, sharex=True, sharey=True)
    figure.set_layout_engine(None)  # axes are placed by hand
    figure.subplots_adjust(left=0.08, right=0.87, bottom=0.12, top=0.94, hspace=0.4)
    for axes, name, values in zip(all_axes, names, errors):
        drawn = axes.tripcolor(
            places[:, 0], places[:, 1], values, shading="gouraud", cmap=ink.sequential, vmin=0, vmax=0.6
        )
        axes.scatter(*places[seen].T, s=14, facecolors="none", edgecolors="white", linewidths=0.9)
        mean = float(np.sqrt((values[~seen] ** 2).mean()))
        axes.set_title(f"{name}: {mean:.2f}", loc="left", fontsize=10, color=ink.text)
        axes.set_aspect("equal")
        axes.set_ylabel("across")
    all_axes[-1].set_xlabel("along the roll (units of length; its windings are 2 apart)")
    bar = figure.colorbar(drawn, cax=figure.add_axes((0.895, 0.12, 0.018, 0.82)), extend="max")
    bar.set_label("length of the error (fields have length 1)", color=ink.text)


def draw_scalp(figure: Any, arrays: Arrays, ink: Any) -> None:
    """The scalp from above, azimuthal equidistant: arrows, the low-density sensors and the zeros."""
    points, low = arrays["points"], arrays["low"]
    titles = ["truth, 256 sensors", *(f"{name}, from 61" for name in arrays["names"][1:])]
    all_axes = figure.subplots(1, len(titles))
    figure.set_layout_engine(None)  # axes are placed by hand
    figure.subplots_adjust(left=0.01, right=0.99, bottom=0.1, top=0.9, wspace=0.04)
    flat, jacobian = _flatten(points)
    rim = 1.04 * np.linalg.norm(flat, axis=1).max()
    circle = np.linspace(0, 2 * np.pi, 200)
    for i, (axes, title) in enumerate(zip(all_axes, titles)):
        field = np.einsum("nij,nj->ni", jacobian, arrays[f"field_{i}"])
        axes.plot(rim * np.cos(circle), rim * np.sin(circle), color=ink.muted, linewidth=1.2)
        nose = rim * np.array([[-0.09, 0.996], [0.0, 1.1], [0.09, 0.996]])
        axes.plot(*nose.T, color=ink.muted, linewidth=1.2)
        axes.quiver(
            *flat.T, *field.T, color=ink.muted, scale=20, width=0.0045, headwidth=4, headlength=4, pivot="middle"
        )
        axes.scatter(*flat[low].T, s=5, color=ink.text, zorder=3)
        index, places = arrays[f"index_{i}"], arrays[f"places_{i}"]
        if len(index):
            at = _flatten(places / np.linalg.norm(places, axis=1, keepdims=True))[0]
            axes.scatter(
                *at[index > 0].T, s=75, color=ink.categories[1], edgecolors=ink.background, zorder=5, label="+1"
            )
            axes.scatter(
                *at[index < 0].T, s=65, marker="s", facecolors=ink.background, edgecolors=ink.categories[0],
                linewidths=2, zorder=5, label="-1",
            )  # fmt: skip
        axes.set_title(title, fontsize=10, color=ink.text)
        axes.set_aspect("equal")
        axes.set_axis_off()
    handles, labels = all_axes[0].get_legend_handles_labels()
    figure.legend(
        handles, [f"index {label}" for label in labels], loc="lower center", ncols=2, frameon=False, labelcolor=ink.text
    )


def _flatten(points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Azimuthal equidistant map of the sphere from its pole, (n, 2), and its derivative on tangents, (n, 2, 3)."""
    polar = np.arccos(np.clip(points[:, 2], -1, 1))
    azimuth = np.arctan2(points[:, 1], points[:, 0])
    outward = np.stack([np.cos(azimuth), np.sin(azimuth)], axis=1)
    sideways = np.stack([-np.sin(azimuth), np.cos(azimuth)], axis=1)
    along = np.concatenate([np.cos(polar)[:, None] * outward, -np.sin(polar)[:, None]], axis=1)
    across = np.concatenate([sideways, np.zeros((len(points), 1))], axis=1)
    stretch = polar / np.maximum(np.sin(polar), 1e-9)
    jacobian = outward[:, :, None] * along[:, None] + (stretch[:, None] * sideways)[:, :, None] * across[:, None]
    return polar[:, None] * outward, jacobian
