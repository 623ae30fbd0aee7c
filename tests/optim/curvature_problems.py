"""Problems whose curvature is known in closed form or densely, for the tests of AdaHessian and Sophia."""

import warnings
from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor, nn

SHAPES = [(2, 3, 2, 3), (4, 6), (5,), (), (3, 2, 4)]


def make_params(seed: int = 0, dtype: torch.dtype = torch.float64, shapes: Sequence = SHAPES) -> list[nn.Parameter]:
    g = torch.Generator().manual_seed(seed)
    return [nn.Parameter((0.5 + torch.rand(s, generator=g, dtype=torch.float64)).to(dtype)) for s in shapes]


def coefficients(seed: int = 1, shapes: Sequence = SHAPES) -> list[Tensor]:
    """Mixed signs, so that signed and absolute block means differ, and negative curvature occurs."""
    g = torch.Generator().manual_seed(seed)
    return [torch.randn(s, generator=g, dtype=torch.float64) for s in shapes]


def quartic(params: Iterable[Tensor], a: Iterable[Tensor]) -> Tensor:
    """sum a x^4 / 12: gradient a x^3 / 3, Hessian diag(a x^2), so that one Rademacher probe is exact."""
    return sum((c.to(p.dtype) * p**4).sum() for c, p in zip(a, params)) / 12


def coupled(params: Sequence[Tensor], a: Sequence[Tensor]) -> Tensor:
    """The quartic and a coupling of all tensors, so that estimates depend on the probe."""
    return quartic(params, a) + 0.5 * sum(p.sin().sum() for p in params) ** 2


def backward(loss: Tensor, *, create_graph: bool = False) -> None:
    """`loss.backward(create_graph=...)` without torch's warning about the cycle, which the optimizers break."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Using backward.* with create_graph=True")
        loss.backward(create_graph=create_graph)


def tanh_network() -> tuple[list[nn.Parameter], Callable[[], Tensor], Tensor]:
    """A network of 30 parameters in float64, its loss, and its dense Hessian."""
    g = torch.Generator().manual_seed(0)
    shapes = [(4, 3), (4,), (2, 4), (2,), (4,)]
    params = [nn.Parameter(torch.randn(s, generator=g, dtype=torch.float64)) for s in shapes]
    x, y = (torch.randn(20, n, generator=g, dtype=torch.float64) for n in (3, 2))

    def loss_of(W: Tensor, b: Tensor, V: Tensor, c: Tensor, s: Tensor) -> Tensor:
        return (((x @ W.T + b).tanh() * s) @ V.T + c - y).square().mean()

    def flat_loss(theta: Tensor) -> Tensor:
        parts = theta.split([p.numel() for p in params])
        return loss_of(*(t.view(p.shape) for t, p in zip(parts, params)))

    theta = torch.cat([p.detach().reshape(-1) for p in params])
    return params, lambda: loss_of(*params), torch.autograd.functional.hessian(flat_loss, theta)
