"""DIFF2 at the paper's scale: larger tabular sets in LIBSVM's text format, by the user's own files."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from steepest.studies import diff2_runs as runs
from steepest.studies.context import Context, Unavailable

__all__ = ["measure"]

EPSILONS = (0.3, 1.0, 5.0)


def measure(ctx: Context, sizes: runs.Sizes) -> None:
    """DIFF2 against DP-GD on every file of the folder, logistic loss and network, at three budgets."""
    sets = _sets(ctx)
    rounds = sizes.max_rounds if ctx.max_steps is None else ctx.max_steps
    runs.real_data(ctx, replace(sizes, epsilons=EPSILONS, max_rounds=rounds), sets, "paper-tabular")


def _sets(ctx: Context) -> dict[str, tuple[Tensor, Tensor]]:
    from sklearn.datasets import load_svmlight_file

    how = "give a folder of binary sets in LIBSVM's text format (*.svm) with --data PATH"
    if ctx._data is None or not Path(ctx._data).is_dir():
        raise Unavailable(f"the paper's tabular sets are not here: {how}")
    files = sorted(Path(ctx._data).glob("*.svm"))
    if not files:
        raise Unavailable(f"no file *.svm in {ctx._data}: {how}")
    found = {}
    for file in files:
        X, y = load_svmlight_file(str(file))
        X = X.toarray()
        X = 2 * X / np.maximum(np.linalg.norm(X, axis=1, keepdims=True), 1e-12)
        labels = (y == y.max()).astype(np.float32)
        found[file.stem] = torch.as_tensor(X, dtype=torch.float32), torch.as_tensor(labels)
    return found
