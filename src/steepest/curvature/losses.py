r"""The Hessian of a loss with respect to the model's output, and random factors of it.

With f the output, y the targets and L = loss(f, y), the Gauss-Newton matrix is ``J^T H J`` with ``H = d2 L / df2``:

* squared error, mean over `size` entries: ``H u = 2 u / size``;
* cross-entropy: ``H u = a (p * u - p (p . u))`` for every sample, p = softmax(f), and a the weight of the sample
  (class weights, label smoothing, 0 where the target is ignored) divided by the sum of the targets' weights;
* binary cross-entropy on logits: ``H u = a p (1 - p) u``, a from `weight` and `pos_weight`, divided by the size;
* any other loss: double backward through the loss alone.

A factor s is random with ``E[s s^T] = H`` for every sample: the gradient of the loss at labels drawn from the model.
Notation: p probabilities, a weights, u a vector shaped as f.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from steepest.core.errors import kind_error, value_error
from steepest.curvature.autodiff import gradient_graph, second_gradient
from steepest.curvature.vectors import accumulation_dtype

__all__ = [
    "closed_form",
    "empirical_factor",
    "loss_weight",
    "output_hessian",
    "per_sample_outer",
    "reduction_of",
    "sampled_factors",
]

LossFn = Callable[[Tensor, Any], Tensor]
Product = Callable[[Tensor], Tensor]

FUNCTIONAL: dict[Any, nn.Module] = {
    functional.mse_loss: nn.MSELoss(),
    functional.cross_entropy: nn.CrossEntropyLoss(),
    functional.binary_cross_entropy_with_logits: nn.BCEWithLogitsLoss(),
}


def reduction_of(loss_fn: LossFn, reduction: str | None = None) -> str:
    """Return how `loss_fn` reduces, checked against its attribute ``reduction`` when it has one.

    Raises
    ------
    ValueError
        The two differ, or the loss does not reduce at all.
    """
    own = getattr(closed_form(loss_fn) or loss_fn, "reduction", None)
    if own is not None and own not in ("mean", "sum"):
        raise value_error("loss_fn.reduction", "'mean' or 'sum'", own)
    if reduction is not None and own is not None and own != reduction:
        raise value_error("reduction", f"{own!r}, as loss_fn.reduction is", reduction)
    return reduction or own or "mean"


def loss_weight(loss_fn: LossFn, f: Tensor, y: Any) -> float:
    """Return what a mean loss divides by, so that batches can be put together as one mean over all of them.

    The number of entries for squared error and binary cross-entropy, the sum of the targets' weights for
    cross-entropy, the number of samples for any other loss.
    """
    loss = closed_form(loss_fn)
    if isinstance(loss, nn.CrossEntropyLoss):
        return float(_cross_entropy_weights(loss, f, y)[1])
    if loss is not None:
        return float(max(f.numel(), y.numel()))
    return float(f.shape[0] if f.ndim else 1)


def output_hessian(loss_fn: LossFn, f: Tensor, y: Any) -> Product:
    """Return the function ``u -> H u`` at the output `f` (u shaped as `f`)."""
    loss, f = closed_form(loss_fn), f.detach()
    if isinstance(loss, nn.MSELoss) and y.shape == f.shape:
        scale = 2.0 / _divisor(loss, f)
        return lambda u: u * scale
    if isinstance(loss, nn.CrossEntropyLoss):
        axis = _class_axis(f)
        p, a = f.softmax(axis), _cross_entropy_scale(loss, f, y)
        return lambda u: a * (p * u - p * (p * u).sum(axis, keepdim=True))
    if isinstance(loss, nn.BCEWithLogitsLoss):
        p = f.sigmoid()
        h = p * (1 - p) * _binary_scale(loss, f, y)
        return lambda u: h * u
    leaf = f.requires_grad_()
    g = gradient_graph(lambda: loss_fn(leaf, y), [leaf])
    return lambda u: second_gradient(g, [leaf], [u], retain_graph=True)[0]


def sampled_factors(
    loss_fn: LossFn, f: Tensor, y: Any, num_samples: int, generator: torch.Generator
) -> Tensor:  # (num_samples, *f.shape)
    """Draw factors s with ``E[s s^T] = H`` for every sample, from labels that the model itself would give.

    Raises
    ------
    ValueError
        The loss is not the negative log-likelihood of a known model.
    """
    loss, f = closed_form(loss_fn), f.detach()
    if isinstance(loss, nn.MSELoss) and y.shape != f.shape:
        raise value_error("y", f"of the output's shape {tuple(f.shape)}", y)
    if isinstance(loss, nn.MSELoss):  # labels N(f, 1/2): s = sqrt(2 / size) N(0, 1)
        noise = torch.randn((num_samples, *f.shape), generator=generator, dtype=f.dtype, device=f.device)
        return noise * math.sqrt(2.0 / _divisor(loss, f))
    if isinstance(loss, nn.CrossEntropyLoss):
        axis = _class_axis(f)
        p, root = f.softmax(axis), _cross_entropy_scale(loss, f, y).sqrt()
        rows = p.movedim(axis, -1).reshape(-1, f.shape[axis])
        labels = torch.multinomial(rows.to(accumulation_dtype(f.dtype)), num_samples, True, generator=generator)
        where = p.movedim(axis, -1).shape[:-1]
        s = p.expand(num_samples, *f.shape).clone()
        index = labels.T.reshape(num_samples, *where).unsqueeze(axis + 1)
        return s.scatter_add_(axis + 1, index, -s.new_ones(()).expand(index.shape)).mul_(root)
    if isinstance(loss, nn.BCEWithLogitsLoss):
        p = f.sigmoid().expand(num_samples, *f.shape)
        return (p - torch.bernoulli(p, generator=generator)) * _binary_scale(loss, f, y).sqrt()
    raise value_error(
        "loss_fn", "MSELoss, CrossEntropyLoss or BCEWithLogitsLoss to draw labels from", loss_fn, "use kind='empirical'"
    )


def empirical_factor(loss_fn: LossFn, f: Tensor, y: Any, reduction: str) -> Tensor:  # (1, *f.shape)
    """Return s with ``J_n^T s_n`` = the gradient of sample n, scaled so that the sum of outer products is the Fisher.

    For a mean loss over N samples that is ``(1/N) sum_n g_n g_n^T`` with ``g_n = N d L / d f_n``, the gradients whose
    mean is the gradient of L; for a sum, ``sum_n g_n g_n^T``.
    """
    leaf = f.detach().requires_grad_()
    with torch.enable_grad():
        (s,) = torch.autograd.grad(loss_fn(leaf, y), leaf)
    return (s * math.sqrt(_samples(loss_fn, f)) if reduction == "mean" else s).unsqueeze(0)


def per_sample_outer(loss_fn: LossFn, s: Tensor) -> Product:
    """Return ``u -> mean_m sum_n s_mn (s_mn . u_n)``; samples n lie along the first axis of the output."""
    rows = _samples(loss_fn, s[0])
    flat = s.reshape(len(s), rows, -1)  # (m, n, d)

    def product(u: Tensor) -> Tensor:
        inner = torch.einsum("mnd,nd->mn", flat, u.reshape(rows, -1))
        return (torch.einsum("mn,mnd->nd", inner, flat) / len(flat)).view(u.shape)

    return product


def closed_form(loss_fn: LossFn) -> nn.Module | None:
    """Return the loss as one of the three modules with a closed form, or None; a subclass may differ, so it is none."""
    if type(loss_fn) in (nn.MSELoss, nn.CrossEntropyLoss, nn.BCEWithLogitsLoss):
        return loss_fn  # type: ignore[return-value]
    if not callable(loss_fn):
        raise kind_error("loss_fn", "a callable (output, target) -> scalar", loss_fn)
    return next((module for function, module in FUNCTIONAL.items() if loss_fn is function), None)


def _divisor(loss: Any, f: Tensor) -> float:
    return float(f.numel()) if loss.reduction == "mean" else 1.0


def _class_axis(f: Tensor) -> int:
    return 0 if f.ndim == 1 else 1


def _samples(loss_fn: LossFn, f: Tensor) -> int:
    unbatched = f.ndim == 0 or (f.ndim == 1 and isinstance(closed_form(loss_fn), nn.CrossEntropyLoss))
    return 1 if unbatched else f.shape[0]


def _cross_entropy_weights(loss: nn.CrossEntropyLoss, f: Tensor, y: Tensor) -> tuple[Tensor, Tensor | float]:
    """Return the weight of every sample (class axis kept, size 1) and the sum that a mean divides by."""
    axis, smoothing, w = _class_axis(f), loss.label_smoothing, loss.weight
    C = f.shape[axis]
    if y.is_floating_point():
        t = y * (1 - smoothing) + smoothing / C
        if w is not None:
            t = t * w.view(-1, *[1] * (f.ndim - axis - 1))
        return t.sum(axis, keepdim=True), f.numel() / C
    ignored = y == loss.ignore_index
    kept = (~ignored).to(f.dtype)
    w_y = kept if w is None else w[y.masked_fill(ignored, 0)] * kept
    w_all = 1.0 if w is None else w.sum() / C
    return ((1 - smoothing) * w_y + smoothing * w_all * kept).unsqueeze(axis), w_y.sum()


def _cross_entropy_scale(loss: nn.CrossEntropyLoss, f: Tensor, y: Tensor) -> Tensor:
    a, total = _cross_entropy_weights(loss, f, y)
    return a / total if loss.reduction == "mean" else a


def _binary_scale(loss: nn.BCEWithLogitsLoss, f: Tensor, y: Tensor) -> Tensor:
    a = torch.ones_like(f) if loss.pos_weight is None else 1 + (loss.pos_weight - 1) * y
    if loss.weight is not None:
        a = a * loss.weight
    return a / _divisor(loss, f)
