"""A U-Net as velocity of images: the residual network of DDPM++ (Song et al. 2021), as the paper trains it."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from steepest.core.errors import at_least, check, interval, nonnegative, value_error
from steepest.core.random import Seed, torch_generator

__all__ = ["UNetVelocity", "label_rows"]

TIME_SCALE = 999.0  # the official code feeds 999 t to the embedding
LONGEST_PERIOD = 10_000.0


def label_rows(y: Tensor | None, t: Tensor, n_classes: int) -> Tensor:
    """Rows of an embedding with `n_classes` + 1 rows, the last for no label (-1, or none given)."""
    if y is None:
        return torch.full(t.shape, n_classes, dtype=torch.long, device=t.device)
    return torch.where(y < 0, n_classes, y)


class UNetVelocity(nn.Module):
    """Residual U-Net with attention, the architecture DDPM++ of the paper's image experiments.

    Parameters
    ----------
    channels : int
        Of the images (n, channels, image_size, image_size).
    image_size : int
        Divisible by 2 for every level but the first.
    width : int
        Channels of the first level; official CIFAR-10: 128.
    multipliers : sequence of int
        Channels of each level, in units of `width` (official: 1, 2, 2, 2).
    blocks : int
        Residual blocks of a level; official CIFAR-10: 4.
    attention : sequence of int
        Image sizes at which there is attention (official: 16).
    dropout : float
        In the residual blocks; official CIFAR-10: 0.15.
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
    Blocks of BigGAN's kind, skips divided by sqrt(2), group normalization, sampling by factors of 2 without filters.
    The last layer starts at zero, so that the untrained velocity is 0.

    Examples
    --------
    >>> network = UNetVelocity(1, 8, width=8, multipliers=(1, 2), blocks=1, attention=(4,), seed=0)
    >>> network(torch.zeros(2, 1, 8, 8), torch.rand(2)).shape
    torch.Size([2, 1, 8, 8])
    """

    def __init__(
        self,
        channels: int,
        image_size: int,
        *,
        width: int = 64,
        multipliers: Sequence[int] = (1, 2, 2, 2),
        blocks: int = 2,
        attention: Sequence[int] = (16,),
        dropout: float = 0.0,
        n_classes: int = 0,
        seed: Seed = None,
    ) -> None:
        super().__init__()
        whole = {"channels": channels, "image_size": image_size, "width": width, "blocks": blocks}
        for name, value in whole.items():
            check(name, value, at_least(1, integer=True))
        for factor in multipliers:
            check("multipliers", factor, at_least(1, integer=True))
        check("dropout", dropout, interval(0, 1, high_open=True))
        check("n_classes", n_classes, nonnegative(integer=True))
        if width % 2:
            raise value_error("width", "even", width)
        if not multipliers or image_size % 2 ** (len(multipliers) - 1):
            raise value_error("image_size", f"divisible by 2^{len(multipliers) - 1}, once for each further level of "
                              "multipliers", image_size)  # fmt: skip
        self.n_classes = n_classes
        with torch.device("meta"):  # shapes only: torch's own first weights would come from the global generator
            self._build(channels, image_size, width, list(multipliers), blocks, set(attention), dropout)
        self.to_empty(device="cpu")
        half = width // 2
        waves = torch.exp(-math.log(LONGEST_PERIOD) * torch.arange(half) / max(half - 1, 1))
        self.waves: Tensor
        self.register_buffer("waves", waves, persistent=False)
        self._first_weights(torch_generator(seed))

    def _build(
        self, channels: int, size: int, width: int, factors: list[int], blocks: int, attention: set[int], dropout: float
    ) -> None:
        inner = 4 * width
        self.embed = nn.Sequential(nn.Linear(width, inner), nn.SiLU(), nn.Linear(inner, inner))
        self.labels = nn.Embedding(self.n_classes + 1, inner) if self.n_classes else None
        self.first = nn.Conv2d(channels, width, 3, padding=1)
        kept, now = [width], width  # channels of what the way up will read
        self.down = nn.ModuleList()
        for level, factor in enumerate(factors):
            for _ in range(blocks):
                self.down.append(_Block(now, factor * width, inner, dropout, attends=size in attention))
                now = factor * width
                kept.append(now)
            if level < len(factors) - 1:
                self.down.append(_Block(now, now, inner, dropout, resample="down"))
                kept.append(now)
                size //= 2
        self.middle = nn.ModuleList([_Block(now, now, inner, dropout, attends=True), _Block(now, now, inner, dropout)])
        self.up = nn.ModuleList()
        for level, factor in reversed(list(enumerate(factors))):
            for k in range(blocks + 1):
                last = k == blocks  # the official network attends once a level on the way up
                self.up.append(
                    _Block(
                        now + kept.pop(), factor * width, inner, dropout, attends=last and size in attention, joins=True
                    )
                )
                now = factor * width
            if level > 0:
                self.up.append(_Block(now, now, inner, dropout, resample="up"))
                size *= 2
        self.last = nn.Sequential(_norm(now), nn.SiLU(), nn.Conv2d(now, channels, 3, padding=1))

    @torch.no_grad()
    def _first_weights(self, generator: torch.Generator) -> None:
        """Uniform with variance 1/fan as in DDPM; zero for what closes a block, for attention and at the end."""
        for module in self.modules():
            if isinstance(module, nn.GroupNorm):
                module.weight.fill_(1.0)
                module.bias.zero_()
            elif isinstance(module, (nn.Conv2d, nn.Linear)):
                inputs, outputs = module.weight[0].numel(), module.weight[:, 0].numel()
                bound = math.sqrt(3 / ((inputs + outputs) / 2))
                module.weight.uniform_(-bound, bound, generator=generator)
                assert module.bias is not None
                module.bias.zero_()
            elif isinstance(module, nn.Embedding):
                module.weight.normal_(generator=generator)
        for block in self.modules():
            if isinstance(block, _Block):
                block.second.weight.zero_()
            elif isinstance(block, _Attention):
                block.out.weight.zero_()
        final = self.last[-1]
        assert isinstance(final, nn.Conv2d)
        final.weight.zero_()

    def forward(self, x: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        """Velocity (n, C, H, W) at `x` (n, C, H, W), times `t` (n,) and, with classes, labels `y` (n,)."""
        phases = (TIME_SCALE * t)[:, None] * self.waves
        embedding = self.embed(torch.cat([torch.sin(phases), torch.cos(phases)], 1))
        if self.labels is not None:
            embedding = embedding + self.labels(label_rows(y, t, self.n_classes))
        h = self.first(x)
        kept = [h]
        for block in self.down:
            h = block(h, embedding)
            kept.append(h)
        for block in self.middle:
            h = block(h, embedding)
        for block in self.up:
            h = block(torch.cat([h, kept.pop()], 1) if block.joins else h, embedding)
        return self.last(h)


def _norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(math.gcd(channels, min(channels // 4 or 1, 32)), channels, eps=1e-6)


class _Block(nn.Module):
    def __init__(
        self,
        inputs: int,
        outputs: int,
        inner: int,
        dropout: float,
        *,
        attends: bool = False,
        resample: str = "",
        joins: bool = False,
    ) -> None:
        super().__init__()
        self.resample, self.joins = resample, joins
        self.norms = nn.ModuleList([_norm(inputs), _norm(outputs)])
        self.first = nn.Conv2d(inputs, outputs, 3, padding=1)
        self.time = nn.Linear(inner, outputs)
        self.dropout = nn.Dropout(dropout)
        self.second = nn.Conv2d(outputs, outputs, 3, padding=1)
        self.skip = nn.Conv2d(inputs, outputs, 1) if inputs != outputs or resample else nn.Identity()
        self.attention = _Attention(outputs) if attends else nn.Identity()

    def _resampled(self, x: Tensor) -> Tensor:
        if self.resample == "down":
            return nn.functional.avg_pool2d(x, 2)
        return nn.functional.interpolate(x, scale_factor=2.0) if self.resample else x

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        silu = nn.functional.silu
        h = self.first(self._resampled(silu(self.norms[0](x))))
        h = h + self.time(silu(embedding))[:, :, None, None]
        h = self.second(self.dropout(silu(self.norms[1](h))))
        return self.attention((self.skip(self._resampled(x)) + h) / math.sqrt(2))


class _Attention(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = _norm(channels)
        self.qkv = nn.Linear(channels, 3 * channels)
        self.out = nn.Linear(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        pixels = self.norm(x).flatten(2).transpose(1, 2)  # (n, H W, C)
        q, k, v = self.qkv(pixels).chunk(3, dim=-1)
        found = self.out(nn.functional.scaled_dot_product_attention(q, k, v))
        return (x + found.transpose(1, 2).reshape(x.shape)) / math.sqrt(2)
