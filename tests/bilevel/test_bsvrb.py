from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch

from steepest.bilevel import BilevelProblem, bsvrb, msvr_gamma
from steepest.bilevel._bsvrb_blocks import Rule, _msvr, draw_blocks, floored, update
from steepest.bilevel._bsvrb_ray import SHARES, _join, _split
from steepest.core.errors import SteepestWarning

F64 = torch.float64


def gen(seed=0):
    return torch.Generator().manual_seed(seed)


def randn(*shape, seed=0, dtype=F64):
    return torch.randn(*shape, generator=gen(seed), dtype=dtype)


def noisy(m=5, p=3, n=4, *, noise=0.3, seed=0, record=None, dtype=F64):
    """Curved blocks: g_i = (1 + |x|^2 / 2) y'H_i y / 2 - y'(C_i x + b_i), f_i = |y - t_i|^2 (1 + |x|^2 / 4) / 2.

    A batch perturbs H_i's diagonal and b_i (lower) and t_i (upper); `record` gets what was drawn and evaluated.
    """
    R, C, b, t = randn(m, p, p, seed=seed), randn(m, p, n, seed=1), randn(m, p, seed=2), randn(m, p, seed=3)
    H = R @ R.mT / p + torch.eye(p, dtype=F64)
    H, C, b, t = (part.to(dtype) for part in (H, C, b, t))

    def upper(x, yb, batch, blocks):
        if record is not None:
            record.append(("upper", blocks.clone(), None))
        target = t[blocks] if batch is None else t[blocks] + batch.mean(1)
        return (yb - target).square().sum(1) / 2 * (1 + x.square().sum() / 4)

    def lower(x, yb, batch, blocks):
        Hb, rb = H[blocks], C[blocks] @ x + b[blocks]
        if batch is not None:
            Hb, rb = Hb + torch.diag_embed(batch["h"].mean(1)), rb + batch["b"].mean(1)
        return (1 + x.square().sum() / 2) * torch.einsum("ip,ipq,iq->i", yb, Hb, yb) / 2 - (yb * rb).sum(1)

    def sample_upper(generator, size, blocks):
        batch = noise * torch.randn(len(blocks), size or 1, p, generator=generator, dtype=dtype)
        if record is not None:
            record.append(("draw_upper", blocks.clone(), batch))
        return batch

    def sample_lower(generator, size, blocks):
        h, b = noise * torch.randn(2, len(blocks), size or 1, p, generator=generator, dtype=dtype)
        if record is not None:
            record.append(("draw_lower", blocks.clone(), {"h": h, "b": b}))
        return {"h": h, "b": b}

    samplers = {} if noise is None else {"sample_upper": sample_upper, "sample_lower": sample_lower}
    start = (0.3 * randn(n, seed=5)).to(dtype), randn(m, p, seed=6).to(dtype)
    return BilevelProblem(upper, lower, *start, n_blocks=m, **samplers), (H, C, b, t)


def quadratic(m=12, p=3, n=4):
    """F(x) = mean |A_i x + c_i - t_i|^2 / 2, y_i(x) = A_i x + c_i: its minimizer is a linear system away."""
    R, A, c, t = randn(m, p, p), randn(m, p, n, seed=1), randn(m, p, seed=2), randn(m, p, seed=3)
    H = R @ R.mT / (4 * p) + torch.eye(p, dtype=F64)

    def lower(x, yb, batch, blocks):
        r = yb - A[blocks] @ x - c[blocks]
        return torch.einsum("ip,ipq,iq->i", r, H[blocks], r) / 2

    problem = BilevelProblem(
        lambda x, yb, batch, blocks: (yb - t[blocks]).square().sum(1) / 2,
        lower,
        torch.zeros(n, dtype=F64),
        torch.zeros(m, p, dtype=F64),
        n_blocks=m,
    )
    x = torch.linalg.solve((A.mT @ A).sum(0), (A.mT @ (t - c).unsqueeze(-1)).sum(0).squeeze(-1))
    return problem, x, (H, A, c, t)


def plain(data, x, y, draws, variant, *, lr_x, lr_y, lr_v, alpha, gamma, beta, floor, bound):
    """The method written down once more: NumPy, block by block, every row moved in every step, no autograd."""
    H0, C, b, t = (part.double().numpy() for part in data)
    x, y = x.double().numpy().copy(), y.double().numpy().copy()
    m, p = y.shape
    s, u, v, seen = np.zeros((m, p)), np.zeros((m, p)), np.zeros((m, p)), set()
    H = np.stack([np.eye(p)] * m)
    z, old = np.zeros_like(x), None
    trace = []
    for S, noise_t, noise_h, noise_b in draws:

        def at(i, k, x, y, v, H, noise_t=noise_t, noise_h=noise_h, noise_b=noise_b):
            M = H0[i] + np.diag(noise_h[k])
            hessian = (1 + x @ x / 2) * M
            df_dy = (y[i] - t[i] - noise_t[k]) * (1 + x @ x / 4)
            df_dx = ((y[i] - t[i] - noise_t[k]) ** 2).sum() / 2 * x / 2
            w = np.linalg.inv(H[i]) @ df_dy if variant == "v1" else v[i]
            mixed = np.outer(x, M @ y[i]) - C[i].T  # d2g/dxdy, (n, p)
            q_s = hessian @ y[i] - C[i] @ x - b[i] - noise_b[k]
            return df_dx - mixed @ w, q_s, hessian if variant == "v1" else hessian @ v[i] - df_dy

        G, G_old = np.zeros_like(x), np.zeros_like(x)
        H_new, s_new, u_new = H.copy(), s.copy(), u.copy()
        for k, i in enumerate(S):
            now = at(i, k, x, y, v, H)
            before = now if old is None else at(i, k, *old)
            G, G_old = G + now[0] / len(S), G_old + before[0] / len(S)
            for e, j in ((s_new, 1), (H_new if variant == "v1" else u_new, 2)):
                tracked = (1 - alpha) * e[i] + alpha * now[j] + gamma * (now[j] - before[j])
                e[i] = tracked if i in seen else now[j]
            if variant == "v1":
                values, Q = np.linalg.eigh((H_new[i] + H_new[i].T) / 2)
                H_new[i] = Q @ np.diag(np.maximum(values, floor)) @ Q.T
            seen.add(i)
        z = G if old is None else (1 - beta) * (z - G_old) + G
        old = (x, y, v, H)
        H, s, u = H_new, s_new, u_new
        x, y, v = x - lr_x * z, y - lr_y * s, v - lr_v * u
        norms = np.linalg.norm(v, axis=1, keepdims=True)
        v = np.where(norms > bound, v * bound / np.maximum(norms, 1e-300), v)
        trace.append({"x": x, "y": y, "s": s, "blocks": S} | ({"H": H} if variant == "v1" else {"v": v}))
    return trace


def recorded(record):
    """What the samplers drew, in the form of `plain`."""
    draws = [(blocks.numpy(), batch) for kind, blocks, batch in record if kind.startswith("draw")]
    return [
        (S, up.mean(1).double().numpy(), low["h"].mean(1).double().numpy(), low["b"].mean(1).double().numpy())
        for (S, up), (_, low) in zip(draws[::2], draws[1::2], strict=True)
    ]


# -------------------------------------------------------------------------------------------------------------- exact


@pytest.mark.parametrize("lazy", [True, False])
@pytest.mark.parametrize(
    ("variant", "options"),
    [
        ("v1", {}),
        ("v1", {"hessian_floor": 1.4, "gamma": 0.7, "beta": 0.4}),
        ("v1", {"blocks_per_step": 5}),
        ("v2", {}),
        ("v2", {"v_bound": 0.6, "lr_v": 0.4, "gamma": 0.0, "beta": 0.4}),
        ("v2", {"blocks_per_step": 1, "batch_size": 2, "beta": 1.0}),
    ],
)
def test_every_step_is_that_of_a_dense_transcription(variant, options, lazy):
    record, seen = [], []
    problem, data = noisy(record=record)
    given = {"lr_x": 0.03, "lr_y": 0.08, "lr_v": 0.06, "alpha": 0.15, "blocks_per_step": 2, "beta": 0.9} | options
    result = bsvrb(
        problem,
        variant=variant,
        lazy=lazy,
        maxiter=10,
        **given,
        callback=lambda intermediate_result: seen.append(intermediate_result),
    )
    trace = plain(
        data,
        problem.x0,
        problem.y0,
        recorded(record),
        variant,
        **{key: given[key] for key in ("lr_x", "lr_y", "lr_v", "alpha", "beta")},
        gamma=given.get("gamma", msvr_gamma(5, given["blocks_per_step"], 0.15)),
        floor=given.get("hessian_floor", 1e-3),
        bound=given.get("v_bound", 10.0),
    )
    assert len(seen) == len(trace) == 10
    for ours, theirs in zip(seen, trace, strict=True):
        for key, value in theirs.items():
            np.testing.assert_allclose(ours[key].numpy(), value, rtol=1e-10, atol=1e-11, err_msg=f"{key}, {ours.nit}")
    np.testing.assert_allclose(result.x, trace[-1]["x"], rtol=1e-10)
    np.testing.assert_allclose(result.y, trace[-1]["y"], rtol=1e-10)
    np.testing.assert_allclose(result.average_x, np.mean([row["x"] for row in trace[5:]], axis=0), rtol=1e-10)
    if "hessian_floor" in options:
        assert any(np.linalg.eigvalsh(row["H"]).min() < 1.4 + 1e-9 for row in trace[5:])  # the floor was met
    if "v_bound" in options:
        assert any(np.isclose(np.linalg.norm(row["v"], axis=1), 0.6).any() for row in trace)  # and the ball


@pytest.mark.parametrize(("variant", "lr_x", "maxiter"), [("v1", 0.08, 120), ("v2", 0.05, 200)])
def test_with_all_blocks_and_no_noise_the_optimum_is_reached(variant, lr_x, maxiter):
    problem, x, (H, A, c, t) = quadratic()
    result = bsvrb(problem, variant=variant, lr_x=lr_x, lr_y=0.5, v_bound=1e3, maxiter=maxiter)
    assert (result.x - x).norm() / x.norm() < 1e-6
    y = A @ x + c
    assert torch.allclose(result.y, y, atol=1e-6)
    assert torch.allclose(result.v, torch.linalg.solve(H, (y - t).unsqueeze(-1)).squeeze(-1), atol=1e-6)
    if variant == "v1":
        assert torch.allclose(result.H, H, atol=1e-12)
    assert result.success
    assert result.status == 1
    assert result.fun == pytest.approx(float((y - t).square().sum(1).mean() / 2))


def test_msvr_gamma_cancels_the_cross_term_over_all_draws():
    assert msvr_gamma(100, 10, 0.1) == pytest.approx(9 / 0.9 + 0.9)
    assert msvr_gamma(7, 7, 0.3) == pytest.approx(0.7)  # STORM
    m, n, alpha = 5, 2, 0.15
    e, q_old, change = randn(m, 3), randn(m, 3, seed=1), randn(m, 3, seed=2)

    def error(change, gamma):
        """Mean over all draws of the squared error of the m estimates, after q moved by `change`."""
        rule, total = Rule("v2", 1.0, 1.0, alpha, gamma, 1.0, 1.0), 0.0
        for S in itertools.combinations(range(m), n):
            at, new = list(S), e.clone()
            new[at] = _msvr(rule, e[at], (q_old + change)[at], q_old[at], torch.zeros(n, dtype=torch.bool))
            total += float((new - q_old - change).square().sum())
        return total / math.comb(m, n)

    best = msvr_gamma(m, n, alpha)
    assert error(change, best) == pytest.approx(error(-change, best), rel=1e-12)
    assert error(change, best + 0.1) != pytest.approx(error(-change, best + 0.1), rel=1e-3)
    drawn, kept = n / m * (1 - alpha) ** 2, 1 - n / m
    d = (e - q_old).square().sum()
    assert error(change, best) == pytest.approx(
        float((drawn + kept) * d + (n / m * (best - 1 + alpha) ** 2 + kept) * change.square().sum()), rel=1e-12
    )


def test_hessians_are_projected_on_the_floor():
    R = randn(4, 3, 3)
    H = floored(R, 0.5)
    values, Q = torch.linalg.eigh((R + R.mT) / 2)
    assert torch.allclose(H, Q @ torch.diag_embed(values.clamp(min=0.5)) @ Q.mT, atol=1e-12)
    above = R @ R.mT + torch.eye(3, dtype=F64)
    assert torch.allclose(floored(above, 0.5), above, atol=1e-12)
    steep = torch.diag(torch.tensor([1e8, 0.0, 0.0])).unsqueeze(0)  # float32 has no Cholesky factor with 1e-3
    Q = torch.linalg.qr(randn(3, 3, dtype=torch.float32)).Q
    assert int(torch.linalg.cholesky_ex(floored(Q @ steep @ Q.T, 1e-3)).info) == 0


@pytest.mark.parametrize("variant", ["v1", "v2"])
def test_lazy_rows_are_the_plain_ones(variant):
    """The ball is met: a delayed row must go round it step by step, not in one stride."""
    problem, _ = noisy(m=30, noise=0.1)
    options = {"variant": variant, "lr_x": 0.01, "lr_y": 0.01, "lr_v": 0.03, "v_bound": 0.3, "blocks_per_step": 2}
    lazy, eager = (bsvrb(problem, lazy=lazy, maxiter=50, **options) for lazy in (True, False))
    for key in ("x", "y", "v", "s", "average_x"):
        assert torch.allclose(lazy[key], eager[key], rtol=1e-9, atol=1e-10), key
    assert lazy.counts == eager.counts
    if variant == "v2":
        assert bool((lazy.v.norm(dim=1) > 0.3 - 1e-9).any())


# --------------------------------------------------------------------------------------------------- counts and draws


def test_oracle_calls_are_counted_and_made_on_the_drawn_blocks_alone():
    record = []
    problem, _ = noisy(m=9, record=record)
    at_points = 2 * 6 - 1
    for variant, second in (("v1", {"hessian": at_points, "hvp": 0}), ("v2", {"hessian": 0, "hvp": at_points})):
        result = bsvrb(problem, variant=variant, blocks_per_step=3, batch_size=4, maxiter=6, lr_y=0.1)
        first = dict.fromkeys(("upper_grad", "lower_grad", "jvp"), at_points)
        assert result.counts == {**first, **second, "projection": 0, "samples": 6 * 2 * 3 * 4}
        assert all(type(n) is int for n in result.counts.values())
    sizes = [len(blocks) for kind, blocks, _ in record if kind == "upper"]
    assert sizes.count(9) == 3  # two final reports, and v1's last v
    assert sizes.count(3) == 2 * at_points


def test_large_blocks_need_no_hessian():
    p = 20_000
    target = torch.linspace(0, 1, p)
    problem = BilevelProblem(
        lambda x, yb, batch, blocks: (yb - target).square().mean(1) / 2,
        lambda x, yb, batch, blocks: (yb - x).square().sum(1) / 2,
        torch.zeros(1),
        torch.zeros(2, p),
        n_blocks=2,
    )
    result = bsvrb(problem, variant="v2", lr_x=0.2, maxiter=100)
    assert result.counts["hessian"] == 0
    assert result.x.item() == pytest.approx(0.5, abs=1e-3)
    with pytest.raises(ValueError, match=r"variant must be 'v2' .* 2000 unknowns \(here 20000\)"):
        bsvrb(problem)


def test_draws_are_distinct_and_uniform():
    generator, counts = gen(), dict.fromkeys(itertools.combinations(range(5), 2), 0)
    for _ in range(2000):
        counts[tuple(draw_blocks(5, 2, generator).tolist())] += 1
    assert sum((n - 200) ** 2 / 200 for n in counts.values()) < 27.9  # chi-squared, 9 degrees, 0.1 %
    for n in (1, 3, 4, 7):
        S = draw_blocks(7, n, generator)
        assert S.dtype == torch.long
        assert len(S.unique()) == n
        assert torch.equal(S, S.sort().values)
    assert draw_blocks(10**12, 3, generator).max() < 10**12  # O(n): no permutation of m


@pytest.mark.parametrize("variant", ["v1", "v2"])
def test_a_seed_fixes_the_run(variant):
    problem, _ = noisy(m=9)
    options = {"variant": variant, "blocks_per_step": 3, "maxiter": 8, "lr_y": 0.1, "lr_x": 0.1}
    before = torch.random.get_rng_state()
    a = bsvrb(problem, random_state=3, **options)
    b = bsvrb(problem, random_state=gen(3), log_every=2, callback=lambda intermediate_result: None, **options)
    assert torch.equal(a.x, b.x)
    assert torch.equal(a.y, b.y)
    assert not torch.equal(a.x, bsvrb(problem, random_state=4, **options).x)
    assert torch.equal(before, torch.random.get_rng_state())
    assert torch.equal(problem.y0, noisy(m=9)[0].y0)


# --------------------------------------------------------------------------------------------------------- the result


def test_history_decay_and_average():
    problem, _ = noisy()
    seen = []
    result = bsvrb(
        problem,
        lr_x=0.1,
        lr_y=0.2,
        decay="linear",
        maxiter=5,
        log_every=2,
        callback=lambda intermediate_result: seen.append(intermediate_result.x),
    )
    assert result.history["nit"] == [0, 2, 4, 5]
    assert result.history["fun"][-1] == result.fun
    assert set(result.history) == {"nit", "fun", "seconds", "samples"}
    assert torch.allclose(result.average_x, torch.stack(seen[2:]).mean(0), rtol=1e-12)
    last = bsvrb(problem, lr_x=0.1, lr_y=0.2, maxiter=5)
    assert torch.allclose(seen[0], bsvrb(problem, lr_x=0.1, lr_y=0.2, maxiter=1).x)
    assert not torch.allclose(seen[-1], last.x)
    assert bsvrb(problem, maxiter=5).history["nit"] == [5]
    untouched = bsvrb(problem, maxiter=0)
    assert torch.equal(untouched.x, problem.x0)
    assert torch.equal(untouched.average_x, problem.x0)


def test_the_decayed_steps_are_those_of_the_room():
    problem, _, _ = quadratic()
    xs, options = [problem.x0], {"lr_y": 0.5, "beta": 1.0}
    bsvrb(
        problem,
        lr_x=0.1,
        decay="linear",
        maxiter=2,
        callback=lambda intermediate_result: xs.append(intermediate_result.x),
        **options,
    )
    same = bsvrb(problem, lr_x=0.1, maxiter=2, **options).x
    assert torch.allclose(xs[2] - xs[1], (same - xs[1]) * (1 - 0.98 / 2), rtol=1e-12)


def test_the_callback_stops_and_x_stays_in_its_set():
    problem, _, _ = quadratic()
    boxed = BilevelProblem(
        lambda x, yb, batch, blocks: problem.upper(x["a"], yb, batch, blocks),
        lambda x, yb, batch, blocks: problem.lower(x["a"], yb, batch, blocks),
        {"a": problem.x0},
        problem.y0,
        n_blocks=12,
        project_x=lambda x: {"a": x["a"].clamp(-0.1, 0.1)},
    )

    def stop(intermediate_result):
        assert intermediate_result.x["a"].abs().max() <= 0.1
        assert "v" in intermediate_result
        assert "H" not in intermediate_result
        if intermediate_result.nit == 40:
            raise StopIteration

    result = bsvrb(boxed, variant="v2", lr_x=0.5, blocks_per_step=6, maxiter=100, callback=stop)
    assert (result.status, result.nit, result.success) == (6, 40, False)
    assert result.counts["projection"] == 40
    assert result.x["a"].abs().max() == pytest.approx(0.1)
    assert set(result.average_x) == {"a"}


def test_float32_stays_and_agrees():
    (single, _), (double, _) = noisy(noise=None, dtype=torch.float32), noisy(noise=None)
    for variant in ("v1", "v2"):
        a, b = (bsvrb(problem, variant=variant, lr_x=0.03, lr_y=0.1, maxiter=15) for problem in (single, double))
        assert {t.dtype for t in (a.x, a.y, a.v, a.s, a.average_x)} == {torch.float32}
        assert torch.allclose(a.x.double(), b.x, atol=1e-4)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("variant", ["v1", "v2"])
def test_on_a_gpu_everything_stays_there(variant):
    problem, _, (H, A, c, t) = quadratic()
    H, A, c, t = (part.cuda() for part in (H, A, c, t))

    def lower(x, yb, batch, blocks):
        r = yb - A[blocks] @ x - c[blocks]
        return torch.einsum("ip,ipq,iq->i", r, H[blocks], r) / 2

    there = BilevelProblem(
        lambda x, yb, batch, blocks: (yb - t[blocks]).square().sum(1) / 2,
        lower,
        problem.x0.cuda(),
        problem.y0.cuda(),
        n_blocks=12,
    )
    a, b = (bsvrb(of, variant=variant, lr_x=0.05, lr_y=0.5, maxiter=10) for of in (problem, there))
    assert {part.device.type for part in (b.x, b.y, b.v, b.s, b.blocks, b.average_x)} == {"cuda"}
    assert torch.allclose(a.x, b.x.cpu(), rtol=1e-9)
    few = bsvrb(there, variant=variant, lr_x=0.01, lr_y=0.05, blocks_per_step=3, maxiter=10)
    assert bool(torch.isfinite(few.x).all())


def test_a_run_that_breaks_says_where_and_keeps_the_last_finite_iterate():
    problem, _ = noisy()
    for variant in ("v1", "v2"):
        result = bsvrb(problem, variant=variant, lr_x=1e-3, lr_y=1e6, blocks_per_step=3, maxiter=500)
        assert (result.success, result.status) == (False, 2)
        assert "finite" in result.message
        assert f"teration {result.nit + 1}" in result.message or f"teration {result.nit}" in result.message
        assert bool(torch.isfinite(result.x).all())


# -------------------------------------------------------------------------------------------------------------- shares


@pytest.mark.parametrize("variant", ["v1", "v2"])
def test_shares_give_together_what_the_whole_gives(variant, monkeypatch):
    problem, _ = noisy(m=50)
    import steepest.bilevel._bsvrb as module

    whole, shares = bsvrb_with(module, monkeypatch, problem, variant, 1), None
    shares = bsvrb_with(module, monkeypatch, problem, variant, SHARES)
    for key in ("x", "y", "v"):
        assert torch.allclose(whole[key], shares[key], rtol=1e-10, atol=1e-12)
    assert whole.counts == shares.counts


def bsvrb_with(module, monkeypatch, problem, variant, n):
    """Run with the drawn blocks cut into n shares, evaluated here in reverse order."""
    import contextlib

    @contextlib.contextmanager
    def evaluator(problem, rule, backend, num_workers):
        def evaluate(share):
            parts = _split(share) if n > 1 else [share]
            assert len(parts) == n
            return _join([update(problem, rule, part) for part in reversed(parts)][::-1], share)

        yield evaluate

    with monkeypatch.context() as patch:
        patch.setattr(module, "evaluator", evaluator)
        return bsvrb(
            problem, variant=variant, lr_x=0.05, lr_y=0.1, blocks_per_step=20, batch_size=2, maxiter=6, log_every=3
        )


@pytest.mark.slow
def test_ray_gives_the_same_numbers_for_any_number_of_workers(ray):
    problem, _ = noisy(m=12)
    options = {"lr_x": 0.05, "lr_y": 0.1, "blocks_per_step": 5, "batch_size": 2, "maxiter": 3}
    for variant in ("v1", "v2"):
        one, two = (bsvrb(problem, variant=variant, backend="ray", num_workers=n, **options) for n in (1, 2))
        here = bsvrb(problem, variant=variant, **options)
        for key in ("x", "y", "v"):
            assert torch.equal(one[key], two[key])
            assert torch.allclose(one[key], here[key], rtol=1e-11, atol=1e-12)
        assert one.counts == two.counts == here.counts
    assert ray.is_initialized()  # the caller's cluster is left running
    broken = bsvrb(problem, backend="ray", num_workers=2, **options | {"lr_y": 1e200})
    assert broken.status == 2


# -------------------------------------------------------------------------------------------------------------- misuse


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"variant": "v3"}, "variant must be one of 'v1', 'v2'"),
        ({"blocks_per_step": 0}, "blocks_per_step must be"),
        ({"blocks_per_step": 6}, r"blocks_per_step must be an integer in \[1, 5\], got 6"),
        ({"alpha": 0.0}, "alpha must be"),
        ({"alpha": 1.0}, "alpha must be"),
        ({"beta": 0.0}, "beta must be"),
        ({"beta": 1.1}, "beta must be"),
        ({"gamma": -0.1}, "gamma must be"),
        ({"lr_x": 0.0}, "lr_x must be > 0"),
        ({"lr_y": -1.0}, "lr_y must be > 0"),
        ({"lr_v": 0.0}, "lr_v must be"),
        ({"hessian_floor": 0.0}, "hessian_floor must be > 0"),
        ({"v_bound": float("nan")}, "v_bound must be > 0"),
        ({"batch_size": 0}, "batch_size must be"),
        ({"decay": "cosine"}, "decay must be"),
        ({"backend": "threads"}, "backend must be one of 'serial', 'ray'"),
        ({"num_workers": 0}, "num_workers must be"),
        ({"maxiter": -1}, "maxiter must be"),
        ({"log_every": 0}, "log_every must be"),
        ({"random_state": -1}, "random_state must be"),
    ],
)
def test_bad_values_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        bsvrb(noisy()[0], **options)


@pytest.mark.parametrize("options", [{"lazy": 1}, {"blocks_per_step": 2.0}, {"callback": 3}, {"random_state": "a"}])
def test_bad_kinds_are_named(options):
    with pytest.raises(TypeError, match=next(iter(options))):
        bsvrb(noisy()[0], **options)


def test_bad_problems_are_named():
    problem, _ = noisy()
    with pytest.raises(TypeError, match="problem must be a BilevelProblem"):
        bsvrb(None)
    single = BilevelProblem(
        lambda x, y, batch: y.sum(), lambda x, y, batch: y.square().sum(), torch.zeros(2), torch.zeros(2)
    )
    with pytest.raises(ValueError, match="n_blocks must be given in the problem"):
        bsvrb(single)
    held = BilevelProblem(
        problem.upper, problem.lower, problem.x0, problem.y0, n_blocks=5, project_y=lambda y: y.clamp(min=0)
    )
    with pytest.raises(ValueError, match="problem must have lower problems without constraint and project_y"):
        bsvrb(held)
    with pytest.raises(ValueError, match="I must be an integer in"):
        msvr_gamma(3, 4, 0.1)
    with pytest.raises(ValueError, match="alpha must be"):
        msvr_gamma(3, 2, 1.0)


def test_batches_that_cannot_be_split_are_refused():
    from steepest.bilevel._bsvrb_ray import _rows_of

    at = torch.tensor([1])
    assert _rows_of("upper_batch", (torch.arange(3), [torch.arange(3)]), at, 3) == (at, [at])
    assert _rows_of("upper_batch", None, at, 3) is None
    for batch in (torch.zeros(2), torch.tensor(1.0), "abc"):
        with pytest.raises(ValueError, match="sample_upper must be a function that returns tensors with 3 rows"):
            _rows_of("upper_batch", batch, at, 3)


def test_the_default_gamma_warns_where_alpha_is_large():
    problem, _ = noisy()
    with pytest.warns(SteepestWarning, match=r"gamma=None makes gamma=15.1 at alpha=0.9, 2 of 5 blocks"):
        bsvrb(problem, alpha=0.9, blocks_per_step=2, lr_y=0.01, maxiter=1)
    bsvrb(problem, alpha=0.9, maxiter=1)  # every block drawn: gamma is 1 - alpha
    bsvrb(problem, alpha=0.9, gamma=1.0, blocks_per_step=2, maxiter=1)
