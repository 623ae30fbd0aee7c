"""One seed of the study: networks trained size after size, then everybody on systems that no network has seen.

A network is trained on the empty box alone, first on a coarse grid and then, with the same weights, on the next finer
one: steps on coarse grids are cheap, and what they teach holds on fine ones. Seconds are CPU seconds of one thread.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse.linalg import LinearOperator

from steepest.core.extras import MissingExtra
from steepest.physics import ConjugateDirectionNet, DeepConjugateDirection, poisson_matrix
from steepest.studies.deep_conjugate_direction_peers import SOLVERS, measured
from steepest.studies.deep_conjugate_direction_smoke import exact_pressure, smoke_frames
from steepest.studies.deep_conjugate_direction_systems import KINDS, Grid, grids

__all__ = [
    "BATCH",
    "MEMORY_LAYOUTS",
    "OURS",
    "RTOL",
    "Plan",
    "Run",
    "Stage",
    "Trial",
    "a_smoke",
    "run_seed",
    "seconds_per_iteration",
    "surplus_products",
]

Array = NDArray[np.float64]
OURS = "DCDM"
RTOL = 1e-4
MAXITER = 500
BATCH = 4  # the number of steps decides: more of them in the same seconds than with 8 or 16
MEMORY_LAYOUTS = (0, 1)


@dataclass(frozen=True)
class Stage:
    """Training on n x n cells: different right-hand sides, Lanczos steps behind them, first step size."""

    n: int
    n_vectors: int
    n_lanczos: int
    lr: float


@dataclass(frozen=True)
class Plan:
    """What one seed does; sizes are divided by `shrink`."""

    stages: tuple[Stage, ...]
    tested: Mapping[int, Mapping[int, int]]  # size of training -> size of test -> layouts
    memory_at: int  # the size at which the memory is varied
    levels: int
    pairs: int
    filters: int = 16
    shrink: int = 1


@dataclass(frozen=True)
class Run:
    """One solver on one system; `trained` is 0 for peers, `set_up` the seconds that changed obstacles cost."""

    solver: str
    trained: int
    n: int
    layout: int
    kind: str
    iterations: int
    arrived: bool
    set_up: float
    seconds: float
    fallbacks: int = 0

    @property
    def total(self) -> float:
        """Seconds with the set-up."""
        return self.set_up + self.seconds


@dataclass
class Trial:
    """What one seed found."""

    seed: int
    losses: dict[int, list[tuple[float, float]]] = field(default_factory=dict)
    training: dict[int, float] = field(default_factory=dict)
    runs: list[Run] = field(default_factory=list)
    curves: dict[str, list[float]] = field(default_factory=dict)
    growth: float = 0.0
    direction: dict[str, NDArray[Any]] = field(default_factory=dict)
    missing: set[str] = field(default_factory=set)
    model: DeepConjugateDirection | None = None

    def mean(self, solver: str, n: int, value: Callable[[Run], float], trained: int | None = None, **where: Any) -> Any:
        """Mean over the runs of a solver at a size; NaN where there is none."""
        found = [
            value(run) for run in self.runs
            if (run.solver, run.n) == (solver, n) and trained in (None, run.trained)
            and all(getattr(run, name) in allowed for name, allowed in where.items())
        ]  # fmt: skip
        return float(np.mean(found)) if found else float("nan")


def run_seed(job: tuple[Plan, int]) -> Trial:
    """Train and test."""
    plan, seed = job
    trial = Trial(seed)
    net = ConjugateDirectionNet(2, plan.filters, levels=plan.levels, pairs=plan.pairs, seed=seed)
    compared: set[int] = set()
    for stage in plan.stages:
        n = stage.n // plan.shrink
        model = DeepConjugateDirection(net, shape=(n, n), seed=seed)
        start = time.process_time()
        model.fit(n_vectors=stage.n_vectors, n_lanczos=stage.n_lanczos, epochs=1, batch_size=BATCH, lr=stage.lr)
        trial.training[stage.n] = time.process_time() - start
        trial.losses[stage.n] = model.history_
        for size, n_layouts in plan.tested.get(stage.n, {}).items():
            _test(trial, plan, model, stage.n, size, n_layouts, with_peers=size not in compared)
            compared.add(size)
    trial.model = model
    return trial


def _test(
    trial: Trial, plan: Plan, model: DeepConjugateDirection, trained: int, size: int, n_layouts: int, with_peers: bool
) -> None:
    """Ours and, where they have not yet solved these systems, the peers."""
    for layout, grid in enumerate(grids(size // plan.shrink, trial.seed, n_layouts)):
        for kind, b in grid.right_sides.items():
            run = _ours(model, grid, b, OURS, trained, size, layout, kind)
            trial.runs.append(run)
        if with_peers:
            _peers(trial, grid, size, layout)
        if size == plan.memory_at:
            for memory in (0, 1) if layout in MEMORY_LAYOUTS else ():
                other = DeepConjugateDirection(model.net_, shape=grid.shape, memory=memory)
                name = f"{OURS}, memory {memory}"
                for kind, b in grid.right_sides.items():
                    trial.runs.append(_ours(other, grid, b, name, trained, size, layout, kind))
            trial.growth = max(trial.growth, _growth(model, grid))
            if layout == 1:
                trial.curves = _curves(model, grid)
                trial.direction = _a_direction(model, grid)


def _ours(
    model: DeepConjugateDirection, grid: Grid, b: Array, name: str, trained: int, size: int, layout: int, kind: str
) -> Run:
    start = time.process_time()
    x, info, stats = _solve(model, grid, b, full_output=True)
    seconds = time.process_time() - start
    arrived = info == 0 and _relative_residual(grid, b, x) <= RTOL
    return Run(name, trained, size, layout, kind, stats["iterations"], arrived, 0.0, seconds, stats["n_fallback"])


def _solve(model: DeepConjugateDirection, grid: Grid, b: Array, **options: Any) -> Any:
    options = {"rtol": RTOL, "maxiter": MAXITER, **options}
    return model.solve(grid.A, b, shape=grid.shape, solid=~grid.fluid, **options)


def _relative_residual(grid: Grid, b: Array, x: Array) -> float:
    return float(np.linalg.norm(b - grid.A @ x) / np.linalg.norm(b))


def _peers(trial: Trial, grid: Grid, size: int, layout: int) -> None:
    A, level = grid.reduced, grid.level
    for name, set_up in SOLVERS.items():
        try:
            solve, taken = measured(set_up, A, level)
        except MissingExtra as missing:
            trial.missing.add(str(missing))
            continue
        for kind, b in grid.right_sides.items():
            b = b[grid.inside]
            start = time.process_time()
            x, iterations = solve(b, RTOL, None)
            seconds = time.process_time() - start
            arrived = bool(np.linalg.norm(b - A @ x) <= 2 * RTOL * np.linalg.norm(b))  # theirs is by recurrence
            trial.runs.append(Run(name, 0, size, layout, kind, iterations, arrived, taken, seconds))


def _growth(model: DeepConjugateDirection, grid: Grid) -> float:
    """The largest factor by which an iteration made the error in the norm of A grow, to a residual of 1e-8."""
    worst = 0.0
    exact = exact_pressure(grid.fluid)
    for b in grid.right_sides.values():
        solution = exact(b)
        errors: list[float] = []

        def watch(x: Array, solution: Array = solution, errors: list[float] = errors) -> None:
            errors.append(float((x - solution) @ (grid.A @ (x - solution))))

        watch(np.zeros_like(b))
        _solve(model, grid, b, callback=watch, maxiter=20)
        worst = max(worst, float(np.max(np.divide(errors[1:], errors[:-1]))))
    return float(np.sqrt(worst))


def _curves(model: DeepConjugateDirection, grid: Grid) -> dict[str, list[float]]:
    """Relative residuals by iteration, to 1e-8."""
    b = grid.right_sides[KINDS[0]]
    stats = _solve(model, grid, b, rtol=1e-8, full_output=True)[2]
    curves = {OURS: [norm / stats["residuals"][0] for norm in stats["residuals"]]}
    A, b = grid.reduced, b[grid.inside]
    for name, set_up in SOLVERS.items():
        if name == "sparse LU":
            continue
        norms = [1.0]

        def watch(x: Array, norms: list[float] = norms) -> None:
            norms.append(float(np.linalg.norm(b - A @ x) / np.linalg.norm(b)))

        try:
            set_up(A, grid.level)(b, 1e-8, watch)
        except MissingExtra:
            continue
        curves[name] = norms
    return curves


def _a_direction(model: DeepConjugateDirection, grid: Grid) -> dict[str, NDArray[Any]]:
    """A residual, the network's direction, and the one that would end it; scaled by the step along them."""
    b = grid.right_sides[KINDS[1]]
    proposed = _solve(model, grid, b, maxiter=1)[0]  # one step along the direction, from zero
    wanted = exact_pressure(grid.fluid)(b)
    cosine = (proposed @ grid.A @ wanted) / np.sqrt((proposed @ grid.A @ proposed) * (wanted @ grid.A @ wanted))
    fields = {"residual": b, "proposed": proposed, "wanted": wanted}
    shaped: dict[str, NDArray[Any]] = {name: values.reshape(grid.shape) for name, values in fields.items()}
    return shaped | {"fluid": grid.fluid, "cosine": np.array(cosine)}


# ------------------------------------------------------------------------------------------------- single measurements


def seconds_per_iteration(
    model: DeepConjugateDirection,
    n: int,
    iterations: int,
    clock: Callable[[], float] = time.process_time,
    statistic: Callable[[Array], Any] = np.median,
) -> float:
    """Of some iterations on the empty box, the second and third of a solve: from the fourth on some need no network."""
    A, b = poisson_matrix((n, n)), np.random.default_rng(0).standard_normal(n * n)
    taken: list[float] = []
    while len(taken) < iterations:
        ticks: list[float] = []
        model.solve(A, b, shape=(n, n), rtol=0.0, atol=1e-300, maxiter=3, callback=lambda x, t=ticks: t.append(clock()))
        taken += list(np.diff(ticks))
    return float(statistic(np.array(taken)))


def surplus_products(n: int = 8) -> int:
    """Products with A that a training asks for beyond those of Lanczos and of the loss: none if nothing is solved."""
    A, count = poisson_matrix((n, n)), 0

    def product(v: Array) -> Array:
        nonlocal count
        count += 1
        return np.asarray(A @ v)

    n_vectors, n_lanczos, epochs = 40, 20, 2
    net = ConjugateDirectionNet(2, 4, levels=1, pairs=1)
    operator = LinearOperator(A.shape, matvec=product, dtype=np.float64)
    DeepConjugateDirection(net, shape=(n, n)).fit(operator, n_vectors=n_vectors, n_lanczos=n_lanczos, epochs=epochs)
    held = n_vectors // 10
    loss = epochs * (2 * (n_vectors - held) + held)  # forward and backward; forward for what is held out
    return count - (1 + 2 + n_lanczos + loss)  # the start, the check of symmetry, Lanczos


def a_smoke(n: int, n_frames: int, seed: int) -> tuple[float, dict[str, NDArray[Any]]]:
    """Largest divergence after any exact projection, and the last frame."""
    *_, grid = grids(n, seed, 2)
    worst = 0.0
    for frame in smoke_frames(grid.fluid, n_frames, np.random.default_rng(seed)):
        worst = max(worst, float(np.abs(frame.divergence).max()))
    arrays = {"smoke": frame.smoke, "right_side": frame.right_side, "pressure": frame.pressure, "fluid": grid.fluid}
    return worst, arrays
