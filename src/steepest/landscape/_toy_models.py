r"""The two models for which stability of SGD bounds a norm: a two-layer ReLU network and a diagonal linear one.

For inputs x ~ N(0, I_d) and the loss (f - y)^2 / 2, the population's Gauss-Newton matrix has the trace

    f(x) = sum_j a_j relu(b_j^T x):   tr H = 1/2 sum_j (|b_j|^2 + d a_j^2)  >=  sqrt(d) sum_j |a_j| |b_j|,
    f(x) = <u^2 - v^2, x>:            tr H = 4 sum_j (u_j^2 + v_j^2)        >=  4 |u^2 - v^2|_1,

with equality when balanced, so that ``tr H <= 2 / lr`` (stability for batches of one) bounds the path norm by
``2 / (lr sqrt(d))`` and the l1 norm by ``1 / (2 lr)``.

Paper: wu2023implicit, Sections 4 and 5.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from steepest.core.errors import check, positive
from steepest.core.random import torch_generator

__all__ = ["DiagonalLinear", "TwoLayerReLU"]


class TwoLayerReLU(nn.Module):
    """``f(x) = sum_j a_j relu(b_j^T x)``, without biases.

    Parameters
    ----------
    in_features : int
        d.
    width : int
        Number of hidden units m.
    dtype : torch.dtype, optional
    seed : int, torch.Generator or None
        Of the initial weights: entries of b from N(0, 1/d), of a from N(0, 1/m). None draws fresh entropy.

    Attributes
    ----------
    b : Parameter of shape (width, in_features)
    a : Parameter of shape (width,)

    Examples
    --------
    >>> net = TwoLayerReLU(3, 5, seed=0)
    >>> net(torch.zeros(2, 3)).shape
    torch.Size([2, 1])
    >>> net.expected_trace() >= 3**0.5 * net.parameter_norm()
    True
    """

    def __init__(
        self,
        in_features: int,
        width: int,
        *,
        dtype: torch.dtype | None = None,
        seed: int | torch.Generator | None = None,
    ) -> None:
        super().__init__()
        check("in_features", in_features, positive(integer=True))
        check("width", width, positive(integer=True))
        generator = torch_generator(seed)
        self.in_features, self.width = in_features, width
        b = torch.randn(width, in_features, generator=generator, dtype=dtype) / math.sqrt(in_features)
        self.b = nn.Parameter(b)
        self.a = nn.Parameter(torch.randn(width, generator=generator, dtype=dtype) / math.sqrt(width))

    def forward(self, x: Tensor) -> Tensor:  # (N, d) -> (N, 1)
        """Evaluate the network."""
        return (torch.relu(x @ self.b.T) @ self.a).unsqueeze(-1)

    def parameter_norm(self) -> float:
        """Give the path norm ``sum_j |a_j| |b_j|``."""
        return float((self.a.detach().abs() * self.b.detach().norm(dim=1)).sum())

    def expected_trace(self) -> float:
        """Give the population's tr H for x ~ N(0, I) and the loss ``(f - y)^2 / 2``."""
        b, a = self.b.detach(), self.a.detach()
        return float((b.square().sum() + self.in_features * a.square().sum()) / 2)


class DiagonalLinear(nn.Module):
    """``f(x) = <u^2 - v^2, x>``: a linear model in squared parameters.

    Parameters
    ----------
    in_features : int
        d.
    scale : float
        Initial value of every entry of u and v, so that the coefficients start at 0.
    dtype : torch.dtype, optional

    Attributes
    ----------
    u, v : Parameter of shape (in_features,)

    Examples
    --------
    >>> model = DiagonalLinear(2, scale=0.5)
    >>> model(torch.ones(1, 2)).item(), model.expected_trace()
    (0.0, 4.0)
    """

    def __init__(self, in_features: int, *, scale: float = 0.1, dtype: torch.dtype | None = None) -> None:
        super().__init__()
        check("in_features", in_features, positive(integer=True))
        check("scale", scale, positive())
        self.u = nn.Parameter(torch.full((in_features,), float(scale), dtype=dtype))
        self.v = nn.Parameter(torch.full((in_features,), float(scale), dtype=dtype))

    @property
    def coef(self) -> Tensor:
        """The coefficients ``u^2 - v^2`` of the linear function, of shape (in_features,)."""
        return self.u.square() - self.v.square()

    def forward(self, x: Tensor) -> Tensor:  # (N, d) -> (N, 1)
        """Evaluate the linear function."""
        return (x @ self.coef).unsqueeze(-1)

    def parameter_norm(self) -> float:
        """Give the l1 norm of the coefficients."""
        return float(self.coef.detach().abs().sum())

    def expected_trace(self) -> float:
        """Give the population's tr H for x ~ N(0, I) and the loss ``(f - y)^2 / 2``."""
        return float(4 * (self.u.detach().square() + self.v.detach().square()).sum())
