"""How the report writes numbers, ratios, times and dates: one place, so that every page and figure agrees."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from steepest.core.records import Against
from steepest.studies.claim import Bound

__all__ = [
    "Ratio",
    "bound",
    "count",
    "date",
    "day",
    "duration",
    "memory",
    "number",
    "power",
    "ratio",
    "span",
    "with_unit",
]

THIN = "\u202f"  # a thin space that never breaks a line
MINUS = "\u2212"
MONTHS = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"]
SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def number(value: float) -> str:
    """Write a measured number: whole ones as they are, others with two or three significant digits.

    Examples
    --------
    >>> number(2.07), number(0.8), number(3.1e-4), number(1e-12), number(12)
    ('2.07', '0.80', '3.1e-4', '1e-12', '12')
    """
    if math.isnan(value):
        return "not a number"
    if math.isinf(value):
        return "∞" if value > 0 else MINUS + "∞"
    size = abs(float(value))
    if size and (size < 1e-3 or size >= 1e5):
        digits, exponent = f"{size:.1e}".split("e")
        text = f"{digits.removesuffix('.0')}e{int(exponent)}"
    else:
        rounded = float(f"{size:.3g}")
        if size.is_integer() or rounded >= 100:
            text = _thousands(round(size))
        else:
            text = f"{rounded:.{2 - math.floor(math.log10(rounded))}f}"
            text = text.removesuffix("0").removesuffix(".")
    return MINUS + text if value < 0 else text


def _thousands(value: int) -> str:
    return f"{value:,}".replace(",", THIN)


def count(n: int, one: str, many: str | None = None) -> str:
    """Count things in words.

    Examples
    --------
    >>> count(1, "seed"), count(3, "seed")
    ('1 seed', '3 seeds')
    """
    return f"{_thousands(n)} {one if n == 1 else many or one + 's'}"


def _decimals(value: float, decimals: int) -> str:
    if not math.isfinite(value):
        return number(value)
    if abs(value) >= 1e5:
        return number(value)
    text = f"{abs(value):.{decimals}f}"
    if abs(value) >= 999.5 and not decimals:
        text = _thousands(round(abs(value)))
    return MINUS + text if value < 0 and float(text.replace(THIN, "")) != 0 else text


def span(interval: Sequence[float], like: str) -> str:
    """Write an interval with the decimals of the median `like`, as "a to b".

    Examples
    --------
    >>> span((2.021, 2.129), "2.07"), span((7, 9.2), "8"), span((2.6e-4, 3.9e-4), "3.1e-4")
    ('2.02 to 2.13', '7 to 9', '2.6e-4 to 3.9e-4')
    """
    if "e" in like:
        return " to ".join(map(number, interval))
    decimals = len(like.partition(".")[2])
    widest = max(map(abs, interval))
    if math.isfinite(widest) and widest >= 10 * abs(float(like.replace(MINUS, "-").replace(THIN, "") or 0)) > 0:
        decimals = min(decimals, max(0, 2 - math.floor(math.log10(widest))))  # wider than the median is large
    ends = [_decimals(x, decimals) for x in interval]
    if any(e.strip("0.") == "" and x != 0 for e, x in zip(ends, interval)) or (ends[0] == ends[1] and decimals == 0):
        ends = list(map(number, interval))
    return " to ".join(ends)


def with_unit(text: str, unit: str) -> str:
    """Set the unit after a space; a factor takes its sign directly.

    Examples
    --------
    >>> with_unit("22", "x"), with_unit("7", "x faster"), with_unit("8", "steps"), with_unit("0.5", "")
    ('22×', '7× faster', '8 steps', '0.5')
    """
    if unit.split(" ")[0] in ("x", "×"):
        return text + "×" + unit[1:]
    return f"{text} {unit}" if unit else text


def bound(text: str, unit: str = "") -> str:
    """Write a claim's bound.

    Examples
    --------
    >>> bound("<= 15", "steps"), bound(">= 1.8", "x"), bound("between(-2.3, -1.7)"), bound("reported")
    ('≤ 15 steps', '≥ 1.8×', '−2.3 to −1.7', 'none, reported')
    """
    b = Bound.parse(text)
    if b.op == "reported":
        return "none, reported"
    plain = [f"{x:g}" if 1e-3 <= abs(x) < 1e5 or not x else number(x) for x in (b.low, b.high)]
    low, high = (p.replace("-", MINUS) if p.startswith("-") else p for p in plain)
    if b.op == "between":
        return with_unit(f"{low} to {high}", unit)
    sign = {"<=": "≤", ">=": "≥", "==": "="}.get(b.op, b.op)
    return with_unit(f"{sign} {low}", unit)


def _ratio_decimals(value: float) -> int:
    if round(value, 2) < 2:
        return 2
    return 1 if round(value, 1) < 10 else 0


@dataclass(frozen=True)
class Ratio:
    """A ratio to the best peer in words.

    Attributes
    ----------
    state : "wins", "ties", "loses" or "none"
        ``ties``: the interval contains 1; ``none``: there is no finite ratio.
    strong, rest : str
        The sentence: what is emphasised, and "than ..." after it.
    interval : str
        Of the ratio as it is written; empty when there is none.
    factor, low, high : float
        As measured: above 1 the method is ahead.
    """

    state: str
    strong: str
    rest: str
    interval: str
    factor: float
    low: float
    high: float

    @property
    def sentence(self) -> str:
        """The whole sentence."""
        return f"{self.strong} {self.rest}"


def ratio(against: Against) -> Ratio:
    """Write the ratio to the best peer as a sentence with a direction.

    Examples
    --------
    >>> ratio(Against(peer="AdamW", factor=0.74, ahead="fewer steps", behind="more steps")).sentence
    '1.35× more steps than AdamW'
    """
    f = against.factor
    low, high = against.interval or (math.nan, math.nan)
    if not math.isfinite(f) or f <= 0:
        return Ratio("none", "no finite ratio", f"to {against.peer}", "", math.nan, math.nan, math.nan)
    if low <= 1 <= high:
        decimals = _ratio_decimals(f)
        spread = " to ".join(_decimals(x, decimals) for x in (low, high))
        text = f"{_decimals(f, decimals)}× ({spread})"
        return Ratio("ties", "no clear difference", f"from {against.peer}", text, f, low, high)
    ahead = f >= 1
    value, ends = (f, (low, high)) if ahead else (1 / f, (_inverse(high), _inverse(low)))
    decimals = _ratio_decimals(value)
    spread = " to ".join(_decimals(x, decimals) for x in ends) if against.interval else ""
    strong = f"{_decimals(value, decimals)}× {against.ahead if ahead else against.behind}"
    return Ratio("wins" if ahead else "loses", strong, f"than {against.peer}", spread, f, low, high)


def _inverse(x: float) -> float:
    return math.inf if x == 0 else 1 / x


def duration(seconds: float) -> str:
    """Write a time as people say it.

    Examples
    --------
    >>> duration(761), duration(38.2), duration(0.8), duration(7500), duration(0.0021)
    ('12 min 41 s', '38 s', '0.80 s', '2 h 5 min', '2.1 ms')
    """
    if seconds < 0.1:
        return f"{number(float(f'{seconds * 1e3:.2g}'))} ms"
    if seconds < 9.95:
        return f"{seconds:.2f} s" if seconds < 1 else f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def day(moment: datetime) -> str:
    """Write a date (UTC).

    Examples
    --------
    >>> day(datetime(2026, 11, 24, 14, 2, tzinfo=UTC))
    '24 Nov 2026'
    """
    m = moment.astimezone(UTC)
    return f"{m.day} {MONTHS[m.month - 1]} {m.year}"


def date(moment: datetime) -> str:
    """Write a date with the time of day (UTC).

    Examples
    --------
    >>> date(datetime(2026, 11, 24, 14, 2, tzinfo=UTC))
    '24 Nov 2026, 14:02'
    """
    return f"{day(moment)}, {moment.astimezone(UTC):%H:%M}"


def memory(n_bytes: float) -> str:
    """Write an amount of memory.

    Examples
    --------
    >>> memory(412 * 2**20), memory(2.5 * 2**30)
    ('412 MiB', '2.5 GiB')
    """
    return f"{n_bytes / 2**30:.1f} GiB" if n_bytes >= 2**30 else f"{n_bytes / 2**20:.0f} MiB"


def power(value: float) -> str:
    """Write a tick of a logarithmic axis.

    Examples
    --------
    >>> power(1e-12), power(0.005), power(1e5), power(5000)
    ('10⁻¹²', '0.005', '10⁵', '5\u202f000')
    """
    if 0.001 <= value < 1e5 or value <= 0:
        return re.sub(r"^-", MINUS, f"{value:g}") if abs(value) < 1000 else number(value)
    exponent = math.floor(math.log10(value) + 1e-9)
    digits = value / 10.0**exponent
    head = "" if abs(digits - 1) < 1e-6 else f"{digits:.3g}·"
    return head + "10" + str(exponent).translate(SUPERSCRIPTS)
