"""The picture of the study of convex networks: what training against perturbations does to a boundary."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

__all__ = ["draw_decision"]

BLACK = "#14181d"  # in both themes: the map under it is pale in both


def draw_decision(figure: Any, arrays: Mapping[str, Any], ink: Any) -> None:
    """Two maps of the network's output with the boxes of the training points."""
    from matplotlib import colormaps
    from matplotlib.colors import ListedColormap
    from matplotlib.patches import Rectangle

    axes = figure.subplots(1, 2)
    pale = ListedColormap(colormaps[ink.diverging](np.linspace(0.22, 0.78, 20)))  # what is drawn on it stays legible
    radius = float(arrays["radius"])
    for ax, name, title in zip(axes, ("plain", "robust"), ("plain", "against perturbations"), strict=True):
        z = arrays[name]
        z = np.clip(z, -2, 2)
        ax.contourf(arrays["x"], arrays["x"], z, levels=np.linspace(-2, 2, 21), cmap=pale)
        ax.contour(arrays["x"], arrays["x"], z, levels=[0.0], colors=[BLACK], linewidths=1.6)
        for point, label in zip(arrays["points"], arrays["labels"], strict=True):
            ax.add_patch(Rectangle(point - radius, 2 * radius, 2 * radius, fill=False, edgecolor=BLACK, lw=0.6))
            ax.plot(*point, "o" if label > 0 else "x", color=BLACK, ms=3)
        share = float(arrays[f"{name}_share"])
        ax.set_title(f"{title}: {share:.0%} of boxes on one side", color=ink.text)
        ax.set(xlim=(-2, 2), ylim=(-2, 2), aspect="equal", xticks=[], yticks=[])
        for spine in ax.spines.values():
            spine.set_visible(False)
