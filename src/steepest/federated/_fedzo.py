r"""Federated optimization from values by finite differences along random directions: what `FZooS` is measured against.

    g_hat(x) = (1/q) sum_k (f(x + mu u_k) - f(x)) / mu  u_k,     u_1, u_2, ... orthonormal (in blocks of d where q > d)

Every local step costs q + 1 queries. ``correction`` says what is done about clients whose losses differ:

    none       g = g_hat
    prox       g = g_hat + prox (x - x_{r-1})
    scaffold1  g = g_hat + c - c_i,   c_i = g_hat(x_{r-1}), for q queries more per round
    scaffold2  g = g_hat + c - c_i,   c_i = the mean of the client's estimates g_hat of the round before

with ``c = sum_i p_i c_i``. The value at the common point is asked for once and serves the differences that start there.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import torch

from steepest.core.errors import at_least, check, nonnegative, one_of, positive
from steepest.federated._bounds import clipped
from steepest.federated._query_client import LocalOptimizer, QueryClient
from steepest.federated._query_rounds import Importance
from steepest.federated._query_rule import QueryRule

__all__ = ["FedZO", "FedZOClient"]

Correction = Literal["none", "prox", "scaffold1", "scaffold2"]


def orthonormal_directions(rng: np.random.Generator, q: int, d: int) -> np.ndarray:  # (q, d)
    """Random directions, orthonormal within blocks of d."""
    blocks = [np.linalg.qr(rng.standard_normal((d, min(d, q - k))))[0].T for k in range(0, q, d)]
    return np.concatenate(blocks)


class FedZOClient(QueryClient):
    """A party of `FedZO`.

    Parameters
    ----------
    f, n_samples, vectorized
        As in `FZooSClient`.
    """

    def begin(self, dim: int, fresh: bool) -> None:
        """Forget an earlier run."""
        self.here: tuple[np.ndarray, float] | None = None
        self.c = np.zeros(dim)

    def value(self, x: np.ndarray) -> float:
        """f(x), which is not asked for again at the common point."""
        if self.here is not None and np.array_equal(self.here[0], x):
            return self.here[1]
        return float(self.query(x)[0])

    def estimate(self, x: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """g_hat(x); a direction is turned round where it would leave the bounds."""
        o, base = self.o, self.value(x)
        U = orthonormal_directions(rng, o.q, len(x))
        if o.bounds is not None:
            leaves = np.any(clipped(x + o.mu * U, o.bounds) != x + o.mu * U, axis=1)
            back = np.all(clipped(x - o.mu * U, o.bounds) == x - o.mu * U, axis=1)
            U[leaves & back] *= -1
        ends = clipped(x + o.mu * U, o.bounds)
        slopes = (self.query(ends) - base) / o.mu
        return np.asarray(slopes @ U / o.q)

    def initial(self, x: np.ndarray, rng: np.random.Generator, sent: dict[str, Any]) -> dict[str, Any]:
        """As a sync at the start."""
        return self.sync(x, rng, sent)

    def local(self, x: np.ndarray, rng: np.random.Generator, sent: dict[str, Any]) -> np.ndarray:
        """T steps along corrected estimates."""
        o, start, total = self.o, x, np.zeros(len(x))
        optimizer = LocalOptimizer(o.optimizer, x, o.lr, o.bounds)
        shift = sent["w"].numpy() - self.c if "w" in sent else 0.0
        for _ in range(o.local_steps):
            g = self.estimate(x, rng)
            total += g
            x = optimizer.step(g + shift + (o.prox * (x - start) if o.correction == "prox" else 0.0))
        if o.correction == "scaffold2":
            self.c = total / o.local_steps
        return x

    def check(self, x: np.ndarray, rng: np.random.Generator, sent: dict[str, Any]) -> dict[str, Any]:
        """The value at the server's candidate."""
        candidate = sent["candidate"].numpy().copy()
        value = float(self.query(candidate)[0])
        self.tried = candidate, value
        return {"fun": value}

    def sync(self, x: np.ndarray, rng: np.random.Generator, sent: dict[str, Any]) -> dict[str, Any]:
        """The value at the common point, and c_i where there is one."""
        if sent["phase"] == "init" or not self.o.safeguard:
            self.here = x, float(self.query(x)[0])
        elif np.array_equal(self.tried[0], x):
            self.here = self.tried
        told: dict[str, Any] = {"fun": self.value(x)}
        if self.o.correction == "scaffold1":
            self.c = self.estimate(x, rng)
        if self.o.correction in ("scaffold1", "scaffold2"):
            told["w"] = torch.from_numpy(self.c)
        return told

    def state_dict(self) -> dict[str, Any]:
        """Also c_i and the value at the common point."""
        state = super().state_dict()
        if state:
            tried = getattr(self, "tried", None)
            state |= {"c": torch.from_numpy(self.c.copy()), "here": _plain(self.here), "tried": _plain(tried)}
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Put back what `state_dict` gave."""
        super().load_state_dict(state)
        self.c = state["c"].numpy().copy()
        for name in ("here", "tried"):
            pair = state[name]
            setattr(self, name, None if pair is None else (pair[0].numpy().copy(), pair[1]))


def _plain(pair: tuple[np.ndarray, float] | None) -> list[Any] | None:
    return None if pair is None else [torch.from_numpy(pair[0].copy()), pair[1]]


class FedZO(QueryRule):
    """Federated zeroth-order optimization by finite differences, with or without a correction of the clients' drift.

    Parameters
    ----------
    correction : "none", "prox", "scaffold1" or "scaffold2"
    q, mu : int, float
        Directions per estimate and their length; 20 and 0.01 as in the code of Shu et al. [shu2023federated].
    prox : float
        Weight of the proximal term, with ``correction="prox"``.
    local_steps, lr, optimizer, server_lr, importance, safeguard, bounds
        As in `FZooS`.
    on_failure, max_failures, backoff
        As in `ServerRule`.

    Raises
    ------
    ValueError, TypeError
        A value out of range or of the wrong kind; the text names the argument.

    Notes
    -----
    A client spends one query on the start (``q + 1`` with "scaffold1") and ``T (q + 1)`` in a round (q more).

    References
    ----------
    As in Shu et al. [shu2023federated], who compare with these.

    Examples
    --------
    >>> fs = [lambda x, c=c: float(((x - c) ** 2).sum()) for c in (0.3, 0.7)]
    >>> result = FedZO(q=2, correction="scaffold2").minimize(fs, [0.4, 0.4], rounds=8)
    >>> bool(np.abs(result.x - 0.5).max() < 0.05), result.nfev == 2 * (1 + 8 * 30)
    (True, True)
    """

    client_class = FedZOClient

    def __init__(
        self,
        *,
        correction: Correction = "none",
        q: int = 20,
        mu: float = 0.01,
        prox: float = 0.1,
        local_steps: int = 10,
        lr: float = 0.01,
        optimizer: Literal["adam", "sgd"] = "adam",
        server_lr: float = 1.0,
        importance: Importance = "uniform",
        safeguard: bool = False,
        bounds: Any = None,
        on_failure: Literal["retry", "drop", "raise"] = "retry",
        max_failures: int = 3,
        backoff: float | None = None,
    ) -> None:
        super().__init__(server_lr=server_lr, importance=importance, safeguard=safeguard, bounds=bounds,
                         on_failure=on_failure, max_failures=max_failures, backoff=backoff)  # fmt: skip
        self.own: dict[str, Any] = {
            "correction": correction, "q": q, "mu": mu, "prox": prox, "local_steps": local_steps, "lr": lr,
            "optimizer": optimizer,
        }  # fmt: skip
        for name, limit in _LIMITS.items():
            check(name, self.own[name], limit)
        self.arguments |= self.own

    def costs(self) -> dict[str, int]:
        """Queries of one client's task, by phase; the first step's difference starts at a value that is known."""
        o = self.own
        shared = o["q"] if o["correction"] == "scaffold1" else 0
        return {
            "init": 1 + shared,
            "local": o["local_steps"] * (o["q"] + 1) - 1,
            "check": 1,
            "sync": (not self.safeguard) + shared,
        }

    def client_options(self, dim: int) -> dict[str, Any]:
        """What the clients are told with their first task."""
        return {**self.own, "safeguard": self.safeguard}


_LIMITS = {
    "correction": one_of("none", "prox", "scaffold1", "scaffold2"),
    "q": at_least(1, integer=True),
    "mu": positive(),
    "prox": nonnegative(),
    "local_steps": at_least(1, integer=True),
    "lr": positive(),
    "optimizer": one_of("adam", "sgd"),
}
