"""What a rule really minimises: expected weights before a run, applied ones after it."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from steepest.core.errors import at_least, check, kind_error, one_of, optional, positive, value_error
from steepest.federated._buffer_schedule import buffer_frequencies
from steepest.federated._speeds import Speeds
from steepest.federated.engine import FunctionClient, Reply
from steepest.federated.server import AsyncFedAvg, AveragingRule, FedAvg, FedBuff, FedFix
from steepest.federated.simulation import SimulatedEngine

__all__ = ["WeightReport", "expected_weights", "schedule", "weight_report"]


def _importance(importance: Any, n: int) -> np.ndarray:
    if isinstance(importance, str):
        check("importance", importance, one_of("uniform"))
        return np.full(n, 1 / n)
    p = np.asarray(importance, float)
    if p.shape != (n,) or not np.isfinite(p).all() or (p < 0).any() or p.sum() <= 0:
        raise value_error("importance", f"{n} finite numbers >= 0, not all zero", importance)
    return p / p.sum()


def expected_weights(
    rule: AveragingRule,
    times: Any,
    importance: Any,
    *,
    law: Literal["constant", "exponential", "lognormal"] = "constant",
    sigma: float = 0.5,
) -> np.ndarray:
    """The importance that each client's loss has in the surrogate which `rule` minimises.

    Parameters
    ----------
    rule : FedAvg, AsyncFedAvg, FedBuff or FedFix
        Not run and not changed; its staleness factor is left out.
    times : array_like of shape (n_clients,)
        Mean seconds per task.
    importance : array_like of shape (n_clients,) or "uniform"
        p.
    law, sigma
        Law of the times, as in `Speeds`.

    Returns
    -------
    ndarray of shape (n_clients,)
        qt, which sums to 1; equal to p where the rule is unbiased (condition (i) of Fraboni et al.
        [fraboni2022general]). In closed form, but for `FedBuff` with ``restart="aggregation"``, whose schedule is
        played through.

    Examples
    --------
    >>> times = [1.0, 0.25]
    >>> expected_weights(AsyncFedAvg(weights="identical"), times, "uniform").tolist()
    [0.2, 0.8]
    >>> expected_weights(AsyncFedAvg(), times, "uniform").tolist()
    [0.5, 0.5]
    """
    if not isinstance(rule, AveragingRule):
        raise kind_error("rule", "FedAvg, AsyncFedAvg, FedBuff or FedFix", rule)
    speeds = Speeds(times, law, sigma)
    p = _importance(importance, len(speeds))
    made = copy.copy(rule)
    made.importance, made.times = p, "expected"
    if isinstance(made, FedBuff):
        made.contributions = np.zeros(len(p))
    made.start([speeds.info(k, 1) for k in range(len(p))], {}, seed=0)
    participation = made.participation()
    if isinstance(made, FedBuff) and law != "constant":
        numbers = dict.fromkeys(range(len(p)), 0)

        def draw(k: int) -> float:
            numbers[k] += 1
            return speeds.duration(0, k, numbers[k])

        participation = buffer_frequencies(speeds.mean, made.size, made.restart, draw)
        if isinstance(rule.weights, str) and rule.weights == "unbiased":
            return p  # what the observed frequencies, on which d rests, tend to
    q = made.weights_ * participation
    return q / q.sum()


@dataclass(frozen=True)
class WeightReport:
    """The weights that a run really applied.

    Attributes
    ----------
    importance : ndarray of shape (n_clients,)
        p.
    q : ndarray of shape (n_clients,)
        Mean applied weight per aggregation.
    q_normalised : ndarray of shape (n_clients,)
        qt, which sums to 1.
    chi2 : float
        ``sum (p - qt)^2 / qt``, which governs the bias; infinite if a client with importance never took part.
    chi2_importance : float
        The same with p in the denominator.
    max_abs_bias : float
        ``max |qt - p|``.
    window_bias : ndarray of shape (n_windows, n_clients)
        qt - p over each run of `window` consecutive aggregations (condition (ii), for cyclic schedules).
    """

    importance: np.ndarray
    q: np.ndarray
    q_normalised: np.ndarray
    chi2: float
    chi2_importance: float
    max_abs_bias: float
    window_bias: np.ndarray

    def unbiased(self, rtol: float = 0.05) -> bool:
        """Whether each qt is within `rtol` of its p, relatively; in every window, where one was given."""
        limit = rtol * self.importance
        return bool((np.abs(self.q_normalised - self.importance) <= limit).all()) and bool(
            (np.abs(self.window_bias) <= limit).all()
        )


def weight_report(result: Any, importance: Any, *, window: int | None = None) -> WeightReport:
    """Compare the weights that a run applied with the importance that was meant.

    Parameters
    ----------
    result : FederatedResult
        Of a run that recorded its aggregations; dropped clients are reported as they took part.
    importance : array_like of shape (n_clients,) or "uniform"
    window : int, optional
        Check condition (ii) over windows of so many aggregations.

    Raises
    ------
    ValueError
        No aggregation was recorded, or fewer than one window.
    """
    check("window", window, optional(at_least(1, integer=True)))
    rows = result.aggregations
    if not rows:
        raise value_error("result", 'a run with record=("aggregations",) and at least one aggregation', "none")
    applied = np.zeros((len(rows), len(result.idle)))
    for row, at in zip(applied, rows, strict=True):
        np.add.at(row, list(at["clients"]), list(at["weights"]))
    p = _importance(importance, applied.shape[1])
    q = applied.mean(0)
    qt = q / q.sum()
    bias = np.zeros((0, len(p)))
    if window is not None:
        if len(rows) < window:
            raise value_error("window", f"at most the number of aggregations ({len(rows)})", window)
        sums = applied[: len(rows) // window * window].reshape(-1, window, len(p)).sum(1)
        bias = sums / sums.sum(1, keepdims=True) - p
    return WeightReport(p, q, qt, _chi2(p, qt, qt), _chi2(p, qt, p), float(np.abs(qt - p).max()), bias)


def _chi2(p: np.ndarray, qt: np.ndarray, over: np.ndarray) -> float:
    gap = (p - qt) ** 2
    safe = np.where(over > 0, over, 1.0)
    return float(np.sum(np.where(over > 0, gap / safe, np.where(gap > 0, np.inf, 0.0))))


def schedule(
    rule_name: Literal["FedAvg", "AsyncFedAvg", "FedBuff", "FedFix"],
    times: Sequence[float] | np.ndarray,
    until: float,
    *,
    window: float | None = None,
    buffer_size: int | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """When a rule aggregates, and who takes part with which version of the model.

    Parameters
    ----------
    rule_name : "FedAvg", "AsyncFedAvg", "FedBuff" or "FedFix"
    times : array_like of shape (n_clients,)
        Constant seconds per task.
    until : float
        Seconds.
    window, buffer_size
        Of `FedFix` and `FedBuff`.

    Returns
    -------
    step_times : ndarray of shape (n_steps,)
        Seconds of the aggregations.
    participation : ndarray of int of shape (n_steps, n_clients)
        Version of the model that a client's contribution started from, -1 where it has none.

    Examples
    --------
    >>> schedule("FedFix", [1.0, 0.5], 2.0, window=0.5)
    (array([0.5, 1. , 1.5, 2. ]), array([[-1,  0],
           [ 0,  1],
           [-1,  2],
           [ 2,  3]]))
    """
    check("rule_name", rule_name, one_of("FedAvg", "AsyncFedAvg", "FedBuff", "FedFix"))
    check("until", until, positive())
    rule: AveragingRule
    if rule_name == "FedFix":
        if window is None:
            raise value_error("window", "given for FedFix", None)
        rule = FedFix(window)
    elif rule_name == "FedBuff":
        rule = FedBuff() if buffer_size is None else FedBuff(buffer_size)
    else:
        rule = {"FedAvg": FedAvg, "AsyncFedAvg": AsyncFedAvg}[rule_name]()
    n = len(times)
    nothing = FunctionClient(lambda model, task: Reply({}))
    engine = SimulatedEngine([nothing] * n, speeds=times, record=("aggregations",))
    rows = engine.run(rule, {}, until=until).aggregations
    participation = np.full((len(rows), n), -1)
    for line, row in zip(participation, rows, strict=True):
        line[row["clients"]] = row["version"] - 1 - np.array(row["staleness"])
    return np.array([row["time"] for row in rows]), participation
