"""RSVRB, the method that BSVRB is to improve on, and the comparison with stocBiO and libraries in equal CPU seconds.

RSVRB keeps one estimate for all m blocks, corrected at random coordinates. With Q(.) the measurements of the I drawn
blocks times m / I, and zero in the rows of the others,

    e <- Q(now) + (1 - alpha) (e - Q(previous)),     all rows of y (and of v) move by e in every step

so that rows shrink towards 0 where they are not drawn, and jump by m / I where they are. Guo, Hu, Zhang and Yang,
Randomized stochastic variance-reduced methods for multi-task stochastic bilevel optimization, 2021. Here every block's
H is projected above the floor and every block's v into its ball, by itself.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from steepest.bilevel import BilevelProblem, bsvrb, solve_lower, stocbio
from steepest.bilevel._bsvrb_blocks import BlockOracles, draw_blocks, floored, into_ball, measure
from steepest.bilevel._loop import decayed, iterate
from steepest.bilevel.problem import BilevelResult
from steepest.core.random import child_seeds, torch_generator
from steepest.studies.bsvrb_libraries import LIBRARIES, at_rates

__all__ = ["METHODS", "Score", "milliseconds", "objective", "rsvrb", "tuned_in_seconds"]


@dataclass(frozen=True)
class _Point:
    x: Tensor
    y: Tensor  # (m, p)
    aid: Tensor  # H (m, p, p) or v (m, p)


@dataclass(frozen=True)
class _State:
    k: int
    now: _Point
    old: _Point
    z: Tensor
    s: Tensor
    u: Tensor


def rsvrb(
    problem: BilevelProblem,
    *,
    variant: str = "v2",
    lr_x: float,
    lr_y: float,
    alpha: float = 0.1,
    beta: float = 0.9,
    blocks_per_step: int,
    batch_size: int | None = None,
    hessian_floor: float = 1e-3,
    v_bound: float = 10.0,
    decay: str | None = None,
    maxiter: int = 1000,
    random_state: int = 0,
) -> BilevelResult:
    """Run RSVRB; ``variant="v1"`` tracks Hessians, "v2" the solutions of the linear systems, as in `bsvrb`."""
    m = problem.n_blocks or 0
    y = problem.pack_y(problem.y0).view(m, -1)
    x = problem.pack_x(problem.x0)
    dense = variant == "v1"
    generator = torch_generator(random_state, y.device, name="random_state")
    oracles = BlockOracles(problem, generator=generator, batch_size=batch_size)

    def spread(S: Tensor, rows: Tensor) -> Tensor:
        full = rows.new_zeros(m, *rows.shape[1:])
        full[S] = m / len(S) * rows
        return full

    def step(state: _State) -> tuple[_State, dict[str, float]]:
        now, old = state.now, state.old
        S = draw_blocks(m, blocks_per_step, generator)
        batches = oracles.draw_upper(S), oracles.draw_lower(S), S
        G, q_s, q_u = measure(oracles, variant, now.x, now.y[S], now.aid[S], *batches)
        z, s, u = G, spread(S, q_s), spread(S, q_u)
        if state.k > 0:
            G_old, q_s_old, q_u_old = measure(oracles, variant, old.x, old.y[S], old.aid[S], *batches)
            z = z + (1 - beta) * (state.z - G_old)
            s = s + (1 - alpha) * (state.s - spread(S, q_s_old))
            u = u + (1 - alpha) * (state.u - spread(S, q_u_old))
        x = now.x - decayed(lr_x, decay, state.k, maxiter) * z
        u = floored(u, hessian_floor) if dense else u
        aid = u if dense else into_ball(now.aid - lr_y * u, v_bound)
        return _State(state.k + 1, _Point(x, now.y - lr_y * s, aid), now, z, s, u), {}

    p = y.shape[1]
    aid = torch.eye(p, dtype=y.dtype, device=y.device).repeat(m, 1, 1) if dense else torch.zeros_like(y)
    start = _Point(x, y, aid)
    return iterate(
        oracles,
        step,
        _State(0, start, start, torch.zeros_like(x), torch.zeros_like(y), torch.zeros_like(aid)),
        view=lambda s: {"x": s.now.x, "y": s.now.y.reshape(-1), "H" if dense else "v": s.now.aid},
        maxiter=maxiter,
    )


# --------------------------------------------------------------------------------------------- equal seconds, all tuned

Run = Callable[..., BilevelResult]
Setting = Mapping[str, float | None]

RATES = {"lr_x": (1.5, 4.0), "lr_y": (-2.0, 0.7)}
METHODS: dict[str, tuple[Run, dict[str, tuple[float, float]]]] = {
    "BSVRB v1": (partial(bsvrb, variant="v1"), RATES | {"alpha": (-1.7, -0.05)}),
    "BSVRB v2": (partial(bsvrb, variant="v2"), RATES | {"alpha": (-1.7, -0.05)}),
    "RSVRB v1": (partial(rsvrb, variant="v1"), RATES | {"alpha": (-1.7, 0.0)}),
    "RSVRB v2": (partial(rsvrb, variant="v2"), RATES | {"alpha": (-1.7, 0.0)}),
    "stocBiO": (stocbio, RATES),
    **{name: (partial(at_rates, name), RATES) for name in LIBRARIES},
}
"""Name: the run, and the powers of ten from which its numbers are drawn."""


@dataclass(frozen=True)
class Score:
    """F(x, y(x)) with y retrained to convergence, F(x, y) with y as it stands, and x; infinite where a run broke."""

    retrained: float
    own: float
    x: Any
    steps: int


def objective(problem: BilevelProblem, x: Any) -> float:
    """F(x, y(x)): the validation loss with every lower problem solved at x."""
    y, _ = solve_lower(problem, x, tol=1e-5, maxiter=60)
    with torch.no_grad():
        return float(problem.upper(x, y, None, problem.all_blocks).mean())


def milliseconds(problem: BilevelProblem, names: list[str], n_drawn: int, rounds: int = 3) -> dict[str, float]:
    """CPU milliseconds of a step of each method: the fastest of some rounds, taken in turns; compiling is not timed."""
    found = dict.fromkeys(names, math.inf)
    for name in set(names) & set(LIBRARIES):
        _run(problem, name, {"lr_x": 1.0, "lr_y": 0.01}, n_drawn, 1, 0)
    for _ in range(rounds):
        for name in names:
            n = 10 if name in ("BSVRB v1", "BSVRB v2", "RSVRB v2") else 3
            start = time.process_time()
            _run(problem, name, {"lr_x": 1.0, "lr_y": 0.01}, n_drawn, n, 0)
            found[name] = min(found[name], 1e3 * (time.process_time() - start) / n)
    return found


def tuned_in_seconds(
    problem: BilevelProblem,
    name: str,
    per_step: float,
    *,
    seconds: float,
    n_drawn: int,
    trials: int,
    seeds: list[int],
    tuning_seed: int,
    max_steps: int | None = None,
) -> tuple[list[Score], Setting]:
    """Search at random with runs of `seconds` CPU seconds each, then run the best setting on `seeds`."""
    steps = max(2, int(1e3 * seconds / per_step))
    steps = steps if max_steps is None else min(steps, max_steps)
    rng = np.random.default_rng(child_seeds(tuning_seed, 1)[0])
    settings = [_setting(name, row) for row in rng.random((trials, 4))]
    tried = [_score(problem, name, setting, n_drawn, steps, tuning_seed) for setting in settings]
    best = settings[int(np.argmin([score.retrained for score in tried]))]
    return [_score(problem, name, best, n_drawn, steps, seed) for seed in seeds], best


def _setting(name: str, uniform: NDArray[np.float64]) -> Setting:
    """Make a setting of numbers in [0, 1). BSVRB has the published gamma = 1 or, at a small alpha, `msvr_gamma`."""
    spans = METHODS[name][1]
    found: dict[str, float | None] = {
        key: float(10 ** (low + u * (high - low)))
        for u, (key, (low, high)) in zip(uniform[: len(spans)], spans.items(), strict=True)
    }
    if name.startswith("BSVRB"):
        alpha = found["alpha"]
        found["gamma"] = None if alpha is not None and alpha <= 0.2 and uniform[3] < 0.5 else 1.0
    return found


def _run(problem: BilevelProblem, name: str, setting: Setting, n_drawn: int, steps: int, seed: int) -> BilevelResult:
    blocks = {"blocks_per_step": n_drawn} if "SVRB" in name else {}
    return METHODS[name][0](problem, **setting, **blocks, decay="linear", maxiter=steps, random_state=seed)


def _score(problem: BilevelProblem, name: str, setting: Setting, n_drawn: int, steps: int, seed: int) -> Score:
    result = _run(problem, name, setting, n_drawn, steps, seed)
    if not result.success:
        return Score(math.inf, math.inf, result.x, result.nit)
    try:
        retrained = objective(problem, result.x)
    except FloatingPointError:
        retrained = math.inf
    return Score(retrained, float(result.fun), result.x, result.nit)
