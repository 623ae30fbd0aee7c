"""Graphs and subsets of particles for message passing: thin doors of `steepest.geometry.graph` that speak torch."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from steepest.core.errors import boolean, check, interval, kind_error, optional, positive, value_error
from steepest.geometry.graph import farthest_points, radius_neighbors

__all__ = ["farthest_point_sample", "radius_graph"]


def radius_graph(x: torch.Tensor, radius: float, loop: bool = True, max_neighbors: int | None = None) -> torch.Tensor:
    """Join every two particles that are at most `radius` apart.

    Parameters
    ----------
    x : Tensor (n, d)
        Positions. The search itself runs on the CPU (a KD-tree), wherever they are.
    radius : float
        > 0; a pair at exactly this distance is joined.
    loop : bool
        Whether every particle is joined with itself as well.
    max_neighbors : int or None
        Let each receiver keep only its nearest this many others. The edge back may then be missing.

    Returns
    -------
    Tensor (2, E), int64
        Senders in the first row, receivers in the second, on the device of `x`; sorted by receiver, then sender.
        Without a cap every edge is there in both directions.

    Raises
    ------
    ValueError
        `x` is not 2-D and finite, ``radius <= 0``, ``max_neighbors < 1``.

    Examples
    --------
    >>> radius_graph(torch.tensor([[0.0], [1.0], [3.0]]), 1.0).tolist()
    [[0, 1, 0, 1, 2], [0, 0, 1, 1, 2]]
    """
    points = _points(x)
    check("loop", loop, boolean())
    check("max_neighbors", max_neighbors, optional(positive(integer=True)))
    receivers, senders, distances = radius_neighbors(points, radius)
    keep = receivers != senders
    if max_neighbors is not None:
        keep[keep] = _rank_in_row(receivers[keep], distances[keep]) < max_neighbors
    if loop:
        keep |= receivers == senders
    return torch.from_numpy(np.stack((senders[keep], receivers[keep])).astype(np.int64)).to(x.device)


def farthest_point_sample(x: torch.Tensor, n: int, seed: int = 0) -> torch.Tensor:
    """Choose n well spread particles, each next one the farthest from all before it; the first is drawn.

    Parameters
    ----------
    x : Tensor (N, d)
        Positions; the search itself runs on the CPU.
    n : int
        How many, at most N.
    seed : int

    Returns
    -------
    Tensor (n,), int64
        Distinct indices in the order of choice, on the device of `x`.

    Raises
    ------
    ValueError
        `x` is not 2-D and finite, or n outside [1, N].

    Examples
    --------
    >>> sorted(farthest_point_sample(torch.tensor([[0.0], [0.1], [9.0]]), 2).tolist()) in ([0, 2], [1, 2])
    True
    """
    points = _points(x)
    check("n", n, interval(1, len(points), integer=True))
    return torch.from_numpy(farthest_points(points, n, random_state=seed).astype(np.int64)).to(x.device)


def _points(x: Any) -> np.ndarray:
    if not isinstance(x, torch.Tensor):
        raise kind_error("x", "a tensor (n, d)", x)
    if x.dim() != 2:
        raise value_error("x", "a tensor (n, d)", x)
    return x.detach().cpu().numpy()


def _rank_in_row(rows: np.ndarray, distances: np.ndarray) -> np.ndarray:
    """Give for each entry of sorted rows how many of its row are nearer; equal ones count in their order."""
    order = np.lexsort((distances, rows))
    rank = np.empty(len(rows), dtype=np.int64)
    rank[order] = np.arange(len(rows)) - np.searchsorted(rows, rows)
    return rank
