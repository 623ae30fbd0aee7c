r"""The network that proposes search directions, and the loss it is trained with.

    x = conv(r)                                                        linear, F filters
    x = relu conv(x);  x = pair(x);  x = relu conv(x)                  pair(x) = x + relu conv(relu conv(x))
    x = x + up(coarse_1(pool x))
    coarse_l(x) = pairs(x + up(coarse_{l+1}(pool x))), x = pairs(x)    coarse_L(x) = pairs(x)
    N(r) = w' pair(pair(x))                                            1 x 1

    loss = mean_b ||b - t A y||^2,   y = N(b),   t = (y'b) / (y'A y)

With L = 1 this is the paper's network: 3 x 3 (x 3) kernels, zero padding, average pooling by 2, nearest up-sampling.
Without biases it is positively homogeneous, N(c r) = c N(r) for c > 0.

Paper: kaneda2023deep; layers as in the official code. Departures, all ours: more than one coarse level; the first
weights (below); the obstacles. A second channel is one in solid cells, times the root mean square of r, and its first
weights are zero: beyond the domain it reads as a Dirichlet wall does, and a network trained without obstacles is the
one without the channel.

First weights. y'b = 0 is a plateau of the loss, at 1, from which some networks with Glorot's weights do not come down.
Here two filters carry max(r, 0) and max(-r, 0) from the first layer to the last, which takes their difference, and the
last two pairs blur them on the way; all that is added to them, and all else that the last layer reads, is a tenth of
Glorot's. A fresh network is then close to a linear smoother of r plus its coarse means: a loss of 0.2 to 0.4.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from steepest.core.errors import at_least, boolean, check, kind_error, one_of, optional, value_error
from steepest.core.random import Seed, torch_generator

__all__ = ["ConjugateDirectionNet", "dcdm_loss", "levels_for"]

HEAD_REACH, TAIL_REACH = 5, 4  # convolutions before the first pooling and after the last up-sampling
COARSEST = 8  # cells along the longest side that the coarsest level should have
MOST_LEVELS = 6
BRANCH = 0.1  # of Glorot's first weights where a pair is added, and in the last layer
BLUR = 3.0  # times a binomial mean that the last pairs add to what they get; it damps what nearest up-sampling leaves


class ConjugateDirectionNet(nn.Module):
    """Convolutional network from a residual to a search direction, on grids of any size.

    Parameters
    ----------
    dim : 2 or 3
    filters : int
        F on every level; 16 in the paper.
    levels : int, optional
        L, nested poolings. None is 1, the paper's network, which sees about 20 cells far; `DeepConjugateDirection`
        takes as many as leave about 8 cells.
    pairs : int
        Residual pairs on every coarse level; 3 in the paper at 64 cells a side.
    bias : bool
        False makes the network positively homogeneous; the official code keeps biases.
    use_mask : bool
        Read the mask as a channel and multiply the output by it. False is the paper's network.
    seed : int, torch.Generator or None
        Of the first weights: Glorot's uniform ones, as in the official code, but for two filters that carry the
        residual (see the module; none do with ``filters=1``).

    Raises
    ------
    ValueError
        Settings out of range.

    Examples
    --------
    >>> net = ConjugateDirectionNet(2, filters=4, levels=2, pairs=1)
    >>> r = torch.randn(1, 1, 10, 7, generator=torch.Generator().manual_seed(0))
    >>> net(r).shape, torch.allclose(net(3 * r), 3 * net(r), rtol=1e-4, atol=1e-6)
    (torch.Size([1, 1, 10, 7]), True)
    """

    def __init__(
        self,
        dim: int = 2,
        filters: int = 16,
        levels: int | None = None,
        pairs: int = 3,
        bias: bool = False,
        use_mask: bool = True,
        *,
        seed: Seed = 0,
    ) -> None:
        super().__init__()
        check("dim", dim, one_of(2, 3))
        check("filters", filters, at_least(1, integer=True))
        check("levels", levels, optional(at_least(1, integer=True)))
        check("pairs", pairs, at_least(1, integer=True))
        check("bias", bias, boolean())
        check("use_mask", use_mask, boolean())
        levels = 1 if levels is None else levels
        self.settings = {
            "dim": dim, "filters": filters, "levels": levels, "pairs": pairs, "bias": bias, "use_mask": use_mask
        }  # fmt: skip
        self.dim, self.levels, self.use_mask = dim, levels, use_mask
        with torch.device("meta"):  # shapes only: torch's own first weights would come from the global generator
            self.first = _convolution(dim, 2 if use_mask else 1, filters, bias)
            self.head = nn.Sequential(
                _Relu(dim, filters, bias), _Pair(dim, filters, bias), _Relu(dim, filters, bias)
            )  # fmt: skip
            self.coarse = _Coarse(dim, filters, bias, pairs, levels)
            self.tail = nn.Sequential(_Pair(dim, filters, bias), _Pair(dim, filters, bias))
            self.last = _convolution(dim, filters, 1, bias, kernel_size=1)
        self.to_empty(device="cpu")
        self._first_weights(torch_generator(seed))

    def forward(self, r: Tensor, mask: Tensor | None = None) -> Tensor:
        """Propose directions.

        Parameters
        ----------
        r : Tensor (B, 1, *shape)
            Residuals.
        mask : Tensor (B or 1, 1, *shape), optional
            One in fluid cells, zero in solid ones; all fluid by default.

        Returns
        -------
        Tensor (B, 1, *shape)

        Raises
        ------
        TypeError, ValueError
            Not a floating tensor of that form.
        """
        x, solid = self._channels(r, mask)
        fine = self._fine(x)
        fine = _sum(fine, _up(self.coarse(_pool(fine)), self.dim))
        return self._cropped(self.last(self.tail(fine)), r, solid)

    def tiled(self, r: Tensor, mask: Tensor | None, tile: int) -> Tensor:
        """Compute what `forward` does, the finest level in tiles of `tile` cells a side.

        Tiles overlap by the reach of the layers of the finest level, 9 cells, which are evaluated twice; coarser levels
        hold F / 2^dim numbers a cell as a whole.
        """
        check("tile", tile, at_least(2, integer=True))
        x, solid = self._channels(r, mask)
        shape, side = x.shape[2:], tile + tile % 2
        filters = self.last.weight.shape[1]
        pooled = x.new_empty(len(x), filters, *(n // 2 for n in shape))
        for own in _tiles(shape, side):
            around, inner = _grown(own, shape, HEAD_REACH)
            pooled[_cut([slice(s.start // 2, s.stop // 2) for s in own])] = _pool(self._fine(x[_cut(around)])[inner])
        coarse = self.coarse(pooled)
        out = x.new_empty(len(x), 1, *shape)
        for own in _tiles(shape, side):
            middle, inner = _grown(own, shape, TAIL_REACH)
            around, crop = _grown(middle, shape, HEAD_REACH)
            halved = coarse[_cut([slice(s.start // 2, s.stop // 2) for s in middle])]
            fine = self._fine(x[_cut(around)])[crop] + _up(halved, self.dim)
            out[_cut(own)] = self.last(self.tail(fine))[inner]
        return self._cropped(out, r, solid)

    def _fine(self, x: Tensor) -> Tensor:
        return self.head(self.first(x))

    def _cropped(self, out: Tensor, r: Tensor, solid: Tensor | None) -> Tensor:
        out = out[_cut([slice(0, n) for n in r.shape[2:]])]
        return out if solid is None else out * (1 - solid)

    def _channels(self, r: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Stack the network's channels and pad them by zeros to a multiple of 2^levels."""
        if not isinstance(r, Tensor) or not r.is_floating_point():
            raise kind_error("r", "a floating tensor", r)
        if r.ndim != self.dim + 2 or r.shape[1] != 1:
            raise value_error("r", f"of shape (B, 1, {', '.join('n' * self.dim)})", r)
        if mask is not None and (mask.shape[1:] != r.shape[1:] or len(mask) not in (1, len(r))):
            raise value_error("mask", f"of shape {tuple(r.shape)} or one sample of it", mask)
        x, solid = r, None
        if self.use_mask:
            solid = None if mask is None else 1 - mask.to(r)
            if solid is None:
                x = torch.cat((r, torch.zeros_like(r)), 1)
            else:
                size = r.square().mean(tuple(range(1, r.ndim)), keepdim=True).sqrt()
                x = torch.cat((r, solid.expand_as(r) * size), 1)
        edge = [pad for n in reversed(r.shape[2:]) for pad in (0, -n % 2**self.levels)]
        return nn.functional.pad(x, edge), solid

    @torch.no_grad()
    def _first_weights(self, generator: torch.Generator) -> None:
        for parameter in self.parameters():
            if parameter.ndim > 1:
                nn.init.xavier_uniform_(parameter, generator=generator)
            else:
                parameter.zero_()
        for pair in self.modules():
            if isinstance(pair, _Pair):
                added: Any = pair.body[1]
                added.convolution.weight.mul_(BRANCH)
        if self.last.weight.shape[1] > 1:
            self._carry_the_residual()
        if self.use_mask:
            self.first.weight[:, 1] = 0.0

    def _carry_the_residual(self) -> None:
        """Let filters 0 and 1 hold the positive and the negative part of r, blurred at the end."""
        binomial = torch.tensor([0.25, 0.5, 0.25])
        mean = binomial
        for _ in range(self.dim - 1):
            mean = mean[..., None] * binomial
        alone = torch.zeros_like(mean)
        alone[(1,) * self.dim] = 1.0
        signs = torch.tensor([1.0, -1.0])
        self.first.weight[:2] = 0.0
        self.first.weight[:2, 0] = signs.reshape(2, *[1] * self.dim) * alone
        for layer in self.head:
            if isinstance(layer, _Relu):
                _carry(layer, alone)
        pair: Any
        for pair in self.tail:
            _carry(pair.body[0], mean)
            _carry(pair.body[1], BLUR * mean)
        self.last.weight.mul_(BRANCH)
        self.last.weight[0, :2] = signs.reshape(2, *[1] * self.dim)


def dcdm_loss(y: Tensor, b: Tensor, A_apply: Callable[[Tensor], Tensor]) -> Tensor:
    r"""Mean squared residual after the exact step along y:  mean ||b - t A y||²,  t = (y'b) / (y'A y).

    Parameters
    ----------
    y : Tensor (B, 1, *shape)
        Directions; their lengths do not matter.
    b : Tensor (B, 1, *shape)
        Right-hand sides, unit vectors in training.
    A_apply : callable
        Multiplies such a tensor with the symmetric positive definite operator, differentiably.

    Returns
    -------
    Tensor
        Scalar >= 0; zero if and only if every y is parallel to A⁻¹ b. A direction without use, y'b = 0, gives ||b||²;
        the step is that of the A-norm, so that the residual's own norm, and the loss, can lie above it.

    Examples
    --------
    >>> b = torch.tensor([[[[0.6, 0.8]]]])
    >>> float(dcdm_loss(b / 2.0, b, lambda y: 2.0 * y))
    0.0
    """
    if y.shape != b.shape:
        raise value_error("y", f"of b's shape {tuple(b.shape)}", y)
    Ay = A_apply(y)
    y, b, Ay = y.flatten(1), b.flatten(1), Ay.flatten(1)
    t = (y * b).sum(1, keepdim=True) / (y * Ay).sum(1, keepdim=True)
    return (b - t * Ay).square().sum(1).mean()


def levels_for(shape: Sequence[int]) -> int:
    """Choose as many levels as leave about 8 cells along the longest side, 1 to 6."""
    return min(max(1, int(math.log2(max(shape) / COARSEST))), MOST_LEVELS)


class _Relu(nn.Module):
    """relu conv(x)."""

    def __init__(self, dim: int, filters: int, bias: bool) -> None:
        super().__init__()
        self.convolution = _convolution(dim, filters, filters, bias)

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.relu(self.convolution(x), inplace=True)


def _carry(layer: Any, kernel: Tensor) -> None:
    """Make the first two filters of a layer those of its input, convolved with a kernel."""
    weight = layer.convolution.weight
    weight[:2] = 0.0
    for c in (0, 1):
        weight[c, c] = kernel


class _Pair(nn.Module):
    """x + relu conv(relu conv(x))."""

    def __init__(self, dim: int, filters: int, bias: bool) -> None:
        super().__init__()
        self.body = nn.Sequential(_Relu(dim, filters, bias), _Relu(dim, filters, bias))

    def forward(self, x: Tensor) -> Tensor:
        return _sum(x, self.body(x))


class _Coarse(nn.Module):
    """A level below the finest: pairs, the next level if there is one, pairs again on the way up."""

    def __init__(self, dim: int, filters: int, bias: bool, pairs: int, levels: int) -> None:
        super().__init__()
        self.dim = dim
        self.down = nn.Sequential(*(_Pair(dim, filters, bias) for _ in range(pairs)))
        self.inner = _Coarse(dim, filters, bias, pairs, levels - 1) if levels > 1 else None
        self.up = nn.Sequential(*(_Pair(dim, filters, bias) for _ in range(pairs if levels > 1 else 0)))

    def forward(self, x: Tensor) -> Tensor:
        x = self.down(x)
        if self.inner is not None:
            x = self.up(_sum(x, _up(self.inner(_pool(x)), self.dim)))
        return x


def _convolution(dim: int, inputs: int, outputs: int, bias: bool, kernel_size: int = 3) -> Any:
    kind = nn.Conv2d if dim == 2 else nn.Conv3d
    return kind(inputs, outputs, kernel_size, padding=kernel_size // 2, bias=bias)


def _sum(x: Tensor, fresh: Tensor) -> Tensor:
    """Add; where no gradient is wanted, in the memory of `fresh`: new pages would cost as much as the sum."""
    return x + fresh if torch.is_grad_enabled() else fresh.add_(x)


def _pool(x: Tensor) -> Tensor:
    return nn.functional.avg_pool2d(x, 2) if x.ndim == 4 else nn.functional.avg_pool3d(x, 2)


def _up(x: Tensor, dim: int) -> Tensor:
    return nn.functional.interpolate(x, scale_factor=(2.0,) * dim, mode="nearest")


def _tiles(shape: Sequence[int], side: int) -> Iterator[list[slice]]:
    starts = (range(0, n, side) for n in shape)
    for corner in itertools.product(*starts):
        yield [slice(a, min(a + side, n)) for a, n in zip(corner, shape, strict=True)]


def _grown(own: Sequence[slice], shape: Sequence[int], reach: int) -> tuple[list[slice], tuple[Any, ...]]:
    """Widen a box by `reach`, rounded up to even, within the grid; return it, and where the old one lies in it."""
    reach += reach % 2
    wide = [slice(max(s.start - reach, 0), min(s.stop + reach, n)) for s, n in zip(own, shape, strict=True)]
    inner = [slice(s.start - w.start, s.stop - w.start) for s, w in zip(own, wide, strict=True)]
    return wide, _cut(inner)


def _cut(box: Sequence[slice]) -> tuple[Any, ...]:
    return (slice(None), slice(None), *box)
