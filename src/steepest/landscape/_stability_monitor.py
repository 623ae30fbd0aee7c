"""A monitor of stability that rides along in a training loop."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from steepest.core.errors import SteepestWarning, at_least, check, kind_error, positive, value_error
from steepest.core.extras import require
from steepest.curvature.losses import LossFn
from steepest.landscape._sample_space import ModelSamples
from steepest.landscape._stability_report import (
    StabilityReport,
    make_report,
    make_setting,
    measured,
    quiet,
    training_size,
)
from steepest.landscape._training import lightning_callback, trainer_callback, unwrap_model

__all__ = ["StabilityMonitor"]

FAR = 0.1  # a loss above this share of the first one: not near an interpolating minimum


class StabilityMonitor:
    """Measure stability every so many optimizer steps, on fixed samples.

    Parameters
    ----------
    model, loss_fn, X, y
        As in `linear_stability`: the training set, or a fixed random subset with ``num_data``. A model behind
        DistributedDataParallel or `torch.compile` is unwrapped; ranks that are given the same samples and seed measure
        the same, without communication.
    every : int
        Optimizer steps between measurements.
    batch_size : int
        Of the training loop.
    optimizer : torch.optim.SGD, optional
        Attached to at once.
    method, max_exact
        As in `linear_stability`; "exact" costs a multiple of "bounds".
    callback : callable, optional
        Called with every report.
    seed : int
        Of the random vectors.
    **kw
        `replacement`, `num_data`, `num_matvecs` and `chunk_size` of `linear_stability`. `num_matvecs` is 4 here: the
        search for lambda_max starts from the eigenvector that the last measurement found.

    Attributes
    ----------
    history : list of StabilityReport
    last : StabilityReport or None

    Raises
    ------
    TypeError
        An optimizer that is not `torch.optim.SGD`.
    ValueError
        Parameter groups with different learning rates or momenta; an optimizer without parameters of the model.

    Warns
    -----
    SteepestWarning
        Weight decay, Nesterov momentum or dampening, which are not modelled; a loss that is still above a tenth of the
        first one when it is measured again.

    Examples
    --------
    >>> from steepest.landscape import DiagonalLinear
    >>> model, X = DiagonalLinear(3, scale=0.5), torch.eye(3)
    >>> y = X[:, :1] / 2
    >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    >>> with StabilityMonitor(model, nn.MSELoss(), X, y, every=50, batch_size=3, optimizer=optimizer) as monitor:
    ...     for _ in range(100):
    ...         optimizer.zero_grad()
    ...         nn.functional.mse_loss(model(X), y).backward()
    ...         _ = optimizer.step()
    >>> [report.step for report in monitor.history], monitor.last.verdict
    ([50, 100], 'stable')
    """

    def __init__(
        self,
        model: nn.Module,
        loss_fn: LossFn,
        X: Tensor,
        y: Tensor,
        *,
        every: int = 100,
        batch_size: int,
        optimizer: Optimizer | None = None,
        method: str = "auto",
        max_exact: int = 1024,
        callback: Callable[[StabilityReport], Any] | None = None,
        seed: int = 0,
        **kw: Any,
    ) -> None:
        options: dict[str, Any] = {"replacement": False, "num_data": None, "num_matvecs": 4, "chunk_size": None}
        if unknown := set(kw) - set(options):
            raise kind_error("StabilityMonitor's keyword", f"one of {', '.join(options)}", sorted(unknown)[0])
        options.update(kw)
        check("every", every, positive(integer=True))
        check("num_matvecs", options["num_matvecs"], at_least(4, integer=True))
        if not isinstance(model, nn.Module):
            raise kind_error("model", "a torch.nn.Module", model)
        self.model, self.loss_fn, self.X, self.y = unwrap_model(model), loss_fn, X, y
        self.every, self.batch_size, self.method, self.max_exact = every, batch_size, method, max_exact
        self.callback, self.seed, self.options = callback, seed, options
        self.history: list[StabilityReport] = []
        self._n = training_size(method, max_exact, X, options["num_data"])
        make_setting(1.0, batch_size, options["replacement"], 0.0, self._n)
        self._steps = 0
        self._params: list[Tensor] | None = None
        self._handle: Any = None
        self._start: Tensor | None = None
        self._first_loss: float | None = None
        self._warned = False
        if optimizer is not None:
            self.attach(optimizer)

    @property
    def last(self) -> StabilityReport | None:
        """The latest report of a training run, None before the first."""
        return self.history[-1] if self.history else None

    def attach(self, optimizer: Optimizer) -> StabilityMonitor:
        """Follow `optimizer`; steps are counted on if another one was followed before."""
        if not isinstance(optimizer, torch.optim.SGD):
            raise kind_error("optimizer", "a torch.optim.SGD, whose stability limits are known", optimizer)
        _group_setting(optimizer)
        own = {id(p) for p in self.model.parameters()}
        params = [p for group in optimizer.param_groups for p in group["params"] if id(p) in own and p.requires_grad]
        if not params:
            raise value_error("optimizer", "one that trains parameters of the model", "an optimizer of other ones")
        ignored = [name for name in ("weight_decay", "nesterov", "dampening") if optimizer.param_groups[0][name]]
        if ignored:
            warnings.warn(
                f"the stability limits do not model {', '.join(ignored)}: ratios are those without",
                SteepestWarning,
                stacklevel=2,
            )
        self.detach()
        self._params = params
        self._handle = optimizer.register_step_post_hook(self._after_step)
        return self

    def detach(self) -> StabilityMonitor:
        """Follow nothing; reports are kept."""
        if self._handle is not None:
            self._handle.remove()
            self._handle = None
        return self

    def __enter__(self) -> StabilityMonitor:
        return self

    def __exit__(self, *error: object) -> None:
        self.detach()

    def as_lightning_callback(self) -> Any:
        """Make a Lightning callback that attaches this monitor; `ImportError` where Lightning is missing."""
        return lightning_callback(self)

    def as_trainer_callback(self) -> Any:
        """Make a callback for Hugging Face's ``Trainer``; `ImportError` where ``transformers`` is missing."""
        return trainer_callback(self)

    def measure(self, *, lr: float, momentum: float = 0.0) -> StabilityReport:
        """Measure now, for the given learning rate; the report is not kept."""
        return self._measure(lr, momentum)

    def to_frame(self) -> Any:
        """Return the history as a pandas data frame, one row a report, ratios and limits in columns of their own."""
        pandas = require("pandas", what="StabilityMonitor.to_frame")
        rows = []
        for report in self.history:
            row = {k: v for k, v in vars(report).items() if not isinstance(v, dict) and k != "std_error"}
            row |= {f"ratio_{k}": v for k, v in report.ratios.items()}
            rows.append(row | {f"max_lr_{k}": v for k, v in report.max_lr.items()})
        return pandas.DataFrame(rows)

    def _after_step(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        self._steps += 1
        if self._steps % self.every:
            return
        lr, momentum = _group_setting(optimizer)
        if lr == 0:  # the end of a schedule: nothing moves
            return
        report = replace(self._measure(lr, momentum), step=self._steps)
        self._watch_loss(report)
        self.history.append(report)
        if self.callback is not None:
            self.callback(report)

    def _watch_loss(self, report: StabilityReport) -> None:
        loss = report.interpolation_error
        assert loss is not None
        if self._first_loss is None:
            self._first_loss = loss
        elif loss > FAR * self._first_loss and not self._warned:
            self._warned = True
            warnings.warn(
                f"the loss {loss:.3g} is above a tenth of the first measured {self._first_loss:.3g}: the limits are "
                "those of a minimum that fits every sample, and far from it the Hessian differs from H",
                SteepestWarning,
                stacklevel=2,
            )

    def _measure(self, lr: float, momentum: float) -> StabilityReport:
        setting = make_setting(lr, self.batch_size, self.options["replacement"], momentum, self._n)
        with quiet(self.model):
            samples = ModelSamples(
                self.model,
                self.loss_fn,
                self.X,
                self.y,
                batch_size=self.batch_size,
                params=self._params,
                chunk_size=self.options["chunk_size"],
            )
            budget = self.options["num_matvecs"]
            found, self._start = measured(samples, setting, self.method, self.max_exact, budget, self.seed, self._start)
        return make_report(found, setting)


def _group_setting(optimizer: Optimizer) -> tuple[float, float]:
    """The learning rate and momentum that all groups share."""
    for name in ("lr", "momentum"):
        values = {float(group[name]) for group in optimizer.param_groups}
        if len(values) > 1:
            raise value_error(
                f"optimizer's {name}", "the same in all parameter groups", sorted(values), "the limits are for one"
            )
    if any(group.get("maximize") for group in optimizer.param_groups):
        raise value_error("optimizer's maximize", "False", True)
    return float(optimizer.param_groups[0]["lr"]), float(optimizer.param_groups[0]["momentum"])
