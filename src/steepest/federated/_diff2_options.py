"""What `diff2` accepts: options, clients and start, and what ``"auto"`` and None stand for."""

from __future__ import annotations

import math
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from steepest.core.errors import (
    at_least,
    boolean,
    check,
    interval,
    kind_error,
    nonnegative,
    one_of,
    optional,
    positive,
    value_error,
)
from steepest.federated._privacy import check_budget

__all__ = ["check_options", "local_batch", "read_clients", "read_start", "rounds_and_restart"]


def check_options(o: SimpleNamespace) -> None:
    """Everything that can be said about the arguments without the data; budgets are checked where they are spent."""
    noiseless = isinstance(o.epsilon, float) and math.isinf(o.epsilon)
    for name in ("lr", "clip", "clip_difference"):
        value = getattr(o, name)
        if not (name != "lr" and noiseless and isinstance(value, float) and value == math.inf):
            check(name, value, positive())
    check("routine", o.routine, one_of("gd", "bvr-l-sgd"))
    check("noise", o.noise, one_of("central", "local"))
    check("output", o.output, one_of("last", "random", "smallest_estimate", "best_half"))
    check("max_rounds", o.max_rounds, at_least(1, integer=True))
    check("chunk_size", o.chunk_size, optional(at_least(1, integer=True)))
    for name in ("secure_rng", "record_messages", "diagnostics"):
        check(name, getattr(o, name), boolean())
    check("seed", o.seed, optional(nonnegative(integer=True)))
    if o.secure_rng and o.seed is not None:
        raise value_error("seed", "None with secure_rng=True, whose noise cannot be repeated", o.seed)
    for name in ("fun", "per_sample_grad", "public_term", "engine", "callback"):
        if getattr(o, name) is not None and not callable(getattr(o, name)):
            raise kind_error(name, "callable or None", getattr(o, name))
    if o.fun is None and o.per_sample_grad is None:
        raise value_error("fun", "callable where per_sample_grad is not given", None)
    for function in (o.fun, o.per_sample_grad):
        if any(isinstance(layer, nn.modules.batchnorm._BatchNorm) for m in _modules(function) for layer in m.modules()):
            raise value_error("fun", "without batch normalization, which mixes samples", "a module that contains it")
    if o.routine == "bvr-l-sgd":
        check("local_steps", o.local_steps, at_least(1, integer=True))
        check("local_batch_size", o.local_batch_size, optional(at_least(1, integer=True)))
        check("local_share", o.local_share, interval(0, 1, low_open=True, high_open=True))
    check_budget(o.epsilon, o.delta)


def _modules(function: Any) -> list[nn.Module]:
    """Modules that a function visibly uses: itself, its owner, what it closes over or has bound."""
    cells = [cell.cell_contents for cell in getattr(function, "__closure__", None) or ()]
    bound = [*getattr(function, "args", ()), *getattr(function, "keywords", {}).values()]
    seen = [function, getattr(function, "__self__", None), *cells, *bound]
    return [thing for thing in seen if isinstance(thing, nn.Module)]


def read_clients(clients: Any) -> list[tuple[Tensor, ...]]:
    """A list of tuples of tensors, all of one client's of the same length."""
    if isinstance(clients, tuple) and clients and all(isinstance(part, Tensor) for part in clients):
        clients = [clients]
    if not isinstance(clients, Sequence) or not clients:
        raise kind_error("clients", "a list of tuples of tensors, or one tuple", clients)
    for k, parts in enumerate(clients):
        if not isinstance(parts, (tuple, list)) or not parts or not all(isinstance(p, Tensor) for p in parts):
            raise kind_error(f"clients[{k}]", "a tuple of tensors", parts)
        lengths = [len(p) if p.ndim else 0 for p in parts]
        if len(set(lengths)) > 1:
            raise value_error(f"clients[{k}]", "tensors of one length", f"lengths {lengths}")
        if lengths[0] == 0:
            raise value_error(f"clients[{k}]", "at least one sample", "none")
    return [tuple(parts) for parts in clients]


def read_start(x0: Any) -> Tensor:
    if not isinstance(x0, Tensor) or x0.ndim != 1 or not x0.is_floating_point() or not x0.numel():
        raise kind_error("x0", "a floating-point tensor of shape (d,)", x0)
    if not bool(torch.isfinite(x0).all()):
        raise value_error("x0", "finite", "an entry that is not")
    return x0.detach()


def rounds_and_restart(o: SimpleNamespace, kappa: float) -> tuple[int, int]:
    """R and T; what is "auto" follows kappa."""
    rounds, restart = o.rounds, o.restart
    if rounds == "auto":
        steps = kappa if restart == 1 else kappa ** (4 / 3)
        per_round = o.local_steps if o.routine == "bvr-l-sgd" else 1
        rounds = int(min(max(1.0, math.ceil(min(steps, 1e15) / per_round)), o.max_rounds))
    check("rounds", rounds, at_least(1, integer=True))
    if restart == "auto":
        restart = int(min(max(1.0, round(min(kappa ** (2 / 3), 1e15))), rounds))
    check("restart", restart, at_least(1, integer=True))
    if restart > rounds:
        raise value_error("restart", f"at most rounds ({rounds})", restart)
    return rounds, restart


def local_batch(o: SimpleNamespace, data: list[tuple[Tensor, ...]]) -> int:
    """b: at most the smallest client's number of samples."""
    smallest = min(len(parts[0]) for parts in data)
    b = getattr(o, "local_batch_size", None) or max(1, smallest // 10)
    if b > smallest:
        raise value_error("local_batch_size", f"at most the smallest client's samples ({smallest})", b)
    return int(b)
