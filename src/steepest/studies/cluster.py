"""Runs studies on a Ray cluster: each is a task, the results go to the same store as those of a local run.

The numbers are those of a local run with as many threads. A worker or a machine that is lost costs the study that it
ran another attempt, not its result; what had finished is in the store.
"""

from __future__ import annotations

import contextlib
import os
import time
import warnings
from collections.abc import Callable, Sequence
from typing import Any

from steepest.core.errors import at_least, check, optional, value_error
from steepest.core.extras import require
from steepest.core.parallel import joined_ray
from steepest.core.records import RunRecord, Store
from steepest.studies.context import Event, Job
from steepest.studies.provenance import cores
from steepest.studies.runner import Conducted, conduct, lost

__all__ = ["run_on_ray"]

_ATTEMPTS = 3
_POLL = 0.5


def run_on_ray(
    jobs: Sequence[Job],
    store: Store,
    *,
    n_jobs: int | None = None,
    address: str | None = None,
    threads: int | None = None,
    on_event: Callable[[Job, Event], None] | None = None,
) -> list[RunRecord]:
    """Run studies as tasks of a Ray cluster.

    Parameters
    ----------
    jobs : sequence of Job
    store : Store
        On this machine.
    n_jobs : int, optional
        Studies at a time; one per machine of the cluster by default.
    address : str, optional
        Of a running cluster ("auto" finds one); without it a local one is started, and stopped at the end.
    threads : int, optional
        Threads of each; by default those of the smallest machine, shared among the studies that it gets.
    on_event : callable, optional
        As for `runner.run_many`; ``start`` comes again where a study begins anew.

    Returns
    -------
    list of RunRecord
        In the order of `jobs`. A study whose workers were lost three times gives a record with status ``error``.

    Raises
    ------
    MissingExtra
        Ray is not installed.
    ConnectionError
        No cluster answers at `address`.
    KeyboardInterrupt
        After the tasks were cancelled; what had finished is in the store.
    """
    check("jobs", n_jobs, optional(at_least(1, integer=True)))
    ray = require("ray", "federated", what="--engine ray")
    tell = on_event or (lambda job, event: None)
    with _connected(ray, address):
        machines = [m["Resources"].get("CPU", 0) for m in ray.nodes() if m["Alive"] and m["Resources"].get("CPU")]
        at_once = n_jobs or len(machines)
        threads = threads or max(1, int(min(machines)) // max(1, -(-at_once // len(machines))))
        if threads > max(machines):
            raise value_error("threads", f"at most {max(machines):g}, the cores of the largest machine", threads)
        return _Run(ray, store, tell, threads).all(list(jobs), at_once)


@contextlib.contextmanager
def _connected(ray: Any, address: str | None) -> Any:
    """Join the cluster, or hold a local one."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Ray's own, of future versions
        with joined_ray(ray, cores(), {"address": address}):
            yield


class _Run:
    """Studies on their way through a cluster."""

    def __init__(self, ray: Any, store: Store, tell: Callable[[Job, Event], None], threads: int) -> None:
        from ray.util.queue import Queue

        names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
        variables = dict.fromkeys(names, str(threads))
        if "STEEPEST_DATA" in os.environ:
            variables["STEEPEST_DATA"] = os.environ["STEEPEST_DATA"]
        self.ray, self.store, self.tell, self.threads = ray, store, tell, threads
        self.events = Queue(actor_options={"num_cpus": 0})
        options = {"num_cpus": threads, "max_retries": 0, "runtime_env": {"env_vars": variables}}
        self.task = ray.remote(**options)(_study)
        self.running: dict[Any, tuple[Job, int, float]] = {}
        self.done: dict[str, RunRecord] = {}

    def all(self, jobs: list[Job], at_once: int) -> list[RunRecord]:
        """Run them, `at_once` at a time."""
        waiting, by_key = list(jobs), {job.key: job for job in jobs}
        try:
            while waiting or self.running:
                while waiting and len(self.running) < at_once:
                    self.begin(waiting.pop(0), 1)
                ready, _ = self.ray.wait(list(self.running), num_returns=1, timeout=_POLL)
                self.pass_on(by_key)
                for reference in ready:
                    self.end(reference)
        finally:
            for reference in self.running:
                self.ray.cancel(reference, force=True)
            self.events.shutdown(force=True)
        return [self.done[job.key] for job in jobs]

    def begin(self, job: Job, attempt: int) -> None:
        """Submit a study."""
        reference = self.task.remote(job, self.threads, self.events)
        self.running[reference] = job, attempt, time.perf_counter()
        self.tell(job, {"event": "start"})

    def pass_on(self, by_key: dict[str, Job]) -> None:
        """Show the progress that has come."""
        for key, event in self.events.get_nowait_batch(self.events.qsize()):
            if key not in self.done:
                self.tell(by_key[key], event)

    def end(self, reference: Any) -> None:
        """Take in a finished study, or begin a lost one again."""
        job, attempt, clock = self.running.pop(reference)
        try:
            record, series, arrays = self.ray.get(reference)
            self.store.write(record, series, arrays)
        except (self.ray.exceptions.RayError, OSError) as error:
            gone = isinstance(error, self.ray.exceptions.RayError)
            if gone and attempt < _ATTEMPTS:
                self.begin(job, attempt + 1)
                return
            text = str(error).splitlines()[0]
            reason = f"its worker was lost {attempt} times: {text}" if gone else f"{type(error).__name__}: {text}"
            event = {"event": "lost", "reason": reason}
            record = lost(job, self.store, event, time.perf_counter() - clock)
        self.done[job.key] = record
        self.tell(job, {"event": "done", "record": record})


def _study(job: Job, threads: int, events: Any) -> Conducted:
    """What a task does."""
    import torch

    torch.set_num_threads(threads)

    def emit(event: Event) -> None:
        with contextlib.suppress(Exception):  # progress is not worth a study
            events.put_nowait((job.key, event))

    return conduct(job, emit)
