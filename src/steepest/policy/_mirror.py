r"""A step of mirror descent on probabilities: exactly on a simplex, and as a loss for distributions with parameters.

    pi_{k+1}(.|s) = argmax_pi  E_{a ~ pi} A(s, a) - KL(pi || pi_k) / t_k  =  pi_k exp(t_k A) / sum_a pi_k exp(t_k A)

A policy with parameters takes m gradient steps on the negated objective, with the expectation over pi written as one
over the sampled actions of pi_k with weights ``ratio = pi / pi_k``. At theta_k itself KL and its gradient are zero.

Paper: tomar2022mirror.
Notation: t_k = step size of mirror descent, 1/t_k = `kl_coef`, KL(new || old).
Departures: for Tsallis exponents q other than 1 the official code averages ``log_{2-q} pi - log_{2-q} pi_k`` over the
sampled actions without weights. As q tends to 1 that becomes *minus* KL(old || new), which rewards distance; with the
weights `ratio`, as here, it becomes KL(new || old).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Categorical, Independent, Normal

from steepest.core.errors import check, interval, kind_error, positive, value_error

__all__ = [
    "STEP_SCHEDULES",
    "TSALLIS",
    "Distribution",
    "check_finite_loss",
    "check_fixed_entropy",
    "check_rate",
    "kl",
    "log_ratio",
    "mdpo_policy_loss",
    "mirror_step",
    "rows",
    "step_size",
    "tsallis_log",
    "weighted_likelihood_loss",
]

Distribution = Any
"""An `Independent` or a `Normal` with the actions last, a `Categorical`, or a sequence of these, one for each part."""

TSALLIS = interval(0, 2, low_open=True)
LARGEST_LOG_RATIO = 20.0
SMALLEST_STEP = 1e-3
STEP_SCHEDULES = ("linear", "constant", "sqrt")


def mirror_step(log_probs_old: Tensor, advantages: Tensor, t: float | Tensor) -> Tensor:
    """Make the exact step of mirror descent with KL, ``log pi_{k+1} = log pi_k + t A - log sum exp(...)``.

    Parameters
    ----------
    log_probs_old : Tensor of shape (*states, n_actions)
        Logarithms of probabilities that sum to one over the last axis; minus infinity for excluded actions.
    advantages : Tensor of shape (*states, n_actions)
        Finite; a constant added to all actions of a state changes nothing.
    t : float or Tensor
        Step size t_k > 0; larger moves further.

    Returns
    -------
    Tensor of shape (*states, n_actions)
        Logarithms of the new probabilities.

    Raises
    ------
    TypeError
        Not tensors of floating-point numbers.
    ValueError
        Shapes or dtypes differ, `t` is not positive, or an advantage is not finite.

    Examples
    --------
    >>> mirror_step(torch.tensor([0.5, 0.5]).log(), torch.tensor([math.log(3.0), 0.0]), 1.0).exp()
    tensor([0.7500, 0.2500])
    """
    for name, value in (("log_probs_old", log_probs_old), ("advantages", advantages)):
        if not isinstance(value, Tensor) or not value.is_floating_point():
            raise kind_error(name, "a tensor of floating-point numbers", value)
    if advantages.shape != log_probs_old.shape or advantages.dtype != log_probs_old.dtype:
        raise value_error("advantages", f"of log_probs_old's shape {tuple(log_probs_old.shape)} and dtype", advantages)
    if not bool(torch.isfinite(advantages).all()):
        raise value_error("advantages", "finite", advantages)
    if isinstance(t, Tensor):
        if not bool((t > 0).all()):
            raise value_error("t", "> 0", t)
    else:
        check("t", t, positive())
    return torch.log_softmax(log_probs_old + t * advantages, dim=-1)


def mdpo_policy_loss(
    distribution: Distribution,
    old_distribution: Distribution,
    log_prob: Tensor,
    old_log_prob: Tensor,
    advantages: Tensor,
    kl_coef: float,
    tsallis_q: float = 1.0,
) -> tuple[Tensor, Tensor]:
    """Give the loss whose gradient steps approximate one step of mirror descent.

    ``-mean(ratio A) + kl_coef mean KL(pi || pi_k)``, without clipping of the ratio.

    Parameters
    ----------
    distribution, old_distribution : torch.distributions.Distribution
        pi and pi_k for a batch of n states: `Categorical`, `Independent`, or `Normal` with an action axis that is
        summed over; a sequence of `Categorical` for several discrete actions at once.
    log_prob, old_log_prob : Tensor of shape (n,)
        Of the actions that were sampled from pi_k.
    advantages : Tensor of shape (n,)
    kl_coef : float
        1/t_k > 0.
    tsallis_q : float
        In (0, 2]. By default 1, KL in closed form; otherwise the weighted mean over the sampled actions of
        ``log_{2-q} pi - log_{2-q} pi_k`` stands in its place.

    Returns
    -------
    loss : Tensor, a scalar
    kl_mean : Tensor, a scalar
        Mean of KL(pi || pi_k) in closed form, whatever `tsallis_q`.

    Raises
    ------
    ValueError, TypeError
        `kl_coef` or `tsallis_q` outside its limits, shapes that differ, distributions of another kind.

    Examples
    --------
    >>> old = Categorical(logits=torch.zeros(2, 3))
    >>> a, A = torch.tensor([0, 2]), torch.tensor([1.0, -1.0])
    >>> loss, kl_mean = mdpo_policy_loss(old, old, old.log_prob(a), old.log_prob(a), A, kl_coef=1.0)
    >>> loss.item(), kl_mean.item()
    (0.0, 0.0)
    """
    check("kl_coef", kl_coef, positive())
    check("tsallis_q", tsallis_q, TSALLIS)
    for name, value in (("old_log_prob", old_log_prob), ("advantages", advantages)):
        if value.shape != log_prob.shape:
            raise value_error(name, f"of log_prob's shape {tuple(log_prob.shape)}", value)
    ratio = log_ratio(log_prob, old_log_prob).exp()
    kl_mean = kl(distribution, old_distribution).mean()
    proximity = kl_mean
    if tsallis_q != 1:
        distance = tsallis_log(log_prob, 2 - tsallis_q) - tsallis_log(old_log_prob, 2 - tsallis_q)
        proximity = (ratio * distance).mean()
    return -(ratio * advantages).mean() + kl_coef * proximity, kl_mean


def weighted_likelihood_loss(log_prob: Tensor, advantages: Tensor, t: float) -> Tensor:
    """Fit the exact step instead: ``-sum w log pi``, ``w = exp(t A)`` over its sum (of the n sampled actions)."""
    return -(torch.softmax(t * advantages, dim=0) * log_prob).sum()


def log_ratio(log_prob: Tensor, old_log_prob: Tensor) -> Tensor:
    """Give log(pi / pi_k), at most 20: beyond, a single action would outweigh every batch."""
    return (log_prob - old_log_prob).clamp(max=LARGEST_LOG_RATIO)


def kl(new: Distribution, old: Distribution) -> Tensor:
    """KL(new || old) in closed form, one number for each state.

    Categorical ones are compared by their logarithms, so that a probability that underflows is not an infinity.
    """
    if isinstance(new, Independent) and isinstance(old, Independent):
        new, old = new.base_dist, old.base_dist
    if isinstance(new, Normal) and isinstance(old, Normal):
        return torch.distributions.kl_divergence(new, old).sum(-1)
    if isinstance(new, Categorical) and isinstance(old, Categorical):
        return (new.probs * (new.logits - old.logits)).sum(-1)
    if isinstance(new, Sequence) and isinstance(old, Sequence) and len(new) == len(old) > 0:
        return torch.stack([kl(a, b) for a, b in zip(new, old, strict=True)]).sum(0)
    raise kind_error("distribution", "Normal, Independent of Normal, or Categorical, as old_distribution", new)


def rows(distribution: Distribution, index: Tensor) -> Distribution:
    """Give the distributions of some of the states."""
    if isinstance(distribution, Normal):
        return Normal(distribution.loc[index], distribution.scale[index])
    if isinstance(distribution, Categorical):
        return Categorical(logits=distribution.logits[index])
    return [rows(part, index) for part in distribution]


def tsallis_log(log_x: Tensor, q: float) -> Tensor:
    """Give ``log_q x = (x^(1-q) - 1) / (1 - q)`` from the logarithm of x; at q = 1 that is it."""
    return log_x if q == 1 else torch.expm1((1 - q) * log_x) / (1 - q)


def step_size(schedule: str | Callable[[float], float], k: int, n: int) -> float:
    """Give t_k of iteration k out of n, at least 1e-3 so that 1/t_k is finite."""
    if callable(schedule):
        t = float(schedule(k / n))
        if not math.isfinite(t):
            raise value_error("step_schedule", "a callable that gives finite numbers", t)
    else:
        t = {"linear": 1 - k / n, "constant": 1.0, "sqrt": 1 / math.sqrt(k + 1)}[schedule]
    return max(t, SMALLEST_STEP)


def check_fixed_entropy(ent_coef: object) -> None:
    if isinstance(ent_coef, str):
        cure = "its weight is fixed in this method: no temperature is learned"
        raise value_error("ent_coef", "a number >= 0", ent_coef, cure)


def check_rate(learning_rate: object) -> None:
    if not callable(learning_rate):
        check("learning_rate", learning_rate, positive())


def check_finite_loss(value: float, what: str, n: int) -> None:
    if not math.isfinite(value):
        raise FloatingPointError(
            f"the {what}{'' if what.endswith('gradient') else ' loss'} is {value} at update {n}, and no step was made: "
            "look for rewards or observations that are not finite, or try a smaller learning_rate"
        )
