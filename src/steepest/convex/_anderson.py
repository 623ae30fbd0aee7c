r"""Anderson acceleration of a fixed-point iteration zeta <- T(zeta), with a way back.

The next point is T(zeta) minus the combination of past differences that best explains the last residual
:math:`g = T(\zeta) - \zeta`. Where g is twice the smallest one yet, the plain step from there
is taken and the memory dropped.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

__all__ = ["Anderson"]

MEMORY, GROWTH, RIDGE = 10, 2.0, 1e-12
"""Differences kept; growth of the residual that is put up with; ridge of the least squares, relative to its trace."""


class Anderson:
    """Gives the point to go on from; `reset` when the map has changed.

    `total` sums over the ranks among which points are split.
    """

    def __init__(self, total: Callable[[Tensor], Tensor] = lambda share: share) -> None:
        self._total = total
        self._moves = self._changes = torch.empty(0)
        self.reset()

    def reset(self) -> None:
        self._count = 0
        self._last: tuple[Tensor, Tensor] | None = None
        self._best: tuple[float, Tensor] | None = None

    def next(self, zeta: Tensor, mapped: Tensor) -> Tensor:
        """Take a point (N,) and its image."""
        g = mapped - zeta
        size = float(self._total(g @ g).sqrt())
        if self._best is not None and size > GROWTH * self._best[0]:
            back = self._best[1]
            self.reset()
            return back
        if self._best is None or size < self._best[0]:
            self._best = size, mapped
        last, self._last = self._last, (mapped, g)
        if last is None:
            return mapped
        self._remember(mapped - last[0], g - last[1])
        kept = min(self._count, MEMORY)
        gram, changes = self._gram[:kept, :kept], self._changes[:kept]
        ridge = RIDGE * gram.trace() * torch.eye(kept).to(gram)
        share, info = torch.linalg.solve_ex(gram + ridge, self._total(changes @ g))
        if int(info) or not bool(torch.isfinite(share).all()):
            self.reset()
            return mapped
        return mapped - share @ self._moves[:kept]

    def _remember(self, move: Tensor, change: Tensor) -> None:
        """Put the differences in the place of the oldest ones, and their products with the others."""
        if self._moves.shape[-1] != len(move):
            self._moves, self._changes = move.new_empty(MEMORY, len(move)), move.new_empty(MEMORY, len(move))
            self._gram = move.new_zeros(MEMORY, MEMORY)
        at = self._count % MEMORY
        self._count += 1
        kept = min(self._count, MEMORY)
        self._moves[at], self._changes[at] = move, change
        products = self._total(self._changes[:kept] @ change)
        self._gram[at, :kept] = self._gram[:kept, at] = products
