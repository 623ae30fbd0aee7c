"""How long simulated clients take, and how they fail."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from scipy.special import ndtr

from steepest.core.errors import check, interval, kind_error, nonnegative, one_of, positive, value_error
from steepest.federated._seeds import ESTIMATES, FAILURES, SPEEDS, stream
from steepest.federated.engine import ClientInfo

__all__ = ["NANOSECONDS", "FailureModel", "Injected", "Speeds", "as_speeds", "linear_speeds", "mean_ticks", "to_ns"]

NANOSECONDS = 1_000_000_000
Law = Literal["constant", "exponential", "lognormal"]
DurationFunction = Callable[[int, int, np.random.Generator], float]

_ESTIMATES = 256


def to_ns(seconds: float) -> int:
    """Whole nanoseconds, the simulated clock's unit."""
    return round(seconds * NANOSECONDS)


class Speeds:
    """Seconds per task of each client.

    Parameters
    ----------
    mean : array_like of shape (n_clients,)
        Mean seconds per task.
    law : "constant", "exponential" or "lognormal"
        How a task's time varies around the mean, which every law keeps.
    sigma : float
        Standard deviation of the logarithm under the lognormal law.

    Raises
    ------
    ValueError
        A mean that is not positive and finite, an unknown law, a negative sigma.

    Examples
    --------
    >>> Speeds([1.0, 0.5], law="exponential").info(0, n_samples=10).expected_time
    1.0
    """

    def __init__(self, mean: Any, law: Law = "constant", sigma: float = 0.5) -> None:
        check("law", law, one_of("constant", "exponential", "lognormal"))
        check("sigma", sigma, nonnegative())
        self.mean = np.asarray(mean, dtype=float)
        if self.mean.ndim != 1 or not np.all((self.mean > 0) & np.isfinite(self.mean)):
            raise value_error("speeds", "a list of positive, finite seconds, one per client", self.mean.tolist())
        self.law, self.sigma = law, sigma

    def __len__(self) -> int:
        return len(self.mean)

    def duration(self, seed: int, client: int, number: int) -> float:
        """Seconds of a client's task `number`."""
        mean = float(self.mean[client])
        if self.law == "constant":
            return mean
        rng = stream(seed, SPEEDS, client, number)
        if self.law == "exponential":
            return float(rng.exponential(mean))
        return float(mean * math.exp(self.sigma * rng.standard_normal() - self.sigma**2 / 2))

    def info(self, client: int, n_samples: int, seed: int = 0) -> ClientInfo:
        """What a rule is told of the client."""
        sigma = self.sigma if self.law == "lognormal" else 0.0
        return ClientInfo(client, n_samples, float(self.mean[client]), self.law, sigma)


@dataclass(frozen=True)
class _Drawn:
    """Times by a function ``(client, number, rng) -> seconds``; what a rule is told of them is estimated by draws."""

    function: DurationFunction
    n: int

    def __len__(self) -> int:
        return self.n

    def duration(self, seed: int, client: int, number: int) -> float:
        return self._checked(self.function(client, number, stream(seed, SPEEDS, client, number)), client)

    def info(self, client: int, n_samples: int, seed: int = 0) -> ClientInfo:
        rng = stream(seed, ESTIMATES, client)
        draws = [self._checked(self.function(client, k, rng), client) for k in range(_ESTIMATES)]
        finite = tuple(d for d in draws if math.isfinite(d))
        return ClientInfo(client, n_samples, float(np.mean(finite)) if finite else math.inf, "drawn", 0.0, finite)

    @staticmethod
    def _checked(seconds: float, client: int) -> float:
        if not seconds > 0:
            raise value_error("speeds", f"a function that returns positive seconds (client {client})", seconds)
        return float(seconds)


def as_speeds(speeds: Any, n_clients: int, name: str = "speeds") -> Speeds | _Drawn:
    """Read the argument: None (one second each), `Speeds`, an array of means, or a function."""
    if speeds is None:
        return Speeds(np.ones(n_clients))
    if callable(speeds):
        return _Drawn(speeds, n_clients)
    read = speeds if isinstance(speeds, Speeds) else Speeds(speeds)
    if len(read) != n_clients:
        raise value_error(name, f"one per client ({n_clients})", f"{len(read)} values")
    return read


def linear_speeds(n: int, slowest: float = 1.0, spread: float = 0.8) -> np.ndarray:
    """Mean times that fall evenly from `slowest` (client 0) to ``slowest * (1 - spread)``.

    ``spread=0.8`` is the setting F-80 of Fraboni et al. [fraboni2022general].

    Raises
    ------
    ValueError
        ``n < 1``, `slowest` not positive, `spread` outside [0, 1).

    Examples
    --------
    >>> linear_speeds(5).round(2).tolist()
    [1.0, 0.8, 0.6, 0.4, 0.2]
    """
    check("n", n, interval(1, integer=True))
    check("slowest", slowest, positive())
    check("spread", spread, interval(0, 1, high_open=True))
    return slowest * (1 - np.arange(n) * spread / max(n - 1, 1))


def mean_ticks(info: ClientInfo, window: float, time: float | None = None) -> float:
    """Expected number of windows that a task of the client fills: E[ceil(T / window)].

    `time` replaces the mean of the times. In closed form for times that are constant, exponential (``1 / (1 -
    exp(-window / tau))``) or lognormal (a sum of tail probabilities), else over the draws.
    """
    mean = time if time is not None else info.expected_time
    assert mean is not None
    if math.isinf(mean):
        return math.inf
    if info.law == "exponential":
        return -1 / math.expm1(-window / mean)
    if info.law == "lognormal" and info.sigma > 0:
        location = math.log(mean) - info.sigma**2 / 2
        last = math.ceil(math.exp(location + 9 * info.sigma) / window)
        k = np.unique(np.round(np.geomspace(1, max(last, 1), 20_000))) if last > 20_000 else np.arange(1.0, last + 1)
        tails = ndtr((location - np.log(k * window)) / info.sigma)  # P(T > k window)
        return 1 + float(np.sum(tails * np.diff(k, append=k[-1] + 1)))
    step = max(to_ns(window), 1)
    if info.law == "drawn" and info.draws and time is None:
        return float(np.mean([-(-to_ns(d) // step) for d in info.draws]))
    return float(-(-max(to_ns(mean), 1) // step))


@dataclass(frozen=True)
class Injected:
    """What is made to happen to one simulated task."""

    kind: Literal["crash", "hang", "nan", "slow"]
    factor: float = 10.0


class FailureModel:
    """Failures at random, from a stream of their own.

    Parameters
    ----------
    crash, hang, nan : float
        Probability per task that the client raises, never returns, or returns values that are not finite.

    Raises
    ------
    ValueError
        A probability outside [0, 1], or a sum above 1.
    """

    def __init__(self, crash: float = 0.0, hang: float = 0.0, nan: float = 0.0) -> None:
        for name, value in (("crash", crash), ("hang", hang), ("nan", nan)):
            check(name, value, interval(0, 1))
        if crash + hang + nan > 1:
            raise value_error("crash + hang + nan", "<= 1", crash + hang + nan)
        self.crash, self.hang, self.nan = crash, hang, nan

    def __call__(self, seed: int, client: int, number: int) -> Injected | None:
        """What happens in the client's task `number`, None for nothing."""
        u = stream(seed, FAILURES, client, number).random()
        if u < self.crash:
            return Injected("crash")
        if u < self.crash + self.hang:
            return Injected("hang")
        return Injected("nan") if u < self.crash + self.hang + self.nan else None


def failure_plan(failures: Any, n_clients: int) -> Callable[[int, int, int], Injected | None]:
    """Read the argument `failures`: a `FailureModel`, or a list of single injected ones."""
    if isinstance(failures, FailureModel):
        return failures
    if not isinstance(failures, Sequence):
        raise kind_error("failures", "a FailureModel or a list of dicts", failures)
    planned: dict[tuple[int, int], Injected] = {}
    for entry in failures:
        if not isinstance(entry, Mapping) or not {"client", "task", "kind"} <= entry.keys() <= _KEYS:
            raise value_error("failures", 'dicts with "client", "task", "kind" (and "factor")', entry)
        check("kind of a failure", entry["kind"], one_of("crash", "hang", "nan", "slow"))
        check("client of a failure", entry["client"], interval(0, n_clients - 1, integer=True))
        check("task of a failure", entry["task"], nonnegative(integer=True))
        check("factor of a failure", entry.get("factor", 10.0), positive())
        planned[entry["client"], entry["task"]] = Injected(entry["kind"], entry.get("factor", 10.0))
    return lambda seed, client, number: planned.get((client, number))


_KEYS = {"client", "task", "kind", "factor"}
