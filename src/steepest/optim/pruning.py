r"""Pruning of trained networks by the optimal brain surgeon on the inverse empirical Fisher.

With F = damping I + G^T G / m (G: m gradients of the loss, one a row) and weights w, removing weight p costs

    rho_p = w_p^2 / (2 [F^{-1}]_pp),        the others move by   dw = -(w_p / [F^{-1}]_pp) F^{-1} e_p .

For a set Q of removed and R of kept weights, min 1/2 dw^T F dw subject to dw_Q = -w_Q is, by the same identity as the
inverse itself, one m x m solve on the kept columns ("joint"):

    dw_R = G_R^T K^{-1} a,   a = G_Q w_Q,   K = G_R G_R^T + m damping I,   cost = damping/2 (|w_Q|^2 + a^T K^{-1} a)

The paper and its code add the single-weight moves of all p in Q and then zero Q ("independent").

Paper: frantar2021mfac, pruning experiments; the surgeon is hassibi1993second.

Departures: (1) the joint correction is the default; (2) every gradient requested enters F (the official loop stops one
early and leaves a zero row); (3) gradients are those of the network in evaluation mode; (4) with block_size, blocks are
cut from the weights that are still there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from steepest.core.errors import (
    at_least,
    boolean,
    check_params,
    interval,
    kind_error,
    one_of,
    optional,
    positive,
    value_error,
)
from steepest.curvature._gradient_matrix import block_spans, full_precision, spans
from steepest.curvature.empirical_fisher import EmpiricalFisherInverse
from steepest.curvature.vectors import flatten, unflatten
from steepest.optim._gradients import batch_gradients, evaluation, sample_gradients

if TYPE_CHECKING:
    from scipy.optimize import OptimizeResult
    from torch.utils.hooks import RemovableHandle

__all__ = ["apply_mask", "keep_mask", "mfac_prune"]

Mask = Mapping[str, Tensor]
LIMITS = {
    "sparsity": interval(0, 1, high_open=True),
    "n_grads": at_least(1, integer=True),
    "damping": positive(),
    "block_size": optional(at_least(1, integer=True)),
    "recompute": at_least(1, integer=True),
    "correction": one_of("joint", "independent", "none"),
    "score": one_of("mfac", "magnitude", "diagonal"),
    "per_sample": boolean(),
}


def mfac_prune(
    model: nn.Module,
    batches: Iterable[tuple[Any, Any]],
    loss_fn: Callable[[Any, Any], Tensor],
    sparsity: float,
    *,
    params: Sequence[str] | None = None,
    n_grads: int = 64,
    damping: float = 1e-5,
    block_size: int | None = None,
    recompute: int = 1,
    correction: str = "joint",
    score: str = "mfac",
    mask: Mask | None = None,
    per_sample: bool = False,
) -> OptimizeResult:
    """Remove weights of a trained network and move the others to make up for it, in place.

    Parameters
    ----------
    model : Module
        Evaluated in eval mode; its training flags are as before afterwards.
    batches : re-iterable of (x, y)
        Each step walks through it from the start (a shuffling loader gives fresh batches).
    loss_fn : callable
        ``loss_fn(model(x), y)``, a scalar; a mean over the batch is usual.
    sparsity : float
        Share of the selected weights that is zero at the end, in [0, 1): ``d - round((1 - sparsity) d)`` of d.
    params : sequence of str, optional
        Names of the parameters to prune; by default all that require gradients and have two or more dimensions.
    n_grads : int
        Gradients m in F, one for each batch (64: official code). With fewer batches m is their number.
    damping : float
        λ of F (1e-5: official code).
    block_size : int, optional
        Diagonal blocks of F (official code: 128); all of F by default.
    recompute : int
        Steps to the target, with fresh gradients and geometric densities (official code: 16).
    correction : "joint", "independent" or "none"
        How the weights that stay make up for those that go; see the module.
    score : "mfac", "diagonal" or "magnitude"
        Which weights go: the smallest ``w^2 / [F^{-1}]_pp``, ``w^2 F_pp`` or ``|w|``; ties by position.
    mask : dict of name to bool Tensor, optional
        True where a weight is kept; the others are zeroed at the start and stay so. Names left out are kept whole.
    per_sample : bool
        One gradient for each example instead of each batch.

    Returns
    -------
    OptimizeResult
        ``mask`` (dict name -> bool Tensor, True = kept), ``sparsity``, ``predicted_increase`` (``1/2 dw^T F dw``,
        summed over the steps), ``history`` (sparsity after each step), ``n_grads_used`` (m), ``nit``, ``success``,
        ``status``, ``message``.

    Raises
    ------
    ValueError, TypeError
        Arguments out of range, unknown names, a target below the mask's sparsity, no batches, or a selected parameter
        that the loss does not depend on (it is named).
    FloatingPointError
        A gradient is not finite.

    References
    ----------
    frantar2021mfac; hassibi1993second.

    Examples
    --------
    >>> model = torch.nn.Linear(3, 1, bias=False)
    >>> with torch.no_grad():
    ...     _ = model.weight.copy_(torch.tensor([[1.0, -2.0, 0.01]]))
    >>> x = torch.eye(3)
    >>> result = mfac_prune(model, [(x[i : i + 1], torch.zeros(1, 1)) for i in range(3)], torch.nn.MSELoss(), 0.3)
    >>> result.mask["weight"].tolist(), result.n_grads_used
    ([[True, True, False]], 3)
    """
    check_params(locals(), LIMITS)
    if recompute > 1 and isinstance(batches, Iterator):
        raise kind_error("batches", "re-iterable with recompute > 1", batches, "pass a list or a DataLoader")
    weights = select_parameters(model, params)
    keep = flat_mask(weights, mask)  # (d,) bool
    d, start = keep.numel(), int(keep.sum())
    target = round((1 - float(sparsity)) * d)
    if target > start:
        raise value_error("sparsity", f"at least that of mask, {1 - start / d:g}", sparsity)
    collect = sample_gradients if per_sample else batch_gradients

    w = flatten(weights.values()).detach().clone()
    w[~keep] = 0
    write(weights, w)
    history, predicted, m = [], 0.0, 0
    for step in range(1, recompute + 1):
        n_keep = target if step == recompute else round(start * (max(target, 1) / max(start, 1)) ** (step / recompute))
        rest = keep.nonzero().squeeze(1)
        with evaluation(model):
            G = collect(model, batches, loss_fn, weights, rest, n_grads)  # (m, len(rest))
        m = len(G)
        v = w[rest]
        with full_precision(G.device):
            removed, dv = surgeon(G, v, len(rest) - n_keep, float(damping), block_size, score, correction)
            predicted += increase(G, dv, float(damping), block_size)
        v = v + dv
        v[removed] = 0
        w[rest] = v
        keep[rest[removed]] = False
        write(weights, w)
        history.append(1 - int(keep.sum()) / d)

    from scipy.optimize import OptimizeResult

    fewer = f"; {m} gradients were available of n_grads={n_grads}" if m < n_grads else ""
    return OptimizeResult(
        mask=dict(zip(weights, unflatten(keep, weights.values()))),
        sparsity=history[-1],
        predicted_increase=predicted,
        history=history,
        n_grads_used=m,
        nit=recompute,
        success=True,
        status=0,
        message=f"removed {d - target} of {d} weights in {recompute} step(s)" + fewer,
    )


@torch.no_grad()
def apply_mask(model: nn.Module, mask: Mask) -> None:
    """Zero the weights that `mask` (name -> bool Tensor, True = kept) removes.

    Examples
    --------
    >>> model = torch.nn.Linear(2, 1)
    >>> apply_mask(model, {"weight": torch.tensor([[True, False]])})
    >>> model.weight[0, 1].item()
    0.0
    """
    for p, keep in checked_mask(dict(model.named_parameters()), mask):
        p.masked_fill_(~keep, 0)


def keep_mask(model: nn.Module, mask: Mask, optimizer: torch.optim.Optimizer) -> RemovableHandle:
    """Keep removed weights at zero while `optimizer` fine-tunes: they are zeroed after each of its steps.

    Parameters
    ----------
    model : Module
    mask : dict of name to bool Tensor
        True = kept.
    optimizer : torch.optim.Optimizer

    Returns
    -------
    RemovableHandle
        ``handle.remove()`` ends it.
    """
    pairs = checked_mask(dict(model.named_parameters()), mask)
    removed = [(p, ~keep) for p, keep in pairs]

    @torch.no_grad()
    def zero(*_: Any) -> None:
        for p, gone in removed:
            p.masked_fill_(gone, 0)

    return optimizer.register_step_post_hook(zero)


# ---------------------------------------------------------------------------------------------------- one step


def surgeon(
    G: Tensor,  # (m, d)
    w: Tensor,  # (d,)
    n_remove: int,
    damping: float,
    block_size: int | None,
    score: str,
    correction: str,
) -> tuple[Tensor, Tensor]:
    """Choose the weights to remove (their indices) and the change of all, (d,)."""
    diagonal = inverse = None
    if n_remove and (score == "mfac" or correction == "independent"):
        inverse = EmpiricalFisherInverse(G, damping, block_size=block_size)
        diagonal = inverse.diag()
    if score == "mfac" and diagonal is not None:
        rho = w.square() / (2 * diagonal)
    elif score == "diagonal":
        rho = w.square() * (damping + G.square().mean(0)) / 2
    else:
        rho = w.abs()
    removed = torch.sort(rho, stable=True).indices[:n_remove]

    dw = torch.zeros_like(w)
    if inverse is not None and diagonal is not None and correction == "independent":
        dw[removed] = w[removed] / diagonal[removed]
        dw = -inverse.matvec(dw)
    inverse = None  # its m d values are not needed beside the next step's
    if n_remove and correction == "joint":
        dw = joint_move(G, w, removed, damping, block_size)
    dw[removed] = -w[removed]
    return removed, dw


def joint_move(G: Tensor, w: Tensor, removed: Tensor, damping: float, block_size: int | None) -> Tensor:
    """dw_R = G_R^T K^{-1} (G_Q w_Q) per block, zero on Q; K and its factor in float64."""
    m, d = G.shape
    stay = torch.ones(d, dtype=torch.float64, device=G.device)
    stay[removed] = 0
    w_Q = w.double() * (1 - stay)
    a = block_products(G, w_Q, block_size)  # (m, blocks): G_Q w_Q
    out = torch.empty(d, dtype=torch.float64, device=G.device)
    if block_size is None:
        K = torch.zeros(m, m, dtype=torch.float64, device=G.device)
        for i, j in spans(d, page_width(m)):
            G_R = G[:, i:j] * stay[i:j]
            K += G_R @ G_R.mT
        c = solve_damped(K, a, m * damping)
        for i, j in spans(d, page_width(m)):
            out[i:j] = ((G[:, i:j] * stay[i:j]).mT @ c).squeeze(1)
    else:
        for i, j, width in block_spans(d, block_size, page_width(m)):
            G_R = (G[:, i:j] * stay[i:j]).reshape(m, -1, width).transpose(0, 1)  # (blocks, m, width)
            first = i // block_size
            rhs = a[:, first : first + len(G_R)].mT.unsqueeze(-1)
            c = solve_damped(G_R @ G_R.mT, rhs, m * damping)
            out[i:j] = (G_R.mT @ c).reshape(-1)
    return out.to(w.dtype)


def increase(G: Tensor, dw: Tensor, damping: float, block_size: int | None) -> float:
    """1/2 dw^T F dw with the F (or its blocks) that was used."""
    dw = dw.double()
    return float(damping * dw.square().sum() + block_products(G, dw, block_size).square().sum() / len(G)) / 2


def block_products(G: Tensor, x: Tensor, block_size: int | None) -> Tensor:
    """Products of each row with `x`, block by block: (m, blocks), float64."""
    m, d = G.shape
    if block_size is None:
        out = torch.zeros(m, dtype=torch.float64, device=G.device)
        for i, j in spans(d, page_width(m)):
            out += G[:, i:j].double() @ x[i:j]
        return out[:, None]
    parts = [(G[:, i:j] * x[i:j]).reshape(m, -1, b).sum(-1) for i, j, b in block_spans(d, block_size, page_width(m))]
    return torch.cat(parts, dim=1)


def solve_damped(K: Tensor, rhs: Tensor, shift: float) -> Tensor:
    """(K + shift I)^{-1} rhs for one K or a batch."""
    K.diagonal(dim1=-2, dim2=-1).add_(shift)
    L, info = torch.linalg.cholesky_ex(K)
    if bool((info != 0).any()):
        message = "damping is below the rounding errors of the gradients' Gram matrix; raise it"
        raise torch.linalg.LinAlgError(message)  # type: ignore[attr-defined]
    return torch.cholesky_solve(rhs, L)


def page_width(m: int) -> int:
    """Columns whose float64 copies stay small."""
    return max(256, 2**20 // m)


# ---------------------------------------------------------------------------------------------------- names, masks


def select_parameters(model: nn.Module, names: Sequence[str] | None) -> dict[str, Tensor]:
    """Find the parameters to prune, by name."""
    known = dict(model.named_parameters())
    if names is None:
        chosen: dict[str, Tensor] = {name: p for name, p in known.items() if p.requires_grad and p.ndim >= 2}
        if not chosen:
            raise value_error("model", "one with parameters of two or more dimensions", type(model).__name__)
        return chosen
    if isinstance(names, str) or not names:
        raise value_error("params", "a sequence of parameter names", names)
    for name in names:
        if name not in known:
            raise value_error("params", f"names of the model's parameters ({', '.join(known)})", name)
        if not known[name].requires_grad:
            raise value_error("params", "parameters that require gradients", name)
    return {name: known[name] for name in dict.fromkeys(names)}


def checked_mask(weights: Mapping[str, Tensor], mask: Mask) -> list[tuple[Tensor, Tensor]]:
    """Pair each named parameter with its mask."""
    pairs = []
    for name, keep in mask.items():
        if name not in weights:
            raise value_error("mask", f"for parameters among {', '.join(weights)}", name)
        if not isinstance(keep, Tensor) or keep.dtype != torch.bool:
            raise kind_error(f"mask[{name!r}]", "a bool tensor", keep)
        if keep.shape != weights[name].shape:
            raise value_error(f"mask[{name!r}]", f"of shape {tuple(weights[name].shape)}", keep)
        pairs.append((weights[name], keep.to(weights[name].device)))
    return pairs


def flat_mask(weights: Mapping[str, Tensor], mask: Mask | None) -> Tensor:
    """One bool for each selected weight, (d,), True = kept."""
    parts = {id(p): torch.ones_like(p, dtype=torch.bool) for p in weights.values()}
    for p, keep in checked_mask(weights, mask or {}):
        parts[id(p)] = keep
    return flatten(parts.values())


@torch.no_grad()
def write(weights: Mapping[str, Tensor], flat: Tensor) -> None:
    """Copy a vector into the parameters, in place."""
    for p, part in zip(weights.values(), unflatten(flat, weights.values())):
        p.copy_(part)
