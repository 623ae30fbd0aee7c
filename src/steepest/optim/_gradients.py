"""Gradients of a network in evaluation mode, one for each batch or example, as the rows of a matrix."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from steepest.core.errors import value_error

__all__ = ["batch_gradients", "evaluation", "sample_gradients"]


def batch_gradients(
    model: nn.Module,
    batches: Iterable[tuple[Any, Any]],
    loss_fn: Callable[[Any, Any], Tensor],
    weights: Mapping[str, Tensor],
    rest: Tensor,
    n_grads: int,
) -> Tensor:
    """One gradient for each of the first `n_grads` batches, on the weights `rest`: (m, len(rest))."""
    tensors = list(weights.values())
    G = new_rows(tensors, n_grads, len(rest))
    m = 0
    for x, y in first(batches, n_grads):
        with torch.enable_grad():
            loss = loss_fn(model(x), y)
            grads = torch.autograd.grad(loss, tensors, allow_unused=True)
        store(G, m, [None if g is None else g[None] for g in grads], weights, rest)
        m += 1
    return counted(G, m)


def sample_gradients(
    model: nn.Module,
    batches: Iterable[tuple[Any, Any]],
    loss_fn: Callable[[Any, Any], Tensor],
    weights: Mapping[str, Tensor],
    rest: Tensor,
    n_grads: int,
) -> Tensor:
    """One gradient for each of the first `n_grads` examples."""
    from steepest.curvature.products import per_sample_gradients

    G = new_rows(list(weights.values()), n_grads, len(rest))
    m = 0
    for x, y in batches:
        x, y = x[: n_grads - m], y[: n_grads - m]
        grads = per_sample_gradients(model, loss_fn, x, y, params=list(weights))
        store(G, m, [grads[name] for name in weights], weights, rest)
        m += len(x)
        if m == n_grads:
            break
    return counted(G, m)


def store(G: Tensor, row: int, grads: Sequence[Tensor | None], weights: Mapping[str, Tensor], rest: Tensor) -> None:
    """Put gradients (k, *shape) of all selected parameters into rows of G; a missing one is named."""
    parts = []
    for g, name in zip(grads, weights, strict=True):
        if g is None:
            raise value_error("params", "parameters that the loss depends on", name)
        parts.append(g.detach().flatten(1).to(G.dtype))
    rows = torch.cat(parts, dim=1)
    G[row : row + len(rows)] = rows if len(rest) == rows.shape[1] else rows[:, rest]


def new_rows(tensors: Sequence[Tensor], n: int, d: int) -> Tensor:
    """Room for n gradients of length d, in float64 if a parameter is, else float32."""
    double = any(t.dtype == torch.float64 for t in tensors)
    return torch.empty(n, d, dtype=torch.float64 if double else torch.float32, device=tensors[0].device)


def counted(G: Tensor, m: int) -> Tensor:
    """Check and return the rows that were filled."""
    if m == 0:
        raise value_error("batches", "at least one pair (x, y)", "none")
    finite = torch.isfinite(G[:m]).all(1)
    if not bool(finite.all()):
        raise FloatingPointError(f"gradient {int(finite.long().argmin())} is not finite")
    return G[:m]


def first(batches: Iterable[Any], n: int) -> Iterator[Any]:
    """The first n items, none taken beyond."""
    for _, item in zip(range(n), batches):
        yield item


@contextmanager
def evaluation(model: nn.Module) -> Iterator[None]:
    """Put every module in eval mode and give each its own flag back."""
    flags = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in flags:
            module.training = training
