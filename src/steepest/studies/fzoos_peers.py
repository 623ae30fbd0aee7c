"""Centralized peers of the FZooS study: they see F itself, and each look at it costs a query of every client."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np

from steepest.core.extras import installed, require
from steepest.studies.fzoos_problems import BOUNDS, Array, Problem
from steepest.studies.fzoos_runs import made

__all__ = ["PEERS", "queries_to"]

PEERS = {"cma": "cma", "OnePlusOne": "nevergrad", "CMA-nevergrad": "nevergrad", "NGOpt": "nevergrad"}


class _Reached(Exception):
    pass


def queries_to(item: tuple[str, tuple[Any, ...], float, int, int]) -> float | None:
    """Queries of all clients until a point with F within the target was seen; infinite, or None without the package."""
    peer, description, target, seed, budget = item
    if not installed(PEERS[peer]):
        return None
    problem = made(description)
    looks = 0

    def F(x: Array) -> float:
        nonlocal looks
        looks += 1
        value = problem.value(np.clip(np.asarray(x, float), *BOUNDS))
        if value - problem.least <= target:
            raise _Reached
        return value

    try:
        (_by_cma if peer == "cma" else _by_nevergrad)(peer, F, problem, seed, budget)
    except _Reached:
        return float(looks * len(problem.fs))
    return math.inf


def _by_cma(peer: str, F: Callable[[Array], float], problem: Problem, seed: int, budget: int) -> None:
    cma: Any = require("cma", "peers", what="CMA-ES")
    draws = np.random.default_rng(seed)
    options = {"bounds": list(BOUNDS), "maxfevals": budget, "seed": np.nan, "verbose": -9,
               "randn": lambda *shape: draws.standard_normal(shape)}  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        cma.fmin2(F, problem.start, 0.3, options)


def _by_nevergrad(peer: str, F: Callable[[Array], float], problem: Problem, seed: int, budget: int) -> None:
    nevergrad: Any = require("nevergrad", "peers", what=peer)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        parameters = nevergrad.p.Array(init=problem.start).set_bounds(*BOUNDS)
        parameters.random_state.seed(seed)
        optimizer = nevergrad.optimizers.registry[peer.removesuffix("-nevergrad")](
            parametrization=parameters, budget=budget
        )
        for _ in range(budget):
            guess = optimizer.ask()
            optimizer.tell(guess, F(guess.value))
