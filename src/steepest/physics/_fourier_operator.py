r"""Fourier neural operator: layers that mix channels wave by wave, for fields on a regular grid of any dimension.

    v <- σ( F⁻¹(R · F v) + W v + b ),   R one matrix of channels for each of the lowest waves, W one for all points

Paper: chalapathi2024scaling, Sec. 4 (its network, with the activation after every layer); R starts as complex normal
numbers of variance 2/(channels in + out) in each part, as in the official code.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from steepest.core.errors import at_least, check, kind_error, nonnegative, one_of, optional, value_error
from steepest.core.random import torch_generator

__all__ = ["FNO"]


class FNO(nn.Module):
    """Fourier neural operator on channels-last fields: (B, *grid, dim_in) to (B, *grid, dim_out).

    Parameters
    ----------
    dim_in, dim_out : int
        Channels. For a hard constraint `dim_out` is N, the number of basis fields; `operator_input` makes the input.
    modes : sequence of int
        Waves kept along each axis of the grid; its length is the number of axes. The paper: 8 each.
    widths : sequence of int
        Channels between the layers: the first is the lifting's, each further one a spectral layer's. The paper:
        (32, 64, 64, 64, 64, 64) for one dimension and time.
    head : int
        Hidden channels of the last two linear maps. The paper: 128, 256 for two dimensions and time.
    output_activation : "gelu" or None
        After the last map; "gelu", the default, is the paper's for hard constraints.
    padding : sequence of float, optional
        Zeros that the transforms see behind the end of each axis, as shares of its length; none by default (the paper).
        Without them the waves are periodic: early in training the field at the last time resembles that at the first.
        0.5 for axes that are not periodic, time above all, costs nothing.
    seed : int, torch.Generator or None
        Of the first weights.

    Raises
    ------
    ValueError, TypeError
        A size outside its limits; in `forward` an input of another number of axes or channels, or a grid too small for
        the modes.

    Examples
    --------
    >>> net = FNO(3, 16, (4, 4), (8, 8, 8), 32)
    >>> net(torch.zeros(2, 12, 16, 3)).shape
    torch.Size([2, 12, 16, 16])
    """

    def __init__(
        self,
        dim_in: int,
        dim_out: int,
        modes: Sequence[int],
        widths: Sequence[int],
        head: int,
        *,
        output_activation: str | None = "gelu",
        padding: Sequence[float] | None = None,
        seed: int | torch.Generator | None = 0,
    ) -> None:
        super().__init__()
        for name, size in (("dim_in", dim_in), ("dim_out", dim_out), ("head", head)):
            check(name, size, at_least(1, integer=True))
        for name, sizes, least in (("modes", modes, 1), ("widths", widths, 2)):
            if not isinstance(sizes, (tuple, list)):
                raise kind_error(name, "a sequence of integers", sizes)
            if len(sizes) < least:
                raise value_error(name, f"{least} or more integers", sizes)
            for size in sizes:
                check(name, size, at_least(1, integer=True))
        check("output_activation", output_activation, optional(one_of("gelu")))
        if padding is not None and not isinstance(padding, (tuple, list)):
            raise kind_error("padding", "None or a sequence of numbers", padding)
        if padding is not None and len(padding) != len(modes):
            raise value_error("padding", f"{len(modes)} numbers, one an axis of the grid", padding)
        behind = tuple(padding or (0.0,) * len(modes))
        for share in behind:
            check("padding", share, nonnegative())
        self.modes, self.output_activation, self.dim_in = tuple(modes), output_activation, dim_in
        with torch.device("meta"):  # shapes only: torch's own first weights would come from the global generator
            self.lift = nn.Linear(dim_in, widths[0])
            self.layers = nn.ModuleList(SpectralLayer(a, b, self.modes, behind) for a, b in itertools.pairwise(widths))
            self.hidden, self.output = nn.Linear(widths[-1], head), nn.Linear(head, dim_out)
        self.to_empty(device="cpu")
        self._first_weights(torch_generator(seed))

    def forward(self, x: Tensor) -> Tensor:
        """Basis fields (B, *grid, dim_out) from channels (B, *grid, dim_in)."""
        d = len(self.modes)
        if x.ndim != d + 2 or x.shape[-1] != self.dim_in:
            raise value_error("x", f"of {d + 2} axes, the last of size {self.dim_in}", x)
        for m, n in zip(self.modes[:-1], x.shape[1:-2], strict=True):
            if 2 * m > n:
                raise value_error("modes", f"at most half of a grid of {n}", m)
        if self.modes[-1] > x.shape[-2] // 2 + 1:
            raise value_error("modes", f"at most {x.shape[-2] // 2 + 1} on a grid of {x.shape[-2]}", self.modes[-1])
        v = self.lift(x)
        for layer in self.layers:
            v = nn.functional.gelu(layer(v))
        y = self.output(nn.functional.gelu(self.hidden(v)))
        return nn.functional.gelu(y) if self.output_activation == "gelu" else y

    @torch.no_grad()
    def _first_weights(self, generator: torch.Generator) -> None:
        for module in self.modules():
            if isinstance(module, nn.Linear):  # torch's own rule
                bound = 1 / math.sqrt(module.in_features)
                module.weight.uniform_(-bound, bound, generator=generator)
                module.bias.uniform_(-bound, bound, generator=generator)
            elif isinstance(module, SpectralLayer):
                a, b = module.spectral.shape[1:3]
                module.spectral.normal_(0.0, math.sqrt(2 / (a + b)), generator=generator)


class SpectralLayer(nn.Module):
    """``F⁻¹(R · F v) + W v + b`` for v (B, *grid, width); R is kept as pairs of real numbers.

    Few waves are kept, so F and F⁻¹ are products with their cosines and sines, axis by axis: fewer operations than a
    fast transform of all waves, and its numbers to rounding. Zeros behind the grid then only change the wavelengths.
    """

    def __init__(self, width_in: int, width_out: int, modes: tuple[int, ...], padding: tuple[float, ...]) -> None:
        super().__init__()
        self.modes, self.padding = modes, padding
        corners = 2 ** (len(modes) - 1)  # signs of the waves along all axes but the last, whose transform is half
        self.spectral = nn.Parameter(torch.empty(corners, width_in, width_out, *modes, 2))
        self.pointwise = nn.Linear(width_in, width_out)

    def forward(self, v: Tensor) -> Tensor:
        """(B, *grid, width_in) to (B, *grid, width_out)."""
        m, axes = self.modes[-1], range(1, len(self.modes))
        *others, n = (size + round(share * size) for size, share in zip(v.shape[1:-1], self.padding, strict=True))
        angles = _angles(torch.arange(m), n)[:, : v.shape[-2]]
        cosines, sines = (x.to(v) for x in (angles.cos(), angles.sin()))
        weights = torch.where((torch.arange(m) == 0) | (2 * torch.arange(m) == n), 1.0, 2.0).to(v)[:, None] / n
        parts = torch.cat((cosines, -sines)) @ v  # (B, *others, 2 m, width_in)
        y = torch.complex(parts[..., :m, :], parts[..., m:, :])
        transforms = []
        for axis, size, kept in zip(axes, others, self.modes, strict=False):
            angles = _angles(torch.cat((torch.arange(kept), torch.arange(-kept, 0))), size)[:, : v.shape[axis]]
            transforms.append(torch.polar(torch.ones_like(angles), -angles).to(y))
        for axis, F in zip(axes, transforms, strict=True):
            y = torch.tensordot(F, y, ([1], [axis])).movedim(0, axis)
        waves = "cdefgh"[: len(self.modes)]
        y = torch.einsum(f"b{waves}i,io{waves}->b{waves}o", y, self._waves())
        for axis, size, F in zip(axes, others, transforms, strict=True):
            y = torch.tensordot(F.mH / size, y, ([1], [axis])).movedim(0, axis)
        parts = torch.cat((y.real, y.imag), -2)
        back = torch.cat((weights * cosines, -weights * sines)).mT  # (n, 2 m)
        return back @ parts + self.pointwise(v)

    def _waves(self) -> Tensor:
        """R (width_in, width_out, *waves), waves in the order 0, 1, ..., -2, -1 along all axes but the last."""
        R = torch.view_as_complex(self.spectral)
        for axis in range(len(self.modes) - 1, 0, -1):  # the last sign first: it varies fastest
            R = torch.cat((R[::2], R[1::2]), 2 + axis)
        return R[0]


def _angles(waves: Tensor, n: int) -> Tensor:
    return 2 * math.pi / n * (torch.outer(waves, torch.arange(n)) % n).double()
