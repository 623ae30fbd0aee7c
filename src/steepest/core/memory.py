"""How much memory a call takes."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import accumulate
from typing import Any

import torch

__all__ = ["peak_tensor_bytes"]


def peak_tensor_bytes(task: Callable[[], object]) -> int:
    """Measure the most bytes of CPU tensors that a call holds at once, beyond what was there before it.

    Parameters
    ----------
    task : callable
        Called once; call it before, if its first call does more than the others.

    Returns
    -------
    int
        From the log of torch's allocator.

    Examples
    --------
    >>> peak_tensor_bytes(lambda: torch.zeros(1000, dtype=torch.float64))
    8000
    """
    log = torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True)
    with _no_words_on_stderr():
        log.start()
    try:
        task()
    finally:
        with _no_words_on_stderr():
            log.stop()
    results: Any = log.profiler.kineto_results  # type: ignore[union-attr]
    events = sorted((e for e in results.events() if e.name() == "[memory]"), key=lambda e: e.start_ns())
    return max(accumulate((e.nbytes() for e in events), initial=0))


@contextmanager
def _no_words_on_stderr() -> Iterator[None]:
    """Mute this process's error stream: the profiler of some builds of torch writes there that it starts and stops."""
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(nowhere)
        os.close(kept)
