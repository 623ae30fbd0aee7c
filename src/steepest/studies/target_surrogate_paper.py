"""SSO at the paper's own settings: LIBSVM's sets from a folder, a badly conditioned factorization, MuJoCo's walkers.

``--option task=libsvm --data DIR``: DIR holds ``mushrooms``, ``ijcnn1`` and ``rcv1_train.binary`` (plain, .bz2 or .gz)
in LIBSVM's format. ``task=factorization`` needs nothing. ``task=mujoco --data DIR`` needs MuJoCo and, for each
environment, an expert ``Hopper-v5.npz``, ``Walker2d-v5.npz``: layers ``W0, b0, W1, b1, ...`` of a tanh network that
gives the action.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from steepest.core.errors import check, one_of, value_error
from steepest.core.extras import installed, require
from steepest.core.random import torch_generator
from steepest.optim.target_surrogate import TargetSurrogate
from steepest.studies.claim import bootstrap_interval
from steepest.studies.context import Context, Unavailable
from steepest.studies.target_surrogate_digits import StochasticLineSearch
from steepest.studies.target_surrogate_imitation import Imitation, compare
from steepest.studies.task import fresh_model

__all__ = ["Rows", "measure", "read_libsvm", "scripted_network"]

FILES = {"mushrooms": "mushrooms", "ijcnn": "ijcnn1", "rcv1": "rcv1_train.binary"}
BATCHES = (5, 25, 125, 625)
EPOCHS = 500
GRID = (1e-2, 1e-1, 1.0, 1e1, 1e2)  # of every method's step
WALKERS = {"mujoco-hopper": ("Hopper-v5", 11, 3), "mujoco-walker2d": ("Walker2d-v5", 17, 6)}
Loss = Callable[[Tensor, Tensor], Tensor]
LOSSES: dict[str, Loss] = {
    "squared": lambda z, y: (z[:, 0] - y).square().mean(),
    "logistic": lambda z, y: F.binary_cross_entropy_with_logits(z[:, 0], y),
}


def measure(ctx: Context) -> None:
    """Measure the claims of the task that ``--option task=`` names."""
    work = {"libsvm": _libsvm, "factorization": _factorization, "mujoco": _mujoco}
    task = ctx.options.get("task", "libsvm")
    check("task", task, one_of(*work))
    work[task](ctx)
    for claim in ctx.claims.values():
        other = claim.id.split("-")[0]
        if ctx.wants(claim.id) and other in work and other != task:
            ctx.skipped(claim.id, f"another task: --option task={other}")


def _is_code_test(ctx: Context) -> bool:
    """Whether this run only shows that the code runs: 20 gradients at most."""
    return ctx.max_steps is not None and ctx.max_steps <= 20


def _measured(ctx: Context, claim: str, value: float, interval: tuple[float, float] | None = None) -> None:
    if _is_code_test(ctx):
        ctx.skipped(claim, f"a few steps, which test the code and nothing else (gave {value:.3g})")
    else:
        ctx.measured(claim, value, interval)


# ------------------------------------------------------------------------------------------------------- linear models


@dataclass(frozen=True)
class Rows:
    """A design matrix (n, d), dense or of SciPy's CSR format, and targets (n, ...)."""

    X: Any
    y: Tensor

    def __len__(self) -> int:
        return int(self.X.shape[0])

    def take(self, rows: np.ndarray | slice) -> tuple[Tensor, Tensor]:
        """Some rows as tensors, sparse where the matrix is."""
        part, y = self.X[rows], self.y[torch.as_tensor(rows) if isinstance(rows, np.ndarray) else rows]
        if isinstance(part, np.ndarray):
            return torch.tensor(part, dtype=torch.float32), y
        coo = part.tocoo()
        index = torch.tensor(np.array([coo.row, coo.col]), dtype=torch.long)
        values = torch.tensor(coo.data, dtype=torch.float32)
        return torch.sparse_coo_tensor(index, values, coo.shape, check_invariants=True), y


def read_libsvm(folder: Path, name: str) -> Rows:
    """Read a binary problem in LIBSVM's format; labels become 0 and 1, sets of few columns dense.

    Raises
    ------
    Unavailable
        No such file.
    ValueError
        There are not two labels.
    """
    from sklearn.datasets import load_svmlight_file

    candidates = [folder / f"{FILES[name]}{end}" for end in ("", ".bz2", ".gz")]
    file = next((f for f in candidates if f.exists()), None)
    if file is None:
        raise Unavailable(f"{FILES[name]} (or .bz2, .gz) is not in {folder}: get it from LIBSVM's data page")
    X, labels = load_svmlight_file(str(file))
    values = np.unique(labels)
    if len(values) != 2:
        raise value_error(f"labels of {file.name}", "of two kinds", values)
    dense = X.shape[1] <= 1000
    return Rows(X.toarray() if dense else X.tocsr(), torch.tensor(labels == values[1], dtype=torch.float32))


class _Linear(nn.Module):
    """Rows times weights, for dense and sparse rows."""

    def __init__(self, d: int, columns: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(d, columns))

    def forward(self, x: Tensor) -> Tensor:
        return torch.sparse.mm(x, self.weight) if x.is_sparse else x @ self.weight


def _batches(data: Rows, size: int, seed: int, limit: int) -> Iterator[tuple[Tensor, Tensor]]:
    def endless() -> Iterator[tuple[Tensor, Tensor]]:
        g = torch_generator(seed)
        while True:
            for rows in torch.randperm(len(data), generator=g).split(size):
                yield data.take(rows.numpy())

    return islice(endless(), limit)


def _train(
    data: Rows, loss: Loss, build: Callable[[], nn.Module], name: str, step: float, size: int, seed: int, gradients: int
) -> float:
    """Loss over all rows after so many gradients."""
    model = fresh_model(build, seed)
    optimizer: Any = {
        "SSO": lambda p: TargetSurrogate(p, target_lr=step, inner_steps=10),
        "SGD": lambda p: torch.optim.SGD(p, step),
        "Adam": lambda p: torch.optim.Adam(p, step / 100),
        "AdaGrad": lambda p: torch.optim.Adagrad(p, step / 10),
        "SLS": lambda p: StochasticLineSearch(p, step, 0.1, expand=1.8 ** (size / len(data))),
    }[name](model.parameters())
    for x, y in _batches(data, size, seed, gradients):
        if name == "SSO":
            optimizer.step(partial(model, x), lambda z, y=y: loss(z, y))
        elif name == "SLS":
            optimizer.step(lambda x=x, y=y: loss(model(x), y))
        else:
            optimizer.zero_grad()
            loss(model(x), y).backward()
            optimizer.step()
    with torch.no_grad():
        x, y = data.take(slice(None))
        end = float(loss(model(x), y))
    return end if math.isfinite(end) else math.inf


def _ratios(
    ctx: Context, data: Rows, loss: Loss, build: Callable[[], nn.Module], size: int, label: str, epochs: int = EPOCHS
) -> list[float]:
    """SSO's loss at the end over that of the best peer, per seed; every method tuned over the same number of steps."""
    gradients = math.ceil(len(data) / size) * epochs
    gradients = gradients if ctx.max_steps is None else min(gradients, ctx.max_steps)
    grid = GRID[1:3] if _is_code_test(ctx) else GRID
    ends: dict[str, list[float]] = {}
    for name in ("SSO", "SGD", "Adam", "AdaGrad", "SLS"):
        tried = [_train(data, loss, build, name, step, size, ctx.seed, gradients) for step in grid]
        best = grid[int(np.argmin(tried))]
        ends[name] = [_train(data, loss, build, name, best, size, seed, gradients) for seed in ctx.seeds]
    said = ", ".join(f"{name} {np.median(e):.3g}" for name, e in ends.items())
    ctx.note(f"{label}: loss after {gradients} gradients (median): {said}.")
    peer = min((n for n in ends if n != "SSO"), key=lambda n: float(np.median(ends[n])))
    return [a / max(b, 1e-30) for a, b in zip(ends["SSO"], ends[peer], strict=True)]


def _libsvm(ctx: Context) -> None:
    """Linear models: squared and logistic losses, batches of 5 to 625, 500 epochs."""
    for name in FILES:
        data = _random_rows(ctx) if _is_code_test(ctx) else read_libsvm(ctx.data("path"), name)
        ratios: list[float] = []
        for loss_name, loss in LOSSES.items():
            for size in BATCHES if not _is_code_test(ctx) else BATCHES[:2]:
                build = partial(_Linear, data.X.shape[1], 1)
                ratios += _ratios(ctx, data, loss, build, size, f"{name}, {loss_name}, batch {size}")
        _measured(ctx, f"libsvm-{name}", float(np.median(ratios)), bootstrap_interval(ratios, statistic=np.median))


def _random_rows(ctx: Context) -> Rows:
    from scipy import sparse

    X = sparse.random(60, 30, density=0.2, format="csr", rng=np.random.default_rng(ctx.seed))
    return Rows(X, torch.tensor(np.arange(60) % 2, dtype=torch.float32))


# -------------------------------------------------------------------------------------------------------- factorization


def _factorization(ctx: Context) -> None:
    """Two linear layers 6-k-10 for a matrix whose rows shrink from 1 to 1e-10: full batch and batches of 100."""
    rng = np.random.default_rng(ctx.seed)
    n, d, c = 1000, 6, 10
    A = np.linspace(1, 1e-10, c)[:, None] * rng.random((c, d))
    X = rng.standard_normal((n, d))
    data = Rows(X, torch.tensor(X @ A.T, dtype=torch.float32))
    ratios: list[float] = []
    for hidden in (6, 10):
        for size in (100, n):
            ratios += _ratios(
                ctx, data, lambda z, y: (z - y).square().sum(1).mean(), partial(_two_layers, d, hidden, c), size,
                f"factorization of rank {hidden}, batch {size}",
            )  # fmt: skip
    _measured(ctx, "factorization", float(np.median(ratios)), bootstrap_interval(ratios, statistic=np.median))


def _two_layers(d: int, hidden: int, c: int) -> nn.Module:
    return nn.Sequential(nn.Linear(d, hidden, bias=False), nn.Linear(hidden, c, bias=False))


# --------------------------------------------------------------------------------------------------------------- MuJoCo


def scripted_network(file: Path) -> Callable[[np.ndarray], Sequence[float]]:
    """Read an expert: layers ``W0, b0, W1, b1, ...`` of a tanh network whose last layer gives the action.

    Raises
    ------
    Unavailable
        The file is missing.
    ValueError
        It has no layers.
    """
    if not file.exists():
        raise Unavailable(f"an expert is missing: {file} (arrays W0, b0, W1, b1, ... of a tanh network)")
    with np.load(file, allow_pickle=False) as arrays:
        layers = [(arrays[f"W{i}"], arrays[f"b{i}"]) for i in range(len(arrays) // 2)]
    if not layers:
        raise value_error("the expert", "a file with arrays W0, b0, ...", file.name)

    def expert(state: np.ndarray) -> list[float]:
        h = state
        for W, b in layers[:-1]:
            h = np.tanh(W @ h + b)
        return [float(v) for v in np.clip(layers[-1][0] @ h + layers[-1][1], -1, 1)]

    return expert


def _mujoco(ctx: Context) -> None:
    require("gymnasium", "rl-mujoco", what="imitation on MuJoCo")
    if not installed("mujoco"):
        raise Unavailable('MuJoCo is not installed: pip install "steepest[rl-mujoco]"')
    folder = ctx.data("path")
    for claim, (env, observations, actions) in WALKERS.items():
        task = Imitation(
            claim, env, (1.0,) * observations, scripted_network(folder / f"{env}.npz"),
            lambda z, y: (z - y).square().sum(1).mean(), lambda z: np.clip(z, -1, 1).astype(np.float32),
            (0.06, 0.12, 0.25, 0.5), 1000, columns=actions, hidden=256,
        )  # fmt: skip
        gains = compare(ctx, task, ctx.seeds, 1000 if ctx.max_steps is None else max(2, ctx.max_steps))
        _measured(ctx, claim, float(np.mean(gains["Adam"])), bootstrap_interval(gains["Adam"]))
