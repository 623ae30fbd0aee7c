"""Runs of one method side by side: what each claim measured across machines, scales and versions of the code."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from steepest.core.records import ClaimResult, Environment, RunRecord
from steepest.report import text
from steepest.studies.claim import Verdict

__all__ = ["COLUMNS", "machine", "side_by_side"]

COLUMNS = 6
MARKS = {
    Verdict.HOLDS: ("holds", "holds"),
    Verdict.SHORT: ("short", "falls short"),
    Verdict.UNDECIDED: ("undecided", "undecided"),
    Verdict.REPORTED: ("reported", "reported"),
}


def machine(env: Environment) -> str:
    """Name a machine by what sets its speed."""
    extra = "" if env.accelerator == "none" else f", {env.accelerator}"
    return f"{text.count(env.cores, 'core')}, {env.processor}{extra}"


def side_by_side(runs: Sequence[RunRecord]) -> dict[str, Any] | None:
    """Lay the newest run of every machine, scale and version of the code side by side; None where there is only one.

    Parameters
    ----------
    runs : sequence of RunRecord
        Of one method, oldest first.

    Returns
    -------
    dict or None
        ``columns`` (newest first, at most `COLUMNS`), ``rows`` (a claim each that two of them measured, with a cell a
        column), ``left`` (runs
        of other machines, scales or versions that had no room).
    """
    newest: dict[tuple[str, str, str], RunRecord] = {}
    for r in runs:
        if r.status == "ok" and r.scale != "tiny":
            newest[machine(r.environment), r.scale, r.code] = r
    chosen = sorted(newest.values(), key=lambda r: r.started, reverse=True)
    if len(chosen) < 2:
        return None
    shown = chosen[:COLUMNS]
    seen = Counter(c.id for r in shown for c in r.claims if c.value is not None)
    claims = {c.id: c.says for r in reversed(shown) for c in r.claims if seen[c.id] > 1}
    rows = [{"says": says, "cells": [_cell(r, claim) for r in shown]} for claim, says in claims.items()]
    columns = [
        {
            "day": text.day(r.started),
            "scale": r.scale,
            "machine": machine(r.environment),
            "revision": r.environment.revision or r.code[:7],
            "wall": text.duration(r.wall_seconds),
            "ratio": text.ratio(r.against).strong if r.against else "none",
        }
        for r in shown
    ]
    return {"columns": columns, "rows": rows, "left": len(chosen) - len(shown)}


def _cell(run: RunRecord, claim: str) -> dict[str, str]:
    found: ClaimResult | None = next((c for c in run.claims if c.id == claim), None)
    if found is None or found.value is None:
        return {"value": "", "icon": "unmeasured", "word": "not measured" if found else "no such claim then"}
    icon, word = MARKS[Verdict(found.verdict)]
    return {"value": text.number(found.value), "icon": icon, "word": word}
