"""The small drawings of tables: meters, ratio strips, gauges, sparklines. Positions in per cent, no script needed."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from markupsafe import Markup

from steepest.core.records import ClaimResult
from steepest.report.drawing import Drawing, Line, thin
from steepest.report.text import Ratio
from steepest.studies.claim import Bound, Verdict

__all__ = ["Gauge", "Meter", "Strip", "Tally", "gauge", "meter", "sparkline", "strip", "swarm", "tally", "telling"]

CODES = {
    Verdict.HOLDS: "h",
    Verdict.SHORT: "s",
    Verdict.UNDECIDED: "d",
    Verdict.REPORTED: "r",
    Verdict.UNMEASURED: "u",
}
LOW, OCTAVES = 0.25, 8  # the ratio axis: 1/4 to 64
WIDTH, HEIGHT = 120, 38


@dataclass(frozen=True)
class Tally:
    """How many claims came to which verdict."""

    holds: int = 0
    short: int = 0
    undecided: int = 0
    reported: int = 0
    unmeasured: int = 0

    @property
    def judged(self) -> int:
        """Claims that have a verdict."""
        return self.holds + self.short + self.undecided

    @property
    def cells(self) -> str:
        """One letter a claim, in the order of the meter."""
        counts = (self.holds, self.short, self.undecided, self.reported, self.unmeasured)
        return "".join(code * n for code, n in zip(CODES.values(), counts))

    @property
    def meter(self) -> Meter:
        """The drawing of the cells."""
        return meter(self.cells)

    @property
    def head(self) -> str:
        """The number that matters."""
        return f"{self.holds} of {self.judged}" if self.judged else "no verdict"

    @property
    def rest(self) -> str:
        """What follows `head` in a row."""
        words = [f"{self.short} {'falls' if self.short == 1 else 'fall'} short"] * bool(self.short)
        words += [f"{self.undecided} undecided"] * bool(self.undecided)
        words += [f"{self.reported} reported"] * bool(self.reported)
        words += [f"{self.unmeasured} not measured"] * bool(self.unmeasured)
        verb = ["hold"] * bool(self.judged)
        return ", ".join(part.replace(" ", "\u00a0") for part in verb + words)

    @property
    def missed(self) -> str:
        """What did not hold, in words."""
        words = [f"{self.short} {'falls' if self.short == 1 else 'fall'} short"] * bool(self.short)
        words += [f"{self.undecided} undecided"] * bool(self.undecided)
        words += [f"{self.reported} reported"] * bool(self.reported)
        words += [f"{self.unmeasured} not measured at this scale"] * bool(self.unmeasured)
        return ", ".join(words)

    def __add__(self, other: Tally) -> Tally:
        return Tally(*(a + b for a, b in zip(self._counts(), other._counts())))

    def _counts(self) -> tuple[int, ...]:
        return (self.holds, self.short, self.undecided, self.reported, self.unmeasured)


def tally(claims: Iterable[ClaimResult]) -> Tally:
    """Count the verdicts of claims.

    Examples
    --------
    >>> tally([]).head
    'no verdict'
    """
    verdicts = [c.verdict for c in claims]
    return Tally(*(verdicts.count(v.value) for v in CODES))


SHAPES = {  # where a path begins in a cell of 6 x 12, and how it goes on
    "h": (0, 0, "h6v12h-6z"),
    "s": (0.6, 0.6, "h4.8v10.8h-4.8zm0 10.8l4.8-10.8"),
    "d": (0.6, 0.6, "h4.8v10.8h-4.8zm1.2 0v10.8"),
    "r": (1.5, 6, "a1.5 1.5 0 1 0 3 0a1.5 1.5 0 1 0-3 0"),
    "u": (0, 11, "h6"),
}
ACROSS = 18  # cells in a line of a meter


@dataclass(frozen=True)
class Meter:
    """One cell a claim: the size in pixels, and a path for each verdict."""

    width: int
    height: int
    paths: list[tuple[str, str]]


def meter(cells: str) -> Meter:
    """Draw the meter of `Tally.cells`.

    Examples
    --------
    >>> meter("hu")
    Meter(width=14, height=12, paths=[('h', 'M0 0h6v12h-6z'), ('u', 'M8 11h6')])
    """
    drawn: dict[str, str] = {}
    for i, code in enumerate(cells):
        x, y = 8 * (i % ACROSS), 15 * (i // ACROSS)
        drawn[code] = drawn.get(code, "") + f"M{x + SHAPES[code][0]:g} {y + SHAPES[code][1]:g}{SHAPES[code][2]}"
    lines = -(-len(cells) // ACROSS)
    return Meter(8 * min(len(cells), ACROSS) - 2, 15 * lines - 3, list(drawn.items()))


def octave(factor: float) -> float:
    """Place a ratio on the axis from 1/4 to 64, in per cent.

    Examples
    --------
    >>> octave(1), octave(64), octave(1e9)
    (25.0, 100.0, 100.0)
    """
    if factor <= 0:
        return 0.0
    share = (math.log2(factor / LOW)) / OCTAVES if math.isfinite(factor) else 1.0
    return round(100 * min(max(share, 0.0), 1.0), 1)


@dataclass(frozen=True)
class Strip:
    """A ratio on its axis: the mark, and where its interval begins and how wide it is."""

    at: float
    left: float | None
    width: float | None
    state: str


def strip(ratio: Ratio) -> Strip:
    """Place a ratio and its interval."""
    if math.isnan(ratio.low):
        return Strip(octave(ratio.factor), None, None, ratio.state)
    left, right = octave(ratio.low), octave(ratio.high)
    return Strip(octave(ratio.factor), left, round(right - left, 1), ratio.state)


def swarm(ratios: Sequence[tuple[str, Ratio]]) -> list[tuple[str, Ratio, float, int]]:
    """Place all ratios on one axis, stacked where they are close; gives (name, ratio, left, level)."""
    placed: list[tuple[str, Ratio, float, int]] = []
    for name, r in sorted(ratios, key=lambda item: (item[1].factor, item[0])):
        x = octave(r.factor)
        taken = {level for _, _, other, level in placed if abs(other - x) < 1.6}
        placed.append((name, r, x, next(i for i in range(len(ratios) + 1) if i not in taken)))
    return placed


@dataclass(frozen=True)
class Gauge:
    """A claim on its scale: the part inside the bound, the bound, the paper's number, what was measured."""

    ok: tuple[float, float] | None
    bounds: tuple[float, ...]
    paper: float | None
    spread: tuple[float, float] | None
    at: float
    out: bool


def gauge(claim: ClaimResult) -> Gauge | None:
    """Place a claim's numbers; None when there is nothing to place it against."""
    bound = Bound.parse(claim.bound)
    value = claim.value
    if value is None or not math.isfinite(value) or bound.op == "reported":
        return None
    ends = [x for x in claim.interval or () if math.isfinite(x)]
    paper = _paper_number(claim)
    limits = sorted({bound.low, bound.high})
    shown = [value, *ends, *limits] + ([] if paper is None else [paper])
    low, high = min(shown), max(shown)
    log = low > 0 and (claim.unit.split(" ")[0] in ("x", "×") or high / low > 20)
    if log:
        air = max((high / low) ** 0.25, 1.3)
        low, high = math.log(low / air), math.log(high * air)
    else:
        air = 0.25 * (high - low) or 0.5 * abs(high) or 1.0
        low, high = low - air, high + air

    def place(x: float) -> float:
        y = (math.log(x) if x > 0 else -math.inf) if log else x
        return round(100 * min(max((y - low) / (high - low), 0.0), 1.0), 1)

    marks = tuple(place(x) for x in limits)
    if bound.op in ("<=", "<"):
        ok: tuple[float, float] | None = (0.0, marks[0])
    elif bound.op in (">=", ">"):
        ok = (marks[0], 100.0)
    else:
        ok = (marks[0], marks[-1]) if bound.op == "between" else None
    spread = None if claim.interval is None else (place(claim.interval[0]), place(claim.interval[1]))
    if claim.interval is not None and any(map(math.isnan, claim.interval)):
        spread = None
    at, out = place(value), claim.verdict == Verdict.SHORT.value
    return Gauge(ok, marks, None if paper is None else place(paper), spread, at, out)


def _paper_number(claim: ClaimResult) -> float | None:
    """Read the paper's number where the text begins with it, alone or with the claim's unit: else nothing is drawn."""
    unit = re.escape(claim.unit) if claim.unit else ""
    match = re.match(rf"\s*(?:about )?([-+]?\d+(?:\.\d+)?(?:[eE][-+]?\d+)?)\s*(?:{unit}|×)?\s*(?:[,;(]|$)", claim.paper)
    return float(match[1]) if match else None


# ------------------------------------------------------------------------------------------------------ sparklines


def telling(drawings: Sequence[Drawing]) -> Drawing:
    """Choose the figure for a table row: the first with a curve of the method, else the first that shows the method."""

    def worth(d: Drawing) -> int:
        own = max((len(x.steps) for x in d.lines if x.own), default=0)
        return 2 if own > 2 and d.figure.kind == "line" else own > 0

    return max(drawings, key=worth)


def sparkline(drawing: Drawing, peer: str | None, slot: int) -> Markup:
    """Draw a figure for a table row: the method solid in its colour, the best peer dashed grey."""
    lines = [x for x in drawing.lines if len(x.steps)]
    ours = max((x for x in lines if x.own), key=lambda x: len(x.steps), default=None)
    others = [x for x in lines if not x.own]
    rival = next((x for x in others if peer and x.method.casefold() == peer.casefold()), others[0] if others else None)
    shown = [x for x in (ours, rival) if x is not None]
    head = f'<svg class="spark" style="--c:var(--s{slot})" viewBox="0 0 {WIDTH} {HEIGHT}" aria-hidden="true">'
    if drawing.figure.kind == "line" and any(len(x.steps) > 1 for x in shown):
        body = '<path class="x" d="M0 37H120"/>' + _paths(drawing, ours, rival)
    else:
        body = _dots(drawing, lines)
    return Markup(head + body + "</svg>")  # numbers only: nothing in it comes from a text


def _paths(drawing: Drawing, ours: Line | None, rival: Line | None) -> str:
    f = drawing.figure
    shown = [x for x in (ours, rival) if x is not None]
    xs = np.concatenate([x.steps for x in shown])
    ys = np.concatenate([x.median for x in shown])
    x_of, y_of = _scale(xs, f.log_x), _scale(ys, f.log_y)

    def points(line: Line) -> list[str]:
        few = thin(line.steps, 28, log=f.log_x)
        return [f"{2 + 112 * x_of(a):.0f} {34 - 31 * y_of(b):.1f}" for a, b in zip(line.steps[few], line.median[few])]

    parts = ""
    if rival is not None:
        parts += f'<path class="p" d="M{" ".join(points(rival))}"/>'
    if ours is not None:
        at = points(ours)
        x, y = at[-1].split()
        parts += f'<path class="o" d="M{" ".join(at)}"/><circle class="d" cx="{x}" cy="{y}" r="3"/>'
    return parts


def _scale(values: np.ndarray, log: bool) -> _Scale:
    return _Scale(float(values.min()), float(values.max()), log)


@dataclass(frozen=True)
class _Scale:
    low: float
    high: float
    log: bool

    def __call__(self, x: float) -> float:
        if self.high == self.low:
            return 0.5
        if self.log:
            return math.log(x / self.low) / math.log(self.high / self.low)
        return (x - self.low) / (self.high - self.low)


def _dots(drawing: Drawing, lines: Sequence[Line]) -> str:
    """One row a name, ours filled; at most five."""
    some = sorted([x for x in lines if len(x.last)], key=lambda x: not x.own)[:5]
    medians = [float(np.median(x.last)) for x in some]
    log = drawing.value_log and min(medians, default=1.0) > 0
    place = _scale(np.array(medians), log) if medians else None
    parts = ""
    for i, (x, m) in enumerate(zip(some, medians)):
        y = HEIGHT * (i + 0.5) / len(some)
        assert place is not None
        parts += f'<path class="x" d="M0 {y:.1f}H120"/><circle class="{"d" if x.own else "q"}" '
        parts += f'cx="{6 + 106 * place(m):.1f}" cy="{y:.1f}" r="3"/>'
    return parts
