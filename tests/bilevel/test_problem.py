from __future__ import annotations

import cvxpy
import numpy as np
import pytest
import torch
from scipy.optimize import minimize

from steepest.bilevel import BilevelProblem, BilevelResult, hypergradient, solve_lower
from steepest.bilevel._loop import iterate
from steepest.bilevel._oracles import COUNTS, Oracles
from steepest.bilevel._projections import AffineProjection
from steepest.core.errors import ConvergenceWarning

F64 = torch.float64


def gen(seed=0):
    return torch.Generator().manual_seed(seed)


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=gen(seed), dtype=F64)


def quadratic(n=4, d=6, seed=0, **options):
    """Lower ``1/2 y'Hy - y'(Cx + b)``, upper ``1/2 |y - t|^2 + 1/2 x'Qx``: everything in closed form."""
    R, C, b, t, S = randn(d, d, seed=seed), randn(d, n, seed=seed + 1), randn(d, seed=2), randn(d, seed=3), randn(n, n)
    H, Q = R @ R.T / d + torch.eye(d, dtype=F64), S @ S.T / n + torch.eye(n, dtype=F64)
    problem = BilevelProblem(
        lambda x, y, batch: (y - t).square().sum() / 2 + x @ Q @ x / 2,
        lambda x, y, batch: y @ H @ y / 2 - y @ (C @ x + b),
        randn(n, seed=5),
        randn(d, seed=6),
        **options,
    )
    return problem, (H, C, b, t, Q)


def blocks_problem(m=5, p=3, n=4, seed=0):
    """Like `quadratic`, m lower problems with their own matrices."""
    R, C, b, t = randn(m, p, p, seed=seed), randn(m, p, n, seed=1), randn(m, p, seed=2), randn(m, p, seed=3)
    H = R @ R.mT / p + torch.eye(p, dtype=F64)

    def upper(x, yb, batch, blocks):
        return (yb - t[blocks]).square().sum(1) / 2 * (1 + x.square().sum())

    def lower(x, yb, batch, blocks):
        Hb, rb = H[blocks], C[blocks] @ x + b[blocks]
        return torch.einsum("ip,ipq,iq->i", yb, Hb, yb) / 2 - (yb * rb).sum(1)

    return BilevelProblem(upper, lower, randn(n, seed=5), randn(m, p, seed=6), n_blocks=m), (H, C, b, t)


# ------------------------------------------------------------------------------------------------- exact: gradients


@pytest.mark.parametrize("options", [{}, {"solver": "cg", "rtol": 1e-13}, {"solver": "neumann", "rtol": 1e-14}])
def test_hypergradient_has_the_closed_form(options):
    problem, (H, C, b, t, Q) = quadratic()
    x = problem.x0
    y = torch.linalg.solve(H, C @ x + b)
    gradient, v = hypergradient(problem, x, y, **options)
    v_exact = torch.linalg.solve(H, y - t)
    assert torch.allclose(v, v_exact, atol=1e-11)
    assert torch.allclose(gradient, Q @ x + C.T @ v_exact, atol=1e-11)


def test_hypergradient_of_a_curved_problem_agrees_with_differences():
    A = randn(7, 5)

    def lower(x, y, batch):
        return torch.nn.functional.softplus(A @ y * x.exp()).sum() + y.square().sum() / 2 + (y**4).sum() * x[0] ** 2

    problem = BilevelProblem(
        lambda x, y, batch: torch.sin(y).sum() + (x.sum() * y[0]) ** 2, lower, randn(7, seed=1) / 3, randn(5, seed=2)
    )

    def value(x):
        y, info = solve_lower(problem, x, tol=1e-13)
        assert info == 0
        return problem.upper(x, y, None).item()

    y, _ = solve_lower(problem, problem.x0, tol=1e-13)
    gradient, _ = hypergradient(problem, problem.x0, y)
    h = 1e-5
    for j, e in enumerate(torch.eye(7, dtype=F64)):
        slope = (value(problem.x0 + h * e) - value(problem.x0 - h * e)) / (2 * h)
        assert slope == pytest.approx(gradient[j].item(), abs=2e-9)


def test_a_neumann_series_of_q_terms_is_that_polynomial():
    problem, (H, C, _, t, Q) = quadratic()
    x, y, lr, steps = problem.x0, problem.y0, 0.05, 7
    P = torch.eye(6, dtype=F64) - lr * H
    v_exact = lr * sum(torch.linalg.matrix_power(P, q) for q in range(steps)) @ (y - t)
    gradient, v = hypergradient(problem, x, y, solver="neumann", steps=steps, lr=lr)
    assert torch.allclose(v, v_exact, atol=1e-13)
    assert torch.allclose(gradient, Q @ x + C.T @ v_exact, atol=1e-13)


@pytest.mark.parametrize("solver", ["direct", "cg"])
def test_hypergradient_of_blocks_is_that_of_the_mean(solver):
    problem, (H, C, b, _) = blocks_problem()
    x = problem.x0
    y = torch.linalg.solve(H, (C @ x + b).unsqueeze(2)).squeeze(2)
    gradient, v = hypergradient(problem, x, y, solver=solver, rtol=1e-13)
    leaf = x.clone().requires_grad_()
    y_of_x = torch.linalg.solve(H, (C @ leaf + b).unsqueeze(2)).squeeze(2)
    (exact,) = torch.autograd.grad(problem.upper(leaf, y_of_x, None, torch.arange(5)).mean(), leaf)
    assert torch.allclose(gradient, exact, atol=1e-11)
    assert v.shape == (5, 3)


def test_dicts_and_shapes_come_back_as_they_were_given():
    def lower(x, y, batch):
        return (
            (y["w"] @ x["a"] + y["b"]).square().sum()
            + y["w"].square().sum()
            + y["b"].square().sum() * x["c"].exp().sum()
        )

    def upper(x, y, batch):
        return y["w"].sum() + (y["b"] * x["c"]).sum()

    x0 = {"a": randn(3, 2), "c": randn(1, seed=1)}
    problem = BilevelProblem(upper, lower, x0, {"w": randn(4, 3, seed=2), "b": randn(2, seed=3)})
    y, info = solve_lower(problem, x0)
    assert info == 0
    gradient, v = hypergradient(problem, x0, y)
    assert {k: g.shape for k, g in gradient.items()} == {k: g.shape for k, g in x0.items()}
    flat = BilevelProblem(
        lambda x, y, batch: upper(problem.unpack_x(x), problem.unpack_y(y), batch),
        lambda x, y, batch: lower(problem.unpack_x(x), problem.unpack_y(y), batch),
        problem.pack_x(x0),
        problem.pack_y(y),
    )
    again, v_flat = hypergradient(flat, flat.x0, flat.y0)
    assert torch.equal(problem.pack_x(gradient), again)
    assert torch.equal(problem.pack_y(v), v_flat)
    assert problem.x0 is x0


def test_unused_variables_have_zero_derivatives_of_the_right_shape():
    problem = BilevelProblem(
        lambda x, y, batch: torch.zeros((), dtype=F64), lambda x, y, batch: y.sum(), randn(2), randn(3)
    )
    oracles, x, y = Oracles(problem), problem.x0, problem.y0
    assert [g.tolist() for g in oracles.upper_grad(x, y)] == [[0, 0], [0, 0, 0]]
    assert [g.tolist() for g in oracles.lower_grad(x, y)] == [[0, 0], [1, 1, 1]]
    assert [g.tolist() for g in oracles.products(x, y, y)] == [[0, 0, 0], [0, 0]]
    assert oracles.hessian(x, y).tolist() == [[0] * 3] * 3
    assert oracles.hvp(x, y, y).tolist() == [0] * 3
    assert oracles.jvp(x, y, y).tolist() == [0] * 2


# -------------------------------------------------------------------------------------------------- exact: oracles


def test_products_and_hessian_are_those_of_dense_algebra():
    problem, (H, C, *_) = quadratic()
    oracles, v = Oracles(problem), randn(6, seed=9)
    x, y = problem.x0, problem.y0
    Hv, Jv = oracles.products(x, y, v)
    assert torch.allclose(Hv, H @ v, atol=1e-13)
    assert torch.allclose(Jv, -C.T @ v, atol=1e-13)
    assert torch.equal(oracles.hvp(x, y, v), Hv)
    assert torch.equal(oracles.jvp(x, y, v), Jv)
    assert torch.allclose(oracles.hessian(x, y), H, atol=1e-13)
    bound = oracles.curvature_bound(x, y, iterations=200)
    assert bound == pytest.approx(torch.linalg.eigvalsh(H)[-1].item(), rel=1e-6)
    assert oracles.counts == dict.fromkeys(COUNTS, 0) | {"hvp": 202, "jvp": 2, "hessian": 1}


def test_drawn_blocks_have_rows_of_their_own_and_means_in_x():
    problem, (H, C, b, t) = blocks_problem()
    oracles, x, S = Oracles(problem), problem.x0, torch.tensor([3, 1])
    yb, w = problem.y0[S], randn(2, 3, seed=8)
    g_x, g_y = oracles.upper_grad(x, yb, None, S)
    assert torch.allclose(g_y, (yb - t[S]) * (1 + x @ x), atol=1e-13)
    assert torch.allclose(g_x, (yb - t[S]).square().sum(1).mean() * x, atol=1e-13)
    g_x, g_y = oracles.lower_grad(x, yb, None, S)
    rows = (H[S] @ yb.unsqueeze(2)).squeeze(2) - C[S] @ x - b[S]
    assert torch.allclose(g_y, rows, atol=1e-13)
    assert torch.allclose(oracles.lower_grad_y(x, yb, None, S), rows, atol=1e-13)
    assert torch.allclose(g_x, -torch.einsum("ipn,ip->n", C[S], yb) / 2, atol=1e-13)
    Hw, Jw = oracles.products(x, yb, w, None, S)
    assert torch.allclose(Hw, (H[S] @ w.unsqueeze(2)).squeeze(2), atol=1e-13)
    assert torch.allclose(Jw, -torch.einsum("ipn,ip->n", C[S], w) / 2, atol=1e-13)
    assert torch.allclose(oracles.jvp(x, yb, w, None, S), Jw, atol=1e-13)
    assert torch.allclose(oracles.hessian(x, yb, None, S), H[S], atol=1e-13)


def test_the_joined_form_sums_lower_problems_and_averages_upper_ones():
    problem, (H, _, _, t) = blocks_problem()
    oracles, x, y = Oracles(problem), problem.x0, problem.pack_y(problem.y0)
    _, g_y = oracles.upper_grad(x, y)
    assert torch.allclose(g_y, ((problem.y0 - t) * (1 + x @ x) / 5).reshape(-1), atol=1e-13)
    assert torch.allclose(oracles.hessian(x, y), torch.block_diag(*H), atol=1e-13)
    everything = torch.arange(5)
    assert oracles.upper_value(x, y).item() == problem.upper(x, problem.y0, None, everything).mean().item()
    assert oracles.lower_value(x, y).item() == problem.lower(x, problem.y0, None, everything).sum().item()


def test_samples_are_drawn_from_the_generator_and_counted():
    asked = []

    def sample(generator, size):
        asked.append(size)
        return {"rows": torch.randint(10, (7 if size is None else size,), generator=generator)}

    data = randn(10)
    problem = BilevelProblem(
        lambda x, y, batch: (x * y).sum(),
        lambda x, y, batch: (data[slice(None) if batch is None else batch["rows"]] - y).square().mean(),
        randn(1),
        randn(1, seed=1),
        sample_lower=sample,
    )
    oracles = Oracles(problem, generator=gen(3), batch_size=4)
    first = oracles.draw_lower()
    assert oracles.draw_upper() is None
    assert torch.equal(first["rows"], sample(gen(3), 4)["rows"])
    g = oracles.lower_grad_y(problem.x0, problem.y0, first)
    assert torch.allclose(g, 2 * (problem.y0 - data[first["rows"]].mean()))
    assert oracles.counts["samples"] == 4
    own = Oracles(problem, generator=gen(3))
    own.draw_lower()
    assert own.counts["samples"] == 7
    assert asked == [4, 4, None]


def test_samples_of_blocks_are_counted_a_block():
    problem, _ = blocks_problem()
    problem.sample_upper = lambda generator, size, blocks: torch.zeros(len(blocks), size or 3)
    sized, own = Oracles(problem, batch_size=6), Oracles(problem)
    sized.draw_upper(torch.tensor([2, 0]))
    own.draw_upper(torch.tensor([2, 0]))
    own.draw_upper()
    assert sized.counts["samples"] == 12
    assert own.counts["samples"] == 2 * 3 + 5 * 3


def test_first_derivatives_never_differentiate_twice():
    class Once(torch.autograd.Function):
        @staticmethod
        def forward(ctx, v):
            ctx.save_for_backward(v)
            return v.square().sum()

        @staticmethod
        def backward(ctx, g):
            if torch.is_grad_enabled():
                raise RuntimeError("a second derivative was asked for")
            return 2 * g * ctx.saved_tensors[0]

    problem = BilevelProblem(lambda x, y, b: Once.apply(x + y), lambda x, y, b: Once.apply(y - x), randn(2), randn(2))
    oracles = Oracles(problem)
    assert torch.allclose(oracles.lower_grad_y(problem.x0, problem.y0), 2 * (problem.y0 - problem.x0))
    assert torch.allclose(oracles.upper_grad(problem.x0, problem.y0)[0], 2 * (problem.y0 + problem.x0))
    with pytest.raises(RuntimeError, match="second derivative"):
        oracles.hvp(problem.x0, problem.y0, problem.y0)


def test_jacobians_of_a_constraint():
    def g(x, y):
        return torch.stack([x[0] * y[0] ** 2 - y[1], (x * y).sum(), torch.sin(y[1])])

    problem = BilevelProblem(
        lambda x, y, b: x.sum(), lambda x, y, b: y.sum(), randn(2), randn(2, seed=1),
        constraint=g, project_joint=lambda x, y: (x, y),
    )  # fmt: skip
    oracles, lam = Oracles(problem), randn(3, seed=2)
    J_x, J_y = torch.autograd.functional.jacobian(g, (problem.x0, problem.y0))
    g_x, g_y = oracles.constraint_vjp(problem.x0, problem.y0, lam)
    assert torch.allclose(g_x, J_x.T @ lam)
    assert torch.allclose(g_y, J_y.T @ lam)
    assert torch.equal(oracles.constraint_value(problem.x0, problem.y0), g(problem.x0, problem.y0))
    norm = oracles.constraint_norm(problem.x0, problem.y0)
    assert norm == pytest.approx(torch.linalg.matrix_norm(J_y, 2).item(), rel=1e-3)


def test_affine_rows_are_a_constraint_too():
    A, B, c, lam = randn(3, 4), randn(3, 6, seed=1), randn(3, seed=2), randn(3, seed=3)
    for sparse in (False, True):
        parts = (A.to_sparse_coo(), B.to_sparse_coo(), c) if sparse else (A, B, c)
        problem, _ = quadratic(affine=parts)
        oracles = Oracles(problem)
        assert torch.allclose(oracles.constraint_value(problem.x0, problem.y0), A @ problem.x0 + B @ problem.y0 + c)
        g_x, g_y = oracles.constraint_vjp(problem.x0, problem.y0, lam)
        assert torch.allclose(g_x, A.T @ lam)
        assert torch.allclose(g_y, B.T @ lam)
        norm = oracles.constraint_norm(problem.x0, problem.y0)
        assert norm == pytest.approx(torch.linalg.matrix_norm(B, 2).item(), rel=1e-3)


# ------------------------------------------------------------------------------------------------- exact: projections


def by_cvxpy(w0, M, c, equality, low=None, high=None):
    w = cvxpy.Variable(len(w0))
    rows = [M[i] @ w + c[i] == 0 if equality[i] else M[i] @ w + c[i] <= 0 for i in range(len(c))]
    rows += [] if low is None else [w >= low, w <= high]
    problem = cvxpy.Problem(cvxpy.Minimize(cvxpy.sum_squares(w - w0)), rows)
    problem.solve(solver="CLARABEL", tol_gap_abs=1e-12, tol_gap_rel=1e-12, tol_feas=1e-12)
    return w.value


NONE = torch.zeros((), dtype=torch.bool)


def make_rows(p, n, d, seed, sparse=False, equality=NONE):
    M, c = randn(p, n + d, seed=seed), randn(p, seed=seed + 1)
    M[:, ::3] *= 4.0
    if sparse:
        M = M * (torch.rand(M.shape, generator=gen(seed), dtype=F64) < 0.4)
    slack = c.abs() / 10 * ~equality
    c = -slack - M @ randn(n + d, seed=seed + 2).clamp(-1, 1)
    return M, c, (M[:, :n].to_sparse_coo(), M[:, n:].to_sparse_coo()) if sparse else (M[:, :n], M[:, n:])


@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize("equality", [False, True, "mixed"])
@pytest.mark.parametrize("box", [False, True])
def test_projection_on_affine_rows_agrees_with_an_interior_point_solver(sparse, equality, box):
    p, n, d = 5, 4, 6
    mask = torch.tensor([True, False, True, False, False]) if equality == "mixed" else torch.full((p,), equality)
    M, c, (A, B) = make_rows(p, n, d, seed=11, sparse=sparse, equality=mask)
    clamp = (lambda v: v.clamp(-2, 2)) if box else None
    problem, _ = quadratic(n, d, affine=(A, B, c), equality=mask if equality == "mixed" else equality,
                           project_x=clamp, project_y=clamp)  # fmt: skip
    oracles = Oracles(problem)
    for seed in (21, 22):  # the second starts from the first one's multipliers
        w0 = 3 * randn(n + d, seed=seed)
        x, y = oracles.project_joint(w0[:n], w0[n:])
        low, high = (-2, 2) if box else (None, None)
        exact = by_cvxpy(w0.numpy(), M.numpy(), c.numpy(), mask.numpy(), low, high)
        found = torch.cat([x, y])
        assert np.abs(found.numpy() - exact).max() < (1e-9 if not box else 2e-8)  # a box costs the reference digits
        g = M @ found + c
        assert torch.where(mask, g.abs(), g.clamp(min=0)).max() < 1e-9
    assert oracles.counts["projection"] == 2


@pytest.mark.parametrize("newton", [True, False])
@pytest.mark.parametrize("box", [False, True])
def test_projection_satisfies_its_optimality_conditions(box, newton, monkeypatch):
    """w = P_W(w0 - M' lam), lam >= 0, lam . g = 0, g <= 0: no reference solver's digits are needed."""
    if not newton:
        monkeypatch.setattr("steepest.bilevel._projections.DENSE_ROWS", 0)
    p, n = 40, 30
    M, c, _ = make_rows(p, n, 0, seed=4)
    clamp = (lambda v: v.clamp(-1.5, 1.5)) if box else None
    project = AffineProjection([M], c, torch.zeros(p, dtype=torch.bool), [clamp])
    for seed in range(5):
        w0 = 2 * randn(n, seed=seed)
        (w,) = project(w0)
        lam = project.lam / project.scale
        back = w0 - M.T @ lam
        g = M @ w + c
        assert torch.allclose(w, back if clamp is None else clamp(back), atol=1e-12)
        assert g.max() < 1e-8
        assert lam.min() >= 0
        assert (lam * g).abs().max() < 1e-8
        assert int((lam > 0).sum()) > 3


def test_newton_steps_need_few_dual_iterations_in_a_box(monkeypatch):
    monkeypatch.setattr("steepest.bilevel._projections.MAXITER", 60)  # else: a ConvergenceWarning
    M, c, _ = make_rows(6, 30, 0, seed=4)
    project = AffineProjection([M], c, torch.zeros(6, dtype=torch.bool), [lambda v: v.clamp(-1.5, 1.5)])
    for seed in range(5):
        (w,) = project(2 * randn(30, seed=seed))
        assert (M @ w + c).max() < 1e-10
        assert w.abs().max() == 1.5


def test_a_ball_is_no_box_and_is_met_as_well():
    M, c, _ = make_rows(4, 6, 0, seed=4)

    def ball(v):
        return v / torch.linalg.vector_norm(v).clamp(min=2) * 2

    project = AffineProjection([M], c, torch.zeros(4, dtype=torch.bool), [ball])
    w0 = 3 * randn(6, seed=1)
    (w,) = project(w0)
    v = cvxpy.Variable(6)
    rows = [M.numpy() @ v + c.numpy() <= 0, cvxpy.norm(v) <= 2]
    cvxpy.Problem(cvxpy.Minimize(cvxpy.sum_squares(v - w0.numpy())), rows).solve(solver="CLARABEL")
    assert np.abs(w.numpy() - v.value).max() < 1e-4
    assert torch.allclose(w, ball(w0 - M.T @ (project.lam / project.scale)), atol=1e-12)
    assert (M @ w + c).max() < 1e-9


def test_projection_agrees_with_scipy():
    M, c, _ = make_rows(3, 5, 0, seed=7)
    w0 = randn(5, seed=8) * 2
    (w,) = AffineProjection([M], c, torch.zeros(3, dtype=torch.bool), [None])(w0)
    found = minimize(
        lambda v: ((v - w0.numpy()) ** 2).sum() / 2, np.zeros(5), jac=lambda v: v - w0.numpy(), method="SLSQP",
        constraints={"type": "ineq", "fun": lambda v: -(M.numpy() @ v + c.numpy()), "jac": lambda v: -M.numpy()},
        options={"ftol": 1e-18, "maxiter": 500},
    )  # fmt: skip
    assert np.abs(w.numpy() - found.x).max() < 1e-9


def test_least_squares_on_dependent_equalities():
    M = randn(4, 7)
    M = torch.cat([M, M[:2] + M[1:3]])
    c = -M @ randn(7, seed=1)
    project = AffineProjection([M[:, :3], M[:, 3:]], c, torch.ones(6, dtype=torch.bool), [None, None])
    w0 = randn(7, seed=2)
    w = torch.cat(project(w0[:3], w0[3:]))
    exact = w0 - torch.linalg.pinv(M) @ (M @ w0 + c)
    assert torch.allclose(w, exact, atol=1e-12)
    with pytest.raises(ValueError, match="affine must be feasible"):
        AffineProjection([M], c + torch.arange(6), torch.ones(6, dtype=torch.bool), [None])


def test_a_part_that_the_rows_leave_alone_is_projected_for_itself():
    B, c = randn(3, 4), randn(3, seed=1)
    project = AffineProjection(
        [torch.zeros(3, 2, dtype=F64), B], c, torch.zeros(3, dtype=torch.bool), [lambda v: v.clamp(-1, 1), None]
    )
    x, y = project(torch.tensor([3.0, 0.5], dtype=F64), randn(4, seed=2))
    assert x.tolist() == [1.0, 0.5]
    alone = AffineProjection([B], c, torch.zeros(3, dtype=torch.bool), [None])(randn(4, seed=2))[0]
    assert torch.allclose(y, alone, atol=1e-12)


def test_a_row_of_zeros_is_ignored_or_refused():
    M, no = torch.zeros(1, 2, dtype=F64), torch.tensor([False])
    point = torch.ones(2, dtype=F64)
    assert torch.equal(AffineProjection([M], -torch.ones(1, dtype=F64), no, [None])(point)[0], point)
    with pytest.raises(ValueError, match="affine must be feasible"):
        AffineProjection([M], torch.ones(1, dtype=F64), no, [None])


def test_an_empty_set_is_told(monkeypatch):
    monkeypatch.setattr("steepest.bilevel._projections.MAXITER", 300)
    M = torch.tensor([[1.0], [-1.0]], dtype=F64)  # w <= -1 and w >= 1
    project = AffineProjection([M], torch.ones(2, dtype=F64), torch.zeros(2, dtype=torch.bool), [None])
    with pytest.warns(ConvergenceWarning, match="is the set empty"):
        project(torch.zeros(1, dtype=F64))


def test_given_projections_are_used_and_counted():
    problem, _ = quadratic(project_x=lambda x: x.clamp(-0.1, 0.1), project_y=lambda y: y.clamp(min=0))
    oracles = Oracles(problem)
    assert oracles.project_x(problem.x0).abs().max() <= 0.1
    x, y = oracles.project_joint(problem.x0, problem.y0)
    assert x.abs().max() <= 0.1
    assert y.min() >= 0
    assert oracles.counts["projection"] == 2
    free, _ = quadratic()
    assert Oracles(free).project_y(free.y0) is free.y0
    ball, _ = quadratic(project_joint=lambda x, y: (x / 2, y / 3))
    x, y = Oracles(ball).project_joint(ball.x0, ball.y0)
    assert torch.equal(x, ball.x0 / 2)
    assert torch.equal(y, ball.y0 / 3)


# -------------------------------------------------------------------------------------------------- exact: lower level


def test_the_lower_problem_is_solved_to_its_tolerance():
    problem, (H, C, b, *_) = quadratic()
    y, info = solve_lower(problem, problem.x0, tol=1e-11)
    assert info == 0
    assert torch.allclose(y, torch.linalg.solve(H, C @ problem.x0 + b), atol=1e-11)
    y, info = solve_lower(problem, problem.x0, y)
    assert info == 0
    assert solve_lower(problem, problem.x0, tol=1e-11, maxiter=0)[1] == 1
    _, info = solve_lower(problem, problem.x0, tol=1e-300, maxiter=1000)
    assert 0 < info < 1000  # rounding ends it


def test_lower_problems_of_blocks_are_solved_together():
    problem, (H, C, b, _) = blocks_problem()
    y, info = solve_lower(problem, problem.x0, tol=1e-11)
    assert info == 0
    assert torch.allclose(y, torch.linalg.solve(H, (C @ problem.x0 + b).unsqueeze(2)).squeeze(2), atol=1e-10)


def test_newton_leaves_a_region_of_negative_curvature():
    problem = BilevelProblem(
        lambda x, y, b: y.sum(), lambda x, y, b: (y.square() - x).square().sum(), torch.ones(2, dtype=F64),
        torch.tensor([0.1, -0.2], dtype=F64),
    )  # fmt: skip
    y, info = solve_lower(problem, problem.x0)
    assert info == 0
    assert torch.allclose(y, torch.tensor([1.0, -1.0], dtype=F64), atol=1e-8)


@pytest.mark.parametrize("box", [False, True])
def test_the_lower_problem_on_a_set_agrees_with_an_interior_point_solver(box):
    B, A, c = randn(3, 6, seed=1), randn(3, 4, seed=2), randn(3, seed=3)
    problem, (H, C, b, *_) = quadratic(affine=(A, B, c), project_y=(lambda y: y.clamp(-1, 0.5)) if box else None)
    y, info = solve_lower(problem, problem.x0, tol=1e-10)
    assert info == 0
    v = cvxpy.Variable(6)
    rows = [B.numpy() @ v + (A @ problem.x0 + c).numpy() <= 0] + ([v >= -1, v <= 0.5] if box else [])
    fun = cvxpy.quad_form(v, cvxpy.psd_wrap(H.numpy())) / 2 - (C @ problem.x0 + b).numpy() @ v
    cvxpy.Problem(cvxpy.Minimize(fun), rows).solve(solver="CLARABEL", tol_gap_abs=1e-12, tol_gap_rel=1e-12)
    assert np.abs(y.numpy() - v.value).max() < 1e-6
    free, _ = solve_lower(quadratic()[0], problem.x0)
    assert (free - y).norm() > 0.1  # the set matters


def test_values_that_are_not_finite_raise():
    problem = BilevelProblem(lambda x, y, b: y.sum(), lambda x, y, b: (y.log()).sum(), -torch.ones(1), -torch.ones(1))
    with pytest.raises(FloatingPointError, match="lower"):
        solve_lower(problem, problem.x0)


# ------------------------------------------------------------------------------------------------------------ the loop


def descent(problem, lr=0.1, **options):
    """Plain descent in x with the exact lower solution, to examine the loop."""
    oracles = Oracles(problem)

    def step(state):
        x, _ = state
        y = problem.pack_y(solve_lower(problem, problem.unpack_x(x))[0])
        g = problem.pack_x(hypergradient(problem, problem.unpack_x(x), problem.unpack_y(y))[0])
        oracles.counts["upper_grad"] += 1
        return (x - lr * g, y), {"grad_norm": float(g.norm())}

    return iterate(
        oracles, step, (problem.pack_x(problem.x0), problem.pack_y(problem.y0)),
        view=lambda s: {"x": s[0], "y": s[1], "twice": 2 * s[0]}, keep=("grad_norm",), **options,
    )  # fmt: skip


def test_a_run_ends_in_a_result():
    problem, _ = quadratic()
    result = descent(problem, maxiter=7, log_every=3)
    assert isinstance(result, BilevelResult)
    assert result.success
    assert result.status == 1
    assert result.nit == 7
    assert result.history["nit"] == [0, 3, 6, 7]
    assert result.history["fun"][-1] == result.fun == problem.upper(result.x, result.y, None).item()
    assert result.lower_fun == problem.lower(result.x, result.y, None).item()
    assert np.isnan(result.history["grad_norm"][0])
    assert all(len(values) == 4 for values in result.history.values())
    assert (np.diff(result.history["seconds"]) > 0).all()
    assert result.counts == dict.fromkeys(COUNTS, 0) | {"upper_grad": 7}
    assert torch.equal(result.twice, 2 * result.x)
    assert descent(problem, maxiter=7).history["nit"] == [7]
    assert descent(problem, maxiter=0).nit == 0


def test_a_tolerance_makes_the_budget_a_failure():
    problem, _ = quadratic()
    met = descent(problem, maxiter=1000, converged=lambda s, numbers: numbers["grad_norm"] < 1e-6)
    assert (met.status, met.success) == (0, True)
    assert met.nit < 1000
    short = descent(problem, maxiter=3, converged=lambda s, numbers: numbers["grad_norm"] < 1e-6)
    assert (short.status, short.success) == (1, False)
    assert "maxiter" in short.message


def test_the_callback_sees_every_step_and_stops():
    problem, _ = quadratic()
    seen = []

    def callback(intermediate_result):
        seen.append(intermediate_result)
        if len(seen) == 3:
            raise StopIteration

    result = descent(problem, maxiter=9, callback=callback)
    assert (result.status, result.success, result.nit) == (6, False, 3)
    assert [r.nit for r in seen] == [1, 2, 3]
    assert [r.counts["upper_grad"] for r in seen] == [1, 2, 3]
    assert torch.equal(seen[-1].x, result.x)
    assert torch.equal(seen[-1].twice, 2 * result.x)


def test_a_run_that_breaks_returns_the_last_finite_iterate():
    problem, _ = quadratic()
    x = problem.x0
    oracles = Oracles(problem)

    def step(state):
        k, x, y = state
        if k == 4:
            raise FloatingPointError("the product with A is not finite")
        return (k + 1, x * (np.nan if k == 3 else 2.0), y), {}

    for start, nit in ((0, 3), (4, 0)):
        result = iterate(oracles, step, (start, x, problem.y0), view=lambda s: {"x": s[1], "y": s[2]}, maxiter=10)
        assert (result.status, result.success, result.nit) == (2, False, nit)
        assert f"iteration {nit + 1}" in result.message
        assert "finite" in result.message
        assert torch.equal(result.x, x * 2.0**nit)


# ------------------------------------------------------------------------------------------------------------- misuse


def good(**changes):
    options = {
        "upper": lambda x, y, b: y.sum(),
        "lower": lambda x, y, b: y.square().sum(),
        "x0": randn(2),
        "y0": randn(3),
    }
    options |= changes
    args = [options.pop(key) for key in ("upper", "lower", "x0", "y0")]
    return BilevelProblem(*args, **options)


ROWS = (randn(2, 2), randn(2, 3), randn(2))


@pytest.mark.parametrize(
    ("changes", "kind", "text"),
    [
        ({"upper": 1}, TypeError, "upper must be callable"),
        ({"lower": None}, TypeError, "lower must be callable"),
        ({"x0": [1.0]}, TypeError, "x0 must be a tensor"),
        ({"y0": {"w": 1.0}}, TypeError, r"y0\['w'\] must be a tensor"),
        ({"x0": {}}, ValueError, "x0 must be a non-empty dict"),
        ({"x0": torch.tensor([np.nan])}, ValueError, "x0 must be finite"),
        ({"y0": torch.tensor([np.inf, 1], dtype=F64)}, ValueError, "y0 must be finite"),
        ({"x0": torch.arange(3)}, ValueError, "x0 must be real floating point"),
        ({"y0": torch.zeros(3)}, ValueError, "y0 must be torch.float64"),
        ({"n_blocks": 4}, ValueError, "y0 must be a tensor of shape"),
        ({"n_blocks": 4, "y0": randn(3, 2)}, ValueError, r"\(4, p\)"),
        ({"n_blocks": 0}, ValueError, "n_blocks must be"),
        ({"constraint": lambda x, y: y}, ValueError, "project_joint must be given"),
        ({"constraint": 3}, TypeError, "constraint must be None or callable"),
        ({"project_x": 3}, TypeError, "project_x must be None or callable"),
        ({"sample_upper": 3}, TypeError, "sample_upper must be None or callable"),
        ({"affine": ROWS, "constraint": lambda x, y: y}, ValueError, "constraint must be None"),
        ({"affine": ROWS[:2]}, TypeError, "affine must be a tuple"),
        ({"affine": (ROWS[0], ROWS[1], 0.0)}, TypeError, "affine c must be a tensor"),
        ({"affine": (ROWS[1], ROWS[1], ROWS[2])}, ValueError, r"affine A must be of shape \(2, 2\)"),
        ({"affine": (ROWS[0], ROWS[0], ROWS[2])}, ValueError, r"affine B must be of shape \(2, 3\)"),
        ({"affine": (ROWS[0].float(), ROWS[1], ROWS[2])}, ValueError, "affine A must be torch.float64"),
        ({"affine": ROWS, "equality": torch.tensor([True])}, ValueError, "equality must be of shape"),
        ({"equality": 1}, TypeError, "equality must be a bool"),
    ],
)
def test_bad_problems_are_refused(changes, kind, text):
    with pytest.raises(kind, match=text):
        good(**changes)


def test_functions_of_the_wrong_kind_are_refused_when_they_are_asked():
    x, y = randn(2), randn(3)
    with pytest.raises(ValueError, match=r"upper must be a function that returns a tensor of shape \(\)"):
        Oracles(good(upper=lambda x, y, b: y)).upper_grad(x, y)
    with pytest.raises(TypeError, match="lower must be a function"):
        Oracles(good(lower=lambda x, y, b: 1.0)).lower_grad(x, y)
    problem, _ = blocks_problem()
    problem.lower = lambda x, yb, batch, blocks: yb.sum()
    with pytest.raises(ValueError, match=r"lower must be a function that returns a tensor of shape \(5,\)"):
        solve_lower(problem, problem.x0)


def test_bad_options_are_named():
    problem, _ = quadratic()
    x, y = problem.x0, problem.y0
    for options, text in [
        ({"solver": "qr"}, "solver"), ({"rtol": -1}, "rtol"), ({"maxiter": 0}, "maxiter"), ({"steps": 0}, "steps"),
        ({"lr": 0.0}, "lr"),
    ]:  # fmt: skip
        with pytest.raises(ValueError, match=text):
            hypergradient(problem, x, y, **options)
    with pytest.raises(ValueError, match="x must be of shape"):
        hypergradient(problem, y, y)
    with pytest.raises(ValueError, match="tol must be"):
        solve_lower(problem, x, tol=0.0)
    concave = good(lower=lambda x, y, b: -y.square().sum())
    for solver in ("direct", "cg"):
        with pytest.raises(ValueError, match="lower must be strongly convex"):
            hypergradient(concave, randn(2), randn(3), solver=solver)
    coupled = good(constraint=lambda x, y: y, project_joint=lambda x, y: (x, y))
    with pytest.raises(ValueError, match="not affine"):
        solve_lower(coupled, randn(2))
