"""One step's work of `bsvrb` on the drawn blocks, here or spread over Ray tasks."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from steepest.bilevel._bsvrb_blocks import Rule, Share, Updated, update
from steepest.bilevel.problem import BilevelProblem
from steepest.core.errors import value_error
from steepest.core.extras import require
from steepest.core.parallel import joined_ray, ordered_map

__all__ = ["evaluator"]

SHARES = 16
"""Into how many shares the drawn blocks go with Ray: a constant, so that no number depends on that of the workers."""


@contextmanager
def evaluator(
    problem: BilevelProblem, rule: Rule, backend: str, num_workers: int | None
) -> Iterator[Callable[[Share], Updated]]:
    """Give the function that makes one step's work on the drawn blocks."""
    if backend == "serial":
        yield lambda share: update(problem, rule, share)
        return
    ray = require("ray", "federated", what="bsvrb's backend='ray'")
    with joined_ray(ray, num_workers or os.cpu_count() or 1):
        there = ray.put((problem, rule))

        def evaluate(share: Share) -> Updated:
            work = [(there, part) for part in _split(share)]
            return _join(ordered_map(_update_there, work, backend="ray", n_workers=num_workers), share)

        yield evaluate


def _update_there(work: tuple[Any, Share]) -> Updated:
    import ray

    there, share = work
    problem, rule = ray.get(there)
    return update(problem, rule, share)


def _split(share: Share) -> list[Share]:
    """Cut a share into at most `SHARES` of nearly the same size."""
    n = len(share.blocks)
    parts = torch.arange(n, device=share.blocks.device).tensor_split(min(SHARES, n))

    def part(at: Tensor) -> Share:
        of_blocks = ("blocks", "y", "y_old", "aid", "aid_old", "s", "e", "first")
        batches = {key: _rows_of(key, getattr(share, key), at, n) for key in ("upper_batch", "lower_batch")}
        rows = {key: getattr(share, key)[at] for key in of_blocks}
        return Share(t=share.t, x=share.x, x_old=share.x_old, **batches, **rows)

    return [part(at) for at in parts]


def _rows_of(name: str, batch: Any, at: Tensor, n: int) -> Any:
    """Take the rows `at` of a batch of n blocks."""
    if batch is None:
        return None
    if isinstance(batch, Tensor) and batch.ndim > 0 and len(batch) == n:
        return batch[at.to(batch.device)]
    if isinstance(batch, Mapping):
        return {key: _rows_of(name, part, at, n) for key, part in batch.items()}
    if type(batch) in (list, tuple):
        return type(batch)(_rows_of(name, part, at, n) for part in batch)
    sampler = "sample_" + name.removesuffix("_batch")
    raise value_error(sampler, f"a function that returns tensors with {n} rows, one a block, for backend='ray'", batch)


def _join(parts: list[Updated], share: Share) -> Updated:
    """Put shares together again; a call that was spread over shares counts once."""
    sizes = [len(part.s) for part in parts]
    G, G_old = (
        sum((n * getattr(part, key) for n, part in zip(sizes, parts, strict=True)), torch.zeros_like(share.x))
        / sum(sizes)
        for key in ("G", "G_old")
    )
    return Updated(
        G, G_old, torch.cat([part.s for part in parts]), torch.cat([part.aid for part in parts]), parts[0].counts
    )
