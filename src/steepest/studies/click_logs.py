"""Click logs: a generated stand-in and the Criteo challenge by path, with the embedding model that predicts clicks.

A row is a set of categorical values, each hashed into a table, and a click that is 1 or 0. Judged by the area under the
ROC curve (AUC) in points of 100.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from steepest.core.errors import at_least, check
from steepest.core.random import torch_generator
from steepest.studies.task import Split, Task, fresh_model

__all__ = ["ClickLog", "ClickModel", "click_task", "generated_clicks", "read_criteo"]


@dataclass(frozen=True)
class ClickLog:
    """Hashed rows and clicks: the first 80 % train, then 10 % tune, 10 % held out (logs are judged on the future).

    Attributes
    ----------
    rows : LongTensor (n, fields)
        Values in ``[0, n_buckets)``.
    clicks : Tensor (n,), float32
    """

    name: str
    rows: Tensor
    clicks: Tensor
    n_buckets: int

    def part(self, split: Split | str) -> tuple[Tensor, Tensor]:
        """Rows and clicks of ``"train"``, ``"tune"`` or ``"held-out"``."""
        n = len(self.rows)
        start, stop = {"train": (0.0, 0.8), "tune": (0.8, 0.9), "held-out": (0.9, 1.0)}[split]
        window = slice(int(start * n), int(stop * n))
        return self.rows[window], self.clicks[window]


def generated_clicks(
    n: int = 200_000, *, n_fields: int = 8, n_values: int = 5000, n_buckets: int = 2000, seed: int = 0
) -> ClickLog:
    """Draw a log: values of every field follow Zipf's law, clicks a logistic model of values and pairs of fields.

    A value has a weight of its own, and a hidden vector whose products with those of the neighbouring field are added;
    the intercept makes about a quarter of the rows clicks. Values are hashed into fewer buckets, as in practice.
    """
    check("n", n, at_least(10, integer=True))
    rng = np.random.default_rng(seed)
    odds = 1 / np.arange(1, n_values + 1)
    values = rng.choice(n_values, size=(n, n_fields), p=odds / odds.sum())
    weights = rng.normal(0, 0.5, (n_fields, n_values))
    hidden = rng.normal(0, 0.6, (n_fields, n_values, 4))
    score = np.full(n, -1.4)
    for f in range(n_fields):
        after = (f + 1) % n_fields
        score += weights[f, values[:, f]]
        score += (hidden[f, values[:, f]] * hidden[after, values[:, after]]).sum(1)
    clicks = rng.random(n) < 1 / (1 + np.exp(-score))
    places = np.stack([rng.integers(n_buckets, size=n_values) for _ in range(n_fields)])  # a random hash per field
    rows = places[np.arange(n_fields), values]
    return ClickLog("generated", torch.from_numpy(rows), torch.from_numpy(clicks.astype(np.float32)), n_buckets)


def read_criteo(path: str | os.PathLike[str], *, n: int = 2_000_000, n_buckets: int = 100_000) -> ClickLog:
    """Read the first `n` rows of the Criteo Kaggle file ``train.txt``: label, 13 counts, 26 hashes, tab-separated.

    Counts become categories of their squared logarithm, as is usual for this set.

    Raises
    ------
    FileNotFoundError
        There is no such file (a folder must hold ``train.txt``).
    ValueError
        A line does not have 40 columns.
    """
    file = Path(path) / "train.txt" if Path(path).is_dir() else Path(path)
    rows, clicks = [], []
    with open(file, encoding="utf-8") as lines:
        for number, line in enumerate(islice(lines, n), 1):
            cells = line.rstrip("\n").split("\t")
            if len(cells) != 40:
                raise ValueError(f"{file}, line {number}: 40 columns expected, got {len(cells)}")
            counts = ["" if c == "" else str(int(np.log1p(max(int(c), 0)) ** 2)) for c in cells[1:14]]
            rows.append([zlib.crc32(c.encode()) % n_buckets for c in (*counts, *cells[14:])])
            clicks.append(float(cells[0]))
    return ClickLog("criteo", torch.tensor(rows), torch.tensor(clicks), n_buckets)


class ClickModel(nn.Module):
    """One embedding table per field, then a ReLU network; one logit a row.

    Examples
    --------
    >>> ClickModel(n_fields=3, n_buckets=10)(torch.zeros(5, 3, dtype=torch.long)).shape
    torch.Size([5])
    """

    def __init__(self, n_fields: int, n_buckets: int, width: int = 8, hidden: int = 64) -> None:
        super().__init__()
        tables = [nn.Embedding(n_buckets, width) for _ in range(n_fields)]
        self.tables = nn.ModuleList(tables)
        self.net = nn.Sequential(
            nn.Linear(n_fields * width, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU(), nn.Linear(hidden, 1)
        )
        for table in tables:
            nn.init.normal_(table.weight, std=0.1)

    def forward(self, rows: Tensor) -> Tensor:
        """Map rows (n, fields) to logits (n,)."""
        parts = [table(rows[:, f]) for f, table in enumerate(self.tables)]
        return self.net(torch.cat(parts, 1)).squeeze(1)


def click_task(log: ClickLog, *, batch: int = 512, width: int = 8) -> Task:
    """Make a task of a log: binary cross-entropy, batches in random order, AUC in points (of 100)."""
    from sklearn.metrics import roc_auc_score

    rows, clicks = log.part("train")
    n_fields = rows.shape[1]

    def batches(seed: int, steps: int) -> Iterator[tuple[Tensor, Tensor]]:
        generator = torch_generator(seed)
        left = steps
        while left:
            for chosen in torch.randperm(len(rows), generator=generator).split(batch):
                if left:
                    yield rows[chosen], clicks[chosen]
                    left -= 1

    @torch.no_grad()
    def evaluate(model: nn.Module, split: Split) -> float:
        x, y = log.part(split)
        return 100 * float(roc_auc_score(y.numpy(), model(x).numpy()))

    return Task(
        name=f"{log.name} clicks",
        model=lambda seed: fresh_model(lambda: ClickModel(n_fields, log.n_buckets, width), seed),
        batches=batches,
        evaluate=evaluate,
        metric="AUC (points)",
        better="higher",
        loss=lambda model, x, y: F.binary_cross_entropy_with_logits(model(x), y),
        groups=lambda model: [{"params": list(model.parameters())}],
        facts={"data": log.name, "rows": len(log.rows)},
    )
