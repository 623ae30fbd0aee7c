"""ADMM with exact primal steps, its patterns shared out over the ranks of a process group or over Ray workers.

Each rank holds u, z, s and the multipliers of its own patterns. An iteration sums the predictions F B t, n numbers,
over the ranks, and the few products of residuals and extrapolation; all ranks factor the same matrix. The iterates are
those of one process, but for the order of sums.
"""

from __future__ import annotations

import math
import socket
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from steepest.convex._admm import ADMM, Copies, ExactStep
from steepest.convex._program import Program
from steepest.core.distributed import group_rank, group_size
from steepest.core.driver import Progress, Stop, drive
from steepest.core.extras import require
from steepest.core.parallel import joined_ray

__all__ = ["Shard", "accuracy", "run_on_ray", "run_shard"]

PATIENCE = timedelta(minutes=10)


@dataclass
class Shard:
    """What a rank ends with: copies, the pull and slopes of its patterns' multipliers, the course of the numbers."""

    copies: Copies
    pull: Tensor
    slope: Tensor
    outputs: Tensor
    history: dict[str, list[float]]
    iterations: int


def run_shard(
    program: Program, tol: float, max_iter: int, rho: float = 1.0, dual_step: float = 1.0, keep: Sequence[str] = ()
) -> Shard:
    """Iterate on the patterns of this rank (those of `program`, whose group names the ranks) until the gap is small.

    The gap is that of the solver's own multipliers, and the copies must agree to `tol` relative to their size.
    """
    solver = ADMM(program, ExactStep(program), dual_step, Copies.zero(program, rho))

    def step(_: None) -> tuple[None, Progress]:
        solver.step()
        candidate = solver.candidate()
        objective, slope = program.objective(candidate.u), _largest(program, float(candidate.slope.max()))
        gap = objective - candidate.dual_at(min(1.0, program.beta / slope) if slope > 0 else 1.0)
        done = abs(gap) <= tol * abs(objective) and solver.primal_residual <= tol * program.norm(solver.copies.u)
        f = program.forward(candidate.u)
        numbers = {
            "objective": objective,
            "primal_residual": solver.primal_residual,
            "dual_residual": solver.dual_residual,
            "accuracy": accuracy(program, f),
        }
        return None, Progress(None, objective, Stop.CONVERGED if done else None, numbers)

    run = drive(step, None, maxiter=max_iter, keep=tuple(keep), on_nonfinite="raise")
    end = solver.candidate()
    return Shard(solver.copies, end.pull, end.slope, program.forward(solver.copies.u), run.history, run.nit)


def run_on_ray(program: Program, workers: int, **options: Any) -> list[Shard]:
    """Give each Ray worker a share of the patterns; the shards come back in the patterns' order."""
    ray = require("ray", "federated", what='backend="ray"')
    parts = torch.arange(len(program.patterns)).tensor_split(min(workers, len(program.patterns)))
    with joined_ray(ray, len(parts)):
        ranks = [ray.remote(num_cpus=1)(_Rank).remote(k, len(parts)) for k in range(len(parts))]
        address = ray.get(ranks[0].address.remote())
        shares = [program.of_patterns(part) for part in parts]
        shards = ray.get([rank.run.remote(address, share, options) for rank, share in zip(ranks, shares, strict=True)])
        for rank in ranks:
            ray.kill(rank)
    return list(shards)


class _Rank:
    """A Ray actor that is one rank of a gloo group of its own."""

    def __init__(self, rank: int, size: int) -> None:
        self.rank, self.size = rank, size

    def address(self) -> str:
        """Where this actor will listen."""
        with socket.socket() as free:
            free.bind(("", 0))
            port = free.getsockname()[1]
        return f"tcp://{require('ray.util').get_node_ip_address()}:{port}"

    def run(self, address: str, program: Program, options: dict[str, Any]) -> Shard:
        dist.init_process_group("gloo", init_method=address, rank=self.rank, world_size=self.size, timeout=PATIENCE)
        try:
            return run_shard(replace(program, group="default"), **options)
        finally:
            dist.destroy_process_group()


def accuracy(program: Program, outputs: Tensor) -> float:
    """Share of right signs, for targets of -1 and 1; for others the coefficient of determination."""
    y = program.y
    if bool((y.abs() == 1).all()):
        return float(((outputs > 0) == (y > 0)).double().mean())
    total = float((y - y.mean()).square().sum())
    return 1 - float((y - outputs).square().sum()) / total if total > 0 else math.nan


def _largest(program: Program, value: float) -> float:
    """Largest over the ranks."""
    slots = torch.zeros(group_size(program.group), dtype=torch.float64)
    slots[group_rank(program.group)] = value
    return float(program.total(slots).max())
