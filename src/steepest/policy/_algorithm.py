"""What the policy gradients of this room share as Stable-Baselines3 algorithms: seeds, whole episodes, saved state.

Every iteration is a function of (seed, t) and of the state at its start, and is committed at its end. Until then the
policy holds theta_t, and a copy of it samples at the other points: so a run that was stopped anywhere, saved and loaded
goes on as if it had never stopped.
"""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, ClassVar, TypedDict, TypeVar

import numpy as np
import torch
from torch import Tensor

from steepest.core.errors import at_least, check, check_params, one_of, optional, positive, value_error
from steepest.core.extras import require
from steepest.core.random import child_seeds, fresh_seed
from steepest.curvature.vectors import flatten, unflatten
from steepest.policy._ascent import RULE_LIMITS, Numbers, State, StepRule
from steepest.policy._rollouts import Moment, Rollouts, Round, rollouts
from steepest.policy._trajectories import (
    GAMMA,
    LinearBaseline,
    Trajectory,
    actor_parameters,
    mean_gradient,
    mean_hvp,
)

try:
    from gymnasium import spaces
    from stable_baselines3.common.base_class import BaseAlgorithm
    from stable_baselines3.common.callbacks import BaseCallback
    from stable_baselines3.common.policies import ActorCriticCnnPolicy, ActorCriticPolicy, BasePolicy
    from stable_baselines3.common.utils import safe_mean
except ModuleNotFoundError:
    require("stable_baselines3", "rl", what="HARPG (as NPGIGT)")
    raise

__all__ = ["Common", "VarianceReduced", "Worker"]

Self = TypeVar("Self", bound="VarianceReduced")
SPACES = (spaces.Box, spaces.Discrete, spaces.MultiDiscrete, spaces.MultiBinary)
INITIAL, ROLLOUT, SEGMENT, PREDICTION = range(4)
"""What a stream of random numbers is for."""


class Common(TypedDict, total=False):
    """The options that both algorithms have, with the defaults of `VarianceReduced`."""

    gamma: float
    horizon: int | None
    trajectories_per_step: int
    baseline: str | None
    collector: str
    policy_kwargs: dict[str, Any] | None
    stats_window_size: int
    tensorboard_log: str | None
    verbose: int
    seed: int | None
    device: torch.device | str
    _init_setup_model: bool


class _Stopped(Exception):
    """A callback asked for the end in the middle of an iteration."""


class VarianceReduced(BaseAlgorithm):
    """The loop of `learn`, and what Stable-Baselines3 asks of an algorithm; a subclass says what an iteration is."""

    policy_aliases: ClassVar[dict[str, type[BasePolicy]]] = {
        "MlpPolicy": ActorCriticPolicy,
        "CnnPolicy": ActorCriticCnnPolicy,
    }

    def __init__(
        self,
        policy: str | type[BasePolicy],
        env: Any,
        learning_rate: float | Callable[[float], float],
        rule: StepRule,
        *,
        gamma: float = 0.99,
        horizon: int | None = None,
        trajectories_per_step: int = 1,
        baseline: str | None = None,
        collector: str = "serial",
        policy_kwargs: dict[str, Any] | None = None,
        stats_window_size: int = 100,
        tensorboard_log: str | None = None,
        verbose: int = 0,
        seed: int | None = None,
        device: torch.device | str = "auto",
        _init_setup_model: bool = True,
    ) -> None:
        if not callable(learning_rate):
            check("learning_rate", learning_rate, positive())
        check_params(rule, RULE_LIMITS)
        check("gamma", gamma, GAMMA)
        check("horizon", horizon, optional(at_least(1, integer=True)))
        check("trajectories_per_step", trajectories_per_step, at_least(1, integer=True))
        check("baseline", baseline, one_of(None, "linear"))
        check("collector", collector, one_of("serial", "ray"))
        self._root_seed = fresh_seed() if seed is None else child_seeds(seed, 1)[0]
        super().__init__(
            policy,
            env,
            learning_rate,
            policy_kwargs,
            stats_window_size,
            tensorboard_log,
            verbose,
            device,
            support_multi_env=True,
            seed=seed,
            supported_action_spaces=SPACES,
        )
        self.gamma, self.horizon, self.trajectories_per_step = gamma, horizon, trajectories_per_step
        self.baseline, self.collector = baseline, collector
        self.n_trajectories = 0
        self._rule = rule
        self._frozen: list[str] = []
        self._n_predictions = 0
        if _init_setup_model:
            self._setup_model()

    @property
    def n_updates(self) -> int:
        """Iterations made so far, t."""
        return self._n_updates

    # ------------------------------------------------------------------------- Stable-Baselines3's conventions

    def _setup_model(self) -> None:
        self._setup_lr_schedule()
        with _private_stream(self._stream(INITIAL), self.device):
            policy = self.policy_class(
                self.observation_space, self.action_space, self.lr_schedule, **self.policy_kwargs
            )
        if getattr(policy, "use_sde", False):
            raise value_error("policy_kwargs", "without use_sde", self.policy_kwargs, "its noise is not independent")
        self.policy = policy.to(self.device)
        for name, p in self.policy.named_parameters():
            if name in self._frozen:
                p.requires_grad_(False)
        self._previous = torch.zeros(0, device=self.device)  # theta_{t-1}
        self._direction = torch.zeros(0, device=self.device)  # d_{t-1}
        self._coefficients = torch.zeros(0, dtype=torch.float64, device=self.device)  # of the baseline

    def learn(
        self: Self,
        total_timesteps: int,
        callback: Any = None,
        log_interval: int | None = 1,
        tb_log_name: str | None = None,
        reset_num_timesteps: bool = True,
        progress_bar: bool = False,
    ) -> Self:
        """Train until the environments have made `total_timesteps` steps, those of Hessian trajectories included.

        An iteration that has begun is finished, unless a callback stops it or an exception leaves it; then it counts
        for nothing, the policy holds theta_t, and the next `learn` begins it anew from the same seeds. The iteration
        counter, and with it the schedules, go on from where they were, whatever `reset_num_timesteps`.

        Parameters
        ----------
        total_timesteps : int
        callback : callable, BaseCallback or list, optional
            Called after every step of the environments.
        log_interval : int, optional
            Iterations between lines of the log.
        tb_log_name : str, optional
            The class's name by default.
        reset_num_timesteps : bool
        progress_bar : bool

        Returns
        -------
        self

        Raises
        ------
        FloatingPointError
            A reward, an observation or an estimate is not finite; the text names iteration and trajectory.
        ValueError
            The set of frozen parameters has changed since the first iteration.
        """
        if self.env is None:
            raise value_error("env", "set before learn", None, "call set_env(env)")
        if self.collector == "ray" and self.get_vec_normalize_env() is not None:
            raise value_error("env", "without VecNormalize for collector='ray'", self.env, "copies would not share it")
        total_timesteps, callback = self._setup_learn(
            total_timesteps, callback, reset_num_timesteps, tb_log_name or type(self).__name__, progress_bar
        )
        self._begin()
        callback.on_training_start(locals(), globals())
        with rollouts(self.env, self.collector) as sample:
            worker = Worker(self, sample, callback, self._horizon(total_timesteps))
            for k in itertools.count(1):
                if self.num_timesteps >= total_timesteps:
                    break
                self._update_current_progress_remaining(self.num_timesteps, total_timesteps)
                try:
                    self._iterate(worker)
                except _Stopped:
                    break
                if log_interval is not None and k % log_interval == 0:
                    self.dump_logs(k)
        callback.on_training_end()
        return self

    def predict(
        self, observation: Any, state: Any = None, episode_start: Any = None, deterministic: bool = False
    ) -> tuple[np.ndarray, Any]:
        """Give actions for observations, as Stable-Baselines3 does; random ones come from the algorithm's own seed."""
        if deterministic:
            return super().predict(observation, state, episode_start, deterministic)
        self._n_predictions += 1
        with _private_stream(self._stream(PREDICTION, self._n_predictions), self.device):
            return super().predict(observation, state, episode_start, deterministic)

    def set_random_seed(self, seed: int | None = None) -> None:
        """Start all streams anew from `seed`; unlike elsewhere in Stable-Baselines3, global generators stay alone."""
        if seed is None:
            return
        self.seed, self._root_seed = seed, child_seeds(seed, 1)[0]
        self.action_space.seed(seed)

    def save(self, path: Any, exclude: Any = None, include: Any = None) -> None:
        """Save policy, d_t, theta_{t-1}, counters and baseline, so that going on is as never having stopped."""
        self._frozen = [name for name, p in self.policy.named_parameters() if not p.requires_grad]
        super().save(path, exclude, include)

    def _get_torch_save_params(self) -> tuple[list[str], list[str]]:
        return ["policy"], ["_previous", "_direction", "_coefficients"]

    def dump_logs(self, iteration: int = 0) -> None:
        """Write the log of one iteration."""
        assert self.ep_info_buffer is not None
        if iteration > 0:
            self.logger.record("time/iterations", iteration, exclude="tensorboard")
        if self.ep_info_buffer:
            self.logger.record("rollout/ep_rew_mean", safe_mean([episode["r"] for episode in self.ep_info_buffer]))
            self.logger.record("rollout/ep_len_mean", safe_mean([episode["l"] for episode in self.ep_info_buffer]))
        self.logger.record("time/total_timesteps", self.num_timesteps, exclude="tensorboard")
        self.logger.dump(step=self.num_timesteps)

    # ------------------------------------------------------------------------------------------- the iteration

    def _step(self, state: State, rule: StepRule, worker: Worker) -> tuple[State, Numbers]:
        raise NotImplementedError

    def _iterate(self, worker: Worker) -> None:
        theta = flatten(p.detach() for p in actor_parameters(self.policy))
        t = self._n_updates
        rule = replace(self._rule, step=self.lr_schedule(self._current_progress_remaining))
        if not (math.isfinite(rule.step) and rule.step >= 0):
            raise value_error("learning_rate", "a schedule of finite numbers >= 0", rule.step)
        worker.begin(t)
        before = State(theta, self._previous, self._direction, t) if t > 0 else State.start(theta)
        state, numbers = self._step(before, rule, worker)
        write_parameters(self.policy, state.theta)
        self._previous, self._direction, self._n_updates = state.previous, state.direction, state.t
        if self.baseline is not None:
            self._coefficients = worker.baseline().fitted(worker.played, self.gamma).coefficients
        self.n_trajectories += worker.n_played
        numbers |= {"n_trajectories": self.n_trajectories, "n_updates": state.t}
        for name, value in numbers.items():
            self.logger.record(f"train/{name}", value)

    def _begin(self) -> None:
        p = sum(parameter.numel() for parameter in actor_parameters(self.policy))
        if self._n_updates > 0 and len(self._direction) != p:
            raise value_error(
                "policy", f"with the {len(self._direction)} trained parameters it had at the first iteration", p
            )

    def _trajectories_per_iteration(self) -> int:
        return self.trajectories_per_step

    def _horizon(self, total_timesteps: int) -> int:
        """Give the smallest H >= log(n + 1)/(1 - gamma), n = iterations that fit if episodes have H steps."""
        if self.horizon is not None:
            return self.horizon
        per_iteration = self._trajectories_per_iteration()
        planned = itertools.count(1)
        horizon = next(
            H for H in planned if H * (1 - self.gamma) >= math.log(total_timesteps / (per_iteration * H) + 1)
        )
        return min([horizon, *self._time_limits()])

    def _time_limits(self) -> list[int]:
        assert self.env is not None
        try:
            specs = self.env.get_attr("spec")
        except AttributeError:
            return []
        return [spec.max_episode_steps for spec in specs if spec is not None and spec.max_episode_steps]

    def _stream(self, *key: int) -> int:
        """Derive the seed of one stream of random numbers; what it is for and when is its key."""
        return int(
            np.random.SeedSequence(self._root_seed, spawn_key=key).generate_state(1, np.uint64)[0] >> np.uint64(1)
        )


class Worker:
    """The oracles of one call of `learn`: sample trajectories at a point, then average what they say."""

    def __init__(self, algorithm: VarianceReduced, sample: Rollouts, callback: BaseCallback, horizon: int) -> None:
        self.algorithm, self.sample, self.callback, self.horizon = algorithm, sample, callback, horizon
        self.policy: Any = copy.deepcopy(algorithm.policy)
        self.policy.set_training_mode(False)
        self.begin(algorithm.n_updates)

    def begin(self, t: int) -> None:
        """Begin iteration t."""
        self.t, self.n_played, self.played = t, 0, list[Trajectory]()

    def baseline(self) -> LinearBaseline:
        """Give the baseline that earlier iterations have fitted."""
        return LinearBaseline(self.algorithm._coefficients)

    def gradient(self, point: Tensor) -> Tensor:
        batch = self._batch(point, self.algorithm.trajectories_per_step)
        return self._estimate(mean_gradient, batch)

    def hvp(self, point: Tensor, vector: Tensor, n: int) -> Tensor:
        batch = self._batch(point, n)
        return self._estimate(lambda policy, part, *rest: mean_hvp(policy, part, vector, *rest), batch)

    def _estimate(self, estimator: Callable[..., Tensor], batch: list[Trajectory]) -> Tensor:
        rest = (self.algorithm.gamma, self.baseline() if self.algorithm.baseline else None)
        estimate = estimator(self.policy, batch, *rest)
        if not bool(torch.isfinite(estimate).all()):
            singles = (estimator(self.policy, [trajectory], *rest) for trajectory in batch)
            guilty = [k for k, single in enumerate(singles) if not bool(torch.isfinite(single).all())]
            first = self.n_played - len(batch)
            raise FloatingPointError(
                f"an estimate is not finite at iteration {self.t}, trajectory "
                f"{first + guilty[0] if guilty else f'{first} and following'}; try a smaller learning_rate"
            )
        return estimate

    def _batch(self, point: Tensor, n: int) -> list[Trajectory]:
        write_parameters(self.policy, point)
        n_envs, first = self.algorithm.n_envs, self.n_played
        rounds = [
            Round(
                self.horizon,
                min(n_envs, n - done),
                self.algorithm._stream(ROLLOUT, self.t, first + done, 0) >> 32,  # environments take 31 bits
                self.algorithm._stream(ROLLOUT, self.t, first + done, 1),
                self.t,
                first + done,
            )
            for done in range(0, n, n_envs)
        ]
        self.callback.on_rollout_start()
        batch = self.sample(self.policy, rounds, self._tell)
        self.callback.on_rollout_end()
        self.n_played += n
        if self.algorithm.baseline is not None:
            self.played += batch
        return batch

    def _tell(self, moment: Moment) -> None:
        algorithm = self.algorithm
        algorithm.num_timesteps += algorithm.n_envs
        live = np.flatnonzero(moment.live)
        algorithm._update_info_buffer([moment.infos[k] for k in live], moment.dones[live])
        rewards, dones, infos = moment.rewards, moment.dones, moment.infos
        self.callback.update_locals({"self": algorithm, "rewards": rewards, "dones": dones, "infos": infos})
        if not self.callback.on_step():
            raise _Stopped


def write_parameters(policy: torch.nn.Module, theta: Tensor) -> None:
    """Put a flat vector into the actor's parameters."""
    params = actor_parameters(policy)
    with torch.no_grad():
        for p, part in zip(params, unflatten(theta, params), strict=True):
            p.copy_(part)


@contextmanager
def _private_stream(seed: int, device: torch.device) -> Iterator[None]:
    """Let code that can only draw from torch's global generators draw from `seed`, and put them back after."""
    cuda = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=cuda):
        torch.default_generator.manual_seed(seed)
        if cuda:
            with torch.cuda.device(device):
                torch.cuda.manual_seed(seed)
        yield
