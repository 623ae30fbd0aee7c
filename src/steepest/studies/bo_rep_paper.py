"""The paper's text tasks of the BO-REP study: files read from the user's folder, recurrent encoders on GloVe vectors.

Expected in the folder: ``glove*.txt`` (a word and its numbers a line); ``dataset.json``, Amazon reviews as a list of
``{"text", "label": "positive" or "negative", "domain"}``; ``snli_1.0_train.jsonl``, ``snli_1.0_dev.jsonl`` and
``snli_1.0_test.jsonl``; ``training.1600000.processed.noemoticon.csv`` of Sentiment140. The recurrence is written out,
because fused ones have no second derivatives.
"""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy

from steepest.bilevel import BilevelProblem, bo_rep, solve_lower
from steepest.core.errors import check, positive, value_error
from steepest.studies.bo_rep_tasks import EPOCHS, OURS, RIVALS, WAYS
from steepest.studies.claim import bootstrap_interval
from steepest.studies.context import Context, Unavailable

__all__ = ["Texts", "read_glove", "read_reviews", "read_sentiment140", "read_snli", "run_paper"]

LENGTH = 64  # words of a text that are read; the official code reads up to 256
LOW_RESOURCE = ("office_products", "automotive", "computer_&_video_games")  # domains of the test tasks
SHOTS = 20  # texts of a task for training, and as many for validation
TASKS, TEST_TASKS, TASK_BATCH = 400, 50, 4
SAMPLES = 20_000  # texts for training at most; a quarter for validation and for testing
NOISE, RIDGE, HEAD_RIDGE = 0.4, 1e-4, 1e-2
LARGEST_ON_CPU = 256  # hidden units
BUDGET = 3000  # oracle calls
LR_X = {"length": (1e-3, 1e-2, 1e-1), "factor": (1e-2, 1e-1, 1.0)}
LR_Y = 0.1
Labeled = list[tuple[str, int]]


# ------------------------------------------------------------------------------------------------------------- loaders


def words(text: str) -> list[str]:
    """Lower-case words and signs."""
    return re.findall(r"\w+|[^\w\s]", text.lower())


def read_reviews(path: Path) -> dict[str, Labeled]:
    """Reviews of each domain with label 1 (positive) or 0."""
    found: dict[str, Labeled] = {}
    for review in json.loads(path.read_text(encoding="utf-8")):
        found.setdefault(review["domain"], []).append((review["text"], int(review["label"] == "positive")))
    return found


def read_snli(path: Path) -> Labeled:
    """Both sentences as one text; entailment 0, neutral 1, contradiction 2; pairs without agreement are left out."""
    kinds = {"entailment": 0, "neutral": 1, "contradiction": 2}
    with path.open(encoding="utf-8") as lines:
        pairs = [json.loads(line) for line in lines if line.strip()]
    return [(f"{p['sentence1']} | {p['sentence2']}", kinds[p["gold_label"]]) for p in pairs if p["gold_label"] in kinds]


def read_sentiment140(path: Path) -> Labeled:
    """Tweets with label 1 (positive) or 0."""
    with path.open(encoding="latin-1", newline="") as lines:
        return [(row[-1], int(row[0] == "4")) for row in csv.reader(lines) if row]


def read_glove(path: Path, wanted: Iterable[str]) -> dict[str, list[float]]:
    """Vectors of the wanted words."""
    left, found = set(wanted), {}
    with path.open(encoding="utf-8") as lines:
        for line in lines:
            word, *numbers = line.rstrip().split(" ")
            if word in left:
                found[word] = [float(number) for number in numbers]
    if not found:
        raise value_error("glove", "a file with vectors of words of the texts", path)
    return found


@dataclass(frozen=True)
class Texts:
    """Texts as rows of indices into a table of vectors; index 0 is padding and unknown words, a vector of zeros.

    Parameters
    ----------
    ids : Tensor, shape (n, LENGTH)
    labels : Tensor, shape (n,)
    table : Tensor, shape (n_words, d)
    """

    ids: Tensor
    labels: Tensor
    table: Tensor

    @classmethod
    def of(cls, samples: Labeled, glove: Path, device: torch.device) -> Texts:
        """Look the words up."""
        split = [words(text)[:LENGTH] for text, _ in samples]
        vectors = read_glove(glove, {word for text in split for word in text})
        index = {word: i for i, word in enumerate(vectors, 1)}
        ids = torch.zeros(len(split), LENGTH, dtype=torch.long)
        for row, text in zip(ids, split, strict=True):
            known = [index.get(word, 0) for word in text]
            row[: len(known)] = torch.tensor(known, dtype=torch.long)
        table = torch.tensor([[0.0] * len(next(iter(vectors.values()))), *vectors.values()])
        return cls(ids.to(device), torch.tensor([label for _, label in samples], device=device), table.to(device))

    def start(self, hidden: int, seed: int) -> dict[str, Tensor]:
        """Weights of an encoder: entries of variance 1 / fan-in, open forget gates."""
        draw = torch.Generator().manual_seed(seed)
        d, device = self.table.shape[1], self.table.device
        bias = torch.zeros(4, hidden)
        bias[1] = 1.0
        return {
            "input": (torch.randn(d, 4 * hidden, generator=draw) / d**0.5).to(device),
            "recurrent": (torch.randn(hidden, 4 * hidden, generator=draw) / hidden**0.5).to(device),
            "bias": bias.reshape(-1).to(device),
        }

    def encode(self, x: Mapping[str, Tensor], rows: Tensor) -> Tensor:
        """Largest hidden states over the words of the rows' texts, (len(rows), hidden)."""
        ids = self.ids[rows]
        h = c = x["recurrent"].new_zeros(len(ids), len(x["recurrent"]))
        pooled = torch.full_like(h, -1.0)
        for at in ids.unbind(1):
            if not bool((at > 0).any()):
                continue
            i, f, g, o = (self.table[at] @ x["input"] + h @ x["recurrent"] + x["bias"]).chunk(4, 1)
            read = (at > 0).unsqueeze(1)
            c = torch.where(read, torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g), c)
            h = torch.where(read, torch.sigmoid(o) * torch.tanh(c), h)
            pooled = torch.where(read, torch.maximum(pooled, h), pooled)
        return pooled


def _picker(n: int, size: int) -> Callable[[torch.Generator, int | None], Tensor]:
    def draw(generator: torch.Generator, asked: int | None) -> Tensor:
        return torch.randint(n, (asked or size,), generator=generator, device=generator.device)

    return draw


# --------------------------------------------------------------------------------------------------------------- tasks

Made = tuple[BilevelProblem, Callable[[Any, Any], float]]


def representation(folder: Path, hidden: int, device: torch.device, seed: int) -> Made:
    """Encoder x and a head y_i for each of 400 tasks, 20 + 20 reviews of one domain; tested on domains not seen."""
    reviews, rng = read_reviews(_file(folder, "dataset.json")), np.random.default_rng(seed)
    samples: Labeled = []
    starts: dict[str, tuple[int, int]] = {}
    for domain, found in reviews.items():
        starts[domain] = (len(samples), len(found))
        samples += found
    texts = Texts.of(samples, _file(folder, "glove*.txt"), device)

    def draw(domains: Sequence[str], n: int) -> Tensor:  # (n, 2 shots) rows
        if not domains:
            raise Unavailable(f"dataset.json in {folder} lacks domains, for training or those of testing")
        chosen = [starts[domains[i]] for i in rng.integers(len(domains), size=n)]
        return torch.tensor(np.stack([at + rng.permutation(np.arange(2 * SHOTS) % size) if size < 2 * SHOTS
                                      else at + rng.permutation(size)[: 2 * SHOTS] for at, size in chosen]),
                            device=device)  # fmt: skip

    tasks = draw([d for d in reviews if d not in LOW_RESOURCE], TASKS)
    tests = draw([d for d in reviews if d in LOW_RESOURCE], TEST_TASKS)

    def loss(x: Any, y: Tensor, rows: Tensor) -> Tensor:
        logits = torch.einsum("ish,ih->is", texts.encode(x, rows.reshape(-1)).view(*rows.shape, -1), y[:, :-1])
        return binary_cross_entropy_with_logits(logits + y[:, -1:], texts.labels[rows].to(y.dtype))

    def lower(x: Any, y: Tensor, batch: Tensor | None, of: Tensor = tasks) -> Tensor:
        chosen, heads = (of, y) if batch is None else (of[batch], y[batch])
        return loss(x, heads, chosen[:, :SHOTS]) + HEAD_RIDGE / 2 * heads.square().sum() / len(heads)

    def upper(x: Any, y: Tensor, batch: Tensor | None) -> Tensor:
        chosen, heads = (tasks, y) if batch is None else (tasks[batch], y[batch])
        return loss(x, heads, chosen[:, SHOTS:])

    start = texts.start(hidden, seed)
    zeros = torch.zeros(TASKS, hidden + 1, device=device)
    pick = _picker(TASKS, TASK_BATCH)
    problem = BilevelProblem(upper, lower, start, zeros, sample_upper=pick, sample_lower=pick, name="reviews")

    def accuracy(x: Any, _: Any) -> float:
        """Of heads trained on the test tasks."""
        unseen = BilevelProblem(
            lambda x, y, b: loss(x, y, tests), lambda x, y, b: lower(x, y, None, tests), x, zeros[:TEST_TASKS]
        )
        y, _ = solve_lower(unseen, x, tol=1e-4, maxiter=100)
        with torch.no_grad():
            rows = tests[:, SHOTS:]
            h = texts.encode(x, rows.reshape(-1)).view(*rows.shape, -1)
            right = (torch.einsum("ish,ih->is", h, y[:, :-1]) + y[:, -1:] > 0) == (texts.labels[rows] > 0)
        return float(right.double().mean())

    return problem, accuracy


def _classifier(
    texts: Texts, parts: Sequence[Tensor], hidden: int, seed: int, x0: Tensor,
    lower_of: Callable[[Tensor, Tensor, Tensor, dict[str, Tensor]], Tensor], name: str,
) -> Made:  # fmt: skip
    """A recurrent classifier y below; `lower_of(x, losses, at, y)` makes the training loss of the texts ``at``."""
    train, validation, test = parts
    classes = int(texts.labels.max()) + 1
    y0 = texts.start(hidden, seed) | {"head": torch.zeros(hidden + 1, classes, device=texts.ids.device)}

    def logits(y: dict[str, Tensor], rows: Tensor) -> Tensor:
        return texts.encode(y, rows) @ y["head"][:-1] + y["head"][-1]

    def lower(x: Tensor, y: dict[str, Tensor], batch: Tensor | None) -> Tensor:
        at = torch.arange(len(train), device=train.device) if batch is None else batch
        losses = cross_entropy(logits(y, train[at]), texts.labels[train[at]], reduction="none")
        return lower_of(x, losses, at, y)

    def upper(x: Tensor, y: dict[str, Tensor], batch: Tensor | None) -> Tensor:
        rows = validation if batch is None else validation[batch]
        return cross_entropy(logits(y, rows), texts.labels[rows])

    @torch.no_grad()
    def accuracy(x: Any, y: Any) -> float:
        return float((logits(y, test).argmax(1) == texts.labels[test]).double().mean())

    problem = BilevelProblem(
        upper, lower, x0, y0, sample_upper=_picker(len(validation), 50), sample_lower=_picker(len(train), 50), name=name
    )
    return problem, accuracy


def regularization(folder: Path, hidden: int, device: torch.device, seed: int) -> Made:
    """SNLI: the logarithm of the strength of a ridge on a whole classifier."""
    splits = [_some(read_snli(_file(folder, f"snli_1.0_{part}.jsonl")), n, seed)
              for part, n in (("train", SAMPLES), ("dev", SAMPLES // 4), ("test", SAMPLES // 4))]  # fmt: skip
    texts = Texts.of([sample for split in splits for sample in split], _file(folder, "glove*.txt"), device)
    parts = torch.arange(len(texts.ids), device=device).split([len(split) for split in splits])

    def lower_of(x: Tensor, losses: Tensor, at: Tensor, y: dict[str, Tensor]) -> Tensor:
        return losses.mean() + torch.exp(x[0]) / 2 * sum(weight.square().sum() for weight in y.values())

    x0 = torch.full((1,), float(np.log(RIDGE)), device=device)
    return _classifier(texts, parts, hidden, seed, x0, lower_of, "snli")


def cleaning(folder: Path, hidden: int, device: torch.device, seed: int) -> Made:
    """Sentiment140: a weight for each training text, 40 % of whose labels are redrawn."""
    found = _some(read_sentiment140(_file(folder, "training.1600000.processed.noemoticon.csv")), SAMPLES * 3 // 2, seed)
    n = len(found) * 2 // 3
    rng = np.random.default_rng(seed)
    wrong = set(rng.permutation(n)[: round(NOISE * n)].tolist())
    found = [(text, int(rng.integers(2)) if i in wrong else label) for i, (text, label) in enumerate(found)]
    texts = Texts.of(found, _file(folder, "glove*.txt"), device)
    half = (len(found) - n) // 2
    parts = torch.arange(len(found), device=device).split([n, half, len(found) - n - half])

    def lower_of(x: Tensor, losses: Tensor, at: Tensor, y: dict[str, Tensor]) -> Tensor:
        ridge = sum(weight.square().sum() for weight in y.values())
        return (torch.sigmoid(x[at]) * losses).mean() + RIDGE * ridge

    return _classifier(texts, parts, hidden, seed, torch.zeros(n, device=device), lower_of, "sentiment140")


def _some(samples: Labeled, n: int, seed: int) -> Labeled:
    """At most n, in random order."""
    return [samples[i] for i in np.random.default_rng(seed).permutation(len(samples))[:n]]


def _file(folder: Path, pattern: str) -> Path:
    for file in sorted(folder.glob(pattern)):
        return file
    raise Unavailable(f"no {pattern} in {folder}")


# ----------------------------------------------------------------------------------------------------------------- run


def run_paper(ctx: Context) -> None:
    """Measure what is here; skip the rest with the reason."""
    folder = Path(ctx.data("path"))
    made = {"representation": (representation, 4096), "regularization": (regularization, 2048),
            "cleaning": (cleaning, 4096)}  # fmt: skip
    reasons = []
    for part, (make, width) in made.items():
        hidden = int(ctx.options.get("encoder", width))
        check("encoder", hidden, positive(integer=True))
        try:
            device = ctx.need_cuda() if hidden > LARGEST_ON_CPU else torch.device("cpu")
            gaps = list(_gaps(ctx, part, partial(make, folder, hidden, device)))
        except Unavailable as missing:
            reasons.append(str(missing))
            ctx.skipped(f"paper-{part}", str(missing))
            continue
        ctx.measured(f"paper-{part}", float(np.mean(gaps)), bootstrap_interval(gaps))
    if len(reasons) == len(made):
        raise Unavailable("; ".join(dict.fromkeys(reasons)))


def _gaps(ctx: Context, part: str, make: Callable[[int], Made]) -> Iterator[float]:
    """Points of test accuracy over the best rival, for every seed; rates tuned on a seed of its own."""

    def train(name: str, lr_x: float, seed: int) -> tuple[float, float]:
        problem, accuracy = make(seed)
        way = WAYS[name]
        steps = min(way.steps(BUDGET), ctx.max_steps or BUDGET)
        own = {"lr_z": LR_Y, "refine_epochs": EPOCHS} if way.method is bo_rep else {}
        try:
            found = way.method(problem, lr_x=lr_x, lr_y=LR_Y, decay="linear", maxiter=steps, random_state=seed, **own)
        except ValueError as error:  # conjugate gradients below a whole network, whose Hessian need not be positive
            if "strongly convex" not in str(error):
                raise
            ctx.note(f"paper {part}: {name} with lr_x {lr_x:g} breaks off: {error}")
            return np.inf, 0.0
        loss = found.fun if found.success and np.isfinite(found.fun) else np.inf
        return loss, accuracy(found.x, found.y) if np.isfinite(loss) else 0.0

    accuracies: dict[str, list[float]] = {}
    for name in (OURS, *RIVALS):
        losses = {lr_x: train(name, lr_x, ctx.seed)[0] for lr_x in LR_X[WAYS[name].unit]}
        best = min(losses, key=lambda lr_x: losses[lr_x])
        accuracies[name] = [train(name, best, seed)[1] for seed in ctx.seeds]
        for seed, value in zip(ctx.seeds, accuracies[name], strict=True):
            ctx.series(f"paper {part}", [100 * value], method=name, seed=seed)
    rival = max(RIVALS, key=lambda name: np.mean(accuracies[name]))
    yield from (100 * (a - b) for a, b in zip(accuracies[OURS], accuracies[rival], strict=True))
