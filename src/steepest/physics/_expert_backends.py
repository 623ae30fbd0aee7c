"""Where experts of `hard_constraint_moe` are solved: here at once, here in turn, on Ray, or on the ranks of a group.

Groups of rows and weights begin with the axes (B, K), samples and experts. The backward pass of a solve is local to its
expert. On ranks every process holds the whole input: `shared` passes it on and sums its gradient over the ranks, each
rank solves its own experts, and the weights are gathered; what is computed from them afterwards is the same everywhere.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import partial
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor

from steepest.core.distributed import all_reduce_sum, group_rank, group_size
from steepest.core.errors import value_error
from steepest.core.extras import require
from steepest.core.parallel import ordered_map
from steepest.physics._least_squares import Info, LeastSquares, Settings, Solved, implicit_solve, solve
from steepest.physics._pointwise_rows import PointwiseLeastSquares, Rows, flattened, rebuilt

__all__ = ["BACKENDS", "members", "shared", "solve_experts"]

BACKENDS = ("batched", "serial", "ray", "torch.distributed")


def solve_experts(
    backend: str, groups: Sequence[Rows], w0: Tensor, settings: Settings, ridge: float
) -> tuple[Tensor, Info]:
    """Weights (B, K, N) and how it went (B, K), from the start `w0`."""
    K = w0.shape[1]
    if backend == "serial":
        parts = [_solve_block(_experts(groups, slice(k, k + 1)), w0[:, k : k + 1], settings, ridge) for k in range(K)]
        w = torch.cat([part for part, _ in parts], 1)
        return w, {name: torch.cat([info[name] for _, info in parts], 1) for name in parts[0][1]}
    if backend == "ray":
        return _solve_block(groups, w0, settings, ridge, run=partial(_solve_on_ray, K))
    if backend == "torch.distributed":
        world, rank = group_size("default"), group_rank("default")
        if K % world:
            raise value_error("num_experts", f"of a product that the {world} ranks divide", K)
        own = slice(rank * (K // world), (rank + 1) * (K // world))
        w, info = _solve_block(_experts(groups, own), w0[:, own], settings, ridge)
        return cast(Tensor, _Gathered.apply(w)), {name: _gather(x) for name, x in info.items()}
    return _solve_block(groups, w0, settings, ridge)


def shared(backend: str, tensors: Sequence[Tensor]) -> list[Tensor]:
    """The same tensors; on ranks their gradients are summed over all."""
    return list(_Shared.apply(*tensors)) if backend == "torch.distributed" else list(tensors)


def members(groups: Sequence[Rows]) -> list[Rows]:
    """Flatten the axes (B, K) of all tensors."""
    return [rows.each(lambda x: x.flatten(0, 1)) for rows in groups]


def _experts(groups: Sequence[Rows], own: slice) -> list[Rows]:
    return [rows.each(lambda x: x[:, own]) for rows in groups]


def _solve_block(
    groups: Sequence[Rows], w0: Tensor, settings: Settings, ridge: float, run: Any = solve
) -> tuple[Tensor, Info]:
    together = members(groups)
    make = partial(_make, tuple(rows.without_tensors() for rows in together), ridge)
    w, info = implicit_solve(make, w0.flatten(0, 1), settings, flattened(together), run)
    return w.view(w0.shape), {name: x.view(w0.shape[:2]) for name, x in info.items()}


def _make(groups: Sequence[Rows], ridge: float, tensors: Sequence[Tensor]) -> LeastSquares:
    return PointwiseLeastSquares(rebuilt(groups, tensors), ridge)


# ------------------------------------------------------------------------------------------------------------------ Ray


def _solve_on_ray(K: int, problem: PointwiseLeastSquares, w0: Tensor, settings: Settings) -> Solved:
    """One task per block of experts, as many blocks as processors; the terms go out once and weights come back."""
    ray = require("ray", "federated", what="backend='ray'")
    workers = int(ray.cluster_resources().get("CPU", 1)) if ray.is_initialized() else os.cpu_count() or 1
    index = torch.arange(len(w0)).view(-1, K)
    blocks = [block.flatten() for block in index.tensor_split(min(K, workers), 1)]
    work = [(problem.take(block), w0[block], settings) for block in blocks]
    found: list[Solved] = ordered_map(_task, work, backend="ray", n_workers=workers)
    back = torch.cat(blocks).argsort()
    info = {name: torch.cat([part.info[name] for part in found])[back] for name in found[0].info}
    w, factor = (torch.cat([getattr(part, name) for part in found])[back] for name in ("w", "factor"))
    return Solved(w, info, factor)


def _task(work: tuple[PointwiseLeastSquares, Tensor, Settings]) -> Solved:
    return solve(*work)


# ---------------------------------------------------------------------------------------------------------------- ranks


class _Shared(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *tensors: Tensor) -> tuple[Tensor, ...]:
        return tuple(x.view_as(x) for x in tensors)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        summed = [g.clone() for g in gradients]
        all_reduce_sum(summed, "default")
        return tuple(summed)


class _Gathered(torch.autograd.Function):
    """Blocks (B, K/world, ...) of all ranks; every rank has the same loss, so its own block's gradient is whole."""

    @staticmethod
    def forward(ctx: Any, own: Tensor) -> Tensor:
        ctx.own = own.shape[1]
        return _gather(own)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        rank = group_rank("default")
        return gradient[:, rank * ctx.own : (rank + 1) * ctx.own].contiguous()


def _gather(own: Tensor) -> Tensor:
    sent = own.to(torch.uint8) if own.dtype == torch.bool else own.contiguous()
    parts = [torch.empty_like(sent) for _ in range(group_size("default"))]
    dist.all_gather(parts, sent)
    return torch.cat(parts, 1).to(own.dtype)
