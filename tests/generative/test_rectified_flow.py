"""Tests of the flow: closed forms of interpolation, sampling, noise and density, SciPy's solver, measures, misuse."""

import itertools
import math

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp

from steepest.generative import (
    GaussianSourceVelocity,
    MLPVelocity,
    RectifiedFlow,
    crossing,
    straightness,
    transport_cost,
)


def randn(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def gaussian_pair(x, t):
    """Exact for independent N(0, I) and N(0, I): E[x1 - x0 | x_t] = (2t - 1) x / (t^2 + (1-t)^2)."""
    t = t.reshape(-1, *([1] * (x.ndim - 1)))
    return (2 * t - 1) * x / (t**2 + (1 - t) ** 2)


def bent(x, t):
    """A field without symmetries: rotation, time, and a nonlinear term."""
    turn = torch.stack([-x[:, 1], x[:, 0]], 1)
    return turn + t[:, None] * torch.sin(x) + 0.5


# --------------------------------------------------------------------------------------------------------------- exact


def test_linear_interpolation():
    x0, x1 = randn(4, 3), randn(4, 3, seed=1)
    t = torch.tensor([0.0, 0.25, 0.5, 1.0], dtype=torch.float64)
    x_t, target = RectifiedFlow(bent).interpolate(x0, x1, t)
    torch.testing.assert_close(x_t, t[:, None] * x1 + (1 - t[:, None]) * x0)
    torch.testing.assert_close(target, x1 - x0)


@pytest.mark.parametrize("name", ["linear", "vp", "subvp", "spherical"])
def test_the_target_is_the_paths_derivative(name):
    x0, x1 = randn(50, 2), randn(50, 2, seed=1)
    flow = RectifiedFlow(bent, interpolation=name, t_eps=1e-3)
    t, h = torch.linspace(0.01, 0.99, 50, dtype=torch.float64), 1e-6
    _, target = flow.interpolate(x0, x1, t)
    ahead, behind = (flow.interpolate(x0, x1, t + s)[0] for s in (h, -h))
    torch.testing.assert_close(target, (ahead - behind) / (2 * h), rtol=1e-6, atol=1e-6)


def test_curves_are_the_papers():
    """Coefficients at t = 0.5 from the formulas with A = 19.9, B = 0.1, and the identities of each family."""
    one, t = torch.ones(1, 1, dtype=torch.float64), 0.5
    a = math.exp(-19.9 * 0.25 / 4 - 0.1 * 0.5 / 2)
    at = {n: RectifiedFlow(bent, interpolation=n, t_eps=1e-3) for n in ("vp", "subvp", "spherical")}
    pairs = {n: tuple(float(f.interpolate(*p, t)[0]) for p in ((0 * one, one), (one, 0 * one))) for n, f in at.items()}
    assert pairs["vp"] == pytest.approx((a, math.sqrt(1 - a**2)))
    assert pairs["subvp"] == pytest.approx((a, 1 - a**2))
    assert pairs["spherical"] == pytest.approx((0.5, math.sqrt(0.75)))


def test_times_keep_away_from_the_ends():
    seen = []

    def velocity(x, t):
        seen.append(t.clone())
        return torch.zeros_like(x)

    flow = RectifiedFlow(velocity, t_eps=0.1)
    flow.sample(randn(3, 1), steps=2, method="rk4")
    flow.loss(randn(1000, 1), randn(1000, 1), generator=0)
    assert min(float(t.min()) for t in seen) == pytest.approx(0.1)
    assert max(float(t.max()) for t in seen) == pytest.approx(0.9)
    assert float(seen[-1].min()) > 0.1  # drawn inside, not pushed there


def test_loss_is_the_mean_square():
    x0, x1, t = randn(6, 2), randn(6, 2, seed=1), torch.rand(6, generator=torch.Generator().manual_seed(2)).double()
    flow = RectifiedFlow(bent)
    squares = (bent(t[:, None] * x1 + (1 - t[:, None]) * x0, t) - (x1 - x0)) ** 2
    torch.testing.assert_close(flow.loss(x0, x1, t=t), squares.mean())
    torch.testing.assert_close(flow.loss(x0, x1, t=t, reduction="sum"), squares.sum())
    torch.testing.assert_close(flow.loss(x0, x1, t=t, reduction="none"), squares.mean(1))


def test_schedules():
    x0, x1 = randn(4000, 1), randn(4000, 1, seed=1)
    flow = RectifiedFlow(lambda x, t: t[:, None].expand_as(x))
    shift = x1 - x0

    def times(schedule):  # the loss reveals the times: v = t
        loss = flow.loss(x0, x1, t_schedule=schedule, reduction="none", generator=0)
        roots = torch.stack([shift[:, 0] + loss.sqrt(), shift[:, 0] - loss.sqrt()])
        return roots

    def hits(roots, values):
        values = torch.tensor(values, dtype=torch.float64)
        return float(((roots[..., None] - values).abs() < 1e-9).any(-1).any(0).double().mean())

    assert hits(times("t0"), [0.0]) == 1
    assert hits(times("t1"), [1.0]) == 1
    assert hits(times(4), [0.0, 0.25, 0.5, 0.75]) == 1
    assert 0.2 < hits(times(4), [0.75]) < 0.3
    assert hits(times(lambda n, generator: torch.full((n,), 0.3, dtype=torch.float64)), [0.3]) == 1


def test_metric_sees_the_end_and_the_start():
    x0, x1 = randn(5, 2), randn(5, 2, seed=1)
    flow = RectifiedFlow(lambda x, t: torch.ones_like(x))

    def metric(a, b):
        return (a - b).abs().sum(1)

    found = flow.loss(x0, x1, t=0.25, metric=metric, reduction="none")
    torch.testing.assert_close(found, (0.25 * x1 + 0.75 * x0 + 0.75 - x1).abs().sum(1))
    back = flow.loss(x0, x1, t_schedule="t1", metric=metric, reduction="none")
    torch.testing.assert_close(back, (x1 - 1 - x0).abs().sum(1))


def test_the_exact_velocity_has_the_smallest_loss():
    """Independent unit Gaussians: V/d = pi/2, S/d = 2 - pi/2, and the drop of the cost is their sum."""
    flow, x0, x1 = RectifiedFlow(gaussian_pair), randn(20_000, 2), randn(20_000, 2, seed=1)
    V, S = float(crossing(flow, x0, x1, generator=0)), float(straightness(flow, x0, steps=50))
    z1 = flow.sample(x0, rtol=1e-7, atol=1e-7).x
    drop = float(transport_cost(x0, x1) - transport_cost(x0, z1))
    assert pytest.approx(math.pi / 2, rel=0.02) == V / 2
    assert pytest.approx(2 - math.pi / 2, rel=0.02) == S / 2
    assert drop == pytest.approx(S + V, rel=0.03)
    torch.testing.assert_close(z1, x0, atol=1e-5, rtol=0)  # |x| sqrt(t^2 + (1-t)^2): paths return


def test_identity_for_finite_data():
    data = torch.tensor([[-2.0, 0.0], [2.0, 0.0], [0.0, 3.0]], dtype=torch.float64)
    flow, x0 = RectifiedFlow(GaussianSourceVelocity(data), t_eps=1e-4), randn(1500, 2)
    x1 = data[torch.randint(3, (1500,), generator=torch.Generator().manual_seed(1))]
    total = crossing(flow, x0, x1, generator=0) + straightness(flow, x0, steps=100)
    drop = transport_cost(x0, x1) - transport_cost(x0, flow.sample(x0).x)
    assert float(total) == pytest.approx(float(drop), rel=0.08)


def test_straight_flows_need_one_step():
    x0, flow = randn(30, 2), RectifiedFlow(lambda x, t: torch.ones_like(x) * 3)
    assert float(straightness(flow, x0, steps=7, method="euler")) == pytest.approx(0, abs=1e-25)
    torch.testing.assert_close(flow.sample(x0, steps=1, method="euler").x, flow.sample(x0).x, atol=1e-4, rtol=0)
    assert float(crossing(flow, x0, x0 + 3, n_times=3)) == pytest.approx(0, abs=1e-25)


def test_straightness_of_small_bends_does_not_cancel():
    """v = c + e sin(2 pi t) in float32: S = e^2/2 although c^2 is 10^12 times larger."""

    def velocity(x, t):
        return 1000 + 1e-1 * torch.sin(2 * math.pi * t)[:, None] + 0 * x

    S = straightness(RectifiedFlow(velocity), torch.zeros(4, 1), steps=50)
    assert S.dtype == torch.float32
    assert float(S) == pytest.approx(0.005, rel=0.02)


def test_straightness_by_hand():
    """v = t^2, one point of the midpoint rule: v = 1/4 there, while two half steps of Euler go 1/8 far."""
    S = straightness(RectifiedFlow(lambda x, t: t[:, None] ** 2 + 0 * x), torch.zeros(3, 1), steps=1, method="euler")
    assert float(S) == pytest.approx((1 / 8 - 1 / 4) ** 2)


@pytest.mark.parametrize(("method", "order"), [("euler", 1), ("midpoint", 2), ("heun", 2), ("rk4", 4)])
def test_fixed_steps_have_their_order_and_cost(method, order):
    x0, flow = randn(5, 2), RectifiedFlow(bent)
    exact = flow.sample(x0, rtol=1e-11, atol=1e-12).x
    errors = []
    for steps in (8, 16):
        found = flow.sample(x0, steps=steps, method=method)
        errors.append(float((found.x - exact).abs().max()))
        assert found.nfe == steps * {"euler": 1, "midpoint": 2, "heun": 2, "rk4": 4}[method]
    assert math.log2(errors[0] / errors[1]) == pytest.approx(order, abs=0.3)


def test_euler_keeps_the_clock():
    """Times are i/N and steps 1/N: v = t gives (N-1)/(2N), not what 1/(N-1) or an offset would give."""
    flow = RectifiedFlow(lambda x, t: t[:, None].expand_as(x))
    for steps in (1, 4, 10):
        found = flow.sample(torch.zeros(1, 1), steps=steps, method="euler").x
        assert float(found) == pytest.approx((steps - 1) / (2 * steps), abs=1e-6)


def test_rk45_is_scipys():
    x0 = randn(6, 2)

    def right_side(t, y):
        return bent(torch.from_numpy(y).reshape(6, 2), torch.full((6,), t, dtype=torch.float64)).numpy().ravel()

    theirs = solve_ivp(right_side, (0, 1), x0.numpy().ravel(), rtol=1e-5, atol=1e-5)
    ours = RectifiedFlow(bent).sample(x0)
    np.testing.assert_allclose(ours.x.numpy().ravel(), theirs.y[:, -1], rtol=1e-12)
    assert ours.nfe == theirs.nfev


def test_back_and_forth():
    x0, flow = randn(5, 2), RectifiedFlow(bent)
    there = flow.sample(x0, rtol=1e-9, atol=1e-9).x
    torch.testing.assert_close(flow.sample(there, rtol=1e-9, atol=1e-9, reverse=True).x, x0, atol=1e-7, rtol=0)


def test_paths_are_kept():
    x0, flow = randn(5, 2), RectifiedFlow(bent)
    for options, m in (({"steps": 4, "method": "heun"}, 5), ({}, 33)):
        found = flow.sample(x0, keep=True, **options)
        assert found.path.shape == (m, 5, 2)
        assert torch.equal(found.path[-1], found.x)
        assert torch.equal(found.path[0], x0)
        torch.testing.assert_close(found.times, torch.linspace(0, 1, m, dtype=torch.float64))
        torch.testing.assert_close(found.x, flow.sample(x0, **options).x, atol=1e-4, rtol=0)
    assert flow.sample(x0).path is None


def test_noise_keeps_the_marginals():
    """N(0, I) to N(0, I): with any noise every marginal has the variance t^2 + (1-t)^2."""
    flow, x0 = RectifiedFlow(gaussian_pair), randn(20_000, 1)
    found = flow.sample(x0, steps=200, method="euler", noise=1.0, keep=True, generator=11)
    for i in (50, 100, 150, 200):
        t = i / 200
        assert float(found.path[i].var()) == pytest.approx(t**2 + (1 - t) ** 2, rel=0.04)
    still = flow.sample(x0, steps=200, method="euler", keep=True).path
    correlation = torch.corrcoef(torch.stack([found.x[:, 0], x0[:, 0]]))[0, 1]
    assert float(correlation) < 0.9 < float(torch.corrcoef(torch.stack([still[-1][:, 0], x0[:, 0]]))[0, 1])


def test_noise_knows_the_sources_width():
    """N(0, 4) to N(0, 1): v = (t - 4 (1-t)) x / (t^2 + 4 (1-t)^2)."""

    def velocity(x, t):
        t = t[:, None]
        return (t - 4 * (1 - t)) * x / (t**2 + 4 * (1 - t) ** 2)

    flow = RectifiedFlow(velocity, source_std=2.0)
    x = flow.sample(2 * randn(20_000, 1), steps=300, method="heun", noise=1.5, generator=11).x
    assert float(x.var()) == pytest.approx(1.0, rel=0.04)


def test_density_of_a_linear_flow():
    """z' = A z carries N(0, s^2 I) into N(0, s^2 e^A e^A')."""
    A, s = torch.tensor([[0.3, -0.8], [0.5, -0.2]], dtype=torch.float64), 1.5
    flow, x = RectifiedFlow(lambda x, t: x @ A.T, source_std=s), randn(6, 2)
    root = s * torch.linalg.matrix_exp(A)
    normal = torch.distributions.MultivariateNormal(torch.zeros(2, dtype=torch.float64), root @ root.T)
    tight = {"rtol": 1e-9, "atol": 1e-9}
    torch.testing.assert_close(flow.log_prob(x, **tight), normal.log_prob(x), atol=1e-7, rtol=0)
    many = flow.log_prob(x, n_probes=64, generator=0, steps=8, method="rk4")  # a standard deviation of 0.3/8
    torch.testing.assert_close(many, normal.log_prob(x), atol=0.15, rtol=0)
    one = [flow.log_prob(x, n_probes=1, generator=0) for _ in range(2)]
    assert torch.equal(*one)
    assert not one[0].requires_grad


def test_density_integrates_to_one():
    network = MLPVelocity(1, width=16, depth=1, seed=0).double()
    grid = torch.linspace(-8, 8, 401, dtype=torch.float64)[:, None]
    density = RectifiedFlow(network).log_prob(grid, steps=20, method="rk4").exp()
    assert float(torch.trapezoid(density, grid[:, 0])) == pytest.approx(1, abs=1e-4)
    flat = RectifiedFlow(lambda x, t: torch.ones_like(x)).log_prob(grid)
    torch.testing.assert_close(flat, torch.distributions.Normal(1.0, 1.0).log_prob(grid[:, 0]), atol=1e-5, rtol=1e-4)


def test_costs():
    z0, z1 = randn(7, 2, 3), randn(7, 2, 3, seed=1)
    lengths = (z1 - z0).reshape(7, -1).norm(dim=1)
    torch.testing.assert_close(transport_cost(z0, z1), lengths.square().mean())
    torch.testing.assert_close(transport_cost(z0, z1, "euclidean"), lengths.mean())
    torch.testing.assert_close(transport_cost(z0, z1, lambda d: d.reshape(7, -1).norm(dim=1) ** 4), (lengths**4).mean())


# ------------------------------------------------------------------------------------------------------------ property


def test_labels_and_guidance():
    def velocity(x, t, y):
        return torch.where(y < 0, 1.0, 10.0 * (y + 1))[:, None].expand_as(x).to(x.dtype)

    flow, x0, y = RectifiedFlow(velocity), torch.zeros(2, 1), torch.tensor([0, 1])
    one = {"steps": 1, "method": "euler"}
    assert flow.sample(x0, y=y, **one).x.ravel().tolist() == [10, 20]
    guided = flow.sample(x0, y=y, guidance=2.0, **one)
    assert guided.x.ravel().tolist() == [19, 39]
    assert guided.nfe == 1
    assert flow.sample(x0, y=y, guidance=0.0, **one).x.ravel().tolist() == [1, 1]
    assert float(flow.loss(x0, x0, y=y, generator=0)) == 250
    with pytest.raises(ValueError, match="guidance"):
        flow.sample(x0, guidance=2.0, **one)
    with pytest.raises(ValueError, match="y must be"):
        flow.sample(x0, y=y[:1], **one)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_kinds_and_shapes_stay(dtype):
    flow, x = RectifiedFlow(gaussian_pair), randn(3, 2, 2, 2, dtype=dtype)
    for result in (flow(x, 0.5), flow.sample(x).x, flow.sample(x, steps=3, method="euler", noise=0.5).x):
        assert result.dtype == dtype
        assert result.shape == x.shape
    assert flow.log_prob(x, steps=2, method="euler").shape == (3,)
    assert (
        flow.loss(x, x).dtype == straightness(flow, x, steps=2).dtype == crossing(flow, x, x, n_times=2).dtype == dtype
    )
    assert straightness(flow, x, steps=2).ndim == 0


def test_same_seed_same_bits_and_the_global_stream_rests():
    flow, x = RectifiedFlow(gaussian_pair), randn(50, 2)
    before = torch.get_rng_state()
    for call in (
        lambda: flow.sample(x, steps=3, method="euler", noise=1.0, generator=7).x,
        lambda: flow.loss(x, x + 1, generator=7),
        lambda: flow.log_prob(x, n_probes=2, generator=7, steps=2, method="euler"),
        lambda: crossing(flow, x, x + 1, generator=7, n_times=4),
    ):
        assert torch.equal(call(), call())
    assert not torch.equal(flow.loss(x, x + 1, generator=7), flow.loss(x, x + 1, generator=8))
    assert torch.equal(before, torch.get_rng_state())


def test_state_is_the_velocity():
    network = MLPVelocity(2, width=8, depth=1, seed=0)
    flow = RectifiedFlow(network, interpolation="vp", t_eps=1e-3)
    assert set(flow.state_dict()) == {f"velocity.{name}" for name in network.state_dict()}
    assert flow.velocity is network
    assert RectifiedFlow(bent).velocity is bent


def test_sampling_leaves_no_graph():
    network = MLPVelocity(2, width=8, depth=1, seed=0)
    flow = RectifiedFlow(network)
    assert not flow.sample(torch.zeros(2, 2)).x.requires_grad
    assert not straightness(flow, torch.zeros(2, 2), steps=2).requires_grad
    assert flow.loss(torch.zeros(2, 2), torch.ones(2, 2)).requires_grad


# ---------------------------------------------------------------------------------------------------------------- peer


def test_losses_agree_with_torchcfm_and_flow_matching():
    torchcfm = pytest.importorskip("torchcfm.conditional_flow_matching")
    x0, x1, t = randn(8, 2), randn(8, 2, seed=1), torch.rand(8, generator=torch.Generator().manual_seed(2)).double()
    matcher = torchcfm.ConditionalFlowMatcher(sigma=0.0)
    _, x_t, u_t = matcher.sample_location_and_conditional_flow(x0, x1, t=t)
    ours = RectifiedFlow(bent).interpolate(x0, x1, t)
    torch.testing.assert_close(ours, (x_t, u_t))


def test_euler_is_that_of_diffusers():
    """Sigmas 1 - i/N, x + (sigma' - sigma) v with noise at sigma = 1 and the opposite sign of v."""
    scheduler = pytest.importorskip("diffusers.schedulers.scheduling_flow_match_euler_discrete")
    theirs = scheduler.FlowMatchEulerDiscreteScheduler()
    theirs.set_timesteps(sigmas=np.linspace(1, 0, 9)[:-1].tolist())
    x = randn(4, 2, dtype=torch.float32)
    ours = RectifiedFlow(bent).sample(x, steps=8, method="euler").x
    for step, sigma in zip(theirs.timesteps, theirs.sigmas, strict=False):
        x = theirs.step(-bent(x, (1 - sigma).expand(4)), step, x).prev_sample
    torch.testing.assert_close(ours, x, atol=1e-6, rtol=1e-6)


def test_euler_is_the_published_schedule():
    """The same identity from its formula: x + (sigma_{i+1} - sigma_i) (x0 - x1 as predicted), sigma = 1 - t."""
    x, sigmas = randn(4, 2), torch.linspace(1, 0, 9, dtype=torch.float64)
    ours = RectifiedFlow(bent).sample(x, steps=8, method="euler").x
    for now, later in itertools.pairwise(sigmas):
        x = x + (later - now) * -bent(x, (1 - now).expand(4))
    torch.testing.assert_close(ours, x, atol=1e-6, rtol=1e-6)


# -------------------------------------------------------------------------------------------------------------- misuse


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda f, x: RectifiedFlow(bent, interpolation="cubic"), ValueError, "interpolation"),
        (lambda f, x: RectifiedFlow(bent, interpolation="vp"), ValueError, "t_eps"),
        (lambda f, x: RectifiedFlow(bent, interpolation="spherical"), ValueError, "t_eps"),
        (lambda f, x: RectifiedFlow(bent, t_eps=0.5), ValueError, "t_eps"),
        (lambda f, x: RectifiedFlow(bent, source_std=0.0), ValueError, "source_std"),
        (lambda f, x: RectifiedFlow(3), TypeError, "velocity"),
        (lambda f, x: f(x, 1.5), ValueError, "t must be"),
        (lambda f, x: f(x, torch.tensor([0.1, 0.2])), ValueError, "t must be"),
        (lambda f, x: f(x, torch.full((3,), -0.1)), ValueError, "t must be"),
        (lambda f, x: f(x, torch.zeros(3).double()), TypeError, "t must be"),
        (lambda f, x: f(x.long(), 0.5), TypeError, "x must be"),
        (lambda f, x: f.loss(x, x[:, :1]), ValueError, "x1 must be"),
        (lambda f, x: f.loss(x, x[:2]), ValueError, "x1 must be"),
        (lambda f, x: f.loss(x, x.double()), TypeError, "x1 must be"),
        (lambda f, x: f.loss(x.long(), x.long()), TypeError, "x0 must be"),
        (lambda f, x: f.loss(x, x, reduction="max"), ValueError, "reduction"),
        (lambda f, x: f.loss(x, x, t_schedule="t2"), ValueError, "t_schedule"),
        (lambda f, x: f.loss(x, x, t_schedule=0), ValueError, "t_schedule"),
        (lambda f, x: f.loss(x, x, t_schedule=lambda n, g: torch.full((n,), 2.0)), ValueError, "t_schedule"),
        (lambda f, x: f.sample(x, steps=0, method="euler"), ValueError, "steps"),
        (lambda f, x: f.sample(x, steps=3), ValueError, "steps"),
        (lambda f, x: f.sample(x, method="euler"), ValueError, "steps"),
        (lambda f, x: f.sample(x, method="dopri8"), ValueError, "method"),
        (lambda f, x: f.sample(x, rtol=0.0), ValueError, "rtol"),
        (lambda f, x: f.sample(x, atol=-1.0), ValueError, "atol"),
        (lambda f, x: f.sample(x, noise=0.1), ValueError, "noise"),
        (lambda f, x: f.sample(x, noise=0.1, steps=2, method="euler", reverse=True), ValueError, "noise"),
        (lambda f, x: f.sample(x, noise=-0.1, steps=2, method="euler"), ValueError, "noise"),
        (lambda f, x: f.sample(x, reverse=1), TypeError, "reverse"),
        (lambda f, x: f.sample(x.long()), TypeError, "x0 must be"),
        (lambda f, x: f.sample(x[:0]), ValueError, "x0 must be"),
        (lambda f, x: f.log_prob(x, n_probes=0), ValueError, "n_probes"),
        (lambda f, x: straightness(f, x, steps=0), ValueError, "steps"),
        (lambda f, x: straightness(f, x, method="rk45"), ValueError, "method"),
        (lambda f, x: crossing(f, x, x, n_times=0), ValueError, "n_times"),
        (lambda f, x: transport_cost(x, x, "cubic"), ValueError, "cost"),
        (lambda f, x: transport_cost(x, x, lambda d: d), ValueError, "cost"),
    ],
)
def test_misuse_names_the_argument(call, error, words):
    with pytest.raises(error, match=words):
        call(RectifiedFlow(gaussian_pair), torch.zeros(3, 2))


def test_curved_flows_refuse_what_is_only_for_straight_ones():
    flow, x = RectifiedFlow(bent, interpolation="subvp"), torch.zeros(3, 2)
    with pytest.raises(ValueError, match="noise"):
        flow.sample(x, steps=2, method="euler", noise=0.1)
    with pytest.raises(ValueError, match="interpolation"):
        flow.loss(x, x, metric=lambda a, b: (a - b).sum(1))


def test_what_is_not_finite_is_said():
    flow = RectifiedFlow(lambda x, t: torch.where(t[:, None] > 0.45, math.nan, 1.0) + 0 * x)
    with pytest.raises(FloatingPointError, match=r"not finite at t = 0.5 \(evaluation 3\)"):
        flow.sample(torch.zeros(2, 1), steps=4, method="euler")
    with pytest.raises(FloatingPointError, match="not finite"):
        flow.sample(torch.zeros(2, 1))
    with pytest.raises(RuntimeError, match="max_nfe=20"):
        RectifiedFlow(bent).sample(torch.zeros(2, 2), rtol=1e-10, atol=1e-10, max_nfe=20)
