"""The paper's own settings of the BSVRB study: 100 loss scales on LIBSVM's a8a and w8a, and MovieLens-20M."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from steepest.bilevel import BilevelProblem, bsvrb
from steepest.bilevel.tasks import multi_block_weighting
from steepest.studies.bsvrb_libraries import LIBRARIES, present
from steepest.studies.bsvrb_rivals import METHODS, milliseconds, rsvrb, tuned_in_seconds
from steepest.studies.context import Context, Unavailable

__all__ = ["LIBSVM", "movielens_ranking", "ndcg", "read_ratings", "run_paper"]

LIBSVM = ("a8a", "w8a")
RELEVANT, HELD_OUT, OTHERS = 4.0, 5, 300  # stars; last items of a user; random items they are ranked among
SECONDS, TRIALS, STEPS = 120.0, 20, 200_000


def run_paper(ctx: Context) -> None:
    """Measure what is here; skip the rest with the reason."""
    reasons = []
    for claim in (*(f"paper-{name}" for name in LIBSVM), "paper-movielens"):
        try:
            if claim == "paper-movielens":
                ctx.measured(claim, _movielens(ctx))
            else:
                ctx.measured(claim, _loss_scales(ctx, claim.removeprefix("paper-")))
        except Unavailable as missing:
            reasons.append(str(missing))
            ctx.skipped(claim, str(missing))
    if len(reasons) == len(LIBSVM) + 1:
        raise Unavailable("; ".join(dict.fromkeys(reasons)))


def _loss_scales(ctx: Context, name: str) -> float:
    """Validation loss of BSVRB over that of the best rival, 100 heads with their own loss scales."""
    from sklearn.datasets import load_svmlight_file

    folder = Path(ctx.data("path"))
    file = next((f for f in sorted(folder.glob(f"{name}*")) if f.is_file()), None)
    if file is None:
        raise Unavailable(f"no file {name} is in {folder}; LIBSVM's page of binary data sets has it")
    X, labels = load_svmlight_file(str(file))
    problem, _ = multi_block_weighting(100, ctx.seed, data=(X.toarray(), labels))
    names = [key for key in METHODS if key != "RSVRB v1" and (key not in LIBRARIES or key in present())]
    costs = milliseconds(problem, names, 10, rounds=1)
    losses = {}
    for key in names:
        scores, _ = tuned_in_seconds(
            problem, key, costs[key], seconds=SECONDS, n_drawn=10, trials=2 if ctx.max_steps else TRIALS,
            seeds=ctx.seeds, tuning_seed=ctx.seed, max_steps=ctx.max_steps,
        )  # fmt: skip
        losses[key] = float(np.median([score.retrained for score in scores]))
        ctx.note(f"{name}, {key}: validation loss {losses[key]:.4f}.")
    own = min(loss for key, loss in losses.items() if key.startswith("BSVRB"))
    return own / min(loss for key, loss in losses.items() if not key.startswith("BSVRB"))


# ------------------------------------------------------------------------------------------------------------ MovieLens


def read_ratings(file: Path) -> NDArray[np.float64]:  # (n, 4)
    """Read ``ratings.csv`` of MovieLens: user, movie, stars, time; users and movies numbered from 0."""
    rows = np.loadtxt(file, delimiter=",", skiprows=1, ndmin=2)
    for column in (0, 1):
        rows[:, column] = np.unique(rows[:, column], return_inverse=True)[1]
    return rows


def movielens_ranking(
    ratings: NDArray[np.float64], *, K: int = 10, rank: int = 16, seed: int = 0, n_report: int = 32
) -> tuple[BilevelProblem, NDArray[np.int64], NDArray[np.int64]]:
    r"""Rank movies: for every user a smoothed NDCG over the K best, whose threshold is a lower problem of its own.

        g_i(l) = (K + 1/2) / N l + 0.05 l^2 + mean over items of 0.1 log(1 + exp((h - l) / 0.1))
        f_i    = - mean over relevant items of sigmoid(h - l) / log2(2 + N mean over items of max(0, 1 + h' - h)^2)

    with scores h = <user, item>. The threshold l_i that minimizes g_i is close to the K-th largest score.

    Parameters
    ----------
    ratings : ndarray (n, 4)
        From `read_ratings`.
    K, rank, seed, n_report : int
        Cut-off; length of the vectors of users and movies; of the start; items of a user in the full report, which is
        on a fixed sample, since all pairs do not fit.

    Returns
    -------
    problem : BilevelProblem
        A block for each user with more than `HELD_OUT` relevant movies; a batch holds relevant and random movies.
    users : ndarray (m,)
        Their numbers.
    held_out : ndarray (m, HELD_OUT)
        The last relevant movies of each, which training does not see.
    """
    relevant = ratings[ratings[:, 2] >= RELEVANT]
    relevant = relevant[np.lexsort((relevant[:, 3], relevant[:, 0]))]
    owners, starts, counts = np.unique(relevant[:, 0], return_index=True, return_counts=True)
    enough = counts > HELD_OUT
    if not enough.any():
        raise Unavailable(f"no user has more than {HELD_OUT} movies of {RELEVANT} stars or more")
    owners, starts, counts = owners[enough], starts[enough], counts[enough]
    movies = relevant[:, 1].astype(np.int64)
    held_out = np.stack([movies[s + c - HELD_OUT : s + c] for s, c in zip(starts, counts)])
    N, m = int(ratings[:, 1].max()) + 1, len(owners)
    first, number = torch.as_tensor(starts), torch.as_tensor(counts - HELD_OUT)
    items = torch.as_tensor(movies)
    generator = torch.Generator().manual_seed(seed)

    def sample(generator: torch.Generator, size: int | None, blocks: Tensor) -> tuple[Tensor, Tensor]:
        shape = (len(blocks), size or 32)
        place = (torch.rand(shape, generator=generator) * number[blocks, None]).long()
        return items[first[blocks, None] + place], torch.randint(N, shape, generator=generator)

    report = sample(generator, n_report, torch.arange(m))

    def scores(x: dict[str, Tensor], batch: Any, blocks: Tensor) -> tuple[Tensor, Tensor]:  # relevant (I, B), random
        good, random = batch if batch is not None else (part[blocks] for part in report)
        users = x["users"][blocks].unsqueeze(2)
        return (x["movies"][good] @ users).squeeze(2), (x["movies"][random] @ users).squeeze(2)

    def lower(x: dict[str, Tensor], yb: Tensor, batch: Any, blocks: Tensor) -> Tensor:
        _, h = scores(x, batch, blocks)
        smooth = 0.1 * torch.nn.functional.softplus((h - yb) / 0.1).mean(1)
        return (K + 0.5) / N * yb.squeeze(1) + 0.05 * yb.squeeze(1).square() + smooth

    def upper(x: dict[str, Tensor], yb: Tensor, batch: Any, blocks: Tensor) -> Tensor:
        good, h = scores(x, batch, blocks)
        above = (1 + h.unsqueeze(1) - good.unsqueeze(2)).clamp(min=0).square().mean(2)
        return -(torch.sigmoid(good - yb) / torch.log2(2 + N * above)).mean(1)

    x0 = {name: 0.3 * torch.randn(n, rank, generator=generator) for name, n in (("users", m), ("movies", N))}
    problem = BilevelProblem(upper, lower, x0, torch.zeros(m, 1), sample_upper=sample, sample_lower=sample, n_blocks=m)
    return problem, owners.astype(np.int64), held_out


def ndcg(x: dict[str, Tensor], held_out: NDArray[np.int64], *, K: int = 10, seed: int = 0) -> float:
    """Mean NDCG@K of every user's held-out movies among random ones."""
    rng = np.random.default_rng(seed)
    m, n_held = held_out.shape
    others = rng.integers(len(x["movies"]), size=(m, OTHERS))
    pool = torch.as_tensor(np.hstack([held_out, others]))
    h = (x["movies"][pool] @ x["users"].unsqueeze(2)).squeeze(2)
    h[:, n_held:][torch.as_tensor((others[:, :, None] == held_out[:, None]).any(2))] = -math.inf  # counted already
    places = h.argsort(1, descending=True)[:, :K]
    discount = 1 / torch.log2(torch.arange(K) + 2.0)
    return float(((places < n_held) * discount).sum(1).mean() / discount[:n_held].sum())


def _movielens(ctx: Context) -> float:
    """NDCG@10 of BSVRB over that of RSVRB after as many steps, each with the best of the same step sizes."""
    folder = Path(ctx.data("path"))
    file = folder if folder.is_file() else folder / "ratings.csv"
    if not file.is_file():
        raise Unavailable(f"no ratings.csv of MovieLens-20M is in {folder}; grouplens.org has it")
    problem, _, held_out = movielens_ranking(read_ratings(file), seed=ctx.seed)
    assert problem.n_blocks is not None
    steps, n_drawn = ctx.max_steps or STEPS, max(1, min(100, problem.n_blocks // 4))
    methods: dict[str, Callable[..., Any]] = {"BSVRB v2": partial(bsvrb, variant="v2"), "RSVRB v2": rsvrb}
    found = {}
    for name, method in methods.items():
        best = -math.inf
        for lr_x in (1.0, 10.0, 100.0):
            result = method(
                problem, lr_x=lr_x, lr_y=0.05, blocks_per_step=n_drawn, decay="linear", maxiter=steps,
                random_state=ctx.seeds[0],
            )  # fmt: skip
            if result.success:
                best = max(best, ndcg(result.x, held_out))
        found[name] = best
        ctx.note(f"MovieLens, {name}: NDCG@10 {best:.4f}.")
    return found["BSVRB v2"] / found["RSVRB v2"]
