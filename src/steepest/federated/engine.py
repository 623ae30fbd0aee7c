"""The contract between a server's rule, its clients and whatever runs them.

A federated method is a *rule*: a state machine that is told of events (an update has come, a timer rang, a task
failed) and answers with commands (send the model, set a timer, I have aggregated, stop). It knows no clock, threads or
transport, so that the very same rule runs in `SimulatedEngine`, whose seconds are simulated, and on `RayEngine`, whose
seconds are real; and so that a rule which is given the same events makes the same models bit for bit (`replay`).

A *client* turns the model that it was sent into a `Reply`. What it returns is a **delta**: its model after work minus
the model that it was sent, never minus the server's current one. Integer and boolean entries of a state (the counter of
a batch norm, say) cannot be averaged: a delta carries the client's own value of them.
"""

from __future__ import annotations

import abc
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, Protocol, runtime_checkable

import torch
from torch import Tensor

from steepest.core.errors import at_least, check, kind_error, nonnegative, one_of, optional, value_error

__all__ = [
    "Aggregated",
    "Client",
    "ClientError",
    "ClientInfo",
    "Command",
    "Failure",
    "FailureKind",
    "FunctionClient",
    "Reply",
    "Send",
    "ServerRule",
    "State",
    "Stop",
    "Task",
    "Timer",
    "Update",
    "as_state",
    "fault_of",
    "floating",
    "moved",
    "state_bytes",
    "weighted_sum",
]

State = dict[str, Tensor]
FailureKind = Literal["exception", "died", "timeout", "nonfinite", "malformed"]


@dataclass(frozen=True)
class ClientInfo:
    """What a rule is told about a client before the first task.

    `expected_time` is the mean number of seconds of a task where the engine knows it (a simulation does), else None.
    `law` and `sigma` describe the times' distribution, and `draws` samples it where it has no name.
    """

    index: int
    n_samples: int
    expected_time: float | None = None
    law: str = "constant"
    sigma: float = 0.0
    draws: tuple[float, ...] = ()


@dataclass(frozen=True)
class Task:
    """One piece of work of one client.

    `number` counts the client's tasks from 0, `seed` depends on the run's seed, the client and the number alone, and
    `version` is the number of aggregations behind the model that is sent. `attempt` counts how often this very task was
    begun.
    """

    task_id: int
    client: int
    number: int
    version: int
    seed: int
    attempt: int = 0
    payload: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Reply:
    """What a client returns: its `delta`, and what it wants to tell besides.

    Parameters
    ----------
    delta : dict of Tensor
        The model after work minus the model that was sent; the same keys, shapes and dtypes as the model.
    n_samples : int, optional
        Samples behind this update; the client's own number by default.
    metrics : dict of float
        Numbers for the result's `updates`.
    payload : dict
        What a rule needs besides the delta: tensors and plain values.
    """

    delta: State
    n_samples: int | None = None
    metrics: dict[str, float] = field(default_factory=dict)
    payload: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Update:
    """A reply on the server's side, with the task it answers and the seconds at which work began and ended."""

    task: Task
    delta: State
    n_samples: int
    metrics: dict[str, float]
    payload: dict[str, Any]
    started: float
    finished: float


@dataclass(frozen=True)
class Failure:
    """A task that brought no update; `time` is when the server learned of it."""

    task: Task
    kind: FailureKind
    error: str
    time: float


@dataclass(frozen=True)
class Send:
    """Send the model that is current when the message leaves, `after` seconds from now, and start a task."""

    client: int
    payload: dict[str, Any] = field(default_factory=dict)
    after: float = 0.0
    attempt: int = 0


@dataclass(frozen=True)
class Timer:
    """Ring `on_timer(tag)` at second `at` of the engine's clock."""

    at: float
    tag: str = ""


@dataclass(frozen=True)
class Aggregated:
    """The rule has just changed its model: who took part, with which factors, how many versions behind."""

    clients: Sequence[int]
    weights: Sequence[float]
    staleness: Sequence[int]


@dataclass(frozen=True)
class Stop:
    """The rule has ended the run."""

    reason: str
    success: bool = True


Command = Send | Timer | Aggregated | Stop


class ClientError(RuntimeError):
    """A client failed and the rule was told to raise; the text names client, task, kind and the original error."""

    def __init__(self, failure: Failure) -> None:
        task = failure.task
        super().__init__(f"client {task.client} failed in its task {task.number} ({failure.kind}): {failure.error}")
        self.failure = failure

    def __reduce__(self) -> tuple[type[ClientError], tuple[Failure]]:
        return ClientError, (self.failure,)


class ServerRule(abc.ABC):
    """A server as a state machine: told of events, it answers with commands.

    All methods are plain Python on tensors: no input or output, no sleeping, no look at a clock. A rule never changes a
    model in place, for clients may still be working on it: it puts a new one in `model` and says `Aggregated`.

    Parameters
    ----------
    on_failure : "retry", "drop" or "raise"
        What to do about a task that failed: send the current model again, forget the client, or raise `ClientError`.
    max_failures : int
        Failures of a client in a row after which a retry becomes a drop.
    backoff : float, optional
        Seconds before the first retry, doubled for each further one. None: 0 where the engine's time is simulated (it
        knows the clients' expected times), 0.1 elsewhere.

    Attributes
    ----------
    model : dict of Tensor
        The current global model.
    version : int
        Number of aggregations so far.
    dropped : list of int
        Clients that were given up, in the order of their dropping.
    """

    stops_itself: ClassVar[bool] = False
    """Whether a run ends without `until` and `max_aggregations`."""

    def __init__(
        self,
        *,
        on_failure: Literal["retry", "drop", "raise"] = "retry",
        max_failures: int = 3,
        backoff: float | None = None,
    ) -> None:
        check("on_failure", on_failure, one_of("retry", "drop", "raise"))
        check("max_failures", max_failures, at_least(1, integer=True))
        check("backoff", backoff, optional(nonnegative()))
        self.failure_policy, self.max_failures, self.backoff = on_failure, max_failures, backoff
        self.clients: list[ClientInfo] = []
        self.model: State = {}
        self.version = 0
        self.dropped: list[int] = []
        self.failures_in_a_row: dict[int, int] = {}

    # What a rule defines

    @abc.abstractmethod
    def start(self, clients: Sequence[ClientInfo], model: State, *, seed: int) -> list[Command]:
        """Begin: call `begin` and say who is sent the first model."""

    @abc.abstractmethod
    def on_update(self, update: Update, now: float) -> list[Command]:
        """Take in an update."""

    def on_timer(self, tag: str, now: float) -> list[Command]:
        """Answer a timer."""
        return []

    def on_drop(self, client: int, now: float) -> list[Command]:
        """Go on without a client: whatever waited for it must not wait any longer."""
        return []

    def on_retry(self, task: Task, after: float, now: float) -> list[Command]:
        """Try again, `after` seconds from now: the current model with what the failed task was sent, by default."""
        return [Send(task.client, task.payload, after, task.attempt + 1)]

    # What every rule shares

    def begin(self, clients: Sequence[ClientInfo], model: State) -> None:
        """Take note of clients and model at the start of a run."""
        self.clients, self.model, self.version = list(clients), model, 0
        self.dropped, self.failures_in_a_row = [], {}

    @property
    def living(self) -> list[int]:
        """Clients that were not dropped, ascending."""
        return [info.index for info in self.clients if info.index not in self.dropped]

    @property
    def time_is_known(self) -> bool:
        """Whether the engine told how long the clients' tasks take."""
        return all(info.expected_time is not None for info in self.clients)

    def on_failure(self, failure: Failure, now: float) -> list[Command]:
        """Retry, drop or raise, as the rule was told to.

        Raises
        ------
        ClientError
            With ``on_failure="raise"``.
        """
        client = failure.task.client
        if self.failure_policy == "raise":
            raise ClientError(failure)
        in_a_row = self.failures_in_a_row[client] = self.failures_in_a_row.get(client, 0) + 1
        if self.failure_policy == "retry" and in_a_row < self.max_failures:
            backoff = self.backoff if self.backoff is not None else 0.0 if self.time_is_known else 0.1
            return self.on_retry(failure.task, backoff * 2**failure.task.attempt, now)
        self.dropped.append(client)
        if not self.living:
            return [Stop(f"no client is left; the last one failed: {failure.kind}: {failure.error}", success=False)]
        return self.on_drop(client, now)

    def succeeded(self, client: int) -> None:
        """Note that a client's task went well, so that its earlier failures no longer count."""
        self.failures_in_a_row.pop(client, None)

    def state_dict(self) -> dict[str, Any]:
        """All that a continued run needs, in plain containers and tensors."""
        return {
            "model": self.model,
            "version": self.version,
            "dropped": list(self.dropped),
            "failures_in_a_row": dict(self.failures_in_a_row),
            "clients": [vars(info).copy() for info in self.clients],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Put back what `state_dict` gave."""
        self.model, self.version = state["model"], state["version"]
        self.dropped, self.failures_in_a_row = list(state["dropped"]), dict(state["failures_in_a_row"])
        self.clients = [ClientInfo(**{**info, "draws": tuple(info["draws"])}) for info in state["clients"]]


@runtime_checkable
class Client(Protocol):
    """Something that works on a model; all its randomness comes from ``task.seed``."""

    n_samples: int

    def fit(self, model: State, task: Task) -> Reply:
        """Work from `model`, which must not be changed."""

    def state_dict(self) -> dict[str, Any]:
        """What the client remembers between tasks; empty for most."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Put back what `state_dict` gave."""


class FunctionClient:
    """A client without memory, made of a function.

    Parameters
    ----------
    fn : callable
        ``fn(model, task) -> Reply``; draws from ``task.seed`` where it draws at all.
    n_samples : int
        Its share of the importance where a rule weighs by samples.

    Examples
    --------
    >>> import torch
    >>> client = FunctionClient(lambda model, task: Reply({"w": 0.1 * (1 - model["w"])}))
    >>> client.fit({"w": torch.zeros(2)}, Task(0, 0, 0, 0, seed=0)).delta
    {'w': tensor([0.1000, 0.1000])}
    """

    def __init__(self, fn: Callable[[State, Task], Reply], n_samples: int = 1) -> None:
        if not callable(fn):
            raise kind_error("fn", "callable as fn(model, task)", fn)
        check("n_samples", n_samples, at_least(1, integer=True))
        self.fn, self.n_samples = fn, n_samples

    def fit(self, model: State, task: Task) -> Reply:
        """Call the function."""
        return self.fn(model, task)

    def state_dict(self) -> dict[str, Any]:
        """Return nothing: the function has no memory."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take nothing."""


# States


def as_state(model: torch.nn.Module | Mapping[str, Tensor]) -> State:
    """Copy a module's state, or a dict of tensors, out of the caller's reach.

    Raises
    ------
    TypeError
        Neither a module nor a dict of tensors.
    """
    entries = model.state_dict() if isinstance(model, torch.nn.Module) else model
    if not isinstance(entries, Mapping) or not all(isinstance(v, Tensor) for v in entries.values()):
        raise kind_error("model", "a torch.nn.Module or a dict of tensors", model)
    for name, value in entries.items():
        if value.is_floating_point() and not bool(torch.isfinite(value).all()):
            raise value_error("model", "finite", f"a non-finite entry in {name!r}")
    return {str(name): value.detach().clone() for name, value in entries.items()}


def floating(state: Mapping[str, Tensor]) -> list[str]:
    """Names of the entries that can be averaged."""
    return [name for name, value in state.items() if value.is_floating_point() or value.is_complex()]


def state_bytes(*parts: object) -> int:
    """Bytes of the tensors in nested containers; a plain number counts as eight."""
    total = 0
    for part in parts:
        if isinstance(part, Tensor):
            total += part.numel() * part.element_size()
        elif isinstance(part, Mapping):
            total += state_bytes(*part.values())
        elif isinstance(part, (list, tuple)):
            total += state_bytes(*part)
        elif isinstance(part, (int, float)):
            total += 8
    return total


def fault_of(delta: object, model: State) -> tuple[FailureKind, str] | None:
    """Why a delta must not be aggregated: other entries than the model's, or a value that is not finite."""
    if not isinstance(delta, Mapping):
        return "malformed", f"delta must be a dict of tensors, got {type(delta).__name__}"
    if delta.keys() != model.keys():
        missing, extra = sorted(model.keys() - delta.keys()), sorted(map(str, delta.keys() - model.keys()))
        return "malformed", f"delta must have the model's entries; missing {missing}, unknown {extra}"
    for name, value in model.items():
        got = delta[name]
        if not isinstance(got, Tensor) or got.shape != value.shape or got.dtype != value.dtype:
            what = f"{tuple(got.shape)} {got.dtype}" if isinstance(got, Tensor) else type(got).__name__
            return "malformed", f"delta[{name!r}] must be {tuple(value.shape)} {value.dtype}, got {what}"
    tensors = [delta[name] for name in floating(model)]
    if tensors and not _all_finite(tensors):
        broken = [name for name in floating(model) if not bool(torch.isfinite(delta[name]).all())]
        return "nonfinite", f"delta has values that are not finite in {broken}"
    return None


def _all_finite(tensors: Sequence[Tensor]) -> bool:
    """Look at sums first: they are finite only if all terms are, and cost one pass."""
    if all(math.isfinite(abs(t.sum().item())) for t in tensors):
        return True
    return all(bool(torch.isfinite(t).all()) for t in tensors)


def weighted_sum(states: Sequence[State], weights: Sequence[float], names: Iterable[str]) -> State:
    """Sum ``weights[k] * states[k]`` over the entries `names`, in the given order and in the entries' dtype."""
    keys = list(names)
    if not keys:
        return {}
    total = [states[0][name] * weights[0] for name in keys]
    for state, weight in zip(states[1:], weights[1:], strict=True):
        torch._foreach_add_(total, [state[name] for name in keys], alpha=weight)
    return dict(zip(keys, total, strict=True))


def moved(model: State, step: State, newest: Sequence[State] = ()) -> State:
    """The model after `step`; entries that cannot be averaged become the elementwise maximum over `newest`."""
    result = {}
    for name, value in model.items():
        if name in step:
            result[name] = value + step[name]
        else:
            for other in newest:
                value = torch.maximum(value, other[name])
            result[name] = value
    return result
