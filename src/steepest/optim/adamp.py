r"""AdamP and SGDP: momentum optimizers that drop the radial part of the update of scale-invariant weights.

Problem: minimize f(w) where many weights are followed by a normalization, so that f(c w) = f(w) for c > 0 and
<w, grad f(w)> = 0. Momentum then lengthens w far faster than plain descent does, and shortens the effective step
||w'/||w'|| - w/||w|| || too early. Update of one weight, with u the step of Adam or of momentum descent::

    for (channel, layer):                                                            # Alg. 1
        c = max over rows of |<g, w>| / (||g|| ||w||)                                # g: the raw gradient
        if c < delta / sqrt(length of a row):  q = u - w <w, u> / (||w|| + eps)^2,  ratio = wd_ratio;  stop
    otherwise q = u, ratio = 1
    w <- w (1 - lr weight_decay ratio);  w <- w - lr q

Paper: heo2021adamp, Algorithms 1 and 2.

=========  ==========================================  ============  =======================================
paper      here                                        paper         here
=========  ==========================================  ============  =======================================
eta        ``lr``                                      p_t           ``u``, the update before projection
beta       ``betas[0]``, ``momentum``                  q_t           the update after projection
delta      ``delta``                                   Pi_w          `w -> w - (w.u) w`, row by row
=========  ==========================================  ============  =======================================

Departures: (1) The momentum of SGDP is not projected, as in the paper; the official code projects the stored buffer
too (``legacy_buffer=True`` does as it does). (2) A zero row has coefficient 0 also for ``eps=0``. (3) SGDP's ``lr``
has a default. (4) As in the official code: ``weight_decay`` of SGDP is divided by ``1 - momentum``, dampening acts on
the first gradient too, and vectors and scalars are never projected.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from steepest.core.errors import Limit, boolean, interval
from steepest.optim._base import Group, Number, betas_limit
from steepest.optim._native import Kernel
from steepest.optim._projection import MODES, Projected, pieces

__all__ = ["SGDP", "AdamP"]


class AdamP(Projected):
    r"""Adam with decoupled weight decay whose update loses its radial part where the weight is scale-invariant.

    With m and v the averages of g and of g squared, D = sqrt(v / (1 - b2^t)) + eps and u = m / D (``nesterov``:
    (b1 m + (1 - b1) g) / D)::

        q, ratio = project(w, g, u);  w <- w (1 - lr weight_decay ratio);  w <- w - lr / (1 - b1^t) q

    Parameters
    ----------
    params : iterable
        Tensors, ``(name, tensor)`` pairs, or dicts (param groups).
    lr : float or 0-dim Tensor
        Step size, >= 0.
    betas : (float, float)
        Decay rates of the averages, in [0, 1).
    eps : float
        Floor of the denominator, of the norms in the test, and added to ||w|| in the projection.
    weight_decay : float
        Decoupled, times `lr`; times `wd_ratio` for projected weights.
    delta : float
        The projection is applied where the cosine of gradient and weight is below delta / sqrt(length of a row); with
        0 this is AdamW. Default 0.1 (official code).
    wd_ratio : float
        In [0, 1]; default 0.1 (official code).
    nesterov : bool
        Nesterov momentum.
    projection : "auto", "channel", "layer" or "none"
        "auto" is the test above, channel view first; "channel" and "layer" project without a test, for weights known to
        be scale-invariant; "none" never does (for embedding tables, whose rows without gradient pass any test).
    maximize, foreach, capturable : bool
        As in `torch.optim.AdamW`; ``foreach=None`` takes lists on CUDA and a native kernel or blocks on the CPU.
    compile : bool, optional
        Whether to use a native CPU kernel, built by the system's C compiler; None: where there is one.
    compile_after : int
        Steps before that.

    Raises
    ------
    ValueError, TypeError
        An argument is outside its limits (named in the text), or a parameter is complex.

    Notes
    -----
    Heo et al., "AdamP: Slowing Down the Slowdown for Momentum Optimizers on Scale-invariant Weights", ICLR 2021,
    Algorithm 2; defaults of the official code. State of a parameter: ``step``, ``exp_avg``, ``exp_avg_sq`` and
    ``projection`` (int8: 0 none, 1 channel, 2 layer, of the last step).

    Examples
    --------
    >>> w = torch.nn.Parameter(torch.tensor([[3.0, 4.0]]))
    >>> opt = AdamP([w], lr=0.1)
    >>> for _ in range(10):
    ...     opt.zero_grad()
    ...     (w[0, 0] / w.norm()).backward()                     # depends on the direction of w alone
    ...     opt.step()
    >>> opt.projection_report(), bool((w / w.norm())[0, 0] < 0.5)
    (['channel'], True)
    """

    LIMITS: ClassVar[Mapping[str, Limit]] = {**Projected.LIMITS, "betas": betas_limit()}
    MOMENTS = ("exp_avg", "exp_avg_sq")
    KERNEL = Kernel("adamp", ("step", "exp_avg", "exp_avg_sq", "projection"))

    def __init__(
        self,
        params: Any,
        lr: float | Tensor = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        delta: float = 0.1,
        wd_ratio: float = 0.1,
        nesterov: bool = False,
        *,
        projection: str = "auto",
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
            "delta": delta,
            "wd_ratio": wd_ratio,
            "nesterov": nesterov,
            "projection": projection,
            "maximize": maximize,
            "foreach": foreach,
            "capturable": capturable,
        }
        super().__init__(params, defaults, compile=compile, compile_after=compile_after)

    def _directions(
        self, group: Group, g: list[Tensor], moments: Sequence[list[Tensor]], t: list[Number]
    ) -> list[Tensor]:
        (m, v), (b1, b2) = moments, group["betas"]
        torch._foreach_lerp_(m, g, 1 - b1)
        torch._foreach_mul_(v, b2)
        torch._foreach_addcmul_(v, g, g, 1 - b2)
        D = list(torch._foreach_sqrt(v))  # times sqrt(1 - b2^t), as eps is; `_step_size` makes up for it
        torch._foreach_add_(D, [group["eps"] * (1 - b2**k) ** 0.5 for k in t])
        for x, y, d in zip(m, g, D, strict=True):
            for a, b, c in pieces(x, y, d):
                torch.div(a.lerp(b, 1 - b1) if group["nesterov"] else a, c, out=c)
        return D

    def _step_size(self, group: Group, t: Number) -> Number:
        b1, b2 = group["betas"]
        return self._number(group, group["lr"]) * (1 - b2**t) ** 0.5 / (1 - b1**t)

    def _decay(self, group: Group) -> Number:
        return group["weight_decay"]

    def _kernel_numbers(self, group: Group) -> Sequence[float]:
        return (
            float(group["lr"]),
            *group["betas"],
            group["eps"],
            group["weight_decay"],
            group["delta"],
            group["wd_ratio"],
            group["nesterov"],
            group["maximize"],
            MODES[group["projection"]],
        )


class SGDP(Projected):
    r"""Momentum descent whose update loses its radial part where the weight is scale-invariant.

    With b <- momentum b + (1 - dampening) g from b = 0, and u = b (``nesterov``: g + momentum b)::

        q, ratio = project(w, g, u);  w <- w (1 - lr weight_decay ratio / (1 - momentum));  w <- w - lr q

    Parameters
    ----------
    params : iterable
        Tensors, ``(name, tensor)`` pairs, or dicts (param groups).
    lr : float or 0-dim Tensor
        Step size, >= 0; the official code has no default, this is `torch.optim.SGD`'s.
    momentum : float
        In [0, 1).
    dampening : float
        Acts on the first gradient too (official code; `torch.optim.SGD` spares it).
    weight_decay : float
        The value for `torch.optim.SGD` carries over: decoupled, and divided by 1 - momentum to be as strong.
    nesterov : bool
        Nesterov momentum; needs a momentum and no dampening.
    eps, delta, wd_ratio, projection, maximize, foreach, capturable, compile, compile_after
        As in `AdamP`.
    legacy_buffer : bool
        Project the stored momentum too, as the official code does without Nesterov momentum (its buffer and its update
        are one tensor there). The paper projects only what is applied.

    Raises
    ------
    ValueError, TypeError
        An argument is outside its limits (named in the text), or a parameter is complex.

    Notes
    -----
    Heo et al., ICLR 2021, Algorithm 1. State of a parameter: ``step``, ``momentum_buffer``, ``projection``.

    Examples
    --------
    >>> w = torch.nn.Parameter(torch.tensor([[3.0, 4.0]]))
    >>> opt = SGDP([w], lr=1.0, momentum=0.9)
    >>> for _ in range(10):
    ...     opt.zero_grad()
    ...     (w[0, 0] / w.norm()).backward()
    ...     opt.step()
    >>> opt.projection_report(), round(w.norm().item(), 1)     # torch.optim.SGD: 7.3
    (['channel'], 5.5)
    """

    LIMITS: ClassVar[Mapping[str, Limit]] = {
        **Projected.LIMITS,
        "momentum": interval(0, 1, high_open=True),
        "dampening": interval(),
        "legacy_buffer": boolean(),
    }
    MOMENTS = ("momentum_buffer",)
    KERNEL = Kernel("adamp", ("step", "momentum_buffer", "projection"), function="sgdp")

    def __init__(
        self,
        params: Any,
        lr: float | Tensor = 1e-3,
        momentum: float = 0.0,
        dampening: float = 0.0,
        weight_decay: float = 0.0,
        nesterov: bool = False,
        eps: float = 1e-8,
        delta: float = 0.1,
        wd_ratio: float = 0.1,
        *,
        projection: str = "auto",
        legacy_buffer: bool = False,
        maximize: bool = False,
        foreach: bool | None = None,
        capturable: bool = False,
        compile: bool | None = None,
        compile_after: int = 20,
    ) -> None:
        defaults = {
            "lr": lr,
            "momentum": momentum,
            "dampening": dampening,
            "weight_decay": weight_decay,
            "nesterov": nesterov,
            "eps": eps,
            "delta": delta,
            "wd_ratio": wd_ratio,
            "projection": projection,
            "legacy_buffer": legacy_buffer,
            "maximize": maximize,
            "foreach": foreach,
            "capturable": capturable,
        }
        super().__init__(params, defaults, compile=compile, compile_after=compile_after)

    def _check_group(self, group: Mapping[str, Any]) -> None:
        if group["nesterov"] and (group["momentum"] == 0 or group["dampening"] != 0):
            got = f"momentum={group['momentum']}, dampening={group['dampening']}"
            raise ValueError(f"nesterov=True needs momentum > 0 and dampening 0, got {got}")

    def _directions(
        self, group: Group, g: list[Tensor], moments: Sequence[list[Tensor]], t: list[Number]
    ) -> list[Tensor]:
        (b,) = moments
        torch._foreach_mul_(b, group["momentum"])
        torch._foreach_add_(b, g, alpha=1 - group["dampening"])
        return list(torch._foreach_add(g, b, alpha=group["momentum"])) if group["nesterov"] else b

    def _step_size(self, group: Group, t: Number) -> Number:
        return self._number(group, group["lr"])

    def _decay(self, group: Group) -> Number:
        return group["weight_decay"] / (1 - group["momentum"])

    def _kernel_numbers(self, group: Group) -> Sequence[float]:
        return (
            float(group["lr"]),
            group["momentum"],
            group["dampening"],
            group["eps"],
            float(self._decay(group)),
            group["delta"],
            group["wd_ratio"],
            group["nesterov"],
            group["maximize"],
            MODES[group["projection"]],
            group["legacy_buffer"] and not group["nesterov"],
        )
