"""The paper's own data for LV-HBA: support vector machines on LIBSVM files, and federated loss tuning on MNIST's.

Federated loss tuning: every client i has its copy y_i of a linear classifier, the copies must agree (an equality
constraint), and few samples of the later classes are left. x scales and shifts the logits of each class in the training
loss; the upper objective is the validation loss in which every class counts alike.

    lower   sum_i mean CE(exp(s) * (z y_i) + b, c) + 1e-3 |y_i|^2,  x = (s, b)      (y_i - y_{i+1}) / sqrt 2 = 0
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from steepest.bilevel import BilevelProblem, solve_lower
from steepest.studies.context import Context, Unavailable
from steepest.studies.lv_hba_selection import OURS, machine, run_method

__all__ = ["FEDERATED", "LIBSVM", "federated", "measure"]

LIBSVM = ("diabetes", "fourclass", "gisette")
FEDERATED = "mnist"
CLIENTS, TAIL, RIDGE = 10, 0.02, 1e-3  # share of the last class's samples that is left
PER_CLASS = 500
MACHINE = {"alpha": 0.01, "gamma1": 0.6, "gamma2": 0.6, "beta": 0.3, "c": 2.0, "power": 0.3}
LOSSES = {"alpha": 0.1, "gamma1": 1.0, "gamma2": 1.0, "beta": 0.5, "c": 3.0, "power": 0.3}
STEPS = {"machine": 15_000, "federated": 5_000}


def measure(ctx: Context) -> None:
    """Measure what is in the folder given by --data; skip the rest with the reason."""
    folder = Path(ctx.data("path"))
    missing = 0
    for i, name in enumerate((*LIBSVM, FEDERATED)):
        claim = f"paper-federated-{name}" if name == FEDERATED else f"paper-svm-{name}"
        files = sorted(file for file in folder.glob(f"{name}*") if file.is_file())
        if not files:
            missing += 1
            ctx.skipped(claim, f"no file {name}* of LIBSVM's collection is in {folder}")
            continue
        gains = [(_federated if name == FEDERATED else _machine)(ctx, files[0], seed) for seed in ctx.seeds]
        ctx.measured(claim, float(np.mean(gains)), (min(gains), max(gains)))
        ctx.progress((i + 1) / (len(LIBSVM) + 1))
    if missing == len(LIBSVM) + 1:
        raise Unavailable(f"no file of {', '.join((*LIBSVM, FEDERATED))} (LIBSVM format) is in {folder}")


def _read(file: Path) -> tuple[np.ndarray, np.ndarray]:
    from sklearn.datasets import load_svmlight_file

    X, y = load_svmlight_file(str(file))
    return X.toarray(), y


def _machine(ctx: Context, file: Path, seed: int) -> float:
    """Points of test accuracy over one C = 1, retrained."""
    constrained, free, evaluate = machine(_read(file), seed)
    result = run_method(OURS, constrained, dict(MACHINE), ctx.max_steps or STEPS["machine"])
    found, one = evaluate(result.x, result.y), evaluate(free.x0)
    ctx.note(
        f"{file.name}, seed {seed}: own accuracy {found['own']:.3f}, retrained {found['retrained']:.3f}, one C = 1 "
        f"{one['retrained']:.3f}, value gap {result.value_gap:.2g}."
    )
    return 100 * (found["retrained"] - one["retrained"])


def _federated(ctx: Context, file: Path, seed: int) -> float:
    """Points of balanced test accuracy over the loss that is not tuned."""
    problem, plain, score = federated(_read(file), seed)
    result = run_method(OURS, problem, dict(LOSSES), ctx.max_steps or STEPS["federated"])
    untuned, _ = solve_lower(plain, plain.x0, tol=1e-6, maxiter=300)
    tuned, _ = solve_lower(plain, result.x, tol=1e-6, maxiter=300)
    own, after, before = score(result.y.mean(0)), score(tuned), score(untuned)
    ctx.note(
        f"{file.name}, seed {seed}, {CLIENTS} clients: balanced test accuracy {own:.3f} of their common model, "
        f"{after:.3f} retrained, {before:.3f} with the loss that is not tuned; value gap {result.value_gap:.2g}."
    )
    return 100 * (after - before)


def federated(
    data: tuple[np.ndarray, np.ndarray], seed: int, clients: int = CLIENTS
) -> tuple[BilevelProblem, BilevelProblem, Any]:
    """The task with one copy a client, the same with one model for all, and its balanced test accuracy.

    Up to 500 samples a class for training, thinned out to 2 % of that for the last class, then 100 a class for
    validation, the others (at most 1,000 a class) for testing. Half of each client's samples are drawn from two classes
    of its own, where these have so many.
    """
    X, labels = data
    rng = np.random.default_rng(seed)
    classes, c = np.unique(labels, return_inverse=True)
    K = len(classes)
    Z = torch.tensor(np.hstack([X / max(np.abs(X).max(), 1e-12), np.ones((len(X), 1))]))
    parts: dict[str, list[np.ndarray]] = {"train": [], "validation": [], "test": []}
    for k in range(K):
        rows = rng.permutation(np.flatnonzero(c == k))
        n = min(PER_CLASS, len(rows) // 2)
        validation = min(100, (len(rows) - n) // 2)
        parts["train"].append(rows[: max(1, round(n * TAIL ** (k / max(K - 1, 1))))])
        parts["validation"].append(rows[n : n + validation])
        parts["test"].append(rows[n + validation : n + validation + 1000])
    targets = torch.tensor(c)
    owner = _owners(targets[np.concatenate(parts["train"])], clients, rng)
    train, validation_rows, test = (torch.tensor(np.concatenate(parts[key])) for key in parts)
    share = torch.zeros(len(train), clients, dtype=torch.float64)
    share[torch.arange(len(train)), owner] = 1
    share = share / share.sum(0).clamp(min=1)  # a client's loss is the mean over its samples
    Z_train, c_train = Z[train], targets[train]
    shape = (Z.shape[1], K)

    def loss(x: Tensor, logits: Tensor) -> Tensor:
        scale, shift = x.view(2, K)
        return cross_entropy(scale.exp() * logits + shift, c_train, reduction="none")

    def lower(x: Tensor, y: Tensor, batch: Any) -> Tensor:
        mine = torch.einsum("nd,ndk->nk", Z_train, y[owner])
        return (share.sum(1) * loss(x, mine)).sum() + RIDGE * y.square().sum()

    def shared(x: Tensor, y: Tensor, batch: Any) -> Tensor:
        return (share.sum(1) * loss(x, Z_train @ y)).sum() + clients * RIDGE * y.square().sum()

    def balanced(y: Tensor) -> Tensor:
        losses = cross_entropy(Z[validation_rows] @ y, targets[validation_rows], reduction="none")
        counts = torch.bincount(targets[validation_rows], minlength=K).clamp(min=1)
        return (losses / counts[targets[validation_rows]]).sum() / K

    def score(y: Tensor) -> float:
        right = ((Z[test] @ y).argmax(1) == targets[test]).double()
        return float(torch.stack([right[targets[test] == k].mean() for k in range(K)]).mean())

    x0 = torch.zeros(2 * K, dtype=torch.float64)
    problem = BilevelProblem(
        lambda x, y, batch: balanced(y.mean(0)),
        lower,
        x0,
        torch.zeros(clients, *shape, dtype=torch.float64),
        constraint=lambda x, y: ((y[1:] - y[:-1]) / 2**0.5).flatten(),
        equality=True,
        project_joint=lambda x, y: (x, y.mean(0, keepdim=True).expand_as(y).contiguous()),
        name="federated loss tuning",
    )
    plain = BilevelProblem(
        lambda x, y, batch: balanced(y), shared, x0, torch.zeros(shape, dtype=torch.float64), name="one model"
    )
    return problem, plain, score


def _owners(classes: Tensor, clients: int, rng: np.random.Generator) -> Tensor:
    """Give every sample a client: half of them by class, half at random."""
    by_class = rng.random(len(classes)) < 0.5
    return torch.where(
        torch.tensor(by_class), classes % clients, torch.tensor(rng.integers(clients, size=len(classes)))
    )
