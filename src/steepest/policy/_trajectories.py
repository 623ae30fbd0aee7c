r"""What one trajectory says about the gradient and the Hessian of the discounted return, without bias.

    Phi(tau, theta) = sum_t log pi_theta(a_t | s_t) (sum_{h >= t} gamma^h r_h - gamma^t b(s_t))
    g(tau, theta) = grad Phi
    B(tau, theta) u = grad Phi <grad log p(tau | theta), u> + grad <grad Phi, u>
    log p(tau | theta) = sum_t log pi_theta(a_t | s_t) + what does not depend on theta

gamma^h counts from the start of the episode. Both are unbiased for the return J of the same number of steps, whatever
the baseline b that does not depend on tau.

Paper: fatkhullin2023stochastic.
Departures: B u takes two backward passes in place of three. The weights of the log-probabilities in Phi are a
variable w as well, and ``<grad Phi, u>`` is linear in it: its derivative in w is ``<grad log pi(a_t | s_t), u>``.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from scipy.signal import lfilter
from torch import Tensor, nn

from steepest.core.errors import check, interval, kind_error, value_error
from steepest.curvature.autodiff import backward, gradient_graph
from steepest.curvature.products import split_vector
from steepest.curvature.vectors import check_parameters, flatten

__all__ = [
    "GAMMA",
    "LinearBaseline",
    "Trajectory",
    "actor_parameters",
    "mean_gradient",
    "mean_hvp",
    "trajectory_gradient",
    "trajectory_hvp",
]

Baseline = Callable[[Tensor], Tensor] | None
GAMMA = interval(0, 1, low_open=True, high_open=True)
VALUE_ONLY = ("value_net.", "mlp_extractor.value_net.", "vf_features_extractor.")
"""Where Stable-Baselines3's actor-critic policies keep what only the critic uses."""


@dataclass(frozen=True)
class Trajectory:
    """One episode, from its first observation on.

    Attributes
    ----------
    observations : Tensor of shape (T, *obs)
        ``observations[t]`` is what the policy saw before it took ``actions[t]``.
    actions : Tensor of shape (T, *act)
        As drawn from the policy, before any clipping.
    rewards : Tensor of shape (T,)
        ``rewards[t]`` follows ``actions[t]``.
    """

    observations: Tensor
    actions: Tensor
    rewards: Tensor

    def __len__(self) -> int:
        return len(self.rewards)


def actor_parameters(policy: nn.Module) -> list[nn.Parameter]:
    """List the parameters that the action probabilities depend on, in the order of the flat vectors.

    Parameters
    ----------
    policy : torch.nn.Module
        Of Stable-Baselines3's actor-critic kind, or any with `get_distribution`.

    Returns
    -------
    list of Parameter
        In the order of ``policy.named_parameters()``, without the value function's and without those that are frozen
        (``requires_grad`` False).

    Examples
    --------
    >>> policy = nn.ModuleDict({"action_net": nn.Linear(2, 1), "value_net": nn.Linear(2, 1)})
    >>> [tuple(p.shape) for p in actor_parameters(policy)]
    [(1, 2), (1,)]
    """
    if not isinstance(policy, nn.Module):
        raise kind_error("policy", "a torch.nn.Module", policy)
    named = policy.named_parameters()
    return [p for name, p in named if p.requires_grad and not name.startswith(VALUE_ONLY)]


def trajectory_gradient(
    policy: Any, trajectory: Trajectory, gamma: float = 0.99, baseline: Baseline = None
) -> Tensor:  # (p,)
    """Estimate the gradient of the discounted return from one trajectory (GPOMDP), ``grad Phi``.

    Parameters
    ----------
    policy : torch.nn.Module
        With ``get_distribution(observations)``, whose ``log_prob(actions)`` has shape (T,): Stable-Baselines3's
        actor-critic policies are so. It is put into evaluation mode meanwhile (no dropout).
    trajectory : Trajectory
        Sampled from the policy as it is now.
    gamma : float
        Discount in (0, 1).
    baseline : callable (observations) -> Tensor of shape (T,), optional
        An estimate of the discounted reward to come; it must not have seen the trajectory.

    Returns
    -------
    Tensor of shape (p,)
        In the order of `actor_parameters`.

    Raises
    ------
    ValueError
        `gamma` outside (0, 1), an empty trajectory or one with unequal lengths, a policy without parameters.

    Examples
    --------
    >>> class Coin(nn.Module):
    ...     def __init__(self):
    ...         super().__init__()
    ...         self.logit = nn.Parameter(torch.zeros(1))
    ...     def get_distribution(self, observations):
    ...         return torch.distributions.Bernoulli(logits=self.logit.expand(len(observations)))
    >>> once = Trajectory(torch.zeros(1, 1), torch.ones(1), torch.ones(1))
    >>> trajectory_gradient(Coin(), once).tolist()          # r grad log pi = 1 - 1/2
    [0.5]
    """
    return mean_gradient(policy, [trajectory], gamma, baseline)


def trajectory_hvp(
    policy: Any, trajectory: Trajectory, vector: Tensor, gamma: float = 0.99, baseline: Baseline = None
) -> Tensor:  # (p,)
    """Estimate the product of the return's Hessian with a vector from one trajectory, without the Hessian.

    Parameters
    ----------
    policy, trajectory, gamma, baseline
        As in `trajectory_gradient`; the policy must be twice differentiable.
    vector : Tensor of shape (p,)
        In the order of `actor_parameters`.

    Returns
    -------
    Tensor of shape (p,)

    Raises
    ------
    ValueError
        As `trajectory_gradient`; `vector` of the wrong length or dtype.
    TypeError
        `vector` is no tensor.

    Examples
    --------
    >>> class Coin(nn.Module):
    ...     def __init__(self):
    ...         super().__init__()
    ...         self.logit = nn.Parameter(torch.zeros(1))
    ...     def get_distribution(self, observations):
    ...         return torch.distributions.Bernoulli(logits=self.logit.expand(len(observations)))
    >>> once = Trajectory(torch.zeros(1, 1), torch.ones(1), torch.ones(1))
    >>> trajectory_hvp(Coin(), once, torch.ones(1)).tolist()          # (1/2)^2 - 1/4: the return is a sigmoid at 0
    [0.0]
    """
    if not isinstance(vector, Tensor):
        raise kind_error("vector", "a tensor", vector)
    return mean_hvp(policy, [trajectory], vector, gamma, baseline)


def mean_gradient(policy: Any, batch: Sequence[Trajectory], gamma: float, baseline: Baseline = None) -> Tensor:
    """Average `trajectory_gradient` over a batch, in one pass."""
    params = check_parameters(actor_parameters(policy), "the actor's parameters")
    with _evaluating(policy), torch.enable_grad():
        log_prob, w = _log_probabilities(policy, batch), _weights(batch, gamma, baseline)
        g = backward((w.to(log_prob) * log_prob).sum() / len(batch), params)
    return _flat(g, params)


def mean_hvp(
    policy: Any, batch: Sequence[Trajectory], vector: Tensor, gamma: float, baseline: Baseline = None
) -> Tensor:
    """Average `trajectory_hvp` over a batch: the mean of the products, in two passes for one trajectory, else three."""
    params = check_parameters(actor_parameters(policy), "the actor's parameters")
    u = split_vector(vector, params, "vector")
    single = len(batch) == 1
    with _evaluating(policy), torch.enable_grad():
        log_prob = _log_probabilities(policy, batch)
        w = _weights(batch, gamma, baseline).to(log_prob).requires_grad_()
        grad_phi = gradient_graph((w * log_prob).sum(), params)
        used = [(g_i, u_i) for g_i, u_i in zip(grad_phi, u, strict=True) if g_i is not None]
        outputs, weights = zip(*used, strict=True)
        *curved, along = backward(outputs, [*params, w], weights, retain_graph=not single)
        assert along is not None  # grad Phi is linear in w
        scores = [part.sum() for part in along.split([len(trajectory) for trajectory in batch])]  # <grad log p, u>
        if single:
            return torch.addcmul(_flat(curved, params), scores[0].detach(), _flat(grad_phi, params))
        s = torch.cat([score.expand(len(trajectory)) for score, trajectory in zip(scores, batch, strict=True)])
        outer = backward((s * w.detach() * log_prob).sum(), params)
    return (_flat(outer, params) + _flat(curved, params)) / len(batch)


class LinearBaseline:
    """Least squares of the discounted reward to come on polynomial features of observation and time.

    Features: s, s^2, t/100, (t/100)^2, (t/100)^3, 1; ridge 1e-5 (official experiments). Zero until it is fitted.

    Parameters
    ----------
    coefficients : Tensor of shape (2 n + 4,), float64
        Empty for a baseline that has seen nothing.
    """

    RIDGE = 1e-5

    def __init__(self, coefficients: Tensor) -> None:
        self.coefficients = coefficients

    def __call__(self, observations: Tensor) -> Tensor:  # (T,)
        if len(self.coefficients) == 0:
            return torch.zeros(len(observations), dtype=torch.float64, device=observations.device)
        return self._features(observations) @ self.coefficients

    def fitted(self, batch: Sequence[Trajectory], gamma: float) -> LinearBaseline:
        """Return the baseline that fits these trajectories."""
        X = torch.cat([self._features(trajectory.observations) for trajectory in batch])
        y = torch.cat([_return_to_come(trajectory, gamma) for trajectory in batch])
        normal = X.T @ X + self.RIDGE * torch.eye(X.shape[1], dtype=X.dtype, device=X.device)
        return LinearBaseline(torch.linalg.solve(normal, X.T @ y))

    @staticmethod
    def _features(observations: Tensor) -> Tensor:  # (T, 2 n + 4)
        s = observations.reshape(len(observations), -1).double()
        t = torch.arange(len(s), dtype=s.dtype, device=s.device).unsqueeze(1) / 100
        return torch.cat([s, s**2, t, t**2, t**3, torch.ones_like(t)], 1)


def _log_probabilities(policy: Any, batch: Sequence[Trajectory]) -> Tensor:  # (sum of T,)
    for trajectory in batch:
        T = len(trajectory.rewards)
        if trajectory.rewards.ndim != 1 or T == 0:
            raise value_error("trajectory.rewards", "of shape (T,) with T >= 1", trajectory.rewards)
        for name in ("observations", "actions"):
            if len(getattr(trajectory, name)) != T:
                raise value_error(f"trajectory.{name}", f"of length {T}, as rewards are", getattr(trajectory, name))
    observations = torch.cat([trajectory.observations for trajectory in batch])
    actions = torch.cat([trajectory.actions for trajectory in batch])
    log_prob = policy.get_distribution(observations).log_prob(actions)
    if log_prob.shape != (len(observations),):
        raise value_error("the policy's log_prob", f"of shape {(len(observations),)}", log_prob)
    return log_prob


def _weights(batch: Sequence[Trajectory], gamma: float, baseline: Baseline) -> Tensor:  # (sum of T,), float64
    check("gamma", gamma, GAMMA)
    parts = []
    for trajectory in batch:
        w = _reward_to_come(trajectory, gamma)
        if baseline is not None:
            with torch.no_grad():
                b = baseline(trajectory.observations)
            if b.shape != w.shape:
                raise value_error("the output of baseline", f"of shape {tuple(w.shape)}", b)
            w = w - _discounts(trajectory, gamma) * b.to(w)
        parts.append(w)
    return torch.cat(parts)


def _discounts(trajectory: Trajectory, gamma: float) -> Tensor:  # (T,): gamma^t
    rewards = trajectory.rewards
    return gamma ** torch.arange(len(rewards), dtype=torch.float64, device=rewards.device)


def _reward_to_come(trajectory: Trajectory, gamma: float) -> Tensor:  # (T,): sum_{h >= t} gamma^h r_h
    return (_discounts(trajectory, gamma) * trajectory.rewards.double()).flip(0).cumsum(0).flip(0)


def _return_to_come(trajectory: Trajectory, gamma: float) -> Tensor:  # (T,): sum_{h >= t} gamma^(h - t) r_h
    backwards = trajectory.rewards.double().cpu().flip(0).numpy()
    returns = lfilter([1.0], [1.0, -gamma], backwards)  # the quotient by gamma^t would underflow
    return torch.as_tensor(returns, device=trajectory.rewards.device).flip(0)


def _flat(parts: Sequence[Tensor | None], params: Sequence[Tensor]) -> Tensor:  # (p,)
    return flatten(torch.zeros_like(p) if x is None else x.detach() for x, p in zip(parts, params, strict=True))


@contextlib.contextmanager
def _evaluating(policy: nn.Module) -> Iterator[None]:
    training = [module for module in policy.modules() if module.training]
    for module in training:
        module.training = False
    try:
        yield
    finally:
        for module in training:
            module.training = True
