import copy
import functools
import io
import math
import random

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from stable_baselines3 import SAC
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecNormalize
from torch.distributions import Categorical, Independent, Normal

from steepest.core.errors import SteepestWarning
from steepest.policy import OffPolicyMDPO, OnPolicyMDPO, mdpo_policy_loss, mirror_step
from steepest.policy._mirror import kl, log_ratio, rows, step_size, tsallis_log, weighted_likelihood_loss
from steepest.policy.mdpo import standardized, value_loss
from tests.checks.policy import POLICY_CHECKS, Agent
from tests.policy.small_problems import Counter, box

D = torch.float64
SMALL = {"net_arch": [8]}


def on(env, **options):
    return OnPolicyMDPO(
        "MlpPolicy", env, **({"n_steps": 16, "vf_batch_size": 8, "policy_kwargs": SMALL, "seed": 0} | options)
    )


def off(env, **options):
    small = {"learning_starts": 8, "batch_size": 8, "buffer_size": 200, "policy_update_interval": 5}
    return OffPolicyMDPO("MlpPolicy", env, **(small | {"policy_kwargs": SMALL, "seed": 0} | options))


def gaussian_env(n=5, **options):
    return Counter(n, action_space=box(), **options)


def weights(model):
    return {name: value.clone() for name, value in model.policy.state_dict().items()}


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def logged(model):
    """Let every value that is logged be kept; the last of each name."""
    values = {}

    class Keep(Logger):
        def record(self, key, value, exclude=None):
            values.setdefault(key, []).append(value)

        def dump(self, step=0):
            pass

    model.set_logger(Keep(None, []))
    return values


# ------------------------------------------------------------------------------------------------------ the exact step


def test_step_on_the_simplex_by_hand():
    old = torch.tensor([[0.5, 0.3, 0.2], [1.0, 0.0, 0.0]], dtype=D)
    A = torch.tensor([[1.0, -2.0, 0.5], [0.3, 9.0, 9.0]], dtype=D)
    new = mirror_step(old.log(), A, 0.7).exp()
    by_hand = old * (0.7 * A).exp()
    torch.testing.assert_close(new, by_hand / by_hand.sum(1, keepdim=True))
    assert new[1].tolist() == [1, 0, 0]  # what has no probability gets none
    torch.testing.assert_close(mirror_step(old.log(), A + 5, 0.7).exp(), new)


def test_step_maximizes_the_objective():
    generator = torch.Generator().manual_seed(0)
    old = torch.rand(4, generator=generator, dtype=D).softmax(0)
    A, t = torch.randn(4, generator=generator, dtype=D), 0.8

    def objective(p):
        return p @ A - (p * (p.log() - old.log())).sum() / t

    best = mirror_step(old.log(), A, t).exp()
    assert objective(best) == pytest.approx((t * A + old.log()).logsumexp(0).item() / t)  # the conjugate of KL
    for _ in range(50):
        other = (best.log() + 0.1 * torch.randn(4, generator=generator, dtype=D)).softmax(0)
        assert objective(other) < objective(best)


def test_step_survives_large_advantages():
    new = mirror_step(torch.zeros(2, dtype=D) - math.log(2), torch.tensor([1e6, -1e6], dtype=D), 1.0)
    assert new.tolist() == [0, -2e6]


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        ({"t": 0.0}, ValueError, "t must be > 0"),
        ({"t": torch.tensor([1.0, -1.0])}, ValueError, "t must be > 0"),
        ({"advantages": torch.zeros(3)}, ValueError, "advantages must be of log_probs_old's shape"),
        ({"advantages": torch.zeros(2, dtype=D)}, ValueError, "dtype"),
        ({"advantages": torch.tensor([0.0, math.nan])}, ValueError, "advantages must be finite"),
        ({"log_probs_old": [0.0, 0.0]}, TypeError, "log_probs_old must be a tensor"),
        ({"log_probs_old": torch.zeros(2, dtype=int)}, TypeError, "floating"),
    ],
)
def test_bad_steps(change, error, text):
    good = {"log_probs_old": torch.full((2,), 0.5).log(), "advantages": torch.zeros(2), "t": 1.0}
    with pytest.raises(error, match=text):
        mirror_step(**(good | change))


# ------------------------------------------------------------------------------------------------------------ the loss


def test_many_gradient_steps_reach_the_exact_step():
    """All actions of each state once, weighted by their old probabilities: the expectation is exact."""
    generator = torch.Generator().manual_seed(1)
    old_logits = torch.randn(5, 3, generator=generator, dtype=D)
    A = torch.randn(5, 3, generator=generator, dtype=D)
    old, t = Categorical(logits=old_logits), 0.6
    logits = old_logits.clone().requires_grad_()
    states, actions = (i.ravel() for i in np.indices((5, 3)))
    weighted = (old.probs * 3)[states, actions]  # mean over 15 pairs = mean over states of the expectation
    optimizer = torch.optim.LBFGS(
        [logits], max_iter=200, line_search_fn="strong_wolfe", tolerance_grad=1e-12, tolerance_change=1e-15
    )

    def closure():
        optimizer.zero_grad()
        new = rows(Categorical(logits=logits), torch.as_tensor(states))
        a = torch.as_tensor(actions)
        parts = rows(old, torch.as_tensor(states))
        loss, _ = mdpo_policy_loss(new, parts, new.log_prob(a), parts.log_prob(a), weighted * A[states, actions], 1 / t)
        loss.backward()
        return loss

    optimizer.step(closure)
    torch.testing.assert_close(logits.softmax(1), mirror_step(old.logits, A, t).exp(), atol=1e-6, rtol=0)


def gaussians(seed=0, n=4, d=2):
    generator = torch.Generator().manual_seed(seed)
    mean = torch.randn(n, d, generator=generator, dtype=D)
    return Normal(mean, torch.rand(n, d, generator=generator, dtype=D) + 0.5)


@pytest.mark.parametrize("q", [1.0, 0.5, 1.5, 2.0])
def test_gradient_against_finite_differences(q):
    old = gaussians()
    actions, A = old.sample(), torch.tensor([1.0, -0.5, 2.0, 0.3], dtype=D)

    def loss(mean, log_std):
        new = Normal(mean, log_std.exp().expand_as(mean))
        logs = new.log_prob(actions).sum(1), old.log_prob(actions).sum(1)
        return mdpo_policy_loss(new, old, *logs, A, 2.0, q)[0]

    start = (old.loc + 0.1).requires_grad_(), torch.tensor([0.1, -0.2], dtype=D, requires_grad=True)
    assert torch.autograd.gradcheck(loss, start)


def test_direction_and_value_of_kl():
    new, old = gaussians(1), gaussians(2)
    of_new = (old.scale / new.scale).log() + (new.scale**2 + (new.loc - old.loc) ** 2) / (2 * old.scale**2) - 0.5
    torch.testing.assert_close(kl(new, old), of_new.sum(1))
    assert (kl(old, new) - kl(new, old)).abs().max() > 0.5
    torch.testing.assert_close(kl(Independent(new, 1), Independent(old, 1)), kl(new, old))
    p, q = Categorical(torch.tensor([0.9, 0.1], dtype=D)), Categorical(torch.tensor([0.5, 0.5], dtype=D))
    assert kl(p, q).item() == pytest.approx(0.9 * math.log(1.8) + 0.1 * math.log(0.2))
    torch.testing.assert_close(kl([p, q], [q, p]), kl(p, q) + kl(q, p))
    a, zero = torch.tensor(0), torch.zeros((), dtype=D)
    loss, mean = mdpo_policy_loss(p, q, p.log_prob(a), q.log_prob(a), zero, 3.0)
    assert (loss.item(), mean.item()) == pytest.approx((3 * kl(p, q).item(), kl(p, q).item()))


def test_probabilities_that_underflow_give_finite_kl():
    old = Categorical(logits=torch.tensor([0.0, -200.0]))
    assert kl(Categorical(logits=torch.tensor([0.0, 0.0])), old).item() == pytest.approx(100 - math.log(2), rel=1e-4)


def test_tsallis_tends_to_kl():
    """At q = 1 the weighted mean over samples is KL(new || old) in expectation, and the term is continuous."""
    old = Categorical(torch.tensor([0.3, 0.7], dtype=D))
    new = Categorical(torch.tensor([0.6, 0.4], dtype=D))
    a = torch.cat([torch.zeros(3, dtype=int), torch.ones(7, dtype=int)])  # in proportion to old
    logs = new.log_prob(a), old.log_prob(a)
    loss, _ = mdpo_policy_loss(new, old, *logs, torch.zeros(10, dtype=D), 1.0, 1 + 1e-7)
    assert loss.item() == pytest.approx(kl(new, old).item(), rel=1e-5)
    x = torch.tensor([0.2, 3.0], dtype=D)
    torch.testing.assert_close(tsallis_log(x.log(), 0.5), (x**0.5 - 1) / 0.5)
    torch.testing.assert_close(tsallis_log(x.log(), 0.0), x - 1)


def test_tsallis_term_by_hand():
    """q = 2: the logarithm of exponent 0 is x - 1, so that the term is the weighted mean of pi - pi_k."""
    old, new = Categorical(torch.tensor([0.3, 0.7], dtype=D)), Categorical(torch.tensor([0.6, 0.4], dtype=D))
    a = torch.tensor([0, 1])
    loss, _ = mdpo_policy_loss(new, old, new.log_prob(a), old.log_prob(a), torch.zeros(2, dtype=D), 1.0, 2.0)
    assert loss.item() == pytest.approx((0.6 / 0.3 * 0.3 + 0.4 / 0.7 * -0.3) / 2)


def test_ratio_is_cut_off_before_it_overflows():
    old, new = torch.zeros(2), torch.tensor([0.5, 1000.0], requires_grad=True)
    assert log_ratio(new, old).tolist() == [0.5, 20.0]


def test_weighted_likelihood_has_its_optimum_at_the_exact_step():
    old = Categorical(torch.tensor([0.25, 0.5, 0.25], dtype=D))
    a = torch.tensor([0, 1, 1, 2])  # in proportion to old
    A = torch.tensor([1.0, -1.0, 0.5], dtype=D)
    best = mirror_step(old.logits, A, 0.7).detach().requires_grad_()
    loss = weighted_likelihood_loss(Categorical(logits=best).log_prob(a), A[a], 0.7)
    (gradient,) = torch.autograd.grad(loss, best)
    assert gradient.abs().max() < 1e-12


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        ({"kl_coef": 0.0}, ValueError, "kl_coef must be > 0"),
        ({"tsallis_q": 2.5}, ValueError, r"tsallis_q must be a number in \(0, 2\]"),
        ({"advantages": torch.zeros(2)}, ValueError, "advantages must be of log_prob's shape"),
        ({"old_log_prob": torch.zeros(3, 1)}, ValueError, "old_log_prob must be of log_prob's shape"),
        ({"distribution": torch.distributions.Bernoulli(torch.tensor(0.5))}, TypeError, "Normal, Independent"),
    ],
)
def test_bad_losses(change, error, text):
    p, zero = Categorical(torch.ones(3, 2)), torch.zeros(3)
    good = {"distribution": p, "old_distribution": p, "log_prob": zero, "old_log_prob": zero, "advantages": zero}
    with pytest.raises(error, match=text):
        mdpo_policy_loss(**(good | {"kl_coef": 1.0} | change))


# -------------------------------------------------------------------------------------------------------------- pieces


def test_schedules():
    assert [step_size("linear", k, 4) for k in range(5)] == [1, 0.75, 0.5, 0.25, 1e-3]
    assert [step_size("constant", k, 2) for k in range(3)] == [1, 1, 1]
    assert [step_size("sqrt", k, 9) for k in (0, 3, 8)] == [1, 0.5, 1 / 3]
    assert step_size(lambda x: 2 * x, 1, 4) == 0.5
    assert step_size(lambda x: -1.0, 0, 4) == 1e-3
    with pytest.raises(ValueError, match="step_schedule must be a callable that gives finite numbers"):
        step_size(lambda x: math.nan, 0, 4)


def test_advantages_are_standardized_unless_constant():
    a = standardized(torch.tensor([1.0, 2.0, 3.0, 6.0]))
    assert a.mean().item() == pytest.approx(0, abs=1e-7)
    assert a.square().mean().item() == pytest.approx(1)
    assert standardized(torch.full((5,), 0.1)).abs().max() < 1e-7
    assert standardized(torch.tensor([3.0])).tolist() == [0]


def test_value_loss_by_hand():
    values, old, returns = torch.tensor([0.5, 0.1, -1.0]), torch.zeros(3), torch.tensor([1.0, 1.0, -1.0])
    assert value_loss(values, old, returns, None).item() == pytest.approx((0.25 + 0.81 + 0) / 3)
    assert value_loss(values, old, returns, 0.2).item() == pytest.approx((0.64 + 0.81 + 0.64) / 3)


# ------------------------------------------------------------------------------------- Stable-Baselines3's conventions


@pytest.mark.parametrize("make", [on, off])
@pytest.mark.parametrize("check", POLICY_CHECKS)
def test_conventions(check, make):
    if make is on:
        check(Agent(on, lambda: gymnasium.make("CartPole-v1")))
    else:
        check(Agent(off, lambda: gymnasium.make("Pendulum-v1"), steps=24))


@pytest.mark.parametrize("make", [on, off])
def test_global_generators_stay_alone(make):
    def states():
        return random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()

    before = states()
    model = make(gaussian_env(), seed=None).learn(16)
    model.predict(np.zeros(2, np.float32))
    model.set_random_seed(3)
    assert states() == before
    a, b = weights(make(gaussian_env(), seed=None)), weights(make(gaussian_env(), seed=None))
    assert not same(a, b)  # fresh entropy


class Checkpoint(BaseCallback):
    """Save everything at the beginning of the n-th rollout: model, environment, and the replay buffer if any."""

    def __init__(self, n):
        super().__init__()
        self.n, self.count, self.file, self.env = n, 0, io.BytesIO(), None

    def _on_rollout_start(self):
        self.count += 1
        if self.count == self.n:
            self.model.save(self.file)
            self.file.seek(0)
            self.env = copy.deepcopy(self.model.get_env())
            self.buffer = copy.deepcopy(getattr(self.model, "replay_buffer", None))

    def _on_step(self):
        return True


@pytest.mark.parametrize(("make", "n", "total"), [(on, 3, 80), (off, 20, 40), (off, 4, 40)])
def test_resuming_is_bitwise(make, n, total):
    checkpoint = Checkpoint(n)
    model = make(gymnasium.make("Pendulum-v1")).learn(total, callback=checkpoint)
    again = type(model).load(checkpoint.file, env=checkpoint.env, force_reset=False)
    assert 0 < again.num_timesteps < total
    assert not same(weights(again), weights(model))
    if make is off:
        again.replay_buffer = checkpoint.buffer
    again.learn(total - again.num_timesteps, reset_num_timesteps=False)
    assert same(weights(again), weights(model))
    assert again.num_timesteps == model.num_timesteps
    if make is on:
        assert (again.last_kl, again.last_kl_coef) == (model.last_kl, model.last_kl_coef)
    else:
        assert again.n_snapshots == model.n_snapshots
        assert same(again.old_actor.state_dict(), model.old_actor.state_dict())


@pytest.mark.slow
def test_environments_in_processes_give_the_same_policy():
    make_env = functools.partial(make_vec_env, "CartPole-v1", n_envs=2, seed=0)
    a = on(make_env()).learn(64)
    env = make_env(vec_env_cls=SubprocVecEnv)
    b = on(env).learn(64)
    env.close()
    assert same(weights(a), weights(b))


# ----------------------------------------------------------------------------------------------------------- on-policy


@pytest.mark.parametrize("space", [box(), spaces.Discrete(3), spaces.MultiDiscrete([2, 3])], ids=lambda s: str(s)[:9])
@pytest.mark.parametrize("options", [{}, {"n_minibatches": 3, "ent_coef": 0.01}, {"inner": "weighted-mle"}])
def test_action_spaces(space, options):
    model = on(Counter(action_space=space), **options)
    before = weights(model)
    model.learn(32)
    after = weights(model)
    assert all(torch.isfinite(value).all() for value in after.values())
    for name in before:
        assert not torch.equal(before[name], after[name]), name
    assert model.last_kl > 0


def test_dictionaries_are_observations_too():
    class Both(Counter):
        def __init__(self):
            super().__init__()
            self.observation_space = spaces.Dict({"a": self.observation_space, "b": box()})

        def _observation(self):
            return {"a": super()._observation(), "b": np.zeros(1, np.float32)}

    model = OnPolicyMDPO("MultiInputPolicy", Both(), n_steps=8, n_minibatches=2, seed=0).learn(16)
    assert model.last_kl > 0


def test_other_spaces_are_refused_as_elsewhere():
    with pytest.raises(AssertionError, match="only supports"):
        on(Counter(action_space=spaces.MultiBinary(2)))
    with pytest.raises(AssertionError, match="only supports"):
        off(Counter())


def test_one_step_does_not_see_kl_and_ten_do():
    def after(m, coefficient):
        return weights(on(gaussian_env(), n_policy_steps=m, kl_coef=coefficient, learning_rate=0.03).learn(16))

    for m, low, high in ((1, 0.0, 1e-7), (10, 1e-4, math.inf)):
        a, b = after(m, 0.3), after(m, 3.0)
        assert low <= max((a[k] - b[k]).abs().max().item() for k in a) <= high


def test_more_kl_stays_nearer():
    distances = [on(gaussian_env(), kl_coef=c, learning_rate=0.03).learn(16).last_kl for c in (0.1, 1.0, 10.0)]
    assert distances == sorted(distances, reverse=True)


def test_an_iteration_by_hand():
    """The actor's steps repeated outside: loss on the whole batch, clipped gradient, Adam."""
    model = on(gaussian_env(), n_policy_steps=3, kl_coef=2.0, learning_rate=0.01, vf_epochs=1)
    start = copy.deepcopy(model.policy)
    model.learn(16)
    buffer, policy = model.rollout_buffer, start
    observations, actions = torch.as_tensor(buffer.observations), torch.as_tensor(buffer.actions)
    A = standardized(torch.as_tensor(buffer.advantages).flatten())
    named = [p for name, p in policy.named_parameters() if "value" not in name]
    optimizer = torch.optim.Adam(named, lr=0.01, eps=1e-5)
    with torch.no_grad():
        old = policy.get_distribution(observations).distribution
        old_log = old.log_prob(actions).sum(1)
    for _ in range(3):
        new = policy.get_distribution(observations).distribution
        distance = torch.distributions.kl_divergence(new, old).sum(1).mean()
        loss = -((new.log_prob(actions).sum(1) - old_log).exp() * A).mean() + 2 * distance
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(named, 0.5)
        optimizer.step()
    for name, value in policy.state_dict().items():
        if "value" not in name:
            torch.testing.assert_close(model.policy.state_dict()[name], value, rtol=1e-4, atol=1e-6)
    # the last KL is the one from the new policy to the old
    new = policy.get_distribution(observations).distribution
    assert model.last_kl == pytest.approx(torch.distributions.kl_divergence(new, old).sum(1).mean().item(), rel=1e-3)


def test_schedules_count_from_the_start_of_an_iteration():
    model = on(gaussian_env())
    values = logged(model)
    model.learn(60)  # four iterations of 16
    assert values["train/t"] == [1, 0.75, 0.5, 0.25]
    assert values["train/kl_coef"] == [1, 1 / 0.75, 2, 4]
    assert values["train/learning_rate"] == pytest.approx([3e-4, 2.25e-4, 1.5e-4, 0.75e-4])
    assert values["train/n_updates"] == [1, 2, 3, 4]
    assert model.last_kl == values["train/kl"][-1]
    assert all(v >= 1 for v in values["train/ratio_max"][:1])
    model.learn(64, reset_num_timesteps=False)
    assert values["train/t"][4:] == [0.5, 0.375, 0.25, 0.125]  # k = 4 of 8 on
    model.learn(32)
    assert values["train/t"][8:] == [1, 0.5]
    assert {f"train/{name}" for name in ("policy_loss", "value_loss", "kl", "ratio_max")} <= set(values)


def test_value_clip_and_rate():
    model = on(gaussian_env())
    model._current_progress_remaining = 0.5
    assert model._value_clip() == 0.1
    assert on(gaussian_env(), clip_range_vf=None)._value_clip() is None
    assert on(gaussian_env(), clip_range_vf=lambda left: 3 * left)._value_clip() == 3
    values = logged(model := on(gaussian_env(), learning_rate=0.01))
    model.learn(32)
    assert values["train/learning_rate"] == [0.01, 0.01]
    assert (model.gamma, model.gae_lambda, model.n_policy_steps, model.n_minibatches) == (0.99, 0.95, 10, 1)
    default = OnPolicyMDPO("MlpPolicy", gaussian_env(), seed=0)
    assert (default.n_steps, default.lr_schedule(1), default.lr_schedule(0.5), default.lr_schedule(0)) == (
        2048, 3e-4, 1.5e-4, 0,
    )  # fmt: skip
    assert (default.vf_epochs, default.vf_batch_size, default.clip_range_vf, default.max_grad_norm) == (
        5,
        128,
        0.2,
        0.5,
    )
    assert (default.last_kl, default.last_kl_coef) == (None, None)


def test_minibatches_share_the_m_steps():
    model = on(gaussian_env(), n_minibatches=4)
    parts = model._parts(16)
    first = [next(parts) for _ in range(4)]
    assert sorted(np.concatenate(first).tolist()) == list(range(16))
    assert sorted(np.concatenate([next(parts) for _ in range(4)]).tolist()) == list(range(16))


def test_time_limits_bootstrap_the_value():
    """Of a step that the limit cuts, the reward to come is the critic's guess, not zero."""
    env = gymnasium.wrappers.TimeLimit(gaussian_env(100, rewards=lambda t, a: 1.0), 16)
    model = on(env, n_policy_steps=1)
    with torch.no_grad():
        model.policy.value_net.bias.fill_(100.0)
    model.learn(16)
    assert model.rollout_buffer.rewards[-1] > 50
    assert (model.rollout_buffer.rewards[:-1] == 1).all()


class Features(BaseFeaturesExtractor):
    def __init__(self, space):
        super().__init__(space, 3)
        self.linear = torch.nn.Linear(2, 3)

    def forward(self, observations):
        return self.linear(observations)


def test_shared_features_belong_to_the_actor():
    options = SMALL | {"features_extractor_class": Features}
    model = on(gaussian_env(), policy_kwargs=options)
    assert not model.policy.share_features_extractor
    assert on(gaussian_env()).policy.share_features_extractor  # flattened observations: nothing is trained in there
    with pytest.warns(SteepestWarning, match="only the actor's optimizer"):
        shared = on(gaussian_env(), policy_kwargs=options | {"share_features_extractor": True})
    for m, n in ((model, 2 + 2 + 2), (shared, 2 + 2)):  # extractor, hidden layer, output
        mine, theirs = (
            {id(p) for p in optimizer.param_groups[0]["params"]}
            for optimizer in (m.policy.optimizer, m.value_optimizer)
        )
        assert not mine & theirs
        assert len(theirs) == n
        assert len(mine | theirs) == len(list(m.policy.parameters()))
    shared.learn(16)


def test_normalized_environments_work():
    env = VecNormalize(DummyVecEnv([gaussian_env]))
    model = on(env).learn(32)
    assert np.isfinite(model.last_kl)


@pytest.mark.parametrize("make", [on, off])
def test_what_is_not_finite_is_not_stepped(make):
    env = gaussian_env(rewards=lambda t, a: math.nan)
    model = make(env)
    before = weights(model)
    with pytest.raises(FloatingPointError, match=r"loss is nan at update 0, and no step was made"):
        model.learn(16)
    assert same(before, weights(model))


def test_a_gradient_that_overflows_is_not_stepped():
    model = on(gaussian_env())
    p = next(model.policy.parameters())
    before = weights(model)
    with pytest.raises(FloatingPointError, match="policy's gradient"):
        model._step(model.policy.optimizer, [p], (p.sum() * 1e30).square() * 0 + (p * 0).sqrt().sum(), "policy")
    assert same(before, weights(model))


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"n_policy_steps": 0}, ValueError, "n_policy_steps must be an integer >= 1"),
        ({"n_minibatches": 0}, ValueError, "n_minibatches must be"),
        ({"n_minibatches": 17}, ValueError, r"n_minibatches must be at most n_steps \* n_envs = 16"),
        ({"kl_coef": 0.0}, ValueError, "kl_coef must be"),
        ({"kl_coef": -1.0}, ValueError, "kl_coef must be"),
        ({"ent_coef": -0.1}, ValueError, "ent_coef must be >= 0"),
        ({"ent_coef": "auto"}, ValueError, "no temperature is learned"),
        ({"step_schedule": "cosine"}, ValueError, "step_schedule must be one of"),
        ({"inner": "adam"}, ValueError, "inner must be one of"),
        ({"tsallis_q": 0.0}, ValueError, "tsallis_q must be"),
        ({"tsallis_q": 2.1}, ValueError, "tsallis_q must be"),
        ({"gamma": 1.1}, ValueError, "gamma must be"),
        ({"gae_lambda": -0.1}, ValueError, "gae_lambda must be"),
        ({"inner": "weighted-mle", "tsallis_q": 0.5}, ValueError, "tsallis_q must be 1"),
        ({"vf_epochs": 1.5}, TypeError, "vf_epochs must be an integer"),
        ({"clip_range_vf": -0.2}, ValueError, "clip_range_vf must be"),
        ({"learning_rate": 0.0}, ValueError, "learning_rate must be"),
        ({"max_grad_norm": 0.0}, ValueError, "max_grad_norm must be"),
    ],
)
def test_bad_options_on_policy(options, error, text):
    with pytest.raises(error, match=text):
        on(gaussian_env(), **options)


# ---------------------------------------------------------------------------------------------------------- off-policy


def test_equal_weights_are_sac():
    shared = {"learning_starts": 20, "batch_size": 16, "seed": 3, "policy_kwargs": SMALL}
    sac = SAC("MlpPolicy", "Pendulum-v1", ent_coef=0.2, **(shared | {"policy_kwargs": dict(SMALL)})).learn(60)
    ours = OffPolicyMDPO(
        "MlpPolicy", "Pendulum-v1", kl_coef=0.2, ent_coef=0.2, actor_q="min", output_regularization=0.0, **shared
    ).learn(60)
    assert same(weights(sac), weights(ours))


def recorded(model, monkeypatch):
    """The losses whose gradients are taken, by name."""
    seen = {}
    step = type(model)._step

    def keep(self, optimizer, loss, what, n):
        seen.setdefault(what, []).append(loss.detach())
        return step(self, optimizer, loss, what, n)

    monkeypatch.setattr(type(model), "_step", keep)
    return seen


@pytest.mark.parametrize("q", [1.0, 1.5])
def test_losses_by_hand(monkeypatch, q):
    model = off(gaussian_env(), kl_coef=0.7, ent_coef=0.2, tsallis_q=q, policy_update_interval=100).learn(12)
    seen = recorded(model, monkeypatch)
    n = 8
    data = model.replay_buffer.sample(n)
    monkeypatch.setattr(model.replay_buffer, "sample", lambda *a, **k: data)
    monkeypatch.setattr(model.critic.optimizer, "step", lambda: None)
    actor, old, target = copy.deepcopy(model.actor), model.old_actor, copy.deepcopy(model.critic_target)
    torch.manual_seed(0)
    model.train(1, n)
    torch.manual_seed(0)
    with torch.no_grad():
        mean, log_std, _ = actor.get_action_dist_params(data.observations)
        u = mean + log_std.exp() * torch.normal(torch.zeros_like(mean), torch.ones_like(mean))

        def log(mean, log_std, u):
            each = Normal(mean, log_std.exp()).log_prob(u) - (1 - u.tanh() ** 2 + 1e-6).log()
            return (each if q == 1 else ((q - 1) * each).exp().sub(1) / (q - 1)).sum(1, keepdim=True)

        of_old = log(*old.get_action_dist_params(data.observations)[:2], u)
        Q = model.critic.q1_forward(data.observations, u.tanh())
        expected = (0.7 * log(mean, log_std, u) + q * (0.2 - 0.7) * of_old - Q).mean()
        expected += 1e-3 * ((mean**2).mean() + (log_std**2).mean())

        mean, log_std, _ = actor.get_action_dist_params(data.next_observations)
        u = mean + log_std.exp() * torch.normal(torch.zeros_like(mean), torch.ones_like(mean))
        after = torch.minimum(*target(data.next_observations, u.tanh())) - 0.2 * log(mean, log_std, u)
        wanted = data.rewards + (1 - data.dones) * 0.99 * after
        estimates = model.critic(data.observations, data.actions)
        of_critics = sum(((estimate - wanted) ** 2).mean() for estimate in estimates) / 2
    torch.testing.assert_close(seen["critics"][0], of_critics, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(seen["actor"][0], expected, rtol=1e-4, atol=1e-5)


def test_gradient_flows_through_the_action_in_the_old_density():
    model = off(gaussian_env())
    observations = torch.randn(8, 2, generator=torch.Generator().manual_seed(0))
    mean, log_std, _ = model.actor.get_action_dist_params(observations)
    actions, _ = model._draw(mean, log_std)
    old_log_prob, distance = model._compare(observations, actions)
    (gradient,) = torch.autograd.grad(old_log_prob.sum(), mean)
    assert gradient.abs().min() > 0
    assert distance == pytest.approx(0, abs=1e-7)
    assert not any(p.requires_grad for p in model.old_actor.parameters())


def test_snapshots_are_taken_before_the_step():
    model = off(gaussian_env(), policy_update_interval=3)
    values = logged(model)
    start = copy.deepcopy(model.actor.state_dict())
    model.learn(9)  # one gradient step
    assert model._n_updates == 1
    assert same(start, model.old_actor.state_dict())
    assert not same(start, model.actor.state_dict())
    model.learn(8, reset_num_timesteps=False)
    assert model.n_snapshots == math.ceil(model._n_updates / 3)
    assert values["train/n_snapshots"][:4] == [1, 1, 1, 2]
    assert values["train/kl_to_old"][0] == pytest.approx(0, abs=1e-6)  # measured before the step
    assert values["train/kl_to_old"][1] > 0
    assert values["train/kl_to_old"][3] == pytest.approx(0, abs=1e-6)
    assert {"train/actor_loss", "train/critic_loss", "train/ent_coef"} <= set(values)
    assert off(gaussian_env()).n_snapshots == 0


@pytest.mark.parametrize(
    "options",
    [
        {"deterministic_collection": True},
        {"actor_q": "min"},
        {"tsallis_q": 1.5},
        {"n_steps": 2},
        {"ent_coef": 0.0},
        {"gradient_steps": 2, "train_freq": 2},
    ],
)
def test_options_off_policy(options):
    model = off(gaussian_env(), **options)
    before = weights(model)
    model.learn(20)
    assert not same(before, weights(model))
    assert all(torch.isfinite(value).all() for value in weights(model).values())


def test_deterministic_collection_takes_the_mean():
    model = off(gaussian_env(), deterministic_collection=True, learning_starts=0)
    model._last_obs = np.ones((1, 2), np.float32)
    action, stored = model._sample_action(0)
    mean, _ = model.predict(model._last_obs, deterministic=True)
    np.testing.assert_allclose(action, mean, rtol=1e-6)
    np.testing.assert_allclose(stored, mean, rtol=1e-6)
    noisy, _ = model._sample_action(0, action_noise=lambda: np.full((1, 1), 0.3, np.float32))
    assert noisy != action
    different = off(gaussian_env(), learning_starts=0)
    different._last_obs = model._last_obs
    assert different._sample_action(0)[0] != different._sample_action(0)[0]


def test_defaults_off_policy():
    model = OffPolicyMDPO("MlpPolicy", gaussian_env(), buffer_size=10, seed=0)
    assert (model.kl_coef, model.ent_coef, model.policy_update_interval, model.tsallis_q) == (1.0, 0.2, 1000, 1.0)
    assert (model.learning_starts, model.batch_size, model.tau, model.gamma) == (10_000, 256, 0.005, 0.99)
    assert (model.actor_q, model.output_regularization, model.deterministic_collection) == ("first", 1e-3, False)


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"kl_coef": 0.0}, ValueError, "kl_coef must be > 0"),
        ({"kl_coef": None}, TypeError, "kl_coef must be"),
        ({"policy_update_interval": 0}, ValueError, "policy_update_interval must be an integer >= 1"),
        ({"ent_coef": -1.0}, ValueError, "ent_coef must be"),
        ({"ent_coef": "auto"}, ValueError, "no temperature is learned"),
        ({"actor_q": "mean"}, ValueError, "actor_q must be one of 'first', 'min'"),
        ({"tsallis_q": 3.0}, ValueError, "tsallis_q must be"),
        ({"output_regularization": -1.0}, ValueError, "output_regularization must be"),
        ({"gamma": 1.5}, ValueError, "gamma must be"),
        ({"deterministic_collection": 1}, TypeError, "deterministic_collection must be True or False"),
        ({"learning_rate": -1.0}, ValueError, "learning_rate must be"),
    ],
)
def test_bad_options_off_policy(options, error, text):
    with pytest.raises(error, match=text):
        off(gaussian_env(), **options)
