"""Trains the variants of the wing-pressure study on the same wings, seeds and batches, and compares them wing by wing.

Every variant is the same network; only the channels of the surface that it reads differ. Variants are compared by the
squared error of each test wing, averaged over seeds: the reduction in per cent with a bootstrap interval over wings,
and Wilcoxon's one-sided test of the paired wings.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from steepest.core.errors import value_error
from steepest.core.parallel import ordered_map
from steepest.physics import WingPressureModel, train_wing_pressure
from steepest.physics._wings import WingData
from steepest.studies.claim import Interval

__all__ = [
    "ABLATION",
    "BASELINE",
    "GEOMETRY",
    "Network",
    "Reduction",
    "Run",
    "Trained",
    "Variant",
    "Wings",
    "best_lr",
    "model_of",
    "per_wing",
    "reduction",
    "train_all",
    "train_one",
]

Array = NDArray[Any]
METRIC = ("g_11", "g_12", "g_22")
CONNECTION = ("Gamma1_11", "Gamma1_12", "Gamma1_22", "Gamma2_11", "Gamma2_12", "Gamma2_22")


@dataclass(frozen=True)
class Wings:
    """Samples of some wings: panel centres (n, n_u, n_v, 3), conditions (n, 2), cp (n, n_u, n_v), wing (n,)."""

    points: Array
    conditions: Array
    cp: Array
    wing: Array

    @classmethod
    def of(cls, data: WingData) -> Wings:
        """Take the arrays of `physics.make_wing_dataset`."""
        return cls(*(np.asarray(getattr(data, name)) for name in ("points", "conditions", "cp", "wing")))

    def take(self, wings: Iterable[int]) -> Wings:
        """The samples of these wings only."""
        rows = np.isin(self.wing, np.fromiter(wings, dtype=int))
        return Wings(self.points[rows], self.conditions[rows], self.cp[rows], self.wing[rows])

    def tensors(self) -> WingData:
        """The same as float32 tensors, in the form that training takes."""
        points, conditions, cp = (torch.from_numpy(a).float() for a in (self.points, self.conditions, self.cp))
        return WingData(points, conditions, cp, torch.from_numpy(self.wing))


@dataclass(frozen=True)
class Variant:
    """What the network reads of the surface."""

    name: str
    features: str | tuple[str, ...]
    neighbourhood: int = 1


BASELINE = Variant("DAN", "none")
GEOMETRY = Variant("geometry", "intrinsic")
ABLATION = (
    Variant("metric", METRIC),
    Variant("connection", CONNECTION),
    Variant("curvature", ("K",)),
    Variant("metric, connection", METRIC + CONNECTION),
    Variant("geometry, extrinsic too", "all"),
    Variant("geometry, 3 x 3", "intrinsic", 3),
    Variant("DAN, 3 x 3", "none", 3),
)


@dataclass(frozen=True)
class Network:
    """The trunk and its training, the same for every variant."""

    d_model: int
    n_layers: int
    epochs: int
    batch_size: int = 16


@dataclass(frozen=True)
class Run:
    """One training: variant, seed, peak learning rate, data."""

    variant: Variant
    seed: int
    lr: float
    network: Network
    train: Wings
    test: Wings
    validation: Wings | None = None


@dataclass(frozen=True)
class Trained:
    """What came of a run: predictions on the test wings (n, n_u, n_v), curves of the MSE, CPU seconds of training."""

    variant: str
    seed: int
    lr: float
    prediction: Array
    train_mse: list[float]
    val_mse: list[float]
    seconds: float


def model_of(run: Run) -> WingPressureModel:
    """Build the network of a run; its first weights depend on the seed alone."""
    n_u, n_v = run.train.cp.shape[1:]
    return WingPressureModel(
        n_u,
        n_v,
        features=run.variant.features,
        d_model=run.network.d_model,
        n_layers=run.network.n_layers,
        neighbourhood=run.variant.neighbourhood,
        seed=run.seed,
    )


def train_one(run: Run, callback: Callable[..., Any] | None = None) -> Trained:
    """Train a network and let it predict the test wings."""
    model = model_of(run)
    start = time.process_time()
    history = train_wing_pressure(
        model,
        run.train.tensors(),
        epochs=run.network.epochs,
        batch_size=run.network.batch_size,
        lr=run.lr,
        validation=None if run.validation is None else run.validation.tensors(),
        seed=run.seed,
        callback=callback,
    )
    seconds = time.process_time() - start
    test = run.test.tensors()
    with torch.no_grad():
        prediction = torch.cat([model(p, c) for p, c in zip(test.points.split(64), test.conditions.split(64))])
    return Trained(
        run.variant.name,
        run.seed,
        run.lr,
        prediction.numpy(),
        history["train_mse"],
        history["val_mse"],
        seconds,
    )


def train_all(runs: Sequence[Run], workers: int, done: Callable[[int], None]) -> list[Trained]:
    """Train every run, `workers` at a time with one thread each; `done` hears how many are finished."""
    if workers == 1:
        found = []
        for run in runs:
            found.append(train_one(run))
            done(len(found))
        return found
    found, size = [], 4 * workers  # a few batches of work, so that the study can say how far it is
    for i in range(0, len(runs), size):
        found += ordered_map(train_one, runs[i : i + size], backend="processes", n_workers=workers)
        done(len(found))
    return found


def best_lr(runs: Sequence[Run], trained: Sequence[Trained]) -> dict[str, float]:
    """For every variant the learning rate with the least MSE on the validation wings at the end."""
    if any(run.validation is None for run in runs):
        raise value_error("runs", "runs with validation wings", "one without")
    found: dict[str, tuple[float, float]] = {}
    for one in trained:
        found[one.variant] = min(found.get(one.variant, (np.inf, 0.0)), (one.val_mse[-1], one.lr))
    return {name: lr for name, (_, lr) in found.items()}


# ------------------------------------------------------------------------------------------------------- comparison


@dataclass(frozen=True)
class Reduction:
    """By how much one error is below another: per cent, 95 % interval over wings, p of Wilcoxon's one-sided test."""

    percent: float
    interval: Interval
    p: float
    share: float


def per_wing(trained: Sequence[Trained], test: Wings, where: Array | None = None) -> Array:
    """MSE of every test wing, averaged over its conditions and the seeds, (n_wings,).

    `where` is a mask, of samples (n,) or of panels (n_u, n_v).
    """
    squared = np.mean([(one.prediction - test.cp) ** 2 for one in trained], axis=0)  # (n, n_u, n_v)
    if where is not None and where.ndim == 2:
        squared = squared[:, where]
    kept = np.ones(len(squared), dtype=bool) if where is None or where.ndim == 2 else where
    each = squared.reshape(len(squared), -1).mean(axis=1)
    return np.array([each[kept & (test.wing == k)].mean() for k in np.unique(test.wing[kept])])


def reduction(base: Array, ours: Array, *, level: float = 0.95, n_resamples: int = 10_000, seed: int = 0) -> Reduction:
    """Compare two errors wing by wing.

    Parameters
    ----------
    base, ours : array (n_wings,)
        Paired errors.

    Returns
    -------
    Reduction
        ``100 (1 - mean(ours) / mean(base))``, its percentile bootstrap interval over wings, the p value of Wilcoxon's
        signed-rank test against ``base <= ours``, and the share of wings on which `ours` is smaller.

    Examples
    --------
    >>> found = reduction(np.array([2.0, 4.0, 6.0, 8.0]), np.array([1.0, 2.0, 3.0, 4.0]))
    >>> found.percent, found.p, found.share
    (50.0, 0.0625, 1.0)
    """
    from scipy import stats

    if base.shape != ours.shape or base.ndim != 1 or len(base) < 2:
        raise value_error("ours", f"at least two numbers, of base's shape {base.shape}", ours)
    draws = np.random.default_rng(seed).integers(len(base), size=(n_resamples, len(base)))
    each = 100 * (1 - ours[draws].mean(axis=1) / base[draws].mean(axis=1))
    low, high = np.quantile(each, [(1 - level) / 2, (1 + level) / 2])
    p = 1.0 if np.array_equal(base, ours) else float(stats.wilcoxon(base, ours, alternative="greater").pvalue)
    percent = float(100 * (1 - ours.mean() / base.mean()))
    return Reduction(percent, (float(low), float(high)), p, float(np.mean(ours < base)))


def longer(network: Network, factor: int) -> Network:
    """The same trunk trained for `factor` times as many epochs."""
    return replace(network, epochs=factor * network.epochs)
