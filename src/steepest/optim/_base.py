"""What all optimizers of this room share: checks, groups, state, checkpoints, and the choice of the path of a step.

How a subclass plugs in
-----------------------
It supplies (see `SteepestOptimizer` for each):

``LIMITS``
    What its hyperparameters may be; checked for every group. `betas_limit()` is the limit for a pair of betas. Checks
    of several arguments together go into ``_check_group(group)``.
``_init_state(p, group)``
    A dictionary of the state of one parameter, ``step`` excepted (the base owns it). `moment_like(p)` makes a moment.
``_update(group, p, g, state)``
    The update of one tensor in plain tensor operations, in place. `blockwise` cuts the work into blocks that stay in
    cache, negates the gradient for ``maximize``, and lets half-precision parameters be updated in float32 and rounded
    once. Scalars come from ``self._number(group, value)`` and ``self._step_number(group, state)``: floats, or 0-dim
    tensors where nothing may be read on the host; write arithmetic that takes both (``w.mul_(1 - lr * decay)``,
    ``w.sub_(u.mul_(lr))``, no ``alpha=lr``).
``_update_foreach(group, params, grads, states)``
    The same for lists (one device and dtype, gradients already negated for ``maximize``; state may be float32 where
    parameters are half precision: `foreach_working_copies`).
``KERNEL``
    A `steepest.optim._native.Kernel`, or None; with it ``_kernel_numbers(group)`` (the floats of its ``hyper``
    argument) and ``_kernel_sizes(p, state)`` (the integers of its ``sizes``, None: this tensor goes the plain way).

``step`` of a parameter is counted up before `_update` is called (natively: by the kernel). `_before_update(work)` runs
after the closure and before anything moves, with the gradients as they came, graphs included.

What lives outside the per-parameter state (counters, generators, pending curvature) goes through ``_extra_state()`` and
``_load_extra_state(extra)`` into ``state_dict()["steepest"]``, and by ``ATTRIBUTES`` through pickling and `deepcopy`.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, TypeAlias

import torch
from torch import Tensor
from torch.optim import Optimizer

from steepest.core.errors import (
    Limit,
    SteepestWarning,
    at_least,
    boolean,
    check,
    check_params,
    nonnegative,
    optional,
    value_error,
)
from steepest.optim._native import Kernel, Plan, native_wanted
from steepest.optim._tensors import blockwise, foreach_working_copies, is_plain, moment_dtype, moment_like

__all__ = ["SteepestOptimizer", "betas_limit", "blockwise", "foreach_working_copies", "moment_like"]

Group: TypeAlias = dict[str, Any]
State: TypeAlias = dict[str, Any]
Work: TypeAlias = list[tuple[Group, list[Tensor], list[Tensor]]]
Number: TypeAlias = float | Tensor

COUNTERS = frozenset({"step", "hessian_step"})  # 0-dim float32 whatever the parameter's dtype


class SteepestOptimizer(Optimizer):
    """Base of the optimizers; the module says what a subclass supplies.

    Parameters
    ----------
    params : iterable
        Tensors, ``(name, tensor)`` pairs, or dicts (param groups).
    defaults : dict
        The hyperparameters that groups may set.
    compile : bool, optional
        None: the native kernel where a C compiler is found and ``STEEPEST_COMPILE`` is not 0; False: never; True: as
        None, with a warning when there is no compiler.
    compile_after : int
        Steps before the kernel is built (once a machine) and used.

    Attributes
    ----------
    n_steps : int
        Calls of `step` that moved something; kept in the state dict.
    """

    LIMITS: ClassVar[Mapping[str, Limit]] = {}
    SHARED_LIMITS: ClassVar[Mapping[str, Limit]] = {
        "lr": nonnegative(),
        "maximize": boolean(),
        "foreach": optional(boolean()),
        "capturable": boolean(),
    }
    KERNEL: ClassVar[Kernel | None] = None
    ATTRIBUTES: ClassVar[tuple[str, ...]] = ("n_steps", "_compile", "_compile_after")

    def __init__(
        self, params: Any, defaults: dict[str, Any], *, compile: bool | None = None, compile_after: int = 20
    ) -> None:
        check("compile", compile, optional(boolean()))
        check("compile_after", compile_after, at_least(0, integer=True))
        check_params(defaults, self._limits(defaults))
        self._check_group(defaults)
        self.n_steps = 0
        self._compile, self._compile_after = compile, int(compile_after)
        self._plans: dict[int, Plan] = {}
        super().__init__(params, defaults)

    # ------------------------------------------------------------------------------------- what a subclass supplies

    def _check_group(self, group: Mapping[str, Any]) -> None:
        """Check arguments that depend on one another."""

    def _init_state(self, p: Tensor, group: Group) -> State:
        """Make the state of one parameter, `step` excepted."""
        raise NotImplementedError

    def _update(self, group: Group, p: Tensor, g: Tensor, state: State) -> None:
        """Update one tensor in place by plain tensor operations; `g` is not changed."""
        raise NotImplementedError

    def _update_each(self, group: Group, params: list[Tensor], grads: list[Tensor], states: list[State]) -> None:
        """Update tensors one by one."""
        for p, g, state in zip(params, grads, states, strict=True):
            self._update(group, p, g, state)

    def _update_foreach(self, group: Group, params: list[Tensor], grads: list[Tensor], states: list[State]) -> None:
        """Update tensors of one device and dtype in place; `grads` have the sign of a minimization."""
        raise NotImplementedError

    def _kernel_numbers(self, group: Group) -> Sequence[float]:
        """Give the numbers that `KERNEL` takes for a group."""
        raise NotImplementedError

    def _kernel_sizes(self, p: Tensor, state: State) -> Sequence[int] | None:
        """Give the integers that `KERNEL` takes for a tensor (dense), or None if it cannot serve it."""
        return (p.numel(),)

    def _before_update(self, work: Work) -> None:
        """Look at the gradients of all groups before anything moves."""

    def _extra_state(self) -> dict[str, Any]:
        """Give what a checkpoint holds outside the per-parameter state: plain values and tensors."""
        return {"n_steps": self.n_steps}

    def _load_extra_state(self, extra: Mapping[str, Any] | None) -> None:
        """Take what `_extra_state` gave, or None from a checkpoint without it."""
        self.n_steps = int(extra["n_steps"]) if extra is not None else 0

    # ------------------------------------------------------------------------------------------------------ the step

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Do one step; `closure`, if given, is called first with gradients enabled, and its value returned.

        Raises
        ------
        RuntimeError
            A gradient is sparse.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        work = self._collect()
        self._before_update(work)
        self._update_all(work)
        return loss

    def _collect(self) -> Work:
        work: Work = []
        for index, group in enumerate(self.param_groups):
            params: list[Tensor] = []
            grads: list[Tensor] = []
            for position, p in enumerate(group["params"]):
                g = p.grad
                if g is None:
                    continue
                if g.layout is not torch.strided:
                    raise RuntimeError(
                        f"{type(self).__name__} does not take sparse gradients, and the gradient of parameter "
                        f"{position} of group {index} is {g.layout}; use sparse=False or torch.optim.SparseAdam"
                    )
                if p.numel():
                    params.append(p)
                    grads.append(g)
            if params:
                work.append((group, params, grads))
        return work

    def _update_all(self, work: Work) -> None:
        for group, params, grads in work:
            self._update_group(group, params, _without_graphs(params, grads))
        if work:
            self.n_steps += 1

    def _update_group(self, group: Group, params: list[Tensor], grads: list[Tensor]) -> None:
        states = [self._state_of(p, group) for p in params]
        if self._is_native(group):
            params, grads, states = self._update_native(group, params, grads, states)
        if not params:
            return
        _count_up(states)
        if self._uses_foreach(group, params):
            self._update_in_lists(group, params, grads, states)
        else:
            self._update_each(group, params, grads, states)

    def _update_in_lists(self, group: Group, params: list[Tensor], grads: list[Tensor], states: list[State]) -> None:
        buckets: dict[tuple[torch.device, torch.dtype], list[tuple[Tensor, Tensor, State]]] = {}
        for p, g, state in zip(params, grads, states, strict=True):
            buckets.setdefault((p.device, p.dtype), []).append((p, g, state))
        for bucket in buckets.values():
            ps, gs, sts = (list(column) for column in zip(*bucket, strict=True))
            self._update_foreach(group, ps, list(torch._foreach_neg(gs)) if group["maximize"] else gs, sts)

    def _state_of(self, p: Tensor, group: Group) -> State:
        state: State = self.state[p]
        if "step" not in state:
            state["step"] = torch.zeros((), dtype=torch.float32, device=p.device if group["capturable"] else "cpu")
            state.update(self._init_state(p, group))
        return state

    def _uses_foreach(self, group: Group, params: list[Tensor]) -> bool:
        """Whether lists are the fastest path: measured, they are on CUDA and are not on the CPU."""
        if group["foreach"] is not None:
            return bool(group["foreach"])
        return all(p.is_cuda and is_plain(p) for p in params)

    def _is_native(self, group: Group) -> bool:
        if self.KERNEL is None or group["foreach"] or group["capturable"] or self.n_steps < self._compile_after:
            return False
        return not torch.compiler.is_compiling() and native_wanted(self._compile) and self.KERNEL.ready(self._compile)

    def _update_native(
        self, group: Group, params: list[Tensor], grads: list[Tensor], states: list[State]
    ) -> tuple[list[Tensor], list[Tensor], list[State]]:
        """Update what the kernel can serve and return the rest."""
        assert self.KERNEL is not None
        plan = self._plans.get(id(group))
        if plan is None or not plan.fits(params, states):
            plan = self._plans[id(group)] = Plan(self.KERNEL, params, states, self._kernel_sizes)
        rest = plan.run(grads, self._kernel_numbers(group))
        return [params[i] for i in rest], [grads[i] for i in rest], [states[i] for i in rest]

    # ------------------------------------------------------------------------------------------------------- scalars

    def _number(self, group: Group, value: Number) -> Number:
        """Read a hyperparameter: a float, or the tensor itself where the host must not read it."""
        if isinstance(value, Tensor) and not (group["capturable"] or torch.compiler.is_compiling()):
            return float(value)
        return value

    def _step_number(self, group: Group, state: State) -> Number:
        """Read the step of one parameter: a float, or a 0-dim tensor where the host must not read it."""
        step: Tensor = state["step"]
        if group["capturable"] or torch.compiler.is_compiling():
            return step if step.device.type == "mps" else step.double()
        return float(step)

    # -------------------------------------------------------------------------------------- groups, state, checkpoints

    def _limits(self, group: Mapping[str, Any]) -> dict[str, Limit]:
        limits = {**self.SHARED_LIMITS, **self.LIMITS}
        return {name: limit for name, limit in limits.items() if name in group}

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group of parameters, also in the middle of a run.

        Raises
        ------
        TypeError, ValueError
            A hyperparameter is outside its limits, or a parameter is complex.
        """
        super().add_param_group(param_group)
        try:
            self._check_param_group(len(self.param_groups) - 1)
        except (TypeError, ValueError):
            self.param_groups.pop()
            raise

    def _check_param_group(self, index: int) -> None:
        group = self.param_groups[index]
        check_params(group, self._limits(group))
        self._check_group(group)
        for position, p in enumerate(group["params"]):
            if p.is_complex():
                where = f"parameter {position} of group {index}"
                raise value_error(where, "real", p, "optimize torch.view_as_real of it")

    def state_dict(self) -> dict[str, Any]:
        """Give the state as `torch.optim.Optimizer.state_dict` does, and under "steepest" what else a run needs."""
        # a hook of the base runs before this key exists, so it may add keys of its own but not see ours
        return {**super().state_dict(), "steepest": self._extra_state()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take a state dict; it is copied, and a checkpoint of AdamW is welcome (with one warning).

        Raises
        ------
        ValueError
            The groups do not match.
        """
        extra = state_dict.get("steepest")
        if extra is None:
            warnings.warn(
                f"the checkpoint has no key 'steepest', so {type(self).__name__} starts with fresh counters, "
                "probes and curvature; moments and steps are taken over",
                SteepestWarning,
                stacklevel=2,
            )
        super().load_state_dict({k: v for k, v in state_dict.items() if k != "steepest"})
        saved_ids = [i for g in state_dict["param_groups"] for i in g["params"]]
        ours = [(p, g) for g in self.param_groups for p in g["params"]]
        for saved_id, (p, group) in zip(saved_ids, ours, strict=True):
            if saved_id in state_dict["state"]:
                self.state[p] = self._adopt(state_dict["state"][saved_id], p, group)
        for index in range(len(self.param_groups)):
            self._check_param_group(index)
        self._load_extra_state(extra)

    def _adopt(self, saved: Mapping[str, Any], p: Tensor, group: Group) -> State:
        """Copy the state of one parameter with the dtypes, device and memory format of this optimizer."""
        state: State = {}
        for name, value in saved.items():
            if name in COUNTERS:
                device = p.device if group["capturable"] else torch.device("cpu")
                state[name] = torch.as_tensor(value, dtype=torch.float32).to(device, copy=True)
            elif not isinstance(value, Tensor):
                state[name] = value
            elif value.is_floating_point():
                new = moment_like(p) if value.shape == p.shape else value.new_empty(value.shape, device=p.device)
                state[name] = new.to(moment_dtype(p)).copy_(value)
            else:
                state[name] = value.to(p.device, copy=True)
        if "step" in state:
            for name, value in self._init_state(p, group).items():
                state.setdefault(name, value)
        return state

    def __getstate__(self) -> dict[str, Any]:
        kept = {name: getattr(self, name) for name in self.ATTRIBUTES}
        return {**super().__getstate__(), **kept}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._plans = {}
        for group in self.param_groups:
            for name, default in self.defaults.items():
                group.setdefault(name, default)


def betas_limit(n: int = 2) -> Limit:
    """`n` numbers in [0, 1)."""

    def numbers(value: Any) -> bool:
        return (
            isinstance(value, tuple | list)
            and len(value) == n
            and all(isinstance(b, int | float) and not isinstance(b, bool) for b in value)
        )

    return Limit(f"{n} numbers in [0, 1)", numbers, lambda value: all(0 <= float(b) < 1 for b in value))


def _without_graphs(params: list[Tensor], grads: list[Tensor]) -> list[Tensor]:
    """Detach gradients that carry a graph, and drop the graph from ``p.grad`` (same values, no reference cycle)."""
    if not any(g.requires_grad for g in grads):
        return grads
    detached = [g.detach() for g in grads]
    for p, g, d in zip(params, grads, detached, strict=True):
        if g.requires_grad:
            p.grad = d
    return detached


def _count_up(states: list[State]) -> None:
    steps = [state["step"] for state in states]
    if all(step.is_cpu for step in steps):  # one tensor for the number, or torch wraps it for every state anew
        torch._foreach_add_(steps, torch.ones(()), alpha=1.0)
    else:
        torch._foreach_add_(steps, 1.0)
