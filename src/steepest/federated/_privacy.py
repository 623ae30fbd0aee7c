r"""How much noise a budget (epsilon, delta) asks for, by an accountant that others wrote and tested.

A run of R rounds sends ``R1 = ceil(R/T)`` noisy means of clipped gradients and ``R2 = R - R1`` noisy means of clipped
differences. Each is a Gaussian mechanism whose noise is z1 (z2) times what one record can change, so that together
they are one Gaussian mechanism with

    mu^2 = R1/z1^2 + R2/z2^2,        delta(eps) = Phi(-eps/mu + mu/2) - e^eps Phi(-eps/mu - mu/2),

and ``rho = mu^2 / 2`` in zero-concentrated terms. Local steps add Gaussian mechanisms on Poisson samples.

Conventions, measured on dp-accounting 0.6 (tests hold them fast). Its accountant by privacy loss distributions takes
the multiplier of a Gaussian event relative to the norm of *one record's contribution*: under replace-one the same event
has twice the sensitivity that it has under add-or-remove-one. Its Renyi accountant ignores the relation for a Gaussian
event, as Opacus does. Here z1 and z2 are relative to the sensitivity ``s C`` itself (s = 2 under replace-one), and
z3, of sampled steps, to the contribution's norm C.
"""

from __future__ import annotations

import functools
import math
import warnings
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

from steepest.core.errors import at_least, check, interval, kind_error, one_of, value_error
from steepest.core.extras import require

__all__ = [
    "ACCOUNTANTS",
    "LocalSteps",
    "NoiseMultipliers",
    "accounted_epsilon",
    "check_budget",
    "noise_multipliers",
    "sensitivity",
]

Neighbouring = Literal["replace", "add_remove"]
Accountant = Literal["pld", "rdp", "opacus-rdp", "opacus-prv"]
ACCOUNTANTS = ("pld", "rdp", "opacus-rdp", "opacus-prv")

_GRID, _COARSE = 1e-4, 1e-3  # the coarse one serves the search for z3: a little too much noise, ten times the speed
_SMALLEST_Z3 = 0.25  # below it the accountants' grids explode, and such noise would buy nothing


class NoiseMultipliers(NamedTuple):
    """Noise per sensitivity of the three kinds of messages; None for a kind that is never sent, 0 for no noise."""

    z1: float
    z2: float | None
    z3: float | None
    epsilon: float
    """What the accountant says of these multipliers; at most the epsilon asked for."""
    rho: float
    """Zero-concentrated cost ``R1/(2 z1^2) + R2/(2 z2^2)`` of the full-batch messages."""


class LocalSteps(NamedTuple):
    """What clients do between rounds: the share of the budget for it, each client's sampling rate and noisy steps."""

    share: float
    rates: tuple[float, ...]
    steps: tuple[int, ...]


def sensitivity(neighbouring: str) -> float:
    """How far one record moves a sum of contributions of norm at most 1 (s)."""
    return {"replace": 2.0, "add_remove": 1.0}[neighbouring]


def noise_multipliers(
    epsilon: float,
    delta: float,
    *,
    rounds: int,
    restart: int,
    restart_share: float = 0.5,
    neighbouring: Neighbouring = "replace",
    accountant: Accountant = "pld",
    local: LocalSteps | None = None,
) -> NoiseMultipliers:
    """Find the least noise with which a run of DIFF2 is (epsilon, delta)-differentially private.

    Parameters
    ----------
    epsilon, delta : float
        The budget of the whole run; ``epsilon=inf`` gives no noise.
    rounds, restart : int
        R and T: every T-th message is a mean of gradients, the others are means of differences; ``restart=1`` is DP-GD.
    restart_share : float
        Share of the budget, in zero-concentrated terms, that the means of gradients take.
    neighbouring : "replace" or "add_remove"
        Which data sets count as neighbors: one record replaced, or one added or removed.
    accountant : "pld", "rdp", "opacus-rdp" or "opacus-prv"
        Privacy loss distributions or Renyi divergences of dp-accounting; Renyi divergences or random variables of
        Opacus.
    local : LocalSteps or (share, rates, steps), optional
        For local steps: the share of the budget that they take, and for every client its sampling rate and its number
        of noisy steps in the whole run. The full-batch messages take what they would take without, times ``1 - share``.

    Returns
    -------
    NoiseMultipliers
        ``z1, z2, z3, epsilon, rho``.

    Raises
    ------
    ValueError
        A value out of range; sampled steps under replace-one with an accountant other than "pld".
    ImportError
        The accountant's package is missing.

    Examples
    --------
    >>> found = noise_multipliers(1.0, 1e-5, rounds=100, restart=10)
    >>> round(found.z1, 2), round(found.z2, 2), round(found.epsilon, 3)
    (16.68, 50.05, 1.0)
    """
    check_budget(epsilon, delta)
    check("rounds", rounds, at_least(1, integer=True))
    check("restart", restart, at_least(1, integer=True))
    if restart > rounds:
        raise value_error("restart", f"at most rounds ({rounds})", restart)
    check("restart_share", restart_share, interval(0, 1, low_open=True, high_open=True))
    check("neighbouring", neighbouring, one_of("replace", "add_remove"))
    check("accountant", accountant, one_of(*ACCOUNTANTS))
    if local is not None:
        local = _read_local(local)
        if neighbouring == "replace" and accountant != "pld" and math.isfinite(epsilon):
            raise value_error(
                "accountant", '"pld" for sampled steps under replace-one, which the others do not know', accountant
            )
    return _calibrated(
        float(epsilon), float(delta), rounds, restart, float(restart_share), neighbouring, accountant, local
    )


def check_budget(epsilon: Any, delta: Any) -> None:
    """Refuse what is no budget: ``epsilon`` must be positive and may be infinite, ``delta`` lies between 0 and 1."""
    if not isinstance(epsilon, (int, float)) or isinstance(epsilon, bool):
        raise kind_error("epsilon", "a number > 0", epsilon)
    if not epsilon > 0:
        raise value_error("epsilon", "> 0", epsilon, "epsilon=inf is the method without noise")
    check("delta", delta, interval(0, 1, low_open=True, high_open=True))


def _read_local(local: Any) -> LocalSteps:
    try:
        share, rates, steps = local
        read = LocalSteps(float(share), tuple(map(float, rates)), tuple(map(int, steps)))
    except (TypeError, ValueError):
        raise kind_error("local", "(share, rates, steps)", local) from None
    check("local share", read.share, interval(0, 1, low_open=True, high_open=True))
    if len(read.rates) != len(read.steps) or not read.rates:
        raise value_error("local", "as many rates as steps, at least one", local)
    if not all(0 < q <= 1 for q in read.rates) or min(read.steps) < 0:
        raise value_error("local", "rates in (0, 1] and steps >= 0", local)
    return read


@functools.lru_cache(maxsize=256)
def _calibrated(
    epsilon: float,
    delta: float,
    rounds: int,
    restart: int,
    restart_share: float,
    neighbouring: str,
    accountant: str,
    local: LocalSteps | None,
) -> NoiseMultipliers:
    R1 = -(-rounds // restart)
    R2 = rounds - R1
    share = restart_share if R2 else 1.0
    pairs = _hardest(local)
    if math.isinf(epsilon):
        return NoiseMultipliers(0.0, 0.0 if R2 else None, 0.0 if pairs else None, math.inf, math.inf)

    def multipliers(mu: float) -> tuple[float, float | None]:
        """Split one Gaussian mechanism over R1 + R2 messages."""
        return math.sqrt(R1 / share) / mu, math.sqrt(R2 / (1 - share)) / mu if R2 else None

    def spent(mu: float, sampled: Sequence[tuple[float, float, int]] = (), grid: float = _GRID) -> float:
        z1, z2 = multipliers(mu)
        messages, names = [(z1, R1), (z2, R2)], {"neighbouring": neighbouring, "accountant": accountant}
        return accounted_epsilon(delta, messages, sampled=sampled, grid=grid, **names)

    mu, slack = _gaussian_mu(epsilon, delta, accountant), 1e-7
    while (cost := spent(mu)) > epsilon:  # several events may be rounded up a little more than one
        mu, slack = mu * (1 - slack), 2 * slack
    z3 = None
    if pairs and local is not None:
        mu *= math.sqrt(1 - local.share)
        z3 = max(_calibrated_z3(functools.partial(_with_samples, spent, mu, pair), epsilon) for pair in pairs)
        cost = spent(mu, [(q, z3, count) for q, count in pairs])
    return NoiseMultipliers(*multipliers(mu), z3, cost, mu**2 / 2)


@functools.lru_cache(maxsize=64)
def _gaussian_mu(epsilon: float, delta: float, accountant: str) -> float:
    """Sensitivity over noise of the one Gaussian mechanism that spends the budget, in the accountant's eyes."""
    dp = require("dp_accounting", "federated", what="noise_multipliers")
    exact = float(dp.get_sigma_gaussian(epsilon, delta))
    if accountant == "pld":
        return (1 - 1e-7) / exact  # what it will say of this is verified by the caller
    fresh, _ = _accountant(accountant, "add_remove", False, _GRID)
    bracket, tol = dp.LowerEndpointAndGuess(0.5 * exact, exact), 1e-7 * exact
    found = dp.calibrate_dp_mechanism(fresh, dp.GaussianDpEvent, epsilon, delta, bracket_interval=bracket, tol=tol)
    return 1 / float(found)


def _with_samples(spent: Callable[..., float], mu: float, pair: tuple[float, int], z3: float) -> float:
    return spent(mu, [(pair[0], z3, pair[1])], _COARSE)


def _calibrated_z3(spent: Callable[[float], float], epsilon: float) -> float:
    """The least z3, to a part in a thousand, with which a client's sampled steps fit into the budget."""
    low, high = 0.5, 1.0
    while spent(high) > epsilon:
        low, high = high, 2 * high
    while low >= _SMALLEST_Z3 and spent(low) <= epsilon:
        low, high = low / 2, low
    while high - low > 1e-3 * high and low >= _SMALLEST_Z3:
        middle = (low + high) / 2
        low, high = (low, middle) if spent(middle) <= epsilon else (middle, high)
    return high


def _hardest(local: LocalSteps | None) -> list[tuple[float, int]]:
    """Rate and steps of those clients that no other one exceeds in both: the costliest is among them."""
    pairs = set() if local is None else {pair for pair in zip(local.rates, local.steps, strict=True) if pair[1] > 0}
    return sorted(p for p in pairs if not any(q != p and q[0] >= p[0] and q[1] >= p[1] for q in pairs))


def accounted_epsilon(
    delta: float,
    full_batch: Sequence[tuple[float | None, int]],
    *,
    neighbouring: str = "replace",
    accountant: str = "pld",
    sampled: Sequence[tuple[float, float, int]] = (),
    grid: float = _GRID,
) -> float:
    """Epsilon of full-batch messages ``(z, count)`` and, for each client, sampled ones ``(rate, z3, count)``.

    The clients hold different records, so their sampled messages do not add up: the largest epsilon counts. `grid` is
    the step of "pld"'s privacy losses, which are rounded up.
    """
    dp = require("dp_accounting", "federated", what="accounted_epsilon")
    fresh, s = _accountant(accountant, neighbouring, bool(sampled), grid)
    common = [dp.SelfComposedDpEvent(dp.GaussianDpEvent(s * z), count) for z, count in full_batch if z and count]
    own = [
        [dp.SelfComposedDpEvent(dp.PoissonSampledDpEvent(q, dp.GaussianDpEvent(z)), count)] for q, z, count in sampled
    ]
    return max(float(fresh().compose(dp.ComposedDpEvent(common + e)).get_epsilon(delta)) for e in own or [[]])


def _accountant(name: str, neighbouring: str, sampled: bool, grid: float) -> tuple[Callable[[], Any], float]:
    """A maker of fresh accountants, and the sensitivity that a Gaussian event's multiplier must be multiplied with.

    Without samples the relation is settled by the sensitivity alone: all accountants are asked about a Gaussian
    mechanism of sensitivity 1. With samples it matters whether a record can be in either of two samples.
    """
    dp = require("dp_accounting", "federated", what=f"accountant={name!r}")
    relations = dp.NeighboringRelation
    replaces = sampled and neighbouring == "replace"
    relation = relations.REPLACE_ONE if replaces else relations.ADD_OR_REMOVE_ONE
    if name == "pld":
        pld = require("dp_accounting.pld", "federated", what="accountant='pld'")
        return lambda: pld.PLDAccountant(relation, grid), 2.0 if replaces else 1.0
    if name == "rdp":
        rdp = require("dp_accounting.rdp", "federated", what="accountant='rdp'")
        return lambda: rdp.RdpAccountant(neighboring_relation=relation), 1.0
    made = _opacus_accountant(name)
    return lambda: made(relation), 1.0


@functools.cache
def _opacus_accountant(name: str) -> Any:
    """An accountant of Opacus behind dp-accounting's interface, so that one calibration serves all."""
    dp = require("dp_accounting", "federated", what=f"accountant={name!r}")
    opacus = require("opacus.accountants", "peers", what=f"accountant={name!r}")
    kind = {"opacus-rdp": opacus.RDPAccountant, "opacus-prv": opacus.PRVAccountant}[name]

    class OpacusAccountant(dp.PrivacyAccountant):  # type: ignore[name-defined]
        def __init__(self, relation: Any) -> None:
            super().__init__(relation)
            self.steps: list[tuple[float, float, int]] = []

        def _maybe_compose(self, event: Any, count: int, do_compose: bool) -> Any:
            if isinstance(event, dp.ComposedDpEvent):
                for part in event.events:
                    self._maybe_compose(part, count, do_compose)
            elif isinstance(event, dp.SelfComposedDpEvent):
                self._maybe_compose(event.event, count * event.count, do_compose)
            elif do_compose:
                rate = getattr(event, "sampling_probability", 1.0)
                gaussian = event.event if rate < 1 or hasattr(event, "event") else event
                self.steps.append((gaussian.noise_multiplier, rate, count))

        def get_epsilon(self, target_delta: float) -> float:
            inner = kind()
            inner.history = self.steps
            with warnings.catch_warnings():  # orders at the end of its list, logarithms of zero on its grid
                warnings.simplefilter("ignore")
                return float(inner.get_epsilon(delta=target_delta))

        def get_delta(self, target_epsilon: float) -> float:
            raise NotImplementedError("only epsilon is asked of this accountant")

    return OpacusAccountant
