"""Images of the wing-pressure study: pressure on a test wing, its sections, and the channels that the network reads."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from steepest.core.extras import require

__all__ = ["draw_channels", "draw_lift", "draw_pressure", "draw_sections"]

Arrays = Mapping[str, NDArray[Any]]
OURS, DAN = 3, 5  # places in `Ink.categories`: slots 4 and 6 of the site


def draw_pressure(figure: Any, arrays: Arrays, ink: Any) -> None:
    """A wing from above four times, its left half the lower side: CP of solver and network, errors of both networks."""
    grid, cp = arrays["grid"], arrays["cp"]
    ours, base = arrays["geometry"], arrays["dan"]
    span = (float(np.percentile(cp, 1)), float(np.percentile(cp, 99)))
    worst = float(np.percentile(np.abs(base - cp), 98))
    parts = [
        ("solver", cp, ink.sequential + "_r", span),
        ("network with geometry", ours, ink.sequential + "_r", span),
        ("error on coordinates alone", base - cp, ink.diverging, (-worst, worst)),
        ("error with geometry", ours - cp, ink.diverging, (-worst, worst)),
    ]
    axes = figure.subplots(2, 2, sharex=True, sharey=True)
    for k, (ax, (title, values, colors, limits)) in enumerate(zip(axes.ravel(), parts)):
        faces = _planform(ax, grid, values, colors, limits, ink)
        ax.set_title(title, color=ink.text)
        if k % 2:
            bar = figure.colorbar(faces, ax=axes[k // 2].tolist(), shrink=0.85, aspect=12, pad=0.01)
            bar.set_label("$C_P$" if k == 1 else "error of $C_P$")
            bar.outline.set_visible(False)
    for ax in axes[1]:
        ax.text(0.25, -0.02, "lower side", transform=ax.transAxes, ha="center", va="top", color=ink.muted)
        ax.text(0.75, -0.02, "upper side", transform=ax.transAxes, ha="center", va="top", color=ink.muted)


def _planform(
    ax: Any, grid: NDArray[Any], values: NDArray[Any], colors: str, limits: tuple[float, float], ink: Any
) -> Any:
    """Draw the panels seen from above, those of the lower side mirrored to the left; the flow comes from above."""
    collections: Any = require("matplotlib.collections", "report", what="the drawing of wings")
    half = len(values) // 2
    flat = np.stack([grid[..., 1], -grid[..., 0]], axis=-1)
    corners = np.stack([flat[:-1, :-1], flat[1:, :-1], flat[1:, 1:], flat[:-1, 1:]], axis=2)
    corners[:half, :, :, 0] *= -1
    faces = collections.PolyCollection(
        corners.reshape(-1, 4, 2), array=values.ravel(), cmap=colors, clim=limits, edgecolors="face", linewidths=0.2
    )
    ax.add_collection(faces)
    outline = np.concatenate([flat[0], flat[half, ::-1]])
    for sign in (-1, 1):
        ax.plot(sign * outline[:, 0], outline[:, 1], color=ink.line, lw=0.7)
    ax.set_aspect("equal")
    ax.autoscale_view()
    ax.set_axis_off()
    return faces


def draw_sections(figure: Any, arrays: Arrays, ink: Any) -> None:
    """CP along the chord at three stations: solver, both networks, and the section with a boundary layer."""
    stations = arrays["stations"]
    axes = figure.subplots(1, len(stations), sharey=True)
    for k, (ax, at) in enumerate(zip(axes, stations)):
        x = arrays["x"][:, k]
        ax.plot(x, arrays["dan"][:, k], color=ink.categories[DAN], label="network on coordinates")
        ax.plot(x, arrays["geometry"][:, k], color=ink.categories[OURS], label="network with geometry")
        ax.plot(x, arrays["cp"][:, k], "o", ms=3, mfc="none", color=ink.text, mew=0.9, label="solver", zorder=3)
        if "viscous_x" in arrays and k == int(arrays["viscous_station"]):
            for side in ("upper", "lower"):
                label = "section with boundary layer" if side == "upper" else None
                y = arrays[f"viscous_{side}"]
                ax.plot(arrays["viscous_x"], y, ":", lw=1.4, color=ink.muted, label=label)
        ax.set_title(f"{100 * float(at):.0f} % of the half span", color=ink.text)
        ax.set_xlabel("$x / c$")
        ax.axhline(0, lw=0.6, color=ink.line, zorder=0)
    axes[0].set_ylabel("$C_P$ (suction upwards)")
    axes[0].invert_yaxis()
    found = {label: handle for ax in axes for handle, label in zip(*ax.get_legend_handles_labels())}
    figure.legend(list(found.values()), list(found), loc="outside lower center", ncols=len(found))


def draw_channels(figure: Any, arrays: Arrays, ink: Any) -> None:
    """Six channels over the unrolled surface: from the lower trailing edge over the leading edge to the upper one."""
    names = {
        "g_11": "$g_{11}$, metric",
        "g_22": "$g_{22}$, metric",
        "Gamma1_11": r"$\Gamma^1_{11}$, connection",
        "Gamma1_22": r"$\Gamma^1_{22}$, connection",
        "K": "$K$, Gaussian curvature",
    }
    axes = figure.subplots(2, 3, sharex=True, sharey=True).ravel()
    n_u = arrays["cp"].shape[0]
    extent = (0, 1, 0, 1)
    for ax, (name, title) in zip(axes, names.items()):
        image = ax.imshow(
            arrays[name].T, origin="lower", aspect="auto", extent=extent, cmap=ink.diverging, vmin=-2.5, vmax=2.5
        )
        ax.set_title(title, color=ink.text)
    bar = figure.colorbar(image, ax=axes[:3], shrink=0.9, aspect=16, pad=0.01)
    bar.set_label("normalized")
    bar.outline.set_visible(False)
    field = axes[5].imshow(arrays["cp"].T, origin="lower", aspect="auto", extent=extent, cmap=ink.sequential + "_r")
    axes[5].set_title("$C_P$ of the solver", color=ink.text)
    bar = figure.colorbar(field, ax=axes[3:], shrink=0.9, aspect=16, pad=0.01)
    bar.set_label("$C_P$")
    bar.outline.set_visible(False)
    for ax in axes[3:]:
        ax.set_xticks([0, 0.5, 1], ["lower TE", "leading edge", "upper TE"] if n_u > 1 else [])
        for label, side in zip(ax.get_xticklabels(), ("left", "center", "right")):
            label.set_horizontalalignment(side)
    for ax in axes[::3]:
        ax.set_yticks([0, 1], ["root", "tip"])
    for ax in axes:
        ax.tick_params(length=0)
        for spine in ax.spines.values():
            spine.set_visible(False)


def draw_lift(figure: Any, arrays: Arrays, ink: Any) -> None:
    """Lift of ten wings: panel method against vortex lattice, with the band of 12 %."""
    theirs, ours = arrays["lattice"], arrays["panels"]
    ax = figure.subplots()
    top = 1.12 * float(max(theirs.max(), ours.max()))
    line = np.array([0.0, top])
    ax.fill_between(line, 0.88 * line, 1.12 * line, color=ink.muted, alpha=0.16, lw=0, label="within 12 %")
    ax.plot(line, line, color=ink.line, lw=1)
    ax.plot(theirs, ours, "o", color=ink.categories[OURS], ms=6, label="a random wing at 5°")
    ax.set_xlim(0, top)
    ax.set_ylim(0, top)
    ax.set_xlabel("$C_L$ of the vortex lattice (no thickness)")
    ax.set_ylabel("$C_L$ of the panel method")
    ax.legend(loc="upper left")
