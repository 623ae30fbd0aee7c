r"""Products of Hessian, Gauss-Newton and Fisher matrices with vectors, and per-sample derivatives.

    H v = d <grad L, v> / d theta                (double backward)
    G v = J^T H_l J v                            (J the Jacobian of the output, H_l the Hessian of the loss in it)
    F v = E[ sum_n g_n (g_n . v) ]               (g_n the gradient of sample n)

Papers: pearlmutter1994fast (H v); schraudolph2002fast (G v); martens2020new and kunstner2019limitations (F).
Notation: theta = params, f = model output, u = a vector shaped as f, s = a factor of H_l (see `losses`).
Departures: J v by forward mode where the model's layers have it, else by differentiating the transposed product
``J^T u`` once more with respect to u; both are exact.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, jacfwd, jacrev, vmap

from steepest.core.errors import at_least, check, kind_error, one_of, optional, value_error
from steepest.core.random import torch_generator
from steepest.curvature.autodiff import (
    Loss,
    batch_norm_training,
    gradient_graph,
    second_gradient,
    select_parameters,
)
from steepest.curvature.jacobians import gauss_newton_once
from steepest.curvature.losses import (
    LossFn,
    Product,
    closed_form,
    empirical_factor,
    output_hessian,
    per_sample_outer,
    reduction_of,
    sampled_factors,
)
from steepest.curvature.vectors import check_parameters, flatten, unflatten

__all__ = ["fisher_vp", "ggn_vp", "hvp", "per_sample_gradients", "per_sample_jacobian"]

V = TypeVar("V", bound=Tensor | Sequence[Tensor])
KINDS = ("type-2", "mc", "empirical")


def hvp(loss: Loss, params: Iterable[Tensor], v: V, *, retain_graph: bool = False) -> V:
    """Multiply the Hessian of a loss with a vector, ``d <grad L, v> / d params``.

    Parameters
    ----------
    loss : scalar Tensor with a graph, or callable that returns one
        Its graph is consumed unless `retain_graph`. ``p.grad`` is neither read nor written.
    params : iterable of Tensor
    v : Tensor of shape (P,), or sequence of Tensor shaped as `params`
    retain_graph : bool

    Returns
    -------
    Tensor or list of Tensor
        Of the kind of `v`, without a graph. Parameters that the loss does not use, or on which its gradient does not
        depend, get zeros.

    Raises
    ------
    ValueError
        `v` does not fit `params`, or the loss is not a scalar with a graph.
    RuntimeError
        A fused attention kernel, which has no double backward; the text names the cure.

    References
    ----------
    Pearlmutter, Fast exact multiplication by the Hessian, Neural Computation 6(1), 1994.

    Examples
    --------
    >>> w = torch.tensor([1.0, 2.0], requires_grad=True)
    >>> hvp((w**3).sum(), [w], torch.tensor([1.0, 1.0])).tolist()
    [6.0, 12.0]
    """
    params = check_parameters(params)
    parts = split_vector(v, params)
    Hv = second_gradient(gradient_graph(loss, params), params, parts, retain_graph=retain_graph)
    return like_vector(Hv, v)


def ggn_vp(
    model: nn.Module, loss_fn: LossFn, X: Any, y: Any, v: V, *, params: Iterable[Tensor | str] | None = None
) -> V:
    """Multiply the Gauss-Newton matrix ``J^T H_l J`` of ``loss_fn(model(X), y)`` with a vector.

    Parameters
    ----------
    model : torch.nn.Module
    loss_fn : callable (output, y) -> scalar
        Closed forms for `MSELoss`, `CrossEntropyLoss` and `BCEWithLogitsLoss` (and their functions with default
        options); any other loss is differentiated twice with respect to the output.
    X, y
        One batch.
    v : Tensor of shape (P,), or sequence of Tensor shaped as the parameters
    params : iterable of Tensor or str, optional
        Parameters of the model or their names; all that are trained by default.

    Returns
    -------
    Tensor or list of Tensor
        Of the kind of `v`, without a graph.

    Raises
    ------
    ValueError
        `v` does not fit the parameters, or a loss that does not reduce.

    Examples
    --------
    >>> model = nn.Linear(2, 1, bias=False)
    >>> X, y = torch.tensor([[1.0, 2.0]]), torch.zeros(1, 1)
    >>> ggn_vp(model, nn.MSELoss(), X, y, torch.tensor([1.0, 0.0])).tolist()     # 2 x x^T v
    [2.0, 4.0]
    """
    reduction_of(loss_fn)
    return _gauss_newton_vp(model, X, v, params, lambda f: output_hessian(loss_fn, f, y))


def fisher_vp(
    model: nn.Module,
    loss_fn: LossFn,
    X: Any,
    y: Any,
    v: V,
    *,
    params: Iterable[Tensor | str] | None = None,
    kind: str = "type-2",
    num_samples: int = 1,
    generator: torch.Generator | int | None = None,
) -> V:
    """Multiply a Fisher information matrix of the model with a vector.

    Parameters
    ----------
    model, loss_fn, X, y, v, params
        As in `ggn_vp`; the loss is taken as a negative log-likelihood.
    kind : "type-2", "mc" or "empirical"
        "type-2": the expectation over the model's own labels in closed form, equal to the Gauss-Newton matrix;
        "mc": that expectation over `num_samples` labels drawn for every sample;
        "empirical": the true labels, ``(1/N) sum_n g_n g_n^T`` for a mean loss and the plain sum for a sum (not the
        square of the mean gradient). The samples n lie along the first axis of the output.
    num_samples : int
        Only for "mc".
    generator : torch.Generator, int or None
        Only for "mc"; on the device of the output.

    Returns
    -------
    Tensor or list of Tensor
        Of the kind of `v`, without a graph.

    Raises
    ------
    ValueError
        As in `ggn_vp`; an unknown kind; "type-2" or "mc" for a loss without a known likelihood.

    Examples
    --------
    >>> model = nn.Linear(1, 1, bias=False)
    >>> X, y = torch.tensor([[1.0], [2.0]]), model(torch.tensor([[1.0], [2.0]])).detach() - 1
    >>> fisher_vp(model, nn.MSELoss(), X, y, torch.ones(1), kind="empirical").round().tolist()   # mean of (2 x r)^2
    [10.0]
    """
    check("kind", kind, one_of(*KINDS))
    check("num_samples", num_samples, at_least(1, integer=True))
    factor = functools.partial(
        fisher_factor, loss_fn=loss_fn, y=y, kind=kind, num_samples=num_samples, reduction=reduction_of(loss_fn)
    )
    return _gauss_newton_vp(
        model, X, v, params, lambda f: factor(f, generator=torch_generator(generator, f.device, name="generator"))
    )


def fisher_factor(
    f: Tensor, *, loss_fn: LossFn, y: Any, kind: str, num_samples: int, reduction: str, generator: torch.Generator
) -> Product:
    """Return ``u -> H u`` with the matrix in the middle of the Fisher of the given kind at the output `f`."""
    if kind == "empirical":
        return per_sample_outer(loss_fn, empirical_factor(loss_fn, f, y, reduction))
    if kind == "mc":
        return per_sample_outer(loss_fn, sampled_factors(loss_fn, f, y, num_samples, generator))
    if closed_form(loss_fn) is None:
        raise value_error("loss_fn", "MSELoss, CrossEntropyLoss or BCEWithLogitsLoss for kind='type-2'", loss_fn)
    return output_hessian(loss_fn, f, y)


def per_sample_gradients(
    model: nn.Module,
    loss_fn: LossFn,
    X: Tensor,
    y: Tensor,
    *,
    params: Iterable[Tensor | str] | None = None,
    chunk_size: int | None = None,
    randomness: str = "error",
) -> dict[str, Tensor]:
    """Compute the gradient of ``loss_fn(model(x), y)`` for every sample of a batch.

    Parameters
    ----------
    model : torch.nn.Module
    loss_fn : callable (output, y) -> scalar
        Called on batches of one sample.
    X : Tensor of shape (B, ...)
    y : Tensor of shape (B, ...)
    params : iterable of Tensor or str, optional
    chunk_size : int, optional
        Samples taken at a time; all by default.
    randomness : "error", "same" or "different"
        What dropout may draw: nothing, one mask for all samples, or one for each.

    Returns
    -------
    dict of str to Tensor of shape (B, ...)

    Raises
    ------
    ValueError
        Batch normalization in training mode (samples are not independent); X and y of different lengths.

    Examples
    --------
    >>> model = nn.Linear(1, 1, bias=False)
    >>> g = per_sample_gradients(model, lambda f, y: f.sum(), torch.tensor([[1.0], [2.0]]), torch.zeros(2))
    >>> g["weight"].reshape(-1).tolist()
    [1.0, 2.0]
    """
    chosen = _per_sample_parameters(model, X, params, chunk_size)
    check("randomness", randomness, one_of("error", "same", "different"))
    if len(y) != len(X):
        raise value_error("y", f"of length {len(X)}, as X is", y)

    def sample_loss(theta: Mapping[str, Tensor], x: Tensor, target: Tensor) -> Tensor:
        return loss_fn(functional_call(model, dict(theta), (x.unsqueeze(0),)), target.unsqueeze(0))

    over_batch = vmap(grad(sample_loss), in_dims=(None, 0, 0), chunk_size=chunk_size, randomness=randomness)
    return over_batch({name: p.detach() for name, p in chosen.items()}, X, y)


def per_sample_jacobian(
    model: nn.Module, X: Tensor, *, params: Iterable[Tensor | str] | None = None, chunk_size: int | None = None
) -> Tensor:  # (B, C, P)
    """Compute the Jacobian of the output with respect to the parameters for every sample of a batch.

    Parameters
    ----------
    model : torch.nn.Module
    X : Tensor of shape (B, ...)
    params : iterable of Tensor or str, optional
    chunk_size : int, optional
        Samples taken at a time; all by default.

    Returns
    -------
    Tensor of shape (B, C, P)
        The output of a sample is flattened to C entries; parameters in the order of `params`, each row-major. By
        reverse mode where C <= P, else by forward mode.

    Raises
    ------
    ValueError
        Batch normalization in training mode.

    Examples
    --------
    >>> per_sample_jacobian(nn.Linear(2, 1, bias=False), torch.tensor([[1.0, 2.0], [3.0, 4.0]])).tolist()
    [[[1.0, 2.0]], [[3.0, 4.0]]]
    """
    chosen = _per_sample_parameters(model, X, params, chunk_size)

    def output(theta: Mapping[str, Tensor], x: Tensor) -> Tensor:
        return functional_call(model, dict(theta), (x.unsqueeze(0),)).reshape(-1)

    theta = {name: p.detach() for name, p in chosen.items()}
    with torch.no_grad():
        C = len(output(theta, X[0]))
    jacobian = jacrev if sum(p.numel() for p in theta.values()) >= C else jacfwd
    J = vmap(jacobian(output), in_dims=(None, 0), chunk_size=chunk_size)(theta, X)
    return torch.cat([J[name].reshape(len(X), C, -1) for name in theta], 2)


def split_vector(v: Any, params: Sequence[Tensor], name: str = "v") -> list[Tensor]:
    """Split a parameter vector of either kind into tensors shaped as `params`, after checking that it fits.

    Raises
    ------
    TypeError
        Neither a tensor nor a sequence of tensors.
    ValueError
        A wrong length, shape or dtype.
    """
    if isinstance(v, Tensor):
        n = sum(p.numel() for p in params)
        if v.shape != (n,):
            raise value_error(name, f"of shape {(n,)}, or a sequence of {len(params)} tensors", v)
        dtype = functools.reduce(torch.promote_types, (p.dtype for p in params))
        if v.dtype != dtype:
            raise value_error(name, f"of dtype {dtype}", str(v.dtype))
        parts = [v_i.to(p.dtype) for v_i, p in zip(unflatten(v, params), params, strict=True)]
    elif isinstance(v, Sequence) and all(isinstance(v_i, Tensor) for v_i in v):
        if len(v) != len(params):
            raise value_error(name, f"a sequence of {len(params)} tensors", f"{len(v)} tensors")
        parts = list(v)
    else:
        raise kind_error(name, "a flat tensor or a sequence of tensors", v)
    for i, (v_i, p) in enumerate(zip(parts, params, strict=True)):
        if v_i.shape != p.shape:
            raise value_error(f"{name}[{i}]", f"of shape {tuple(p.shape)}", v_i)
        if v_i.dtype != p.dtype:
            raise value_error(f"{name}[{i}]", f"of dtype {p.dtype}", str(v_i.dtype))
    return parts


def like_vector(parts: list[Tensor], v: V) -> V:
    """Return `parts` as the kind of vector that `v` is."""
    return flatten(parts) if isinstance(v, Tensor) else parts  # type: ignore[return-value]


def _gauss_newton_vp(
    model: nn.Module,
    X: Any,
    v: V,
    params: Iterable[Tensor | str] | None,
    make_hessian: Callable[[Tensor], Product],
) -> V:
    chosen = select_parameters(model, params)
    parts = split_vector(v, list(chosen.values()))
    return like_vector(gauss_newton_once(model, X, chosen, parts, make_hessian), v)


def _per_sample_parameters(
    model: nn.Module, X: Tensor, params: Iterable[Tensor | str] | None, chunk_size: int | None
) -> dict[str, Tensor]:
    chosen = select_parameters(model, params)
    check("chunk_size", chunk_size, optional(at_least(1, integer=True)))
    if not isinstance(X, Tensor) or X.ndim == 0 or len(X) == 0:
        raise value_error("X", "a tensor with at least one sample along its first axis", X)
    if batch_norm_training(model):
        raise value_error(
            "model", "without batch normalization in training mode", "one with it", "call model.eval() first"
        )
    return chosen
