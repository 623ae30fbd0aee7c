r"""Anderson acceleration of a fixed-point iteration zeta <- T(zeta), with a way back.

The next point is T(zeta) minus the combination of past differences that best explains the last residual
:math:`g = T(\zeta) - \zeta`. Where g is twice the smallest one yet, the plain step from there
is taken and the memory dropped.
"""

from __future__ import annotations

from collections import deque
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
        self.reset()

    def reset(self) -> None:
        self._pairs: deque[tuple[Tensor, Tensor]] = deque(maxlen=MEMORY)
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
        if self._last is not None:
            old_mapped, old_g = self._last
            self._pairs.append((mapped - old_mapped, g - old_g))
        self._last = mapped, g
        if not self._pairs:
            return mapped
        moves, changes = (torch.stack(column) for column in zip(*self._pairs, strict=True))
        products = self._total(changes @ torch.cat([changes, g[None]]).T)
        gram = products[:, :-1]
        ridge = RIDGE * gram.trace() * torch.eye(len(gram)).to(gram)
        share, info = torch.linalg.solve_ex(gram + ridge, products[:, -1])
        if int(info) or not bool(torch.isfinite(share).all()):
            self.reset()
            return mapped
        return mapped - share @ moves
