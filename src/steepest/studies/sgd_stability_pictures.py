"""The picture of the stability study: eigenvalues at the solutions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from steepest.core.extras import require

__all__ = ["draw_spectra"]


def draw_spectra(figure: Any, arrays: Mapping[str, NDArray[Any]], ink: Any) -> None:
    """Eigenvalues of H against their rank, one line a learning rate."""
    matplotlib = require("matplotlib", "report", what="the drawing of spectra")
    ax = figure.subplots()
    sgd, rates = arrays["sgd"], arrays["rates"]
    colors = matplotlib.colormaps[ink.sequential](np.linspace(0.25, 0.9, len(rates)))
    rank = np.arange(1, sgd.shape[1] + 1)
    ax.plot(rank, arrays["gd"], "--", lw=2, color=ink.muted)
    ax.annotate("gradient descent, any learning rate", (rank[8], arrays["gd"][8]), (6, 8), textcoords="offset points",
                color=ink.muted)  # fmt: skip
    for rate, values, color in zip(rates, sgd, colors):
        ax.plot(rank, values, lw=1.8, color=color, label=f"{rate:g}")
    ax.set_yscale("log")
    ax.set_ylim(max(float(sgd.min()), 1e-3 * float(sgd.max())), 1.6 * float(arrays["gd"].max()))
    ax.set_xlabel("rank of the eigenvalue")
    ax.set_ylabel("eigenvalue of H")
    legend = ax.legend(title="SGD, learning rate", ncols=2)
    legend.get_title().set_color(ink.text)
