"""What a command that runs studies says of itself while it runs, so that a page can show it.

A run keeps one file, ``<store>/live/<id>.json``, written anew at most twice a second and at least every two seconds:
the time of the last state tells a reader whether the run still speaks. The file stays when the run ends, until a later
run clears it away.
"""

from __future__ import annotations

import contextlib
import os
import platform
import threading
import time
import warnings
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from steepest.core.errors import SteepestWarning
from steepest.core.records import RunRecord, Store, write_atomically
from steepest.studies.context import Event, Job

__all__ = ["Beacon", "LiveRun", "LiveStudy", "live_runs"]

SHORTEST, LONGEST = 0.5, 2.0  # seconds between two states
KEPT = 24 * 3600.0  # seconds that the last state of a run is kept, while there is no newer
CURVE, LOG = 120, 60  # points and lines kept

State = Literal["waiting", "running", "ok", "error", "skipped"]


class LiveStudy(BaseModel):
    """How far one study is: `curve` holds pairs (share done, first of the current numbers)."""

    model_config = ConfigDict(extra="forbid")

    key: str
    state: State = "waiting"
    fraction: float = 0.0
    numbers: dict[str, float | str] = Field(default_factory=dict)
    started: datetime | None = None
    ended: datetime | None = None
    measured: int = 0
    curve: list[tuple[float, float]] = Field(default_factory=list)
    run: str | None = None


class LiveRun(BaseModel):
    """One call of ``steepest run``: its studies in the order asked for, and what it printed last."""

    model_config = ConfigDict(extra="forbid")

    schema_version: Literal[1] = 1
    id: str
    pid: int
    host: str
    scale: str
    n_seeds: int
    at_once: int
    started: datetime
    updated: datetime
    ended: datetime | None = None
    how: Literal["", "finished", "interrupted"] = ""
    studies: list[LiveStudy]
    log: list[str] = Field(default_factory=list)

    @property
    def lost(self) -> bool:
        """Whether the run's process is gone although it never said that it ended."""
        if self.ended is not None or self.host != platform.node():
            return False
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return True
        except OSError:  # it is somebody else's, so it is there
            return False
        return False


class Beacon:
    """Keeps a run's live state in the store; a store that cannot be written costs the live page and nothing else.

    Parameters
    ----------
    store : Store
    jobs : sequence of Job
        All studies asked for.
    done : mapping
        Those among them that need not be run again.
    at_once : int
        Studies at a time.
    """

    def __init__(self, store: Store, jobs: Sequence[Job], done: Mapping[str, RunRecord], *, at_once: int) -> None:
        now = datetime.now(UTC)
        self._folder = store.root / "live"
        self._lock, self._rest, self._written = threading.Lock(), threading.Event(), 0.0
        self._stride: dict[str, int] = {}
        self.state = LiveRun(
            id=f"{now.strftime('%Y%m%dT%H%M%S%f')}-{os.getpid()}",
            pid=os.getpid(),
            host=platform.node(),
            scale=jobs[0].scale,
            n_seeds=len(jobs[0].seeds),
            at_once=at_once,
            started=now,
            updated=now,
            studies=[_as_it_was(done[j.key]) if j.key in done else LiveStudy(key=j.key) for j in jobs],
        )
        self._of = {s.key: s for s in self.state.studies}

    def __enter__(self) -> Beacon:
        self._forget_old()
        self._write()
        self._heart = threading.Thread(target=self._beat, name="steepest-beacon", daemon=True)
        self._heart.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        self._rest.set()
        self._heart.join()
        with self._lock:
            self.state.ended = datetime.now(UTC)
            self.state.how = "finished" if kind is None else "interrupted"
        self._write()

    def event(self, job: Job, event: Event) -> None:
        """Take note of what a study says."""
        with self._lock:
            self._note(self._of[job.key], event)
        if event["event"] in ("start", "done") or time.monotonic() - self._written > SHORTEST:
            self._write()

    def _note(self, study: LiveStudy, event: Event) -> None:
        kind, now = event["event"], datetime.now(UTC)
        if kind == "start":
            study.state, study.started, study.fraction, study.measured, study.curve = "running", now, 0.0, 0, []
            self._stride[study.key] = 1
            self._say(now, f"{study.key:24}started")
        elif kind == "progress":
            study.fraction, study.numbers = event["fraction"], dict(event["numbers"])
            self._extend(study)
        elif kind == "measured":
            study.measured += 1
        elif kind == "done":
            record: RunRecord = event["record"]
            study.state, study.ended, study.fraction, study.run = record.status, now, 1.0, record.id
            self._say(now, f"{study.key:24}{_outcome(record)}")

    def _extend(self, study: LiveStudy) -> None:
        """Add a point to the curve, every so many progresses that it never grows past its length."""
        first = next((v for v in study.numbers.values() if isinstance(v, float | int)), None)
        if first is None or (
            study.curve and study.fraction - study.curve[-1][0] < self._stride[study.key] / (2 * CURVE)
        ):
            return
        study.curve.append((study.fraction, float(first)))
        if len(study.curve) > CURVE:
            study.curve = study.curve[::2]
            self._stride[study.key] *= 2

    def _say(self, now: datetime, line: str) -> None:
        self.state.log = [*self.state.log, f"{now:%H:%M:%S} {line}"][-LOG:]

    def _beat(self) -> None:
        while not self._rest.wait(LONGEST):
            self._write()

    def _write(self) -> None:
        with self._lock:
            self._written = time.monotonic()
            self.state.updated = datetime.now(UTC)
            text = self.state.model_dump_json()
            try:
                self._folder.mkdir(parents=True, exist_ok=True)
                write_atomically(self._folder / f"{self.state.id}.json", text)
            except OSError as error:
                if not self._rest.is_set():
                    self._rest.set()
                    warnings.warn(f"no live page of this run: {error}", SteepestWarning, stacklevel=2)

    def _forget_old(self) -> None:
        """Clear away what earlier runs left, but not the state of one that still speaks."""
        for path, run in _states(self._folder):
            silent = (datetime.now(UTC) - run.updated).total_seconds()
            if run.ended is not None or run.lost or silent > KEPT:
                with contextlib.suppress(OSError):
                    path.unlink()


def _as_it_was(record: RunRecord) -> LiveStudy:
    """A study that was finished before this run began."""
    return LiveStudy(key=record.key, state=record.status, fraction=1.0, run=record.id)


def _outcome(record: RunRecord) -> str:
    if record.status != "ok":
        return f"{record.status}: {record.reason.splitlines()[0] if record.reason else 'no reason given'}"
    held = sum(c.verdict == "holds" for c in record.claims)
    return f"{held} of {sum(c.verdict in ('holds', 'falls short', 'undecided') for c in record.claims)} hold"


def _states(folder: Path) -> list[tuple[Path, LiveRun]]:
    found = []
    for path in sorted(folder.glob("*.json")):
        with contextlib.suppress(OSError, ValidationError):  # being replaced, damaged, or of another version
            found.append((path, LiveRun.model_validate_json(path.read_bytes())))
    return found


def live_runs(store: Store) -> list[LiveRun]:
    """Read the live states in the store: running ones first, then by time, newest first."""
    runs = [run for _, run in _states(store.root / "live")]
    return sorted(runs, key=lambda r: (r.ended is None and not r.lost, r.started), reverse=True)
