import functools
import io
import itertools
import sys

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

import steepest.policy
from steepest.curvature.vectors import flatten
from steepest.policy import HARPG, NPGIGT, actor_parameters, trajectory_gradient, trajectory_hvp
from steepest.policy._algorithm import SEGMENT, Worker, write_parameters
from steepest.policy._rollouts import draw
from steepest.policy._trajectories import LinearBaseline
from tests.checks.policy import POLICY_CHECKS, Agent
from tests.policy.small_problems import Counter, box

SMALL = {"net_arch": [4]}
OPTIONS = {"horizon": 6, "policy_kwargs": SMALL, "learning_rate": 0.03, "gamma": 0.9}


def make(algorithm, env, **options):
    return algorithm("MlpPolicy", env, **(OPTIONS | {"seed": 0} | options))


def counters(lengths=(5, 2), **options):
    return DummyVecEnv([functools.partial(Counter, n, float(k), **options) for k, n in enumerate(lengths)])


def theta(model):
    return flatten(p.detach().clone() for p in actor_parameters(model.policy))


@pytest.fixture
def record(monkeypatch):
    """Every point that is sampled at and the batch that comes of it."""
    batches = []
    sampled = Worker._batch

    def batch(self, point, n):
        batches.append((point.clone(), sampled(self, point, n)))
        return batches[-1][1]

    monkeypatch.setattr(Worker, "_batch", batch)
    return batches


class Features(BaseFeaturesExtractor):
    def __init__(self, space):
        super().__init__(space, 3)
        self.linear = torch.nn.Linear(2, 3)

    def forward(self, observations):
        return self.linear(observations)


class Stop(BaseCallback):
    """Ask for the end after `n` steps; keep what the policy held at every step."""

    def __init__(self, n):
        super().__init__()
        self.n, self.seen = n, []

    def _on_step(self):
        self.seen.append(theta(self.model))
        return self.n_calls < self.n


# ------------------------------------------------------------------------------------- Stable-Baselines3's conventions


@pytest.mark.parametrize("algorithm", [NPGIGT, HARPG])
@pytest.mark.parametrize("check", POLICY_CHECKS)
def test_conventions(check, algorithm):
    check(Agent(lambda env, **options: make(algorithm, env, **options), lambda: gymnasium.make("CartPole-v1")))


@pytest.mark.parametrize("algorithm", [NPGIGT, HARPG])
@pytest.mark.parametrize(
    "space", [box(), spaces.Discrete(3), spaces.MultiDiscrete([2, 3]), spaces.MultiBinary(2)], ids=lambda s: str(s)[:12]
)
def test_action_spaces(algorithm, space):
    model = make(algorithm, counters(action_space=space), trajectories_per_step=2)
    before = theta(model)
    model.learn(60)
    assert torch.isfinite(theta(model)).all()
    assert not torch.equal(before, theta(model))
    for env in model.env.envs:
        assert all(space.contains(action) for action in env.unwrapped.received)


def test_other_spaces_are_refused_as_elsewhere():
    with pytest.raises(AssertionError, match="only supports"):
        make(NPGIGT, Counter(action_space=spaces.Text(3)))
    with pytest.raises(ValueError, match="policy_kwargs must be without use_sde"):
        make(NPGIGT, Counter(action_space=box()), policy_kwargs={"use_sde": True})


def test_only_the_actor_is_in_the_vector():
    env = Counter(action_space=box())
    shared = make(NPGIGT, env).policy
    names = {id(p): name for name, p in shared.named_parameters()}
    kept = [names[id(p)] for p in actor_parameters(shared)]
    assert kept[0] == "log_std"
    assert not any("value" in name or "vf" in name for name in kept)
    assert {"action_net.weight", "mlp_extractor.policy_net.0.weight"} <= set(kept)
    options = SMALL | {"features_extractor_class": Features}
    for share in (True, False):
        split = make(NPGIGT, env, policy_kwargs=options | {"share_features_extractor": share}).policy
        assert len(actor_parameters(split)) == len(kept) + 2  # the critic's own features are not among them


# -------------------------------------------------------------------------------------------------------- trajectories


def test_episodes_are_whole_and_their_own(record):
    model = make(NPGIGT, counters((5, 2, 9)), trajectories_per_step=4).learn(1)
    (_, batch), lengths = record[0], [5, 2, 6, 5]  # the third is cut by the horizon
    assert [len(trajectory) for trajectory in batch] == lengths
    for k, trajectory in enumerate(batch):
        assert trajectory.observations[:, 0].tolist() == list(range(lengths[k]))
        assert set(trajectory.observations[:, 1].tolist()) == {float(k % 3)}
        assert torch.equal(trajectory.rewards, trajectory.actions.float())
    assert model.num_timesteps == 3 * 6 + 3 * 5  # all environments, until the last live episode ends
    assert (model.n_trajectories, model.n_updates) == (4, 1)


@pytest.mark.parametrize(("algorithm", "options", "per"), [(NPGIGT, {}, 1), (HARPG, {}, 2)])
def test_counters(algorithm, options, per):
    model = make(algorithm, Counter(3), **options).learn(40)
    n = model.n_updates
    assert model.n_trajectories == (n if per == 1 else 2 * n - 1)
    assert model.num_timesteps == 3 * model.n_trajectories
    assert model.num_timesteps >= 40 > model.num_timesteps - 3 * per


def test_hessian_batch_has_its_own_size(record):
    make(HARPG, Counter(2), trajectories_per_step=2, hessian_trajectories=3).learn(20)
    assert [len(batch) for _, batch in record[:5]] == [2, 2, 3, 2, 3]


def test_actions_are_clipped_for_the_environment_only(record):
    env = Counter(6, action_space=box(-0.1, 0.1))
    make(NPGIGT, env).learn(6)
    drawn = record[0][1][0].actions[:, 0]
    assert drawn.abs().max() > 0.1
    np.testing.assert_allclose(np.concatenate(env.received), drawn.clamp(-0.1, 0.1), rtol=1e-6)


def test_actions_are_drawn_with_the_right_probabilities():
    n, generator = 4000, torch.Generator().manual_seed(0)
    probs = torch.tensor([0.1, 0.6, 0.3]).expand(n, 3)
    gaussian = draw(torch.distributions.Normal(torch.full((n,), 2.0), torch.full((n,), 0.1)), generator)
    assert abs(float(gaussian.mean()) - 2) < 0.01
    assert abs(float(gaussian.std()) - 0.1) < 0.01
    categorical = torch.distributions.Categorical(probs)
    for actions in (draw(categorical, generator), draw([categorical, categorical], generator)[:, 1]):
        assert (torch.bincount(actions, minlength=3) / n - probs[0]).abs().max() < 0.03
    bernoulli = draw(torch.distributions.Bernoulli(probs), generator)
    assert (bernoulli.mean(0) - probs[0]).abs().max() < 0.03
    with pytest.raises(TypeError, match="distribution must be"):
        draw(torch.distributions.Uniform(0, 1), generator)


def test_default_horizon_is_the_smallest_that_serves_its_own_plan():
    model = make(HARPG, Counter(3), horizon=None, gamma=0.9)
    H = model._horizon(10_000)
    assert np.log(10_000 / (2 * H) + 1) / 0.1 + 1 > H - 1
    assert np.log(10_000 / (2 * H) + 1) / 0.1 <= H
    assert np.log(10_000 / (2 * (H - 1)) + 1) / 0.1 > H - 1
    assert make(NPGIGT, "CartPole-v1", horizon=None, gamma=0.999)._horizon(10**6) == 500
    assert make(NPGIGT, "CartPole-v1", horizon=7)._horizon(10**6) == 7


# ------------------------------------------------------------------------------------------------------- the iteration


def mean(parts):
    return torch.stack(parts).mean(0)


@pytest.mark.parametrize("baseline", [None, "linear"])
def test_npgigt_is_the_written_iteration(record, baseline):
    model = make(NPGIGT, counters(action_space=box()), trajectories_per_step=2, momentum=0.9, baseline=baseline)
    here = previous = theta(model)
    d, b = torch.zeros_like(here), LinearBaseline(torch.zeros(0, dtype=torch.float64))
    other = make(NPGIGT, counters(action_space=box()), trajectories_per_step=2, seed=5)
    model.learn(70)
    assert model.n_updates == len(record) >= 5
    for t, (point, batch) in enumerate(record):
        eta = 1.0 if t == 0 else 0.9 * (2 / (t + 2)) ** 0.8
        torch.testing.assert_close(point, here + (1 - eta) / eta * (here - previous))
        write_parameters(other.policy, point)
        g = mean([trajectory_gradient(other.policy, tau, 0.9, b if baseline else None) for tau in batch])
        d = (1 - eta) * d + eta * g
        here, previous = here + 0.03 * 2 / (t + 2) * d / d.norm(), here
        b = b.fitted(batch, 0.9)
    torch.testing.assert_close(theta(model), here, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("normalize", [True, False])
def test_harpg_is_the_written_iteration(record, normalize):
    options = {"learning_rate": 0.05, "momentum": 0.9, "normalize": normalize}
    model = make(HARPG, counters(action_space=box()), trajectories_per_step=2, **options)
    here = previous = theta(model)
    d = torch.zeros_like(here)
    other = make(HARPG, counters(action_space=box()), seed=5)
    model.learn(90)
    batches = iter(record)
    for t in range(model.n_updates):
        eta = 1.0 if t == 0 else 0.9 * 2 / (t + 2)
        point, batch = next(batches)
        assert torch.equal(point, here) or t > 0
        torch.testing.assert_close(point, here)
        write_parameters(other.policy, point)
        g, v = mean([trajectory_gradient(other.policy, tau, 0.9) for tau in batch]), torch.zeros_like(d)
        if t > 0:
            point, again = next(batches)
            q = model._stream(SEGMENT, t) / 2**63
            torch.testing.assert_close(point, q * here + (1 - q) * previous)
            assert not torch.equal(batch[0].actions, again[0].actions)
            write_parameters(other.policy, point)
            v = mean([trajectory_hvp(other.policy, tau, here - previous, 0.9) for tau in again])
        d = (1 - eta) * (d + v) + eta * g
        step = 0.05 * (2 / (t + 2)) ** (1 if normalize else 0.5)
        here, previous = here + step * d / (d.norm() if normalize else 1), here
    assert model.n_updates >= 4
    torch.testing.assert_close(theta(model), here, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("space", [box(), spaces.MultiDiscrete([2, 3]), spaces.MultiBinary(2)], ids=str)
def test_probabilities_are_those_of_stable_baselines(record, space):
    model = make(NPGIGT, Counter(5, action_space=space)).learn(5)
    (_, (tau,)), policy = record[0], model.policy
    _, log_prob, _ = policy.evaluate_actions(tau.observations, tau.actions)
    w = torch.tensor([sum(0.9**h * float(tau.rewards[h]) for h in range(t, 5)) for t in range(5)])
    expected = flatten(torch.autograd.grad((w * log_prob).sum(), actor_parameters(policy)))
    torch.testing.assert_close(trajectory_gradient(policy, tau, 0.9), expected, rtol=1e-5, atol=1e-6)


def test_points_of_the_segment_are_uniform():
    model = make(HARPG, Counter())
    q = np.sort([model._uniform(t) for t in range(400)])
    assert np.abs(q - (np.arange(400) + 0.5) / 400).max() < 0.08


def test_plain_policy_gradient_is_a_choice_of_options(record):
    options = {"momentum_exponent": 0, "step_exponent": 2 / 3, "normalize": False, "transport": False}
    model = make(NPGIGT, Counter(4, action_space=box()), learning_rate=0.1, **options)
    here = theta(model)
    model.learn(20)
    other = make(NPGIGT, Counter(4, action_space=box()))
    for t, (point, batch) in enumerate(record):
        torch.testing.assert_close(point, here)
        write_parameters(other.policy, here)
        here = here + 0.1 * (2 / (t + 2)) ** (2 / 3) * trajectory_gradient(other.policy, batch[0], 0.9)
    torch.testing.assert_close(theta(model), here, rtol=1e-4, atol=1e-5)


class Recorder(Logger):
    """A logger that keeps every number."""

    def __init__(self):
        super().__init__(None, [])
        self.kept = {}

    def record(self, key, value, exclude=None):
        self.kept.setdefault(key, []).append(value)


def logged(model, steps):
    model.set_logger(Recorder())
    return model.learn(steps).logger.kept


def test_schedule_multiplies_the_decay():
    kept = logged(make(NPGIGT, Counter(4), learning_rate=lambda remaining: 0.5 * remaining), 16)
    assert kept["train/step_size"] == pytest.approx([0.5, 0.375 * 2 / 3, 0.25 / 2, 0.125 * 2 / 5])


def test_what_is_logged():
    names = {"direction_norm", "gradient_norm", "eta", "step_size", "n_trajectories", "n_updates"}
    expected = {f"train/{name}" for name in names} | {"time/iterations", "time/total_timesteps"}
    kept = logged(make(NPGIGT, gymnasium.make("CartPole-v1"), horizon=200), 60)
    assert set(kept) == expected | {"rollout/ep_rew_mean", "rollout/ep_len_mean"}
    assert kept["rollout/ep_rew_mean"][-1] == kept["rollout/ep_len_mean"][-1] > 8
    kept = logged(make(HARPG, Counter(3), learning_rate=0.01), 30)
    assert set(kept) == expected | {"train/hvp_norm"} | {"rollout/ep_rew_mean", "rollout/ep_len_mean"}
    assert len(kept["train/hvp_norm"]) == len(kept["train/eta"]) - 1
    assert kept["train/n_trajectories"][:3] == [1, 3, 5]


@pytest.mark.parametrize("algorithm", [NPGIGT, HARPG])
def test_learns_a_bandit_with_known_optimum(algorithm):
    bandit = functools.partial(Counter, 1, 0.0, box(-3, 3), lambda t, action: -float((action[0] - 0.7) ** 2))
    env = DummyVecEnv([bandit] * 16)
    options = {"learning_rate": 0.7, "horizon": 1, "policy_kwargs": {"net_arch": [], "log_std_init": -1.0}}
    model = make(algorithm, env, normalize=True, trajectories_per_step=16, **options)
    model.policy.log_std.requires_grad_(False)
    model.learn(1600 if algorithm is NPGIGT else 3200, log_interval=None)  # 100 iterations
    action, _ = model.predict(np.zeros(2, dtype=np.float32), deterministic=True)
    assert abs(float(action[0]) - 0.7) < 0.1


# ----------------------------------------------------------------------------------------------- stopping and going on


def reloaded(model, env):
    file = io.BytesIO()
    model.save(file)
    file.seek(0)
    return type(model).load(file, env=env)


@pytest.mark.parametrize("algorithm", [NPGIGT, HARPG])
@pytest.mark.parametrize("through_file", [False, True])
def test_stopped_and_going_on_is_never_having_stopped(algorithm, through_file):
    def fresh():
        return make(algorithm, counters(action_space=box()), baseline="linear", trajectories_per_step=2)

    through = fresh().learn(200)
    model = fresh().learn(200, callback=Stop(17))
    assert 0 < model.n_updates < through.n_updates
    if through_file:
        model = reloaded(model, counters(action_space=box()))
    while model.n_updates < through.n_updates:
        model.learn(1, reset_num_timesteps=False)
    assert torch.equal(theta(model), theta(through))
    assert torch.equal(model._direction, through._direction)
    assert model.n_trajectories == through.n_trajectories


@pytest.mark.parametrize("algorithm", [NPGIGT, HARPG])
def test_the_policy_holds_the_iterate_at_every_step(record, algorithm):
    stop = Stop(40)
    model = make(algorithm, Counter(4, action_space=box())).learn(10**6, callback=stop)
    assert torch.equal(stop.seen[-1], theta(model))
    distinct = [a for a, b in itertools.pairwise(stop.seen) if not torch.equal(a, b)]
    assert len(distinct) == model.n_updates
    away = [point for point, _ in record if not any(torch.equal(point, seen) for seen in stop.seen)]
    assert len(away) > 2  # the other points were sampled at, never held


def test_an_exception_leaves_the_iterate():
    class Broken(Counter):
        def step(self, action):
            if len(self.received) == 13:
                raise OSError("the robot fell over")
            return super().step(action)

    stop = Stop(10**6)
    model = make(HARPG, Broken(4, action_space=box()))
    with pytest.raises(OSError, match="fell over"):
        model.learn(100, callback=stop)
    assert torch.equal(stop.seen[-1], theta(model))
    assert model.n_updates == 2


def test_frozen_parameters_stay_frozen_in_the_file():
    model = make(NPGIGT, Counter(action_space=box()))
    model.policy.log_std.requires_grad_(False)
    model.learn(20)
    again = reloaded(model, Counter(action_space=box()))
    assert not again.policy.log_std.requires_grad
    again.learn(20, reset_num_timesteps=False)
    assert torch.equal(again.policy.log_std, model.policy.log_std)
    model.policy.log_std.requires_grad_(True)
    with pytest.raises(ValueError, match="trained parameters it had at the first iteration"):
        model.learn(20)


def test_global_generators_are_left_alone():
    torch.manual_seed(3)
    np.random.seed(3)
    before = torch.get_rng_state(), np.random.get_state()[1].copy()
    model = make(HARPG, Counter(action_space=box(-99, 99)), seed=None, normalize=True).learn(30)
    actions = [model.predict(np.zeros(2, dtype=np.float32))[0] for _ in range(3)]
    assert len({float(a[0]) for a in actions}) == 3
    assert torch.equal(before[0], torch.get_rng_state())
    assert np.array_equal(before[1], np.random.get_state()[1])
    model.set_random_seed(4)
    one = model._stream(1)
    model.set_random_seed(None)
    assert model._stream(1) == one


@pytest.mark.slow
@pytest.mark.usefixtures("ray")
def test_ray_gives_the_same_numbers():
    serial, ray = (
        make(HARPG, make_vec_env("CartPole-v1", 2), trajectories_per_step=4, collector=collector).learn(100)
        for collector in ("serial", "ray")
    )
    assert torch.equal(theta(serial), theta(ray))
    assert serial.num_timesteps == ray.num_timesteps


# ----------------------------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize("algorithm", [NPGIGT, HARPG])
@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        ({"gamma": 0.0}, ValueError, r"gamma must be a number in \(0, 1\), got 0.0"),
        ({"gamma": 1.0}, ValueError, "gamma must be"),
        ({"horizon": 0}, ValueError, "horizon must be None or an integer >= 1, got 0"),
        ({"learning_rate": 0.0}, ValueError, "learning_rate must be"),
        ({"learning_rate": "fast"}, TypeError, "learning_rate must be"),
        ({"momentum": 0.0}, ValueError, "momentum must be"),
        ({"momentum": 1.5}, ValueError, "momentum must be"),
        ({"momentum_exponent": -0.1}, ValueError, "momentum_exponent must be"),
        ({"step_exponent": -0.1}, ValueError, "step_exponent must be"),
        ({"trajectories_per_step": 0}, ValueError, "trajectories_per_step must be"),
        ({"baseline": "quadratic"}, ValueError, "baseline must be one of None, 'linear'"),
        ({"collector": "threads"}, ValueError, "collector must be one of 'serial', 'ray'"),
        ({"seed": -1}, ValueError, "seed must be"),
        ({"normalize": 0}, TypeError, "normalize must be"),
        ({"policy": "MlpLstmPolicy"}, ValueError, "MlpLstmPolicy unknown"),
        ({"use_sde": True}, TypeError, "use_sde"),
    ],
)
def test_bad_input(algorithm, change, error, text):
    arguments = {"policy": ActorCriticPolicy, "env": Counter()} | change
    with pytest.raises(error, match=text):
        algorithm(**arguments)


def test_bad_input_of_one_of_them():
    with pytest.raises(ValueError, match="hessian_trajectories must be"):
        HARPG("MlpPolicy", Counter(), hessian_trajectories=0)
    with pytest.raises(TypeError, match="transport must be"):
        NPGIGT("MlpPolicy", Counter(), transport=2)
    with pytest.raises(ValueError, match="env must be set before learn"):
        reloaded(make(NPGIGT, Counter()), None).learn(10)
    with pytest.raises(ValueError, match="without VecNormalize for collector='ray'"):
        make(NPGIGT, VecNormalize(counters()), collector="ray").learn(10)
    with pytest.raises(ValueError, match="learning_rate must be a schedule of finite numbers"):
        make(NPGIGT, Counter(), learning_rate=lambda remaining: 1.0 if remaining == 1 else -1.0).learn(10)


def test_rewards_that_are_not_finite_are_named():
    env = Counter(4, rewards=lambda t, action: np.inf if t == 3 else 1.0)
    with pytest.raises(FloatingPointError, match="reward is not finite at iteration 0, trajectory 0, step 2"):
        make(NPGIGT, env).learn(20)


@pytest.mark.parametrize("torch_validates", [True, False])  # not once something has been compiled
def test_estimates_that_are_not_finite_are_named(monkeypatch, torch_validates):
    monkeypatch.setattr(torch.distributions.Distribution, "_validate_args", torch_validates)
    collapsed = make(HARPG, Counter(action_space=box()))
    collapsed.policy.log_std.data.fill_(-1000.0)
    with pytest.raises(FloatingPointError, match="distribution is not valid at iteration 0, trajectory 0, step 0"):
        collapsed.learn(100)
    huge = Counter(2, rewards=lambda t, action: 3e38, action_space=box())
    with pytest.raises(FloatingPointError, match="estimate is not finite at iteration 0, trajectory 0"):
        make(NPGIGT, huge).learn(20)


def test_without_stable_baselines_the_functions_work_and_the_classes_say_what_to_install(monkeypatch):
    for name in ("stable_baselines3", "stable_baselines3.common.base_class"):
        monkeypatch.setitem(sys.modules, name, None)
    for name in ("_algorithm", "variance_reduced"):
        monkeypatch.delitem(sys.modules, f"steepest.policy.{name}")
    assert steepest.policy.igt_ascent(lambda x, g: 1 - x, torch.zeros(2), n_iter=1).nit == 1
    with pytest.raises(ImportError, match=r'stable_baselines3: pip install "steepest\[rl\]"'):
        steepest.policy.HARPG  # noqa: B018
