r"""Diagonals of curvature matrices from products with random probes or from sampled labels.

Hutchinson: d = sum_k z_k * A z_k / sum_k z_k * z_k, unbiased for diag(A) since E[z z^T] = I.
Gauss-Newton-Bartlett: B * g_s * g_s, where g_s is the gradient of the mean negative log-likelihood of B labels drawn
from the model itself; unbiased for the diagonal of the Gauss-Newton matrix of the mean loss, since gradients of
different samples are independent with mean zero under the model (Bartlett's identity).

Papers: hutchinson1989trace; yao2021adahessian, Eq. 10; liu2024sophia, Alg. 2 (Gauss-Newton-Bartlett).
Notation: z probe, A = H Hessian of the loss, B number of labels, g_s gradient on sampled labels.
Departures: several draws are averaged after squaring, never before (averaging first shrinks the estimate).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from steepest.core.errors import at_least, check, kind_error, one_of, value_error
from steepest.core.random import torch_generator
from steepest.curvature.autodiff import (
    backward,
    gradient_graph,
    loss_value,
    model_output,
    second_gradient,
    select_parameters,
)
from steepest.curvature.losses import sampled_factors
from steepest.curvature.operators import aslinearoperator, check_square, column_blocks
from steepest.curvature.vectors import accumulation_dtype, check_parameters, probe_like, probes

__all__ = [
    "DiagonalEstimate",
    "gauss_newton_bartlett",
    "gnb_diagonal",
    "hessian_diagonal",
    "hutchinson_diagonal",
    "sample_labels",
    "sampled_label_loss",
]

LOSSES = {"cross_entropy": nn.CrossEntropyLoss(), "bce_with_logits": nn.BCEWithLogitsLoss(), "mse": nn.MSELoss()}


@dataclass(frozen=True)
class DiagonalEstimate:
    """An estimated diagonal: `value` (n,), `std_error` (n,) of every entry (nan with one product), `num_matvecs`."""

    value: Tensor
    std_error: Tensor
    num_matvecs: int


def hutchinson_diagonal(
    A: Any,
    num_matvecs: int = 100,
    *,
    distribution: str = "rademacher",
    seed: int | torch.Generator | None = None,
) -> DiagonalEstimate:
    """Estimate the diagonal of a square matrix from products with random probes.

    ``d = sum_k z_k * A z_k / sum_k z_k * z_k``, entry by entry; the variance of an entry falls as 1 / num_matvecs and
    is the squared length of its row without the diagonal.

    Parameters
    ----------
    A : operator, Tensor, ndarray, sparse matrix
        See `aslinearoperator`.
    num_matvecs : int
        Number of probes, one product each.
    distribution : "rademacher" or "gaussian"
        Rademacher has the smaller variance and is exact for a diagonal matrix.
    seed : int, torch.Generator or None

    Returns
    -------
    DiagonalEstimate

    Raises
    ------
    ValueError
        ``num_matvecs < 1``, or a matrix that is not square or not real.
    FloatingPointError
        A product is not finite; the text says which.

    References
    ----------
    Bekas, Kokiopoulou and Saad, An estimator for the diagonal of a matrix, Appl. Numer. Math. 57, 2007.

    Examples
    --------
    >>> hutchinson_diagonal(torch.diag(torch.tensor([1.0, 2.0])), 2, seed=0).value.tolist()
    [1.0, 2.0]
    """
    A = aslinearoperator(A)
    n = check_square(A)
    check("num_matvecs", num_matvecs, at_least(1, integer=True))
    generator = torch_generator(seed, A.device)
    dtype = accumulation_dtype(A.dtype)
    zAz, zz = (torch.zeros(n, dtype=dtype, device=A.device) for _ in range(2))
    # with b = z^2 and r = z Az - d0 b for the first block's d0: the residuals of the ratio, free of cancellation
    rr, rb, bb = (torch.zeros(n, dtype=dtype, device=A.device) for _ in range(3))
    d0 = zz
    for start, width in column_blocks(n, num_matvecs):
        Z = probes(n, width, distribution=distribution, generator=generator, dtype=A.dtype, device=A.device)
        AZ = A.matmat(Z)
        if not bool(torch.isfinite(AZ).all()):
            raise FloatingPointError(f"a product with A is not finite, among products {start} to {start + width - 1}")
        Z = Z.to(dtype)
        a, b = Z * AZ, Z * Z
        zAz += a.sum(1)
        zz += b.sum(1)
        if start == 0:
            d0 = zAz / zz
        r = a - d0.unsqueeze(1) * b
        rr, rb, bb = rr + (r * r).sum(1), rb + (r * b).sum(1), bb + (b * b).sum(1)
    d = zAz / zz
    e = d - d0
    squares = (rr - 2 * e * rb + e * e * bb).clamp_(min=0)
    m = num_matvecs
    std_error = squares.sqrt() / zz * math.sqrt(m / (m - 1)) if m > 1 else torch.full_like(d, math.nan)
    return DiagonalEstimate(d, std_error, m)


def gauss_newton_bartlett(
    model: nn.Module,
    X: Any,
    *,
    params: Iterable[Tensor | str] | None = None,
    loss: str = "cross_entropy",
    num_samples: int = 1,
    generator: torch.Generator | int | None = None,
) -> list[Tensor]:
    """Estimate the diagonal of a model's Gauss-Newton matrix from labels that the model itself draws.

    The model-level form of `gnb_diagonal`: every draw takes one gradient, is squared, and then averaged.

    Parameters
    ----------
    model : torch.nn.Module
    X
        One batch.
    params : iterable of Tensor or str, optional
        Parameters of the model or their names; all that are trained by default.
    loss : "cross_entropy", "bce_with_logits" or "mse"
        Whose mean the matrix belongs to; classes lie along the last axis of the output.
    num_samples : int
        Draws; the forward pass is made once.
    generator : torch.Generator, int or None

    Returns
    -------
    list of Tensor
        Shaped as the parameters, detached; float32 for half-precision parameters.

    Raises
    ------
    ValueError
        An unknown loss, ``num_samples < 1``.

    Examples
    --------
    >>> model = nn.Linear(1, 1, bias=False)
    >>> d = gauss_newton_bartlett(model, torch.ones(1, 1), loss="mse", num_samples=4000, generator=0)
    >>> abs(d[0].item() - 2.0) < 0.2                                             # 2 mean(x^2)
    True
    """
    check("loss", loss, one_of(*LOSSES))
    check("num_samples", num_samples, at_least(1, integer=True))
    theta = list(select_parameters(model, params).values())
    with torch.enable_grad():
        f = model_output(model, X)
        if loss == "cross_entropy":
            f = f.reshape(-1, f.shape[-1])
    generator = torch_generator(generator, f.device, name="generator")
    y = torch.zeros(len(f), dtype=torch.long, device=f.device) if loss == "cross_entropy" else torch.zeros_like(f)
    total = [torch.zeros_like(p, dtype=accumulation_dtype(p.dtype), requires_grad=False) for p in theta]
    for k in range(num_samples):
        s = sampled_factors(LOSSES[loss], f, y, 1, generator)[0]  # sum over the batch of J^T s is sqrt(B) g_s
        g = backward(f, theta, s, retain_graph=k < num_samples - 1)
        for d, g_i in zip(total, g, strict=True):
            if g_i is not None:
                g_i = g_i.to(d.dtype)
                d.addcmul_(g_i, g_i, value=1 / num_samples)
    return total


def hessian_diagonal(
    loss: Tensor | Callable[[], Tensor],
    params: Iterable[Tensor],
    *,
    n_samples: int = 1,
    distribution: str = "rademacher",
    generator: torch.Generator | int | None = None,
    retain_graph: bool = False,
) -> list[Tensor]:
    """Estimate the diagonal of the Hessian of a loss: the mean of ``z * Hz`` over joint probes z.

    Parameters
    ----------
    loss : scalar Tensor with a graph, or callable that returns one
        Its graph is consumed unless `retain_graph`. ``p.grad`` is neither read nor written.
    params : iterable of Tensor
    n_samples : int
        Number of probes; each costs one product after the first gradient.
    distribution : "rademacher" or "gaussian"
        Rademacher has the smaller variance; it is exact with one probe when the Hessian is diagonal.
    generator : torch.Generator, int or None
        On the device of the first parameter.
    retain_graph : bool
        Whether the graph of `loss` is kept.

    Returns
    -------
    list of Tensor
        Shaped as `params`, detached; float32 for half-precision parameters, else in the parameter's dtype. Parameters
        that the loss does not use get zeros. Values that are not finite are returned as they are.

    Raises
    ------
    ValueError
        A loss that is not scalar or has no graph; parameters without ``requires_grad`` or complex.
    RuntimeError
        A fused attention kernel, which has no double backward; the text names the cure.

    Examples
    --------
    >>> w = torch.tensor([1.0, 2.0], requires_grad=True)
    >>> [d.tolist() for d in hessian_diagonal((w**3).sum(), [w], generator=0)]
    [[6.0, 12.0]]
    """
    check("n_samples", n_samples, at_least(1, integer=True))
    check("distribution", distribution, one_of("rademacher", "gaussian"))
    params = check_parameters(params)
    generator = torch_generator(generator, params[0].device, name="generator")
    g = gradient_graph(loss, params)
    total = [torch.zeros_like(p, dtype=accumulation_dtype(p.dtype), requires_grad=False) for p in params]
    for k in range(n_samples):
        z = probe_like(params, distribution, generator=generator)
        Hz = second_gradient(g, params, z, retain_graph=retain_graph or k < n_samples - 1)
        for d, z_i, Hz_i in zip(total, z, Hz, strict=True):
            d.addcmul_(z_i.to(d.dtype), Hz_i.to(d.dtype), value=1 / n_samples)
    return total


def gnb_diagonal(
    loss: Tensor | Callable[[], Tensor], params: Iterable[Tensor], batch_size: int, *, retain_graph: bool = False
) -> list[Tensor]:
    """Estimate the diagonal of the Gauss-Newton matrix of a mean loss: ``B * g * g``.

    Parameters
    ----------
    loss : scalar Tensor with a graph, or callable that returns one
        Mean negative log-likelihood over labels drawn from the model (`sampled_label_loss`); with the true labels the
        result is the square of the mean gradient and estimates nothing of the kind.
    params : iterable of Tensor
    batch_size : int
        B, the number of labels the mean is over (sequences times tokens; masked labels not counted).
    retain_graph : bool
        Whether the graph of `loss` is kept.

    Returns
    -------
    list of Tensor
        Shaped as `params`, detached; float32 for half-precision parameters.

    Raises
    ------
    ValueError
        ``batch_size < 1``, or a loss that is not scalar or has no graph.

    Examples
    --------
    >>> w = torch.tensor([0.5], requires_grad=True)
    >>> gnb_diagonal((3 * w).sum(), [w], batch_size=4)[0].tolist()
    [36.0]
    """
    check("batch_size", batch_size, at_least(1, integer=True))
    params = check_parameters(params)
    g = backward(loss_value(loss), params, retain_graph=retain_graph)
    root = float(batch_size) ** 0.5  # (sqrt(B) g)^2: g^2 alone underflows float32 below 1e-19
    return [
        torch.zeros_like(p, dtype=accumulation_dtype(p.dtype), requires_grad=False)
        if g_i is None
        else (g_i.to(accumulation_dtype(p.dtype)) * root).square_()
        for p, g_i in zip(params, g, strict=True)
    ]


def sample_labels(logits: Tensor, generator: torch.Generator | int | None = None) -> Tensor:
    """Draw one class from ``softmax(logits)`` for every row.

    Parameters
    ----------
    logits : Tensor of shape (..., C)
        Class axis last; half precision is raised to float32 first.
    generator : torch.Generator, int or None
        On the device of `logits`.

    Returns
    -------
    LongTensor of shape (...)
        Without a graph.

    Raises
    ------
    ValueError
        `logits` has no class axis or is not floating point.

    Examples
    --------
    >>> sample_labels(torch.tensor([[0.0, 50.0], [50.0, 0.0]]), generator=0).tolist()
    [1, 0]
    """
    if not isinstance(logits, Tensor):
        raise kind_error("logits", "a tensor", logits)
    if logits.ndim < 1 or logits.shape[-1] < 1 or not logits.is_floating_point():
        raise value_error("logits", "floating point of shape (..., C)", logits)
    generator = torch_generator(generator, logits.device, name="generator")
    rows = logits.detach().reshape(-1, logits.shape[-1])
    p = rows.to(accumulation_dtype(rows.dtype)).softmax(-1)
    if len(p) == 0:
        return torch.empty(logits.shape[:-1], dtype=torch.long, device=logits.device)
    return torch.multinomial(p, 1, generator=generator).view(logits.shape[:-1])


def sampled_label_loss(
    logits: Tensor, generator: torch.Generator | int | None = None, ignore_mask: Tensor | None = None
) -> Tensor:
    """Mean negative log-likelihood of labels drawn from the model's own softmax.

    Parameters
    ----------
    logits : Tensor of shape (..., C)
        Class axis last.
    generator : torch.Generator, int or None
    ignore_mask : BoolTensor of shape (...), optional
        True where a label is left out; the mean, and B in `gnb_diagonal`, are over the others.

    Returns
    -------
    Tensor
        Scalar with the graph of `logits`; the labels carry none.

    Raises
    ------
    ValueError
        A mask that is not boolean, not shaped as the labels, or leaves out everything.

    Examples
    --------
    >>> round(sampled_label_loss(torch.zeros(3, 4), generator=0).item(), 4)
    1.3863
    """
    labels = sample_labels(logits, generator)
    if ignore_mask is not None:
        if ignore_mask.dtype != torch.bool or ignore_mask.shape != labels.shape:
            raise value_error("ignore_mask", f"boolean of shape {tuple(labels.shape)}", ignore_mask)
        if bool(ignore_mask.all()):
            raise value_error("ignore_mask", "False somewhere", "a mask that leaves out every label")
        labels = labels.masked_fill(ignore_mask, -100)
    return torch.nn.functional.cross_entropy(
        logits.reshape(-1, logits.shape[-1]), labels.reshape(-1), ignore_index=-100
    )
