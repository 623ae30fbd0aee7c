"""Pictures: scientific images that a study describes, drawn by matplotlib in both themes from arrays a run kept."""

from __future__ import annotations

import io
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import numpy as np

from steepest.core.extras import require
from steepest.core.records import Store
from steepest.report import theme
from steepest.studies.claim import Picture

__all__ = ["SCALE", "Ink", "available", "draw", "size"]

SCALE = 2
"""Pixels of the file for one of the page."""


@dataclass(frozen=True)
class Ink:
    """What a picture is drawn with in one theme.

    Attributes
    ----------
    key : str
        The study whose picture it is.
    dark : bool
    sequential, diverging, cyclic : str
        Names of matplotlib's color maps: for amounts, for signed values, for angles.
    """

    key: str
    dark: bool
    sequential: str = "viridis"
    diverging: str = "RdBu_r"
    cyclic: str = "twilight"

    @property
    def name(self) -> str:
        """The theme."""
        return "dark" if self.dark else "light"

    @property
    def text(self) -> str:
        """For words."""
        return theme.token("ink", self.name)

    @property
    def muted(self) -> str:
        """For axes and remarks."""
        return theme.token("ink-3", self.name)

    @property
    def line(self) -> str:
        """For hairlines."""
        return theme.token("line-2", self.name)

    @property
    def background(self) -> str:
        """Of the page."""
        return theme.token("bg", self.name)

    @property
    def categories(self) -> list[str]:
        """Seven colors that colour-blind readers tell apart."""
        return [theme.token(f"s{slot}", self.name) for slot in range(1, 8)]

    def color(self, name: str) -> str:
        """The color of a method or peer, as in every other figure of its study."""
        return theme.token(f"s{theme.marks([name], [name], self.key)[name].slot}", self.name)


def available(store: Store, run_id: str, study: ModuleType) -> list[tuple[Picture, dict[str, np.ndarray]]]:
    """Find the pictures of a study for which the run kept arrays."""
    found = []
    for picture in getattr(study, "PICTURES", []):
        arrays = store.arrays(run_id, picture.arrays)
        if arrays is not None:
            found.append((picture, arrays))
    return found


def draw(picture: Picture, arrays: Mapping[str, np.ndarray], ink: Ink) -> bytes:
    """Draw a picture as a PNG with a transparent background, without empty margins.

    Raises
    ------
    MissingExtra
        matplotlib is not installed.
    """
    matplotlib = require("matplotlib", "report", what="the drawing of pictures")
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.image import imsave

    with matplotlib.rc_context(_settings(ink)):
        figure = Figure(figsize=picture.size, dpi=100 * SCALE, layout="constrained")
        canvas = FigureCanvasAgg(figure)
        picture.draw(figure, arrays, ink)
        canvas.draw()
        pixels = np.asarray(canvas.buffer_rgba())
    inked = pixels[..., 3] > 0
    rows, columns = (np.flatnonzero(inked.any(axis)) for axis in (1, 0))
    file = io.BytesIO()
    if len(rows):
        pixels = pixels[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    imsave(file, np.ascontiguousarray(pixels), format="png")
    return file.getvalue()


def size(png: bytes) -> tuple[int, int]:
    """Read the width and height of a picture, in pixels of the page."""
    width, height = struct.unpack(">II", png[16:24])
    return -(-width // SCALE), -(-height // SCALE)


def _settings(ink: Ink) -> dict[str, Any]:
    return {
        "font.family": "sans-serif",
        "font.sans-serif": ["Inter", "Helvetica Neue", "Arial", "DejaVu Sans"],
        "font.size": 9,
        "axes.titlesize": 9.5,
        "axes.titleweight": "bold",
        "axes.labelsize": 9,
        "axes.edgecolor": ink.line,
        "axes.labelcolor": ink.muted,
        "axes.titlecolor": ink.text,
        "axes.facecolor": "none",
        "axes.linewidth": 0.8,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "figure.facecolor": "none",
        "text.color": ink.text,
        "xtick.color": ink.line,
        "ytick.color": ink.line,
        "xtick.labelcolor": ink.muted,
        "ytick.labelcolor": ink.muted,
        "legend.frameon": False,
        "grid.color": ink.line,
        "image.cmap": ink.sequential,
        "lines.linewidth": 1.5,
    }
