"""How far a weight turns in a step: ||w'/||w'|| - w/||w|| ||, all that matters of the step of a scale-invariant weight.

Paper: heo2021adamp, Sec. 2 ("effective step size"). Notation: w before, w' after the step.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.optim import Optimizer

from steepest.core.errors import check, one_of, value_error

if TYPE_CHECKING:
    import numpy as np

__all__ = ["EffectiveStepMonitor", "effective_step"]


def effective_step(before: Tensor, after: Tensor, view: str = "channel") -> Tensor:
    """Give the length of the step of the normalized weight.

    Parameters
    ----------
    before, after : Tensor
        The weight (n0, ...), before and after.
    view : "channel" or "layer"
        Normalize every row, that is, slice of the first axis, or the whole tensor. Vectors are one row.

    Returns
    -------
    Tensor
        (n0,) or (1,), between 0 and 2. A row that is zero counts as having direction 0.

    Raises
    ------
    ValueError
        Unknown view; shapes that differ.

    Examples
    --------
    >>> w = torch.tensor([[3.0, 0.0], [0.0, 2.0]])
    >>> effective_step(w, torch.tensor([[0.0, 5.0], [0.0, 7.0]]))
    tensor([1.4142, 0.0000])
    """
    check("view", view, one_of("channel", "layer"))
    if before.shape != after.shape:
        raise value_error("after", f"a tensor of shape {tuple(before.shape)} as before", after)
    return torch.linalg.vector_norm(_direction(after, view) - _direction(before, view), dim=1)


class EffectiveStepMonitor:
    """Record what the steps of an optimizer do to the lengths and directions of its parameters.

    Parameters
    ----------
    optimizer : torch.optim.Optimizer
        Any; the codes of the projection are those of `AdamP` and `SGDP`, 0 for others.

    Notes
    -----
    Keeps one copy of the parameters. Parameters of groups that are added later are not watched.

    Examples
    --------
    >>> w = torch.nn.Parameter(torch.tensor([[3.0, 4.0]]))
    >>> opt = torch.optim.SGD([w], lr=1.0)
    >>> monitor = EffectiveStepMonitor(opt)
    >>> (w[0, 0] / w.norm()).backward()
    >>> opt.step(); monitor.record()
    >>> table = monitor.table()
    >>> table["norm"].round(3), table["effective_step"].round(3)
    (array([[5.003]]), array([[0.032]]))
    """

    def __init__(self, optimizer: Optimizer) -> None:
        self.optimizer = optimizer
        self.params: list[Tensor] = [p for group in optimizer.param_groups for p in group["params"]]
        self._before = [p.detach().clone() for p in self.params]
        self._rows: dict[str, list[list[float]]] = {k: [] for k in ("norm", "effective_step", "cosine", "projection")}

    @torch.no_grad()
    def record(self) -> None:
        """Take the numbers of the step just made; call it after every step and before the gradients are cleared."""
        row: dict[str, list[float]] = {key: [] for key in self._rows}
        for p, before in zip(self.params, self._before, strict=True):
            row["norm"].append(float(torch.linalg.vector_norm(p)))
            row["effective_step"].append(float(effective_step(before, p, "layer")))
            row["cosine"].append(float("nan") if p.grad is None else _cosine(p.grad, before))
            row["projection"].append(float(self.optimizer.state.get(p, {}).get("projection", 0)))
            before.copy_(p)
        for key, values in row.items():
            self._rows[key].append(values)

    def table(self) -> dict[str, np.ndarray]:
        """Give what was recorded.

        Returns
        -------
        dict
            "norm" (length of the parameter after the step), "effective_step" (of the whole tensor), "cosine" (absolute,
            of the gradient and the parameter before the step; NaN without a gradient) and "projection" (0 none, 1
            channel, 2 layer), each (records, parameters) in the order of the groups.
        """
        import numpy as np

        width = len(self.params)
        return {key: np.asarray(rows, dtype=float).reshape(len(rows), width) for key, rows in self._rows.items()}


def _direction(w: Tensor, view: str) -> Tensor:
    rows = w.detach().flatten(1) if view == "channel" and w.dim() > 1 else w.detach().reshape(1, -1)
    return torch.nn.functional.normalize(rows, dim=1, eps=torch.finfo(rows.dtype).tiny)


def _cosine(a: Tensor, b: Tensor) -> float:
    return float((_direction(a, "layer") * _direction(b, "layer")).sum().abs())
