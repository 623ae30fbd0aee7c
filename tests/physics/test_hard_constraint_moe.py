"""The layer against SciPy on rows by hand, its gradient against finite differences, experts against one another."""

from __future__ import annotations

import copy
import math
from datetime import timedelta

import numpy as np
import pytest
import torch
from scipy.optimize import least_squares
from torch import Tensor

from steepest.physics._constraint_rows import ConstraintData, constraint_rows, corrections, sample_points
from steepest.physics._pde import PDE, DiffusionSorption1D, NavierStokes2D
from steepest.physics._pointwise_rows import PointwiseLeastSquares
from steepest.physics.hard_constraint_moe import HardConstraint, HardConstraintMoE
from tests import processes

F64 = torch.float64


def problem(
    B: int = 2, nt: int = 6, nx: int = 8, N: int = 3, low: float = 0.05, **options: float
) -> tuple[PDE, Tensor, Tensor]:
    """Smooth positive basis fields whose first is near a solution."""
    pde, g = DiffusionSorption1D(nt, nx, **options), torch.Generator().manual_seed(0)
    t, x = torch.linspace(0, 1, nt, dtype=F64)[:, None], (torch.arange(nx, dtype=F64) + 0.5) / nx
    u0 = low + 0.1 * torch.rand(B, 1, generator=g, dtype=F64)
    front = torch.exp(-x / (0.1 + 0.5 * t.sqrt()))
    fields = [front * (1 - u0[:, None]) + u0[:, None]]
    for k in range(1, N):
        phase = torch.rand(B, 2, generator=g, dtype=F64)
        fields.append(torch.cos(k * x + phase[:, :1, None]) * (1 + t * phase[:, 1:, None]) + 0.3 * t**k)
    return pde, torch.stack(fields, -1), u0.expand(B, nx).clone()


def flow(B: int = 1, n: int = 6, N: int = 3) -> tuple[PDE, Tensor, Tensor]:
    pde, g = NavierStokes2D(4, n, n, Re=200.0, t_max=0.5), torch.Generator().manual_seed(1)
    x = 2 * math.pi * torch.arange(n, dtype=F64) / n
    w0 = torch.cos(x)[:, None] + torch.cos(x) + torch.sin(x[:, None] + x)
    return pde, 100 * torch.randn(B, 4, n, n, N, generator=g, dtype=F64), w0.expand(B, n, n).clone()


def rows_by_hand(pde: DiffusionSorption1D, u: Tensor, u0: Tensor, *, balanced: bool, weight: float = 1.0) -> Tensor:
    """Stacked rows of one field (nt, nx) from the formulas."""
    nt, nx = pde.grid
    h, dt = 1 / nx, pde.t_max / (nt - 1)
    u_t = torch.from_numpy(np.gradient(u.numpy(), dt, axis=0, edge_order=2))
    u_xx = torch.empty_like(u)
    u_xx[:, 1:-1] = (u[:, 2:] - 2 * u[:, 1:-1] + u[:, :-2]) / h**2
    u_xx[:, 0] = (2 * u[:, 0] - 5 * u[:, 1] + 4 * u[:, 2] - u[:, 3]) / h**2
    u_xx[:, -1] = (2 * u[:, -1] - 5 * u[:, -2] + 4 * u[:, -3] - u[:, -4]) / h**2
    R = 1 + 0.71 / 0.29 * 2880 * 3.5e-4 * 0.874 * (u.clamp(min=0) + 1e-6) ** (0.874 - 1)
    equation = u_t - 5e-4 / R * u_xx
    left = 1.5 * u[1:, 0] - 0.5 * u[1:, 1] - 1
    right = 1.5 * u[1:, -1] - 0.5 * u[1:, -2] + 5e-4 * (2 * u[1:, -1] - 3 * u[1:, -2] + u[1:, -3]) / h
    start = u[0] - u0
    if not balanced:
        return torch.cat([weight * equation.flatten(), left, right, start / u0])
    equation = equation * weight * pde.t_max / math.sqrt(nt * nx)
    return torch.cat([equation.flatten(), left / math.sqrt(nt - 1), right / math.sqrt(nt - 1), start / math.sqrt(nx)])


# --------------------------------------------------------------------------------------------------------------- exact


@pytest.mark.parametrize("scaling", ["none", "balanced"])
def test_weights_are_those_of_scipy_on_rows_by_hand(scaling):
    pde, basis, u0 = problem()
    layer = HardConstraint(pde, row_scaling=scaling, ridge=1e-2, pde_weight=0.5, maxiter=200).eval()
    out = layer(basis, u0)
    assert bool(out.converged.all())
    for b in range(2):

        def rows(w: np.ndarray, b: int = b) -> np.ndarray:
            F = rows_by_hand(pde, basis[b] @ torch.from_numpy(w), u0[b], balanced=scaling == "balanced", weight=0.5)
            return np.concatenate([F.numpy(), 1e-2 * w])

        reference = least_squares(rows, np.ones(3), method="lm", jac="3-point", xtol=1e-14, ftol=1e-14, gtol=1e-14)
        assert np.abs(out.weights[b, 0].numpy() - reference.x).max() < 1e-7 * np.abs(reference.x).max()
        F = rows(reference.x)[:-3]
        assert float(out.residual_norm[b, 0]) == pytest.approx(float(np.linalg.norm(F)), rel=1e-7)
        assert float(layer.objective(basis, out.weights, u0)[b]) == pytest.approx(float(F @ F) / 2, rel=1e-7)
        assert torch.allclose(out.solution[b], basis[b] @ out.weights[b, 0], atol=1e-14)


def gradcheck(fn, *inputs: Tensor, eps: float = 1e-5) -> bool:
    """Compare the derivative along random directions with central differences, for each input in turn."""
    g = torch.Generator().manual_seed(4)
    leaves = [x.clone().requires_grad_() for x in inputs]
    cotangents = [torch.randn(y.shape, generator=g, dtype=F64) for y in fn(*leaves)]

    def value(*arguments: Tensor) -> Tensor:
        return sum((y * c).sum() for y, c in zip(fn(*arguments), cotangents, strict=True))

    gradients = torch.autograd.grad(value(*leaves), leaves)
    for i, (x, gradient) in enumerate(zip(inputs, gradients, strict=True)):
        d = torch.randn(x.shape, generator=g, dtype=F64)
        with torch.no_grad():
            ends = [value(*inputs[:i], x + h * d, *inputs[i + 1 :]) for h in (eps, -eps, 2 * eps, -2 * eps)]
        along = (8 * (ends[0] - ends[1]) - (ends[2] - ends[3])) / (12 * eps)  # fourth order
        ours = (gradient * d).sum()
        assert float((ours - along).abs()) <= 1e-6 * max(1.0, float(along.abs())), (i, float(ours), float(along))
    return True


@pytest.mark.parametrize("kind", ["one", "experts", "anchored"])
def test_gradient_against_finite_differences(kind):
    pde, basis, u0 = problem(B=1, low=0.5)  # far from u = 0, where the clamp has a kink
    options = {"row_scaling": "balanced", "ridge": 1e-2, "maxiter": 300}
    layer = {
        "one": lambda: HardConstraint(pde, **options),
        "experts": lambda: HardConstraintMoE(pde, (1, 2), num_sampled_points=15, **options),
        "anchored": lambda: HardConstraintMoE(pde, (1, 2), anchor="global", **options),
    }[kind]().eval()
    out = layer(basis, u0)
    assert bool(out.converged.all())
    assert not bool(out.ill_conditioned.any())
    assert float(out.solution.min()) > 0.1
    D, n_f = torch.tensor([6.0], dtype=F64), torch.tensor(0.85, dtype=F64)

    def solve(basis: Tensor, u0: Tensor, D: Tensor, n_f: Tensor) -> tuple[Tensor, Tensor]:
        out = layer(basis, u0, {"D": 1e-4 * D, "n_f": n_f})
        return out.solution, out.weights

    assert gradcheck(solve, basis, u0, D, n_f)


def test_gradient_is_right_where_the_field_is_negative():
    """R is constant there; only a sampled point within some 1e-6 of zero, on the kink, would spoil it."""
    pde, basis, u0 = problem(B=1)
    layer = HardConstraint(pde, row_scaling="balanced", ridge=1e-2, maxiter=300).eval()
    out = layer(basis, u0)
    assert bool(out.converged.all())
    assert int((out.solution < 0).sum()) >= 3
    assert float(out.solution.abs().min()) > 1e-3
    assert gradcheck(lambda basis, u0: layer(basis, u0)[:2], basis, u0, eps=1e-6)


def test_smoothing_gives_back_convergence_where_fits_end_on_the_kink():
    pde, basis, u0 = problem(low=1e-4)
    smooth = DiffusionSorption1D(6, 8, smoothing=0.02)
    options = {"row_scaling": "balanced", "ridge": 1e-2, "maxiter": 100, "hessian": "gauss-newton"}
    many = torch.cat([basis * (1 + 0.05 * k) + 0.02 * k for k in range(12)])
    starts = u0.repeat(12, 1)
    kinked, rounded = (HardConstraint(p, **options).eval()(many, starts) for p in (pde, smooth))
    assert bool(rounded.converged.all())
    assert int(rounded.nit.sum()) <= int(kinked.nit.sum())


def test_gradient_with_raw_rows_goes_into_the_relative_start_too():
    pde, basis, u0 = problem(B=1)
    layer = HardConstraint(pde, ridge=1e-2, maxiter=300).eval()
    assert bool(layer(basis, u0).converged.all())
    assert gradcheck(lambda basis, u0: layer(basis, u0)[:2], basis, u0)


@pytest.mark.parametrize("anchor", ["none", "global"])
def test_gradient_of_a_flow_against_finite_differences(anchor):
    pde, basis, w0 = flow()
    layer = HardConstraintMoE(pde, (1, 2, 1), anchor=anchor, ridge=1e-2, maxiter=300).eval()
    out = layer(basis, w0)
    assert bool(out.converged.all())
    assert not bool(out.ill_conditioned.any())
    assert torch.allclose(out.solution[:, 0], w0, atol=1e-14)
    assert float(out.weights.abs().max()) > 1e-3
    assert gradcheck(lambda basis, w0: layer(basis, w0)[:2], basis, w0)


def test_gauss_newton_backward_differs_where_the_residual_is_large():
    pde, basis, u0 = problem(B=1)
    found = []
    for hessian in ("exact", "gauss-newton"):
        leaf = basis.clone().requires_grad_()
        layer = HardConstraint(
            pde, row_scaling="balanced", ridge=1e-2, atol=1e-10, rtol=1e-12, maxiter=300, hessian=hessian
        )
        layer(leaf, u0).solution.square().sum().backward()
        found.append(leaf.grad)
    gap = float((found[0] - found[1]).norm() / found[0].norm())
    assert 1e-6 < gap < 0.5


def test_experts_are_local():
    pde, basis, _ = flow()
    layer = HardConstraintMoE(pde, (1, 3, 1), ridge=1e-2)
    w0 = flow()[2]
    terms = {}
    inner = pde.terms

    def kept(u: Tensor) -> dict[str, Tensor]:  # catch the terms of the basis, as leaves: (B, N, nt, nx, ny)
        found = inner(u)
        if u.ndim == 5:
            terms.update({name: x.detach().requires_grad_() for name, x in found.items()})
            return terms
        return found

    pde.terms = kept
    for backend in ("batched", "serial"):
        layer.backend = backend
        loss = layer(basis, w0).solution[:, :, 2:4].square().sum()  # box 1 of three
        gradients = torch.autograd.grad(loss, list(terms.values()))
        for gradient in gradients:
            assert bool((gradient[..., :2, :] == 0).all())
            assert bool((gradient[..., 4:, :] == 0).all())
        assert max(float(g[..., 2:4, :].abs().max()) for g in gradients) > 0


def test_the_sample_is_the_experts_own_and_reaches_no_other_box():
    pde, basis, u0 = problem()
    layer = HardConstraintMoE(pde, (2, 4), num_sampled_points=4)
    index, used = sample_points(pde, (2, 4), 4, torch.Generator().manual_seed(0), 3)
    assert index.shape == (8, 4)
    assert bool(used.all())
    for k, points in enumerate(index):
        assert len(points.unique()) == 4
        rows, columns = points // 8, points % 8
        assert bool((rows // 3 == k // 4).all())
        assert bool((columns // 2 == k % 4).all())
    clipped, _ = sample_points(pde, (2, 4), 50, torch.Generator(), 3)
    assert clipped.shape == (8, 6)
    assert torch.equal(layer(basis, u0).solution.isfinite(), torch.ones(2, 6, 8, dtype=torch.bool))


def test_one_expert_is_the_hard_constraint():
    for pde, basis, start in (problem(), flow()):
        options = {"num_sampled_points": 30, "ridge": 1e-2}
        one = HardConstraint(pde, **options)(basis, start)
        moe = HardConstraintMoE(pde, (1,) * len(pde.grid), **options)(basis, start)
        assert torch.allclose(one.solution, moe.solution, rtol=1e-12, atol=1e-13)
        assert torch.allclose(one.weights, moe.weights, rtol=1e-12, atol=1e-13)


def test_each_expert_solves_its_box_with_the_rows_of_all_walls():
    pde, basis, u0 = problem(nx=12)
    out = HardConstraintMoE(pde, (1, 3), row_scaling="balanced", ridge=1e-2, maxiter=200)(basis, u0)
    assert bool(out.converged.all())
    for b in range(2):
        for k in range(3):
            w = out.weights[b, k].clone().requires_grad_()
            t = {name: x.movedim(0, -1) @ w for name, x in pde.terms(basis[b].movedim(-1, 0)).items()}
            box = pde.residual(t)[:, 4 * k : 4 * k + 4] * pde.t_max / math.sqrt(24)  # stencils before the cut
            rows = [box, pde.boundary(t) / math.sqrt(5), pde.initial(t, u0[b]) / math.sqrt(12), 1e-2 * w]
            cost = sum(x.square().sum() / 2 for x in rows)
            (gradient,) = torch.autograd.grad(cost, w)
            assert float(gradient.abs().max()) < 1e-8
            here = (slice(None), slice(4 * k, 4 * k + 4))
            assert torch.allclose(out.solution[b][here], basis[b][here] @ out.weights[b, k], atol=1e-13)


def test_the_anchor_is_the_global_fit_and_the_ridge_holds_the_correction():
    pde, basis, u0 = problem()
    options = {"row_scaling": "balanced", "ridge": 0.3, "maxiter": 200}
    anchor = HardConstraint(pde, **options).eval()(basis, u0).weights
    layer = HardConstraintMoE(pde, (1, 2), anchor="global", **options).eval()
    out = layer(basis, u0)
    inputs = layer._checked(basis, u0, None)
    groups = layer._rows(ConstraintData.of(pde, *inputs), (1, 2), torch.Generator())
    flat = tuple(rows.each(lambda x: x.flatten(0, 1)) for rows in groups)
    G = PointwiseLeastSquares(flat, 0.0).normal(out.weights.flatten(0, 1))[1].view(2, 2, 3)
    assert float((G + 0.3**2 * (out.weights - anchor)).abs().max()) < 1e-8
    assert float((out.weights - anchor).abs().max()) > 1e-4
    sampled = HardConstraintMoE(pde, (1, 2), anchor="global", num_sampled_points=10, **options).eval()
    found = sampled(basis, u0)  # the objective is that of the experts' points, not of the anchor's
    assert torch.allclose(
        sampled.objective(basis, found.weights, u0), found.residual_norm.square().sum(1) / 2, rtol=1e-8
    )
    tight = HardConstraintMoE(pde, (1, 2), anchor="global", **options | {"ridge": 1e3}).eval()
    loose = HardConstraint(pde, **options | {"ridge": 1e3}).eval()(basis, u0).weights
    assert torch.allclose(tight(basis, u0).weights, loose.expand(-1, 2, -1), atol=1e-5)


@pytest.mark.parametrize("make", [problem, flow])
def test_a_correction_of_the_anchor_has_the_rows_of_their_sum(make):
    pde, basis, u0 = make()
    data, parts = ConstraintData.of(pde, [basis, u0], ()), (1,) * (len(pde.grid) - 1) + (2,)
    sample = sample_points(pde, parts, None, torch.Generator(), basis.shape[-1])
    rows = constraint_rows(pde, data, *sample, balanced=True, pde_weight=0.7)
    g = torch.Generator().manual_seed(4)
    anchor, v = (torch.randn(len(basis), k, basis.shape[-1], generator=g, dtype=F64) for k in (1, 2))
    for given, moved in zip(rows, corrections(rows, anchor), strict=True):
        expected = given.each(lambda x: x.flatten(0, 1)).evaluate((anchor + v).flatten(0, 1))
        found = moved.each(lambda x: x.flatten(0, 1)).evaluate(v.flatten(0, 1))
        assert torch.allclose(found, expected, rtol=1e-10, atol=1e-12)


def test_what_went_wrong_with_the_anchor_is_said():
    pde, basis, u0 = problem()
    layer = HardConstraintMoE(pde, (1, 2), anchor="global", row_scaling="balanced", ridge=1e-2, maxiter=200).eval()
    fine = layer(basis, u0)
    assert bool(fine.converged.all())
    solve = layer._solve

    def spoiled(backend: str, groups: list, buffer: str, start: float):
        w, info = solve(backend, groups, buffer, start)
        if buffer == "running_global":  # the anchor of the first sample alone
            first = torch.tensor([[True], [False]])
            info = info | {"converged": ~first, "ill_conditioned": first}
        return w, info

    layer._solve = spoiled
    out = layer(basis, u0)
    assert out.converged.tolist() == [[False, False], [True, True]]
    assert out.ill_conditioned.tolist() == [[True, True], [False, False]]


# ------------------------------------------------------------------------------------------------------------ property


@pytest.mark.parametrize("anchor", ["none", "global"])
def test_serial_and_batched_agree(anchor):
    for (pde, basis, start), parts in ((problem(), (1, 4)), (flow(), (1, 3, 1))):
        found = []
        for backend in ("batched", "serial"):
            leaf = basis.clone().requires_grad_()
            layer = HardConstraintMoE(pde, parts, ridge=1e-2, num_sampled_points=9, anchor=anchor, backend=backend)
            out = layer(leaf, start)
            out.solution.square().sum().backward()
            found.append((out, leaf.grad))
        (one, g), (two, h) = found
        for x, y in zip(one, two, strict=True):
            assert torch.allclose(x.double(), y.double(), rtol=1e-10, atol=1e-10)
        assert torch.allclose(g, h, rtol=1e-10, atol=1e-10 * float(g.abs().max()))


def test_the_layer_never_ends_above_its_start():
    pde, basis, u0 = problem(B=3)
    for maxiter in (1, 3, 50):
        layer = HardConstraintMoE(pde, (1, 2), num_sampled_points=15, maxiter=maxiter, row_scaling="balanced").eval()
        out = layer(basis, u0)
        ends, starts = (layer.objective(basis, w, u0) for w in (out.weights, torch.ones(3, 1, 3, dtype=F64)))
        ridge = 1e-8 / 2 * (out.weights.square().sum((1, 2)) - 6)
        assert bool((ends + ridge <= starts * (1 + 1e-12)).all())
        assert torch.allclose(ends, out.residual_norm.square().sum(1) / 2, rtol=1e-6)


def test_samples_change_in_training_and_stay_in_evaluation():
    pde, basis, u0 = problem()
    layer = HardConstraint(pde, num_sampled_points=12, row_scaling="balanced")
    first, second = (layer(basis, u0).weights for _ in range(2))
    assert not torch.allclose(first, second)
    again = HardConstraint(pde, num_sampled_points=12, row_scaling="balanced")
    assert torch.equal(again(basis, u0).weights, first)
    layer.eval()
    fixed = layer(basis, u0).weights
    assert torch.equal(layer(basis, u0).weights, fixed)
    assert not torch.equal(
        HardConstraint(pde, num_sampled_points=12, row_scaling="balanced", seed=1).eval()(basis, u0).weights, fixed
    )
    given = [layer(basis, u0, generator=torch.Generator().manual_seed(s)).weights for s in (7, 7, 8)]
    assert torch.equal(given[0], given[1])
    assert not torch.allclose(given[0], given[2])


def test_running_start_is_the_mean_of_converged_weights_and_is_saved():
    pde, basis, u0 = problem()
    layer = HardConstraintMoE(pde, (1, 2), start="running", ridge=1e-2, row_scaling="balanced")
    layer.eval()(basis, u0)
    assert layer.running is None  # moved in training only
    one = layer.train()(basis, u0)
    assert torch.allclose(layer.running, one.weights.mean(0))
    two = layer(1.1 * basis, u0)
    assert torch.allclose(layer.running, 0.9 * one.weights.mean(0) + 0.1 * two.weights.mean(0))
    kept = layer.running.clone()
    layer.eval()(basis, u0)
    assert torch.equal(layer.running, kept)
    fresh = HardConstraintMoE(pde, (1, 2), start="running", ridge=1e-2, row_scaling="balanced")
    fresh.load_state_dict(layer.state_dict())
    assert torch.equal(fresh.running, kept)
    slow = HardConstraintMoE(pde, (1, 2), start="running", maxiter=0)
    slow(basis, u0)
    assert torch.equal(slow.running, torch.ones(2, 3, dtype=F64))  # nothing converged: the equation's start
    assert int(layer(basis, u0).nit.max()) <= int(one.nit.max())
    assert torch.equal(copy.deepcopy(layer).running, kept)
    with pytest.raises(ValueError, match="basis must be of 3 fields, as those of the running weights"):
        layer(basis[..., :2], u0)


@pytest.mark.parametrize("backend", ["batched", "serial"])
def test_every_expert_starts_from_its_own_weights(backend):
    pde, basis, u0 = problem()
    layer = HardConstraintMoE(pde, (1, 2), start="running", maxiter=0, backend=backend).eval()
    layer.running = torch.arange(6, dtype=F64).view(2, 3)
    assert torch.equal(layer(basis, u0).weights, layer.running.expand(2, 2, 3))


def test_running_start_leaves_out_what_did_not_converge(monkeypatch):
    from steepest.physics import hard_constraint_moe as module

    given = torch.arange(12, dtype=F64).view(2, 2, 3)
    converged = torch.tensor([[True, False], [False, False]])

    def solved(backend, groups, w0, settings, ridge):
        zeros = torch.zeros(2, 2, dtype=F64)
        return given, {"converged": converged, "nit": zeros.long(), "ill_conditioned": ~converged,
                       "cost": zeros, "gradient_norm": zeros}  # fmt: skip

    monkeypatch.setattr(module, "solve_experts", solved)
    pde, basis, u0 = problem()
    layer = HardConstraintMoE(pde, (1, 2), start="running")
    layer(basis, u0)
    assert layer.running.tolist() == [[0.0, 1.0, 2.0], [1.0, 1.0, 1.0]]  # the second expert keeps the equation's start


def test_skipped_corners_have_no_rows():
    pde, basis, u0 = problem(skip_corner=2)
    whole, _, _ = problem()
    index, used = sample_points(pde, (1, 1), None, torch.Generator(), 3)
    points = {(int(i) // 8, int(i) % 8) for i in index[0][used[0].bool()]}
    assert points == {(i, j) for i in range(6) for j in range(8) if not (i < 2 and (j < 2 or j >= 6))}
    _, used = sample_points(pde, (1, 4), None, torch.Generator(), 3)
    assert used.sum(1).tolist() == [8, 12, 12, 8]  # the boxes at the walls are filled up with rows of no weight
    out = HardConstraintMoE(pde, (1, 4), row_scaling="balanced")(basis, u0)
    assert bool(out.solution.isfinite().all())
    bumped = basis.clone()
    bumped[:, 0, 0] += 0.5  # reaches rows outside the corner through stencils of the next points only
    rows = [pde.residual(pde.terms(x[..., 0]))[:, 2:, 2:-2] for x in (basis, bumped)]
    free = [whole.residual(whole.terms(x[..., 0])) for x in (basis, bumped)]
    assert float((rows[0] - rows[1]).abs().max()) < float((free[0] - free[1]).abs().max())


def test_rows_that_fill_a_box_up_do_not_count():
    pde, basis, u0 = problem(skip_corner=2)
    out = HardConstraintMoE(pde, (1, 4), row_scaling="balanced", ridge=1e-2, maxiter=200)(basis, u0)
    w = out.weights[0, 0].clone().requires_grad_()  # the first box: two columns without two times of each
    t = {name: x.movedim(0, -1) @ w for name, x in pde.terms(basis[0].movedim(-1, 0)).items()}
    box = pde.residual(t)[2:, :2] * pde.t_max / math.sqrt(8)
    rows = [box, pde.boundary(t) / math.sqrt(5), pde.initial(t, u0[0]) / math.sqrt(8), 1e-2 * w]
    (gradient,) = torch.autograd.grad(sum(x.square().sum() / 2 for x in rows), w)
    assert bool(out.converged[0, 0])
    assert float(gradient.abs().max()) < 1e-8


def test_float32_is_solved_in_float64_and_comes_back():
    pde, basis, u0 = problem()
    layer = HardConstraint(pde, row_scaling="balanced", ridge=1e-2)
    exact, leaf = layer(basis, u0), basis.float().requires_grad_()
    out = layer(leaf, u0.float())
    assert out.solution.dtype == torch.float32
    assert out.weights.dtype == F64
    assert torch.allclose(out.solution.double(), exact.solution, atol=1e-4)
    out.solution.sum().backward()
    assert leaf.grad.dtype == torch.float32
    for context in (torch.no_grad, torch.inference_mode):
        with context():
            quiet = layer(leaf, u0.float())
        assert not quiet.solution.requires_grad
        assert torch.allclose(quiet.solution.double(), out.solution.double(), atol=1e-6)


def test_dead_channels_are_held_by_the_ridge():
    pde, basis, u0 = problem(B=1)
    dead = torch.cat([basis, torch.zeros_like(basis[..., :1]), basis[..., :1]], -1)  # one zero, one twice
    layer = HardConstraint(pde, row_scaling="balanced", ridge=1e-2, maxiter=300).eval()
    out = layer(dead, u0)
    assert bool(out.converged.all())
    assert float(out.weights[0, 0, 3]) == pytest.approx(0.0, abs=1e-9)
    assert gradcheck(lambda basis: layer(basis, u0)[:2], dead)


def test_failures_are_reported_or_raised():
    pde, basis, u0 = problem()
    out = HardConstraint(pde, maxiter=1)(basis, u0)
    assert not bool(out.converged.any())
    assert out.nit.tolist() == [[1], [1]]
    with pytest.raises(RuntimeError, match="2 of 2 solves did not converge in maxiter=1"):
        HardConstraint(pde, maxiter=1, on_failure="raise")(basis, u0)


# ------------------------------------------------------------------------------------------------------- more machines


def results(backend: str, anchor: str = "none") -> list[Tensor]:
    pde, basis, u0 = problem()
    leaf = basis.clone().requires_grad_()
    D = torch.tensor(6e-4, dtype=F64, requires_grad=True)
    layer = HardConstraintMoE(pde, (1, 4), ridge=1e-2, num_sampled_points=10, anchor=anchor, backend=backend)
    out = layer(leaf, u0, {"D": D})
    (out.solution.square().sum() + out.weights.sin().sum()).backward()
    return [out.solution.detach(), out.weights.detach(), out.nit.double(), out.converged.double(), leaf.grad, D.grad]


def same(found: list[Tensor], expected: list[Tensor]) -> bool:
    return all(
        torch.allclose(x, y, rtol=1e-10, atol=1e-10 * max(1.0, float(y.abs().max())))
        for x, y in zip(found, expected, strict=True)
    )


@pytest.mark.slow
def test_ray_gives_the_same_numbers(ray):
    assert same(results("ray"), results("serial"))
    assert ray.is_initialized()


def rank_of_two(rank: int, folder: str) -> None:
    import torch.distributed as dist

    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2, timeout=timedelta(seconds=300)
    )
    try:
        found = [results("torch.distributed", anchor) for anchor in ("none", "global")]
        message = ""
        pde, basis, u0 = problem(nx=9)
        try:
            HardConstraintMoE(pde, (1, 3), backend="torch.distributed")(basis, u0)
        except ValueError as error:
            message = str(error)
        torch.save({"found": found, "message": message}, f"{folder}/{rank}.pt")
    finally:
        dist.destroy_process_group()


@pytest.mark.slow
def test_ranks_give_the_same_numbers(tmp_path):
    processes.on_two_ranks(rank_of_two, str(tmp_path))
    for rank in range(2):
        saved = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        for anchor, found in zip(("none", "global"), saved["found"], strict=True):
            assert same(found, results("serial", anchor))
        assert "num_experts must be of a product that the 2 ranks divide, got 3" in saved["message"]


def test_ranks_need_a_group():
    pde, basis, u0 = problem()
    with pytest.raises(RuntimeError, match="init_process_group"):
        HardConstraintMoE(pde, (1, 2), backend="torch.distributed")(basis, u0)


# -------------------------------------------------------------------------------------------------------------- misuse


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ridge": -1e-4}, "ridge must be >= 0"),
        ({"maxiter": -1}, "maxiter must be"),
        ({"atol": -1.0}, "atol must be"),
        ({"rtol": -1.0}, "rtol must be"),
        ({"hessian": "none"}, "hessian must be one of"),
        ({"row_scaling": "equal"}, "row_scaling must be one of 'none', 'balanced'"),
        ({"pde_weight": 0.0}, "pde_weight must be > 0"),
        ({"start": "zero"}, "start must be one of 'pde', 'running'"),
        ({"on_failure": "warn"}, "on_failure must be one of"),
        ({"num_sampled_points": 0}, "num_sampled_points must be"),
        ({"seed": -1}, "seed must be"),
        ({"num_experts": (1,)}, "num_experts must be 2 numbers, one an axis of the grid"),
        ({"num_experts": (1, 3)}, r"num_experts must be divisors of the grid \(6, 8\)"),
        ({"num_experts": (1, 0)}, "num_experts must be"),
        ({"anchor": "local"}, "anchor must be one of 'none', 'global'"),
        ({"backend": "threads"}, "backend must be one of"),
    ],
)
def test_bad_settings_are_named(options, message):
    arguments = {"num_experts": (1, 2)} | options
    with pytest.raises(ValueError, match=message):
        HardConstraintMoE(problem()[0], arguments.pop("num_experts"), **arguments)


@pytest.mark.parametrize(
    ("pde", "num_experts", "message"),
    [(3, (1, 2), "pde must be a PDE"), (problem()[0], 4, "num_experts must be a seq")],
)
def test_bad_kinds_are_named(pde, num_experts, message):
    with pytest.raises(TypeError, match=message):
        HardConstraintMoE(pde, num_experts)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda b, u: (b[..., 0], u), r"basis must be of shape \(B, 6, 8, N\)"),
        (lambda b, u: (b[:, :5], u), r"basis must be of shape \(B, 6, 8, N\)"),
        (lambda b, u: (b, u[:, :7]), r"initial_condition must be of shape \(2, 8\)"),
        (lambda b, u: (b, u[:1]), r"initial_condition must be of shape \(2, 8\)"),
        (lambda b, u: (b.log(), u), "basis must be finite"),
        (lambda b, u: (b, u / 0), "initial_condition must be finite"),
        (lambda b, u: (b, 0 * u), "initial_condition must be nowhere zero, .*'balanced'"),
        (lambda b, u: (b.repeat(1, 1, 1, 9), u), "basis must be of at most 24 fields"),
    ],
)
def test_bad_input_is_named(change, message):
    pde, basis, u0 = problem()
    with pytest.raises(ValueError, match=message):
        HardConstraintMoE(pde, (1, 2))(*change(basis, u0))


def test_other_bad_input_is_named():
    pde, basis, u0 = problem()
    with pytest.raises(ValueError, match="num_sampled_points must be at least 3, the number of basis fields, got 2"):
        HardConstraint(pde, num_sampled_points=2)(basis, u0)
    with pytest.raises(ValueError, match=r"params\['D'\] must be a tensor of shape \(\) or \(2,\)"):
        HardConstraint(pde)(basis, u0, {"D": torch.ones(3)})
    with pytest.raises(ValueError, match=r"weights must be of shape \(2, 1 or 1, 3\)"):
        HardConstraint(pde).objective(basis, torch.ones(2, 3), u0)
    with pytest.raises(TypeError, match="basis must be a floating tensor"):
        HardConstraint(pde)(basis.long(), u0)
