from __future__ import annotations

import math
import threading
from concurrent.futures import ThreadPoolExecutor
from importlib import import_module
from itertools import pairwise

import numpy as np
import pytest
import torch

from steepest.bilevel import BilevelProblem, aid_cg, bo_rep
from tests.bilevel.test_baselines import optimum
from tests.bilevel.test_problem import F64, blocks_problem, gen, quadratic, randn

module = import_module("steepest.bilevel._bo_rep")
OFF = {"refine_steps": 0}


class Noisy:
    """Lower y'Hy / 2 - y'(Cx + b + s), upper |y - t - s|^2 / 2 + x'Qx / 2, samples s; all derivatives by hand."""

    def __init__(self, **options):
        plain, (self.H, self.C, self.b, self.t, self.Q) = quadratic()
        self.x0, self.y0 = plain.x0, plain.y0
        H, C, b, t, Q = self.H, self.C, self.b, self.t, self.Q
        self.drawn = []

        def sample(level):
            def draw(generator, size):
                self.drawn.append((level, torch.randn(size or 2, 6, generator=generator, dtype=F64)))
                return self.drawn[-1][1]

            return draw

        def shift(batch):
            return 0.0 if batch is None else batch.mean(0)

        self.problem = BilevelProblem(
            lambda x, y, batch: (y - t - shift(batch)).square().sum() / 2 + x @ Q @ x / 2,
            lambda x, y, batch: y @ H @ y / 2 * (1 if batch is None else 1 + batch[0, 0] ** 2)
            - y @ (C @ x + b + shift(batch)),
            self.x0, self.y0, sample_upper=sample("upper"), sample_lower=sample("lower"), **options,
        )  # fmt: skip

    def lower_grad(self, x, y, s):
        return (1 + s[0, 0] ** 2) * (self.H @ y) - self.C @ x - self.b - s.mean(0)


def transcribed(
    case, steps, lr_x, lr_y, lr_z, beta, period, inner, radius, refine, decay=False, normalize=True, X=None
):
    """Write down the algorithm for `case`, its samples taken in order from `case.drawn`."""
    stream = iter(list(case.drawn))

    def draw(level):
        name, s = next(stream)
        assert name == level
        return s

    def mean_of_steps(x, start, n, lr, ball):
        y, iterates = start, []
        for _ in range(n):
            y = y - lr * case.lower_grad(x, y, draw("lower"))
            if ball is not None and (y - start).norm() > ball:
                y = start + ball * (y - start) / (y - start).norm()
            iterates.append(y)
        return torch.stack(iterates).mean(0)

    x, y, z, m = case.x0, case.y0, torch.zeros(6, dtype=F64), torch.zeros(4, dtype=F64)
    epochs, T, lr, ball = refine
    for e in range(epochs):
        y = mean_of_steps(x, y, T * 2**e, lr / 2**e, None if ball is None else ball / 2 ** (e / 2))
    for k in range(steps):
        if k > 0 and k % period == 0:
            y = mean_of_steps(x, y, inner, lr_y, radius)
        upper, lower = draw("upper"), draw("lower")
        dF_dy = y - case.t - upper.mean(0)
        h = case.Q @ x + case.C.T @ z  # d2f/dxdy = -C'
        m = beta * m + (1 - beta) * h
        z = z - lr_z * ((1 + lower[0, 0] ** 2) * (case.H @ z) - dF_dy)
        rate = lr_x * (1 - 0.98 * k / steps if decay else 1)
        x = x - rate * (m / m.norm() if normalize else m)
    assert next(stream, None) is None
    return {"x": x, "y": y, "z": z, "m": m}


# -------------------------------------------------------------------------------------------------------------- exact


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("decay", [None, "linear"])
@pytest.mark.parametrize(("radius", "refine_radius"), [(None, None), (0.2, 0.5)])
def test_steps_are_those_of_the_algorithm(radius, refine_radius, decay, normalize):
    case = Noisy()
    result = bo_rep(
        case.problem, lr_x=0.3, lr_y=0.1, lr_z=0.15, beta=0.7, period=3, inner_steps=4, radius=radius, decay=decay,
        refine_epochs=3, refine_steps=2, refine_lr=0.2, refine_radius=refine_radius, normalize=normalize, maxiter=8,
        batch_size=3, random_state=5,
    )  # fmt: skip
    expected = transcribed(
        case, 8, 0.3, 0.1, 0.15, 0.7, 3, 4, radius, (3, 2, 0.2, refine_radius), decay is not None, normalize
    )
    for name, value in expected.items():
        assert torch.allclose(result[name], value, atol=1e-12), name
    assert result.history["grad_norm"][-1] == pytest.approx(expected["m"].norm().item(), rel=1e-12)


def test_the_first_step_takes_the_old_z_and_no_lower_update():
    problem, (_, C, _, t, Q) = quadratic()
    result = bo_rep(problem, lr_x=0.1, lr_y=0.1, lr_z=0.3, beta=0.0, period=1, **OFF, maxiter=1)
    assert torch.equal(result.y, problem.y0)
    h = Q @ problem.x0
    assert torch.allclose(result.m, h, atol=1e-13)
    assert torch.allclose(result.x, problem.x0 - 0.1 * h / h.norm(), atol=1e-13)
    assert torch.allclose(result.z, 0.3 * (problem.y0 - t), atol=1e-13)
    second = bo_rep(problem, lr_x=0.1, lr_y=0.1, lr_z=0.3, beta=0.0, period=1, **OFF, maxiter=2)
    assert torch.allclose(second.m, Q @ result.x + C.T @ result.z, atol=1e-13)


def test_rates_left_open_are_one_over_the_curvature():
    problem, (H, *_) = quadratic()
    L = torch.linalg.eigvalsh(H).max().item()
    result = bo_rep(problem, maxiter=3)
    assert result.lr_y == result.lr_z == pytest.approx(1 / L, rel=1e-2)
    given = bo_rep(problem, lr_y=0.07, maxiter=3)
    assert (given.lr_y, given.lr_z) == (0.07, result.lr_z)
    both = bo_rep(problem, lr_y=0.07, lr_z=0.03, maxiter=3)
    assert (both.lr_y, both.lr_z, both.counts["hvp"]) == (0.07, 0.03, 3)
    # the refinement's own rate defaults to lr_y
    same = bo_rep(problem, lr_y=0.07, lr_z=0.03, refine_lr=0.07, maxiter=3)
    assert torch.equal(same.y, both.y)


def test_a_plain_descent_finds_the_optimum_of_a_quadratic():
    problem, quad = quadratic()
    result = bo_rep(problem, lr_x=0.1, beta=0.0, period=1, inner_steps=6, normalize=False, maxiter=200)
    assert torch.allclose(result.x, optimum(quad), atol=1e-5)
    assert result.success


def test_normalized_momentum_comes_within_its_step_of_the_optimum():
    problem, quad = quadratic()
    start = (problem.x0 - optimum(quad)).norm()
    result = bo_rep(problem, lr_x=0.02, decay="linear", maxiter=300)
    assert (result.x - optimum(quad)).norm() < 0.02 * start
    momentum = bo_rep(problem, lr_x=0.02, maxiter=300)
    assert (momentum.x - optimum(quad)).norm() < 0.02 / (1 - 0.9)
    plain = bo_rep(problem, lr_x=0.02, beta=0.0, maxiter=300)
    assert (plain.x - optimum(quad)).norm() < 2.5 * 0.02


def test_a_step_is_as_long_as_lr_x_however_large_the_gradient():
    for scale in (1e-8, 1.0, 1e30):
        problem = BilevelProblem(
            lambda x, y, batch, scale=scale: scale * (3 * x[0] + 4 * x[1]), lambda x, y, batch: y.square().sum() / 2,
            torch.zeros(2), torch.zeros(1),
        )  # fmt: skip
        result = bo_rep(problem, lr_x=0.5, maxiter=3)
        assert torch.allclose(result.x, -1.5 * torch.tensor([0.6, 0.8]), atol=1e-6)
    still = BilevelProblem(
        lambda x, y, batch: 1e-12 * x.sum(), lambda x, y, batch: y.square().sum() / 2, torch.zeros(1), torch.zeros(1)
    )
    assert bo_rep(still, lr_x=0.5, maxiter=3).x.item() == 0  # |m| is below 1e-12


def test_an_exploding_upper_gradient_is_survived():
    """F = sum cosh(4 y), f = |y - x|^2 / 2 from x = 3: plain steps of the same size leave the numbers."""

    def problem():
        three = torch.full((1,), 3.0, dtype=F64)
        return BilevelProblem(
            lambda x, y, batch: torch.cosh(4 * y).sum(), lambda x, y, batch: (y - x).square().sum() / 2, three, three
        )

    assert bo_rep(problem(), lr_x=0.05, maxiter=200).x.abs().max() < 0.5
    rival = aid_cg(problem(), lr_x=0.05, lr_y=1.0, inner_steps=1, cg_steps=1, maxiter=200)
    assert not rival.success or rival.x.abs().max() > 0.5
    plain = bo_rep(problem(), lr_x=0.05, maxiter=200, normalize=False)
    assert not plain.success or plain.x.abs().max() > 0.5


def test_the_refinement_comes_near_the_lower_minimum_in_spite_of_noise():
    noise = 0.5

    def sample(generator, size):
        return noise * torch.randn(6, generator=generator, dtype=F64)

    plain, (H, C, b, _, _) = quadratic()
    problem = BilevelProblem(
        plain.upper, lambda x, y, s: plain.lower(x, y, None) + (0 if s is None else s @ y), plain.x0,
        5 * plain.y0, sample_lower=sample,
    )  # fmt: skip
    target = torch.linalg.solve(H, C @ problem.x0 + b)
    start = (problem.y0 - target).norm()
    result = bo_rep(problem, lr_x=1e-9, refine_epochs=6, refine_steps=32, maxiter=1)
    assert (result.y - target).norm() <= 0.1 * start
    rough = bo_rep(problem, lr_x=1e-9, refine_epochs=1, refine_steps=32, refine_lr=result.lr_y, maxiter=1)
    assert (result.y - target).norm() < (rough.y - target).norm()


def test_blocks_are_taken_together():
    problem, (H, C, b, _) = blocks_problem()
    result = bo_rep(problem, lr_x=0.02, period=1, inner_steps=10, normalize=False, maxiter=20)
    y = torch.linalg.solve(H, (C @ result.x + b).unsqueeze(2)).squeeze(2)
    assert (result.y - y).norm() < 0.05 * (problem.y0 - y).norm()
    assert result.z.shape == (5, 3)


# --------------------------------------------------------------------------------------------------------------- cost


@pytest.mark.parametrize(("period", "inner"), [(1, 3), (2, 3), (3, 5), (4, 0)])
def test_calls_are_counted_exactly(period, inner):
    case = Noisy()
    result = bo_rep(case.problem, period=period, inner_steps=inner, maxiter=10, batch_size=3)
    updates = sum(1 for k in range(1, 10) if k % period == 0)
    lower = 496 + inner * updates
    assert result.counts == {
        "upper_grad": 10, "lower_grad": lower, "hvp": 10 + 20, "jvp": 10, "hessian": 0, "projection": 0,
        "samples": 3 * (1 + lower + 2 * 10),
    }  # fmt: skip
    assert len(case.drawn) == 1 + lower + 20
    assert (lower - 496) / 10 <= inner / period + 1


def test_sets_are_kept_and_balls_too():
    problem, _ = quadratic(project_x=lambda x: x.clamp(-0.1, 0.1), project_y=lambda y: y.clamp(-0.2, 0.2))
    seen = []
    result = bo_rep(
        problem, lr_x=0.05, period=1, inner_steps=2, radius=0.01, refine_steps=3, refine_epochs=2, maxiter=6,
        callback=lambda intermediate_result: seen.append(intermediate_result.y),
    )  # fmt: skip
    assert result.x.abs().max() <= 0.1
    assert result.y.abs().max() <= 0.2
    assert all((b - a).norm() <= 0.01 + 1e-12 for a, b in pairwise(seen))
    assert result.counts["projection"] == 2 + 3 * 3 + 5 * 2 + 6


def test_seeds_repeat_and_the_global_stream_is_left_alone():
    states = torch.random.get_rng_state(), np.random.get_state()[1].copy()
    options = {"maxiter": 4, "refine_epochs": 2}
    a, b, c = (bo_rep(Noisy().problem, **options, random_state=seed) for seed in (0, 0, 1))
    assert torch.equal(a.x, b.x)
    assert not torch.equal(a.x, c.x)
    assert torch.equal(bo_rep(Noisy().problem, **options, random_state=gen(0)).x, a.x)
    assert torch.equal(torch.random.get_rng_state(), states[0])
    assert (np.random.get_state()[1] == states[1]).all()


# ---------------------------------------------------------------------------------------------------------- properties


def test_forms_and_precision_come_back_as_given():
    flat, _ = quadratic()
    problem = BilevelProblem(
        lambda x, y, batch: flat.upper(x["x"], y["y"].reshape(-1), batch),
        lambda x, y, batch: flat.lower(x["x"], y["y"].reshape(-1), batch),
        {"x": flat.x0.clone()}, {"y": flat.y0.reshape(2, 3).clone()},
    )  # fmt: skip
    result, reference = bo_rep(problem, maxiter=4), bo_rep(flat, maxiter=4)
    assert torch.equal(problem.x0["x"], flat.x0)
    assert torch.equal(result.x["x"], reference.x)
    assert torch.equal(result.m["x"], reference.m)
    assert torch.equal(result.z["y"].reshape(-1), reference.z)
    single = BilevelProblem(
        lambda x, y, b: (y - 1).square().sum() + x.square().sum(), lambda x, y, b: (y - x[:1]).square().sum() / 2,
        flat.x0.float(), flat.y0.float(),
    )  # fmt: skip
    result = bo_rep(single, maxiter=3)
    assert result.x.dtype is result.y.dtype is result.z.dtype is result.m.dtype is torch.float32


def test_the_callback_sees_every_variable_and_the_history_keeps_its_pace():
    problem, _ = quadratic()
    seen = []

    def callback(intermediate_result):
        seen.append(intermediate_result)
        if len(seen) == 5:
            raise StopIteration

    result = bo_rep(problem, maxiter=9, log_every=2, callback=callback)
    assert set(seen[0]) == {"x", "y", "z", "m", "nit", "counts"}
    assert (result.status, result.nit) == (6, 5)
    assert result.history["nit"] == [0, 2, 4, 5]
    assert result.history["grad_norm"][-1] == pytest.approx(result.m.norm().item())
    assert result.history["fun"][-1] == result.fun
    assert bo_rep(problem, maxiter=9).history["nit"] == [9]
    assert bo_rep(problem, maxiter=0).lr_y is None


@pytest.mark.parametrize("rates", [{"lr_y": 1e60, "lr_z": 0.1}, {"lr_y": 0.1, "lr_z": 1e60}])
def test_divergence_is_told_with_its_iteration(rates):
    problem, _ = quadratic()
    result = bo_rep(problem, **rates, **OFF, maxiter=50)
    assert (result.success, result.status) == (False, 2)
    assert f"At iteration {result.nit + 1}" in result.message
    assert "finite" in result.message
    assert all(torch.isfinite(result[name]).all() for name in ("x", "y", "z", "m"))


def test_a_z_that_diverges_alone_is_told():
    problem = BilevelProblem(
        lambda x, y, batch: x.square().sum() + y.sum(), lambda x, y, batch: y.square().sum() / 2, randn(2), randn(2)
    )
    result = bo_rep(problem, lr_y=0.1, lr_z=1e60, **OFF, maxiter=50)
    assert (result.success, result.status) == (False, 2)
    assert torch.isfinite(result.z).all()


def test_a_refinement_that_diverges_is_told_and_gives_the_start_back():
    problem, _ = quadratic()
    result = bo_rep(problem, refine_lr=1e100, maxiter=50)
    assert (result.success, result.nit) == (False, 0)
    assert "At iteration 1" in result.message
    assert torch.equal(result.y, problem.y0)


# --------------------------------------------------------------------------------------------------- several processes


def test_ranks_average_what_they_measure(monkeypatch):
    """Two threads stand for two ranks with their own data: the run is that of the mean problem."""
    barrier, shared, rank = threading.Barrier(2), {}, threading.local()

    def all_reduce_mean(tensors, group):
        shared[rank.number] = [t.clone() for t in tensors]
        barrier.wait(60)
        mean = [(a + b) / 2 for a, b in zip(shared[0], shared[1], strict=True)]
        barrier.wait(60)
        for t, value in zip(tensors, mean, strict=True):
            t.copy_(value)

    def rank_of(scale, number, seed):
        rank.number = number
        return bo_rep(scaled(scale), maxiter=5, refine_epochs=2, random_state=seed, process_group="two")

    plain, (H, C, b, t, Q) = quadratic()

    def scaled(scale):
        return BilevelProblem(
            lambda x, y, batch: scale * (y - t).square().sum() / 2 + x @ Q @ x / 2,
            lambda x, y, batch: scale * (y @ H @ y / 2 - y @ (C @ x + b)),
            plain.x0, plain.y0, sample_lower=lambda generator, size: torch.rand(1, generator=generator),
        )  # fmt: skip

    expected = bo_rep(scaled(1.5), maxiter=5, refine_epochs=2)
    seeds = []
    monkeypatch.setattr(module, "all_reduce_mean", all_reduce_mean)
    monkeypatch.setattr(module, "group_rank", lambda group: rank.number)
    real = module.torch_generator
    monkeypatch.setattr(module, "torch_generator", lambda seed, *a, **o: (seeds.append(seed), real(seed, *a, **o))[1])
    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(rank_of, (1.0, 2.0), (0, 1), (7, 7)))
    assert sorted(seeds) == [7, 8]
    for result in found:
        assert result.lr_y == pytest.approx(expected.lr_y, rel=1e-9)
        for name in ("x", "y", "z", "m"):
            assert torch.allclose(result[name], expected[name], atol=1e-12), name
        assert result.counts == expected.counts


# -------------------------------------------------------------------------------------------------------------- misuse


def test_bad_arguments_are_named():
    problem, _ = quadratic()
    bad = {
        "lr_x": (0.0, -1.0, math.nan), "lr_y": (0.0, -1.0), "lr_z": (0.0, -1.0), "decay": ("cosine",),
        "beta": (1.0, -0.1, math.nan), "period": (0, -1), "inner_steps": (-1,), "radius": (0.0, -1.0),
        "refine_epochs": (-1,), "refine_steps": (-1,), "refine_lr": (0.0,), "refine_radius": (0.0,),
        "batch_size": (0, -1), "maxiter": (-1,), "log_every": (0,),
    }  # fmt: skip
    for name, values in bad.items():
        for value in values:
            with pytest.raises(ValueError, match=rf"^{name} must be"):
                bo_rep(problem, **{name: value})
    kinds = {"period": 1.5, "normalize": 1, "callback": 3, "random_state": "x", "lr_x": "x", "process_group": 3}
    for name, value in kinds.items():
        with pytest.raises((TypeError, RuntimeError), match=name):
            bo_rep(problem, **{name: value})
    with pytest.raises(TypeError, match="problem must be a BilevelProblem"):
        bo_rep(lambda x: x)
    coupled, _ = quadratic(affine=(randn(1, 4), randn(1, 6), randn(1)))
    with pytest.raises(ValueError, match="lv_hba"):
        bo_rep(coupled)


@pytest.mark.parametrize("level", ["upper", "lower"])
def test_an_empty_batch_is_refused(level):
    problem, _ = quadratic(**{f"sample_{level}": lambda generator, size: torch.zeros(0, 6)})
    with pytest.raises(ValueError, match=f"sample_{level}"):
        bo_rep(problem, maxiter=2)


def test_a_lower_objective_without_curvature_needs_rates():
    problem = BilevelProblem(
        lambda x, y, batch: (y + x).sum(), lambda x, y, batch: (x * y).sum(), torch.zeros(1), torch.zeros(1)
    )
    with pytest.raises(ValueError, match="lr_y and lr_z must be given"):
        bo_rep(problem, maxiter=2)
    assert bo_rep(problem, lr_y=0.1, lr_z=0.1, maxiter=2).nit == 2
