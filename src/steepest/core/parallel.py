"""An ordered map over serial, processes or Ray: the same results for any backend and number of workers.

Randomness must not depend on who does the work: give every item its own seed (`core.random.child_seeds`).
"""

from __future__ import annotations

import contextlib
import itertools
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Literal, TypeVar

from steepest.core.errors import at_least, check, one_of, optional
from steepest.core.extras import require

__all__ = ["joined_ray", "ordered_map", "threads_of_children"]

A = TypeVar("A")
B = TypeVar("B")
Backend = Literal["serial", "processes", "ray"]
Tell = Callable[[float], object]


def ordered_map(
    fn: Callable[[A], B],
    items: Iterable[A],
    *,
    backend: Backend = "serial",
    n_workers: int | None = None,
    progress: Callable[[float], object] | None = None,
) -> list[B]:
    """Apply `fn` to every item and return the results in the items' order.

    Parameters
    ----------
    fn : callable
        For ``processes`` a function that can be pickled (module level); for ``ray`` any.
    items : iterable
    backend : "serial", "processes" or "ray"
        ``processes`` starts fresh interpreters with one thread each (torch, BLAS); ``ray`` uses the running cluster, or
        a local one that it starts and stops.
    n_workers : int, optional
        Workers at a time; the number of cores by default. Ignored by ``serial``.
    progress : callable, optional
        Told the share of the items that is done, after each.

    Returns
    -------
    list

    Raises
    ------
    Exception
        The first exception (in item order) that `fn` raised; work that had not begun is cancelled.
    MissingExtra
        ``backend="ray"`` without Ray.

    Examples
    --------
    >>> ordered_map(abs, [-2, 1])
    [2, 1]
    """
    check("backend", backend, one_of("serial", "processes", "ray"))
    check("n_workers", n_workers, optional(at_least(1, integer=True)))
    work = list(items)
    tell = progress or (lambda share: None)
    if backend == "serial" or not work:
        return list(_telling(map(fn, work), len(work), tell))
    workers = min(n_workers or os.cpu_count() or 1, len(work))
    if backend == "processes":
        return _with_processes(fn, work, workers, tell)
    return _with_ray(fn, work, workers, tell)


def _telling(results: Iterable[B], n: int, tell: Tell) -> Iterator[B]:
    """Pass the results on, telling after each which share of `n` is done."""
    for k, result in enumerate(results, 1):
        tell(k / n)
        yield result


@contextlib.contextmanager
def threads_of_children(n: int) -> Iterator[None]:
    """Let processes that are started inside load their numerical libraries with `n` threads."""
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
    before = {name: os.environ.get(name) for name in names}
    os.environ.update(dict.fromkeys(names, str(n)))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _one_thread() -> None:
    import torch

    torch.set_num_threads(1)


def _with_processes(fn: Callable[[A], B], work: list[A], workers: int, tell: Tell) -> list[B]:
    import multiprocessing as mp
    from concurrent.futures import ProcessPoolExecutor

    context = mp.get_context("spawn")
    with threads_of_children(1), ProcessPoolExecutor(workers, mp_context=context, initializer=_one_thread) as pool:
        futures = [pool.submit(fn, item) for item in work]
        try:
            return list(_telling((future.result() for future in futures), len(work), tell))
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


@contextlib.contextmanager
def joined_ray(ray: Any, num_cpus: int, options: Mapping[str, Any] | None = None) -> Iterator[None]:
    """Use the Ray that this process has joined; else join one, and leave it at the end.

    The one to join is that of ``options["address"]`` or of the variable ``RAY_ADDRESS``; without them a local one is
    started with `num_cpus`, whatever else runs on the machine.
    """
    if ray.is_initialized():
        yield
        return
    chosen = {"log_to_driver": False, "logging_level": "ERROR", **(options or {})}
    if not chosen.get("address") and "RAY_ADDRESS" not in os.environ:
        chosen = {"include_dashboard": False, "num_cpus": num_cpus, **chosen, "address": "local"}
    ray.init(**chosen)
    try:
        yield
    finally:
        ray.shutdown()


def _with_ray(fn: Callable[[A], B], work: list[A], workers: int, tell: Tell) -> list[B]:
    ray = require("ray", "federated", what="backend='ray'")
    with joined_ray(ray, workers):
        return _on_ray(ray, fn, work, workers, tell)


def _on_ray(ray: Any, fn: Callable[[A], B], work: list[A], workers: int, tell: Tell) -> list[B]:
    try:
        task = ray.remote(lambda item: fn(item))  # Ray takes functions, not every callable
        results, in_flight = dict[int, B](), dict[Any, int]()
        todo = iter(range(len(work)))
        while len(results) < len(work):
            for k in itertools.islice(todo, workers - len(in_flight)):
                in_flight[task.remote(work[k])] = k
            ready, _ = ray.wait(list(in_flight), num_returns=1)
            results.update({in_flight.pop(reference): ray.get(reference) for reference in ready})
            tell(len(results) / len(work))
        return [results[k] for k in range(len(work))]
    except ray.exceptions.RayTaskError as error:
        raise error.as_instanceof_cause() from None
