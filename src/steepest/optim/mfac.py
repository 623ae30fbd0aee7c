r"""M-FAC: natural-gradient steps with the empirical Fisher of the last m gradients, exact and in O(d m).

    g_t = gradient + weight_decay w        enters the window, the oldest gradient leaves
    u   = F^{-1} g_t,                      F = damping I + (1/m) sum over the window of g g^T
    v   = momentum v + (1 - momentum) u,   w <- w - lr v

Paper: frantar2021mfac, dynamic algorithm and optimization experiments.

===========  ============
paper        here
===========  ============
λ            ``damping``
m            ``window``
η            ``lr``
===========  ============

Departures: (1) u comes from one solve with the window's Gram matrix, u = m G^T (G G^T + m λ I)^{-1} e_t, which
subtracts nothing and needs no second pass for dot products; (2) a parameter without a gradient contributes zeros and
is not moved; (3) a gradient that is not finite never enters the window (`dropped_estimates`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from steepest.core.distributed import all_reduce_sum, group_rank, group_size, resolve_group
from steepest.core.errors import (
    Limit,
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
from steepest.curvature._sliding_fisher import SlidingFisherInverse
from steepest.optim._base import Group, State, SteepestOptimizer, Work, _without_graphs, moment_like

__all__ = ["MFAC"]

Masks = Mapping[str, Tensor] | Sequence[Tensor | None] | None


class MFAC(SteepestOptimizer):
    """Natural gradient on the empirical Fisher of a sliding window of gradients.

    Parameters
    ----------
    params : iterable
        Tensors, ``(name, tensor)`` pairs, or dicts (param groups). One window spans all groups.
    lr : float
        Step size (official code: 1e-3).
    momentum : float
        Average of past updates, ``v = momentum v + (1 - momentum) u`` (official code: 0).
    weight_decay : float
        Coupled: ``weight_decay * w`` is added to the gradient before it enters the window, as in the official code
        (0; 3e-3 for ResNet-20 in the paper).
    window : int
        Gradients m in the window (official code: 1024; 512 for ResNet-20). Memory is ``m d`` values.
    damping : float
        λ > 0 (official code: 1e-5). The attribute may be changed between steps.
    normalize : "window" or "count"
        Whether a window that is not full divides by its length (official code) or by the gradients in it.
    sparse : bool
        Leave out weights that are exactly zero now, for ever: they never move and take no memory.
    mask : dict of name to bool Tensor, or sequence of bool Tensor or None in the order of the parameters
        True where a weight takes part; better than `sparse`, since a weight may be zero by chance. A dict (such as the
        result of `mfac_prune`) needs named parameters; names left out take part whole.
    history_device : torch.device or str, optional
        Where the window lies and the products are made; the device of the first parameter by default.
    history_dtype : torch.dtype, optional
        Of the stored gradients, e.g. bfloat16 for half the memory (arithmetic is float32). By default float32, or
        float64 if a parameter is.
    maximize : bool
        Ascend.
    process_group : None, "default" or a group
        For replicated parameters with equal gradients: each rank holds its share of the window's columns, and the
        update is summed together; `state_dict` holds the rank's share. Parameters sharded by ``fully_shard`` need no
        argument.

    Attributes
    ----------
    fisher : SlidingFisherInverse
        The window, for inverse products of one's own.
    dropped_estimates : int
        Gradients that were not finite. Such a step is applied as any optimizer would (its update is not finite), but
        the window is as before.

    Raises
    ------
    ValueError, TypeError
        Hyperparameters out of range, complex parameters, masks that do not fit.
    MemoryError
        The window does not fit; the text says how many bytes it needs.
    RuntimeError
        Sparse gradients.
    torch.linalg.LinAlgError
        `damping` is below the rounding errors of the Gram matrix.

    Notes
    -----
    The gradient that a step uses is part of F, which bounds the update: ``|u| <= sqrt(m / damping) / 2``. A step waits
    for the device, to learn whether the gradient is finite and the factorization good.

    References
    ----------
    frantar2021mfac, dynamic algorithm.

    Examples
    --------
    >>> x = torch.randn(64, 3, generator=torch.Generator().manual_seed(0))
    >>> y = x @ torch.tensor([[1.0], [-2.0], [3.0]])
    >>> model = torch.nn.Linear(3, 1, bias=False)
    >>> optimizer = MFAC(model.parameters(), lr=0.3, window=16, damping=1.0)
    >>> for step in range(160):
    ...     rows = torch.arange(8) + 8 * (step % 8)
    ...     optimizer.zero_grad()
    ...     torch.nn.functional.mse_loss(model(x[rows]), y[rows]).backward()
    ...     optimizer.step()
    >>> [round(w, 2) for w in model.weight[0].tolist()]
    [1.0, -2.0, 3.0]
    """

    LIMITS: ClassVar[Mapping[str, Limit]] = {
        "momentum": interval(0, 1, high_open=True),
        "weight_decay": nonnegative(),
        "foreach": optional(one_of(False)),  # one path only
        "capturable": one_of(False),
    }
    ATTRIBUTES: ClassVar[tuple[str, ...]] = (
        *SteepestOptimizer.ATTRIBUTES,
        *("fisher", "dropped_estimates", "_kept", "_segments", "_sparse", "_mask", "_process_group", "_is_sharded"),
    )
    fisher: SlidingFisherInverse

    def __init__(
        self,
        params: Any,
        lr: float | Tensor = 1e-3,
        momentum: float = 0.0,
        weight_decay: float = 0.0,
        window: int = 1024,
        damping: float = 1e-5,
        *,
        normalize: str = "window",
        sparse: bool = False,
        mask: Masks = None,
        history_device: torch.device | str | None = None,
        history_dtype: torch.dtype | None = None,
        maximize: bool = False,
        process_group: Any = None,
    ) -> None:
        check("sparse", sparse, boolean())
        if sparse and mask is not None:
            raise value_error("sparse", "False with an explicit mask", sparse)
        resolve_group(process_group)
        self.dropped_estimates = 0
        self._sparse, self._mask, self._process_group = sparse, mask, process_group
        self._kept: list[Tensor | None] = []  # for each parameter: positions that take part, None for all
        self._segments: list[int] = []  # lengths of the pieces that are cut into shares of the ranks
        self._is_sharded = False
        defaults = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "maximize": maximize}
        super().__init__(params, defaults | {"foreach": False, "capturable": False}, compile=False)

        tensors: list[Any] = [p for _, p in self._parameters()]
        if isinstance(mask, Mapping):
            self._check_names(mask)
        elif mask is not None and len(mask) != len(tensors):
            raise value_error("mask", f"one entry for each of the {len(tensors)} parameters", len(mask))
        first = local(tensors[0])
        double = any(p.dtype == torch.float64 for p in tensors)
        self.fisher = SlidingFisherInverse(
            self._own_columns(),
            window,
            damping,
            dtype=history_dtype or (torch.float64 if double else torch.float32),
            device=history_device or first.device,
            normalize=normalize,
            process_group=tensors[0].device_mesh.get_group() if is_sharded(tensors[0]) else process_group,
        )
        self._mask = None  # from here on `_kept` says it

    @property
    def window(self) -> int:
        """Gradients in a full window."""
        return self.fisher.window

    @property
    def damping(self) -> float:
        """λ."""
        return self.fisher.damping

    @damping.setter
    def damping(self, value: float) -> None:
        check("damping", value, positive())
        self.fisher.damping = float(value)

    # ------------------------------------------------------------------------------------------------------ the step

    def _update_all(self, work: Work) -> None:
        if not work:
            return
        g = self._flat_gradient(work)
        try:
            u = self.fisher.push_matvec(g)
        except FloatingPointError:
            self.dropped_estimates += 1
            u = self.fisher.matvec(g)
        u = self._gathered(u)
        moving = {id(p) for _, params, _ in work for p in params}
        for group, p, kept, a, b in self._pieces():
            if id(p) in moving:
                update = u[a:b].to(p.device)
                if kept is not None:
                    update = update.new_zeros(local(p).numel()).index_copy_(0, kept, update)
                self._move(group, p, update.reshape(local(p).shape))
        self.n_steps += 1

    def _move(self, group: Group, p: Tensor, u: Tensor) -> None:
        """Average and step: v = momentum v + (1 - momentum) u,  w <- w - lr v."""
        state, beta, lr = self._state_of(p, group), group["momentum"], float(group["lr"])
        state["step"] += 1.0
        if beta:
            v = local(state.setdefault("momentum_buffer", moment_like(p)))
            v.mul_(beta).add_(u, alpha=1 - beta)
        else:
            v = u
        local(p).add_(v, alpha=-lr)

    def _init_state(self, p: Tensor, group: Group) -> State:
        return {"momentum_buffer": moment_like(p)} if group["momentum"] else {}

    def _flat_gradient(self, work: Work) -> Tensor:
        """g_t on this rank's columns of the window, where the window lies."""
        present: dict[int, Tensor] = {}
        for _, params, grads in work:
            present.update(zip(map(id, params), _without_graphs(params, grads), strict=True))
        pieces = list(self._pieces())
        device = local(pieces[0][1]).device
        g = torch.zeros(max(pieces[-1][-1], 1), dtype=self.fisher.vector_dtype, device=device)
        for group, p, kept, a, b in pieces:
            if id(p) not in present:
                continue
            part, grad, w = g[a:b], local(present[id(p)]).reshape(-1), local(p).reshape(-1)
            part.copy_(grad if kept is None else grad[kept])
            if group["maximize"]:
                part.neg_()
            if group["weight_decay"]:
                part.add_((w if kept is None else w[kept]).to(device), alpha=float(group["weight_decay"]))
        if self._is_sharded or self._process_group is None:
            return g.to(self.fisher.device)
        return torch.cat([g[a:b] for a, b in self._shares()]).to(self.fisher.device)

    def _gathered(self, u: Tensor) -> Tensor:
        """The update on all columns: what the other ranks hold is summed in."""
        if self._is_sharded or self._process_group is None:
            return u
        full = u.new_zeros(sum(self._segments))
        done = 0
        for a, b in self._shares():
            full[a:b] = u[done : done + b - a]
            done += b - a
        all_reduce_sum([full], self._process_group)
        return full

    # ------------------------------------------------------------------------------------------------ window columns

    def _parameters(self) -> Iterator[tuple[Group, Tensor]]:
        for group in self.param_groups:
            for p in group["params"]:
                yield group, p

    def _pieces(self) -> Iterator[tuple[Group, Tensor, Tensor | None, int, int]]:
        """(group, parameter, positions that take part, first and last column) of every parameter."""
        a = 0
        for (group, p), kept in zip(self._parameters(), self._kept, strict=True):
            b = a + (local(p).numel() if kept is None else len(kept))
            yield group, p, kept, a, b
            a = b

    def _shares(self) -> Iterator[tuple[int, int]]:
        """Where this rank's part lies of each segment of columns."""
        rank, size, start = group_rank(self._process_group), group_size(self._process_group), 0
        for n in self._segments:
            yield start + n * rank // size, start + n * (rank + 1) // size
            start += n

    def _own_columns(self) -> int:
        """How many columns this rank holds; one of zeros where it would have none."""
        if self._is_sharded or self._process_group is None:
            return max(sum(self._segments), 1)
        return max(sum(b - a for a, b in self._shares()), 1)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group of parameters; gradients already in the window count as zero on them.

        Raises
        ------
        TypeError, ValueError
            As in the constructor.
        """
        super().add_param_group(param_group)
        group = self.param_groups[-1]
        start = len(self._kept)
        try:
            kept = [self._positions(group, k, p, start + k) for k, p in enumerate(group["params"])]
        except (TypeError, ValueError):
            self.param_groups.pop()
            raise
        self._kept += kept
        n = sum(local(p).numel() if k is None else len(k) for p, k in zip(group["params"], kept))
        built, held = hasattr(self, "fisher"), self._own_columns() if self._segments else 0
        if built or not self._segments:
            self._segments.append(n)
        else:
            self._segments[0] += n
        if built:
            self.fisher.extend(self._own_columns() - held)

    def _positions(self, group: Group, position: int, p: Any, index: int) -> Tensor | None:
        """Positions of the weights of one parameter that take part; None for all."""
        if is_sharded(p):
            if p.device_mesh.ndim != 1 or not all(placement.is_shard() for placement in p.placements):
                raise value_error("params", "sharded over a one-dimensional mesh", str(p.placements))
            if self._mask is not None:
                raise value_error("mask", "None for sharded parameters", "a mask", "use sparse=True")
            self._is_sharded = True
        elif self._is_sharded:
            raise value_error("params", "either all sharded or none", f"parameter {index}")
        if self._sparse:
            keep = local(p).detach() != 0
            return None if bool(keep.all()) else keep.reshape(-1).nonzero().squeeze(1)
        given = self._mask_of(group, position, index)
        if given is None:
            return None
        if not isinstance(given, Tensor) or given.dtype != torch.bool:
            raise kind_error("mask", "made of bool tensors", given)
        if given.shape != p.shape:
            raise value_error("mask", f"of shape {tuple(p.shape)} for parameter {index}", given)
        return given.to(p.device).reshape(-1).nonzero().squeeze(1)

    def _mask_of(self, group: Group, position: int, index: int) -> Any:
        mask = self._mask
        if isinstance(mask, Mapping):
            if "param_names" not in group:
                raise value_error(
                    "mask", "a sequence where parameters have no names", "a dict", "pass named_parameters()"
                )
            return mask.get(group["param_names"][position])
        return mask[index] if mask is not None and index < len(mask) else None

    def _check_names(self, mask: Mapping[str, Tensor]) -> None:
        known = {name for group in self.param_groups for name in group.get("param_names", ())}
        for name in mask:
            if name not in known:
                raise value_error("mask", f"for parameters among {', '.join(sorted(known))}", name)

    # --------------------------------------------------------------------------------------------------- checkpoints

    def _extra_state(self) -> dict[str, Any]:
        return {
            **super()._extra_state(),
            "dropped_estimates": self.dropped_estimates,
            "window": self.fisher.state_dict(),
            "kept": list(self._kept),
            "segments": list(self._segments),
        }

    def _load_extra_state(self, extra: Mapping[str, Any] | None) -> None:
        super()._load_extra_state(extra)
        self.dropped_estimates = 0 if extra is None else int(extra["dropped_estimates"])
        if extra is None:
            self.fisher.clear()
            return
        pairs = zip(extra["kept"], self._parameters(), strict=True)
        self._kept = [None if kept is None else kept.to(local(p).device, copy=True) for kept, (_, p) in pairs]
        self._segments = list(extra["segments"])
        self.fisher.clear(self._own_columns())
        self.fisher.load_state_dict(extra["window"])


def is_sharded(t: Any) -> bool:
    """Whether a tensor is a `DTensor`; its module, slow to import, is left alone."""
    return hasattr(t, "placements") and hasattr(t, "to_local")


def local(t: Any) -> Tensor:
    """Give the part of a tensor that this rank holds: of a sharded one its shard, else all."""
    part: Tensor = t.to_local() if is_sharded(t) else t
    return part
