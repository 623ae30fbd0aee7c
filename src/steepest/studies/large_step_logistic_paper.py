"""The paper's setting: two classes and 5,000 samples of MNIST, Fashion-MNIST, CIFAR-10, EuroSAT, or a LIBSVM file.

The image sets are read from torchvision's layout below ``--data`` (or the working folder); nothing is downloaded.
Pixels are in [0, 1]. Unbalanced: four samples of the second class.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from steepest.core.errors import check, one_of
from steepest.core.extras import MissingExtra, require
from steepest.studies.context import Context, Unavailable
from steepest.studies.large_step_logistic_problems import fitted

__all__ = ["TITLES", "measure", "two_classes"]

TITLES = {
    "mnist": "MNIST",
    "fashion-mnist": "Fashion-MNIST",
    "cifar10": "CIFAR-10",
    "eurosat": "EuroSAT",
    "libsvm": "The LIBSVM file",
}
SAMPLES, FEW = 5_000, 4
GRID = (0.1, 1.0, 10.0, 100.0, 1_000.0)


def measure(ctx: Context) -> None:
    """Iterations over step sizes, and of both methods where one class is small; what is not here is skipped."""
    asked = ctx.options.get("dataset")
    if asked is not None:
        check("option dataset", asked, one_of(*TITLES))
    names = [asked] if asked is not None else [name for name in TITLES if name != "libsvm"]
    reasons: dict[str, str] = dict.fromkeys(TITLES, "not asked for: --option dataset=NAME")
    done = 0
    for name in names:
        try:
            X, y = two_classes(_load(ctx, name), ctx.seed)
        except (Unavailable, MissingExtra) as missing:
            reasons[name] = str(missing)
            continue
        _measure_set(ctx, name, X, y)
        done += 1
        ctx.progress(done / len(names))
        reasons.pop(name)
    if not done:
        raise Unavailable("; ".join(sorted({reasons[name] for name in names})))
    for name, reason in reasons.items():
        for kind in ("faster", "unbalanced"):
            ctx.skipped(f"paper-{kind}-{name}", reason)


def _measure_set(ctx: Context, name: str, X: Any, y: np.ndarray) -> None:
    max_iter = ctx.max_steps or 100_000
    counts = []
    for gamma in GRID:
        model = fitted(X, y, gamma, normalize=False, max_iter=max_iter, record_history=True)
        history = model.history_[0]
        counts.append(int(model.n_iter_[0]))
        ctx.series("paper iterations", [(gamma, counts[-1])], method=TITLES[name])
        ctx.note(f"{TITLES[name]}, plain, step size {gamma:g}: {counts[-1]} updates, mean loss "
                 f"{history['loss'][:-1].mean():.3g}, {'' if model.separated_[0] else 'not '}separated.")  # fmt: skip
    ctx.measured(f"paper-faster-{name}", counts[0] / counts[GRID.index(100.0)])
    second = np.flatnonzero(y == 1)[FEW:]
    keep = np.setdiff1d(np.arange(len(y)), second)
    both = [int(fitted(X[keep], y[keep], 100.0, normalize=n, max_iter=max_iter).n_iter_[0]) for n in (True, False)]
    whole = [int(fitted(X, y, 100.0, normalize=n, max_iter=max_iter).n_iter_[0]) for n in (True, False)]
    ctx.measured(f"paper-unbalanced-{name}", both[0] / both[1])
    ctx.note(f"{TITLES[name]}, step size 100, normalized and plain: {whole[0]} and {whole[1]} updates on all samples, "
             f"{both[0]} and {both[1]} with {FEW} of one class.")  # fmt: skip


def two_classes(data: tuple[Any, np.ndarray], seed: int) -> tuple[Any, np.ndarray]:
    """At most 5,000 random samples of the first two classes; y is -1 and 1."""
    X, y = data
    first, second = np.unique(y)[:2]
    rows = np.random.default_rng(seed).permutation(np.flatnonzero((y == first) | (y == second)))[:SAMPLES]
    return X[rows], np.where(y[rows] == second, 1, -1)


def _load(ctx: Context, name: str) -> tuple[Any, np.ndarray]:
    if name == "libsvm":
        from sklearn.datasets import load_svmlight_file

        X, y = load_svmlight_file(str(ctx.data("path")))
        return X.tocsr(), y
    try:
        sets: Any = require("torchvision", "data", what=TITLES[name]).datasets
    except (RuntimeError, OSError, AttributeError) as error:  # built for another version of torch
        raise Unavailable(f"{TITLES[name]} needs torchvision, which does not load here: {error}") from error
    try:
        folder = ctx.data("path")
    except Unavailable:
        folder = Path()
    readers: dict[str, Callable[[], Any]] = {
        "mnist": lambda: sets.MNIST(folder, train=True, download=False),
        "fashion-mnist": lambda: sets.FashionMNIST(folder, train=True, download=False),
        "cifar10": lambda: sets.CIFAR10(folder, train=True, download=False),
        "eurosat": lambda: sets.EuroSAT(folder, download=False),
    }
    try:
        images = readers[name]()
    except RuntimeError as error:
        raise Unavailable(f"{TITLES[name]} is not below {folder.resolve()}: {error}") from error
    labels = np.asarray(images.targets)
    rows = np.flatnonzero(np.isin(labels, np.unique(labels)[:2]))
    X = np.stack([np.asarray(images[int(i)][0], dtype=np.float64).ravel() for i in rows]) / 255
    return X, labels[rows]
