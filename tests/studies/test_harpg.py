"""Tests of the policy gradient study: problems against closed forms and the library's estimates, slopes, tiny run."""

import math

import numpy as np
import pytest
import torch

from steepest.policy import Trajectory, harpg_ascent, igt_ascent, trajectory_gradient, trajectory_hvp
from steepest.studies import harpg as study
from steepest.studies import harpg_control, harpg_costs, harpg_rates
from steepest.studies.context import Context, Job, Unavailable
from steepest.studies.harpg_problems import Bandit, Regulator, Tracking
from tests.studies import check_study as check

PROBLEMS = [Regulator(40), Bandit(3), Tracking(12)]  # the regulator's exact return has no horizon
names = pytest.mark.parametrize("problem", PROBLEMS, ids=["regulator", "bandit", "tracking"])


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def some_theta(problem, runs=4):
    return 0.2 * torch.randn(runs, problem.p, generator=generator(), dtype=torch.float64)


# --------------------------------------------------------------------------------------------------------- problems


@names
def test_exact_gradients_are_those_of_the_exact_return(problem):
    theta = some_theta(problem).requires_grad_()
    J, gradient = problem.value(theta)
    (autograd,) = torch.autograd.grad(J.sum(), theta)
    torch.testing.assert_close(autograd, gradient)


@names
def test_the_optimum_is_stationary_and_no_gap_is_negative(problem):
    best = problem.target if isinstance(problem, Bandit) else problem.best
    J, gradient = problem.value(best.reshape(1, -1))
    assert abs(float(J[0]) - problem.optimum) < 1e-12
    assert gradient.abs().max() < 1e-12
    assert (problem.gap(some_theta(problem, 50)) > 0).all()


def test_the_regulator_is_the_one_of_the_text():
    problem = Regulator(28)
    assert problem.optimum == pytest.approx(-2.518, abs=1e-3)
    assert float(problem.value(torch.zeros(1, 2, dtype=torch.float64))[0]) == pytest.approx(-2.899, abs=1e-3)
    np.testing.assert_allclose(problem.best[0], [-0.088, -0.417], atol=1e-3)
    unstable = torch.tensor([[0.0, 5.0]], dtype=torch.float64)
    assert problem.gap(unstable) == math.inf


def test_states_by_doubling_are_those_of_the_loop():
    problem, theta = Regulator(11), some_theta(PROBLEMS[0])
    s, e, w = problem.rollout(theta, generator(3))
    noise = torch.randn(4, 11, 3, generator=generator(3), dtype=torch.float64)
    state = s[:, 0]
    rewards = torch.zeros(4, 11, dtype=torch.float64)
    for h in range(11):
        torch.testing.assert_close(s[:, h], state)
        a = (state * theta).sum(1) + 0.5 * noise[:, h, 0]
        rewards[:, h] = -(0.7**h) * (state.square().sum(1) + 0.5 * a**2)
        state = state @ problem.A.T + a[:, None] * problem.B.T + 0.05 * noise[:, h, 1:]
    torch.testing.assert_close(w, rewards.flip(1).cumsum(1).flip(1))
    torch.testing.assert_close(e, noise[..., 0])


class LinearPolicy(torch.nn.Module):
    """Rows of features are observations, actions have standard deviation sigma."""

    def __init__(self, theta, sigma):
        super().__init__()
        self.theta, self.sigma = torch.nn.Parameter(theta.clone()), sigma

    def get_distribution(self, observations):
        return torch.distributions.Normal(observations @ self.theta, self.sigma)


@pytest.mark.parametrize("problem", [PROBLEMS[0], PROBLEMS[2]], ids=["regulator", "tracking"])
def test_estimates_are_those_of_the_library(problem):
    theta = some_theta(problem, 2)
    u = torch.randn(2, problem.p, generator=generator(5), dtype=torch.float64)
    F, e, w = problem.rollout(theta, generator(1))
    g, Bu = problem.gradient(theta, generator(1)), problem.hvp(theta, u, generator(1))
    for k in range(2):
        rewards = -torch.diff(torch.cat([w[k], torch.zeros(1, dtype=w.dtype)]))
        rewards = rewards / problem.gamma ** torch.arange(len(rewards), dtype=torch.float64)
        trajectory = Trajectory(F[k], F[k] @ theta[k] + problem.sigma * e[k], rewards)
        policy = LinearPolicy(theta[k], problem.sigma)
        torch.testing.assert_close(g[k], trajectory_gradient(policy, trajectory, problem.gamma))
        torch.testing.assert_close(Bu[k], trajectory_hvp(policy, trajectory, u[k], problem.gamma))


@names
def test_estimates_have_the_exact_mean(problem):
    theta = some_theta(problem, 1)
    u = torch.ones(1, problem.p, dtype=torch.float64) / math.sqrt(problem.p)
    many = theta.expand(20_000, -1)
    h = 1e-5
    curved = (problem.value(theta + h * u)[1] - problem.value(theta - h * u)[1]) / (2 * h)
    for exact, drawn in (
        (problem.value(theta)[1], problem.gradient(many, generator(2))),
        (curved, problem.hvp(many, u.expand(20_000, -1), generator(4))),
    ):
        error = drawn.std(0) / math.sqrt(20_000)
        assert ((drawn.mean(0) - exact[0]).abs() < 4.5 * error + 1e-3).all()
        assert (error < 0.3 * (1 + exact.norm())).all()


def test_a_path_of_the_tracking_problem_is_stationary():
    F, _, _ = Tracking(20).rollout(torch.zeros(20_000, 4, dtype=torch.float64), generator())
    products = torch.einsum("nhp,nhq->hpq", F, F) / len(F)
    assert (products - torch.eye(4, dtype=torch.float64)).abs().max() < 0.06  # orthonormal features at every step
    z = math.sqrt(2) * torch.erfinv(F[..., 1] / math.sqrt(3))
    lagged = (z[:, 1:] * z[:, :-1]).mean(0)
    assert (lagged - 0.9).abs().max() < 0.05


# ------------------------------------------------------------------------------------------------------ runs, slopes


@pytest.mark.parametrize("method", ["N-PG-IGT", "N-HARPG", "HARPG", "momentum", "policy gradient"])
def test_runs_side_by_side_are_the_library_s_ascent(method):
    problem, n, seed = Bandit(3), 30, 9
    rule = harpg_rates.RULES[method]
    step = 0.01 if method == "policy gradient" else 1.0
    curves = harpg_rates.ascend(harpg_rates.Run(method, problem, n, 1, seed, (step,)))
    options = {
        "n_iter": n,
        "step": rule.step * step,
        "momentum_exponent": rule.momentum_exponent,
        "step_exponent": rule.step_exponent,
        "normalize": rule.normalize,
        "seed": seed,
    }

    def gradient(theta, generator):
        return problem.gradient(theta[None], generator)[0]

    def hvp(theta, u, generator):
        return problem.hvp(theta[None], u[None], generator)[0]

    start = torch.zeros(3, dtype=torch.float64)
    if "HARPG" in method:
        result = harpg_ascent(gradient, hvp, start, **options)
    else:
        result = igt_ascent(gradient, start, transport=rule.transport, **options)
    assert curves.trajectories[-1] == result.ntraj
    assert curves.gap[-1, 0] == pytest.approx(float(problem.gap(result.x[None])[0]), rel=1e-9)


def test_a_run_that_blows_up_does_not_end_the_others():
    curves = harpg_rates.ascend(harpg_rates.Run("policy gradient", Regulator(12), 40, 3, 0, (1e3, 1e-3)))
    assert np.isfinite(curves.gap).all()
    assert curves.step == 1e-3


def test_slopes_use_the_last_decade_and_a_half():
    n = np.geomspace(1, 1e4, 40)
    y = np.where(n < 200, 7.0, n**-0.8)[:, None] * np.array([1.0, 2.0, 3.0])
    fit = harpg_rates.slope(n, y)
    assert fit.value == pytest.approx(-0.8)
    np.testing.assert_allclose(fit.interval, -0.8)
    other = harpg_rates.slope(n, n[:, None] ** -0.5 * np.ones(3))
    difference, interval = fit.minus(other)
    assert difference == pytest.approx(-0.3)
    np.testing.assert_allclose(interval, -0.3)


def test_crossings_by_hand():
    n = np.array([1.0, 10.0, 100.0, 1000.0])
    gap = np.array([4.0, 1.0, 2.0, 0.5])[:, None] * np.ones((1, 3))
    curve = harpg_rates.Curves(n, gap, gap, 1.0)
    found = harpg_rates.crossing(curve, np.array([5.0, 2.0, 1.0, 0.1]))
    assert found.tolist() == [1.0, 10.0, 1000.0, math.inf]


# ------------------------------------------------------------------------------------------------------------- costs


def test_widths_give_the_size_that_was_asked_for():
    for p in (10**4, 10**5, 10**6):
        policy = harpg_costs.GaussianPolicy(harpg_costs.width_of(p))
        assert sum(q.numel() for q in policy.parameters()) == pytest.approx(p, rel=0.02)


# --------------------------------------------------------------------------------------------------------- the study


@pytest.fixture(scope="module")
def tiny():
    return check.run_tiny(study)


@pytest.mark.slow
def test_tiny_run_reports_every_claim_and_draws(tiny):
    check.check_measured(study, tiny, unless=("not installed",), infinite=("igt-fewer",))
    check.check_logged(study, tiny, missing=("acrobot",))
    assert tiny.best_peer is not None


@pytest.mark.slow
def test_what_does_not_depend_on_size_holds_even_at_tiny(tiny):
    assert tiny._measured["trajectories-igt"][0] == tiny._measured["trajectories-harpg"][0] == 0
    for name in ("igt", "harpg", "nharpg"):
        assert tiny._measured[f"transport-{name}"][0] <= 1e-10
    assert tiny._measured["transport-plain"][0] > 1e-2


def test_the_paper_needs_mujoco():
    if harpg_control.installed("mujoco"):
        pytest.skip("here it would train for days")
    with pytest.raises(Unavailable, match="MuJoCo"):
        study.run(Context(study, Job("harpg", "paper")))


@pytest.mark.slow
def test_a_few_steps_of_the_paper(monkeypatch):
    monkeypatch.setattr(harpg_control, "installed", lambda package: False)
    whole = harpg_control.policy_gradients
    monkeypatch.setattr(harpg_control, "policy_gradients", lambda env, trials, width: whole(env, 2, width))
    ctx = Context(study, Job("harpg", "paper", n_seeds=1, max_steps=120))
    study.run(ctx)
    assert np.isfinite(ctx._measured["paper-igt"][0])
    assert any("MuJoCo" in note for note in ctx.notes_log)


def test_everyone_is_tuned_over_the_same_number_of_different_settings():
    contenders = harpg_control.policy_gradients("CartPole-v1", 8, 32) + harpg_control.actor_critics(8, 32)
    for c in contenders:
        assert len(c.settings) == len({tuple(s.items()) for s in c.settings}) == 8


def test_the_snippet_and_the_page_run():
    check.check_texts(study)
