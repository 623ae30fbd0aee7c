"""The report on stability, the setting that it is for, and how one is made from measures."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from steepest.core.errors import (
    at_least,
    boolean,
    check,
    interval,
    kind_error,
    one_of,
    optional,
    positive,
    value_error,
)
from steepest.landscape._measures import Measures, bounds, exact
from steepest.landscape._sample_space import Samples
from steepest.landscape._second_moment import noise_fraction
from steepest.landscape._training import measuring

__all__ = ["Setting", "StabilityReport", "make_report", "make_setting", "measured", "quiet", "training_size"]

NOTIONS = ("gd", "trace", "necessary", "exact", "frobenius")
EDGE = 0.8  # from here to 1 a ratio is at the edge


@dataclass(frozen=True)
class StabilityReport:
    """Where the weights stand; every ratio has the limit 1.

    Attributes
    ----------
    lr, batch_size, momentum, replacement
        The setting that the ratios are for.
    n : int
        Size of the training set (``num_data``, else the number of samples).
    method : "exact" or "bounds"
    step : int or None
        Optimizer steps so far, counted from 1, of a monitor.
    trace, frobenius, lambda_max : float
        ``tr H``, ``|H|_F``, ``lambda_max(H)``.
    mean_fourth : float
        ``(1/n) sum_i |H_i|_F^2``.
    noise_fraction : float
        p.
    alignment : float or None
        mu; None where no loss is known or it is 0.
    interpolation_error : float or None
        The loss, as the optimizer sees it.
    ratios, max_lr : dict
        For every notion that applies its ratio, and the largest stable learning rate.
    std_error : dict or None
        Standard errors of `trace`, `frobenius`, `mean_fourth`, `alignment`; for `lambda_max` the residual of the
        eigenpair, which bounds the distance to an eigenvalue. None where everything is exact.
    nearest : str
        Key of the largest ratio.
    verdict : "stable", "edge" or "unstable"
        Below 0.8, up to 1, above, of ``exact`` where it is known, else of the largest of ``gd``, ``trace`` and
        ``necessary``; "stable" then means that no bound is violated.

    Examples
    --------
    >>> from steepest.landscape import stability_of_factors
    >>> print(stability_of_factors(torch.eye(2), lr=1.5))
    lr=1.5  B=1  n=2  exact  loss unknown: stable (nearest: trace)
    gd         ratio 0.375   largest stable lr 4
    trace      ratio 0.75    largest stable lr 2
    necessary  ratio 0.75    largest stable lr 2
    exact      ratio 0.75    largest stable lr 2
    frobenius  not available
    """

    lr: float
    batch_size: int
    n: int
    momentum: float
    replacement: bool
    method: str
    step: int | None
    trace: float
    frobenius: float
    lambda_max: float
    mean_fourth: float
    noise_fraction: float
    alignment: float | None
    interpolation_error: float | None
    ratios: dict[str, float]
    max_lr: dict[str, float]
    std_error: dict[str, float] | None
    nearest: str
    verdict: str

    def __str__(self) -> str:
        at = "" if self.step is None else f"step {self.step}  "
        loss = "unknown" if self.interpolation_error is None else f"{self.interpolation_error:.3g}"
        head = f"{at}lr={self.lr:g}  B={self.batch_size}  n={self.n}  {self.method}  loss {loss}: {self.verdict} "
        lines = [head + f"(nearest: {self.nearest})"]
        for name in NOTIONS:
            if name in self.ratios:
                ratio = f"{self.ratios[name]:.3g}"
                lines.append(f"{name:<10} ratio {ratio:<7} largest stable lr {self.max_lr[name]:.3g}")
            else:
                lines.append(f"{name:<10} not available")
        return "\n".join(lines)


@dataclass(frozen=True)
class Setting:
    lr: float
    batch_size: int
    replacement: bool
    momentum: float
    n: int

    @property
    def p(self) -> float:
        return noise_fraction(self.n, self.batch_size, self.replacement)


def make_setting(lr: float, batch_size: int, replacement: bool, momentum: float, n: int) -> Setting:
    check("lr", lr, positive())
    check("replacement", replacement, boolean())
    check("batch_size", batch_size, positive(integer=True))
    if not replacement:
        check("batch_size", batch_size, interval(1, n, integer=True))
    check("momentum", momentum, interval(0, 1, high_open=True))
    return Setting(float(lr), int(batch_size), replacement, float(momentum), n)


def training_size(method: str, max_exact: int, X: Any, num_data: int | None) -> int:
    """Check what does not depend on the optimizer, and give the size of the training set."""
    check("method", method, one_of("auto", "exact", "bounds"))
    check("max_exact", max_exact, at_least(0, integer=True))
    if not isinstance(X, Tensor):
        raise kind_error("X", "a tensor with samples along its first axis", X)
    if X.ndim == 0 or len(X) == 0:
        raise value_error("X", "a tensor with at least one sample along its first axis", X)
    check("num_data", num_data, optional(at_least(len(X), integer=True)))
    return len(X) if num_data is None else num_data


@contextmanager
def quiet(model: nn.Module) -> Iterator[None]:
    """Measure in evaluation mode, in the parameters' own precision, with attention that can be differentiated twice."""
    if not isinstance(model, nn.Module):
        raise kind_error("model", "a torch.nn.Module", model)
    device = next((p.device.type for p in model.parameters()), "cpu")
    with (
        measuring(model),
        torch.autocast(device, enabled=False),
        sdpa_kernel(SDPBackend.MATH),
        torch.enable_grad(),
    ):
        yield


def measured(
    samples: Samples,
    setting: Setting,
    method: str,
    max_exact: int,
    num_matvecs: int,
    seed: int | torch.Generator | None,
    start: Tensor | None = None,
) -> tuple[Measures, Tensor | None]:
    """Measure, and give the leading eigenvector of K where products found it."""
    if method == "auto":
        method = "exact" if samples.n * samples.C <= max_exact else "bounds"
    if method == "exact":
        return exact(samples, setting.p if setting.momentum == 0 else None), start
    return bounds(samples, num_matvecs, seed, start)


def make_report(found: Measures, setting: Setting) -> StabilityReport:
    lr, p = setting.lr, setting.p
    ratios = {"gd": lr * found.lambda_max / (2 * (1 + setting.momentum))}
    if setting.momentum == 0:
        ratios["trace"] = lr * p * found.trace / (2 * found.C)
        test = (1 - p) * found.frobenius**2 + p * found.mean_fourth
        ratios["necessary"] = lr * test / (2 * found.trace) if found.trace > 0 else 0.0
        if found.critical is not None:
            ratios["exact"] = lr * found.critical / 2
    if found.alignment is not None:
        ratios["frobenius"] = lr * math.sqrt(p * found.alignment) * found.frobenius
    rated = (
        ratios["exact"] if "exact" in ratios else max(ratios[k] for k in ("gd", "trace", "necessary") if k in ratios)
    )
    return StabilityReport(
        lr=lr,
        batch_size=setting.batch_size,
        n=setting.n,
        momentum=setting.momentum,
        replacement=setting.replacement,
        method=found.method,
        step=None,
        trace=found.trace,
        frobenius=found.frobenius,
        lambda_max=found.lambda_max,
        mean_fourth=found.mean_fourth,
        noise_fraction=p,
        alignment=found.alignment,
        interpolation_error=found.loss,
        ratios=ratios,
        max_lr={name: lr / ratio if ratio > 0 else math.inf for name, ratio in ratios.items()},
        std_error=found.std_error,
        nearest=max(ratios, key=ratios.__getitem__),
        verdict="stable" if rated < EDGE else "edge" if rated <= 1 else "unstable",
    )
