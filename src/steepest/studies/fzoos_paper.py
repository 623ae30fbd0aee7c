"""The paper's settings: d = 300 for 50 rounds, attacks on MNIST and CIFAR-10, metrics on Covertype.

Images are read from torchvision's layout below ``--data``, Covertype from scikit-learn's folder there; nothing is
downloaded. Clients train a perceptron each, on 70 % (MNIST) or half (CIFAR-10, gray, 32 x 32) of the classes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from steepest.core.extras import MissingExtra, require
from steepest.studies import fzoos_compared as compare
from steepest.studies.context import Context, Unavailable

__all__ = ["Covertype", "Images", "measure"]


@dataclass(frozen=True)
class Images:
    """Images of a set of torchvision's, gray and flat, in [0, 1]; for any process to read."""

    name: str
    folder: Path

    def __call__(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Read them."""
        sets: Any = require("torchvision", "data", what=self.name).datasets
        found = getattr(sets, self.name)(self.folder, train=False, download=False)
        pixels = torch.as_tensor(np.asarray(found.data), dtype=torch.float32) / 255
        gray = pixels if pixels.ndim == 3 else pixels.mean(-1)
        return gray.flatten(1), torch.as_tensor(np.asarray(found.targets), dtype=torch.long)


@dataclass(frozen=True)
class Covertype:
    """scikit-learn's Covertype, from its folder."""

    folder: Path

    def __call__(self, return_X_y: bool = True) -> tuple[np.ndarray, np.ndarray]:
        """Read it."""
        from sklearn.datasets import fetch_covtype

        X, y = fetch_covtype(data_home=str(self.folder), download_if_missing=False, return_X_y=return_X_y)
        return X, y


def measure(ctx: Context) -> None:
    """Measure what there are data for; the limit on steps is one of rounds."""
    short = ctx.max_steps is not None
    rounds, trials, few = ctx.max_steps or 50, 1 if short else None, 1 if short else 15
    parts: dict[str, Callable[[Path], None]] = {
        "paper-mnist": lambda folder: compare.attacks(
            ctx, min(few, 5), few, ctx.max_steps or 100, trials, claim="paper-mnist", read=Images("MNIST", folder),
            share=0.7, width=0.3),
        "paper-cifar10": lambda folder: compare.attacks(
            ctx, min(few, 5), few, ctx.max_steps or 150, trials, claim="paper-cifar10",
            read=Images("CIFAR10", folder), share=0.5, width=0.1),
        "paper-covertype": lambda folder: compare.metrics(
            ctx, "Covertype", Covertype(folder), (30, 14), 7 * 210 * rounds, ctx.seeds, trials,
            claim="paper-covertype"),
    }  # fmt: skip
    compare.queries(ctx, "paper-queries", 300, 0.5, rounds, len(ctx.seeds), 1 if short else 2, trials)
    for claim, part in parts.items():
        try:
            part(ctx.data("path"))
        except (Unavailable, MissingExtra, RuntimeError, OSError) as missing:
            ctx.skipped(claim, f"its data are not here: {missing}")
