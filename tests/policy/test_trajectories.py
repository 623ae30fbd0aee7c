import pytest
import torch

from steepest.curvature.vectors import flatten, unflatten
from steepest.policy import Trajectory, actor_parameters, trajectory_gradient, trajectory_hvp
from steepest.policy._trajectories import LinearBaseline, mean_gradient, mean_hvp
from tests.policy.small_problems import (
    GAMMA,
    GaussianPolicy,
    H,
    SoftmaxPolicy,
    all_trajectories,
    exact_return,
    one_hot,
)


def expectation(policy, estimate):
    """The mean of an estimate over every trajectory, weighed by its probability under the policy."""
    total, mean = 0.0, 0.0
    for p, trajectory in all_trajectories():
        with torch.no_grad():
            p = p * policy.get_distribution(trajectory.observations).log_prob(trajectory.actions).sum().exp()
        total, mean = total + p, mean + p * estimate(trajectory)
    assert abs(total - 1) < 1e-12
    return mean


def exact_gradient(policy):
    return flatten(torch.autograd.grad(exact_return(policy), list(policy.parameters())))


def exact_curvature(policy, u, step=1e-5):
    """Central differences of the exact gradient along u."""
    params = list(policy.parameters())
    theta = flatten(p.detach() for p in params)

    def at(point):
        with torch.no_grad():
            for p, part in zip(params, unflatten(point, params)):
                p.copy_(part)
        return exact_gradient(policy)

    difference = (at(theta + step * u) - at(theta - step * u)) / (2 * step)
    at(theta)
    return difference


def state_value(observations):
    return observations @ torch.tensor([1.7, -0.4], dtype=torch.float64)


def random_trajectory(T, seed=0):
    generator = torch.Generator().manual_seed(seed)
    draw = [torch.randn(T, n, generator=generator, dtype=torch.float64) for n in (2, 1, 1)]
    return Trajectory(draw[0], draw[1], draw[2][:, 0])


def phi(policy, trajectory, gamma):
    """The formula, term by term."""
    log_prob = policy.get_distribution(trajectory.observations).log_prob(trajectory.actions)
    return sum(
        log_prob[t] * sum(gamma**h * trajectory.rewards[h] for h in range(t, len(trajectory)))
        for t in range(len(trajectory))
    )


@pytest.mark.parametrize("baseline", [None, state_value])
@pytest.mark.parametrize("seed", [0, 1])
def test_gradient_is_unbiased(seed, baseline):
    policy = SoftmaxPolicy(seed)
    mean = expectation(policy, lambda trajectory: trajectory_gradient(policy, trajectory, GAMMA, baseline))
    torch.testing.assert_close(mean, exact_gradient(policy), rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("baseline", [None, state_value])
@pytest.mark.parametrize("seed", [0, 1])
def test_hessian_vector_product_is_unbiased(seed, baseline):
    policy = SoftmaxPolicy(seed)
    u = torch.linspace(-1, 2, 12, dtype=torch.float64)
    mean = expectation(policy, lambda trajectory: trajectory_hvp(policy, trajectory, u, GAMMA, baseline))
    torch.testing.assert_close(mean, exact_curvature(policy, u), rtol=1e-7, atol=1e-8)


def test_product_of_one_trajectory_is_the_formula():
    policy, trajectory = GaussianPolicy(), random_trajectory(6)
    params = list(policy.parameters())
    g = torch.autograd.grad(phi(policy, trajectory, 0.9), params, create_graph=True)
    log_prob = policy.get_distribution(trajectory.observations).log_prob(trajectory.actions)
    score = flatten(torch.autograd.grad(log_prob.sum(), params, retain_graph=True))
    rows = [flatten(torch.autograd.grad(x, params, retain_graph=True)) for x in flatten(g)]
    dense = torch.outer(flatten(g).detach(), score) + torch.stack(rows)
    torch.testing.assert_close(trajectory_gradient(policy, trajectory, 0.9), flatten(g).detach())
    for u in torch.eye(3, dtype=torch.float64):
        torch.testing.assert_close(trajectory_hvp(policy, trajectory, u, 0.9), dense @ u)


def test_a_batch_averages_products_not_factors():
    policy = GaussianPolicy()
    batch = [random_trajectory(T, seed) for seed, T in enumerate((4, 1, 7))]
    u = torch.tensor([0.3, -1.0, 0.5], dtype=torch.float64)
    singles = torch.stack([trajectory_hvp(policy, trajectory, u, 0.9) for trajectory in batch])
    torch.testing.assert_close(mean_hvp(policy, batch, u, 0.9), singles.mean(0))
    singles = torch.stack([trajectory_gradient(policy, trajectory, 0.9) for trajectory in batch])
    torch.testing.assert_close(mean_gradient(policy, batch, 0.9), singles.mean(0))


def test_a_step_without_later_reward_has_no_influence():
    policy, trajectory = GaussianPolicy(), random_trajectory(5)
    trajectory.rewards[2:] = 0
    shorter = Trajectory(trajectory.observations[:2], trajectory.actions[:2], trajectory.rewards[:2])
    torch.testing.assert_close(trajectory_gradient(policy, trajectory), trajectory_gradient(policy, shorter))


def test_a_baseline_that_knows_the_return_leaves_nothing():
    policy, trajectory = GaussianPolicy(), random_trajectory(6)
    to_come = torch.stack([sum(0.9**h * r for h, r in enumerate(trajectory.rewards[t:])) for t in range(6)])
    assert trajectory_gradient(policy, trajectory, 0.9, lambda observations: to_come).abs().max() < 1e-12


def test_dropout_is_off_meanwhile_and_the_mode_comes_back():
    policy, plain = SoftmaxPolicy(dropout=0.5), SoftmaxPolicy()
    trajectory = next(all_trajectories())[1]
    u = torch.ones(12, dtype=torch.float64)
    assert torch.equal(trajectory_gradient(policy, trajectory), trajectory_gradient(plain, trajectory))
    assert torch.equal(trajectory_hvp(policy, trajectory, u), trajectory_hvp(plain, trajectory, u))
    assert policy.training
    assert policy.dropout.training


def test_nothing_of_the_policy_changes():
    policy = SoftmaxPolicy()
    policy.hidden.grad = torch.ones_like(policy.hidden)
    before = [p.clone() for p in policy.parameters()]
    with torch.no_grad():
        trajectory_hvp(policy, next(all_trajectories())[1], torch.ones(12, dtype=torch.float64))
    assert all(torch.equal(a, b) for a, b in zip(before, policy.parameters()))
    assert torch.equal(policy.hidden.grad, torch.ones_like(policy.hidden))


def test_frozen_parameters_are_no_part_of_the_vector():
    policy, trajectory = GaussianPolicy(), random_trajectory(4)
    whole = trajectory_gradient(policy, trajectory)
    policy.log_std.requires_grad_(False)
    assert [p is policy.mean for p in actor_parameters(policy)] == [True]
    assert torch.equal(trajectory_gradient(policy, trajectory), whole[:2])


def test_parameters_without_influence_get_zeros():
    policy = GaussianPolicy()
    policy.other = torch.nn.Parameter(torch.ones(2, dtype=torch.float64))
    trajectory = random_trajectory(4)
    assert trajectory_gradient(policy, trajectory)[3:].tolist() == [0, 0]
    assert trajectory_hvp(policy, trajectory, torch.ones(5, dtype=torch.float64))[3:].tolist() == [0, 0]


def test_linear_baseline_solves_its_normal_equations():
    batch = [random_trajectory(T, seed) for seed, T in enumerate((30, 40))]
    fitted = LinearBaseline(torch.zeros(0, dtype=torch.float64)).fitted(batch, 0.9)
    X, y = [], []
    for trajectory in batch:
        for t in range(len(trajectory)):
            s, later = trajectory.observations[t], trajectory.rewards[t:]
            X.append(torch.cat([s, s**2, torch.tensor([t / 100, (t / 100) ** 2, (t / 100) ** 3, 1.0], dtype=s.dtype)]))
            y.append(sum(0.9**h * r for h, r in enumerate(later)))
    X, y = torch.stack(X), torch.stack(y)
    torch.testing.assert_close(
        (X.T @ X + 1e-5 * torch.eye(8).double()) @ fitted.coefficients, X.T @ y, rtol=1e-8, atol=1e-8
    )
    torch.testing.assert_close(fitted(batch[0].observations), X[:30] @ fitted.coefficients)


def test_linear_baseline_begins_at_zero_and_survives_long_episodes():
    empty = LinearBaseline(torch.zeros(0, dtype=torch.float64))
    long = random_trajectory(2000)
    assert not empty(long.observations).any()
    assert torch.isfinite(empty.fitted([long], 0.5).coefficients).all()  # 0.5**2000 is zero


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        ({"gamma": 0.0}, ValueError, r"gamma must be a number in \(0, 1\), got 0.0"),
        ({"gamma": 1.0}, ValueError, "gamma must be"),
        ({"gamma": "high"}, TypeError, "gamma must be"),
        ({"trajectory": random_trajectory(0)}, ValueError, r"rewards must be of shape \(T,\) with T >= 1"),
        (
            {"trajectory": Trajectory(one_hot(torch.tensor([0])), torch.zeros(H), torch.zeros(1))},
            ValueError,
            "actions must be of length 1",
        ),
        ({"vector": torch.zeros(11, dtype=torch.float64)}, ValueError, "vector must be of shape"),
        ({"vector": torch.zeros(12)}, ValueError, "vector must be of dtype torch.float64"),
        ({"vector": [0.0] * 12}, TypeError, "vector must be a tensor"),
        ({"policy": torch.nn.Identity()}, ValueError, "non-empty"),
        ({"policy": "MlpPolicy"}, TypeError, "policy must be a torch.nn.Module"),
        ({"baseline": lambda observations: torch.zeros(1)}, ValueError, "output of baseline must be"),
    ],
)
def test_bad_input(change, error, text):
    good = {
        "policy": SoftmaxPolicy(),
        "trajectory": next(all_trajectories())[1],
        "vector": torch.zeros(12, dtype=torch.float64),
        "gamma": 0.9,
    }
    with pytest.raises(error, match=text):
        trajectory_hvp(**(good | change))
    if "vector" not in change:
        with pytest.raises(error, match=text):
            trajectory_gradient(**{k: v for k, v in (good | change).items() if k != "vector"})
