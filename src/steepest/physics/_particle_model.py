r"""What GIOROM and the graph network simulator do with their networks: training, the step of time and rollouts.

step      v <- v + acc_mean + acc_std * network(window),  x <- x + v            in units of a frame
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Self, cast

import torch
from torch import Tensor, nn

from steepest.core.errors import (
    Limit,
    at_least,
    boolean,
    check,
    check_params,
    nonnegative,
    one_of,
    optional,
    positive,
)
from steepest.core.random import torch_generator
from steepest.physics._direction_training import copy_from_first_rank, shared_seed
from steepest.physics._particle_data import Statistics, as_trajectories
from steepest.physics._particle_forward import ParticleNetwork
from steepest.physics._particle_training import SAMPLE, Batch, History, Windows, least_squares_skip, train

__all__ = ["ParticleModel"]

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
    "unroll": at_least(0, integer=True),
    "rollout_every": optional(at_least(1, integer=True)),
}


class ParticleModel(ParticleNetwork):
    """A learned step of time for particles; what `GIOROM` and `GNS` have in common."""

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
        unroll: int = 0,
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
        unroll : int
            Half of the batches first go on by the model's own step, 1 to so many frames, and then learn the way back to
            the true velocity. 0 as in the papers; 3 makes rollouts better and a step of training 1.3 times as long.
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
                "position_weight": position_weight, "unroll": unroll, "rollout_every": rollout_every,
            },
            FIT_LIMITS,
        )  # fmt: skip
        scenes = as_trajectories(trajectories, self._frame(), self.window + 2 + unroll)
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
            unroll=unroll,
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
            batch = self.moved(batch, clamp)
            frames[k] = batch.positions[:, -1]
            if not bool(torch.isfinite(frames[k]).all()):
                error = RuntimeError(f"positions are not finite in frame {k} of {n_steps}; the frames before: .partial")
                error.partial = frames[:k]  # type: ignore[attr-defined]
                raise error
        return frames

    def moved(self, batch: Batch, clamp: bool = True) -> Batch:
        """Step every window on by a frame."""
        window = torch.cat((batch.positions[:, 1:], self._advance(batch)[:, None]), 1)
        return batch._replace(positions=self.kept_inside(window) if clamp else window)

    def kept_inside(self, window: Tensor) -> Tensor:
        """Put particles of a window (..., W + 1, d) that end beyond a wall on it, at rest along that axis.

        A sudden stop in the window would look like a force, which the autoregression hands on.
        """
        x = window[..., -1:, :]
        inside = x.clamp(self.low.to(x), self.high.to(x))
        return torch.where(inside == x, window, inside)

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

    def _check_fitted(self, what: str) -> None:
        if not self.fitted:
            raise RuntimeError(f"{what} needs the statistics of the data: call fit first, or load a fitted model")
