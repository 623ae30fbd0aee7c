"""What else predicts pressure on a surface, trained for as many CPU seconds as the attention network.

The point-wise perceptron sees one point (its coordinates, or all channels) and the flight condition; gradient boosting
sees all channels of one point; PointNet and GCN (`torch_geometric`) pass messages along the edges of the surface grid
and see all channels. All read the normalized channels of the network they are compared with, so that no peer is held
back by scaling. Neural peers take AdamW with a one-cycle schedule as the network does, whose length is planned from the
time of a few steps; each peer is tried at the learning rates of `RATES` and chosen on the validation wings.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from steepest.core.extras import require
from steepest.core.random import torch_generator
from steepest.studies.task import fresh_model

__all__ = ["PACKAGES", "RATES", "PeerRun", "grid_edges", "train_peer"]

PACKAGES = {
    "point-wise MLP": "torch",
    "point-wise MLP, same channels": "torch",
    "HistGradientBoosting": "sklearn",
    "PointNet": "torch_geometric",
    "GCN": "torch_geometric",
}
"""The peers, and the package that each of them needs."""

RATES = (1e-3, 3e-3)
BOOSTING_RATES = (0.1, 0.3)
BATCH = 16
WARM_UP = 8


@dataclass(frozen=True)
class PeerRun:
    """One training of a peer.

    Parameters
    ----------
    name : str
        A key of `PACKAGES`.
    channels, conditions, cp : arrays (n, n_u, n_v, C), (n, 2), (n, n_u, n_v)
        Of the training wings; the first three channels are the coordinates. Normalized, but for cp.
    queries, query_conditions : arrays
        What to predict.
    seconds : float
        CPU seconds of training.
    trial : int
        Which learning rate of its grid: 0 or 1.
    """

    name: str
    channels: NDArray[Any]
    conditions: NDArray[Any]
    cp: NDArray[Any]
    queries: NDArray[Any]
    query_conditions: NDArray[Any]
    seconds: float
    trial: int
    seed: int


def train_peer(run: PeerRun) -> NDArray[Any]:
    """Train a peer for its seconds and predict, (m, n_u, n_v).

    Raises
    ------
    MissingExtra
        The package of the peer is not installed.
    """
    if run.name == "HistGradientBoosting":
        return _boosting(run)
    n_u, n_v = run.cp.shape[1:]
    width = run.channels.shape[-1]
    builders: dict[str, Callable[[], nn.Module]] = {
        "point-wise MLP": lambda: PointwiseMLP(3),
        "point-wise MLP, same channels": lambda: PointwiseMLP(width),
        "PointNet": lambda: _surface_network("PointNet", width, grid_edges(n_u, n_v)),
        "GCN": lambda: _surface_network("GCN", width, grid_edges(n_u, n_v)),
    }
    return _train(fresh_model(builders[run.name], run.seed), run)


def _train(model: nn.Module, run: PeerRun) -> NDArray[Any]:
    """MSE of the normalized cp, AdamW, one cycle; as many steps as fit."""
    x, c, y = (torch.from_numpy(np.ascontiguousarray(a)).float() for a in (run.channels, run.conditions, run.cp))
    mean, scale = y.mean(), y.std()
    y = (y - mean) / scale
    generator = torch_generator(run.seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATES[run.trial], weight_decay=1e-4)
    order = _batches(len(y), generator)
    start = time.process_time()
    first = {name: value.clone() for name, value in model.state_dict().items()}
    for _ in range(WARM_UP):
        _step(model, optimizer, x, c, y, next(order))
    each = (time.process_time() - start) / WARM_UP
    model.load_state_dict(first)
    total = max(WARM_UP, int((run.seconds - (time.process_time() - start)) / each))
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATES[run.trial], weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATES[run.trial], total_steps=total)
    for k in range(total):
        _step(model, optimizer, x, c, y, next(order))
        if k + 1 < total:
            schedule.step()
        if k >= WARM_UP and time.process_time() - start > 1.1 * run.seconds:
            break
    queries, conditions = (
        torch.from_numpy(np.ascontiguousarray(a)).float() for a in (run.queries, run.query_conditions)
    )
    with torch.no_grad():
        found = torch.cat([model(q, k) for q, k in zip(queries.split(64), conditions.split(64))])
    return (found * scale + mean).numpy()


def _batches(n: int, generator: torch.Generator) -> Any:
    while True:
        yield from torch.randperm(n, generator=generator).split(BATCH)


def _step(model: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor, c: Tensor, y: Tensor, rows: Tensor) -> None:
    optimizer.zero_grad()
    nn.functional.mse_loss(model(x[rows], c[rows]), y[rows]).backward()
    optimizer.step()


class PointwiseMLP(nn.Module):
    """(channels of one point, condition) -> cp; `n_channels` are read, the first three are the coordinates."""

    def __init__(self, n_channels: int, width: int = 128) -> None:
        super().__init__()
        self.n_channels = n_channels
        self.net = nn.Sequential(
            nn.Linear(n_channels + 2, width),
            nn.GELU(),
            nn.Linear(width, width),
            nn.GELU(),
            nn.Linear(width, width),
            nn.GELU(),
            nn.Linear(width, 1),
        )

    def forward(self, channels: Tensor, conditions: Tensor) -> Tensor:
        """(b, n_u, n_v, C), (b, 2) -> (b, n_u, n_v)."""
        found: Tensor = self.net(_with_conditions(channels[..., : self.n_channels], conditions)).squeeze(-1)
        return found


def _with_conditions(channels: Tensor, conditions: Tensor) -> Tensor:
    wide = conditions[:, None, None, :].expand(*channels.shape[:3], conditions.shape[-1])
    return torch.cat([channels, wide], dim=-1)


def grid_edges(n_u: int, n_v: int) -> Tensor:
    """Edges between neighbours of an n_u x n_v grid, both ways, (2, m); point (i, j) is number ``i n_v + j``.

    Examples
    --------
    >>> grid_edges(2, 2).T.tolist()
    [[0, 2], [1, 3], [0, 1], [2, 3], [2, 0], [3, 1], [1, 0], [3, 2]]
    """
    number = torch.arange(n_u * n_v).reshape(n_u, n_v)
    along_u = torch.stack([number[:-1].flatten(), number[1:].flatten()])
    along_v = torch.stack([number[:, :-1].flatten(), number[:, 1:].flatten()])
    edges = torch.cat([along_u, along_v], dim=1)
    return torch.cat([edges, edges.flip(0)], dim=1)


def _surface_network(name: str, n_channels: int, edges: Tensor, width: int = 64) -> nn.Module:
    """PointNet: two set-abstraction convolutions; GCN: four graph convolutions; then the maximum over the surface."""
    geometric: Any = require("torch_geometric.nn", "physics", what=name)

    def mlp(n_in: int) -> nn.Module:
        return nn.Sequential(nn.Linear(n_in, width), nn.GELU(), nn.Linear(width, width))

    class SurfaceNetwork(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            if name == "PointNet":
                widths: tuple[int, ...] = (n_channels + 2, width)
                self.layers = nn.ModuleList(geometric.PointNetConv(local_nn=mlp(w + 3)) for w in widths)
            else:
                widths = (n_channels + 2, width, width, width)
                self.layers = nn.ModuleList(geometric.GCNConv(w, width) for w in widths)
            self.head = nn.Sequential(
                nn.Linear(n_channels + 2 + 2 * width, 2 * width),
                nn.GELU(),
                nn.Linear(2 * width, 2 * width),
                nn.GELU(),
                nn.Linear(2 * width, 1),
            )

        def forward(self, channels: Tensor, conditions: Tensor) -> Tensor:
            b, n_u, n_v = channels.shape[:3]
            x = _with_conditions(channels, conditions).flatten(0, 2)
            shift = torch.arange(b).repeat_interleave(edges.shape[1]) * (n_u * n_v)
            graph = edges.repeat(1, b) + shift
            h, place = x, channels[..., :3].flatten(0, 2)
            for layer in self.layers:
                h = nn.functional.gelu(layer(h, place, graph) if name == "PointNet" else layer(h, graph))
            whole = h.unflatten(0, (b, n_u * n_v)).amax(dim=1, keepdim=True).expand(b, n_u * n_v, width)
            found: Tensor = self.head(torch.cat([x, h, whole.flatten(0, 1)], dim=-1))
            return found.reshape(b, n_u, n_v)

    return SurfaceNetwork()


def _boosting(run: PeerRun) -> NDArray[Any]:
    """Trees on the channels of a point, ten at a time until the time is over."""
    from sklearn.ensemble import HistGradientBoostingRegressor

    threads: Any = require("threadpoolctl", what="the boosting of trees")

    def table(channels: NDArray[Any], conditions: NDArray[Any]) -> NDArray[Any]:
        wide = np.broadcast_to(conditions[:, None, None, :], (*channels.shape[:3], conditions.shape[-1]))
        return np.concatenate([channels, wide], axis=-1).reshape(-1, channels.shape[-1] + conditions.shape[-1])

    x, y, rate = table(run.channels, run.conditions), run.cp.ravel(), BOOSTING_RATES[run.trial]
    model = HistGradientBoostingRegressor(
        learning_rate=rate, max_iter=10, early_stopping=False, warm_start=True, random_state=run.seed
    )
    start = time.process_time()
    with threads.threadpool_limits(1):
        model.fit(x, y)
        while time.process_time() - start < run.seconds:
            model.set_params(max_iter=model.max_iter + 10)
            model.fit(x, y)
        found = model.predict(table(run.queries, run.query_conditions))
    return found.reshape(len(run.queries), *run.cp.shape[1:])
