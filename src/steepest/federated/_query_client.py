"""A client of federated optimization from values: it answers tasks by querying its own loss, and counts every query.

What all parties must agree on (steps, kernel, seed of the features) comes with the first task and is part of the
client's state from then on, so that a client is made of its function alone.
"""

from __future__ import annotations

import abc
import math
from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from steepest.core.errors import at_least, boolean, check, kind_error, value_error
from steepest.federated._bounds import clipped
from steepest.federated.engine import Reply, State, Task

__all__ = ["LocalOptimizer", "QueryClient", "read_model"]

Function = Callable[[np.ndarray], Any]
Answer = Callable[[np.ndarray, np.random.Generator, dict[str, Any]], dict[str, Any]]


class _NotFinite(Exception):
    def __init__(self, x: np.ndarray, value: float) -> None:
        super().__init__()
        self.x, self.value = x, value


def read_model(model: Mapping[str, torch.Tensor]) -> tuple[str, np.ndarray]:
    """Name and double-precision copy of the one vector that a model must consist of."""
    if len(model) != 1:
        raise value_error("model", "one floating vector, as in {'x': x0}", sorted(model))
    ((name, x),) = model.items()
    if x.ndim != 1 or not x.is_floating_point() or not x.numel():
        raise value_error(f"model[{name!r}]", "a floating vector of shape (d,)", x)
    return name, x.detach().cpu().double().numpy().copy()


class LocalOptimizer:
    """One round's steps from given gradients, by torch's own optimizers."""

    def __init__(self, name: str, x: np.ndarray, lr: float, bounds: Any) -> None:
        self.parameter = torch.tensor(x, dtype=torch.float64)
        self.optimizer = {"adam": torch.optim.Adam, "sgd": torch.optim.SGD}[name]([self.parameter], lr=lr)
        self.bounds = bounds

    def step(self, g: np.ndarray) -> np.ndarray:
        """Step along -g, then clip to the bounds."""
        self.parameter.grad = torch.from_numpy(np.ascontiguousarray(g))
        self.optimizer.step()
        self.parameter.copy_(torch.from_numpy(clipped(self.parameter.numpy(), self.bounds)))
        return self.parameter.numpy().copy()


class QueryClient(abc.ABC):
    """What clients that query a loss share.

    Parameters
    ----------
    f : callable
        ``f(x) -> float`` for x of shape (d,); with `vectorized` ``f(X) -> (m,)`` for X of shape (m, d).
    n_samples : int
        The client's share of the importance with ``importance="samples"``.
    vectorized : bool

    Attributes
    ----------
    n_queries : int
        Evaluations of f since the start of the run.
    """

    def __init__(self, f: Function, *, n_samples: int = 1, vectorized: bool = False) -> None:
        if not callable(f):
            raise kind_error("f", "callable as f(x)", f)
        check("n_samples", n_samples, at_least(1, integer=True))
        check("vectorized", vectorized, boolean())
        self.f, self.n_samples, self.vectorized = f, n_samples, vectorized
        self.n_queries = 0
        self.options: dict[str, Any] = {}

    # What a method defines

    @abc.abstractmethod
    def begin(self, dim: int, fresh: bool) -> None:
        """Make ready for the options that have come; forget an earlier run if this one is `fresh`."""

    @abc.abstractmethod
    def initial(self, x: np.ndarray, rng: np.random.Generator, sent: dict[str, Any]) -> dict[str, Any]:
        """Look around the start; payload with ``fun``, the value there."""

    @abc.abstractmethod
    def local(self, x: np.ndarray, rng: np.random.Generator, sent: dict[str, Any]) -> np.ndarray:
        """The local steps; gives the end point."""

    @abc.abstractmethod
    def sync(self, x: np.ndarray, rng: np.random.Generator, sent: dict[str, Any]) -> dict[str, Any]:
        """Tell of the new common point: ``fun`` and the vector that the server averages, ``w``."""

    def check(self, x: np.ndarray, rng: np.random.Generator, sent: dict[str, Any]) -> dict[str, Any]:
        """The value at a point that the server thinks of taking."""
        return {"fun": float(self.query(sent["candidate"].numpy())[0])}

    def answers(self) -> dict[str, Answer]:
        """What answers a phase other than the local steps."""
        return {"init": self.initial, "check": self.check, "sync": self.sync}

    # Shared

    @property
    def o(self) -> SimpleNamespace:
        """The options by name."""
        return SimpleNamespace(**self.options)

    def query(self, X: np.ndarray) -> np.ndarray:  # (m,)
        """Evaluate f at the rows of X, or at one point; each evaluation counts, whatever it gives."""
        points = np.atleast_2d(np.asarray(X, float))
        if self.vectorized:
            self.n_queries += len(points)
            values = np.asarray(self.f(points.copy()), float)
            if values.shape != (len(points),):
                raise value_error("f(X)", f"of shape ({len(points)},)", values)
        else:
            values = np.empty(len(points))
            for k, point in enumerate(points):
                self.n_queries += 1
                values[k] = float(self.f(point.copy()))
                if not math.isfinite(values[k]):
                    raise _NotFinite(point, values[k])
        for point, value in zip(points, values, strict=True):
            if not math.isfinite(value):
                raise _NotFinite(point, float(value))
        return values

    def fit(self, model: State, task: Task) -> Reply:
        """Do what the task's payload asks for; a value that is not finite is reported, and goes no further."""
        name, x = read_model(model)
        sent = task.payload
        if "options" in sent:
            self.options = dict(sent["options"])
            fresh = task.attempt == 0
            if fresh:
                self.n_queries = 0
            self.begin(len(x), fresh)
        phase = sent["phase"]
        end, payload = x, dict[str, Any]()
        try:
            if phase == "local":
                end = self.local(x, np.random.default_rng(task.seed), sent)
            else:
                payload = self.answers()[phase](x, np.random.default_rng(task.seed), sent)
        except _NotFinite as found:
            payload = {"offending": torch.from_numpy(found.x), "value": found.value}
        delta = torch.from_numpy(end - x).to(model[name])
        return Reply({name: delta}, payload={**payload, "queries": self.n_queries})

    def state_dict(self) -> dict[str, Any]:
        """The options and the count."""
        return {"options": dict(self.options), "n_queries": self.n_queries} if self.options else {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Put back what `state_dict` gave."""
        self.options, self.n_queries = dict(state["options"]), state["n_queries"]
