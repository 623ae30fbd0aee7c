"""How much the curvature of single samples differs from its mean, along given directions.

``E_i ||(H_i - H) v||^2`` with H_i the curvature of sample i, by products of all samples at once; nothing larger than a
chunk of them is formed.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, jvp, vjp, vmap

from steepest.curvature import unflatten
from steepest.curvature.losses import LossFn

__all__ = ["squared_deviation"]

Parameters = Mapping[str, Tensor]
CHUNK_ELEMENTS = 2**24  # numbers in the products of the samples that are taken at once


def squared_deviation(
    model: nn.Module, loss_fn: LossFn, X: Tensor, y: Tensor, params: Parameters, v: Tensor, Hv: Tensor, curvature: str
) -> Tensor:  # v, Hv: (P,) -> ()
    """Sum ``||H_i v - Hv||^2`` over the samples, in float64.

    Parameters
    ----------
    model, loss_fn, X, y
        `loss_fn` is called on batches of one sample.
    params : mapping of str to Tensor
        The parameters in the order of the vectors.
    v, Hv : Tensor of shape (P,)
        A direction, and what its products are compared with: usually their mean.
    curvature : "ggn" or "hessian"
    """
    theta = {name: p.detach() for name, p in params.items()}
    direction = dict(zip(theta, unflatten(v, list(theta.values())), strict=True))
    product = _gauss_newton if curvature == "ggn" else _hessian

    def deviation(x: Tensor, target: Tensor) -> Tensor:
        def output(theta: Parameters) -> Any:
            return functional_call(model, dict(theta), (x.unsqueeze(0),))

        def loss(f: Any) -> Tensor:
            return loss_fn(f, target.unsqueeze(0))

        parts = product(output, loss, theta, direction)
        Hv_i = torch.cat([parts[name].reshape(-1) for name in theta])
        return (Hv_i - Hv).to(torch.float64).square().sum()

    chunk = max(1, CHUNK_ELEMENTS // len(v))
    return vmap(deviation, chunk_size=chunk)(X, y).sum()


def _hessian(output: Any, loss: Any, theta: Parameters, v: Parameters) -> Parameters:
    def gradient(theta: Parameters) -> Parameters:
        found: Parameters = grad(lambda t: loss(output(t)))(theta)
        return found

    product: Parameters = vjp(gradient, theta)[1](v)[0]
    return product


def _gauss_newton(output: Any, loss: Any, theta: Parameters, v: Parameters) -> Parameters:
    f, Jv, *_ = jvp(output, (theta,), (v,))
    HJv = vjp(grad(loss), f)[1](Jv)[0]  # a Hessian is symmetric
    product: Parameters = vjp(output, theta)[1](HJv)[0]
    return product
