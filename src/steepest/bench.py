"""Side-by-side timings: finds, runs, keeps and compares the programs in ``benchmarks/`` of a checkout.

A benchmark is a file with ``bench(progress=None) -> list[dict]``; a row has ``name``, ``what`` (the quantity),
``unit``, ``ours``, and where there is a peer ``peer`` and ``ratio`` (ours / peer) with an ``interval``; ``better`` says
which direction is better and ``bound`` what the ratio (or, without a peer, our number) should meet. `progress` is told
the share that is done.
"""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from steepest.core.errors import value_error
from steepest.core.records import write_atomically
from steepest.studies.claim import Bound
from steepest.studies.provenance import environment

if TYPE_CHECKING:
    from rich.table import Table

__all__ = ["available", "compare", "keep", "run", "store", "table"]

Row = dict[str, Any]
FIELDS = {"name", "what", "unit", "ours", "peer", "ratio", "interval", "bound", "better"}
TOLERANCE = 1.20


def available(folder: Path) -> list[str]:
    """Name the benchmarks of a checkout."""
    return sorted(p.stem for p in folder.glob("[a-z]*.py"))


def run(folder: Path, name: str, progress: Callable[[float], None] | None = None) -> list[Row]:
    """Run one benchmark and check the form of its rows."""
    spec = importlib.util.spec_from_file_location(f"benchmarks.{name}", folder / f"{name}.py")
    if spec is None or spec.loader is None:
        raise value_error("name", f"a file of {folder}", name)
    module = importlib.util.module_from_spec(spec)
    sys.path.append(str(folder.resolve()))  # a benchmark may import its neighbours; last, since peers bear such names
    try:
        spec.loader.exec_module(module)
        rows: list[Row] = module.bench(progress)
    finally:
        sys.path.remove(str(folder.resolve()))
    for row in rows:
        named = row.get("peer") is None or isinstance(row["peer"], str)
        if set(row) != FIELDS or not named or row["better"] not in ("lower", "higher"):
            raise value_error("row", f"a mapping of {', '.join(sorted(FIELDS))}", row)
    return rows


def _number(row: Row) -> float:
    return float(row["ours"] if row["ratio"] is None else row["ratio"])


def met(row: Row) -> bool | None:
    """Whether a row meets its bound; None when it has none."""
    return None if not row["bound"] else Bound.parse(row["bound"]).holds(_number(row))


def store(folder: Path, name: str, rows: Sequence[Row]) -> Path:
    """Keep the numbers of a run with machine and date."""
    now = datetime.now(UTC)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}-{now.strftime('%Y%m%dT%H%M%S%f')}.json"
    text = json.dumps(
        {"name": name, "date": now.isoformat(), "environment": environment().model_dump(), "rows": list(rows)}, indent=1
    )
    write_atomically(path, text + "\n")
    return path


def keep(folder: Path, name: str, rows: Sequence[Row], stored: Path) -> None:
    """Make the ratios of this run the baseline for this processor, and keep its file for the scoreboard."""
    (folder / "results").mkdir(exist_ok=True)
    write_atomically(folder / "results" / f"{name}.json", stored.read_text("utf-8"))
    place = folder / "baselines" / f"{name}.json"
    place.parent.mkdir(exist_ok=True)
    known = json.loads(place.read_text()) if place.exists() else {}
    here = environment()
    known[here.processor] = {
        "date": datetime.now(UTC).date().isoformat(),
        "threads": here.threads,
        "libraries": here.libraries,
        "rows": {_label(r): _number(r) for r in rows if r["ratio"] is not None},
    }
    write_atomically(place, json.dumps(known, indent=1, sort_keys=True) + "\n")


def compare(folder: Path, name: str, rows: Sequence[Row]) -> list[str]:
    """Say which ratios are over 20 % worse than the kept baseline of this processor and thread count.

    A ratio whose interval reaches the kept one is no slowdown but noise.
    """
    place = folder / "baselines" / f"{name}.json"
    kept = json.loads(place.read_text()).get(environment().processor) if place.exists() else None
    if kept is None or kept["threads"] != environment().threads:
        return []
    found = []
    for row in rows:
        old = kept["rows"].get(_label(row))
        if old is None or row["ratio"] is None:
            continue
        low, high = row["interval"] or (row["ratio"], row["ratio"])
        worse, least = (row["ratio"] / old, low / old) if row["better"] == "lower" else (old / row["ratio"], old / high)
        if worse > TOLERANCE and least > 1:
            found.append(f"{_label(row)}: ratio {row['ratio']:.3g}, kept {old:.3g} ({kept['date']})")
    return found


def _label(row: Row) -> str:
    return f"{row['name']} | {row['peer']}"


def table(rows: Sequence[Row]) -> Table:
    """Lay the rows out for the terminal."""
    from rich.table import Table

    from steepest.display import number

    out = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("what", "ours", "peer", "ours / peer", "bound", ""):
        out.add_column(column, overflow="fold")
    for row in rows:
        ratio = "" if row["ratio"] is None else f"{row['ratio']:.2f}"
        if row["interval"] is not None:
            ratio += f" [dim]({row['interval'][0]:.2f} to {row['interval'][1]:.2f})[/]"
        mark = {True: "[cyan]■ met[/]", False: "[orange3]◩ not met[/]", None: ""}[met(row)]
        ours = f"{number(row['ours'])} {row['unit']}"
        out.add_row(f"{row['name']}: {row['what']}", ours, row["peer"] or "", ratio, row["bound"] or "", mark)
    return out
