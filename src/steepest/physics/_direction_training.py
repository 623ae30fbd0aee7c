"""Grids, and the training of a network of search directions: from right-hand sides and products with A alone."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from scipy import sparse
from torch import Tensor
from torch.autograd.function import FunctionCtx
from torch.nn.utils import clip_grad_norm_

from steepest.core.distributed import all_reduce_sum, group_rank, group_size
from steepest.core.errors import value_error
from steepest.core.random import fresh_seed
from steepest.curvature.operators import CurvatureOperator
from steepest.physics._conjugate_direction_net import ConjugateDirectionNet, dcdm_loss
from steepest.physics._ritz import RitzMixtures

__all__ = ["Grid", "copy_from_first_rank", "differentiable_product", "on_device", "shared_seed", "train_directions"]

HELD_OUT = 0.1
LARGEST_GRADIENT = 1.0  # twice the usual norm; without a limit some seeds are thrown to a loss of 1 and stay there

Losses = list[tuple[float, float]]


def train_directions(
    net: ConjugateDirectionNet,
    A_apply: Callable[[Tensor], Tensor],
    to_grid: Callable[[Tensor], Tensor],
    mixtures: RitzMixtures,
    mask: Tensor | None,
    *,
    n_vectors: int,
    epochs: int,
    batch_size: int,
    lr: float,
    augment: bool,
    resample: bool,
    tilt: float,
    process_group: Any,
    generator: torch.Generator,
    callback: Callable[[int, Losses], Any] | None,
) -> Losses:
    """Minimize `dcdm_loss` by Adam with cosine decay; return the mean training and held-out loss of every epoch.

    Every rank draws the same batches, takes its rows of each, and adds its part of the gradient to the others'.
    """
    rank, size = group_rank(process_group), group_size(process_group)
    parameters = list(net.parameters())
    n_held = max(1, round(HELD_OUT * n_vectors))
    n_train = n_vectors - n_held
    held = mixtures.coefficients(n_held, generator, tilt)
    fixed = None if resample else mixtures.coefficients(n_train, generator, tilt)
    optimizer = torch.optim.Adam(parameters, lr=lr)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs * math.ceil(n_train / batch_size))

    def loss_of(coefficients: Tensor, symmetry: Symmetry) -> Tensor:
        b = to_grid(mixtures.mix(coefficients))
        y = symmetry.back(net(symmetry.turn(b), None if mask is None else symmetry.turn(mask)))
        return dcdm_loss(y, b, A_apply)

    def mean_over_ranks(total: Tensor, n: int) -> float:
        all_reduce_sum([total], process_group)
        return float(total) / n

    history: Losses = []
    for epoch in range(1, epochs + 1):
        net.train()
        total = torch.zeros((), dtype=torch.float64)
        for rows in torch.randperm(n_train, generator=generator).split(batch_size):
            batch = mixtures.coefficients(len(rows), generator, tilt) if fixed is None else fixed[rows]
            symmetry = Symmetry.draw(net.dim, generator) if augment else Symmetry.identity(net.dim)
            own = batch[rank::size]
            optimizer.zero_grad(set_to_none=False)
            if len(own):
                loss = loss_of(own, symmetry) * (len(own) / len(rows))
                loss.backward()
                total += float(loss.detach()) * len(rows)
            for p in parameters:
                p.grad = torch.zeros_like(p) if p.grad is None else p.grad
            all_reduce_sum([p.grad for p in parameters if p.grad is not None], process_group)
            clip_grad_norm_(parameters, LARGEST_GRADIENT)
            optimizer.step()
            schedule.step()
        train = mean_over_ranks(total, n_train)
        net.eval()
        total = torch.zeros((), dtype=torch.float64)
        with torch.no_grad():
            own = held[rank::size]
            for part in own.split(batch_size) if len(own) else ():
                total += float(loss_of(part, Symmetry.identity(net.dim))) * len(part)
        history.append((train, mean_over_ranks(total, n_held)))
        if not all(map(math.isfinite, history[-1])):
            raise FloatingPointError(f"the loss is not finite in epoch {epoch}; lower lr={lr:g}")
        if callback is not None:
            callback(epoch, history)
    return history


class Symmetry:
    """A mirror image or rotation of the grid: a permutation of its axes, then some of them reversed."""

    def __init__(self, order: list[int], reversed_axes: list[int]) -> None:
        self.order, self.reversed_axes = order, reversed_axes

    @classmethod
    def identity(cls, dim: int) -> Symmetry:
        """Leave the grid as it is."""
        return cls(list(range(dim)), [])

    @classmethod
    def draw(cls, dim: int, generator: torch.Generator) -> Symmetry:
        """Draw one of the 8 (48 in 3-D) symmetries of the square (cube)."""
        flips = torch.randint(2, (dim,), generator=generator)
        return cls(torch.randperm(dim, generator=generator).tolist(), flips.nonzero().flatten().tolist())

    def turn(self, x: Tensor) -> Tensor:  # (B, 1, *shape) -> (B, 1, *permuted shape)
        """Apply it."""
        return x.permute(0, 1, *(2 + k for k in self.order)).flip([2 + k for k in self.reversed_axes])

    def back(self, x: Tensor) -> Tensor:
        """Undo it."""
        inverse = [self.order.index(k) for k in range(len(self.order))]
        return x.flip([2 + k for k in self.reversed_axes]).permute(0, 1, *(2 + k for k in inverse))


def differentiable_product(
    A: CurvatureOperator, to_grid: Callable[[Tensor], Tensor], from_grid: Callable[[Tensor], Tensor]
) -> Callable[[Tensor], Tensor]:
    """Make the product of a symmetric operator on flat vectors one on grids (B, 1, *shape), with its gradient."""

    def multiply(y: Tensor) -> Tensor:
        columns = from_grid(y).T.to(A.device, A.dtype)
        return to_grid(A.matmat(columns).T.to(y))

    class Product(torch.autograd.Function):
        @staticmethod
        def forward(ctx: FunctionCtx, y: Tensor) -> Tensor:
            return multiply(y)

        @staticmethod
        def backward(ctx: Any, *grads: Tensor) -> Tensor:
            return multiply(grads[0])

    return Product.apply


class Grid:
    """Where the unknowns of a system lie on a grid: in all cells, or in its fluid cells."""

    def __init__(self, shape: tuple[int, ...], solid: Any, dtype: torch.dtype, device: torch.device) -> None:
        self.shape, self.fluid = shape, ~solid
        self.reduced = False
        self.mask = None
        if solid.any():
            self.mask = torch.as_tensor(self.fluid, device=device).to(dtype)[None, None]
        self.index = torch.as_tensor(np.flatnonzero(self.fluid), device=device)

    def accept(self, n: int) -> None:
        """Take vectors of length n."""
        if n not in (self.fluid.size, len(self.index)):
            raise value_error("shape", f"a grid of {n} cells or fluid cells, as A has", self.shape)
        self.reduced = n < self.fluid.size

    def spread(self, rows: Tensor) -> Tensor:  # (B, n) -> (B, 1, *shape)
        """Lay vectors out on the grid, zero in solid cells that they leave out."""
        if self.reduced:
            rows = rows.new_zeros(len(rows), self.fluid.size).index_copy(1, self.index, rows)
        return rows.reshape(-1, 1, *self.shape)

    def gather(self, x: Tensor) -> Tensor:  # (B, 1, *shape) -> (B, n)
        """Undo `spread`."""
        rows = x.reshape(len(x), -1)
        return rows[:, self.index] if self.reduced else rows


def on_device(A: Any, device: torch.device) -> Any:
    """Copy a sparse matrix to an accelerator; leave everything else as it is."""
    if device.type == "cpu" or not sparse.issparse(A):
        return A
    entries = sparse.coo_array(A)
    index = torch.as_tensor(np.stack(entries.coords))
    return torch.sparse_coo_tensor(index, torch.as_tensor(entries.data), entries.shape, device=device).coalesce()


def shared_seed(seed: int | None, group: Any) -> int:
    """Take the first rank's fresh entropy where there is no seed."""
    if seed is not None:
        return seed
    drawn = torch.tensor([fresh_seed() if group_rank(group) == 0 else 0])
    all_reduce_sum([drawn], group)
    return int(drawn)


def copy_from_first_rank(net: ConjugateDirectionNet, group: Any) -> None:
    with torch.no_grad():
        weights = list(net.parameters())
        if group_rank(group):
            for p in weights:
                p.zero_()
        all_reduce_sum(weights, group)
