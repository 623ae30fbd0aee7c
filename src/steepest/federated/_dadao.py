r"""Decentralized optimization without rounds, server or global clock.   minimize sum_i f_i(x), f_i at node i of a graph

Node i computes a gradient at the jumps of a Poisson process of rate 1, edge ij gossips at those of one of rate
lambda_ij. Between events a node's six vectors follow a linear flow (`_dadao_flow`); with all right-hand sides from
before the jump,

    gradient   g = grad f_i(X) - nu X - Yt         X -= gamma g,   Xt -= gamma~ g,   Yt += (delta + delta~) g
    gossip     m = (Y + Z)_i - (Y + Z)_j           Z_i -= beta m,  Zt_i -= beta~ m,  Z_j += beta m,  Zt_j += beta~ m

The linear flow is what makes it fast in both: ``sqrt(L / mu)`` gradients a node and ``sqrt(chi1 chi2 L / mu)`` gossips,
times the number of nodes and the logarithm of the precision, if ``2 chi1 chi2 <= 1`` (`_gossip_rates`).

Paper: nabli2023dadao, Alg. 1 and App. E; constants as in the authors' code.
Notation: Lam = Laplacian of the rates, 1 / chi1 its smallest positive eigenvalue, chi2 half its largest resistance of
an edge in use; nu = mu / 2; one unit of time is one gradient a node on average.
Departures: (1) Xt starts at x0 (the authors' code starts it at 0), so that a run from the optimum stays there. (2) What
is recorded are states led to one common time, not those of each node's last event. (3) With graphs that take turns,
each graph has its own rates; all are scaled by one factor so that the worst chi1 and the worst chi2 meet the condition.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from steepest.core.driver import Stop
from steepest.core.errors import SteepestWarning, check, kind_error, optional, positive, value_error
from steepest.core.random import numpy_generator
from steepest.federated._dadao_events import Clocks, Schedule, Segment
from steepest.federated._dadao_flow import XT, DadaoConstants, X
from steepest.federated._dadao_nodes import Gradients, Kind, Nodes, Simulation
from steepest.federated._gossip_graph import Graph, as_graph, checked_rates, constants_of, uniform_rates
from steepest.federated._gossip_rates import optimal_gossip_rates

if TYPE_CHECKING:
    from scipy.optimize import OptimizeResult

    from steepest.federated.ray_engine import RayEngine

__all__ = ["dadao"]

LIMITS = {
    "t_max": optional(positive()),
    "max_gradients": optional(positive(integer=True)),
    "max_communications": optional(positive(integer=True)),
    "tol": optional(positive()),
    "record_every": positive(),
    "switch_every": optional(positive()),
}
SLACK = 1e-6  # of 2 chi1 chi2 <= 1, for rates that were rounded
DIVERGED = 1e6  # growth of the distance, in norm
FLOAT32_KAPPA = 1e4


def dadao(
    grads: Any,
    x0: Any,
    *,
    graph: Any,
    L: float,
    mu: float,
    rates: Any = "uniform",
    t_max: float | None = None,
    max_gradients: int | None = None,
    max_communications: int | None = None,
    tol: float | None = None,
    x_star: Any = None,
    seed: Any = 0,
    record_every: float = 1.0,
    switch_every: float | None = None,
    callback: Callable[..., Any] | None = None,
    engine: RayEngine | None = None,
    state: Any = None,
) -> OptimizeResult:
    r"""Minimize a sum of strongly convex functions over a network by local gradients and pairwise gossip.

    Parameters
    ----------
    grads : list of n callables, or one callable
        ``grads[i](x)``, or ``grads(i, x)``: the gradient (d,) of f_i at x (d,), of x0's kind, dtype and device.
        `x` must not be changed.
    x0 : array_like or Tensor (d,) or (n, d)
        Start, for all nodes or each. float64 unless x0 is float32.
    graph : networkx.Graph, adjacency matrix, (n, edges), or a list of these
        Undirected and connected. Nodes are counted in the graph's own order. The order of the edges is that of
        ``graph.edges``, that of ``edges``, or row-major in the upper triangle of a symmetric matrix (NumPy, SciPy
        sparse), whose nonzeros are edges. Graphs in a list take turns.
    L, mu : float
        Every f_i is L-smooth and mu-strongly convex, ``0 < mu <= L``.
    rates : "uniform", "sdp" or array_like (m,)
        Expected gossips of each edge in a unit of time. ``"sdp"``: those of `optimal_gossip_rates`, the
        semidefinite program's optimum. Numbers must meet ``2 chi1 chi2 <= 1``; for a list of graphs, a list of arrays.
    t_max : float, optional
        Units of time, of one gradient a node on average.
    max_gradients, max_communications : int, optional
        The run ends with the event that uses a budget up.
    tol : float, optional
        Stop at a look at the network where no node is farther than `tol` from the mean of all, and the mean gradient
        there is at most `tol` in norm. Each such test costs n gradients; it is made where the nodes are close enough
        and the budget allows it.
    x_star : array_like or Tensor (d,), optional
        The solution, for `history` alone.
    seed : int or numpy.random.Generator
        Of the Poisson processes.
    record_every : float
        The network is looked at at the times ``k * record_every``.
    switch_every : float, optional
        Units of time that each graph of a list is in use.
    callback : callable, optional
        ``callback(intermediate_result=...)`` with the numbers of the row, ``x`` and ``x_nodes``, or ``callback(x)``,
        after each row of the history; `StopIteration` ends the run.
    engine : RayEngine, optional
        Its ``workers``, ``ray_init`` and ``resources`` are used (not its clients): each worker holds a part of the
        nodes, and gradients of different nodes are computed at the same time. The same result bit for bit.
    state : array_like or Tensor (n, 6, d), optional
        Start from the ``state`` of an earlier result; x0 then only tells kind, dtype and d. Time begins at 0 again.

    Returns
    -------
    scipy.optimize.OptimizeResult
        ``x`` (d,), the mean of ``x_nodes`` (n, d); ``state`` (n, 6, d), all nodes at ``time``, rows X, Xt, Y, Yt, Z,
        Zt; ``n_gradients``, ``n_communications`` and their sum ``nit``; ``rates``, ``edges`` (lists for a list of
        graphs), ``chi1``, ``chi2``; ``history``, a list of dicts ``time, gradients, communications, consensus`` (the
        largest distance of a node from the mean) and, with `x_star`, ``distance`` (squared, the mean over nodes), one
        for each time ``k * record_every`` and one for the end; ``success``, ``status`` (of `core.driver.Stop`),
        ``message``. A run that reaches `t_max` ends at exactly that time. One that ends at a gradient that is not
        finite has not played that event; the state is the last finite one.

    Raises
    ------
    TypeError
        An argument, or what a gradient returns, is of the wrong kind.
    ValueError
        ``mu <= 0``, ``mu > L``; a graph that is not connected, has self-loops or an asymmetric matrix; the wrong number
        of callables; x0 that is not finite; negative or NaN rates, rates with ``2 chi1 chi2 > 1`` (the message has
        the factor that mends them); no stopping rule.

    Warns
    -----
    SteepestWarning
        float32 with ``L / mu > 1e4``: steps differ by ``sqrt(L / mu)``, and rounding drowns the small ones.

    Notes
    -----
    O(d) numbers are touched at an event, whatever n is, and O(n d) at a look. The expected squared distance falls at
    least like ``exp(-t sqrt(mu / L) / (8 sqrt(2)))``.

    Examples
    --------
    Five nodes on a ring agree on the mean of what they know.

    >>> import numpy as np
    >>> c = np.arange(5.0)[:, None]
    >>> ring = 5, [(0, 1), (1, 2), (2, 3), (3, 4), (4, 0)]
    >>> result = dadao(lambda i, x: x - c[i], np.zeros(1), graph=ring, L=1.0, mu=1.0, t_max=400)
    >>> result.success, bool(abs(result.x_nodes - 2.0).max() < 1e-6)
    (True, True)
    """
    _check_stops(locals())
    kind = Kind(x0)
    graphs, used_rates, chi1, chi2 = _network(graph, rates, switch_every)
    n, d = graphs[0].n, _dimension(x0, graphs[0].n)
    constants = DadaoConstants(L, mu, chi1)
    if kind.dtype == np.float32 and L / mu > FLOAT32_KAPPA:
        text = f"x0 is float32 and L / mu = {L / mu:.3g}: steps differ by its root, and float64 may be needed"
        warnings.warn(text, SteepestWarning, stacklevel=2)
    start = _start(kind, x0, n) if state is None else kind.take("state", state, (n, 6, d))
    optimum = None if x_star is None else kind.take("x_star", x_star, (d,))
    nodes = Nodes(Gradients(grads, n, d, kind), constants, dict(enumerate(start)))
    runner = _runner(engine, nodes)
    clocks = Clocks(graphs, used_rates, switch_every or math.inf, numpy_generator(seed))
    schedule = Schedule(
        clocks, constants, kind.lift, record_every=record_every, t_max=t_max, max_gradients=max_gradients,
        max_communications=max_communications,
    )  # fmt: skip
    run = _Run(nodes, optimum, tol, callback)
    with runner, np.errstate(over="ignore", invalid="ignore"):
        result = run.play(runner, schedule)
    single = not isinstance(graph, list)
    result.update(
        rates=used_rates[0] if single else used_rates,
        edges=graphs[0].edges if single else [g.edges for g in graphs],
        chi1=chi1,
        chi2=chi2,
    )
    return result


# -------------------------------------------------------------------------------------------------------- the arguments


def _check_stops(given: dict[str, Any]) -> None:
    for name, limit in LIMITS.items():
        check(name, given[name], limit)
    if all(given[name] is None for name in ("t_max", "max_gradients", "max_communications", "tol")):
        raise value_error("t_max", "given, or one of max_gradients, max_communications and tol", None)
    if given["callback"] is not None and not callable(given["callback"]):
        raise kind_error("callback", "None or callable", given["callback"])


def _network(graph: Any, rates: Any, switch_every: float | None) -> tuple[list[Graph], list[Any], float, float]:
    """Graphs, rates of all that meet the condition, and the worst chi1 and chi2."""
    several = isinstance(graph, list)
    if several and not graph:
        raise value_error("graph", "a graph or a list of at least one", graph)
    if several and len(graph) > 1 and switch_every is None:
        raise value_error("switch_every", "given with a list of graphs", None)
    if not several and switch_every is not None:
        raise value_error("switch_every", "None unless graph is a list", switch_every)
    graphs = [as_graph(g, f"graph[{k}]") for k, g in enumerate(graph)] if several else [as_graph(graph)]
    if len({g.n for g in graphs}) > 1:
        raise value_error("graph", "graphs of the same number of nodes", [g.n for g in graphs])
    if isinstance(rates, str):
        if rates not in ("uniform", "sdp"):
            raise value_error("rates", "'uniform', 'sdp' or an array", rates)
        found = [uniform_rates(g) if rates == "uniform" else _optimal(g) for g in graphs]
        chi1, chi2 = (max(one[k] for one in found) for k in (1, 2))
        factor = math.sqrt(2 * chi1 * chi2)
        return graphs, [one[0] * factor for one in found], float(chi1 / factor), float(chi2 / factor)
    lists = rates if several else [rates]
    if not isinstance(lists, list) or len(lists) != len(graphs):
        raise value_error("rates", f"a list of {len(graphs)} arrays, one for each graph", rates)
    made = [checked_rates(g, r) for g, r in zip(graphs, lists, strict=True)]
    chi1, chi2 = map(max, zip(*map(constants_of, graphs, made), strict=True))
    condition = 2 * chi1 * chi2
    if condition > 1 + SLACK:
        cure = f"multiply them by {math.sqrt(condition):.6g}"
        raise value_error("rates", "such that 2 chi1 chi2 <= 1", condition, cure)
    return graphs, made, chi1, chi2


def _optimal(graph: Graph) -> tuple[Any, float, float]:
    found = optimal_gossip_rates(graph, method="barrier")
    return found.rates, found.chi1, found.chi2


def _dimension(x0: Any, n: int) -> int:
    shape = tuple(np.shape(x0))
    if len(shape) not in (1, 2) or shape[-1] == 0 or (len(shape) == 2 and shape[0] != n):
        raise value_error("x0", f"of shape (d,) or ({n}, d)", x0)
    return int(shape[-1])


def _start(kind: Kind, x0: Any, n: int) -> Any:
    """Blocks (n, 6, d) with X = Xt = x0 and zeros."""
    x = kind.take("x0", x0)
    blocks = kind.lift(np.zeros((n, 6, x.shape[-1])))
    blocks[:, [X, XT]] = x if x.ndim == 1 else x[:, None]
    return blocks


def _runner(engine: Any, nodes: Nodes) -> Any:
    if engine is None:
        return Simulation(nodes)
    from steepest.federated._dadao_ray import RayNodes
    from steepest.federated.ray_engine import RayEngine

    if not isinstance(engine, RayEngine):
        raise kind_error("engine", "None or a RayEngine", engine)
    if nodes.gradients.kind.there:
        raise value_error("x0", "on the CPU with a RayEngine", str(nodes.gradients.kind.device))
    return RayNodes(engine, nodes)


# -------------------------------------------------------------------------------------------------------------- the run


class _Run:
    """What is seen, counted and decided at each look."""

    def __init__(self, nodes: Nodes, optimum: Any, tol: float | None, callback: Callable[..., Any] | None) -> None:
        self.nodes, self.kind, self.constants = nodes, nodes.gradients.kind, nodes.constants
        self.optimum, self.tol, self.callback = optimum, tol, callback
        self.n_gradients = self.n_communications = 0
        self.history: list[dict[str, float]] = []
        self.x0 = self.kind.stack([S[X] for S in nodes.blocks.values()])

    def play(self, runner: Any, schedule: Schedule) -> OptimizeResult:
        """Look, and go on until something says stop."""
        segment, nodes = Segment(0.0, np.zeros(len(self.x0))), self.nodes
        stop = self.look(segment, nodes, runner, schedule)
        segments = runner.run(schedule, ahead=self.tol is None)
        while stop is None:
            segment, nodes = next(segments)
            gradients, communications = segment.counts
            self.n_gradients, self.n_communications = (
                self.n_gradients + gradients,
                self.n_communications + communications,
            )
            stop = self.look(segment, nodes, runner, schedule)
        segments.close()
        return self.result(segment, nodes, *stop)

    def look(self, segment: Segment, nodes: Any, runner: Any, schedule: Schedule) -> tuple[Stop, str] | None:
        """Write a row of the history, and say whether and why the run ends here."""
        x = self.positions(segment, nodes)
        mean = x.mean(0)
        row = {"time": segment.time, "consensus": math.sqrt(float(((x - mean) ** 2).sum(-1).max()))}
        close = self.tol is not None and row["consensus"] <= self.tol and not segment.failed
        met = close and schedule.affords(len(x)) and self.gradient_norm(runner, mean) <= (self.tol or 0.0)
        row |= {"gradients": self.n_gradients, "communications": self.n_communications}
        if self.optimum is not None:
            row["distance"] = _distance(x, self.optimum)
        self.history.append(row)
        if self.callback is not None and not self.tell(row, x, mean):
            return Stop.CALLBACK, "the callback asked to stop"
        if segment.failed:
            return Stop.NONFINITE, f"{segment.end}; the state is the one before: is L = {self.constants.L:g} too small?"
        if self.diverged(x, nodes):
            return Stop.NONFINITE, f"diverged by time {segment.time:g}: is L = {self.constants.L:g} too small?"
        if met:
            return Stop.CONVERGED, f"converged: consensus and mean gradient are at most tol = {self.tol:g}"
        end = segment.end or (schedule.used_up if close else "")
        if end:
            missed = "" if self.tol is None else f", before tol = {self.tol:g} was met"
            return Stop.CONVERGED, f"{end} was reached{missed}"
        return None

    def positions(self, segment: Segment, nodes: Any) -> Any:
        """X (n, d) of all nodes at the segment's time."""
        flow = self.kind.lift(self.constants.flows(segment.time - segment.last)[:, X, [X, XT]])
        now = self.kind.stack([S[: XT + 1] for S in nodes.blocks.values()])
        return flow[:, :1] * now[:, X] + flow[:, 1:] * now[:, XT]

    def gradient_norm(self, runner: Any, x: Any) -> float:
        """Norm of the mean gradient at x, at the cost of n gradients."""
        self.n_gradients += len(self.x0)
        mean = self.kind.stack(runner.gradients_at(x)).mean(0)
        return math.sqrt(float(mean.dot(mean)))

    def diverged(self, x: Any, nodes: Any) -> bool:
        """Whether the nodes are much farther from the optimum than start and first gradients allow for.

        A gradient's norm over mu bounds how far its node is from its own minimum.
        """
        near = max(nodes.first.values(), default=math.inf) / self.constants.mu**2
        if self.optimum is None:
            return not _distance(x, self.x0) <= DIVERGED * near
        return not _distance(x, self.optimum) <= DIVERGED * max(near, _distance(self.x0, self.optimum))

    def tell(self, row: dict[str, float], x: Any, mean: Any) -> bool:
        """Call back; False where it asks to stop."""
        import inspect

        from scipy.optimize import OptimizeResult

        assert self.callback is not None
        lower = self.kind.lower
        try:
            if "intermediate_result" in inspect.signature(self.callback).parameters:
                self.callback(intermediate_result=OptimizeResult(x=lower(mean), x_nodes=lower(x), **row))
            else:
                self.callback(lower(mean))
        except StopIteration:
            return False
        return True

    def result(self, segment: Segment, nodes: Any, stop: Stop, message: str) -> OptimizeResult:
        """Lead all nodes to the last time."""
        from scipy.optimize import OptimizeResult

        flow = self.kind.lift(self.constants.flows(segment.time - segment.last))
        state = flow @ self.kind.stack(list(nodes.blocks.values()))
        lower = self.kind.lower
        return OptimizeResult(
            x=lower(state[:, X].mean(0)),
            x_nodes=lower(state[:, X]),
            state=lower(state),
            time=segment.time,
            nit=self.n_gradients + self.n_communications,
            n_gradients=self.n_gradients,
            n_communications=self.n_communications,
            history=self.history,
            success=stop is Stop.CONVERGED,
            status=int(stop),
            message=message,
        )


def _distance(x: Any, origin: Any) -> float:
    """Squared distance, the mean over nodes."""
    return float(((x - origin) ** 2).sum(-1).mean())
