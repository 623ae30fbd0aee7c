"""The verdicts of a method's claims as a table for its page: of each claim what the widest scale last measured."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence

from steepest.core.records import RunRecord
from steepest.report import text
from steepest.studies.claim import SCALES, Claim, Verdict, judge

__all__ = ["newest", "splice", "table"]

HEAD, OPEN, CLOSE = "## The claims and their verdicts", "<!-- verdicts -->", "<!-- end of verdicts -->"
BEFORE = "## When not to use it"
WORDS = {Verdict.HOLDS: "hold", Verdict.SHORT: "fall short", Verdict.UNDECIDED: "undecided"}


def newest(runs: Iterable[RunRecord], key: str) -> list[RunRecord]:
    """Pick the newest finished run of each scale, the widest scale first; trials of steps or options do not count."""
    found = {r.scale: r for r in sorted(runs, key=lambda r: r.started)
             if r.key == key and r.status == "ok" and r.max_steps is None and r.scale != "tiny"}  # fmt: skip
    return sorted(found.values(), key=lambda r: -SCALES.index(r.scale))


def table(claims: Sequence[Claim], runs: Sequence[RunRecord]) -> str:
    """Write the table of the claims as they stand now, with values of `runs`, the widest scale first.

    A claim that has other words or another bound than in a run was not measured by it.
    """
    lines, verdicts = [], Counter[Verdict]()
    for claim in claims:
        measured, verdict, scale = "", Verdict.UNMEASURED, ""
        for run in runs:
            kept = next((c for c in run.claims if c.id == claim.id and c.bound == claim.bound), None)
            if kept is not None and kept.value is not None and kept.says == claim.says:
                verdict, scale = judge(claim, kept.value, kept.interval, run.scale), run.scale
                number = text.number(kept.value)
                measured = text.with_unit(number, claim.unit)
                if kept.interval is not None:
                    measured += f" ({text.span(kept.interval, number)})"
                break
        verdicts[verdict] += 1
        cells = [_plain(cell) for cell in (claim.says, claim.paper, text.bound(claim.bound), measured)]
        word = f"**{verdict}**" if verdict in (Verdict.SHORT, Verdict.UNDECIDED) else str(verdict)
        lines.append("| " + " | ".join([*cells, word, scale]) + " |")
    head = [
        f"Measured {'; '.join(map(_run, runs))}. `steepest run {runs[0].key}` measures them on your machine.",
        "",
        "; ".join(f"{verdicts[v]} {word}" for v, word in WORDS.items() if verdicts[v]) + ".",
        "",
        "| claim | paper | bound | measured | verdict | scale |",
        "|---|---|---|---|---|---|",
    ]
    return "\n".join(head + lines)


def _run(run: RunRecord) -> str:
    here = run.environment
    where = f"{here.processor}, {here.cores} cores, torch {here.libraries['torch']}"
    return f"at scale `{run.scale}` on {run.started:%Y-%m-%d} in {text.duration(run.wall_seconds)} ({_plain(where)})"


def _plain(cell: str) -> str:
    """Escape what Markdown would read as marks."""
    return re.sub(r"([\\`*_{}\[\]<>$|])", r"\\\1", cell.replace("\n", " "))


def splice(page: str, found: str) -> str:
    """Put the table into a method's page: in the place of the last one, or before it says when not to use it."""
    if OPEN not in page:
        section = f"{HEAD}\n\n{OPEN}\n{CLOSE}\n\n"
        place = page.find(BEFORE)
        page = page[:place] + section + page[place:] if place >= 0 else f"{page.rstrip()}\n\n{section}"
    start, rest = page.split(OPEN, 1)
    return f"{start}{OPEN}\n\n{found}\n\n{CLOSE}{rest.split(CLOSE, 1)[1]}"
