"""The scoreboard: what the kept benchmarks measured, as one table, one chart and the rows of each, for the docs."""

from __future__ import annotations

import json
import math
import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from html import escape
from pathlib import Path
from typing import Any

from steepest.bench import Row, met
from steepest.core.errors import SteepestWarning
from steepest.display import number
from steepest.report.text import memory as memory_text
from steepest.studies import registry

__all__ = ["Result", "chart", "page", "read_results"]

LIMIT = re.compile(r"\b(limit|bound|bandwidth|roofline|floor|alone)\b", re.I)
MEMORY = {"B": 1, "kB": 1e3, "KiB": 2**10, "MB": 1e6, "MiB": 2**20, "GB": 1e9, "GiB": 2**30}
LOW, HIGH = 1 / 64, 512.0  # the chart's axis: how many times as good as the peer
HEAD = """\
# Scoreboard

What `steepest bench` measured: ours and the peer's in turns on one machine, medians over the turns. A ratio is ours
divided by the peer's. A *limit* is what nobody can do without: a gradient alone, the products alone, reading the data;
it counts as no peer. `steepest bench KEY` measures it on yours; with `--keep` it is kept, and a later ratio that is
over 20 % worse on the same processor makes the command fail. `steepest scoreboard` writes this page.

"""
LEFT, WIDTH, ROW, TOP, FOOT = 220, 560, 20, 10, 42


@dataclass(frozen=True)
class Result:
    """One benchmark's rows, and where and when they were measured."""

    name: str
    date: datetime
    environment: Mapping[str, Any]
    rows: Sequence[Row]

    @property
    def title(self) -> str:
        """The method's name, or that of the floor."""
        key = self.name.replace("_", "-")
        return registry.METHODS[key].name if key in registry.METHODS else self.name.replace("_", " ").capitalize()

    @property
    def machine(self) -> str:
        """Where it was measured."""
        e = self.environment
        parts = [
            f"{e['processor']}",
            f"{e['cores']} cores",
            f"Python {e['python']}",
            f"torch {e['libraries']['torch']}",
        ]
        return ", ".join(parts + ([e["accelerator"]] if e["accelerator"] != "none" else []))


def read_results(*folders: Path) -> list[Result]:
    """Read the newest result of every benchmark in `folders`, in the order of the registry, floors last.

    A file that cannot be read is skipped with a warning that names it.
    """
    newest: dict[str, Result] = {}
    for path in sorted(p for folder in folders for p in folder.glob("*.json")):
        try:
            raw = json.loads(path.read_text("utf-8"))
            found = Result(raw["name"], datetime.fromisoformat(raw["date"]), raw["environment"], raw["rows"])
            _ = found.machine, [met(row) for row in found.rows]
        except (OSError, ValueError, KeyError, TypeError) as error:
            warnings.warn(f"skipped {path}: {type(error).__name__}: {error}", SteepestWarning, stacklevel=2)
            continue
        if found.name not in newest or found.date > newest[found.name].date:
            newest[found.name] = found
    order = {key.replace("-", "_"): i for i, key in enumerate(registry.METHODS)}
    return sorted(newest.values(), key=lambda r: (order.get(r.name, len(order)), r.name))


def factor(row: Row) -> float | None:
    """How many times as good as the peer: above 1 ours is ahead; None for a row without a peer."""
    if row["ratio"] is None or not row["ratio"] > 0 or not math.isfinite(row["ratio"]):
        return None
    return float(1 / row["ratio"] if row["better"] == "lower" else row["ratio"])


def _is_limit(row: Row) -> bool:
    return row["peer"] is not None and LIMIT.search(row["peer"]) is not None


def page(results: Sequence[Result], picture: str) -> str:
    """Write the scoreboard as Markdown; `picture` is the chart's file as seen from it."""
    lines = [
        *HEAD.splitlines(),
        f"![How many times as good as each peer, benchmark by benchmark]({picture})",
        "",
        "| method | ahead, level, behind | least favourable row | to the limit | growth exponents | memory | bounds |",
        "|---|---|---|---|---|---|---|",
        *(_summary(r) for r in results),
        "",
    ]
    machines = list(dict.fromkeys(r.machine for r in results))
    lines += ["Measured on " + "; ".join(f"({i}) {m}" for i, m in enumerate(machines, 1)) + ".", ""]
    for r in results:
        lines += [f"## {r.title}", "", f"{r.date:%Y-%m-%d}, machine {machines.index(r.machine) + 1}.", ""]
        lines += ["| what | ours | peer | ours / peer | bound | |", "|---|---|---|---|---|---|"]
        lines += [_line(row) for row in r.rows] + [""]
    return "\n".join(lines)


def _summary(result: Result) -> str:
    rows = result.rows
    beside = [(f, row) for row in rows if (f := factor(row)) is not None and not _is_limit(row)]
    ahead, behind = (sum(_side(row) == side for _, row in beside) for side in (1, -1))
    near = min(beside, key=lambda pair: pair[0], default=None)
    limits = [row["ratio"] for row in rows if _is_limit(row)]
    exponents = [number(row["ours"]) for row in rows if row["unit"] == "exponent"]
    memory = [row["ours"] * MEMORY[row["unit"]] for row in rows if row["unit"] in MEMORY]
    judged = [m for row in rows if (m := met(row)) is not None]
    cells = [
        result.title,
        f"{ahead}, {len(beside) - ahead - behind}, {behind}" if beside else "no peer",
        _standing(*near) if near else "",
        " to ".join(dict.fromkeys(number(end) for end in (min(limits), max(limits)))) if limits else "",
        ", ".join(exponents),
        memory_text(max(memory)) if memory else "",
        f"{sum(judged)} of {len(judged)} met" if judged else "",
    ]
    return "| " + " | ".join(cell.replace("|", "/") for cell in cells) + " |"


def _standing(times: float, row: Row) -> str:
    side = _side(row)
    far = f"{number(max(times, 1 / times))}× {'ahead of' if side > 0 else 'behind'}"
    return f"{far if side else 'level with'} {row['peer']} ({row['name']})"


def _side(row: Row) -> int:
    """1 where ours is ahead of the peer, -1 where it is behind, 0 where the interval holds 1."""
    low, high = row["interval"] or (row["ratio"], row["ratio"])
    if low <= 1 <= high:
        return 0
    return 1 if (high < 1) == (row["better"] == "lower") else -1


def _line(row: Row) -> str:
    ratio = "" if row["ratio"] is None else number(row["ratio"])
    if row["interval"] is not None:
        ratio += f" ({number(row['interval'][0])} to {number(row['interval'][1])})"
    mark = {True: "met", False: "not met", None: ""}[met(row)]
    cells = [f"{row['name']}: {row['what']}", f"{number(row['ours'])} {row['unit']}", row["peer"] or "", ratio.strip(),
             row["bound"] or "", mark]  # fmt: skip
    return "| " + " | ".join(cell.replace("|", "/") for cell in cells) + " |"


def chart(results: Sequence[Result]) -> str:
    """Draw how many times as good as each peer ours is: a row for each benchmark, a dot for each comparison."""
    shown = [(r, [row for row in r.rows if factor(row) is not None and not _is_limit(row)]) for r in results]
    shown = [(r, rows) for r, rows in shown if rows]
    height = TOP + ROW * len(shown) + FOOT
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {LEFT + WIDTH + 20} {height}" role="img" '
        'aria-label="Dots to the right of 1: ours is that many times as good as the peer; to the left, the peer is."',
        ' font-family="Inter, system-ui, sans-serif" font-size="12">',
        "<style>text{fill:#3c4654}.g{stroke:#8894a3;stroke-opacity:.35}.one{stroke:#3c4654}.a{fill:#0b6e5f}.b{fill:none;"
        "stroke:#c2410c;stroke-width:1.6}.l{fill:none;stroke:#6b7683;stroke-width:1.6}"
        "@media(prefers-color-scheme:dark){text{fill:#c9d1da}.one{stroke:#c9d1da}.a{fill:#4fd1b5}.b{stroke:#fb923c}}</style>",
    ]
    bottom = TOP + ROW * len(shown)
    for power in range(-6, 10, 3):
        x = _at(2.0**power)
        label = f"{2**power}×" if power >= 0 else f"1/{2**-power}×"
        parts.append(f'<path class="{"one" if power == 0 else "g"}" d="M{x:.1f} {TOP}V{bottom}"/>')
        parts.append(f'<text x="{x:.1f}" y="{bottom + 16}" text-anchor="middle">{label}</text>')
    parts.append(
        f'<text x="{LEFT + WIDTH / 2}" y="{bottom + 34}" text-anchor="middle">times as good as the peer</text>'
    )
    for i, (r, rows) in enumerate(shown):
        y = TOP + ROW * i + ROW / 2
        parts.append(f'<text x="{LEFT - 12}" y="{y + 4}" text-anchor="end">{escape(r.title)}</text>')
        for row in rows:
            kind = {1: "a", -1: "b", 0: "l"}[_side(row)]
            what = escape(f"{row['name']}, beside {row['peer']}: ratio {number(row['ratio'])}")
            x = _at(factor(row) or 1.0)
            parts.append(
                f'<circle class="{kind}" cx="{x:.1f}" cy="{y}" r="4" fill-opacity=".75"><title>{what}</title></circle>'
            )
    return "\n".join([*parts, "</svg>", ""])


def _at(value: float) -> float:
    """Place on the chart's axis; what lies outside is drawn at its end."""
    share = math.log(min(max(value, LOW), HIGH) / LOW) / math.log(HIGH / LOW)
    return LEFT + WIDTH * share
