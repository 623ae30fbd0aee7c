"""Whether the promised privacy holds: closed forms, other accountants, noise as it was sent, and an attacker.

The attacker knows all records but one, chose that one and the loss so that its contribution has full norm in a
direction of their choice in every round, and sees every released message.
"""

from __future__ import annotations

import math
import warnings
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import stats

from steepest.core.errors import SteepestWarning
from steepest.core.extras import installed
from steepest.federated._diff2 import diff2
from steepest.federated._privacy import accounted_epsilon, noise_multipliers
from steepest.studies.context import Context

__all__ = ["accountants", "audit", "epsilon_lower_bound", "noise"]

DELTA = 1e-5
MESSAGES = [(15.0, 10), (40.0, 90)]
SAMPLED = [(0.05, 2.0, 100)]


def gaussian_delta(epsilon: float, mu: float) -> float:
    """Exact delta of a Gaussian mechanism with sensitivity over noise `mu`."""
    a, b = stats.norm.cdf([-epsilon / mu + mu / 2, -epsilon / mu - mu / 2])
    return float(a - math.exp(epsilon) * b)


def gaussian_epsilon(mu: float, delta: float) -> float:
    """Its epsilon, by root finding."""
    from scipy.optimize import brentq

    return float(brentq(lambda e: gaussian_delta(e, mu) - delta, 0.0, 100.0, xtol=1e-12))


def accountants(ctx: Context) -> None:
    """Full batches against the closed form, samples against another accountant."""
    exact = gaussian_epsilon(math.sqrt(sum(n / z**2 for z, n in MESSAGES)), DELTA)
    found = accounted_epsilon(DELTA, MESSAGES)
    ctx.measured("exact-pld", abs(found - exact) / exact)
    ctx.measured("exact-below", exact - found)
    renyi = accounted_epsilon(DELTA, MESSAGES, accountant="rdp")
    ctx.measured("exact-rdp", 100 * (renyi / exact - 1))
    pld = accounted_epsilon(DELTA, [], neighbouring="add_remove", sampled=SAMPLED)
    if not installed("opacus"):
        for claim in ("opacus-rdp", "opacus-prv", "sampled-agree"):
            ctx.skipped(claim, 'Opacus is not installed: pip install "steepest[peers]"')
        return
    ctx.measured("opacus-rdp", abs(accounted_epsilon(DELTA, MESSAGES, accountant="opacus-rdp") - renyi) / renyi)
    prv = accounted_epsilon(DELTA, MESSAGES, accountant="opacus-prv")
    ctx.measured("opacus-prv", 100 * abs(prv / exact - 1))
    prv = accounted_epsilon(DELTA, [], neighbouring="add_remove", accountant="opacus-prv", sampled=SAMPLED)
    ctx.measured("sampled-agree", 100 * abs(prv / pld - 1))


def noise(ctx: Context, rounds: int) -> None:
    """Noise of released messages over its stated size, in chi-square tests over d R draws of each kind and place."""
    d, a = 50, torch.as_tensor(np.random.default_rng(0).standard_normal((60, 50)))
    passed, spreads = [], []
    for place in ("central", "local"):
        run = _recorded(
            fun=None, per_sample_grad=lambda x, a: x - a, x0=torch.zeros(d, dtype=torch.float64), noise=place,
            clients=[(part,) for part in torch.chunk(a, 3)], rounds=rounds, restart=2, lr=1e-3, clip=1.0,
            clip_difference=3.0, seed=ctx.seed,
        )  # fmt: skip
        for kind, z in (("restart", run.z1), ("difference", run.z2)):
            draws = []
            for r, m in enumerate(run.messages):
                if m["kind"] == kind:
                    bound = 1.0 if kind == "restart" else 3.0 * run.steps[r - 1]
                    stated = z * 2 * bound / 60 * (math.sqrt(3) if place == "local" else 1.0)
                    draws.append(((m["released"] - m["clean"]) / stated).numpy())
            u = np.concatenate(draws)
            p = float(stats.chi2.cdf(float(u @ u), len(u)))
            passed.append(5e-4 < p < 1 - 5e-4)
            spreads.append(float(u.std()))
    ctx.measured("noise-stated", float(np.mean(passed)))
    ctx.measured("noise-spread", max(abs(s - 1) for s in spreads))


def audit(ctx: Context, runs: int) -> None:
    """Guess from the messages which of two neighbors was trained on; at a quarter of the noise it must succeed."""
    mu = 1 / noise_multipliers(1.0, DELTA, rounds=1, restart=1).z1
    for claim, name, epsilon in (
        ("audit", "stated noise", 1.0),
        ("audit-power", "a quarter of the noise", gaussian_epsilon(4 * mu, DELTA)),
    ):
        scores = {sign: np.array([attack(sign, 2 * k + (sign > 0), epsilon) for k in range(runs)]) for sign in (-1, 1)}
        ctx.measured(claim, epsilon_lower_bound(scores[1], scores[-1], DELTA))
        thresholds = np.quantile(scores[-1], np.linspace(0.998, 0.002, 80))
        points = [(float((scores[-1] > t).mean()), float((scores[1] > t).mean())) for t in thresholds]
        ctx.series("audit", points, method=name)
    rates = np.linspace(0.002, 0.998, 80)
    limit = np.minimum(1.0, np.minimum(math.e * rates + DELTA, 1 - (1 - DELTA - rates) / math.e))
    ctx.series("audit", list(zip(rates, limit, strict=True)), method="epsilon = 1")


def attack(sign: int, seed: int, epsilon: float, rounds: int = 2) -> float:
    """Score of one run: projections of the messages, weighted by their noise."""
    calls: list[int] = []

    def gradients(x: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
        calls.append(0)  # differences of full norm, in one direction, in every round
        return z[:, None] * torch.tensor([[1e3 * len(calls), 0.0]], dtype=x.dtype)

    z = torch.zeros(20, dtype=torch.float64)
    z[0] = sign
    arguments = {"fun": None, "x0": torch.zeros(2, dtype=torch.float64), "clients": (z,), "lr": 0.1, "clip": 1.0}
    run = _recorded(
        **arguments,
        epsilon=epsilon,
        clip_difference=0.1,
        per_sample_grad=gradients,
        rounds=rounds,
        restart=2,
        seed=seed,
    )
    return sum(float(m["released"][0]) / m["std"] for m in run.messages)


def _recorded(epsilon: float = 1.0, **arguments: Any) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SteepestWarning)  # recorded messages are not private, which is the point
        return diff2(**arguments, epsilon=epsilon, delta=DELTA, record_messages=True)


def epsilon_lower_bound(with_record: NDArray[Any], without: NDArray[Any], delta: float) -> float:
    """Lower end of a one-sided 95 % interval of epsilon, by Clopper and Pearson for both error rates.

    The threshold is chosen on the first half of the runs and judged on the second.
    """
    half = len(without) // 2
    candidates = np.quantile(without[:half], [0.5, 0.7, 0.8, 0.9, 0.95, 0.98])
    bounds = [_bound(with_record[:half], without[:half], t, delta) for t in candidates]
    return _bound(with_record[half:], without[half:], float(candidates[int(np.argmax(bounds))]), delta)


def _bound(with_record: NDArray[Any], without: NDArray[Any], threshold: float, delta: float) -> float:
    n, m = len(with_record), len(without)
    hits, alarms = int((with_record > threshold).sum()), int((without > threshold).sum())
    power = float(stats.beta.ppf(0.025, hits, n - hits + 1)) if hits else 0.0
    false = float(stats.beta.ppf(0.975, alarms + 1, m - alarms)) if alarms < m else 1.0
    return max(0.0, math.log(max(power - delta, 1e-300) / false))
