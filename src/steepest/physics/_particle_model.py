r"""What GIOROM and the graph network simulator share: inputs, skip, step of time, training and rollouts.

input     an embedding of the kind, W velocities (or the last one and W - 1 accelerations), distances to the walls
step      v <- v + acc_mean + acc_std * network(window),  x <- x + v            in units of a frame
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Self, cast

import torch
from torch import Tensor, nn

from steepest.core.errors import (
    Limit,
    at_least,
    boolean,
    check,
    check_params,
    kind_error,
    nonnegative,
    one_of,
    optional,
    positive,
    value_error,
)
from steepest.core.random import torch_generator
from steepest.physics._direction_training import copy_from_first_rank, shared_seed
from steepest.physics._particle_data import Frame, Statistics, as_trajectories, check_positions, check_types
from steepest.physics._particle_graph import radius_graph
from steepest.physics._particle_network import Graph, first_weights, graph_of, mlp
from steepest.physics._particle_training import SAMPLE, Batch, History, Windows, least_squares_skip, train

__all__ = ["ParticleModel"]

TYPE_DIM = 16
RADII = {2: 0.032, 3: 0.1}  # official, for water in 2D and between its settings in 3D
FIT_LIMITS: Mapping[str, Limit] = {
    "n_sample": SAMPLE,
    "noise": nonnegative(),
    "noise_unit": one_of("acceleration", "frame"),
    "steps": at_least(0, integer=True),
    "max_seconds": optional(positive()),
    "batch_size": at_least(1, integer=True),
    "lr": positive(),
    "lr_final": positive(),
    "position_weight": nonnegative(),
    "rollout_every": optional(at_least(1, integer=True)),
}


class ParticleModel(nn.Module):
    """A learned step of time for particles; subclasses say in `_process` how these hear of each other."""

    LIMITS: ClassVar[Mapping[str, Limit]] = {
        "dim": one_of(2, 3),
        "window": at_least(2, integer=True),
        "hidden": at_least(1, integer=True),
        "n_types": at_least(1, integer=True),
        "connectivity_radius": optional(positive()),
        "node_input": one_of("accelerations", "velocities"),
        "skip": optional(one_of("least_squares")),
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
            self.autoregression = nn.Linear((self.window - 1) * d, d, bias=False) if self.skip else None
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
        x = batch.positions[:, -1]
        if edges is None:
            edges = self._edges(x, batch)
        graph = graph_of(x, edges, self.connectivity_radius)
        past = self.normalized_accelerations(batch.positions)
        h = self.node_encoder(self._inputs(batch, past))
        found: Tensor = self.decoder(self._process(h, self.edge_encoder(graph.attributes), graph, batch))
        return found if self.autoregression is None else found + self.autoregression(past.flatten(1))

    def normalized_accelerations(self, positions: Tensor) -> Tensor:
        """Give the window's normalized accelerations (n, window - 1, d)."""
        return self.normalized(positions.diff(n=2, dim=1))

    def normalized(self, accelerations: Tensor) -> Tensor:
        """Subtract acc_mean_ and divide by acc_std_."""
        return (accelerations - self.acc_mean_.to(accelerations)) / self.acc_std_.to(accelerations)

    def trained_parameters(self) -> list[nn.Parameter]:
        """List the parameters that `fit` trains."""
        return list(self.parameters())

    def fit(
        self,
        trajectories: Any,
        *,
        n_sample: float | None = None,
        noise: float = 0.05,
        noise_unit: str = "acceleration",
        steps: int = 2000,
        max_seconds: float | None = None,
        batch_size: int = 2,
        lr: float = 1e-3,
        lr_final: float = 1e-5,
        position_weight: float = 0.0,
        rollout_every: int | None = None,
        seed: int | None = 0,
        callback: Callable[[int, History], Any] | None = None,
        process_group: Any = None,
    ) -> Self:
        """Learn from trajectories. The first call sets statistics and skip; a later one goes on training on these.

        Parameters
        ----------
        trajectories : list
            Arrays or Tensors (T, n, d) of the model's dtype (float32), or dicts of ``positions`` and ``types``.
        n_sample : int or float, optional
            Particles of each training window, drawn anew every time: a number, or a share of those there are (official
            0.2 to 0.25); all by default.
        noise : float
            Spread of the noise on the last velocity; that of the others grows towards it as a random walk's.
        noise_unit : "acceleration" or "frame"
            Whether `noise` is in units of the root mean square over the axes of the acceleration's standard deviation
            (ours), or in those of positions a frame (official: 3e-4, and 0 for elastic solids and plasticine).
        steps : int
            Steps of Adam; 0 leaves the autoregression (with ``skip="least_squares"``).
        max_seconds : float, optional
            Stop after so much processor time of this process. The learning rate then follows whatever is more advanced.
        batch_size : int
            Windows in a step; official 2 to 4.
        lr, lr_final : float
            First and last learning rate, exponentially in between (official 1e-4, falling tenfold in 5e6 steps).
        position_weight : float
            Of the mean squared error of the next positions in the loss. The official code has 1e9.
        rollout_every : int, optional
            Steps between measurements of 30 frames' mean squared error, ``history_["rollout"]``.
        seed : int or None
            Of windows, samples and noise.
        callback : callable, optional
            ``callback(step, history)`` after every step, from 1; StopIteration raised there ends the training.
        process_group
            None, ``"default"`` or a group of `torch.distributed`: each rank works on its windows of every batch.

        Returns
        -------
        self
            With `history_`: ``loss``, ``lr``, ``seconds`` of every step (processor time), and ``rollout``.

        Raises
        ------
        TypeError, ValueError
            An argument outside its limits; no trajectory, or one that is too short, not finite, outside the bounds.
        FloatingPointError
            The loss is not finite.
        """
        check_params(
            {
                "n_sample": n_sample, "noise": noise, "noise_unit": noise_unit, "steps": steps,
                "max_seconds": max_seconds, "batch_size": batch_size, "lr": lr, "lr_final": lr_final,
                "position_weight": position_weight, "rollout_every": rollout_every,
            },
            FIT_LIMITS,
        )  # fmt: skip
        scenes = as_trajectories(trajectories, self._frame(), self.window + 2)
        generator = torch_generator(shared_seed(seed, process_group))
        statistics = Statistics.of(scenes)
        sigma = float(noise)
        if noise_unit == "acceleration":
            sigma *= float(statistics.acc_std.square().mean().sqrt())
        windows = Windows(scenes, self.window, n_sample, sigma, generator)
        if not self.fitted:
            self._set_statistics(statistics, sigma)
            if self.autoregression is not None:
                last = self.decoder[-1]
                with torch.no_grad():
                    self.autoregression.weight.copy_(least_squares_skip(self, windows))
                    for parameter in last.parameters():
                        parameter.zero_()
            self.fitted.fill_(True)
        if process_group is not None:
            copy_from_first_rank(cast(Any, self), process_group)
        self.history_ = train(
            self,
            windows,
            steps=steps,
            max_seconds=max_seconds,
            batch_size=batch_size,
            lr=lr,
            lr_final=lr_final,
            position_weight=position_weight,
            rollout_every=rollout_every,
            callback=callback,
            process_group=process_group,
        )
        return self

    @torch.no_grad()
    def step(self, positions: Tensor, types: Tensor | None = None) -> Tensor:
        """Predict the next positions (n, d) from a window (n, window + 1, d).

        Raises
        ------
        RuntimeError
            Before `fit`.
        TypeError, ValueError
            As in `forward`.
        """
        self._check_fitted("step")
        return self._advance(self._scene(positions, types))

    @torch.no_grad()
    def rollout(self, initial: Tensor, n_steps: int, types: Tensor | None = None, *, clamp: bool = True) -> Tensor:
        """Step again and again, each frame from those predicted before.

        Parameters
        ----------
        initial : Tensor (n, window + 1, d)
        n_steps : int
        types : Tensor (n,), int64, optional
        clamp : bool
            Whether particles that leave the box are put back on its wall, to rest along that axis: the window then
            holds neither velocity nor acceleration there.

        Returns
        -------
        Tensor (n_steps, n, d)

        Raises
        ------
        RuntimeError
            Before `fit`; positions that are not finite, with the frame's number in the text and the frames before it in
            the exception's ``partial``.
        TypeError, ValueError
            As in `forward`; `n_steps` below 1.
        """
        self._check_fitted("rollout")
        check("n_steps", n_steps, positive(integer=True))
        check("clamp", clamp, boolean())
        return self.unroll(self._scene(initial, types), n_steps, clamp)

    @torch.no_grad()
    def unroll(self, batch: Batch, n_steps: int, clamp: bool) -> Tensor:
        """Do what `rollout` does, for several scenes at once and without checks of what comes in."""
        frames = batch.positions.new_empty(n_steps, len(batch.positions), self.dim)
        for k in range(n_steps):
            x = self._advance(batch)
            if not bool(torch.isfinite(x).all()):
                error = RuntimeError(f"positions are not finite in frame {k} of {n_steps}; the frames before: .partial")
                error.partial = frames[:k]  # type: ignore[attr-defined]
                raise error
            window = torch.cat((batch.positions[:, 1:], x[:, None]), 1)
            batch = batch._replace(positions=self.kept_inside(window) if clamp else window)
            frames[k] = batch.positions[:, -1]
        return frames

    def kept_inside(self, window: Tensor) -> Tensor:
        """Put particles of a window (..., W + 1, d) that end beyond a wall on it, at rest along that axis.

        A sudden stop in the window would look like a force, which the autoregression hands on.
        """
        x = window[..., -1:, :]
        inside = x.clamp(self.low.to(x), self.high.to(x))
        return torch.where(inside == x, window, inside)

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
        x = batch.positions[:, -1]
        walls = torch.cat((x - self.low, self.high - x), 1) / self.connectivity_radius
        return torch.cat((self.types(batch.types), motion.flatten(1), walls.clamp(-1.0, 1.0)), 1)

    def _edges(self, x: Tensor, batch: Batch) -> Tensor:
        """Join the particles of each graph, receivers in order."""
        counts = torch.bincount(batch.graph_index, minlength=batch.n_graphs).tolist()
        firsts = [sum(counts[:k]) for k in range(len(counts))]
        parts = x.detach().split(counts)
        return torch.cat(
            [radius_graph(part, self.connectivity_radius) + k for part, k in zip(parts, firsts, strict=True)], 1
        )

    def _advance(self, batch: Batch) -> Tensor:
        acceleration = self.accelerations(batch) * self.acc_std_ + self.acc_mean_
        x, before = batch.positions[:, -1], batch.positions[:, -2]
        velocity = x - before + acceleration
        return x + velocity

    def _set_statistics(self, statistics: Statistics, noise: float) -> None:
        for name in ("vel", "acc"):
            std = getattr(statistics, f"{name}_std").square().add(noise**2).sqrt()
            getattr(self, f"{name}_mean_").copy_(getattr(statistics, f"{name}_mean"))
            getattr(self, f"{name}_std_").copy_(torch.where(std > 0, std, 1.0))  # nothing moves along that axis

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

    def _check_fitted(self, what: str) -> None:
        if not self.fitted:
            raise RuntimeError(f"{what} needs the statistics of the data: call fit first, or load a fitted model")


def _box(bounds: Any, dim: int) -> list[list[float]]:
    """Give (lo, hi) of each axis, the unit box by default."""
    if bounds is None:
        return [[0.0, 1.0]] * dim
    box = torch.as_tensor(bounds, dtype=torch.float64)
    if box.shape != (dim, 2) or not bool(torch.isfinite(box).all()) or bool((box[:, 0] >= box[:, 1]).any()):
        raise value_error("bounds", f"of shape ({dim}, 2), finite, lo < hi on each axis", bounds)
    found: list[list[float]] = box.tolist()
    return found
