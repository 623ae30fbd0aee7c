"""What a step of BSVRB takes when its blocks are spread over Ray tasks, and how much memory large blocks take."""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from steepest.bilevel import BilevelProblem, bsvrb
from steepest.core.extras import require
from steepest.core.parallel import joined_ray, ordered_map
from steepest.studies.context import Unavailable
from steepest.studies.provenance import peak_memory

__all__ = ["Case", "cluster", "large_blocks", "regression_blocks", "step_milliseconds"]

F64 = torch.float64


@dataclass(frozen=True)
class Case:
    """A size: variant, blocks m, of which I a step, unknowns p of a block, samples B of it."""

    variant: str
    m: int
    n_drawn: int
    p: int
    batch: int

    def __str__(self) -> str:
        return f"{self.variant}, m = {self.m}, I = {self.n_drawn}, p = {self.p}, B = {self.batch}"


def regression_blocks(m: int, p: int, *, n_samples: int = 512, seed: int = 0) -> BilevelProblem:
    """Make ridge regressions of m targets on the same features, shifted by 8 shared numbers x."""
    generator = torch.Generator().manual_seed(seed)
    Z = torch.randn(n_samples, p, generator=generator, dtype=F64) / p**0.5
    U = torch.randn(n_samples, 8, generator=generator, dtype=F64)
    T = torch.randn(m, n_samples, generator=generator, dtype=F64)

    def lower(x: Tensor, yb: Tensor, batch: Tensor | None, blocks: Tensor) -> Tensor:
        if batch is None:
            fitted, target = yb @ Z.mT, T[blocks] + U @ x
        else:
            fitted = torch.einsum("ibp,ip->ib", Z[batch], yb)
            target = T[blocks.unsqueeze(1), batch] + U[batch] @ x
        return (fitted - target).square().mean(1) / 2 + yb.square().sum(1) / 20

    def sample(generator: torch.Generator, size: int | None, blocks: Tensor) -> Tensor:
        return torch.randint(n_samples, (len(blocks), size or 32), generator=generator)

    return BilevelProblem(
        lambda x, yb, batch, blocks: (yb - 1).square().mean(1) / 2,
        lower,
        torch.zeros(8, dtype=F64),
        torch.zeros(m, p, dtype=F64),
        sample_lower=sample,
        n_blocks=m,
    )


@contextmanager
def cluster(n: int) -> Iterator[None]:
    """Hold a local Ray cluster of n cores.

    Raises
    ------
    MissingExtra
        Ray is not installed.
    Unavailable
        It did not start.
    """
    ray: Any = require("ray", "federated", what="the rows of two workers")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Ray's own, of future versions
        try:
            held = joined_ray(ray, n)
            held.__enter__()
        except Exception as error:  # of no narrower kind where the machine is too busy for it
            raise Unavailable(f"Ray did not start: {str(error).splitlines()[0]}") from error
        try:
            yield
        finally:
            held.__exit__(None, None, None)


def step_milliseconds(case: Case, workers: int, steps: int = 8) -> float:
    """Wall-clock milliseconds of a step, the median; 0 workers: without Ray. The first two steps are left out."""
    times: list[float] = []
    backend: Any = "ray" if workers else "serial"
    bsvrb(
        regression_blocks(case.m, case.p), variant=case.variant, lr_y=0.05, lr_x=1e-3, blocks_per_step=case.n_drawn,
        batch_size=case.batch, backend=backend, num_workers=workers or None, maxiter=steps + 2,
        callback=lambda intermediate_result: times.append(time.perf_counter()),
    )  # fmt: skip
    return 1e3 * float(np.median(np.diff(times)[1:]))


def large_blocks(p: int, maxiter: int) -> dict[str, float]:
    """Peak memory in GiB of a fresh process that runs v2 on two blocks of p unknowns, and its dense Hessians."""
    (found,) = ordered_map(_large_blocks, [(p, maxiter)], backend="processes", n_workers=1)
    return found


def _large_blocks(size: tuple[int, int]) -> dict[str, float]:
    p, maxiter = size
    target = torch.linspace(0, 1, p, dtype=F64)
    curvature = torch.linspace(0.5, 1.5, p, dtype=F64)
    problem = BilevelProblem(
        lambda x, yb, batch, blocks: (yb - target).square().mean(1) / 2,
        lambda x, yb, batch, blocks: (curvature * (yb - x).square()).sum(1) / 2,
        torch.zeros(1, dtype=F64),
        torch.zeros(2, p, dtype=F64),
        n_blocks=2,
    )
    result = bsvrb(problem, variant="v2", lr_x=0.2, lr_y=0.5, maxiter=maxiter)
    error = abs(float(result.x) - 0.5)  # the mean target
    return {"GiB": peak_memory() / 2**30, "hessians": result.counts["hessian"], "error": error}
