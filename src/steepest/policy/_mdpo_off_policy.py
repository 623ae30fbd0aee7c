"""Mirror descent from a replay buffer: SAC's loop and critics, and an actor that stays near a copy of itself.

See `mdpo`, whose other half this is.

Paper: tomar2022mirror.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from steepest.core.distributed import resolve_group
from steepest.core.errors import Limit, at_least, boolean, check_params, interval, nonnegative, one_of, positive
from steepest.core.extras import require
from steepest.policy._data_parallel import DataParallel
from steepest.policy._mirror import (
    TSALLIS,
    check_fixed_entropy,
    check_rate,
    kl,
    tsallis_log,
)
from steepest.policy._streams import OwnStreams, Streams

try:
    from stable_baselines3 import SAC
    from stable_baselines3.common.distributions import SquashedDiagGaussianDistribution
    from stable_baselines3.common.utils import polyak_update
except ModuleNotFoundError:
    require("stable_baselines3", "rl", what="MDPO")
    raise

__all__ = ["OffPolicyMDPO"]

Off = TypeVar("Off", bound="OffPolicyMDPO")
COUNT = at_least(1, integer=True)
OFF_LIMITS: dict[str, Limit] = {
    "kl_coef": positive(),
    "ent_coef": nonnegative(),
    "policy_update_interval": COUNT,
    "tsallis_q": TSALLIS,
    "actor_q": one_of("first", "min"),
    "output_regularization": nonnegative(),
    "deterministic_collection": boolean(),
    "gamma": interval(0, 1),
    "tau": interval(0, 1),
    "batch_size": COUNT,
    "target_update_interval": COUNT,
}


class OffPolicyMDPO(DataParallel, OwnStreams, SAC):
    """Mirror descent policy optimization from a replay buffer (tomar2022mirror).

    SAC's loop and critics; the actor's objective is soft Q plus a KL term to a copy of the actor that is renewed every
    `policy_update_interval` gradient steps.

    Parameters
    ----------
    policy : str or class
        "MlpPolicy", "CnnPolicy", "MultiInputPolicy", or a class of SAC's kind.
    env : gymnasium.Env, VecEnv or str
        Box actions.
    learning_rate, buffer_size, learning_starts, batch_size, tau, gamma, train_freq, gradient_steps
        As in `stable_baselines3.SAC` (the values are the official code's; `learning_starts` is 10 000 there).
    kl_coef : float
        kappa = 1/t > 0 (official code: 1).
    ent_coef : float
        lam >= 0, the entropy's fixed weight (official example: 0.2). Equal to `kl_coef`, the KL term vanishes and what
        remains is SAC.
    policy_update_interval : int
        m, gradient steps between copies of the actor (official example: 1000).
    tsallis_q : float
        In (0, 2]; for other values than 1 each logarithm of a density is ``log_{2-q}``, summed over the dimensions of
        the action.
    actor_q : "first" or "min"
        The critic that the actor follows: Q_1 (official code), or the smaller of both (SAC).
    output_regularization : float
        Weight of the mean squares of the Gaussian's mean and log standard deviation (official code: 1e-3).
    deterministic_collection : bool
        Act with the mean while collecting, as the official code does.
    action_noise, replay_buffer_class, replay_buffer_kwargs, optimize_memory_usage, n_steps, target_update_interval
        As in `stable_baselines3.SAC`.
    policy_kwargs, stats_window_size, tensorboard_log, verbose, device
        As in Stable-Baselines3.
    seed : int, optional
        As in `OnPolicyMDPO`.
    process_group : None, "default" or group
        As in `OnPolicyMDPO`: every rank has environments and a buffer of its own, and `batch_size` is the ranks'
        together.

    Attributes
    ----------
    n_snapshots : int
        Copies made so far.
    old_actor : Actor
        pi_k, frozen; saved with the model.

    Raises
    ------
    ValueError, TypeError, AssertionError, FloatingPointError, ImportError
        As in `OnPolicyMDPO`. ``ent_coef="auto"`` is not defined for this method.

    Notes
    -----
    Logged: ``train/kl_to_old, actor_loss, critic_loss, n_snapshots, ent_coef, n_updates`` (gradient steps).
    As with SAC, the replay buffer is saved by `save_replay_buffer`, not by `save`.

    Examples
    --------
    >>> model = OffPolicyMDPO("MlpPolicy", "Pendulum-v1", learning_starts=100, policy_update_interval=10, seed=0)
    >>> model.learn(130).n_snapshots
    3
    """

    def __init__(
        self,
        policy: Any,
        env: Any,
        learning_rate: float | Callable[[float], float] = 3e-4,
        buffer_size: int = 1_000_000,
        learning_starts: int = 10_000,
        batch_size: int = 256,
        tau: float = 0.005,
        gamma: float = 0.99,
        *,
        kl_coef: float = 1.0,
        ent_coef: float = 0.2,
        policy_update_interval: int = 1000,
        tsallis_q: float = 1.0,
        actor_q: str = "first",
        output_regularization: float = 1e-3,
        deterministic_collection: bool = False,
        train_freq: int | tuple[int, str] = 1,
        gradient_steps: int = 1,
        action_noise: Any = None,
        replay_buffer_class: Any = None,
        replay_buffer_kwargs: dict[str, Any] | None = None,
        optimize_memory_usage: bool = False,
        n_steps: int = 1,
        target_update_interval: int = 1,
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
        check_params(locals(), OFF_LIMITS)
        check_rate(learning_rate)
        resolve_group(process_group)
        self._streams, self.process_group = Streams(), process_group
        self.kl_coef, self.policy_update_interval, self.tsallis_q = kl_coef, policy_update_interval, tsallis_q
        self.actor_q, self.output_regularization = actor_q, output_regularization
        self.deterministic_collection = deterministic_collection
        self.n_snapshots = 0
        super().__init__(
            policy,
            env,
            learning_rate,
            buffer_size,
            learning_starts,
            batch_size,
            tau,
            gamma,
            train_freq,
            gradient_steps,
            action_noise,
            replay_buffer_class,
            replay_buffer_kwargs,
            optimize_memory_usage,
            n_steps,
            ent_coef,
            target_update_interval,
            stats_window_size=stats_window_size,
            tensorboard_log=tensorboard_log,
            policy_kwargs=dict(policy_kwargs or {}),  # Stable-Baselines3 writes into it
            verbose=verbose,
            seed=seed,
            device=device,
            _init_setup_model=_init_setup_model,
        )

    # ------------------------------------------------------------------------- Stable-Baselines3's conventions

    def _setup_model(self) -> None:
        super()._setup_model()
        self.old_actor = copy.deepcopy(self.actor)
        del self.old_actor.optimizer
        self.old_actor.requires_grad_(False).set_training_mode(False)

    def learn(
        self: Off,
        total_timesteps: int,
        callback: Any = None,
        log_interval: int = 4,
        tb_log_name: str = "OffPolicyMDPO",
        reset_num_timesteps: bool = True,
        progress_bar: bool = False,
    ) -> Off:
        """Train for `total_timesteps` steps of all environments, as in `SAC.learn`."""
        self._own_part("batch_size", self.batch_size)
        self._begin_together(self.policy, self.old_actor)
        with self._streams.own(self.device):
            return super().learn(
                total_timesteps, callback, log_interval, tb_log_name, reset_num_timesteps, progress_bar
            )

    def _sample_action(
        self, learning_starts: int, action_noise: Any = None, n_envs: int = 1
    ) -> tuple[np.ndarray, np.ndarray]:
        if not self.deterministic_collection or self.num_timesteps < learning_starts:
            return super()._sample_action(learning_starts, action_noise, n_envs)
        assert self._last_obs is not None
        scaled = self.policy.scale_action(self.predict(self._last_obs, deterministic=True)[0])
        if action_noise is not None:
            scaled = np.clip(scaled + action_noise(), -1, 1)
        return self.policy.unscale_action(scaled), scaled

    def _get_torch_save_params(self) -> tuple[list[str], list[str]]:
        modules, tensors = super()._get_torch_save_params()
        return [*modules, "old_actor"], tensors

    # ------------------------------------------------------------------------------------------- gradient steps

    def train(self, gradient_steps: int, batch_size: int = 64) -> None:
        """Make gradient steps of critics and actor from minibatches of the replay buffer."""
        assert self.replay_buffer is not None
        self.policy.set_training_mode(True)
        self._update_learning_rate([self.actor.optimizer, self.critic.optimizer])
        critic_losses, actor_losses = [], []
        for i in range(gradient_steps):
            n = self._n_updates + i
            if n % self.policy_update_interval == 0:
                self.old_actor.load_state_dict(self.actor.state_dict())
                self.n_snapshots += 1
            data = self.replay_buffer.sample(self._own_part("batch_size", batch_size), env=self._vec_normalize_env)
            mean, log_std, _ = self.actor.get_action_dist_params(data.observations)
            actions, log_prob = self._draw(mean, log_std)
            old_log_prob, kl_to_old = self._compare(data.observations, actions)

            critic_loss = self._critic_loss(data)
            critic_losses.append(self._step(self.critic.optimizer, critic_loss, "critics", n))

            # kappa log pi + q (lam - kappa) log pi_k - Q, gradients through the action in all three
            loss = self.kl_coef * log_prob - self._followed_q(data.observations, actions)
            if self.ent_coef != self.kl_coef:
                loss = loss + self.tsallis_q * (float(self.ent_coef) - self.kl_coef) * old_log_prob
            actor_loss = loss.mean()
            if self.output_regularization > 0:
                squares = mean.square().mean() + log_std.square().mean()
                actor_loss = actor_loss + self.output_regularization * squares
            actor_losses.append(self._step(self.actor.optimizer, actor_loss, "actor", n))

            if i % self.target_update_interval == 0:
                polyak_update(self.critic.parameters(), self.critic_target.parameters(), self.tau)
                polyak_update(self.batch_norm_stats, self.batch_norm_stats_target, 1.0)
        self._n_updates += gradient_steps
        self.logger.record("train/n_updates", self._n_updates, exclude="tensorboard")
        self.logger.record("train/n_snapshots", self.n_snapshots)
        self.logger.record("train/ent_coef", float(self.ent_coef))
        self.logger.record("train/kl_to_old", kl_to_old)
        self.logger.record("train/actor_loss", np.mean(actor_losses))
        self.logger.record("train/critic_loss", np.mean(critic_losses))

    def _draw(self, mean: Tensor, log_std: Tensor) -> tuple[Tensor, Tensor]:  # (n, actions), (n, 1)
        distribution: Any = self.actor.action_dist
        actions = distribution.actions_from_params(mean, log_std)
        return actions, self._log(distribution, actions, distribution.gaussian_actions)

    def _compare(self, observations: Any, actions: Tensor) -> tuple[Tensor, float]:
        """Logarithm of pi_k at the actions that pi has just drawn (n, 1), and mean KL(pi || pi_k)."""
        drawn: Any = self.actor.action_dist
        with torch.no_grad():
            old_mean, old_log_std, _ = self.old_actor.get_action_dist_params(observations)
        old = SquashedDiagGaussianDistribution(old_mean.shape[1]).proba_distribution(old_mean, old_log_std)
        with torch.no_grad():  # squashing changes both alike
            distance = kl(drawn.distribution, old.distribution).mean().item()
        return self._log(old, actions, drawn.gaussian_actions), distance

    def _log(self, distribution: Any, actions: Tensor, u: Any) -> Tensor:  # (n, 1)
        """Logarithm of the density of ``actions = tanh(u)``, from u itself: atanh would lose it near the bounds."""
        if self.tsallis_q == 1:
            log_prob: Tensor = distribution.log_prob(actions, u)
            return log_prob.reshape(-1, 1)
        each = distribution.distribution.log_prob(u) - torch.log(1 - actions**2 + distribution.epsilon)
        return tsallis_log(each, 2 - self.tsallis_q).sum(1, keepdim=True)

    def _critic_loss(self, data: Any) -> Tensor:
        discounts = self.gamma if data.discounts is None else data.discounts
        with torch.no_grad():
            mean, log_std, _ = self.actor.get_action_dist_params(data.next_observations)
            actions, log_prob = self._draw(mean, log_std)
            values = torch.cat(self.critic_target(data.next_observations, actions), 1).min(1, keepdim=True).values
            values = values - float(self.ent_coef) * log_prob
            targets = data.rewards + (1 - data.dones) * discounts * values
        estimates = self.critic(data.observations, data.actions)
        losses = [torch.nn.functional.mse_loss(estimate, targets) for estimate in estimates]
        return 0.5 * torch.stack(losses).sum()

    def _followed_q(self, observations: Any, actions: Tensor) -> Tensor:  # (n, 1)
        if self.actor_q == "first":
            return self.critic.q1_forward(observations, actions)
        return torch.cat(self.critic(observations, actions), 1).min(1, keepdim=True).values

    def _step(self, optimizer: Any, loss: Tensor, what: str, n: int) -> float:
        value = self._backward(optimizer, loss, what, n)
        optimizer.step()
        return value
