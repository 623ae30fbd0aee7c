r"""Aggregation rules for clients of unequal speed: FedAvg, asynchronous FedAvg, FedBuff and FedFix.

The server minimises ``L = sum_i p_i L_i``. Client i is sent a model, makes local steps and returns
``Delta_i = theta_i - theta_sent``. Aggregation n of every rule is, after Fraboni et al. [fraboni2022general],

    theta^{n+1} = theta^n + eta_g sum_i omega_i(n) Delta_i,

where the *stochastic aggregation weight* ``omega_i(n)`` is ``d_i`` if client i takes part and 0 if it does not. What
the rules minimise is the surrogate ``sum_i qt_i L_i`` with ``qt_i`` proportional to the expected weight
``q_i = E[omega_i]``: a rule that weighs all contributions alike pulls the model to the fast clients' data, and reaches
the intended optimum where ``qt = p``. The rules differ in when they aggregate, hence in the weights that do this:

==============  ==============================  ===============================  ==========================
rule            aggregates                      who restarts                     unbiased ``d_i``
==============  ==============================  ===============================  ==========================
`FedAvg`        when all have returned          all                              ``p_i``
`AsyncFedAvg`   at every return                 the one that returned            ``p_i tau_i sum_j 1/tau_j``
`FedBuff`       at every c-th return            the buffered ones                ``p_i / f_i``
`FedFix`        at ticks ``k * window``         those that returned since        ``ceil(tau_i/window) p_i b``
==============  ==============================  ===============================  ==========================

Ticks at which nothing has come are no aggregations: ``b`` is the share of the others. It is 1 if the window is no
shorter than the fastest client's time, the case of the paper; with it, `FedFix` tends to `AsyncFedAvg` as the window
shrinks.

Notation: ``p`` importance, ``tau`` mean seconds per task, ``f_i`` mean number of contributions of client i to an
aggregation, ``s`` staleness (aggregations between sending and use).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np

from steepest.core.errors import at_least, check, interval, one_of, optional, positive, value_error
from steepest.federated._averaging import AveragingRule
from steepest.federated._buffer_schedule import buffer_frequencies
from steepest.federated._seeds import RULE, stream
from steepest.federated._speeds import mean_ticks
from steepest.federated.engine import ClientInfo, Command, State, Task, Timer, Update

__all__ = ["AsyncFedAvg", "AveragingRule", "FedAvg", "FedBuff", "FedFix"]

_COMMON = """importance : "samples", "uniform" or array_like of shape (n_clients,)
        p, the clients' share of the objective; by their numbers of samples by default.
    server_lr : float
        eta_g.
    weights : "unbiased", "identical" or array_like of shape (n_clients,)
        The factors d: those under which the intended objective is minimised, the same for all, or your own.
    times : "auto", "expected", "observed" or array_like of shape (n_clients,)
        Where tau comes from: what the engine knows (a simulation does), a running mean of what was seen, or your own
        seconds. "auto" takes what is known, else what is seen.
    staleness : None, "polynomial" or callable
        A further factor ``(1 + s)^(-1/2)`` (FedBuff's), or ``staleness(s)``. It breaks the weights' unbiasedness.
    server_optimizer : callable, optional
        ``server_optimizer(parameters) -> torch.optim.Optimizer``, fed with ``-sum omega Delta`` as the gradient;
        `server_lr` is then a factor of that gradient.
    normalise_steps : bool
        Divide a delta by its number of local steps (``metrics["steps"]``) and multiply by the clients' mean of it, so
        that clients that make more steps do not weigh more.
    on_failure, max_failures, backoff
        As in `ServerRule`."""


class FedAvg(AveragingRule):
    """Aggregate when every client has returned, then send the new model to all.

    Parameters
    ----------
    fraction : float
        Share of the living clients that takes part in a round, drawn without replacement.
    deadline : float, optional
        Seconds after which a round is aggregated with those that have come; their importance is renormalised, and
        updates that come later are discarded and counted in `n_discarded`.
    {common}

    Raises
    ------
    ValueError
        A value out of range; of a wrong length at the start of a run.

    References
    ----------
    McMahan et al. [mcmahan2017communication].
    """

    def __init__(self, *, fraction: float = 1.0, deadline: float | None = None, **common: Any) -> None:
        super().__init__(**common)
        check("fraction", fraction, interval(0, 1, low_open=True))
        check("deadline", deadline, optional(positive()))
        self.fraction, self.deadline = fraction, deadline
        self.arguments |= {"fraction": fraction, "deadline": deadline}
        self.waiting: set[int] = set()
        self.at_work: set[int] = set()
        self.n_discarded = self.rounds = 0

    def participation(self) -> np.ndarray:
        """The share of clients that a round takes."""
        return np.full(len(self.clients), self.round_size() / max(len(self.living), 1))

    def identical_factor(self) -> float:
        """1/m for m clients in a round."""
        return 1 / max(self.round_size(), 1)

    def round_size(self) -> int:
        """Clients in a round."""
        return max(1, round(self.fraction * len(self.living))) if self.living else 0

    def start(self, clients: Sequence[ClientInfo], model: State, *, seed: int) -> list[Command]:
        """Send the first model."""
        self.seed, self.waiting, self.at_work, self.n_discarded, self.rounds = seed, set(), set(), 0, 0
        self.begin(clients, model)
        return self.next_round(0.0)

    def next_round(self, now: float) -> list[Command]:
        """Draw the clients of a round and send them the model; one that is still late is not drawn."""
        able = [client for client in self.living if client not in self.at_work]
        if not able:
            return []
        size = min(self.round_size(), len(able))
        if size < len(able):
            rng = stream(self.seed, RULE, 0, self.rounds)
            able = sorted(int(k) for k in rng.choice(able, size, replace=False))
        self.rounds += 1
        self.waiting = set(able)
        self.at_work |= self.waiting
        commands: list[Command] = self.send_all(able)
        if self.deadline is not None:
            commands.append(Timer(now + self.deadline, str(self.rounds)))
        return commands

    def on_update(self, update: Update, now: float) -> list[Command]:
        """Wait for the others; a late update is discarded."""
        client = update.task.client
        self.at_work.discard(client)
        if client not in self.waiting:
            self.n_discarded += 1
            return [] if self.waiting or self.buffer else self.next_round(now)
        self.waiting.discard(client)
        self.take(update)
        return self.finish_round(now)

    def finish_round(self, now: float) -> list[Command]:
        """Aggregate if nobody is waited for any more; importance is shared out anew if some were too late."""
        if self.waiting:
            return []
        done: list[Command] = []
        if self.buffer:
            came = float(sum(self.weights_[u.task.client] for u in self.buffer))
            short = len(self.buffer) < self.round_size() and came > 0
            done = [self.aggregate(1 / came if short else 1.0)]
        return done + self.next_round(now)

    def on_timer(self, tag: str, now: float) -> list[Command]:
        """The deadline of a round: aggregate those that have come."""
        if tag != str(self.rounds) or not self.waiting:
            return []
        self.waiting = set()
        return self.finish_round(now)

    def on_drop(self, client: int, now: float) -> list[Command]:
        """Do not wait for it."""
        super().on_drop(client, now)
        self.waiting.discard(client)
        self.at_work.discard(client)
        return self.finish_round(now)

    def on_retry(self, task: Task, after: float, now: float) -> list[Command]:
        """Try again within the round; a client that was late anyway joins a later one."""
        if task.client in self.waiting:
            return super().on_retry(task, after, now)
        self.at_work.discard(task.client)
        return [] if self.waiting or self.buffer else self.next_round(now)

    def state_dict(self) -> dict[str, Any]:
        """The rule's state."""
        return {
            **super().state_dict(),
            "waiting": sorted(self.waiting),
            "at_work": sorted(self.at_work),
            "counts": [self.n_discarded, self.rounds, self.seed],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Put back what `state_dict` gave."""
        super().load_state_dict(state)
        self.waiting, self.at_work = set(state["waiting"]), set(state["at_work"])
        self.n_discarded, self.rounds, self.seed = state["counts"]


class AsyncFedAvg(AveragingRule):
    """Aggregate at every return, and send the new model to the client that returned.

    Parameters
    ----------
    {common}
    """

    def participation(self) -> np.ndarray:
        """(1/tau_i) / sum_j 1/tau_j over the living."""
        rates = 1 / self.tau
        return rates / float(np.sum(rates[self.living]))

    def identical_factor(self) -> float:
        """1."""
        return 1.0

    def start(self, clients: Sequence[ClientInfo], model: State, *, seed: int) -> list[Command]:
        """Send the first model to all."""
        self.begin(clients, model)
        return self.send_all(self.living)

    def on_update(self, update: Update, now: float) -> list[Command]:
        """Aggregate and go on."""
        self.take(update)
        return [self.aggregate(), *self.send_all([update.task.client])]


class FedBuff(AveragingRule):
    """Aggregate when `buffer_size` updates have come.

    Parameters
    ----------
    buffer_size : int
        c; 5 and 10 are the values of Fraboni et al. [fraboni2022general].
    restart : "aggregation" or "immediate"
        Buffered clients idle until the buffer is full (which needs ``buffer_size <= n_clients``), or restart at once,
        as in Nguyen et al. [nguyen2022federated], and may be in the buffer twice.
    {common}

    Notes
    -----
    ``weights="unbiased"`` needs ``f_i``, the mean number of contributions to an aggregation: exact where the engine
    knows constant times, else the observed mean with one pseudo-aggregation of ``c / n``.
    """

    def __init__(
        self,
        buffer_size: int = 5,
        *,
        restart: Literal["aggregation", "immediate"] = "aggregation",
        **common: Any,
    ) -> None:
        super().__init__(**common)
        check("buffer_size", buffer_size, at_least(1, integer=True))
        check("restart", restart, one_of("aggregation", "immediate"))
        self.buffer_size, self.restart = buffer_size, restart
        self.arguments |= {"buffer_size": buffer_size, "restart": restart}
        self.contributions = np.zeros(0)

    def start(self, clients: Sequence[ClientInfo], model: State, *, seed: int) -> list[Command]:
        """Send the first model to all."""
        if self.restart == "aggregation" and self.buffer_size > len(clients):
            raise value_error("buffer_size", f"at most the number of clients ({len(clients)})", self.buffer_size)
        self.contributions = np.zeros(len(clients))
        self.begin(clients, model)
        return self.send_all(self.living)

    @property
    def exact(self) -> bool:
        """Whether the schedule is known beforehand."""
        return self.known and all(info.law == "constant" for info in self.clients)

    @property
    def size(self) -> int:
        """Updates that fill the buffer: no more than there are clients to wait for."""
        return min(self.buffer_size, len(self.living)) if self.restart == "aggregation" else self.buffer_size

    def participation(self) -> np.ndarray:
        """f, from the schedule of known constant times, else as observed."""
        living = self.living
        f = np.ones(len(self.clients))
        if self.exact:
            f[living] = buffer_frequencies(self.tau[living], self.size, self.restart)
        else:
            f[living] = (self.contributions[living] + self.size / len(living)) / (self.version + 1)
        return f

    def identical_factor(self) -> float:
        """1/c."""
        return 1 / self.size

    def on_update(self, update: Update, now: float) -> list[Command]:
        """Fill the buffer."""
        self.take(update)
        commands = self.empty_if_full()
        if self.restart == "immediate":
            commands += self.send_all([update.task.client])
        return commands

    def empty_if_full(self) -> list[Command]:
        """Aggregate a full buffer."""
        if len(self.buffer) < self.size:
            return []
        done = self.aggregate()
        np.add.at(self.contributions, np.asarray(done.clients), 1.0)
        if not self.exact:
            self.refresh()
        return [done, *(self.send_all(done.clients) if self.restart == "aggregation" else [])]

    def on_drop(self, client: int, now: float) -> list[Command]:
        """The buffer may be full now."""
        super().on_drop(client, now)
        return self.empty_if_full()

    def state_dict(self) -> dict[str, Any]:
        """The rule's state."""
        return {**super().state_dict(), "contributions": self.contributions.tolist()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Put back what `state_dict` gave."""
        self.contributions = np.array(state["contributions"])
        super().load_state_dict(state)


def _busy_share(ticks: np.ndarray) -> float:
    """Share of ticks at which at least one client returns, each after its mean number of `ticks`.

    Whole numbers, those of constant times, are counted through a common period, where it is short; else, and for random
    times, returns are taken as independent.
    """
    if ticks.min() <= 1:
        return 1.0
    whole = (ticks == np.round(ticks)).all()
    period = math.lcm(*np.unique(ticks).astype(int).tolist()) if whole else math.inf
    if period > _LONGEST_PERIOD:
        return float(1 - np.prod(1 - 1 / ticks))
    at = np.arange(1, int(period) + 1)
    busy = np.zeros(len(at), bool)
    for k in np.unique(ticks).astype(int):
        busy |= at % k == 0
    return float(busy.mean())


_LONGEST_PERIOD = 1_000_000


class FedFix(AveragingRule):
    """Aggregate at fixed ticks whatever has come since the last one.

    Short windows learn fast and jitter, long ones are steady and slow: `FedFix` with a window above the slowest
    client's time is `FedAvg`, with a window towards 0 it is `AsyncFedAvg`. A tick at which nothing has come changes
    nothing and is not counted.

    Parameters
    ----------
    window : float or "auto"
        Seconds between ticks; "auto" is the median of the clients' expected times.
    {common}

    Raises
    ------
    ValueError
        A window that is not positive and finite, or "auto" where the engine does not know the times.
    """

    def __init__(self, window: float | Literal["auto"], **common: Any) -> None:
        super().__init__(**common)
        if window != "auto":
            check("window", window, positive())
        self.window = window
        self.arguments |= {"window": window}
        self.tick, self.idle = 0, set[int]()

    def start(self, clients: Sequence[ClientInfo], model: State, *, seed: int) -> list[Command]:
        """Send the first model and set the first tick."""
        if self.window == "auto":
            times = self.times if not isinstance(self.times, str) else [info.expected_time for info in clients]
            if any(t is None for t in times):
                raise value_error("window", "a number, where the engine does not know the clients' times", "auto")
            self.seconds_per_tick = float(np.median(np.asarray(times, float)))
        else:
            self.seconds_per_tick = float(self.window)
        self.tick = 0
        self.begin(clients, model)
        return [*self.send_all(self.living), self.next_tick()]

    def next_tick(self) -> Timer:
        """Tick k is at ``k * window``, never a sum of windows."""
        self.tick += 1
        return Timer(self.tick * self.seconds_per_tick, "tick")

    def participation(self) -> np.ndarray:
        """1 / E[ceil(tau_i / window)] per tick, over the share of ticks at which anything comes."""
        own = None if isinstance(self.times, str) and self.known else self.tau
        ticks = np.array(
            [
                mean_ticks(info, self.seconds_per_tick, None if own is None else float(own[info.index]))
                for info in self.clients
            ]
        )
        return 1 / (ticks * _busy_share(ticks[self.living]))

    def identical_factor(self) -> float:
        """1/M."""
        return 1 / max(len(self.living), 1)

    def on_update(self, update: Update, now: float) -> list[Command]:
        """Let the client idle until the tick."""
        self.take(update)
        return []

    def on_timer(self, tag: str, now: float) -> list[Command]:
        """Aggregate what has come, and send the new model to those it came from."""
        if not self.buffer:
            return [self.next_tick()]
        done = self.aggregate()
        return [done, *self.send_all(done.clients), self.next_tick()]

    def state_dict(self) -> dict[str, Any]:
        """The rule's state."""
        return {**super().state_dict(), "tick": self.tick, "seconds_per_tick": self.seconds_per_tick}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Put back what `state_dict` gave."""
        self.tick, self.seconds_per_tick = state["tick"], state["seconds_per_tick"]
        super().load_state_dict(state)


for _rule in (FedAvg, AsyncFedAvg, FedBuff, FedFix):
    _rule.__doc__ = (_rule.__doc__ or "").replace("{common}", _COMMON)
