"""From samples to a regression with noisy labels: noise drawn, inputs scaled and cut, kernel and rules measured."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from steepest.core.random import torch_generator
from steepest.generative._diffusion import OUProcess
from steepest.generative._kernel_path import KernelPath
from steepest.generative._stopping import critical_radius, early_stopping_step, label_noise, mallows_step

__all__ = ["Inputs", "Noised", "ScoreProblem", "Standardization", "draw_noised"]


@dataclass(frozen=True)
class Standardization:
    """One mean and one number for the scale: z = (x_0 - mean) / scale."""

    mean: Tensor  # (d,)
    scale: float

    @classmethod
    def of(cls, points: Tensor, standardize: bool) -> Self:
        if not standardize:
            return cls(torch.zeros_like(points[0]), 1.0)
        mean = points.mean(0)
        return cls(mean, float((points - mean).square().mean().sqrt()) or 1.0)

    def data(self, points: Tensor) -> Tensor:
        return (points - self.mean.to(points)) / self.scale

    def noisy(self, x: Tensor, t: Tensor) -> Tensor:
        """Of X_t, whose mean is a times that of the data."""
        return (x - OUProcess().alpha(t)[:, None] * self.mean.to(x)) / self.scale

    def back(self, z: Tensor) -> Tensor:
        return self.mean.to(z) + self.scale * z


@dataclass(frozen=True)
class Noised:
    """Noisings of data points, those of one point beside each other."""

    x: Tensor  # (rows, d), X_t
    t: Tensor  # (rows,)
    y: Tensor  # (rows, d), X_0: the labels


def draw_noised(z: Tensor, t_min: float, t_max: float, *, n_noisings: int = 1, seed: int) -> Noised:
    """Draw times evenly from [t_min, t_max] and X_t given each data point; the same draws for either precision."""
    g = torch_generator(seed)
    y = z.repeat_interleave(n_noisings, 0)
    t = t_min + (t_max - t_min) * torch.rand(len(y), generator=g, dtype=torch.float64)
    x, _ = OUProcess().perturb(y.double(), t, g)
    return Noised(x.to(y), t.to(y), y)


@dataclass(frozen=True)
class Inputs:
    """u = (Pi_R(x) / s, (t - t_min) / (t_max - t_min), 1): cut to a ball, one unit of length, a constant coordinate."""

    t_min: float
    t_max: float
    size: float  # s, root mean square of a coordinate of X_t
    radius: float  # R

    @classmethod
    def of(cls, x: Tensor, t_min: float, t_max: float, *, reach: float = 1.0) -> Self:
        """R = s (sqrt(d) + sqrt(2 log n)), beyond which n Gaussian vectors leave once at most; times `reach`."""
        n, d = x.shape
        size = float(x.square().mean().sqrt()) or 1.0
        return cls(t_min, t_max, size, reach * size * (math.sqrt(d) + math.sqrt(2 * math.log(n))))

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:  # (n, d), (n,) to (n, d + 2)
        length = torch.linalg.vector_norm(x, dim=1, keepdim=True)
        kept = (self.radius / length.clamp(min=torch.finfo(x.dtype).tiny)).clamp(max=1)
        tau = (t - self.t_min) / (self.t_max - self.t_min)
        return torch.cat([x * kept / self.size, tau[:, None], torch.ones_like(tau)[:, None]], 1)

    def cut(self, x: Tensor) -> float:
        """Share of points beyond the ball."""
        return float((torch.linalg.vector_norm(x, dim=1) > self.radius).double().mean())


@dataclass(frozen=True)
class ScoreProblem:
    """Everything that training and its rules need, in standardized units."""

    standard: Standardization
    inputs: Inputs
    train: Noised
    U: Tensor  # (rows, d + 2)
    path: KernelPath
    sigma: float  # noise of a label, per coordinate
    mallows_step: int
    radius: float  # B
    max_iter: int

    @classmethod
    def build(
        cls,
        points: Tensor,  # (n, d)
        *,
        t_min: float = 0.05,
        t_max: float = 3.0,
        standardize: bool = True,
        n_noisings: int = 1,
        n_landmarks: int | None = None,
        step_size: float | None = None,
        noise: float | None = None,
        radius: float | None = None,
        max_iter: int = 20_000,
        reach: float = 1.0,
        seeds: tuple[int, int] = (0, 1),
    ) -> Self:
        """Draw the noise and measure; None measures what theory takes as known. `seeds`: noise, landmarks."""
        standard = Standardization.of(points, standardize)
        train = draw_noised(standard.data(points), t_min, t_max, n_noisings=n_noisings, seed=seeds[0])
        inputs = Inputs.of(train.x, t_min, t_max, reach=reach)
        U = inputs(train.x, train.t)
        path = KernelPath.build(
            U.double(),
            train.y.double(),
            step_size=step_size,
            block=n_noisings,
            n_landmarks=n_landmarks,
            seed=seeds[1],
        )
        first = slice(None, None, n_noisings)  # noisings of one point share its label
        sigma = label_noise(U[first], train.y[first]) if noise is None else noise
        best = mallows_step(path.flow, sigma, max_iter=max_iter, block=n_noisings) if sigma > 0 else max_iter
        size = float(path.flow.norms(best).max()) if radius is None else radius
        return cls(standard, inputs, train, U, path, sigma, best, size, max_iter)

    @property
    def critical_radius(self) -> float:
        """Delta; 0 without noise, or where the labels are all zero."""
        if self.sigma == 0 or self.radius == 0:
            return 0.0
        return critical_radius(self.path.eigenvalues, self.sigma, radius=self.radius)

    @property
    def error_bound(self) -> float:
        """12 B^2 delta^2, per coordinate."""
        return 12 * self.radius**2 * self.critical_radius**2

    @property
    def kernel_step(self) -> int:
        """The rule of theory: 0 where the labels are all zero, `max_iter` where they have no noise."""
        if self.sigma == 0 or self.radius == 0:
            return self.max_iter if self.radius else 0
        return early_stopping_step(
            self.path.eigenvalues,
            self.sigma,
            step_size=self.path.step_size,
            radius=self.radius,
            max_iter=self.max_iter,
        )
