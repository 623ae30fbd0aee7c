"""Symmetric operators that are weighted sums of terms, one for every batch, kept as graphs or made at every product.

A term holds the graph of one batch: of the gradient (Hessian) or of the output (Gauss-Newton). See `model_operators`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from steepest.core.distributed import all_reduce_sum, resolve_group
from steepest.core.errors import value_error
from steepest.curvature.autodiff import Loss, check_unchanged, gradient_graph, loss_value, second_gradient
from steepest.curvature.jacobians import LinearizedOutput
from steepest.curvature.losses import Product
from steepest.curvature.operators import CurvatureOperator
from steepest.curvature.products import split_vector
from steepest.curvature.vectors import accumulation_dtype, flatten

__all__ = ["BatchedOperator", "GaussNewtonTerm", "HessianTerm", "LossHessian", "Term", "rows_of"]

# Several columns at once beat a loop only while a product is dominated by the cost of calls (measured, one core, tanh
# networks with 400 to 300,000 parameters on 32 to 1,024 samples: 1.1 to 6.9 times faster below, slower above).
BATCHED_WORK = 2_000_000  # parameters times rows of output
BATCHED_COLUMNS = 32  # columns at once
UNKNOWN_ROWS = 256  # for a loss that is no model's


class Term(Protocol):
    """The curvature of one batch: products with one parameter vector, or with several along a leading axis."""

    weight: float  # what the batch's mean divides by; known at the latest after a product
    rows: int  # rows of the model's output

    def product(self, v: Sequence[Tensor], *, batched: bool, keep: bool) -> list[Tensor]:
        """Multiply; with `batched` one more leading axis in and out, with `keep` the graph stays."""


class HessianTerm:
    """Graph of a batch's gradient."""

    def __init__(self, loss: Loss, params: Sequence[Tensor], weight: float, rows: int) -> None:
        self.params, self.weight, self.rows, self.g = params, weight, rows, gradient_graph(loss, params)

    def product(self, v: Sequence[Tensor], *, batched: bool, keep: bool) -> list[Tensor]:
        """Multiply the Hessian."""
        return second_gradient(self.g, self.params, v, retain_graph=keep, batched=batched)


class GaussNewtonTerm:
    """Graph of a batch's output, and the matrix in the middle."""

    def __init__(self, f: Tensor, params: Sequence[Tensor], H: Product, weight: float) -> None:
        self.output, self.H, self.weight, self.rows = LinearizedOutput(f, params), H, weight, rows_of(f)

    def product(self, v: Sequence[Tensor], *, batched: bool, keep: bool) -> list[Tensor]:
        """Multiply ``J^T H J``."""
        u = self.output.jvp(v, batched=batched)
        r = torch.stack([self.H(u_k) for u_k in u]) if batched else self.H(u)
        return self.output.vjp(r, batched=batched, retain_graph=keep)


class BatchedOperator(CurvatureOperator):
    """A symmetric operator that is a weighted sum of terms, kept or made anew at every product."""

    def __init__(self, params: Sequence[Tensor], *, mean: bool, cached: bool, process_group: Any) -> None:
        dtype = params[0].dtype
        for p in params:
            dtype = torch.promote_types(dtype, p.dtype)
            if p.device != params[0].device:
                raise value_error("params", f"on one device ({params[0].device})", str(p.device))
        n = sum(p.numel() for p in params)
        super().__init__((n, n), dtype, params[0].device)
        self.params = list(params)
        self.cached = cached
        self._mean, self._group = mean, resolve_group(process_group)
        self._batched = True
        self._kept: list[Term] = []
        self._versions: list[int] = []

    def _terms(self, once: bool) -> Iterator[Term]:
        """Make the terms; with `once`, each will be asked for one product only."""
        raise NotImplementedError

    def refresh(self) -> None:
        """Rebuild the kept graphs at the present parameters; without kept graphs there is nothing to do."""
        if self.cached:
            self._kept = []
            self._versions = [p._version for p in self.params]
            self._kept = list(self._terms(once=False))

    def matvec(self, v: Any) -> Any:
        """Multiply with one vector: flat (P,), or a sequence shaped as the parameters (the result is of that kind).

        Raises
        ------
        ValueError
            A wrong length, shape or dtype.
        RuntimeError
            A parameter was changed in place since the graphs were built.
        """
        if isinstance(v, Tensor):
            return super().matvec(v)
        parts = split_vector(v, self.params)
        self.n_products += 1
        Av = self._rows([v_i.unsqueeze(0) for v_i in parts], 1).squeeze(0)
        return [a.to(p.dtype).view(p.shape) for a, p in zip(Av.split(self._sizes), self.params, strict=True)]

    def _matmat(self, V: Tensor) -> Tensor:
        rows = V.T.contiguous()  # (k, P)
        parts = [r.view(-1, *p.shape).to(p.dtype) for r, p in zip(rows.split(self._sizes, 1), self.params, strict=True)]
        return self._rows(parts, len(rows)).T

    @property
    def _sizes(self) -> list[int]:
        return [p.numel() for p in self.params]

    def _rows(self, V: Sequence[Tensor], k: int) -> Tensor:  # tensors of shape (k, *shape) -> (k, P)
        if self.cached:
            check_unchanged(self.params, self._versions)
        total: Tensor | None = None
        weight = 0.0
        for term in self._kept if self.cached else self._terms(once=k == 1):
            block = self._block(term, V, k)
            if self.cached and len(self._kept) == 1 and self._group is None:
                return block
            block = block.to(accumulation_dtype(self.dtype))
            if self._mean and term.weight == 0:  # every target is ignored: the batch's own mean is 0 / 0
                block.zero_()
            scale = term.weight if self._mean else 1.0
            weight += term.weight
            total = block.mul_(scale) if total is None else total.add_(block, alpha=scale)
            del term  # before the next one is built: only one graph is alive
        if total is None:
            raise value_error("data", "a non-empty sequence of (X, y) at every pass", "an empty one")
        if self._group is not None:
            shared = torch.tensor([weight], dtype=total.dtype, device=total.device)
            all_reduce_sum([total, shared], self._group)
            weight = float(shared)
        return (total.div_(weight) if self._mean else total).to(self.dtype)

    def _block(self, term: Term, V: Sequence[Tensor], k: int) -> Tensor:  # (k, P)
        if k >= 4 and self._batched and self.shape[0] * term.rows <= BATCHED_WORK:
            try:
                return torch.cat([self._at_once(term, part) for part in zip(*(v.split(BATCHED_COLUMNS) for v in V))])
            except RuntimeError:  # an operation that cannot be batched: the loop says what else may be wrong
                self._batched = False
        rows = [
            flatten(term.product([v[j] for v in V], batched=False, keep=self.cached or j < k - 1)) for j in range(k)
        ]
        return rows[0].unsqueeze(0) if k == 1 else torch.stack(rows)

    @staticmethod
    def _at_once(term: Term, V: Sequence[Tensor]) -> Tensor:
        k = len(V[0])
        return torch.cat([a.reshape(k, -1) for a in term.product(V, batched=True, keep=True)], 1)


class LossHessian(BatchedOperator):
    """Hessian of a loss that is no model's: one term."""

    def __init__(self, loss: Loss, params: Sequence[Tensor]) -> None:
        super().__init__(params, mean=False, cached=isinstance(loss, Tensor), process_group=None)
        self._loss = loss_value(loss) if isinstance(loss, Tensor) else loss
        super().refresh()

    def refresh(self) -> None:
        """Say that a graph made from a tensor cannot be rebuilt; a callable needs no rebuilding."""
        if self.cached:
            raise RuntimeError(
                "a Hessian made from a loss tensor cannot be rebuilt: make a new one, or pass a callable"
            )

    def _terms(self, once: bool) -> Iterator[Term]:
        yield HessianTerm(self._loss, self.params, 1.0, UNKNOWN_ROWS)


def rows_of(f: Tensor) -> int:
    """Count the rows of a model's output: samples times positions."""
    return f.shape[:-1].numel()
