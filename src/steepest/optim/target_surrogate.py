r"""One gradient of the loss, many steps of the parameters, where that gradient is dear and the model is cheap.

    minimize l(f(theta))                        z = f(theta) (n, ...) the targets, l dear, f cheap
    z_t = f(theta_t),  g_t = grad l(z_t)        the only gradient of l in an outer step
    s_t(theta) = l(z_t) + <g_t, f(theta) - z_t> + D(f(theta), z_t) / (eta_t nu) + weight_decay ||theta||^2 / 2
    theta_{t+1} = `inner_steps` steps of a deterministic minimizer on s_t from theta_t

With 1/eta >= L, L the smoothness of one row's loss (squared error without 1/2: 2, logistic: 1/4, softmax cross-entropy:
1/2), s_t >= l and s_t(theta_t) = l(z_t): whatever lowers s_t lowers l. One gradient step of size a on s_t is SGD's. The
exact minimizer of s_t for f(theta) = X theta is projected gradient descent in target space, z - eta P_X (nu g). For
softmax cross-entropy of logits, D = KL and eta = 1 give s_t = l: the surrogate is exact.

Paper: lavington2023target, Alg. 1 and Sec. 3 to 5.
Notation: t outer steps, nu = n rows for a loss that is a mean over them and 1 for a sum, so that eta is a step of one
sample; g~ = nu g; eta is `target_lr`, times a schedule, times ``lr`` of the group.
Departures from the published code: (1) D is half the squared distance, so that its step is twice ours. (2) It averages
s over rows and columns; ours has the loss's own scale, which `inner_lr` refers to. (3) An inner search that accepts
nothing keeps the parameters, where it took its last trial. (4) It expands a by 1.8^(1/batches); here it is 1.8, as the
first trial of each outer step is `inner_lr`. (5) D = KL for one column (Bernoulli).
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from steepest.core.distributed import all_reduce_mean, all_reduce_sum, resolve_group
from steepest.core.errors import (
    ConvergenceWarning,
    Limit,
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
from steepest.optim._base import SteepestOptimizer
from steepest.optim._surrogate import DIVERGENCES, Surrogate, Targets
from steepest.optim._target_search import Search, Taken, armijo_descent, armijo_target, lbfgs, norm, with_optimizer

__all__ = ["TargetSurrogate"]

TargetLoss = Callable[[Tensor], Any]
Inner = str | Callable[[Any], torch.optim.Optimizer]

_REAL = positive()
_RULES = ("armijo", "adagrad")
_TARGET_LR = Limit(
    "a number > 0, 'armijo' or 'adagrad'",
    lambda value: isinstance(value, str) or _REAL.kind(value),
    lambda value: value in _RULES if isinstance(value, str) else _REAL.test(value),
)
_INNER = Limit(
    "'armijo', 'lbfgs' or a callable that makes an optimizer of parameters",
    lambda value: isinstance(value, str) or callable(value),
    lambda value: not isinstance(value, str) or value in ("armijo", "lbfgs"),
)
_LIMITS: Mapping[str, Limit] = {
    "inner_steps": at_least(1, integer=True),
    "inner": _INNER,
    "divergence": one_of(*DIVERGENCES),
    "schedule": one_of("constant", "sqrt", "exponential"),
    "total_steps": optional(at_least(1, integer=True)),
    "reduction": one_of("mean", "sum"),
    "inner_lr": positive(),
    "c": interval(0, 1, low_open=True, high_open=True),
    "backtrack": interval(0, 1, low_open=True, high_open=True),
    "expand": at_least(1),
    "inner_tol": nonnegative(),
    "max_backtracks": nonnegative(integer=True),
    "outer_c": interval(0, 1, low_open=True, high_open=True),
    "adagrad_scale": positive(),
    "eps": nonnegative(),
    "check_deterministic": boolean(),
    "chunk_size": optional(at_least(1, integer=True)),
}
_JOINT = ("target_lr", "lr", "maximize", "foreach")  # s is one function of all groups


@dataclass(frozen=True)
class _Start:
    """What is known at theta_t: targets (with their graph where there is one), loss, gradient, eta and its state."""

    z: Tensor
    graph: Tensor | None
    loss: Tensor
    g: Tensor
    nu: int


class TargetSurrogate(SteepestOptimizer):
    r"""Minimize a surrogate in target space with one gradient of the loss a step (lavington2023target, Alg. 1).

    A step calls ``target_loss`` at the model's outputs once and the model often. The rest is torch's interface: groups,
    schedulers, state dicts.

    Parameters
    ----------
    params : iterable
        Tensors, ``(name, tensor)`` pairs, or dicts (param groups). Those that are frozen or that `forward` does not use
        never move. One surrogate serves all groups, so only `weight_decay` may differ between them.
    target_lr : float, "armijo" or "adagrad"
        eta, the step of one sample in target space; 1/L is safe (2 for softmax cross-entropy, 1/2 for squared error),
        larger ones are faster where they work. ``"armijo"`` searches it for every batch, with values of the loss and no
        gradients, from ``expand`` times the previous eta within [1e-4, 1e4]. ``"adagrad"``:
        ``adagrad_scale / (sqrt(sum over steps of ||g~||^2 / n) + eps)``. The groups' ``lr``, 1 at first, multiplies
        eta: it is what schedulers of torch change.
    inner_steps : int
        Steps on one surrogate (published grid: 1, 5, 10, 20, 100).
    inner : "armijo", "lbfgs" or callable
        Gradient descent with a backtracking search (published code); one call of `torch.optim.LBFGS` with strong Wolfe
        search and `inner_steps` iterations; or ``params -> torch.optim.Optimizer``, made fresh at each outer step.
    divergence : "euclidean" or "kl"
        D. ``"kl"`` wants logits (n, c), one column for a Bernoulli law, and ``target_lr=1`` for cross-entropy.
    schedule : "constant", "sqrt" or "exponential"
        Multiplies eta by 1, 1/sqrt(t) or ``(1/total_steps)^(t/total_steps)``, t from 1.
    total_steps : int, optional
        T of the exponential schedule.
    reduction : "mean" or "sum"
        How `target_loss` combines rows: nu is their number or 1. A wrong choice makes steps n times too short or long.
    inner_lr, c, backtrack, expand : float
        First trial a of every outer step, share of the predicted decrease that is asked for, factors after a refused
        trial and after an accepted one (published code).
    inner_tol : float
        The inner minimization ends at ``||grad s|| <= inner_tol``, before its first step too.
    max_backtracks : int
        Of one search; if none is accepted the parameters stay where they are.
    outer_c : float
        `c` of the search for eta.
    adagrad_scale, eps : float
        Of the AdaGrad rule.
    weight_decay : float
        Adds ``weight_decay ||theta||^2 / 2`` to the surrogate, not to the loss.
    maximize, foreach : bool
        As in `torch.optim.AdamW`; lists are the default on CUDA.
    check_deterministic : bool
        Call `forward` twice in the first step and compare.
    chunk_size : int, optional
        Rows of one inner forward pass. `forward` is then called with a slice of rows and returns their targets, fewer
        than asked for where they end. Targets may be returned on the CPU to save the accelerator's memory.
    process_group
        None, ``"default"`` or a group. Every rank calls `step` with as many rows of its own; loss and surrogate are the
        mean (or sum, as `reduction` says) over ranks, so every rank takes the decisions of one process with all rows.

    Attributes
    ----------
    info : dict
        Of the last step: ``loss``, ``eta``, ``surrogate`` (list: value at the start and after each inner step, for
        ``"lbfgs"`` at start and end), ``inner_steps`` (taken), ``loss_calls`` and ``forward_calls`` (so far, every call
        of either), ``backtracks`` (of the inner search), ``target_backtracks``.
    n_steps : int
        Outer steps done.

    Raises
    ------
    ValueError, TypeError
        An argument outside its limits, ``schedule="exponential"`` without `total_steps`, or groups that differ in
        `target_lr`.

    Notes
    -----
    State: t, the sum of AdaGrad and the last searched eta, in ``state_dict()["steepest"]``. Memory: copies of
    parameters and gradient (ten more pairs for ``"lbfgs"``) and of z and g. In half-precision models the surrogate and,
    within a step, the parameters are float32; these are rounded wherever the model is evaluated.

    Examples
    --------
    >>> X, y = torch.tensor([[1.0, 0.0], [0.0, 2.0], [1.0, 1.0]]), torch.tensor([1.0, -2.0, 0.0])
    >>> w = torch.nn.Parameter(torch.zeros(2))
    >>> opt = TargetSurrogate([w], target_lr=0.5, inner="lbfgs")
    >>> for _ in range(3):  # 1/L: the surrogate of a squared error is exact
    ...     loss = opt.step(lambda: X @ w, lambda z: (z - y).square().mean())
    >>> loss.item() < 1e-10, opt.info["loss_calls"]
    (True, 3)
    """

    LIMITS: ClassVar[Mapping[str, Limit]] = {"target_lr": _TARGET_LR, "weight_decay": nonnegative()}
    ATTRIBUTES: ClassVar[tuple[str, ...]] = (
        *SteepestOptimizer.ATTRIBUTES,
        *("info", "loss_calls", "forward_calls"),
        *("_options", "_process_group", "_adagrad_sum", "_searched_eta", "_warned"),
    )

    def __init__(
        self,
        params: Any,
        *,
        target_lr: float | str = 1.0,
        inner_steps: int = 10,
        inner: Inner = "armijo",
        divergence: str = "euclidean",
        schedule: str = "constant",
        total_steps: int | None = None,
        reduction: str = "mean",
        inner_lr: float = 10.0,
        c: float = 0.5,
        backtrack: float = 0.9,
        expand: float = 1.8,
        inner_tol: float = 1e-6,
        max_backtracks: int = 100,
        outer_c: float = 0.5,
        adagrad_scale: float = 1.0,
        weight_decay: float = 0.0,
        eps: float = 1e-8,
        maximize: bool = False,
        foreach: bool | None = None,
        check_deterministic: bool = True,
        chunk_size: int | None = None,
        process_group: Any = None,
    ) -> None:
        given = locals()
        self._options: dict[str, Any] = {name: given[name] for name in _LIMITS}
        for name, limit in _LIMITS.items():
            check(name, given[name], limit)
        if schedule == "exponential" and total_steps is None:
            raise value_error("total_steps", "the number of outer steps where schedule='exponential'", total_steps)
        resolve_group(process_group)
        self._process_group = process_group
        self._adagrad_sum, self._searched_eta, self._warned = 0.0, 1.0, False
        self.loss_calls = self.forward_calls = 0
        self.info: dict[str, Any] = {}
        defaults = {
            "target_lr": target_lr,
            "lr": 1.0,
            "weight_decay": weight_decay,
            "maximize": maximize,
            "foreach": foreach,
        }
        super().__init__(params, defaults)

    # ------------------------------------------------------------------------------------------------------- the step

    @torch.no_grad()
    def step(self, forward: Callable[..., Tensor], target_loss: TargetLoss) -> Tensor:  # type: ignore[override]
        """Do one outer step.

        Parameters
        ----------
        forward : callable
            ``forward()`` gives the targets z (n, ...) of the current parameters, the same whenever it is called within
            a step: one batch, no dropout. With `chunk_size` it is called with a slice of rows.
        target_loss : callable
            ``target_loss(z)`` gives a scalar tensor, which is differentiated once by z, or a pair (value, gradient of
            z's shape) where the loss is a black box.

        Returns
        -------
        Tensor
            l(z_t), detached; with a process group combined over its ranks.

        Raises
        ------
        ValueError
            The loss is no scalar, its gradient has another shape than z, or z depends on no parameter.
        RuntimeError
            `forward` gives different targets at the same parameters.
        FloatingPointError
            z, the loss, its gradient or that of the surrogate is not finite. Nothing has changed then.
        """
        self._check_joint()
        targets = Targets(forward, self._options["chunk_size"])
        try:
            loss, info = self._outer_step(targets, target_loss)
        finally:
            self.forward_calls += targets.calls
        self.info = info | {"loss_calls": self.loss_calls, "forward_calls": self.forward_calls}
        return loss

    def step_closure(self, closure: Callable[..., tuple[Tensor, TargetLoss]]) -> Tensor:
        """Do one outer step with torch's idiom: ``closure()`` gives z and the loss as a function of z.

        Same as ``step(lambda: closure()[0], closure()[1])``, without the second call.
        """
        losses: list[TargetLoss] = []

        def forward(*rows: slice) -> Tensor:
            z, target_loss = closure(*rows)
            if not losses:
                losses.append(target_loss)
            return z

        return self.step(forward, lambda z: losses[0](z))

    def _outer_step(self, targets: Targets, target_loss: TargetLoss) -> tuple[Tensor, dict[str, Any]]:
        t, sign = self.n_steps + 1, -1.0 if self.param_groups[0]["maximize"] else 1.0
        start = self._loss_and_gradient(targets, target_loss, sign)
        eta, searched, adagrad_sum, target_backtracks = self._target_step(start, target_loss, sign, t)
        trainable = [(p, g["weight_decay"]) for g in self.param_groups for p in g["params"] if p.requires_grad]
        s = Surrogate(
            targets,
            start.z,
            start.g,
            loss=float(start.loss),
            graph=start.graph,
            divergence=self._options["divergence"],
            weight=1 / (eta * start.nu) if eta else math.inf,
            params=[p for p, _ in trainable],
            decays=[float(decay) for _, decay in trainable],
            foreach=self._uses_foreach(self.param_groups[0], [p for p, _ in trainable]),
            reduce=self._reduce,
        )
        if not math.isfinite(norm(s.start_grads)):
            raise FloatingPointError("the gradient of the surrogate is not finite at the current parameters")
        try:
            taken = self._minimize(s) if eta else Taken()
        except BaseException:
            s.place(s.start)
            raise
        self.n_steps, self._searched_eta, self._adagrad_sum = t, searched, adagrad_sum
        if taken.failed and not self._warned:
            self._warned = True
            warnings.warn(
                "the inner minimization accepted no step, so the parameters stay: lower inner_lr, or raise "
                "max_backtracks or target_lr (said once)",
                ConvergenceWarning,
                stacklevel=5,
            )
        return sign * start.loss, {
            "loss": sign * float(start.loss),
            "eta": eta,
            "surrogate": [sign * (s.base + d) for d in taken.differences],
            "inner_steps": taken.steps,
            "backtracks": taken.backtracks,
            "target_backtracks": target_backtracks,
        }

    def _minimize(self, s: Surrogate) -> Taken:
        o = self._options
        if norm(s.start_grads) <= o["inner_tol"]:
            return Taken()
        if o["inner"] == "armijo":
            search = Search(o["inner_lr"], o["c"], o["backtrack"], o["expand"], o["max_backtracks"])
            return armijo_descent(s, o["inner_steps"], search, o["inner_tol"])
        if o["inner"] == "lbfgs":
            return lbfgs(s, o["inner_steps"])
        return with_optimizer(s, o["inner_steps"], o["inner"])

    # ----------------------------------------------------------------------------------------------- the dear gradient

    def _loss_and_gradient(self, targets: Targets, target_loss: TargetLoss, sign: float) -> _Start:
        """z_t, l(z_t) and g_t, checked."""
        graph = None
        if self._options["chunk_size"] is None:
            with torch.enable_grad():
                ((_, graph),) = targets.pieces()
            if not graph.requires_grad:
                raise ValueError("forward() must depend on a parameter of this optimizer that requires a gradient")
        z = targets.whole() if graph is None else graph.detach().clone()  # z may be a view of a parameter
        if self._options["divergence"] == "kl" and z.dim() != 2:
            raise value_error("forward()", "logits of shape (n, c) where divergence='kl'", z)
        if self._options["check_deterministic"] and self.n_steps == 0:
            self._demand_equal(z, targets.whole())
        leaf = z.clone().requires_grad_()
        self.loss_calls += 1
        with torch.enable_grad():
            loss, g = _split(target_loss(leaf), leaf)
        loss = loss.detach().to(z.dtype)
        self._demand_finite(z, loss, g)
        self._reduce([loss])
        return _Start(z, graph, sign * loss, sign * g, len(z) if self._options["reduction"] == "mean" else 1)

    def _reduce(self, tensors: list[Tensor]) -> None:
        """Combine over ranks as the loss combines rows, in place: what one process with all rows would have."""
        combine = all_reduce_mean if self._options["reduction"] == "mean" else all_reduce_sum
        combine(tensors, self._process_group)

    def _demand_equal(self, first: Tensor, second: Tensor) -> None:
        differ = torch.tensor(float(not torch.equal(first, second)), device=first.device)
        all_reduce_sum([differ], self._process_group)
        if differ:
            raise RuntimeError(
                "forward() gave different targets at the same parameters, so the surrogate bounds nothing: fix the "
                "batch, and put dropout into eval mode (check_deterministic=False skips this check)"
            )

    def _demand_finite(self, z: Tensor, loss: Tensor, g: Tensor) -> None:
        names = ("the targets forward() gave", "the loss", "the gradient of the loss")
        bad = torch.stack([(~t.isfinite().all()).to(torch.float32) for t in (z, loss, g)])
        all_reduce_sum([bad], self._process_group)
        for name, flag in zip(names, bad, strict=True):
            if flag:
                raise FloatingPointError(f"{name}: not finite, and nothing has been changed")

    # ------------------------------------------------------------------------------------------------------------- eta

    def _target_step(
        self, start: _Start, target_loss: TargetLoss, sign: float, t: int
    ) -> tuple[float, float, float, int]:
        """Give eta_t, and what becomes of the searched eta and of AdaGrad's sum, and the backtracks of the search."""
        o, group = self._options, self.param_groups[0]
        rule, searched, adagrad_sum, backtracks = group["target_lr"], self._searched_eta, self._adagrad_sum, 0
        g_tilde = start.nu * start.g
        if rule == "armijo":

            def loss_at(z: Tensor) -> float:
                self.loss_calls += 1
                value = _value(target_loss(z)).detach().to(z.dtype)
                self._reduce([value])
                return sign * float(value)

            slope = (start.g * g_tilde).sum()
            self._reduce([slope])
            search = Search(o["expand"] * searched, o["outer_c"], o["backtrack"], o["expand"], o["max_backtracks"])
            eta, backtracks = armijo_target(loss_at, start.z, g_tilde, float(start.loss), float(slope), search)
            searched = eta
        elif rule == "adagrad":
            square = g_tilde.square().sum() / start.nu
            self._reduce([square])
            adagrad_sum += float(square)
            eta = o["adagrad_scale"] / (math.sqrt(adagrad_sum) + o["eps"])
        else:
            eta = float(rule)
        factor = {
            "constant": lambda: 1.0,
            "sqrt": lambda: 1 / math.sqrt(t),
            "exponential": lambda: (1 / o["total_steps"]) ** (t / o["total_steps"]),
        }[o["schedule"]]()
        return eta * factor * float(group["lr"]), searched, adagrad_sum, backtracks

    # -------------------------------------------------------------------------------------------- groups, checkpoints

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take a state dict of a `TargetSurrogate`.

        Raises
        ------
        ValueError
            It is another optimizer's, which holds nothing to continue from, or its groups do not match.
        """
        if "searched_eta" not in state_dict.get("steepest", {}):
            raise value_error("state_dict", "one of TargetSurrogate", sorted(state_dict))
        super().load_state_dict(state_dict)

    def _check_joint(self) -> None:
        first = self.param_groups[0]
        for i, group in enumerate(self.param_groups):
            for name in _JOINT:
                if group[name] != first[name]:
                    raise value_error(f"{name} of group {i}", f"that of group 0, {first[name]!r}", group[name])
        check("lr", float(first["lr"]), nonnegative())

    def _check_param_group(self, index: int) -> None:
        super()._check_param_group(index)
        self._check_joint()

    def _extra_state(self) -> dict[str, Any]:
        return {
            "n_steps": self.n_steps,
            "adagrad_sum": self._adagrad_sum,
            "searched_eta": self._searched_eta,
            "loss_calls": self.loss_calls,
            "forward_calls": self.forward_calls,
        }

    def _load_extra_state(self, extra: Mapping[str, Any] | None) -> None:
        assert extra is not None  # load_state_dict has looked
        super()._load_extra_state(extra)
        self._adagrad_sum, self._searched_eta = float(extra["adagrad_sum"]), float(extra["searched_eta"])
        self.loss_calls, self.forward_calls = int(extra["loss_calls"]), int(extra["forward_calls"])


def _split(result: Any, z: Tensor) -> tuple[Tensor, Tensor]:
    """Value and gradient of what `target_loss` returned at the leaf z."""
    loss = _value(result)
    if isinstance(result, tuple):
        g = result[1]
        if not isinstance(g, Tensor):
            raise kind_error("the gradient of target_loss", "a tensor", g)
        if g.shape != z.shape:
            raise value_error("the gradient of target_loss", f"of the targets' shape {tuple(z.shape)}", g)
        return loss, g.detach().to(z.device, z.dtype)
    if not loss.requires_grad:
        raise value_error("target_loss(z)", "a function of z, or a pair (value, gradient)", loss)
    (g,) = torch.autograd.grad(loss, z, allow_unused=True)
    if g is None:
        raise value_error("target_loss(z)", "a function of z, or a pair (value, gradient)", loss)
    return loss, g


def _value(result: Any) -> Tensor:
    """The value of what `target_loss` returned: a scalar tensor, or the first of a pair."""
    value = result
    if isinstance(result, tuple):
        if len(result) != 2:
            raise value_error("target_loss(z)", "a scalar tensor or a pair (value, gradient)", result)
        value = torch.as_tensor(result[0], dtype=None if isinstance(result[0], Tensor) else torch.float64)
    if not isinstance(value, Tensor) or value.dim() != 0:
        raise value_error("target_loss(z)", "a scalar tensor or a pair (value, gradient)", value)
    return value
