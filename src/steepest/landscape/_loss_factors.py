r"""Factors of the loss's Hessian with respect to the output: ``H_l = F F^T`` for every sample, never formed where C is
large.

With l_i the share of sample i in n times the mean loss (or, for a sum, in the batch's sum):

* squared error: ``F = sqrt(2 n / size)``;
* cross-entropy: ``diag(q) - q q^T = F F^T`` with ``F = (I - q 1^T) diag(sqrt(q))``, q the probabilities, times the root
  of the target's weight, for every position;
* binary cross-entropy on logits: ``F = sqrt(w q (1 - q))``;
* any other loss: the eigendecomposition of the C x C Hessian of a sample, negative rounding clamped.

The weight of a target is the loss at zero logits over log C: the sum of its class weights, smoothing included.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import hessian, vmap
from torch.nn import functional

from steepest.core.errors import value_error
from steepest.curvature.losses import LossFn, closed_form, loss_weight, reduction_of

__all__ = ["LossFactor", "loss_factor", "loss_scale"]

LARGEST_DENSE = 2**27  # numbers in the dense Hessians of a loss without a closed form (1 GiB of float64)
NEGATIVE = 1e-6  # relative size of a negative eigenvalue that rounding does not explain, in single precision


@dataclass(frozen=True)
class LossFactor:
    """``F u`` and ``F^T v`` on tensors shaped as the output, with any number of leading axes."""

    apply: Callable[[Tensor], Tensor]
    adjoint: Callable[[Tensor], Tensor]


def loss_scale(loss_fn: LossFn, n: int, batch_size: int) -> float:
    """What turns the loss of n samples into the sum of l_i: n for a mean; the batch size for a sum over the batch."""
    return float(n if reduction_of(loss_fn) == "mean" else batch_size)


def loss_factor(loss_fn: LossFn, f: Tensor, y: Any, scale: float) -> LossFactor:
    """Make the factor of ``scale d2 loss / df2`` at the output `f` of n samples.

    Raises
    ------
    ValueError
        Targets that do not fit squared error; a loss that is not convex in the output, or has no closed form and too
        many outputs.
    """
    loss, f = closed_form(loss_fn), f.detach()
    if isinstance(loss, nn.MSELoss):
        if y.shape != f.shape:
            raise value_error("y", f"of the output's shape {tuple(f.shape)}", y)
        return _diagonal(torch.full_like(f, 2 * scale / _total(loss_fn, f, y)))
    if isinstance(loss, nn.CrossEntropyLoss) and f.ndim > 1:
        q = f.softmax(1)
        weight = functional.cross_entropy(
            torch.zeros_like(f),
            y,
            loss.weight,
            ignore_index=loss.ignore_index,
            label_smoothing=loss.label_smoothing,
            reduction="none",
        ).unsqueeze(1)
        return _softmax(q, weight * (scale / (_total(loss_fn, f, y) * math.log(f.shape[1]))))
    if isinstance(loss, nn.BCEWithLogitsLoss):
        weight = functional.binary_cross_entropy_with_logits(
            torch.zeros_like(f), y, loss.weight, pos_weight=loss.pos_weight, reduction="none"
        )
        q = f.sigmoid()
        return _diagonal(q * (1 - q) * weight * (scale / (_total(loss_fn, f, y) * math.log(2))))
    return _dense(loss_fn, f, y, scale)


def _total(loss_fn: LossFn, f: Tensor, y: Any) -> float:
    """What the loss divides its sum over targets by."""
    return loss_weight(loss_fn, f, y) if reduction_of(loss_fn) == "mean" else 1.0


def _diagonal(h: Tensor) -> LossFactor:
    root = h.sqrt()
    return LossFactor(lambda u: root * u, lambda v: root * v)


def _softmax(q: Tensor, weight: Tensor) -> LossFactor:
    axis = 1 - q.ndim  # from the end, so that leading axes do not matter
    root, size = q.sqrt(), weight.sqrt()

    def apply(u: Tensor) -> Tensor:
        w = root * u
        return size * (w - q * w.sum(axis, keepdim=True))

    def adjoint(v: Tensor) -> Tensor:
        return size * root * (v - (q * v).sum(axis, keepdim=True))

    return LossFactor(apply, adjoint)


def _dense(loss_fn: LossFn, f: Tensor, y: Any, scale: float) -> LossFactor:
    n, C = len(f), f[0].numel()
    if n * C * C > LARGEST_DENSE:
        raise value_error(
            "loss_fn",
            f"MSELoss, CrossEntropyLoss or BCEWithLogitsLoss for {n} samples of {C} outputs",
            loss_fn,
            "let the model put classes on the second axis",
        )

    def sample_loss(f_i: Tensor, y_i: Tensor) -> Tensor:
        return loss_fn(f_i.unsqueeze(0), y_i.unsqueeze(0))

    share = scale / n if reduction_of(loss_fn) == "mean" else scale
    H = vmap(hessian(sample_loss))(f, y).reshape(n, C, C).double() * share
    values, vectors = torch.linalg.eigh((H + H.mT) / 2)
    largest = values.abs().max()
    if float(values.min()) < -NEGATIVE * max(float(largest), torch.finfo(values.dtype).tiny):
        raise value_error(
            "loss_fn", "convex in the model's output", f"a Hessian with the eigenvalue {float(values.min()):.3g}"
        )
    F = (vectors * values.clamp(min=0).sqrt().unsqueeze(1)).to(f.dtype)

    def through(matrix: Tensor) -> Callable[[Tensor], Tensor]:
        def product(u: Tensor) -> Tensor:
            rows = u.reshape(*u.shape[: u.ndim - f.ndim], n, C, 1)
            return (matrix @ rows).view(u.shape)

        return product

    return LossFactor(through(F), through(F.mT))
