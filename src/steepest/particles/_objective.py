"""A black box asked at many points: one at a time, all at once, or by workers; what it cost and the best it gave."""

from __future__ import annotations

import contextlib
import itertools
import math
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from steepest.core.errors import kind_error, value_error
from steepest.core.extras import require
from steepest.core.parallel import joined_ray, ordered_map, threads_of_children

__all__ = ["Objective", "check_workers", "row_mapper"]

CHUNKS = 4  # tasks per worker and iteration, so that uneven costs even out
Chunk = tuple[int, Sequence[Any]]
RowMapper = Callable[[list[Any]], list[float]]


@dataclass(frozen=True)
class Rows:
    """Ask a scalar function at every row of a chunk; an error says which particle it met."""

    fun: Callable[..., Any]
    args: tuple[Any, ...] = ()

    def __call__(self, chunk: Chunk) -> list[float]:
        start, rows = chunk
        return [self._ask(start + k, row) for k, row in enumerate(rows)]

    def _ask(self, k: int, row: Any) -> float:
        try:
            value = self.fun(row, *self.args)
        except Exception as error:
            error.add_note(f"fun raised this at particle {k}, x = {_words(row)}")
            raise
        return number(value)


@dataclass(frozen=True)
class One:
    """Ask a scalar function at one row, for a caller's own map."""

    fun: Callable[..., Any]
    args: tuple[Any, ...] = ()

    def __call__(self, row: Any) -> float:
        return number(self.fun(row, *self.args))


@dataclass(frozen=True)
class RemoteRows:
    """`Rows` whose function lies in Ray's store, sent once per run."""

    rows: Any

    def __call__(self, chunk: Chunk) -> list[float]:
        import ray

        found: list[float] = ray.get(self.rows)(chunk)
        return found


def number(value: Any) -> float:
    """Read what a scalar objective returned."""
    size = value.numel() if isinstance(value, Tensor) else np.size(value)
    if size != 1:
        raise value_error("fun", "a function that returns one number for a point (or give vectorized=True)", value)
    return float(value.item() if hasattr(value, "item") else value)


def check_workers(workers: Any, vectorized: bool) -> None:
    """Accept None, a number of processes (-1: all cores), "ray", or a map-like callable."""
    if workers is None:
        return
    if vectorized:
        raise value_error("workers", "None with vectorized=True, where one call takes all particles", workers)
    if isinstance(workers, str):
        if workers != "ray":
            raise value_error("workers", "None, an int, 'ray' or a map-like callable", workers)
    elif isinstance(workers, int) and not isinstance(workers, bool):
        if workers < 1 and workers != -1:
            raise value_error("workers", ">= 1, or -1 for all cores", workers)
    elif not callable(workers):
        raise kind_error("workers", "None, an int, 'ray' or a map-like callable", workers)


@contextlib.contextmanager
def row_mapper(fun: Callable[..., Any], args: tuple[Any, ...], workers: Any) -> Iterator[RowMapper]:
    """Make the function that asks `fun` at a list of points, and keep its workers for the whole run."""
    rows = Rows(fun, args)
    if workers == "ray":
        ray = require("ray", "federated", what="workers='ray'")
        with joined_ray(ray, os.cpu_count() or 1):
            n = max(1, int(ray.cluster_resources().get("CPU", 1)))
            remote = RemoteRows(ray.put(rows))
            yield lambda x: _joined(ordered_map(remote, _chunks(x, n), backend="ray", n_workers=n))
    elif callable(workers):
        yield lambda x: [float(value) for value in workers(One(fun, args), x)]
    elif workers in (None, 1):
        yield lambda x: rows((0, x))
    else:
        with _processes(rows, (os.cpu_count() or 1) if workers == -1 else workers) as asked:
            yield asked


@contextlib.contextmanager
def _processes(rows: Rows, n: int) -> Iterator[RowMapper]:
    """Keep `n` processes for the whole run; a fresh set for every iteration would cost more than it saves."""
    import multiprocessing as mp
    from concurrent.futures import ProcessPoolExecutor

    # sent once: the children hold the function, each task holds points only
    with ProcessPoolExecutor(n, mp.get_context("spawn"), initializer=_remember, initargs=(rows,)) as pool:

        def asked(x: list[Any]) -> list[float]:
            with threads_of_children(1):
                futures = [pool.submit(_ask_remembered, chunk) for chunk in _chunks(x, n)]
            try:
                return _joined([future.result() for future in futures])
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise

        yield asked


_remembered: Rows | None = None  # of a worker process


def _remember(rows: Rows) -> None:
    global _remembered
    torch.set_num_threads(1)
    _remembered = rows


def _ask_remembered(chunk: Chunk) -> list[float]:
    if _remembered is None:
        raise RuntimeError("this process was not started as a worker")
    return _remembered(chunk)


def _chunks(x: list[Any], n: int) -> list[Chunk]:
    """Cut points into at most CHUNKS pieces per worker, even to one point."""
    edges = np.linspace(0, len(x), min(len(x), CHUNKS * n) + 1).astype(int)
    return [(int(a), x[a:b]) for a, b in itertools.pairwise(edges)]


def _joined(parts: list[list[float]]) -> list[float]:
    return [value for part in parts for value in part]


def _words(row: Any) -> str:
    text = np.array2string(np.asarray(row.detach().cpu() if isinstance(row, Tensor) else row), threshold=8)
    return " ".join(text.split())


@dataclass
class Objective:
    """The function with its account: evaluations, and the best point ever seen.

    Parameters
    ----------
    fun, jac : callable
    args : tuple
    as_array : bool
        Whether `fun` is given NumPy arrays (else tensors).
    vectorized : bool
        Whether `fun` takes (m, d) and returns (m,).
    rows : callable
        Asks a scalar `fun` at a list of points.
    """

    fun: Callable[..., Any]
    args: tuple[Any, ...]
    as_array: bool
    vectorized: bool
    rows: RowMapper
    jac: Callable[..., Any] | None = None
    nfev: int = 0
    njev: int = 0
    best_fun: float = math.inf
    best_x: Tensor | None = None

    def __call__(self, x: Tensor, buffer: Tensor | None = None) -> Tensor:
        """Evaluate at points (m, d); return float64 values (m,).

        A `buffer` of at least that size is what the caller's function gets to see, so that it cannot move particles.
        """
        self.nfev += len(x)
        shown = x.clone() if buffer is None else buffer[: len(x)].copy_(x)
        if self.vectorized:
            f = self._read(self.fun(self.given(shown), *self.args), x)
        else:
            points = [self.given(row.clone()) for row in shown]
            f = torch.as_tensor(self.rows(points), dtype=torch.float64, device=x.device)
            if len(f) != len(x):
                raise value_error("workers", f"a map that returns {len(x)} values", f)
        self._remember_best(x, f)
        bad = f.isnan() | (f == -math.inf)
        if bool(bad.any()):
            k = int(bad.nonzero()[0])
            raise FloatingPointError(f"fun returned {float(f[k])} at particle {k}, x = {_words(x[k])}")
        return f

    def gradient(self, x: Tensor) -> Tensor:
        """Ask `jac` at points (m, d); return gradients (m, d)."""
        if self.jac is None:
            raise value_error("jac", "a callable", None)
        self.njev += len(x)
        if self.vectorized:
            found = self._tensor(self.jac(self.given(x.clone()), *self.args), x)
        else:
            each = [self._tensor(self.jac(self.given(row.clone()), *self.args), x) for row in x]
            found = torch.stack([g.reshape(-1) for g in each])
        if found.shape != x.shape:
            raise value_error("jac", f"a function that returns {tuple(x.shape)} here", found)
        return found

    def given(self, x: Tensor) -> Any:
        """Show a tensor as the caller's kind."""
        return x.numpy() if self.as_array else x

    def _tensor(self, value: Any, x: Tensor) -> Tensor:
        found = value.detach() if isinstance(value, Tensor) else torch.from_numpy(np.array(value, dtype=np.float64))
        return found.to(x.dtype) if found.device == x.device else found.to(x)

    def _read(self, values: Any, x: Tensor) -> Tensor:
        if isinstance(values, Tensor):
            f = values.detach()
            if f.device != x.device:
                raise value_error("fun", f"a function that returns values on {x.device}", str(f.device))
        else:
            f = torch.from_numpy(np.array(values, dtype=np.float64)).to(x.device)
        if tuple(f.shape) != (len(x),):
            raise value_error("fun", f"a function that returns shape ({len(x)},) for {len(x)} points", f)
        return f.to(torch.float64)

    def _remember_best(self, x: Tensor, f: Tensor) -> None:
        usable = torch.where(f.isfinite(), f, math.inf)
        k = int(usable.argmin())
        if float(usable[k]) < self.best_fun:
            self.best_fun, self.best_x = float(usable[k]), x[k].clone()
