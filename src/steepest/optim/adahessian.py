r"""Adam with the Hessian's diagonal in place of the squared gradient.   minimize L(w)

    D = z * (H z)                                     z random signs, E[D] = diag(H)
    D_s = block average of D                          spatial extent of a kernel, a row, or b consecutive elements
    m <- b1 m + (1 - b1) g,   v <- b2 v + (1 - b2) D_s^2
    w <- w - lr ( m/(1 - b1^t) / ((v/(1 - b2^n))^(power/2) + eps) + weight_decay w )

Paper: yao2021adahessian, Alg. 1, Eqs. 10-14.
Notation: t steps, n estimates folded in so far, k = ``update_each``; v is `exp_hessian_diag_sq`, m is `exp_avg`.
Departures: (1) ``average="signed"`` is the paper's equation (mean, then square); the published code averages ``|D|``
(``average="abs"``), which does not cancel the off-diagonal noise and lies above the block's mean. (2) Any number of
dimensions, and a last block that is shorter, where the published code fails or uses another tensor's values. (3) Lazy
estimates are corrected by n, not by t.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, cast

import torch
from torch import Tensor

from steepest.core.errors import Limit, interval, nonnegative, one_of
from steepest.optim._base import (
    Group,
    Number,
    State,
    Work,
    betas_limit,
    blockwise,
    foreach_working_copies,
    moment_like,
)
from steepest.optim._curvature import CurvatureOptimizer
from steepest.optim._native import Kernel

__all__ = ["AdaHessian"]

Block = str | int | None


def _is_block(value: Any) -> bool:
    if isinstance(value, int) and not isinstance(value, bool):
        return value >= 1
    return value is None or (isinstance(value, str) and value in ("auto", "row"))


class AdaHessian(CurvatureOptimizer):
    r"""Adam's step with a running root mean square of the Hessian's diagonal as denominator (yao2021adahessian).

    Every `update_each` steps it wants a fresh estimate, by `update_hessian` or by gradients that keep their graph.

    Parameters
    ----------
    params : iterable
        Tensors, ``(name, tensor)`` pairs, or dicts (param groups).
    lr : float or 0-dim Tensor
        Step size (official image code: 0.15). For transformers 0.02 to 0.05 with gradient clipping.
    betas : (float, float)
        Averages of the gradient and of the squared diagonal.
    eps : float
        Added to the denominator. Along flat directions (``|D| < eps``) the step is ``lr m / eps``.
    weight_decay : float
        Decoupled; the paper's image runs use ``5e-4 / lr``.
    hessian_power : float
        In (0, 1]: 1 is the paper's, smaller values soften the curvature.
    update_each : int
        k, steps between estimates; larger k wants a smaller `lr`.
    n_samples : int
        Probes that are averaged in each estimate.
    block : "auto", "row", int or None
        What shares one curvature: ``"auto"`` all dimensions of a tensor from the third on (official image code),
        ``"row"`` rows of matrices as well, an int so many consecutive elements of tensors of two or more dimensions
        (official transformer code: 32), None single elements.
    average : "signed" or "abs"
        Mean of D over the block (the paper), or of ``|D|`` (the published code).
    distribution : "rademacher" or "gaussian"
        Of the probes.
    seed : int, optional
        Of the probes; None draws fresh entropy, which the state dict keeps.
    generator : torch.Generator, optional
        Instead of `seed`, on the parameters' device.
    process_group
        None, ``"default"`` or a group: estimates are averaged over its ranks, whose probes start from seed + rank.
    maximize, foreach, capturable : bool
        As in `torch.optim.AdamW`. A captured CUDA graph holds no fold: run a step that follows an estimate outside it.
    compile, compile_after
        Whether, and after how many steps, the native kernel is built and used.

    Raises
    ------
    ValueError, TypeError
        An argument outside its limits.

    Notes
    -----
    State of a parameter: ``step``, ``hessian_step`` (n), ``exp_avg``, ``exp_hessian_diag_sq``, the last at block
    resolution ((o, i, 1, 1) for a kernel); float32 for half-precision parameters.

    Examples
    --------
    >>> w = torch.nn.Parameter(torch.tensor([1.0, 1.0]))
    >>> opt = AdaHessian([w], lr=1.0, betas=(0.0, 0.9), eps=0.0, seed=0)
    >>> loss = (torch.tensor([1.0, 1000.0]) * w**2).sum() / 2
    >>> opt.update_hessian(loss, retain_graph=True)
    >>> loss.backward()
    >>> _ = opt.step()  # a Newton step: one learning rate for any curvature
    >>> w.abs().max().item() < 1e-6
    True
    """

    SQUARES = True
    LIMITS: ClassVar[Mapping[str, Limit]] = {
        "betas": betas_limit(),
        "eps": nonnegative(),
        "weight_decay": nonnegative(),
        "hessian_power": interval(0, 1, low_open=True),
        "block": Limit("'auto', 'row', an integer >= 1 or None", lambda value: True, _is_block),
        "average": one_of("signed", "abs"),
    }
    KERNEL = Kernel("adahessian", ("step", "hessian_step", "exp_avg", "exp_hessian_diag_sq"))

    def __init__(
        self,
        params: Any,
        lr: float | Tensor = 0.15,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-4,
        weight_decay: float = 0.0,
        hessian_power: float = 1.0,
        *,
        update_each: int = 1,
        n_samples: int = 1,
        block: Block = "auto",
        average: str = "signed",
        distribution: str = "rademacher",
        seed: int | None = None,
        generator: torch.Generator | None = None,
        process_group: Any = None,
        maximize: bool = False,
        foreach: bool | None = None,
        capturable: bool = False,
        compile: bool | None = None,
        compile_after: int = 20,
    ) -> None:
        defaults = {
            "lr": lr,
            "betas": betas,
            "eps": eps,
            "weight_decay": weight_decay,
            "hessian_power": hessian_power,
            "block": block,
            "average": average,
            "maximize": maximize,
            "foreach": foreach,
            "capturable": capturable,
        }
        super().__init__(
            params,
            defaults,
            estimator="hutchinson",
            update_each=update_each,
            n_samples=n_samples,
            distribution=distribution,
            seed=seed,
            generator=generator,
            process_group=process_group,
            compile=compile,
            compile_after=compile_after,
        )

    @torch.no_grad()
    def hessian_diagonal(self) -> list[Tensor]:
        """Give ``sqrt(v / (1 - b2^n))`` for every parameter in group order, shaped as it; zeros before an estimate."""
        found = []
        for group in self.param_groups:
            for p in group["params"]:
                state = self.state.get(p, {})
                if not state or float(state["hessian_step"]) == 0:
                    found.append(moment_like(p))
                else:
                    v_hat = state["exp_hessian_diag_sq"] / (
                        1 - float(group["betas"][1]) ** float(state["hessian_step"])
                    )
                    found.append(_spread(v_hat.sqrt_(), p, group["block"]).clone())
        return found

    @torch.no_grad()
    def zero_curvature_parameters(self) -> int:
        """Count the tensors whose every estimate was zero (the loss is linear in them): their denominator is eps."""
        states = [s for s in self.state.values() if s and float(s["hessian_step"]) > 0]
        return sum(not bool(s["exp_hessian_diag_sq"].any()) for s in states)

    # --------------------------------------------------------------------------------------------------- the estimate

    def _before_update(self, work: Work) -> None:
        carries_graph = any(g.requires_grad for _, _, grads in work for g in grads)
        if carries_graph and not self._pending.called and self.hessian_due():
            params = self._tracked()
            self._add(params, self._probe([p.grad for p in params], params), 1.0)
        super()._before_update(work)

    def _require(self, work: Work, estimates: Mapping[Tensor, Tensor]) -> None:
        for group, params, _ in work:
            for i, p in enumerate(params):
                known = p in self.state and (group["capturable"] or float(self.state[p]["hessian_step"]) > 0)
                if p not in estimates and not known:
                    raise RuntimeError(
                        f"AdaHessian cannot step without a finite estimate of the curvature, and parameter {i} of its "
                        "group has none: call update_hessian(loss) before step(), or loss.backward(create_graph=True)"
                    )

    def _init_state(self, p: Tensor, group: Group) -> State:
        device = p.device if group["capturable"] else "cpu"
        return {
            "hessian_step": torch.zeros((), dtype=torch.float32, device=device),
            "exp_avg": moment_like(p),
            "exp_hessian_diag_sq": _block_means(moment_like(p), group["block"]),
        }

    def _fold(self, group: Group, p: Tensor, state: State, estimate: Tensor) -> None:
        b2, v = float(group["betas"][1]), state["exp_hessian_diag_sq"]
        D_s = _block_means(estimate.abs_() if group["average"] == "abs" else estimate, group["block"])
        blockwise(lambda v, D: v.lerp_(D.square_(), 1 - b2), v, None, D_s)
        state["hessian_step"] += 1.0

    # ----------------------------------------------------------------------------------------------------- the update

    def _update(self, group: Group, p: Tensor, g: Tensor, state: State) -> None:
        m, v = state["exp_avg"], state["exp_hessian_diag_sq"]
        rate, floor, shrink = self._scalars(group, state)
        share, half_power = 1 - float(group["betas"][0]), group["hessian_power"] / 2
        whole = v.shape == p.shape

        def update(w: Tensor, g: Tensor, m: Tensor, d: Tensor) -> None:
            m.lerp_(g, share)
            d = d.pow(half_power).add_(floor) if whole else d
            w.mul_(shrink)
            w.addcdiv_(m, d, value=-rate) if isinstance(rate, float) else w.sub_(torch.div(m, d).mul_(rate))

        if whole:
            blockwise(update, p, g, m, v, maximize=group["maximize"])
        else:
            d = v.pow(half_power).add_(floor)
            for parts in _cut(p, g, m, d, group["block"]):
                blockwise(update, *parts, maximize=group["maximize"])

    def _scalars(self, group: Group, state: State) -> tuple[Number, Number, Number]:
        """Give rate, floor and shrink of ``w <- shrink w - rate m / (v^(power/2) + floor)``, bias corrections in."""
        (b1, b2), lr = map(float, group["betas"]), self._number(group, group["lr"])
        t, n = self._step_number(group, state), state["hessian_step"]
        c1, c2 = 1 - b1**t, 1 - b2 ** (n.double() if isinstance(t, Tensor) else float(n))
        root = c2 ** (group["hessian_power"] / 2)
        return lr * root / c1, group["eps"] * root, 1 - lr * group["weight_decay"]

    def _update_foreach(self, group: Group, params: list[Tensor], grads: list[Tensor], states: list[State]) -> None:
        scalars = [self._scalars(group, s) for s in states]
        w, g = foreach_working_copies(params, grads)
        m = [s["exp_avg"] for s in states]
        torch._foreach_lerp_(m, g, 1 - float(group["betas"][0]))
        d = list(torch._foreach_pow([s["exp_hessian_diag_sq"] for s in states], group["hessian_power"] / 2))
        rates, floors, shrinks = (list(x) for x in zip(*scalars, strict=True))
        torch._foreach_add_(d, cast("list[float]", floors))
        d = [_spread(x, p, group["block"]) for x, p in zip(d, params, strict=True)]
        torch._foreach_mul_(w, shrinks[0])
        if isinstance(rates[0], float):
            torch._foreach_addcdiv_(w, m, d, [-float(rate) for rate in rates])
        else:
            u = torch._foreach_div(m, d)
            torch._foreach_mul_(u, cast("list[Tensor]", rates))
            torch._foreach_sub_(w, u)
        if w is not params:
            torch._foreach_copy_(params, w)

    def _kernel_numbers(self, group: Group) -> Sequence[float]:
        lr, (b1, b2) = float(group["lr"]), group["betas"]
        sign = -1.0 if group["maximize"] else 1.0
        return (lr, float(b1), float(b2), group["eps"], group["weight_decay"], group["hessian_power"], sign)

    def _kernel_sizes(self, p: Tensor, state: State) -> Sequence[int] | None:
        v = state["exp_hessian_diag_sq"]
        if v.shape == p.shape:
            return p.numel(), 1
        block = next(g["block"] for g in self.param_groups if any(q is p for q in g["params"]))
        return (p.numel(), _block_length(p, block)) if p.is_contiguous() else None


def _block_means(D: Tensor, block: Block) -> Tensor:
    """Average over blocks: ``(o, i, 1, ...)``, ``(o, 1)`` or flat ``(number of blocks,)``; D itself without blocks."""
    if isinstance(block, int):
        if D.dim() < 2 or block == 1:
            return D
        flat = D.reshape(-1)
        whole = len(flat) // block * block
        means = flat[:whole].view(-1, block).mean(1)
        return means if whole == len(flat) else torch.cat([means, flat[whole:].mean().reshape(1)])
    if block is not None and D.dim() >= 3:
        return D.mean(tuple(range(2, D.dim())), keepdim=True)
    return D.mean(1, keepdim=True) if block == "row" and D.dim() == 2 else D


def _spread(v: Tensor, p: Tensor, block: Block) -> Tensor:
    """Copy every block's value to its elements: a tensor of p's shape, a view where that is possible."""
    if isinstance(block, int) and block > 1 and p.dim() >= 2:
        return v.repeat_interleave(block)[: p.numel()].view(p.shape)
    return v.expand(p.shape)


def _block_length(p: Tensor, block: Block) -> int:
    """Number of consecutive elements of a contiguous parameter that share a curvature."""
    return block if isinstance(block, int) else math.prod(p.shape[2:]) if p.dim() >= 3 else p.shape[1]


def _cut(p: Tensor, g: Tensor, m: Tensor, d: Tensor, block: Block) -> list[tuple[Tensor, Tensor, Tensor, Tensor]]:
    """Views of parameter, gradient, average and denominators of one shape: whole blocks, then the shorter last one."""
    if not (p.is_contiguous() and m.is_contiguous()):
        return [(p, g, m, _spread(d, p, block))]
    n = _block_length(p, block)
    rows = p.numel() // n
    w, g, m, d = p.view(-1), g.reshape(-1), m.view(-1), d.reshape(-1)
    k = rows * n
    blocks = [(w[:k].view(-1, n), g[:k].view(-1, n), m[:k].view(-1, n), d[:rows].unsqueeze(1).expand(rows, n))]
    return blocks if rows == len(d) else [*blocks, (w[k:], g[k:], m[k:], d[rows:])]
