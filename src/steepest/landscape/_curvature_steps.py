r"""Learning rate and momentum that follow the curvature during training: a hook before an optimizer's steps.

Every k steps, lambda_1 and lambda_n being the largest eigenvalue of a batch's curvature and the smallest above a floor:

    log lambda <- ema log lambda_old + (1 - ema) log lambda                                   (both, from the second on)
    lr <- min(safety (2 / (sqrt(lambda_1) + sqrt(lambda_n)))^2, max_growth lr_old),   momentum as in `_learning_rates`

Three things keep this from running away (ours; what each is worth is measured by the study).

* The cap `max_growth`: a step too long saturates the softmax, its Gauss-Newton matrix tends to 0, and the rule asks for
  a still longer step.
* The guard: where lambda_1 fell to less than a third while the loss rose, the curvature is not believed. The old rate
  is halved and the curvature measured once more before the next step. That measurement counts; where it says the same,
  the rate stays halved.
* The watch: between updates the curvature may rise tenfold (it does in the first twenty steps of most networks). A
  gradient twice as long as any since the last update but one has the curvature measured at once, and the rate may only
  fall. The next update's growth counts from the rate before.

The first rate may be worked up to: over the first `warmup` steps t = 1, 2, ... the groups get ``t / warmup`` of it.
Where curvature rises at once, a first step at full length throws the network into a sharp region, and as the rate
follows the curvature it stays there.

A measurement out of turn replaces the last record of the history. Paper: granziol2022learning (the learner).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor
from torch.nn.utils import get_total_norm
from torch.optim import Optimizer

from steepest.core.errors import at_least, boolean, check, interval, kind_error, positive, value_error
from steepest.curvature import SpectralDensity
from steepest.landscape._learning_rates import FLOOR, LearningRate, learning_rate_from_spectrum, optimum

__all__ = ["CurvatureSteps", "Measured"]

Group = dict[str, Any]
COLLAPSE = 3.0  # lambda_1 smaller by this factor while the loss rose: saturation, not flatness
ALARM = 2.0  # a gradient longer by this factor: the last curvature is out of date (4 loses 1 of 30 convolutional runs)


@dataclass(frozen=True)
class Measured:
    """A batch's curvature and loss."""

    spectrum: SpectralDensity
    loss: float


class CurvatureSteps:
    """Sets learning rate and momentum of all param groups of an optimizer before its steps; see `BatchSpectrum.attach`.

    Parameters
    ----------
    optimizer : torch.optim.Optimizer
    measure : callable () -> Measured
    history : list of LearningRate
        Gets a record for every scheduled update.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        measure: Callable[[], Measured],
        history: list[LearningRate],
        *,
        every: int,
        momentum: bool,
        safety: float,
        relative_floor: float,
        ema: float,
        max_growth: float,
        warmup: int,
        callback: Callable[[LearningRate], Any] | None,
    ) -> None:
        check("every", every, positive(integer=True))
        check("momentum", momentum, boolean())
        check("safety", safety, positive())
        check("relative_floor", relative_floor, FLOOR)
        check("ema", ema, interval(0, 1, high_open=True))
        check("max_growth", max_growth, at_least(1))
        check("warmup", warmup, at_least(0, integer=True))
        if callback is not None and not callable(callback):
            raise kind_error("callback", "None or a callable", callback)
        if not isinstance(optimizer, Optimizer):
            raise kind_error("optimizer", "a torch.optim.Optimizer", optimizer)
        self.adaptive = _is_adaptive(optimizer, momentum)
        self.optimizer, self.measure, self.history, self.callback = optimizer, measure, history, callback
        self.every, self.momentum, self.safety, self.relative_floor = every, momentum, safety, relative_floor
        self.ema, self.max_growth, self.warmup = ema, max_growth, warmup
        self.own: list[tuple[float, float | None]] = []  # rate and momentum of every group before the first update
        self.n_steps = 0
        self.loss = math.nan  # at the last update that was believed
        self.again = False  # the last update was not
        self.longest = (0.0, 0.0)  # gradients since the last update but one, and since the last
        self._handle = optimizer.register_step_pre_hook(self._before_step)

    def remove(self) -> None:
        """Follow the optimizer no longer, and give its groups back their own rates and momenta."""
        self._handle.remove()
        for group, (lr, momentum) in zip(self.optimizer.param_groups, self.own):  # later groups were never set
            _set(group, "lr", lr)
            if momentum is not None:
                group["momentum"] = momentum

    def _before_step(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        due = self.n_steps % self.every == 0
        self.n_steps += 1
        length = self._gradient_length()
        alarm = length > ALARM * max(self.longest) > 0
        earlier, recent = self.longest
        self.longest = (recent, length) if due else (earlier, max(recent, length))
        if due:
            self._update(self._scheduled)
        elif self.again:
            self._update(self._second_look)
        elif alarm:
            self._update(self._out_of_turn)
        elif self.n_steps <= self.warmup:
            self._apply(self.history[-1])

    def _gradient_length(self) -> float:
        gradients = [p.grad for group in self.optimizer.param_groups for p in group["params"] if p.grad is not None]
        return float(get_total_norm(gradients)) if gradients else 0.0  # none yet: a closure will make them

    def _update(self, decide: Callable[[Measured], LearningRate]) -> None:
        for group in self.optimizer.param_groups[len(self.own) :]:
            self.own.append((float(group["lr"]), group.get("momentum")))
        found = decide(self.measure())
        if decide != self._scheduled:
            self.history.pop()
        self.history.append(found)
        self._apply(found)
        if self.callback is not None:
            self.callback(found)

    def _apply(self, found: LearningRate) -> None:
        lr = found.lr * min(1.0, self.n_steps / self.warmup) if self.warmup else found.lr
        for group, (own, _) in zip(self.optimizer.param_groups, self.own):  # later groups wait for the next update
            _set(group, "lr", lr * own / self.own[0][0] if self.adaptive else lr)
            if not self.adaptive:
                group["momentum"] = found.momentum

    def _scheduled(self, measured: Measured) -> LearningRate:
        if not self.history:
            self.loss, self.last = measured.loss, self._rule(measured)
            self.first = self.last.lambda_max
            return self.last
        old = self.last
        self.again = self._collapsed(measured)
        if self.again:
            return replace(old, lr=old.lr / 2)
        self.loss = measured.loss
        if measured.spectrum.extreme()[1] > 0:
            new = self._rule(measured, old)
            self.last = replace(new, lr=min(new.lr, self.max_growth * old.lr))
        return self.last

    def _second_look(self, measured: Measured) -> LearningRate:
        if not self._collapsed(measured):
            return self._scheduled(measured)
        self.again, self.loss = False, measured.loss
        new = self._rule(measured) if measured.spectrum.extreme()[1] > 0 else self.last
        self.last = replace(new, lr=min(new.lr, self.last.lr / 2))
        return self.last

    def _out_of_turn(self, measured: Measured) -> LearningRate:
        self.loss, now = measured.loss, self.history[-1]
        if measured.spectrum.extreme()[1] <= 0:
            return now
        new = self._rule(measured)
        return replace(new, lr=min(new.lr, now.lr))

    def _collapsed(self, measured: Measured) -> bool:
        return COLLAPSE * measured.spectrum.extreme()[1] < self.last.lambda_max and measured.loss > self.loss

    def _rule(self, measured: Measured, old: LearningRate | None = None) -> LearningRate:
        """Rate and momentum for a spectrum, averaged with those of `old`."""
        new = learning_rate_from_spectrum(measured.spectrum, relative_floor=self.relative_floor)
        old = new if old is None else old
        high, low = (
            math.exp(self.ema * math.log(before) + (1 - self.ema) * math.log(now))
            for before, now in ((old.lambda_max, new.lambda_max), (old.lambda_min, new.lambda_min))
        )
        found = optimum(high, low, momentum=self.momentum, safety=self.safety)
        if not self.adaptive:
            return found
        return replace(found, lr=self.own[0][0] * math.sqrt((self.first if self.history else high) / high))


def _is_adaptive(optimizer: Optimizer, momentum: bool) -> bool:
    """Tell the root rule (adaptive methods) from the heavy ball; refuse what neither rule is for."""
    kinds = set()
    for i, group in enumerate(optimizer.param_groups):
        adaptive = "centered" in group or ("momentum" not in group and "eps" in group)  # RMSprop; Adam and its kin
        kinds.add(adaptive)
        if not adaptive and "momentum" not in group:
            raise value_error("optimizer", "SGD or an adaptive method (Adam, RMSprop, ...)", type(optimizer).__name__)
        if adaptive and momentum:
            raise value_error(
                "momentum",
                f"False for {type(optimizer).__name__}, which is not the heavy ball",
                momentum,
                "its learning rate then follows the root of the curvature",
            )
        for name in ("dampening", "nesterov"):
            if momentum and group.get(name):
                raise value_error(
                    f"{name} of group {i}", "0 or False: the rule is the heavy ball's", group[name], "or momentum=False"
                )
    if len(kinds) != 1:
        raise value_error("optimizer", "with groups of one kind", type(optimizer).__name__)
    return kinds.pop()


def _set(group: Group, name: str, value: float) -> None:
    if isinstance(group[name], Tensor):  # a captured graph reads it
        group[name].fill_(value)
    else:
        group[name] = value
