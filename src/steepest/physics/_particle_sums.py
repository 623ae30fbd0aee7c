"""Sums over neighbors as products with constant sparse matrices, whose gradient is the product with the transpose.

Copies to edges, sums over edges and weighted sums over neighbors are all of this form. Each is one pass of
`torch.nn.functional.embedding_bag` over rows in a fixed order, so results on the CPU are bitwise reproducible; the
gradient of torch's own `index_select` sorts its indices every time and takes several times as long.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

__all__ = ["SparseRows", "copies", "entries", "offsets_of"]


class _Rows(NamedTuple):
    """Entries of a matrix row by row."""

    offsets: Tensor  # (m + 1,): where each row begins, and the end
    columns: Tensor  # (e,)
    weights: Tensor | None  # (e,), ones where there are none


class SparseRows:
    """A constant sparse matrix that multiplies values (k, c) from the left, kept by rows and by columns."""

    def __init__(self, rows: _Rows, transposed: _Rows) -> None:
        self.rows, self.transposed = rows, transposed

    @property
    def T(self) -> SparseRows:
        """The transpose."""
        return SparseRows(self.transposed, self.rows)

    def __call__(self, values: Tensor) -> Tensor:
        """Give the product (m, c); rows without entries are zero."""
        product: Tensor = _Product.apply(values, self)
        return product


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, matrix: SparseRows) -> Tensor:
        ctx.matrix = matrix
        offsets, columns, weights = matrix.rows
        weights = None if weights is None else weights.to(values.dtype)
        return torch.nn.functional.embedding_bag(
            columns, values, offsets, mode="sum", per_sample_weights=weights, include_last_offset=True
        )

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return ctx.matrix.T(gradients[0]), None


def offsets_of(sorted_rows: Tensor, n: int) -> Tensor:
    """Give where each of n rows begins among sorted row numbers (e,), and the end: (n + 1,)."""
    counts = torch.bincount(sorted_rows, minlength=n)
    return torch.cat((counts.new_zeros(1), counts.cumsum(0)))


def copies(of: Tensor, n: int, order: Tensor | None = None) -> SparseRows:
    """Make the matrix (e, n) that copies row `of` (e,) of n; `order` sorts `of`, which is sorted already without it.

    Its transpose sums what belongs to the same row.

    Examples
    --------
    >>> copy = copies(torch.tensor([0, 0, 2]), 3)
    >>> copy(torch.tensor([[1.0], [2.0], [3.0]])).flatten().tolist()
    [1.0, 1.0, 3.0]
    >>> copy.T(torch.tensor([[1.0], [2.0], [3.0]])).flatten().tolist()
    [3.0, 0.0, 3.0]
    """
    each = torch.arange(len(of) + 1, device=of.device)
    members, ordered = (each[:-1], of) if order is None else (order, of[order])
    return SparseRows(_Rows(each, of, None), _Rows(offsets_of(ordered, n), members, None))


def entries(rows: Tensor, columns: Tensor, weights: Tensor, shape: tuple[int, int], order: Tensor) -> SparseRows:
    """Make a matrix from its entries, sorted by row; `order` sorts them by column."""
    by_row = _Rows(offsets_of(rows, shape[0]), columns, weights)
    return SparseRows(by_row, _Rows(offsets_of(columns[order], shape[1]), rows[order], weights[order]))
