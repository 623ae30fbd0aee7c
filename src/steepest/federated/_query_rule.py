"""The one-call form of federated optimization from values: functions and a start go in, a result comes out."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from scipy.optimize import OptimizeResult

from steepest.core.driver import told
from steepest.core.errors import at_least, check, kind_error, nonnegative, optional, value_error
from steepest.federated._bounds import check_inside
from steepest.federated._query_client import Function, QueryClient
from steepest.federated._query_rounds import QueryRounds
from steepest.federated._session import FederatedResult
from steepest.federated.simulation import SimulatedEngine

__all__ = ["QueryRule"]

MakeEngine = Callable[..., Any]


class QueryRule(QueryRounds):
    """A rule that spends queries in rounds, and can be run without making engine and clients first."""

    client_class: ClassVar[type[QueryClient]]

    def minimize(
        self,
        fs: Sequence[Function],
        x0: Any,
        *,
        rounds: int = 50,
        max_queries: int | None = None,
        seed: int = 0,
        engine: MakeEngine | None = None,
        callback: Callable[..., Any] | None = None,
        vectorized: bool = False,
    ) -> OptimizeResult:
        """Minimize ``sum_i p_i f_i(x)`` from values alone.

        Parameters
        ----------
        fs : list of callables
            Each client's ``f_i(x) -> float`` for x of shape (d,); with `vectorized` ``f_i(X) -> (m,)`` for (m, d).
        x0 : array_like of shape (d,)
        rounds : int
        max_queries : int, optional
            Evaluations of all clients together, never exceeded; a round begins only if all of it fits.
        seed : int
        engine : callable, optional
            ``engine(clients, seed=seed)``, e.g. ``functools.partial(RayEngine, workers=2)``; `SimulatedEngine` by
            default.
        callback : callable, optional
            ``callback(intermediate_result)`` with ``x, fun, nit, nfev``, or ``callback(x)``, after each round;
            `StopIteration` ends the run.
        vectorized : bool

        Returns
        -------
        OptimizeResult
            ``x, fun`` (the last), ``x_best, fun_best`` (of the points after rounds), ``nit`` (rounds), ``nfev``
            (every evaluation of every client), ``history`` (a dict per round, from round 0: ``round, queries, fun,
            disparity, bytes_up, x``; disparity is the mean squared distance of the clients' end points from their
            mean), ``bytes_up``, ``surrogates`` (those of clients in this process), ``basis``, ``local_weights`` (by
            client), ``global_weights``, ``offending`` (the point with a value that is not finite, else None),
            ``failures, dropped, success, message`` (``"rounds"``, ``"max_queries"``, ``"callback"`` or what went
            wrong).

        Raises
        ------
        ValueError, TypeError
            No functions; x0 not finite or out of bounds; `max_queries` below the cost of the initial design.

        Notes
        -----
        Where a worker process dies, its unfinished task is counted in full.
        """
        if not isinstance(fs, Sequence):
            raise kind_error("fs", "a list of callables", fs)
        if not fs:
            raise value_error("fs", "at least one callable", "none")
        for k, f in enumerate(fs):
            if not callable(f):
                raise kind_error(f"fs[{k}]", "callable", f)
        x = np.asarray(x0, float)
        if x.ndim != 1 or not x.size or not np.isfinite(x).all():
            raise value_error("x0", "finite and of shape (d,)", x0)
        check_inside(x, self.bounds)
        check("rounds", rounds, at_least(1, integer=True))
        check("seed", seed, nonnegative(integer=True))
        check("max_queries", max_queries, optional(at_least(len(fs) * self.costs()["init"], integer=True)))
        if engine is not None and not callable(engine):
            raise kind_error("engine", "callable or None", engine)
        rule = type(self)(**self.arguments)
        rule.max_queries = max_queries
        clients = [self.client_class(f, vectorized=vectorized) for f in fs]
        made = SimulatedEngine(clients, seed=seed) if engine is None else engine(clients, seed=seed)
        ran = made.run(rule, {"x": torch.tensor(x)}, max_aggregations=rounds, callback=_told(rule, callback))
        return rule.result(ran, clients)

    def result(self, ran: FederatedResult, clients: Sequence[QueryClient]) -> OptimizeResult:
        """What a finished run came to."""
        history = [{**row, "x": row["x"].cpu().numpy().copy()} for row in self.history]
        start = {"x": self.model[self.name].cpu().numpy().copy(), "fun": math.nan}
        last, best = history[-1] if history else start, min(history, key=lambda row: row["fun"], default=start)
        return OptimizeResult(
            x=last["x"],
            fun=last["fun"],
            x_best=best["x"],
            fun_best=best["fun"],
            nit=max(len(history) - 1, 0),
            nfev=sum(client.n_queries for client in clients) or self.n_queries,
            history=history,
            bytes_up=ran.bytes_up,
            local_weights={c: w.numpy() for c, w in self.local_weights.items()},
            global_weights=None if self.global_weights is None else self.global_weights.numpy(),
            offending=None if self.offending is None else self.offending.numpy(),
            failures=ran.failures,
            dropped=ran.dropped,
            success=ran.success,
            message="rounds" if ran.message == "max_aggregations" else ran.message,
        )


def _told(rule: QueryRule, callback: Callable[..., Any] | None) -> Callable[..., Any] | None:
    """SciPy's two forms of a callback, behind the engine's one."""
    if callback is None:
        return None
    tell = told(callback)

    def tell_round(intermediate_result: OptimizeResult) -> None:
        x = intermediate_result.model["x"].numpy().copy()
        tell(OptimizeResult(x=x, fun=rule.fun, nit=intermediate_result.nit, nfev=rule.n_queries))

    return tell_round
