r"""Policy gradients that reach the optimum from few trajectories: N-PG-IGT and (N-)HARPG.   maximize J(theta)

    J(theta) = E sum_{h < H} gamma^h r_h,     pi_theta a Gaussian, softmax or Bernoulli policy

Each iteration samples one trajectory (N-PG-IGT) or two (HARPG), and moves along a running average of gradients that is
carried from one iterate to the next: see `_ascent` for the recursions, `_trajectories` for the estimators. There are
no importance weights, no replay and no inner loop; memory is a few vectors of p and one batch of trajectories.

Paper: fatkhullin2023stochastic.
Notation: gamma_0 = `learning_rate`, eta_0 = `momentum`, N = `trajectories_per_step`, H = `horizon`, t = `n_updates`.
Departures: (1) the published code's Hessian term multiplies the gradient of the negated mean log-probability with that
of the negated objective, which turns the sign of the outer product and divides it by the number of steps, and
multiplies batch means; here it is the unbiased estimator, and the mean of products. (2) The default horizon
``log(n + 1)/(1 - gamma)`` for n planned iterations makes the error of truncation O(1/n); ours. (3) Defaults for one
trajectory an iteration; the published runs take batches of 1000 to 5000 steps.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Unpack

from steepest.core.errors import at_least, boolean, check, optional
from steepest.policy._algorithm import SEGMENT, Common, VarianceReduced, Worker
from steepest.policy._ascent import (
    Numbers,
    State,
    StepRule,
    harpg_ascent,
    harpg_step,
    igt_ascent,
    igt_step,
    step_exponent_of,
)
from steepest.policy._trajectories import Trajectory, actor_parameters, trajectory_gradient, trajectory_hvp

__all__ = [
    "HARPG",
    "NPGIGT",
    "Trajectory",
    "actor_parameters",
    "harpg_ascent",
    "igt_ascent",
    "trajectory_gradient",
    "trajectory_hvp",
]


class NPGIGT(VarianceReduced):
    """Normalized policy gradient with implicit gradient transport, N-PG-IGT (fatkhullin2023stochastic).

    One trajectory an iteration, sampled at an extrapolated point, so that the average of old and new gradients is, to
    first order, the gradient at theta_t. The last iterate's gap falls as T^(-2/5) for policies whose Fisher matrix is
    bounded from below.

    Parameters
    ----------
    policy : str or class
        "MlpPolicy", "CnnPolicy", or an actor-critic policy class; only the actor is trained, the logarithm of the
        Gaussian's standard deviation included unless it is frozen.
    env : gymnasium.Env, VecEnv or str
        Box, Discrete, MultiDiscrete or MultiBinary actions. Episodes run side by side, one per environment and round:
        let `trajectories_per_step` be a multiple of their number, or some run for nothing.
    learning_rate : float or callable
        gamma_0 > 0: length of the first step in parameter space; a schedule of the remaining progress multiplies the
        decay (official code: tuned).
    gamma : float
        Discount in (0, 1); by default 0.99 (official code).
    horizon : int, optional
        H, steps after which an episode is cut; None plans ``log(n + 1)/(1 - gamma)`` for n iterations, within the
        environment's own limit.
    trajectories_per_step : int
        Averaged in each gradient; by default 1.
    momentum : float
        eta_0 in (0, 1].
    momentum_exponent, step_exponent : float
        Of ``2/(t+2)`` in eta_t (paper: 4/5) and in the step (paper: 1).
    normalize, transport : bool
        The two halves of the method. Without both, and with ``momentum_exponent=0``, it is the plain policy gradient
        (its schedule: ``step_exponent=2/3``); with `normalize` alone it is normalized momentum
        (``momentum_exponent=2/3``).
    baseline : None or "linear"
        Subtract a least squares fit of the return, made on earlier iterations, so that nothing is biased.
    collector : "serial" or "ray"
        Where episodes are played: in this process (default), or on Ray with copies of the environments, which must be
        picklable and keep nothing from one episode to the next. The same numbers either way.
    policy_kwargs, stats_window_size, tensorboard_log, verbose, device
        As in Stable-Baselines3.
    seed : int, optional
        Of initialization, actions and the resets of the environments; global generators stay alone. None draws fresh
        entropy, which is saved with the model.

    Attributes
    ----------
    num_timesteps, n_trajectories, n_updates : int
        All steps of all environments, trajectories used, iterations.

    Raises
    ------
    ValueError, TypeError
        An argument outside its limits.
    AssertionError
        An action space of another kind (Stable-Baselines3's error).
    ImportError
        Stable-Baselines3 is not installed; the text has the command.

    Notes
    -----
    Logged: ``train/direction_norm, gradient_norm, eta, step_size, n_trajectories``, ``rollout/ep_rew_mean``.

    Examples
    --------
    >>> model = NPGIGT("MlpPolicy", "CartPole-v1", learning_rate=0.5, horizon=50, seed=0).learn(500)
    >>> model.n_trajectories == model.n_updates
    True
    """

    def __init__(
        self,
        policy: Any,
        env: Any,
        learning_rate: float | Callable[[float], float] = 0.1,
        *,
        momentum: float = 1.0,
        momentum_exponent: float = 0.8,
        step_exponent: float = 1.0,
        normalize: bool = True,
        transport: bool = True,
        **common: Unpack[Common],
    ) -> None:
        check("transport", transport, boolean())
        rule = StepRule(1.0, momentum, momentum_exponent, step_exponent, normalize, transport)
        super().__init__(policy, env, learning_rate, rule, **common)

    def _step(self, state: State, rule: StepRule, worker: Worker) -> tuple[State, Numbers]:
        return igt_step(state, rule, worker.gradient)


class HARPG(VarianceReduced):
    """Hessian-aided recursive policy gradient, HARPG, and with `normalize` N-HARPG (fatkhullin2023stochastic).

    Two trajectories an iteration. The first gives a gradient at theta_t, the second, sampled at a uniform point of the
    last step's segment, a Hessian-vector product that carries the old direction to theta_t without bias. The last
    iterate's gap falls as T^(-1/2) for policies whose Fisher matrix is bounded from below.

    Parameters
    ----------
    policy, env, learning_rate, gamma, horizon, trajectories_per_step, momentum, baseline, collector, policy_kwargs
        As in `NPGIGT`. Layers must be twice differentiable.
    stats_window_size, tensorboard_log, verbose, seed, device
        As in `NPGIGT`.
    hessian_trajectories : int, optional
        Averaged in each Hessian-vector product; None means `trajectories_per_step`.
    momentum_exponent : float
        Of ``2/(t+2)`` in eta_t (paper: 1).
    step_exponent : float, optional
        Of ``2/(t+2)`` in the step; None is the paper's: 1/2, or 1 with `normalize`.
    normalize : bool
        Divide the direction by its norm. Without it `learning_rate` multiplies the gradient and wants to be smaller.

    Raises
    ------
    ValueError, TypeError, AssertionError, ImportError
        As in `NPGIGT`.

    Notes
    -----
    Logged: as in `NPGIGT`, and ``train/hvp_norm`` from the second iteration on.

    Examples
    --------
    >>> model = HARPG("MlpPolicy", "CartPole-v1", learning_rate=0.5, normalize=True, horizon=50, seed=0).learn(500)
    >>> model.n_trajectories == 2 * model.n_updates - 1
    True
    """

    def __init__(
        self,
        policy: Any,
        env: Any,
        learning_rate: float | Callable[[float], float] = 0.1,
        *,
        hessian_trajectories: int | None = None,
        momentum: float = 1.0,
        momentum_exponent: float = 1.0,
        step_exponent: float | None = None,
        normalize: bool = False,
        **common: Unpack[Common],
    ) -> None:
        check("hessian_trajectories", hessian_trajectories, optional(at_least(1, integer=True)))
        self.hessian_trajectories = hessian_trajectories
        exponent = step_exponent_of(step_exponent, normalize)
        rule = StepRule(1.0, momentum, momentum_exponent, exponent, normalize)
        super().__init__(policy, env, learning_rate, rule, **common)

    def _step(self, state: State, rule: StepRule, worker: Worker) -> tuple[State, Numbers]:
        n = self.hessian_trajectories or self.trajectories_per_step
        return harpg_step(
            state, rule, worker.gradient, lambda point, u: worker.hvp(point, u, n), lambda: self._uniform(state.t)
        )

    def _uniform(self, t: int) -> float:
        return self._stream(SEGMENT, t) / 2**63

    def _trajectories_per_iteration(self) -> int:
        return self.trajectories_per_step + (self.hessian_trajectories or self.trajectories_per_step)
