r"""Sophia: a step scaled by a diagonal curvature estimate and clipped, made for language models.   minimize L(w)

    every k steps   h <- b2 h + (1 - b2) h_est          before the parameters move
    every step      m <- b1 m + (1 - b1) g
                    w <- w (1 - lr weight_decay)
                    w <- w - lr clip( m / max(gamma h, eps), -c, c )

    Sophia-G   h_est = B g_s^2, g_s the gradient of the mean loss over B labels drawn from the model itself
    Sophia-H   h_est = u * (H u), u ~ N(0, I)

Paper: liu2024sophia, Alg. 1 (Hutchinson), Alg. 2 (Gauss-Newton-Bartlett), Alg. 3.
Notation: m is `exp_avg`, h is `hessian` (B included), k = ``update_each``, c = ``clip``.
Departures: none from the later text (arXiv v3, ICLR). Where h <= 0 the maximum picks eps and the coordinate takes a
sign step. The official code keeps h without the factor B and multiplies by its tokens per step: its ``rho`` is gamma
here. It also clips the sampled gradient to norm 1 before squaring, which makes h too small; ``hessian_grad_clip``
offers that.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from steepest.core.errors import Limit, check, nonnegative, one_of, optional, positive
from steepest.optim._base import Group, Number, State, betas_limit, blockwise, foreach_working_copies, moment_like
from steepest.optim._curvature import CurvatureOptimizer
from steepest.optim._native import Kernel

__all__ = ["Sophia"]

GAMMA = {"gnb": 0.05, "hutchinson": 0.01}  # liu2024sophia, Sec. 3.1


class Sophia(CurvatureOptimizer):
    r"""Clipped steps ``m / max(gamma h, eps)``, h a diagonal of Gauss-Newton matrix or Hessian (liu2024sophia).

    No coordinate moves by more than ``lr * clip`` (decay apart), and before the first estimate every one does.

    Parameters
    ----------
    params : iterable
        Tensors, ``(name, tensor)`` pairs, or dicts (param groups).
    lr : float or 0-dim Tensor
        The longest step of a coordinate (GPT-2 small: 6e-4). Needs a warm-up: the first k steps are sign steps.
    betas : (float, float)
        Averages of the gradient and of the curvature; no bias correction (official code).
    gamma : float, optional
        Scales h; None: 0.05 for "gnb", 0.01 for "hutchinson" (the paper). To be tuned so that `unclipped_fraction`
        is 0.1 to 0.5.
    weight_decay : float
        Decoupled (official default; 0.2 in all GPT-2 runs).
    estimator : "gnb" or "hutchinson"
        Sophia-G, which needs sampled labels (`steepest.curvature.sampled_label_loss`) and no double backward, or
        Sophia-H, which takes the training loss.
    update_each : int
        k, steps between estimates.
    eps : float
        Floor of the denominator.
    clip : float
        c, in units of `lr`.
    n_samples : int
        Probes that are averaged in each Hutchinson estimate.
    distribution : "gaussian" or "rademacher"
        Of the probes; the paper's are Gaussian.
    hessian_grad_clip : float, optional
        Largest norm of the accumulated sampled-label gradient (1.0 in the official loop).
    seed : int, optional
        Of the probes; None draws fresh entropy, which the state dict keeps. Sophia-G draws nothing itself.
    generator : torch.Generator, optional
        Instead of `seed`, on the parameters' device.
    process_group
        None, ``"default"`` or a group. Hutchinson estimates are averaged over its ranks; for "gnb" the gradients are
        averaged, the numbers of labels summed, then squared.
    maximize, foreach, capturable : bool
        As in `torch.optim.AdamW`; `maximize` takes the curvature of -L for "hutchinson", and leaves "gnb" alone. A
        captured CUDA graph holds no fold: run a step that follows an estimate outside it.
    compile, compile_after
        Whether, and after how many steps, the native kernel is built and used.

    Raises
    ------
    ValueError, TypeError
        An argument outside its limits.

    Notes
    -----
    State of a parameter: ``step``, ``exp_avg``, ``hessian``; float32 for half-precision parameters.
    ``update_hessian(batch_size=B)`` without a loss reads ``p.grad`` of a sampled-label loss (the official convention).
    The forward pass of an estimate must not move running statistics a second time: use ``model.eval()`` or freeze them.

    Examples
    --------
    >>> from steepest.curvature import sampled_label_loss
    >>> g = torch.Generator().manual_seed(0)
    >>> x, y = torch.randn(64, 5, generator=g), torch.arange(64) % 3
    >>> model = torch.nn.Linear(5, 3)
    >>> opt = Sophia(model.parameters(), lr=0.01)
    >>> for _ in range(20):
    ...     if opt.hessian_due():
    ...         opt.update_hessian(sampled_label_loss(model(x), g), batch_size=64)
    ...     opt.zero_grad()
    ...     torch.nn.functional.cross_entropy(model(x), y).backward()
    ...     _ = opt.step()
    >>> 0.0 <= opt.unclipped_fraction() <= 1.0
    True
    """

    LIMITS: ClassVar[Mapping[str, Limit]] = {
        "betas": betas_limit(),
        "gamma": positive(),
        "weight_decay": nonnegative(),
        "eps": positive(),
        "clip": positive(),
    }
    KERNEL = Kernel("sophia", ("step", "exp_avg", "hessian"))

    def __init__(
        self,
        params: Any,
        lr: float | Tensor = 6e-4,
        betas: tuple[float, float] = (0.965, 0.99),
        gamma: float | None = None,
        weight_decay: float = 0.1,
        *,
        estimator: str = "gnb",
        update_each: int = 10,
        eps: float = 1e-12,
        clip: float = 1.0,
        n_samples: int = 1,
        distribution: str = "gaussian",
        hessian_grad_clip: float | None = None,
        seed: int | None = None,
        generator: torch.Generator | None = None,
        process_group: Any = None,
        maximize: bool = False,
        foreach: bool | None = None,
        capturable: bool = False,
        compile: bool | None = None,
        compile_after: int = 20,
    ) -> None:
        check("estimator", estimator, one_of("gnb", "hutchinson"))
        check("hessian_grad_clip", hessian_grad_clip, optional(positive()))
        defaults = {
            "lr": lr,
            "betas": betas,
            "gamma": GAMMA[estimator] if gamma is None else gamma,
            "weight_decay": weight_decay,
            "eps": eps,
            "clip": clip,
            "maximize": maximize,
            "foreach": foreach,
            "capturable": capturable,
        }
        super().__init__(
            params,
            defaults,
            estimator=estimator,
            update_each=update_each,
            n_samples=n_samples,
            distribution=distribution,
            seed=seed,
            generator=generator,
            process_group=process_group,
            compile=compile,
            compile_after=compile_after,
        )
        self._clip = hessian_grad_clip

    @torch.no_grad()
    def unclipped_fraction(self) -> float:
        """Share of coordinates that take no sign step, ``|m| < clip max(gamma h, eps)``; NaN before the first step."""
        inside = count = 0
        for group in self.param_groups:
            for p in group["params"]:
                if state := self.state.get(p):
                    floor = (group["gamma"] * state["hessian"]).clamp_(min=group["eps"]).mul_(group["clip"])
                    inside += int((state["exp_avg"].abs() < floor).sum())
                    count += p.numel()
        return inside / count if count else math.nan

    def _init_state(self, p: Tensor, group: Group) -> State:
        return {"exp_avg": moment_like(p), "hessian": moment_like(p)}

    def _fold(self, group: Group, p: Tensor, state: State, estimate: Tensor) -> None:
        b2 = float(group["betas"][1])
        sign = -1.0 if group["maximize"] and self._estimator == "hutchinson" else 1.0
        blockwise(lambda h, h_est: h.lerp_(h_est.mul_(sign), 1 - b2), state["hessian"], None, estimate)

    def _update(self, group: Group, p: Tensor, g: Tensor, state: State) -> None:
        share, floor, limit, rate, shrink = self._scalars(group)

        def update(w: Tensor, g: Tensor, m: Tensor, h: Tensor) -> None:
            m.lerp_(g, share)
            u = h.clamp(min=floor)
            torch.div(m, u, out=u).clamp_(-limit, limit)
            w.mul_(shrink)
            w.sub_(u, alpha=rate) if isinstance(rate, float) else w.sub_(u.mul_(rate))

        blockwise(update, p, g, state["exp_avg"], state["hessian"], maximize=group["maximize"])

    def _scalars(self, group: Group) -> tuple[float, float, float, Number, Number]:
        """Give share, floor, limit, rate, shrink of ``w <- shrink w - rate clip(m / max(h, floor), -limit, limit)``.

        The update with gamma taken out of the clip, ``clip(x / gamma, -c, c) = clip(x, -c gamma, c gamma) / gamma``:
        one pass over memory less.
        """
        lr, gamma = self._number(group, group["lr"]), group["gamma"]
        share = 1 - float(group["betas"][0])
        return share, group["eps"] / gamma, group["clip"] * gamma, lr / gamma, 1 - lr * group["weight_decay"]

    def _update_foreach(self, group: Group, params: list[Tensor], grads: list[Tensor], states: list[State]) -> None:
        share, floor, limit, rate, shrink = self._scalars(group)
        w, g = foreach_working_copies(params, grads)
        m = [s["exp_avg"] for s in states]
        torch._foreach_lerp_(m, g, share)
        u = torch._foreach_div(m, torch._foreach_clamp_min([s["hessian"] for s in states], floor))
        torch._foreach_clamp_min_(u, -limit)
        torch._foreach_clamp_max_(u, limit)
        torch._foreach_mul_(w, shrink)
        if isinstance(rate, float):
            torch._foreach_sub_(w, u, alpha=rate)
        else:
            torch._foreach_mul_(u, rate)
            torch._foreach_sub_(w, u)
        if w is not params:
            torch._foreach_copy_(params, w)

    def _kernel_numbers(self, group: Group) -> Sequence[float]:
        lr, sign = float(group["lr"]), -1.0 if group["maximize"] else 1.0
        return (float(group["betas"][0]), group["gamma"], group["eps"], group["clip"], lr, group["weight_decay"], sign)
