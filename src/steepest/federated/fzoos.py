r"""Minimize a mean of losses that can only be evaluated, at many parties, with few evaluations.

    F(x) = sum_i p_i f_i(x),    client i answers queries y = f_i(x) and keeps them to itself

A client learns the gradient of its loss from all values that it has ever seen: mu_i is the posterior mean of a Gaussian
process (`TrajectorySurrogate`), whose gradient costs no query. To pull in the common direction it needs the others'
gradients, which travel as one vector: random features phi that all parties share (`FourierBasis`) turn mu_i into
muhat_i(x) = phi(x).w_i, and muhat(x) = phi(x).w with w = sum_i p_i w_i. In round r, from x_{r-1}, for t = 1, ..., T

    g = grad mu_i(x) + gamma_t (grad muhat(x) - grad muhat_i(x))
    x <- optimizer(x, g);   query f_i(x);   query f_i at the points near x where grad mu_i is least certain

then ``x_r = x_{r-1} - server_lr sum_i p_i (x_{r-1} - x_i)``, each client queries f_i at x_r and around it, and sends
its new w_i. The correction is right at x_{r-1} and fades as the client moves on: gamma_t = 1/t.

Paper: Shu et al. [shu2023federated].
Notation: T = local_steps, M = n_features, l = lengthscale, s2 = noise, V = the variance in `_trajectory_surrogate`.
Departures: one kernel and one length scale for surrogate and features (the authors' code fits a Matern kernel locally
and takes features of a squared exponential); gradients in closed form, not by differences of the posterior mean; values
are centred by mean and standard deviation; features are fitted with the ridge s2, not 0; with ``safeguard`` the values
that it needs are counted. A round is two exchanges, and the second carries an empty step besides w_i.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch
from scipy.optimize import OptimizeResult

from steepest.core.errors import at_least, check, nonnegative, one_of, optional, positive, value_error
from steepest.federated._bounds import clipped
from steepest.federated._fedzo import FedZO
from steepest.federated._fourier_basis import FourierBasis
from steepest.federated._query_client import Answer, LocalOptimizer, QueryClient
from steepest.federated._query_rounds import Importance
from steepest.federated._query_rule import QueryRule
from steepest.federated._session import FederatedResult
from steepest.federated._trajectory_surrogate import KERNELS, TrajectorySurrogate

__all__ = ["FZooS", "FZooSClient", "FedZO", "FourierBasis", "TrajectorySurrogate"]

_SYNC_CANDIDATES = 4  # candidates per query around the new common point
_GAMMA = {"decay": lambda t: 1 / t, "constant": lambda t: 1.0, "none": lambda t: 0.0}


class FZooSClient(QueryClient):
    """A party of `FZooS`: its loss, and everything it has seen of it.

    Parameters
    ----------
    f : callable
        ``f(x) -> float`` for x of shape (d,); with `vectorized` ``f(X) -> (m,)`` for X of shape (m, d).
    n_samples : int
        The client's share of the importance with ``importance="samples"``.
    vectorized : bool

    Attributes
    ----------
    surrogate : TrajectorySurrogate
        With the whole history, which is the client's state and never leaves it.
    basis : FourierBasis
    n_queries : int

    Raises
    ------
    TypeError
        f is not callable.
    """

    surrogate: TrajectorySurrogate
    basis: FourierBasis

    def begin(self, dim: int, fresh: bool) -> None:
        """Make surrogate and features; a repeated first task keeps what was seen."""
        o = self.o
        seen = None if fresh or not hasattr(self, "surrogate") else self.surrogate
        self.fitted = o.lengthscale == "mle"
        length = 1.0 if self.fitted else o.lengthscale
        self.surrogate = TrajectorySurrogate(
            dim, kernel=o.kernel, lengthscale=length, noise=o.noise, max_points=o.max_points
        )
        if seen is not None and len(seen.y):
            self.surrogate.add(seen.X, seen.y)
        self.basis = FourierBasis(dim, o.n_features, length, o.seed, o.kernel)
        self.w: np.ndarray | None = None
        self.end: np.ndarray | None = None

    def learn(self, X: np.ndarray) -> np.ndarray:
        """Query, and remember each value as soon as it is known."""
        values = []
        for batch in [X] if self.vectorized else X[:, None]:
            values.append(self.query(batch))
            self.surrogate.add(batch, values[-1])
        return np.concatenate(values)

    def use_lengthscale(self, sent: dict[str, Any]) -> None:
        """Take the length scale that the server sends, if it sends one."""
        length = sent.get("lengthscale", self.surrogate.lengthscale)
        if length != self.surrogate.lengthscale:
            self.surrogate.lengthscale = length
            self.basis = FourierBasis(self.surrogate.dim, self.o.n_features, length, self.o.seed, self.o.kernel)

    def initial(self, x: np.ndarray, rng: np.random.Generator, sent: dict[str, Any]) -> dict[str, Any]:
        """The value at x_0 and a few around it."""
        design = x + rng.uniform(-self.o.init_radius, self.o.init_radius, (self.o.n_init, len(x)))
        values = self.learn(np.vstack([x, clipped(design, self.o.bounds)]))
        return {"fun": float(values[0])} | ({"lengthscale": self.surrogate.fitted_lengthscale()} if self.fitted else {})

    def local(self, x: np.ndarray, rng: np.random.Generator, sent: dict[str, Any]) -> np.ndarray:
        """T steps along the corrected gradient, each followed by its queries."""
        o = self.o
        self.use_lengthscale(sent)
        correction = None if "w" not in sent or self.w is None else sent["w"].numpy() - self.w
        optimizer = LocalOptimizer(o.optimizer, x, o.lr, o.bounds)
        for t in range(1, o.local_steps + 1):
            x = optimizer.step(self.direction(x, t, correction))
            self.learn(x[None])
            if t < o.local_steps:
                self.explore(x, o.active_radius, o.n_active, o.n_candidates, rng)
        self.end = x
        return x

    def direction(self, x: np.ndarray, t: int, correction: np.ndarray | None) -> np.ndarray:
        """The surrogate's gradient, corrected by features with the weights ``w - w_i``."""
        g = self.surrogate.gradient(x)
        return g if correction is None else g + _GAMMA[self.o.correction](t) * self.basis.gradient(x, correction)

    def answers(self) -> dict[str, Answer]:
        """Also to a new length scale."""
        return super().answers() | {"compress": self.compress}

    def explore(self, x: np.ndarray, radius: float, n: int, n_candidates: int, rng: np.random.Generator) -> None:
        """Query the n of the candidates around x at which the gradient is least certain."""
        if n:
            Z = clipped(x + rng.uniform(-radius, radius, (n_candidates, len(x))), self.o.bounds)
            uncertainty = self.surrogate.variance(Z, x)
            self.learn(Z[np.argsort(-uncertainty, kind="stable")[:n]])

    def sync(self, x: np.ndarray, rng: np.random.Generator, sent: dict[str, Any]) -> dict[str, Any]:
        """The value at x_r, queries around it, and the surrogate as one vector."""
        o, told = self.o, dict[str, Any]()
        if not o.safeguard:
            told["fun"] = float(self.learn(x[None])[0])
        radius = o.active_radius if self.end is None else float(np.abs(x - self.end).mean()) / 2
        self.explore(x, radius, o.n_sync_active, _SYNC_CANDIDATES * o.n_sync_active, rng)
        if sent.get("refit"):
            return told | {"lengthscale": self.surrogate.fitted_lengthscale()}
        return told | self.compress(x, rng, sent)

    def check(self, x: np.ndarray, rng: np.random.Generator, sent: dict[str, Any]) -> dict[str, Any]:
        """The value at the server's candidate, which is learned from as well."""
        return {"fun": float(self.learn(sent["candidate"].numpy()[None])[0])}

    def compress(self, x: np.ndarray, rng: np.random.Generator, sent: dict[str, Any]) -> dict[str, Any]:
        """w_i, from the points nearest to x."""
        self.use_lengthscale(sent)
        chosen = self.surrogate.nearest(x, self.o.max_points_sync)
        self.w = self.basis.fit(self.surrogate.X[chosen], self.surrogate.y[chosen], self.o.noise)
        return {"w": torch.from_numpy(self.w)}

    def state_dict(self) -> dict[str, Any]:
        """Also everything that was seen."""
        state = super().state_dict()
        if state:
            s = self.surrogate
            state |= {name: None if value is None else torch.from_numpy(value.copy())
                      for name, value in (("X", s.X), ("y", s.y), ("w", self.w), ("end", self.end))}  # fmt: skip
            state |= {"lengthscale": s.lengthscale}
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Put back what `state_dict` gave."""
        super().load_state_dict(state)
        self.begin(state["X"].shape[1], fresh=True)
        self.use_lengthscale(state)
        if len(state["y"]):
            self.surrogate.add(state["X"].numpy(), state["y"].numpy())
        self.w, self.end = (None if state[name] is None else state[name].numpy().copy() for name in ("w", "end"))


class FZooS(QueryRule):
    """Federated zeroth-order optimization with trajectory-informed surrogate gradients.

    Parameters
    ----------
    local_steps : int
        T, local steps per round; 10 as in the authors' code (5 for its attack on MNIST).
    lr : float
        Step length of the local optimizer, in the units of x; 0.01 as in the authors' code.
    optimizer : "adam" or "sgd"
        Begun anew in every round.
    server_lr : float
        1 takes the mean of the clients' end points.
    n_features : int, optional
        M; ``min(10_000, max(1_000, 8 d))`` by default, 10 000 in the authors' code.
    kernel : "rbf" or "matern52"
    lengthscale : float or "mle"
        l, in the units of x; 1.0 suits inputs in the unit box. ``"mle"`` takes the median of the clients' own
        maximizers of the marginal likelihood.
    noise : float
        s2, relative to the variance of the values; 1e-6 as in the authors' code.
    n_init, init_radius : int, float
        Points of the initial design besides x_0, and half the width of its box; 10 and 0.01 as in the authors' code.
    n_active, n_candidates, active_radius : int, int, float
        After each step but the last, the n_active most uncertain of n_candidates points in a box around x are queried;
        5 of 100, half-width 0.01, as in the authors' code.
    n_sync_active : int
        Queries around the new common point, of four times as many candidates; 50 as in the authors' code.
    max_points, max_points_sync : int
        History points, nearest first, that a gradient and that w_i are made from; 150 and 500 as in the authors' code.
    correction : "decay", "constant" or "none"
        gamma_t: 1/t, 1 or 0.
    importance : "uniform", "samples" or sequence of float
        p.
    safeguard : bool
        Keep the old common point where F is not lower at the new one, at the price of a third exchange per round.
    bounds : (low, high), optional
        Numbers or vectors; nothing is queried outside.
    lengthscale_refit : int, optional
        Every so many rounds ``"mle"`` is repeated; never by default.
    on_failure, max_failures, backoff
        As in `ServerRule`.

    Attributes
    ----------
    history : list of dict
        Per round: ``round, queries, fun, disparity, bytes_up, x``.
    n_queries : int
    local_weights : dict of Tensor
        The last w_i, by client.
    global_weights : Tensor

    Raises
    ------
    ValueError, TypeError
        A value out of range or of the wrong kind; the text names the argument.

    Notes
    -----
    A client spends ``n_init + 1`` queries on the start and ``T + (T - 1) n_active + 1 + n_sync_active`` in each round;
    it receives ``2 d + M`` numbers in a round and sends as many, and keeps all its queries, ``O(d)`` memory each.
    A step costs ``O(m^2 (m + d) + n_candidates m^2)`` for m points.

    References
    ----------
    Shu et al. [shu2023federated].

    Examples
    --------
    >>> centers = np.array([[0.3, 0.6], [0.7, 0.4]])
    >>> fs = [lambda x, c=c: float(((x - c) ** 2).sum()) for c in centers]
    >>> result = FZooS(n_sync_active=10).minimize(fs, [0.4, 0.4], rounds=8)
    >>> bool(np.abs(result.x - [0.5, 0.5]).max() < 0.01), result.nfev == 2 * (11 + 8 * (55 + 11)), result.message
    (True, True, 'rounds')
    """

    client_class = FZooSClient

    def __init__(
        self,
        *,
        local_steps: int = 10,
        lr: float = 0.01,
        optimizer: Literal["adam", "sgd"] = "adam",
        server_lr: float = 1.0,
        n_features: int | None = None,
        kernel: Literal["rbf", "matern52"] = "rbf",
        lengthscale: float | Literal["mle"] = 1.0,
        noise: float = 1e-6,
        n_init: int = 10,
        init_radius: float = 0.01,
        n_active: int = 5,
        n_candidates: int = 100,
        active_radius: float = 0.01,
        n_sync_active: int = 50,
        max_points: int = 150,
        max_points_sync: int = 500,
        correction: Literal["decay", "constant", "none"] = "decay",
        importance: Importance = "uniform",
        safeguard: bool = False,
        bounds: Any = None,
        lengthscale_refit: int | None = None,
        on_failure: Literal["retry", "drop", "raise"] = "retry",
        max_failures: int = 3,
        backoff: float | None = None,
    ) -> None:
        super().__init__(server_lr=server_lr, importance=importance, safeguard=safeguard, bounds=bounds,
                         on_failure=on_failure, max_failures=max_failures, backoff=backoff)  # fmt: skip
        self.own: dict[str, Any] = {
            "local_steps": local_steps, "lr": lr, "optimizer": optimizer, "n_features": n_features,
            "kernel": kernel, "lengthscale": lengthscale, "noise": noise, "n_init": n_init,
            "init_radius": init_radius, "n_active": n_active, "n_candidates": n_candidates,
            "active_radius": active_radius, "n_sync_active": n_sync_active, "max_points": max_points,
            "max_points_sync": max_points_sync, "correction": correction,
        }  # fmt: skip
        for name, limit in _LIMITS.items():
            check(name, self.own[name], limit)
        if isinstance(lengthscale, str):
            check("lengthscale", lengthscale, one_of("mle"))
        else:
            check("lengthscale", lengthscale, positive())
        check("lengthscale_refit", lengthscale_refit, optional(at_least(1, integer=True)))
        if lengthscale_refit is not None and lengthscale != "mle":
            raise value_error("lengthscale_refit", 'None unless lengthscale is "mle"', lengthscale_refit)
        if n_active > n_candidates:
            raise value_error("n_active", f"at most n_candidates ({n_candidates})", n_active)
        self.lengthscale_refit = lengthscale_refit
        self.arguments |= {**self.own, "lengthscale_refit": lengthscale_refit}

    def costs(self) -> dict[str, int]:
        """Queries of one client's task, by phase."""
        o = self.own
        return {
            "init": 1 + o["n_init"],
            "local": o["local_steps"] + (o["local_steps"] - 1) * o["n_active"],
            "check": 1,
            "sync": (not self.safeguard) + o["n_sync_active"],
            "compress": 0,
        }

    def client_options(self, dim: int) -> dict[str, Any]:
        """What the clients are told with their first task."""
        M = self.own["n_features"] or min(10_000, max(1_000, 8 * dim))
        return {**self.own, "n_features": M, "safeguard": self.safeguard}

    def refits(self) -> bool:
        """Every `lengthscale_refit` rounds."""
        return self.lengthscale_refit is not None and self.version % self.lengthscale_refit == 0

    def result(self, ran: FederatedResult, clients: Sequence[QueryClient]) -> OptimizeResult:
        """Also surrogates and features, where the clients live in this process."""
        result = super().result(ran, clients)
        here = [c for c in clients if isinstance(c, FZooSClient) and hasattr(c, "surrogate")]
        o, length = self.client_options(len(result.x)), self.lengthscale_ or self.own["lengthscale"]
        result.surrogates = [c.surrogate for c in here]
        result.basis = (
            None if isinstance(length, str)
            else FourierBasis(len(result.x), o["n_features"], length, self.seed, o["kernel"])
        )  # fmt: skip
        result.lengthscale = length
        return result


_LIMITS = {
    "local_steps": at_least(1, integer=True),
    "lr": positive(),
    "optimizer": one_of("adam", "sgd"),
    "n_features": optional(at_least(1, integer=True)),
    "kernel": one_of(*KERNELS),
    "noise": positive(),
    "n_init": nonnegative(integer=True),
    "init_radius": positive(),
    "n_active": nonnegative(integer=True),
    "n_candidates": at_least(1, integer=True),
    "active_radius": positive(),
    "n_sync_active": nonnegative(integer=True),
    "max_points": at_least(1, integer=True),
    "max_points_sync": at_least(1, integer=True),
    "correction": one_of("decay", "constant", "none"),
}
