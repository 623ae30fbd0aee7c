"""Tells experiment trackers that people already use what studies measure: MLflow or TensorBoard.

The numbers of a study's progress go there while it runs; its claims, series and result when it is done. A tracker that
fails costs the tracking and nothing else.
"""

from __future__ import annotations

import math
import os
import re
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any, Protocol

import numpy as np

from steepest.core.errors import SteepestWarning
from steepest.core.extras import require
from steepest.core.records import RunRecord, Series, Store
from steepest.studies.context import Event, Job

__all__ = ["TRACKERS", "Tracking"]

POINTS = 1000  # of one series, spread evenly
EXPERIMENT = "steepest"


class Tracker(Protocol):
    """One run at a tracker."""

    def number(self, name: str, value: float, step: int) -> None:
        """Add a value to a curve."""

    def finish(self, record: RunRecord, curves: Mapping[str, Sequence[tuple[int, float]]], result: str) -> None:
        """Hand over what the study measured, and end the run; `result` is the path of its result file."""


class Tracking:
    """Hears the events of studies and passes them on to a tracker.

    Parameters
    ----------
    tool : "mlflow" or "tensorboard"
        MLflow writes to ``MLFLOW_TRACKING_URI`` where that is set, else to ``<store>/mlflow``; TensorBoard to
        ``<store>/tensorboard``.
    store : Store

    Raises
    ------
    MissingExtra
        The tool is not installed.
    """

    def __init__(self, tool: str, store: Store) -> None:
        self._begin, self._store = TRACKERS[tool](store), store
        self._runs: dict[str, Tracker] = {}
        self._steps: dict[str, int] = {}
        self._failed = False

    def __enter__(self) -> Tracking:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._begin.close()

    def event(self, job: Job, event: Event) -> None:
        """Pass an event on."""
        if self._failed:
            return
        try:
            self._note(job, event)
        except Exception as error:
            self._failed = True
            text = f"tracking stopped, the studies go on: {type(error).__name__}: {error}"
            warnings.warn(text, SteepestWarning, stacklevel=2)

    def _note(self, job: Job, event: Event) -> None:
        kind = event["event"]
        if kind == "start":
            self._runs[job.key], self._steps[job.key] = self._begin(job), 0
        elif kind == "progress":
            self._steps[job.key] += 1
            shown = {"done": event["fraction"], **event["numbers"]}
            for name, value in shown.items():
                if isinstance(value, float | int) and math.isfinite(value):
                    self._runs[job.key].number(f"progress/{name}", float(value), self._steps[job.key])
        elif kind == "done":
            record: RunRecord = event["record"]
            run = self._runs.pop(job.key) if job.key in self._runs else self._begin(job)
            with warnings.catch_warnings():  # a run that could not be stored has no series
                warnings.simplefilter("ignore", SteepestWarning)
                curves = dict(_curves(self._store.series(record.id)))
            run.finish(record, curves, str(self._store.root / record.id / "result.json"))


def _curves(series: Sequence[Series]) -> Iterator[tuple[str, list[tuple[int, float]]]]:
    """Name every series, and give its finite points at whole steps."""
    for s in series:
        name = "/".join(str(part) for part in (s.name, s.method, s.seed is not None and f"seed {s.seed}") if part)
        points = [(round(x), y) for x, y in zip(s.steps, s.values, strict=True) if y is not None]
        chosen = np.unique(np.linspace(0, len(points) - 1, POINTS).round().astype(int)) if points else ()
        yield name, [points[i] for i in chosen]


def _measured(record: RunRecord) -> dict[str, float]:
    """The claims' numbers, and how many hold."""
    found = {f"claim/{c.id}": c.value for c in record.claims if c.value is not None and math.isfinite(c.value)}
    judged = [c for c in record.claims if c.verdict in ("holds", "falls short", "undecided")]
    held = float(sum(c.verdict == "holds" for c in judged))
    return {**found, "claims held": held, "claims judged": float(len(judged)), "wall seconds": record.wall_seconds}


def _parameters(job: Job) -> dict[str, str]:
    seeds = f"{job.seeds[0]} to {job.seeds[-1]}"
    return {"key": job.key, "scale": job.scale, "seed": str(job.seed), "seeds": seeds, **job.options}


# -------------------------------------------------------------------------------------------------------- the trackers


class _Mlflow:
    """Begins runs of one MLflow experiment; the client's own state is not touched."""

    def __init__(self, store: Store) -> None:
        mlflow = require("mlflow", "track", what="--track mlflow")
        place = None
        if not os.environ.get("MLFLOW_TRACKING_URI"):
            folder = (store.root / "mlflow").resolve()
            folder.mkdir(parents=True, exist_ok=True)
            place = f"sqlite:///{folder / 'mlflow.db'}"
        self.client, self.entities = mlflow.MlflowClient(tracking_uri=place), mlflow.entities
        known = self.client.get_experiment_by_name(EXPERIMENT)
        artifacts = None if place is None else (store.root / "mlflow" / "artifacts").resolve().as_uri()
        self.experiment = known.experiment_id if known else self.client.create_experiment(EXPERIMENT, artifacts)

    def __call__(self, job: Job) -> Tracker:
        run = self.client.create_run(self.experiment, run_name=f"{job.key} {job.scale}")
        parameters = [self.entities.Param(_plain(k), v) for k, v in _parameters(job).items()]
        self.client.log_batch(run.info.run_id, params=parameters)
        return _MlflowRun(self, run.info.run_id)

    def close(self) -> None:
        """Nothing is held open."""


class _MlflowRun:
    def __init__(self, to: _Mlflow, run: str) -> None:
        self.to, self.run = to, run

    def number(self, name: str, value: float, step: int) -> None:
        self.to.client.log_metric(self.run, _plain(name), value, step=step)

    def finish(self, record: RunRecord, curves: Mapping[str, Sequence[tuple[int, float]]], result: str) -> None:
        now, metric = int(1000 * time.time()), self.to.entities.Metric
        points = [metric(_plain(k), v, now, 0) for k, v in _measured(record).items()]
        points += [metric(_plain(name), y, now, x) for name, curve in curves.items() for x, y in curve]
        for i in range(0, len(points), 1000):  # the most that one call takes
            self.to.client.log_batch(self.run, metrics=points[i : i + 1000])
        for c in record.claims:
            self.to.client.set_tag(self.run, _plain(f"verdict/{c.id}"), c.verdict)
        self.to.client.set_tag(self.run, "revision", record.environment.revision or "none")
        if os.path.isfile(result):
            self.to.client.log_artifact(self.run, result)
        self.to.client.set_terminated(self.run, "FINISHED" if record.status == "ok" else "FAILED")


def _plain(name: str) -> str:
    """MLflow takes letters, digits and a few signs in names."""
    return re.sub(r"[^\w\-. :/]", "_", name, flags=re.ASCII)


class _TensorBoard:
    """Begins runs in folders of their own."""

    def __init__(self, store: Store) -> None:
        require("tensorboard", "track", what="--track tensorboard")
        self.module = require("torch.utils.tensorboard")
        self.folder = store.root / "tensorboard"
        self.open: list[Any] = []

    def __call__(self, job: Job) -> Tracker:
        name = f"{job.key}-{job.scale}-s{job.seed}-{time.strftime('%Y%m%dT%H%M%S')}"
        writer = self.module.SummaryWriter(str(self.folder / name))
        self.open.append(writer)
        writer.add_text("parameters", "  \n".join(f"{k}: {v}" for k, v in _parameters(job).items()))
        return _TensorBoardRun(writer)

    def close(self) -> None:
        """Close the files of runs that did not end."""
        for writer in self.open:
            writer.close()


class _TensorBoardRun:
    def __init__(self, writer: Any) -> None:
        self.writer = writer

    def number(self, name: str, value: float, step: int) -> None:
        self.writer.add_scalar(name, value, step)

    def finish(self, record: RunRecord, curves: Mapping[str, Sequence[tuple[int, float]]], result: str) -> None:
        for name, value in _measured(record).items():
            self.writer.add_scalar(name, value, 0)
        for name, curve in curves.items():
            for step, value in curve:
                self.writer.add_scalar(name, value, step)
        rows = (f"| {c.says} | {c.value} | {c.bound} | {c.verdict} |" for c in record.claims)
        self.writer.add_text(
            "claims", "\n".join(["| claim | measured | bound | verdict |", "|---|---|---|---|", *rows])
        )
        self.writer.close()


TRACKERS: Mapping[str, Any] = {"mlflow": _Mlflow, "tensorboard": _TensorBoard}
