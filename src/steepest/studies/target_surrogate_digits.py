"""Digits, a network of one hidden layer, and a budget of gradients of the loss: SSO beside tuned optimizers.

A run of any method sees the same batches from the same start, one gradient of the loss by the outputs for each. It
keeps the training loss after every one of them, and the processor's time of its own steps.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from steepest.core.parallel import ordered_map
from steepest.core.random import torch_generator
from steepest.optim.target_surrogate import TargetSurrogate
from steepest.studies.claim import bootstrap_interval
from steepest.studies.context import Context
from steepest.studies.task import fresh_model

__all__ = ["PEERS", "TARGET", "Method", "Run", "StochasticLineSearch", "Task", "measure", "network", "run", "sso"]

BATCH = 125
TARGET = 0.05  # nats, of the training loss
DELAYS = (0.0, 1.0, 10.0, 100.0)  # ms for each gradient of the loss


@dataclass(frozen=True)
class Task:
    """What is trained: all samples, and how many gradients of the loss a run may ask for."""

    X: Tensor
    y: Tensor
    gradients: int

    def batches(self, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Whole batches of one permutation after the other, the same for every method."""
        g, given = torch_generator(seed), 0
        while True:
            for rows in torch.randperm(len(self.X), generator=g)[: len(self.X) // BATCH * BATCH].split(BATCH):
                if given == self.gradients:
                    return
                given += 1
                yield self.X[rows], self.y[rows]

    @torch.no_grad()
    def loss(self, model: nn.Module) -> float:
        """Cross-entropy over all samples."""
        return float(F.cross_entropy(model(self.X), self.y))


def network() -> nn.Module:
    """64-32-10 with tanh."""
    return nn.Sequential(nn.Linear(64, 32), nn.Tanh(), nn.Linear(32, 10))


# -------------------------------------------------------------------------------------------------------------- methods


class StochasticLineSearch(torch.optim.Optimizer):
    """SGD with an Armijo search on the batch's own loss, transcribed from Vaswani et al. 2019 ("SLS").

    ``step(closure)``: the closure gives the loss of the batch; with gradients enabled it is differentiated. The first
    trial of a step is ``1.8^(1/batches)`` times the last accepted one.
    """

    def __init__(self, params: Any, lr: float, c: float, expand: float = 1.8 ** (1 / 14)) -> None:
        super().__init__(params, {"lr": lr, "c": c, "expand": expand})

    @torch.no_grad()
    def step(self, closure: Callable[[], Tensor]) -> Tensor:  # type: ignore[override]
        """Take the first of the steps a, 0.9 a, 0.81 a, ... that lowers the loss by ``c a ||g||^2``."""
        group = self.param_groups[0]
        params = group["params"]
        with torch.enable_grad():
            loss = closure()
            grads = torch.autograd.grad(loss, params)
        start = [p.clone() for p in params]
        square = sum(float(g.square().sum()) for g in grads)
        a = group["lr"] * group["expand"]
        for _ in range(100):
            for p, w, g in zip(params, start, grads, strict=True):
                torch.add(w, g, alpha=-a, out=p)
            if closure() <= loss - group["c"] * a * square:
                break
            a *= 0.9
        group["lr"] = a
        return loss.detach()


@dataclass(frozen=True)
class Method:
    """A method with one setting: `make` builds it from parameters; `setting` says what was tuned."""

    name: str
    make: Callable[..., torch.optim.Optimizer]
    setting: Mapping[str, Any]

    def build(self, model: nn.Module) -> torch.optim.Optimizer:
        """Make the optimizer of a model."""
        return self.make(model.parameters(), **self.setting)


def sso(name: str, **setting: Any) -> Method:
    """SSO with a setting."""
    return Method(name, TargetSurrogate, setting)


def _grid(name: str, make: Callable[..., Any], **values: Sequence[Any]) -> list[Method]:
    settings: list[dict[str, Any]] = [{}]
    for key, options in values.items():
        settings = [s | {key: value} for s in settings for value in options]
    return [Method(name, make, s) for s in settings]


PEERS: dict[str, list[Method]] = {
    "SGD": _grid("SGD", torch.optim.SGD, lr=(0.1, 0.3, 1.0, 3.0)),
    "Adam": _grid("Adam", torch.optim.Adam, lr=(0.003, 0.01, 0.03, 0.1)),
    "AdaGrad": _grid("AdaGrad", torch.optim.Adagrad, lr=(0.01, 0.03, 0.1, 0.3)),
    "SLS": _grid("SLS", StochasticLineSearch, lr=(1.0, 10.0), c=(0.1, 0.5)),
}
OURS = [sso("SSO", inner="lbfgs", target_lr=eta) for eta in (2.0, 4.0, 8.0)]
UNTUNED = sso("SSO, eta = 1/L", inner="lbfgs", target_lr=2.0)
DEFAULT = sso("SSO, Armijo inside", target_lr=2.0)
KL = sso("SSO, KL", target_lr=1.0, divergence="kl")
KL_LBFGS = sso("SSO, KL and L-BFGS", target_lr=1.0, divergence="kl", inner="lbfgs")


# ----------------------------------------------------------------------------------------------------------------- runs


@dataclass(frozen=True)
class Run:
    """Training losses at the start and after every `every` gradients, and CPU seconds of all steps."""

    losses: list[float]
    seconds: float
    every: int = 1

    @property
    def end(self) -> float:
        """Loss after the last gradient."""
        return self.losses[-1]

    def gradients_to(self, target: float) -> float:
        """Gradients after which the loss is at most `target` for the first time; infinite where it never is."""
        return next((self.every * t for t, loss in enumerate(self.losses) if loss <= target), math.inf)

    def seconds_to(self, target: float, delay: float) -> float:
        """Seconds to `target` when every gradient of the loss takes `delay` seconds more."""
        steps = (len(self.losses) - 1) * self.every
        return self.gradients_to(target) * (self.seconds / steps + delay)


def run(task: Task, method: Method, seed: int, every: int = 1) -> Run:
    """Train from the start of a seed, on its batches."""
    model = fresh_model(network, seed)
    optimizer = method.build(model)
    losses, seconds = [task.loss(model)], 0.0
    for t, (x, y) in enumerate(task.batches(seed), 1):
        start = time.process_time()
        _step(optimizer, model, x, y)
        seconds += time.process_time() - start
        if t % every == 0:
            loss = task.loss(model)
            losses.append(loss if math.isfinite(loss) else math.inf)
    return Run(losses, seconds, every)


def _step(optimizer: torch.optim.Optimizer, model: nn.Module, x: Tensor, y: Tensor) -> None:
    if isinstance(optimizer, TargetSurrogate):
        optimizer.step(partial(model, x), lambda z: F.cross_entropy(z, y))
    elif isinstance(optimizer, StochasticLineSearch):
        optimizer.step(lambda: F.cross_entropy(model(x), y))
    else:
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()


def _run_of(item: tuple[Task, Method, int, int]) -> Run:
    return run(*item)


# --------------------------------------------------------------------------------------------------------- measurements


@dataclass
class Lab:
    """All runs of this study go through here: several at a time where that was asked for."""

    ctx: Context
    task: Task
    seeds: Sequence[int]
    workers: int

    def runs(self, methods: Sequence[Method], seeds: Sequence[int], every: int = 1) -> list[list[Run]]:
        """Runs by method, then by seed."""
        items = [(self.task, m, s, every) for m in methods for s in seeds]
        backend = "processes" if self.workers > 1 else "serial"
        found = ordered_map(_run_of, items, backend=backend, n_workers=self.workers)  # type: ignore[arg-type]
        return [found[i : i + len(seeds)] for i in range(0, len(found), len(seeds))]

    def tuned(self, grid: Sequence[Method]) -> Method:
        """The setting with the lowest loss at the end, on the tuning seed."""
        found = self.runs(grid, [self.ctx.seed], every=self.task.gradients)
        ends = [r[0].end for r in found]
        best = grid[int(np.argmin(ends))]
        tried = ", ".join(f"{_words(m.setting)}: {end:.3g}" for m, end in zip(grid, ends, strict=True))
        self.ctx.note(f"tuning {best.name} (loss at the end, one seed): {tried}.")
        return best


def _words(setting: Mapping[str, Any]) -> str:
    return " ".join(f"{value:g}" for value in setting.values() if isinstance(value, float))


def measure(ctx: Context, span: tuple[float, float]) -> None:
    """Measure the rows of the digits."""
    X, y = ctx.data("digits")
    gradients = ctx.pick(tiny=6, quick=150, full=150, paper=150)
    task = Task(torch.tensor(X / 16, dtype=torch.float32), torch.tensor(y), gradients)
    asked = int(ctx.options.get("workers", 2 if ctx.scale == "full" else 1))
    seeds = ctx.seeds if ctx.seeds_asked or ctx.scale != "full" else [ctx.seed + 1 + k for k in range(5)]
    if ctx.scale == "quick" and not ctx.seeds_asked:
        ctx.note("cut for time: two seeds instead of three on the digits.")
    lab = Lab(ctx, task, seeds, asked)
    low, high = span
    default = amortization(lab)
    ctx.progress(low + 0.5 * (high - low))
    against_peers(lab, default)
    ctx.progress(high)


def amortization(lab: Lab) -> list[Run]:
    """Loss after the same gradients with more and more steps on each surrogate; the runs with ten, the default."""
    ctx, steps = lab.ctx, (1, 5, 10, 20)
    methods = [replace(DEFAULT, setting={"target_lr": 2.0, "inner_steps": m}) for m in steps]
    found = lab.runs(methods, lab.seeds, every=max(1, lab.task.gradients // 30))
    ends = np.array([[r.end for r in runs] for runs in found])
    for m, runs in zip(steps, found, strict=True):
        for seed, r in zip(lab.seeds, runs, strict=True):
            points = [(r.every * t, loss) for t, loss in enumerate(r.losses)]
            ctx.series("amortization", points, method=f"{m} inner step{'s' * (m > 1)}", seed=seed)
    ctx.measured("amortize-monotone", float(np.mean(np.diff(ends, axis=0) < 0)))
    for m, row in ((5, 1), (10, 2), (20, 3)):
        ratios = ends[row] / ends[0]
        ctx.measured(f"amortize-{m}", float(np.median(ratios)), bootstrap_interval(ratios, statistic=np.median))
    return found[2]


def against_peers(lab: Lab, default: list[Run]) -> None:
    """The same gradients for everybody; then the time that they take when each of them waits."""
    ctx = lab.ctx
    best = {name: lab.tuned(grid) for name, grid in (PEERS | {"SSO": OURS}).items()}
    cells = [*best.values(), UNTUNED, KL, KL_LBFGS]
    found = dict(zip([m.name for m in cells], lab.runs(cells, lab.seeds), strict=True))
    found[DEFAULT.name] = default
    for name, runs in found.items():
        for seed, r in zip(lab.seeds, runs, strict=True):
            if name != DEFAULT.name:
                ctx.series("loss", r.losses, method=name, seed=seed)

    def ratio(ours: str, peer: str) -> tuple[float, tuple[float, float]]:
        ratios = np.divide([r.end for r in found[ours]], [r.end for r in found[peer]])
        return float(np.median(ratios)), bootstrap_interval(ratios, statistic=np.median)

    for peer in PEERS:
        ctx.measured(f"beats-{peer.lower()}", *ratio("SSO", peer))
    for claim, ours in (("untuned", UNTUNED.name), ("default", DEFAULT.name), ("kl", KL.name)):
        ctx.measured(f"{claim}-adam", *ratio(ours, "Adam"))
    ctx.measured("untuned-sgd", *ratio(UNTUNED.name, "SGD"))
    ctx.measured("kl-lbfgs-adam", *ratio(KL_LBFGS.name, "Adam"))
    ends = {name: float(np.median([r.end for r in runs])) for name, runs in found.items()}
    ctx.note("loss after the last gradient (median): " + ", ".join(f"{n} {e:.3g}" for n, e in ends.items()) + ".")
    strongest = min(PEERS, key=ends.__getitem__)
    factor, (low, high) = ratio("SSO", strongest)
    ctx.against(
        strongest, 1 / factor, (1 / high, 1 / low), ahead="lower loss", behind="higher loss",
        what=f"training loss on digits after {lab.task.gradients} gradients of the loss, both tuned",
    )  # fmt: skip
    target = TARGET if lab.task.gradients > 100 else 2.2
    _gradients_to(lab, found, target)
    _delays(lab, found, target)


def _gradients_to(lab: Lab, found: Mapping[str, list[Run]], target: float) -> None:
    counts = {name: [r.gradients_to(target) for r in runs] for name, runs in found.items()}
    peer = min(PEERS, key=lambda name: float(np.median(counts[name])))
    ratios = np.divide(counts[peer], counts["SSO"])
    lab.ctx.measured("gradients", float(np.median(ratios)), bootstrap_interval(ratios, statistic=np.median))
    said = ", ".join(f"{name} {np.median(c):g}" for name, c in counts.items())
    lab.ctx.note(f"gradients to a training loss of {target:g} (median; inf: not within the budget): {said}.")


def _delays(lab: Lab, found: Mapping[str, list[Run]], target: float) -> None:
    """Seconds to the target when a gradient of the loss waits; the waiting is added, not slept through."""
    ctx = lab.ctx
    for delay in DELAYS:
        pairs = [
            (a.seconds_to(target, delay / 1e3), s.seconds_to(target, delay / 1e3))
            for a, s in zip(found["Adam"], found["SSO"], strict=True)
        ]
        ratios = np.array([a / s for a, s in pairs])
        ctx.measured(f"delay-{delay:g}", float(np.median(ratios)), bootstrap_interval(ratios, statistic=np.median))
    for name in ("SSO", KL_LBFGS.name, "Adam", "SLS"):
        if all(math.isfinite(r.gradients_to(target)) for r in found[name]):
            curve = [
                (delay, float(np.median([r.seconds_to(target, delay / 1e3) for r in found[name]])))
                for delay in np.geomspace(0.1, 300, 25).tolist()
            ]
            ctx.series("delay", curve, method=name)
    crossings = []
    for a, s in zip(found["Adam"], found["SSO"], strict=True):
        more_work = s.seconds_to(target, 0.0) - a.seconds_to(target, 0.0)
        fewer = a.gradients_to(target) - s.gradients_to(target)
        crossings.append(max(0.0, 1e3 * more_work / fewer) if fewer > 0 else math.inf)
    ctx.measured("delay-crossover", float(np.median(crossings)), bootstrap_interval(crossings, statistic=np.median))
    ctx.note("the delay of a gradient is added to the processor's time of the steps, not slept through.")
