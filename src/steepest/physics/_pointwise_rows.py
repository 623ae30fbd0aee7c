r"""Least squares whose rows are pointwise functions of linear terms: F = s f(t), t_j = o_j + T_j w.

With f_j = ∂f/∂t_j at every row and F_j = s f_j, no Jacobian-vector product is needed:

    J = Σ_j diag(F_j) T_j        JᵀJ + Σ_jk T_jᵀ diag(F s f_jk) T_k = d²(1/2 ||F||²)/dw²
    λᵀG = Σ_rows S,   S = F Σ_j F_j z_j,   z_j = T_j λ
    d(λᵀG)/dT_j = (∂S/∂t_j) wᵀ + (F F_j) λᵀ        d(λᵀG)/do_j = ∂S/∂t_j

A product costs O(rows N), the normal equations O(rows N²); they are summed over pieces of rows, so J is never whole.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

__all__ = ["PointwiseLeastSquares", "Rows", "flattened", "rebuilt"]

PIECE = 2**19  # numbers of J at a time, all members together: a few MB


@dataclass(frozen=True)
class Rows:
    """Rows ``scale * function(terms, data)`` of every member; all tensors begin with the members' axes.

    `bases` T_j (*members, *rows, N), `offsets` o_j (*members, *rows) or none at all, `data` tensors that broadcast with
    the rows, `scale` (*members, *rows).
    """

    function: Callable[[Sequence[Tensor], Sequence[Tensor]], Tensor]
    bases: tuple[Tensor, ...]
    offsets: tuple[Tensor, ...]
    data: tuple[Tensor, ...]
    scale: Tensor

    def each(self, change: Callable[[Tensor], Tensor]) -> Rows:
        """Apply one change to all tensors."""
        bases, offsets, data = (tuple(map(change, part)) for part in (self.bases, self.offsets, self.data))
        return replace(self, bases=bases, offsets=offsets, data=data, scale=change(self.scale))

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """What can be differentiated."""
        return (*self.bases, *self.offsets, *self.data)

    def with_tensors(self, tensors: Sequence[Tensor]) -> Rows:
        """Put others in their place."""
        n, m = len(self.bases), len(self.bases) + len(self.offsets)
        return replace(self, bases=tuple(tensors[:n]), offsets=tuple(tensors[n:m]), data=tuple(tensors[m:]))

    def without_tensors(self) -> Rows:
        """Keep the number of tensors and drop what can be differentiated, so that nothing holds it twice."""
        return self.with_tensors([x.new_empty(0) for x in self.tensors])

    def pieces(self) -> Iterator[Rows]:
        """Cut along the first axis of rows."""
        members, n = self.scale.shape[:2]
        per_row = members * self.bases[0][0, 0].numel()
        step = max(1, PIECE // per_row)
        for a in range(0, n, step):
            yield self if step >= n else self.each(lambda x, a=a: x if x.shape[1] == 1 else x[:, a : a + step])  # type: ignore[misc]

    def values(self, w: Tensor) -> list[Tensor]:
        """Terms at the weights (M, N): t_j (M, *rows)."""
        t = [times(T, w) for T in self.bases]
        return [x + o for x, o in zip(t, self.offsets, strict=True)] if self.offsets else t

    def evaluate(self, w: Tensor) -> Tensor:
        """F (M, *rows)."""
        return self.scale * self.function(self.values(w), self.data)


@dataclass(frozen=True)
class PointwiseLeastSquares:
    """Groups of rows with M members each, and a ridge: the row ``ridge * w``."""

    groups: tuple[Rows, ...]
    ridge: float

    def objective(self, w: Tensor) -> Tensor:
        """``1/2 ||F||²`` (M,) without the ridge."""
        total = w.new_zeros(len(w))
        for rows in self._pieces():
            total = total + rows.evaluate(w).flatten(1).square().sum(-1) / 2
        return total

    def normal(self, w: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        eye = torch.eye(w.shape[-1], dtype=w.dtype, device=w.device)
        cost, G, A = self.ridge**2 * w.square().sum(-1) / 2, self.ridge**2 * w, self.ridge**2 * eye.repeat(len(w), 1, 1)
        for rows in self._pieces():
            F, slopes, _ = _derivatives(rows, rows.values(w), order=1)
            F, J = flat(F), _jacobian(rows, slopes)
            cost = cost + F.square().sum(-1) / 2
            G = G + (J.mT @ F[..., None])[..., 0]
            A = A + J.mT @ J
        return cost, G, A

    def hessian(self, w: Tensor) -> Tensor:
        H = self.normal(w)[2]
        for rows in self._pieces():
            F, _, bends = _derivatives(rows, rows.values(w), order=2)
            for (j, k), bend in bends.items():
                half = flat_bases(rows.bases[j]).mT @ (flat(F * bend)[..., None] * flat_bases(rows.bases[k]))
                H = H + (half if j == k else half + half.mT)
        return H

    def pullback(self, w: Tensor, adjoint: Tensor) -> list[Tensor | None]:
        found: list[Tensor | None] = []
        for rows in self.groups:
            t, z = rows.values(w), [times(T, adjoint) for T in rows.bases]
            with torch.inference_mode(False), torch.enable_grad():
                leaves, data = ([x.detach().clone().requires_grad_() for x in part] for part in (t, rows.data))
                f = rows.function(leaves, data)
                slopes = torch.autograd.grad(f.sum(), leaves, create_graph=True, materialize_grads=True)
                along = rows.scale**2 * f
                S = sum((along * f_j * z_j).sum() for f_j, z_j in zip(slopes, z, strict=True))
                by = torch.autograd.grad(S, [*leaves, *data], materialize_grads=True)  # type: ignore[arg-type]
            along = along.detach()
            for S_j, f_j in zip(by, slopes, strict=False):  # the data's come after the terms'
                sides = torch.stack((S_j.flatten(1), (along * f_j.detach()).flatten(1)), -1)
                found.append((sides @ -torch.stack((w, adjoint), 1)).view(*S_j.shape, -1))
            found += [-S_j for S_j in by[: len(rows.offsets)]]
            found += [-s for s in by[len(leaves) :]]
        return found

    def take(self, members: Tensor) -> PointwiseLeastSquares:
        return replace(self, groups=tuple(rows.each(lambda x: x[members]) for rows in self.groups))

    def _pieces(self) -> Iterator[Rows]:
        for rows in self.groups:
            yield from rows.pieces()


def flattened(groups: Sequence[Rows]) -> list[Tensor]:
    """All tensors of all groups, in the order of `PointwiseLeastSquares.pullback`."""
    return [tensor for rows in groups for tensor in rows.tensors]


def rebuilt(groups: Sequence[Rows], tensors: Sequence[Tensor]) -> tuple[Rows, ...]:
    """Groups with the tensors that `flattened` gave, or others of their kind."""
    made, at = [], 0
    for rows in groups:
        n = len(rows.tensors)
        made.append(rows.with_tensors(tensors[at : at + n]))
        at += n
    return tuple(made)


def times(T: Tensor, w: Tensor) -> Tensor:
    """T w: (M, *rows, N), (M, N) -> (M, *rows)."""
    return (flat_bases(T) @ w[..., None])[..., 0].view(T.shape[:-1])


def flat(x: Tensor) -> Tensor:
    """(M, *rows) -> (M, R)."""
    return x.flatten(1)


def flat_bases(T: Tensor) -> Tensor:
    """(M, *rows, N) -> (M, R, N)."""
    return T.flatten(1, -2)


def _jacobian(rows: Rows, slopes: Sequence[Tensor]) -> Tensor:
    J = flat(slopes[0])[..., None] * flat_bases(rows.bases[0])
    for F_j, T in zip(slopes[1:], rows.bases[1:], strict=True):
        J = torch.addcmul(J, flat(F_j)[..., None], flat_bases(T))
    return J


def _derivatives(
    rows: Rows, t: Sequence[Tensor], order: int
) -> tuple[Tensor, list[Tensor], dict[tuple[int, int], Tensor]]:
    """F, F_j, and s f_jk for j <= k where it is not zero, row by row: f acts point by point, so sums separate."""
    bends: dict[tuple[int, int], Tensor] = {}
    with torch.inference_mode(False), torch.enable_grad():
        leaves, data = [x.detach().clone().requires_grad_() for x in t], [x.detach().clone() for x in rows.data]
        f = rows.function(leaves, data)
        slopes = torch.autograd.grad(f.sum(), leaves, create_graph=order == 2, materialize_grads=True)
        if order == 2:
            for j, f_j in enumerate(slopes):
                if not f_j.requires_grad:
                    continue
                for k, f_jk in enumerate(
                    torch.autograd.grad(f_j.sum(), leaves[j:], retain_graph=True, allow_unused=True), j
                ):
                    if f_jk is not None and bool(f_jk.any()):
                        bends[j, k] = rows.scale * f_jk
    return rows.scale * f.detach(), [rows.scale * f_j.detach() for f_j in slopes], bends
