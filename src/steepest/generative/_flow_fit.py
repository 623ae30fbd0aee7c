"""Training of a flow: batches of pairs, least squares, averaged weights, checkpoints that continue to the bit."""

from __future__ import annotations

import contextlib
import math
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from steepest.core.checkpoints import write_checkpoint
from steepest.core.errors import (
    at_least,
    boolean,
    check,
    interval,
    kind_error,
    nonnegative,
    optional,
    positive,
    value_error,
)
from steepest.core.random import Seed, torch_generator
from steepest.generative._flow_batches import Cloud, Coupling, Draws, Pairs, whole_batches
from steepest.generative._samples import as_rows, check_pair, check_samples
from steepest.generative.rectified_flow import Metric, RectifiedFlow, Schedule

__all__ = ["FlowFit", "fit_flow"]

FORMAT = 1
SKIPS_IN_A_ROW = 3
GOLDEN = (math.sqrt(5) - 1) / 2  # times of the held-out loss: as even as can be, in any order of samples


@dataclass
class FlowFit:
    """A trained flow and how it came to be.

    Attributes
    ----------
    flow : RectifiedFlow
        The flow that was given, in evaluation mode, with averaged weights.
    raw_state : dict
        Its state dict with the last weights, before averaging.
    history : dict
        ``step``, ``loss`` and ``grad_norm`` (before clipping) with one entry for each step; ``val`` with pairs
        ``(step, loss)``.
    n_steps : int
        Steps taken, those before a resumption included.
    seconds : float
        Wall clock, of this call.
    n_nonfinite : int
        Steps that were skipped because the loss or the gradient was not finite.
    """

    flow: RectifiedFlow
    raw_state: dict[str, Tensor]
    history: dict[str, list[Any]] = field(default_factory=lambda: {"step": [], "loss": [], "grad_norm": [], "val": []})
    n_steps: int = 0
    seconds: float = 0.0
    n_nonfinite: int = 0


def fit_flow(
    flow: RectifiedFlow,
    x0: Cloud | Draws,
    x1: Cloud | None,
    *,
    paired: bool = False,
    n_steps: int = 2000,
    batch_size: int = 256,
    lr: float = 1e-3,
    betas: tuple[float, float] = (0.9, 0.999),
    optimizer: Callable[[list[nn.Parameter]], torch.optim.Optimizer] | None = None,
    ema: float | None = 0.999,
    grad_clip: float | None = 1.0,
    warmup: int = 0,
    t_schedule: Schedule = "uniform",
    metric: Metric | None = None,
    coupling: Coupling | None = None,
    val: tuple[Tensor, Tensor] | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    checkpoint_every: int = 500,
    resume: bool = False,
    generator: Seed = None,
    callback: Callable[[dict[str, float]], Any] | None = None,
    y: Tensor | None = None,
    drop_label: float = 0.1,
) -> FlowFit:
    """Train the velocity of `flow` in place by least squares on pairs of `x0` and `x1` (Alg. 1).

    Parameters
    ----------
    flow : RectifiedFlow
        Its velocity is a module with parameters; one that is wrapped for several processes will do.
    x0, x1 : Tensor (m, *shape) or callable
        Samples of pi_0 and pi_1 (memory-mapped tensors are read a batch at a time), or ``(n, generator)`` to fresh ones
        (n, *shape). They live on the velocity's device. With None as x1, `x0` is ``(n, generator)`` to whole batches
        ``(x0, x1)`` or ``(x0, x1, y)``, taken as they come.
    paired : bool
        Keep pairs: ``x0[i]`` goes with ``x1[i]``, tensors of one length. Otherwise both are drawn independently.
    n_steps, batch_size : int
        Ours for small problems (official CIFAR-10: 800,000 steps of 128).
    lr, betas
        Of Adam with eps 1e-8 (official CIFAR-10: 2e-4; 1e-3 is ours for small networks).
    optimizer : callable, optional
        ``optimizer(parameters)`` instead of Adam.
    ema : float or None
        Decay of the averaged weights, corrected for the start (official: 0.999999, then 0.9999 for later flows); None
        or 0 keeps the last ones.
    grad_clip : float or None
        Largest norm of the gradient (official).
    warmup : int
        Steps over which the learning rate grows to its value (official CIFAR-10: 5000).
    t_schedule, metric
        As in `RectifiedFlow.loss`.
    coupling : callable, optional
        ``coupling(x0, x1, generator)`` gives indices ``(i, j)`` that pair a batch anew, from any solver of optimal
        transport; not with `paired`.
    val : (Tensor, Tensor), optional
        Held-out pairs, whose loss with averaged weights is kept every `checkpoint_every` steps and at the end.
    checkpoint : path, optional
        A file that is written every `checkpoint_every` steps and at the end, whole or not at all.
    resume : bool
        Continue from `checkpoint` where there is one; the result is that of an uninterrupted run, bit for bit.
    generator : int, torch.Generator or None
        Of batches, times, dropped labels and of what the network draws itself (dropout). The global generators are left
        as they were.
    callback : callable, optional
        Told ``{"step", "loss", "grad_norm"}`` after each step; True stops.
    y : Tensor (m,), optional
        Labels beside the samples `x1`.
    drop_label : float
        Share of the labels that become -1 in training, which guidance needs.

    Returns
    -------
    FlowFit

    Raises
    ------
    TypeError, ValueError
        Arguments that do not fit, or not together; a velocity without parameters.
    FloatingPointError
        Three steps in a row were not finite; the text says at which times.

    Examples
    --------
    >>> from steepest.generative import MLPVelocity
    >>> flow = RectifiedFlow(MLPVelocity(1, width=16, depth=1, seed=0))
    >>> x0, x1 = (torch.linspace(a, a + 1, 100)[:, None] for a in (0.0, 4.0))
    >>> fit = fit_flow(flow, x0, x1, n_steps=300, lr=1e-2, ema=None, generator=0)
    >>> abs(float(fit.flow.sample(x0).x.mean()) - 4.5) < 0.1
    True
    """
    draw = whole_batches(x0) if x1 is None else Pairs(x0, x1, paired, coupling, y, drop_label)
    check("n_steps", n_steps, at_least(1, integer=True))
    check("batch_size", batch_size, at_least(1, integer=True))
    check("lr", lr, positive())
    check("ema", ema, optional(interval(0, 1, high_open=True)))
    check("grad_clip", grad_clip, optional(positive()))
    check("warmup", warmup, nonnegative(integer=True))
    check("checkpoint_every", checkpoint_every, at_least(1, integer=True))
    check("resume", resume, boolean())
    if resume and checkpoint is None:
        raise value_error("checkpoint", "a path with resume=True", checkpoint)
    if not isinstance(flow, RectifiedFlow):
        raise kind_error("flow", "a RectifiedFlow", flow)
    flow._check_learning(t_schedule, metric)
    if val is not None:
        check_samples("val[0]", val[0])
        check_pair("val[1]", val[1], "val[0]", val[0], same_length=True)
    parameters = [p for p in flow.parameters() if p.requires_grad]
    if not parameters:
        raise value_error("flow", "one whose velocity has parameters to train", flow.velocity)
    device = parameters[0].device
    run = _Run(flow, parameters, _adam(parameters, lr, betas) if optimizer is None else optimizer(parameters), ema)
    run.generator = torch_generator(generator, device, name="generator")
    start = time.perf_counter()
    with _own_stream(device, run.generator):
        if resume and checkpoint is not None and Path(checkpoint).exists():
            run.load(checkpoint)
        flow.train()
        for step in range(run.fit.n_steps + 1, n_steps + 1):
            for group, rate in zip(run.optimizer.param_groups, run.rates, strict=True):
                if step <= warmup:
                    group["lr"] = rate * step / warmup
            stop = run.step(draw, batch_size, t_schedule, metric, grad_clip, callback)
            last = stop or step == n_steps
            if val is not None and (last or step % checkpoint_every == 0):
                run.validate(val)
            if checkpoint is not None and (last or step % checkpoint_every == 0):
                run.save(checkpoint)
            if stop:
                break
    return run.finish(start)


def _adam(parameters: list[nn.Parameter], lr: float, betas: tuple[float, float]) -> torch.optim.Optimizer:
    fused = all(p.device.type in ("cpu", "cuda") for p in parameters)
    return torch.optim.Adam(parameters, lr, betas, eps=1e-8, fused=fused)


class _Run:
    """What a training is made of between two steps."""

    def __init__(
        self, flow: RectifiedFlow, parameters: list[nn.Parameter], optimizer: torch.optim.Optimizer, ema: float | None
    ) -> None:
        self.flow, self.parameters, self.optimizer, self.decay = flow, parameters, optimizer, ema or 0.0
        self.rates = [group["lr"] for group in optimizer.param_groups]
        self.shadow = [p.detach().clone() for p in parameters] if self.decay else []
        self.averaged, self.streak = 0, 0
        self.fit = FlowFit(flow, {})
        self.generator: torch.Generator

    def step(
        self,
        draw: Draws,
        n: int,
        t_schedule: Schedule,
        metric: Metric | None,
        grad_clip: float | None,
        callback: Callable[[dict[str, float]], Any] | None,
    ) -> bool:
        """One step of least squares; whether the callback asked to stop."""
        x0, x1, y = draw(n, self.generator)
        t = self.flow._draw_times(t_schedule, x0, self.generator)
        loss, v = self.flow._mean_loss(x0, x1, t, metric, y, from_end=t_schedule == "t1")
        self.optimizer.zero_grad()
        loss.backward()
        gradients = [p.grad for p in self.parameters if p.grad is not None]
        norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients)))
        if hasattr(norm, "full_tensor"):  # parameters that are sharded over processes
            norm = norm.full_tensor()
        record = {"step": self.fit.n_steps + 1, "loss": loss.item(), "grad_norm": norm.item()}
        if math.isfinite(record["loss"]) and math.isfinite(record["grad_norm"]):
            self.streak = 0
            if grad_clip is not None and record["grad_norm"] > grad_clip:
                torch.nn.utils.clip_grads_with_norm_(self.parameters, grad_clip, norm)
            self.optimizer.step()
            self._average()
        else:
            self._skip(v.detach(), t, record)
        self.fit.n_steps += 1
        for name, value in record.items():
            self.fit.history[name].append(value)
        return callback is not None and bool(callback(record))

    @torch.no_grad()
    def _average(self) -> None:
        """Averaged weights, free of the start: the first step counts fully, later ones 1 - decay in the limit."""
        if self.shadow:
            self.averaged += 1
            weight = (1 - self.decay) / (1 - self.decay**self.averaged)
            torch._foreach_lerp_(self.shadow, list(self.parameters), weight)

    def _skip(self, v: Tensor, t: Tensor, record: dict[str, float]) -> None:
        self.streak += 1
        self.fit.n_nonfinite += 1
        if self.streak >= SKIPS_IN_A_ROW:
            bad = t[~torch.isfinite(as_rows(v)).all(1)]
            where = f"the velocity at t = {float(bad[0]):.6g}" if len(bad) else "the loss or its gradient"
            raise FloatingPointError(f"{where} is not finite at step {record['step']}, the third in a row: lower lr")

    @contextmanager
    def _with_averages(self) -> Iterator[None]:
        now = [p.detach().clone() for p in self.parameters]
        _copy(self.shadow or now, self.parameters)
        self.flow.eval()
        try:
            yield
        finally:
            _copy(now, self.parameters)
            self.flow.train()

    def validate(self, val: tuple[Tensor, Tensor]) -> None:
        """Keep the loss on held-out pairs."""
        x0, x1 = val
        t = ((torch.arange(len(x0), device=x0.device, dtype=torch.float64) + 0.5) * GOLDEN % 1).to(x0.dtype)
        total = 0.0
        with torch.no_grad(), self._with_averages():
            for part in torch.arange(len(x0), device=x0.device).split(4096):
                total += float(self.flow.loss(x0[part], x1[part], t=t[part])) * len(part) / len(x0)
        self.fit.history["val"].append((self.fit.n_steps, total))

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write all that a resumption needs, whole or not at all."""
        fit, device = self.fit, self.parameters[0].device
        state = {"format": FORMAT, "step": fit.n_steps, "n_nonfinite": fit.n_nonfinite, "streak": self.streak,
                 "averaged": self.averaged, "shadow": self.shadow, "flow": self.flow.state_dict(),
                 "optimizer": self.optimizer.state_dict(), "history": fit.history,
                 "generator": self.generator.get_state(), "own_stream": _stream_states(device)}  # fmt: skip
        write_checkpoint(state, path)

    def load(self, path: str | os.PathLike[str]) -> None:
        """Continue from a file that `save` wrote."""
        state = torch.load(path, weights_only=True, map_location="cpu")
        if not isinstance(state, dict) or state.get("format") != FORMAT or len(state["shadow"]) != len(self.shadow):
            raise value_error("checkpoint", "a file that fit_flow wrote with the same ema", str(path))
        self.flow.load_state_dict(state["flow"])
        self.optimizer.load_state_dict(state["optimizer"])
        _copy(state["shadow"], self.shadow)
        self.averaged, self.streak = state["averaged"], state["streak"]
        self.fit.n_steps, self.fit.n_nonfinite, self.fit.history = state["step"], state["n_nonfinite"], state["history"]
        self.generator.set_state(state["generator"])
        for device_generator, kept in zip(_streams(self.parameters[0].device), state["own_stream"], strict=True):
            device_generator.set_state(kept)

    def finish(self, start: float) -> FlowFit:
        """Put the averaged weights into the flow."""
        self.fit.raw_state = {name: value.detach().clone() for name, value in self.flow.state_dict().items()}
        self.optimizer.zero_grad()
        _copy(self.shadow, self.parameters[: len(self.shadow)])
        self.flow.eval()
        self.fit.seconds = time.perf_counter() - start
        return self.fit


@torch.no_grad()
def _copy(values: list[Tensor], into: Any) -> None:
    for target, value in zip(into, values, strict=True):
        target.copy_(value)


def _streams(device: torch.device) -> list[torch.Generator]:
    """The global generators that a network on `device` may draw from."""
    if device.type != "cuda":
        return [torch.default_generator]
    index = torch.cuda.current_device() if device.index is None else device.index
    return [torch.default_generator, torch.cuda.default_generators[index]]


def _stream_states(device: torch.device) -> list[Tensor]:
    return [generator.get_state() for generator in _streams(device)]


@contextlib.contextmanager
def _own_stream(device: torch.device, generator: torch.Generator) -> Iterator[None]:
    """Let layers that can only draw from the global generators (dropout) draw from ours; put those back after."""
    seed = int(torch.randint(2**62, (), generator=generator, device=generator.device))
    before = _stream_states(device)
    try:
        for stream in _streams(device):
            stream.manual_seed(seed)
        yield
    finally:
        for stream, state in zip(_streams(device), before, strict=True):
            stream.set_state(state)
