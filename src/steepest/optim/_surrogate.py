r"""The surrogate of one outer step: a function of the parameters that calls the model and never the loss.

    s(theta) = l(z_t) + <g, f(theta) - z_t> + D(f(theta), z_t) / (eta nu) + sum_p weight_decay_p ||p||^2 / 2
    grad s   = J^T (g + grad D / (eta nu)) + weight_decay theta          J the Jacobian of f, one backward pass

    euclidean   D = ||z - z_t||^2 / 2                               grad D = z - z_t
    kl          D = sum over rows of KL(softmax z_t || softmax z)   grad D = softmax z - softmax z_t
                (one column: KL of the two Bernoulli laws)          grad D = sigmoid z - sigmoid z_t

Paper: lavington2023target. Values are kept as differences from s(theta_t), which a line search compares without the
rounding of l(z_t); z_t and g carry no graph. Half-precision parameters are moved through float32 copies, and the
targets of such models are float32 here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from steepest.core.errors import value_error
from steepest.optim._tensors import moment_dtype

__all__ = ["DIVERGENCES", "Surrogate", "Targets"]

Forward = Callable[..., Tensor]


class Targets:
    """The model's targets z = f(theta) as rows, in one call of `forward` or in one call for each chunk of rows.

    Parameters
    ----------
    forward : callable
        ``forward()`` gives z (n, ...); with `chunk_size` ``forward(rows)`` gives the rows of a slice, fewer than asked
        for where they end.
    chunk_size : int or None
    """

    def __init__(self, forward: Forward, chunk_size: int | None) -> None:
        self._forward, self._chunk_size = forward, chunk_size
        self._n: int | None = None
        self.calls = 0

    def pieces(self) -> Iterator[tuple[slice, Tensor]]:
        """Yield rows and their targets, in at least single precision."""
        if self._chunk_size is None:
            z = self._call()
            yield slice(0, len(z)), z
            return
        start = 0
        while self._n is None or start < self._n:
            z = self._call(slice(start, start + self._chunk_size))
            stop = start + len(z)
            if len(z):
                yield slice(start, stop), z
            if len(z) < self._chunk_size:
                self._n = stop
            start += self._chunk_size

    def whole(self) -> Tensor:
        """All targets (n, ...) without a graph."""
        with torch.no_grad():
            parts = [z for _, z in self.pieces()]
        return parts[0].clone() if len(parts) == 1 else torch.cat(parts)  # z may be a view of a parameter

    def _call(self, *rows: slice) -> Tensor:
        self.calls += 1
        z = self._forward(*rows)
        if not isinstance(z, Tensor) or not z.is_floating_point() or z.dim() == 0:
            raise value_error("forward()", "a tensor of real targets with one row per sample", z)
        return z.to(moment_dtype(z))


# ---------------------------------------------------------------------------------------------------------- divergences


def _euclidean(z: Tensor, z_t: Tensor, d: Tensor) -> tuple[Tensor, Tensor]:
    return _inner(d, d) / 2, d


def _kl(z: Tensor, z_t: Tensor, d: Tensor) -> tuple[Tensor, Tensor]:
    if z.shape[1] == 1:
        p_t = z_t.sigmoid()
        return (F.logsigmoid(-z_t) - F.logsigmoid(-z)).sum() - _inner(p_t, d), z.sigmoid() - p_t
    p_t = z_t.softmax(-1)
    bregman = (z.logsumexp(-1) - z_t.logsumexp(-1)).sum() - _inner(p_t, d)
    return bregman, z.softmax(-1) - p_t


def _inner(a: Tensor, b: Tensor) -> Tensor:
    return torch.dot(a.reshape(-1), b.reshape(-1))


DIVERGENCES: dict[str, Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]] = {
    "euclidean": _euclidean,
    "kl": _kl,
}
"""Name to ``(z, z_t, z - z_t) -> (D, grad D)``, D summed over the rows."""


# ------------------------------------------------------------------------------------------------------------ surrogate


class Surrogate:
    """s of one outer step as a function of the parameters that it moves.

    Parameters
    ----------
    targets : Targets
    z_t, g : Tensor (n, ...)
        Targets at the start and the gradient of the loss there.
    loss : float
        l(z_t).
    graph : Tensor or None
        z_t with its graph, which saves a forward pass at the start.
    divergence : str
        A key of `DIVERGENCES`.
    weight : float
        1 / (eta nu), infinite for eta = 0.
    params : list of Tensor
        What may move.
    decays : list of float
        Weight decay of each.
    reduce : callable
        Combines a list of tensors over ranks, in place.

    Attributes
    ----------
    params : list of Tensor
        Those that f depends on.
    theta : list of Tensor
        What minimizers move: the parameters' own memory, or float32 copies of half-precision ones.
    start : list of Tensor
        Copies of `theta` at the start.
    start_grads : list of Tensor
        Gradient of s there.
    base : float
        s(theta_t).
    """

    def __init__(
        self,
        targets: Targets,
        z_t: Tensor,
        g: Tensor,
        *,
        loss: float,
        graph: Tensor | None,
        divergence: str,
        weight: float,
        params: Sequence[Tensor],
        decays: Sequence[float],
        foreach: bool,
        reduce: Callable[[list[Tensor]], None],
    ) -> None:
        self._targets, self._z_t, self._g = targets, z_t, g
        self._divergence, self._weight = DIVERGENCES[divergence], weight
        self._foreach, self._reduce = foreach, reduce
        self._nothing = z_t.new_zeros(())
        found = self._jacobian_products(list(params), graph)
        used = self._used(found)
        self.params = [p for p, u in zip(params, used, strict=True) if u]
        self._decays = [d for d, u in zip(decays, used, strict=True) if u]
        # detached parameters share the memory: what is written there arrives in the model
        self.theta = [p.detach().to(moment_dtype(p)) for p in self.params]
        self._rounded = [(p, w) for p, w in zip(self.params, self.theta, strict=True) if p.dtype != w.dtype]
        self._decaying = [i for i, d in enumerate(self._decays) if d]
        self.start = [w.clone() for w in self.theta]
        self.start_grads, _ = self._complete([h for h, u in zip(found, used, strict=True) if u])
        self.base = loss + sum(self._decays[i] / 2 * float(self.start[i].square().sum()) for i in self._decaying)

    # ------------------------------------------------------------------------------------------------------- evaluation

    def difference(self) -> float:
        """``s(theta) - s(theta_t)`` without a graph."""
        self.write()
        with torch.no_grad():
            value = sum((self._piece(rows, z)[0] for rows, z in self._targets.pieces()), self._nothing)
        self._reduce([value])
        return float(value) + self._decay_difference()

    def difference_and_grads(self) -> tuple[float, list[Tensor]]:
        """``s(theta) - s(theta_t)`` and the gradient of s at theta, shaped as `theta`."""
        self.write()
        grads: list[Tensor | None] = [None] * len(self.params)
        value = self._nothing
        with torch.enable_grad():
            for rows, z in self._targets.pieces():
                part, cotangent = self._piece(rows, z.detach())
                value = value + part
                if z.requires_grad:
                    _accumulate(grads, torch.autograd.grad(z, self.params, cotangent, allow_unused=True))
        complete, mean = self._complete(grads, value)
        return float(mean) + self._decay_difference(), complete

    def _piece(self, rows: slice, z: Tensor) -> tuple[Tensor, Tensor]:
        """The part of ``s - s(theta_t)`` that rows have in it, and its derivative by their targets."""
        z_t, g = self._z_t[rows], self._g[rows]
        if z.shape != z_t.shape:
            raise value_error("forward()", f"of the shape {tuple(z_t.shape)} that it had at first", z)
        d = z - z_t
        D, slope = self._divergence(z, z_t, d)
        return _inner(g, d) + self._weight * D, torch.add(g, slope, alpha=self._weight)

    def _jacobian_products(self, params: list[Tensor], graph: Tensor | None) -> list[Tensor | None]:
        """J^T g at the start, where the divergence has no slope; None for a parameter that f does not depend on."""
        grads: list[Tensor | None] = [None] * len(params)
        with torch.enable_grad():
            pieces = self._targets.pieces() if graph is None else [(slice(0, len(graph)), graph)]
            for rows, z in pieces:
                if z.requires_grad:
                    _accumulate(grads, torch.autograd.grad(z, params, self._g[rows].clone(), allow_unused=True))
        for h in grads:
            if h is not None and h.layout is not torch.strided:
                raise RuntimeError(f"TargetSurrogate does not take sparse gradients, got {h.layout}; use sparse=False")
        return grads

    def _used(self, grads: Sequence[Tensor | None]) -> list[bool]:
        mask = torch.tensor([float(h is not None) for h in grads], device=self._z_t.device)  # > 0 on some rank
        self._reduce([mask])
        if not mask.any():
            raise ValueError("forward() must depend on a parameter of this optimizer that requires a gradient")
        return [bool(u) for u in mask]

    def _complete(self, grads: Sequence[Tensor | None], value: Tensor | None = None) -> tuple[list[Tensor], Tensor]:
        """Reduce over ranks, then add weight decay."""
        found = [torch.zeros_like(w) if h is None else h.to(w.dtype) for h, w in zip(grads, self.theta, strict=True)]
        value = self._nothing.clone() if value is None else value
        self._reduce([*found, value])
        for i in self._decaying:
            found[i] = found[i].add(self.theta[i], alpha=self._decays[i])
        return found, value

    def _decay_difference(self) -> float:
        pairs = ((self._decays[i] / 2, self.theta[i], self.start[i]) for i in self._decaying)
        return sum(half * float(((w - w_t) * (w + w_t)).sum()) for half, w, w_t in pairs)

    # -------------------------------------------------------------------------------------------------- the parameters

    def move(self, base: Sequence[Tensor], direction: Sequence[Tensor], step: float) -> None:
        """Set theta to ``base - step direction``."""
        if self._foreach:
            torch._foreach_copy_(self.theta, torch._foreach_add(list(base), list(direction), alpha=-step))
        else:
            for w, b, d in zip(self.theta, base, direction, strict=True):
                torch.add(b, d, alpha=-step, out=w)

    def place(self, at: Sequence[Tensor]) -> None:
        """Set theta to `at`, bit by bit."""
        for w, b in zip(self.theta, at, strict=True):
            w.copy_(b)
        self.write()

    def write(self) -> None:
        """Round theta into half-precision parameters; full-precision ones share its memory."""
        for p, w in self._rounded:
            p.data.copy_(w)


def _accumulate(total: list[Tensor | None], part: Sequence[Tensor | None]) -> None:
    for i, h in enumerate(part):
        if h is not None:
            before = total[i]
            total[i] = h if before is None else before + h
