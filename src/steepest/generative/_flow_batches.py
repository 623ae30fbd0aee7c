"""Batches for the training of a flow: pairs drawn independently, kept, or made anew by a coupling."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from steepest.core.errors import boolean, check, interval, kind_error, value_error
from steepest.generative._samples import check_pair, check_samples

__all__ = ["Batch", "Cloud", "Coupling", "Draws", "Pairs", "draw_from", "whole_batches", "without_some"]

Cloud = Tensor | Callable[[int, torch.Generator], Tensor]
Coupling = Callable[[Tensor, Tensor, torch.Generator], tuple[Tensor, Tensor]]
Batch = tuple[Tensor, Tensor, Tensor | None]
Draws = Callable[[int, torch.Generator], Any]


def whole_batches(source: Any) -> Draws:
    if not callable(source) or isinstance(source, Tensor):
        raise kind_error("x0", "a callable to batches (x0, x1) where x1 is None", source)

    def draw(n: int, generator: torch.Generator) -> Batch:
        x0, x1, *y = source(n, generator)
        check_samples("x0", x0)
        check_pair("x1", x1, "x0", x0, same_length=True)
        return x0, x1, y[0] if y else None

    return draw


class Pairs:
    """Batches ``(x0, x1, y)`` from two clouds: independent, paired, or paired anew by a coupling."""

    def __init__(
        self,
        x0: Cloud,
        x1: Cloud,
        paired: bool = False,
        coupling: Coupling | None = None,
        y: Tensor | None = None,
        drop_label: float = 0.1,
    ) -> None:
        check("paired", paired, boolean())
        check("drop_label", drop_label, interval(0, 1))
        for name, cloud in {"x0": x0, "x1": x1}.items():
            if not callable(cloud):
                check_samples(name, cloud)
            elif paired:
                raise value_error(name, "a tensor with paired=True", cloud)
        if isinstance(x0, Tensor) and isinstance(x1, Tensor):
            check_pair("x1", x1, "x0", x0, same_length=paired)
        if coupling is not None and (paired or not callable(coupling)):
            raise value_error("coupling", "None with paired=True" if paired else "a callable", coupling)
        if y is not None and not (isinstance(x1, Tensor) and isinstance(y, Tensor) and y.shape == x1.shape[:1]):
            raise value_error("y", "a label for each sample of a tensor x1", y)
        self.x0, self.x1, self.paired, self.coupling, self.y, self.drop_label = x0, x1, paired, coupling, y, drop_label

    def __call__(self, n: int, generator: torch.Generator) -> Batch:
        """A batch of n pairs and their labels."""
        x0, j = draw_from(self.x0, n, generator)
        if self.paired and isinstance(self.x1, Tensor):
            x1 = self.x1[j]
        else:
            x1, j = draw_from(self.x1, n, generator)
        y = None if self.y is None or j is None else self.y[j]
        if callable(self.x0) or callable(self.x1):
            check_samples("x0(n, generator)" if callable(self.x0) else "x0", x0)
            check_pair("x1(n, generator)" if callable(self.x1) else "x1", x1, "x0", x0, same_length=True)
        if self.coupling is not None:
            i, j = self.coupling(x0, x1, generator)
            if not (len(i) == len(j) <= n):
                raise value_error("coupling", f"a function to indices (i, j) of one length, at most {n}", (i, j))
            x0, x1, y = x0[i], x1[j], None if y is None else y[j]
        return x0, x1, without_some(y, self.drop_label, generator)


def without_some(y: Tensor | None, share: float, generator: torch.Generator) -> Tensor | None:
    """Labels with a random share of them replaced by -1."""
    if y is None or share == 0:
        return y
    return torch.where(torch.rand(len(y), generator=generator, device=y.device) < share, -1, y)


def draw_from(cloud: Cloud, n: int, generator: torch.Generator) -> tuple[Tensor, Tensor | None]:
    """`n` samples of a cloud, and which of a tensor's they are."""
    if not isinstance(cloud, Tensor):
        return cloud(n, generator), None
    chosen = torch.randint(len(cloud), (n,), generator=generator, device=generator.device)
    return cloud[chosen], chosen
