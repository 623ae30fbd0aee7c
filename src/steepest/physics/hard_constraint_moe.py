r"""A differential equation imposed on a neural network's output, by one least-squares fit or one per box of the grid.

The network emits N fields b_i per grid point; the layer returns u = Σ_i w_i b_i with the weights that fit the equation,

    w = argmin 1/2 ||F(w)||²,   F = (residual of u at sampled points, initial rows, boundary rows, ridge w)

HardConstraint      one w for the whole space-time grid
HardConstraintMoE   the grid cut into K equal boxes, one w_k each: F_k has the points of box k, the initial and boundary
                    rows of the whole grid, and stencils that were taken before the cut; no overlap, no gating

Every term of the equation (u, u_t, u_xx, ...) is linear in u, so the terms of each basis field are computed once a pass
and weighted by w: no derivative of the network inside the solver. Levenberg-Marquardt finds w, the implicit function
theorem differentiates it (`_least_squares`, `_pointwise_rows`), and u depends on b once more through u = Σ w_i b_i.

Paper: chalapathi2024scaling, Sec. 3. Notation: N `basis.shape[-1]`, K the product of `num_experts`, F the stacked rows.
Departures: (1) residuals enter the squares once; the published Navier-Stokes code squares them before. (2) Periodic
derivatives are spectral, one-sided stencils second order. (3) The damping starts relative to JᵀJ, and the stop is the
Newton decrement. (4) ``row_scaling="balanced"``: every group a mean square, the initial rows absolute. With raw rows
the boundary outweighs the equation, and all experts return nearly the same fit of it. (5) ``anchor="global"``: experts
solve for corrections of one global w. (6) ``start="running"``: the mean of earlier weights.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from steepest.core.errors import (
    at_least,
    check,
    check_params,
    kind_error,
    nonnegative,
    one_of,
    optional,
    positive,
    value_error,
)
from steepest.core.random import child_seeds, fresh_seed, torch_generator
from steepest.physics._constraint_rows import ConstraintData, constraint_rows, corrections, cut, sample_points
from steepest.physics._expert_backends import BACKENDS, members, shared, solve_experts
from steepest.physics._least_squares import Info, Settings
from steepest.physics._pde import PDE, require_pde
from steepest.physics._pointwise_rows import PointwiseLeastSquares, Rows

__all__ = ["HardConstraint", "HardConstraintMoE", "HardConstraintOutput"]

Params = Mapping[str, Tensor] | None

LIMITS = {
    "num_sampled_points": optional(at_least(1, integer=True)),
    "ridge": nonnegative(),
    "row_scaling": one_of("none", "balanced"),
    "pde_weight": positive(),
    "start": one_of("pde", "running"),
    "on_failure": one_of("report", "raise"),
    "seed": optional(at_least(0, integer=True)),
}


class HardConstraintOutput(NamedTuple):
    """What a layer returns, for B samples and K experts.

    `solution` (B, *grid) in the basis' dtype; `weights` (B, K, N) float64; `nit` (B, K) Levenberg-Marquardt steps;
    `converged` (B, K); `residual_norm` (B, K), the norm of the stacked rows without the ridge; `ill_conditioned`
    (B, K), where the backward pass takes ``J^T J`` because the Hessian is not positive definite.
    """

    solution: Tensor
    weights: Tensor
    nit: Tensor
    converged: Tensor
    residual_norm: Tensor
    ill_conditioned: Tensor


class HardConstraint(nn.Module):
    """One nonlinear least-squares fit of the basis to the equation on the whole grid (PI-HC).

    Parameters
    ----------
    pde : PDE
        The equation and its grid: `DiffusionSorption1D`, `NavierStokes2D`, or your own.
    num_sampled_points : int, optional
        Distinct grid points of each box at which the equation is asked for, clipped to the box; all by default (the
        paper: 20000). Drawn anew in every forward pass in training, the same in every one in evaluation.
    ridge : float
        Of the row ``ridge * w``, 1e-4 by default (the paper); with nearly collinear fields 1e-2 saves most steps.
    maxiter : int
        Levenberg-Marquardt steps, 50 by default (the published code: 100).
    atol, rtol : float
        See `nonlinear_least_squares`; 1e-6 by default (the published code: 1e-4).
    hessian : "exact" or "gauss-newton"
        For the backward pass; "gauss-newton" is cheaper and right only near a zero residual.
    row_scaling : "none" or "balanced"
        "none" is the paper's: raw rows, the initial ones relative to the initial condition. "balanced": residual rows
        times ``t_max / sqrt(their number)``, initial rows ``1 / sqrt(nx)`` and absolute, boundary rows
        ``1 / sqrt(nt - 1)``.
    pde_weight : float
        Factor of the residual rows, 1 by default.
    start : "pde" or "running"
        First weights: the equation's (ones or zeros, as in the paper), or the running mean, factor 0.9, of the
        converged weights that were met in training, one for each expert, kept in the state dict.
    on_failure : "report" or "raise"
        What to do about solves that did not converge.
    seed : int or None
        Of the sampled points; None draws fresh entropy.

    Raises
    ------
    TypeError
        `pde` lacks part of the protocol, or an argument is of the wrong kind.
    ValueError
        An argument outside its limits.

    Notes
    -----
    The layer solves in float64 whatever the dtype of the basis, and the gradient comes back in the basis' dtype.

    Examples
    --------
    >>> from steepest.physics import DiffusionSorption1D
    >>> pde = DiffusionSorption1D(9, 16)
    >>> basis = torch.rand(2, 9, 16, 4, generator=torch.Generator().manual_seed(0), requires_grad=True)
    >>> layer = HardConstraint(pde, row_scaling="balanced", ridge=1e-2)
    >>> out = layer(basis, torch.full((2, 16), 0.1))
    >>> out.solution.shape, out.weights.shape, bool(out.converged.all())
    (torch.Size([2, 9, 16]), torch.Size([2, 1, 4]), True)
    >>> out.solution.square().mean().backward()
    >>> basis.grad.shape
    torch.Size([2, 9, 16, 4])
    """

    running: Tensor | None
    running_global: Tensor | None

    def __init__(
        self,
        pde: PDE,
        *,
        num_sampled_points: int | None = None,
        ridge: float = 1e-4,
        maxiter: int = 50,
        atol: float = 1e-6,
        rtol: float = 1e-6,
        hessian: str = "exact",
        row_scaling: str = "none",
        pde_weight: float = 1.0,
        start: str = "pde",
        on_failure: str = "report",
        seed: int | None = 0,
    ) -> None:
        super().__init__()
        require_pde(pde)
        self.pde, self.num_sampled_points, self.ridge = pde, num_sampled_points, ridge
        self.settings = Settings(maxiter, atol, rtol, hessian=hessian)
        self.row_scaling, self.pde_weight, self.start, self.on_failure = row_scaling, pde_weight, start, on_failure
        self.seed = seed
        check_params(self, LIMITS)
        self.num_experts: tuple[int, ...] = (1,) * len(pde.grid)
        self.anchor = "none"
        self.backend = "batched"
        training_seed, self._evaluation_seed = child_seeds(fresh_seed() if seed is None else seed, 2)
        self._draws = torch_generator(training_seed)
        self.register_buffer("running", None)
        self.register_buffer("running_global", None)

    def forward(
        self,
        basis: Tensor,
        initial_condition: Tensor,
        params: Params = None,
        generator: torch.Generator | None = None,
    ) -> HardConstraintOutput:
        """Weights that fit the equation, and the field they give.

        Parameters
        ----------
        basis : Tensor of shape (B, nt, nx[, ny], N)
        initial_condition : Tensor of shape (B, nx[, ny])
        params : dict of str to Tensor of shape (B,) or (), optional
            Coefficients of the equation, one per sample where they have the batch axis; differentiable.
        generator : torch.Generator, optional
            Draws the sampled points, instead of the layer's own.

        Returns
        -------
        HardConstraintOutput

        Raises
        ------
        ValueError
            Shapes that do not fit the grid, more fields than points in a box or than `num_sampled_points`, values that
            are not finite, an initial condition with zeros where ``row_scaling="none"`` divides by it.
        RuntimeError
            With ``on_failure="raise"`` when a solve did not converge.
        """
        inputs, names = self._checked(basis, initial_condition, params)
        draws, here = self._generator(generator), ConstraintData.of(self.pde, inputs, names)
        there = (
            here
            if self.backend != "torch.distributed"
            else ConstraintData.of(self.pde, shared(self.backend, inputs), names)
        )
        if self.anchor == "global":
            whole = self._rows(here, (1,) * len(self.num_experts), draws)
            anchor, first = self._solve("batched", whole, "running_global", self.pde.start)
            groups = corrections(self._rows(there, self.num_experts, draws), shared(self.backend, [anchor])[0])
            w, info = self._solve(self.backend, groups, "running", 0.0)
            w = anchor + w
            info["nit"], info["converged"] = info["nit"] + first["nit"], info["converged"] & first["converged"]
            info["ill_conditioned"] = info["ill_conditioned"] | first["ill_conditioned"]
        else:
            w, info = self._solve(self.backend, self._rows(there, self.num_experts, draws), "running", self.pde.start)
        failed = ~info["converged"]
        if self.on_failure == "raise" and bool(failed.any()):
            raise RuntimeError(
                f"{int(failed.sum())} of {failed.numel()} solves did not converge in maxiter={self.settings.maxiter}; "
                "raise maxiter, ridge, atol or rtol"
            )
        return HardConstraintOutput(self._assembled(here, w).to(basis.dtype), w, **info)

    @torch.no_grad()
    def objective(self, basis: Tensor, weights: Tensor, initial_condition: Tensor, params: Params = None) -> Tensor:
        """``1/2 ||F||²`` (B,) of given weights (B, 1, N) or (B, K, N), summed over the experts, without the ridge.

        The rows are those of a forward pass in evaluation.
        """
        data = ConstraintData.of(self.pde, *self._checked(basis, initial_condition, params))
        B, K, N = len(basis), math.prod(self.num_experts), basis.shape[-1]
        if not isinstance(weights, Tensor) or weights.shape not in ((B, 1, N), (B, K, N)):
            raise value_error("weights", f"of shape ({B}, 1 or {K}, {N})", weights)
        draws = torch_generator(self._evaluation_seed)
        if self.anchor == "global":  # its sample comes first
            sample_points(self.pde, (1,) * len(self.num_experts), self.num_sampled_points, draws, N)
        rows = members(self._rows(data, self.num_experts, draws))
        w = weights.detach().double().expand(B, K, N).reshape(-1, N)
        return PointwiseLeastSquares(tuple(rows), ridge=0.0).objective(w).view(B, K).sum(1)

    # ------------------------------------------------------------------------------------------------------- the solve

    def _rows(self, data: ConstraintData, num_experts: tuple[int, ...], draws: torch.Generator) -> list[Rows]:
        """Groups of rows whose tensors begin with (B, K), at points drawn for every box."""
        sample = sample_points(self.pde, num_experts, self.num_sampled_points, draws, data.fields.shape[-1])
        return constraint_rows(
            self.pde, data, *sample, balanced=self.row_scaling == "balanced", pde_weight=self.pde_weight
        )

    def _generator(self, generator: torch.Generator | None) -> torch.Generator:
        if generator is not None:
            return torch_generator(generator, name="generator")
        return self._draws if self.training else torch_generator(self._evaluation_seed)

    def _solve(self, backend: str, groups: list[Rows], buffer: str, start: float) -> tuple[Tensor, Info]:
        shape = (*groups[0].scale.shape[:2], groups[0].bases[0].shape[-1])
        w0, mean = groups[0].scale.new_full(shape, start), getattr(self, buffer)
        if self.start == "running" and mean is not None:
            if mean.shape != shape[1:]:
                raise value_error("basis", f"of {mean.shape[1]} fields, as those of the running weights", shape[2])
            w0 = mean.to(w0).expand(shape)
        w, info = solve_experts(backend, groups, w0, self.settings, self.ridge)
        del info["gradient_norm"]
        of_ridge = self.ridge**2 * (w.detach()).square().sum(-1)
        info["residual_norm"] = (2 * info.pop("cost") - of_ridge).clamp(min=0).sqrt()
        if self.start == "running" and self.training:
            number = info["converged"].sum(0)[:, None]
            now = torch.where(info["converged"][..., None], w.detach(), 0.0).sum(0) / number.clamp(min=1)
            before = now if mean is None else mean
            setattr(self, buffer, torch.where(number > 0, 0.9 * before + 0.1 * now, w0[0] if mean is None else mean))
        return w, info

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *args: Any) -> None:
        for name in ("running", "running_global"):
            value = state_dict.get(prefix + name)
            if value is not None and getattr(self, name) is None:
                setattr(self, name, torch.zeros_like(value))
        super()._load_from_state_dict(state_dict, prefix, *args)

    def _assembled(self, data: ConstraintData, w: Tensor) -> Tensor:
        """Give ``u = Σ b_i w_i``, with every box's own weights."""
        grid, (B, _, N) = self.pde.grid, w.shape
        boxes, inside = "acegik"[: len(grid)], "bdfhjl"[: len(grid)]
        both = "".join(x + y for x, y in zip(boxes, inside, strict=True))
        fields = data.fields.reshape(B, *cut(grid, self.num_experts), N)
        u = torch.einsum(f"z{both}n,z{boxes}n->z{both}", fields, w.reshape(B, *self.num_experts, N)).reshape(B, *grid)
        return u if data.added is None else u + data.added

    # ------------------------------------------------------------------------------------------------------- the door

    def _checked(
        self, basis: Tensor, initial_condition: Tensor, params: Params
    ) -> tuple[list[Tensor], tuple[str, ...]]:
        grid = self.pde.grid
        for name, value in (("basis", basis), ("initial_condition", initial_condition)):
            if not isinstance(value, Tensor) or not value.is_floating_point():
                raise kind_error(name, "a floating tensor", value)
        if basis.ndim != len(grid) + 2 or tuple(basis.shape[1:-1]) != tuple(grid) or 0 in basis.shape:
            raise value_error("basis", f"of shape (B, {', '.join(map(str, grid))}, N)", basis)
        if initial_condition.shape != (len(basis), *grid[1:]):
            raise value_error("initial_condition", f"of shape {(len(basis), *grid[1:])}", initial_condition)
        N = basis.shape[-1]
        if self.num_sampled_points is not None and self.num_sampled_points < N:
            raise value_error(
                "num_sampled_points", f"at least {N}, the number of basis fields", self.num_sampled_points
            )
        given = dict(params or {})
        for name, value in given.items():
            if not isinstance(value, Tensor) or value.shape not in ((), (len(basis),)):
                raise value_error(f"params[{name!r}]", f"a tensor of shape () or ({len(basis)},)", value)
        for name, value in {"basis": basis, "initial_condition": initial_condition, **given}.items():
            if not bool(torch.isfinite(value).all()):
                raise value_error(name, "finite", value)
        relative = self.row_scaling == "none" and bool(self.pde.initial_terms)
        if relative and bool((initial_condition == 0).any()):
            cure = "row_scaling='none' divides by it; take 'balanced'"
            raise value_error("initial_condition", "nowhere zero", initial_condition, cure)
        return [x.double() for x in (basis, initial_condition, *given.values())], tuple(given)


class HardConstraintMoE(HardConstraint):
    """One fit for each of K boxes of the grid, each with its own sample and its own weights (PI-HC-MoE).

    Parameters
    ----------
    pde : PDE
    num_experts : sequence of int
        Boxes along every axis of the grid, which they must divide: ``(1, 4)`` are four slabs of space for one
        dimension, ``(1, 2, 2)`` quarters of the square. Experts are counted in C order of the boxes.
    anchor : "none" or "global"
        "none" is the paper's. "global" first fits one w to a sample of the whole grid, then every expert solves for a
        correction v of it, with the ridge on v alone. `nit` counts both solves; the gradient flows through both, so it
        is local to a box with "none" only.
    backend : "batched", "serial", "ray" or "torch.distributed"
        All experts at once; one after the other; blocks of experts as tasks of the running Ray cluster (start it
        yourself: otherwise one is started in every pass); or K/world experts on every rank of the default process
        group, whose ranks must be given the same arguments and get the same, whole result and gradient.
    **options
        As of `HardConstraint`; `num_sampled_points` counts for each expert.

    Raises
    ------
    ValueError
        `num_experts` of the wrong length or not dividing the grid, a number of ranks that does not divide K.
    RuntimeError
        ``backend="torch.distributed"`` without a process group, when the layer is called.
    MissingExtra
        ``backend="ray"`` without Ray, when the layer is called.

    Notes
    -----
    Every expert sees `num_sampled_points`: K times as many in all as `HardConstraint` with the same number.

    Examples
    --------
    >>> from steepest.physics import DiffusionSorption1D
    >>> basis = torch.rand(2, 9, 16, 4, generator=torch.Generator().manual_seed(0))
    >>> layer = HardConstraintMoE(DiffusionSorption1D(9, 16), (1, 4), row_scaling="balanced", ridge=1e-2)
    >>> layer(basis, torch.full((2, 16), 0.1)).weights.shape
    torch.Size([2, 4, 4])
    """

    def __init__(
        self,
        pde: PDE,
        num_experts: Sequence[int],
        *,
        anchor: str = "none",
        backend: str = "batched",
        **options: Any,
    ) -> None:
        super().__init__(pde, **options)
        if not isinstance(num_experts, (tuple, list)):
            raise kind_error("num_experts", "a sequence of integers", num_experts)
        if len(num_experts) != len(pde.grid):
            raise value_error("num_experts", f"{len(pde.grid)} numbers, one an axis of the grid", num_experts)
        for parts, n in zip(num_experts, pde.grid, strict=True):
            check("num_experts", parts, at_least(1, integer=True))
            if n % parts:
                raise value_error("num_experts", f"divisors of the grid {tuple(pde.grid)}", tuple(num_experts))
        check("anchor", anchor, one_of("none", "global"))
        check("backend", backend, one_of(*BACKENDS))
        self.num_experts, self.anchor, self.backend = tuple(num_experts), anchor, backend
