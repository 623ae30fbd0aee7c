r"""Differentially private learning over many data holders from differences of gradients.   minimize F(x)

    F(x) = (1/N) sum_{i,j} l(x; z_ij) + h(x)                    client i holds z_i1, z_i2, ...;  h is public
    r mod T = 0:   v_r = (1/N) sum clip_{C1}(grad l(x_r; z)) + N(0, (z1 s C1/N)^2 I)
    else:          v_r = v_{r-1} + (1/N) sum clip_{C_r}(grad l(x_r; z) - grad l(x_{r-1}; z)) + N(0, (z2 s C_r/N)^2 I),
                   C_r = C2 |x_r - x_{r-1}|
    x_{r+1} = x_r - lr (v_r + grad h(x_r)),      clip_C(u) = u min(1, C/|u|)

A difference of gradients is small where the step was small, and so is the noise that hides one record in it: noise is
paid for the change alone. With ``routine="bvr-l-sgd"`` one client, drawn beforehand, makes K steps from x_r between two
exchanges: y_0 = x_r, u_0 = v_r, and for k >= 1 on a Poisson sample of its own data at rate b/n_c

    u_k = u_{k-1} + (1/b) sum clip(grad l(y_k; z) - grad l(y_{k-1}; z)) + N(0, (z3 C2 |y_k - y_{k-1}| / b)^2 I)

and x_{r+1} = y_K. C_r depends on released values alone, so that noise with fixed multipliers composes adaptively; how
large they must be is in `_privacy`.

Paper: murata2023diff2, as its abstract describes it; routine: murata2021bias.
Notation: T = restart, C1 = clip, C2 = clip_difference, K = local_steps, b = local_batch_size, s = 2 where a record is
replaced and 1 where it is added or removed, ``kappa = N epsilon / sqrt(d log(1/delta))``.
Departures: derived here, not in the paper as far as we could read: the noise of each kind of message, the split of the
budget, and ``rounds="auto"``, which balances ``1/R + d R / (T N^2 epsilon^2)`` under ``T d R <= N^2 epsilon^2``: R
about kappa^(4/3), T about kappa^(2/3), for DP-GD R about kappa.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any, Literal

import numpy as np
from scipy.optimize import OptimizeResult
from torch import Tensor
from torch.func import grad

from steepest.core.driver import told
from steepest.core.errors import SteepestWarning
from steepest.core.random import child_seeds, fresh_seed
from steepest.federated._diff2_client import GradientClient, Mechanism, Rows, Samples
from steepest.federated._diff2_options import (
    check_options,
    local_batch,
    read_clients,
    read_start,
    rounds_and_restart,
)
from steepest.federated._diff2_server import Diff2Rule, Plan
from steepest.federated._privacy import LocalSteps, NoiseMultipliers, noise_multipliers, sensitivity
from steepest.federated.simulation import SimulatedEngine

__all__ = ["diff2", "dp_gd", "noise_multipliers"]

Data = Sequence[tuple[Tensor, ...]] | tuple[Tensor, ...]

_UNSTABLE = 0.3


def diff2(
    fun: Callable[..., Tensor] | None,
    x0: Tensor,
    clients: Data,
    *,
    epsilon: float,
    delta: float,
    rounds: int | Literal["auto"] = "auto",
    restart: int | Literal["auto"] = "auto",
    routine: Literal["gd", "bvr-l-sgd"] = "gd",
    lr: float,
    clip: float,
    clip_difference: float,
    public_term: Callable[[Tensor], Tensor] | None = None,
    neighbouring: Literal["replace", "add_remove"] = "replace",
    noise: Literal["central", "local"] = "central",
    restart_share: float = 0.5,
    local_steps: int = 10,
    local_batch_size: int | None = None,
    local_share: float = 0.3,
    accountant: Literal["pld", "rdp", "opacus-rdp", "opacus-prv"] = "pld",
    per_sample_grad: Callable[..., Rows] | None = None,
    chunk_size: int | None = None,
    output: Literal["last", "random", "smallest_estimate", "best_half"] = "last",
    max_rounds: int = 2000,
    seed: int | None = 0,
    secure_rng: bool = False,
    engine: Callable[[list[GradientClient]], Any] | None = None,
    record_messages: bool = False,
    diagnostics: bool = False,
    callback: Callable[..., Any] | None = None,
) -> OptimizeResult:
    """Minimize a mean of losses over private records with a proven (epsilon, delta), by DIFF2.

    Parameters
    ----------
    fun : callable
        ``fun(x, *sample) -> scalar``, the loss of one sample, differentiable by torch. May be None with
        `per_sample_grad`.
    x0 : Tensor of shape (d,)
        The start, which is public; its dtype and device are those of the run.
    clients : list of tuples of Tensor, or one tuple
        Each client's samples along the first axes.
    epsilon, delta : float
        The privacy of everything that is released, of one record against all others; ``inf`` is the method without
        noise. `delta` should be well below 1/N.
    rounds, restart : int or "auto"
        R and T; ``"auto"`` takes ``kappa^(4/3)`` steps and ``T = kappa^(2/3)``, at most `max_rounds` rounds.
    routine : "gd" or "bvr-l-sgd"
        A gradient step each round, or `local_steps` steps of one client between two rounds.
    lr : float
        Length of a step; for a loss with second derivatives at most L, below 1/L.
    clip, clip_difference : float
        C1, the norm that a sample's gradient is clipped to, and C2, that of its difference per unit of step. Too small
        biases, too large is paid in noise; neither may be chosen by looking at the private data.
    public_term : callable, optional
        h, ``public_term(x) -> scalar``: neither clipped nor noisy.
    neighbouring : "replace" or "add_remove"
        What is hidden: which of two records a data set has, or whether it has it. N is public in both cases.
    noise : "central" or "local"
        Central: each client adds a share, and only the sum, by secure aggregation or a trusted server, is private.
        Local: each client's message is private by itself, and the mean's noise is about sqrt(clients) larger.
    restart_share : float
        Share of the budget of messages that are means of gradients.
    local_steps : int
        K, with "bvr-l-sgd".
    local_batch_size : int, optional
        b, the expected size of a local sample; a tenth of the smallest client by default.
    local_share : float
        Share of the budget for local steps.
    accountant : "pld", "rdp", "opacus-rdp" or "opacus-prv"
        Who turns multipliers into epsilon; see `noise_multipliers`.
    per_sample_grad : callable, optional
        ``per_sample_grad(x, *batch)`` instead of automatic differentiation of `fun`: gradients of shape (m, d), or a
        pair ``c, a`` of shapes (m,) and (m, d) for gradients ``c_j a_j`` whose a does not depend on x, as in linear
        models; then none is written out.
    chunk_size : int, optional
        Samples whose gradients are made at a time; about 2^20 numbers by default.
    output : "last", "random", "smallest_estimate" or "best_half"
        Which point: the last one; one of the rounds' at random; that with the smallest ``|v_r|``, of all rounds or of
        the second half.
    max_rounds : int
    seed : int or None
        Of noise, samples and schedule. Whoever knows it can take the noise off again.
    secure_rng : bool
        Noise and samples from the operating system's entropy, which cannot be repeated; `seed` must be None.
    engine : callable, optional
        Makes an engine of the clients, e.g. ``functools.partial(RayEngine, workers=2)``; `SimulatedEngine` by default.
    record_messages : bool
        Keep every message, with and without noise. The result is then not private.
    diagnostics : bool
        Keep true losses, true gradients' norms and clipped fractions. The result is then not private.
    callback : callable, optional
        ``callback(intermediate_result)`` or ``callback(x)`` after each round; `StopIteration` ends the run.

    Returns
    -------
    OptimizeResult
        ``x``, ``nit`` (rounds), ``n_restarts``, ``epsilon`` (what the accountant says), ``delta``, ``accountant``,
        ``neighbouring``, ``noise``, ``z1, z2, z3``, ``private``, ``schedule`` (client of each round's local steps),
        ``estimates`` (``|v_r|``), ``steps`` (``|x_r - x_{r-1}|``), ``seed``, ``bytes_up``, ``bytes_down``,
        ``success``, ``message``; with ``record_messages`` ``messages`` (``round, kind, std, clean, released``), with
        ``diagnostics`` ``diagnostics`` (``round, loss, grad_norm, clipped, nonfinite``).

    Raises
    ------
    ValueError, TypeError
        A value out of range; an empty client; tensors of unequal lengths; `seed` beside `secure_rng`; a module with
        batch normalization, which mixes samples.
    ImportError
        The accountant's package is missing; the text has the command.

    Warns
    -----
    SteepestWarning
        ``delta >= 1/N``; noise that is large beside the steps (``z2 s C2 sqrt(d T) lr / N > 0.3``), with which the
        method diverges; a result that is not private.

    Notes
    -----
    A sample whose gradient is not finite counts as zero, which keeps the sensitivity. A client that fails is asked for
    the same message again, with the same noise; one that is lost ends the run with ``success=False``, as does
    ``|x| > 1e8 (1 + |x0|)``.

    References
    ----------
    Murata and Suzuki [murata2023diff2].

    Examples
    --------
    >>> import torch
    >>> a = torch.linspace(-1, 1, 2000, dtype=torch.float64).reshape(-1, 2)
    >>> loss = lambda x, z: ((x - z) ** 2).sum() / 2
    >>> result = diff2(loss, torch.ones(2, dtype=torch.float64), [(a[:500],), (a[500:],)], epsilon=1.0, delta=1e-5,
    ...                rounds=20, restart=5, lr=0.3, clip=3.0, clip_difference=1.0)
    >>> result.private, result.epsilon <= 1.0, bool((result.x - a.mean(0)).norm() < 0.2)
    (True, True, True)
    """
    return _run(SimpleNamespace(**locals()))


def dp_gd(
    fun: Callable[..., Tensor] | None,
    x0: Tensor,
    clients: Data,
    *,
    epsilon: float,
    delta: float,
    rounds: int | Literal["auto"] = "auto",
    lr: float,
    clip: float,
    public_term: Callable[[Tensor], Tensor] | None = None,
    neighbouring: Literal["replace", "add_remove"] = "replace",
    noise: Literal["central", "local"] = "central",
    accountant: Literal["pld", "rdp", "opacus-rdp", "opacus-prv"] = "pld",
    per_sample_grad: Callable[..., Rows] | None = None,
    chunk_size: int | None = None,
    output: Literal["last", "random", "smallest_estimate", "best_half"] = "last",
    max_rounds: int = 2000,
    seed: int | None = 0,
    secure_rng: bool = False,
    engine: Callable[[list[GradientClient]], Any] | None = None,
    record_messages: bool = False,
    diagnostics: bool = False,
    callback: Callable[..., Any] | None = None,
) -> OptimizeResult:
    """Minimize by differentially private gradient descent: `diff2` with a restart in every round.

    The arguments and the result are those of `diff2`; ``rounds="auto"`` takes kappa rounds.

    Examples
    --------
    >>> import torch
    >>> a = torch.linspace(-1, 1, 2000, dtype=torch.float64).reshape(-1, 2)
    >>> result = dp_gd(None, torch.ones(2, dtype=torch.float64), (a,), epsilon=1.0, delta=1e-5, rounds=10, lr=0.3,
    ...                clip=3.0, per_sample_grad=lambda x, z: x - z)
    >>> result.n_restarts, bool((result.x - a.mean(0)).norm() < 0.2)
    (10, True)
    """
    return _run(SimpleNamespace(**locals(), restart=1, clip_difference=1.0, routine="gd"))


# ---------------------------------------------------------------------------------------------------------- one run


def _run(o: SimpleNamespace) -> OptimizeResult:
    """Read the arguments, settle plan and noise, let an engine run the rule, and tell what may be told."""
    check_options(o)
    data = read_clients(o.clients)
    x0 = read_start(o.x0)
    N, d = sum(len(parts[0]) for parts in data), x0.numel()
    private = math.isfinite(o.epsilon)
    if private and o.delta >= 1 / N:
        text = f"delta={o.delta:g} is not below 1/N = {1 / N:.2g}: publishing one record at random would satisfy it"
        warnings.warn(text, SteepestWarning, stacklevel=3)
    if o.record_messages or o.diagnostics:
        text = "the result of record_messages=True or diagnostics=True is not private: it tells of true gradients"
        warnings.warn(text, SteepestWarning, stacklevel=3)
    seed = None if o.secure_rng else fresh_seed() if o.seed is None else o.seed
    rounds, restart = rounds_and_restart(o, N * o.epsilon / math.sqrt(d * math.log(1 / o.delta)))
    own = [None] * len(data) if seed is None else child_seeds(seed, len(data))
    plan = _plan(o, rounds, restart, len(data), seed)
    found = _multipliers(o, plan, [len(parts[0]) for parts in data])
    mechanism = Mechanism(
        clip=float(o.clip),
        clip_difference=float(o.clip_difference),
        z1=found.z1,
        z2=found.z2 or 0.0,
        z3=found.z3 or 0.0,
        sensitivity=sensitivity(o.neighbouring),
        local_noise=o.noise == "local",
        n_samples=N,
        n_clients=len(data),
        lr=float(o.lr),
        local_steps=getattr(o, "local_steps", 1),
        local_batch_size=local_batch(o, data),
        record=o.record_messages,
        diagnostics=o.diagnostics,
    )
    _warn_if_unstable(mechanism, restart, d)
    public = None if o.public_term is None else grad(o.public_term)
    members = [
        GradientClient(Samples(parts, o.fun, o.per_sample_grad, o.chunk_size), mechanism, public, own_seed)
        for parts, own_seed in zip(data, own, strict=True)
    ]
    rule = Diff2Rule(plan, mechanism, public)
    made = SimulatedEngine(members, record=()) if o.engine is None else o.engine(members)
    ran = made.run(rule, {"x": x0}, callback=_told(o.callback))
    books = rule.books
    return OptimizeResult(
        x=rule.best[1],
        nit=rule.round,
        n_restarts=-(-rule.round // restart),
        rounds=rounds,
        restart=restart,
        epsilon=found.epsilon,
        delta=o.delta,
        accountant=o.accountant,
        neighbouring=o.neighbouring,
        noise=o.noise,
        z1=found.z1,
        z2=found.z2,
        z3=found.z3,
        private=private and not (o.record_messages or o.diagnostics),
        schedule=plan.schedule,
        seed=seed,
        estimates=books.estimates,
        steps=books.steps,
        bytes_up=ran.bytes_up,
        bytes_down=ran.bytes_down,
        success=ran.success,
        message=ran.message,
        **({"messages": books.messages} if o.record_messages else {}),
        **({"diagnostics": books.diagnostics} if o.diagnostics else {}),
    )


def _plan(o: SimpleNamespace, rounds: int, restart: int, n_clients: int, seed: int | None) -> Plan:
    """Draw what is random and public: who makes the local steps, and which round's point is given back."""
    rng = np.random.default_rng(None if seed is None else np.random.SeedSequence([seed, n_clients]))
    chosen = int(rng.integers(rounds))
    schedule = tuple(rng.integers(n_clients, size=rounds).tolist()) if o.routine == "bvr-l-sgd" else ()
    return Plan(rounds, restart, schedule, o.output, chosen, repeatable=seed is not None)


def _multipliers(o: SimpleNamespace, plan: Plan, counts: list[int]) -> NoiseMultipliers:
    """Ask the accountant; each client's sampled steps are counted by the schedule."""
    local = None
    if plan.schedule and o.local_steps > 1:
        b = local_batch(o, read_clients(o.clients))
        steps = tuple((o.local_steps - 1) * plan.schedule.count(k) for k in range(len(counts)))
        local = LocalSteps(o.local_share, tuple(b / n for n in counts), steps)
    return noise_multipliers(
        o.epsilon,
        o.delta,
        rounds=plan.rounds,
        restart=plan.restart,
        restart_share=getattr(o, "restart_share", 0.5),
        neighbouring=o.neighbouring,
        accountant=o.accountant,
        local=local,
    )


def _warn_if_unstable(m: Mechanism, restart: int, d: int) -> None:
    """The noise of a difference is proportional to the step, whose own noise it feeds: a loop that must contract."""
    if not m.z2:
        return
    gain = m.lr * m.released_std("difference", m.clip_difference) * math.sqrt(d * restart)
    if gain > _UNSTABLE:
        warnings.warn(
            f"the noise of differences is {gain:.2g} of the step that causes it (z2 s C2 sqrt(d T) lr / N); above "
            f"{_UNSTABLE} the run is likely to diverge: lower lr or restart, or use fewer rounds or dp_gd",
            SteepestWarning,
            stacklevel=4,
        )


def _told(callback: Callable[..., Any] | None) -> Callable[..., Any] | None:
    """SciPy's two forms of a callback, behind the engine's one."""
    if callback is None:
        return None
    tell = told(callback)

    def tell_round(intermediate_result: OptimizeResult) -> None:
        tell(OptimizeResult(x=intermediate_result.model["x"], nit=intermediate_result.nit))

    return tell_round
