"""What a figure draws: the series of a run, brought together by name, with medians and bands over seeds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from steepest.core.records import Series
from steepest.report import theme
from steepest.report.text import count, number
from steepest.studies import registry
from steepest.studies.claim import Figure

__all__ = ["MAX_POINTS", "Drawing", "Line", "drawings", "thin"]

MAX_POINTS = 400


@dataclass(frozen=True)
class Line:
    """One name of a figure: median and 10-90 % band over its seeds.

    Attributes
    ----------
    method : str
    mark : Mark
    own : bool
        The study's own method.
    steps, median, low, high : ndarray (n,)
    last : ndarray (n_seeds,)
        The last finite value of every seed.
    stopped : int
        In how many seeds the values stop being finite before the end.
    n_seeds : int
    hidden : bool
        Some values are not positive, and the axis is logarithmic.
    """

    method: str
    mark: theme.Mark
    own: bool
    steps: np.ndarray
    median: np.ndarray
    low: np.ndarray
    high: np.ndarray
    last: np.ndarray
    stopped: int
    n_seeds: int
    hidden: bool


@dataclass(frozen=True)
class Drawing:
    """A figure with its data, ready to be drawn."""

    figure: Figure
    lines: list[Line]

    @property
    def value_title(self) -> str:
        """Title of the axis that shows the values: y of a line; dots and bars lie, so theirs is x."""
        return self.figure.y if self.figure.kind == "line" else self.figure.x

    @property
    def value_log(self) -> bool:
        """Whether that axis is logarithmic."""
        return _value_log(self.figure)

    @property
    def caption(self) -> str:
        """The study's caption, and what the reader must know of this data."""
        parts = [self.figure.caption.strip()]
        lost = [f"{x.method} (in {x.stopped} of {count(x.n_seeds, 'seed')})" for x in self.lines if x.stopped]
        if lost and self.figure.kind == "line":
            parts.append(f"A cross: from there on not finite, {', '.join(lost)}.")
        elif lost:
            parts.append(f"Not finite at the end, shown with the last finite value if there is one: {', '.join(lost)}.")
        if any(x.hidden for x in self.lines):
            parts.append("Values at or under 0 have no place on a logarithmic axis.")
        empty = [x.method for x in self.lines if not len(x.steps)]
        if empty:
            parts.append(f"Without a value that can be drawn: {', '.join(empty)}.")
        return " ".join(p for p in parts if p)

    @property
    def sentence(self) -> str:
        """The figure in words, for those who do not see it."""
        ends = [f"{x.method} {number(float(x.median[-1]))}" for x in self.lines if len(x.steps)]
        f = self.figure
        what = f"{f.y} against {f.x}" if f.kind == "line" else f.x
        return f"{f.title}. {what}. Last median values: {', '.join(ends)}."


def drawings(key: str, figures: Sequence[Figure], peers: Sequence[str], series: Sequence[Series]) -> list[Drawing]:
    """Put together the figures of a study for which there is data.

    Parameters
    ----------
    key : str
        The study's key.
    figures : sequence of Figure
    peers : sequence of str
        Names of the study's peers.
    series : sequence of Series
        What the run logged.
    """
    found = []
    for figure in figures:
        groups: dict[str, list[Series]] = {}
        for s in series:
            if s.name == figure.series:
                groups.setdefault(s.method or registry.METHODS[key].name, []).append(s)
        names = [n for n in figure.methods if n in groups] if figure.methods else list(groups)
        own = [n for n in names if theme.is_own(key, n, peers)]
        marks = theme.marks(names, own, key)
        lines = [_line(n, groups[n], marks[n], n in own, figure) for n in names]
        if any(len(x.steps) for x in lines):
            found.append(Drawing(figure, lines))
    return found


def _value_log(figure: Figure) -> bool:
    return figure.log_y if figure.kind == "line" else figure.log_x


def _line(name: str, seeds: Sequence[Series], mark: theme.Mark, own: bool, figure: Figure) -> Line:
    grid = np.unique(np.concatenate([np.asarray(s.steps, dtype=float) for s in seeds]))
    values = np.full((len(seeds), len(grid)), np.nan)
    last, stopped = [], 0
    for row, s in zip(values, seeds):
        order = np.argsort(np.asarray(s.steps, dtype=float), kind="stable")
        x = np.asarray(s.steps, dtype=float)[order]
        y = np.array([math.nan if v is None else v for v in s.values], dtype=float)[order]
        fine = np.isfinite(y)
        stopped += len(y) > 0 and not fine[-1]
        if fine.any():
            row[:] = y if len(x) == len(grid) else np.interp(grid, x[fine], y[fine], left=np.nan, right=np.nan)
            last.append(y[fine][-1])
    log = _value_log(figure)
    hidden = bool(log and (np.nan_to_num(values, nan=1.0) <= 0).any())
    if log:
        values[values <= 0] = np.nan
        last = [v for v in last if v > 0]
    keep = 2 * np.isfinite(values).sum(axis=0) >= len(seeds)
    if figure.log_x and figure.kind == "line":
        keep &= grid > 0
    steps, kept = grid[keep], values[:, keep]
    few = thin(steps, MAX_POINTS, log=figure.log_x)
    steps, kept = steps[few], kept[:, few]
    if len(steps):
        quantile = np.quantile if np.isfinite(kept).all() else np.nanquantile
        low, median, high = quantile(kept, [0.1, 0.5, 0.9], axis=0)
    else:
        median = low = high = np.empty(0)
    return Line(name, mark, own, steps, median, low, high, np.array(last), stopped, len(seeds), hidden)


def thin(steps: np.ndarray, n: int, *, log: bool = False) -> np.ndarray:
    """Choose at most `n` indices, even along the axis, both ends among them.

    Examples
    --------
    >>> thin(np.arange(10.0), 4).tolist()
    [0, 3, 6, 9]
    """
    if len(steps) <= n:
        return np.arange(len(steps))
    if log:
        wanted = np.geomspace(steps[0], steps[-1], n)
        return np.unique(np.r_[0, np.searchsorted(steps, wanted[1:-1]), len(steps) - 1])
    return np.unique(np.linspace(0, len(steps) - 1, n).round().astype(int))
