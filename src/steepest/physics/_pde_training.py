r"""Training of a neural operator by a differential equation alone, with a hard-constraint layer or without.

    loss = mean over the batch of  ||residual of u||_2 + ||u(0) - u0||_2 / ||u0||_2 + ||boundary rows||_2 / sqrt(nt - 1)

over the whole grid, norms not squared; parts that an equation has no rows for are left out (Navier-Stokes: all but the
first). No solution data. Without a layer (PI-SC, the soft constraint) the network's one channel is the field itself.

Paper: chalapathi2024scaling, Sec. 4; the boundary part is relative to the inlet's value, 1.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn

from steepest.core.errors import at_least, check, kind_error, one_of, optional, positive, value_error
from steepest.core.random import torch_generator
from steepest.physics._pde import PDE, operator_input, require_pde
from steepest.physics.hard_constraint_moe import HardConstraint, HardConstraintOutput

__all__ = ["fit_pde_operator", "operator_solution", "pde_loss"]


def fit_pde_operator(
    net: nn.Module,
    constraint: HardConstraint | None,
    pde: PDE,
    initial_conditions: Tensor,
    *,
    steps: int,
    lr: float = 1e-3,
    schedule: str | None = None,
    max_seconds: float | None = None,
    batch_size: int = 6,
    seed: int | torch.Generator | None = 0,
) -> dict[str, list[float]]:
    """Train `net` in place by Adam on the equation's residual.

    Parameters
    ----------
    net : torch.nn.Module
        From `operator_input` (B, *grid, channels) to basis fields (B, *grid, N), one field without a constraint.
    constraint : HardConstraint, HardConstraintMoE or None
        The layer behind it; None trains the soft constraint.
    pde : PDE
    initial_conditions : Tensor of shape (n, nx[, ny])
        In the dtype of the network.
    steps : int
        Batches.
    lr : float
        1e-3 by default (the paper's).
    schedule : None or "cosine"
        "cosine" lets the rate fall to zero over the steps, or over the seconds where those run out first.
    max_seconds : float, optional
        Stop when this process has used so many CPU seconds here.
    batch_size : int
        6 by default (the paper's for diffusion-sorption; 4 for Navier-Stokes).
    seed : int, torch.Generator or None
        Order of the initial conditions.

    Returns
    -------
    dict
        One number a step: ``fun`` (the loss), ``residual``, ``initial``, ``boundary`` (its parts), ``seconds`` (CPU,
        since the start), ``nit`` (mean Levenberg-Marquardt steps) and ``not_converged`` (share of solves); the last two
        are zeros without a constraint.

    Raises
    ------
    ValueError, TypeError
        An argument outside its limits.
    FloatingPointError
        The loss is not finite; lower `lr`.

    Examples
    --------
    >>> from steepest.physics import FNO, DiffusionSorption1D
    >>> pde = DiffusionSorption1D(8, 16)
    >>> net = FNO(3, 1, (2, 2), (4, 4), 8, output_activation=None)
    >>> history = fit_pde_operator(net, None, pde, torch.full((2, 16), 0.1), steps=30, batch_size=2, lr=1e-2)
    >>> history["fun"][-1] < history["fun"][0]
    True
    """
    if not isinstance(net, nn.Module):
        raise kind_error("net", "a torch.nn.Module", net)
    if constraint is not None and not isinstance(constraint, HardConstraint):
        raise kind_error("constraint", "None or a HardConstraint", constraint)
    require_pde(pde)
    if not isinstance(initial_conditions, Tensor) or not initial_conditions.is_floating_point():
        raise kind_error("initial_conditions", "a floating tensor", initial_conditions)
    if initial_conditions.shape[1:] != tuple(pde.grid[1:]) or not len(initial_conditions):
        raise value_error(
            "initial_conditions", f"of shape (n, {', '.join(map(str, pde.grid[1:]))})", initial_conditions
        )
    check("steps", steps, at_least(1, integer=True))
    check("lr", lr, positive())
    check("schedule", schedule, optional(one_of("cosine")))
    check("max_seconds", max_seconds, optional(positive()))
    check("batch_size", batch_size, at_least(1, integer=True))
    generator = torch_generator(seed)
    batches = _batches(initial_conditions, min(batch_size, len(initial_conditions)), generator)
    optimizer = torch.optim.Adam(net.parameters(), lr=lr)
    history: dict[str, list[float]] = {
        key: [] for key in ("fun", "residual", "initial", "boundary", "seconds", "nit", "not_converged")
    }
    net.train()
    if constraint is not None:
        constraint.train()
    began = time.process_time()
    for step in range(steps):
        spent = time.process_time() - began
        if max_seconds is not None and spent >= max_seconds:
            break
        if schedule == "cosine":
            share = max(step / steps, spent / max_seconds if max_seconds else 0.0)
            optimizer.param_groups[0]["lr"] = lr * (1 + math.cos(math.pi * share)) / 2
        initial_condition = batches()
        u, output = operator_solution(net, constraint, pde, initial_condition)
        parts = pde_loss(pde, u, initial_condition)
        loss = torch.stack(list(parts.values())).sum()
        if not bool(torch.isfinite(loss)):
            raise FloatingPointError(f"the loss is not finite in step {step + 1}; lower lr={lr:g}")
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        numbers = {name: float(value.detach()) for name, value in {"fun": loss, **parts}.items()}
        if output is not None:
            numbers["nit"] = float(output.nit.double().mean())
            numbers["not_converged"] = float((~output.converged).double().mean())
        numbers["seconds"] = time.process_time() - began
        for key, values in history.items():
            values.append(numbers.get(key, 0.0))
    net.eval()
    if constraint is not None:
        constraint.eval()
    return history


def operator_solution(
    net: nn.Module, constraint: HardConstraint | None, pde: PDE, initial_condition: Tensor
) -> tuple[Tensor, HardConstraintOutput | None]:
    """The field (B, *grid) that a network gives for initial conditions (B, nx[, ny]), and what the layer said.

    Raises
    ------
    ValueError
        Without a constraint the network must have one output channel.
    """
    basis = net(operator_input(pde, initial_condition))
    if constraint is not None:
        output = constraint(basis, initial_condition)
        return output.solution, output
    if basis.shape[-1] != 1:
        raise value_error("net", "a network of one output channel where constraint is None", basis)
    fields, added = pde.ansatz(basis, initial_condition)
    return fields[..., 0] if added is None else fields[..., 0] + added, None


def pde_loss(pde: PDE, u: Tensor, initial_condition: Tensor) -> dict[str, Tensor]:
    """Parts of the loss of fields (B, *grid), in float64: ``residual``, ``initial`` and ``boundary`` as it has them.

    Points that `pde.points` leaves out do not count.
    """
    terms, u0 = pde.terms(u.double()), initial_condition.double()
    residual = pde.residual(terms) * pde.points().to(u.device)
    parts = {"residual": _norm(residual).mean()}
    if pde.initial_terms:
        parts["initial"] = (_norm(pde.initial(terms, u0)) / _norm(u0)).mean()
    if pde.boundary_terms:
        parts["boundary"] = _norm(pde.boundary(terms)).mean() / math.sqrt(pde.grid[0] - 1)
    return parts


def _norm(x: Tensor) -> Tensor:
    return torch.linalg.vector_norm(x.flatten(1), dim=1)


def _batches(data: Tensor, size: int, generator: torch.Generator) -> Callable[[], Tensor]:
    """Draw without replacement, in a new order once the rest is smaller than a batch."""
    order: list[Tensor] = []

    def draw() -> Tensor:
        if not order:
            order.extend(x for x in torch.randperm(len(data), generator=generator).split(size) if len(x) == size)
        return data[order.pop(0).to(data.device)]

    return draw
