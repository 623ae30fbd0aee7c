"""Claims as data, verdicts by comparison, and the few statistics that studies need.

A study only measures. Whether what it measured keeps the paper's promise is decided here, against a bound that was
fixed before anything ran.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike

from steepest.core.errors import at_least, check, interval, value_error

__all__ = [
    "SCALES",
    "Bound",
    "Claim",
    "Figure",
    "Paper",
    "Peer",
    "Picture",
    "Verdict",
    "bootstrap_interval",
    "interquartile_mean",
    "judge",
    "slope_fit",
]

SCALES = ("tiny", "quick", "full", "paper")
Interval = tuple[float, float]


@dataclass(frozen=True)
class Paper:
    """The publication a study is about."""

    title: str
    authors: str
    venue: str
    year: int
    url: str


@dataclass(frozen=True)
class Peer:
    """A tool that people use today: its name in figures and tables, and the package that must be installed."""

    name: str
    package: str = "torch"


@dataclass(frozen=True)
class Figure:
    """What is drawn from which series; the drawing itself is the report's.

    Parameters
    ----------
    id : str
        Unique within the study.
    title : str
        The finding or the question, in one sentence.
    series : str
        Name of the series (`ctx.series`) that holds the data.
    x, y : str
        Axis titles, units included. For ``dots`` and ``bars`` `x` (and `log_x`) is the axis of the values, `y` says
        what the categories are.
    kind : "line", "dots" or "bars"
        ``line``: values against steps, median and 10-90 % band over seeds. ``dots`` and ``bars``: the last value of
        every method, median and range over seeds.
    log_x, log_y : bool
        Logarithmic axes.
    caption : str
        Data, seeds, what line and band are.
    methods : tuple of str, optional
        Which methods to draw, in this order; all by default.
    """

    id: str
    title: str
    series: str
    x: str
    y: str
    kind: Literal["line", "dots", "bars"] = "line"
    log_x: bool = False
    log_y: bool = False
    caption: str = ""
    methods: tuple[str, ...] = ()


@dataclass(frozen=True)
class Picture:
    """A scientific image (a field on a surface, an embedding), drawn by matplotlib from arrays that a run kept.

    Parameters
    ----------
    id : str
        Unique within the study, among its figures too.
    title : str
        The finding or the question, in one sentence.
    arrays : str
        Name of the arrays (`ctx.arrays`) that hold the data.
    draw : callable
        ``draw(figure, arrays, ink)`` puts the image on an empty `matplotlib.figure.Figure`; ``arrays`` maps names to
        arrays, ``ink`` has the colors of the page (`report.pictures.Ink`). Called once for each theme.
    caption : str
        Data, seeds, what is shown.
    alt : str
        What is seen, in words, for those who do not see it.
    size : (width, height)
        In inches at 100 pixels each.
    """

    id: str
    title: str
    arrays: str
    draw: Callable[[Any, Mapping[str, np.ndarray], Any], None]
    caption: str = ""
    alt: str = ""
    size: tuple[float, float] = (7.6, 4.2)


@dataclass(frozen=True)
class Bound:
    """A comparison with a number, read from text such as ``"<= 15"``, ``"between(-2.3, -1.7)"`` or ``"reported"``."""

    text: str
    op: str
    low: float
    high: float

    @classmethod
    def parse(cls, text: str) -> Bound:
        """Read a bound; `ValueError` when it is none."""
        number = r"([-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?)"
        cleaned = text.strip()
        if cleaned == "reported":
            return cls(cleaned, "reported", math.nan, math.nan)
        if match := re.fullmatch(rf"(<=|<|>=|>|==)\s*{number}", cleaned):
            limit = float(match[2])
            return cls(cleaned, match[1], limit, limit)
        if match := re.fullmatch(rf"between\(\s*{number}\s*,\s*{number}\s*\)", cleaned):
            low, high = float(match[1]), float(match[2])
            if low < high:
                return cls(cleaned, "between", low, high)
        raise value_error("bound", "a comparison such as '<= 2', '== 1', 'between(0, 1)' or 'reported'", text)

    def holds(self, value: float) -> bool:
        """Compare; NaN never holds."""
        match self.op:
            case "<=":
                return value <= self.high
            case "<":
                return value < self.high
            case ">=":
                return value >= self.low
            case ">":
                return value > self.low
            case "==":
                return value == self.low
            case "between":
                return self.low <= value <= self.high
        return True

    def splits(self, interval: Interval) -> bool:
        """Whether the bound lies inside `interval`: some of it would hold and some would not."""
        a, b = interval
        if self.op == "reported":
            return False
        if self.op in ("==", "between"):
            inside = self.low <= b and a <= self.high
            return inside and not (self.holds(a) and self.holds(b))
        return self.holds(a) != self.holds(b)


@dataclass(frozen=True)
class Claim:
    """One promise of a paper, declared before anything runs.

    Parameters
    ----------
    id : str
        Unique within the study: words joined by hyphens.
    says : str
        The promise in one plain sentence.
    paper : str
        The paper's own number and its setting.
    bound : str
        See `Bound`.
    unit : str
        Of the measured number.
    scales : str
        The scales at which it is measured, separated by spaces.
    invariant : bool
        It must hold: falling short is a bug.

    Examples
    --------
    >>> c = Claim("faster", "It is faster.", "2x, Table 1", ">= 1.8", unit="x", scales="quick full")
    >>> judge(c, 1.9, (1.7, 2.2), "quick").value
    'undecided'
    """

    id: str
    says: str
    paper: str
    bound: str
    unit: str = ""
    scales: str = "quick full paper"
    invariant: bool = False

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", self.id):
            raise value_error("id", "lower-case words joined by hyphens", self.id)
        Bound.parse(self.bound)
        unknown = set(self.scales.split()) - set(SCALES[1:])
        if unknown or not self.scales.split():
            raise value_error("scales", f"some of {' '.join(SCALES[1:])!r}", self.scales)

    def measured_at(self, scale: str) -> bool:
        """Whether this claim is measured at `scale`; at ``tiny`` everything is tried and nothing judged."""
        return scale == "tiny" or scale in self.scales.split()


class Verdict(StrEnum):
    """What came of a claim."""

    HOLDS = "holds"
    SHORT = "falls short"
    UNDECIDED = "undecided"
    UNMEASURED = "not measured at this scale"
    REPORTED = "reported"


def judge(claim: Claim, value: float | None, interval: Interval | None, scale: str) -> Verdict:
    """Compare what was measured with the claim's bound.

    Parameters
    ----------
    claim : Claim
    value : float or None
        None: not measured. NaN falls short.
    interval : (low, high) or None
        Over seeds; when the bound lies inside it, the verdict is undecided.
    scale : str
        At ``tiny`` and at scales the claim does not name there is no verdict.
    """
    if value is None or scale == "tiny" or not claim.measured_at(scale):
        return Verdict.UNMEASURED
    bound = Bound.parse(claim.bound)
    if bound.op == "reported":
        return Verdict.REPORTED
    if math.isnan(value):
        return Verdict.SHORT
    if interval is not None and not any(map(math.isnan, interval)) and bound.splits(interval):
        return Verdict.UNDECIDED
    return Verdict.HOLDS if bound.holds(value) else Verdict.SHORT


def bootstrap_interval(
    values: ArrayLike,
    *,
    level: float = 0.90,
    statistic: Callable[..., np.ndarray] = np.mean,
    n_resamples: int = 4000,
    seed: int = 0,
) -> Interval:
    """Percentile bootstrap interval of a statistic over seeds.

    Parameters
    ----------
    values : array_like (n,)
        One number per seed (for a comparison: the paired differences).
    level : float
        Coverage, 0.90 by the tuning protocol.
    statistic : callable
        ``statistic(array, axis=1)``: `numpy.mean`, `numpy.median` or `interquartile_mean`.

    Returns
    -------
    (low, high)
        ``(x, x)`` for one value, NaN for none or where a value is not finite.

    Examples
    --------
    >>> low, high = bootstrap_interval([1.0, 2.0, 3.0])
    >>> low < 2.0 < high
    True
    """
    check("level", level, interval(0, 1, low_open=True, high_open=True))
    x = np.asarray(values, dtype=float).ravel()
    if len(x) == 0 or not np.isfinite(x).all():
        return (math.nan, math.nan)
    draws = np.random.default_rng(seed).integers(len(x), size=(n_resamples, len(x)))
    low, high = np.quantile(statistic(x[draws], axis=1), [(1 - level) / 2, (1 + level) / 2])
    return (float(low), float(high))


def interquartile_mean(values: ArrayLike, axis: int = -1) -> np.ndarray:
    """Mean of the middle half: a quarter of the values is cut from each end, fractions weighted.

    Examples
    --------
    >>> float(interquartile_mean([0.0, 1.0, 2.0, 100.0]))
    1.5
    """
    x = np.sort(np.asarray(values, dtype=float), axis=axis)
    n = x.shape[axis]
    edges = np.arange(n + 1)
    weights = np.clip(np.minimum(edges[1:], 0.75 * n) - np.maximum(edges[:-1], 0.25 * n), 0, None)
    return np.asarray(np.moveaxis(x, axis, -1) @ weights / weights.sum())


def slope_fit(x: ArrayLike, y: ArrayLike, *, log: bool = True, level: float = 0.95) -> tuple[float, Interval]:
    """Fit ``y = c x^a`` (or, with ``log=False``, a line) by least squares; give the slope and its interval.

    Parameters
    ----------
    x, y : array_like (n,)
        At least two points; positive when `log`.
    level : float
        Coverage of Student's interval; with two points it is ``(-inf, inf)``.

    Examples
    --------
    >>> a, _ = slope_fit([1, 2, 4, 8], [3, 12, 48, 192])
    >>> round(a, 6)
    2.0
    """
    from scipy import stats

    u, v = np.asarray(x, dtype=float), np.asarray(y, dtype=float)
    check("len(x)", len(u), at_least(2, integer=True))
    if u.shape != v.shape:
        raise value_error("y", f"of x's shape {u.shape}", v)
    if log:
        if (u <= 0).any() or (v <= 0).any():
            raise value_error("x and y", "positive for a fit in logarithms", min(u.min(), v.min()))
        u, v = np.log(u), np.log(v)
    fit = stats.linregress(u, v)
    if len(u) == 2:
        return float(fit.slope), (-math.inf, math.inf)
    half = float(stats.t.ppf((1 + level) / 2, len(u) - 2) * fit.stderr)
    return float(fit.slope), (float(fit.slope) - half, float(fit.slope) + half)


def median_interval(values: Sequence[float], level: float = 0.95) -> tuple[float, Interval]:
    """Median of repeated measurements with its bootstrap interval."""
    return float(np.median(values)), bootstrap_interval(values, level=level, statistic=np.median)
