"""Runs studies: one in this process, or many in worker processes.

The runner judges what a study measured, notes where and on what it was made, and writes the run to the store.
`run_many` gives every study a process of its own, so that a crash, an interrupt or a killed worker costs that study
and nothing else.
"""

from __future__ import annotations

import contextlib
import multiprocessing as mp
import os
import shutil
import time
import traceback as tb
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from steepest.core import records
from steepest.core.errors import at_least, check
from steepest.core.extras import MissingExtra
from steepest.core.parallel import threads_of_children
from steepest.core.records import ClaimResult, RunRecord, Series, Store
from steepest.studies import registry
from steepest.studies.context import Context, Event, Job, Unavailable
from steepest.studies.provenance import code_fingerprint, cores, environment, peak_memory

__all__ = ["conduct", "finished", "first_rank", "lost", "run_many", "run_study"]

Status = Literal["ok", "error", "skipped"]
Conducted = tuple[RunRecord, list[Series], dict[str, dict[str, np.ndarray]]]


def run_study(
    job: Job, store: Store | None = None, emit: Callable[[Event], None] | None = None
) -> tuple[RunRecord, list[Series]]:
    """Run one study here and write it to `store` (None: only return it).

    A study that raises gives a record with status ``error`` and the traceback; one that lacks an extra, data or an
    accelerator gives ``skipped`` with the reason. `KeyboardInterrupt` passes through and nothing is written.
    """
    record, series, arrays = conduct(job, emit)
    if store is not None:
        store.write(record, series, arrays)
    return record, series


def conduct(job: Job, emit: Callable[[Event], None] | None = None) -> Conducted:
    """Run one study here; what it measured, its series and the arrays of its pictures."""
    started, clock = datetime.now(UTC), time.perf_counter()
    status: Status = "ok"
    reason, trace, blank, ctx = "", "", "the study reported nothing for it", None
    try:
        study = registry.load_study(job.key)
        ctx = Context(study, job, emit)
        study.run(ctx)
    except (MissingExtra, Unavailable) as error:
        status, reason, blank = "skipped", str(error), "skipped"
    except Exception as error:
        status, reason, trace = "error", f"{type(error).__name__}: {error}", tb.format_exc()
        blank = "the study failed before it was measured"
    record = _record(job, ctx, status, reason, trace, blank, started, time.perf_counter() - clock)
    return record, [] if ctx is None else ctx.series_log, {} if ctx is None else ctx.arrays_log


def _record(
    job: Job,
    ctx: Context | None,
    status: Status,
    reason: str,
    trace: str,
    blank: str,
    started: datetime,
    seconds: float,
) -> RunRecord:
    """Put together all that is kept of one run."""
    method = registry.find(job.key)
    return RunRecord(
        id=records.run_id(method.key, job.scale, job.seed, started),
        key=method.key,
        area=method.area,
        scale=job.scale,
        seed=job.seed,
        seeds=job.seeds,
        options=job.options,
        max_steps=job.max_steps,
        data=job.data and Path(job.data).name,
        status=status,
        reason=reason,
        traceback=trace,
        claims=_claims(job, ctx, blank),
        against=ctx.best_peer if ctx else None,
        seconds=ctx.seconds_log if ctx else {},
        notes=ctx.notes_log if ctx else [],
        started=started,
        wall_seconds=seconds,
        peak_memory_bytes=peak_memory(),
        code=code_fingerprint(method.key),
        environment=environment(),
    )


def _claims(job: Job, ctx: Context | None, blank: str) -> list[ClaimResult]:
    if ctx is None:  # the study could not even begin: its claims are all unmeasured, if they can be read
        try:
            ctx = Context(registry.load_study(job.key), job)
        except Exception:
            return []
    return ctx.results(blank)


def finished(store: Store, jobs: Sequence[Job]) -> dict[str, RunRecord]:
    """Find the runs that need not be made again: the same code, scale, seeds and options, and it went well."""
    known = {_identity(r, r.code): r for r in store.runs() if r.status == "ok"}
    wanted = {job.key: _identity(job, code_fingerprint(job.key)) for job in jobs}
    return {key: known[identity] for key, identity in wanted.items() if identity in known}


def _identity(run: Job | RunRecord, code: str) -> tuple[Any, ...]:
    options, data = tuple(sorted(run.options.items())), run.data
    return run.key, run.scale, run.seed, tuple(run.seeds), options, run.max_steps, data and Path(data).name, code


def first_rank() -> bool:
    """Whether this is the process that reports: under ``torchrun`` the one of rank 0, else any."""
    return os.environ.get("RANK", "0") == "0"


def _child(job: Job, root: str, threads: int, pipe: Connection) -> None:
    """Run one study in a fresh process and report through `pipe`."""
    torch.set_num_threads(threads)
    try:
        record, _ = run_study(job, Store(root) if first_rank() else None, pipe.send)
        pipe.send({"event": "done", "record": record})
    except KeyboardInterrupt:
        os._exit(130)
    except BaseException as error:  # the store could not be written, say
        pipe.send({"event": "lost", "reason": f"{type(error).__name__}: {error}", "traceback": tb.format_exc()})
    finally:
        pipe.close()


def run_many(
    jobs: Sequence[Job],
    store: Store,
    *,
    n_jobs: int = 1,
    threads: int | None = None,
    on_event: Callable[[Job, Event], None] | None = None,
) -> list[RunRecord]:
    """Run studies, `n_jobs` at a time, each in a process of its own with `threads` threads.

    Parameters
    ----------
    jobs : sequence of Job
    store : Store
    n_jobs : int
        Studies at a time.
    threads : int, optional
        Threads of each; by default the cores divided by `n_jobs`.
    on_event : callable, optional
        Called as ``on_event(job, event)`` with events ``start``, ``progress``, ``measured``, ``done``.

    Returns
    -------
    list of RunRecord
        In the order of `jobs`. A worker that died gives a record with status ``error``.

    Raises
    ------
    KeyboardInterrupt
        After the workers were stopped; what had finished is in the store.
    """
    check("jobs", n_jobs, at_least(1, integer=True))
    threads = threads or max(1, cores() // n_jobs)
    tell = on_event or (lambda job, event: None)
    spawn = mp.get_context("spawn")
    waiting, running, done = list(jobs), dict[Connection, tuple[Job, Any, float]](), dict[str, RunRecord]()
    try:
        while waiting or running:
            while waiting and len(running) < n_jobs:
                job = waiting.pop(0)
                here, there = spawn.Pipe(duplex=False)
                process = spawn.Process(target=_child, args=(job, str(store.root), threads, there), daemon=False)
                with threads_of_children(threads):
                    process.start()
                there.close()
                running[here] = (job, process, time.perf_counter())
                tell(job, {"event": "start"})
            for pipe in wait(list(running), timeout=0.5):
                assert isinstance(pipe, Connection)
                job, process, clock = running[pipe]
                try:
                    event = pipe.recv()
                except (EOFError, OSError):
                    process.join()
                    event = {"event": "lost", "reason": f"its process ended with code {process.exitcode}"}
                if event["event"] == "lost":
                    event = {"event": "done", "record": lost(job, store, event, time.perf_counter() - clock)}
                tell(job, event)
                if event["event"] == "done":
                    done[job.key] = event["record"]
                    process.join()
                    pipe.close()
                    del running[pipe]
    finally:
        for pipe, (_, process, _) in running.items():
            process.terminate()
            process.join(5)
            if process.is_alive():
                process.kill()
                process.join()
            pipe.close()
        for leftover in store.root.glob(".tmp-*") if running else ():
            _remove_if_ours(leftover)
    return [done[job.key] for job in jobs]


def _remove_if_ours(folder: Path) -> None:
    """Clear a half-written run that a stopped worker left; one younger than a minute may be another writer's."""
    with contextlib.suppress(OSError):
        if time.time() - folder.stat().st_mtime > 60:
            shutil.rmtree(folder, ignore_errors=True)


def lost(job: Job, store: Store, event: Event, seconds: float) -> RunRecord:
    """Record a study whose worker died or could not write; kept in the store where that is possible."""
    record = _record(
        job,
        None,
        "error",
        event["reason"],
        event.get("traceback", ""),
        "the study's process was lost",
        datetime.now(UTC),
        seconds,
    )
    with contextlib.suppress(OSError):
        if first_rank():
            store.write(record)
    return record
