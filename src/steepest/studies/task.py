"""What is trained, by whom, and how: a `Task`, a `Contender`, and one completed run (`train`).

The loop is the same for every optimizer: those that want curvature get it through ``hessian_due`` and
``update_hessian``, those of other packages through gradients that keep their graph.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Optimizer

from steepest.core.random import torch_generator
from steepest.curvature.diagonal import sampled_label_loss

__all__ = [
    "Contender",
    "Curvature",
    "Run",
    "Setting",
    "Split",
    "Task",
    "cross_entropy",
    "decay_groups",
    "estimate_curvature",
    "fresh_model",
    "schedule",
    "train",
]

Setting = dict[str, Any]
Split = Literal["tune", "held-out"]


def cross_entropy(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """Mean cross-entropy of the model's logits, class axis last."""
    logits = model(x)
    return F.cross_entropy(logits.reshape(-1, logits.shape[-1]), y.reshape(-1))


def decay_groups(model: nn.Module) -> list[dict[str, Any]]:
    """Split parameters into those that are decayed (weights of linear and convolution layers) and all others."""
    layers = (nn.Linear, nn.modules.conv._ConvNd)
    decayed = {id(m.weight) for m in model.modules() if isinstance(m, layers)}
    weights = [p for p in model.parameters() if p.requires_grad and id(p) in decayed]
    others = [p for p in model.parameters() if p.requires_grad and id(p) not in decayed]
    groups: list[dict[str, Any]] = [{"params": weights}] if weights else []
    return [*groups, {"params": others, "weight_decay": 0.0}] if others else groups


@dataclass(frozen=True)
class Task:
    """What is trained and how it is judged.

    Parameters
    ----------
    name : str
        For series and notes.
    model : callable
        ``model(seed) -> Module``: a fresh model (see `fresh_model`).
    batches : callable
        ``batches(seed, steps)``: an iterable of `steps` pairs ``(x, y)``; the same for every contender.
    evaluate : callable
        ``evaluate(model, split) -> float`` on half A (``"tune"``) or half B (``"held-out"``) of the validation data.
    metric : str
        What `evaluate` returns, unit included.
    better : "lower" or "higher"
        Which values of the metric are better.
    loss : callable
        ``loss(model, x, y) -> Tensor``, a mean over the batch.
    groups : callable
        ``groups(model)``: the parameter groups that an optimizer gets.
    twice : callable
        ``twice(model)``: a context in which the loss can be differentiated twice.
    facts : mapping
        What identifies the data; two comparisons with different facts are never put side by side.
    """

    name: str
    model: Callable[[int], nn.Module]
    batches: Callable[[int, int], Iterable[tuple[Tensor, Tensor]]]
    evaluate: Callable[[nn.Module, Split], float]
    metric: str
    better: Literal["lower", "higher"] = "lower"
    loss: Callable[[nn.Module, Tensor, Tensor], Tensor] = cross_entropy
    groups: Callable[[nn.Module], list[dict[str, Any]]] = decay_groups
    twice: Callable[[nn.Module], AbstractContextManager[Any]] = nullcontext
    facts: Mapping[str, Any] = field(default_factory=dict)

    @property
    def worst(self) -> float:
        """The value of a run that diverged."""
        return math.inf if self.better == "lower" else -math.inf

    def gain(self, value: float, baseline: float) -> float:
        """By how much `value` is better than `baseline` (positive: better)."""
        return baseline - value if self.better == "lower" else value - baseline


@dataclass(frozen=True)
class Curvature:
    """How an optimizer gets its curvature.

    Parameters
    ----------
    kind : "gnb", "hutchinson" or "create_graph"
        ``gnb``: ``update_hessian`` on sampled labels. ``hutchinson``: ``update_hessian`` on the true loss.
        ``create_graph``: the gradients themselves keep their graph (the convention of other packages).
    share : float
        Part of the batch that the estimate sees; the whole batch at ``create_graph``.
    each : int
        Every how many steps a ``create_graph`` optimizer wants the graph (the others say it by ``hessian_due``).
    """

    kind: Literal["gnb", "hutchinson", "create_graph"]
    share: float = 1.0
    each: int = 1


@dataclass(frozen=True)
class Contender:
    """An optimizer with the search space it is tuned in.

    Parameters
    ----------
    name : str
        In figures and tables.
    make : callable
        ``make(params, lr=..., weight_decay=..., **others) -> Optimizer``.
    lr : float
        The recommended learning rate, centre of the grid.
    space : mapping
        Every other hyperparameter, ``name -> values``, the recommended value first.
    curvature : Curvature or None
        How the training loop feeds it.
    package : str
        The package it comes from.
    ratio : float
        Ratio of neighbouring learning rates.
    first : tuple of str
        Hyperparameters on which the best learning rate depends: from 6 trials on, their values are tried before it.
    """

    name: str
    make: Callable[..., Optimizer]
    lr: float
    space: Mapping[str, Sequence[Any]] = field(default_factory=lambda: {"weight_decay": (0.1, 0.0)})
    curvature: Curvature | None = None
    package: str = "steepest"
    ratio: float = math.sqrt(10.0)
    first: tuple[str, ...] = ()

    def recommended(self) -> Setting:
        """The first value of everything."""
        return {"lr": self.lr, **{name: values[0] for name, values in self.space.items()}}


@dataclass(frozen=True)
class Run:
    """One completed schedule.

    Attributes
    ----------
    value : float
        The metric at the end (`Task.worst` when training diverged).
    steps, losses : lists
        Training loss, averaged since the previous entry.
    seconds : float
        Training alone: estimates of curvature included, evaluation not.
    """

    contender: str
    setting: Setting
    seed: int
    value: float
    steps: list[int]
    losses: list[float]
    seconds: float


def schedule(step: int, steps: int, *, warmup: float = 0.05, floor: float = 0.05) -> float:
    """Learning-rate factor of step 0..steps-1: linear warm-up over 5 %, then a cosine down to 5 % of the peak.

    Examples
    --------
    >>> [round(schedule(t, 100), 3) for t in (0, 4, 5, 99)]
    [0.2, 1.0, 1.0, 0.05]
    """
    warm = max(1, round(warmup * steps))
    if step < warm:
        return (step + 1) / warm
    done = (step - warm) / max(1, steps - 1 - warm)
    return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * min(done, 1.0)))


def fresh_model(build: Callable[[], nn.Module], seed: int) -> nn.Module:
    """Build a model whose initial weights depend on `seed` alone; the global generator is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build()


def estimate_curvature(
    optimizer: Any,
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    curvature: Curvature,
    *,
    generator: torch.Generator,
    task: Task | None = None,
    weight: float = 1.0,
) -> None:
    """Feed one estimate to an optimizer of the ``update_hessian`` protocol; running statistics stay untouched."""
    rows = max(1, round(curvature.share * len(x)))
    with _frozen_statistics(model):
        if curvature.kind == "gnb":
            logits = model(x[:rows])
            loss = sampled_label_loss(logits, generator)
            optimizer.update_hessian(loss, batch_size=logits[..., 0].numel(), weight=weight)
        else:
            twice = nullcontext(model) if task is None else task.twice(model)
            loss_fn = cross_entropy if task is None else task.loss
            with twice:
                optimizer.update_hessian(loss_fn(model, x[:rows], y[:rows]), weight=weight)


def train(
    task: Task,
    contender: Contender,
    setting: Setting,
    *,
    steps: int,
    seed: int,
    split: Split = "held-out",
    clip: float | None = 1.0,
    n_points: int = 60,
    watch: Callable[[int, nn.Module, Optimizer], None] | None = None,
) -> Run:
    """Train a fresh model through a whole schedule and judge it at the end.

    Parameters
    ----------
    task, contender, setting
        What, by whom, and with which hyperparameters (``lr`` among them).
    steps, seed : int
        Length of the schedule; the seed of initial weights, data order and label sampling.
    split : "tune" or "held-out"
        The half of the validation data that judges.
    clip : float or None
        Largest gradient norm.
    n_points : int
        Points of the training curve.
    watch : callable, optional
        Called as ``watch(step, model, optimizer)`` after every step.
    """
    model = task.model(seed)
    model.train()
    optimizer = contender.make(task.groups(model), **setting)
    params = [p for p in model.parameters() if p.requires_grad]
    peaks = [group["lr"] for group in optimizer.param_groups]
    curvature = contender.curvature
    graph_each = curvature.each if curvature and curvature.kind == "create_graph" else 0
    explicit = curvature if curvature and not graph_each else None
    generator = torch_generator(seed, params[0].device)
    log_each = max(1, steps // n_points)
    marks: list[int] = []
    means: list[Tensor] = []
    running = torch.zeros((), device=params[0].device)

    start = time.perf_counter()
    for step, (x, y) in enumerate(task.batches(seed, steps)):
        factor = schedule(step, steps)
        for group, peak in zip(optimizer.param_groups, peaks):
            group["lr"] = peak * factor
        if explicit is not None and optimizer.hessian_due():  # type: ignore[attr-defined]
            estimate_curvature(optimizer, model, x, y, explicit, generator=generator, task=task)
        for p in params:
            p.grad = None
        if graph_each and step % graph_each == 0:
            loss = _backward_with_graph(task, model, x, y)
        else:
            loss = task.loss(model, x, y)
            loss.backward()
        if clip is not None:
            _clip([p.grad for p in params if p.grad is not None], clip)
        optimizer.step()
        running += loss.detach()
        if watch is not None:
            watch(step, model, optimizer)
        if (step + 1) % log_each == 0:
            marks.append(step + 1)
            means.append(running / log_each)
            if not math.isfinite(float(running)):
                break
            running = torch.zeros_like(running)
    optimizer.zero_grad(set_to_none=True)
    seconds = time.perf_counter() - start

    losses = [float(m) for m in means]
    finite = all(map(math.isfinite, losses)) and all(bool(p.isfinite().all()) for p in params)
    model.eval()
    value = task.evaluate(model, split) if finite else task.worst
    return Run(contender.name, setting, seed, value if math.isfinite(value) else task.worst, marks, losses, seconds)


@torch.no_grad()
def _clip(gradients: list[Tensor], largest: float) -> None:
    """Scale gradients down to a joint norm, as `torch.nn.utils.clip_grad_norm_` with a third of its overhead."""
    norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients)))
    torch._foreach_mul_(gradients, (largest / (norm + 1e-6)).clamp_(max=1.0))


def _backward_with_graph(task: Task, model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """Leave gradients in ``p.grad`` that carry their graph (as `backward(create_graph=True)`, without its warning)."""
    params = [p for p in model.parameters() if p.requires_grad]
    with task.twice(model):
        loss = task.loss(model, x, y)
    for p, g in zip(params, torch.autograd.grad(loss, params, create_graph=True)):
        p.grad = g
    return loss


@contextmanager
def _frozen_statistics(model: nn.Module) -> Iterator[None]:
    """Batch normalization uses the batch and does not move its running statistics."""
    tracking = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.track_running_stats]
    for m in tracking:
        m.track_running_stats = False
    try:
        yield
    finally:
        for m in tracking:
            m.track_running_stats = True
