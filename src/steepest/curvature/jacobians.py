r"""Products with the Jacobian J of a model's output: ``J v``, ``J^T r``, and ``J^T H J v`` in one go.

With a kept graph, ``w(u) = J^T u`` is differentiated once more with respect to u, which gives J v; without one, forward
mode carries v along with the output. Both are exact.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

from steepest.curvature.autodiff import backward, model_output
from steepest.curvature.losses import Product

__all__ = ["LinearizedOutput", "gauss_newton_once", "output_vjp"]


class LinearizedOutput:
    """A model's output with the graphs that give ``J v`` and ``J^T r`` again and again.

    ``w(u) = J^T u`` is linear in u, so that its transposed product with v, found by one more backward pass, is J v.
    """

    def __init__(self, f: Tensor, params: Sequence[Tensor]) -> None:
        self.f, self.params = f, params
        self.u = torch.zeros_like(f, requires_grad=True)
        self.w: list[Tensor | None] = [None] * len(params)
        if f.requires_grad:
            w = backward(f, params, self.u, create_graph=True)
            self.w = [w_i if w_i is not None and w_i.requires_grad else None for w_i in w]

    def jvp(self, v: Sequence[Tensor], *, batched: bool = False) -> Tensor:
        """Multiply the Jacobian with `v`; with `batched`, one more leading axis in and out."""
        pairs = [(w_i, v_i) for w_i, v_i in zip(self.w, v, strict=True) if w_i is not None]
        if not pairs:
            return self._zero(v, batched)
        w, weights = zip(*pairs, strict=True)
        (Jv,) = backward(w, [self.u], weights, retain_graph=True, is_grads_batched=batched)
        return self._zero(v, batched) if Jv is None else Jv

    def _zero(self, v: Sequence[Tensor], batched: bool) -> Tensor:
        return torch.zeros_like(self.f).expand(*v[0].shape[: int(batched)], *self.f.shape)

    def vjp(self, r: Tensor, *, batched: bool = False, retain_graph: bool = True) -> list[Tensor]:
        """Multiply the transposed Jacobian with `r`; with `batched`, one more leading axis in and out."""
        return output_vjp(self.f, self.params, r, batched=batched, retain_graph=retain_graph)


def output_vjp(
    f: Tensor, params: Sequence[Tensor], r: Tensor, *, batched: bool = False, retain_graph: bool = False
) -> list[Tensor]:
    """Compute ``J^T r`` through the graph of `f`; zeros for parameters that `f` does not use."""
    found: Sequence[Tensor | None] = [None] * len(params)
    if f.requires_grad:
        found = backward(f, params, r, retain_graph=retain_graph, is_grads_batched=batched)
    lead = r.shape[: int(batched)]
    return [p.new_zeros(*lead, *p.shape) if g is None else g for g, p in zip(found, params, strict=True)]


def gauss_newton_once(
    model: nn.Module,
    X: Any,
    params: Mapping[str, Tensor],
    v: Sequence[Tensor],
    make_hessian: Callable[[Tensor], Product],
) -> list[Tensor]:
    """Compute ``J^T H J v`` with one forward pass that carries v along, and one backward pass."""
    theta = list(params.values())
    try:
        with forward_ad.dual_level(), torch.enable_grad():
            duals = {name: forward_ad.make_dual(p, v_i) for (name, p), v_i in zip(params.items(), v, strict=True)}
            f, Jv = forward_ad.unpack_dual(model_output(model, X, duals))
    except NotImplementedError:  # a layer without forward mode
        with torch.enable_grad():
            linear = LinearizedOutput(model_output(model, X), theta)
        return linear.vjp(make_hessian(linear.f)(linear.jvp(v)), retain_graph=False)
    u = torch.zeros_like(f) if Jv is None else Jv.detach()
    return output_vjp(f, theta, make_hessian(f)(u))
