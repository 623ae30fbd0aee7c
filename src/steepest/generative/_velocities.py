r"""Velocities v(x, t): two that the data give in closed form, and two networks to train.

    noise to data    v = ( sum_j w_j x1_j - x ) / (1 - t),   w = softmax_j( -|x - t x1_j|^2 / (2 s^2 (1-t)^2) )
    pairs            v = sum_i w_i (x1_i - x) / (1 - t),     w = softmax_i( -|x - x_t^i|^2 / (2 h^2) )

The first is the exact minimizer of the loss for finitely many data and pi_0 = N(0, s^2 I): it reproduces the data. The
second is the estimate of Nadaraya and Watson in the paper (liu2023flow). Both sums run over the data in blocks, with
the largest exponent so far taken out, and never hold more than a block's distances.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from steepest.core.errors import at_least, check, nonnegative, positive
from steepest.core.random import Seed, torch_generator
from steepest.generative._samples import as_rows, check_pair, check_samples, per_sample
from steepest.generative._unet import UNetVelocity, label_rows

__all__ = ["GaussianSourceVelocity", "KernelVelocity", "MLPVelocity", "UNetVelocity"]

END = 1e-3  # ours: at t = 1 itself x - x1 is divided by this much instead of 0
NARROW = 1e-12  # at t = 1 the weights are those of this much time before: all on the nearest data point


def _softmax_mean(blocks: Iterable[tuple[Tensor, Tensor]], like: Tensor) -> Tensor:
    """Mean of the values (k, d) with weights softmax(exponents (n, k)), from blocks of both: (n, d)."""
    largest = like.new_full((len(like), 1), -math.inf)
    weight, mean = torch.zeros_like(largest), torch.zeros_like(like)
    for exponents, values in blocks:
        before, largest = largest, torch.maximum(largest, exponents.max(1, keepdim=True).values)
        w, kept = torch.exp(exponents - largest), torch.exp(before - largest)
        weight, mean = kept * weight + w.sum(1, keepdim=True), kept * mean + w @ values
    return mean / weight


def _towards(mean: Tensor, x: Tensor, t: Tensor) -> Tensor:
    """``(mean - x) / (1 - t)``; at t = 1, where there is no limit that x alone decides, over `END`."""
    left = torch.where(t < 1, 1 - t, END)
    return (mean - as_rows(x)).reshape(x.shape) / per_sample(left, x)


class GaussianSourceVelocity(nn.Module):
    """The velocity that is exact for the samples `x1` as pi_1, noise N(0, s^2 I) as pi_0 and independent pairs.

    Parameters
    ----------
    x1 : Tensor (m, *shape)
        The data, a buffer of the module.
    source_std : float
        s, the noise's standard deviation.
    chunk : int
        Data points whose distances are held at a time.

    Raises
    ------
    TypeError, ValueError
        Not a floating-point cloud, or an argument outside its limits.

    Notes
    -----
    At t = 1 the weights are all on the nearest data point, towards which the velocity points. A path arrives at one of
    the data: this model memorizes, and serves as the oracle in tests.

    Examples
    --------
    >>> velocity = GaussianSourceVelocity(torch.tensor([[-1.0], [3.0]]))
    >>> velocity(torch.zeros(1, 1), torch.zeros(1))  # at t = 0 towards the mean
    tensor([[1.]])
    """

    x1: Tensor

    def __init__(self, x1: Tensor, *, source_std: float = 1.0, chunk: int = 4096) -> None:
        super().__init__()
        check_samples("x1", x1)
        check("source_std", source_std, positive())
        check("chunk", chunk, at_least(1, integer=True))
        self.source_std, self.chunk = float(source_std), chunk
        self.register_buffer("x1", x1.detach())

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        """Velocity (n, *shape) at `x` (n, *shape) and times `t` (n,)."""
        check_pair("x", x, "x1", self.x1, same_length=False)
        # |x - t x1|^2 = t^2 |x/t - x1|^2: one matrix of distances although every row has its own time
        scaled = as_rows(x) / t.clamp_min(1e-6)[:, None]
        sharpness = t.square() / (2 * (self.source_std * (1 - t).clamp_min(NARROW)) ** 2)

        def blocks() -> Iterable[tuple[Tensor, Tensor]]:
            for data in as_rows(self.x1).split(self.chunk):
                distances = torch.cdist(scaled, data, compute_mode="donot_use_mm_for_euclid_dist")
                yield -sharpness[:, None] * distances.square(), data

        return _towards(_softmax_mean(blocks(), scaled), x, t)


class KernelVelocity(nn.Module):
    """The paper's velocity without training: a Gaussian kernel's average over the paths of pairs.

    Parameters
    ----------
    x0, x1 : Tensor (m, *shape)
        Pairs, buffers of the module.
    bandwidth : float
        h, the kernel's width in units of x.
    chunk : int
        Pairs whose distances are held at a time.

    Raises
    ------
    TypeError, ValueError
        Not two floating-point clouds of one kind and length, or an argument outside its limits.

    Examples
    --------
    >>> x0 = torch.tensor([[0.0], [10.0]])
    >>> velocity = KernelVelocity(x0, x0 + 2, bandwidth=0.1)
    >>> velocity(torch.tensor([[1.0]]), torch.tensor([0.5]))
    tensor([[2.]])
    """

    x0: Tensor
    x1: Tensor
    center: Tensor

    def __init__(self, x0: Tensor, x1: Tensor, *, bandwidth: float, chunk: int = 4096) -> None:
        super().__init__()
        check_samples("x0", x0)
        check_pair("x1", x1, "x0", x0, same_length=True)
        check("bandwidth", bandwidth, positive())
        check("chunk", chunk, at_least(1, integer=True))
        self.bandwidth, self.chunk = float(bandwidth), chunk
        self.register_buffer("x0", x0.detach())
        self.register_buffer("x1", x1.detach())
        # Distances come from products, which lose digits far from the origin.
        self.register_buffer("center", as_rows(torch.cat([x0, x1]).detach()).mean(0))

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        """Velocity (n, *shape) at `x` (n, *shape) and times `t` (n,)."""
        check_pair("x", x, "x1", self.x1, same_length=False)
        rows, s = as_rows(x) - self.center, t[:, None]

        def blocks() -> Iterable[tuple[Tensor, Tensor]]:
            pairs = as_rows(self.x0).split(self.chunk), as_rows(self.x1).split(self.chunk)
            for x0, x1 in zip(*pairs, strict=True):
                a, b = x0 - self.center, x1 - self.center
                # |x - x_t|^2 without |x|^2, which is the same for all pairs
                across = (1 - s) * (rows @ a.T) + s * (rows @ b.T)
                norms = (1 - s) ** 2 * a.square().sum(1) + s**2 * b.square().sum(1) + 2 * s * (1 - s) * (a * b).sum(1)
                yield (2 * across - norms) / (2 * self.bandwidth**2), x1

        return _towards(_softmax_mean(blocks(), rows), x, t)


class MLPVelocity(nn.Module):
    """A fully connected network on x and a few waves of t, for data without the structure of images.

    Parameters
    ----------
    dim : int
        d, numbers in a sample; samples of any shape with so many numbers are flattened.
    width, depth : int
        Of the hidden layers, with SiLU between them.
    n_frequencies : int
        The network sees t, cos(pi k t) and sin(pi k t) for k up to this number.
    n_classes : int
        With more than 0, labels y (n,) are a third argument of the call; -1 stands for no label.
    seed : int, torch.Generator or None
        Of the first weights; None draws fresh entropy.

    Raises
    ------
    TypeError, ValueError
        An argument outside its limits.

    Notes
    -----
    Width and depth are ours, chosen for clouds of 2 to 64 dimensions.

    Examples
    --------
    >>> network = MLPVelocity(2, seed=0)
    >>> network(torch.zeros(5, 2), torch.rand(5)).shape
    torch.Size([5, 2])
    """

    def __init__(
        self,
        dim: int,
        *,
        width: int = 128,
        depth: int = 3,
        n_frequencies: int = 8,
        n_classes: int = 0,
        seed: Seed = None,
    ) -> None:
        super().__init__()
        for name, value in {"dim": dim, "width": width, "depth": depth}.items():
            check(name, value, at_least(1, integer=True))
        check("n_frequencies", n_frequencies, nonnegative(integer=True))
        check("n_classes", n_classes, nonnegative(integer=True))
        self.dim, self.n_classes = dim, n_classes
        self.frequencies: Tensor
        self.register_buffer("frequencies", math.pi * torch.arange(1, n_frequencies + 1), persistent=False)
        sizes = [dim + 1 + 2 * n_frequencies + (width if n_classes else 0), *[width] * depth]
        with torch.device("meta"):  # shapes only: torch's own first weights would come from the global generator
            layers = [layer for a, b in itertools.pairwise(sizes) for layer in (nn.Linear(a, b), nn.SiLU())]
            self.layers = nn.Sequential(*layers, nn.Linear(width, dim))
            self.labels = nn.Embedding(n_classes + 1, width) if n_classes else None
        self.layers.to_empty(device="cpu")
        if self.labels is not None:
            self.labels.to_empty(device="cpu")
        self._first_weights(torch_generator(seed))

    @torch.no_grad()
    def _first_weights(self, generator: torch.Generator) -> None:
        """Torch's own bounds, 1/sqrt(inputs)."""
        for layer in self.layers:
            if isinstance(layer, nn.Linear):
                bound = layer.in_features**-0.5
                for parameter in (layer.weight, layer.bias):
                    parameter.uniform_(-bound, bound, generator=generator)
        if self.labels is not None:
            self.labels.weight.normal_(generator=generator)

    def forward(self, x: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        """Velocity (n, *shape) at `x` (n, *shape), times `t` (n,) and, with classes, labels `y` (n,)."""
        s = t[:, None]
        phases = s * self.frequencies
        inputs = [as_rows(x), s, torch.cos(phases), torch.sin(phases)]
        if self.labels is not None:
            inputs.append(self.labels(label_rows(y, t, self.n_classes)))
        return self.layers(torch.cat(inputs, 1)).reshape(x.shape)
