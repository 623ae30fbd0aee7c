"""The few autograd steps that every product stands on: checked losses, double backward, a model as a function.

Only `torch.autograd.grad` is used: ``p.grad`` is neither read nor written, and no reference cycle is made.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from steepest.core.errors import kind_error, value_error
from steepest.curvature.vectors import check_parameters

__all__ = [
    "backward",
    "batch_norm_training",
    "check_unchanged",
    "gradient_graph",
    "loss_value",
    "model_output",
    "second_gradient",
    "select_parameters",
]

Loss = Tensor | Callable[[], Tensor]


def loss_value(loss: Loss) -> Tensor:
    """Return the scalar loss, called under ``enable_grad`` if it is a callable, after checking that it has a graph."""
    if not isinstance(loss, Tensor):
        if not callable(loss):
            raise kind_error("loss", "a scalar tensor or a callable that returns one", loss)
        with torch.enable_grad():
            loss = loss()
        if not isinstance(loss, Tensor):
            raise kind_error("loss()", "a scalar tensor", loss)
    if loss.numel() != 1 or loss.is_complex():
        raise value_error("loss", "a real scalar", loss)
    if not loss.requires_grad:
        raise value_error("loss", "a scalar with a graph", "a tensor without one", "compute it under enable_grad")
    return loss


def gradient_graph(loss: Loss, params: Sequence[Tensor]) -> list[Tensor | None]:
    """Compute the gradient of `loss` with its own graph, ready for `second_gradient`; None where it is constant."""
    g = backward(loss_value(loss), params, create_graph=True)
    return [g_i if g_i is not None and g_i.requires_grad else None for g_i in g]


def second_gradient(
    g: Sequence[Tensor | None],
    params: Sequence[Tensor],
    v: Sequence[Tensor],
    *,
    retain_graph: bool = False,
    batched: bool = False,
) -> list[Tensor]:
    """Compute ``H v = d <g, v> / d params`` from the gradient's graph.

    Parameters
    ----------
    g : sequence of Tensor or None
        From `gradient_graph`.
    params, v : sequence of Tensor
        With `batched`, every tensor of `v` has one more leading axis, and so has the result.

    Raises
    ------
    RuntimeError
        A fused attention kernel, or a parameter changed in place since: the text names the cure.
    """
    pairs = [(g_i, v_i) for g_i, v_i in zip(g, v, strict=True) if g_i is not None]
    if not pairs:
        return [torch.zeros_like(v_i) for v_i in v]
    outputs, weights = zip(*pairs, strict=True)
    Hv = backward(outputs, params, weights, retain_graph=retain_graph, is_grads_batched=batched)
    return [torch.zeros_like(v_i) if h is None else h for h, v_i in zip(Hv, v, strict=True)]


def backward(
    outputs: Tensor | Sequence[Tensor], inputs: Sequence[Tensor], weights: Any = None, **options: Any
) -> tuple[Tensor | None, ...]:
    """Call `torch.autograd.grad` with ``allow_unused=True``; where its error has a known cure, the error names it."""
    try:
        return torch.autograd.grad(outputs, inputs, weights, allow_unused=True, **options)
    except RuntimeError as error:
        cure = _cure(str(error))
        if cure is None:
            raise
        raise RuntimeError(cure) from error


def _cure(message: str) -> str | None:
    if "attention" in message and ("is not implemented" in message or "not support" in message):
        return (
            "the model uses a fused attention kernel, which has no second derivative: use the math attention backend, "
            "torch.nn.attention.sdpa_kernel(SDPBackend.MATH), or an estimate that needs first derivatives only "
            "(gnb_diagonal, Sophia with estimator='gnb')"
        )
    if "modified by an inplace operation" in message:
        return CHANGED
    return None


CHANGED = (
    "a tensor of the graph was changed in place after the graph was built (a parameter, by an optimizer step?): "
    "rebuild it with operator.refresh() or a fresh loss, or use cache=False"
)


def check_unchanged(params: Sequence[Tensor], versions: Sequence[int]) -> None:
    """Raise `RuntimeError` if a parameter was changed in place since its version was noted."""
    if any(p._version != version for p, version in zip(params, versions, strict=True)):
        raise RuntimeError(CHANGED)


def select_parameters(model: nn.Module, params: Iterable[Tensor | str] | None) -> dict[str, Tensor]:
    """Map names to the model's parameters: all that are trained, or those given by name or as tensors.

    Raises
    ------
    TypeError
        `model` is no module.
    ValueError
        A parameter that the model does not have or that is not trained, or none at all.
    """
    if not isinstance(model, nn.Module):
        raise kind_error("model", "a torch.nn.Module", model)
    named = dict(model.named_parameters())
    if params is None:
        chosen: dict[str, Tensor] = {name: p for name, p in named.items() if p.requires_grad}
    else:
        names = {id(p): name for name, p in named.items()}
        chosen = {}
        for i, p in enumerate([params] if isinstance(params, Tensor | str) else params):
            name = p if isinstance(p, str) else names.get(id(p))
            if name not in named:
                raise value_error(f"params[{i}]", "a parameter of the model or its name", p)
            chosen[name] = named[name]
    check_parameters(chosen.values())
    return chosen


def model_output(model: nn.Module, X: Any, params: Mapping[str, Tensor] | None = None) -> Tensor:
    """Call the model on `X`, with `params` in place of its own; its buffers stay as they are.

    Batch statistics are used in training mode, but running ones are updated on copies that are thrown away.
    """
    replaced = dict(params or {})
    if model.training or batch_norm_training(model):
        replaced.update({name: b.clone() for name, b in model.named_buffers()})
    f = functional_call(model, replaced, (X,)) if replaced else model(X)
    if not isinstance(f, Tensor):
        raise kind_error("model(X)", "a tensor", f)
    return f


def batch_norm_training(model: nn.Module) -> bool:
    """Tell whether any layer takes its statistics from the batch, so that samples are not independent."""
    kind = nn.modules.batchnorm._BatchNorm
    return any(isinstance(m, kind) and (m.training or m.running_mean is None) for m in model.modules())
