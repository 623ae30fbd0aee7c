r"""Trust regions without a constraint: policies that take m gradient steps on a mirror descent objective.

    pi_{k+1} ~ argmax_pi  E_{s ~ rho_k} [ E_{a ~ pi} A^{pi_k}(s, a) - KL(pi(.|s) || pi_k(.|s)) / t_k ]

    on-policy    t_k = 1 - k/K;  m steps of Adam on the whole batch of pi_k, A by generalized advantage estimation
    off-policy   minimize E [ kappa log pi(a|s) + q (lam - kappa) log pi_k(a|s) - Q_1(s, a) ],  a ~ pi, kappa = 1/t,
                 with pi_k a copy of the actor that is renewed every m gradient steps

At the first of the m steps KL and its gradient are zero: with m = 1 the method is the plain policy gradient. With
``kappa = lam`` the off-policy form is SAC with a fixed temperature.

Paper: tomar2022mirror.
Notation: m = `n_policy_steps` (on) and `policy_update_interval` (off), 1/t_k = kappa = `kl_coef`, lam = `ent_coef`,
K = iterations that fit into `total_timesteps`, q = `tsallis_q`; c = `clip_range_vf`.
Departures: (1) off-policy, twin soft Q functions with target networks as in Stable-Baselines3 stand in place of the
published code's value network: the same expectation. (2) While collecting, actions are sampled from the policy, over
which the objective is an expectation; the published code takes the mean (`deterministic_collection`). (3) Adam's rate
and c fall with 1 - k/K, which is 1 in the first iteration and 1/K in the last; Stable-Baselines3 counts from the end of
an iteration, so that its last one would have a rate of zero. (4) See `_mirror` for Tsallis exponents on-policy.
"""

from __future__ import annotations

import itertools
import math
import warnings
from collections.abc import Callable, Iterator
from typing import Any, ClassVar, NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor

from steepest.core.distributed import group_size, resolve_group
from steepest.core.errors import (
    Limit,
    SteepestWarning,
    at_least,
    boolean,
    check,
    check_params,
    interval,
    nonnegative,
    one_of,
    optional,
    positive,
    value_error,
)
from steepest.core.extras import require
from steepest.policy._data_parallel import DataParallel, log_share, mean_over_ranks
from steepest.policy._mdpo_off_policy import OffPolicyMDPO
from steepest.policy._mirror import (
    STEP_SCHEDULES,
    TSALLIS,
    Distribution,
    check_finite_loss,
    check_fixed_entropy,
    check_rate,
    kl,
    log_ratio,
    mdpo_policy_loss,
    mirror_step,
    rows,
    step_size,
    weighted_likelihood_loss,
)
from steepest.policy._streams import OwnStreams, Streams
from steepest.policy._trajectories import VALUE_ONLY, actor_parameters

try:
    from gymnasium import spaces
    from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
    from stable_baselines3.common.policies import (
        ActorCriticCnnPolicy,
        ActorCriticPolicy,
        BasePolicy,
        MultiInputActorCriticPolicy,
    )
    from stable_baselines3.common.utils import LinearSchedule
except ModuleNotFoundError:
    require("stable_baselines3", "rl", what="MDPO")
    raise

__all__ = ["OffPolicyMDPO", "OnPolicyMDPO", "mdpo_policy_loss", "mirror_step"]

Schedule = Callable[[float], float]
On = TypeVar("On", bound="OnPolicyMDPO")
COUNT = at_least(1, integer=True)
ON_LIMITS: dict[str, Limit] = {
    "n_steps": COUNT,
    "n_policy_steps": COUNT,
    "n_minibatches": COUNT,
    "kl_coef": optional(positive()),
    "inner": one_of("sgd", "weighted-mle"),
    "tsallis_q": TSALLIS,
    "vf_epochs": COUNT,
    "vf_batch_size": COUNT,
    "gamma": interval(0, 1),
    "gae_lambda": interval(0, 1),
    "normalize_advantage": boolean(),
    "ent_coef": nonnegative(),
    "max_grad_norm": positive(),
}


class _Batch(NamedTuple):
    """What pi_k did and how it was valued; n states."""

    observations: Any
    actions: Tensor
    distribution: Distribution  # pi_k
    log_prob: Tensor  # (n,)
    advantages: Tensor  # (n,)

    def rows(self, index: Tensor | None) -> _Batch:
        if index is None:
            return self
        return _Batch(
            _rows_of(self.observations, index),
            self.actions[index],
            rows(self.distribution, index),
            self.log_prob[index],
            self.advantages[index],
        )


class OnPolicyMDPO(DataParallel, OwnStreams, OnPolicyAlgorithm):
    """Mirror descent policy optimization from fresh rollouts (tomar2022mirror).

    Per iteration: a rollout with pi_k, m gradient steps on advantage minus KL to pi_k, then the critic's epochs. There
    is no clipping of the ratio, no line search and no constraint.

    Parameters
    ----------
    policy : str or class
        "MlpPolicy", "CnnPolicy", "MultiInputPolicy", or an actor-critic policy class. Features are extracted for actor
        and critic separately, unless ``policy_kwargs`` shares them: then the actor's optimizer alone trains them.
        Dropout and batch normalization stay in evaluation mode: pi and pi_k must be the same function.
    env : gymnasium.Env, VecEnv or str
        Box, Discrete or MultiDiscrete actions. The published runs normalize observations and rewards (VecNormalize).
    learning_rate : float or callable
        Of both optimizers: constant, or a function of 1 - k/K; by default 3e-4 falling to zero (official code).
    n_steps : int
        Steps of each environment in an iteration (official code: 2048).
    n_policy_steps : int
        m, gradient steps of the actor in an iteration (official example: 10; with 1 the KL term has no effect).
    n_minibatches : int
        Parts that the batch is split into, one gradient step on each, m in all (official code: 1).
    step_schedule : "linear", "constant", "sqrt" or callable
        t_k: ``1 - k/K`` (official code), 1, ``1/sqrt(k + 1)``, or a function of k/K; at least 1e-3.
    kl_coef : float, optional
        A constant 1/t > 0 in place of `step_schedule`.
    inner : "sgd" or "weighted-mle"
        Gradient steps on the objective, or on a fit of its exact solution, ``sum exp(t A) log pi`` (official code's
        "closed reverse KL").
    tsallis_q : float
        In (0, 2]; by default 1, KL. See `mdpo_policy_loss`.
    vf_epochs, vf_batch_size : int
        Passes of the critic over the batch and its minibatch (official code: 5 and 128).
    clip_range_vf : float, callable or None
        How far a value may move before its loss is clipped, in units of the reward: a number falls with 1 - k/K
        (official code: 0.2), a callable is a function of it, None clips nothing.
    gamma, gae_lambda : float
        In [0, 1] (official code: 0.99 and 0.95).
    normalize_advantage : bool
        Over the whole batch; a constant advantage is centered only.
    ent_coef : float
        Weight of an entropy bonus (official code: 0).
    max_grad_norm : float
        Of the actor's gradient (official code: 0.5).
    policy_kwargs, stats_window_size, tensorboard_log, verbose, device
        As in Stable-Baselines3.
    seed : int, optional
        Of initialization, actions and the environments. Global generators stay alone; None draws fresh entropy. The
        states of the generators are saved with the model.
    process_group : None, "default" or group
        Ranks of `torch.distributed` that learn one policy together: each collects with its own environments, whose
        seeds follow those of the rank before, advantages are standardized over all, and gradients are averaged before
        they are clipped. Everything is given alike on all ranks, and ``n_steps, total_timesteps, num_timesteps`` count
        one rank's steps; `vf_batch_size` is the ranks' together.

    Attributes
    ----------
    last_kl, last_kl_coef : float or None
        Mean KL(pi_{k+1} || pi_k) over the last batch, and 1/t_k.

    Raises
    ------
    ValueError, TypeError
        An argument outside its limits.
    AssertionError
        An action space of another kind (Stable-Baselines3's error).
    FloatingPointError
        A loss or gradient is not finite; that step is not made.
    ImportError
        Stable-Baselines3 is not installed; the text has the command.

    Notes
    -----
    Logged: ``train/kl, kl_coef, t, policy_loss, value_loss, ratio_max, n_updates`` (iterations), ``learning_rate``.
    ``learn(..., reset_num_timesteps=False)`` goes on with k; K is counted from the steps before and asked for together.
    A callback that stops `learn` loses the rollout that was being collected, as in Stable-Baselines3.

    Examples
    --------
    >>> model = OnPolicyMDPO("MlpPolicy", "CartPole-v1", n_steps=128, seed=0).learn(256)
    >>> 0 < model.last_kl < 0.1, model.last_kl_coef
    (True, 2.0)
    """

    policy_aliases: ClassVar[dict[str, type[BasePolicy]]] = {
        "MlpPolicy": ActorCriticPolicy,
        "CnnPolicy": ActorCriticCnnPolicy,
        "MultiInputPolicy": MultiInputActorCriticPolicy,
    }

    def __init__(
        self,
        policy: str | type[ActorCriticPolicy],
        env: Any,
        learning_rate: float | Schedule = LinearSchedule(3e-4, 0.0, 1.0),  # noqa: B008 - it has no state
        n_steps: int = 2048,
        *,
        n_policy_steps: int = 10,
        n_minibatches: int = 1,
        step_schedule: str | Schedule = "linear",
        kl_coef: float | None = None,
        inner: str = "sgd",
        tsallis_q: float = 1.0,
        vf_epochs: int = 5,
        vf_batch_size: int = 128,
        clip_range_vf: float | Schedule | None = 0.2,
        gamma: float = 0.99,
        gae_lambda: float = 0.95,
        normalize_advantage: bool = True,
        ent_coef: float = 0.0,
        max_grad_norm: float = 0.5,
        policy_kwargs: dict[str, Any] | None = None,
        stats_window_size: int = 100,
        tensorboard_log: str | None = None,
        verbose: int = 0,
        seed: int | None = None,
        device: torch.device | str = "auto",
        process_group: Any = None,
        _init_setup_model: bool = True,
    ) -> None:
        check_fixed_entropy(ent_coef)
        check_params(locals(), ON_LIMITS)
        check_rate(learning_rate)
        if not callable(step_schedule):
            check("step_schedule", step_schedule, one_of(*STEP_SCHEDULES))
        if not callable(clip_range_vf):
            check("clip_range_vf", clip_range_vf, optional(positive()))
        if inner == "weighted-mle" and tsallis_q != 1:
            raise value_error("tsallis_q", "1 for inner='weighted-mle'", tsallis_q, "it has no proximity term")
        resolve_group(process_group)
        self._streams, self.process_group = Streams(), process_group
        super().__init__(
            policy,
            env,
            learning_rate=learning_rate,
            n_steps=n_steps,
            gamma=gamma,
            gae_lambda=gae_lambda,
            ent_coef=ent_coef,
            vf_coef=1.0,  # the critic has a loss and an optimizer of its own
            max_grad_norm=max_grad_norm,
            use_sde=False,
            sde_sample_freq=-1,
            stats_window_size=stats_window_size,
            tensorboard_log=tensorboard_log,
            policy_kwargs=dict(policy_kwargs or {}),
            verbose=verbose,
            seed=seed,
            device=device,
            _init_setup_model=False,
            supported_action_spaces=(spaces.Box, spaces.Discrete, spaces.MultiDiscrete),
        )
        self.n_policy_steps, self.n_minibatches = n_policy_steps, n_minibatches
        self.step_schedule, self.kl_coef = step_schedule, kl_coef
        self.inner, self.tsallis_q = inner, tsallis_q
        self.vf_epochs, self.vf_batch_size, self.clip_range_vf = vf_epochs, vf_batch_size, clip_range_vf
        self.normalize_advantage = normalize_advantage
        self.last_kl: float | None = None
        self.last_kl_coef: float | None = None
        self._iteration = 0  # k
        if _init_setup_model:
            self._setup_model()

    # ------------------------------------------------------------------------- Stable-Baselines3's conventions

    def _setup_model(self) -> None:
        batch = self.n_steps * (self.n_envs or 1)
        if self.n_minibatches > batch:
            raise value_error("n_minibatches", f"at most n_steps * n_envs = {batch}", self.n_minibatches)
        self.policy_kwargs.setdefault("share_features_extractor", False)
        super()._setup_model()
        policy = self.policy
        if policy.share_features_extractor and any(p.requires_grad for p in policy.features_extractor.parameters()):
            warnings.warn(
                "actor and critic share a features extractor: only the actor's optimizer trains it",
                SteepestWarning,
                stacklevel=2,
            )
        if not any(True for _ in policy.vf_features_extractor.parameters()):
            policy.share_features_extractor = True  # the same function of the observation: extract once
        critic = [p for name, p in policy.named_parameters() if p.requires_grad and name.startswith(VALUE_ONLY)]
        rate = self.lr_schedule(1)
        make, options = policy.optimizer_class, policy.optimizer_kwargs
        policy.optimizer = make(actor_parameters(policy), lr=rate, **options)  # type: ignore[call-arg]
        self.value_optimizer = make(critic, lr=rate, **options)  # type: ignore[call-arg]

    def learn(
        self: On,
        total_timesteps: int,
        callback: Any = None,
        log_interval: int = 1,
        tb_log_name: str = "OnPolicyMDPO",
        reset_num_timesteps: bool = True,
        progress_bar: bool = False,
    ) -> On:
        """Train for `total_timesteps` steps of all environments, rounded up to whole iterations; as in `PPO.learn`."""
        if reset_num_timesteps:
            self._iteration = 0
        self._own_part("vf_batch_size", self.vf_batch_size)
        self._begin_together(self.policy)
        with self._streams.own(self.device):
            return super().learn(
                total_timesteps, callback, log_interval, tb_log_name, reset_num_timesteps, progress_bar
            )

    def _update_current_progress_remaining(self, num_timesteps: int, total_timesteps: int) -> None:
        self._current_progress_remaining = max(1 - self._iteration / self._iterations(total_timesteps), 0.0)

    def _iterations(self, total_timesteps: int) -> int:
        return max(math.ceil(total_timesteps / (self.n_steps * self.n_envs)), 1)  # K

    def _get_torch_save_params(self) -> tuple[list[str], list[str]]:
        return ["policy", "policy.optimizer", "value_optimizer"], []

    # ------------------------------------------------------------------------------------------- the iteration

    def train(self) -> None:
        """Make one iteration's steps of actor and critic from the rollout that was collected with pi_k."""
        self.policy.set_training_mode(False)
        self._update_learning_rate([self.policy.optimizer, self.value_optimizer])
        data = next(self.rollout_buffer.get(None))
        discrete = isinstance(self.action_space, spaces.Discrete)
        actions = data.actions.long().flatten() if discrete else data.actions
        with torch.no_grad():
            old, old_log_prob, _ = self._evaluate(data.observations, actions)
        advantages = standardized(data.advantages, self.process_group) if self.normalize_advantage else data.advantages
        batch = _Batch(data.observations, actions, old, old_log_prob, advantages)

        t = self._step_size()
        policy_loss = self._improve(batch, t)
        with torch.no_grad():
            new, log_prob, _ = self._evaluate(batch.observations, batch.actions)
            self.last_kl, self.last_kl_coef = mean_over_ranks(kl(new, old), self.process_group).item(), 1 / t
            ratio_max = log_ratio(log_prob, old_log_prob).max().exp().item()
        value_loss = self._fit_values(data)

        self._iteration += 1
        self._n_updates += 1
        logged = {"kl": self.last_kl, "kl_coef": self.last_kl_coef, "t": t, "ratio_max": ratio_max}
        for name, value in (logged | {"policy_loss": policy_loss, "value_loss": value_loss}).items():
            self.logger.record(f"train/{name}", value)
        self.logger.record("train/n_updates", self._n_updates, exclude="tensorboard")

    def _step_size(self) -> float:
        if self.kl_coef is not None:
            return 1 / self.kl_coef
        return step_size(self.step_schedule, self._iteration, self._iterations(self._total_timesteps))

    def _improve(self, batch: _Batch, t: float) -> float:
        """Make the m steps of the actor; give the mean loss."""
        parameters, losses = actor_parameters(self.policy), []
        for index in itertools.islice(self._parts(len(batch.advantages)), self.n_policy_steps):
            part = batch.rows(index)
            new, log_prob, entropy = self._evaluate(part.observations, part.actions)
            if self.inner == "weighted-mle":
                share = log_share(t * part.advantages, self.process_group).exp() * group_size(self.process_group)
                loss = share * weighted_likelihood_loss(log_prob, part.advantages, t)
            else:
                loss, _ = mdpo_policy_loss(
                    new, part.distribution, log_prob, part.log_prob, part.advantages, 1 / t, self.tsallis_q
                )
            if self.ent_coef > 0:
                loss = loss - self.ent_coef * entropy().mean()
            losses.append(self._step(self.policy.optimizer, parameters, loss, "policy", self.max_grad_norm))
        return float(np.mean(losses))

    def _parts(self, n: int) -> Iterator[Tensor | None]:
        while True:
            if self.n_minibatches == 1:
                yield None  # all, in any order
            else:
                yield from np.array_split(np.random.permutation(n), self.n_minibatches)  # type: ignore[misc]  # noqa: NPY002

    def _fit_values(self, data: Any) -> float:
        """Make the critic's epochs; give the mean loss."""
        parameters = self.value_optimizer.param_groups[0]["params"]
        clip, losses, size = self._value_clip(), [], self._own_part("vf_batch_size", self.vf_batch_size)
        for _ in range(self.vf_epochs):
            order = np.random.permutation(len(data.returns))  # noqa: NPY002
            for start in range(0, len(order), size):
                index = torch.as_tensor(order[start : start + size], device=self.device)
                values = self.policy.predict_values(_rows_of(data.observations, index)).flatten()
                loss = value_loss(values, data.old_values[index], data.returns[index], clip)
                losses.append(self._step(self.value_optimizer, parameters, loss, "critic"))
        return float(np.mean(losses))

    def _value_clip(self) -> float | None:
        remaining = self._current_progress_remaining
        if self.clip_range_vf is None:
            return None
        return self.clip_range_vf(remaining) if callable(self.clip_range_vf) else self.clip_range_vf * remaining

    def _step(self, optimizer: Any, parameters: list[Any], loss: Tensor, what: str, limit: float = math.inf) -> float:
        value = self._backward(optimizer, loss, what, self._n_updates)
        check_finite_loss(
            float(torch.nn.utils.clip_grad_norm_(parameters, limit)), f"{what}'s gradient", self._n_updates
        )
        optimizer.step()
        return value

    def _evaluate(self, observations: Any, actions: Tensor) -> tuple[Distribution, Tensor, Callable[[], Tensor]]:
        distribution = self.policy.get_distribution(observations)
        inner: Distribution = distribution.distribution  # of these observations; the object around it is used again
        return inner, distribution.log_prob(actions), distribution.entropy  # type: ignore[return-value]


def standardized(advantages: Tensor, process_group: Any = None) -> Tensor:
    """Subtract the mean and divide by the standard deviation, unless that is zero up to rounding."""
    centered = advantages - mean_over_ranks(advantages, process_group)
    spread, size = (mean_over_ranks(x.square(), process_group).sqrt() for x in (centered, advantages))
    if spread <= 10 * torch.finfo(advantages.dtype).eps * size:
        return centered
    return centered / spread


def value_loss(values: Tensor, old_values: Tensor, returns: Tensor, clip: float | None) -> Tensor:
    """Mean squared error; with `clip` the larger of the errors with and without moving at most that far."""
    errors = (values - returns).square()
    if clip is not None:
        near = old_values + (values - old_values).clamp(-clip, clip)
        errors = torch.maximum(errors, (near - returns).square())
    return errors.mean()


def _rows_of(observations: Any, index: Any) -> Any:
    if isinstance(observations, dict):
        return {key: value[index] for key, value in observations.items()}
    return observations[index]
