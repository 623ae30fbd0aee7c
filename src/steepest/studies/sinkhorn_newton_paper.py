"""The paper's own settings of the Sinkhorn-Newton study: random assignment of 5,000 points and pairs from MNIST."""

from __future__ import annotations

import time
from typing import Any

import numpy as np

from steepest.core.extras import MissingExtra, require
from steepest.studies.claim import Claim
from steepest.studies.context import Context, Unavailable
from steepest.studies.sinkhorn_newton_problems import REG, Problem, image_pair, random_assignment
from steepest.transport import sinkhorn_newton_sparse

__all__ = ["CLAIMS", "run_paper"]

LARGE, STOP = 5000, 1e-12
# fmt: off
CLAIMS = [
    Claim("paper-rla-newton", "Random assignment with 5,000 points: Newton steps to 1e-12.", "9 with 500 points",
          "<= 15", "steps", "paper"),
    Claim("paper-rla-total", "Sweeps and Newton steps.", "29 with 500 points", "<= 150", "iterations", "paper"),
    Claim("paper-rla-seconds", "CPU seconds.", "not in the paper", "reported", "s", "paper"),
    Claim("paper-mnist-l2-newton", "MNIST, squared distance: Newton steps.", "53 iterations in all", "<= 15", "steps",
          "paper"),
    Claim("paper-mnist-l2-total", "Sweeps and Newton steps.", "53", "<= 250", "iterations", "paper"),
    Claim("paper-mnist-l1-newton", "MNIST, cityblock: Newton steps.", "77", "<= 100", "steps", "paper"),
    Claim("paper-mnist-l1-total", "Sweeps and Newton steps.", "777", "<= 400", "iterations", "paper"),
]
# fmt: on


def run_paper(ctx: Context) -> None:
    """Measure what is here; MNIST is read from the folder given by --data, through torchvision."""
    n = LARGE if ctx.max_steps is None else min(LARGE, 50 * ctx.max_steps)
    logs, seconds = [], []
    for seed in ctx.seeds:
        begin = time.process_time()
        logs.append(_log(random_assignment(seed, n)))
        seconds.append(time.process_time() - begin)
    ctx.measured("paper-rla-newton", float(np.median([log["n_newton"] for log in logs])))
    ctx.measured("paper-rla-total", float(np.median([log["niter"] for log in logs])))
    ctx.measured("paper-rla-seconds", float(np.median(seconds)))
    ctx.progress(0.5)
    for name, metric in (("l2", "sqeuclidean"), ("l1", "cityblock")):
        claims = [f"paper-mnist-{name}-{part}" for part in ("newton", "total")]
        try:
            found = [_log(_mnist(ctx, seed, metric)) for seed in ctx.seeds]
        except (Unavailable, MissingExtra) as missing:
            for claim in claims:
                ctx.skipped(claim, str(missing))
            continue
        for claim, key in zip(claims, ("n_newton", "niter"), strict=True):
            ctx.measured(claim, float(np.median([log[key] for log in found])))
    ctx.progress(1.0)


def _log(problem: Problem) -> dict[str, Any]:
    found: dict[str, Any] = sinkhorn_newton_sparse(
        problem.a, problem.b, problem.M, REG, stopThr=STOP, log=True, warn=False
    )[1]
    return found


def _mnist(ctx: Context, seed: int, metric: str) -> Problem:
    datasets: Any = require("torchvision.datasets", "data", what="MNIST")
    folder = ctx.data("path")
    try:
        images = datasets.MNIST(str(folder), train=True, download=False).data.numpy()
    except RuntimeError as error:
        raise Unavailable(f"MNIST is not in {folder}: {error}") from None
    first, second = np.random.default_rng(seed).choice(len(images), 2, replace=False)
    return image_pair(images[first].astype(float), images[second].astype(float), metric)
