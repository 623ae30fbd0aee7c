r"""Rows of the hard-constraint layer: the equation at sampled points of every box, and the rows of all walls for each.

    F_k = (c r(x), x in the sample of box k;  boundary rows of the grid;  initial rows of the grid)

Terms are taken on the whole grid before it is cut, so that the edges of boxes have the stencils of the inside. Tensors
begin with the axes (B, K), samples and experts. ``balanced`` makes each group a mean square; its initial rows are
absolute, while raw ones are relative to the initial condition.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import cast

import torch
from torch import Tensor, nn

from steepest.core.errors import value_error
from steepest.physics._pde import PDE
from steepest.physics._pointwise_rows import Rows, times

__all__ = ["ConstraintData", "constraint_rows", "corrections", "cut", "sample_points"]


@dataclass(frozen=True)
class ConstraintData:
    """Input in float64: fields (B, *grid, N), what is added to their sum (B, *grid), the terms of both, the rest."""

    fields: Tensor
    added: Tensor | None
    terms: dict[str, Tensor]  # (B, *rows, N)
    added_terms: dict[str, Tensor]  # (B, *rows), or none
    initial_condition: Tensor
    params: dict[str, Tensor]

    @classmethod
    def of(cls, pde: PDE, inputs: Sequence[Tensor], names: Sequence[str]) -> ConstraintData:
        """From basis, initial condition and the parameters of these names."""
        basis, initial_condition, *params = inputs
        fields, added = pde.ansatz(basis, initial_condition)
        terms = {name: x.movedim(1, -1) for name, x in pde.terms(fields.movedim(-1, 1)).items()}
        added_terms = {} if added is None else pde.terms(added)
        return cls(fields, added, terms, added_terms, initial_condition, dict(zip(names, params, strict=True)))


def sample_points(
    pde: PDE, num_experts: tuple[int, ...], number: int | None, draws: torch.Generator, N: int
) -> tuple[Tensor, Tensor]:
    """Flat grid indices (K, S) of every box's points, and whether they count: boxes with fewer are filled up.

    Raises
    ------
    ValueError
        A box has fewer points than the N fields.
    """
    inside = pde.points()
    chosen = []
    for box in _boxes(torch.arange(inside.numel()).view(inside.shape), num_experts):
        allowed = box[inside.flatten()[box]]
        if len(allowed) < N:
            raise value_error("basis", f"of at most {len(allowed)} fields, the number of points in a box", N)
        if number is not None:
            allowed = allowed[torch.randperm(len(allowed), generator=draws)[:number]]
        chosen.append(allowed)
    index = nn.utils.rnn.pad_sequence(chosen, batch_first=True)
    used = torch.arange(index.shape[1]) < torch.tensor([len(points) for points in chosen])[:, None]
    return index, used.double()


def constraint_rows(
    pde: PDE, data: ConstraintData, index: Tensor, used: Tensor, *, balanced: bool, pde_weight: float
) -> list[Rows]:
    """Groups of rows at the points of `sample_points`."""
    grid = pde.grid
    index, used = index.to(data.fields.device), used.to(data.fields.device)
    B, K = len(data.fields), len(index)

    def of_box(x: Tensor) -> Tensor:  # (B, *grid, ...) -> (B, K, points, ...)
        return x.flatten(1, len(grid)).index_select(1, index.flatten()).unflatten(1, index.shape)

    def of_all(x: Tensor) -> Tensor:  # (B, ...) -> (B, K, ...), the same for every expert
        return x[:, None].expand(B, K, *x.shape[1:])

    def group(what: str, place: Callable[[Tensor], Tensor], weight: Tensor | float) -> Rows:
        names = tuple(getattr(pde, f"{what}_terms"))
        bases = tuple(place(data.terms[name]) for name in names)
        added = tuple(place(data.added_terms[name]) for name in names) if data.added_terms else ()
        rows = bases[0].shape[2:-1]
        given: tuple[Tensor, ...]
        if what == "initial":
            given = (of_all(data.initial_condition),)
        else:
            each = (p.view(-1, *(1,) * len(rows)).expand(B, *(1,) * len(rows)) for p in data.params.values())
            given = tuple(map(of_all, each))
        function = _PointFunction(pde, what, names, tuple(data.params), relative=not balanced)
        return Rows(function, bases, added, given, torch.as_tensor(weight).to(data.fields).expand(B, K, *rows))

    number = used.sum(1, keepdim=True)
    scale = pde_weight * (pde.t_max / number.sqrt() if balanced else 1.0)
    groups = [group("residual", of_box, scale * used)]
    if pde.boundary_terms:
        groups.append(group("boundary", of_all, 1 / math.sqrt(grid[0] - 1) if balanced else 1.0))
    if pde.initial_terms:
        groups.append(group("initial", of_all, 1 / math.sqrt(math.prod(grid[1:])) if balanced else 1.0))
    return groups


def corrections(groups: Sequence[Rows], anchor: Tensor) -> list[Rows]:
    """Put the anchor's (B, 1, N) terms into the constant part: what is left to solve for is the correction."""
    moved = []
    for rows in groups:
        B, K = rows.scale.shape[:2]
        w = anchor.expand(B, K, -1).flatten(0, 1)
        fixed = [times(T.flatten(0, 1), w).unflatten(0, (B, K)) for T in rows.bases]
        offsets = tuple(x + o for x, o in zip(fixed, rows.offsets, strict=True)) if rows.offsets else tuple(fixed)
        moved.append(replace(rows, offsets=offsets))
    return moved


def cut(grid: Sequence[int], num_experts: Sequence[int]) -> list[int]:
    """Sizes that split every axis of the grid into (boxes, points of a box)."""
    return [size for n, parts in zip(grid, num_experts, strict=True) for size in (parts, n // parts)]


@dataclass(frozen=True)
class _PointFunction:
    """One of the equation's pointwise functions, of terms and data in the order of their names."""

    pde: PDE
    what: str
    names: tuple[str, ...]
    params: tuple[str, ...]
    relative: bool

    def __call__(self, terms: Sequence[Tensor], data: Sequence[Tensor]) -> Tensor:
        named = dict(zip(self.names, terms, strict=True))
        if self.what == "initial":
            difference = self.pde.initial(named, data[0])
            return difference / data[0] if self.relative else difference
        return cast(Tensor, getattr(self.pde, self.what)(named, dict(zip(self.params, data, strict=True)) or None))


def _boxes(x: Tensor, num_experts: Sequence[int]) -> Tensor:
    """(*grid) -> (K, points of a box), both in C order."""
    d = x.ndim
    order = (*range(0, 2 * d, 2), *range(1, 2 * d, 2))
    return x.reshape(cut(x.shape, num_experts)).permute(order).reshape(math.prod(num_experts), -1)
