"""What must hold exactly: the implicit gradient against finite differences, and no expert's reach beyond its box."""

from __future__ import annotations

import torch
from torch import Tensor

from steepest.core.random import torch_generator
from steepest.physics import DiffusionSorption1D, HardConstraint, HardConstraintMoE
from steepest.physics._constraint_rows import ConstraintData, constraint_rows, sample_points
from steepest.physics._expert_backends import solve_experts
from steepest.physics._least_squares import Settings
from steepest.studies.context import Context
from steepest.studies.hard_constraint_moe_costs import smooth_fields

__all__ = ["exact"]

FIELDS = 3


def exact(ctx: Context) -> None:
    """Both claims."""
    ctx.measured("gradient", max(_gradient_error(kind) for kind in ("one", "experts", "anchored")))
    ctx.measured("gradient-local", _reach())


def _small() -> tuple[DiffusionSorption1D, Tensor, Tensor]:
    pde = DiffusionSorption1D(6, 8)
    return pde, smooth_fields(pde, FIELDS, 1), torch.full((1, 8), 0.3, dtype=torch.float64)


def _gradient_error(kind: str) -> float:
    """Derivative of the solution along random directions against fourth-order central differences, relative."""
    pde, basis, u0 = _small()
    options = {"row_scaling": "balanced", "ridge": 1e-2, "maxiter": 300}
    layer = {
        "one": lambda: HardConstraint(pde, **options),
        "experts": lambda: HardConstraintMoE(pde, (1, 2), **options),
        "anchored": lambda: HardConstraintMoE(pde, (1, 2), anchor="global", **options),
    }[kind]().eval()
    g, h, worst = torch_generator(0), 1e-5, 0.0
    for _ in range(3):
        c, d = (torch.randn(*shape, generator=g, dtype=torch.float64) for shape in (pde.grid, basis.shape))

        def value(basis: Tensor, c: Tensor = c) -> Tensor:
            return (layer(basis, u0).solution * c).sum()

        leaf = basis.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(value(leaf), leaf)
        with torch.no_grad():
            ends = [float(value(basis + step * d)) for step in (h, -h, 2 * h, -2 * h)]
        along = (8 * (ends[0] - ends[1]) - (ends[2] - ends[3])) / (12 * h)
        worst = max(worst, abs(float((gradient * d).sum()) - along) / max(1.0, abs(along)))
    return worst


def _reach() -> float:
    """Largest derivative of one box's solution in terms of the other boxes: 0, not just small."""
    pde, basis, u0 = _small()
    data = ConstraintData.of(pde, [basis, u0], ())
    leaves = {name: data.terms[name].detach().requires_grad_() for name in pde.residual_terms}
    data.terms.update(leaves)
    sample = sample_points(pde, (1, 4), None, torch_generator(0), FIELDS)
    rows = constraint_rows(pde, data, *sample, balanced=True, pde_weight=1.0)
    w, _ = solve_experts(
        "batched", rows, torch.ones(1, 4, FIELDS, dtype=torch.float64), Settings(100, 1e-6, 1e-6), 1e-2
    )
    own = leaves["u"][:, :, 2:4]
    found = torch.autograd.grad((own @ w[0, 1]).square().sum(), list(leaves.values()))
    return max(float(torch.cat((g[:, :, :2], g[:, :, 4:]), 2).abs().max()) for g in found)
