"""The floor of the benchmarks: measuring in turns or in a process of its own, and rows in the form of `steepest.bench`.

A file here writes ``bench(progress)`` as ``return rows_of(parts, progress)``, where each part measures some rows. Times
are wall seconds, or those of another clock (`time.process_time` for CPU seconds); a comparison takes the median over
the turns, a fit in the size the fastest time of each size.
"""

from __future__ import annotations

import inspect
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from threadpoolctl import threadpool_limits

from steepest.core.parallel import threads_of_children
from steepest.studies.claim import bootstrap_interval, slope_fit
from steepest.studies.provenance import peak_memory

Row = dict[str, Any]
Seconds = dict[Any, list[float]]
Clock = Callable[[], float]


def rows_of(parts: Sequence[Callable[[], list[Row]]], progress: Callable[[float], None] | None) -> list[Row]:
    """Measure the parts one after the other under one thread; `progress` is told the share that is done."""
    rows: list[Row] = []
    with threads(1):
        for i, part in enumerate(parts):
            rows += part()
            if progress is not None:
                progress((i + 1) / len(parts))
    return rows


@contextmanager
def threads(n: int) -> Iterator[None]:
    """Let torch and the linear algebra libraries use `n` threads."""
    before = torch.get_num_threads()
    with threadpool_limits(n):
        torch.set_num_threads(n)
        try:
            yield
        finally:
            torch.set_num_threads(before)


# ------------------------------------------------------------------------------------------------------------ measuring


def interleaved(tasks: Mapping[Any, Callable[[], Any]], repeats: int, clock: Clock = time.perf_counter) -> Seconds:
    """Seconds of every task, measured once a round, one after the other."""
    seconds: Seconds = {name: [] for name in tasks}
    for _ in range(repeats):
        for name, task in tasks.items():
            start = clock()
            task()
            seconds[name].append(clock() - start)
    return seconds


def fastest(task: Callable[[], Any], repeats: int, clock: Clock = time.perf_counter) -> float:
    return min(interleaved({"": task}, repeats, clock)[""])


def in_child(measure: Callable[..., Any], *values: Any) -> Any:
    """What a function of a benchmark returns in a fresh process of one thread; arguments and results are plain."""
    file, call = Path(inspect.getfile(measure)), f"{measure.__name__}(*{values!r})"
    code = f"import json, {file.stem}; print(json.dumps({file.stem}.{call}))"
    with threads_of_children(1):
        command = [sys.executable, "-W", "ignore", "-c", code]
        done = subprocess.run(command, cwd=file.parent, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def cost(task: Callable[[], Any]) -> tuple[float, float, Any]:
    """CPU seconds of a task, peak memory of this process in GiB, and what the task returns."""
    start = time.process_time()
    result = task()
    return time.process_time() - start, peak_memory() / 2**30, result


# ----------------------------------------------------------------------------------------------------------------- rows


def alone(name: str, value: float, unit: str, bound: str | None, what: str) -> Row:
    """A number without a peer; lower is better."""
    empty = {"peer": None, "ratio": None, "interval": None, "better": "lower"}
    return {"name": name, "what": what, "unit": unit, "ours": float(value), "bound": bound} | empty


def compared(name: str, seconds: Seconds, peer: str, bound: str | None, what: str, ours: str = "ours") -> Row:
    """Seconds beside a peer's: the median ratio over the turns and its 90 % interval, where there are several."""
    ratios = np.divide(seconds[ours], seconds[peer])
    what = f"{what} ({peer} takes {np.median(seconds[peer]):.3g} s)"
    return alone(name, np.median(seconds[ours]), "s", bound, what) | {
        "peer": peer,
        "ratio": float(np.median(ratios)),
        "interval": bootstrap_interval(ratios, statistic=np.median) if len(ratios) > 1 else None,
    }


def fitted(name: str, sizes: Sequence[float], seconds: Sequence[float], bound: str, what: str) -> Row:
    """Exponent of the seconds in the size, with the 95 % interval of the fit."""
    slope, interval = slope_fit(sizes, seconds)
    return alone(name, slope, "exponent", bound, what) | {"interval": interval}
