"""Other processes for tests: forked from one fresh interpreter, which imports what takes seconds but once.

A function that runs there and its arguments are pickled, as for interpreters that are started anew.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import torch

METHOD = "forkserver"
IMPORTED = [
    "pytest",
    "hypothesis",
    "scipy.sparse.linalg",
    "sklearn.base",
    "torch.distributed.fsdp",
    "torch.distributed.tensor",
    "torch.func",
    "steepest.core.distributed",
]


def import_once() -> None:
    """Say what the first process imports; it starts when a test asks for another."""
    multiprocessing.set_forkserver_preload(IMPORTED)


def context() -> Any:
    """The start method as an object, for `Process` and `Queue`."""
    return multiprocessing.get_context(METHOD)


def pool(n: int) -> ProcessPoolExecutor:
    """`n` processes, each with what a task needs and nothing of the tests' own."""
    return ProcessPoolExecutor(n, mp_context=context())


def on_two_ranks(fn: Callable[..., None], *args: object) -> None:
    """Call ``fn(rank, *args)`` in two processes, and fail if one of them does."""
    torch.multiprocessing.start_processes(fn, args, nprocs=2, start_method=METHOD)
