"""Two ranks that learn one policy, against one process with the rows of both; environments on Ray actors."""

import functools
from datetime import timedelta

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from stable_baselines3.common import policies
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

from steepest.policy import OffPolicyMDPO, OnPolicyMDPO
from steepest.policy._data_parallel import log_share
from tests import processes
from tests.policy.small_problems import Counter, box

SMALL = {"net_arch": [8]}
N, BATCH = 16, 12  # steps of each environment, rows of an off-policy minibatch
ON = {
    "whole batch": {"vf_batch_size": 2 * N},
    "clipped": {"vf_batch_size": 2 * N, "max_grad_norm": 1e-3},
    "fitted": {"inner": "weighted-mle", "vf_batch_size": 2 * N},
    "Tsallis": {"tsallis_q": 1.5, "ent_coef": 0.01, "vf_batch_size": 2 * N},
    "minibatches": {"n_minibatches": 4, "vf_batch_size": 8},
}
OFF = {"first": {}, "min": {"actor_q": "min", "tsallis_q": 1.5, "gradient_steps": 2}}


def environments(count):
    """Rewards and lengths differ, so that the ranks' advantages do."""
    made = [functools.partial(Counter, 5 + 2 * k, float(k), box(), lambda t, a, k=k: k + 0.1 * t) for k in range(count)]
    return DummyVecEnv(made)


def on(count, group, options):
    shared = {"n_steps": N, "learning_rate": 0.02, "policy_kwargs": SMALL, "seed": 0, "process_group": group}
    return OnPolicyMDPO("MlpPolicy", environments(count), **(shared | options))


def in_double(model, monkeypatch):
    """Stable-Baselines3 casts observations to single precision."""
    model.policy.double()
    buffer = getattr(model, "rollout_buffer", None) or model.replay_buffer
    buffer.to_torch = lambda array, copy=True: torch.tensor(array, dtype=torch.float64)
    monkeypatch.setattr(policies, "preprocess_obs", lambda observations, *rest, **named: observations.double())


def updated_on(rank, size, options, monkeypatch):
    """Parameters after an iteration on the same rollout, of which a rank of two has one environment's part."""
    whole, model = on(2, None, options), on(2 // size, "default" if size > 1 else None, options)
    _, callback = whole._setup_learn(2 * N)
    callback.on_training_start(locals(), globals())
    with whole._streams.own(whole.device):
        whole.collect_rollouts(whole.env, callback, whole.rollout_buffer, N)
    model._setup_learn(2 * N)
    model._begin_together(model.policy)
    own = slice(rank, rank + 2 // size)
    for name in ("observations", "actions", "rewards", "returns", "values", "advantages", "log_probs"):
        getattr(model.rollout_buffer, name)[:] = getattr(whole.rollout_buffer, name)[:, own]
    model.rollout_buffer.full = True
    order, asked = np.random.default_rng(0), []

    def permutation(n):
        """Of the ranks' parts alike; one process takes the same rows, rank by rank. The buffer asks first."""
        asked.append(n)
        rows = order.permutation(N) if len(asked) > 1 else np.arange(n)
        return rows if len(rows) == n else np.concatenate([rows, rows + N]).reshape(2, -1).T.ravel()

    monkeypatch.setattr(np.random, "permutation", permutation)
    in_double(model, monkeypatch)
    model.train()
    return torch.nn.utils.parameters_to_vector(model.policy.parameters()).detach(), model.last_kl


def updated_off(rank, size, options, monkeypatch):
    """Parameters after gradient steps on a fixed batch with fixed noise, of which a rank of two has one half."""
    group = "default" if size > 1 else None
    model = OffPolicyMDPO(
        "MlpPolicy", environments(1), learning_starts=0, batch_size=BATCH, buffer_size=100, learning_rate=0.01,
        policy_update_interval=2, policy_kwargs=SMALL, seed=0, process_group=group, **options,
    )  # fmt: skip
    model._setup_learn(1)
    model._begin_together(model.policy, model.old_actor)
    in_double(model, monkeypatch)
    model.critic_target.double()
    model.old_actor.double()
    generator = torch.Generator().manual_seed(1)
    draw = functools.partial(torch.randn, generator=generator, dtype=torch.float64)
    data = type("Data", (), {
        "observations": draw(BATCH, 2), "actions": draw(BATCH, 1).tanh(), "rewards": draw(BATCH, 1),
        "next_observations": draw(BATCH, 2), "dones": (draw(BATCH, 1) > 1).double(), "discounts": None,
    })  # fmt: skip
    own = slice(rank * BATCH // size, (rank + 1) * BATCH // size)
    part = type("Part", (), {k: v[own] if torch.is_tensor(v) else v for k, v in vars(data).items() if k[0] != "_"})

    def sample(n, env=None):
        assert n == BATCH // size
        return part

    def with_noise(mean, log_std):
        distribution = model.actor.action_dist.proba_distribution(mean, log_std)
        distribution.gaussian_actions = u = mean + log_std.exp() * draw(BATCH, 1)[own]
        return u.tanh(), model._log(distribution, u.tanh(), u)

    monkeypatch.setattr(model.replay_buffer, "sample", sample)
    monkeypatch.setattr(model, "_draw", with_noise)
    model.train(4, BATCH)
    return torch.nn.utils.parameters_to_vector(model.policy.parameters()).detach(), model.n_snapshots


def learned(rank):
    """Whole runs, each rank with its own environment."""
    seeds = []

    class Seeded(Counter):
        def reset(self, *, seed=None, options=None):
            seeds.append(seed)
            return super().reset(seed=seed, options=options)

    shared = {"policy_kwargs": SMALL, "seed": 5, "process_group": "default"}
    a = OnPolicyMDPO("MlpPolicy", Seeded(action_space=box()), n_steps=16, vf_batch_size=8, **shared).learn(32)
    small = {"learning_starts": 8, "batch_size": 8, "buffer_size": 100, "policy_update_interval": 4}
    b = OffPolicyMDPO("MlpPolicy", Counter(action_space=box()), **small, **shared).learn(16)
    flat = [torch.nn.utils.parameters_to_vector(m.parameters()).detach() for m in (a.policy, b.policy, b.old_actor)]
    return flat, a.rollout_buffer.actions.ravel().tolist(), seeds[0]


def errors(rank):
    """What goes wrong on all ranks alike."""
    texts = []

    def attempt(make):
        try:
            make()
        except (ValueError, FloatingPointError) as error:
            texts.append(str(error))

    attempt(lambda: on(1, "default", {"vf_batch_size": 9}).learn(N))
    attempt(lambda: on(1 + rank, "default", {"vf_batch_size": 8}).learn(N))
    broken = Counter(action_space=box(), rewards=lambda t, a: np.nan if rank == 1 else 1.0)
    attempt(lambda: OnPolicyMDPO("MlpPolicy", broken, n_steps=16, vf_batch_size=8, process_group="default").learn(16))
    return texts


def of_rank(rank, size):
    found = {}
    for make, table in ((updated_on, ON), (updated_off, OFF)):
        for name, options in table.items():
            with pytest.MonkeyPatch.context() as monkeypatch:
                found[name] = make(rank, size, options, monkeypatch)
    return found


def rank_of_two(rank, folder):
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2, timeout=timedelta(seconds=120)
    )
    try:
        torch.save((of_rank(rank, 2), learned(rank), errors(rank)), f"{folder}/{rank}.pt")
    finally:
        torch.distributed.destroy_process_group()


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    processes.on_two_ranks(rank_of_two, str(folder))
    return [torch.load(f"{folder}/{rank}.pt", weights_only=True) for rank in range(2)]


@pytest.mark.slow
def test_two_ranks_are_one_process(ranks):
    alone = of_rank(0, 1)
    for found, _, _ in ranks:
        for name, (theta, number) in alone.items():
            assert (found[name][0] - theta).abs().max() <= 1e-10, name
            assert found[name][1] == pytest.approx(number, rel=1e-10), name


@pytest.mark.slow
def test_ranks_learn_the_same_policy_from_environments_of_their_own(ranks):
    (one, acted, seed), (two, acted_too, seed_too) = (learned for _, learned, _ in ranks)
    assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))
    assert acted != acted_too
    assert (seed, seed_too) == (5, 6)


@pytest.mark.slow
def test_errors_come_on_all_ranks(ranks):
    for _, _, (rows, number, loss) in ranks:
        assert "vf_batch_size must be a multiple of the 2 ranks, got 9" in rows
        assert "env must be with the same number of environments on all ranks" in number
        assert "loss is nan at update 0, and no step was made" in loss


def test_a_group_needs_initialization():
    for make in (OnPolicyMDPO, OffPolicyMDPO):
        with pytest.raises(RuntimeError, match="init_process_group"):
            make("MlpPolicy", Counter(action_space=box()), process_group="default", seed=0)


def test_alone_the_share_is_all():
    assert log_share(torch.tensor([3.0, -1.0]), None).item() == 0


# ---------------------------------------------------------------------------------------------------------------- Ray


class Limited(Counter):
    """An environment with dictionaries, two sub-actions and a time limit that is its own."""

    def __init__(self, who):
        super().__init__(7, who, spaces.MultiDiscrete([2, 3]))
        self.observation_space = spaces.Dict({"a": self.observation_space, "b": box()})

    def _observation(self):
        return {"a": super()._observation(), "b": np.zeros(1, np.float32)}

    def reset(self, *, seed=None, options=None):
        observation, _ = super().reset(seed=seed)
        return observation, {"seed": seed, "options": options}

    def step(self, action):
        observation, reward, ended, _, info = super().step(action)
        return observation, reward, False, ended, info


@pytest.mark.slow
def test_environments_on_ray_give_the_same_policy(ray):
    from steepest.policy._ray_environments import RayVecEnv

    def made(kind, **options):
        env = make_vec_env("CartPole-v1", 2, seed=0, vec_env_cls=kind, vec_env_kwargs=options)
        model = OnPolicyMDPO("MlpPolicy", VecNormalize(env), n_steps=32, vf_batch_size=32, policy_kwargs=SMALL, seed=0)
        model.learn(128)
        env.close()
        return model.policy.state_dict()

    serial = made(DummyVecEnv)
    found = made(RayVecEnv, n_actors=None)
    assert all(torch.equal(found[name], value) for name, value in serial.items())
    assert ray.is_initialized()


@pytest.mark.slow
def test_ray_environments_are_vectorized_environments(ray):
    from steepest.policy._ray_environments import RayVecEnv

    makers = [functools.partial(Limited, float(k)) for k in range(3)]
    here, there = DummyVecEnv(makers), RayVecEnv(makers, n_actors=2)
    for env in (here, there):
        env.seed(4)
        env.set_options({"x": 1})
    first, first_there = here.reset(), there.reset()
    assert all(np.array_equal(first[k], first_there[k]) for k in first)
    assert here.reset_infos == there.reset_infos == [{"seed": 4 + k, "options": {"x": 1}} for k in range(3)]
    actions = np.array([[0, 1], [1, 2], [1, 0]])
    for _ in range(8):
        (a, r, d, info), (b, s, e, told) = here.step(actions), there.step(actions)
        assert all(np.array_equal(a[k], b[k]) for k in a)
        assert np.array_equal(r, s)
        assert np.array_equal(d, e)
        assert [i["TimeLimit.truncated"] for i in info] == [i["TimeLimit.truncated"] for i in told]
        for i, j in zip(info, told, strict=True):
            assert ("terminal_observation" in i) == ("terminal_observation" in j)
    assert here.reset_infos == there.reset_infos
    assert there.get_attr("who") == [0.0, 1.0, 2.0]
    assert there.get_attr("who", 2) == [2.0]
    there.set_attr("who", 7.0, [1])
    assert there.get_attr("who") == [0.0, 7.0, 2.0]
    assert there.env_method("_observation", indices=[1])[0]["a"][1] == 7
    assert there.env_is_wrapped(gymnasium.wrappers.TimeLimit) == [False] * 3
    assert not there.has_attr("nothing")
    with pytest.raises(AssertionError):
        there.step(np.full((3, 2), 9))
    there.close()
    there.close()


@pytest.mark.parametrize(
    ("arguments", "text"),
    [(([],), "env_fns must be at least one callable"), (([Counter], 2), r"n_actors must be None or an integer in")],
)
def test_bad_environments(arguments, text):
    from steepest.policy._ray_environments import RayVecEnv

    makers, *n_actors = arguments
    with pytest.raises(ValueError, match=text):
        RayVecEnv(makers, **({"n_actors": n_actors[0]} if n_actors else {}))
