"""What the live page shows: the state that runs keep of themselves, beside what the store knows of their results."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

import numpy as np

from steepest.core.records import RunRecord, Store
from steepest.report import sketch, text, theme
from steepest.report.pages import trouble
from steepest.studies.live import LiveRun, LiveStudy, live_runs

__all__ = ["live_view"]

View = dict[str, Any]
SILENT = 10.0  # seconds without a word after which a run counts as lost
SMALL_WIDTH, SMALL_HEIGHT = 300.0, 64.0


def live_view(store: Store, runs: Sequence[RunRecord], *, now: datetime | None = None) -> View:
    """Put the newest run of the store into words; `runs` are the finished studies, oldest first."""
    now = now or datetime.now(UTC)
    states = live_runs(store)
    if not states:
        last = runs[-1] if runs else None
        return {"state": "idle", "others": 0, "last": text.date(last.started) if last else ""}
    run, records = states[0], {r.id: r for r in runs}
    silent = (now - run.updated).total_seconds()
    view = {
        "id": run.id,
        "state": _state(run, silent),
        "others": sum(r.ended is None and not r.lost for r in states[1:]),
        "silent": text.duration(silent),
        "seen": f"{run.updated:%H:%M:%S}",
        "provenance": [
            f"{run.scale} scale",
            text.count(run.n_seeds, "seed"),
            f"{run.at_once} at a time",
            f"started {run.started:%H:%M:%S} UTC",
        ],
        "elapsed": text.duration(((run.ended or now) - run.started).total_seconds()),
        "left": _left(run, runs, now),
        "studies": [_study(s, records.get(s.run or ""), now) for s in run.studies],
        "log": run.log,
    }
    finished = [records[s.run] for s in run.studies if s.run in records]
    total = sum((sketch.tally(r.claims) for r in finished if r.status == "ok"), sketch.Tally())
    view["claims"] = [total.holds, total.judged]
    view["memory"] = text.memory(max(r.peak_memory_bytes for r in finished)) if finished else ""
    return view


def _state(run: LiveRun, silent: float) -> str:
    if run.ended is not None:
        return run.how
    return "killed" if run.lost else "silent" if silent > SILENT else "running"


def _study(study: LiveStudy, record: RunRecord | None, now: datetime) -> View:
    view: View = {"key": study.key, "slot": theme.slot_of_method(study.key), "state": study.state}
    if study.state == "running":
        view |= {
            "fraction": round(study.fraction, 3),
            "elapsed": text.duration((now - study.started).total_seconds()) if study.started else "",
            "numbers": [(k, v if isinstance(v, str) else text.number(v)) for k, v in list(study.numbers.items())[:3]],
            "measured": study.measured,
            "curve": _curve(study.curve),
        }
    if study.ended is not None:
        view["order"] = study.ended.timestamp()
    if record is not None:
        count = sketch.tally(record.claims)
        ratio = text.ratio(record.against) if record.against else None
        view |= {
            "wall": text.duration(record.wall_seconds),
            "meter": asdict(count.meter),
            "head": f"{count.head} hold" if count.judged else count.head,
            "ratio": ratio.strong if ratio else "",
            "trouble": trouble(record),
        }
    return view


def _curve(points: Sequence[tuple[float, float]]) -> str:
    """The first number against the share done, as a path in a box of 300 x 64; logarithmic where it spans much."""
    if len(points) < 2:
        return ""
    x, y = np.array(points, dtype=float).T
    seen = np.isfinite(y)
    if seen.sum() < 2:
        return ""
    x, y = x[seen], y[seen]
    if y.min() > 0 and y.max() > 20 * y.min():
        y = np.log(y)
    y = 6 + (SMALL_HEIGHT - 12) * (1 - (y - y.min()) / max(float(np.ptp(y)), 1e-300))
    return "M" + "L".join(f"{SMALL_WIDTH * a:.1f} {b:.1f}" for a, b in zip(x, y, strict=True))


def _left(run: LiveRun, runs: Sequence[RunRecord], now: datetime) -> str:
    """About how long the run still takes, by what each study took before at this scale."""
    if run.ended is not None:
        return ""
    took: Mapping[str, float] = {r.key: r.wall_seconds for r in runs if r.scale == run.scale and r.status == "ok"}
    typical = float(np.median(list(took.values()))) if took else None
    seconds = 0.0
    for s in run.studies:
        whole = took.get(s.key, typical)
        if s.state == "running" and s.started is not None and s.fraction > 0.05:
            so_far = (now - s.started).total_seconds()
            seconds += so_far * (1 / s.fraction - 1)
        elif s.state in ("running", "waiting"):
            if whole is None:
                return "not known yet"
            seconds += whole
    return text.duration(5 * round(seconds / run.at_once / 5))
