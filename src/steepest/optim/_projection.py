"""The projection of AdamP and SGDP, and the step around it.

    for (channel, layer):                                                            # heo2021adamp, Alg. 1
        c = max over rows of |<g, w>| / (||g|| ||w||)
        if c < delta / sqrt(length of a row):  q = u - w <w, u> / (||w|| + eps)^2,  ratio = wd_ratio;  stop
    otherwise q = u, ratio = 1
    w <- w (1 - lr weight_decay ratio);  w <- w - lr q

Notation: w weight, g its raw gradient, u the update before and q after the projection. A row is a slice of the first
axis (channel view) or the whole tensor (layer view).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from steepest.core.distributed import all_reduce_sum
from steepest.core.errors import Limit, boolean, interval, nonnegative, one_of
from steepest.optim._base import Group, Number, State, SteepestOptimizer
from steepest.optim._tensors import (
    BLOCK,
    foreach_working_copies,
    is_dense,
    is_plain,
    moment_dtype,
    moment_like,
    same_layout,
)

__all__ = ["BLOCK", "MODES", "Projected", "pieces"]

NONE, CHANNEL, LAYER, AUTO = 0, 1, 2, 3
MODES = {"none": NONE, "channel": CHANNEL, "layer": LAYER, "auto": AUTO}
NAMES = ("none", "channel", "layer")


class Projected(SteepestOptimizer):
    """The projection and the step around it; a subclass says what the update u is."""

    LIMITS: ClassVar[Mapping[str, Limit]] = {
        "eps": nonnegative(),
        "weight_decay": nonnegative(),
        "delta": nonnegative(),
        "wd_ratio": interval(0, 1),
        "nesterov": boolean(),
        "projection": one_of(*MODES),
    }
    MOMENTS: ClassVar[tuple[str, ...]]

    def projection_report(self) -> list[str]:
        """Say for each parameter, in the order of the groups, how its last update was projected.

        Returns
        -------
        list of str
            "none", "channel" or "layer"; "none" before the first step. Waits for the device.
        """
        states = [self.state.get(p, {}) for group in self.param_groups for p in group["params"]]
        return [NAMES[int(state.get("projection", NONE))] for state in states]

    # --------------------------------------------------------------------------------- what AdamP and SGDP differ in

    def _directions(
        self, group: Group, g: list[Tensor], moments: Sequence[list[Tensor]], t: list[Number]
    ) -> list[Tensor]:
        """Bring the moments up to date and give the updates u (new tensors, or the first moment itself)."""
        raise NotImplementedError

    def _step_size(self, group: Group, t: Number) -> Number:
        raise NotImplementedError

    def _decay(self, group: Group) -> Number:
        raise NotImplementedError

    # ----------------------------------------------------------------------------------------------- the plain paths

    def _init_state(self, p: Tensor, group: Group) -> State:
        projection = torch.zeros((), dtype=torch.int8, device=p.device)
        return {name: moment_like(p) for name in self.MOMENTS} | {"projection": projection}

    def _update_each(self, group: Group, params: list[Tensor], grads: list[Tensor], states: list[State]) -> None:
        """Matrices one by one; vectors, which are small, many and never projected, in lists."""
        items = list(zip(params, grads, states, strict=True))
        short = [item for item in items if item[0].dim() < 2 and is_plain(item[0])]
        if len(short) > 1 and sum(p.numel() for p, _, _ in short) <= max(p.numel() for p in params):
            self._update_in_lists(group, *(list(column) for column in zip(*short, strict=True)))
            items = [item for item in items if item[0].dim() > 1 or not is_plain(item[0])]
        for item in items:
            self._update(group, *item)

    def _update(self, group: Group, p: Tensor, g: Tensor, state: State) -> None:
        if p.device.type != "cpu" or group["capturable"] or torch.compiler.is_compiling() or not is_plain(p):
            self._update_foreach(group, [p], [g.neg() if group["maximize"] else g], [state])
            return
        t, eps, mode = self._step_number(group, state), group["eps"], _mode(group, p)
        sign, half = -1.0 if group["maximize"] else 1.0, moment_dtype(p) != p.dtype
        code = _decide_on_host(_row_blocks(p, g), p.numel(), group, half) if mode == AUTO else mode
        state["projection"].fill_(code)
        ratio = 1.0 if code == NONE else group["wd_ratio"]

        waiting = []
        block = min(BLOCK, p.numel() // 2) if code == CHANNEL else BLOCK  # two temporaries there, u and w * u
        for p_block, g_block, *m in _row_blocks(p, g, *(state[name] for name in self.MOMENTS), block=block):
            w, gw = (p_block.float(), g_block.float()) if half else (p_block, g_block)
            (u,) = self._directions(group, [gw if sign > 0 else gw.neg()], [[x] for x in m], [t])
            if code == LAYER:  # <w, u> spans all blocks
                row = w.reshape(1, -1)
                waiting.append((p_block, w, u, m[0], _dot(row, u.reshape(1, -1)), _norm(row)))
                continue
            if code == CHANNEL:
                u = self._project(group, u, w, _coefficient(_dot(w, u), _norm(w), eps), m[0])
            self._move(group, p_block, w, u, ratio, t)
            del u  # or it stays while the next one is made
        if waiting:
            dots, norms = (torch.cat(x) for x in list(zip(*waiting, strict=True))[-2:])
            coef = _coefficient(dots.sum(), _norm(norms), eps)
            for p_block, w, u, m0, _, _ in waiting:
                self._move(group, p_block, w, self._project(group, u, w, coef, m0), ratio, t)

    def _update_foreach(self, group: Group, params: list[Tensor], grads: list[Tensor], states: list[State]) -> None:
        eps = group["eps"]
        weights, grads = foreach_working_copies(list(map(_local, params)), list(map(_local, grads)))
        t = [self._step_number(group, state) for state in states]
        moments = [[_local(state[name]) for state in states] for name in self.MOMENTS]
        updates = self._directions(group, grads, moments, t)
        projected = [i for i, p in enumerate(params) if _mode(group, p) != NONE]
        rows = {i: (_dot(weights[i], updates[i]), *_products(weights[i], grads[i])) for i in projected}
        sums = {i: _sums(*rows[i], params[i].numel() / params[i].shape[0], group) for i in projected}
        _add_over_shards([params[i] for i in projected], [sums[i] for i in projected])
        for i, (p, w, u, m, k, state) in enumerate(zip(params, weights, updates, moments[0], t, states, strict=True)):
            ratio: Number = 1.0
            if i in sums:
                failed, gw, gg, ww, wu = sums[i].unbind()
                mode = _mode(group, p)
                code = torch.full_like(state["projection"], mode)
                if mode == AUTO:  # no branch: the host must not read it
                    floor = _floor(group, gw)
                    layer = _cosine(gw, gg.sqrt(), ww.sqrt(), floor) < group["delta"] / p.numel() ** 0.5
                    code = torch.where(failed == 0, CHANNEL, torch.where(layer, LAYER, NONE))
                by_row = _coefficient(rows[i][0], rows[i][3], eps)
                coef = torch.where(code == LAYER, _coefficient(wu, ww.sqrt(), eps), by_row)
                coef = torch.where(code == NONE, 0.0, coef)
                ratio = 1 + (code != NONE).to(w.dtype) * (group["wd_ratio"] - 1)
                u = self._project(group, u, w, coef, m)
                state["projection"].copy_(code)
            self._move(group, _local(p), w, u, ratio, k)

    def _project(self, group: Group, u: Tensor, w: Tensor, coef: Tensor, moment: Tensor) -> Tensor:
        """Q = u - coef w, with one coefficient for each row or for all; in place unless u is the stored momentum."""
        c = coef if coef.dim() == 0 else coef.reshape(-1, *[1] * (w.dim() - 1))
        if u is moment and not group.get("legacy_buffer", False):
            return torch.addcmul(u, w, c, value=-1)
        return u.addcmul_(w, c, value=-1)

    def _move(self, group: Group, p: Tensor, w: Tensor, u: Tensor, ratio: Number, t: Number) -> None:
        """W <- w (1 - lr weight_decay ratio) - step_size u; a half-precision p is rounded once."""
        step_size, decay = self._step_size(group, t), self._decay(group)
        if isinstance(decay, Tensor) or decay != 0:
            w.mul_(1 - self._number(group, group["lr"]) * decay * ratio)
        if isinstance(step_size, Tensor):
            w.sub_(u * step_size)
        else:
            w.sub_(u, alpha=step_size)
        if w is not p:
            p.copy_(w)

    # ----------------------------------------------------------------------------------------------- the native path

    def _kernel_sizes(self, p: Tensor, state: State) -> Sequence[int] | None:
        rows = p.shape[0] if p.dim() > 1 else 0
        return (p.numel(), rows) if rows < 2 or p.stride(0) * rows == p.numel() else None


def _mode(group: Group, p: Tensor) -> int:
    return MODES[group["projection"]] if p.dim() > 1 else NONE


def _sums(wu: Tensor, gw: Tensor, g_norm: Tensor, w_norm: Tensor, length: float, group: Group) -> Tensor:
    """What the decision needs of all rows, (5,): rows that fail the test, <g, w>, ||g||^2, ||w||^2 and <w, u>."""
    passes = _cosine(gw, g_norm, w_norm, _floor(group, gw)) < group["delta"] / length**0.5
    failed = passes.logical_not().sum().to(gw.dtype)
    return torch.stack([failed, gw.sum(), g_norm.square().sum(), w_norm.square().sum(), wu.sum()])


def _add_over_shards(params: list[Tensor], sums: list[Tensor]) -> None:
    """Add the sums of sharded tensors (DTensor) over the ranks that hold their rows, in one call for a group."""
    waiting: dict[Any, list[Tensor]] = {}
    for p, row in zip(params, sums, strict=True):
        if is_plain(p) or not hasattr(p, "placements"):
            continue
        for axis, placement in enumerate(p.placements):
            if placement.is_shard(0):
                waiting.setdefault(p.device_mesh.get_group(axis), []).append(row)  # type: ignore[attr-defined]
            elif not placement.is_replicate():
                raise NotImplementedError(f"projection needs whole rows, and a parameter is sharded as {p.placements}")
    for process_group, rows in waiting.items():
        all_reduce_sum(rows, process_group)


def _local(t: Tensor) -> Tensor:
    """The rows of a sharded tensor that this rank holds; other tensors as they are."""
    return t.to_local() if hasattr(t, "to_local") else t


def _decide_on_host(blocks: list[tuple[Tensor, ...]], numel: int, group: Group, half: bool) -> int:
    """Choose the view, channel first, for a tensor in blocks on the CPU, where reading numbers costs nothing."""
    products = [_products(p.float(), g.float()) if half else _products(p, g) for p, g, *_ in blocks]
    gw, g_norm, w_norm = products[0] if len(products) == 1 else map(torch.cat, zip(*products, strict=True))
    delta, floor = group["delta"], _floor(group, gw)
    if _cosine(gw, g_norm, w_norm, floor).max().item() < delta / (numel / gw.numel()) ** 0.5:
        return CHANNEL
    g_total, w_total = max(_norm(g_norm).item(), floor), max(_norm(w_norm).item(), floor)
    return LAYER if abs(gw.sum().item()) / g_total / w_total < delta / numel**0.5 else NONE


def _floor(group: Group, like: Tensor) -> float:
    return max(group["eps"], torch.finfo(like.dtype).tiny)


def _cosine(gw: Tensor, g_norm: Tensor, w_norm: Tensor, floor: float) -> Tensor:
    return gw.abs().div_(g_norm.clamp_min(floor)).div_(w_norm.clamp_min(floor))


def _coefficient(wu: Tensor, w_norm: Tensor, eps: float) -> Tensor:
    """<w, u> / (||w|| + eps)^2, and 0 for w = 0."""
    return torch.where(w_norm > 0, wu / (w_norm + eps).square(), 0.0)


def _products(w: Tensor, g: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return _dot(w, g), _norm(g), _norm(w)


def _dot(a: Tensor, b: Tensor) -> Tensor:
    """Inner products of the rows of two tensors of one shape, (n0,)."""
    a, b = a.flatten(1), b.flatten(1)
    return torch.dot(a[0], b[0])[None] if len(a) == 1 else torch.linalg.vecdot(a, b)


def _norm(a: Tensor) -> Tensor:
    """Norms of the rows of a matrix or more, (n0,), or of a vector, ()."""
    return torch.linalg.vector_norm(a if a.dim() == 1 else a.flatten(1), dim=-1)


def pieces(*tensors: Tensor) -> list[tuple[Tensor, ...]]:
    """Cut tensors of one shape along the last axis, so that temporaries stay small where rows are long."""
    length = BLOCK // 8
    if tensors[0].dim() == 0 or tensors[0].shape[-1] <= length:
        return [tensors]
    return list(zip(*(t.split(length, -1) for t in tensors), strict=True))


def _row_blocks(*tensors: Tensor, block: int = BLOCK) -> list[tuple[Tensor, ...]]:
    """Cut tensors of one shape into blocks of whole rows, as matrices over the memory if it allows that."""
    p = tensors[0]
    if p.dim() == 0 or p.numel() <= block:
        return [tensors]
    n = p.shape[0]
    if p.stride(0) * n == p.numel() and is_dense(p) and all(same_layout(t, p) for t in tensors):
        shape = (n, p.numel() // n) if p.dim() > 1 else (n,)
        tensors = tuple(t.as_strided(shape, (p.numel() // n, 1)[: len(shape)]) for t in tensors)
    rows = max(1, block * n // p.numel())
    return list(zip(*(t.split(rows) for t in tensors), strict=True))
