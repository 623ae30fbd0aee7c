"""Reductions over a process group, one spelling for all rooms.

``process_group`` is ``None`` (one process: every reduction is the identity), ``"default"`` (the world), or a group of
`torch.distributed`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from steepest.core.errors import kind_error

__all__ = ["all_reduce_mean", "all_reduce_sum", "group_rank", "group_size", "resolve_group"]

Group = Any


def resolve_group(process_group: Group) -> Group:
    """Check `process_group` and return what `torch.distributed` takes: None stays None, "default" is the world.

    Raises
    ------
    TypeError
        It is neither None, "default" nor a group.
    RuntimeError
        `torch.distributed` is not initialized.
    """
    if process_group is None:
        return None
    if not dist.is_available() or not dist.is_initialized():
        raise RuntimeError(
            f"process_group={process_group!r} needs torch.distributed: call torch.distributed.init_process_group first"
        )
    if isinstance(process_group, str) and process_group == "default":
        return dist.group.WORLD
    if isinstance(process_group, dist.ProcessGroup):
        return process_group
    raise kind_error("process_group", "None, 'default' or a torch.distributed group", process_group)


def group_size(process_group: Group) -> int:
    """Count the ranks of a group (1 for None)."""
    group = resolve_group(process_group)
    return 1 if group is None else dist.get_world_size(group)


def group_rank(process_group: Group) -> int:
    """Tell this process's rank in a group (0 for None)."""
    group = resolve_group(process_group)
    return 0 if group is None else dist.get_rank(group)


def all_reduce_sum(tensors: Sequence[Tensor], process_group: Group) -> None:
    """Sum tensors over the ranks, in place, with one communication per dtype and device.

    Parameters
    ----------
    tensors : sequence of Tensor
        The same number, shapes and dtypes on every rank.
    process_group
        See the module.
    """
    group = resolve_group(process_group)
    if group is None or not tensors:
        return
    buckets: dict[tuple[torch.dtype, torch.device], list[Tensor]] = {}
    for t in tensors:
        buckets.setdefault((t.dtype, t.device), []).append(t)
    for bucket in buckets.values():
        flat = torch.cat([t.reshape(-1) for t in bucket])
        dist.all_reduce(flat, group=group)
        for t, part in zip(bucket, flat.split([t.numel() for t in bucket]), strict=True):
            t.copy_(part.view(t.shape))


def all_reduce_mean(tensors: Sequence[Tensor], process_group: Group) -> None:
    """Average tensors over the ranks, in place."""
    all_reduce_sum(tensors, process_group)
    size = group_size(process_group)
    if size > 1:
        for t in tensors:
            t.div_(size)
