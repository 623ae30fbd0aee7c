"""Images of the study of deep conjugate directions: a direction beside its residual, and smoke with its pressure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["draw_direction", "draw_smoke"]

Arrays = Mapping[str, NDArray[Any]]


def draw_direction(figure: Any, arrays: Arrays, ink: Any) -> None:
    """The residual, the network's direction, the direction that would end it, and what is left after the step."""
    fluid = arrays["fluid"]
    titles = {
        "residual": "residual",
        "proposed": "network's direction",
        "wanted": "$A^{-1}$ residual",
        "left": "error after the step",
    }
    fields = {name: arrays[name] for name in ("residual", "proposed", "wanted")}
    fields["left"] = arrays["wanted"] - arrays["proposed"]
    scale = float(np.abs(arrays["wanted"]).max())
    axes = figure.subplots(1, 4)
    for ax, (name, title) in zip(axes, titles.items(), strict=True):
        top = float(np.abs(fields[name]).max()) if name == "residual" else scale
        image = _field(ax, fields[name], fluid, ink.diverging, (-top, top))
        ax.set_title(title, color=ink.text)
        _bar(figure, image, ax)
    axes[1].set_xlabel(f"cosine with the wanted one: {float(arrays['cosine']):.3f}", color=ink.muted)


def draw_smoke(figure: Any, arrays: Arrays, ink: Any) -> None:
    """Smoke, the divergence that its buoyancy brings, and the pressure that takes it away."""
    fluid = arrays["fluid"]
    axes = figure.subplots(1, 3)
    image = _field(axes[0], arrays["smoke"], fluid, ink.sequential, (0.0, 1.0))
    axes[0].set_title("smoke", color=ink.text)
    _bar(figure, image, axes[0])
    for ax, name, title in ((axes[1], "right_side", "right-hand side"), (axes[2], "pressure", "pressure")):
        top = float(np.percentile(np.abs(arrays[name]), 99.5))
        image = _field(ax, arrays[name], fluid, ink.diverging, (-top, top))
        ax.set_title(title, color=ink.text)
        _bar(figure, image, ax)


def _field(ax: Any, values: NDArray[Any], fluid: NDArray[Any], colors: str, limits: tuple[float, float]) -> Any:
    """Values in fluid cells, obstacles in gray."""
    image = ax.imshow(np.where(fluid, values, np.nan), cmap=colors, vmin=limits[0], vmax=limits[1])
    ax.imshow(np.where(fluid, np.nan, 0.55), cmap="gray", vmin=0.0, vmax=1.0)
    ax.set_xticks([])
    ax.set_yticks([])
    for spine in ax.spines.values():
        spine.set_visible(False)
    return image


def _bar(figure: Any, image: Any, ax: Any) -> None:
    bar = figure.colorbar(image, ax=ax, orientation="horizontal", shrink=0.8, pad=0.03, aspect=14)
    bar.outline.set_visible(False)
    bar.ax.locator_params(nbins=3)
