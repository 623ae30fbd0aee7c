r"""The network of a particle model: settings, inputs, skip and forward pass, checks of what comes in, files.

input     an embedding of the kind, W velocities (or the last one and W - 1 accelerations), distances to the walls
output    the normalized acceleration: decoder(h) + A [normalized accelerations]
          with skip="neighbors" A also has: mean over neighbors minus own of (accelerations, last velocity); 1; nearness
          to each wall, (1 - distance / R) in [0, 1]; the same times the last velocity along that axis
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from steepest.core.errors import (
    Limit,
    at_least,
    boolean,
    check_params,
    kind_error,
    one_of,
    optional,
    positive,
    value_error,
)
from steepest.core.random import torch_generator
from steepest.physics._particle_data import Frame, check_positions, check_types
from steepest.physics._particle_graph import radius_graph
from steepest.physics._particle_network import Graph, first_weights, graph_of, mlp
from steepest.physics._particle_training import Batch, History

__all__ = ["ParticleNetwork"]

TYPE_DIM = 16
RADII = {2: 0.032, 3: 0.1}  # official, for water in 2D and between its settings in 3D


class ParticleNetwork(nn.Module):
    """Predicts accelerations of particles; subclasses say in `_process` how these hear of each other."""

    LIMITS: ClassVar[Mapping[str, Limit]] = {
        "dim": one_of(2, 3),
        "window": at_least(2, integer=True),
        "hidden": at_least(1, integer=True),
        "n_types": at_least(1, integer=True),
        "connectivity_radius": optional(positive()),
        "node_input": one_of("accelerations", "velocities"),
        "skip": optional(one_of("least_squares", "neighbors")),
        "normalize_velocity": boolean(),
    }

    low: Tensor
    high: Tensor
    vel_mean_: Tensor
    vel_std_: Tensor
    acc_mean_: Tensor
    acc_std_: Tensor
    fitted: Tensor
    history_: History

    def __init__(self, seed: int | torch.Generator | None, settings: dict[str, Any]) -> None:
        super().__init__()
        check_params(settings, self.LIMITS)
        self.dim: int = settings["dim"]
        self.window: int = settings["window"]
        self.hidden: int = settings["hidden"]
        self.n_types: int = settings["n_types"]
        self.node_input: str = settings["node_input"]
        self.skip: str | None = settings["skip"]
        self.normalize_velocity: bool = settings["normalize_velocity"]
        radius = settings["connectivity_radius"]
        self.connectivity_radius = RADII[self.dim] if radius is None else float(radius)
        box = _box(settings["bounds"], self.dim)
        self.settings = {**settings, "bounds": box}
        low, high = (torch.tensor(side, dtype=torch.float32) for side in zip(*box, strict=True))
        with torch.device("meta"):  # shapes only: torch's own first weights would come from the global generator
            d, hidden = self.dim, self.hidden
            self.types = nn.Embedding.from_pretrained(torch.empty(self.n_types, TYPE_DIM), freeze=False)
            self.node_encoder = mlp(TYPE_DIM + d * (self.window + 2), hidden, hidden, hidden, norm=True)
            self.edge_encoder = mlp(d + 1, hidden, hidden, hidden, norm=True)
            self.decoder = mlp(hidden, hidden, hidden, d)
            n_linear = d * (self.window - 1) + (d * (self.window + 4) + 1) * (self.skip == "neighbors")
            self.autoregression = nn.Linear(n_linear, d, bias=False) if self.skip else None
            self._build(box)
        self.to_empty(device="cpu")
        first_weights(self, torch_generator(seed))
        if self.autoregression is not None:
            nn.init.zeros_(self.autoregression.weight)
        self.register_buffer("low", low, persistent=False)
        self.register_buffer("high", high, persistent=False)
        for name in ("vel", "acc"):
            self.register_buffer(f"{name}_mean_", torch.zeros(self.dim))
            self.register_buffer(f"{name}_std_", torch.ones(self.dim))
        self.register_buffer("fitted", torch.tensor(False))
        self.history_ = {}

    def _build(self, box: list[list[float]]) -> None:
        raise NotImplementedError

    def _process(self, h: Tensor, e: Tensor, graph: Graph, batch: Batch) -> Tensor:
        raise NotImplementedError

    def forward(self, positions: Tensor, types: Tensor | None = None, edges: Tensor | None = None) -> Tensor:
        """Predict the normalized acceleration.

        Parameters
        ----------
        positions : Tensor (n, window + 1, d)
            The last frames, the newest last; of the model's dtype and device.
        types : Tensor (n,), int64, optional
            Kinds of the particles, all 0 by default.
        edges : Tensor (2, E), int64, optional
            Senders and receivers; by default `radius_graph` of the last frame, self loops included.

        Returns
        -------
        Tensor (n, d)
            ``(acceleration - acc_mean_) / acc_std_``; before `fit` the statistics are 0 and 1.

        Raises
        ------
        TypeError, ValueError
            Another shape, dtype or device, values that are not finite or more than 5 % outside the bounds, kinds or
            edges out of range.
        """
        batch = self._scene(positions, types)
        if edges is not None:
            n = len(positions)
            if not isinstance(edges, Tensor) or edges.dtype != torch.int64:
                raise kind_error("edges", "an int64 tensor (2, E)", edges)
            if edges.ndim != 2 or len(edges) != 2 or bool(((edges < 0) | (edges >= n)).any()):
                raise value_error("edges", f"of shape (2, E) with entries in [0, {n})", edges)
            edges = edges[:, edges[1].argsort(stable=True)]
        return self.accelerations(batch, edges)

    def accelerations(self, batch: Batch, edges: Tensor | None = None) -> Tensor:
        """Do what `forward` does, for several scenes at once and without checks."""
        graph = self._graph(batch, edges)
        past = self.normalized_accelerations(batch.positions)
        h = self.node_encoder(self._inputs(batch, past))
        found: Tensor = self.decoder(self._process(h, self.edge_encoder(graph.attributes), graph, batch))
        if self.autoregression is None:
            return found
        return found + self.autoregression(self._linear_inputs(batch, past, graph))

    def linear_inputs(self, batch: Batch) -> Tensor:
        """Give what the linear skip sees of each particle."""
        graph = self._graph(batch) if self.skip == "neighbors" else None
        return self._linear_inputs(batch, self.normalized_accelerations(batch.positions), graph)

    def normalized_accelerations(self, positions: Tensor) -> Tensor:
        """Give the window's normalized accelerations (n, window - 1, d)."""
        return self.normalized(positions.diff(n=2, dim=1))

    def normalized(self, accelerations: Tensor) -> Tensor:
        """Subtract acc_mean_ and divide by acc_std_."""
        return (accelerations - self.acc_mean_.to(accelerations)) / self.acc_std_.to(accelerations)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write settings, weights, statistics and history; `load` reads them without running code from the file."""
        weights = {name: value.detach().cpu() for name, value in self.state_dict().items()}
        torch.save({"settings": self.settings, "weights": weights, "history": self.history_}, path)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """Read what `save` wrote, onto the CPU."""
        content = torch.load(path, map_location="cpu", weights_only=True)
        model = cls(**content["settings"])
        model.to(content["weights"]["acc_std_"].dtype).load_state_dict(content["weights"])
        model.history_ = content["history"]
        return model

    def _inputs(self, batch: Batch, past: Tensor) -> Tensor:
        """Give each particle's 16 + d (W + 2) numbers."""
        velocities = batch.positions.diff(dim=1)
        if self.node_input == "accelerations":
            motion = torch.cat(((velocities[:, -1:] / self.vel_std_), past), 1)
        else:
            motion = (velocities - self.vel_mean_) / self.vel_std_ if self.normalize_velocity else velocities
        return torch.cat((self.types(batch.types), motion.flatten(1), self._walls(batch).clamp(-1.0, 1.0)), 1)

    def _linear_inputs(self, batch: Batch, past: Tensor, graph: Graph | None) -> Tensor:
        own = past.flatten(1)
        if graph is None or self.skip != "neighbors":
            return own
        velocity = (batch.positions[:, -1] - batch.positions[:, -2]) / self.vel_std_
        motion = torch.cat((own, velocity), 1)
        beside = graph.to_receivers.T(graph.to_senders(motion) - graph.to_receivers(motion)) / graph.degrees
        near = (1 - self._walls(batch)).clamp(0.0, 1.0)
        return torch.cat((own, beside, torch.ones_like(own[:, :1]), near, near * velocity.repeat(1, 2)), 1)

    def _walls(self, batch: Batch) -> Tensor:
        """Distances (n, 2 d) to the lower and the upper walls in units of R."""
        x = batch.positions[:, -1]
        return torch.cat((x - self.low, self.high - x), 1) / self.connectivity_radius

    def _graph(self, batch: Batch, edges: Tensor | None = None) -> Graph:
        x = batch.positions[:, -1]
        return graph_of(x, self._edges(x, batch) if edges is None else edges, self.connectivity_radius)

    def _edges(self, x: Tensor, batch: Batch) -> Tensor:
        """Join the particles of each graph, receivers in order; one search, the graphs apart along a further axis."""
        apart = (2 * self.connectivity_radius) * batch.graph_index.to(x)[:, None]
        return radius_graph(torch.cat((x.detach(), apart), 1), self.connectivity_radius)

    def _scene(self, positions: Any, types: Any) -> Batch:
        """Check a window of one scene."""
        if not isinstance(positions, Tensor):
            raise kind_error("positions", f"a tensor (n, {self.window + 1}, {self.dim})", positions)
        if positions.ndim != 3 or not len(positions) or positions.shape[1:] != (self.window + 1, self.dim):
            raise value_error(
                "positions",
                f"of shape (n, {self.window + 1}, {self.dim}): window + 1 frames of each particle",
                positions,
            )
        if positions.device != self.low.device:
            raise value_error("positions", f"on {self.low.device}, where the model is", str(positions.device))
        check_positions("positions", positions, self._frame())
        n, device = len(positions), positions.device
        kinds = check_types("types", types, n, self.n_types, device)
        if kinds.device != device:
            raise value_error("types", f"on {device}, where the positions are", str(kinds.device))
        return Batch(positions, kinds, torch.zeros(n, dtype=torch.int64, device=device), 1)

    def _frame(self) -> Frame:
        return Frame(self.dim, self.low.dtype, self.low, self.high, self.n_types)


def _box(bounds: Any, dim: int) -> list[list[float]]:
    """Give (lo, hi) of each axis, the unit box by default."""
    if bounds is None:
        return [[0.0, 1.0]] * dim
    box = torch.as_tensor(bounds, dtype=torch.float64)
    if box.shape != (dim, 2) or not bool(torch.isfinite(box).all()) or bool((box[:, 0] >= box[:, 1]).any()):
        raise value_error("bounds", f"of shape ({dim}, 2), finite, lo < hi on each axis", bounds)
    found: list[list[float]] = box.tolist()
    return found
