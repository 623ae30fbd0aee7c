"""Runs of the FZooS study: a method on a problem, until a value is reached or queries are spent."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from sklearn.datasets import load_digits

from steepest.federated._fedzo import FedZO, orthonormal_directions
from steepest.federated._query_client import LocalOptimizer
from steepest.federated._trajectory_surrogate import TrajectorySurrogate
from steepest.federated.fzoos import FZooS, FZooSClient
from steepest.federated.simulation import SimulatedEngine
from steepest.studies import fzoos_problems as problems
from steepest.studies.fzoos_problems import BOUNDS, Array, Problem

__all__ = [
    "BASELINES", "METHODS", "Course", "Race", "Setting", "cosines", "digits", "directions", "grid", "made", "race",
    "tuned", "wide_grid",
]  # fmt: skip

CORRECTIONS: dict[str, Any] = {
    "FedZO": "none", "FedZO, prox": "prox", "FedZO, scaffold 1": "scaffold1", "FedZO, scaffold 2": "scaffold2",
}  # fmt: skip
BASELINES = tuple(CORRECTIONS)
METHODS = ("FZooS", *BASELINES)
LRS, PROXES = (0.003, 0.01, 0.03), (0.01, 0.1, 1.0)
ASKED = {"FZooS": (10, 25, 50), "FedZO": (5, 10, 20)}


@dataclass(frozen=True)
class Setting:
    """A method with what is tuned."""

    method: str
    lr: float = 0.01
    prox: float = 0.1
    asked: int | None = None
    """Queries around the common point of FZooS, or of an estimate by differences; the authors' by default."""

    def rule(self) -> FZooS | FedZO:
        """The rule, everything else at its defaults."""
        if self.method == "FZooS":
            return FZooS(lr=self.lr, bounds=BOUNDS, n_sync_active=50 if self.asked is None else self.asked)
        q = 20 if self.asked is None else self.asked
        return FedZO(correction=CORRECTIONS[self.method], prox=self.prox, lr=self.lr, q=q, bounds=BOUNDS)


def grid(method: str) -> list[Setting]:
    """All settings that are tried: three learning rates, and for the proximal term three weights with each."""
    return [Setting(method, lr, prox) for lr in LRS for prox in (PROXES if method == "FedZO, prox" else (0.1,))]


def wide_grid(method: str) -> list[Setting]:
    """Nine settings for every method: prox has its weights, the others numbers of queries."""
    if method == "FedZO, prox":
        return grid(method)
    return [Setting(method, lr, asked=n) for lr in LRS for n in ASKED["FZooS" if method == "FZooS" else "FedZO"]]


@dataclass(frozen=True)
class Race:
    """One run: problem by name and arguments, setting, seed, and when it ends."""

    problem: tuple[Any, ...]
    setting: Setting
    seed: int
    rounds: int
    target: float = -math.inf
    max_queries: int | None = None


@dataclass(frozen=True)
class Course:
    """F less its least value after each round, from round 0, and the queries so far."""

    queries: tuple[int, ...]
    gaps: tuple[float, ...]
    disparity: tuple[float, ...]

    def hit(self, target: float, of: str = "queries") -> float:
        """Queries (or rounds) to the target; infinite where it was not reached."""
        for k, (queries, gap) in enumerate(zip(self.queries, self.gaps, strict=True)):
            if gap <= target:
                return float(queries if of == "queries" else k)
        return math.inf

    def spent(self, target: float, of: str = "queries") -> float:
        """The same, with all that was spent where it was not reached: no more than what would have been needed."""
        return min(self.hit(target, of), float(self.queries[-1] if of == "queries" else len(self.gaps) - 1))


Images = tuple[torch.Tensor, torch.Tensor]


def digits() -> Images:
    """The small digits, pixels in [0, 1]."""
    X, y = map(torch.as_tensor, load_digits(return_X_y=True))
    return X.float() / 16, y


@lru_cache(maxsize=4)
def _images(read: Callable[[], Images], n: int, seed: int, share: float, width: float) -> list[Problem]:
    X, y = read()
    half = min(1000, len(y) // 2)
    networks = problems.local_networks(X[:half], y[:half], 0, share=share)
    return problems.images_to_attack(networks, X[half:], y[half:], n, seed, width)


@lru_cache(maxsize=64)
def made(problem: tuple[Any, ...]) -> Problem:
    """The problem of a description.

    A generator's name and arguments; ``("attack", read, share, width, n, seed, k)``, the k-th of n images; or
    ``("metric", read, hidden, name, seed)``, where ``read()`` gives the data.
    """
    kind, *rest = problem
    if kind == "attack":
        read, share, width, n, seed, k = rest
        return _images(read, n, seed, share, width)[k]
    if kind == "metric":
        read, hidden, name, seed = rest
        X, y = read(return_X_y=True)
        return problems.metric(X, y, name, seed, hidden=hidden)
    return problems.synthetic(kind, *rest)


def race(item: Race) -> Course:
    """Run, and stop as soon as the target is reached."""
    problem = made(item.problem)

    def stop(intermediate_result: Any) -> None:
        if intermediate_result.fun - problem.least <= item.target:
            raise StopIteration

    result = item.setting.rule().minimize(
        problem.fs, problem.start, rounds=item.rounds, max_queries=item.max_queries, seed=item.seed, callback=stop,
        vectorized=True,
    )  # fmt: skip
    return _course(result, problem)


def _course(result: Any, problem: Problem) -> Course:
    rows = result.history
    return Course(tuple(row["queries"] for row in rows), tuple(row["fun"] - problem.least for row in rows),
                  tuple(row["disparity"] for row in rows))  # fmt: skip


def tuned(settings: Sequence[Setting], courses: Sequence[Sequence[Course]], target: float) -> Setting:
    """The setting with the fewest queries to the target in the median over its courses, then with the least gap."""

    def cost(k: int) -> tuple[float, float]:
        found = courses[k]
        return float(np.median([c.hit(target) for c in found])), float(np.median([c.gaps[-1] for c in found]))

    return settings[min(range(len(settings)), key=cost)]


# ------------------------------------------------------------------------------------------------------------ gradients


def cosines(dim: int, steps: int, seed: int) -> dict[str, list[float]]:
    """Cosine of estimates with a client's true gradient, along one trajectory of its own without rounds."""
    problem, rule = made(("Quadratic", dim, 5, 0.5, seed)), FZooS().own
    f, gradient, x = problem.fs[0], problem.gradients[0], problem.start
    rng, surrogate = np.random.default_rng(seed), TrajectorySurrogate(dim)
    optimizer = LocalOptimizer("adam", x, 0.01, BOUNDS)
    near = x + rng.uniform(-rule["init_radius"], rule["init_radius"], (rule["n_init"], dim))
    X = np.vstack([x, near])
    found: dict[str, list[float]] = {"FZooS": [], "20 differences": [], "5 differences": []}
    for _ in range(steps):
        surrogate.add(X, f(X))
        true, g = gradient(x), surrogate.gradient(x)
        found["FZooS"].append(_cosine(g, true))
        for q in (20, 5):
            U = orthonormal_directions(rng, q, dim)
            found[f"{q} differences"].append(_cosine((f(x + 0.01 * U) - f(x[None])) @ U, true))
        x = optimizer.step(g)
        surrogate.add(x, f(x[None]))
        Z = x + rng.uniform(-rule["active_radius"], rule["active_radius"], (rule["n_candidates"], dim))
        X = Z[np.argsort(-surrogate.variance(Z, x), kind="stable")[: rule["n_active"]]]
    return found


def _cosine(a: Array, b: Array) -> float:
    return float(a @ b / max(np.linalg.norm(a) * np.linalg.norm(b), 1e-300))


class WatchedClient(FZooSClient):
    """A client that keeps where it went and in which direction."""

    def begin(self, dim: int, fresh: bool) -> None:
        """Forget an earlier run's."""
        super().begin(dim, fresh)
        self.seen: list[tuple[Array, Array]] = []

    def direction(self, x: Array, t: int, correction: Array | None) -> Array:
        """Keep what is done."""
        g = super().direction(x, t, correction)
        self.seen.append((x.copy(), g))
        return g


class Watched(FZooS):
    """FZooS with such clients."""

    client_class = WatchedClient


def directions(item: tuple[tuple[Any, ...], str, int, int]) -> tuple[float, Course]:
    """Mean squared distance of the update directions from F's gradient from round 2 on, and the course of the run."""
    description, correction, seed, rounds = item
    problem, kept = made(description), list[Any]()

    def engine(clients: Sequence[Any], seed: int) -> SimulatedEngine:
        kept.extend(clients)
        return SimulatedEngine(clients, seed=seed)

    rule: Any = Watched(correction=correction, bounds=BOUNDS)  # type: ignore[arg-type]
    result = rule.minimize(problem.fs, problem.start, rounds=rounds, seed=seed, engine=engine, vectorized=True)
    T = rule.own["local_steps"]
    apart = [((g - problem.gradient(x)) ** 2).sum() for client in kept for x, g in client.seen[T:]]
    return float(np.mean(apart)), _course(result, problem)
